"""Factories for tests of the ledger: a migrated store in a directory, intents, settlements, and what the rows say."""

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path

from metering.clock import ManualClock
from metering.credit import CREDIT
from metering.grants import grant
from metering.ledger import (
    MONEY,
    NO_PERIOD,
    OPEN_REQUESTS,
    Hold,
    Intent,
    Ledger,
    Outcome,
    Reservation,
    Settlement,
    decode_lines,
)
from metering.prices import Priced, PricedLine
from metering.store.database import Database
from metering.store.migrate import migrate
from metering.store.store import Store, open_store
from metering.store.writer import CommitStats
from metering.usage import INPUT, OUTPUT
from metering.users import Directory, DirectoryError
from metering.verify import verify

NOW_MS = 1_795_176_000_000
"""2026-11-20 12:00:00 UTC."""
PERIOD = "2026-11"
MODEL = "claude-test-1"


@cache
def migrated_store() -> bytes:
    """A freshly migrated store as bytes: made once, copied for each test."""
    directory = Path(tempfile.mkdtemp(prefix="ledger-template-"))
    try:
        database = Database(directory / "template.db")
        migrate(database, ManualClock(NOW_MS))
        with closing(sqlite3.connect(database.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return database.path.read_bytes()
    finally:
        shutil.rmtree(directory)


def new_database(directory: Path, *, busy_timeout_s: float = 2.0) -> Database:
    """A migrated store's file."""
    database = Database(directory / "ledger.db", busy_timeout_s)
    database.path.write_bytes(migrated_store())
    return database


_ids = count(1)


def request_id() -> str:
    return f"req_{next(_ids):08}"


def money(amount: int, *, of: int = 1_000, owner: str = "user:ada", period: str = PERIOD) -> Hold:
    """A hold of `amount` nano-USD on an account that allows `of`."""
    return Hold(owner, MONEY, period, amount, of)


def gauge(*, of: int = 100, owner: str = "user:ada") -> Hold:
    """One open request."""
    return Hold(owner, OPEN_REQUESTS, NO_PERIOD, 1, of)


def prepaid(*, owner: str = "user:ada") -> Hold:
    """What an admission adds for a user with prepaid credit."""
    return Hold(owner, CREDIT, NO_PERIOD, 0, 0)


def intent(
    *holds: Hold,
    named: str | None = None,
    floor: int = 0,
    due_at_ms: int | None = None,
    user_id: str = "ada",
    surface: str = "anthropic",
) -> Intent:
    """A request of ada's, Anthropic's unless told otherwise, that holds what is given."""
    return Intent(
        id=named or request_id(),
        user_id=user_id,
        token_id=f"tok_{user_id}",
        surface=surface,
        operation="POST /v1/messages",
        model=MODEL,
        holds=holds,
        floor_nanousd=floor,
        due_at_ms=due_at_ms,
    )


def priced(cost: int) -> Priced:
    """A cost of whole nano-USD with a usage that recomputes to it."""
    if not cost:
        return Priced(0, (), ())
    tokens = {INPUT: cost // 2, OUTPUT: cost - cost // 2}
    return Priced(cost, (PricedLine(MODEL, tokens, {}, dict.fromkeys(tokens, 1_000)),), ())


def settlement(
    cost: int, *, outcome: Outcome = Outcome.COMPLETED, is_reported: bool = True, **amounts: int
) -> Settlement:
    return Settlement(outcome, priced(cost), is_reported, amounts=amounts, upstream_request_id="up_1")


@dataclass(slots=True)
class Bench:
    """An open store with a ledger of worker `wrk_a`, a clock to turn, and a view of the rows."""

    store: Store
    clock: ManualClock
    ledger: Ledger
    commits: list[CommitStats] = field(default_factory=list)

    def worker(self, worker_id: str) -> Ledger:
        """Another worker's ledger on the same store."""
        return Ledger(self.store, self.clock, worker_id)

    async def reserve(self, *holds: Hold, ledger: Ledger | None = None, **intended: object) -> Reservation:
        """A reservation that must be granted."""
        granted = await (ledger or self.ledger).reserve(intent(*holds, **intended))  # type: ignore[arg-type]
        assert isinstance(granted, Reservation), granted
        return granted

    async def account(
        self, owner: str = "user:ada", meter: str = MONEY, period: str = PERIOD
    ) -> tuple[int, int]:
        """(spent, held)."""
        balance = await self.ledger.balance(owner, meter, period)
        return balance.spent, balance.held

    async def gauge(self, owner: str = "user:ada") -> int:
        return (await self.ledger.balance(owner, OPEN_REQUESTS, NO_PERIOD)).held

    async def entries(self, reservation_id: str | None = None) -> list[tuple[str, int]]:
        """(kind, cost) in the order they were appended."""
        rows = await self.store.readers.rows(
            "SELECT kind, cost_nanousd FROM entries WHERE ?1 IS NULL OR reservation_id = ?1 ORDER BY seq",
            (reservation_id,),
        )
        return [(str(kind), int(str(cost))) for kind, cost in rows]

    async def lines(self, reservation_id: str) -> list[tuple[str, dict[str, int]]]:
        """(kind, what each meter was charged) in the order they were appended."""
        rows = await self.store.readers.rows(
            "SELECT kind, lines FROM entries WHERE reservation_id = ?1 ORDER BY seq", (reservation_id,)
        )
        return [
            (str(kind), {line.meter: line.amount for line in decode_lines(str(text))}) for kind, text in rows
        ]

    async def credit(self, owner: str = "user:ada") -> tuple[int, int, int]:
        """(spent, held, granted)."""
        return await self.ledger.balance(owner, CREDIT, NO_PERIOD)

    async def grant(self, amount: int, *, user_id: str = "ada", source: str | None = None) -> None:
        """To a user, who is added if need be."""
        with contextlib.suppress(DirectoryError):
            await Directory(self.store, self.clock).add_user(user_id, plan="pro")
        await grant(self.store, self.clock, user_id, amount, source=source or request_id())

    async def state(self, reservation_id: str) -> str:
        row = await self.store.readers.row("SELECT state FROM reservations WHERE id = ?1", (reservation_id,))
        return str(row[0]) if row else "absent"

    async def held_reservations(self) -> int:
        row = await self.store.readers.row("SELECT COUNT(*) FROM reservations WHERE state = 'HELD'")
        assert row is not None
        return int(str(row[0]))

    async def assert_clean(self) -> None:
        report = await verify(self.store)
        assert report.is_clean, report.problems


@asynccontextmanager
async def open_bench(
    directory: Path,
    *,
    busy_timeout_s: float = 2.0,
    database: Database | None = None,
    on_commit: Callable[[CommitStats], None] | None = None,
) -> AsyncIterator[Bench]:
    """A bench on a new store in `directory`, or on the given one."""
    clock = ManualClock(NOW_MS)
    commits: list[CommitStats] = []
    database = database or new_database(directory, busy_timeout_s=busy_timeout_s)
    async with open_store(database, on_commit=on_commit or commits.append) as store:
        yield Bench(store, clock, Ledger(store, clock, "wrk_a"), commits)
