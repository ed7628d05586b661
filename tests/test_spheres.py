"""The adversarial spheres against closed forms: caps, two-valued ellipsoids, a brute-force search."""

import math
from typing import Any

import pytest
import torch
from scipy.special import betainc, ndtri

import unfooled as uf
from unfooled.core.ask import Asker
from unfooled.explain.spheres import (
    Analytic,
    Quadratic,
    Spheres,
    cap_angle,
    cap_distance,
    cap_share,
    ellipsoid_distances,
    measured,
    nearest_errors,
    on_sphere,
    spheres,
)
from unfooled.testing import Linear


def ellipsoid(alpha: torch.Tensor) -> Quadratic:
    """A quadratic network with the given coefficients along the coordinates."""
    module = Quadratic(len(alpha), len(alpha))
    with torch.no_grad():
        module.hidden.weight.copy_((3 * alpha).sqrt().diag())
        module.shift.fill_(-3.0)
    return module


def two_valued(dim: int, count: int, high: float, low: float) -> torch.Tensor:
    return torch.cat([torch.full((count,), high), torch.full((dim - count,), low)])


def test_caps_by_their_closed_forms() -> None:
    assert cap_share(math.pi / 2, 500) == pytest.approx(0.5)
    assert cap_share(1.0, 3) == pytest.approx((1 - math.cos(1.0)) / 2)  # Archimedes: area grows with the height
    for dim in (3, 50, 500):
        for share in (1e-12, 0.01, 0.4, 0.7):
            assert cap_share(cap_angle(share, dim), dim) == pytest.approx(share, rel=1e-6)
    assert cap_distance(1e-6, 5000) == pytest.approx(-float(ndtri(1e-6)) / math.sqrt(5000), rel=0.03)
    x = on_sphere(20_000, 40, "caps", torch.device("cpu")).double()
    edge = cap_angle(1e-3, 40)
    angle = (x[:, 0].acos() - edge).clamp(min=0)
    assert cap_distance(1e-3, 40) == pytest.approx(float((2 * (angle / 2).sin()).mean()), rel=0.01)
    assert 0 < cap_distance(0.9, 40) < cap_distance(0.5, 40) < cap_distance(1e-9, 40)


def test_the_axes_of_a_quadratic_network() -> None:
    alpha = torch.tensor([0.5, 0.9, 1.2, 0.7, 1.05])
    found, axes = ellipsoid(alpha).axes()
    assert torch.allclose(found, alpha.double().sort().values, atol=1e-6)
    x = torch.randn(50, 5)
    score = ellipsoid(alpha)(x)[:, 1].double()
    form = ((x.double() @ axes).square() * found).sum(1) - 1
    assert torch.allclose(score, 3 * form, atol=1e-4)


def test_the_exact_distance_to_an_ellipsoids_errors() -> None:
    """With two values of alpha the errors are a double cone around the first coordinates: an angle."""
    alpha = two_valued(20, 4, 1.5, 0.8).double()
    x = on_sphere(200, 20, "cone", torch.device("cpu")).double()
    sine = math.sqrt(0.2 / 0.7)  # of the share in the first coordinates at which 1.5 s + 0.8 (1 - s) = 1
    angle = (math.asin(sine) - x[:, :4].norm(dim=1).asin()).clamp(min=0)
    assert torch.allclose(ellipsoid_distances(alpha, x), 2 * (angle / 2).sin(), atol=1e-6)
    odd = torch.tensor([1.3, 1.05, 0.8, 0.9], dtype=torch.float64)
    point = on_sphere(1, 4, "odd", torch.device("cpu")).double()
    grid = on_sphere(400_000, 4, "grid", torch.device("cpu")).double()
    brute = (grid[(grid.square() * odd).sum(1) >= 1] - point).norm(dim=1).min()
    exact = float(ellipsoid_distances(odd, point))
    assert exact <= float(brute) <= exact + 0.03
    assert torch.isinf(ellipsoid_distances(torch.full((4,), 0.9, dtype=torch.float64), point)).all()
    assert float(ellipsoid_distances(torch.full((4,), 1.1, dtype=torch.float64), point)) == 0


def test_the_search_finds_the_nearest_errors_and_never_nearer_ones() -> None:
    alpha = 0.55 + 0.6 * torch.rand(40, generator=torch.Generator().manual_seed(1))
    module = ellipsoid(alpha)
    x = on_sphere(60, 40, "search", torch.device("cpu"))
    found = nearest_errors(Asker(module), x).double()
    exact = ellipsoid_distances(alpha.double(), x.double())
    assert bool((found >= exact - 1e-5).all())
    assert float(found.mean()) == pytest.approx(float(exact.mean()), rel=0.02)
    half = Linear(torch.stack([torch.zeros(40), torch.eye(40)[0]]), torch.tensor([0.0, -0.4]))
    cap = 2 * ((math.acos(0.4) - x[:, 0].double().acos()).clamp(max=0).abs() / 2).sin()
    assert torch.allclose(nearest_errors(Asker(half), x).double(), cap, atol=1e-4)


def test_the_error_rate_and_its_bound() -> None:
    """Errors of a two-valued ellipsoid have a beta law; the cap of their share lies farther away than they do."""
    dim, count = 60, 6
    module = ellipsoid(two_valued(dim, count, 1.4, 0.8))
    found = Spheres(dim, 1.3, (measured(module, dim, 1.3, name="given", tested=2000, attacked=40),))
    row = found.rows()[0]
    share = float(1 - betainc(count / 2, (dim - count) / 2, 0.2 / 0.6))
    assert row["log10_low"] - 0.1 < math.log10(share) < row["log10_high"] + 0.1
    assert row["found"] == 1.0 and row["distance"] == pytest.approx(row["exact"], rel=0.02)
    assert row["exact"] < row["bound"] == pytest.approx(cap_distance(share, dim), rel=0.05)
    assert row["axes_wrong"] == count  # those above 1; 0.8 lies in [1 / 1.69, 1]


def test_the_principled_model_has_no_errors() -> None:
    sphere = measured(Analytic(1.3), 30, 1.3, name="analytic", tested=3000, attacked=10)
    assert sphere.errors == (0, 0) and bool(sphere.distances.isinf().all()) and bool(sphere.logs.isnan().all())


def test_the_experiment_small(same_luck: None) -> None:
    settings: dict[str, Any] = {"dim": 20, "samples": 20_000, "width": 40, "tested": 2000, "attacked": 10, "lr": 1e-2}
    found = spheres(**settings)
    rows = {row["model"]: row for row in found.rows()}
    assert list(rows) == ["quadratic", "relu", "analytic"]
    assert rows["quadratic"]["axes"] == 20 and rows["relu"]["axes"] == 0
    for name in ("quadratic", "relu"):
        assert rows[name]["errors_inner"] + rows[name]["errors_outer"] < 1400  # chance errs on 2000 of 4000
        if rows[name]["found"] == 1 and math.isfinite(rows[name]["bound"]):
            assert rows[name]["distance"] < rows[name]["bound"] + 0.1
    assert rows["analytic"]["errors_inner"] == 0 == rows["analytic"]["found"]
    assert "analytic model errs on none" in found.sentence()
    assert found.image()[:4] == b"\x89PNG"
    again = spheres(**settings, models=("quadratic",)).models[0]
    assert torch.equal(again.alpha, found.models[0].alpha) and torch.equal(again.distances, found.models[0].distances)


@pytest.mark.parametrize(
    "wrong", [{"models": ("cubic",)}, {"models": ()}, {"dim": 2}, {"radius": 1.0}, {"samples": 0}, {"attacked": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(uf.InputError):
        spheres(**wrong)


def test_a_cap_of_no_share_is_refused() -> None:
    with pytest.raises(uf.InputError):
        cap_distance(0.0, 10)
