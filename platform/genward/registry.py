"""The registry: tenants, keys, data sets, releases, aliases, approvals, policy versions.

What a server asks at every request (who is this, what is that release, which policy is active) is kept in memory and
forgotten as soon as anybody commits a change, so that a revocation holds from the next request on.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import Connection

from genward import models as m
from genward.apikey import ApiKeys, Key, Scope, key_of
from genward.contracts import Principal, ReleaseInfo
from genward.errors import Conflict, Denied, NotFound, Unauthenticated, UsageError
from genward.store import Store, Watch, migrate

ROLES = ("administrator", "publisher", "auditor", "consumer")
_KEPT = 65_536  # cached look-ups; all are dropped when it is full
_LINE = 5  # keys from a key to the first of its parents


class Registry:
    """An open registry.

    Args:
        url: SQLAlchemy URL.
        pepper: secret that goes into the stored hash of every API key.
    """

    def __init__(self, url: str, pepper: bytes) -> None:
        self.store = Store(url)
        migrate(self.store)
        self._keys = ApiKeys(pepper)
        self._watch = Watch(self.store, m.changes)
        self._lock = threading.Lock()
        self.writes = 0  # by this object
        self._seen, self._cache = -1, {}  # type: tuple[int, dict[Any, Any]]

    def close(self) -> None:
        self._watch.close()
        self.store.close()

    def change_counter(self) -> int:
        """A number that is different after any change by anybody."""
        return self._watch.value()

    # tenants and keys

    def add_tenant(self, name: str) -> None:
        """Conflict if there is one of that name."""
        check_name(name, "tenant")
        if name in self.tenants():
            raise Conflict(f"there is a tenant {name!r} already", remedy="`genward tenant list` shows them")
        self._write(lambda c: c.execute(insert(m.tenants).values(name=name, created=time.time())))

    def tenants(self) -> list[str]:
        with self.store.begin() as c:
            return list(c.execute(select(m.tenants.c.name).order_by(m.tenants.c.name)).scalars())

    def has_tenant(self, name: str, at: int | None = None) -> bool:
        """Whether there is a tenant of that name."""
        query = select(m.tenants.c.name).where(m.tenants.c.name == name)
        return bool(self._cached(("tenant", name), lambda c: c.execute(query).first() is not None, at))

    def create_key(
        self,
        tenant: str,
        roles: Sequence[str],
        *,
        expires: float | None = None,
        label: str = "",
        scope: Scope | None = None,
        parent: str | None = None,
        actor: str = "",
    ) -> tuple[str, str]:
        """Make an API key; returns (prefix, key). The key is not stored and cannot be shown again.

        A key with a parent is its tenant's, has no role that the parent lacks, and is valid only while the parent is.
        """
        unknown = set(roles) - set(ROLES)
        if unknown or not roles:
            raise UsageError(f"no role {', '.join(sorted(unknown)) or 'given'}", remedy=f"roles: {', '.join(ROLES)}")
        if tenant not in self.tenants():
            raise NotFound(f"no tenant {tenant!r}", remedy="`genward tenant add` makes one")
        prefix, key, digest = self._keys.make()
        row: dict[str, Any] = {
            "prefix": prefix,
            "hash": digest,
            "tenant": tenant,
            "roles": json.dumps(sorted(set(roles))),
            **(scope or Scope()).columns(),
        }
        row |= {"label": label, "created": time.time(), "expires": expires, "parent": parent, "created_by": actor}

        def write(c: Connection) -> None:
            if parent is not None:
                _check_parent(_key_row(c, parent), parent, tenant, roles)
            c.execute(insert(m.api_keys).values(**row))

        self._write(write)
        return prefix, key

    def keys(self, tenant: str | None = None) -> list[dict[str, Any]]:
        """Keys by prefix, without anything secret."""
        names = ["prefix", "tenant", "roles", "label", "created", "expires", "revoked"]
        names += ["actions", "models", "networks", "parent", "created_by"]
        query = select(*(m.api_keys.c[name] for name in names)).order_by(m.api_keys.c.created)
        with self.store.begin() as c:
            rows = [dict(row) for row in c.execute(query).mappings()]
        lists = ("roles", "actions", "models", "networks")
        return [row | {n: json.loads(row[n]) for n in lists} for row in rows if tenant in (None, row["tenant"])]

    def revoke_key(self, prefix: str) -> None:
        done = self._write(
            lambda c: c.execute(update(m.api_keys).where(m.api_keys.c.prefix == prefix).values(revoked=time.time()))
        )
        if not done.rowcount:
            raise NotFound(f"no key {prefix!r}", remedy="`genward key list` shows prefixes")

    def authenticate(self, key: str, now: float | None = None, at: int | None = None) -> Principal:
        """Who a key belongs to; Unauthenticated, in the same words, for whatever is wrong with it.

        `at`: a change counter read just now; one look then serves all questions of a request.
        """
        prefix, digest = self._keys.read(key)
        row: Key | None = self._cached(("key", prefix), lambda c: _key_row(c, prefix), at)
        moment = time.time() if now is None else now
        if row is None or not self._keys.same(row.hash, digest) or not row.valid(moment, getattr(key, "address", "")):
            raise Unauthenticated("the API key is not valid", remedy="ask an administrator for one")
        return row.principal

    # data sets

    def add_dataset(self, digest: str, name: str, rows: int, parents: Sequence[str] = ()) -> None:
        """Register a data set by its content; the same content again is no error."""

        def write(c: Connection) -> None:
            if c.execute(select(m.datasets.c.id).where(m.datasets.c.digest == digest)).first() is None:
                values = {"digest": digest, "name": name, "rows": rows, "parents": json.dumps(list(parents))}
                c.execute(insert(m.datasets).values(**values, created=time.time()))

        self._write(write)

    def datasets(self) -> list[dict[str, Any]]:
        with self.store.begin() as c:
            rows = c.execute(select(m.datasets).order_by(m.datasets.c.id)).mappings()
            return [{**row, "parents": json.loads(row["parents"])} for row in rows]

    def dataset(self, name: str) -> dict[str, Any]:
        """The newest data set of a name, or the one of a digest (or its first characters)."""
        found = [d for d in self.datasets() if d["name"] == name or _is_prefix(name, d["digest"])]
        if not found:
            raise NotFound(f"no data set {name!r}", remedy="`genward dataset list` shows them")
        return found[-1]

    # releases

    def reserve_release(self, name: str, candidate: str = "") -> int:
        """Reserve the next version of a model; nobody sees it until `commit_release`."""
        check_name(name, "model")

        def write(c: Connection) -> int:
            _sweep(c)
            if not self.store.sqlite:
                c.exec_driver_sql("LOCK TABLE releases IN SHARE ROW EXCLUSIVE MODE")
            last = c.execute(select(func.max(m.releases.c.version)).where(m.releases.c.name == name)).scalar()
            values = {"name": name, "version": (last or 0) + 1, "stage": "registering", "owner": _owner()}
            c.execute(insert(m.releases).values(**values, candidate=candidate, tenants="[]", created=time.time()))
            return (last or 0) + 1

        version: int = self._write(write)
        return version

    def commit_release(
        self, name: str, version: int, digest: str, *, tenants: Sequence[str] = (), alias: str | None = None
    ) -> None:
        """Show a reserved version to everybody, with its grants and its alias, in one transaction."""

        def write(c: Connection) -> None:
            mine = (m.releases.c.name == name) & (m.releases.c.version == version)
            values = {"stage": "ready", "digest": digest, "tenants": json.dumps(sorted(set(tenants))), "owner": ""}
            done = c.execute(update(m.releases).where(mine & (m.releases.c.stage == "registering")).values(**values))
            if not done.rowcount:
                raise Conflict(f"{name}:{version} is not reserved", remedy="release it again")
            if alias:
                _point(c, name, alias, version)

        self._write(write)

    def abandon_release(self, name: str, version: int) -> None:
        """Give a reserved version back after a failure."""
        mine = (m.releases.c.name == name) & (m.releases.c.version == version)
        self._write(lambda c: c.execute(delete(m.releases).where(mine & (m.releases.c.stage == "registering"))))

    def releases(self) -> list[dict[str, Any]]:
        """Releases everybody may see, with their aliases."""
        with self.store.begin() as c:
            seen = select(m.releases).where(m.releases.c.stage != "registering").order_by(m.releases.c.id)
            rows = [dict(row) for row in c.execute(seen).mappings()]
            pointed = list(c.execute(select(m.aliases)).mappings())
        for row in rows:
            row["tenants"] = json.loads(row["tenants"])
            row["aliases"] = [p["alias"] for p in pointed if (p["name"], p["version"]) == (row["name"], row["version"])]
        return rows

    def resolve(self, reference: str, *, retired: bool = False, at: int | None = None) -> ReleaseInfo:
        """The release behind `name` (the newest), `name:version` or `name@alias`; NotFound."""
        found = self._cached(("release", reference, retired), lambda c: _resolve(c, reference, retired), at)
        if found is None:
            raise NotFound(f"no release {reference!r}", remedy="`genward model list` shows them")
        info: ReleaseInfo = found
        return info

    def set_alias(self, name: str, alias: str, version: int) -> None:
        check_name(alias, "alias")
        self._write(lambda c: _point(c, name, alias, version))

    def grant(self, info: ReleaseInfo, tenant: str) -> ReleaseInfo:
        """Let a tenant generate from a release; "*" for all."""
        self.require_tenant(tenant)
        tenants = tuple(sorted({*info.tenants, tenant}))
        self._release_values(info, tenants=json.dumps(tenants))
        return replace(info, tenants=tenants)

    def require_tenant(self, name: str) -> None:
        """NotFound unless there is such a tenant, or "*" stands for all."""
        if name != "*" and name not in self.tenants():
            raise NotFound(f"no tenant {name!r}", remedy="`genward tenant add` makes one")

    def raise_pool(self, info: ReleaseInfo, slots: int, statement: str) -> None:
        """Keep a signed statement that a release's pool was raised; Conflict when somebody raised it meanwhile."""

        def write(c: Connection) -> None:
            if _raised(c, info.digest) != info.raised:
                raise Conflict(f"the pool of {info.name}:{info.version} was raised meanwhile", remedy="do it again")
            values = {"digest": info.digest, "slots": slots, "statement": statement}
            c.execute(insert(m.pools).values(**values, created=time.time()))

        self._write(write)

    def retire(self, info: ReleaseInfo) -> None:
        self._release_values(info, stage="retired")

    def _release_values(self, info: ReleaseInfo, **values: Any) -> None:
        mine = (m.releases.c.name == info.name) & (m.releases.c.version == info.version)
        self._write(lambda c: c.execute(update(m.releases).where(mine).values(**values)))

    def approve(self, subject: str, actor: str) -> None:
        """Record that somebody approved something; twice by the same is no error."""

        def write(c: Connection) -> None:
            same = (m.approvals.c.subject == subject) & (m.approvals.c.actor == actor)
            if c.execute(select(m.approvals.c.id).where(same)).first() is None:
                c.execute(insert(m.approvals).values(subject=subject, actor=actor, created=time.time()))

        self._write(write)

    def approvals(self, subject: str) -> list[str]:
        with self.store.begin() as c:
            query = select(m.approvals.c.actor).where(m.approvals.c.subject == subject).order_by(m.approvals.c.id)
            return list(c.execute(query).scalars())

    # policies

    def propose_policy(self, digest: str, name: str, text: str, actor: str) -> None:
        """Keep a validated document; the same again is no error."""

        def write(c: Connection) -> None:
            if c.execute(select(m.policies.c.digest).where(m.policies.c.digest == digest)).first() is None:
                values = {"digest": digest, "name": name, "text": text, "stage": "validated", "proposed_by": actor}
                c.execute(insert(m.policies).values(**values, proposed=time.time()))

        self._write(write)

    def approve_policy(self, digest: str, actor: str, *, single_operator: bool = False) -> None:
        """Approve a version; Denied when the one who proposed it does, unless one operator does everything."""
        row = self.policy(digest)
        if row["proposed_by"] == actor and not single_operator:
            raise Denied("who proposed a policy cannot approve it", where=digest, remedy="ask another administrator")
        if row["stage"] == "validated":
            self._policy_values(digest, stage="approved", approved_by=actor, approved=time.time())

    def activate_policy(
        self, digest: str, actor: str, *, rollback: bool = False, instead_of: str | None = None
    ) -> None:
        """Make an approved version active and the active one superseded. A rollback needs one that was active.
        `instead_of`: the version that was active when this was decided; Conflict when another is by now."""

        def write(c: Connection) -> None:
            _activable(c, digest, rollback, instead_of)
            c.execute(update(m.policies).where(m.policies.c.stage == "active").values(stage="superseded"))
            values = {"stage": "active", "activated_by": actor, "activated": time.time()}
            c.execute(update(m.policies).where(m.policies.c.digest == digest).values(**values))

        self._write(write)

    def check_activation(self, digest: str, *, rollback: bool = False, instead_of: str | None = None) -> None:
        """Conflict when `activate_policy` would refuse."""
        with self.store.begin() as c:
            _activable(c, digest, rollback, instead_of)

    def active_digest(self) -> str | None:
        """Digest of the active policy, None where none was activated yet."""
        with self.store.begin() as c:
            found = _active(c)
        return None if found is None else found[0]

    def policies(self) -> list[dict[str, Any]]:
        with self.store.begin() as c:
            return [dict(row) for row in c.execute(select(m.policies).order_by(m.policies.c.proposed)).mappings()]

    def policy(self, digest: str) -> dict[str, Any]:
        """A version by its digest or the first characters of it."""
        found = [row for row in self.policies() if _is_prefix(digest, row["digest"])]
        if len(found) != 1:
            raise NotFound(f"{len(found) or 'no'} policies begin with {digest!r}", remedy="`genward policy list`")
        return found[0]

    def active_policy(self, at: int | None = None) -> tuple[str, str]:
        """Digest and text of the active policy; NotFound refuses every request."""
        found = self._cached(("policy",), _active, at)
        if found is None:
            raise NotFound("no policy is active", remedy="`genward policy activate`")
        digest, text = found
        return str(digest), str(text)

    def _policy_values(self, digest: str, **values: Any) -> None:
        self._write(lambda c: c.execute(update(m.policies).where(m.policies.c.digest == digest).values(**values)))

    # one way to write, one way to remember

    def _write(self, act: Callable[[Connection], Any]) -> Any:
        with self.store.begin() as c:
            result = act(c)
            c.execute(update(m.changes).values(value=m.changes.c.value + 1))
        self._watch.soon()
        self.writes += 1
        return result

    def _cached(self, key: Any, load: Callable[[Connection], Any], at: int | None = None) -> Any:
        now = self._watch.value() if at is None else at
        with self._lock:
            if now != self._seen or len(self._cache) > _KEPT:
                self._cache, self._seen = {}, now
            if key in self._cache:
                return self._cache[key]
        with self.store.begin() as c:
            value = load(c)
        with self._lock:
            if now == self._seen:
                self._cache[key] = value
        return value


def _key_row(c: Connection, prefix: str) -> Key | None:
    """A key and what its line of parents leaves of it; None when there is none of them."""
    line: list[Mapping[str, Any]] = []
    name: str | None = prefix
    while name is not None and len(line) < _LINE:
        row = c.execute(select(m.api_keys).where(m.api_keys.c.prefix == name)).mappings().first()
        if row is None:
            return None
        line.append(dict(row))
        name = row["parent"]
    return key_of(line) if name is None else None


def _check_parent(parent: Key | None, prefix: str, tenant: str, roles: Sequence[str]) -> None:
    if parent is None or parent.principal.tenant != tenant:
        raise NotFound(f"no key {prefix!r} of {tenant}", remedy="`genward key list` shows prefixes")
    if parent.revoked or parent.line >= _LINE or (parent.expires is not None and parent.expires <= time.time()):
        raise Conflict("a key cannot be made from this one", where=prefix, remedy="take one that is valid")
    if more := set(roles) - parent.principal.roles:
        raise Denied(f"the parent is no {', '.join(sorted(more))}", where=prefix, remedy="give roles that it has")


def _resolve(c: Connection, reference: str, retired: bool) -> ReleaseInfo | None:
    name, version = _version(c, reference)
    stages = ("ready", "retired") if retired else ("ready",)
    query = select(m.releases).where((m.releases.c.name == name) & m.releases.c.stage.in_(stages))
    if version is not None:
        query = query.where(m.releases.c.version == version)
    row = c.execute(query.order_by(m.releases.c.version.desc())).mappings().first()
    if row is None:
        return None
    tenants = tuple(json.loads(row["tenants"]))
    return ReleaseInfo(row["name"], row["version"], row["digest"], tenants, _raised(c, row["digest"]))


def _raised(c: Connection, digest: str) -> str:
    """The newest statement about a release's pool; empty when there is none."""
    query = select(m.pools.c.statement).where(m.pools.c.digest == digest).order_by(m.pools.c.slots.desc())
    return c.execute(query).scalar() or ""


def _version(c: Connection, reference: str) -> tuple[str, int | None]:
    """Name and version of a reference; version 0, which no release has, when it cannot be read."""
    name, at, alias = reference.partition("@")
    if at:
        same = (m.aliases.c.name == name) & (m.aliases.c.alias == alias)
        return name, c.execute(select(m.aliases.c.version).where(same)).scalar() or 0
    name, colon, version = reference.partition(":")
    if colon:
        return name, int(version) if version.isascii() and version.isdigit() and len(version) < 10 else 0
    return name, None


def check_name(name: str, what: str) -> None:
    """UsageError unless the name can stand in a reference and in a path."""
    if not name.isascii() or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UsageError(f"{name!r} is no {what} name", remedy="use letters a to z, digits, dots, dashes, underscores")


def _point(c: Connection, name: str, alias: str, version: int) -> None:
    same = (m.aliases.c.name == name) & (m.aliases.c.alias == alias)
    c.execute(delete(m.aliases).where(same))
    c.execute(insert(m.aliases).values(name=name, alias=alias, version=version))


def _activable(c: Connection, digest: str, rollback: bool, instead_of: str | None = None) -> None:
    now = _active(c)
    if instead_of is not None and (now is None or now[0] != instead_of):
        remedy = "look at it with `genward policy diff`, then do it again"
        raise Conflict("another version became active meanwhile", where=now[0] if now else "", remedy=remedy)
    allowed = ["superseded"] if rollback else ["approved", "superseded"]
    stage = c.execute(select(m.policies.c.stage).where(m.policies.c.digest == digest)).scalar() or "unknown"
    if stage not in (*allowed, "active"):
        raise Conflict(f"the version is {stage}", where=digest, remedy=f"it must be {' or '.join(allowed)}")


def _active(c: Connection) -> tuple[str, str] | None:
    row = c.execute(select(m.policies.c.digest, m.policies.c.text).where(m.policies.c.stage == "active")).first()
    return None if row is None else (row[0], row[1])


def _is_prefix(text: str, digest: str) -> bool:
    wanted = text if text.startswith("sha256:") else f"sha256:{text}"
    return len(wanted) >= len("sha256:") + 6 and digest.startswith(wanted)


def _owner() -> str:
    """This process, so that another can tell later whether it still lives."""
    return f"{os.uname().nodename}:{os.getpid()}:{_started(os.getpid())}"


def _sweep(c: Connection) -> None:
    """Forget versions whose releasing process on this machine is dead."""
    for row in c.execute(select(m.releases).where(m.releases.c.stage == "registering")).mappings().all():
        host, _, rest = row["owner"].partition(":")
        pid, _, started = rest.partition(":")
        if host == os.uname().nodename and _started(int(pid or 0)) != started:
            c.execute(delete(m.releases).where(m.releases.c.id == row["id"]))


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
