"""Objectives: what one training step minimises. An attack is an argument here, never an import.

Every attack draws noise that belongs to (seed, the row's place in the data, training step): a step's examples are made
on the fly, nothing of them is stored.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfooled import losses
from unfooled._noise import Noise, row_keys
from unfooled._rows import sent
from unfooled.core import fit
from unfooled.core.attack import Attack
from unfooled.core.engine import last_iterate
from unfooled.core.record import fingerprint
from unfooled.core.target import Target, flags_kept
from unfooled.core.threat import Ball
from unfooled.errors import InputError

Made = Callable[[nn.Module, Tensor, Tensor, Tensor, int], Tensor]
"""`(module, x, y, ids, step) -> x_adv`, a `fit.Perturb`."""

Learn = Callable[[nn.Module, int], Tensor]
"""`(module, round) -> change [...]` of one example's shape: a universal perturbation of the module as it is now."""


P = ParamSpec("P")


def telling(make: Callable[P, fit.Objective]) -> Callable[P, fit.Objective]:
    """Let the objectives that a function makes say in their attribute `told` of what they were made.

    A resumed training compares it.
    """

    @functools.wraps(make)
    def made(*given: P.args, **named: P.kwargs) -> fit.Objective:
        objective, bound = make(*given, **named), inspect.signature(make).bind(*given, **named)
        bound.apply_defaults()
        settings = ", ".join(f"{name}={_told(value)}" for name, value in bound.arguments.items())
        vars(objective)["told"] = f"{make.__name__}({settings})"
        return objective

    return made


def _told(value: Any) -> str:
    """Return a setting as text that is the same in another process: without addresses, tensors by their contents."""
    if isinstance(value, Tensor | list | tuple):
        parts = [value] if isinstance(value, Tensor) else [v for v in value if isinstance(v, Tensor)]
        return fingerprint(*parts) if parts else type(value).__name__
    text = getattr(value, "told", None) or getattr(value, "__qualname__", None) or repr(value)
    return type(value).__name__ if " at 0x" in text else str(text)


def standard() -> fit.Objective:
    """Return the mean cross-entropy on the images as they are."""
    return fit.standard


@telling
def adversarial(attack: Attack[Any], threat: Ball, *, seed: int = 0, ramp: int = 0) -> fit.Objective:
    """Return the mean cross-entropy at the attack's last iterate (Madry et al. 2018, arXiv:1706.06083, eq. 2.1).

    The radius grows linearly from 0 to the threat's eps over the first `ramp` training steps, without which a large
    eps lets a small network collapse to a constant. The noise belongs to (seed, the row's place in the data, step).

    Raises:
        InputError: the threat has no finite eps.

    Nothing is promised about attacks that this one does not resemble, nor about a larger eps.
    """
    return fit.adversarial(attacked(attack, threat, seed=seed, ramp=ramp))


@telling
def mixed(attack: Attack[Any], threat: Ball, *, alpha: float = 0.5, seed: int = 0, ramp: int = 0) -> fit.Objective:
    """Return alpha J(x, y) + (1 - alpha) J(x_adv, y) (Goodfellow et al. 2014, arXiv:1412.6572, section 6).

    Theirs is alpha = 0.5 with FGSM: `mixed(fgsm(), linf(0.25))`. Raises InputError as `adversarial`, or for an alpha
    outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is the share of the clean loss, from 0 to 1, not {alpha}.")
    perturb = attacked(attack, threat, seed=seed, ramp=ramp)

    def objective(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        hard = fit.cross_entropy(module(perturb(module, x, y, ids, step)), y)
        return alpha * fit.cross_entropy(module(x), y) + (1 - alpha) * hard

    return objective


@telling
def trades(attack: Attack[Any], threat: Ball, *, beta: float = 6.0, seed: int = 0, ramp: int = 0) -> fit.Objective:
    """Return J(x, y) + beta KL(p(x) || p(x_adv)), where x_adv climbs that divergence (TRADES, arXiv:1901.08573, eq. 5).

    The attack must climb cross-entropy along gradients: it is shown a target of two classes whose cross-entropy grows
    with the divergence, from a random start: at x itself the divergence has no gradient. x_adv is made in eval mode,
    and the two losses see a batch each, as in the authors' code. Raises InputError as `adversarial`.
    """
    perturb = _diverging(attack, threat, seed=seed, ramp=ramp)

    def objective(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        x_adv = perturb(module, x, y, ids, step)
        clean, hard = module(x), module(x_adv)
        return fit.cross_entropy(clean, y) + beta * losses.kl(hard, clean).mean()

    return objective


@telling
def mart(attack: Attack[Any], threat: Ball, *, beta: float = 5.0, seed: int = 0, ramp: int = 0) -> fit.Objective:
    """Return BCE(x_adv, y) + beta mean(KL(p(x) || p(x_adv)) (1 - p_y(x))) (MART, Wang et al. 2020, eq. 10 and 11).

    BCE is -log p_y - log(1 - max of the others): misclassified examples weigh more. x_adv climbs the cross-entropy in
    eval mode, as in the authors' code. Raises InputError as `adversarial`.
    """
    perturb = attacked(attack, threat, seed=seed, ramp=ramp)

    def objective(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        with _evaluating(module):
            x_adv = perturb(module, x, y, ids, step)
        clean, hard = module(x), module(x_adv)
        p = hard.softmax(1)
        rival = p.scatter(1, y[:, None], 0.0).amax(1)
        boosted = fit.cross_entropy(hard, y, reduction="none") - torch.log1p(-rival + 1e-4)
        unsure = 1 - clean.softmax(1).gather(1, y[:, None])[:, 0]
        return boosted.mean() + beta * (losses.kl(hard, clean) * unsure).mean()

    return objective


@telling
def noisy_step(
    threat: Ball, *, noise: float = 2.0, step_size: float = 1.0, seed: int = 0, ramp: int = 0
) -> fit.Objective:
    """Return N-FGSM: one signed step from x plus noise of `noise` eps, never projected (arXiv:2202.01181, algorithm 1).

    The noise is uniform in the Linf ball of noise * eps, cut to the box as in the authors' code, and the step step_size
    * eps: what is trained on may lie (noise + step_size) eps away. One-step training that does not collapse at the
    usual eps.
    Raises InputError for a threat other than Linf with a finite eps.
    """
    _bounded(threat)
    if threat.norm.name != "linf":
        raise InputError(f"N-FGSM knows Linf alone, not {threat!r}.")

    def perturb(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        eps = _grown(threat, step, ramp).eps
        drawn = 2 * step_noise(seed, ids, "n-fgsm", step, x).uniform(0, x.shape[1:], dtype=x.dtype) - 1
        start = (x + noise * eps * drawn).clamp(*threat.bounds)
        grad = _slope(lambda z: F.cross_entropy(module(z), y, reduction="sum"), start)
        return (start + step_size * eps * grad.sign()).clamp(*threat.bounds)

    return fit.adversarial(_once(perturb))


@telling
def nuclear(threat: Ball, *, weight: float = 4.5, seed: int = 0, ramp: int = 0) -> fit.Objective:
    """Return J(x, y) + weight ||f(x_adv) - f(x)||_* / b: one-step nuclear norm training (NuAT).

    Sriramanan et al. 2021, NeurIPS 34. The nuclear norm is of the batch's change of logits [b, k]: it asks that few
    directions of change are left, whatever the label. x_adv is one signed step of eps from x +- eps/2, projected, which
    climbs the cross-entropy in eval mode and at every second step the nuclear norm too, as in the authors' code. The
    weight grows to its value over the first `ramp` steps (theirs: over all of training). Raises InputError for a threat
    other than Linf with a finite eps.
    """
    _bounded(threat)
    if threat.norm.name != "linf":
        raise InputError(f"Nuclear norm training knows Linf alone, not {threat!r}.")

    def grown(step: int) -> float:
        return weight * min(1.0, (step + 1) / max(1, ramp))

    def perturb(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        signs = step_noise(seed, ids, "nuat", step, x).signs(0, x.shape[1:], dtype=x.dtype)
        start = (x + 0.5 * threat.eps * signs).clamp(*threat.bounds)

        def climbed(z: Tensor) -> Tensor:
            scores = module(z)
            loss = F.cross_entropy(scores, y)
            return loss + grown(step) * _spread(scores - clean) if step % 2 else loss

        with _evaluating(module):
            with torch.no_grad():
                clean = module(x)
            grad = _slope(climbed, start)
        return threat.project(start + threat.eps * grad.sign(), x)

    made = _once(perturb)

    def objective(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        x_adv = made(module, x, y, ids, step)
        hard, clean = module(x_adv), module(x)
        return fit.cross_entropy(clean, y) + grown(step) * _spread(hard - clean)

    return objective


def _spread(change: Tensor) -> Tensor:
    """Return the nuclear norm of [b, k], divided by b."""
    return torch.linalg.matrix_norm(change.float(), "nuc") / len(change)


@telling
def aligned(objective: fit.Objective, threat: Ball, *, weight: float = 0.2, seed: int = 0) -> fit.Objective:
    """Return `objective` plus weight (1 - cos(grad J(x), grad J(x + u))), u uniform in the ball (GradAlign).

    Andriushchenko and Flammarion 2020, arXiv:2007.02617, eq. 5: gradients that agree across the ball keep one-step
    training from collapsing; the price is a second derivative. As in the authors' code the gradient at x is a constant.
    Their weight is 0.2 at 8/255 and 2 at 16/255 on CIFAR-10. Raises InputError as `adversarial`.
    """
    _bounded(threat)

    def regularised(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        def loss(z: Tensor) -> Tensor:
            return F.cross_entropy(module(z), y, reduction="sum")

        here = _slope(loss, x)
        there = _slope(loss, threat.sample(step_noise(seed, ids, "gradalign", step, x), 0, x), create_graph=True)
        agreement = F.cosine_similarity(here.flatten(1), there.flatten(1), dim=1)
        return objective(module, x, y, ids, step) + weight * (1 - agreement).mean()

    return regularised


@telling
def weight_perturbed(objective: fit.Objective, *, gamma: float = 0.005, after: int = 0) -> fit.Objective:
    """Return `objective` at weights moved against it (AWP, Wu et al. 2020, arXiv:2004.05884, eq. 8 and 9).

    Every weight tensor of two or more axes moves gamma of its own norm along its gradient; the loss and its gradient
    are taken there, while the step is made from the weights as they were. From training step `after` on.
    """

    def moved(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        if step < after:
            return objective(module, x, y, ids, step)
        weights = {n: p for n, p in module.named_parameters() if p.requires_grad and p.dim() > 1}
        with _attacked_once():
            loss = objective(module, x, y, ids, step)
            grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            shifted: dict[str, Tensor] = dict(module.named_parameters())
            for (name, p), g in zip(weights.items(), grads, strict=True):
                if g is not None:
                    shifted[name] = p + (gamma * p.detach().norm() / g.norm().clamp(min=1e-12)) * g
            return objective(_At(module, shifted), x, y, ids, step)

    return moved


_KEPT: ContextVar[dict[int, Tensor] | None] = ContextVar("kept", default=None)


@contextmanager
def _attacked_once() -> Iterator[None]:
    """Inside, a batch's adversarial examples are made by its first objective call and used again by the next."""
    before = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(before)


def _kept() -> dict[int, Tensor] | None:
    """Return what is kept now; a function of the module, so that objectives can be pickled by value."""
    return _KEPT.get()


def _once(make: Made) -> Made:
    def perturb(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        kept = _kept()
        if kept is None:
            return make(module, x, y, ids, step)
        if id(perturb) not in kept:
            kept[id(perturb)] = make(module, x, y, ids, step)
        return kept[id(perturb)]

    return perturb


class _At(nn.Module):
    """A module asked with other values in the places of its parameters."""

    def __init__(self, module: nn.Module, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.module, self._values = module, values

    def forward(self, x: Tensor) -> Any:
        """Return the module's answer to x with the other values."""
        return torch.func.functional_call(self.module, self._values, (x,))


class Free:
    """Free adversarial training: one backward pass a step for weights and perturbation (arXiv:1904.12843, algorithm 1).

    An objective with a memory: the loss at x plus a perturbation that begins where the batch before ended and follows,
    at every further visit of the same batch, the gradient that the training's own backward pass left on it. Train with
    `replays` visits a batch (m in the paper). Raises InputError for a threat other than Linf with a finite eps.
    """

    def __init__(self, threat: Ball) -> None:
        _bounded(threat)
        if threat.norm.name != "linf":
            raise InputError(f"Free training knows Linf alone, not {threat!r}.")
        self.threat, self.told = threat, f"Free({threat!r})"
        self._delta: Tensor | None = None
        self._leaf: Tensor | None = None

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        """Return the mean cross-entropy at the perturbed x."""
        delta = self._carried()
        if delta is None or len(delta) < len(x):
            delta = torch.zeros_like(x)
        self._delta = delta
        self._leaf = (x + delta[: len(x)]).clamp(*self.threat.bounds).detach().requires_grad_(True)
        return fit.cross_entropy(module(self._leaf), y)

    def state(self) -> dict[str, Tensor]:
        """Return the perturbation that the next batch begins with: it belongs to the state of a training."""
        delta = self._carried()
        return {} if delta is None else {"delta": delta}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        self._delta, self._leaf = state.get("delta"), None

    def _carried(self) -> Tensor | None:
        """Return the perturbation after the last backward pass; a smaller batch leaves the other rows' as they were."""
        if self._delta is not None and self._leaf is not None and self._leaf.grad is not None:
            eps, grad = self.threat.eps, self._leaf.grad
            moved = (self._delta[: len(grad)] + eps * grad.sign()).clamp(-eps, eps)
            self._delta, self._leaf = torch.cat([moved, self._delta[len(grad) :]]), None
        return self._delta


@telling
def planted(perturbations: Sequence[Tensor], threat: Ball, *, share: float = 0.5, seed: int = 0) -> fit.Objective:
    """Return the mean cross-entropy with a stored perturbation on a `share` of the images, drawn anew at every step.

    Training on universal perturbations (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401, section 4: half of the
    images). `perturbations` are [...] of one example's shape each; what they make is cut to the threat's ball and box.
    Raises InputError when there is none, for a share outside [0, 1], or for a threat without a finite eps.
    """
    _bounded(threat)
    if not len(perturbations) or not 0 <= share <= 1:
        raise InputError(f"Give at least one perturbation and a share from 0 to 1, not {len(perturbations)}, {share}.")
    stored = torch.stack(list(perturbations))

    def perturb(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        luck = step_noise(seed, ids, "planted", step, x)
        chosen = stored.to(x)[luck.integers(0, len(stored))]
        moved = threat.project(x + chosen, x)
        return torch.where((luck.uniform(1, (1,))[:, 0] < share).view(-1, *[1] * (x.dim() - 1)), moved, x)

    return fit.adversarial(perturb)


@telling
def universal(learn: Learn, threat: Ball, *, steps: int, share: float = 0.5, seed: int = 0) -> fit.Objective:
    """Return `planted` with one fresh universal perturbation a round: learned anew after every `steps` steps.

    The rounds of fine-tuning of Moosavi-Dezfooli et al. 2017 (arXiv:1610.08401, section 4). `learn` finds a change that
    fools the module as it is at the beginning of a round; a round of whole epochs is found again by a resumed training.
    Raises InputError as `planted`, or for rounds without steps.
    """
    _bounded(threat)
    if steps < 1:
        raise InputError(f"A round of training on one universal perturbation needs steps, not {steps}.")
    now: dict[int, fit.Objective] = {}

    def objective(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        at = step // steps
        if at not in now or step % steps == 0:
            now.clear()
            now[at] = planted([learn(module, at)], threat, share=share, seed=seed)
        return now[at](module, x, y, ids, step)

    return objective


@telling
def noised(threat: Ball, *, corners: bool = False, seed: int = 0) -> fit.Objective:
    """Return the mean cross-entropy with random changes inside the ball: the control of adversarial training.

    Uniform in the ball, or with `corners` every value moved by eps up or down (Goodfellow et al. 2014, section 6: both
    leave a maxout network at 86% to 90% error under FGSM). Raises InputError for a threat without a finite eps.
    """
    _bounded(threat)

    def perturb(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        luck = step_noise(seed, ids, "noised", step, x)
        if corners:
            return threat.project(x + threat.eps * luck.signs(0, x.shape[1:], dtype=x.dtype), x)
        return threat.sample(luck, 0, x)

    return fit.adversarial(perturb)


@telling
def dropped(*, inputs: float = 0.2, hidden: float = 0.5) -> fit.Objective:
    """Return the mean cross-entropy with dropout of the input and before every linear layer: a control.

    The usual shares (Srivastava et al. 2014, JMLR 15), which Goodfellow et al. 2014 find no help against FGSM; the
    module's first layer sees the dropout of the input alone. Raises InputError for shares outside [0, 1).
    """
    if not (0 <= inputs < 1 and 0 <= hidden < 1):
        raise InputError(f"Shares that are dropped lie from 0 up to 1, not {inputs} and {hidden}.")

    def thinned(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return F.dropout(given[0], hidden), *given[1:]

    def objective(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        layers = [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None]
        hooks = [m.register_forward_pre_hook(thinned) for m in layers[1:] if isinstance(m, nn.Linear)]
        try:
            return fit.cross_entropy(module(F.dropout(x, inputs)), y)
        finally:
            for hook in hooks:
                hook.remove()

    return objective


def attacked(attack: Attack[Any], threat: Ball, *, seed: int = 0, ramp: int = 0) -> Made:
    """Return what makes the attack's last iterates for a training step; raises InputError without a finite eps."""
    _bounded(threat, attack)

    def perturb(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        return last_iterate(attack, module, x, y, _grown(threat, step, ramp), seed=seed, ids=ids.numpy(), step=step)

    return _once(perturb)


def _diverging(attack: Attack[Any], threat: Ball, *, seed: int, ramp: int) -> Made:
    """Return what climbs KL(p(x) || p(.)) for a training step, the module in eval mode meanwhile."""
    _bounded(threat, attack)

    def perturb(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        with _evaluating(module):
            with torch.no_grad():
                clean = module(x)

            def two(z: Tensor) -> Tensor:  # cross-entropy of class 0 is log(1 + exp(KL)), which grows with it
                apart = losses.kl(module(z), clean)
                return torch.stack([torch.zeros_like(apart), apart], 1)

            asked = Target(two, bounds=threat.bounds)
            asked.dtype = x.dtype
            ball = _grown(threat, step, ramp)
            return last_iterate(attack, asked, x, torch.zeros_like(y), ball, seed=seed, ids=ids.numpy(), step=step)

    return _once(perturb)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in eval mode."""
    with flags_kept(module):
        module.eval()
        yield


def _slope(loss: Callable[[Tensor], Tensor], x: Tensor, *, create_graph: bool = False) -> Tensor:
    """Return the gradient of a loss of inputs at x."""
    leaf = x.detach().requires_grad_(True)
    return torch.autograd.grad(loss(leaf), leaf, create_graph=create_graph)[0]


def step_noise(seed: int, ids: Tensor, what: str, step: int, x: Tensor) -> Noise:
    """Return the rows' noise of one training step, on the device of x."""
    return Noise(sent(torch.from_numpy(row_keys(seed, ids.cpu().numpy(), what, step)), x.device))


def _grown(threat: Ball, step: int, ramp: int) -> Ball:
    return replace(threat, eps=threat.eps * min(1.0, (step + 1) / max(1, ramp)))


def _bounded(threat: Ball, attack: Attack[Any] | None = None) -> None:
    if attack is not None and not isinstance(attack, Attack):
        raise InputError(f"An objective takes an attack such as unfooled.attacks.pgd(steps=7), not {attack!r}.")
    if not isinstance(threat, Ball):
        raise InputError(f"An objective takes a threat such as unfooled.linf(0.1), not {threat!r}.")
    if not threat.bounded:
        raise InputError(f"Adversarial training needs a threat with a finite eps, not {threat!r}.")
