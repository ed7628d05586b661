"""What the journal costs: the same attacks with and without it, in turn.

`python -m benchmarks.journal` writes benchmarks/results/journal.json: suite standard, 200 digits, digits-cnn-robust.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

import unfooled as uf
from benchmarks.survive import bits
from unfooled.core.data import load_data
from unfooled.core.journal import Journal, run_key


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

    wall: list[float] = []
    without, with_, sizes, resumed = [], [], [], []
    measure(None)
    wall.clear()
    with tempfile.TemporaryDirectory() as name:
        for number in range(given.repeats):
            seconds, plain = measure(None)
            without.append(seconds)
            path = Path(name) / f"{number}.jsonl"
            with Journal(path, key) as journal:
                begun = time.process_time()
                _, kept = measure(journal)
                journal.finish()
                with_.append(time.process_time() - begun)
            sizes.append(path.stat().st_size)
            with Journal(path, key) as journal:
                seconds, again = measure(journal)
                resumed.append(seconds)
            assert bits(plain) == bits(kept) == bits(again)
    cost = statistics.median(b / a - 1 for a, b in zip(without, with_, strict=True))
    result = {
        "examples": given.limit,
        "attacks": [repr(a) for a in suite.attacks],
        "cpu_seconds_without": [round(s, 2) for s in without],
        "cpu_seconds_with": [round(s, 2) for s in with_],
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
