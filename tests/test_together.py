"""Several processes that train one module end where one process ends, and all with the same bits."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

import unfooled as uf
from unfooled.core.fit import Recipe, Training
from unfooled.core.together import ALONE, Together, together
from unfooled.harden import objectives, trainer

BALL = uf.linf(0.1)
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def images(n: int = 150) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    return torch.rand(n, 1, 6, 6, generator=g) * 0.5 + y.view(-1, 1, 1, 1) * 0.2, y


def network(*, norm: bool) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        between = [nn.BatchNorm2d(4)] if norm else []
        return nn.Sequential(nn.Conv2d(1, 4, 3), *between, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def harden(place: Together, out: Path | None, *, norm: bool = False) -> tuple[nn.Module, trainer.Hardened]:
    module = network(norm=norm)
    if place.rank == 1:  # what the first process has is what counts
        nn.init.zeros_(module[0].weight)
    objective = objectives.adversarial(uf.attacks.pgd(steps=2), BALL, seed=1)
    recipe = Recipe(epochs=4, batch_size=40, lr=0.01, ema=0.9, smoothing=0.1, mix=0.25)
    x, y = images()
    done = trainer.fit(
        module, (x, y), objective, threat=BALL, recipe=recipe, validation=31, extra=(x[:20], y[:20]),
        augment="flips+shifts(1)", out=out, name="o", choose="last", together=place,
    )  # fmt: skip
    return module, done


def work(rank: int, folder: str) -> None:
    """One of two processes; leaves what it ended with in the folder."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        for norm in (False, True):
            out = Path(folder) / f"checkpoints-{norm}"
            module, done = harden(together(), out, norm=norm)
            rows = [{k: v for k, v in row.items() if k not in ("seconds", "judging")} for row in done.rows()]
            torch.save({"state": module.state_dict(), "rows": rows}, f"{folder}/end-{norm}-{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    torch.multiprocessing.start_processes(work, (str(folder),), nprocs=2, start_method="fork")
    return folder


def end(folder: Path, rank: int, *, norm: bool) -> dict:
    return torch.load(folder / f"end-{norm}-{rank}.pt", weights_only=True)


@pytest.mark.parametrize("norm", [False, True])
def test_all_processes_end_with_the_same_bits(ended: Path, norm: bool) -> None:
    first, second = (end(ended, rank, norm=norm) for rank in (0, 1))
    assert first["rows"] == second["rows"]
    assert all(torch.equal(v, second["state"][k]) for k, v in first["state"].items())


def test_two_processes_end_where_one_does(ended: Path, tmp_path: Path) -> None:
    module, done = harden(ALONE, tmp_path / "alone")
    found = end(ended, 0, norm=False)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(found["state"][name], value, rtol=1e-4, atol=1e-5)
    assert not torch.equal(module[0].weight, network(norm=False)[0].weight)
    for line, other in zip(done.rows(), found["rows"], strict=True):
        assert other["loss"] == pytest.approx(line["loss"], rel=1e-4)
        for name in ("clean", "weak", "strong", "images", "forward", "backward", "lr"):
            assert other[name] == line[name], name


def test_the_folder_of_two_is_the_folder_of_one(ended: Path, tmp_path: Path) -> None:
    harden(ALONE, tmp_path / "alone")
    names = [sorted(p.name for p in folder.iterdir()) for folder in (ended / "checkpoints-False", tmp_path / "alone")]
    assert names[0] == names[1] == ["best-0004.safetensors", "state-0004.safetensors", "training.json"]
    module = network(norm=False)
    x, y = images()
    objective = objectives.adversarial(uf.attacks.pgd(steps=2), BALL, seed=1)
    recipe = Recipe(epochs=4, batch_size=40, lr=0.01, ema=0.9, smoothing=0.1, mix=0.25)
    trainer.fit(
        module, (x, y), objective, threat=BALL, recipe=recipe, validation=31, extra=(x[:20], y[:20]), name="o",
        augment="flips+shifts(1)", out=ended / "checkpoints-False", choose="last", resume=True,
    )  # fmt: skip
    found = end(ended, 0, norm=False)["state"]
    assert all(torch.equal(v, found[k]) for k, v in module.state_dict().items())


def test_statistics_of_a_layer_that_sees_a_share_are_near_those_of_one_process(ended: Path) -> None:
    module, done = harden(ALONE, None, norm=True)
    found = end(ended, 0, norm=True)
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(found["state"][name], module.state_dict()[name], rtol=0.2, atol=0.08)
    assert found["rows"][-1]["loss"] == pytest.approx(done.lines[-1].loss, rel=0.05)


def test_shares_are_consecutive_and_cover_all_rows() -> None:
    for rows in (2, 7, 128):
        for size in (1, 2, 5):
            taken = [i for rank in range(size) for i in range(rows)[Together(rank, size).share(rows)]]
            assert taken == list(range(rows))


def test_too_many_workers_and_no_group_are_said() -> None:
    x, y = images(42)
    with pytest.raises(uf.InputError, match="too small for 3 workers"):
        Training(network(norm=False), x, y, recipe=Recipe(batch_size=40), together=Together(0, 3))
    with pytest.raises(uf.InputError, match="no process group"):
        together()
