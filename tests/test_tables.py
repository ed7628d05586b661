"""The tables of README and docs are what the committed results say."""

import copy
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import results, tables

TEXTS = {page.name: page.read_text(encoding="utf-8") for page in tables.PAGES}


@pytest.mark.parametrize("name", sorted(tables.TABLES))
def test_every_table_has_a_place_on_one_page(name: str) -> None:
    assert sum(text.count(f"<!-- table: {name} -->") for text in TEXTS.values()) == 1


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_pages_show_the_committed_results(page: str) -> None:
    assert tables.filled(TEXTS[page]) == TEXTS[page], f"run `python -m benchmarks.tables` and commit {page}"


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
