"""`--wear`: what a target wears is measured, said, kept by a resumed run, and refused kindly."""

import json
from pathlib import Path

import pytest
import torch

import unfooled as uf
from unfooled.cli._app import call

QUICK = ["--suite", "pgd(steps=3)", "--limit", "20", "--no-curve"]


def test_what_is_measured_is_the_target_behind_the_defences_in_their_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worn = ["--wear", "blur(0.5)", "--wear", "median"]
    assert call(["evaluate", "digits-cnn", *worn, *QUICK, "--out", str(tmp_path / "run")]) in (0, 3)
    assert "digits-cnn behind blur(0.5), median(3) on digits" in capsys.readouterr().out
    told = json.loads((tmp_path / "run" / "summary.json").read_text())
    data = uf.load_data("digits", limit=20)
    bare = uf.targets.resolve("digits-cnn")
    by_hand = uf.harden.Blurred(uf.harden.Median(bare.module), 0.5)
    found = uf.evaluate(uf.Target(by_hand), data, threat=uf.linf(0.1), suite="pgd(steps=3)")
    other = uf.Target(uf.harden.Median(uf.harden.Blurred(bare.module, 0.5)))
    assert told["robust_accuracy"] == found.robust_accuracy
    x = data.x
    assert torch.equal(uf.harden.wear(bare, "blur(0.5)", "median").scores(x), uf.Target(by_hand).scores(x))
    assert not torch.equal(uf.harden.wear(bare, "blur(0.5)", "median").scores(x), other.scores(x))
    assert call(["verify", str(tmp_path / "run")]) == 0


def test_a_resumed_run_wears_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert call(["evaluate", "digits-cnn", "--wear", "median(3)", *QUICK, "--out", run]) in (0, 3)
    assert call(["evaluate", "--resume", run]) in (0, 3)
    assert "digits-cnn behind median(3)" in capsys.readouterr().out
    assert call(["evaluate", "--resume", run, "--wear", "median(5)"]) == 2
    assert "--wear is median(5) here and median(3) in" in capsys.readouterr().err


def test_the_other_verbs_wear_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["doctor", "digits-cnn", "--wear", "bits(3)", "--limit", "40", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["target"] == "digits-cnn behind bits(3)" and {f["id"] for f in told["findings"]} >= {"D1", "BPDA"}
    assert call(["attack", "0", "digits-cnn", "--wear", "blur(0.5)", "--out", str(tmp_path / "one")]) == 0
    assert "digits-cnn behind blur(0.5)" in (tmp_path / "one" / "attack.json").read_text()


def test_heads_that_refuse_make_a_target_that_may_abstain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "digits-cnn", "--wear", "sigmoids(3)", *QUICK, "--out", str(tmp_path / "run")]
    assert call(words) in (0, 3)
    assert "right and accepted" in capsys.readouterr().out
    assert call([*words[:-1], str(tmp_path / "other"), "--reject", "0.9"]) == 2
    assert "may abstain already" in capsys.readouterr().err


def test_hardened_weights_are_those_of_what_is_worn_over(tmp_path: Path) -> None:
    out = tmp_path / "hard"
    words = ["--recipe", "standard", "--epochs", "1", "--suite", "pgd(steps=2)", "--limit", "20"]
    assert call(["harden", "digits-cnn", "--wear", "blur(0.5)", *words, "--out", str(out)]) == 0
    target = uf.targets.resolve("digits-cnn", weights=out / "hardened.safetensors")
    told = json.loads((out / "after" / "summary.json").read_text())
    worn = uf.harden.wear(target, "blur(0.5)")
    again = uf.evaluate(worn, "digits", threat=uf.linf(0.1), suite="pgd(steps=2)", limit=20)
    assert told["target"] == "digits-cnn behind blur(0.5)" and told["robust_accuracy"] == again.robust_accuracy


@pytest.mark.parametrize("verb", [["evaluate"], ["doctor"], ["attack", "0"], ["explain"], ["fool"], ["harden"]])
@pytest.mark.parametrize(
    ("worn", "said"),
    [
        ("medain(3)", "Did you mean 'median'?"),
        ("median(4)", "odd size"),
        ("median(3, 5)", "median takes size"),
        ("bits('four')", "bits is a whole number"),
        ("lambda: 0", "is no defence; write for example median(3)"),
    ],
)
def test_what_cannot_be_worn_is_one_sentence(
    verb: list[str], worn: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = [] if verb[0] == "attack" else ["digits-cnn"]
    out = [] if verb == ["doctor"] else ["--out", str(tmp_path / "out")]
    assert call([*verb, *target, "--wear", worn, *out]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and error.startswith("unfooled: ") and not (tmp_path / "out").exists()
