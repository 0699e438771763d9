"""`ledger verify`: recompute every account and every charge from their rows, while the service runs.

One read transaction sees one instant of the whole ledger and holds nobody up. Reservations and entries are
read side by side in the order of reservation ids, a row at a time; only the accounts' sums are in memory.
What must hold:

    accounts       held = lines of HELD reservations, never negative; spent = lines of entries. Of credit: allowance =
                   lines of grants, and never less than spent + held
    reservations   HELD: no entry. Resolved: one resolution entry of the matching kind; what its entries
                   cost together is what the reservation says was booked. What was resolved with a cost may have
                   been repriced, any number of times. What it says was charged on credit is on its entries' lines
    grants         each has its entry, and each such entry its source: same user, same amount, no cost
    entries        each cap's line = the cost, and so are a user's money and credit together; usage x unit prices = the cost of the settle with its overage,
                   or of what an adjust arrived at: all entries up to it
"""

import asyncio
import heapq
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from typing import NamedTuple

import orjson

from metering.credit import CREDIT
from metering.ledger import (
    CHARGED,
    IS_RESOLUTION,
    NO_PERIOD,
    NOT_FROM_USAGE,
    PURSE,
    REPRICED,
    Line,
    decode_lines,
)
from metering.prices import PricedLine, recompute
from metering.store.database import Database
from metering.store.store import Store
from metering.values import immutable

PROBLEMS_MAX = 100
"""Problems described; the rest is only counted."""

RESOLUTION_OF = {"SETTLED": "settle", "VOIDED": "void", "EXPIRED": "expire"}
"""The one entry that each final state must have."""
COMPANION_OF = {"settle": "overage", "expire": "adjust"}
"""The one entry that may stand beside a resolution, apart from what repriced it."""

_ENTRY_COLUMNS = "COALESCE(reservation_id, ''), seq, kind, cost_nanousd, usage, notes, lines"
SELECT_RESERVATIONS = """
SELECT id, state, lines, hold_nanousd, booked_nanousd, credit_nanousd FROM reservations ORDER BY id"""
# Two streams, because the index on resolutions gives the first, of one row a request, without sorting.
SELECT_RESOLUTIONS = f"""
SELECT {_ENTRY_COLUMNS} FROM entries e WHERE {IS_RESOLUTION} ORDER BY reservation_id"""
SELECT_OTHER_ENTRIES = f"""
SELECT {_ENTRY_COLUMNS} FROM entries WHERE kind NOT IN ('settle', 'void', 'expire', 'grant')
ORDER BY reservation_id"""
SELECT_GRANTS = """
SELECT e.seq, e.user_id, e.cost_nanousd, e.reservation_id, e.lines, g.source, g.user_id, g.amount_nanousd
FROM entries e LEFT JOIN grants g ON g.entry_seq = e.seq WHERE e.kind = 'grant'
UNION ALL
SELECT g.entry_seq, NULL, NULL, NULL, NULL, g.source, g.user_id, g.amount_nanousd
FROM grants g WHERE NOT EXISTS (SELECT 1 FROM entries e WHERE e.seq = g.entry_seq AND e.kind = 'grant')"""
SELECT_ACCOUNTS = "SELECT owner, meter, period, spent, held, allowance FROM accounts"


@immutable
class Report:
    """What was read and what is wrong with it. `problems` holds the first PROBLEMS_MAX descriptions."""

    accounts: int
    reservations: Mapping[str, int]
    """By state."""
    entries: Mapping[str, int]
    """By kind."""
    cost_nanousd: int
    """The sum over all entries."""
    problems: tuple[str, ...]
    problems_total: int

    @property
    def is_clean(self) -> bool:
        return not self.problems_total


async def verify(store: Store) -> Report:
    """Read the whole ledger as it stands at one instant. Raises sqlite3.Error when it cannot be read.

    The write-ahead log cannot be recycled meanwhile: it grows by what is written during the run.
    """
    connection = store.database.connect_read_only()
    try:
        return await asyncio.to_thread(_audit, connection)
    except asyncio.CancelledError:
        connection.interrupt()  # or the program's end would wait for the last row
        raise


def verify_file(database: Database) -> Report:
    """The same for a file that is no running service's: a copy. Blocks until it is done. Raises sqlite3.Error."""
    return _audit(database.connect_read_only())


def _audit(connection: sqlite3.Connection) -> Report:
    with closing(connection):
        connection.execute("BEGIN")
        audit = _Audit()
        for reservation, entries in _reservations_with_entries(connection):
            audit.check_exchange(reservation, entries)
        audit.check_grants(map(_Grant._make, connection.execute(SELECT_GRANTS)))
        audit.check_accounts(connection.execute(SELECT_ACCOUNTS))
        return audit.report()


class _Reservation(NamedTuple):
    id: str
    state: str
    lines: str
    hold_nanousd: int
    booked_nanousd: int | None
    credit_nanousd: int


class _Grant(NamedTuple):
    """An entry of the kind, and the source it came from; either may be missing."""

    seq: int
    user_id: str | None
    cost_nanousd: int | None
    reservation_id: str | None
    lines: str | None
    source: str | None
    granted_user_id: str | None
    amount_nanousd: int | None


class _Entry(NamedTuple):
    reservation_id: str
    seq: int
    kind: str
    cost_nanousd: int
    usage: str | None
    notes: str | None
    lines: str


def _reservations_with_entries(
    connection: sqlite3.Connection,
) -> Iterator[tuple[_Reservation | None, list[_Entry]]]:
    """Every reservation with its entries, and entries that belong to none: a merge of two sorted streams."""
    merged = heapq.merge(
        map(_Entry._make, connection.execute(SELECT_RESOLUTIONS)),
        map(_Entry._make, connection.execute(SELECT_OTHER_ENTRIES)),
        key=lambda entry: entry.reservation_id,
    )
    groups = groupby(merged, key=lambda entry: entry.reservation_id)
    group = next(groups, None)
    for row in connection.execute(SELECT_RESERVATIONS):
        reservation = _Reservation._make(row)
        while group is not None and group[0] < reservation.id:
            yield None, list(group[1])
            group = next(groups, None)
        if group is not None and group[0] == reservation.id:
            yield reservation, list(group[1])
            group = next(groups, None)
        else:
            yield reservation, []
    while group is not None:
        yield None, list(group[1])
        group = next(groups, None)


class _Audit:
    """Sums and problems so far."""

    def __init__(self) -> None:
        self._accounts = 0
        self._reservations: Counter[str] = Counter()
        self._entries: Counter[str] = Counter()
        self._cost_nanousd = 0
        self._spent: Counter[tuple[str, str, str]] = Counter()
        self._held: Counter[tuple[str, str, str]] = Counter()
        self._granted: Counter[tuple[str, str, str]] = Counter()
        self._problems: list[str] = []
        self._problems_total = 0

    def report(self) -> Report:
        return Report(
            self._accounts,
            dict(self._reservations),
            dict(self._entries),
            self._cost_nanousd,
            tuple(self._problems),
            self._problems_total,
        )

    def check_exchange(self, reservation: _Reservation | None, entries: Sequence[_Entry]) -> None:
        """One reservation with all its entries, or entries without one."""
        for entry in entries:
            self._check_entry(entry)
        if reservation is None:
            self._check_orphans(entries)
            return
        self._reservations[reservation.state] += 1
        if reservation.state == "HELD":
            for line in decode_lines(reservation.lines):
                self._held[line[:3]] += line.amount
        for problem in _problems_of(reservation, entries):
            self._note(f"reservation {reservation.id} ({reservation.state}): {problem}")

    def check_grants(self, grants: Iterator[_Grant]) -> None:
        """Entries of the kind, each with its source."""
        for grant in grants:
            if grant.lines is None:
                self._note(f"grant {grant.source}: there is no entry {grant.seq} of it")
                continue
            self._entries["grant"] += 1
            lines = decode_lines(grant.lines)
            for line in lines:
                self._granted[line[:3]] += line.amount
            if grant.source is None:
                self._note(f"grant entry {grant.seq}: no source says what for")
                continue
            if grant.reservation_id is not None or grant.cost_nanousd:
                self._note(
                    f"grant {grant.source}: its entry is of {grant.reservation_id} and costs {grant.cost_nanousd}"
                )
            gained = Line(f"user:{grant.granted_user_id}", CREDIT, NO_PERIOD, grant.amount_nanousd or 0)
            if lines != (gained,) or grant.user_id != grant.granted_user_id:
                self._note(
                    f"grant {grant.source}: {grant.amount_nanousd} to {grant.granted_user_id}, its entry of "
                    f"{grant.user_id} has the lines {grant.lines}"
                )

    def check_accounts(self, rows: Iterator[tuple[str, str, str, int, int, int]]) -> None:
        """After all rows: each account against what was summed up for it."""
        for owner, meter, period, spent, held, allowance in rows:
            self._accounts += 1
            account = (owner, meter, period)
            name = _name(account)
            if (owed := self._spent.pop(account, 0)) != spent:
                self._note(f"{name}: spent is {spent}, its entries add up to {owed}")
            if (owed := self._held.pop(account, 0)) != held:
                self._note(f"{name}: held is {held}, its HELD reservations add up to {owed}")
            if held < 0:
                self._note(f"{name}: held is negative ({held})")
            if meter == CREDIT:
                self._check_credit(account, spent + held, allowance)
        for what, sums in (("spent", self._spent), ("held", self._held), ("granted", self._granted)):
            for account, amount in sums.items():
                if amount:
                    self._note(f"{_name(account)}: {amount} {what}, but there is no such account")

    def _check_credit(self, account: tuple[str, str, str], used: int, granted: int) -> None:
        if (owed := self._granted.pop(account, 0)) != granted:
            self._note(f"{_name(account)}: granted is {granted}, its grants add up to {owed}")
        if used > granted:
            self._note(f"{_name(account)}: spent and held is {used}, granted only {granted}")

    def _check_entry(self, entry: _Entry) -> None:
        self._entries[entry.kind] += 1
        self._cost_nanousd += entry.cost_nanousd
        lines = decode_lines(entry.lines)
        for line in lines:
            self._spent[line[:3]] += line.amount
        if not _is_cost_on(lines, entry.cost_nanousd):
            self._note(
                f"{entry.kind} of {entry.reservation_id or 'no reservation'}: "
                f"cost is {entry.cost_nanousd}, its charged lines are {entry.lines}"
            )

    def _check_orphans(self, entries: Sequence[_Entry]) -> None:
        for entry in entries:
            self._note(f"{entry.kind} of {entry.reservation_id or 'no reservation'}: no such reservation")

    def _note(self, problem: str) -> None:
        self._problems_total += 1
        if len(self._problems) < PROBLEMS_MAX:
            self._problems.append(problem)


def _problems_of(reservation: _Reservation, entries: Sequence[_Entry]) -> Iterator[str]:
    kinds = sorted(entry.kind for entry in entries if not _is_repricing(entry))
    if reservation.state in {"HELD", "VOIDED"}:  # Nothing was booked that could be repriced.
        kinds = sorted(entry.kind for entry in entries)
    on_credit = sum(_on_credit(entry) for entry in entries)
    if on_credit != reservation.credit_nanousd:
        yield f"charged on credit is {reservation.credit_nanousd}, its entries say {on_credit}"
    if reservation.state == "HELD":
        if kinds:
            yield f"entries of what is not resolved: {', '.join(kinds)}"
        return
    resolution = RESOLUTION_OF[reservation.state]
    if kinds not in ([resolution], sorted([resolution, COMPANION_OF.get(resolution, resolution)])):
        yield f"expected one {resolution} entry, found {', '.join(kinds) or 'none'}"
        return
    cost_nanousd = sum(entry.cost_nanousd for entry in entries)
    if cost_nanousd != reservation.booked_nanousd:
        yield f"booked is {reservation.booked_nanousd}, its entries cost {cost_nanousd}"
    yield from _problems_of_charges(reservation, entries)


def _problems_of_charges(reservation: _Reservation, entries: Sequence[_Entry]) -> Iterator[str]:
    """What its usage says that a request costs, against what it was booked at by then."""
    overage_nanousd = sum(entry.cost_nanousd for entry in entries if entry.kind == "overage")
    arrived_nanousd = 0
    for entry in sorted(entries, key=lambda entry: entry.seq):
        arrived_nanousd += entry.cost_nanousd
        if entry.kind == "expire" and entry.cost_nanousd > reservation.hold_nanousd:
            yield f"expired at {entry.cost_nanousd}, above its hold of {reservation.hold_nanousd}"
        if entry.usage is None and _is_repricing(entry):
            yield "repriced without a usage"
        if entry.kind in {"settle", "adjust"}:
            # A settle's usage is that of its overage too, which comes right after it.
            together_nanousd = arrived_nanousd + (overage_nanousd if entry.kind == "settle" else 0)
            if (charge := _charge(entry)) not in {None, together_nanousd}:
                yield f"usage times unit prices is {charge}, its entries cost {together_nanousd}"


def _is_repricing(entry: _Entry) -> bool:
    return entry.kind == "adjust" and entry.notes is not None and REPRICED in orjson.loads(entry.notes)


def _charge(entry: _Entry) -> int | None:
    """What the usage of an entry costs at the unit prices stored with it; None when there is nothing to say."""
    if entry.usage is None or (entry.notes is not None and NOT_FROM_USAGE in orjson.loads(entry.notes)):
        return None
    return recompute(
        PricedLine(line["model"], line["counts"], line["modifiers"], line["unit_prices"])
        for line in orjson.loads(entry.usage)
    )


def _on_credit(entry: _Entry) -> int:
    return sum(line.amount for line in decode_lines(entry.lines) if line.meter == CREDIT)


def _is_cost_on(lines: Sequence[Line], cost_nanousd: int) -> bool:
    """Whether every account that is charged was charged the cost, money and credit of an owner together, and at
    least one if there is any."""
    amounts = [line.amount for line in lines if line.meter in CHARGED - PURSE]
    together: Counter[str] = Counter()
    for line in lines:
        if line.meter in PURSE:
            together[line.owner] += line.amount
    amounts += together.values()
    return set(amounts) <= {cost_nanousd} and (bool(amounts) or not cost_nanousd)


def _name(account: tuple[str, str, str]) -> str:
    return "account " + " ".join(part for part in account if part)
