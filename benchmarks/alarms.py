"""False alarms: the doctor and the verdict on honest targets, which they should trust.

    python -m benchmarks.alarms [--only NAME ...] [--cache FOLDER] [--suite quick] [--n 100]

A finding that escalates, or makes the number suspect or withholds it, is a false alarm; so is any status but trusted.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import unfooled as uf
from benchmarks import results
from tests.gauntlet.honest import HONEST, Honest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unfooled-benchmarks" / "honest"
ALARMS = ("escalated", "suspect", "withheld")


def findings_of(seen: Any) -> list[Any]:
    """Return the findings of the doctor's answer, which is a list of them or holds one."""
    return list(getattr(seen, "findings", seen))


def measure(case: Honest, *, n: int, suite: str, cache: Path) -> dict[str, Any]:
    """Return what doctor and evaluation said about one honest target."""
    target = case.build(cache)
    x, y = case.images(n)
    began = time.monotonic()
    try:
        doctor = getattr(uf, "doctor", None)
        seen = findings_of(doctor(target, x, y, case.threat)) if doctor else []
        doctor_seconds = time.monotonic() - began
        found = uf.evaluate(target, x, y, case.threat, suite=suite)
    except Exception as e:
        return {"error": f"{type(e).__name__}: {' '.join(str(e).split())[:200]}", "alarm": True}
    findings = {(f.id, f.consequence): f.sentence for f in [*seen, *found.findings]}
    alarms = [f"{i} {c}: {s}" for (i, c), s in findings.items() if c in ALARMS]
    return {
        "clean": round(float(found.clean_accuracy), 4), "robust": round(float(found.robust_accuracy), 4),
        "status": str(found.status), "reasons": list(found.reasons), "alarms": alarms,
        "other": [f"{i} {c}" for i, c in findings if c not in ALARMS],
        "doctor_seconds": round(doctor_seconds, 2), "seconds": round(time.monotonic() - began, 2),
        "alarm": bool(alarms) or found.status != "trusted",
    }  # fmt: skip


def main() -> None:
    """Run the targets that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the trained weights")
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--train", action="store_true", help="train and stop")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: dict[str, Any] = {}
    for name, case in HONEST.items():
        if given.only and name not in given.only:
            continue
        if given.train:
            began = time.monotonic()
            target, (x, y) = case.build(given.cache), case.images(300)
            with torch.no_grad():
                right = (uf.Target(target).scores(x) if not isinstance(target, uf.Target) else target.scores(x)).argmax(
                    1
                )
            print(f"{name}: clean {(right == y).float().mean():.1%}, {time.monotonic() - began:.1f} s", flush=True)
            continue
        row = rows[name] = measure(case, n=given.n, suite=given.suite, cache=given.cache)
        text = row.get("error") or (
            f"clean {row['clean']:.0%} robust {row['robust']:.0%} {row['status']} {row['seconds']:.1f} s "
            + "; ".join(row["alarms"] or row["reasons"])
        )
        print(f"{'ALARM' if row['alarm'] else 'ok   '} {name}: {text}", flush=True)
    if given.train:
        return
    alarms = sum(r["alarm"] for r in rows.values())
    print(f"{alarms} false alarms on {len(rows)} honest targets")
    if not given.only:
        entry = {"suite": given.suite, "n": given.n, "targets": len(rows), "false_alarms": alarms, "rows": rows}
        results.write("alarms", "alarms", entry)


if __name__ == "__main__":
    main()
