"""Phone calls under every trouble at once: dials whose answer is lost or that fail, clients that do not wait, calls that come in,
webhooks that are lost, doubled, late and forged, a server that is killed and started again. `python -m tests.chaos.calls
--rounds 200 --seed 1`.

Time flies (tests/support/hasty.py), for the vendor too. Nobody is dialled twice, and what the ledger charged is what the vendor
bills, to the second and the nano-USD.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson

from metering.clock import SystemClock
from metering.phone_numbers import PhoneNumbers
from metering.store.database import Database
from metering.store.store import open_store
from proxy.rewriting import request_of
from simulators import bland
from simulators.bland import START, WEBHOOK_SECRET, BlandSimulator, Call, Fate, Post, Tamper
from tests.chaos import rounds
from tests.chaos.rounds import BOOKED_WITHIN_S, User, hasty_server, run, trouble_of
from tests.support.calls import MOUNT, variables
from tests.support.hasty import HastyClock

HASTE = 40.0
"""Seconds in one."""
PLANS: Mapping[str, Mapping[str, int]] = {
    "roomy": {"calls": 50},
    "narrow": {"calls": 2},
    "short": {"calls": 3, "call_minutes": 6},
    "poor": {"calls": 3, "credits_per_month": 6_000},
}
"""A user of each in every round."""
AGENTS_EACH, DIALS_EACH = 2, 3
TROUBLE, IMPATIENT, COMES_IN, FORGED = 0.3, 0.15, 0.5, 0.1
"""Of the vendor's answers, so many are none or errors; of the dials, so many are not waited for; so many users are called; of
the webhooks, so many come once more, forged."""
NOBODY_ELSE: Mapping[str, str] = {}
SPENT = """
SELECT e.reservation_id, e.cost_nanousd, e.lines FROM entries e
WHERE e.user_id = ?1 AND e.reservation_id IS NOT NULL ORDER BY e.seq"""


@dataclass
class Figures(rounds.Figures):
    """What the rounds have shown."""

    dials: Counter[str] = field(default_factory=Counter)
    """Of agents, by status; `broken` without one, `left` by us."""
    calls: Counter[str] = field(default_factory=Counter)
    """At the vendor, by how they ended; those that came in apart."""
    webhooks: Counter[str] = field(default_factory=Counter)
    """Deliveries by their answer."""
    seconds: int = 0


@dataclass
class Stage(rounds.Stage[BlandSimulator, Figures]):
    """Its vendor makes calls, and each of its users has a number there."""

    mount = MOUNT
    token_header = "authorization"
    answered = frozenset({200, 400, 401, 402, 403, 404, 409, 429, 500, 502, 503, 504})
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    number_of: dict[str, str] = field(default_factory=dict)
    """By user."""

    @property
    def calls(self) -> list[Call]:
        return list(self.vendor._calls.by_id.values())

    async def _start(self) -> None:
        self.server.env = {
            **self.server.env,
            "PUBLIC_URL": self.server.url,
        }  # where the vendor tells of calls
        await super()._start()

    async def _prepare(self, user: User) -> None:
        own = self.number_of[user.user_id] = f"+1415{5_550_000 + next(self.numbers):07}"
        async with open_store(Database(self.server.store, busy_timeout_s=10)) as store:
            await PhoneNumbers(store, self.clock).assign(user.user_id, own)
        self.vendor.add_number(own, is_byot=False, webhook=f"{self.server.url}/api/webhooks/bland/status")

    def fresh_number(self) -> str:
        """That nobody has dialled."""
        return f"+1202{5_550_000 + next(self.numbers):07}"

    async def stop(self, user: User, call_id: str) -> None:
        await self.ask(user, "POST", f"/v1/calls/{call_id}/stop", {})

    # --- the end of a round --------------------------------------------------------------------------------

    async def all_over(self, users: Sequence[User], calls: Sequence[Call]) -> None:
        """Wait until every call is over, and all is booked."""
        found = "SELECT COUNT(*) FROM reservations WHERE id = ?1"

        def is_over() -> bool:
            came_in = [call for call in calls if call.is_inbound]
            return (
                all(call.is_over for call in calls)
                and all(self.server.rows(found, f"in_{call.call_id}") == [(1,)] for call in came_in)
                and self.is_all_booked()
            )

        for user in users:
            for call_id in user.told:
                await self.stop(user, call_id)
        await self.server.until(is_over, within_s=BOOKED_WITHIN_S)

    def owner_of(self, call: Call) -> str:
        """The user who has the number that a call came to, or went out from."""
        number = call.to if call.is_inbound else call.from_number
        return next(user_id for user_id, own in self.number_of.items() if own == number)

    async def check(
        self, users: Sequence[User], calls: Sequence[Call], *, owners: Mapping[str, str] = NOBODY_ELSE
    ) -> None:
        """The ledger is what the vendor bills, of every call and every user; nobody was dialled twice, nothing is held.
        `owners` by call, where a number has passed on."""
        dialled = Counter(call.to for call in calls if not call.is_inbound)
        assert not [number for number, times in dialled.items() if times > 1], "dialled twice"
        billed: dict[str, dict[str, tuple[int, int]]] = {user.user_id: {} for user in users}
        for call in calls:
            assert call.billed is not None, call
            user_id = owners.get(call.call_id) or self.owner_of(call)
            name = f"in_{call.call_id}" if call.is_inbound else request_of(call.metadata.get("automna"))
            assert name is not None, f"{call.call_id} has no tag"
            assert name not in billed[user_id], f"{name} has two calls"
            owner = self.server.rows("SELECT user_id FROM reservations WHERE id = ?1", name)
            assert owner == [(user_id,)], (call.call_id, owner)
            billed[user_id][name] = (call.billed.seconds, call.billed.price_nanousd)
            self.figures.calls[f"in {call.status}" if call.is_inbound else str(call.status)] += 1
            self.figures.seconds += call.billed.seconds
        for user in users:
            booked = self._booked(user)
            wanted = {name: one for name, one in billed[user.user_id].items() if one != (0, 0)}
            assert booked == wanted, (user.user_id, booked, wanted)
        assert self.server.rows("SELECT * FROM accounts WHERE held <> 0") == []
        await self.count_round()

    def _booked(self, user: User) -> dict[str, tuple[int, int]]:
        """Seconds and nano-USD of each request that cost anything."""
        seconds, costs = Counter[str](), Counter[str]()
        for name, cost, lines in self.server.rows(SPENT, user.user_id):
            costs[name] += cost
            seconds[name] += sum(line[3] for line in orjson.loads(lines) if line[1] == "call_seconds")
        return {name: (seconds[name], costs[name]) for name in costs if seconds[name] or costs[name]}


class Round:
    """Agents of several users."""

    def __init__(self, stage: Stage, number: int) -> None:
        self._stage = stage
        self._dice = stage.dice
        self._number = number

    async def play(self) -> None:
        stage = self._stage
        before = len(stage.calls)
        stage.vendor.script = self._trouble
        async with stage.users(self._number, list(PLANS)) as users:
            async with asyncio.TaskGroup() as tasks:
                for user in users:
                    for _ in range(AGENTS_EACH):
                        tasks.create_task(self._agent(user, users))
                    if self._dice.random() < COMES_IN:
                        tasks.create_task(self._call_in(user))
                tasks.create_task(stage.stop_now_and_then())
            stage.vendor.script = None
            await stage.all_over(users, stage.calls[before:])
            await self._forge(stage.calls[before:])
            await stage.check(users, stage.calls[before:])

    def _trouble(self, request: Any) -> Any:
        if self._dice.random() >= (TROUBLE if request.method == "POST" else TROUBLE / 2):
            return None
        return trouble_of(bland, self._dice)

    async def _agent(self, user: User, users: Sequence[User]) -> None:
        stage, dice = self._stage, self._dice
        for _ in range(DIALS_EACH):
            asked = {
                "phone_number": stage.fresh_number(),
                "task": "Say hello.",
                "max_duration": dice.choice((1, 2, 5)),
            }
            is_impatient = dice.random() < IMPATIENT
            more: dict[str, Any] = {"timeout": dice.uniform(0.005, 0.1)} if is_impatient else {}
            answer = await stage.ask(user, "POST", "/v1/calls", asked, **more)
            status = "left" if is_impatient else "broken"
            stage.figures.dials[status if answer is None else str(answer.status_code)] += 1
            if answer is not None and answer.status_code == httpx.codes.OK:
                await self._with(user, users, answer.json()["call_id"])
            await asyncio.sleep(dice.uniform(0, 0.3))

    async def _with(self, user: User, users: Sequence[User], call_id: str) -> None:
        """A call that its user was told of."""
        stage, dice = self._stage, self._dice
        user.told.add(call_id)
        other = dice.choice([one for one in users if one is not user])
        for method, path in (("GET", ""), ("POST", "/stop")):
            answer = await stage.ask(other, method, f"/v1/calls/{call_id}{path}", {} if path else None)
            assert answer is None or answer.status_code != httpx.codes.OK, "another one's call"
        if dice.random() < 0.3:
            await asyncio.sleep(dice.uniform(0, 1.5))
            await stage.stop(user, call_id)

    async def _call_in(self, user: User) -> None:
        await asyncio.sleep(self._dice.uniform(0, 1))
        fate = Fate(rings_s=self._dice.uniform(0, 5), talks_s=self._dice.uniform(1, 90))
        self._stage.vendor.receive(self._stage.number_of[user.user_id], "+12025559999", fate=fate)

    async def _forge(self, calls: Sequence[Call]) -> None:
        """What comes once more, and what nobody of the vendor's has sent, changes nothing."""
        vendor, dice = self._stage.vendor, self._dice
        for call in calls:
            if call.webhook is None or dice.random() >= FORGED:
                continue
            tamper = dice.choice((None, Tamper.FORGED, Tamper.ALTERED, Tamper.UNSIGNED))
            answer = await vendor.deliver(call, tamper=tamper)
            assert (answer.status_code < httpx.codes.BAD_REQUEST) is (tamper is None), answer.status_code
            self._stage.figures.webhooks[f"{tamper or 'again'}: {answer.status_code}"] += 1


def fate_by(dice: random.Random) -> Any:
    """What becomes of each call that is dialled."""

    def fate_of(_number: str) -> Fate:
        rings_s = dice.uniform(0, 20)
        kinds = (
            Fate(rings_s=rings_s, talks_s=dice.uniform(0, 200)),
            Fate(rings_s=rings_s, talks_s=dice.uniform(0, 30)),
            Fate(rings_s=rings_s, talks_s=None),
            Fate(rings_s=rings_s, talks_s=dice.uniform(1, 20), answered_by="voicemail"),
            Fate("busy", answered_by=None, rings_s=rings_s),
            Fate("no-answer", answered_by="no-answer", rings_s=rings_s),
            Fate("failed", answered_by=None, rings_s=rings_s),
        )
        return dice.choice(kinds)

    return fate_of


def schedule_by(dice: random.Random) -> Any:
    """When each webhook comes, in seconds from the end of its call: not at all, once, late, or twice and out of order."""

    def schedule(_post: Post) -> Sequence[float]:
        late_s = dice.uniform(0, 60)
        return dice.choice(((), (0.0,), (late_s,), (late_s, dice.uniform(0, 60))))

    return schedule


@asynccontextmanager
async def staged(
    folder: Path,
    dice: random.Random,
    *,
    haste: float = HASTE,
    plans: Mapping[str, Mapping[str, Any]] = PLANS,
    fate_of: Callable[[str], Fate | None],
    schedule: Callable[[Post], Sequence[float]],
    retry_delays_s: Sequence[float] = (5.0, 20.0),
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Stage]:
    clock = HastyClock(haste, SystemClock().now_ms())
    async with BlandSimulator(
        clock=clock, tariff=START, fate_of=fate_of, schedule=schedule, retry_delays_s=retry_delays_s
    ) as vendor:
        env = {
            **variables(vendor),
            "SWEEP_EVERY_S": "200",
            "BLAND_WEBHOOK_SECRET": WEBHOOK_SECRET,
            **(env or {}),
        }
        async with hasty_server(folder, vendor.url, clock, plans, env) as server:
            stage = Stage(server, vendor, dice, Figures(), clock, plans)
            await stage.stop_now()
            yield stage


async def play(folder: Path, rounds: int, seed: int) -> Figures:
    """Rounds on one server that is stopped again and again."""
    dice = random.Random(seed)
    async with staged(folder, dice, fate_of=fate_by(dice), schedule=schedule_by(dice)) as stage:
        await stage.play(rounds, lambda number: Round(stage, number).play())
    return stage.figures


if __name__ == "__main__":
    run(play, "tests.chaos.calls", __doc__)
