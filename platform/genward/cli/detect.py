"""`genward detect`: whose rows a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genward.cli import common


def detect(
    file: Annotated[Path, typer.Argument(help="CSV (also .csv.gz), Parquet or Arrow.")],
    model: Annotated[str | None, typer.Option(help="name, name:version or name@alias; else every release.")] = None,
    map: Annotated[list[str] | None, typer.Option(help="Column of the file that was renamed, old=new.")] = None,
    actor: common.As = "",
) -> None:
    """Say whether a file carries the mark of a release, and whose. Each answer is in the log."""
    from genward.detection import as_json, sentence

    platform = common.open_platform()
    renamed = {old: str(new) for old, new in common.parse_pairs(map or [], "map").items()}
    found = platform.detect(file, model, renamed, common.acting(platform, actor))
    if common.settings.json:
        common.show(as_json(found))
        return
    for one in found:
        print(sentence(one))
        for what, names in (
            ("could not be read", one.extra.get("unreadable")),
            ("other units?", one.extra.get("outside")),
        ):
            if names:
                print(f"  {what}: {', '.join(f'{n} ({names[n]})' if isinstance(names, dict) else n for n in names)}")
