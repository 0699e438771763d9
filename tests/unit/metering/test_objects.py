"""Whose is what: bound once, for good, and never to two."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from metering import objects as module
from metering.objects import IDS_AT_ONCE, OWNED_BY_ANOTHER, ObjectId, Objects
from metering.store.writer import Declined, Done, Step
from tests.support.ledger import Bench, open_bench

ONE, TWO = ObjectId("openai", "response", "resp_1"), ObjectId("openai", "response", "resp_2")


@dataclass
class House:
    bench: Bench
    objects: Objects

    def another(self) -> Objects:
        """Another process before the same store."""
        return Objects(self.bench.store, self.bench.clock)

    async def rows(self) -> set[tuple[object, ...]]:
        statement = "SELECT kind, upstream_id, user_id, reservation_id FROM owned_objects"
        return set(await self.bench.store.readers.rows(statement))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_bench(tmp_path) as bench:
        yield House(bench, Objects(bench.store, bench.clock))


async def test_what_is_bound_has_its_owner_everywhere(house: House):
    assert isinstance(await house.objects.bind([ONE, TWO], "ada", "req_1"), Done)
    for objects in (house.objects, house.another()):
        assert await objects.owners({ONE, TWO}) == {ONE: "ada", TWO: "ada"}
    assert await house.rows() == {
        ("response", "resp_1", "ada", "req_1"),
        ("response", "resp_2", "ada", "req_1"),
    }


async def test_what_nobody_has_bound_has_no_owner(house: House):
    assert await house.objects.owners({ONE}) == {}
    await house.objects.bind([ONE], "ada", "req_1")
    others = {ONE._replace(vendor="brave"), ONE._replace(kind="item"), ONE._replace(upstream_id="resp_10")}
    assert await house.another().owners(others) == {}


async def test_binding_again_changes_nothing(house: House):
    await house.objects.bind([ONE], "ada", "req_1")
    assert isinstance(await house.objects.bind([ONE, TWO], "ada", "req_2"), Done)
    assert await house.rows() == {
        ("response", "resp_1", "ada", "req_1"),
        ("response", "resp_2", "ada", "req_2"),
    }


async def test_an_object_never_gets_a_second_owner_and_the_whole_unit_is_undone(house: House):
    await house.objects.bind([ONE], "ada", "req_1")
    more = Step("INSERT INTO changes (kind, subject, at_ms) VALUES ('x', 'x', ?1)", (1,))
    for objects in (house.objects, house.another()):
        assert await objects.bind([TWO, ONE], "bob", "req_2", more) == Declined(OWNED_BY_ANOTHER)
        assert await objects.owners({ONE, TWO}) == {ONE: "ada"}
    assert await house.bench.store.readers.rows("SELECT * FROM changes WHERE kind = 'x'") == []


async def test_of_many_who_race_for_an_object_one_gets_it(house: House):
    users = [f"u{number}" for number in range(50)]
    racing = [house.another().bind([ONE], user, f"req_{user}") for user in users]
    results = await asyncio.gather(*racing)
    (winner,) = [user for user, result in zip(users, results, strict=True) if isinstance(result, Done)]
    assert await house.objects.owners({ONE}) == {ONE: winner}


async def test_more_ids_than_one_statement_takes_are_all_looked_up(house: House):
    many = [ObjectId("openai", "item", f"msg_{number}") for number in range(IDS_AT_ONCE * 2 + 1)]
    await house.objects.bind(many[::2], "ada", "req_1")
    assert await house.another().owners(many) == dict.fromkeys(many[::2], "ada")


async def test_memory_of_owners_is_bounded_and_what_falls_out_is_read_again(house: House, monkeypatch):
    monkeypatch.setattr(module, "KNOWN_MAX", 3)
    many = [ObjectId("openai", "item", f"msg_{number}") for number in range(10)]
    await house.objects.bind(many, "ada", "req_1")
    assert len(house.objects._known) == 3
    assert await house.objects.owners(many) == dict.fromkeys(many, "ada")
    assert len(house.objects._known) == 3
