"""Luck that belongs to the example: every draw is a hash of (seed, example id, recipe, restart, step, lane).

The generator is counter-based (splitmix64, Steele, Lea and Flood 2014), so a draw depends on no other row, batch
width, order or device. Uniform draws carry 24 bits.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def text_key(text: str) -> int:
    """Hash a text to a signed 64-bit integer (blake2b)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def example_ids(x: Any) -> np.ndarray:
    """Return stable ids, int64 [n]: the hash of each example's canonical float32 bytes, or of its text."""
    if isinstance(x, Tensor):
        rows = np.ascontiguousarray(x.detach().to("cpu", torch.float32).flatten(min(1, x.dim() - 1)).numpy()) + 0.0
        parts = (row.tobytes() for row in rows)
    else:
        parts = (repr(row).encode() for row in x)
    return np.array(
        [int.from_bytes(hashlib.blake2b(p, digest_size=8).digest(), "little", signed=True) for p in parts],
        dtype=np.int64,
    )


def _mix_host(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_M1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_M2)
    out: np.ndarray = z ^ (z >> np.uint64(31))
    return out


def row_keys(seed: int, ids: np.ndarray, recipe: str, restart: np.ndarray | int = 0) -> np.ndarray:
    """Return one key per row, int64 [b], from the run's seed, the example ids [b], the recipe and the restart [b]."""
    with np.errstate(over="ignore"):
        z = ids.astype(np.int64).view(np.uint64) + _GOLDEN * np.uint64(seed & 0xFFFFFFFFFFFFFFFF)
        z = _mix_host(z) ^ np.uint64(text_key(recipe) & 0xFFFFFFFFFFFFFFFF)
        z = _mix_host(z + _GOLDEN * (np.asarray(restart).astype(np.uint64) + np.uint64(1)))
    return z.view(np.int64)


def _mix(z: Tensor) -> Tensor:
    """splitmix64's finaliser, in place, on int64 (logical shifts by masking)."""
    z ^= (z >> 30) & ((1 << 34) - 1)
    z *= _signed(_M1)
    z ^= (z >> 27) & ((1 << 37) - 1)
    z *= _signed(_M2)
    z ^= (z >> 31) & ((1 << 33) - 1)
    return z


@dataclass
class Noise:
    """The rows' private random numbers; `keys` int64 [b] on the rows' device."""

    keys: Tensor

    def bits(self, step: Tensor | int, lanes: int, salt: int = 0) -> Tensor:
        """Return int64 [b, lanes] of 64 random bits for this step (an int, or one per row [b])."""
        step = torch.as_tensor(step, dtype=torch.int64, device=self.keys.device)
        base = _mix(self.keys + (step * 64 + salt + 1) * _signed(int(_GOLDEN)))  # [b]
        lane = torch.arange(1, lanes + 1, dtype=torch.int64, device=self.keys.device) * _signed(int(_GOLDEN))
        return _mix(base.view(-1, 1) + lane)

    def uniform(
        self, step: Tensor | int, shape: Sequence[int], salt: int = 0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return uniform draws in [0, 1), [b, *shape]."""
        z = self.bits(step, int(np.prod(shape, dtype=np.int64)), salt)
        return (((z >> 40) & 0xFFFFFF).to(dtype) * 2.0**-24).view(len(self.keys), *shape)

    def signs(
        self, step: Tensor | int, shape: Sequence[int], salt: int = 0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return fair signs, -1 or +1, [b, *shape]."""
        z = self.bits(step, int(np.prod(shape, dtype=np.int64)), salt)
        return (((z >> 40) & 1) * 2 - 1).to(dtype).view(len(self.keys), *shape)

    def normal(
        self, step: Tensor | int, shape: Sequence[int], salt: int = 0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return standard normal draws, [b, *shape], by the inverse error function of 24-bit uniforms."""
        u = self.uniform(step, shape, salt, dtype)
        return (u * 2 + (2.0**-24 - 1)).erfinv_() * 2**0.5

    def integers(self, step: Tensor | int, high: Tensor | int, salt: int = 0) -> Tensor:
        """Return one integer per row in [0, high), int64 [b]; `high` an int or one per row [b]."""
        u = self.uniform(step, (1,), salt, torch.float64)[:, 0]
        return (u * high).long()
