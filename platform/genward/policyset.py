"""The active policies of one document, behind one typed method per hook.

Every verdict is gathered and deny wins: order is no boundary. An exception, silence and an empty set refuse.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pluggy

from genward import hookspecs
from genward.contracts import (
    Compressed,
    Detection,
    Evidence,
    Facts,
    Finding,
    Lease,
    Outcome,
    Progress,
    ReleaseInfo,
    Request,
    Rows,
    Shape,
    Verdict,
)
from genward.errors import PluginError, PolicyError, Unavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from genward.candidate import Candidate
    from genward.contracts import Condition
    from genward.data.dataset import Dataset
    from genward.family import Protected, Training
    from genward.policy import Policy

_log = logging.getLogger("genward.policy")
_Call = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Admission:
    """All verdicts together: allowed only if every policy allowed; the narrowest of each obligation holds."""

    allow: bool
    reasons: tuple[str, ...] = ()
    cells: frozenset[int] | None = None
    cap: int | None = None
    where: tuple[Condition, ...] = ()
    reach: int | None = None
    leases: tuple[Lease, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    failed: bool = False  # denied only because a policy could not answer: 503, not 403


class PolicySet:
    """Instances of policy classes, their hooks bound once."""

    def __init__(self, policies: Sequence[Policy], digest: str) -> None:
        self.digest = digest
        self._policies = {policy.name: policy for policy in policies}
        self._calls = _bind(policies)
        for single in ("score", "protect_training", "compress"):
            if len(self._calls[single]) > 1:
                owners = ", ".join(name for name, _ in self._calls[single])
                raise PolicyError(f"only one policy may own `{single}`, these do: {owners}")
        tariffs = [policy.tariff for policy in policies if policy.tariff is not None]
        if len(tariffs) > 1:
            raise PolicyError("only one policy may name a tariff")
        self.tariff = tariffs[0] if tariffs else None  # the price of a CPU hour

    def contradicts(self, releases: Sequence[ReleaseInfo]) -> list[Finding]:
        """What of these policies cannot hold for releases that are served."""
        return [found for policy in self._policies.values() for found in policy.contradicts(releases)]

    # request side

    def admit(self, request: Request, facts: Facts) -> Admission:
        """Gather every verdict. What was leased by a request that is then denied is given back here."""
        verdicts = [_verdict(name, call, request=request, facts=facts) for name, call in self._calls["admit"]]
        if not verdicts:
            return Admission(False, ("no policy admits anything",))
        admission = _combine(verdicts)
        if not admission.allow:
            self.settle(admission.leases, Outcome("denied", 0))
            return replace(admission, cells=None, cap=None, where=(), reach=None, leases=())
        return admission

    def settle(self, leases: Sequence[Lease], outcome: Outcome) -> None:
        """Hand each lease back to the policy that made it; one failure does not keep the others from settling."""
        failed: list[str] = []
        calls = dict(self._calls["settle"])
        for lease in leases:
            try:
                calls[lease.policy](lease=lease, outcome=outcome)
            except Exception:
                _log.exception("policy %s failed to settle %s", lease.policy, lease.request)
                failed.append(lease.policy)
        if failed:
            raise Unavailable(f"policies could not settle: {', '.join(failed)}")

    @property
    def scores(self) -> bool:
        """Whether a policy chooses among a slot's candidates."""
        return bool(self._calls["score"])

    def score(self, request: Request, facts: Facts, rows: Rows) -> NDArray[np.float64]:
        """Scores of candidates by the one owner; only call when `scores`."""
        ((_, call),) = self._calls["score"]
        result: NDArray[np.float64] = call(request=request, facts=facts, rows=rows)
        return result

    @property
    def screens(self) -> bool:
        """Whether a policy drops or coarsens rows."""
        return bool(self._calls["screen"])

    def screen(self, request: Request, facts: Facts, rows: Rows) -> Rows:
        for _, call in self._calls["screen"]:
            rows = call(request=request, facts=facts, rows=rows)
        return rows

    def mark(self, request: Request, facts: Facts, payload: Mapping[str, str]) -> Mapping[str, str]:
        for _, call in self._calls["mark"]:
            payload = call(request=request, facts=facts, payload=payload)
        return payload

    def observe(self, request: Request, facts: Facts, outcome: Outcome) -> None:
        """After the response: what fails here is logged and changes nothing."""
        for name, call in self._calls["observe"]:
            try:
                call(request=request, facts=facts, outcome=outcome)
            except Exception:
                _log.exception("policy %s failed to observe %s", name, request.id)

    @property
    def detects(self) -> bool:
        """Whether a policy can tell marked rows."""
        return bool(self._calls["detect"])

    def detect(self, rows: Any, releases: Sequence[ReleaseInfo], tenants: Sequence[str]) -> list[Detection]:
        given = {"rows": rows, "releases": releases, "tenants": tenants}
        return [found for _, call in self._calls["detect"] for found in call(**given)]

    # release side

    def check_data(self, dataset: Dataset) -> list[Finding]:
        return [found for _, call in self._calls["check_data"] for found in call(dataset=dataset)]

    @property
    def protects(self) -> bool:
        """Whether a policy takes over trainings."""
        return bool(self._calls["protect_training"])

    def protect_training(self, training: Training) -> Protected:
        """The protected training, by the one owner; only call when `protects`."""
        ((_, call),) = self._calls["protect_training"]
        result: Protected = call(training=training)
        return result

    @property
    def compresses(self) -> bool:
        """Whether a policy makes candidates cheaper."""
        return bool(self._calls["compress"])

    def compress(self, candidate: Candidate, progress: Progress) -> Compressed | None:
        """The cheaper network, or None when no policy makes one."""
        for _, call in self._calls["compress"]:
            result: Compressed | None = call(candidate=candidate, progress=progress)
            return result
        return None

    def shape(self, candidate: Candidate, progress: Progress) -> Shape:
        """What all policies seal into the table; PolicyError when two name the candidates or bring the same file."""
        found = Shape()
        for name, call in self._calls["shape"]:
            more = call(candidate=replace(candidate, sealed=found.files), progress=progress)
            found = found if more is None else _joined(name, found, more)
        return found

    def measure(self, candidate: Candidate) -> list[Evidence]:
        return [found for _, call in self._calls["measure"] for found in call(candidate=candidate)]

    def attach(self, candidate: Candidate, evidence: Sequence[Evidence]) -> dict[str, bytes]:
        """Files for the bundle; PolicyError when two policies bring the same name."""
        found: dict[str, bytes] = {}
        for name, call in self._calls["attach"]:
            files = call(candidate=candidate, evidence=evidence)
            if twice := found.keys() & files.keys():
                raise PolicyError(f"policy {name} attaches {min(twice)!r}, which another one did")
            found |= files
        return found

    def gate(self, evidence: Sequence[Evidence]) -> Admission:
        """Every gate's verdict; a document in which nothing gates refuses."""
        verdicts = [_verdict(name, call, evidence=evidence) for name, call in self._calls["gate"]]
        return _combine(verdicts) if verdicts else Admission(False, ("no policy gates a release",))


def _bind(policies: Sequence[Policy]) -> dict[str, list[tuple[str, _Call]]]:
    """Every hook's implementations, in the document's order, checked against the specification."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for policy in policies:
        manager.register(policy, name=policy.name)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"a policy implements a hook that does not exist: {error}") from None
    names = [name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), f"{hookspecs.PROJECT}_spec")]
    return {name: _implementations(manager, name, [p.name for p in policies]) for name in names}


def _implementations(manager: pluggy.PluginManager, hook: str, order: Sequence[str]) -> list[tuple[str, _Call]]:
    found = {impl.plugin_name: _accepting(impl, hook) for impl in getattr(manager.hook, hook).get_hookimpls()}
    return [(name, found[name]) for name in order if name in found]


def _accepting(impl: pluggy.HookImpl, hook: str) -> _Call:
    """Call with the arguments the implementation asked for, as pluggy does."""
    wanted, function = impl.argnames, impl.function
    if set(wanted) == set(inspect.signature(getattr(hookspecs, hook)).parameters):
        return function

    def call(**given: Any) -> Any:
        return function(*(given[name] for name in wanted))

    return call


@dataclass(frozen=True, slots=True)
class _Failed(Verdict):
    """The verdict of a policy that raised: a no that says nothing about the request."""


def _verdict(name: str, call: _Call, **given: Any) -> Verdict:
    """A policy's verdict; failing and saying nothing are both a no."""
    try:
        verdict = call(**given)
    except Exception as error:
        _log.exception("policy %s failed", name)
        after = getattr(error, "retry_after", None)
        return _Failed(False, (f"policy {name} failed: {type(error).__name__}",), retry_after=after)
    return verdict if isinstance(verdict, Verdict) else Verdict(False, (f"policy {name} gave no verdict",))


def _joined(name: str, one: Shape, two: Shape) -> Shape:
    if one.candidates is not None and two.candidates is not None:
        raise PolicyError(f"policy {name} names the candidates of a slot, which another one did")
    if twice := one.files.keys() & two.files.keys():
        raise PolicyError(f"policy {name} seals {min(twice)!r}, which another one did")
    slots = [shape.slots for shape in (one, two) if shape.slots is not None]
    rows = [shape.rows for shape in (one, two) if shape.rows is not None]
    k = two.candidates if one.candidates is None else one.candidates
    files, evidence = {**one.files, **two.files}, (*one.evidence, *two.evidence)
    return Shape(min(slots, default=None), k, files, evidence, min(rows, default=None))


def _combine(verdicts: Sequence[Verdict]) -> Admission:
    cells = [v.cells for v in verdicts if v.cells is not None]
    denied = [v for v in verdicts if not v.allow]
    waits = [v.retry_after for v in denied if v.retry_after is not None]
    firm = any(v.retry_after is None and not isinstance(v, _Failed) for v in denied)  # waiting helps against the others
    return Admission(
        allow=not denied,
        reasons=tuple(reason for v in (denied or verdicts) for reason in v.reasons),
        cells=frozenset.intersection(*cells) if cells else None,
        cap=min((v.cap for v in verdicts if v.cap is not None), default=None),
        where=tuple(condition for v in verdicts for condition in v.where),
        reach=min((v.reach for v in verdicts if v.reach is not None), default=None),
        leases=tuple(v.lease for v in verdicts if v.lease is not None),
        headers={key: value for v in verdicts for key, value in v.headers.items()},
        retry_after=max(waits) if waits and not firm else None,
        failed=bool(denied) and all(isinstance(v, _Failed) for v in denied),
    )
