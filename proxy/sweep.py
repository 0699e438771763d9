"""Looks through what the account at a vendor holds for objects that nobody owns here, and binds those of our users.

The declarations say where the lists are and what in them tells whose an object is (`Swept`); metering/orphans.py says
under which conditions it is bound. One worker at a time sweeps a list, by claiming its row; two at once would find the
same and bind it once.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from metering.deferred import DeferredWorks
from metering.errors import Reason, Refused
from metering.objects import ObjectId
from metering.orphans import Maker, Orphan, Orphans, State, Sweep
from metering.store.writer import Step
from proxy.deferral import adoption
from proxy.json_walk import value_at
from proxy.mounted import Mounted
from proxy.side_calls import OK, REDIRECT, SideCalls
from proxy.surface import Swept
from proxy.telemetry import Telemetry
from proxy.traces import traces, whole

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
"""Between two looks whether a sweep is due."""
PAGES_MAX = 100
"""Of one list. What is newest stands first at the vendors, so what is not come to is old."""


class Sweeper:
    """The lists of all surfaces that have a key."""

    def __init__(
        self, *, mounted: Sequence[Mounted], orphans: Orphans, works: DeferredWorks, calls: SideCalls
    ) -> None:
        self._orphans = orphans
        self._works = works
        self._calls = calls
        self._mounted = mounted
        self._lists = [(item, swept) for item in mounted for swept in item.surface.swept if item.has_key]

    async def keep_sweeping(self, telemetry: Telemetry, *, every_s: float) -> None:
        """Sweep what is due, forever; `every_s` 0: never. What cannot be read now is read the next time."""
        while self._lists and every_s:
            await asyncio.sleep(min(LOOK_EVERY_S, every_s))
            for mounted, swept in self._lists:
                name, kind = mounted.surface.name, swept.kind
                try:
                    if await self._orphans.claim(mounted.surface.provider, kind, every_s=every_s):
                        found = await self._sweep(mounted, swept)
                        telemetry.swept(
                            name, kind, bound=found.count(State.BOUND), unknown=found.count(State.UNKNOWN)
                        )
                except Refused as refused:
                    if refused.reason is not Reason.STORE_UNAVAILABLE:  # which has said so itself
                        logger.warning("%s: its list of %s could not be read: %s", name, kind, refused)
                except Exception:
                    logger.exception("%s: its list of %s cannot be swept", name, kind)

    async def sweep(self, *, is_dry: bool = False) -> list[Sweep]:
        """All lists, now. `is_dry`: nothing is bound. Raises Refused."""
        return [await self._sweep(mounted, swept, is_dry=is_dry) for mounted, swept in self._lists]

    async def _sweep(self, mounted: Mounted, swept: Swept, *, is_dry: bool = False) -> Sweep:
        vendor, makers = mounted.surface.provider, self._makers(mounted.surface.provider, swept.kind)
        looked_at, found, token = 0, [], ""
        for _ in range(PAGES_MAX):
            answer = await self._calls.read(mounted, _page(swept, token))
            listed = list(traces(vendor, swept, answer))
            looked_at += len(listed)
            for ownerless in await self._orphans.among(listed):
                trace = await whole(self._calls, mounted, swept, ownerless)
                orphan = await self._orphans.look_at(trace, makers)
                if orphan.state is State.ATTRIBUTABLE and not is_dry:
                    orphan = await self._bound(mounted, orphan, makers)
                found.append(orphan)
            token = _next_page(swept, answer)
            if not token:
                break
        return Sweep(vendor, swept.kind, looked_at, tuple(found), is_whole=not token)

    async def _bound(self, mounted: Mounted, orphan: Orphan, makers: Sequence[str]) -> Orphan:
        one, maker = orphan.trace.one, orphan.maker
        more: tuple[Step, ...] = () if maker is None else adoption(self._works, self._mounted, maker, one)
        if maker is not None and not more and not await self._is_ended(mounted, maker, one):
            return orphan
        if not await self._orphans.bind(orphan, makers, *more):
            return await self._orphans.look_at(orphan.trace, makers)
        made_by = f"made by {maker.request_id}" if maker is not None else "found in what is theirs"
        logger.warning(
            "%s: %s had no owner: it is %s's, %s", mounted.surface.name, one, orphan.user_id, made_by
        )
        return Orphan(orphan.trace, State.BOUND, orphan.user_id, maker)

    async def _is_ended(self, mounted: Mounted, maker: Maker, one: ObjectId) -> bool:
        """What costs by the second, and was found only after its request was booked, is nobody's to pay and nobody was told of it:
        the vendor is told to end it. False where that did not take it. Raises Refused."""
        operation = next((each for each in mounted.surface.operations if each.name == maker.operation), None)
        if operation is None or operation.timed is None or operation.ending is None:
            return True
        ending = operation.ending
        path = ending.path.replace("{id}", quote(one.upstream_id, safe=""))
        status = await self._calls.tell(mounted, ending.method, path.encode(), ending.body)
        logger.error(
            "%s: %s was found after %s had been booked: it was told to end it (%d)",
            mounted.surface.name,
            one,
            maker.request_id,
            status,
        )
        return OK <= status < REDIRECT

    def _makers(self, vendor: str, kind: str) -> list[str]:
        """Operations that make such objects, of all surfaces that the vendor has."""
        return [
            operation.name
            for mounted in self._mounted
            if mounted.surface.provider == vendor
            for operation in mounted.surface.operations
            if operation.method == "POST" and any(place.kind == kind for place in operation.hands_out)
        ]


def _page(swept: Swept, token: str) -> bytes:
    if not token or swept.page is None:
        return swept.path.encode()
    joint = "&" if "?" in swept.path else "?"
    return f"{swept.path}{joint}{swept.page[1]}={quote(token, safe='')}".encode()


def _next_page(swept: Swept, answer: Any) -> str:
    """Its token; empty after the last."""
    token = None if swept.page is None else value_at(answer, swept.page[0].split("."))
    return token if isinstance(token, str) else ""
