"""Tokens per minute, on a clock that is turned by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.clock import ManualClock
from metering.prices import Priced, PricedLine
from metering.rate_state import RateState
from metering.tokens_per_minute import TokensPerMinute, counted_tokens
from metering.usage import (
    CACHE_READ_UNITS,
    CACHE_WRITE_UNITS,
    INPUT_UNITS,
    OUTPUT_UNITS,
    SEARCH_UNITS,
)

NOON_MS = 1_795_176_000_000


def bucket(*, keys_max: int = 1_000) -> tuple[TokensPerMinute, ManualClock]:
    clock = ManualClock(NOON_MS)
    return TokensPerMinute(clock, keys_max=keys_max), clock


def test_an_owner_of_whom_nothing_is_known_has_the_whole_minute() -> None:
    tokens, _ = bucket()
    assert tokens.look("user:ada", 600) == RateState(True, 600, 600, NOON_MS, 0.0)


STEPS = [
    # the limit, then for each step: how long to wait, what is charged, what is left, and the wait if refused
    (600, [(0, 100, 500, 0.0), (1, 0, 510, 0.0), (8.999, 0, 599, 0.0), (0.001, 0, 600, 0.0)]),
    (600, [(0, 600, 0, 0.001), (0.001, 0, 0, 0.0), (0.1, 0, 1, 0.0)]),
    (600, [(0, 900, 0, 30.001), (30, 0, 0, 0.001), (0.001, 0, 0, 0.0), (30, 0, 300, 0.0)]),
    (600, [(0, 100_000, 0, 60.0), (59.999, 0, 0, 0.001), (0.001, 0, 0, 0.0), (60, 0, 600, 0.0)]),
    (600, [(0, 100_000, 0, 60.0), (0, 100_000, 0, 60.0), (10, 1, 0, 50.1), (0, 5_000, 0, 60.0)]),
    (50_000, [(0, 34_000, 16_000, 0.0), (0, 34_000, 0, 21.601), (60, 0, 32_000, 0.0)]),
    (50_000, [(0, 200_000, 0, 60.0), (60, 0, 0, 0.0), (60, 0, 50_000, 0.0)]),
    (1, [(0, 1, 0, 0.001), (0.001, 0, 0, 0.0), (59.999, 0, 1, 0.0)]),
    (0, [(0, 5, 0, 60.0), (600, 0, 0, 60.0)]),
]


@pytest.mark.parametrize(("limit", "steps"), STEPS)
def test_a_bucket_flows_back_and_admits_above_zero(
    limit: int, steps: list[tuple[float, int, int, float]]
) -> None:
    tokens, clock = bucket()
    for number, (wait_s, charged, left, retry_after_s) in enumerate(steps):
        clock.advance(wait_s)
        tokens.charge("user:ada", limit, charged)
        state = tokens.look("user:ada", limit)
        assert (state.remaining, state.retry_after_s) == (left, retry_after_s), number
        assert state.is_allowed is (retry_after_s == 0), number


@given(
    limit=st.integers(1, 10**12),
    charges=st.lists(st.tuples(st.floats(0, 90), st.integers(0, 10**13)), max_size=12),
)
def test_waiting_as_told_is_enough_not_too_much_and_never_longer_than_a_minute(
    limit: int, charges: list[tuple[float, int]]
) -> None:
    tokens, clock = bucket()
    for wait_s, charged in charges:
        clock.advance(wait_s)
        tokens.charge("user:ada", limit, charged)
    state = tokens.look("user:ada", limit)
    assert 0 <= state.remaining <= limit
    assert 0 <= state.retry_after_s <= 60
    assert state.reset_ms - clock.now_ms() <= 120_000
    if not state.is_allowed:
        clock.advance(state.retry_after_s - 0.001)
        assert not tokens.look("user:ada", limit).is_allowed
        clock.advance(0.001)
        assert tokens.look("user:ada", limit).is_allowed
    clock.ms = state.reset_ms
    assert tokens.look("user:ada", limit).remaining == limit


@given(
    limit=st.integers(1, 1_000),
    charges=st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 3_000)), max_size=12),
    looks=st.integers(1, 7),
)
def test_looking_changes_nothing(limit: int, charges: list[tuple[int, int]], looks: int) -> None:
    """However often a bucket is looked at in between, no part of a token is lost to rounding."""
    (seen, clock), (unseen, other) = bucket(), bucket()
    for wait_ms, charged in charges:
        for _ in range(looks):
            seen.look("user:ada", limit)
            clock.ms += wait_ms
        other.ms += wait_ms * looks
        for tokens in (seen, unseen):
            tokens.charge("user:ada", limit, charged)
        assert seen.look("user:ada", limit) == unseen.look("user:ada", limit)


def test_owners_do_not_share_a_bucket() -> None:
    tokens, _ = bucket()
    tokens.charge("user:ada", 600, 900)
    assert not tokens.look("user:ada", 600).is_allowed
    assert tokens.look("user:bob", 600).remaining == 600


def test_the_reset_is_when_the_bucket_is_full_again() -> None:
    tokens, _ = bucket()
    tokens.charge("user:ada", 600, 90)
    assert tokens.look("user:ada", 600).reset_ms == NOON_MS + 9_000
    tokens.charge("user:ada", 600, 810)
    assert tokens.look("user:ada", 600).reset_ms == NOON_MS + 90_000


def test_a_limit_that_changes_counts_at_once_and_what_was_used_stays_used() -> None:
    tokens, _ = bucket()
    tokens.charge("user:ada", 600, 900)
    assert tokens.look("user:ada", 6_000).remaining == 5_100
    tokens.charge("user:bob", 6_000, 9_000)
    assert tokens.look("user:bob", 60).retry_after_s == 60  # as deep as the smaller limit goes


def test_a_clock_set_back_locks_nobody_out() -> None:
    tokens, clock = bucket()
    tokens.charge("user:ada", 600, 900)
    clock.ms -= 3_600_000
    assert tokens.look("user:ada", 600).retry_after_s == 30.001
    clock.advance(30.001)
    assert tokens.look("user:ada", 600).is_allowed


def test_what_is_used_is_told_also_below_zero() -> None:
    tokens, clock = bucket()
    assert tokens.used("user:ada", 600) == 0
    tokens.charge("user:ada", 600, 900)
    assert tokens.used("user:ada", 600) == 900
    clock.advance(0.05)
    assert tokens.used("user:ada", 600) == 900  # rounded up
    clock.advance(59.95)
    assert tokens.used("user:ada", 600) == 300


def test_the_owner_used_longest_ago_is_forgotten_first() -> None:
    tokens, _ = bucket(keys_max=3)
    for owner in ("a", "b", "c"):
        tokens.charge(owner, 10, 15)
    tokens.look("a", 10)
    tokens.charge("d", 10, 15)  # b is the oldest
    assert [tokens.look(owner, 10).is_allowed for owner in "acd"] == [False] * 3
    assert tokens.look("b", 10).is_allowed


def test_a_full_bucket_is_not_kept() -> None:
    tokens, clock = bucket()
    tokens.charge("a", 600, 900)
    tokens.charge("b", 600, 0)
    tokens.charge("c", 0, 900)
    assert set(tokens._buckets) == {"a"}
    clock.advance(90)
    tokens.look("a", 600)
    assert not tokens._buckets


def test_uncached_input_cache_writes_and_output_count_and_reads_and_searches_do_not() -> None:
    kinds = (INPUT_UNITS, CACHE_WRITE_UNITS, OUTPUT_UNITS, CACHE_READ_UNITS, SEARCH_UNITS)
    units = [unit for kind in kinds for unit in kind]
    lines = [PricedLine("m", {unit: 10**place}, {}, {}) for place, unit in enumerate(units)]
    priced = Priced(0, tuple(lines), ())
    counted = len(INPUT_UNITS) + len(CACHE_WRITE_UNITS) + len(OUTPUT_UNITS)
    assert counted_tokens(priced) == int("1" * counted)
