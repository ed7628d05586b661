"""What units look for, what answers and changes hang on, nearest examples, gradients side by side: known answers."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unfooled as uf
import unfooled.attacks as attacks
from unfooled import explain
from unfooled.core import layers
from unfooled.core.ask import Asker
from unfooled.core.explanation import Explanation
from unfooled.explain.attribution import METHODS, Method
from unfooled.testing import Linear, Spy


def net(seed: int = 0, channels: int = 1, size: int = 8, classes: int = 3, *, plain: bool = False) -> nn.Sequential:
    """A small network with random weights, with ReLU modules unless it is `plain`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        act: list[nn.Module] = [nn.Softplus(), nn.Softplus()] if plain else [nn.ReLU(), nn.ReLU()]
        return nn.Sequential(
            nn.Conv2d(channels, 6, 3), act[0], nn.Flatten(), nn.Linear(6 * (size - 2) ** 2, 10), act[1],
            nn.Linear(10, classes),
        )  # fmt: skip


def images(n: int, channels: int = 1, size: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


class Filters(nn.Module):
    """One convolution by hand-made filters, its channels' means as scores."""

    def __init__(self, filters: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(filters.shape[1], len(filters), filters.shape[2], bias=False)
        self.conv.weight = nn.Parameter(filters)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x - 0.5).mean((2, 3))


def filters() -> Tensor:
    """An upright edge, a level edge and a bar, 5 x 5 each, each with mean 0."""
    at = torch.arange(5.0) - 2
    edge = at.sign().expand(5, 5)
    bar = torch.tensor([-2.0, 1.0, 2.0, 1.0, -2.0]).expand(5, 5)
    return torch.stack([edge, edge.T, bar])[:, None]


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


# ---- visualise


def test_one_neuron_s_picture_is_its_filter() -> None:
    made = explain.visualise(
        Filters(filters()), "conv", [(i, 2, 2) for i in range(3)], shape=(1, 9, 9), transforms=[], steps=64
    )
    for image, wanted in zip(made.images, filters(), strict=True):
        assert correlation(image[:, 2:7, 2:7], wanted) > 0.9
    others = [correlation(made.images[i][:, 2:7, 2:7], filters()[j]) for i in range(3) for j in range(3) if i != j]
    assert max(map(abs, others)) < 0.5
    assert made.names[1] == "1, 2, 2"


def test_under_small_moves_a_neuron_s_picture_is_still_its_filter() -> None:
    made = explain.visualise(Filters(filters()), "conv", [(i, 2, 2) for i in range(3)], shape=(1, 9, 9), steps=64)
    for image, wanted in zip(made.images, filters(), strict=True):
        assert correlation(image[:, 2:7, 2:7], wanted) > 0.8


def test_a_linear_class_is_drawn_by_its_weights() -> None:
    linear = Linear.random((1, 6, 6), 3, seed=4)
    made = explain.visualise(linear, shape=(1, 6, 6), transforms=[], decay=0.0, steps=300)
    for k in range(3):
        heavy = linear.weight[k].abs() > 0.05
        assert torch.equal(made.images[k].flatten()[heavy] > 0.5, linear.weight[k][heavy] > 0)
        most = (linear.weight[k].clamp(min=0).sum() + linear.bias[k]).detach()  # at the corner of the signs
        assert 0.97 * float(most) < float(made.reached[k]) <= float(most)
        assert torch.allclose(made.reached[k], linear(made.images)[k, k].detach(), atol=1e-5)
    assert bool((made.gains > 3).all())


def test_colours_of_a_picture_are_those_that_the_unit_wants() -> None:
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
    wants = Filters(torch.cat([red, -red]))
    made = explain.visualise(wants, "conv", shape=(3, 8, 8), transforms=[], decay=0.0, colours=torch.eye(3))
    means = made.images.mean((2, 3))
    assert means[0, 0] > 0.9 > 0.1 > means[0, 1:].max()
    assert means[1, 0] < 0.1 < 0.9 < means[1, 1:].min()
    natural = explain.visualise(wants, "conv", shape=(3, 8, 8), transforms=[], steps=64).images.mean((2, 3))
    assert natural[0, 0] > natural[0, 1:].max() + 0.05
    assert natural[1, 0] < natural[1, 1:].min() - 0.05


def test_activations_are_measured_where_they_are_said_to_be() -> None:
    target, data = net(), images(7)
    made = explain.visualise(target, "0", [1, 4], data=data, steps=5)
    got = target[0](data).mean((2, 3)).detach()
    assert made.natural is not None
    assert torch.allclose(made.natural, got[:, [1, 4]].T, atol=1e-6)
    assert torch.allclose(made.reached, target[0](made.images).mean((2, 3))[[0, 1], [1, 4]].detach(), atol=1e-6)
    assert torch.allclose(made.reached, made.history.amax(0))
    place = explain.visualise(target, "0", [(1, 2, 3)], data=data, steps=5)
    assert place.natural is not None
    assert torch.allclose(place.natural[0], target[0](data)[:, 1, 2, 3].detach(), atol=1e-6)
    assert "natural images" in made.sentence()
    assert "shuffled" in made.sentence()


def test_a_unit_has_its_own_luck_and_the_same_seed_the_same_bits() -> None:
    together = explain.visualise(net(), "3", shape=(1, 8, 8), steps=10)
    alone = explain.visualise(net(), "3", [7], shape=(1, 8, 8), steps=10)
    again = explain.visualise(net(), "3", [7], shape=(1, 8, 8), steps=10)
    other = explain.visualise(net(), "3", [7], shape=(1, 8, 8), steps=10, seed=1)
    assert torch.allclose(together.images[7], alone.images[0], atol=1e-4)
    assert torch.equal(alone.images, again.images)
    assert not torch.allclose(alone.images, other.images, atol=1e-3)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"layer": "conv1", "shape": (1, 8, 8)}, "no layer 'conv1'"),
        ({"layer": "0", "units": [6], "shape": (1, 8, 8)}, "There are no units"),
        ({"layer": "0", "units": [(1, 2)], "shape": (1, 8, 8)}, "There are no units"),
        ({"layer": "0", "units": [], "shape": (1, 8, 8)}, "There are no units"),
        ({"units": "some", "shape": (1, 8, 8)}, "'all'"),
        ({"shape": (1, 9, 9)}, "fails on inputs of shape"),
        ({}, "Say what images"),
        ({"shape": (1, 9, 9), "data": images(2)}, "natural images"),
    ],
)
def test_what_cannot_be_visualised_is_said(more: dict[str, object], says: str) -> None:
    with pytest.raises(uf.InputError, match=says):
        explain.visualise(net(), **more)  # type: ignore[arg-type]


def test_near_names_of_layers_are_offered() -> None:
    with pytest.raises(uf.InputError, match="Did you mean 'conv'"):
        explain.visualise(Filters(filters()), "conf", shape=(1, 9, 9))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.same, self.idle, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 1), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.same(self.same(x)).flatten(1))


@pytest.mark.parametrize(("layer", "says"), [("same", "several times"), ("idle", "not at all")])
def test_layers_that_do_not_run_once_are_refused(layer: str, says: str) -> None:
    with pytest.raises(uf.InputError, match=says):
        explain.visualise(Twice(), layer, shape=(1, 8, 8), steps=1)


# ---- layers


def test_activations_are_the_modules_own_even_behind_in_place_ones() -> None:
    conv = nn.Conv2d(1, 2, 3)
    target = nn.Sequential(conv, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(72, 3))
    x = images(9)
    assert torch.allclose(layers.activations(Asker(target, batch_size=4), x, "0"), conv(x))
    assert torch.allclose(layers.activations(Asker(target), x, "3", "input"), conv(x).relu().flatten(1))


def test_activations_of_a_target_that_takes_one_batch_size_only() -> None:
    plain = net()
    target = uf.Target(plain)
    target.batch = 4
    x = images(6)
    assert torch.allclose(layers.activations(Asker(target), x, "0"), plain[0](x), atol=1e-6)


def test_activations_of_a_random_target_are_the_means_of_its_draws() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.calls = nn.Linear(4, 2), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.head(x + self.calls)

    module = Noisy()
    target = uf.Target(module)
    target.draws = 3
    x = torch.rand(5, 4)
    got = layers.activations(Asker(target), x, "head", "input")
    assert torch.allclose(got, x + 2)  # the mean of 1, 2 and 3


def test_the_head_is_found_by_its_scores() -> None:
    x = images(2)
    assert layers.penultimate(Asker(net()), x) == "5"
    assert layers.penultimate(Asker(nn.Sequential(net(), nn.Softmax(1))), x) == "0.5"
    assert layers.penultimate(Asker(lambda x: x.flatten(1)), x) is None
    assert layers.penultimate(Asker(nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU())), x) == "1"


def test_a_shuffled_copy_has_the_same_weights_in_another_order() -> None:
    module = net()
    target = uf.Target(module)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    twin = layers.shuffled(target, ["3", "5"], seed=0)
    assert isinstance(twin.module, nn.Module)
    after = twin.module.state_dict()
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    for name in ("3.weight", "5.weight"):
        assert torch.equal(after[name].flatten().sort().values, before[name].flatten().sort().values)
        assert not torch.equal(after[name], before[name])
    assert all(torch.equal(after[name], before[name]) for name in ("0.weight", "0.bias", "3.bias", "5.bias"))
    alone = layers.shuffled(target, ["5"], seed=0)
    assert isinstance(alone.module, nn.Module)
    assert torch.equal(alone.module.state_dict()["5.weight"], after["5.weight"])
    assert layers.weighted(target) == ["0", "3", "5"]


def test_frozen_weights_are_weights_and_means_of_channels_are_none() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.rand(3, 1, 1))
            self.register_buffer("kernel", torch.rand(4, 3, 1, 1))
            self.register_buffer("count", torch.ones(3, 3, dtype=torch.long))

    module = Frozen()
    assert layers.weighted(uf.Target(nn.Sequential(module, nn.BatchNorm2d(4), nn.Linear(4, 1)))) == ["0", "2"]
    twin = layers.shuffled(uf.Target(module), [""], seed=0).module
    assert isinstance(twin, nn.Module)
    changed = {key for key, value in twin.state_dict().items() if not torch.equal(value, module.state_dict()[key])}
    assert changed == {"kernel"}


# ---- attributions


@pytest.mark.parametrize("method", METHODS)
def test_attributions_of_a_linear_target_are_its_weights(method: Method) -> None:
    linear = Linear.random((1, 4, 4), 3, seed=1)
    target = uf.Target(linear, mean=[0.3], std=[0.5])
    x, classes = images(4, size=4), torch.tensor([0, 2, 1, 1])
    pytest.importorskip("captum")
    made = explain.attributions(target, x, classes, method)
    slopes = (linear.weight[classes] / 0.5).view_as(x).detach()  # with respect to x before it is normalised
    wanted = slopes * x if method in ("input_x_gradient", "integrated_gradients") else slopes
    assert torch.allclose(made.maps, wanted, atol=1e-5)
    assert ("plain gradients" in made.note) == (method in ("guided", "deconvolution"))


@pytest.mark.parametrize("method", METHODS)
def test_attributions_are_those_of_captum(method: Method) -> None:
    captum = pytest.importorskip("captum.attr")
    target, x, classes = net(3), images(5), torch.tensor([0, 1, 2, 1, 0])
    ways = {
        "saliency": lambda: captum.Saliency(target).attribute(x, target=classes, abs=False),
        "input_x_gradient": lambda: captum.InputXGradient(target).attribute(x, target=classes),
        "integrated_gradients": lambda: captum.IntegratedGradients(target).attribute(
            x, target=classes, n_steps=64, method="riemann_middle"
        ),
        "guided": lambda: captum.GuidedBackprop(target).attribute(x, target=classes),
        "deconvolution": lambda: captum.Deconvolution(target).attribute(x, target=classes),
    }
    x.requires_grad_(True)
    with pytest.warns(UserWarning) if method in ("guided", "deconvolution") else torch.enable_grad():
        theirs = ways[method]()
    ours = explain.attributions(target, x, classes, method).maps
    assert torch.allclose(ours, theirs.float(), atol=1e-5)
    assert float(ours.abs().max()) > 1e-3


def test_guided_gradients_differ_from_plain_ones_only_through_relu_modules() -> None:
    pytest.importorskip("captum")
    x, classes = images(3), torch.tensor([0, 1, 2])
    for plain in (True, False):
        maps = [explain.attributions(net(plain=plain), x, classes, m).maps for m in ("saliency", "guided")]
        assert torch.allclose(*maps, atol=1e-6) == plain


def test_a_relu_that_writes_in_place_or_runs_twice_is_no_hindrance() -> None:
    pytest.importorskip("captum")
    base, act = net(5), nn.ReLU(inplace=True)
    twice = nn.Sequential(base[0], act, base[2], base[3], act, base[5])
    x, classes = images(3), torch.tensor([0, 1, 2])
    apart, shared = (explain.attributions(m, x, classes, "guided").maps for m in (base, twice))
    assert torch.allclose(apart, shared, atol=1e-6)
    assert act.inplace


def test_integrated_gradients_add_up_and_say_what_they_miss() -> None:
    target, x, classes = net(1), images(6), torch.tensor([0, 1, 2, 0, 1, 2])
    made = explain.attributions(target, x, classes, "integrated_gradients", steps=256)
    moved = (target(x) - target(torch.zeros_like(x))).gather(1, classes.view(-1, 1))[:, 0].detach()
    assert torch.allclose(made.maps.flatten(1).sum(1), moved, atol=5e-3)
    assert made.residual is not None
    assert float(made.residual.max()) < 0.05
    coarse = explain.attributions(target, x, classes, "integrated_gradients", steps=1).residual
    assert coarse is not None
    assert float(coarse.mean()) > 3 * float(made.residual.mean())
    from_itself = explain.attributions(target, x[:1], classes[:1], baseline=x[0])
    assert float(from_itself.maps.abs().max()) == 0


def test_shuffling_the_weights_changes_the_maps_and_the_first_stages_stay() -> None:
    made = explain.attributions(net(2), images(4), torch.tensor([0, 1, 2, 0]), "saliency")
    assert made.stages == ("5", "3", "0")
    assert made.correlations.shape == (3, 4)
    assert float(made.correlations[-1].abs().mean()) < 0.5
    constant = explain.attributions(Spy(lambda x: x.flatten(1)[:, :2]), images(2), torch.tensor([0, 1]), "saliency")
    assert constant.stages == ()  # no weights, no control
    assert constant.rows()[0]["correlation when shuffled"] is None


def test_rank_correlations_agree_with_scipy() -> None:
    from scipy.stats import spearmanr

    target, x, classes = net(7), images(2), torch.tensor([0, 1])
    made = explain.attributions(target, x, classes, "input_x_gradient")
    twin = layers.shuffled(uf.Target(target), ["0", "3", "5"], seed=0)
    theirs = explain.attributions(twin, x, classes, "input_x_gradient").maps
    for i in range(2):
        wanted = spearmanr(made.maps[i].abs().flatten(), theirs[i].abs().flatten()).statistic
        assert float(made.correlations[-1, i]) == pytest.approx(wanted, abs=1e-5)
    x[:, :, 2:5] = 0.0  # of which products with the input know nothing
    black = explain.attributions(target, x, classes, "input_x_gradient")
    theirs = explain.attributions(twin, x, classes, "input_x_gradient").maps
    for i in range(2):
        told = x[i] > 0
        wanted = spearmanr(black.maps[i][told].abs(), theirs[i][told].abs()).statistic
        assert float(black.correlations[-1, i]) == pytest.approx(wanted, abs=1e-5)


# ---- the change


def test_a_change_of_a_linear_target_is_attributed_exactly() -> None:
    linear = Linear.random((1, 4, 4), 3, seed=2)
    x, y = images(5, size=4), torch.tensor([0, 1, 2, 0, 1])
    x_adv = images(5, size=4, seed=1)
    made = explain.change_attribution(linear, x, x_adv, y)
    scores = linear(x_adv).detach()
    to = scores.scatter(1, y.view(-1, 1), -math.inf).argmax(1)
    assert torch.equal(made.to, to)
    wanted = (linear.weight[to] - linear.weight[y]).view_as(x).detach() * (x_adv - x)
    assert torch.allclose(made.maps, wanted, atol=1e-5)
    assert torch.allclose(made.first, wanted, atol=1e-5)
    assert torch.allclose(made.moved, wanted.flatten(1).sum(1), atol=1e-5)
    assert float(made.residual.max()) < 1e-3


def test_the_share_that_carries_half_of_the_move() -> None:
    linear = Linear(torch.stack([torch.zeros(4), torch.tensor([4.0, 2.0, 1.0, 1.0])]), torch.zeros(2))
    x, y = torch.zeros(3, 4), torch.tensor([0, 0, 0])
    x_adv = torch.tensor([[1.0, 1, 1, 1], [0, 1, 1, 1], [0.0, 0, 0, 1]])
    made = explain.change_attribution(linear, x, x_adv, y)
    assert made.share.tolist() == [0.25, 0.25, 0.25]
    assert made.moved.tolist() == [8, 4, 1]
    even = Linear(torch.stack([torch.zeros(4), torch.ones(4)]), torch.zeros(2))
    assert explain.change_attribution(even, x[:1], x_adv[:1], y[:1]).share.tolist() == [0.5]


def test_a_change_along_the_gradient_moves_more_than_shuffled() -> None:
    target, x = net(4), images(12)
    y = target(x).argmax(1)
    run = uf.run("pgd(steps=20)", target, x, y, uf.linf(0.2))
    made = explain.change_attribution(target, x, run.x_adv, y)
    fooled = run.success
    assert bool(fooled.any())
    assert float(made.moved[fooled].mean()) > 2 * float(made.shuffled[fooled].abs().mean())
    assert torch.allclose(made.maps.flatten(1).sum(1), made.moved, atol=0.05)
    assert "shuffled" in made.sentence()


# ---- neighbours


def test_neighbours_in_features_and_pixels_by_hand() -> None:
    class Sum(nn.Module):
        """Two features: the sum and ten times the first value."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 2, bias=False), nn.Linear(2, 2)
            self.body.weight = nn.Parameter(torch.tensor([[1.0, 1, 1, 1], [10.0, 0, 0, 0]]))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.flatten(1)))

    data = torch.tensor([[0.0, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0.9, 0.9, 0]]).view(4, 1, 2, 2)
    x = torch.tensor([[0.0, 1, 0, 0], [0.9, 0.0, 0, 0]]).view(2, 1, 2, 2)
    labels = torch.tensor([5, 6, 7, 8])
    made = explain.nearest_examples(Sum(), x, data, labels, k=2)
    assert made.layer == "the features that layer head reads"
    assert sorted(made.near[0].tolist()) == [0, 1]
    assert made.near[1, 0] == 2
    assert made.distances[0].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert float(made.distances[1, 0]) == pytest.approx(math.hypot(0.1, 1.0))
    assert made.near_pixels[:, 0].tolist() == [3, 2]
    assert float(made.distances_pixels[0, 0]) == pytest.approx(math.hypot(0.1, 0.9))
    assert made.labels_pixels[:, 0].tolist() == [8, 7]
    body = explain.nearest_examples(Sum(), x, data, labels, layer="body", k=2)
    assert torch.equal(body.distances, made.distances)
    assert torch.equal(made.images[1, 0], data[2])


def test_without_a_head_the_scores_are_the_features() -> None:
    data = images(30)
    made = explain.nearest_examples(lambda x: x.flatten(1)[:, :5], data[:3], data, torch.arange(30), k=4)
    assert made.layer == "the scores"
    assert made.labels[:, 0].tolist() == [0, 1, 2]
    assert torch.equal(
        made.near, torch.cdist(data[:3].flatten(1)[:, :5], data.flatten(1)[:, :5]).topk(4, largest=False)[1]
    )


@pytest.mark.parametrize("bad", [{"k": 0}, {"k": 9}, {"layer": "9"}, {"data_y": torch.zeros(3).long()}])
def test_neighbours_that_cannot_be_are_refused(bad: dict[str, object]) -> None:
    given: dict[str, object] = {"x": images(2), "data_x": images(8), "data_y": torch.zeros(8).long()}
    with pytest.raises(uf.InputError):
        explain.nearest_examples(net(), **given | bad)  # type: ignore[arg-type]


# ---- side by side


def test_gradients_of_a_class_mean_classifier_are_aligned_with_the_means() -> None:
    g = torch.Generator().manual_seed(0)
    means = torch.rand(2, 1, 6, 6, generator=g) * 0.4 + 0.3
    y = torch.arange(40) % 2
    x = (means[y] + 0.02 * torch.randn(40, 1, 6, 6, generator=g)).clamp(0, 1)
    right = Linear(means.flatten(1) * 5, -(means.flatten(1) ** 2).sum(1) * 2.5)
    wrong = Linear(-means.flatten(1) * 5, (means.flatten(1) ** 2).sum(1) * 2.5)
    random = Linear.random((1, 6, 6), 2, seed=3)
    made = explain.gradients_side_by_side(
        {"right": right, "wrong": wrong, "random": random}, x, y, threats=["l2(0.5)", uf.linf(0.1)],
        attack=attacks.pgd(steps=5),
    )  # fmt: skip
    aligned = made.aligned.mean(1)
    assert float(aligned[0]) > 0.95
    assert float(aligned[1]) < -0.95
    assert abs(float(aligned[2])) < 0.5
    assert torch.allclose(made.control, -made.aligned, atol=1e-6)  # of two classes the other mean lies opposite
    assert float(made.changed[0, 0].min()) > 0.9
    assert float(made.changed[1, 0].max()) < -0.9
    assert float((made.images[:, 1] - x).abs().max()) == pytest.approx(0.1, abs=1e-6)
    assert len(made.rows()) == 6
    confidences = right(made.images[0, 0]).softmax(1).gather(1, (1 - y).view(-1, 1))[:, 0]
    assert torch.allclose(made.confidences[0, 0], confidences.detach(), atol=1e-6)


def test_a_gradient_that_lies_on_the_edges_of_its_image_is_told_from_one_that_does_not() -> None:
    class Edges(nn.Module):
        """The second score is the image's own roughness."""

        def forward(self, x: Tensor) -> Tensor:
            rough = (F.pad(x, (1, 1, 1, 1), mode="replicate")[:, :, 1:-1, 2:] - x).square().flatten(1).sum(1)
            return torch.stack([0 * rough, rough], 1)

    x = torch.zeros(8, 1, 12, 12)
    for i in range(8):
        x[i, :, 1 + i : 4 + i, (3 * i) % 8 : (3 * i) % 8 + 3] = 1.0
    y = torch.arange(8) % 2
    made = explain.gradients_side_by_side(
        {"edges": Edges(), "random": Linear.random((1, 12, 12), 2)}, x, y, threats=["linf(0.1)"],
        attack="pgd(steps=2)",
    )  # fmt: skip
    assert float(made.on_edges[0].mean()) > 0.4
    assert float(made.control_edges[0].mean()) < 0.2
    assert abs(float(made.on_edges[1].mean())) < 0.15


@pytest.mark.parametrize(
    "bad",
    [
        {"threats": []},
        {"targets": {}},
        {"y": torch.zeros(3).long()},
        {"attack": "no_such"},
        {"to": torch.full((6,), 3)},
    ],
)
def test_what_cannot_stand_side_by_side_is_refused(bad: dict[str, object]) -> None:
    given: dict[str, object] = {
        "targets": {"a": net()}, "x": images(6), "y": torch.tensor([0, 1, 4, 0, 1, 4]), "threats": ["linf(0.1)"],
        "attack": "pgd(steps=2)", "to": torch.tensor([1, 0, 0, 1, 0, 0]),
    }  # fmt: skip
    with pytest.raises(uf.InputError):
        explain.gradients_side_by_side(**given | bad)  # type: ignore[arg-type]


# ---- all of them


def everything(target: nn.Module) -> list[Explanation]:
    x, y = images(3), torch.tensor([0, 1, 2])
    return [
        explain.visualise(target, "0", [0, 1], data=x, steps=3),
        *(explain.attributions(target, x, y, method) for method in METHODS),
        explain.change_attribution(target, x, images(3, seed=1), y),
        explain.nearest_examples(target, x, images(9), torch.arange(9), k=2),
        explain.gradients_side_by_side({"a": target}, x, y, threats=["linf(0.1)"], attack=attacks.pgd(steps=2)),
    ]


def test_the_world_is_left_as_it_was() -> None:
    pytest.importorskip("captum")
    target = nn.Sequential(net(), nn.Dropout())
    target[0].insert(1, nn.BatchNorm2d(6))
    target = nn.Sequential(*target[0], target[1]).train()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    state = torch.get_rng_state()
    everything(target)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    assert all(m.training for m in target.modules())
    assert all(p.requires_grad and p.grad is None for p in target.parameters())
    for m in target.modules():
        assert not m._forward_hooks
        assert not m._forward_pre_hooks
        assert not m._backward_hooks


def test_hooks_are_gone_after_an_error() -> None:
    module = Twice()
    with pytest.raises(uf.InputError):
        layers.activations(Asker(module), images(2), "same")
    assert not module.same._forward_hooks


def test_every_pass_is_counted() -> None:
    spy = Spy(lambda x: torch.stack([x.flatten(1).sum(1), -x.flatten(1).sum(1)], 1))
    made = explain.change_attribution(spy, images(3), images(3, seed=1), torch.tensor([0, 1, 0]), steps=7)
    assert (made.forward, made.backward) == (spy.forward_rows, spy.backward_rows) == (1 + 3 * (1 + 7 + 1 + 4), 3 * 8)
    spy = Spy(net())
    seen = explain.attributions(lambda x: spy(x), images(3), torch.tensor([0, 1, 0]), "saliency")
    assert (seen.forward, seen.backward) == (spy.forward_rows, spy.backward_rows) == (4, 3)


def test_the_same_rows_make_the_same_picture() -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("captum")
    made = everything(net())
    assert made[0].image(dpi=40) == everything(net())[0].image(dpi=40)
    for each in {type(one): one for one in made}.values():
        assert each.image(dpi=40)[:4] == b"\x89PNG"
        assert len({tuple(row) for row in each.rows()}) == 1
        assert each.sentence().endswith(".")


@pytest.mark.gpu
def test_a_gpu_gives_the_same_numbers() -> None:
    pytest.importorskip("captum")
    here, there = everything(net()), everything(net().cuda())
    for a, b in zip(here, there, strict=True):
        for key, value in vars(a).items():
            if isinstance(value, Tensor) and value.is_floating_point() and key not in ("images", "history"):
                assert torch.allclose(value, getattr(b, key).cpu(), atol=1e-2), (type(a).__name__, key)
