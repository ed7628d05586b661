"""Metamorphic relations: changes of a target or its data that cannot change how robust it is.

No right answer is needed: the same question asked in another way must get the same answer, row by row. `ids` fix each
example's luck, so that what is left is rounding; one row in thirty may fall on the other side by it.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled.attacks import SUITES
from unfooled.targets.zoo import ZOO

from . import milp

N, EPS = 30, 0.1
Change = Callable[[Tensor], Tensor]


class Around(nn.Module):
    """A module with something done to its input and to its scores."""

    def __init__(self, module: nn.Module, before: Change = lambda v: v, after: Change = lambda s: s) -> None:
        super().__init__()
        self.module, self.before, self.after = module, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.module(self.before(x)))


@functools.cache
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    data = uf.load_data("digits")
    assert isinstance(data.x, Tensor)
    return ZOO["digits-cnn"].build(), data.x[:N], data.y[:N]


@functools.cache
def small() -> tuple[nn.Module, Tensor, Tensor]:
    """A 16-16-12-3 network with points whose exact radii lie between 0.02 and 0.2."""
    case = milp.solved()["made-up 16-16-12-3"]
    rows = np.flatnonzero(case.radii > 0.02)[:N]
    return case.module(), torch.from_numpy(case.x[rows]).float(), torch.from_numpy(case.y[rows])


SUBJECTS = {"digits-cnn": (digits, EPS), "small net": (small, 0.06)}
each = pytest.mark.parametrize("subject", SUBJECTS)


def robust(target: Any, x: Tensor, y: Tensor, eps: float, suite: str = "quick", **kwargs: Any) -> np.ndarray:
    """Which of the examples stay right, bool [n]."""
    settings = {"ids": range(len(x)), **kwargs}
    out = uf.run(SUITES[suite].attacks, target, x, y, uf.linf(eps), **settings)
    return np.array([s == "survived" for s in out.status])


@functools.cache
def before(subject: str) -> np.ndarray:
    make, eps = SUBJECTS[subject]
    net, x, y = make()
    found = robust(net, x, y, eps)
    assert 5 <= found.sum() <= N - 5, "nearly all or nearly none are robust: this shows nothing"
    return found


def assert_same(found: np.ndarray, subject: str, order: Any = slice(None), spare: int = 1) -> None:
    differ = int((found != before(subject)[order]).sum())
    assert differ <= spare, f"{differ} of {len(found)} rows changed sides"


# ---- the examples


@each
def test_samples_in_another_order(subject: str) -> None:
    make, eps = SUBJECTS[subject]
    net, x, y = make()
    order = np.random.default_rng(0).permutation(N)
    assert_same(robust(net, x[order], y[order], eps, ids=order), subject, order)


@each
@pytest.mark.parametrize("batch_size", [7, N])
def test_another_batch_size(subject: str, batch_size: int) -> None:
    make, eps = SUBJECTS[subject]
    assert_same(robust(*make(), eps, batch_size=batch_size), subject)


@each
def test_every_sample_twice(subject: str) -> None:
    make, eps = SUBJECTS[subject]
    net, x, y = make()
    twice = np.arange(2 * N) // 2
    found = robust(net, x[twice], y[twice], eps, ids=twice)
    assert_same(found[::2], subject)
    assert_same(found[1::2], subject)


@each
def test_no_eps_gives_clean_accuracy(subject: str) -> None:
    net, x, y = SUBJECTS[subject][0]()
    y = y.clone()
    y[::5] = (y[::5] + 1) % 3
    right = (net(x).argmax(1) == y).numpy()
    assert (robust(net, x, y, 0.0) == right).all()
    assert 0 < right.sum() < N


@each
def test_the_whole_range_as_eps_leaves_nothing(subject: str) -> None:
    assert not robust(*SUBJECTS[subject][0](), 1.0).any()


@each
def test_fewer_survive_a_larger_eps(subject: str) -> None:
    make, eps = SUBJECTS[subject]
    found = [robust(*make(), f * eps) for f in (0.25, 0.5, 1.0, 1.5, 2.5)]
    counts = [int(f.sum()) for f in found]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[2] > counts[4]
    for a, b in itertools.pairwise(found):
        assert (b & ~a).sum() <= 1, "robust at the larger eps and not at the smaller"


@each
def test_a_ball_inside_another_breaks_no_more(subject: str) -> None:
    """Linf eps lies inside L2 eps sqrt(d), and L1 eps inside L2 eps inside Linf eps."""
    make, eps = SUBJECTS[subject]
    net, x, y = make()
    attacks, d = SUITES["quick"].attacks, x[0].numel()

    def left(ball: uf.Ball) -> int:
        return sum(s == "survived" for s in uf.run(attacks, net, x, y, ball, ids=range(N)).status)

    assert left(uf.l2(eps * d**0.5)) <= left(uf.linf(eps)) <= left(uf.l2(eps)) <= left(uf.l1(eps))


# ---- the classes


@each
def test_classes_in_another_order(subject: str) -> None:
    make, eps = SUBJECTS[subject]
    net, x, y = make()
    k = net(x[:1]).shape[1]
    order = torch.from_numpy(np.random.default_rng(1).permutation(k))
    place = torch.empty_like(order)
    place[order] = torch.arange(k)
    assert_same(robust(Around(net, after=lambda s: s[:, order]), x, place[y], eps), subject)


@each
@pytest.mark.parametrize("score", [-1e3, -1e9, -float("inf"), None], ids=["-1e3", "-1e9", "-inf", "below all others"])
def test_one_more_class_that_never_wins(subject: str, score: float | None) -> None:
    make, eps = SUBJECTS[subject]
    net, x, y = make()

    def more(s: Tensor) -> Tensor:
        last = s.amin(1, keepdim=True) - 1 if score is None else torch.full_like(s[:, :1], score)
        return torch.cat([s, last], 1)

    # DLR divides by another difference where a third class comes in: the small net's three become four
    assert_same(robust(Around(net, after=more), x, y, eps), subject, spare=1 if subject == "digits-cnn" else 2)


# ---- the scores


@each
@pytest.mark.parametrize("scale", [1e-3, 1e-2, 0.5, 10.0, 1e3])
def test_scores_at_another_scale(subject: str, scale: float) -> None:
    make, eps = SUBJECTS[subject]
    net, x, y = make()
    assert_same(robust(Around(net, after=lambda s: s * scale), x, y, eps), subject)


@each
@pytest.mark.parametrize("offset", [-1e3, -1e-3, 1.0, 1e3])
def test_scores_with_an_offset(subject: str, offset: float) -> None:
    make, eps = SUBJECTS[subject]
    net, x, y = make()
    assert_same(robust(Around(net, after=lambda s: s + offset), x, y, eps), subject, spare=2)  # 1e3 costs three digits


# ---- the inputs


@each
def test_normalisation_inside_or_outside(subject: str) -> None:
    """The module that wants normalised inputs, with mean and std given or done by itself."""
    make, eps = SUBJECTS[subject]
    net, x, y = make()
    wants = Around(net, before=lambda v: v * 0.3 + 0.45)
    inside = Around(wants, before=lambda v: (v - 0.45) / 0.3)
    given = uf.Target(wants, mean=0.45, std=0.3)
    assert_same(robust(inside, x, y, eps), subject)
    if x.dim() == 4:
        assert_same(robust(given, x, y, eps), subject)


@each
@pytest.mark.parametrize("bounds", [(0.0, 255.0), (-1.0, 1.0), (-3.0, 5.0)], ids=str)
def test_other_bounds_with_eps_scaled(subject: str, bounds: tuple[float, float]) -> None:
    make, eps = SUBJECTS[subject]
    net, x, y = make()
    lo, wide = bounds[0], bounds[1] - bounds[0]
    moved = uf.Target(Around(net, before=lambda v: (v - lo) / wide), bounds=bounds)
    assert_same(robust(moved, x * wide + lo, y, eps * wide), subject)


@each
def test_a_negative_of_every_picture(subject: str) -> None:
    make, eps = SUBJECTS[subject]
    net, x, y = make()
    assert_same(robust(Around(net, before=lambda v: 1 - v), 1 - x, y, eps), subject, spare=2)  # other luck


@each
def test_pixels_in_another_order(subject: str) -> None:
    make, eps = SUBJECTS[subject]
    net, x, y = make()
    order = torch.from_numpy(np.random.default_rng(2).permutation(x[0].numel()))
    back = torch.argsort(order)

    def shuffled(v: Tensor, by: Tensor) -> Tensor:
        return v.flatten(1)[:, by].view_as(v)

    target = Around(net, before=lambda v: shuffled(v, back))
    assert_same(robust(target, shuffled(x, order), y, eps), subject, spare=2)  # other luck


def test_a_float64_copy_of_the_target() -> None:
    _, x, y = small()
    double = milp.solved()["made-up 16-16-12-3"].module().double()
    assert_same(robust(double, x.double(), y, SUBJECTS["small net"][1]), "small net")


# ---- that the relations can be broken


def test_a_relation_that_does_not_hold_is_seen() -> None:
    """Bounds without eps scaled, another class that does win, and a softened picture are other questions."""
    net, x, y = digits()
    others = (
        lambda: robust(uf.Target(Around(net, before=lambda v: v / 255), bounds=(0, 255)), x * 255, y, EPS),
        lambda: robust(Around(net, after=lambda s: torch.cat([s, s[:, :1] + 3], 1)), x, y, EPS),
        lambda: robust(Around(net, before=lambda v: 0.5 + (v - 0.5) * 0.7), x, y, EPS),
    )
    for other in others:
        with pytest.raises(AssertionError, match="changed sides"):
            assert_same(other(), "digits-cnn")


# ---- the whole evaluation: what the doctor mends, and what it must not mind


WRAPPED: dict[str, Change] = {
    "probabilities": lambda s: s.softmax(1),
    "log-probabilities": lambda s: s.log_softmax(1),
    "a small scale": lambda s: s * 1e-3,
    "a large scale": lambda s: s * 1e3,
    "an offset": lambda s: s + 1e3,
}


@functools.cache
def evaluated() -> uf.Evaluation:
    net, x, y = digits()
    return uf.evaluate(net, x, y, uf.linf(EPS), suite="quick")


@pytest.mark.parametrize("wrap", WRAPPED)
def test_an_evaluation_of_the_target_with_other_scores(wrap: str) -> None:
    net, x, y = digits()
    out, bare = uf.evaluate(Around(net, after=WRAPPED[wrap]), x, y, uf.linf(EPS), suite="quick"), evaluated()
    assert int((out.robust != bare.robust).sum()) <= 1
    assert bare.status == "trusted" and out.status == "trusted", out.reasons


def test_an_evaluation_of_a_nested_and_renamed_target() -> None:
    """Findings are about what a target does, not what it is called or how deep it lies."""
    net, x, y = digits()

    class Defended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quantiser = nn.ModuleDict({"purify": nn.Sequential(Around(Around(net)))})

        def forward(self, x: Tensor) -> Tensor:
            return self.quantiser["purify"](x)

    for module in (Around(net), Defended()):
        out = uf.evaluate(module, x, y, uf.linf(EPS), suite="quick")
        assert torch.equal(out.robust, evaluated().robust)
        assert [f.id for f in out.findings] == [f.id for f in evaluated().findings]
        assert out.status == evaluated().status == "trusted"
