"""What the shelf stands on: the jacobian at the door, frozen values, rows that finish early, curves of one run."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled.core.access import Access
from unfooled.core.attack import Attack, Problem, Trial
from unfooled.core.oracle import Oracle
from unfooled.testing import Linear, Spy


def test_the_jacobian_of_a_linear_target_is_its_weights() -> None:
    target = Linear.random((3, 4), 5, seed=1)
    spy = Spy(target)
    oracle = Oracle(uf.Target(spy), Access.GRADIENT)
    x, classes = torch.rand(6, 3, 4), torch.tensor([[0, 3], [4, 1]] * 3)
    answer, z, grads = oracle.jacobian(x, classes)
    assert torch.equal(z, answer.scores.gather(1, classes))  # type: ignore[union-attr]
    assert torch.allclose(grads, target.weight.detach()[classes].view(6, 2, 3, 4))
    assert (oracle.forward, oracle.backward) == (6, 12) == (spy.forward_rows, spy.backward_rows)
    _, top, _ = oracle.jacobian(x, lambda scores: scores.topk(2, dim=1).indices)
    assert torch.equal(top, answer.scores.topk(2, dim=1).values)  # type: ignore[union-attr]
    with pytest.raises(uf.AccessError):
        Oracle(uf.Target(spy), Access.SCORES).jacobian(x, classes)


def test_the_jacobian_survives_half_precision() -> None:
    net = nn.Linear(5, 3).bfloat16()
    _, z, grads = Oracle(uf.Target(net), Access.GRADIENT).jacobian(
        torch.rand(4, 5), torch.zeros(4, 1, dtype=torch.int64)
    )
    assert z.dtype == torch.float32
    assert torch.allclose(grads[:, 0], net.weight[0].float().expand(4, 5), rtol=1e-2)


MASK = torch.tensor([True, False, True, True, False, True])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_frozen_values_never_change(norm: str) -> None:
    ball = uf.Ball(uf.norms.NORMS[norm], 2.0 if norm == "l0" else 0.2, mask=MASK)
    x, far = torch.rand(50, 6), torch.rand(50, 6) * 3 - 1
    for z in (ball.project(far, x), ball.settle(far, x)):
        assert isinstance(z, Tensor) and torch.equal(z[:, ~MASK], x[:, ~MASK])
        assert ball.contains(z, x).all()
        free = uf.Ball(ball.norm, ball.eps).project(far[:, MASK], x[:, MASK])
        assert torch.allclose(z[:, MASK], free)  # the projection of what is free alone
    moved = x.clone()
    moved[:, 1] = (x[:, 1] + 0.01) % 1
    assert not ball.contains(moved, x).any()
    assert not ball.steepest(torch.ones(50, 6), x)[:, ~MASK].any()


@pytest.mark.parametrize("attack", ["pgd()", "apgd()", "square(queries=60)", "ray(queries=60)"])
def test_attacks_leave_frozen_values_alone(attack: str) -> None:
    target = Linear.random((6,), 3, seed=2)
    x = torch.rand(20, 6)
    y = target(x).argmax(1)
    out = uf.run(attack, target, x, y, uf.linf(0.3, mask=MASK))
    assert isinstance(out.x_adv, Tensor) and out.success.any()
    assert torch.equal(out.x_adv[:, ~MASK], x[:, ~MASK])


def test_masks_print_and_are_checked() -> None:
    text = repr(uf.l2(0.5, mask=MASK))
    assert text.startswith("l2(0.5, mask=<4 of 6 values, ") and repr(uf.l2(mask=MASK)) != repr(uf.l2(mask=~MASK))
    assert repr(uf.linf(8 / 255)) == "linf(8/255)"
    with pytest.raises(uf.InputError, match="bool tensor"):
        uf.l2(0.5, mask=torch.ones(6))
    with pytest.raises(uf.InputError, match=r"mask has shape \(6,\)"):
        uf.run("pgd()", nn.Linear(5, 2), torch.rand(1, 5), torch.zeros(1, dtype=torch.int64), uf.l2(0.5, mask=MASK))


@dataclass(frozen=True, repr=False)
class Early(Attack[Any]):
    """Walks outwards and has nothing left to try after as many steps as its example says."""

    @property
    def steps(self) -> int:
        return 50

    def init(self, p: Problem) -> Any:
        return (torch.zeros_like(p.y), p.x0)

    def step(self, p: Problem, s: Any) -> tuple[Any, Trial]:
        x = (p.x0 + 0.01 * (1 + s[0]).view(-1, 1)).clamp(0, 1)
        return (s[0] + 1, x), Trial(x, p.oracle.scores(x))

    def finished(self, p: Problem, s: Any) -> Tensor:
        assert isinstance(p.x0, Tensor)
        return s[0] >= 3 + p.x0[:, 0].mul(10).round().long()


def test_rows_that_are_finished_leave_their_slots() -> None:
    target = Linear(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([0.0, -9.0]))
    x = torch.tensor([[0.0, 0.1], [0.2, 0.1], [0.4, 0.3]])
    out = uf.run(Early(), target, x, torch.zeros(3, dtype=torch.int64), uf.linf(0.9))
    assert out.forward.tolist() == [1 + 3, 1 + 5, 1 + 7]  # the first look, then its own number of steps


def test_a_list_of_attacks_without_eps_keeps_the_smallest_change_of_any() -> None:
    target = Linear(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([0.0, -0.55]))
    x = torch.tensor([[0.2, 0.3], [0.3, 0.22]])
    y = torch.zeros(2, dtype=torch.int64)
    alone = uf.run(Early(), target, x, y, uf.l2())
    both = uf.run([Early(), Early()], target, x, y, uf.l2())
    assert alone.success.all() and torch.equal(alone.distance, both.distance)
    assert [row.attempted for row in both.attacks] == [2, 2] and [row.broken for row in both.attacks] == [2, 0]


def test_the_curve_of_one_run_counts_examples_by_their_distance() -> None:
    target = Linear(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([0.0, -0.55]))
    x = torch.tensor([[0.2, 0.3], [0.3, 0.22], [0.9, 0.9], [0.0, 0.0]])
    out = uf.run(Early(), target, x, torch.zeros(4, dtype=torch.int64), uf.linf())
    assert [str(s.value) for s in out.status] == ["broken", "broken", "misclassified", "survived"]
    near, far = sorted(out.distance[:2].tolist())
    curve = out.curve([0.0, (near + far) / 2, far, 9.0])
    assert curve.tolist() == [0.75, 0.5, 0.25, 0.25]
    assert np.all(np.diff(curve.numpy()) <= 0)


def test_levels_keep_the_radius_that_is_asked_for() -> None:
    ball = uf.Ball(uf.norms.NORMS["linf"], 0.05, levels=16)
    x, far = torch.full((3, 4), 0.5), torch.full((3, 4), 0.9)
    radii = torch.tensor([0.0, 0.2, torch.inf])
    z = ball.project(far, x, radii)
    assert (z - x).amax(1).tolist() == [0.0, 0.1875, 0.375]  # 0.9 lies nearest to level 14 of 16
    assert (ball.project(far, x) - x).amax() == 0 and (ball.settle(far, x) == x).all()
