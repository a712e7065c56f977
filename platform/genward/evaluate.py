"""How good synthetic rows are, measured on rows that training never saw, beside real rows against real rows.

c2st: can a booster tell synthetic from real (0.5: no). tstr: what a model trained on synthetic rows is worth on real
ones. one_way: how far single columns are apart. copies: training rows that came back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genward.contracts import Evidence, Progress
from genward.data.readers import as_numbers
from genward.data.schema import Schema
from genward.errors import DataError

Floats = NDArray[np.float64]
MOST = 10_000  # rows of each kind that the slow measures look at
FOLDS = 5
FEWEST = 50  # rows of each kind below which a booster hardly splits and would call anything alike
_SEED = 20_260_101


def evaluate(
    real_train: pa.Table,
    real_test: pa.Table,
    synthetic: pa.Table,
    schema: Schema,
    target: str | None,
    progress: Progress,
) -> list[Evidence]:
    """All measures. `target` is the column that the usefulness test predicts; without one it is not measured.

    Raises DataError when a table has no row. With few rows a measure says that it was not taken, and why.
    """
    sides = {"training": real_train, "held-out": real_test, "synthetic": synthetic}
    if empty := [name for name, side in sides.items() if not side.num_rows]:
        raise DataError(f"there are no {empty[0]} rows to judge by", remedy="give a larger table")
    train, test, made = (features(table, schema) for table in (real_train, real_test, synthetic))
    measures: list[Callable[[], list[Evidence]]] = [
        lambda: [_one_way(train, test, made, schema)],
        lambda: [_c2st(train, test, made)],
        lambda: [_tstr(real_train, real_test, synthetic, schema, target)],
        lambda: [_copies(train, test, made)],
        lambda: [_nearest(train, test, made)],
    ]
    progress.start("evaluate", len(measures))
    found: list[Evidence] = []
    for done, measure in enumerate(measures):
        found += measure()
        progress.update(done + 1, found[-1].claim)
    progress.finish(f"c2st {_value(found, 'c2st')}, tstr {_value(found, 'tstr')}")
    return found


def _value(found: Sequence[Evidence], claim: str) -> str:
    value = next((e.value for e in found if e.claim == claim), None)
    return "not measured" if value is None else f"{value:.3f}"


def features(table: pa.Table, schema: Schema, leave: Sequence[str] = ()) -> Floats:
    """Columns as float64 (N, columns): numbers as they are, choices as codes, NaN for missing."""
    parts = []
    for column in schema.columns:
        if column.name in leave:
            continue
        array = table[column.name].combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = array.chunk(0)
        if pa.types.is_dictionary(array.type):
            array = array.cast(pa.string())
        if column.kind == "categorical":
            array = pc.index_in(array, value_set=pa.array(column.categories, pa.string())).cast(pa.float64())
        elif column.kind == "boolean":
            array = array.cast(pa.int8()).cast(pa.float64())
        else:
            array = as_numbers(array)
        parts.append(array.to_numpy(zero_copy_only=False).astype(np.float64))
    return np.column_stack(parts)


def _one_way(train: Floats, test: Floats, made: Floats, schema: Schema) -> Evidence:
    """Mean over columns of the largest gap between two distributions (KS for numbers, total variation for choices)."""
    choices = [not c.is_number for c in schema.columns]
    each = np.array([_gap(made[:, i], test[:, i], choice) for i, choice in enumerate(choices)])
    reference = np.array([_gap(train[:, i], test[:, i], choice) for i, choice in enumerate(choices)])
    low, high = _bootstrap(each)
    method = (
        "mean over columns of Kolmogorov-Smirnov or total variation distance to held-out rows; interval over columns"
    )
    extra = {c.name: float(gap) for c, gap in zip(schema.columns, each, strict=True)}
    return Evidence("one_way", float(each.mean()), method, len(made), low, high, "", float(reference.mean()), extra)


def _gap(a: Floats, b: Floats, choice: bool) -> float:
    """Distance of two columns, missing values being a value of their own."""
    gone = abs(float(np.isnan(a).mean()) - float(np.isnan(b).mean()))
    x, y = np.sort(a[~np.isnan(a)]), np.sort(b[~np.isnan(b)])
    if len(x) == 0 or len(y) == 0:
        return gone
    values = np.unique(np.concatenate([x, y]))
    if choice:
        shares = [np.array([np.mean(side == v) for v in values]) for side in (x, y)]
        return max(gone, float(0.5 * np.abs(shares[0] - shares[1]).sum()))
    below = [np.searchsorted(side, values, side="right") / len(side) for side in (x, y)]
    return max(gone, float(np.abs(below[0] - below[1]).max()))


def _c2st(train: Floats, test: Floats, made: Floats) -> Evidence:
    """Classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv:1610.06545): cross-validated AUC of a booster."""
    n = min(len(test), len(made), len(train), MOST)
    if n < FEWEST:
        return Evidence("c2st", None, f"not measured: {n} rows of each kind, {FEWEST} are needed", 2 * n)
    scores = _auc(_some(test, n), _some(made, n))
    reference = _auc(_some(test, n), _some(train, n))
    mean, half = float(scores.mean()), float(1.96 * scores.std(ddof=1) / np.sqrt(len(scores)))
    method = f"{FOLDS}-fold AUC of gradient boosting, held-out rows against as many synthetic; interval over folds"
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    return Evidence("c2st", mean, method, 2 * n, low, high, "", float(reference.mean()))


def _auc(a: Floats, b: Floats) -> Floats:
    """AUC of each fold."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    x, y = np.vstack([a, b]), np.r_[np.zeros(len(a)), np.ones(len(b))]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=_SEED % 2**32)
    found = []
    for seen, left in folds.split(x, y):
        model, known = _booster(HistGradientBoostingClassifier, x[seen], y[seen])
        found.append(roc_auc_score(y[left], model.decision_function(np.where(known, x[left], 0.0))))
    return np.array(found)


def _booster(kind: Any, x: Floats, y: Floats) -> tuple[Any, NDArray[np.bool_]]:
    """A fitted booster and which columns have a value; the others are no features, and it fails on them."""
    known = np.asarray(~np.isnan(x).all(axis=0))
    return kind(random_state=0, early_stopping=False).fit(np.where(known, x, 0.0), y), known


def _tstr(
    real_train: pa.Table, real_test: pa.Table, synthetic: pa.Table, schema: Schema, target: str | None
) -> Evidence:
    """Train on synthetic, test on real (Esteban et al. 2017, arXiv:1706.02633): the score and its real reference."""
    if target is None:
        return Evidence("tstr", None, "not measured: no target column was named")
    numeric = schema.column(target).is_number
    sides = [_supervised(table, schema, target) for table in (real_train, real_test, synthetic)]
    (x, y), (test_x, test_y), (made_x, made_y) = sides
    least = min(len(y), len(test_y), len(made_y))
    if least < FEWEST:
        return Evidence("tstr", None, f"not measured: {least} rows with {target}, {FEWEST} are needed", least)
    if not numeric and min(len(set(y)), len(set(made_y))) < 2:
        return Evidence("tstr", None, f"not measured: {target} has one category only", least)
    n = min(len(y), len(made_y))
    score = _fitted(made_x[:n], made_y[:n], numeric)
    real = _fitted(x[:n], y[:n], numeric)
    value, reference = score(test_x, test_y), real(test_x, test_y)
    low, high = _resampled(score, test_x, test_y)
    what = "R^2" if numeric else "accuracy"
    method = f"{what} of gradient boosting for {target} on held-out rows, trained on {n} synthetic; bootstrap interval"
    return Evidence("tstr", value, method, len(test_y), low, high, "", reference)


def _supervised(table: pa.Table, schema: Schema, target: str) -> tuple[Floats, Floats]:
    """Features without the target and its twin (S_p is predicted without S_n's own p side), and the target."""
    keep = table.filter(table[target].is_valid())
    own = target.rpartition("_")[2]
    twins = [n for n in schema.names if own and "_" in target and n.rpartition("_")[2] == own]
    others = [name for name in schema.names if name not in {target, *twins}]
    leave = {target, *twins} if others else {target}
    only = schema.model_copy(update={"columns": (schema.column(target),), "sums": ()})
    return features(keep, schema, tuple(leave)), features(keep, only)[:, 0]


def _fitted(x: Floats, y: Floats, numeric: bool) -> Callable[[Floats, Floats], float]:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if numeric else HistGradientBoostingClassifier
    model, known = _booster(kind, x, y)
    return lambda test_x, test_y: float(model.score(np.where(known, test_x, 0.0), test_y))


def _resampled(score: Any, x: Floats, y: Floats, times: int = 30) -> tuple[float, float]:
    rng = np.random.default_rng(_SEED)
    found = []
    for _ in range(times):
        index = rng.integers(len(y), size=len(y))
        found.append(score(x[index], y[index]))
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def _copies(train: Floats, test: Floats, made: Floats) -> Evidence:
    """Synthetic rows that equal a training row in every column; the reference is held-out rows that do."""
    known = {row.tobytes() for row in _exact(train)}
    share = [float(np.mean([row.tobytes() in known for row in _exact(side)])) for side in (made, test)]
    low, high = _wilson(round(share[0] * len(made)), len(made))
    method = "share of synthetic rows equal to a training row in every column; Wilson interval"
    return Evidence("exact_copies", share[0], method, len(made), low, high, "", share[1])


def _exact(rows: Floats) -> Floats:
    return np.ascontiguousarray(np.where(np.isnan(rows), np.inf, rows))


def _nearest(train: Floats, test: Floats, made: Floats) -> Evidence:
    """Share of synthetic rows that lie closer to a training row than to a held-out one, both sets equally large."""
    n = min(len(train), len(test), 2_000)
    m = min(len(made), 2_000)
    known = np.where(np.isnan(train).all(axis=0), 0.0, train)
    scale = np.nanmedian(np.abs(known - np.nanmedian(known, axis=0)), axis=0)
    near, far, rows = (_scaled(_some(side, k), scale) for side, k in ((train, n), (test, n), (made, m)))
    closer = _distances(rows, near) < _distances(rows, far)
    low, high = _wilson(int(closer.sum()), m)
    method = f"share of synthetic rows nearer to one of {n} training rows than of {n} held-out; 0.5 is no memory"
    return Evidence("nearest_is_training", float(closer.mean()), method, m, low, high, "", 0.5)


def _scaled(rows: Floats, scale: Floats) -> Floats:
    """Robust units on an asinh scale; a gap lies far from every value."""
    return np.where(np.isnan(rows), 20.0, np.arcsinh(rows / np.where(scale > 0, scale, 1.0)))


def _distances(rows: Floats, others: Floats) -> Floats:
    from sklearn.neighbors import NearestNeighbors

    found: Floats = NearestNeighbors(n_neighbors=1).fit(others).kneighbors(rows)[0][:, 0]
    return found


def _some(rows: Floats, n: int) -> Floats:
    """n rows drawn without replacement, the same ones every time."""
    return rows[np.random.default_rng(_SEED).permutation(len(rows))[:n]]


def _bootstrap(values: Floats, times: int = 1000) -> tuple[float, float]:
    rng = np.random.default_rng(_SEED)
    means = values[rng.integers(len(values), size=(times, len(values)))].mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def _wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z, p = 1.96, hits / n
    middle, half = p + z * z / (2 * n), z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def plots(synthetic: pa.Table, real: pa.Table, schema: Schema, path: Path) -> None:
    """Every column's distribution, held-out real beside synthetic, as one PNG. Gaps are told in the title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(4, len(schema.columns))
    down = -(-len(schema.columns) // across)
    figure = Figure(figsize=(3.2 * across, 2.4 * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    sides = [features(table, schema) for table in (real, synthetic)]
    for i, column in enumerate(schema.columns):
        _marginal(axes[i], column.name, column.is_number, sides[0][:, i], sides[1][:, i])
    for spare in axes[len(schema.columns) :]:
        spare.axis("off")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=100, format="png")


def _marginal(axes: Any, name: str, number: bool, real: Floats, made: Floats) -> None:
    """Histograms on shared edges; quantiles of the real values set them, so that heavy tails stay readable."""
    gaps = "/".join(f"{100 * float(np.isnan(side).mean()):.0f}" for side in (real, made))
    plain = name.replace("$", r"\$")  # a dollar would begin a formula, and a lone one fails
    axes.set_title(f"{plain}\n(gaps {gaps} %)", fontsize=7)
    axes.tick_params(labelsize=6)
    there = real[~np.isnan(real)]
    if not len(there):
        return
    low, high = np.quantile(there, [0.01, 0.99]) if number else (there.min() - 0.5, there.max() + 0.5)
    edges = np.linspace(low, high if high > low else low + 1, 41 if number else int(high - low) + 1)
    for label, side in (("real", there), ("synthetic", made[~np.isnan(made)])):
        weights = np.full(len(side), 1 / max(1, len(side)))
        axes.hist(side, bins=edges, weights=weights, alpha=0.5, label=label)
