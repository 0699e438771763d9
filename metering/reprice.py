"""`ledger reprice`: book what past requests cost by the price table of today, where it was corrected.

A wrong price is mended in the table; this verb carries the correction to entries made before. It compares, for
each request, what is booked (all its entries together) with what its usage costs by the table **at the time of
its report**, and appends an `adjust` for the difference. Entries are never edited; the adjust says `repriced`,
carries the usage with its new unit prices and the table's version, and moves the accounts that paid at first,
in the periods in which they did.

Each correction is one unit of work with a condition: it happens only while the reservation is booked at what
was compared. So a run may be killed anywhere, repeated, or race with another run, with requests, and with late
reports: what is booked already as the table says is left alone. The expiry's late report, too, counts from
what is booked.

Not touched:
1. what was not priced by its usage: an estimate cut to its hold or raised to its checkpoint, an entry without
   details. Nobody can say what it would cost.
2. what the table cannot price without a flag: money is not moved by a guess.
3. requests that are not resolved, were voided, or had no money account.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from metering.clock import Clock
from metering.ledger import (
    ALREADY_RESOLVED,
    CHARGED,
    COST_NANOUSD_MAX,
    INSERT_ENTRY,
    NOT_FROM_USAGE,
    REPRICED,
    correction_steps,
    decode_lines,
    encode_usage,
    with_lines,
)
from metering.prices import Priced, PricedLine, PriceTable, recompute
from metering.reports import Period, newest_seq
from metering.store.store import Store
from metering.store.writer import Done, Row, Step, Unit
from metering.usage import Usage, UsageLine
from metering.values import immutable

REPRICE_SEQS_MAX = 500
"""Entries looked at together: bounds a read, the units queued for it, and what a killed run has to repeat."""

SELECT_RESOLVED = """
SELECT e.kind, e.at_ms, e.cost_nanousd, e.usage, e.notes, e.outcome, e.basis, e.model, r.id, r.state, r.user_id,
    r.token_id, r.surface, r.operation, r.lines, r.hold_nanousd, r.booked_nanousd, r.adjusted_at_ms
FROM entries e JOIN reservations r ON r.id = e.reservation_id
WHERE e.seq > ?1 AND e.seq <= ?2 AND e.kind IN ('settle', 'expire') AND e.at_ms >= ?3 AND e.at_ms < ?4
ORDER BY e.seq"""

# By the user's index: the report has the time that the reservation says.
SELECT_REPORTS = """
SELECT kind, at_ms, cost_nanousd, usage, notes, outcome, basis, model
FROM entries WHERE user_id = ?1 AND at_ms = ?2 AND reservation_id = ?3 AND kind = 'adjust' ORDER BY seq"""

REPRICE_RESERVATION = """
UPDATE reservations SET booked_nanousd = ?3
WHERE id = ?1 AND booked_nanousd = ?2 AND COALESCE(adjusted_at_ms, -1) = ?4
RETURNING credit_nanousd"""
NEVER_ADJUSTED = -1


@dataclass(slots=True)
class Sums:
    """Of one model, or all. `entries`: compared, `changed`: those whose cost differs. Costs in nano-USD, of all
    that were compared, before and after."""

    entries: int = 0
    changed: int = 0
    old_nanousd: int = 0
    new_nanousd: int = 0

    @property
    def difference_nanousd(self) -> int:
        return self.new_nanousd - self.old_nanousd

    def add(self, old_nanousd: int, new_nanousd: int) -> None:
        self.entries += 1
        self.changed += old_nanousd != new_nanousd
        self.old_nanousd += old_nanousd
        self.new_nanousd += new_nanousd


@dataclass(slots=True)
class Repricing:
    """What a run did, or would do. `models` by the name in the entry; the other counts are of requests that
    were left as they are."""

    price_version: str
    is_dry_run: bool
    models: dict[str, Sums] = field(default_factory=dict)
    not_from_usage: int = 0
    """Their cost is no product of counts and prices, or they have no account that paid."""
    without_price: int = 0
    """The table of today would flag them."""
    changed_meanwhile: int = 0
    """Booked anew by somebody else between the look and the entry: the next run looks again."""

    @property
    def total(self) -> Sums:
        total = Sums()
        for sums in self.models.values():
            total.entries += sums.entries
            total.changed += sums.changed
            total.old_nanousd += sums.old_nanousd
            total.new_nanousd += sums.new_nanousd
        return total


async def reprice(
    store: Store,
    table: PriceTable,
    providers: Mapping[str, str],
    period: Period,
    clock: Clock,
    *,
    is_dry_run: bool = False,
) -> Repricing:
    """Correct every request that was resolved in `period`, by the table. Safe beside a running server.

    `providers`: the table's vendor for each surface. Raises Refused(STORE_UNAVAILABLE); what was appended until
    then stands, and a second run goes on from there.
    """
    result = Repricing(table.version, is_dry_run)
    newest = await newest_seq(store.readers)
    for after_seq in range(0, newest, REPRICE_SEQS_MAX):
        until_seq = min(after_seq + REPRICE_SEQS_MAX, newest)
        bounds = (after_seq, until_seq, period.from_ms, period.to_ms)
        rows = await store.readers.rows(SELECT_RESOLVED, bounds)
        corrections = [
            correction
            for row in rows
            if (correction := await _correction_of(row, store, table, providers, result)) is not None
        ]
        if is_dry_run:
            for correction in corrections:
                _count(result, correction)
        else:
            await _book(store, corrections, clock.now_ms(), result)
    return result


@immutable
class _Report:
    """The entry whose usage is what a request used."""

    kind: str
    at_ms: int
    cost_nanousd: int
    usage: str | None
    notes: str | None
    outcome: str
    basis: str
    model: str | None

    @property
    def lines(self) -> tuple[PricedLine, ...]:
        return tuple(
            PricedLine(line["model"], line["counts"], line["modifiers"], line["unit_prices"])
            for line in orjson.loads(self.usage or "[]")
        )

    def has_note(self, note: str) -> bool:
        return self.notes is not None and note in orjson.loads(self.notes)


@immutable
class _Reservation:
    """What is booked for a request, and on which accounts."""

    id: str
    state: str
    user_id: str
    token_id: str
    surface: str
    operation: str
    lines: str
    hold_nanousd: int
    booked_nanousd: int
    adjusted_at_ms: int | None

    @property
    def is_charged(self) -> bool:
        """Whether any account of money held something for it; credit never does alone."""
        return any(line.meter in CHARGED for line in decode_lines(self.lines))


@immutable
class _Correction:
    """What a request should be booked at, whether or not it is."""

    reservation: _Reservation
    report: _Report
    priced: Priced
    price_version: str

    @property
    def difference_nanousd(self) -> int:
        return self.priced.cost_nanousd - self.reservation.booked_nanousd


async def _correction_of(
    row: Row, store: Store, table: PriceTable, providers: Mapping[str, str], result: Repricing
) -> _Correction | None:
    """What the table says to one request; None, and counted, where it has nothing to say."""
    values: list[Any] = list(row)
    report, reservation = _Report(*values[:8]), _Reservation(*values[8:])
    if reservation.adjusted_at_ms is not None:
        report = await _late_report(store, reservation)
    provider = providers.get(reservation.surface)
    if provider is None or not reservation.is_charged or not _is_from_usage(report, reservation.hold_nanousd):
        result.not_from_usage += 1
        return None
    usage = Usage(tuple(UsageLine(line.model, line.counts, line.modifiers) for line in report.lines))
    priced = table.price(provider, usage, at_ms=report.at_ms)
    if priced.flags or priced.cost_nanousd > COST_NANOUSD_MAX:
        result.without_price += 1
        return None
    return _Correction(reservation, report, priced, table.version)


async def _late_report(store: Store, reservation: _Reservation) -> _Report:
    """The exact report that came after the expiry."""
    assert reservation.adjusted_at_ms is not None
    rows = await store.readers.rows(
        SELECT_REPORTS, (reservation.user_id, reservation.adjusted_at_ms, reservation.id)
    )
    found = [report for row in rows if not (report := _Report(*cast("Any", row))).has_note(REPRICED)]
    assert len(found) == 1, f"{reservation.id} was adjusted by {len(found)} reports"
    return found[0]


def _is_from_usage(report: _Report, hold_nanousd: int) -> bool:
    """Whether a request was booked at its usage times unit prices, before anything was repriced.

    Of a settle, the part above the hold is an entry of its own; an expiry never is above the hold. What a late
    report arrived at is its usage unless it says otherwise.
    """
    if not report.usage:
        return False
    charged_nanousd = recompute(report.lines)
    if report.kind == "adjust":
        return not report.has_note(NOT_FROM_USAGE)
    if report.has_note(NOT_FROM_USAGE) or report.kind == "expire":
        return report.cost_nanousd == charged_nanousd
    return report.cost_nanousd == min(charged_nanousd, hold_nanousd)


def _count(result: Repricing, correction: _Correction) -> None:
    sums = result.models.setdefault(correction.report.model or "", Sums())
    sums.add(correction.reservation.booked_nanousd, correction.priced.cost_nanousd)


async def _book(store: Store, corrections: list[_Correction], now_ms: int, result: Repricing) -> None:
    """Append what differs. Durable when this returns."""
    different = [correction for correction in corrections if correction.difference_nanousd]
    waiting = [store.writer.submit(Unit(tuple(_steps(correction, now_ms)))) for correction in different]
    written = dict(zip(map(id, different), await asyncio.gather(*waiting), strict=True))
    for correction in corrections:
        if isinstance(written.get(id(correction), Done([])), Done):
            _count(result, correction)
        else:
            result.changed_meanwhile += 1


def _steps(correction: _Correction, now_ms: int) -> Iterator[Step]:
    reservation, report, difference = (
        correction.reservation,
        correction.report,
        correction.difference_nanousd,
    )
    adjusted_at_ms = NEVER_ADJUSTED if reservation.adjusted_at_ms is None else reservation.adjusted_at_ms
    yield Step(
        REPRICE_RESERVATION,
        (reservation.id, reservation.booked_nanousd, correction.priced.cost_nanousd, adjusted_at_ms),
        refusal=ALREADY_RESOLVED,
    )
    moves, moved = correction_steps(reservation.id, decode_lines(reservation.lines), difference)
    yield from moves
    before = (
        "adjust",
        reservation.id,
        reservation.user_id,
        reservation.token_id,
        now_ms,
        reservation.surface,
        reservation.operation,
        report.model,
        report.outcome,
        report.basis,
        difference,
        *(0, 0, 0, 0),  # The tokens are counted by the entries before.
        encode_usage(correction.priced),
        orjson.dumps([REPRICED]).decode(),
    )
    after = (correction.price_version, None, None, None)
    yield Step(INSERT_ENTRY, with_lines(before, moved, after, without_zeros=True))
