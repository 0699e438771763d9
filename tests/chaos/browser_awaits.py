"""The server dies at every await of whatever makes, joins, ends, finds or bills a browser session: after each death the ledger
is what the vendor bills, and nothing runs that its user does not know. `python -m tests.chaos.browser_awaits --rounds 1000
--seed 1`.
"""

import asyncio
import random
from pathlib import Path
from typing import Any

from simulators.browserbase import loses_reply
from tests.chaos.awaits import HASTE, Deaths
from tests.chaos.browsers import PLANS, Figures, Stage, staged
from tests.chaos.rounds import User, run
from tests.support.kill_points import Orders

LOST_TIMEOUT_S = 61
"""Creations that ask for it have no answer."""


class Round:
    """An agent that does everything once."""

    def __init__(self, stage: Stage, number: int) -> None:
        self._stage = stage
        self._number = number

    async def play(self) -> None:
        stage = self._stage
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
    """So many deaths."""
    orders = Orders(folder)
    env = {"KILL_ORDERS": str(orders.path)}
    async with staged(folder, random.Random(seed), haste=HASTE, plans=PLANS, env=env) as stage:
        await Deaths(stage, orders, lambda number: Round(stage, number).play()).play(rounds)
    return stage.figures


if __name__ == "__main__":
    run(play, "tests.chaos.browser_awaits", __doc__)
