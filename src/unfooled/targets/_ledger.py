"""The ledger: how many queries an endpoint may still be asked; what is written before a request leaves is spent."""

import json
import os
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from unfooled.core.record import flush_directory
from unfooled.errors import InputError, StorageError, Unavailable

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]


class Ledger:
    """Counts queries (rows, not requests) against a budget, in a file where one is given.

    `reserve` writes a line and waits until the disk has it; only then may the request be sent. A process that dies in
    between has spent what it reserved: the sum of all lines never falls below what was sent, whatever happens.
    `release` gives back what certainly reached nobody. The file is locked (by the system: the dead hold nothing).

    It has no `__dict__` on purpose: the doctor puts a target's Python state back, and what is spent stays spent.

    Raises:
        InputError: the file belongs to another endpoint, is damaged in its middle, or another process uses it.
        Unavailable: the budget does not allow so many more.
        StorageError: the disk takes no more; nothing was sent.
    """

    __slots__ = ("_closed", "_file", "_guard", "budget", "calls", "path", "spent")

    def __init__(self, path: "os.PathLike[str] | str | None", budget: int | None, owner: str) -> None:
        if budget is not None and budget < 1:
            raise InputError(f"budget must be at least 1 query, not {budget}.")
        self.path, self.budget = None if path is None else Path(path).expanduser(), budget
        self.spent = 0
        self.calls = {"answered": 0, "lost": 0, "released": 0}  # rows of this process by what became of them
        self._file, self._closed, self._guard = -1, False, threading.Lock()
        if self.path is None:
            return
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise InputError(f"The ledger {self.path} cannot be opened: {error.strerror}.") from None
        try:
            if fcntl is not None:
                self._lock()
            self._load(owner)
        except BaseException:
            self.close()
            raise

    @property
    def left(self) -> int | None:
        """Queries that may still be asked, None without a budget."""
        return None if self.budget is None else max(0, self.budget - self.spent)

    def reserve(self, rows: int, name: str) -> None:
        """Take `rows` from the budget for the request `name`; when this returns the disk has it."""
        with self._guard:
            if self._closed:
                raise Unavailable("The endpoint was closed; make it again.")
            if self.budget is not None and self.spent + rows > self.budget:
                raise Unavailable(
                    f"The budget of {self.budget:,} queries is spent: {self.spent:,} were sent, {rows:,} more would "
                    "exceed it; what was found before is kept."
                )
            self._write({"reserve": rows, "request": name}, sync=True)
            self.spent += rows

    def close_entry(self, rows: int, name: str, state: str) -> None:
        """Write what became of a request: 'answered', 'lost' (it may have been billed) or 'released' (it was not)."""
        with self._guard:
            self.calls[state] += rows
            if state == "released":
                self.spent -= rows
            with suppress(StorageError):  # without this line the queries count as spent, which is the safe side
                self._write({"close": name, "rows": rows, "state": state}, sync=False)

    def close(self) -> None:
        """Let the next process in; nothing more can be reserved."""
        self._closed = True
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"Another target or process uses the ledger {self.path}; let it end first, or name another file."
            ) from None

    def _load(self, owner: str) -> None:
        """Sum up what is written; cut a last line that a crash tore, before whose end nothing was sent."""
        assert self.path is not None
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        lines = data[:end].splitlines()
        for number, line in enumerate(lines, 1):
            entry = _opened(line)
            if entry is None and number == len(lines) and number > 1:
                end -= len(line) + 1  # torn by blocks that reached the disk out of order
                break
            if entry is None or (number == 1) != ("ledger" in entry):
                raise InputError(
                    f"Line {number} of the ledger {self.path} is damaged; nothing was sent. Bring back a whole copy, "
                    "or start a new ledger with what is left of the budget."
                )
            if number == 1 and entry["endpoint"] != owner:
                raise InputError(f"The ledger {self.path} belongs to another endpoint; name another file.")
            self.spent += int(entry.get("reserve", 0))
            if entry.get("state") == "released":
                self.spent -= int(entry["rows"])
        if end < len(data):
            os.ftruncate(self._file, end)
        if not end:
            self._write({"ledger": 1, "endpoint": owner}, sync=True)
            flush_directory(self.path.absolute().parent)

    def _write(self, entry: dict[str, Any], *, sync: bool) -> None:
        if self._file < 0:
            return
        body = json.dumps(entry).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(28, "No space left on device")
            if sync:
                os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, before)
            raise StorageError(
                f"The ledger {self.path} could not be written ({error.strerror}); nothing was sent: make room first."
            ) from None


def _opened(line: bytes) -> dict[str, Any] | None:
    """Return the entry of a line, None where its checksum does not fit."""
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:]):
            return None
        entry = json.loads(line[9:])
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
