"""Answers that are read on for the meter alone, because their clients have left: bounded in number and time."""

import asyncio
from typing import Any

from proxy.bounds import Bounds
from proxy.exchange import Exchange
from proxy.telemetry import Telemetry


class Drains:
    """Those of one worker."""

    def __init__(self, *, bounds: Bounds, telemetry: Telemetry) -> None:
        self._bounds = bounds
        self._telemetry = telemetry
        self._open = 0

    def __len__(self) -> int:
        return self._open

    def bound(self, exchange: Exchange, task: "asyncio.Task[Any]") -> None:
        """From now on nobody but the meter reads: for so long; or not at all when too many are being read on already."""
        is_full = self._open >= self._bounds.drains_max
        wait_s = 0.0 if is_full else self._bounds.drain_after_client_left_s
        exchange.drain_timer = asyncio.get_running_loop().call_later(wait_s, task.cancel)
        self._open += 1
        self._telemetry.drains.inc()

    def leave(self, exchange: Exchange) -> None:
        """An exchange is over that was read on."""
        exchange.drain_timer.cancel()
        self._open -= 1
        self._telemetry.drains.dec()
