"""AutoAttack's own public code as the yardstick, with a counting spy inside the target.

`pyautoattack` (the registry's packaging of Croce & Hein's code; its attacks differ from fra31/auto-attack a392200 in
white space and imports alone) is installed in a scratch environment, never with this project.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")


class Count:
    """Rows that went through a network forward and backward; copies of the network share it."""

    def __init__(self) -> None:
        self.forward = 0
        self.backward = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Count:
        return self


class _CountBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, count: Count) -> Tensor:
        ctx.count = count
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.count.backward += len(grad)
        return grad, None


class Spy(nn.Module):
    """The network unchanged, counting one forward per row and one backward per row whose input gradient is asked."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.count = Count()

    def forward(self, x: Tensor) -> Tensor:
        self.count.forward += len(x)
        return self.module(_CountBackward.apply(x, self.count))


@dataclass
class Stage:
    """One attack of a cascade: the robust rows after it and what it alone cost."""

    name: str
    robust: int
    forward: int
    backward: int
    seconds: float


@dataclass
class Outcome:
    """What one side found on n images: verdicts bool [n], its adversarial examples [n, ...] and the whole cost.

    `after` bool [stages, n] are the rows still robust after each attack of the cascade.
    """

    clean: Tensor
    robust: Tensor
    after: Tensor
    x_adv: Tensor
    forward: int
    backward: int
    seconds: float
    cpu_seconds: float
    stages: list[Stage] = field(default_factory=list)


def autoattack(module: nn.Module, x: Tensor, y: Tensor, eps: float, *, batch_size: int = 250, seed: int = 0) -> Outcome:
    """Run AutoAttack's standard Linf set on images [n, c, h, w] in [0, 1] and count what it asks of the network.

    The time is that of its `run_standard_evaluation`, its own checks and clean pass included.
    Raises ImportError where pyautoattack is not installed.
    """
    from pyautoattack import AutoAttack

    spy = Spy(module)
    logger = logging.getLogger("auto-attack")
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.json"
        watch = _Stages(spy.count, state)
        logger.addHandler(watch)
        was = logger.level, logger.propagate
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        try:
            attack = AutoAttack(spy, norm="Linf", eps=eps, version="standard", seed=seed, device="cpu")
            wall, cpu = time.perf_counter(), time.process_time()
            x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=batch_size, state_path=state)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            robust = torch.tensor(json.loads(state.read_text())["_robust_flags"], dtype=torch.bool)
        finally:
            logger.removeHandler(watch)
            logger.setLevel(was[0])
            logger.propagate = was[1]
    count = spy.count
    after = torch.stack(watch.after) if watch.after else robust.new_empty(0, len(x))
    return Outcome(watch.clean, robust, after, x_adv, count.forward, count.backward, wall, cpu, watch.stages)


class _Stages(logging.Handler):
    """Reads the cascade's progress off its log lines: AutoAttack itself reports accuracies alone."""

    def __init__(self, count: Count, state: Path) -> None:
        super().__init__()
        self.count, self.state = count, state
        self.stages: list[Stage] = []
        self.after: list[Tensor] = []
        self.clean = torch.empty(0, dtype=torch.bool)
        self._begun = (0, 0, 0.0)
        self._name = ""

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line.startswith("initial accuracy"):
            self.clean = self._flags()
        elif line.startswith("running "):
            self._name = line.removeprefix("running ")
            self._begun = (self.count.forward, self.count.backward, time.perf_counter())
        elif line.startswith("robust accuracy after"):
            forward, backward, began = self._begun
            spent = (self.count.forward - forward, self.count.backward - backward, time.perf_counter() - began)
            self.after.append(self._flags())
            self.stages.append(Stage(self._name, int(self.after[-1].sum()), *spent))

    def _flags(self) -> Tensor:
        return torch.tensor(json.loads(self.state.read_text())["_robust_flags"], dtype=torch.bool)


def save(path: Path, outcome: Outcome, x: Tensor, y: Tensor) -> None:
    """Write one outcome with its images: `path`.npz holds the tensors, `path`.json the figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path.with_suffix(".npz"), x=x.numpy(), y=y.numpy(), x_adv=outcome.x_adv.numpy(),
        clean=outcome.clean.numpy(), robust=outcome.robust.numpy(), after=outcome.after.numpy(),
    )  # fmt: skip
    figures = {key: getattr(outcome, key) for key in ("forward", "backward", "seconds", "cpu_seconds")}
    figures["stages"] = [vars(stage) for stage in outcome.stages]
    path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


def load(path: Path) -> tuple[Outcome, Tensor, Tensor]:
    """Read what `save` wrote: the outcome, the images and the labels."""
    figures = json.loads(path.with_suffix(".json").read_text())
    figures["stages"] = [Stage(**stage) for stage in figures["stages"]]
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as z:
        tensors = {key: torch.from_numpy(z[key]) for key in z.files}
    x, y = tensors.pop("x"), tensors.pop("y")
    return Outcome(**tensors, **figures), x, y
