"""Prepaid credit: which account holds, which pays, and that neither is overdrawn by what it was held for."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.credit import CREDIT, Charge, Split, charged_to, corrected_on, held_on
from metering.ledger import MONEY, REQUESTS, SPEND, Balance, Hold, Reservation, Resolved
from metering.store.writer import Declined
from tests.support.ledger import (
    Bench,
    gauge,
    intent,
    money,
    open_bench,
    prepaid,
    priced,
    settlement,
)

PERIOD = "2026-11"
CREDIT_OF_ADA = 50
PLAN = 100


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Ada has credit of 50 beside a plan of 100."""
    async with open_bench(tmp_path) as bench:
        await bench.grant(CREDIT_OF_ADA)
        yield bench
        await bench.assert_clean()


async def hold(bench: Bench, amount: int, *, plan: int = PLAN, **intended: object) -> Reservation:
    return await bench.reserve(money(amount, of=plan), prepaid(), gauge(), **intended)


async def accounts(bench: Bench) -> tuple[tuple[int, int], tuple[int, int]]:
    """(spent, held) of the month and of credit."""
    return await bench.account(), (await bench.credit())[:2]


# --- the rules ------------------------------------------------------------------------------------------

HOLDS = [
    # hold, credit: spent, held, granted; on the month, on credit
    (30, (0, 0, 50), 0, 30),
    (50, (0, 0, 50), 0, 50),
    (70, (0, 0, 50), 20, 50),
    (70, (20, 10, 50), 50, 20),
    (70, (50, 0, 50), 70, 0),
    (0, (0, 0, 50), 0, 0),
    (70, None, 70, 0),
]


@pytest.mark.parametrize(("amount", "credit", "month", "on_credit"), HOLDS)
def test_a_hold_goes_on_credit_first(
    amount: int, credit: tuple[int, int, int] | None, month: int, on_credit: int
) -> None:
    assert held_on(amount, credit) == (month, on_credit)


CHARGES = [
    # cost, held: month, credit; month: spent, held, allowance; credit; month pays, credit pays, uncovered
    (40, (0, 50), (0, 0, 100), (0, 50, 50), 40, 0, 0),
    (40, (0, 50), (90, 0, 100), (0, 50, 50), 10, 30, 0),
    (40, (0, 50), (100, 0, 100), (0, 50, 50), 0, 40, 0),
    (40, (0, 50), (0, 100, 100), (0, 50, 50), 0, 40, 0),  # others hold the month
    (40, (0, 50), (30, 50, 100), (0, 50, 50), 20, 20, 0),  # others hold half of it
    (40, (20, 30), (30, 70, 100), (0, 30, 50), 20, 20, 0),
    (70, (0, 50), (100, 0, 100), (0, 50, 80), 0, 70, 0),  # above its hold: credit that is free
    (70, (0, 50), (90, 0, 100), (0, 50, 50), 10, 50, 10),
    (70, (0, 50), (100, 0, 100), (0, 50, 50), 0, 50, 20),
    (70, (0, 50), (130, 0, 100), (0, 50, 50), 0, 50, 20),  # overdrawn by an overage before
    (70, (40, 0), (60, 40, 100), (50, 0, 50), 40, 0, 30),
    (40, (40, 0), (60, 40, 30), (0, 0, 50), 40, 0, 0),  # a smaller plan since: what it holds stays its own
    (40, (10, 0), (60, 10, 30), (0, 0, 50), 10, 30, 0),
    (0, (20, 30), (30, 70, 100), (0, 30, 50), 0, 0, 0),
    (40, (0, 0), None, None, 0, 0, 40),  # rows that are missing have nothing
]


@pytest.mark.parametrize(("cost", "held", "month", "credit", "by_month", "by_credit", "uncovered"), CHARGES)
def test_a_cost_is_charged_to_the_month_first(
    cost: int,
    held: tuple[int, int],
    month: tuple[int, int, int] | None,
    credit: tuple[int, int, int] | None,
    by_month: int,
    by_credit: int,
    uncovered: int,
) -> None:
    charge = charged_to(cost, Split(*held), money=month, credit=credit)
    assert charge == (by_month, by_credit, uncovered)


CORRECTIONS = [
    # difference, on credit so far, month, credit; month pays, credit pays, uncovered
    (-10, 0, (50, 0, 100), (0, 0, 50), -10, 0, 0),
    (-10, 30, (100, 0, 100), (30, 0, 50), 0, -10, 0),
    (-40, 30, (100, 0, 100), (30, 0, 50), -10, -30, 0),
    (10, 0, (50, 0, 100), (0, 0, 50), 10, 0, 0),
    (10, 0, (95, 0, 100), (0, 0, 50), 5, 5, 0),
    (10, 0, (95, 5, 100), (0, 45, 50), 0, 5, 5),
    (0, 30, (100, 0, 100), (30, 0, 50), 0, 0, 0),
]


@pytest.mark.parametrize(
    ("difference", "so_far", "month", "credit", "by_month", "by_credit", "uncovered"), CORRECTIONS
)
def test_a_correction_is_charged_like_a_cost_and_given_back_to_credit_first(
    difference: int,
    so_far: int,
    month: tuple[int, int, int],
    credit: tuple[int, int, int],
    by_month: int,
    by_credit: int,
    uncovered: int,
) -> None:
    charge = corrected_on(difference, so_far, money=month, credit=credit)
    assert charge == (by_month, by_credit, uncovered)


amounts = st.integers(0, 200)


@given(
    cost=amounts, held=st.tuples(amounts, amounts), spent=st.tuples(amounts, amounts),
    others=st.tuples(amounts, amounts), allowed=st.tuples(amounts, amounts),
)  # fmt: skip
def test_no_charge_overdraws_an_account_further_but_for_a_part_of_its_own_overage(
    cost: int,
    held: tuple[int, int],
    spent: tuple[int, int],
    others: tuple[int, int],
    allowed: tuple[int, int],
) -> None:
    month, credit = [(spent[one], held[one] + others[one], allowed[one]) for one in (0, 1)]
    charge = charged_to(cost, Split(*held), money=month, credit=credit)
    assert sum(charge) == cost
    assert min(charge) >= 0
    assert charge.uncovered <= max(0, cost - sum(held))
    for paid, before, other in ((charge.money, month, others[0]), (charge.credit, credit, others[1])):
        assert paid + before[0] + other <= max(before[2], before[0] + before[1])
    if charge.credit:
        assert spent[0] + charge.money + others[0] >= allowed[0], "the month had something left"
    within, above = charge.within(min(cost, sum(held))), charge.above(min(cost, sum(held)))
    assert min(*within, *above) >= 0
    assert (sum(within), sum(above)) == (min(cost, sum(held)), max(0, cost - sum(held)))
    assert tuple(map(sum, zip(within, above, strict=True))) == charge.spent


def test_an_uncovered_part_is_the_overages() -> None:
    charge = Charge(money=50, credit=50, uncovered=30)
    assert (charge.within(100), charge.above(100)) == ((50, 50), (30, 0))


def test_an_uncovered_part_is_within_a_hold_that_only_a_cap_has() -> None:
    charge = Charge(money=50, credit=40, uncovered=30)
    assert (charge.within(120), charge.above(120)) == ((80, 40), (0, 0))
    assert (charge.within(100), charge.above(100)) == ((60, 40), (20, 0))


# --- the verbs ------------------------------------------------------------------------------------------


async def test_both_together_can_be_held_and_no_more(bench: Bench) -> None:
    first = await hold(bench, 120)
    assert await accounts(bench) == ((0, 70), (0, 50))
    assert first.hold_nanousd == 120
    assert [line.amount for line in first.lines if line.meter in {MONEY, CREDIT}] == [50, 70]
    assert first.balances == {MONEY: Balance(0, 70, 100), CREDIT: Balance(0, 50, 50)}
    assert await bench.ledger.reserve(intent(money(31, of=PLAN), prepaid())) == Declined(MONEY)
    second = await hold(bench, 30)
    assert await accounts(bench) == ((0, 100), (0, 50))
    for reservation in (first, second):
        assert await bench.ledger.void(reservation) is Resolved.DONE
    assert await accounts(bench) == ((0, 0), (0, 0))


async def test_the_allowance_is_used_up_before_credit_is_touched(bench: Bench) -> None:
    paid = []
    for _ in range(5):
        reservation = await hold(bench, 30)
        await bench.ledger.settle(reservation, settlement(30))
        paid.append(await accounts(bench))
    assert paid == [
        ((30, 0), (0, 0)), ((60, 0), (0, 0)), ((90, 0), (0, 0)), ((100, 0), (20, 0)), ((100, 0), (50, 0)),
    ]  # fmt: skip
    assert await bench.lines(reservation.id) == [("settle", {CREDIT: 30})]
    assert await bench.ledger.reserve(intent(money(1, of=PLAN), prepaid())) == Declined(MONEY)


async def test_of_many_at_once_as_many_are_granted_as_both_pay_for(bench: Bench) -> None:
    asked = [bench.ledger.reserve(intent(money(10, of=PLAN), prepaid(), gauge())) for _ in range(40)]
    granted = [one for one in await asyncio.gather(*asked) if isinstance(one, Reservation)]
    assert len(granted) == 15
    assert await accounts(bench) == ((0, 100), (0, 50))
    await asyncio.gather(*(bench.ledger.settle(one, settlement(10)) for one in granted))
    assert await accounts(bench) == ((100, 0), (50, 0))


async def test_what_costs_more_than_its_hold_is_an_overage_of_whoever_has_it(bench: Bench) -> None:
    await bench.ledger.settle(await hold(bench, 90), settlement(90))
    covered = await hold(bench, 20)
    await bench.ledger.settle(covered, settlement(35))
    assert await bench.lines(covered.id) == [
        ("settle", {CREDIT: 10, MONEY: 10}), ("overage", {CREDIT: 15}),
    ]  # fmt: skip
    uncovered = await hold(bench, 20)
    await bench.ledger.settle(uncovered, settlement(40))
    assert await bench.lines(uncovered.id) == [
        ("settle", {CREDIT: 20}), ("overage", {CREDIT: 5, MONEY: 15}),
    ]  # fmt: skip
    assert await accounts(bench) == ((115, 0), (50, 0))


async def test_a_new_grant_can_be_used_though_the_month_is_overdrawn(bench: Bench) -> None:
    await bench.ledger.settle(await hold(bench, 150), settlement(170))
    assert await accounts(bench) == ((120, 0), (50, 0))
    await bench.grant(40)
    await bench.ledger.settle(await hold(bench, 40), settlement(40))
    assert await accounts(bench) == ((120, 0), (90, 0))


async def test_an_extension_holds_by_the_same_rule(bench: Bench) -> None:
    reservation = await hold(bench, 30)
    assert await bench.ledger.extend(reservation, [money(60, of=PLAN)]) is None
    assert await accounts(bench) == ((0, 40), (0, 50))
    assert reservation.hold_nanousd == 90
    assert await bench.ledger.extend(reservation, [money(61, of=PLAN)]) is not None
    assert await accounts(bench) == ((0, 40), (0, 50))
    held = await bench.ledger.held(reservation.id)
    assert held is not None
    assert held.lines == reservation.lines
    await bench.ledger.settle(reservation, settlement(90))
    assert await accounts(bench) == ((90, 0), (0, 0))


async def test_an_extension_goes_by_the_allowance_of_the_newest_hold(bench: Bench) -> None:
    """A stream that began under a smaller plan neither takes credit for what the larger one has, nor takes that back."""
    old = await hold(bench, 60)
    await bench.ledger.settle(await hold(bench, 70), settlement(70))
    larger = await hold(bench, 40, plan=1_000)
    assert await bench.ledger.extend(old, [money(200, of=PLAN)]) is None
    await bench.ledger.settle(larger, settlement(40))
    assert (await bench.ledger.balance("user:ada", MONEY, PERIOD)).allowance == 1_000
    await bench.ledger.settle(old, settlement(260))
    (month, _), (credit, _) = await accounts(bench)
    assert (month, credit) == (370, 0)


async def test_an_extension_of_another_meter_leaves_money_and_credit_alone(bench: Bench) -> None:
    reservation = await hold(bench, 30)
    assert await bench.ledger.extend(reservation, [Hold("user:ada", REQUESTS, PERIOD, 1, 10)]) is None
    assert await accounts(bench) == ((0, 0), (0, 30))
    await bench.ledger.void(reservation)


async def test_an_expiry_books_its_checkpoint_by_the_same_rule_and_a_late_report_corrects_it(
    bench: Bench,
) -> None:
    await bench.ledger.settle(await hold(bench, 90), settlement(90))
    reservation = await hold(bench, 60, floor=30)
    assert await bench.ledger.expire_worker("wrk_a") == 1
    assert await accounts(bench) == ((100, 0), (20, 0))
    assert await bench.ledger.report_late(reservation.id, settlement(5))
    assert await bench.lines(reservation.id) == [
        ("expire", {CREDIT: 20, MONEY: 10}), ("adjust", {CREDIT: -20, MONEY: -5}),
    ]  # fmt: skip
    assert await accounts(bench) == ((95, 0), (0, 0))


async def test_a_late_report_of_more_is_charged_to_the_month_first(bench: Bench) -> None:
    reservation = await hold(bench, 60, floor=30)
    assert await bench.ledger.expire_worker("wrk_a") == 1
    assert await accounts(bench) == ((30, 0), (0, 0))
    assert await bench.ledger.report_late(reservation.id, settlement(160))
    assert await accounts(bench) == ((110, 0), (50, 0))


async def test_a_checkpoint_is_never_above_both_holds_together(bench: Bench) -> None:
    reservation = await hold(bench, 120)
    bench.ledger.checkpoint(reservation, priced(500))
    await bench.ledger.void(await bench.reserve())
    await bench.ledger.expire_worker("wrk_a")
    assert await bench.entries(reservation.id) == [("expire", 120)]
    assert await accounts(bench) == ((100, 0), (20, 0))


async def test_caps_are_charged_the_whole_cost_whatever_pays(bench: Bench) -> None:
    cap = Hold("token:t", SPEND, PERIOD, 120, 1_000)
    reservation = await bench.reserve(money(120, of=PLAN), prepaid(), cap)
    assert reservation.hold_nanousd == 120
    await bench.ledger.settle(reservation, settlement(130))
    assert await bench.account("token:t", SPEND) == (130, 0)
    assert await accounts(bench) == ((100, 0), (30, 0))


@pytest.mark.parametrize("cost", [40, 155, 200, 230])
async def test_what_only_a_cap_holds_is_booked_where_it_was_charged(bench: Bench, cost: int) -> None:
    """As on a soft budget, where a stream goes on though neither the month nor credit has anything left."""
    cap = Hold("token:t", SPEND, PERIOD, 150, 1_000)
    reservation = await bench.reserve(money(150, of=PLAN), prepaid(), cap)
    assert await bench.ledger.extend(reservation, [cap._replace(amount=50)]) is None
    await bench.ledger.settle(reservation, settlement(cost))
    credit = min(max(0, cost - PLAN), CREDIT_OF_ADA)
    assert await accounts(bench) == ((cost - credit, 0), (credit, 0))
    assert await bench.account("token:t", SPEND) == (cost, 0)


async def test_what_was_reserved_without_credit_settles_without_it(bench: Bench) -> None:
    reservation = await bench.reserve(money(60, of=PLAN))
    await bench.ledger.settle(reservation, settlement(130))
    assert await accounts(bench) == ((130, 0), (0, 0))


async def test_who_never_was_granted_any_holds_on_the_month_alone(bench: Bench) -> None:
    holds = (money(60, of=PLAN, owner="user:bob"), prepaid(owner="user:bob"))
    await bench.ledger.settle(await bench.reserve(*holds), settlement(70))
    assert await bench.account("user:bob") == (70, 0)
    assert await bench.credit("user:bob") == (0, 0, 0)


# --- months and plans ------------------------------------------------------------------------------------


async def test_credit_stays_when_a_month_ends(bench: Bench) -> None:
    await bench.ledger.settle(await hold(bench, 120), settlement(120))
    running = await hold(bench, 20)
    assert await accounts(bench) == ((100, 0), (20, 20))
    december = await bench.reserve(money(110, of=PLAN, period="2026-12"), prepaid())
    assert (await bench.credit())[:2] == (20, 30)
    assert await bench.account(period="2026-12") == (0, 100)
    await bench.ledger.settle(running, settlement(20))
    assert await accounts(bench) == ((100, 0), (40, 10)), "November's request is November's"
    await bench.ledger.settle(december, settlement(90))
    assert await bench.account(period="2026-12") == (90, 0)
    assert (await bench.credit())[:2] == (40, 0)


async def test_a_larger_plan_counts_from_the_next_hold_and_gives_no_credit_back(bench: Bench) -> None:
    await bench.ledger.settle(await hold(bench, 140), settlement(140))
    assert await accounts(bench) == ((100, 0), (40, 0))
    reservation = await hold(bench, 10, plan=200)
    assert await accounts(bench) == ((100, 0), (40, 10))
    await bench.ledger.settle(reservation, settlement(10))
    assert await accounts(bench) == ((110, 0), (40, 0))


async def test_a_smaller_plan_counts_from_the_next_hold_and_charges_no_credit_for_the_past(
    bench: Bench,
) -> None:
    await bench.ledger.settle(await hold(bench, 80), settlement(80))
    running = await bench.reserve(money(20, of=PLAN))
    assert await bench.ledger.reserve(intent(money(51, of=30), prepaid())) == Declined(MONEY)
    smaller = await hold(bench, 40, plan=30)
    assert await accounts(bench) == ((80, 20), (0, 40))
    await bench.ledger.settle(running, settlement(15))
    assert await accounts(bench) == ((95, 0), (0, 40)), "it was admitted under the larger plan"
    await bench.ledger.settle(smaller, settlement(40))
    assert await accounts(bench) == ((95, 0), (40, 0))


async def test_a_hold_under_the_larger_plan_stays_on_the_month_after_a_downgrade(bench: Bench) -> None:
    running = await hold(bench, 110)
    assert await accounts(bench) == ((0, 60), (0, 50))
    await bench.grant(30)
    smaller = await hold(bench, 30, plan=10)
    await bench.ledger.settle(running, settlement(80))
    assert await accounts(bench) == ((60, 0), (20, 30))
    await bench.ledger.void(smaller)
