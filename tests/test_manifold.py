"""Manifolds, frequencies and aliasing against planted subspaces, single waves and hand-made layers."""

import math

import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled.core.ask import Asker
from unfooled.explain import frequency
from unfooled.explain import manifold as room
from unfooled.testing import Linear


def _planted(n: int = 200, d: int = 20, k: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Data [n, d] on a flat subspace of k dimensions, and its orthonormal axes [d, k]."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(d, k, generator=g, dtype=torch.float64)).Q.float()
    return 0.5 + 0.1 * torch.randn(n, k, generator=g) @ axes.T, axes


# ---- manifolds


@pytest.mark.parametrize("n", [200, 12])  # more and fewer examples than dimensions: the two Gram matrices
def test_pca_finds_a_planted_subspace(n: int) -> None:
    data, axes = _planted(n)
    flat = uf.explain.pca(data, variance=1.0)
    assert flat.dims == 3 and flat.kept == pytest.approx(1) and flat.share == 3 / 20
    assert torch.allclose(flat.project(data), data, atol=1e-5)
    assert torch.allclose(flat.axes @ flat.axes.T, axes @ axes.T, atol=1e-4)
    on, off = flat.split(data, torch.ones_like(data))
    assert torch.allclose(on, torch.ones_like(data) @ axes @ axes.T, atol=1e-4)
    assert torch.allclose((on * off).sum(1), torch.zeros(n), atol=1e-4)


def test_pca_keeps_the_variance_that_is_asked_for() -> None:
    g = torch.Generator().manual_seed(0)
    data = torch.randn(4000, 4, generator=g) * torch.tensor([3.0, 2.0, 1.0, 0.1])  # variances 9, 4, 1, 0.01
    assert uf.explain.pca(data, variance=0.9).dims == 2  # 13 / 14.01 = 0.928
    assert uf.explain.pca(data, variance=0.95).dims == 3
    assert uf.explain.pca(data, 1).kept == pytest.approx(9 / 14.01, abs=0.03)


def test_the_autoencoder_learns_a_bent_line_and_its_tangents() -> None:
    g = torch.Generator().manual_seed(0)
    t = 2 * torch.rand(600, generator=g)
    bent = torch.zeros(600, 6)
    bent[:, 0], bent[:, 1] = t.cos(), t.sin()
    surface = uf.explain.autoencoder(bent, 1, width=32, epochs=60, lr=1e-2)
    assert surface.kept > 0.98
    slope = torch.stack([-t.sin(), t.cos()], 1)
    basis = surface.basis(bent)
    assert basis.shape == (600, 6, 1)
    cosines = (basis[:, :2, 0] * slope).sum(1).abs()
    assert cosines.quantile(0.1) > 0.97  # a flat line would lose cos(1) = 0.54 at the ends
    near = surface.project(bent + 0.1 * torch.tensor([0, 0, 1.0, 0, 0, 0]))
    assert (near - bent).norm(dim=1).median() < 0.1
    again = uf.explain.autoencoder(bent, 1, width=32, epochs=60, lr=1e-2)
    assert torch.equal(again.basis(bent), basis)


def test_learning_a_manifold_leaves_the_random_state_alone(same_luck: None) -> None:
    uf.explain.autoencoder(torch.rand(40, 8, generator=torch.Generator().manual_seed(0)), 2, width=4, epochs=1)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: uf.explain.pca(torch.rand(1, 4)), "at least 2 examples"),
        (lambda: uf.explain.pca(torch.full((3, 4), math.nan)), "not finite"),
        (lambda: uf.explain.pca(torch.rand(9, 4), 7), "ask for 1 to 4"),
        (lambda: uf.explain.pca(torch.rand(9, 4), variance=1.5), "no share"),
        (lambda: uf.explain.autoencoder(torch.rand(9, 4)), "at least 20"),
        (lambda: uf.explain.autoencoder(torch.rand(30, 4), 4), "no bottleneck"),
    ],
)
def test_data_that_make_no_manifold_are_refused(call, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(uf.InputError, match=says):
        call()


# ---- on and off


def test_changes_along_and_off_a_planted_subspace() -> None:
    data, axes = _planted()
    flat = uf.explain.pca(data, 3)
    x, y = data[:50], torch.arange(200) % 2
    along = uf.explain.off_manifold(x, x + axes[:, 0], flat, natural=(data, y))
    assert torch.allclose(along.on, torch.ones(50, dtype=torch.float64), atol=1e-5)
    v = torch.linalg.qr(torch.cat([axes, torch.eye(20)], 1)).Q[:, 5]
    off = uf.explain.off_manifold(x, x + v, flat)
    assert float(off.on.max()) < 1e-5 and set(off.controls) == {room.RANDOM}
    half = uf.explain.off_manifold(x, x + axes[:, 1] + v, flat)
    assert torch.allclose(half.on, torch.full((50,), 0.5, dtype=torch.float64), atol=1e-5)
    rows = {row["change"]: row for row in along.rows()}
    assert rows[room.RANDOM]["on"] == pytest.approx(3 / 20, abs=0.04) and along.expected == 3 / 20
    assert rows["natural, same class"]["on"] == pytest.approx(1) == rows["natural, other class"]["on"]
    assert "0% of the perturbation" in along.sentence() and "100% of the perturbation" in off.sentence()
    assert along.image()[:4] == b"\x89PNG"


def test_natural_pairs_are_of_the_classes_they_say() -> None:
    images = torch.arange(12.0).view(12, 1)
    labels = torch.arange(12) // 4
    found = room._natural_pairs(images, labels, pairs=30, seed=0)
    for name, same in (("natural, same class", True), ("natural, other class", False)):
        a, b = (labels[t[:, 0].long()] for t in found[name])
        assert len(a) == 30 and bool(((a == b) == same).all())


def test_off_manifold_refuses_what_does_not_fit() -> None:
    data, _ = _planted()
    flat = uf.explain.pca(data, 3)
    with pytest.raises(uf.InputError, match="equal x"):
        uf.explain.off_manifold(data, data, flat)
    with pytest.raises(uf.InputError, match="of one shape"):
        uf.explain.off_manifold(data, data[:3], flat)
    with pytest.raises(uf.InputError, match="learned from examples of shape"):
        uf.explain.off_manifold(torch.rand(3, 5), torch.rand(3, 5), flat)
    with pytest.raises(uf.InputError, match="label each"):
        uf.explain.off_manifold(data, data + 1, flat, natural=(data, torch.zeros(3)))


def test_same_seed_same_shares() -> None:
    data, _ = _planted()
    flat = uf.explain.pca(data, 3)
    one, two, other = (uf.explain.off_manifold(data, data + 1, flat, seed=s).controls[room.RANDOM] for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


# ---- dimples


def _linear_along(axes: Tensor, off: float, on: float) -> Linear:
    """A target of two classes whose gradient has length `on` along the axes and `off` perpendicular to them."""
    other = torch.linalg.qr(torch.cat([axes, torch.eye(20)], 1)).Q[:, 7]
    w = on * axes[:, 0] + off * other
    return Linear(torch.stack([w, -w]), torch.tensor([0.3, -0.3]))


@pytest.mark.parametrize(("on", "off"), [(1.0, 1.0), (3.0, 0.5), (0.2, 2.0)])
def test_distances_along_and_off_are_the_closed_form_on_linear_targets(on: float, off: float) -> None:
    data, axes = _planted()
    target = _linear_along(axes, off, on)
    y = target(data).argmax(1)
    found = uf.explain.dimples(target, data[:40], y[:40], uf.explain.pca(data, 3))
    gap = (target(data[:40]).detach() @ torch.tensor([1.0, -1.0])).abs().double() / 2
    for way, length in ((room.FREE, math.hypot(on, off)), (room.ON, on), (room.OFF, off)):
        assert torch.allclose(found.distances[way], gap / length, rtol=2e-3)
    assert torch.allclose(found.share, torch.full((40,), on**2 / (on**2 + off**2), dtype=torch.float64), atol=1e-4)
    assert torch.allclose(found.steepness[room.ON] / found.steepness[room.OFF],
                          torch.full((40,), on / off * math.sqrt(17 / 3), dtype=torch.float64), rtol=1e-3)  # fmt: skip
    for row in found.rows():
        if row["way"] != room.CONTROL:
            assert row["times_free"] == pytest.approx(row["linear_times_free"], rel=5e-3)
    assert found.image()[:4] == b"\x89PNG" and "times the free distance" in found.sentence()


def test_a_target_that_sees_nothing_along_the_manifold_cannot_be_fooled_along_it() -> None:
    data, axes = _planted()
    target = _linear_along(axes, 1.0, 0.0)
    y = target(data).argmax(1)
    found = uf.explain.dimples(target, data[:20], y[:20], uf.explain.pca(data, 3))
    assert bool((found.distances[room.ON] > 100 * found.distances[room.OFF]).all())
    assert float(found.share.max()) < 1e-4


def test_the_walk_finds_the_nearest_of_many_classes() -> None:
    target = Linear.random((12,), classes=6, seed=3)
    x = torch.rand(60, 12, generator=torch.Generator().manual_seed(1))
    y = target(x).argmax(1)
    w, s = target.weight.detach(), target(x).detach()
    gaps = (s.gather(1, y[:, None]) - s) / (w[y][:, None] - w[None]).norm(dim=2).clamp(min=1e-9)
    nearest = gaps.scatter(1, y[:, None], torch.inf).amin(1).double()
    found = room.nearest_within(Asker(target), x, y, lambda v: v)
    assert bool((found >= nearest * (1 - 1e-4)).all())
    assert (found / nearest).quantile(0.9) < 1.01 and (found / nearest).median() < 1.001


def test_the_walk_meets_a_sphere_after_few_steps() -> None:
    x = _planted()[0][:30] - 0.5

    def inside(t: Tensor) -> Tensor:
        gap = 1 - t.square().sum(1)
        return torch.stack([gap, -gap], 1)

    found = room.nearest_within(Asker(inside), x, torch.zeros(30, dtype=torch.int64), lambda v: v, steps=12)
    assert torch.allclose(found, 1 - x.norm(dim=1).double(), rtol=2e-3)


def test_dimples_need_images_that_the_target_gets_right() -> None:
    data, axes = _planted()
    target = _linear_along(axes, 1.0, 1.0)
    with pytest.raises(uf.InputError, match="none of these images"):
        uf.explain.dimples(target, data, 1 - target(data).argmax(1), uf.explain.pca(data, 3))


# ---- frequencies


def _wave(ky: int, kx: int, size: int = 16, n: int = 6) -> Tensor:
    at = torch.arange(size) / size
    phase = torch.arange(n).view(n, 1, 1, 1) * 0.7 + 0.3
    return (2 * math.pi * (ky * at[:, None] + kx * at[None]) + phase).cos().expand(n, 1, size, size)


@pytest.mark.parametrize(("ky", "kx", "ring"), [(0, 1, 1), (3, 0, 3), (3, 4, 5), (8, 8, 11)])
def test_a_single_wave_lies_in_its_ring(ky: int, kx: int, ring: int) -> None:
    x = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = uf.explain.spectrum(x, x + 0.01 * _wave(ky, kx) + 0.002)
    shares = found.shares["adversarial"]
    assert bool((shares[:, ring - 1] > 0.999).all())
    assert float(found.radius[ring - 1]) == ring / 16
    assert torch.allclose(found.high(), torch.full((6,), float(ring / 16 > 0.25), dtype=torch.float64), atol=1e-3)
    assert bool((found.constant > 0.01).all())


def test_white_noise_is_flat_and_rings_hold_every_coefficient() -> None:
    x = torch.rand(400, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = uf.explain.spectrum(x, 1 - x)
    assert int(found.counts.sum()) == 16 * 16 - 1
    for row in found.rows():
        if row["kind"] == "white noise":
            assert row["times_white"] == pytest.approx(1, abs=0.15)
    assert float(found.high("white noise").mean()) == pytest.approx(found.white, abs=0.01)
    for shares in found.shares.values():
        assert torch.allclose(shares.sum(1), torch.ones(400, dtype=torch.float64))
    assert found.image()[:4] == b"\x89PNG" and "white noise" in found.sentence()


def test_spectrum_refuses_what_is_no_image() -> None:
    with pytest.raises(uf.InputError, match="4 x 4 pixels or more"):
        uf.explain.spectrum(torch.rand(3, 20), torch.rand(3, 20))


# ---- aliasing


def _sampler(stride: int, classes: int = 2, size: int = 16) -> nn.Sequential:
    """A strided convolution that only takes every stride-th pixel, and a sum."""
    take = nn.Conv2d(1, 1, 1, stride=stride, bias=False)
    nn.init.ones_(take.weight)
    head = nn.Linear((size // stride) ** 2, classes)
    return nn.Sequential(take, nn.Flatten(), head).eval()


@pytest.mark.parametrize(("k", "folded"), [(1, 0.0), (4, 0.0), (5, 1.0), (8, 1.0)])
def test_waves_beyond_nyquist_are_folded(k: int, folded: float) -> None:
    found = uf.explain.aliasing(_sampler(2), 0.5 + 0.4 * _wave(k, 0))
    assert found.layers == ("0 (stride 2)",)
    assert torch.allclose(found.folded, torch.full((6, 1), folded, dtype=torch.float64), atol=1e-6)
    assert float(found.white) == pytest.approx(1 - 81 / 256, abs=0.01)  # 9 of 16 frequencies a side are kept


def test_layers_without_stride_fold_nothing_and_a_pool_is_measured_at_each_use() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.even, self.pool = nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2)
            self.head = nn.Linear(2 * 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pool(self.pool(self.even(x))).flatten(1))

    module = Twice()
    x = torch.rand(20, 1, 16, 16)
    found = uf.explain.aliasing(module, x)
    assert found.layers == ("pool (stride 2)", "pool (stride 2), use 2") and found.folded.shape == (20, 2)
    assert bool(((found.folded > 0) & (found.folded < 1)).all())
    assert not module.pool._forward_hooks and not module._forward_pre_hooks and module.pool.stride == 2
    assert [row["what"] for row in found.rows()][-1] == "shift by one pixel"
    assert found.image()[:4] == b"\x89PNG" and "folds" not in found.sentence()
    plain = uf.explain.aliasing(nn.Sequential(nn.Flatten(), nn.Linear(256, 2)), x)
    assert plain.layers == () and "No strided layer" in plain.sentence() and len(plain.rows()) == 1


def test_shifts_change_what_depends_on_the_place_alone() -> None:
    x = torch.zeros(5, 1, 8, 8)
    x[:, 0, 4, 4] = 1

    def at_a_pixel(t: Tensor) -> Tensor:
        seen = t[:, 0, 4, 4]
        return torch.stack([seen, 1 - seen], 1) * 9

    def by_the_sum(t: Tensor) -> Tensor:
        total = t.sum((1, 2, 3))
        return torch.stack([total, 0 * total], 1)

    moved = uf.explain.aliasing(at_a_pixel, x)
    assert bool(moved.changed.all()) and not bool(moved.control.all())
    assert bool((moved.confidence[:, 0] > 0.99).all()) and bool((moved.confidence[:, 1] < 0.01).all())
    assert not bool(uf.explain.aliasing(by_the_sum, x).changed.any())


@pytest.mark.parametrize("limit", [0.9, 1.1])
def test_the_control_of_a_shift_is_of_the_same_size(limit: float) -> None:
    one = 0.4 + 0.2 * torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    sizes = [(frequency._shift(one, *way) - one).norm() for way in ((0, 1), (0, -1), (1, 0), (-1, 0))]

    def near(t: Tensor) -> Tensor:
        gap = limit * torch.stack(sizes).mean() - (t - one).flatten(1).norm(dim=1)
        return torch.stack([gap, -gap], 1)

    found = uf.explain.aliasing(near, one.expand(5, 1, 16, 16))
    assert bool((found.changed == (limit < 1)).all()) and bool((found.control == (limit < 1)).all())


def test_aliasing_is_the_same_again_and_refuses_vectors() -> None:
    x = torch.rand(4, 1, 16, 16)
    module = _sampler(4)
    one, two = (uf.explain.aliasing(module, x, seed=3) for _ in range(2))
    assert torch.equal(one.folded, two.folded) and torch.equal(one.control, two.control)
    with pytest.raises(uf.InputError, match="of images"):
        uf.explain.aliasing(module, torch.rand(3, 9))
