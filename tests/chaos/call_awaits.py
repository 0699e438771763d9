"""The server dies at every await of whatever dials, stops, finds, ends, hears of or bills a phone call, or tells its user's
agent: after each death nobody was dialled twice, the ledger is what the vendor bills, and of each call its agent was told.
`python -m tests.chaos.call_awaits --rounds 1000 --seed 1`. Calls that come in: tests/chaos/inbound_awaits.py.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from metering.hooks import Hooks, endpoint_of
from metering.store.database import Database
from metering.store.store import open_store
from simulators.bland import Call, Fate, Post, loses_reply
from tests.chaos import calls
from tests.chaos.awaits import HASTE, Deaths
from tests.chaos.rounds import User, run
from tests.support.kill_points import BESIDE, Orders
from tests.support.receiver import Receiver, receiving

PLANS: Mapping[str, Mapping[str, int]] = {
    "roomy": {"calls": 50},
    "short": {"calls": 3, "call_minutes": 1},
}
RETRY_DELAYS_S = (5.0, 20.0, 60.0, 180.0)
TOLD_WITHIN_S = 60.0
HOOKS_SECRET = "a secret for hooks, and long enough for it"
LOST = "Nobody hears of this."
"""The task of calls whose dialling has no answer."""
TOLD = "SELECT id, endpoint, body, attempts, delivered_at_ms FROM outbox WHERE kind = 'call.completed'"


@dataclass
class Stage:
    """Calls, and the agents that are told of them, all at one address."""

    at: calls.Stage
    orders: Orders
    agent: Receiver
    fates: dict[str, Fate]
    """Of calls that are dialled, by number."""
    quiet: set[str] = field(default_factory=set)
    """Calls of which the vendor tells nothing."""


class Round:
    """Users whose agents hear of their calls."""

    plans: Sequence[str]

    def __init__(self, stage: Stage, number: int) -> None:
        self._stage, self._at = stage, stage.at
        self._number = number
        self._owners: dict[str, str] = {}
        """Of calls by their id, where a number has passed on."""

    async def play(self) -> None:
        at = self._at
        before = len(at.calls)
        async with at.users(self._number, self.plans) as users:
            await self._hook(users)
            await self._act(users)
            await at.all_over(users, at.calls[before:])
            await at.check(users, at.calls[before:], owners=self._owners)
            await self._check_told(users, at.calls[before:])

    async def _act(self, users: Sequence[User]) -> None:
        raise NotImplementedError

    async def _hook(self, users: Sequence[User]) -> None:
        async with open_store(Database(self._at.server.store, busy_timeout_s=10)) as store:
            hooks = Hooks(store, self._at.clock)
            for user in users:
                await hooks.put(user.user_id, f"{self._stage.agent.url}&user={user.user_id}")

    async def _disable(self, user: User) -> None:
        async with self._at.server.directory() as directory:
            await directory.disable(user.user_id)

    # --- what agents were told

    async def _check_told(self, users: Sequence[User], made: Sequence[Call]) -> None:
        """Of each call its user's agent, by one message, as often as that was begun to be sent at most."""
        endpoints = {endpoint_of(user.user_id) for user in users}

        def messages() -> list[tuple[Any, ...]]:
            return [row for row in self._at.server.rows(TOLD) if row[1] in endpoints]

        def are_delivered() -> bool:
            return all(delivered_at_ms is not None for *_, delivered_at_ms in messages())

        await self._at.server.until(are_delivered, within_s=TOLD_WITHIN_S)
        wanted = Counter((endpoint_of(self._owner_of(call)), call.call_id) for call in made)
        found = messages()
        told = Counter((row[1], call.call_id) for row in found for call in made if call.call_id in row[2])
        assert (told, len(found)) == (wanted, len(made)), (told, wanted)
        for message_id, endpoint, body, attempts, _ in found:
            received = [each for each in self._stage.agent.received if each.id == message_id]
            assert 1 <= len(received) <= attempts, (message_id, len(received), attempts)
            assert {each.body for each in received} == {body.encode()}, message_id
            user_id = endpoint.rpartition(":")[2]
            assert all(each.target.endswith(f"&user={user_id}") for each in received), received

    def _owner_of(self, call: Call) -> str:
        return self._owners.get(call.call_id) or self._at.owner_of(call)


class Dialled(Round):
    """Two agents that do everything once; one of them is disabled meanwhile."""

    plans = ("roomy", "roomy")

    async def _act(self, users: Sequence[User]) -> None:
        self._at.vendor.script = _trouble
        ada, bob = users
        await asyncio.gather(
            self._talk(ada),
            self._dial(ada, Fate("busy", answered_by=None, rings_s=2)),
            self._dial(ada, Fate(rings_s=2, talks_s=5), task=LOST),
            self._stop(ada),
            self._dial_and_disable(bob),
        )

    async def _dial(self, user: User, fate: Fate, *, task: str = "Say hello.") -> str | None:
        """The id of the call, if its user was told."""
        number = self._at.fresh_number()
        self._stage.fates[number] = fate
        answer = await self._at.ask(user, "POST", "/v1/calls", {"phone_number": number, "task": task})
        self._at.figures.dials["broken" if answer is None else str(answer.status_code)] += 1
        if answer is None or answer.status_code != httpx.codes.OK:
            return None
        user.told.add(answer.json()["call_id"])
        return str(answer.json()["call_id"])

    async def _talk(self, user: User) -> None:
        """To the end, of which the vendor tells."""
        call_id = await self._dial(user, Fate(rings_s=2, talks_s=15))
        if call_id is not None:
            await self._at.vendor.until(lambda: self._at.vendor.call(call_id).is_over)

    async def _stop(self, user: User) -> None:
        call_id = await self._dial(user, Fate(rings_s=2, talks_s=None))
        if call_id is not None:
            await self._at.stop(user, call_id)

    async def _dial_and_disable(self, user: User) -> None:
        await self._dial(user, Fate(rings_s=2, talks_s=None))
        await self._disable(user)


def _trouble(request: Any) -> Any:
    return loses_reply() if LOST.encode() in request.body else None


@asynccontextmanager
async def staged(folder: Path, dice: random.Random) -> AsyncIterator[Stage]:
    orders, fates, quiet = Orders(folder), {}, set()

    def schedule(told: Post) -> Sequence[float]:
        return () if told.call_id in quiet else (0.0, 10.0)

    env = {
        "KILL_ORDERS": str(orders.path),
        "KILL_BESIDE": " ".join(BESIDE),
        "HOOKS_SECRET": HOOKS_SECRET,
        "SWEEP_EVERY_S": "60",
    }
    async with (
        receiving() as agent,
        calls.staged(
            folder,
            dice,
            haste=HASTE,
            plans=PLANS,
            fate_of=fates.get,
            schedule=schedule,
            retry_delays_s=RETRY_DELAYS_S,
            env=env,
        ) as at,
    ):
        yield Stage(at, orders, agent, fates, quiet)


async def play_kind(
    kind: type[Round], folder: Path, deaths: int, seed: int
) -> tuple[calls.Figures, Counter[str]]:
    """So many deaths in rounds of a kind; and the places that there are to die at."""
    async with staged(folder, random.Random(seed)) as stage:
        deaths_of = Deaths(stage.at, stage.orders, lambda number: kind(stage, number).play())
        places = await deaths_of.play(deaths)
    return stage.at.figures, places


async def play(folder: Path, rounds: int, seed: int) -> calls.Figures:
    return (await play_kind(Dialled, folder, rounds, seed))[0]


if __name__ == "__main__":
    run(play, "tests.chaos.call_awaits", __doc__)
