"""How often one thing is asked for: never more often than its rate, and never later than that needs."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.clock import ManualClock
from provisioning import pacing
from provisioning.pacing import PER_THING, Pacer, Rate

RATE = Rate(per_s=1.0, burst=3)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 3)), max_size=40))
def test_in_no_span_of_time_is_one_thing_asked_for_more_often_than_its_rate(calls):
    clock = ManualClock(0)
    asked: dict[str, list[float]] = {}

    async def pause(seconds):
        clock.advance(seconds)

    async def work():
        pacer = Pacer(clock, pause)
        for thing, later_s in calls:
            clock.advance(later_s)
            await pacer.wait("get", thing, RATE)
            asked.setdefault(thing, []).append(clock.monotonic_s())

    asyncio.run(work())
    for times in asked.values():
        for first, start_s in enumerate(times):
            for count, at_s in enumerate(times[first:], start=1):
                assert count <= RATE.burst + RATE.per_s * (at_s - start_s) + 1e-6


async def test_a_burst_does_not_wait_and_what_comes_after_it_waits_for_its_turn():
    clock, waits = ManualClock(0), []

    async def pause(seconds):
        waits.append(seconds)

    pacer = Pacer(clock, pause)
    for _ in range(5):
        await pacer.wait("get", "m1", RATE)
    await pacer.wait("get", "m2", RATE)
    await pacer.wait("post", "m1", RATE)
    assert waits == [1.0, 2.0]


async def test_no_more_buckets_are_kept_than_the_bound(monkeypatch):
    monkeypatch.setattr(pacing, "KEYS_MAX", 10)
    pacer = Pacer(ManualClock(0))
    for number in range(50):
        await pacer.wait("get", str(number), PER_THING)
    assert len(pacer._full_s) == 10


def test_our_rates_are_below_the_vendors():
    assert pacing.PER_THING.per_s < 1
    assert pacing.PER_THING.burst <= 3
    assert pacing.GET_MACHINE.per_s < 5
    assert pacing.GET_MACHINE.burst <= 10
    assert pacing.DELETE_APP.per_s * 60 * 2 + 2 * pacing.DELETE_APP.burst < 100


@pytest.mark.parametrize("name", ["PER_THING", "GET_MACHINE", "DELETE_APP"])
def test_every_rate_allows_at_least_one(name):
    assert getattr(pacing, name).burst >= 1
