"""Keyed noise: golden values for ever, an independent oracle, and independence of how rows are asked for."""

from __future__ import annotations

import hashlib
from statistics import NormalDist

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from genward import noise
from genward.errors import UsageError
from genward.family import NoiseSpec

KEY = bytes(range(16))


def test_golden_words_never_change() -> None:
    found = noise.words(KEY, np.array([0, 1, 2**40]), 3, 5, 2)
    assert found.tolist() == [[3515647394, 3623140383], [975897906, 3906708098], [1205684556, 3991891081]]


def test_golden_normals_and_uniforms_never_change() -> None:
    rows = np.arange(5000, dtype=np.uint64)
    digests = [
        hashlib.sha256(law(KEY, rows, 1, (7,)).tobytes()).hexdigest()[:16] for law in (noise.normal, noise.uniform)
    ]
    assert digests == GOLDEN


GOLDEN = ["db7552cb950c474a", "98d2acacdc3454ae"]


def test_layout_is_the_documented_one() -> None:
    """Row, noise << 24 | step and block, little-endian, through AES-128 alone."""
    counter = (123456789).to_bytes(8, "little") + (7 << 24 | 99).to_bytes(4, "little") + (2).to_bytes(4, "little")
    out = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor().update(counter)  # noqa: S305
    found = noise.words(KEY, np.array([123456789]), 7, 99, 12)[0, 8:]
    assert found.tobytes() == out


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=30), st.integers(1, 9))
def test_a_row_is_the_same_however_it_is_asked_for(rows: list[int], count: int) -> None:
    together = noise.normal(KEY, np.array(rows, dtype=np.uint64), 2, (count,), 3)
    alone = [noise.normal(KEY, np.array([row], dtype=np.uint64), 2, (count,), 3)[0] for row in rows]
    assert together.tobytes() == np.array(alone).tobytes()


def test_contiguous_scattered_and_split_rows_agree() -> None:
    rows = np.arange(20_000)
    whole = noise.normal(KEY, rows, 0, (3,))
    order = np.random.default_rng(0).permutation(rows)
    assert noise.normal(KEY, order, 0, (3,)).tobytes() == whole[order].tobytes()
    parts = [noise.normal(KEY, part, 0, (3,)) for part in np.array_split(rows, 7)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_quantile_agrees_with_an_independent_one() -> None:
    """statistics.NormalDist computes AS241 with the C library's logarithm."""
    rng = np.random.default_rng(1)
    tails = 10.0 ** -rng.uniform(0, 300, 2000)
    p = np.concatenate([rng.random(5000), tails, 1 - 10.0 ** -rng.uniform(0, 15, 2000)])
    oracle = np.array([NormalDist().inv_cdf(x) for x in p])
    np.testing.assert_allclose(noise.normal_quantile(p), oracle, rtol=2e-15, atol=1e-300)


def test_logarithm_by_arithmetic_is_exact_to_an_ulp_or_two() -> None:
    x = 10.0 ** -np.random.default_rng(2).uniform(0, 300, 5000)
    np.testing.assert_allclose(noise._log(x), np.log(x), rtol=6e-16)


def test_uniforms_never_reach_the_ends() -> None:
    words = np.array([0, 2**32 - 1], dtype=np.uint32) >> np.uint32(9)
    ends = (words.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
    assert 0 < ends[0] < ends[1] < 1 and np.isfinite(noise.normal_quantile(ends)).all()
    assert noise.uniform(KEY, np.arange(100_000), 0).dtype == np.float32


def test_laws_and_independence_of_addresses() -> None:
    """Kolmogorov distance below its 0.1 % point, no correlation over rows, noises, steps and words."""
    n, normal = 50_000, NormalDist()
    rows = np.arange(n)
    drawn = np.sort(noise.normal(KEY, rows, 0).astype(float))
    cdf = np.array([normal.cdf(x) for x in drawn])
    assert np.abs(cdf - (np.arange(n) + 0.5) / n).max() < 1.95 / n**0.5
    many = np.concatenate([noise.normal(KEY, rows, a, (3,), s) for a in (0, 1) for s in (0, 1)], axis=1)
    many = np.concatenate([many, np.roll(many[:, :1], 1, axis=0)], axis=1)
    assert np.abs(np.corrcoef(many.T) - np.eye(13)).max() < 5 / n**0.5
    assert np.abs(many.std(axis=0) - 1).max() < 5 / n**0.5


def test_draw_names_noises_in_order() -> None:
    drawn = noise.draw([NoiseSpec("z", (2,)), NoiseSpec("u", (), "uniform")], KEY, np.arange(4), 6)
    assert drawn["z"].tobytes() == noise.normal(KEY, np.arange(4), 0, (2,), 6).tobytes()
    assert drawn["u"].tobytes() == noise.uniform(KEY, np.arange(4), 1, (), 6).tobytes()


def test_no_rows_and_no_words_are_empty() -> None:
    assert noise.normal(KEY, np.arange(0), 0, (3,)).shape == (0, 3)
    assert noise.uniform(KEY, np.arange(3), 0, (0,)).shape == (3, 0)


@pytest.mark.parametrize(("key", "place", "step"), [(b"short", 0, 0), (KEY, 256, 0), (KEY, 0, 2**24), (KEY, -1, 0)])
def test_what_cannot_be_addressed_is_refused(key: bytes, place: int, step: int) -> None:
    with pytest.raises(UsageError):
        noise.words(key, np.arange(2), place, step)
