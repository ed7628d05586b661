"""Each hypothesis on worlds where it is true by construction, and on worlds where it is false."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled.attacks import ddn, deepfool, fgsm, pgd
from unfooled.core.ask import Asker
from unfooled.explain import hypotheses as room
from unfooled.explain.verdicts import LITERATURE, Hypothesis, Prediction, Rule, judge
from unfooled.testing import Linear

MORE = Rule("more", 0.8, 0.5, "")
LESS = Rule("less", 0.1, 0.3, "")


def _draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _classes(n: int, k: int = 2, seed: int = 9) -> Tensor:
    return torch.randint(k, (n,), generator=torch.Generator().manual_seed(seed))


class _Flat(nn.Module):
    """A linear net on x - 1/2 that starts at zero."""

    def __init__(self, inputs: int, outputs: int = 2) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(outputs, inputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight.T + self.bias


# ---- rules


@pytest.mark.parametrize(
    ("rule", "low", "high", "verdict"),
    [
        (MORE, 0.8, 0.9, "supported"), (MORE, 0.79, 0.9, "undecided"), (MORE, 0.3, 0.5, "contradicted"),
        (MORE, 0.3, 0.51, "undecided"), (MORE, 0.6, 0.7, "undecided"), (MORE, 0.4, 0.9, "undecided"),
        (LESS, 0.0, 0.1, "supported"), (LESS, 0.0, 0.11, "undecided"), (LESS, 0.3, 0.6, "contradicted"),
        (LESS, 0.29, 0.6, "undecided"), (MORE, math.nan, 1.0, "undecided"), (LESS, math.nan, math.nan, "undecided"),
    ],
)  # fmt: skip
def test_a_rule_judges_the_interval(rule: Rule, low: float, high: float, verdict: str) -> None:
    assert rule.judge(low, high) == verdict


def test_one_contradicted_prediction_contradicts_a_main_cause() -> None:
    yes, no, open_ = (Prediction(MORE, v, v, v, 9) for v in (0.9, 0.1, 0.6))
    assert judge([yes, yes]) == "supported"
    assert judge([yes, open_]) == "undecided"
    assert judge([yes, open_, no]) == "contradicted"


def test_rules_say_themselves_in_words_and_refuse_to_say_nothing() -> None:
    assert str(LESS) == "at most 0.1 supports, at least 0.3 contradicts"
    assert str(MORE) == "at least 0.8 supports, at most 0.5 contradicts"
    with pytest.raises(uf.InputError, match="two numbers"):
        Rule("none", 0.5, 0.5, "")


def test_every_default_rule_has_a_reason_and_every_hypothesis_a_source() -> None:
    for rules in (room.OVERFITTING, room.LINEARITY, room.DIMENSION, room.FEATURES, room.PATCHES, room.DIMPLED):
        assert all(len(rule.reason) > 20 for rule in rules.values())
    assert all("arXiv" in claim.source for claim in LITERATURE.values()) and len(LITERATURE) == 6


def test_intervals_are_those_of_the_mean() -> None:
    column = (torch.arange(400) % 4 == 0).double()  # a quarter
    found = room._measured(MORE, room._mean, column)
    assert found.value == 0.25 and found.n == 400
    reach = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert found.low == pytest.approx(0.25 - reach, abs=0.01) and found.high == pytest.approx(0.25 + reach, abs=0.01)
    assert room._measured(MORE, room._mean, column[:1]).verdict == "undecided"


# ---- overfitting


def _few_in_many(n: int, seed: int, side: int = 64) -> tuple[Tensor, Tensor]:
    """A sixth of the pixels tell the class, each less than its noise: a few examples leave most weights to chance."""
    y = _classes(n, seed=seed)
    x = 0.5 + 0.05 * _draws(n, 1, side, side, seed=seed + 1)
    x.flatten(1)[:, :667] += 0.01 * (2 * y - 1)[:, None]
    return x.clamp(0, 1), y


def test_overfitting_is_supported_where_few_examples_leave_the_weights_to_chance() -> None:
    found = uf.explain.by_overfitting(
        lambda seed: _Flat(64 * 64), _few_in_many(100, 1), _few_in_many(300, 5), pgd(steps=10), uf.l2(0.04),
        nearest=deepfool(), sizes=(4, 100), training={"epochs": 30, "lr": 1e-2, "batch_size": 100},
    )  # fmt: skip
    assert found.verdict == "supported", found.measurement
    assert found.series["data"][0]["size"] == 4 and found.series["data"][1]["test"] > found.series["data"][0]["test"]


def test_overfitting_is_contradicted_where_all_fits_agree() -> None:
    def world(n: int, seed: int) -> tuple[Tensor, Tensor]:
        y = _classes(n, seed=seed)
        return (0.5 + 0.15 * _draws(n, 1, 4, 4, seed=seed + 1) + 0.08 * (2 * y - 1).view(-1, 1, 1, 1)).clamp(0, 1), y

    seeds = []
    makes = [
        lambda seed: seeds.append(seed) or _Flat(16),
        lambda seed: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2)),
    ]
    settings = {"epochs": 10, "lr": 1e-2}
    found = uf.explain.by_overfitting(
        makes[0], world(2000, 1), world(300, 5), pgd(steps=10), uf.linf(0.1), nearest=deepfool(),
        sizes=(500, 2000), capacities=makes, training=settings,
    )  # fmt: skip
    assert found.verdict == "contradicted", found.measurement
    assert seeds[:2] == [0, 1]  # the two halves
    by = {p.rule.what: p for p in found.predictions}
    assert by["transfer to a net of the other half beyond noise"].value > 0.8
    assert by["median distance, most data over least"].value == pytest.approx(1, abs=0.1)
    assert [row["size"] for row in found.series["capacity"]] == [34, 16 * 8 + 8 + 18]


def test_less_data_is_not_less_training() -> None:
    made = room._as_many_steps({"epochs": 4, "batch_size": 128, "lr": 0.1}, 500, 8000)
    assert made == {"epochs": 63, "batch_size": 128, "lr": 0.1}  # 63 steps an epoch against 4
    assert room._as_many_steps({}, 100, 100)["epochs"] == 10


# ---- linearity


def test_linearity_is_supported_by_a_linear_target() -> None:
    target = Linear.random((1, 6, 6), classes=4, seed=1)
    x = 0.3 + 0.4 * torch.rand(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = target(x).argmax(1)
    found = uf.explain.by_linearity(target, x, y, uf.linf(0.1), one=fgsm(), many=pgd(steps=20), nearest=ddn())
    assert found.verdict == "supported", found.measurement
    line, step, distance, bend = found.predictions
    assert bend.value == pytest.approx(0, abs=1e-4) and "parameters" in bend.against
    assert line.value == pytest.approx(1, abs=1e-4)
    assert step.value == pytest.approx(1, abs=0.1) and distance.value == pytest.approx(1, abs=0.03)


def test_linearity_is_contradicted_by_ripples_and_by_a_contrast_that_is_as_weak() -> None:
    w = _draws(36, seed=3)

    def ripples(x: Tensor) -> Tensor:
        phase = 3 * (x.flatten(1) @ w)
        return torch.stack([phase.sin(), phase.cos(), -phase.sin(), -phase.cos()], 1)

    x = 0.3 + 0.4 * torch.rand(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = ripples(x).argmax(1)
    found = uf.explain.by_linearity(
        ripples, x, y, uf.linf(0.1), one=fgsm(), many=pgd(steps=20), nearest=ddn(steps=60), contrast=ripples
    )
    verdicts = [p.verdict for p in found.predictions]
    assert verdicts[0] == "contradicted" and found.predictions[0].value < 0.3
    assert found.predictions[3].value == 1 and verdicts[3] == "contradicted"


# ---- high dimension


def _smooth(n: int, seed: int, blocks: int) -> tuple[Tensor, Tensor]:
    """8 x 8 images: a class in the mean of all pixels, and noise that is the same within blocks of `blocks` pixels."""
    y = _classes(n, seed=seed)
    noise = 0.15 * _draws(n, 1, 8 // blocks, 8 // blocks, seed=seed + 1)
    noise = noise.repeat_interleave(blocks, 2).repeat_interleave(blocks, 3)
    return (0.5 + noise + 0.03 * blocks * (2 * y - 1).view(-1, 1, 1, 1)).clamp(0, 1), y


@pytest.mark.parametrize(("blocks", "verdict", "exponent"), [(1, "supported", -0.5), (4, "contradicted", 0.0)])
def test_dimension_matters_where_every_pixel_is_another_look(blocks: int, verdict: str, exponent: float) -> None:
    found = uf.explain.by_dimension(
        lambda seed, shape: _Flat(math.prod(shape)), _smooth(600, 1, blocks), _smooth(150, 5, blocks),
        nearest=deepfool(), training={"epochs": 8, "lr": 1e-2},
    )  # fmt: skip
    relative, random = found.predictions
    assert found.verdict == verdict, found.measurement
    assert relative.value < -0.35 if exponent else relative.value == pytest.approx(0, abs=0.1)
    assert random.value == pytest.approx(0.5, abs=0.2)
    assert [row["d"] for row in found.series["dimension"]] == [64, 16, 4]


# ---- features


def _faint(n: int, seed: int, height: float) -> tuple[Tensor, Tensor]:
    """Three classes by small pictures of their own, `height` high, in noise."""
    y = _classes(n, 3, seed=seed)
    return (0.5 + height * _draws(3, 1, 6, 6, seed=77)[y] + 0.02 * _draws(n, 1, 6, 6, seed=seed + 1)).clamp(0, 1), y


def test_features_are_supported_where_the_change_carries_what_tells_the_classes() -> None:
    train, test = _faint(400, 1, 0.03), _faint(200, 5, 0.03)
    settings = {"epochs": 10, "lr": 1e-2}
    target = room._trained(_Flat(36, 3), train, settings, 0)
    found = uf.explain.by_features(
        target, lambda seed: _Flat(36, 3), train, test, pgd(steps=20), uf.l2(0.6), training=settings
    )
    assert found.verdict == "supported", found.measurement
    assert all(p.control < 0.3 for p in found.predictions)


def test_features_are_contradicted_where_the_change_meets_a_quirk_that_no_image_has() -> None:
    train, test = _faint(400, 1, 0.2), _faint(200, 5, 0.2)
    for x, _ in (train, test):
        x[:, 0, 0, :3] = 0.5
    faces = _draws(3, 1, 6, 6, seed=77).flatten(1)
    faces[:, :3] = 0

    def quirky(x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ faces.T + 500 * (x[:, 0, 0, :3] - 0.5)

    found = uf.explain.by_features(
        quirky, lambda seed: _Flat(36, 3), train, test, pgd(steps=20), uf.l2(0.3),
        training={"epochs": 10, "lr": 1e-2},
    )  # fmt: skip
    assert found.verdict == "contradicted", found.measurement


# ---- patches


class _Bag(nn.Module):
    """Evidence of each 4 x 4 patch for stripes along one way or the other, summed: no place matters."""

    def forward(self, x: Tensor) -> Tensor:
        down, across = (x.unfold(2, 4, 4).unfold(3, 4, 4).diff(dim=d).abs().sum((1, 2, 3, 4, 5)) for d in (4, 5))
        return torch.stack([down, across], 1)


def _stripes(n: int) -> tuple[Tensor, Tensor]:
    y = _classes(n)
    line = (torch.arange(8) % 2).float()
    both = torch.stack([line[:, None].expand(8, 8), line[None].expand(8, 8)])
    return (0.3 + 0.4 * both[y][:, None] + 0.05 * _draws(n, 1, 8, 8)).clamp(0, 1), y


def _quarters(n: int) -> tuple[Tensor, Tensor]:
    y = _classes(n, 4)
    x = torch.full((n, 1, 2, 2), 0.2)
    x.flatten(1)[torch.arange(n), y] = 0.8
    return x.repeat_interleave(4, 2).repeat_interleave(4, 3), y


def test_patches_are_supported_by_a_bag_of_them() -> None:
    x, y = _stripes(80)
    linear = Linear.random((1, 8, 8), seed=4)
    found = uf.explain.by_patches(_Bag(), x, y, grids=(2,), bound=linear, fooling=x)
    assert found.verdict == "supported", found.measurement
    assert found.predictions[0].value == found.predictions[2].value == 1
    assert found.predictions[0].rule.what == "accuracy kept when 2 x 2 patches are shuffled"


def test_patches_are_contradicted_by_a_target_that_looks_where_things_are() -> None:
    x, y = _quarters(120)

    def where(t: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(t, 4).flatten(1) * 9

    found = uf.explain.by_patches(where, x, y, grids=(2,), bound=where)
    assert found.verdict == "contradicted"
    assert [p.verdict for p in found.predictions] == ["contradicted", "contradicted"]
    assert found.predictions[0].value == pytest.approx(0, abs=0.15)
    assert found.predictions[0].control == pytest.approx(found.predictions[0].value)
    assert found.predictions[1].value == pytest.approx(-1, abs=0.15)


def test_shuffling_moves_every_patch_whole_and_never_keeps_the_order() -> None:
    x = torch.arange(64.0).view(1, 1, 8, 8).expand(50, 2, 8, 8)
    mixed = room._shuffled(x, 2, 3, seed=0)
    assert mixed.shape == (50, 3, 2, 8, 8)
    assert not bool((mixed == x[:, None]).flatten(2).all(2).any())
    assert torch.equal(mixed.flatten(2).sort(2).values, x[:, None].expand_as(mixed).flatten(2).sort(2).values)
    corners = mixed[:, :, 0, ::4, ::4].flatten(2).sort(2).values
    assert torch.equal(corners, torch.tensor([0.0, 4, 32, 36]).expand(50, 3, 4))
    assert torch.equal(mixed[:, :, 0] + 0, mixed[:, :, 1] + 0)  # channels stay together


# ---- the dimpled manifold


@pytest.mark.parametrize(("on", "off", "verdict"), [(0.2, 2.0, "supported"), (3.0, 0.3, "contradicted")])
def test_dimples_are_where_the_gradient_leaves_the_manifold(on: float, off: float, verdict: str) -> None:
    axes = torch.linalg.qr(_draws(20, 3)).Q
    data = 0.5 + 0.1 * _draws(200, 3, seed=2) @ axes.T
    away = torch.linalg.qr(torch.cat([axes, torch.eye(20)], 1)).Q[:, 7]
    w = on * axes[:, 0] + off * away
    target = Linear(torch.stack([w, -w]), -torch.stack([w, -w]).sum(1) / 2)
    y = target(data).argmax(1)
    found = uf.explain.by_dimples(
        target, data[:60], y[:60], uf.explain.pca(data, 3), nearest=ddn(steps=60), natural=(data, y)
    )
    assert found.verdict == verdict, found.measurement
    assert found.predictions[0].value == pytest.approx(on**2 / (on**2 + off**2) * 20 / 3, rel=0.02)


# ---- what all have


def _example() -> Hypothesis:
    x, y = _quarters(40)
    return uf.explain.by_patches(lambda t: nn.functional.avg_pool2d(t, 4).flatten(1) * 9, x, y, grids=(2, 4), name="a")


def test_a_hypothesis_carries_its_claim_rule_control_and_verdict() -> None:
    found = _example()
    assert found.claim == LITERATURE["patches"].claim and "1904.00760" in found.source
    rows = found.rows()
    assert len(rows) == 3 and all(row["verdict"] in ("supported", "contradicted", "undecided") for row in rows)
    assert "at least 0.7 supports" in found.prediction and "contradicted" in found.sentence()
    assert found.image()[:4] == b"\x89PNG"
    again = _example()
    assert again.measurement == found.measurement and again.image() == found.image()


def test_other_rules_give_other_verdicts() -> None:
    x, y = _quarters(40)
    eased = {key: Rule(rule.what, -2.0, -3.0, "anything will do") for key, rule in room.PATCHES.items()}
    target: Callable[[Tensor], Tensor] = lambda t: nn.functional.avg_pool2d(t, 4).flatten(1) * 9  # noqa: E731
    assert uf.explain.by_patches(target, x, y, grids=(2,), rules=eased).verdict == "supported"


def test_verdicts_side_by_side() -> None:
    table = uf.explain.verdicts([_example()])
    assert [row["verdict"] for row in table.rows()] == ["contradicted"]
    assert table.sentence() == "As the main cause, contradicted: patches (a)."
    assert table.image()[:4] == b"\x89PNG"
    with pytest.raises(uf.InputError, match="at least one"):
        uf.explain.verdicts([])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x, y: uf.explain.by_patches(_Bag(), x, y, grids=(3,)), "divide the sides"),
        (lambda x, y: uf.explain.by_patches(_Bag(), x[:3], y[:3]), "at least 8 images"),
        (lambda x, y: uf.explain.by_patches(_Bag(), x, 1 - y), "no oftener than chance"),
        (lambda x, y: uf.explain.by_dimension(lambda s, shape: _Flat(9), (x, y), (x, y), nearest=ddn(),
                                              factors=(1, 3)), "divisors"),
        (lambda x, y: uf.explain.by_overfitting(lambda s: _Flat(64), (x, y), (x, y), fgsm(), uf.linf(0.1),
                                             nearest=ddn(), sizes=(4, 999)), "sizes must grow"),
        (lambda x, y: uf.explain.by_linearity(_Bag(), x, 1 - y, uf.linf(0.1), one=fgsm(), many=fgsm(),
                                           nearest=ddn()), "fewer than two"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_its_mend(call: Callable[[Tensor, Tensor], object], says: str) -> None:
    with pytest.raises(uf.InputError, match=says):
        call(*_stripes(40))


def test_the_natural_distance_is_to_the_nearest_image_of_another_class() -> None:
    at = torch.tensor([[0.0], [0.1], [0.5], [1.0]])
    found = room._to_another_class((at[:2], torch.tensor([0, 1])), (at, torch.tensor([0, 0, 1, 1])))
    assert torch.allclose(found, torch.tensor([0.5, 0.0], dtype=torch.float64), atol=1e-6)


def test_random_distances_are_the_closed_form_between_two_walls() -> None:
    def between(x: Tensor) -> Tensor:
        gap = 1 - (x[:, 0] - 1).abs()
        return torch.stack([gap, -gap], 1)

    x = torch.ones(3, 2)
    found = room._random_distance(Asker(between), x, torch.zeros(3, dtype=torch.int64), 0, directions=800)
    closed = torch.full((3,), 1 / math.cos(math.pi / 4), dtype=torch.float64)  # the median angle to the wall's normal
    assert torch.allclose(found, closed, rtol=0.1)
