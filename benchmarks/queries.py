"""Black-box attacks against their queries: what is reached after 100, 200, ... 5,000 questions per image.

    python -m benchmarks.queries                    all that results/queries.json lacks
    python -m benchmarks.queries square ray         these attacks alone
    python -m benchmarks.queries --ours             this package's rows alone, measured again

A recorder inside the target notes, for every image, the smallest adversarial change among the first k rows sent for
it, and ends the attack when the questions are used up. Rows are told apart by their place (where all images are always
sent in order), by the nearest original (where eps keeps them near), or because an image is attacked alone. This package
enforces the budget itself (`queries=`, first look and re-check included): one run a budget.
Only points inside the box count; distances in float64. The gradient is out of reach for all.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import unfooled as uf
from benchmarks import peers, results
from benchmarks.peers import PEERS, Question
from benchmarks.shelf import OURS, SETTINGS, Setting, record
from unfooled.attacks import parse
from unfooled.core.attack import RECIPES
from unfooled.errors import InputError

GRID = (100, 200, 500, 1000, 2000, 5000)
LIMIT = 150
"""CPU seconds for all images of one implementation; images that are left count as not broken and the entry says so."""


@dataclass(frozen=True)
class Task:
    """One attack under one norm: `smallest` asks for the smallest change, otherwise for any success within eps."""

    attack: str
    norm: str
    access: str
    smallest: bool = False
    settings: str = "queries=5000"

    @property
    def recipe(self) -> str:
        """How this package is asked."""
        return f"{self.attack}({self.settings})"


TASKS = (
    Task("square", "linf", "scores"),
    Task("nes", "linf", "scores"),
    Task("spsa", "linf", "scores"),
    Task("square", "l2", "scores"),
    Task("nes", "l2", "scores"),
    Task("spsa", "l2", "scores"),
    Task("simba", "l2", "scores"),
    Task("ray", "linf", "labels"),
    Task("hop_skip_jump", "linf", "labels", smallest=True),
    Task("geoda", "linf", "labels", smallest=True),
    Task("ray", "l2", "labels"),
    Task("boundary", "l2", "labels", smallest=True),
    Task("hop_skip_jump", "l2", "labels", smallest=True),
    Task("surfree", "l2", "labels", smallest=True),
    Task("cgba", "l2", "labels", smallest=True),
    Task("geoda", "l2", "labels", smallest=True),
    Task("sign_opt", "l2", "labels", smallest=True),
)


class Enough(BaseException):
    """The questions are used up; not an Exception, so that no library catches it."""


class OutOfOrder(BaseException):
    """An implementation sent other rows than all images in order."""


LEFT_OUT = {("hop_skip_jump", "ART"), ("boundary", "ART")}
"""Implementations too slow for this table: several CPU seconds an image, one query at a time."""
ALONE = {
    ("hop_skip_jump", "ART"), ("hop_skip_jump", "CleverHans"), ("geoda", "ART"), ("sign_opt", "ART"), ("simba", "ART"),
    ("boundary", "ART"),
}  # fmt: skip
"""Implementations that loop over the images, or that send each one a different number of rows."""


class Recorder(nn.Module):
    """The network, noting per image the smallest adversarial change among the first k rows for every k of `grid`.

    With `nearest` a row belongs to the nearest original, which is at most twice as far away, and the attack ends by
    itself; otherwise rows come in the order of the images, all of them each time.
    """

    def __init__(
        self, module: nn.Module, x: Tensor, y: Tensor, p: float, *, nearest: float = 0.0, grid: tuple[int, ...] = GRID
    ) -> None:
        super().__init__()
        self.module, self.grid, self.eps = module, torch.tensor(grid), nearest
        self.x, self.y, self.p = x.double().flatten(1), y, p
        self.count = torch.zeros(len(x), dtype=torch.int64)
        self.best = torch.full((len(x),), torch.inf, dtype=torch.float64)
        self.curve = torch.full((len(x), len(grid)), torch.inf, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Answer rows [b, ...] while questions are left; raises Enough."""
        if not self.eps and bool((self.count >= self.grid[-1]).all()):
            raise Enough
        with torch.no_grad():
            scores = self.module(x.detach())
        flat = x.detach().double().flatten(1)
        if self.eps:
            index = torch.cdist(flat, self.x).argmin(1)
        else:
            if len(x) % len(self.x):
                raise OutOfOrder
            index = torch.arange(len(x)) % len(self.x)
        own = scores.gather(1, self.y[index].view(-1, 1))[:, 0]
        wrong = scores.scatter(1, self.y[index].view(-1, 1), -torch.inf).amax(1) > own
        good = wrong & ((flat >= 0) & (flat <= 1)).all(1)
        size = (flat - self.x[index]).norm(p=self.p, dim=1)
        if self.eps and float(size.max()) > 2 * self.eps:
            raise OutOfOrder
        size = torch.where(good, size, torch.inf)
        self._note(index, size)
        return scores

    def _note(self, index: Tensor, size: Tensor) -> None:
        """Count rows of the images `index` [b] with their adversarial distances (inf: none) in order."""
        if len(self.x) > 1 and len(index) == len(index.unique()):
            self.count[index] += 1
            self.best[index] = torch.minimum(self.best[index], size)
            due = self.count[index].view(-1, 1) <= self.grid
            self.curve[index] = torch.where(due, self.best[index].view(-1, 1), self.curve[index])
            return
        for i in index.unique().tolist():
            smallest = torch.minimum(size[index == i].cummin(0).values, self.best[i])
            last = (self.grid - self.count[i] - 1).clamp(max=len(smallest) - 1)  # the row after which k have been sent
            self.curve[i] = torch.where(last >= 0, smallest[last.clamp(min=0)], self.curve[i])
            self.count[i] += len(smallest)
            self.best[i] = smallest[-1]


def theirs(network: Callable[[], nn.Module], q: Question, run: peers.Adapter, how: str) -> tuple[Tensor, list[str]]:
    """Return the distances at each count per image [n, grid], and what was raised; `how` rows are told apart."""
    module, begun = network(), time.process_time()
    if how in ("nearest", "order"):
        recorder = Recorder(module, q.x, q.y, q.p, nearest=q.eps if how == "nearest" else 0.0)
        why = _one(recorder, q, run)
        if not why:
            return recorder.curve, []
    curves, raised = [], []  # each image alone: no other's failure ends its attack
    for i in range(len(q.y)):
        part = Question(q.x[i : i + 1], q.y[i : i + 1], q.norm, q.eps, q.steps, q.size)
        recorder = Recorder(module, part.x, part.y, q.p)
        if time.process_time() - begun > LIMIT:
            why = f"more than {LIMIT} CPU seconds"
        else:
            why = _one(recorder, part, run)
        raised += [why] if why else []
        curves.append(recorder.curve)
    return torch.cat(curves), raised


def _one(recorder: Recorder, q: Question, run: peers.Adapter) -> str:
    """Run one attack against the recorder; return what it raised, or ""."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    try:
        with peers.silence():
            run(recorder, Question(q.x.clone(), q.y.clone(), q.norm, q.eps, q.steps, q.size))
    except Enough:
        return ""
    except OutOfOrder:
        return "rows out of order"
    except Exception as error:  # whatever a library raises is its result
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
    return ""


def ours(network: Callable[[], nn.Module], q: Question, recipe: str) -> Tensor:
    """Return the distances at each count per image [n, grid]: one run a budget, each enforced by the ledger."""
    columns = []
    for k in GRID:
        found = uf.run(
            recipe,
            uf.Target(network()),
            q.x,
            q.y,
            getattr(uf, q.norm)(q.eps),
            queries=k,
            seed=0,
            access=uf.Access.SCORES,
        )  # fmt: skip
        assert (found.forward <= k).all(), "the budget was not kept"
        assert isinstance(found.x_adv, Tensor)
        size = (found.x_adv.double() - q.x.double()).flatten(1).norm(p=q.p, dim=1)
        columns.append(torch.where(found.success, size, torch.inf))
    return torch.stack(columns, 1)


def entry(size: Tensor, eps: float) -> dict[str, Any]:
    """Return the figures of one implementation: success within eps and median distance at each count."""
    median = torch.quantile(size, 0.5, dim=0, interpolation="higher")
    return {
        "n": len(size),
        "grid": list(GRID),
        "success": (size <= eps * (1 + 1e-5)).sum(0).tolist(),
        "broken": size.isfinite().sum(0).tolist(),
        "median": [round(float(m), 5) if math.isfinite(m) else None for m in median],
    }


def main() -> None:
    """Measure the rows that are asked for and not known yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attack", nargs="*", help="all by default")
    parser.add_argument("--case", choices=list(SETTINGS), action="append")
    parser.add_argument("--n", type=int, default=30, help="images")
    parser.add_argument("--folder", type=Path, default=results.FOLDER, help="where the results are")
    parser.add_argument("--side", action="append", help="an implementation; all by default")
    parser.add_argument("--ours", action="store_true", help=f"--side {OURS} --again")
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    sides, again = given.side or ([OURS] if given.ours else None), given.again or given.ours
    torch.set_num_threads(1)
    peers.prepare()
    for name in given.case or reversed(SETTINGS):
        for task in TASKS:
            if not given.attack or task.attack in given.attack:
                _task(SETTINGS[name], task, given.n, sides, given.folder, again=again)


def _task(setting: Setting, task: Task, n: int, sides: list[str] | None, folder: Path, *, again: bool) -> None:
    network, x, y = setting.load()
    eps = setting.eps[task.norm]
    q = Question(x[:n], y[:n], task.norm, math.inf if task.smallest else eps, GRID[-1])
    known = results.read("queries", folder=folder)
    implementations: list[tuple[str, peers.Adapter | None, str]] = []
    if task.attack in RECIPES:
        implementations.append((OURS, None, task.recipe))
    implementations += [(p.library, p.run, p.note) for p in PEERS.get(task.attack, []) if task.norm in p.norms]
    for side, run, note in implementations:
        key = f"{setting.name}/{task.attack}/{task.norm}/{side}"
        if (task.attack, side) in LEFT_OUT or (sides and side not in sides) or (not again and key in known):
            continue
        if run is not None and not peers.installed(side):
            print(f"{key}: skipped, {side} is not installed", flush=True)
            continue
        begun, raised = time.process_time(), list[str]()
        if run is None:
            try:
                attack = parse(task.recipe)
                why = attack.unfit(q.x, getattr(uf, q.norm)(q.eps), 10)
            except InputError as error:
                why = str(error)
            if why:
                print(f"{key}: skipped, {why}", flush=True)
                continue
            curves = ours(network, q, task.recipe)
        else:
            how = "alone" if (task.attack, side) in ALONE else "order" if task.smallest else "nearest"
            curves, raised = theirs(network, q, run, how)
        found = entry(curves, eps)
        about = {
            "case": setting.name, "attack": task.attack, "norm": task.norm, "access": task.access, "side": side,
            "note": note, "smallest": task.smallest, "eps": eps,
            "version": uf.__version__ if run is None else peers.installed(side),
            "raised": len(raised), "raised_first": raised[0] if raised else "",
        }  # fmt: skip
        record("queries", key, about | found, folder)
        print(
            f"{key}: success {found['success']} median {found['median']} raised {len(raised)} "
            f"{raised[0] if raised else ''} cpu {time.process_time() - begun:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
