"""Work that goes on after its request: rows that say where to ask about it, and when.

A row is written in the unit that binds the work's id, so that nobody knows an id whose work is not asked about.
Its reservation stays HELD, with a `due_at_ms` that every poll moves on; whoever finds the work ended settles it,
once. Workers share the rows: one poll at a time, by whoever moves `poll_at_ms` first.
"""

from dataclasses import dataclass
from typing import cast

from metering.clock import Clock
from metering.store.store import Store
from metering.store.writer import Declined, Step, Unit

TAKEN = "taken"

INSERT_DEFERRED = """
INSERT INTO deferred_work (reservation_id, surface, operation, upstream_id, demand, poll_at_ms, polls)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0) ON CONFLICT (reservation_id) DO NOTHING"""

SELECT_DUE = """
SELECT reservation_id, surface, operation, upstream_id, demand, poll_at_ms, polls
FROM deferred_work WHERE poll_at_ms <= ?1 ORDER BY poll_at_ms LIMIT ?2"""

CLAIM_DEFERRED = """
UPDATE deferred_work SET poll_at_ms = ?3, polls = polls + 1
WHERE reservation_id = ?1 AND poll_at_ms = ?2"""

MOVE_DUE = """
UPDATE reservations SET due_at_ms = ?2
WHERE id = ?1 AND state = 'HELD' AND due_at_ms IS NOT NULL AND due_at_ms < ?2"""

DELETE_DEFERRED = "DELETE FROM deferred_work WHERE reservation_id = ?1"


@dataclass(frozen=True, slots=True)
class DeferredWork:
    """One row. `demand` is JSON, the caller's own; instants in UTC milliseconds."""

    reservation_id: str
    surface: str
    operation: str
    upstream_id: str
    demand: str
    poll_at_ms: int = 0
    polls: int = 0


class DeferredWorks:
    """The rows, bound to one store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def adding(self, work: DeferredWork, *, poll_in_s: float) -> Step:
        """The step that writes a row, for a unit of the caller's."""
        poll_at_ms = self._clock.now_ms() + round(poll_in_s * 1000)
        params = (work.reservation_id, work.surface, work.operation, work.upstream_id, work.demand)
        return Step(INSERT_DEFERRED, (*params, poll_at_ms))

    async def due(self, *, at_most: int) -> list[DeferredWork]:
        """What should be asked about by now. Raises Refused(STORE_UNAVAILABLE)."""
        rows = await self._store.readers.rows(SELECT_DUE, (self._clock.now_ms(), at_most))
        return [DeferredWork(*cast("tuple[str, str, str, str, str, int, int]", row)) for row in rows]

    async def claim(self, work: DeferredWork, *, next_poll_in_s: float) -> bool:
        """Take a row for one poll; False when another worker has. Raises Refused(STORE_UNAVAILABLE)."""
        next_ms = self._clock.now_ms() + round(next_poll_in_s * 1000)
        step = Step(CLAIM_DEFERRED, (work.reservation_id, work.poll_at_ms, next_ms), refusal=TAKEN)
        return not isinstance(await self._store.writer.submit(Unit((step,))), Declined)

    async def keep(self, work: DeferredWork, *, due_in_s: float) -> None:
        """It goes on: its hold lives for so long from now. Raises Refused(STORE_UNAVAILABLE)."""
        due_at_ms = self._clock.now_ms() + round(due_in_s * 1000)
        await self._store.writer.submit(Unit((Step(MOVE_DUE, (work.reservation_id, due_at_ms)),)))

    async def forget(self, work: DeferredWork) -> None:
        """Its reservation is resolved. Raises Refused(STORE_UNAVAILABLE)."""
        await self._store.writer.submit(Unit((Step(DELETE_DEFERRED, (work.reservation_id,)),)))
