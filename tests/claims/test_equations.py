"""Equations and small facts that docs/claims.md rests on, each against numbers worked out another way."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unfooled as uf
from unfooled import attacks
from unfooled.core.engine import last_iterate
from unfooled.norms import NORMS
from unfooled.targets import ZOO
from unfooled.testing import Linear


def digits(n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The shipped digits classifier in double precision with images that it gets right."""
    net = ZOO["digits-cnn"].build().double()
    data = uf.load_data("digits")
    x, y = data.x[:n].double(), data.y[:n]
    right = net(x).argmax(1) == y
    return net, x[right], y[right]


def losses(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(net(x), y, reduction="none")


def slope(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)
    return g


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_steepest_up_is_exactly_opposite_to_steepest_down(norm: str) -> None:
    net, x, y = digits(120)
    g = slope(net, x, y)
    up, down = NORMS[norm].steepest(g), NORMS[norm].steepest(-g)
    assert torch.equal(up, -down) and bool((up != 0).any())
    t = 1e-6
    rise, fall = losses(net, x + t * up, y) - losses(net, x, y), losses(net, x, y) - losses(net, x + t * down, y)
    assert (rise > 0).all() and (fall > 0).all()
    assert torch.allclose(rise, fall, rtol=1e-2)  # to first order the same amount
    for seed in range(20):  # no other step of that length climbs more
        other = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
        other = other / NORMS[norm].size(other).view(-1, 1, 1, 1)
        assert (losses(net, x + t * other, y) - losses(net, x, y) < rise).all()


def test_one_gradient_leads_away_from_a_class_or_towards_one() -> None:
    net, x, y = digits(60)
    to = (y + 1) % 10
    away = last_iterate(attacks.pixel_gradient(steps=1, step_size=0.1), net, x, y, uf.linf(0.05))
    towards = last_iterate(attacks.pixel_gradient(steps=1, step_size=0.1), net, x, y, uf.linf(0.05), to=to)
    assert (losses(net, away, y) > losses(net, x, y)).all()
    assert (losses(net, towards, to) < losses(net, x, to)).all()
    assert not torch.equal(away, towards)


def test_a_step_away_from_the_label_is_not_a_step_to_a_chosen_class() -> None:
    """One step away ends in many classes; of those that go to a chosen class instead, that class gains."""
    net, x, y = digits(400)
    fooled = net(last_iterate(attacks.fgsm(), net, x, y, uf.linf(0.15))).argmax(1)
    ends = fooled[fooled != y]
    assert len(ends) > 50 and len(ends.unique()) >= 5
    to = torch.full_like(y, 8)
    others = y != 8
    led = net(last_iterate(attacks.fgsm(), net, x, y, uf.linf(0.15), to=to)).argmax(1)
    assert (led[others] == 8).sum() > 1.5 * (fooled[others] == 8).sum()


def test_the_score_changes_by_the_product_of_weights_and_change() -> None:
    g = torch.Generator().manual_seed(0)
    w, x, eta = (torch.randn(784, generator=g, dtype=torch.float64) for _ in range(3))
    eta = 0.25 * eta / eta.abs().max()
    assert float(eta.abs().max()) == 0.25
    assert float(w @ (x + eta)) == pytest.approx(float(w @ x + w @ eta), rel=1e-12)


def test_eps_times_the_l1_norm_is_the_most_that_a_change_can_add() -> None:
    """Of all 2^10 corners of the ball eps sign(w) gains most, eps |w|_1, and FGSM goes there."""
    w = torch.tensor([-1.0, -1, 1, -1, 1, -1, 1, 1, -1, 1], dtype=torch.float64) * torch.linspace(0.5, 1.4, 10)
    eps = 0.07
    corners = eps * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=10)), dtype=torch.float64)
    gains = corners @ w
    assert float(gains.max()) == pytest.approx(eps * float(w.abs().sum()), rel=1e-12)
    assert torch.equal(corners[gains.argmax()], eps * w.sign())
    assert (gains < gains.max() - 1e-9).sum() == len(gains) - 1, "no other corner gains as much"
    target = Linear(torch.stack([torch.zeros_like(w), w]), torch.zeros(2, dtype=torch.float64))
    x = torch.full((1, 10), 0.5, dtype=torch.float64)
    made = last_iterate(attacks.fgsm(), target, x, torch.tensor([0]), uf.linf(eps))
    assert torch.allclose(made - x, eps * w.sign()[None])


def test_the_gain_grows_with_the_dimension_and_that_of_noise_with_its_root() -> None:
    g = torch.Generator().manual_seed(0)
    eps, sizes, adversarial, random = 0.01, (100, 1_000, 10_000), [], []
    for n in sizes:
        w = torch.randn(n, generator=g, dtype=torch.float64)
        adversarial.append(float(eps * w.sign() @ w))
        assert adversarial[-1] == pytest.approx(eps * float(w.abs().mean()) * n)  # eps m n
        coins = torch.randint(2, (400, n), generator=g).double() * 2 - 1
        random.append(float((eps * coins @ w).std()))
    up, noise = (math.log10(gain[2] / gain[0]) / 2 for gain in (adversarial, random))
    assert up == pytest.approx(1.0, abs=0.1) and noise == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_sign_makes_every_change_exactly_eps_whatever_the_gradient(scale: float) -> None:
    target = Linear.random((64,), 2, seed=1, dtype=torch.float64)
    with torch.no_grad():
        target.weight.mul_(scale)
        target.bias.mul_(scale)
    x = torch.full((3, 64), 0.5, dtype=torch.float64)
    y = target(x).argmax(1)
    signed = last_iterate(attacks.fgsm(), target, x, y, uf.linf(0.07)) - x
    assert torch.allclose(signed.abs(), torch.full_like(x, 0.07), rtol=1e-12)
    plain = slope(target, x, y).abs()  # a plain gradient is as long as the network makes it, and here may vanish
    assert float(plain.amax()) < 1e-5 or float(plain.amax()) > 2 * float(plain.amin())


def test_a_value_that_the_network_ignores_is_not_moved_by_the_sign() -> None:
    target = Linear(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([0.0, -0.2]))
    made = last_iterate(attacks.fgsm(), target, torch.tensor([[0.5, 0.5]]), torch.tensor([1]), uf.linf(0.1))
    assert made.tolist() == [[pytest.approx(0.4), 0.5]]


def test_the_worst_logistic_loss_holds_for_both_labels_and_the_printed_one_for_one() -> None:
    """Worst case of log(1 + exp(-y (w.x + b))) in an Linf ball: softplus(eps |w|_1 - y (w.x + b)), all corners tried.

    Goodfellow et al. print softplus(y (eps |w|_1 - w.x - b)), which agrees for y = 1 only.
    """
    g = torch.Generator().manual_seed(3)
    w, x = (torch.randn(8, generator=g, dtype=torch.float64) for _ in range(2))
    b, eps = 0.3, 0.2
    corners = x + eps * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8)), dtype=torch.float64)
    for y in (1.0, -1.0):
        worst = F.softplus(-y * (corners @ w + b)).max()
        closed = F.softplus(eps * w.abs().sum() - y * (x @ w + b))
        printed = F.softplus(y * (eps * w.abs().sum() - x @ w - b))
        assert torch.allclose(worst, closed, rtol=1e-12)
        assert torch.allclose(worst, printed, rtol=1e-6) is (y == 1.0)
        assert y == 1.0 or printed < worst


def test_the_largest_distance_between_two_pictures_of_224_pixels_is_388() -> None:
    white, black = torch.ones(1, 3, 224, 224), torch.zeros(1, 3, 224, 224)
    assert float(NORMS["l2"].size((white - black).double())) == pytest.approx(math.sqrt(3 * 224**2))
    assert round(math.sqrt(3 * 224**2)) == 388


def test_what_a_linear_classifier_ignores_may_be_anything() -> None:
    """Noise with the same part along the weights gets the same confidences; a change along them that long does not."""
    net = Linear.random((64,), 10, seed=0, dtype=torch.float64)
    digit = uf.load_data("digits").x[0].double().view(1, -1)
    seen = torch.linalg.svd((net.weight - net.weight.mean(0)).detach(), full_matrices=False).Vh[
        :9
    ]  # what tells classes apart
    noise = torch.rand(1, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = noise - noise @ seen.T @ seen + digit @ seen.T @ seen
    assert float((other - digit).norm()) > 0.5 * float(digit.norm())
    assert torch.allclose(net(other).softmax(1), net(digit).softmax(1), atol=1e-10)
    along = digit + float((other - digit).norm()) * seen[:1]
    assert not torch.allclose(net(along).softmax(1), net(digit).softmax(1), atol=0.1)


def test_a_softmax_says_only_which_class_is_likelier_than_the_others() -> None:
    """Adding the same to all scores changes nothing, whatever evidence there is; independent sigmoids see it."""
    net, x, _ = digits(50)
    scores = net(x).detach()
    for shift in (-1000.0, -5.0, 5.0, 1000.0):
        assert torch.allclose((scores + shift).softmax(1), scores.softmax(1), atol=1e-10)
    assert float((scores - 1000).sigmoid().max()) < 1e-6 < float(scores.sigmoid().max())


def test_a_classifier_answers_whatever_it_is_shown_unless_it_may_refuse() -> None:
    net, _, _ = digits(2)
    net = net.float()
    nothing = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    confidence = net(nothing).detach().softmax(1)
    assert torch.allclose(confidence.sum(1), torch.ones(200), atol=1e-5)
    assert float(confidence.amax(1).min()) >= 0.1  # the ten digits share the whole, nothing is left for "none"
    unsure = (confidence.amax(1) < 0.9).float().mean()
    assert 0 < float(unsure) < 1, "a threshold refuses some of the noise, and not all of it"
