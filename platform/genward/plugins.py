"""Loading plugins, and one typed method per hook. Nobody else touches the plugin manager.

`Plugins.load` is an explicit call on a fresh instance: importing this module loads nothing. What an operator did not
allow is listed as skipped; what failed is listed as broken with its traceback; neither disappears.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from genward import hookspecs
from genward.errors import NotFound, PluginError

if TYPE_CHECKING:
    from genward.attacker import Attacker
    from genward.data.codec import Codec
    from genward.family import Family
    from genward.policy import Policy, PolicyContext, PolicyDocument
    from genward.policyset import PolicySet

GROUP = "genward"
COMMANDS = "genward.commands"


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One entry point: where it comes from and what became of it."""

    name: str
    module: str
    distribution: str
    version: str
    status: str  # loaded | skipped | broken
    reason: str = ""
    trace: str = ""


@dataclass
class Plugins:
    """The plugins of one program. Build with `load` (installed ones) or `of` (modules at hand, for tests)."""

    infos: list[PluginInfo] = field(default_factory=list)
    families: dict[str, type[Family]] = field(default_factory=dict)
    codecs: dict[str, type[Codec]] = field(default_factory=dict)
    policies: dict[str, type[Policy]] = field(default_factory=dict)
    attackers: dict[str, type[Attacker]] = field(default_factory=dict)
    owners: dict[str, PluginInfo] = field(default_factory=dict)  # "families/vae" -> who brought it

    @classmethod
    def load(cls, allow: Iterable[str]) -> Plugins:
        """Load the entry points of the allowed distributions.

        Raises:
            PluginError: two plugins bring the same name, or an allowed distribution is not installed.
        """
        plugins, allowed = cls(), {_normal(name) for name in allow}
        found = list(entry_points(group=GROUP))
        plugins._require_installed(allowed, found)
        for point in sorted(found, key=lambda p: (_distribution(p), p.name)):
            if _normal(_distribution(point)) in allowed:
                plugins._load_point(point)
            else:
                plugins.infos.append(_info(point, "skipped", "its distribution is not in the allow-list `plugins`"))
        return plugins

    @classmethod
    def of(cls, *modules: Any) -> Plugins:
        """Plugins from modules or namespaces at hand, all allowed."""
        plugins = cls()
        for module in modules:
            name = getattr(module, "__name__", type(module).__name__)
            plugins._add(module, PluginInfo(name, name, "local", "0", "loaded"))
        return plugins

    @property
    def broken(self) -> list[PluginInfo]:
        return [info for info in self.infos if info.status == "broken"]

    def family(self, name: str) -> type[Family]:
        """The family class of that name; NotFound says what there is and what failed to load."""
        return _lookup(self.families, name, "family", self.broken)

    def policy_set(self, document: PolicyDocument, context: PolicyContext, digest: str | None = None) -> PolicySet:
        """Instantiate the policies of a document, under the digest by which it is known (a plugin that has got a new
        setting since would give it another), else under its own."""
        from genward.policyset import PolicySet

        parts = document.parts
        made = [self.policies[key](part, context) for key, part in parts.items()]
        return PolicySet(made, digest or document.digest)

    def _require_installed(self, allowed: set[str], found: Sequence[EntryPoint]) -> None:
        every = [*found, *entry_points(group=COMMANDS)]  # who brings commands alone is installed too
        missing = allowed - {_normal(_distribution(point)) for point in every}
        if missing:
            raise PluginError(
                f"allowed plugins are not installed: {', '.join(sorted(missing))}",
                where="genward.yaml: plugins",
                remedy="pip install them, or take them off the list",
            )

    def _load_point(self, point: EntryPoint) -> None:
        try:
            module = point.load()
            _announce_check(module, point.value)
        except PluginError:
            raise
        except Exception as error:
            self.infos.append(_info(point, "broken", f"{type(error).__name__}: {error}", traceback.format_exc()))
            return
        self._add(module, _info(point, "loaded"))

    def _add(self, module: Any, info: PluginInfo) -> None:
        """Ask a module for its classes. A failing hook makes the plugin broken, a doubled name stops the load."""
        try:
            announced = _announcements(module)
        except Exception as error:
            broken = PluginInfo(
                info.name,
                info.module,
                info.distribution,
                info.version,
                "broken",
                f"{type(error).__name__}: {error}",
                traceback.format_exc(),
            )
            self.infos.append(broken)
            return
        for kind, classes in announced.items():
            for found in classes:
                self._register(kind, found, info)
        self.infos.append(info)

    def _register(self, kind: str, found: type[Any], info: PluginInfo) -> None:
        table: dict[str, type[Any]] = getattr(self, kind)
        name = getattr(found, "name", None)
        if not isinstance(name, str) or not name:
            raise PluginError(f"{found!r} has no name", where=info.module, remedy="set the class attribute `name`")
        if name in table:
            other = self.owners[f"{kind}/{name}"]
            raise PluginError(
                f"two plugins bring the {kind} name {name!r}: {other.distribution} and {info.distribution}",
                where=info.module,
                remedy="allow only one of them in `plugins`",
            )
        table[name] = found
        self.owners[f"{kind}/{name}"] = info


def allowed_commands(allow: Iterable[str]) -> tuple[list[EntryPoint], list[PluginInfo]]:
    """Entry points that add nouns to the command line: those of allowed distributions, and what became of the others.
    Nothing is loaded here."""
    allowed, found, skipped = {_normal(name) for name in allow}, [], []
    for point in entry_points(group=COMMANDS):
        if _normal(_distribution(point)) in allowed:
            found.append(point)
        else:
            skipped.append(_info(point, "skipped", "its commands: the distribution is not in the allow-list `plugins`"))
    return found, skipped


def _announcements(module: Any) -> dict[str, list[type[Any]]]:
    manager = _manager()
    manager.register(module)
    manager.check_pending()
    hooks = manager.hook
    return {
        "families": _flat(hooks.genward_families()),
        "codecs": _flat(hooks.genward_codecs()),
        "policies": _flat(hooks.genward_policies()),
        "attackers": _flat(hooks.genward_attackers()),
    }


def _announce_check(module: Any, value: str) -> None:
    """An entry point that names something without a single announcing hook is a mistake worth a word."""
    if not isinstance(module, ModuleType) and not hasattr(module, "__dict__"):
        raise TypeError(f"{value} is no module with hooks")
    names = {name for name in dir(module) if hasattr(getattr(module, name), f"{hookspecs.PROJECT}_impl")}
    if not names:
        raise TypeError(f"{value} has no function marked with hookimpl")


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def _flat(nested: Iterable[Sequence[type[Any]]]) -> list[type[Any]]:
    return [found for classes in nested for found in classes]


def _lookup(table: Mapping[str, type[Any]], name: str, kind: str, broken: Sequence[PluginInfo]) -> type[Any]:
    if name in table:
        return table[name]
    failed = ", ".join(info.distribution for info in broken)
    hint = f"; failed to load: {failed}, see `genward doctor`" if broken else ""
    raise NotFound(
        f"no {kind} is called {name!r}",
        remedy=f"there are: {', '.join(sorted(table)) or 'none'}{hint}",
    )


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


def _info(point: EntryPoint, status: str, reason: str = "", trace: str = "") -> PluginInfo:
    version = point.dist.version if point.dist else "unknown"
    return PluginInfo(point.name, point.value, _distribution(point), version, status, reason, trace)


def _normal(name: str) -> str:
    """PEP 503 normal form of a distribution's name."""
    return name.replace("_", "-").replace(".", "-").lower()
