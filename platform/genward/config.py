"""The operator's configuration: flags win over the environment, the environment over `genward.yaml`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genward.errors import UsageError

PREFIX = "GENWARD_"
FILE = "genward.yaml"


def networks(given: Iterable[str], where: str) -> tuple[str, ...]:
    """Networks in one form (CIDR, RFC 4632 and 4291); UsageError names what is none."""
    found = []
    for text in given:
        try:
            found.append(str(ip_network(text)))
        except ValueError as error:
            raise UsageError(f"no network: {error}", where=where, remedy="for example 10.0.0.0/8") from None
    return tuple(found)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(_Part):
    """The HTTP service."""

    host: str = "127.0.0.1"
    port: int = Field(8400, ge=0, le=65535, description="0: any free one")
    workers: int = Field(1, ge=1, le=64, description="processes")
    max_body: int = Field(1 << 20, ge=1024, description="bytes of a request's body")
    max_upload: int = Field(64 << 20, ge=1024, description="bytes of a file that is sent for detection")
    max_rows: int = Field(10_000_000, ge=1, description="rows of one response")
    deadline_s: float = Field(60.0, gt=0, description="seconds a request may take")
    queue: int = Field(256, ge=1, description="requests under way in one worker")
    proxies: tuple[str, ...] = Field((), description="networks (CIDR) of proxies whose X-Forwarded-For is believed")


class Audit(_Part):
    """The transparency log."""

    origin: str = Field("genward.local/log", pattern=r"^[^\s+]+$", description="the log's name, a schema-less URL")
    head: str | None = Field(None, description="file of the last checkpoint, best on another disk")
    second_folder: str | None = Field(None, description="where each checkpoint is copied")
    witnesses: tuple[str, ...] = Field((), description="addresses of witnesses")


Signature = Literal["ES256", "ES384", "ES512", "Ed25519", "EdDSA", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"]


class Auth(_Part):
    """Bearer tokens of an OpenID Connect issuer (JWT, RFC 7519) beside API keys. Its keys lie in a file: nothing is
    fetched."""

    issuer: str = Field(min_length=1, description="the `iss` that a token must have")
    audience: str = Field(min_length=1, description="the `aud` that a token must have, or have among others")
    jwks: str = Field(min_length=1, description="file of the issuer's public keys (RFC 7517), from the state folder")
    algorithms: tuple[Signature, ...] = Field(min_length=1, description="signatures that are accepted, and no other")
    tenant_claim: str = Field("tenant", min_length=1, description="claim that names the tenant")
    roles_claim: str = Field("roles", min_length=1, description="claim that lists roles")


class Config(_Part):
    """Everything an operator decides. Unknown keys are refused."""

    plugins: tuple[str, ...] = Field(("genward",), description="distributions whose plugins may load")
    database: str | None = Field(None, description="SQLAlchemy URL of the registry; else SQLite in the state folder")
    counters: str | None = Field(
        None, description="SQLAlchemy URL of quota counters and cursors; else SQLite beside it"
    )
    providers: tuple[str, ...] = Field(
        ("CPUExecutionProvider",), min_length=1, description="of onnxruntime, by preference"
    )
    server: Server = Server()
    audit: Audit = Audit()
    auth: Auth | None = Field(None, description="tokens of an issuer; without it only API keys are known")
    unsafe_single_operator: bool = Field(False, description="one person may both propose and approve")
    log_level: Literal["debug", "info", "warning", "error"] = "warning"


def load(text: str, environment: Mapping[str, str] | None = None, where: str = FILE) -> Config:
    """The configuration in a YAML text, with GENWARD_SECTION__KEY of the environment over it.

    Raises UsageError that names the key and, for a misspelt one, the nearest that exists.
    """
    data = _read(text, where)
    for name, value in sorted((os.environ if environment is None else environment).items()):
        path = name.removeprefix(PREFIX).lower().split("__")
        if name.startswith(PREFIX) and path[0] in Config.model_fields:
            _put(data, path, yaml.safe_load(value))
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise _explain(error, where) from None
    networks(config.server.proxies, f"{where}: server.proxies")
    return config


def unsafe(config: Config) -> list[str]:
    """What weakens a promise, one sentence each."""
    found = []
    if config.unsafe_single_operator:
        found.append("UnsafeSingleOperator: one person may both propose and approve")
    if config.server.host not in ("127.0.0.1", "localhost", "::1"):
        found.append(f"the server listens on {config.server.host}: put a proxy with TLS in front")
    return found


def _read(text: str, where: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"not YAML: {' '.join(str(error).split())}", where=where) from None
    if not isinstance(data, dict):
        raise UsageError("is no mapping of keys", where=where)
    return data


def _put(data: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        inner = data.setdefault(key, {})
        if not isinstance(inner, dict):
            return
        data = inner
    data[path[-1]] = value


def _explain(error: ValidationError, where: str) -> UsageError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return UsageError(f"{key}: {first['msg']}", where=where)
    near = difflib.get_close_matches(str(first["loc"][-1]), _known(first["loc"][:-1]), 1)
    return UsageError(f"unknown key {key!r}", where=where, remedy=f"did you mean {near[0]!r}?" if near else "remove it")


def _known(path: tuple[Any, ...]) -> list[str]:
    model: Any = Config
    for part in path:
        kind = model.model_fields[part].annotation
        model = next((inner for inner in get_args(kind) if inner is not type(None)), kind)
    return list(model.model_fields)
