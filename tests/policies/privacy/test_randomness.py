"""The source of noise: right laws, nothing to steal."""

from __future__ import annotations

import copy
import os
import pickle
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from genward.errors import UsageError
from genward_policies.privacy.randomness import Randomness

SURELY = 1e-6  # a right law fails a test this rarely


def test_normals_follow_the_normal_law_in_body_and_tail() -> None:
    drawn = Randomness().normal((300_000,))
    assert drawn.dtype == np.float64
    assert stats.kstest(drawn, "norm").pvalue > SURELY
    beyond = int((np.abs(drawn) > 3.5).sum())
    assert stats.binomtest(beyond, drawn.size, 2 * stats.norm.sf(3.5)).pvalue > SURELY
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / np.sqrt(drawn.size)


def test_both_halves_of_a_pair_are_independent() -> None:
    """Box-Muller makes two values of one radius: their squares must not be tied."""
    drawn = Randomness().normal((1 << 16,))
    first, second = drawn[: 1 << 14], drawn[1 << 14 : 1 << 15]
    assert abs(np.corrcoef(first**2, second**2)[0, 1]) < 5 / np.sqrt(1 << 14)


def test_uniforms_gumbels_and_coins_follow_their_laws() -> None:
    source = Randomness()
    uniforms = source.uniform((100_000,))
    assert ((uniforms > 0) & (uniforms < 1)).all()
    assert stats.kstest(uniforms, "uniform").pvalue > SURELY
    assert stats.kstest(source.gumbel((100_000,)), "gumbel_r").pvalue > SURELY
    assert stats.binomtest(int(source.coins(10_000).sum()), 10_000).pvalue > SURELY


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (2, 0, 4), 6])
def test_any_shape(shape: Any) -> None:
    for draw in (Randomness().normal, Randomness().uniform, Randomness().gumbel):
        assert draw(shape).shape == (shape if isinstance(shape, tuple) else (shape,))


@pytest.mark.parametrize(("n", "q"), [(1000, 0.1), (50, 0.5), (40, 0.95), (2000, 0.001)])
def test_a_poisson_batch_takes_each_unit_on_its_own(n: int, q: float) -> None:
    """Sizes follow the binomial law, each unit is there equally often, neighbours know nothing of each other."""
    source, draws = Randomness(), 2000
    there = np.zeros((draws, n), dtype=bool)
    for row in there:
        batch = source.poisson_batch(n, q)
        assert batch.dtype == np.int64
        assert (np.diff(batch) > 0).all()
        row[batch] = True
    sizes = there.sum(axis=1)
    assert stats.kstest(sizes + source.uniform((draws,)), lambda x: _smoothed(x, n, q)).pvalue > SURELY
    each = there.sum(axis=0)
    assert stats.chisquare(each, np.full(n, each.mean())).pvalue > SURELY if n * q * draws > 5 * n else True
    together = int((there[:, 1:] & there[:, :-1]).sum())
    assert stats.binomtest(together, draws * (n - 1), q * q).pvalue > SURELY


def _smoothed(x: Any, n: int, q: float) -> Any:
    """Distribution function of a binomial value plus a uniform."""
    whole = np.floor(x)
    return stats.binom.cdf(whole - 1, n, q) + (x - whole) * stats.binom.pmf(whole, n, q)


def test_empty_and_whole_batches() -> None:
    source = Randomness()
    assert len(source.poisson_batch(0, 0.5)) == 0
    assert len(source.poisson_batch(5, 1e-12)) == 0
    assert source.poisson_batch(5, 1.0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("q", [0.0, -0.1, 1.1, float("nan"), float("inf")])
def test_a_rate_that_means_nothing_is_refused(q: float) -> None:
    with pytest.raises(UsageError, match="sampling rate"):
        Randomness().poisson_batch(10, q)


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_cannot_be_copied_or_pickled(take: Callable[[Any], Any]) -> None:
    with pytest.raises(UsageError, match="never copied"):
        take(Randomness())


def test_two_sources_and_a_forked_child_draw_apart() -> None:
    source = Randomness()
    assert Randomness().uniform((4,)).tolist() != source.uniform((4,)).tolist()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, source.uniform((4,)).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 32) != source.uniform((4,)).tobytes()


def test_torch_and_numpy_seeds_do_not_touch_it() -> None:
    import torch

    def drawn() -> list[float]:
        torch.manual_seed(77)
        np.random.seed(77)
        found: list[float] = Randomness().normal((4,)).tolist()
        return found

    assert drawn() != drawn()


def test_noise_for_a_network_is_made_in_milliseconds() -> None:
    source = Randomness()
    took = []
    for _ in range(5):
        began = time.process_time()
        source.normal((200_000,))
        took.append(time.process_time() - began)
    assert min(took) < 0.05
