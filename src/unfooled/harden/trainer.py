"""Hardening a module: training that is judged by an attack after every epoch, keeps its best, and can be killed."""

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from unfooled._noise import example_ids
from unfooled._numbers import counted
from unfooled.core import record
from unfooled.core.attack import Attack, as_attack
from unfooled.core.augment import augment as read_augmentation
from unfooled.core.data import FORGIVEN, Data, check_names, load_alike, load_data
from unfooled.core.explanation import COLOURS, SOFT, Explanation
from unfooled.core.fit import Augment, Objective, Recipe, Step, Training, batches, unit
from unfooled.core.result import Status
from unfooled.core.run import run
from unfooled.core.target import Target, untouched
from unfooled.core.threat import Ball, as_threat
from unfooled.core.together import ALONE, Together
from unfooled.errors import Diverged, InputError
from unfooled.stats import wilson

from .recipes import way

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Choose = Literal["adversarial", "clean", "last"]

JUDGE, WEAK, LONG = "pgd(steps=10, step_size=0.25)", "fgsm()", "pgd(steps=1, step_size=1)"
OVERFITTING = "Robust overfitting"
SLOWER = 0.5
"""Factor of the learning rate after a loss that was not finite."""

RAMP = 0.1
"""Share of all steps over which the radius grows, where an objective is made by its name."""

STRIKES = 3  # losses that are not finite before training ends
COLLAPSE = 0.5  # share of the best accuracy under the judge below which the one-step alarm sounds
APART = 0.15  # by which the one-step attack must then seem weaker than the judge
FALLEN = 5  # epochs in a row below the best, by more than chance, that are called robust overfitting
LOOKED = 128  # rows that are asked for scores before training begins


@dataclass(frozen=True)
class Line:
    """One epoch: the training loss, and on the validation rows the accuracy clean, after one step, under the judge.

    Its cost: `seconds` of training and `judging`, `images` trained on, rows sent `forward` and `backward` for that.
    """

    epoch: int
    loss: float
    lr: float
    clean: float
    weak: float
    strong: float
    seconds: float
    alarm: str = ""
    judging: float = 0.0
    images: int = 0
    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Hardened(Explanation):
    """A finished training: a line an epoch, the epoch whose weights the module holds now, and what went wrong.

    `n` rows of validation judged every epoch by `judge` and by `weak`, under `threat`; `choose` says what the best
    epoch was chosen by.
    """

    lines: tuple[Line, ...]
    chosen: int
    alarms: tuple[str, ...]
    choose: str
    n: int
    judge: str
    weak: str
    threat: str
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    size: ClassVar[tuple[float, float]] = (8.5, 4.0)

    @property
    def best(self) -> Line:
        """The line of the chosen epoch."""
        return next(line for line in self.lines if line.epoch == self.chosen)

    @property
    def chosen_by(self) -> str:
        """What the kept epoch was chosen by, in words."""
        return "the last one" if self.choose == "last" else f"chosen by {self.choose} accuracy"

    def cost(self) -> dict[str, float]:
        """Return what all epochs together took: seconds, seconds of judging, images, rows forward and backward."""
        names = ("seconds", "judging", "images", "forward", "backward")
        return {name: sum(getattr(line, name) for line in self.lines) for name in names}

    def rows(self) -> list[dict[str, Any]]:
        """Return the lines as dicts."""
        return [asdict(line) | {"chosen": line.epoch == self.chosen} for line in self.lines]

    def sentence(self) -> str:
        """Return the chosen epoch's accuracies with their intervals, and the alarms."""
        clean, strong = (
            f"{share:.1%} ({low:.1%} to {high:.1%})"
            for share in (self.best.clean, self.best.strong)
            for low, high in [wilson(round(share * self.n), self.n)]
        )
        told = (
            f"Epoch {self.chosen} of {len(self.lines)}, {self.chosen_by}; accuracy on {counted(self.n, 'row')} that "
            f"this training did not see: clean {clean}, under {self.judge} at {self.threat} {strong}."
        )
        return " ".join([told, *self.notes, *self.alarms])

    def draw(self, figure: "Figure") -> None:
        """Draw accuracy against epoch: clean, after one step, under the judge."""
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        epochs = [line.epoch for line in self.lines]
        for name, colour, label in (
            ("clean", COLOURS[0], "clean"), ("weak", COLOURS[2], self.weak), ("strong", COLOURS[1], self.judge),
        ):  # fmt: skip
            shares = [100 * getattr(line, name) for line in self.lines]
            axes.plot(epochs, shares, ".-", color=colour, label=label)
        axes.axvline(self.chosen, color=SOFT, linestyle=":", linewidth=1, label=f"chosen: epoch {self.chosen}")
        for line in self.lines:
            if line.alarm:
                axes.plot(line.epoch, 100 * line.strong, "v", color=COLOURS[6])
        axes.set(xlabel="epoch", ylabel="accuracy on validation rows, %", ylim=(0, None))
        axes.set_title(f"{self.threat}, {counted(self.n, 'validation row')}")
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))


Rows: TypeAlias = Data | tuple[Tensor, Tensor] | Any
"""Inputs in [0, 1] with labels: a `Data`, a pair (x [n, ...], y int64 [n]) of tensors, which stay where they lie and
may be uint8, or what `load_data` reads: a name, a path, a DataLoader or another iterable of batches (x, y). A loader is
read once and held in memory: what it draws at random is drawn once."""


@torch.inference_mode(mode=False)
def fit(
    module: nn.Module,
    data: Rows,
    objective: Objective | str,
    *,
    threat: Ball | str,
    recipe: Recipe | None = None,
    judge: Attack[Any] | str = JUDGE,
    weak: Attack[Any] | str | None = None,
    validation: Rows | int | None = None,
    extra: Rows | None = None,
    choose: Choose = "adversarial",
    patience: int | None = None,
    augment: Augment | str | None = None,
    reject: float | Literal["last"] | None = None,
    device: torch.device | str | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    name: str = "",
    on_line: Callable[[Line], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
    together: Together = ALONE,
) -> Hardened:
    """Train `module` in place, judge it after every epoch, and leave the best epoch's weights in it.

    Args:
        module: takes inputs in [0, 1]; trained where its weights are, or on `device`.
        data: what it is trained on (`Rows`): a loader, a `Data`, a pair (x, y), or a name of `load_data`.
        objective: what a step minimises (`harden.objectives`), or the name of a way to harden (`harden.WAYS`, all but
            "universal"); where it has a radius that grows, that grows over the first tenth of all steps.
        threat: what it is to be hardened against; a ball with a finite eps, or its text, such as "linf(8/255)".
        recipe: how it is trained (`core.fit.Recipe`); what it leaves at a default is as the way that is named has it.
        judge, weak: the attack whose error counts, and a one-step attack beside it (FGSM, in L1 one long step of PGD);
            a model that stands against the weak one alone has learned to fool it.
        validation: rows that are not trained on; or how many of the training rows, chosen by the recipe's seed, are
            kept back: a tenth, 20 at least and 500 at most, where nothing is said. Rows of the data and of `extra`
            that are validation rows too, pixel for pixel, are not trained on.
        extra: more rows to train on, such as generated images: the recipe's `mix` of every batch comes from them.
        choose: the best epoch by accuracy under the judge (Rice et al. 2020, arXiv:2002.11569), by clean accuracy, or
            the last one.
        patience: epochs without a better one after which training ends; None: it goes on.
        augment: as for `core.fit.Training`, or its text, such as "flips+crops(4)" (`core.augment`).
        reject: how the module abstains, as for `Target`: a refused row is then no error.
        out: a folder for checkpoints, written whole after every epoch, the last and the best kept; with `resume`
            training goes on from what lies there and ends with the same bits as if it had not been interrupted (on the
            CPU).
        name: what the objective is called there: a resumed training must have the same.
        on_line, on_step: called after every epoch, and after every batch.
        together: the place among several processes that all call this alike, as for `core.fit.Training`; the first
            writes the checkpoints, which are those of one process.

    A loss that is no longer finite goes back to the last good epoch and on with half the learning rate, at most three
    times. Where the one-step attack is withstood while the judge breaks what it did not break before (catastrophic
    overfitting, Wong et al. 2020, arXiv:2001.03994), training ends with the best epoch. Five epochs below the best in a
    row are said (robust overfitting) unless a better one follows. All of it stands in `alarms`. Whatever is raised, the
    module is left with the best epoch so far, or with the weights that it came with.

    Raises:
        InputError: data with one class, outside the threat's bounds or with labels out of range, validation or extra
            rows whose labels have other class names than in the data, a module without parameters to train, a threat
            without eps, a folder that belongs to another training.
        UnfooledError: the loss was not finite in the first epoch at every learning rate tried.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"Only torch modules can be hardened, not a {type(module).__name__}; give target.module.")
    if not isinstance(threat, Ball | str):
        raise InputError(f"{threat!r} is no threat; write for example uf.linf(8/255) or 'linf(8/255)'.")
    threat, judge = as_threat(threat), as_attack(judge)
    weak = as_attack(weak or (LONG if threat.norm.name == "l1" else WEAK))
    if not threat.bounded:
        raise InputError(f"Hardening needs a threat with a finite eps, not {threat!r}.")
    if choose not in ("adversarial", "clean", "last"):
        raise InputError(f"choose is 'adversarial', 'clean' or 'last', not {choose!r}.")
    if not isinstance(objective, str) and not callable(objective):
        raise InputError(f"{objective!r} is no objective: give a way's name, such as 'pgd', or a callable.")
    if recipe is not None and not isinstance(recipe, Recipe):
        raise InputError(f"{recipe!r} is no recipe: give a core.fit.Recipe, such as Recipe(epochs=5).")
    if patience is not None and patience < 1:
        raise InputError(f"patience counts epochs and is 1 or more, not {patience}.")
    if patience is not None and choose == "last":
        raise InputError("The last epoch is always the newest: give patience with choose='adversarial' or 'clean'.")
    if resume and out is None:
        raise InputError("resume goes on with the training in a folder: give out=, too.")
    recipe, usual = recipe or Recipe(), way(objective).recipe if isinstance(objective, str) else {}
    recipe = replace(recipe, **{k: v for k, v in usual.items() if getattr(recipe, k) == getattr(Recipe, k)})
    changed = read_augmentation(augment) if isinstance(augment, str) else augment
    whole = _read(data)
    others = [] if extra is None else [_read(extra, whole)]
    if device is not None:
        try:
            module.to(device)
        except (AssertionError, RuntimeError) as error:
            raise InputError(f"The module cannot be moved to {device}: {str(error).splitlines()[0]}") from error
    own, kept = split(whole, validation, recipe.seed)
    for each in (own, kept, *others):
        _within(each.x, threat)
    classes = _classes(module, [whole, kept, *others])
    both = [own, *others]
    own, *others = apart(both, [kept])
    notes = left_out(*(len(a) - len(b) for a, b in zip(both, (own, *others), strict=True)))
    more = (others[0].x, others[0].y) if others else None
    x, y, x_val, y_val = own.x, own.y, kept.x, kept.y
    if isinstance(objective, str):
        name, all_steps = name or objective, recipe.epochs * steps(recipe, len(x), extra=bool(others))
        objective = way(objective).objective(threat, seed=recipe.seed, ramp=round(RAMP * all_steps))
    if recipe.compiled and "aligned(" in _named(objective):
        raise InputError("GradAlign takes the gradient of a gradient, which torch.compile cannot; leave that out.")
    settings = {
        "objective": name or _named(objective),
        "recipe": asdict(recipe),
        "threat": repr(threat),
        "judge": str(judge),
        "weak": str(weak),
        "choose": choose,
        "patience": patience,
        "reject": reject,
        "module": record.fingerprint(*module.state_dict().values()),
        "data": record.fingerprint(x, y, x_val, y_val, *(more or ())),
        "augment": getattr(augment, "__qualname__", None) or str(augment or ""),
    }
    store = None if out is None else _Store(Path(out), settings, resume=resume, together=together)
    log = _Log(choose, len(x_val), classes)
    log.weights = _copied(module)
    training = Training(module, x, y, objective, recipe, augment=changed, extra=more, device=device, together=together)
    if store is not None and resume:
        store.load(training, log)

    def look() -> list[float]:
        """Return the shares that are right: clean, after the one-step attack, under the judge."""
        mine = together.share(len(x_val))
        asked = Target(training.evaluated, bounds=threat.bounds, reject=reject)
        some, labels = unit(x_val[mine]).detach().to(training.device), y_val[mine].to(training.device)
        strong, one = (run(attack, asked, some, labels, threat, seed=recipe.seed) for attack in (judge, weak))
        stood = _count(strong.status, Status.SURVIVED)
        counts = [stood + _count(strong.status, Status.BROKEN), _count(one.status, Status.SURVIVED), stood]
        summed = torch.tensor(counts, dtype=torch.float64, device=training.device)
        together.add([summed])
        return [n / len(x_val) for n in summed.tolist()]

    try:
        good = training.state()
        while training.epoch < recipe.epochs and not log.ended(patience):
            try:
                done = training.run_epoch(on_step)
            except Diverged as error:
                log.strikes += 1
                if log.strikes > STRIKES:
                    if not log.lines:
                        raise
                    log.alarms.append(f"{error} Training ended there, after {STRIKES} attempts with lower rates.")
                    break
                training.restore(*good)
                training.slow(SLOWER)
                good = training.state()  # the next attempt, if there must be one, is slower still
                log.alarms.append(
                    f"The loss was not finite in epoch {training.epoch + 1}: back to the last good epoch, and on with "
                    f"{training.slowed:g} of the learning rate; begin with a lower one."
                )
                continue
            began = time.perf_counter()
            clean, one, strong = look()
            line = log.add(
                Line(
                    done.epoch, done.loss, done.lr, clean, one, strong, done.seconds,
                    judging=time.perf_counter() - began, images=done.images, forward=done.forward,
                    backward=done.backward,
                )
            )  # fmt: skip
            if log.best == line.epoch:
                log.weights = _copied(training.evaluated)
            good = training.state()
            if store is not None:
                store.save(good, log)
            if on_line:
                on_line(line)
    finally:
        training.finish()
        module.load_state_dict(log.weights)
    return Hardened(
        tuple(log.lines), log.best, tuple(log.alarms), choose, len(x_val), str(judge), str(weak), repr(threat),
        settings, notes,
    )  # fmt: skip


def _named(objective: Objective) -> str:
    """Return what an objective is called: what it tells itself, or the name of its function or class."""
    return str(getattr(objective, "told", None) or getattr(objective, "__qualname__", type(objective).__name__))


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().clone() for k, v in module.state_dict().items()}


def begun(out: Path | str) -> Recipe | None:
    """Return the recipe that the training in a folder was begun with, None where there is none."""
    index = Path(out) / "training.json"
    known = record.read_json(index).get("settings") if index.exists() else None
    return None if known is None else Recipe(**known["recipe"])


def must_match(out: Path | str, settings: dict[str, Any]) -> None:
    """Raise InputError, with the field and both values, where the training in a folder has another of `settings`."""
    known = record.read_json(Path(out) / "training.json").get("settings", {})
    for name, value in json.loads(record.json_text(settings)).items():
        if name == "recipe":
            parts = [(part, known.get(name, {}).get(part), given) for part, given in value.items()]
        else:
            parts = [(name, known.get(name), value)]
        for part, there, here in parts:
            if there != here:
                values = f"another {part}" if part in ("module", "data") else f"{part} {there}, not {here}"
                raise InputError(
                    f"The training in {out} was begun with {values}; give what it was begun with, or a new folder."
                )


class _Log:
    """The lines so far, the best epoch with its weights, and the alarms; `n` rows of so many `classes` are judged."""

    def __init__(self, choose: str, n: int, classes: int) -> None:
        self.choose, self.n, self.chance = choose, n, 1 / classes
        self.lines: list[Line] = []
        self.alarms: list[str] = []
        self.weights: dict[str, Tensor] = {}
        self.best = 0
        self.collapsed = False
        self.strikes = 0

    def add(self, line: Line) -> Line:
        """Take a line in, with its alarm, and see whether it is the best so far."""
        before = max((old.strong for old in self.lines), default=0.0)
        if line.strong > before:  # what was called overfitting was not
            self.alarms = [alarm for alarm in self.alarms if not alarm.startswith(OVERFITTING)]
            self.lines = [replace(old, alarm="") for old in self.lines]
        surely, alarm = wilson(round(before * self.n), self.n)[0], ""
        if surely > self.chance and line.strong < COLLAPSE * before and line.weak - line.strong > APART:
            alarm, self.collapsed = "catastrophic overfitting", True
            self.alarms.append(
                f"Catastrophic overfitting in epoch {line.epoch}: {line.weak:.1%} withstand the one-step attack and "
                f"{line.strong:.1%} the judge ({before:.1%} before); train with more steps, N-FGSM or GradAlign."
            )
        elif self._fallen(line, surely):
            alarm = "robust overfitting"
            self.alarms.append(
                f"{OVERFITTING} since epoch {line.epoch - FALLEN + 1}: the training loss falls while accuracy "
                f"under the judge stays below its best ({before:.1%}); stop earlier, average weights or add data."
            )
        line = replace(line, alarm=alarm)
        if not self.lines or self._worth(line) > self._worth(self.lines[self.best - 1]):
            self.best = line.epoch
        self.lines.append(line)
        return line

    def ended(self, patience: int | None) -> bool:
        """Return whether nothing better is to be expected."""
        waited = self.lines[-1].epoch - self.best if self.lines else 0
        return self.collapsed or (patience is not None and waited >= patience)

    def _worth(self, line: Line) -> float:
        return {"adversarial": line.strong, "clean": line.clean, "last": float(line.epoch)}[self.choose]

    def _fallen(self, line: Line, surely: float) -> bool:
        """Return whether the last FALLEN epochs all lie below the best one's 95% interval while the loss fell."""
        tail = [*self.lines[-FALLEN + 1 :], line]
        if len(tail) < FALLEN or surely <= self.chance or any("robust" in old.alarm for old in self.lines):
            return False
        return all(each.strong < surely for each in tail) and tail[-1].loss < tail[0].loss


class _Store:
    """The folder of a training: a state and the best weights per epoch, and one JSON file that names the valid ones."""

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool, together: Together) -> None:
        self._writes = together.first
        self.folder, self.settings = folder, json.loads(record.json_text(settings))
        self.index = folder / "training.json"
        if resume and not self._unbegun():
            must_match(folder, settings)
        elif not resume and self._writes:
            record.new_run(folder)

    def _unbegun(self) -> bool:
        """Return whether the training was stopped in its first epoch: nothing lies there but what it left."""
        parts = (record.TEMPORARY, "state-", "best-")
        return self.folder.is_dir() and all(each.name.startswith(parts) for each in self.folder.iterdir())

    def save(self, state: tuple[dict[str, Tensor], dict[str, Any]], log: _Log) -> None:
        """Write state and best weights under new names, then the index, then remove what it no longer names."""
        from safetensors.torch import save

        if not self._writes:
            return
        epoch = log.lines[-1].epoch
        names = {"state": f"state-{epoch:04}.safetensors", "best": f"best-{log.best:04}.safetensors"}
        record.write_bytes(self.folder / names["state"], save(state[0]))
        if not (self.folder / names["best"]).exists():
            record.write_bytes(self.folder / names["best"], save({k: v.contiguous() for k, v in log.weights.items()}))
        record.write_json(
            self.index,
            {
                "settings": self.settings, "files": names, "plain": state[1], "lines": [asdict(n) for n in log.lines],
                "best": log.best, "alarms": log.alarms, "collapsed": log.collapsed, "strikes": log.strikes,
            },
        )  # fmt: skip
        for old in self.folder.glob("*.safetensors"):
            if old.name not in names.values():
                old.unlink()

    def load(self, training: Training, log: _Log) -> None:
        """Put the last whole epoch back."""
        from safetensors.torch import load_file

        if self._unbegun():
            return
        known = record.read_json(self.index)
        training.restore(load_file(self.folder / known["files"]["state"]), known["plain"])
        log.lines = [Line(**line) for line in known["lines"]]
        log.alarms, log.best, log.collapsed = list(known["alarms"]), int(known["best"]), bool(known["collapsed"])
        log.weights, log.strikes = load_file(self.folder / known["files"]["best"]), int(known["strikes"])


def _read(data: Rows, like: Data | None = None) -> Data:
    """Return inputs and labels; a pair of tensors as it is, all else as `load_data` reads it, labelled as `like`."""
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        x, y = data
        if y.shape != x.shape[:1] or y.is_floating_point() or y.dtype is torch.bool:
            raise InputError(
                f"Give one whole-number label an input, not {len(x)} inputs and labels {list(y.shape)} of {y.dtype}."
            )
        return Data(x if x.dtype == torch.uint8 else x.float(), y.long())
    return load_data(data, split="train") if like is None else load_alike(data, like, split="train")


def held_back(n: int) -> int:
    """Return how many of n training rows are kept back to judge by."""
    return min(500, max(20, n // 10))


def steps(recipe: Recipe, rows: int, *, extra: bool) -> int:
    """Return the steps of an epoch over so many rows of the data's own."""
    return recipe.replays * batches(rows, recipe.own if extra else recipe.batch_size)


def split(data: Data, validation: Rows | int | None, seed: int) -> tuple[Data, Data]:
    """Return what is trained on and what is kept back to judge by, as `fit` parts them."""
    if validation is None:
        validation = held_back(len(data))
    if isinstance(validation, float):
        raise InputError(f"validation is a number of rows, or rows of their own, not {validation}.")
    if not isinstance(validation, int):
        return data, _read(validation, data)
    if not 0 < validation < len(data):
        raise InputError(
            f"validation={validation} of {counted(len(data), 'row')} leaves nothing to train on or nothing to judge "
            "by; give fewer, or validation rows of their own."
        )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.only(order[validation:]), data.only(order[:validation])


def _within(x: Tensor, threat: Ball) -> None:
    """Raise InputError where x [n, ...] leaves the threat's bounds; uint8 stands for 0 to 1."""
    if x.dtype == torch.uint8 or not len(x):
        return
    (low, high), (least, most) = threat.bounds, (float(v) for v in x.detach().aminmax())
    if least < low - FORGIVEN or most > high + FORGIVEN:
        raise InputError(
            f"Inputs span [{least:g}, {most:g}], but the threat's bounds are [{low:g}, {high:g}]: "
            "scale them, or give the threat within the bounds that they have."
        )


def apart(trained: Sequence[Data], judged: Sequence[Data]) -> list[Data]:
    """Return what is trained on, the data and extra data, without the rows whose pixels all are those of a judged row.

    Raises InputError when nothing is left.
    """
    seen, left = np.concatenate([_ids(each.x) for each in judged]), []
    for data, what in zip(trained, ("training", "extra"), strict=False):
        own = np.flatnonzero(~np.isin(_ids(data.x), seen))
        if not len(own):
            raise InputError(f"Every {what} row is a test or validation row too; give others to train on.")
        left.append(data if len(own) == len(data) else data.only(torch.from_numpy(own)))
    return left


def left_out(training: int, extra: int = 0) -> tuple[str, ...]:
    """Return what to say of so many rows that `apart` took away: a sentence, or nothing."""
    said = [counted(n, f"{what} row") for n, what in ((training, "training"), (extra, "extra")) if n]
    return (f"Not trained on, for test or validation data hold the same: {' and '.join(said)}.",) if said else ()


def _ids(x: Tensor) -> np.ndarray:
    """Return a hash of every row's pixels, int64 [n]."""
    return np.concatenate([example_ids(unit(part)) for part in x.split(1000)])


def check(module: nn.Module, data: Rows, *others: Rows) -> None:
    """Raise InputError when the module cannot be trained on the data, or the labels of others are none of its classes.

    Data with one class or with values that are not finite, labels out of range or with another class name in others, no
    parameter that requires a gradient, weights that are not finite, scores that are no numbers.
    """
    first = _read(data)
    _classes(module, [first, *(_read(each, first) for each in others)])


def _classes(module: nn.Module, read: Sequence[Data]) -> int:
    """Return the number of the module's classes; raises as `check`, of which the first is the data."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not trained:
        raise InputError("The module has no parameter to train: call module.requires_grad_() or give another one.")
    for name, parameter in trained:
        if not bool(parameter.isfinite().all()):
            raise InputError(f"The weights in {name} are not all finite: load others, or begin with new ones.")
    first = read[0]
    if len(first.y.unique()) < 2:
        raise InputError("All training rows have one label: there is nothing to tell apart; check the labels.")
    for each in read:
        if each.x.shape[1:] != first.x.shape[1:]:
            raise InputError(f"Rows are {tuple(each.x.shape[1:])} each, not {tuple(first.x.shape[1:])} as the data.")
        if not bool(each.x.isfinite().all()):
            raise InputError("Training rows contain values that are not finite; leave those rows out or mend them.")
    scores = _scores(module, unit(first.x[:LOOKED]).detach())
    classes = scores.shape[1]
    for each in read:
        wrong = ((each.y < 0) | (each.y >= classes)).nonzero().flatten().tolist()
        if wrong:
            where = each.files[wrong[0]] if each.files else f"row {wrong[0]}"
            more = f", nor are those of {counted(len(wrong) - 1, 'more row')}" if len(wrong) > 1 else ""
            raise InputError(
                f"The label {int(each.y[wrong[0]])} of {where} is none of the module's classes 0 to {classes - 1}{more}"
                "; mend the labels, or give a module with more classes."
            )
        check_names(each, first)
    return classes


def _scores(module: nn.Module, x: Tensor) -> Tensor:
    """Return the module's scores [n, k] of x; raises InputError where they are none that training could change."""
    target = Target(module)
    with untouched(target), torch.enable_grad():
        x = x.to(target.device).requires_grad_(True)
        try:
            scores = module(x)
        except RuntimeError as error:
            said = str(error).splitlines()[0]
            raise InputError(f"The module does not take rows {list(x.shape[1:])} of {x.dtype}: {said}") from error
        if not isinstance(scores, Tensor) or scores.dim() != 2 or scores.shape[1] < 2 or not scores.is_floating_point():
            what = f"{list(scores.shape)} of {scores.dtype}" if isinstance(scores, Tensor) else type(scores).__name__
            raise InputError(f"Training needs a module that returns scores [n, classes], two or more, not {what}.")
        if bool(scores.isnan().any()):
            raise InputError("The module answers NaN to training rows before any training: load other weights.")
        if bool((scores >= 0).all()) and bool(((scores.float().sum(1) - 1).abs() < 1e-3).all()):
            raise InputError(
                "The module returns probabilities, which no loss here expects: leave out its last softmax."
            )
        if not _leads(scores, x):
            other, luck = copy.deepcopy(module), torch.Generator().manual_seed(0)
            with torch.no_grad():  # weights that are zero hide nothing
                for p in other.parameters():
                    p.add_(0.1 * torch.randn(p.shape, generator=luck).to(p))
            if not _leads(other(x), x):
                raise InputError(
                    "No gradient of the module's scores reaches its input, so that attacks in training would change "
                    "nothing: harden it without what rounds or hides, such as --wear, and wear that afterwards."
                )
        return scores.detach()


def _leads(scores: Tensor, x: Tensor) -> bool:
    """Return whether a gradient of scores at x, which requires gradients, is anywhere not zero."""
    if not scores.requires_grad:
        return False
    several = torch.randn(scores.shape, generator=torch.Generator().manual_seed(0)).to(scores)
    (slope,) = torch.autograd.grad((scores * several).sum(), x, allow_unused=True)
    return slope is not None and bool(slope.any())


def _count(status: list[Status], which: Status) -> int:
    return sum(s is which for s in status)
