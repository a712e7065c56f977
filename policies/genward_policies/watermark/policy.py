"""The policy `watermark`: shape a release, choose candidates, sign what leaves, and recognise it again."""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genward.contracts import Detection, Evidence, Facts, Progress, ReleaseInfo, Request, Rows, Shape, Verdict
from genward.errors import IntegrityError, NotFound, Unavailable
from genward.hookspecs import hookimpl
from genward.policy import Policy, PolicyContext
from genward_policies.watermark.config import WatermarkConfig
from genward_policies.watermark.exam import Columns, Usual, levels
from genward_policies.watermark.marking import MarkKey, scores, tenant_key
from genward_policies.watermark.scheme import FILE, MOST_WORDS, Levels, Scheme

if TYPE_CHECKING:
    from genward.candidate import Candidate
    from genward.data.codec import TableCodec

USUAL = "watermark_usual.bin"  # levels of unmarked public rows: little-endian u16, row by row, zlib (RFC 1950)
HEADER = "genward-watermark"
_DRAWN, _SLOTS = 20_000, 10_000  # public rows for frequencies, slots to simulate on
_REMEMBERED = 64 << 20  # bytes of scores that are kept
_LAST_SLOT = 1 << 22  # above it nothing is kept
_HELD = 16  # releases


@dataclass(frozen=True)
class Held:
    """What is needed to mark and to recognise rows of a release."""

    scheme: Scheme
    codec: TableCodec

    def scores(self, rows: Rows, key: MarkKey) -> NDArray[np.float64]:
        """Scores of rows under a key."""
        return scores(self.scheme.cells(levels(self.scheme.axes, columns(rows, self.codec))), [key])


def columns(rows: Rows, codec: TableCodec) -> Columns:
    """Generated rows column by column."""
    found: dict[str, Any] = {name: rows.numbers[:, place] for place, name in enumerate(codec.number_columns)}
    return found | {name: rows.codes[:, place] for place, name in enumerate(codec.code_columns)}


class Watermark(Policy):
    """The best of a slot's candidates by a keyed score. A tenant's key and a slot decide; what was asked does not, so
    that a tenant holds one row of a slot however he asks."""

    name = "watermark"
    Config = WatermarkConfig

    def __init__(self, config: Any, context: PolicyContext) -> None:
        super().__init__(config, context)
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._keys: dict[tuple[str, str | None, int], MarkKey] = {}
        self._known = Remembered(_REMEMBERED)

    # release

    @hookimpl
    def shape(self, candidate: Candidate, progress: Progress) -> Shape:
        from genward_policies.watermark.power import search

        ground = self._ground(candidate, progress)
        found = search(ground, self.config, progress)
        real = self._innocent(candidate, ground, found.scheme)
        files = {FILE: found.scheme.to_json(), USUAL: packed(ground.usual_levels)}
        return Shape(candidates=found.scheme.candidates, files=files, evidence=(*found.evidence, real))

    def _ground(self, candidate: Candidate, progress: Progress) -> Any:
        """Rows of the release's generator under the public key: plain ones, and slots of candidates."""
        from genward_policies.watermark.power import Ground

        k = self.config.candidates
        progress.start("draw rows for the watermark", _DRAWN + k * _SLOTS)
        usual = _public(candidate, 1, 0, _DRAWN)
        pool = _public(candidate, k, _DRAWN, _SLOTS)
        progress.finish()
        return Ground(usual, pool, k)

    def _innocent(self, candidate: Candidate, ground: Any, scheme: Scheme) -> Evidence:
        """False positives on rows that nobody generated."""
        from genward_policies.watermark.power import Trial, false_positives, withheld
        from genward_policies.watermark.table import columns_of

        if candidate.recipe.protected or candidate.test is None or not candidate.test.num_rows:
            return withheld()
        real = columns_of(candidate.test.slice(0, 5000), candidate.codec.schema, scheme.axes).columns
        return false_positives(Trial(ground, scheme), real, "real", "held-out real rows")

    @hookimpl
    def gate(self, evidence: Sequence[Evidence]) -> Verdict:
        from genward_policies.watermark.gates import reasons

        found = reasons({item.claim: item for item in evidence}, self.config)
        return Verdict(not found, tuple(f"watermark: {reason}" for reason in found))

    # request

    @hookimpl
    def admit(self, request: Request, facts: Facts) -> Verdict:
        if request.action != "generate":
            return Verdict(True)
        if facts.release is None:
            return Verdict(False, ("watermark: no release was named",))
        if self.context.sealed is None:
            return Verdict(False, ("watermark: no bundles are at hand",))
        try:
            held = self.held(facts.release.digest)
        except NotFound:
            return Verdict(False, ("watermark: the release was sealed without a mark",))
        if held.scheme.payload != self.config.payload:
            return Verdict(False, (f"watermark: the release was sealed with payload {held.scheme.payload}",))
        return Verdict(True, headers={HEADER: self._key(facts).id})

    @hookimpl
    def score(self, request: Request, facts: Facts, rows: Rows) -> NDArray[np.float64]:
        if facts.release is None:
            raise Unavailable("no release was named", where="watermark")
        held, key = self.held(facts.release.digest), self._key(facts)
        name, k = f"{facts.release.digest}/{key.id}", held.scheme.candidates
        return self._known.scores(name, rows, k, lambda some: held.scores(some, key))

    @hookimpl
    def mark(self, request: Request, facts: Facts, payload: Mapping[str, str]) -> Mapping[str, str]:
        from genward.statement import sign

        told = {**payload, "policy": facts.policy, "receipt": f"/v1/receipts/{request.id}"}
        return {**payload, **sign(self.context.keys, told)}

    def held(self, digest: str) -> Held:
        """The scheme and the codec of a release, from its verified bundle; NotFound when it was sealed without."""
        found = self._held.get(digest)
        if found is None:
            from genward.data.codec import TableCodec

            scheme = Scheme.from_json(self._sealed(digest, FILE))
            found = self._held[digest] = Held(scheme, TableCodec.from_json(self._sealed(digest, "codec.json")))
            while len(self._held) > _HELD:
                self._held.popitem(last=False)
        return found

    def _sealed(self, digest: str, name: str) -> bytes:
        if self.context.sealed is None:
            raise Unavailable("no bundles are at hand", where="watermark")
        return self.context.sealed(digest, name)

    def _key(self, facts: Facts) -> MarkKey:
        if facts.release is None:
            raise Unavailable("no release was named", where="watermark")
        tenant = facts.principal.tenant if self.config.payload == "tenant" else None
        return self._derived(facts.release.digest, tenant, self.config.epoch)

    def _derived(self, digest: str, tenant: str | None, epoch: int) -> MarkKey:
        label = (digest, tenant, epoch)
        if label not in self._keys:
            if len(self._keys) > 10_000:
                self._keys.clear()
            self._keys[label] = tenant_key(self.context.keys, digest, tenant, epoch)
        return self._keys[label]

    # detection

    @hookimpl
    def detect(self, rows: Any, releases: Sequence[ReleaseInfo], tenants: Sequence[str]) -> Sequence[Detection]:
        from genward_policies.watermark.detector import Suspect, detect
        from genward_policies.watermark.table import read

        file = read(rows, seed=int.from_bytes(self.context.keys.derive("watermark/rows", 16), "big"))
        suspects: list[Suspect] = []
        for info in releases:
            try:
                suspects.append(self._suspect(info, tenants))
            except NotFound:
                continue  # sealed without a mark
        if not suspects:
            raise NotFound("no release here was sealed with a mark", remedy="release under a policy with `watermark`")
        return detect(file, suspects)

    def _suspect(self, info: ReleaseInfo, tenants: Sequence[str]) -> Any:
        from genward_policies.watermark.detector import Suspect, Tried

        held = self.held(info.digest)
        usual = Usual(held.scheme, unpacked(self._sealed(info.digest, USUAL), held.scheme))
        names: Iterable[str | None] = tenants if held.scheme.payload == "tenant" else (None,)
        keys = [
            Tried(name or "", epoch, self._derived(info.digest, name, epoch))
            for name in names
            for epoch in self.config.known
        ]
        return Suspect(info, usual, held.codec.schema, keys)


def _public(candidate: Candidate, k: int, start: int, count: int) -> Columns:
    """Rows of `count` slots from `start` under the key that everybody knows, k candidates each."""
    from genward.release import public_engine

    table = replace(candidate.table, candidates=k, block=128 * k)
    engine = public_engine(candidate, candidate.exported, table)
    parts = [columns(rows, candidate.codec) for rows in engine.stream(start, count)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def packed(found: Levels) -> bytes:
    """Levels as they are sealed."""
    return zlib.compress(found.astype("<u2").tobytes(), 9)


def unpacked(data: bytes, scheme: Scheme) -> Levels:
    """Levels as they were sealed; IntegrityError when they do not go with the scheme."""
    wanted = 2 * scheme.rows * len(scheme.axes)
    try:
        plain = zlib.decompressobj().decompress(data, wanted + 1)
    except zlib.error as error:
        raise IntegrityError(f"cannot be read: {error}", where=USUAL) from None
    sizes = [axis.size for axis in scheme.axes]
    found = np.frombuffer(plain, dtype="<u2").reshape(scheme.rows, -1) if len(plain) == wanted else None
    if found is None or (found.max(axis=0) >= sizes).any() or max(sizes) > MOST_WORDS + 1:
        raise IntegrityError("does not go with the scheme", where=USUAL)
    return found.astype(np.intp)


def _of(rows: Rows, wanted: NDArray[np.bool_]) -> Rows:
    return Rows(rows.numbers[wanted], rows.codes[wanted], rows.slots[wanted])


class Remembered:
    """Scores by slot, of the keys used last. They hang on key and row alone, so keeping them changes nothing."""

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._tables: OrderedDict[str, NDArray[np.float64]] = OrderedDict()

    def scores(self, name: str, rows: Rows, k: int, compute: Any) -> NDArray[np.float64]:
        """Scores of candidates that stand slot by slot, k each."""
        slots = rows.slots
        if not len(slots) or int(slots.max()) >= _LAST_SLOT or len(slots) % k:
            return np.asarray(compute(rows))
        table, places = self._table(name, int(slots.max()) + 1, k), slots[::k]
        found = table.take(places, axis=0)
        if np.isnan(found).any():
            unknown = np.isnan(found).any(axis=1)
            some = rows if unknown.all() else _of(rows, unknown.repeat(k))  # a new page is not copied
            found[unknown] = np.asarray(compute(some)).reshape(-1, k)
            table[places] = found
        return found.reshape(-1)

    def _table(self, name: str, slots: int, k: int) -> NDArray[np.float64]:
        with self._lock:
            table = self._tables.pop(name, np.empty((0, k)))
            if len(table) < slots:
                grown = np.full((max(slots, min(2 * len(table), _LAST_SLOT)), k), np.nan)
                grown[: len(table)] = table
                table = grown
            self._tables[name] = table
            while len(self._tables) > 1 and sum(t.nbytes for t in self._tables.values()) > self._limit:
                self._tables.popitem(last=False)
            return table
