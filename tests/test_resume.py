"""Evaluations that are killed, interrupted or terminated, and go on: the library's and the command line's."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import unfooled as uf
from unfooled.cli._app import call
from unfooled.core import record
from unfooled.core.data import load_data
from unfooled.errors import InputError

ROWS = ("x_adv", "robust", "margin", "distance", "label_adv", "confidence_adv", "steps_to_break", "forward", "backward",
        "on_grid")  # fmt: skip


def found(result: uf.Evaluation) -> str:
    """Return everything that an evaluation found and counted, times aside, as text that holds every bit."""
    out: dict[str, Any] = {}
    for name in ROWS:
        value: Tensor = getattr(result, name)
        out[name] = value.contiguous().reshape(-1).view(torch.uint8).tolist()
    out["outcome"], out["by"] = [str(o) for o in result.outcome], result.broken_by
    out["table"] = [(r.name, r.attempted, r.broken, r.forward, r.backward, r.skipped) for r in result.attacks]
    out["verdict"], out["findings"] = result.verdict, [(f.id, f.consequence, f.figure) for f in result.findings]
    out["curve"] = [(p.eps, p.robust_accuracy) for p in result.curve or []]
    out["settings"] = {k: v for k, v in result.settings.items() if k in ("padding", "overrun", "vanished", "checks")}
    return json.dumps(out)


def measure(journal: Path | None = None) -> uf.Evaluation:
    suite = ["pgd(steps=5)", "square(queries=15)"]
    data = load_data("digits", limit=12)
    return uf.evaluate("digits-cnn", data, threat="linf(0.06)", suite=suite, batch_size=1, curve=True, journal=journal)


def test_an_evaluation_killed_until_it_is_done_equals_an_undisturbed_one(tmp_path: Path) -> None:
    measure()
    begun = time.monotonic()
    expected = found(measure())
    seconds, g, kills = time.monotonic() - begun, random.Random(0), 0
    while True:
        child = os.fork()
        if not child:
            try:
                (tmp_path / "found").write_text(found(measure(tmp_path / "j.jsonl")))
            except BaseException as error:
                (tmp_path / "error").write_text(repr(error))
            os._exit(0)
        if kills < 5:  # then in peace
            time.sleep(g.uniform(0.1, 0.4) * seconds)
            os.kill(child, signal.SIGKILL)
        if os.WIFEXITED(os.waitpid(child, 0)[1]):
            break
        kills += 1
    assert not (tmp_path / "error").exists(), (tmp_path / "error").read_text()
    assert (tmp_path / "found").read_text() == expected and kills >= 2


def test_a_resumed_evaluation_refuses_another_target_data_or_setting(tmp_path: Path) -> None:
    data, path = load_data("digits", limit=6), tmp_path / "j.jsonl"

    def again(target: str = "digits-cnn", count: int = 6, **more: Any) -> uf.Evaluation:
        settings = {"threat": "linf(0.05)", "suite": ["fgsm()"], "seed": 0} | more
        return uf.evaluate(target, data.x[:count], data.y[:count], journal=path, **settings)

    again()
    again()
    before = path.read_bytes()
    for field, change in {"target": {"target": "digits-cnn-robust"}, "data": {"count": 5},
                          "attacks": {"suite": ["bim()"]}, "threat": {"threat": "linf(0.06)"},
                          "seed": {"seed": 1}, "queries": {"queries": 50},
                          "width": {"batch_size": 3}, "access": {"access": uf.Access.SCORES}}.items():  # fmt: skip
        with pytest.raises(InputError, match=f"belongs to another run: {field} differs"):
            again(**change)
    assert path.read_bytes() == before


WORDS = ["digits-cnn", "digits", "--suite", "quick", "--limit", "24", "--batch-size", "1", "--seed", "5", "--no-curve"]


def start(*words: str, folder: Path) -> "subprocess.Popen[str]":
    code = "from unfooled.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, "evaluate", *words], stdout=subprocess.PIPE, cwd=folder,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def wait_for_chunks(journal: Path, count: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if journal.exists() and journal.read_bytes().count(b'{"chunk"') >= count:
            return
        time.sleep(0.005)
    raise AssertionError("no work was done in a minute")


def rows_of(folder: Path) -> tuple[Any, list[Any]]:
    summary = json.loads((folder / "summary.json").read_text())
    with np.load(folder / "adversarials.npz") as file:
        return summary["counts"], [file[name].tobytes() for name in ("index", "x_adv", "label_adv")]


def test_the_command_line_goes_on_after_kill_and_terminate(tmp_path: Path) -> None:
    assert call(["evaluate", *WORDS, "--out", str(tmp_path / "whole")]) in (0, 3)
    killed = start(*WORDS, "--out", "run", folder=tmp_path)
    wait_for_chunks(tmp_path / "run" / "journal.jsonl", 2)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "run" / "report.html").exists()
    half = (tmp_path / "run" / "journal.jsonl").read_bytes()
    stopped = start("--resume", "run", folder=tmp_path)
    time.sleep(0.2)
    wait_for_chunks(tmp_path / "run" / "journal.jsonl", half.count(b'{"chunk"') + 1)
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate(timeout=60)
    if stopped.returncode != 0 or "to go on" in said[1]:  # else it was done already
        assert stopped.returncode == 130 and "Traceback" not in said[1]
        assert "to go on with this run: unfooled evaluate --resume run" in said[1]
    ended = start("--resume", "run", folder=tmp_path)
    said = ended.communicate(timeout=120)
    assert ended.returncode in (0, 3), said
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")
    assert "note: Resumed: " in said[0] and "pairs were done already, of 24 examples" in said[0]
    words = [json.loads((tmp_path / name / "run.json").read_text())["settings"]["words"] for name in ("run", "whole")]
    assert words[0] == words[1]
    assert call(["verify", str(tmp_path / "run")]) == 0


def test_a_flag_that_differs_is_refused_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert call(["evaluate", "digits-cnn", "--suite", "quick", "--limit", "5", "--no-curve", "--out", str(run)]) in (
        0,
        3,
    )
    capsys.readouterr()
    for flags, name in ((["--seed", "4"], "--seed is 4 here and 0"), (["--limit", "6"], "--limit is 6 here and 5"),
                        (["digits-cnn-robust"], "--target is digits-cnn-robust here")):  # fmt: skip
        assert call(["evaluate", *flags, "--resume", str(run)]) == 2
        assert name in capsys.readouterr().err
    assert call(["evaluate", "--limit", "5", "--resume", str(run)]) in (0, 3)
    (run / "notes.txt").write_text("mine")
    assert call(["evaluate", "--resume", str(run)]) == 2
    assert "notes.txt" in capsys.readouterr().err
    (run / "notes.txt").unlink()
    for content in ("{}", '{"settings": {"words": {"target": ["x"]}}}', "["):
        (run / "run.json").write_text(content)
        assert call(["evaluate", "--resume", str(run)]) == 2
    assert call(["evaluate", "--resume", str(tmp_path / "nowhere")]) == 2


def test_a_run_in_which_nothing_was_finished_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "none.py").write_text("def net():\n    def f(x):\n        raise ValueError('no')\n    return f\n")
    out = tmp_path / "out"
    assert call(["evaluate", f"{tmp_path / 'none.py'}:net", "digits", "--limit", "5", "--out", str(out)]) == 2
    assert not out.exists()
    other = record.new_run(tmp_path / "other")
    (other / "mine.txt").write_text("")
    record.forget(other)
    assert (other / "mine.txt").exists()
