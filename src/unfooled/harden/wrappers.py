"""Defences that any module can wear: smoothed, quantised or re-encoded inputs, and heads that may refuse.

Each is a module of a module, so `unfooled evaluate` measures it like any other, with attacks that know it: what has no
useful gradient (rounding, JPEG, a median over ties) is passed straight through, what is random is averaged over draws,
and what refuses is attacked past its refusal.
"""

import io
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfooled.core.target import Target, pick, untouched
from unfooled.errors import InputError


def _stamp(module: nn.Module, *settings: float) -> None:
    """Keep name and settings among the module's buffers, so that fingerprints tell one defence from another."""
    text = f"{type(module).__name__}{settings}"
    module.register_buffer("settings", torch.tensor(list(text.encode()), dtype=torch.uint8))


def _images(x: Tensor, what: str) -> None:
    if x.dim() != 4:
        raise InputError(f"A {what} takes images [b, c, h, w], not inputs of shape {tuple(x.shape)}.")


def _columns(out: Any, rows: int, other: float) -> Tensor:
    """Return the scores [b, k] in what a module returned; of a single one, z, those of two classes: other * z and z."""
    scores = pick(out, rows)
    scores = scores[:, None] if scores.dim() == 1 else scores
    return scores if scores.shape[1] > 1 else torch.cat([other * scores, scores], 1)


class Blurred(nn.Module):
    """A module shown its images [b, c, h, w] through a Gaussian of standard deviation `sigma` pixels."""

    line: Tensor

    def __init__(self, module: nn.Module, sigma: float = 1.0) -> None:
        super().__init__()
        if not sigma > 0:
            raise InputError(f"A blur needs a sigma larger than 0 pixels, not {sigma}.")
        self.module = module
        _stamp(self, sigma)
        reach = math.ceil(3 * sigma)
        line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
        self.register_buffer("line", line / line.sum(), persistent=False)

    def forward(self, x: Tensor) -> Any:
        """Return the module's answer to the blurred x; edges are repeated outwards."""
        _images(x, "blur")
        reach, c = len(self.line) // 2, x.shape[1]
        line = self.line.to(x)
        x = F.pad(x, (reach,) * 4, mode="replicate")
        x = F.conv2d(x, line.view(1, 1, -1, 1).expand(c, 1, -1, 1), groups=c)
        return self.module(F.conv2d(x, line.view(1, 1, 1, -1).expand(c, 1, 1, -1), groups=c))


class Median(nn.Module):
    """A module shown the median of each pixel's `size` x `size` neighbourhood (odd; edges are repeated outwards)."""

    def __init__(self, module: nn.Module, size: int = 3) -> None:
        super().__init__()
        if size < 3 or size % 2 == 0:
            raise InputError(f"A median needs an odd size of at least 3, not {size}.")
        self.module, self.size = module, size
        _stamp(self, size)

    def forward(self, x: Tensor) -> Any:
        """Return the module's answer to the filtered x [b, c, h, w]."""
        _images(x, "median")
        reach = self.size // 2
        rows = F.pad(x, (reach,) * 4, mode="replicate").unfold(2, self.size, 1).unfold(3, self.size, 1)
        return self.module(rows.flatten(4).median(4).values)


class Quantised(nn.Module):
    """A module shown its inputs in [0, 1] rounded to 2 ** `bits` even levels (feature squeezing, Xu et al. 2018)."""

    def __init__(self, module: nn.Module, bits: int = 4) -> None:
        super().__init__()
        if not 1 <= bits <= 16:
            raise InputError(f"bits must be from 1 to 16, not {bits}.")
        self.module, self.levels = module, 2**bits - 1
        _stamp(self, bits)

    def forward(self, x: Tensor) -> Any:
        """Return the module's answer to the rounded x."""
        return self.module((x * self.levels).round() / self.levels)


class Jpeg(nn.Module):
    """A module shown its images in [0, 1] written as JPEG of this `quality` and read again, by Pillow, one by one."""

    def __init__(self, module: nn.Module, quality: int = 75) -> None:
        super().__init__()
        if not 1 <= quality <= 95:
            raise InputError(f"quality must be from 1 to 95, not {quality}.")
        self.module, self.quality = module, quality
        _stamp(self, quality)

    def forward(self, x: Tensor) -> Any:
        """Return the module's answer to x [b, c, h, w] with one or three channels, compressed."""
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            raise InputError(f"JPEG holds images with one or three channels, not inputs of shape {tuple(x.shape)}.")
        grey = (x.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        read = torch.from_numpy(np.stack([self._again(each) for each in grey])).to(x.device, x.dtype)
        return self.module(read.permute(0, 3, 1, 2) / 255)

    def _again(self, pixels: np.ndarray) -> np.ndarray:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=self.quality)
        return np.asarray(Image.open(file)).reshape(pixels.shape)


class RandomResized(nn.Module):
    """A module shown its images at a random smaller size, at a random place on black (Xie et al. 2018, 1711.01991).

    Every forward draws one size from `smallest` of the side to the whole, and one place, from the global random state.
    """

    def __init__(self, module: nn.Module, smallest: float = 0.8) -> None:
        super().__init__()
        if not 0 < smallest <= 1:
            raise InputError(f"smallest is a share of the side, larger than 0 and at most 1, not {smallest}.")
        self.module, self.smallest = module, smallest
        _stamp(self, smallest)

    def forward(self, x: Tensor) -> Any:
        """Return the module's answer to x [b, c, h, w] resized and padded back to its size."""
        _images(x, "random resize")
        h, w = x.shape[2:]
        share = self.smallest + (1 - self.smallest) * float(torch.rand(()))
        small = max(1, round(share * h)), max(1, round(share * w))
        top, left = (int(torch.randint(whole - part + 1, ())) for whole, part in zip((h, w), small, strict=True))
        x = F.interpolate(x, small, mode="bilinear", antialias=True, align_corners=False)
        return self.module(F.pad(x, (left, w - small[1] - left, top, h - small[0] - top)))


class Noisy(nn.Module):
    """A module asked about `draws` copies of its inputs with Gaussian noise of deviation `sigma`, answers averaged.

    The smoothed classifier of Cohen et al. 2019 (arXiv:1902.02918) with few draws and soft votes: the scores are the
    logarithms of the mean probabilities. Every forward draws anew, from the global random state.
    """

    def __init__(self, module: nn.Module, sigma: float = 0.25, draws: int = 8) -> None:
        super().__init__()
        if not sigma > 0 or draws < 1:
            raise InputError(f"Smoothing needs a sigma larger than 0 and at least one draw, not {sigma} and {draws}.")
        self.module, self.sigma, self.draws = module, sigma, draws
        _stamp(self, sigma, draws)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean log-probabilities [b, k]."""
        many = x.repeat(self.draws, *[1] * (x.dim() - 1))
        noisy = _columns(self.module(many + self.sigma * torch.randn_like(many)), len(many), 0.0)
        return noisy.log_softmax(1).unflatten(0, (self.draws, len(x))).logsumexp(0) - math.log(self.draws)


class Sigmoids(nn.Module):
    """A body whose every score stands for its own class alone: log-odds, cut off so that "none of these" can win.

    The scores [b, k + 1] are those of the body and, last, that of no class: the log-odds `threshold` below which no
    class is believed. A single score is that of class 1, and turned round that of class 0: there k is 2. Give the
    target `reject="last"`. Train the body by `reject.as_no_class`.
    """

    def __init__(self, module: nn.Module, threshold: float = 0.0) -> None:
        super().__init__()
        self.module, self.threshold = module, float(threshold)
        _stamp(self, threshold)

    def forward(self, x: Tensor) -> Tensor:
        """Return the body's scores and the threshold's, [b, k + 1]."""
        scores = _columns(self.module(x), len(x), -1.0)
        return torch.cat([scores, torch.full_like(scores[:, :1], self.threshold)], 1)


class RadialBasis(nn.Module):
    """A shallow network of Gaussian units: scores -(x - mu_k)^T P_k (x - mu_k) with diagonal P_k >= 0, one per class.

    The quadratic softmax of Goodfellow et al. 2014 (arXiv:1412.6572, section 4: "RBF network"): far from every centre
    no class is near. With `refuse` (squared distance) there is a last score for "none of these".
    """

    def __init__(self, numel: int, classes: int, *, refuse: float | None = None) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.rand(classes, numel))
        self.log_width = nn.Parameter(torch.full((classes, numel), math.log(1 / numel)))
        self.refuse = refuse

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores [b, k] of x [b, ...], or [b, k + 1]."""
        x, p = x.flatten(1), self.log_width.exp()
        far = x.square() @ p.T - 2 * x @ (p * self.centre).T + (p * self.centre.square()).sum(1)
        if self.refuse is None:
            return -far
        return torch.cat([-far, torch.full_like(far[:, :1], -self.refuse)], 1)


def overhead(module: nn.Module, defended: nn.Module, x: Tensor, *, repeats: int = 20) -> dict[str, float]:
    """Return what a defence costs: parameters and the time of a forward pass on x [b, ...], with and without it.

    Times are medians of `repeats` alternating passes in eval mode, in seconds; on CUDA the device is waited for.
    """
    import time

    def seconds(each: nn.Module) -> float:
        began = time.perf_counter()
        each(x)
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - began

    with torch.no_grad(), untouched(Target(module)), untouched(Target(defended)):
        pairs = [(seconds(module), seconds(defended)) for _ in range(repeats + 2)][2:]
    plain, worn = (sorted(column)[repeats // 2] for column in zip(*pairs, strict=True))
    counts = [sum(p.numel() for p in each.parameters()) for each in (module, defended)]
    return {
        "parameters": counts[0], "parameters_defended": counts[1], "seconds": plain, "seconds_defended": worn,
        "times_slower": worn / plain,
    }  # fmt: skip
