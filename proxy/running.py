"""What costs by the second while it runs at a vendor: granted ahead in slices, and ended where no further one is granted, or
nobody knows of it. Knows no vendor.

A slice is held durably before it is used. What is held of the operation's first quota says how much is granted; how much
is used is told by our clock, from the reservation on, which is never less than the vendor's, without what the work waited before it
began to cost.
"""

import logging
import math
from collections.abc import Mapping
from urllib.parse import quote

from metering.admission import Admission
from metering.clock import Clock
from metering.deferred import DeferredWork, DeferredWorks
from metering.ledger import Ledger, Reservation
from metering.objects import ObjectId, Objects
from metering.prices import PriceTable
from metering.store.writer import Declined
from metering.usage import Usage
from metering.values import immutable
from proxy.mounted import Mounted
from proxy.rewriting import tag_of
from proxy.side_calls import SideCalls
from proxy.surface import Deferred, Demand, Operation, Timed
from proxy.traces import traces, whole

logger = logging.getLogger(__name__)

FOR_BUDGET, FOR_NOBODY, FOR_SILENCE = "budget", "nobody", "silence"
"""Why it is ended: no further slice was granted; its request's answer was lost, so nobody knows of it; its vendor was silent
about it until its hold expired, and what holds nothing runs no further."""
GRANTED_WHEN_LEFT, ENDED_WHEN_LEFT = 2, 4
"""A further slice is asked for when half of one is left. Refused, it is asked for again until a quarter is: polls are apart."""


@immutable
class RunningWork:
    """Work that costs by the second and goes on at its vendor."""

    mounted: Mounted
    operation: Operation
    timed: Timed
    work: DeferredWork
    demand: Demand
    """What its request asked for."""
    budget: str
    """Of the plan that it began under."""


class Running:
    """What runs by itself, as one worker sees it."""

    def __init__(
        self,
        *,
        works: DeferredWorks,
        admission: Admission,
        ledger: Ledger,
        prices: PriceTable,
        objects: Objects,
        calls: SideCalls,
        clock: Clock,
    ) -> None:
        self._works = works
        self._admission = admission
        self._ledger = ledger
        self._prices = prices
        self._objects = objects
        self._calls = calls
        self._clock = clock

    async def look_for(
        self, mounted: Mounted, deferred: Deferred, work: DeferredWork, sought: Mapping[str, str]
    ) -> str | None:
        """The id of what a request began whose answer was lost, by its tag; bound to its user. None where the vendor has
        none. Raises Refused."""
        if deferred.by_tag is None:
            return None
        tag = tag_of(work.reservation_id)
        path = deferred.by_tag.path.replace("{tag}", quote(tag, safe=""))
        for name, value in sought.items():
            path = path.replace(f"{{{name}}}", quote(value, safe=""))
        listed = traces(
            mounted.surface.provider, deferred.by_tag, await self._calls.read(mounted, path.encode())
        )
        owners = await self._objects.stored_owners([trace.one for trace in listed])
        for each in listed:
            if each.one in owners:
                continue
            trace = await whole(self._calls, mounted, deferred.by_tag, each)
            if trace.request_id == work.reservation_id:
                return await self._adopted(trace.one, work)
        return None

    async def _adopted(self, one: ObjectId, work: DeferredWork) -> str | None:
        intent = await self._ledger.intent_of(work.reservation_id)  # of one that has expired, too
        adding = self._works.adding(DeferredWork(*_named(work), one.upstream_id, work.demand), poll_in_s=0.0)
        if isinstance(await self._objects.bind([one], intent.user_id, work.reservation_id, adding), Declined):
            logger.error("%s is another user's than %s's, who had it made", one, intent.user_id)
            return None
        return one.upstream_id

    async def go_on(self, one: RunningWork, waited_s: float | None) -> None:
        """Grant the next slice, or end it; `waited_s` as Timed says. Raises Refused."""
        because = one.work.ended_because
        if not because and not one.work.is_seen:
            because = FOR_NOBODY
        reservation = await self._ledger.held(one.work.reservation_id)
        if not because and reservation is None:
            because = FOR_SILENCE
        if not because and reservation is not None and not await self._is_granted(one, reservation, waited_s):
            because = FOR_BUDGET
        if because:
            await self._end(one.mounted, one.operation, one.work, because)

    async def _is_granted(self, one: RunningWork, reservation: Reservation, waited_s: float | None) -> bool:
        (meter, *_) = one.operation.quotas
        ceiling, slice_s = one.demand.ceiling, one.timed.slice_s
        granted_s = sum(line.amount for line in reservation.lines if line.meter == meter)
        age_s = (self._clock.now_ms() - reservation.created_at_ms) / 1000
        waits_s = min(age_s, one.timed.waits_at_most_s)  # whatever it is said to be
        used_s = math.ceil(age_s - (waits_s if waited_s is None else min(waits_s, waited_s)))
        if waited_s is not None:
            self._note_used(one.mounted, reservation, one.demand, used_s)
        until_s = min(used_s + slice_s, ceiling.seconds)
        if granted_s - used_s > slice_s // GRANTED_WHEN_LEFT:
            return True
        if until_s <= granted_s:  # all that it may take
            return used_s < granted_s
        declined = await self._admission.extend_running(
            reservation,
            more_nanousd=self._more_nanousd(one.mounted, reservation, ceiling.with_time_at_most(until_s)),
            more={meter: until_s - granted_s},
            budget=one.budget,
        )
        return declined is None or granted_s - used_s > slice_s // ENDED_WHEN_LEFT

    def _note_used(self, mounted: Mounted, reservation: Reservation, demand: Demand, used_s: int) -> None:
        """It has run for so long: booked where nothing more is heard of it. What else it uses, its end tells."""
        used = demand.ceiling.time_alone(max(used_s, demand.floor.seconds))
        priced = self._prices.price(mounted.surface.provider, used, at_ms=self._clock.now_ms())
        self._ledger.checkpoint(reservation, priced)

    def _more_nanousd(self, mounted: Mounted, reservation: Reservation, until: Usage) -> int:
        priced = self._prices.price(mounted.surface.provider, until, at_ms=self._clock.now_ms())
        return max(0, priced.cost_nanousd - reservation.hold_nanousd)

    async def _end(self, mounted: Mounted, operation: Operation, work: DeferredWork, because: str) -> None:
        assert operation.deferred is not None
        ending = operation.deferred.ending
        if ending is None:
            return
        await self._works.end_for(work, because)
        path = ending.path.replace("{id}", quote(work.upstream_id, safe=""))
        status = await self._calls.tell(mounted, ending.method, path.encode(), ending.body)
        logger.warning(
            "%s was told to end the work of %s (%d): %s",
            mounted.surface.name,
            work.reservation_id,
            status,
            because,
        )


def _named(work: DeferredWork) -> tuple[str, str, str]:
    return work.reservation_id, work.surface, work.operation
