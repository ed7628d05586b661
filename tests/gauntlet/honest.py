"""Honest targets of many architectures and trainings on the digits: on these the doctor has to be silent.

Each is trained for a few seconds on the training part (or fitted in closed form) and cached where the caller says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import unfooled as uf
from unfooled.attacks import pgd
from unfooled.core.fit import Objective, fit, standard
from unfooled.harden.objectives import adversarial
from unfooled.targets.zoo import ZOO, digits_cnn

from .broken import traced

EPS = 0.1


# ---- architectures


class Skip(nn.Module):
    """x + f(x)."""

    def __init__(self, *f: nn.Module) -> None:
        super().__init__()
        self.f = nn.Sequential(*f)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class Joined(nn.Module):
    """The outputs of several branches, along the channels; with `keep` the input too, as dense networks do."""

    def __init__(self, *branches: nn.Module, keep: bool = False) -> None:
        super().__init__()
        self.branches, self.keep = nn.ModuleList(branches), keep

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.keep + [f(x) for f in self.branches], 1)


class Excite(nn.Module):
    """Channels weighted by what their means say (squeeze and excitation)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(channels, 8), nn.ReLU(), nn.Linear(8, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.f(x.mean((2, 3)))[:, :, None, None]


class Maxout(nn.Module):
    """The largest of k linear maps."""

    def __init__(self, i: int, o: int, k: int = 3) -> None:
        super().__init__()
        self.f, self.k = nn.Linear(i, o * k), k

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x).unflatten(1, (-1, self.k)).amax(2)


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


class Rows(nn.Module):
    """A recurrent network that reads the image row by row."""

    def __init__(self, cell: type[nn.RNNBase], *, both: bool = False, all_rows: bool = False) -> None:
        super().__init__()
        self.cell = cell(8, 48, batch_first=True, bidirectional=both)
        self.head, self.all_rows = nn.Linear(48 * (1 + both) * (8 if all_rows else 1), 10), all_rows

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.cell(x[:, 0])
        return self.head(out.flatten(1) if self.all_rows else out[:, -1])


class ViT(nn.Module):
    """A small vision transformer on 2 x 2 patches."""

    def __init__(self, width: int = 48, depth: int = 2, *, pool: str = "mean") -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.place = nn.Parameter(torch.randn(1, 17, width) * 0.1)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        layer = nn.TransformerEncoderLayer(width, 4, 96, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head, self.pool = nn.Linear(width, 10), pool

    def forward(self, x: Tensor) -> Tensor:
        v = self.patch(x).flatten(2).transpose(1, 2)
        v = self.body(torch.cat([self.first.expand(len(v), -1, -1), v], 1) + self.place)
        return self.head(v.mean(1) if self.pool == "mean" else v[:, 0])


class AttentionPool(nn.Module):
    """Pixels weighted by their own scores, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.weigh = nn.Conv2d(1, 48, 3, padding=1), nn.Conv2d(48, 8, 1)
        self.head = nn.Linear(48 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        v = F.relu(self.see(x))
        a = F.softmax(self.weigh(v).flatten(2), 2)  # [b, 8, 64]
        return self.head((a @ v.flatten(2).transpose(1, 2)).flatten(1))


class Mixer(nn.Module):
    """An MLP-mixer on 2 x 2 patches."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.tokens = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2))
        self.width = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 96), nn.GELU(), nn.Linear(96, width)) for _ in range(2)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        v = self.patch(x).flatten(2)
        for tokens, width in zip(self.tokens, self.width, strict=True):
            v = v + tokens(v)
            v = v + width(v.transpose(1, 2)).transpose(1, 2)
        return self.head(v.mean(2))


class Prototypes(nn.Module):
    """Scores by distance to prototypes, `soft` over several per class."""

    def __init__(self, per_class: int = 4, gamma: float = 1.0) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.rand(10 * per_class, 64))
        self.gamma = nn.Parameter(torch.tensor(gamma))

    def forward(self, x: Tensor) -> Tensor:
        d = (x.flatten(1)[:, None] - self.points).square().sum(2)
        return torch.logsumexp((-self.gamma * d).unflatten(1, (10, -1)), 2)


class Radial(nn.Module):
    """A linear layer on radial basis functions."""

    def __init__(self, units: int = 100) -> None:
        super().__init__()
        self.points, self.head = nn.Parameter(torch.rand(units, 64)), nn.Linear(units, 10)

    def forward(self, x: Tensor) -> Tensor:
        d = (x.flatten(1)[:, None] - self.points).square().sum(2)
        return self.head(torch.exp(-0.2 * d))


class Cosine(nn.Module):
    """Scores by the cosine of features and class weights, times a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.f = mlp(64)[:-1]
        self.weight = nn.Parameter(torch.randn(10, 64))

    def forward(self, x: Tensor) -> Tensor:
        return 10 * F.normalize(self.f(x), dim=1) @ F.normalize(self.weight, dim=1).T


class Mean(nn.Module):
    """The mean of the logits of several networks."""

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([m(x) for m in self.members]).mean(0)


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU, out: int = 10) -> nn.Sequential:
    """Return a multilayer perceptron on 64 pixels."""
    layers: list[nn.Module] = [nn.Flatten()]
    size = 64
    for width in widths:
        layers += [nn.Linear(size, width), act()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, out))


def cnn(
    *, act: Callable[[], nn.Module] = nn.ReLU, norm: Callable[[int], nn.Module] | None = None,
    pool: nn.Module | None = None, kernel: int = 3, width: int = 16, after: Callable[[], nn.Module] | None = None,
) -> nn.Sequential:  # fmt: skip
    """Return two convolutions and a linear layer; with a pool the second is not strided."""
    pad = kernel // 2
    parts: list[nn.Module | None] = [
        nn.Conv2d(1, width, kernel, padding=pad), norm(width) if norm else None, act(),
        nn.Conv2d(width, 2 * width, kernel, stride=1 if pool else 2, padding=pad), norm(2 * width) if norm else None,
        act(), pool, after() if after else None, nn.Flatten(), nn.Linear(32 * width, 10),
    ]  # fmt: skip
    return nn.Sequential(*[p for p in parts if p is not None])


def res(*, norm: bool = True) -> nn.Sequential:
    """Return a small residual network."""

    def block() -> nn.Module:
        def bn() -> nn.Module:
            return nn.BatchNorm2d(16) if norm else nn.Identity()

        return Skip(bn(), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), bn(), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), block(), block(), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 10)
    )


def dense() -> nn.Sequential:
    """Return a small densely connected network."""

    def block(i: int) -> nn.Module:
        return Joined(nn.Sequential(nn.BatchNorm2d(i), nn.ReLU(), nn.Conv2d(i, 8, 3, padding=1)), keep=True)

    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), block(8), block(16), block(24), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(128, 10)
    )


# ---- trainings


def loss(f: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """Return the objective for a loss of (scores, labels)."""
    return lambda module, x, y, ids, step: f(module(x), y)


def smoothing(share: float) -> Objective:
    """Return cross-entropy with smoothed labels."""
    return loss(lambda z, y: F.cross_entropy(z, y, label_smoothing=share))


def mixup(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
    """Train on mixtures of two images each."""
    share, other = torch.rand(len(x), 1, 1, 1), torch.randperm(len(x))
    z = module(share * x + (1 - share) * x[other])
    share = share.flatten()
    return (share * F.cross_entropy(z, y, reduction="none")).mean() + (
        (1 - share) * F.cross_entropy(z, y[other], reduction="none")
    ).mean()


def gaussian(sigma: float) -> Objective:
    """Return cross-entropy on noisy images."""
    return lambda module, x, y, ids, step: F.cross_entropy(module((x + sigma * torch.randn_like(x)).clamp(0, 1)), y)


def trades(eps: float, beta: float = 4.0) -> Objective:
    """Return the loss of Zhang et al. 2019: clean cross-entropy and the divergence at the worst point found for it."""

    def objective(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        clean = F.log_softmax(module(x), 1)
        v = (x + 0.001 * torch.randn_like(x)).clamp(0, 1)
        for _ in range(5):
            v.requires_grad_(True)
            far = F.kl_div(F.log_softmax(module(v), 1), clean.detach(), log_target=True, reduction="sum")
            (g,) = torch.autograd.grad(far, v)
            v = (v.detach() + eps / 3 * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
        apart = F.kl_div(F.log_softmax(module(v), 1), clean, log_target=True, reduction="batchmean")
        return F.nll_loss(clean, y) + beta * apart

    return objective


def hardened(eps: float, steps: int = 5) -> Objective:
    """Return the loss on PGD examples."""
    return adversarial(pgd(steps=steps, step_size=0.4), uf.linf(eps), ramp=40)


def focal(z: Tensor, y: Tensor) -> Tensor:
    """Return the loss of Lin et al. 2017 with exponent 2."""
    cost = F.cross_entropy(z, y, reduction="none")
    return ((1 - (-cost).exp()) ** 2 * cost).mean()


def smooth_gradient(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
    """Cross-entropy and a penalty on its gradient at the image."""
    x = x.clone().requires_grad_(True)
    cost = F.cross_entropy(module(x), y)
    (g,) = torch.autograd.grad(cost * len(x), x, create_graph=True)
    return cost + 0.2 * g.square().sum((1, 2, 3)).mean()


# ---- the targets


@dataclass(frozen=True)
class Honest:
    """A target to train: `make()` an untrained module, `objective` and length of training, `finish(module)` the target.

    `classes` keeps the images of the first classes only; `scale` (a, b) hands in a x + b, with these bounds.
    """

    name: str
    make: Callable[[], nn.Module]
    objective: Objective = standard
    epochs: int = 12
    lr: float = 5e-3
    decay: float = 0.0
    finish: Callable[[nn.Module], Any] = lambda module: module
    classes: int = 10
    rows: int = 1000
    scale: tuple[float, float] = (1.0, 0.0)

    @property
    def threat(self) -> str:
        """The threat as text."""
        return f"linf({EPS * self.scale[0]:g})"

    def _part(self, split: str, limit: int | None) -> tuple[Tensor, Tensor]:
        data = uf.load_data("digits", split=split)
        keep = data.y < self.classes
        return (data.x[keep] * self.scale[0] + self.scale[1])[:limit], data.y[keep][:limit]

    def images(self, n: int) -> tuple[Tensor, Tensor]:
        """Return the first n test images and labels."""
        return self._part("test", n)

    def build(self, cache: Path) -> Any:
        """Return the target, trained now or read from the cache."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(hashlib.sha256(self.name.encode()).hexdigest()[:8], 16))
            module = self.make()
        file = cache / f"{self.name}-{self.epochs}-{self.lr:g}-{self.decay:g}-{self.rows}.safetensors"
        if file.is_file():
            module.load_state_dict(load_file(file))
        elif self.epochs and any(p.requires_grad for p in module.parameters()):
            x, y = self._part("train", self.rows)
            fit(
                module, x, y, self.objective, epochs=self.epochs, batch_size=64, lr=self.lr, weight_decay=self.decay
            )  # fmt: skip
            cache.mkdir(parents=True, exist_ok=True)
            fresh = file.with_suffix(".new")
            save_file({k: v.detach().clone().contiguous() for k, v in module.state_dict().items()}, fresh)
            fresh.replace(file)
        return self.finish(module.eval())


def _ridge() -> nn.Module:
    """Least squares on one-hot labels, in closed form."""
    data = uf.load_data("digits", split="train")
    x = torch.cat([data.x.flatten(1), torch.ones(len(data), 1)], 1).double()
    target = F.one_hot(data.y, 10).double() * 2 - 1
    w = torch.linalg.solve(x.T @ x + 10 * torch.eye(65).double(), x.T @ target).float()
    return _linear(w[:64].T, w[64])


def _centroids() -> nn.Module:
    """The nearest mean of a class."""
    data = uf.load_data("digits", split="train")
    m = torch.stack([data.x.flatten(1)[data.y == k].mean(0) for k in range(10)])
    return _linear(2 * m, -m.square().sum(1))


def _bayes() -> nn.Module:
    """Gaussian naive Bayes with a floor under the variances."""
    data = uf.load_data("digits", split="train")
    groups = [data.x.flatten(1)[data.y == k] for k in range(10)]
    m, v = torch.stack([g.mean(0) for g in groups]), torch.stack([g.var(0) for g in groups]) + 0.05
    return Lambda(lambda x: -((x.flatten(1)[:, None] - m) ** 2 / v + v.log()).sum(2) / 2)


def _linear(w: Tensor, b: Tensor) -> nn.Module:
    module = nn.Linear(64, 10)
    with torch.no_grad():
        module.weight.copy_(w)
        module.bias.copy_(b)
    return nn.Sequential(nn.Flatten(), module)


def _scaled(by: float) -> Callable[[nn.Module], nn.Module]:
    return lambda module: nn.Sequential(module, Lambda(lambda z: z * by))


def _normal(module: nn.Module) -> nn.Module:
    return nn.Sequential(Lambda(lambda x: (x - 0.305) / 0.376), module)


def _on_normal(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
    return standard(_normal(module), x, y, ids, step)


def _plain(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda batch: module(batch)


def _all() -> list[Honest]:
    acts: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "silu": nn.SiLU, "sigmoid": nn.Sigmoid, "elu": nn.ELU,
        "leaky": nn.LeakyReLU, "softplus": nn.Softplus, "mish": nn.Mish, "hardtanh": nn.Hardtanh, "prelu": nn.PReLU,
    }  # fmt: skip
    h = Honest
    return [
        h("linear", lambda: mlp()),
        h("linear-decay", lambda: mlp(), decay=1.0),
        h("ridge", _ridge, epochs=0),
        h("centroids", _centroids, epochs=0),
        h("naive-bayes", _bayes, epochs=0),
        *[h(f"mlp-{name}", lambda act=act: mlp(64, 64, act=act)) for name, act in acts.items()],
        h("mlp-deep-narrow", lambda: mlp(*[24] * 8), epochs=20, lr=3e-3),
        h("mlp-wide", lambda: mlp(1024)),
        h("mlp-batchnorm", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(),
                                                 nn.Linear(64, 10))),
        h("maxout", lambda: nn.Sequential(nn.Flatten(), Maxout(64, 48), Maxout(48, 32), nn.Linear(32, 10))),
        h("mixer", Mixer),
        h("prototypes", Prototypes, lr=2e-2),
        h("radial", Radial, lr=2e-2, epochs=25),
        h("cosine-head", Cosine),
        h("cnn-strided", lambda: cnn()),
        h("cnn-max-pool", lambda: cnn(pool=nn.MaxPool2d(2))),
        h("cnn-avg-pool", lambda: cnn(pool=nn.AvgPool2d(2))),
        h("cnn-5x5", lambda: cnn(kernel=5)),
        h("cnn-tanh", lambda: cnn(act=nn.Tanh)),
        h("cnn-global-pool", lambda: nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)), epochs=40),
        h("cnn-depthwise", lambda: nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 24, 1),
            nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(384, 10))),
        h("cnn-branches", lambda: nn.Sequential(
            Joined(nn.Conv2d(1, 8, 1), nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(1, 8, 5, padding=2)), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(384, 10))),
        h("cnn-excite", lambda: cnn(after=lambda: Excite(32))),
        h("cnn-batchnorm", lambda: cnn(norm=nn.BatchNorm2d)),
        h("cnn-groupnorm", lambda: cnn(norm=lambda c: nn.GroupNorm(4, c))),
        h("cnn-layernorm", lambda: cnn(norm=lambda c: nn.GroupNorm(1, c))),
        h("cnn-instancenorm", lambda: cnn(norm=lambda c: nn.InstanceNorm2d(c, affine=True))),
        h("cnn-dropout", lambda: cnn(after=lambda: nn.Dropout(0.5))),
        h("cnn-dropout2d", lambda: cnn(after=lambda: nn.Dropout2d(0.3))),
        h("cnn-local-response", lambda: cnn(norm=lambda c: nn.LocalResponseNorm(3))),
        h("residual", res),
        h("residual-no-norm", lambda: res(norm=False)),
        h("dense", dense),
        h("vit", ViT, epochs=25, lr=2e-3),
        h("vit-token", lambda: ViT(pool="token"), epochs=25, lr=2e-3),
        h("attention-pool", AttentionPool, epochs=25),
        h("rnn-rows", lambda: Rows(nn.RNN), epochs=25),
        h("gru-rows", lambda: Rows(nn.GRU), epochs=20),
        h("lstm-rows", lambda: Rows(nn.LSTM), epochs=20),
        h("bigru-rows", lambda: Rows(nn.GRU, both=True, all_rows=True), epochs=15),
        h("conv1d-rows", lambda: nn.Sequential(nn.Flatten(1, 2), nn.Conv1d(8, 48, 3, padding=1), nn.ReLU(),
                                               nn.Conv1d(48, 48, 3, padding=1), nn.ReLU(), nn.Flatten(),
                                               nn.Linear(384, 10))),
        h("decayed", digits_cnn, decay=2.0),
        h("one-epoch", digits_cnn, epochs=1),
        h("overfitted", digits_cnn, epochs=80),
        h("few-images", digits_cnn, rows=100, epochs=60),
        h("smoothed-labels-0.1", digits_cnn, smoothing(0.1)),
        h("smoothed-labels-0.4", digits_cnn, smoothing(0.4)),
        h("smoothed-labels-0.8", digits_cnn, smoothing(0.8)),
        h("mixup", digits_cnn, mixup, epochs=20),
        h("squared-loss", digits_cnn, loss(lambda z, y: F.mse_loss(z, F.one_hot(y, 10).float()))),
        h("hinge-loss", digits_cnn, loss(lambda z, y: F.multi_margin_loss(z, y))),
        h("focal-loss", digits_cnn, loss(focal)),
        h("gaussian-0.1", digits_cnn, gaussian(0.1), epochs=20),
        h("gaussian-0.3", digits_cnn, gaussian(0.3), epochs=20),
        h("gradient-penalty", digits_cnn, smooth_gradient, epochs=15),
        h("adversarial-0.1", digits_cnn, hardened(0.1), epochs=20),
        h("adversarial-0.2", digits_cnn, hardened(0.2), epochs=25),
        h("adversarial-fgsm-0.1", digits_cnn, hardened(0.1, steps=1), epochs=20),
        h("adversarial-vit-0.1", ViT, hardened(0.1, steps=3), epochs=20, lr=2e-3),
        h("adversarial-batchnorm-0.1", lambda: cnn(norm=nn.BatchNorm2d), hardened(0.1), epochs=15),
        h("adversarial-mlp-0.1", lambda: mlp(128, 64), hardened(0.1), epochs=25),
        h("adversarial-linear-0.1", lambda: mlp(), hardened(0.1), epochs=20),
        h("trades-0.1", digits_cnn, trades(0.1), epochs=15),
        h("ensemble", lambda: Mean(mlp(64), cnn(), cnn(act=nn.GELU))),
        h("sharper-x10", digits_cnn, finish=_scaled(10.0)),
        h("milder-x0.1", digits_cnn, finish=_scaled(0.1)),
        h("normalises-inside", digits_cnn, finish=_normal, objective=_on_normal),
        h("normalised-by-target", digits_cnn, finish=lambda m: uf.Target(m, mean=(0.305,), std=(0.376,)),
          objective=_on_normal),
        h("bounds-minus-1-to-1", digits_cnn, scale=(2.0, -1.0), finish=lambda m: uf.Target(m, bounds=(-1, 1))),
        h("float64", digits_cnn, finish=lambda m: m.double()),
        h("two-classes", lambda: mlp(32, out=2), classes=2),
        h("three-classes", lambda: mlp(32, out=3), classes=3),
        h("sixteen-outputs", lambda: mlp(64, out=16)),
        h("channels-last", digits_cnn, finish=lambda m: m.to(memory_format=torch.channels_last)),
        h("plain-function", digits_cnn, finish=_plain),
        h("wrapped", digits_cnn, finish=lambda m: nn.Sequential(nn.Identity(), nn.Sequential(m))),
        h("traced", digits_cnn, finish=traced),
        h("zoo-digits-cnn", lambda: ZOO["digits-cnn"].build(), epochs=0),
        h("zoo-digits-cnn-robust", lambda: ZOO["digits-cnn-robust"].build(), epochs=0),
    ]  # fmt: skip


HONEST: dict[str, Honest] = {target.name: target for target in _all()}
