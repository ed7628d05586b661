"""The doctor: a few dozen small forward passes tell a target from a broken experiment before anything is attacked.

Each check measures, says what it found in a sentence, and mends a copy of the target where it can (PITFALLS catalogue,
ids A1 to F3; after Carlini et al. 2019, arXiv 1902.06705, and Pintor et al. 2021, arXiv 2106.09947).
"""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import losses
from .._noise import Noise, row_keys
from ..core.goal import valid
from ..core.memory import Snapshot
from ..core.result import Consequence, Finding
from ..core.straight import VARIANTS, Straight, find, trace
from ..core.target import Target, filled, pick, reseed, untouched
from ..core.threat import Ball
from ..errors import TargetError

PROBES = 16
_HALF = (torch.float16, torch.bfloat16)
DRAWS = 8
"""Draws of a random target behind each answer that an attack sees."""


@dataclass
class Checkup:
    """What the doctor found: findings, the mended copy of the target, and what the attacks must know.

    `masked`: the target's own gradient means nothing; `blind`: neither do its scores, its class alone can guide;
    `memory` undoes what the target remembers; `undone` names what the straight-through pass had to take out of the way.
    """

    target: Target
    findings: list[Finding] = field(default_factory=list)
    masked: bool = False
    blind: bool = False
    levels: int | None = None
    memory: Snapshot | None = None
    undone: frozenset[str] = frozenset()
    seconds: float = 0.0
    forward: int = 0
    backward: int = 0

    def add(self, id: str, title: str, sentence: str, consequence: Consequence, figure: float | None = None) -> None:
        """Write one finding down; a second one with the same id is left out."""
        if all(f.id != id for f in self.findings):
            self.findings.append(Finding(id, title, sentence, consequence, figure))

    def has(self, *ids: str) -> bool:
        """Whether one of these was found."""
        return any(f.id in ids for f in self.findings)


def examine(target: Target, x: Tensor, y: Tensor, threat: Ball, *, seed: int = 0) -> Checkup:
    """Examine a target on at most 16 of the examples x [n, ...] with labels y int64 [n]; the caller's world stays.

    Raises TargetError when it answers in no way that could be read.
    """
    begun, sent = time.monotonic(), target.sent[0]
    mended = copy.copy(target)
    up = Checkup(mended)
    with torch.inference_mode(False), untouched(target):
        at = np.unique(np.linspace(0, len(x) - 1, min(PROBES, len(x))).astype(np.int64))
        up.memory = Snapshot(target.module)
        exam = _Exam(up, x[at].to(target.device, target.work_dtype), y[at], y, threat, seed)
        exam.run()
    _modes(up, target)
    up.forward, up.backward = target.sent[0] - sent, exam.backward
    up.seconds = time.monotonic() - begun
    return up


class _Exam:
    """One examination; its methods are the checks, in the order in which they can build on each other."""

    def __init__(self, up: Checkup, x: Tensor, y: Tensor, labels: Tensor, threat: Ball, seed: int) -> None:
        self.up, self.x, self.y, self.labels, self.threat = up, x, y, labels, threat
        self.target = up.target
        self.backward = 0
        self.noise = Noise(torch.from_numpy(row_keys(seed, np.arange(len(x)), "doctor")).to(x.device))
        lo, hi = threat.bounds
        self.span = hi - lo
        self.wild = lo + self.span * self.noise.uniform(0, x.shape[1:], 1, x.dtype)
        self.scale, self.hot = 1.0, 0.0
        self.eps = threat.eps if threat.bounded and threat.eps > 0 else 0.05 * self.span

    def ball(self, step: int, share: float = 1.0) -> Tensor:
        """Random points of the ball, [b, ...], a little inside the box."""
        lo, hi = self.threat.bounds
        radius = self.threat.eps * share if self.threat.bounded else 0.05 * self.span
        z = self.x + self.threat.norm.sample(self.noise, step, self.x.shape[1:], radius, self.x.dtype)
        if self.up.levels:  # elsewhere it gives no answers
            return replace(self.threat, levels=self.up.levels).project(z, self.x)
        return z.clamp(lo + 1e-3 * self.span, hi - 1e-3 * self.span)

    def ask(self, x: Tensor, luck: int = 0) -> Tensor:
        """Return scores [b, k] with the global random states set to `luck`."""
        reseed(luck, self.target.device)
        with torch.no_grad():
            return self.target.scores(x).detach()

    def label(self) -> Tensor:
        """Return the class that each probe gets, int64 [b]."""
        return self.target.split(self.ask(self.x))[0].argmax(1)

    def margin(self, points: Tensor, label: Tensor) -> Tensor:
        """Return the margins of points [b, ...] over the labels [b], float64 [b]."""
        return losses.margin(self.target.split(self.ask(points))[0], label).double()

    def run(self) -> None:
        """Run the checks."""
        first = self.output()
        self.coupling(steady=self.history(first))
        self.values()
        if self.target.access >= 2:
            self.landscape()
        if self.target.access >= 3:
            self.gradients()
        if self.up.masked or self.up.blind:
            self.unmask()

    # ---- what comes out

    def output(self) -> Tensor:
        """Find a batch size that is taken and what the output is; return the first answers, [b, k]."""
        up, target = self.up, self.target
        size = self.sizes()
        with self.inside_forward():
            given = target.prepared(filled(self.x, size))
            before = given.clone() if isinstance(given, Tensor) else given
            out = target._call(given)
            if isinstance(before, Tensor) and isinstance(given, Tensor) and not torch.equal(before, given):
                up.add("B4", "in-place input",
                    "The target writes into its input (an in-place normalisation?); it is given a copy on every call.",
                    "repaired")  # fmt: skip
        if not isinstance(out, Tensor):
            part = pick(out, len(given), target.output)
            up.add("C2", "adapted output",
                f"The target returns a {type(out).__name__}; its scores of shape {tuple(part.shape)} are used.",
                "repaired")  # fmt: skip
            out = part
        rows = len(given)
        if not out.is_floating_point() and out.shape == (rows,):
            target.labels = max(int(self.labels.max()) + 1, int(out.max()) + 1, 2)
            up.blind = True
            up.add("D1", "labels only",
                "The target returns nothing but the class's number: no gradient and no score can guide an attack; "
                "those that need neither are used.",
                "escalated")  # fmt: skip
            return self.ask(self.x)
        if out.dtype in _HALF:
            up.add("F1", "half precision",
                f"The target computes in {str(out.dtype).removeprefix('torch.')}: losses are computed in float32 and "
                "scaled, so that gradients do not vanish.",
                "repaired")  # fmt: skip
        one = out.dim() == 1 or (out.dim() == 2 and out.shape[1] == 1)
        several = [out.float(), *(_read(target, self.padded(v)) for v in (self.wild, self.ball(1)))]
        if one:
            unit = all(bool(((v >= 0) & (v <= 1)).all()) for v in several)
            target.kind = "probabilities" if unit else "scores"
            what = "the probability of class 1 (threshold 0.5)" if unit else "the log-odds of class 1 (threshold 0)"
            up.add("C3", "one output", f"One output column: it is read as {what}.", "repaired")
        elif out.dim() == 2 and all(
            bool(((v >= -1e-6) & (v <= 1 + 1e-6)).all()) and bool(((v.sum(1) - 1).abs() < 1e-2).all()) for v in several
        ):
            hot = self.hot = float(torch.cat([(v.amax(1) == 1).float() for v in several]).mean())
            target.kind = "probabilities"
            text = "Outputs are probabilities; their logarithms are used."
            if hot:
                text += f" {hot:.0%} of them are saturated (exactly 0 or 1)."
            up.add("C1", "probabilities", text, "repaired", hot)
        elif out.dim() == 2 and all(bool(((v >= 0) & (v <= 1)).all()) and bool((v.sum(1) > 0).all()) for v in several):
            target.kind = "sigmoids"
            up.add("C1", "sigmoids",
                "Outputs lie between 0 and 1 and do not add up to 1: they are read as one probability per class, and "
                "their log-odds are used.",
                "repaired")  # fmt: skip
        return self.ask(self.x)

    def padded(self, x: Tensor) -> Tensor:
        """The probes as a batch of a size that is taken."""
        return filled(x, self.target.batch) if self.target.batch else x

    def sizes(self) -> int:
        """Find out which batch sizes are taken; return one."""
        works: dict[int, BaseException | None] = {}

        def tries(n: int) -> bool:
            try:
                with torch.no_grad():
                    self.target._call(self.target.prepared(filled(self.x, n)))
                works[n] = None
            except Exception as error:
                works[n] = error
            return works[n] is None

        sizes = (min(4, len(self.x)), 1, 7, 32)
        if all([tries(n) for n in sizes]):
            return min(4, len(self.x))
        if self.leave_out() and all([tries(n) for n in sizes]):
            return min(4, len(self.x))
        for n in (8, 16, 2, 3, 5, 10, 20, 50, 64, 100, 128, 256):
            tries(n)
        taken = [n for n, error in works.items() if error is None]
        if not taken:
            error = works[1]
            text = str(error).strip().split("\n")[0]
            if isinstance(error, TargetError):
                raise error
            raise TargetError(
                f"The target raised {type(error).__name__} on inputs of shape {tuple(self.x.shape[1:])}: {text}"
            ) from error
        size = max(n for n in taken if n <= 64 or n == min(taken))
        self.target.batch = size
        only = (
            f"exactly {size}" if taken == [size] else f"not any number of ({', '.join(map(str, sorted(taken)))} work)"
        )
        self.up.add("B8", "fixed batch",
            f"The target accepts {only} images at a time; batches of {size} are sent, the last one padded.",
            "repaired", size)  # fmt: skip
        return size

    def leave_out(self) -> bool:
        """Leave out the probes on which the target raises whatever their company; whether there were such."""
        good = []
        for i in range(len(self.x)):
            for n in (1, 8, 4, 16):
                with contextlib.suppress(Exception), torch.no_grad():
                    self.target._call(self.target.prepared(filled(self.x[i : i + 1], n)))
                    good.append(i)
                    break
        bad = len(self.x) - len(good)
        if not good or not bad:
            return False
        self.x, self.y, self.wild = self.x[good], self.y[good], self.wild[good]
        self.noise = Noise(self.noise.keys[good])
        self.up.add("F0", "raises on some inputs",
            f"The target raised on {bad} of {bad + len(good)} probes: such examples are counted once as broken and "
            "once as robust.",
            "noted", bad)  # fmt: skip
        return True

    @contextlib.contextmanager
    def inside_forward(self) -> Iterator[None]:
        """Watch one forward: gradients that it takes itself, and the global state that it leaves behind."""
        count = [0]
        real = torch.autograd.grad, torch.Tensor.backward, torch.autograd.backward

        def watched(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                count[0] += 1
                return function(*args, **kwargs)

            return call

        module, leaks = self.target.module, []

        def spy(*args: Any) -> Any:
            mode, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
            out = module(*args)
            if torch.is_grad_enabled() != mode:
                leaks.append("autograd's mode")
            if torch.get_default_dtype() != dtype:
                leaks.append("the default dtype")
            return out

        try:
            torch.autograd.grad, torch.Tensor.backward = watched(real[0]), watched(real[1])  # type: ignore[method-assign]
            torch.autograd.backward = watched(real[2])
            self.target.module = spy
            yield
        finally:
            torch.autograd.grad, torch.Tensor.backward = real[0], real[1]  # type: ignore[method-assign]
            torch.autograd.backward = real[2]
            self.target.module = module
        if leaks:
            self.up.add("B5", "leaks state",
                f"The target's forward changed {' and '.join(leaks)} and did not change it back; it is restored after "
                "every call.",
                "repaired")  # fmt: skip
        if count[0]:
            self.up.masked = True
            self.up.add("D7", "optimises inside forward",
                f"forward() computes gradients itself ({count[0]} calls): test-time optimisation. Gradients go "
                "straight through it.",
                "escalated", count[0])  # fmt: skip

    # ---- is the answer a function of the input?

    def scaled(self, clean: Tensor) -> None:
        """Where the target is no better than chance: would it be right with inputs of another scale?"""
        right = float((clean.argmax(1).cpu() == self.y).float().mean())
        if right > 0.5 or self.target.labels or len(self.x) < 8:
            return
        lo = self.threat.bounds[0]
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "between 0 and 255": lambda v: (v - lo) / self.span * 255,
            "between -1 and 1": lambda v: (v - lo) / self.span * 2 - 1,
            "between 0 and 1": lambda v: (v - lo) / self.span,
        }
        if self.x.dim() == 4 and self.x.shape[1] == 3:
            mean = torch.tensor([0.485, 0.456, 0.406], dtype=self.x.dtype, device=self.x.device).view(1, 3, 1, 1)
            std = torch.tensor([0.229, 0.224, 0.225], dtype=self.x.dtype, device=self.x.device).view(1, 3, 1, 1)
            ways["normalised by ImageNet's mean and standard deviation"] = lambda v: ((v - lo) / self.span - mean) / std
        for what, way in ways.items():
            found = float((self.ask(way(self.x)).argmax(1).cpu() == self.y).float().mean())
            if found > max(0.5, 2.5 * right):
                self.up.add("A1", "inputs on another scale",
                    f"The target is right on {right:.0%} of the probes as given and on {found:.0%} of them when they "
                    f"lie {what}: give its bounds or normalisation (bounds=, mean=, std=).",
                    "withheld", found)  # fmt: skip
                return

    def history(self, first: Tensor) -> bool:
        """Ask again: luck, memory and drift. Return whether answers are the same each time."""
        memory = self.up.memory
        assert memory is not None
        self.scale = _spread(first)
        now, sent = Snapshot(self.target.module), self.target.sent[0]
        try:
            return self.asked_again(memory)
        finally:  # as if it had not been asked: the target may count for its owner
            now.restore()
            self.target.sent[0] = sent

    def asked_again(self, memory: Snapshot) -> bool:
        """The questions of `history`, from the target's first state."""
        memory.restore()
        fresh = self.ask(self.x, 0)
        again = self.ask(self.x, 0)
        state = torch.get_rng_state()
        other = self.ask(self.x, 1)
        if torch.equal(state, torch.get_rng_state()):
            self.up.add("B5", "leaks state",
                "The target's forward seeds torch's global generator; its state is restored after the run, and the "
                "attacks' own noise does not come from there.",
                "repaired")  # fmt: skip
        if self.differ(fresh, again):
            memory.restore()
            if self.differ(fresh, self.ask(self.x, 0)):
                return self.random(fresh)
            return self.remembers(fresh, again)
        if self.differ(again, other):
            return self.random(fresh)
        near = self.ball(2, 0.5)
        seen = self.ask(near, 0)  # the target has just seen their originals
        memory.restore()
        unseen = self.ask(near, 0)
        if self.differ(seen, unseen):
            return self.remembers(unseen, seen)
        for _ in range(6):
            last = self.ask(self.x[:4], 0)
        if self.differ(fresh[:4], last) and not self.differ(fresh[:4], self.ask(self.x, 0)[:4]):
            return True  # other rows in the batch, not drift
        if self.differ(self.ask(self.x, 0), fresh):
            memory.restore()
            if not self.differ(self.ask(self.x, 0), fresh):
                return self.remembers(fresh, last)
        return True

    def differ(self, a: Tensor, b: Tensor) -> bool:
        """Whether two answers differ by more than rounding."""
        a, b = a.float().nan_to_num(0.0), b.float().nan_to_num(0.0)
        rounding = 1e-5 * max(float(a.abs().amax()), 1e-30)
        return float((a - b).abs().amax()) > max(rounding, 1e-3 * self.scale)

    def remembers(self, a: Tensor, b: Tensor) -> bool:
        assert self.up.memory is not None
        self.target.reset = self.up.memory.restore
        gap = float((a.float() - b.float()).abs().amax())
        self.up.add("B6", "memory",
            f"Answers depend on what was asked before (scores differ by up to {gap:.2g}): the target is put back into "
            "its first state before every call.",
            "repaired", gap)  # fmt: skip
        return True

    def random(self, a: Tensor) -> bool:
        draws = torch.stack([self.ask(self.x, 100 + i).float() for i in range(DRAWS)])
        deviation = float(draws.std(0).median())
        labels = self.target.split(draws.flatten(0, 1))[0].argmax(1).view(DRAWS, -1)
        flips = float((labels != labels[0]).any(0).float().mean())
        self.target.draws = DRAWS
        self.up.add("B2", "random answers",
            f"Outputs differ between identical calls (median s.d. {deviation:.2g}; the class of {flips:.0%} of the "
            f"probes changes): gradients are means over {DRAWS} draws, and every example counts by its share of 20 "
            "fresh draws.",
            "repaired", deviation)  # fmt: skip
        return False

    def coupling(self, *, steady: bool) -> None:
        """Classify alone, in company and in another order: the images of a batch must not see each other."""
        if not steady or self.target.batch == 1:
            return
        a = self.ask(self.x, 0)
        companions = torch.cat([self.x[:4], self.wild[: len(self.x) - 4]]) if len(self.x) > 4 else self.x.flip(0)
        together = self.ask(companions, 0)
        apart = a[:4] if len(self.x) > 4 else a.flip(0)
        together = together[: len(apart)]
        gap = (apart.float() - together.float()).abs().amax(1)
        if not float(gap.amax()) > 1e-3 * self.scale:
            if self.target.batch:
                return
            # another number of rows rounds otherwise, which counts only where it changes an answer
            apart = a[: min(4, len(self.x))]
            together = torch.cat([self.ask(self.x[i : i + 1], 0) for i in range(len(apart))])
            gap = (apart.float() - together.float()).abs().amax(1)
            if not (float(gap.amax()) > 1e-3 * self.scale and bool((apart.argmax(1) != together.argmax(1)).any())):
                return
        changed = int((apart.argmax(1) != together.argmax(1)).sum())
        text = f"The target couples the images of a batch (scores move by up to {float(gap.amax()):.2g}, "
        text += f"{changed} of {len(apart)} probes change class in other company)"
        batch, self.target.batch = self.target.batch, 1
        try:
            alone = torch.cat([self.ask(v, 0) for v in self.x.split(1)])
        except Exception:
            self.target.batch = batch
            self.up.add("B7", "coupled batch",
                f"{text}, and cannot classify one alone: its number depends on the company.",
                "suspect", float(gap.amax()))  # fmt: skip
            return
        y = self.y.to(alone.device)
        in_batch, by_itself = (float((v.argmax(1) == y).float().mean()) for v in (a, alone))
        if by_itself < in_batch - 0.2:
            self.target.batch = batch
            text += f", and alone it is right on {by_itself:.0%} of the probes instead of {in_batch:.0%}: no number of "
            self.up.add("B7", "coupled batch", f"{text}it stands for one image.", "withheld", float(gap.amax()))
        else:
            self.up.add("B7", "coupled batch",
                f"{text}: every image is classified alone.",
                "repaired", float(gap.amax()))  # fmt: skip

    # ---- are the scores scores?

    def values(self) -> None:
        """NaN, ties, rejection, precision and scale of the scores."""
        up = self.up
        clean = self.ask(self.x)
        self.scaled(clean)
        around = torch.cat([self.ask(self.ball(3)), self.ask(self.ball(4, 0.5))])
        bad = float((~valid(around)).float().mean())
        lo, _ = self.threat.bounds
        steps = (self.x.double() - lo) / self.span * 255
        on_levels = bool(((steps - steps.round()).abs() < 1e-3).all())
        if bad > 0:
            text = (
                f"{bad:.0%} of random points of the ball are answered by NaN or infinity: such answers are no success."
            )
            if on_levels and valid(clean).all():
                self.up.levels = 255
                level = Ball(self.threat.norm, self.threat.eps, self.threat.bounds, 255).project(self.ball(3), self.x)
                if bool(valid(self.ask(level)).all()):
                    text += " Images of 8-bit values are answered: attacks stay on these."
                else:
                    self.up.levels = None
            up.add("C5", "NaN outputs", text, "escalated" if self.up.levels else "suspect", bad)
        k = clean.shape[1]
        present = self.labels.unique()
        last = int(present.max()) if len(present) else 0
        enough = last == k - 2 and len(present) >= k - 2 and len(self.labels) >= 3 * (k - 1)
        if self.target.reject is None and k >= 4 and enough:
            answered = (clean.argmax(1) != k - 1).cpu()
            fits = (clean.argmax(1).cpu() == self.y)[answered].float().mean()  # else the classes are shifted
            seen = torch.cat([clean, around])
            chosen = float((seen.argmax(1) == k - 1).float().mean())
            spread = seen.float().nan_to_num(0.0, 0.0, 0.0)[seen.argmax(1) != k - 1].std(0)
            constant = float(spread[-1]) < 1e-3 * float(spread[:-1].mean())  # no class: it waits for its moment
            if float(fits) > 0.5 and (constant or (chosen > 0.04 and len(present) == k - 1)):
                self.target.reject = "last"
                up.add("C8", "may abstain",
                    f"The target has one output more than the labels name ({chosen:.0%} of the probes get it): it is "
                    "read as no answer. A success is wrong and answered.",
                    "noted", chosen)  # fmt: skip
        if isinstance(self.target.reject, float) or (self.target.reject == "last" and not up.has("C8")):
            up.add("C8", "may abstain", "The target may abstain: a success is wrong and answered.", "noted")
        if self.target.labels:
            return
        top = clean.float().topk(2, dim=1).values.nan_to_num(neginf=0.0)
        gap = float((top[:, 0] - top[:, 1]).median())
        digits = float(top.abs().amax()) * torch.finfo(clean.dtype).eps  # a class ruled out by -1e9 is no offset
        if (
            self.target.kind == "scores"
            and gap > 0
            and digits > 1e-2 * gap
            and clean.dtype not in _HALF
            and not up.has("F1")
        ):
            up.masked = True
            self.target.rounding = 0.5  # a unit in the last place is a difference here
            up.add("C7", "offset logits",
                f"The scores share an offset so large that float32 keeps {digits:.2g} of their gaps of about "
                f"{gap:.2g}: attacks climb what it is added to.",
                "escalated", digits / gap)  # fmt: skip
        elif gap > 104 or 0 < gap < 1e-4:
            up.add("C7", "scale of the logits",
                f"The two best scores are about {gap:.2g} apart, where a plain cross-entropy has no gradient; the "
                "losses used here keep theirs.",
                "noted", gap)  # fmt: skip

    def landscape(self) -> None:
        """Plateaus, steps and jumps of the margin around the probes."""
        up, label = self.up, self.label()
        if self.target.draws > 1 or self.target.labels:
            return
        points = [self.ball(10 + i) for i in range(6)]
        margins = torch.stack([self.margin(p, label) for p in points]).nan_to_num(posinf=0.0, neginf=0.0)
        scale = max(float(margins.abs().median()), 1e-30)
        flat = float((margins.std(0) <= 1e-6 * scale).float().mean())
        if flat > 0.3 and self.threat.eps > 0:
            up.masked = up.blind = True
            up.add("D8", "flat scores",
                f"The margin is constant around {flat:.0%} of the probes: neither gradients nor scores can guide an "
                "attack; others were run.",
                "escalated", flat)  # fmt: skip
            return
        distinct = min(len(row.unique()) for row in margins.T)
        typical = float(np.median([len(row.unique()) for row in margins.T]))
        if typical <= 4 and self.threat.eps > 0:
            up.masked = up.blind = True
            up.add("C6", "quantised scores",
                f"Around a probe the margin takes about {typical:.0f} (at least {distinct}) values in 6 random "
                "points: scores are rounded. Ties count as wrong.",
                "escalated", typical)  # fmt: skip
            return
        if self.target.dtype in _HALF or up.levels:
            return
        size = 1e-6 * self.span
        jitter = self.noise.signs(20, self.x.shape[1:], dtype=self.x.dtype) * size
        base = points[0]
        jump = (self.margin(base + jitter, label) - margins[0]).abs()
        relative = float((jump.nan_to_num() / margins.std(0).clamp(min=1e-30)).median())
        precise = float(self.ask(base).abs().nan_to_num(posinf=0.0, neginf=0.0).amax()) * 1e-6
        reach = self.eps if self.threat.norm.name == "linf" else 0.05 * self.span
        if relative > max(1e-3, 20 * size / reach) and float(jump.median()) > 4 * precise:
            up.masked = True
            up.add("D4", "shattered landscape",
                f"The margin jumps by {relative:.0%} of its spread under a change of 1e-6: gradients are averaged "
                "over neighbours and taken straight through.",
                "escalated", relative)  # fmt: skip

    # ---- are the gradients gradients?

    def gradients(self) -> None:
        """Missing, zero, wrong, noisy and non-finite gradients, at random points of the ball."""
        up, points = self.up, self.ball(30)
        if self.target.labels:
            return
        label = self.label()
        got = self.gradient(points, label)
        if got is None:
            up.masked = True
            if self.hot == 1:
                up.add("D1", "hard labels",
                    "The answer is a hard label (one class has all, the others nothing) and no gradient reaches the "
                    "input: attacks that need neither gradients nor scores were run.",
                    "escalated", 1.0)  # fmt: skip
            up.add("D2", "no gradient",
                "The output does not depend on the input through autograd (no_grad, detach or NumPy in forward?): "
                "attacks that need no gradient of its own were run.",
                "escalated")  # fmt: skip
            return
        margin, raw = got
        clean = self.gradient(self.x, label)  # where a black pixel may be a pole
        bad = max(float((~g.isfinite()).float().mean()) for g in (raw, raw if clean is None else clean[1]))
        if bad > 0:
            up.masked = True
            up.add("D5", "NaN gradients",
                f"{bad:.0%} of the gradient's entries are NaN or infinite (a sqrt or power at 0?); they are ignored, "
                "and gradients are taken straight through as well.",
                "escalated", bad)  # fmt: skip
        grad = raw.nan_to_num(0.0, 0.0, 0.0)
        length = grad.flatten(1).double().norm(dim=1)
        zero = float((length == 0).float().mean())
        if zero > 0.05:
            up.masked = True
            up.add("D1", "zero gradients",
                f"No gradient reaches the input on {zero:.0%} of the probes (rounding, a hard label, saturation or a "
                "custom backward): gradients are taken straight through, and attacks that need none were run.",
                "escalated", zero)  # fmt: skip
            return
        if self.target.draws > 1 or up.masked or up.levels:
            return
        again = self.gradient(points, label)
        assert again is not None
        other = again[1].nan_to_num(0.0, 0.0, 0.0)
        alike = torch.nn.functional.cosine_similarity(grad.flatten(1).double(), other.flatten(1).double(), dim=1)
        if float(alike.median()) < 0.99:
            up.masked = True
            up.add("D3", "noisy gradients",
                f"Two gradients at the same point have a cosine of {float(alike.median()):.2f}: the gradient is not "
                "that of the loss.",
                "escalated", float(alike.median()))  # fmt: skip
            return
        if self.target.dtype in _HALF or up.has("F1"):  # differences of such scores say nothing
            return
        right = self.derivative(points, label, margin.double(), grad, length)
        if right < 0.5:
            up.masked = True
            up.add("D3", "wrong gradients",
                f"A small step along the gradient changes the margin as the gradient says on {right:.0%} of the "
                "probes: the reported gradient is not the gradient of the loss.",
                "escalated", right)  # fmt: skip

    def gradient(self, points: Tensor, label: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return margins [b] and their gradients [b, ...] as the target gives them, None where it gives none."""
        torch.manual_seed(7)
        with torch.enable_grad():
            leaf = points.detach().clone().requires_grad_(True)
            try:
                margin = losses.margin(self.target.split(self.target.scores(leaf))[0], label)
                if not margin.requires_grad:
                    return None
                scale = 1024.0 if self.target.dtype == torch.float16 else 1.0
                grad = torch.autograd.grad(margin.sum() * scale, leaf, allow_unused=True)[0]
            except RuntimeError:
                return None
        self.backward += len(points)
        return None if grad is None else (margin.detach(), grad)

    def derivative(self, points: Tensor, label: Tensor, margin: Tensor, grad: Tensor, length: Tensor) -> float:
        """Return the share of probes on which finite differences along the gradient agree with it at some step."""
        unit = grad / length.to(grad.dtype).clamp(min=torch.finfo(grad.dtype).tiny).view(-1, *([1] * (grad.dim() - 1)))
        reach = float(self.threat.norm.size(unit.double()).median())
        fits = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        for share in (0.25, 0.05, 0.01):
            h = share * self.eps / max(reach, 1e-30)
            up_, down = (self.margin(points + sign * h * unit, label) for sign in (1, -1))
            central, forward = (up_ - down) / (2 * h), (up_ - margin) / h
            for slope in (central, forward):
                fits |= (slope / length - 1).abs() < 0.35
        return float(fits.float().mean())

    # ---- a way around

    def unmask(self) -> None:
        """Look for a gradient straight through what hides it."""
        target = self.target
        if target.access < 3:
            return
        label, points = self.label(), self.ball(40)
        rows = len(self.x) if target.batch is None else target.batch // 2  # clean inputs and points share a batch
        found = self.way(target, label, points, rows) if rows else None
        if found is None and target.batch:  # it must be asked in this way, and may still take several for its gradient
            free = copy.copy(target)
            free.batch = None
            with contextlib.suppress(Exception):
                found = self.way(free, label, points, len(self.x))
        target.straight = found
        with contextlib.suppress(Exception):
            leaf = self.x[: target.batch or len(self.x)].clone().requires_grad_(True)
            self.up.undone = frozenset(trace(target, leaf, VARIANTS[0]).undone)
        if found is not None:
            what = f" ({', '.join(sorted(self.up.undone))})" if self.up.undone else ""
            self.up.add("BPDA", "gradients taken straight through",
                f"A gradient was found straight through what hides it{what}: a step along it helps on "
                f"{found.share:.0%} of the probes.",
                "noted", found.share)  # fmt: skip

    def way(self, target: Target, label: Tensor, points: Tensor, rows: int) -> Straight | None:
        """Return what `find` finds from the first probes, by steps of a quarter of eps."""

        def step(points: Tensor, grad: Tensor) -> Tensor:
            return points + 0.25 * self.eps * self.threat.norm.steepest(grad)

        return find(target, self.x[:rows], label[:rows], points[:rows], step, losses.margin)


def _modes(up: Checkup, target: Target) -> None:
    """Say which modules were found in training mode that behave differently there."""
    if not isinstance(target.module, nn.Module):
        return
    kinds: dict[str, int] = {}
    for m in target.module.modules():
        if m.training and isinstance(m, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
            kinds[type(m).__name__] = kinds.get(type(m).__name__, 0) + 1
    if kinds:
        listed = ", ".join(f"{v} {k}" for k, v in kinds.items())
        up.add("B1", "training mode",
            f"The target was in training mode ({listed}): it is evaluated in eval mode, your flags are restored.",
            "repaired")  # fmt: skip


def _read(target: Target, x: Tensor) -> Tensor:
    with torch.no_grad():
        return pick(target._call(target.prepared(x)), len(x), target.output).float()


def _spread(scores: Tensor) -> float:
    """How far scores of different examples lie apart: the unit in which differences are judged."""
    z = scores.float().nan_to_num(0.0, 0.0, 0.0)
    spread = float(z.std(0).mean()) if len(z) > 1 else float(z.std())
    return max(spread, float((z.amax(1) - z.amin(1)).median()) * 0.1, 1e-30)
