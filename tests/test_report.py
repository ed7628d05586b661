"""The run directory and its page: what the files hold, and that nothing hostile becomes part of the page."""

import functools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from unfooled import report
from unfooled.core.result import AttackRow, CurvePoint, Evaluation, Finding, Status
from unfooled.errors import InputError
from unfooled.report import figures, page
from unfooled.report.files import COLUMNS, run_record
from unfooled.stats import wilson

from .hostile import ESCAPE
from .hostile import WORDS as HOSTILE


def digits(n: int = 80, eps: float = 0.25, **given: Any) -> Evaluation:
    """Real digits, a linear target fitted to other digits, and one step against each: a record made by hand."""
    bunch = load_digits()
    pixels = torch.tensor(bunch.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(bunch.target)
    other = pixels[600:1400].flatten(1)
    hot = torch.nn.functional.one_hot(labels[600:1400], 10).float()
    w = torch.linalg.solve(other.T @ other + 10 * torch.eye(64), other.T @ (hot - 0.1)).T * 10
    return attacked(pixels[:n], labels[:n], w, eps, **given)


def attacked(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, eps: float, **given: Any) -> Evaluation:
    n, all_rows = len(x), torch.arange(len(x))
    scores = x.flatten(1) @ w.T
    clean = scores.argmax(1) == y
    rival = scores.scatter(1, y[:, None], -torch.inf).argmax(1)
    step = (w[rival] - w[y]).sign().reshape(x.shape)
    x_adv, steps = x.clone(), torch.full((n,), -1)
    for k in range(1, 9):
        candidate = (x + eps * k / 8 * step).clamp(0, 1)
        fresh = clean & (steps < 0) & ((candidate.flatten(1) @ w.T).argmax(1) != y)
        x_adv[fresh], steps[fresh] = candidate[fresh], k
    broken = steps >= 0
    after = x_adv.flatten(1) @ w.T
    rest = after.scatter(1, y[:, None], -torch.inf).amax(1)
    outcome = [
        Status.BROKEN if b else Status.SURVIVED if c else Status.MISCLASSIFIED
        for b, c in zip(broken.tolist(), clean.tolist(), strict=True)
    ]
    distance = (x_adv - x).flatten(1).abs().amax(1).double().masked_fill(~broken, torch.nan)
    row = AttackRow("fgsm()", "Goodfellow et al. 2015", int(clean.sum()), int(broken.sum()),
                    int((clean & ~broken).sum()) / n, 3 * n, n, 0.125)  # fmt: skip
    settings: dict[str, Any] = {
        "x": x, "y": y, "x_adv": x_adv, "clean": clean, "robust": clean & ~broken, "outcome": outcome,
        "broken_by": ["fgsm()" if b else "" for b in broken.tolist()], "distance": distance,
        "label_clean": scores.argmax(1), "label_adv": after.argmax(1), "steps_to_break": steps,
        "confidence_clean": scores.softmax(1).amax(1), "confidence_adv": after.softmax(1).amax(1),
        "margin": after[all_rows, y] - rest, "forward": 2 + clean.long(), "backward": clean.long(),
        "threat": f"linf({eps})", "suite": "quick", "target": "digits-linear", "data": "digits", "seed": 3,
        "attacks": [row, AttackRow("square(queries=5000)", skipped="not needed")], "seconds": 1.5,
        "curve": [CurvePoint.of(e, k, 64) for e, k in ((0.05, 50), (0.1, 40), (0.2, 10))], "curve_suite": "quick",
        "notes": ["Everything is fine."], "versions": {"torch": "2.13.0"}, "command": "unfooled evaluate",
        "settings": {"limit": n, "eps": float("inf")},
    }  # fmt: skip
    return Evaluation(**(settings | given))


def vectors() -> Evaluation:
    x = torch.rand(60, 12)
    w = torch.stack([-torch.linspace(-1, 1, 12), torch.linspace(-1, 1, 12)])
    return attacked(x, (x @ w.T).argmax(1), w, 0.2, classes=["well", "ill"])


def sequences() -> Evaluation:
    x = torch.rand(40, 30, 3)
    w = torch.randn(3, 90)
    return attacked(x, (x.flatten(1) @ w.T).argmax(1), w, 0.1)


def pictures(channels: int, height: int, width: int, classes: int, n: int = 24) -> Evaluation:
    x = torch.rand(n, channels, height, width)
    w = torch.randn(classes, channels * height * width)
    y = (x.flatten(1) @ w.T).argmax(1)
    y[:4] = (y[:4] + 1) % classes
    return attacked(x, y, w, 0.05, classes=[f"class {i}" for i in range(classes)])


def unfinished() -> Evaluation:
    e = digits()
    late = [i >= 50 and o is not Status.MISCLASSIFIED for i, o in enumerate(e.outcome)]
    e.outcome = [Status.NOT_RUN if cut else o for o, cut in zip(e.outcome, late, strict=True)]
    e.robust = e.robust | torch.tensor(late)
    return e


CASES: dict[str, Callable[[], Evaluation]] = {
    "digits": digits,
    "nothing broken": lambda: digits(eps=0.0),
    "everything broken": lambda: digits(eps=1.0),
    "one example": lambda: digits(1),
    "no attack": lambda: digits(attacks=[], curve=None, eps=0.0),
    "unfinished": unfinished,
    "vectors": vectors,
    "sequences": sequences,
    "colour": lambda: pictures(3, 32, 32, 10),
    "odd sizes": lambda: pictures(3, 7, 29, 3),
    "thousand classes": lambda: pictures(1, 12, 12, 1000, 60),
    "two classes": lambda: pictures(3, 8, 8, 2),
    "large": lambda: pictures(3, 300, 260, 5),
    "other channels": lambda: pictures(12, 8, 8, 3),
    "only what is needed": lambda: Evaluation(
        **{k: getattr(digits(), k) for k in ("x", "y", "x_adv", "clean", "robust")}
    ),
}


class Page(HTMLParser):
    """Every element with the names of its attributes, the addresses it names, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.structure: list[tuple[str, tuple[str, ...]]] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.sheet = ""
        self.styles: list[str] = []
        self.open: list[str] = []
        self.comments = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.structure.append((tag, tuple(name for name, _ in attrs)))
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "action", "data")]
        self.styles += [value or "" for name, value in attrs if name == "style"]
        if tag not in ("meta", "img", "source", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.sheet += data
        else:
            self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments += 1

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def checked(html: str) -> Page:
    """Parse a page and assert what every page promises: well-formed, no script, nothing fetched."""
    parsed = Page(html)
    assert parsed.open == []
    assert parsed.comments == 0
    tags = {tag for tag, _ in parsed.structure}
    assert not tags & {"script", "iframe", "object", "embed", "form", "link", "base", "svg", "a", "input", "button"}
    attributes = {name for _, names in parsed.structure for name in names}
    assert not {name for name in attributes if name.startswith("on")}
    assert all(
        address.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,")) for address in parsed.addresses
    )
    assert all(
        re.fullmatch(r"(width:[\d.]+%|background:rgba\(var\(--heat\),[\d.]+\)|margin-left:[\d.]+rem)", s)
        for s in parsed.styles
    )
    assert not re.search(r"url|@import|expression|\\\\", parsed.sheet)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    html.encode("utf-8")
    assert not [c for c in html if ord(c) < 32 and c != "\n"]
    return parsed


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_record_makes_a_page_that_keeps_its_promises(name: str) -> None:
    e = CASES[name]()
    parsed = checked(page.render(e))
    low, high = e.robust_interval
    assert f"robust accuracy, at most {e.robust_accuracy:.1%}" in parsed.text
    assert f"suspect: not examined 95% interval {100 * low:.1f}–{high:.1%}" in parsed.text
    for status, words in (("MISCLASSIFIED", "wrong before any attack"), ("BROKEN", "broken"), ("SURVIVED", "survived")):
        assert f"{e.count(Status[status])} {words}" in parsed.text


def test_the_page_says_what_was_measured() -> None:
    e = digits()
    text = checked(page.render(e)).text
    assert "Each of the 64 input values may change by up to 0.25 on the scale from 0 to 1." in text
    assert "63.75 of 255 grey levels" in text
    assert f"Before any attack {e.clean_accuracy:.1%} of the images are classified correctly" in text
    row = e.attacks[0]
    assert (
        f"fgsm() Goodfellow et al. 2015 {row.attempted} {row.broken} {row.robust_accuracy_after:.1%} 240 80 0.1" in text
    )
    assert "square(queries=5000) not run: not needed" in text
    assert "0.1 25.5 62.5% 50.3–73.3%" in text
    assert "unfooled evaluate" in text
    assert "torch 2.13.0" in text
    assert "Seed 3." in text


def test_the_passes_of_the_table_add_up_to_the_total(tmp_path: Path) -> None:
    e = digits(settings={"padding": [7, 5], "overrun": [2, 1]})
    e.forward, e.backward = e.forward + 10, e.backward + 5
    row = e.attacks[0]
    text = checked(page.render(e)).text
    first = e.forward_total + 9 - row.forward, e.backward_total + 6 - row.backward
    assert min(first) > 0
    assert f"first look at every example {first[0]:,} {first[1]:,} " in text
    assert "charged to no example −9 −6 " in text
    assert f"together {e.robust_accuracy:.1%} {e.forward_total:,} {e.backward_total:,} 1.5" in text
    report.write(e, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["padding"] == {"forward": 9, "backward": 6}


def test_invalid_examples_are_said_and_counted_in_no_share() -> None:
    e = digits()
    assert "not counted" not in checked(page.render(e)).text
    kinds = [Status.INVALID, *e.outcome[1:]]
    clean, robust = e.clean.clone(), e.robust.clone()
    clean[0] = robust[0] = False
    f = digits()
    f.outcome, f.clean, f.robust = kinds, clean, robust
    text = checked(page.render(f)).text
    assert "1 not counted" in text and f.n == e.n - 1
    rows = page._view(f, images=False, written="")
    shares = [c["share"] for c in rows["counts"]]
    assert shares[-1] is None and sum(shares[:-1]) == pytest.approx(1)
    assert all(0 <= r["robust"] <= r["clean"] <= 1 for r in rows["classes"]["rows"])
    assert sum(r["clean"] * r["n"] for r in rows["classes"]["rows"]) == pytest.approx(f.clean_accuracy * f.n)


def test_the_numbers_by_class_are_those_of_the_rows() -> None:
    e = digits()
    text = checked(page.render(e)).text
    for c in range(10):
        rows = e.y == c
        clean, robust = e.clean[rows].double().mean(), e.robust[rows].double().mean()
        n, k, r = int(rows.sum()), int(e.clean[rows].sum()), int(e.robust[rows].sum())
        spans = [f"{100 * low:.1f}–{high:.1%}" for low, high in (wilson(k, n), wilson(r, n))]
        assert f"{c} {n} {100 * clean:.0f}% {spans[0]} {100 * robust:.0f}% {spans[1]}" in text


def test_the_gallery_shows_the_most_confident_mistakes_at_most_two_a_class_first() -> None:
    e = digits(300)
    shown = page.worst(e)
    assert len(shown) == page.GALLERY
    broken = [i for i, o in enumerate(e.outcome) if o is Status.BROKEN]
    assert set(shown) <= set(broken)
    surest = max(broken, key=lambda i: float(e.confidence_adv[i]))
    assert shown[0] == surest
    counts = [e.y[shown].tolist().count(c) for c in range(10)]
    assert max(counts) <= 2
    few = page.worst(e, 4)
    confidences = [float(e.confidence_adv[i]) for i in few]
    assert confidences == sorted(confidences, reverse=True)


def test_long_tables_are_cut_and_say_so() -> None:
    e = attacked(torch.rand(60, 1, 4, 4), torch.arange(60) * 16, torch.randn(1000, 16), 0.1)
    text = checked(page.render(e)).text
    left = len(set(e.y.tolist())) - page.CLASSES
    assert left > 0
    assert f"and {left} more classes" in text
    assert "The least robust classes come first." in text
    assert "and 10 more" in checked(page.render(digits(notes=["a note"] * (page.NOTES + 10)))).text


def test_an_unfinished_run_shows_its_bracket_beside_the_number() -> None:
    e = unfinished()
    assert e.bracket
    text = checked(page.render(e)).text
    assert f"{e.n - e.done} of {e.n} images were not finished." in text
    assert f"{e.bracket[0]:.1%} (all of them break) and {e.bracket[1]:.1%} (none does)" in text


FINDINGS = [
    Finding("A3", "between pixel values", "3 of 40 examples exist only between pixel values.", "noted", 0.075),
    Finding("D1", "zero gradients", "Half of all gradients are zero.", "escalated", 0.5),
    Finding("E7", "gradients are masked", "square broke 12 examples that gradients could not.", "suspect"),
]


def test_the_verdict_stands_beside_the_number_and_the_findings_follow() -> None:
    e = digits(status="suspect", reasons=["gradients are masked"], findings=FINDINGS, check_seconds=0.25)
    text = checked(page.render(e)).text
    low, high = e.robust_interval
    number = f"at most {e.robust_accuracy:.1%} suspect: gradients are masked 95% interval {100 * low:.1f}–{high:.1%}"
    assert number in text
    assert "Can this number be trusted? Not as it stands: gradients are masked." in text
    assert "The doctor and the controls took 0.2 of 1.5 seconds." in text
    for f in FINDINGS:
        measured = f", measured {f.figure:.4g}" if f.figure is not None else ""
        assert f"{f.title} {f.consequence} {f.id}{measured} {f.sentence}" in text
    assert text.index("gradients are masked suspect E7") < text.index("zero gradients escalated D1")
    assert "escalated: attacks that can cope" in text and "repaired: mended" not in text
    trusted = checked(page.render(digits(status="trusted", reasons=[], check_seconds=0.5))).text
    assert "As far as the checks reach, yes. The doctor and the controls found nothing." in trusted


def test_three_counts_with_their_intervals_and_the_rate_among_those_right() -> None:
    e = digits()
    text = checked(page.render(e)).text
    for status in (Status.MISCLASSIFIED, Status.BROKEN, Status.SURVIVED):
        low, high = wilson(e.count(status), e.n)
        assert f"{e.count(status) / e.n:.1%} ({100 * low:.1f}–{high:.1%}): " in text
    low, high = e.success_interval
    right = e.n - e.count(Status.MISCLASSIFIED)
    assert f"{e.success_rate:.1%} ({100 * low:.1f}–{high:.1%}) of the {right} right at first" in text


def test_examples_that_the_target_raised_on_are_counted_beside_the_others() -> None:
    e = unfinished()
    at = e.outcome.index(Status.NOT_RUN)
    e.outcome[at] = Status.FAILED
    text = checked(page.render(e)).text
    assert "1 failed 1.2%" in text and f"{e.count(Status.NOT_RUN)} not finished" in text
    assert sum(c["share"] for c in page._counts(e)) == pytest.approx(1)


def test_the_number_for_files_and_the_draws_are_said() -> None:
    e = digits(on_grid=torch.zeros(80))
    text = checked(page.render(e)).text
    assert e.grid_accuracy is not None and e.grid_interval is not None
    assert f"Against 8-bit files it is at most {e.grid_accuracy:.1%}" in text
    assert "fresh draws" not in text
    e = digits(draws=40, survival=digits().robust.double() * 0.5, eps=0.05)
    text = checked(page.render(e)).text
    assert "40 fresh draws" in text and "the number above averages draws" in text and "8-bit files" not in text
    rows = page._classes(e)["rows"]
    assert sum(r["robust"] * r["n"] for r in rows) / e.n == pytest.approx(e.robust_accuracy)


def test_accuracy_and_rejection_stand_in_one_table() -> None:
    e = digits(eps=0.02)
    e.rejected_clean = ~e.clean
    e.rejected_adv = e.robust & (torch.arange(80) < 20)
    r = e.rejection
    assert r is not None and 0 < r.rejected < 1
    text = checked(page.render(e)).text
    low, high = wilson(round(r.rejected * 80), 80)
    assert "With rejection" in text
    assert f"under attack {r.right:.1%}" in text and f"{r.rejected:.1%} {100 * low:.1f}–{high:.1%}" in text
    assert "With rejection" not in checked(page.render(digits())).text


def test_a_withheld_number_stands_nowhere_on_the_page() -> None:
    e = digits(status="withheld", reasons=["predictions never change"], on_grid=torch.zeros(80), eps=0.05)
    parsed = checked(page.render(e))
    assert "withheld: predictions never change" in parsed.text
    assert "There is none: predictions never change." in parsed.text
    # `Before any attack` is clean accuracy, which stands
    at = parsed.text.find(f"{e.robust_accuracy:.1%}")
    assert at < 0, parsed.text[at - 100 : at + 20]
    assert "at most" not in parsed.text[: parsed.text.index("What the attacker may do")]
    assert "Robust accuracy at other sizes" not in parsed.text and "By class" not in parsed.text


def test_vectors_are_shown_as_numbers() -> None:
    e = vectors()
    parsed = checked(page.render(e))
    i = page.worst(e)[0]
    j = int((e.x_adv[i] - e.x[i]).abs().argmax())
    assert f"{float(e.x[i, j]):.4g}" in parsed.text
    assert not [a for a in parsed.addresses if a.startswith("data:image/png")]


def test_a_report_without_images_holds_none(tmp_path: Path) -> None:
    out = report.write(digits(), tmp_path / "run", images=False)
    assert not (out / "adversarials.npz").exists()
    parsed = checked((out / "report.html").read_text(encoding="utf-8"))
    assert not [a for a in parsed.addresses if a.startswith("data:image/png")]
    assert "without images" in parsed.text


def test_the_same_record_makes_the_same_page() -> None:
    assert page.render(digits(), written="now") == page.render(digits(), written="now")


def everywhere(word: str) -> Evaluation:
    """A record with `word` wherever a string of the outside can stand."""
    row = digits().attacks[0]
    return digits(
        40,
        classes=[word] * 10, target=word, threat=f"linf({word})", data=word,
        suite=word, curve_suite=word, notes=[word], command=word,
        versions={word: word}, reasons=[word], status=word, broken_by=[word] * 40, curve=None,
        findings=[Finding(word, word, word, word)], settings={word: word, "bounds": [0.0, 1.0]},
        attacks=[replace(row, name=word, paper=word), replace(row, name=word, skipped=word)],
    )  # fmt: skip


@functools.cache
def harmless() -> Page:
    return checked(page.render(everywhere("x")))


@pytest.mark.parametrize("word", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_words_stay_words(word: str) -> None:
    """The page has exactly the elements and attributes that it has with a harmless word in every place."""
    hostile = checked(page.render(everywhere(word)))
    if not word.strip():  # what is empty is left out, with its element
        return
    assert hostile.structure == harmless().structure
    assert [a for a in hostile.addresses if "svg" in a] == [a for a in harmless().addresses if "svg" in a]


@pytest.mark.parametrize("word", [HOSTILE[0], f"{ESCAPE}[31m\r\n\x00", '" + alert(1) + "'])
def test_charts_take_no_word_from_the_threat(word: str) -> None:
    charts = [a for a in checked(page.render(digits(30, threat=f"{word}(0.1)"))).addresses if "svg" in a]
    assert charts
    assert charts == [a for a in checked(page.render(digits(30, threat="x(0.1)"))).addresses if "svg" in a]


def test_what_was_escaped_is_still_read_as_it_was_written() -> None:
    words = checked(page.render(digits(classes=["<b>bold</b> & 'co'"] * 10))).text
    assert "<b>bold</b> & 'co'" in words


@given(st.text())
def test_safe_text_is_one_printable_line(text: str) -> None:
    safe = page.safe_text(text)
    assert len(safe.splitlines()) <= 1
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", safe)
    safe.encode("utf-8")
    assert page.safe_text(safe) == safe
    assert len(page.short(text, 10)) <= 10


@pytest.mark.parametrize(
    ("threat", "name"),
    [
        ("linf(0.1)", "linf(0.1)"),
        ("linf(0.03137254901960784)", "linf(8/255)"),
        ("linf(0.0313725)", "linf(8/255)"),
        ("l2(0.123456789)", "l2(0.1235)"),
        ("edits(2)", "edits(2)"),
    ],
)
def test_threats_are_named_as_people_write_them(threat: str, name: str) -> None:
    assert page.threat_name(threat) == name


@pytest.mark.parametrize(
    ("threat", "said"),
    [
        ("l2(1.6)", "moves by 0.2, 51 of 255 grey levels"),
        ("l1(2.0)", "the sum is 510 grey levels: about 2 values"),
        ("l0(5.0)", "At most 5 of the 64 input values"),
        ("linf(0.001)", "nothing of it survives in an 8-bit file"),
        ("linf(inf)", "smallest change"),
    ],
)
def test_every_norm_is_explained(threat: str, said: str) -> None:
    assert said in " ".join(page.explain_threat(digits(threat=threat)))


# --- the files -------------------------------------------------------------------------------------------------------


def test_the_run_directory_holds_the_record(tmp_path: Path) -> None:
    e = digits()
    out = report.write(e, tmp_path / "runs" / "a")
    assert {p.name for p in out.iterdir()} == {
        "summary.json", "run.json", "examples.parquet", "adversarials.npz", "report.html",
    }  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    assert summary.pop("padding") == {"forward": 0, "backward": 0}
    assert summary == json.loads(json.dumps(e.summary()))
    run = json.loads((out / "run.json").read_text())
    assert (run["settings"]["limit"], run["settings"]["eps"], run["command"]) == (80, "inf", "unfooled evaluate")
    assert run["examples_sha256"] == run_record(e)["examples_sha256"] != run_record(digits(79))["examples_sha256"]
    checked((out / "report.html").read_text(encoding="utf-8"))


def test_the_table_of_examples_is_the_rows(tmp_path: Path) -> None:
    e = digits()
    out = report.write(e, tmp_path / "it's a run")
    with duckdb.connect() as database:
        path = str(out / "examples.parquet").replace("'", "''")
        table = database.execute(f"SELECT * FROM '{path}' ORDER BY index").fetchall()
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in table]
    assert len(rows) == 80
    for i, row in enumerate(rows):
        assert row["outcome"] == e.outcome[i].value
        assert row["label"] == int(e.y[i])
        assert row["forward"] == int(e.forward[i])
        assert (row["distance"] is None) == (e.outcome[i] is not Status.BROKEN)
        assert (row["steps"] is None) == (int(e.steps_to_break[i]) < 0)
        assert row["confidence_adv"] == pytest.approx(float(e.confidence_adv[i]))
    robust = sum(row["outcome"] == "survived" for row in rows) / len(rows)
    assert robust == e.robust_accuracy


def test_the_adversarial_examples_are_the_broken_ones_beside_their_originals(tmp_path: Path) -> None:
    e = digits()
    out = report.write(e, tmp_path / "run")
    with np.load(out / "adversarials.npz", allow_pickle=False) as stored:
        found = {name: stored[name] for name in stored.files}
    index = [i for i, o in enumerate(e.outcome) if o is Status.BROKEN]
    assert found["index"].tolist() == index
    assert np.array_equal(found["x_adv"], e.x_adv[index].numpy())
    assert np.array_equal(found["x"], e.x[index].numpy())
    assert (found["label"] != found["label_adv"]).all()
    assert np.abs(found["x_adv"] - found["x"]).reshape(len(index), -1).max(1) == pytest.approx(
        e.distance[index].numpy()
    )


@pytest.mark.parametrize("name", ["nothing broken", "one example", "vectors", "only what is needed"])
def test_other_records_are_written_too(tmp_path: Path, name: str) -> None:
    out = report.write(CASES[name](), tmp_path / "run")
    assert len(list(out.iterdir())) == 5


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    kept = tmp_path / "run"
    kept.mkdir()
    (kept / "summary.json").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        report.write(digits(), kept)
    assert (kept / "summary.json").read_text() == "mine"
    assert len(list(kept.iterdir())) == 1


def test_the_data_survive_a_page_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr(page, "render", fail)
    with pytest.raises(RuntimeError, match="no page"):
        report.write(digits(), tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "summary.json", "run.json", "examples.parquet", "adversarials.npz",
    }  # fmt: skip


# --- figures ---------------------------------------------------------------------------------------------------------


@given(st.floats(1e-9, 1.0))
def test_the_amplification_is_round_fills_the_scale_and_never_leaves_it(peak: float) -> None:
    factor = figures.nice_factor(peak)
    assert 0.5 * peak <= factor * peak <= 0.5001
    assert factor * peak >= 0.04
    assert float(f"{factor:g}") == pytest.approx(factor)


def test_the_change_is_drawn_as_mid_grey_plus_the_scaled_change() -> None:
    x = torch.full((1, 2, 2), 0.4)
    x_adv = x + torch.tensor([[[0.1, -0.1], [0.0, 0.05]]])
    shift, factor = figures.change(x, x_adv)
    assert factor == 5
    assert shift[0].tolist() == [pytest.approx([1.0, 0.0], abs=1e-6), pytest.approx([0.5, 0.75], abs=1e-6)]
    wide, same = figures.change(x * 255, x_adv * 255, (0.0, 255.0))
    assert (same, wide.flatten().tolist()) == (5, pytest.approx(shift.flatten().tolist(), abs=1e-5))
    none, factor = figures.change(x, x)
    assert (factor, none.unique().tolist()) == (1, [0.5])


def test_pictures_show_the_values_they_are_made_of() -> None:
    grey = torch.tensor([[[0.0, 1.0], [0.5, 0.2]]])
    assert np.asarray(figures.picture(grey)).tolist() == [[0, 255], [128, 51]]
    colour = torch.stack([grey[0], 1 - grey[0], grey[0] * 0])
    assert np.asarray(figures.picture(colour))[0, 1].tolist() == [255, 0, 0]
    assert figures.picture(grey * 2 - 1, (-1.0, 1.0)).tobytes() == figures.picture(grey).tobytes()
    assert figures.enlarged(figures.picture(grey), 8).size == (8, 8)
    assert figures.reduced(figures.picture(torch.rand(3, 300, 150)), 100).size == (50, 100)


@pytest.mark.parametrize("values", [[1, 2, 2, 3], [5.0] * 6, [0.1, 0.25, 0.7], list(range(500))])
def test_a_histogram_counts_every_value_once(values: list[float]) -> None:
    edges, counts = figures.counted(values)
    assert sum(counts) == len(values)
    assert len(edges) == len(counts) + 1
    assert edges[0] <= min(values) <= max(values) <= edges[-1]
    if all(float(v).is_integer() for v in values):
        assert len(set(np.diff(edges).round(6).tolist())) == 1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_charts_are_drawn_without_a_browser_and_without_scripts(theme: figures.Theme) -> None:
    points = [CurvePoint.of(e, k, 50) for e, k in ((0.1, 40), (0.2, 10))]
    for chart in (
        figures.curve_chart(points, theme, clean=0.97),
        figures.histogram([0.1, 0.5, 0.9], theme, title="<b>&\"'", unit="images", percent=True, extent=(0, 1)),
    ):
        drawn = figures.svg(chart)
        assert drawn.startswith(b"<svg")
        assert b"<script" not in drawn
        assert b"<b>" not in drawn
