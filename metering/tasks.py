"""The one way to start a background task: it is kept alive, named, and its failure is logged."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

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


async def stop(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task and wait until it is gone; its failure was logged, the caller's cancellation passes."""
    if task is None or task.done():
        return
    task.cancel()
    await asyncio.wait({task})
