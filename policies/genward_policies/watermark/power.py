"""Which scheme a release gets: the least distorting one of a small grid that has the power the policy asks for.

Everything is simulated on rows of the release's own generator under the key that everybody knows, so nothing about
rows it was trained on enters. What marking costs and how often the innocent are accused is measured beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from genward.contracts import Evidence, Progress, Silent
from genward.errors import CheckFailed
from genward_policies.watermark.attacks import attacked
from genward_policies.watermark.config import WatermarkConfig, parsed
from genward_policies.watermark.exam import Columns, Exam, Usual, levels
from genward_policies.watermark.marking import MarkKey, scores
from genward_policies.watermark.scheme import Axis, Levels, Scheme, axes_of, binned, drawn
from genward_policies.watermark.statistic import NORMAL, needed

GRID = (  # bins of a column, and one case in how many two rows share a cell; the finest, which distort least, first
    (24, 1024), (16, 1024), (24, 256), (16, 256), (16, 128), (24, 64), (16, 64), (24, 32), (16, 32), (24, 16), (16, 16),
)  # fmt: skip
HASHES = 32
LEAST = 0.99  # power
ROWS = (100, 300, 1000, 3000)  # of the curve
_FIRST, _MORE, _CURVE = 10, 60, 8  # files looked at: to choose a scheme, to claim its power, a point of the curve
_HOPEFUL = 0.95  # power by few files that is worth a closer look
_JUDGED = 5000  # rows a side that a classifier sees
_SOME = 5000  # rows by which hashes are drawn
_KEYS = 10_000  # random keys of a calibration
_ALPHA = 0.01
_FOLDS = 3


@dataclass(frozen=True)
class Ground:
    """Rows to simulate on: `usual` are unmarked; `pool` are slots of `most` candidates each, side by side."""

    usual: Columns
    pool: Columns
    most: int
    seed: int = 0

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        numbers = {name: v for name, v in self.usual.items() if v.dtype.kind == "f"}
        return axes_of(numbers, {name: v for name, v in self.usual.items() if v.dtype.kind != "f"})

    @cached_property
    def usual_levels(self) -> Levels:
        return levels(self.axes, self.usual)

    @cached_property
    def pool_levels(self) -> Levels:
        """(slots, candidates, axes)"""
        found = levels(self.axes, self.pool)
        return found.reshape(-1, self.most, found.shape[1])

    @property
    def slots(self) -> int:
        return len(self.pool_levels)

    def scheme(self, bins: int, spread: int, candidates: int, config: WatermarkConfig) -> Scheme:
        """A scheme of the grid, its hashes drawn anew."""
        rng = np.random.default_rng(self.seed)
        steady = self.steady(bins, config.power.under)
        hashes, offsets = drawn(self.axes, self.usual_levels[:_SOME], bins, spread, HASHES, rng, steady)
        rows = len(self.usual_levels)
        return Scheme(self.axes, hashes, offsets, bins, candidates, config.payload, rows, config.power.at_fpr)

    def steady(self, bins: int, under: Sequence[str]) -> NDArray[np.float64]:
        """Share of rows that keep their bin of a column (axes,), under the attack that moves most."""
        some = {name: values[:_SOME] for name, values in self.usual.items()}
        before, found = self.usual_levels[:_SOME], np.ones(len(self.axes))
        for attack in under:
            if parsed(attack)[0] in ("noise", "round"):
                after = levels(self.axes, attacked(some, attack, self.usual, np.random.default_rng(self.seed)))
                for place, axis in enumerate(self.axes):
                    same = binned(before[:, place], axis, bins, 0) == binned(after[:, place], axis, bins, 0)
                    found[place] = min(found[place], float(same.mean()))
        return found

    def columns(self, rows: NDArray[np.intp]) -> Columns:
        """Rows of the pool."""
        return {name: values[rows] for name, values in self.pool.items()}

    def some_usual(self, n: int, rng: np.random.Generator) -> Columns:
        rows = rng.integers(0, len(self.usual_levels), n)
        return {name: values[rows] for name, values in self.usual.items()}


@dataclass(frozen=True)
class Trial:
    """A scheme on its ground."""

    ground: Ground
    scheme: Scheme

    @cached_property
    def usual(self) -> Usual:
        return Usual(self.scheme, self.ground.usual_levels)

    def chosen(self, key: MarkKey) -> NDArray[np.intp]:
        """Which row of the pool a key chooses in each slot."""
        slots, most, _ = self.ground.pool_levels.shape
        k = self.scheme.candidates
        flat = self.ground.pool_levels[:, :k].reshape(slots * k, -1)
        best = scores(self.scheme.cells(flat), [key]).reshape(slots, k).argmax(axis=1)
        return np.asarray(np.arange(slots) * most + best)

    def z(self, attack: str, rows: int, files: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """z of marked files of so many rows after an attack, each under a key of its own."""
        return np.array([self._one(attack, rows, rng) for _ in range(files)])

    def _one(self, attack: str, rows: int, rng: np.random.Generator) -> float:
        key = MarkKey(rng.bytes(16))
        file = self.ground.columns(rng.permutation(self.chosen(key))[:rows])
        return Exam.of(self.usual, attacked(file, attack, self.ground.usual, rng)).weights.z(key)


def power(z: NDArray[np.float64], p: float) -> tuple[float, float, float]:
    """(chance that such a z passes p by the bound, ends of its 95 % interval): normal, from mean and deviation."""
    spread = max(float(z.std(ddof=1)), 1e-9) if len(z) > 1 else 1.0
    far = (float(z.mean()) - needed(p)) / spread
    half = 1.96 * math.sqrt((1 + far * far / 2) / len(z))
    return NORMAL.cdf(far), NORMAL.cdf(far - half), NORMAL.cdf(far + half)


@dataclass(frozen=True)
class Found:
    """The scheme that was taken, and what was measured of it."""

    scheme: Scheme
    evidence: tuple[Evidence, ...]


def search(ground: Ground, config: WatermarkConfig, progress: Progress | None = None) -> Found:
    """The first scheme of the grid with the power, within the limit of distortion; CheckFailed says how near the
    nearest came."""
    progress = progress or Silent()
    _require_room(ground, config)
    tried: list[tuple[float, str]] = []
    progress.start("watermark", len(GRID))
    for step, scheme in enumerate(_schemes(ground, config)):
        progress.update(step, described(scheme))
        trial = Trial(ground, scheme)
        worst, attack = _worst(trial, config)
        tried.append((worst, f"{described(scheme)}: power {worst:.3f} {attack or 'untouched'}"))
        if worst < _HOPEFUL:
            continue
        price = distortion(trial)
        if price.value is None or price.value > config.auc_max:
            tried[-1] = (worst, f"{described(scheme)}: AUC {price.value:.3f}")
            continue
        claims = [claim(trial, config, attack) for attack in ("", *config.power.under)]
        if all(item.value is not None and item.value >= LEAST for item in claims):
            progress.finish(described(scheme))
            return Found(scheme, (*claims, price, unmarked(trial)))
    raise _unmet(tried, config)


def _require_room(ground: Ground, config: WatermarkConfig) -> None:
    if config.power.rows > ground.slots:
        raise CheckFailed(
            f"power is asked for at {config.power.rows} rows, and {ground.slots} are drawn to measure it",
            where="watermark.power.rows", remedy=f"ask for at most {ground.slots}",
        )  # fmt: skip


def _schemes(ground: Ground, config: WatermarkConfig) -> Iterator[Scheme]:
    for k in sorted({2, 4, config.candidates}):
        if k <= min(config.candidates, ground.most):
            for bins, spread in GRID:
                yield ground.scheme(bins, spread, k, config)


def described(scheme: Scheme) -> str:
    """A scheme in a few words."""
    sizes = sorted({len(columns) for columns in scheme.hashes})
    most = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
    return f"best of {scheme.candidates}, {len(scheme.hashes)} hashes of {most} columns in {scheme.bins} bins"


def _worst(trial: Trial, config: WatermarkConfig) -> tuple[float, str]:
    """(least power, attack), from few files."""
    rng = np.random.default_rng(trial.ground.seed + 1)
    found = []
    for attack in ("", *config.power.under):
        value = power(trial.z(attack, config.power.rows, _FIRST, rng), config.power.at_fpr)[0]
        found.append((value, attack))
        if value < 0.9:
            break
    return min(found)


def _unmet(tried: Sequence[tuple[float, str]], config: WatermarkConfig) -> CheckFailed:
    nearest = max(tried, default=(0.0, "no scheme fits the columns"))[1]
    return CheckFailed(
        f"no scheme has power {LEAST} at {config.power.rows} rows within AUC {config.auc_max:g}; nearest: {nearest}",
        where="watermark.power",
        remedy="raise power.rows, candidates or auc_max, or name fewer attacks under power.under",
    )


# Evidence


def claim(trial: Trial, config: WatermarkConfig, attack: str = "") -> Evidence:
    """Power at the policy's number of rows under an attack, and a curve over rows beside it."""
    rng = np.random.default_rng(trial.ground.seed + 2)
    rows, p = config.power.rows, config.power.at_fpr
    z = trial.z(attack, rows, _MORE, rng)
    value, low, high = power(z, p)
    curve = {
        str(n): round(power(trial.z(attack, n, _CURVE, rng), p)[0], 4)
        for n in ROWS
        if n <= trial.ground.slots and n != rows
    }
    extra = {
        "rows": rows, "at_fpr": p, "z_mean": float(z.mean()), "z_sd": float(z.std()), "by_rows": curve,
        "recognised": int((z >= needed(p)).sum()),
    }  # fmt: skip
    name = f"watermark.power.{attack}" if attack else "watermark.power"
    method = (
        f"chance that a marked file of {rows} rows passes {p:g} by the bound exp(-z^2/2)"
        f"{', after ' + attack if attack else ''}; normal law of z over files of keys of their own"
    )
    return Evidence(name, value, method, _MORE, low, high, "", LEAST, extra)


def distortion(trial: Trial) -> Evidence:
    """How well a classifier tells one tenant's marked rows from unmarked ones (two-sample test, 0.5 is alike)."""
    from genward.evaluate.stats import around

    marked, other = _sides(trial)
    value, variance = _validated(marked, other)
    low, high = around(value, variance**0.5)
    what = "AUC of gradient boosting, rows of one key against unmarked ones; DeLong's interval"
    method = f"{_FOLDS}-fold cross-validated {what}"
    return Evidence("watermark.auc", value, method, len(marked) + len(other), low, high, "", 0.5)


def _sides(trial: Trial) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Marked rows of half of the slots, the first candidates of the others."""
    rng = np.random.default_rng(trial.ground.seed + 3)
    order, n = rng.permutation(trial.ground.slots), min(_JUDGED, trial.ground.slots // 2)
    marked = trial.chosen(MarkKey(rng.bytes(16)))[order[:n]]
    plain = order[n : 2 * n] * trial.ground.most
    sides = [trial.ground.columns(rows) for rows in (marked, plain)]
    a, b = (np.column_stack([v.astype(np.float64) for v in side.values()]) for side in sides)
    return a, b


def _validated(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """(mean over folds of the AUC on rows left out, its variance)."""
    from sklearn.model_selection import StratifiedKFold

    from genward.evaluate.classify import booster
    from genward.evaluate.stats import auc

    x, y = np.vstack([a, b]), np.r_[np.ones(len(a)), np.zeros(len(b))]
    found = []
    for seen, left in StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(x, y):
        told = booster(x[seen], y[seen], False)(x[left], "decision_function")
        found.append(auc(told[y[left] == 1], told[y[left] == 0]))
    areas, spreads = np.array(found).T
    return float(areas.mean()), float(spreads.sum()) / _FOLDS**2


def unmarked(trial: Trial) -> Evidence:
    """False positives on unmarked rows of the release."""
    rng = np.random.default_rng(trial.ground.seed + 4)
    file = trial.ground.columns(rng.permutation(trial.ground.slots)[:1000] * trial.ground.most)
    return false_positives(trial, file, "unmarked", "unmarked rows of the release")


def false_positives(trial: Trial, file: Columns, name: str, what: str) -> Evidence:
    """How often a random key passes the level 0.01 of the normal law on a file that no key marked."""
    from genward.evaluate.stats import wilson

    weights = Exam.of(trial.usual, file).weights
    z = weights.decoys(_KEYS, MarkKey(np.random.default_rng(trial.ground.seed + 5).bytes(16)))
    hits = int((z >= NORMAL.inv_cdf(1 - _ALPHA)).sum())
    low, high = wilson(hits, _KEYS)
    by_bound = float((z >= needed(_ALPHA)).mean())
    method = f"share of {_KEYS} random keys above the normal law's 0.01 on {weights.rows} {what}; Wilson's interval"
    extra = {"rows": weights.rows, "z_sd": float(z.std()), "by_bound": by_bound}
    return Evidence(f"watermark.false_positives.{name}", hits / _KEYS, method, _KEYS, low, high, "", _ALPHA, extra)


def withheld() -> Evidence:
    """In the place of what would look at protected rows."""
    return Evidence("watermark.false_positives.real", None, "withheld: held-out rows are protected")
