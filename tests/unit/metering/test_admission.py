"""Who may: plan, rate, concurrency and budget, with the words and facts of each refusal."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from metering.admission import Admission, Admitted, Caller, Request, owner_of
from metering.clock import MS_PER_DAY
from metering.errors import Reason, Refused
from metering.ledger import MONEY, REQUESTS, SPEND, Ledger
from metering.money import CREDIT_NANOUSD
from metering.plans import Plan, load_plans
from metering.prices import Priced, PricedLine
from metering.rate_limits import RateLimits
from metering.terms import (
    Cap,
    CapMeter,
    CapPeriod,
    Link,
    OwnedLimits,
    Scope,
    Terms,
    TokenLimits,
    Whose,
    terms_of,
)
from tests.support.ledger import PERIOD, Bench, money, open_bench, request_id, settlement

PRO = replace(
    load_plans()["pro"], credits_per_month=1_000, requests_per_minute=10_000, concurrent_requests=1_000
)
CREDIT = CREDIT_NANOUSD


def caller(user: str = "ada", plan: Plan = PRO, **own: TokenLimits) -> Caller:
    limits = tuple(OwnedLimits(Whose.TOKEN, f"token:{name}", limits) for name, limits in own.items())
    return Caller(user, f"tok_{user}", plan, Terms(limits=limits) if limits else None)


def used(tokens: int) -> Priced:
    return Priced(0, (PricedLine("m", {"input_tokens": tokens, "cache_read_tokens": 10**9}, {}, {}),), ())


@dataclass
class Desk:
    """An admission desk on a bench."""

    bench: Bench
    admission: Admission

    async def admit(
        self,
        credits_: float,
        *,
        plan: Plan = PRO,
        user: str = "ada",
        model: str = "m",
        terms: Terms | None = None,
        has_credit: bool = False,
        is_free: bool = False,
        **own: TokenLimits,
    ) -> Admitted:
        """`own`: the limits of the gateway token (`key`) and of those it comes from."""
        request = Request(
            request_id(),
            "anthropic",
            "POST /v1/messages",
            (model,),
            round(credits_ * CREDIT),
            0,
            is_free=is_free,
            costs_less="a lower max_tokens",
        )
        one = replace(caller(user, plan, **own), has_credit=has_credit)
        return await self.admission.admit(one if terms is None else replace(one, token=terms), request)

    async def refusal(self, credits_: float, **options: object) -> Refused:
        with pytest.raises(Refused) as refused:
            await self.admit(credits_, **options)  # type: ignore[arg-type]
        return refused.value

    async def settle(self, admitted: Admitted, credits_: float) -> None:
        await self.bench.ledger.settle(admitted.reservation, settlement(round(credits_ * CREDIT)))


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_bench(tmp_path) as bench:
        yield Desk(bench, Admission(bench.ledger, RateLimits(bench.clock), bench.clock))
        await bench.assert_clean()


async def test_what_is_admitted_is_held_and_told_where_the_user_stands(desk: Desk) -> None:
    admitted = await desk.admit(300)
    assert admitted.budget_limit_nanousd == 1_000 * CREDIT
    assert admitted.budget_remaining_nanousd == 700 * CREDIT
    assert admitted.budget_reset_ms == 1_796_083_200_000  # 2026-12-01 00:00 UTC
    assert (admitted.requests.limit, admitted.requests.remaining) == (10_000, 9_999)
    assert (admitted.tokens.limit, admitted.tokens.remaining) == (500_000, 500_000)
    assert admitted.concurrent_requests == 1_000
    assert admitted.budget_began_ms == 1_793_491_200_000  # 2026-11-01 00:00 UTC
    assert await desk.bench.account() == (0, 300 * CREDIT)
    assert await desk.bench.gauge() == 1
    await desk.settle(admitted, 100)
    assert (await desk.admit(0.5)).budget_remaining_nanousd == round(899.5 * CREDIT)


@pytest.mark.parametrize("user", ["ada", "first-ever"])
async def test_of_two_hundred_parallel_requests_on_a_budget_for_ten_exactly_ten_are_granted(
    desk: Desk, user: str
) -> None:
    if user == "ada":
        await desk.settle(await desk.admit(0), 0)
    results = await asyncio.gather(*(desk.admit(100, user=user) for _ in range(200)), return_exceptions=True)
    granted = [result for result in results if isinstance(result, Admitted)]
    refused = [result for result in results if isinstance(result, Refused)]
    assert (len(granted), len(refused)) == (10, 190)
    assert {refusal.reason for refusal in refused} == {Reason.BUDGET_HELD}
    assert await desk.bench.account(owner_of(user)) == (0, 1_000 * CREDIT)
    assert await desk.bench.gauge(owner_of(user)) == 10
    await asyncio.gather(*(desk.settle(admitted, 50) for admitted in granted))
    again = await asyncio.gather(*(desk.admit(100, user=user) for _ in range(200)), return_exceptions=True)
    assert sum(isinstance(result, Admitted) for result in again) == 5


async def test_a_spent_budget_is_told_with_its_numbers_and_no_advice_to_wait(desk: Desk) -> None:
    await desk.settle(await desk.admit(1_000), 1_000.5)
    refused = await desk.refusal(1)
    assert refused.reason is Reason.BUDGET_EXHAUSTED
    assert refused.message == (
        "Monthly usage limit reached (1,001 of 1,000 credits). Resets on 1 December 2026."
    )
    assert refused.retry_after_s is None
    assert refused.facts == {"used_credits": 1_001, "limit_credits": 1_000, "resets": "1 December 2026"}


async def test_a_request_too_large_for_what_is_left_is_told_how_large(desk: Desk) -> None:
    await desk.settle(await desk.admit(1_000), 900)
    refused = await desk.refusal(100.5)
    assert refused.reason is Reason.BUDGET_EXHAUSTED
    assert refused.message == (
        "Monthly usage limit reached for a request of this size: it may cost up to 101 credits, "
        "100 of 1,000 are left (a lower max_tokens costs less). Resets on 1 December 2026."
    )
    assert (await desk.admit(100)).budget_remaining_nanousd == 0


async def test_a_budget_that_is_only_held_is_told_to_wait_a_little(desk: Desk) -> None:
    holding = await desk.admit(950)
    refused = await desk.refusal(100)
    assert (refused.reason, refused.retry_after_s) == (Reason.BUDGET_HELD, 2.0)
    await desk.settle(holding, 10)
    await desk.admit(100)


async def test_a_request_larger_than_the_whole_budget_is_never_told_to_wait(desk: Desk) -> None:
    assert (await desk.refusal(1_001)).reason is Reason.BUDGET_EXHAUSTED


async def test_a_plan_without_credits_admits_what_is_free_only(desk: Desk) -> None:
    none = replace(PRO, credits_per_month=0)
    assert (await desk.refusal(1, plan=none)).reason is Reason.BUDGET_EXHAUSTED
    admitted = await desk.admit(0, plan=none)
    assert admitted.budget_remaining_nanousd is None
    assert not any(line.meter == MONEY for line in admitted.reservation.lines)


async def test_a_refused_request_holds_nothing(desk: Desk) -> None:
    await desk.refusal(1_001)
    assert (await desk.bench.account(), await desk.bench.gauge()) == ((0, 0), 0)


async def test_the_next_month_begins_with_the_whole_budget(desk: Desk) -> None:
    await desk.settle(await desk.admit(1_000), 1_000)
    desk.bench.clock.ms = 1_796_083_199_999
    assert (await desk.refusal(1)).reason is Reason.BUDGET_EXHAUSTED
    desk.bench.clock.ms += 1
    admitted = await desk.admit(1_000)
    assert admitted.budget_reset_ms == 1_798_761_600_000  # 2027-01-01 00:00 UTC
    assert await desk.bench.account(period="2026-12") == (0, 1_000 * CREDIT)
    desk.bench.clock.ms -= 1  # the clock is set back over the month's end
    assert (await desk.refusal(1)).reason is Reason.BUDGET_EXHAUSTED


async def test_a_request_is_charged_to_the_month_in_which_it_was_admitted(desk: Desk) -> None:
    admitted = await desk.admit(100)
    desk.bench.clock.ms = 1_796_083_200_000
    await desk.settle(admitted, 50)
    assert await desk.bench.account(period=PERIOD) == (50 * CREDIT, 0)


async def test_prepaid_credit_is_left_beside_the_months(desk: Desk) -> None:
    await desk.bench.grant(500 * CREDIT)
    admitted = await desk.admit(700, has_credit=True)
    assert admitted.budget_limit_nanousd == 1_500 * CREDIT
    assert admitted.budget_remaining_nanousd == 800 * CREDIT
    await desk.settle(admitted, 1_200)
    later = await desk.admit(100, has_credit=True)
    assert (later.budget_limit_nanousd, later.budget_remaining_nanousd) == (1_300 * CREDIT, 200 * CREDIT)
    assert (await desk.admit(0, has_credit=True)).budget_remaining_nanousd is None


async def test_a_month_that_is_overdrawn_takes_nothing_off_what_credit_has_left(desk: Desk) -> None:
    await desk.settle(await desk.admit(1_000), 1_100)
    await desk.bench.grant(50 * CREDIT)
    admitted = await desk.admit(20, has_credit=True)
    assert admitted.budget_remaining_nanousd == 30 * CREDIT


async def test_when_both_are_spent_both_are_named(desk: Desk) -> None:
    await desk.bench.grant(500 * CREDIT)
    await desk.settle(await desk.admit(1_500, has_credit=True), 1_500)
    refused = await desk.refusal(1, has_credit=True)
    assert refused.reason is Reason.BUDGET_EXHAUSTED
    assert refused.message == (
        "Monthly usage limit reached (1,000 of 1,000 credits, prepaid credit used up). Resets on 1 December 2026."
    )
    assert refused.retry_after_s is None
    assert refused.facts == {"used_credits": 1_000, "limit_credits": 1_000, "resets": "1 December 2026"}


async def test_a_request_too_large_for_both_is_told_what_each_has_left(desk: Desk) -> None:
    await desk.bench.grant(500 * CREDIT)
    await desk.settle(await desk.admit(900, has_credit=True), 900)
    refused = await desk.refusal(601, has_credit=True)
    assert refused.message == (
        "Monthly usage limit reached for a request of this size: it may cost up to 601 credits, 100 of 1,000 are left "
        "and 500 prepaid (a lower max_tokens costs less). Resets on 1 December 2026."
    )


async def test_credit_that_is_only_held_is_told_to_wait_a_little(desk: Desk) -> None:
    await desk.bench.grant(500 * CREDIT)
    await desk.admit(1_500, has_credit=True)
    refused = await desk.refusal(1, has_credit=True)
    assert (refused.reason, refused.retry_after_s) == (Reason.BUDGET_HELD, 2.0)


@pytest.mark.parametrize("spent", [0.0, 10_000_000.0])
async def test_refusals_are_short_enough_to_be_shown_and_free_of_words_that_lock_a_key(
    desk: Desk, spent: float
) -> None:
    """OpenClaw shows up to 300 characters as they are, and takes some words for an unpaid account."""
    huge = replace(PRO, credits_per_month=10**10)
    await desk.bench.grant(10**15)
    await desk.settle(await desk.admit(spent, plan=huge, has_credit=True), spent)
    plan = replace(PRO, credits_per_month=1) if spent else huge
    message = (await desk.refusal(3 * 10**10, plan=plan, has_credit=True)).message
    assert len(message) <= 300
    assert "limit reached" in message
    assert not any(
        word in message for word in ("credit balance", "top up", "insufficient credits", "upgrade")
    )


async def test_a_plan_without_credits_lives_on_what_is_prepaid(desk: Desk) -> None:
    none = replace(PRO, credits_per_month=0)
    await desk.bench.grant(10 * CREDIT)
    await desk.settle(await desk.admit(10, plan=none, has_credit=True), 10)
    assert (await desk.refusal(1, plan=none, has_credit=True)).reason is Reason.BUDGET_EXHAUSTED


async def test_a_larger_plan_counts_at_once(desk: Desk) -> None:
    await desk.settle(await desk.admit(1_000), 1_000)
    await desk.admit(1, plan=replace(PRO, credits_per_month=1_001))


async def test_so_many_requests_may_be_in_flight(desk: Desk) -> None:
    two = replace(PRO, concurrent_requests=2)
    first, _ = [await desk.admit(1, plan=two) for _ in range(2)]
    refused = await desk.refusal(1, plan=two)
    assert (refused.reason, refused.retry_after_s) == (Reason.TOO_MANY_CONCURRENT, 1.0)
    assert refused.message == "Too many requests at once: 2 may be in flight on the pro plan."
    assert refused.facts == {"limit": 2}
    await desk.bench.ledger.void(first.reservation)
    await desk.admit(1, plan=two)


async def test_free_requests_count_as_in_flight(desk: Desk) -> None:
    one = replace(PRO, concurrent_requests=1)
    await desk.admit(0, plan=one)
    assert (await desk.refusal(0, plan=one)).reason is Reason.TOO_MANY_CONCURRENT


async def test_the_rate_is_refused_with_a_short_wait_that_helps(desk: Desk) -> None:
    three = replace(PRO, requests_per_minute=3)
    for _ in range(3):
        await desk.admit(1, plan=three)
    refused = await desk.refusal(1, plan=three)
    assert refused.reason is Reason.RATE_LIMITED
    assert refused.message == "Rate limit reached: 3 requests per minute on the pro plan."
    assert refused.retry_after_s is not None
    assert 0 < refused.retry_after_s <= 61
    desk.bench.clock.advance(refused.retry_after_s)
    await desk.admit(1, plan=three)


async def test_a_model_or_surface_outside_the_plan_does_not_exist(desk: Desk) -> None:
    narrow = replace(PRO, models=("claude-haiku-*",))
    await desk.admit(1, plan=narrow, model="claude-haiku-9")
    refused = await desk.refusal(1, plan=narrow, model="claude-opus-9")
    assert refused.reason is Reason.MODEL_UNAVAILABLE
    assert refused.message == "model: claude-opus-9 (not included in the pro plan)"
    assert (await desk.refusal(1, plan=replace(PRO, surfaces=("brave",)))).reason is Reason.UNKNOWN_OPERATION


async def test_every_model_a_request_may_run_on_must_be_in_the_plan(desk: Desk) -> None:
    narrow = Caller("ada", "tok", replace(PRO, models=("a",)))
    with pytest.raises(Refused, match="model: b"):
        desk.admission.check_plan(narrow, "anthropic", ("a", "b"))


async def test_what_the_plan_refuses_does_not_count_against_the_minute(desk: Desk) -> None:
    narrow = replace(PRO, models=("a",), requests_per_minute=1)
    for _ in range(3):
        await desk.refusal(1, plan=narrow, model="b")
    await desk.admit(1, plan=narrow, model="a")


async def test_a_store_that_cannot_be_written_admits_nobody(tmp_path: Path) -> None:
    async with open_bench(tmp_path, busy_timeout_s=0.05) as bench:
        desk = Desk(bench, Admission(bench.ledger, RateLimits(bench.clock), bench.clock))
        with closing(sqlite3.connect(bench.store.database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            refused = await desk.refusal(1)
            other.execute("ROLLBACK")
        assert (refused.reason, refused.retry_after_s) == (Reason.STORE_UNAVAILABLE, 2.0)
        await desk.admit(1)


async def test_workers_share_one_budget(desk: Desk) -> None:
    other = Desk(
        desk.bench,
        Admission(
            Ledger(desk.bench.store, desk.bench.clock, "wrk_b"),
            RateLimits(desk.bench.clock),
            desk.bench.clock,
        ),
    )
    results = await asyncio.gather(
        *(one.admit(100) for one in (desk, other) for _ in range(50)), return_exceptions=True
    )
    assert sum(isinstance(result, Admitted) for result in results) == 10


async def test_holds_of_the_dead_are_given_back_to_the_budget(desk: Desk) -> None:
    await desk.bench.reserve(money(1_000 * CREDIT, of=1_000 * CREDIT), ledger=desk.bench.worker("wrk_dead"))
    assert (await desk.refusal(1_000)).reason is Reason.BUDGET_HELD
    await desk.bench.ledger.expire_worker("wrk_dead")
    await desk.admit(1_000)


# --- caps -----------------------------------------------------------------------------------------------

TODAY = "2026-11-20"
NOON_MS = 1_795_176_000_000
"""Of today."""
DECEMBER_MS = 1_796_083_200_000


def cap(meter: str, period: str, limit: int) -> Cap:
    return Cap(CapMeter(meter), CapPeriod(period), limit)


def terms(*links: Link, user: tuple[Cap, ...] = ()) -> Terms | None:
    return terms_of(links or (Link("t"),), "user:ada", user)


@pytest.mark.parametrize(
    ("meter", "period", "limit", "message"),
    [
        (
            "credits",
            "day",
            100,
            "Daily usage limit reached (100 of 100 credits of {}). Resets on 21 November 2026.",
        ),
        (
            "credits",
            "month",
            100,
            "Monthly usage limit reached (100 of 100 credits of {}). Resets on 1 December 2026.",
        ),
        (
            "requests",
            "day",
            1,
            "Daily usage limit reached (1 of 1 requests of {}). Resets on 21 November 2026.",
        ),
        (
            "requests",
            "month",
            1,
            "Monthly usage limit reached (1 of 1 requests of {}). Resets on 1 December 2026.",
        ),
    ],
)
@pytest.mark.parametrize(
    ("place", "whose"),
    [
        ("token", "this gateway token"),
        ("parent", "the gateway token that this one comes from"),
        ("user", "this account"),
    ],
)
async def test_a_spent_cap_says_which_whose_how_much_and_when_it_returns(
    desk: Desk, meter: str, period: str, limit: int, message: str, place: str, whose: str
) -> None:
    caps = (cap(meter, period, limit),)
    capped = {
        "token": terms(Link("t", caps=caps)),
        "parent": terms(Link("t"), Link("p", caps=caps)),
        "user": terms(user=caps),
    }[place]
    await desk.settle(await desk.admit(100, terms=capped), 100)
    refused = await desk.refusal(1, terms=capped)
    assert (refused.reason, refused.retry_after_s) == (Reason.BUDGET_EXHAUSTED, None)
    assert refused.message == message.format(whose)
    assert len(refused.message) <= 300
    resets = "21 November 2026" if period == "day" else "1 December 2026"
    assert refused.facts == {
        f"used_{meter}": limit,
        f"limit_{meter}": limit,
        "resets": resets,
        "cap": f"{meter} per {period} of {whose}",
    }
    await desk.admit(1)  # others are not capped


async def test_a_request_holds_on_the_caps_of_all_its_chain_and_of_its_user_or_on_none(desk: Desk) -> None:
    capped = terms(
        Link("c", caps=(cap("credits", "day", 500),)),
        Link("p", caps=(cap("credits", "month", 90), cap("requests", "day", 9))),
        user=(cap("requests", "month", 9),),
    )
    accounts = (
        ("token:c", SPEND, TODAY),
        ("token:p", SPEND, PERIOD),
        ("token:p", REQUESTS, TODAY),
        ("user:ada", REQUESTS, PERIOD),
    )

    async def stand() -> list[tuple[int, int]]:
        return [await desk.bench.account(*account) for account in accounts]

    assert "of the gateway token that this one" in (await desk.refusal(91, terms=capped)).message
    assert await stand() == [(0, 0)] * 4
    admitted = await desk.admit(80, terms=capped)
    assert await stand() == [(0, 80 * CREDIT), (0, 80 * CREDIT), (0, 1), (0, 1)]
    await desk.settle(admitted, 30)
    assert await stand() == [(30 * CREDIT, 0), (30 * CREDIT, 0), (1, 0), (1, 0)]
    assert await desk.bench.account() == (30 * CREDIT, 0), "and the plan's money, as always"
    voided = await desk.admit(1, terms=capped)
    await desk.bench.ledger.void(voided.reservation)
    assert await stand() == [(30 * CREDIT, 0), (30 * CREDIT, 0), (1, 0), (1, 0)]


@pytest.mark.parametrize(("meter", "limit"), [("credits", 1_000), ("requests", 10)])
async def test_of_two_hundred_requests_of_siblings_on_a_parents_cap_for_ten_exactly_ten_are_granted(
    desk: Desk, meter: str, limit: int
) -> None:
    parent = Link("p", caps=(cap(meter, "day", limit),))
    plan = replace(PRO, credits_per_month=1_000_000)
    siblings = [terms(Link(f"c{number}"), parent) for number in range(4)]
    results = await asyncio.gather(
        *(desk.admit(100, terms=siblings[number % 4], plan=plan) for number in range(200)),
        return_exceptions=True,
    )
    granted = [result for result in results if isinstance(result, Admitted)]
    refused = [result for result in results if isinstance(result, Refused)]
    assert (len(granted), len(refused)) == (10, 190)
    assert {(refusal.reason, refusal.retry_after_s) for refusal in refused} == {(Reason.BUDGET_HELD, 2.0)}
    assert {refusal.message for refusal in refused} == {
        (
            f"Requests in flight hold the rest of the {meter} that the gateway token that this one comes from "
            "may use per day; retry when they have finished."
        )
    }
    await asyncio.gather(*(desk.settle(admitted, 100) for admitted in granted))
    refusal = await desk.refusal(100, terms=siblings[0], plan=plan)
    assert refusal.reason is Reason.BUDGET_EXHAUSTED


async def test_a_request_too_large_for_what_a_cap_has_left_is_told_how_large(desk: Desk) -> None:
    capped = terms(Link("t", caps=(cap("credits", "day", 100),)))
    await desk.settle(await desk.admit(100, terms=capped), 40)
    refused = await desk.refusal(60.5, terms=capped)
    assert refused.message == (
        "Daily usage limit reached for a request of this size: it may cost up to 61 credits, 60 of 100 of "
        "this gateway token are left (a lower max_tokens costs less). Resets on 21 November 2026."
    )
    await desk.admit(60, terms=capped)


async def test_a_cap_of_none_admits_what_is_free_only(desk: Desk) -> None:
    capped = terms(Link("t", caps=(cap("credits", "day", 0),)))
    assert (await desk.refusal(1, terms=capped)).reason is Reason.BUDGET_EXHAUSTED
    await desk.admit(0, terms=capped)


async def test_a_daily_cap_returns_at_midnight_and_a_monthly_one_with_the_month(desk: Desk) -> None:
    capped = terms(Link("t", caps=(cap("requests", "day", 1), cap("requests", "month", 2))))
    midnight_ms = desk.bench.clock.ms + MS_PER_DAY // 2
    await desk.settle(await desk.admit(1, terms=capped), 1)
    desk.bench.clock.ms = midnight_ms - 1
    assert "Daily" in (await desk.refusal(1, terms=capped)).message
    desk.bench.clock.ms = midnight_ms
    await desk.settle(await desk.admit(1, terms=capped), 1)
    desk.bench.clock.ms = midnight_ms + MS_PER_DAY
    assert "Monthly" in (await desk.refusal(1, terms=capped)).message
    desk.bench.clock.ms = 1_796_083_200_000  # 2026-12-01 00:00 UTC
    await desk.admit(1, terms=capped)


@pytest.mark.parametrize(
    ("period", "admitted_ms", "title"),
    [("day", NOON_MS, "Daily"), ("month", DECEMBER_MS - 1, "Monthly")],
)
async def test_what_is_refused_more_after_its_period_has_ended_names_that_period(
    desk: Desk, period: str, admitted_ms: int, title: str
) -> None:
    capped = terms(Link("t", caps=(cap("credits", period, 100),)))
    one = replace(caller(), token=capped)
    desk.bench.clock.ms = admitted_ms
    admitted = await desk.admit(60, terms=capped)
    desk.bench.clock.ms += MS_PER_DAY
    refused = await desk.admission.extend(
        one, admitted.reservation, until_nanousd=120 * CREDIT, used_nanousd=60 * CREDIT
    )
    assert refused is not None
    resets = "21 November 2026" if period == "day" else "1 December 2026"
    assert refused.facts["resets"] == resets
    assert refused.message == (
        f"{title} usage limit reached (60 of 100 credits of this gateway token). Resets on {resets}."
    )
    await desk.settle(admitted, 60)


async def test_a_stream_that_the_month_of_its_admission_refuses_names_that_month(desk: Desk) -> None:
    desk.bench.clock.ms = DECEMBER_MS - 1
    admitted = await desk.admit(600)
    desk.bench.clock.ms += MS_PER_DAY
    refused = await desk.admission.extend(
        caller(), admitted.reservation, until_nanousd=1_200 * CREDIT, used_nanousd=600 * CREDIT
    )
    assert refused is not None
    assert refused.facts["resets"] == "1 December 2026"
    assert refused.message.endswith("Resets on 1 December 2026.")
    await desk.settle(admitted, 600)


async def test_what_costs_more_than_it_held_is_booked_on_its_caps_too(desk: Desk) -> None:
    capped = terms(Link("t", caps=(cap("credits", "day", 100),)))
    await desk.settle(await desk.admit(10, terms=capped), 15)
    assert await desk.bench.account("token:t", SPEND, TODAY) == (15 * CREDIT, 0)


async def test_a_scope_is_looked_at_before_anything_is_counted_or_held(desk: Desk) -> None:
    one = replace(PRO, requests_per_minute=1)
    narrow = terms(Link("t", Scope(operations=("GET *",))))
    refused = await desk.refusal(1, plan=one, terms=narrow)
    assert refused.reason is Reason.FORBIDDEN
    other = terms(Link("t", Scope(models=("x",))))
    assert (await desk.refusal(1, plan=one, terms=other)).reason is Reason.MODEL_UNAVAILABLE
    await desk.admit(1, plan=one, terms=other, model="x")


# --- tokens per minute, and limits of a gateway token -----------------------------------------------------


async def test_a_large_turn_is_answered_and_the_next_is_told_how_long_to_wait(desk: Desk) -> None:
    plan = replace(PRO, tokens_per_minute=50_000, requests_per_minute=2)
    assert (await desk.admit(1, plan=plan)).tokens.remaining == 50_000
    desk.admission.charge(caller(plan=plan), used(75_000))
    for _ in range(3):
        refused = await desk.refusal(1, plan=plan)
        assert (refused.reason, refused.retry_after_s) == (Reason.TOKENS_RATE_LIMITED, 30.001)
    assert refused.message == "Rate limit reached: 50,000 tokens per minute on the pro plan."
    assert refused.facts == {"limit": 50_000}
    desk.bench.clock.advance(30.001)
    admitted = await desk.admit(1, plan=plan)
    assert admitted.requests.remaining == 0, "a refusal for tokens counted against the requests"
    assert await desk.bench.gauge() == 2


async def test_what_is_free_is_neither_counted_nor_refused_by_tokens(desk: Desk) -> None:
    plan = replace(PRO, tokens_per_minute=100)
    desk.admission.charge(caller(plan=plan), used(1_000))
    admitted = await desk.admit(0, plan=plan, is_free=True)
    assert (admitted.tokens.is_allowed, admitted.tokens.remaining) == (False, 0)
    desk.admission.check_before_body(caller(plan=plan), "anthropic", {}, is_free=True)
    with pytest.raises(Refused, match="100 tokens per minute"):
        desk.admission.check_before_body(caller(plan=plan), "anthropic", {})


async def test_a_key_with_limits_of_its_own_must_pass_both_and_one_that_refuses_counts_on_neither(
    desk: Desk,
) -> None:
    plan, key = replace(PRO, requests_per_minute=3), TokenLimits(requests_per_minute=2)
    admitted = [await desk.admit(1, plan=plan, key=key) for _ in range(2)]
    assert [(one.requests.limit, one.requests.remaining) for one in admitted] == [(2, 1), (2, 0)]
    for _ in range(3):
        refused = await desk.refusal(1, plan=plan, key=key)
        assert refused.reason is Reason.RATE_LIMITED
        assert refused.message == "Rate limit reached: 2 requests per minute for this API key."
        assert refused.facts == {"limit": 2, "limit_of": "key"}
    assert (await desk.admit(1, plan=plan)).requests.remaining == 0  # of the plan's three, two were the key's
    for _ in range(3):
        refused = await desk.refusal(1, plan=plan, other=TokenLimits(requests_per_minute=1))
        assert refused.message == "Rate limit reached: 3 requests per minute on the pro plan."
    desk.bench.clock.advance(120)
    await desk.admit(1, plan=plan, other=TokenLimits(requests_per_minute=1))


async def test_tokens_are_charged_to_the_plan_the_key_and_those_it_comes_from(desk: Desk) -> None:
    plan = replace(PRO, tokens_per_minute=10_000)
    own = {"key": TokenLimits(tokens_per_minute=5_000), "parent": TokenLimits(tokens_per_minute=2_000)}
    desk.admission.charge(caller(plan=plan, **own), used(1_000))
    admitted = await desk.admit(1, plan=plan, **own)
    assert (admitted.tokens.limit, admitted.tokens.remaining) == (2_000, 1_000)
    assert (await desk.admit(1, plan=plan)).tokens.remaining == 9_000
    desk.admission.charge(caller(plan=plan, **own), used(2_000))
    refused = await desk.refusal(1, plan=plan, **own)
    assert refused.message == "Rate limit reached: 2,000 tokens per minute for this API key."
    assert refused.facts == {"limit": 2_000, "limit_of": "key"}
    assert (await desk.admit(1, plan=plan, key=own["key"])).tokens.remaining == 2_000


async def test_of_several_that_refuse_the_longest_wait_is_told(desk: Desk) -> None:
    own = {"key": TokenLimits(tokens_per_minute=600), "parent": TokenLimits(tokens_per_minute=1_200)}
    desk.admission.charge(caller(**own), used(1_500))
    refused = await desk.refusal(1, **own)
    assert (refused.facts["limit"], refused.retry_after_s) == (600, 60.0)
    assert desk.admission.standing(caller(**own)).tokens.retry_after_s == 60.0
    desk.bench.clock.advance(refused.retry_after_s or 0)
    await desk.admit(1, **own)


async def test_limits_that_a_key_does_not_have_are_the_plans(desk: Desk) -> None:
    admitted = await desk.admit(1, key=TokenLimits())
    assert (admitted.requests.limit, admitted.tokens.limit) == (10_000, 500_000)
    assert admitted.concurrent_requests == 1_000
    assert await desk.bench.gauge("token:key") == 0


async def test_so_many_requests_of_one_key_may_be_in_flight(desk: Desk) -> None:
    plan, key = replace(PRO, concurrent_requests=3), TokenLimits(concurrent_requests=2)
    first, _ = [await desk.admit(1, plan=plan, key=key) for _ in range(2)]
    assert first.concurrent_requests == 2
    refused = await desk.refusal(1, plan=plan, key=key)
    assert (refused.reason, refused.retry_after_s) == (Reason.TOO_MANY_CONCURRENT, 1.0)
    assert refused.message == "Too many requests at once: 2 may be in flight for this API key."
    assert refused.facts == {"limit": 2, "limit_of": "key"}
    await desk.admit(1, plan=plan)
    await desk.bench.ledger.void(first.reservation)
    await desk.admit(1, plan=plan)
    assert (await desk.bench.gauge("user:ada"), await desk.bench.gauge("token:key")) == (3, 1)
    refused = await desk.refusal(1, plan=plan, key=key)
    assert refused.message == "Too many requests at once: 3 may be in flight on the pro plan."
    assert refused.facts == {"limit": 3}


async def test_bodies_are_waited_for_as_long_as_plan_and_key_have_room(desk: Desk) -> None:
    one = caller(plan=replace(PRO, concurrent_requests=3), key=TokenLimits(concurrent_requests=2))
    check = desk.admission.check_before_body
    check(one, "anthropic", {"user:ada": 2, "token:key": 1})
    with pytest.raises(Refused, match="2 may be in flight for this API key"):
        check(one, "anthropic", {"user:ada": 2, "token:key": 2})
    with pytest.raises(Refused, match="3 may be in flight on the pro plan"):
        check(one, "anthropic", {"user:ada": 3, "token:key": 1})


async def test_a_refusal_for_money_says_what_is_left_of_it(desk: Desk) -> None:
    await desk.admit(950)
    assert (await desk.refusal(100)).budget_left_nanousd == 50 * CREDIT
    assert (await desk.refusal(2_000)).budget_left_nanousd == 50 * CREDIT
    standing = desk.admission.standing(caller(), 50 * CREDIT)
    assert (standing.budget_remaining_nanousd, standing.budget_limit_nanousd) == (50 * CREDIT, 1_000 * CREDIT)


async def test_looking_where_a_caller_stands_counts_nothing(desk: Desk) -> None:
    one = caller(key=TokenLimits(requests_per_minute=5))
    for _ in range(10):
        standing = desk.admission.standing(one)
    assert (standing.requests.limit, standing.requests.remaining) == (5, 5)
    assert standing.budget_remaining_nanousd is None
