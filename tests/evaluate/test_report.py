"""The report: one file that needs nothing, says everything in words too, and takes no text for markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from genward.contracts import Evidence, Silent
from genward.data.schema import Column, Schema
from genward.evaluate import Settings, evaluate, sides_of
from genward.evaluate.drawing import document, to_json
from genward.evaluate.report import html
from genward.evaluate.summary import everything, summary

QUICK = Settings(rows=800, near=300, resamples=40, overlap="name")
EVIL = "<script>alert(1)</script>\"'&"
VOID = {"meta", "br", "rect", "path", "circle"}


class _Page(HTMLParser):
    """Checks nesting; keeps tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> _Page:
    found = _Page()
    found.feed(page)
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def report(tables: Any, schema: Schema) -> dict[str, Any]:
    found = evaluate(*tables, schema, "y", Silent(), QUICK)
    return document(sides_of(*tables, schema, QUICK), found, {"name": "alloys", "family": "vae"})


def test_the_page_is_made_from_the_json_beside_it(report: dict[str, Any]) -> None:
    again = json.loads(to_json(report))
    assert again["format"] == "genward.quality/1" and len(again["claims"]) == 13
    pictures = [re.sub(r'"[td]\d+( d\d+)?"', '""', html(source)) for source in (report, again)]
    assert pictures[0] == pictures[1]


def test_nothing_is_fetched_and_nothing_runs(report: dict[str, Any]) -> None:
    page = read(html(report))
    assert "default-src 'none'" in html(report)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.tags:
        assert not {"src", "href", "srcset", "xlink:href"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"https?://|@import|url\(", html(report))


def test_pictures_say_in_words_what_they_show(report: dict[str, Any]) -> None:
    source = html(report)
    page = read(source)
    pictures = [attributes for tag, attributes in page.tags if tag == "svg" and "aria-hidden" not in attributes]
    assert len(pictures) >= 4 + 5
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for attributes in pictures:
        assert attributes["role"] == "img" and set(attributes["aria-labelledby"].split()) <= ids
    assert all(re.findall(r"<title[^>]*>([^<]+)</title><desc[^>]*>([^<]+)</desc>", source))
    assert ("html", {"lang": "en"}) in page.tags
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")][:2] == ["h1", "h2"]
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")


def test_every_claim_column_and_method_is_told(report: dict[str, Any], schema: Schema) -> None:
    text = read(html(report)).text
    for told in [*(c["claim"] for c in report["claims"]), *(c["method"] for c in report["claims"]), *schema.names]:
        assert told in text


def test_names_and_categories_are_text() -> None:
    rng = np.random.default_rng(0)
    words = [EVIL, "b" + EVIL]
    side = pa.table({EVIL: rng.normal(size=90), "c" + EVIL: pa.array(np.array(words)[rng.integers(0, 2, 90)])})
    columns = (
        Column(name=EVIL, kind="numeric", unit=EVIL),
        Column(name="c" + EVIL, kind="categorical", categories=tuple(words)),
    )
    schema = Schema(columns=columns)
    found = evaluate(side, side, side, schema, EVIL, Silent(), QUICK)
    page = read(html(document(sides_of(side, side, side, schema, QUICK), found, {"name": EVIL, EVIL: EVIL})))
    assert "script" not in {tag for tag, _ in page.tags} and EVIL in page.text


@pytest.mark.parametrize("rows", [1, 2, 12])
def test_few_constant_and_empty_columns_are_drawn(rows: int) -> None:
    side = pa.table({"a": [1.0] * rows, "b": pa.nulls(rows, pa.float64()), "c": ["x"] * rows})
    columns = (
        Column(name="a", kind="numeric"),
        Column(name="b", kind="numeric", nullable=True),
        Column(name="c", kind="categorical", categories=("x", "y")),
    )
    schema = Schema(columns=columns)
    found = evaluate(side, side, side, schema, "a", Silent(), QUICK)
    page = read(html(document(sides_of(side, side, side, schema, QUICK), found, {})))
    assert "no value" in page.text and "nan" not in page.text.lower().split()


def test_a_wide_table_makes_a_bounded_report() -> None:
    rng = np.random.default_rng(2)
    sides = [pa.table({f"c{i}": rng.normal(size=n) for i in range(90)}) for n in (200, 150, 200)]
    schema = Schema.infer(sides[0])
    settings = Settings(rows=200, near=100, resamples=20, pairs=50)
    found = evaluate(*sides, schema, None, Silent(), settings)
    page = html(document(sides_of(*sides, schema, settings), found, {}))
    assert page.count("<h3>") == 60 and len(page) < 1_000_000


def test_the_short_text_has_a_line_a_figure_with_real_rows_beside_it(tables: Any, schema: Schema) -> None:
    found = evaluate(*tables, schema, "y", Silent(), QUICK)
    lines = summary(found)
    assert len(lines) <= 10 and all(len(line) <= 140 for line in lines)
    text = "\n".join(lines)
    assert text.count("real rows") >= 6 and "0 of 1,200" in text and "50 % is no memory" in text
    assert "AUC" in lines[0] and "0.5 is alike" in lines[0]


def test_what_has_no_figure_says_why_and_other_claims_follow() -> None:
    found = [
        Evidence("c2st", None, "withheld: it reads protected rows; the owner has it"),
        Evidence("tstr", None, "withheld: it reads protected rows; the owner has it"),
        Evidence("pairs", None, "not measured: there is one column only"),
        Evidence("epsilon", 3.0, "counted", 1, unit="nats"),
        Evidence("watermark", None, "not measured: no policy promised one"),
    ]
    text = everything(found)
    assert "c2st, tstr: withheld: they read protected rows" in text
    assert "pairs: not measured: there is one column only" in text
    assert re.search(r"epsilon +3 nats", text) and re.search(r"watermark +not measured", text)
