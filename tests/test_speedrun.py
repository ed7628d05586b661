"""The robust speed-run's parts at tiny scale: planned within its seconds, going on where it stopped, scored once."""

import json
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import unfooled as uf
from benchmarks import results, speedrun
from benchmarks.speedrun import Images, Job, Share
from unfooled.core.fit import Recipe
from unfooled.errors import Diverged
from unfooled.targets import residual

CPU = torch.device("cpu")


def tiny() -> torch.nn.Module:
    stem = torch.nn.Conv2d(3, 4, 4, 4, bias=False)
    return residual.residual(stem, (4, 8), (1, 1))


@pytest.fixture
def images() -> Images:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 10, (600,), generator=g)
    x = torch.randint(0, 100, (600, 3, 32, 32), generator=g)
    x[:, 0] += 15 * y[:, None, None]  # the class is the redness
    x = x.to(torch.uint8)
    return Images(x[:500], y[:500], {"test": (x[500:560], y[500:560]), "held": (x[560:], y[560:])})


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(speedrun, "RUNS", tmp_path / "runs")
    monkeypatch.setitem(speedrun.NETS, "tiny", tiny)
    return tmp_path


def known(job: Job) -> dict:
    return json.loads((job.folder / "training.json").read_text())


def planned(job: Job, epochs: int, monkeypatch) -> Job:
    monkeypatch.setattr(speedrun, "fitting", lambda *_: epochs)
    return job


def test_as_many_epochs_are_planned_as_fit(here, images, monkeypatch):
    def epochs(seconds: float) -> int:
        return speedrun.fitting(Job("fgsm-rs", "tiny", seconds, 0, "small"), images, CPU)

    assert epochs(1e-6) == 1
    ticks = iter(range(100))
    monkeypatch.setattr(speedrun, "clock", lambda device: float(next(ticks)))  # every trial epoch takes a second
    assert epochs(5.5) == 5 and epochs(50.0) == 50


def test_training_keeps_to_its_seconds(here, images, monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(speedrun, "clock", lambda device: float(next(ticks)))  # every epoch takes a second
    job = planned(Job("standard", "tiny", 3.5, 0, "small"), 10_000, monkeypatch)
    assert speedrun.train(job, images, CPU)
    done = known(job)
    assert done["done"] and done["spent"] == 4.0
    assert done["points"] == [{"point": 4, "epoch": 4, "seconds": 4.0, "loss": done["points"][0]["loss"]}]


def test_a_training_that_diverges_is_done_and_what_it_passed_is_kept(here, images, monkeypatch):
    job = planned(Job("standard", "tiny", 1e6, 0, "small"), 4, monkeypatch)
    monkeypatch.setattr(speedrun.Training, "run_epoch", diverging(speedrun.Training.run_epoch, 2))
    assert speedrun.train(job, images, CPU)
    done = known(job)
    assert done["done"] and "no longer" in done["diverged"]
    assert [(p["point"], p["epoch"]) for p in done["points"]] == [(1, 1), (2, 2)]


def diverging(run_epoch, after: int):
    def run(training, on_step=None):
        if training.epoch == after:
            raise Diverged("A weight was no longer finite.")
        return run_epoch(training, on_step)

    return run


def test_a_training_stopped_and_gone_on_with_is_the_undisturbed_one(here, images, monkeypatch):
    job = planned(Job("n-fgsm", "tiny", 1e6, 3, "small"), 4, monkeypatch)
    assert speedrun.train(job, images, CPU)
    whole = {path.name: path.read_bytes() for path in job.folder.glob("point-*")}
    assert sorted(whole) == [f"point-{k}.safetensors" for k in (1, 2, 3, 4)]
    monkeypatch.setattr(speedrun, "RUNS", here / "again")
    assert not speedrun.train(job, images, CPU, until=0.0)  # no time at all: planned and no more
    epochs = 0
    while not speedrun.train(job, images, CPU, until=time.monotonic() + 1e-9):
        with monkeypatch.context() as patch:  # an epoch a command
            patch.setattr(speedrun.time, "monotonic", iter([0.0, 2.0]).__next__)
            speedrun.train(job, images, CPU, until=1.0)
        epochs += 1
    assert epochs == 4 and [p["epoch"] for p in known(job)["points"]] == [1, 2, 3, 4]
    assert {path.name: path.read_bytes() for path in job.folder.glob("point-*")} == whole
    assert len(list(job.folder.glob("state-*"))) == 1


def brief(module, x, y, threat, *, suite, seed):
    """Stand in for `evaluate`, which looks at a target for seconds before it attacks: FGSM alone."""
    assert suite == "standard" and threat == uf.linf(8 / 255)
    found = uf.run("fgsm()", module, x, y, threat, seed=seed).status
    stands = torch.tensor([float(s == "survived") for s in found])
    return types.SimpleNamespace(outcome=found, standing=lambda: stands, status="trusted")


def test_scores_are_those_of_the_weights_and_are_not_made_twice(here, images, monkeypatch):
    job = planned(Job("fgsm-rs", "tiny", 1e6, 0, "small"), 2, monkeypatch)
    monkeypatch.setattr(speedrun, "PIECE", 50)
    monkeypatch.setattr(speedrun.uf, "evaluate", brief)
    assert not list(speedrun.score(job, images, CPU)), "nothing is trained yet"
    monkeypatch.setattr(speedrun, "settings", lambda *_: Recipe(epochs=2, batch_size=10, lr=0.01))
    speedrun.train(job, images, CPU)
    assert not list(speedrun.score(job, images, CPU, until=0.0))
    made = list(speedrun.score(job, images, CPU))
    assert [(p["epoch"], p["images"], len(p["clean"])) for p in made] == [
        (2, "test", 50), (2, "test", 10), (2, "held", 40), (1, "test", 50), (1, "test", 10)
    ]  # fmt: skip
    module = tiny()
    module.load_state_dict(load_file(job.folder / "point-2.safetensors"))
    x, y = images.scored["test"]
    right = (module.eval()(x.float() / 255).argmax(1) == y).tolist()
    assert [*made[0]["clean"], *made[1]["clean"]] == right and sum(right) > 10
    again = brief(module, x[:50].float() / 255, y[:50], uf.linf(8 / 255), suite="standard", seed=0)
    assert made[0]["robust"] == again.standing().tolist() and sum(made[0]["robust"]) < sum(right)
    assert all(r <= c for p in made for r, c in zip(p["robust"], p["clean"], strict=True))
    assert not list(speedrun.score(job, images, CPU))


def test_the_table_averages_seeds_and_counts_images_once(here, images, monkeypatch):
    piece = {
        "recipe": "n-fgsm", "net": "tiny", "budget": 60.0, "scale": "small", "point": 4, "seconds": 59.0, "loss": 1.0,
        "device": "CPU, one thread", "images": "test", "suite": "standard", "status": "trusted",
    }  # fmt: skip
    for seed, robust in ((0, [1.0, 0.0, 0.0, 1.0]), (1, [1.0, 0.0, 0.0, 0.0])):
        piece["epoch"] = 2 + seed  # the same point of the curve, an epoch later
        for begin in (0, 4):
            path = here / "runs" / f"job-{seed}" / f"score-2-test-{begin}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**piece, "seed": seed, "clean": [True] * 4, "robust": robust}))
    diverged = here / "runs" / "slow-1" / "training.json"
    diverged.parent.mkdir()
    diverged.write_text(json.dumps({"diverged": "The loss became nan."}))
    monkeypatch.setattr(results, "write", lambda table, case, entry: written.__setitem__(case, entry))
    written: dict[str, dict] = {}
    speedrun.write(here / "runs")
    robust = written["small, tiny, n-fgsm, 60, 4, test, robust"]
    assert robust["ours"] == 3 / 8 and robust["n"] == 8 and robust["by_seed"] == {"0": 0.5, "1": 0.25}
    low, high = robust["interval"]
    assert 0 < low < 3 / 8 < high < 1 and high - low > 0.3
    assert written["small, tiny, n-fgsm, 60, 4, test, clean"]["ours"] == 1
    assert "not comparable" in robust["note"] and "epochs 2 and 3" in robust["note"]
    assert written["slow-1, diverged"]["note"] == "The loss became nan."
    (here / "runs" / "job-1" / "score-2-test-4.json").unlink()
    speedrun.write(here / "runs")
    assert written["small, tiny, n-fgsm, 60, 4, test, robust"]["by_seed"] == {"0": 0.5}


def test_a_share_is_a_mean_over_images_of_means_over_seeds():
    share = Share({0: [1.0, 1.0, 0.0], 1: [1.0, 0.0, 0.0]})
    assert share.ours == pytest.approx(0.5) and share.entry()["n"] == 3


def test_cifar_is_packed_into_two_parts_and_joined_again(here, monkeypatch):
    source, names = here / "source", [*(f"cifar10_train_{i}.npz" for i in range(5)), "cifar10_test.npz"]
    source.mkdir()
    monkeypatch.setenv("UNFOOLED_DATA", str(source))
    for name in names[1:]:
        np.savez(source / name, labels=np.arange(3))
    with pytest.raises(uf.InputError, match=r"cifar10_train_0\.npz"):
        speedrun.pack(here / "packed")
    np.savez(source / names[0], labels=np.arange(3))
    one, two = speedrun.pack(here / "packed")
    assert [len(list(part.iterdir())) for part in (one, two)] == [3, 3]
    assert speedrun.joined(here / "nothing") is None
    whole = speedrun.joined(here / "packed")
    assert {file.name: file.read_bytes() for file in whole.iterdir()} == {
        name: (source / name).read_bytes() for name in names
    }
    monkeypatch.setattr(speedrun, "PART", 10)
    with pytest.raises(uf.InputError, match="more than the 10"):
        speedrun.pack(here / "packed")


def test_the_networks_are_as_large_as_they_say():
    for make, parameters in ((residual.cifar_cnn, 401_482), (residual.preact_resnet18, 11_172_170)):
        module = make().eval()
        assert sum(p.numel() for p in module.parameters()) == parameters and f"{parameters:,}" in make.__doc__
        assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_block_without_its_convolutions_is_the_identity():
    block = residual.Block(4, 4, 1).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x)
    assert residual.Block(4, 6, 2).eval()(x).shape == (2, 6, 4, 4)
