"""The policy `extraction`: how good a copy the rows given out may allow, written as risk and kept as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from genward.contracts import Evidence, Facts, Lease, Outcome, Progress, Request, Shape, Verdict
from genward.errors import CheckFailed, IntegrityError, NotFound
from genward.hookspecs import hookimpl
from genward.policy import Policy, PolicyContext
from genward_policies.extraction.config import ExtractionConfig

if TYPE_CHECKING:
    from genward.attacker import Attacker
    from genward.candidate import Candidate
    from genward.counters import Counters
    from genward_policies.extraction.profile import Profile
    from genward_policies.extraction.sketch import Places
    from genward_policies.extraction.watch import Watch

LIMIT = "extraction: a limit is reached"
RELEASE_RISK = "extraction.release_risk"
_SHARE = 64  # a chunk of a budget is at most this fraction of it
_TENTHS = 0.005  # of risk: what rounding to whole slots may add
_RANKS = {"record": 1, "slow": 2, "deny": 3}


class Extraction(Policy):
    """Calibrates at release; holds each tenant to his share, and all together to the pool; watches conditions."""

    name = "extraction"
    Config = ExtractionConfig
    example: ClassVar[Mapping[str, Any]] = {"pool": "auto", "max_risk": {"key": 0.5, "release": 0.8}}

    def __init__(self, config: Any, context: PolicyContext) -> None:
        super().__init__(config, context)
        self._open: dict[str, tuple[str, int]] = {}
        self._reaches: dict[str, int] = {}
        self._places: dict[str, Places] = {}
        self._made: tuple[Counters, Watch] | None = None

    # at release

    @hookimpl
    def shape(self, candidate: Candidate, progress: Progress) -> Shape | None:
        from genward_policies.extraction.plot import theft_curve
        from genward_policies.extraction.profile import FILE, PLOT

        profile = self._calibrated(candidate, progress)
        files = {FILE: profile.to_json(), PLOT: theft_curve(profile, self._limits(profile))}
        rows = profile.rows_at(self.config.max_risk.release) if self.config.pool == "auto" else None
        slots = self.config.pool if isinstance(self.config.pool, int) else None
        return Shape(slots, files=files, evidence=profile.evidence(), rows=rows)

    def _limits(self, profile: Profile) -> dict[str, int]:
        given = {"key": self.config.max_risk.key, "release": self.config.max_risk.release}
        return {name: profile.rows_at(risk) for name, risk in given.items() if risk is not None}

    def _calibrated(self, candidate: Candidate, progress: Progress) -> Profile:
        from genward.attacker import Target
        from genward.data.distance import encoded
        from genward.release import public_engine
        from genward_policies.extraction.calibrate import Portfolio, drawing
        from genward_policies.extraction.profile import profile_of

        codec, protected = candidate.codec, candidate.recipe.protected
        target = Target(codec.spec, candidate.family, candidate.config)
        real = None if protected else encoded(codec, candidate.test)
        draw = drawing(public_engine(candidate, candidate.exported, candidate.table), codec)
        portfolio = Portfolio(draw, target, self._attackers(), real, self.config.calibration_cpu_seconds)
        why = "real rows are protected and are not looked at" if protected else ""
        return profile_of(portfolio.run(progress), why)

    def _attackers(self) -> list[type[Attacker]]:
        """Those that the document names, or all that are installed."""
        found = self.context.attackers() if self.context.attackers is not None else {}
        names = self.config.attackers or sorted(found)
        if missing := [name for name in names if name not in found]:
            there = ", ".join(sorted(found)) or "none"
            raise CheckFailed(f"no attacker is called {missing[0]!r}", where="extraction", remedy=f"there are: {there}")
        if not any(found[name].effort != "costly" for name in names):
            raise CheckFailed("no attack can be run at every size", where="extraction", remedy="add kde to attackers")
        return [found[name] for name in names]

    @hookimpl
    def measure(self, candidate: Candidate) -> Sequence[Evidence]:
        from genward_policies.extraction.profile import FILE, Profile

        profile = Profile.from_json(candidate.sealed[FILE])
        table = candidate.table
        if table.slots is None:
            no = "there is no pool: what all keys together can hold is not bounded"
            return [Evidence(RELEASE_RISK, 1.0, no, extra={"curve": profile.table()}), self._share(profile, None)]
        held = table.slots * table.candidates
        return [
            self._risk(profile, held),
            Evidence("extraction.colluders_tenant_keys", float(held), "slots x candidates", unit="rows"),
            Evidence("extraction.colluders_release_key", float(table.slots), "slots", unit="rows"),
            self._share(profile, table.slots),
        ]

    def _risk(self, profile: Profile, held: int) -> Evidence:
        method = "R of all rows that all keys together can hold; formula in docs/extraction.md"
        low, high = profile.between(held)
        extra = {"rows": held, "curve": profile.table()}
        return Evidence(RELEASE_RISK, profile.risk(held), method, low=low, high=high, extra=extra)

    def _share(self, profile: Profile, slots: int | None) -> Evidence:
        risk = self.config.max_risk.key
        if risk is None:
            return Evidence("extraction.tenant_rows", None, "not measured: a tenant's rows are not limited")
        rows = profile.rows_at(risk)
        most = rows if slots is None else min(rows, slots)
        return Evidence(
            "extraction.tenant_rows", float(most), f"slots that a tenant may hold at risk {risk}", unit="rows"
        )

    @hookimpl
    def gate(self, evidence: Sequence[Evidence]) -> Verdict:
        limit = self.config.max_risk.release
        told = {item.claim: item.value for item in evidence}
        risk = told.get(RELEASE_RISK)
        if risk is None:
            return Verdict(False, ("extraction: what all keys together can hold was not measured",))
        if limit is not None and risk > limit + _TENTHS:
            return Verdict(False, (f"extraction: the pool allows a risk of {risk:.2f}, the policy {limit}",))
        return Verdict(True)

    # at a request

    @hookimpl
    def admit(self, request: Request, facts: Facts) -> Verdict:
        if request.action != "generate":
            return Verdict(True)
        if facts.release is None:
            return Verdict(False, ("extraction: no release is known",))
        try:
            refusal = self._responded(request, facts)
            return refusal or self._within(request, facts, facts.release.digest)
        except (NotFound, IntegrityError):
            return Verdict(False, ("extraction: the release was sealed without a profile of its risk",))

    def _within(self, request: Request, facts: Facts, digest: str) -> Verdict:
        """The tenant's share: a walk that wraps around in it, or a budget that ends."""
        if self.config.max_risk.key is None:
            return Verdict(True)
        reach = self._reach(digest)
        if self.config.on_exceed == "recycle":
            return Verdict(True, reach=reach)
        if request.id in self._open:
            return Verdict(False, ("extraction: the request is under way already",))
        return self._reserved(request, facts, digest, reach)

    def _reach(self, digest: str) -> int:
        """Slots of a release that a tenant may hold."""
        if digest not in self._reaches:
            from genward_policies.extraction.profile import FILE, Profile

            self._reaches[digest] = Profile.from_json(self._sealed(digest, FILE)).rows_at(self.config.max_risk.key)
        return self._reaches[digest]

    def _sealed(self, digest: str, name: str) -> bytes:
        if self.context.sealed is None:
            raise NotFound("sealed files cannot be read here")
        return self.context.sealed(digest, name)

    def _reserved(self, request: Request, facts: Facts, digest: str, reach: int) -> Verdict:
        counter = f"extraction/{digest}/{facts.principal.tenant}"
        left = self._counters.reserve(counter, request.n, reach, chunk=max(1, reach // _SHARE))
        if left is None:
            return Verdict(False, (LIMIT,))
        self._open[request.id] = counter, reach
        headers = {"x-ratelimit-release-limit": str(reach), "x-ratelimit-release-remaining": str(left)}
        lease = Lease(self.name, request.id, request.n, counter)
        return Verdict(
            True, reach=reach, lease=lease, headers=headers | ({} if left else {"genward-exhausted": "true"})
        )

    @hookimpl
    def settle(self, lease: Lease, outcome: Outcome) -> None:
        """What was examined is charged: a share of rows that pass tells something of all that do not."""
        opened = self._open.pop(lease.request, None)
        if opened is None:
            return
        counter, limit = opened
        charged = max(outcome.rows, outcome.scanned)
        self._counters.refund(counter, lease.rows - charged)
        self._drain(counter, charged - lease.rows, limit)

    def _drain(self, counter: str, more: int, limit: int) -> None:
        """Take what was examined beyond the reserve, or all that is left."""
        step = more
        while more > 0 and step > 0:
            if self._counters.reserve(counter, step, limit) is None:
                step //= 2
            else:
                more -= step
                step = min(step, more)

    # detection

    def _responded(self, request: Request, facts: Facts) -> Verdict | None:
        """The refusal that a flagged key meets; None when it meets none."""
        level = min(self._watch.level(facts), _RANKS[self.config.detection.respond])
        if level >= _RANKS["deny"]:
            return Verdict(False, (LIMIT,))
        if level < _RANKS["slow"]:
            return None
        from genward.limits import MINUTE, Window
        from genward_policies.extraction.watch import name_of

        counter, window = f"extraction/slow/{name_of(facts)}", Window.at(MINUTE, facts.now)
        rows = self.config.detection.slow_rows_per_minute
        if self._counters.reserve(counter, request.n, rows, window=window) is None:
            return Verdict(False, (LIMIT,), retry_after=window.left(facts.now))
        return None

    @hookimpl
    def observe(self, request: Request, facts: Facts, outcome: Outcome) -> None:
        if request.action == "generate" and request.where and outcome.status == "served" and facts.release is not None:
            self._watch.add(facts, self._placed(facts.release.digest).of(request.where))

    def _placed(self, digest: str) -> Places:
        if digest not in self._places:
            from genward.data.codec import TableCodec
            from genward_policies.extraction.sketch import Places

            self._places[digest] = Places(TableCodec.from_json(self._sealed(digest, "codec.json")))
        return self._places[digest]

    # what is opened when it is first used

    @property
    def _counters(self) -> Counters:
        return self._parts[0]

    @property
    def _watch(self) -> Watch:
        return self._parts[1]

    @property
    def _parts(self) -> tuple[Counters, Watch]:
        if self._made is None:
            from genward.counters import Counters
            from genward_policies.extraction.watch import Watch

            counters = self.context.counters or Counters(self.context.store_url)
            self._made = counters, Watch(self.context, counters)
        return self._made
