"""The whole extension surface, on one page.

A plugin distribution declares an entry point in the group `genward` that names a module; functions in it marked with
`hookimpl` announce classes (the first group below). A policy class is instantiated with its validated part of the
active policy document; its methods marked with `hookimpl` take part in releases and requests (the other groups).

Every verdict is gathered; deny wins. An exception, a missing fact and an empty set of policies all refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from genward.attacker import Attacker
    from genward.candidate import Candidate
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
    from genward.data.codec import Codec
    from genward.data.dataset import Dataset
    from genward.family import Family, Protected, Training
    from genward.policy import Policy

PROJECT = "genward"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# Announcing: cheap, no side effects.


@hookspec
def genward_families() -> Sequence[type[Family]]:  # type: ignore[empty-body]
    """Family classes of this plugin."""


@hookspec
def genward_codecs() -> Sequence[type[Codec]]:  # type: ignore[empty-body]
    """Codec classes of this plugin."""


@hookspec
def genward_policies() -> Sequence[type[Policy]]:  # type: ignore[empty-body]
    """Policy classes of this plugin, each named by its key in a policy document."""


@hookspec
def genward_attackers() -> Sequence[type[Attacker]]:  # type: ignore[empty-body]
    """Surrogates that try to copy a release."""


# Release side, in the order of the pipeline. Of a candidate trained on protected rows no hook sees a real row.


@hookspec
def check_data(dataset: Dataset) -> Sequence[Finding]:  # type: ignore[empty-body]
    """What is wrong with the data for this policy; an error stops the release."""


@hookspec
def protect_training(training: Training) -> Protected:  # type: ignore[empty-body]
    """Take over the objectives that read data (differential privacy). One owner per document."""


@hookspec
def compress(candidate: Candidate, progress: Progress) -> Compressed | None:
    """A cheaper network of the same family (pruning, quantisation, fewer steps); None when it leaves this candidate
    as it is. The candidate carries its held-out rows (unless protected) and no row it was trained on. One owner."""


@hookspec
def shape(candidate: Candidate, progress: Progress) -> Shape | None:
    """The slots and candidates of the release's table, and what a policy must find in the bundle to serve it. The
    candidate carries its graph and generated rows, and in `sealed` the files of the policies before."""


@hookspec
def measure(candidate: Candidate) -> Sequence[Evidence]:  # type: ignore[empty-body]
    """Evidence for what this policy promises."""


@hookspec
def attach(candidate: Candidate, evidence: Sequence[Evidence]) -> Mapping[str, bytes]:  # type: ignore[empty-body]
    """Files to seal into the bundle beside the evidence, by name: statements, reports, plots."""


@hookspec
def gate(evidence: Sequence[Evidence]) -> Verdict:  # type: ignore[empty-body]
    """Whether the evidence is good enough to release."""


# Request side, in the order of the pipeline.


@hookspec
def admit(request: Request, facts: Facts) -> Verdict:  # type: ignore[empty-body]
    """Allow or deny, with obligations: cells, caps, a lease to settle."""


@hookspec
def settle(lease: Lease, outcome: Outcome) -> None:
    """Commit or refund what `admit` reserved; idempotent."""


@hookspec
def score(request: Request, facts: Facts, rows: Rows) -> NDArray[np.float64]:  # type: ignore[empty-body]
    """Scores (n,) of candidate rows, the highest of a slot is chosen. One owner per release."""


@hookspec
def screen(request: Request, facts: Facts, rows: Rows) -> Rows:  # type: ignore[empty-body]
    """Drop or coarsen rows; pure per row."""


@hookspec
def mark(request: Request, facts: Facts, payload: Mapping[str, str]) -> Mapping[str, str]:  # type: ignore[empty-body]
    """Signed metadata to carry beside the rows (Arrow and Parquet schema metadata, CSV sidecar)."""


@hookspec
def observe(request: Request, facts: Facts, outcome: Outcome) -> None:
    """Counters and detectors; runs after the response is settled and cannot change it."""


@hookspec
def detect(rows: Any, releases: Sequence[ReleaseInfo], tenants: Sequence[str]) -> Sequence[Detection]:  # type: ignore[empty-body]
    """Whether rows (a pyarrow table, or record batches one after the other) carry the mark of a release, by key and
    tenant."""
