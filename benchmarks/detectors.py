"""Detectors of adversarial examples: what they see of attacks that ignore them, and what attacks on both leave.

python -m benchmarks.detectors [case ...]     digits, mnist, cifar10 (mnist:unsure, mnist:cost), rounds
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import unfooled as uf
from benchmarks import published, results
from unfooled.core.target import Target
from unfooled.harden import Median, Quantised, detect
from unfooled.harden.detect import Judged, Watched
from unfooled.stats import wilson

ATTACK = "pgd(steps=5)"  # that trained detectors learn from
IGNORING = ("fgsm()", "pgd(steps=40)", "cw(steps=30, searches=4)", "deepfool(steps=20)")
SHORT = ("pgd(steps=40, schedule='cosine')", "pgd(steps=40, loss='margin', sense='selective')")
"""Attacks on both where suite standard is run beside them and every attack of `detect.ADAPTIVE` was compared once."""
FPR, SOME = 0.05, 120
OTHERS = "100% for each of four detectors (CIFAR-10, Linf 0.031)"
PAPER = "Bryniarski et al. 2021, arXiv:2106.15023"
FOLDER = results.SCRATCH / "detectors"


@dataclass(frozen=True)
class Setting:
    """One target: its images, eps, the layers that detectors read, and how much is spent."""

    data: str
    target: Callable[[], nn.Module]
    eps: float
    early: str
    last: str
    learned: int
    epochs: int
    calibrated: slice
    measured: int
    squeezers: tuple[Callable[[nn.Module], nn.Module], ...]
    detectors: tuple[str, ...]


def _zoo(name: str) -> nn.Module:
    module = uf.targets.resolve(name).module
    assert isinstance(module, nn.Module)
    return module.eval().requires_grad_(False)


EVERY = ("input", "layer", "squeezing", "unsure", "mahalanobis")
BITS = (lambda m: Quantised(m, 1), lambda m: Median(m, 3))
SETTINGS = {
    "digits": Setting("digits", lambda: _zoo("digits-cnn"), 0.1, "2", "5", 1000, 12, slice(400, 797), 200, BITS, EVERY),
    "mnist": Setting(
        "mnist", lambda: _zoo("mnist-cnn"), 0.1, "2", "5", 3000, 3, slice(5000, 6000), 60, BITS,
        ("input", "squeezing", "unsure"),
    ),
    "cifar10": Setting(
        "cifar10", lambda: published.cifar_resnet20(), 8 / 255, "layer1", "layer3", 1500, 2, slice(600, 1000), 50,
        (lambda m: Quantised(m, 5), lambda m: Median(m, 3)), ("input", "unsure"),
    ),
}  # fmt: skip
WHAT = {
    "input": "convolutional detector on the input",
    "layer": "detector on an early layer",
    "squeezing": "feature squeezing",
    "unsure": "largest softmax probability",
    "mahalanobis": "Mahalanobis distance in the last hidden layer",
}


def _images(name: str, split: str) -> tuple[Tensor, Tensor]:
    data = uf.load_data(name, split=split, data_dir=str(published.data_dir()))
    return data.x, data.y


def made(kind: str, s: Setting, module: nn.Module) -> Watched:
    """Return the target with a detector of this kind, calibrated on clean test images that are not measured."""
    x, y = (part[: s.learned] for part in _images(s.data, "train"))
    held = _images(s.data, "test")[0][s.calibrated]
    if kind in ("input", "layer"):
        on = "input" if kind == "input" else s.early
        seen = detect.detector(
            module, x, y, ATTACK, uf.linf(s.eps), on=on, epochs=s.epochs, batch_size=64, lr=3e-3, seed=0
        )
        return detect.calibrated(Watched(module, seen, on), held, fpr=FPR)
    if kind == "squeezing":
        return detect.calibrated(Watched(module, detect.Squeezed(module, s.squeezers)), held, fpr=FPR)
    if kind == "unsure":
        return detect.calibrated(Watched(module, detect.Unsure(), "scores"), held, fpr=FPR)
    with torch.no_grad():
        features = detect.read_by(module, x, s.last)[1]
    return detect.calibrated(Watched(module, detect.Mahalanobis(features, y), s.last), held, fpr=FPR)


def judge(
    guard: Watched, module: nn.Module, s: Setting, n: int, ignoring: tuple[str, ...], adaptive: tuple[str, ...]
) -> tuple[Judged, Tensor, dict[str, Any]]:
    """Return the judgement, which rows stand under it and under suite standard too, and what that suite said."""
    x, y = (part[:n] for part in _images(s.data, "test"))
    ball = uf.linf(s.eps)
    found = detect.judged(guard, module, x, y, ball, ignoring=ignoring, adaptive=adaptive, fpr=FPR)
    suite = uf.evaluate(Target(guard, reject="last"), x, y, threat=ball, suite="standard")
    told = {"standard": suite.robust_accuracy, "status": suite.status, "reasons": suite.reasons}
    return found, found.robust & suite.robust, told


def table(name: str, *kinds: str) -> None:
    """Write the rows of one target: what each detector sees, what is left, and what it costs."""
    s = SETTINGS[name]
    module = s.target()
    for kind in kinds or s.detectors:
        full = (s.measured, detect.IGNORING, detect.ADAPTIVE)
        plan = full if kind == "input" else (min(s.measured, SOME), IGNORING, SHORT)
        began = time.process_time()
        guard = made(kind, s, module)
        training = time.process_time() - began
        found, stands, told = judge(guard, module, s, *plan)
        write(f"{name}-{kind}", f"{name}, {WHAT[kind]}", found, stands, told, s, training, time.process_time() - began)
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{name}-{kind}.png").write_bytes(found.image())


def write(
    case: str, what: str, found: Judged, stands: Tensor, told: dict[str, Any], s: Setting, training: float, all_: float
) -> None:
    """Write three rows: areas under curves, joint robust accuracy, success of attacks on both."""
    n, kept, left = found.n, int(found.kept.sum()), int(stands.sum())
    shares = {k: float(v.double().mean()) for k, v in (
        ("clean", found.right), ("alone", found.alone), ("kept", found.kept), ("ignored", found.ignored),
        ("refused", found.refused))}  # fmt: skip
    by = {name: int((found.kept & ~b).sum()) / n for name, b in found.broken.items()}
    ignoring = [row for row in found.rows() if row["knows"] == "the target"]
    raw = {"rows": ignoring, "shares": shares, "by": by, **told, "eps": s.eps, "seed": 0} | {
        "training_seconds": training, "seconds": all_, "parameters": found.cost,
    }  # fmt: skip
    seen = "; ".join(
        f"{a.attack.partition('(')[0]} {a.auroc:.3f} ({a.interval[0]:.2f}–{a.interval[1]:.2f}), {a.tpr(FPR):.0%}"
        for a in found.seen if int(a.fooled.sum())
    )  # fmt: skip
    results.write("detectors", f"{case}-seen", {
        "what": f"{what}: AUROC and TPR at 5% FPR against attacks that ignore it, Linf {s.eps:.3g}", "published": None,
        "ours": seen, "unit": "", "n": n, "source": "", **raw,
        "note": ", ".join(f"{a.attack} fools {int(a.fooled.sum())}" for a in found.seen),
    })  # fmt: skip
    strongest = ", ".join(f"{_short(name)} {share:.1%}" for name, share in by.items())
    results.write("detectors", f"{case}-joint", {
        "what": f"{what}: right and accepted clean, right or refused under attacks on both", "published": None,
        "ours": left / n, "unit": "%", "n": n, "interval": list(wilson(left, n)), "source": "",
        "note": f"without it {shares['alone']:.1%}; with it under the attacks that ignore it {shares['ignored']:.1%}; "
        f"clean {shares['kept']:.1%} ({shares['refused']:.1%} refused); by attack: {strongest}, suite standard "
        f"{told['standard']:.1%} ({told['status']})",
    })  # fmt: skip
    gone = kept - left
    results.write("detectors", f"{case}-success", {
        "what": f"{what}: success of attacks on both among images right and accepted", "published": OTHERS,
        "ours": gone / kept, "unit": "%", "n": kept, "interval": list(wilson(gone, kept)), "source": PAPER,
        "note": f"{training:.0f} CPU s to train the detector",
    })  # fmt: skip
    print(case, seen, left / n, by, told, shares, f"{training:.0f} + {all_ - training:.0f} s", flush=True)


def cost(name: str) -> None:
    """Write what each detector adds to the target: parameters, and CPU seconds of a forward pass (one thread)."""
    s = SETTINGS[name]
    module = s.target()
    x = _images(s.data, "test")[0][:64]
    brief = replace(s, learned=256, epochs=1, calibrated=slice(400, 500))  # what it costs does not depend on training
    for kind in s.detectors:
        guard = made(kind, brief, module)
        spent: dict[nn.Module, list[float]] = {module: [], guard: []}
        with torch.no_grad():
            for each in [module, guard] * 30:
                began = time.process_time()
                each(x)
                spent[each].append(time.process_time() - began)
        plain, worn = (sorted(times)[len(times) // 2] for times in spent.values())
        counts = [sum(p.numel() for p in each.parameters()) for each in (module, guard)]
        results.write("detectors", f"{name}-{kind}-cost", {
            "what": f"{name}, {WHAT[kind]}: parameters and CPU time of a forward pass of 64", "published": "twice",
            "unit": "", "ours": f"{counts[1] / counts[0]:.2f} times, {worn / plain:.2f} times", "n": 64, "source": "",
            "note": f"{counts[1]:,} parameters instead of {counts[0]:,}, {1000 * worn:.1f} ms instead of "
            f"{1000 * plain:.1f} ms",
            "parameters": counts[1] / counts[0], "seconds": worn / plain,
        })  # fmt: skip
        print(name, kind, counts, plain, worn, flush=True)


def _short(attack: str) -> str:
    for sense in ("selective", "orthogonal"):
        if sense in attack:
            return sense
    return attack.partition("(")[0]


def rounds(count: int = 3) -> None:
    """Write what remains when the detector learns the attacks on itself, round after round, and during training."""
    s = SETTINGS["digits"]
    module, ball = s.target(), uf.linf(s.eps)
    x, y = (part[: s.learned] for part in _images(s.data, "train"))
    test, held = _images(s.data, "test"), _images(s.data, "test")[0][s.calibrated]
    rows = (test[0][:SOME], test[1][:SOME])
    against: list[Target] = [Target(module)]
    for turn in range(count + 1):
        moving = turn == count
        body = detect.detector(module, x[:64], y[:64], ATTACK, ball, epochs=1, seed=turn) if moving else None
        if body is not None:  # attacked as it is at every step
            against = [Target(module), Target(Watched(module, body), reject="last")]
        began = time.process_time()
        seen = detect.detector(
            module, x, y, ATTACK, ball, body=body, against=against, epochs=s.epochs * min(3, len(against)),
            batch_size=64, lr=3e-3, seed=turn,
        )  # fmt: skip
        spent = time.process_time() - began
        guard = detect.calibrated(Watched(module, seen), held, fpr=FPR)
        found = detect.judged(guard, module, *rows, ball, ignoring=["pgd(steps=40)"], adaptive=SHORT)
        against.append(Target(guard, reject="last"))
        left, pgd = int(found.robust.sum()), found.seen[0]
        what = (
            "trained against attacks on target and detector as it changes" if moving
            else f"round {turn}: " + ("trained on attacks on the target" if not turn else
                f"trained on attacks on the target and on the guard{'s' if turn > 1 else ''} of all rounds before")
        )  # fmt: skip
        results.write("detectors", f"rounds-{'moving' if moving else turn}", {
            "what": f"digits, detector on the input, {what}: joint robust accuracy", "published": None,
            "ours": left / found.n, "unit": "%", "n": found.n, "interval": list(wilson(left, found.n)), "source": "",
            "note": f"without it {float(found.alone.double().mean()):.1%}; PGD that ignores it AUROC {pgd.auroc:.3f}; "
            f"clean {float(found.kept.double().mean()):.1%}; {spent:.0f} CPU s to train",
            "by": {k: int((found.kept & ~b).sum()) / found.n for k, b in found.broken.items()}, "seed": turn,
        })  # fmt: skip
        print(turn, what, left / found.n, pgd.auroc, f"{spent:.0f} s", flush=True)


def main() -> None:
    for case in sys.argv[1:] or (*SETTINGS, "rounds"):
        name, *kinds = case.split(":")
        if name == "rounds":
            rounds()
        elif kinds == ["cost"]:
            cost(name)
        else:
            table(name, *kinds)
            cost(name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
