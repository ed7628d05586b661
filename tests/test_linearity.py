"""How straight a target is: fits against hand-made curves, growth and remainders against closed forms."""

import math

import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled.explain.linearity import logits_along, piecewise
from unfooled.testing import Linear, Spy


class Kinked(nn.Module):
    """Two logits of the sum s of the input: max(s, 0) + 2 max(s - 1, 0), and -s."""

    def forward(self, x: Tensor) -> Tensor:
        s = x.flatten(1).sum(1)
        return torch.stack([s.clamp(min=0) + 2 * (s - 1).clamp(min=0), -s], 1)


def test_a_linear_target_is_one_line_along_every_direction() -> None:
    target = Linear.random((3, 4), classes=5, seed=1)
    x, d = torch.rand(3, 3, 4), torch.randn(3, 3, 4)
    found = logits_along(target, x, d, reach=10, points=41, control=4)
    assert found.scores.shape == (3, 41, 5) and found.random_scores.shape == (3, 4, 41, 5)
    assert bool((found.fit > 1 - 1e-6).all()) and bool((found.random_fit > 1 - 1e-6).all())
    slope = (found.scores[:, -1] - found.scores[:, 0]) / 20
    assert torch.allclose(slope, d.flatten(1) @ target.weight.T, atol=1e-4)
    assert torch.allclose(found.scores[:, 20], target(x), atol=1e-5)


def test_the_knots_of_a_piecewise_linear_target_are_found() -> None:
    x, d = torch.full((1, 4), 0.0), torch.full((1, 4), 0.5)  # the sum is 2 t: kinks at t = 0 and t = 0.5
    found = logits_along(Kinked(), x, d, reach=2, points=81, control=0)
    assert found.knots[0, 0].tolist() == pytest.approx([0.0, 0.5])
    assert float(found.fit[0, 0, 2]) == pytest.approx(1, abs=1e-9)
    assert float(found.residual[0, 0, 2]) < 1e-5
    one, two = found.fit[0, 0, :2].tolist()
    assert one < two - 0.01 < 0.99
    assert found.fit[0, 1].tolist() == pytest.approx([1, 1, 1])
    assert found.eps.tolist() == [0.5]


def test_the_fit_is_the_best_of_all_continuous_ones() -> None:
    t = torch.linspace(-1, 1, 25)
    curve = (5 * t).sin() + 0.3 * torch.randn(25, generator=torch.Generator().manual_seed(0))
    r2, residual, knots = piecewise(t, curve)

    def left(*at: float) -> float:
        design = torch.stack([torch.ones_like(t), t, *((t - a).clamp(min=0) for a in at)], 1).double()
        solved = torch.linalg.lstsq(design, curve.double()[:, None]).solution
        return float((design @ solved - curve.double()[:, None]).square().sum())

    total = float((curve.double() - curve.double().mean()).square().sum())
    inner = t[1:-1].tolist()
    best = [
        left(),
        min(left(a) for a in inner),
        min(left(a, b) for i, a in enumerate(inner) for b in inner[i + 2 :]),
    ]
    assert r2.tolist() == pytest.approx([1 - b / total for b in best], abs=1e-5)
    assert residual.tolist() == pytest.approx([math.sqrt(b / 25) for b in best], abs=1e-5)
    assert left(*knots.tolist()) == pytest.approx(best[2], abs=1e-6)


def test_a_constant_logit_is_a_line() -> None:
    r2, residual, _ = piecewise(torch.linspace(-1, 1, 21), torch.full((2, 21), 7.3))
    assert r2.tolist() == [[1, 1, 1]] * 2 and float(residual.max()) < 1e-5


def test_the_wrong_class_stretch_is_where_a_hand_made_boundary_puts_it() -> None:
    target = Linear(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, -1.0]))  # class 1 above 1
    found = logits_along(target, torch.tensor([[0.5]]), torch.tensor([[1.0]]), points=101, control=0)
    assert found.labels[0].tolist() == [int(0.5 + 0.02 * i > 1) for i in range(-50, 51)]
    assert float(found.wrong[0]) == pytest.approx(25 / 101)
    cut = logits_along(target, torch.tensor([[0.5]]), torch.tensor([[1.0]]), points=101, control=0, clamp=True)
    assert float(cut.wrong[0]) == 0 and float(cut.outside.max()) == 0
    assert float(found.outside[0, -1]) == pytest.approx(0.5) and float(found.outside[0, 50]) == 0


def test_random_directions_have_the_length_of_the_perturbation_and_belong_to_the_example() -> None:
    target = Linear(torch.eye(6), torch.zeros(6))  # the scores are the input
    x, d = torch.rand(2, 6), torch.randn(2, 6) * torch.tensor([[1.0], [5.0]])
    both = logits_along(target, x, d, points=9, control=3)
    moved = both.random_scores[:, :, -1] - x[:, None]
    assert torch.allclose(moved.norm(dim=2), d.norm(dim=1, keepdim=True).expand(2, 3), rtol=1e-5)
    alone = logits_along(target, x[1:], d[1:], points=9, control=3)
    assert torch.equal(alone.random_scores[0], both.random_scores[1])
    other = logits_along(target, x, d, points=9, control=3, seed=1)
    assert not torch.equal(other.random_scores, both.random_scores)


def test_every_point_is_asked_once_in_full_batches() -> None:
    spy = Spy(Linear.random((16,), classes=3))
    logits_along(spy, torch.rand(2, 16), torch.ones(2, 16), points=101, control=20, batch_size=256)
    assert spy.forward_rows == 2 * 21 * 101 and spy.calls == math.ceil(2 * 21 * 101 / 256)


def test_the_finding_tells_itself_and_draws_itself() -> None:
    target = uf.Target(Linear.random((3, 4), classes=3), classes=["cat", "dog", "owl"])
    found = logits_along(target, torch.rand(1, 3, 4), torch.randn(1, 3, 4), points=21)
    rows = found.rows()
    assert [row["class"] for row in rows] == ["cat", "dog", "owl"]
    assert sum(row["wins_share"] for row in rows) == pytest.approx(1)
    assert "20 random directions" in found.sentence()
    pytest.importorskip("matplotlib")
    assert found.image("svg") == found.image("svg") and b"owl" in found.image("svg")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"direction": torch.zeros(1, 4)}, "zero everywhere"),
        ({"direction": torch.ones(1, 5)}, "shape"),
        ({"x": torch.full((1, 4), torch.nan)}, "not finite"),
        ({"x": torch.ones(4)}, r"x\[None\]"),
        ({"points": 5}, "at least 9"),
        ({"reach": 0.0}, "above 0"),
    ],
)
def test_bad_lines_are_refused_in_one_sentence(change: dict, said: str) -> None:
    arguments = {"x": torch.rand(1, 4), "direction": torch.ones(1, 4)} | change
    with pytest.raises(uf.InputError, match=said):
        logits_along(Linear.random((4,)), **arguments)
