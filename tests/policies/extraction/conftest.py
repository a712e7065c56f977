"""One release under the policy, calibrated for a moment, for every test that serves."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from genward.api import Platform
from genward_policies.extraction import calibrate

POLICY = """
apiVersion: genward/v1
kind: Policy
name: extraction-tests
access:
  roles:
    generate: [consumer, administrator]
    read: [consumer, auditor]
    audit: [auditor]
quota:
  rows: {{per_request: 20000000}}
  requests: {{per_key_minute: 1000000}}
quality: {{tstr_drop_max: null, exact_copies_max: null}}
extraction: {{{settings}}}
"""
SETTINGS = "pool: auto, max_risk: {key: 0.3, release: 0.6}, attackers: [kde, gmm], calibration_cpu_seconds: 20"


@pytest.fixture(scope="session")
def calibrated(sealed: Any, processes_of: Any) -> Iterator[Any]:
    """A state with `guarded:1`, released under the policy: its folder."""
    folder = Path(tempfile.mkdtemp(prefix="gw", dir="/tmp")) / "s"
    shutil.copytree(sealed.folder, folder, ignore=shutil.ignore_patterns("*.sock"))
    platform = Platform.open(folder)
    _activate(platform, SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "SIZES", calibrate.Sizes(4000, 1500, 3, (100, 300, 1000)))
        platform.release(platform.candidates()[0]["id"], "guarded", grant=["acme", "other"], evaluate_rows=300)
    platform.close()
    _end(folder, processes_of)  # a copy must not be taken under the log writer's hands
    yield folder
    shutil.rmtree(folder.parent, ignore_errors=True)


def _end(folder: Path, processes_of: Any) -> None:
    """End the log's writer of a state folder."""
    while found := processes_of(folder):
        for pid in found:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _activate(platform: Platform, settings: str, more: str = "") -> str:
    """Make the document with other settings of the policy active, and perhaps with one more policy in it."""
    digest = platform.propose_policy(POLICY.format(settings=settings) + more)
    platform.approve_policy(digest)
    return platform.activate_policy(digest)


@pytest.fixture
def guarded(calibrated: Path, processes_of: Any) -> Iterator[Platform]:
    """A copy of that state for one test."""
    folder = Path(tempfile.mkdtemp(prefix="gw", dir="/tmp")) / "s"
    shutil.copytree(calibrated, folder, ignore=shutil.ignore_patterns("*.sock"))
    platform = Platform.open(folder)
    yield platform
    platform.close()
    _end(folder, processes_of)
    shutil.rmtree(folder.parent, ignore_errors=True)


@pytest.fixture
def under() -> Callable[..., str]:
    """Make other settings of the policy active."""
    return _activate


@pytest.fixture(scope="session")
def activate() -> Callable[..., str]:
    """The same for fixtures that live longer."""
    return _activate


@pytest.fixture(scope="session")
def settings() -> str:
    """Those under which `guarded` was released."""
    return SETTINGS
