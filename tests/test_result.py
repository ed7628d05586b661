"""The record of an evaluation: every number follows from the rows, and rows that contradict each other are refused."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from unfooled.core.result import AttackRow, CurvePoint, Evaluation, Finding, Status
from unfooled.errors import InputError
from unfooled.stats import mean_interval, wilson

CLEAN = {Status.MISCLASSIFIED: False, Status.INVALID: False}
ROBUST = {Status.SURVIVED, Status.SKIPPED, Status.NOT_RUN, Status.FAILED}


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
        backward_total seconds at_most counts bracket curve notes target data versions findings grid_accuracy
        grid_interval draws success_rate success_interval rejection check_seconds withheld_value"""
    assert set(keys.split()) <= set(s)
    assert {"name", "robust_accuracy_after", "broken", "forward", "backward", "seconds"} <= set(s["attacks"][0])
    assert s["attacks"][1]["robust_accuracy_after"] is None
    assert (s["forward_total"], s["backward_total"]) == (142, 140)
    assert s["counts"] == {"misclassified": 1, "broken": 1, "survived": 2, "skipped": 0, "invalid": 0, "not_run": 0,
                           "failed": 0}  # fmt: skip
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


# --- random targets ---------------------------------------------------------------------------------------------------


def test_a_random_target_is_right_as_often_as_its_draws_are() -> None:
    share = torch.tensor([0.0, 0.1, 0.3, 0.9, 1.0])
    e = evaluation(some(1, 2, 2), survival=share, draws=100)
    assert e.robust_accuracy == pytest.approx(2.3 / 5)
    low, high = e.robust_interval
    assert 0 <= low < 2.3 / 5 < high <= 1
    assert "mean over 100 draws" in str(e)
    assert e.summary()["draws"] == 100
    assert evaluation(some(1, 2, 2), survival=share).robust_accuracy == 2 / 5  # one draw: the outcomes decide


def test_the_draws_of_unfinished_examples_bound_the_mean() -> None:
    unknown = torch.tensor([0.5, 0.5, torch.nan, 0.7])
    e = evaluation([Status.BROKEN, Status.SURVIVED, Status.NOT_RUN, Status.FAILED], survival=unknown, draws=50)
    assert e.bracket == pytest.approx((0.25, 0.75))
    assert e.robust_accuracy == 0.75


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_laws_of_the_interval_of_a_mean(shares: list[float]) -> None:
    low, high = mean_interval(shares)
    mean = math.fsum(shares) / len(shares)
    assert 0 <= low <= mean + 1e-12 and mean - 1e-12 <= high <= 1 and low < high
    mirrored = mean_interval([1 - s for s in shares])
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_the_interval_of_hits_and_misses_holds_wilsons_and_equal_shares_make_it_narrower() -> None:
    for k, n in ((0, 20), (3, 50), (25, 50), (50, 50)):
        low, high = mean_interval([1.0] * k + [0.0] * (n - k))
        inner = wilson(k, n)
        assert low <= inner[0] + 1e-9 and inner[1] - 1e-9 <= high
    equal, split = mean_interval([0.5] * 50), mean_interval([0.0, 1.0] * 25)
    assert (equal[1] - equal[0]) < 0.4 * (split[1] - split[0])


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    draw = torch.Generator().manual_seed(0)
    for low_end, high_end in ((0.0, 1.0), (0.8, 1.0), (0.4, 0.6)):
        rows = low_end + (high_end - low_end) * torch.rand(400, 40, generator=draw, dtype=torch.float64)
        truth = (low_end + high_end) / 2
        hits = sum(low <= truth <= high for low, high in (mean_interval(r.tolist()) for r in rows))
        assert hits >= 0.93 * 400


# --- files, rejection -------------------------------------------------------------------------------------------------


def test_only_what_breaks_as_a_file_counts_on_the_grid() -> None:
    on_grid = torch.tensor([False, True, False, False, False])
    e = evaluation(some(1, 2, 2), on_grid=on_grid)
    assert (e.robust_accuracy, e.grid_accuracy) == (2 / 5, 3 / 5)
    assert e.grid_interval == pytest.approx(wilson(3, 5))
    assert (e.summary()["grid_accuracy"], e.summary()["grid_interval"]) == (3 / 5, list(wilson(3, 5)))
    plain = evaluation(some(1, 2, 2))
    assert plain.grid_accuracy is plain.grid_interval is plain.summary()["grid_accuracy"] is None
    random = evaluation(some(1, 2, 2), on_grid=on_grid, survival=torch.tensor([0.0, 0.2, 0.4, 0.8, 1.0]), draws=9)
    assert random.grid_accuracy is random.grid_interval is None


def test_the_success_rate_is_over_what_was_right() -> None:
    e = evaluation(some(10, 20, 30, 40))
    assert e.success_rate == 20 / 90
    assert e.success_interval == wilson(20, 90)
    assert math.isnan(evaluation(some(3, 0, 0)).success_rate)
    assert evaluation(some(3, 0, 0)).summary()["success_rate"] is None


def test_accuracy_and_rejection_stand_together_and_add_up() -> None:
    outcome = [*some(3, 2, 4), Status.INVALID]
    clean = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0, 0, 0])  # two of the three wrong ones were rejected
    adv = torch.tensor(
        [0, 0, 0, 0, 1, 1, 0, 0, 0, 1]
    )  # one broken one had been rejected on the way; one robust one was
    e = evaluation(outcome, rejected_clean=clean, rejected_adv=adv)
    r = e.rejection
    assert r is not None
    assert (r.clean_right, r.clean_rejected, r.right, r.rejected) == (6 / 9, 2 / 9, 3 / 9, 3 / 9)
    assert r.wrong == pytest.approx({"clean_wrong_accepted": 1 / 9, "wrong_accepted": 3 / 9})
    assert r.right + r.rejected >= e.robust_accuracy
    assert e.summary()["rejection"]["wrong_accepted"] == pytest.approx(3 / 9)
    assert evaluation(outcome).rejection is None
    assert evaluation(outcome).summary()["rejection"] is None


# --- the verdict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [("trusted", 0), ("suspect", 3), ("withheld", 4)])
def test_the_exit_code_is_the_status(status: str, code: int) -> None:
    e = evaluation(some(10, 20, 270), status=status, reasons=[])
    assert e.exit_code() == code
    assert e.exit_code(0.5) == (0 if status == "trusted" else 5)
    assert e.exit_code(0.895) == 5  # the number lies above, its interval does not


def test_a_bar_is_not_passed_by_what_was_not_finished() -> None:
    e = evaluation(some(0, 0, 100, 200), status="trusted", reasons=[])
    assert (e.robust_accuracy, e.exit_code(), e.exit_code(0.2), e.exit_code(0.5)) == (1.0, 0, 0, 5)
    assert evaluation([], status="trusted").exit_code(0.0) == 5
    for bad in (-0.1, 45, math.nan):
        with pytest.raises(InputError, match=r"0\.45 for 45%"):
            e.exit_code(bad)


def test_a_withheld_number_stands_nowhere_as_a_result() -> None:
    e = evaluation(
        some(1, 1, 2), status="withheld", reasons=["nothing it answers changes"], on_grid=torch.zeros(4),
        attacks=[AttackRow("pgd()", "", 3, 1, 0.5)], curve=[CurvePoint.of(0.1, 3, 8)],
    )  # fmt: skip
    assert str(e) == "robust accuracy withheld: nothing it answers changes"
    s = e.summary()
    assert s["withheld_value"] == e.robust_accuracy == 0.5
    for key in ("robust_accuracy", "robust_interval", "grid_accuracy", "grid_interval", "bracket", "curve"):
        assert s[key] is None
    assert s["attacks"][0]["robust_accuracy_after"] is None
    assert "50" not in s["at_most"] and "Withheld" in s["at_most"]
    assert evaluation(some(1, 1, 2)).summary()["withheld_value"] is None


def test_findings_stand_in_the_summary() -> None:
    found = Finding("zero-gradient", "zero gradients", "All gradients are zero.", "escalated", math.inf)
    e = evaluation(some(1, 1, 2), findings=[found], check_seconds=0.5)
    assert e.summary()["findings"] == [
        {"id": "zero-gradient", "title": "zero gradients", "sentence": "All gradients are zero.",
         "consequence": "escalated", "figure": None}
    ]  # fmt: skip
    assert e.summary()["check_seconds"] == 0.5


@pytest.mark.parametrize("name", ["survival", "on_grid", "rejected_clean", "rejected_adv"])
def test_a_row_too_many_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} has 3 rows"):
        evaluation(some(1, 1, 2), **{name: torch.zeros(3)})
