"""Browser sessions under every trouble at once: creations whose answer is lost or that fail, releases, agents that drive a
page and leave without a word, a server that is killed and started again. `python -m tests.chaos.browsers --rounds 200
--seed 1`. Budgets that end in mid-session: tests/chaos/browser_budgets.py.

Time flies (tests/support/hasty.py), for the vendor too. What the ledger charged must be what the vendor bills, to the second
and the byte, and whatever runs there must be known to its user, and to nobody else.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from metering.clock import SystemClock
from metering.grants import grant
from metering.store.database import Database
from metering.store.store import open_store
from proxy.rewriting import request_of
from simulators import browserbase
from simulators.browserbase import BrowserbaseSimulator, Habits, Session
from tests.chaos import rounds
from tests.chaos.rounds import PAUSE_S, User, hasty_server, run, trouble_of
from tests.support.browserbase import MOUNT, variables
from tests.support.cdp import Cdp, cdp
from tests.support.hasty import HastyClock

logger = logging.getLogger(__name__)

HASTE = 40.0
"""Seconds in one: a poll every 0.4 s, a slice in three."""
PLANS: Mapping[str, Mapping[str, int]] = {
    "roomy": {"browsers": 50},
    "narrow": {"browsers": 2},
    "short": {"browsers": 3, "browser_minutes": 6},
    "poor": {"browsers": 3, "credits_per_month": 150},
    "prepaid": {"browsers": 3, "credits_per_month": 60},
}
"""A user of each in every round; and one more of the first, who is disabled meanwhile."""
PREPAID: Mapping[str, int] = {"prepaid": 6_000_000}
"""Nano-USD of credit beside the month, by plan."""
AGENTS_EACH, ACTS_EACH = 2, 4
TROUBLE = 0.3
"""Of the vendor's answers to a creation, so many are none; half as many of those to anything else."""
IMPATIENT = 0.15
"""Of the creations, so many are left by their client."""
PROXIED = 0.3
DISABLED_AFTER_S = (0.5, 4.0)
KNOWN_WITHIN_S = 60.0
CONNECTED_S = (0.0, 2.0)
"""How long a page is looked at."""
SECOND_PICOUSD, BYTE_PICOUSD = 33_333_334, 12_000
SPENT = """
SELECT e.reservation_id, e.cost_nanousd, e.lines, e.usage FROM entries e
WHERE e.user_id = ?1 AND e.reservation_id IS NOT NULL ORDER BY e.seq"""


@dataclass
class Figures(rounds.Figures):
    """What the rounds have shown."""

    creations: Counter[str] = field(default_factory=Counter)
    """Of agents, by status; `broken` without one, `left` by us."""
    sockets: Counter[str] = field(default_factory=Counter)
    """Into browsers, by how they ended."""
    sessions: int = 0
    untold: int = 0
    """Of them, those of which no agent was told."""
    ended: Counter[str] = field(default_factory=Counter)
    """Sessions by the outcome that was booked."""
    seconds: int = 0
    proxy_bytes: int = 0


@dataclass
class Stage(rounds.Stage[BrowserbaseSimulator, Figures]):
    """Its vendor has browsers."""

    mount = MOUNT
    token_header = "x-bb-api-key"
    answered = frozenset({200, 201, 401, 402, 403, 404, 409, 410, 429, 500, 502, 503, 504})

    async def _start(self) -> None:
        self.server.env = {**self.server.env, "BROWSERBASE_LINGER_S": self.dice.choice("01")}
        await super()._start()

    async def _prepare(self, user: User) -> None:
        if user.plan in PREPAID:
            await self._grant(user.user_id, PREPAID[user.plan])

    async def _grant(self, user_id: str, amount_nanousd: int) -> None:
        async with open_store(Database(self.server.store, busy_timeout_s=10)) as store:
            await grant(store, SystemClock(), user_id, amount_nanousd, source=user_id)

    # --- what agents ask -----------------------------------------------------------------------------------

    async def created(self, user: User, *, impatient: float = 0.0, **fields: Any) -> dict[str, Any] | None:
        """A session, if its creation was answered so; `impatient`: how probably its client does not wait for that."""
        more: dict[str, Any] = {}
        if is_impatient := self.dice.random() < impatient:
            more["timeout"] = self.dice.uniform(0.005, 0.1)
        answer = await self.ask(user, "POST", "/v1/sessions", fields, **more)
        if answer is None:
            self.figures.creations["left" if is_impatient else "broken"] += 1
            return None
        self.figures.creations[str(answer.status_code)] += 1
        if answer.status_code != httpx.codes.CREATED:
            return None
        session: dict[str, Any] = answer.json()
        user.told.add(session["id"])
        return session

    async def release(self, user: User, session_id: str) -> None:
        await self.ask(user, "POST", f"/v1/sessions/{session_id}", {"status": "REQUEST_RELEASE"})

    async def drive(self, url: str, name: str, *, until: Callable[[], bool] | None = None) -> None:
        """Connect, drive a page, and leave somehow; with `until`, not before it says so, unless cut off."""
        try:
            async with cdp(url) as client:
                await self._drive_page(client, name)
                while until is not None and not until():
                    await client.call("Browser.getVersion")
                    await asyncio.sleep(PAUSE_S)
                await asyncio.sleep(self.dice.uniform(*CONNECTED_S))
                await client.call("Browser.getVersion")
                if self.dice.random() < 0.5:
                    client.socket.transport.abort()
                    self.figures.sockets["aborted"] += 1
                else:
                    self.figures.sockets["closed"] += 1
        except InvalidStatus as refused:
            self._note_refusal(refused.response.status_code)
        except ConnectionClosed as cut:
            code = "without a word" if cut.rcvd is None else str(cut.rcvd.code)
            self.figures.sockets[f"cut {code}"] += 1
        except (OSError, EOFError, InvalidHandshake, InvalidMessage) as error:
            if isinstance(error, TimeoutError):
                raise
            self.figures.sockets["broken"] += 1

    def _note_refusal(self, status: int) -> None:
        assert status in self.answered, status
        self.figures.sockets[str(status)] += 1

    async def _drive_page(self, client: Cdp, name: str) -> None:
        page, url = await client.attach(), f"https://{name}.example/"
        await client.call("Page.navigate", page, url=url)
        found = await client.call("Runtime.evaluate", page, expression="document.title")
        assert found["result"]["value"] == f"Simulated page at {url}", "another one's page"

    def endpoint(self, user: User) -> str:
        """Where a client that knows nothing but its gateway token connects."""
        return f"{self.server.url.replace('http', 'ws')}{MOUNT}/connect?apiKey={user.token}"

    # --- the end of a round --------------------------------------------------------------------------------

    def owner_of(self, session: Session) -> tuple[str, str]:
        """The request that a session is of, and its user, as the ledger says."""
        request_id = request_of(session.user_metadata.get("automna"))
        assert request_id is not None, f"{session.id} has no tag"
        rows = self.server.rows("SELECT user_id FROM reservations WHERE id = ?1", request_id)
        assert len(rows) == 1, f"{session.id} is of {request_id}, which was never admitted"
        return request_id, str(rows[0][0])

    async def end_all(self, users: Sequence[User], sessions: Callable[[], Sequence[Session]]) -> None:
        """Wait until users see in their lists whatever still runs, have them end it, and wait until all is booked."""
        async with asyncio.timeout(KNOWN_WITHIN_S):
            while unknown := await self._unknown(users, sessions()):
                logger.debug("nobody knows %s", unknown)
                await asyncio.sleep(PAUSE_S)
        for user in users:
            for session_id in await self._listed(user):
                await self.release(user, session_id)
        await self.all_booked()

    async def _unknown(self, users: Sequence[User], sessions: Sequence[Session]) -> list[str]:
        """Ids of sessions that run and that their user does not see."""
        seen = {user.user_id: await self._listed(user) for user in users}
        live = [session for session in sessions if session.is_live]
        return [session.id for session in live if session.id not in seen[self.owner_of(session)[1]]]

    async def _listed(self, user: User) -> set[str]:
        answer = await self.ask(user, "GET", "/v1/sessions")
        if answer is None or answer.status_code != httpx.codes.OK:
            return set()
        return {one["id"] for one in answer.json() if one["status"] in {"PENDING", "RUNNING"}}

    async def check(self, users: Sequence[User], sessions: Sequence[Session]) -> None:
        """The ledger is what the vendor bills, of every session and every user; nothing is held, all is owned."""
        assert not [session.id for session in sessions if session.is_live], "runs at the vendor still"
        by_request: dict[str, Session] = {}
        owners: dict[str, str] = {}
        for session in sessions:
            request_id, owners[session.id] = self.owner_of(session)
            assert request_id not in by_request, f"{request_id} has two sessions"
            by_request[request_id] = session
        for user in users:
            own = {name: each for name, each in by_request.items() if owners[each.id] == user.user_id}
            self._check_booked(user, own)
            assert user.told <= {session.id for session in own.values()}, "told of another one's session"
            bound = self.server.rows(
                "SELECT upstream_id FROM owned_objects WHERE kind = 'session' AND user_id = ?1", user.user_id
            )
            assert {one for (one,) in bound} == {session.id for session in own.values()}, user
            self.figures.untold += len(own) - len(user.told)
        assert self.server.rows("SELECT * FROM accounts WHERE held <> 0") == []
        self.figures.sessions += len(sessions)
        await self.count_round()

    def _check_booked(self, user: User, sessions: Mapping[str, Session]) -> None:
        """Of one user: seconds, bytes and cost of each session, and nothing else."""
        seconds, costs, moved = Counter[str](), Counter[str](), Counter[str]()
        for request_id, cost, lines, usage in self.server.rows(SPENT, user.user_id):
            costs[request_id] += cost
            seconds[request_id] += sum(
                line[3] for line in orjson.loads(lines) if line[1] == "browser_seconds"
            )
            if usage is not None:
                counts = [line["counts"] for line in orjson.loads(usage)]
                moved[request_id] = sum(each.get("proxy_bytes", 0) for each in counts)
        booked = {
            name: (seconds[name], moved[name], costs[name])
            for name in costs
            if seconds[name] or moved[name] or costs[name]
        }
        billed = {name: _billed(session) for name, session in sessions.items()}
        assert booked == billed, (user, _differing(booked, billed), self.history(booked, billed))
        at_once = self.plans[user.plan]["browsers"]
        assert _most_at_once(list(sessions.values())) <= at_once, f"more than {at_once} at once for {user}"
        self.figures.seconds += sum(one[0] for one in billed.values())
        self.figures.proxy_bytes += sum(one[1] for one in billed.values())
        self.figures.ended.update(self.outcomes(user))

    def outcomes(self, user: User) -> list[str]:
        """Of a user's creations."""
        return [
            outcome
            for (outcome,) in self.server.rows(
                "SELECT outcome FROM entries WHERE user_id = ?1 AND kind IN ('settle', 'expire') "
                "AND operation = 'POST /v1/sessions'",
                user.user_id,
            )
        ]

    def history(self, booked: Mapping[str, Any], billed: Mapping[str, Any]) -> list[Any]:
        """What stands in the ledger of requests that were not booked as they were billed."""
        return [
            row
            for name in _differing(booked, billed)
            for row in self.server.rows(
                "SELECT reservation_id, kind, outcome, basis, cost_nanousd, lines, usage, notes FROM entries "
                "WHERE reservation_id = ?1 ORDER BY seq",
                name,
            )
        ]


def _billed(session: Session) -> tuple[int, int, int]:
    """Seconds, bytes of proxies, nano-USD."""
    billed = session.billed()
    assert billed is not None
    picousd = billed.seconds * SECOND_PICOUSD + billed.proxy_bytes * BYTE_PICOUSD
    return billed.seconds, billed.proxy_bytes, (picousd + 500) // 1_000


def _differing(booked: Mapping[str, Any], billed: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = booked.keys() | billed.keys()
    return {
        name: (booked.get(name), billed.get(name)) for name in names if booked.get(name) != billed.get(name)
    }


def _most_at_once(sessions: Sequence[Session]) -> int:
    steps = [(session.created_ms, 1) for session in sessions]
    steps += [(session.ended_ms or session.created_ms, -1) for session in sessions]
    most = running = 0
    for _, step in sorted(steps):
        running += step
        most = max(most, running)
    return most


class Round:
    """Agents of several users, each with its own way of treating browsers."""

    def __init__(self, stage: Stage, number: int) -> None:
        self._stage = stage
        self._dice = stage.dice
        self._number = number

    async def play(self) -> None:
        stage, dice = self._stage, self._dice
        before = len(stage.vendor.sessions)
        stage.vendor.set_habits(
            Habits(
                start_s=dice.choice((0, 0, 3)),
                end_s=dice.choice((0, 0, 5, 20)),
                proxy_lag_s=dice.choice((0, 10, 25)),
            )
        )
        stage.vendor.script = self._trouble
        async with stage.users(self._number, [*PLANS, next(iter(PLANS))]) as users:
            async with asyncio.TaskGroup() as tasks:
                for user in users:
                    for agent in range(AGENTS_EACH):
                        tasks.create_task(self._agent(user, f"{user.user_id}a{agent}", users))
                tasks.create_task(stage.stop_now_and_then())
                tasks.create_task(self._disable(users[-1]))
            stage.vendor.script = None
            await stage.end_all(users, lambda: stage.vendor.sessions[before:])
            await stage.check(users, stage.vendor.sessions[before:])

    def _trouble(self, request: Any) -> Any:
        if request.header(b"upgrade"):
            return None
        makes = request.method == "POST" and request.path == "/v1/sessions"
        if self._dice.random() >= (TROUBLE if makes else TROUBLE / 2):
            return None
        return trouble_of(browserbase, self._dice)

    async def _disable(self, user: User) -> None:
        """What a disabled user had running is to be ended without them."""
        await asyncio.sleep(self._dice.uniform(*DISABLED_AFTER_S))
        async with self._stage.server.directory() as directory:
            await directory.disable(user.user_id)

    async def _agent(self, user: User, name: str, users: Sequence[User]) -> None:
        acts: tuple[Callable[[User, str, Sequence[User]], Coroutine[Any, Any, None]], ...]
        acts = (self._make, self._make, self._make, self._connect)
        for _ in range(ACTS_EACH):
            await self._dice.choice(acts)(user, name, users)
            await asyncio.sleep(self._dice.uniform(0, 0.3))

    async def _make(self, user: User, name: str, users: Sequence[User]) -> None:
        """A session by request, and what becomes of it."""
        stage, dice = self._stage, self._dice
        fields: dict[str, Any] = {"timeout": dice.choice((60, 120, 300, 3_600))}
        if dice.random() < 0.5:
            fields["keepAlive"] = True
        if dice.random() < PROXIED:
            fields["proxies"] = True
        session = await stage.created(user, impatient=IMPATIENT, **fields)
        if session is None:
            return
        what = dice.choice(("left", "released", "driven", "driven", "driven and released", "shown to others"))
        if what.startswith("driven"):
            await stage.drive(session["connectUrl"], name)
        if what == "shown to others":
            other = dice.choice([one for one in users if one is not user])
            answer = await stage.ask(other, "GET", f"/v1/sessions/{session['id']}")
            assert answer is None or answer.status_code != httpx.codes.OK, "another one's session"
            await stage.release(other, session["id"])
        if what.endswith("released"):
            await asyncio.sleep(dice.uniform(0, 1.5))
            await stage.release(user, session["id"])
            await stage.ask(user, "GET", f"/v1/sessions/{session['id']}")

    async def _connect(self, user: User, name: str, users: Sequence[User]) -> None:
        """A session by connecting, which nobody has named."""
        await self._stage.drive(self._stage.endpoint(user), name)


@asynccontextmanager
async def staged(
    folder: Path,
    dice: random.Random,
    *,
    haste: float,
    plans: Mapping[str, Mapping[str, Any]],
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Stage]:
    clock = HastyClock(haste, SystemClock().now_ms())
    async with BrowserbaseSimulator(clock=clock) as vendor:
        env = {**variables(vendor), "BROWSERBASE_LINGER_S": "0", **(env or {})}
        async with hasty_server(folder, vendor.url, clock, plans, env) as server:
            yield Stage(server, vendor, dice, Figures(), clock, plans)


async def play(folder: Path, rounds: int, seed: int) -> Figures:
    """Rounds on one server that is stopped again and again."""
    async with staged(folder, random.Random(seed), haste=HASTE, plans=PLANS) as stage:
        await stage.play(rounds, lambda number: Round(stage, number).play())
    return stage.figures


if __name__ == "__main__":
    run(play, "tests.chaos.browsers", __doc__)
