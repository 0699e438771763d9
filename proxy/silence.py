"""A stream whose vendor is silent: its 200 and comments, because proxies in between cut idle connections.

After a while without a byte, the client gets the head of a stream, and from then on a comment as often,
until the vendor's first byte. What the vendor then says in its head can no longer be told as a status: it
arrives as an in-stream error.
"""

import asyncio
from collections.abc import Awaitable, Callable

from metering.tasks import spawn, stop


class SilenceKeeper:
    """Calls `speak` every `silence_s` seconds from `start` to `hush`."""

    __slots__ = ("_silence_s", "_speak", "_task", "_timer")

    def __init__(self, silence_s: float, speak: Callable[[], Awaitable[None]]) -> None:
        self._silence_s = silence_s
        self._speak = speak
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Arm: no task is made unless the silence lasts."""
        self._timer = asyncio.get_running_loop().call_later(self._silence_s, self._begin)

    async def hush(self) -> None:
        """Stop; after this returns, nothing more is written by the keeper."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            task, self._task = self._task, None
            await stop(task)

    def _begin(self) -> None:
        self._timer = None
        self._task = spawn(self._keep_speaking(), name="silence keeper")

    async def _keep_speaking(self) -> None:
        while True:
            await self._speak()
            await asyncio.sleep(self._silence_s)
