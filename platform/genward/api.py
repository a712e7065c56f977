"""The platform on one state folder: every verb of the command line, for programs.

platform, key = Platform.init(Path("STATE"), tenant="acme", single_operator=True)
dataset = platform.add_dataset(Path("alloys.csv"), schema=Path("alloys.yaml"))
candidate = platform.train(dataset.name, family="diffusion", max_minutes=2)
released = platform.release(candidate.id, "alloys", alias="production", grant=["acme"])
answer = platform.client(platform.create_key("acme", ["consumer"])).generate("alloys@production", n=5)
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from genward import record
from genward.contracts import AuditSink, Detection, Finding, Principal, Progress, Silent
from genward.errors import CheckFailed, Conflict, NotFound, PluginError, Unavailable

if TYPE_CHECKING:
    from genward.auth import Authenticator
    from genward.candidate import Candidate
    from genward.client import Client
    from genward.counters import Counters
    from genward.data.dataset import Dataset
    from genward.keys import LocalKeys
    from genward.lastuse import LastUse
    from genward.plugins import Plugins
    from genward.policy import PolicyContext, PolicyDocument
    from genward.policyset import PolicySet
    from genward.registry import Registry
    from genward.request import Pipeline
    from genward.state import State

_log = logging.getLogger("genward")
_T = TypeVar("_T")
_OPERATOR = "operator"  # the actor of acts on local state, where no key was named


@dataclass(frozen=True)
class Released:
    """A release as it was registered."""

    reference: str
    digest: str
    audit_index: int


class Platform:
    """An open state folder. What costs something is opened when it is first used."""

    def __init__(self, state: State, passphrase: str | None = None) -> None:
        self.state = state
        self._passphrase = passphrase

    @classmethod
    def init(
        cls, folder: Path, *, tenant: str = "default", passphrase: str | None = None, single_operator: bool = False
    ) -> tuple[Platform, str]:
        """Make a state folder; returns the platform and an administrator's key, shown this once.

        Keys, registry, log, one tenant, the shipped policy active. Conflict when the folder is not empty.
        """
        from genward import activation
        from genward.keys import LocalKeys
        from genward.state import State

        text = "unsafe_single_operator: true\n" if single_operator else ""
        state = State.init(folder, text)
        LocalKeys.create(state.keys_dir, passphrase)
        platform = cls(state, passphrase)
        platform.record("state.init", version=version("genward"))
        platform.add_tenant(tenant)
        key = platform.create_key(tenant, ["administrator", "publisher", "auditor"], label="first administrator")
        activation.ship(platform, _OPERATOR)
        return platform, key

    @classmethod
    def open(cls, folder: Path, passphrase: str | None = None) -> Platform:
        """Open a state folder; NotFound says how to make one. The passphrase is GENWARD_PASSPHRASE's when not given."""
        from genward.state import State

        return cls(State.open(folder), passphrase or os.environ.get("GENWARD_PASSPHRASE"))

    # parts

    @cached_property
    def keys(self) -> LocalKeys:
        from genward.keys import LocalKeys

        return LocalKeys(self.state.keys_dir, self._passphrase)

    @cached_property
    def registry(self) -> Registry:
        from genward.registry import Registry

        return Registry(self.state.database_url, self.keys.pepper)

    @cached_property
    def plugins(self) -> Plugins:
        from genward.plugins import Plugins

        return Plugins.load(self.state.config.plugins)

    @cached_property
    def audit(self) -> AuditSink:
        """The log, opened by whoever is installed to open it (entry point `tlog` of the group `genward.audit`)."""
        for point in entry_points(group="genward.audit", name="tlog"):
            opener: Callable[[State, str | None], AuditSink] = point.load()
            return opener(self.state, self._passphrase)
        raise PluginError("no audit log is installed", remedy="install genward whole")

    @cached_property
    def pipeline(self) -> Pipeline:
        """The request pipeline on this state, for this process."""
        from genward.request import Limits, Pipeline
        from genward.served import Shelf

        server = self.state.config.server
        limits = Limits(max_rows=server.max_rows, queue=server.queue, deadline=server.deadline_s)
        shelf = Shelf(self.state.bundles_dir, self.keys, self.keys.trusted(), self.state.config.providers)
        self.counters.catch_up(self.audit)  # here, and not when the first request waits
        parts = (self.registry, shelf, self.audit, self.keys, self.counters, self._policy_set, limits)
        return Pipeline(*parts, authenticate=self.authenticator)

    @cached_property
    def authenticator(self) -> Authenticator:
        """Who keys and tokens speak for; NotFound or UsageError when the issuer's key file cannot be used."""
        from genward.auth import Authenticator
        from genward.oidc import Tokens

        auth = self.state.config.auth
        return Authenticator(self.registry, self.uses, Tokens(auth, self.state.folder) if auth else None)

    def authenticate(self, credential: str) -> Principal:
        """Who an API key or a token speaks for; Unauthenticated."""
        return self.authenticator(credential, time.time())

    @cached_property
    def uses(self) -> LastUse:
        """When each key was last used; `write` puts down what this process saw."""
        from genward.lastuse import LastUse

        return LastUse(self.counters.store)

    @cached_property
    def counters(self) -> Counters:
        """Limits, cursors and open grants: one for the pipeline and every policy, whichever document is active."""
        from genward.counters import Counters

        return Counters(self.state.counters_url)

    def policies(self) -> PolicySet:
        """The active policies."""
        return self._policy_set(*self.registry.active_policy())

    def policies_of(self, digest: str) -> PolicySet:
        """The policies of one version, for example the one a candidate was trained under."""
        row = self.registry.policy(digest)
        return self._policy_set(str(row["digest"]), str(row["text"]))

    def _policy_set(self, digest: str, text: str) -> PolicySet:
        return self.plugins.policy_set(self._document(text, digest), self._context, digest)

    def _document(self, text: str, where: str) -> PolicyDocument:
        from genward.policy import PolicyDocument

        return PolicyDocument.load(text, self.plugins.policies, where)

    @cached_property
    def _context(self) -> PolicyContext:
        from genward.policy import PolicyContext
        from genward.served import Sealed

        state = self.state
        given = (state.counters_url, self.keys, state.folder, state.database_url, lambda: self.audit)
        sealed = Sealed(state.bundles_dir, self.keys)
        return PolicyContext(*given, sealed, lambda: self.plugins.attackers, self.counters)

    def client(self, key: str) -> Client:
        """A client in this process, with an API key: the same pipeline as over HTTP."""
        from genward.client import LocalClient

        return LocalClient(self, key)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run asynchronous work, the pipeline's, on this platform's own event loop."""
        return self._runner.run(work)

    @cached_property
    def _runner(self) -> asyncio.Runner:
        return asyncio.Runner()

    def close(self) -> None:
        """Let go of databases and of the log."""
        if "_runner" in self.__dict__:
            self._runner.run(self.audit.detach())
            self.__dict__.pop("_runner").close()
        for name in ("pipeline", "_context", "authenticator"):
            self.__dict__.pop(name, None)
        if "uses" in self.__dict__:
            with suppress(Conflict, Unavailable):
                self.__dict__.pop("uses").write()
        for name in ("counters", "registry", "audit"):
            part = self.__dict__.pop(name, None)
            if part is not None:
                part.close()

    def record(self, verb: str, actor: str = "", tenant: str = "", **detail: Any) -> int:
        """Write an act to the log; it is durable on return."""
        return self.audit.append(record.act(verb, actor or _OPERATOR, tenant, **detail))

    # tenants and keys

    def add_tenant(self, name: str) -> None:
        """Add a tenant."""
        self.registry.add_tenant(name)
        self.record("tenant.add", tenant=name)

    def create_key(self, tenant: str, roles: Sequence[str], **given: Any) -> str:
        """Make an API key and return it, this once; see `genward.issuing.create_key` for what may be given."""
        from genward.issuing import create_key

        return create_key(self, tenant, roles, **given)

    def keys_of(self, tenant: str | None = None) -> list[dict[str, Any]]:
        """Keys without their secrets; times in UTC, the last use to the minute."""
        used = self.uses.all()
        rows = [{**row, "used": used.get(row["prefix"])} for row in self.registry.keys(tenant)]
        return [_dated(row, "created", "expires", "revoked", "used") for row in rows]

    def revoke_key(self, prefix: str) -> None:
        """Revoke a key; servers refuse it from their next request on."""
        self.registry.revoke_key(prefix)
        self.record("key.revoke", key=prefix)

    # data sets and candidates

    def add_dataset(
        self, source: Path, *, schema: Path | None = None, name: str | None = None, parents: Sequence[str] = ()
    ) -> Dataset:
        """Check a table against its schema and keep it under its digest."""
        from genward.data.dataset import ingest
        from genward.data.schema import Schema

        used = (
            None if schema is None else Schema.from_yaml(_bytes(schema).decode("utf-8", errors="replace"), str(schema))
        )
        known = [self.registry.dataset(parent)["digest"] for parent in parents]
        found = ingest(Path(source), used, self.state.datasets_dir, name, known)
        self.registry.add_dataset(found.digest, found.name, found.rows, known)
        self.record("dataset.add", dataset=found.digest, schema=found.schema.digest)
        return found

    def dataset(self, name: str) -> Dataset:
        """A data set by name or digest."""
        from genward.data.dataset import Dataset

        digest = self.registry.dataset(name)["digest"]
        return Dataset.open(self.state.datasets_dir / digest.removeprefix("sha256:"))

    def datasets(self) -> list[dict[str, Any]]:
        """All data sets."""
        names = ("name", "rows", "digest", "parents", "created")
        return [_dated({name: row[name] for name in names}, "created") for row in self.registry.datasets()]

    def train(
        self, dataset: str, *, family: str = "diffusion", progress: Progress | None = None, **given: Any
    ) -> Candidate:
        """Train a candidate; see `genward.training.start` for what may be given."""
        from genward import training

        return training.start(self, dataset, family, progress or Silent(), **given)

    def resume(self, candidate: str, progress: Progress | None = None) -> Candidate:
        """Go on with an interrupted candidate."""
        from genward import training

        return training.resume(self, candidate, progress or Silent())

    def candidate(self, name: str) -> Candidate:
        """A candidate by its id."""
        from genward.candidate import Candidate

        return Candidate.open(self.state.candidates_dir / Path(name).name, self.plugins)

    def candidates(self) -> list[dict[str, Any]]:
        """Candidates, oldest first."""
        from genward.training import listed

        return listed(self)

    # releases

    def release(
        self,
        candidate: str,
        name: str,
        *,
        slots: int | None = 100_000,
        cells: Mapping[str, Sequence[float] | None] | None = None,
        alias: str | None = None,
        grant: Sequence[str] = (),
        evaluate_rows: int = 20_000,
        actor: str = "",
        progress: Progress | None = None,
    ) -> Released:
        """Export, measure, gate, seal, sign and register a candidate as the next version of a model."""
        from genward.release import Plan
        from genward.releasing import release

        plan = Plan(name, slots, cells, evaluate_rows)
        return release(self, self.candidate(candidate), plan, alias, grant, actor, progress or Silent())

    def bundle_folder(self, reference: str) -> Path:
        """Where a release's bundle lies."""
        from genward.served import bundle_folder

        return bundle_folder(self.state.bundles_dir, self.registry.resolve(reference, retired=True).digest)

    def releases(self) -> list[dict[str, Any]]:
        """All releases."""
        names = ("name", "version", "stage", "aliases", "tenants", "digest", "created")
        return [_dated({name: row[name] for name in names}, "created") for row in self.registry.releases()]

    def card(self, reference: str) -> dict[str, Any]:
        """A release's card, from its verified bundle."""
        import json

        return dict(json.loads(self._bundle(reference).files["card.json"]))

    def card_text(self, reference: str) -> str:
        """The card as Markdown."""
        from genward.attest import card_markdown

        return card_markdown(self.card(reference))

    def evidence_text(self, reference: str) -> str:
        """What was measured, for people, beside real rows in the place of the synthetic ones."""
        from genward.attest import read_evidence
        from genward.evaluate.summary import everything

        return everything(read_evidence(self._bundle(reference).files["evidence.json"]))

    def bundle_file(self, reference: str, name: str) -> bytes:
        """A file of a release, from its verified bundle; NotFound when it has none of that name."""
        files: Mapping[str, bytes] = self._bundle(reference).files
        if name not in files:
            raise NotFound(f"the bundle has no file {name!r}", where=reference, remedy=f"it has {', '.join(files)}")
        return files[name]

    def _bundle(self, reference: str) -> Any:
        from genward.bundle import Bundle

        return Bundle.open(self.bundle_folder(reference), self.keys.trusted())

    def set_alias(self, reference: str, alias: str, actor: str = "") -> str:
        """Point an alias at a release; to production only what somebody else approved."""
        from genward import releasing
        from genward.registry import check_name

        info = self.registry.resolve(reference)
        check_name(alias, "alias")
        releasing.require_approval(self, info, alias, actor or _OPERATOR)
        self.record("release.alias", actor, model=f"{info.name}:{info.version}", alias=alias)
        self.registry.set_alias(info.name, alias, info.version)
        return f"{info.name}@{alias}"

    def approve_release(self, reference: str, actor: str = "") -> str:
        """Approve a release for production."""
        info = self.registry.resolve(reference)
        self.record("release.approve", actor, model=f"{info.name}:{info.version}@{info.digest}")
        self.registry.approve(info.digest, actor or _OPERATOR)
        return f"{info.name}:{info.version}"

    def grant(self, reference: str, tenant: str) -> list[str]:
        """Let a tenant generate from a release; in the log before it holds."""
        info = self.registry.resolve(reference)
        self.registry.require_tenant(tenant)
        self.record("release.grant", tenant=tenant, model=f"{info.name}:{info.version}")
        return list(self.registry.grant(info, tenant).tenants)

    def raise_pool(self, reference: str, slots: int, actor: str = "") -> dict[str, Any]:
        """Append a segment to a release's pool, `slots` in all; returns what all keys can hold now, at what risk."""
        from genward import pool

        return pool.raise_pool(self, reference, slots, actor)

    def retire(self, reference: str, actor: str = "") -> str:
        """Take a release out of service."""
        info = self.registry.resolve(reference)
        self.registry.retire(info)
        self.record("release.retire", actor, model=f"{info.name}:{info.version}")
        return f"{info.name}:{info.version}"

    # policies

    def lint_policy(self, text: str, where: str = "policy") -> list[Finding]:
        """Validate a document; PolicyError when it is not one, findings when it deserves a second look."""
        return self._document(text, where).lint()

    def diff_policy(self, text: str, against: str | None = None) -> list[dict[str, Any]]:
        """What a document changes against a version, or the active one."""
        other = self._document(self.policy_text(against), against or "active")
        return self._document(text, "policy").diff(other)

    def propose_policy(self, text: str, actor: str = "") -> str:
        """Keep a valid document as a new version."""
        document = self._document(text, "policy")
        errors = [finding.message for finding in document.lint() if finding.level == "error"]
        if errors:
            raise CheckFailed(errors[0], where="policy")
        self.registry.propose_policy(document.digest, document.name, text, actor or _OPERATOR)
        self.record("policy.propose", actor, policy=document.digest)
        return document.digest

    def approve_policy(self, digest: str, actor: str = "") -> str:
        """Approve a version that somebody else proposed."""
        full = str(self.registry.policy(digest)["digest"])
        single = self.state.config.unsafe_single_operator
        if single:
            _log.warning("UnsafeSingleOperator: one person proposes and approves policies")
        self.registry.approve_policy(full, actor or _OPERATOR, single_operator=single)
        self.record("policy.approve", actor, policy=full, unsafe_single_operator=str(single).lower())
        return full

    def activate_policy(self, digest: str, actor: str = "") -> str:
        """Make an approved version active."""
        return self._activate(digest, actor, "policy.activate", rollback=False)

    def rollback_policy(self, digest: str, actor: str = "") -> str:
        """Make a version active that was active before."""
        return self._activate(digest, actor, "policy.rollback", rollback=True)

    def _activate(self, digest: str, actor: str, verb: str, rollback: bool) -> str:
        from genward.activation import activate

        return activate(self, digest, actor or _OPERATOR, verb, rollback)

    def dry_run_policy(self, text: str, contexts: Sequence[Path] = ()) -> dict[str, Any]:
        """Recorded decisions, of files or of this state, made again by a document: what would flip, by policy."""
        from genward.activation import dry_run

        return dry_run(self, self._document(text, "policy"), contexts)

    def policy_rules(self, digest: str | None = None) -> str:
        """What a version, or the active one, comes to in its policies' own languages of rules (Cedar)."""
        document = self._document(self.policy_text(digest), digest or "active")
        found = [self.plugins.policies[key].rules(part) for key, part in document.parts.items()]
        return "\n".join(text for text in found if text)

    def policy_versions(self) -> list[dict[str, Any]]:
        """All versions, oldest first."""
        names = ("digest", "name", "stage", "proposed_by", "proposed", "approved_by", "activated")
        rows = self.registry.policies()
        return [_dated({name: row[name] for name in names}, "proposed", "activated") for row in rows]

    def policy_text(self, digest: str | None = None) -> str:
        """A version's document, or the active one's."""
        return self.registry.active_policy()[1] if digest is None else str(self.registry.policy(digest)["text"])

    # proof

    def detect(
        self, path: Path, model: str | None = None, renamed: Mapping[str, str] | None = None, actor: str = ""
    ) -> list[Detection]:
        """Whether a file carries the mark of a release, by key and tenant; see `genward.detection`."""
        from genward.detection import detect

        return detect(self, Path(path), model, renamed, actor=actor)

    def replay(self, path: Path) -> dict[str, Any]:
        """Compute the rows of a receipt's response again; CheckFailed unless they are the same bit for bit."""
        from genward.verify import replay

        return replay(self.pipeline, _bytes(path), str(path))


def _dated(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """Seconds since the epoch as UTC text."""
    for name in names:
        if isinstance(row.get(name), (int, float)):
            row[name] = datetime.fromtimestamp(row[name], UTC).isoformat(timespec="seconds")
    return row


def _bytes(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise NotFound(f"cannot read it: {error.strerror}", where=str(path)) from None
