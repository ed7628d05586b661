"""One adversarial image: attacked, put on the 8-bit grid, saved, read again, and only then called a success."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from unfooled import attacks
from unfooled.core import record
from unfooled.core.access import Access
from unfooled.core.ask import confidences
from unfooled.core.attack import Attack
from unfooled.core.data import Data
from unfooled.core.goal import Targeted, Untargeted
from unfooled.core.oracle import Oracle
from unfooled.core.result import Status
from unfooled.core.run import run
from unfooled.core.target import Target, as_target, untouched
from unfooled.core.threat import Ball, linf
from unfooled.domains import image as files
from unfooled.errors import InputError, nearest

LADDER = (1, 2, 4, 8, 16, 32, 64)  # grey levels tried one after another when no threat is given
CONTROLS = 16  # draws of random noise beside the attack
DRAWN = 4  # classes whose confidence is followed


@dataclass(frozen=True)
class Look:
    """What the target says of one image: class, its name, its confidence, and the confidences of all classes [k]."""

    label: int
    name: str
    confidence: float
    confidences: Tensor = field(repr=False)


@dataclass
class Single:
    """One image, attacked.

    `x`, `x_adv`, `noise` are [c, h, w] within `bounds` on the 8-bit grid; `x_adv` is `x` where nothing was found.
    `noise` is the same change with its values shuffled over the image and random signs: a control of the same size in
    every norm (but for pixels at the ends of the scale). `success` says that the saved file, read again, fools the
    target and lies in the ball; `as_floats` that numbers between 8-bit levels did. `trace` maps class names to their
    confidence at each forward pass of the attack; the last value is the saved file's.
    """

    x: Tensor
    x_adv: Tensor
    noise: Tensor
    original: Look
    adversarial: Look
    control: Look
    success: bool
    as_floats: bool
    reason: str
    threat: str
    norm: str
    distance: float
    goal: str
    attack: str
    trace: dict[str, list[float]]
    noise_fooled: int
    noise_draws: int
    forward: int
    backward: int
    seconds: float
    seed: int
    source: str
    target: str
    bounds: tuple[float, float] = (0.0, 1.0)
    truth: str = ""
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return what `attack.json` holds: plain numbers, strings, lists and dicts."""
        plain = {
            name: getattr(self, name)
            for name in ("success", "as_floats", "reason", "threat", "norm", "distance", "goal", "attack", "source",
                         "target", "truth", "noise_fooled", "noise_draws", "forward", "backward", "seconds", "seed",
                         "files", "notes", "trace")
        }  # fmt: skip
        looks = {
            name: {"label": look.label, "name": look.name, "confidence": look.confidence}
            for name, look in (
                ("original", self.original),
                ("adversarial", self.adversarial),
                ("control", self.control),
            )
        }
        return plain | looks

    @property
    def size(self) -> str:
        """The size of the change with its norm: "Linf 2/255", "L2 0.83"."""
        grey = self.distance / (self.bounds[1] - self.bounds[0]) * files.LEVELS
        if self.norm == "linf":
            return f"Linf {round(grey)}/255"
        return f"{self.norm.capitalize()} {self.distance:.4g}"

    def __str__(self) -> str:
        first = f"{self.original.name} ({_share(self.original.confidence)})"
        if not self.success:
            return f"{first} was not fooled: {self.reason}"
        return (
            f"{first} is now {self.adversarial.name} ({_share(self.adversarial.confidence)}), "
            f"the saved file read again; change {self.size}; "
            f"random noise of the same size fools it in {self.noise_fooled} of {self.noise_draws} draws"
        )


def attack_image(
    image: int | str | Path | Tensor,
    target: Any,
    *,
    data: Data | None = None,
    to: int | str | None = None,
    threat: Ball | None = None,
    attack: Attack[Any] | None = None,
    steps: int = 100,
    seed: int = 0,
    shape: Sequence[int] | None = None,
    out: Path | str | None = None,
) -> Single:
    """Make one adversarial image and return what the target says of it, of the original and of random noise.

    Args:
        image: an index into `data`, a picture file, or a tensor [c, h, w] within the target's bounds.
        target: a Target, or a module that takes images in [0, 1].
        data: where an index points; it also gives the shape that a picture file is fitted to.
        to: wanted class, a number or a name; any other class by default.
        threat: a norm ball; by default Linf balls of 1, 2, 4 ... 64 grey levels are tried until one suffices.
        attack: a recipe; APGD with `steps` steps by default, Square or RayS where the target has no gradients.
        seed: of all noise.
        shape: (c, h, w) of the target's inputs where `data` does not say.
        out: a new directory for `original.png`, `adversarial.png` (on success) and `attack.json`; a temporary one by
            default.

    The original is put on the 8-bit grid first, and the attack starts from the class that the target gives it, right or
    wrong. Raises `InputError` for a missing image, an unknown class, an image that is of the wanted class already, a
    threat that no other picture lies in, and for inputs that are no pictures. `out` is made when all is found.
    """
    target = as_target(target)
    if threat is not None:
        _check_room(threat, target.bounds)
    if out is not None:
        record.check_free(Path(out))
    x, source, truth = _load(image, target, data, shape)
    original = _looks(x[None], target)[0]
    wanted = None if to is None else resolve_class(to, target.classes, len(original.confidences))
    if wanted == original.label:
        raise InputError(f"The target says {original.name} for this image already; give another class to turn it into.")
    attack = attack or _without_gradients(target)
    with TemporaryDirectory() as folder:
        made = Path(folder)
        files.write_png(made / "original.png", x, target.bounds)
        single = _attack(x, target, original, wanted, threat, attack, steps, seed, made)
        single = replace(single, source=source, truth=truth, files=["original.png", *single.files] if out else [])
        if truth and truth != single.original.name:
            single.notes.append(f"The label says {truth}, the target says {single.original.name} before any attack.")
        if out is not None:  # only now, so that a refused attack leaves nothing behind
            kept = record.new_run(Path(out))
            for name in single.files:
                record.write_bytes(kept / name, (made / name).read_bytes())
            record.write_json(kept / "attack.json", single.summary())
    return single


def _without_gradients(target: Target) -> Attack[Any] | None:
    """Return what attacks a target that has no gradients to ask for; None where it has."""
    if target.access >= Access.GRADIENT:
        return None
    return attacks.square(queries=500) if target.access is Access.SCORES else attacks.ray(queries=1000)


def compare_images(
    image: int | str | Path | Tensor,
    adversarial: str | Path | Tensor,
    target: Any,
    *,
    data: Data | None = None,
    seed: int = 0,
    shape: Sequence[int] | None = None,
) -> Single:
    """Return what the target says of an image, of a changed one that is given, and of random noise of the same size.

    Arguments as for `attack_image`; `adversarial` is a picture file or a tensor [c, h, w]. Raises `InputError` when the
    two have different sizes, are the same on the 8-bit grid, or get the same class from the target.
    """
    target = as_target(target)
    x, source, truth = _load(image, target, data, shape)
    changed = _load(adversarial if isinstance(adversarial, Tensor) else Path(adversarial), target, None, tuple(x.shape))
    x_adv = changed[0]
    if x_adv.shape != x.shape:
        raise InputError(
            f"The original has the shape {tuple(x.shape)} and the changed image {tuple(x_adv.shape)}; "
            "give two pictures of one size."
        )
    began, ball = time.monotonic(), linf(target.bounds[1] - target.bounds[0])
    distance = _distance(x_adv, x, ball, target.bounds)
    if distance == 0:
        raise InputError("The changed image is the original; give the one that fools the target.")
    original, adversarial_look = _looks(torch.stack([x, x_adv]), target)
    if original.label == adversarial_look.label:
        raise InputError(f"The target says {original.name} for both images; give one that fools it.")
    noise = _controls(x, x_adv, target.bounds, seed)
    controls = _looks(noise, target)
    return Single(
        x=x, x_adv=x_adv, noise=noise[0], original=original, adversarial=adversarial_look, control=controls[0],
        success=True, as_floats=True, reason="", threat=repr(linf(distance)), norm="linf", distance=distance,
        goal=repr(Untargeted()), attack="given", trace={},
        noise_fooled=sum(c.label != original.label for c in controls), noise_draws=len(controls),
        forward=2 + len(controls), backward=0, seconds=time.monotonic() - began, seed=seed,
        source=source, target=target.name, bounds=target.bounds, truth=truth,
    )  # fmt: skip


def _check_room(ball: Ball, bounds: tuple[float, float]) -> None:
    """Raise InputError when no image on the 8-bit grid but the original lies in `ball`."""
    if ball.norm.name == "l0":
        if ball.eps < 1:
            raise InputError(f"{ball!r} lets no value change; give an eps of at least 1.")
        return
    width = bounds[1] - bounds[0]
    if ball.eps * files.LEVELS < width * (1 - 1e-6):
        raise InputError(
            f"{ball!r} is below one grey level: no other 8-bit picture lies in it, and nothing below half a grey level "
            f"survives rounding; give an eps of at least {width:g}/{files.LEVELS}."
        )


def resolve_class(wanted: int | str, classes: Sequence[str] | None, count: int) -> int:
    """Return the number of class `wanted` out of `count`: a number, or a name in any case, or one of a name's synonyms.

    "gibbon" finds "gibbon, Hylobates lar". Raises `InputError` with the nearest names, or with all numbers that fit.
    """
    text = str(wanted).strip()
    folded = text.casefold()
    names = [str(c) for c in classes or []][:count]
    fits = [i for i, name in enumerate(names) if name.strip().casefold() == folded]
    fits = fits or [
        i for i, name in enumerate(names) if folded in (part.strip().casefold() for part in name.split(","))
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise InputError(f"{text!r} names the classes {', '.join(map(str, fits))}; give one of these numbers.")
    if re.fullmatch(r"-?\d{1,18}", text):
        if not 0 <= int(text) < count:
            raise InputError(f"There is no class {text}; the target has the classes 0 to {count - 1}.")
        return int(text)
    if not names:
        raise InputError(
            f"The target's classes have no names; give a number from 0 to {count - 1} instead of {text!r}."
        )
    parts = {part.strip().lower() for name in names for part in name.split(",")}
    raise InputError(
        f"There is no class {text!r}; give a name or a number from 0 to {count - 1}.{nearest(text, parts)}"
    )


def _load(
    image: int | str | Path | Tensor, target: Target, data: Data | None, shape: Sequence[int] | None
) -> tuple[Tensor, str, str]:
    """Return the original on the 8-bit grid, where it is from, and its true class where that is known."""
    if isinstance(image, str) and image.strip().isdecimal() and not Path(image).exists():
        image = int(image)
    if isinstance(image, Tensor):
        return _picture(image, target), "tensor", ""
    if isinstance(image, int):
        if data is None:
            raise InputError(f"Image {image} is an index, but there is no data to take it from; give data or a file.")
        if not 0 <= image < len(data):
            raise InputError(f"There is no image {image}; {data.name} has the images 0 to {len(data) - 1}.")
        label = int(data.y[image])
        names = target.classes or data.classes
        truth = str(names[label]) if names and label < len(names) else str(label)
        return _picture(data.x[image], target), f"{data.name}[{image}]", truth
    wanted = shape if shape is not None else tuple(data.x.shape[1:]) if data is not None else None
    return files.read_image(image, wanted, bounds=target.bounds), Path(image).name, ""


def _picture(x: Tensor, target: Target) -> Tensor:
    if x.ndim != 3 or x.shape[0] not in (1, 3):
        raise InputError(
            f"An image has shape [1 or 3, height, width], not {tuple(x.shape)}; this attack makes pictures."
        )
    low, high = target.bounds
    if not bool(x.isfinite().all()) or float(x.min()) < low - 1e-6 or float(x.max()) > high + 1e-6:
        raise InputError(f"The image has values outside the target's bounds [{low:g}, {high:g}].")
    return files.from_levels(files.levels(x.cpu(), target.bounds), target.bounds)


class _Watched(nn.Module):
    """A target's module that keeps the scores of every forward pass, and leans against success by `lean`.

    With a lean the attack has to win by that much more, so that what it finds is surer of itself and survives rounding.
    What is kept is what the module itself says.
    """

    def __init__(self, inner: Any, label: int, sign: float) -> None:
        super().__init__()
        self.inner, self.label, self.lean = inner, label, 0.0
        self.sign = sign
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [b, k] with the lean added to class `label`."""
        scores: Tensor = self.inner(x)
        if isinstance(scores, Tensor) and scores.ndim == 2:
            self.seen += [row.detach().float().cpu() for row in scores]
            if self.lean:
                only = torch.zeros_like(scores)
                only[:, self.label] = self.sign * self.lean
                scores = scores + only
        return scores


def _looks(x: Tensor, target: Target) -> list[Look]:
    door = Oracle(target, Access.SCORES)
    with untouched(target):
        scores = door.scores(x.to(target.device, target.work_dtype)).scores
    assert scores is not None
    rows = confidences(scores.float().cpu())
    labels = rows.argmax(1).tolist()
    return [
        Look(k, target.class_name(k), float(row[k]), row)
        for k, row in zip(labels, rows, strict=True)
    ]  # fmt: skip


def _attack(
    x: Tensor,
    target: Target,
    original: Look,
    wanted: int | None,
    threat: Ball | None,
    attack: Attack[Any] | None,
    steps: int,
    seed: int,
    out: Path,
) -> Single:
    began = time.monotonic()
    watched = _Watched(target.module, original.label if wanted is None else wanted, 1.0 if wanted is None else -1.0)
    spied = Target(watched, bounds=target.bounds, mean=_listed(target.mean), std=_listed(target.std), name=target.name,
                   classes=target.classes, access=target.access, reject=target.reject)  # fmt: skip
    goal = Untargeted() if wanted is None else Targeted(to=wanted)
    y = torch.tensor([original.label])
    path = out / "adversarial.png"

    counts = {"forward": 1, "backward": 0}

    def attempt(ball: Ball, tried: Attack[Any], lean: float) -> _Attempt:
        watched.lean, watched.seen = lean, []
        found = run(tried, spied, x[None], y, _on_levels(ball, target.bounds), goal=goal, seed=seed, batch_size=1)
        counts["forward"] += int(found.forward.sum())
        counts["backward"] += int(found.backward.sum())
        if found.status[0] is not Status.BROKEN:
            return _Attempt(ball, tried)
        assert isinstance(found.x_adv, Tensor)
        saved, asked = _saved(found.x_adv[0].cpu(), x, original.label, wanted, ball, target, path)
        counts["forward"] += asked
        return _Attempt(ball, tried, watched.seen, saved)

    best = _search(attempt, threat, attack, steps, original, target.bounds)
    ball = best.ball
    if best.saved:  # a later, surer attempt may have written over the file
        files.write_png(path, best.saved[0], target.bounds)
        x_adv = files.read_image(path, bounds=target.bounds).expand_as(x)
        adversarial = _looks(x_adv[None], target)[0]
    else:
        x_adv, adversarial = x, original
        path.unlink(missing_ok=True)
    success = best.saved is not None and _fools(x_adv, adversarial, x, original.label, wanted, ball, target.bounds)
    noise = _controls(x, x_adv, target.bounds, seed)
    controls = _looks(noise, target)
    fooled = sum(c.label == wanted if wanted is not None else c.label != original.label for c in controls)
    reason = "" if success else _why(best, counts["forward"])
    return Single(
        x=x, x_adv=x_adv, noise=noise[0], original=original, adversarial=adversarial, control=controls[0],
        success=success, as_floats=bool(best.seen), reason=reason, threat=repr(ball), norm=repr(ball.norm),
        distance=_distance(x_adv, x, ball, target.bounds), goal=repr(goal), attack=repr(best.attack),
        trace=_trace(best.seen, adversarial if success else None, original, wanted, target), noise_fooled=fooled,
        noise_draws=len(controls), forward=counts["forward"] + len(controls), backward=counts["backward"],
        seconds=time.monotonic() - began, seed=seed, source="", target=target.name, bounds=target.bounds,
        files=["adversarial.png"] if success else [],
    )  # fmt: skip


@dataclass(frozen=True)
class _Attempt:
    """One run: scores of its forward passes where it fooled the target as floats, image and answer where as a file."""

    ball: Ball
    attack: Attack[Any]
    seen: list[Tensor] = field(default_factory=list)
    saved: tuple[Tensor, Look] | None = None


def _search(
    attempt: Callable[[Ball, Attack[Any], float], _Attempt],
    threat: Ball | None,
    attack: Attack[Any] | None,
    steps: int,
    original: Look,
    bounds: tuple[float, float],
) -> _Attempt:
    """Return the most convincing attempt that works, else one that works as floats, else the last.

    The lean is a share of the lead that the first class had over the second: as sure of the wrong class as the target
    was of the right one, less sure, just over the line. Small even steps come first, for they show how the confidences
    turn; then APGD; then, harder, from random starts. Without a threat, balls grow until one suffices.
    """
    sure = original.confidences.clamp(1e-12).log().topk(2).values
    gap = float(sure[0] - sure[1])
    usual = attack or attacks.apgd(steps=steps, start="clean")
    harder = attack or attacks.apgd(steps=3 * steps, restarts=2, loss="margin", start="uniform")
    if threat is None:
        span = (bounds[1] - bounds[0]) / files.LEVELS
        for grey in LADDER:
            over = attempt(linf(grey * span), usual, 0.0)
            if over.saved:
                break
        else:
            return over
        even = attack or _even(over.ball, steps, bounds)
        surer = (attempt(over.ball, recipe, share * gap) for recipe, share in ((even, 1.0), (even, 0.3), (usual, 0.3)))
        return next((better for better in surer if better.saved), over)
    even = attack or _even(threat, steps, bounds)
    plan = [(even, 1.0), (even, 0.3), (usual, 0.3), (usual, 0.0), (harder, 0.1), (harder, 0.0)]
    tries: list[_Attempt] = []
    for recipe, share in dict.fromkeys(plan):
        tries.append(attempt(threat, recipe, share * gap))
        if tries[-1].saved:
            return tries[-1]
    return next((t for t in tries if t.seen), tries[-1])


def _even(ball: Ball, steps: int, bounds: tuple[float, float]) -> Attack[Any]:
    """Return the attack with even steps: a tenth of eps, in Linf at least one grey level, so that files keep them."""
    if ball.norm.name not in ("linf", "l2") or not ball.bounded or not ball.eps:
        return attacks.apgd(steps=steps, start="clean")
    grey = ball.eps / (bounds[1] - bounds[0]) * files.LEVELS
    size = min(1.0, max(0.1, 1 / int(grey + 1e-6))) if ball.norm.name == "linf" and grey >= 1 else 0.1
    return attacks.bim(steps=steps, step_size=round(size, 6))


def _on_levels(ball: Ball, bounds: tuple[float, float]) -> Ball:
    """Return the part of a Linf ball that a file can hold: its eps cut to whole grey levels (if there is one)."""
    if ball.norm.name != "linf" or not ball.bounded:
        return ball
    span = (bounds[1] - bounds[0]) / files.LEVELS
    whole = int(ball.eps / span + 1e-6)
    return linf(whole * span) if whole else ball


def _saved(
    found: Tensor, x: Tensor, label: int, wanted: int | None, ball: Ball, target: Target, path: Path
) -> tuple[tuple[Tensor, Look] | None, int]:
    """Write the image rounded towards the original (else to the nearest levels), read it again, and ask the target.

    Return the image as read and the answer, None when neither fools it inside the ball, and how often it was asked.
    """
    bounds = target.bounds
    candidates = (files.to_grid(found, x, bounds), files.from_levels(files.levels(found, bounds), bounds))
    for asked, rounded in enumerate(candidates, 1):
        files.write_png(path, rounded, bounds)
        again = files.read_image(path, bounds=bounds).expand_as(x)  # a grey picture may come back in one channel
        look = _looks(again[None], target)[0]
        if _fools(again, look, x, label, wanted, ball, bounds):
            return (again, look), asked
    return None, len(candidates)


def _fools(
    x_adv: Tensor, look: Look, x: Tensor, label: int, wanted: int | None, ball: Ball, bounds: tuple[float, float]
) -> bool:
    """Return whether the target's answer is a success (a tie is none) and the image on the grid lies in the ball."""
    reached = look.label == wanted if wanted is not None else look.label != label
    first, second = look.confidences.topk(2).values.tolist()
    return reached and first > second and _distance(x_adv, x, ball, bounds) <= ball.eps * (1 + 1e-6)


def _distance(x_adv: Tensor, x: Tensor, ball: Ball, bounds: tuple[float, float]) -> float:
    """Return the size of the change between two images on the grid, from their whole grey levels."""
    steps = files.levels(x_adv, bounds) - files.levels(x, bounds)
    return float(ball.norm.size(steps[None].double() / files.LEVELS * (bounds[1] - bounds[0])))


def _controls(x: Tensor, x_adv: Tensor, bounds: tuple[float, float], seed: int) -> Tensor:
    """Return random changes [draws, c, h, w] with the same values as the attack's, elsewhere and with random signs."""
    start = files.levels(x, bounds).flatten()
    change = (files.levels(x_adv, bounds).flatten() - start).abs()
    luck = torch.Generator().manual_seed(seed % 2**63)
    draws = []
    for _ in range(CONTROLS):
        moved = change[torch.randperm(len(change), generator=luck)]
        moved = moved * (torch.randint(0, 2, (len(change),), generator=luck) * 2 - 1)
        outside = (start + moved < 0) | (start + moved > files.LEVELS)
        draws.append((start + torch.where(outside, -moved, moved)).clamp(0, files.LEVELS).reshape(x.shape))
    return files.from_levels(torch.stack(draws), bounds)


def _trace(
    seen: list[Tensor], adversarial: Look | None, original: Look, wanted: int | None, target: Target
) -> dict[str, list[float]]:
    if not seen:
        return {}
    rows = list(confidences(torch.stack(seen[1:-1] or seen)))  # without the first look and the re-check
    if adversarial is not None:
        rows.append(adversarial.confidences)
    path = torch.stack(rows)
    first = [original.label] + ([wanted] if wanted is not None else [])
    if adversarial is not None:
        first.append(adversarial.label)
    peaks = path.amax(0).argsort(descending=True).tolist()
    drawn = list(dict.fromkeys(first + [k for k in peaks if float(path[:, k].amax()) >= 0.05]))[:DRAWN]
    return {target.class_name(k): [round(float(v), 6) for v in path[:, k]] for k in drawn}


def _why(last: _Attempt, forward: int) -> str:
    if not last.seen:
        text = f"nothing found within {last.ball!r} in {forward} forward passes, last with {last.attack!r}"
        return f"{text}; try a larger eps or more steps."
    text = (
        f"within {last.ball!r} it is fooled by numbers between the 8-bit levels, but by no image that a file can hold"
    )
    return f"{text}; a larger eps or more steps may do it."


def _share(confidence: float) -> str:
    """Return a confidence as a percentage that is 0.0% or 100.0% only where it is exactly that."""
    if 0.9995 <= confidence < 1:
        return ">99.9%"
    return "<0.1%" if 0 < confidence < 0.0005 else f"{confidence:.1%}"


def _listed(values: Tensor | None) -> list[float] | None:
    return None if values is None else [float(v) for v in values]
