"""Work that a request only scheduled, from its reservation until it is known what became of it. Knows no vendor.

What counts is what the vendor says when it is asked, never a webhook alone nor a clock alone. Of work that it knows no
more of there are four cases:

1. Something came of it, under its tag: that is booked, unless another request of ours did it and is charged for it.
2. A request that ends such work, or we ourselves for a user who may do nothing any more, had its success, or its time had
   not come: nothing is booked.
3. One that ends it may have been done, its answer was lost: nothing is booked, as nothing came of it.
4. Its time came and none of ours can have ended it: it counts as done, as an estimate.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from urllib.parse import quote

from metering.admission import token_rates_of
from metering.clock import Clock
from metering.deferred import SKEW_MS, DeferredWork
from metering.ledger import Reservation, Resolved
from metering.scheduled import ScheduledWorks
from metering.store.writer import Step
from metering.usage import Usage
from proxy.exchange import Exchange
from proxy.mounted import Mounted
from proxy.side_calls import SideCalls
from proxy.surface import Demand, Inbound, Operation, Scheduled

ABSENCES_MAX = 3
"""What is not found so often in a row is not there: not all of a vendor's machines may know at once."""
ABSENT_POLL_S = 5.0
DUE_POLL_S = 10.0
"""Between polls of work whose time has just come; longer and longer then."""
UNHEARD_POLL_S = 10.0
"""When it could not be asked about, or a request of ours may still change it."""
WAIT_PART = 4
"""After its time it is asked about every fourth part of how long that is ago."""
MARGIN_S = 2.0
"""After its time, before it is asked about."""
NOTE_NOT_DONE = "not_done"
"""What was scheduled was ended, or never came to be: it costs nothing."""
NOTE_PRESUMED = "presumed_done"
"""Nothing can be found of what came of it."""

NOT_DONE = Usage((), is_exact=True, notes=(NOTE_NOT_DONE,))


class Scheduling:
    """What requests schedule, as one worker sees it."""

    def __init__(
        self, works: ScheduledWorks, calls: SideCalls, clock: Clock, *, encoded: Callable[..., str]
    ) -> None:
        self._works = works
        self._calls = calls
        self._clock = clock
        self._encoded = encoded

    # --- with a request --------------------------------------------------------------------------------

    def steps(self, exchange: Exchange) -> Sequence[Step]:
        """What must be written with the reservation of a request that schedules work, or may change or end some."""
        operation, inbound = exchange.operation, exchange.inbound
        assert operation is not None
        assert inbound is not None
        steps: list[Step] = []
        if exchange.touches_scheduled:
            assert operation.touches is not None
            kind, piece = operation.touches
            named, surface = _named(operation, inbound, piece), exchange.surface
            is_about = all(one.scheduled is None or one.scheduled.kind != kind for one in surface.operations)
            steps += self._works.touching(exchange.request_id, surface.name, named, is_about=is_about)
        if operation.scheduled is not None and exchange.is_scheduled:
            steps.append(self._works.adding(self._work(exchange, operation, operation.scheduled, inbound)))
        return steps

    def _work(
        self, exchange: Exchange, operation: Operation, scheduled: Scheduled, inbound: Inbound
    ) -> DeferredWork:
        assert exchange.caller is not None
        return DeferredWork(
            exchange.request_id,
            exchange.surface.name,
            operation.name,
            inbound.path_params.get(scheduled.id_piece, ""),
            self._encoded(exchange.demand, token_rates_of(exchange.caller)),
            about=_named(operation, inbound, scheduled.about[1]),
            scheduled_at_ms=exchange.demand.scheduled_ms,
        )

    def hand_over(
        self, exchange: Exchange, reservation: Reservation, upstream_id: str
    ) -> "asyncio.Future[Resolved]":
        """The request is over. `upstream_id`: of what it has scheduled; empty when nobody can say. The future is
        durable."""
        operation, at_ms = exchange.operation, exchange.demand.scheduled_ms
        assert operation is not None
        assert operation.scheduled is not None
        assert at_ms is not None
        wait_s = self._wait_s(operation.scheduled, at_ms) if upstream_id else ABSENT_POLL_S
        handed_over = self._works.hand_over(reservation, upstream_id=upstream_id, poll_in_s=wait_s)
        self._works.look_soon(exchange.request_id)  # at what it has taken the place of
        return handed_over

    def look_soon(self, request_id: str) -> None:
        """At what a request may have changed."""
        self._works.look_soon(request_id)

    # --- later -----------------------------------------------------------------------------------------

    def _wait_s(self, scheduled: Scheduled, at_ms: int) -> float:
        """Until it should be asked about again."""
        ahead_s = (at_ms - self._clock.now_ms()) / 1000
        if ahead_s >= 0:
            return min(ahead_s + MARGIN_S, scheduled.poll_s)
        return min(max(-ahead_s / WAIT_PART, DUE_POLL_S), scheduled.poll_s)

    async def adopt(self, work: DeferredWork) -> None:
        """Of a request whose worker died. Raises Refused."""
        await self._works.park(work)

    async def outcome(
        self, mounted: Mounted, scheduled: Scheduled, work: DeferredWork, demand: Demand
    ) -> Usage | None:
        """What was done of it, once that is certain; None while it may still be done, or nobody can say. Raises
        Refused."""
        asked_at_ms, tag = self._clock.now_ms(), work.reservation_id
        found = await self._found(mounted, scheduled, work)
        if found is None:
            return await self._of_gone(mounted, scheduled, work, demand)
        upstream_id, one = found
        if scheduled.stands(one, tag):
            assert work.scheduled_at_ms is not None
            wait_s = self._wait_s(scheduled, work.scheduled_at_ms)
            await self._works.seen(work, upstream_id, asked_at_ms=asked_at_ms, poll_in_s=wait_s)
            return None
        if work.is_seen:  # it was ended, or another request has scheduled it anew
            return NOT_DONE
        return await self._unless_found_later(work, NOT_DONE)

    async def _found(
        self, mounted: Mounted, scheduled: Scheduled, work: DeferredWork
    ) -> tuple[str, dict[str, object]] | None:
        if not work.upstream_id:
            listed = await self._calls.get(mounted, _filled(scheduled.listed, work))
            found = scheduled.found(listed or {}, work.reservation_id)
            return None if found is None else (found[0], dict(found[1]))
        one = await self._calls.get(mounted, _filled(scheduled.path, work))
        return None if one is None else (work.upstream_id, one)

    async def _of_gone(
        self, mounted: Mounted, scheduled: Scheduled, work: DeferredWork, demand: Demand
    ) -> Usage | None:
        assert work.scheduled_at_ms is not None
        touches = await self._works.touches(work, scheduled.ended_by)
        if touches.is_charged:
            return NOT_DONE
        if touches.is_running:
            return None
        done = await self._calls.get(mounted, _filled(scheduled.done, work))
        used = scheduled.used(done or {}, work.reservation_id)
        if used is not None:
            return used
        if work.is_seen and (touches.is_ended or work.end_told_at_ms is not None):
            return NOT_DONE
        is_unsure = touches.is_unsure or work.end_attempts > 0
        ahead_ms = work.scheduled_at_ms - self._clock.now_ms()
        if 0 < ahead_ms <= SKEW_MS and work.is_seen and not is_unsure:
            return None  # by the vendor's clock its time may have come
        is_done = ahead_ms <= 0 and work.is_seen and not is_unsure
        presumed = replace(demand.ceiling, is_exact=False, notes=(NOTE_PRESUMED,))
        return await self._unless_found_later(work, presumed if is_done else NOT_DONE)

    async def _unless_found_later(self, work: DeferredWork, outcome: Usage) -> Usage | None:
        times = await self._works.absent(work, poll_in_s=ABSENT_POLL_S)
        return outcome if times >= ABSENCES_MAX else None


def _named(operation: Operation, inbound: Inbound, piece: str) -> str:
    """A piece of the path, as its kind is spelt."""
    is_caseless = any(name.path_param == piece and name.is_caseless for name in operation.names)
    value = inbound.path_params[piece]
    return value.lower() if is_caseless else value


def _filled(template: str, work: DeferredWork) -> bytes:
    pieces = {"about": work.about, "id": work.upstream_id, "tag": work.reservation_id}
    for name, value in pieces.items():
        template = template.replace(f"{{{name}}}", quote(value, safe=""))
    return template.encode()
