"""Black-box attacks: exact distances from labels, budgets that hold, starts that fail alone, estimates."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled import attacks
from unfooled._noise import Noise, row_keys
from unfooled.attacks.estimate import Simba
from unfooled.attacks.parts import Sense, climb
from unfooled.attacks.search import low_first, wave
from unfooled.attacks.walk import EXPLORE, FIND, NormalWalk, Path, Walk, WalkState
from unfooled.core.attack import Attack, Problem
from unfooled.core.goal import Untargeted
from unfooled.core.oracle import Oracle
from unfooled.core.target import as_target
from unfooled.testing import Linear, Spy, linear_distance, linear_points

WALKS = ("hop_skip_jump", "cgba", "geoda", "surfree", "boundary")
LINF = ("hop_skip_jump", "geoda")


def made(name: str, **settings: Any) -> Attack[Any]:
    return attacks.RECIPES[name].make(**settings)


def problem(
    net: Any, x: Tensor, y: Tensor, threat: uf.Ball, access: uf.Access = uf.Access.LABEL, warm: Tensor | None = None
) -> Problem:
    """The rows as an attack sees them, without an engine."""
    oracle = Oracle(as_target(net), access)
    noise = Noise(torch.from_numpy(row_keys(0, np.arange(len(x)), "test")))
    threat = threat.within(oracle.target.bounds)
    start = x if warm is None else warm
    return Problem(x, y, None, torch.zeros_like(y), noise, start, None, None, threat, Untargeted(), oracle)


def walked(attack: Walk, p: Problem) -> WalkState:
    s = attack.init(p)
    for _ in range(attack.steps):
        s, _ = attack.step(p, s)
    return s


# ---- the closed form


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_more_queries_come_nearer_and_never_too_near(name: str, norm: str) -> None:
    if norm == "linf" and name not in LINF:
        with pytest.raises(uf.InputError, match="Linf"):
            uf.run(made(name), Linear.random((4,)), torch.rand(2, 4), torch.zeros(2, dtype=torch.int64), uf.linf())
        return
    size = {"l2": 0.2, "linf": 0.06}[norm]
    target = Linear.random((24,), 2, seed=5)
    x, y = linear_points(target, (24,), 12, norm, size, seed=2)
    threat = getattr(uf, norm)()
    medians = []
    for queries in (100, 250, 600):
        out = uf.run(made(name, queries=queries), target, x, y, threat)
        assert out.success.all() and float(out.distance.min()) >= size * (1 - 1e-5)
        assert out.vanished == 0, "points so near that rounding decides must not be kept"
        medians.append(float(out.distance.median()) / size)
    assert medians[0] > medians[1] > medians[2]
    assert medians[2] <= 1.06


@pytest.mark.parametrize("name", ["surfree", "hop_skip_jump"])
def test_labels_alone_lead_to_the_same_distances(name: str) -> None:
    target = Linear.random((24,), 2, seed=5)
    x, y = linear_points(target, (24,), 8, "l2", 0.2, seed=2)
    labels = uf.Target(lambda v: nn.functional.one_hot(target(v).argmax(1), 2).float(), access=uf.Access.LABEL)
    out = uf.run(made(name, queries=600), labels, x, y, uf.l2())
    assert out.success.all() and (out.distance <= 1.1 * 0.2).all() and (out.distance >= 0.2 * (1 - 1e-5)).all()


@pytest.mark.parametrize("name", WALKS)
def test_a_wanted_class_is_reached_at_its_own_distance(name: str) -> None:
    target = Linear.random((12,), 3, seed=8)
    x = torch.rand(30, 12, generator=torch.Generator().manual_seed(1)) * 0.4 + 0.3
    y = target(x).argmax(1)
    to = (y + 1) % 3
    exact = np.array(
        [linear_distance(target, x[i : i + 1], y[i : i + 1], "l2", (0.0, 1.0), to=int(to[i]))[0] for i in range(30)]
    )
    out = uf.run(made(name, queries=800), target, x, y, uf.l2(), goal=uf.Targeted(to))
    found = out.success.numpy()
    assert found.mean() > 0.9, "noise holds every class of this target"
    assert (target(out.x_adv).argmax(1) == to)[out.success].all()
    ratio = out.distance.numpy()[found] / exact[found]  # the exact one against y alone is a lower bound
    assert ratio.min() >= 1 - 1e-5
    assert np.median(ratio) <= 1.2


class Needle(nn.Module):
    """Class 1 is a small ball around 0.9, which no noise ever hits."""

    def forward(self, x: Tensor) -> Tensor:
        near = 0.3 - (x.flatten(1) - 0.9).norm(dim=1)
        return torch.stack([torch.zeros_like(near), near], 1)


@pytest.mark.parametrize("name", WALKS)
def test_a_point_that_an_attack_before_found_is_the_start(name: str) -> None:
    x, y = torch.full((3, 20), 0.4), torch.zeros(3, dtype=torch.int64)
    assert (walked(made(name, queries=60), problem(Needle(), x, y, uf.l2())).phase == FIND).all()
    warm = torch.full_like(x, 0.88)
    warm[2] = x[2]
    s = walked(made(name, queries=200), problem(Needle(), x, y, uf.l2(), warm=warm))
    assert (s.phase[:2] != FIND).all() and s.phase[2] == FIND
    exact = 0.5 * 20**0.5 - 0.3
    assert (s.radius[:2] < 1.01 * exact).all() and (s.radius[:2] >= exact * (1 - 1e-5)).all()


# ---- starts that fail, values that are frozen


class Locked(nn.Module):
    """Linear in all values but the first, which locks the answer to class 0 where it is high."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear.random((15,), 2, seed=3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.linear(x[:, 1:])
        locked = torch.tensor([50.0, 0.0]).expand_as(scores)
        return torch.where(x[:, :1] > 0.5, locked, scores)


@pytest.mark.parametrize("name", WALKS)
def test_a_start_that_fails_fails_for_that_row_alone(name: str) -> None:
    net, mask = Locked(), torch.arange(16) > 0
    x = torch.rand(10, 16, generator=torch.Generator().manual_seed(4)) * 0.4 + 0.3
    x[:, 0] = torch.tensor([0.0, 1.0]).repeat(5)
    y = net(x).argmax(1)
    x[1::2, 1:] = x[::2, 1:]
    y[1::2] = 0
    threat = uf.l2(mask=mask)
    out = uf.run(made(name, queries=240), net, x, y, threat, batch_size=4)
    locked = x[:, 0] > 0.5
    assert [out.status[i].value for i in locked.nonzero().flatten().tolist()] == ["survived"] * 5
    assert out.success[~locked].all()
    assert (out.forward[locked.numpy()] == 201).all(), "a row without a start gives up"
    assert isinstance(out.x_adv, Tensor) and torch.equal(out.x_adv[:, 0], x[:, 0])
    alone = uf.run(made(name, queries=240), net, x[~locked], y[~locked], threat)
    assert torch.equal(alone.x_adv, out.x_adv[~locked])


# ---- budgets


@pytest.mark.parametrize("name", WALKS)
def test_a_walk_asks_exactly_what_it_may(name: str) -> None:
    target = Linear.random((9,), 2, seed=1)
    x, y = linear_points(target, (9,), 5, "l2", 0.2)
    spy = Spy(target)
    out = uf.run(made(name, queries=77), spy, x, y, uf.l2())
    assert (out.forward == 1 + 77 + 1).all(), "the first look, the queries, the second look at what was found"
    assert spy.forward_rows == 5 * 79 and spy.backward_rows == 0


@pytest.mark.parametrize("name", ["nes", "spsa", "simba", "square"])
@pytest.mark.parametrize("queries", [60, 77, 100])
def test_a_score_attack_never_asks_more_than_it_may(name: str, queries: int) -> None:
    target = Linear(torch.zeros(2, 9), torch.tensor([1.0, 0.0]))
    x, y = torch.rand(4, 9), torch.zeros(4, dtype=torch.int64)
    spy = Spy(target)
    settings = {"queries": queries} | ({"samples": 7} if name in ("nes", "spsa") else {})
    out = uf.run(made(name, **settings), spy, x, y, uf.linf(0.1))
    least = queries - (7 if name in ("nes", "spsa") else 0)
    assert ((out.forward - 1 <= queries) & (out.forward - 1 >= least)).all()
    assert spy.forward_rows == out.forward.sum() and spy.backward_rows == 0


@pytest.mark.parametrize("name", [*WALKS, "nes", "spsa", "simba"])
def test_the_runs_own_budget_goes_first(name: str) -> None:
    target = Linear.random((9,), 2, seed=1)
    x, y = linear_points(target, (9,), 5, "l2", 0.2)
    spy = Spy(target)
    threat = uf.l2() if name in WALKS else uf.l2(0.1)
    out = uf.run(made(name), spy, x, y, threat, queries=50)
    assert (out.forward <= 50).all() and (out.forward >= 25).all() and spy.forward_rows == out.forward.sum()


# ---- the parts of a walk


def test_a_path_leads_straight_back_and_a_circle_stands_over_it() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.full((6, 10), 0.5, dtype=torch.float64)
    p = problem(Linear.random((10,), dtype=torch.float64), x, torch.zeros(6, dtype=torch.int64), uf.l2())
    far = x + 0.1 * torch.randn(6, 10, generator=g, dtype=torch.float64)
    way, at = torch.randn(6, 10, generator=g, dtype=torch.float64), torch.linspace(0.1, 1.0, 6, dtype=torch.float64)
    path = Path.to(p, far)
    line, circle = path.point(p, at), path.circle(p, way, at)
    assert torch.allclose(line, x + at.view(-1, 1) * (far - x))
    assert torch.allclose((circle - x).norm(dim=1), at * path.length)
    thales = ((circle - x) * (circle - far)).sum(1)  # a right angle over the diameter
    assert thales.abs().max() < 1e-12
    assert (((circle - far) * way).sum(1)[:-1] != 0).all() and torch.allclose(circle[-1], far[-1])
    side = way - (way * (far - x)).sum(1, keepdim=True) / path.length.square().view(-1, 1) * (far - x)
    assert (((circle - x) * side).sum(1)[:-1] > 0).all(), "it bulges along the way"


def test_paths_stay_in_the_box_at_the_distance_that_is_asked() -> None:
    x = torch.tensor([[0.5, 0.98, 0.5]], dtype=torch.float64)
    p = problem(Linear.random((3,), dtype=torch.float64), x, torch.zeros(1, dtype=torch.int64), uf.l2())
    path = Path.to(p, x + torch.tensor([[0.1, 0.3, 0.0]], dtype=torch.float64))
    for point in (
        path.point(p, torch.tensor([0.2])),
        path.circle(p, torch.tensor([[0.0, 0.0, 1.0]]).double(), torch.tensor([0.2]).double()),
    ):
        assert point.max() <= 1.0
        assert torch.allclose((point - x).norm(dim=1), 0.2 * path.length)


def test_a_bracket_closes_on_the_boundary() -> None:
    x = torch.zeros(4, 2)
    p = problem(Linear.random((2,)), x, torch.zeros(4, dtype=torch.int64), uf.l2())
    edges = torch.tensor([0.03, 0.4, 0.77, 0.999])
    path = Path.to(p, x + 1.0, gap=0.1)
    for _ in range(17):
        at = path.share
        assert ((at > path.low) & (at < path.high)).all()
        path = path.narrowed(at, at > edges)
    assert ((path.low <= edges) & (edges < path.high)).all() and (path.high - path.low < 1e-4).all()


def test_the_estimated_normal_points_to_the_other_class() -> None:
    target = Linear.random((20,), 2, seed=6)
    x, y = linear_points(target, (20,), 10, "l2", 0.2)
    p = problem(target, x, y, uf.l2())
    attack = NormalWalk(queries=600, starts=1, probes=400, keep=0.0)
    s = attack.init(p)
    while int(s.own.k.min()) < 1 and int(s.t.max()) < 600:
        s, _ = attack.step(p, s)
    normal = target.weight[1] - target.weight[0]
    toward = torch.where(y == 0, 1.0, -1.0).view(-1, 1) * normal
    cosine = torch.cosine_similarity(s.own.normal, toward, dim=1)
    assert (s.own.k >= 1).all() and (cosine > 0.8).all()  # expected for 400 signs in 20 dimensions: 0.96


def test_phases_are_masks() -> None:
    """Rows in different phases share a step, and each has its own counters."""
    target = Linear.random((20,), 2, seed=6)
    x, y = linear_points(target, (20,), 16, "l2", 0.2)
    p = problem(target, x, y, uf.l2())
    attack = NormalWalk(queries=200, starts=3)
    s, mixed = attack.init(p), 0
    for _ in range(200):
        s, _ = attack.step(p, s)
        mixed += len(s.phase.unique()) > 1
    assert mixed > 20 and (s.t == 200).all() and (s.phase != FIND).all() and (s.phase <= EXPLORE).all()


# ---- estimates and waves


@pytest.mark.parametrize("kind", ["nes", "spsa"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_estimated_gradient_points_uphill(kind: str, norm: str) -> None:
    target = Linear.random((24,), 2, seed=9)
    x, y = torch.full((6, 24), 0.5), torch.tensor([0, 1] * 3)
    p = problem(target, x, y, getattr(uf, norm)(0.1), uf.Access.SCORES)
    answer, value, grad = Sense(kind, 801, 0.1).gradient(
        p, x, torch.zeros_like(y), lambda labels, to: climb("margin", labels, to, paired=True), None
    )
    uphill = torch.where(y == 0, 1.0, -1.0).view(-1, 1) * (target.weight[1] - target.weight[0])
    assert (torch.cosine_similarity(grad, uphill, dim=1) > 0.9).all()  # expected for 400 pairs in 24 dimensions: 0.97
    scores = target(x)
    assert torch.equal(answer.scores, scores) and torch.equal(answer.label, scores.argmax(1))
    assert p.oracle.forward == 6 * 801 and p.oracle.backward == 0
    assert torch.allclose(value, (scores[:, 1] - scores[:, 0]) * torch.where(y == 0, 1.0, -1.0), atol=1e-5)


def test_pairs_at_a_wall_still_tell_the_slope() -> None:
    target = Linear.random((24,), 2, seed=9)
    x, y = torch.ones(2, 24), torch.tensor([0, 1])
    p = problem(target, x, y, uf.linf(0.1), uf.Access.SCORES)
    grad = Sense("nes", 801, 0.1).gradient(
        p, x, torch.zeros_like(y), lambda labels, to: climb("margin", labels, to, paired=True), None
    )[2]
    uphill = torch.where(y == 0, 1.0, -1.0).view(-1, 1) * (target.weight[1] - target.weight[0])
    assert (torch.cosine_similarity(grad, uphill, dim=1) > 0.8).all()


@pytest.mark.parametrize("shape", [(24,), (5, 7), (3, 4, 6), (2, 2, 3, 3)])
def test_waves_are_an_orthonormal_basis_that_begins_low(shape: tuple[int, ...]) -> None:
    d = int(np.prod(shape))
    like = torch.zeros(d, *shape, dtype=torch.float64)
    waves = wave(torch.arange(d), like).flatten(1)
    assert torch.allclose(waves @ waves.T, torch.eye(d, dtype=torch.float64), atol=1e-12)
    noise = Noise(torch.arange(5) * 7919)
    order = low_first(noise, torch.zeros(5, *shape))
    assert torch.equal(order.sort(dim=1).values, torch.arange(d).expand(5, d))
    assert len({tuple(row) for row in order.tolist()}) > 1, "every row has its own order"

    def bends(index: Tensor) -> float:
        w = wave(index, torch.zeros(len(index), *shape, dtype=torch.float64))
        return float(w.diff(dim=-1).abs().sum() / len(index))

    assert bends(order[:, : d // 3].flatten()) < bends(order[:, -(d // 3) :].flatten())


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_simba_climbs_one_direction_at_a_time(basis: str) -> None:
    target = Linear.random((3, 4, 5), 2, seed=2)
    x, y = linear_points(target, (3, 4, 5), 6, "linf", 0.08)
    p = problem(target, x, y, uf.linf(0.04), uf.Access.SCORES)
    attack = Simba(queries=130, basis=basis)
    s, leads = attack.init(p), []
    for _ in range(attack.steps):
        before = s.x
        s, trial = attack.step(p, s)
        assert isinstance(trial.x, Tensor)
        leads.append(s.lead)
        if basis == "pixel":
            assert ((s.x != before).flatten(1).sum(1) <= 1).all()
    assert all((b >= a).all() for a, b in itertools.pairwise(leads)), "what lowers the margin is not kept"
    if basis == "pixel":  # two questions for each of 60 pixels at most, and every one is where it should be
        weight = (target.weight[1] - target.weight[0]).view(1, 3, 4, 5) * torch.where(y == 0, 1.0, -1.0).view(
            -1, 1, 1, 1
        )
        best = (x + 0.04 * weight.sign()).clamp(0, 1)
        assert torch.allclose(s.x, best, atol=1e-6)


# ---- words


def test_settings_that_make_no_attack_are_refused() -> None:
    for call in (
        "hop_skip_jump(queries=0)",
        "hop_skip_jump(probes=0)",
        "hop_skip_jump(starts=0)",
        "cgba(keep=1.5)",
        "geoda(precision=0)",
        "surfree(queries=2.5)",
        "boundary(queries=-1)",
        "nes(samples=4)",
        "nes(queries=10, samples=11)",
        "spsa(radius=0)",
        "simba(basis='fourier')",
        "simba(step_size=0)",
    ):
        with pytest.raises(uf.InputError):
            attacks.parse(call)


def test_a_list_of_texts_is_no_input_for_a_walk() -> None:
    assert "tensors" in made("surfree").unfit(["a"], uf.l2(), 2)
    assert "Linf" in made("surfree").unfit(torch.rand(1, 2), uf.linf(), 2)
    assert made("hop_skip_jump").unfit(torch.rand(1, 2), replace(uf.linf(), eps=0.1), 2) == ""


def test_on_levels_every_question_is_a_legal_image() -> None:
    target = Linear.random((24,), 2, seed=5)
    x, y = linear_points(target, (24,), 8, "linf", 0.06, seed=2)
    x = (x * 32).round() / 32
    y = target(x).argmax(1)
    for threat in (replace(uf.linf(0.19), levels=32), replace(uf.linf(), levels=32)):
        out = uf.run(made("hop_skip_jump", queries=300), target, x, y, threat)
        assert out.success.all(), "starts are looked for outside the ball too"
        assert isinstance(out.x_adv, Tensor) and torch.allclose(out.x_adv * 32, (out.x_adv * 32).round(), atol=1e-5)
