"""Rows of work that goes on: what is ended for whom, once, and asked about at once then."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from metering.deferred import Abandoned, DeferredWork, DeferredWorks, running_of
from metering.ledger import Reservation
from metering.store.writer import Unit
from metering.users import Directory
from tests.support.ledger import NOW_MS, Bench, gauge, intent, open_bench, settlement

POLL_S, RETRY_S, DUE_S = 600.0, 60.0, 900.0


@dataclass
class House:
    bench: Bench
    works: DeferredWorks
    directory: Directory

    async def begin(self, user_id: str = "ada") -> Reservation:
        due_at_ms = NOW_MS + round(DUE_S * 1000)
        asked = intent(gauge(owner=f"user:{user_id}"), user_id=user_id, due_at_ms=due_at_ms)
        held = await self.bench.ledger.reserve(asked)
        assert isinstance(held, Reservation)
        work = DeferredWork(held.id, "openai", "POST /v1/responses", "resp_1", "{}")
        await self.bench.store.writer.submit(Unit((self.works.adding(work, poll_in_s=POLL_S),)))
        return held

    async def abandoned(self, *, attempts_max: int = 3, after: str = "") -> list[Abandoned]:
        return await self.works.abandoned(after=after, attempts_max=attempts_max, at_most=2)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_bench(tmp_path) as bench:
        directory = Directory(bench.store, bench.clock)
        for user_id in ("ada", "bob"):
            await directory.add_user(user_id, plan="pro")
            await directory.create_token(user_id)
        yield House(bench, DeferredWorks(bench.store, bench.clock), directory)


async def test_what_is_ended_is_asked_about_at_once_and_told_once(house: House):
    held = await house.begin()
    assert (await house.abandoned(), await house.works.due(at_most=9)) == ([], [])
    await house.directory.disable("ada")
    (work,) = await house.abandoned()
    assert (work.reservation_id, work.user_id, work.attempts) == (held.id, "ada", 0)
    assert await house.works.claim_ending(work, next_attempt_in_s=RETRY_S)
    assert await house.works.due(at_most=9) == []
    await house.works.ended(work)
    (due,) = await house.works.due(at_most=9)
    assert due.reservation_id == held.id
    house.bench.clock.advance(10 * RETRY_S)
    assert await house.abandoned() == []
    assert not await house.works.claim_ending(work, next_attempt_in_s=RETRY_S)
    assert await house.works.claim(due, next_poll_in_s=POLL_S)
    await house.works.ended(work)
    assert await house.works.due(at_most=9) == [], "told twice, it is asked about once"


async def test_attempts_are_counted_spaced_and_bounded(house: House):
    await house.begin()
    await house.directory.disable("ada")
    for attempt in range(3):
        (work,) = await house.abandoned()
        assert work.attempts == attempt
        assert await house.works.claim_ending(work, next_attempt_in_s=RETRY_S)
        assert not await house.works.claim_ending(work, next_attempt_in_s=RETRY_S)
        house.bench.clock.advance(RETRY_S - 1)
        assert await house.abandoned() == []
        house.bench.clock.advance(1)
    assert await house.abandoned() == []


async def test_only_what_is_not_booked_is_ended_and_in_pages(house: House):
    held = [await house.begin(user_id) for user_id in ("ada", "ada", "bob", "ada", "ada")]
    await house.directory.disable("ada")
    await house.bench.ledger.settle(held[1], settlement(0))
    first = await house.abandoned()
    assert [work.reservation_id for work in first] == [held[0].id, held[3].id]
    rest = await house.abandoned(after=first[-1].reservation_id)
    assert [work.reservation_id for work in rest] == [held[4].id]
    assert await running_of(house.bench.store.readers, "ada") == [("openai", "POST /v1/responses", 3)]
    house.bench.clock.advance(DUE_S + 1)
    await house.bench.ledger.expire_overdue()
    assert await house.abandoned() == first, "expired here, it may run there"


async def test_what_waits_for_a_clock_that_was_set_back_is_asked_about_now(house: House):
    await house.begin()
    house.bench.clock.advance(-600)
    assert await house.works.due(at_most=9) == [], "a little is waited for"
    house.bench.clock.advance(-7_200)
    (due,) = await house.works.due(at_most=9)
    assert await house.works.claim(due, next_poll_in_s=POLL_S)
    assert await house.works.due(at_most=9) == []
    house.bench.clock.advance(POLL_S)
    assert len(await house.works.due(at_most=9)) == 1
    assert await house.works.due(at_most=9, without=["openai"]) == []


async def test_an_attempt_that_waits_for_a_clock_that_was_set_back_is_made_now(house: House):
    await house.begin()
    await house.directory.disable("ada")
    (work,) = await house.abandoned()
    assert await house.works.claim_ending(work, next_attempt_in_s=RETRY_S)
    house.bench.clock.advance(-600)
    assert await house.abandoned() == [], "a little is waited for"
    house.bench.clock.advance(-7_200)
    (work,) = await house.abandoned()
    assert await house.works.claim_ending(work, next_attempt_in_s=RETRY_S)
    assert await house.abandoned() == []


async def test_the_time_for_which_nobody_asked_does_not_expire_a_hold(house: House):
    await house.begin()
    house.bench.clock.advance(2 * DUE_S)
    assert await house.bench.ledger.expire_overdue() == 0
    (due,) = await house.works.due(at_most=9)
    assert await house.works.claim(due, next_poll_in_s=POLL_S)
    assert await house.bench.ledger.expire_overdue() == 0, "it is asked about"
    house.bench.clock.advance(DUE_S - POLL_S + 1)
    assert await house.bench.ledger.expire_overdue() == 1, "nothing came of that"
