"""What the doctor and the controls of the verdict cost, as a share of suite standard on honest robust targets.

`python -m benchmarks.checks` writes benchmarks/results/checks.json: both shipped robust networks, at most 1,000 images.
"""

from __future__ import annotations

import argparse

import torch

import unfooled as uf
from benchmarks import results

CASES = {"digits-cnn-robust": ("digits", "linf(0.1)"), "mnist-cnn-robust": ("mnist", "linf(0.3)")}
AIM = 0.10


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--only", choices=CASES)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name, (data, threat) in CASES.items():
        if given.only in (None, name):
            found = uf.evaluate(name, data, None, threat, suite="standard", limit=given.limit)
            forward, backward = found.settings["checks"]
            results.write(
                "checks",
                name,
                {
                    "n": found.n,
                    "threat": threat,
                    "verdict": found.verdict,
                    "robust": found.robust_accuracy,
                    "seconds": round(found.seconds, 2),
                    "check_seconds": round(found.check_seconds, 3),
                    "share": round(found.check_seconds / (found.seconds - found.check_seconds), 5),
                    "aim": AIM,
                    "forward": forward,
                    "backward": backward,
                    "forward_share": round(forward / found.forward_total, 5),
                },
            )
            print(name, found, f"{found.check_seconds:.2f} of {found.seconds:.1f} s")


if __name__ == "__main__":
    main()
