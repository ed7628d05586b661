"""Mutants of the attack core, and the checks that must see them.

A mutant is a small lie, put in by monkeypatch; a check is a function that raises AssertionError when something is
wrong. `MUTANTS` says for every mutant which checks fail on it; on the unmutated code all checks pass.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled import losses
from unfooled.attacks import SUITES, apgd, apgd_targeted, parts, pgd, pgd_targeted, square
from unfooled.core import engine as engine_module
from unfooled.core.engine import Engine
from unfooled.core.oracle import Answer, Oracle
from unfooled.norms import NORMS
from unfooled.testing import Linear, reference_project

from . import milp, test_contract
from .test_contract import Case, RowNet
from .test_instruments import SIZES, assert_nothing_counts

# ---- the checks


@functools.cache
def solved(name: str = "made-up 16-16-12-3", low: float = 0.03, high: float = 0.09) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with points of exact radius `low`, and their labels."""
    case = milp.solved()[name]
    return case.module(), *case.at(low, high)


def check_nothing_below_the_exact_radius() -> None:
    net, x, y = solved()
    for attack in (pgd(), apgd(steps=20), pgd_targeted(steps=10, targets=2), square(queries=60)):
        assert not uf.run(attack, net, x, y, uf.linf(0.999 * 0.03)).success.any(), f"{attack} went below the radius"


def check_found_just_above_the_exact_radius() -> None:
    net, x, y = solved()
    for attack, share in ((pgd(), 0.8), (apgd(steps=30), 0.8), (apgd_targeted(steps=30), 0.95)):
        found = uf.run(attack, net, x, y, uf.linf(1.02 * 0.03)).success.float().mean()
        assert found >= share, f"{attack} found {found:.0%}"
    assert uf.run(SUITES["standard"].attacks, net, x, y, uf.linf(1.02 * 0.03)).success.all()


def check_nothing_outside_counts() -> None:
    for norm in ("linf", "l2", "l1"):
        for attack in (pgd(steps=8), apgd(steps=8)):
            assert_nothing_counts(attack, norm, SIZES[norm][0], (0.0, 1.0))


class Sure(nn.Module):
    """A row network that is sure of class 0 wherever it looks, and keeps what it is shown."""

    def __init__(self, inputs: int = 12) -> None:
        super().__init__()
        self.net, self.seen = RowNet(inputs), []
        self.register_buffer("bias", torch.tensor([9.0, 0.0, 0.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.net(x) + self.bias


def points(n: int = 5, d: int = 12, seed: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, d, generator=torch.Generator().manual_seed(seed))
    x[::2] = (x[::2] * 1.6 - 0.3).clamp(0, 1)
    return x, torch.zeros(n, dtype=torch.int64)


def shown(attack: Any, net: Sure, norm: str = "linf", eps: float = 0.1, **kwargs: Any) -> tuple[uf.Run, list[Tensor]]:
    """Run the attack on `points`; return what the target saw after the first look, in order."""
    x, y = points()
    net.seen.clear()
    out = uf.run(attack, net, x, y, uf.Ball(NORMS[norm], eps), **kwargs)
    assert {str(s.value) for s in out.status} == {"survived"}
    return out, net.seen[1:]


def check_pgd_is_the_papers() -> None:
    """Madry et al. 2018, written again in float64, one row at a time: the same iterates, and as many."""
    for norm, eps in (("linf", 0.1), ("l2", 0.4)):
        net = Sure()
        _, seen = shown(pgd(steps=6, step_size=0.4, start="clean"), net, norm, eps)
        assert len(seen) == 7, f"{len(seen)} points instead of 7"
        exact = Sure().double()
        for i, start in enumerate(points()[0].double()):
            z = start
            for t in range(7):
                assert torch.allclose(seen[t][i].double(), z, atol=2e-6), f"{norm}: iterate {t} of row {i} differs"
                leaf = z[None].clone().requires_grad_(True)
                loss = nn.functional.cross_entropy(exact(leaf), torch.zeros(1, dtype=torch.int64))
                (g,) = torch.autograd.grad(loss, leaf)
                unit = g[0].sign() if norm == "linf" else g[0] / g[0].norm()
                moved = (z + 0.4 * eps * unit).numpy()
                z = torch.from_numpy(reference_project(norm, moved, start.numpy(), eps, (0.0, 1.0)))


def check_counts_are_exact() -> None:
    """Per row: the first look, `steps` gradients per restart, and the point that the last step made."""
    x, y = points()
    for attack, steps, tries in ((pgd(steps=6, restarts=2), 6, 2), (apgd(steps=5), 5, 1), (pgd(steps=1), 1, 1)):
        out = uf.run(attack, Sure(), x, y, uf.linf(0.1))
        assert (out.forward == 1 + tries * (steps + 1)).all(), f"{attack}: {out.forward}"
        assert (out.backward == tries * steps).all()


def check_a_row_alone_is_the_row_in_any_batch() -> None:
    test_contract.check_alone_as_in_any_batch(Case("apgd", "linf", apgd))


def check_every_row_and_restart_has_its_own_luck() -> None:
    x = torch.full((6, 12), 0.5)
    y = torch.zeros(6, dtype=torch.int64)
    starts = {}
    for seed in (0, 1):
        net = Sure()
        uf.run(pgd(steps=2, restarts=2), net, x, y, uf.linf(0.1), ids=range(6), seed=seed)
        rows = [s for s in net.seen[1:] if len(s) == 6]
        starts[seed] = torch.cat([rows[0], rows[3]])  # each restart: two steps and the look at the last iterate
        change = starts[seed] - 0.5
        assert bool((change.abs() <= 0.1 + 1e-6).all()) and bool((change.abs().amax(1) > 0.05).all())
        alike = torch.cdist(change, change) + torch.eye(12)
        assert bool((alike > 0.01).all()), "two rows or two restarts start alike"
        assert abs(float(change.mean())) < 0.02, "the starts do not lie about the original"
    assert not torch.equal(starts[0], starts[1]), "the seed does nothing"


def check_the_smallest_margin_is_told() -> None:
    net = Sure()
    for attack in (pgd(steps=6, step_size=1.7, restarts=2), apgd(steps=8)):
        out, seen = shown(attack, net)
        scores = torch.stack([Sure()(s) for s in seen if len(s) == 5])
        lowest = (scores[:, :, 0] - scores[:, :, 1:].amax(2)).amin(0).detach()
        assert torch.allclose(out.margin, lowest, atol=1e-5), "a better point was seen than the one that was kept"


def check_what_won_on_the_way_counts() -> None:
    test_contract.check_best_so_far()


def check_a_warm_start_is_the_best_point_so_far() -> None:
    net = Sure()
    first, seen = shown(pgd(steps=5, step_size=1.3), net, eps=0.5)
    scores = torch.stack([Sure()(s) for s in seen])
    best = (scores[:, :, 0] - scores[:, :, 1:].amax(2)).argmin(0)
    assert bool((best < len(seen) - 1).any()), "the last point is always the best: this shows nothing"
    _, again = shown([pgd(steps=5, step_size=1.3), apgd(steps=2, start="warm")], net, eps=0.5)
    warm = again[len(seen)]
    assert torch.allclose(warm, torch.stack([seen[b][i] for i, b in enumerate(best)]), atol=1e-6)
    assert first.attacks[0].attempted == 5


def check_a_tie_is_no_success() -> None:
    x, y = torch.full((4, 3), 0.5), torch.zeros(4, dtype=torch.int64)
    tie = Linear(torch.zeros(2, 3), torch.zeros(2))
    assert not uf.run(pgd(steps=3), tie, x, y, uf.linf(0.1)).success.any()
    assert not uf.run(square(queries=5), tie, x, y, uf.linf(0.1)).success.any()


class Holed(nn.Module):
    """Class 0 at 0.5; elsewhere an answer that is none."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        off = (x - 0.5).flatten(1).abs().sum(1, keepdim=True)
        sure = torch.cat([1 - 0 * off, off], 1)
        return torch.where(off > 0, torch.full_like(sure, self.value), sure)


def check_no_answer_is_no_success() -> None:
    x, y = torch.full((4, 3), 0.5), torch.zeros(4, dtype=torch.int64)
    for value in (float("nan"), float("inf")):
        for attack in (pgd(steps=3), square(queries=5)):
            out = uf.run(attack, Holed(value), x, y, uf.linf(0.1))
            assert not out.success.any() and torch.equal(out.x_adv, x), f"{value} counts as a success"


class Fickle(nn.Module):
    """Wrong where gradients are asked for, right where they are not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([0.0, -1.1]))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.linear(x)
        return scores if torch.is_grad_enabled() else scores - torch.tensor([0.0, 5.0])


def check_what_counts_was_looked_at_twice() -> None:
    x, y = torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    out = uf.run(pgd(steps=4), Fickle(), x, y, uf.linf(0.2))
    assert not out.success.any() and out.vanished >= 3


def check_a_ball_contains_what_is_inside() -> None:
    x = torch.full((1, 4), 0.5)
    for norm, eps in (("linf", 0.25), ("l2", 0.5), ("l1", 1.0)):
        ball = uf.Ball(NORMS[norm], eps)
        assert bool(ball.contains(x + 0.25, x)) and bool(ball.contains(x, x))
        for step in (0.2501, float("nan"), float("inf")):
            assert not bool(ball.contains(x + step, x)), f"{norm} contains a step of {step}"
        near = torch.tensor([[1.0, 0.5, 0.5, 0.5]])
        assert not bool(ball.contains(near + torch.tensor([[1e-4, 0, 0, 0]]), near)), "the box was left"


def check_points_shown_lie_in_ball_and_box() -> None:
    for norm in ("linf", "l2"):
        test_contract.check_inside_ball_and_box(Case("pgd", norm, pgd))


def check_found_above_the_closed_form() -> None:
    for norm in ("linf", "l2", "l1"):
        test_contract.check_found_above_the_distance(Case("apgd", norm, apgd))


def check_wrong_before_any_attack_is_told_apart() -> None:
    net, x, y = solved()
    y = y.clone()
    y[::4] = (y[::4] + 1) % 3
    out = uf.run(pgd(), net, x, y, uf.linf(1.3 * 0.03))
    wrong = torch.arange(len(y)) % 4 == 0
    assert [s == "misclassified" for s in out.status] == wrong.tolist()
    assert not bool((out.success & wrong).any()) and out.attacks[0].attempted == int((~wrong).sum())


def check_a_cascade_keeps_what_was_broken() -> None:
    net, x, y = solved()
    alone = uf.run(pgd(), net, x, y, uf.linf(1.01 * 0.03)).success
    both = uf.run([pgd(), square(queries=3)], net, x, y, uf.linf(1.01 * 0.03))
    assert bool(alone.any()) and not bool(alone.all())
    assert bool((both.success | ~alone).all()), "the second attack lost what the first one broke"
    assert both.attacks[1].attempted == int((~alone).sum()), "the second attack got other rows than those left"


def check_every_wrong_class_is_aimed_at() -> None:
    """Only the class ranked last at the clean input can be reached."""
    weight = torch.zeros(5, 4)
    weight[1, 0], weight[4, 1] = 0.2, 8.0
    target = Linear(weight, torch.tensor([2.0, 1.6, 1.5, 1.4, -3.55]))
    x, y = torch.full((4, 4), 0.5), torch.zeros(4, dtype=torch.int64)
    for attack in (pgd_targeted(targets=4), apgd_targeted(steps=10, targets=4)):
        out = uf.run(attack, target, x, y, uf.linf(0.2))
        assert out.success.all() and out.label.tolist() == [4] * 4


class Abstaining(nn.Module):
    """Answers near 0.5 alone: elsewhere class 1 leads, and the last score, that of no answer, leads more."""

    def forward(self, x: Tensor) -> Tensor:
        off = (x - 0.5).flatten(1).abs().sum(1)
        return torch.stack([1 - off, off * 10, off * 20], 1)


def check_what_is_rejected_is_no_success() -> None:
    x, y = torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    for attack in (pgd(steps=4), square(queries=6)):
        out = uf.run(attack, uf.Target(Abstaining(), reject="last"), x, y, uf.linf(0.2))
        assert not out.success.any()
        assert uf.run(attack, Abstaining(), x, y, uf.linf(0.2)).success.all()  # class 2 counts as any other


class Wavering(nn.Module):
    """Off 0.5 it answers wrongly in a share of its draws, which come one after another as in a list."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.calls = share, 0

    def forward(self, x: Tensor) -> Tensor:
        off = (x - 0.5).flatten(1).abs().sum(1)
        turn = (torch.arange(len(x)) + self.calls) % 20
        self.calls += len(x)
        wrong = (off > 0) & (turn < 20 * self.share)
        return torch.stack([torch.where(wrong, -1.0, 1.0) + 0 * off, 0.1 * off], 1)


def check_a_random_target_is_fooled_in_nearly_all_draws() -> None:
    x, y = torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    for share, fooled in ((0.6, False), (1.0, True)):
        target = uf.Target(Wavering(share))
        target.draws = 20
        out = uf.run(pgd(steps=4), target, x, y, uf.linf(0.2))
        assert out.success.tolist() == [fooled] * 3, f"wrong in {share:.0%} of the draws"


CHECKS: dict[str, Callable[[], None]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_") and inspect.isfunction(check)
}


# ---- the mutants


@dataclass(frozen=True)
class Mutant:
    """A lie that `put` puts in, and the names of the checks that must fail then."""

    name: str
    put: Callable[[pytest.MonkeyPatch], None]
    seen_by: tuple[str, ...]

    def __str__(self) -> str:
        return self.name.replace("_", " ")


MUTANTS: dict[str, Mutant] = {}
Put = Callable[[pytest.MonkeyPatch], None]


def mutant(*seen_by: str) -> Callable[[Put], Put]:
    def register(put: Put) -> Put:
        MUTANTS[put.__name__] = Mutant(put.__name__, put, seen_by)
        return put

    return register


def wrap(mp: pytest.MonkeyPatch, owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace owner.name by a function that gets the old one first."""
    old = getattr(owner, name)
    mp.setattr(owner, name, lambda *a, **k: around(old, *a, **k))


# geometry


@mutant("points_shown_lie_in_ball_and_box", "pgd_is_the_papers")
def no_projection(mp: pytest.MonkeyPatch) -> None:
    mp.setattr(uf.Ball, "project", lambda self, z, x, radius=None: z.clamp(*self.bounds))


@mutant("nothing_below_the_exact_radius", "nothing_outside_counts")
def no_projection_and_no_check(mp: pytest.MonkeyPatch) -> None:
    mp.setattr(uf.Ball, "project", lambda self, z, x, radius=None: z.clamp(*self.bounds))
    mp.setattr(uf.Ball, "settle", lambda self, z, x: z)
    mp.setattr(uf.Ball, "contains", lambda self, z, x: z.flatten(1).isfinite().all(1))


@mutant("nothing_outside_counts", "nothing_below_the_exact_radius", "pgd_is_the_papers")
def no_box(mp: pytest.MonkeyPatch) -> None:
    wide = (-1e9, 1e9)
    wrap(mp, uf.Ball, "project", lambda old, self, z, x, radius=None: old(replace(self, bounds=wide), z, x, radius))
    for name in ("settle", "contains"):
        wrap(mp, uf.Ball, name, lambda old, self, z, x: old(replace(self, bounds=wide), z, x))


@mutant("points_shown_lie_in_ball_and_box", "pgd_is_the_papers")
def no_box_in_the_projection(mp: pytest.MonkeyPatch) -> None:
    wide = (-1e9, 1e9)
    wrap(mp, uf.Ball, "project", lambda old, self, z, x, radius=None: old(replace(self, bounds=wide), z, x, radius))


def _wider(self: uf.Ball, factor: float) -> uf.Ball:
    return replace(self, eps=self.eps * factor)


@mutant("nothing_below_the_exact_radius", "nothing_outside_counts")
def eps_times_1_01(mp: pytest.MonkeyPatch) -> None:
    wrap(mp, uf.Ball, "project", lambda old, self, z, x, radius=None: old(_wider(self, 1.01), z, x, radius))
    for name in ("settle", "contains"):
        wrap(mp, uf.Ball, name, lambda old, self, z, x: old(_wider(self, 1.01), z, x))


@mutant("found_just_above_the_exact_radius", "pgd_is_the_papers")
def eps_times_0_97(mp: pytest.MonkeyPatch) -> None:
    wrap(mp, uf.Ball, "project", lambda old, self, z, x, radius=None: old(_wider(self, 0.97), z, x, radius))


@mutant("a_ball_contains_what_is_inside")
def contains_always_true(mp: pytest.MonkeyPatch) -> None:
    mp.setattr(uf.Ball, "contains", lambda self, z, x: torch.ones(len(x), dtype=torch.bool))


@mutant("a_ball_contains_what_is_inside")
def contains_lets_nan_pass(mp: pytest.MonkeyPatch) -> None:
    def contains(self: uf.Ball, z: Tensor, x: Tensor) -> Tensor:
        flat = z.flatten(1)
        out = ((flat < self.bounds[0]) | (flat > self.bounds[1])).any(1)
        return ~(out | (self.distance(z, x) > self.eps * (1 + 1e-6)))

    mp.setattr(uf.Ball, "contains", contains)


@mutant("nothing_outside_counts")
def rounding_is_not_settled(mp: pytest.MonkeyPatch) -> None:
    mp.setattr(uf.Ball, "settle", lambda self, z, x: z)


@mutant("found_just_above_the_exact_radius", "pgd_is_the_papers", "found_above_the_closed_form")
def flipped_sign(mp: pytest.MonkeyPatch) -> None:
    wrap(mp, uf.Ball, "steepest", lambda old, self, g, x: -old(self, g, x))


@mutant("pgd_is_the_papers")
def l2_steps_along_the_sign(mp: pytest.MonkeyPatch) -> None:
    mp.setattr(type(NORMS["l2"]), "steepest", lambda self, g: g.sign() / g[0].numel() ** 0.5)


# gradients and losses


@mutant("pgd_is_the_papers")
def stale_gradient(mp: pytest.MonkeyPatch) -> None:
    """A row gets the gradient of the point before."""

    def gradient(old: Any, self: Oracle, x: Tensor, loss: Any, **k: Any) -> Any:
        answer, value, grad = old(self, x, loss, **k)
        before = getattr(self, "before", None)
        self.before = grad  # type: ignore[attr-defined]
        return answer, value, grad if before is None or before.shape != grad.shape else before

    wrap(mp, Oracle, "gradient", gradient)


@mutant("pgd_is_the_papers")
def gradients_pile_up(mp: pytest.MonkeyPatch) -> None:
    """As without zero_grad()."""

    def gradient(old: Any, self: Oracle, x: Tensor, loss: Any, **k: Any) -> Any:
        answer, value, grad = old(self, x, loss, **k)
        before = getattr(self, "before", None)
        if before is not None and before.shape == grad.shape:
            grad = grad + before
        self.before = grad  # type: ignore[attr-defined]
        return answer, value, grad

    wrap(mp, Oracle, "gradient", gradient)


@mutant("a_row_alone_is_the_row_in_any_batch")
def mean_loss_of_the_batch(mp: pytest.MonkeyPatch) -> None:
    """APGD's steps then halve for all rows or for none."""

    def gradient(old: Any, self: Oracle, x: Tensor, loss: Any, **k: Any) -> Any:
        return old(self, x, lambda scores: loss(scores).mean().expand(len(x)), **k)

    wrap(mp, Oracle, "gradient", gradient)


@mutant("a_row_alone_is_the_row_in_any_batch", "pgd_is_the_papers")
def mean_gradient_of_the_batch(mp: pytest.MonkeyPatch) -> None:
    def gradient(old: Any, self: Oracle, x: Tensor, loss: Any, **k: Any) -> Any:
        answer, value, grad = old(self, x, loss, **k)
        return answer, value, grad.mean(0, keepdim=True).expand_as(grad).clone()

    wrap(mp, Oracle, "gradient", gradient)


@mutant("every_wrong_class_is_aimed_at", "found_just_above_the_exact_radius")
def targeted_losses_flee_the_target(mp: pytest.MonkeyPatch) -> None:
    for name in ("dlr_targeted", "difference"):
        wrap(mp, losses, name, lambda old, *a: -old(*a))


@mutant("every_wrong_class_is_aimed_at")
def all_restarts_aim_at_one_class(mp: pytest.MonkeyPatch) -> None:
    wrap(mp, parts.Aim, "wanted", lambda old, self, p: old(self, replace(p, restart=torch.zeros_like(p.restart))))


# steps, restarts, starts


@mutant("counts_are_exact", "pgd_is_the_papers")
def one_step_too_few(mp: pytest.MonkeyPatch) -> None:
    def spent(old: Any, self: Engine, attack: Any, slots: Any, **more: Any) -> np.ndarray:
        return old(self, attack, slots, **more) | (slots.live & (slots.t >= attack.steps - 1))

    wrap(mp, Engine, "_spent", spent)


@mutant("counts_are_exact")
def one_step_too_many(mp: pytest.MonkeyPatch) -> None:
    mp.setattr(Engine, "_spent", lambda self, attack, slots, **more: slots.live & (slots.t > attack.steps))


@mutant("counts_are_exact", "pgd_is_the_papers")
def the_last_point_is_not_looked_at(mp: pytest.MonkeyPatch) -> None:
    mp.setattr(Engine, "_look_at_last", lambda self, attack, slots, rows: None)


@mutant("every_row_and_restart_has_its_own_luck")
def shared_noise(mp: pytest.MonkeyPatch) -> None:
    wrap(mp, engine_module, "row_keys", lambda old, seed, ids, *a: old(seed, np.zeros_like(ids), *a))


@mutant("every_row_and_restart_has_its_own_luck", "a_row_alone_is_the_row_in_any_batch")
def noise_of_the_first_row(mp: pytest.MonkeyPatch) -> None:
    wrap(mp, engine_module, "row_keys", lambda old, seed, ids, *a: old(seed, ids, *a)[:1].repeat(len(ids)))


@mutant("a_row_alone_is_the_row_in_any_batch")
def noise_of_the_slot(mp: pytest.MonkeyPatch) -> None:
    wrap(mp, engine_module, "row_keys", lambda old, seed, ids, *a: old(seed, np.arange(len(ids)), *a))


@mutant("every_row_and_restart_has_its_own_luck")
def restarts_all_alike(mp: pytest.MonkeyPatch) -> None:
    wrap(mp, engine_module, "row_keys", lambda old, seed, ids, recipe, restart=0: old(seed, ids, recipe, 0))


@mutant("every_row_and_restart_has_its_own_luck")
def seed_ignored(mp: pytest.MonkeyPatch) -> None:
    wrap(mp, engine_module, "row_keys", lambda old, seed, *a: old(0, *a))


@mutant("every_row_and_restart_has_its_own_luck")
def random_start_ignored(mp: pytest.MonkeyPatch) -> None:
    wrap(mp, parts.Start, "point", lambda old, self, p: p.x0 if self.kind == "uniform" else old(self, p))


@mutant("every_row_and_restart_has_its_own_luck")
def random_start_in_one_orthant(mp: pytest.MonkeyPatch) -> None:
    wrap(mp, parts.Start, "point", lambda old, self, p: p.threat.project(p.x0 + (old(self, p) - p.x0).abs(), p.x0))


@mutant("a_warm_start_is_the_best_point_so_far")
def warm_start_ignored(mp: pytest.MonkeyPatch) -> None:
    wrap(mp, parts.Start, "point", lambda old, self, p: p.x0 if self.kind == "warm" else old(self, p))


# the engine's memory


@mutant("what_won_on_the_way_counts")
def last_iterate_only(mp: pytest.MonkeyPatch) -> None:
    def step(old: Any, self: Engine, attack: Any, slots: Any, jobs: Any) -> Any:
        last = slots.t.max() + 1 >= attack.steps
        kept = attack.step

        def blind(p: Any, s: Any) -> Any:
            state, trial = kept(p, s)
            return state, replace(trial, answer=_right(trial.answer, p.y))

        object.__setattr__(attack, "step", kept if last else blind)
        try:
            return old(self, attack, slots, jobs)
        finally:
            object.__delattr__(attack, "step")

    wrap(mp, Engine, "_step", step)


def _right(answer: Answer, y: Tensor) -> Answer:
    """An answer that names the label."""
    scores = None if answer.scores is None else nn.functional.one_hot(y, answer.scores.shape[1]).to(answer.scores)
    return replace(answer, scores=scores, label=y)


@mutant("the_smallest_margin_is_told", "a_warm_start_is_the_best_point_so_far")
def best_iterate_not_kept(mp: pytest.MonkeyPatch) -> None:
    """The newest point takes the place of the best."""

    def step(old: Any, self: Engine, attack: Any, slots: Any, jobs: Any) -> Any:
        slots.key = torch.full_like(slots.key, -torch.inf)
        return old(self, attack, slots, jobs)

    wrap(mp, Engine, "_step", step)


@mutant("what_counts_was_looked_at_twice")
def no_second_look(mp: pytest.MonkeyPatch) -> None:
    def recheck(self: Engine, attack: Any, slots: Any, index: np.ndarray) -> np.ndarray:
        self.pool.status[slots.example[index]] = uf.Status.BROKEN
        return np.ones(len(index), dtype=bool)

    mp.setattr(Engine, "_recheck", recheck)


@mutant("a_cascade_keeps_what_was_broken")
def every_attack_starts_afresh(mp: pytest.MonkeyPatch) -> None:
    """The last attack's rows stand for all."""

    def run(old: Any, self: Engine, attack: Any, todo: np.ndarray) -> int:
        self.pool.status[self.pool.status == uf.Status.BROKEN] = uf.Status.SURVIVED
        return old(self, attack, np.flatnonzero(self.pool.status == uf.Status.SURVIVED))

    wrap(mp, Engine, "run", run)


# what counts


def _advantage(mp: pytest.MonkeyPatch, change: Callable[[Tensor, Answer], Tensor]) -> None:
    wrap(mp, engine_module, "advantage", lambda old, answer, y, to: change(old(answer, y, to), answer))


@mutant("a_tie_is_no_success")
def ties_count(mp: pytest.MonkeyPatch) -> None:
    _advantage(mp, lambda lead, answer: torch.where(lead == 0, 1e-3, lead))


@mutant("no_answer_is_no_success")
def nan_counts(mp: pytest.MonkeyPatch) -> None:
    def change(lead: Tensor, answer: Answer) -> Tensor:
        assert answer.scores is not None
        return torch.where(answer.scores.isfinite().all(1), lead, 1.0)

    _advantage(mp, change)


@mutant("nothing_below_the_exact_radius")
def nearly_counts(mp: pytest.MonkeyPatch) -> None:
    """A margin of a twentieth of a logit is taken for none."""
    _advantage(mp, lambda lead, answer: lead + 0.05)


@mutant("wrong_before_any_attack_is_told_apart")
def clean_errors_count_as_broken(mp: pytest.MonkeyPatch) -> None:
    def look(old: Any, self: Engine, *a: Any, **k: Any) -> None:
        old(self, *a, **k)
        self.pool.status[self.pool.status == uf.Status.MISCLASSIFIED] = uf.Status.BROKEN

    wrap(mp, Engine, "look", look)


@mutant("wrong_before_any_attack_is_told_apart")
def clean_errors_are_attacked(mp: pytest.MonkeyPatch) -> None:
    def look(old: Any, self: Engine, *a: Any, **k: Any) -> None:
        old(self, *a, **k)
        self.pool.status[self.pool.status == uf.Status.MISCLASSIFIED] = uf.Status.SURVIVED

    wrap(mp, Engine, "look", look)


@mutant("what_is_rejected_is_no_success")
def rejected_answers_count(mp: pytest.MonkeyPatch) -> None:
    wrap(mp, engine_module, "advantage", lambda old, answer, *a: old(replace(answer, accepted=None), *a))


@mutant("a_random_target_is_fooled_in_nearly_all_draws")
def most_draws_are_enough(mp: pytest.MonkeyPatch) -> None:
    def advantage(old: Any, answer: Answer, *a: Any) -> Tensor:
        return old(answer, *a) + (0.0 if answer.votes is None else 0.4)

    wrap(mp, engine_module, "advantage", advantage)


@mutant("a_random_target_is_fooled_in_nearly_all_draws")
def a_random_target_is_never_fooled(mp: pytest.MonkeyPatch) -> None:
    def advantage(old: Any, answer: Answer, *a: Any) -> Tensor:
        return old(answer, *a) - (0.0 if answer.votes is None else 0.2)

    wrap(mp, engine_module, "advantage", advantage)
