"""What the journal costs: the same attacks with and without it, in turn.

`python -m benchmarks.journal` writes benchmarks/results/journal.json: suite standard, 200 digits, digits-cnn-robust.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import unfooled as uf
from benchmarks.survive import bits
from unfooled.core import engine
from unfooled.core.data import load_data
from unfooled.core.journal import Journal, run_key


def timed(work: Callable[..., Any], total: list[float]) -> Callable[..., Any]:
    """Return a function that does the same and adds its seconds to `total`."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        begun = time.monotonic()
        try:
            return work(*args, **kwargs)
        finally:
            total[0] += time.monotonic() - begun

    return wrapped


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "journal.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    target = uf.targets.resolve("digits-cnn-robust")
    data = load_data("digits", limit=given.limit)
    suite, threat = uf.attacks.suite("standard"), uf.linf(0.1)
    key = run_key(target=target, x=data.x, y=data.y, threat=threat, attacks=suite.attacks, width=256, seed=0)

    def measure(journal: Journal | None) -> tuple[float, uf.Run]:
        begun = time.process_time(), time.monotonic()
        run = uf.run(suite.attacks, target, data.x, data.y, threat, more=suite.more, journal=journal, phase="suite")
        wall.append(time.monotonic() - begun[1])
        return time.process_time() - begun[0], run

    inside = [0.0]
    for owner, work in (
        (engine, "pack"),
        (Journal, "write"),
        (Journal, "read"),
        (Journal, "phase"),
        (Journal, "close"),
    ):
        setattr(owner, work, timed(getattr(owner, work), inside))
    wall: list[float] = []
    without, with_, sizes, resumed = [], [], [], []
    spent: list[float] = []
    measure(None)
    wall.clear()
    with tempfile.TemporaryDirectory() as name:
        inside[0] = 0.0
        for number in range(given.repeats):
            seconds, plain = measure(None)
            without.append(seconds)
            path = Path(name) / f"{number}.jsonl"
            with Journal(path, key) as journal:
                begun = time.process_time()
                _, kept = measure(journal)
                journal.finish()
                with_.append(time.process_time() - begun)
            spent.append(inside[0])
            sizes.append(path.stat().st_size)
            with Journal(path, key) as journal:
                seconds, again = measure(journal)
                resumed.append(seconds)
            inside[0] = 0.0
            assert bits(plain) == bits(kept) == bits(again)
    difference = statistics.median(b / a - 1 for a, b in zip(without, with_, strict=True))
    cost = statistics.median(s / t for s, t in zip(spent, wall[1::3], strict=True))
    result = {
        "examples": given.limit,
        "attacks": [repr(a) for a in suite.attacks],
        "cpu_seconds_without": [round(s, 2) for s in without],
        "cpu_seconds_with": [round(s, 2) for s in with_],
        "difference": round(difference, 4),
        "seconds_in_the_journal": [round(s, 3) for s in spent],
        "cost": round(cost, 4),
        "seconds_without": [round(s, 2) for s in wall[::3]],
        "seconds_with": [round(s, 2) for s in wall[1::3]],
        "cpu_seconds_to_replay": [round(s, 2) for s in resumed],
        "bytes": sizes[0],
        "torch": torch.__version__,
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
