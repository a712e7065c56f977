"""From a data set to a candidate: check, encode, train."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from genward.candidate import NETWORK, Candidate, Recipe
from genward.contracts import Finding, Progress
from genward.data.codec import TableCodec
from genward.errors import CheckFailed, Interrupted, UsageError
from genward.family import Training
from genward.record import request_id
from genward.release import rounded
from genward.train import Protector, TrainOptions, train

if TYPE_CHECKING:
    from genward.api import Platform
    from genward.data.dataset import Dataset

_DITHER = 5  # label of the generator that places repeated values


def start(
    platform: Platform,
    dataset: str,
    family: str,
    progress: Progress,
    *,
    config: Mapping[str, Any] | None = None,
    conditions: Sequence[str] = (),
    target: str | None = None,
    seed: int = 0,
    held_out: float = 0.2,
    **options: Any,
) -> Candidate:
    """Train a new candidate.

    Args:
        config: the family's configuration.
        conditions: columns given to the network, so that a release can declare cells over them.
        target: the column that the usefulness test predicts.
        held_out: share of the rows that training never sees.
        options: of `TrainOptions`: steps, max_minutes, max_cpu_seconds, batch, patience, device, ...
    """
    data = platform.dataset(dataset)
    for name in (*conditions, *([target] if target else [])):
        data.schema.column(name)
    if not 0 <= seed < 1 << 63:
        raise UsageError(f"seed is {seed}", remedy="give a whole number from 0")
    _check(platform, data)
    _check_config(platform, family, config or {})
    policies = platform.policies()
    recipe = Recipe(
        id=f"{family}-{request_id()[:13]}",
        family=family,
        dataset=data.digest,
        config=dict(config or {}),
        conditions=tuple(conditions),
        seed=seed,
        held_out=held_out,
        target=target,
        options=_options(options),
        policy=policies.digest,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        protected=policies.protects,
    )
    codec = _codec(data, recipe)
    candidate = Candidate.create(platform.state.candidates_dir / recipe.id, recipe, platform.plugins, codec)
    return _run(platform, candidate, data, progress, resume=False)


def _codec(data: Dataset, recipe: Recipe) -> TableCodec:
    """Fitted to the rows trained on; under protection made from the schema alone."""
    if recipe.protected:
        return TableCodec.declared(data.schema, recipe.conditions)
    return TableCodec.fit(data.schema, recipe.split(data)[0], recipe.conditions)


def resume(platform: Platform, name: str, progress: Progress) -> Candidate:
    """Go on where an interrupted training stood; a finished one is left as it is."""
    candidate = platform.candidate(name)
    if candidate.trained:
        return candidate
    return _run(platform, candidate, platform.dataset(candidate.recipe.dataset), progress, resume=True)


def _run(platform: Platform, candidate: Candidate, data: Dataset, progress: Progress, resume: bool) -> Candidate:
    recipe = candidate.recipe
    rows, _ = recipe.split(data)
    dither = np.random.default_rng(None if recipe.protected else [recipe.seed, _DITHER])  # one row must move no other's
    records = candidate.codec.encode(rows, dither)
    options = TrainOptions(seed=recipe.seed, **recipe.options)
    spec, folder = candidate.codec.spec, candidate.folder
    protect = _protector(platform, candidate, data, resume) if recipe.protected else None
    try:
        train(candidate.family, candidate.config, spec, records, folder, options, progress, resume, protect)
    except Interrupted as stopped:
        stopped.remedy = f"`genward train --resume {candidate.id}` goes on"
        raise
    platform.record("candidate.trained", candidate=candidate.id, dataset=data.digest)
    return candidate


def _protector(platform: Platform, candidate: Candidate, data: Dataset, resumed: bool) -> Protector:
    """Hands a training over to the policy it was begun under."""
    policies = platform.policies_of(candidate.recipe.policy)
    about = {
        "run": candidate.id,
        "dataset": data.digest,
        "lineage": _lineage(platform, data.digest),
        "rows": rounded(round(rounded(data.rows) * (1 - candidate.recipe.held_out))),
        "estimated": candidate.codec.estimated,
        "family": candidate.family,
        "config": candidate.config,
        "folder": candidate.folder,
        "resumed": resumed,
    }
    return lambda **given: policies.protect_training(Training(**about, **given))


def _lineage(platform: Platform, digest: str) -> tuple[str, ...]:
    """Digests of every data set that one was made from, nearest first."""
    found: list[str] = []
    waiting = [digest]
    while waiting:
        for parent in platform.registry.dataset(waiting.pop(0))["parents"]:
            if parent not in found:
                found.append(parent)
                waiting.append(parent)
    return tuple(found)


def _check(platform: Platform, data: Dataset) -> None:
    """The schema's own findings and every policy's; an error stops the training before it begins."""
    findings: list[Finding] = [*data.schema.check(data.table()), *platform.policies().check_data(data)]
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        where = f"{data.name}: {errors[0].where}".rstrip(": ")
        raise CheckFailed(errors[0].message, where=where, remedy="mend the table, or its schema")


def _check_config(platform: Platform, family: str, config: Mapping[str, Any]) -> None:
    try:
        platform.plugins.family(family).Config(**config)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{family}: {key}: {first['msg']}", remedy="see docs/families.md for its settings") from None


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    known = {item.name for item in fields(TrainOptions)} - {"seed"}
    unknown = set(given) - known
    if unknown:
        raise UsageError(
            f"no training option {', '.join(sorted(unknown))}", remedy=f"there are {', '.join(sorted(known))}"
        )
    found = {name: value for name, value in given.items() if value is not None}
    for name, value in found.items():
        if isinstance(value, (int, float)) and not 0 < value < math.inf:
            raise UsageError(f"{name} is {value}", remedy="give a number above 0")
    return found


def listed(platform: Platform) -> list[dict[str, Any]]:
    """Candidates and how far they are."""
    rows = []
    for folder in sorted(platform.state.candidates_dir.iterdir(), key=lambda path: path.stat().st_mtime):
        if (folder / "recipe.json").is_file():
            recipe = json.loads((folder / "recipe.json").read_bytes())
            done = (folder / NETWORK).is_file()
            about = {name: recipe[name] for name in ("id", "family", "created")}
            rows.append({**about, "dataset": recipe["dataset"][:19], "state": "trained" if done else "resumable"})
    return rows
