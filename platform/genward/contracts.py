"""Small frozen values that cross the hooks. Nothing here computes, opens or imports anything heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "in"]
Value = str | float | bool | tuple[str, ...]
Role = Literal["administrator", "publisher", "auditor", "consumer"]
Status = Literal["served", "denied", "error", "lost", "aborted"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One clause of a predicate, for example density > 5. Clauses are joined by AND."""

    column: str
    op: Operator
    value: Value


LOCAL = "local"  # the address of a call in this process


class Credential(str):
    """What a caller showed (an API key or a token), and where from: an IP address, LOCAL, or empty when nobody knows.
    A plain string came from nowhere."""

    address: str

    def __new__(cls, secret: str, address: str = "") -> Credential:
        found = super().__new__(cls, secret)
        found.address = address
        return found


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a key of a tenant, with the roles the key carries and the actions and models it is narrowed to (empty:
    not narrowed)."""

    tenant: str
    key: str
    roles: frozenset[str] = frozenset()
    actions: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()

    def may_see(self, model: str) -> bool:
        """Whether a model, named alone or with a version or an alias, is in the key's scope."""
        return not self.models or model.partition(":")[0].partition("@")[0] in self.models


@dataclass(frozen=True, slots=True)
class ReleaseInfo:
    """What policies may know of a release."""

    name: str
    version: int
    digest: str
    tenants: tuple[str, ...] = ()  # empty: no tenant was granted it; "*" grants all
    raised: str = ""  # the newest signed statement that its pool was raised (genward.pool)


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. `action` is generate for rows; everything else reads."""

    id: str
    action: str
    model: str = ""
    n: int = 0
    where: tuple[Condition, ...] = ()
    start: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a request when it is admitted. A policy that misses a fact refuses."""

    principal: Principal
    now: float  # seconds since the epoch, UTC
    policy: str  # digest of the active policy document
    release: ReleaseInfo | None = None
    address: str = ""  # the caller's IP address, LOCAL for a call in this process, empty when nobody knows


@dataclass(frozen=True, slots=True)
class Lease:
    """Something `admit` reserved and `settle` commits or refunds."""

    policy: str
    request: str
    rows: int
    detail: Any = None  # the owning policy's own, opaque to everybody else


@dataclass(frozen=True, slots=True)
class Verdict:
    """Allow or deny, with reasons and obligations."""

    allow: bool
    reasons: tuple[str, ...] = ()
    cells: frozenset[int] | None = None  # only these cells; None: all
    cap: int | None = None  # at most this many rows
    where: tuple[Condition, ...] = ()  # joined by AND to what the caller asked; deny where both cannot hold
    reach: int | None = None  # of the tenant's walk over the whole release, only the first so many slots
    lease: Lease | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None  # on deny: this much waiting may help


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended: what `settle` needs to commit or refund."""

    status: Status
    rows: int
    scanned: int = 0  # slots that were examined for them


@dataclass(frozen=True, slots=True)
class Rows:
    """Generated rows as the graph gave them: `numbers` (n, P) float64, NaN is missing; `codes` (n, Q) int32,
    -1 is missing; `slots` (n,) int64, their places in the table."""

    numbers: NDArray[np.float64]
    codes: NDArray[np.int32]
    slots: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.slots)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a check saw. `error` stops the release; `warning` is shown and recorded."""

    level: Literal["error", "warning"]
    message: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A measured claim: what, how, on how many, how sure. `value` None means not measured, and `method` says why."""

    claim: str
    value: float | None
    method: str
    n: int = 0
    low: float | None = None  # ends of the 95 % interval
    high: float | None = None
    unit: str = ""
    reference: float | None = None  # the same figure, real data against real data
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def withheld(self) -> bool:
        """Whether it was kept back because it reads protected rows."""
        return self.value is None and self.method.startswith("withheld")


@dataclass(frozen=True)
class Shape:
    """What a policy seals into a release's table. `slots`: of several wishes the smallest holds, None is no wish;
    `candidates` of a slot: one policy at most may name them; `rows`: what all slots' candidates together may come to,
    the smallest holds. `files` go into the bundle, `evidence` to the gates."""

    slots: int | None = None
    candidates: int | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    evidence: Sequence[Evidence] = ()
    rows: int | None = None

    @property
    def most_slots(self) -> int | None:
        """The smallest of all wishes for slots; None when there is none."""
        of_rows = None if self.rows is None else max(1, self.rows // (self.candidates or 1))
        return min((n for n in (self.slots, of_rows) if n is not None), default=None)


@dataclass(frozen=True, slots=True)
class Detection:
    """What a file says of one release and one tenant's key (tenant "": the release's own).

    `p` is an upper bound of the chance that a file without this key's mark looks as marked, corrected for the keys
    tried; `z` the statistic in standard deviations; `rows` how many were read.
    """

    release: str
    tenant: str
    p: float
    z: float
    rows: int
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Compressed:
    """A cheaper network. `config` is the family's, with the widths and steps it has now; `quantise` is applied to the
    exported graph's bytes once parity is proved, None leaves them as they are."""

    network: Any
    config: Any
    quantise: Callable[[bytes], bytes] | None = None
    evidence: Sequence[Evidence] = ()


class AuditSink(Protocol):
    """The transparency log as the core knows it. Handed in by whoever composes the program.

    `append` returns the entry's index, and only after the entry is durable; when it cannot, it raises
    `Unavailable` and nothing may be given out.
    """

    def append(self, entry: bytes) -> int: ...

    async def append_async(self, entry: bytes) -> int: ...

    def entry(self, index: int) -> bytes:
        """The entry's bytes; raises NotFound."""

    def entries(self, start: int, most: int) -> Sequence[tuple[int, bytes]]:
        """(index, bytes) of at most `most` entries from `start` on, in order, read in bulk; none at the log's end.
        Those that retention let go of are passed over."""

    def proof(self, index: int) -> bytes | None:
        """The `.tlog-proof` of an entry; None until a checkpoint covers it."""

    def find(self, request: str) -> Sequence[int]:
        """Indices of the entries of a request, oldest first."""

    def vkey(self) -> str:
        """The log's verifier key, to be handed to whoever checks receipts."""

    async def detach(self) -> None:
        """Let go of the running event loop's connection, before the loop ends."""

    def close(self) -> None: ...


class KeyProvider(Protocol):
    """Where secrets live. Derivation is HKDF-SHA256 from one master, the label is its `info` (RFC 5869)."""

    def derive(self, label: str, length: int = 16) -> bytes: ...

    def sign_bundle(self, message: bytes) -> bytes:
        """ECDSA P-256 with SHA-256, DER."""

    def bundle_public_pem(self) -> bytes: ...


class Progress(Protocol):
    """How long work shows itself: rich bars on a terminal, plain lines elsewhere."""

    def start(self, task: str, total: float | None = None) -> None: ...

    def update(self, done: float, note: str = "") -> None: ...

    def finish(self, note: str = "") -> None: ...


class Silent:
    """Progress for library calls and tests: shows nothing."""

    def start(self, task: str, total: float | None = None) -> None:
        """Begin a task."""

    def update(self, done: float, note: str = "") -> None:
        """Say how far it is."""

    def finish(self, note: str = "") -> None:
        """End the task."""
