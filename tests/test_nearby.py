"""Random directions, subspaces and gradient-aligned directions, against closed forms on linear targets."""

import math
from typing import Any

import pytest
import torch
from scipy.special import betainc
from torch import Tensor

import unfooled as uf
from unfooled.explain.nearby import directions, gaas, subspaces
from unfooled.testing import Linear, Spy

DIM = 30


def at_distance(distance: float, n: int = 3, seed: int = 0) -> tuple[Linear, Tensor, Tensor]:
    """A linear target whose boundary lies `distance` (L2) from each of n points in the middle of the box."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(DIM, generator=g)
    w /= w.norm()
    x = 0.5 + 0.02 * torch.randn(n, DIM, generator=g)
    x -= ((x - 0.5) @ w).view(-1, 1) * w
    bias = -0.5 * float(w.sum()) - distance
    return Linear(torch.stack([torch.zeros(DIM), w]), torch.tensor([0.0, bias])), x, torch.zeros(n, dtype=torch.long)


def test_the_share_of_random_directions_is_that_of_the_cap() -> None:
    target, x, y = at_distance(0.0999)
    found = directions(target, x, y, radius=0.4, n=3000, along=4)
    for row in found.rows():
        cos = 0.0999 / row["distance"]
        truth = 0.5 * betainc((DIM - 1) / 2, 0.5, 1 - cos**2) if cos < 1 else 0.0
        assert row["share"] == pytest.approx(truth, abs=0.015)
        assert row["gradient"] == 1.0
    closer = directions(target, x, y, radius=0.0998, n=20).rows()[-1]
    assert closer["gradient"] == 0.0 and closer["share"] == 0.0
    one = directions(target, x[:1], y[:1], radius=0.4, n=3000).rows()[-1]
    low, high = one["interval"]
    assert low < 0.5 * betainc((DIM - 1) / 2, 0.5, 1 - 0.25**2) < high and high - low < 0.03


def test_signs_in_linf_and_the_box() -> None:
    target, x, y = at_distance(0.01)
    found = directions(target, x, y, radius=0.05, n=500, norm="linf")
    assert found.rows()[-1]["gradient"] == 1.0 and 0.2 < found.rows()[-1]["share"] < 0.5
    far, x, y = at_distance(50.0)  # no point of the box is so far
    assert directions(far, x, y, radius=1000.0, n=20).rows()[-1]["share"] == 0.0


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_share_of_subspaces_follows_the_beta_law(share: float) -> None:
    target, x, y = at_distance(0.3 * share, n=4)
    found = subspaces(target, x, y, eps=0.3, dims=(1, 2, 5, 10, DIM), n=150, steps=4)
    for row in found.rows():
        k = row["dimension"]
        truth = 1 - betainc(k / 2, (DIM - k) / 2, share**2) if k < DIM else 1.0
        assert row["share"] == pytest.approx(truth, abs=0.09)
        assert row["linear"] == pytest.approx(truth, abs=1e-4)
        assert row["whole"] == 1.0
    assert subspaces(target, x, y, eps=0.3 * share * 0.99, dims=(DIM,), n=3).rows()[0]["share"] == 0.0


def test_subspaces_of_gradients_and_given_ones() -> None:
    target, x, y = at_distance(0.1)
    target.weight.data += 1e-4 * torch.randn_like(target.weight)
    row = subspaces(target, x, y, eps=0.11, dims=(1,), n=2, kind="gradient").rows()[0]
    assert row["share"] == 1.0 and math.isnan(row["linear"])
    w = target.weight[1:].detach()
    away = torch.linalg.qr(torch.cat([w, torch.eye(DIM)[:4]]).T).Q.T  # the first row is the normal, the rest is not
    for basis, share in ((away, 1.0), (away[1:], 0.0)):
        found = subspaces(target, x, y, eps=0.11, dims=(1, 3), kind=basis)
        assert [row["share"] for row in found.rows()] == [share] * 2 and found.found.shape == (2, 3, 1)


def test_linf_subspaces_stay_in_the_ball() -> None:
    target, x, y = at_distance(0.2)
    dual = float(target.weight[1].detach().abs().sum())
    for eps, share in ((0.99 * 0.2 / dual, 0.0), (4 * 0.2 / dual, 1.0)):
        assert subspaces(target, x, y, eps=eps, dims=(DIM,), n=2, norm="linf").rows()[0]["share"] == share


def test_aligned_directions_of_a_linear_target() -> None:
    eps = 0.3
    for k in (1, 5, 20):
        target, x, y = at_distance(eps / math.sqrt(k) * 0.999)
        found = gaas(target, x, y, eps=eps, counts=range(1, DIM + 1))
        assert found.dimension.tolist() == [k] * 3 and found.most.tolist() == [k] * 3
        missed = at_distance(eps / math.sqrt(k) * 1.001)
        assert gaas(*missed, eps=eps, counts=range(1, DIM + 1)).dimension.tolist() == [k - 1] * 3
        assert float(found.control.sum()) < float(found.adversarial.sum())


def test_the_same_bits_alone_and_in_a_batch_and_every_row_counted(same_luck: None) -> None:
    target, x, y = at_distance(0.1)
    spy = Spy(target)
    calls: dict[Any, dict[str, Any]] = {
        directions: {"radius": 0.4, "n": 20},
        subspaces: {"eps": 0.3, "dims": (2,), "n": 4, "steps": 3},
        gaas: {"eps": 0.3, "counts": (2, 9)},
    }
    for call, settings in calls.items():
        before = spy.forward_rows, spy.backward_rows
        whole = call(spy, x, y, **settings)
        assert whole.forward == spy.forward_rows - before[0] and whole.backward == spy.backward_rows - before[1]
        alone = call(target, x[1:2], y[1:2], **settings)
        axis = 1 if call is subspaces else 0
        for name in ("first", "found", "adversarial"):
            if hasattr(whole, name):
                assert torch.equal(getattr(whole, name).narrow(axis, 1, 1), getattr(alone, name))
        assert call(target, x, y, **settings).rows() == whole.rows()
        assert whole.image()[:4] == b"\x89PNG" and len(whole.sentence()) > 50


def test_images_that_are_wrong_already_are_left_out() -> None:
    target, x, y = at_distance(0.1)
    y[0] = 1
    assert directions(target, x, y, radius=0.2, n=10).left_out == 1
    with pytest.raises(uf.InputError, match="none"):
        gaas(target, x, torch.ones_like(y), eps=0.1)


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (directions, {"radius": 0.0}),
        (directions, {"radius": 0.1, "n": 0}),
        (directions, {"radius": 0.1, "norm": "l7"}),
        (subspaces, {"eps": 0.1, "dims": (0,)}),
        (subspaces, {"eps": 0.1, "dims": (DIM + 1,)}),
        (subspaces, {"eps": 0.1, "kind": "odd"}),
        (subspaces, {"eps": 0.1, "kind": torch.zeros(3, DIM - 1)}),
        (gaas, {"eps": 0.1, "counts": (DIM + 1,)}),
        (gaas, {"eps": -0.1}),
    ],
)
def test_settings_that_make_no_sense_are_refused(call: Any, wrong: dict[str, Any]) -> None:
    target, x, y = at_distance(0.1)
    with pytest.raises(uf.InputError):
        call(target, x, y, **wrong)
    with pytest.raises(uf.InputError, match="label"):
        call(
            target,
            x,
            y[:1],
            **(
                {"radius": 0.1}
                if call is directions
                else {"eps": 0.1, "counts": (2,)}
                if call is gaas
                else {"eps": 0.1}
            ),
        )
