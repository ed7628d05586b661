"""What is learned over many examples: universal perturbations, planted like any attack, and substitutes of a target.

A universal perturbation is one change for all inputs. Learning returns a `Planted`, a recipe of one step that shows
project(x + change): evaluations, transfer matrices and records treat it like every other attack.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._rows import Batch, column
from ..core.access import Access
from ..core.attack import Attack, Problem, Trial, as_attack, parse, recipe
from ..core.fit import fit
from ..core.oracle import Answer, Oracle
from ..core.run import check_inputs, run
from ..core.target import Target, as_target, untouched
from ..core.threat import Ball, Threat
from ..errors import InputError
from ..norms import LINF as _LINF
from .parts import check_counts, check_loss, check_size, climb

_CHANGES: dict[str, Tensor] = {}  # what was learned or loaded in this process, by its hash


@dataclass(frozen=True, repr=False)
class Planted(Attack[Tensor]):
    """One change for every input, known by a hash of its shape and float32 bytes; one look per row."""

    sha: str = ""
    access = Access.LABEL

    @property
    def delta(self) -> Tensor:
        """The change, float32 of one example's shape."""
        return _CHANGES[self.sha].clone()

    @property
    def steps(self) -> int:
        """One."""
        return 1

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """Norm balls on inputs of the shape it was learned for."""
        if not isinstance(threat, Ball) or not isinstance(x, Tensor):
            return "needs inputs that are tensors and a norm ball"
        shape = tuple(_CHANGES[self.sha].shape)
        return (
            "" if tuple(x.shape[1:]) == shape else f"was learned for inputs of shape {shape}, not {tuple(x.shape[1:])}"
        )

    def init(self, p: Problem) -> Tensor:
        """Nothing but the step counter [b]."""
        return torch.zeros_like(p.y)

    def step(self, p: Problem, s: Tensor) -> tuple[Tensor, Trial]:
        """Show project(x + change)."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        x = p.threat.project(p.x0 + _CHANGES[self.sha].to(p.x0), p.x0)
        return s + 1, Trial(x, p.oracle.look(x))

    def save(self, path: str | Path) -> None:
        """Write the change to a .safetensors file, which `planted(path)` reads; raises InputError for other endings."""
        save_tensor(path, self.delta)


@recipe("Moosavi-Dezfooli et al. 2017, arXiv 1610.08401", (), Access.LABEL)
def planted(what: str) -> Planted:
    """A change that was learned before: by its hash in the process that learned it, or from a .safetensors file."""
    if what in _CHANGES:
        return Planted(sha=what)
    if not what.endswith(".safetensors"):
        raise InputError(f"No change with the hash {what!r} was learned here; name the file that it was saved to.")
    return Planted(sha=kept(load_tensor(what)))


def kept(value: Tensor) -> str:
    """Keep a tensor for this process and return its hash, 16 digits of the SHA-256 of shape and values."""
    value = value.detach().cpu().float().contiguous()
    if not bool(value.isfinite().all()):
        raise InputError("What is planted must be finite numbers.")
    sha = hashlib.sha256(repr(tuple(value.shape)).encode() + value.numpy().tobytes()).hexdigest()[:16]
    _CHANGES[sha] = value
    return sha


def look_up(sha: str) -> Tensor:
    """Return the tensor of a hash; raises InputError when it is not known here."""
    if sha not in _CHANGES:
        raise InputError(f"Nothing with the hash {sha!r} was learned here; name the file that it was saved to.")
    return _CHANGES[sha]


def save_tensor(path: str | Path, value: Tensor) -> None:
    """Write one tensor to a .safetensors file."""
    from safetensors.torch import save_file

    if not str(path).endswith(".safetensors"):
        raise InputError(f"{str(path)!r} must end in .safetensors.")
    save_file({"planted": value.contiguous()}, path)


def load_tensor(path: str | Path) -> Tensor:
    """Read a tensor written by `save_tensor`; nothing in the file is run. Raises InputError."""
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except Exception as error:  # damaged or hostile files make it raise a dozen types
        raise InputError(f"{str(path)!r} cannot be read as .safetensors ({type(error).__name__}).") from None
    if list(found) != ["planted"]:
        raise InputError(f"{str(path)!r} holds {', '.join(found) or 'nothing'} where a planted change should be.")
    return found["planted"]


# ---- universal perturbations


def universal(
    target: Target | Callable[..., Any],
    x: Tensor,
    threat: Ball,
    *,
    y: Tensor | None = None,
    to: int | None = None,
    epochs: int = 10,
    batch_size: int = 250,
    inner: int = 10,
    step_size: float = 1.0,
    loss: str = "ce",
    clip: float = 9.0,
    seed: int = 0,
) -> Planted:
    """Learn one change for all inputs by stochastic gradient aggregation (SGA, Liu et al. 2023, arXiv 2308.06015).

    Every batch is walked through in `inner` parts from the change so far, and the sum of their gradients makes the
    step that counts; with `inner` 1 this is plain mini-batch ascent (Shafahi 2020, arXiv 1811.11304). A row whose
    loss is beyond `clip` pulls no more. Steps of `step_size` in units of eps fall to 0 along a cosine.

    Args:
        target: white-box.
        x: float [n, ...] to learn from; measure what was learned on others.
        threat: a ball with a finite eps.
        y: int64 [n], by default what the target answers on x; `to`: the class that all inputs are led to, if any.
        epochs, batch_size, inner, step_size, loss, clip, seed: see above.

    Raises:
        InputError: inputs or settings do not fit.
    """
    target, ball, y = _learnable(target, x, threat, y)
    check_counts(epochs=epochs, batch_size=batch_size, inner=inner)
    check_loss(loss)
    check_size("step_size", step_size)
    check_size("clip", clip)
    order = torch.Generator().manual_seed(seed)
    batches = -(-len(x) // batch_size)
    with torch.inference_mode(False), untouched(target):
        door = Oracle(target, Access.GRADIENT)
        delta = torch.zeros(x.shape[1:], dtype=target.work_dtype, device=target.device)
        for epoch in range(epochs):
            for number, rows in enumerate(_pieces(torch.randperm(len(x), generator=order), batch_size)):
                length = 0.5 * step_size * ball.eps * (1 + _cosine((epoch * batches + number) / (epochs * batches)))
                walker, total = delta, torch.zeros_like(delta)
                for part in rows.chunk(inner):
                    g = _pull(door, x[part], y[part], to, ball, walker, loss, clip)
                    total += g
                    walker = _moved(ball, walker, g, length)
                delta = _moved(ball, delta, total, length)
    return parse(f"planted({kept(delta)!r})")  # type: ignore[return-value]


def universal_deepfool(
    target: Target | Callable[..., Any],
    x: Tensor,
    threat: Ball,
    *,
    y: Tensor | None = None,
    rate: float = 0.8,
    epochs: int = 10,
    batch_size: int = 16,
    attack: Attack[Any] | str = "deepfool()",
    seed: int = 0,
) -> Planted:
    """Learn one change for all inputs by adding up smallest changes (Moosavi-Dezfooli 2017, arXiv 1610.08401, alg. 1).

    For every input that the change so far does not fool, the smallest further change of `attack` is added, and the sum
    is brought back into the ball; epochs end when a share of `rate` is fooled. `batch_size` 1 is the paper; larger
    batches add the changes of their inputs at once, found from the same point.

    Args and errors: as for `universal`.
    """
    target, ball, y = _learnable(target, x, threat, y)
    check_counts(epochs=epochs, batch_size=batch_size)
    step = as_attack(attack)
    free = Ball(ball.norm, bounds=ball.bounds, mask=ball.mask)
    order = torch.Generator().manual_seed(seed)
    x = x.to(target.device, target.work_dtype)
    delta = torch.zeros_like(x[0])
    for _ in range(epochs):
        for rows in _pieces(torch.randperm(len(x), generator=order), batch_size):
            here = ball.project(x[rows] + delta, x[rows])
            out = run(step, target, here, y[rows], free, seed=seed)
            assert isinstance(out.x_adv, Tensor)
            further = (out.x_adv.to(here) - here)[out.success.to(here.device)].sum(0)
            delta = _inside(ball, delta + 1.02 * further)  # the paper's overshoot
        shown = ball.project(x + delta, x)
        with torch.inference_mode(False), untouched(target):
            label = torch.cat([Oracle(target, Access.LABEL).label(part).label.cpu() for part in _pieces(shown)])
        if float((label != y).double().mean()) >= rate:
            break
    return parse(f"planted({kept(delta)!r})")  # type: ignore[return-value]


def _learnable(
    target: Target | Callable[..., Any], x: Tensor, threat: Ball, y: Tensor | None
) -> tuple[Target, Ball, Tensor]:
    """Return what learning works with, checked; y is what the target answers where none is given."""
    target, ball = as_target(target), threat.within(as_target(target).bounds)
    if not ball.bounded:
        raise InputError("A universal change needs a finite eps, such as linf(8/255).")
    if not len(x):
        raise InputError("There is nothing to learn from: x holds no example.")
    check_inputs(x, torch.zeros(len(x), dtype=torch.int64) if y is None else y, ball, target)
    if y is None:
        with torch.inference_mode(False), untouched(target):
            door = Oracle(target, Access.LABEL)
            parts = [door.label(p.to(target.device, target.work_dtype)).label.cpu() for p in _pieces(x)]
        y = torch.cat(parts)
    return target, ball, y.cpu()


def _pull(
    door: Oracle, x: Tensor, y: Tensor, to: int | None, ball: Ball, delta: Tensor, loss: str, clip: float
) -> Tensor:
    """Return the sum over the rows of the gradient of min(loss, clip) at x + delta, of delta's shape."""
    x, y = x.to(delta), y.to(delta.device)
    wanted = None if to is None else torch.full_like(y, to)
    _, value, grad = door.gradient(ball.project(x + delta, x), climb(loss, y, wanted, paired=False))
    return (grad * column((value < clip).to(grad.dtype), grad)).sum(0)


def _moved(ball: Ball, delta: Tensor, grad: Tensor, length: float) -> Tensor:
    return _inside(ball, delta + length * ball.steepest(grad[None], torch.zeros_like(grad[None]))[0])


def _inside(ball: Ball, delta: Tensor) -> Tensor:
    """Return the change in the ball around 0; the box is met where it is added to an input."""
    free = Ball(ball.norm, ball.eps, (-torch.inf, torch.inf), mask=ball.mask)
    return free.project(delta[None], torch.zeros_like(delta[None]))[0]


def _pieces(rows: Tensor, size: int = 256) -> Iterator[Tensor]:
    return (rows[at : at + size] for at in range(0, len(rows), size))


def _cosine(share: float) -> float:
    return float(torch.cos(torch.tensor(share * torch.pi)))


# ---- substitutes: networks that learn from what a target answers

Propose = Callable[[int, nn.Module, Tensor, Tensor], Iterator[Tensor]]
"""(round, network so far, points seen [m, ...], answers [m, k]) -> points to ask about next, in pieces."""


def substitute(
    target: Target | Callable[..., Any],
    x: Tensor,
    *,
    queries: int,
    module: nn.Module | None = None,
    classes: int | None = None,
    rounds: int = 6,
    step: float = 0.1,
    turn: int = 3,
    augment: Literal["jacobian", "noise", "none"] = "jacobian",
    access: Access = Access.LABEL,
    epochs: int = 10,
    lr: float = 3e-3,
    seed: int = 0,
) -> Target:
    """Train a network to answer like a target that is only asked (Papernot et al. 2016, arXiv 1602.02697, alg. 1).

    After each round of training every point seen so far is moved by `step` times the box along the signs of the
    network's own gradient for the target's answer there, and the target is asked about the new points; the direction
    turns every `turn` rounds (arXiv 1605.07277, eq. 5). Where they would exceed the budget a random part of them is
    asked about. Use the result as a surrogate: `run(..., surrogates=[substitute(...)])`.

    Args:
        target: asked for labels, or with access=SCORES for its scores.
        x: float [n, ...] the first points: some inputs of the kind that the target knows.
        queries: how many rows the target may be asked about, never exceeded.
        module: the network to train in place, by default a small one; `classes` that it tells apart, by default those
            that the target names, or the largest answer on x and one.
        rounds, epochs, lr: of training.
        augment: "jacobian" as described, "noise": random signs instead, "none": nothing but x.
        seed: of weights, order and choice.

    Raises:
        InputError: inputs or settings do not fit.
    """
    target = as_target(target)
    check_counts(queries=queries, rounds=rounds, turn=turn, epochs=epochs)
    check_size("step", step)
    if augment not in ("jacobian", "noise", "none"):
        raise InputError(f"augment must be 'jacobian', 'noise' or 'none', not {augment!r}.")
    check_inputs(x, torch.zeros(len(x), dtype=torch.int64), Ball(_LINF, bounds=target.bounds), target)
    lo, hi = target.bounds
    luck = torch.Generator().manual_seed(seed)

    def propose(at: int, network: nn.Module, seen: Tensor, answers: Tensor) -> Iterator[Tensor]:
        room = queries - len(seen)
        if not at or augment == "none" or room < 1:
            return
        length = step * (hi - lo) * (-1) ** ((at - 1) // turn)
        chosen = torch.randperm(len(seen), generator=luck)[:room]
        here, label = seen[chosen], answers[chosen].argmax(1)
        if augment == "noise":
            way = torch.randint(0, 2, here.shape, generator=luck).to(here) * 2 - 1
        else:
            own = Oracle(Target(network, bounds=(lo, hi)), Access.GRADIENT)
            network.eval()
            way = own.gradient(here, lambda z: z.gather(1, label.view(-1, 1))[:, 0])[2].sign()
        yield (here + length * way).clamp(lo, hi)

    with torch.inference_mode(False), untouched(target):
        door = Oracle(target, access)
        door.need(access, "The substitute")
        first = x[torch.randperm(len(x), generator=luck)[:queries]].detach().to("cpu", torch.float32)
        known = classes or max(target.labels, len(target.classes or ()))
        trained = imitate(
            door, module, first, propose, rounds=rounds, classes=known, epochs=epochs, lr=lr, seed=seed,
            soft=access >= Access.SCORES,
        )  # fmt: skip
    return Target(trained.to(target.device).eval(), bounds=target.bounds, name=f"substitute of {target.name}")


def imitate(
    door: Oracle,
    module: nn.Module | None,
    x: Tensor,
    propose: Propose,
    *,
    rounds: int,
    classes: int = 0,
    epochs: int = 6,
    lr: float = 3e-3,
    seed: int = 0,
    soft: bool = True,
) -> nn.Module:
    """Train a network on the CPU, by default a small one, on the answers at x [n, ...] and what `propose` adds.

    `soft` learns how sure the target is too; without it, and where labels are all that may be asked, its classes.
    """
    seen, answers = [x], [_answers(door, x, classes)]
    module = module or small_network(x.shape[1:], answers[0].shape[1], *door.target.bounds, seed)
    for at in range(rounds):
        for here in propose(at, module, torch.cat(seen), torch.cat(answers)):
            seen.append(here)
            answers.append(_answers(door, here, answers[0].shape[1]))
        z = torch.cat(answers)
        sure = _soft(z) if soft else torch.zeros_like(z)

        def objective(net: nn.Module, a: Tensor, y: Tensor, ids: Tensor, step: int, sure: Tensor = sure) -> Tensor:
            log_p = net(a).log_softmax(1)
            loss: Tensor = F.nll_loss(log_p, y) - (sure[ids] * log_p).sum(1).mean()
            return loss

        fit(module, torch.cat(seen), z.argmax(1), objective, epochs=epochs, batch_size=64, lr=lr, seed=seed + at)
    return module


def _answers(door: Oracle, x: Tensor, classes: int) -> Tensor:
    """Return scores [n, k] of x, of labels alone as ones and zeros for `classes` (0: as many as are seen)."""
    answers = [door.look(part.to(door.target.device, door.target.work_dtype)) for part in _pieces(x)]
    if answers[0].scores is None:
        label = torch.cat([a.label.cpu() for a in answers])
        count = max(classes, int(label.max()) + 1)
        if classes and count > classes:
            raise InputError(f"The target answers class {count - 1} where {classes} classes were expected.")
        return F.one_hot(label, count).float()
    return torch.cat([_told(a) for a in answers])


def _told(answer: Answer) -> Tensor:
    assert answer.scores is not None
    return answer.scores.detach().cpu().float().nan_to_num(0.0, 1e4, -1e4)


def _soft(z: Tensor) -> Tensor:
    """Return scores [m, k] as probabilities whose typical gap is that of a confident network."""
    z = z - z.amax(1, keepdim=True)
    gap = z.topk(2, dim=1).values.diff(dim=1).abs().median().clamp(min=1e-12)
    soft: Tensor = (z * (4.0 / gap)).softmax(1)
    return soft


def small_network(shape: torch.Size, classes: int, lo: float, hi: float, seed: int) -> nn.Module:
    """Return an untrained network for inputs of this shape in [lo, hi]: two convolutions for images, else two layers.

    The caller's random state is kept.
    """
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        layers: list[nn.Module] = [_Centre(lo, hi)]
        if len(shape) == 3 and min(shape[1:]) >= 6:
            stride = 2 if min(shape[1:]) >= 16 else 1
            layers += [nn.Conv2d(shape[0], 24, 3, stride=stride, padding=1), nn.ReLU(), nn.Conv2d(24, 48, 3, 2, 1)]
            layers += [nn.ReLU(), nn.Flatten(), nn.LazyLinear(96), nn.ReLU(), nn.Linear(96, classes)]
        else:
            layers += [nn.Flatten(), nn.LazyLinear(128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
            layers += [nn.Linear(128, classes)]
        net = nn.Sequential(*layers)
        net(torch.zeros(1, *shape))
    finally:
        torch.set_rng_state(state)
    return net


class _Centre(nn.Module):
    """Inputs between -1 and 1."""

    def __init__(self, lo: float, hi: float) -> None:
        super().__init__()
        self.lo, self.hi = lo, hi

    def forward(self, x: Tensor) -> Tensor:
        """Return x scaled from the bounds to [-1, 1]."""
        return (x - self.lo) / (self.hi - self.lo) * 2 - 1
