"""Several workers: the result and the folder of one process, told as epochs end, and failures in a sentence."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import unfooled as uf
import unfooled.attacks
from tests.test_together import BALL, images, network
from unfooled import scale
from unfooled.core.fit import Recipe
from unfooled.harden import objectives, trainer

HOW = {
    "threat": BALL, "recipe": Recipe(epochs=3, batch_size=40, lr=0.01, ema=0.9), "validation": 30, "name": "o",
    "choose": "last",
}  # fmt: skip

# processes are forked while pytest's own threads exist, which Python 3.12 and later remark on
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def test_workers_end_where_one_process_does_and_write_its_folder(tmp_path: Path) -> None:
    objective = objectives.adversarial(uf.attacks.pgd(steps=2), BALL)
    alone, helped = network(norm=False), network(norm=False)
    want = trainer.fit(alone, images(), objective, out=tmp_path / "alone", **HOW)
    lines: list[trainer.Line] = []
    done = scale.fit(helped, images(), objective, workers=2, out=tmp_path / "run", on_line=lines.append, **HOW)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(helped.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert [n.epoch for n in lines] == [1, 2, 3] and list(done.lines) == lines
    assert [n.loss for n in lines] == pytest.approx([n.loss for n in want.lines], rel=1e-4)
    assert [(n.strong, n.images, n.backward) for n in lines] == [(n.strong, n.images, n.backward) for n in want.lines]
    names = [sorted(p.name for p in (tmp_path / folder).iterdir()) for folder in ("alone", "run")]
    assert names[0] == names[1]


def test_what_fails_or_makes_no_sense_is_said(tmp_path: Path) -> None:
    def hopeless(module, x, y, ids, step):
        return F.cross_entropy(module(x), y) * float("nan")

    with pytest.raises(uf.UnfooledError, match=r"^The loss became nan in epoch 1: train with a lower lr"):
        scale.fit(network(norm=False), images(), hopeless, workers=2, **HOW)

    with pytest.raises(uf.InputError, match="one label"):
        x, y = images()
        scale.fit(network(norm=False), (x, y * 0), objectives.standard(), workers=2, **HOW)

    def mortal(module, x, y, ids, step):
        if torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return objectives.standard()(module, x, y, ids, step)

    with pytest.raises(uf.UnfooledError, match=r"worker died .*SIGKILL.*--resume"):
        scale.fit(network(norm=False), images(), mortal, workers=2, **HOW)
    with pytest.raises(uf.InputError, match="at least 1"):
        scale.fit(network(norm=False), images(), objectives.standard(), workers=0, **HOW)
    with pytest.raises(uf.InputError, match="not on meta"):
        scale.fit(network(norm=False).to("meta"), images(), objectives.standard(), workers=2, **HOW)
    with pytest.raises(uf.InputError, match="exists already"):
        scale.fit(network(norm=False), images(), objectives.standard(), workers=2, out=tmp_path, **HOW)
