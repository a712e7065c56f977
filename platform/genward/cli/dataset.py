"""`genward dataset`: tables with a schema, identified by their content."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from genward.cli import common

app = typer.Typer(help="Data sets.", no_args_is_help=True)

LOOKED_AT = 1_000_000  # rows of a table that is held in memory to say what is odd about it
Source = Annotated[Path, typer.Argument(help="CSV (also .csv.gz) or Parquet file.")]


@app.command("add")
def add(
    source: Source,
    schema: Annotated[Path | None, typer.Option(help="Schema YAML; inferred and printed when left out.")] = None,
    name: Annotated[str | None, typer.Option(help="Name; else the file's.")] = None,
    parent: Annotated[list[str] | None, typer.Option(help="Data set this one was made from.")] = None,
) -> None:
    """Check a table against its schema and keep it under its digest."""
    dataset = common.open_platform().add_dataset(source, schema=schema, name=name, parents=parent or [])
    if schema is None:
        common.say(dataset.schema.to_yaml())
        common.say("the schema above was inferred: edit it and add the data again to fix bounds and units")
    for finding in dataset.schema.check(dataset.table()) if dataset.rows <= LOOKED_AT else ():
        print(f"{finding.level}: {finding.where or dataset.name}: {finding.message}", file=sys.stderr)
    common.show({"dataset": dataset.name, "rows": dataset.rows, "digest": dataset.digest})


@app.command("infer")
def infer(source: Source) -> None:
    """Print a schema guessed from a table, to be edited."""
    from genward.data.readers import read_table
    from genward.data.schema import Schema

    found = Schema.infer(read_table(source), str(source))
    if common.settings.json:
        common.show(found.model_dump(mode="json", exclude_defaults=True))
    else:
        print(found.to_yaml(), end="")


@app.command("list")
def list_() -> None:
    """List data sets."""
    common.show(common.open_platform().datasets(), "data sets")


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="Name or digest.")]) -> None:
    """Show a data set and its schema."""
    dataset = common.open_platform().dataset(name)
    common.show({"dataset": dataset.name, "rows": dataset.rows, "digest": dataset.digest, "parents": dataset.parents})
    common.say(dataset.schema.to_yaml())
