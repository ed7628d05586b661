"""docs/claims.md and docs/why.md: every claim once, every named test there, every number that of the results."""

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_claims", ROOT / "docs" / "make_claims.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


claims = load()
ROWS = list(claims.rows())
KEYS = sorted({key for row in ROWS for part in row.parts for key in part.keys})
PROOFS = sorted({proof for row in ROWS for part in row.parts for proof in part.proofs})
ABSENT = claims.awaited()
WHY = claims.WHY.read_text(encoding="utf-8")


def test_every_claim_stands_there_exactly_once() -> None:
    names = [row.name for row in ROWS]
    assert sorted(names) == sorted([f"A{i:03}" for i in range(1, 134)] + [f"X{i}" for i in range(1, 10)])
    assert len({row.claim for row in ROWS}) == len(ROWS)
    assert all(row.parts and row.claim for row in ROWS)


def test_the_page_is_what_tests_and_results_say() -> None:
    """Where this fails: `python docs/make_claims.py` writes the page."""
    page = claims.page()
    assert claims.PAGE.read_text(encoding="utf-8") == page
    for row in ROWS:
        assert len(re.findall(rf"^\| {row.name} \|", page, re.MULTILINE)) == 1


@pytest.mark.parametrize("proof", PROOFS)
def test_what_is_named_is_there(proof: str) -> None:
    file, _, name = proof.partition("::")
    assert (ROOT / file).is_file()
    if name:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        assert name.startswith("test_") and len(found) == 1
        asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        assert asserts, "a file whose tests assert nothing decides nothing"


def test_results_that_are_named_exist_or_are_listed_as_awaited() -> None:
    """A row that waits for an entry which exists by now makes another page: see the test of the page."""
    absent = [key for key in KEYS if claims.entry(key) is None]
    listed = re.search(r"^Measurements that rows wait for: (.*)\.$", claims.page(), re.MULTILINE)
    assert (re.findall(r"`([^`]+)`", listed[1]) if listed else []) == absent == claims.awaited()
    known = {file.stem for file in claims.results.FOLDER.glob("*.json")} | set(claims.tables.BESIDE)
    assert {key.partition("/")[0] for key in KEYS} <= known


def test_a_row_without_evidence_is_open_and_one_with_it_says_what_was_found() -> None:
    for row in ROWS:
        result, words = row.decide()
        assert result in claims.RESULTS
        keys = [key for part in row.parts for key in part.keys]
        assert keys == [] or words
        if result in (claims.REPRODUCED, claims.CONTRADICTED, claims.MIXED):
            assert keys or any(part.proofs for part in row.parts), f"{row.name} rests on nothing"


RESULTS = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in claims.results.FOLDER.glob("*.json")}


def with_entry(monkeypatch: pytest.MonkeyPatch, key: str, change: Any) -> None:
    """Let the results hold what `change` makes of one entry; None takes it away."""
    table, case = key.split("/", 1)
    entries = dict(RESULTS[table])
    made = change(entries.pop(case))
    changed = RESULTS | {table: entries | ({} if made is None else {case: made})}
    monkeypatch.setattr(claims.results, "read", lambda name: changed.get(name, {}))


def other_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: other_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [other_numbers(inner) for inner in value]
    return value * value * 0.7 + 0.1 if isinstance(value, int | float) and not isinstance(value, bool) else value


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ABSENT])
def test_other_results_make_another_page(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row with a part that is complete prints some number of the entry, or of what follows from it."""
    awaited = set(ABSENT)
    users = [row for row in ROWS if any(key in part.keys and not set(part.keys) & awaited for part in row.parts)]
    before = [row.decide() for row in users]
    with_entry(monkeypatch, key, lambda found: {k: other_numbers(v) for k, v in found.items()})
    assert all(row.decide() != then for row, then in zip(users, before, strict=True))


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ABSENT])
def test_without_the_result_the_row_is_open(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    users = [row for row in ROWS if any(key in part.keys for part in row.parts)]
    with_entry(monkeypatch, key, lambda found: None)
    for row in users:
        result, words = row.decide()
        assert result == claims.OPEN and "not measured yet: " in words and f"`{key}`" in words


def test_a_changed_file_makes_another_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for table, entries in RESULTS.items():
        (tmp_path / f"{table}.json").write_text(json.dumps(entries), encoding="utf-8")
    monkeypatch.setattr(claims.results, "FOLDER", tmp_path)
    before = claims.page()
    changed = json.loads(json.dumps(RESULTS["standard"]))
    changed["cifar_resnet20"]["unfooled"]["robust"] += 1
    (tmp_path / "standard.json").write_text(json.dumps(changed), encoding="utf-8")
    assert claims.page() != before


FLIPS = [
    ("A001", "standard/cifar_resnet20", lambda e: e | {"unfooled": e["unfooled"] | {"robust": e["clean"]}}),
    ("A004", "claims/step cifar_resnet20 1/255", lambda e: e | {"confidence_on_errors": 0.4}),
    ("A006", "claims/pixels digits-cnn", lambda e: e | {"alone_interval": [0.4, 0.6]}),
    ("A074", "queries/mnist-cnn/ray/linf/unfooled", lambda e: e | {"success": [0] * 6}),
    ("A083", "transfer/ensemble mi_fgsm mnist_256x2", lambda e: e | {"hits": 290, "interval": [0.93, 0.99]}),
    ("A119", "claims/step mnist-cnn 0.25", lambda e: e | {"noise": 0.999}),
    ("A118", "claims/panda step", lambda e: e | {"ours": 1.0}),
]


@pytest.mark.parametrize(("name", "key", "change"), FLIPS, ids=[name for name, _, _ in FLIPS])
def test_a_rule_decides_otherwise_when_the_numbers_do(
    name: str, key: str, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = [row for row in ROWS if row.name == name]
    before = row.decide()[0]
    with_entry(monkeypatch, key, change)
    assert row.decide()[0] != before


def test_parts_that_differ_make_it_mixed_and_what_is_missing_leaves_it_open() -> None:
    yes, no = claims.tested("a::b"), claims.refuted("a::c", says="")
    for parts, result in (
        ((yes, yes), claims.REPRODUCED),
        ((no,), claims.CONTRADICTED),
        ((yes, no), claims.MIXED),
        ((yes, claims.missing("much")), claims.OPEN),
        ((claims.undecidable("why"), yes), claims.UNDECIDABLE),
        ((claims.measured("no/such", by=lambda found: (claims.REPRODUCED, "")), yes), claims.OPEN),
    ):
        assert claims.Row("A000", "words", parts).decide()[0] == result


def test_the_summary_counts_the_rows() -> None:
    page = claims.page()
    told = {name: int(re.search(rf"^\| {name} \| (\d+) \|", page, re.MULTILINE)[1]) for name in claims.RESULTS}
    assert sum(told.values()) == len(ROWS)
    for name, count in told.items():
        assert count == len(re.findall(rf"\| \*\*{name}\*\* \|", page))
    contradicted = [row for row in ROWS if row.decide()[0] == claims.CONTRADICTED]
    assert contradicted and all(f"- {row.name}: {row.claim}. Found: " in page for row in contradicted)


# ---- the plain answer


def test_the_numbers_of_the_plain_answer_are_those_of_the_results() -> None:
    """Where this fails: `python docs/make_claims.py` fills them in."""
    assert claims.filled(WHY) == WHY
    assert len(re.findall(r"<!-- value: ", WHY)) >= 8


def test_a_stale_number_would_be_seen() -> None:
    marker = re.search(r"<!-- value: [^>]+ -->([^<]+)<!-- end -->", WHY)
    assert marker is not None
    stale = WHY.replace(marker[0], marker[0].replace(marker[1], "0.000%"))
    assert stale != WHY and claims.filled(stale) == WHY


def test_every_picture_and_link_of_both_pages_is_there() -> None:
    for page in (claims.PAGE, claims.WHY):
        for to in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert to.startswith("http") or (page.parent / to).is_file(), f"{page.name} points to {to}"
