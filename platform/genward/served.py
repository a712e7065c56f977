"""What a server holds of a release: the verified bundle, its engine, and tenants' walks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genward.bundle import Bundle
from genward.contracts import KeyProvider, ReleaseInfo
from genward.data.codec import TableCodec
from genward.engine import Engine
from genward.errors import NotFound
from genward.pool import raised
from genward.release import PUBLIC_KEY
from genward.table import Table, Walk

if TYPE_CHECKING:
    from genward.keys import LocalKeys

_WALKS = 512  # kept at a time, over all tenants


@dataclass
class Served:
    """An open release."""

    info: ReleaseInfo
    bundle: Bundle
    codec: TableCodec
    engine: Engine
    keys: KeyProvider

    def __post_init__(self) -> None:
        self._walks: OrderedDict[Any, Walk] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def table(self) -> Table:
        return self.engine.table

    def own_key(self, tenant: str) -> bytes | None:
        """The noise key of a tenant where there is no pool; None means the pool's."""
        return None if self.table.slots is not None else self._derived(f"pool/{self.bundle.digest}/{tenant}")

    def walk(
        self, tenant: str, cells: tuple[int, ...] | None, segments: int | None = None, reach: int | None = None
    ) -> Walk:
        """A tenant's walk over some cells; its order is computed once."""
        key = (tenant, cells, segments, reach)
        with self._lock:
            if key in self._walks:
                self._walks.move_to_end(key)
                return self._walks[key]
        pool = self.own_key(tenant) or self._derived(f"pool/{self.bundle.digest}")
        tenant_key = self._derived(f"walk/{self.bundle.digest}/{tenant}")
        walk = Walk(self.table, tenant_key, pool, cells, segments, reach)
        with self._lock:
            self._walks[key] = walk
            while len(self._walks) > _WALKS:
                self._walks.popitem(last=False)
        return walk

    def _derived(self, label: str) -> bytes:
        return self.keys.derive(label, 16)


class Shelf:
    """Releases that are open in this process, by digest. Opening verifies signature, graph and golden blocks."""

    def __init__(
        self, folder: Path, keys: KeyProvider, trusted: Sequence[bytes], providers: Sequence[str], limit: int = 8
    ) -> None:
        self._folder, self._keys, self._trusted = folder, keys, trusted
        self._providers, self._limit = providers, limit
        self._open: OrderedDict[str, Served] = OrderedDict()
        self._lock = threading.Lock()

    def at_hand(self, info: ReleaseInfo) -> Served | None:
        """The release if it is open already, with the pool that it has now."""
        found = self._open.get(info.digest)
        return found if found is not None and found.info.raised == info.raised else None

    def get(self, info: ReleaseInfo) -> Served:
        """Open a release, or hand out the open one. IntegrityError when it is not what was sealed."""
        with self._lock:
            found = self._open.get(info.digest)
            if found is None or found.info.raised != info.raised:
                found = self._open[info.digest] = self._load(info)
                while len(self._open) > self._limit:
                    self._open.popitem(last=False)
            return found

    def _load(self, info: ReleaseInfo) -> Served:
        bundle = Bundle.open(bundle_folder(self._folder, info.digest), self._trusted)
        codec = TableCodec.from_json(bundle.codec)
        graph, meta = bundle.graph("sample")
        table = raised(Table.from_json(bundle.manifest["table"]), bundle.digest, info.raised, self._trusted)
        pool = self._keys.derive(f"pool/{bundle.digest}", 16)
        engine = Engine(graph, codec, table, meta, pool_key=pool, providers=self._providers)
        engine.check_golden(bundle.manifest["golden"], bundle.manifest["runtime"], PUBLIC_KEY)
        return Served(info, bundle, codec, engine, self._keys)


class Sealed:
    """Reads what policies sealed into bundles, by digest; a bundle is verified once, and its graphs are not kept."""

    def __init__(self, bundles: Path, keys: LocalKeys) -> None:
        self._bundles, self._keys = bundles, keys
        self._files: dict[str, Mapping[str, bytes]] = {}

    def __call__(self, digest: str, name: str) -> bytes:
        """A file of a verified bundle; NotFound when it has none of that name."""
        if digest not in self._files:
            bundle = Bundle.open(bundle_folder(self._bundles, digest), self._keys.trusted())
            self._files[digest] = {file: data for file, data in bundle.files.items() if not file.endswith(".onnx")}
        if name not in self._files[digest]:
            raise NotFound(f"the bundle has no file {name!r}", where=digest)
        return self._files[digest][name]


def bundle_folder(bundles: Path, digest: str) -> Path:
    """Where a bundle lies."""
    return bundles / digest.removeprefix("sha256:")
