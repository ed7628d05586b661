"""The engine: slots, steps, budgets, goals, memory, deadlines, Ctrl-C, and what it refuses to count."""

import math
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import unfooled as uf
from tests.nets import RowNet
from unfooled import Status, attacks
from unfooled.core import run as run_module
from unfooled.core.attack import Attack, Problem, Trial
from unfooled.core.engine import _CHECK_EVERY, Engine
from unfooled.core.oracle import Answer
from unfooled.errors import TargetError
from unfooled.testing import Linear, Spy, linear_distance

ROWS = ("status", "x_adv", "distance", "margin", "label", "confidence", "steps", "broken_by")


def assert_same(a: uf.Run, b: uf.Run, names: tuple[str, ...] = ROWS) -> None:
    for name in names:
        left, right = getattr(a, name), getattr(b, name)
        if isinstance(left, Tensor):
            assert torch.equal(left.nan_to_num(nan=7e7), right.nan_to_num(nan=7e7)), name
        else:
            assert list(left) == list(right), name


@dataclass
class Count:
    t: Tensor
    restart: Tensor


@dataclass(frozen=True, repr=False)
class Scripted(Attack[Count]):
    """Adds `by` to the input at the step that the input's second value names (in tenths), else shows the original."""

    length: int = 6
    by: float = 0.2
    tries: int = 1
    seen: Any = None  # a list that gets every pass: (t of each slot, restart of each slot)

    @property
    def steps(self) -> int:
        return self.length

    def key(self) -> str:
        return "Scripted"

    def restarts(self, classes: int) -> int:
        return self.tries

    def init(self, p: Problem) -> Count:
        return Count(torch.zeros_like(p.y), p.restart)

    def step(self, p: Problem, s: Count) -> tuple[Count, Trial]:
        assert isinstance(p.x0, Tensor)
        now = s.t + 1 + 10 * s.restart
        x = torch.where((now == (p.x0[:, 1] * 10).round()).view(-1, 1), p.x0 + self.by, p.x0)
        if self.seen is not None:
            self.seen.append((s.t.tolist(), s.restart.tolist()))
        return replace(s, t=s.t + 1), Trial(x, p.oracle.scores(x))


def step_target() -> Linear:
    """Class 1 where the first value is above 0.6."""
    return Linear(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([0.6, 0.0]))


def scripted_inputs(*when: int) -> tuple[Tensor, Tensor]:
    """Examples that a Scripted attack breaks at these steps (0: never)."""
    x = torch.tensor([[0.5, w / 10] for w in when])
    return x, torch.zeros(len(when), dtype=torch.int64)


def small_case(n: int = 13, d: int = 12) -> tuple[RowNet, Tensor, Tensor]:
    net, x = RowNet(d, hidden=16), torch.rand(n, d, generator=torch.Generator().manual_seed(1))
    return net, x, net(x).argmax(1)


# ---- continuous batching


def test_rows_at_different_steps_share_a_pass() -> None:
    seen: list[Any] = []
    spy = Spy(step_target())
    x, y = scripted_inputs(1, 3, 5, 2, 4, 1, 6, 2, 0, 1)
    out = uf.run(Scripted(seen=seen), spy, x, y, uf.linf(0.3), batch_size=3)
    assert [s.value for s in out.status] == ["survived" if w == 0 else "broken" for w in (1, 3, 5, 2, 4, 1, 6, 2, 0, 1)]
    assert out.steps.tolist() == [1, 3, 5, 2, 4, 1, 6, 2, -1, 1]
    assert any(len(set(t)) > 1 for t, _ in seen), "no pass held rows at different steps"
    widths = [len(t) for t, _ in seen]
    drained = next(i for i, t in enumerate(widths) if t < 3)
    assert set(widths[:drained]) == {3} and widths[drained:] == sorted(widths[drained:], reverse=True)
    useful = 1 + 3 + 5 + 2 + 4 + 1 + 6 + 2 + 6 + 1
    assert useful <= sum(widths) <= useful + 3  # next to no empty slots
    assert sum(widths) == useful + out.padding[0]
    assert spy.calls < 10 + sum(widths)


def test_the_number_of_passes_is_that_of_full_slots() -> None:
    """24 rows of 1 to 6 steps in 4 slots take about a quarter of their steps, not the sum of each batch's longest."""
    seen: list[Any] = []
    when = [1, 6, 2, 1, 1, 2, 1, 6] * 3
    x, y = scripted_inputs(*when)
    uf.run(Scripted(seen=seen), step_target(), x, y, uf.linf(0.3), batch_size=4)
    assert len(seen) <= math.ceil(sum(when) / 4) + 5 < 6 * 6


def test_restarts_run_one_after_another_and_end_at_a_success() -> None:
    seen: list[Any] = []
    when = (3, 0, 2)
    x, y = scripted_inputs(*when)
    out = uf.run(Scripted(tries=3, seen=seen), step_target(), x, y, uf.linf(0.3), batch_size=8)
    assert out.steps.tolist() == [3, -1, 2] and out.forward.tolist() == [1 + 3 + 1, 1 + 18, 1 + 2 + 1]
    order = [r for t, r in seen for r in r]
    assert order == sorted(order) and max(order) == 2
    assert all(len(r) == len(set(map(tuple, zip(t, r, strict=True)))) or len(r) > 1 for t, r in seen)


def test_a_success_of_a_later_restart_counts_its_steps_from_the_first() -> None:
    x, y = torch.tensor([[0.5, 0.9]]), torch.zeros(1, dtype=torch.int64)

    @dataclass(frozen=True, repr=False)
    class Late(Scripted):
        def step(self, p: Problem, s: Count) -> tuple[Count, Trial]:
            assert isinstance(p.x0, Tensor)
            x = torch.where(((s.restart == 2) & (s.t == 1)).view(-1, 1), p.x0 + 0.2, p.x0)
            return replace(s, t=s.t + 1), Trial(x, p.oracle.scores(x))

    out = uf.run(Late(length=4, tries=3), step_target(), x, y, uf.linf(0.3))
    assert out.success.all() and out.steps.tolist() == [2 * 4 + 2] and out.forward.tolist() == [1 + 10 + 1]


def test_restarts_have_their_own_luck() -> None:
    net, x, y = small_case()
    keys: list[Tensor] = []

    class Spying(Engine):
        def _fresh(self, *args: Any) -> Any:
            fresh = super()._fresh(*args)
            keys.append(fresh.p.noise.keys)
            return fresh

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "Engine", Spying)
        uf.run(attacks.pgd(steps=2, restarts=4), net, x, y, uf.linf(1e-4))
    drawn = torch.cat(keys)
    assert len(drawn) == 4 * len(x) == len(drawn.unique())


def test_a_cascade_attacks_what_is_left_and_starts_warm() -> None:
    net, x, y = small_case(40)
    out = uf.run([attacks.fgsm(), "pgd(steps=5)", attacks.apgd(steps=8, start="warm")], net, x, y, uf.linf(0.05))
    left = 40
    for row in out.attacks:
        assert row.attempted == left and row.robust_accuracy_after == (left - row.broken) / 40
        left -= row.broken
    assert out.status.count(Status.SURVIVED) == left
    for name, count in zip([r.name for r in out.attacks], [r.broken for r in out.attacks], strict=True):
        assert out.broken_by.count(name) == count
    assert sum(r.forward for r in out.attacks) + 40 == out.forward.sum() + out.padding[0]
    assert sum(r.backward for r in out.attacks) == out.backward.sum() + out.padding[1]


@dataclass(frozen=True, repr=False)
class Watching(Scripted):
    """Keeps the warm points and their scores that it is given, and wins nothing."""

    by: float = 0.0

    def init(self, p: Problem) -> Count:
        assert self.seen is not None
        self.seen.append((p.warm, p.scores, p.clean, p.x0))
        return super().init(p)


def test_the_best_point_of_an_attack_is_the_next_ones_warm_start_and_its_margin_is_told() -> None:
    net, x, y = small_case(30)
    given: list[Any] = []
    shown: list[Tensor] = []

    def recorder(v: Tensor) -> Tensor:
        shown.append(v.detach().clone())
        return net(v)

    attack = attacks.pgd(steps=6, restarts=2)
    out = uf.run([attack, Watching(length=1, seen=given)], recorder, x, y, uf.linf(0.03))
    left = [i for i, s in enumerate(out.status) if s is Status.SURVIVED]
    warm, scores, clean, x0 = given[0]
    assert torch.equal(x0, x[left]) and torch.allclose(clean, net(x0)) and torch.allclose(scores, net(warm))
    own = scores.gather(1, y[left, None])[:, 0]
    margin = own - scores.scatter(1, y[left, None], -torch.inf).amax(1)
    assert torch.allclose(margin, out.margin[left], atol=1e-6) and bool((margin > 0).all())
    points = torch.cat(shown)
    for at, i in enumerate(left):  # nothing that was shown for this image came nearer
        near = points[(points - x[i]).abs().amax(1) <= 0.0301]
        z = net(near).detach()
        best = (z[:, y[i]] - z.scatter(1, y[i].expand(len(z), 1), -torch.inf).amax(1)).min()
        assert abs(float(best - margin[at])) < 1e-6
    first = uf.run(attack, net, x, y, uf.linf(0.03))
    assert torch.equal(first.margin[left], out.margin[left]), "a weaker attack afterwards does not raise the margin"


# ---- the path on devices where a look costs a synchronisation


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(Engine):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.lazy = True

    monkeypatch.setattr(run_module, "Engine", Lazy)


def test_seldom_looks_change_no_result(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    net, x, y = small_case(21)
    recipes = [attacks.pgd(steps=19, restarts=2), attacks.apgd(steps=13), attacks.square(queries=30)]
    eager = [uf.run(a, net, x, y, uf.linf(0.03), batch_size=8) for a in recipes]
    request.getfixturevalue("lazy")
    for attack, before in zip(recipes, eager, strict=True):
        spy = Spy(net)
        out = uf.run(attack, spy, x, y, uf.linf(0.03), batch_size=8)
        assert_same(before, out, (*ROWS, "forward", "backward"))
        assert out.forward.sum() + out.padding[0] + out.overrun[0] == spy.forward_rows
        assert out.backward.sum() + out.padding[1] + out.overrun[1] == spy.backward_rows
        assert out.overrun[0] > 0, "nobody was late: the test shows nothing"


@pytest.mark.usefixtures("lazy")
def test_overrun_is_exactly_what_was_noticed_late() -> None:
    seen: list[Any] = []
    x, y = scripted_inputs(1, 1, 1, 0)
    out = uf.run(Scripted(length=12, seen=seen), step_target(), x, y, uf.linf(0.3), batch_size=4)
    late = _CHECK_EVERY - 1
    assert out.overrun.tolist() == [3 * late, 0]
    assert out.forward.tolist() == [3, 3, 3, 13] and out.steps.tolist() == [1, 1, 1, -1]
    assert len(seen) == 12 and [len(t) for t, _ in seen] == [4] * _CHECK_EVERY + [1] * (12 - _CHECK_EVERY)


@pytest.mark.usefixtures("lazy")
def test_widths_are_powers_of_two_where_shapes_are_compiled() -> None:
    seen: list[Any] = []
    x, y = scripted_inputs(*[1] * 5 + [0] * 6)
    out = uf.run(Scripted(length=20, seen=seen), step_target(), x, y, uf.linf(0.3), batch_size=64)
    assert {len(t) for t, _ in seen} == {16, 8}
    assert out.padding.tolist() == [5 * _CHECK_EVERY + 2 * (20 - _CHECK_EVERY), 0]


@pytest.mark.usefixtures("lazy")
def test_an_empty_slot_does_not_stop_the_looks() -> None:
    """A slot whose row left at step 8 keeps its counter there; looks go on with the engine's own steps."""
    seen: list[Any] = []
    x, y = scripted_inputs(1, 1, 10, 10, 10)
    out = uf.run(Scripted(length=40, seen=seen), step_target(), x, y, uf.linf(0.3), batch_size=5)
    assert out.steps.tolist() == [1, 1, 10, 10, 10]
    assert len(seen) == 2 * _CHECK_EVERY


# ---- memory


class Cramped(nn.Module):
    """Runs out of memory above `cap` rows, in the forward or in the backward pass."""

    def __init__(self, net: nn.Module, cap: int, error: Callable[[], BaseException], *, backward: bool = False) -> None:
        super().__init__()
        self.net, self.cap, self.error, self.late = net, cap, error, backward
        self.refused = 0

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        if len(x) > self.cap and not self.late:
            self.refuse(None)
        if len(x) > self.cap and out.requires_grad:
            out.register_hook(self.refuse)
        return out

    def refuse(self, grad: Tensor | None) -> None:
        self.refused += 1
        raise self.error()


def out_of_memory() -> BaseException:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("cap", [1, 3, 7])
@pytest.mark.parametrize("backward", [False, True])
def test_out_of_memory_changes_no_result(cap: int, backward: bool) -> None:
    net, x, y = small_case()
    attack = attacks.pgd(steps=5, restarts=2)
    free = uf.run(attack, net, x, y, uf.linf(0.05))
    spy = Spy(net)
    cramped = Cramped(spy, cap, out_of_memory, backward=backward)
    out = uf.run(attack, cramped, x, y, uf.linf(0.05))
    assert_same(free, out)
    assert cramped.refused and any("Out of memory" in note for note in out.notes)
    assert len(out.notes) <= 4, "one sentence per halving of what was sent"
    if backward:  # the forward rows of failed steps went through, on behalf of nobody
        assert out.overrun[0] > 0 and out.forward.sum() + out.padding[0] + out.overrun[0] == spy.forward_rows
    else:
        assert out.backward.sum() + out.padding[1] == spy.backward_rows


def test_out_of_memory_late_in_a_run_restarts_the_rows_that_lost_their_slot() -> None:
    net, x, y = small_case()
    free = uf.run(attacks.apgd(steps=12), net, x, y, uf.linf(0.04))

    class Later(Cramped):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.cap = 99 if self.calls < 8 else 2
            return super().forward(x)

    assert_same(free, uf.run(attacks.apgd(steps=12), Later(net, 99, out_of_memory), x, y, uf.linf(0.04)))


def test_out_of_memory_in_the_making_of_rows_loses_none() -> None:
    @dataclass(frozen=True, repr=False)
    class Hungry(Scripted):
        def init(self, p: Problem) -> Count:
            if len(p.y) > 3:
                raise torch.OutOfMemoryError("out of memory")
            return super().init(p)

    when = (1, 3, 5, 2, 4, 1, 6, 2, 0, 1)
    x, y = scripted_inputs(*when)
    out = uf.run(Hungry(), step_target(), x, y, uf.linf(0.3), batch_size=8)
    assert out.steps.tolist() == [w or -1 for w in when]


@pytest.mark.parametrize(
    "error",
    [
        lambda: RuntimeError("CUDA error: out of memory"),
        lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        lambda: RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        MemoryError,
    ],
)
def test_every_way_to_run_out_of_memory_is_known(error: Callable[[], BaseException]) -> None:
    net, x, y = small_case(5)
    out = uf.run(attacks.fgsm(), Cramped(net, 2, error), x, y, uf.linf(0.05))
    assert_same(uf.run(attacks.fgsm(), net, x, y, uf.linf(0.05)), out)


def test_out_of_memory_with_one_row_is_a_sentence_and_other_errors_pass() -> None:
    net, x, y = small_case(5)
    with pytest.raises(TargetError, match="single input"):
        uf.run(attacks.fgsm(), Cramped(net, 0, out_of_memory), x, y, uf.linf(0.05))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        uf.run(
            attacks.fgsm(),
            Cramped(net, 2, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied")),
            x,
            y,
            uf.linf(0.05),
        )


# ---- query budgets


@pytest.mark.parametrize("attack", ["fgsm()", "pgd(steps=4, restarts=3)", "apgd(steps=6)", "square(queries=50)"])
@pytest.mark.parametrize("queries", [*range(1, 12), 30])
def test_a_query_budget_is_never_exceeded(attack: str, queries: int) -> None:
    net, x, y = small_case(6)
    for eps in (0.001, 0.03, 0.2):
        spy = Spy(net)
        out = uf.run([attack, attack], spy, x, y, uf.linf(eps), queries=queries)
        assert (out.forward <= queries).all() and spy.forward_rows <= queries * len(x)
        assert out.forward.sum() + out.padding[0] == spy.forward_rows
    alone = Spy(net)
    uf.run(attack, alone, x[:1], y[:1], uf.linf(0.001), queries=queries)
    assert alone.forward_rows <= queries


def test_a_budget_is_used_and_cuts_a_long_attack() -> None:
    net, x, y = small_case(6)
    out = uf.run("square(queries=5000)", net, x, y, uf.linf(1e-4), queries=40)
    assert (out.forward == 38).all()  # two stay for a last look and a re-check
    assert uf.run("fgsm()", net, x, y, uf.linf(0.3), queries=4).success.any()


def test_refused_successes_do_not_overdraw_the_budget() -> None:
    """A success that the re-check refuses has cost one query more than a step; a last iterate costs one as well."""

    class WithLast(AlwaysWins):
        def last(self, p: Problem, s: Count) -> Any:
            return p.x0

    flaky = Flaky(step_target())
    x, y = scripted_inputs(0)
    for attack in (AlwaysWins(length=8), WithLast(length=8), WithLast(length=1)):
        for queries in range(1, 22):
            flaky.calls = 0
            spy = Spy(flaky)
            out = uf.run(attack, spy, x, y, uf.linf(0.3), queries=queries)
            assert spy.forward_rows <= queries and out.forward[0] <= queries and not out.success.any()


def test_zero_queries_is_refused() -> None:
    net, x, y = small_case(2)
    with pytest.raises(uf.InputError, match="queries must be at least 1"):
        uf.run("fgsm()", net, x, y, uf.linf(0.1), queries=0)


# ---- what does not count


class Flaky(nn.Module):
    """Lets its network answer every second call, the attack's; the first look and the re-checks hear class 0."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x) if self.calls % 2 == 0 else torch.tensor([[1.0, 0.0]]).expand(len(x), 2)


@dataclass(frozen=True, repr=False)
class AlwaysWins(Scripted):
    def step(self, p: Problem, s: Count) -> tuple[Count, Trial]:
        assert isinstance(p.x0, Tensor)
        return replace(s, t=s.t + 1), Trial(p.x0 + self.by, p.oracle.scores(p.x0 + self.by))


def test_an_answer_that_does_not_repeat_does_not_count_and_the_attack_ends() -> None:
    x, y = scripted_inputs(0)
    out = uf.run(AlwaysWins(length=4), Flaky(step_target()), x, y, uf.linf(0.3))
    assert out.status == [Status.SURVIVED] and out.vanished == 4
    assert isinstance(out.x_adv, Tensor) and torch.equal(out.x_adv, x)


def test_nan_scores_are_invalid_never_broken() -> None:
    class Undefined(Linear):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            return torch.where((x[:, :1] < 0.3) | (x[:, :1] > 0.55), torch.nan, z)

    net = Undefined(step_target().weight.detach(), step_target().bias.detach())
    x = torch.tensor([[0.2, 0.5], [0.5, 0.5]])
    y = torch.zeros(2, dtype=torch.int64)
    for attack in ("pgd(steps=5)", "apgd(steps=8)", "square(queries=30)"):
        out = uf.run(attack, net, x, y, uf.linf(0.3))
        assert out.status == [Status.INVALID, Status.SURVIVED] and not out.success.any()
        assert out.attacks[0].attempted == 1 and out.attacks[0].robust_accuracy_after == 1.0


def test_infinite_scores_do_not_win() -> None:
    class Overflowing(Linear):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            return torch.where(x[:, :1] > 0.55, torch.tensor([0.0, torch.inf]), z)

    net = Overflowing(step_target().weight.detach(), step_target().bias.detach())
    out = uf.run("pgd(steps=5)", net, torch.tensor([[0.5, 0.5]]), torch.zeros(1, dtype=torch.int64), uf.linf(0.08))
    assert out.status == [Status.SURVIVED]


def test_ties_are_neither_successes_nor_mistakes() -> None:
    class Tied(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([torch.zeros(len(x)), (x[:, 0] - 0.6).clamp(max=0)], 1)  # never above 0

    x, y = torch.tensor([[0.5, 0.5], [0.8, 0.5]]), torch.zeros(2, dtype=torch.int64)
    for access in (uf.Access.SCORES, uf.Access.GRADIENT):
        out = uf.run(["pgd(steps=5)", "square(queries=20)"], Tied(), x, y, uf.linf(0.3), access=access)
        assert out.status == [Status.SURVIVED, Status.SURVIVED] and out.label_clean.tolist() == [0, 0]
    assert uf.run([], Tied(), x, y, uf.linf(0.3), access=uf.Access.LABEL).status == [Status.SURVIVED] * 2


def test_a_tie_on_the_way_does_not_end_the_search() -> None:
    class TieFirst(Scripted):
        def step(self, p: Problem, s: Count) -> tuple[Count, Trial]:
            assert isinstance(p.x0, Tensor)
            x = p.x0.clone()
            x[:, 0] = torch.tensor([0.5, 0.6, 0.6, 0.7, 0.8])[s.t.clamp(max=4)]
            return replace(s, t=s.t + 1), Trial(x, p.oracle.scores(x))

    x, y = scripted_inputs(0)
    out = uf.run(TieFirst(length=5), step_target(), x, y, uf.linf(0.3))
    assert out.success.all() and out.steps.tolist() == [4] and out.vanished == 0


def test_margins_within_rounding_do_not_count() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = torch.full((len(x), 2), 1000.0)
            z[:, 1] += torch.where(x[:, 0] > 0.6, 1e-4, -1.0)  # one unit in the last place of float32 is 6e-5
            return z + 0 * x.sum()

    x, y = scripted_inputs(2)
    assert uf.run(Scripted(), Noisy(), x, y, uf.linf(0.3)).status == [Status.SURVIVED]
    assert uf.run(Scripted(), lambda v: Noisy()(v).double(), x, y, uf.linf(0.3)).vanished == 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_target_that_is_fooled_only_outside_the_ball_is_not_broken(norm: str) -> None:
    net, x, y = small_case(8)
    origin = x.clone()

    class Moat(nn.Module):
        def forward(self, v: Tensor) -> Tensor:
            far = (torch.cdist(v, origin, p={"linf": math.inf, "l2": 2.0, "l1": 1.0}[norm]).amin(1) > 0.1001).float()
            z = torch.zeros(len(v), 4)
            near = torch.cdist(v, origin).argmin(1)
            return z.scatter(1, y[near].view(-1, 1), 1.0) + 9 * far.view(-1, 1) * net(v).roll(1, 1) + 0 * v.sum()

    out = uf.run(
        ["pgd(steps=8)", "apgd(steps=10)", "square(queries=50)"], Moat(), x, y, uf.Ball(uf.norms.NORMS[norm], 0.1)
    )
    assert not out.success.any() and out.vanished == 0
    wide = Scripted(by=0.15)  # shows a point outside and says it is inside
    x2, y2 = scripted_inputs(2)
    assert uf.run(wide, step_target(), x2, y2, uf.linf(0.09)).status == [Status.SURVIVED]
    assert uf.run(wide, step_target(), x2, y2, uf.linf(0.16)).status == [Status.BROKEN]


def test_points_outside_the_set_are_left_out_where_an_attack_says_it_shows_some() -> None:
    class Outside(Scripted):
        inside = False

    x, y = scripted_inputs(2, 2)
    out = uf.run(Outside(by=0.15), step_target(), x, y, uf.linf(0.09))
    assert out.vanished == 0 and not out.success.any()


# ---- goals


def test_a_targeted_goal_counts_the_wanted_class_alone() -> None:
    net, x, y = small_case(30)
    to = (y + 1) % 4
    for recipe in (
        "apgd(steps=20)",
        "pgd(steps=15, loss='margin')",
        "apgd(steps=20, loss='dlr')",
        "square(queries=150)",
    ):
        out = uf.run(recipe, net, x, y, uf.linf(0.15), goal=uf.Targeted(to=to))
        assert isinstance(out.x_adv, Tensor) and out.success.any()
        with torch.no_grad():
            assert (net(out.x_adv).argmax(1)[out.success] == to[out.success]).all()
        assert out.label[out.success].tolist() == to[out.success].tolist()
        free = uf.run(recipe, net, x, y, uf.linf(0.15))
        assert free.success.sum() >= out.success.sum()


def test_goals_as_a_number_a_list_and_least_likely() -> None:
    net, x, y = small_case(30)
    with torch.no_grad():
        least = net(x).argmin(1)
    named = uf.run("apgd(steps=20)", net, x, y, uf.linf(0.4), goal=uf.Targeted(to="least_likely"))
    listed = uf.run("apgd(steps=20)", net, x, y, uf.linf(0.4), goal=uf.Targeted(to=least))
    assert_same(named, listed)
    assert named.success.any() and (named.label[named.success] == least[named.success]).all()
    single = uf.run("apgd(steps=20)", net, x, y, uf.linf(0.4), goal=uf.Targeted(to=2))
    assert [s == "skipped" for s in single.status] == (y == 2).tolist()
    assert (single.forward[(y == 2).numpy()] == 1).all()


def test_wrong_examples_are_no_part_of_a_targeted_goal() -> None:
    net, x, y = small_case(12)
    wrong = y.clone()
    wrong[:3] = (y[:3] + 1) % 4
    out = uf.run("apgd(steps=5)", net, x, wrong, uf.linf(0.01), goal=uf.Targeted(to=(wrong + 2) % 4))
    assert out.status[:3] == [Status.MISCLASSIFIED] * 3 and Status.MISCLASSIFIED not in out.status[3:]


@pytest.mark.parametrize(
    ("to", "message"),
    [
        (4, "outside 0..3"),
        (-1, "outside 0..3"),
        (torch.zeros(3, dtype=torch.int64), "one class per example"),
        ("most_likely", "least_likely"),
    ],
)
def test_goals_that_do_not_fit_are_refused(to: Any, message: str) -> None:
    net, x, y = small_case(5)
    with pytest.raises(uf.InputError, match=message):
        uf.run("fgsm()", net, x, y, uf.linf(0.1), goal=uf.Targeted(to=to))


def least_change(target: Linear, x: Tensor, to: int, norm: str) -> float:
    """Return the exact distance at which `to` beats every class inside the box, by linear programming."""
    w, b = target.weight.detach().double().numpy(), target.bias.detach().double().numpy()
    row = x.double().numpy()
    m, others = len(row), [j for j in range(len(w)) if j != to]
    c = w[to] - w[others]  # c d >= -(c x + b): wins against every other class
    need = -(c @ row + b[to] - b[others])
    one, zero = np.eye(m), np.zeros((m, 1))
    if norm == "linf":  # minimise r with -r <= d <= r
        cost = np.r_[np.zeros(m), 1]
        a = np.vstack([np.hstack([-c, np.zeros((len(c), 1))]), np.hstack([one, zero - 1]), np.hstack([-one, zero - 1])])
        limits = np.r_[-need, np.zeros(2 * m)]
        box = [(-v, 1 - v) for v in row] + [(0, None)]
    else:
        cost = np.ones(2 * m)
        a, limits = np.hstack([-c, c]), -need
        box = [(0, 1 - v) for v in row] + [(0, v) for v in row]
    return float(linprog(cost, A_ub=a, b_ub=limits, bounds=box).fun)


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_a_targeted_goal_is_found_near_the_least_change_and_never_below(norm: str, loss: str) -> None:
    """A linear target of five classes: towards the goal all the others must be beaten, not the label alone."""
    target = Linear.random((16,), 5, seed=3)
    x = torch.rand(24, 16, generator=torch.Generator().manual_seed(5)) * 0.6 + 0.2
    y = target(x).argmax(1)
    for to in (0, 3):
        exact = np.array([least_change(target, row, to, norm) for row in x])
        rows = np.flatnonzero((y != to).numpy() & (exact < 2))
        near = rows[np.argsort(exact[rows])[: len(rows) // 2]]
        eps = float(exact[near].max())
        out = uf.run(f"apgd(steps=100, loss='{loss}')", target, x, y, uf.Ball(uf.norms.NORMS[norm], eps),
                     goal=uf.Targeted(to=to))  # fmt: skip
        assert not out.success.numpy()[rows[exact[rows] > eps * 1.0001]].any(), "found below the least change"
        sure = rows[exact[rows] < eps / 1.1]
        assert len(sure) >= 5 and out.success.numpy()[sure].all(), f"{out.success.numpy()[sure].mean():.0%} found"


# ---- minimum change


@dataclass(frozen=True, repr=False)
class Shrinking(Scripted):
    """Shows ever smaller changes, and from step 4 on a larger one again; the smallest success is at step 3."""

    def unfit(self, x: Any, threat: Any, classes: int) -> str:
        return ""

    def step(self, p: Problem, s: Count) -> tuple[Count, Trial]:
        assert isinstance(p.x0, Tensor)
        size = torch.tensor([0.4, 0.3, 0.15, 0.05, 0.25, 0.02])[s.t.clamp(max=5)] - 0.02 * (s.restart == 1)
        x = p.x0 + size.view(-1, 1) * torch.tensor([1.0, 0.0])
        return replace(s, t=s.t + 1), Trial(x, p.oracle.scores(x))


def test_without_eps_the_smallest_success_counts_over_all_restarts() -> None:
    x, y = scripted_inputs(1, 2)
    once = uf.run(Shrinking(), step_target(), x, y, uf.l2())
    assert once.success.all() and torch.allclose(once.distance, torch.tensor(0.15).double(), atol=1e-6)
    thrice = uf.run(Shrinking(tries=3), step_target(), x, y, uf.l2())
    assert torch.allclose(thrice.distance, torch.tensor(0.13).double(), atol=1e-6)
    assert (thrice.forward == 1 + 3 * 6 + 3).all()


def test_without_eps_attacks_that_need_one_say_so() -> None:
    net, x, y = small_case(3)
    with pytest.raises(uf.InputError, match="needs a finite eps"):
        uf.run("pgd()", net, x, y, uf.linf())


# ---- time and Ctrl-C


def test_after_the_deadline_no_row_is_run_and_none_is_called_robust() -> None:
    net, x, y = small_case()
    spy = Spy(net)
    out = uf.run(["pgd(steps=5)", "square(queries=9)"], spy, x, y, uf.linf(0.05), deadline=time.monotonic() - 1)
    assert set(out.status) == {Status.NOT_RUN} and spy.forward_rows == len(x)
    assert [r.attempted for r in out.attacks] == [0, 0]


class Until(nn.Module):
    """Calls `stop` at the given forward call."""

    def __init__(self, net: nn.Module, call: int, stop: Callable[[], Any]) -> None:
        super().__init__()
        self.net, self.call, self.stop, self.calls = net, call, stop, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.call:
            self.stop()
        return self.net(x)


def test_a_deadline_in_the_middle_keeps_what_was_found() -> None:
    x, y = scripted_inputs(1, 0, 2, 0, 6, 0)
    full = uf.run(Scripted(), step_target(), x, y, uf.linf(0.3), batch_size=3)
    soon = time.monotonic() + 0.3
    slow = Until(step_target(), 7, lambda: time.sleep(0.4))
    out = uf.run(Scripted(), slow, x, y, uf.linf(0.3), batch_size=3, deadline=soon)
    assert Status.NOT_RUN in out.status and Status.BROKEN in out.status
    for before, after in zip(full.status, out.status, strict=True):
        assert after in (before, Status.NOT_RUN)


@pytest.mark.usefixtures("lazy")
def test_a_deadline_keeps_successes_that_nobody_had_looked_at_yet() -> None:
    x, y = scripted_inputs(1, 0)
    slow = Until(step_target(), 3, lambda: time.sleep(0.3))
    out = uf.run(Scripted(length=30), slow, x, y, uf.linf(0.3), deadline=time.monotonic() + 0.2)
    assert out.status == [Status.BROKEN, Status.NOT_RUN] and out.steps.tolist() == [1, -1]


def test_a_deadline_keeps_the_smallest_change_so_far() -> None:
    x, y = scripted_inputs(1)
    slow = Until(step_target(), 4, lambda: time.sleep(0.3))
    out = uf.run(Shrinking(), slow, x, y, uf.l2(), deadline=time.monotonic() + 0.2)
    assert out.success.all() and abs(float(out.distance[0]) - 0.15) < 1e-6


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("call", [4, 5, 9])
def test_ctrl_c_returns_what_was_found(call: int) -> None:
    x, y = scripted_inputs(1, 0, 2, 0, 6, 0)
    net = Until(step_target(), call, interrupt)
    out = uf.run([Scripted(), Scripted()], net, x, y, uf.linf(0.3), batch_size=2, salvage=True)
    assert out.interrupted and len(out.status) == 6
    assert set(out.status) <= {Status.BROKEN, Status.NOT_RUN}
    assert len(out.attacks) == 1
    assert sum(r.broken for r in out.attacks) == int(out.success.sum())
    assert isinstance(out.x_adv, Tensor)
    lost = ~out.success
    assert torch.equal(out.x_adv[lost], x[lost]) and (call < 9 or out.success.any())
    with pytest.raises(KeyboardInterrupt):
        uf.run(Scripted(), Until(step_target(), call, interrupt), x, y, uf.linf(0.3), batch_size=2)


def test_ctrl_c_before_anything_is_known_is_ctrl_c() -> None:
    x, y = scripted_inputs(1, 0)
    with pytest.raises(KeyboardInterrupt):
        uf.run(Scripted(), Until(step_target(), 1, interrupt), x, y, uf.linf(0.3), salvage=True)


def test_progress_tells_of_every_attack_and_ends_complete() -> None:
    net, x, y = small_case(20)
    told: list[Any] = []
    out = uf.run(["fgsm()", "pgd(steps=4)"], net, x, y, uf.linf(0.05), progress=told.append)
    assert [p.attack for p in told if p.done == p.total] == ["fgsm()", "pgd(steps=4)"]
    assert told[-1].robust == out.status.count(Status.SURVIVED) / 20
    assert all(0 <= p.done <= p.total and p.seconds >= 0 for p in told)
    assert told[-1].forward == out.forward.sum() + out.padding[0]


# ---- all of it together

MIXED = ("fgsm()", "pgd(steps=3,restarts=3)", "apgd(steps=7)", "apgd_targeted(steps=4,targets=3)", "square(queries=13)",
         "pgd_targeted(steps=3,start='warm')", "apgd(steps=5,restarts=2,start='warm',loss='dlr')")  # fmt: skip


@pytest.mark.parametrize("part", range(4))
def test_no_setting_changes_what_another_one_promises(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any cascade, goal, budget, width, memory and way of looking: equal results, exact ledger, budget kept."""

    class Seldom(Engine):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.lazy = True

    pick = random.Random(part).choice
    for _ in range(25):
        net, x, y = small_case(pick([1, 2, 5, 13]))
        cascade = [pick(MIXED) for _ in range(pick([1, 1, 2, 3]))]
        threat = pick([uf.linf, uf.l2])(pick([0.0, 0.01, 0.06, 0.3]))
        queries, cap, late = pick([None, None, 1, 2, 3, 5, 9, 17]), pick([None, None, 1, 3, 7]), pick([True, False])
        settings = {"goal": pick([None, uf.Targeted(to=2)]), "queries": queries, "seed": pick([0, 1])}
        expected = uf.run(cascade, net, x, y, threat, batch_size=64, **settings)
        spy = Spy(net)
        target = spy if cap is None else Cramped(spy, cap, out_of_memory, backward=late)
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "Engine", pick([Engine, Seldom]))
            out = uf.run(cascade, target, x, y, threat, batch_size=pick([1, 2, 3, 8, "auto"]), **settings)
        assert queries is None or (out.forward <= queries).all()
        if cap is None or queries is None:  # what starts again for want of memory has spent queries
            assert_same(expected, out, (*ROWS, "forward", "backward") if cap is None else ROWS)
        if cap is None or late:
            assert out.forward.sum() + out.padding[0] + out.overrun[0] == spy.forward_rows
        if cap is None or not late:
            assert out.backward.sum() + out.padding[1] + out.overrun[1] == spy.backward_rows


# ---- targets and inputs with habits


class Writing(nn.Module):
    """Normalises its input in place."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.sub_(0.1).div_(0.9))


@pytest.mark.parametrize("attack", ["pgd(steps=5)", "square(queries=20)", "apgd(steps=6)"])
def test_a_target_that_writes_into_its_input_harms_nobody(attack: str) -> None:
    net, x, y = small_case()
    before = x.clone()
    polite = uf.run(attack, lambda v: net((v - 0.1) / 0.9), x, y, uf.linf(0.05))
    rude = uf.run(attack, Writing(net), x, y, uf.linf(0.05))
    assert torch.equal(x, before), "the caller's images changed"
    assert polite.status == rude.status
    assert isinstance(polite.x_adv, Tensor) and isinstance(rude.x_adv, Tensor)
    assert torch.allclose(polite.x_adv, rude.x_adv, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter(mode: Any) -> None:
    net, x, y = small_case()
    plain = uf.run("pgd(steps=5)", net, x, y, uf.linf(0.05))
    with mode():
        inside = uf.run("pgd(steps=5)", net, x.clone(), y.clone(), uf.linf(0.05))
        flags = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    assert flags == {torch.no_grad: (False, False), torch.inference_mode: (False, True)}.get(mode, (True, False))
    assert_same(plain, inside)
    uf.run("pgd(steps=5)", net, inside.x_adv, y, uf.linf(0.05))


def test_inputs_that_share_memory_or_carry_gradients() -> None:
    net, x, y = small_case(1)
    many = x.expand(6, -1)
    out = uf.run("pgd(steps=5)", net, many, y.expand(6), uf.linf(0.05), ids=range(6))
    assert isinstance(out.x_adv, Tensor) and out.x_adv.is_contiguous()
    wide = torch.rand(4, 24)[:, ::2]
    assert not wide.is_contiguous()
    labels = net(wide).argmax(1)
    assert_same(
        uf.run("pgd()", net, wide, labels, uf.l1(0.5)), uf.run("pgd()", net, wide.contiguous(), labels, uf.l1(0.5))
    )
    leaf = wide.clone().requires_grad_(True)
    run = uf.run("pgd(steps=3)", net, leaf, labels, uf.linf(0.05))
    assert leaf.grad is None and isinstance(run.x_adv, Tensor) and not run.x_adv.requires_grad


def test_equal_examples_have_equal_luck_unless_ids_differ() -> None:
    net, x, y = small_case(1)
    pair, labels = x.expand(2, -1), y.expand(2)
    same = uf.run("pgd(steps=3)", net, pair, labels, uf.linf(0.5))
    assert isinstance(same.x_adv, Tensor) and torch.equal(same.x_adv[0], same.x_adv[1])
    other = uf.run("pgd(steps=3)", net, pair, labels, uf.linf(0.5), ids=[1, 2])
    assert isinstance(other.x_adv, Tensor) and not torch.equal(other.x_adv[0], other.x_adv[1])


def test_no_examples_is_no_error_of_the_engine() -> None:
    net, x, y = small_case(3)
    out = uf.run(["pgd(steps=3)", "square(queries=9)"], net, x[:0], y[:0], uf.linf(0.1))
    assert out.status == [] and isinstance(out.x_adv, Tensor) and out.x_adv.shape == (0, 12)


def test_double_targets_are_not_read_in_single() -> None:
    """A margin of 1e-10 is a margin."""

    class Close(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.one + 1e-10 * (0.6 - x[:, 0]), self.one.expand(len(x))], 1)

    x, y = scripted_inputs(2, 0)
    out = uf.run(Scripted(), Close(), x, y, uf.linf(0.3))
    assert out.status == [Status.BROKEN, Status.SURVIVED]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(3, 12), torch.zeros(3, 1, dtype=torch.int64), "integer labels of shape"),
        (torch.rand(3, 12), torch.zeros(3), "integer labels of shape"),
        (torch.rand(3, 12), torch.tensor([0, 4, 1]), "Label 4 is outside 0..3 \\(sample 1\\)"),
        (torch.rand(3, 12), torch.tensor([0, -1, 1]), "Label -1 is outside"),
        (torch.rand(3, 12) * 2, torch.zeros(3, dtype=torch.int64), "bounds are"),
        (torch.full((3, 12), torch.nan), torch.zeros(3, dtype=torch.int64), "Sample 0 contains 12 values"),
        ((torch.rand(3, 12) * 255).byte(), torch.zeros(3, dtype=torch.int64), "floating-point"),
        ([[0.1] * 12] * 3, torch.zeros(3, dtype=torch.int64), "tensors"),
    ],
)
def test_bad_inputs_are_sentences(x: Any, y: Tensor, message: str) -> None:
    with pytest.raises(uf.InputError, match=message):
        uf.run("fgsm()", small_case()[0], x, y, uf.linf(0.1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"ids": [1, 2]}, "ids has shape"), ({"batch_size": 0}, "batch_size"), ({"batch_size": "large"}, "batch_size")],
)
def test_bad_settings_are_sentences(settings: dict[str, Any], message: str) -> None:
    net, x, y = small_case(3)
    with pytest.raises(uf.InputError, match=message):
        uf.run("fgsm()", net, x, y, uf.linf(0.1), **settings)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda x: None, "returns a NoneType"),
        (lambda x: x[None], "expected floating-point scores"),
        (lambda x: x.sum(), "expected floating-point scores"),
        (lambda x: x.argmax(1), "expected floating-point scores"),
        (lambda x: x[:-1], "expected floating-point scores"),
        (lambda x: {"one": x, "two": x}, "returns a dict .* name its part with output="),
    ],
)
def test_outputs_that_are_no_scores_are_sentences(module: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        uf.run("fgsm()", module, torch.rand(3, 12), torch.zeros(3, dtype=torch.int64), uf.linf(0.1))


@pytest.mark.parametrize(
    "text",
    ["", "pgd(", "pgd(steps=0)", "pgd(steps=-3)", "pgd(steps=2.5)", "pgd(steps='x')", "pgd(loss='crossentropy')",
     "pgd(loss=3)", "pgd(start='north')", "pgd(step_size=0)", "pgd(step_size='x')", "pgd(step_size=float('nan'))",
     "pgd(stepz=3)", "pdg()",
     "mi_fgsm(steps=0)", "mi_fgsm(decay='x')", "bim(step_size=-1)", "pixel_gradient(step_size=0)",
     "square(queries=0)", "square(queries=2.5)", "square(p_init=2)", "apgd(restarts=0)", "apgd_targeted(targets=0)",
     "apgd_targeted(targets=1.5)", "pgd(schedule='x')", "__import__('os').getcwd()", "pgd(steps=(lambda: 3)())",
     "apgd(1, 2, 3, 4, 5, 6, 7)", "pgd(steps=1e400)"],
)  # fmt: skip
def test_texts_that_are_no_attack_are_sentences(text: str) -> None:
    with pytest.raises(uf.InputError):
        attacks.parse(text)


def test_texts_name_recipes_without_further_imports() -> None:
    code = (
        "import torch, unfooled as uf; x, y = torch.rand(2, 3), torch.zeros(2, dtype=torch.int64);"
        "uf.run('fgsm()', lambda v: v, x, y, uf.linf(0.1))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- the door for training


@pytest.mark.parametrize("recipe", ["fgsm()", "pgd(steps=4)", "apgd(steps=6)", "pgd(steps=4, start='warm')"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_last_iterate_is_the_attack_without_early_stops(recipe: str, norm: str) -> None:
    net, x, y = small_case()
    threat = uf.Ball(uf.norms.NORMS[norm], 0.05)
    attack = attacks.parse(recipe)
    net.train()
    spy = Spy(net)
    out = uf.last_iterate(attack, spy, x, y, threat, seed=3)
    assert net.training and spy.backward_rows == attack.steps * len(x)
    assert out.shape == x.shape and bool(threat.contains(out, x).all())
    assert not out.requires_grad and all(p.grad is None for p in net.parameters())
    again = uf.last_iterate(attack, net, x.flip(0), y.flip(0), threat, seed=3, ids=np.arange(len(x))[::-1].copy())
    assert torch.equal(out, again.flip(0))
    if "start" not in recipe and "fgsm" not in recipe:
        other = uf.last_iterate(attack, net, x, y, threat, seed=3, step=1)
        assert not torch.equal(out, other), "every training step has its own luck"
    with torch.no_grad():
        assert (net(out).argmax(1) == y).float().mean() < 1


@pytest.mark.parametrize(
    ("recipe", "threat", "message"),
    [
        ("pgd()", uf.linf(), "finite eps"),
        ("pgd()", uf.l0(3), "L0"),
        ("apgd_targeted()", uf.linf(0.1), "clean scores"),
    ],
)
def test_last_iterate_refuses_what_does_not_apply(recipe: str, threat: uf.Ball, message: str) -> None:
    net, x, y = small_case(3)
    with pytest.raises(uf.InputError, match=message):
        uf.last_iterate(attacks.parse(recipe), net, x, y, threat)


def test_the_default_dtype_does_not_matter() -> None:
    net, x, y = small_case()
    plain = [uf.run(a, net, x, y, uf.linf(0.05)) for a in ("apgd(steps=6)", "square(queries=9)")]
    torch.set_default_dtype(torch.float64)
    try:
        wide = [uf.run(a, net, x, y, uf.linf(0.05)) for a in ("apgd(steps=6)", "square(queries=9)")]
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(plain, wide, strict=True):
        assert_same(a, b)


def test_an_answer_that_a_detector_rejects_is_no_success() -> None:
    from unfooled.core.goal import advantage

    scores, y = torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.zeros(2, dtype=torch.int64)
    answer = Answer(scores, scores.argmax(1), accepted=torch.tensor([True, False]))
    assert (advantage(answer, y, None) > 0).tolist() == [True, False]
    assert (advantage(Answer(None, scores.argmax(1), torch.tensor([True, False])), y, None) > 0).tolist() == [
        True,
        False,
    ]


def test_linear_distances_agree_with_linear_programming() -> None:
    target = Linear.random((9,), 3, seed=7)
    x = torch.rand(6, 9)
    y = target(x).argmax(1)
    for norm in ("linf", "l1"):
        for i in range(6):
            mine = min(linear_distance(target, x[i : i + 1], y[i : i + 1], norm)[0], np.inf)
            theirs = min(least_change(Pair(target, int(y[i]), j), x[i], 1, norm) for j in range(3) if j != int(y[i]))
            assert mine == pytest.approx(theirs, rel=1e-6)


def Pair(target: Linear, own: int, other: int) -> Linear:
    """Return the target with two of its classes alone."""
    keep = [own, other]
    return Linear(target.weight.detach()[keep], target.bias.detach()[keep])
