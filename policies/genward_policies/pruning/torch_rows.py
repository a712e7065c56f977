"""Rows by torch, for networks that are looked at and not sealed: no export, no session."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from genward import noise
from genward_policies.pruning import cost

if TYPE_CHECKING:
    from genward.candidate import Candidate

_BLOCK = 1024


def made_by_torch(candidate: Candidate, network: Any, config: Any, rows: int) -> tuple[NDArray[np.float32], float]:
    """(encoded rows after decoding, from the noise that judges; CPU seconds of the least block, a row)."""
    graph = candidate.family.graphs(network, config)["sample"]
    module, decoder, secret = graph.module.eval(), candidate.codec.decoder(), cost.key("judge")
    parts, taken = [], []
    for start in range(0, rows, _BLOCK):
        places = np.arange(start, start + _BLOCK, dtype=np.uint64)
        drawn = [torch.from_numpy(v) for v in noise.draw(graph.noise, secret, places).values()]
        given = cost.conditions(candidate.codec, secret, places)
        condition = [] if given is None else [torch.from_numpy(given)]
        began = time.thread_time()
        with torch.no_grad():
            out = module(*drawn, *(condition if graph.conditions else []))
            numbers, codes = decoder(out, *condition)
        taken.append(time.thread_time() - began)
        batch = candidate.codec.decode(numbers.numpy(), codes.numpy())
        parts.append(cost.joined(candidate.codec, pa.Table.from_batches([batch])))
    return np.concatenate(parts)[:rows], min(taken) / _BLOCK
