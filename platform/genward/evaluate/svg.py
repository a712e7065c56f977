"""Pictures of a report as SVG text: no script, no font, no address outside the file. Each has a title and a
description that says in words what it shows, and no difference is told by colour alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import count
from typing import Any

_ids = count()


def picture(width: int, height: int, title: str, description: str, body: str) -> str:
    """An image with its words."""
    one = next(_ids)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="t{one} d{one}">'
        f'<title id="t{one}">{escape(title)}</title><desc id="d{one}">{escape(description)}</desc>{body}</svg>'
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def number(value: float) -> str:
    """Three digits, without an exponent where it can be."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    if 1e3 <= abs(value) < 1e5:
        return f"{value:,.0f}"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e3 else f"{value:.1e}"


def histogram(column: Mapping[str, Any]) -> str:
    """One column: real as a filled area, synthetic as a dashed outline."""
    real, made = column["real"], column["made"]
    words = _describe(column)
    if not real:
        return picture(300, 150, column["name"], words, text(150, 80, "no value", "small", "middle"))
    top = max(*real, *made, 1e-9)
    body = [_area(real, top), _outline(made, top), '<path d="M10 120H290" class="axis"/>']
    body += _labels(column)
    return picture(300, 150, f"{column['name']}: real and synthetic", words, "".join(body))


def _steps(shares: Sequence[float], top: float) -> str:
    wide = 280 / len(shares)
    corners = (f"V{120 - 105 * share / top:.1f}H{10 + wide * (i + 1):.1f}" for i, share in enumerate(shares))
    return "M10 120" + "".join(corners) + "V120"


def _area(shares: Sequence[float], top: float) -> str:
    return f'<path d="{_steps(shares, top)}Z" class="real"/>'


def _outline(shares: Sequence[float], top: float) -> str:
    return f'<path d="{_steps(shares, top)}" class="made"/>'


def _labels(column: Mapping[str, Any]) -> list[str]:
    if "edges" in column:
        low, high = column["edges"][0], column["edges"][-1]
        middle = column["edges"][len(column["edges"]) // 2]
        ends = [text(10, 136, number(low), "small"), text(150, 136, number(middle), "small", "middle")]
        return [*ends, text(290, 136, number(high), "small", "end")]
    wide = 280 / len(column["labels"])
    if wide < 30:
        return [text(10, 136, f"{len(column['labels'])} categories, the commonest first", "small")]
    most = int(wide / 5.5)
    return [
        text(10 + wide * (i + 0.5), 136, word if len(word) <= most else word[: most - 1] + "…", "small", "middle")
        for i, word in enumerate(column["labels"])
    ]


def _describe(column: Mapping[str, Any]) -> str:
    gaps = "gaps: real {:.1%}, synthetic {:.1%}".format(*column["gaps"])
    if "value" not in column:
        return gaps
    near = "" if column.get("reference") is None else f", real from real {column['reference']:.3f}"
    return f"distance {column['value']:.3f}{near}; {gaps}"


def forest(claims: Sequence[Mapping[str, Any]]) -> str:
    """Each measured claim between 0 and 1: a bar for the interval, a dot for the figure, a ring for real rows."""
    shown = [c for c in claims if c["value"] is not None and 0 <= c["value"] <= 1]
    height = 30 + 26 * len(shown)
    ticks = "".join(
        f'<path d="M{_at(t):.1f} 8V{height - 22}" class="grid"/>{text(_at(t), height - 6, f"{t:g}", "small", "middle")}'
        for t in (0, 0.25, 0.5, 0.75, 1)
    )
    rows = "".join(_row(claim, 22 + 26 * i) for i, claim in enumerate(shown))
    said = "; ".join(f"{c['claim']} {c['value']:.3f}" for c in shown)
    return picture(640, height, "Every figure with its 95 % interval", said, ticks + rows)


def _at(share: float) -> float:
    return 190 + 430 * min(1.0, max(0.0, share))


def _row(claim: Mapping[str, Any], y: int) -> str:
    low, high = claim["low"], claim["high"]
    bar = "" if low is None else f'<path d="M{_at(low):.1f} {y}H{_at(high):.1f}" class="bar"/>'
    real = claim["reference"]
    ring = "" if real is None else f'<circle cx="{_at(real):.1f}" cy="{y}" r="6" class="ring"/>'
    dot = f'<circle cx="{_at(claim["value"]):.1f}" cy="{y}" r="3.5" class="dot"/>'
    return text(180, y + 4, claim["claim"], "label", "end") + bar + ring + dot


def matrix(names: Sequence[str], values: Sequence[Sequence[float | None]], title: str, most: float) -> str:
    """A square of cells, from blue (-most) over nothing (0) to orange (most); a cell's title says its figure."""
    n, side = len(names), 22
    left = 150
    cells = [
        _cell(left + side * j, 6 + side * i, side, value, most, f"{names[i]}, {names[j]}")
        for i, row in enumerate(values)
        for j, value in enumerate(row)
        if value is not None
    ]
    rows = [text(left - 6, 6 + side * (i + 0.7), _short(name, 24), "small", "end") for i, name in enumerate(names)]
    columns = [
        f'<g transform="translate({left + side * (j + 0.7):.0f} {12 + side * n}) rotate(-45)">'
        f"{text(0, 4, _short(name, 22), 'small', 'end')}</g>"
        for j, name in enumerate(names)
    ]
    worst = max(
        ((abs(v), i, j) for i, row in enumerate(values) for j, v in enumerate(row) if v is not None), default=None
    )
    said = "nothing to show" if worst is None else f"largest: {names[worst[1]]} and {names[worst[2]]}, {worst[0]:.3f}"
    return picture(left + side * n + 10, side * n + 110, title, said, "".join([*cells, *rows, *columns]))


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _cell(x: float, y: float, side: int, value: float, most: float, names: str) -> str:
    share = min(1.0, abs(value) / most) if most else 0.0
    kind = "hot" if value > 0 else "cold"
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{side - 1}" height="{side - 1}" class="{kind}" '
        f'fill-opacity="{share:.2f}"><title>{escape(names)}: {value:.3f}</title></rect>'
    )


def distances(made: Sequence[float], real: Sequence[float]) -> str:
    """Cumulated distances to the nearest training row: a synthetic curve above the real one is memory."""
    far = max(made[-2], real[-2], 1e-9)
    curves = "".join(
        f'<path d="{_curve(values, far)}" class="{kind}"/>' for values, kind in ((real, "curve"), (made, "made"))
    )
    ticks = "".join(text(40 + 560 * t, 226, number(far * t), "small", "middle") for t in (0, 0.25, 0.5, 0.75, 1))
    sides = "".join(text(34, 14 + 190 * (1 - t), f"{100 * t:.0f} %", "small", "end") for t in (0, 0.5, 1))
    said = f"median distance: synthetic {made[50]:.3g}, held-out {real[50]:.3g}"
    said = f"{said}; 5 % are below {made[5]:.3g} and {real[5]:.3g}"
    frame = '<path d="M40 10V204H600" class="axis"/>'
    return picture(640, 236, "Distance to the nearest training row", said, frame + curves + ticks + sides)


def _curve(values: Sequence[float], far: float) -> str:
    points = (f"{40 + 560 * min(1.0, v / far):.1f} {204 - 1.9 * i:.1f}" for i, v in enumerate(values))
    return "M" + "L".join(points)
