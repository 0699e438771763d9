"""Keys of idempotency: whose they are, how long they are known, and what a second one of the same finds."""

import asyncio
from dataclasses import replace

import pytest

from metering.clock import MS_PER_DAY
from metering.ledger import Declined, Outcome
from metering.repeats import KEPT_MS, REPEATED, Repeats, is_unsure, key_of
from tests.support.ledger import gauge, intent, open_bench, priced, settlement


async def claimed(bench, repeats, key, upstream_key="up", earlier=None):
    """A reservation that holds the key; or why not."""
    one = intent(gauge())
    return await bench.ledger.reserve(one, repeats.claiming(key, upstream_key, one.id, earlier))


def test_a_key_is_of_one_user_at_one_surface_and_a_made_one_of_one_request():
    keys = [
        key_of("ada", "agentmail", "k", b"x"),
        key_of("bob", "agentmail", "k", b"x"),
        key_of("ada", "other", "k", b"x"),
        key_of("ada", "agentmail", None, b"x"),
        key_of("ada", "agentmail", None, b"y"),
    ]
    assert len({key.place for key in keys}) == len(keys)
    pretended = key_of("ada", "agentmail", f"made:{keys[3].fingerprint}", b"x")
    assert pretended.place != keys[3].place


async def test_of_two_claims_of_a_key_one_is_granted(tmp_path):
    async with open_bench(tmp_path) as bench:
        repeats, key = Repeats(bench.store, bench.clock), key_of("ada", "agentmail", "k", b"x")
        assert await repeats.earlier(key) is None
        both = await asyncio.gather(*(claimed(bench, repeats, key) for _ in range(2)))
        assert sum(isinstance(one, Declined) and one.refusal == REPEATED for one in both) == 1
        assert (await bench.gauge()) == 1
        earlier = await repeats.earlier(key)
        assert earlier.is_running
        assert not earlier.is_done


async def test_a_key_is_taken_over_once_from_the_request_that_was_read(tmp_path):
    async with open_bench(tmp_path) as bench:
        repeats, key = Repeats(bench.store, bench.clock), key_of("ada", "agentmail", "k", b"x")
        first = await claimed(bench, repeats, key)
        await bench.ledger.void(first)
        earlier = await repeats.earlier(key)
        assert (earlier.is_running, earlier.is_done) == (False, False)
        both = await asyncio.gather(*(claimed(bench, repeats, key, earlier=earlier) for _ in range(2)))
        assert sum(isinstance(one, Declined) for one in both) == 1


@pytest.mark.parametrize(
    ("status", "is_done", "is_unsure_after"),
    [
        (None, True, False),
        (200, True, False),
        (422, False, False),
        (429, False, False),
        (408, False, True),
        (503, False, True),
    ],
)
async def test_what_became_of_a_request_stands_in_its_entry(tmp_path, status, is_done, is_unsure_after):
    async with open_bench(tmp_path) as bench:
        repeats, key = Repeats(bench.store, bench.clock), key_of("ada", "agentmail", "k", b"x")
        one = await claimed(bench, repeats, key)
        booked = settlement(0, outcome=Outcome.UPSTREAM_FAILED)
        await bench.ledger.settle(one, replace(booked, upstream_status=status, priced=priced(0)))
        earlier = await repeats.earlier(key)
        assert (earlier.is_done, earlier.is_unsure) == (is_done, is_unsure_after)
        bench.clock.advance(KEPT_MS / 1000)
        earlier = await repeats.earlier(key)
        assert (earlier.is_done, earlier.is_unsure) == (False, False)
        assert status is None or is_unsure(status) == is_unsure_after


async def test_a_key_of_a_dead_worker_may_have_been_used(tmp_path):
    async with open_bench(tmp_path) as bench:
        repeats, key = Repeats(bench.store, bench.clock), key_of("ada", "agentmail", "k", b"x")
        await claimed(bench, repeats, key)
        assert await bench.ledger.expire_worker("wrk_a") == 1
        assert (await repeats.earlier(key)).is_done


async def test_what_is_let_go_of_is_waited_for(tmp_path):
    """A client may come again before it is written."""
    async with open_bench(tmp_path) as bench:
        repeats, key = Repeats(bench.store, bench.clock), key_of("ada", "agentmail", None, b"x")
        one = await claimed(bench, repeats, key)
        await bench.ledger.settle(one, settlement(0))
        repeats.forget(key, "another's")
        assert await repeats.earlier(key) is not None
        repeats.forget(key, "up")
        assert await repeats.earlier(key) is None


async def test_old_keys_are_pruned(tmp_path):
    async with open_bench(tmp_path) as bench:
        repeats = Repeats(bench.store, bench.clock)
        for day in range(2):
            await claimed(bench, repeats, key_of("ada", "agentmail", str(day), b"x"))
            bench.clock.advance(MS_PER_DAY / 1000)
        pruning = asyncio.get_running_loop().create_task(repeats.keep_pruning())
        count = "SELECT COUNT(*) FROM idempotency_keys"
        async with asyncio.timeout(60):
            while await bench.store.readers.row(count) != (1,):
                await asyncio.sleep(0)
        pruning.cancel()
