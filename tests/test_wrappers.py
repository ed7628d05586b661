"""Defences as modules: each does what its formula says, and the evaluation sees through it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import unfooled as uf
from unfooled import harden
from unfooled.core.access import Access
from unfooled.core.oracle import Oracle
from unfooled.core.straight import Straight, Variant
from unfooled.harden import wrappers


def same() -> nn.Module:
    return nn.Flatten()


def test_a_blur_keeps_the_mean_and_is_the_gaussian() -> None:
    x = torch.zeros(1, 1, 21, 21)
    x[0, 0, 10, 10] = 1
    out = wrappers.Blurred(same(), 1.5)(x).view(21, 21)
    torch.testing.assert_close(out.sum(), torch.tensor(1.0))
    d = torch.arange(-10, 11).float()
    want = torch.exp(-(d[:, None] ** 2 + d**2) / (2 * 1.5**2))
    torch.testing.assert_close(out[6:15, 6:15], (want / want.sum())[6:15, 6:15], rtol=0.02, atol=1e-4)
    flat = torch.full((2, 3, 8, 8), 0.3)
    torch.testing.assert_close(wrappers.Blurred(same())(flat).view_as(flat), flat)


def test_a_median_removes_single_pixels_and_keeps_edges() -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[..., 5:] = 1.0
    edge = x.clone()
    x[0, 0, 4, 2] = 1.0
    torch.testing.assert_close(wrappers.Median(same(), 3)(x).view_as(x), edge)


def test_levels_and_jpeg_are_what_files_hold() -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 3, 16, 16)
    out = wrappers.Quantised(same(), 2)(x)
    assert sorted({round(v, 4) for v in out.flatten().tolist()}) == [0, 0.3333, 0.6667, 1]
    assert float((out.view_as(x) - x).abs().max()) <= 1 / 6 + 1e-6
    read = wrappers.Jpeg(same(), 50)(x).view_as(x)
    for row, again in zip(x, read, strict=True):
        file = io.BytesIO()
        Image.fromarray((row * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=50)
        want = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255
        torch.testing.assert_close(again, want)
    with pytest.raises(uf.InputError, match="one or three channels"):
        wrappers.Jpeg(same())(torch.rand(1, 2, 8, 8))


def test_random_resizing_is_random_and_keeps_the_size() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 1, 20, 20)
    resized = wrappers.RandomResized(same(), 0.5)
    made = [resized(x) for _ in range(8)]
    assert all(m.shape == (2, 400) for m in made) and len({tuple(m[0].tolist()) for m in made}) == 8
    torch.testing.assert_close(wrappers.RandomResized(same(), 1.0)(x), x.flatten(1))


def test_independent_classes_may_all_say_no() -> None:
    body = nn.Linear(3, 2)
    with torch.no_grad():
        body.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
        body.bias.zero_()
    x = torch.tensor([[2.0, 1, 0], [-1, -2, 0]])
    scores = wrappers.Sigmoids(body, 0.5)(x)
    assert scores.argmax(1).tolist() == [0, 2]
    torch.testing.assert_close(scores[:, 2], torch.full((2,), 0.5))


def test_a_radial_basis_is_quadratic_and_refuses_what_is_far() -> None:
    torch.manual_seed(0)
    net = wrappers.RadialBasis(6, 3, refuse=2.0)
    x = torch.randn(4, 6)
    p = net.log_width.exp()
    want = -(p * (x[:, None] - net.centre).square()).sum(2)
    torch.testing.assert_close(net(x)[:, :3], want, rtol=1e-4, atol=1e-4)
    assert net(x * 100).argmax(1).tolist() == [3] * 4


def test_what_a_defence_costs_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    module.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 2))  # a pass takes two seconds
    defended = wrappers.Noisy(nn.Sequential(module, nn.Linear(10, 4)), 0.1, 3)
    defended.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 3))
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    cost = wrappers.overhead(module, defended, torch.rand(64, 1, 8, 8))
    assert cost["parameters"] == 650 and cost["parameters_defended"] == 650 + 44
    assert (cost["seconds"], cost["seconds_defended"], cost["times_slower"]) == (2, 5, 2.5)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda m: wrappers.Blurred(m, 0), "larger than 0"),
        (lambda m: wrappers.Median(m, 4), "odd size"),
        (lambda m: wrappers.Quantised(m, 0), "1 to 16"),
        (lambda m: wrappers.Jpeg(m, 99), "1 to 95"),
        (lambda m: wrappers.RandomResized(m, 1.5), "share of the side"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrap: object, said: str) -> None:
    with pytest.raises(uf.InputError, match=said):
        wrap(same())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: wrappers.Blurred(m, 0.6),
        lambda m: wrappers.Quantised(m, 3),
        pytest.param(lambda m: wrappers.Jpeg(m, 60), marks=pytest.mark.slow),
        lambda m: wrappers.RandomResized(m, 0.9),
    ],
    ids=["blur", "bits", "jpeg", "resize"],
)
def test_the_evaluation_sees_through_them(wrap) -> None:
    """A plain classifier behind such a defence is broken about as often as without it, where it still works."""
    bare = uf.targets.resolve("digits-cnn").module
    target = uf.Target(wrap(bare))
    data = uf.load_data("digits", limit=40)
    found = uf.evaluate(target, data, threat=uf.linf(0.1), suite="quick")
    plain = uf.evaluate(uf.Target(bare), data, threat=uf.linf(0.1), suite="quick")
    assert found.clean_accuracy > 0.7
    assert found.robust_accuracy < plain.robust_accuracy + 0.15


def test_what_is_worn_sees_images_in_0_1_before_the_target_prepares_them() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    target = uf.Target(module, bounds=(-1, 1), mean=0.2, std=0.5, name="mine", classes=["a", "b", "c"])
    worn = uf.harden.wear(target, "bits(3)")
    x = torch.rand(5, 1, 8, 8)
    levels = (x * 7).round() / 7
    torch.testing.assert_close(worn.scores(2 * x - 1), target.scores(2 * levels - 1))
    assert not torch.allclose(worn.scores(2 * x - 1), target.scores(2 * x - 1))
    assert (worn.name, worn.bounds, worn.classes) == ("mine behind bits(3)", (-1.0, 1.0), ["a", "b", "c"])
    assert target.module is module and target.name == "mine" and uf.harden.bare(worn.module) is module
    assert uf.harden.wear(target) is target


def test_defences_that_differ_have_other_fingerprints() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    worn = ["median(3)", "median(5)", "bits(3)", "bits(4)", "jpeg(50)", "jpeg(60)", "resize(0.8)", "smooth(0.1)"]
    marks = {uf.harden.wear(module, each).fingerprint() for each in worn} | {uf.Target(module).fingerprint()}
    assert len(marks) == len(worn) + 1
    assert uf.harden.wear(module, "median").fingerprint() == uf.harden.wear(module, "median(size=3)").fingerprint()


def test_any_callable_may_wear_a_defence_and_one_refusal_is_enough() -> None:
    worn = uf.harden.wear(lambda x: x.flatten(1)[:, :3] * 4, "sigmoids(2)", "median(3)")
    assert worn.reject == "last" and worn.scores(torch.zeros(2, 1, 4, 4)).tolist() == [[0, 0, 0, 2]] * 2
    with pytest.raises(uf.InputError, match="may abstain already"):
        uf.harden.wear(worn, "sigmoids")
    with pytest.raises(uf.InputError, match="takes images"):
        uf.harden.wear(lambda x: x, "blur(1)").scores(torch.zeros(2, 5))


def test_noisy_answers_are_the_mean_probabilities_over_draws() -> None:
    x = torch.rand(4, 3)
    torch.manual_seed(3)
    found = wrappers.Noisy(same(), 0.5, 6)(x)
    torch.manual_seed(3)
    noise = torch.randn(24, 3)
    want = torch.stack([(x + 0.5 * part).softmax(1) for part in noise.split(4)]).mean(0).log()
    torch.testing.assert_close(found, want)
    with pytest.raises(uf.InputError, match="at least one draw"):
        wrappers.Noisy(same(), 0.5, 0)


class Heads(nn.Module):
    """A module of two heads, the second of which is meant."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map [n, 5] to the wrong scores [n, 3] and the right ones."""
        scores = self.net(x)
        return -scores, scores


def test_what_takes_the_answer_up_reads_it_as_the_target_does() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(5, 3), torch.rand(6, 5)
    heads, plain = uf.Target(Heads(net), output=1), uf.Target(net)
    soft, sigmoids = uf.Target(nn.Sequential(net, nn.Softmax(1))), uf.Target(nn.Sequential(net, nn.Sigmoid()))
    soft.kind, sigmoids.kind = "probabilities", "sigmoids"

    def behind(target: uf.Target, *defences: str) -> torch.Tensor:
        torch.manual_seed(1)
        worn = uf.harden.wear(target, *defences)
        assert worn.kind == "scores" and worn.output is None
        return worn.scores(x)

    for target, defence in [(heads, "smooth(0.3, 9)"), (soft, "smooth(0.3, 9)"), (sigmoids, "smooth(0.3, 9)"),
                            (heads, "sigmoids(0.1)"), (sigmoids, "sigmoids(0.1)")]:  # fmt: skip
        torch.testing.assert_close(behind(target, defence), behind(plain, defence), rtol=1e-3, atol=1e-4)
    assert behind(plain, "smooth(0.3, 9)", "sigmoids(0.1)").shape == (6, 4)
    numbers = uf.Target(lambda v: net(v).argmax(1))
    numbers.labels = 3
    assert behind(numbers, "smooth(0.3, 200)").argmax(1).tolist() == behind(plain, "smooth(0.01, 9)").argmax(1).tolist()
    with pytest.raises(uf.InputError, match="give the target without its softmax"):
        uf.harden.wear(soft, "sigmoids")
    with pytest.raises(uf.InputError, match="write smooth before sigmoids"):
        uf.harden.wear(plain, "sigmoids", "smooth")


@pytest.mark.parametrize("flat", [True, False])
def test_a_single_score_is_that_of_class_1(flat: bool) -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(5, 1), torch.rand(6, 5)
    single = uf.Target(nn.Sequential(net, nn.Flatten(0)) if flat else net)
    chance = uf.Target(nn.Sequential(net, nn.Sigmoid()))
    chance.kind = "probabilities"
    z = net(x)
    for target in (single, chance):
        smooth = uf.harden.wear(target, "smooth(0.001, 4)").scores(x)
        torch.testing.assert_close(smooth.exp(), torch.cat([1 - z.sigmoid(), z.sigmoid()], 1), rtol=0, atol=5e-3)
    scores = uf.harden.wear(single, "sigmoids(0.2)").scores(x)
    torch.testing.assert_close(scores, torch.cat([-z, z, torch.full_like(z, 0.2)], 1))


@pytest.mark.slow
def test_behind_one_bit_the_suite_finds_what_trying_everything_finds() -> None:
    """With one bit a pixel counts as black or white: within eps few of them can change sides, all ways are tried."""
    bare, data, eps = uf.targets.resolve("digits-cnn"), uf.load_data("digits", limit=40), 0.1
    low, high = ((data.x + sign * eps).clamp(0, 1).round() for sign in (-1, 1))
    robust = 0
    for lo, hi, y in zip(low, high, data.y, strict=True):
        free = (lo != hi).flatten().nonzero()[:, 0]
        ways = torch.arange(2 ** len(free))[:, None] >> torch.arange(len(free)) & 1
        shown = lo.flatten().repeat(len(ways), 1)
        shown[:, free] = ways.float()
        robust += bool((bare.scores(shown.view(-1, 1, 8, 8)).argmax(1) == y).all())
    found = uf.evaluate(uf.harden.wear(bare, "bits(1)"), data, threat=uf.linf(eps), suite="standard")
    assert int(found.robust.sum()) == robust


def test_where_no_way_leads_straight_through_the_gradient_is_zero() -> None:
    """Far from the images JPEG gives back what resembles them no more: there the way that was found ends."""
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), torch.rand(4, 3, 16, 16)
    target = harden.wear(uf.Target(net), "jpeg(1)")
    target.straight = Straight(Variant(cuts=False, near=True), None, 1.0)
    oracle = Oracle(target, Access.GRADIENT)
    smooth = torch.linspace(0.1, 0.9, 16).expand_as(x).contiguous()
    slopes = [oracle.gradient(v, lambda z: z[:, 0], straight=True)[2] for v in (smooth, torch.rand_like(x).round())]
    assert bool(slopes[0].any()) and not bool(slopes[1].any())
    with pytest.raises(uf.UnfooledError, match="do not depend on the input"):
        oracle.gradient(smooth, lambda z: z[:, 0])
