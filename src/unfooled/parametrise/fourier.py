"""Images as free numbers: pixels, or the coefficients of their Fourier series with colours set apart.

Gradient ascent over Fourier coefficients in which every frequency counts alike, and over colours that do not correlate,
finds smoother images than over pixels (Olah, Mordvintsev and Schubert 2017, "Feature visualization", Distill): the set
of images is the same, the metric of the climb is not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unfooled._noise import Noise
from unfooled.errors import InputError

Bounds = tuple[float, float]

NATURAL_COLOURS = (
    (0.1982, 0.1184, 0.0880),
    (0.1184, 0.1743, 0.1221),
    (0.0880, 0.1221, 0.2140),
)
"""`colour_root` of the 51,200,000 pixels of CIFAR-10's 50,000 training images, red, green, blue in [0, 1]."""


def colour_root(x: Tensor) -> Tensor:
    """Return the symmetric square root [c, c] of the channels' covariance over all pixels of x [n, c, h, w], float64.

    Its inverse, applied to the pixels' colours less their mean, whitens them. A channel that never varies gets a
    thousandth of the largest deviation, so that the inverse exists.

    Raises:
        InputError: x is no batch of images, or has fewer pixels than channels.
    """
    if x.dim() != 4 or x.numel() < 2 * x.shape[1] ** 2:
        raise InputError(f"Colours are measured on images [n, c, h, w] with many pixels, not on {tuple(x.shape)}.")
    pixels = x.detach().double().movedim(1, -1).reshape(-1, x.shape[1])
    values, vectors = torch.linalg.eigh((pixels - pixels.mean(0)).T @ (pixels - pixels.mean(0)) / len(pixels))
    deviations = values.clamp(min=0).sqrt()
    if not float(deviations.max()):
        raise InputError("All pixels have one colour: there is no colour correlation to measure.")
    return vectors @ deviations.clamp(min=1e-3 * float(deviations.max())).diag() @ vectors.T


def squash(z: Tensor, bounds: Bounds) -> Tensor:
    """Return numbers of any size inside the box, by a sigmoid; 0 becomes its middle."""
    return bounds[0] + (bounds[1] - bounds[0]) * z.sigmoid()


def unsquash(x: Tensor, bounds: Bounds) -> Tensor:
    """Return what `squash` maps to x; values nearer to a wall than a thousandth of the box are moved there first."""
    return ((x - bounds[0]) / (bounds[1] - bounds[0])).clamp(1e-3, 1 - 1e-3).logit()


@dataclass(frozen=True)
class Pixels:
    """The values themselves, of any shape, kept inside the box by clipping."""

    bounds: Bounds = (0.0, 1.0)

    def decode(self, theta: Tensor) -> Tensor:
        """Return the inputs [n, ...]: `theta` itself."""
        return theta

    def encode(self, x: Tensor) -> Tensor:
        """Return the parameters of the inputs x [n, ...]: themselves."""
        return x

    def settle(self, theta: Tensor) -> Tensor:
        """Return the nearest parameters whose inputs lie inside the box."""
        return theta.clamp(*self.bounds)


@dataclass(frozen=True, eq=False)
class Fourier:
    """Images [n, c, h, w] as spectra: theta [n, c, h, w // 2 + 1, 2] holds real and imaginary parts.

    A coefficient of frequency f (cycles a pixel) is divided by max(f, 1 / max(h, w)), so that equal steps in theta
    give the 1/f spectrum of natural images; the transform is orthonormal. Then colours are mixed by `colours` [c, c]
    (None: `NATURAL_COLOURS` for three channels, none for others), scaled so that its largest column has length 1, and
    a sigmoid puts the values into the box.

    Raises:
        InputError: the shape is no image, or `colours` does not fit it or has no inverse.
    """

    shape: Sequence[int]
    bounds: Bounds = (0.0, 1.0)
    colours: Tensor | None = None
    _mix: Tensor = field(init=False, repr=False)
    _scale: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise InputError(f"A Fourier parametrisation is of images (c, h, w), not of shape {tuple(self.shape)}.")
        channels, height, width = self.shape
        if self.colours is not None:
            mix = torch.as_tensor(self.colours, dtype=torch.float64)
        else:
            mix = torch.tensor(NATURAL_COLOURS, dtype=torch.float64) if channels == 3 else torch.eye(channels).double()
        if mix.shape != (channels, channels) or float(torch.linalg.matrix_rank(mix)) < channels:
            raise InputError(
                f"colours must be a [{channels}, {channels}] matrix with an inverse, as colour_root gives."
            )
        f = torch.hypot(torch.fft.fftfreq(height).view(-1, 1), torch.fft.rfftfreq(width).view(1, -1)).double()
        object.__setattr__(self, "_mix", mix / mix.norm(dim=0).max())
        object.__setattr__(self, "_scale", 1 / f.clamp(min=1 / max(height, width)))

    @property
    def parameters(self) -> tuple[int, ...]:
        """The shape of one image's parameters, (c, h, w // 2 + 1, 2)."""
        channels, height, width = self.shape
        return channels, height, width // 2 + 1, 2

    def drawn(self, noise: Noise, contrast: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return random parameters, one for each row of the noise, whose values have the deviation `contrast`.

        That of the values before colours are mixed and the sigmoid is taken: random images with a 1/f spectrum.
        """
        columns = torch.full_like(self._scale[0], 2.0)  # with the mirrored half that is not stored
        columns[:: self.shape[2] // 2 if self.shape[2] % 2 == 0 else len(columns)] = 0.5  # mirrored onto themselves
        power = float((self._scale.square() * columns).sum()) / math.prod(self.shape[1:])
        return contrast / math.sqrt(2 * power) * noise.normal(0, self.parameters, dtype=dtype)

    def decode(self, theta: Tensor) -> Tensor:
        """Return the images [n, c, h, w]."""
        spectrum = torch.view_as_complex(theta.contiguous()) * self._scale.to(theta)
        z = torch.fft.irfft2(spectrum, s=tuple(self.shape[1:]), norm="ortho")
        return squash(torch.einsum("ij,njhw->nihw", self._mix.to(z), z), self.bounds)

    def encode(self, x: Tensor) -> Tensor:
        """Return parameters of the images x [n, c, h, w]: `decode` gives x back, but for values at the walls."""
        z = torch.einsum("ij,njhw->nihw", torch.linalg.inv(self._mix).to(x), unsquash(x, self.bounds))
        return torch.view_as_real(torch.fft.rfft2(z, norm="ortho") / self._scale.to(x))

    def settle(self, theta: Tensor) -> Tensor:
        """Return `theta`: all parameters give images inside the box."""
        return theta


def blur(x: Tensor, sigma: float) -> Tensor:
    """Return images [n, c, h, w] convolved with a Gaussian of `sigma` pixels, mirrored at the edges."""
    channels = x.shape[1]
    for axis in (2, 3):
        reach = min(math.ceil(3 * sigma), x.shape[axis] - 1)
        at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        kernel = (-(at**2) / (2 * sigma**2)).exp()
        pad = (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach)
        weight = (kernel / kernel.sum()).view(1, 1, *((1, -1) if axis == 3 else (-1, 1)))
        x = torch.nn.functional.conv2d(
            torch.nn.functional.pad(x, pad, mode="reflect"), weight.repeat(channels, 1, 1, 1), groups=channels
        )
    return x
