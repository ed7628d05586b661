"""The contract: what every recipe of the attack shelf keeps, by being listed in RECIPES.

Each law is a function `check_...(case)`; the tests run it on every recipe under every norm of its row, and the mutants
at the end show that each law can be broken. A skip is a row of SKIPS with its reason, and a skip that is no longer
needed fails.
"""

import functools
import inspect
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from tests.nets import Recurrent, RowNet
from unfooled import _noise, attacks
from unfooled.attacks import RECIPES
from unfooled.attacks.gradient import GradientAttack, GradientState
from unfooled.core import engine as engine_module
from unfooled.core import run as run_module
from unfooled.core.attack import Attack, Problem, Trial
from unfooled.core.engine import Engine
from unfooled.core.oracle import Oracle
from unfooled.testing import Linear, Spy, linear_distance, linear_points, size_of

SKIPS: dict[tuple[str, str], str] = {
    ("fgsm", "found in the box l2"): "one step along the gradient is cut at the box, and no second one mends it",
    ("mi_fgsm", "found in the box l2"): "its steps add up to eps: what the box cuts off is not made good",
    ("square", "found in images l2"): "its bumps are three pixels wide and more; they cannot follow white noise",
    **{
        (name, "found in the box l2"): "its steps add up to eps: what the box cuts off is not made good"
        for name in ("di_fgsm", "si_fgsm", "ni_fgsm", "vmi_fgsm", "vni_fgsm")
    },
}

SMALL: dict[str, dict[str, Any]] = {  # sizes for the laws that do not depend on strength
    "pgd": {"steps": 6, "restarts": 2},
    "apgd": {"steps": 8, "restarts": 2},
    "apgd_targeted": {"steps": 6, "targets": 2},
    "pgd_targeted": {"steps": 6, "targets": 2},
    "pixel_gradient": {"steps": 8},
    "square": {"queries": 25},
    "nes": {"queries": 60, "samples": 7},
    "spsa": {"queries": 60, "samples": 7},
    "simba": {"queries": 60},
    "hop_skip_jump": {"queries": 70},
    "cgba": {"queries": 70},
    "geoda": {"queries": 70},
    "surfree": {"queries": 70},
    "boundary": {"queries": 70},
    "cw": {"steps": 12, "searches": 2, "step_size": 0.03},
    "lbfgs": {"steps": 5, "searches": 2},
    "deepfool": {"steps": 6},
    "superdeepfool": {"steps": 8},
    "fab": {"steps": 8, "restarts": 2},
    "fab_targeted": {"steps": 2, "targets": 2},
    "vmi_fgsm": {"neighbours": 3},
    "vni_fgsm": {"neighbours": 3},
    "ddn": {"steps": 12},
    "fmn": {"steps": 12},
    "one_pixel": {"queries": 30, "population": 10},
    "jsma": {"steps": 12},
    "pdpgd": {"steps": 15},
    "alma": {"steps": 15},
    "ead": {"steps": 6, "searches": 2, "weight": 10.0},
    "sigma_zero": {"steps": 14},
    "composite_fgsm": {"steps": 6, "scales": 2, "neighbours": 2},
}
SIZE = {"linf": 0.06, "l2": 0.2, "l1": 0.3, "l0": 2.0}  # exact distances of the linear points; L0: 24 values hold no 3
NO_BOX = "without the box one value is enough, however far the boundary: the box binds in every point"


@dataclass(frozen=True)
class Case:
    """A recipe under one norm."""

    recipe: str
    norm: str
    make: Callable[..., Attack[Any]]
    factor: float = 1.05
    smallest: float | None = None

    def __str__(self) -> str:
        return f"{self.recipe}-{self.norm}"

    def small(self) -> Attack[Any]:
        return self.make(**SMALL.get(self.recipe, {}))

    def ball(self, eps: float | None = None) -> uf.Ball:
        return uf.Ball(uf.norms.NORMS[self.norm], SIZE[self.norm] if eps is None else eps)

    def classes(self) -> int:
        """Two where the attack works with two, else three."""
        return 3 if self.make().unfit(torch.rand(1, 1, 2, 2), self.ball(), 2) else 2

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A vector's shape, for attacks that need images as that of an image with as many values."""
        refused = len(shape) == 1 and "vectors" in self.make().unfit(torch.rand(1, *shape), self.ball(), 3)
        rows = next(r for r in (4, 1) if shape[0] % r == 0)
        return (1, rows, shape[0] // rows) if refused else shape


CASES = [Case(r.name, norm, r.make, r.factor, r.smallest) for r in RECIPES.values() for norm in r.norms]
every = pytest.mark.parametrize("case", CASES, ids=str)
minimum_norm = pytest.mark.parametrize("case", [c for c in CASES if c.smallest], ids=str)


def contract(case: Case, law: str) -> None:
    """Skip what the table lists; the reason is printed with the test."""
    if reason := SKIPS.get((case.recipe, law)):
        pytest.skip(reason)


SHAPE = (3, 4, 5)


@functools.lru_cache
def examples(n: int = 14) -> tuple[RowNet, Tensor, Tensor]:
    """A network, inputs and labels; the last two labels are wrong."""
    net = RowNet(60)
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(3))
    y = net(x).argmax(1)
    y[-2:] = (y[-2:] + 1) % 4
    return net, x, y


def eps_of(case: Case) -> float:
    """An eps at which the small attacks break some rows of `examples` and not all."""
    return {"linf": 0.06, "l2": 0.3, "l1": 1.3, "l0": 1.0}[case.norm]


def attack_examples(case: Case, index: Any = slice(None), eps: float | None = None, **kwargs: Any) -> uf.Run:
    net, x, y = examples()
    ball = case.ball(eps_of(case) if eps is None else eps)
    return uf.run(case.small(), net, x[index], y[index], ball, **{"batch_size": 64, **kwargs})


ROWS = (
    "status",
    "x_adv",
    "distance",
    "margin",
    "label",
    "confidence",
    "steps",
    "broken_by",
    "ids",
    "forward",
    "backward",
)


def assert_same_rows(a: uf.Run, b: uf.Run, index: Any = None) -> None:
    """Assert that the rows of b are the rows `index` of a, bit for bit."""
    index = np.arange(len(a.status)) if index is None else np.asarray(index)
    for name in ROWS:
        left, right = getattr(a, name), getattr(b, name)
        if isinstance(left, Tensor):
            same = torch.equal(left[index].nan_to_num(nan=7e7), right.nan_to_num(nan=7e7))
        else:
            same = [left[i] for i in index] == list(right)
        assert same, f"{name} differs"


KINDS = ("vector", "one value", "grey", "one channel", "colour", "sequence", "waveform", "volume", "two classes",
         "three classes", "1000 classes", "float64", "bfloat16", "a function")  # fmt: skip


# ---- luck and batches


def check_same_seed_same_bits(case: Case) -> None:
    first, second = attack_examples(case, seed=5), attack_examples(case, seed=5)
    assert_same_rows(first, second)
    outcomes = {s.value for s in first.status}
    assert "misclassified" in outcomes and outcomes & {"broken", "survived"}


def check_alone_as_in_any_batch(case: Case) -> None:
    whole = attack_examples(case)
    n = len(whole.status)
    for batch_size in (1, 3, 5):
        assert_same_rows(whole, attack_examples(case, batch_size=batch_size))
    order = np.random.default_rng(0).permutation(n)
    assert_same_rows(whole, attack_examples(case, order, batch_size=4), order)
    for i in (0, 3, n - 1):
        assert_same_rows(whole, attack_examples(case, slice(i, i + 1)), [i])
    twice = np.array([2, 2, 5])  # equal examples have equal luck
    assert_same_rows(whole, attack_examples(case, twice), twice)


def check_a_retiring_row_changes_no_other(case: Case) -> None:
    whole = attack_examples(case)
    left = np.flatnonzero([s == "survived" for s in whole.status])
    gone = np.flatnonzero([s == "broken" for s in whole.status])
    assert len(left) and len(gone), "the law needs rows that break and rows that do not"
    assert_same_rows(whole, attack_examples(case, left), left)
    mixed = np.concatenate([gone[:1], left, gone[1:]])
    assert_same_rows(whole, attack_examples(case, mixed, batch_size=len(left)), mixed)


# ---- the ledger and the door


def check_ledger_is_a_spy(case: Case) -> None:
    for batch_size in (64, 3):
        net, x, y = examples()
        spy = Spy(net)
        out = uf.run(case.small(), spy, x, y, case.ball(eps_of(case)), batch_size=batch_size)
        forward, backward = out.padding + out.overrun
        assert out.forward.sum() + forward == spy.forward_rows
        assert out.backward.sum() + backward == spy.backward_rows
        assert out.attacks[0].forward == spy.forward_rows - len(x)  # the first look belongs to no attack
        assert out.attacks[0].backward == spy.backward_rows
        assert (out.forward >= 1).all()


def check_refused_one_level_below(case: Case) -> None:
    net, x, y = examples()
    spy, attack = Spy(net), case.small()
    assert attack.access == RECIPES[case.recipe].access if case.recipe in RECIPES else True
    below = uf.Access(attack.access - 1)
    with pytest.raises(uf.AccessError, match=f"needs {attack.access.name.lower()}"):
        uf.run(attack, spy, x, y, case.ball(), access=below)
    with pytest.raises(uf.AccessError):  # the target's own grant counts too
        uf.run(attack, uf.Target(spy, access=below), x, y, case.ball())
    assert spy.calls == 0
    if below >= uf.Access.LABEL:  # below labels not even the first look is allowed
        skipped = uf.run([attack, attack], spy, x, y, case.ball(), access=below)
        assert all(f"needs {attack.access.name.lower()}" in r.skipped and not r.attempted for r in skipped.attacks)
        assert spy.forward_rows == len(x) and spy.backward_rows == 0
    granted = uf.run(attack, spy, x, y, case.ball(), access=attack.access)
    assert granted.attacks[0].attempted and (attack.access == uf.Access.GRADIENT or spy.backward_rows == 0)


def check_calls_do_not_grow_with_the_examples(case: Case) -> None:
    net = Linear(torch.zeros(4, 60), torch.tensor([9.0, 0.0, 0.0, 0.0]))  # never breaks
    calls = []
    for n in (1, 256):
        spy = Spy(net)
        uf.run(case.small(), spy, torch.rand(n, *SHAPE), torch.zeros(n, dtype=torch.int64), case.ball())
        calls.append(spy.calls)
    assert calls[1] <= 2 * calls[0], f"{calls[0]} calls for one example, {calls[1]} for 256"


# ---- the caller's world


class Fragile(nn.Module):
    """Batch norms in both modes, dropout, a frozen weight, a count of calls; raises `error` at the third call."""

    def __init__(self, error: type[BaseException] | None) -> None:
        super().__init__()
        self.norm, self.frozen, self.drop = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.head = nn.Linear(60, 4)
        self.register_buffer("count", torch.zeros(()))
        self.error, self.calls = error, 0
        self.train()
        self.frozen.eval()
        self.head.bias.requires_grad_(False)
        self.head.weight.grad = torch.ones_like(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        torch.rand(3), np.random.rand(), random.random()
        if self.calls == 3 and self.error is not None:
            raise self.error("the target broke down")
        assert not any(m.training for m in self.modules()), "attacked in training mode"
        return self.head(self.drop(self.frozen(self.norm(x))).flatten(1))


def world_of(net: nn.Module) -> dict[str, Any]:
    state = np.random.get_state()
    return {
        "training": [m.training for m in net.modules()],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "grad": [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in net.parameters()],
        "values": [t.tolist() for t in net.state_dict().values()],
        "torch": torch.get_rng_state().tolist(),
        "numpy": (state[1].tolist(), *state[2:]),
        "random": random.getstate(),
        "modes": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_inference_mode_enabled()),
    }


def check_untouched(case: Case, error: type[BaseException] | None = None) -> None:
    net = Fragile(error)
    x, y = torch.rand(6, *SHAPE), torch.arange(6) % 4
    x_before, y_before, before = x.clone(), y.clone(), world_of(net)
    try:
        uf.run(case.small(), net, x, y, case.ball(), batch_size=4)
    except (RuntimeError, KeyboardInterrupt) as caught:
        assert type(caught) is error
    else:
        assert error is None
    assert net.calls >= 3
    after = world_of(net)
    for part, value in before.items():
        assert after[part] == value, f"{part} changed"
    assert torch.equal(x, x_before) and torch.equal(y, y_before), "the caller's examples changed"
    assert not x.requires_grad


# ---- inside


class Recorder(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.net(x)


def check_inside_ball_and_box(case: Case, shape: tuple[int, ...] = SHAPE) -> None:
    """Every point that is shown, and more strictly what counts, is finite and in ball and box in float64."""
    net, x, y = examples()
    for i, eps in enumerate((eps_of(case), eps_of(case) / 1000, 1e-6)):
        recorder = Recorder(net)
        one = x[i : i + 1].expand(5, *shape)
        out = uf.run(case.small(), recorder, one, y[i : i + 1].expand(5), case.ball(eps), ids=range(5))
        seen = torch.cat(recorder.seen).double().flatten(1)
        origin = one[:1].double().flatten(1)
        assert bool(seen.isfinite().all()) and bool((seen >= 0).all()) and bool((seen <= 1).all())
        if case.small().inside:
            rounding = 60 * 2.0**-24  # 60 values in float32
            over = size_of(case.norm, (seen - origin).numpy()).max() - eps
            assert over <= rounding, f"shown {over:.3g} outside the ball"
        assert isinstance(out.x_adv, Tensor) and out.vanished == 0
    out = attack_examples(case)
    assert isinstance(out.x_adv, Tensor)
    counted(case, out, x, eps_of(case))


def counted(case: Case, out: uf.Run, x: Tensor, eps: float, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
    """Assert that what counts is legal, really fools and has the distance that is told; the rest is the original."""
    assert isinstance(out.x_adv, Tensor) and out.x_adv.shape == x.shape
    change = (out.x_adv.double() - x.double()).flatten(1).numpy()
    size = size_of(case.norm, change)
    broken = out.success.numpy()
    assert bool(out.x_adv.isfinite().all())
    assert bool((out.x_adv >= bounds[0]).all()) and bool((out.x_adv <= bounds[1]).all())
    assert (size[broken] <= eps * (1 + 1e-9)).all(), f"{size[broken].max():.9g} is more than {eps}"
    assert (change[~broken] == 0).all(), "an example that is not broken is not its original"
    assert np.allclose(out.distance.numpy()[broken], size[broken], rtol=1e-9)
    assert out.distance[~out.success].isnan().all()
    assert bool((out.margin[out.success] < 0).all())
    assert broken.tolist() == [s == "broken" for s in out.status] == [bool(b) for b in out.broken_by]


# ---- the closed form


@functools.lru_cache
def linear_case(norm: str, classes: int, shape: tuple[int, ...]) -> tuple[Linear, Tensor, Tensor, np.ndarray]:
    """A linear target, points at the exact distance SIZE[norm], and whether the box binds, bool [n]."""
    target = Linear.random(shape, classes, seed=classes)
    x, y = linear_points(target, shape, 24, norm, SIZE[norm], seed=1)
    inside = linear_distance(target, x, y, norm, (0.0, 1.0))
    binds = inside > 1.001 * linear_distance(target, x, y, norm, None)
    assert np.allclose(inside, SIZE[norm], rtol=1e-5)
    return target, x, y, binds


VECTOR, IMAGE = (24,), (3, 5, 7)


def check_found_above_the_distance(case: Case, shape: tuple[int, ...] = VECTOR, binds: bool | None = None) -> None:
    target, x, y, box = linear_case(case.norm, case.classes(), case.shape(shape))
    rows = np.flatnonzero(np.ones_like(box) if binds is None else box == binds)
    eps = case.factor * SIZE[case.norm]
    out = uf.run(case.make(), target, x[rows], y[rows], case.ball(eps))
    assert out.success.all(), f"{int(out.success.sum())} of {len(rows)} found at {case.factor} times the distance"
    counted(case, out, x[rows], eps)


def check_never_below_the_distance(case: Case, shape: tuple[int, ...] = VECTOR) -> None:
    target, x, y, _ = linear_case(case.norm, case.classes(), case.shape(shape))
    few = {"queries": 300} if "queries" in inspect.signature(case.make).parameters else {}  # more find nothing either
    attack = case.make(**few)
    out = uf.run(attack, target, x, y, case.ball(0.99 * SIZE[case.norm]))
    assert not out.success.any() and set(out.status) == {"survived"}
    assert out.vanished == 0
    assert (out.steps == -1).all() and bool((out.margin > 0).all())


def check_smallest_change(case: Case, shape: tuple[int, ...] = VECTOR, binds: bool | None = None) -> None:
    """With no eps: every example is found, no further away than declared and never nearer than the exact distance."""
    target, x, y, box = linear_case(case.norm, case.classes(), case.shape(shape))
    rows = np.flatnonzero(np.ones_like(box) if binds is None else box == binds)
    out = uf.run(case.make(), target, x[rows], y[rows], case.ball(np.inf))
    assert out.success.all(), f"{int(out.success.sum())} of {len(rows)} found"
    counted(case, out, x[rows], np.inf)
    ratio = out.distance / SIZE[case.norm]
    assert case.smallest is not None and ratio.max() <= case.smallest, f"found at {ratio.max():.4f} times the distance"
    assert ratio.min() >= 1 - 1e-5


class Overshot(Attack[int]):
    """Shows a winning point at its second step and losing ones before and after."""

    @property
    def steps(self) -> int:
        return 5

    def init(self, p: Problem) -> Any:
        return GradientState(torch.zeros_like(p.y), p.x0, None, None, None)

    def step(self, p: Problem, s: Any) -> tuple[Any, Trial]:
        assert isinstance(p.x0, Tensor)
        x = torch.where((s.t == 1).view(-1, 1), p.x0 + 0.1, p.x0 - 0.1)
        return replace(s, t=s.t + 1), Trial(x, p.oracle.scores(x))


def check_best_so_far() -> None:
    """What won at step 2 of 5 counts, though the last iterate does not."""
    target = Linear(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([0.0, -1.1]))
    x, y = torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    out = uf.run(Overshot(), target, x, y, uf.linf(0.2))
    assert out.success.all() and (out.steps == 2).all() and (out.forward == 4).all()


# ---- the tests: every recipe under every norm


@every
def test_same_seed_same_bits(case: Case) -> None:
    check_same_seed_same_bits(case)


@every
def test_alone_as_in_any_batch_and_order(case: Case) -> None:
    check_alone_as_in_any_batch(case)


@every
def test_a_retiring_row_changes_no_other(case: Case) -> None:
    check_a_retiring_row_changes_no_other(case)


@every
def test_ledger_is_a_counting_spy(case: Case) -> None:
    check_ledger_is_a_spy(case)


@every
def test_refused_one_level_below(case: Case) -> None:
    check_refused_one_level_below(case)


@every
def test_calls_do_not_grow_with_the_examples(case: Case) -> None:
    check_calls_do_not_grow_with_the_examples(case)


@every
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt], ids=str)
def test_the_callers_world_is_untouched(case: Case, error: type[BaseException] | None) -> None:
    check_untouched(case, error)


@every
def test_inside_ball_and_box(case: Case) -> None:
    check_inside_ball_and_box(case)


@every
@pytest.mark.parametrize("binds", [False, True], ids=["free", "box"])
def test_found_above_the_exact_distance(case: Case, binds: bool) -> None:
    if case.norm == "l0" and not binds:
        pytest.skip(NO_BOX)
    if binds:
        contract(case, f"found in the box {case.norm}")
    check_found_above_the_distance(case, VECTOR, binds)


@pytest.mark.parametrize("case", [c for c in CASES if c.norm != "l1"], ids=str)
def test_found_above_the_exact_distance_in_images(case: Case) -> None:
    contract(case, f"found in images {case.norm}")
    contract(case, f"found in the box {case.norm}")
    check_found_above_the_distance(case, IMAGE)


@minimum_norm
@pytest.mark.parametrize("binds", [False, True], ids=["free", "box"])
def test_the_smallest_change(case: Case, binds: bool) -> None:
    if case.norm == "l0" and not binds:
        pytest.skip(NO_BOX)
    if binds:
        contract(case, f"smallest in the box {case.norm}")
    check_smallest_change(case, VECTOR, binds)


@minimum_norm
def test_the_smallest_change_in_images(case: Case) -> None:
    contract(case, f"smallest in images {case.norm}")
    check_smallest_change(case, IMAGE)


@every
def test_no_eps_asks_for_the_smallest_change_or_is_refused(case: Case) -> None:
    net, x, y = examples()
    if case.smallest is None:
        with pytest.raises(uf.InputError, match="finite eps"):
            uf.run(case.small(), net, x, y, case.ball(np.inf))
        return
    out = attack_examples(case, eps=np.inf)
    counted(case, out, x, np.inf)
    for batch_size in (1, 5):
        assert_same_rows(out, attack_examples(case, eps=np.inf, batch_size=batch_size))


@minimum_norm
@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_change_of_inputs_of_every_kind(case: Case, kind: str) -> None:
    module, shape, dtype = kinds(kind)
    attack, x = case.small(), torch.rand(9, *shape)
    if attack.unfit(x, case.ball(np.inf), 2 if kind == "two classes" else 4):
        return
    with torch.no_grad():
        y = module(x.to(torch.bfloat16 if kind == "bfloat16" else dtype)).argmax(1)
    spy = Spy(module)
    out = uf.run(attack, spy if isinstance(module, nn.Module) else module, x, y, case.ball(np.inf), batch_size=4)
    counted(case, out, x.to(dtype), np.inf)
    if isinstance(module, nn.Module):
        assert out.forward.sum() + out.padding[0] == spy.forward_rows
        assert out.backward.sum() + out.padding[1] == spy.backward_rows


@every
@pytest.mark.parametrize("shape", [VECTOR, IMAGE], ids=["vector", "image"])
def test_never_below_the_exact_distance(case: Case, shape: tuple[int, ...]) -> None:
    check_never_below_the_distance(case, shape)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_box_binds_in_about_half_of_the_points(norm: str) -> None:
    for classes, shape in ((2, VECTOR), (3, VECTOR), (2, IMAGE), (3, IMAGE)):
        _, x, _, binds = linear_case(norm, classes, shape)
        at_wall = ((x == 0) | (x == 1)).flatten(1).any(1).float().mean()
        assert 0.4 <= at_wall <= 0.6
        assert 0.3 <= binds.mean() <= 0.6


@every
def test_settings_are_frozen_and_the_call_round_trips(case: Case) -> None:
    for attack in (case.make(), case.small()):
        text = repr(attack)
        assert text.startswith(f"{case.recipe}(") and attacks.parse(text) == attack
        assert repr(attacks.parse(text)) == text and attacks.parse(text).key() == attack.key()
        with pytest.raises(AttributeError):
            attack.call = "other"  # type: ignore[misc]
    assert attacks.parse(case.recipe) == case.make()
    row = RECIPES[case.recipe]
    assert row.paper and row.doc and row.norms and (row.factor <= 1.05 or row.reason)


def test_the_best_point_counts_not_the_last() -> None:
    check_best_so_far()


# ---- inputs of every kind


def kinds(name: str) -> tuple[Callable[..., Tensor], tuple[int, ...], torch.dtype]:
    torch.manual_seed(1)
    single = torch.float32
    match name:
        case "vector":
            return RowNet(11), (11,), single
        case "one value":
            return RowNet(1), (1,), single
        case "grey":
            return RowNet(35), (5, 7), single
        case "one channel":
            return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(60, 4)), (1, 5, 7), single
        case "colour":
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(60, 4)), (3, 5, 7), single
        case "sequence":
            return Recurrent(), (6, 3), single
        case "waveform":
            return (
                nn.Sequential(nn.Conv1d(1, 4, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)),
                (1, 19),
                single,
            )
        case "volume":
            return RowNet(48), (2, 2, 3, 4), single
        case "two classes":
            return RowNet(11, 2), (11,), single
        case "three classes":
            return RowNet(11, 3), (11,), single
        case "1000 classes":
            return RowNet(11, 1000), (11,), single
        case "float64":
            return RowNet(11).double(), (11,), torch.float64
        case "bfloat16":
            return nn.Sequential(nn.Flatten(), nn.Linear(11, 4)).bfloat16(), (11,), single
        case "a function":
            weight = torch.randn(11, 4)
            return lambda x: x @ weight, (11,), single
    raise KeyError(name)


@every
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_every_kind(case: Case, kind: str) -> None:
    module, shape, dtype = kinds(kind)
    attack = case.small()
    x = torch.rand(9, *shape)
    with torch.no_grad():
        y = module(x.to(torch.bfloat16 if kind == "bfloat16" else dtype)).argmax(1)
    eps = 3 * eps_of(case)
    if reason := attack.unfit(x, case.ball(eps), 2 if kind == "two classes" else 4):
        assert ("two classes" in reason and kind == "two classes") or ("vectors" in reason and x.dim() == 2)
        with pytest.raises(uf.InputError, match=re.escape(reason)):
            uf.run(attack, module, x, y, case.ball(eps))
        return
    spy = Spy(module)
    out = uf.run(attack, spy if isinstance(module, nn.Module) else module, x, y, case.ball(eps), batch_size=4)
    assert isinstance(out.x_adv, Tensor) and out.x_adv.dtype == dtype
    counted(case, out, x.to(dtype), eps)
    if isinstance(module, nn.Module):
        assert out.forward.sum() + out.padding[0] == spy.forward_rows
        assert out.backward.sum() + out.padding[1] == spy.backward_rows
    again = out.x_adv.to(torch.bfloat16 if kind == "bfloat16" else dtype)
    with torch.no_grad():
        assert torch.equal(module(again).argmax(1) != y, out.success), "the module itself does not agree"


@every
def test_eps_zero_returns_the_input_and_breaks_nothing(case: Case) -> None:
    net, x, y = examples()
    out = uf.run(case.small(), net, x, y, case.ball(0.0))
    assert isinstance(out.x_adv, Tensor) and torch.equal(out.x_adv, x)
    assert not out.success.any()
    assert {s.value for s in out.status} == {"survived", "misclassified"}


@every
def test_the_whole_box_breaks_a_linear_target(case: Case) -> None:
    target = Linear.random((11,), case.classes(), seed=4)
    x = torch.rand(12, *case.shape((11,))) * 0.4 + 0.3
    y = target(x).argmax(1)
    out = uf.run(case.make(), target, x, y, case.ball(11.0))
    assert out.success.all()


@every
def test_bounds_other_than_zero_to_one(case: Case) -> None:
    net, x, y = examples()
    lo, hi = -3.0, 5.0
    moved = uf.Target(lambda v: net((v - lo) / (hi - lo)), bounds=(lo, hi))
    eps = eps_of(case) * (hi - lo)
    out = uf.run(case.small(), moved, x * (hi - lo) + lo, y, case.ball(eps))
    counted(case, out, x * (hi - lo) + lo, eps, (lo, hi))
    assert out.success.any()


# ---- mutants: each law can be broken


class Identity(Attack[Any]):
    """Shows the original."""

    @property
    def steps(self) -> int:
        return 3

    def init(self, p: Problem) -> Any:
        return None

    def step(self, p: Problem, s: Any) -> tuple[Any, Trial]:
        return s, Trial(p.x0, p.oracle.scores(p.x0))


class Flipped(GradientAttack):
    """Descends where it should climb."""

    def step(self, p: Problem, s: GradientState) -> tuple[GradientState, Trial]:
        class Backwards(Oracle):
            def gradient(self, x: Tensor, loss: Any, *, straight: bool = False) -> Any:
                answer, value, grad = p.oracle.gradient(x, loss, straight=straight)
                return answer, value, -grad

        return super().step(replace(p, oracle=Backwards(p.oracle.target, p.oracle.granted)), s)


@dataclass(frozen=True, repr=False)
class Unprojected(GradientAttack):
    """Steps without coming back to the ball."""

    def step(self, p: Problem, s: GradientState) -> tuple[GradientState, Trial]:
        assert isinstance(p.threat, uf.Ball)
        answer, _, grad = p.oracle.gradient(s.x, lambda z: z[:, 1] - z[:, 0])
        x = (s.x + 0.5 * p.threat.eps * p.threat.steepest(grad, s.x)).clamp(0, 1)
        return replace(s, x=x, t=s.t + 1), Trial(s.x, answer)


@dataclass(frozen=True, repr=False)
class Unboxed(Unprojected):
    """Steps out of the box."""

    def step(self, p: Problem, s: GradientState) -> tuple[GradientState, Trial]:
        state, trial = super().step(p, s)
        return replace(state, x=state.x * 1.2), trial


@dataclass(frozen=True, repr=False)
class Greedy(GradientAttack):
    """Asks the target once more than it needs for every row, one by one."""

    def step(self, p: Problem, s: GradientState) -> tuple[GradientState, Trial]:
        for i in range(len(s.x)):
            p.oracle.scores(s.x[i : i + 1])
        return super().step(p, s)


@dataclass(frozen=True, repr=False)
class Smuggler(GradientAttack):
    """Passes by the door."""

    def step(self, p: Problem, s: GradientState) -> tuple[GradientState, Trial]:
        p.oracle.target.scores(s.x)
        return super().step(p, s)


@dataclass(frozen=True, repr=False)
class Neighbourly(GradientAttack):
    """Lets the other rows of the batch push the step."""

    def step(self, p: Problem, s: GradientState) -> tuple[GradientState, Trial]:
        state, trial = super().step(p, s)
        assert isinstance(p.threat, uf.Ball) and isinstance(p.x0, Tensor)
        return replace(state, x=p.threat.project(state.x + 1e-3 * state.x.mean(0), p.x0)), trial


def mutant(kind: type[Attack[Any]], norm: str = "linf", **settings: Any) -> Case:
    return Case(kind.__name__, norm, lambda **_: kind(**settings))


def test_an_identity_attack_fails() -> None:
    with pytest.raises(AssertionError, match="found at"):
        check_found_above_the_distance(mutant(Identity))


def test_a_flipped_sign_fails() -> None:
    with pytest.raises(AssertionError, match="found at"):
        check_found_above_the_distance(mutant(Flipped))
    check_found_above_the_distance(mutant(GradientAttack))  # the same attack with its sign right


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_missing_projection_fails(norm: str) -> None:
    with pytest.raises(AssertionError, match="outside the ball"):
        check_inside_ball_and_box(mutant(Unprojected, norm))
    with pytest.raises(AssertionError):
        check_inside_ball_and_box(mutant(Unboxed, norm))


def test_a_missing_projection_never_counts() -> None:
    """The engine checks what it stores: even such an attack breaks nothing below the exact distance."""
    target, x, y, _ = linear_case("linf", 2, VECTOR)
    out = uf.run(Unprojected(), target, x, y, uf.linf(0.99 * SIZE["linf"]))
    assert not out.success.any() and out.vanished > 0


class LastOnly(Engine):
    """Looks at the last iterate alone."""

    def _step(self, attack: Any, slots: Any, jobs: Any) -> Any:
        with self._charged(slots):
            slots.s, _ = attack.step(slots.p, slots.s)
        slots.t[slots.live] += 1
        if self._spent(attack, slots).any():
            self._retire(attack, slots, np.zeros_like(slots.live), jobs)
        return slots


def test_a_last_iterate_only_engine_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "Engine", LastOnly)
    with pytest.raises(AssertionError):
        check_best_so_far()


class Trusting(Engine):
    """Counts what was found without asking again."""

    def _recheck(self, attack: Any, slots: Any, index: np.ndarray) -> np.ndarray:
        at = slots.example[index]
        self.pool.status[at] = uf.Status.BROKEN
        return np.ones(len(index), dtype=bool)


def test_an_engine_without_a_second_look_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "Engine", Trusting)
    with pytest.raises(AssertionError):
        check_never_below_the_distance(mutant(Unprojected))
    with pytest.raises(AssertionError):
        check_inside_ball_and_box(Case("pgd", "linf", attacks.pgd))


def test_luck_that_belongs_to_the_slot_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_slot(seed: int, ids: np.ndarray, recipe: str, restart: Any = 0) -> np.ndarray:
        return _noise.row_keys(seed, np.arange(len(ids)), recipe, restart)

    monkeypatch.setattr(engine_module, "row_keys", by_slot)
    with pytest.raises(AssertionError):
        check_alone_as_in_any_batch(Case("pgd", "linf", attacks.pgd))


def test_rows_that_push_each_other_fail() -> None:
    with pytest.raises(AssertionError):
        check_alone_as_in_any_batch(mutant(Neighbourly, length=6))
    with pytest.raises(AssertionError):
        check_a_retiring_row_changes_no_other(mutant(Neighbourly, length=6))


def test_a_hidden_loop_over_examples_fails() -> None:
    with pytest.raises(AssertionError, match="for 256"):
        check_calls_do_not_grow_with_the_examples(mutant(Greedy, length=3))


def test_a_way_round_the_door_fails() -> None:
    with pytest.raises(AssertionError):
        check_ledger_is_a_spy(mutant(Smuggler, length=3))


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import contextlib

    monkeypatch.setattr(run_module, "untouched", lambda target: contextlib.nullcontext())
    yield


@pytest.mark.usefixtures("careless")
def test_a_careless_engine_fails() -> None:
    with pytest.raises((AssertionError, uf.UnfooledError), match="training mode"):  # the target itself complains
        check_untouched(Case("pgd", "linf", attacks.pgd))


def test_a_ball_that_is_too_large_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(uf.Ball):
        norms: ClassVar[Any] = uf.norms

        def project(self, x_adv: Tensor, x: Tensor, radius: Any = None) -> Tensor:
            return self.norm.project(x_adv, x, 1.02 * self.eps, self.bounds)

        def contains(self, x_adv: Any, x: Any) -> Tensor:
            return torch.ones(len(x), dtype=torch.bool)

        def settle(self, x_adv: Any, x: Any) -> Any:
            return x_adv

    monkeypatch.setattr(Case, "ball", lambda self, eps=None: Wide(uf.norms.NORMS[self.norm], eps or SIZE[self.norm]))
    for norm in ("linf", "l2", "l1"):
        with pytest.raises(AssertionError):
            check_never_below_the_distance(Case("apgd", norm, attacks.apgd))
            check_found_above_the_distance(Case("apgd", norm, attacks.apgd))


# ---- the table of skips


@pytest.mark.parametrize(("recipe", "law"), SKIPS, ids=lambda v: str(v))
def test_every_skip_is_needed(recipe: str, law: str) -> None:
    case = next(c for c in CASES if c.recipe == recipe and law.endswith(c.norm))
    if recipe == "square":  # the default 5,000 queries fail as well, in half a minute
        case = replace(case, make=functools.partial(case.make, queries=400))
    where, binds = IMAGE if "images" in law else VECTOR, True if "box" in law else None
    with pytest.raises(AssertionError, match="found"):
        (check_smallest_change if law.startswith("smallest") else check_found_above_the_distance)(case, where, binds)


def test_every_recipe_is_under_contract() -> None:
    assert {c.recipe for c in CASES} == set(RECIPES)
    assert all(reason for reason in SKIPS.values())
