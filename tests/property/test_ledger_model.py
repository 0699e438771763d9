"""Any order of the ledger's verbs keeps the books: a state machine against a reference of a few integers.

The reference knows one rule per verb. Deliberately simple: users share nothing, a month never ends.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from metering.ledger import MONEY, Ledger, Reservation, Resolved
from metering.store.writer import Declined
from metering.verify import verify
from tests.support.ledger import Bench, gauge, intent, money, open_bench, priced, settlement

USERS = ("ada", "bob")
WORKERS = ("wrk_a", "wrk_b", "wrk_c")
ALLOWANCE = 100
OPEN_MAX = 4

users = st.sampled_from(USERS)
workers = st.sampled_from(WORKERS)
amounts = st.one_of(st.integers(0, 40), st.sampled_from([0, 1, ALLOWANCE, ALLOWANCE + 1]))
costs = st.one_of(st.integers(0, 60), st.just(3 * ALLOWANCE))


@dataclass
class Account:
    """A user's month in the reference. `excess`: what was booked above holds."""

    spent: int = 0
    held: int = 0
    open: int = 0
    excess: int = 0


@dataclass(eq=False)
class Exchange:
    """A reservation with what the reference knows of it."""

    reservation: Reservation
    user: str
    worker: str
    hold: int
    checkpoint: int
    state: str = "HELD"
    booked: int = 0
    is_adjusted: bool = False


class LedgerMachine(RuleBasedStateMachine):
    """Verbs in any order, by several workers, for several users; each checked against the reference."""

    exchanges = Bundle("exchanges")

    @initialize()
    def open(self) -> None:
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-model-"))
        self.stack = AsyncExitStack()
        self.bench: Bench = self.run(self.stack.enter_async_context(open_bench(self.folder)))
        self.ledgers: dict[str, Ledger] = {worker: self.bench.worker(worker) for worker in WORKERS}
        self.accounts = {user: Account() for user in USERS}
        self.known: list[Exchange] = []

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    @rule(target=exchanges, user=users, worker=workers, amount=amounts, floor=amounts)
    def reserve(self, user: str, worker: str, amount: int, floor: int) -> Any:
        owner, account = f"user:{user}", self.accounts[user]
        asked = intent(
            money(amount, of=ALLOWANCE, owner=owner),
            gauge(of=OPEN_MAX, owner=owner),
            floor=floor,
            user_id=user,
        )
        granted = self.run(self.ledgers[worker].reserve(asked))
        fits = account.spent + account.held + amount <= ALLOWANCE
        if not (fits and account.open < OPEN_MAX):
            assert granted == Declined("open_requests" if fits else MONEY)
            return multiple()
        assert isinstance(granted, Reservation)
        account.held += amount
        account.open += 1
        exchange = Exchange(granted, user, worker, amount, min(floor, amount))
        self.known.append(exchange)
        return exchange

    @rule(exchange=exchanges, amount=amounts)
    def extend(self, exchange: Exchange, amount: int) -> None:
        account = self.accounts[exchange.user]
        more = [money(amount, of=ALLOWANCE, owner=f"user:{exchange.user}")]
        is_granted = self.run(self.ledgers[exchange.worker].extend(exchange.reservation, more))
        fits = account.spent + account.held + amount <= ALLOWANCE
        assert is_granted is (fits and exchange.state == "HELD")
        if is_granted:
            account.held += amount
            exchange.hold += amount

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
        account = self.accounts[exchange.user]
        if exchange.state == "HELD":
            assert found is Resolved.DONE
            self._resolve(exchange, "SETTLED", cost)
            account.excess += max(0, cost - exchange.hold)
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
        lost = [one for one in self.known if one.worker == dead and one.state == "HELD"]
        assert self.run(self.ledgers[reaper].expire_worker(dead)) == len(lost)
        for exchange in lost:
            self._resolve(exchange, "EXPIRED", exchange.checkpoint)

    def _resolve(self, exchange: Exchange, state: str, booked: int) -> None:
        account = self.accounts[exchange.user]
        account.held -= exchange.hold
        account.open -= 1
        account.spent += booked
        exchange.state, exchange.booked = state, booked

    def _adjust(self, exchange: Exchange, cost: int) -> None:
        if exchange.state != "EXPIRED" or exchange.is_adjusted:
            return
        account = self.accounts[exchange.user]
        account.spent += cost - exchange.booked
        account.excess += max(0, cost - exchange.booked)
        exchange.booked, exchange.is_adjusted = cost, True

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "bench"):
            return
        for user, account in self.accounts.items():
            owner = f"user:{user}"
            assert self.run(self.bench.account(owner)) == (account.spent, account.held)
            assert self.run(self.bench.gauge(owner)) == account.open
            assert account.spent + account.held <= ALLOWANCE + account.excess
        for exchange in self.known:
            assert self.run(self.bench.state(exchange.reservation.id)) == exchange.state

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        try:
            report = self.run(verify(self.bench.store))
            assert report.is_clean, report.problems
            booked = sum(one.booked for one in self.known)
            assert report.cost_nanousd == booked == sum(account.spent for account in self.accounts.values())
        finally:
            self.run(self.stack.aclose())
            self.runner.close()
            shutil.rmtree(self.folder)


TestLedgerModel = LedgerMachine.TestCase
TestLedgerModel.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
