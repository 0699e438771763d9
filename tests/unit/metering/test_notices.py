"""Notices: which thresholds are reached, each once per period, found again by whoever lives after a death."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from metering import charged, notices
from metering.admission import LITTLE_LEFT_PERCENT, Admission, Caller, Request
from metering.charged import Charged
from metering.credit import CREDIT
from metering.errors import Reason, Refused
from metering.ledger import NO_PERIOD, Hold, Outcome
from metering.money import CREDIT_NANOUSD
from metering.notices import (
    ENDPOINT,
    LOOKED_AT_ONCE,
    NOTICES_SWEEP_S,
    Notices,
    notices_of,
    reached,
)
from metering.outbox import Outbox
from metering.plans import Plan, load_plans
from metering.rate_limits import RateLimits
from metering.users import Directory
from tests.support.ledger import PERIOD, Bench, gauge, money, open_bench, settlement

DECEMBER_MS = 1_796_083_200_000
LIMIT = 1_000 * CREDIT_NANOUSD
PRO = replace(load_plans()["pro"], credits_per_month=1_000)
PLANS = {
    "pro": PRO,
    "large": replace(PRO, name="large", credits_per_month=10_000),
    "small": replace(PRO, name="small", credits_per_month=100),
    "none": replace(PRO, name="none", credits_per_month=0),
}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        await Directory(bench.store, bench.clock).add_user("ada", plan="pro")
        yield bench
        await bench.assert_clean()


def watching(bench: Bench, *, endpoint: str | None = ENDPOINT, noted: Charged | None = None) -> Notices:
    return Notices(
        bench.store, bench.clock, plans=PLANS, charged=noted or bench.ledger.charged, endpoint=endpoint
    )


async def spend(
    bench: Bench, credits_: float, *, of: int = LIMIT, period: str = PERIOD, user_id: str = "ada"
) -> None:
    cost = round(credits_ * CREDIT_NANOUSD)
    owner = f"user:{user_id}"
    held = money(cost, of=max(of, cost), owner=owner, period=period)
    reservation = await bench.reserve(held, gauge(owner=owner), user_id=user_id)
    await bench.ledger.settle(reservation, settlement(cost))


async def told(bench: Bench, period: str = PERIOD) -> list[tuple[str, int]]:
    """(user, threshold), in the order in which they were written."""
    rows = await bench.store.readers.rows(
        "SELECT user_id, threshold_percent FROM notices WHERE period = ?1 ORDER BY rowid", (period,)
    )
    return [(str(user), int(str(percent))) for user, percent in rows]


async def bodies(bench: Bench) -> list[dict[str, Any]]:
    rows = await bench.store.readers.rows("SELECT body FROM outbox ORDER BY rowid")
    return [orjson.loads(str(body)) for (body,) in rows]


@pytest.mark.parametrize(
    ("spent", "allowance", "is_spent", "thresholds"),
    [
        (0,    100, False, ()),
        (49,   100, False, ()),
        (50,   100, False, (50,)),
        (79,   100, False, (50,)),
        (80,   100, False, (50, 80)),
        (99,   100, False, (50, 80)),
        (100,  100, False, (50, 80, 100)),
        (10**4, 100, False, (50, 80, 100)),
        (97,   100, True,  (50, 80, 100)),
        (1,      3, False, ()),
        (2,      3, False, (50,)),
        (0,      0, False, ()),
        (5,      0, False, ()),
        (5,      0, True,  ()),
    ],
)  # fmt: skip
def test_the_thresholds_that_are_reached(
    spent: int, allowance: int, is_spent: bool, thresholds: Sequence[int]
) -> None:
    assert reached(spent, allowance, is_spent=is_spent) == thresholds


async def test_each_threshold_is_told_once_when_it_is_reached(bench: Bench) -> None:
    watch = watching(bench)
    for credits_, expected in ((499, []), (1, [50]), (299, [50]), (1, [50, 80]), (199, [50, 80])):
        await spend(bench, credits_)
        await watch.look()
        assert await told(bench) == [("ada", percent) for percent in expected]
    await spend(bench, 1)
    assert await watch.look() == 1
    await spend(bench, 1, of=2 * LIMIT)
    assert await watch.look() == 0
    assert await told(bench) == [("ada", 50), ("ada", 80), ("ada", 100)]


async def test_what_is_told_has_all_that_a_dashboard_shows(bench: Bench) -> None:
    await spend(bench, 500.5)
    await watching(bench).look()
    (message,) = await Outbox(bench.store, bench.clock).due(ENDPOINT, at_most=9)
    assert (message.kind, message.attempts) == ("budget.threshold_reached", 0)
    assert orjson.loads(message.body) == {
        "type": "budget.threshold_reached",
        "timestamp": "2026-11-20T12:00:00Z",
        "data": {
            "user": "ada",
            "period": "2026-11",
            "threshold_percent": 50,
            "used_credits": 501,
            "limit_credits": 1_000,
            "used_nanousd": 50_050_000,
            "limit_nanousd": 100_000_000,
            "plan": "pro",
            "resets_at": "2026-12-01T00:00:00Z",
        },
    }


async def test_a_jump_over_several_tells_each_in_order(bench: Bench) -> None:
    await spend(bench, 1_000)
    assert await watching(bench).look() == 3
    assert await told(bench) == [("ada", 50), ("ada", 80), ("ada", 100)]
    assert [body["data"]["threshold_percent"] for body in await bodies(bench)] == [50, 80, 100]


async def test_two_workers_that_find_the_same_write_it_once(bench: Bench) -> None:
    await spend(bench, 1_000)
    everybody = [watching(bench, noted=Charged()) for _ in range(8)]  # each sweeps
    assert sum(await asyncio.gather(*(watch.look() for watch in everybody))) == 3
    assert len(await bodies(bench)) == 3


async def test_without_an_endpoint_it_is_noted_and_nobody_is_told_then_or_later(bench: Bench) -> None:
    await spend(bench, 900)
    await watching(bench, endpoint=None).look()
    assert [notice.state for notice in await notices_of(bench.store.readers, PERIOD)] == ["not sent"] * 2
    assert await watching(bench).look() == 0
    assert await bodies(bench) == []


@pytest.mark.parametrize(
    ("plan", "expected"), [("large", []), ("small", [50, 80, 100]), ("none", []), ("unknown", [])]
)
async def test_the_allowance_is_that_of_the_plan_in_force_not_of_the_last_hold(
    bench: Bench, plan: str, expected: list[int]
) -> None:
    await spend(bench, 900)
    await Directory(bench.store, bench.clock).set_plan("ada", plan)
    await watching(bench).look()
    assert await told(bench) == [("ada", percent) for percent in expected]


async def test_what_was_told_is_not_told_again_after_an_upgrade(bench: Bench) -> None:
    watch, directory = watching(bench), Directory(bench.store, bench.clock)
    await spend(bench, 850)
    await watch.look()
    await directory.set_plan("ada", "large")
    await spend(bench, 4_200, of=10 * LIMIT)  # half of the larger one
    assert await watch.look() == 0
    await spend(bench, 4_950, of=10 * LIMIT)
    assert await watch.look() == 1
    assert await told(bench) == [("ada", 50), ("ada", 80), ("ada", 100)]


async def test_a_new_period_begins_anew_and_a_late_settle_counts_where_it_was_held(bench: Bench) -> None:
    watch = watching(bench)
    await spend(bench, 500)
    reservation = await bench.reserve(money(300 * CREDIT_NANOUSD, of=LIMIT))
    await watch.look()
    bench.clock.advance(11 * 86_400)  # into December
    await Directory(bench.store, bench.clock).set_plan("ada", "large")
    await spend(bench, 6_000, of=10 * LIMIT, period="2026-12")
    await bench.ledger.settle(reservation, settlement(300 * CREDIT_NANOUSD))
    await watch.look()
    assert await told(bench, "2026-12") == [("ada", 50)]
    assert await told(bench) == [("ada", 50)], "80 % of the plan that took November's place"


async def test_of_a_period_that_is_over_the_plan_at_its_end_counts(bench: Bench) -> None:
    directory = Directory(bench.store, bench.clock)
    await directory.set_plan("ada", "pro", until_ms=DECEMBER_MS, next_plan="large")
    await spend(bench, 800)
    bench.clock.ms = DECEMBER_MS + 1
    await watching(bench).look()
    assert await told(bench) == [("ada", 50), ("ada", 80)]


async def test_what_a_dead_process_had_noted_is_found_at_the_start_and_when_somebody_asks(
    bench: Bench,
) -> None:
    await spend(bench, 500)
    bench.ledger.charged.take()  # and died
    watch = watching(bench, noted=Charged())
    assert await watch.look() == 1
    await spend(bench, 300)
    assert await watch.look() == 0, "nobody noted it"
    watch.sweep_soon()
    assert await watch.look() == 1
    await spend(bench, 200)
    bench.clock.advance(NOTICES_SWEEP_S - 1)
    assert await watch.look() == 0
    bench.clock.advance(1)
    assert await watch.look() == 1


async def test_a_sweep_reaches_everybody_and_also_the_period_that_has_just_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "SWEPT_AT_ONCE", 2)
    directory = Directory(bench.store, bench.clock)
    for number in range(5):
        await directory.add_user(f"u{number}", plan="pro")
        if number != 1:
            await spend(bench, 500, user_id=f"u{number}")
    bench.clock.ms = DECEMBER_MS + 3_600_000
    assert await watching(bench, noted=Charged()).look() == 4
    assert await told(bench) == [(f"u{number}", 50) for number in (0, 2, 3, 4)]


async def test_more_accounts_than_one_statement_takes_are_all_looked_at(bench: Bench) -> None:
    watch, directory = watching(bench), Directory(bench.store, bench.clock)
    await watch.look()  # the sweep of the start
    users = [f"u{number}" for number in range(LOOKED_AT_ONCE + 1)]
    for user in users:
        await directory.add_user(user, plan="pro")
    await asyncio.gather(*(spend(bench, 500, user_id=user) for user in users))
    assert await watch.look() == len(users)


async def test_what_is_more_than_can_be_noted_is_swept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charged, "ACCOUNTS_MAX", 1)
    watch = watching(bench)
    await watch.look()
    await Directory(bench.store, bench.clock).add_user("bob", plan="pro")
    await spend(bench, 500)
    await spend(bench, 500, user_id="bob")
    assert await watch.look() == 2


async def test_what_could_not_be_looked_up_is_looked_up_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = watching(bench)
    await watch.look()
    await spend(bench, 500)

    async def refuse(*_: object) -> Any:
        raise Refused(Reason.STORE_UNAVAILABLE, "not now")

    with monkeypatch.context() as patch:
        patch.setattr(bench.store.readers, "rows", refuse)
        with pytest.raises(Refused):
            await watch.look()
    assert await watch.look() == 1


async def test_an_expiry_and_its_late_report_are_noted_as_settles_are(bench: Bench) -> None:
    watch = watching(bench)
    await watch.look()
    dead = bench.worker("wrk_dead")
    hold = money(900 * CREDIT_NANOUSD, of=LIMIT)
    reservation = await bench.reserve(hold, ledger=dead, floor=500 * CREDIT_NANOUSD)
    assert await bench.ledger.expire_worker("wrk_dead") == 1
    assert await watch.look() == 1
    await bench.ledger.report_late(reservation.id, settlement(800 * CREDIT_NANOUSD))
    assert await watch.look() == 1


async def test_a_void_notes_nobody(bench: Bench) -> None:
    await bench.ledger.void(await bench.reserve(money(10, of=LIMIT)))
    await spend(bench, 0)
    assert bench.ledger.charged.take().accounts == {}


# --- refused although a little is left ---------------------------------------------------------------


def caller(plan: Plan = PRO, *, has_credit: bool = False) -> Caller:
    return Caller("ada", "tok_ada", plan, has_credit=has_credit)


def asked(bench: Bench, credits_: int) -> Request:
    bench.clock.advance(60)  # another minute's rates
    return Request(
        f"req_{bench.clock.now_ms()}", "anthropic", "POST /x", ("m",), credits_ * CREDIT_NANOUSD, 0
    )


def admission_of(bench: Bench) -> Admission:
    return Admission(bench.ledger, RateLimits(bench.clock), bench.clock)


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        (1_000 - 10 * LITTLE_LEFT_PERCENT, [50, 80, 100]),
        (999, [50, 80, 100]),
        (949, [50, 80]),
        (300, []),
    ],
)
async def test_a_request_refused_with_little_left_means_that_all_is_used_but_not_one_that_is_too_large(
    bench: Bench, used: int, expected: list[int]
) -> None:
    await spend(bench, used)
    with pytest.raises(Refused):
        await admission_of(bench).admit(caller(), asked(bench, 1_001 - used))
    await watching(bench).look()
    assert await told(bench) == [("ada", percent) for percent in expected]


async def test_a_refusal_that_prepaid_credit_would_have_prevented_is_one_of_the_month(bench: Bench) -> None:
    await bench.grant(10 * CREDIT_NANOUSD)
    await spend(bench, 990)
    with pytest.raises(Refused):
        await admission_of(bench).admit(caller(has_credit=True), asked(bench, 21))
    await watching(bench).look()
    assert [percent for _, percent in await told(bench)] == [50, 80, 100]
    assert await bench.credit() == (0, 0, 10 * CREDIT_NANOUSD)


async def test_requests_that_only_hold_the_rest_do_not_mean_that_it_is_used(bench: Bench) -> None:
    held = await bench.reserve(money(960 * CREDIT_NANOUSD, of=LIMIT))
    with pytest.raises(Refused) as refused:
        await admission_of(bench).admit(caller(), asked(bench, 100))
    assert refused.value.reason is Reason.BUDGET_HELD
    await watching(bench).look()
    assert await told(bench) == []
    await bench.ledger.void(held)


async def test_a_refusal_under_the_plan_of_before_says_nothing_of_a_larger_one(bench: Bench) -> None:
    await spend(bench, 990)
    with pytest.raises(Refused):
        await admission_of(bench).admit(caller(), asked(bench, 100))
    await Directory(bench.store, bench.clock).set_plan("ada", "large")
    await watching(bench).look()
    assert await told(bench) == []


async def test_a_stream_that_was_cut_for_the_budget_means_that_all_is_used_once_it_is_settled(
    bench: Bench,
) -> None:
    admission, watch = admission_of(bench), watching(bench)
    await spend(bench, 700)
    admitted = await admission.admit(caller(), asked(bench, 200))
    refused = await admission.extend(
        caller(),
        admitted.reservation,
        until_nanousd=350 * CREDIT_NANOUSD,
        used_nanousd=190 * CREDIT_NANOUSD,
    )
    assert refused is not None
    await watch.look()
    assert [percent for _, percent in await told(bench)] == [50], "what it used is not known yet"
    cut = settlement(190 * CREDIT_NANOUSD, outcome=Outcome.BUDGET_ENDED, is_reported=False)
    await bench.ledger.settle(admitted.reservation, cut)
    await watch.look()
    assert [percent for _, percent in await told(bench)] == [50, 80, 100]
    assert (await bodies(bench))[-1]["data"]["used_credits"] == 890


# --- the notes ---------------------------------------------------------------------------------------


def test_notes_are_taken_once_and_the_larger_allowance_is_kept() -> None:
    noted = Charged()
    noted.note("user:a", PERIOD)
    noted.note("user:a", PERIOD, spent_nanousd=5)
    noted.note("user:a", PERIOD)
    noted.note("user:a", PERIOD, spent_nanousd=3)
    taken = noted.take()
    assert taken.accounts == {("user:a", PERIOD): 5}
    assert noted.take().accounts == {}
    noted.note("user:b", PERIOD)
    noted.give_back(taken)
    assert noted.take().accounts == {("user:b", PERIOD): 0, ("user:a", PERIOD): 5}


async def test_a_reservation_on_credit_notes_the_month_beside_it(bench: Bench) -> None:
    await bench.grant(100)
    reservation = await bench.reserve(money(10, of=LIMIT), Hold("user:ada", CREDIT, NO_PERIOD, 0, 0))
    await bench.ledger.settle(reservation, settlement(10))
    assert bench.ledger.charged.take().accounts == {("user:ada", PERIOD): 0}
