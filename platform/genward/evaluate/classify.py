"""What a classifier sees: whether synthetic rows can be told from real ones, and what they are worth to learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genward.contracts import Evidence
from genward.data.schema import Schema
from genward.evaluate.sides import Floats, Sides
from genward.evaluate.stats import around, auc, middle, newcombe, wilson

FEWEST = 50  # rows of a kind below which a booster hardly splits and would call anything alike
_CLASSES = 8  # a booster grows a tree a class; with more classes than these it grows fewer rounds
_ROUNDS = 100


def booster(x: Floats, y: Floats, numeric: bool) -> Callable[[Floats, str], Floats]:
    """A fitted gradient booster as a function of rows and of the method to call.

    One thread: results do not hang on the machine, and threads that wait for each other burn what they save. Columns
    without a value are no features, and it fails on them.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    known = ~np.isnan(x).all(axis=0)
    rounds = _ROUNDS if numeric else max(10, min(_ROUNDS, _ROUNDS * _CLASSES // len(np.unique(y))))
    kind = HistGradientBoostingRegressor if numeric else HistGradientBoostingClassifier
    with threadpool_limits(1):
        model = kind(random_state=0, early_stopping=False, max_iter=rounds).fit(np.where(known, x, 0.0), y)

    def call(rows: Floats, method: str) -> Floats:
        with threadpool_limits(1):
            return np.asarray(getattr(model, method)(np.where(known, rows, 0.0)))

    return call


def c2st(sides: Sides) -> list[Evidence]:
    """Classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv:1610.06545): AUC of a booster, 0.5 is alike."""
    n = min(len(sides.test), len(sides.made), len(sides.train), sides.settings.rows)
    if n >= FEWEST:
        return [_crossed(sides, n)]
    if min(len(sides.train), len(sides.made)) >= 2 * FEWEST and len(sides.test) > 1:
        return [_taught(sides)]
    return [Evidence("c2st", None, f"not measured: {n} rows of each kind, {FEWEST} are needed", 2 * n)]


def _crossed(sides: Sides, n: int) -> Evidence:
    test, made, train = (sides.some(side, n) for side in (sides.test, sides.made, sides.train))
    folds = sides.settings.folds
    (value, spread), (reference, _) = (_validated(other, test, folds) for other in (made, train))
    low, high = around(value, spread**0.5)
    method = (
        f"{folds}-fold cross-validated AUC of gradient boosting, synthetic rows against as many held-out; "
        "DeLong's interval"
    )
    return Evidence("c2st", value, method, 2 * n, low, high, "", reference)


def _validated(a: Floats, b: Floats, folds: int) -> tuple[float, float]:
    """(mean over folds of the AUC on the rows left out, its variance)."""
    from sklearn.model_selection import StratifiedKFold

    x, y = np.vstack([a, b]), np.r_[np.ones(len(a)), np.zeros(len(b))]
    found = []
    for seen, left in StratifiedKFold(folds, shuffle=True, random_state=0).split(x, y):
        score = booster(x[seen], y[seen], False)(x[left], "decision_function")
        found.append(auc(score[y[left] == 1], score[y[left] == 0]))
    areas, spreads = np.array(found).T
    return float(areas.mean()), float(spreads.sum()) / folds**2


def _taught(sides: Sides) -> Evidence:
    """With few held-out rows: learnt from training rows against half of the synthetic, asked of the held-out rows."""
    n = min(len(sides.train), len(sides.made) // 2, sides.settings.rows)
    made, train = sides.some(sides.made, 2 * n), sides.some(sides.train, 2 * n)
    value, spread = _asked(made[:n], sides.some(train, n), made[n:], sides.test)
    third = len(train) // 3
    reference, _ = _asked(train[:third], train[third : 2 * third], train[2 * third :], sides.test)
    low, high = around(value, spread**0.5)
    method = (
        f"AUC of gradient boosting learnt from {n} training and {n} synthetic rows, on {len(sides.test)} held-out and "
        f"{n} more synthetic; DeLong's interval"
    )
    return Evidence("c2st", value, method, len(sides.test) + n, low, high, "", reference)


def _asked(ones: Floats, zeros: Floats, more_ones: Floats, more_zeros: Floats) -> tuple[float, float]:
    call = booster(np.vstack([ones, zeros]), np.r_[np.ones(len(ones)), np.zeros(len(zeros))], False)
    return auc(*(call(rows, "decision_function") for rows in (more_ones, more_zeros)))


@dataclass(frozen=True)
class _Task:
    """Predict one column from the others."""

    column: str
    at: int
    leave: tuple[int, ...]
    numeric: bool

    def split(self, rows: Floats) -> tuple[Floats, Floats]:
        """(features, target) of the rows that have a target."""
        keep = rows[~np.isnan(rows[:, self.at])]
        return np.delete(keep, self.leave, axis=1), keep[:, self.at]


def _task(schema: Schema, target: str) -> _Task:
    """The column, without those that end alike: S_p is predicted without the p side's own figures."""
    end = target.rpartition("_")[2]
    alike = [n for n in schema.names if "_" in target and end and n.rpartition("_")[2] == end]
    leave = {target, *alike} if set(schema.names) - {target, *alike} else {target}
    at = tuple(i for i, name in enumerate(schema.names) if name in leave)
    return _Task(target, schema.names.index(target), at, schema.column(target).is_number)


def tstr(sides: Sides, target: str | None) -> list[Evidence]:
    """Train on synthetic, test on real (Esteban et al. 2017, arXiv:1706.02633), beside train on real.

    `tstr` is R^2 or accuracy; `tstr_drop` is the share of what a model trained on real rows knows beyond guessing
    that one trained on as many synthetic rows does not.
    """
    if target is None:
        return _unmeasured("no target column was named")
    if len(sides.schema.columns) < 2:
        return _unmeasured("there is nothing to predict the target from")
    task = _task(sides.schema, target)
    (x, y), (test_x, test_y), (made_x, made_y) = (task.split(side) for side in (sides.train, sides.test, sides.made))
    n = min(len(y), len(made_y), sides.settings.rows)
    if n < FEWEST:
        return _unmeasured(f"{n} rows with {target}, {FEWEST} are needed", n)
    if len(test_y) < 2 or (task.numeric and np.ptp(test_y) == 0):
        return _unmeasured(f"{len(test_y)} held-out rows with {target}, all alike", len(test_y))
    if not task.numeric and min(len(np.unique(side)) for side in (y, made_y)) < 2:
        return _unmeasured(f"{target} has one category only", n)
    test_x, test_y = sides.some(test_x, sides.settings.rows), sides.some(test_y, sides.settings.rows)
    told = [
        booster(sides.some(a, n), sides.some(b, n), task.numeric)(test_x, "predict")
        for a, b in ((made_x, made_y), (x, y))
    ]
    return _judged(sides, task, test_y, told[0], told[1], n)


def _unmeasured(why: str, n: int = 0) -> list[Evidence]:
    return [Evidence(claim, None, f"not measured: {why}", n) for claim in ("tstr", "tstr_drop")]


def _judged(sides: Sides, task: _Task, truth: Floats, told: Floats, real: Floats, n: int) -> list[Evidence]:
    found = _numbers_judged(sides, truth, told, real) if task.numeric else _choices_judged(truth, told, real)
    what, how = ("R^2", "bootstrap") if task.numeric else ("accuracy", "Wilson")
    method = f"{what} of gradient boosting for {task.column} on held-out rows, trained on {n} synthetic ones"
    method = f"{method}; {how} interval over held-out rows"
    extra = {"target": task.column, "score": what, "guessing": found.guess}
    low, high = found.span
    one = Evidence("tstr", found.value, method, len(truth), low, high, "", found.reference, extra)
    return [one, _drop(task, found, len(truth))]


@dataclass(frozen=True)
class _Found:
    """Scores of a model taught by synthetic rows and of one taught by real ones, on the same held-out rows."""

    value: float
    span: tuple[float, float]
    reference: float
    least: float  # what the reference is at least
    guess: float  # what one scores who looks at nothing
    drop: tuple[float, float]  # ends of the interval of the share that is lost


def _numbers_judged(sides: Sides, truth: Floats, told: Floats, real: Floats) -> _Found:
    """R^2; held-out rows are resampled, each with both predictions."""
    n = len(truth)
    again = np.array([(_r2(truth[i], told[i]), _r2(truth[i], real[i])) for i, _ in sides.draws(n, 1)])
    value, reference = _r2(truth, told), _r2(truth, real)
    known = again[again[:, 1] > 0]
    drop = middle(1 - known[:, 0] / known[:, 1], n) if len(known) and reference > 0 else (0.0, 0.0)
    return _Found(value, _holding(value, middle(again[:, 0], n)), reference, middle(again[:, 1], n)[0], 0.0, drop)


def _choices_judged(truth: Floats, told: Floats, real: Floats) -> _Found:
    """Accuracy; guessing is the commonest category."""
    n = len(truth)
    right, real_right = truth == told, truth == real
    guess = float(np.unique(truth, return_counts=True)[1].max() / n)
    hits, others = int(right.sum()), int(real_right.sum())
    _, low, high = newcombe(others, n, hits, n, _phi(right, real_right))
    beyond = others / n - guess
    drop = (low / beyond, high / beyond) if beyond > 0 else (0.0, 0.0)
    return _Found(hits / n, wilson(hits, n), others / n, wilson(others, n)[0], guess, drop)


def _phi(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Correlation of two answers; 0 where one never varies."""
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean()) / spread if spread > 0 else 0.0


def _holding(value: float, span: tuple[float, float]) -> tuple[float, float]:
    """A percentile interval need not hold the figure itself; ours does."""
    return float(np.nanmin([value, span[0]])), float(np.nanmax([value, span[1]]))


def _drop(task: _Task, found: _Found, n: int) -> Evidence:
    if not found.least > found.guess:
        why = f"a model trained on real rows predicts {task.column} no better than guessing"
        return Evidence("tstr_drop", None, f"not measured: {why}", n)
    drop = 1 - (found.value - found.guess) / (found.reference - found.guess)
    low, high = _holding(drop, found.drop)
    how = "bootstrap" if task.numeric else "Newcombe's"
    method = (
        f"share of what a model trained on real rows knows of {task.column} beyond guessing that one trained on "
        f"synthetic rows does not; {how} interval over held-out rows, in pairs"
    )
    return Evidence("tstr_drop", drop, method, n, low, high, "", 0.0, {"target": task.column})


def _r2(truth: Floats, told: Floats) -> float:
    total = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((truth - told) ** 2).sum()) / total if total > 0 else float("nan")
