"""Who is looked at, and who is cut off."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from metering.errors import Reason, Refused
from metering.tasks import spawn, stop
from proxy import access as access_module
from proxy.access import LOST, Access


@dataclass
class Authenticator:
    """Says of a token what a test tells it to."""

    refuses: dict[bytes, Refused] = field(default_factory=dict)
    ending: set[bytes] = field(default_factory=set)
    asked: list[bytes] = field(default_factory=list)
    on_changes: list[Any] = field(default_factory=list)

    async def let_in(self, token: bytes) -> object:
        self.asked.append(token)
        await asyncio.sleep(0)
        if token in self.refuses:
            raise self.refuses[token]
        return object()

    def may_end(self, token: bytes) -> bool:
        return token in self.ending


@dataclass(eq=False)
class Guest:
    access_key: bytes
    refuses: Refused | None = None
    lost: list[Refused] = field(default_factory=list)

    def require_access(self, _caller: object) -> None:
        if self.refuses is not None:
            raise self.refuses

    def lose_access(self, refused: Refused) -> None:
        self.lost.append(refused)


@pytest.fixture
async def door() -> tuple[Access, Authenticator]:
    authenticator = Authenticator()
    return Access(authenticator), authenticator  # type: ignore[arg-type]  # as much of one as is needed


def guests(access: Access, *tokens: bytes) -> list[Guest]:
    found = [Guest(token) for token in tokens]
    for guest in found:
        access.enter(guest)
    return found


def tell(authenticator: Authenticator, *changed: tuple[str, str]) -> None:
    for listener in authenticator.on_changes:
        listener(1, set(changed))


async def test_without_news_only_those_are_looked_at_whose_access_may_end_by_itself(door) -> None:
    access, authenticator = door
    guests(access, b"a", b"b")
    authenticator.ending.add(b"b")
    await access.look()
    assert authenticator.asked == [b"b"]


@pytest.mark.parametrize(
    ("kind", "is_news"), [("user", True), ("token", True), ("object", False), ("grant", False)]
)
async def test_news_of_users_and_tokens_have_all_looked_at_once(door, kind: str, is_news: bool) -> None:
    access, authenticator = door
    guests(access, b"a")
    tell(authenticator, (kind, "x"))
    await access.look()
    await access.look()
    assert authenticator.asked == [b"a"] * is_news


async def test_after_a_store_was_replaced_all_are_looked_at(door) -> None:
    access, authenticator = door
    guests(access, b"a")
    for listener in authenticator.on_changes:
        listener(0, None)
    await access.look()
    assert authenticator.asked == [b"a"]


@pytest.mark.parametrize("reason", list(Reason))
async def test_only_a_refusal_that_means_it_takes_access_away_and_once(door, reason: Reason) -> None:
    access, authenticator = door
    (guest,) = guests(access, b"a")
    authenticator.refuses[b"a"] = Refused(reason, "why")
    for _ in range(2):
        tell(authenticator, ("user", "x"))
        await access.look()
    assert [(one.reason, one.message) for one in guest.lost] == [(reason, "why")] * (reason in LOST)


async def test_news_wait_for_a_store_that_can_say(door) -> None:
    access, authenticator = door
    guests(access, b"a", b"b")
    for token in (b"a", b"b"):
        authenticator.refuses[token] = Refused(Reason.STORE_UNAVAILABLE, "later")
    tell(authenticator, ("user", "x"))
    await access.look()
    assert len(authenticator.asked) == 1, "it is not asked again for each"
    authenticator.refuses.clear()
    await access.look()
    assert sorted(authenticator.asked[1:]) == [b"a", b"b"]


async def test_what_the_guest_itself_requires_counts_and_who_has_left_is_let_alone(door) -> None:
    access, authenticator = door
    stays, leaves = guests(access, b"a", b"b")
    stays.refuses = leaves.refuses = Refused(Reason.UNKNOWN_OPERATION, "not in the plan")
    access.leave(leaves)
    access.leave(leaves)
    tell(authenticator, ("user", "x"))
    await access.look()
    assert (len(stays.lost), leaves.lost) == (1, [])


async def test_who_leaves_while_it_is_looked_at_is_told_nothing(door) -> None:
    access, authenticator = door
    (guest,) = guests(access, b"a")
    authenticator.refuses[b"a"] = Refused(Reason.UNAUTHENTICATED, "revoked")
    tell(authenticator, ("token", "x"))
    look = asyncio.get_running_loop().create_task(access.look())
    await asyncio.sleep(0)
    access.leave(guest)
    await look
    assert guest.lost == []


async def cut_off(guest: Guest) -> None:
    async with asyncio.timeout(60):
        while not guest.lost:
            await asyncio.sleep(0)


async def test_news_are_not_kept_for_the_next_regular_look(door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "LOOK_S", 3_600.0)
    access, authenticator = door
    (guest,) = guests(access, b"a")
    looking = spawn(access.keep_looking(), name="look")
    await asyncio.sleep(0)
    authenticator.refuses[b"a"] = Refused(Reason.FORBIDDEN, "why")
    tell(authenticator, ("user", "x"))
    await cut_off(guest)
    await stop(looking)


async def test_who_loses_access_by_time_alone_is_found_by_the_next_regular_look(
    door, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert access_module.LOOK_S <= 0.5, "with what else it takes: within a second"
    monkeypatch.setattr(access_module, "LOOK_S", 0.01)
    access, authenticator = door
    (guest,) = guests(access, b"a")
    authenticator.ending.add(b"a")
    authenticator.refuses[b"a"] = Refused(Reason.UNAUTHENTICATED, "expired")
    looking = spawn(access.keep_looking(), name="look")
    await cut_off(guest)
    await stop(looking)
