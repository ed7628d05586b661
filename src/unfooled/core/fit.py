"""The one training loop: whoever trains a module, plainly or against an attack, calls `fit` with an objective."""

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfooled._rows import sent
from unfooled.core.target import flags_kept
from unfooled.core.together import ALONE, Together
from unfooled.errors import Diverged, InputError

Objective: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Tensor, int], Tensor]
"""`(module, x [b, ...], y int64 [b], ids int64 [b], step) -> scalar loss`; `ids` are the rows' places in the data."""


@runtime_checkable
class Remembering(Protocol):
    """An objective that carries something from step to step: a checkpoint keeps it, a rollback takes it back."""

    def state(self) -> dict[str, Tensor]:
        """Return what is carried."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned; nothing is carried when a training begins, with an empty `state`."""
        ...


Perturb: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Tensor, int], Tensor]
"""`(module, x, y, ids, step) -> x_adv`, the same shape as x."""

Augment: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""`(x [b, ...], generator on the CPU) -> x of the same shape`, drawing from the generator alone; x lies on the device
that trains."""

Schedule: TypeAlias = Literal["onecycle", "cosine", "constant"]


@dataclass(frozen=True)
class Epoch:
    """One line of the training history: the mean loss over the epoch, the learning rate at its end, seconds used.

    `images` were trained on; `forward` and `backward` count the rows that were sent through the module for it, there
    and back, the attack's included.
    """

    epoch: int
    loss: float
    lr: float
    seconds: float
    images: int = 0
    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Step:
    """How far a training is: `done` of the epoch's `total` images, in epoch `epoch` of `epochs`."""

    epoch: int
    epochs: int
    done: int
    total: int


_SMOOTHING: ContextVar[float] = ContextVar("smoothing", default=0.0)


def cross_entropy(scores: Tensor, y: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Return the cross-entropy that objectives minimise: with the label smoothing of the training that is running.

    An attack inside a training step climbs losses of its own, which are never smoothed.
    """
    return F.cross_entropy(scores, y, reduction=reduction, label_smoothing=_SMOOTHING.get())


def standard(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
    """Return the mean cross-entropy on the images as they are (an `Objective`)."""
    return cross_entropy(module(x), y)


def adversarial(perturb: Perturb) -> Objective:
    """Return the mean cross-entropy on perturbed images alone (Madry et al. 2018, arXiv:1706.06083, eq. 2.1).

    The loss is only as hard as `perturb`: nothing is promised about attacks that it does not resemble.
    """

    def objective(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        return cross_entropy(module(perturb(module, x, y, ids, step)), y)

    return objective


@dataclass(frozen=True)
class Recipe:
    """How a module is trained, whatever the objective.

    Args:
        epochs: visits of all rows.
        batch_size: rows a step.
        lr, weight_decay: of AdamW (Loshchilov and Hutter 2019), or of SGD with Nesterov momentum 0.9.
        seed: of the order of rows, of augmentation, and of what the module itself draws.
        schedule: of the learning rate, over all steps.
        ema: share of the averaged weights kept per step, 0 for no average (lowered during the first steps).
        optimizer: which of the two.
        precision: "bf16" lets the module compute in bfloat16 (autocast); inputs, losses and gradients stay float32.
        channels_last: memory format of weights and images [b, c, h, w].
        compiled: train through torch.compile.
        replays: steps made in a row on one batch (free adversarial training's m); epochs visit the rows that often.
        smoothing: share of every label that is spread over all classes (Szegedy et al. 2016, arXiv:1512.00567,
            section 7), in every objective that takes its cross-entropy from here.
        mix: share of every batch that comes from the extra data, where there is some (Gowal et al. 2021,
            arXiv:2110.09468).

    Raises InputError for settings that cannot be trained with.
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 1e-3
    seed: int = 0
    weight_decay: float = 0.0
    schedule: Schedule = "onecycle"
    ema: float = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False
    compiled: bool = False
    replays: int = 1
    smoothing: float = 0.0
    mix: float = 0.3

    @property
    def own(self) -> int:
        """Rows of a full batch that are the data's own where there are extra ones."""
        return max(1, self.batch_size - round(self.mix * self.batch_size))

    def __post_init__(self) -> None:
        """Refuse settings that cannot be trained with."""
        if self.epochs < 1 or self.batch_size < 1 or not self.lr > 0 or self.replays < 1:
            raise InputError(
                f"epochs, batch_size, replays and lr must be positive, not epochs={self.epochs}, "
                f"batch_size={self.batch_size}, replays={self.replays}, lr={self.lr}."
            )
        if not 0 <= self.ema < 1:
            raise InputError(
                f"ema={self.ema} is outside [0, 1): 0 switches averaging off, 0.999 averages about 1,000 steps."
            )
        if not 0 <= self.smoothing < 1:
            raise InputError(f"smoothing is a share from 0 to below 1, not {self.smoothing}.")
        if not 0 < self.mix < 1:
            raise InputError(f"mix is a share above 0 and below 1 of every batch, not {self.mix}.")
        for name, known in (
            ("schedule", ("onecycle", "cosine", "constant")),
            ("optimizer", ("adamw", "sgd")),
            ("precision", ("float32", "bf16")),
        ):
            if getattr(self, name) not in known:
                *most, last = map(repr, known)
                raise InputError(f"Unknown {name} {getattr(self, name)!r}: use {', '.join(most)} or {last}.")


def batches(rows: int, size: int) -> int:
    """Return how many batches of `size` rows an epoch has; a single row left over joins the last one (BatchNorm)."""
    return math.ceil(rows / size) - (1 < size < rows and rows % size == 1)


class Training:
    """A module in training, an epoch at a time; between epochs its whole state can be taken out and put back.

    Args:
        module: trained in place, only the parameters that require a gradient.
        x, y: rows [n, ...] and labels int64 [n], on any device; uint8 rows are kept on the device that trains and
            divided by 255 there, batch by batch.
        objective, recipe: what is minimised, and how.
        augment: applied to every batch, on the device that trains.
        extra: more rows and labels, such as generated images with pseudo-labels: of every batch the recipe's `mix` is
            drawn from them, each as often as any other; an epoch remains a visit of all of x. Their ids follow x's.
        device: where to move the module; None trains where its weights are.
        together: the place among several processes that train the same module with the same arguments: each takes its
            share of every batch, gradients are averaged, and an attack's noise belongs to the row, so that the result
            is one process's up to the order of sums. What looks at a batch as a whole (BatchNorm, weights moved against
            the loss, a norm over the batch) sees the share alone; running statistics are averaged every epoch.

    `epoch` epochs and `step` steps are done, `history` has one line an epoch. `evaluated` is the module to look at: the
    average of the weights where one is kept. The same arguments, module state and thread count give the same bits on
    the CPU, interrupted and resumed or not; on CUDA that is not promised.

    Raises:
        InputError: data that cannot be trained on.
    """

    def __init__(
        self,
        module: nn.Module,
        x: Tensor,
        y: Tensor,
        objective: Objective = standard,
        recipe: Recipe | None = None,
        *,
        augment: Augment | None = None,
        extra: tuple[Tensor, Tensor] | None = None,
        device: torch.device | str | None = None,
        together: Together = ALONE,
    ) -> None:
        self.recipe = recipe = recipe or Recipe()
        for rows, labels in ((x, y), *([extra] if extra else [])):
            if len(rows) == 0 or len(rows) != len(labels):
                raise InputError(
                    f"Training needs as many labels as images and at least one, not {len(rows)} and {len(labels)}."
                )
            if rows.shape[1:] != x.shape[1:]:
                raise InputError(f"Extra rows are {tuple(rows.shape[1:])} each, not {tuple(x.shape[1:])} as the data.")
        if extra is not None and recipe.own == recipe.batch_size:
            raise InputError(
                f"mix={recipe.mix:g} of batches of {recipe.batch_size} is no extra row: give a larger mix or batches."
            )
        trained = [p for p in module.parameters() if p.requires_grad]
        if not trained:
            raise InputError("No parameter of the module requires a gradient: call module.requires_grad_() before fit.")
        if device is not None:
            module.to(device)
        if recipe.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module, self.objective, self.augment, self.together = module, objective, augment, together
        if isinstance(objective, Remembering):
            objective.restore({})  # nothing of another training
        self.device = trained[0].device
        self.x, self.y = self._kept(x), y.to(self.device)
        self.extra = None if extra is None else (self._kept(extra[0]), extra[1].to(self.device))
        self._trained = trained
        asked: nn.Module = module if recipe.precision == "float32" else _InBf16(module, self.device)
        self._asked: nn.Module = torch.compile(asked) if recipe.compiled else asked  # type: ignore[assignment]
        steps = recipe.epochs * recipe.replays * batches(len(x), self._own)
        if (least := len(x) - (batches(len(x), self._own) - 1) * self._own) < together.size:
            raise InputError(f"A batch of {least} rows is too small for {together.size} workers: change batch_size.")
        together.agree([*module.parameters(), *module.buffers()])
        self._optimizer = _optimizer(recipe, trained)
        self._rate = torch.optim.lr_scheduler.LambdaLR(self._optimizer, _rate(recipe.schedule, steps))
        self._average = copy.deepcopy(module) if recipe.ema else None
        self._order = torch.Generator().manual_seed(recipe.seed)
        with _world_kept(module, self.device):
            torch.manual_seed(recipe.seed)
            self._luck = _luck(self.device)
        self.step, self.history, self.slowed = 0, list[Epoch](), 1.0
        self._passes = [0, 0]

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def evaluated(self) -> nn.Module:
        """The module whose weights are the result so far: the average where one is kept."""
        return self.module if self._average is None else self._average

    def run_epoch(self, on_step: Callable[[Step], None] | None = None) -> Epoch:
        """Visit all rows once in a new order, the last batch being smaller; return the epoch's line of the history.

        `on_step` is called after every batch. The caller's random state, grad mode and the module's training flags are
        as before when this returns or raises. Raises Diverged when the loss or a weight is no longer finite.
        """
        r, began = self.recipe, time.perf_counter()
        total, seen = torch.zeros((), dtype=torch.float64, device=self.device), 0
        with _world_kept(self.module, self.device), self._counted():
            _set_luck(self._luck, self.device)
            self.module.train()
            batches = self._batches()
            rows = sum(map(len, batches))
            for ids in batches:
                x, y = self._batch(ids)
                for _ in range(r.replays):
                    total += self._update(x, y, ids) * len(ids)
                seen += len(ids)
                if on_step:
                    on_step(Step(self.epoch + 1, r.epochs, seen, rows))
            self._luck = _luck(self.device)
        weights = torch.stack([p.detach().double().sum() for p in self._trained]).sum()  # the last step is no loss yet
        counted = torch.stack([total, weights, *(total.new_tensor(n) for n in self._passes)])
        self.together.add([counted])
        self._even_buffers()
        summed, weighed, forward, backward = counted.tolist()
        mean = summed / seen / r.replays
        if not math.isfinite(mean + weighed):
            what = f"The loss became {mean}" if not math.isfinite(mean) else "A weight was no longer finite"
            raise Diverged(f"{what} in epoch {self.epoch + 1}: train with a lower lr than {r.lr}.")
        done = Epoch(
            self.epoch + 1, mean, float(self._rate.get_last_lr()[0]), time.perf_counter() - began,
            seen * r.replays, int(forward), int(backward),
        )  # fmt: skip
        self.history.append(done)
        return done

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the rows that go through the module, there and back."""
        self._passes = passes = [0, 0]

        def back(_: Tensor, rows: int) -> None:
            passes[1] += rows

        def there(_: nn.Module, given: tuple[Any, ...], scores: Any) -> None:
            passes[0] += len(given[0])
            if isinstance(scores, Tensor) and scores.requires_grad:
                scores.register_hook(functools.partial(back, rows=len(given[0])))  # type: ignore[no-untyped-call]

        hook = self._asked.register_forward_hook(there)
        try:
            yield
        finally:
            hook.remove()

    def _even_buffers(self) -> None:
        """Give all processes the mean of their running statistics."""
        if self.together.size > 1:
            for module in (self.module, *([self._average] if self._average else [])):
                floats = [b for b in module.buffers() if b.is_floating_point()]
                self.together.add(floats)
                for b in floats:
                    b.div_(self.together.size)

    def finish(self) -> None:
        """Leave the result in the module, and no gradients."""
        if self._average is not None:
            self.module.load_state_dict(self._average.state_dict())
        for p in self._trained:
            p.grad = None

    @property
    def _own(self) -> int:
        """Return how many rows of a full batch come from the data themselves."""
        return self.recipe.batch_size if self.extra is None else self.recipe.own

    def _batches(self) -> list[Tensor]:
        """Return the ids of an epoch's batches, each int64 on the CPU: all of the data once, and the extra share."""
        order, size = torch.randperm(len(self.x), generator=self._order), self._own
        own = order.tensor_split([size * at for at in range(1, batches(len(order), size))])
        if self.extra is None:
            return list(own)
        share = (self.recipe.batch_size - self._own) / self._own
        sizes, n = [round(share * len(ids)) for ids in own], len(self.extra[0])
        rounds = [torch.randperm(n, generator=self._order) for _ in range(math.ceil(sum(sizes) / n))]
        added = torch.cat([torch.empty(0, dtype=torch.int64), *rounds])[: sum(sizes)] + len(self.x)
        return [torch.cat(both) for both in zip(own, torch.split(added, sizes), strict=True)]

    def _batch(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self._rows(self.x, self.y, ids[ids < len(self.x)])
        if self.extra is not None:
            more = self._rows(*self.extra, ids[ids >= len(self.x)] - len(self.x))
            x, y = torch.cat([x, more[0]]), torch.cat([y, more[1]])
        x = self.augment(x, self._order) if self.augment else x
        return (x.contiguous(memory_format=torch.channels_last) if self.recipe.channels_last else x), y

    def _rows(self, x: Tensor, y: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return unit(sent(x[sent(ids, x.device)], self.device)), y[sent(ids, y.device)]

    def _kept(self, x: Tensor) -> Tensor:
        return x.to(self.device) if x.dtype == torch.uint8 else x.detach()

    def _update(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """Make one step; return this process's share of the batch's mean loss without a host sync."""
        mine = self.together.share(len(ids))
        share = (mine.stop - mine.start) / len(ids)
        smoothed = _SMOOTHING.set(self.recipe.smoothing)
        try:
            given = self.objective(self._asked, x[mine], y[mine], ids[mine], self.step)
            if not isinstance(given, Tensor) or given.dim() or not given.requires_grad:
                raise InputError("An objective returns one number that depends on the module's parameters.")
            loss: Tensor = share * given
        finally:
            _SMOOTHING.reset(smoothed)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.together.add([p.grad for p in self._trained if p.grad is not None])
        self._optimizer.step()
        self._rate.step()
        self.step += 1
        if self._average is not None:
            _blend(self._average, self.module, min(self.recipe.ema, (1 + self.step) / (10 + self.step)))
        return loss.detach()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that decides what comes next: tensors (copies, on the CPU) and plain numbers."""
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        if self._average is not None:
            tensors |= {f"average.{k}": v for k, v in self._average.state_dict().items()}
        for at, parameter in enumerate(self._trained):
            for name, value in self._optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{at}.{name}"] = value
        if isinstance(self.objective, Remembering):
            tensors |= {f"objective.{k}": v for k, v in self.objective.state().items()}
        tensors |= {f"luck.{i}": v for i, v in enumerate(self._luck)} | {"order": self._order.get_state()}
        plain = {"step": self.step, "slowed": self.slowed, "history": [asdict(e) for e in self.history]}
        return {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, plain

    def restore(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Put back what `state` returned; raises InputError when it belongs to another module or recipe."""
        mine, _ = self.state()
        kinds = ("module.", "average.")
        if {k: v.shape for k, v in mine.items() if k.startswith(kinds)} != {
            k: v.shape for k, v in tensors.items() if k.startswith(kinds)
        }:
            raise InputError("The saved state belongs to another module or to training with another average.")

        def of(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.module.load_state_dict(of("module."))
        if self._average is not None:
            self._average.load_state_dict(of("average."))
        for at, parameter in enumerate(self._trained):
            self._optimizer.state[parameter] = {
                name: v.clone() if v.dim() == 0 else v.to(self.device, copy=True)
                for name, v in of(f"optimizer.{at}.").items()
            }
        self._luck = [tensors[f"luck.{i}"] for i in range(len(self._luck))]
        self._order.set_state(tensors["order"])
        if isinstance(self.objective, Remembering):
            self.objective.restore({k: v.to(self.device) for k, v in of("objective.").items()})
        self.step, self.history = int(plain["step"]), [Epoch(**e) for e in plain["history"]]
        self._rate.last_epoch = self.step
        self.slowed = 1.0
        self.slow(float(plain["slowed"]))

    def slow(self, factor: float) -> None:
        """Multiply the learning rate of all that is still to come by `factor`."""
        self.slowed *= factor
        rate = self.recipe.lr * self.slowed
        self._rate.base_lrs = [rate] * len(self._rate.base_lrs)
        for group, scale in zip(self._optimizer.param_groups, self._rate.lr_lambdas, strict=True):
            group["lr"] = rate * scale(self.step)
        self._rate._last_lr = [group["lr"] for group in self._optimizer.param_groups]


def fit(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    objective: Objective = standard,
    *,
    augment: Augment | None = None,
    extra: tuple[Tensor, Tensor] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    device: torch.device | str | None = None,
    together: Together = ALONE,
    **recipe: Any,
) -> list[Epoch]:
    """Train `module` in place on x [n, ...] and y int64 [n]; return one `Epoch` per epoch.

    `recipe` are the settings of `Recipe`, the other arguments those of `Training`; `on_epoch` is called after every
    epoch. The average of the weights, where one is kept, is left in the module.

    Raises:
        InputError: settings or data that cannot be trained on.
        UnfooledError: the loss stopped being finite.
    """
    with torch.inference_mode(mode=False):
        training = Training(
            module, x, y, objective, Recipe(**recipe), augment=augment, extra=extra, device=device, together=together
        )
        for _ in range(training.recipe.epochs):
            done = training.run_epoch()
            if on_epoch:
                on_epoch(done)
        training.finish()
    return training.history


def unit(x: Tensor) -> Tensor:
    """Return uint8 x divided by 255, floats as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


class _InBf16(nn.Module):
    """A module that computes in bfloat16 and answers in float32."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.module, self._kind = module, device.type

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self._kind, dtype=torch.bfloat16):
            scores: Tensor = self.module(x)
        return scores.float()


def _optimizer(recipe: Recipe, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=recipe.weight_decay)


def _luck(device: torch.device) -> list[Tensor]:
    """Return the global random states that a training step may draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_luck(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def _rate(schedule: str, total: int, warm: float = 0.3) -> Callable[[int], float]:
    """Return step -> factor of lr; onecycle climbs linearly for 30% of the steps, then falls along a cosine."""

    def falling(t: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, t))))

    def one_cycle(step: int) -> float:
        rising = max(1.0, warm * total)
        return (step + 1) / rising if step + 1 < rising else falling((step - rising) / (total - rising + 1))

    if schedule == "onecycle":
        return one_cycle
    return (lambda step: falling(step / total)) if schedule == "cosine" else (lambda step: 1.0)


@torch.no_grad()
def _blend(average: nn.Module, module: nn.Module, keep: float) -> None:
    """Move the average towards the module, what is shared once; what is no floating number is copied."""
    pairs = [*zip(average.parameters(), module.parameters(), strict=True)]
    for mine, theirs in (*pairs, *zip(average.buffers(), module.buffers(), strict=True)):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - keep)
        else:
            mine.copy_(theirs)


@contextmanager
def _world_kept(module: nn.Module, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with flags_kept(module), torch.random.fork_rng(devices=devices), torch.inference_mode(mode=False):
        with torch.enable_grad():
            yield
