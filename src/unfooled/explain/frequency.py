"""How fine a perturbation is, and what strided layers fold back beyond Nyquist."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.ask import Asker, confidences
from ..core.explanation import COLOURS, INK, SOFT, Explanation
from ..core.target import Target
from ..errors import InputError
from ..stats import mean_interval
from ._lines import check_pairs, energy, normal_like, part_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Spectrum(Explanation):
    """Power by radial frequency, without the constant part.

    `radius` [r] in cycles per pixel; `counts` [r] Fourier coefficients in each ring; `shares` float64 [n, r] of the
    power by what was looked at; `constant` float64 [n] the share of the perturbation's power in the constant part.
    """

    radius: Tensor
    counts: Tensor
    shares: dict[str, Tensor]
    constant: Tensor

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a kind and ring; `times_white` is the power per coefficient against white noise's."""
        white = (self.counts / self.counts.sum()).double()
        return [
            {
                "kind": kind,
                "radius": float(self.radius[at]),
                "share": float(mean[at]),
                "times_white": float(mean[at] / white[at]),
                "coefficients": int(self.counts[at]),
                "n": len(shares),
            }
            for kind, shares in self.shares.items()
            for mean in [shares.mean(0)]
            for at in range(len(self.radius))
        ]

    def high(self, kind: str = "adversarial") -> Tensor:
        """Return the share of each row's power above half the Nyquist frequency (0.25 cycles per pixel), [n]."""
        return self.shares[kind][:, self.radius > 0.25].sum(1)

    @property
    def white(self) -> float:
        """The share of white noise above 0.25 cycles per pixel, in the mean (closed form: the coefficients' share)."""
        return float(self.counts[self.radius > 0.25].sum() / self.counts.sum())

    def sentence(self) -> str:
        """Say how much of the perturbation is fine, against the images and white noise."""
        return (
            f"{float(self.high().mean()):.0%} of the perturbation's power lies above half the Nyquist frequency, "
            f"against {float(self.high('images').mean()):.0%} of the images' and {self.white:.0%} of white noise "
            f"({float(self.high('white noise').mean()):.0%} measured)."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw the power per coefficient by radius, white noise being 1."""
        ax = figure.subplots()
        white = (self.counts / self.counts.sum()).double()
        for (kind, shares), colour in zip(self.shares.items(), (COLOURS[0], COLOURS[2], COLOURS[9]), strict=True):
            part = shares / white
            middle = part.mean(0)
            ax.plot(self.radius.tolist(), middle.tolist(), "o-", ms=3, color=colour, label=kind)
            if len(part) > 4:
                low, high = part.quantile(torch.tensor([0.1, 0.9], dtype=part.dtype, device=part.device), dim=0)
                ax.fill_between(self.radius.tolist(), low.tolist(), high.tolist(), color=colour, alpha=0.15, lw=0)
        ax.axvline(0.5, color=SOFT, lw=0.8, ls=":")
        ax.text(0.495, 0.98, "Nyquist along the axes", transform=ax.get_xaxis_transform(), ha="right", va="top",
                rotation=90, fontsize=8, color=SOFT)  # fmt: skip
        ax.set_yscale("log")
        floor = float(self.shares["adversarial"].mean(0).div(white).min())
        ax.set_ylim(bottom=max(min(floor / 3, 0.05), 1e-4))
        ax.set_xlabel("frequency (cycles per pixel)")
        ax.set_ylabel("power per coefficient, white noise = 1")
        ax.grid(visible=True)
        ax.legend()


def spectrum(x: Tensor, x_adv: Tensor, *, seed: int = 0) -> Spectrum:
    """Return the radial power spectrum of x_adv - x [n, c, h, w] beside that of the images and of white noise.

    Rings are one step of the shorter side's frequency wide; the mean of every channel is taken out first. Raises
    InputError for anything but images and for rows without a change.
    """
    check_pairs(x, x_adv)
    _check_images(x)
    rings, counts = _rings(x.shape[-2], x.shape[-1], x.device)
    change = x_adv - x
    flat = change - change.mean((-2, -1), keepdim=True)
    kinds = {"adversarial": change, "images": x, "white noise": normal_like(tuple(x.shape), x, seed)}
    return Spectrum(
        torch.arange(1, len(counts), device=x.device) / min(x.shape[-2:]),
        counts[1:],
        {kind: _by_ring(images, rings, len(counts)) for kind, images in kinds.items()},
        1 - part_of(flat, change),
    )


def _check_images(x: Tensor) -> None:
    if x.dim() != 4 or min(x.shape[-2:]) < 4:
        raise InputError(f"Frequencies are those of images [n, c, h, w] of 4 x 4 pixels or more, not {tuple(x.shape)}.")


def _frequencies(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return |frequency| in cycles per pixel along height [h, 1] and width [1, w]."""
    return torch.fft.fftfreq(h, device=device).abs()[:, None], torch.fft.fftfreq(w, device=device).abs()[None]


def _rings(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the ring of each Fourier coefficient, int64 [h * w], and the number of coefficients of each ring [r]."""
    fy, fx = _frequencies(h, w, device)
    rings = ((fy.square() + fx.square()).sqrt() * min(h, w)).round().long()
    rings.view(-1)[1:].clamp_(min=1)  # the constant alone is ring 0, however long one side is
    return rings.flatten(), torch.bincount(rings.flatten())


def _by_ring(x: Tensor, rings: Tensor, count: int) -> Tensor:
    """Return the share of the power of x [n, c, h, w] in each ring but the constant one, float64 [n, count - 1]."""
    power = torch.fft.fft2(x.double()).abs().square().sum(1).flatten(1)  # [n, h * w]
    sums = power.new_zeros(len(x), count).index_add_(1, rings, power)[:, 1:]
    return sums / sums.sum(1, keepdim=True).clamp(min=1e-300)


@dataclass(frozen=True, eq=False)
class Aliasing(Explanation):
    """What strided layers fold back, and what a shift by one pixel does.

    `layers` holds the names with strides; `folded` float64 [n, l] the share of each layer's power (without the
    constant) beyond the Nyquist frequency of its stride; `white` [l] that share of white noise; `changed` and
    `control` bool [n, 4] whether the predicted class changes under each shift and under a random change of the shift's
    L2 size; `confidence` float64 [n, 2] in the first answer before and in the mean after the shifts.
    """

    layers: tuple[str, ...]
    folded: Tensor
    white: Tensor
    changed: Tensor
    control: Tensor
    confidence: Tensor

    size = (7.0, 3.4)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a strided layer and one for the shifts; `white` and `control` are what each is set against."""
        n = len(self.changed)
        rows: list[dict[str, Any]] = [
            {
                "what": name,
                "measure": "power folded back",
                "value": float(self.folded[:, at].mean()),
                "low": mean_interval(self.folded[:, at].tolist())[0],
                "high": mean_interval(self.folded[:, at].tolist())[1],
                "control": float(self.white[at]),
                "n": n,
            }
            for at, name in enumerate(self.layers)
        ]
        moved, other = self.changed.double().mean(1), self.control.double().mean(1)
        low, high = mean_interval(moved.tolist())
        what = {"what": "shift by one pixel", "measure": "class changed", "value": float(moved.mean())}
        return [*rows, what | {"low": low, "high": high, "control": float(other.mean()), "n": n}]

    def sentence(self) -> str:
        """Say what is folded back against white noise, and how often a shift changes the class."""
        shift = self.rows()[-1]
        moved = (
            f"A shift by one pixel changes the class of {shift['value']:.1%} of the answers, "
            f"a random change of the same size {shift['control']:.1%}."
        )
        if not self.layers:
            return f"No strided layer was found to measure. {moved}"
        worst = int(self.folded.mean(0).argmax())
        return (
            f"Strided layers fold {float(self.folded.mean()):.0%} of their power back from beyond Nyquist, at most "
            f"{float(self.folded[:, worst].mean()):.0%} ({self.layers[worst]}), where white noise would have "
            f"{float(self.white[worst]):.0%}. {moved}"
        )

    def draw(self, figure: "Figure") -> None:
        """Draw the folded share of each layer, and the classes changed by shifts, beside their controls."""
        ax = figure.subplots()
        rows = self.rows()
        for at, row in enumerate(rows):
            ax.barh(at, row["value"], height=0.55, color=COLOURS[0] if at < len(self.layers) else COLOURS[3])
            ax.plot([row["low"], row["high"]], [at, at], color=INK, lw=1)
            ax.plot([row["control"]] * 2, [at - 0.34, at + 0.34], color=COLOURS[1], lw=2)
            ax.text(row["high"] + 0.012, at, f"{row['value']:.1%}", va="center", fontsize=8)
        ax.plot([], [], color=COLOURS[1], lw=2, label="control: white noise; random change of the shift's size")
        ax.set_yticks(range(len(rows)), [f"{row['what']}:\n{row['measure']}" for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlim(0, 1.05 * max(max(row["high"], row["control"]) for row in rows) + 0.08)
        ax.set_xlabel("share")
        figure.legend(loc="outside upper left")


def aliasing(target: Target | Callable[..., object], x: Tensor, *, seed: int = 0) -> Aliasing:
    """Return how much power each strided convolution or pooling of the target folds back on x [n, c, h, w].

    Each such layer is asked for its response at stride 1, and what lies beyond the Nyquist frequency of its true
    stride is what subsampling folds onto lower frequencies (Grabinski et al. 2022, arXiv:2204.00491, measure the same
    excess). Strides that are no layer, such as slices, are not seen; a target that is no module has no layers. Shifts
    repeat the edge. Raises InputError for anything but images.
    """
    _check_images(x)
    asker = Asker(target)
    found: dict[str, list[Tensor]] = {}
    white: dict[str, float] = {}
    with _folding(asker.target.module, found, white):
        clean = confidences(asker.scores(x))
    label = clean.argmax(1)
    shifted = torch.stack([_shift(x, dy, dx) for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))], 1)  # [n, 4, c, h, w]
    noise = normal_like(tuple(shifted.shape), x, seed)
    sizes = (energy((shifted - x[:, None]).flatten(0, 1)) / energy(noise.flatten(0, 1))).sqrt().to(x.dtype)
    lo, hi = asker.target.bounds
    random = (x[:, None] + noise * sizes.view(len(x), 4, 1, 1, 1)).clamp(lo, hi)
    after, beside = (confidences(asker.scores(t.flatten(0, 1))).view(len(x), 4, -1) for t in (shifted, random))
    own = torch.stack([clean.gather(1, label[:, None])[:, 0], after.gather(2, label.view(-1, 1, 1).expand(-1, 4, 1))
                       .mean((1, 2))], 1)  # fmt: skip
    return Aliasing(
        tuple(found),
        torch.stack([torch.cat(parts) for parts in found.values()], 1) if found else x.new_zeros(len(x), 0).double(),
        torch.tensor(list(white.values()), dtype=torch.float64),
        after.argmax(2) != label[:, None],
        beside.argmax(2) != label[:, None],
        own.double(),
    )


@contextmanager
def _folding(module: object, found: dict[str, list[Tensor]], white: dict[str, float]) -> Iterator[None]:
    """Measure every strided layer of the module, in the order of use, while the block runs."""
    hooks = []
    uses: dict[str, int] = {}
    if isinstance(module, nn.Module):
        hooks.append(module.register_forward_pre_hook(lambda *_: uses.clear()))
        for name, layer in module.named_modules():
            strides = _strides(layer)
            if max(strides) > 1:
                label = f"{name or type(layer).__name__} (stride {max(strides)})"
                hooks.append(layer.register_forward_hook(_measure(label, strides, uses, found, white)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _strides(layer: nn.Module) -> tuple[int, int]:
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return 1, 1
    stride = layer.stride
    return (stride, stride) if isinstance(stride, int) else (int(stride[0]), int(stride[1]))


def _measure(
    label: str,
    strides: tuple[int, int],
    uses: dict[str, int],
    found: dict[str, list[Tensor]],
    white: dict[str, float],
) -> Callable[..., None]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        dense: Any = copy.copy(layer)
        dense.stride = (1, 1)
        with torch.no_grad():
            response: Tensor = dense.forward(inputs[0])  # past the hooks
            share, expected = _beyond(response, strides)
        uses[label] = uses.get(label, 0) + 1
        name = label if uses[label] == 1 else f"{label}, use {uses[label]}"  # one pool may serve several places
        found.setdefault(name, []).append(share.cpu())
        white[name] = expected

    return hook


def _beyond(response: Tensor, strides: tuple[int, int]) -> tuple[Tensor, float]:
    """Return the share of power beyond Nyquist [n], the constant left out, and the share of coefficients there."""
    fy, fx = _frequencies(response.shape[-2], response.shape[-1], response.device)
    beyond = (fy > 0.5 / strides[0] + 1e-6) | (fx > 0.5 / strides[1] + 1e-6)  # [h, w]
    power = torch.fft.fft2(response.double()).abs().square().sum(1)
    power[:, 0, 0] = 0
    total = power.sum((1, 2))
    return power[:, beyond].sum(1) / total.clamp(min=1e-300), int(beyond.sum()) / (beyond.numel() - 1)


def _shift(x: Tensor, dy: int, dx: int) -> Tensor:
    """Return the images [n, c, h, w] moved by one pixel, the edge repeated."""
    h, w = x.shape[-2:]
    return F.pad(x, (1, 1, 1, 1), mode="replicate")[..., 1 - dy : 1 - dy + h, 1 - dx : 1 - dx + w]
