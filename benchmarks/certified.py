"""Certificates, and attacks on the same examples: interval training and smoothing on MNIST, smoothing on CIFAR-10.

python -m benchmarks.certified train [name ...]     train what is not there yet, kept under `runs/`
python -m benchmarks.certified [case ...]           measure; a network that is not there yet is trained first
                                                    (`peer`, which needs auto-LiRPA, only when it is named)
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import unfooled as uf
from benchmarks import published, results
from benchmarks.features import flips, small_cnn
from unfooled import certify, load_data
from unfooled.core.fit import Objective, fit
from unfooled.core.network import IntervalBound
from unfooled.evaluate.bracket import RADII as SHARES
from unfooled.evaluate.bracket import bracket
from unfooled.harden.certified import certified, gaussian
from unfooled.stats import wilson
from unfooled.targets.zoo import ZOO, untrained

FOLDER = results.SCRATCH / "certified"


@dataclass(frozen=True)
class Net:
    """How one network is made: data, module, objective of (steps an epoch), and settings of training."""

    data: str
    build: Callable[[], nn.Module]
    objective: Callable[[int], Objective]
    recipe: dict[str, Any]
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    sigma: float = 0.0
    eps: float = 0.0


_FAST = {"precision": "bf16", "channels_last": True, "batch_size": 128, "ema": 0.999}


def _noisy(data: str, sigma: float) -> Net:
    build, augment, more = {
        "digits": (lambda: untrained("digits-cnn", 0), None, {"epochs": 40, "lr": 3e-3, "ema": 0.99, "batch_size": 64}),
        "mnist": (lambda: untrained("mnist-cnn", 0), None, {"epochs": 12, "lr": 3e-3}),
        "cifar10": (lambda: small_cnn(0), flips, {"epochs": 16, "lr": 6e-3, "weight_decay": 0.02}),
    }[data]
    return Net(data, build, lambda _: gaussian(sigma), {**_FAST, **more}, augment, sigma)


def _in_bf16(bound: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the bound computed in bfloat16: training needs no more, and what is certified is certified in float64."""

    def cast(module: nn.Module, x: Tensor, y: Tensor, ball: uf.Ball) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return bound(module, x, y, ball).float()

    return cast


def _certified(data: str, eps: float, trained_at: float, epochs: int, **more: Any) -> Net:
    """The radius is 0 for the first tenth of the steps, and whole after six tenths."""

    def objective(steps: int) -> Objective:
        whole = steps * epochs
        return certified(
            _in_bf16(IntervalBound()), uf.linf(trained_at), warm=round(0.1 * whole), ramp=round(0.5 * whole)
        )

    return Net(data, lambda: untrained(f"{data}-cnn", 0), objective,
               {**_FAST, "epochs": epochs, "lr": 3e-3, **more}, None, eps=eps)  # fmt: skip


NETS: dict[str, Net] = {
    "digits-ibp-0.1": _certified("digits", 0.1, 0.11, 60, ema=0.98, batch_size=64),
    **{f"{data}-sigma-{s:g}": _noisy(data, s) for data in ("digits", "mnist") for s in (0.25, 0.5)},
    "mnist-ibp-0.1": _certified("mnist", 0.1, 0.12, 20),
    "mnist-ibp-0.3": _certified("mnist", 0.3, 0.33, 30),
    **{f"cifar10-sigma-{s:g}": _noisy("cifar10", s) for s in (0.25, 0.5)},
}


def trained(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network of `NETS` in eval mode and how it was trained, from `runs/` where it lies there."""
    net = NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = net.build()
    weights, notes = FOLDER / f"{name}.safetensors", FOLDER / f"{name}.json"
    if not notes.is_file():
        data, began = load_data(net.data, split="train"), time.process_time()

        def tell(epoch: object) -> None:
            print(name, epoch, f"{time.process_time() - began:.0f} s", flush=True)

        steps = -(-len(data) // net.recipe["batch_size"])
        fit(module, data.x, data.y, net.objective(steps), augment=net.augment, seed=0, on_epoch=tell, **net.recipe)
        FOLDER.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, weights)
        notes.write_text(json.dumps({
            "training_seconds": time.process_time() - began, "recipe": net.recipe, "seed": 0,
            "parameters": sum(p.numel() for p in module.parameters()), "trained_on": len(data),
        }))  # fmt: skip
    module.load_state_dict(load_file(weights))
    return module.eval().requires_grad_(False), json.loads(notes.read_text())


# ---- what is measured

PUBLISHED = {"mnist-ibp-0.1": 0.9843, "mnist-ibp-0.3": 0.9402}
"""Best certified accuracy on the board of certified robustness: CC-IBP, and Lyu et al. 2021."""

COHEN = {0.25: 61, 0.5: 43, 0.75: 32, 1.0: 22, 1.25: 17, 1.5: 13}
SMOOTH_ADV = {0.25: 73, 0.5: 58, 0.75: 48, 1.0: 38, 1.25: 33, 1.5: 29}
"""Certified accuracy on CIFAR-10 in %, the best over sigma (arXiv:1902.02918, 1906.04584), ResNet-110."""

RADII = tuple(COHEN)
ATTACKED = tuple(share * 1.0 for share in SHARES)  # of the bracket's threat, l2(1)
BOUNDED = {"digits": 300, "mnist": 1000}
EXAMPLES = {"digits": 100, "mnist": 200, "cifar10": 100}
DRAWS = {"digits": 5000, "mnist": 10_000, "cifar10": 10_000}
SMALLEST = {
    "linf": ("fab(steps=30)", "fmn(steps=50)", "pdpgd(steps=100)"),
    "l2": ("fab(steps=30)", "fmn(steps=50)", "ddn(steps=50)", "pdpgd(steps=100)"),
}
STANDARD = {"digits-cnn": 50, "mnist-cnn": 20}


def bounded(name: str) -> None:
    """Write clean, certified and attacked accuracy of a network trained on interval bounds."""
    net, (module, notes), began = NETS[name], trained(name), time.process_time()
    data = load_data(net.data, limit=BOUNDED[net.data])
    found = bracket(module, data, threat=uf.linf(net.eps), method="ibp")
    more = _made(notes) | {"measuring_seconds": time.process_time() - began, "status": found.status}
    said = f"{len(found.contradictions)} contradictions among {len(data)} examples"
    for kind in ("certified", "attacked", "clean"):
        text = {
            "certified": "certified by interval bounds", "attacked": f"left standing by {found.attacks}",
            "clean": "clean",
        }[kind]  # fmt: skip
        _row(
            f"{name} {kind}", f"{net.data}, trained on interval bounds, Linf {net.eps:g}: {text}",
            PUBLISHED.get(name) if kind == "certified" else None, getattr(found, kind), found.interval(kind),
            f"{said}; {_trained(net, notes)}" if kind == "certified" else "", more,
        )  # fmt: skip


def standard(name: str) -> None:
    """Write what bounds certify of a zoo network that was not trained for it, at its card's eps."""
    entry = ZOO[name]
    data = load_data(entry.data, limit=STANDARD[name])
    low = certify.margins(entry.build(), data.x, data.y, uf.linf(entry.eps), method="crown")
    sound = low.amin(1) > 0
    _row(
        f"{name} certified", f"{name}, standard training, Linf {entry.eps:g}: certified by linear bounds (CROWN)", None,
        sound, wilson(int(sound.sum()), len(sound)), "what plain training leaves to certify", {},
    )  # fmt: skip


def on_noise(name: str) -> None:
    """Write certified accuracy at the published radii, and what attacks leave of the smoothed classifier."""
    net, (module, notes), began = NETS[name], trained(name), time.process_time()
    data = load_data(net.data, limit=EXAMPLES[net.data])
    asked = uf.Target(_Quick(module), name=name)
    found = bracket(
        asked, data, threat=uf.l2(1.0), method="smoothing", sigma=net.sigma, draws=DRAWS[net.data]
    )  # fmt: skip
    certified_at, attacked_at = found.curve(torch.tensor(RADII, dtype=torch.float64))
    more = _made(notes) | {"measuring_seconds": time.process_time() - began, "draws": found.draws, "sigma": net.sigma}
    for at, radius in enumerate(RADII):
        sound = found.clean & (found.radius >= radius)
        best = f"{COHEN[radius]}% (Cohen), {SMOOTH_ADV[radius]}% (SmoothAdv)" if net.data == "cifar10" else None
        note = f"attacks at this radius leave {float(attacked_at[at]):.1%}" if radius in ATTACKED else ""
        if at == 0:
            note += (
                f"clean {float(found.clean.double().mean()):.1%}; {len(found.contradictions)} contradictions; "
                f"{found.draws:,} draws, {_trained(net, notes)}, bfloat16"
            )
        _row(
            f"{name} at {radius:g}", f"{net.data}, smoothed with sigma {net.sigma:g}, L2 {radius:g}: certified", best,
            sound, wilson(int(sound.sum()), len(sound)), note,
            more | {"attacked": float(attacked_at[at]), "certified": float(certified_at[at])},
        )  # fmt: skip


def below_attacks(name: str) -> None:
    """Write how often the smallest change that any of several attacks finds lies within the certified radius."""
    net, (module, notes) = NETS[name], trained(name)
    data = load_data(net.data, limit=EXAMPLES[net.data])
    module = module.float()
    checks, wrong, gaps = 0, 0, []
    for norm, upper in (("linf", 2 * net.eps), ("l2", 1.0)):
        ball = getattr(uf, norm)()
        radius = certify.certified_radius(module, data.x, data.y, ball, upper=upper, steps=7, method="ibp")
        for text in SMALLEST[norm]:
            found = uf.run(text, module, data.x, data.y, ball)
            hit = found.success
            checks += int(hit.sum())
            wrong += int((radius[hit] > found.distance[hit].double() + 1e-6).sum())
            sound = hit & (radius > 0)
            gaps.append((radius[sound] / found.distance[sound].double()).median())
    _row_of_checks(f"{name} below attacks", f"{net.data}, trained on interval bounds", checks, wrong, gaps, net, notes)


def exact() -> None:
    """Write how much of the exact radius of small networks is certified, and whether it is ever more."""
    from tests import milp

    shares: dict[str, list[float]] = {"ibp": [], "crown": []}
    for case in milp.solved().values():
        y, x, radii = (torch.from_numpy(v) for v in (case.y, case.x, case.radii))
        for method, found in shares.items():
            radius = certify.certified_radius(case.module(), x, y, uf.linf(), upper=1.0, steps=16, method=method)  # type: ignore[arg-type]
            found += (radius / radii.clamp(min=1e-12)).tolist()
    for method, found in shares.items():
        over = sum(share > 1 + 1e-6 for share in found)
        results.write("certified", f"exact {method}", {
            "what": f"small ReLU networks, exact Linf radii by integer programming: share certified by {method}, mean",
            "published": None, "ours": sum(found) / len(found), "unit": "%", "n": len(found),
            "note": f"{over} radii above the exact one", "source": "paper", "over": over,
            "least": min(found), "most": max(found),
        })  # fmt: skip


PEER = {"digits-cnn-robust": (0.05, 100), "digits-cnn": (0.02, 100), "mnist-cnn": (0.01, 20)}
"""The zoo's networks whose bounds are compared with auto-LiRPA's: Linf radius and number of images."""


def peer() -> None:
    """Write how far the bounds are from those of auto-LiRPA, which must be importable: its release asks for old torch.

    Its intermediate bounds are by CROWN with the adaptive lower line, as ours are; all in float64 inside [0, 1].
    """
    import auto_LiRPA as lirpa  # type: ignore[import-not-found]

    for name, (eps, n) in PEER.items():
        target = uf.targets.resolve(name)
        data = load_data(ZOO[name].data, limit=n, data_dir=published.data_dir())
        x, module = data.x.double(), copy.deepcopy(target.module).double()
        near = lirpa.PerturbationLpNorm(norm=torch.inf, eps=eps, x_L=(x - eps).clamp(0, 1), x_U=(x + eps).clamp(0, 1))
        theirs = lirpa.BoundedModule(module, x[:1], bound_opts={"relu": "adaptive"})
        one = torch.eye(10, dtype=torch.float64)
        rows = one[data.y][:, None] - one  # of the own class all zero
        gaps, seconds = [], []
        for method, called in (("ibp", "IBP"), ("crown", "CROWN")):
            began = time.process_time()
            got = certify.margins(target, data.x, data.y, uf.linf(eps), method=method)  # type: ignore[arg-type]
            between = time.process_time()
            with torch.no_grad():
                found = theirs.compute_bounds((lirpa.BoundedTensor(x, near),), C=rows, method=called, bound_upper=False)
            seconds = [between - began, time.process_time() - between]
            other = got.isfinite()
            gaps.append(float((got - found[0])[other].abs().max()))
        sure, theirs_sure = (int((v.masked_fill(~other, torch.inf).amin(1) > 0).sum()) for v in (got, found[0]))
        results.write("certified", f"peer {name}", {
            "what": f"`{name}` within Linf {eps:g}: largest difference of a bound, ibp or crown, to auto-LiRPA's",
            "published": None, "ours": max(gaps), "unit": "", "n": n,
            "note": f"crown certifies {sure}, its CROWN {theirs_sure}; {seconds[0] / seconds[1]:.1f} times its CPU "
            f"seconds ({seconds[0]:.1f}); auto-LiRPA {lirpa.__version__} from its repository",
            "source": "paper", "certified": [sure, theirs_sure], "cpu_seconds": seconds,
        })  # fmt: skip
        print(name, gaps, sure, theirs_sure, seconds, flush=True)


class _Quick(nn.Module):
    """A module that computes in bfloat16: the classifier that is smoothed is this one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 scores."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            x = x.contiguous(memory_format=torch.channels_last)
            return self.module(x).float()  # type: ignore[no-any-return]


def _made(notes: dict[str, Any]) -> dict[str, Any]:
    return {**notes, "seeds": [0]}


def _trained(net: Net, notes: dict[str, Any]) -> str:
    return f"{notes['parameters']:,} parameters, {notes['training_seconds']:.0f} s of training, seed 0"


def _row(
    case: str, what: str, published: object, hits: Tensor, interval: tuple[float, float], note: str,
    more: dict[str, Any],
) -> None:  # fmt: skip
    results.write("certified", case, {
        "what": what, "published": published, "ours": float(hits.double().mean()), "unit": "%", "n": len(hits),
        "interval": list(interval), "note": note, "source": "paper", **more,
    })  # fmt: skip
    print(case, float(hits.double().mean()), interval, note, flush=True)


def _row_of_checks(
    case: str, what: str, checks: int, wrong: int, gaps: list[Tensor], net: Net, notes: dict[str, Any]
) -> None:
    results.write("certified", case, {
        "what": f"{what}: smallest changes by fab, fmn, ddn, pdpgd (Linf, L2) within the certified radius",
        "published": None, "ours": wrong, "unit": "", "n": checks,
        "note": f"the certified radius is {float(torch.stack(gaps).min()):.2f} to {float(torch.stack(gaps).max()):.2f} "
        "of what an attack found (medians, by attack)",
        "source": "paper", **_made(notes),
    })  # fmt: skip
    print(case, checks, wrong, flush=True)


CASES: dict[str, Callable[[], None]] = {
    "exact": exact,
    "peer": peer,
    **{name: partial(standard, name) for name in STANDARD},
    **{name: partial(bounded if net.eps else on_noise, name) for name, net in NETS.items()},
    **{f"{name}-below": partial(below_attacks, name) for name, net in NETS.items() if net.eps},
}


def main() -> None:
    """Train, or measure the cases that are named, or all."""
    words = sys.argv[1:]
    if words[:1] == ["train"]:
        for name in words[1:] or NETS:
            trained(name)
        return
    for name in words or [case for case in CASES if case != "peer"]:
        CASES[name]()


if __name__ == "__main__":
    main()
