"""genward trains, seals, serves and governs generative models, on one enforced path.

    import genward
    platform, key = genward.init("STATE", tenant="acme")
    platform = genward.open("STATE")

Every verb of the command line is a method of `genward.api.Platform`. Importing this package costs next to nothing: no
torch, no onnxruntime, no database.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genward.api import Platform
    from genward.client import HttpClient

__all__ = ["connect", "init", "open"]


def init(
    state: str | Path, *, tenant: str = "default", passphrase: str | None = None, single_operator: bool = False
) -> tuple[Platform, str]:
    """Make a state folder; returns the platform and an administrator's API key, which is shown this once.

    `single_operator` lets one person both propose and approve; it is recorded and listed as unsafe by `genward doctor`.
    """
    from genward.api import Platform

    return Platform.init(Path(state), tenant=tenant, passphrase=passphrase, single_operator=single_operator)


def open(state: str | Path, passphrase: str | None = None) -> Platform:
    """The platform on a state folder; NotFound says how to make one."""
    from genward.api import Platform

    return Platform.open(Path(state), passphrase)


def connect(url: str, key: str) -> HttpClient:
    """A client of a server."""
    from genward.client import HttpClient

    return HttpClient(url, key)
