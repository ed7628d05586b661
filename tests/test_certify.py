"""Certificates: exact on linear targets, below the exact radii of small networks, below every attack."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import unfooled as uf
from tests import milp
from unfooled import certify, harden
from unfooled.certify.smoothing import draws_for, largest_radius, predict
from unfooled.core.fit import fit
from unfooled.core.network import IntervalBound
from unfooled.evaluate.hardened import Worn, harden_target
from unfooled.harden.certified import certified, gaussian
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


class Block(nn.Module):
    """A residual block in plain code: normalisation by hand, functions instead of layers, sums in both orders."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.register_buffer("centre", torch.full((1, 1, 1, 1), 0.4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [n, 1, h, w] to [n, width * 4]."""
        x = torch.relu(self.first((x - self.centre) / 0.5))
        y = 0.5 * self.norm(self.second(x)) + 0.1
        x = nn.functional.relu(x + y) - y
        x = nn.functional.max_pool2d(x, 3, 2, padding=1)
        return nn.functional.adaptive_avg_pool2d(x, 2).view(x.size(0), -1)


def residual_net() -> nn.Module:
    torch.manual_seed(5)
    net = nn.Sequential(Block(3), nn.Dropout(0.5), nn.Linear(12, 8), nn.LeakyReLU(0.2), nn.Linear(8, 4))
    net[0].norm.running_mean.normal_().mul_(0.1)
    net[0].norm.running_var.uniform_(0.5, 2.0)
    net[0].norm.weight.data.uniform_(-1.5, 1.5)
    return net.eval()


def pooled_net() -> nn.Module:
    torch.manual_seed(6)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(3, 4, 2, groups=1), nn.MaxPool2d(2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("make", [residual_net, pooled_net])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bounds_hold_through_residual_blocks_and_maximum_pooling(make: Callable[[], nn.Module], norm: str) -> None:
    net = make()
    torch.manual_seed(7)
    x = torch.rand(3, 1, 8, 8)
    y = net(x).argmax(1)
    ball = NORMS[norm]({"linf": 0.03, "l2": 0.15}[norm])
    ibp, crown = (certify.margins(net, x, y, ball, method=m) for m in ("ibp", "crown"))
    assert bool((crown >= ibp - 1e-9).all()) and bool((crown > ibp + 1e-3).any())
    points = [x] + [ball.project(x + torch.randn(x.shape) * ball.eps, x) for _ in range(200)]
    points += [uf.run(uf.attacks.pgd(steps=10), net, x, y, ball, seed=s).best for s in range(3)]
    rival = torch.arange(4) != y[:, None]
    least = torch.full((3, 4), math.inf, dtype=torch.float64)
    for z in points:
        scores = net(z.float()).double()
        least = torch.minimum(least, scores.gather(1, y[:, None]) - scores)
    assert bool((least[rival] >= crown[rival] - 1e-5).all())
    at_point = certify.margins(net, x, y, NORMS[norm](0.0))  # a ball of radius 0 is the point
    scores = net(x).double()
    torch.testing.assert_close(at_point[rival], (scores.gather(1, y[:, None]) - scores)[rival], rtol=1e-4, atol=1e-4)


def test_a_maximum_of_two_inputs_is_bounded_as_by_hand() -> None:
    """max(a, b) - 0.6 against 0, a in [.4, .6] and b in [.7, .9] or [.5, .7]: lowest 0.1 where b is surely larger."""
    net = nn.Sequential(nn.MaxPool2d((1, 2)), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        net[2].weight.copy_(torch.tensor([[1.0], [0.0]]))
        net[2].bias.copy_(torch.tensor([-0.6, 0.0]))
    x = torch.tensor([[[[0.5, 0.8]]], [[[0.5, 0.6]]]])
    low = certify.margins(net, x, torch.tensor([0, 0]), uf.linf(0.1))
    torch.testing.assert_close(low[:, 1], torch.tensor([0.1, -0.1], dtype=torch.float64))
    low = certify.margins(net, x, torch.tensor([1, 1]), uf.linf(0.1))
    torch.testing.assert_close(low[:, 0], torch.tensor([-0.3, -0.1], dtype=torch.float64))


def test_bounds_of_many_rows_are_those_of_each_alone() -> None:
    net = residual_net()
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(1)
    together = certify.margins(net, x, y, uf.linf(0.03))
    for i in range(5):
        alone = certify.margins(net, x[i : i + 1], y[i : i + 1], uf.linf(0.03))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-9, atol=1e-9)
    radius = certify.certified_radius(net, x, y, uf.linf(), upper=0.2, steps=8)
    for i, r in enumerate(radius.tolist()):
        sound, beyond = (certify.margins(net, x[i : i + 1], y[i : i + 1], uf.linf(e)) for e in (r, r + 0.2 / 2**8))
        assert float(sound.amin()) > 0 >= float(beyond.amin())


def test_training_bounds_are_the_certificates_and_have_gradients() -> None:
    net = residual_net()
    x = torch.rand(4, 1, 8, 8)
    y = net(x).argmax(1)
    net.register_forward_hook(lambda module, given, out: out[: len(given[0])])  # hooks are no part of the network
    bound = IntervalBound()
    low = bound(net, x, y, uf.linf(0.02))
    rival = torch.arange(4) != y[:, None]
    want = certify.margins(net, x, y, uf.linf(0.02), method="ibp")
    torch.testing.assert_close(low[rival].double(), want[rival], rtol=1e-4, atol=1e-4)
    assert bool((low[~rival] == 0).all())
    low.sum().backward()
    assert float(net[0].second.weight.grad.abs().sum()) > 0
    with torch.no_grad():
        net[2].weight.mul_(2.0)  # what was read follows the weights
    assert not torch.allclose(bound(net, x, y, uf.linf(0.02)), low)


def test_training_bounds_are_of_the_network_in_eval_mode_and_leave_its_statistics() -> None:
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    x, y, bound = torch.rand(9, 6), torch.randint(3, (9,)), IntervalBound()
    rival = torch.arange(3) != y[:, None]
    for _ in range(2):
        before = [b.clone() for b in net.buffers()]
        low = bound(net, x, y, uf.linf(0.05))
        assert net.training and all(torch.equal(a, b) for a, b in zip(net.buffers(), before, strict=True))
        want = certify.margins(net, x, y, uf.linf(0.05), method="ibp")
        torch.testing.assert_close(low[rival].double(), want[rival], rtol=1e-4, atol=1e-4)
        point, scores = bound(net, x, y, uf.linf(0.0)), net(x)  # which moves the running statistics
        assert not torch.allclose(point, scores.gather(1, y[:, None]) - scores, atol=1e-3), "no batch's own statistics"
        net[1]._buffers["running_mean"] = net[1].running_mean + 1  # another tensor, as when a module is moved


@pytest.mark.parametrize(("mean", "std"), [([0.1307], [0.3081]), ([0.03], None), ([0.1, 0.5, 0.3], [0.2, 0.97, 0.4])])
def test_training_bounds_of_a_target_are_behind_its_normalisation(mean: list[float], std: list[float] | None) -> None:
    torch.manual_seed(6)
    c = len(mean)
    net = nn.Sequential(nn.Conv2d(c, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).eval()
    target, x, y, ball = uf.Target(net, mean=mean, std=std), torch.rand(5, c, 6, 6), torch.arange(5) % 3, uf.linf(0.01)
    layer = nn.BatchNorm2d(c, eps=0.0, affine=False).eval()
    layer.running_mean, layer.running_var = torch.tensor(mean), torch.tensor(std or [1.0] * c).square()
    low = IntervalBound()(Worn(target), x, y, ball)
    torch.testing.assert_close(low, IntervalBound()(nn.Sequential(layer, net), x, y, ball), rtol=0, atol=1e-4)
    rival = torch.arange(3) != y[:, None]
    want = certify.margins(target, x, y, ball, method="ibp")
    torch.testing.assert_close(low[rival].double(), want[rival], rtol=0, atol=1e-4)


def test_training_on_bounds_certifies_what_plain_training_does_not() -> None:
    torch.manual_seed(0)
    x = torch.rand(300, 6)
    y = (x[:, 0] > 0.5).long()
    x[:, 0] = torch.where(y == 1, 0.65 + 0.35 * x[:, 0], 0.35 * x[:, 0])  # a gap of 0.3 and more between the classes
    ball, shares = uf.linf(0.1), {}
    objectives = {
        "plain": harden.objectives.standard(),
        "certified": certified(IntervalBound(), ball, warm=10, ramp=50),
    }
    for name, objective in objectives.items():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        fit(net, x, y, objective, epochs=30, batch_size=100, lr=2e-2)
        shares[name] = float((certify.margins(net, x, y, ball, method="ibp").amin(1) > 0).double().mean())
    assert shares["certified"] > 0.99 > shares["plain"] + 0.1


def test_the_ways_by_name_train_in_bfloat16_too() -> None:
    x = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0.5).long()
    for name, threat in (("ibp", uf.linf(0.05)), ("gaussian", uf.l2(0.2))):
        net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
        before = net[0].weight.clone()
        lines = fit(net, x, y, harden.way(name).objective(threat, ramp=1), epochs=4, batch_size=20, precision="bf16")
        assert math.isfinite(lines[-1].loss) and not torch.equal(net[0].weight, before)
    with pytest.raises(uf.InputError, match="threats in L2"):
        harden.way("gaussian").objective(uf.linf(0.1))


def test_a_target_with_normalisation_is_hardened_by_its_bounds() -> None:
    target = uf.targets.resolve("digits-cnn")
    target = uf.Target(target.module, mean=0.5, std=0.5)
    train, test = uf.load_data("digits", split="train", limit=200), uf.load_data("digits", limit=20)
    proof = harden_target(target, train, test, uf.linf(0.02), recipe="ibp", epochs=1, suite="fgsm()")
    assert proof.after.n == 20 and math.isfinite(proof.training.lines[-1].loss)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: certified(IntervalBound(), uf.linf()), "finite eps"),
        (lambda: certified(IntervalBound(), uf.linf(0.1), kappa=2), "kappa is the share"),
        (lambda: gaussian(0.0), "larger than 0"),
    ],
)
def test_objectives_refuse_in_a_sentence(make: Callable[[], object], said: str) -> None:
    with pytest.raises(uf.InputError, match=said):
        make()


class Branching(nn.Module):
    """A module whose code asks for values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [n, 12] to [n, 12]."""
        return x if float(x.sum()) > 0 else -x


class Asking(nn.Module):
    """A module that treats what is no tensor differently: read, it would be another network."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [n, 12] to [n, 12]."""
        return 2 * x if isinstance(x, torch.Tensor) and type(x) is torch.Tensor else 3 * x


class Centred(nn.Module):
    """A module that takes the mean of the whole batch off."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [n, 12] to [n, 12]."""
        return x - x.mean()


class Detached(nn.Module):
    """A module whose factor is the input itself, though no gradient passes it: read, it would be a constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [n, 12] to [n, 12]."""
        return x * x.data


class InPlace(nn.Module):
    """A module whose activation changes what an earlier step has read: read, k would be of the scores before it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [n, 12] to [n, 4]."""
        h = self.linear(x)
        k = 3 * h
        nn.functional.relu(h, inplace=True)
        return k - h


@pytest.mark.parametrize(
    ("module", "threat", "said"),
    [
        (
            nn.Sequential(nn.Linear(12, 4), nn.Sigmoid()),
            uf.linf(0.1),
            "^Layer '1': There are no bounds through a Sigmoid",
        ),
        (nn.Sigmoid(), uf.linf(0.1), "^There are no bounds through a Sigmoid"),
        (nn.BatchNorm1d(12, track_running_stats=False), uf.linf(0.1), "whose answer depends on the batch"),
        (nn.Linear(12, 4), uf.linf(), "finite eps"),
        (nn.Linear(12, 4), uf.l0(2), "Linf, L2 or L1"),
        (lambda v: v, uf.linf(0.1), "torch module"),
        (Branching(), uf.linf(0.1), r"network \(its steps depend on the values that it computes\)"),
        (Asking(), uf.linf(0.1), "does not answer as it does"),
        (Centred(), uf.linf(0.1), "mixes examples"),
        (Detached(), uf.linf(0.1), "no bounds through a .data"),
        (InPlace(), uf.linf(0.1), "in place on what is used elsewhere"),
        (nn.LSTM(12, 4), uf.linf(0.1), "no bounds through|returns one tensor"),
        (nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 12))), uf.linf(0.1), "mixes examples"),
        (nn.Linear(12, 1), uf.linf(0.1), "two classes"),
        (uf.Target(nn.Linear(12, 4), reject="last"), uf.linf(0.1), "always answers"),
    ],
)
def test_what_cannot_be_bounded_is_refused_in_a_sentence(module: object, threat: uf.Ball, said: str) -> None:
    with pytest.raises(uf.InputError, match=said):
        certify.margins(module, torch.rand(1, 12), torch.tensor([0]), threat)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x - 5, "the target's bounds are"),
        (lambda x: 2 * x, "the target's bounds are"),
        (lambda x: (255 * x).byte(), "divide 8-bit images by 255"),
        (lambda x: x * math.nan, "not finite"),
        (lambda x: x[:0], "n at least 1"),
        (lambda x: x.tolist(), "a tensor of inputs"),
    ],
)
def test_inputs_that_the_bounds_do_not_hold_have_no_certificate(change: Callable, said: str) -> None:
    net, x, y = linear()
    other = change(x)
    for ask in (
        lambda: certify.margins(module(net), other, y[: len(other)], uf.linf(0.1)),
        lambda: certify.certified_radius(module(net), other, y[: len(other)], uf.linf()),
        lambda: certify.smoothed(net, other, sigma=0.1, n=10),
        lambda: predict(net, other, sigma=0.1, n=10),
    ):
        with pytest.raises(uf.InputError, match=said):
            ask()
    wide = uf.Target(net, bounds=(-5.0, 2.0))
    assert certify.smoothed(wide, x - 5, sigma=0.1, n=10).forward == 6 * 110


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


@pytest.mark.parametrize(("sigma", "n", "alpha"), [(0.25, 100, 0.001), (0.5, 10_000, 0.01), (1.0, 5, 0.05)])
def test_the_largest_radius_is_what_agreeing_draws_certify(sigma: float, n: int, alpha: float) -> None:
    always = uf.Target(lambda v: torch.stack([v[:, 0] * 0 + 1, v[:, 0] * 0], 1))
    found = certify.smoothed(always, torch.rand(2, 3), sigma=sigma, n=n, alpha=alpha)
    most = largest_radius(sigma, n, alpha)
    assert found.radius.tolist() == pytest.approx([most, most])
    assert draws_for(most * 0.9999, sigma, alpha) <= n < draws_for(most * 1.001, sigma, alpha) <= 1.05 * n + 1
    assert largest_radius(sigma, 3, 0.001) == 0 and draws_for(100 * sigma, sigma, alpha) > 1e9


def test_what_was_smoothed_prints_as_a_sentence() -> None:
    net, x, _ = linear()
    found = certify.smoothed(net, x, sigma=0.1, n=200)
    sure = found.radius[found.label >= 0]
    assert repr(found) == str(found) and len(str(found)) < 300 and "tensor" not in str(found)
    assert f"answers {len(sure)} of 6 inputs for certain" in str(found) and f"to {sure.max():.3g} (median" in str(found)
    nothing = certify.smoothed(net, x, sigma=0.1, n=3)
    assert "answers 0 of 6 inputs for certain, and abstains on 6." in str(nothing)


def test_a_coin_is_no_certificate() -> None:
    tie = uf.Target(lambda v: torch.stack([v[:, 0], torch.zeros(len(v))], 1))
    x = torch.zeros(3, 2)
    x[:, 1] = torch.tensor([0.1, 0.2, 0.3])
    found = certify.smoothed(tie, x, sigma=0.5, n=500)
    assert found.label.tolist() == [-1] * 3 and float(found.radius.max()) == 0
    assert predict(tie, x, sigma=0.5, n=500).tolist() == [-1] * 3
    assert predict(tie, x + 0.7, sigma=0.5, n=500).tolist() == [0] * 3


def test_bad_settings_are_refused() -> None:
    net, x, _ = linear()
    for sigma in (0, math.inf, math.nan):
        with pytest.raises(uf.InputError, match="sigma must be larger than 0 and finite"):
            certify.smoothed(net, x, sigma=sigma)
        with pytest.raises(uf.InputError, match="sigma must be larger than 0 and finite"):
            predict(net, x, sigma=sigma)
    with pytest.raises(uf.InputError, match="always answers"):
        certify.smoothed(uf.Target(net, reject=0.9), x, sigma=0.1)
