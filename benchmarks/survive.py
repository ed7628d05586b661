"""Runs killed with SIGKILL at random moments, and resumed until they are done, equal undisturbed ones: how many?

`python -m benchmarks.survive --kills 200` writes benchmarks/results/survive.json. A killed process is a fork of this
one, so that an attempt costs milliseconds; a run is pgd, pgd_targeted, apgd and square on a small network with 3 slots.
"""

import argparse
import functools
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled.attacks import parse
from unfooled.core.engine import Engine
from unfooled.core.journal import Journal, run_key

ROWS = ("status", "x_adv", "best", "distance", "margin", "label", "label_clean", "confidence", "confidence_clean",
        "steps", "broken_by", "ids", "y", "forward", "backward", "padding", "overrun", "vanished", "notes",
        "classes")  # fmt: skip
TABLE = ("name", "attempted", "broken", "robust_accuracy_after", "forward", "backward", "skipped")
CASCADE = ("pgd(steps=4, restarts=2)", "pgd_targeted(steps=4, targets=2)", "apgd(steps=6)", "square(queries=12)")
THREAT, WIDTH, SEED = uf.linf(0.12), 3, 7


def bits(run: uf.Run) -> list[Any]:
    """Return everything that a run found and counted, times aside: equal lists are equal bits."""
    out: list[Any] = []
    for name in ROWS:
        value = getattr(run, name)
        if isinstance(value, Tensor):
            out.append([name, list(value.shape), value.contiguous().reshape(-1).view(torch.uint8).tolist()])
        else:
            out.append([name, value.tolist() if isinstance(value, np.ndarray) else value])
    return [*out, [[getattr(row, name) for name in TABLE] for row in run.attacks]]


def case() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a small convolutional network that draws noise in forward, 60 images and their labels."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.Flatten(),
                            nn.Linear(32, 5)).eval()  # fmt: skip
        x = torch.rand(60, 1, 8, 8)

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.net(x)
            return scores + 1e-4 * torch.randn_like(scores)

    return Noisy().eval(), x, net(x).argmax(1)


def attack(journal: Journal | None = None) -> uf.Run:
    """Run the cascade."""
    net, x, y = case()
    return uf.run(list(CASCADE), net, x, y, THREAT, batch_size=WIDTH, seed=SEED, journal=journal, phase="suite")


def key() -> dict[str, Any]:
    """Return the header of its journal."""
    net, x, y = case()
    given = {"threat": THREAT, "attacks": CASCADE, "width": WIDTH, "seed": SEED}
    return run_key(target=uf.Target(net), x=x, y=y, **given)


@functools.cache
def undisturbed() -> tuple[str, float]:
    """Return what a run that nobody disturbs finds, and the seconds that it takes; with no journal at all."""
    attack()
    begun = time.monotonic()
    found = json.dumps(bits(attack()))
    return found, time.monotonic() - begun


def attempt(folder: Path, prepare: Callable[[], None] | None = None) -> int:
    """Start or resume the run in a process of its own and return its id; it writes result.json at its end."""
    undisturbed()
    child = os.fork()
    if child:
        return child
    try:
        if prepare is not None:
            prepare()
        with Journal(folder / "journal.jsonl", key()) as journal:
            found = json.dumps(bits(attack(journal)))
            journal.finish()
        (folder / "result.json").write_text(found)
    except BaseException as error:
        (folder / "error.txt").write_text(repr(error))
        os._exit(1)
    os._exit(0)


def ended(child: int) -> bool:
    """Wait for the process; whether it was killed."""
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def compare(folder: Path) -> None:
    """Assert that the finished run equals the undisturbed one."""
    assert not (folder / "error.txt").exists(), (folder / "error.txt").read_text()
    assert (folder / "result.json").read_text() == undisturbed()[0], f"{folder}: a resumed run differs"


def until_done(folder: Path, *, seed: int, kills: int) -> int:
    """Kill a run after random times, about `kills` times, and resume it until it is done; return how often it was."""
    g, seconds, count = random.Random(seed), undisturbed()[1], 0
    while True:
        child = attempt(folder)
        if count < 8 * kills:  # then in peace
            time.sleep(g.expovariate(kills / seconds))
            os.kill(child, signal.SIGKILL)
        if not ended(child):
            compare(folder)
            return count
        count += 1


def _dying(owner: Any, name: str, at: int, before: Callable[..., None] | None = None) -> None:
    """Let this process kill itself in the `at`-th call of a function: after `before`, or else after its work."""
    real, left = getattr(owner, name), [at]

    def dies(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            if before is None:
                real(*args, **kwargs)
            else:
                before(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, dies)


_WRITE = os.write

POINTS: dict[str, Callable[[int], None]] = {
    "refill": lambda n: _dying(Engine, "_fresh", n),
    "compaction": lambda n: _dying(Engine, "_fill", 3 * n),
    "re-check": lambda n: _dying(Engine, "_recheck", n // 3 + 1, lambda *_: None),
    "re-checked": lambda n: _dying(Engine, "_recheck", n // 3 + 1),
    "last iterate": lambda n: _dying(Engine, "_look_at_last", n),
    "leaving": lambda n: _dying(Engine, "_retire", n),
    "step": lambda n: _dying(type(parse("pgd()")), "step", 5 * n),
    "no byte written": lambda n: _dying(os, "write", n // 4 + 1, lambda *_: None),
    "half written": lambda n: _dying(os, "write", n // 4 + 1, lambda f, data: _WRITE(f, bytes(data)[: len(data) // 2])),
    "written": lambda n: _dying(os, "write", n // 4 + 1),
    "flushed": lambda n: _dying(os, "fsync", 1),
    "opened": lambda n: _dying(Journal, "_load", 1, lambda *_: None),
    "cut": lambda n: _dying(os, "ftruncate", 1),
}
"""Moments inside the work at which a process can be made to kill itself, by the number of the call."""


def at_point(folder: Path, point: str, *, times: int, seed: int = 0) -> int:
    """Let a run kill itself at `point` in so many attempts, then finish it; return how often it was killed there."""
    g, count = random.Random(f"{seed}{point}"), 0
    for _ in range(times):
        if point == "cut":  # something must be torn
            ended(attempt(folder, functools.partial(POINTS["half written"], 9)))
        count += ended(attempt(folder, functools.partial(POINTS[point], g.randint(1, 12))))
    assert not ended(attempt(folder))
    compare(folder)
    return count


def main(arguments: list[str] | None = None) -> None:
    """Count kills until there are enough, at random moments and at every point, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "survive.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    begun, moments, runs, inside = time.monotonic(), 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        with Journal(Path(name) / "whole.jsonl", key()) as journal:
            attack(journal)
            chunks = journal.chunks
        while moments < given.kills:
            folder = Path(name) / str(runs)
            folder.mkdir()
            moments += until_done(folder, seed=runs, kills=12)
            runs += 1
        for point in POINTS:
            folder = Path(name) / point
            folder.mkdir()
            inside += at_point(folder, point, times=3)
    result = {
        "kills_at_random_moments": moments,
        "kills_inside_a_step_of_the_work": inside,
        "points": list(POINTS),
        "runs": runs + len(POINTS),
        "equal": runs + len(POINTS),  # compare() has raised otherwise
        "chunks_in_a_run": chunks,
        "seconds": round(time.monotonic() - begun, 1),
        "seconds_undisturbed": round(undisturbed()[1], 2),
        "torch": torch.__version__,
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
