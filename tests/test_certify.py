"""Certificates: exact on linear targets, below the exact radii of small networks, below every attack."""

import math

import pytest
import torch
from torch import nn

import unfooled as uf
from tests import milp
from unfooled import certify
from unfooled.certify.smoothing import predict
from unfooled.testing import Linear, linear_distance

NORMS = {"linf": uf.linf, "l2": uf.l2, "l1": uf.l1}


def linear(d: int = 12, k: int = 4) -> tuple[Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    net = Linear(torch.randn(k, d), torch.randn(k))
    x = torch.rand(6, d)
    return net, x, net(x).argmax(1)


def module(net: Linear) -> nn.Module:
    layer = nn.Linear(net.weight.shape[1], len(net.weight))
    layer.load_state_dict({"weight": net.weight.detach(), "bias": net.bias.detach()})
    return nn.Sequential(nn.Flatten(), layer)


def small_net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(16, 12), nn.LeakyReLU(0.1), nn.Sequential(nn.Linear(12, 8), nn.ReLU()),
        nn.Linear(8, 5),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_bounds_on_a_linear_target_are_exact_where_the_box_is_far(norm: str, method: str) -> None:
    net, x, y = linear()
    x = x * 0 + 0.5
    y = net(x).argmax(1)
    eps = 0.01
    low = certify.margins(module(net), x, y, NORMS[norm](eps), method=method)
    w = net.weight.double()
    dual = {"linf": 1, "l2": 2, "l1": math.inf}[norm]
    difference = w[y][:, None] - w[None]  # [n, k, d]
    size = torch.linalg.vector_norm(difference, ord=dual, dim=2)
    gap = (difference * x.double()[:, None]).sum(2) + (net.bias[y][:, None] - net.bias[None]).double()
    want = gap - eps * size
    rival = torch.arange(4) != y[:, None]
    if method == "crown":
        torch.testing.assert_close(low[rival], want[rival])
    else:  # each score alone, and in the box around the ball: sound, never above
        assert bool((low[rival] <= want[rival] + 1e-9).all())
    assert bool(torch.isinf(low[~rival]).all())


def test_the_radius_of_a_linear_target_is_its_distance_box_included() -> None:
    net, x, y = linear()
    found = certify.certified_radius(module(net), x, y, uf.linf(), steps=20)
    exact = torch.from_numpy(linear_distance(net, x, y, "linf")).clamp(max=1)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_bounds_hold_at_random_and_attacked_points_and_crown_is_no_looser(norm: str) -> None:
    net = small_net()
    torch.manual_seed(3)
    x = torch.rand(4, 1, 8, 8)
    y = net(x).argmax(1)
    eps = {"linf": 0.02, "l2": 0.1, "l1": 0.3}[norm]
    ball = NORMS[norm](eps)
    ibp, crown = (certify.margins(net, x, y, ball, method=m) for m in ("ibp", "crown"))
    assert bool((crown >= ibp - 1e-9).all())
    points = [x]
    for step in range(40):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(step)) * eps
        points.append(ball.project(x + noise, x))
    points += [uf.run(uf.attacks.pgd(steps=10), net, x, y, ball, seed=s).best for s in range(3)]
    for z in points:
        scores = net(z.float()).double()
        margin = scores.gather(1, y[:, None]) - scores
        rival = torch.arange(5) != y[:, None]
        assert bool((margin[rival] >= crown[rival] - 1e-5).all())


def test_bounds_are_below_the_exact_radii_of_small_networks_and_not_nothing() -> None:
    shares = []
    for case in list(milp.solved().values())[:3]:
        net, y = case.module(), torch.from_numpy(case.y[:4])
        x = torch.from_numpy(case.x[:4])
        for method in ("ibp", "crown"):
            radius = certify.certified_radius(net, x, y, uf.linf(), upper=0.5, steps=12, method=method)
            exact = torch.from_numpy(case.radii[:4])
            assert bool((radius <= exact * (1 + 1e-6) + 1e-9).all())
            if method == "crown":
                shares += (radius / exact.clamp(min=1e-9)).tolist()
    assert sum(shares) / len(shares) > 0.5


def test_a_chain_with_normalisation_is_bounded_as_it_is_asked() -> None:
    net, x, y = linear(9)
    plain = certify.margins(module(net), x, y, uf.linf(0.05))
    scaled = Linear(net.weight * 0.25, net.bias + net.weight @ torch.full((9,), 0.4))
    target = uf.Target(module(scaled), mean=0.4, std=0.25)
    torch.testing.assert_close(certify.margins(target, x, y, uf.linf(0.05)), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "threat", "said"),
    [
        (nn.Sequential(nn.Linear(12, 4), nn.Sigmoid()), uf.linf(0.1), "no bounds through a Sigmoid"),
        (nn.Linear(12, 4), uf.linf(), "finite eps"),
        (nn.Linear(12, 4), uf.l0(2), "Linf, L2 or L1"),
        (lambda v: v, uf.linf(0.1), "torch module"),
    ],
)
def test_what_cannot_be_bounded_is_refused_in_a_sentence(module: object, threat: uf.Ball, said: str) -> None:
    with pytest.raises(uf.InputError, match=said):
        certify.margins(module, torch.rand(1, 12), torch.tensor([0]), threat)


# ---- smoothing


def test_the_smoothed_halfspace_has_the_closed_form_radius() -> None:
    """Of two classes with a plane between them the smoothed radius is the distance to the plane (Cohen, sec. 3.3)."""
    torch.manual_seed(0)
    w = torch.randn(8)
    net = Linear(torch.stack([torch.zeros(8), w]), torch.tensor([0.0, -float(w.sum()) / 2]))
    x = torch.rand(20, 8)
    distance = ((x - 0.5) @ w / w.norm()).abs().double()
    found = certify.smoothed(net, x, sigma=0.25, n=4000, alpha=0.001)
    answered = found.label >= 0
    assert bool((found.label[answered] == net(x).argmax(1)[answered]).all())
    assert bool((found.radius <= distance + 1e-6).all())  # holds with probability 1 - 20 * alpha, and for this seed
    sure = (distance > 0.05) & (distance < 0.5)
    assert float((found.radius[sure] / distance[sure]).median()) > 0.8
    assert found.forward == 20 * 4100


def test_a_row_alone_has_the_certificate_it_has_in_a_batch() -> None:
    net, x, _ = linear()
    together = certify.smoothed(net, x, sigma=0.1, n=200)
    alone = certify.smoothed(net, x[2:3], sigma=0.1, n=200)
    assert torch.equal(alone.radius, together.radius[2:3])
    assert torch.equal(alone.counts[0], together.counts[2, : alone.counts.shape[1]])


def test_a_coin_is_no_certificate() -> None:
    tie = uf.Target(lambda v: torch.stack([v[:, 0], torch.zeros(len(v))], 1))
    x = torch.zeros(3, 2)
    x[:, 1] = torch.tensor([0.1, 0.2, 0.3])
    found = certify.smoothed(tie, x, sigma=0.5, n=500)
    assert found.label.tolist() == [-1] * 3 and float(found.radius.max()) == 0
    assert predict(tie, x, sigma=0.5, n=500).tolist() == [-1] * 3
    assert predict(tie, x + 5, sigma=0.5, n=500).tolist() == [0] * 3


def test_bad_settings_are_refused() -> None:
    net, x, _ = linear()
    with pytest.raises(uf.InputError, match="sigma must be larger than 0"):
        certify.smoothed(net, x, sigma=0)
    with pytest.raises(uf.InputError, match="always answers"):
        certify.smoothed(uf.Target(net, reject=0.9), x, sigma=0.1)
