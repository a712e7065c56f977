"""What an administrator does about keys that are watched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genward.errors import NotFound
from genward_policies.extraction.watch import Watch, keyed_id

if TYPE_CHECKING:
    from genward.api import Platform


def watched(platform: Platform) -> Sequence[dict[str, Any]]:
    """Keys whose conditions are watched, with the model they were asked of; the most suspicious first."""
    names = {row["digest"]: f"{row['name']}:{row['version']}" for row in platform.registry.releases()}
    rows = Watch(platform._context, platform.counters).listed()
    return [{**row, "release": names.get(row["release"], row["release"])} for row in rows]


def reset(platform: Platform, model: str, tenant: str, key: str, actor: str = "") -> int:
    """Forget what is known of a key on a model and lift its flag; in the log first. NotFound when nothing is known."""
    info = platform.registry.resolve(model, retired=True)
    name = f"{info.digest}/{tenant}/{key}"
    watch = Watch(platform._context, platform.counters)
    if (info.digest, tenant, key) not in {(row["release"], row["tenant"], row["key"]) for row in watch.listed()}:
        raise NotFound(f"nothing is known of {key} on {model}", remedy="`genward extraction watched` lists them")
    platform.record("extraction.reset", actor, key_id=keyed_id(platform._context, name), release=info.digest)
    return int(watch.reset(name))
