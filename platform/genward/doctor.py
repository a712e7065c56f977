"""What is installed, what loaded, what could run, what is unsafe: everything a first question of support would ask."""

from __future__ import annotations

import platform as host
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genward.errors import GenwardError, NotFound

if TYPE_CHECKING:
    from genward.api import Platform
    from genward.plugins import PluginInfo, Plugins
    from genward.state import State

_PARTS = ("genward", "torch", "onnx", "onnxruntime", "onnxscript", "bentoml", "pyarrow", "cryptography", "sqlalchemy")


def examine(folder: Path, skipped: Sequence[PluginInfo] = ()) -> dict[str, Any]:
    """Facts for `genward doctor`, as JSON-able values. What is broken is listed under `problems`, never raised.

    Args:
        skipped: commands that were not loaded, to be listed beside the plugins.
    """
    problems: list[str] = []
    platform = _platform(folder, problems)
    plugins = _plugins(platform, problems)
    state = platform.state if platform else None
    if platform:
        _ask(platform, problems)
    return {
        "python": host.python_version(),
        "machine": f"{host.system()} {host.machine()}",
        "versions": {name: _version(name) for name in _PARTS},
        "providers": _providers(),
        "plugins": [_plugin(info) for info in [*plugins.infos, *skipped]],
        "attackers": sorted(plugins.attackers),
        "state": None if state is None else str(state.folder),
        "unsafe": [] if state is None else unsafe(state),
        "problems": problems,
    }


def _platform(folder: Path, problems: list[str]) -> Platform | None:
    """The state folder, if there is one that opens; having none yet is no problem."""
    from genward.api import Platform

    try:
        return Platform.open(folder)
    except GenwardError as error:
        if not isinstance(error, NotFound) or folder.exists():
            problems.append(str(error))
        return None


def _plugins(platform: Platform | None, problems: list[str]) -> Plugins:
    from genward.plugins import Plugins

    try:
        found = platform.plugins if platform else Plugins.load(["genward"])
    except GenwardError as error:
        problems.append(str(error))
        return Plugins()
    remedy = "mend it, or take it off the list `plugins` in genward.yaml"
    problems += [f"plugin {info.distribution} is broken: {info.reason} ({remedy})" for info in found.broken]
    return found


def _ask(platform: Platform, problems: list[str]) -> None:
    """Whether keys, registry, policy and log answer; the same complaint is made once."""
    for part in (lambda: platform.keys.trusted(), platform.policies, lambda: platform.audit.vkey()):
        try:
            part()
        except GenwardError as error:
            if str(error) not in problems:
                problems.append(str(error))
    platform.close()


def unsafe(state: State) -> list[str]:
    """What in this configuration weakens a promise, one sentence each."""
    from genward import config

    found = list(config.unsafe(state.config))
    found += _same_disk(state)
    return found


def _same_disk(state: State) -> list[str]:
    """A head on the log's own disk is rolled back together with it, and nobody notices."""
    audit = state.config.audit
    if audit.second_folder or audit.witnesses or audit.head:
        return []
    return [
        "the log's head lies on the log's own disk: a rolled-back disk would not be noticed; "
        "set audit.head, audit.second_folder or audit.witnesses"
    ]


def _providers() -> Sequence[str]:
    try:
        import onnxruntime
    except ImportError:
        return ()
    found: Sequence[str] = onnxruntime.get_available_providers()
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _plugin(info: Any) -> dict[str, str]:
    names = ("name", "distribution", "version", "status", "reason", "trace")
    return {name: getattr(info, name) for name in names if getattr(info, name)}
