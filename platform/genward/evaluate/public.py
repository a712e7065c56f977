"""What a release may say in public when its training rows are protected: nothing that reads them again for free.

Its rows are post-processing of a training that was paid for, so whatever looks at them alone is free. `one_way` is
measured against noisy counts of single columns that the training published (`public_marginals.json`). Every other
claim reads protected rows: it is withheld, and only the owner's report has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genward.contracts import Evidence
from genward.data.schema import Schema
from genward.errors import IntegrityError
from genward.evaluate.exact import rules_evidence, violations
from genward.evaluate.sides import Floats, features
from genward.evaluate.stats import around

MARGINALS = "public_marginals.json"
WITHHELD = "withheld: it reads protected rows; the owner has it"  # as `Evidence.withheld` knows it
_AGAIN = 400
_SEED = 20_260_101


def public(synthetic: pa.Table, schema: Schema, folder: Path, claims: Sequence[str]) -> list[Evidence]:
    """Evidence for `claims` that reads no protected row; `folder` is the candidate's."""
    rows = features(synthetic, schema)
    told = {"one_way": _one_way(rows, schema, folder / MARGINALS), "rules_violated": _broken(rows, schema)}
    return [told.get(claim) or Evidence(claim, None, WITHHELD) for claim in claims]


def _broken(rows: Floats, schema: Schema) -> Evidence:
    found = violations(rows, schema)
    if not found:
        return Evidence("rules_violated", None, "not measured: the schema states no rule", len(rows))
    return rules_evidence(found, len(rows))


def _one_way(rows: Floats, schema: Schema, path: Path) -> Evidence:
    """Mean over columns of the total variation distance to the published counts, their noise taken off."""
    if not path.is_file():
        return Evidence("one_way", None, f"not measured: the training published no {MARGINALS}", len(rows))
    counts = read_marginals(path.read_bytes(), schema, rows)
    each = [column.distance(column.gap) for column in counts.values()]
    value = max(0.0, float(np.mean(each)))
    rng = np.random.default_rng(_SEED)
    again = np.mean([column.again(rng) for column in counts.values()], axis=0)
    low, high = around(value, float(again.std(ddof=1)))
    method = (
        f"mean over {len(counts)} columns of the total variation distance of {len(rows)} synthetic rows to noisy "
        "counts of the protected rows, which the training paid for; the noise's share of the squared distance is "
        f"taken off; normal interval, its standard error from {_AGAIN} draws of noise and rows"
    )
    by = {name: {"value": max(0.0, float(gap))} for name, gap in zip(counts, each, strict=True)}
    return Evidence("one_way", value, method, len(rows), low, high, extra={"by": by})


@dataclass(frozen=True)
class Counted:
    """One column: shares of the synthetic rows less the published noisy ones, and the variance of each difference."""

    gap: Floats
    variance: Floats

    def distance(self, gap: Floats) -> float:
        """Total variation without the noise's part.

        Of a sum of squares S, noise of variance v explains sum(v). If true gaps are spread like the noise, the mean
        size of a noisy gap is that of a true one times sqrt(S / (S - sum(v))), so the distance is multiplied by the
        inverse; below the noise it counts as negative, or the mean over columns would lean upwards.
        """
        total = float((gap * gap).sum())
        signal = 1 - float(self.variance.sum()) / total if total > 0 else 0.0
        return float(0.5 * np.abs(gap).sum() * np.sign(signal) * np.sqrt(min(1.0, abs(signal))))

    def again(self, rng: np.random.Generator) -> Floats:
        """Distances had the noise and the synthetic rows been others (_AGAIN,)."""
        total = float((self.gap * self.gap).sum())
        kept = np.sqrt(max(0.0, 1 - float(self.variance.sum()) / total)) if total > 0 else 0.0
        noise = rng.normal(size=(_AGAIN, len(self.gap))) * np.sqrt(self.variance)
        return np.array([self.distance(self.gap * kept + e) for e in noise])


def read_marginals(data: bytes, schema: Schema, rows: Floats) -> dict[str, Counted]:
    """Synthetic rows beside the published counts, by column; IntegrityError if that is not what they are."""
    try:
        document = json.loads(data)
        sigma = float(document["sigma"])
        if not sigma >= 0 or not document["columns"]:
            raise ValueError("sigma or columns")
        at = {name: i for i, name in enumerate(schema.names)}
        return {name: _counted(rows[:, at[name]], told, sigma) for name, told in document["columns"].items()}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise IntegrityError(f"the published counts cannot be read: {error}", where=MARGINALS) from None


def _counted(values: Floats, told: Mapping[str, Any], sigma: float) -> Counted:
    gone = np.isnan(values)
    if told["kind"] == "choice":
        published = np.array(told["counts"], dtype=np.float64)
        words = len(published) - (told["values"][-1] is None)
        codes = np.where(gone, words, np.nan_to_num(values, nan=0)).astype(int)
    else:
        counts = [*told["counts"], *([] if told["missing"] is None else [told["missing"]])]
        published = np.array(counts, dtype=np.float64)
        inner = np.array(told["edges"][1:-1], dtype=np.float64)
        codes = np.where(gone, len(told["counts"]), np.searchsorted(inner, values, side="right"))
    made = np.bincount(codes, minlength=len(published))
    if len(made) != len(published) or not np.isfinite(published).all():
        raise ValueError("a column's counts do not fit its values")
    return _compared(made, published, sigma)


def _compared(made: Any, published: Floats, sigma: float) -> Counted:
    total = max(float(published.sum()), 1.0)
    shares, n = made / made.sum(), float(made.sum())
    return Counted(shares - published / total, (sigma / total) ** 2 + shares * (1 - shares) / n)
