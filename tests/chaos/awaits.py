"""A server that dies at every await of what is played before it, once for each death, and whatever is played must end as ever.

Modules of such plays have a short form in the suite and a long one by `python -m`: a round is one death, all of them are no
more than there are awaits, twice.
"""

import asyncio
import itertools
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from metering.tasks import spawn
from tests.chaos.rounds import PAUSE_S, Stage
from tests.support.kill_points import RESUMED, SUSPENDED, Orders

logger = logging.getLogger(__name__)

HASTE = 60.0
"""Seconds in one."""
LATE, LATE_S = 0.1, 1_000.0
"""So many of the dead are started again only after so long, when what they held was due (`Deferred.due_s`, 900)."""
NTH_MAX = 3
"""Time that it comes to such a place: agents meet there."""


class Deaths:
    """`play` is what is done, and looked at, once for each death; it is called with a number of its own."""

    def __init__(
        self, stage: Stage[Any, Any], orders: Orders, play: Callable[[int], Awaitable[None]]
    ) -> None:
        self._stage = stage
        self._orders = orders
        self._play = play
        self._number = itertools.count(1)

    async def play(self, deaths: int) -> Counter[str]:
        """At places that are drawn, from each kind of work in turn, none of them twice. The places that there are, and how
        often it comes to each."""
        places = await self._places()
        logger.info("%d places to die at", len(places))
        drawn = [(place, moment) for place in places for moment in (SUSPENDED, RESUMED)]
        for place, moment in itertools.islice(_in_turn(drawn, self._stage.dice), deaths):
            has_died = await self._die_at(place, moment, places[place])
            logger.info("%s %s %s", "died" if has_died else "lived", moment, place.rpartition(" > ")[2])
        await self._stage.server.assert_verified()
        return places

    async def _places(self) -> Counter[str]:
        """Where the server is suspended meanwhile."""
        self._orders.note_suspensions()
        await self._play(next(self._number))
        self._orders.none()
        return Counter(str(each["place"]) for each in self._orders.told())

    async def _die_at(self, place: str, moment: str, times: int) -> bool:
        """Whether it did."""
        deaths = self._stage.figures.kills
        self._orders.die_at(place, moment, nth=self._stage.dice.randint(1, min(times, NTH_MAX)))
        reviving = spawn(self._revive(), name="reviving")
        try:
            await self._play(next(self._number))
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
        await self._stage.server.kill_all()
        if self._stage.dice.random() < LATE:
            await self._pass(LATE_S)
        await self._stage.kill_now()

    async def _pass(self, seconds: float) -> None:
        """Of the time that flies."""
        until_ms = self._stage.clock.now_ms() + round(seconds * 1_000)
        while self._stage.clock.now_ms() < until_ms:
            await asyncio.sleep(PAUSE_S)


def _in_turn(drawn: list[tuple[str, str]], dice: random.Random) -> Iterable[tuple[str, str]]:
    """In disorder, one of each kind of work after the other: it is told by the function that is outermost."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for one in dice.sample(drawn, len(drawn)):
        kinds.setdefault(one[0].partition(" > ")[0].rpartition(" ")[2], []).append(one)
    turns = itertools.zip_longest(*kinds.values())
    return (one for turn in turns for one in turn if one is not None)
