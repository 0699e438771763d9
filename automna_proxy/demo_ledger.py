"""The demo's look into the ledger: its entries as they stand in the store, and a table of them."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from automna_proxy.demo_stage import StageError
from metering.clock import utc
from metering.money import credits_of, usd
from metering.prices import PriceTable
from metering.reports import ENTRIES_MAX, Entry, tail
from metering.store.database import Database
from metering.store.readers import Readers
from metering.usage import RECIPIENTS, SEARCHES, WEB_SEARCHES, Usage, UsageLine

SETTLED_WITHIN_S = 30.0
POLL_S = 0.01
WIDE = 400
"""Columns to measure a table in: more than any has."""

SELECT_HELD = "SELECT COUNT(*) FROM reservations WHERE state = 'HELD'"


def settled_entries(database: Database) -> list[Entry]:
    """All rows, oldest first, once nothing is held any more. Raises StageError when something stays held."""
    return asyncio.run(_settled_entries(database))


async def _settled_entries(database: Database) -> list[Entry]:
    readers = Readers(database)
    until_s = time.monotonic() + SETTLED_WITHIN_S
    try:
        while await readers.row(SELECT_HELD) != (0,):
            if time.monotonic() > until_s:
                raise StageError(f"a request was not settled within {SETTLED_WITHIN_S:g} s")
            await asyncio.sleep(POLL_S)
        return await tail(readers, ENTRIES_MAX)
    finally:
        await readers.aclose()


def counts_of(entry: Entry) -> dict[str, int]:
    """All that an entry counts, by unit, without zeros."""
    total: Counter[str] = Counter()
    for line in entry.usage:
        total.update(line["counts"])
    return {unit: count for unit, count in total.items() if count}


def cost_of(prices: PriceTable, provider: str, model: str, counts: Mapping[str, int], *, at_ms: int) -> int:
    """What the price list asks for what the vendor reported, in nano-USD."""
    return prices.price(provider, Usage((UsageLine(model, counts),)), at_ms=at_ms).cost_nanousd


# --- the table ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Column:
    """One column: its head, what stands in it, and, where sums make sense, in its last line."""

    head: str
    cell: Callable[[Entry], str | int]
    total: Callable[[Sequence[Entry]], str | int] | None = None


def _count(head: str, count: Callable[[Entry], int]) -> _Column:
    return _Column(head, count, lambda entries: sum(map(count, entries)))


def _cost(entries: Sequence[Entry]) -> int:
    return sum(entry.cost_nanousd for entry in entries)


BY_THE_PIECE = (SEARCHES, WEB_SEARCHES, RECIPIENTS)
"""What has a price each. They share a column: an entry has only one of them, and its model tells which."""
COLUMNS = (
    _Column("time UTC", lambda entry: f"{utc(entry.at_ms):%H:%M:%S}"),
    _Column("user", lambda entry: entry.user_id),
    _Column("operation", lambda entry: entry.operation or ""),
    _Column("model", lambda entry: _short(entry.model or "")),
    _count("in", lambda entry: entry.input_tokens),
    _count("cache\nread", lambda entry: entry.cache_read_tokens),
    _count("cache\nwrite", lambda entry: entry.cache_write_tokens),
    _count("out", lambda entry: entry.output_tokens),
    _count("search\nmail", lambda entry: sum(counts_of(entry).get(unit, 0) for unit in BY_THE_PIECE)),
    _Column("USD", lambda entry: usd(entry.cost_nanousd), lambda entries: usd(_cost(entries))),
    _Column(
        "credits",
        lambda entry: credits_of(entry.cost_nanousd),
        lambda entries: credits_of(_cost(entries)),
    ),
    _Column("outcome", lambda entry: (entry.outcome or "").replace("_", " ")),
    _Column("basis", lambda entry: entry.basis),
)
LAYOUTS: tuple[tuple[frozenset[str], int], ...] = (
    (frozenset(), 2),
    (frozenset(), 1),
    (frozenset({"operation"}), 2),
    (frozenset({"operation"}), 1),
    (frozenset({"operation", "time UTC"}), 1),
    (frozenset({"operation", "time UTC", "credits"}), 1),
)
"""Columns left out, and blanks between the others: from the widest table to the narrowest."""


def table_of(entries: Sequence[Entry], console: Console) -> Table:
    """The rows with their sums, as many columns as there is room for."""
    for left_out, blanks in LAYOUTS:
        table = _table(entries, [column for column in COLUMNS if column.head not in left_out], blanks)
        if Measurement.get(console, console.options.update_width(WIDE), table).maximum <= console.width:
            break
    return table


def _table(entries: Sequence[Entry], columns: Sequence[_Column], blanks: int) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, show_footer=True, padding=(0, blanks - 1, 0, 0), pad_edge=False
    )
    for column in columns:
        total = "" if column.total is None else column.total(entries)
        is_number = column.total is not None
        table.add_column(
            column.head,
            Text(_shown(total), style="bold"),
            justify="right" if is_number else "left",
            vertical="bottom",
            no_wrap=True,
        )
    for entry in entries:
        table.add_row(*(Text(_shown(column.cell(entry))) for column in columns))
    return table


def _shown(value: str | int) -> str:
    """Counts with their thousands; a zero is only a dot, so that what is not zero can be seen."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if value else "."


def _short(model: str) -> str:
    """A model's name without its family and date, as people say it."""
    return re.sub(r"^(claude|gemini)-|-\d{4}-?\d{2}-?\d{2}$", "", model)
