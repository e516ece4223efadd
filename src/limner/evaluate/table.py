"""The figures as a table: for people in Markdown and on the terminal, for programs in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from limner.evaluate.metrics import Estimate

if TYPE_CHECKING:
    from rich.table import Table

Kind = Literal["share", "number", "fine", "count"]


Cell = float | Estimate | None


@dataclass(frozen=True)
class Column:
    name: str
    kind: Kind = "number"  # share: in percent; number: two digits; fine: four; count: whole


@dataclass(frozen=True)
class Row:
    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Section:
    title: str
    note: str  # what was measured, and how it is defined
    columns: tuple[Column, ...] = ()
    rows: tuple[Row, ...] = ()  # none where the data cannot say


@dataclass(frozen=True)
class Report:
    facts: Mapping[str, str]
    sections: tuple[Section, ...] = field(default=())


FORMATS = {"share": "{:.1f}", "number": "{:.2f}", "fine": "{:.4f}", "count": "{:.0f}"}


def written(cell: Cell, kind: Kind) -> str:
    """A cell in words: `12.5 (10.1 to 14.9)`, or a dash for nothing."""
    if cell is None or math.isnan(cell if isinstance(cell, int | float) else cell.value):
        return "-"
    number = FORMATS[kind]
    scale = 100.0 if kind == "share" else 1.0
    if not isinstance(cell, Estimate):
        return number.format(cell * scale)
    if cell.low is None or cell.high is None:
        return number.format(cell.value * scale)
    return f"{number} ({number} to {number})".format(cell.value * scale, cell.low * scale, cell.high * scale)


def heading(column: Column) -> str:
    return f"{column.name}, %" if column.kind == "share" else column.name


def to_markdown(report: Report) -> str:
    parts = ["# Evaluation", "\n".join(f"- {name}: {value}" for name, value in report.facts.items())]
    for section in report.sections:
        parts += [f"## {section.title}", section.note]
        if section.rows:
            heads = ["", *map(heading, section.columns)]
            lines = [heads, ["---", *("---:" for _ in section.columns)]]
            lines += [[row.name.replace("|", "\\|"), *_cells(section, row)] for row in section.rows]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def _cells(section: Section, row: Row) -> list[str]:
    return [written(cell, column.kind) for cell, column in zip(row.cells, section.columns, strict=True)]


def to_json(report: Report) -> str:
    """Shares are shares here, from 0 to 1; what is not a number is null."""
    return json.dumps(_finite(asdict(report)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_rich(section: Section) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=section.title, title_justify="left", title_style="bold", box=box.SIMPLE, pad_edge=False)
    table.add_column("")
    for column in section.columns:
        table.add_column(heading(column), justify="right")
    for row in section.rows:
        table.add_row(row.name, *_cells(section, row))
    if not section.rows:
        table.caption = section.note
    return table
