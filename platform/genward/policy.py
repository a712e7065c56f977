"""Policy documents: what an administrator writes, validated by each plugin's own model, addressed by digest.

apiVersion: genward/v1
kind: Policy
name: shipped
access: {...}          one key a policy; unknown keys are refused
quota: {...}
"""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from genward.contracts import AuditSink, Finding, KeyProvider, ReleaseInfo
from genward.errors import PolicyError
from genward.strictjson import canonical

if TYPE_CHECKING:
    from genward.attacker import Attacker
    from genward.counters import Counters

API = "genward/v1"
_HEAD = ("apiVersion", "kind", "name")
_EXPECTED = ("access", "quota")


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """What a policy may use: a store for its counters and a durable one (SQLAlchemy URLs), keys, the state folder, the
    log (opened when it is first called for)."""

    store_url: str
    keys: KeyProvider
    state_dir: Path
    database_url: str = ""
    audit: Callable[[], AuditSink] | None = None
    sealed: Callable[[str, str], bytes] | None = None  # a file of a release's verified bundle, by digest and name
    attackers: Callable[[], Mapping[str, type[Attacker]]] | None = None  # installed ones, by name
    counters: Counters | None = None  # of this process, on `store_url`: chunks of limits are shared by all that count


class NoConfig(BaseModel):
    """For policies without settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Policy(ABC):
    """Base of policy plugins: a name, a pydantic model for its part of a document, and methods marked `hookimpl`."""

    name: ClassVar[str]
    Config: ClassVar[type[BaseModel]] = NoConfig

    def __init__(self, config: Any, context: PolicyContext) -> None:
        self.config = config
        self.context = context

    @property
    def tariff(self) -> float | None:
        """The price of a CPU hour by which requests are metered, of the one policy that names one."""
        return None

    def contradicts(self, releases: Sequence[ReleaseInfo]) -> Sequence[Finding]:
        """What cannot hold for releases that are served; an error keeps the document from being activated."""
        return ()

    @classmethod
    def rules(cls, config: Any) -> str:
        """What a part of a document comes to in the policy's own language of rules; empty where there is none."""
        return ""

    @classmethod
    def dry_run(cls, config: Any, state: Path, files: Sequence[Path]) -> Mapping[str, Any] | None:
        """Recorded decisions (of `files`, else those in the state folder) made again by another document, and which of
        them flip; None for a policy that records none."""
        return None


@dataclass(frozen=True)
class PolicyDocument:
    """A validated document. `parts` are the plugins' own models by name; `text` is what was written."""

    name: str
    parts: Mapping[str, BaseModel]
    text: str = field(repr=False, default="")

    @classmethod
    def load(cls, text: str, policies: Mapping[str, type[Policy]], where: str = "policy") -> PolicyDocument:
        """Read and validate; PolicyError names file, key and, for a misspelt one, the nearest that exists."""
        data = _read(text, where)
        _check_head(data, where)
        parts = {key: _part(key, value, policies, where) for key, value in data.items() if key not in _HEAD}
        return cls(str(data["name"]), parts, text)

    @property
    def canonical(self) -> bytes:
        """Canonical JSON of the validated document, defaults written out."""
        parts = {key: part.model_dump(mode="json") for key, part in self.parts.items()}
        return canonical({"apiVersion": API, "kind": "Policy", "name": self.name, **parts})

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.canonical).hexdigest()}"

    def lint(self) -> list[Finding]:
        """What is valid and still deserves a second look."""
        missing = [key for key in _EXPECTED if key not in self.parts]
        found = [Finding("error", f"no {key} policy: every request would be refused", key) for key in missing[:1]]
        found += [Finding("warning", f"no {key} policy", key) for key in missing[1:]]
        text = "{}: {} are unlimited over time; per_key_day, for example, limits them"
        found += [Finding("warning", text.format(key, what), key) for key, what in _unlimited(self.parts)]
        return found

    def diff(self, other: PolicyDocument) -> list[dict[str, Any]]:
        """Settings that differ from another document's: key, this one's value, the other's."""
        mine, theirs = _flat(self.parts), _flat(other.parts)
        keys = sorted(mine.keys() | theirs.keys())
        return [
            {"key": key, "new": mine.get(key), "old": theirs.get(key)}
            for key in keys
            if mine.get(key) != theirs.get(key)
        ]


class _Unique(yaml.SafeLoader):
    """YAML that refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"key {key!r} stands twice in the mapping of line {line}")
        return super().construct_mapping(node, deep=deep)


def _read(text: str, where: str) -> dict[str, Any]:
    try:
        data = yaml.load(text, Loader=_Unique)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise PolicyError(f"not YAML: {' '.join(str(error).split())}", where=where) from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise PolicyError("is no mapping of keys", where=where)
    return data


def _check_head(data: Mapping[str, Any], where: str) -> None:
    wanted = {"apiVersion": API, "kind": "Policy"}
    for key, value in wanted.items():
        if data.get(key) != value:
            raise PolicyError(f"{key} is {data.get(key)!r}", where=where, remedy=f"write {key}: {value}")
    if not isinstance(data.get("name"), str) or not data["name"]:
        raise PolicyError("has no name", where=where, remedy="write name: something")


def _part(key: str, value: Any, policies: Mapping[str, type[Policy]], where: str) -> BaseModel:
    if key not in policies:
        near = difflib.get_close_matches(key, [*policies, *_HEAD], 1)
        remedy = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(policies))}"
        raise PolicyError(f"no policy is called {key!r}", where=where, remedy=remedy)
    model = policies[key].Config
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _explain(error, key, model, where) from None


def _explain(error: ValidationError, key: str, model: type[BaseModel], where: str) -> PolicyError:
    first = error.errors()[0]
    path = ".".join((key, *map(str, first["loc"])))
    if first["type"] != "extra_forbidden":
        return PolicyError(f"{path}: {first['msg'].removeprefix('Value error, ')}", where=where)
    near = difflib.get_close_matches(str(first["loc"][-1]), _names(model), 1)
    return PolicyError(
        f"unknown key {path!r}", where=where, remedy=f"did you mean {near[0]!r}?" if near else "remove it"
    )


def _names(model: type[BaseModel]) -> list[str]:
    """Field names of a model and of the models inside it."""
    found = list(model.model_fields)
    for item in model.model_fields.values():
        inner = item.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += _names(inner)
    return found


def _flat(parts: Mapping[str, BaseModel]) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{path}.{key}", inner)
        else:
            found[path] = value

    for key, part in parts.items():
        walk(key, part.model_dump(mode="json"))
    return found


def _unlimited(parts: Mapping[str, BaseModel]) -> list[tuple[str, str]]:
    """Of the quota: what has no limit at all, over no time."""
    quota = {"quota": parts["quota"]} if "quota" in parts else {}
    groups: dict[str, list[Any]] = {}
    for path, value in _flat(quota).items():
        if not path.endswith(".per_request"):
            groups.setdefault(path.split(".")[1], []).append(value)
    return [("quota", path) for path, values in groups.items() if all(value is None for value in values)]
