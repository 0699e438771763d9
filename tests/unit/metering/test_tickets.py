"""Tickets: good for one object of one user, for a while, on every worker."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metering.errors import Reason, Refused
from metering.objects import ObjectId, Objects
from metering.tickets import Tickets
from tests.support.ledger import Bench, open_bench

ONE = ObjectId("browserbase", "session", "0b8e5a4c-3f62-4d0e-9a37-5f1f6a0c7d11")
OTHER = ObjectId("browserbase", "session", "s2")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        await Objects(bench.store, bench.clock).bind([ONE], "ada", "req_1")
        await Objects(bench.store, bench.clock).bind([OTHER], "bob", "req_2")
        yield bench


def worker(bench: Bench) -> Tickets:
    return Tickets(bench.store, Objects(bench.store, bench.clock), bench.clock)


async def minted(tickets: Tickets, one: ObjectId = ONE, user_id: str = "ada") -> str:
    await tickets.prepare()
    return tickets.mint(one, user_id, f"tok_{user_id}", valid_s=60)


async def refusal(tickets: Tickets, text: str, kind: str = "session", *, is_once: bool = False) -> str:
    with pytest.raises(Refused) as refused:
        await tickets.redeem(text, "browserbase", kind, is_once=is_once)
    assert refused.value.reason is Reason.UNAUTHENTICATED
    return refused.value.message


async def test_a_ticket_is_good_on_every_worker_until_its_time(bench: Bench) -> None:
    text = await minted(worker(bench))
    assert await minted(worker(bench)) == text
    for _ in range(2):
        assert await worker(bench).redeem(text, "browserbase", "session") == (ONE, "ada", "tok_ada")
    bench.clock.ms += 59_000
    await worker(bench).redeem(text, "browserbase", "session")
    bench.clock.ms += 1_000
    assert "expired" in await refusal(worker(bench), text)


async def test_workers_that_mint_first_at_once_have_one_key(bench: Bench) -> None:
    texts = await asyncio.gather(*(minted(worker(bench)) for _ in range(10)))
    assert len(set(texts)) == 1


async def test_a_ticket_that_is_good_for_once_is_spent_by_one_of_many(bench: Bench) -> None:
    text = await minted(worker(bench))
    both = [worker(bench), worker(bench)]
    tries = [tickets.redeem(text, "browserbase", "session", is_once=True) for tickets in both * 5]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(not isinstance(result, BaseException) for result in results) == 1
    assert "for once" in await refusal(both[0], text, is_once=True)
    bench.clock.ms += 120_000
    another = await minted(worker(bench))
    await worker(bench).redeem(another, "browserbase", "session", is_once=True)
    rows = await bench.store.readers.rows("SELECT ticket FROM spent_tickets", ())
    assert len(rows) == 1, "what has expired needs no row"


async def test_what_changes_hands_leaves_its_tickets_worthless(bench: Bench) -> None:
    text = await minted(worker(bench))
    objects = Objects(bench.store, bench.clock)
    await objects.release(ONE, "ada")
    assert "good for nothing" in await refusal(worker(bench), text)
    await objects.bind([ONE], "bob", "req_3")
    assert "good for nothing" in await refusal(worker(bench), text)


async def test_whatever_is_changed_in_a_ticket_makes_it_worthless(bench: Bench) -> None:
    tickets = worker(bench)
    text = await minted(tickets)
    until, _, mac = text.split(".")
    theirs = (await minted(tickets, OTHER, "bob")).split(".")
    not_theirs = await minted(tickets, OTHER)
    changed = [f"{text[:at]}{'a' if sign != 'a' else 'b'}{text[at + 1 :]}" for at, sign in enumerate(text)]
    changed += [f"{until}.{theirs[1]}.{mac}", f"{theirs[0]}.{theirs[1]}.{mac}", not_theirs, "", "..", "a.b.c"]
    changed += [text + "x", text + ".", "." + text, text * 30, "é" + text, f"{until}.//.{mac}", f"-{text}"]
    for one in changed:
        assert "good for nothing" in await refusal(tickets, one), one
    assert "good for nothing" in await refusal(tickets, text, kind="context")
