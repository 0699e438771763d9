"""Work that begins at a vendor without a request of ours, as `Arrives` declares it: found by the vendor's word or in its list,
reserved once, and then asked about and booked as any other. Knows no vendor.

Whose it is, says who had what it arrived at when it began. The reservation's id is made of the work's own, so that two
workers, a webhook and a sweep, and all repetitions are one.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from metering.admission import Admission, Caller, Request, owner_of
from metering.clock import Clock
from metering.deferred import DeferredWorks
from metering.errors import Reason, Refused
from metering.grants import credit_of
from metering.objects import BIND_OBJECT, OWNED_BY_ANOTHER, ObjectId, Objects
from metering.orphans import Orphans
from metering.plans import Plans
from metering.prices import PriceTable
from metering.quotas import quotas_used
from metering.store.readers import Readers
from metering.store.writer import Step
from metering.terms import caps_of_user
from metering.users import Directory, User
from proxy.deferral import arrived, recorded
from proxy.json_walk import value_at
from proxy.mounted import Mounted
from proxy.side_calls import SideCalls
from proxy.surface import Arrives, Deferred, Operation
from proxy.traces import trace_of, traces

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
"""Between two looks whether a list is due."""
NO_TOKEN = ""
"""No gateway token has asked for it."""


class Arrivals:
    """What arrives at all surfaces that have a key, as one worker sees it."""

    def __init__(
        self,
        *,
        mounted: Sequence[Mounted],
        admission: Admission,
        works: DeferredWorks,
        objects: Objects,
        orphans: Orphans,
        directory: Directory,
        plans: Plans,
        prices: PriceTable,
        calls: SideCalls,
        readers: Readers,
        clock: Clock,
    ) -> None:
        self._readers = readers
        self._admission = admission
        self._works = works
        self._objects = objects
        self._orphans = orphans
        self._directory = directory
        self._plans = plans
        self._prices = prices
        self._calls = calls
        self._clock = clock
        self._kinds = [(item, one) for item in mounted for one in item.surface.arrivals if item.has_key]

    async def heard(self, one: ObjectId) -> None:
        """A vendor's word of something that nobody owns: it is asked what that is. Raises Refused."""
        for mounted, arrives in self._kinds:
            if (mounted.surface.provider, arrives.listed.kind) != one[:2]:
                continue
            _, deferred = _work_of(mounted, arrives)
            found = await self._calls.get(mounted, _path(deferred, one.upstream_id))
            if found is not None and value_at(found, [arrives.listed.id_field]) == one.upstream_id:
                await self._take(mounted, arrives, found)

    async def keep_looking(self, *, every_s: float) -> None:
        """Look through the lists that are due, forever; `every_s` 0: never."""
        while self._kinds and every_s:
            await asyncio.sleep(min(LOOK_EVERY_S, every_s))
            for mounted, arrives in self._kinds:
                try:
                    if await self._orphans.claim(mounted.surface.provider, arrives.name, every_s=every_s):
                        await self.look(mounted, arrives)
                except Refused as refused:
                    if refused.reason is not Reason.STORE_UNAVAILABLE:  # which has said so itself
                        logger.warning(
                            "%s: its list of each %s could not be read: %s",
                            mounted.surface.name,
                            arrives.name,
                            refused,
                        )
                except Exception:
                    logger.exception(
                        "%s: its list of each %s cannot be read", mounted.surface.name, arrives.name
                    )

    async def look_through(self) -> int:
        """All lists, now; how much was taken on. Raises Refused."""
        return sum([await self.look(mounted, arrives) for mounted, arrives in self._kinds])

    async def look(self, mounted: Mounted, arrives: Arrives) -> int:
        """One list; how much of it was taken on. What is new stands on its first page. Raises Refused: it cannot be read, or the
        store takes nothing."""
        answer = await self._calls.read(mounted, arrives.listed.path.encode())
        listed = value_at(answer, arrives.listed.items.split(".")) if arrives.listed.items else answer
        items = {
            str(item.get(arrives.listed.id_field)): item
            for item in (listed if isinstance(listed, list) else ())
            if isinstance(item, dict)
        }
        ownerless = await self._orphans.among(traces(mounted.surface.provider, arrives.listed, answer))
        taken = 0
        for trace in ownerless:
            taken += await self._take_safely(mounted, arrives, items[trace.one.upstream_id])
        return taken

    async def _take_safely(self, mounted: Mounted, arrives: Arrives, item: Mapping[str, Any]) -> bool:
        """One that cannot be taken on, as its user's plan is no more, must not keep the others from it."""
        try:
            return await self._take(mounted, arrives, item)
        except Refused as refused:
            if refused.reason is Reason.STORE_UNAVAILABLE:
                raise
            what = item.get(arrives.listed.id_field)
            logger.error("%s: %s %s was not taken on: %s", mounted.surface.name, arrives.name, what, refused)  # noqa: TRY400 - the text is all there is
            return False

    async def _take(self, mounted: Mounted, arrives: Arrives, item: Mapping[str, Any]) -> bool:
        """Reserve for what has arrived, bind it, and write where to ask about it: one unit of work. Whether it is a user's, and was
        not taken on before. Raises Refused."""
        trace = trace_of(mounted.surface.provider, arrives.listed, item)
        began_ms = _instant_ms(value_at(item, arrives.began.split(".")))
        if trace is None or trace.within is None or began_ms is None or not arrives.is_one(item):
            return False
        user_id = await self._objects.owner_at(trace.within, began_ms)
        if user_id is None:
            return False
        user = await self._directory.user(user_id)
        return await self._take_on(mounted, arrives, trace.one, user, item)

    async def _take_on(
        self, mounted: Mounted, arrives: Arrives, one: ObjectId, user: User, item: Mapping[str, Any]
    ) -> bool:
        operation, deferred = _work_of(mounted, arrives)
        assert operation.timed is not None
        now_ms, provider = self._clock.now_ms(), mounted.surface.provider
        plan = self._plans.get(user.plan_at(now_ms))
        if plan is None:
            raise Refused(Reason.NOT_CONFIGURED, f"The plan of {user.id} is not in the plans file.")
        has_credit = (await credit_of(self._readers, user.id)).allowance > 0
        demand = arrives.demand(mounted.options)
        slice_ = demand.ceiling.with_time_at_most(operation.timed.slice_s)
        work = arrived(mounted, arrives.name, one, demand, plan.budget)
        request = Request(
            id=work.reservation_id,
            surface=mounted.surface.name,
            operation=arrives.name,
            models=(),
            hold_nanousd=self._prices.price(provider, slice_, at_ms=now_ms).cost_nanousd,
            floor_nanousd=self._prices.price(provider, demand.floor, at_ms=now_ms).cost_nanousd,
            due_in_s=deferred.due_s,
            quotas=quotas_used(slice_, operation.quotas),
            runs=operation.timed.gauge,
        )
        is_new = await self._admission.take_on(
            Caller(user.id, NO_TOKEN, plan, has_credit=has_credit),
            caps_of_user(owner_of(user.id), user.caps),
            request,
            Step(BIND_OBJECT, (*one, user.id, request.id, now_ms), refusal=OWNED_BY_ANOTHER),
            self._works.adding(work, poll_in_s=0.0),
            *recorded(deferred, request.id, item),
        )
        if is_new:
            logger.info("%s: %s has arrived, and is %s's", mounted.surface.name, one, user.id)
        return is_new


def _work_of(mounted: Mounted, arrives: Arrives) -> tuple[Operation, Deferred]:
    operation = mounted.operation(arrives.operation)
    assert operation.deferred is not None
    return operation, operation.deferred


def _path(deferred: Deferred, upstream_id: str) -> bytes:
    return deferred.path.replace("{id}", quote(upstream_id, safe="")).encode()


def _instant_ms(text: Any) -> int | None:
    """Of a text as vendors write it; without a zone it is UTC. None of what is none."""
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    if found is None:
        return None
    return round((found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp() * 1000)
