"""What each data set has spent, kept outside every training: append-only, hash-chained, witnessed by the log.

A spending is reserved before data is touched, counted ahead while it runs, and committed after; what a crash leaves
open is charged by the count. Events are kept, not epsilons, so that they compose tightly. Every act is a row here first
and an entry of the log then, with the chain's head; nothing goes on before both are durable. So the log is never ahead
of the ledger: if it is, somebody brought back an older ledger, and nothing is trained any more.

One table with one chain lies in the registry's database, and is saved and restored with it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import BigInteger, Column, LargeBinary, MetaData, Table, Text, func, insert, select
from sqlalchemy.engine import Connection

from genward import record
from genward.contracts import AuditSink
from genward.errors import CheckFailed, Conflict, IntegrityError, NotFound
from genward.store import Store
from genward.strictjson import canonical, parse
from genward_policies.privacy import accounting
from genward_policies.privacy.accounting import NOTHING, Event

FIRST = "sha256:" + "0" * 64  # what the first row follows
_BUCKET = 1000  # rows that share a request id in the log
_LOOKED_AT = 8  # last entries of a bucket; processes that act at once may log in another order than they wrote
_LIMIT = 1 << 20
_LOCK = 7266142  # of PostgreSQL's advisory locks
_CLOSED = ("commit", "forfeit")
_MOST = 1 << 20  # rows of a data set that are remembered; of a larger one those with the least hashes
Hashes = NDArray[np.uint64]

_ledger = Table(
    "privacy_ledger",
    MetaData(),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("reservation", Text, index=True),
    Column("body", Text, nullable=False),
    Column("hash", Text, nullable=False),
)
_rows = Table(
    "privacy_ledger_rows",
    _ledger.metadata,
    Column("dataset", Text, primary_key=True),
    Column("hashes", LargeBinary, nullable=False),  # keyed, 8 bytes each, ascending; their digest is in the chain
)


@dataclass(frozen=True)
class Spending:
    """One training's claim on data sets. `event` is what it is charged with as things stand."""

    id: str
    run: str
    dataset: str
    lineage: tuple[str, ...]
    event: Event
    counted: Event = field(default_factory=lambda: NOTHING)  # what has been spent at most, written ahead
    state: str = "reserved"  # committed, forfeited
    about: Mapping[str, Any] = field(default_factory=dict)
    owner: str = ""
    at: str = ""

    @property
    def touches(self) -> tuple[str, ...]:
        return (self.dataset, *self.lineage)


class Ledger:
    """An open ledger.

    Args:
        url: of the durable database.
        audit: opens the log.
        name: the name under which the log knows a data set (keyed, so that it tells nothing to others).
    """

    def __init__(self, url: str, audit: Callable[[], AuditSink], name: Callable[[str], str]) -> None:
        self._store, self._audit, self.name = Store(url), audit, name
        with self._store.begin() as connection:
            self._lock(connection)
            _ledger.metadata.create_all(connection)

    def close(self) -> None:
        self._store.close()

    # spending

    def reserve(
        self,
        run: str,
        dataset: str,
        lineage: Sequence[str],
        event: Event,
        budget: float,
        delta: float,
        about: Mapping[str, Any] | None = None,
    ) -> Spending:
        """Claim an event on a data set and on all it was made from, or refuse it; what dead trainings left is settled.

        Raises CheckFailed when it would take any of them above the budget, IntegrityError for a ledger that was
        tampered with or brought back.
        """
        with self._writing() as writing:
            for spending in _read(writing.rows).values():
                if spending.state == "reserved" and not _alive(spending.owner):
                    writing.append("forfeit", reservation=spending.id, event=spending.counted)
            related = _related(writing.rows, dataset, lineage)
            found = Spending(record.request_id(), run, dataset, related, event, about=about or {}, owner=_owner())
            _require_room(list(_read(writing.rows).values()), found, budget, delta)
            stated = {"run": run, "dataset": dataset, "lineage": list(related), "event": event}
            writing.append("reserve", reservation=found.id, **stated, about=dict(found.about), owner=found.owner)
        return found

    def ahead(self, spending: Spending, counted: Event) -> None:
        """Write down what will have been spent at most before the next call, ahead of spending it."""
        self._act("ahead", spending, counted)

    def commit(self, spending: Spending, event: Event) -> Spending:
        """The training is over and cost this."""
        self._act("commit", spending, event)
        return replace(spending, state="committed", event=event)

    def forfeit(self, spending: Spending) -> Spending:
        """The training was given up: it is charged with what was counted."""
        now = self.find(spending.id)
        self._act("forfeit", spending, now.counted)
        return replace(now, state="forfeited", event=now.counted)

    def belongs_to_another(self, spending: Spending) -> bool:
        """Whether another process that may still run holds a reservation."""
        return spending.owner != _owner() and _alive(spending.owner)

    def know(self, dataset: str, hashes: Hashes) -> tuple[str, ...]:
        """Remember the rows of a data set (see `row_hashes`); returns the known data sets it shares rows with, which
        are charged together from now on, whether or not anybody declared them as parents."""
        with self._writing() as writing:
            known = {row["dataset"]: row for row in writing.rows if row["act"] == "know"}
            if dataset in known:
                return tuple(known[dataset]["related"])
            related = [name for name in known if _overlap(_kept(writing.connection, known[name]), hashes)]
            data = hashes.astype("<u8").tobytes()
            writing.connection.execute(insert(_rows).values(dataset=dataset, hashes=data))
            writing.append("know", dataset=dataset, rows=hashlib.sha256(data).hexdigest(), related=related)
        return tuple(related)

    # looking

    def spendings(self) -> list[Spending]:
        """All, oldest first, from a chain that was checked."""
        logged = self._logged()
        with self._store.begin() as connection:
            rows = self._checked(connection, logged)
        return list(_read(rows).values())

    def find(self, reservation: str) -> Spending:
        """One by its id; NotFound."""
        for spending in self.spendings():
            if spending.id == reservation:
                return spending
        raise NotFound(f"no reservation {reservation!r}", remedy="`genward ledger show` lists them")

    def of_run(self, run: str) -> list[Spending]:
        """A training's, oldest first: one for each time it was begun or resumed."""
        return [spending for spending in self.spendings() if spending.run == run]

    def charged(self, dataset: str) -> Event:
        """Everything that a data set is charged with, its descendants' trainings included."""
        return accounting.together([s.event for s in self.spendings() if dataset in s.touches])

    def head(self) -> str:
        """The last row's hash."""
        with self._store.begin() as connection:
            return _last(connection)[1]

    # the chain

    def _act(self, verb: str, spending: Spending, event: Event) -> None:
        """A later act of an open reservation; only `reserve` checks the whole chain, since steps wait for these."""
        mine = select(_ledger.c.body).where(_ledger.c.reservation == spending.id).order_by(_ledger.c.seq.desc())
        with self._store.begin() as connection:
            self._lock(connection)
            last = connection.execute(mine.limit(1)).scalar()
            if last is None or _parsed(last)["act"] in _CLOSED:
                raise Conflict("the reservation is settled", where=spending.run, remedy="begin the training anew")
            entry = _append(connection, verb, reservation=spending.id, event=event)
        self._tell([entry], spending.dataset)

    @contextmanager
    def _writing(self) -> Iterator[_Writing]:
        """Alone with the checked chain; what was appended is in the log too when this ends."""
        with self._store.begin() as connection:
            self._lock(connection)
            writing = _Writing(connection, self._checked(connection, self._logged(connection)))
            yield writing
        self._tell(writing.added, "")

    def _tell(self, entries: Sequence[Mapping[str, Any]], dataset: str) -> None:
        sink = self._audit()
        for entry in entries:
            name = self.name(str(entry.get("dataset") or dataset)) if entry.get("dataset") or dataset else None
            detail = {"seq": entry["seq"], "head": entry["hash"], "reservation": entry.get("reservation"), "data": name}
            kept = {key: value for key, value in detail.items() if value is not None}
            request = f"ledger/{entry['seq'] // _BUCKET}"
            act = record.entry("act", act=f"ledger.{entry['act']}", actor="operator", request=request, detail=kept)
            sink.append(act)

    def _logged(self, connection: Connection | None = None) -> dict[int, str]:
        """Heads by row, as the log's last entries have them. Read before the rows are, it cannot be ahead of them."""
        if connection is None:
            with self._store.begin() as opened:
                return self._logged(opened)
        bucket, sink = _last(connection)[0] // _BUCKET, self._audit()
        found: dict[int, str] = {}
        for number in (bucket, bucket + 1):
            for index in list(sink.find(f"ledger/{number}"))[-_LOOKED_AT:]:
                with suppress(NotFound):  # an old one that the log's retention has dropped
                    detail = json.loads(sink.entry(index))["detail"]
                    found[int(detail["seq"])] = str(detail["head"])
        return found

    def _checked(self, connection: Connection, logged: Mapping[int, str]) -> list[dict[str, Any]]:
        """Every row, each following the one before, and the log's heads among them."""
        rows: list[dict[str, Any]] = []
        before = FIRST
        for seq, _, body, digest in connection.execute(select(_ledger).order_by(_ledger.c.seq)):
            if seq != len(rows) + 1 or digest != _digest(body) or (row := _parsed(body))["prev"] != before:
                raise _tampered(f"row {seq} does not follow the one before")
            rows.append({**row, "hash": digest})
            before = digest
        for seq, digest in logged.items():
            if seq > len(rows) or rows[seq - 1]["hash"] != digest:
                raise _tampered(f"the log knows of row {seq}, which is not here as it was")
        return rows

    def _lock(self, connection: Connection) -> None:
        """One writer at a time; SQLite's transactions begin with the write lock already."""
        if not self._store.sqlite:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")


@dataclass
class _Writing:
    """Alone with the ledger: its rows, and what is added to them."""

    connection: Connection
    rows: list[dict[str, Any]]
    added: list[dict[str, Any]] = field(default_factory=list)

    def append(self, verb: str, **values: Any) -> None:
        self.added.append(_append(self.connection, verb, **values))
        self.rows.append(self.added[-1])


def _append(connection: Connection, verb: str, **values: Any) -> dict[str, Any]:
    seq, before = _last(connection)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    row = {"v": 1, "seq": seq + 1, "at": at, "act": verb, "prev": before, **values}
    body = canonical(row).decode()
    connection.execute(
        insert(_ledger).values(seq=seq + 1, reservation=values.get("reservation"), body=body, hash=_digest(body))
    )
    return {**row, "hash": _digest(body)}


def _last(connection: Connection) -> tuple[int, str]:
    last = select(func.max(_ledger.c.seq)).scalar_subquery()
    row = connection.execute(select(_ledger.c.seq, _ledger.c.hash).where(_ledger.c.seq == last)).first()
    return (int(row[0]), str(row[1])) if row else (0, FIRST)


def _digest(body: str) -> str:
    return f"sha256:{hashlib.sha256(body.encode()).hexdigest()}"


def _parsed(body: str) -> dict[str, Any]:
    found: dict[str, Any] = parse(body.encode(), "ledger", _LIMIT)
    return found


def _tampered(what: str) -> IntegrityError:
    remedy = "restore the ledger that belongs to the log; until then nothing private is trained"
    return IntegrityError(f"the ledger was changed or brought back: {what}", where="privacy_ledger", remedy=remedy)


def _read(rows: Sequence[Mapping[str, Any]]) -> dict[str, Spending]:
    """Spendings by id, as the rows leave them."""
    found: dict[str, Spending] = {}
    for row in rows:
        if row["act"] == "reserve":
            about = {name: row[name] for name in ("run", "dataset", "event", "about", "owner", "at")}
            found[row["reservation"]] = Spending(row["reservation"], lineage=tuple(row["lineage"]), **about)
        elif row["act"] == "ahead":
            found[row["reservation"]] = replace(found[row["reservation"]], counted=row["event"])
        elif row["act"] in _CLOSED:
            state = {"commit": "committed", "forfeit": "forfeited"}[row["act"]]
            found[row["reservation"]] = replace(found[row["reservation"]], state=state, event=row["event"])
    return found


def _require_room(spendings: Sequence[Spending], new: Spending, budget: float, delta: float) -> None:
    """Refuse what would take the data set, or one it was made from, above the budget."""
    for dataset in new.touches:
        before = accounting.together([s.event for s in spendings if dataset in s.touches])
        after = accounting.together([before, new.event])
        if accounting.rdp(after, delta) <= budget or (total := accounting.total(after, delta)) <= budget:
            continue
        spent = accounting.total(before, delta)
        raise CheckFailed(
            f"this would take the data set to epsilon {total:.2f}; {spent:.2f} of {budget:g} are spent",
            where=dataset[:19],
            remedy="use what was trained already, lower privacy.epsilon, or have the data set's budget raised",
        )


# Who owns a reservation, and whether it still lives


def _owner() -> str:
    return f"{os.uname().nodename}:{os.getpid()}:{_started(os.getpid())}"


def _alive(owner: str) -> bool:
    """Whether the training's process may still run: on another machine nobody knows, so it may."""
    host, _, rest = owner.partition(":")
    pid, _, started = rest.partition(":")
    return host != os.uname().nodename or _started(int(pid or 0)) == started != ""


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty when there is none, or none but its corpse."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except OSError:
        return ""


# Data sets that share rows


def row_hashes(table: pa.Table, key: bytes) -> Hashes:
    """Keyed hashes of the distinct rows, ascending; whoever reads the ledger cannot look a row up in it. The order of
    the columns does not matter, nor which schema or file the rows came with."""
    columns = [table[name].to_pylist() for name in sorted(table.column_names)]
    lines = (json.dumps(row, default=str).encode() for row in zip(*columns, strict=True))
    hashes = {hashlib.blake2b(line, key=key[:32], digest_size=8).digest() for line in lines}
    return np.unique(np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64))[:_MOST]


def _overlap(a: Hashes, b: Hashes) -> bool:
    """Whether two data sets share a hundredth of the smaller one's rows, as far as both are remembered."""
    if not len(a) or not len(b):
        return False
    reach = [int(side[-1]) for side in (a, b) if len(side) == _MOST]
    first, second = (side[side <= min(reach)] if reach else side for side in (a, b))
    return len(np.intersect1d(first, second, assume_unique=True)) > 0.01 * min(len(first), len(second))


def _kept(connection: Connection, row: Mapping[str, Any]) -> Hashes:
    """The remembered rows of a data set, which are what the chain says."""
    data = connection.execute(select(_rows.c.hashes).where(_rows.c.dataset == row["dataset"])).scalar() or b""
    if hashlib.sha256(data).hexdigest() != row["rows"]:
        raise _tampered("the rows of a data set are not those it was remembered by")
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)


def _related(rows: Sequence[Mapping[str, Any]], dataset: str, lineage: Sequence[str]) -> tuple[str, ...]:
    """The declared lineage, and whatever shares rows with the data set in either direction."""
    shared = {
        other
        for row in rows
        if row["act"] == "know"
        for pair in ((row["dataset"], name) for name in row["related"])
        if dataset in pair
        for other in pair
    }
    return tuple(dict.fromkeys([*lineage, *sorted(shared - {dataset, *lineage})]))
