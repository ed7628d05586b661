"""Suite `standard` against AutoAttack's standard set: same targets, same images, same process, both counted by a spy.

    python -m benchmarks.standard                     every case, one after the other
    python -m benchmarks.standard mnist_256x2         one case; each is written to results/standard.json as it ends
    python -m benchmarks.standard --cost              what AutoAttack spends on one surviving image
    python -m benchmarks.standard --baseline DIR ...  keep AutoAttack's outcome in DIR
    python -m benchmarks.standard --cached DIR ...    take it from there: for tuning, not of record (runs/benchmarks)

AutoAttack is its own public code (`pip install pyautoattack==0.2.0` in a scratch environment). Whatever either side
calls broken is checked again here: finite, inside ball and box in float64, misclassified by a freshly built network.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unfooled as uf
from benchmarks import baseline, results
from benchmarks.baseline import Outcome, Spy, Stage
from benchmarks.cases import CASES, Case

SLACK = 2e-7
"""How far a float32 image may lie outside a float64 ball: the rounding of x + eps near 1, three times over."""

COST_IMAGES = 20


def measure(case: Case, suite: str, *, cached: Path | None = None, keep: Path | None = None) -> dict[str, Any]:
    """Run both sides on one case and return its entry."""
    x, y = case.images()
    module = case.network()
    module(x[: case.batch_size])  # the first pass of a process is slow
    if cached is None:
        theirs = baseline.autoattack(module, x, y, case.eps, batch_size=case.batch_size)
        if keep is not None:
            baseline.save(keep, theirs, x, y)
    else:
        theirs, images, labels = baseline.load(cached)
        assert torch.equal(images, x) and torch.equal(labels, y), f"{cached} belongs to other images"
    ours, attacks, ledger = unfooled(module, x, y, case.eps, suite)
    false_theirs, far_theirs = refused(case, x, y, theirs)
    false_ours, far_ours = refused(case, x, y, ours)
    robust_theirs, robust_ours = theirs.robust.clone(), ours.robust.clone()
    robust_theirs[false_theirs] = True
    robust_ours[false_ours] = True
    return {
        "title": case.title,
        "data": case.data,
        "threat": f"linf({case.radius})",
        "eps": case.eps,
        "n": len(y),
        "clean": int(theirs.clean.sum()),
        "paired": cached is None,
        "autoattack": {"robust": int(robust_theirs.sum())} | figures(theirs) | checks(false_theirs, far_theirs),
        "unfooled": {"robust": int(robust_ours.sum()), "suite": suite, "attacks": attacks, "ledger": ledger}
        | figures(ours)
        | checks(false_ours, far_ours),
        "only_autoattack": (~robust_theirs & robust_ours).nonzero().flatten().tolist(),
        "only_unfooled": (robust_theirs & ~robust_ours).nonzero().flatten().tolist(),
    }


def unfooled(module: nn.Module, x: Tensor, y: Tensor, eps: float, suite: str) -> tuple[Outcome, list[str], list[int]]:
    """Run one suite of this package; also its recipes, and the rows that its own ledger holds, padding included."""
    spy = Spy(module)
    wall, cpu = time.perf_counter(), time.process_time()
    found = uf.evaluate(uf.Target(spy), x, y, uf.linf(eps), suite=suite, seed=0)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    stages = [
        Stage(row.name, round(row.robust_accuracy_after * len(y)), row.forward, row.backward, row.seconds)
        for row in found.attacks
    ]
    after = torch.empty(0, len(y), dtype=torch.bool)
    outcome = Outcome(
        found.clean, found.robust, after, found.x_adv, spy.count.forward, spy.count.backward, wall, cpu, stages
    )
    extra = zip(found.settings["padding"], found.settings["overrun"], strict=True)
    totals = (found.forward_total, found.backward_total)
    return outcome, found.settings["attacks"], [own + sum(more) for own, more in zip(totals, extra, strict=True)]


def refused(case: Case, x: Tensor, y: Tensor, outcome: Outcome) -> tuple[list[int], float]:
    """Return the rows whose adversarial example is none after all, and how far the farthest lies outside the ball."""
    rows = (outcome.clean & ~outcome.robust).nonzero().flatten()
    if not len(rows):
        return [], 0.0
    x_adv, start = outcome.x_adv[rows].double(), x[rows].double()
    finite = x_adv.isfinite().flatten(1).all(1)
    far = (x_adv - start).abs().flatten(1).amax(1) - case.eps
    boxed = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    fresh = case.network()
    with torch.no_grad():
        label = torch.cat([fresh(part).argmax(1) for part in outcome.x_adv[rows].split(50)])
    good = finite & (far <= SLACK) & boxed & (label != y[rows])
    return rows[~good].tolist(), float(far.max())


def figures(outcome: Outcome) -> dict[str, Any]:
    """Return the cost of one side as plain numbers."""
    return {
        "forward": outcome.forward,
        "backward": outcome.backward,
        "seconds": round(outcome.seconds, 2),
        "cpu_seconds": round(outcome.cpu_seconds, 2),
        "stages": [asdict(stage) | {"seconds": round(stage.seconds, 2)} for stage in outcome.stages],
    }


def checks(rows: list[int], far: float) -> dict[str, Any]:
    """Return what the independent check found."""
    return {"refused": rows, "outside_by": max(far, 0.0)}


def cost(name: str) -> dict[str, Any]:
    """Return what AutoAttack spends on one image that survives everything: counted on survivors alone."""
    case = CASES[name]
    module = case.network()
    x, y = case.images()
    found, _, _ = unfooled(module, x, y, case.eps, "standard")
    rows = found.robust.nonzero().flatten()[: 2 * COST_IMAGES]
    first = baseline.autoattack(module, x[rows], y[rows], case.eps, batch_size=case.batch_size)
    rows = rows[first.robust][:COST_IMAGES]
    outcome = baseline.autoattack(module, x[rows], y[rows], case.eps, batch_size=case.batch_size)
    assert outcome.robust.all(), "an image that survived was broken when it was attacked again"
    return {
        "case": name,
        "n": len(rows),
        "forward": outcome.forward / len(rows),
        "backward": outcome.backward / len(rows),
        "published": {"forward": 7900, "backward": 1960},
        "stages": {stage.name: [stage.forward / len(rows), stage.backward / len(rows)] for stage in outcome.stages},
    }


def main() -> None:
    """Run the cases that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", help=f"one of {', '.join(CASES)}; all by default")
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cost", action="store_true", help="measure AutoAttack's cost per surviving image")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--baseline", type=Path, help="folder to keep AutoAttack's outcome in")
    where.add_argument("--cached", type=Path, help="folder to take AutoAttack's outcome from")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.cost:
        entry = cost("mnist_256x2")
        results.write("cost", "autoattack", entry)
        print(entry)
        return
    for name in given.case or CASES:
        folder = given.cached or given.baseline
        path = folder / name / "autoattack" if folder else None
        entry = measure(
            CASES[name],
            given.suite,
            cached=path if given.cached else None,
            keep=path if given.baseline else None,
        )
        results.write("standard", name, entry, folder=results.FOLDER if entry["paired"] else results.SCRATCH)
        theirs, ours = entry["autoattack"], entry["unfooled"]
        print(
            f"{name}: n {entry['n']}, robust {theirs['robust']} / {ours['robust']}, "
            f"forward {theirs['forward']} / {ours['forward']}, backward {theirs['backward']} / {ours['backward']}, "
            f"seconds {theirs['seconds']} / {ours['seconds']} (cpu {theirs['cpu_seconds']} / {ours['cpu_seconds']}), "
            f"only autoattack {entry['only_autoattack']}, only unfooled {entry['only_unfooled']}, "
            f"refused {theirs['refused']} / {ours['refused']}, "
            f"outside by {theirs['outside_by']:.1e} / {ours['outside_by']:.1e}, "
            f"ledger {'agrees' if ours['ledger'] == [ours['forward'], ours['backward']] else 'DIFFERS'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
