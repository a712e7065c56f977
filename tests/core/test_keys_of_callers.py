"""API keys: scopes, networks, parents, last use. What a key is worth is what its whole line of parents leaves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genward.apikey import Scope
from genward.auth import Authenticator
from genward.contracts import LOCAL, Credential
from genward.errors import Conflict, Denied, NotFound, Unauthenticated, UsageError
from genward.lastuse import EVERY, LastUse
from genward.registry import Registry
from genward.store import Store


@pytest.fixture(params=["sqlite", "postgres"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    sqlite = request.param == "sqlite"
    found = Registry(
        f"sqlite:///{tmp_path / 'r.db'}" if sqlite else str(request.getfixturevalue("postgres_url")), b"p" * 32
    )
    found.add_tenant("acme")
    found.add_tenant("other")
    yield found
    found.close()


def _refused(registry: Registry, key: str, **more: Any) -> bool:
    registry._watch.soon()
    try:
        registry.authenticate(key, **more)
    except Unauthenticated as error:
        assert str(error) == "the API key is not valid (ask an administrator for one)"
        return True
    return False


def test_a_key_bound_to_networks_opens_nothing_elsewhere(registry: Registry) -> None:
    _, key = registry.create_key("acme", ["consumer"], scope=Scope(networks=("10.0.0.0/8", "2001:db8::/32")))
    for address in ("10.1.2.3", "2001:db8::7"):
        assert registry.authenticate(Credential(key, address)).tenant == "acme"
    for address in ("11.0.0.1", "2001:db9::1", "", LOCAL, "10.0.0.256", "nonsense"):
        assert _refused(registry, Credential(key, address))
    assert _refused(registry, key)


def test_a_key_falls_with_its_parent_and_with_its_parent_s_parent(registry: Registry) -> None:
    first, _ = registry.create_key("acme", ["consumer", "auditor"])
    second, _ = registry.create_key("acme", ["consumer"], parent=first, expires=time.time() + 50)
    _, third = registry.create_key("acme", ["consumer"], parent=second)
    assert not _refused(registry, third)
    assert _refused(registry, third, now=time.time() + 60)
    registry.revoke_key(first)
    assert _refused(registry, third)
    with pytest.raises(Conflict):
        registry.create_key("acme", ["consumer"], parent=second)


def test_a_key_is_not_made_from_a_parent_that_has_expired_lacks_the_role_or_is_another_s(registry: Registry) -> None:
    parent, _ = registry.create_key("acme", ["consumer"], expires=time.time() - 1)
    with pytest.raises(Conflict, match="cannot be made from this one"):
        registry.create_key("acme", ["consumer"], parent=parent)
    parent, _ = registry.create_key("acme", ["consumer"])
    with pytest.raises(Denied, match="administrator"):
        registry.create_key("acme", ["consumer", "administrator"], parent=parent)
    for tenant, name in (("other", parent), ("acme", "nosuchky")):
        with pytest.raises(NotFound):
            registry.create_key(tenant, ["consumer"], parent=name)


def test_a_line_of_keys_ends(registry: Registry) -> None:
    name: str | None = None
    for _ in range(5):
        name, key = registry.create_key("acme", ["consumer"], parent=name)
        assert not _refused(registry, key)
    with pytest.raises(Conflict):
        registry.create_key("acme", ["consumer"], parent=name)


def test_scopes_and_networks_of_a_line_all_hold(registry: Registry) -> None:
    parent, _ = registry.create_key(
        "acme", ["consumer"], scope=Scope(("generate", "read"), ("alloys", "rocks"), ("10.0.0.0/8",))
    )
    _, key = registry.create_key("acme", ["consumer"], parent=parent, scope=Scope(("read",), (), ("10.1.0.0/16",)))
    found = registry.authenticate(Credential(key, "10.1.0.1"))
    assert (found.actions, found.models) == ({"read"}, {"alloys", "rocks"})
    assert _refused(registry, Credential(key, "10.2.0.1"))
    _, nothing = registry.create_key("acme", ["consumer"], parent=parent, scope=Scope(models=("others",)))
    assert _refused(registry, Credential(nothing, "10.1.0.1"))


def test_a_key_shows_its_scope_and_nothing_secret(registry: Registry) -> None:
    parent, _ = registry.create_key("acme", ["consumer"])
    scope = Scope(("generate",), ("alloys",), ("10.0.0.0/8",))
    _, key = registry.create_key("acme", ["consumer"], parent=parent, scope=scope, actor="ann")
    row = registry.keys("acme")[-1]
    assert (row["actions"], row["models"], row["networks"]) == (["generate"], ["alloys"], ["10.0.0.0/8"])
    assert (row["parent"], row["created_by"]) == (parent, "ann")
    assert key.split("_", 2)[2][:43] not in str(registry.keys())


@pytest.mark.parametrize(
    "scope",
    [Scope(("fly",)), Scope(models=("a b",)), Scope(models=("alloys:1",)), Scope(networks=("10.0.0.1/8",)),
     Scope(networks=("home",))],
)  # fmt: skip
def test_a_scope_that_names_nothing_is_refused(scope: Scope) -> None:
    with pytest.raises(UsageError):
        scope.checked()


def test_a_mistyped_key_is_told_apart_without_a_database(registry: Registry) -> None:
    _, key = registry.create_key("acme", ["consumer"])
    place = len(key) // 2
    with pytest.raises(Unauthenticated, match="copied whole"):
        registry.authenticate(key[:place] + ("A" if key[place] != "A" else "B") + key[place + 1 :])


# scopes on the request path


@pytest.fixture(scope="module")
def scoped(make_world: Any) -> Any:
    return make_world()


def test_a_scope_holds_whatever_the_policies_say(scoped: Any) -> None:
    platform = scoped.platform
    only = platform.create_key("acme", ["consumer", "auditor"], scope=Scope(("generate",), ("pool",)))
    assert platform.client(only).generate("pool:1", n=2).headers["genward-rows"] == "2"
    with pytest.raises(Denied, match="scope"):
        platform.client(only).generate("open:1", n=2)
    for action, model in (("read", "pool:1"), ("audit", "")):
        with pytest.raises(Denied, match="scope"):
            platform.run(platform.pipeline.read(only, action, model))
    refused = [entry for entry in scoped.log() if entry["event"] == "refuse"][-1]
    assert (refused["status"], refused["tenant"]) == ("denied", "acme")


# last use


def test_last_use_is_written_beside_requests_and_at_most_once_a_minute(tmp_path: Path) -> None:
    uses = LastUse(Store(f"sqlite:///{tmp_path / 'c.db'}"))
    uses.saw("k1", 1000.0)
    assert uses.all() == {}
    assert uses.write() == 1
    uses.saw("k1", 1000.0 + EVERY - 1)
    uses.saw("k2", 1010.0)
    assert uses.write() == 1
    assert uses.all() == {"k1": 1000.0, "k2": 1010.0}
    uses.saw("k1", 1000.0 + EVERY)
    uses.write()
    assert uses.all()["k1"] == 1000.0 + EVERY
    late = LastUse(uses._store)
    late.saw("k1", 900.0)
    late.write()
    assert uses.all()["k1"] == 1000.0 + EVERY


def test_a_request_leaves_its_key_s_last_use(scoped: Any) -> None:
    platform = scoped.platform
    key = platform.create_key("acme", ["consumer"])
    platform.client(key).generate("pool:1", n=1)
    platform.uses.write()
    rows = {row["prefix"]: row["used"] for row in platform.keys_of("acme")}
    assert rows[key.split("_")[1]][:10] == time.strftime("%Y-%m-%d", time.gmtime())


def test_a_refused_key_is_not_noted(registry: Registry, tmp_path: Path) -> None:
    uses = LastUse(Store(f"sqlite:///{tmp_path / 'c.db'}"))
    authenticate = Authenticator(registry, uses)
    prefix, key = registry.create_key("acme", ["consumer"])
    authenticate(key, time.time())
    registry.revoke_key(prefix)
    registry._watch.soon()
    uses.write()
    with pytest.raises(Unauthenticated):
        authenticate(key, time.time() + 100)
    assert uses.write() == 0
