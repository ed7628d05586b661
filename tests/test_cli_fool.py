"""`unfooled fool`: what it leaves behind, what it refuses, and an interrupted run that goes on."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unfooled.cli import _words
from unfooled.cli._app import call

FEW = ["--generations", "6", "--population", "24"]

MODEL = """
import time
import torch

class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 108, generator=torch.Generator().manual_seed(0)))
    def forward(self, x):
        time.sleep(0.02)
        return x.flatten(1) @ self.weight.T

def build():
    return Slow()

class Sure(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :4] * 0

def undecided():
    return Sure()
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MODEL)
    return f"{tmp_path / 'mine.py'}:build"


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert call([str(w) for w in ("fool", *words)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("unfooled: ") and said.err.count("\n") == 1
    return said.err


def numbers(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "fooled.npz", allow_pickle=False) as z:
        return dict(z)


def test_the_shipped_target_is_fooled_by_every_encoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["--encoding", "direct,cppn,gradient", "--steps", "20", "--runs", "2", "--until", "0.9999"]
    assert call(["fool", *words, "--generations", "60", "--population", "64", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {
        "run.json", "fool.json", "fooled.npz", "gallery.png", "curve.png", "diversity-direct.png", "diversity-cppn.png",
        *(f"archive-{kind}-{seed}.safetensors" for kind in ("direct", "cppn") for seed in (0, 1)),
    }  # fmt: skip
    made = numbers(out)
    assert made["images"].shape == (50, 1, 8, 8) and made["classes"].tolist() == list(range(10)) * 5
    assert made["encodings"].tolist() == ["direct"] * 20 + ["cppn"] * 20 + ["gradient"] * 10
    assert (made["confidences"] > 0.9).all()
    from unfooled import targets

    scores = targets.resolve("digits-cnn").scores(torch.from_numpy(made["images"]))
    again = scores.softmax(1)[torch.arange(50), torch.from_numpy(made["classes"])]
    assert np.allclose(again.detach().numpy(), made["confidences"], atol=1e-5)
    about = json.loads((out / "fool.json").read_text())
    assert [run["encoding"] for run in about["runs"]] == ["direct", "direct", "cppn", "cppn", "gradient"]
    assert len(about["diversity"]) == 2 and "random images" in said and str(out / "gallery.png") in said
    with Image.open(out / "gallery.png") as picture:
        assert picture.width > 1000 and picture.height > 800


def test_classes_are_named_or_numbered(tmp_path: Path, model: str) -> None:
    (tmp_path / "names.txt").write_text("ant, Formica\nbee\ncat\n")
    words = [model, "--shape", "3x6x6", "--classes-file", tmp_path / "names.txt", "--encoding", "direct", *FEW]
    assert call([str(w) for w in ("fool", *words, "--classes", "cat,0", "--out", tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "fool.json").read_text())["runs"][0]["rows"]
    assert [(row["class"], row["name"]) for row in rows] == [(2, "cat"), (0, "ant, Formica")]


def test_nothing_found_is_exit_code_1(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [model.replace("build", "undecided"), "--shape", "1x6x6", "--out", tmp_path / "out", *FEW]
    assert call([str(w) for w in ("fool", *words)]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--classes", "seven"], "There is no class 'seven'"),
        (["--classes", "12"], "the classes 0 to 9"),
        (["--classes", ",".join(map(str, range(11)))], "names 11 classes, but digits-cnn has only 10"),
        (["--classes", ","], "names no class"),
        (["--encoding", "pixels"], "direct, cppn, gradient"),
        (["--shape", "1x9x9"], "fails on an input of shape 1 x 9 x 9"),
        (["--shape", "64"], "for example 3x224x224"),
        (["--generations", "-1"], "at least 0"),
        (["--population", "0"], "at least 1"),
        (["--runs", "0"], "at least 1"),
        (["--until", "2"], "between 0 and 1"),
        (["--encoding", "gradient", "--regulariser", "tvv"], "'tv'"),
        (["no-such-target"], "no-such-target"),
    ],
)
def test_bad_words_are_refused_and_leave_nothing(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nearest_class_names_are_offered(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("gibbon, Hylobates lar\nostrich\nvulture\n")
    words = [model, "--shape", "3x6x6", "--classes-file", tmp_path / "names.txt", "--classes", "ostritch"]
    assert "'ostrich'" in refused(capsys, *words)


def test_the_shape_of_ones_own_target_must_be_said(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --shape" in refused(capsys, model)


def test_a_folder_that_is_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "exists already" in refused(capsys, "--out", tmp_path)
    assert "no run.json" in refused(capsys, "--resume", tmp_path)


@pytest.mark.parametrize(("package", "extra"), [("ribs", "evolve"), ("matplotlib", "explain")])
def test_missing_extras_are_named_before_the_work(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(_words, "find_spec", lambda name: None if name == package else found(name))
    assert f"unfooled[{extra}]" in refused(capsys)


def test_a_finished_run_goes_on_for_more_generations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    ask = ["--encoding", "cppn", "--population", "24", "--seed", "3"]
    assert call(["fool", *ask, "--generations", "9", "--out", str(whole)]) == 0
    assert call(["fool", *ask, "--generations", "4", "--out", str(part)]) == 0
    assert call(["fool", "--resume", str(part), "--generations", "9"]) == 0
    one, two = numbers(whole), numbers(part)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert "--seed is 5 here and 3" in refused(capsys, "--resume", part, "--seed", "5")
    assert "--generations is 2 here" in refused(capsys, "--resume", part, "--generations", "2")


def test_an_archive_of_another_target_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert call(["fool", "--encoding", "direct", *FEW, "--out", str(out)]) == 0
    about = json.loads((out / "run.json").read_text())
    about["settings"]["words"]["target"] = "digits-cnn-robust"
    (out / "run.json").write_text(json.dumps(about))
    assert "has another target" in refused(capsys, "--resume", out)


def test_an_interrupted_run_keeps_its_archive_and_goes_on(tmp_path: Path, model: str) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    ask = [model, "--shape", "3x6x6", "--encoding", "direct", "--generations", "100", "--population", "16"]
    process = subprocess.Popen(
        [sys.executable, "-m", "unfooled", "fool", *ask, "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    assert "generation" in process.stderr.readline()
    time.sleep(0.5)  # some generations of 20 ms
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and f"unfooled fool --resume {out}" in rest
    stopped = json.loads((out / "fool.json").read_text())["runs"][0]
    assert stopped["interrupted"] and 0 < stopped["generations"] < 100
    assert call(["fool", "--resume", str(out)]) == 0
    assert call(["fool", *ask, "--out", str(whole)]) == 0
    one, two = numbers(whole), numbers(out)
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_the_default_takes_seconds(tmp_path: Path) -> None:
    begun = time.process_time()
    assert call(["fool", "--out", str(tmp_path / "out")]) == 0
    assert time.process_time() - begun < 60
