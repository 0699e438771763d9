"""Objects without an owner: whose they are, and when they are bound."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metering.heartbeat import Heartbeat
from metering.ledger import Reservation
from metering.objects import IDS_AT_ONCE, ObjectId, Objects
from metering.orphans import SWEPT, Orphan, Orphans, State, Trace
from metering.store.writer import Step, Unit
from tests.support.ledger import Bench, gauge, intent, open_bench, settlement

POD, INBOX = ObjectId("mail", "pod", "pod_1"), ObjectId("mail", "inbox", "in_1")
MAKER = "POST /v1/messages"
"""The operation of every reservation here."""
MAKERS = [MAKER]
EVERY_S = 600.0


@dataclass
class House:
    bench: Bench
    orphans: Orphans
    objects: Objects
    heartbeat: Heartbeat

    async def request(self, user_id: str = "ada", *, is_alive: bool = True, is_over: bool = False) -> str:
        """Of a worker that lives, or has died."""
        if is_alive:
            await self.heartbeat.beat()
        held = await self.bench.ledger.reserve(intent(gauge(owner=f"user:{user_id}"), user_id=user_id))
        assert isinstance(held, Reservation)
        if is_over:
            await self.bench.ledger.settle(held, settlement(0))
        return held.id

    async def look(self, **more: Any) -> Orphan:
        return await self.orphans.look_at(Trace(INBOX, **more), MAKERS)

    async def owners(self) -> list[tuple[object, ...]]:
        sql = "SELECT user_id, reservation_id FROM owned_objects WHERE kind = 'inbox'"
        return list(await self.bench.store.readers.rows(sql))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_bench(tmp_path) as bench:
        store, clock = bench.store, bench.clock
        heartbeat = Heartbeat(store, bench.ledger, clock)
        yield House(bench, Orphans(store, clock), Objects(store, clock), heartbeat)


async def test_only_what_has_no_owner_is_an_orphan(house: House):
    ids = [INBOX._replace(upstream_id=f"in_{number}") for number in range(IDS_AT_ONCE * 2 + 3)]
    await house.objects.bind(ids[::2], "ada", "req_1")
    assert [trace.one for trace in await house.orphans.among([Trace(one) for one in ids])] == ids[1::2]
    assert await house.orphans.among([]) == []


async def test_whose_it_is_is_known_by_the_request_that_made_it(house: House):
    request_id = await house.request(is_over=True)
    found = await house.look(request_id=request_id)
    assert (found.state, found.user_id) == (State.ATTRIBUTABLE, "ada")
    assert await house.orphans.bind(found, MAKERS)
    assert await house.owners() == [("ada", request_id)]
    assert await house.objects.owners([INBOX]) == {INBOX: "ada"}


async def test_or_by_what_it_lies_in(house: House):
    await house.objects.bind([POD], "ada", "home:pod")
    found = await house.look(within=POD)
    assert (found.state, found.user_id) == (State.ATTRIBUTABLE, "ada")
    assert await house.orphans.bind(found, MAKERS)
    assert await house.owners() == [("ada", SWEPT)]


@pytest.mark.parametrize(
    ("request_of", "pod_of", "expected"),
    [
        (None, None, State.UNKNOWN),
        ("ada", None, State.ATTRIBUTABLE),
        (None, "ada", State.ATTRIBUTABLE),
        ("ada", "ada", State.ATTRIBUTABLE),
        ("ada", "bob", State.UNKNOWN),
    ],
)
async def test_two_users_are_nobody(
    house: House, request_of: str | None, pod_of: str | None, expected: State
):
    request_id = "req_of_another_deployment" if request_of is None else await house.request(is_over=True)
    if pod_of is not None:
        await house.objects.bind([POD], pod_of, "home:pod")
    assert (await house.look(request_id=request_id, within=POD)).state is expected


@pytest.mark.parametrize(
    ("is_alive", "is_over", "expected"),
    [
        (True, False, State.UNDER_WAY),
        (True, True, State.ATTRIBUTABLE),
        (False, False, State.ATTRIBUTABLE),
        (False, True, State.ATTRIBUTABLE),
    ],
    ids=["under way", "over", "its worker is dead", "dead after its end"],
)
@pytest.mark.parametrize("by", ["tag", "home"])
async def test_what_a_request_is_making_is_left_to_it(
    house: House, by: str, is_alive: bool, is_over: bool, expected: State
):
    request_id = await house.request(is_alive=is_alive, is_over=is_over)
    await house.objects.bind([POD], "ada", "home:pod")
    more: dict[str, Any] = {"request_id": request_id} if by == "tag" else {"within": POD}
    found = await house.look(**more)
    assert found.state is expected
    if expected is State.UNDER_WAY:
        assert not await house.orphans.bind(found, MAKERS), "nor if it had been over when it was looked at"
        assert await house.owners() == []


@pytest.mark.parametrize(("user_id", "makers"), [("ada", ["POST /inboxes"]), ("bob", MAKERS)])
async def test_what_others_make_or_a_request_that_makes_something_else_is_no_matter(
    house: House, user_id: str, makers: list[str]
):
    await house.request(user_id)
    await house.objects.bind([POD], "ada", "home:pod")
    orphan = await house.orphans.look_at(Trace(INBOX, within=POD), makers)
    assert orphan.state is State.ATTRIBUTABLE
    assert await house.orphans.bind(orphan, makers)


async def test_what_an_operator_has_released_is_not_given_back(house: House):
    request_id = await house.request(is_over=True)
    found = await house.look(request_id=request_id)
    await house.objects.bind([INBOX], "ada", request_id)
    await house.objects.release(INBOX, "ada")
    assert not await house.orphans.bind(found, MAKERS)
    assert (await house.look(request_id=request_id)).state is State.RELEASED
    await house.objects.bind([INBOX], "bob", "req_2")  # as the vendor handed it out
    assert await house.owners() == [("bob", "req_2")]
    await house.objects.release(INBOX, "bob")
    assert (await house.look(request_id=request_id)).state is State.RELEASED


async def test_what_changed_since_it_was_looked_at_is_not_bound(house: House):
    async def its_pod_is_another_s() -> None:
        await house.objects.release(POD, "ada")
        await house.objects.bind([POD], "bob", "home:pod")

    async def it_is_bound() -> None:
        await house.objects.bind([INBOX], "bob", "req_1")

    for change in (its_pod_is_another_s, it_is_bound):
        await house.objects.bind([POD], "ada", "home:pod")
        found = await house.look(within=POD)
        await change()
        before = await house.owners()
        assert not await house.orphans.bind(found, MAKERS)
        assert await house.owners() == before
        await house.objects.release(POD, (await house.objects.owners([POD]))[POD])


async def test_the_request_that_made_it_may_bind_it_again(house: House):
    """A worker that was taken for dead, and lives."""
    request_id = await house.request(is_alive=False)
    assert await house.orphans.bind(await house.look(request_id=request_id), MAKERS)
    await house.objects.bind([INBOX], "ada", request_id)
    assert await house.owners() == [("ada", request_id)]


async def test_what_stands_beside_it_is_written_with_it_or_not_at_all(house: House):
    request_id = await house.request(is_over=True)
    found = await house.look(request_id=request_id)
    insert = "INSERT INTO changes (kind, subject, at_ms) VALUES ('mark', ?1, 1)"
    asked = [house.orphans.bind(found, MAKERS, Step(insert, (str(number),))) for number in range(10)]
    assert sum(await asyncio.gather(*asked)) == 1
    marks = await house.bench.store.readers.rows("SELECT subject FROM changes WHERE kind = 'mark'")
    assert len(marks) == 1


@pytest.mark.parametrize("at_once", [1, 10])
async def test_a_sweep_is_one_workers_at_a_time(house: House, at_once: int):
    async def claims(every_s: float = EVERY_S) -> int:
        many: list[Coroutine[Any, Any, bool]] = [
            house.orphans.claim("mail", "inbox", every_s=every_s) for _ in range(at_once)
        ]
        return sum(await asyncio.gather(*many))

    advance: Callable[[float], None] = house.bench.clock.advance
    assert await claims() == 0, "not at the start: a server may be started again and again"
    advance(EVERY_S)
    assert [await claims(), await claims()] == [1, 0]
    advance(EVERY_S - 1)
    assert await claims() == 0
    advance(1)
    assert [await claims(), await claims()] == [1, 0]
    assert await claims(every_s=10.0) == 1, "the setting was lowered"
    assert not await house.orphans.claim("mail", "pod", every_s=EVERY_S)
    await house.bench.store.writer.submit(Unit(()))
