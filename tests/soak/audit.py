"""After a soak: the ledger against what the vendor saw, request by request."""

import sqlite3
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from metering.ledger import Outcome
from metering.usage import SEARCHES
from tests.soak.mix import BRAVE_NAMES, GEMINI_NAMES, KINDS, UNANSWERED

NAMES = {
    "anthropic": ("req_011Sim", 10),
    "openai": ("req_", 16),
    "gemini": (GEMINI_NAMES, 10),
    "brave": (BRAVE_NAMES, 10),
}
"""By surface: what its simulator's request ids begin with; a number follows, 1 for the first request, to this base."""
PROBLEMS_MAX = 20
USED = "SELECT user_id, usage FROM entries WHERE surface = 'brave' AND usage IS NOT NULL"
QUOTAS = "SELECT owner, SUM(spent), SUM(held) FROM accounts WHERE meter = 'searches' GROUP BY owner"

ENTRIES = """
SELECT entries.kind, outcome, basis, cost_nanousd, upstream_request_id, reservations.hold_nanousd, reservations.state
FROM reservations LEFT JOIN entries ON reservation_id = reservations.id WHERE reservations.surface = ?1
"""
UNOWNED = """
SELECT COUNT(*) FROM owned_objects LEFT JOIN entries ON entries.reservation_id = owned_objects.reservation_id
WHERE entries.user_id IS NOT owned_objects.user_id"""


@dataclass(slots=True)
class Audit:
    """The comparison's result."""

    seen: int = 0
    """Requests that the vendor saw."""
    entries: int = 0
    exact: int = 0
    estimated: int = 0
    voided: int = 0
    cost_nanousd: int = 0
    reported_nanousd: int = 0
    """What the vendor's exact answers cost; equal to the ledger's sum over the same requests."""
    exact_nanousd: int = 0
    searches: int = 0
    """Counted against the users' quotas, as their entries say."""
    raced: int = 0
    """Requests that the vendor never saw, because it closed the connection under them."""
    problems: list[str] = field(default_factory=list)
    problems_total: int = 0

    def complain(self, text: str) -> None:
        self.problems_total += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(text)


@dataclass(frozen=True, slots=True)
class Row:
    kind: str | None
    outcome: str
    basis: str
    cost_nanousd: int
    upstream_request_id: str | None
    hold_nanousd: int
    state: str


def audit(store: Path, vendors: Path) -> Audit:
    """Every request of each vendor exactly once in the ledger, at its price; and nothing else."""
    found = Audit()
    for surface in NAMES:
        _audit_surface(found, store, surface, vendors / surface)
    with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as connection:
        ((unowned,),) = connection.execute(UNOWNED).fetchall()
        _audit_searches(found, connection)
    if unowned:
        found.complain(f"{unowned} objects are not owned by who asked for them")
    return found


def _audit_searches(found: Audit, connection: sqlite3.Connection) -> None:
    """What each user's quota has spent is what the user's entries used, and nothing is held."""
    used: Counter[str] = Counter()
    for user_id, usage in connection.execute(USED):
        used[f"user:{user_id}"] += sum(line["counts"].get(SEARCHES, 0) for line in orjson.loads(usage))
    found.searches = used.total()
    spent = {owner: (count, held) for owner, count, held in connection.execute(QUOTAS)}
    for owner in {*used, *spent}:
        if spent.get(owner, (0, 0)) != (used[owner], 0):
            found.complain(f"{owner}: (spent, held) of searches {spent.get(owner)}, used {used[owner]}")


def _audit_surface(found: Audit, store: Path, surface: str, vendor: Path) -> None:
    kinds, costs = array("B"), array("q")
    kinds.frombytes((vendor / "kinds").read_bytes())
    costs.frombytes((vendor / "costs").read_bytes())
    found.seen += len(kinds) - kinds.count(UNANSWERED)
    times_booked = bytearray(len(kinds) + 1)
    nameless = 0
    prefix, base = NAMES[surface]
    for row in _rows(store, surface):
        found.entries += 1
        found.cost_nanousd += row.cost_nanousd or 0
        if row.kind == "void":
            found.voided += 1
        elif row.kind != "settle":
            found.complain(f"neither settled nor voided: {row}")
        elif row.upstream_request_id is None:
            nameless += 1
            _check_estimate(found, row)
        else:
            number = int(row.upstream_request_id.removeprefix(prefix), base)
            times_booked[number] += 1
            _check(found, row, kinds[number - 1], costs[number - 1])
    _check_counts(found, times_booked, kinds, nameless)


def _rows(store: Path, surface: str) -> Iterator[Row]:
    with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as connection:
        yield from (Row(*row) for row in connection.execute(ENTRIES, (surface,)))


def _check(found: Audit, row: Row, kind_index: int, cost_nanousd: int) -> None:
    kind = KINDS[kind_index]
    if row.outcome not in kind.outcomes:
        found.complain(f"{kind.name}: {row}")
    if not kind.is_exact:
        _check_estimate(found, row)
        return
    found.exact += 1
    found.exact_nanousd += row.cost_nanousd
    expected = 0 if Outcome.UPSTREAM_FAILED in kind.outcomes else cost_nanousd
    found.reported_nanousd += expected
    if (row.basis, row.cost_nanousd) != ("reported", expected):
        found.complain(f"{kind.name}: {row}, expected {expected}")


def _check_estimate(found: Audit, row: Row) -> None:
    found.estimated += 1
    if row.hold_nanousd:
        is_right = row.basis == "estimated" and 0 < row.cost_nanousd <= row.hold_nanousd
    else:
        is_right = row.cost_nanousd == 0  # counting tokens is free
    if row.outcome != Outcome.UPSTREAM_FAILED or not is_right:
        found.complain(f"an estimate out of its bounds: {row}")


def _check_counts(found: Audit, times_booked: bytearray, kinds: "array[int]", nameless: int) -> None:
    """A dropped request has no name, because its answer had none: those are only counted. Nor has one that was
    written while the vendor closed its connection; each of the vendor's sudden ends can catch one."""
    dropped = {index for index, kind in enumerate(KINDS) if kind.is_dropped}
    by_kind = Counter(kinds)
    raced = nameless - sum(by_kind[index] for index in dropped)
    found.raced += raced
    sudden_ends = sum(by_kind[index] for index, kind in enumerate(KINDS) if kind.ends_suddenly)
    if not 0 <= raced <= sudden_ends:
        found.complain(f"{raced} entries without a name too many, {sudden_ends} sudden ends")
    for number, kind_index in enumerate(kinds, start=1):
        if kind_index == UNANSWERED:
            if times_booked[number]:
                found.complain(f"request {number} was never answered, but its answer is booked")
            continue
        expected = 0 if kind_index in dropped else 1
        if times_booked[number] != expected:
            found.complain(
                f"request {number} ({KINDS[kind_index].name}) is booked {times_booked[number]} times"
            )
        if not KINDS[kind_index].outcomes:
            found.complain(
                f"request {number} ({KINDS[kind_index].name}) should never have reached the vendor"
            )
