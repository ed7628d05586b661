"""Losses: closed forms, directions, and scores that are tiny, huge, offset, tied, few or in another precision."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unfooled import losses

UNTARGETED: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": losses.cross_entropy,
    "margin": losses.margin,
    "dlr": losses.dlr,
}
TARGETED: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": lambda z, t, y: losses.cross_entropy_targeted(z, t),
    "margin": lambda z, t, y: losses.margin_targeted(z, t),
    "dlr": losses.dlr_targeted,
    "difference": losses.difference,
}
SCALES = (1e-12, 1e-6, 1.0, 1e3, 1e5)


def scores(k: int, n: int = 40, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random scores [n, k], labels that are the answer in most rows, and another class each."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, k, generator=g)
    y = z.argmax(1)
    y[::5] = torch.randint(0, k, (len(y[::5]),), generator=g)
    return z * scale, y, (y + 1 + torch.randint(0, k - 1, (n,), generator=g)) % k


def grad(loss: Callable[..., Tensor], z: Tensor, *rest: Tensor) -> Tensor:
    leaf = z.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(loss(leaf, *rest).sum(), leaf)
    return g


def direction(g: Tensor) -> Tensor:
    g = g.double()
    return g / g.abs().amax(1, keepdim=True).clamp(min=1e-300)


# ---- closed forms


def test_values_by_hand() -> None:
    z = torch.tensor([[3.0, 1.0, 2.0, -1.0]])
    own, other = torch.tensor([0]), torch.tensor([2])
    assert losses.margin(z, own).item() == -1.0 and losses.margin(z, other).item() == 1.0
    assert losses.margin_targeted(z, own).item() == 1.0
    assert losses.dlr(z, own).item() == pytest.approx(-(3 - 2) / (3 - 1))
    assert losses.dlr(z, other).item() == pytest.approx(-(2 - 3) / (3 - 1))
    assert losses.dlr_targeted(z, other, own).item() == pytest.approx((2 - 3) / (3 - (1 - 1) / 2))
    assert losses.difference(z, other, own).item() == -1.0
    mean = (math.exp(1) + math.exp(2) + math.exp(-1)) / 3
    assert losses.cross_entropy(z, own).item() == pytest.approx(math.log(mean) - 3, rel=1e-6)
    assert losses.cross_entropy_targeted(z, own).item() == pytest.approx(3 - math.log(mean), rel=1e-6)


@pytest.mark.parametrize("k", [2, 3, 4, 10, 1000])
def test_cross_entropy_is_a_growing_function_of_the_usual_one(k: int) -> None:
    z, y, _ = scores(k, scale=3.0)
    usual = F.cross_entropy(z.double(), y, reduction="none")
    ours = losses.cross_entropy(z.double(), y)
    assert torch.allclose(F.softplus(ours + math.log(k - 1)), usual, rtol=1e-9)
    assert torch.equal(losses.cross_entropy(z, y).argsort(), usual.float().argsort())


@pytest.mark.parametrize("k", [2, 3, 4, 10, 1000])
def test_cross_entropy_has_the_direction_of_the_usual_one(k: int) -> None:
    z, y, wanted = scores(k, scale=2.0)
    usual = grad(lambda s, t: F.cross_entropy(s, t, reduction="none"), z.double(), y)
    assert torch.allclose(direction(grad(losses.cross_entropy, z, y)), direction(usual), atol=1e-5)
    usual = grad(lambda s, t: -F.cross_entropy(s, t, reduction="none"), z.double(), wanted)
    assert torch.allclose(direction(grad(losses.cross_entropy_targeted, z, wanted)), direction(usual), atol=1e-5)


@pytest.mark.parametrize("k", [3, 4, 10])
def test_dlr_is_the_published_formula(k: int) -> None:
    """As in the authors' code: -(z_y - max_{i != y} z_i) / (z_1 - z_3), in float64."""
    z, y, wanted = scores(k)
    ranked = z.double().sort(dim=1, descending=True).values
    own = z.double().gather(1, y[:, None])[:, 0]
    right = own == ranked[:, 0]
    rival = torch.where(right, ranked[:, 1], ranked[:, 0])
    assert torch.allclose(losses.dlr(z, y).double(), -(own - rival) / (ranked[:, 0] - ranked[:, 2]), rtol=1e-4)
    if k >= 4:
        gain = z.double().gather(1, wanted[:, None])[:, 0] - own
        spread = ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2
        assert torch.allclose(losses.dlr_targeted(z, wanted, y).double(), gain / spread, rtol=1e-4)


def test_kl_is_that_of_torch_and_zero_at_home() -> None:
    z, _, _ = scores(5)
    reference = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    usual = F.kl_div(z.log_softmax(1), reference.log_softmax(1), log_target=True, reduction="none").sum(1)
    assert torch.allclose(losses.kl(z, reference), usual, atol=1e-6)
    assert torch.allclose(losses.kl(z, z + 3), torch.zeros(40), atol=1e-6)


@pytest.mark.parametrize("k", [2, 3, 4, 10])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", UNTARGETED)
def test_the_sign_of_the_margin_says_who_wins(name: str, scale: float, k: int) -> None:
    z, y, wanted = scores(k, scale=scale)
    lost = z.argmax(1) != y
    assert torch.equal(losses.margin(z, y) > 0, lost)
    assert torch.equal(losses.margin_targeted(z, wanted) > 0, z.argmax(1) == wanted)
    if name == "dlr" or k == 2:
        assert torch.equal(UNTARGETED[name](z, y) > 0, lost)


# ---- gradients where others lose theirs


@pytest.mark.parametrize(  # float32 holds no differences of 1e-6 beside 1000
    ("scale", "offset"), [(s, o) for s in SCALES for o in (0.0, 1e3, -1e3) if s >= 1 or not o]
)
@pytest.mark.parametrize("k", [2, 3, 4, 10])
@pytest.mark.parametrize("name", UNTARGETED)
def test_gradients_live_on_tiny_huge_and_offset_scores(name: str, k: int, scale: float, offset: float) -> None:
    z, y, _ = scores(k, scale=scale)
    if name == "dlr":  # where the label has lost already, the ratio may be constant
        y = z.argmax(1)
    value, g = UNTARGETED[name](z + offset, y), grad(UNTARGETED[name], z + offset, y)
    assert bool(value.isfinite().all()) and bool(g.isfinite().all())
    away = g.gather(1, y[:, None])[:, 0]
    rival = z.scatter(1, y[:, None], -torch.inf).argmax(1)
    climbs = g.gather(1, rival[:, None])[:, 0]
    if name != "dlr":
        assert torch.allclose(away, torch.full_like(away, -1.0), rtol=1e-4) and bool((climbs > 0).all())
    else:
        assert bool((away < 0).all()) and bool((g.abs().amax(1) > 1e-4 / max(scale, 1)).all())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("k", [2, 3, 4, 10])
@pytest.mark.parametrize("name", TARGETED)
def test_targeted_gradients_point_to_the_wanted_class(name: str, k: int, scale: float) -> None:
    z, y, wanted = scores(k, scale=scale)
    if name == "dlr":
        y = z.argmax(1)
    wanted = torch.where(wanted == y, (y + 1) % k, wanted)
    g = grad(TARGETED[name], z, wanted, y)
    assert bool(g.isfinite().all())
    assert bool((g.gather(1, wanted[:, None]) > 0).all()), "no push towards the wanted class"
    if name != "dlr" or k < 4:  # the published ratio may lift the label too, through its divisor
        against = y if name in ("dlr", "difference") else z.scatter(1, wanted[:, None], -torch.inf).argmax(1)
        assert bool((g.gather(1, against[:, None]) < 0).all())


def test_saturated_cross_entropy_keeps_its_gradient_where_softmax_loses_it() -> None:
    z, y = torch.tensor([[200.0, 0.0, -50.0]]), torch.tensor([0])
    usual = grad(lambda s, t: F.cross_entropy(s, t, reduction="none"), z, y)
    assert float(usual.abs().max()) == 0.0
    assert torch.allclose(grad(losses.cross_entropy, z, y), torch.tensor([[-1.0, 1.0, 0.0]]))


def test_scores_a_million_away_from_zero() -> None:
    base = torch.tensor([[3.0, 1.0, 2.0, -1.0]])
    y = torch.tensor([0])
    for loss in UNTARGETED.values():
        assert torch.allclose(loss(base + 1e6, y), loss(base, y), atol=1e-6)  # whole numbers are exact there
        assert torch.allclose(loss(base / 7 + 1e6, y), loss(base / 7, y), atol=0.2)  # others to 1/16
        assert torch.allclose(loss(base.double() / 7 + 1e6, y), loss(base.double() / 7, y), atol=1e-8)


def test_differences_of_1e_12_are_seen() -> None:
    z, y = torch.tensor([[2e-12, 0.0, 1e-12]]), torch.tensor([0])
    assert losses.margin(z, y).item() == pytest.approx(-1e-12, rel=1e-5)
    assert losses.cross_entropy(z, y).item() == pytest.approx(-1.5e-12, rel=1e-3)
    assert losses.dlr(z, y).item() == pytest.approx(-0.5, rel=1e-5)


@pytest.mark.parametrize("k", [2, 3, 4, 10])
def test_all_scores_equal(k: int) -> None:
    z, y, wanted = torch.zeros(3, k), torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0])
    for name, loss in UNTARGETED.items():
        assert losses.margin(z, y).tolist() == [0.0] * 3 and loss(z, y).tolist() == [0.0] * 3
        g = grad(loss, z, y)
        assert bool(g.isfinite().all()) and bool((g.gather(1, y[:, None]) < 0).all()), name
    for loss in TARGETED.values():
        g = grad(loss, z, wanted, y)
        assert bool(g.isfinite().all()) and bool((g.gather(1, wanted[:, None]) > 0).all())


@pytest.mark.parametrize("k", [2, 3, 4, 10])
def test_classes_at_minus_infinity_are_ruled_out(k: int) -> None:
    z, y, wanted = scores(k)
    y = z.argmax(1)
    wanted = torch.where(wanted == y, (y + 1) % k, wanted)
    more = torch.cat([z, torch.full((len(z), 2), -torch.inf)], 1)
    for name, loss in UNTARGETED.items():
        value, g = loss(more, y), grad(loss, more, y)
        assert bool(value.isfinite().all()) and bool(g[:, :k].isfinite().all()), name
        assert bool((g.gather(1, y[:, None]) < 0).all()), name
    assert torch.equal(losses.margin(more, y), losses.margin(z, y))
    for name, towards in TARGETED.items():
        value, g = towards(more, wanted, y), grad(towards, more, wanted, y)
        assert bool(value.isfinite().all()) and bool(g[:, :k].isfinite().all()), name
        assert bool((g.gather(1, wanted[:, None]) > 0).all()), name


def test_three_classes_towards_the_least_likely_one() -> None:
    """The targeted DLR of three classes would be constant there: (z_3 - z_1) / (z_1 - z_3)."""
    z = torch.tensor([[3.0, 2.0, 1.0]])
    g = grad(losses.dlr_targeted, z, torch.tensor([2]), torch.tensor([0]))
    assert g[0, 2] > 0 > g[0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_losses_are_computed_in_single_precision_or_wider(dtype: torch.dtype) -> None:
    z, y, wanted = scores(6)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for loss in UNTARGETED.values():
        value = loss(z.to(dtype), y)
        assert value.dtype == wide and torch.allclose(value, loss(z.to(dtype).to(wide), y))
        assert grad(loss, z.to(dtype), y).dtype == dtype
    for towards in TARGETED.values():
        assert towards(z.to(dtype), wanted, y).dtype == wide


def test_a_row_does_not_see_the_others() -> None:
    z, y, wanted = scores(7)
    for loss in UNTARGETED.values():
        assert torch.equal(loss(z, y)[3:4], loss(z[3:4], y[3:4]))
        assert torch.equal(grad(loss, z, y)[3:4], grad(loss, z[3:4], y[3:4]))
    for towards in TARGETED.values():
        assert torch.equal(towards(z, wanted, y)[3:4], towards(z[3:4], wanted[3:4], y[3:4]))


@pytest.mark.parametrize("k", [2, 3, 4, 10])
def test_the_order_of_the_classes_does_not_matter(k: int) -> None:
    z, y, wanted = scores(k)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(2))
    where = order.argsort()
    for loss in UNTARGETED.values():
        assert torch.allclose(loss(z[:, order], where[y]), loss(z, y), atol=1e-6)
    for towards in TARGETED.values():
        assert torch.allclose(towards(z[:, order], where[wanted], where[y]), towards(z, wanted, y), atol=1e-6)
