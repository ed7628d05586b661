"""Files of a run directory: each one appears whole or not at all, and no earlier run is ever overwritten."""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from unfooled.errors import InputError

TEMPORARY = ".part-"
JOURNAL = "journal.jsonl"
OWN = (JOURNAL, "run.json", "summary.json", "examples.parquet", "adversarials.npz", "report.html")
"""The files of a run directory; those of a resumed run may be written again."""

# json.dumps escapes what lies below U+0020 alone
_UNSHOWN = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, what was written there becomes `path`.

    The file is flushed to disk, renamed over `path` in one step, and the directory is flushed, so that a reader (or a
    crash) sees the old file or the new one, never half of one. When the block raises, nothing is left behind.
    """
    path = Path(os.path.realpath(path))  # a link's own file is replaced, not the link
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_directory(path.parent)


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content` to `path` as a whole file and return `path`."""
    with whole_file(path) as temporary:
        with open(temporary, "xb") as file:
            file.write(content)
    return path


def write_text(path: Path, content: str) -> Path:
    """Write `content` to `path` as UTF-8, a whole file, and return `path`."""
    return write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write `content` to `path` as JSON (no NaN), a whole file, and return `path`."""
    return write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """Return `content` as JSON (no NaN) that a terminal may show: what controls, reorders or is no text is escaped."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    return _UNSHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a run; raises InputError."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is no JSON.") from None
    if not isinstance(about, dict):
        raise InputError(f"{path} holds no JSON object.")
    return about


def check_free(out: Path) -> Path:
    """Return `out`; raise `InputError` when something is there already or it cannot be made.

    Meant to be called before a long run, so that it does not end without a place for its result.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise InputError(f"The output folder {out} exists already; give --out a new name, nothing is overwritten.")
    ancestor = next((p for p in out.absolute().parents if os.path.lexists(p)), Path("/"))
    if not ancestor.is_dir():
        raise InputError(f"The output folder {out} cannot be made: {ancestor} is not a folder.")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise InputError(f"The output folder {out} cannot be made: {ancestor} is not writable.")
    return out


def new_run(out: Path) -> Path:
    """Make the directory `out` (and its parents) and return it; raise `InputError` when it exists."""
    out = check_free(out)
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise InputError(f"The output folder {out} exists already; give --out a new name.") from None
    except OSError as error:
        raise InputError(f"The output folder {out} cannot be made: {error.strerror}.") from error
    flush_directory(out.parent)
    return out


def check_own(out: Path) -> Path:
    """Return `out`; raise `InputError` unless it is a run's directory: it holds a journal, and no file of others."""
    out = Path(out)
    if not (out / JOURNAL).is_file():
        raise InputError(f"{out} holds no {JOURNAL}, so there is no run to go on with.")
    others = [p.name for p in out.iterdir() if p.name not in OWN and not p.name.startswith(TEMPORARY)]
    if others:
        raise InputError(f"{out} holds a file that is not the run's, {min(others)!r}; move it away.")
    return out


def forget(out: Path, *, useless: bool = False) -> None:
    """Remove a run directory in which nothing was finished (or only what is `useless`), or leave it as it is."""
    try:
        begun = (out / JOURNAL).read_bytes().count(b"\n") > 1
    except FileNotFoundError:
        begun = False
    if (begun and not useless) or any(p.name not in (JOURNAL, "run.json") for p in out.iterdir()):
        return
    for name in (JOURNAL, "run.json"):
        (out / name).unlink(missing_ok=True)
    out.rmdir()


def default_out(settings: dict[str, Any], *, root: Path = Path("runs"), now: datetime | None = None) -> Path:
    """Return `runs/<time>-<hash of settings>`, a name that is not taken yet."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=_plain).encode()).hexdigest()[:8]
    stem = f"{now or datetime.now():%Y%m%d-%H%M%S}-{digest}"
    names = [stem] + [f"{stem}-{i}" for i in range(2, 1000)]
    return next(root / name for name in names if not os.path.lexists(root / name))


def fingerprint(*tensors: torch.Tensor) -> str:
    """Return the sha256 hex digest of the tensors' shapes, types and bytes, in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{tuple(array.shape)}{array.dtype};".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data if array.numel() else b"")
    return digest.hexdigest()


def flush_directory(folder: Path) -> None:
    """Make sure that the names of the folder's files are on disk."""
    if os.name != "posix":  # elsewhere a directory cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
