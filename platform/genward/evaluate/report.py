"""The report as one HTML file that needs nothing else: no script, no font, no address outside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from genward.contracts import Evidence
from genward.evaluate import svg
from genward.evaluate.claims import ABOUT
from genward.evaluate.summary import summary

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--paper:#fff;--line:#d0d7de;--real:#1f6fb2;--made:#b8480b}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa4af;--paper:#12161b;--line:#3a424b;--real:#6cb2f0;
--made:#ff9d5c}}
*{box-sizing:border-box}body{margin:0 auto;padding:1.5rem;max-width:72rem;font:16px/1.5 system-ui,sans-serif;
color:var(--ink);background:var(--paper)}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3rem}h2{font-size:1.25rem;margin:2.2rem 0 .5rem;padding-top:.6rem;
border-top:1px solid var(--line)}h3{font-size:1rem;margin:.2rem 0;overflow-wrap:anywhere}
p,li{max-width:46rem}.soft,figcaption,caption{color:var(--soft);font-size:.9rem}
pre{white-space:pre-wrap;padding:.8rem;border:1px solid var(--line);border-radius:6px;font-size:.85rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}
caption{text-align:left;padding-bottom:.4rem}th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;
border-bottom:1px solid var(--line)}th .soft{font-weight:400}
td.figure{font-variant-numeric:tabular-nums;white-space:nowrap}
figure{margin:0}.grid-of{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:1rem 1.5rem}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:1.5rem}svg{width:100%;height:auto}
.key svg{width:2.6rem;height:.9rem;vertical-align:middle}
svg text{fill:var(--ink);font-size:12px;font-family:system-ui,sans-serif}
svg text.small{font-size:10.5px;fill:var(--soft)}
.real{fill:var(--real);fill-opacity:.35;stroke:none}.made{fill:none;stroke:var(--made);stroke-width:2;
stroke-dasharray:5 2}.curve{fill:none;stroke:var(--real);stroke-width:2}.axis{fill:none;stroke:var(--soft)}
.grid{stroke:var(--line)}.bar{stroke:var(--made);stroke-width:5;stroke-linecap:round;opacity:.45}
.dot{fill:var(--made)}.ring{fill:none;stroke:var(--real);stroke-width:2}.hot{fill:var(--made)}.cold{fill:var(--real)}
rect{stroke:var(--line);stroke-width:.5}
@media print{.grid-of{grid-template-columns:repeat(3,1fr)}figure{break-inside:avoid}}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def html(report: Mapping[str, Any]) -> str:
    """The page of a `document`; whatever stands in a table, a name or a category is text and nothing else."""
    title = f"Quality of {report['about'].get('name', 'synthetic rows')}"
    parts = (_head, _words, _figures, _columns, _pairs, _memory, _rules, _methods)
    body = "\n".join(part(report) for part in parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _head(report: Mapping[str, Any]) -> str:
    told = [f"{escape(str(key))}: {escape(str(value))}" for key, value in report["about"].items() if key != "name"]
    return (
        f'<p class="soft">{" · ".join([*told, "measured " + escape(report["created"])])}</p>\n'
        "<p>Held-out rows, which training never saw, judge the synthetic ones. Beside every figure stands the same "
        "figure with real rows in the place of the synthetic: that is as good as it gets, and what chance alone "
        "does.</p>"
    )


def evidence(report: Mapping[str, Any]) -> list[Evidence]:
    """The claims of a document."""
    return [Evidence(**claim) for claim in report["claims"]]


def _words(report: Mapping[str, Any]) -> str:
    lines = "\n".join(line.strip() for line in summary(evidence(report)))
    return f'<h2 id="short">In short</h2>\n<pre>{escape(lines)}</pre>'


def _figures(report: Mapping[str, Any]) -> str:
    rows = "".join(_claim_row(claim) for claim in report["claims"])
    head = "".join(f'<th scope="col">{name}</th>' for name in ("claim", "figure", "95 % interval", "real rows", "rows"))
    return (
        f'<h2 id="figures">All figures</h2>\n<figure>{svg.forest(report["claims"])}<figcaption>Dot: the figure; bar: '
        "its 95 % interval; ring: real rows in the place of the synthetic.</figcaption></figure>\n"
        f'<div class="wide"><table><caption>What each figure means is said below it; how it was measured, at the '
        f"end.</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _claim_row(claim: Mapping[str, Any]) -> str:
    value = "not measured" if claim["value"] is None else svg.number(claim["value"])
    span = "" if claim["low"] is None else f"{svg.number(claim['low'])} to {svg.number(claim['high'])}"
    real = "" if claim["reference"] is None else svg.number(claim["reference"])
    cells = "".join(f'<td class="figure">{cell}</td>' for cell in (value, span, real, f"{claim['n']:,}"))
    said = escape(ABOUT.get(claim["claim"], ""))
    why = f"<br><strong>{escape(claim['method'])}</strong>" if claim["value"] is None else ""
    name = escape(claim["claim"])
    return f'<tr><th scope="row">{name}<br><span class="soft">{said}{why}</span></th>{cells}</tr>'


def _columns(report: Mapping[str, Any]) -> str:
    figures = "".join(_column(column) for column in report["columns"])
    key = (
        '<p class="key"><svg viewBox="0 0 40 12" aria-hidden="true"><rect class="real" width="40" height="12"/></svg> '
        'real, held out &nbsp; <svg viewBox="0 0 40 12" aria-hidden="true"><path class="made" d="M0 6H40"/></svg> '
        "synthetic. The columns that are farthest apart come first; values beyond the axis are in the outer bars.</p>"
    )
    return f'<h2 id="columns">Columns</h2>\n{key}<div class="grid-of">{figures}</div>'


def _column(column: Mapping[str, Any]) -> str:
    told = "" if "value" not in column else f"distance {svg.number(column['value'])}"
    real = column.get("reference")
    told += "" if real is None else f", real from real {svg.number(real)}"
    gaps = "gaps {:.1%} real, {:.1%} synthetic".format(*column["gaps"]) if any(column["gaps"]) else ""
    bent = "long tails: the axis is bent" if column.get("scale") == "asinh" else ""
    caption = "; ".join(part for part in (told, gaps, bent) if part)
    unit = f' <span class="soft">{escape(column["unit"])}</span>' if column["unit"] else ""
    return (
        f"<figure><h3>{escape(column['name'])}{unit}</h3>{svg.histogram(column)}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _pairs(report: Mapping[str, Any]) -> str:
    names, excess = report["pairs"]["names"], report["pairs"]["excess"]
    known = [v for row in excess for v in row if v is not None]
    if not known:
        return ""
    most = max(0.1, *(abs(v) for v in known))
    told = report["correlations"]
    figures = [
        f"<figure>{svg.matrix(names, excess, 'Pairs: distance beyond that of real rows', most)}<figcaption>Pairs of "
        f"columns: distance beyond that of real rows. Full colour is {svg.number(most)}.</figcaption></figure>"
    ]
    if len(told["names"]) > 1:
        gap = [
            [_less(m, r) for m, r in zip(*rows, strict=True)] for rows in zip(told["made"], told["real"], strict=True)
        ]
        figures.append(
            f"<figure>{svg.matrix(told['names'], gap, 'Rank correlations: synthetic less real', 0.5)}<figcaption>Rank "
            "correlations: synthetic less real. Full colour is 0.5.</figcaption></figure>"
        )
    return f'<h2 id="pairs">Pairs of columns</h2>\n<div class="two">{"".join(figures)}</div>{_worst(report["claims"])}'


def _less(made: float | None, real: float | None) -> float | None:
    return None if made is None or real is None else made - real


def _worst(claims: Sequence[Mapping[str, Any]]) -> str:
    worst = next((list(claim["extra"].get("worst", ())) for claim in claims if claim["claim"] == "pairs"), list[Any]())
    items = "".join(f"<li>{escape(a)} and {escape(b)}: {svg.number(excess)}</li>" for a, b, excess in worst)
    return f"<p>Farthest beyond real rows:</p><ol>{items}</ol>" if items else ""


def _memory(report: Mapping[str, Any]) -> str:
    told = report["closeness"]
    if not told:
        return ""
    return (
        '<h2 id="memory">Are they training rows again?</h2>\n<figure>'
        f"{svg.distances(told['made'], told['real'])}<figcaption>Share of rows (upwards) that lie within a distance "
        "(to the right) of their nearest training row. Line: held-out; dashed: synthetic. A dashed line above the "
        "other near the left edge is memory.</figcaption></figure>"
    )


def _rules(report: Mapping[str, Any]) -> str:
    told = next((claim for claim in report["claims"] if claim["claim"] == "rules_violated"), None)
    if told is None or told["value"] is None:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(rule)}</th><td class="figure">{_percent(by["value"])}</td>'
        f'<td class="figure">{_percent(by["reference"])}</td></tr>'
        for rule, by in told["extra"].get("by", {}).items()
    )
    table = (
        '<table><thead><tr><th scope="col">rule</th><th scope="col">broken by</th><th scope="col">real rows</th></tr>'
        f"</thead><tbody>{rows}</tbody></table>"
    )
    return f'<h2 id="rules">Rules of the schema</h2>\n{table if rows else "<p>No row breaks any of them.</p>"}'


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _methods(report: Mapping[str, Any]) -> str:
    items = "".join(
        f"<dt><strong>{escape(claim['claim'])}</strong></dt><dd>{escape(claim['method'])}</dd>"
        for claim in report["claims"]
    )
    return f'<h2 id="methods">How it was measured</h2>\n<dl>{items}</dl>'
