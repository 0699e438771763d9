"""Repricing: what past requests cost by a corrected table, booked once, whatever happens meanwhile."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering import reprice as reprice_module
from metering.ledger import NOT_FROM_USAGE, REPRICED, Outcome, Reservation, Settlement
from metering.prices import Priced, PriceTable
from metering.reports import Period
from metering.reprice import Repricing, reprice
from metering.store.database import Database
from metering.store.store import open_store
from metering.usage import INPUT, OUTPUT, Usage, UsageLine
from metering.verify import verify_file
from tests.support.ledger import (
    MODEL,
    NOW_MS,
    PERIOD,
    Bench,
    gauge,
    money,
    new_database,
    open_bench,
    prepaid,
    priced,
    settlement,
)
from tests.support.price_tables import VENDOR, price_table

PROVIDERS = {"anthropic": VENDOR}
EVER = Period(0, 1 << 60)
DAY_S = 86_400
ROOT = Path(__file__).parents[3]
VICTIM_S = 60


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        yield bench
        await bench.assert_clean()


@pytest.fixture
def double(tmp_path: Path) -> PriceTable:
    """Everything costs twice what `priced` says."""
    return price_table(tmp_path, "double", input_picousd=2_000, output_picousd=2_000)


async def run(
    bench: Bench, table: PriceTable, *, period: Period = EVER, is_dry_run: bool = False
) -> Repricing:
    result = await reprice(bench.store, table, PROVIDERS, period, bench.clock, is_dry_run=is_dry_run)
    await bench.assert_clean()
    return result


async def settled(
    bench: Bench, cost: int, *, hold: int = 100, named: str | None = None, **how: Any
) -> Reservation:
    holds = (money(hold, of=10**6), money(hold, of=10**6, owner="token:t"), gauge())
    reservation = await bench.reserve(*holds, named=named)
    await bench.ledger.settle(reservation, settlement(cost, **how))
    return reservation


async def expired(bench: Bench, checkpoint: int, *, hold: int = 100, named: str | None = None) -> Reservation:
    """A request whose worker died after it had said what was used so far."""
    reservation = await bench.reserve(money(hold, of=10**9), gauge(), named=named)
    bench.ledger.checkpoint(reservation, priced(checkpoint))
    await bench.ledger.void(await bench.reserve())  # Written after the checkpoint, so that it is in.
    assert await bench.ledger.expire_worker("wrk_a") == 1
    return reservation


async def newest(bench: Bench) -> dict[str, Any]:
    row = await bench.store.readers.row(
        """SELECT kind, at_ms, basis, cost_nanousd, input_tokens + output_tokens, usage, notes, lines,
        price_version FROM entries ORDER BY seq DESC LIMIT 1"""
    )
    assert row is not None
    names = ("kind", "at_ms", "basis", "cost", "tokens", "usage", "notes", "lines", "price_version")
    return dict(zip(names, row, strict=True))


# --- what is appended -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hold", "cost", "picousd", "entries", "spent"),
    [
        (100, 60, 2_000, [("settle", 60), ("adjust", 60)], 120),
        (100, 60, 500, [("settle", 60), ("adjust", -30)], 30),
        (100, 60, 0, [("settle", 60), ("adjust", -60)], 0),
        (100, 60, 1_000, [("settle", 60)], 60),
        (100, 130, 2_000, [("settle", 100), ("overage", 30), ("adjust", 130)], 260),
        (100, 130, 100, [("settle", 100), ("overage", 30), ("adjust", -117)], 13),
        (100, 0, 2_000, [("settle", 0)], 0),
    ],
)
async def test_the_difference_is_booked_on_every_account_that_paid(
    bench: Bench,
    tmp_path: Path,
    hold: int,
    cost: int,
    picousd: int,
    entries: list[tuple[str, int]],
    spent: int,
) -> None:
    table = price_table(tmp_path, "t", input_picousd=picousd, output_picousd=picousd)
    reservation = await settled(bench, cost, hold=hold)
    for _ in range(2):
        await run(bench, table)
        assert await bench.entries(reservation.id) == entries
        assert await bench.account() == (spent, 0)
        assert await bench.account("token:t") == (spent, 0)
        assert await bench.gauge() == 0


async def test_the_entry_says_what_was_corrected_and_by_which_table(bench: Bench, double: PriceTable) -> None:
    await settled(bench, 60)
    bench.clock.advance(40 * DAY_S)  # In another month: the period that paid is corrected, not this one.
    await run(bench, double)
    entry = await newest(bench)
    assert (entry["kind"], entry["at_ms"], entry["basis"]) == (
        "adjust",
        NOW_MS + 40 * DAY_S * 1000,
        "reported",
    )
    assert (entry["cost"], entry["tokens"], entry["price_version"]) == (60, 0, "double")
    assert json.loads(entry["notes"]) == [REPRICED]
    assert json.loads(entry["lines"]) == [
        ["token:t", "money", PERIOD, 60],
        ["user:ada", "money", PERIOD, 60],
    ]
    (line,) = json.loads(entry["usage"])
    assert (line["counts"], line["unit_prices"]) == ({INPUT: 30, OUTPUT: 30}, {INPUT: 2_000, OUTPUT: 2_000})
    assert await bench.account(period="2026-12") == (0, 0)


async def test_what_credit_paid_is_corrected_on_credit(bench: Bench, tmp_path: Path) -> None:
    """Upwards the month pays first if it has anything left; downwards credit gets its own back first."""
    await bench.grant(100)
    for cost in (80, 40):
        reservation = await bench.reserve(money(cost, of=100), prepaid(), gauge())
        await bench.ledger.settle(reservation, settlement(cost))
    assert (await bench.account(), await bench.credit()) == ((100, 0), (20, 0, 100))
    for name, picousd, month, credit in (
        ("up", 1_500, 100, 80),
        ("more", 2_000, 140, 100),
        ("less", 500, 60, 0),
        ("as it was", 1_000, 100, 20),
    ):
        await run(bench, price_table(tmp_path, name, input_picousd=picousd, output_picousd=picousd))
        assert (await bench.account(), await bench.credit()) == ((month, 0), (credit, 0, 100)), name


async def test_each_request_is_priced_as_of_its_own_time(bench: Bench, tmp_path: Path) -> None:
    """The price rises on the 21st, whenever the run is."""
    table = price_table(tmp_path, "t", later=("2026-11-21", 3_000))
    before = await settled(bench, 60)
    bench.clock.advance(DAY_S)
    after = await settled(bench, 60)
    bench.clock.advance(DAY_S)
    await run(bench, table)
    assert await bench.entries(before.id) == [("settle", 60)]
    assert await bench.entries(after.id) == [("settle", 60), ("adjust", 120)]


async def test_only_what_was_resolved_in_the_time_is_corrected(bench: Bench, double: PriceTable) -> None:
    found = []
    for _ in range(3):
        found.append(await settled(bench, 60))
        bench.clock.advance(1)
    result = await run(bench, double, period=Period(NOW_MS + 1_000, NOW_MS + 2_000))
    assert result.total.entries == 1
    assert [len(await bench.entries(each.id)) for each in found] == [1, 2, 1]


async def test_a_later_correction_starts_from_the_one_before(bench: Bench, tmp_path: Path) -> None:
    reservation = await settled(bench, 60)
    for version, picousd in (("a", 3_000), ("b", 500), ("c", 1_000)):
        await run(bench, price_table(tmp_path, version, input_picousd=picousd, output_picousd=picousd))
    assert await bench.entries(reservation.id) == [
        ("settle", 60),
        ("adjust", 120),
        ("adjust", -150),
        ("adjust", 30),
    ]


async def test_what_was_booked_at_the_dearest_rate_gets_its_price(bench: Bench, tmp_path: Path) -> None:
    """A model that the table did not know is added to it."""
    old = price_table(tmp_path, "old", model="other", input_picousd=9_000, output_picousd=9_000)
    guessed = old.price(VENDOR, Usage((UsageLine(MODEL, {INPUT: 10}),)), at_ms=NOW_MS)
    assert guessed.flags
    reservation = await bench.reserve(money(100))
    await bench.ledger.settle(reservation, Settlement(Outcome.COMPLETED, guessed, is_reported=True))
    await run(bench, price_table(tmp_path, "new"))
    assert await bench.entries(reservation.id) == [("settle", 90), ("adjust", -80)]
    assert (await run(bench, old)).without_price == 1


async def test_a_dry_run_says_the_same_and_writes_nothing(bench: Bench, double: PriceTable) -> None:
    for cost in (60, 130, 0):
        await settled(bench, cost)
    dry = await run(bench, double, is_dry_run=True)
    assert len(await bench.entries()) == 4
    wet = await run(bench, double)
    assert (dry.models, dry.total) == (wet.models, wet.total)
    total = wet.total
    assert (total.entries, total.changed, total.old_nanousd, total.new_nanousd) == (2, 2, 190, 380)
    assert total.difference_nanousd == 190
    again = (await run(bench, double)).total
    assert (again.entries, again.changed, again.difference_nanousd) == (2, 0, 0)


# --- what is left alone ---------------------------------------------------------------------------------


async def test_what_was_not_priced_by_its_usage_is_left_alone(bench: Bench, double: PriceTable) -> None:
    reservation = await bench.reserve(money(100))  # Cut down to its hold.
    raised = replace(settlement(80), priced=Priced(90, priced(80).lines, ()), notes=(NOT_FROM_USAGE,))
    await bench.ledger.settle(reservation, raised)
    empty = await bench.reserve(money(100))  # Without details.
    await bench.ledger.settle(empty, replace(settlement(80), priced=Priced(80, (), ())))
    free = await bench.reserve()  # Nobody paid.
    await bench.ledger.settle(free, settlement(0))
    await expired(bench, 30, hold=10)
    await bench.ledger.void(await bench.reserve(money(100)))
    held = await bench.reserve(money(100))
    entries = await bench.entries()
    result = await run(bench, double)
    assert await bench.entries() == entries
    assert (result.not_from_usage, result.total.entries) == (4, 0)
    await bench.ledger.void(held)


async def test_an_estimate_that_is_its_usage_times_prices_is_corrected(
    bench: Bench, double: PriceTable
) -> None:
    noted = await bench.reserve(money(100))
    await bench.ledger.settle(noted, replace(settlement(80, is_reported=False), notes=(NOT_FROM_USAGE,)))
    await expired(bench, 30, named="req_expired")
    await run(bench, double)
    assert await bench.entries(noted.id) == [("settle", 80), ("adjust", 80)]
    assert await bench.entries("req_expired") == [("expire", 30), ("adjust", 30)]
    assert (await newest(bench))["basis"] == "estimated"


async def test_surfaces_without_a_price_list_are_left_alone(bench: Bench, double: PriceTable) -> None:
    await settled(bench, 60)
    result = await reprice(bench.store, double, {"brave": "brave"}, EVER, bench.clock)
    assert (result.not_from_usage, len(await bench.entries())) == (1, 1)


# --- late reports -----------------------------------------------------------------------------------------


async def test_a_late_report_after_a_correction_counts_from_what_is_booked(
    bench: Bench, double: PriceTable
) -> None:
    reservation = await expired(bench, 30)
    await run(bench, double)
    assert await bench.ledger.report_late(reservation.id, settlement(45))
    await bench.assert_clean()
    assert await bench.entries(reservation.id) == [("expire", 30), ("adjust", 30), ("adjust", -15)]
    assert await bench.account() == (45, 0)
    assert not await bench.ledger.report_late(reservation.id, settlement(50))
    await run(bench, double)  # The report is what it used, not the checkpoint.
    assert (await bench.entries(reservation.id))[3:] == [("adjust", 45)]
    assert await bench.account() == (90, 0)


async def test_a_late_report_and_a_correction_of_the_same_instant_are_told_apart(
    bench: Bench, double: PriceTable
) -> None:
    reservation = await expired(bench, 30)
    assert await bench.ledger.report_late(reservation.id, settlement(45))
    for _ in range(2):
        await run(bench, double)
    assert await bench.entries(reservation.id) == [("expire", 30), ("adjust", 15), ("adjust", 45)]


async def test_a_correction_between_the_look_and_the_entry_of_a_late_report_is_seen(
    bench: Bench, double: PriceTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservation = await expired(bench, 30)
    ledger, looked = bench.ledger, []
    intent_of = ledger.intent_of

    async def corrected_meanwhile(reservation_id: str) -> Any:
        if not looked:
            looked.append(await reprice(bench.store, double, PROVIDERS, EVER, bench.clock))
        return await intent_of(reservation_id)

    monkeypatch.setattr(ledger, "intent_of", corrected_meanwhile)
    assert await ledger.report_late(reservation.id, settlement(45))
    assert await bench.entries(reservation.id) == [("expire", 30), ("adjust", 30), ("adjust", -15)]
    assert await bench.account() == (45, 0)


async def test_a_late_report_between_the_look_and_the_entry_of_a_correction_is_seen(
    bench: Bench, double: PriceTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservation = await expired(bench, 30)
    book = reprice_module._book

    async def reported_meanwhile(*args: Any) -> None:
        await bench.ledger.report_late(
            reservation.id, settlement(30)
        )  # Booked at the same: only the time tells.
        await book(*args)

    monkeypatch.setattr(reprice_module, "_book", reported_meanwhile)
    assert (await run(bench, double)).changed_meanwhile == 1
    assert await bench.entries(reservation.id) == [("expire", 30), ("adjust", 0)]
    monkeypatch.setattr(reprice_module, "_book", book)
    await run(bench, double)
    assert await bench.account() == (60, 0)


# --- races and kills --------------------------------------------------------------------------------------


async def test_runs_at_once_append_each_correction_once(
    tmp_path: Path, double: PriceTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From stores of their own, as two operators would run them, beside a server that settles."""
    monkeypatch.setattr(reprice_module, "REPRICE_SEQS_MAX", 7)
    async with open_bench(tmp_path, busy_timeout_s=20) as bench:
        for _ in range(40):
            await settled(bench, 60)

        async def one_run() -> Repricing:
            async with open_store(bench.store.database) as store:
                return await reprice(store, double, PROVIDERS, Period(0, NOW_MS + 1), bench.clock)

        async def serve() -> None:
            for _ in range(20):
                await settled(bench, 60)

        first, second, _ = await asyncio.gather(one_run(), one_run(), serve())
        corrected = [cost for kind, cost in await bench.entries() if kind == "adjust"]
        assert corrected == [60] * len(corrected)
        assert len(corrected) >= 40
        assert first.total.changed + second.total.changed == len(corrected)
        assert await bench.account() == (60 * (60 + len(corrected)), 0)
        await run(bench, double)
        assert await bench.account() == (60 * 120, 0)


VICTIM = """
import asyncio, sys
from pathlib import Path
from metering import reprice as module
from metering.clock import SystemClock
from metering.prices import PriceTable
from metering.reports import Period
from metering.store.database import Database
from metering.store.store import open_store

module.REPRICE_SEQS_MAX = 5
book = module._book

async def said(*args):
    await book(*args)
    print("batch", flush=True)
    if sys.argv[3] == "waits":
        await asyncio.to_thread(sys.stdin.readline)

module._book = said

async def main():
    table = PriceTable.load(Path(sys.argv[2]))
    async with open_store(Database(Path(sys.argv[1]), 20)) as store:
        await module.reprice(store, table, {"anthropic": "v"}, Period(0, 1 << 60), SystemClock())

asyncio.run(main())
"""


def killed_after(database: Database, table: Path, batches: int, *, waits: bool) -> None:
    """A run of its own process, killed when it has said so many batches: while it waits to go on, or at work."""
    command = [sys.executable, "-c", VICTIM, str(database.path), str(table), "waits" if waits else "works"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(batches):
            if number and waits:
                print(file=process.stdin, flush=True)
            assert process.stdout.readline() == "batch\n"
        process.send_signal(signal.SIGKILL)
        ended = {-signal.SIGKILL} if waits else {-signal.SIGKILL, 0}
        assert process.wait(VICTIM_S) in ended


async def test_a_run_that_is_killed_between_batches_is_finished_by_the_next(
    tmp_path: Path, double: PriceTable
) -> None:
    async with open_bench(tmp_path) as bench:
        for _ in range(200):
            await settled(bench, 60)
        database = bench.store.database
    table = tmp_path / "double.json"
    for batches, waits, corrected in ((1, True, 5), (3, True, 15), (4, False, None)):
        await asyncio.to_thread(killed_after, database, table, batches, waits=waits)
        report = verify_file(database)
        assert report.is_clean, report.problems
        assert corrected in {None, report.entries["adjust"]}
    async with open_bench(tmp_path, database=database) as bench:
        done = sum(kind == "adjust" for kind, _ in await bench.entries())
        result = await run(bench, double)
        assert result.total.changed == 200 - done
        assert await bench.entries() == [("settle", 60)] * 200 + [("adjust", 60)] * 200
        assert await bench.account() == (24_000, 0)


# --- any history ------------------------------------------------------------------------------------------

ACTS = st.lists(
    st.tuples(
        st.sampled_from(["settle", "estimate", "expire", "report", "reprice", "void"]),
        st.integers(0, 300),
        st.integers(0, 5_000),
    ),
    max_size=14,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTS, st.integers(0, 1 << 16))
def test_after_any_history_a_run_leaves_every_request_at_what_its_usage_costs(
    acts: list[tuple[str, int, int]], seed: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_history(Path(folder), acts, random.Random(seed)))


async def _history(folder: Path, acts: list[tuple[str, int, int]], dice: random.Random) -> None:
    used: dict[str, int] = {}
    """Tokens by request, as last reported."""
    lost: list[str] = []
    async with open_bench(folder, database=new_database(folder)) as bench:
        for number, (act, amount, picousd) in enumerate(acts):
            if act == "reprice":
                table = price_table(folder, f"t{number}", input_picousd=picousd, output_picousd=picousd)
                await run(bench, table)
                continue
            if act == "report":
                if lost:
                    name = lost.pop(dice.randrange(len(lost)))
                    assert await bench.ledger.report_late(name, settlement(amount))
                    used[name] = amount
                continue
            if act == "expire":
                reservation = await expired(bench, min(amount, 100))
                used[reservation.id] = min(amount, 100)
                lost.append(reservation.id)
                continue
            reservation = await bench.reserve(money(100, of=10**9), gauge())
            if act == "void":
                await bench.ledger.void(reservation)
                continue
            await bench.ledger.settle(reservation, settlement(amount, is_reported=act == "settle"))
            used[reservation.id] = amount
            bench.clock.advance(dice.randrange(2))
        final = price_table(folder, "final", input_picousd=7_000, output_picousd=7_000)
        await run(bench, final)
        again = await run(bench, final)
        assert (again.total.changed, again.changed_meanwhile) == (0, 0)
        costs = {name: 7 * tokens for name, tokens in used.items()}
        for name, cost in costs.items():
            assert sum(each for _, each in await bench.entries(name)) == cost
        assert await bench.account() == (sum(costs.values()), 0)
