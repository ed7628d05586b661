"""How straight a target is: fits against hand-made curves, growth and remainders against closed forms."""

import math

import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled.attacks import bim, fgsm
from unfooled.explain._lines import random_directions
from unfooled.explain.linearity import WAYS, growth, local_linearity, logits_along, piecewise
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


def test_a_step_two_points_wide_is_three_pieces() -> None:
    t = torch.linspace(-1, 1, 41)
    r2, _, knots = piecewise(t, (t - t[20]).clamp(0, float(t[22] - t[20])))
    assert float(r2[2]) == pytest.approx(1, abs=1e-6) and float(r2[1]) < 0.999
    assert knots.tolist() == pytest.approx([float(t[20]), float(t[22])])


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


def test_the_attack_moves_a_linear_score_by_the_closed_form_and_noise_by_far_less() -> None:
    found = growth(fgsm(), dims=(16, 64, 256, 1024), targets=4)
    assert found.error < 1e-12
    assert found.slope(found.attacked) == pytest.approx(1, abs=0.03)
    assert found.slope(found.random) == pytest.approx(0.5, abs=0.06)
    assert torch.allclose(found.random, found.expected, rtol=0.5)
    mean = found.closed.mean(1) / (0.1 * found.dims)  # eps m n with m = 1
    assert mean.tolist() == pytest.approx([1] * 4, abs=0.15)
    assert "n^1.0" in found.sentence() or "n^0.9" in found.sentence()


def test_growth_sees_an_attack_that_falls_short() -> None:
    short = growth(bim(steps=1, step_size=0.5), dims=(32,), targets=2)
    assert short.error == pytest.approx(0.5, abs=1e-6)


def test_growth_takes_its_own_family_and_its_seed() -> None:
    ones = growth(fgsm(), dims=(9, 36), family=lambda n, g: torch.full((n,), 2.0), targets=1, eps=0.2)
    assert ones.closed[:, 0].tolist() == pytest.approx([0.2 * 2 * 9, 0.2 * 2 * 36])
    assert ones.attacked[:, 0].tolist() == pytest.approx(ones.closed[:, 0].tolist())
    a, b, c = (growth(fgsm(), dims=(8,), targets=2, seed=seed).random for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("eps", [0.0, 0.5, -1.0])
def test_growth_refuses_an_eps_at_which_the_box_binds(eps: float) -> None:
    with pytest.raises(uf.InputError, match="so that the box"):
        growth(fgsm(), dims=(4,), eps=eps)
    with pytest.raises(uf.InputError, match="shape"):
        growth(fgsm(), dims=(4,), family=lambda n, g: torch.ones(n + 1))


def two_layers() -> nn.Sequential:
    g = torch.Generator().manual_seed(3)
    layers = nn.Linear(6, 5, bias=False, dtype=torch.float64), nn.Linear(5, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=g, dtype=torch.float64))
    return nn.Sequential(nn.Flatten(), *layers)


def test_a_linear_module_leaves_nothing_in_x_and_nothing_in_the_parameters() -> None:
    target = Linear.random((2, 3), classes=4, dtype=torch.float64)
    found = local_linearity(target, torch.rand(5, 2, 3), torch.arange(5) % 4)
    assert found.remainder.shape == (4, 7, 5)
    assert float(found.remainder.max()) < 1e-9 and float(found.predicted.min()) > 0


def test_two_linear_layers_are_linear_in_x_and_off_by_the_product_of_their_steps_in_the_parameters() -> None:
    module, x, y = two_layers(), torch.rand(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    found = local_linearity(module, x, y, eps=(0.1, 0.2), seed=5)
    assert float(found.remainder[:2].max()) < 1e-9
    first, second = (p.detach() for p in module.parameters())
    g = torch.Generator().manual_seed(5)
    drawn = [torch.randn(p.shape, generator=g).double() for p in (first, second)]
    scale = math.sqrt(float(first.square().sum() + second.square().sum()))
    scale /= math.sqrt(sum(float(d.square().sum()) for d in drawn))
    d1, d2 = (scale * d for d in drawn)
    linear = x @ (second @ d1 + d2 @ first).T
    rest = x @ (d2 @ d1).T
    expected = 0.1 * rest.norm(dim=1) / linear.norm(dim=1)
    at = WAYS.index("parameters, random")
    assert torch.allclose(found.remainder[at, 0].double(), expected, rtol=1e-5)
    assert torch.allclose(found.remainder[at, 1], 2 * found.remainder[at, 0], rtol=1e-4)
    assert bool((found.remainder[2:] > 1e-3).all())


def test_a_square_in_x_is_not_linear_in_x_and_linear_in_its_weight() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[1.0, 2.0], [-1.0, 1.0]], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x.square() @ self.weight.T

    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    found = local_linearity(Square(), x, torch.tensor([0]), eps=(0.01, 0.1), seed=1)
    assert float(found.remainder[2:].max()) < 1e-9
    d = 5 * random_directions(x, 1, 1, "local_linearity")[:, 0]  # as long as x
    w = Square().weight.detach()
    expected = 0.1 * (d.square() @ w.T).norm() / (2 * (x * d) @ w.T).norm()
    assert float(found.remainder[1, 1]) == pytest.approx(float(expected), rel=1e-5)
    spread = x.square() @ w.T
    spread = spread - spread.mean()
    assert float(found.predicted[1, 0]) == pytest.approx(
        float(0.01 * (2 * (x * d) @ w.T).norm() / spread.norm()), rel=1e-5
    )
    assert float(found.remainder[0, 1] / found.remainder[0, 0]) == pytest.approx(10, rel=1e-4)
    assert math.isnan(found.at_effect(0, 1e9)) and found.at_effect(2, 0.05) < 1e-9


def test_the_module_is_left_as_it_was_and_the_finding_draws_itself() -> None:
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)
    )
    x, y = torch.rand(4, 2, 4), torch.tensor([0, 1, 2, 0])
    before, luck = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    found = local_linearity(module, x, y)
    assert module.training and all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), luck)
    assert torch.equal(found.remainder, local_linearity(module, x, y).remainder)
    assert len(found.rows()) == 28 and "in the parameters" in found.sentence()
    pytest.importorskip("matplotlib")
    assert b"foretold" in found.image("svg") and b"random signs" in growth(fgsm(), dims=(4, 8)).image("svg")


def test_local_linearity_needs_a_module_with_parameters() -> None:
    x, y = torch.rand(2, 4), torch.tensor([0, 1])
    with pytest.raises(uf.InputError, match="torch module"):
        local_linearity(lambda z: z @ torch.eye(4), x, y)
    with pytest.raises(uf.InputError, match="labels of shape"):
        local_linearity(Linear.random((4,)), x, torch.tensor([0]))
    with pytest.raises(uf.InputError, match="zero everywhere"):
        local_linearity(Linear.random((4,)), 0 * x, y)
