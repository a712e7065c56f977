"""`genward evaluate`: how good synthetic rows are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from genward.cli import common
from genward.contracts import Evidence
from genward.errors import UsageError
from genward.progress import for_terminal


def evaluate(
    subject: Annotated[str, typer.Argument(help="A candidate, a release, or a file of held-out real rows.")],
    synthetic: Annotated[Path | None, typer.Argument(help="With a file of real rows: the synthetic rows.")] = None,
    schema: Annotated[Path | None, typer.Option(help="With files: the schema; else inferred from real rows.")] = None,
    train: Annotated[Path | None, typer.Option(help="With files: the rows the generator learnt from.")] = None,
    target: Annotated[
        str | None, typer.Option(help="With files: the column that models are taught to predict.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Without files: how many rows are generated and judged.")] = 20_000,
    output: Annotated[
        Path | None, typer.Option("-o", help="With files: the report, .html; report.html if not given.")
    ] = None,
) -> None:
    """Judge synthetic rows by rows that training never saw, and write a report.

    Figures of a model that was trained on protected rows go to its owner's report only.
    """
    from genward.evaluate.subject import judge_files, judge_model

    if synthetic is not None:
        page = output or Path("report.html")
        found = judge_files(Path(subject), synthetic, schema, train, target, page, for_terminal())
    elif schema or train or target or output:
        raise UsageError("these options go with two files", remedy="genward evaluate REAL SYNTHETIC")
    elif Path(subject).suffix in (".csv", ".gz", ".parquet", ".pq"):
        raise UsageError("a file of real rows needs a file of synthetic rows", remedy="genward evaluate REAL SYNTHETIC")
    else:
        found = judge_model(common.open_platform(), subject, rows, for_terminal())
    _print(found.evidence, {"report": str(found.report), "figures": str(found.figures)}, found.protected)


def _print(evidence: Sequence[Evidence], files: dict[str, Any], protected: bool) -> None:
    from genward.evaluate.drawing import claim
    from genward.evaluate.summary import summary

    if common.settings.json:
        common.show({"claims": [claim(item) for item in evidence], **files, "protected": protected})
        return
    print("\n".join(summary(evidence)))
    owner = ", which is for its owner only" if protected else ""
    print(f"  {'the whole report' + owner}: {files['report']}")
