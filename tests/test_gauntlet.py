"""The gauntlet: on broken targets the number is honest, or declined where it may be, and never trusted when wrong."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import unfooled as uf
from benchmarks import gauntlet
from benchmarks.alarms import findings_of
from tests.gauntlet import broken
from tests.gauntlet.broken import CASES, Answers, Case

FAST = (
    "softmax-sharp",
    "one-logit-column",
    "five-classes-sharp-softmax",
    "logits-x1e5",
    "fixed-batch-of-8",
    "detach",
    "reversed-gradient",
    "plateau",
    "knows-its-ball",
    "class-order-shifted",
)
SHORT = {"numpy-network-saturated": "only its class can guide: two images more than is honest, and said to be suspect"}
KEEPS = [c.name for c in CASES.values() if c.change is None and c.honest(Answers()) == broken.same(c.data)(Answers())]


def _inputs(case: Case, n: int, request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    folder = str(request.getfixturevalue("outside_data")) if case.data == "mnist" else None
    return case.inputs(n, folder)


def _check(name: str, n: int, request: pytest.FixtureRequest, seconds: float) -> None:
    case = CASES[name]
    folder = str(request.getfixturevalue("outside_data")) if case.data == "mnist" else None
    row = gauntlet.run(case, n=n, folder=folder, limit=seconds)
    assert not row.lie, f"trusted outside the honest interval: {row.line} {row.reasons}"
    assert row.number, f"{row.line} {row.reasons}"
    assert row.ids, f"{row.line} expected {row.expects}"


@pytest.mark.parametrize("name", FAST)
def test_a_fast_part_of_the_gauntlet(name: str, request: pytest.FixtureRequest) -> None:
    _check(name, 30, request, 120)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_gauntlet(name: str, request: pytest.FixtureRequest) -> None:
    if name in SHORT:
        request.applymarker(pytest.mark.xfail(reason=SHORT[name], strict=False))
    _check(name, broken.N, request, 120)


def test_the_families_are_all_there() -> None:
    assert {c.family[0] for c in CASES.values()} >= set("ABCDEF")
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", KEEPS)
def test_wrappers_with_the_networks_answer_never_change_the_winner(name: str, request: pytest.FixtureRequest) -> None:
    """On images, on corners of the ball and inside it, a fresh target says what the network says."""
    case = CASES[name]
    x, _ = _inputs(case, 8, request)
    eps, network = broken.EPS[case.data], broken.net(case.data)
    target = uf.Target(case.make()) if not isinstance(case.make(), uf.Target) else case.make()
    module = target.module.eval() if isinstance(target.module, nn.Module) else target.module
    memory = case.family == "B6"  # its answer to what it has seen is another matter: far points only
    points = [x] if memory else [x, *((x + eps * s * (2 * torch.rand_like(x) - 1)).clamp(0, 1) for s in (0.3, 1, 1))]
    points += [] if memory else [(x + eps * 0.999 * torch.randn_like(x).sign()).clamp(0, 1)]
    for v in points:
        with torch.enable_grad():
            out = module(v.clone().to(target.dtype))
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)
        if not isinstance(out, torch.Tensor):
            values = vars(out).values() if hasattr(out, "__dict__") else out.values() if isinstance(out, dict) else out
            out = next(t for t in values if isinstance(t, torch.Tensor) and t.dim() == 2)
        label = out.argmax(1) - (out.shape[1] - 10)  # a background class comes first
        assert torch.equal(label, network(v).argmax(1))


@pytest.mark.parametrize("classes, shape, seed", [(2, (1, 8, 8), 0), (3, (1, 8, 8), 3), (4, (1, 3, 5), 9)])
def test_the_steps_behind_the_answers_agree_with_exact_distances(classes: int, shape: tuple, seed: int) -> None:
    case = broken.flat(classes, shape, seed)
    margin, _, _ = gauntlet.worst(case.target, case.target, case.x, case.y, case.eps, restarts=1, steps=20)
    assert torch.equal(margin > 0, torch.from_numpy(case.distance > case.eps))


def test_the_stored_answers_are_those_of_the_shipped_network() -> None:
    """A short suite breaks nothing that is stored as robust, and nearly all that is stored as broken."""
    x, y = broken.images("digits")
    found = uf.evaluate(broken.net(), x, y, "linf(0.1)", suite="quick")
    stored = torch.tensor(Answers().stored["networks"]["digits"]["0.1"]["margin"]) > 0
    assert not bool((stored & ~found.robust).any())
    assert int((found.robust & ~stored).sum()) <= 2


@pytest.mark.parametrize("name", ["softmax-sharp", "zero-backward", "reversed-gradient", "logits-x1e5"])
def test_wrapping_renaming_and_nesting_do_not_change_the_findings(name: str) -> None:
    case = CASES[name]
    x, y = case.inputs(30)
    plain = case.make()
    renamed = type("AbsolutelyFineNet", (broken.Hidden,), {})(plain)
    targets = {
        "plain": plain,
        "renamed": uf.Target(renamed, name="fine", classes=[f"c{i}" for i in range(10)]),
        "nested": broken.nested(broken.nested(plain)),
        "closure": lambda batch: plain(batch),
    }
    found = {
        k: sorted((f.id, f.consequence) for f in findings_of(uf.doctor(t, x, y, case.ball))) for k, t in targets.items()
    }
    assert all(f == found["plain"] for f in found.values()), found
    assert {i for i, _ in found["plain"]} & set("|".join(case.expects).split("|"))
