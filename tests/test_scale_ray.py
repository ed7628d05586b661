"""Workers of Ray: the recipe and the folder of one process, and a worker that dies is replaced."""

import os
import sys
from pathlib import Path

import pytest
import torch

import unfooled as uf
import unfooled.attacks
from tests.test_together import BALL, images, network
from unfooled.core.fit import Recipe
from unfooled.errors import MissingExtra
from unfooled.harden import WAYS, objectives, trainer

ABSENT = "Ray is not installed: pip install 'unfooled[distributed]'"
HOW = {
    "threat": BALL, "recipe": Recipe(epochs=3, batch_size=40, lr=0.01, ema=0.9), "validation": 30, "name": "o",
    "choose": "last",
}  # fmt: skip


def mortal(module, x, y, ids, step):
    """Kill the worker once, in the second epoch."""
    mark = Path(os.environ["UNFOOLED_TEST_MARK"])
    if step == 4 and not mark.exists() and torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
        mark.touch()
        os._exit(1)
    return objectives.standard()(module, x, y, ids, step)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray deprecates itself and leaves sockets open
def test_workers_end_where_one_process_does_and_survive_a_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason=ABSENT)
    from unfooled import scale

    monkeypatch.setenv("UNFOOLED_TEST_MARK", str(tmp_path / "died"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    alone, helped = network(norm=False), network(norm=False)
    want = trainer.fit(alone, images(), mortal, **HOW)
    lines: list[trainer.Line] = []
    done = scale.fit_on_ray(helped, images(), mortal, workers=2, out=tmp_path / "run", on_line=lines.append, **HOW)
    assert (tmp_path / "died").exists()
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(helped.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert [n.epoch for n in lines] == [1, 2, 3] and list(done.lines) == lines
    assert [n.loss for n in lines] == pytest.approx([n.loss for n in want.lines], rel=1e-4)
    assert [n.strong for n in lines] == [n.strong for n in want.lines]


def test_what_is_missing_or_senseless_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from unfooled import scale

    with pytest.raises(uf.InputError, match="at least 1"):
        scale.fit_on_ray(network(norm=False), images(), objectives.standard(), workers=0, **HOW)
    monkeypatch.setitem(sys.modules, "ray", None)
    home = os.environ.get("HOME")
    with pytest.raises(MissingExtra, match="unfooled\\[distributed\\]"):
        scale.fit_on_ray(network(norm=False), images(), objectives.standard(), workers=2, **HOW)
    assert os.environ.get("HOME") == home


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [each.name for each in WAYS.values() if each.make])
def test_every_objective_travels_to_a_worker(name: str) -> None:
    cloudpickle = pytest.importorskip("ray.cloudpickle", reason=ABSENT)
    module, (x, y) = network(norm=False), images()
    objective = WAYS[name].objective(uf.l2(0.1) if name == "gaussian" else BALL)
    travelled = cloudpickle.loads(cloudpickle.dumps(objective))
    torch.manual_seed(0)
    here = objective(module, x[:8], y[:8], torch.arange(8), 0)
    torch.manual_seed(0)
    assert torch.equal(here, travelled(module, x[:8], y[:8], torch.arange(8), 0))
