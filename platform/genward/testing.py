"""Contract suites for plugin authors: `check(MyFamily)`, `check(MyPolicy)`, `check(MyAttacker)` in a test of yours.

Each suite is a handful of small functions; each raises CheckFailed with what was promised and what was found.
The same suites run over every built-in plugin.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from genward.contracts import Evidence, Facts, Outcome, Principal, ReleaseInfo, Request, Silent, Verdict
from genward.errors import CheckFailed
from genward.family import Family, Mechanism, Objective, Spec

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor, nn

    from genward.data.codec import TableCodec

BATCH = 16


def check(cls: type[Any], **config: Any) -> list[str]:
    """Run the suite that fits a plugin class; returns the names of the checks that passed.

    Args:
        cls: a Family, a Policy or an Attacker.
        config: values for its Config; a policy without defaults may carry them as class attribute `example`.

    Raises:
        CheckFailed: a promise of the contract is not kept.
    """
    from genward.attacker import Attacker
    from genward.policy import Policy

    if issubclass(cls, Attacker):
        return _run(ATTACKER_CHECKS, cls)
    if issubclass(cls, Family):
        subject = _Subject(cls, config)
        return _run(COUNTING_CHECKS if subject.bins else FAMILY_CHECKS, subject)
    if issubclass(cls, Policy):
        return _run(POLICY_CHECKS, cls, {**getattr(cls, "example", {}), **config})
    raise CheckFailed(f"{cls!r} is no Family, no Policy and no Attacker")


def _run(checks: Mapping[str, Callable[..., None]], *given: Any) -> list[str]:
    for name, function in checks.items():
        try:
            function(*given)
        except CheckFailed:
            raise
        except Exception as error:
            raise CheckFailed(f"{name}: {type(error).__name__}: {error}", where=repr(given[0])) from error
    return list(checks)


def _require(holds: bool, what: str, where: Any) -> None:
    if not holds:
        raise CheckFailed(what, where=str(where))


def small_table(rows: int = 200) -> pa.Table:
    """A made-up table with every kind of column and gaps, only for contract checks."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(7)
    hard = rng.lognormal(1.0, 1.0, rows).round(3)
    return pa.table(
        {
            "hardness": pa.array(hard, mask=rng.random(rows) < 0.1),
            "count": pa.array(rng.integers(1, 6, rows)),
            "phase": pa.array(rng.choice(["bcc", "fcc", "hcp"], rows, p=[0.6, 0.3, 0.1])),
            "stable": pa.array(hard > 2.0),
        }
    )


def small_codec() -> TableCodec:
    """A codec over `small_table`."""
    from genward.data.codec import TableCodec
    from genward.data.schema import Schema

    table = small_table()
    return TableCodec.fit(Schema.infer(table), table)


class _Subject:
    """A family built on the small table, with one batch of its records."""

    def __init__(self, cls: type[Family], config: Mapping[str, Any]) -> None:
        import torch

        self.cls = cls
        self.family = cls()
        self.config = cls.Config(**config)
        self.codec = small_codec()
        self.spec: Spec = self.codec.spec
        self.bins = self.family.bins(self.config)
        torch.manual_seed(0)
        self.network: nn.Module = self.family.build(self.spec, self.config)
        self.exported: Any = None  # the graph, once it was exported
        encoded = self.codec.encode(small_table())
        self.encoded = encoded["x"]
        self.record = {name: torch.from_numpy(array[:BATCH]) for name, array in encoded.items() if array.shape[1]}

    def __repr__(self) -> str:
        return f"family {self.cls.name!r}"

    def fit(self, mechanism: Mechanism) -> None:
        """Train a fresh network from counts."""
        import torch

        torch.manual_seed(0)
        self.network = self.family.build(self.spec, self.config)
        self.family.fit(self.network, mechanism, self.config, Silent())

    def objectives(self) -> list[Objective]:
        return [o for phase in self.family.phases(self.network, self.config) for o in phase.objectives]

    def noise(self, specs: Any, rows: int = BATCH) -> dict[str, Tensor]:
        import numpy as np
        import torch

        from genward.noise import draw

        arrays = draw(specs, bytes(16), np.arange(rows, dtype=np.uint64))
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _names_itself(subject: _Subject) -> None:
    cls = subject.cls
    _require(bool(cls.name) and cls.name == cls.name.lower(), "`name` is missing or not lower case", subject)
    _require("table" in cls.modalities or bool(cls.modalities), "`modalities` is empty", subject)


def _loss_is_per_record(subject: _Subject) -> None:
    for objective in subject.objectives():
        loss = objective.loss(subject.network, subject.record, subject.noise(objective.noise), 0.5)
        _require(tuple(loss.shape) == (BATCH,), f"loss has shape {tuple(loss.shape)}, not ({BATCH},)", subject)
        _require(bool(loss.isfinite().all()), "loss is not finite on a fresh network", subject)


def _records_do_not_couple(subject: _Subject) -> None:
    """Each record's loss in the batch against the same record alone (the best single test, see docs/families.md)."""
    for objective in subject.objectives():
        if objective.couples:
            continue
        noise = subject.noise(objective.noise)
        whole = objective.loss(subject.network, subject.record, noise, 0.5).detach()
        for i in range(BATCH):
            one, own = ({k: v[i : i + 1] for k, v in part.items()} for part in (subject.record, noise))
            alone = objective.loss(subject.network, one, own, 0.5).detach()[0]
            same = abs(float(alone - whole[i])) <= 1e-4 * max(1.0, abs(float(alone)))
            _require(same, f"record {i} loses {float(alone):.6g} alone, {float(whole[i]):.6g} in a batch", subject)


def _gradients_exist(subject: _Subject) -> None:
    for objective in subject.objectives():
        subject.network.zero_grad()
        objective.loss(subject.network, subject.record, subject.noise(objective.noise), 0.5).mean().backward()  # type: ignore[no-untyped-call]
        moved = [p for p in subject.network.parameters() if p.grad is not None and bool(p.grad.isfinite().all())]
        _require(bool(moved), f"{type(objective).__name__} moves no parameter", subject)


def _trains_one_way(subject: _Subject) -> None:
    """By phases of objectives, or from counts; not both, and not by neither."""
    has = bool(subject.objectives())
    _require(has or subject.bins > 0, "it has neither `phases` nor `bins`, so nothing trains it", subject)
    _require(not (has and subject.bins), "it has `phases` and `bins`: one of them would never be used", subject)


def _keeps_within_its_budget(subject: _Subject) -> None:
    """With answers as noisy as a privacy policy's, and little to spend: asking for more is an error of the family."""
    for rho in (1e-6, 0.01, 1.0):
        mechanism = _fitted(subject, rho)
        _require(mechanism.rho >= 0, f"spent {rho - mechanism.rho:.6g} of {rho:g}", subject)
        _require(mechanism.rho < rho, "nothing was asked, so nothing was learnt", subject)


def _answers_decide(subject: _Subject) -> None:
    """The same answers and the same torch seed give the same network, bit for bit; it is finite; none is needed to
    train it unprotected."""
    from genward.fitting import Exact

    _fitted(subject, 0.1)
    first = {name: t.clone() for name, t in subject.network.state_dict().items()}
    _fitted(subject, 0.1)
    same = all(bool((first[name] == t).all()) for name, t in subject.network.state_dict().items())
    _require(same, "two trainings on the same answers differ", subject)
    subject.fit(Exact(subject.spec, subject.encoded, subject.bins))
    finite = all(bool(t.isfinite().all()) for t in subject.network.state_dict().values())
    _require(finite, "a parameter is not finite after training", subject)


def _fitted(subject: _Subject, rho: float) -> Any:
    mechanism = _noisy(subject, rho)
    subject.fit(mechanism)
    return mechanism


def _noisy(subject: _Subject, rho: float) -> Any:
    """Answers with the noise of their price from a known seed, and a budget that is kept: for checks, not private."""
    import numpy as np

    from genward.fitting import Exact

    class Noisy(Exact):
        def __init__(self) -> None:
            super().__init__(subject.spec, subject.encoded, subject.bins)
            self.rho, self._rng = rho, np.random.default_rng(3)

        def _pay(self, rho: float) -> None:
            _require(0 < rho <= self.rho * (1 + 1e-9), f"asked for rho {rho:g} of {self.rho:g} left", subject)
            self.rho = max(0.0, self.rho - rho)

        def measure(self, fields: Any, rho: float) -> Any:
            self._pay(rho)
            counts = super().measure(fields, rho)
            return counts + np.rint(self._rng.normal(0, (0.5 / rho) ** 0.5, counts.shape))

        def select(self, candidates: Any, expected: Any, penalties: Any, rho: float) -> int:
            self._pay(rho)
            return super().select(candidates, expected, penalties, rho)

    return Noisy()


def _samples_are_functions_of_noise(subject: _Subject) -> None:
    import torch

    graph = subject.family.graphs(subject.network, subject.config)["sample"]
    noise = list(subject.noise(graph.noise).values())
    with torch.no_grad():
        first, second = graph.module.eval()(*noise), graph.module(*noise)
    _require(tuple(first.shape) == (BATCH, subject.spec.width), f"rows have shape {tuple(first.shape)}", subject)
    _require(bool(torch.equal(first, second)), "two runs on the same noise differ: a random op is inside", subject)


def _exports(subject: _Subject) -> None:
    from genward.export import export_graph, parity

    subject.exported = export_graph(subject.family, subject.network, subject.config, subject.codec)
    parity(subject.exported, rows=256)


def _gives_nothing_but_rows(subject: _Subject) -> None:
    """The graph's outputs are the table's columns: no latent, seed or logit, and values on the data's own grid."""
    import numpy as np
    import onnx

    from genward.engine import Engine
    from genward.evaluate.sides import features, keys
    from genward.table import Table

    exported, codec = subject.exported, subject.codec
    named = [output.name for output in onnx.load_from_string(exported.data).graph.output]
    wanted = ["numbers", "codes", *(f"next_{s.name}" for s in exported.graph.state)]
    _require(named == wanted, f"the graph gives {', '.join(named)}", subject)
    engine = Engine(exported.data, codec, Table(None, 1, 64), exported.meta, pool_key=bytes(16))
    rows = engine.candidates(np.arange(256, dtype=np.int64))
    table = codec.decode(rows.numbers, rows.codes)
    _require(table.schema.names == codec.schema.names, f"rows have columns {table.schema.names}", subject)
    errors = [finding.message for finding in codec.schema.check(_whole(table)) if finding.level == "error"]
    _require(not errors, f"rows break the schema: {'; '.join(errors)}", subject)
    values = features(_whole(table), codec.schema)
    again = _rounded(values, codec)
    off = keys(values, codec.schema) != keys(again, codec.schema)
    close = np.isclose(values, again, rtol=1e-12, atol=1e-12, equal_nan=True)
    _require(not off.any() and bool(close.all()), "values are not on the data's grid", subject)


def _whole(batch: Any) -> pa.Table:
    """A table of a batch, its categories as text."""
    import pyarrow as pa

    table = pa.Table.from_batches([batch])
    plain = [c.cast(pa.string()) if pa.types.is_dictionary(c.type) else c for c in table.columns]
    return pa.table(dict(zip(table.column_names, plain, strict=True)))


def _rounded(values: Any, codec: TableCodec) -> Any:
    """Numbers on the grid that their column states: a step, or so many digits."""
    import numpy as np

    out = np.array(values)
    for i, column in enumerate(codec.schema.columns):
        if column.is_number and column.kind == "numeric" and column.digits:
            out[:, i] = [float(f"{v:.{column.digits}g}") for v in out[:, i]]
        elif column.is_number and column.step:
            out[:, i] = np.rint(out[:, i] / column.step) * column.step
    return out


def _copies(cls: type[Any]) -> None:
    """From delivered rows come rows of the same kind, as many as asked, the same ones for the same seed."""
    import numpy as np

    attacker, rows = _attacker(cls)
    attacker.fit(rows, seed=1)
    made, again = attacker.sample(70, seed=2), attacker.sample(70, seed=2)
    _require(made.shape == (70, rows.shape[1]), f"{made.shape} rows were made of {rows.shape}", cls.name)
    _require(bool(np.isfinite(made).all()), "rows hold values that are not finite", cls.name)
    _require(bool(np.array_equal(made, again)), "the same seed gives other rows", cls.name)
    _require(not np.array_equal(made, attacker.sample(70, seed=3)), "another seed gives the same rows", cls.name)
    for part in attacker.target.choices:
        chosen = made[:, part]
        _require(bool(((chosen == 0) | (chosen == 1)).all() and (chosen.sum(axis=1) == 1).all()), "no choice", cls.name)


def _learns_from_few(cls: type[Any]) -> None:
    attacker, rows = _attacker(cls)
    attacker.fit(rows[:50], seed=1)
    _require(len(attacker.sample(10, seed=1)) == 10, "50 rows were not enough", cls.name)


def _attacker(cls: type[Any]) -> tuple[Any, Any]:
    """An attacker on a release of a small table, and rows that were delivered."""
    from genward.attacker import Target
    from genward.data.distance import encoded

    codec = small_codec()
    rows = encoded(codec, small_table())
    target = Target(codec.spec, _Toy(), _Toy.Config(), cpu_seconds=2.0)
    return cls(target), rows


class _Toy(Family):
    """A family of one linear map, for attackers to train."""

    name = "toy"

    def build(self, spec: Spec, config: Any) -> nn.Module:
        from torch import nn

        return nn.Linear(spec.width, spec.width)

    def phases(self, network: nn.Module, config: Any) -> Any:
        from genward.family import NoiseSpec, Phase

        class Fit(Objective):
            def __init__(self) -> None:
                self.noise = (NoiseSpec("z", (network.in_features,)),)  # type: ignore[arg-type]

            def loss(self, network: nn.Module, record: Any, noise: Any, progress: float) -> Tensor:
                return ((network(noise["z"]) - record["x"]) ** 2).mean(dim=1)  # type: ignore[no-any-return]

        return [Phase([Fit()])]

    def graphs(self, network: nn.Module, config: Any) -> Any:
        from genward.family import Graph, NoiseSpec

        return {"sample": Graph(network, (NoiseSpec("z", (network.in_features,)),))}  # type: ignore[arg-type]


def _config_validates(cls: type[Any], config: Mapping[str, Any]) -> None:
    cls.Config(**config)
    try:
        cls.Config(**config, no_such_key=1)
    except ValueError:
        return
    _require(False, "Config takes unknown keys: set extra='forbid'", cls.name)


def _policy_hooks_exist(cls: type[Any], config: Mapping[str, Any]) -> None:
    from genward import hookspecs

    marked = [n for n, f in inspect.getmembers(cls, callable) if hasattr(f, f"{hookspecs.PROJECT}_impl")]
    unknown = [name for name in marked if not hasattr(hookspecs, name)]
    _require(bool(marked), "no method is marked with hookimpl", cls.name)
    _require(not unknown, f"unknown hooks: {', '.join(unknown)}", cls.name)


def _policy_answers(cls: type[Any], config: Mapping[str, Any]) -> None:
    """admit gives verdicts and its leases settle twice without harm; gate gives verdicts."""
    import tempfile
    from pathlib import Path

    from genward.policy import PolicyContext

    with tempfile.TemporaryDirectory() as folder:
        context = PolicyContext(store_url=f"sqlite:///{folder}/counters.db", keys=_NoKeys(), state_dir=Path(folder))
        policy = cls(cls.Config(**config), context)
        if hasattr(policy, "admit"):
            _admit(policy)
        if hasattr(policy, "gate"):
            _require(isinstance(policy.gate(evidence=list[Evidence]()), Verdict), "gate gave no Verdict", cls.name)


def _admit(policy: Any) -> None:
    principal = Principal("tenant", "key", frozenset({"consumer"}))
    facts = Facts(principal, 1.8e9, "sha256:0", ReleaseInfo("model", 1, "sha256:1", ("tenant",)))
    request = Request("0", "generate", "model", 3)
    given = {"request": request, "facts": facts}
    verdict = policy.admit(**{name: given[name] for name in inspect.signature(policy.admit).parameters})
    _require(isinstance(verdict, Verdict), f"admit gave {type(verdict).__name__}, not a Verdict", policy.name)
    if verdict.lease is not None:
        for _ in range(2):
            policy.settle(lease=verdict.lease, outcome=Outcome("served", 3))


class _NoKeys:
    """Keys for a check: derived from nothing secret."""

    def derive(self, label: str, length: int = 16) -> bytes:
        import hashlib

        return hashlib.sha256(label.encode()).digest()[:length]

    def sign_bundle(self, message: bytes) -> bytes:
        raise CheckFailed("a policy asked for a bundle signature")

    def bundle_public_pem(self) -> bytes:
        return b""


FAMILY_CHECKS: Mapping[str, Callable[..., None]] = {
    "names itself": _names_itself,
    "trains one way": _trains_one_way,
    "one loss per record": _loss_is_per_record,
    "records do not couple": _records_do_not_couple,
    "gradients exist": _gradients_exist,
    "samples are functions of noise": _samples_are_functions_of_noise,
    "exports with parity": _exports,
    "gives nothing but rows": _gives_nothing_but_rows,
}
COUNTING_CHECKS: Mapping[str, Callable[..., None]] = {
    "names itself": _names_itself,
    "trains one way": _trains_one_way,
    "keeps within its budget": _keeps_within_its_budget,
    "answers decide": _answers_decide,
    "samples are functions of noise": _samples_are_functions_of_noise,
    "exports with parity": _exports,
    "gives nothing but rows": _gives_nothing_but_rows,
}
ATTACKER_CHECKS: Mapping[str, Callable[..., None]] = {"copies": _copies, "learns from few": _learns_from_few}
POLICY_CHECKS: Mapping[str, Callable[..., None]] = {
    "config validates": _config_validates,
    "hooks exist": _policy_hooks_exist,
    "answers and settles": _policy_answers,
}
