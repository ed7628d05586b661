"""Broken targets of the families A to F, each with the interval in which an honest robust accuracy lies.

A wrapper that never changes the winning class has exactly the robust set of the network inside it. Where a wrapper
does change answers, its docstring or comment says how the interval was had: from the network's robust sets at a smaller
and a larger eps (the wrapper moves inputs by at most so much), from a slack in the margin (it moves scores by at most
so much), or from an attack on the target itself that knows its secret, made with the answers. Networks: `digits-cnn`
at linf(0.1), `mnist-cnn` at linf(0.075), and linear targets whose exact distances are known in closed form.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unfooled as uf
from unfooled.targets.zoo import ZOO
from unfooled.testing import Linear, linear_distance

ANSWERS = Path(__file__).with_name("answers.json")
N = 50
EPS = {"digits": 0.1, "mnist": 0.075}
THREAT = {data: f"linf({eps})" for data, eps in EPS.items()}
# what answers.json holds: the networks' worst margins at eps and around it
NEAR = {"digits": (0.095, 0.098, 0.0995, 0.1, 0.1005, 0.102, 0.105, 0.11, 0.12), "mnist": (0.073, 0.075, 0.077)}

Interval = tuple[float, float]


# ---- the networks inside, their images, their honest answers


def net(data: str = "digits") -> nn.Module:
    """Return the undefended network of a data set, weights frozen at what the package ships."""
    return ZOO[f"{data}-cnn"].build()


@functools.cache
def images(data: str, folder: str | None = None) -> tuple[Tensor, Tensor]:
    """Return the first 50 test images x [50, 1, h, w] and labels y [50] of a real data set."""
    found = uf.load_data(data, split="test", limit=N, data_dir=folder)
    return found.x, found.y


@dataclass(frozen=True)
class Flat:
    """A linear target with images and an eps between two of the exact distances, about half of them larger."""

    target: Linear
    x: Tensor
    y: Tensor
    eps: float
    distance: np.ndarray

    @property
    def threat(self) -> str:
        """The threat as text."""
        return f"linf({self.eps})"

    def honest(self, answers: Answers) -> Interval:
        """Return the share of the first images whose exact distance is larger than eps, twice."""
        robust = float((self.distance[: answers.n] > self.eps).mean())
        return robust, robust


@functools.cache
def flat(classes: int, shape: tuple[int, ...] = (1, 8, 8), seed: int = 0) -> Flat:
    """Return a linear case: images on the 8-bit grid, right before any attack."""
    target = Linear.random(shape, classes, seed=seed).eval()
    g = torch.Generator().manual_seed(seed + 1)
    x = (torch.rand(4 * N, *shape, generator=g) * 255).round() / 255
    with torch.no_grad():
        y = target(x).argmax(1)
    some = torch.cat([(y == k).nonzero().flatten()[: math.ceil(N / classes)] for k in range(classes)])
    some = torch.cat([some, torch.tensor([i for i in range(len(x)) if i not in set(some.tolist())])])[:N]
    some = some[torch.randperm(N, generator=g)]
    x, y = x[some], y[some]
    distance = linear_distance(target, x, y, "linf")
    near = np.sort(distance)
    middle = slice(int(0.4 * N), int(0.6 * N))
    at = int(np.argmax(np.diff(near)[middle])) + middle.start  # the widest gap: no image lies close to the boundary
    return Flat(target, x, y, round(float(near[at] + near[at + 1]) / 2, 5), distance)


@dataclass(frozen=True)
class Answers:
    """The honest answers of the networks for the first `n` images, read from answers.json."""

    n: int = N
    stored: dict[str, Any] = field(default_factory=lambda: json.loads(ANSWERS.read_text(encoding="utf-8")))

    def share(self, data: str, eps: float | None = None, slack: float = 0.0, kind: str = "margin") -> float:
        """Return the share of images whose worst margin (`kind` "gap": of probabilities) within eps is over `slack`."""
        worst = self.stored["networks"][data][f"{EPS[data] if eps is None else eps:g}"][kind]
        return float(np.mean(np.array(worst[: self.n]) > slack))

    def case(self, name: str) -> np.ndarray:
        """Return what an attack that knows the case's secret left: the share of right draws per image, [n]."""
        return np.array(self.stored["cases"][name]["survival"][: self.n], dtype=float)


def same(data: str) -> Callable[[Answers], Interval]:
    """The wrapper never changes the winning class: the network's own robust set."""
    return lambda a: (a.share(data), a.share(data))


def moved(data: str, less: float, more: float) -> Callable[[Answers], Interval]:
    """The wrapper moves inputs by at most eps - less, and reaches at least every point of the ball of size less."""
    return lambda a: (a.share(data, more), a.share(data, less))


def slack(data: str, by: float, kind: str = "margin") -> Callable[[Answers], Interval]:
    """The wrapper moves the difference of two scores by at most `by`, so ties lie between the two counts."""
    return lambda a: (a.share(data, slack=by, kind=kind), a.share(data, slack=-by, kind=kind))


def attacked(name: str, low: float = 0.04, high: float = 0.0) -> Callable[[Answers], Interval]:
    """At most what an attack that knows the secret left (a proof), at least that less `low` (it is strong)."""
    return lambda a: (max(0.0, float(a.case(name).mean()) - low), min(1.0, float(a.case(name).mean()) + high))


def random_draws(name: str) -> Callable[[Answers], Interval]:
    """A random target: between the mean survival probability at the worst points found and the share of images that
    survive most draws there, with four points of sampling on each side (an image may be counted either way)."""

    def interval(a: Answers) -> Interval:
        p = a.case(name)
        both = (float(p.mean()), float((p > 0.5).mean()))
        return max(0.0, min(both) - 0.04), min(1.0, max(both) + 0.04)

    return interval


@dataclass(frozen=True)
class Case:
    """A broken target: `make()` builds it fresh; `honest(answers)` is the interval of its robust accuracy.

    `expects`: finding ids of the catalogue that must be present, alternatives joined by "|". `may_withhold` is the
    reason why the evaluation may decline to give a number (or refuse the data), "" when it must give one.
    """

    name: str
    family: str
    make: Callable[[], Any]
    honest: Callable[[Answers], Interval]
    data: str = "digits"
    threat: str = ""
    expects: frozenset[str] = frozenset()
    may_withhold: str = ""
    flat: Flat | None = None
    change: Callable[[Tensor, Tensor], tuple[Any, Any]] | None = None  # what is done to images and labels

    def inputs(self, n: int = N, folder: str | None = None) -> tuple[Any, Any]:
        """Return the first n images and labels as the caller hands them in."""
        x, y = (self.flat.x, self.flat.y) if self.flat else images(self.data, folder if self.data == "mnist" else None)
        x, y = x[:n].clone(), y[:n].clone()
        return self.change(x, y) if self.change else (x, y)

    @property
    def ball(self) -> str:
        """The threat as text."""
        return self.threat or (self.flat.threat if self.flat else THREAT[self.data])


# ---- parts that wrappers are made of


class Head(nn.Module):
    """f(scores of the network)."""

    def __init__(self, base: nn.Module, f: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.base, self.f = base, f

    def forward(self, x: Tensor) -> Any:
        return self.f(self.base(x))


class Pre(nn.Module):
    """The network on g(images)."""

    def __init__(self, base: nn.Module, g: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.base, self.g = base, g

    def forward(self, x: Tensor) -> Tensor:
        return self.base(self.g(x))


class Both(nn.Module):
    """f(network, images): for wrappers that need both."""

    def __init__(self, base: nn.Module, f: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.base, self.f = base, f

    def forward(self, x: Tensor) -> Any:
        return self.f(self.base, x)


class Hidden(nn.Module):
    """A wrapper under other names: nothing in it is called base, model, net or logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.qux = nn.ModuleDict({"a0": inner})

    def forward(self, *stuff: Any) -> Any:
        return self.qux["a0"](*stuff)


def nested(target: nn.Module) -> nn.Module:
    """Return the target in a wrapper, in a Sequential, in a wrapper."""
    return Hidden(nn.Sequential(nn.Identity(), Hidden(target), nn.Identity()))


def traced(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the digits network as a traced graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(module, torch.zeros(2, 1, 8, 8))


class Backward(torch.autograd.Function):
    """The identity, with a backward pass of its own: `rule(grad)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.rule = rule
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.rule(grads[0]), None


def backward(rule: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the identity whose gradient is changed by a rule."""
    return lambda x: Backward.apply(x, rule)


def noise(x: Tensor, seed: int) -> Tensor:
    """Return normal numbers of x's shape that depend on the seed alone."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


@functools.cache
def _cosines() -> Tensor:
    k = torch.arange(8.0)
    table = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / 16) / 2
    table[0] /= math.sqrt(2)
    return table  # [8, 8] orthonormal


def jpeg(x: Tensor, step: float = 0.25) -> Tensor:
    """Return images [b, c, 8, 8] with their cosine coefficients rounded to multiples of `step`."""
    c = _cosines()
    return (c.T @ (torch.round(c @ x @ c.T / step) * step) @ c).clamp(0, 1)


def levels(k: int) -> Callable[[Tensor], Tensor]:
    """Return the rounding of images to k levels."""
    return lambda x: torch.round(x * (k - 1)) / (k - 1)


def plateau(z: Tensor, drop: float = 1e-3) -> Tensor:
    """Return scores that all lie within `drop` of the best one: constant where the lead is larger (D8)."""
    return torch.maximum(z, z.amax(1, keepdim=True) - drop)


def saturated(z: Tensor) -> Tensor:
    """Return squashed scores: 1 for the winner, -1 for the rest, but for the closest of races (D8)."""
    return torch.tanh(50 * (z - z.topk(2, 1).values.mean(1, keepdim=True)))


def scrambled(base: nn.Module, x: Tensor) -> Tensor:
    """All scores but the winner's say nothing (D9)."""
    z = base(x)
    wild = z.amin(1, keepdim=True) - 1 + torch.sin(1e4 * x.flatten(1).sum(1, keepdim=True))
    return torch.where(F.one_hot(z.argmax(1), z.shape[1]).bool(), z, wild)


def decoy_class(base: nn.Module, x: Tensor) -> Tensor:
    """Lift the class after the winner to just below it, wherever the image is: it never wins (D9)."""
    z = base(x)
    top, first = z.max(1)
    other = ((first + 1) % z.shape[1])[:, None]
    lifted = top - 0.07 + 0.02 * torch.sin(1e4 * x.flatten(1).sum(1))
    return z.scatter(1, other, torch.maximum(lifted[:, None], z.gather(1, other)))


def decoy_gradient(base: nn.Module, x: Tensor) -> Tensor:
    """The network's values with the gradient of a random linear map (D3)."""
    other = x.flatten(1) @ noise(torch.empty(x[0].numel(), 10), 5).to(x)
    return base(x.detach()) + (other - other.detach())


def relative_gradient(base: nn.Module, x: Tensor) -> Tensor:
    """The network's values with the gradient of another, hardened network for the same task (D3)."""
    other = ZOO["digits-cnn-robust"].build()(x)
    return base(x.detach()) + (other - other.detach())


def reversed_gradient(base: nn.Module, x: Tensor) -> Tensor:
    """The network's values with the negative of its gradient (D3)."""
    z = base(x)
    return 2 * z.detach() - z


def hooked(base: nn.Module, rule: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return the network with a hook that changes the gradient at its input (D3)."""

    def f(inner: nn.Module, x: Tensor) -> Tensor:
        u = x * 1
        if u.requires_grad:
            u.register_hook(rule)
        return inner(u)

    return Both(base, f)


def noisy(grad: Tensor) -> Tensor:
    """A gradient drowned in noise a hundred times its size (D3)."""
    return grad + 100 * grad.abs().amax() * torch.randn_like(grad)


class KWinners(nn.Module):
    """Keeps the largest share of the activations of an image and zeroes the rest (Xiao et al. 2020)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        k = max(1, int(self.share * flat.shape[1]))
        return x * (flat >= flat.topk(k, 1).values[:, -1:]).view_as(x)


def kwta(share: float = 0.2) -> nn.Module:
    """Return digits-cnn with k-winners-take-all in place of its ReLUs."""
    return nn.Sequential(*[KWinners(share) if isinstance(m, nn.ReLU) else m for m in net()])


def purify(base: nn.Module, x: Tensor, size: float = 0.02) -> Tensor:
    """Step to where the network is surer of itself, with gradients taken inside forward, then classify (D7)."""
    with torch.enable_grad():
        u = x.detach().clone().requires_grad_(True)
        (g,) = torch.autograd.grad(base(u).amax(1).sum(), u)
    return base(x + size * g.sign())


def purify_longer(base: nn.Module, x: Tensor, size: float = 0.01, steps: int = 3) -> Tensor:
    """Three such steps, each with `backward()`, and nothing of it in the graph (D7)."""
    u = x.detach().clone()
    for _ in range(steps):
        u = u.requires_grad_(True)
        with torch.enable_grad():
            F.cross_entropy(base(u), base(u).argmax(1).detach(), reduction="sum").backward()
        u = (u - size * u.grad.sign()).detach()
    return base(x + (u - x).detach())


class Memory(nn.Module):
    """Remembers every image it has answered; what lies within `radius` of one gets the old answer (B6).

    Honest: the network's robust set, which a target that has not seen the clean image shows.
    """

    def __init__(self, base: nn.Module, radius: float) -> None:
        super().__init__()
        self.base, self.radius = base, radius
        self.seen: list[Tensor] = []
        self.said: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        z = self.base(x)
        rows = []
        for image, row in zip(x, z, strict=True):
            if self.seen:
                far = (torch.stack(self.seen) - image.detach()).abs().flatten(1).amax(1)
                if float(far.min()) <= self.radius:
                    rows.append(self.said[int(far.argmin())] + 0 * row)
                    continue
            if len(self.seen) < 2000:
                self.seen.append(image.detach().clone())
                self.said.append(row.detach().clone())
            rows.append(row)
        return torch.stack(rows)


class Drift(nn.Module):
    """Answers like the network for a while, then with its classes shifted (B6)."""

    def __init__(self, base: nn.Module, calls: int | None = None, rows: int | None = None) -> None:
        super().__init__()
        self.base, self.calls, self.rows = base, calls, rows
        self.asked = self.shown = 0

    def forward(self, x: Tensor) -> Tensor:
        z = self.base(x)
        self.asked, self.shown = self.asked + 1, self.shown + len(x)
        late = (self.calls is not None and self.asked > self.calls) or (
            self.rows is not None and self.shown > self.rows
        )
        return z.roll(1, 1) if late else z


class Picky(nn.Module):
    """Accepts batches only of the widths that `fits` allows."""

    def __init__(self, base: nn.Module, fits: Callable[[int], bool], error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.base, self.fits, self.error = base, fits, error

    def forward(self, x: Tensor) -> Tensor:
        if not self.fits(len(x)):
            raise self.error(f"a batch of {len(x)} images does not fit")
        return self.base(x)


class Trained(nn.Module):
    """The network between a BatchNorm that is the identity in eval mode and a Dropout, left in training mode (B1)."""

    def __init__(self, base: nn.Module, drop: float = 0.0, *, norm: bool = True) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(1) if norm else nn.Identity()
        if isinstance(self.norm, nn.BatchNorm2d):
            self.norm.running_var = torch.ones(1) - self.norm.eps
        self.drop, self.base = nn.Dropout(drop), base
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(self.drop(self.norm(x)))


class KnowsBall(nn.Module):
    """Changes its answer as soon as an image has left the ball around every original, by float64 arithmetic (E4).

    Inside the ball it is the network, so an evaluation that keeps to the ball finds the network's robust set.
    """

    def __init__(self, base: nn.Module, x: Tensor, eps: float) -> None:
        super().__init__()
        self.base, self.eps = base, eps
        self.register_buffer("x", x.double())

    def forward(self, v: Tensor) -> Tensor:
        far = (v.detach().double()[:, None] - self.x[None]).abs().flatten(2).amax(2).amin(1)
        z = self.base(v)
        return torch.where((far > self.eps)[:, None], z.roll(1, 1), z)


def numpy_digits(x: Tensor) -> Tensor:
    """digits-cnn in NumPy: no module, no graph (D2)."""
    state = {k: v.numpy() for k, v in _state().items()}

    def conv(v: np.ndarray, name: str, stride: int) -> np.ndarray:
        v = np.pad(v, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(v, (3, 3), (2, 3))[:, :, ::stride, ::stride]
        out = np.tensordot(windows, state[f"{name}.weight"], ((1, 4, 5), (1, 2, 3)))
        return np.maximum(out.transpose(0, 3, 1, 2) + state[f"{name}.bias"][:, None, None], 0)

    v = conv(conv(x.detach().numpy(), "0", 1), "2", 2).reshape(len(x), -1)
    v = np.maximum(v @ state["5.weight"].T + state["5.bias"], 0)
    return torch.from_numpy((v @ state["7.weight"].T + state["7.bias"]).astype(np.float32))


@functools.cache
def _state() -> dict[str, Tensor]:
    return net().state_dict()


def closure(data: str, f: Callable[[nn.Module, Tensor], Any]) -> Callable[[Tensor], Any]:
    """Return a plain function that has the network in its closure."""
    inner = net(data)

    def answer(batch: Tensor) -> Any:
        return f(inner, batch)

    return answer


@dataclass
class Output:
    """What some libraries return."""

    logits: Tensor
    loss: Tensor | None = None
    hidden: tuple[Tensor, ...] = ()


Named = namedtuple("Named", "prediction embedding")


def no_grad(base: nn.Module, x: Tensor) -> Tensor:
    """The network under no_grad (D2)."""
    with torch.no_grad():
        return base(x)


def inference(base: nn.Module, x: Tensor) -> Tensor:
    """The network under inference_mode (D2)."""
    with torch.inference_mode():
        return base(x)


def through_numpy(x: Tensor) -> Tensor:
    """Images that went through NumPy (D2)."""
    return torch.from_numpy(np.asarray(x.detach().cpu().numpy()).copy())


def in_place(base: nn.Module, x: Tensor) -> Tensor:
    """Normalise in place, then undo it on a copy (B4)."""
    x.sub_(0.5).div_(0.5)
    return base(x * 0.5 + 0.5)


def leaks_grad_mode(base: nn.Module, x: Tensor) -> Tensor:
    """Leave autograd switched off behind (B5)."""
    z = base(x)
    torch.set_grad_enabled(False)
    return z


def leaks_dtype(base: nn.Module, x: Tensor) -> Tensor:
    """Leave float64 as the default dtype behind (B5)."""
    z = base(x)
    torch.set_default_dtype(torch.float64)
    return z


def leaks_seed(base: nn.Module, x: Tensor) -> Tensor:
    """Seed torch in every call (B5)."""
    torch.manual_seed(0)
    return base(x)


def half(base: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the network in half precision."""
    return base.to(dtype)


def reject(z: Tensor, confidence: float = 0.9) -> Tensor:
    """Append a class that wins below a confidence: the target abstains (C8)."""
    p = F.softmax(z, 1).amax(1, keepdim=True)
    lead = torch.where(p < confidence, 1.0, -1.0)
    return torch.cat([z, z.amax(1, keepdim=True) + lead], 1)


def off_grid(x: Tensor, steps: int = 255) -> Tensor:
    """Return which images [b] do not lie on the grid of 8-bit values."""
    return ((x * steps - (x * steps).round()).abs().flatten(1).amax(1) > 1e-3).detach()


def nan_off_grid(base: nn.Module, x: Tensor) -> Tensor:
    """NaN for images that no 8-bit file can hold (C5)."""
    return torch.where(off_grid(x)[:, None], torch.nan, base(x))


def shattered(z: Tensor) -> Tensor:
    """Positive scores times a wild positive factor: the winner stays, the gradient means nothing (D4)."""
    wild = 1 + 0.9 * torch.sin(1e5 * z.sum(1, keepdim=True))
    return (z - z.amax(1, keepdim=True)) * wild


def fake_quantised(z: Tensor) -> Tensor:
    """Scores rounded to sixteenths (C6)."""
    return torch.round(z * 16) / 16


def input_noise(sigma: float) -> Callable[[Tensor], Tensor]:
    """Return the addition of fresh noise to every image (B2)."""
    return lambda x: x + sigma * torch.randn_like(x)


def shifted(x: Tensor) -> Tensor:
    """Images moved by -1, 0 or 1 pixels to a side, drawn for each call (B2, after Xie et al. 2018)."""
    return torch.roll(x, int(torch.randint(-1, 2, ())), 3)


def coupled(share: float) -> Callable[[Tensor], Tensor]:
    """Return the mixture of every image with the mean of its batch (B7)."""
    return lambda x: x - share * (x.mean(0, keepdim=True) - 0.3)


def batch_statistics(x: Tensor) -> Tensor:
    """Images brought to the mean and spread of digits by the statistics of their batch (B7)."""
    return ((x - x.mean()) / x.std().clamp_min(1e-6)) * 0.376 + 0.305


# ---- the cases

Cases = dict[str, Case]
CASES: Cases = {}


def _add(
    name: str,
    family: str,
    make: Callable[[], Any],
    *,
    data: str = "digits",
    honest: Callable[[Answers], Interval] | None = None,
    expects: Sequence[str] | None = None,
    **more: Any,
) -> None:
    assert name not in CASES, name
    given: Flat | None = more.get("flat")
    kept = honest or (given.honest if given else same(data))
    wanted = frozenset((family,) if expects is None else expects)
    CASES[name] = Case(name, family, make, kept, data=data, expects=wanted, **more)


def _head(name: str, family: str, f: Callable[[Tensor], Any], data: str = "digits", **more: Any) -> None:
    _add(name, family, lambda: Head(net(data), f), data=data, **more)


def _pre(name: str, family: str, g: Callable[[Tensor], Tensor], data: str = "digits", **more: Any) -> None:
    _add(name, family, lambda: Pre(net(data), g), data=data, **more)


def _both(name: str, family: str, f: Callable[[nn.Module, Tensor], Any], data: str = "digits", **more: Any) -> None:
    _add(name, family, lambda: Both(net(data), f), data=data, **more)


_WRONG_DATA = "what was handed in does not fit the target: there is no honest number"

# A: images, labels and eps that do not fit the target (any number may be refused; a trusted one may not be)
_pre("wants-0-255", "A1", lambda x: x / 255, honest=lambda a: (0.0, 0.2), may_withhold=_WRONG_DATA)
_add(
    "normalised-outside",
    "A1",
    net,
    may_withhold=_WRONG_DATA,
    honest=lambda a: (0.0, 0.0),
    change=lambda x, y: ((x - 0.305) / 0.376, y),
)
_add(
    "one-bad-pixel",
    "A4",
    net,
    change=lambda x, y: (_poisoned(x), y),
    expects=(),
    honest=lambda a: (a.share("digits") - 0.02, a.share("digits") + 0.02),
)  # the image with NaN is left out
_add(
    "eps-in-grey-levels", "A2", net, threat="linf(8)", may_withhold=_WRONG_DATA, honest=lambda a: (0.0, 0.0), expects=()
)
_both(
    "only-between-levels",
    "A3",
    lambda b, x: (lambda z: torch.where(off_grid(x)[:, None], z.roll(1, 1), z))(b(x)),
    data="mnist",
    honest=lambda a: (0.0, 0.0),
)  # any image off the grid is a success; on the grid it is the network
_add("labels-in-a-column", "A5", net, change=lambda x, y: (x, y[:, None]), expects=())
_add("labels-one-hot", "A5", net, change=lambda x, y: (x, F.one_hot(y, 10)), expects=())
_add(
    "label-out-of-range",
    "A5",
    net,
    change=lambda x, y: (x, torch.where(torch.arange(len(y)) == 3, 10, y)),
    may_withhold=_WRONG_DATA,
    honest=lambda a: (a.share("digits") - 0.02, a.share("digits")),
    expects=(),
)
_head(
    "class-order-shifted",
    "A5",
    lambda z: z.roll(3, 1),
    may_withhold=_WRONG_DATA,
    honest=lambda a: (0.0, 0.06),
    expects=(),
)
_head("background-class-first", "A5", lambda z: F.pad(z, (1, 0), value=-50.0), expects=())

# B: modes, randomness, state, batches
_add("batchnorm-left-training", "B1", lambda: Trained(net()))
_add("dropout-left-training", "B1", lambda: Trained(net(), 0.5, norm=False))
_pre("input-noise", "B2", input_noise(0.05), honest=random_draws("input-noise"), expects=("B2|D6",))
_head(
    "logit-noise", "D6", lambda z: z + 1.0 * torch.randn_like(z), honest=random_draws("logit-noise"), expects=("B2|D6",)
)
_pre(
    "dropout-at-test-time",
    "B2",
    lambda x: F.dropout(x, 0.1, training=True),
    honest=random_draws("dropout-at-test-time"),
    expects=("B2|D6",),
)
_pre("random-shift", "B2", shifted, honest=random_draws("random-shift"), expects=("B2|D6",))
_both("normalises-in-place", "B4", in_place)
_both("leaks-grad-mode", "B5", leaks_grad_mode)
_both("leaks-default-dtype", "B5", leaks_dtype)
_both("seeds-torch", "B5", leaks_seed)
_STATE = "its answers depend on what it was asked before"
_add("memory", "B6", lambda: Memory(net(), 0.1), may_withhold=_STATE)
_add("memory-mnist", "B6", lambda: Memory(net("mnist"), 0.075), data="mnist", may_withhold=_STATE)
_add("memory-in-a-closure", "B6", lambda: (lambda m: lambda x: m(x))(Memory(net(), 0.1)), may_withhold=_STATE)
_add("drift-after-100-calls", "B6", lambda: Drift(net(), calls=100), may_withhold=_STATE)
_add("drift-after-3000-images", "B6", lambda: Drift(net(), rows=3000), may_withhold=_STATE)
_BATCH = "its answers depend on the other images of the batch: whose images those are decides the number"
_pre("batch-mean", "B7", coupled(0.5), may_withhold=_BATCH, honest=attacked("batch-mean", 0.1, 0.1))
_pre("batch-statistics", "B7", batch_statistics, may_withhold=_BATCH, honest=attacked("batch-statistics", 0.1, 0.1))
_add("fixed-batch-of-8", "B8", lambda: Picky(net(), lambda n: n == 8))
_add("batch-of-1-refused", "B8", lambda: Picky(net(), lambda n: n > 1, ValueError), expects=())
_add("at-most-16-images", "F5", lambda: Picky(net(), lambda n: n <= 16, torch.OutOfMemoryError), expects=())

# C: what comes out
_head("softmax-sharp", "C1", lambda z: F.softmax(z * 1e3, 1))
_head("softmax-sharp-mnist", "C1", lambda z: F.softmax(z * 1e3, 1), data="mnist")
_head("softmax-mild", "C1", lambda z: F.softmax(z, 1))
_head("log-softmax", "C1", lambda z: F.log_softmax(z, 1), expects=())
_head("log-softmax-sharp", "C1", lambda z: F.log_softmax(z * 1e4, 1), expects=("C1|C7",))
_head("sigmoid-scores", "C1", lambda z: torch.sigmoid(z / 4), expects=())
_head("tuple", "C2", lambda z: (z,))
_head("tuple-with-features", "C2", lambda z: (z, torch.zeros(len(z), 3, 4)))
_head("dict", "C2", lambda z: {"loss": None, "logits": z})
_head("dict-other-name", "C2", lambda z: {"aux": torch.zeros(len(z)), "y_hat": z})
_head("dataclass", "C2", lambda z: Output(z))
_head("namedtuple", "C2", lambda z: Named(z, torch.zeros(len(z), 2, 3, 4)))
_two, _three, _five = flat(2), flat(3, seed=3), flat(5, seed=5)


def _margin(z: Tensor) -> Tensor:
    return z[:, 1] - z[:, 0]


_add("one-logit", "C3", lambda: Head(_two.target, _margin), flat=_two)
_add("one-logit-column", "C3", lambda: Head(_two.target, lambda z: _margin(z)[:, None]), flat=_two)
_add(
    "one-probability",
    "C3",
    lambda: Head(_two.target, lambda z: torch.sigmoid(_margin(z))[:, None]),
    flat=_two,
    expects=("C1|C3",),
)
_add("two-classes", "C4", lambda: _two.target, flat=_two, expects=())
_add("three-classes", "C4", lambda: _three.target, flat=_three, expects=())
_add(
    "five-classes-sharp-softmax",
    "C4",
    lambda: Head(_five.target, lambda z: F.softmax(z * 1e3, 1)),
    flat=_five,
    expects=("C1",),
)
_both("nan-off-grid", "C5", nan_off_grid, data="mnist", honest=attacked("nan-off-grid", 0.1))
_both(
    "nan-when-bright",
    "C5",
    lambda b, x: b(x) + torch.where(x.flatten(1).mean(1) > 0.36, torch.nan, 0.0)[:, None],
    may_withhold="a tenth of the images have no answer",
    honest=attacked("nan-when-bright", 0.1, 0.2),
)
_head("scores-in-sixteenths", "C6", fake_quantised, honest=slack("digits", 1 / 8), expects=("D1|C6",))
_head("logits-x1e5", "C7", lambda z: z * 1e5)
_head("logits-x1e5-mnist", "C7", lambda z: z * 1e5, data="mnist")
_head("logits-x1e-6", "C7", lambda z: z * 1e-6)
_head("logits-plus-1e6", "C7", lambda z: z + 1e6, honest=slack("digits", 0.125))  # float32 has sixteenths there
_head("rejects-below-90", "C8", reject, honest=attacked("rejects-below-90", 0.1, 0.06))
_head(
    "constant",
    "C9",
    lambda z: torch.eye(10)[0].expand(len(z), 10) + 0 * z.sum(),
    expects=("C9",),
    may_withhold="no prediction ever changes",
    honest=lambda a: (0.0, 0.2),
)

# D: gradients and landscapes
# at eps 0.1 black pixels would reach the edge between two levels, 0.1 * 15 = 1.5, and an ulp would decide
_pre(
    "round-16-levels", "D1", levels(16), threat="linf(0.11)", honest=attacked("round-16-levels", 0.06), expects=("D1",)
)
_pre("round-8-bit", "D1", levels(256), honest=moved("digits", 0.098, 0.102), expects=("D1",))
_pre("round-8-bit-mnist", "D1", levels(256), data="mnist", honest=moved("mnist", 0.073, 0.077), expects=("D1",))
_pre("jpeg-like", "D1", jpeg, honest=attacked("jpeg-like", 0.12), expects=("D1",))
_head("hard-labels", "D1", lambda z: F.one_hot(z.argmax(1), z.shape[1]).to(z), expects=("D1|D2",))
_head("hard-labels-mnist", "D1", lambda z: F.one_hot(z.argmax(1), z.shape[1]).to(z), expects=("D1|D2",), data="mnist")
_head(
    "probabilities-to-one-decimal",
    "D1",
    lambda z: torch.round(F.softmax(z, 1) * 10) / 10,
    honest=slack("digits", 0.1001, "gap"),
    expects=("C1|C6|D1",),
)
_pre("zero-backward", "D1", backward(torch.zeros_like))
_pre("detach", "D2", lambda x: x.detach().clone())
_both("no-grad", "D2", no_grad)
_both("inference-mode", "D2", inference)
_pre("numpy-round-trip", "D2", through_numpy)
_add("numpy-network", "D2", lambda: numpy_digits)
_add("numpy-network-saturated", "D2", lambda: lambda x: F.softmax(numpy_digits(x) * 100, 1))
_add("closure-detached-mnist", "D2", lambda: closure("mnist", lambda b, x: b(x.detach())), data="mnist")
_both("decoy-gradient", "D3", decoy_gradient)
_both("decoy-gradient-mnist", "D3", decoy_gradient, data="mnist")
_both("reversed-gradient", "D3", reversed_gradient)
_both("decoy-gradient-of-a-relative", "D3", relative_gradient, expects=("D3|E7",))
_pre("reversed-backward", "D3", backward(torch.neg))
_add("reversed-by-hook", "D3", lambda: hooked(net(), torch.neg))
_add("noisy-by-hook", "D3", lambda: hooked(net(), noisy))
_add("shuffled-by-hook", "D3", lambda: hooked(net(), lambda g: g.flip(2).roll(3, 3)))
_pre("exploding-backward", "D3", backward(lambda g: g * 1e38 * 1e3), expects=("D3|D5",))
_pre(
    "high-frequency",
    "D4",
    lambda x: x + 2e-3 * torch.sin(1e5 * x),
    expects=("D3|D4",),
    honest=moved("digits", 0.098, 0.102),
)
_pre(
    "jumping-pixels",
    "D4",
    lambda x: x + 5e-3 * torch.sign(torch.sin(1e4 * x)).detach(),
    honest=moved("digits", 0.095, 0.105),
    expects=(),
)
_head("shattered-scores", "D4", shattered)
_add("k-winners", "D4", lambda: kwta(), honest=attacked("k-winners", 0.2), expects=())
_pre("nan-gradient", "D5", lambda x: torch.sqrt(x) ** 2)
_pre("nan-backward", "D5", backward(lambda g: g * torch.nan))
_both("purifies", "D7", purify, honest=attacked("purifies", 0.12))
_both("purifies-longer", "D7", purify_longer, honest=attacked("purifies-longer", 0.12))
_head("plateau", "D8", plateau)
_head("saturated-lead", "D8", saturated)
_both("scrambled-runners-up", "D9", scrambled, expects=("D3|D4|D9",))
_head("plateau-mnist", "D8", plateau, data="mnist")
_both("decoy-class", "D9", decoy_class, expects=("D3|D4|D9",))

# E, F: the ball, the precision, memory; names and nesting
_add("knows-its-ball", "E4", lambda: KnowsBall(net(), images("digits")[0], 0.1), expects=())
_add("half-precision", "F1", lambda: half(net(), torch.float16), honest=moved("digits", 0.0995, 0.1005), expects=())
_add("bfloat16", "F1", lambda: half(net(), torch.bfloat16), honest=moved("digits", 0.095, 0.105), expects=())
_add("float64", "F2", lambda: net().double(), expects=())
_add("traced", "C2", lambda: traced(net()), expects=())
_add("flat-rows", "E8", lambda: flat(3, (64,), 7).target, flat=flat(3, (64,), 7), expects=())
_add("odd-shape", "E8", lambda: flat(4, (1, 3, 5), 9).target, flat=flat(4, (1, 3, 5), 9), expects=())
_add("nested-decoy-gradient", "D3", lambda: nested(Both(net(), decoy_gradient)))
_add("nested-softmax-sharp", "C1", lambda: nested(Head(net(), lambda z: F.softmax(z * 1e3, 1))))
_add("nested-rounding", "D1", lambda: nested(Pre(net(), levels(256))), honest=moved("digits", 0.098, 0.102))
_add("closure-reversed", "D3", lambda: closure("digits", reversed_gradient))
_add(
    "classes-otherwise-named",
    "D1",
    lambda: uf.Target(Hidden(Pre(net(), backward(torch.zeros_like))), name="x", classes=[f"c{i}" for i in range(10)]),
)
_add("wrapped-honest", "-", lambda: nested(net()), expects=())


def _poisoned(x: Tensor) -> Tensor:
    x[7, 0, 2, 2] = torch.nan
    return x
