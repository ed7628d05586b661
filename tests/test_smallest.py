"""Minimum-norm attacks against closed forms: every norm, box and goal; sparse ones against all sets of values."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from tests.nets import RowNet
from unfooled import attacks
from unfooled.attacks.smallest import _shrunk, _slope
from unfooled.core.attack import RECIPES, Attack
from unfooled.testing import Linear, linear_distance, linear_points, size_of

NAMES = ("ddn", "fmn", "alma", "pdpgd", "ead", "sigma_zero", "jsma")
CASES = [(name, norm) for name in NAMES for norm in RECIPES[name].norms]
every = pytest.mark.parametrize(("name", "norm"), CASES, ids=lambda v: v)
convex = pytest.mark.parametrize(("name", "norm"), [c for c in CASES if c[1] != "l0"], ids=lambda v: v)
SIZE = {"linf": 0.05, "l2": 0.3, "l1": 0.8, "l0": 3.0}


def smallest(attack: Attack[Any], target: Any, x: Tensor, y: Tensor, norm: str, **kwargs: Any) -> uf.Run:
    goal = kwargs.pop("goal", None)
    return uf.run(attack, target, x, y, uf.Ball(uf.norms.NORMS[norm], **kwargs), goal=goal)


def assert_exact(out: uf.Run, exact: np.ndarray, share: float = 0.01) -> None:
    """Every example is found, none nearer than possible, none more than `share` further away."""
    assert out.success.all(), f"{int(out.success.sum())} of {len(exact)} found"
    ratio = out.distance.numpy() / exact
    assert ratio.min() >= 1 - 1e-5 and ratio.max() <= 1 + share, f"{ratio.min():.4f} to {ratio.max():.4f}"


# ---- closed forms


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_smallest_change_of_a_linear_target(name: str, norm: str, dtype: torch.dtype) -> None:
    target = Linear.random((4, 15), 2, seed=7, dtype=dtype)
    x, y = linear_points(target, (4, 15), 6, norm, SIZE[norm], seed=2)
    out = smallest(RECIPES[name].make(), target, x, y, norm)
    assert isinstance(out.x_adv, Tensor) and out.x_adv.dtype == dtype
    assert_exact(out, linear_distance(target, x, y, norm))


def inputs(target: Linear, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random points, moved towards the corner of the box where their class is strongest, each by another share."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, target.weight.shape[1], generator=g)
    y = target(x).argmax(1)
    own = target.weight[y] - target.weight.mean(0)
    return torch.lerp(x, (own > 0).float(), torch.rand(n, 1, generator=g)).detach(), y


def tried_all(target: Linear, x: Tensor, y: Tensor, to: int | None = None) -> np.ndarray:
    """The fewest values that must change, by trying every set of values at the walls that help it most, [n]."""
    w, b = target.weight.detach().double().numpy(), target.bias.detach().double().numpy()
    found = []
    for row, own in zip(x.double().numpy(), y.tolist(), strict=True):
        classes = [c for c in range(len(w)) if c != own] if to is None else [to]

        def wins(chosen: tuple[int, ...], other: int, row: np.ndarray = row, own: int = own) -> bool:
            z, ways = row.copy(), w[other] - w[own]
            z[list(chosen)] = ways[list(chosen)] > 0
            return bool((w[other] - w[own]) @ z + b[other] - b[own] > 1e-6)

        counts = (
            k
            for k in range(len(row) + 1)
            for chosen in itertools.combinations(range(len(row)), k)
            if any(wins(chosen, c) for c in classes)
        )
        found.append(next(counts))
    return np.array(found, dtype=float)


@pytest.mark.parametrize("name", ["fmn", "sigma_zero", "jsma"])
def test_no_smaller_set_of_values_would_do(name: str) -> None:
    target = Linear.random((9,), 2, seed=3)
    x, y = inputs(target, 20, 1)
    exact = tried_all(target, x, y)
    assert len(set(exact.tolist())) >= 3, "the examples should differ in how many values they need"
    assert_exact(smallest(RECIPES[name].make(), target, x, y, "l0"), exact, 0)
    assert np.array_equal(exact, linear_distance(target, x, y, "l0"))


@every
def test_a_wanted_class_is_reached_by_the_smallest_change(name: str, norm: str) -> None:
    """Two classes, so that beating one class is beating all; the goal names it."""
    target = Linear.random((40,), 2, seed=5)
    x, y = linear_points(target, (40,), 8, norm, min(SIZE[norm], 2.0), seed=4)
    out = smallest(RECIPES[name].make(), target, x, y, norm, goal=uf.Targeted(to=1 - y))
    assert (out.label == 1 - y).all()
    assert_exact(out, linear_distance(target, x, y, norm))


@every
def test_the_wanted_class_of_many(name: str, norm: str) -> None:
    target = Linear.random((30,), 5, seed=6)
    x = torch.rand(12, 30, generator=torch.Generator().manual_seed(2)) * 0.6 + 0.2
    y = target(x).argmax(1)
    to = (y + 1) % 5
    out = smallest(RECIPES[name].make(), target, x, y, norm, goal=uf.Targeted(to=to))
    assert out.success.all() and torch.equal(out.label, to)
    # never nearer than the boundary with the wanted class
    pairs = [linear_distance(target, x[i : i + 1], y[i : i + 1], norm, to=int(to[i]))[0] for i in range(len(x))]
    assert (out.distance.numpy() >= np.array(pairs) * (1 - 1e-5)).all()


class OneLogit(nn.Module):
    """A single output: positive is class 1."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        scores = self.linear(x)
        return scores[:, 1:] - scores[:, :1]


@every
def test_one_logit(name: str, norm: str) -> None:
    linear = Linear.random((40,), 2, seed=8)
    x, y = linear_points(linear, (40,), 6, norm, min(SIZE[norm], 2.0), seed=5)
    out = smallest(RECIPES[name].make(), OneLogit(linear), x, y, norm)
    assert_exact(out, linear_distance(linear, x, y, norm))


@every
def test_a_thousand_classes(name: str, norm: str) -> None:
    """Something is found for every example, and no nearer than the nearest class."""
    target = Linear.random((25,), 1000, seed=9)
    x = torch.rand(6, 25, generator=torch.Generator().manual_seed(6))
    y = target(x).argmax(1)
    out = smallest(RECIPES[name].make(), target, x, y, norm)
    exact = linear_distance(target, x, y, norm)
    assert out.success.all() and (out.distance.numpy() >= exact * (1 - 1e-5)).all()
    assert np.median(out.distance.numpy() / exact) <= 1.5


@every
def test_other_boxes(name: str, norm: str) -> None:
    """The box of 8-bit values: sizes scale with it."""
    linear = Linear.random((40,), 2, seed=10)
    x, y = linear_points(linear, (40,), 6, norm, min(SIZE[norm], 2.0), seed=6)
    target = uf.Target(lambda v: linear(v / 255), bounds=(0.0, 255.0))
    out = smallest(RECIPES[name].make(), target, x * 255, y, norm)
    assert_exact(out, linear_distance(linear, x, y, norm) * (1 if norm == "l0" else 255))


# ---- frozen values


@every
def test_frozen_values_stay_and_the_rest_is_exact(name: str, norm: str) -> None:
    mask = torch.arange(60) % 3 > 0
    part, whole = Linear.random((40,), 2, seed=11), Linear.random((60,), 2, seed=12)
    whole.weight.data *= 1e4  # the slopes call where nothing may change, at values that are 0
    whole.weight.data[:, mask], whole.bias.data = part.weight.data, part.bias.data
    some, y = linear_points(part, (40,), 6, norm, min(SIZE[norm], 2.0), seed=7)
    x = torch.zeros(6, 60)
    x[:, mask] = some
    out = smallest(RECIPES[name].make(), whole, x, y, norm, mask=mask)
    assert isinstance(out.x_adv, Tensor) and torch.equal(out.x_adv[:, ~mask], x[:, ~mask])
    assert_exact(out, linear_distance(part, some, y, norm))


# ---- more steps, smaller changes


@every
def test_distances_fall_with_more_steps(name: str, norm: str) -> None:
    net = RowNet(60, classes=4, hidden=40, seed=3)
    x = torch.rand(12, 60, generator=torch.Generator().manual_seed(8))
    y = net(x).argmax(1)
    few, many = (
        smallest(RECIPES[name].make(steps=steps), net, x, y, norm).distance.nan_to_num(nan=60.0).mean()
        for steps in ((3, 12) if name == "ead" else (6, 60))
    )
    assert many <= few and (many < few or norm == "l0")


@every
def test_a_single_step_is_no_error(name: str, norm: str) -> None:
    net = RowNet(5)
    x = torch.rand(3, 5)
    out = smallest(RECIPES[name].make(steps=1), net, x, net(x).argmax(1), norm)
    assert {str(s.value) for s in out.status} <= {"survived", "broken"}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_no_attack_is_far_behind_another(norm: str) -> None:
    """On a small network every attack's mean distance is within a fifth of the best one's."""
    net = RowNet(60, classes=4, hidden=40, seed=4)
    x = torch.rand(12, 60, generator=torch.Generator().manual_seed(9))
    y = net(x).argmax(1)
    means = {}
    for name in (n for n, m in CASES if m == norm):
        out = smallest(RECIPES[name].make(), net, x, y, norm)
        assert out.success.all(), name
        means[name] = float(out.distance.mean())
    assert max(means.values()) <= 1.2 * min(means.values()), means


# ---- parts


def test_the_penalty_is_the_derivative_of_p2() -> None:
    """P2(y) = mu y + mu rho y^2 + rho^2 y^3 / 6 from 0 on, mu y / (1 - rho y) below."""
    y = torch.linspace(-3, 3, 41, dtype=torch.float64).requires_grad_(True)
    rho, mu = torch.full_like(y, 1.7).detach(), torch.full_like(y, 0.6).detach()
    above = mu * y + mu * rho * y**2 + rho**2 * y**3 / 6
    p2 = torch.where(y >= 0, above, mu * y / (1 - rho * y.clamp(max=0)))
    (slope,) = torch.autograd.grad(p2.sum(), y)
    assert torch.allclose(_slope(y.detach(), rho, mu), slope)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_proximal_step_is_the_nearest_of_many(norm: str) -> None:
    """z minimises |z - v|^2 / 2 + weight * norm(z): no point near it or anywhere does better."""
    g = torch.Generator().manual_seed(0)
    v = torch.randn(5, 7, generator=g, dtype=torch.float64)
    weight = torch.tensor([0.0, 0.1, 0.5, 1.0, 9.0], dtype=torch.float64)

    def cost(z: Tensor) -> np.ndarray:
        return (z - v).square().sum(1).numpy() / 2 + weight.numpy() * size_of(norm, z.numpy())

    z = _shrunk(norm, v, weight)
    assert np.allclose(z[0], v[0]) and np.allclose(z[4], 0)
    for scale in (1e-3, 0.1, 1.0):
        for _ in range(300):
            other = z + scale * torch.randn(5, 7, generator=g, dtype=torch.float64)
            assert (cost(z) <= cost(other) + 1e-12).all()


# ---- one pixel


def test_one_pixel_changes_one_pixel_of_all_channels() -> None:
    target = Linear.random((3, 6, 6), 2, seed=12)
    x = torch.rand(20, 3, 6, 6, generator=torch.Generator().manual_seed(10))
    y = target(x).argmax(1)
    out = uf.run(attacks.one_pixel(queries=400, pixels=1), target, x, y, uf.l0(3))
    assert isinstance(out.x_adv, Tensor)
    places = (out.x_adv != x).any(1).flatten(1).sum(1)
    assert out.success.any() and (places[out.success] == 1).all()
    two = uf.run(attacks.one_pixel(queries=400, pixels=1), target, x, y, uf.l0(2))  # no whole pixel: single values
    assert (two.distance[two.success] == 1).all()


def test_one_pixel_finds_what_trying_every_value_finds() -> None:
    """Where one value is enough by brute force, evolution finds one too, and nowhere else."""
    target = Linear.random((16,), 3, seed=13)
    x, y = inputs(target, 30, 11)
    one = tried_all(target, x, y) == 1
    assert 3 <= one.sum() <= 27
    out = uf.run(attacks.one_pixel(queries=600), target, x, y, uf.l0(1))
    assert not out.success.numpy()[~one].any() and out.success.numpy()[one].mean() >= 0.9


# ---- misuse


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("ddn(steps=0)", "steps"),
        ("fmn(step_size=-1)", "step_size"),
        ("fmn(gamma=0)", "gamma"),
        ("ead(beta=0)", "beta"),
        ("ead(searches=0)", "searches"),
        ("alma(reach=-1)", "reach"),
        ("pdpgd(ratio=0)", "ratio"),
        ("sigma_zero(sigma=0)", "sigma"),
        ("jsma(classes=0)", "classes"),
        ("one_pixel(population=0)", "population"),
    ],
)
def test_settings_that_make_no_attack_are_refused(call: str, what: str) -> None:
    with pytest.raises(uf.InputError, match=what):
        attacks.parse(call)


def test_norms_without_a_step_are_refused() -> None:
    net, x, y = RowNet(4), torch.rand(2, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(uf.InputError, match="no step for Linf"):
        uf.run("ddn", net, x, y, uf.linf())
    with pytest.raises(uf.InputError, match="finite eps"):
        uf.run("one_pixel", net, x, y, uf.l0())
