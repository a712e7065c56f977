"""The attacks run for real: rows through the live request path as a sandbox tenant, copies judged, each defence on and
off.

What one key is given comes through the endpoint. "share off" is what all keys together can hold, and "pool off" what a
release without a pool gives; both are drawn under the public key, so that no row of the pool leaves by another door.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from genward.attacker import Attacker, Rows, Target
from genward.contracts import Progress
from genward.data.distance import Space, encoded, frechet
from genward.errors import Denied, LimitReached, UsageError
from genward_policies.extraction.calibrate import drawing

if TYPE_CHECKING:
    from genward.api import Platform
    from genward.client import Client

GRID = (100, 300, 1000, 3000, 10_000)
DEFENCES = ("all on", "share off", "pool off")
_PAGE = 1000
_REFERENCE, _JUDGED = 20_000, 5_000
_FEW = 50  # rows from which nothing is copied
_SEED = 20_261_128


@dataclass(frozen=True)
class Theft:
    """One copy: how many rows were asked for and held, the best attack, how near it came, and what that is in risk."""

    defence: str
    asked: int
    held: int
    attacker: str
    distance: float
    risk: float


class RedTeam:
    """Attacks on one release.

    Args:
        platform: where the bundle lies.
        model: name, name:version or name@alias.
        client: who asks: in process, or over HTTP.
        attackers: classes by name.
    """

    def __init__(self, platform: Platform, model: str, client: Client, attackers: Sequence[type[Attacker]]) -> None:
        from genward.data.codec import TableCodec
        from genward.engine import Engine
        from genward.pool import raised
        from genward.release import PUBLIC_KEY
        from genward.table import Table

        bundle, info = platform._bundle(model), platform.registry.resolve(model)
        self._model, self._client = model, client
        self._codec = TableCodec.from_json(bundle.codec)
        sealed = Table.from_json(bundle.manifest["table"])
        table = raised(sealed, bundle.digest, info.raised, platform.keys.trusted())
        self._pool = None if table.slots is None else table.slots * table.candidates
        graph, meta = bundle.graph("sample")
        engine = Engine(graph, self._codec, Table(None, 1, sealed.block, sealed.cells), meta, pool_key=PUBLIC_KEY)
        self._draw = drawing(engine, self._codec)
        self._target = _target(platform, bundle.manifest["family"], self._codec)
        self._attackers = [a for a in attackers if not a.cannot(self._target)]
        if not self._attackers:
            raise UsageError("no attack can be run on this release", where=model)

    def run(self, progress: Progress, grid: Sequence[int] = GRID) -> list[Theft]:
        """Attack at every size, with the defences on and off."""
        reference, most = self._draw(0, _REFERENCE), max(grid)
        self._space = Space.fit(reference)
        self._reference = self._space.normal(reference)
        self._own = self._apart(self._draw(_REFERENCE, _JUDGED))
        live, fresh = self._delivered(most), self._draw(_REFERENCE + _JUDGED, most)
        together = fresh if self._pool is None else fresh[: self._pool]
        progress.start("attack", len(grid))
        found = []
        for step, n in enumerate(grid, 1):
            for defence, rows in zip(DEFENCES, (live, together, fresh), strict=True):
                found.append(self._theft(defence, n, _distinct(rows[:n])))
            progress.update(step, f"{n} rows asked for")
        progress.finish(f"{len(found)} copies judged")
        return _with_risk(found, self._own)

    def _delivered(self, most: int) -> Rows:
        """What one key is given when it asks for so many rows, page by page, until it is refused or has seen all."""
        parts: list[Rows] = []
        have = 0
        while have < most:
            try:
                answer = self._client.generate(self._model, n=min(_PAGE, most - have), start=have, format="arrow")
            except (Denied, LimitReached):
                break
            table = pa.ipc.open_stream(io.BytesIO(answer.body)).read_all()
            if table.num_rows == 0:
                break
            parts.append(encoded(self._codec, table))
            have += table.num_rows
        return np.concatenate(parts) if parts else self._draw(0, 1)[:0]

    def _theft(self, defence: str, asked: int, rows: Rows) -> Theft:
        if len(rows) < _FEW:
            return Theft(defence, asked, len(rows), "none", float("inf"), 0.0)
        name, distance = min(((a.name, self._copied(a, rows)) for a in self._attackers), key=lambda item: item[1])
        return Theft(defence, asked, len(rows), name, max(0.0, distance), 0.0)

    def _copied(self, attacker: type[Attacker], rows: Rows) -> float:
        copy = attacker(self._target)
        copy.fit(rows, seed=_SEED)
        return self._apart(copy.sample(_JUDGED, seed=_SEED)) - self._own

    def _apart(self, rows: Rows) -> float:
        return frechet(self._space.normal(rows), self._reference)


def _target(platform: Platform, family: Mapping[str, Any], codec: Any) -> Target:
    kind = platform.plugins.family(str(family["name"]))()
    return Target(codec.spec, kind, kind.Config(**family["config"]))


def _distinct(rows: Rows) -> Rows:
    """Each row once, in the order of their first time."""
    _, first = np.unique(rows, axis=0, return_index=True)
    return rows[np.sort(first)]


def _with_risk(thefts: Sequence[Theft], own: float) -> list[Theft]:
    """Risk of each distance by the formula of `curve`, from the copy of 100 rows with every defence off."""
    from dataclasses import replace

    from genward_policies.extraction import curve as c

    floor = 2 * own / (1 / _JUDGED + 1 / _REFERENCE) / c.STANDARD
    first = max(t.distance for t in thefts if t.defence == DEFENCES[-1] and t.held)
    return [replace(t, risk=c.of_distance(t.distance, first, floor) if t.held >= _FEW else 0.0) for t in thefts]


def as_plot(thefts: Sequence[Theft], title: str) -> bytes:
    """PNG: risk against rows asked for, a line for each defence."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for defence, mark in zip(DEFENCES, ("o-", "s--", "^:"), strict=True):
        mine = [t for t in thefts if t.defence == defence]
        axes.plot([t.asked for t in mine], [t.risk for t in mine], mark, label=defence, markersize=4)
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="rows asked for", ylabel="risk", title=title.replace("$", r"\$"))
    axes.legend()
    out = io.BytesIO()
    figure.savefig(out, dpi=100, format="png", metadata={"Software": None})
    return out.getvalue()
