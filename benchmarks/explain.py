"""Every figure and table of docs/explain.md and docs/fooling.md, measured again, and the time of one page.

python -m benchmarks.explain [fooling] [rubbish] [volume] [directions] [visual] [features] [halves] [hypotheses] [page]

Each part is a benchmark of its own (`python -m benchmarks.fooling`, ...) and writes its tables to benchmarks/results
and its figures to runs/benchmarks. All of them take hours on one core; `features` alone more than one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import results, tables

PARTS = ("fooling", "rubbish", "volume", "directions", "visual", "features", "halves", "hypotheses")
LIMIT = 20.0  # seconds that one page on the default target may take on two cores


def page() -> None:
    """Time `unfooled explain` from the start of the process to its end, five examples, the slowest counts."""
    taken = []
    for example in range(5):
        with tempfile.TemporaryDirectory() as folder:
            command = ["explain", "digits-cnn", str(example), "--out", str(Path(folder) / "page")]
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "unfooled", *command], check=True, capture_output=True)
            taken.append(time.perf_counter() - began)
    entry = {"seconds": taken, "slowest": max(taken), "limit": LIMIT, "target": "digits-cnn"}
    results.write("page", "digits-cnn", entry)
    print(f"page: {max(taken):.1f} s at most ({LIMIT:.0f} s allowed)")


def main() -> None:
    """Measure the named parts, or all, and rewrite the pages' tables."""
    for part in sys.argv[1:] or (*PARTS, "page"):
        if part == "page":
            page()
        elif part in PARTS:
            subprocess.run([sys.executable, "-m", f"benchmarks.{part}"], check=True)
        else:
            raise SystemExit(f"There is no part {part}; use some of {', '.join(PARTS)}, page.")
    tables.main()


if __name__ == "__main__":
    main()
