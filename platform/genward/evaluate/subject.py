"""What can be judged outside a release: a candidate, a release again, or two files against a schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genward.contracts import Evidence, Progress
from genward.data.readers import read_table
from genward.data.schema import Schema
from genward.errors import NotFound, UsageError
from genward.evaluate import Settings, evaluate, sides_of
from genward.evaluate.drawing import document
from genward.evaluate.stage import (
    FIGURES,
    OWNER_FIGURES,
    OWNER_REPORT,
    REPORT,
    counted,
    judge,
    rendered,
    write,
)

if TYPE_CHECKING:
    from genward.api import Platform
    from genward.candidate import Candidate
    from genward.engine import Engine

_USUAL = Settings()


@dataclass(frozen=True)
class Judged:
    """What may be told, and where the report lies; of protected rows the report is the owner's alone."""

    evidence: Sequence[Evidence]
    report: Path
    figures: Path
    protected: bool = False


def judge_model(platform: Platform, name: str, rows: int, progress: Progress) -> Judged:
    """Judge a candidate or a release by its held-out rows; the look at them is in the log before it is taken.

    Raises NotFound when there is neither, UsageError for fewer rows than a figure needs.
    """
    from genward.release import Plan, with_samples

    if rows < 2:
        raise UsageError(f"rows is {rows}", remedy="give 2 or more; 20000 make narrow intervals")
    candidate, engine = _opened(platform, name, progress)
    platform.record("evaluate", subject=name, candidate=candidate.id, protected=str(candidate.recipe.protected).lower())
    dataset = platform.dataset(candidate.recipe.dataset)
    measured = with_samples(candidate, dataset, engine, Plan(name, evaluate_rows=rows), progress)
    evidence, protected = judge(measured, progress), candidate.recipe.protected
    report, figures = (OWNER_REPORT, OWNER_FIGURES) if protected else (REPORT, FIGURES)
    return Judged(evidence, candidate.folder / report, candidate.folder / figures, protected)


def _opened(platform: Platform, name: str, progress: Progress) -> tuple[Candidate, Engine]:
    """A candidate with an engine on its own network, or a release's candidate with one on the sealed graph."""
    if (platform.state.candidates_dir / Path(name).name / "recipe.json").is_file():
        candidate = platform.candidate(name)
        return candidate, _fresh(candidate, progress)
    try:
        info = platform.registry.resolve(name, retired=True)
    except NotFound:
        raise NotFound(
            f"{name!r} is no candidate, no release and no file",
            remedy="`genward model candidates` and `genward model list` show what there is",
        ) from None
    rows = [row for row in platform.registry.releases() if (row["name"], row["version"]) == (info.name, info.version)]
    return platform.candidate(rows[0]["candidate"]), _sealed(platform, name)


def _fresh(candidate: Candidate, progress: Progress) -> Engine:
    from genward.release import export_checked, public_engine
    from genward.table import Table

    exported, _ = export_checked(candidate, candidate.network(), progress)
    return public_engine(candidate, exported, Table(None, 1, 1024))


def _sealed(platform: Platform, reference: str) -> Engine:
    from genward.bundle import Bundle
    from genward.data.codec import TableCodec
    from genward.engine import Engine
    from genward.release import PUBLIC_KEY
    from genward.table import Table

    bundle = Bundle.open(platform.bundle_folder(reference), platform.keys.trusted())
    graph, meta = bundle.graph("sample")
    block = Table.from_json(bundle.manifest["table"]).block
    return Engine(graph, TableCodec.from_json(bundle.codec), Table(None, 1, block), meta, pool_key=PUBLIC_KEY)


def judge_files(
    real: Path,
    synthetic: Path,
    schema: Path | None,
    train: Path | None,
    target: str | None,
    output: Path,
    progress: Progress,
    settings: Settings = _USUAL,
) -> Judged:
    """Judge a file of synthetic rows by a file of held-out real rows; write the report, and its figures beside it.

    Without a schema one is inferred from the real rows. The synthetic file may leave bounds and have gaps: that is
    counted, and not refused. DataError names file, row and column of what cannot be read.
    """
    if not output.parent.is_dir():
        raise UsageError("cannot write it: there is no such folder", where=str(output), remedy="make it first")
    used = _schema(real, schema)
    tables = (None if train is None else read_table(train, used), read_table(real, used))
    made = read_table(synthetic, _lenient(used))
    found = evaluate(*tables, made, used, target, progress, settings)
    sides = sides_of(*tables, made, used, settings)
    about = {"name": synthetic.name, "judged by": real.name, **counted(sides)}
    if train is None:
        about["training rows"] = "not given: half of the real rows stand for them in the references"
    report = rendered(document(sides, found, about))
    figures = output.with_suffix(".json")
    try:
        write(output, report[REPORT])
        write(figures, report[FIGURES])
    except OSError as error:
        raise UsageError(f"cannot write it: {error.strerror}", where=str(output)) from None
    return Judged(found, output, figures)


def _schema(real: Path, schema: Path | None) -> Schema:
    if schema is None:
        return Schema.infer(read_table(real), str(real))
    try:
        return Schema.from_yaml(schema.read_text(encoding="utf-8"), str(schema))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read it: {error}", where=str(schema)) from None


def _lenient(schema: Schema) -> Schema:
    """The same columns without bounds and with gaps, so that what breaks them can be counted."""
    free = {"minimum": None, "maximum": None, "nullable": True, "edges": (), "scale": "linear", "outside": "refuse"}
    columns = tuple(column.model_copy(update=free) for column in schema.columns)
    return schema.model_copy(update={"columns": columns})
