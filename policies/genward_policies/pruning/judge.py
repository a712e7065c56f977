"""What pruning claims of a release, measured on the very bytes that will be sealed, with fresh noise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genward.contracts import Evidence
from genward.digest import digest_of
from genward.engine import Engine
from genward.respond import ARROW, encoder
from genward.table import Walk, scan
from genward_policies.pruning import cost, exact
from genward_policies.pruning.config import PruningConfig, cuttable
from genward_policies.pruning.quality import Loss, relative_loss, usefulness
from genward_policies.pruning.quantise import widths

if TYPE_CHECKING:
    from genward.candidate import Candidate

ROWS = 30_000  # generated to judge a release by
_DEADLINE = 60.0  # seconds of a page
LEARNT = 10_000  # rows a booster learns from
Floats = NDArray[np.float32]


class Judge:
    """Measures one candidate; `plan` is what the search and the recovery left of a child."""

    def __init__(self, candidate: Candidate, config: PruningConfig, plan: Mapping[str, Any] | None = None) -> None:
        self.candidate, self.config, self.plan = candidate, config, plan or {}
        self.seconds = cost.seconds_per_row(
            candidate.exported.data, candidate.exported.meta, candidate.codec, config.target.batch
        )

    def uncut(self) -> list[Evidence]:
        """Of a parent, or of a family with no network to cut."""
        why = "this is the network as it was trained" if cuttable(self.candidate) else "there is no network to cut"
        lost = Evidence("pruning.relative_quality_loss", None, f"not measured: {why}")
        return [Evidence("pruning.form", 0.0, f"0: {why}"), self._price(None), self._endpoint(), self._exact(), lost]

    def child(self, parent: bytes) -> list[Evidence]:
        """Of a network that was made cheaper."""
        meta = self.plan["parent_meta"]
        before, after = (
            cost.made(graph, about, self.candidate.codec, cost.key("judge"), ROWS)
            for graph, about in ((parent, meta), (self.candidate.exported.data, self.candidate.exported.meta))
        )
        real = reference(self.candidate, parent, meta)
        loss = relative_loss(real, before, after)
        return [
            Evidence("pruning.form", 1.0, f"1: a cheaper form of {self.candidate.parent[:19]}: {self._recipe}"),
            self._lost(loss, len(real)),
            self._useful(real, before, after),
            self._price(self.plan["probes"][0]["seconds"]),
            self._endpoint(),
            self._exact(),
            self._widths(),
            *self._effort(),
        ]

    @property
    def _recipe(self) -> str:
        return str(self.plan["chosen"]["recipe"])

    # what rows are worth

    def _lost(self, loss: Loss, rows: int) -> Evidence:
        kind = "rows of the parent" if self.candidate.recipe.protected else "held-out rows"
        method = (
            f"Frechet distance to {rows} {kind} over encoded values and random features, {ROWS} rows of parent and "
            "child from the same fresh noise, relative to the parent's distance; bootstrap interval"
        )
        told = {"parent_distance": loss.parent, "child_distance": loss.child}
        return _evidence(
            "pruning.relative_quality_loss", loss.value, method, ROWS, low=loss.low, high=loss.high, extra=told
        )

    def _useful(self, real: Floats, before: Floats, after: Floats) -> Evidence:
        target = self.candidate.recipe.target
        if target is None:
            return Evidence("pruning.tstr_drop", None, "not measured: no target column was named")
        own, number = _fields(self.candidate, target)
        first, second = (usefulness(rows[:LEARNT], real, own, number) for rows in (before, after))
        what = "R^2" if number else "accuracy"
        method = f"{what} of gradient boosting for {target} (encoded) from {LEARNT} rows: the parent's less the child's"
        return _evidence("pruning.tstr_drop", first - second, method, len(real), reference=first)

    # what rows cost

    def _price(self, parent: float | None) -> Evidence:
        per_hour = self.config.price_per_vcpu_hour
        method = (
            f"least CPU seconds of one thread for noise and graph, {self.config.target.batch} rows at a time, "
            f"at {per_hour:g} an hour"
        )
        told: dict[str, Any] = {"seconds_per_row": self.seconds, "bytes": len(self.candidate.exported.data)}
        if parent is not None:
            planned = self.plan["chosen"]["seconds"]
            told |= {"planned_seconds": planned, "parent_seconds": parent, "cheaper": parent / self.seconds}
        value = cost.price(self.seconds, per_hour)
        before = None if parent is None else cost.price(parent, per_hour)
        batch = self.config.target.batch
        return _evidence("pruning.cost_per_million_rows", value, method, batch, reference=before, extra=told)

    def _endpoint(self) -> Evidence:
        """What a row will cost where it is served: walk, noise, graph, digest and Arrow, in its own blocks."""
        rows, per_hour = self.config.target.batch, self.config.price_per_vcpu_hour
        seconds = cost.typical(pages(self.candidate, rows)) / rows
        method = (
            f"median CPU seconds of pages of {rows} rows that nobody computed before, as Arrow, at {per_hour:g} an hour"
        )
        told = {"seconds_per_row": seconds, "price_per_vcpu_hour": per_hour}
        value = cost.price(seconds, per_hour)
        return _evidence("pruning.endpoint_cost_per_million_rows", value, method, rows, extra=told)

    # what is promised of bytes

    def _exact(self) -> Evidence:
        found = exact.replayed(self.candidate, cost.key("exact"))
        method = f"pages of shuffled rows that a fresh process computed otherwise, of {found.pages}"
        return Evidence("pruning.different_pages", float(found.different), method, found.rows)

    def _widths(self) -> Evidence:
        wanted, achieved = self.plan["chosen"]["widths"], widths(self.candidate.exported.data)
        apart = abs(len(wanted) - len(achieved)) + sum(a != b for a, b in zip(wanted, achieved, strict=False))
        method = "matrices of the graph whose shape is not that of the recipe"
        return Evidence("pruning.wrong_widths", float(apart), method, len(achieved))

    def _effort(self) -> list[Evidence]:
        note = f" ({self.plan['note']})" if self.plan["note"] else ""
        probes, trainings = len(self.plan["probes"]), self.plan["trainings"]
        return [
            Evidence("pruning.latency_probes", float(probes), f"measurements of untrained networks{note}", probes),
            Evidence("pruning.trainings", float(trainings), "distillations, on noise alone", trainings),
            Evidence("pruning.training_rows_read", 0.0, "cutting and recovery were handed no row that was trained on"),
        ]


def reference(candidate: Candidate, parent: bytes, meta: Mapping[str, Any]) -> Floats:
    """Held-out rows. Under protection they are not looked at: the parent's own rows, of other noise, stand in, a
    stricter judge, since it takes the parent's faults for right."""
    if candidate.recipe.protected:
        return cost.made(parent, meta, candidate.codec, cost.key("reference"), ROWS)
    return cost.joined(candidate.codec, candidate.test)


def pages(candidate: Candidate, rows: int) -> Callable[[], object]:
    """Makes the next page of a table without a pool at each call, as the request path does."""
    table, secret = _open(candidate.table), cost.key("pages")
    engine = Engine(candidate.exported.data, candidate.codec, table, candidate.exported.meta, pool_key=secret)
    walk, starts = Walk(table, secret, secret), count(0, rows)

    def page() -> bytes:
        deadline = time.monotonic() + _DEADLINE
        found = scan(walk, next(starts), rows, lambda slots: engine.rows(slots, None, deadline, secret)).rows
        digest_of(found)
        return encoder(ARROW, candidate.codec, {}).whole(found)

    return page


def _open(table: Any) -> Any:
    from dataclasses import replace

    return replace(table, slots=None, segments=())


def _fields(candidate: Candidate, target: str) -> tuple[slice, bool]:
    """Where a column's fields lie in generated and given values side by side, and whether it is a number."""
    spec = candidate.codec.spec
    placed = [*((f, f.start) for f in spec.fields), *((f, f.start + spec.width) for f in spec.given)]
    mine = [(f, start) for f, start in placed if f.column == target]
    first = min(start for _, start in mine)
    return slice(first, max(start + f.width for f, start in mine)), mine[0][0].kind == "number"


def _evidence(claim: str, value: float, method: str, n: int, **more: Any) -> Evidence:
    """A claim; what is no number was not measured, and no gate takes it."""
    if all(math.isfinite(x) for x in (value, *(more.get(k) or 0.0 for k in ("low", "high", "reference")))):
        return Evidence(claim, value, method, n, **more)
    return Evidence(claim, None, f"not measured: no finite number came out of: {method}", n)
