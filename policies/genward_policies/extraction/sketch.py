"""What is remembered of a key's conditions: counts and bits in fixed memory, whatever is asked and however often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genward.contracts import Condition
from genward.errors import IntegrityError

if TYPE_CHECKING:
    from genward.data.codec import TableCodec
    from genward.data.quantiles import Quantiles

EXACT, FINE, CELLS = 1 << 16, 1 << 16, 256  # bits, bits, counts
COARSE_BINS, FINE_BINS = 8, 48  # of a number's range
_HEAD = 5
_PRIOR = 20  # queries
_DENSITY_BINS, _LEAST_SHARE = 16, 0.002
_SIZE = EXACT // 8 + FINE // 8 + 8 * (CELLS + _HEAD)


@dataclass(frozen=True, slots=True)
class Query:
    """A request's conditions as places: `exact` of the very conditions, `fine` and `coarse` of their bins, `near` of
    the fine bins beside them. `surprise` is how far the numbers lie from where the release's rows lie, in thousandths
    of a nat; None without a number."""

    exact: int
    fine: int
    coarse: int
    near: tuple[int, ...]
    surprise: int | None = None


@dataclass
class Sketch:
    """Counts of one key on one release; 18.5 kB.

    `queries` that had conditions, `new` ones never asked before, `probes` of them beside something asked before;
    `cells` (256,) how the new ones are spread, `surprise` how far they lie on average from where rows lie.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_HEAD, dtype=np.int64))
    cells: NDArray[np.int64] = field(default_factory=lambda: np.zeros(CELLS, dtype=np.int64))
    exact: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(EXACT // 8, dtype=np.uint8))
    fine: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(FINE // 8, dtype=np.uint8))

    @property
    def queries(self) -> int:
        return int(self.counts[0])

    @property
    def new(self) -> int:
        return int(self.counts[1])

    @property
    def probes(self) -> int:
        return int(self.counts[2])

    @property
    def surprise(self) -> float:
        """Nats a new query with numbers, drawn towards nothing while there are few."""
        return float(self.counts[4]) / 1000 / (float(self.counts[3]) + _PRIOR)

    def add(self, query: Query) -> None:
        """Count a query."""
        known = self._seen(query)
        self.counts[0] += 1
        if not known[0]:
            self.counts[1] += 1
            self.counts[2] += known[1]
            self.cells[query.coarse] += 1
            if query.surprise is not None:
                self.counts[3] += 1
                self.counts[4] += query.surprise
        _set(self.exact, query.exact)
        _set(self.fine, query.fine)

    def _seen(self, query: Query) -> tuple[bool, bool]:
        """Whether the very conditions were asked before; where they were not, whether something beside them was."""
        if _get(self.exact, query.exact):
            return True, True
        return False, any(_get(self.fine, place) for place in (query.fine, *query.near))

    def to_bytes(self) -> bytes:
        """Little-endian counts and cells, then the bits; always as many bytes."""
        words = np.concatenate([self.counts, self.cells]).astype("<i8")
        return words.tobytes() + self.exact.tobytes() + self.fine.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Sketch:
        """Raises IntegrityError when this is no sketch."""
        if len(data) != _SIZE:
            raise IntegrityError(f"a sketch has {_SIZE} bytes, not {len(data)}", where="extraction")
        words = np.frombuffer(data, "<i8", _HEAD + CELLS).astype(np.int64)
        bits = np.frombuffer(data, np.uint8, offset=8 * (_HEAD + CELLS)).copy()
        return cls(words[:_HEAD].copy(), words[_HEAD:].copy(), bits[: EXACT // 8].copy(), bits[EXACT // 8 :].copy())


def _get(bits: NDArray[np.uint8], place: int) -> bool:
    return bool(bits.item(place >> 3) >> (place & 7) & 1)  # a Python number: numpy's own scalars take twice as long


def _set(bits: NDArray[np.uint8], place: int) -> None:
    bits[place >> 3] = bits.item(place >> 3) | 1 << (place & 7)


class Places:
    """Turns conditions into places, by the declared ranges and categories of a release's columns."""

    def __init__(self, codec: TableCodec) -> None:
        self._ranges: dict[str, tuple[float, float]] = {}
        self._surprises: dict[str, list[float]] = {}
        for column in codec.schema.columns:
            if column.is_number:
                low, high = codec.quantiles[column.name].ends
                self._ranges[column.name] = (low, high if high > low else low + 1)
                self._surprises[column.name] = _surprises(codec.quantiles[column.name], *self._ranges[column.name])

    def of(self, conditions: Sequence[Condition]) -> Query:
        """The places of a request's conditions; their order does not count."""
        asked = sorted(conditions, key=_order) if len(conditions) > 1 else conditions
        names = [f"{c.column}\0{c.op}\0" for c in asked]
        exact = [f"{name}{c.value!r}" for name, c in zip(names, asked, strict=True)]
        at = [self._at(c) for c in asked]
        fine = [_bin(share, FINE_BINS) for share in at]
        places = _hash(exact, EXACT), _hash(_bins(names, fine), FINE)
        coarse = _hash(_bins(names, [_bin(share, COARSE_BINS) for share in at]), CELLS)
        return Query(*places, coarse, _beside(names, fine), self._surprise(asked, at))

    def _surprise(self, asked: Sequence[Condition], at: Sequence[float | str]) -> int | None:
        """Of the numbers of a query, their mean."""
        found = [
            self._surprises[c.column][_bin(share, _DENSITY_BINS)]  # type: ignore[index]
            for c, share in zip(asked, at, strict=True)
            if not isinstance(share, str)
        ]
        return round(1000 * sum(found) / len(found)) if found else None

    def _at(self, condition: Condition) -> float | str:
        """Where a number lies in its column's range, 0 to 1; any other value as a word."""
        value, ends = condition.value, self._ranges.get(condition.column)
        if ends is None or isinstance(value, (str, bool, tuple)):
            return str(value)
        return min(max((float(value) - ends[0]) / (ends[1] - ends[0]), 0.0), 1.0)


def _order(condition: Condition) -> tuple[str, str, str]:
    return condition.column, condition.op, str(condition.value)


def _bin(share: float | str, bins: int) -> int | str:
    return share if isinstance(share, str) else int(share * (bins - 1) + 0.5)


def _surprises(quantiles: Quantiles, low: float, high: float) -> list[float]:
    """How unlikely a row's value is in each bin of the range, less the mean of that over rows; nats."""
    middles = np.linspace(low, high, _DENSITY_BINS)
    edges = [quantiles.cdf(float(v)) for v in (middles[1:] + middles[:-1]) / 2]
    shares = np.maximum(np.diff([0.0, *edges, 1.0]), _LEAST_SHARE)
    shares /= shares.sum()
    found: NDArray[np.float64] = -np.log(shares)
    return [float(v) for v in found - float(shares @ found)]


def _beside(names: Sequence[str], fine: Sequence[int | str]) -> tuple[int, ...]:
    """Places with one number a bin off."""
    parts, found = _bins(names, fine), []
    for i, place in enumerate(fine[:4]):
        if isinstance(place, int):
            before, after = parts[:i], parts[i + 1 :]
            found += [_hash([*before, f"{names[i]}{moved}", *after], FINE) for moved in (place - 1, place + 1)]
    return tuple(found)


def _bins(names: Sequence[str], bins: Sequence[int | str]) -> list[str]:
    return [f"{name}{place}" for name, place in zip(names, bins, strict=True)]


def _hash(parts: Sequence[str], size: int) -> int:
    return int.from_bytes(blake2b("\1".join(parts).encode(), digest_size=4).digest(), "little") % size
