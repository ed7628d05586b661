"""The exceptions that callers may catch, and the sentence that names the nearest known word.

UnfooledError
├── InputError      bad input: images, labels, names, eps, files, folders      (exit code 2)
├── AccessError     an attack asks the target for more than was granted
├── TargetError     the target's answer is not one that can be evaluated
└── MissingExtra    an optional package is not installed
"""

import difflib
from collections.abc import Iterable


class UnfooledError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(UnfooledError, ValueError):
    """Bad input of any kind; the message is one sentence that says what is wrong and how to mend it."""


class AccessError(UnfooledError):
    """An attack asked the oracle for more than it was granted."""


class TargetError(UnfooledError, ValueError):
    """The target's answer has a form that cannot be evaluated."""


class MissingExtra(UnfooledError, ImportError):
    """An optional package is missing; the message names the extra that brings it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'a' or 'b'?" for the known words nearest to `name`, or "" when none is near."""
    words = sorted(known)
    close = difflib.get_close_matches(name.lower(), words, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
