"""The record of an evaluation: every number follows from the rows, and rows that contradict each other are refused."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from unfooled.core.result import AttackRow, CurvePoint, Evaluation, Status
from unfooled.errors import InputError

CLEAN = {Status.MISCLASSIFIED: False, Status.INVALID: False}
ROBUST = {Status.SURVIVED, Status.SKIPPED, Status.NOT_RUN}


def evaluation(outcome: list[Status], **given: object) -> Evaluation:
    n = len(outcome)
    x = torch.linspace(0, 1, max(n, 1))[:n].view(n, 1, 1, 1).expand(n, 1, 2, 2).clone()
    clean = torch.tensor([CLEAN.get(o, True) for o in outcome], dtype=torch.bool)
    robust = torch.tensor([o in ROBUST for o in outcome], dtype=torch.bool)
    settings = {"threat": "linf(0.1)", **given}
    return Evaluation(x=x, y=torch.zeros(n).long(), x_adv=x, clean=clean, robust=robust, outcome=outcome, **settings)


def some(wrong: int, broken: int, survived: int, unfinished: int = 0) -> list[Status]:
    return (
        [Status.MISCLASSIFIED] * wrong
        + [Status.BROKEN] * broken
        + [Status.SURVIVED] * survived
        + [Status.NOT_RUN] * unfinished
    )


def test_the_numbers_follow_from_the_rows() -> None:
    e = evaluation(some(35, 249, 216))
    assert (e.n, e.done, e.clean_accuracy, e.robust_accuracy) == (500, 500, 465 / 500, 216 / 500)
    expected = binomtest(216, 500).proportion_ci(0.95, method="wilson")
    assert e.robust_interval == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert e.bracket is None
    assert str(e) == (
        "robust accuracy at most 43.2% (95% interval 38.9-47.6% over the choice of 500 images) · suspect: not examined"
    )


def test_unfinished_examples_make_a_bracket_and_count_as_robust_in_the_upper_bound() -> None:
    e = evaluation(some(10, 20, 30, 40))
    assert e.bracket == (0.30, 0.70)
    assert e.robust_accuracy == 0.70
    assert e.done == 60
    assert "40 not finished: 30.0-70.0%" in str(e)
    assert "between 30.0% and 70.0%" in e.at_most


def test_invalid_inputs_count_nowhere() -> None:
    e = evaluation([*some(0, 1, 1), Status.INVALID, Status.INVALID])
    assert (e.n, e.clean_accuracy, e.robust_accuracy) == (2, 1.0, 0.5)
    assert e.counted.tolist() == [True, True, False, False]


@given(st.lists(st.sampled_from(list(Status)), max_size=40))
def test_laws_of_the_numbers(outcome: list[Status]) -> None:
    e = evaluation(outcome)
    assert sum(e.count(s) for s in Status) == len(outcome) == e.n + e.count(Status.INVALID)
    if not e.n:
        assert math.isnan(e.robust_accuracy)
        return
    low, high = e.robust_interval
    assert -1e-12 <= low <= e.robust_accuracy + 1e-12 <= high + 2e-12 <= 1 + 3e-12
    assert e.robust_accuracy <= e.clean_accuracy
    assert e.robust_accuracy == pytest.approx(float(e.robust[e.counted].double().mean()))
    if e.bracket:
        assert e.bracket[0] < e.bracket[1] == e.robust_accuracy


def test_summary_has_the_promised_keys_and_is_json_without_nan() -> None:
    row = AttackRow("pgd(steps=40)", "Madry et al. 2018", 3, 1, 0.5, 120, 80, 0.25)
    e = evaluation(
        some(1, 1, 2),
        attacks=[row, AttackRow("square()", skipped="not needed")],
        curve=[CurvePoint.of(0.1, 3, 8)],
        forward=torch.tensor([1, 41, 50, 50]),
        backward=torch.tensor([0, 40, 50, 50]),
    )
    s = json.loads(json.dumps(e.summary(), allow_nan=False))
    keys = """n clean_accuracy robust_accuracy robust_interval status reasons threat suite seed attacks forward_total
        backward_total seconds at_most counts bracket curve notes target data versions"""
    assert set(keys.split()) <= set(s)
    assert {"name", "robust_accuracy_after", "broken", "forward", "backward", "seconds"} <= set(s["attacks"][0])
    assert s["attacks"][1]["robust_accuracy_after"] is None
    assert (s["forward_total"], s["backward_total"]) == (142, 140)
    assert s["counts"] == {"misclassified": 1, "broken": 1, "survived": 2, "skipped": 0, "invalid": 0, "not_run": 0}
    assert s["curve"][0]["robust_accuracy"] == 3 / 8
    assert (s["status"], s["reasons"]) == ("suspect", ["not examined"])


def test_an_evaluation_built_from_the_least_reads_its_outcomes_from_clean_and_robust() -> None:
    x = torch.zeros(3, 2)
    e = Evaluation(
        x=x, y=torch.tensor([0, 1, 1]), x_adv=x, clean=torch.tensor([0, 1, 1]), robust=torch.tensor([0, 0, 1])
    )
    assert e.outcome == [Status.MISCLASSIFIED, Status.BROKEN, Status.SURVIVED]
    assert e.distance.isnan().all()
    assert e.ids.tolist() == [0, 1, 2]
    assert e.name(1) == "1"
    assert e.name(-1) == "?"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x_adv": torch.zeros(2, 1)}, "x_adv has 2 rows"),
        ({"label_adv": torch.zeros(4).long()}, "label_adv has 4 rows"),
        ({"outcome": [Status.SURVIVED] * 3}, "Example 0 is survived, but clean is False"),
        ({"robust": torch.tensor([True, True, True])}, "robust is True"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(change: dict[str, object], said: str) -> None:
    rows: dict[str, object] = {
        "x": torch.zeros(3, 1),
        "y": torch.zeros(3).long(),
        "x_adv": torch.zeros(3, 1),
        "clean": torch.tensor([False, True, True]),
        "robust": torch.tensor([False, False, True]),
        "outcome": [Status.MISCLASSIFIED, Status.BROKEN, Status.SURVIVED],
    }
    with pytest.raises(InputError, match=said):
        Evaluation(**(rows | change))
