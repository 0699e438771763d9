"""Tables for people: boxed and aligned on a terminal, tab-separated with bare numbers when piped."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from metering.clock import instant
from metering.money import credits_of, usd
from metering.reports import Entry, RequestReport, Sums, UsageReport

Cell = str | int | None
"""An int is shown with separators on a terminal, and right-aligned; None is empty."""

UNBOUNDED_COLUMNS = 10_000
_NUMBER = re.compile(r"x?-?[\d.,/]+|\*|hard|soft")
"""Cells of a right-aligned column: numbers, factors, and what stands among the limits of plans."""
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT[\d:]+Z")
"""Where width is short, other columns fold first."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under named columns. `total` stands apart at the end; `note` is said instead of an empty table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    total: Sequence[Cell] | None = None
    note: str = "nothing to show"
    left_out_first: Sequence[str] = ()
    """Columns that a terminal which is too narrow for all does without, in this order."""

    def print_on(self, console: Console) -> None:
        """On a terminal, within its width."""
        if not self.rows:
            console.print(Text(f"{self.title}: {self.note}"))
            return
        names = list(self.columns)
        dispensable = iter(self.left_out_first)
        unbounded = console.options.update(width=UNBOUNDED_COLUMNS)  # measured within its width, all fits
        while console.measure(table := self._as_rich(names), options=unbounded).maximum > console.width:
            if (name := next(dispensable, None)) is None:
                break
            names.remove(name)
        console.print(table)

    def _as_rich(self, names: Sequence[str]) -> RichTable:
        kept = [self.columns.index(name) for name in names]
        table = RichTable(
            title=Text(self.title),
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        shown = [*self.rows, *([self.total] if self.total else [])]
        for index in kept:
            cells = [row[index] for row in shown if row[index] is not None]
            is_numeric = all(map(_is_number, cells))
            name = self.columns[index]
            table.add_column(
                Text(name.replace(" ", "\n") if is_numeric else name),
                justify="right" if is_numeric else "left",
                overflow="fold",
                no_wrap=bool(cells) and all(_INSTANT.fullmatch(str(cell)) for cell in cells),
            )
        for row in self.rows:
            table.add_row(*(_as_text(row[index]) for index in kept))
        if self.total:
            table.add_section()
            table.add_row(*(_as_text(self.total[index]) for index in kept), style="bold")
        return table

    def as_lines(self) -> list[str]:
        """For a pipe: the names, then the rows, without the total."""
        return ["\t".join(self.columns), *("\t".join(map(_bare, row)) for row in self.rows)]


def printable(text: str) -> str:
    """Text from elsewhere (labels, models) without what a terminal would obey or a line would break at."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def to_the_second(at_ms: int) -> str:
    """An instant as people read it in a table; JSON has the milliseconds."""
    return instant(at_ms - at_ms % 1000)


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int) or (cell is not None and bool(_NUMBER.fullmatch(cell)))


def _as_text(cell: Cell) -> Text:
    return Text(f"{cell:,}" if isinstance(cell, int) else _bare(cell))


def _bare(cell: Cell) -> str:
    return "" if cell is None else printable(str(cell))


# --- the ledger's -------------------------------------------------------------------------------------

_TOKEN_NAMES = ("input", "cache read", "cache write", "output")


def _tokens(counted: Entry | Sums) -> tuple[int, int, int, int]:
    return (
        counted.input_tokens,
        counted.cache_read_tokens,
        counted.cache_write_tokens,
        counted.output_tokens,
    )


def entries_table(entries: Sequence[Entry], *, title: str = "Ledger") -> Table:
    """Rows of the ledger, one line each."""
    return Table(
        title,
        ("seq", "at", "user", "kind", "model", "outcome", "basis", *_TOKEN_NAMES, "cost USD"),
        [
            (
                str(entry.seq),
                to_the_second(entry.at_ms),
                entry.user_id,
                entry.kind,
                entry.model or entry.operation,
                entry.outcome,
                entry.basis,
                *_tokens(entry),
                usd(entry.cost_nanousd),
            )
            for entry in entries
        ],
        note="no entries yet",
        left_out_first=("seq", "basis", "cache write", "cache read", "outcome"),
    )


def request_table(report: RequestReport) -> Table:
    """A request's reservation, a line per fact."""
    return Table(
        f"Request {report.request_id}",
        ("fact", "value"),
        [
            ("at", instant(report.at_ms)),
            ("resolved at", None if report.resolved_at_ms is None else instant(report.resolved_at_ms)),
            ("state", report.state),
            ("user", report.user_id),
            ("gateway token", report.token_id),
            ("surface", report.surface),
            ("operation", report.operation),
            ("model", report.model),
            ("held USD", usd(report.hold_nanousd)),
            ("checkpoint USD", usd(report.checkpoint_nanousd)),
            ("worker", report.worker_id),
        ],
    )


def entry_line(entry: Entry) -> str:
    """One row of the ledger for somebody who watches it grow."""
    read = (entry.input_tokens, entry.cache_read_tokens, entry.cache_write_tokens)
    words = (
        instant(entry.at_ms),
        entry.user_id,
        f"{entry.kind}/{entry.basis}",
        entry.model or entry.operation or "-",
        entry.outcome or "-",
        "in " + "+".join(map(str, read)),
        f"out {entry.output_tokens}",
        f"USD {usd(entry.cost_nanousd)}",
        entry.request_id or "-",
    )
    return "  ".join(map(printable, words))


def usage_table(report: UsageReport) -> Table:
    """What a user used, a line per group, and the sum."""
    names = [name.replace("_", " ") for name in report.named(("",) * len(report.by))]
    return Table(
        f"Usage of {report.user_id} from {instant(report.period.from_ms)} to {instant(report.period.to_ms)}",
        (*names, "requests", "estimated", "not sent", *_TOKEN_NAMES, "credits", "cost USD"),
        [(*report.named(key).values(), *_sums_cells(sums)) for key, sums in report.groups.items()],
        ("total", *("" for _ in names[1:]), *_sums_cells(report.total)),
        note="nothing was used",
        left_out_first=[
            *("not sent", "credits", "cache write", "cache read", "estimated"),
            *(name for name in names if name == "token prefix"),
        ],
    )


def _sums_cells(sums: Sums) -> tuple[Cell, ...]:
    return (
        sums.requests,
        sums.estimated,
        sums.not_sent,
        *_tokens(sums),
        credits_of(sums.cost_nanousd),
        usd(sums.cost_nanousd),
    )
