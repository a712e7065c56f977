"""docs/api.md is true: its examples run, in order, from an empty folder to a refused key."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "api.md").read_text()
    names = {"EXAMPLES": str(ROOT / "examples" / "data")}
    example = doctest.DocTestParser().get_doctest(text, names, "docs/api.md", "docs/api.md", 0)
    report: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert result.failed == 0, "".join(report)
    assert result.attempted > 15
