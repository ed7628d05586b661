"""What the engine costs: one step of PGD through `unfooled.run` against a bare hand-written loop.

    python -m benchmarks.engine                 every case, written to results/engine.json

Both sides run the same steps on the same images in the same process, one after the other in alternation; nothing ever
breaks (images that the network is sure of, a radius far below what it takes), so that neither side stops early. A run's
time over its steps is reported, the engine's clean look included: medians over repetitions of it and of the ratio.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unfooled as uf
from benchmarks import published, results
from unfooled.targets import ZOO


@dataclass(frozen=True)
class Load:
    """One case: a network, its images, how many rows go at once, the steps, and the ratio that is aimed at."""

    title: str
    network: Callable[[], nn.Module]
    data: str
    rows: int
    steps: int
    aim: float
    eps: float = 1e-5


LOADS: dict[str, Load] = {
    "cifar_resnet20": Load("ResNet-20, CIFAR-10", published.cifar_resnet20, "cifar10", 64, 40, 1.05),
    "mnist-cnn": Load("mnist-cnn", ZOO["mnist-cnn"].build, "mnist", 256, 40, 1.10),
    "digits-cnn": Load("digits-cnn", ZOO["digits-cnn"].build, "digits", 256, 40, 1.10),
}


def bare(module: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, step_size: float) -> Tensor:
    """PGD as one writes it by hand; returns which rows of x [n, c, h, w] still have label y at the end, bool [n]."""
    x_adv = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        x_adv.requires_grad_()
        loss = F.cross_entropy(module(x_adv), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, x_adv)
        with torch.no_grad():
            x_adv = x_adv + step_size * eps * grad.sign()
            x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    with torch.no_grad():
        return module(x_adv).argmax(1) == y


def measure(load: Load, repetitions: int) -> dict[str, Any]:
    """Time both sides in alternation and return the entry of one case; seconds are wall-clock unless named cpu."""
    module = load.network()
    x, y = sure(module, *published.images(load.data), load.rows)
    step_size = 2.5 / load.steps
    attack = uf.attacks.pgd(steps=load.steps, step_size=step_size)
    target = uf.Target(module)

    def by_hand() -> bool:
        return bool(bare(module, x, y, load.eps, load.steps, step_size).all())

    def by_engine() -> bool:
        found = uf.run(attack, target, x, y, uf.linf(load.eps), batch_size=load.rows, seed=0)
        return not found.success.any() and bool((torch.from_numpy(found.backward) == load.steps).all())

    sides = {"bare": by_hand, "engine": by_engine}
    for side in sides.values():
        side()  # warm up
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(repetitions):
        for name in sorted(sides, reverse=bool(k % 2)):
            begun = time.perf_counter(), time.process_time()
            survived = sides[name]()
            wall[name].append((time.perf_counter() - begun[0]) / load.steps)
            cpu[name].append((time.process_time() - begun[1]) / load.steps)
            assert survived, f"{name}: a row broke or stopped early; the comparison would not be fair"
    return {
        "title": load.title,
        "rows": load.rows,
        "steps": load.steps,
        "repetitions": repetitions,
        "aim": load.aim,
        "milliseconds_per_step": {name: round(1000 * median(values), 3) for name, values in wall.items()},
        "cpu_milliseconds_per_step": {name: round(1000 * median(values), 3) for name, values in cpu.items()},
        "ratio": round(median(e / b for e, b in zip(wall["engine"], wall["bare"], strict=True)), 3),
        "cpu_ratio": round(median(e / b for e, b in zip(cpu["engine"], cpu["bare"], strict=True)), 3),
    }


def sure(module: nn.Module, x: Tensor, y: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return the first `rows` images that the network gets right by a margin of at least one logit."""
    with torch.no_grad():
        logits = torch.cat([module(part) for part in x[: 8 * rows].split(rows)])
    top = logits.topk(2, 1).values
    good = ((logits.argmax(1) == y[: len(logits)]) & (top[:, 0] - top[:, 1] > 1)).nonzero().flatten()[:rows]
    assert len(good) == rows, "too few images that the network is sure of"
    return x[good].contiguous(), y[good]


def main() -> None:
    """Measure the cases that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", help=f"one of {', '.join(LOADS)}; all by default")
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--try", dest="trial", action="store_true", help="print only, write nothing")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.case or LOADS:
        entry = measure(LOADS[name], given.repetitions)
        if not given.trial:
            results.write("engine", name, entry)
        print(name, entry, flush=True)


if __name__ == "__main__":
    main()
