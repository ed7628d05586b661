"""`unfooled harden`: a harder classifier, its proof, its checkpoints, and kind errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import unfooled as uf
from unfooled.cli._app import call
from unfooled.evaluate.hardened import Worn, halves, harden_target


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("harden") / "run"
    words = ["harden", "digits-cnn", "--recipe", "n-fgsm", "--epochs", "4", "--suite", "quick", "--limit", "200"]
    assert call([*words, "--out", str(out)]) == 0
    return out


def test_it_is_harder_after_than_before_by_the_same_evaluation(made: Path) -> None:
    before, after = (json.loads((made / when / "summary.json").read_text()) for when in ("before", "after"))
    assert before["n"] == after["n"] == 200 and before["suite"] == after["suite"]
    assert after["robust_accuracy"] > before["robust_accuracy"] + 0.1
    told = json.loads((made / "harden.json").read_text())
    assert len(told["epochs"]) == 4 and sum(e["chosen"] for e in told["epochs"]) == 1
    assert "--recipe n-fgsm" in told["command"]


def test_the_weights_are_those_that_were_measured(made: Path) -> None:
    target = uf.targets.resolve("digits-cnn", weights=made / "hardened.safetensors")
    found = uf.evaluate(target, "digits", threat=uf.linf(0.1), suite="quick", limit=200)
    after = json.loads((made / "after" / "summary.json").read_text())
    assert found.robust_accuracy == after["robust_accuracy"]
    best = next((made / "training").glob("best-*.safetensors"))
    kept = {k.removeprefix("module."): v for k, v in load_file(best).items()}
    assert all(torch.equal(v, kept[k]) for k, v in load_file(made / "hardened.safetensors").items())


def test_a_finished_hardening_resumed_says_the_same(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (made / "hardened.safetensors").read_bytes()
    words = ["harden", "digits-cnn", "--recipe", "n-fgsm", "--epochs", "4", "--suite", "quick", "--limit", "200"]
    assert call([*words, "--resume", str(made)]) == 0
    assert (made / "hardened.safetensors").read_bytes() == before
    other = [w.replace("n-fgsm", "pgd") for w in words]
    assert call([*other, "--resume", str(made)]) == 2
    assert "another objective" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digits-cnn", "--recipe", "pdg"], "Did you mean 'pgd'"),
        (["digits-cnn", "--epochs", "0"], "--epochs"),
        (["digits-cnn", "--budget", "soon"], "is no duration"),
        (["digits-cnn", "--threat", "linf"], ""),
        (["digits-cnn", "--budget", "0.001s", "--limit", "20", "--suite", "quick"], "holds no epoch"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["harden", *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and error.startswith("unfooled: ")


def test_own_data_are_halved_and_normalisation_is_worn(tmp_path: Path) -> None:
    data = uf.load_data("digits", split="train")
    pixels = (data.x * 255).round().to(torch.uint8).numpy().transpose(0, 2, 3, 1)
    np.savez(tmp_path / "own.npz", images=pixels[:300], labels=data.y.numpy()[:300])
    own = uf.load_data(str(tmp_path / "own.npz"))
    train, test = halves(own)
    assert len(train) == 240 and len(test) == 60
    rows = {tuple(r.tolist()) for r in train.x.flatten(1)} & {tuple(r.tolist()) for r in test.x.flatten(1)}
    assert not rows
    inner = uf.targets.resolve("digits-cnn").module
    target = uf.Target(inner, mean=0.3, std=0.5)
    torch.testing.assert_close(Worn(target)(own.x[:5]), target.scores(own.x[:5]))
    before = inner[0].weight.clone()
    proof = harden_target(target, train, test, uf.linf(0.1), recipe="fgsm-rs", epochs=2, suite="quick")
    assert not torch.equal(inner[0].weight, before) and proof.after.n == proof.before.n == 60
    with pytest.raises(uf.InputError, match="Only torch modules"):
        harden_target(uf.Target(lambda v: v.flatten(1)[:, :10]), train, test, uf.linf(0.1))
