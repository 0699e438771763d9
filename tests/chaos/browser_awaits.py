"""The server dies at every await of whatever makes, joins, ends, finds or bills a browser session: after each death the ledger
is what the vendor bills, and nothing runs that its user does not know. `python -m tests.chaos.browser_awaits --rounds 1000
--seed 1`: a round is one death, all of them are no more than there are awaits, twice.
"""

import asyncio
import logging
import random
from pathlib import Path
from typing import Any

from metering.tasks import spawn
from simulators.browserbase import loses_reply
from tests.chaos.browsers import PAUSE_S, PLANS, Figures, Stage, User, run, staged
from tests.support.kill_points import RESUMED, SUSPENDED, Orders

logger = logging.getLogger(__name__)

HASTE = 60.0
NTH = (1, 3)
"""Time that it comes to such a place: agents meet there."""
LOST_TIMEOUT_S = 61
"""Creations that ask for it have no answer."""


class Deaths:
    """Agents who do everything once, before a server that dies as it is told."""

    def __init__(self, stage: Stage, orders: Orders) -> None:
        self._stage = stage
        self._orders = orders
        self._number = 0

    async def places(self) -> list[tuple[str, str]]:
        """Where the server is suspended meanwhile; each twice, as it is left and as it is taken up again."""
        self._orders.note_suspensions()
        await self._play()
        self._orders.none()
        found = dict.fromkeys(str(each["place"]) for each in self._orders.told())
        return [(place, moment) for place in found for moment in (SUSPENDED, RESUMED)]

    async def die_at(self, place: str, moment: str) -> bool:
        """Whether it did."""
        deaths = self._stage.figures.kills
        self._orders.die_at(place, moment, nth=self._stage.dice.randint(*NTH))
        reviving = spawn(self._revive(), name="reviving")
        try:
            await self._play()
            if not self._stage.server.workers_alive():  # it has died of its last work
                await reviving
        finally:
            reviving.cancel()
        self._orders.none()
        return self._stage.figures.kills > deaths

    async def _revive(self) -> None:
        """Start the server again when it has died."""
        while self._stage.server.workers_alive():
            await asyncio.sleep(PAUSE_S)
        self._orders.none()
        await self._stage.kill_now()

    async def _play(self) -> None:
        stage, self._number = self._stage, self._number + 1
        before = len(stage.vendor.sessions)
        stage.vendor.script = _trouble
        async with stage.users(self._number, ["roomy"]) as (user,):
            await asyncio.gather(self._by_request(user), self._by_socket(user), self._lost(user))
            await stage.end_all([user], lambda: stage.vendor.sessions[before:])
            await stage.check([user], stage.vendor.sessions[before:])

    async def _by_request(self, user: User) -> None:
        stage = self._stage
        session = await stage.created(user, keepAlive=True, timeout=300)
        if session is not None:
            await stage.drive(session["connectUrl"], user.user_id)
            await stage.release(user, session["id"])

    async def _by_socket(self, user: User) -> None:
        await self._stage.drive(self._stage.endpoint(user), user.user_id)

    async def _lost(self, user: User) -> None:
        await self._stage.created(user, keepAlive=True, timeout=LOST_TIMEOUT_S)


def _trouble(request: Any) -> Any:
    return loses_reply() if b'"timeout":%d' % LOST_TIMEOUT_S in request.body else None


async def play(folder: Path, rounds: int, seed: int) -> Figures:
    """So many deaths, at places that are drawn, none of them twice."""
    dice, orders = random.Random(seed), Orders(folder)
    env = {"KILL_ORDERS": str(orders.path)}
    async with staged(folder, dice, haste=HASTE, plans=PLANS, env=env) as stage:
        deaths = Deaths(stage, orders)
        places = await deaths.places()
        logger.info("%d places to die at", len(places))
        for place, moment in dice.sample(places, min(rounds, len(places))):
            has_died = await deaths.die_at(place, moment)
            logger.info("%s %s %s", "died" if has_died else "lived", moment, place.rpartition(" > ")[2])
        await stage.server.assert_verified()
    return stage.figures


if __name__ == "__main__":
    run(play, "tests.chaos.browser_awaits", __doc__)
