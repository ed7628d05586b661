"""The main job: check, run a suite on every image, and say at most how robust the target is."""

import copy
import math
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _rows
from ..attacks import RECIPES, SUITES, Suite, ray, square
from ..attacks import suite as named_suite
from ..core.access import Access
from ..core.attack import Attack, as_attack
from ..core.data import Data, load_data
from ..core.journal import Journal, run_key
from ..core.result import UNDECIDED, CurvePoint, Evaluation, Finding, Progress, Status
from ..core.run import Run, auto_width, check_inputs, run
from ..core.target import Target, as_target
from ..core.threat import Ball, as_threat, linf
from ..errors import InputError, Unavailable
from .checkup import Checkup, examine
from .escalate import brief, family, plan
from .preflight import Order, check_threat
from .surrogate import distil
from .verdict import DRAWS, Controls, control, grounds, returns, settled, verdict
from .verify import READING

if TYPE_CHECKING:
    from ..core.goal import Goal

CURVE = (0.25, 0.5, 1.0, 1.5, 2.0)
"""The curve's sizes of the threat, in units of its eps."""

CURVE_IMAGES = 128
PILOT = 16
"""Images that a budgeted run prices before it goes on."""


@dataclass(frozen=True)
class _Asked:
    """What an evaluation is asked for, read and checked; `before` is what an evaluation before this one found."""

    images: Data
    ball: Ball
    suite: Suite
    goal: "Goal | None"
    seed: int
    limit: int | None
    batch_size: int | str
    width: int
    access: Access | None
    queries: int | None
    budget: float | None
    curve: bool
    progress: Callable[[Progress], None] | None
    journal: Journal | None
    notes: tuple[str, ...]
    before: tuple[Finding, ...] = ()


def evaluate(
    target: Target | nn.Module | Callable[..., Any] | str,
    data: Data | Tensor | Iterable[Any] | str,
    y: Tensor | None = None,
    threat: Ball | str | None = None,
    *,
    suite: str | Suite | Sequence[Attack[Any] | str] = "standard",
    goal: "Goal | None" = None,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int | str = "auto",
    device: str = "auto",
    access: Access | None = None,
    queries: int | None = None,
    budget: float | None = None,
    curve: bool = False,
    data_dir: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    journal: Journal | Path | str | None = None,
) -> Evaluation:
    """Measure robust accuracy: at most so many examples stay classified correctly within the threat.

    Args:
        target: a Target, a module taking inputs in [0, 1], a zoo name, 'file.py:callable' or a timm name.
        data: inputs, float [n, ...] within the target's bounds, with labels `y` int64 [n]; or anything that
            `load_data` reads: a name, an .npz, a folder, a DataLoader.
        y: the true labels, int64 [n], when `data` is a tensor.
        threat: a ball such as uf.linf(8/255), or its text.
        suite: 'quick', 'standard', 'autoattack', a list of attacks, or their calls as one text, ';' between them.
        goal: untargeted by default.
        seed: of all noise; draws belong to the example.
        limit: take the first so many examples.
        batch_size: slots, or 'auto'.
        device: 'auto' leaves modules where they are and puts named targets on the GPU where there is one.
        access, queries: what the attacker may ask, and how many forward passes it has per example.
        budget: seconds; a few images are priced first, and what does not fit is left out and bracketed.
        curve: also measure robust accuracy at five sizes of the threat with suite quick on at most 128 examples.
        data_dir: where named data sets lie.
        progress: called with a Progress about ten times a second.
        journal: the file that finished work is written to and, when the run was killed, read from: give the same again.

    Returns:
        An Evaluation. The doctor looks at the target first; what it can mend is mended, where gradients mean nothing
        other attacks are run, and `status`, `reasons` and `findings` say whether the number can be trusted.

    Raises:
        InputError: bad input of any kind, in one sentence.
    """
    begun = time.monotonic()
    model = _target(target, device)
    images = _data(data, y, limit, data_dir, model)
    if threat is None:
        raise InputError("evaluate needs a threat, for example uf.linf(8/255).")
    if not isinstance(threat, Ball | str):
        raise InputError(f"{threat!r} is no threat; write for example uf.linf(8/255) or 'linf(8/255)'.")
    ball = as_threat(threat).within(model.bounds)
    notes = (*images.notes, *((model.note,) if model.note else ()), *check_threat(ball, model.bounds))
    check_inputs(images.x, images.y, ball, model)
    width = auto_width(images.x, model.device) if isinstance(batch_size, str) else batch_size
    asked = _Asked(
        images, ball, _suite(suite), goal, seed, limit, batch_size, width, access, queries, budget, curve, progress,
        journal if isinstance(journal, Journal) else None, notes,
    )  # fmt: skip
    if not isinstance(journal, Path | str):
        return _measure(model, asked, begun)
    key = run_key(
        target=model, x=images.x, y=images.y, threat=ball, attacks=[*asked.suite.attacks, *asked.suite.more],
        width=width, seed=seed, goal=goal, access=access, queries=queries,
    )  # fmt: skip
    with Journal(journal, key) as opened:
        return _measure(model, replace(asked, journal=opened), begun)


def whole(found: Evaluation) -> Evaluation:
    """Return an evaluation that came to its end; raise KeyboardInterrupt for one that was interrupted."""
    if found.settings.get("interrupted"):
        raise KeyboardInterrupt
    return found


def _measure(model: Target, asked: _Asked, begun: float) -> Evaluation:
    """Check, attack, look again, and say what was found; `begun` is when the budget began."""
    images, seed, width, budget = asked.images, asked.seed, asked.width, asked.budget
    order, notes = Order(), list(asked.notes)
    sent = model.sent[0]
    up = examine(model, images.x, images.y, asked.ball, seed=seed)
    model, ball = up.target, replace(asked.ball, levels=up.levels)
    granted = min(model.access, Access.GRADIENT if asked.access is None else Access(asked.access))
    chosen = plan(asked.suite, up)
    usable = any(a.access <= granted for a in (*chosen.attacks, *chosen.more))
    if granted is Access.LABEL:
        chosen = replace(chosen, attacks=(*chosen.attacks, ray(queries=2000)))
    elif granted is Access.SCORES and not usable and chosen.name != "custom":
        chosen = replace(chosen, attacks=(*chosen.attacks, square(queries=1000), ray(queries=1000)))
    surrogates: tuple[Target, ...] = ()
    if any(family(repr(a)) == "transfer" for a in chosen.attacks):
        surrogates = (distil(model, images.x, ball, seed=seed),)
    settings: dict[str, Any] = {
        "goal": asked.goal,
        "batch_size": asked.batch_size,
        "seed": seed,
        "access": asked.access,
        "queries": asked.queries,
        "salvage": True,
        "journal": asked.journal,
    }

    def attack(part: slice | np.ndarray, deadline: float | None = None) -> Run:
        return run(
            chosen.attacks,
            model,
            images.x[part],
            images.y[part],
            ball,
            more=chosen.more,
            surrogates=surrogates,
            deadline=deadline,
            progress=asked.progress,
            relabel=order,
            phase="suite",
            **settings,
        )

    runs = _budgeted(attack, len(images), width, budget, begun, notes) if budget else [attack(slice(None))]
    whole = _joined(runs)
    if whole.attacks and all(r.skipped for r in whole.attacks):
        raise InputError(
            f"No attack of {chosen.name} applies to {ball!r}: {whole.attacks[0].name} {whole.attacks[0].skipped}."
        )
    assert isinstance(whole.x_adv, Tensor)
    looked, begun_controls = Controls(), time.monotonic()
    if not whole.interrupted:
        try:
            looked = control(
                up, images.x, whole, ball, seed=seed, width=width, gradient=granted is Access.GRADIENT,
                pilot=not chosen.more and asked.goal is None and asked.queries is None,
                deadline=begun + budget if budget else None,
            )  # fmt: skip
        except (KeyboardInterrupt, Unavailable):
            whole.interrupted = True
        first = looked.drifted and model.reset is None and not asked.before
        if first and up.memory is not None and returns(up, images.x, whole):
            drift = Finding("B6", "drift",
                f"{looked.findings[0].sentence} It was measured again, put back into its first state before every "
                "call.",
                "repaired")  # fmt: skip
            return _measure(_forgetful(model, up), replace(asked, before=(drift,)), time.monotonic())
    controls = time.monotonic() - begun_controls
    charged = int(whole.forward.sum() + whole.padding[0] + whole.overrun[0])
    checks = [model.sent[0] - sent - charged, up.backward + looked.backward]
    findings = [
        *asked.before,
        *up.findings,
        *grounds(up, whole, whole.attacks, len(chosen.attacks), len(images)),
        *looked.findings,
    ]
    if asked.goal is None and asked.queries is None and granted is Access.GRADIENT:
        findings = settled(up, findings, whole.attacks, len(images))
    undone = sum(s in (Status.NOT_RUN, Status.FAILED) for s in whole.status)
    unfinished = ["interrupted"] if whole.interrupted else []
    unfinished += [f"{undone} of {len(whole.status)} not finished"] if undone else []
    status, reasons = verdict(findings, [*unfinished, *order.reasons, *_invalid(whole.status)])
    points, stopped = None, whole.interrupted
    if asked.curve and not stopped and not (budget and time.monotonic() - begun > budget):
        deadline = begun + budget if budget else None
        points, stopped = _curve(up, model, images, whole, ball, deadline, order, settings)
        if points is None and not stopped:
            notes.append("No accuracy-versus-eps curve: suite quick does not apply, or no time was left.")
    if asked.journal is not None and not stopped:
        asked.journal.finish()
    return Evaluation(
        x=images.x.cpu(),
        y=whole.y,
        x_adv=whole.x_adv.cpu(),
        clean=torch.tensor([s not in (Status.MISCLASSIFIED, Status.INVALID) for s in whole.status]),
        robust=torch.tensor([s in (Status.SURVIVED, *UNDECIDED) for s in whole.status]),
        outcome=whole.status,
        broken_by=whole.broken_by,
        ids=torch.from_numpy(whole.ids),
        distance=whole.distance,
        label_clean=whole.label_clean,
        label_adv=whole.label,
        confidence_clean=whole.confidence_clean.double(),
        confidence_adv=whole.confidence.double(),
        margin=whole.margin.double(),
        steps_to_break=torch.from_numpy(whole.steps),
        forward=torch.from_numpy(whole.forward),
        backward=torch.from_numpy(whole.backward),
        threat=repr(ball),
        suite=chosen.name,
        seed=seed,
        target=model.name,
        data=images.name,
        classes=model.classes or _shifted(images.classes, order.offset),
        survival=looked.survival,
        draws=DRAWS if model.draws > 1 else 1,
        on_grid=looked.on_grid,
        rejected_clean=looked.rejected_clean,
        rejected_adv=looked.rejected_adv,
        findings=findings,
        check_seconds=up.seconds + controls,
        status=status,
        reasons=reasons,
        attacks=whole.attacks,
        seconds=time.monotonic() - begun + (0.0 if asked.journal is None else asked.journal.saved),
        curve=points,
        curve_suite="quick" if points else "",
        notes=[
            *notes,
            *order.notes,
            *whole.notes,
            *(["Interrupted: what was found until then is reported."] if stopped else []),
        ],
        versions=versions(),
        settings={
            "attacks": [repr(a) for a in chosen.attacks],
            "more": [repr(a) for a in chosen.more],
            "goal": "Untargeted()" if asked.goal is None else repr(asked.goal),
            "norm": ball.norm.name,
            "eps": ball.eps,  # the threat's text is rounded
            "bounds": list(model.bounds),
            "batch_size": width,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "seed": seed,
            "access": granted.name.lower(),
            "queries": asked.queries,
            "budget": budget,
            "limit": asked.limit,
            "target_fingerprint": model.fingerprint(),
            "reading": {name: getattr(model, name) for name in READING},
            "data_fingerprint": images.fingerprint(),
            "padding": whole.padding.tolist(),
            "overrun": whole.overrun.tolist(),
            "vanished": whole.vanished,
            "checks": checks,  # forward and backward passes of the doctor, the controls and what they brought with them
            "interrupted": stopped,
        },
    )


def _forgetful(target: Target, up: Checkup) -> Target:
    """Return the target with its first state put back before every call: its answers changed during the run."""
    assert up.memory is not None
    again = copy.copy(target)
    again.reset = up.memory.restore
    return again


def _invalid(status: Sequence[Status]) -> list[str]:
    """Return the reason for doubt that answers without a best class give."""
    count = sum(s is Status.INVALID for s in status)
    return [f"{count} of {len(status)} clean answers were NaN or infinite and are counted nowhere"] if count else []


def _shifted(names: Sequence[str] | None, offset: int) -> list[str] | None:
    """Return the data's class names at the places that their labels have after the shift."""
    if not names:
        return None
    return ["(no such class)"] * offset + list(names) if offset >= 0 else list(names)[-offset:]


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    from .. import __version__

    return {
        "unfooled": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def doctor(
    target: Target | nn.Module | Callable[..., Any] | str,
    data: Data | Tensor | Iterable[Any] | str,
    y: Tensor | None = None,
    threat: Ball | str | None = None,
    *,
    limit: int | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Checkup:
    """Examine a target with a few dozen small forward passes and attack nothing; arguments as for `evaluate`.

    Raises InputError for bad input, TargetError when the target answers in no way that could be read.
    """
    model = _target(target, device)
    images = _data(data, y, limit, data_dir, model)
    ball = linf(0.03 * (model.bounds[1] - model.bounds[0])) if threat is None else as_threat(threat)
    ball = ball.within(model.bounds)
    check_threat(ball, model.bounds)
    check_inputs(images.x, images.y, ball, model)
    return examine(model, images.x, images.y, ball, seed=seed)


def _target(target: Any, device: str) -> Target:
    if isinstance(target, str):
        from ..targets import resolve

        return resolve(target, device=device)
    model = as_target(target)
    if device not in ("auto", str(model.device), model.device.type) and isinstance(model.module, nn.Module):
        raise InputError(f"The module is on {model.device}; move it to {device} yourself, or leave device='auto'.")
    return model


def _data(data: Any, y: Tensor | None, limit: int | None, data_dir: str | None, model: Target) -> Data:
    if isinstance(data, Tensor) and y is None:
        raise InputError("Give the labels with the inputs: evaluate(target, x, y, threat).")
    left_out: tuple[str, ...] = ()
    if isinstance(data, Tensor) and isinstance(y, Tensor) and data.is_floating_point() and len(data) == len(y):
        odd = (~data.detach().isfinite()).flatten(1).sum(1) if data.dim() > 1 else torch.zeros(len(data))
        if 0 < int((odd > 0).sum()) < len(data):
            first = int(odd.nonzero()[0])
            left_out = (
                f"{int((odd > 0).sum())} of {len(data)} inputs were left out (sample {first} first): "
                f"they contain values that are NaN or infinite ({int(odd[first])} in that one).",
            )
            data, y = data[odd == 0], y[(odd == 0).to(y.device)]
    images = load_data(data if y is None else (data, y), limit=limit, data_dir=data_dir, bounds=model.bounds)
    images = replace(images, notes=(*images.notes, *left_out))
    return replace(images, y=images.y.cpu())


def _suite(suite: str | Suite | Sequence[Attack[Any] | str]) -> Suite:
    if isinstance(suite, Suite):
        return suite
    if isinstance(suite, str):
        if suite in SUITES or not ("(" in suite or ";" in suite or suite in RECIPES):
            return named_suite(suite)
        suite = [call for call in suite.split(";") if call.strip()]
    attacks = tuple(as_attack(a) for a in ([suite] if isinstance(suite, Attack) else suite))
    if not attacks:
        raise InputError("The list of attacks is empty; name a suite or give at least one attack.")
    return Suite("custom", "", "", attacks)


def _budgeted(
    attack: Callable[..., Run], n: int, width: int, budget: float, begun: float, notes: list[str]
) -> list[Run]:
    """Price the suite on a few images, then go block by block until the budget ends; the rest stays not_run."""
    at = min(PILOT, n)
    spread = np.unique(np.linspace(0, n - 1, min(n, 256)).astype(np.int64))  # sorted data must not hide classes
    first = attack(spread, 0.0)  # the clean look alone: every image gets one, whatever the budget
    deadline = begun + budget * 0.95 - first.seconds / len(spread) * (n - at)
    runs = [attack(slice(0, at), deadline)]
    price = runs[0].seconds / at
    need = price * (n - at)
    left = deadline - time.monotonic()
    if Status.NOT_RUN in runs[0].status:
        notes.append(f"Within {budget:.3g} s not even the first {at} images could be finished.")
    else:
        verdict = "all are attempted" if need <= left else f"about {at + int(max(left, 0) / price)} of {n} fit"
        notes.append(
            f"Within {budget:.3g} s: {at} images took {runs[0].seconds:.1f} s, "
            f"so {n} would take about {price * n:.0f} s; {verdict}."
        )
    while at < n and not runs[-1].interrupted:
        size = n - at if need <= left / 2 else max(width, PILOT)
        try:
            runs.append(attack(slice(at, at + size), deadline))
        except (KeyboardInterrupt, Unavailable):  # in the block's first look: what the blocks before found stays
            runs.append(replace(attack(slice(at, at + size), 0.0), interrupted=True))
        at += size
    if at < n:
        runs.append(attack(slice(at, n), 0.0))
    seen = np.zeros(n, dtype=np.int64)
    seen[spread] = first.forward
    for part in runs:
        part.forward += seen[: len(part.forward)]
        seen = seen[len(part.forward) :]
    runs[0].padding += first.padding
    return runs


def _joined(runs: list[Run]) -> Run:
    """Return the runs of consecutive parts of the examples as one."""
    if len(runs) == 1:
        return runs[0]

    def cat(name: str) -> Any:
        parts = [getattr(r, name) for r in runs]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [row for part in parts for row in part]

    rows = (
        "status",
        "success",
        "x_adv",
        "best",
        "distance",
        "margin",
        "label",
        "label_clean",
        "confidence",
        "confidence_clean",
        "steps",
        "broken_by",
        "ids",
        "y",
        "forward",
        "backward",
    )
    joined: dict[str, Any] = {name: cat(name) for name in rows}
    sums: dict[str, Any] = {
        name: sum(getattr(r, name) for r in runs) for name in ("padding", "overrun", "vanished", "seconds")
    }
    notes = list(dict.fromkeys(note for r in runs for note in r.notes))
    table = list(next(r.attacks for r in runs if len(r.attacks) == max(len(q.attacks) for q in runs)))
    counted = sum(s is not Status.INVALID for s in joined["status"])
    left = counted - sum(s is Status.MISCLASSIFIED for s in joined["status"])
    for at, row in enumerate(table):
        parts = [r.attacks[at] for r in runs if at < len(r.attacks)]
        sums_of = {
            k: sum(getattr(p, k) for p in parts) for k in ("attempted", "broken", "forward", "backward", "seconds")
        }
        left -= int(sums_of["broken"])
        ran = [p for p in parts if not p.skipped]
        skipped = "" if ran else row.skipped
        table[at] = replace(row, **sums_of, skipped=skipped, robust_accuracy_after=left / max(1, counted))
    return Run(
        attacks=table,
        notes=notes,
        interrupted=any(r.interrupted for r in runs),
        classes=runs[0].classes,
        **joined,
        **sums,
    )


def _curve(
    up: Checkup,
    model: Target,
    images: Data,
    whole: Run,
    ball: Ball,
    deadline: float | None,
    order: Order,
    settings: dict[str, Any],
) -> tuple[list[CurvePoint] | None, bool]:
    """Return robust accuracy of suite quick at five sizes, and whether Ctrl-C ended it.

    Broken at one size counts as broken at the larger ones; the sizes measured so far stand when time runs out.
    """
    statuses = whole.status[:CURVE_IMAGES]
    n = sum(s is not Status.INVALID for s in statuses)
    standing = np.array([s not in (Status.MISCLASSIFIED, Status.INVALID) for s in statuses])
    lo, hi = model.bounds
    points: list[CurvePoint] = []
    for eps in dict.fromkeys(
        min(ball.eps * share, hi - lo if ball.norm.name == "linf" else math.inf) for share in CURVE
    ):
        index = np.flatnonzero(standing)
        if len(index):
            try:
                found = run(
                    brief(named_suite("quick"), up),
                    model,
                    _rows.take(images.x, index),
                    images.y[index],
                    replace(ball, eps=eps),
                    deadline=deadline,
                    relabel=order,
                    phase=f"curve {eps!r}",
                    **settings,
                )
            except (KeyboardInterrupt, Unavailable):  # in the first look at this size
                return points or None, True
            if found.interrupted or Status.NOT_RUN in found.status or all(r.skipped for r in found.attacks):
                return points or None, found.interrupted
            standing[index[found.success.numpy()]] = False
        if n:
            points.append(CurvePoint.of(eps, int(standing.sum()), n))
    return points or None, False
