"""`unfooled explain`: one image, one page, a control beside every measurement, and kind errors."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import unfooled as uf
from unfooled.cli._app import call
from unfooled.evaluate.explained import explain_image, family
from unfooled.explain.example import example
from unfooled.report import example as page
from unfooled.testing import Linear

pytest.importorskip("matplotlib")

PARTS = {
    "along", "region", "between", "distance", "manifold", "frequency", "transfer", "values", "neighbours", "sought",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("explain") / "page"
    assert call(["explain", "digits-cnn", "3", "--out", str(out)]) == 0
    return out


def test_the_page_answers_every_question_with_a_figure_and_numbers(made: Path) -> None:
    told = json.loads((made / "explanation.json").read_text())
    assert PARTS <= set(told["sentences"])
    assert not set(told["omitted"]) & PARTS
    html = (made / "explanation.html").read_text()
    for name, sentence in told["sentences"].items():
        assert f'<section id="{name}">' in html and (made / f"{name}.png").stat().st_size > 5000
        assert len(sentence) > 30 and told["rows"][name]
    assert "<script" not in html and "http" not in html.replace("https://", "http").split("<body>")[1]
    assert told["attack"]["success"] and told["forward"] > 1000


def test_the_numbers_are_those_of_the_images(made: Path) -> None:
    told = json.loads((made / "explanation.json").read_text())
    assert told["attack"]["original"]["name"] != told["attack"]["adversarial"]["name"]
    assert told["attack"]["noise_draws"] == 16
    relatives = {row["target"] for row in told["rows"]["transfer"]}
    assert {"digits-cnn-robust", "linear", "nearest neighbour", "forest"} <= relatives


def test_the_same_seed_makes_the_same_numbers(made: Path, tmp_path: Path) -> None:
    assert call(["explain", "digits-cnn", "3", "--out", str(tmp_path / "again")]) == 0
    first, again = (json.loads((d / "explanation.json").read_text()) for d in (made, tmp_path / "again"))
    assert first["rows"] == again["rows"] and first["sentences"] == again["sentences"]


def test_a_changed_picture_that_is_given_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["attack", "3", "--out", str(tmp_path / "made")]) == 0
    pictures = [str(tmp_path / "made" / f"{name}.png") for name in ("original", "adversarial")]
    words = ["explain", "digits-cnn", pictures[0], "--adversarial", pictures[1], "--against", "digits-cnn-robust"]
    assert call([*words, "--out", str(tmp_path / "page")]) == 0
    told = json.loads((tmp_path / "page" / "explanation.json").read_text())
    assert told["attack"]["attack"] == "given" and told["attack"]["source"] == "original.png"
    assert {row["target"] for row in told["rows"]["transfer"]} == {"digits-cnn", "digits-cnn-robust"}
    assert "--against digits-cnn-robust" in told["command"]
    capsys.readouterr()
    assert call([*words[:4], pictures[0], "--out", str(tmp_path / "none")]) == 2
    assert "is the original" in capsys.readouterr().err and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digits-cnn", "9999"], "images 0 to 796"),
        (["digits-cnn", "3", "--to", "eleven"], "no class 'eleven'"),
        (["digits-cnn", "3", "--threat", "linf(1/255)"], "nothing to explain"),
        (["digits-ccn", "3"], "digits-cnn"),
        (["digits-cnn", "no-such.png"], "no-such.png"),
        (["digits-cnn", "3", "--steps", "0"], "--steps"),
        (["digits-cnn", "3", "--against", "mnist-cnn"], "mnist-cnn fails on an input of shape 1 x 8 x 8"),
        (["digits-cnn", "3", "--adversarial", "no-such.png"], "no-such.png"),
        (["digits-cnn", "3", "--adversarial", "x.png", "--to", "4"], "leave out --to"),
        (["digits-cnn", "3", "--against", "digits-cnn"], "is the target itself"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page"
    assert call(["explain", *words, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not out.exists()


def test_an_existing_folder_is_not_touched(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in made.iterdir()}
    assert call(["explain", "digits-cnn", "3", "--out", str(made)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert {p.name: p.stat().st_mtime_ns for p in made.iterdir()} == before


def test_what_a_target_cannot_be_asked_is_left_out_with_the_reason() -> None:
    torch.manual_seed(0)
    net = Linear(torch.randn(3, 64), torch.zeros(3))
    x = torch.rand(1, 8, 8)
    target = uf.Target(lambda v: net(v.flatten(1)), access=uf.Access.LABEL)
    label = int(net(x.flatten()[None]).argmax())
    other = (label + 1) % 3
    x_adv = (x + 0.5 * (net.weight[other] - net.weight[label]).sign().view(1, 8, 8)).clamp(0, 1)
    with pytest.raises(uf.AccessError, match="scores access"):
        example(target, x, x_adv)
    scores = uf.Target(lambda v: net(v.flatten(1)), access=uf.Access.SCORES)
    found = example(scores, x, x_adv)
    assert "no natural examples" in found.omitted["manifold"] and "no other target" in found.omitted["transfer"]
    assert {"along", "region", "distance", "frequency"} <= {part.name for part in found.parts}
    straight = next(part.found for part in found.parts if part.name == "along")
    assert float(straight.fit.min()) > 0.9999  # a linear target's logits are lines


def test_names_are_text_on_the_page(tmp_path: Path) -> None:
    torch.manual_seed(0)
    evil = "<script>alert(1)</script>\u202e"
    target = uf.Target(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), name=evil, classes=[evil, "b", "c"])
    single, found = explain_image(torch.rand(1, 8, 8), target, relatives={})
    html = (page.write(single, found, tmp_path / "page", command=evil) / "explanation.html").read_text()
    assert "<script>" not in html and "\u202e" not in html and "&lt;script&gt;" in html


def test_the_simple_relatives_know_their_images() -> None:
    data = uf.load_data("digits", split="train")
    test = uf.load_data("digits")
    kin = family(data)
    for name, target in kin.items():
        right = (target.scores(test.x.double()).argmax(1) == test.y).float().mean()
        assert float(right) > 0.85, name
    assert family(uf.load_data((data.x[:1], data.y[:1]))) == {}


def test_a_target_without_gradients_is_attacked_by_its_scores(tmp_path: Path) -> None:
    data = uf.load_data("digits", split="train")
    forest = family(data)["forest"]
    test = uf.load_data("digits")
    single, found = explain_image(3, forest, data=test, examples=data, relatives={})
    assert single.success and single.attack.startswith("square") and "access" in found.omitted["values"]
    assert "region" in {part.name for part in found.parts}
