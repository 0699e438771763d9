"""Any order of the ledger's verbs keeps the books: a state machine against a reference of a few integers.

The reference knows one rule per verb, and of a user the month, the prepaid credit, a cap, and what is open. It is
written out in plain sums of its own, so that it cannot share a mistake with metering/credit.py.
"""

import asyncio
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from metering.grants import GrantError, grant
from metering.ledger import MONEY, SPEND, Hold, Ledger, Reservation, Resolved
from metering.store.writer import Declined
from metering.users import Directory
from metering.verify import verify
from tests.support.ledger import (
    PERIOD,
    Bench,
    gauge,
    intent,
    money,
    open_bench,
    prepaid,
    priced,
    settlement,
)

USERS = ("ada", "bob")
WORKERS = ("wrk_a", "wrk_b", "wrk_c")
ALLOWANCE = 100
PLANS = (0, 40, ALLOWANCE, 170)
CREDIT_AT_FIRST = 60
"""Of ada, so that both accounts are used up, held and overdrawn within a few requests."""
CAP = 400
OPEN_MAX = 5
MONTHS = (PERIOD, "2026-12", "2027-01")

users = st.sampled_from(["ada", "ada", "ada", "bob"])
workers = st.sampled_from(WORKERS)
amounts = st.one_of(st.integers(0, 60), st.sampled_from([0, 1, ALLOWANCE, ALLOWANCE + 1]))
costs = st.one_of(st.integers(0, 60), st.sampled_from([30, 60, ALLOWANCE]))
grants = st.sampled_from([1, 20, 60, -1, -20, -60])
seldom = st.sampled_from([False] * 5 + [True])


@dataclass
class Account:
    """Spent, held and allowed. `excess`: what was booked above holds that nothing had left. `allowed_most`: under
    any plan."""

    allowed: int = 0
    spent: int = 0
    held: int = 0
    excess: int = 0
    allowed_most: int = 0

    @property
    def left(self) -> int:
        return max(0, self.allowed - self.spent - self.held)

    def allow(self, allowed: int) -> None:
        self.allowed = allowed
        self.allowed_most = max(self.allowed_most, allowed)


@dataclass
class Purse:
    """What a user has in the reference."""

    plan: int = ALLOWANCE
    months: dict[str, Account] = field(default_factory=lambda: defaultdict(Account))
    credit: Account = field(default_factory=Account)
    cap: Account = field(default_factory=lambda: Account(allowed=CAP))
    open: int = 0
    was_granted: bool = False


@dataclass(eq=False)
class Exchange:
    """A reservation with what the reference knows of it. Without credit, it knows nothing of any."""

    reservation: Reservation
    user: str
    worker: str
    month: str
    has_credit: bool
    has_cap: bool
    on_month: int
    on_credit: int
    checkpoint: int
    state: str = "HELD"
    booked: int = 0
    booked_on_credit: int = 0
    is_adjusted: bool = False

    @property
    def hold(self) -> int:
        return self.on_month + self.on_credit


class LedgerMachine(RuleBasedStateMachine):
    """Verbs in any order, by several workers, for several users; each checked against the reference."""

    exchanges = Bundle("exchanges")
    sources = Bundle("sources")

    @initialize()
    def open(self) -> None:
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-model-"))
        self.stack = AsyncExitStack()
        self.bench: Bench = self.run(self.stack.enter_async_context(open_bench(self.folder)))
        self.ledgers: dict[str, Ledger] = {worker: self.bench.worker(worker) for worker in WORKERS}
        self.purses = {user: Purse() for user in USERS}
        self.known: list[Exchange] = []
        self.month = 0
        self.sources_made = 0
        directory = Directory(self.bench.store, self.bench.clock)
        for user in USERS:
            self.run(directory.add_user(user, plan="pro"))
        self.grant(user="ada", amount=CREDIT_AT_FIRST)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    # --- what happens outside of requests

    @rule(user=users, plan=st.sampled_from(PLANS))
    def change_plan(self, user: str, plan: int) -> None:
        """Nothing is moved; the next hold is under the new one."""
        self.purses[user].plan = plan

    @rule(is_over=seldom)
    def end_month(self, is_over: bool) -> None:
        self.month = min(self.month + is_over, len(MONTHS) - 1)

    @rule(target=sources, user=users, amount=grants)
    def grant(self, user: str, amount: int) -> Any:
        self.sources_made += 1
        source, credit = f"src_{self.sources_made}", self.purses[user].credit
        if amount < -credit.left:
            with pytest.raises(GrantError):
                self.run(self._granted(user, amount, source))
            return multiple()
        assert self.run(self._granted(user, amount, source)).is_new
        credit.allow(credit.allowed + amount)
        self.purses[user].was_granted = True
        return source, user, amount

    @rule(source=sources)
    def deliver_again(self, source: tuple[str, str, int]) -> None:
        assert not self.run(self._granted(source[1], source[2], source[0])).is_new

    async def _granted(self, user: str, amount: int, source: str) -> Any:
        return await grant(self.bench.store, self.bench.clock, user, amount, source=source)

    # --- requests

    @rule(
        target=exchanges,
        user=users,
        worker=workers,
        amount=amounts,
        floor=amounts,
        is_told_of_credit=seldom.map(lambda is_late: not is_late),
        has_cap=st.booleans(),
    )
    def reserve(
        self, user: str, worker: str, amount: int, floor: int, is_told_of_credit: bool, has_cap: bool
    ) -> Any:
        owner, purse, month_name = f"user:{user}", self.purses[user], MONTHS[self.month]
        has_credit = purse.was_granted and is_told_of_credit
        holds = [
            money(amount, of=purse.plan, owner=owner, period=month_name),
            gauge(of=OPEN_MAX, owner=owner),
        ]
        holds += [prepaid(owner=owner)] if has_credit else []
        holds += [cap_of(user, amount)] if has_cap else []
        granted = self.run(self.ledgers[worker].reserve(intent(*holds, floor=floor, user_id=user)))
        month = purse.months[month_name]
        on_credit = min(amount, purse.credit.left) if has_credit else 0
        fits = self._fits(month, purse.plan, amount - on_credit, has_credit=has_credit)
        fits_cap = not has_cap or purse.cap.spent + purse.cap.held + amount <= CAP
        if not (fits_cap and fits and purse.open < OPEN_MAX):
            assert granted == Declined("open_requests" if fits and fits_cap else MONEY if fits_cap else SPEND)
            return multiple()
        assert isinstance(granted, Reservation)
        purse.open += 1
        month.allow(purse.plan)
        exchange = Exchange(granted, user, worker, month_name, has_credit, has_cap, 0, 0, min(floor, amount))
        self._hold(exchange, amount - on_credit, on_credit)
        self.known.append(exchange)
        return exchange

    @rule(target=exchanges, user=users, worker=workers, hold=amounts, cost=costs)
    def request(self, user: str, worker: str, hold: int, cost: int) -> Any:
        """From its beginning to its end: what most requests do."""
        exchange = self.reserve(user, worker, hold, 0, is_told_of_credit=True, has_cap=False)
        if isinstance(exchange, Exchange):
            self.settle(exchange, cost, is_reported=True)
        return exchange

    @rule(target=exchanges, user=users, hold=amounts, floor=amounts, reports=st.lists(costs, max_size=1))
    def die(self, user: str, hold: int, floor: int, reports: list[int]) -> Any:
        """With its worker; a report may come late."""
        exchange = self.reserve(user, WORKERS[0], hold, floor, is_told_of_credit=True, has_cap=False)
        self.expire(WORKERS[0], WORKERS[1])
        if isinstance(exchange, Exchange):
            for cost in reports:
                self.report_late(exchange, cost)
        return exchange

    @rule(exchange=exchanges, amount=amounts)
    def extend(self, exchange: Exchange, amount: int) -> None:
        owner, purse = f"user:{exchange.user}", self.purses[exchange.user]
        more = [money(amount, of=purse.plan, owner=owner, period=exchange.month)]
        more += [cap_of(exchange.user, amount)] if exchange.has_cap else []
        is_granted = self.run(self.ledgers[exchange.worker].extend(exchange.reservation, more)) is None
        on_credit = min(amount, purse.credit.left) if exchange.has_credit else 0
        month = purse.months[exchange.month]
        # By what the month's newest hold was allowed: a plan that has changed counts from the next request on. What
        # holds nothing more is granted, on an overspent account too.
        on_month = amount - on_credit
        fits = not on_month or month.spent + month.held + on_month <= month.allowed
        fits_cap = not (exchange.has_cap and amount) or purse.cap.spent + purse.cap.held + amount <= CAP
        assert is_granted is (fits and fits_cap and exchange.state == "HELD")
        if is_granted:
            self._hold(exchange, on_month, on_credit)

    @staticmethod
    def _fits(month: Account, allowed: int, on_month: int, *, has_credit: bool) -> bool:
        """Whether the month takes its part; nothing is too much only for who has no credit."""
        return month.spent + month.held + on_month <= allowed or (has_credit and not on_month)

    def _hold(self, exchange: Exchange, on_month: int, on_credit: int) -> None:
        purse = self.purses[exchange.user]
        purse.months[exchange.month].held += on_month
        purse.credit.held += on_credit
        purse.cap.held += on_month + on_credit if exchange.has_cap else 0
        exchange.on_month += on_month
        exchange.on_credit += on_credit

    @rule(exchange=exchanges, cost=costs)
    def checkpoint(self, exchange: Exchange, cost: int) -> None:
        async def durable() -> None:
            self.ledgers[exchange.worker].checkpoint(exchange.reservation, priced(cost))
            await self.ledgers[exchange.worker].extend(exchange.reservation, [])

        self.run(durable())
        exchange.checkpoint = min(cost, exchange.hold)

    @rule(exchange=exchanges, cost=costs, is_reported=st.booleans())
    def settle(self, exchange: Exchange, cost: int, is_reported: bool) -> None:
        """For what has expired this is the late report."""
        found = self.run(self._settled(exchange, cost, is_reported))
        if exchange.state == "HELD":
            assert found is Resolved.DONE
            self._resolve(exchange, "SETTLED", cost)
            return
        assert found is Resolved.ALREADY_RESOLVED
        if is_reported:
            self._adjust(exchange, cost)

    async def _settled(self, exchange: Exchange, cost: int, is_reported: bool) -> Resolved:
        ledger = self.ledgers[exchange.worker]
        found = await ledger.settle(exchange.reservation, settlement(cost, is_reported=is_reported))
        while tasks := [task for task in asyncio.all_tasks() if task.get_name().startswith("late report")]:
            await asyncio.wait(tasks)
        return found

    @rule(exchange=exchanges, cost=costs)
    def report_late(self, exchange: Exchange, cost: int) -> None:
        """By whoever hears of it."""
        is_taken = self.run(self.ledgers[WORKERS[0]].report_late(exchange.reservation.id, settlement(cost)))
        assert is_taken is (exchange.state == "EXPIRED" and not exchange.is_adjusted)
        self._adjust(exchange, cost)

    @rule(exchange=consumes(exchanges))
    def void(self, exchange: Exchange) -> None:
        found = self.run(self._voided(exchange))
        assert found is (Resolved.DONE if exchange.state == "HELD" else Resolved.ALREADY_RESOLVED)
        if exchange.state == "HELD":
            self._resolve(exchange, "VOIDED", 0)

    async def _voided(self, exchange: Exchange) -> Resolved:
        return await self.ledgers[exchange.worker].void(exchange.reservation)

    @rule(dead=workers, reaper=workers)
    def expire(self, dead: str, reaper: str) -> None:
        lost = sorted(
            (one for one in self.known if one.worker == dead and one.state == "HELD"),
            key=lambda one: one.reservation.id,
        )
        assert self.run(self.ledgers[reaper].expire_worker(dead)) == len(lost)
        for exchange in lost:  # in the ledger's order: who pays for one depends on what the others hold
            self._resolve(exchange, "EXPIRED", exchange.checkpoint)

    # --- who pays

    def _resolve(self, exchange: Exchange, state: str, booked: int) -> None:
        purse = self.purses[exchange.user]
        month = purse.months[exchange.month]
        self._charge(exchange, booked, exchange.on_month, exchange.on_credit, overage=booked - exchange.hold)
        month.held -= exchange.on_month
        purse.credit.held -= exchange.on_credit
        purse.open -= 1
        if exchange.has_cap:
            purse.cap.held -= exchange.hold
            purse.cap.excess += max(0, booked - exchange.hold)
        exchange.state = state

    def _adjust(self, exchange: Exchange, cost: int) -> None:
        if exchange.state != "EXPIRED" or exchange.is_adjusted:
            return
        difference = cost - exchange.booked
        exchange.is_adjusted = True
        if exchange.has_cap:
            self.purses[exchange.user].cap.excess += max(0, difference)
        if difference >= 0:
            self._charge(exchange, difference, 0, 0, overage=difference)
        else:
            back_to_credit = min(-difference, exchange.booked_on_credit)
            self._pay(exchange, difference + back_to_credit, -back_to_credit)

    def _charge(
        self, exchange: Exchange, cost: int, own_month: int, own_credit: int, *, overage: int
    ) -> None:
        """`own`: what it holds on each, which is its own to spend."""
        purse = self.purses[exchange.user]
        month, credit = purse.months[exchange.month], purse.credit
        if not exchange.has_credit:
            month.excess += max(0, overage)
            self._pay(exchange, cost, 0)
            return
        by_month = min(cost, own_month + month.left)
        by_credit = min(cost - by_month, own_credit + credit.left)
        uncovered = cost - by_month - by_credit
        assert uncovered <= max(0, overage)
        if by_credit:
            assert month.spent + by_month + month.held - own_month >= month.allowed, "the month had some left"
        month.excess += uncovered
        self._pay(exchange, by_month + uncovered, by_credit)

    def _pay(self, exchange: Exchange, by_month: int, by_credit: int) -> None:
        purse = self.purses[exchange.user]
        purse.months[exchange.month].spent += by_month
        purse.credit.spent += by_credit
        purse.cap.spent += by_month + by_credit if exchange.has_cap else 0
        exchange.booked += by_month + by_credit
        exchange.booked_on_credit += by_credit

    # --- what always holds

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "bench"):
            return
        for user, purse in self.purses.items():
            owner = f"user:{user}"
            for name, month in purse.months.items():
                assert self.run(self.bench.account(owner, period=name)) == (month.spent, month.held)
                assert month.spent + month.held <= month.allowed_most + month.excess
            credit = purse.credit
            assert self.run(self.bench.credit(owner)) == (credit.spent, credit.held, credit.allowed)
            assert 0 <= credit.spent <= credit.spent + credit.held <= credit.allowed
            cap = purse.cap
            assert self.run(self.bench.account(f"token:{user}", SPEND)) == (cap.spent, cap.held)
            assert cap.spent + cap.held <= CAP + cap.excess
            assert self.run(self.bench.gauge(owner)) == purse.open
        for exchange in self.known:
            assert self.run(self.bench.state(exchange.reservation.id)) == exchange.state

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        try:
            report = self.run(verify(self.bench.store))
            assert report.is_clean, report.problems
            booked = sum(one.booked for one in self.known)
            spent = sum(
                purse.credit.spent + sum(month.spent for month in purse.months.values())
                for purse in self.purses.values()
            )
            assert report.cost_nanousd == booked == spent
        finally:
            self.run(self.stack.aclose())
            self.runner.close()
            shutil.rmtree(self.folder)


def cap_of(user: str, amount: int) -> Hold:
    """A cap of the user's token."""
    return Hold(f"token:{user}", SPEND, PERIOD, amount, CAP)


TestLedgerModel = LedgerMachine.TestCase
TestLedgerModel.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
