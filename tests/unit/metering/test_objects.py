"""Whose is what: bound once, never to two, and released by nobody but an operator."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metering import objects as module
from metering.admission import OWNERS_CHANGED
from metering.ledger import Ledger, Reservation
from metering.objects import (
    IDS_AT_ONCE,
    OBJECT_CHANGE,
    OWNED_BY_ANOTHER,
    NoSuchObjectError,
    ObjectId,
    Objects,
    ObjectsError,
    owned,
    owned_objects,
)
from metering.store.store import open_store
from metering.store.writer import Declined, Done, Step, Unit
from tests.support.ledger import NOW_MS, Bench, gauge, intent, open_bench, settlement

ONE, TWO = ObjectId("openai", "response", "resp_1"), ObjectId("openai", "response", "resp_2")


@dataclass
class House:
    bench: Bench
    objects: Objects

    def another(self) -> Objects:
        """Another process before the same store."""
        return Objects(self.bench.store, self.bench.clock)

    async def written(self) -> None:
        """What was queued until now is in the store."""
        await self.bench.store.writer.submit(Unit(()))

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


# --- releasing ----------------------------------------------------------------------------------------


async def begin(
    house: House, objects: Objects, heard_seq: int, *, user_id: str = "ada"
) -> Reservation | Declined:
    """A request that stands on what is the user's by what was heard until then."""
    held = intent(gauge(owner=f"user:{user_id}"), user_id=user_id)
    return await house.bench.ledger.reserve(held, objects.unchanged(user_id, heard_seq))


async def changes(house: House) -> list[tuple[int, str, str]]:
    """As a worker hears of them."""
    return await house.bench.store.readers.rows("SELECT seq, kind, subject FROM changes ORDER BY seq")  # type: ignore[return-value]


async def test_what_is_released_is_nobodys_and_the_next_users_at_once(house: House):
    await house.objects.bind([ONE, TWO], "ada", "req_1")
    await house.objects.release(ONE, "ada")
    assert await house.another().owners({ONE, TWO}) == {TWO: "ada"}
    assert [change[1:] for change in await changes(house)] == [(OBJECT_CHANGE, "ada")]
    assert isinstance(await house.objects.bind([ONE], "bob", "req_2"), Done)
    assert await house.another().owners({ONE, TWO}) == {ONE: "bob", TWO: "ada"}
    await house.bench.assert_clean()


async def test_its_old_owner_may_have_it_again_where_the_vendor_hands_it_out_again(house: House):
    await house.objects.bind([ONE], "ada", "req_1")
    await house.objects.release(ONE, "ada")
    assert isinstance(await house.objects.bind([ONE], "ada", "req_2"), Done)
    assert await house.another().owners({ONE}) == {ONE: "ada"}


async def test_nothing_is_released_while_its_owner_has_a_request_under_way(house: House):
    await house.objects.bind([ONE], "ada", "req_1")
    mine, theirs = [await begin(house, house.objects, 0, user_id=user) for user in ("ada", "bob")]
    assert isinstance(mine, Reservation)
    assert isinstance(theirs, Reservation)
    with pytest.raises(ObjectsError, match="ada has requests under way"):
        await house.objects.release(ONE, "ada")
    assert await house.another().owners({ONE}) == {ONE: "ada"}
    assert await changes(house) == []
    await house.bench.ledger.settle(mine, settlement(0))
    await house.objects.release(ONE, "ada")  # whatever bob does
    assert await house.another().owners({ONE}) == {}


@pytest.mark.parametrize(("one", "user"), [(TWO, "ada"), (ONE, "bob")])
async def test_what_is_not_the_users_is_not_released(house: House, one: ObjectId, user: str):
    await house.objects.bind([ONE], "ada", "req_1")
    with pytest.raises(NoSuchObjectError):
        await house.objects.release(one, user)
    assert await house.another().owners({ONE, TWO}) == {ONE: "ada"}
    assert await changes(house) == []


async def test_the_second_release_finds_nothing_also_beside_a_request(house: House):
    await house.objects.bind([ONE], "ada", "req_1")
    await house.objects.release(ONE, "ada")
    for _ in range(2):
        with pytest.raises(NoSuchObjectError):
            await house.objects.release(ONE, "ada")
        await begin(house, house.objects, 1)


async def test_no_request_begins_on_an_owner_remembered_from_before_a_release(house: House):
    await house.objects.bind([ONE], "ada", "req_1")
    assert await house.objects.owners({ONE}, asking="ada") == {ONE: "ada"}
    heard_seq = house.objects.heard_seq
    await house.another().release(ONE, "ada")
    assert await house.objects.owners({ONE}, asking="ada") == {ONE: "ada"}, "it has not heard of it"
    assert await begin(house, house.objects, heard_seq) == Declined(OWNERS_CHANGED)
    assert isinstance(await begin(house, house.objects, heard_seq, user_id="bob"), Reservation)
    ((seq, kind, subject),) = await changes(house)
    house.objects.heard(seq, {(kind, subject)})
    assert await house.objects.owners({ONE}, asking="ada") == {}
    assert isinstance(await begin(house, house.objects, house.objects.heard_seq), Reservation)


async def test_what_others_remember_as_another_s_is_their_new_owners_at_once(house: House):
    await house.objects.bind([ONE], "ada", "req_1")
    other = house.another()
    await other.release(ONE, "ada")
    await other.bind([ONE], "bob", "req_2")
    assert await house.objects.owners({ONE}) == {ONE: "ada"}, "it has not heard of it"
    assert await house.objects.owners({ONE}, asking="bob") == {ONE: "bob"}


async def test_a_release_forgets_what_its_owner_has_and_nothing_else(house: House):
    await house.objects.bind([ONE], "ada", "req_1")
    await house.objects.bind([TWO], "bob", "req_2")
    house.objects.heard(1, {("user", "bob"), ("token", "ada"), (OBJECT_CHANGE, "ada")})
    assert dict(house.objects._known) == {TWO: "bob"}
    house.objects.heard(2, None)
    assert not house.objects._known


async def test_an_answer_older_than_a_change_that_was_heard_is_not_remembered(house: House):
    binding = house.objects.bind([ONE], "ada", "req_1")
    house.objects.heard(1, set())
    await binding
    assert not house.objects._known
    reading = asyncio.get_running_loop().create_task(house.objects.owners({ONE}))
    await asyncio.sleep(0)
    house.objects.heard(2, set())
    assert await reading == {ONE: "ada"}
    assert not house.objects._known
    assert await house.objects.owners({ONE}) == {ONE: "ada"}
    assert dict(house.objects._known) == {ONE: "ada"}


async def test_of_a_request_and_a_release_that_race_from_two_processes_one_finds_the_other(house: House):
    """And both orders happen."""
    wins = {"request": 0, "release": 0}
    async with open_store(house.bench.store.database) as store:
        ours, theirs = house.objects, Objects(store, house.bench.clock)
        ledger = Ledger(store, house.bench.clock, "wrk_b")
        for number in range(200):
            if wins["request"] and wins["release"]:
                break
            one = ObjectId("openai", "response", f"resp_{number}")
            await ours.bind([one], "ada", "req_1")
            ((heard_seq,),) = await store.readers.rows("SELECT COALESCE(MAX(seq), 0) FROM changes")
            assert isinstance(heard_seq, int)
            request = ledger.reserve(intent(gauge()), theirs.unchanged("ada", heard_seq))
            racing = [request, ours.release(one, "ada")]
            reserved, released = await asyncio.gather(*racing, return_exceptions=True)
            if isinstance(reserved, Reservation):
                wins["request"] += 1
                assert isinstance(released, ObjectsError)
                await ledger.settle(reserved, settlement(0))
            else:
                wins["release"] += 1
                assert (reserved, released) == (Declined(OWNERS_CHANGED), None)
    assert all(wins.values()), wins


async def test_a_late_word_that_it_is_gone_does_not_touch_its_next_owners(house: House):
    await house.objects.bind([ONE], "ada", "req_1")
    house.objects.mark_gone(ONE, "bob")
    await house.written()
    assert await house.objects.first_of("openai", "response", "ada") == ONE.upstream_id
    house.objects.mark_gone(ONE, "ada")
    await house.written()
    assert await house.objects.first_of("openai", "response", "ada") is None


# --- for operators ------------------------------------------------------------------------------------


async def test_an_object_is_shown_as_it_was_bound(house: House):
    await house.objects.bind([ONE], "ada", "req_1")
    house.bench.clock.advance(60)
    await house.objects.bind([ONE], "ada", "req_2")
    found = await owned(house.bench.store.readers, ONE)
    assert (found.id, found.user_id, found.reservation_id) == (ONE, "ada", "req_1")
    assert (found.created_at_ms, found.gone_at_ms) == (NOW_MS, None)
    with pytest.raises(NoSuchObjectError, match="nobody owns openai response resp_2"):
        await owned(house.bench.store.readers, TWO)


async def test_objects_are_listed_by_user_vendor_kind_and_whether_they_are_gone(house: House):
    inbox = ObjectId("agentmail", "inbox", "wren@x.test")
    for one, user in ((ONE, "ada"), (TWO, "bob"), (inbox, "ada")):
        await house.objects.bind([one], user, "req_1")
        house.bench.clock.advance(1)
    house.objects.mark_gone(inbox, "ada")
    await house.written()

    async def ids(**how: Any) -> list[ObjectId]:
        return [each.id for each in await owned_objects(house.bench.store.readers, **how)]

    assert await ids() == [inbox, TWO, ONE]
    assert await ids(at_most=1) == [inbox]
    assert await ids(user_id="ada") == [inbox, ONE]
    assert await ids(vendor="openai", kind="response") == [TWO, ONE]
    assert await ids(user_id="ada", vendor="openai", kind="response") == [ONE]
    assert await ids(kind="item") == []
    assert await ids(is_gone=True) == [inbox]
    assert await ids(user_id="bob", is_gone=True) == []
