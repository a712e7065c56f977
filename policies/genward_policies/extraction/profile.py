"""The profile of a release, `extraction.json`: what was measured, the fitted curves, and risk as a function of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genward.contracts import Evidence
from genward.errors import IntegrityError
from genward.strictjson import parse
from genward_policies.extraction import curve as c
from genward_policies.extraction.calibrate import Measured, Point

FORMAT = "genward.extraction/1"
FILE, PLOT = "extraction.json", "extraction.png"
_LIMIT = 16 << 20
_KEPT = 64  # bootstrap draws
_FLAT = 0.25  # of the floor: an accuracy whose loss at 100 rows is below it says nothing about rows
_SHOWN = tuple(round(100 * 10 ** (i / 4)) for i in range(21))  # 100 to 10 million rows
_SEED = 20_261_127


@dataclass(frozen=True)
class Profile:
    """Risk of a release. `accuracy` is None where real rows were not looked at, or where it says nothing (`note`)."""

    fidelity: c.Risk
    accuracy: c.Risk | None
    told: Mapping[str, Any]  # sizes, points, own distances, skipped attacks, seconds
    note: str = ""

    def risk(self, n: float) -> float:
        """R(n): the larger of fidelity and accuracy."""
        return max(risk.at(n) for risk in self._both)

    def between(self, n: float) -> tuple[float, float]:
        """The 95 % interval of R(n)."""
        ends = [risk.between(n) for risk in self._both]
        return max(low for low, _ in ends), max(high for _, high in ends)

    def rows_at(self, limit: float) -> int:
        """The most distinct rows whose risk is within a limit; at least 1."""
        return max(1, c.rows_at(self.risk, limit))

    @property
    def _both(self) -> list[c.Risk]:
        return [self.fidelity] if self.accuracy is None else [self.fidelity, self.accuracy]

    def table(self) -> list[list[float]]:
        """[rows, risk, low, high] from 100 rows to 10 million."""
        return [[float(n), *(round(v, 4) for v in (self.risk(n), *self.between(n)))] for n in _SHOWN]

    # JSON

    def to_json(self) -> bytes:
        """`extraction.json`."""
        accuracy = None if self.accuracy is None else c.plain(self.accuracy)
        given = {"format": FORMAT, "fidelity": c.plain(self.fidelity), "accuracy": accuracy, "note": self.note}
        return json.dumps({**given, **self.told, "risk": self.table()}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Profile:
        """Raises IntegrityError when this is no profile."""
        try:
            given = parse(data, FILE, _LIMIT)
            if given["format"] != FORMAT:
                raise ValueError(f"format {given['format']!r}")
            accuracy = None if given["accuracy"] is None else c.read(given["accuracy"])
            told = {k: given[k] for k in ("sizes", "points", "own", "own_real", "skipped", "held_out", "cpu_seconds")}
            return cls(c.read(given["fidelity"]), accuracy, told, str(given["note"]))
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"the profile cannot be read: {error}", where=FILE) from None

    def evidence(self) -> list[Evidence]:
        """What does not hang on the pool: the floor, the best copies, the attacks that were not run."""
        told, sizes = self.told, self.told["sizes"]
        best = [(n, *_best(told, n)) for n in sizes["grid"]]
        n, attacker, distance = best[-1]
        method = (
            f"Frechet distance of the best of {len(told['attackers_run'])} attacks on delivered rows from fresh ones, "
            f"standardised codec features, less the distance of the release's own rows; {_named(told)}"
        )
        extra = {"attacker": attacker, "by_rows": {str(k): round(v, 6) for k, _, v in best}, "fit": _fit(self)}
        floor = "distance of two samples of 10,000 of the release's own rows"
        return [
            Evidence("extraction.copy_distance", distance, method, n=n, reference=self.fidelity.floor, extra=extra),
            Evidence("extraction.floor", self.fidelity.floor, floor, n=sizes["reference"]),
            _accuracy(self),
        ]


def _fit(profile: Profile) -> dict[str, float]:
    curve = profile.fidelity.curve
    return {"a": curve.a, "b": curve.b, "alpha": curve.alpha, "e": curve.own}


def _named(told: Mapping[str, Any]) -> str:
    run = f"run: {', '.join(told['attackers_run'])}"
    missing = "; ".join(f"{name} not run: {why}" for name, why in told["skipped"].items())
    return f"{run}; {missing}" if missing else run


def _best(told: Mapping[str, Any], n: int) -> tuple[str, float]:
    by: dict[str, list[float]] = {}
    for attacker, rows, _, fidelity, _ in told["points"]:
        if rows == n:
            by.setdefault(attacker, []).append(fidelity)
    name = min(by, key=lambda attacker: float(np.mean(by[attacker])))
    return name, float(np.mean(by[name]) - np.mean(told["own"]))


def _accuracy(profile: Profile) -> Evidence:
    if profile.accuracy is None:
        return Evidence("extraction.accuracy", None, f"not measured: {profile.note}")
    curve, n = profile.accuracy.curve, profile.told["sizes"]["grid"][-1]
    method = "how much farther from held-out rows the best copy is than the best attack can come, fitted curve"
    return Evidence("extraction.accuracy", curve.at(n), method, n=n, reference=profile.accuracy.floor)


# From measurements


def profile_of(measured: Measured, why_no_accuracy: str = "") -> Profile:
    """Fit the curves, and bootstrap them over repeats."""
    fidelity = _fidelity(measured)
    accuracy, note = None, why_no_accuracy
    if measured.own_real:
        accuracy = _accuracy_risk(measured, fidelity)
        note = "" if accuracy else "the copy of 100 rows is as accurate as any, so fidelity alone is counted"
    return Profile(fidelity, accuracy, _told(measured), note)


def _told(measured: Measured) -> dict[str, Any]:
    sizes = measured.sizes
    return {
        "sizes": {"reference": sizes.reference, "batch": sizes.batch, "repeats": sizes.repeats, "grid": [*sizes.grid]},
        "points": [list(point) for point in measured.points],
        "own": list(measured.own),
        "own_real": list(measured.own_real),
        "skipped": dict(measured.skipped),
        "attackers_run": sorted({point.attacker for point in measured.points}),
        "held_out": measured.held_out,
        "cpu_seconds": round(measured.cpu_seconds, 1),
    }


def _error(measured: Measured, own: float) -> float:
    """e of the sampling error e (1/n + 1/m) that `own` is at the calibration's sizes."""
    return own / (1 / measured.sizes.batch + 1 / measured.sizes.reference)


def _fidelity(measured: Measured) -> c.Risk:
    own = float(np.mean(measured.own))
    grid, error = measured.sizes.grid, _error(measured, own)
    curve = c.fit(grid, _envelope(measured, _mean) - own, own, error)
    draws = []
    for pick in _picks():
        drawn = pick(np.array(measured.own))
        values = _envelope(measured, pick) - drawn
        draws.append(c.fit(grid, values, own, _error(measured, drawn), _near(curve)))
    return c.Risk(2 * error / c.STANDARD, curve, tuple(draws))


def _accuracy_risk(measured: Measured, fidelity: c.Risk) -> c.Risk | None:
    """Accuracy is lost at the rate at which fidelity is: what is fitted is how much, above the best that an attack
    comes to."""
    rate, grid, own = np.array([fidelity.curve.alpha]), measured.sizes.grid, fidelity.curve.own
    curve = c.fit(grid, _envelope(measured, _mean, real=True), 0.0, own, rate)
    if curve.b * c.FIRST**-curve.alpha <= _FLAT * fidelity.floor:
        return None
    draws = [c.fit(grid, _envelope(measured, pick, real=True), 0.0, own, rate) for pick in _picks()]
    lost = [c.Curve(0.0, item.b, item.alpha, own) for item in (curve, *draws)]
    return c.Risk(fidelity.floor, lost[0], tuple(lost[1:]))


def _near(curve: c.Curve) -> np.ndarray:
    """Rates about a fit's, for its bootstrap."""
    return np.linspace(max(0.2, curve.alpha - 0.3), min(1.1, curve.alpha + 0.3), 13)


def _envelope(measured: Measured, pick: Any, real: bool = False) -> np.ndarray:
    """The distance of the best attack for each size, `pick` telling what stands for an attack's repeats."""
    found = []
    for n in measured.sizes.grid:
        by: dict[str, list[float]] = {}
        for point in measured.points:
            if point.n == n:
                by.setdefault(point.attacker, []).append(_value(point, real))
        found.append(min(pick(np.array(values)) for values in by.values()))
    return np.array(found)


def _value(point: Point, real: bool) -> float:
    return float(point.accuracy or 0.0) if real else point.fidelity


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _picks() -> Sequence[Any]:
    """Ways to stand for an attack's repeats: the mean of a sample of them."""
    rng = np.random.default_rng(_SEED)
    return [lambda values: float(values[rng.integers(len(values), size=len(values))].mean()) for _ in range(_KEPT)]
