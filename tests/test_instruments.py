"""Instruments: targets that know the ball and the box, and answer wrongly as soon as a point lies outside of either.

Such a target cannot be broken by anything that counts: every success is a candidate outside the ball (in float64),
outside the box or not finite. Its scores and gradients lure attacks over the edge.
"""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled.attacks import RECIPES, SUITES
from unfooled.norms import NORMS
from unfooled.testing import size_of

Bounds = tuple[float, float]
SHAPE = (2, 3, 4)
CASES = [(r.name, norm) for r in RECIPES.values() for norm in r.norms]
every = pytest.mark.parametrize(("recipe", "norm"), CASES, ids=lambda v: v)
SIZES = {"linf": (8 / 255, 1e-6, 0.2), "l2": (0.5, 1e-5, 0.9), "l1": (2.0, 1e-5, 3.0), "l0": (3.0, 1.0, 11.0)}
POWER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}
BOUNDS = ((0.0, 1.0), (-3.0, 5.0), (0.0, 255.0))


class Instrument(nn.Module):
    """Class 0 inside ball and box, class 1 outside; class 2 never wins. Everything is measured in float64.

    A row belongs to the original x0 [n, ...] that is nearest to it. `lure` is where gradients call: "corner" to one
    corner of the ball, "out" straight away from x0; "nan" and "inf" hold such numbers. `inside` is the largest
    distance seen inside, in units of eps, `outside` the number of rows seen outside.
    """

    def __init__(self, x0: Tensor, norm: str, eps: float, bounds: Bounds, lure: str) -> None:
        super().__init__()
        self.norm, self.eps, self.bounds, self.lure = norm, eps, bounds, lure
        self.register_buffer("x0", x0.double().flatten(1))
        g = torch.Generator().manual_seed(0)
        self.register_buffer("signs", torch.randint(0, 2, self.x0.shape, generator=g).double() * 2 - 1)
        self.inside, self.outside = 0.0, 0

    def measure(self, z: Tensor, own: Tensor) -> Tensor:
        """How far z [b, d] lies outside the ball around own [b, d] or the box, in units of eps, positive outside."""
        distance = torch.from_numpy(size_of(self.norm, (z - own).nan_to_num().numpy())) / self.eps
        box = torch.maximum(z - self.bounds[1], self.bounds[0] - z).amax(1)
        if self.norm in ("l2", "l1"):  # float64's own rounding of a sum of values of the size of the box
            distance = distance - 1e-12 - len(z[0]) * 2.0**-52 * max(map(abs, self.bounds)) / self.eps
        over = distance - 1
        over = torch.where(z.isfinite().all(1), torch.where(box > 0, torch.maximum(over, box), over), 1.0)
        self.outside += int((over > 0).sum())
        self.inside = max([self.inside, *(1 + over[over <= 0]).tolist()])
        return over

    def forward(self, x: Tensor) -> Tensor:
        z = x.double().flatten(1)
        place = torch.cdist(z.detach().nan_to_num(), self.x0, POWER[self.norm]).argmin(1)
        over = self.measure(z.detach(), self.x0[place])
        d = (z - self.x0[place]) / self.eps
        call = d.square().sum(1) if self.lure == "out" else (d * self.signs[place]).sum(1)
        if self.lure == "nan":
            call = call + (d[:, 0] * 0).sqrt()
        if self.lure == "inf":
            call = call + d[:, ::2].sum(1) * 1e300  # infinite in float32
        score = over + (call - call.detach()).nan_to_num()  # the value is honest, the gradient calls
        return torch.stack([torch.zeros_like(score), score, torch.full_like(score, -100.0)], 1)


def made(recipe: str) -> Any:
    """The recipe in a size at which it goes through all its motions."""
    make = RECIPES[recipe].make
    small = {"queries": 20, "samples": 5, "steps": 8, "restarts": 2, "targets": 2}
    return make(**{k: v for k, v in small.items() if k in inspect.signature(make).parameters})


def originals(bounds: Bounds, dtype: torch.dtype) -> Tensor:
    """Points of the box, far apart; in every second one half of the values are at the walls."""
    x = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=dtype)
    x[1::2] = (x[1::2] * 2 - 0.5).clamp(0, 1)
    return bounds[0] + (bounds[1] - bounds[0]) * x


def target_of(instrument: Instrument, dtype: torch.dtype) -> uf.Target:
    """A target that is attacked in `dtype`; the instrument itself stays float64."""
    single = dtype == torch.float32
    return uf.Target((lambda v: instrument(v)) if single else instrument, bounds=instrument.bounds)


def assert_nothing_counts(
    attack: Any, norm: str, eps: float, bounds: Bounds, lure: str = "corner", dtype: torch.dtype = torch.float32
) -> Instrument:
    x = originals(bounds, dtype)
    instrument = Instrument(x, norm, eps, bounds, lure)
    y = torch.zeros(len(x), dtype=torch.int64)
    out = uf.run(attack, target_of(instrument, dtype), x, y, uf.Ball(NORMS[norm], eps))
    assert isinstance(out.x_adv, Tensor) and out.x_adv.dtype == dtype
    assert {str(s.value) for s in out.status} == {"survived"}, (eps, bounds, lure)
    assert not out.success.any() and bool(out.distance.isnan().all()) and torch.equal(out.x_adv, x)
    return instrument


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_no_candidate_outside_ball_or_box_counts(recipe: str, norm: str, dtype: torch.dtype) -> None:
    for i, eps in enumerate(SIZES[norm][: 3 if dtype == torch.float32 else 2]):
        bounds = BOUNDS[(i + (dtype == torch.float64)) % 3]
        wide = eps if norm == "l0" else eps * (bounds[1] - bounds[0])
        instrument = assert_nothing_counts(made(recipe), norm, wide, bounds, dtype=dtype)
        trusting = recipe == "pixel_gradient" or RECIPES[recipe].smallest  # the slope sets the pace, and here it lies
        if RECIPES[recipe].access == uf.Access.GRADIENT and eps > 1e-4 and not trusting:
            assert instrument.inside > 0.9, "the attack never came near the edge: this shows nothing"


@every
def test_no_lure_makes_a_candidate_outside_count(recipe: str, norm: str) -> None:
    lures = ("out", "nan", "inf") if recipe in ("pgd", "apgd") else ("out",)
    for lure in lures:
        assert_nothing_counts(made(recipe), norm, SIZES[norm][0], (0.0, 1.0), lure)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("suite", ["quick", "standard"])
def test_no_suite_counts_a_candidate_outside(suite: str, norm: str) -> None:
    assert_nothing_counts(SUITES[suite].attacks, norm, SIZES[norm][0], (0.0, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("lure", ["corner", "out"])
def test_no_evaluation_counts_a_candidate_outside(norm: str, lure: str) -> None:
    """With everything that an evaluation adds to its suite where a target looks masked."""
    x, eps = originals((0.0, 1.0), torch.float32), SIZES[norm][0]
    instrument = Instrument(x, norm, eps, (0.0, 1.0), lure)
    y = torch.zeros(len(x), dtype=torch.int64)
    out = uf.evaluate(target_of(instrument, torch.float32), x, y, uf.Ball(NORMS[norm], eps), suite="standard")
    assert out.robust.all()


# ---- the instruments themselves


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_an_instrument_sees_what_lies_outside(norm: str, dtype: torch.dtype) -> None:
    """A ulp outside the box, a millionth of eps outside the ball, NaN and infinity are answered wrongly."""
    x, eps = torch.full((3, *SHAPE), 0.5, dtype=dtype), SIZES[norm][0]
    x[1:] = 0.25 * torch.arange(1, 3, dtype=dtype).view(-1, 1, 1, 1) - 0.25
    instrument = Instrument(x, norm, eps, (0.0, 1.0), "corner")

    def label(z: Tensor) -> list[int]:
        return instrument(z).argmax(1).tolist()

    assert label(x) == [0, 0, 0]
    assert instrument.outside == 0
    each = {"linf": 1.0, "l2": 24**-0.5, "l1": 1 / 24, "l0": 0.0}[norm]
    step = torch.full(SHAPE, each * eps, dtype=torch.float64)
    if norm == "l0":
        step.view(-1)[: int(eps)] = 0.1
    assert label((x.double() + step * (1 - 1e-9))[:1]) == [0]
    further = step * (1 + 1e-6)
    if norm == "l0":
        further.view(-1)[int(eps)] = 1e-7
    assert label((x.double() + further)[:1]) == [1]
    for value in (-(2.0**-149 if dtype == torch.float32 else 2.0**-1074), float("nan"), float("inf"), -float("inf")):
        z = x.clone()
        z[1, 0, 0, 0] = value
        assert label(z) == [0, 1, 0]


class Leaky(uf.Ball):
    """A ball whose own check lets everything pass and whose projection is a hundred-thousandth too wide."""

    def project(self, x_adv: Tensor, x: Tensor, radius: Any = None) -> Tensor:
        return self.norm.project(x_adv, x, self.eps * (1 + 1e-5), (self.bounds[0], self.bounds[1] + 1e-5))

    def contains(self, x_adv: Any, x: Any) -> Tensor:
        return torch.ones(len(x), dtype=torch.bool)

    def settle(self, x_adv: Any, x: Any) -> Any:
        return x_adv


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("recipe", ["pgd", "apgd"])
def test_a_leaky_ball_is_seen(recipe: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("project", "contains", "settle"):
        monkeypatch.setattr(uf.Ball, name, getattr(Leaky, name))
    with pytest.raises(AssertionError, match="survived"):
        assert_nothing_counts(made(recipe), norm, SIZES[norm][0], (0.0, 1.0))
