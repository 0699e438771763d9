"""`python -m bench.reports`: how long a user's own view takes on a ledger of a million entries.

The store is made with plain SQL: a year of 50 users, of which one has half of all entries. The reports are the
functions that the endpoints call, by readers of their own. *Cold*: a new connection, and the file's pages dropped
from the system's cache. *CPU*: of a warm one, in all threads, which a busy machine changes less than the time it takes.
*Pause*: the longest time for which the event loop ran nothing else meanwhile.

With `--settle`, instead: what a settle costs on that store, as it is and with a covering index of the usage report.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson

from metering.clock import ManualClock
from metering.exports import usage_csv
from metering.ids import new_id
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
)
from metering.prices import Priced, PricedLine
from metering.reports import USAGE_TIMEOUT_S, groupings_of, instant_ms, period_of, usage_of
from metering.requests import Position, Wanted, requests_of
from metering.standing import accounts_of, meters_as_json
from metering.store.database import Database
from metering.store.migrate import migrate
from metering.store.readers import Readers
from metering.store.store import open_store

FROM, TO = "2025-12-01", "2026-12-01"
NOW_MS = instant_ms("now", "2026-11-30")
SEED = 4
BIG = "user00"
"""The one who has half of all entries."""
USERS = 50
TOKENS_EACH = 8
HELD = 2_000
"""Reservations that are still running, a few of them the big user's."""
MODELS = (
    *(("anthropic", "POST /v1/messages", f"claude-model-{number}") for number in range(5)),
    *(("openai", "POST /responses", f"gpt-model-{number}") for number in range(5)),
    *(("gemini", "POST /models/{model}:generateContent", f"gemini-model-{number}") for number in range(3)),
)
KINDS = ("settle",) * 970 + ("void",) * 15 + ("overage",) * 10 + ("expire",) * 3 + ("adjust",) * 2
ROWS_AT_ONCE = 50_000


def rows_of(entries: int) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...] | None]]:
    """Entries in the order of their time, each with the reservation it resolves, if it does."""
    dice = random.Random(SEED)
    from_ms, to_ms = instant_ms("from", FROM), instant_ms("to", TO)
    known: dict[str, str] = {}  # user -> a request that overages and corrections may name
    for number in range(entries):
        at_ms = from_ms + (to_ms - from_ms) * number // entries
        user = BIG if number % 2 else f"user{dice.randrange(1, USERS):02}"
        token = f"tok_{user}_{dice.randrange(TOKENS_EACH)}"
        surface, operation, model = dice.choice(MODELS)
        kind = dice.choice(KINDS)
        if kind in {"overage", "adjust"} and user not in known:
            kind = "settle"
        is_resolution = kind in {"settle", "void", "expire"}
        request = new_id("req", at_ms) if is_resolution else known[user]
        known[user] = request
        counts = tuple(dice.randrange(20_000) for _ in range(4)) if kind == "settle" else (0, 0, 0, 0)
        cost = 0 if kind == "void" else dice.randrange(20_000_000)
        names = ("input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "output_tokens")
        usage = (
            json.dumps(
                [
                    {
                        "model": model,
                        "counts": dict(zip(names, counts, strict=True)),
                        "modifiers": {},
                        "unit_prices": dict.fromkeys(names, 3_000_000),
                    }
                ]
            )
            if kind == "settle"
            else None
        )
        owner = f"user:{user}"
        entry = (
            kind,
            request,
            user,
            token,
            at_ms,
            surface,
            operation,
            model,
            "not_sent" if kind == "void" else "completed",
            "estimated" if kind == "expire" else "reported",
            cost,
            *counts,
            usage,
            None,
            json.dumps([[owner, "money", "2026-11", cost]]),
            "2026-11-20",
            200,
            f"msg_{at_ms:x}",
            dice.randrange(30_000),
        )
        reservation = (
            (
                request,
                {"settle": "SETTLED", "void": "VOIDED", "expire": "EXPIRED"}[kind],
                "wrk_bench",
                user,
                token,
                surface,
                operation,
                model,
                json.dumps([[owner, "money", "2026-11", 50_000_000], [owner, "open_requests", "", 1]]),
                50_000_000,
                1_000_000,
                cost,
                at_ms - 5_000,
                at_ms,
            )
            if is_resolution
            else None
        )
        yield entry, reservation


def make_store(path: Path, entries: int) -> None:
    """A store of that many entries, with plain SQL; its accounts are those of the month that is now."""
    database = Database(path)
    migrate(database, ManualClock(NOW_MS))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        for number in range(USERS):
            user = f"user{number:02}"
            connection.execute(
                "INSERT INTO users (id, plan, created_at, updated_at) VALUES (?1, 'free', 0, 0)", (user,)
            )
            connection.executemany(
                "INSERT INTO gateway_tokens (id, user_id, token_hash, token_prefix, label, created_at_ms) "
                "VALUES (?1, ?2, ?1, ?3, ?4, 0)",
                [(f"tok_{user}_{n}", user, f"amp_{number}{n}", f"agent {n}") for n in range(TOKENS_EACH)],
            )
            for day in range(1, 1_000):
                connection.execute(
                    "INSERT INTO accounts VALUES (?1, 'spend', ?2, 5000000000, 77, 0)",
                    (f"user:{user}", f"day-{day}"),
                )
            connection.execute(
                "INSERT INTO accounts VALUES (?1, 'money', '2026-11', 1000000000, 77000000, 9)",
                (f"user:{user}",),
            )
            connection.execute(
                "INSERT INTO accounts VALUES (?1, 'spend', '2026-11-30', 1000000000, 77000000, 9)",
                (f"user:{user}",),
            )
            connection.execute(
                "INSERT INTO accounts VALUES (?1, 'open_requests', '', 5, 0, 2)", (f"user:{user}",)
            )
        pending_entries: list[tuple[Any, ...]] = []
        pending_reservations: list[tuple[Any, ...]] = []

        def flush() -> None:
            marks = ", ".join(f"?{n}" for n in range(1, 23))
            connection.executemany(
                "INSERT INTO entries (kind, reservation_id, user_id, token_id, at_ms, surface, operation, model, outcome, "
                "basis, cost_nanousd, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, usage, notes, "
                f"lines, price_version, upstream_status, upstream_request_id, duration_ms) VALUES ({marks})",
                pending_entries,
            )
            marks = ", ".join(f"?{n}" for n in range(1, 15))
            connection.executemany(
                "INSERT INTO reservations (id, state, worker_id, user_id, token_id, surface, operation, model, lines, "
                f"hold_nanousd, checkpoint_nanousd, booked_nanousd, created_at_ms, resolved_at_ms) VALUES ({marks})",
                pending_reservations,
            )
            pending_entries.clear()
            pending_reservations.clear()

        for entry, reservation in rows_of(entries):
            pending_entries.append(entry)
            if reservation is not None:
                pending_reservations.append(reservation)
            if len(pending_entries) == ROWS_AT_ONCE:
                flush()
        for number in range(HELD):
            user = f"user{number % USERS:02}"
            pending_reservations.append(
                (
                    new_id("req", NOW_MS),
                    "HELD",
                    "wrk_bench",
                    user,
                    f"tok_{user}_0",
                    *MODELS[0],
                    "[]",
                    5_000_000,
                    1_000_000,
                    None,
                    NOW_MS,
                    None,
                )
            )
        flush()
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


Report = Callable[[Readers], Awaitable[Any]]
WARM_RUNS = 5
TICK_S = 0.001


def reports() -> dict[str, Report]:
    """Each report of the big user, and a month of a small one, by name."""

    def usage(by: str, since: str, until: str, *, user: str = BIG, render: Any = None) -> Report:
        async def ask(readers: Readers) -> None:
            report = await usage_of(readers, user, period_of(since, until, NOW_MS), groupings_of(by))
            await asyncio.to_thread(render or (lambda report: orjson.dumps(report.as_json())), report)

        return ask

    def page(**how: Any) -> Report:
        async def ask(readers: Readers) -> None:
            orjson.dumps((await requests_of(readers, BIG, **how)).as_json())

        return ask

    async def limits(readers: Readers) -> None:
        meters_as_json(await accounts_of(readers, f"user:{BIG}", NOW_MS), NOW_MS)

    october, year = ("2026-10-01", "2026-11-01"), (FROM, TO)
    june = Position(instant_ms("before", "2026-06-01"), 0)
    return {
        "limits": limits,
        "requests, newest 50": page(),
        "requests, 200 before June": page(before=june, limit=200),
        "requests of a model": page(wanted=Wanted(model="gpt-model-2")),
        "requests, none as wanted": page(wanted=Wanted(outcome="timed_out")),
        "requests that run": page(wanted=Wanted(outcome="running")),
        "a month by model": usage("model", *october),
        "a month by day,model": usage("day,model", *october),
        "a month by token": usage("token", *october),
        "a small user's month by model": usage("model", *october, user="user07"),
        "the year by model": usage("model", *year),
        "the year by month": usage("month", *year),
        "the year by month,model,token": usage("month,model,token", *year),
        "the year by day,model": usage("day,model", *year),
        "the year by day,model as CSV": usage("day,model", *year, render=usage_csv),
        "a small user's year by model": usage("model", *year, user="user07"),
    }


async def measured(database: Database, report: Report, *, is_cold: bool) -> tuple[float, float, float]:
    """The report's time, its CPU, and the longest pause of the loop, in ms."""
    if is_cold:
        descriptor = os.open(database.path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    pauses_s = [0.0]

    async def tick() -> None:
        while True:
            slept_s = time.perf_counter()
            await asyncio.sleep(TICK_S)
            pauses_s.append(time.perf_counter() - slept_s - TICK_S)

    ticking = asyncio.get_running_loop().create_task(tick())
    readers = Readers(database, read_timeout_s=USAGE_TIMEOUT_S)
    started_s, cpu_s = time.perf_counter(), time.process_time()
    try:
        await report(readers)
        took_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
        return took_s * 1000, cpu_s * 1000, max(pauses_s) * 1000
    finally:
        await readers.aclose()
        ticking.cancel()


def measure_reports(database: Database) -> None:
    names = ("cold ms", "warm ms", "CPU ms", "pause ms")
    print(f"{'report':32}", *(f"{name:>9}" for name in names))
    for name, report in reports().items():
        cold_ms, *_ = asyncio.run(measured(database, report, is_cold=True))
        warm = [asyncio.run(measured(database, report, is_cold=False)) for _ in range(WARM_RUNS)]
        medians_ms = map(statistics.median, zip(*warm, strict=True))
        print(f"{name:32}", *(f"{figure_ms:9.1f}" for figure_ms in (cold_ms, *medians_ms)))


COVERING = """CREATE INDEX entries_by_user ON entries (user_id, at_ms, seq, kind, basis, surface, operation, model, token_id,
    outcome, cost_nanousd, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reservation_id)"""
SETTLES, AT_ONCE, ROUNDS = 6_400, 32, 6


async def settle_us(database: Database) -> float:
    """CPU of all threads for one settle, in groups of AT_ONCE, as the writer commits them."""
    clock, dice, cpu_s = ManualClock(NOW_MS), random.Random(SEED), 0.0
    counts = {"input_tokens": 500, "cache_read_tokens": 9_000, "output_tokens": 800}
    line = PricedLine(MODELS[0][2], counts, {}, dict.fromkeys(counts, 3_000_000))
    settlement = Settlement(
        Outcome.COMPLETED, Priced(1_000, (line,), ()), True, upstream_request_id="msg_0123456789"
    )
    async with open_store(database) as store:
        ledger = Ledger(store, clock, "wrk_bench")

        async def reserve() -> Reservation:
            user = f"user{dice.randrange(USERS):02}"
            owner = f"user:{user}"
            holds = [
                Hold(owner, MONEY, "2026-12", 5_000, 10**15),
                Hold(owner, OPEN_REQUESTS, NO_PERIOD, 1, 10**6),
            ]
            request = new_id("req", clock.now_ms())
            reservation = await ledger.reserve(Intent(request, user, f"tok_{user}_1", *MODELS[0], holds))
            assert isinstance(reservation, Reservation)
            return reservation

        for _ in range(SETTLES // AT_ONCE):
            clock.advance(0.1)
            reservations = await asyncio.gather(*(reserve() for _ in range(AT_ONCE)))
            started_s = time.process_time()
            await asyncio.gather(*(ledger.settle(reservation, settlement) for reservation in reservations))
            cpu_s += time.process_time() - started_s
    return cpu_s / SETTLES * 1e6


def measure_settles(database: Database) -> None:
    """In alternating rounds, on copies."""
    kinds = {}
    for name in ("as it is", "covering"):
        kinds[name] = Database(database.path.with_name(f"{name.replace(' ', '-')}.db"))
        shutil.copy(database.path, kinds[name].path)
    with closing(sqlite3.connect(kinds["covering"].path, isolation_level=None)) as connection:
        connection.execute("DROP INDEX entries_by_user")
        connection.execute(COVERING)
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, copy in kinds.items():
            found[name].append(asyncio.run(settle_us(copy)))
    for name, copy in kinds.items():
        size_mb = copy.path.stat().st_size / 1e6
        print(
            f"{name:10} {statistics.median(found[name]):6.1f} us a settle (median of {ROUNDS}), {size_mb:,.0f} MB"
        )
        copy.path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--store", type=Path, help="made there if there is none, and kept")
    parser.add_argument("--settle", action="store_true", help="measure settles instead of reports")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-reports-") as folder:
        path = options.store or Path(folder) / "ledger.db"
        if not path.exists():
            make_store(path, options.entries)
        (measure_settles if options.settle else measure_reports)(Database(path))


if __name__ == "__main__":
    main()
