"""A table of short texts that fits a width without cutting a name: plain, for rich, as HTML."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from convfc.printable import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

_GAP = 2
_SHORTEST = 24
"""Characters that a column of names keeps, before other columns are left out for it."""


def fold(name: str, width: int) -> str:
    """Break a qualified name after its dots into lines, the later ones indented."""
    if "\n" in name:
        return "\n".join(fold(line, width) for line in name.split("\n"))
    lines = [""]
    for part in name.replace(".", ".\n").split("\n"):
        if lines[-1].strip() and len(lines[-1] + part) > width:
            lines.append("  ")
        lines[-1] += part
    return "\n".join(lines)


@dataclass(frozen=True)
class Column:
    """A title and a cell for every row; a column of empty cells alone is not shown."""

    title: str
    cells: tuple[str, ...]  # every line is made `printable`
    right: bool = False  # aligned to the right
    spare: int = 0  # in a table too wide, the largest is left out first; 0 is never left out

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", _printable(self.cells))

    @property
    def width(self) -> int:
        """Characters of the longest line."""
        return max(len(line) for text in (self.title, *self.cells) for line in text.split("\n"))


@dataclass(frozen=True)
class TextTable:
    """Columns, of which the first has names, and `printable` notes after them."""

    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", _printable(self.notes))

    @classmethod
    def of(
        cls,
        titles: Sequence[str],
        rows: Sequence[Sequence[str]],
        notes: tuple[str, ...],
        *,
        left: int = 1,
        spare: Mapping[str, int] | None = None,
    ) -> TextTable:
        """Return the table of these rows; the columns after the ``left`` ones are right-aligned."""
        cells = zip(*rows, strict=True) if rows else [()] * len(titles)
        columns = (
            Column(title, tuple(column), right=number >= left, spare=(spare or {}).get(title, 0))
            for number, (title, column) in enumerate(zip(titles, cells, strict=True))
        )
        return cls(tuple(columns), notes)

    def fitted(self, width: int) -> TextTable:
        """Return the table as it fits: long names are folded, then columns are left out.

        A table that is still too wide stays so: nothing is cut.
        """
        columns = [column for column in self.columns if any(column.cells)]
        left_out = []
        while columns:
            names, *others = columns
            room = width - sum(column.width + _GAP for column in others)
            shortest = min(names.width, _SHORTEST)
            spare = max(others, key=lambda column: column.spare, default=names)
            if room >= shortest or not spare.spare:
                cells = tuple(fold(cell, max(room, shortest)) for cell in names.cells)
                columns[0] = replace(names, cells=cells)
                break
            columns.remove(spare)
            left_out.append(spare.title)
        more = (f"Left out for width: {', '.join(left_out)}.",) if left_out else ()
        return TextTable(tuple(columns), (*self.notes, *more))

    def text(self, width: int) -> str:
        """Return the table as plain text of at most ``width`` characters, if it fits."""
        table = self.fitted(width)
        lines = [line for row in table._rows() for line in _lines(table.columns, row)]
        notes = [textwrap.fill(note, width, break_long_words=False) for note in table.notes]
        return "\n".join([*lines, *[""] * bool(lines), *notes])

    def html(self) -> str:
        """Return the table as HTML; every text is escaped."""
        shown = TextTable(tuple(column for column in self.columns if any(column.cells)))
        lines = ""
        for number, row in enumerate(shown._rows()):
            tag, cells = "td" if number else "th", ""
            for column, cell in zip(shown.columns, row, strict=True):
                side = "right" if column.right else "left"
                cells += f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
            lines += f"<tr>{cells}</tr>"
        notes = "".join(f"<div>{html.escape(note)}</div>" for note in self.notes)
        return f"<div><table>{lines}</table>{notes}</div>"

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Draw the table as wide as the console; only a program that has rich asks for it."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        fitted = self.fitted(options.max_width)
        if fitted.columns:
            table = Table(
                box=box.SIMPLE_HEAD,
                show_edge=False,
                pad_edge=False,
                header_style="bold",
                padding=(0, _GAP - 1, 0, 0),
            )
            for number, column in enumerate(fitted.columns):
                table.add_column(
                    column.title,
                    justify="right" if column.right else "left",
                    style="" if number else "cyan",
                    no_wrap=True,
                    overflow="fold",
                )
            for row in fitted._rows()[1:]:
                table.add_row(*(Text(cell, "red" * cell.startswith("no ")) for cell in row))
            yield table
            yield ""
        for note in fitted.notes:
            yield Text(note)

    def _rows(self) -> list[tuple[str, ...]]:
        """Return the titles and the cells, row by row."""
        return list(zip(*((c.title, *c.cells) for c in self.columns), strict=True))


def _printable(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return texts with every line printable; that they have lines is the table's own layout."""
    return tuple("\n".join(map(printable, text.split("\n"))) for text in texts)


def _lines(columns: tuple[Column, ...], row: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of one row of cells."""
    for parts in zip_longest(*(cell.split("\n") for cell in row), fillvalue=""):
        aligned = (
            part.rjust(column.width) if column.right else part.ljust(column.width)
            for column, part in zip(columns, parts, strict=True)
        )
        yield (" " * _GAP).join(aligned).rstrip()
