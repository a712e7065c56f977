"""The page on bundles is executed."""

from __future__ import annotations

import doctest
from pathlib import Path


def test_every_sample_of_the_page_does_what_it_says() -> None:
    page = Path(__file__).parents[2] / "docs" / "bundle.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.failed == 0
    assert result.attempted > 8
