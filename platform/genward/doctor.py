"""What is installed, what loaded, what could run, what is unsafe: everything a first question of support would ask."""

from __future__ import annotations

import platform as host
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genward.plugins import Plugins
    from genward.state import State

_PARTS = ("genward", "torch", "onnx", "onnxruntime", "onnxscript", "bentoml", "pyarrow", "cryptography", "sqlalchemy")


def examine(state: State | None, plugins: Plugins) -> dict[str, Any]:
    """Facts for `genward doctor`, as JSON-able values."""
    return {
        "python": host.python_version(),
        "machine": f"{host.system()} {host.machine()}",
        "versions": {name: _version(name) for name in _PARTS},
        "providers": _providers(),
        "plugins": [_plugin(info) for info in plugins.infos],
        "state": None if state is None else str(state.folder),
        "unsafe": [] if state is None else unsafe(state),
    }


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
