"""Tables for a terminal, a pipe and a page: the same rows in each."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from petkit.errors import InputError
from petkit.report.rounding import significant
from petkit.report.statistics import Interval

# As the tables of the command line have it.
GAP = "   "

Cell = str | int | float | bool | Interval | None


@dataclass(frozen=True)
class Table:
    """Rows under named columns; a column whose cells are all numbers is set flush right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    note: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise InputError(f"row {number} must have {len(self.columns)} cells, got {len(row)}")

    @classmethod
    def from_records(cls, records: Sequence[Mapping[str, Cell]], title: str = "", note: str = "") -> Table:
        """Table of the records' keys in order of first appearance; a missing key is an empty cell."""
        columns = tuple(dict.fromkeys(key for record in records for key in record))
        rows = tuple(tuple(record.get(key) for key in columns) for record in records)
        return cls(columns, rows, title, note)

    def text_cells(self) -> list[list[str]]:
        """Every cell as text, by the column's format specification where one is given."""
        specifications = [self.formats.get(column, "") for column in self.columns]
        return [
            [format_cell(cell, spec) for cell, spec in zip(row, specifications, strict=True)]
            for row in self.rows
        ]

    def numeric(self) -> list[bool]:
        """Which columns hold only numbers and empty cells."""
        return [all(_is_numeric(row[index]) for row in self.rows) for index in range(len(self.columns))]

    def plain(self) -> str:
        """Aligned text without colour."""
        cells, numeric = self.text_cells(), self.numeric()
        widths = [
            max([len(column), *(len(row[index]) for row in cells)])
            for index, column in enumerate(self.columns)
        ]
        rule = "─" * (sum(widths) + len(GAP) * (len(widths) - 1))
        lines = [_aligned(self.columns, widths, numeric), rule]
        lines += [_aligned(row, widths, numeric) for row in cells]
        return "\n".join([*([self.title] if self.title else []), *lines, *([self.note] if self.note else [])])

    def rich(self) -> RichTable:
        """The same table for a colour terminal."""
        table = RichTable(
            title=self.title or None,
            caption=self.note or None,
            box=SIMPLE_HEAD,
            title_justify="left",
            show_edge=False,
            pad_edge=False,
        )
        for column, is_numeric in zip(self.columns, self.numeric(), strict=True):
            table.add_column(Text(column), justify="right" if is_numeric else "left", overflow="fold")
        for row in self.text_cells():
            # Text, not markup: a class called "[red]" must print as it is.
            table.add_row(*(Text(cell) for cell in row))
        return table

    def render(self, *, tty: bool, width: int | None = None) -> str:
        """Drawn for a terminal when `tty`, plain text otherwise."""
        if not tty:
            return self.plain()
        buffer = io.StringIO()
        Console(file=buffer, force_terminal=True, width=width).print(self.rich())
        return buffer.getvalue().rstrip("\n")

    def markdown(self) -> str:
        """The table as GitHub-flavoured Markdown, for a model card or a page of docs."""
        marks = ["---:" if is_numeric else "---" for is_numeric in self.numeric()]
        rows = [list(self.columns), marks, *self.text_cells()]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def format_cell(cell: Cell, specification: str = "") -> str:
    """One cell as text.

    Args:
        cell: text, number, Interval, or None for an empty cell.
        specification: a format specification for numbers, such as ".1%" or ","; default: thousands
            separators, and 4 significant digits of what is no integer.

    Returns:
        The text; an Interval reads "estimate ± half-width", or the estimate alone when one value gave it.

    Raises:
        ValueError: a specification that Python's format refuses.
    """
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, Interval):
        estimate = format_cell(cell.estimate, specification)
        return (
            estimate
            if math.isnan(cell.half_width)
            else f"{estimate} ± {format_cell(cell.half_width, specification)}"
        )
    if isinstance(cell, int):
        return format(cell, specification or ",")
    if isinstance(cell, float):
        return format(cell, specification) if specification else significant(cell, 4)
    return cell


def _is_numeric(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, (int, float, Interval)) and not isinstance(cell, bool))


def _aligned(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    parts = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]
    return GAP.join(parts).rstrip()


def bytes_text(count: int | float) -> str:
    """Bytes for a person.

    Args:
        count: bytes, at least 0.

    Returns:
        Text such as "512 B", "72.2 KiB" or "3.4 GiB".

    Source:
        IEC 80000-13 binary prefixes.
    """
    size, unit = float(count), "B"
    for next_unit in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, next_unit
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
