"""The shelf against public implementations: same target, images, budget and process, every returned point re-checked.

    python -m benchmarks.shelf                      all that results/shelf.json lacks, written as each row ends
    python -m benchmarks.shelf ddn fmn              these attacks alone
    python -m benchmarks.shelf --ours               this package's rows alone, measured again
    python -m benchmarks.shelf --side foolbox       one implementation alone
    python -m benchmarks.shelf --case digits-cnn --again ...

The public implementations are optional (benchmarks/peers.py): one that is not installed is left out, with a sentence.
Whatever an implementation claims is checked here by a freshly built network, each point alone and in a batch: finite,
inside the box, inside the ball in float64, misclassified. Forward and backward passes are counted inside the target.
"""

from __future__ import annotations

import argparse
import fcntl
import math
import os
import random
import signal
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import unfooled as uf
from benchmarks import peers, results
from benchmarks.baseline import Spy
from benchmarks.cases import CASES
from benchmarks.peers import PEERS, Found, Question
from unfooled.attacks import learned as learning
from unfooled.attacks import parse
from unfooled.core.attack import RECIPES
from unfooled.errors import InputError

OURS = "unfooled"
LIMIT = 30
"""CPU seconds after which an implementation is stopped and its row says so."""


@dataclass(frozen=True)
class Setting:
    """A target with how many of its images (the first that it classifies correctly) and the radius of each norm."""

    name: str
    n: int
    eps: dict[str, float]

    def load(self) -> tuple[Callable[[], nn.Module], Tensor, Tensor]:
        """Return what builds the network, images float32 [n, c, h, w] and labels int64 [n]."""
        case = CASES[self.name]
        x, y = case.images()
        with torch.no_grad():
            right = (case.network()(x).argmax(1) == y).nonzero().flatten()[: self.n]
        return case.network, x[right].contiguous(), y[right].contiguous()


SETTINGS = {
    s.name: s
    for s in (
        Setting("digits-cnn", 200, {"linf": 0.1, "l2": 0.5, "l1": 1.5, "l0": 2}),
        Setting("mnist-cnn", 100, {"linf": 0.07, "l2": 1.0, "l1": 6.0, "l0": 8}),
    )
}
"""Radii near the median of the smallest changes, so that about half of the images can be broken."""


@dataclass(frozen=True)
class Task:
    """One attack under some norms with one budget; `recipe` is how this package is asked, `size` in units of eps.

    `smallest`: no eps is given and the smallest change is asked for; otherwise it is `times` the setting's. `once`: on
    the first target alone. Black boxes get `few` images of it.
    """

    attack: str
    norms: tuple[str, ...]
    steps: int
    recipe: str
    size: float = 0.0
    smallest: bool = False
    unit: str = "steps"
    times: float = 1.0
    once: bool = False

    @property
    def few(self) -> int | None:
        """How many images it gets at most: attacking one image after the other is slow."""
        return 50 if self.unit == "queries" else None

    @property
    def budget(self) -> str:
        """The budget in words."""
        more = f" of {self.size:g} eps" if self.size and self.steps > 1 else ""
        return f"{self.steps:,} {self.unit if self.steps > 1 else self.unit.removesuffix('s')}{more}"


def _transfer(name: str, more: str = "") -> Task:
    return Task(name, ("linf",), 10, f"{name}(steps=10{more})", 0.1, once=True)


TASKS = (
    Task("fgsm", ("linf", "l2"), 1, "fgsm()", 1.0, once=True),
    Task("bim", ("linf", "l2"), 10, "bim(steps=10, step_size=0.25)", 0.25, once=True),
    Task("pgd", ("linf", "l2", "l1"), 40, "pgd(steps=40, step_size=0.0625)", 0.0625),
    _transfer("mi_fgsm"),
    _transfer("ni_fgsm"),
    _transfer("di_fgsm"),
    _transfer("ti_fgsm"),
    _transfer("si_fgsm", ", scales=5"),
    _transfer("vmi_fgsm", ", neighbours=5"),
    _transfer("vni_fgsm", ", neighbours=5"),
    Task("apgd", ("linf", "l2", "l1"), 100, "apgd(steps=100)"),
    Task(
        "apgd_targeted",
        ("linf", "l2", "l1"),
        100,
        "apgd_targeted(steps=100, targets=9)",
        unit="steps a target",
        once=True,
    ),
    Task("lbfgs", ("l2",), 180, "lbfgs(steps=20, searches=9)", smallest=True),
    Task("cw", ("l2", "linf"), 900, "cw(steps=100, searches=9)", smallest=True),
    Task("deepfool", ("l2", "linf"), 50, "deepfool(steps=50)", smallest=True),
    Task("superdeepfool", ("l2",), 100, "superdeepfool(steps=100)", smallest=True),
    Task("fab", ("linf", "l2", "l1"), 100, "fab(steps=100)", smallest=True),
    Task(
        "fab_targeted",
        ("linf", "l2", "l1"),
        100,
        "fab_targeted(steps=100)",
        smallest=True,
        unit="steps a target",
        once=True,
    ),
    Task("ddn", ("l2",), 100, "ddn(steps=100)", smallest=True),
    Task("fmn", ("linf", "l2", "l1", "l0"), 100, "fmn(steps=100)", smallest=True),
    Task("alma", ("l2", "l1"), 500, "alma(steps=500)", smallest=True),
    Task("pdpgd", ("linf", "l2", "l1", "l0"), 500, "pdpgd(steps=500)", smallest=True),
    Task("ead", ("l1",), 900, "ead(steps=90, searches=9)", smallest=True),
    Task("jsma", ("l0",), 100, "jsma()", smallest=True),
    Task("sigma_zero", ("l0",), 500, "sigma_zero(steps=500)", smallest=True),
    Task("one_pixel", ("l0",), 4000, "one_pixel(queries=4000)", unit="queries"),
    Task("square", ("linf", "l2"), 1000, "square(queries=1000)", unit="queries"),
    Task("nes", ("linf", "l2"), 2560, "nes(queries=2560)", unit="queries"),
    Task("spsa", ("linf", "l2"), 2560, "spsa(queries=2560)", unit="queries"),
    Task("simba", ("l2",), 1000, "simba(queries=1000)", unit="queries"),
    Task("ray", ("linf", "l2"), 1000, "ray(queries=1000)", unit="queries"),
    Task("boundary", ("l2",), 2000, "boundary(queries=2000)", smallest=True, unit="queries"),
    Task("hop_skip_jump", ("l2", "linf"), 2000, "hop_skip_jump(queries=2000)", smallest=True, unit="queries"),
    Task("surfree", ("l2",), 2000, "surfree(queries=2000)", smallest=True, unit="queries"),
    Task("cgba", ("l2",), 2000, "cgba(queries=2000)", smallest=True, unit="queries"),
    Task("geoda", ("l2", "linf"), 2000, "geoda(queries=2000)", smallest=True, unit="queries"),
    Task("universal", ("linf", "l2"), 10, "universal(epochs=10)", unit="epochs", times=2.0, once=True),
    Task(
        "universal_deepfool", ("linf", "l2"), 10, "universal_deepfool(epochs=10)", unit="epochs", times=2.0, once=True
    ),
)


class _Slow(Exception):
    """An implementation used up its CPU time."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    def stop(signum: int, frame: types.FrameType | None) -> None:
        raise _Slow

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def ours(recipe: str) -> peers.Adapter:
    """Return this package's side of a row."""

    def run(module: nn.Module, q: Question) -> Found:
        threat = getattr(uf, q.norm)(q.eps)
        found = uf.run(recipe, uf.Target(module), q.x, q.y, threat, seed=0)
        assert isinstance(found.x_adv, Tensor)
        return found.x_adv, found.success

    return run


def _universal(name: str, steps: int) -> peers.Adapter:
    """Return this package's side where one change is learned for all images."""

    def run(module: nn.Module, q: Question) -> Found:
        threat = getattr(uf, q.norm)(q.eps)
        learned = getattr(learning, name)(uf.Target(module), q.x, threat, y=q.y, epochs=steps)
        found = uf.run(learned, uf.Target(module), q.x, q.y, threat, seed=0)
        assert isinstance(found.x_adv, Tensor)
        return found.x_adv, found.success

    return run


LEARNED = ("universal", "universal_deepfool")


def measure(network: Callable[[], nn.Module], q: Question, run: peers.Adapter) -> dict[str, Any]:
    """Run one implementation on a fresh network and return what it found and spent, or the sentence why not."""
    spy = Spy(network())
    with torch.no_grad():
        spy(q.x)  # the first pass of a network is slow
    spy.count.forward = 0
    seconds = math.inf
    try:
        with _within(LIMIT), peers.silence():
            x_adv, claims, seconds = _timed(spy, q, run)
            counts = spy.count.forward, spy.count.backward
            for _ in range(2 if seconds < 1.5 else 0):  # short runs: the least of three
                seconds = min(seconds, _timed(spy, q, run)[2])
    except _Slow:
        return {"failed": f"It took more than {LIMIT} CPU seconds."}
    except Exception as error:  # whatever a library raises is its result
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]}
    return judge(network, q, x_adv.detach(), claims) | {
        "forward": round(counts[0] / len(q.x), 2),
        "backward": round(counts[1] / len(q.x), 2),
        "cpu_seconds": round(seconds, 4),
    }


def _timed(module: nn.Module, q: Question, run: peers.Adapter) -> tuple[Tensor, Tensor | None, float]:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    q = Question(q.x.clone(), q.y.clone(), q.norm, q.eps, q.steps, q.size)
    begun = time.process_time()
    x_adv, claims = run(module, q)
    return x_adv, claims, time.process_time() - begun


def judge(network: Callable[[], nn.Module], q: Question, x_adv: Tensor, claims: Tensor | None) -> dict[str, Any]:
    """Check every point [n, ...] that is claimed: finite, in box and ball, misclassified both alone and in a batch.

    Without flags of its own an implementation claims, asked for the smallest change, every point that it changed, and
    under an eps every point that the network misclassifies in one batch.
    """
    fresh = network()
    with torch.no_grad():
        clean = fresh(q.x)
        together = _misled(fresh(x_adv), q.y)
        alone = torch.cat([_misled(fresh(x_adv[i : i + 1]), q.y[i : i + 1]) for i in range(len(q.x))])
    change = (x_adv.double() - q.x.double()).flatten(1)
    if claims is None:
        claims = (change != 0).any(1) if math.isinf(q.eps) else together
    size = change.norm(p=q.p, dim=1)
    finite = x_adv.isfinite().flatten(1).all(1)
    boxed = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    inside = size <= q.eps + slack(q)
    good = claims & finite & boxed & inside & alone & together & ~_misled(clean, q.y)
    size = torch.where(good, size, torch.inf)
    return {
        "n": len(q.x),
        "claimed": int(claims.sum()),
        "success": int(good.sum()),
        "rejected": int((claims & ~good).sum()),
        "rejected_for": {
            "not adversarial": int((claims & ~(alone & together)).sum()),
            "outside the box": int((claims & ~(boxed & finite)).sum()),
            "outside the ball": int((claims & ~inside).sum()),
        },
        "median": _number(float(torch.quantile(size, 0.5, interpolation="higher"))),
        "distances": " ".join("-" if math.isinf(d) else f"{d:.4g}" for d in size.tolist()),
    }


def slack(q: Question) -> float:
    """Return how far float32 points may lie outside a float64 ball: three roundings of every value near 1."""
    values = q.x[0].numel()
    return 2e-7 * {"linf": 1.0, "l2": math.sqrt(values), "l1": float(values), "l0": 0.0}[q.norm]


def _misled(scores: Tensor, y: Tensor) -> Tensor:
    """Whether a wrong class is strictly ahead, bool [n]."""
    own = scores.gather(1, y.view(-1, 1))[:, 0]
    return scores.scatter(1, y.view(-1, 1), -torch.inf).amax(1) > own


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def record(name: str, key: str, entry: dict[str, Any], folder: Path) -> None:
    """Write one entry; two processes may measure side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        results.write(name, key, entry, folder=folder)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Row:
    """One implementation of one attack under one norm on one target."""

    setting: Setting
    task: Task
    norm: str
    side: str
    run: peers.Adapter
    note: str = ""

    @property
    def key(self) -> str:
        """The entry's name."""
        return f"{self.setting.name}/{self.task.attack}/{self.norm}/{self.side}"

    def question(self, x: Tensor, y: Tensor) -> Question:
        """Return what the implementation is asked."""
        eps = math.inf if self.task.smallest else self.task.times * self.setting.eps[self.norm]
        few = self.task.few
        return Question(x[:few], y[:few], self.norm, eps, self.task.steps, self.task.size)


def rows(setting: Setting, tasks: tuple[Task, ...] = TASKS) -> Iterator[Row]:
    """Return every implementation of every task, this package's first."""
    for task in tasks:
        for norm in task.norms:
            if task.attack in LEARNED:
                yield Row(setting, task, norm, OURS, _universal(task.attack, task.steps), task.recipe)
            if task.attack in RECIPES:
                yield Row(setting, task, norm, OURS, ours(task.recipe), task.recipe)
            for peer in PEERS.get(task.attack, []):
                if norm in peer.norms:
                    yield Row(setting, task, norm, peer.library, peer.run, peer.note)


def unfit(row: Row, x: Tensor) -> str:
    """Return why a row cannot be measured, or ""."""
    if row.side != OURS:
        return "" if peers.installed(row.side) else f"{row.side} is not installed"
    if row.task.attack in LEARNED:
        return ""
    try:
        attack = parse(row.task.recipe)
    except InputError as error:
        return str(error)
    eps = math.inf if row.task.smallest else row.setting.eps[row.norm]
    return attack.unfit(x, getattr(uf, row.norm)(eps), 10)


def main() -> None:
    """Measure the rows that are asked for and not known yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attack", nargs="*", help="all by default")
    parser.add_argument("--case", choices=list(SETTINGS), action="append")
    parser.add_argument("--folder", type=Path, default=results.FOLDER, help="where the results are")
    parser.add_argument("--side", action="append", help="an implementation; all by default")
    parser.add_argument("--ours", action="store_true", help=f"--side {OURS} --again")
    parser.add_argument("--again", action="store_true", help="measure what is known already too")
    parser.add_argument("--below", type=float, default=0.0, help="measure again what took fewer CPU seconds")
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    given = parser.parse_args()
    sides, again = given.side or ([OURS] if given.ours else None), given.again or given.ours
    torch.set_num_threads(1)
    peers.prepare()
    warm = False
    for name in given.case or SETTINGS:
        network, x, y = SETTINGS[name].load()
        known = results.read("shelf", folder=given.folder)
        for row in rows(SETTINGS[name]):
            if (given.attack and row.task.attack not in given.attack) or (sides and row.side not in sides):
                continue
            if (row.task.few or row.task.once) and name != next(iter(SETTINGS)):
                continue
            before = known.get(row.key, {})
            quick = before.get("cpu_seconds", math.inf) < given.below
            if not (again or quick) and before.get("budget") == row.task.budget:
                continue
            if why := unfit(row, x):
                print(f"{row.key}: skipped, {why}", flush=True)
                continue
            if row.side != OURS:
                peers.load(row.side)  # no import is timed
            elif not warm:
                uf.run("fgsm()", network(), x[:2], y[:2], uf.linf(0.1))
                warm = True
            q = row.question(x, y)
            about = {
                "case": name, "attack": row.task.attack, "norm": row.norm, "side": row.side, "note": row.note,
                "eps": None if math.isinf(q.eps) else q.eps, "budget": row.task.budget,
                "version": uf.__version__ if row.side == OURS else peers.installed(row.side),
            }  # fmt: skip
            entry = about | measure(network, q, row.run)
            if not given.dry:
                record("shelf", row.key, entry, given.folder)
            shown = ("failed", "success", "rejected", "median", "forward", "backward", "cpu_seconds")
            print(f"{row.key}:", *(f"{k} {entry[k]}" for k in shown if k in entry), flush=True)


if __name__ == "__main__":
    main()
