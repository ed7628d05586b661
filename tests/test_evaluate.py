"""Evaluation: targets whose truth is known, what must not change the number, what is found before anything begins."""

import itertools
import json
import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from tests.nets import Recurrent, RowNet
from unfooled import Evaluation, Status, attacks
from unfooled.evaluate.preflight import Order
from unfooled.testing import Linear, Spy, linear_distance, size_of

CHEAP = [
    "pgd(steps=10, schedule='cosine')",
    "pgd_targeted(steps=6, targets=3, schedule='cosine')",
    "square(queries=60)",
]


def small(d: int = 24, k: int = 4, seed: int = 0) -> RowNet:
    return RowNet(d, k, 16, seed)


def case(n: int = 40, shape: tuple[int, ...] = (1, 4, 6)) -> tuple[RowNet, Tensor, Tensor]:
    net = small(math.prod(shape))
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(1)
    y[: n // 10] = (y[: n // 10] + 1) % 4  # one in ten is wrong before any attack
    return net, x, y


def linear_case(classes: int = 3, n: int = 60) -> tuple[Linear, Tensor, Tensor]:
    target = Linear.random((1, 3, 8), classes, seed=classes)
    x = torch.rand(n, 1, 3, 8, generator=torch.Generator().manual_seed(2))
    return target, x, target(x).argmax(1)


# ---- the number and what it is made of


@pytest.mark.parametrize("suite", ["quick", "standard"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.25), ("l1", 0.5)])
def test_suites_find_the_truth_of_linear_targets(suite: str, norm: str, eps: float) -> None:
    """Every image more than 5% nearer to the boundary than eps is broken; none that is further away."""
    target, x, y = linear_case(n=60 if suite == "quick" else 30)
    exact = linear_distance(target, x, y, norm)
    result = uf.evaluate(target, x, y, uf.Ball(uf.norms.NORMS[norm], eps), suite=suite)
    broken = ~result.robust.numpy()
    assert broken[exact < eps / 1.05].all(), f"{(~broken[exact < eps / 1.05]).sum()} missed"
    assert not broken[exact > eps].any()
    assert 0.2 < broken.mean() < 0.8 and result.clean_accuracy == 1.0


@pytest.mark.parametrize("suite", ["quick", "standard", "autoattack"])
def test_the_numbers_follow_from_the_rows_and_the_rows_are_true(suite: str) -> None:
    n = 24 if suite != "autoattack" else 6
    net, x, y = case(n)
    spy = Spy(net)
    result = uf.evaluate(spy, x, y, uf.linf(0.06), suite=suite)
    assert result.n == n and result.clean_accuracy == 1 - (n // 10) / n
    assert result.robust_accuracy == result.count(Status.SURVIVED) / n == int(result.robust.sum()) / n
    low, high = result.robust_interval
    assert 0 <= low <= result.robust_accuracy <= high <= 1
    assert result.status == "trusted" and not result.reasons and {f.id for f in result.findings} <= {"A3"}
    (more, back), spare = result.settings["checks"], result.settings["padding"]
    assert result.forward_total + np.sum(spare[0]) + more == spy.forward_rows
    assert result.backward_total + np.sum(spare[1]) + back == spy.backward_rows
    ran = [row for row in result.attacks if not row.skipped]
    assert ran[-1].robust_accuracy_after == pytest.approx(result.robust_accuracy)
    left = result.count(Status.SURVIVED, Status.BROKEN)
    for row in ran:
        only_some = row.name in map(repr, attacks.SUITES[suite].more)
        assert row.attempted == left or (only_some and row.attempted < left)
        assert row.paper
        left -= row.broken
        assert result.broken_by.count(row.name) >= row.broken
    with torch.no_grad():
        answers = net(result.x_adv).argmax(1)
    broken = torch.tensor([o is Status.BROKEN for o in result.outcome])
    assert (answers[broken] != y[broken]).all() and torch.equal(answers[broken], result.label_adv[broken])
    assert torch.equal(result.x_adv[~broken], x[~broken]) and torch.equal(net(x).argmax(1), result.label_clean)
    change = size_of("linf", (result.x_adv.double() - x.double()).flatten(1).numpy())
    assert change.max() <= 0.06 and np.allclose(change[broken.numpy()], result.distance[broken].numpy())
    assert (result.margin[broken] < 0).all() and (result.margin[result.robust] > 0).all()
    json.dumps([result.summary(), result.settings])
    keys = {"n", "clean_accuracy", "robust_accuracy", "robust_interval", "status", "reasons", "threat", "suite", "seed",
            "attacks", "forward_total", "backward_total", "seconds"}  # fmt: skip
    assert keys <= set(result.summary())
    assert {"name", "robust_accuracy_after", "broken", "forward", "backward", "seconds"} <= set(
        result.summary()["attacks"][0]
    )


def test_autoattack_is_the_literatures_set_to_the_step() -> None:
    assert [repr(a) for a in attacks.SUITES["autoattack"].attacks] == [
        "apgd(steps=100)",
        "apgd_targeted(steps=100, targets=9)",
        "fab_targeted(steps=100, targets=9)",
        "square(queries=5000)",
    ]
    assert not attacks.SUITES["autoattack"].more


def test_a_suite_as_a_list_an_attack_or_texts() -> None:
    net, x, y = case()
    listed = uf.evaluate(net, x, y, uf.linf(0.05), suite=[attacks.fgsm(), "pgd(steps=4)"])
    assert [row.name for row in listed.attacks] == ["fgsm()", "pgd(steps=4)"] and listed.suite == "custom"
    assert uf.evaluate(net, x, y, "linf(0.05)", suite=[attacks.fgsm()]).threat == "linf(0.05)"
    for suite, message in (([], "empty"), ("quik", "quick"), (["pdg()"], "pgd")):
        with pytest.raises(uf.InputError, match=message):
            uf.evaluate(net, x, y, uf.linf(0.05), suite=suite)


def same(a: Evaluation, b: Evaluation, order: Tensor | None = None) -> None:
    """Assert that b's rows are a's rows in this order, bit for bit."""
    order = torch.arange(len(a.y)) if order is None else order
    for name in (
        "x",
        "x_adv",
        "robust",
        "clean",
        "label_adv",
        "label_clean",
        "steps_to_break",
        "forward",
        "backward",
        "ids",
    ):
        assert torch.equal(getattr(a, name)[order], getattr(b, name)), name
    assert [a.outcome[i] for i in order] == b.outcome and [a.broken_by[i] for i in order] == b.broken_by


# ---- laws: what must not change the number


def test_the_same_seed_gives_the_same_evaluation() -> None:
    net, x, y = case()
    same(*(uf.evaluate(net, x, y, uf.linf(0.05), suite=CHEAP, seed=3) for _ in range(2)))


def test_the_order_of_the_examples_does_not_matter() -> None:
    net, x, y = case()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    whole = uf.evaluate(net, x, y, uf.linf(0.05), suite=CHEAP)
    same(whole, uf.evaluate(net, x[order], y[order], uf.linf(0.05), suite=CHEAP), order)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    net, x, y = case()
    whole = uf.evaluate(net, x, y, uf.linf(0.05), suite=CHEAP)
    same(whole, uf.evaluate(net, x, y, uf.linf(0.05), suite=CHEAP, batch_size=batch_size))


def test_a_subset_is_the_subset() -> None:
    net, x, y = case()
    whole = uf.evaluate(net, x, y, uf.linf(0.05), suite=CHEAP)
    same(whole, uf.evaluate(net, x, y, uf.linf(0.05), suite=CHEAP, limit=9), torch.arange(9))
    twice = torch.tensor([3, 3, 20, 3])
    same(whole, uf.evaluate(net, x[twice], y[twice], uf.linf(0.05), suite=CHEAP), twice)


def truth(result: Evaluation, exact: np.ndarray, eps: float) -> None:
    robust = result.robust.numpy()
    assert not robust[exact < eps / 1.05].any() and robust[exact > eps].all()


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled by 1e-3": lambda z: z * 1e-3,
    "scaled by 1e3": lambda z: z * 1e3,
    "offset by 100": lambda z: z + 100,
    "offset per image": lambda z: z + 50 * z[:, :1].detach(),
    "log-probabilities": lambda z: z.log_softmax(1),
    "a class that never wins": lambda z: torch.cat([z, z.detach().amin(1, keepdim=True) - 100], 1),
    "a class that is ruled out": lambda z: torch.cat([z, torch.full((len(z), 1), -torch.inf)], 1),
    "a class that is masked": lambda z: torch.cat([z, torch.full((len(z), 1), -1e9)], 1),
    "half precision": lambda z: z.half(),
    "double precision": lambda z: z.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_done_to_the_scores_does_not_matter(change: str) -> None:
    target, x, y = linear_case(n=40)
    exact = linear_distance(target, x, y, "linf")
    changed = CHANGES[change]
    slack = 0.01 if change == "half precision" else 0.0  # there margins below 1/500 are ties
    result = uf.evaluate(lambda v: changed(target(v)), x, y, uf.linf(0.05), suite="quick")
    truth(result, exact * (1 + slack), 0.05)


def test_the_order_of_the_classes_does_not_matter() -> None:
    target, x, y = linear_case(n=40)
    exact = linear_distance(target, x, y, "linf")
    order = torch.tensor([2, 0, 1])
    truth(uf.evaluate(lambda v: target(v)[:, order], x, order.argsort()[y], uf.linf(0.05), suite="quick"), exact, 0.05)


def test_the_units_of_the_input_do_not_matter() -> None:
    target, x, y = linear_case(n=40)
    exact = linear_distance(target, x, y, "linf")
    truth(
        uf.evaluate(
            uf.Target(lambda v: target(v / 255), bounds=(0, 255)), x * 255, y, uf.linf(0.05 * 255), suite="quick"
        ),
        exact,
        0.05,
    )
    signed = uf.Target(lambda v: target((v + 1) / 2), bounds=(-1, 1))
    truth(uf.evaluate(signed, x * 2 - 1, y, uf.linf(0.1), suite="quick"), exact, 0.05)
    inner = uf.evaluate(
        lambda v: target((v - 0.3) / 0.7), x, target((x - 0.3) / 0.7).argmax(1), uf.linf(0.05), suite=CHEAP
    )
    outer = uf.evaluate(uf.Target(target, mean=[0.3], std=[0.7]), x, inner.y, uf.linf(0.05), suite=CHEAP)
    assert inner.outcome == outer.outcome


def test_flipped_images_under_flipped_weights() -> None:
    target, x, y = linear_case(n=40)
    truth(uf.evaluate(lambda v: target(v.flip(-1)), x.flip(-1), y, uf.linf(0.05), suite="quick"),
          linear_distance(target, x, y, "linf"), 0.05)  # fmt: skip


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_larger_eps_breaks_no_fewer(norm: str) -> None:
    net, x, y = case()
    sizes = {"linf": [0.0, 0.005, 0.02, 0.08, 0.5], "l2": [0.0, 0.02, 0.1, 0.5, 5.0], "l1": [0.0, 0.1, 0.5, 2.0, 24.0]}
    found = [uf.evaluate(net, x, y, uf.Ball(uf.norms.NORMS[norm], e), suite="quick") for e in sizes[norm]]
    robust = [r.robust_accuracy for r in found]
    assert robust == sorted(robust, reverse=True) and robust[0] == found[0].clean_accuracy and robust[-1] < 0.1
    assert len({r.clean_accuracy for r in found}) == 1


def test_more_attacks_break_no_fewer() -> None:
    net, x, y = case()
    robust = [uf.evaluate(net, x, y, uf.linf(0.04), suite=CHEAP[: i + 1]).robust for i in range(len(CHEAP))]
    assert all(bool((later <= earlier).all()) for earlier, later in itertools.pairwise(robust))


def test_an_l2_ball_around_an_linf_ball_breaks_no_fewer() -> None:
    target, x, y = linear_case()
    small = uf.evaluate(target, x, y, uf.linf(0.03), suite="quick")
    large = uf.evaluate(target, x, y, uf.l2(0.03 * 24**0.5 * 1.05), suite="quick")
    assert bool((large.robust <= small.robust).all())


# ---- targets of every kind


@pytest.mark.parametrize("kind", ["recurrent", "waveform", "vector", "two classes", "colour"])
def test_targets_of_every_kind(kind: str) -> None:
    torch.manual_seed(0)
    module, shape = {
        "recurrent": (Recurrent(), (6, 3)),
        "waveform": (nn.Sequential(nn.Conv1d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(60, 4)), (1, 19)),
        "vector": (small(11), (11,)),
        "two classes": (small(11, 2), (11,)),
        "colour": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(60, 4)), (3, 5, 7)),
    }[kind]
    module.train()
    x = torch.rand(16, *shape)
    with torch.no_grad():
        y = module(x).argmax(1)
    result = uf.evaluate(module, x, y, uf.linf(0.15), suite=CHEAP)
    assert result.clean_accuracy == 1.0 and result.x_adv.shape == x.shape and module.training
    with torch.no_grad():
        assert torch.equal(module(result.x_adv).argmax(1) == y, result.robust)
    assert (Status.BROKEN in result.outcome) or kind == "recurrent"


def test_without_gradients_the_gradient_attacks_are_skipped_with_a_reason() -> None:
    net, x, y = case()
    result = uf.evaluate(net, x, y, uf.linf(0.25), suite="standard", access=uf.Access.SCORES)
    for row in result.attacks:
        if row.name.startswith("square"):
            assert not row.skipped or "gradients" in row.skipped
        else:
            assert row.skipped == "needs gradient access, scores was granted" and row.attempted == row.forward == 0
    assert result.backward_total == 0 and Status.BROKEN in result.outcome
    assert result.settings["access"] == "scores"
    with pytest.raises(uf.InputError, match="No attack of custom applies"):
        uf.evaluate(net, x, y, uf.linf(0.1), suite=["pgd(steps=5)", "apgd()"], access=uf.Access.SCORES)


def test_a_named_suite_of_gradients_alone_asks_for_scores_and_labels_where_nothing_else_is_granted() -> None:
    net, x, y = case()
    asked = uf.evaluate(net, x, y, uf.linf(0.25), suite="quick", access=uf.Access.SCORES)
    own = uf.evaluate(uf.Target(net, access=uf.Access.SCORES), x, y, uf.linf(0.25), suite="quick")
    for result in (asked, own):
        ran = [row for row in result.attacks if not row.skipped]
        assert [row.name for row in ran] == ["square(queries=1000)", "ray(queries=1000)"]
        assert all("needs gradient access" in row.skipped for row in result.attacks if row not in ran)
        assert result.backward_total == 0 and Status.BROKEN in result.outcome
    assert torch.equal(asked.robust, own.robust) and torch.equal(asked.x_adv, own.x_adv)


def test_targeted_goals_leave_out_what_is_wrong_already() -> None:
    net, x, y = case()
    result = uf.evaluate(net, x, y, uf.linf(0.1), suite=CHEAP, goal=uf.Targeted(to="least_likely"))
    assert result.clean_accuracy == 36 / 40 and result.count(Status.MISCLASSIFIED) == 4
    assert result.robust_accuracy >= uf.evaluate(net, x, y, uf.linf(0.1), suite=CHEAP).robust_accuracy


def test_nan_answers_are_counted_nowhere() -> None:
    net, x, y = case(20)

    def holes(v: Tensor) -> Tensor:
        return torch.where((v.flatten(1)[:, :1] == x[5, 0, 0, 0]), torch.nan, net(v))

    result = uf.evaluate(holes, x, y, uf.linf(0.05), suite=CHEAP, curve=True)
    assert result.outcome[5] is Status.INVALID and result.n == 19 and not result.robust[5]
    assert result.attacks[-1].robust_accuracy_after == pytest.approx(result.robust_accuracy)
    assert result.curve is not None and all(p.n == 19 and p.robust_accuracy <= 1 for p in result.curve)


# ---- the size of eps


def test_eight_is_not_eight_grey_levels() -> None:
    net, x, y = case(8)
    with pytest.raises(uf.InputError, match="8/255"):
        uf.evaluate(net, x, y, uf.linf(8))
    with pytest.raises(uf.InputError, match="more than half"):
        uf.evaluate(net, x, y, uf.linf(0.51))
    with pytest.raises(uf.InputError, match="eps"):
        uf.evaluate(net, x, y, uf.linf())
    with pytest.raises(uf.InputError, match="needs a threat"):
        uf.evaluate(net, x, y)
    assert uf.evaluate(net, x, y, uf.l2(8), suite=["fgsm()"]).n == 8  # in L2 that is a radius like any other
    tiny = uf.evaluate(net, x, y, uf.linf(1 / 600), suite=["fgsm()"])
    assert any("half a grey level" in note for note in tiny.notes)
    wide = uf.Target(lambda v: net(v / 255), bounds=(0, 255))
    assert uf.evaluate(wide, x * 255, y, uf.linf(8), suite=["fgsm()"]).n == 8


def test_l0_has_no_attack_yet_and_says_so() -> None:
    net, x, y = case(8)
    with pytest.raises(uf.InputError, match=r"No attack of standard applies to l0\(3\).*L0"):
        uf.evaluate(net, x, y, uf.l0(3))


# ---- labels and outputs


def shifted(by: int, k: int = 10, n: int = 60) -> tuple[Linear, Tensor, Tensor]:
    """A target with k + 1 outputs whose class for label i is i + by."""
    target = Linear.random((1, 3, 8), k, seed=1)
    w, b = target.weight.detach(), target.bias.detach()
    blank, never = torch.zeros(1, 24), torch.tensor([-99.0])
    w, b = (torch.cat([blank, w]), torch.cat([never, b])) if by == 1 else (torch.cat([w, blank]), torch.cat([b, never]))
    x = torch.rand(n, 1, 3, 8, generator=torch.Generator().manual_seed(2))
    return Linear(w, b), x, target(x).argmax(1)


def test_an_offset_of_the_classes_is_found_said_and_mended() -> None:
    target, x, y = shifted(1)
    plain = uf.evaluate(
        Linear(target.weight.detach()[1:], target.bias.detach()[1:]), x, y, uf.linf(0.02), suite="quick"
    )
    result = uf.evaluate(target, x, y, uf.linf(0.02), suite="quick", curve=True)
    assert result.clean_accuracy == 1.0 and torch.equal(result.y, y + 1)
    assert any("+1 added to every label" in note and "11 outputs" in note for note in result.notes)
    truth(result, linear_distance(target, x, y + 1, "linf"), 0.02)
    assert abs(result.robust_accuracy - plain.robust_accuracy) <= 0.05
    assert result.curve is not None and result.curve[0].robust_accuracy >= result.robust_accuracy
    back = uf.evaluate(shifted(0)[0], x, y + 1, uf.linf(0.02), suite=["fgsm()"])
    assert back.clean_accuracy == 1.0 and any("-1 added" in note for note in back.notes)


def test_1001_outputs_for_labels_0_to_999() -> None:
    target = Linear.random((1, 4, 16), 1001, seed=0)
    x = torch.rand(40, 1, 4, 16)
    y = target(x).argmax(1) - 1
    keep = y >= 0
    result = uf.evaluate(target, x[keep], y[keep], uf.linf(0.01), suite=["fgsm()"])
    assert result.clean_accuracy == 1.0 and any("+1 added" in note for note in result.notes)


def test_another_order_of_the_classes_stops_with_the_order() -> None:
    target = Linear.random((1, 3, 8), 5, seed=1)
    x = torch.rand(200, 1, 3, 8)
    order = torch.tensor([3, 0, 4, 1, 2])
    with pytest.raises(uf.InputError, match=r"another order.*label 0 is output 1"):
        uf.evaluate(target, x, order[target(x).argmax(1)], uf.linf(0.02))


def test_chance_accuracy_that_nothing_explains_is_said() -> None:
    target = Linear.random((1, 3, 8), 5, seed=1)
    x = torch.rand(100, 1, 3, 8)
    y = torch.randint(0, 5, (100,))
    result = uf.evaluate(target, x, y, uf.linf(0.02), suite=["fgsm()"])
    assert result.status == "suspect" and any("chance" in reason for reason in result.reasons)
    assert torch.equal(result.y, y)


def test_honest_targets_are_left_alone_by_the_order_check() -> None:
    g = torch.Generator().manual_seed(0)
    for right in (0.55, 0.8, 1.0):
        for k in (2, 3, 10):
            y = torch.randint(0, k, (300,), generator=g)
            answer = torch.where(torch.rand(300, generator=g) < right, y, torch.randint(0, k, (300,), generator=g))
            order = Order()
            assert torch.equal(order(torch.eye(k)[answer], y), y) and not order.notes and not order.reasons


def test_labels_outside_the_outputs_are_refused() -> None:
    net, x, y = case(20)
    y[7] = 4
    with pytest.raises(uf.InputError, match=r"Label 4 is outside 0\.\.3"):
        uf.evaluate(net, x, y, uf.linf(0.05))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(0, 1, 4, 6), torch.zeros(0, dtype=torch.int64), "at least one input"),
        (torch.rand(3, 1, 4, 6) * 3, torch.zeros(3, dtype=torch.int64), r"0, 1"),
        (torch.full((3, 1, 4, 6), torch.nan), torch.zeros(3, dtype=torch.int64), "finite|NaN"),
        (torch.rand(3, 1, 4, 6), torch.zeros(4, dtype=torch.int64), "Labels have shape"),
        (torch.rand(3, 1, 4, 6), None, "labels"),
    ],
)
def test_bad_data_is_a_sentence(x: Tensor, y: Tensor | None, message: str) -> None:
    with pytest.raises(uf.InputError, match=message):
        uf.evaluate(case()[0], x, y, uf.linf(0.05))


# ---- the curve, the budget, Ctrl-C


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.04), ("l2", 0.2)])
def test_the_curve_falls_and_knows_the_truth(norm: str, eps: float) -> None:
    target, x, y = linear_case(n=150)
    wrong = y.clone()
    wrong[:5] = (y[:5] + 1) % 3
    result = uf.evaluate(target, x, wrong, uf.Ball(uf.norms.NORMS[norm], eps), suite=["fgsm()"], curve=True)
    assert result.curve is not None and result.curve_suite == "quick"
    assert [p.eps for p in result.curve] == pytest.approx([eps * s for s in (0.25, 0.5, 1, 1.5, 2)])
    heights = [p.robust_accuracy for p in result.curve]
    assert heights == sorted(heights, reverse=True) and heights[-1] < heights[0]
    exact = linear_distance(target, x, y, norm)[:128]
    exact[:5] = 0
    for point in result.curve:
        assert point.n == 128 and 0 <= point.low <= point.robust_accuracy <= point.high <= 1
        assert (exact > point.eps).mean() <= point.robust_accuracy <= (exact > point.eps / 1.05).mean()


def test_the_curve_of_an_linf_threat_ends_at_the_whole_range() -> None:
    net, x, y = case(10)
    result = uf.evaluate(net, x, y, uf.linf(0.5), suite=["fgsm()"], curve=True)
    assert result.curve is not None and [p.eps for p in result.curve] == [0.125, 0.25, 0.5, 0.75, 1.0]
    assert uf.evaluate(net, x, y, uf.linf(0.0), suite=["fgsm()"], curve=True).robust_accuracy == 0.9


class Slow(nn.Module):
    """Takes `seconds` per row."""

    def __init__(self, net: nn.Module, seconds: float) -> None:
        super().__init__()
        self.net, self.seconds = net, seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds * len(x))
        return self.net(x)


def test_a_budget_that_is_too_small_ends_in_time_with_a_bracket() -> None:
    net, x, y = case(80)
    begun = time.monotonic()
    result = uf.evaluate(Slow(net, 0.0005), x, y, uf.linf(1e-4), suite=["pgd(steps=60)"], budget=1.5, batch_size=8)
    assert time.monotonic() - begun < 2.0
    assert result.done < result.n == 80 and result.count(Status.NOT_RUN) > 0
    assert result.bracket is not None
    low, high = result.bracket
    assert low == result.count(Status.SURVIVED) / 80 < high == result.robust_accuracy
    assert result.clean_accuracy == 72 / 80, "every image gets its clean look"
    assert any("Within 1.5 s" in note and "fit" in note for note in result.notes)
    assert "not finished" in result.at_most
    full = uf.evaluate(net, x, y, uf.linf(1e-4), suite=["pgd(steps=60)"])
    assert low <= full.robust_accuracy <= high


def test_a_budget_that_suffices_changes_nothing_but_the_pilot() -> None:
    net, x, y = case(60)
    spy = Spy(net)
    free = uf.evaluate(net, x, y, uf.linf(0.05), suite=CHEAP)
    result = uf.evaluate(spy, x, y, uf.linf(0.05), suite=CHEAP, budget=60.0)
    assert result.bracket is None and result.done == 60
    assert result.outcome == free.outcome and torch.equal(result.x_adv, free.x_adv)
    assert [r.broken for r in result.attacks] == [r.broken for r in free.attacks]
    assert [r.robust_accuracy_after for r in result.attacks] == pytest.approx(
        [r.robust_accuracy_after for r in free.attacks]
    )
    spare = sum(np.atleast_1d(result.settings["padding"])[:1]) + result.settings["checks"][0]
    assert result.forward_total + spare == spy.forward_rows
    few = uf.evaluate(net, x[:5], y[:5], uf.linf(0.05), suite=CHEAP, budget=60.0)
    assert few.outcome == free.outcome[:5]


class Interrupted(nn.Module):
    def __init__(self, net: nn.Module, call: int) -> None:
        super().__init__()
        self.net, self.call, self.calls = net, call, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.call:
            raise KeyboardInterrupt
        return self.net(x)


def calls_of_the_doctor(net: nn.Module, x: Tensor, y: Tensor) -> int:
    watched = Interrupted(net, 0)
    uf.doctor(watched, x, y, uf.linf(0.05))
    return watched.calls


@pytest.mark.parametrize("budget", [None, 60.0])
@pytest.mark.parametrize("call", [10, 20, 45, 60])
def test_ctrl_c_leaves_what_was_found_readable(call: int, budget: float | None) -> None:
    net, x, y = case(60)
    call += calls_of_the_doctor(net, x, y)
    target = Interrupted(net, call)
    result = uf.evaluate(target, x, y, uf.linf(0.05), suite=CHEAP, budget=budget, batch_size=16, curve=True)
    assert any("Interrupted" in note for note in result.notes) and result.settings["interrupted"]
    assert result.n == 60 and result.count(Status.NOT_RUN) > 0 and result.bracket is not None
    assert result.curve is None
    json.dumps(result.summary())
    assert sum(row.broken for row in result.attacks) == result.count(Status.BROKEN)
    assert target.calls <= call + 6, "after Ctrl-C only clean looks at what is left"
    with torch.no_grad():
        broken = torch.tensor([o is Status.BROKEN for o in result.outcome])
        assert (net(result.x_adv).argmax(1)[broken] != result.y[broken]).all()


@pytest.mark.parametrize("budget", [None, 60.0])
def test_ctrl_c_before_the_first_answer_has_nothing_to_keep(budget: float | None) -> None:
    net, x, y = case(60)
    with pytest.raises(KeyboardInterrupt):
        uf.evaluate(
            Interrupted(net, 2 + calls_of_the_doctor(net, x, y)),
            x,
            y,
            uf.linf(0.05),
            suite=CHEAP,
            budget=budget,
            batch_size=16,
        )


def test_ctrl_c_in_the_look_of_a_later_block_keeps_the_blocks_before() -> None:
    net, x, y = case(60)

    class Third(nn.Module):
        """Interrupts when it sees the 40th image as it is, among eight at a time, for the second time."""

        seen = 0

        def forward(self, v: Tensor) -> Tensor:
            self.seen += int(len(v) <= 8 and bool((v == x[40]).flatten(1).all(1).any()))
            if self.seen == 2:
                self.seen += 1
                raise KeyboardInterrupt
            time.sleep(0.0002 * len(v))
            return net(v)

    result = uf.evaluate(Third(), x, y, uf.linf(0.05), suite=["pgd(steps=40)"], budget=0.7, batch_size=8)
    assert result.settings["interrupted"] and result.count(Status.BROKEN) > 0 and result.count(Status.NOT_RUN) > 0
    assert result.clean_accuracy == 54 / 60


def test_ctrl_c_during_the_curve_keeps_the_result() -> None:
    net, x, y = case(30)
    calls = Interrupted(net, 0)
    whole = uf.evaluate(calls, x, y, uf.linf(0.05), suite=CHEAP)
    for later in (3, 70):
        cut = uf.evaluate(Interrupted(net, calls.calls + later), x, y, uf.linf(0.05), suite=CHEAP, curve=True)
        assert cut.outcome == whole.outcome and any("Interrupted" in note for note in cut.notes)
        assert cut.curve is None if later == 3 else cut.curve is not None and 1 <= len(cut.curve) < 5


def test_query_budgets_reach_the_engine() -> None:
    net, x, y = case(20)
    spy = Spy(net)
    result = uf.evaluate(spy, x, y, uf.linf(0.001), suite="standard", queries=12)
    assert (result.forward <= 12).all() and spy.forward_rows <= 12 * 20 + result.settings["checks"][0]
    assert result.settings["queries"] == 12


def test_attacks_without_gradients_that_go_first_say_nothing_about_gradients() -> None:
    """Only what gradients left standing and others broke is a sign of masked gradients."""
    net = nn.Linear(12, 3)
    x = torch.rand(60, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = net(x).argmax(1)
    result = uf.evaluate(net, x, y, uf.linf(0.1), suite="square(queries=200); pgd()", curve=False)
    assert result.attacks[0].broken > 5 and not [f for f in result.findings if f.id == "E7"]
