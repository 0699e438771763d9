"""The demo's page: headings, facts, commands, and text that appears as it streams. Plain when it is piped."""

import os
import re

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

INDENT_CHARS, LABEL_CHARS = 4, 9
COLUMNS_MAX, COLUMNS_PIPED = 120, 100


class Page:
    """Standard output, at most COLUMNS_MAX wide."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False)
        is_unknown = not self.console.is_terminal and "COLUMNS" not in os.environ
        self.console.width = COLUMNS_PIPED if is_unknown else min(self.console.width, COLUMNS_MAX)
        self._headings = 0

    def heading(self, title: str) -> None:
        self._headings += 1
        self.console.print()
        self.console.print(f"{self._headings:>{INDENT_CHARS - 2}}. {title}", style="bold cyan")

    def say(self, text: str = "", *, style: str = "") -> None:
        self._indented(Text(text, style))

    def fact(self, label: str, text: str, *, style: str = "") -> None:
        """A label and what there is to say, each in a column of its own."""
        grid = Table.grid()
        grid.add_column(width=LABEL_CHARS)
        grid.add_column(overflow="fold")
        grid.add_row(Text(label, "dim"), Text(text, style))
        self._indented(grid)

    def table(self, table: Table) -> None:
        """A table, indented as far as there is room."""
        spare = self.console.width - Measurement.get(self.console, self.console.options, table).maximum
        self.console.print(Padding(table, (0, 0, 0, max(0, min(spare, INDENT_CHARS))), expand=False))

    def paste(self, line: str) -> None:
        """What a person would type."""
        self.verbatim(line, style="green")

    def verbatim(self, line: str, *, style: str = "") -> None:
        """A line that is never wrapped, so that it can be copied."""
        self.console.print(Text(" " * INDENT_CHARS + line, style), soft_wrap=True)

    def stream(self, label: str) -> "Stream":
        return Stream(self.console, label)

    def _indented(self, thing: RenderableType) -> None:
        self.console.print(Padding(thing, (0, 0, 0, INDENT_CHARS), expand=False))


class Stream:
    """Text that appears piece by piece beside its label, wrapped between words and at its own line breaks. Nothing until
    it begins."""

    def __init__(self, console: Console, label: str) -> None:
        self._console = console
        self._label = label
        self._column = 0

    def write(self, text: str) -> None:
        """A piece, visible at once."""
        if not self._column:
            self._put(" " * INDENT_CHARS + f"{self._label:<{LABEL_CHARS}}", style="dim")
        for word in re.findall(r"\s*\S+|\s+", text):
            if "\n" in word or self._column + len(word.rstrip()) > self._console.width:
                self._put("\n" + " " * (INDENT_CHARS + LABEL_CHARS))
                self._put(word.lstrip())
            else:
                self._put(word)

    def end(self) -> None:
        if self._column:
            self._put("\n")

    def _put(self, text: str, *, style: str | None = None) -> None:
        self._console.out(text, end="", style=style, highlight=False)
        self._console.file.flush()
        self._column = len(text) - 1 if text.startswith("\n") else self._column + len(text)
