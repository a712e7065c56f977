"""Evidence in a few lines for a person, each figure beside real rows in the place of the synthetic ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from genward.contracts import Evidence
from genward.evaluate.claims import CLAIMS

_WIDTH = 38
Found = Mapping[str, Evidence]


def summary(evidence: Sequence[Evidence]) -> list[str]:
    """Lines on quality; claims without a figure share one line a reason."""
    found = {item.claim: item for item in evidence}
    lines = [line for told in (_c2st, _tstr, _apart, _support, _memory, _copies, _rules) for line in told(found)]
    return lines + _silent([found[claim] for claim in CLAIMS if claim in found])


def everything(evidence: Sequence[Evidence]) -> str:
    """Quality in words, then what other policies and stages measured, a line each."""
    rest = [item for item in evidence if item.claim not in CLAIMS]
    lines = [line for item in rest for line in _line(item.claim, _plain(item))]
    return "\n".join([*summary(evidence), *lines])


def _plain(item: Evidence) -> str:
    if item.value is None:
        return item.method if item.withheld or item.method.startswith("not measured") else "not measured"
    span = "" if item.low is None or item.high is None else f" [{item.low:.4g}, {item.high:.4g}]"
    real = "" if item.reference is None else f"; real rows {item.reference:.4g}"
    return f"{item.value:.4g}{' ' + item.unit if item.unit else ''}{span}{real}"


def figure(item: Evidence, percent: bool = False) -> str:
    """A value with its interval."""
    if item.value is None:
        return "-"
    span = (
        "" if item.low is None or item.high is None else f" [{_told(item.low, percent)}, {_told(item.high, percent)}]"
    )
    return f"{_told(item.value, percent)}{span}"


def _told(value: float, percent: bool) -> str:
    if not percent:
        return f"{value:.3f}"
    digits = 0 if value in (0.0, 1.0) else 1 if value >= 0.01 else 2
    return f"{100 * value:.{digits}f} %"


def _line(title: str, text: str) -> list[str]:
    return [f"  {title:<{_WIDTH}}{text}"]


def _real(item: Evidence, percent: bool = False) -> str:
    return "" if item.reference is None else f"; real rows {_told(item.reference, percent)}"


def _c2st(found: Found) -> list[str]:
    item = found.get("c2st")
    if item is None or item.value is None:
        return []
    return _line("told from real rows by a booster", f"AUC {figure(item)}{_real(item)}; 0.5 is alike")


def _tstr(found: Found) -> list[str]:
    item, drop = found.get("tstr"), found.get("tstr_drop")
    if item is None or item.value is None:
        return []
    score, target = str(item.extra.get("score", "score")), str(item.extra.get("target", "the target"))
    of = f"{score} {figure(item)} for {_short(target)}"
    lost = "" if drop is None or drop.value is None else f"; drop {figure(drop, True)}"
    return _line("a model taught by them, on real rows", f"{of}; taught by real rows {item.reference:.3f}{lost}")


def _short(name: str, most: int = 20) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _apart(found: Found) -> list[str]:
    lines = []
    for claim, title in (("one_way", "single columns are apart by"), ("pairs", "pairs of columns are apart by")):
        item = found.get(claim)
        if item is not None and item.value is not None:
            noisy = "; against noisy counts that were paid for" if item.reference is None else ""
            lines += _line(title, f"{figure(item)}{_real(item)}{noisy}")
    return lines


def _support(found: Found) -> list[str]:
    lines = []
    for claim, title in (("coverage", "real rows they reach"), ("precision", "of them, where real rows are")):
        item = found.get(claim)
        if item is not None and item.value is not None:
            lines += _line(title, f"{figure(item, True)}{_real(item, True)}")
    return lines


def _memory(found: Found) -> list[str]:
    item = found.get("nearest_is_training")
    if item is None or item.value is None:
        return []
    return _line("nearer to training than to held-out", f"{figure(item, True)}; 50 % is no memory")


def _copies(found: Found) -> list[str]:
    item = found.get("exact_copies")
    return [] if item is None or item.value is None else _line("copies of training rows", _counted(item))


def _rules(found: Found) -> list[str]:
    item = found.get("rules_violated")
    return [] if item is None or item.value is None else _line("break a rule of the schema", _counted(item))


def _counted(item: Evidence) -> str:
    rows = item.extra.get("rows")
    head = figure(item, True) if rows is None else f"{rows:,} of {item.n:,} ({_told(item.high or 0.0, True)} at most)"
    return f"{head}{_real(item, True)}"


def _silent(items: Sequence[Evidence]) -> list[str]:
    """What has no value, by reason."""
    reasons: dict[str, list[str]] = {}
    for item in items:
        if item.value is None:
            reason = "withheld: they read protected rows" if item.withheld else item.method
            reasons.setdefault(reason, []).append(item.claim)
    return [f"  {', '.join(claims)}: {reason}" for reason, claims in reasons.items()]
