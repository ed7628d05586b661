"""The classic MNIST numbers at tiny scale: the networks' controls, intervals and rows against what is known exactly."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import classic, nets
from unfooled.core.fit import standard
from unfooled.stats import wilson


@pytest.fixture
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, object]]:
    """A few images of two bright halves, networks of a few units and epochs; return the rows that are written."""
    luck = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 10
    x = 0.3 * torch.rand(120, 1, 28, 28, generator=luck)
    x.view(120, 784)[torch.arange(120)[:, None], (y * 70)[:, None] + torch.arange(70)] += 0.6
    rows: dict[str, dict[str, object]] = {}

    def read() -> tuple[Tensor, Tensor]:
        return x, y

    monkeypatch.setattr(nets, "FOLDER", tmp_path)
    monkeypatch.setattr(nets, "training", read)
    monkeypatch.setattr(classic.published, "images", lambda name, rows=slice(None): (x[rows], y[rows]))
    monkeypatch.setattr(classic.results, "write", lambda table, case, entry: rows.__setitem__(case, entry))
    monkeypatch.setattr(classic, "KINDS", {
        name: classic.Kind(kind.words, kind.objective, 3) for name, kind in classic.KINDS.items()
    })  # fmt: skip
    monkeypatch.setattr(classic, "TRAINED", {"batch_size": 20, "lr": 5e-3})
    monkeypatch.setattr(classic, "CONVOLUTIONAL", {"plain": 1, "mixed": 1})
    monkeypatch.setattr(classic, "SUITE", "pgd(steps=2)")
    monkeypatch.setattr(classic, "SUITE_IMAGES", 10)
    monkeypatch.setattr(classic, "SUITE_EPS", (0.1,))
    monkeypatch.setattr(classic, "REPLICATES", 50)
    return rows


def test_every_case_writes_the_rows_of_its_seeds(small_world: dict[str, dict[str, object]]) -> None:
    classic.main(["plain", "mixed", "corners", "uniform", "compared", "decay", "--seeds", "0,1", "--units", "6"])
    for case in ("clean-plain-6", "gain-6", "fgsm-mixed-6", "transfer-old-on-new-6", "clean-corners-6", "l1-0.0025-6",
                 "confidence-uniform-6"):  # fmt: skip
        assert small_world[case]["seeds"] == [0, 1] and len(small_world[case]["by_seed"]) == 2
    fgsm, clean = small_world["fgsm-plain-6"], small_world["clean-plain-6"]
    assert 100 * fgsm["ours"] >= clean["ours"] and fgsm["n"] == 120
    gain = small_world["gain-6"]
    assert gain["ours"] == pytest.approx(clean["ours"] - small_world["clean-mixed-6"]["ours"], abs=2e-3)
    assert small_world["clean-plain-6"]["published"] is None and classic.PUBLISHED["plain", 1600]["clean"] == 1.14


def test_the_suite_leaves_no_more_than_one_step_does(small_world: dict[str, dict[str, object]]) -> None:
    classic.main(["convolutional"])
    assert small_world["cnn-gain"]["verdict"] == "undecided with one seed"
    for kind in ("plain", "mixed"):
        row = small_world[f"cnn-suite-{kind}-0.1"]
        assert row["seeds"] == [0] and row["n"] == 10 and row["status"] and "under FGSM" in row["note"]
        net = classic.Setup().convolutional(kind)[0]
        x, y = classic.published.images("mnist", slice(10))
        assert 0 <= row["ours"] <= 1 - net.errors(net.stepped(x, y, 0.1), y).share


def test_a_network_is_trained_once_and_read_again(small_world: dict[str, dict[str, object]]) -> None:
    setup = classic.Setup((0, 1), 6)
    first, other = setup.networks("plain")
    again = setup.networks("plain")[0]
    assert again.seconds == first.seconds > 0
    states = [net.module.state_dict() for net in (first, again, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_logistic_regression_falls_where_its_weights_say(small_world: dict[str, dict[str, object]]) -> None:
    classic.main(["logistic", "--seeds", "0,1"])
    plain, trained = small_world["logistic-fgsm-plain"], small_world["logistic-fgsm-trained"]
    assert small_world["logistic-clean-plain"]["n"] == 24 and plain["published"] == 0.99
    assert trained["ours"] <= plain["ours"]


def test_the_step_on_logistic_regression_is_its_worst_case() -> None:
    torch.manual_seed(0)
    net = classic.Network(classic.Signed(9).requires_grad_(False), 0.0, 1, "cpu")
    x, y = torch.full((8, 1, 3, 3), 0.5) + 0.1 * torch.rand(8, 1, 3, 3), torch.arange(8) % 2

    def margin(z: Tensor) -> Tensor:
        scores = net.module(z)
        return (scores[:, 1] - scores[:, 0]) * (2 * y - 1)

    lost = margin(x) - margin(net.stepped(x, y, 0.1))
    weight = net.module.get_parameter("linear.weight")
    assert torch.allclose(lost, (0.1 * weight.abs().sum()).expand(8), atol=1e-5)
    assert torch.allclose(net.module(x).softmax(1)[:, 1], net.module.linear(x.flatten(1))[:, 0].sigmoid(), atol=1e-6)


def test_confidence_is_of_the_wrong_answers_alone() -> None:
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    fixed[1].weight.data = torch.eye(2)
    net = classic.Network(fixed.requires_grad_(False), 0.0, 1, "cpu")
    x = torch.tensor([[[[0.0, 1.0]]], [[[3.0, 0.0]]], [[[0.0, 2.0]]]])
    look = net.errors(x, torch.tensor([0, 0, 0]))
    assert look.wrong.tolist() == [True, False, True] and look.share == pytest.approx(2 / 3)
    sure = [torch.tensor(score).sigmoid().item() for score in (1.0, 2.0)]
    assert look.confidence == pytest.approx(sum(sure) / 2, abs=1e-6)


def test_l1_decay_adds_the_first_layers_weights_and_shrinks_them() -> None:
    module = nets.fully_connected(4, 3, 2)
    x, y, ids = torch.rand(5, 4), torch.arange(5) % 2, torch.arange(5)
    plain, more = (loss(module, x, y, ids, 0).detach() for loss in (standard, classic.shrunk(0.5)))
    assert float(more - plain) == pytest.approx(0.5 * float(module[1].weight.detach().abs().sum()), rel=1e-5)
    assert torch.equal(classic.shrunk(0.0)(module, x, y, ids, 0), plain)


def test_the_paired_interval_is_that_of_the_images_where_seeds_agree() -> None:
    one, other = torch.zeros(3, 1000, dtype=torch.bool), torch.zeros(3, 1000, dtype=torch.bool)
    one[:, :100] = True
    gap, low, high = classic.difference(one, other)
    near = wilson(100, 1000)
    assert gap == pytest.approx(0.1) and low == pytest.approx(near[0], abs=0.004)
    assert high == pytest.approx(near[1], abs=0.004)
    assert classic.difference(one, one) == (0.0, 0.0, 0.0)
    assert classic.difference(one, other) == (gap, low, high)
    apart = one.clone()
    apart[0] = False
    assert classic.difference(apart, other)[1] < low - 0.02


def test_what_an_interval_says() -> None:
    assert classic.said(0.1, 0.2) == "supported"
    assert classic.said(-0.2, -0.1) == "contradicted"
    assert classic.said(-0.1, 0.1) == classic.said(0.0, 0.1) == "undecided"
