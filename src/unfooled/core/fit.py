"""The one training loop: whoever trains a module, plainly or against an attack, calls `fit` with an objective."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfooled.errors import InputError, UnfooledError

Objective: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Tensor, int], Tensor]
"""`(module, x [b, ...], y int64 [b], ids int64 [b], step) -> scalar loss`; `ids` are the rows' places in the data."""

Perturb: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Tensor, int], Tensor]
"""`(module, x, y, ids, step) -> x_adv`, the same shape as x."""

Augment: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""`(x [b, ...], generator on the CPU) -> x of the same shape`, drawing from the generator alone."""

Schedule: TypeAlias = Literal["onecycle", "cosine", "constant"]


@dataclass(frozen=True)
class Epoch:
    """One line of the training history: the mean loss over the epoch, the learning rate at its end, seconds used."""

    epoch: int
    loss: float
    lr: float
    seconds: float


def standard(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
    """Return the mean cross-entropy on the images as they are (an `Objective`)."""
    return F.cross_entropy(module(x), y)


def adversarial(perturb: Perturb) -> Objective:
    """Return the mean cross-entropy on perturbed images alone (Madry et al. 2018, arXiv:1706.06083, eq. 2.1).

    The loss is only as hard as `perturb`: nothing is promised about attacks that it does not resemble.
    """

    def objective(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        return F.cross_entropy(module(perturb(module, x, y, ids, step)), y)

    return objective


def fit(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    objective: Objective = standard,
    *,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    weight_decay: float = 0.0,
    schedule: Schedule = "onecycle",
    ema: float = 0.0,
    augment: Augment | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    device: torch.device | str | None = None,
) -> list[Epoch]:
    """Train `module` in place with AdamW on x [n, ...] and y int64 [n]; return one `Epoch` per epoch.

    Only parameters that require a gradient are trained. Every epoch visits all rows once in a new order, the last
    batch being smaller. `ema` > 0 averages the weights (`ema` is the share kept per step, lowered during the first
    steps) and leaves the average in the module. `device` moves the module there; None trains where its weights are.

    The same seed, data, module state and thread count give the same bits on the CPU; on CUDA that is not promised.
    The caller's random state, grad mode and the module's training flags are as before when this returns or raises.

    Raises:
        InputError: settings or data that cannot be trained on.
        UnfooledError: the loss stopped being finite.
    """
    _check(x, y, epochs=epochs, batch_size=batch_size, lr=lr, schedule=schedule, ema=ema)
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise InputError("No parameter of the module requires a gradient: call module.requires_grad_() before fit.")
    if device is not None:
        module.to(device)
    device = trained[0].device
    per_epoch = math.ceil(len(x) / batch_size)
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(schedule, epochs * per_epoch))
    average = copy.deepcopy(module) if ema else None
    order = torch.Generator().manual_seed(seed)
    history: list[Epoch] = []
    step = 0
    with _world_kept(module, seed, device):
        module.train()
        for epoch in range(1, epochs + 1):
            began, total = time.perf_counter(), torch.zeros((), dtype=torch.float64, device=device)
            for ids in torch.split(torch.randperm(len(x), generator=order), batch_size):
                xb, yb = x[ids], y[ids].to(device)
                xb = (augment(xb, order) if augment else xb).to(device)
                loss = objective(module, xb, yb, ids, step)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                rate.step()
                step += 1
                total += loss.detach() * len(ids)
                if average is not None:
                    _blend(average, module, min(ema, (1 + step) / (10 + step)))
            mean = float(total) / len(x)
            if not math.isfinite(mean):
                raise UnfooledError(f"The loss became {mean} in epoch {epoch}: train with a lower lr than {lr}.")
            history.append(Epoch(epoch, mean, float(rate.get_last_lr()[0]), time.perf_counter() - began))
            if on_epoch:
                on_epoch(history[-1])
        if average is not None:
            module.load_state_dict(average.state_dict())
        for p in trained:
            p.grad = None
    return history


def _check(x: Tensor, y: Tensor, *, epochs: int, batch_size: int, lr: float, schedule: str, ema: float) -> None:
    if len(x) == 0 or len(x) != len(y):
        raise InputError(f"Training needs as many labels as images and at least one, not {len(x)} and {len(y)}.")
    if epochs < 1 or batch_size < 1 or not lr > 0:
        raise InputError(
            f"epochs, batch_size and lr must be positive, not epochs={epochs}, batch_size={batch_size}, lr={lr}."
        )
    if not 0 <= ema < 1:
        raise InputError(f"ema={ema} is outside [0, 1): 0 switches averaging off, 0.999 averages about 1,000 steps.")
    if schedule not in ("onecycle", "cosine", "constant"):
        raise InputError(f"Unknown schedule {schedule!r}: use 'onecycle', 'cosine' or 'constant'.")


def _rate(schedule: str, total: int, warm: float = 0.3) -> Callable[[int], float]:
    """Return step -> factor of lr; onecycle climbs linearly for 30% of the steps, then falls along a cosine."""

    def falling(t: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, t))))

    def one_cycle(step: int) -> float:
        rising = max(1.0, warm * total)
        return (step + 1) / rising if step + 1 < rising else falling((step - rising) / (total - rising + 1))

    if schedule == "onecycle":
        return one_cycle
    return (lambda step: falling(step / total)) if schedule == "cosine" else (lambda step: 1.0)


@torch.no_grad()
def _blend(average: nn.Module, module: nn.Module, keep: float) -> None:
    """Move the average towards the module; what is no floating number (counters of BatchNorm) is copied."""
    theirs = module.state_dict()
    for name, mine in average.state_dict().items():
        if mine.is_floating_point():
            mine.lerp_(theirs[name], 1 - keep)
        else:
            mine.copy_(theirs[name])


@contextmanager
def _world_kept(module: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    flags = [(m, m.training) for m in module.modules()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.inference_mode(mode=False):
        torch.manual_seed(seed)
        try:
            with torch.enable_grad():
                yield
        finally:
            for m, was in flags:
                m.training = was
