"""Noise, walks, blocks and the block cache, measured in one run: `python benchmarks/engine.py [--quick]`.

Prints ratios beside absolute figures; a loaded machine moves the latter, hardly the former.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

from genward import noise
from genward.data.codec import TableCodec
from genward.engine import BLOCKS, Engine, choose_block
from genward.export import export, measure_parity
from genward.family import Graph, NoiseSpec
from genward.table import Table, Walk
from genward.testing import small_codec

KEY = b"k" * 16


def best(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the quickest of several runs."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return min(taken)


class Decoder(nn.Module):
    """A VAE's decoder, 16 -> 256 -> 256 -> encoded row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(16, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, width))

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.net(z)
        return out


def noises(repeats: int) -> None:
    rows, count = np.arange(10_000, dtype=np.uint64), 32
    per = 1e9 / (len(rows) * count)
    figures = {
        "AES words": best(lambda: noise.words(KEY, rows, 0, 0, count), repeats),
        "uniform": best(lambda: noise.uniform(KEY, rows, 0, (count,)), repeats),
        "normal": best(lambda: noise.normal(KEY, rows, 0, (count,)), repeats),
        "numpy Philox, one stream, normal": best(
            lambda: np.random.Generator(np.random.Philox(1)).standard_normal((10_000, count), np.float32), repeats
        ),
    }
    few = rows[:1000]
    by_row = best(
        lambda: [np.random.Generator(np.random.Philox(1, counter=int(r))).random(count, np.float32) for r in few], 2
    )
    for name, seconds in figures.items():
        print(f"noise  {name:34} {seconds * per:8.2f} ns a float")
    print(f"noise  {'numpy Philox, one stream a row':34} {by_row * 1e9 / (1000 * count):8.2f} ns a float")


def walks() -> None:
    for slots in (1_000, 100_000, 1_000_000):
        table = Table(slots)
        seconds = best(lambda table=table: Walk(table, KEY, KEY).slots(0, 10), 3)  # type: ignore[misc]
        print(f"walk   order of {slots:>9,} slots            {seconds * 1e3:8.2f} ms")
    large = Walk(Table(10**9), KEY, KEY)
    print(f"walk   100 slots of 10^9 (Feistel)         {best(lambda: large.slots(12345, 100), 5) * 1e6:8.1f} us")


def blocks(codec: TableCodec, exported: Any, repeats: int) -> None:
    for size in BLOCKS:
        engine = Engine(exported.data, codec, Table(None, 1, size), exported.meta, pool_key=KEY)
        seconds = best(lambda e=engine, s=size: e._compute(KEY, 0), repeats)  # type: ignore[misc]
        print(f"block  {size:5} rows                          {size / seconds:10,.0f} rows/s")
    print(f"block  choose_block                        {choose_block(exported.data, exported.meta):8}")


def pages(codec: TableCodec, exported: Any, repeats: int) -> None:
    pool = Engine(exported.data, codec, Table(100_000, 1, 256), exported.meta, pool_key=KEY)
    recent = Engine(exported.data, codec, Table(None, 1, 256), exported.meta, pool_key=KEY)
    pool.prewarm()
    walk = Walk(pool.table, KEY, KEY)
    for n in (1, 100, 10_000):
        slots = walk.slots(17, n)
        kept = best(lambda slots=slots: pool.candidates(slots), 20 * repeats)  # type: ignore[misc]
        fresh = Engine(exported.data, codec, Table(None, 1, 256), exported.meta, pool_key=KEY, cache_bytes=0)
        again = best(lambda e=fresh, slots=slots: e.candidates(slots), 2)  # type: ignore[misc]
        print(
            f"page   {n:6} rows cached {kept * 1e6:9.1f} us {n / kept:14,.0f} rows/s,"
            f" recomputed {again * 1e3:8.1f} ms: {again / kept:8,.0f}x"
        )
    rows = 200 * 256
    seconds = best(lambda: [None for _ in recent.stream(0, rows)], 2)
    print(f"stream {rows:6} rows                          {rows / seconds:10,.0f} rows/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    repeats = 3 if parser.parse_args().quick else 20
    torch.set_num_threads(1)
    noises(repeats)
    walks()
    codec = small_codec()
    exported = export(Graph(Decoder(codec.spec.width).eval(), [NoiseSpec("z", (16,))]), codec)
    report = measure_parity(exported)
    print(f"parity {report.n} rows: max {report.max:.2g}, codes {report.code_rate:.2g}, flips {report.flip_rate:.2g}")
    blocks(codec, exported, repeats)
    pages(codec, exported, repeats)


if __name__ == "__main__":
    main()
