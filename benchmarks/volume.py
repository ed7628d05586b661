"""How much of the input space the zoo's targets are sure about, and the adversarial spheres.

`python -m benchmarks.volume [case ...]`: coverage, spheres, nearby (around images of every zoo target), or the volumes
of a zoo target (digits-cnn, digits-cnn-robust, mnist-cnn, mnist-cnn-robust); all of them without arguments, about 12
CPU-minutes. It writes benchmarks/results/volume.json and spheres.json, and figures under runs/benchmarks/.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from typing import Any

import torch
from scipy.special import betainc, gammaln, ndtri
from torch import Tensor, nn

import unfooled as uf
from benchmarks import results
from unfooled.core.explanation import Explanation
from unfooled.explain.volume import volume
from unfooled.stats import wilson
from unfooled.testing import Linear

CONFIDENCES = (0.99, 0.9999)
NONE = "no accepted number"
VOLUME = "Webb et al. 2019, arXiv 1811.07209 (the method)"
GAAS = "Tramèr et al. 2017, arXiv 1704.03453"
SPHERES = "Gilmer et al. 2018, arXiv 1801.02774"

TARGETS: dict[str, dict[str, Any]] = {
    "digits-cnn": {"data": "digits", "shape": (1, 8, 8), "cost": {"particles": 300, "replicates": 8}, "l2": (0.5, 1.5)},
    "digits-cnn-robust": {
        "data": "digits",
        "shape": (1, 8, 8),
        "cost": {"particles": 300, "replicates": 8},
        "l2": (0.5, 1.5),
    },
    "mnist-cnn": {
        "data": "mnist",
        "shape": (1, 28, 28),
        "cost": {"particles": 150, "steps": 12, "replicates": 6},
        "l2": (1.5, 5.0),
    },
    "mnist-cnn-robust": {
        "data": "mnist",
        "shape": (1, 28, 28),
        "cost": {"particles": 100, "steps": 6, "replicates": 6},
        "l2": (1.5, 5.0),
    },
}
IMAGES, DIRECTIONS, SUBSPACES = 200, 200, 10
DIMS = (1, 2, 5, 10, 20, 50)


def halfspace(dim: int, beyond: float) -> Linear:
    """Return the target whose class 1 is <w, x> > beyond for a unit vector w."""
    w = torch.randn(dim, generator=torch.Generator().manual_seed(0))
    return Linear(torch.stack([torch.zeros(dim), w / w.norm()]), torch.tensor([0.0, -beyond]))


class Inside(nn.Module):
    """Class 1 is the ball of radius 0.6 around 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [n, 2]."""
        score = 0.36 - x.flatten(1).square().sum(1)
        return torch.stack([torch.zeros_like(score), 10 * score], 1)


def bodies() -> list[tuple[str, nn.Module, int, dict[str, Any], float]]:
    """Return sets of known volume: name, target, dimension, space, and the decimal logarithm of the share."""
    corner = Linear(torch.stack([torch.zeros(22), torch.ones(22)]), torch.tensor([0.0, -21.0]))
    cap = math.log10(0.5 * float(betainc(99 / 2, 0.5, 1 - 0.7**2)))
    return [
        ("half-space, normal inputs", halfspace(20, -float(ndtri(1e-5))), 20, {"over": "normal"}, -5.0),
        ("half-space far out", halfspace(20, 9.262340089798408), 20, {"over": "normal"}, -20.0),
        ("corner of the box", corner, 22, {"over": "box"}, -float(gammaln(23)) / math.log(10)),
        ("ball", Inside(), 100, {"over": "ball", "norm": "l2", "radius": 1.0}, 100 * math.log10(0.6)),
        ("cap of the sphere", halfspace(100, 0.7), 100, {"over": "sphere", "radius": 1.0}, cap),
    ]


def coverage(seeds: int = 12) -> None:
    """Write how often the 95% interval and the lower bound hold, over seeds and sets of known volume."""
    began, rows = time.process_time(), []
    for name, target, dim, where, truth in bodies():
        found = [
            volume(
                target, (dim,), of=1, confidence=0.5, particles=100, check=1, seed=seed, **where
            ).rows()[0]
            for seed in range(seeds)
        ]  # fmt: skip
        rows.append(
            {
                "body": name,
                "truth": truth,
                "mean": sum(row["log10"] for row in found) / seeds,
                "covered": sum(row["low"] <= truth <= row["high"] for row in found),
                "at_least": sum(row["at_least"] <= truth for row in found),
                "runs": seeds,
            }
        )
        print(rows[-1], flush=True)
    n = seeds * len(rows)
    hits, below = (sum(row[key] for row in rows) for key in ("covered", "at_least"))
    places = ", ".join(f"10^{row['truth']:.0f}" for row in rows)
    common = {"n": n, "unit": "%", "published": 0.95, "source": VOLUME, "rows": rows}
    seconds = round(time.process_time() - began, 1)
    results.write(
        "volume",
        "coverage",
        common
        | {
            "what": "control: runs whose 95% interval holds the true share, on sets of known volume",
            "ours": hits / n,
            "interval": list(wilson(hits, n)),
            "note": f"half-spaces, a corner, a ball and a cap of shares {places}; 95% is what is promised",
            "cpu_seconds": seconds,
        },
    )
    results.write(
        "volume",
        "coverage of the lower bound",
        common
        | {
            "what": "control: runs whose lower bound, which needs no mixing, holds",
            "ours": below / n,
            "interval": list(wilson(below, n)),
            "note": "the same runs; at least 95% is promised",
        },
    )


def share_of_box(name: str, plan: dict[str, Any]) -> None:
    """Write the volumes of one target: the total and each class, at both confidences."""
    began = time.process_time()
    found = volume(uf.targets.resolve(name), plan["shape"], confidence=CONFIDENCES, **plan["cost"])
    seconds = round(time.process_time() - began, 1)
    save(f"volume-{name}", found)
    rows = found.rows()
    for confidence in CONFIDENCES:
        mine = [row for row in rows if row["confidence"] == confidence]
        total = mine[-1]
        hits = round(total["monte_carlo"] * found.drawn)
        checked = f"{found.forward:,} forward passes; plain Monte Carlo: {hits:,} of {found.drawn:,}"
        common = {"published": NONE, "source": VOLUME, "forward": found.forward, "cpu_seconds": seconds, "rows": mine}
        bound = f"; at least 10^{total['at_least']:.2f} without trust in the chains" if not total["warning"] else ""
        results.write(
            "volume",
            f"{name} total {confidence}",
            common
            | {
                "what": f"{name}: share of the input box that is called some class above {100 * confidence:g}%",
                "ours": power(total["log10"], total["low"], total["high"]),
                "note": f"{checked}{bound}; {total['warning']}".rstrip("; "),
            },
        )
        doubtful = [row["event"] for row in mine[:-1] if row["warning"]]
        results.write(
            "volume",
            f"{name} classes {confidence}",
            common
            | {
                "what": f"{name}: log10 of the share called each class above {100 * confidence:g}%",
                "ours": ", ".join(f"{row['event']}: {row['log10']:.1f}" for row in mine[:-1]),
                "note": f"undecided: {', '.join(doubtful)}" if doubtful else "every class decided",
            },
        )
    print(found.sentence(), f"{seconds} s", flush=True)


def neighbourhood(name: str, plan: dict[str, Any]) -> None:
    """Write the shares of random directions and subspaces around test images, and the aligned directions."""
    began = time.process_time()
    target, eps = uf.targets.resolve(name), uf.targets.ZOO[name].eps
    data = uf.load_data(plan["data"], limit=IMAGES)
    x, y = data.x, data.y
    radius = {"linf": eps, "l2": plan["l2"][0]}
    for norm, size in radius.items():
        found = uf.explain.directions(target, x, y, radius=size, n=DIRECTIONS, norm=norm)
        save(f"directions-{norm}-{name}", found)
        last = found.rows()[-1]
        shown = {"linf": "Linf", "l2": "L2"}[norm]
        results.write(
            "volume",
            f"{name} directions {norm}",
            {
                "what": f"{name}: random directions around test images that are adversarial within {shown} {size:g}",
                "published": NONE,
                "ours": last["share"],
                "interval": last["interval"],
                "unit": "%",
                "n": last["n"] * last["directions"],
                "note": f"{last['images']:.1%} of the images have one among {last['directions']}; the gradient's "
                f"direction fools {last['gradient']:.1%} (control)",
                "source": VOLUME,
                "rows": found.rows(),
            },
        )
    spaces = uf.explain.subspaces(target, x[:50], y[:50], eps=radius["l2"], dims=DIMS, n=SUBSPACES)
    save(f"subspaces-{name}", spaces)
    rows = spaces.rows()
    linear = ", ".join(f"{row['dimension']}: {row['linear']:.0%}" for row in rows)
    results.write(
        "volume",
        f"{name} subspaces",
        {
            "what": f"{name}: random subspaces with an adversarial point within L2 {radius['l2']:g}, by dimension",
            "published": NONE,
            "ours": ", ".join(f"{row['dimension']}: {row['share']:.0%}" for row in rows),
            "n": spaces.found[0].numel(),
            "note": f"whole space: {rows[0]['whole']:.0%} of images; were it linear there: {linear}",
            "source": VOLUME,
            "rows": rows,
            "seconds": round(time.process_time() - began, 1),
        },
    )
    for size in plan["l2"]:
        aligned = uf.explain.gaas(target, x, y, eps=size)
        save(f"gaas-{size:g}-{name}", aligned)
        last = aligned.rows()[-1]
        results.write(
            "volume",
            f"{name} gaas {size:g}",
            {
                "what": f"{name}: orthogonal adversarial directions around an image, L2 {size:g} (GAAS), mean",
                "published": "44 (fully connected), 15 (convolutional)" if name == "mnist-cnn" else None,
                "ours": round(float(aligned.most.double().mean()), 1),
                "unit": "",
                "n": last["n"],
                "note": f"all that are tried together: {aligned.dimension.double().mean():.1f}; of "
                f"{last['directions']} random directions {last['control']:.2f} (control)"
                + (
                    "; published: other MNIST networks, radius not compared; 25 and 2 transferred"
                    if name == "mnist-cnn"
                    else ""
                ),
                "source": GAAS,
                "rows": aligned.rows(),
            },
        )
    print(name, "neighbourhood", round(time.process_time() - began, 1), "s", flush=True)


def adversarial_spheres(squares: int = 1_000_000, relus: int = 100_000, tested: int = 100_000) -> None:
    """Write the table of the adversarial spheres."""
    began = time.process_time()
    found, rest = (
        uf.explain.spheres(samples=samples, tested=tested, attacked=200, models=models)
        for samples, models in ((squares, ("quadratic",)), (relus, ("relu", "analytic")))
    )
    found = dataclasses.replace(found, models=found.models + rest.models)
    save("spheres", found)
    seconds = round(time.process_time() - began, 1)
    for row in found.rows():
        name, n = row["model"], 2 * row["tested"]
        trained = f"trained on {row['samples']:,} fresh points; the paper on 50 million" if row["samples"] else None
        common = {"source": SPHERES, "row": row, "seconds": seconds}

        def put(
            case: str, what: str, ours: Any, name: str = name, common: dict[str, Any] = common, **more: Any
        ) -> None:
            results.write("spheres", f"{name} {case}", {"what": f"{name}: {what}", "ours": ours} | common | more)

        errors = row["errors_inner"] + row["errors_outer"]
        put(
            "errors", "errors on fresh points of both spheres, 500 dimensions", f"{errors:,} of {n:,}", n=n,
            note=trained, published="0 of 10 million" if name == "quadratic" else None,
        )  # fmt: skip
        if row["axes"]:
            put(
                "axes", f"axes that allow an error, of {row['axes']}", row["axes_wrong"], published="most",
                note="exact, from the weights: alpha outside [1 / 1.69, 1]",
            )  # fmt: skip
        if math.isfinite(row["log10_error"]):
            put(
                "rate", "error rate on the inner sphere", note="multilevel splitting, 95% interval",
                ours=power(row["log10_error"], row["log10_low"], row["log10_high"]),
            )  # fmt: skip
        put(
            "found", "points around which the search on the sphere finds an error", row["found"], unit="%",
            n=row["attacked"], interval=list(wilson(round(row["found"] * row["attacked"]), row["attacked"])),
            note="control: a model by the norm alone" if name == "analytic" else None,
        )  # fmt: skip
        if row["found"]:
            exact = f"; exact nearest errors: {row['exact']:.3f}" if math.isfinite(row["exact"]) else ""
            bound = f"the theorem allows at most {row['bound']:.3f} for this error rate{exact}"
            put("distance", "mean L2 distance to the nearest error found", round(row["distance"], 3), note=bound)
    print(found.sentence(), f"{seconds} s", flush=True)


def power(estimate: float, low: float, high: float) -> str:
    """Return a share with its interval as powers of ten, from decimal logarithms."""
    return f"10^{estimate:.2f} (10^{low:.2f} to 10^{high:.2f})"


def save(name: str, found: Explanation) -> None:
    """Put the figure under runs/benchmarks/."""
    results.SCRATCH.mkdir(parents=True, exist_ok=True)
    (results.SCRATCH / f"{name}.png").write_bytes(found.image())


def main(arguments: list[str]) -> None:
    """Measure the named cases, or all."""
    known = ["coverage", *TARGETS, "nearby", "spheres"]
    if unknown := [case for case in arguments if case not in known]:
        raise SystemExit(f"There is no case {unknown[0]}; use some of {', '.join(known)}.")
    torch.set_num_threads(1)
    for case in arguments or known:
        if case == "coverage":
            coverage()
        elif case == "spheres":
            adversarial_spheres()
        elif case == "nearby":
            for name, plan in TARGETS.items():
                neighbourhood(name, plan)
        else:
            share_of_box(case, TARGETS[case])


if __name__ == "__main__":
    main(sys.argv[1:])
