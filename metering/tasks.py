"""The one way to start a background task: it is kept alive, named, and its failure is logged.

What goes on for as long as the process does is started anew after a failure (`keep`): without its heartbeat a worker is
taken for dead while it serves, and without the look at lost access a disabled user's streams run on.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

RESTART_PAUSE_S = 1.0
"""Between the failure of what is kept going and its next start."""

logger = logging.getLogger(__name__)

_running: set[asyncio.Task[Any]] = set()


def spawn(coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
    """Start `coroutine`. The event loop holds tasks weakly: without a reference one may vanish half-way."""
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)
    task.add_done_callback(_finished)
    return task


def _finished(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("background task %s failed", task.get_name(), exc_info=error)


def keep(
    make: Callable[[], Coroutine[Any, Any, None]], *, name: str, pause_s: float = RESTART_PAUSE_S
) -> asyncio.Task[None]:
    """Start what `make` makes, and anew whenever it fails, until it ends or is cancelled."""

    async def kept() -> None:
        while True:
            # Its failure is logged, also one in its end, when it is stopped: then this ends all the same.
            one = spawn(make(), name=name)
            try:
                await asyncio.wait({one})
            finally:
                await stop(one)
            if one.cancelled() or one.exception() is None:
                return
            logger.warning("background task %s begins anew in %g s", name, pause_s)
            await asyncio.sleep(pause_s)

    return spawn(kept(), name=name)


async def stop(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task and wait until it is gone; its failure was logged, the caller's cancellation passes."""
    if task is None or task.done():
        return
    task.cancel()
    await asyncio.wait({task})
