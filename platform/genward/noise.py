"""Keyed noise: a pure function of (key, row, noise, step), the same on every machine.

AES-128 over counter blocks. One block of 16 bytes, all little-endian, gives four 32-bit words:

    bytes 0..7    row      u64   row id (slot * candidates + candidate), or a slot where slots are addressed
    bytes 8..11   address  u32   noise << 24 | step: noise input 0..255, step 0..2^24 - 1
    bytes 12..15  block    u32   words 4 * block .. 4 * block + 3 of this row's noise

Noise inputs of a graph count from 0, states of a stepped graph from STATE; CELL, WITHIN and WALK belong to the table.
AES is a pseudo-random permutation (FIPS 197), so no row tells anything about another without the key. The normal law
uses arithmetic and square root only: numpy's log and cos change bits with the CPU's vector path, these do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from genward.errors import UsageError

if TYPE_CHECKING:
    from genward.family import NoiseSpec

STATE = 128  # first noise number of a stepped graph's states
CELL, WITHIN, WALK = 253, 254, 255  # which cell a slot has; where in its bin a row lies; a tenant's order
_CHUNK = 1 << 15  # float64 temporaries of one chunk stay in the second-level cache
_COUNTERS = 1 << 12  # counter blocks made at a time, 64 KiB
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # their sum is ln 2 (Cody and Waite)
_Floats = NDArray[np.float64]


def words(key: bytes, rows: NDArray[Any], noise: int, step: int = 0, count: int = 1) -> NDArray[np.uint32]:
    """`count` words of each row, shape (n, count); rows may be contiguous or scattered."""
    if len(key) != 16:
        raise UsageError(f"a noise key has 16 bytes, not {len(key)}")
    if not (0 <= noise < 1 << 8 and 0 <= step < 1 << 24):
        raise UsageError(f"noise {noise} or step {step} cannot be addressed", remedy="noise < 256, step < 2^24")
    blocks = -(-count // 4)
    encrypted = np.empty(16 * len(rows) * blocks + 15, dtype=np.uint8)  # the cipher wants room that it never fills
    if len(rows) and blocks:
        _encrypt(key, np.asarray(rows).astype(np.uint64, copy=False), noise << 24 | step, blocks, encrypted)
    out = encrypted[: 16 * len(rows) * blocks].view("<u4").reshape(len(rows), 4 * blocks)[:, :count]
    return out.astype(np.uint32, copy=False)


def _encrypt(key: bytes, rows: NDArray[np.uint64], address: int, blocks: int, out: NDArray[np.uint8]) -> None:
    """Counters of some rows after the other, so that they stay in the cache; the answer is the same."""
    size = max(1, _COUNTERS // blocks)
    counters = np.empty((min(size, len(rows)), blocks, 2), dtype="<u8")
    counters[:, :, 1] = (np.arange(blocks, dtype=np.uint64) << np.uint64(32)) | np.uint64(address)
    # ECB over distinct counters is the pseudo-random function itself, not a way to hide a message.
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        counters[: len(part), :, 0] = part[:, None]
        encryptor.update_into(counters[: len(part)].reshape(-1).view(np.uint8).data, out[16 * start * blocks :].data)


def uniform(
    key: bytes, rows: NDArray[Any], noise: int, shape: Sequence[int] = (), step: int = 0
) -> NDArray[np.float32]:
    """Uniform on (0, 1), shape (n, *shape): ((word >> 9) + 0.5) x 2^-23, exact in float32, never 0 or 1."""
    drawn = words(key, rows, noise, step, prod(shape))
    drawn >>= np.uint32(9)
    drawn |= np.uint32(0x3F800000)  # the bits of 1 + word x 2^-23
    out = drawn.view(np.float32)
    out -= np.float32(1)
    out += np.float32(2.0**-24)
    return out.reshape(len(rows), *shape)


def normal(key: bytes, rows: NDArray[Any], noise: int, shape: Sequence[int] = (), step: int = 0) -> NDArray[np.float32]:
    """Standard normal, shape (n, *shape): the quantile of the uniform, so |value| < 5.5."""
    drawn = uniform(key, rows, noise, (prod(shape),), step)
    return _normals(drawn.reshape(-1)).reshape(len(rows), *shape)


def _normals(drawn: NDArray[np.float32]) -> NDArray[np.float32]:
    out = np.empty(drawn.shape, dtype=np.float32)
    for start in range(0, len(drawn), _CHUNK):
        part = slice(start, start + _CHUNK)
        out[part] = normal_quantile(drawn[part])
    return out


def draw(
    specs: Sequence[NoiseSpec], key: bytes, rows: NDArray[Any], step: int = 0, first: int = 0
) -> dict[str, NDArray[np.float32]]:
    """The noise inputs of a graph by name; the i-th has noise number `first` + i."""
    numbered = list(enumerate(specs, first))
    drawn = {spec.name: uniform(key, rows, i, spec.shape, step) for i, spec in numbered}
    normals = [spec.name for spec in specs if spec.law == "normal"]
    if normals:  # all together: a call of the quantile costs as much as 5,000 values
        flat = _normals(np.concatenate([drawn[name].reshape(-1) for name in normals]))
        ends = np.cumsum([drawn[name].size for name in normals])[:-1]
        parts = zip(normals, np.split(flat, ends), strict=True)
        drawn |= {name: part.reshape(drawn[name].shape) for name, part in parts}
    return drawn


def normal_quantile(p: NDArray[Any]) -> _Floats:
    """Inverse of the standard normal distribution on (0, 1), relative error about 1e-16.

    M. J. Wichura, Algorithm AS 241 (PPND16), Applied Statistics 37 (1988), 477-484.
    """
    p = np.asarray(p, dtype=np.float64)
    q = p - 0.5
    out = q * _ratio(0.180625 - q * q, _A, _B)
    tail = np.abs(q) > 0.425
    if tail.any():
        out[tail] = _tail(p[tail], q[tail])
    return out


def _tail(p: _Floats, q: _Floats) -> _Floats:
    r = np.sqrt(-_log(np.where(q < 0, p, 1.0 - p)))
    out = _ratio(r - 1.6, _C, _D)
    far = r > 5.0
    if far.any():
        out[far] = _ratio(r[far] - 5.0, _E, _F)
    return np.where(q < 0, -out, out)


def _ratio(r: _Floats, above: Sequence[float], below: Sequence[float]) -> _Floats:
    out = _polynomial(r, above)
    out /= _polynomial(r, below)
    return out


def _polynomial(r: _Floats, coefficients: Sequence[float]) -> _Floats:
    """Horner's rule, highest power first."""
    out = r * coefficients[0]
    for c in coefficients[1:-1]:
        out += c
        out *= r
    out += coefficients[-1]
    return out


def _log(x: _Floats) -> _Floats:
    """Natural logarithm by arithmetic alone: x = m 2^e with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m-1)/(m+1))."""
    m, e = np.frexp(x)
    low = m < 0.7071067811865476
    m = np.where(low, 2.0 * m, m)
    exponent = (e - low).astype(np.float64)
    s = (m - 1.0) / (m + 1.0)
    series = 2.0 * s * _polynomial(s * s, _ATANH)
    return exponent * _LN2_HIGH + (series + exponent * _LN2_LOW)


_ATANH = tuple(1.0 / k for k in range(23, 0, -2))  # 1 + s^2/3 + s^4/5 + ...; the rest is under 1e-18
_A = (
    2.5090809287301226727e3,
    3.3430575583588128105e4,
    6.7265770927008700853e4,
    4.5921953931549871457e4,
    1.3731693765509461125e4,
    1.9715909503065514427e3,
    1.3314166789178437745e2,
    3.3871328727963666080e0,
)
_B = (
    5.2264952788528545610e3,
    2.8729085735721942674e4,
    3.9307895800092710610e4,
    2.1213794301586595867e4,
    5.3941960214247511077e3,
    6.8718700749205790830e2,
    4.2313330701600911252e1,
    1.0,
)
_C = (
    7.74545014278341407640e-4,
    2.27238449892691845833e-2,
    2.41780725177450611770e-1,
    1.27045825245236838258e0,
    3.64784832476320460504e0,
    5.76949722146069140550e0,
    4.63033784615654529590e0,
    1.42343711074968357734e0,
)
_D = (
    1.05075007164441684324e-9,
    5.47593808499534494600e-4,
    1.51986665636164571966e-2,
    1.48103976427480074590e-1,
    6.89767334985100004550e-1,
    1.67638483018380384940e0,
    2.05319162663775882187e0,
    1.0,
)
_E = (
    2.01033439929228813265e-7,
    2.71155556874348757815e-5,
    1.24266094738807843860e-3,
    2.65321895265761230930e-2,
    2.96560571828504891230e-1,
    1.78482653991729133580e0,
    5.46378491116411436990e0,
    6.65790464350110377720e0,
)
_F = (
    2.04426310338993978564e-15,
    1.42151175831644588870e-7,
    1.84631831751005468180e-5,
    7.86869131145613259100e-4,
    1.48753612908506148525e-2,
    1.36929880922735805310e-1,
    5.99832206555887937690e-1,
    1.0,
)
