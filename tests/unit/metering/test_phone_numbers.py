"""Whose a phone number is, and was: one user's at a time, and one to a user."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from metering.deferred import DeferredWork, DeferredWorks
from metering.objects import ObjectId, Objects, ObjectsError
from metering.phone_numbers import PhoneNumbers
from metering.users import Directory, NotFoundError
from tests.support.ledger import NOW_MS, Bench, gauge, intent, money, open_bench

ONE, TWO = "+14155550100", "+14155550101"


@dataclass
class House:
    bench: Bench
    numbers: PhoneNumbers
    objects: Objects

    async def owners(self) -> dict[str, str]:
        found = await self.objects.stored_owners([ObjectId("bland", "number", one) for one in (ONE, TWO)])
        return {one.upstream_id: user_id for one, user_id in found.items()}

    async def release(self, phone_number: str, user_id: str) -> None:
        await self.objects.release(ObjectId("bland", "number", phone_number), user_id)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_bench(tmp_path) as bench:
        directory = Directory(bench.store, bench.clock)
        for user_id in ("ann", "bob"):
            await directory.add_user(user_id, plan="pro")
        yield House(bench, PhoneNumbers(bench.store, bench.clock), Objects(bench.store, bench.clock))


async def test_a_number_is_assigned_released_and_another_users_then(house: House):
    numbers, clock = house.numbers, house.bench.clock
    assert await numbers.assign("ann", ONE) is None
    assert (await house.owners(), await numbers.of("ann")) == ({ONE: "ann"}, ONE)
    clock.ms += 1_000
    await house.release(ONE, "ann")
    assert (await house.owners(), await numbers.of("ann")) == ({}, None)
    clock.ms += 1_000
    await numbers.assign("bob", ONE)
    assert await house.owners() == {ONE: "bob"}
    number = ObjectId("bland", "number", ONE)
    owners = [
        await house.objects.owner_at(number, NOW_MS + ms) for ms in (-1, 0, 999, 1_000, 1_999, 2_000, 10**9)
    ]
    assert owners == [None, "ann", "ann", None, None, "bob", "bob"]
    assert [(term.user_id, term.until_ms) for term in await numbers.terms()] == [
        ("bob", None),
        ("ann", NOW_MS + 1_000),
    ]
    view = await house.bench.store.readers.rows("SELECT user_id, phone_number, created_at FROM phone_numbers")
    assert view == [("bob", ONE, (NOW_MS + 2_000) // 1000)]


async def test_a_user_has_one_number_and_a_number_one_user(house: House):
    await house.numbers.assign("ann", ONE)
    assert await house.numbers.assign("ann", ONE) is None
    with pytest.raises(ObjectsError, match="is another user's"):
        await house.numbers.assign("bob", ONE)
    with pytest.raises(ObjectsError, match=r"has \+14155550100: --replace"):
        await house.numbers.assign("ann", TWO)
    assert await house.owners() == {ONE: "ann"}
    assert await house.numbers.assign("ann", TWO, replaces=True) == ONE
    assert await house.owners() == {TWO: "ann"}
    with pytest.raises(NotFoundError, match="no user eve"):
        await house.numbers.assign("eve", ONE)
    assert len(await house.numbers.terms()) == 2


async def test_a_replacement_that_is_taken_changes_nothing(house: House):
    await house.numbers.assign("ann", ONE)
    await house.numbers.assign("bob", TWO)
    with pytest.raises(ObjectsError, match="is another user's"):
        await house.numbers.assign("ann", TWO, replaces=True)
    assert await house.owners() == {ONE: "ann", TWO: "bob"}


async def test_of_many_who_are_given_a_number_at_once_one_has_it(house: House):
    given = (house.numbers.assign(user_id, ONE) for user_id in ("ann", "bob") * 5)
    results = await asyncio.gather(*given, return_exceptions=True)
    assert len((await house.owners()).keys()) == 1
    assert len(await house.numbers.terms()) == 1
    assert sum(isinstance(result, ObjectsError) for result in results) >= 5


@pytest.mark.parametrize(
    "given",
    [
        "",
        "4155550100",
        "+04155550100",
        "+1415555010a",
        "+1 415 555 0100",
        "+1415",
        "+1" * 9,
        "+14155550100\n",
    ],
)
async def test_what_is_no_number_in_full_is_refused(house: House, given: str):
    with pytest.raises(ObjectsError, match="expected a phone number in full"):
        await house.numbers.assign("ann", given)
    assert await house.numbers.terms() == []


async def test_a_number_is_not_released_while_a_call_is_being_asked_for(house: House):
    """Such a request is held among the calls, not among the requests in flight."""
    works = DeferredWorks(house.bench.store, house.bench.clock)
    await house.numbers.assign("ann", ONE)
    asked = intent(money(1, owner="user:ann"), user_id="ann")
    opening = works.opening(DeferredWork(asked.id, "bland", "POST /v1/calls", "", "{}"))
    reservation = await house.bench.ledger.reserve(asked, opening)
    with pytest.raises(ObjectsError, match="may be in use"):
        await house.release(ONE, "ann")
    with pytest.raises(ObjectsError, match="requests under way"):
        await house.numbers.assign("ann", TWO, replaces=True)
    assert await house.owners() == {ONE: "ann"}
    await house.bench.ledger.void(reservation)
    await house.release(ONE, "ann")


async def test_a_number_is_not_replaced_while_its_user_has_a_request_under_way(house: House):
    await house.numbers.assign("ann", ONE)
    held = await house.bench.reserve(gauge(owner="user:ann"), user_id="ann")
    with pytest.raises(ObjectsError, match="requests under way"):
        await house.numbers.assign("ann", TWO, replaces=True)
    await house.bench.ledger.void(held)
    assert await house.numbers.assign("ann", TWO, replaces=True) == ONE
