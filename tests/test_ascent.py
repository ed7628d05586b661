"""Images as free numbers, the climb over them, and fooling images by gradients, against closed forms."""

import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from tests.nets import RowNet
from unfooled._noise import Noise
from unfooled.core import ascent
from unfooled.core.ask import Asker
from unfooled.fooling import ascend
from unfooled.parametrise import fourier
from unfooled.parametrise.fourier import Fourier, Pixels, colour_root
from unfooled.testing import Linear, Spy

SHAPES = [(1, 8, 8), (3, 7, 5), (3, 6, 9), (2, 1, 4)]


def noise(n: int, seed: int = 0) -> Noise:
    return Noise(torch.arange(n) * 7919 + seed)


def images(n: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.9 + 0.05


# ---- parametrisations


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 3.0)])
def test_an_image_comes_back_from_its_spectrum(shape: tuple[int, ...], bounds: tuple[float, float]) -> None:
    x = bounds[0] + (bounds[1] - bounds[0]) * images(4, shape)
    way = Fourier(shape, bounds)
    theta = way.encode(x)
    assert theta.shape == (4, *way.parameters)
    assert torch.allclose(way.decode(theta), x, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 7, 5), (1, 6, 9)])
def test_the_spectrum_holds_the_energy_of_the_image_before_squashing(shape: tuple[int, ...]) -> None:
    x = images(3, shape)
    theta = Fourier(shape).encode(x)
    height, width = shape[1:]
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = torch.view_as_complex(theta).abs().numpy() / np.maximum(f, 1 / max(height, width))
    both = np.full(width // 2 + 1, 2.0)  # of most columns the mirrored half is not stored
    both[0] = 1
    if width % 2 == 0:
        both[-1] = 1
    parseval = (spectrum**2 * both).sum((1, 2, 3))
    assert np.allclose(parseval, (torch.logit(x) ** 2).sum((1, 2, 3)).numpy())


def test_one_coefficient_is_one_wave_of_amplitude_one_over_f() -> None:
    way, theta = Fourier((1, 16, 16)), torch.zeros(2, 1, 16, 9, 2, dtype=torch.float64)
    theta[0, 0, 0, 2, 0] = theta[1, 0, 0, 4, 0] = 1.0
    z = way.decode(theta).logit()[:, 0]
    at = torch.arange(16, dtype=torch.float64)
    for row, cycles in zip(z, (2, 4), strict=True):
        wave = 2 / 16 * 16 / cycles * torch.cos(2 * math.pi * cycles * at / 16)  # twice for the mirrored coefficient
        assert torch.allclose(row, wave.expand(16, 16), atol=1e-12)


def test_the_colour_root_whitens_the_colours_it_was_measured_on() -> None:
    g = torch.Generator().manual_seed(1)
    mix = torch.tensor([[1.0, 0.2, 0.1], [0.5, 0.7, 0.0], [0.3, 0.4, 0.2]])
    x = torch.einsum("ij,njhw->nihw", mix, torch.randn(40, 3, 9, 9, generator=g)) + 0.5
    root = colour_root(x)
    assert torch.allclose(root, root.T)
    pixels = x.double().movedim(1, -1).reshape(-1, 3)
    white = (pixels - pixels.mean(0)) @ torch.linalg.inv(root).T
    assert torch.allclose(white.T @ white / len(white), torch.eye(3).double(), atol=1e-9)
    assert np.allclose((root @ root).numpy(), np.cov(pixels.T.numpy(), bias=True))


def test_free_colours_become_correlated_ones() -> None:
    way = Fourier((3, 16, 16))
    theta = 0.01 * torch.randn(64, *way.parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = colour_root(way.decode(theta))  # so small that the sigmoid is straight
    wanted = torch.tensor(fourier.NATURAL_COLOURS, dtype=torch.float64)
    assert torch.allclose(got / got.norm(), wanted / wanted.norm(), atol=0.03)
    plain = colour_root(Fourier((3, 16, 16), colours=torch.eye(3)).decode(theta))
    assert torch.allclose(plain / plain.norm(), torch.eye(3).double() / 3**0.5, atol=0.03)


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 9, 7), (3, 6, 9)])
def test_drawn_images_have_the_contrast_asked_for_and_a_falling_spectrum(shape: tuple[int, ...]) -> None:
    way = Fourier(shape, colours=torch.eye(shape[0]))
    z = way.decode(way.drawn(noise(2000), contrast=0.5, dtype=torch.float64)).logit()
    assert float(z.square().mean().sqrt()) == pytest.approx(0.5, rel=0.05)
    power = torch.fft.rfft2(z, norm="ortho").abs().square().mean((0, 1))
    assert float(power[0, 1] / power[0, 3]) == pytest.approx(9.0, rel=0.15)  # 1/f in size, three times the frequency


def test_a_channel_that_never_varies_has_an_inverse_all_the_same() -> None:
    x = images(5, (3, 6, 6))
    x[:, 1] = 0.5
    assert torch.linalg.inv(colour_root(x)).isfinite().all()


def test_blur_keeps_the_mean_and_the_second_moment_of_a_gaussian() -> None:
    x = torch.zeros(1, 2, 41, 41, dtype=torch.float64)
    x[0, :, 20, 20] = torch.tensor([1.0, 3.0])
    got = fourier.blur(x, 2.0)
    assert torch.allclose(got.sum((2, 3)), x.sum((2, 3)))
    at = torch.arange(41, dtype=torch.float64) - 20
    assert float((got[0, 0].sum(0) * at**2).sum()) == pytest.approx(4.0, rel=0.03)  # cut off at three sigma
    flat = torch.full((1, 1, 3, 2), 0.3)
    assert torch.allclose(fourier.blur(flat, 2.0), flat)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Fourier((8, 8)), "images"),
        (lambda: Fourier((3, 8, 8), colours=torch.ones(3, 3)), "inverse"),
        (lambda: Fourier((1, 8, 8), colours=torch.eye(3)), r"\[1, 1\]"),
        (lambda: colour_root(torch.zeros(4, 3, 8, 8)), "one colour"),
        (lambda: colour_root(torch.zeros(4, 3)), "images"),
    ],
)
def test_bad_images_are_refused(make: object, says: str) -> None:
    with pytest.raises(uf.InputError, match=says):
        make()  # type: ignore[operator]


# ---- transforms and regularisers


def test_a_still_wobble_is_the_image_and_a_shift_is_a_shift() -> None:
    x = images(3, (2, 9, 7))
    assert torch.allclose(ascent.wobble()(x, noise(3), 0), x, atol=1e-12)
    ramp = torch.arange(9, dtype=torch.float64).view(1, 1, -1, 1).expand(64, 1, 9, 12)
    moved = ascent.wobble(jitter=2)(ramp, noise(64), 3)[:, 0, 4, 6] - 4
    assert float(moved.abs().max()) <= 2
    assert float(moved.std()) == pytest.approx(2 / 3**0.5, rel=0.2)  # uniform in [-2, 2)


def test_a_wobble_turns_by_the_angle_and_scales_about_the_middle() -> None:
    height, width = 21, 31
    y, x = torch.meshgrid(torch.arange(height) - 10.0, torch.arange(width) - 15.0, indexing="ij")
    planes = torch.stack([x, y])[None].double().expand(50, 2, height, width)
    turned = ascent.wobble(rotate=30)(planes, noise(50), 0)
    at_3_4 = turned[:, :, 10 + 4, 15 + 3]  # where the pixel at (3, 4) comes from
    assert torch.allclose(at_3_4.norm(dim=1), torch.full((50,), 5.0, dtype=torch.float64))
    angles = torch.atan2(at_3_4[:, 1], at_3_4[:, 0]) - math.atan2(4, 3)
    assert 20 < float(angles.abs().max().rad2deg()) <= 30
    scaled = ascent.wobble(scale=1.5)(planes, noise(50), 0)[:, :, 14, 18].norm(dim=1) / 5
    assert float(scaled.min()) >= 1 / 1.5
    assert float(scaled.max()) <= 1.5
    assert float(scaled.log().std()) > 0.15


def test_total_variation_goes_down_a_step_and_leaves_flat_images() -> None:
    x = images(2, (1, 8, 8))

    def variation(x: Tensor) -> float:
        return float(x.diff(dim=2).abs().sum() + x.diff(dim=3).abs().sum())

    act = ascent.total_variation(0.0125).act
    smoother = x
    for _ in range(20):
        smoother = act(smoother)
    assert variation(smoother) < 0.6 * variation(x)
    assert torch.allclose(smoother.sum((1, 2, 3)), x.sum((1, 2, 3)))
    flat = torch.full((1, 1, 5, 5), 0.7)
    assert torch.equal(act(flat), flat)


def test_decay_goes_towards_its_point() -> None:
    assert torch.allclose(ascent.decay(0.25, 0.5).act(torch.tensor([0.9, 0.5])), torch.tensor([0.8, 0.5]))


# ---- the climb


def climb(net: nn.Module, start: Tensor, **more: object) -> ascent.Ascent:
    settings: dict[str, object] = {"steps": 60, "noise": noise(len(start)), "settle": Pixels().settle, "lr": 0.05}
    return ascent.ascend(Asker(net), lambda scores, rows: scores[:, 0], start, Pixels().decode, **settings | more)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimiser", ["adam", "normalised"])
def test_the_top_of_a_linear_score_is_the_corner_of_its_signs(optimiser: str) -> None:
    net = Linear.random((2, 3, 4), 3, seed=2)
    end = climb(net, torch.full((2, 2, 3, 4), 0.5), optimiser=optimiser, steps=300)
    corner = (net.weight[0] > 0).float().view(2, 3, 4)
    assert torch.allclose(end.x, corner.expand(2, 2, 3, 4), atol=1e-6)
    top = float((net.weight[0].clamp(min=0).sum() + net.bias[0]).detach())
    assert end.value.tolist() == pytest.approx([top, top])
    assert end.history.shape == (301, 2)
    assert float(end.history.max()) == pytest.approx(top)


def test_adam_walks_as_torch_s_own() -> None:
    net, start = RowNet(12, seed=1), images(3, (12,)).float()
    own = climb(net, start, steps=25, lr=0.01, settle=lambda theta: theta)
    theta = start.clone().requires_grad_(True)
    theirs = torch.optim.Adam([theta], lr=0.01, eps=0.0, maximize=True)
    seen = []
    for _ in range(26):
        theirs.zero_grad()
        value = net(theta)[:, 0]
        seen.append(value.detach())
        value.sum().backward()
        theirs.step()
    assert torch.allclose(own.history, torch.stack(seen), atol=1e-4)


def test_decay_and_climb_meet_where_they_should() -> None:
    net = Linear(torch.tensor([[1.0, -1.0], [0.0, 0.0]]), torch.zeros(2))
    rested = climb(net, torch.full((1, 2), 0.5), optimiser="normalised", lr=0.01, steps=500,
                   regularisers=[ascent.decay(0.1, 0.5)])  # fmt: skip
    # theta - 1/2 = 0.9 (theta - 1/2 + 0.01 sign)
    assert torch.allclose(rested.x, torch.tensor([[0.59, 0.41]]), atol=1e-4)


def test_the_best_is_kept_where_every_regulariser_has_acted() -> None:
    net = Linear.random((1, 6, 6), 2, seed=0)
    start = images(4, (1, 6, 6)).float()
    end = climb(net, start, steps=22, regularisers=[ascent.blur(1.0, every=5)])
    kept = end.history[::5].amax(0)
    assert torch.equal(end.value, kept)
    assert torch.allclose(net(end.x)[:, 0], end.value)
    assert float(end.history.amax()) > float(end.value.amax())


class Hill(nn.Module):
    """Scores -(x - 0.3)² and 0 of one number x."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-((x - 0.3) ** 2), 0 * x], 1)


def test_steps_over_the_top_do_not_count() -> None:
    start = torch.tensor([[0.5], [0.1], [0.3]])
    end = climb(Hill(), start, lr=10.0, optimiser="normalised", settle=lambda theta: theta, steps=5)
    assert float(end.history[1, :2].amax()) < -50
    assert torch.allclose(end.x, start, atol=1e-5)
    assert torch.equal(end.value, end.history.amax(0))


def test_a_row_climbs_alone_as_in_company() -> None:
    net, start = RowNet(16, seed=3), images(3, (1, 4, 4)).float()
    more = {"transforms": [ascent.wobble(jitter=1, rotate=10, scale=1.1)], "steps": 15}
    together = climb(net, start, **more)
    alone = climb(net, start[1:2], **more | {"noise": Noise(noise(3).keys[1:2])})
    assert torch.allclose(together.history[:, 1:2], alone.history, atol=1e-5)
    assert torch.allclose(together.x[1:2], alone.x, atol=1e-5)
    assert not torch.allclose(together.x[1:2], climb(net, start[1:2], **more).x, atol=1e-3)  # other luck


def test_every_pass_is_counted() -> None:
    spy = Spy(Linear.random((1, 4, 4)))
    end = climb(spy, images(3, (1, 4, 4)).float(), steps=10)
    assert (end.forward, end.backward) == (spy.forward_rows, spy.backward_rows) == (33, 30)
    moved = climb(spy, images(3, (1, 4, 4)).float(), steps=10, transforms=[ascent.wobble(jitter=1)])
    assert (moved.forward, moved.backward) == (63, 30)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"lr": 0.0}, {"optimiser": "sgd"}])
def test_a_climb_that_cannot_be_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(uf.InputError, match="at least one step"):
        climb(Linear.random((2, 2)), torch.zeros(1, 2, 2), **bad)


# ---- fooling images


@pytest.mark.parametrize("regulariser", uf.fooling.ascent.REGULARISERS)
def test_a_linear_target_is_fooled_in_every_class(regulariser: str) -> None:
    net = Linear.random((1, 8, 8), 4, seed=5)
    found = ascend(net, (1, 8, 8), steps=80, regulariser=regulariser)
    p = net(found.images).softmax(1).diagonal()
    assert torch.allclose(found.confidences, p.detach())
    assert bool((found.images >= 0).all() and (found.images <= 1).all())
    assert float(found.confidences.min()) > 0.9


def test_two_classes_meet_the_closed_form() -> None:
    net = Linear.random((5,), 2, seed=1)
    found = ascend(net, (5,), steps=200)
    gap = (net.weight[1] - net.weight[0]).detach()
    corner = (gap > 0).float()
    assert torch.equal(found.images, torch.stack([1 - corner, corner]))
    most = torch.stack([net(1 - corner[None])[0, 0] - net(1 - corner[None])[0, 1],
                        net(corner[None])[0, 1] - net(corner[None])[0, 0]])  # fmt: skip
    assert torch.allclose(found.history[-1], most, atol=1e-5)
    assert torch.allclose(found.confidences, most.sigmoid(), atol=1e-6)
    assert found.rows()[0]["confidence"] == pytest.approx(float(most[0].detach().sigmoid()), abs=1e-6)


def test_a_class_has_its_own_luck_and_the_same_seed_the_same_bits() -> None:
    net = RowNet(16, 5, seed=0)
    all_of_them = ascend(net, (1, 4, 4), steps=10, regulariser="robust")
    alone = ascend(net, (1, 4, 4), [3], steps=10, regulariser="robust")
    assert torch.allclose(all_of_them.images[3], alone.images[0], atol=1e-5)
    again = ascend(net, (1, 4, 4), [3], steps=10, regulariser="robust")
    other = ascend(net, (1, 4, 4), [3], steps=10, regulariser="robust", seed=1)
    assert torch.equal(alone.images, again.images)
    assert not torch.allclose(alone.images, other.images, atol=1e-3)


def test_many_large_images_climb_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    net = RowNet(16, 5, seed=0)
    whole = ascend(net, (1, 4, 4), steps=10, regulariser="robust")
    module = sys.modules[ascend.__module__]
    monkeypatch.setattr(module, "_VALUES", 2 * 16)
    groups = ascend(net, (1, 4, 4), steps=10, regulariser="robust")
    assert torch.allclose(whole.images, groups.images, atol=1e-5)
    assert torch.allclose(whole.history, groups.history, atol=1e-4)
    assert torch.allclose(whole.random, groups.random, atol=1e-6)
    assert (whole.forward, whole.backward) == (groups.forward, groups.backward)


def test_a_climb_that_is_enough_ends_nearer_to_its_start() -> None:
    net = Linear.random((1, 8, 8), 3, seed=0)
    start = ascend(net, (1, 8, 8), steps=1, lr=1e-9)
    enough, on = (ascend(net, (1, 8, 8), steps=60, lr=0.01, until=until) for until in (0.99, 1.0))
    assert float(enough.confidences.min()) >= 0.99 - 1e-6
    assert bool(((enough.images - start.images).flatten(1).norm(dim=1)
                 < (on.images - start.images).flatten(1).norm(dim=1)).all())  # fmt: skip


def test_probabilities_are_climbed_as_logits_are() -> None:
    net = Linear.random((1, 4, 4), 3, seed=0)
    plain = ascend(net, (1, 4, 4), steps=30)
    soft = ascend(nn.Sequential(net, nn.Softmax(1)), (1, 4, 4), steps=30)
    assert torch.allclose(plain.images, soft.images, atol=1e-3)
    assert torch.allclose(plain.confidences, soft.confidences, atol=1e-5)


def test_names_of_classes_and_grey_starts() -> None:
    target = uf.Target(Linear.random((1, 4, 4), 3), classes=["cat", "dog", "bird"], bounds=(-1, 1))
    found = ascend(target, (1, 4, 4), ["bird", 0, "1"], steps=5, start="grey")
    assert found.names == ("bird", "cat", "dog")
    assert found.classes.tolist() == [2, 0, 1]
    assert torch.allclose(found.history[0, 0], ascend(target, (1, 4, 4), ["bird"], steps=3, start="grey").history[0, 0])
    assert "random images" in found.sentence()
    assert len({tuple(row) for row in found.rows()}) == 1


@pytest.mark.parametrize(
    ("shape", "more", "says"),
    [
        ((1, 4, 4), {"classes": ["dgo"]}, "Did you mean 'dog'"),
        ((1, 4, 4), {"classes": [3]}, "3 classes"),
        ((1, 4, 4), {"classes": []}, "at least one"),
        ((1, 5, 4), {}, "fails on inputs of shape"),
        ((1, 4, 4), {"regulariser": "blurr"}, "Did you mean 'blur'"),
        ((16,), {"regulariser": "fourier"}, "needs images"),
        ((1, 4, 4), {"start": "white"}, "'noise' or 'grey'"),
        ((1, 4, 4), {"until": 1.5}, "until"),
        ((1, 4, 4), {"steps": 0}, "at least one step"),
    ],
)
def test_what_cannot_be_climbed_is_said(shape: tuple[int, ...], more: dict[str, object], says: str) -> None:
    target = uf.Target(Linear.random((1, 4, 4), 3), classes=["cat", "dog", "bird"])
    with pytest.raises(uf.InputError, match=says):
        ascend(target, shape, **more)  # type: ignore[arg-type]


def test_the_target_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.LazyLinear(3))
    net(torch.zeros(2, 1, 6, 6))
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    ascend(net, (1, 6, 6), steps=3, regulariser="robust")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(m.training for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_the_figure_is_a_png_of_the_same_bits() -> None:
    pytest.importorskip("matplotlib")
    for count in (1, 7):
        found = ascend(Linear.random((1, 4, 4), 8), (1, 4, 4), list(range(count)), steps=3)
        first = found.image()
        assert first[:4] == b"\x89PNG"
    assert found.image() == first


@pytest.mark.gpu
@pytest.mark.parametrize("regulariser", uf.fooling.ascent.REGULARISERS)
def test_a_climb_on_a_gpu_ends_where_it_ends_here(regulariser: str) -> None:
    net = Linear.random((1, 8, 8), 3, seed=0)
    here = ascend(net, (1, 8, 8), steps=20, regulariser=regulariser)
    there = ascend(net.cuda(), (1, 8, 8), steps=20, regulariser=regulariser)
    assert torch.allclose(here.confidences, there.confidences.cpu(), atol=1e-3)
