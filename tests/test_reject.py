"""Abstention that is trained: losses against their formulas, refusing where it was taught, and what is measured."""

import math

import pytest
import torch
from torch import nn

import unfooled as uf
from unfooled.core.fit import fit
from unfooled.harden import reject, wrappers


def clouds(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes of points, one at the left and one at the right."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=generator)
    return torch.randn(n, 2, generator=generator) * 0.3 + torch.stack([4.0 * y - 2, torch.zeros(n)], 1), y


def ring(n: int, seed: int) -> torch.Tensor:
    """Points around both classes, far from them."""
    angle = torch.rand(n, generator=torch.Generator().manual_seed(seed)) * 2 * math.pi
    return 6 * torch.stack([angle.cos(), angle.sin()], 1)


def body(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, classes))


def trained(classes: int, objective: object) -> nn.Module:
    module = body(classes)
    fit(module, *clouds(600, 0), objective, epochs=12, batch_size=50, lr=2e-2)
    return module.eval()


def test_losses_are_their_formulas() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.5], [0.3, -1.0, 2.0]])
    y = torch.tensor([0, reject.NONE])
    log = scores.log_softmax(1)
    torch.testing.assert_close(reject.as_class(scores, y), torch.stack([-log[0, 0], -log[1, 2]]))
    torch.testing.assert_close(reject.as_unsure(scores, y), torch.stack([-log[0, 0], -log[1].mean()]))
    p = scores.sigmoid()
    first = -(p[0, 0].log() + (1 - p[0, 1:]).log().sum()) / 3
    torch.testing.assert_close(reject.as_no_class(scores, y), torch.stack([first, -(1 - p[1]).log().mean()]))


def test_the_objective_weighs_what_should_be_refused() -> None:
    x, y = clouds(10, 1)
    module, rubbish = body(3), ring(4, 1)
    made = reject.abstaining(lambda *_: rubbish, weight=0.25)(module, x, y, y, 0)
    known = nn.functional.cross_entropy(module(x), y)
    unknown = nn.functional.cross_entropy(module(rubbish), torch.full((4,), 2))
    torch.testing.assert_close(made, known + 0.25 * unknown)


def test_noise_belongs_to_row_and_step_and_is_of_both_kinds() -> None:
    x, ids = torch.zeros(400, 1, 4, 4), torch.arange(400)
    make = reject.noise((0.0, 1.0), seed=3)
    first = make(nn.Identity(), x, ids, ids, 5)
    assert first.shape == (200, 1, 4, 4)
    assert torch.equal(first, make(nn.Identity(), x, ids, ids, 5))
    assert not torch.equal(first, make(nn.Identity(), x, ids, ids, 6))
    assert not torch.equal(first, reject.noise(seed=4)(nn.Identity(), x, ids, ids, 5))
    normal, flat = first[::2], first[1::2]
    assert abs(float(normal.std()) - 1) < 0.05 and abs(float(normal.mean())) < 0.05
    assert float(flat.min()) >= 0 and float(flat.max()) <= 1 and abs(float(flat.std()) - 12**-0.5) < 0.02
    both = reject.together(make, torch.ones(3, 1, 4, 4))(nn.Identity(), x, ids, ids, 5)
    assert both.shape == (400, 1, 4, 4) and bool((both[200:] == 1).all())


@pytest.mark.parametrize(
    ("classes", "loss"),
    [(3, reject.as_class), (2, reject.as_no_class), (2, reject.as_unsure)],
    ids=["class", "no class", "unsure"],
)
def test_what_resembles_the_outliers_is_refused_and_what_does_not_may_be_answered(classes: int, loss: object) -> None:
    objective = reject.abstaining(ring(300, 0), loss)
    module = trained(classes, objective)
    x, y = clouds(300, 9)
    if loss is reject.as_no_class:
        target = uf.Target(wrappers.Sigmoids(module), reject="last")
    elif loss is reject.as_class:
        target = uf.Target(module, reject="last")
    else:
        target = uf.Target(module, reject=reject.threshold(module, x))
    plain = trained(2, uf.harden.objectives.standard())
    plain_target = uf.Target(plain, reject=max(0.51, min(0.999, reject.threshold(plain, x))))
    shown = {"ring": ring(200, 5)}
    found, control = reject.judged(target, x, y, shown), reject.judged(plain_target, x, y, shown)
    rows, before = ({r["images"]: r for r in f.rows()} for f in (found, control))
    assert found.clean > 0.93
    assert rows["ring"]["answered"] < 0.1 and rows["ring"]["AUROC"] > 0.97
    assert before["ring"]["answered"] > 0.5 and before["ring"]["AUROC"] < 0.9
    assert "ring" in found.sentence() and "AUROC" in found.sentence()


def test_a_threshold_refuses_the_share_asked_for() -> None:
    module = body(2)
    x, y = clouds(1000, 2)
    least = reject.threshold(module, x, rejected=0.05)
    found = reject.judged(uf.Target(module, reject=least), x, y)
    assert abs(found.rows()[0]["answered"] - 0.95) < 0.002
    right = (module(x).argmax(1) == y) & (module(x).softmax(1).amax(1) >= least)
    assert found.clean == pytest.approx(float(right.double().mean()))


def test_same_seed_same_bits() -> None:
    one, two = (trained(3, reject.abstaining(reject.noise(seed=1))) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: reject.abstaining(torch.zeros(0, 2)), "at least one"),
        (lambda: reject.abstaining(torch.zeros(1, 2), weight=0), "larger than 0"),
        (lambda: reject.threshold(body(2), clouds(9, 0)[0], rejected=1.0), "share between 0 and 1"),
        (lambda: reject.threshold(lambda v: v * 1e6, clouds(9, 0)[0]), "completely sure"),
        (lambda: reject.judged(body(2), clouds(9, 0)[0], clouds(8, 0)[1]), "as many labels"),
        (lambda: reject.judged(body(2), *clouds(9, 0), {"others": torch.zeros(3, 5)}), "others have shape"),
    ],
)
def test_bad_input_is_one_sentence(wrong: object, said: str) -> None:
    with pytest.raises(uf.InputError, match=said):
        wrong()


def test_the_figure_is_drawn() -> None:
    found = reject.judged(uf.Target(body(3), reject="last"), *clouds(50, 0), {"ring": ring(40, 1)})
    assert found.image()[:4] == b"\x89PNG"
