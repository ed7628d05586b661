"""The exceptions that callers may catch, the sentence that names the nearest known word, and text that may be shown.

UnfooledError
├── InputError      bad input: images, labels, names, eps, files, folders      (exit code 2)
├── AccessError     an attack asks the target for more than was granted
├── TargetError     the target's answer is not one that can be evaluated
├── StorageError    the disk takes no more                                     (exit code 1)
├── Unavailable     the target answers no more: its budget is spent, or it cannot be reached
├── Diverged        a training's loss or weights are no longer finite          (exit code 2)
└── MissingExtra    an optional package is not installed
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable

# line separators, lone surrogates, and the marks that reorder text
_HIDDEN = re.compile(r"[\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


class UnfooledError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(UnfooledError, ValueError):
    """Bad input of any kind; the message is one sentence that says what is wrong and how to mend it."""


class AccessError(UnfooledError):
    """An attack asked the oracle for more than it was granted."""


class TargetError(UnfooledError, ValueError):
    """The target's answer has a form that cannot be evaluated."""


class StorageError(UnfooledError):
    """A file of the run could not be written (disk full, quota); what was finished before is kept."""


class Unavailable(UnfooledError):
    """The target answers no more: its budget of queries is spent, or it cannot be reached; what was found is kept."""


class Diverged(UnfooledError):
    """A training's loss or one of its weights is no longer finite."""


class MissingExtra(UnfooledError, ImportError):
    """An optional package is missing; the message names the extra that brings it."""


def safe_text(text: str) -> str:
    """Return `text` on one line: control characters become spaces, invisible direction marks and surrogates go."""
    text = _HIDDEN.sub("", text)
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'a' or 'b'?" for the known words nearest to `name`, or "" when none is near."""
    words = sorted(known)
    close = difflib.get_close_matches(name.lower(), words, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
