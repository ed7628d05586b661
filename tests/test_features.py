"""Robust and non-robust features on a problem whose features are known: one strong coordinate and many weak ones."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled import attacks  # noqa: F401  (recipes by their names)
from unfooled.core.target import Target
from unfooled.explain.features import (
    FeatureSet,
    non_robust_set,
    relabelled,
    robust_set,
    useful_and_robust,
)
from unfooled.testing import Linear, Spy

STRONG_ONES, WEAK_ONES = 60, 3
EPS = 2.0
"""L2 radius: enough to turn all weak coordinates from 0 to 1, and not to bring the strong ones to the middle."""


def scene(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs [n, 63] of zeros and ones, which are both classes' signs.

    The first 60 say the class together, all of them wrong with probability 0.2: a feature that is robust and less
    useful. Each of the last 3 is wrong with probability 0.05, by itself: useful, and not robust.
    """
    luck = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=luck)
    flipped = torch.rand(n, 1, generator=luck) < 0.2
    noisy = torch.rand(n, WEAK_ONES, generator=luck) < 0.05
    said = (y == 1).view(-1, 1)
    return torch.cat([(said ^ flipped).expand(-1, STRONG_ONES), said ^ noisy], 1).float(), y


def seeing(columns: slice) -> nn.Module:
    """A network whose representation is some coordinates, and whose class is the side of their sum."""
    d = STRONG_ONES + WEAK_ONES
    first, last = nn.Linear(d, d), nn.Linear(d, 2)
    with torch.no_grad():
        chosen = torch.zeros(d)
        chosen[columns] = 1.0
        first.weight.copy_(chosen.diag())
        first.bias.copy_(-chosen / 2)
        last.weight.copy_(torch.stack([-torch.ones(d), torch.ones(d)]))
        last.bias.zero_()
    return nn.Sequential(first, last)


def learner(seed: int) -> nn.Module:
    """A plane that begins without an opinion: no random weight is left where the data say nothing."""
    module = nn.Linear(STRONG_ONES + WEAK_ONES, 2)
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def learned(part: FeatureSet) -> dict[str, Any]:
    test = scene(500, 99)
    out = useful_and_robust([part], learner, *test, "bim(steps=20)", uf.l2(EPS), epochs=30, lr=0.1)
    return out.rows()[0]


STRONG, FAINT = seeing(slice(0, STRONG_ONES)), seeing(slice(STRONG_ONES, None))


def test_one_module_is_right_and_the_other_robust() -> None:
    x, y = scene(1000, 5)
    for module, right, robust in ((STRONG, 0.8, 0.8), (FAINT, 0.993, 0.0)):
        out = uf.run("bim(steps=20)", module, x, y, uf.l2(EPS))
        counts = [1 - out.status.count(uf.Status.MISCLASSIFIED) / 1000, out.status.count(uf.Status.SURVIVED) / 1000]
        assert counts == pytest.approx([right, robust], abs=0.04)


def test_a_set_matched_to_the_robust_module_teaches_the_robust_feature_alone() -> None:
    x, y = scene(600, 1)
    part = robust_set(STRONG, x, y, steps=80, lr=0.3)
    strong, weak = slice(0, STRONG_ONES), slice(STRONG_ONES, None)
    assert torch.equal(part.x[:, weak], part.before[:, weak]), "what the module does not see stays another image's"
    assert torch.allclose(part.x[:, strong], x[:, strong], atol=0.02) and part.residual.median() < 0.02
    row = learned(part)
    assert 0.7 < row["clean"] < 0.9 and row["robust"] > 0.7


def test_a_set_matched_to_the_standard_module_teaches_the_feature_that_flips() -> None:
    x, y = scene(600, 1)
    part = non_robust_set(FAINT, x, y, steps=60, lr=0.3)
    strong, weak = slice(0, STRONG_ONES), slice(STRONG_ONES, None)
    assert torch.equal(part.x[:, strong], part.before[:, strong])
    assert torch.allclose(part.x[:, weak], x[:, weak], atol=0.02)
    row = learned(part)
    assert row["clean"] > 0.95 and row["robust"] < 0.05


@pytest.mark.parametrize("labels", ["random", "shifted"])
def test_a_relabelled_set_looks_wrong_and_teaches_what_is_right(labels: Any) -> None:
    x, y = scene(600, 2)
    part = relabelled(FAINT, x, y, "bim(steps=20)", uf.l2(EPS), labels=labels)
    assert bool(((part.x - x).norm(dim=1) <= EPS * (1 + 1e-5)).all())
    wrong = (part.y != y).float().mean()
    assert wrong == 1.0 if labels == "shifted" else 0.4 < wrong < 0.6
    assert torch.equal(part.x[:, :STRONG_ONES], x[:, :STRONG_ONES]), "the strong coordinates still say the truth"
    row = learned(part)
    assert row["clean"] > 0.95 and row["robust"] < 0.05
    if labels == "shifted":
        assert learned(part.unchanged())["clean"] < 0.1, "the labels alone teach the opposite"


def test_one_step_of_relabelling_is_the_sign_of_the_difference_of_weights() -> None:
    target = Linear.random((30,), 2, seed=4)
    x = torch.rand(20, 30, generator=torch.Generator().manual_seed(0))
    y = target(x).argmax(1).detach()
    part = relabelled(target, x, y, "fgsm()", uf.linf(0.03), labels="shifted")
    assert torch.equal(part.y, 1 - y) and torch.equal(part.truth, y)
    uphill = (target.weight[part.y] - target.weight[y]).detach().sign()
    assert torch.allclose(part.x, (x + 0.03 * uphill).clamp(0, 1), atol=1e-6)
    sure = target(part.x).softmax(1).gather(1, part.y.view(-1, 1))[:, 0]
    assert torch.allclose(part.residual, 1 - sure, atol=1e-6)


def test_labels_are_shifted_by_one_or_drawn_from_all_classes() -> None:
    target = Linear.random((30,), 5, seed=4)
    x = torch.rand(400, 30, generator=torch.Generator().manual_seed(0))
    y = torch.arange(400) % 5
    shifted = relabelled(target, x, y, "fgsm()", uf.linf(0.03), labels="shifted")
    assert torch.equal(shifted.y, (y + 1) % 5)
    drawn = [relabelled(target, x, y, "fgsm()", uf.linf(0.03), seed=s).y for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert bool((torch.bincount(drawn[0], minlength=5) > 50).all())
    assert 50 < int((drawn[0] == y).sum()) < 120, "the true class is drawn as often as any other"


def test_matching_reaches_a_representation_from_other_images_and_from_noise() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 12), nn.Linear(12, 3))
    x = torch.rand(70, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = torch.arange(70) % 3
    starts: tuple[Any, Any] = ("other images", "noise")
    made = [robust_set(module, x, y, steps=150, lr=0.3, start=start) for start in starts]
    with torch.no_grad():
        like = module[:4](x)
        for part in made:
            begun, ended = ((module[:4](images) - like).norm(dim=1) for images in (part.before, part.x))
            assert torch.allclose(part.residual, ended / begun, atol=1e-4)
            assert part.residual.median() < 0.05 and bool(((part.x >= 0) & (part.x <= 1)).all())
    other = made[0].before
    assert not bool((other == x).flatten(1).all(1).any()), "none starts at itself"
    assert torch.equal(other.flatten(1).sum(1).sort().values, x.flatten(1).sum(1).sort().values)
    again = robust_set(module, x, y, steps=150, lr=0.3)
    assert torch.equal(again.x, made[0].x)
    named = robust_set(module, x, y, steps=20, lr=0.3, layer="0")
    assert not torch.equal(named.x, robust_set(module, x, y, steps=20, lr=0.3).x)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()), "no hook stays behind"


def test_accuracies_are_those_of_what_was_trained() -> None:
    train, test = scene(200, 3), scene(300, 4)
    part = relabelled(FAINT, *train, "fgsm()", uf.linf(0.3))
    out = useful_and_robust(
        [part, part.unchanged()], learner, *test, "fgsm()", uf.linf(0.3), epochs=2, lr=0.02, seeds=(0, 1)
    )
    from unfooled.core.fit import fit

    for seed in (0, 1):
        module = learner(seed)
        fit(module, part.x, part.y, epochs=2, lr=0.02, seed=seed)
        right = module(test[0]).argmax(1) == test[1]
        assert int(out.clean[0, seed]) == int(right.sum())
        w = module.weight.detach()
        uphill = w[1 - test[1]] - w[test[1]]
        moved = (test[0] + 0.3 * uphill.sign()).clamp(0, 1)  # the worst case of a plane
        assert int(out.robust[0, seed]) == int((module(moved).argmax(1) == test[1]).sum())
    first, second = out.rows()
    assert first["clean_published"] == 0.63 and second["clean_published"] is None
    assert first["clean"] == int(out.clean[0].sum()) / 600 and first["chance"] == 0.5
    assert "chance is 50%" in out.sentence()
    assert out.image().startswith(b"\x89PNG")


def test_a_set_tells_what_was_changed_and_draws_it() -> None:
    x = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(10) % 2
    part = relabelled(
        nn.Sequential(nn.Flatten(), Linear.random((48,), 2)), x, y, "fgsm()", uf.l2(0.5), labels="shifted"
    )
    rows = part.rows()
    assert len(rows) == 10 and rows[3]["truth"] == 1 and rows[3]["label"] == 0
    assert all(0 < row["change"] <= 0.5001 for row in rows)
    assert "100% of them with another label" in part.sentence()
    assert part.image().startswith(b"\x89PNG")


def test_the_world_is_untouched() -> None:
    x, y = scene(70, 1)
    module = seeing(slice(None)).train()
    state, before = torch.get_rng_state(), [p.clone() for p in module.parameters()]
    robust_set(module, x, y, steps=2)
    relabelled(module, x, y, "pgd(steps=2)", uf.l2(EPS))
    assert torch.equal(state, torch.get_rng_state()) and module.training
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, module.parameters(), strict=True))
    spy = Spy(seeing(slice(None)))
    robust_set(spy, x, y, steps=5)
    assert spy.forward_rows == 70 * (5 + 3)


def test_bad_input() -> None:
    x, y = scene(10, 1)
    part = robust_set(STRONG, x, y, steps=1)
    for wrong, word in (
        (lambda: robust_set(STRONG, x, y, steps=0), "steps"),
        (lambda: robust_set(STRONG, x, y, lr=0.0), "lr"),
        (lambda: robust_set(STRONG, x, y[:3]), "label"),
        (lambda: robust_set(STRONG, x, y, layer="7"), "no layer '7'"),
        (lambda: robust_set(STRONG, x, y, start="zero"), "start"),  # type: ignore[arg-type]
        (lambda: robust_set(Linear.random((63,), 2), x, y), "no linear layer"),
        (lambda: robust_set(Target(lambda v: v[:, :2]), x, y), "no layers"),
        (lambda: relabelled(STRONG, x, y, "fgsm()", uf.linf(0.1), labels="odd"), "labels"),  # type: ignore[arg-type]
        (lambda: relabelled(STRONG, x, y[:3], "fgsm()", uf.linf(0.1)), "labels of shape"),
        (lambda: relabelled(STRONG, x, y, "lbfgs()", uf.linf(0.1)), "does not apply"),
        (lambda: useful_and_robust([], learner, x, y, "fgsm()", uf.linf(0.1)), "at least one set"),
        (lambda: useful_and_robust([part], learner, x, y, "fgsm()", uf.linf(0.1), seeds=()), "seed"),
    ):
        with pytest.raises(uf.InputError, match=word):
            wrong()
