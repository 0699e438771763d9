"""Whose reservations are alive: every worker counts up a row; whose count stands still is dead.

Theory of operation. A worker raises `beat` in its row every second and looks at the rows of all others. It
compares a count only with the same count a moment ago, by its own monotonic clock: clocks of different
machines never meet. A worker is dead when its count has stood still over so many of our observations in
a row that `dead_after_s` has passed. An observation counts only

  1. when it follows the last one within twice the interval: otherwise we were stuck ourselves; and
  2. when our own count has moved since: otherwise the store takes nobody's beats, and nobody is dead.

Either restarts all counts. Should a worker be declared dead that only stood still, nothing is lost: its
streams settle as late reports, and its next beat brings its row back.
"""

import asyncio
import logging
import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from metering.clock import Clock
from metering.errors import Refused
from metering.ledger import Ledger
from metering.store.store import Store
from metering.store.writer import Done, Step, Unit

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
DEAD_AFTER_S = 10.0
OVERDUE = "overdue"
"""Instead of a dead worker: what was to be reported by a time."""
EXPIRY_ROUNDS_MAX = 1_000
"""Batches expired for one dead worker per look; what is left is found again by the next."""

BEAT = """
INSERT INTO workers (id, beat, host, pid, started_at_ms) VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT (id) DO UPDATE SET beat = excluded.beat"""
REMOVE_DEAD = "DELETE FROM workers WHERE id = ?1 AND beat = ?2"
REMOVE_IDLE = """
DELETE FROM workers WHERE id = ?1 AND NOT EXISTS (
    SELECT 1 FROM reservations WHERE worker_id = ?1 AND state = 'HELD' AND due_at_ms IS NULL)
RETURNING id"""
# All workers, and with them the ids under which something is held though no such worker has a row.
SELECT_WORKERS = """
SELECT id, beat FROM workers
UNION ALL
SELECT DISTINCT worker_id, NULL FROM reservations
WHERE state = 'HELD' AND due_at_ms IS NULL AND worker_id NOT IN (SELECT id FROM workers)"""


@dataclass(slots=True)
class _Sighting:
    """A worker's count (None: it has no row) and over how many observations in a row it has stood still."""

    beat: int | None
    times_unchanged: int = 0


class Heartbeat:
    """The life sign of this worker, and its eye on the others."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        clock: Clock,
        *,
        interval_s: float = INTERVAL_S,
        dead_after_s: float = DEAD_AFTER_S,
        on_expired: Callable[[str, int], None] | None = None,
    ) -> None:
        """`on_expired` hears the id of a dead worker (or OVERDUE) and how many reservations expired."""
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._interval_s = interval_s
        self._unchanged_max = max(1, math.ceil(dead_after_s / interval_s))
        self._on_expired = on_expired
        self._beats = 0
        self._started_at_ms = clock.now_ms()
        self._sightings: dict[str, _Sighting] = {}
        self._observed_at_s = -math.inf

    async def run(self) -> None:
        """Beat and reap until cancelled; a store in trouble is waited out."""
        while True:
            try:
                await self.beat()
                await self.reap()
            except Refused as error:
                logger.debug("no heartbeat: %s", error)  # the store has said what is wrong with it
            await asyncio.sleep(self._interval_s)

    async def beat(self) -> None:
        """Raise our count durably; makes the row anew if a reaper took it. Raises Refused."""
        self._beats += 1
        params = (
            self._ledger.worker_id,
            self._beats,
            platform.node(),
            os.getpid(),
            self._started_at_ms,
        )
        await self._store.writer.submit(Unit((Step(BEAT, params),)))

    async def reap(self) -> int:
        """Observe all workers once; expire what the dead hold and what is overdue. How many expired.

        Two reads when all are well. Raises Refused.
        """
        expired = 0
        for worker_id, beat in await self._dead():
            expired += await self._bury(worker_id, beat)
        return expired + await self._expire_overdue()

    async def leave(self) -> bool:
        """Remove our row at the end of a clean life; False when we still hold something, for others to reap.

        Raises Refused.
        """
        unit = Unit((Step(REMOVE_IDLE, (self._ledger.worker_id,), refusal="holds"),))
        return isinstance(await self._store.writer.submit(unit), Done)

    async def _dead(self) -> list[tuple[str, int | None]]:
        """Take one observation; the workers whose count has stood still for long enough, and that count."""
        rows = await self._store.readers.rows(SELECT_WORKERS)
        beats = dict(cast("list[tuple[str, int | None]]", rows))
        now_s = self._clock.monotonic_s()
        is_counted = now_s - self._observed_at_s <= 2 * self._interval_s and self._has_moved(beats)
        self._observed_at_s = now_s
        before = self._sightings if is_counted else {}
        self._sightings = {worker_id: _seen(beat, before.get(worker_id)) for worker_id, beat in beats.items()}
        return [
            (worker_id, seen.beat)
            for worker_id, seen in self._sightings.items()
            if seen.times_unchanged >= self._unchanged_max and worker_id != self._ledger.worker_id
        ]

    def _has_moved(self, beats: dict[str, int | None]) -> bool:
        """Whether our own count has moved since the last observation; one that never beat cannot tell."""
        own = self._sightings.get(self._ledger.worker_id)
        return own is None or own.beat is None or own.beat != beats.get(self._ledger.worker_id)

    async def _bury(self, worker_id: str, beat: int | None) -> int:
        expired = 0
        for _ in range(EXPIRY_ROUNDS_MAX):
            count = await self._ledger.expire_worker(worker_id)
            expired += count
            if not count:
                break
        if beat is not None:
            await self._store.writer.submit(Unit((Step(REMOVE_DEAD, (worker_id, beat)),)))
        del self._sightings[worker_id]
        logger.warning("worker %s is dead: %d reservations expired", worker_id, expired)
        self._tell(worker_id, expired)
        return expired

    async def _expire_overdue(self) -> int:
        expired = await self._ledger.expire_overdue()
        if expired:
            self._tell(OVERDUE, expired)
        return expired

    def _tell(self, worker_id: str, expired: int) -> None:
        if self._on_expired is not None:
            self._on_expired(worker_id, expired)


def _seen(beat: int | None, before: _Sighting | None) -> _Sighting:
    if before is None or before.beat != beat:
        return _Sighting(beat)
    return _Sighting(beat, before.times_unchanged + 1)
