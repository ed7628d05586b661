"""The app and its exit codes.

0 done (`evaluate`: the number is trusted), 1 nothing found, 2 bad input (one sentence, no traceback), 3 suspect,
4 withheld, 5 the bar of `--fail-under` is not met, 130 interrupted.
"""

import io
import os
import signal
import sys
from collections.abc import Sequence

import cyclopts

from unfooled import __version__
from unfooled.cli._attack import attack
from unfooled.cli._certify import certify
from unfooled.cli._doctor import doctor
from unfooled.cli._eps import eps
from unfooled.cli._evaluate import evaluate
from unfooled.cli._explain import explain
from unfooled.cli._fool import fool
from unfooled.cli._harden import harden
from unfooled.cli._list import list_
from unfooled.cli._train import train
from unfooled.cli._verify import verify
from unfooled.errors import StorageError, UnfooledError, safe_text

app = cyclopts.App(
    name="unfooled",
    help="Measure how easily a trained classifier is fooled, and show what fooled it.\n\n"
    "Start with `unfooled evaluate`: it needs no arguments, downloads nothing and takes seconds.",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    default_parameter=cyclopts.Parameter(negative=""),
)
app.command(evaluate)
app.command(doctor)
app.command(attack)
app.command(explain)
app.command(harden)
app.command(certify)
app.command(fool)
app.command(eps)
app.command(list_, name="list")
app.command(train)
app.command(verify)


def call(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (sys.argv by default) and return its exit code."""
    try:
        code = app(arguments, print_error=False, exit_on_error=False)
        sys.stdout.flush()
    except StorageError as error:
        return _complain(str(error), 1)
    except (cyclopts.CycloptsError, UnfooledError) as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("Interrupted.", 130)
    except BrokenPipeError:
        # whoever read the output has had enough; keep the interpreter from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.strerror is None:
            raise
        return _complain(f"{error.strerror}{f': {error.filename}' if error.filename else ''}.", 1)
    return code if isinstance(code, int) else 0


def main() -> None:
    """Be the console script."""
    # OpenMP's idle threads spin by default: on a busy machine that made a small target ten times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a letter is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    terminated_is_interrupted()
    sys.exit(call())


def terminated_is_interrupted() -> None:
    """Let SIGTERM do what Ctrl-C does: what was found is written, and the exit code is 130."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _complain(sentence: str, code: int) -> int:
    sys.stderr.write(f"unfooled: {' '.join(safe_text(' '.join(sentence.split())).split())}\n")
    return code
