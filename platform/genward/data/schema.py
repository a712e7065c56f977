"""What the columns of a table are, in YAML that people read and edit.

columns:
  - {name: hardness, kind: numeric, unit: HV, minimum: 0, maximum: 2000, step: 0.1, nullable: true}
  - {name: phase, kind: categorical, categories: [bcc, fcc, hcp]}
sums:
  - {columns: [fe, cr, ni], total: 100}
rules:
  - {below: yield_strength, above: tensile_strength}
ignore: [id]

How a number is cut and spread where nothing may be taken from rows, as under a privacy policy, is declared too: evenly
between its bounds, evenly in its logarithm (`scale: log`), or by the cuts that people in its field use (`edges`).
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from genward.contracts import Finding
from genward.errors import DataError, NotFound
from genward.strictjson import canonical

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["numeric", "integer", "categorical", "boolean", "datetime"]
NUMBERS = ("numeric", "integer", "datetime")
LARGEST_STEPS = 1 << 22  # steps between the bounds that a float32 latent can tell apart, with room to spare
MOST_DIGITS = 6  # a float32 has 7.2
_LATER = {"scale": "linear", "edges": [], "outside": "refuse"}  # keys of a column that came later, and their defaults


def _bound(value: Any) -> Any:
    """YAML reads 2024-01-31 as a date; keep it as ISO text."""
    return value.isoformat() if isinstance(value, (date, datetime)) else value


Bound = Annotated[float | str | None, BeforeValidator(_bound)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Part):
    """One column. Numbers lie on a grid: `step` in the column's unit, or `digits` significant ones.

    Digits count from the column's smallest per cent of sizes: a value closer to zero keeps that absolute grid, since
    a column that crosses zero has no relative precision there.

    `scale` and `edges` (cuts between the bounds) say how a codec that takes nothing from rows spreads the column;
    `outside: clip` lets a reader put a value beyond a bound on it, row by row, where it would refuse the file.
    """

    name: str = Field(min_length=1)
    kind: Kind
    unit: str = ""
    minimum: Bound = None
    maximum: Bound = None
    step: float | None = Field(None, gt=0, allow_inf_nan=False)
    digits: int | None = Field(None, ge=1)
    scale: Literal["linear", "log"] = "linear"
    edges: tuple[Bound, ...] = ()
    outside: Literal["refuse", "clip"] = "refuse"
    categories: tuple[str, ...] = ()
    nullable: bool = False
    description: str = ""

    @field_validator("categories", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        """YAML reads `1` and `yes` as a number and a truth; a category is its text."""
        return [_word(item) for item in value] if isinstance(value, (list, tuple)) else value

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.kind == "categorical" and not self.categories:
            raise ValueError(f"{self.name}: a categorical column lists its categories")
        if self.kind not in ("categorical",) and self.categories:
            raise ValueError(f"{self.name}: only categorical columns have categories")
        if len(set(self.categories)) < len(self.categories):
            raise ValueError(f"{self.name}: a category stands twice")
        if self.kind not in NUMBERS and (self.step or self.digits or self.minimum is not None or self._spread):
            raise ValueError(f"{self.name}: a {self.kind} column has no bounds, step, digits, scale or edges")
        if self.step and self.digits:
            raise ValueError(f"{self.name}: give step or digits, not both")
        return self._spreads()._fits()

    @property
    def _spread(self) -> bool:
        return self.scale != "linear" or bool(self.edges) or self.outside != "refuse"

    def _spreads(self) -> Self:
        """Refuse a scale, edges or clipping that the bounds do not go with."""
        low, high = self.bounds
        if self.scale == "log" and (low is None or high is None or low <= 0):
            raise ValueError(f"{self.name}: scale log needs a maximum, and a minimum above 0")
        if self.scale == "log" and self.edges:
            raise ValueError(f"{self.name}: give a scale or edges, not both")
        if self.outside == "clip" and low is None and high is None:
            raise ValueError(f"{self.name}: outside: clip needs a minimum or a maximum")
        cuts = self.cuts
        if cuts and (low is None or high is None or not all(a < b for a, b in itertools.pairwise((low, *cuts, high)))):
            raise ValueError(f"{self.name}: edges rise, between minimum and maximum and without them")
        return self

    def _fits(self) -> Self:
        """Refuse a precision that a float32 latent cannot hold."""
        low, high = self.bounds
        if low is not None and high is not None and low > high:
            raise ValueError(f"{self.name}: minimum {self.minimum} is above maximum {self.maximum}")
        if self.digits and self.digits > MOST_DIGITS:
            raise ValueError(f"{self.name}: digits {self.digits} is more than the graph can hold; write {MOST_DIGITS}")
        if low is not None and high is not None and (high - low) / self.grid > LARGEST_STEPS and not self.digits:
            coarse = (high - low) / LARGEST_STEPS
            raise ValueError(f"{self.name}: step {self.grid:g} is finer than the graph can hold; write {coarse:.1g}")
        return self

    @property
    def is_number(self) -> bool:
        return self.kind in NUMBERS

    @property
    def grid(self) -> float:
        """The absolute step; 1 for integers and seconds, next to nothing when none was declared."""
        if self.step:
            return self.step
        return 1.0 if self.kind in ("integer", "datetime") else 1e-300

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """Minimum and maximum as numbers, datetimes as seconds since the epoch."""
        return self._number(self.minimum), self._number(self.maximum)

    @property
    def cuts(self) -> tuple[float, ...]:
        """The edges as numbers."""
        return tuple(float(number) for edge in self.edges if (number := self._number(edge)) is not None)

    def _number(self, bound: float | str | None) -> float | None:
        if bound is None or isinstance(bound, float):
            return bound
        if self.kind != "datetime":
            return float(bound)
        moment = datetime.fromisoformat(bound)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class SumGroup(_Part):
    """Columns that add up to a total, for example a composition in atomic per cent."""

    columns: tuple[str, ...] = Field(min_length=2)
    total: float = 100.0
    tolerance: float = Field(0.5, gt=0)


class Order(_Part):
    """A pair of number columns of which one is never above the other; where either is missing, nothing is said."""

    below: str
    above: str


class Schema(_Part):
    """The columns of a table in order, the sums and orders that hold, and columns of the file that are left out."""

    columns: tuple[Column, ...] = Field(min_length=1)
    sums: tuple[SumGroup, ...] = ()
    rules: tuple[Order, ...] = ()
    ignore: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        names = [column.name for column in self.columns]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"columns stand twice: {', '.join(sorted(twice))}")
        for group in self.sums:
            for name in group.columns:
                if name not in names or self.column(name).kind not in ("numeric", "integer"):
                    raise ValueError(f"sums: {name!r} is no numeric column")
        for rule in self.rules:
            self._require_ordered(rule)
        return self

    def _require_ordered(self, rule: Order) -> None:
        """Refuse a pair that has no order: not two number columns, or a time and a number."""
        pair = (rule.below, rule.above)
        kinds = [column.kind for name in pair for column in self.columns if column.name == name and column.is_number]
        if len(kinds) < 2 or rule.below == rule.above:
            raise ValueError(f"rules: {pair[0]!r} and {pair[1]!r} are not two number columns")
        if kinds.count("datetime") == 1:
            raise ValueError(f"rules: of {pair[0]!r} and {pair[1]!r} one is a time and one is none")

    @classmethod
    def from_yaml(cls, text: str, where: str = "schema") -> Schema:
        """Read a schema; DataError names the column and what is wrong with it."""
        try:
            return cls.model_validate(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise DataError(f"not YAML: {' '.join(str(error).split())}", where=where) from None
        except (ValidationError, RecursionError, OverflowError) as error:
            raise _explain(error, where) from None

    def to_yaml(self) -> str:
        """YAML that `from_yaml` reads back to the same schema, one column a line."""
        lines = ["columns:"]
        lines += [f"  - {_flow(column.model_dump(exclude_defaults=True, mode='json'))}" for column in self.columns]
        if self.sums:
            lines += ["sums:", *(f"  - {_flow(group.model_dump(mode='json'))}" for group in self.sums)]
        if self.rules:
            lines += ["rules:", *(f"  - {_flow(rule.model_dump(mode='json'))}" for rule in self.rules)]
        if self.ignore:
            lines.append(f"ignore: {_flow(list(self.ignore))}")
        return "\n".join(lines) + "\n"

    @property
    def digest(self) -> str:
        """SHA-256; keys that came later count where they are given, so that an older schema keeps its digest."""
        plain = self.model_dump(mode="json")
        plain["columns"] = [{k: v for k, v in c.items() if _LATER.get(k, ...) != v} for c in plain["columns"]]
        if not self.rules:
            del plain["rules"]
        return f"sha256:{hashlib.sha256(canonical(plain)).hexdigest()}"

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    def column(self, name: str) -> Column:
        """The column of that name; NotFound with the nearest one."""
        for column in self.columns:
            if column.name == name:
                return column
        near = difflib.get_close_matches(name, self.names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self.names[:12])}"
        raise NotFound(f"no column {name!r}", remedy=hint)

    @classmethod
    def infer(cls, table: pa.Table, where: str = "") -> Schema:
        """A schema guessed from a table, to be edited; see `genward.data.infer`. Errors name `where`, the file."""
        from genward.data.infer import infer

        return infer(table, where)

    def check(self, table: pa.Table) -> list[Finding]:
        """What a table of these columns shows: empty, one row, constant columns, sums that do not add up."""
        from genward.data.check import check

        return check(self, table)


def _word(item: Any) -> Any:
    if isinstance(item, bool):
        return str(item).lower()
    return str(item) if isinstance(item, (int, float)) else item


def _flow(value: Mapping[str, Any] | Sequence[Any]) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True)
    return text.strip()


def _explain(error: Exception, where: str) -> DataError:
    if not isinstance(error, ValidationError):
        return DataError(f"cannot be read: {error}", where=where)
    first = next((e for e in error.errors() if e["type"] == "extra_forbidden"), error.errors()[0])
    path = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] != "extra_forbidden":
        return DataError(f"{path}: {message}" if path else message, where=where)
    known = [*Column.model_fields, *Schema.model_fields, *SumGroup.model_fields, *Order.model_fields]
    near = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
    return DataError(f"unknown key {path!r}", where=where, remedy=f"did you mean {near[0]!r}?" if near else "remove it")
