"""The policy `privacy`: takes over trainings, checks what they left, refuses what does not keep the promise."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from genward.contracts import Evidence, Finding, KeyProvider, Verdict
from genward.errors import CheckFailed, NotFound
from genward.hookspecs import hookimpl
from genward.policy import Policy
from genward.release import rounded
from genward_policies.privacy.config import PrivacyConfig

if TYPE_CHECKING:
    from genward.candidate import Candidate
    from genward.data.dataset import Dataset
    from genward.data.schema import Column
    from genward.family import Protected, Training
    from genward_policies.privacy.ledger import Ledger

AGREEMENT = 0.02  # between accountants
_FEWEST = 100  # rows
_STALE = "not trained under differential privacy"


class Privacy(Policy):
    """Differential privacy of trainings, and the ledger of what data sets have spent."""

    name = "privacy"
    Config = PrivacyConfig
    example: ClassVar[Mapping[str, Any]] = {"epsilon": 3.0, "delta": 1e-5}

    @cached_property
    def ledger(self) -> Ledger:
        """The data sets' ledger, in the registry's database."""
        from genward_policies.privacy.ledger import Ledger

        if self.context.audit is None or not self.context.database_url:
            raise CheckFailed("there is no log or no database to keep a ledger in", remedy="train through a Platform")
        return Ledger(self.context.database_url, self.context.audit, namer(self.context.keys))

    @hookimpl
    def check_data(self, dataset: Dataset) -> Sequence[Finding]:
        """Bounds that are missing, a delta that is too large, a budget that is spent, rows that are known already."""
        found = [_unbounded(column) for column in dataset.schema.columns if column.is_number]
        errors = [finding for finding in found if finding] + self._few(dataset.rows) + self._delta(dataset.rows)
        return errors or [*self._spent(dataset), *self._known(dataset)]

    def _few(self, rows: int) -> list[Finding]:
        text = f"below {_FEWEST} rows their number could not be told rounded, and no noise leaves anything to learn"
        return [Finding("error", text, "rows")] if rows < _FEWEST else []

    def _delta(self, rows: int) -> list[Finding]:
        limit = 1 / max(rounded(rows), 1)
        if self.config.delta < limit:
            return []
        text = f"delta {self.config.delta:g} is not below 1 / rows: it would allow to publish a row whole"
        return [Finding("error", f"{text}; write privacy.delta: {limit / 10:.0e} or less", "privacy.delta")]

    def _spent(self, dataset: Dataset) -> list[Finding]:
        from genward_policies.privacy import accounting

        budget, delta = self.config.budget.dataset, self.config.delta
        total = accounting.total(self.ledger.charged(dataset.digest), delta)
        if total < budget:
            return []
        return [Finding("error", f"the budget of the data set is spent: epsilon {total:.2f} of {budget:g}", "privacy")]

    def _known(self, dataset: Dataset) -> list[Finding]:
        """Remember the rows, so that the same ones under another name do not begin a new budget."""
        from genward_policies.privacy.ledger import row_hashes

        hashes = row_hashes(dataset.table(), self.context.keys.derive("ledger rows", 32))
        related = set(self.ledger.know(dataset.digest, hashes)) - {*dataset.parents, dataset.digest}
        text = "shares rows with a data set that nobody declared as its parent; the two are charged together"
        return [Finding("warning", text, name[:19]) for name in sorted(related)]

    @hookimpl
    def protect_training(self, training: Training) -> Protected:
        from genward_policies.privacy.protected import protect

        return protect(training, self.config, self.ledger)

    @hookimpl
    def measure(self, candidate: Candidate) -> Sequence[Evidence]:
        """What the candidate's training left, held against the ledger; not measured where there is nothing."""
        from genward_policies.privacy import evidence

        try:
            return evidence.claims(evidence.read(candidate.folder, self.ledger))
        except NotFound:
            return [Evidence("epsilon", None, _STALE)]

    @hookimpl
    def attach(self, candidate: Candidate, evidence: Sequence[Evidence]) -> Mapping[str, bytes]:
        """`statement.json` for registries of deployments, `privacy.md` for people."""
        from genward_policies.privacy.statement import page, statement

        told = next((item.extra for item in evidence if item.claim == "epsilon" and item.value is not None), None)
        if told is None:
            return {}
        text = json.dumps(statement(told, candidate.id), indent=2, sort_keys=True)
        return {"statement.json": text.encode(), "privacy.md": page(told, candidate.id).encode()}

    @hookimpl
    def gate(self, evidence: Sequence[Evidence]) -> Verdict:
        """No to whatever is not, or not surely, what this policy promises."""
        found = [item for item in evidence if item.claim == "epsilon"]
        if len(found) != 1 or found[0].value is None or not found[0].extra:
            return Verdict(False, (f"privacy: {_STALE}",))
        reasons = tuple(f"privacy: {reason}" for reason in self._reasons(found[0].value, found[0].extra))
        return Verdict(not reasons, reasons)

    def _reasons(self, epsilon: float, told: Mapping[str, Any]) -> list[str]:
        from genward_policies.privacy.evidence import lower_bound

        c, bound = self.config, lower_bound(told)
        apart = abs(told["epsilon_prv"] - told["epsilon_pld"])
        noise = [one for one in told.get("telemetry", ()) if not one["sound"]]
        stepped = told["sampler"] != "none"
        checks = {
            f"epsilon is {epsilon:.4f}, allowed is {c.epsilon:g}": epsilon <= c.epsilon,
            f"delta is {told['delta']:g}, allowed is {c.delta:g}": told["delta"] <= c.delta,
            f"the unit is {told['unit']}, wanted is {c.unit}": told["unit"] == c.unit,
            f"the accountants are {apart:.3f} apart, allowed is {AGREEMENT}": apart <= AGREEMENT,
            f"canaries prove epsilon {bound or 0:.2f}, claimed is {epsilon:.2f}": bound is None or bound <= epsilon,
            "no canary rode along": bound is not None or not stepped or c.canaries == 0,
            "the measured noise is not the claimed one": not noise,
            "the noise was not measured": bool(told.get("telemetry")) or not stepped,
            "the module was not tested": bool(told.get("conformance")) or not stepped,
        }
        return [reason for reason, holds in checks.items() if not holds]


def namer(keys: KeyProvider) -> Any:
    """The name under which log and evidence know a data set: keyed, as in a manifest; whoever guesses a table cannot
    confirm it by the digest."""

    def name(digest: str) -> str:
        secret = keys.derive("dataset", 32)
        return hmac.new(secret, digest.removeprefix("sha256:").encode(), hashlib.sha256).hexdigest()

    return name


def _unbounded(column: Column) -> Finding | None:
    """A number without bounds, with the line that the schema needs."""
    if None not in column.bounds:
        return None
    given = column.model_dump(exclude_defaults=True, mode="json") | {"minimum": "...", "maximum": "..."}
    line = ", ".join(f"{key}: {value}" for key, value in given.items())
    text = f"has no bounds, and none may be taken from protected rows; write - {{{line}}}"
    return Finding("error", text, column.name)
