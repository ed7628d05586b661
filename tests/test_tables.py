"""README's tables are what the committed results say."""

import copy
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import results, tables

README = tables.README.read_text(encoding="utf-8")
MARKED = [name for name in tables.TABLES if f"<!-- table: {name} -->" in README]


def test_readme_marks_a_place_for_every_table() -> None:
    assert sorted(tables.TABLES) == sorted(MARKED)


def test_readme_shows_the_committed_results() -> None:
    assert tables.filled(README) == README, "run `python -m benchmarks.tables` and commit README.md"


def _numbers(value: object) -> object:
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return value + 1 if isinstance(value, int | float) and not isinstance(value, bool) else value


@pytest.mark.parametrize("name", sorted(tables.TABLES))
def test_other_results_make_another_table(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = results.read(name)
    before = tables.TABLES[name]()
    changed = {case: _numbers(copy.deepcopy(entry)) for case, entry in entries.items()}
    (tmp_path / f"{name}.json").write_text(json.dumps(changed))
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert tables.TABLES[name]() != before


def test_measurements_of_record_are_paired_and_say_where_they_were_made() -> None:
    for entry in results.read("standard").values():
        assert entry["paired"], "a cached baseline is for tuning only"
        assert entry["unfooled"]["ledger"] == [entry["unfooled"]["forward"], entry["unfooled"]["backward"]]
    for name in tables.TABLES:
        for entry in results.read(name).values():
            assert {"date", "cpu", "threads", "versions"} <= entry["where"].keys()


def test_one_sided_lists_agree_with_the_counts() -> None:
    for entry in results.read("standard").values():
        more = entry["unfooled"]["robust"] - entry["autoattack"]["robust"]
        assert len(entry["only_autoattack"]) - len(entry["only_unfooled"]) == more
