"""How often we ask Fly for one thing: within its limits, by waiting before we ask.

An instance is worked on by one worker at a time, so what is counted by machine or app is counted rightly in one process. Deleting
apps is limited for the whole organization: each worker takes a share of it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from metering.clock import Clock
from metering.values import immutable

KEYS_MAX = 20_000
"""Buckets kept; the longest unused are full again."""


@immutable
class Rate:
    """So many a second, after a burst."""

    per_s: float
    burst: int


PER_THING = Rate(0.9, 3)
"""Of one action on one machine or app: 1 a second, burst 3 (Fly's documentation), and a little less for its clock and ours."""
GET_MACHINE = Rate(4.5, 10)
"""Fly's documentation: 5 a second, burst 10."""
DELETE_APP = Rate(0.6, 5)
"""A share of Fly's 100 a minute for the organization: two workers are well within."""


class Pacer:
    """Buckets by action and thing."""

    def __init__(self, clock: Clock, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._clock = clock
        self._pause = pause
        self._full_s: OrderedDict[tuple[str, str], float] = OrderedDict()
        """When a bucket is full again, on the monotonic clock."""

    async def wait(self, action: str, thing: str, rate: Rate) -> None:
        """Until it is our turn, which is taken at once: whoever asks next comes after us."""
        now_s, key = self._clock.monotonic_s(), (action, thing)
        full_s = max(self._full_s.get(key, 0.0), now_s)
        wait_s = full_s - now_s - (rate.burst - 1) / rate.per_s
        self._full_s[key] = full_s + 1 / rate.per_s
        self._full_s.move_to_end(key)
        if len(self._full_s) > KEYS_MAX:
            self._full_s.popitem(last=False)
        if wait_s > 0:
            await self._pause(wait_s)
