"""`automna-proxy` for which time flies: `python -m tests.support.hasty serve ...`, one worker.

HASTE is how many seconds pass within one, SINCE_MS the instant (UTC milliseconds) from which on they do. What is told by
the date flies: polls, slices, holds, periods. What is waited for by the monotonic clock, as another process is, does not. With KILL_ORDERS it dies on demand, too
(tests/support/kill_points.py); KILL_BESIDE names what is watched there beside requests and polls.
"""

import os
from pathlib import Path

from automna_proxy import app, service
from automna_proxy.cli import main
from metering.clock import SystemClock
from proxy import arrivals, deferral, endings, outbox, spliced_sockets
from tests.support import kill_points

LOOK_S = 0.1
"""Between two looks for what is due, as it is due soon."""


class HastyClock(SystemClock):
    """The same for all processes that are told the same."""

    __slots__ = ("_haste", "_since_ms")

    def __init__(self, haste: float, since_ms: int) -> None:
        self._haste = haste
        self._since_ms = since_ms

    def now_ms(self) -> int:
        return self._since_ms + round((super().now_ms() - self._since_ms) * self._haste)

    def env(self) -> dict[str, str]:
        """For a server that is to read it."""
        return {"HASTE": str(self._haste), "SINCE_MS": str(self._since_ms)}


def install() -> None:
    """Have whatever is made from now on read the clock of the environment."""
    clock = HastyClock(float(os.environ["HASTE"]), int(os.environ["SINCE_MS"]))
    app.SystemClock = service.SystemClock = lambda: clock  # type: ignore[assignment,misc]
    for each in (arrivals, deferral, endings, outbox):
        each.LOOK_EVERY_S = LOOK_S  # type: ignore[attr-defined]  # of modules that have one
    spliced_sockets.LOOK_S = LOOK_S
    if "KILL_ORDERS" in os.environ:
        beside = os.environ.get("KILL_BESIDE", "").split()
        kill_points.install(Path(os.environ["KILL_ORDERS"]), beside=beside)


if __name__ == "__main__":
    install()
    main()
