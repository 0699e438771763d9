"""Requests per minute, on a clock that is turned by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.clock import ManualClock
from metering.rate_limits import LIMITS_MAX, WINDOW_S, BoundedStorage, RateLimits

MINUTE_MS = 1_795_176_000_000
"""The beginning of a minute."""


def limits(*, at_s: float = 0.0, keys_max: int = 1_000) -> tuple[RateLimits, ManualClock]:
    clock = ManualClock(MINUTE_MS + round(at_s * 1_000))
    return RateLimits(clock, keys_max=keys_max), clock


def test_so_many_requests_pass_and_not_one_more() -> None:
    rate, _ = limits()
    states = [rate.hit("user:ada", 5) for _ in range(8)]
    assert [state.is_allowed for state in states] == [True] * 5 + [False] * 3
    assert [state.remaining for state in states] == [4, 3, 2, 1, 0, 0, 0, 0]
    assert all(state.limit == 5 for state in states)
    assert all(state.retry_after_s == 0 for state in states[:5])


def test_owners_do_not_share_a_limit() -> None:
    rate, _ = limits()
    assert [rate.hit(owner, 1).is_allowed for owner in ("user:a", "user:b", "user:a")] == [True, True, False]


STEPS = [
    # the limit, then for each step: how long to wait, how many to try, how many pass
    (5, [(0, 6, 5), (59.9, 1, 0), (0.1, 1, 0), (12, 2, 1)]),
    (10, [(0, 10, 10), (60, 3, 0), (6, 2, 1), (6, 2, 1), (108, 12, 10)]),
    (2, [(30, 2, 2), (30, 1, 0), (30, 2, 1), (30, 1, 1)]),
    (1, [(0, 2, 1), (60, 1, 0), (60, 1, 1)]),
    (60, [(0, 100, 60), (90, 100, 30), (30, 100, 30)]),
    (0, [(0, 3, 0), (600, 3, 0)]),
]


@pytest.mark.parametrize(("limit", "steps"), STEPS)
def test_the_window_slides(limit: int, steps: list[tuple[float, int, int]]) -> None:
    rate, clock = limits()
    for number, (wait_s, hits, allowed) in enumerate(steps):
        clock.advance(wait_s)
        assert sum(rate.hit("user:ada", limit).is_allowed for _ in range(hits)) == allowed, number


@given(
    limit=st.integers(1, 200),
    start_s=st.floats(0, 60),
    pattern=st.lists(st.tuples(st.floats(0, 90), st.integers(1, 60)), max_size=12),
)
def test_waiting_as_told_is_enough_and_never_long(
    limit: int, start_s: float, pattern: list[tuple[float, int]]
) -> None:
    rate, clock = limits(at_s=start_s)
    for wait_s, hits in pattern:
        clock.advance(wait_s)
        for _ in range(hits):
            rate.hit("user:ada", limit)
    while (state := rate.hit("user:ada", limit)).is_allowed:
        assert 0 <= state.remaining < limit
    assert 0 < state.retry_after_s <= WINDOW_S + 1
    clock.advance(state.retry_after_s)
    assert rate.hit("user:ada", limit).is_allowed


@pytest.mark.parametrize(("at_s", "wait_s"), [(0.5, 60.0), (0.9, 60.0), (1.5, 59.5), (59.0, 2.0)])
def test_no_wait_is_longer_than_a_minute(at_s: float, wait_s: float) -> None:
    rate, clock = limits(at_s=at_s)
    assert rate.hit("user:ada", 1).is_allowed
    assert rate.hit("user:ada", 1).retry_after_s == pytest.approx(wait_s)
    clock.advance(wait_s)
    assert rate.hit("user:ada", 1).is_allowed


@given(
    limit=st.integers(1, 20),
    waits=st.lists(st.floats(0, 30), min_size=1, max_size=200),
)
def test_a_minute_never_sees_more_than_twice_the_limit(limit: int, waits: list[float]) -> None:
    """The sliding counter approximates: what it lets through in any 60 s stays below two windows."""
    rate, clock = limits()
    passed_at_s = []
    for wait_s in waits:
        clock.advance(wait_s)
        if rate.hit("user:ada", limit).is_allowed:
            passed_at_s.append(clock.seconds)
    for start_s in passed_at_s:
        assert sum(start_s <= at_s < start_s + WINDOW_S for at_s in passed_at_s) < 2 * limit + 1


def test_the_reset_is_the_end_of_the_minute() -> None:
    rate, _ = limits(at_s=45)
    assert rate.hit("user:ada", 5).reset_ms == MINUTE_MS + 60_000


def test_a_plan_without_requests_is_told_a_minute() -> None:
    rate, _ = limits()
    state = rate.hit("user:ada", 0)
    assert (state.is_allowed, state.retry_after_s) == (False, WINDOW_S)


def test_a_clock_set_back_locks_nobody_out() -> None:
    rate, clock = limits()
    for _ in range(5):
        rate.hit("user:ada", 5)
    clock.ms -= 3_600_000
    assert rate.hit("user:ada", 5).is_allowed
    assert rate.hit("user:ada", 5).retry_after_s <= WINDOW_S


def test_what_is_used_is_told_without_counting() -> None:
    rate, clock = limits()
    for _ in range(4):
        rate.hit("user:ada", 10)
    assert [rate.used("user:ada", 10) for _ in range(3)] == [4, 4, 4]
    clock.advance(90)
    assert rate.used("user:ada", 10) == 2
    assert rate.used("user:bob", 0) == 0


def test_the_storage_forgets_the_key_used_longest_ago() -> None:
    rate, _ = limits(keys_max=3)
    for owner in ("a", "b", "c", "a", "d"):  # b is the oldest when d comes
        rate.hit(owner, 1)
    assert [rate.hit(owner, 1).is_allowed for owner in ("a", "c", "d")] == [False] * 3
    assert rate.hit("b", 1).is_allowed


def test_limits_that_users_choose_do_not_fill_memory() -> None:
    rate, _ = limits()
    for limit in range(1, 2 * LIMITS_MAX):
        rate.look("token:t", limit)
        assert 0 < len(rate._items) <= LIMITS_MAX


def test_the_storage_keeps_the_librarys_contract() -> None:
    storage = BoundedStorage(ManualClock(MINUTE_MS))
    assert storage.check()
    assert [storage.incr("k", 60), storage.incr("k", 60, 2), storage.get("k"), storage.get("none")] == [
        1,
        3,
        3,
        0,
    ]
    assert storage.get_expiry("k") == MINUTE_MS / 1_000 + 60
    assert storage.get_expiry("none") == MINUTE_MS / 1_000
    storage.clear("k")
    assert storage.get("k") == 0
    storage.incr("k", 60)
    storage.clear_sliding_window("k", 60)
    storage.incr("j", 60)
    assert storage.reset() == 1
    assert storage.base_exceptions is Exception
