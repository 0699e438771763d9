"""Work that its request only schedules, and that the vendor does later by itself: what is written of it, and what may have
become of it.

A row of deferred work (metering/deferred.py) that is written in the unit that reserves, and is open as long as its request
is under way. Then it is handed over: its reservation stays HELD, without its place among the concurrent requests,
until a poll finds the work done, or certainly not to be done any more. Requests that may change or end it are noted
beside it in the units that reserve for them, so nothing has to be remembered by a process that may die.
"""

import asyncio
from collections.abc import Collection, Sequence
from typing import cast

from metering.clock import Clock
from metering.deferred import NEVER_MS, NOTE_ABSENT, DeferredWork
from metering.ledger import IS_RESOLUTION, Ledger, Reservation, Resolved
from metering.repeats import REQUEST_TIMEOUT, SERVER_ERROR
from metering.store.store import Store
from metering.store.writer import Declined, Result, Step, Unit
from metering.values import immutable

TOUCHED_POLL_MS = 30_000
"""After a request that may end it began; at once when that has ended."""
SUCCESS, REDIRECT = 200, 300

INSERT_SCHEDULED = """
INSERT INTO deferred_work (reservation_id, surface, operation, upstream_id, about, demand, poll_at_ms, polls,
    scheduled_at_ms, is_open)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?8, 1)"""

NOTE_TOUCHED = """
INSERT INTO deferred_touches (reservation_id, request_id)
SELECT reservation_id, ?1 FROM deferred_work WHERE surface = ?2 AND upstream_id = ?3 AND scheduled_at_ms IS NOT NULL"""
NOTE_TOUCHED_ABOUT = """
INSERT INTO deferred_touches (reservation_id, request_id)
SELECT reservation_id, ?1 FROM deferred_work WHERE surface = ?2 AND about = ?3 AND scheduled_at_ms IS NOT NULL"""
POLL_TOUCHED = """
UPDATE deferred_work SET poll_at_ms = ?2 WHERE is_open = 0 AND poll_at_ms > ?2 AND reservation_id IN
    (SELECT reservation_id FROM deferred_touches WHERE request_id = ?1)"""
SELECT_TOUCHES = f"""
SELECT r.operation, r.state, e.cost_nanousd, e.upstream_status
FROM deferred_touches t
LEFT JOIN reservations r ON r.id = t.request_id
LEFT JOIN entries e ON e.reservation_id = t.request_id AND {IS_RESOLUTION}
WHERE t.reservation_id = ?1"""

HAND_OVER = """
UPDATE deferred_work SET is_open = 0, upstream_id = CASE WHEN ?2 = '' THEN upstream_id ELSE ?2 END,
    is_seen = CASE WHEN ?2 = '' THEN is_seen ELSE 1 END, poll_at_ms = ?3
WHERE reservation_id = ?1"""
# Who has had it asked about meanwhile is not overruled.
NOTE_SEEN = """
UPDATE deferred_work SET upstream_id = ?2, is_seen = 1, absences = 0,
    poll_at_ms = CASE WHEN poll_at_ms > ?3 THEN ?4 ELSE poll_at_ms END
WHERE reservation_id = ?1"""
# They have had their chance, and it stands. Who is charged for the work stays known.
FORGET_TOUCHES = """
DELETE FROM deferred_touches WHERE reservation_id = ?1 AND request_id IN
    (SELECT r.id FROM reservations r WHERE r.id = deferred_touches.request_id AND r.state <> 'HELD'
     AND r.resolved_at_ms < ?2 AND r.booked_nanousd = 0)"""


@immutable
class Touches:
    """What became of the requests that may have changed or ended some scheduled work."""

    is_running: bool
    """One of them may still do so."""
    is_charged: bool
    """One did the work itself, and is charged for it."""
    is_ended: bool
    """One that ends such work did, by the vendor's word."""
    is_unsure: bool
    """One that ends such work may have."""


class ScheduledWorks:
    """The rows, bound to one store."""

    def __init__(self, store: Store, ledger: Ledger, clock: Clock) -> None:
        self._store = store
        self._ledger = ledger
        self._clock = clock

    def adding(self, work: DeferredWork) -> Step:
        """The step that writes an open row, for the unit that reserves."""
        params = (work.reservation_id, work.surface, work.operation, work.upstream_id, work.about)
        return Step(INSERT_SCHEDULED, (*params, work.demand, NEVER_MS, work.scheduled_at_ms))

    def touching(
        self, request_id: str, surface: str, upstream_id: str, *, is_about: bool
    ) -> tuple[Step, Step]:
        """The steps that note a request which may change or end the work under an id, or all that belongs to an object."""
        note = NOTE_TOUCHED_ABOUT if is_about else NOTE_TOUCHED
        poll = Step(POLL_TOUCHED, (request_id, self._clock.now_ms() + TOUCHED_POLL_MS))
        return Step(note, (request_id, surface, upstream_id)), poll

    def look_soon(self, request_id: str) -> None:
        """A request has ended: what it may have changed is asked about now. Never waits; lost, it is asked about within
        TOUCHED_POLL_MS."""
        self._store.writer.submit(Unit((Step(POLL_TOUCHED, (request_id, self._clock.now_ms())),)))

    def hand_over(
        self, reservation: Reservation, *, upstream_id: str, poll_in_s: float
    ) -> "asyncio.Future[Resolved]":
        """The request is over, and what it scheduled stands, or may: polls see to it from now on. `upstream_id`: by the
        vendor's answer; empty when none told it. Queued at once; the future is durable."""
        handed_over: asyncio.Future[Resolved] = asyncio.get_running_loop().create_future()
        step = Step(HAND_OVER, (reservation.id, upstream_id, self._in_ms(poll_in_s)))
        unit = Unit((step, *self._ledger.parking(reservation)), must_keep=True)

        def parked(done: "asyncio.Future[Result]") -> None:
            if done.exception() is None and isinstance(done.result(), Declined):
                # A poll was faster: this worker was taken for dead.
                self._store.writer.submit(Unit((step,), must_keep=True))
            if not handed_over.done():
                handed_over.set_result(Resolved.DONE)

        self._store.writer.submit(unit).add_done_callback(parked)
        return handed_over

    async def park(self, work: DeferredWork) -> None:
        """Take from the reservation of a request whose worker died its place among the concurrent ones. Raises
        Refused(STORE_UNAVAILABLE)."""
        reservation = await self._ledger.held(work.reservation_id)
        if reservation is not None:
            await self._store.writer.submit(Unit(self._ledger.parking(reservation), must_keep=True))

    async def seen(self, work: DeferredWork, upstream_id: str, *, asked_at_ms: int, poll_in_s: float) -> None:
        """The vendor, asked then, knows of it under this id: no request before has ended it. Raises
        Refused(STORE_UNAVAILABLE)."""
        params = (work.reservation_id, upstream_id, self._clock.now_ms(), self._in_ms(poll_in_s))
        await self._submit(Step(NOTE_SEEN, params), Step(FORGET_TOUCHES, (work.reservation_id, asked_at_ms)))

    async def absent(self, work: DeferredWork, *, poll_in_s: float) -> int:
        """Nothing was found of it; how often that is now. Raises Refused(STORE_UNAVAILABLE)."""
        await self._submit(Step(NOTE_ABSENT, (work.reservation_id, self._in_ms(poll_in_s))))
        return work.absences + 1

    async def touches(self, work: DeferredWork, ended_by: Collection[str]) -> Touches:
        """What became of the requests that may have changed it; `ended_by`: the operations that end such work. Raises
        Refused(STORE_UNAVAILABLE)."""
        rows = cast(
            "Sequence[tuple[str | None, str | None, int | None, int | None]]",
            await self._store.readers.rows(SELECT_TOUCHES, (work.reservation_id,)),
        )
        enders = [(state, status) for operation, state, _, status in rows if operation in ended_by]
        return Touches(
            is_running=any(state == "HELD" for _, state, _, _ in rows),
            is_charged=any(cost_nanousd for _, _, cost_nanousd, _ in rows),
            is_ended=any(status is not None and SUCCESS <= status < REDIRECT for _, status in enders),
            is_unsure=any(_may_have_ended(state, status) for state, status in enders),
        )

    async def _submit(self, *steps: Step) -> None:
        await self._store.writer.submit(Unit(steps))

    def _in_ms(self, seconds: float) -> int:
        return self._clock.now_ms() + round(seconds * 1000)


def _may_have_ended(state: str | None, status: int | None) -> bool:
    return state != "VOIDED" and (status is None or status >= SERVER_ERROR or status == REQUEST_TIMEOUT)
