"""Slices, distances and curvature against half-spaces and spheres."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled.explain.geometry import curvature, distances
from unfooled.explain.slices import decision_slice, slice_through, slice_towards
from unfooled.testing import Linear, Spy


class Ball(nn.Module):
    """Class 0 inside the sphere of a radius around a centre, class 1 outside: scores r² - |x - c|² and 0."""

    def __init__(self, centre: Tensor, radius: float) -> None:
        super().__init__()
        self.centre, self.radius = centre, radius

    def forward(self, x: Tensor) -> Tensor:
        inside = self.radius**2 - (x - self.centre.to(x)).flatten(1).square().sum(1)
        return torch.stack([inside, torch.zeros_like(inside)], 1)


def test_a_slice_of_a_half_space_has_its_edge_where_it_belongs() -> None:
    target = Linear(torch.tensor([[0.0, 0, 0], [1.0, 0, 0]]), torch.tensor([0.0, -0.8]))  # class 1 where x_0 > 0.8
    x, u, v = torch.full((1, 3), 0.5), torch.tensor([[2.0, 0, 0]]), torch.tensor([[5.0, 3.0, 0]])
    found = decision_slice(target, x, u, v, radius=1.0, points=41)
    expected = (0.5 + found.a > 0.8).long().expand(41, 41)
    assert torch.equal(found.labels, expected)
    assert found.shares()[0] == pytest.approx(float((expected == 0).double().mean()))
    assert found.label == 0 and found.rows()[1]["nearest_l2"] == pytest.approx(0.35)
    assert float(found.outside[20, -1]) == pytest.approx(0.5)  # x_0 = 1.5
    assert float(found.outside[-1, 20]) == pytest.approx(0.5)  # v made orthogonal to u is the second axis


def test_a_slice_through_a_sphere_is_a_disc() -> None:
    target = Ball(torch.zeros(10), 0.7)
    g = torch.Generator().manual_seed(0)
    u, v = torch.randn(1, 10, generator=g), torch.randn(1, 10, generator=g)
    found = decision_slice(target, torch.zeros(1, 10), u, v, radius=1.0, points=81)
    size = torch.hypot(found.a[None], found.b[:, None])
    clear = (size - 0.7).abs() > 1e-5
    assert torch.equal((found.labels == 0)[clear], (size < 0.7)[clear])
    cut = decision_slice(target, torch.zeros(1, 10), u, v, radius=1.0, points=81, clamp=True)
    assert float((cut.labels == 0).double().mean()) > found.shares()[0]  # the box takes the negative values away


def test_confidence_is_the_softmax_of_the_winner() -> None:
    target = Linear.random((4,), classes=3)
    found = slice_towards(target, torch.rand(1, 4), torch.rand(1, 4), points=5)
    assert bool((found.confidence >= 1 / 3).all()) and bool((found.confidence <= 1).all())
    x = torch.rand(1, 4)
    centre = decision_slice(target, x, torch.eye(4)[:1], torch.eye(4)[1:2], radius=1e-6, points=3)
    assert float(centre.confidence[1, 1]) == pytest.approx(float(target(x).detach().softmax(1).max()), abs=1e-5)


def test_marks_lie_where_the_examples_are() -> None:
    target, g = Linear.random((6,), classes=3), torch.Generator().manual_seed(1)
    three = {name: torch.rand(1, 6, generator=g) for name in ("one", "two", "three")}
    found = slice_through(target, three, points=11)
    places = {name: torch.tensor(place) for name, place in found.marks.items()}
    for p, q in (("one", "two"), ("one", "three"), ("two", "three")):
        gap = float((three[p] - three[q]).norm())
        assert float((places[p] - places[q]).norm()) == pytest.approx(gap, rel=1e-4)
    assert all(abs(off) < 1e-5 for _, _, off in found.marks.values())
    assert sum(places.values())[:2].tolist() == pytest.approx([0, 0], abs=1e-5)  # their mean is the middle
    assert float(found.a[-1]) > max(float(p.norm()) for p in places.values())
    towards = slice_towards(target, three["one"], three["two"], points=11)
    across, up, off = towards.marks["adversarial"]
    assert (across, up) == pytest.approx((float((three["one"] - three["two"]).norm()), 0), abs=1e-5) and off < 1e-5
    away = decision_slice(target, torch.zeros(1, 6), torch.eye(6)[:1], torch.eye(6)[1:2], radius=1.0, points=3,
                          marks={"off": torch.tensor([[0.1, 0.2, 0, 0.3, 0, 0.4]])})  # fmt: skip
    assert away.marks["off"] == pytest.approx((0.1, 0.2, 0.5))


def test_a_slice_of_forty_thousand_points_is_157_batches_and_same_seed_gives_same_bits() -> None:
    spy = Spy(Linear.random((16,), classes=3))
    first = slice_towards(spy, torch.zeros(1, 16), torch.ones(1, 16), batch_size=256)
    assert spy.forward_rows == 40_001 and spy.calls == 158  # the centre is one more
    again = slice_towards(spy.module, torch.zeros(1, 16), torch.ones(1, 16), batch_size=256)
    other = slice_towards(spy.module, torch.zeros(1, 16), torch.ones(1, 16), batch_size=256, seed=1)
    assert torch.equal(first.confidence, again.confidence) and not torch.equal(first.confidence, other.confidence)


def test_a_slice_tells_itself_and_draws_itself() -> None:
    target = uf.Target(Ball(torch.full((2, 3), 0.5), 0.4), classes=["in", "out"])
    found = slice_towards(target, torch.full((1, 2, 3), 0.5), torch.full((1, 2, 3), 0.9), points=40)
    assert "called in" in found.sentence() and "nearest (out) 0.4" in found.sentence()
    pytest.importorskip("matplotlib")
    assert found.image("svg") == found.image("svg") and b"adversarial" in found.image("svg")


def test_bad_planes_are_refused_in_one_sentence() -> None:
    target, x, u = Linear.random((4,)), torch.rand(1, 4), torch.eye(4)[:1]
    with pytest.raises(uf.InputError, match="parallel"):
        decision_slice(target, x, u, -3 * u)
    with pytest.raises(uf.InputError, match="zero everywhere"):
        decision_slice(target, x, u, 0 * u)
    with pytest.raises(uf.InputError, match="one example"):
        decision_slice(target, torch.rand(2, 4), u, u)
    with pytest.raises(uf.InputError, match="shape"):
        slice_towards(target, x, torch.rand(1, 5))
    with pytest.raises(uf.InputError, match="three examples"):
        slice_through(target, {"a": x, "b": u})


def test_distances_to_a_flat_boundary_are_the_closed_form_along_every_line() -> None:
    target, g = Linear.random((50,), classes=2, seed=2), torch.Generator().manual_seed(0)
    x, lines = torch.rand(3, 50, generator=g), torch.randn(40, 50, generator=g)
    w = (target.weight[1] - target.weight[0]).detach()
    scores = target(x).detach()
    margin = scores[:, 1] - scores[:, 0]
    found = distances(target, x, x - margin[:, None] * w, directions=lines, upper=1e3, points=60, tolerance=1e-5)
    cosine = (lines @ w) / lines.norm(dim=1)
    expected = margin.abs()[:, None] / cosine.abs()
    inside = expected < 1e3
    assert torch.allclose(found.random[inside], expected[inside], rtol=1e-3)
    assert bool(found.random[~inside].isinf().all())
    assert torch.allclose(found.adversarial, margin.abs() / w.norm(), rtol=1e-3)


def test_random_lines_to_a_flat_boundary_are_longer_by_the_square_root_of_the_dimension() -> None:
    target = Linear.random((400,), classes=2, seed=1)
    w = (target.weight[1] - target.weight[0]).detach()
    x = torch.rand(2, 400)
    margin = (target(x) @ torch.tensor([-1.0, 1.0])).detach()
    found = distances(target, x, x - margin[:, None] * w, directions=500, upper=1e4)
    assert found.ratio.tolist() == pytest.approx([found.predicted] * 2, rel=0.15)
    assert found.predicted == pytest.approx(20 / 0.6745)


def test_from_the_middle_of_a_sphere_every_direction_is_the_radius() -> None:
    target = Ball(torch.full((2, 3), 0.5), 0.37)
    x = torch.full((1, 2, 3), 0.5)
    found = distances(target, x, x + 0.1, directions=20, tolerance=1e-4)
    assert torch.allclose(found.random, torch.full((1, 20), 0.37), rtol=2e-4)
    assert float(found.adversarial) == pytest.approx(0.37, rel=2e-4)
    assert found.ratio.tolist() == pytest.approx([1], rel=3e-4)
    near = distances(target, x, x + 0.1, directions=20, upper=0.3)
    assert bool(near.random.isinf().all()) and "0% of the lines" in near.sentence()


def test_distances_ask_for_labels_alone_in_full_batches() -> None:
    spy = Spy(Linear.random((16,), classes=3))
    target = uf.Target(spy, access=uf.Access.LABEL)
    x, other = torch.rand(4, 16), torch.rand(4, 16)
    found = distances(target, x, other, directions=30, batch_size=256)
    assert spy.backward_rows == 0
    assert spy.calls < 4 + 8 + math.ceil(4 * 61 * 40 / 256) + 10 * (1 + math.ceil(4 * 61 / 256))
    assert torch.equal(found.random, distances(spy.module, x, other, directions=30).random)
    alone = distances(spy.module, x[2:3], other[2:3], directions=30)
    assert torch.equal(alone.random[0], found.random[2])
    assert not torch.equal(found.random, distances(spy.module, x, other, directions=30, seed=1).random)


@pytest.mark.parametrize("radius", [0.5, 2.0])
def test_the_curvature_of_a_sphere_is_one_over_its_radius_in_every_direction(radius: float) -> None:
    target, g = Ball(torch.zeros(12), radius), torch.Generator().manual_seed(0)
    x = 0.3 * radius * torch.nn.functional.normalize(torch.randn(4, 12, generator=g))
    out = 1.5 * radius * torch.nn.functional.normalize(torch.randn(4, 12, generator=g))
    found = curvature(target, x, out)
    assert torch.allclose(found.directional, torch.full_like(found.directional, 1 / radius), rtol=1e-3)
    assert found.principal.shape == (4, 11)
    assert torch.allclose(found.principal, torch.full_like(found.principal, 1 / radius), rtol=1e-3)
    assert float(found.asymmetry.max()) < 1e-3 and float(found.offset.max()) < 1e-5
    inverse = curvature(target, out, x)  # seen from outside the same boundary is hollow
    assert torch.allclose(inverse.directional, torch.full_like(inverse.directional, -1 / radius), rtol=1e-3)


def test_a_plane_does_not_bend() -> None:
    target, g = Linear.random((3, 5), classes=4, seed=3), torch.Generator().manual_seed(0)
    x, z = torch.rand(20, 3, 5, generator=g), torch.rand(20, 3, 5, generator=g)
    differ = target(x).argmax(1) != target(z).argmax(1)
    assert int(differ.sum()) >= 5
    found = curvature(target, x[differ], z[differ])
    assert float(found.directional.abs().max()) < 1e-3 and float(found.principal.abs().max()) < 1e-3


def test_principal_curvatures_of_a_paraboloid_are_found() -> None:
    bends = torch.tensor([3.0, 1.0, 0.0, -2.0, 0.5])

    class Paraboloid(nn.Module):
        def forward(self, x: Tensor) -> Tensor:  # class 0 below z = -(bends . y²) / 2
            height = x[:, 0] + (bends * x[:, 1:].square()).sum(1) / 2
            return torch.stack([-height, torch.zeros_like(height)], 1)

    x, z = torch.tensor([[-1.0, 0, 0, 0, 0, 0]]), torch.tensor([[1.0, 0, 0, 0, 0, 0]])
    found = curvature(Paraboloid(), x, z, directions=400)
    assert found.principal[0].tolist() == pytest.approx(sorted(bends.tolist(), reverse=True), abs=1e-3)
    assert float(found.mean[0]) == pytest.approx(float(bends.mean()), abs=0.25)
    assert float(found.distance[0]) == pytest.approx(1, abs=1e-5)


def test_curvature_sees_the_boundary_nearest_to_the_example_and_its_two_classes() -> None:
    target = Linear(torch.tensor([[0.0, 0], [1.0, 0], [3.0, 0]]), torch.tensor([0.0, -1.0, -5.0]))  # 0 | 1 | 2
    found = curvature(target, torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]]))
    assert (found.own.tolist(), found.other.tolist()) == ([0], [1])
    assert float(found.distance) == pytest.approx(1, abs=1e-5)


def test_distances_and_curvature_tell_and_draw_themselves() -> None:
    target, x = Ball(torch.full((6,), 0.5), 0.4), torch.full((2, 6), 0.5) + torch.tensor([[0.0], [0.02]])
    far, bent = distances(target, x, x + 0.3, directions=10), curvature(target, x, x + 0.3)
    assert len(far.rows()) == len(bent.rows()) == 2
    assert "flat boundary" in far.sentence() and "curvature is 0.88" in bent.sentence()
    pytest.importorskip("matplotlib")
    for found in (far, bent):
        assert found.image("svg") == found.image("svg")
    flat = distances(Ball(torch.zeros(6), 100.0), x, x + 0.3, directions=10)  # no boundary at all
    assert flat.image("png")[:4] == b"\x89PNG"


def test_bad_distances_and_curvatures_are_refused_in_one_sentence() -> None:
    target, x = Linear.random((4,)), torch.rand(2, 4)
    with pytest.raises(uf.InputError, match="zero everywhere"):
        distances(target, x, x)
    with pytest.raises(uf.InputError, match="directions"):
        distances(target, x, x + 1, directions=torch.rand(3, 5))
    with pytest.raises(uf.InputError, match="upper"):
        distances(target, x, x + 1, upper=0.0)
    with pytest.raises(uf.InputError, match="label of x"):
        curvature(target, x, x.clone())
    with pytest.raises(uf.InputError, match="two dimensions"):
        curvature(Linear.random((1,)), torch.rand(1, 1), torch.rand(1, 1))


@pytest.mark.gpu
def test_measurements_on_cuda_are_those_of_the_cpu() -> None:
    from unfooled.explain.linearity import local_linearity, logits_along

    module = nn.Sequential(nn.Flatten(), nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 4)).eval()
    g = torch.Generator().manual_seed(0)
    x, z = torch.rand(12, 2, 12, generator=g), torch.rand(12, 2, 12, generator=g)
    z = z + 3 * torch.randn(z.shape, generator=g)
    y = module(x).argmax(1)
    differ = module(z).argmax(1) != y
    x, y, z = x[differ], y[differ], z[differ]
    assert len(x) >= 3
    here, there = uf.Target(module), uf.Target(copy.deepcopy(module).cuda())
    for measure, tensors in (
        (lambda t: logits_along(t, x, z - x, points=21), ("scores", "random_scores")),
        (lambda t: slice_towards(t, x[:1], z[:1], points=21), ("confidence",)),
        (lambda t: distances(t, x, z, directions=8), ("random", "adversarial")),
        (lambda t: curvature(t, x, z), ("directional",)),
        (lambda t: local_linearity(t, x, y), ("predicted",)),
    ):
        cpu, cuda = measure(here), measure(there)
        for name in tensors:
            assert torch.allclose(getattr(cpu, name), getattr(cuda, name).cpu(), rtol=2e-2, atol=2e-3), name
