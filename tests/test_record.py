"""Files of a run: whole or not at all, and never over an earlier one."""

import json
import os
from datetime import datetime
from pathlib import Path

import pytest
import torch

from unfooled.core import record
from unfooled.errors import InputError


def test_a_whole_file_replaces_the_old_one_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    record.write_text(path, "old")
    record.write_text(path, "new — ü")
    assert path.read_text(encoding="utf-8") == "new — ü"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failing_write_keeps_the_old_file_and_no_part_of_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = record.write_text(tmp_path / "a.txt", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, where, full)
    with pytest.raises(OSError, match="No space"):
        record.write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_interrupt_inside_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), record.whole_file(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_link_is_followed_not_replaced(tmp_path: Path) -> None:
    real = record.write_text(tmp_path / "real.txt", "old")
    link = tmp_path / "link.txt"
    link.symlink_to(real)
    record.write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_json_refuses_nan_and_reads_back(tmp_path: Path) -> None:
    path = record.write_json(tmp_path / "a.json", {"name": "zwölf", "path": Path("x"), "ids": torch.tensor([1, 2])})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "zwölf", "path": "x", "ids": [1, 2]}
    with pytest.raises(ValueError, match="JSON"):
        record.write_json(tmp_path / "b.json", {"x": float("nan")})
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_run_directory_is_new_or_refused(tmp_path: Path) -> None:
    out = record.new_run(tmp_path / "deep" / "run")
    assert out.is_dir()
    for make in (record.new_run, record.check_free):
        with pytest.raises(InputError, match="exists already"):
            make(out)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="exists already"):
        record.check_free(dangling)
    file = record.write_text(tmp_path / "file", "")
    with pytest.raises(InputError, match="is not a folder"):
        record.check_free(file / "run")


def test_the_default_name_tells_time_and_settings_and_is_never_taken(tmp_path: Path) -> None:
    now = datetime(2026, 11, 21, 9, 5, 7)
    first = record.default_out({"seed": 0}, root=tmp_path, now=now)
    assert first.name.startswith("20261121-090507-")
    assert record.default_out({"seed": 1}, root=tmp_path, now=now) != first
    record.new_run(first)
    second = record.default_out({"seed": 0}, root=tmp_path, now=now)
    assert second != first
    assert not second.exists()


def test_fingerprints_see_values_shape_and_type() -> None:
    x = torch.arange(6, dtype=torch.float32)
    others = [x.view(2, 3), x.double(), x + 1e-6, x[:0], torch.cat([x[:3], x[:3]])]
    prints = {record.fingerprint(t) for t in [x, *others]}
    assert len(prints) == 6
    assert record.fingerprint(x.view(2, 3).T) == record.fingerprint(x.view(2, 3).T.contiguous())
    assert record.fingerprint(x, x) != record.fingerprint(x)
