"""Quotas of a plan: held, spent, refused, in the words for each."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from metering.admission import Admission, Admitted, Caller, Request
from metering.errors import Reason, Refused
from metering.ledger import MONEY, OPEN_BROWSERS, Outcome, Reservation, Settlement
from metering.plans import HARD, SOFT, Plan, load_plans
from metering.prices import Priced
from metering.quotas import QUOTAS, quotas_used
from metering.rate_limits import RateLimits
from metering.usage import SEARCHES, WEB_SEARCHES, Usage, UsageLine
from tests.support.ledger import PERIOD, Bench, open_bench, request_id

PLAN = replace(
    load_plans()["pro"], searches_per_month=10, requests_per_minute=10_000, concurrent_requests=1_000
)
RESETS = "1 December 2026"


@dataclass
class Desk:
    bench: Bench
    admission: Admission

    async def admit(self, searches: int, *, plan: Plan = PLAN) -> Admitted:
        caller = Caller("ada", "tok_ada", plan)
        request = Request(
            request_id(), "brave", "GET /res/v1/web/search", (), 1_000, 0, quotas={"searches": searches}
        )
        return await self.admission.admit(caller, request)

    async def refusal(self, searches: int, *, plan: Plan = PLAN) -> Refused:
        with pytest.raises(Refused) as refused:
            await self.admit(searches, plan=plan)
        return refused.value

    async def settle(self, admitted: Admitted, searches: int) -> None:
        settlement = Settlement(
            Outcome.COMPLETED, Priced(1_000, (), ()), is_reported=True, amounts={"searches": searches}
        )
        await self.bench.ledger.settle(admitted.reservation, settlement)

    async def settle_seconds(self, admitted: Admitted, seconds: int) -> None:
        settlement = Settlement(
            Outcome.COMPLETED, Priced(1_000, (), ()), is_reported=True, amounts={"browser_seconds": seconds}
        )
        await self.bench.ledger.resolve_found(
            admitted.reservation.id, lambda held: self.bench.ledger.settle(held, settlement)
        )
        assert (await self.bench.account(meter="browser_seconds"))[1] == 0

    async def account(self) -> tuple[int, int]:
        return await self.bench.account(meter="searches", period=PERIOD)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_bench(tmp_path) as bench:
        yield Desk(bench, Admission(bench.ledger, RateLimits(bench.clock), bench.clock))
        await bench.assert_clean()


async def test_a_quota_is_held_and_spent_by_what_was_counted(desk: Desk) -> None:
    admitted = await desk.admit(4)
    assert await desk.account() == (0, 4)
    (quota,) = admitted.quotas
    assert (quota.meter, quota.limit, quota.remaining) == ("searches", 10, 6)
    assert quota.reset_ms == admitted.budget_reset_ms
    await desk.settle(admitted, 1)
    assert await desk.account() == (1, 0)
    await desk.settle(await desk.admit(1), 0)  # it failed at the vendor
    assert await desk.account() == (1, 0)


async def test_of_many_racing_requests_exactly_as_many_are_admitted_as_are_left(desk: Desk) -> None:
    results = await asyncio.gather(*(desk.admit(1) for _ in range(100)), return_exceptions=True)
    assert sum(isinstance(result, Admitted) for result in results) == 10
    refused = [result for result in results if isinstance(result, Refused)]
    assert {one.reason for one in refused} == {Reason.BUDGET_HELD}
    assert all(one.retry_after_s for one in refused)


async def test_a_quota_that_is_used_up_says_when_it_returns(desk: Desk) -> None:
    await desk.settle(await desk.admit(10), 10)
    refused = await desk.refusal(1)
    assert refused.reason is Reason.BUDGET_EXHAUSTED
    assert refused.message == f"Monthly usage limit reached (10 of 10 searches). Resets on {RESETS}."
    assert refused.facts == {
        "used_searches": 10,
        "limit_searches": 10,
        "resets": RESETS,
        "resets_at": "2026-12-01T00:00:00Z",
        "quota": "searches",
    }
    desk.bench.clock.ms = 1_796_083_200_000
    await desk.admit(10)


async def test_a_request_that_may_take_more_than_is_left_says_so(desk: Desk) -> None:
    await desk.settle(await desk.admit(7), 7)
    refused = await desk.refusal(4)
    assert refused.message == (
        "Monthly usage limit reached for a request of this size: it may take up to 4 searches, 3 of 10 are left. "
        f"Resets on {RESETS}."
    )
    await desk.admit(3)


async def test_a_plan_without_any_says_that(desk: Desk) -> None:
    refused = await desk.refusal(1, plan=replace(PLAN, searches_per_month=0))
    assert (refused.reason, refused.message) == (
        Reason.BUDGET_EXHAUSTED,
        "The pro plan includes no searches.",
    )


async def test_what_its_worker_left_behind_counts_as_it_was_held(desk: Desk) -> None:
    await desk.admit(3)
    await desk.bench.ledger.expire_worker(desk.bench.ledger.worker_id)
    assert await desk.account() == (3, 0)


# --- what goes on by itself -----------------------------------------------------------------------------

BROWSERS = replace(PLAN, browser_minutes_per_month=2, concurrent_browsers=2, concurrent_requests=1)


async def start(desk: Desk, seconds: int, *, plan: Plan = BROWSERS, cost: int = 1_000) -> Admitted:
    request = Request(
        request_id(),
        "browserbase",
        "POST /v1/sessions",
        (),
        cost,
        0,
        due_in_s=900.0,
        quotas={"browser_seconds": seconds},
        runs=OPEN_BROWSERS,
    )
    return await desk.admission.admit(Caller("ada", "tok_ada", plan), request)


async def found(desk: Desk, admitted: Admitted) -> Reservation:
    reservation = await desk.bench.ledger.held(admitted.reservation.id)
    assert reservation is not None
    return reservation


async def test_what_runs_by_itself_is_no_request_in_flight(desk: Desk) -> None:
    """Held on its own gauge: of a plan with one request at once two browsers run, and requests go on beside them."""
    results = await asyncio.gather(*(start(desk, 1) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(result, Admitted) for result in results) == 2
    refused = next(result for result in results if isinstance(result, Refused))
    assert refused.message == "Too many browser sessions at once: 2 may run on the pro plan."
    assert (refused.reason, refused.retry_after_s) == (Reason.TOO_MANY_CONCURRENT, None)
    await desk.admit(1, plan=BROWSERS)
    for admitted in (result for result in results if isinstance(result, Admitted)):
        await desk.settle(admitted, 0)
    await start(desk, 1)


async def test_a_plan_without_browsers_says_that(desk: Desk) -> None:
    with pytest.raises(Refused, match=r"The pro plan includes no browser sessions\."):
        await start(desk, 1, plan=replace(BROWSERS, concurrent_browsers=0))
    with pytest.raises(Refused, match=r"The pro plan includes no browser minutes\."):
        await start(desk, 1, plan=replace(BROWSERS, browser_minutes_per_month=0))


async def test_seconds_are_told_in_minutes(desk: Desk) -> None:
    admitted = await start(desk, 61)
    assert [(quota.meter, quota.limit, quota.remaining) for quota in admitted.quotas] == [
        ("browser_seconds", 120, 59)
    ]
    await desk.settle_seconds(admitted, 61)
    with pytest.raises(Refused) as refused:
        await start(desk, 60)
    assert refused.value.message == (
        "Monthly usage limit reached for a request of this size: it may take up to 1 browser minutes, 0 of 2 are left. "
        f"Resets on {RESETS}."
    )
    await desk.settle_seconds(await start(desk, 59), 59)
    with pytest.raises(Refused) as refused:
        await start(desk, 1)
    assert (
        refused.value.message == f"Monthly usage limit reached (2 of 2 browser minutes). Resets on {RESETS}."
    )


async def test_what_runs_is_extended_in_money_and_counts_until_either_is_used_up(desk: Desk) -> None:
    admitted = await start(desk, 60)
    extend = desk.admission.extend_running
    more = {"browser_seconds": 40}
    assert await extend(await found(desk, admitted), more_nanousd=500, more=more, budget=HARD) is None
    assert await desk.bench.account(meter="browser_seconds") == (0, 100)
    assert await desk.bench.account() == (0, 1_500)
    declined = await extend(await found(desk, admitted), more_nanousd=500, more=more, budget=SOFT)
    assert declined is not None
    assert declined.meter == "browser_seconds"
    declined = await extend(
        await found(desk, admitted),
        more_nanousd=PLAN.allowance_nanousd,
        more={"browser_seconds": 1},
        budget=HARD,
    )
    assert declined is not None
    assert declined.meter == MONEY
    assert await desk.bench.account(meter="browser_seconds") == (0, 100)
    declined = await extend(
        await found(desk, admitted),
        more_nanousd=PLAN.allowance_nanousd,
        more={"browser_seconds": 1},
        budget=SOFT,
    )
    assert declined is None
    assert await desk.bench.account(meter="browser_seconds") == (0, 101)
    assert await desk.bench.account() == (0, 1_500)
    await desk.settle_seconds(admitted, 70)


def test_only_searches_that_we_asked_for_count() -> None:
    usage = Usage((UsageLine("answers", {SEARCHES: 8, WEB_SEARCHES: 5}), UsageLine("search", {SEARCHES: 1})))
    assert quotas_used(usage, ("searches",)) == {"searches": 9}
    assert quotas_used(usage, ()) == {}


def test_every_quota_names_a_limit_of_plans() -> None:
    for meter, quota in QUOTAS.items():
        assert (quota.meter, quota.of(PLAN) >= 0) == (meter, True)
