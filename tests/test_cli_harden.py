"""`unfooled harden`: a harder classifier, its proof, its checkpoints, and kind errors."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import unfooled as uf
from unfooled import harden, report
from unfooled.cli import _progress
from unfooled.cli._app import call
from unfooled.core.data import load_alike
from unfooled.core.fit import Recipe, Step
from unfooled.core.journal import Journal
from unfooled.core.result import Finding
from unfooled.evaluate import hardened
from unfooled.evaluate.hardened import Proof, Worn, halves, harden_target

WORDS = [
    "harden", "digits-cnn", "--recipe", "n-fgsm", "--epochs", "4", "--suite", "quick", "--limit", "200",
    "--smoothing", "0.05", "--augment", "cutout(2)", "--extra", "digits", "--mix", "0.2", "--ema", "0.9",
    "--schedule", "onecycle",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("harden") / "run"
    assert call([*WORDS, "--out", str(out)]) == 0
    return out


def words_with(option: str, value: str) -> list[str]:
    """The words of the run, with another value of an option."""
    return [value if before == option else word for before, word in zip(["", *WORDS], WORDS, strict=False)]


def test_it_is_harder_after_than_before_by_the_same_evaluation(made: Path) -> None:
    before, after = (json.loads((made / when / "summary.json").read_text()) for when in ("before", "after"))
    assert before["n"] == after["n"] == 200 and before["suite"] == after["suite"]
    assert after["robust_accuracy"] > before["robust_accuracy"] + 0.1
    told = json.loads((made / "harden.json").read_text())
    assert len(told["epochs"]) == 4 and sum(e["chosen"] for e in told["epochs"]) == 1
    assert "--recipe n-fgsm" in told["command"] and "onecycle" not in told["command"]  # a default repeats nothing
    assert told["settings"]["augment"] == "cutout(2)"
    assert {k: told["settings"]["recipe"][k] for k in ("smoothing", "mix", "ema")} == {
        "smoothing": 0.05, "mix": 0.2, "ema": 0.9,
    }  # fmt: skip
    first = told["epochs"][0]  # 900 images and a quarter as many; N-FGSM looks at each twice, there and back
    assert first["images"] == 900 + 34 * 6 + 4 and first["forward"] == first["backward"] == 2 * first["images"]
    assert told["cost"]["images"] == 4 * first["images"]
    gained = after["robust_accuracy"] - before["robust_accuracy"]
    share, low, high = told["gains"][0]
    assert share == pytest.approx(gained) and low < share < high and low > 0


def test_the_page_shows_what_was_gained_how_and_for_how_much(made: Path) -> None:
    page = (made / "report.html").read_text()
    after = json.loads((made / "after" / "summary.json").read_text())
    assert f"<strong>{after['robust_accuracy']:.1%}</strong>" in page
    assert "de Jorge et al. 2022" in page and "images a second" in page and "--recipe n-fgsm" in page
    assert page.count('<article class="card">') == 8 and page.count("stands</span>") == 4
    assert page.count("<tr><td") + page.count('<tr class="chosen">') == 4
    assert "adversarial accuracy" in page and "error" not in page
    assert '<tr><th scope="row">extra</th><td>digits</td></tr>' in page and "for 4 epochs" in page
    assert '<tr><th scope="row">seed</th><td>0</td></tr>' in page and '<th scope="row">test</th>' not in page
    assert "<script" not in page and "http://" not in page and "https://" not in page
    assert (made / "training.png").read_bytes()[:4] == b"\x89PNG"


def test_the_page_escapes_what_others_named_and_says_alarms(made: Path) -> None:
    target = uf.targets.resolve("digits-cnn")
    data = uf.load_data("digits", split="train").take(100)
    few = uf.load_data("digits").take(40)
    target.name = "<script>alert(1)</script>"
    proof = harden_target(target, data, few, uf.linf(0.1), recipe="standard", epochs=1, suite="quick")
    told = replace(proof, training=replace(proof.training, alarms=("Robust overfitting <b>since</b> epoch 3.",)))
    page = report.hardened.render(told, b"", command="unfooled harden '<x>'", written="")
    assert "<script" not in page and "&lt;script" in page and "&lt;b&gt;since" in page and '<img src=""' not in page
    assert "No alarm" in report.hardened.render(proof, b"", written="")


def evaluation(stands: list[bool], *, clean: list[bool] | None = None, **more: object) -> uf.Evaluation:
    right = clean or [True] * len(stands)
    x = torch.zeros(len(stands), 1, 2, 2)
    return uf.Evaluation(
        x=x, y=torch.zeros(len(x), dtype=torch.int64), x_adv=x, clean=torch.tensor(right),
        robust=torch.tensor(stands), threat="linf(0.1)", suite="quick", **{"status": "trusted", "reasons": [], **more},
    )  # fmt: skip


def test_what_did_not_help_is_said_so_and_why_numbers_are_in_doubt() -> None:
    line = harden.Line(1, 1.0, 0.1, 0.9, 0.5, 0.5, 1.0)
    training = harden.Hardened((line,), 1, (), "clean", 20, "pgd()", "fgsm()", "linf(0.1)", {"objective": "ibp"})

    def proof(before: uf.Evaluation, after: uf.Evaluation) -> Proof:
        return Proof(uf.targets.resolve("digits-cnn"), training, before, after)

    def half(n: int) -> list[bool]:
        return [i < n for i in range(100)]

    cases = (
        (half(20), half(60), half(100), ""),
        (half(20), half(21), half(100), "did not help measurably: robust accuracy changed by +1.0 points (-"),
        (half(40), half(10), half(100), "Hardening did harm: robust accuracy changed by -30.0 points (-"),
        (
            half(20),
            half(40),
            half(50),
            "cost more clean accuracy than it gained: robust accuracy changed by +20.0 points",
        ),
    )
    for stood, stands, clean, said in cases:
        made = proof(evaluation(stood), evaluation(stands, clean=clean))
        assert said in made.sentence() and (made.doubt() == "") == (said == "")
        assert made.doubt() in report.hardened.render(made, b"", written="")
    finding = Finding("A1", "gradients vanish", "Of 100 gradients 90 were <zero>.", "suspect")
    doubted = {"status": "suspect", "reasons": ["gradients vanish"], "findings": [finding]}
    held = {"status": "withheld", "reasons": ["it answers at random"]}
    both = proof(evaluation(half(20), **held), evaluation(half(30), **doubted))
    assert "before: withheld: it answers at random; after: at most 30.0%" in both.sentence()
    assert "suspect: gradients vanish" in both.sentence() and both.doubt() == ""
    page = report.hardened.render(both, b"", written="")
    assert (
        "withheld: it answers at random" in page and "<b>after</b>, suspect: Of 100 gradients 90 were &lt;zero" in page
    )
    assert "for 1 epoch," in page and "interval bounds not counted" in page
    assert "interval bounds" not in report.hardened.render(
        replace(both, training=replace(training, settings={"objective": "pgd"})), b"", written=""
    )


def test_test_rows_and_validation_rows_are_not_trained_on_and_universals_do_not_see_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, test = uf.load_data("digits", split="train", limit=120), uf.load_data("digits", limit=30)
    leaky = uf.Data(torch.cat([train.x, test.x[:3]]), torch.cat([train.y, test.y[:3]]))
    extra = uf.Data(torch.cat([train.x, test.x[:5]]), torch.cat([train.y, test.y[:5]]))  # validation rows too
    given: dict[str, uf.Data] = {}
    learned: list[torch.Tensor] = []

    def spy(module: torch.nn.Module, data: uf.Data, objective: object, **how: object) -> harden.Hardened:
        given.update(train=data, extra=how["extra"], validation=how["validation"])
        return harden.fit(module, data, objective, **how)

    def rows(x: torch.Tensor) -> set[bytes]:
        return {row.numpy().tobytes() for row in x}

    def learn(target: uf.Target, x: torch.Tensor, threat: uf.Ball, **how: object) -> SimpleNamespace:
        learned.append(x)
        return SimpleNamespace(delta=torch.zeros(x.shape[1:]))

    monkeypatch.setattr(hardened, "universal", learn)
    monkeypatch.setattr(hardened, "LEARNED", 50)
    proof = harden_target(
        uf.targets.resolve("digits-cnn"), leaky, test, uf.linf(0.1), recipe="universal", epochs=1, suite="fgsm()",
        limit=2, extra=extra, train_by=spy,
    )  # fmt: skip
    assert proof.notes == (
        "Not trained on, for test or validation data hold the same: 3 training rows and 25 extra rows.",
    )
    assert proof.after.n == 2 and len(given["validation"]) == 20 and proof.training.notes == ()
    assert rows(given["train"].x) == rows(given["extra"].x) == rows(train.x) - rows(given["validation"].x)
    assert rows(learned[0]) < rows(given["train"].x) and len(learned[0]) == 50
    first = rows(given["train"].x[:50])
    assert rows(learned[0]) != first
    assert proof.notes[0] in report.hardened.render(proof, b"", written="")
    clean = harden_target(
        uf.targets.resolve("digits-cnn"), train, test, uf.linf(0.1), recipe="standard", epochs=1, suite="fgsm()",
        limit=2,
    )  # fmt: skip
    assert clean.notes == ()


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
    assert call([*WORDS, "--resume", str(made)]) == 0
    assert (made / "hardened.safetensors").read_bytes() == before
    reports = (made / "before" / "summary.json").read_bytes()
    for option, value, was in (
        ("--recipe", "pgd", "n-fgsm"), ("--limit", "100", "200"), ("--suite", "standard", "quick"),
        ("--smoothing", "0.1", "0.05"), ("--epochs", "3", "4"),
    ):  # fmt: skip
        assert call([*words_with(option, value), "--resume", str(made)]) == 2
        assert f"{option} is {value} here and {was} in {made}" in capsys.readouterr().err.replace("\n", " ")
    for more, said in (
        (["--seed", "1"], "--seed is 1 here and 0 in"),
        (["--test", "digits"], "--test is digits here and not given in"),
        (["--wear", "median(3)"], "--wear is median(3) here and not given in"),
    ):  # fmt: skip
        assert call([*WORDS, *more, "--resume", str(made)]) == 2
        assert said in capsys.readouterr().err.replace("\n", " ")
    assert (made / "before" / "summary.json").read_bytes() == reports


MODULES = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def drawn():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def frozen():
    return net().requires_grad_(False)

def bare():
    return nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))

class Hiccup(nn.Module):
    def __init__(self, at=(40,)):
        super().__init__()
        self.net, self.steps, self.at = net(), 0, at

    def forward(self, x):
        self.steps += self.training
        return self.net(x) * (float("nan") if self.training and self.steps in self.at else 1)

def hopeless():
    return Hiccup(range(10**9))

def broken():
    module = net()
    module[1].weight.data[3, 5] = float("nan")
    return module

def smooth():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Sigmoid(), nn.Linear(8, 10))

class Mute(Hiccup):
    def forward(self, x):
        return self.net(x) * float("nan")
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with modules and data of one's own: good, of one class, with a label too many."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "nets.py").write_text(MODULES)
    data = uf.load_data("digits", split="train")
    pixels, y = (data.x * 255).round().to(torch.uint8).numpy().transpose(0, 2, 3, 1)[:100], data.y.numpy()[:100]
    for name, labels in (("good", y), ("one", y * 0), ("more", np.where(np.arange(100) == 7, 10, y)),
                         ("below", np.where(np.arange(100) == 7, -1, y))):  # fmt: skip
        np.savez(folder / f"{name}.npz", images=pixels, labels=labels)
    return folder


def unmeasured(*_: object, **__: object) -> None:
    raise AssertionError("bad words are refused before anything is measured")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digits-cnn", "--recipe", "pdg"], "Did you mean 'pgd'"),
        (["digits-cnn", "--epochs", "0"], "--epochs"),
        (["digits-cnn", "--workers", "0"], "--workers"),
        (["digits-cnn", "--budget", "soon"], "is no duration"),
        (["digits-cnn", "--resume", "nowhere"], "no hardening in nowhere"),
        (["digits-cnn", "--threat", "linf"], "is no threat"),
        (["digits-cnn", "--budget", "0.001s", "--limit", "20", "--suite", "quick"], "holds no epoch"),
        (["digits-cnn", "OWN/one.npz"], "one label"),
        (["digits-cnn", "OWN/more.npz"], "label 10 of more.npz[7] is none of the module's classes 0 to 9;"),
        (["digits-cnn", "OWN/good.npz", "--extra", "OWN/more.npz"], "label 10 of more.npz[7]"),
        (["digits-cnn", "OWN/below.npz"], "below.npz: Label -1 (example 7)"),
        (["OWN/nets.py:broken", "OWN/good.npz"], "weights in module.1.weight are not all finite"),
        (["OWN/nets.py:Mute", "OWN/good.npz"], "NaN"),
        (["digits-cnn", "--recipe", "gaussian", "--threat", "linf(0.1)"], "Gaussian noise is for threats in L2"),
        (["digits-cnn", "--recipe", "n-fgsm", "--threat", "l2(0.1)"], "knows Linf alone"),
        (["digits-cnn", "--suite", "quik"], "There is no suite 'quik'; there are"),
        (["digits-cnn", "--test", "OWN/good.npz", "OWN/good.npz"], "Every training row is a test"),
        (["digits-cnn", "--lr", "0"], "--lr"),
        (["OWN/nets.py:frozen", "OWN/good.npz"], "no parameter that training could change"),
        (["OWN/nets.py:bare", "OWN/good.npz"], "no parameter that training could change"),
        (["OWN/nets.py:smooth", "OWN/good.npz", "--recipe", "ibp"], "no bounds through a Sigmoid"),
        (["OWN/nets.py:hopeless", "OWN/good.npz", "--suite", "quick"], "loss became nan in epoch 1"),
        (["digits-cnn", "--augment", "flip"], "Did you mean 'flips'"),
        (["digits-cnn", "--augment", "crops(9)"], "mirrors more pixels"),
        (["digits-cnn", "--mix", "0.5"], "--extra"),
        (["digits-cnn", "--extra", "digits", "--mix", "1"], "mix"),
        (["digits-cnn", "--smoothing", "1"], "smoothing"),
        (["digits-cnn", "--ema", "1"], "ema"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str],
    said: str,
    own: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = "OWN/nets.py:hopeless" in words  # that shows while it is trained
    if not late:
        monkeypatch.setattr(hardened, "evaluate", unmeasured)
    assert call(["harden", *(w.replace("OWN", str(own)) for w in words), "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and error.startswith("unfooled: ")


def test_a_folder_that_exists_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert call(["harden", "digits-cnn", "--out", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_loss_that_fails_once_is_rolled_back_and_told(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"{own}/nets.py:Hiccup", "digits", "--recipe", "standard", "--epochs", "3", "--limit", "20"]
    assert call(["harden", *words, "--suite", "quick", "--out", str(tmp_path / "run")]) == 0
    said = "The loss was not finite in epoch 2: back to the last good epoch, and on with 0.5 of the learning rate"
    out = capsys.readouterr().out
    assert said in out and "threat: linf(0.1), the default" in out
    assert said in (tmp_path / "run" / "report.html").read_text()
    told = json.loads((tmp_path / "run" / "harden.json").read_text())
    assert [line["epoch"] for line in told["epochs"]] == [1, 2, 3]


def test_progress_tells_images_speed_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 10.0, 10.0, 20.0, 20.0, 20.0])
    monkeypatch.setattr(_progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    live = _progress.Live()
    live.training(Step(2, 4, 100, 900))
    live.training(Step(2, 4, 600, 900))
    said = capsys.readouterr().err.splitlines()
    assert said == ["epoch 2/4: 100/900 images", "epoch 2/4: 600/900 images · 50 images/s · about 42 s left"]


def test_recipes_are_listed_with_their_papers_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["list", "recipes", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(uf.harden.WAYS)
    assert "Madry" in rows["pgd"]["paper"] and rows["pgd"]["passes per image"] == "8 there and back"
    assert call(["list", "recipes"]) == 0
    assert "arXiv:1706.06083" in capsys.readouterr().out


@pytest.mark.slow
def test_two_workers_harden_at_the_command_line(tmp_path: Path) -> None:
    words = [*WORDS[:4], "--epochs", "1", "--suite", "quick", "--limit", "20", "--workers", "2", "--device", "cpu"]
    assert call([*words, "--out", str(tmp_path / "run")]) == 0
    told = json.loads((tmp_path / "run" / "harden.json").read_text())
    assert told["epochs"][0]["images"] == 900 and "--workers 2" in told["command"]
    assert sorted(p.name for p in (tmp_path / "run" / "training").iterdir())[-1] == "training.json"


@pytest.mark.slow
def test_a_hardening_that_was_killed_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    words = ["20" if w == "200" else w for w in WORDS]
    out, environment = tmp_path / "run", os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen([sys.executable, "-m", "unfooled", *words, "--out", str(out)], env=environment)
    until = time.monotonic() + 600
    while time.monotonic() < until and child.poll() is None and not (out / "training" / "training.json").exists():
        time.sleep(0.02)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert 0 < len(json.loads((out / "training" / "training.json").read_text())["lines"]) < 4
    assert call([*words, "--resume", str(out)]) == 0
    assert call([*words, "--out", str(tmp_path / "whole")]) == 0
    assert (out / "hardened.safetensors").read_bytes() == (tmp_path / "whole" / "hardened.safetensors").read_bytes()


def interrupted_at(monkeypatch: pytest.MonkeyPatch, look: int) -> None:
    """Let Ctrl-C come at this look of the progress of attacks, counted from 1 in every process."""
    looks, shown = iter(range(1, 10_000)), _progress.Live.__call__

    def press(self: _progress.Live, progress: object) -> None:
        if next(looks) == look:
            raise KeyboardInterrupt
        shown(self, progress)  # type: ignore[arg-type]

    monkeypatch.setattr(_progress.Live, "__call__", press)


def test_ctrl_c_while_measuring_before_trains_nothing_and_goes_on(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a run"
    with monkeypatch.context() as pressed:
        interrupted_at(pressed, 2)
        assert call([*WORDS, "--out", str(out)]) == 130
    said = capsys.readouterr()
    assert "Interrupted" in said.err and not said.out
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*")) == [
        "before",
        "before/journal.jsonl",
        "run.json",
    ]
    assert call(shlex.split(said.err.partition("go on with this run: ")[2].splitlines()[0])[1:]) == 0
    sentence = json.loads((made / "harden.json").read_text())["sentence"]
    assert json.loads((out / "harden.json").read_text())["sentence"] == sentence


def test_ctrl_c_while_measuring_after_keeps_training_and_what_was_measured(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as pressed:
        trained = harden.fit

        def fit(*words: object, **more: object) -> object:
            done = trained(*words, **more)  # type: ignore[arg-type]
            interrupted_at(pressed, 1)
            return done

        pressed.setattr(harden, "fit", fit)
        assert call([*WORDS, "--out", str(tmp_path / "run")]) == 130
    assert (tmp_path / "run" / "training" / "training.json").exists() and "--resume" in capsys.readouterr().err
    saved: list[float] = []
    close = Journal.close
    monkeypatch.setattr(Journal, "close", lambda self: (saved.append(self.saved), close(self))[1])
    assert call([*WORDS, "--resume", str(tmp_path / "run")]) == 0
    assert len(saved) == 2 and saved[0] > 0  # `before` was read, not measured again
    sentence = json.loads((made / "harden.json").read_text())["sentence"]
    assert json.loads((tmp_path / "run" / "harden.json").read_text())["sentence"] == sentence


def test_a_factory_that_draws_its_weights_goes_on_with_the_same(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["harden", f"{own}/nets.py:drawn", "digits", "--recipe", "standard", "--epochs", "4", "--suite", "quick"]
    words += ["--lr", "0.02", "--limit", "40", "--seed", "3"]
    with monkeypatch.context() as pressed:
        interrupted_at(pressed, 1)
        assert call([*words, "--out", str(tmp_path / "run")]) == 130
    assert call(shlex.split(capsys.readouterr().err.partition("go on with this run: ")[2].splitlines()[0])[1:]) == 0
    assert call([*words, "--out", str(tmp_path / "whole")]) == 0
    weights = [(tmp_path / name / "hardened.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]


def test_a_training_that_is_refused_after_the_first_measurement_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise uf.InputError("No.")

    monkeypatch.setattr(harden, "fit", refuse)
    assert call([*words_with("--limit", "20"), "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists() and "--resume" not in capsys.readouterr().err


def test_what_was_begun_with_a_budget_goes_on_with_its_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = uf.load_data("digits", split="train", limit=200)
    train, test = halves(data)

    def run(*, resume: bool, **more: object) -> int:
        target = uf.targets.resolve("digits-cnn")
        proof = harden_target(
            target, train, test, uf.linf(0.1), suite="quick", out=tmp_path / "t", resume=resume,
            **{"recipe": "fgsm-rs", "budget": 10, **more},
        )  # fmt: skip
        return len(proof.training.lines)

    monkeypatch.setattr(hardened, "_epoch_seconds", lambda *_, **__: 1.0)
    epochs = run(resume=False)
    monkeypatch.setattr(hardened, "_epoch_seconds", lambda *_, **__: 1.7)  # a slower machine
    assert 1 < epochs < 10 and run(resume=True) == epochs
    assert run(resume=True, budget=None) == epochs
    monkeypatch.setattr(hardened, "evaluate", unmeasured)
    for more, said in (
        ({"seed": 1}, "begun with seed 0, not 1"),
        ({"recipe": "n-fgsm"}, "begun with objective fgsm-rs, not n-fgsm"),
        ({"budget": None, "epochs": epochs + 1}, f"begun with epochs {epochs}, not {epochs + 1}"),
    ):
        with pytest.raises(uf.InputError, match=said):
            run(resume=True, **more)


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


NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def pictures(folder: Path, split: str, rows: slice, *, without: str = "", size: int = 8) -> Path:
    """Write digits as class folders named in English, which sort otherwise than their numbers."""
    data = uf.load_data("digits", split=split)
    for i, (x, y) in enumerate(zip(data.x[rows], data.y[rows].tolist(), strict=True)):
        if NAMES[y] != without:
            (folder / NAMES[y]).mkdir(parents=True, exist_ok=True)
            whole = x[0].repeat_interleave(size // 8, 0).repeat_interleave(size // 8, 1)
            Image.fromarray((whole * 255).round().to(torch.uint8).numpy()).save(folder / NAMES[y] / f"{i}.png")
    return folder


@pytest.mark.parametrize("listed", [False, True])
def test_folders_of_test_and_extra_pictures_are_labelled_and_sized_like_the_data(
    listed: bool, tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pictures(tmp_path / "data", "train", slice(100))
    fewer = pictures(tmp_path / "fewer", "test", slice(60), without="eight", size=16)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    given: list[uf.Data] = []

    def spy(target: uf.Target, train: uf.Data, held: uf.Data, *_: object, extra: uf.Data, **__: object) -> None:
        given.extend((train, held, extra))
        raise uf.InputError("Enough.")

    monkeypatch.setattr(hardened, "harden_target", spy)
    words = ["harden", f"{own}/nets.py:net", str(data), "--test", str(fewer), "--extra", str(fewer), "--resize", "8"]
    words += ["--classes", str(tmp_path / "names.txt")] if listed else []
    assert call([*words, "--out", str(tmp_path / "run")]) == 2
    assert len(given) == 3
    for each in given:
        assert each.classes == (NAMES if listed else tuple(sorted(NAMES))) and each.x.shape[1:] == (1, 8, 8)
        assert each.files and [each.classes[y] for y in each.y] == [file.partition("/")[0] for file in each.files]


def test_a_named_data_set_is_sized_and_named_alike_for_training_and_testing(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    given: list[uf.Data] = []

    def spy(target: uf.Target, train: uf.Data, held: uf.Data, *_: object, **__: object) -> None:
        given.extend((train, held))
        raise uf.InputError("Enough.")

    monkeypatch.setattr(hardened, "harden_target", spy)
    words = ["harden", f"{own}/nets.py:bare", "digits", "--resize", "16", "--classes", str(tmp_path / "names.txt")]
    assert call([*words, "--out", str(tmp_path / "run")]) == 2
    assert [each.x.shape[1:] for each in given] == [(1, 16, 16)] * 2 and all(each.classes == NAMES for each in given)


def test_a_class_that_the_data_do_not_have_is_refused_by_its_name(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hardened, "evaluate", unmeasured)
    data = pictures(tmp_path / "data", "train", slice(100), without="two")
    more = pictures(tmp_path / "more", "test", slice(60))
    words = ["harden", f"{own}/nets.py:net", str(data), "--out", str(tmp_path / "run")]
    for option, value, said in (
        ("--test", str(more), "The folder 'two' is none of the 9 classes: rename it, or leave it out."),
        ("--extra", str(more), "The folder 'two' is none of the 9 classes"),
        ("--extra", "digits", "digits calls label 0 '0', data calls it 'eight': give both the same class names"),
    ):
        assert call([*words, option, value]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_training_refuses_labels_that_have_other_names(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", "train", slice(100))
    fewer = pictures(tmp_path / "fewer", "test", slice(60), without="eight")
    shifted, train = uf.load_data(str(fewer)), uf.load_data(str(data))
    target = uf.targets.resolve("digits-cnn")
    how = {"threat": "linf(0.1)", "recipe": Recipe(epochs=1)}
    said = "fewer calls label 0 'five', data calls it 'eight': give both the same class names"
    for more in ({"validation": shifted}, {"extra": shifted}):
        with pytest.raises(uf.InputError, match=said):
            harden.fit(target.module, train, "standard", **how, **more)
    with pytest.raises(uf.InputError, match=said):
        harden_target(target, train, shifted, uf.linf(0.1), recipe="standard", epochs=1, suite="quick")
    unknown = replace(train, classes=train.classes[:9])
    with pytest.raises(uf.InputError, match="data calls label 9 'zero', data knows 9 classes and not this one"):
        harden.fit(target.module, unknown, "standard", **how, extra=train)
    for name in ("1", "2", "none"):
        shutil.copytree(data / "one", tmp_path / "mixed" / name)
    mixed = uf.load_data(str(tmp_path / "mixed"))
    shutil.rmtree(tmp_path / "mixed" / "none")  # what is left are numbers, which else are labels themselves
    assert load_alike(tmp_path / "mixed", mixed).y.unique().tolist() == [0, 1]
    kept, seen = uf.load_data(str(fewer), classes=train.classes), []
    for spec in (str(fewer), kept, (kept.x, kept.y)):  # by name, with the names of the data, without names
        done = harden.fit(uf.targets.resolve("digits-cnn").module, str(data), "standard", **how, validation=spec)
        seen.append(replace(done.lines[0], seconds=0, judging=0))
    assert seen[0] == seen[1] == seen[2]


def test_tied_weights_are_hardened_and_written(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef tied():\n    torch.manual_seed(0)\n"
        "    a, b = nn.Linear(64, 64), nn.Linear(64, 64)\n    b.weight = a.weight\n"
        "    return nn.Sequential(nn.Flatten(), a, nn.ReLU(), b, nn.ReLU(), nn.Linear(64, 10))\n"
    )
    words = ["harden", f"{tmp_path / 'mine.py'}:tied", "digits", "--threat", "linf(0.02)", "--epochs", "1"]
    assert call([*words, "--suite", "quick", "--limit", "20", "--out", str(tmp_path / "run")]) in (0, 3)
    state = load_file(tmp_path / "run" / "hardened.safetensors")
    assert torch.equal(state["1.weight"], state["3.weight"])
