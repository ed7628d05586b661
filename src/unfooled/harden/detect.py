"""Detectors: a second opinion on every input that may refuse it, and how they fall to an attack that knows them.

A detector is a module whose one number says how suspicious an input is, larger is more; it reads the input, the
target's scores, or what one of the target's layers gives. `Watched` is the target with a detector and a threshold: the
joint classifier that `unfooled evaluate` attacks, and that `judged` measures beside the target alone.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfooled import stats
from unfooled.core.ask import Asker
from unfooled.core.attack import RECIPES, Attack, as_attack
from unfooled.core.engine import last_iterate
from unfooled.core.explanation import COLOURS, SOFT, Explanation
from unfooled.core.fit import fit
from unfooled.core.layers import layer_of
from unfooled.core.run import auto_width, run
from unfooled.core.target import Target, as_target, untouched
from unfooled.core.threat import Ball
from unfooled.errors import InputError
from unfooled.harden.wrappers import overhead

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IGNORING = ("fgsm()", "pgd(steps=40)", "cw(steps=50, searches=5)", "deepfool()")
"""Attacks on the target alone, as most papers on detectors measure."""

ADAPTIVE = (
    "pgd(steps=40, schedule='cosine')",
    "pgd_targeted(steps=20, targets=9, step_size=2.0, loss='margin', schedule='cosine')",
    "pgd(steps=100, loss='margin', sense='selective')",
    "pgd(steps=100, loss='margin', sense='orthogonal')",
    "apgd(steps=50, loss='margin', start='warm')",
)
"""Attacks on target and detector together: on the joint margin (1705.07263) and on one at a time (2106.15023)."""


class Watched(nn.Module):
    """A module whose answer counts only where its detector lets it pass, both in one forward pass.

    The detector maps what it reads to a suspicion [b] or [b, 1]. `on` says what that is: "input", "scores", or the name
    of a layer of the module. The answers [b, k + 1] have "refused" last: the best score plus the suspicion above the
    threshold (Carlini and Wagner 2017, arXiv:1705.07263, section 3.3). Give the target `reject="last"`.

    Raises:
        InputError: the module has no such layer.
    """

    threshold: Tensor

    def __init__(self, module: nn.Module, detector: nn.Module, on: str = "input", threshold: float = 0.0) -> None:
        super().__init__()
        if on not in ("input", "scores"):
            layer_of(as_target(module), on)
        self.module, self.detector, self.on = module, detector, on
        self.register_buffer("threshold", torch.tensor(float(threshold)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores and that of refusing, [b, k + 1]."""
        scores, found = self.asked(x)
        best, above = scores.amax(1, keepdim=True), (found - self.threshold).to(scores.dtype)
        last = best + above
        lost = (found > self.threshold) & (last <= best)  # above by less than the sum can hold
        return torch.cat([scores, torch.where(lost, _next(best).detach() + (last - last.detach()), last)], 1)

    def asked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the module's scores [b, k] and the detector's suspicion [b, 1], in the detector's own type."""
        scores, read = read_by(self.module, x, self.on)
        return scores, self.detector(read).reshape(len(scores), 1)


def read_by(module: nn.Module, x: Tensor, on: str) -> tuple[Tensor, Tensor]:
    """Return the module's scores [b, k] of x and what a detector `on` them reads: [b, ...].

    Raises InputError when the layer runs not once in a forward pass or gives no tensor.
    """
    if on == "input":
        return module(x), x
    seen: list[Any] = []
    hook = None if on == "scores" else module.get_submodule(on).register_forward_hook(lambda *c: seen.append(c[2]))
    try:
        scores: Tensor = module(x)
    finally:
        if hook:
            hook.remove()
    if hook is None:
        return scores, scores
    if len(seen) != 1 or not isinstance(seen[0], Tensor):
        raise InputError(f"The layer {on!r} gives no single tensor in one forward pass; name another one.")
    return scores, seen[0]


def detector(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack[Any] | str,
    threat: Ball,
    *,
    on: str = "input",
    body: nn.Module | None = None,
    against: Sequence[Target] = (),
    seed: int = 0,
    **recipe: Any,
) -> nn.Module:
    """Return a trained detector: log-odds [b, 1] that what it reads comes from an attack (Metzen et al. 2017).

    A second classifier learns, by binary cross-entropy, to tell examples from the attack's last iterates, which are
    made on the fly at every step (arXiv:1702.04267, section 3.2); as many of one as of the other.

    Args:
        module: the target's module, in eval mode and left as it is; takes inputs within the threat's bounds.
        x, y: rows to train on [n, ...] and labels int64 [n].
        attack, threat: what makes the adversarial examples.
        on: what the detector reads: "input", "scores" or the name of a layer.
        body: the detector to train; None makes a small one that suits what is read.
        against: targets that are attacked, in turns within a batch; by default the module alone. A target that
            refuses (`reject="last"`) is attacked past its refusal, which is how a next round is trained.
        seed: of the attack's noise, of the body's weights and of the order of the rows.
        recipe: settings of `core.fit.Recipe`.

    Raises:
        InputError: a threat without a finite eps, or what `core.fit.fit` raises.

    It has learned this attack within this threat. Nothing is promised about others, least of all about one that knows
    the detector.
    """
    if not threat.bounded:
        raise InputError(f"A detector is trained against a threat with a finite eps, not {threat!r}.")
    made = as_attack(attack)
    attacked = list(against) or [Target(module, bounds=threat.bounds)]
    with torch.no_grad():
        example = read_by(module, x[:1].to(next(module.parameters()).device), on)[1]
    learner = _body(example, seed) if body is None else body

    def objective(asked: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        shown = x.clone()
        for i, target in enumerate(attacked):
            rows = slice(i, None, len(attacked))
            if len(x[rows]):
                shown[rows] = last_iterate(
                    made, target, x[rows], y[rows], threat, seed=seed, ids=ids[rows].cpu().numpy(), step=step
                )
        with torch.no_grad():
            read = read_by(module, torch.cat([x, shown]), on)[1]
        odds = asked(read).reshape(-1)
        wanted = torch.zeros_like(odds)
        wanted[len(x) :] = 1
        return F.binary_cross_entropy_with_logits(odds, wanted)

    fit(learner, x, y, objective, **{"seed": seed, **recipe})
    return learner.eval()


def _body(example: Tensor, seed: int) -> nn.Module:
    """Return a small classifier for what is read [1, ...]: two strided convolutions, or one hidden layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        if example.dim() == 4:
            layers += [nn.Conv2d(example.shape[1], 16, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
        layers.append(nn.Flatten())
        body = nn.Sequential(*layers).to(example.device)
        with torch.no_grad():
            width = body(example).shape[1]
        return nn.Sequential(*layers, nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 1)).to(example.device)


class Unsure(nn.Module):
    """The odds against the answer, log((1 - p) / p) of the largest softmax p: a detector on the scores.

    The baseline of Hendrycks and Gimpel 2017 (arXiv:1610.02136); the logarithm keeps apart what is sure.
    """

    def forward(self, scores: Tensor) -> Tensor:
        """Return the suspicion [b] of scores [b, k]."""
        best = scores.argmax(1, keepdim=True)
        rest = scores.scatter(1, best, -torch.inf).logsumexp(1)
        return rest - scores.gather(1, best)[:, 0]


class Energy(nn.Module):
    """The free energy -log sum exp z: a detector on the scores (Liu et al. 2020, arXiv:2010.03759, eq. 4; T = 1)."""

    def forward(self, scores: Tensor) -> Tensor:
        """Return the suspicion [b] of scores [b, k]."""
        return -scores.logsumexp(1)


class Mahalanobis(nn.Module):
    """The squared distance from the nearest class mean, under one covariance: a detector on a layer.

    Lee et al. 2018 (arXiv:1807.03888, eq. 2), one layer, without their input preprocessing. `features` [n, ...] are
    what the layer gives for clean rows with labels y int64 [n]; the covariance gets 1e-3 of its mean variance on the
    diagonal. Raises InputError for fewer than two rows.
    """

    centres: Tensor
    whiten: Tensor

    def __init__(self, features: Tensor, y: Tensor) -> None:
        super().__init__()
        if len(features) < 2 or len(features) != len(y):
            raise InputError(f"Give at least two rows with as many labels, not {len(features)} and {len(y)}.")
        z = features.detach().flatten(1).double()
        centres = torch.stack([z[y == k].mean(0) for k in y.unique()])
        apart = z - centres[torch.searchsorted(y.unique(), y)]
        covariance = apart.T @ apart / len(z)
        covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
        values, vectors = torch.linalg.eigh(covariance)
        whiten = vectors / values.clamp(min=torch.finfo(values.dtype).tiny).sqrt()
        self.register_buffer("whiten", whiten.to(features.dtype))
        self.register_buffer("centres", (centres @ whiten).to(features.dtype))

    def forward(self, features: Tensor) -> Tensor:
        """Return the suspicion [b] of features [b, ...]."""
        z = features.flatten(1) @ self.whiten
        return (z[:, None] - self.centres).square().sum(2).amin(1)


class Squeezed(nn.Module):
    """How far the prediction moves when the input is squeezed: a detector on the input (Xu et al. 2018, NDSS).

    The largest L1 distance between the module's softmax at x and at x seen through each of the `squeezers`, modules of
    a module such as `Quantised` and `Median` (arXiv:1704.01155, section 4.1). It asks the module once more for x and
    once for each squeezer. Raises InputError without squeezers.
    """

    def __init__(self, module: nn.Module, squeezers: Sequence[Callable[[nn.Module], nn.Module]]) -> None:
        super().__init__()
        if not squeezers:
            raise InputError("Give at least one squeezer, such as Quantised or Median.")
        self.module = module
        self.squeezed = nn.ModuleList(wear(module) for wear in squeezers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the suspicion [b] of x [b, ...], from 0 to 2."""
        p = self.module(x).softmax(1)
        return torch.stack([(each(x).softmax(1) - p).abs().sum(1) for each in self.squeezed]).amax(0)


def suspicion(guard: Target | nn.Module, x: Tensor) -> Tensor:
    """Return how far above its threshold a refusing target finds each x [n, ...]: float64 [n], positive is refused.

    It is the last score minus the best of the others. Raises InputError for a target that cannot refuse.
    """
    target = copy.copy(guarded(guard))
    target.reject = None  # asked for all its scores
    return Asker(target).value(x, lambda scores, rows: (scores[:, -1] - scores[:, :-1].amax(1)).double())


def guarded(guard: Target | nn.Module) -> Target:
    """Return a module as the target whose last score refuses; raises InputError for a target that never does."""
    target = guard if isinstance(guard, Target) else Target(guard, reject="last")
    if target.reject != "last":
        raise InputError(f"{target.name} never refuses: make its target with reject='last'.")
    return target


def calibrated(guard: Watched, x: Tensor, *, fpr: float = 0.05) -> Watched:
    """Set the guard's threshold so that at most a share `fpr` of the clean rows x [n, ...] is refused; return it.

    The rows must be held out from whatever trained the detector. Raises InputError for a share outside (0, 1).
    """
    found = Asker(_Suspicion(guard)).value(x, lambda scores, rows: scores[:, 1])
    line = stats.threshold(found.tolist(), fpr)
    guard.threshold.fill_(line)
    if float((found > guard.threshold.to(found.device)).double().mean()) > fpr:  # it holds fewer digits than the line
        guard.threshold.copy_(_next(guard.threshold))
    return guard


def _next(x: Tensor) -> Tensor:
    """Return numbers that are larger than x, by about as little as its type allows."""
    kind = torch.finfo(x.dtype)
    return x + (x.abs() * kind.eps + kind.tiny)


class _Suspicion(nn.Module):
    """A guard whose answer is its detector's: 0 and the suspicion, [b, 2]."""

    def __init__(self, guard: Watched) -> None:
        super().__init__()
        self.guard = guard

    def forward(self, x: Tensor) -> Tensor:
        found = self.guard.asked(x)[1]
        return torch.cat([torch.zeros_like(found), found], 1)


@dataclass(frozen=True)
class Seen:
    """What a detector makes of one attack that ignores it: `fooled` bool [n] where the target alone falls.

    `suspicion` [n] at what the attack made, `clean` [n] at the originals, both above the threshold.
    """

    attack: str
    fooled: Tensor
    suspicion: Tensor
    clean: Tensor

    @property
    def auroc(self) -> float:
        """Area under the ROC curve, successes against all clean rows; NaN without successes."""
        return stats.auroc(self.suspicion[self.fooled].tolist(), self.clean.tolist())

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the area."""
        return stats.auroc_interval(self.auroc, int(self.fooled.sum()), len(self.clean))

    def tpr(self, fpr: float) -> float:
        """Return the share of successes above the threshold that refuses a share `fpr` of these clean rows."""
        line = stats.threshold(self.clean.tolist(), fpr)
        return float((self.suspicion[self.fooled] > line).double().mean())


@dataclass(frozen=True)
class Judged(Explanation):
    """A detector judged twice: by attacks that ignore it, and by attacks on the target and it together.

    Of n rows: `right` bool [n] the target alone is right, `kept` bool [n] right and not refused. `seen` are the
    ignoring attacks. `broken` maps each adaptive attack to bool [n]: wrong, not refused, though `kept` before.
    `alone` bool [n] are the rows that stand in the target without a detector under the same kind of attack. `cost` is
    `overhead` of the guard. `fpr` is the rate that the detector was to keep.
    """

    seen: tuple[Seen, ...]
    broken: dict[str, Tensor]
    right: Tensor
    kept: Tensor
    refused: Tensor
    alone: Tensor
    cost: dict[str, float]
    threat: str
    fpr: float

    size: ClassVar[tuple[float, float]] = (8.4, 3.9)

    @property
    def n(self) -> int:
        """How many rows were measured."""
        return len(self.right)

    @property
    def ignored(self) -> Tensor:
        """Right and accepted when clean, and right or refused under every attack that ignores the detector; [n]."""
        return self.kept & ~torch.stack([s.fooled & (s.suspicion <= 0) for s in self.seen]).any(0)

    @property
    def robust(self) -> Tensor:
        """Right and accepted when clean, and right or refused under every attack on both as well; bool [n]."""
        return self.ignored & ~torch.stack(list(self.broken.values())).any(0)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row an attack: what it breaks, and for ignoring ones AUROC and TPR."""
        return [
            {
                "attack": s.attack, "knows": "the target", "fooled": float(s.fooled.double().mean()), "auroc": s.auroc,
                "tpr": s.tpr(self.fpr), "passed": float((s.fooled & (s.suspicion <= 0)).double().mean()),
                "joint": float((self.kept & ~(s.fooled & (s.suspicion <= 0))).double().mean()),
            }
            for s in self.seen
        ] + [
            {
                "attack": name, "knows": "both", "fooled": math.nan, "auroc": math.nan, "tpr": math.nan,
                "passed": float(b.double().mean()), "joint": float((self.kept & ~b).double().mean()),
            }
            for name, b in self.broken.items()
        ]  # fmt: skip

    def sentence(self) -> str:
        """Return what the detector sees, what is left of it, and the target alone as the control."""
        best = [s for s in self.seen if int(s.fooled.sum())]
        told = "; ".join(f"{s.attack} AUROC {s.auroc:.3f}, TPR {s.tpr(self.fpr):.0%}" for s in best)
        low, high = stats.wilson(int(self.robust.sum()), self.n)
        said = (
            f"Against attacks that ignore it, at {self.fpr:.0%} false alarms: {told or 'no success to see'}. Right or "
            f"refused under {self.threat}: {_share(self.ignored)} under these, {_share(self.robust)} "
            f"({low:.1%} to {high:.1%}) under attacks on both; the target without a detector keeps "
            f"{_share(self.alone)} (n = {self.n}). The detector refuses {_share(self.refused)} of the clean rows"
        )
        if not self.cost:
            return f"{said}."
        return (
            f"{said}, has {self.cost['parameters_defended'] / max(1.0, self.cost['parameters']) - 1:+.0%} parameters "
            f"and makes a forward pass {self.cost['times_slower']:.2f} times as long."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw the ROC curves of the ignoring attacks, and what is left of the accuracy."""
        roc, bars = figure.subplots(1, 2, width_ratios=[1, 1.15])
        for s, colour in zip(self.seen, COLOURS, strict=False):
            if int(s.fooled.sum()):
                at, found = stats.roc(s.suspicion[s.fooled].tolist(), s.clean.tolist())
                roc.step(at, found, where="post", color=colour, label=f"{_name(s.attack)}, area {s.auroc:.3f}")
        roc.plot([0, 1], [0, 1], color=SOFT, linestyle=":", linewidth=1)
        roc.axvline(self.fpr, color=SOFT, linestyle="--", linewidth=1)
        roc.set(xlabel="clean rows refused", ylabel="successes refused", xlim=(0, 1), ylim=(0, 1.01))
        roc.set_title("Attacks that ignore the detector")
        roc.legend(loc="lower right")
        shares = [
            ("target alone, clean", self.right, COLOURS[9]),
            ("target alone, attacked", self.alone, COLOURS[9]),
            ("guarded, clean", self.kept, COLOURS[0]),
            ("guarded, ignoring attacks", self.ignored, COLOURS[0]),
            ("guarded, attacks on both", self.robust, COLOURS[1]),
        ]
        for i, (_, rows, colour) in enumerate(shares):
            value = 100 * float(rows.double().mean())
            bars.barh(i, value, color=colour, height=0.62)
            bars.text(value + 1.5, i, f"{value:.1f}%", va="center", fontsize=8)
        bars.set_yticks(range(len(shares)), [name for name, _, _ in shares])
        bars.invert_yaxis()
        bars.set(xlabel="right, or refused under attack, % of rows", xlim=(0, 118))
        bars.set_title(f"{self.threat}, n = {self.n}")


def judged(
    guard: Target | nn.Module,
    target: Target | nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Ball,
    *,
    ignoring: Sequence[Attack[Any] | str] = IGNORING,
    adaptive: Sequence[Attack[Any] | str] = ADAPTIVE,
    fpr: float = 0.05,
    seed: int = 0,
) -> Judged:
    """Judge a detector by attacks that ignore it and by attacks on the target and it together.

    Args:
        guard: the guarded target, its last score that of refusing (`Watched`); its threshold stays.
        target: the same target without the detector, with the same bounds.
        x, y: rows that neither was trained or calibrated on, [n, ...] and int64 [n].
        threat: a ball with a finite eps.
        ignoring: attacks that are run on the target alone and then shown to the detector.
        adaptive: attacks on the guard; every row falls to the best of them, and to the ignoring ones that pass.
        fpr: the rate of false alarms at which the TPR is told.
        seed: of all noise.

    Raises:
        InputError: a guard that never refuses, a threat without a finite eps, no attacks of one kind.

    The joint robust accuracy is an upper bound, like every measured robust accuracy.
    """
    both, alone = guarded(guard), as_target(target)
    if not threat.bounded or not ignoring or not adaptive:
        raise InputError(
            "A detector is judged within a finite eps by at least one attack that ignores it and one on both."
        )
    clean = suspicion(both, x)
    right = Asker(alone).labels(x) == y
    seen = []
    for made in map(as_attack, ignoring):
        x_adv = finished(made, alone, x, y, threat, seed=seed)
        fooled = right & (Asker(alone).labels(x_adv) != y) & threat.within(alone.bounds).contains(x_adv, x)
        seen.append(Seen(repr(made), fooled, suspicion(both, x_adv), clean))
    plain = run(list(adaptive), alone, x, y, threat, seed=seed)
    broken = {repr(made): run(made, both, x, y, threat, seed=seed).success for made in map(as_attack, adaptive)}
    cost: dict[str, float] = {}
    if isinstance(alone.module, nn.Module) and isinstance(both.module, nn.Module):
        shown = both.prepared(x[:64].to(both.device))
        assert isinstance(shown, Tensor)
        cost = overhead(alone.module, both.module, shown)
    fallen = plain.success | torch.stack([s.fooled for s in seen]).any(0)
    return Judged(tuple(seen), broken, right, right & (clean <= 0), clean > 0, right & ~fallen, cost, repr(threat), fpr)


def finished(attack: Attack[Any], target: Target, x: Tensor, y: Tensor, threat: Ball, *, seed: int = 0) -> Tensor:
    """Return what an attack that knows nothing of detectors hands over, [n, ...]: inside the threat or not.

    Of minimum-norm attacks the smallest change, of others the last iterate: both go on where a first success would
    end an evaluation, and detectors of the literature are shown these.
    """
    known = RECIPES.get(repr(attack).partition("(")[0])
    if known and known.smallest:
        found = run(attack, target, x, y, replace(threat, eps=math.inf), seed=seed).x_adv
        assert isinstance(found, Tensor)
        return found
    with torch.inference_mode(False), untouched(target):
        return torch.cat([
            last_iterate(attack, target, x[rows].to(target.device), y[rows].to(target.device), threat, seed=seed,
                ids=rows.numpy()).to(x.device)
            for rows in torch.split(torch.arange(len(x)), auto_width(x, target.device))
        ])  # fmt: skip


def _name(attack: str) -> str:
    return attack.partition("(")[0]


def _share(rows: Tensor) -> str:
    return f"{float(rows.double().mean()):.1%}"
