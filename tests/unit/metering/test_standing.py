"""Each account of an owner in a period that runs now, as people read it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from metering.ledger import MONEY, NO_PERIOD, OPEN_REQUESTS, REQUESTS, SPEND, Balance, Hold
from metering.standing import (
    SELECT_STANDING,
    accounts_of,
    day_of,
    gauge_as_json,
    meters_as_json,
)
from tests.support.ledger import NOW_MS, Bench, open_bench, settlement

DAY, MONTH = "2026-11-20", "2026-11"
TOMORROW, NEXT_MONTH = "2026-11-21T00:00:00Z", "2026-12-01T00:00:00Z"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        yield bench


async def test_accounts_are_those_of_the_owner_the_day_and_the_month(bench: Bench) -> None:
    holds = [
        Hold("user:ada", MONEY, MONTH, 100, 1_000),
        Hold("user:ada", SPEND, DAY, 100, 500),
        Hold("user:ada", SPEND, "2026-11-19", 100, 500),
        Hold("user:ada", REQUESTS, MONTH, 1, 30),
        Hold("user:ada", REQUESTS, "2026-10", 1, 30),
        Hold("user:ada", OPEN_REQUESTS, NO_PERIOD, 1, 5),
        Hold("user:bob", MONEY, MONTH, 100, 1_000),
        Hold("token:ada", MONEY, MONTH, 100, 1_000),
    ]
    await bench.ledger.settle(await bench.reserve(*holds), settlement(70))
    await bench.reserve(*holds)
    assert await accounts_of(bench.store.readers, "user:ada", NOW_MS) == {
        (MONEY, MONTH): Balance(70, 100, 1_000),
        (SPEND, DAY): Balance(70, 100, 500),
        (REQUESTS, MONTH): Balance(1, 1, 30),
        (OPEN_REQUESTS, NO_PERIOD): Balance(0, 1, 5),
    }


async def test_accounts_are_read_by_their_key(bench: Bench) -> None:
    plan = await bench.store.readers.rows(f"EXPLAIN QUERY PLAN {SELECT_STANDING}", (1, 2, 3, 4))
    assert [str(step[3])[:6] for step in plan if "TEMP" not in str(step[3])] == ["SEARCH"]


@pytest.mark.parametrize(
    ("meter", "period", "name", "shown"),
    [
        (MONEY, MONTH, "credits", {"unit": "credits", "limit": 10, "used": 2, "held": 1, "left": 8}),
        (SPEND, DAY, "credits_per_day", {"unit": "credits", "limit_nanousd": 1_000_000, "left": 8}),
        (
            SPEND,
            MONTH,
            "credits_per_month",
            {"unit": "credits", "used_nanousd": 150_000, "held_nanousd": 50_000},
        ),
        (REQUESTS, DAY, "requests_per_day", {"unit": "requests", "limit": 1_000_000, "left": 800_000}),
        (REQUESTS, MONTH, "requests_per_month", {"unit": "requests", "used": 150_000, "held": 50_000}),
        ("searches", MONTH, "searches_per_month", {"unit": "searches"}),
        ("emails", DAY, "emails_per_day", {"unit": "emails"}),
        ("browser_seconds", MONTH, "browser_seconds_per_month", {"unit": "seconds"}),
        ("call_seconds", MONTH, "call_seconds_per_month", {"unit": "seconds"}),
        ("faxes", DAY, "faxes_per_day", {"unit": "count", "limit": 1_000_000}),
    ],
)
def test_a_meter_is_shown_in_its_unit(meter: str, period: str, name: str, shown: dict[str, Any]) -> None:
    meters = meters_as_json({(meter, period): Balance(150_000, 50_000, 1_000_000)}, NOW_MS)
    assert list(meters) == [name]
    assert meters[name].items() >= shown.items()
    assert meters[name]["period"] == period
    assert meters[name]["resets_at"] == (TOMORROW if period == DAY else NEXT_MONTH)


def test_a_limit_that_is_known_goes_before_that_of_the_last_hold() -> None:
    accounts = {(REQUESTS, DAY): Balance(7, 1, 10)}
    meters = meters_as_json(accounts, NOW_MS, {(REQUESTS, DAY): 5, (SPEND, MONTH): 300_000})
    assert meters["requests_per_day"].items() >= {"limit": 5, "used": 7, "held": 1, "left": 0}.items()
    assert meters["credits_per_month"].items() >= {"limit": 3, "used": 0, "held": 0, "left": 3}.items()


def test_what_has_no_period_is_no_meter_of_one() -> None:
    accounts = {(OPEN_REQUESTS, NO_PERIOD): Balance(0, 3, 9), ("credit", NO_PERIOD): Balance(1, 1, 9)}
    assert meters_as_json(accounts, NOW_MS) == {}
    assert gauge_as_json(accounts, OPEN_REQUESTS, 5) == {
        "limit": 5,
        "used": 0,
        "held": 3,
        "left": 2,
        "resets_at": None,
    }
    assert gauge_as_json({}, OPEN_REQUESTS, 5) == {
        "limit": 5,
        "used": 0,
        "held": 0,
        "left": 5,
        "resets_at": None,
    }


@pytest.mark.parametrize(
    ("at_ms", "day", "resets"),
    [
        (NOW_MS, "2026-11-20", "2026-11-21T00:00:00Z"),
        (1_798_761_599_999, "2026-12-31", "2027-01-01T00:00:00Z"),
    ],
)
def test_a_day_ends_at_midnight_utc(at_ms: int, day: str, resets: str) -> None:
    assert day_of(at_ms) == day
    assert meters_as_json({("emails", day): Balance(0, 0, 1)}, at_ms)["emails_per_day"]["resets_at"] == resets
