"""Phone calls under every trouble at once: dials whose answer is lost or that fail, clients that do not wait, calls that come in,
webhooks that are lost, doubled, late and forged, a server that is killed and started again. `python -m tests.chaos.calls
--rounds 200 --seed 1`.

Time flies (tests/support/hasty.py), for the vendor too. Nobody is dialled twice, and what the ledger charged is what the vendor
bills, to the second and the nano-USD.
"""

import asyncio
import itertools
import logging
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
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
from simulators.bland import (
    START,
    WEBHOOK_SECRET,
    BlandSimulator,
    Call,
    Fate,
    Post,
    Tamper,
    answers_late,
    drops,
    fails,
    loses_reply,
)
from tests.chaos.browsers import run
from tests.support.calls import MOUNT, variables
from tests.support.gateway import plan_table
from tests.support.hasty import HastyClock
from tests.support.process import Serving, serving

logger = logging.getLogger(__name__)

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
ALIVE_S, STOPS, KILLED = (0.05, 1.2), (0, 3), 0.8
BOOKED_WITHIN_S, PAUSE_S = 120.0, 0.1
VERIFIED_EVERY = 20
ANSWERED = frozenset({200, 400, 401, 402, 403, 404, 409, 429, 500, 502, 503, 504})
SPENT = """
SELECT e.reservation_id, e.cost_nanousd, e.lines FROM entries e
WHERE e.user_id = ?1 AND e.reservation_id IS NOT NULL ORDER BY e.seq"""


@dataclass
class Figures:
    """What the rounds have shown."""

    rounds: int = 0
    kills: int = 0
    stops: int = 0
    dials: Counter[str] = field(default_factory=Counter)
    """Of agents, by status; `broken` without one, `left` by us."""
    calls: Counter[str] = field(default_factory=Counter)
    """At the vendor, by how they ended; those that came in apart."""
    webhooks: Counter[str] = field(default_factory=Counter)
    """Deliveries by their answer."""
    seconds: int = 0


@dataclass
class User:
    """One user of a round, with a number and a client of their own."""

    user_id: str
    number: str
    http: httpx.AsyncClient
    told: set[str] = field(default_factory=set)


@dataclass
class Stage:
    """A server that is stopped and started again, before one vendor."""

    server: Serving
    vendor: BlandSimulator
    dice: random.Random
    figures: Figures = field(default_factory=Figures)
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    @property
    def calls(self) -> list[Call]:
        return list(self.vendor._calls.by_id.values())

    async def restart(self, *, is_killed: bool) -> None:
        if is_killed:
            await self.server.kill_all()
            self.figures.kills += 1
        else:
            self.server.signal(signal.SIGTERM)
            assert await self.server.exit_status(30) == 0, self.server.log()
            self.figures.stops += 1
        await self.server.start()

    @asynccontextmanager
    async def users(self, number: int) -> AsyncIterator[list[User]]:
        users = []
        async with self.server.directory() as directory:
            for index, plan in enumerate(PLANS):
                user_id, own = f"r{number}u{index}", f"+1415{5_550_000 + next(self.numbers):07}"
                await directory.add_user(user_id, plan=plan)
                token = (await directory.create_token(user_id))[0]
                async with open_store(Database(self.server.store, busy_timeout_s=10)) as store:
                    await PhoneNumbers(store, SystemClock()).assign(user_id, own)
                webhook = f"{self.server.url}/api/webhooks/bland/status"
                self.vendor.add_number(own, is_byot=False, webhook=webhook)
                users.append(User(user_id, own, self._client(token)))
        try:
            yield users
        finally:
            for user in users:
                await user.http.aclose()

    def _client(self, token: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.server.url + MOUNT,
            headers={"authorization": token},
            limits=httpx.Limits(max_keepalive_connections=0),  # no connection of a server that is gone
            trust_env=False,
            timeout=30,
        )

    async def ask(self, user: User, method: str, path: str, **more: Any) -> httpx.Response | None:
        """None where no answer came."""
        try:
            answer = await user.http.request(method, path, **more)
        except httpx.HTTPError:
            return None
        assert answer.status_code in ANSWERED, answer.text
        return answer

    # --- the end of a round --------------------------------------------------------------------------------

    async def all_over(self, users: Sequence[User], calls: Sequence[Call]) -> None:
        """Wait until every call is over, and all is booked."""
        asked = (
            "SELECT 1 FROM reservations WHERE state = 'HELD' LIMIT 1",
            "SELECT 1 FROM deferred_work LIMIT 1",
        )
        found = "SELECT COUNT(*) FROM reservations WHERE id = ?1"

        def is_over() -> bool:
            came_in = [call for call in calls if call.is_inbound]
            return (
                all(call.is_over for call in calls)
                and all(self.server.rows(found, f"in_{call.call_id}") == [(1,)] for call in came_in)
                and not any(self.server.rows(one) for one in asked)
            )

        for user in users:
            for call_id in user.told:
                await self.ask(user, "POST", f"/v1/calls/{call_id}/stop", json={})
        await self.server.until(is_over, within_s=BOOKED_WITHIN_S)

    async def check(self, users: Sequence[User], calls: Sequence[Call]) -> None:
        """The ledger is what the vendor bills, of every call and every user; nobody was dialled twice, nothing is held."""
        dialled = Counter(call.to for call in calls if not call.is_inbound)
        assert not [number for number, times in dialled.items() if times > 1], "dialled twice"
        of_number = {user.number: user for user in users}
        billed: dict[str, dict[str, tuple[int, int]]] = {user.user_id: {} for user in users}
        for call in calls:
            assert call.billed is not None, call
            user = of_number[call.to if call.is_inbound else call.from_number]
            name = f"in_{call.call_id}" if call.is_inbound else request_of(call.metadata.get("automna"))
            assert name is not None, f"{call.call_id} has no tag"
            assert name not in billed[user.user_id], f"{name} has two calls"
            owner = self.server.rows("SELECT user_id FROM reservations WHERE id = ?1", name)
            assert owner == [(user.user_id,)], (call.call_id, owner)
            billed[user.user_id][name] = (call.billed.seconds, call.billed.price_nanousd)
            self.figures.calls[f"in {call.status}" if call.is_inbound else str(call.status)] += 1
            self.figures.seconds += call.billed.seconds
        for user in users:
            booked = self._booked(user)
            wanted = {name: one for name, one in billed[user.user_id].items() if one != (0, 0)}
            assert booked == wanted, (user.user_id, booked, wanted)
        assert self.server.rows("SELECT * FROM accounts WHERE held <> 0") == []
        self.figures.rounds += 1
        if self.figures.rounds % VERIFIED_EVERY == 0:
            await self.server.assert_verified()

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
        async with stage.users(self._number) as users:
            async with asyncio.TaskGroup() as tasks:
                for user in users:
                    for _ in range(AGENTS_EACH):
                        tasks.create_task(self._agent(user, users))
                    if self._dice.random() < COMES_IN:
                        tasks.create_task(self._call_in(user))
                tasks.create_task(self._stops())
            stage.vendor.script = None
            await stage.all_over(users, stage.calls[before:])
            await self._forge(stage.calls[before:])
            await stage.check(users, stage.calls[before:])

    def _trouble(self, request: Any) -> Any:
        if self._dice.random() >= (TROUBLE if request.method == "POST" else TROUBLE / 2):
            return None
        kinds = (
            loses_reply(),
            loses_reply(is_reset=True),
            drops(),
            fails(500),
            fails(500, works=True),
            fails(429),
            answers_late(self._dice.uniform(0.05, 0.3)),
        )
        return self._dice.choice(kinds)

    async def _stops(self) -> None:
        for _ in range(self._dice.randint(*STOPS)):
            await asyncio.sleep(self._dice.uniform(*ALIVE_S))
            await self._stage.restart(is_killed=self._dice.random() < KILLED)

    async def _agent(self, user: User, users: Sequence[User]) -> None:
        stage, dice = self._stage, self._dice
        for _ in range(DIALS_EACH):
            to = f"+1202{5_550_000 + next(stage.numbers):07}"
            asked = {"phone_number": to, "task": "Say hello.", "max_duration": dice.choice((1, 2, 5))}
            is_impatient = dice.random() < IMPATIENT
            more: dict[str, Any] = {"timeout": dice.uniform(0.005, 0.1)} if is_impatient else {}
            answer = await stage.ask(user, "POST", "/v1/calls", json=asked, **more)
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
            answer = await stage.ask(other, method, f"/v1/calls/{call_id}{path}", json={} if path else None)
            assert answer is None or answer.status_code != httpx.codes.OK, "another one's call"
        if dice.random() < 0.3:
            await asyncio.sleep(dice.uniform(0, 1.5))
            await stage.ask(user, "POST", f"/v1/calls/{call_id}/stop", json={})

    async def _call_in(self, user: User) -> None:
        await asyncio.sleep(self._dice.uniform(0, 1))
        fate = Fate(rings_s=self._dice.uniform(0, 5), talks_s=self._dice.uniform(1, 90))
        self._stage.vendor.receive(user.number, "+12025559999", fate=fate)

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
async def staged(folder: Path, dice: random.Random) -> AsyncIterator[Stage]:
    clock = HastyClock(HASTE, SystemClock().now_ms())
    async with BlandSimulator(
        clock=clock,
        tariff=START,
        fate_of=fate_by(dice),
        schedule=schedule_by(dice),
        retry_delays_s=(5.0, 20.0),
    ) as vendor:
        path = folder / "call_plans.toml"
        path.write_text("".join(plan_table(name, **limits) for name, limits in PLANS.items()))
        env = {
            **variables(vendor),
            **clock.env(),
            "PLANS_FILE": str(path),
            "SWEEP_EVERY_S": "20",
            "BLAND_WEBHOOK_SECRET": WEBHOOK_SECRET,
        }
        module = "tests.support.hasty"
        async with serving(folder, upstream=vendor.url, module=module, env=env) as server:
            stage = Stage(server, vendor, dice)
            server.port = int(server.url.rpartition(":")[2])
            server.env = {**server.env, "PUBLIC_URL": server.url}  # where the vendor tells of calls
            await stage.restart(is_killed=False)
            yield stage


async def play(folder: Path, rounds: int, seed: int) -> Any:
    """Rounds on one server that is stopped again and again."""
    async with staged(folder, random.Random(seed)) as stage:
        for number in range(rounds):
            await Round(stage, number).play()
            logger.info("%s", stage.figures)
        await stage.server.assert_verified()
    return stage.figures


if __name__ == "__main__":
    run(play, "tests.chaos.calls", __doc__)
