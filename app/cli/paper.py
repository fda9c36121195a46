"""A sweep as a table of a paper: a row for each configuration, with mean and standard deviation over its seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

from workers.engine.reporting.short import short

Side = Literal["pruned", "ratio"]
DIGITS = 4
"""Significant digits of a column's largest mean; the others have as many decimals."""


class Child(Protocol):
    """A job of a sweep."""

    @property
    def values(self) -> Mapping[str, Any]: ...
    @property
    def verdict(self) -> str | None: ...
    @property
    def metrics(self) -> Mapping[str, Any] | None: ...


@dataclass(frozen=True)
class Column:
    """A measurement."""

    name: str
    unit: str
    higher_is_better: bool | None

    @property
    def title(self) -> str:
        return self.name if self.unit in ("", "fraction", self.name.partition("/")[0]) else f"{self.name} ({self.unit})"


@dataclass(frozen=True)
class Cell:
    mean: float
    sd: float | None
    """Of the sample; None of one value."""


@dataclass(frozen=True)
class Row:
    values: Mapping[str, Any]
    """Pointer -> value, without seeds."""
    seeds: int
    """Children that have succeeded, of `children`."""
    children: int
    cells: Sequence[Cell | None]
    verdict: str


@dataclass(frozen=True)
class Paper:
    """The table. `dense` has the dense model's values, None where there are none to show."""

    parameters: Sequence[str]
    """Pointers of what differs between rows."""
    columns: Sequence[Column]
    dense: Sequence[Cell | None]
    rows: Sequence[Row]

    @property
    def several_seeds(self) -> bool:
        return any(row.children > 1 for row in self.rows)

    @property
    def decimals(self) -> list[int]:
        """Of each column."""
        return [_decimals([cell for row in self.rows if (cell := row.cells[n])]) for n in range(len(self.columns))]

    def narrowed(self) -> Paper:
        """Without measurements that have no better direction or are the same in all rows, if others are left."""
        directed = [n for n, column in enumerate(self.columns) if column.higher_is_better is not None]
        differing = [n for n in directed if len({cell.mean for row in self.rows if (cell := row.cells[n])}) > 1]
        kept = differing or directed or range(len(self.columns))
        return replace(
            self,
            columns=[self.columns[n] for n in kept],
            dense=[self.dense[n] for n in kept],
            rows=[replace(row, cells=[row.cells[n] for n in kept]) for row in self.rows],
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters,
            "metrics": [asdict(column) for column in self.columns],
            "rows": [
                {
                    "values": row.values,
                    "seeds": row.seeds,
                    "children": row.children,
                    "verdict": row.verdict or None,
                    "metrics": {
                        column.name: cell and asdict(cell) for column, cell in zip(self.columns, row.cells, strict=True)
                    },
                }
                for row in self.rows
            ],
        }

    def best(self, number: int) -> float | None:
        """The best mean of a column, to its decimals; None where there is none, or no second one."""
        better = self.columns[number].higher_is_better
        means = [round(cell.mean, self.decimals[number]) for row in self.rows if (cell := row.cells[number])]
        return None if better is None or len(means) < 2 else (max if better else min)(means)


def is_seed(pointer: str) -> bool:
    """Whether children that differ in this field alone are one configuration."""
    return pointer.rpartition("/")[2] == "seed"


def paper(parameters: Sequence[str], children: Sequence[Child], columns: Sequence[Column], side: Side) -> Paper:
    """The table of these measurements of a sweep's children, in their order."""
    groups: dict[str, list[Child]] = {}
    for child in children:
        groups.setdefault(repr(_configuration(child)), []).append(child)
    rows = [_row(group, columns, side) for group in groups.values()]
    shown = [name for name in parameters if not is_seed(name)]
    differing = [name for name in shown if len({repr(row.values.get(name)) for row in rows}) > 1]
    return Paper(
        parameters=differing or shown,
        columns=columns,
        dense=[_dense(children, column.name) if shown and side == "pruned" else None for column in columns],
        rows=rows,
    )


def titles(parameters: Sequence[str]) -> list[str]:
    """Their last parts, or where these are not enough to tell them apart all of them."""
    last = [pointer.rpartition("/")[2] for pointer in parameters]
    return [
        name if last.count(name) == 1 else pointer[1:].replace("/", ".")
        for name, pointer in zip(last, parameters, strict=True)
    ]


def value_text(row: Row, pointer: str) -> str:
    return short(row.values[pointer]) if pointer in row.values else ""


def _configuration(child: Child) -> dict[str, Any]:
    return {pointer: value for pointer, value in child.values.items() if not is_seed(pointer)}


def _row(group: Sequence[Child], columns: Sequence[Column], side: Side) -> Row:
    verdicts = [child.verdict for child in group if child.verdict]
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    agree = len(counts) < 2
    return Row(
        values=_configuration(group[0]),
        seeds=sum(child.metrics is not None for child in group),
        children=len(group),
        cells=[_cell(group, column.name, side) for column in columns],
        verdict="".join(counts) if agree else ", ".join(f"{count} {verdict}" for verdict, count in counts.items()),
    )


def _dense(children: Sequence[Child], name: str) -> Cell | None:
    cell = _cell(children, name, "dense")
    return Cell(cell.mean, cell.sd or None) if cell else None  # measured many times, and the same each time


def _cell(children: Sequence[Child], name: str, side: Side | Literal["dense"]) -> Cell | None:
    found = [child.metrics[name] for child in children if child.metrics and name in child.metrics]
    values = [value for each in found if (value := getattr(each, side)) is not None]
    if not values:
        return None
    return Cell(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def _decimals(cells: Sequence[Cell]) -> int:
    means = [cell.mean for cell in cells]
    if all(mean.is_integer() for mean in means):
        return 0
    return max(0, DIGITS - 1 - math.floor(math.log10(max(map(abs, means)))))
