"""Who is admitted when the look-out for revocations was late, or cannot look."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metering.clock import ManualClock
from metering.errors import Reason, Refused
from metering.grants import grant
from metering.plans import load_plans
from metering.store.store import Store
from metering.store.writer import Step, Unit
from metering.terms import TO_BE_NAMED, Cap, CapMeter, CapPeriod, Scope
from metering.users import Directory
from proxy.auth import Authenticator
from tests.support.ledger import open_bench

STALE_AFTER_S = 1.0
POLL_S = 0.25


class CountingDirectory(Directory):
    """A directory that counts the looks, and whose looks fail when told to."""

    looks = 0
    is_broken = False

    async def changes_since(self, seq: int, *, changes_max: int = 1_000) -> list[tuple[int, str, str]] | None:
        self.looks += 1
        if self.is_broken:
            raise Refused(Reason.STORE_UNAVAILABLE, "broken")
        return await super().changes_since(seq, changes_max=changes_max)


@dataclass
class Door:
    authenticator: Authenticator
    directory: CountingDirectory
    store: Store
    clock: ManualClock
    token: bytes
    token_id: str

    async def admits(self) -> bool:
        return (await self.authenticator.authenticate({self.token})).token_id == self.token_id


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with open_bench(tmp_path) as bench:
        directory = CountingDirectory(bench.store, bench.clock)
        await directory.add_user("ada", plan="pro")
        token, made = await directory.create_token("ada")
        authenticator = Authenticator(
            directory, load_plans(), bench.clock, cache_max=10, poll_s=POLL_S, stale_after_s=STALE_AFTER_S
        )
        await authenticator.start()
        yield Door(authenticator, directory, bench.store, bench.clock, token.encode(), made.id)


async def test_a_request_after_a_long_pause_waits_for_a_look_instead_of_being_refused(door: Door) -> None:
    assert await door.admits()
    door.clock.advance(STALE_AFTER_S + 5)
    assert await asyncio.gather(*(door.admits() for _ in range(20))) == [True] * 20
    assert door.directory.looks == 1, "one look for all"
    assert await door.admits()
    assert door.directory.looks == 1


async def test_what_was_revoked_in_a_long_pause_is_not_admitted_after_it(door: Door) -> None:
    assert await door.admits()
    await door.directory.revoke(door.token_id)
    door.clock.advance(STALE_AFTER_S + 5)
    with pytest.raises(Refused) as refusal:
        await door.admits()
    assert refusal.value.reason is Reason.UNAUTHENTICATED


async def test_a_plan_changes_at_its_instant_though_nobody_writes_or_looks(door: Door) -> None:
    until_ms = door.clock.now_ms() + 500
    await door.directory.set_plan("ada", "pro", until_ms=until_ms, next_plan="free")
    assert (await door.authenticator.authenticate({door.token})).plan.name == "pro"
    door.clock.ms = until_ms - 1
    assert (await door.authenticator.authenticate({door.token})).plan.name == "pro"
    door.clock.ms = until_ms
    assert (await door.authenticator.authenticate({door.token})).plan.name == "free"
    assert door.directory.looks == 0


async def test_a_plan_that_begins_and_is_not_in_the_plans_file_is_named(door: Door) -> None:
    await door.directory.set_plan("ada", "pro", until_ms=door.clock.now_ms(), next_plan="gone")
    with pytest.raises(Refused, match="The plan gone of this account") as refusal:
        await door.admits()
    assert refusal.value.reason is Reason.NOT_CONFIGURED


async def test_a_disabled_user_is_refused_whatever_plan_comes(door: Door) -> None:
    await door.directory.set_plan("ada", "free", until_ms=door.clock.now_ms(), next_plan="pro")
    await door.directory.disable("ada")
    with pytest.raises(Refused) as refusal:
        await door.admits()
    assert refusal.value.reason is Reason.FORBIDDEN


async def test_a_grant_is_known_after_the_next_look(door: Door) -> None:
    assert not (await door.authenticator.authenticate({door.token})).has_credit
    await grant(door.store, door.clock, "ada", 100, source="inv_1")
    assert not (await door.authenticator.authenticate({door.token})).has_credit
    await door.authenticator.look_for_changes()
    assert (await door.authenticator.authenticate({door.token})).has_credit


async def test_who_cannot_look_admits_nobody_and_does_not_look_for_each(door: Door) -> None:
    assert await door.admits()
    door.directory.is_broken = True
    door.clock.advance(STALE_AFTER_S + 5)
    for _ in range(20):
        with pytest.raises(Refused) as refusal:
            await door.admits()
        assert refusal.value.reason is Reason.STORE_UNAVAILABLE
        assert refusal.value.retry_after_s
    assert door.directory.looks == 1
    door.directory.is_broken = False
    door.clock.advance(POLL_S * 2)
    assert await door.admits()


async def test_a_look_that_hangs_is_waited_for_no_longer_than_the_bound(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door.authenticator, "_stale_after_s", 0.05)
    goes_on = asyncio.Event()

    async def hangs(seq: int) -> list[tuple[int, str, str]]:
        await goes_on.wait()
        return []

    monkeypatch.setattr(door.directory, "changes_since", hangs)
    door.clock.advance(5)
    with pytest.raises(Refused) as refusal:
        await asyncio.wait_for(door.admits(), 60)
    assert refusal.value.reason is Reason.STORE_UNAVAILABLE
    goes_on.set()
    await door.authenticator.look_for_changes()
    assert await door.admits()


async def test_after_a_look_that_was_slow_those_who_waited_for_it_look_once_more(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes_since, delays_s = door.directory.changes_since, [STALE_AFTER_S + 0.02, 0.0]

    async def slow(seq: int) -> list[tuple[int, str, str]] | None:
        door.clock.advance(delays_s.pop(0))
        return await changes_since(seq)

    monkeypatch.setattr(door.directory, "changes_since", slow)
    door.clock.advance(STALE_AFTER_S + 5)
    assert await asyncio.gather(*(door.admits() for _ in range(20))) == [True] * 20
    assert delays_s == []


async def test_who_could_not_begin_to_look_begins_when_the_store_works(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_change = door.directory.last_change

    async def broken() -> int:
        raise Refused(Reason.STORE_UNAVAILABLE, "broken")

    monkeypatch.setattr(door.directory, "last_change", broken)
    late = Authenticator(
        door.directory, load_plans(), door.clock, cache_max=10, poll_s=POLL_S, stale_after_s=STALE_AFTER_S
    )
    for wait_s in (0.0, POLL_S * 2):
        door.clock.advance(wait_s)
        with pytest.raises(Refused) as refusal:
            await late.authenticate({door.token})
        assert refusal.value.reason is Reason.STORE_UNAVAILABLE
    monkeypatch.setattr(door.directory, "last_change", last_change)
    door.clock.advance(POLL_S * 2)
    assert (await late.authenticate({door.token})).token_id == door.token_id
    await door.directory.revoke(door.token_id)
    await late.look_for_changes()
    with pytest.raises(Refused) as refusal:
        await late.authenticate({door.token})
    assert refusal.value.reason is Reason.UNAUTHENTICATED


async def test_who_looks_into_a_store_with_fewer_changes_than_were_heard_of_begins_anew(door: Door) -> None:
    """As after a restore: what is known of tokens is of another store, and its next changes have old numbers."""
    for number in range(5):
        await door.directory.add_user(f"user{number}", plan="pro")
        await door.directory.disable(f"user{number}")
    await door.authenticator.look_for_changes()
    assert await door.admits()
    writer = door.directory._store.writer
    await writer.submit(Unit([Step("DELETE FROM changes WHERE seq > 1", ())]))
    await door.authenticator.look_for_changes()
    assert not door.authenticator._cache
    assert await door.admits()
    await door.directory.revoke(door.token_id)
    await door.authenticator.look_for_changes()
    with pytest.raises(Refused) as refusal:
        await door.admits()
    assert refusal.value.reason is Reason.UNAUTHENTICATED


# --- chains ---------------------------------------------------------------------------------------------


async def refusal(door: Door, secret: str) -> Refused:
    with pytest.raises(Refused) as refused:
        await door.authenticator.authenticate({secret.encode()})
    return refused.value


async def chain_of(door: Door, **more: Any) -> tuple[str, str, str]:
    """The door's own token, a child and a grandchild of it: the child's id, and the secrets of both, remembered."""
    secret, child = await door.directory.create_token("ada", parent_id=door.token_id, **more)
    grandsecret, _ = await door.directory.create_token("ada", parent_id=child.id)
    for token in (secret, grandsecret):
        await door.authenticator.authenticate({token.encode()})
    return child.id, secret, grandsecret


async def test_a_caller_carries_the_terms_of_its_chain_and_the_first_without_any_carries_none(
    door: Door,
) -> None:
    caller = await door.authenticator.authenticate({door.token})
    assert caller.token is None
    _, secret, _ = await chain_of(door, scope=Scope(models=("a",)))
    caller = await door.authenticator.authenticate({secret.encode()})
    assert caller.token is not None
    assert caller.token.withheld == TO_BE_NAMED


@pytest.mark.parametrize("above", [0, 1])
async def test_revoking_a_token_above_is_heard_of_by_those_who_remember_one_below(
    door: Door, above: int
) -> None:
    child_id, secret, grandsecret = await chain_of(door)
    await door.directory.revoke((door.token_id, child_id)[above])
    await door.authenticator.authenticate({grandsecret.encode()})  # not heard of yet
    await door.authenticator.look_for_changes()
    for token in (grandsecret, secret):
        assert "was revoked" in (await refusal(door, token)).message
    assert bool(above) is await admits_door(door)


async def admits_door(door: Door) -> bool:
    try:
        return await door.admits()
    except Refused:
        return False


async def test_a_change_of_caps_is_heard_of_by_every_token_of_the_user(door: Door) -> None:
    _, _, grandsecret = await chain_of(door)
    await door.directory.set_caps("ada", (Cap(CapMeter.REQUESTS, CapPeriod.DAY, 5),))
    await door.authenticator.look_for_changes()
    for token in (grandsecret.encode(), door.token):
        caller = await door.authenticator.authenticate({token})
        assert caller.token is not None
        assert [cap.owner for cap in caller.token.caps] == ["user:ada"]


async def test_what_is_remembered_expires_with_the_first_of_its_chain(door: Door) -> None:
    expires_at_ms = door.clock.now_ms() + 30_000
    _, secret, grandsecret = await chain_of(door, expires_at_ms=expires_at_ms)
    door.clock.advance(29.9)
    await door.authenticator.authenticate({grandsecret.encode()})
    door.clock.advance(0.1)
    for token in (grandsecret, secret):
        assert "has expired" in (await refusal(door, token)).message
    assert await door.admits()


async def test_a_rotated_parents_children_go_on_after_its_overlap_though_they_were_remembered(
    door: Door,
) -> None:
    child_id, secret, grandsecret = await chain_of(door)
    await door.directory.rotate(child_id, overlap_s=0)
    await door.authenticator.look_for_changes()
    assert "has expired" in (await refusal(door, secret)).message
    await door.authenticator.authenticate({grandsecret.encode()})


async def test_who_else_remembers_things_is_told_of_every_change_and_when_all_may_have_changed(
    door: Door,
) -> None:
    told: list[tuple[int, object]] = []
    door.authenticator.on_changes.append(lambda seq, changed: told.append((seq, changed)))
    await door.authenticator.look_for_changes()
    assert told == [], "nothing has changed"
    await door.directory.disable("ada")
    await door.authenticator.look_for_changes()
    assert told == [(1, {("user", "ada")})]
    await door.store.writer.submit(Unit((Step("DELETE FROM changes", ()),)))  # as a store that was put back
    await door.authenticator.look_for_changes()
    assert told[1:] == [(0, None)]
