"""What is kept of calls: what is told of one adds up, and a call whose end nobody told goes on for as long as it is asked about."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from metering.call_records import CALL, SUMMARY_CHARS_MAX, VENDOR, CallRecord, recent_of, totals_of
from metering.deferred import DeferredWork, DeferredWorks
from metering.ledger import Reservation
from metering.objects import ObjectId, Objects
from metering.store.writer import Step, Unit
from tests.support.ledger import NOW_MS, Bench, gauge, money, open_bench, settlement

ONE, TWO = "+14155550100", "+14155550101"
COST_NANOUSD = 15_000_000


@dataclass
class House:
    bench: Bench
    works: DeferredWorks

    async def call(self, user_id: str = "ada") -> tuple[Reservation, DeferredWork]:
        """One that is dialled, and asked about."""
        held = await self.bench.reserve(
            gauge(), money(COST_NANOUSD, of=10**9), user_id=user_id, due_at_ms=NOW_MS
        )
        work = DeferredWork(held.id, "bland", "POST /v1/calls", f"call_{held.id}", "{}")
        await Objects(self.bench.store, self.bench.clock).bind(
            [ObjectId(VENDOR, CALL, work.upstream_id)],
            user_id,
            held.id,
            self.works.adding(work, poll_in_s=1.0),
        )
        return held, work

    async def write(self, *steps: Step) -> None:
        await self.bench.store.writer.submit(Unit(steps))

    async def shown(self, user_id: str = "ada") -> list[tuple[object, ...]]:
        found = await recent_of(self.bench.store.readers, user_id)
        return [
            (one["to"], one["from"], one["status"], one["duration_seconds"], one["summary"]) for one in found
        ]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_bench(tmp_path) as bench:
        yield House(bench, DeferredWorks(bench.store, bench.clock))


async def test_what_is_told_of_a_call_adds_up_and_nothing_of_it_is_unsaid(house: House):
    held, _ = await house.call()
    await house.write(CallRecord(ONE, TWO).keeping(held.id))
    assert await house.shown() == [(ONE, TWO, "initiated", None, None)]
    ended = CallRecord(status="voicemail", duration_seconds=7, summary="x" * 10_000)
    await house.write(ended.keeping(held.id))
    await house.write(CallRecord(duration_seconds=0).keeping(held.id))
    assert await house.shown() == [(ONE, TWO, "voicemail", 0, "x" * SUMMARY_CHARS_MAX)]
    assert await house.shown("bob") == []


async def test_a_call_nobody_tells_the_end_of_goes_on_while_it_is_asked_about_and_has_failed_then(
    house: House,
):
    _, work = await house.call()
    house.bench.clock.advance(1)
    assert await house.bench.ledger.expire_overdue() == 1
    assert [row[2:4] for row in await house.shown()] == [("initiated", None)]
    await house.works.forget(work)
    assert [row[2:4] for row in await house.shown()] == [("failed", 0)]


async def test_the_sum_is_of_all_calls_of_the_user_by_what_was_booked(house: House):
    readers = house.bench.store.readers
    for _ in range(3):
        held, work = await house.call()
        await house.bench.ledger.settle(held, settlement(COST_NANOUSD + 1))  # with an overage
        await house.works.forget(work)
    await house.call("bob")
    await house.call()
    assert await totals_of(readers, "ada") == (4, 3 * (COST_NANOUSD + 1))
    assert await totals_of(readers, "bob") == (1, 0)
    cents = await readers.rows(
        "SELECT cost_cents FROM call_usage WHERE user_id = 'ada' ORDER BY created_at, id"
    )
    assert cents == [(2,), (2,), (2,), (0,)]
