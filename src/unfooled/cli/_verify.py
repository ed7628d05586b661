"""`unfooled verify`: ask the target again for every stored adversarial example of a run."""

import sys
from pathlib import Path

from unfooled.cli import _words


def verify(directory: Path, target: str | None = None, /, *, device: str = "auto") -> int:
    """Ask the target again for every stored adversarial example: does it still fool it, inside ball and box?

    Exit code 0: all verdicts stand; 1: one changed; 2: the target is another one, or there is nothing to verify.

    Parameters
    ----------
    directory
        The run directory that `unfooled evaluate` wrote.
    target
        The target, as for `unfooled evaluate` [default: what the run's record names].
    device
        cpu, cuda, cuda:1, mps, or auto.
    """
    _words.load_torch()
    from unfooled.errors import safe_text
    from unfooled.evaluate.verify import verify as rescore

    found = rescore(directory, target, device=device)
    sys.stdout.write(safe_text(str(found)) + "\n")
    return 0 if found.same else 1
