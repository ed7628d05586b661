"""Norms: the four laws of a projection and their exactness, steps, draws, sizes; and the exact distances of testing.py.

The references in `unfooled.testing` are NumPy and SciPy in float64 and share no formula with norms.py; here they are
checked themselves against linear programming and a general solver.
"""

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from scipy.optimize import LinearConstraint, linprog, minimize
from torch import Tensor

import unfooled as uf
from unfooled import norms
from unfooled._noise import Noise, row_keys
from unfooled.norms import NORMS, Norm
from unfooled.testing import (
    LAWS,
    Linear,
    check_idempotent,
    check_identity_inside,
    check_inside,
    check_nearest,
    feasible_points,
    halfspace_distance,
    linear_distance,
    linear_points,
    reference_project,
    size_of,
)

NAMES = ("linf", "l2", "l1", "l0")
BOXES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-2.5, 3.0))
quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def problems(draw: Any, dtype: torch.dtype | None = None, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """Rows at walls and inside, steps of all sizes, radii per row: 0, tiny, usual, beyond the box."""
    name, bounds = draw(st.sampled_from(names)), draw(st.sampled_from(BOXES))
    shape = draw(st.sampled_from([(1,), (2,), (7,), (31,), (3, 4), (2, 3, 3), (1, 1, 2, 5)]))
    dtype = dtype or draw(st.sampled_from([torch.float32, torch.float64]))
    n, seed = draw(st.sampled_from([1, 2, 9])), draw(st.integers(0, 2**31))
    reach = draw(st.sampled_from([0.0, 1e-3, 0.3, 3.0, 100.0]))
    g = np.random.default_rng(seed)
    lo, hi = bounds
    x = g.uniform(lo, hi, (n, *shape))
    x = np.where(g.random(x.shape) < 0.3, g.choice([lo, hi], x.shape), x)
    v = x + reach * (hi - lo) * g.standard_normal(x.shape) * (g.random(x.shape) < 0.8)
    sizes = (hi - lo) * np.array([0.0, 1e-9, 1e-4, 0.03, 0.5, 2.0, 40.0, np.inf])
    eps = g.choice(sizes if name != "l0" else [0.0, 1.0, 2.0, 2.9, 5.0, 1e6, np.inf], n)
    as_tensor = [torch.from_numpy(np.asarray(a)).to(dtype) for a in (v, x, eps)]
    return dict(zip(("v", "x", "eps"), as_tensor, strict=True)) | {"norm": NORMS[name], "bounds": bounds}


@given(problems())
@quick
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_projections_obey_the_four_laws(law: Any, problem: dict[str, Any]) -> None:
    norm, bounds = problem["norm"], problem["bounds"]

    def project(v: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        return norm.project(v, x, eps, bounds)

    law(project, norm.name, problem["v"], problem["x"], problem["eps"], bounds)


@given(problems(dtype=torch.float64))
@quick
def test_projections_equal_the_independent_reference(problem: dict[str, Any]) -> None:
    norm, (lo, hi), x = problem["norm"], problem["bounds"], problem["x"]
    z = norm.project(problem["v"], x, problem["eps"], (lo, hi)).flatten(1).numpy()
    rows = [t.flatten(1).numpy() for t in (problem["v"], x)]
    scale = (hi - lo) + np.abs(rows[0]).max()
    for i in range(len(x)):
        v, origin, eps = rows[0][i], rows[1][i], float(problem["eps"][i])
        if norm.name == "l0":
            if len(v) > 12:
                continue
            best = reference_project("l0", v, origin, eps, (lo, hi))
            assert ((z[i] - v) ** 2).sum() <= ((best - v) ** 2).sum() + 1e-9 * scale**2  # ties may differ in place
        else:
            best = reference_project(norm.name, v, origin, eps, (lo, hi))
            assert np.abs(z[i] - best).max() <= 1e-10 * scale


@given(problems())
@quick
def test_one_radius_for_all_equals_the_same_radius_per_row(problem: dict[str, Any]) -> None:
    norm, v, x = problem["norm"], problem["v"], problem["x"]
    eps = float(problem["eps"][0])
    one = norm.project(v, x, eps, problem["bounds"])
    assert torch.equal(one, norm.project(v, x, torch.full((len(x),), eps, dtype=x.dtype), problem["bounds"]))
    for i in range(len(x)):  # a row alone is the row in the batch
        assert torch.equal(one[i : i + 1], norm.project(v[i : i + 1], x[i : i + 1], eps, problem["bounds"]))


@given(problems(names=("linf", "l2", "l1")))
@quick
def test_projections_bring_no_two_points_further_apart(problem: dict[str, Any]) -> None:
    norm, v, x, bounds = problem["norm"], problem["v"].double(), problem["x"].double(), problem["bounds"]
    other = v + torch.randn(v.shape, generator=torch.Generator().manual_seed(0), dtype=v.dtype)
    eps = problem["eps"].double()
    before = (v - other).flatten(1).norm(dim=1)
    after = (norm.project(v, x, eps, bounds) - norm.project(other, x, eps, bounds)).flatten(1).norm(dim=1)
    assert bool((after <= before * (1 + 1e-9) + 1e-9).all())


@pytest.mark.parametrize("name", NAMES)
def test_no_radius_is_the_input_itself(name: str) -> None:
    x = torch.rand(5, 3, 4)
    v = x + torch.randn_like(x)
    assert torch.equal(NORMS[name].project(v, x, 0.0, (0.0, 1.0)), x)


def test_l2_projection_with_sizes_and_rooms_over_many_decades() -> None:
    """The fixed-point iteration needs the most rounds where every one of them clips one more value."""
    d = torch.logspace(-6, 6, 200, dtype=torch.float64)[None]
    x = torch.full_like(d, 0.5)
    for eps in (0.1, 1.0, 3.0, 5.0, 7.0):
        z = norms.L2.project(x + d, x, eps, (0.0, 1.0))
        best = reference_project("l2", (x + d)[0].numpy(), x[0].numpy(), eps, (0.0, 1.0))
        assert np.abs(z[0].numpy() - best).max() < 1e-12


# ---- settling: what is stored lies inside in float64


@pytest.mark.parametrize("name", ["linf", "l2", "l1", "l0"])
@pytest.mark.parametrize("eps", [1e-7, 1e-5, 1e-3, 8 / 255, 0.5, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stored_points_are_inside_to_the_last_bit(name: str, eps: float, dtype: torch.dtype) -> None:
    eps = math.ceil(eps) if name == "l0" else eps
    ball = uf.Ball(NORMS[name], eps)
    x = torch.rand(40, 3, 20, dtype=dtype)
    x[:10] = x[:10].round()
    v = ball.project(x + 0.3 * torch.randn_like(x), x)
    z = ball.settle(v, x)
    assert isinstance(z, Tensor) and z.dtype == dtype
    size = size_of(name, (z.double() - x.double()).flatten(1).numpy())
    assert (size <= eps * (1 + 1e-12) + 1e-16).all() and bool((z >= 0).all()) and bool((z <= 1).all())
    assert bool(ball.contains(z, x).all())
    kept = size_of(name, (v.double() - x.double()).flatten(1).numpy()) <= eps
    if dtype == torch.float32:
        assert torch.equal(z[torch.from_numpy(kept)], v[torch.from_numpy(kept)]), "a point inside was moved"
    assert float((z - v).abs().max()) <= 2 * torch.finfo(dtype).eps


def test_what_a_ball_contains() -> None:
    x = torch.full((6, 2), 0.5)
    v = x.clone()
    v[1, 0], v[2, 0], v[3, 0], v[4, 0], v[5, 0] = 0.6, 0.61, torch.nan, torch.inf, 0.6 + 1e-5
    assert uf.linf(0.1).contains(v, x).tolist() == [True, True, False, False, False, False]
    wide = torch.full((1, 2), 0.95)
    assert uf.linf(0.2).contains(wide + 0.06, wide).tolist() == [False], "outside the box"
    assert uf.l0(1).contains(v, x).tolist() == [True, True, True, False, False, True]


# ---- sizes, steps, draws


@given(problems())
@quick
def test_sizes_are_those_of_numpy(problem: dict[str, Any]) -> None:
    d = problem["v"].double() - problem["x"].double()
    norm: Norm = problem["norm"]
    assert np.allclose(norm.size(d).numpy(), size_of(norm.name, d.flatten(1).numpy()), rtol=1e-12)
    order = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}[norm.name]
    rows = [np.linalg.norm(row, order) for row in d.flatten(1).numpy()]
    assert np.allclose(norm.size(d).numpy(), rows, rtol=1e-12)


def test_sizes_of_no_rows_and_of_rows_without_axes() -> None:
    for norm in NORMS.values():
        assert norm.size(torch.zeros(0, 3, 4)).shape == (0,)
        assert norm.size(torch.tensor([0.5, -2.0])).tolist() == ([1.0, 1.0] if norm.name == "l0" else [0.5, 2.0])


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12])
def test_steepest_steps_have_length_one_and_reach_the_dual_norm(name: str, scale: float) -> None:
    norm = NORMS[name]
    g = scale * torch.randn(20, 3, 5, generator=torch.Generator().manual_seed(0))
    step = norm.steepest(g)
    assert torch.allclose(norm.size(step), torch.ones(20), atol=1e-5)
    reached = (g.double() * step.double()).flatten(1).sum(1)
    assert torch.allclose(reached, NORMS[norm.dual].size(g.double()), rtol=1e-5)
    assert torch.equal(norm.steepest(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_sparse_steps_leave_out_what_meets_the_box() -> None:
    g, x = torch.tensor([[5.0, 1.0, -4.0]]), torch.tensor([[1.0, 0.5, 0.0]])
    assert uf.l1(1.0).steepest(g, x).tolist() == [[0.0, 1.0, 0.0]]


def draws(n: int) -> Noise:
    return Noise(torch.from_numpy(row_keys(7, np.arange(n), "draws")))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3, 4)])
def test_draws_lie_in_the_ball_and_fill_it(name: str, shape: tuple[int, ...]) -> None:
    norm, m = NORMS[name], math.prod(shape)
    eps = torch.linspace(0.0, 2.0, 3000) if name != "l0" else torch.arange(3000).float() % (m + 1)
    d = norm.sample(draws(3000), 0, shape, eps, torch.float32)
    size = norm.size(d.double())
    assert bool((size <= eps.double() * (1 + 1e-5) + 1e-12).all())
    if name == "l0":
        assert size.tolist() == eps.tolist()
    else:  # uniform in a ball of m dimensions: (size / eps)^m is uniform
        share = (size[1:] / eps[1:].double()) ** m
        assert abs(float(share.mean()) - 0.5) < 0.02 and abs(float(share.var()) - 1 / 12) < 0.01
        assert float(d.double().mean().abs()) < 0.06  # five standard errors


def test_l1_and_l2_draws_have_no_favourite_direction() -> None:
    for name, moment in (("l1", 2 / (6 * 7)), ("l2", 1 / 7)):  # E d_i^2 of the unit ball in 5 dimensions
        d = NORMS[name].sample(draws(40000), 0, (5,), 1.0, torch.float64)
        assert torch.allclose(d.square().mean(0), torch.full((5,), moment).double(), rtol=0.05)
        products = (d.T @ d / len(d)).fill_diagonal_(0)
        assert float(products.abs().max()) < 0.05 * moment


# ---- the references themselves


def test_reference_projections_agree_with_a_general_solver() -> None:
    g = np.random.default_rng(0)
    for trial in range(6):
        x, eps = g.uniform(0, 1, 4), g.uniform(0.1, 0.8)
        v = x + g.standard_normal(4)
        start, box = x.copy(), [(0, 1)] * 4
        for norm, limit in (
            ("l2", {"type": "ineq", "fun": lambda z, x=x, e=eps: e**2 - ((z - x) ** 2).sum()}),
            ("linf", {"type": "ineq", "fun": lambda z, x=x, e=eps: np.r_[e - (z - x), e + (z - x)]}),
        ):
            found = minimize(lambda z, v=v: ((z - v) ** 2).sum(), start, bounds=box, constraints=[limit], tol=1e-14)
            assert np.abs(found.x - reference_project(norm, v, x, eps, (0, 1))).max() < 1e-5, (norm, trial)
        halves = np.hstack([np.eye(4), -np.eye(4)])  # z = x + p - n with p, n >= 0 and sum <= eps
        found = minimize(
            lambda pn, v=v, x=x, halves=halves: ((x + halves @ pn - v) ** 2).sum(),
            np.zeros(8),
            bounds=[(0, 1 - a) for a in x] + [(0, a) for a in x],
            constraints=[LinearConstraint(np.ones((1, 8)), -np.inf, eps)],
            method="trust-constr",
            tol=1e-12,
        )
        assert np.abs(x + halves @ found.x - reference_project("l1", v, x, eps, (0, 1))).max() < 1e-3


@pytest.mark.parametrize("norm", NAMES)
def test_exact_distances_agree_with_optimisers(norm: str) -> None:
    g = np.random.default_rng(1)
    for _ in range(25):
        m = int(g.integers(1, 8))
        c = g.standard_normal(m) * (g.random(m) < 0.8)
        room = g.uniform(0, 1, m) * (g.random(m) < 0.8)
        gap = float(g.uniform(0, 0.9)) * float((np.abs(c) * room).sum())
        mine, a = halfspace_distance(c, gap, room, norm), np.abs(c)
        if gap == 0:
            assert mine == 0
            continue
        if norm == "linf":  # minimise r with a d >= gap, 0 <= d <= r, d <= room
            cost = np.r_[np.zeros(m), 1]
            rows = np.vstack([np.r_[-a, 0], np.hstack([np.eye(m), -np.ones((m, 1))])])
            best = linprog(cost, A_ub=rows, b_ub=np.r_[-gap, np.zeros(m)], bounds=[(0, r) for r in room] + [(0, None)])
            assert mine == pytest.approx(best.fun, rel=1e-7, abs=1e-9)
        elif norm == "l1":
            best = linprog(np.ones(m), A_ub=-a[None], b_ub=[-gap], bounds=[(0, r) for r in room])
            assert mine == pytest.approx(best.fun, rel=1e-7, abs=1e-9)
        elif norm == "l2":
            cage = [(0, r) for r in room]
            best = minimize(lambda d: (d * d).sum(), room, jac=lambda d: 2 * d, bounds=cage,
                            constraints=LinearConstraint(a[None], gap, np.inf), method="SLSQP", tol=1e-15)  # fmt: skip
            assert mine == pytest.approx(math.sqrt(best.fun), rel=1e-4, abs=1e-6)
        else:
            sets = [[i for i in range(m) if bits >> i & 1] for bits in range(2**m)]
            assert mine == min(len(s) for s in sets if (a[s] * room[s]).sum() >= gap * (1 - 1e-12))
    assert halfspace_distance(np.ones(3), 3.1, np.ones(3), norm) == math.inf
    assert halfspace_distance(np.zeros(3), 0.1, np.ones(3), norm) == math.inf
    assert halfspace_distance(np.ones(3), 0.0, np.ones(3), norm) == 0.0


def test_without_the_box_the_distance_is_the_margin_over_the_dual_norm() -> None:
    target = Linear.random((6,), 2, seed=0)
    x = torch.rand(10, 6)
    scores = target(x).detach().double().numpy()
    y = torch.from_numpy(scores.argmax(1))
    w = (target.weight[1] - target.weight[0]).detach().double().numpy()
    gap = np.abs(scores[:, 1] - scores[:, 0])
    for norm, dual in (("linf", 1), ("l2", 2), ("l1", np.inf)):
        assert np.allclose(linear_distance(target, x, y, norm, None), gap / np.linalg.norm(w, dual), rtol=1e-5)
        assert (linear_distance(target, x, y, norm) >= linear_distance(target, x, y, norm, None) - 1e-9).all()
    assert (linear_distance(target, x, y, "l0", None) == 1).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_points_at_a_distance_are_at_that_distance(norm: str) -> None:
    target = Linear.random((4, 10), 3, seed=2)
    distance = {"linf": 0.05, "l2": 0.2, "l1": 0.3, "l0": 2.0}[norm]
    x, y = linear_points(target, (4, 10), 10, norm, distance)
    assert x.shape == (10, 4, 10) and bool((x >= 0).all()) and bool((x <= 1).all())
    assert torch.equal(target(x).argmax(1), y)
    assert np.allclose(linear_distance(target, x, y, norm), distance, rtol=1e-5)
    with pytest.raises(uf.InputError, match="ask for a smaller one"):
        linear_points(target, (4, 10), 2, norm, 1000.0)
    with pytest.raises(uf.InputError, match="no norm"):
        linear_distance(target, x, y, "l3")


# ---- wrong projections are seen


def shrink(norm: Norm, by: float) -> Any:
    return lambda v, x, eps: norm.project(v, x, eps * by, (0.0, 1.0))


def box_then_ball(norm: Norm) -> Any:
    """Two projections one after the other: inside both sets, yet not the nearest point of the two together."""

    def project(v: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        return norm.project(v.clamp(0, 1), x, eps, (-9.0, 9.0)).clamp(0, 1)

    return project


@pytest.mark.parametrize("name", ["l2", "l1"])
def test_wrong_projections_break_a_law(name: str) -> None:
    norm, g = NORMS[name], torch.Generator().manual_seed(0)
    x = torch.rand(30, 8, generator=g).round(decimals=1)
    v, eps = x + torch.randn(30, 8, generator=g), torch.full((30,), 0.7)
    rest = (name, v, x, eps, (0.0, 1.0))
    with pytest.raises(AssertionError, match="leaves the ball"):
        check_inside(shrink(norm, 1.001), *rest)
    with pytest.raises(AssertionError, match="nearer"):
        check_nearest(shrink(norm, 0.98), *rest)
    with pytest.raises(AssertionError, match="nearer"):
        check_nearest(box_then_ball(norm), *rest)
    with pytest.raises(AssertionError, match="box"):
        check_inside(lambda v, x, e: norm.project(v, x, e, (-1.0, 2.0)), *rest)
    with pytest.raises(AssertionError, match="finite"):
        check_inside(lambda v, x, e: v / 0, *rest)
    inside = x + 0.01 * (0.5 - x)
    with pytest.raises(AssertionError, match="was inside and moved"):
        check_identity_inside(lambda v, x, e: x, name, inside, x, eps, (0.0, 1.0))
    with pytest.raises(AssertionError, match="moved again"):
        check_idempotent(lambda v, x, e: x + 0.9 * (norm.project(v, x, e, (0.0, 1.0)) - x), *rest)


def test_feasible_points_are_feasible() -> None:
    x = np.random.default_rng(0).uniform(0, 1, (5, 6))
    for norm, eps in (("linf", 0.2), ("l2", 0.4), ("l1", 0.7), ("l0", 2.0)):
        radii = np.linspace(0, eps, 5)
        for u in feasible_points(norm, x, radii, (0.0, 1.0), 40):
            assert (size_of(norm, u - x) <= radii + 1e-12).all() and (u >= 0).all() and (u <= 1).all()


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_reach_is_the_exact_distance_to_a_plane_inside_the_box(norm: str) -> None:
    g = np.random.default_rng(0)
    for size in (1, 2, 7, 30):
        x = np.where(g.random((40, size)) < 0.3, g.choice([0.0, 1.0], (40, size)), g.random((40, size)))
        w = g.standard_normal((40, size)) * (g.random((40, size)) < 0.9)
        room = np.where(w > 0, 1 - x, x)
        most = (np.abs(w) * room).sum(1)  # what the box allows
        gap = most * g.uniform(-0.1, 1.1, 40)
        d = NORMS[norm].reach(*(torch.from_numpy(a) for a in (w, gap, x)), (0.0, 1.0)).numpy()
        assert ((x + d >= -1e-12) & (x + d <= 1 + 1e-12)).all()
        for i in range(40):
            exact = halfspace_distance(w[i], float(gap[i]), room[i], norm)
            gain = float(w[i] @ d[i])
            if np.isinf(exact):
                assert gain == pytest.approx(most[i])
            else:
                assert size_of(norm, d[i : i + 1])[0] == pytest.approx(exact, abs=1e-9)
                assert gain >= max(gap[i], 0) - 1e-9
