"""The journal: what a run has finished, on disk chunk by chunk, so that a killed run goes on where it was.

One line per (example, attack) and one that ends the chunk, each with a CRC-32 that goes on from the line before:
what was torn off at the end is cut and done again, what changed in the middle is refused. A resumed run is the same
run once more, in which finished chunks are read instead of computed, bit for bit.
"""

import base64
import hashlib
import json
import os
import platform
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import _rows
from ..errors import InputError, StorageError
from .record import fingerprint, flush_directory
from .result import Status

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from .pool import Pool

_SYNC_SECONDS, _SYNC_CHUNKS = 2.0, 64
_FIXED = frozenset({"x", "y", "ids", "clean", "to", "label_clean", "confidence_clean"})  # the clean look makes these
_POINTS = ("best", "x_adv")


@dataclass(frozen=True)
class Entry:
    """A finished chunk: one row per example, and what the chunk added to the run's totals."""

    rows: list[dict[str, Any]]
    totals: dict[str, Any]


class Journal:
    """The journal at `path` of the run that `key` describes: made when there is none, else read and gone on with.

    It is locked (by the system, so that a dead process holds nothing), then read and compared, and only then written.
    `saved` is the seconds of work that were read instead of spent. Raises InputError when another process writes to it,
    when a line in its middle is damaged, or when it belongs to another run; StorageError when the disk takes no more.
    """

    def __init__(self, path: Path | str, key: dict[str, Any]) -> None:
        self.path, self.key = Path(path), json.loads(json.dumps(key))
        self.saved = 0.0
        self.finished = False
        self._index: dict[str, tuple[int, int]] = {}  # where a chunk's lines or a memo's line lie: start, end
        self._uses: dict[str, int] = {}
        self._state = (0, 0)  # the end of the last whole chunk, and the checksum there
        self._waiting, self._synced = 0, time.monotonic()
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise InputError(f"The journal {self.path} cannot be opened: {error.strerror}.") from error
        try:
            self._lock()
            self._load()
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> "Journal":
        """Return the journal itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Flush to disk and let the next writer in."""
        if self._file >= 0:
            try:
                self._sync()
            finally:
                self._release()

    @property
    def chunks(self) -> int:
        """How many finished chunks and memos it holds."""
        return len(self._index)

    def phase(self, name: str, *contents: object) -> str:
        """Return the prefix of the keys of one `run`: its name, which use of the name it is, and what it runs on."""
        self._uses[name] = number = self._uses.get(name, 0) + 1
        digest = hashlib.blake2b(repr(contents).encode(), digest_size=8).hexdigest()
        return f"{name}#{number}.{digest}"

    def read(self, key: str) -> Entry | None:
        """Return the chunk of this key, or None when it is still to be done."""
        if key not in self._index:
            return None
        start, end = self._index[key]
        *rows, last = (json.loads(line[9:]) for line in self._bytes(start, end).splitlines())
        return Entry(rows, last["totals"])

    def write(self, key: str, rows: Sequence[dict[str, Any]], totals: dict[str, Any]) -> None:
        """Append a finished chunk in one go."""
        self._append(key, [*rows, {"chunk": key, "rows": len(rows), "totals": totals}])

    def memo(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return the small JSON value of this key; it is computed and written when the journal has none."""
        key = f"memo {key}"
        if key in self._index:
            return json.loads(self._bytes(*self._index[key])[9:])["value"]
        value = json.loads(json.dumps(compute()))
        self._append(key, [{"memo": key, "value": value}])
        return value

    def finish(self) -> None:
        """Write that the run is over; a journal without that line is one of an unfinished run."""
        if not self.finished:
            self._append("finished", [{"finished": True}])
            self.finished = True
        self._sync()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"Another process is writing to the journal {self.path}; let it end first, or start a new run."
            ) from None

    def _release(self) -> None:
        file, self._file = self._file, -1
        os.close(file)

    def _load(self) -> None:
        """Index the whole lines, compare the header, cut what is torn."""
        size = os.fstat(self._file).st_size
        bad, first, seen = 0, None, 0
        offset = checksum = 0
        for number, line in enumerate(self._lines(), 1):
            start, offset = offset, offset + len(line)
            body, checksum = _opened(line, checksum)
            if body is None:
                bad = bad or number
                continue
            if bad:
                raise self._damaged(bad)
            if number == 1:
                self._compare(body)
                self._state = (offset, checksum)
            elif body.startswith(b'{"example"'):
                first, seen = start if first is None else first, seen + 1
            else:
                known = json.loads(body)
                if seen != known.get("rows", 0):
                    raise self._damaged(number)
                key = known.get("chunk") or known.get("memo") or "finished"
                self.finished |= "finished" in known
                self._index[key] = (start if first is None else first, offset)
                self._state, first, seen = (offset, checksum), None, 0
        if self._state[0] == 0:
            self._begin(size)
        elif self._state[0] < size:
            os.ftruncate(self._file, self._state[0])

    def _begin(self, size: int) -> None:
        """Write the header, also over one that a crash tore; refuse to touch what is no journal."""
        header = {"journal": 1, **self.key}
        line, _ = _closed(header, 0)
        if not line.startswith(self._bytes(0, size)):
            raise self._damaged(1)
        if size:
            os.ftruncate(self._file, 0)
        self._append("", [header])
        self._sync()
        flush_directory(self.path.absolute().parent)

    def _compare(self, body: bytes) -> None:
        there = json.loads(body)
        if there.pop("journal", None) != 1:
            raise self._damaged(1)
        for field in [*self.key, *there]:
            if there.get(field) != self.key.get(field):
                raise InputError(
                    f"The journal {self.path} belongs to another run: {field} differs "
                    f"({_brief(there.get(field))} there, {_brief(self.key.get(field))} here)."
                )

    def _damaged(self, number: int) -> InputError:
        return InputError(
            f"Line {number} of the journal {self.path} is damaged (its checksum does not fit); nothing was changed. "
            "Bring back a whole copy of the file, or start a new run."
        )

    def _lines(self) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            yield from file

    def _bytes(self, start: int, end: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(end - start)

    def _append(self, key: str, records: Sequence[dict[str, Any]]) -> None:
        end, checksum = self._state
        lines = []
        for record in records:
            line, checksum = _closed(record, checksum)
            lines.append(line)
        data = memoryview(b"".join(lines))
        state = (end + len(data), checksum)
        try:
            if os.fstat(self._file).st_size != end:  # an interrupt left half a chunk
                os.ftruncate(self._file, end)
            while data:
                data = data[os.write(self._file, data) :]
            self._state = state
        except BaseException as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._state[0])
            if isinstance(error, OSError):
                raise self._full(error) from error
            raise
        if key:
            self._index[key] = (end, state[0])
        self._waiting += 1
        if self._waiting >= _SYNC_CHUNKS or time.monotonic() - self._synced > _SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        if self._waiting:
            try:
                os.fsync(self._file)
            except OSError as error:
                raise self._full(error) from error
        self._waiting, self._synced = 0, time.monotonic()

    def _full(self, error: OSError) -> StorageError:
        return StorageError(
            f"The journal {self.path} could not be written ({error.strerror}); what was finished is kept in it: "
            "make room and resume the run."
        )


def run_key(
    *,
    target: Any,
    x: Any,
    y: Tensor,
    threat: Any,
    attacks: Sequence[Any],
    width: int,
    seed: int,
    goal: Any = None,
    access: Any = None,
    queries: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return what a journal's header holds: everything that decides the bits of a run's result."""
    from .. import __version__

    device = target.device
    words = hashlib.sha256(repr(x).encode()).hexdigest()
    to = getattr(goal, "to", None)
    return {
        "target": target.fingerprint(),
        "data": fingerprint(x, y) if isinstance(x, Tensor) else f"{words}{fingerprint(y)}",
        "threat": repr(threat),
        "eps": repr(getattr(threat, "eps", None)),
        "bounds": list(target.bounds),
        "attacks": [repr(attack) for attack in attacks],
        "goal": f"{type(goal).__name__}({to.tolist() if isinstance(to, Tensor) else to!r})" if goal else "Untargeted()",
        "access": str(getattr(access, "name", access)).lower(),
        "queries": queries,
        "seed": seed,
        "width": width,
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "unfooled": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        **more,
    }


def pack(pool: "Pool", index: np.ndarray, attack: str) -> list[dict[str, Any]]:
    """Return what the pool knows about the examples `index` [m], one record each, to be written as JSON."""
    columns: dict[str, list[Any]] = {"attack": [attack] * len(index)}
    for field in fields(pool):
        value = getattr(pool, field.name)
        if field.name in _FIXED or value is None:
            continue
        if field.name in _POINTS:
            other = pool.x if field.name == "best" else pool.best
            columns[field.name] = _points(value, other, index)
        elif isinstance(value, Tensor) and value.dim() > 1:
            columns[field.name] = [_text(row) for row in _rows.take(value, index).cpu()]
        else:
            columns[field.name] = _rows.take(value, index).tolist()
    return [
        {"example": int(i), **{name: column[at] for name, column in columns.items() if column[at] is not _SAME}}
        for at, i in enumerate(index)
    ]


def unpack(pool: "Pool", rows: Sequence[dict[str, Any]]) -> None:
    """Put the records of `pack` back into the pool."""
    index = np.array([row["example"] for row in rows], dtype=np.int64)
    for field in fields(pool):
        value = getattr(pool, field.name)
        if field.name in _FIXED or value is None or not len(index):
            continue
        column = [row.get(field.name, _SAME) for row in rows]
        if field.name in _POINTS:
            other = pool.x if field.name == "best" else pool.best
            stored = np.array([v is not _SAME for v in column])
            _rows.assign(value, index[~stored], _rows.take(other, index[~stored]))
            for i, text in zip(index[stored], [v for v in column if v is not _SAME], strict=True):
                value[int(i)] = _array(text, value[int(i)]) if isinstance(value, Tensor) else text
        elif isinstance(value, Tensor) and value.dim() > 1:
            for i, text in zip(index, column, strict=True):
                value[int(i)] = _array(text, value[int(i)])
        elif isinstance(value, Tensor):
            value[torch.from_numpy(index)] = torch.tensor(column, dtype=value.dtype)
        else:
            _rows.assign(value, index, [Status(v) for v in column] if field.name == "status" else column)


def pack_rows(values: Tensor) -> list[str]:
    """Return the rows of a tensor [m, ...] as texts that hold every bit."""
    return [_text(row) for row in values.cpu()]


def unpack_rows(texts: Sequence[str], shape: Sequence[int], dtype: str) -> Tensor:
    """Return the rows of `pack_rows` as one tensor [m, *shape]."""
    like = torch.empty(tuple(shape), dtype=getattr(torch, dtype))
    return torch.stack([_array(text, like) for text in texts]) if texts else like.new_empty(0, *shape)


_SAME = object()  # the point is where the pool's other point is (the original, the best so far): not written


def _points(value: Any, other: Any, index: np.ndarray) -> list[Any]:
    if not isinstance(value, Tensor):
        return [_SAME if value[i] == other[i] else value[i] for i in index]
    rows, others = _rows.take(value, index).cpu(), _rows.take(other, index).cpu()
    same = (_raw(rows) == _raw(others)).reshape(len(rows), -1).all(1).tolist() if rows.numel() else [True] * len(rows)
    return [_SAME if s else _text(row) for s, row in zip(same, rows, strict=True)]


def _raw(t: Tensor) -> Tensor:
    return t.contiguous().reshape(-1).view(torch.uint8).reshape(len(t), -1)


def _text(row: Tensor) -> str:
    raw = row.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return base64.b64encode(raw).decode("ascii")


def _array(text: str, like: Tensor) -> Tensor:
    raw = bytearray(base64.b64decode(text))
    flat = torch.frombuffer(raw, dtype=like.dtype) if raw else like.new_empty(0)
    return flat.reshape(like.shape).to(like.device)


def _closed(record: dict[str, Any], before: int) -> tuple[bytes, int]:
    """Return a record as a line, and its checksum, which goes on from the one before."""
    body = json.dumps(record, separators=(",", ":")).encode("ascii")
    checksum = zlib.crc32(body, before)
    return b"%08x %s\n" % (checksum, body), checksum


def _opened(line: bytes, before: int) -> tuple[bytes | None, int]:
    """Return a line's body, None when it is not whole, and the checksum that the line claims to have."""
    try:
        claimed = int(line[:8].decode("ascii"), 16)
    except ValueError:
        return None, 0
    body = line[9:-1]
    whole = line[:9] == b"%08x " % claimed and line.endswith(b"\n") and zlib.crc32(body, before) == claimed
    return (body if whole else None), claimed


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:24]}..."
