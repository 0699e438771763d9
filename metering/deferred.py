"""Work that goes on after its request: rows that say where to ask about it, and when.

A row is written in the unit that binds the work's id, so that nobody knows an id whose work is not asked about.
Its reservation stays HELD, with a `due_at_ms` that every poll moves on; whoever finds the work ended settles it,
once. Workers share the rows: one poll at a time, by whoever moves `poll_at_ms` first.

Work whose user may do nothing any more (disabled, or without a token that lives) is ended at the vendor: one attempt at a
time, by whoever raises `end_attempts` first, and only while that is so. The next poll settles what the vendor then says.
"""

import asyncio
from collections.abc import Collection
from typing import cast

from metering.clock import Clock
from metering.store.readers import Readers
from metering.store.store import Store
from metering.store.writer import Declined, Result, Step, Unit
from metering.values import immutable

TAKEN = "taken"
ARRIVED = "in_"
"""Begins the ids of reservations of what nobody has asked for: the vendor's own id follows."""
NEVER_MS = 2**53
"""When an open row is to be asked about: only when its worker is dead."""

INSERT_DEFERRED = """
INSERT INTO deferred_work (reservation_id, surface, operation, upstream_id, demand, poll_at_ms, polls, is_seen)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7) ON CONFLICT (reservation_id) DO UPDATE
SET upstream_id = excluded.upstream_id, poll_at_ms = excluded.poll_at_ms, is_seen = excluded.is_seen, is_open = 0,
    absences = 0
WHERE deferred_work.upstream_id = ''"""
INSERT_OPEN = """
INSERT INTO deferred_work (reservation_id, surface, operation, upstream_id, demand, poll_at_ms, polls, is_open)
VALUES (?1, ?2, ?3, '', ?4, ?5, 0, 1)"""
LEAVE_OPEN = """
UPDATE deferred_work SET is_open = 0, is_seen = 0, poll_at_ms = ?2 WHERE reservation_id = ?1"""
NOTE_ABSENT = """
UPDATE deferred_work SET absences = absences + 1, poll_at_ms = ?2 WHERE reservation_id = ?1"""
NOTE_PRESENT = "UPDATE deferred_work SET absences = 0 WHERE reservation_id = ?1 AND absences <> 0"
NOTE_ENDED = """
UPDATE deferred_work SET ended_because = ?2 WHERE reservation_id = ?1 AND ended_because = ''"""

COLUMNS = """reservation_id, surface, operation, upstream_id, demand, poll_at_ms, polls, about, scheduled_at_ms,
    is_open, is_seen, absences, end_attempts, end_told_at_ms,
    ended_because"""

AHEAD_MS_MAX = 3_600_000
"""What goes on is never to be asked about, or told to end once more, later than so: then the clock was set back since."""
SURFACES_MAX = 32
"""That one look can leave out; each is a vendor."""
SELECT_DUE = f"""
SELECT {COLUMNS} FROM deferred_work
WHERE (poll_at_ms <= ?1 OR (poll_at_ms > ?1 + {AHEAD_MS_MAX} AND is_open = 0 AND scheduled_at_ms IS NULL))
AND surface NOT IN ({", ".join(f"?{n + 3}" for n in range(SURFACES_MAX))})
ORDER BY poll_at_ms LIMIT ?2"""

# Its request is over all the same: it is resolved, or its worker is no more.
SELECT_LEFT_OPEN = f"""
SELECT {COLUMNS} FROM deferred_work d WHERE is_open = 1 AND NOT EXISTS
    (SELECT 1 FROM reservations r JOIN workers w ON w.id = r.worker_id
     WHERE r.id = d.reservation_id AND r.state = 'HELD')
LIMIT ?1"""

CLAIM_DEFERRED = """
UPDATE deferred_work SET poll_at_ms = ?3, polls = polls + 1, is_open = 0
WHERE reservation_id = ?1 AND poll_at_ms = ?2"""

# A vendor's word about work that should have ended or begun by now.
POLL_NOW = """
UPDATE deferred_work SET poll_at_ms = ?3
WHERE surface = ?1 AND upstream_id = ?2 AND is_open = 0 AND poll_at_ms > ?3
AND (scheduled_at_ms IS NULL OR scheduled_at_ms <= ?4)"""
POLL_REQUEST_NOW = """
UPDATE deferred_work SET poll_at_ms = ?3
WHERE reservation_id = ?1 AND upstream_id IN (?2, '') AND is_open = 0 AND poll_at_ms > ?3 AND scheduled_at_ms IS NULL"""
POLL_ABOUT_NOW = """
UPDATE deferred_work SET poll_at_ms = ?3
WHERE surface = ?1 AND about = ?2 AND is_open = 0 AND poll_at_ms > ?3 AND scheduled_at_ms <= ?4"""

PUT_OFF_DUE = """
UPDATE reservations SET due_at_ms = due_at_ms + ?2 WHERE id = ?1 AND state = 'HELD' AND due_at_ms IS NOT NULL"""
MOVE_DUE = """
UPDATE reservations SET due_at_ms = ?2
WHERE id = ?1 AND state = 'HELD' AND due_at_ms IS NOT NULL AND due_at_ms < ?2"""

_HAS_NO_ACCESS = """
(u.status <> 'active' OR NOT EXISTS (
    SELECT 1 FROM gateway_tokens t WHERE t.user_id = u.id AND t.revoked_at_ms IS NULL
    AND COALESCE(t.expires_at_ms, 9223372036854775807) > ?1))"""
SELECT_ABANDONED = f"""
SELECT d.reservation_id, d.surface, d.operation, d.upstream_id, d.end_attempts, r.user_id, d.about
FROM deferred_work d JOIN reservations r ON r.id = d.reservation_id JOIN users u ON u.id = r.user_id
WHERE d.reservation_id > ?2 AND d.end_told_at_ms IS NULL AND d.end_attempts < ?3
AND (COALESCE(d.end_at_ms, 0) <= ?1 OR d.end_at_ms > ?1 + {AHEAD_MS_MAX})
AND d.is_open = 0 AND d.upstream_id <> '' AND r.state IN ('HELD', 'EXPIRED') AND {_HAS_NO_ACCESS}
AND (?5 = '' OR d.surface = ?5)
ORDER BY d.reservation_id LIMIT ?4"""
CLAIM_ENDING = f"""
UPDATE deferred_work SET end_attempts = end_attempts + 1, end_at_ms = ?4
WHERE reservation_id = ?2 AND end_attempts = ?3 AND end_told_at_ms IS NULL AND EXISTS (
    SELECT 1 FROM reservations r JOIN users u ON u.id = r.user_id
    WHERE r.id = ?2 AND r.state IN ('HELD', 'EXPIRED') AND {_HAS_NO_ACCESS})"""
# The poll that settles it is due at once.
MARK_ENDED = """
UPDATE deferred_work
SET end_told_at_ms = ?2, poll_at_ms = CASE WHEN poll_at_ms < ?2 THEN poll_at_ms ELSE ?2 END
WHERE reservation_id = ?1 AND end_told_at_ms IS NULL"""
SELECT_RUNNING = """
SELECT d.surface, d.operation, COUNT(*) FROM deferred_work d JOIN reservations r ON r.id = d.reservation_id
WHERE r.user_id = ?1 AND r.state IN ('HELD', 'EXPIRED') GROUP BY d.surface, d.operation ORDER BY d.surface, d.operation"""

IDS_AT_ONCE = 50
SELECT_STANDING = f"""
SELECT upstream_id, CASE WHEN ended_because <> '' THEN ended_because WHEN end_told_at_ms IS NULL THEN '' ELSE 'access' END
FROM deferred_work WHERE surface = ?1 AND upstream_id IN ({", ".join(f"?{n + 2}" for n in range(IDS_AT_ONCE))})"""

DELETE_DEFERRED = "DELETE FROM deferred_work WHERE reservation_id = ?1"
DELETE_TOUCHES = "DELETE FROM deferred_touches WHERE reservation_id = ?1"

NOT_ASKED_MS = 120_000
"""What is asked about so much later than it should be was not asked about meanwhile: the service stood still, or had too much
to ask. A vendor that is silent makes a poll late by a minute at most."""
SKEW_MS = 300_000
"""How far a vendor's clock may be from ours."""


_Row = tuple[str, str, str, str, str, int, int, str, int | None, int, int, int, int, int | None, str]


@immutable
class DeferredWork:
    """One row. `demand` is JSON, the caller's own; instants in UTC milliseconds."""

    reservation_id: str
    surface: str
    operation: str
    upstream_id: str
    demand: str
    poll_at_ms: int = 0
    polls: int = 0
    about: str = ""
    """The object that it belongs to, of scheduled work."""
    scheduled_at_ms: int | None = None
    is_open: int = 0
    is_seen: int = 0
    absences: int = 0
    end_attempts: int = 0
    """To end it for a user who may do nothing any more, begun so far."""
    end_told_at_ms: int | None = None
    ended_because: str = ""
    """Why we ended it for a user who may go on; empty where we did not."""


@immutable
class Abandoned:
    """Work that goes on for a user who may do nothing any more. `attempts` to end it have begun."""

    reservation_id: str
    surface: str
    operation: str
    upstream_id: str
    attempts: int
    user_id: str
    about: str


class DeferredWorks:
    """The rows, bound to one store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def adding(self, work: DeferredWork, *, poll_in_s: float) -> Step:
        """The step that writes a row, for a unit of the caller's."""
        poll_at_ms = self._clock.now_ms() + round(poll_in_s * 1000)
        params = (work.reservation_id, work.surface, work.operation, work.upstream_id, work.demand)
        return Step(INSERT_DEFERRED, (*params, poll_at_ms, work.is_seen))

    def opening(self, work: DeferredWork) -> Step:
        """The step that writes a row before the vendor has heard of the work, for the unit that reserves: it is asked about
        when its request is over, whatever became of that."""
        params = (work.reservation_id, work.surface, work.operation, work.demand, NEVER_MS)
        return Step(INSERT_OPEN, params)

    def leave_open(self, reservation_id: str, *, poll_in_s: float) -> "asyncio.Future[Result]":
        """The request is over, and nobody was told what it began, if it did. Queued at once; the future is durable."""
        params = (reservation_id, self._clock.now_ms() + round(poll_in_s * 1000))
        return self._store.writer.submit(Unit((Step(LEAVE_OPEN, params),), must_keep=True))

    async def absent(self, work: DeferredWork, *, poll_in_s: float) -> int:
        """Nothing was found of it; how often in a row that is now. Raises Refused(STORE_UNAVAILABLE)."""
        params = (work.reservation_id, self._clock.now_ms() + round(poll_in_s * 1000))
        await self._store.writer.submit(Unit((Step(NOTE_ABSENT, params),)))
        return work.absences + 1

    async def end_for(self, work: DeferredWork, because: str) -> None:
        """The vendor will be told to end it, for a user who may go on: noted before, as it may be asked about as soon as it has
        heard. Raises Refused(STORE_UNAVAILABLE)."""
        params = (work.reservation_id, because)
        await self._store.writer.submit(Unit((Step(NOTE_ENDED, params),)))

    async def due(self, *, at_most: int, without: Collection[str] = ()) -> list[DeferredWork]:
        """What should be asked about by now, but for these surfaces; and as much of what requests that are no more left open.
        Raises Refused(STORE_UNAVAILABLE)."""
        left_out = sorted(without)[:SURFACES_MAX]
        padded = left_out + [""] * (SURFACES_MAX - len(left_out))
        rows = await self._store.readers.rows(SELECT_DUE, (self._clock.now_ms(), at_most, *padded))
        rows = [*rows, *await self._store.readers.rows(SELECT_LEFT_OPEN, (at_most,))]
        return [DeferredWork(*cast("_Row", row)) for row in rows]

    def poll_now(self, surface: str, upstream_id: str, *, is_about: bool) -> Step:
        """The step that has work asked about at once, for a unit of the caller's: that under this id, or what belongs
        to this object. What is to be done only later is left alone."""
        now_ms = self._clock.now_ms()
        statement = POLL_ABOUT_NOW if is_about else POLL_NOW
        return Step(statement, (surface, upstream_id, now_ms, now_ms + SKEW_MS))

    def poll_request_now(self, reservation_id: str, upstream_id: str) -> Step:
        """The same for what one request began, under this id or one that is not known yet."""
        return Step(POLL_REQUEST_NOW, (reservation_id, upstream_id, self._clock.now_ms()))

    async def standing(self, surface: str, upstream_ids: Collection[str]) -> dict[str, str]:
        """Of those that go on, and are asked about: why the vendor was told to end them, empty where it was not. Raises
        Refused(STORE_UNAVAILABLE)."""
        found: dict[str, str] = {}
        ids = sorted(upstream_ids)
        for start in range(0, len(ids), IDS_AT_ONCE):
            batch = ids[start : start + IDS_AT_ONCE]
            padded = batch + batch[-1:] * (IDS_AT_ONCE - len(batch))
            rows = await self._store.readers.rows(SELECT_STANDING, (surface, *padded))
            found.update(cast("list[tuple[str, str]]", rows))
        return found

    async def claim(self, work: DeferredWork, *, next_poll_in_s: float) -> bool:
        """Take a row for one poll; False when another worker has. The time for which nobody asked is no silence of the
        vendor's: the hold lives for so much longer. Raises Refused(STORE_UNAVAILABLE)."""
        now_ms = self._clock.now_ms()
        next_ms, late_ms = now_ms + round(next_poll_in_s * 1000), now_ms - work.poll_at_ms
        steps = [Step(CLAIM_DEFERRED, (work.reservation_id, work.poll_at_ms, next_ms), refusal=TAKEN)]
        if late_ms > NOT_ASKED_MS and work.scheduled_at_ms is None:
            steps.append(Step(PUT_OFF_DUE, (work.reservation_id, late_ms)))
        return not isinstance(await self._store.writer.submit(Unit(tuple(steps))), Declined)

    async def keep(self, work: DeferredWork, *, due_in_s: float) -> None:
        """It goes on: its hold lives for so long from now. Raises Refused(STORE_UNAVAILABLE)."""
        due_at_ms = self._clock.now_ms() + round(due_in_s * 1000)
        await self._store.writer.submit(Unit((Step(MOVE_DUE, (work.reservation_id, due_at_ms)),)))

    async def goes_on(self, work: DeferredWork, *, due_in_s: float) -> None:
        """The vendor has said so: the same, and what it did not know of before counts no more. Raises
        Refused(STORE_UNAVAILABLE)."""
        due_at_ms = self._clock.now_ms() + round(due_in_s * 1000)
        moved = Step(MOVE_DUE, (work.reservation_id, due_at_ms))
        await self._store.writer.submit(Unit((moved, Step(NOTE_PRESENT, (work.reservation_id,)))))

    async def forget(self, work: DeferredWork) -> None:
        """Its reservation is resolved. Raises Refused(STORE_UNAVAILABLE)."""
        params = (work.reservation_id,)
        await self._store.writer.submit(Unit((Step(DELETE_DEFERRED, params), Step(DELETE_TOUCHES, params))))

    async def abandoned(
        self, *, after: str, attempts_max: int, at_most: int, surface: str = ""
    ) -> list[Abandoned]:
        """What should be ended by now, of one surface or all, in the order of ids, beginning behind one. Raises
        Refused(STORE_UNAVAILABLE)."""
        params = (self._clock.now_ms(), after, attempts_max, at_most, surface)
        rows = await self._store.readers.rows(SELECT_ABANDONED, params)
        return [Abandoned(*cast("tuple[str, str, str, str, int, str, str]", row)) for row in rows]

    async def claim_ending(self, work: Abandoned, *, next_attempt_in_s: float) -> bool:
        """Take one for one attempt; False when another worker has, or its user may do something again. Raises
        Refused(STORE_UNAVAILABLE)."""
        now_ms = self._clock.now_ms()
        params = (now_ms, work.reservation_id, work.attempts, now_ms + round(next_attempt_in_s * 1000))
        step = Step(CLAIM_ENDING, params, refusal=TAKEN)
        return not isinstance(await self._store.writer.submit(Unit((step,))), Declined)

    async def ended(self, work: Abandoned) -> None:
        """The vendor has heard. Raises Refused(STORE_UNAVAILABLE)."""
        step = Step(MARK_ENDED, (work.reservation_id, self._clock.now_ms()))
        await self._store.writer.submit(Unit((step,)))


async def running_of(readers: Readers, user_id: str) -> list[tuple[str, str, int]]:
    """What goes on at vendors for a user: surface, operation, how much. Raises Refused(STORE_UNAVAILABLE)."""
    return [cast("tuple[str, str, int]", row) for row in await readers.rows(SELECT_RUNNING, (user_id,))]
