"""The registry keeps its promises on SQLite and on a real PostgreSQL server alike."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st

from genward.errors import Conflict, Denied, GenwardError, NotFound, Unauthenticated, Unavailable, UsageError
from genward.models import metadata
from genward.registry import Registry

PEPPER = b"p" * 32
DIGEST = "sha256:" + "0" * 64


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    found = Registry(url, PEPPER)
    yield found
    found.close()


def _reserved(url: str) -> int:
    registry = Registry(url, PEPPER)
    version = registry.reserve_release("alloys")
    registry.commit_release("alloys", version, DIGEST)
    registry.close()
    return version


def test_migrations_lead_to_the_models(registry: Registry) -> None:
    with registry.store.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_opening_twice_changes_nothing(url: str, registry: Registry) -> None:
    registry.add_tenant("acme")
    second = Registry(url, PEPPER)
    assert second.tenants() == ["acme"]
    second.close()


def test_a_key_is_shown_once_and_only_its_hash_is_stored(registry: Registry) -> None:
    registry.add_tenant("acme")
    prefix, key = registry.create_key("acme", ["consumer"])
    assert registry.authenticate(key).tenant == "acme"
    assert registry.authenticate(key).roles == {"consumer"}
    (row,) = registry.keys()
    assert row["prefix"] == prefix
    secret = key.split("_", 2)[2]
    assert secret not in str(row)


@pytest.mark.parametrize("key", ["", "gw_", "gw_aaaaaaaa_" + "A" * 43 + "_00000000", "Bearer x", "\u00e9" * 60])
def test_what_is_no_key_is_refused(registry: Registry, key: str) -> None:
    with pytest.raises(Unauthenticated):
        registry.authenticate(key)


def test_a_wrong_pepper_a_revoked_and_an_expired_key_are_refused_alike(url: str, registry: Registry) -> None:
    registry.add_tenant("acme")
    prefix, key = registry.create_key("acme", ["consumer"])
    _, short = registry.create_key("acme", ["consumer"], expires=100.0)
    other = Registry(url, b"q" * 32)
    registry.revoke_key(prefix)
    said = set()
    for where, what in ((other, key), (registry, key), (registry, short)):
        with pytest.raises(Unauthenticated) as caught:
            where.authenticate(what, now=200.0)
        said.add(caught.value.what)
    assert len(said) == 1
    other.close()


def test_a_key_works_until_it_expires(registry: Registry) -> None:
    registry.add_tenant("acme")
    _, key = registry.create_key("acme", ["consumer"], expires=100.0)
    assert registry.authenticate(key, now=99.9).tenant == "acme"


def test_another_process_sees_a_revocation(url: str, registry: Registry) -> None:
    registry.add_tenant("acme")
    prefix, key = registry.create_key("acme", ["consumer"])
    registry.authenticate(key)
    other = Registry(url, PEPPER)
    other.revoke_key(prefix)
    other.close()
    _within_a_second(lambda: registry.authenticate(key), Unauthenticated)


def _within_a_second(act: Any, error: type[Exception]) -> None:
    import time

    until = time.monotonic() + 3
    while time.monotonic() < until:
        try:
            act()
        except error:
            return
        time.sleep(0.05)
    raise AssertionError("the change was not seen")


@pytest.mark.parametrize("roles", [[], ["king"]])
def test_a_role_must_exist(registry: Registry, roles: list[str]) -> None:
    registry.add_tenant("acme")
    with pytest.raises(UsageError):
        registry.create_key("acme", roles)


def test_tenants_are_named_once_and_well(registry: Registry) -> None:
    registry.add_tenant("acme")
    with pytest.raises(Conflict):
        registry.add_tenant("acme")
    with pytest.raises(UsageError):
        registry.add_tenant("a b")
    with pytest.raises(NotFound):
        registry.create_key("nobody", ["consumer"])


def test_a_reserved_release_is_unseen_until_it_is_committed(registry: Registry) -> None:
    version = registry.reserve_release("alloys")
    with pytest.raises(NotFound):
        registry.resolve("alloys")
    registry.commit_release("alloys", version, DIGEST, tenants=["acme"], alias="production")
    for reference in ("alloys", "alloys:1", "alloys@production"):
        assert registry.resolve(reference).digest == DIGEST
    with pytest.raises(Conflict):
        registry.commit_release("alloys", version, DIGEST)


def test_versions_follow_each_other_and_aliases_move(registry: Registry) -> None:
    for n in (1, 2):
        assert registry.reserve_release("alloys") == n
        registry.commit_release("alloys", n, f"sha256:{n:064d}", alias="production")
    assert registry.resolve("alloys@production").version == 2
    registry.set_alias("alloys", "production", 1)
    assert registry.resolve("alloys@production").version == 1
    assert registry.resolve("alloys").version == 2


def test_two_releases_of_one_name_at_once_get_two_versions(url: str, registry: Registry) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        versions = pool.map(_reserved, [url] * 6)
    assert sorted(versions) == [1, 2, 3, 4, 5, 6]


def test_a_killed_release_leaves_nothing(url: str, registry: Registry) -> None:
    code = (
        "import os, sys, signal; from genward.registry import Registry; "
        "Registry(sys.argv[1], b'p' * 32).reserve_release('alloys'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, url], check=False)
    assert done.returncode == -signal.SIGKILL
    assert registry.releases() == []
    assert registry.reserve_release("alloys") == 1


def test_a_living_release_of_this_process_is_not_swept(registry: Registry) -> None:
    assert registry.reserve_release("alloys") == 1
    assert registry.reserve_release("alloys") == 2
    assert os.getpid() > 0


def test_retired_releases_are_gone_but_for_replay(registry: Registry) -> None:
    registry.reserve_release("alloys")
    registry.commit_release("alloys", 1, DIGEST)
    registry.retire(registry.resolve("alloys"))
    with pytest.raises(NotFound):
        registry.resolve("alloys")
    assert registry.resolve("alloys:1", retired=True).digest == DIGEST


def test_grants_add_up(registry: Registry) -> None:
    registry.add_tenant("acme")
    registry.reserve_release("alloys")
    registry.commit_release("alloys", 1, DIGEST)
    registry.grant(registry.resolve("alloys"), "acme")
    assert registry.grant(registry.resolve("alloys"), "*").tenants == ("*", "acme")
    with pytest.raises(NotFound):
        registry.grant(registry.resolve("alloys"), "nobody")


def test_policies_need_four_eyes_unless_one_person_does_all(registry: Registry) -> None:
    registry.propose_policy(DIGEST, "p", "text", "ann")
    with pytest.raises(Conflict):
        registry.activate_policy(DIGEST, "ann")
    with pytest.raises(Denied):
        registry.approve_policy(DIGEST, "ann")
    registry.approve_policy(DIGEST, "bob")
    registry.activate_policy(DIGEST, "ann")
    assert registry.active_policy() == (DIGEST, "text")


def test_one_policy_is_active_and_only_a_former_one_is_rolled_back_to(registry: Registry) -> None:
    digests = [f"sha256:{n:064d}" for n in (1, 2, 3)]
    for digest in digests:
        registry.propose_policy(digest, "p", digest, "ann")
        registry.approve_policy(digest, "ann", single_operator=True)
    for digest in digests[:2]:
        registry.activate_policy(digest, "ann")
    with pytest.raises(Conflict):
        registry.activate_policy(digests[2], "ann", rollback=True)
    registry.activate_policy(digests[0], "ann", rollback=True)
    assert [row["stage"] for row in registry.policies()] == ["active", "superseded", "approved"]


def test_no_active_policy_is_said(registry: Registry) -> None:
    with pytest.raises(NotFound, match="no policy is active"):
        registry.active_policy()


def test_a_data_set_is_known_by_its_content(registry: Registry) -> None:
    registry.add_dataset(DIGEST, "alloys", 10)
    registry.add_dataset(DIGEST, "alloys", 10)
    assert registry.dataset("alloys")["digest"] == registry.dataset("0" * 8)["digest"] == DIGEST
    assert len(registry.datasets()) == 1
    with pytest.raises(NotFound):
        registry.dataset("nothing")


@given(st.text(max_size=40))
def test_any_reference_is_found_or_not_found(tmp_path_factory: pytest.TempPathFactory, reference: str) -> None:
    global _SHARED
    if _SHARED is None:
        _SHARED = Registry(f"sqlite:///{tmp_path_factory.mktemp('r') / 'registry.db'}", PEPPER)
    with pytest.raises(GenwardError):
        _SHARED.resolve(reference)


_SHARED: Registry | None = None


def test_a_store_that_is_away_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        Registry("postgresql+psycopg://nobody@127.0.0.1:1/none", PEPPER)
    with pytest.raises(UsageError):
        Registry("nonsense", PEPPER)
