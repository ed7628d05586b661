"""Verify: stored examples are asked about again; a changed verdict, target or file is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import unfooled as uf
from unfooled import report
from unfooled.cli._app import call
from unfooled.errors import InputError
from unfooled.evaluate.verify import verify, words


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = [
        "evaluate",
        "digits-cnn",
        "digits",
        "--suite",
        "quick",
        "--limit",
        "24",
        "--no-curve",
        "--out",
        str(out),
    ]
    assert call(arguments) in (0, 3)
    return out


@pytest.fixture
def run(run_dir: Path, tmp_path: Path) -> Path:
    for file in ("run.json", "summary.json", "adversarials.npz"):
        (tmp_path / file).write_bytes((run_dir / file).read_bytes())
    return tmp_path


def change(run: Path, **arrays: Any) -> None:
    with np.load(run / "adversarials.npz") as file:
        stored = {**file, **arrays}
    np.savez_compressed(run / "adversarials.npz", **stored)


def stored(run: Path, name: str) -> np.ndarray:
    with np.load(run / "adversarials.npz") as file:
        return file[name].copy()


def test_a_run_verifies(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = json.loads((run / "summary.json").read_text())["counts"]["broken"]
    assert broken > 5
    assert call(["verify", str(run)]) == 0
    assert capsys.readouterr().out == f"Re-scored {broken} stored examples: all verdicts stand.\n"
    assert verify(run, "digits-cnn").same and verify(run, uf.targets.resolve("digits-cnn")).total == broken


def test_examples_that_do_not_fool_or_lie_outside_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, x_adv, index = (stored(run, name) for name in ("x", "x_adv", "index"))
    x_adv[1] = x[1]
    x_adv[2] = np.where(x_adv[2] > x[2], x_adv[2] + 1e-4, x_adv[2])
    x_adv[3, 0, 0, 0] = np.nan
    change(run, x_adv=x_adv)
    found = verify(run)
    assert list(found.changed) == index[1:4].tolist()
    assert "no success" in found.changed[index[1]] and "outside" in found.changed[index[2]]
    assert "outside" in found.changed[index[3]]
    assert call(["verify", str(run)]) == 1
    assert f"{found.total - 3} verdicts stand, 3 changed: {index[1]} (" in capsys.readouterr().out


def test_another_target_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["verify", str(run), "digits-cnn-robust"]) == 2
    assert "is not the one of this run" in capsys.readouterr().err
    model = uf.targets.resolve("digits-cnn")
    assert isinstance(model.module, nn.Module)
    with torch.no_grad():
        next(model.module.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(InputError, match="fingerprint"):
        verify(run, model)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", None, "run.json cannot be read"),
        ("run.json", b"{", "is no JSON"),
        ("run.json", b"[]", "holds no JSON object"),
        ("run.json", b"{}", "no target_fingerprint"),
        ("summary.json", b'{"counts": {"broken": 1}}', "summary.json counts 1"),
        ("adversarials.npz", None, "holds no adversarials.npz"),
        ("adversarials.npz", b"PK\x03\x04", "damaged"),
        ("adversarials.npz", b"\x80\x04K\x01.", "damaged"),
    ],
)
def test_damaged_runs_are_sentences(run: Path, file: str, content: bytes | None, message: str) -> None:
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        verify(run)


def test_pickles_in_the_examples_never_run(run: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "pwned",))

    change(run, x=np.array([Evil()] * len(stored(run, "index")), dtype=object))
    with pytest.raises(InputError, match="damaged"):
        verify(run)
    assert not (tmp_path / "pwned").exists()


def test_targets_given_in_python_must_be_given_again(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval()
    x = torch.rand(20, 1, 4, 4)
    y = net(x).argmax(1)
    to = (y + 1) % 4
    for name, goal in (("free", None), ("aimed", uf.Targeted(to=to))):
        result = uf.evaluate(net, x, y, "linf(0.5)", suite=["pgd(steps=8)"], goal=goal)
        assert result.count(uf.Status.BROKEN) > 3
        run = report.write(result, tmp_path / name)
        with pytest.raises(InputError, match="given in Python"):
            verify(run)
        assert verify(run, net).same
        y_other = stored(run, "label_adv")
        change(run, label_adv=(y_other + 1) % 4)
        assert verify(run, net).same == (goal is None), "a wanted class is part of the verdict"


def test_the_words_about_the_target_are_read_from_the_command() -> None:
    command = "unfooled evaluate 'my file.py:net' digits --threat 'linf(0.1)' --mean 0.5,0.4 --reject last --seed 0"
    assert words({"command": command}) == ("my file.py:net", {"mean": "0.5,0.4", "reject": "last"}, [])
    for other in ("", "unfooled evaluate", "rm -rf x y", "unfooled 'evaluate", None):
        assert words({"command": other}) == (None, {}, [])
