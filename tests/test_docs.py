"""The pages of docs/: their code runs, and an attack written as they say passes what the shipped ones pass."""

import inspect
import itertools
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import unfooled as uf
from tests import test_contract as contract
from tests.nets import RowNet
from unfooled import attacks
from unfooled.core.attack import RECIPES, Recipe

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


# ---- adding an attack


@pytest.fixture(scope="module")
def written() -> Iterator[Recipe]:
    """The recipe that the page's block registers, taken off the shelf again."""
    (source,) = blocks("adding-an-attack.md")
    module = ModuleType("a_new_attack")
    before = set(RECIPES)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(source, "adding-an-attack.md", "exec"), module.__dict__)
    (name,) = set(RECIPES) - before
    yield RECIPES.pop(name)
    del sys.modules[module.__name__]


@pytest.fixture
def added(written: Recipe, monkeypatch: pytest.MonkeyPatch) -> contract.Case:
    """The page's attack on the shelf, for one test."""
    monkeypatch.setitem(RECIPES, written.name, written)
    assert written.norms == ("linf",) and written.smallest
    return contract.Case(written.name, "linf", written.make, written.factor, written.smallest)


def laws() -> Iterator[Any]:
    """Every contract test of one recipe, with all values of its other parameters."""
    for name, test in vars(contract).items():
        if not name.startswith("test_") or "case" not in inspect.signature(test).parameters:
            continue
        marks = [m for m in getattr(test, "pytestmark", []) if m.name == "parametrize" and m.args[0] != "case"]
        for values in itertools.product(*(m.args[1] for m in marks)):
            given = dict(zip((m.args[0] for m in marks), values, strict=True))
            yield pytest.param(test, given, id="-".join([name.removeprefix("test_"), *map(str, values)]))


@pytest.mark.parametrize("law, given", list(laws()))
def test_the_added_attack_keeps_the_contract(
    added: contract.Case, law: Callable[..., None], given: dict[str, Any]
) -> None:
    law(added, **given)


def test_the_contract_is_all_there() -> None:
    names = {param.values[0].__name__ for param in laws()}
    assert len(names) >= 15 and "test_the_smallest_change" in names and "test_alone_as_in_any_batch_and_order" in names


# ---- the table of attacks


def test_the_page_of_attacks_is_the_recipe_table() -> None:
    """Where this fails: `python docs/make_attacks.py` writes the page."""
    made = runpy.run_path(str(DOCS / "make_attacks.py"))["page"]()
    assert (DOCS / "attacks.md").read_text(encoding="utf-8") == made
    assert all(f"| `{name}` |" in made for name in RECIPES)


# ---- the shelf's lines in README


def test_the_lines_on_the_shelf_in_readme_run() -> None:
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    (source,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "uf.attacks.ddn" in b]
    module = RowNet(48)
    x = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    first, second = source.strip().splitlines()
    known = {"uf": uf, "module": module, "x": x, "y": module(x).argmax(1)}
    exec(first, known)
    distance, left = eval(second.split("#")[0].strip(), known)
    assert distance.isfinite().all()
    assert left.tolist() == [float((distance > eps).double().mean()) for eps in (0.25, 0.5, 1.0)]


# ---- hardening


def test_the_lines_on_hardening_from_python_run(capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = [b for b in blocks("harden.md") if "harden.fit(" in b]
    known: dict[str, Any] = {}
    exec(source, known)
    said = capsys.readouterr().out.splitlines()
    starts = (
        "Epoch ",
        "robust accuracy at most",
        "The smoothed classifier",
        "Robust accuracy within",
        "Sequential answers",
    )
    assert len(said) == len(starts) and all(line.startswith(start) for line, start in zip(said, starts, strict=True))
    (judged,) = re.findall(r"([\d.]+)% right and accepted.* noise: ([\d.]+)% answered", said[-1])
    assert float(judged[0]) > 70 and float(judged[1]) < 20


@pytest.mark.slow
def test_the_lines_on_detectors_run(capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = [b for b in blocks("harden.md") if "detect.detector(" in b]
    train, test = uf.load_data("digits", split="train"), uf.load_data("digits", limit=8)
    known: dict[str, Any] = {
        "module": uf.targets.resolve("digits-cnn").module, "x_train": train.x[:150], "y_train": train.y[:150],
        "x_held_out": train.x[150:300], "x": test.x, "y": test.y,
    }  # fmt: skip
    exec(source, known)
    assert "the target without a detector keeps" in capsys.readouterr().out


# ---- choosing an attack


LINES = blocks("choosing-an-attack.md")
RESULTS = ("run", "distance", "result", "accuracy", "matrix", "findings")


@pytest.fixture(scope="module")
def chosen() -> dict[str, Any]:
    """What the page's lines speak of: three models, inputs and labels."""
    target, similar, other = (RowNet(48, seed=seed).eval() for seed in range(3))
    x = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = target(x).argmax(1)
    return {"uf": uf, "torch": torch, "target": target, "similar": similar, "other": other, "x": x, "y": y}


@pytest.mark.parametrize("line", LINES, ids=[f"{i}" for i in range(len(LINES))])
def test_each_decision_ends_in_a_line_that_runs(chosen: dict[str, Any], line: str) -> None:
    assert line.count("\n") == 1, "one line"
    known = dict(chosen)
    for other in LINES:  # what an earlier line made is there
        if (made := other.partition(" =")[0]) not in RESULTS and f"{made}." in line and other != line:
            exec(other, known)
    before = set(known)
    exec(line, known)
    (name,) = set(known) - before - {"__builtins__"}
    made = known[name]
    match name:
        case "run":
            assert isinstance(made, uf.Run) and not any(row.skipped for row in made.attacks)
            assert sum(row.attempted for row in made.attacks) >= 1
        case "distance":
            found = made.isfinite()
            assert found.float().mean() > 0.8 and bool((made[found] > 0).all()), "nearly every example has one"
        case "result":
            assert isinstance(made, uf.Evaluation) and made.n == len(chosen["y"])
        case "accuracy":
            assert made[0] >= made[-1] and bool(((made >= 0) & (made <= 1)).all())
        case "matrix":
            assert "a" in str(made) and "b" in str(made)
        case "findings":
            assert isinstance(made, list)
        case _:
            assert any(f"{name}." in other for other in LINES), f"nothing uses {name}"


def test_every_decision_has_its_line() -> None:
    text = (DOCS / "choosing-an-attack.md").read_text(encoding="utf-8")
    paragraphs = re.findall(r"^\*\*.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    assert len(paragraphs) == len(LINES) + 1, "all but `Read on`"
    for name in re.findall(r"uf\.attacks\.(\w+)", text):
        assert hasattr(attacks, name)
