"""`unfooled certify`: the bracket, its files and its picture, contradictions said loudly, and kind errors."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import unfooled as uf
from unfooled.certify.smoothing import largest_radius
from unfooled.cli import _progress
from unfooled.cli._app import call
from unfooled.core.result import Progress
from unfooled.evaluate import bracket as room
from unfooled.evaluate.bracket import Bracket, bracket
from unfooled.testing import Linear, linear_distance


@pytest.fixture(scope="module")
def linear() -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a linear classifier of two classes, inputs, labels (one wrong), and the exact Linf distances."""
    torch.manual_seed(1)
    net = Linear(torch.randn(2, 12), torch.randn(2))
    x = torch.rand(20, 12)
    y = net(x).argmax(1)
    y[3] = 1 - y[3]
    exact = torch.from_numpy(linear_distance(net, x, net(x).argmax(1), "linf"))
    module = nn.Sequential(nn.Linear(12, 2))
    module[0].load_state_dict({"weight": net.weight.detach(), "bias": net.bias.detach()})
    return module, x, y, exact.masked_fill(torch.arange(20) == 3, 0.0)


def test_on_a_linear_classifier_the_bracket_closes_at_the_truth(linear: tuple) -> None:
    module, x, y, exact = linear
    eps = float(exact.median()) + 1e-3
    found = bracket(module, x, y, uf.linf(eps), suite="quick")
    truth = exact > eps
    near = (exact - eps).abs() < 1e-3
    assert bool((found.certified == truth)[~near].all()) and bool((found.attacked == truth)[~near].all())
    assert not bool(found.clean[3]) and float(found.radius[3]) == 0
    assert bool((found.radius <= exact + 1e-9).all()) and bool((found.reach >= exact - 1e-6).all())
    assert found.contradictions == () and found.method == "ibp, then crown"
    told = found.sentence()
    assert f"between {float(truth.double().mean()):.1%}" in told and "CONTRADICTION" not in told
    assert len(found.rows()) == 20 and found.rows()[3]["clean"] is False


def test_a_certificate_that_claims_too_much_is_named(linear: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, y, exact = linear
    eps = float(exact.median()) + 1e-3

    def boasting(*args: object, **kwargs: object) -> torch.Tensor:
        return torch.full((len(args[1]),), 2 * eps, dtype=torch.float64)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "certified_radius", boasting)
    found = bracket(module, x, y, uf.linf(eps), suite="quick", method="ibp")
    wrong = tuple(i for i in range(20) if 0 < float(exact[i]) < 1.9 * eps)
    assert set(wrong) <= set(found.contradictions) and 3 not in found.contradictions
    assert found.sentence().startswith("CONTRADICTION") and f"first: {found.contradictions[0]}," in found.sentence()


def test_the_smoothed_classifier_is_bracketed_in_the_targets_place(linear: tuple) -> None:
    """Of two classes with a plane between them the smoothed classifier is the target: its L2 distances are exact."""
    module, x, y, _ = linear
    net = Linear(module[0].weight.detach(), module[0].bias.detach())
    free = torch.from_numpy(linear_distance(net, x, net(x).argmax(1), "l2", bounds=None))
    found = bracket(module, x, y, uf.l2(0.3), method="smoothing", sigma=0.15, draws=2000)
    assert bool((found.radius <= free + 1e-6).all())
    assert not bool(found.clean[3]) and found.contradictions == ()
    boxed = torch.from_numpy(linear_distance(net, x, net(x).argmax(1), "l2"))
    assert bool((found.reach[found.clean] >= boxed[found.clean] - 0.02).all())  # majority of draws, near the plane
    far = free > 0.36
    assert bool(found.certified[far & (y == net(x).argmax(1))].all())
    near = found.clean & (boxed < 0.22)
    assert int(near.sum()) >= 2 and not bool(found.attacked[near].any())
    told = found.sentence()
    assert "not about Sequential itself" in told and "at most 0.001" in told
    again = bracket(module, x, y, uf.l2(0.3), method="smoothing", sigma=0.15, draws=2000)
    assert torch.equal(again.reach, found.reach) and torch.equal(again.radius, found.radius)


def made(radius: list[float], reach: list[float], status: str = "trusted", unsure: int = 0) -> Bracket:
    abstained = torch.arange(len(reach)) < unsure
    clean = torch.tensor([r > 0 for r in reach]) & ~abstained
    return Bracket(
        clean, abstained, torch.tensor(radius).double(), torch.tensor(reach).double(), torch.zeros(len(reach)).long(),
        0.1, "linf(0.1)", "net", "data", "crown", "suite quick", status,
    )  # fmt: skip


def test_the_curves_count_what_they_say() -> None:
    found = made([0.05, 0.1, 0.2, 0.0], [0.06, 0.1, math.inf, 0.0])
    certified, attacked = found.curve(torch.tensor([0.0, 0.05, 0.1, 0.2]))
    assert certified.tolist() == [0.75, 0.75, 0.5, 0.25] and attacked.tolist() == [0.75, 0.75, 0.25, 0.25]
    assert found.certified.tolist() == [False, True, True, False]
    assert made([0.2], [0.1]).contradictions == (0,) and found.contradictions == ()
    assert found.image().startswith(b"\x89PNG") and found.image() == found.image()


def test_a_bracket_prints_as_its_sentence() -> None:
    found = made([0.05] * 500, [0.2] * 500)
    assert repr(found) == str(found) == found.sentence() and len(str(found)) < 400


@pytest.mark.parametrize(("sigma", "draws", "few"), [(0.15, 30, True), (0.05, 2000, True), (0.15, 2000, False)])
def test_draws_that_cannot_certify_the_eps_are_said_with_what_would_do(
    linear: tuple, sigma: float, draws: int, *, few: bool
) -> None:
    module, x, y, _ = linear
    found = bracket(module, x[:2], y[:2], uf.l2(0.3), method="smoothing", sigma=sigma, draws=draws)
    told = re.search(r"to certify 0.3, take (?:([\d,]+) draws or )?a sigma of ([\d.]+)\.$", found.sentence())
    assert bool(told) is few and (not few or not bool(found.certified.any()))
    if told:
        assert largest_radius(float(told[2]), draws, 0.001) >= 0.3 > largest_radius(0.97 * float(told[2]), draws, 0.001)
        if told[1]:
            enough = int(told[1].replace(",", ""))
            assert largest_radius(sigma, enough, 0.001) >= 0.3 > largest_radius(sigma, enough - 1, 0.001)


def test_the_verdict_on_the_attacks_is_told_and_decides_the_exit_code() -> None:
    for status, code in (("trusted", 0), ("not judged", 0), ("suspect: E1", 3), ("withheld: A1", 4)):
        found = made([0.05], [0.2], status)
        assert found.exit_code == code and f"Verdict on the attacks: {status}." in found.sentence()
    assert made([0.2], [0.1]).exit_code == 3


def test_what_was_abstained_on_stands_until_an_attack_shows_another_class() -> None:
    found = made([0.0, 0.0, 0.2], [math.inf, 0.05, math.inf], unsure=2)
    assert found.clean.tolist() == [False, False, True] and found.attacked.tolist() == [True, False, True]
    assert found.curve(torch.tensor([0.01, 0.1]))[1].tolist() == pytest.approx([1, 2 / 3])
    assert "On 2 examples it abstained" in found.sentence()


def test_the_command_writes_numbers_a_picture_and_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["certify", "digits-cnn-robust", "--threat", "linf(0.02)", "--limit", "4", "--suite", "quick"]
    assert call([*words, "--out", str(out)]) == 0
    told = json.loads((out / "certify.json").read_text())
    assert 0 < told["certified"] <= told["attacked"] <= told["clean"] <= told["n"] == 4
    assert told["contradictions"] == [] and len(told["examples"]) == 4
    assert "--threat 'linf(0.02)'" in told["command"] and "--out" not in told["command"]
    assert (out / "certified.png").read_bytes().startswith(b"\x89PNG")
    assert "lies between" in capsys.readouterr().out
    assert call([*words, "--out", str(out)]) == 2


def test_ctrl_c_keeps_the_certificates_and_what_the_attacks_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    certified = set()
    for attack, said in (("pgd", "by suite quick;"), ("fmn", "until it was interrupted;")):

        def press(_: object, progress: Progress, attack: str = attack) -> None:
            if progress.attack.startswith(attack):
                raise KeyboardInterrupt

        monkeypatch.setattr(_progress.Live, "__call__", press)
        ask = ["digits-cnn", "--threat", "linf(0.01)", "--suite", "quick", "--limit", "40"]
        assert call(["certify", *ask, "--out", str(tmp_path / attack)]) == 130
        assert said in capsys.readouterr().out
        told = json.loads((tmp_path / attack / "certify.json").read_text())
        assert told["interrupted"] and len(told["examples"]) == 40
        certified.add(told["certified"])
    assert len(certified) == 1 and certified.pop() > 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digits-cnn", "--sigma", "0.25"], "--sigma belongs to --method smoothing"),
        (["digits-cnn", "--draws", "0"], "--draws must be at least 1"),
        (["digits-cnn", "--method", "magic"], "magic"),
        (["digits-cnn", "--method", "smoothing", "--limit", "2"], "in L2, such as l2"),
        (["digits-cnn", "--method", "smoothing", "--threat", "l2(0.5)", "--alpha", "2", "--limit", "2"], "alpha"),
        (["digits-cnn", "--method", "smoothing", "--threat", "l2(0.5)", "--sigma", "inf", "--limit", "2"], "finite"),
        (["digits-cnn", "--threat", "linf", "--limit", "2"], "is no threat"),
        (["digits-cnn", "--threat", "l0(3)", "--limit", "2"], "Linf, L2 or L1"),
        (
            ["FILE:sigmoids", "digits", "--threat", "linf(0.1)", "--limit", "2"],
            "Layer '2': There are no bounds through a",
        ),
        (["FILE:sigmoids", "digits", "--threat", "linf(0.1)", "--limit", "2"], "in L2: --method smoothing."),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_folder(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef sigmoids():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Sigmoid(), nn.Linear(20, 10))\n"
    )
    words = [w.replace("FILE", str(tmp_path / "net.py")) for w in words]
    assert call(["certify", *words, "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and "Traceback" not in told
    assert not (tmp_path / "run").exists()


def test_data_of_the_users_own_are_certified(tmp_path: Path, linear: tuple) -> None:
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "d.npz", images=(x.numpy() * 255).astype(np.uint8), labels=np.arange(6))
    words = ["certify", "digits-cnn", str(tmp_path / "d.npz"), "--threat", "l2(0.2)", "--method", "smoothing"]
    assert call([*words, "--draws", "300", "--out", str(tmp_path / "run")]) == 0
    told = json.loads((tmp_path / "run" / "certify.json").read_text())
    assert told["sigma"] == 0.1 and told["draws"] == 300 and "smoothed" in told["sentence"]
