"""Slices, distances and curvature against half-spaces and spheres."""

import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled.explain.geometry import decision_slice, slice_through, slice_towards
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
