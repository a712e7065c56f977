"""Randomness that nobody can draw again: the operating system's entropy through AES in counter mode.

The key is 16 bytes of `os.urandom` and lives in this process's memory only. There is no seed to record and no state to
save: whoever knew it could subtract the noise and hold the raw gradients. A forked child draws a key of its own.
Everything is float64, from 52-bit uniforms; a value cast to float32 afterwards shows nothing of the grid they lie on
(Mironov 2012, "On significance of the least significant bits for differential privacy").
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

from genward.errors import UsageError

_CHUNK = 1 << 15  # values whose temporaries stay in the second-level cache
_BITS = (1 << 52) - 1
_Floats = NDArray[np.float64]


class Randomness:
    """A stream of independent draws, float64. It cannot be copied, pickled or seeded."""

    def __init__(self) -> None:
        self._begin()

    def normal(self, shape: int | Sequence[int] = ()) -> _Floats:
        """Standard normals (Box and Muller 1958): |value| < 8.6."""
        sizes = _shape(shape)
        count = math.prod(sizes)
        out = torch.empty(count + count % 2, dtype=torch.float64)
        for start in range(0, len(out), _CHUNK):
            _box_muller(self._uniforms(min(_CHUNK, len(out) - start)), out[start : start + _CHUNK])
        found: _Floats = out[:count].numpy().reshape(sizes)
        return found

    def uniform(self, shape: int | Sequence[int] = ()) -> _Floats:
        """Uniforms on (0, 1), never 0 or 1: an odd multiple of 2^-53, exact in float64."""
        sizes = _shape(shape)
        found: _Floats = self._uniforms(math.prod(sizes)).numpy().reshape(sizes)
        return found

    def gumbel(self, shape: int | Sequence[int] = ()) -> _Floats:
        """Standard Gumbels, for the exponential mechanism by the largest noisy score."""
        found: _Floats = -np.log(-np.log(self.uniform(shape)))
        return found

    def coins(self, count: int) -> NDArray[np.bool_]:
        """Fair coins, shape (count,)."""
        found: NDArray[np.bool_] = self.uniform((count,)) < 0.5
        return found

    def poisson_batch(self, n: int, q: float) -> NDArray[np.int64]:
        """Indices in [0, n), rising, each there with probability q and independently of all others.

        The gaps between two that are there follow a geometric law, so a batch costs n q draws, not n.
        """
        if not 0 < q <= 1:
            raise UsageError(f"q is {q}", remedy="give a sampling rate above 0 and at most 1")
        if q == 1:
            return np.arange(n, dtype=np.int64)
        at, parts = -1.0, []
        while at < n:
            more = math.ceil((n - at) * q + 4 * math.sqrt((n - at) * q) + 8)
            gaps = 1.0 + np.floor(np.log(self.uniform((more,))) / math.log1p(-q))
            parts.append(at + np.cumsum(gaps))
            at = float(parts[-1][-1])
        found = np.concatenate(parts) if parts else np.empty(0)
        return found[found < n].astype(np.int64)

    # the cipher

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._cipher = self._stream()

    def _stream(self) -> CipherContext:
        return Cipher(algorithms.AES(os.urandom(16)), modes.CTR(os.urandom(16))).encryptor()

    def _uniforms(self, count: int) -> Tensor:
        if os.getpid() != self._owner:
            self._begin()  # two processes with one stream would show each other's noise
        words = torch.frombuffer(bytearray(8 * count + 15), dtype=torch.uint8)
        buffer = words.numpy()
        self._cipher.update_into(bytes(8 * count), buffer.data)
        drawn = words[: 8 * count].view(torch.int64).bitwise_and_(_BITS).double()
        return drawn.add_(0.5).mul_(2.0**-52)

    def __reduce__(self) -> NoReturn:
        raise UsageError("a source of noise is never copied or written down", remedy="make a new one")


def _shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)


def _box_muller(u: Tensor, out: Tensor) -> None:
    """Uniforms (2n,) to normals (2n,): r cos a and r sin a, r^2 = -2 log u."""
    half = len(u) // 2
    radius = u[:half].log_().mul_(-2.0).sqrt_()
    angle = u[half:].mul_(2.0 * math.pi)
    torch.mul(radius, angle.cos(), out=out[:half])
    torch.mul(radius, angle.sin_(), out=out[half:])
