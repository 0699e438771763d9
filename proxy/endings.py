"""What still runs at vendors for users who may do nothing any more is ended. Knows no vendor: the declaration says how.

Looked for in the store, when it is heard that a user or a token has changed and every LOOK_EVERY_S: so nothing is lost by a
restart, a token that expires unheard is found, and so is work that began while its user was being disabled. An attempt is
claimed before it is made; what became of the work is the vendor's to say, and the ordinary poll's to book.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from urllib.parse import quote

from metering.deferred import Abandoned, DeferredWorks
from metering.errors import Refused
from proxy.mounted import Mounted
from proxy.side_calls import SideCalls
from proxy.surface import Ending
from proxy.telemetry import Telemetry

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 15.0
ENDED_AT_ONCE = 16
"""Told to one vendor at a time, by one worker."""
ATTEMPTS_MAX = 6
RETRY_S = 60.0
"""Before the second attempt, longer than one takes; twice as long before each further one: half an hour in all."""
CHANGES = frozenset({"user", "token"})
"""Kinds of changes that may take somebody's access."""
OK, REDIRECT = 200, 300
NOTHING_TO_END = frozenset({400, 409, 410, 422})
"""What a vendor says of work that has ended by itself. A 404 is not among them: right after work began, not all of the
vendor's machines may know of it."""


class Endings:
    """The work of all surfaces that can be ended, as one worker sees it."""

    def __init__(
        self, *, works: DeferredWorks, mounted: Sequence[Mounted], calls: SideCalls, telemetry: Telemetry
    ) -> None:
        self._works = works
        self._calls = calls
        self._telemetry = telemetry
        self._kinds: Mapping[tuple[str, str], tuple[Mounted, Ending]] = {
            (item.surface.name, name): (item, operation.ending)
            for item in mounted
            for name, operation in item.surface.works
            if operation.ending is not None
        }
        self._has_heard = {surface: asyncio.Event() for surface, _ in self._kinds}

    def heard(self, _seq: int, changed: Collection[tuple[str, str]] | None) -> None:
        """Changes (kind, subject) were heard of; None: anything may have changed."""
        if changed is None or any(kind in CHANGES for kind, _ in changed):
            for event in self._has_heard.values():
                event.set()

    async def keep_ending(self) -> None:
        """Look forever; a store in trouble is waited out. Each surface by itself: a vendor that is silent keeps no other's work
        running."""
        async with asyncio.TaskGroup() as looks:
            for surface in self._has_heard:
                looks.create_task(self._keep_ending(surface), name=f"endings at {surface}")

    async def end_abandoned(self) -> int:
        """End all that should be by now; how many attempts were made. Raises Refused(STORE_UNAVAILABLE)."""
        return sum([await self._end_of(surface) for surface in self._has_heard])

    async def _keep_ending(self, surface: str) -> None:
        while True:
            self._has_heard[surface].clear()
            try:
                await self._end_of(surface)
            except Refused as error:
                logger.debug("no look for work to end: %s", error)  # the store has said what is wrong with it
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._has_heard[surface].wait()

    async def _end_of(self, surface: str) -> int:
        attempts, after = 0, ""
        while found := await self._works.abandoned(
            after=after, attempts_max=ATTEMPTS_MAX, at_most=ENDED_AT_ONCE, surface=surface
        ):
            attempts += sum(await asyncio.gather(*map(self._end_safely, found)))
            after = found[-1].reservation_id
        return attempts

    async def _end_safely(self, work: Abandoned) -> bool:
        """One that cannot be ended must not keep the others from it."""
        try:
            return await self._end(work)
        except Refused as error:
            logger.warning("work of %s was not ended: %s", work.reservation_id, error)
        except Exception:
            logger.exception("work of %s cannot be ended", work.reservation_id)
        return False

    async def _end(self, work: Abandoned) -> bool:
        kind = self._kinds.get((work.surface, work.operation))
        if kind is None:  # it cannot be, or another release can
            return False
        if not await self._works.claim_ending(work, next_attempt_in_s=RETRY_S * 2**work.attempts):
            return False
        mounted, ending = kind
        path = ending.path
        for name, value in (("about", work.about), ("id", work.upstream_id)):
            path = path.replace(f"{{{name}}}", quote(value, safe=""))
        try:
            status = await self._calls.tell(mounted, ending.method, path.encode(), ending.body)
            is_told = OK <= status < REDIRECT or status in NOTHING_TO_END
            problem = None if is_told else f"it answered {status}"
        except Refused as refused:
            problem = str(refused)
        if problem is not None:
            self._failed(work, problem)
            return True
        await self._works.ended(work)
        self._telemetry.ending_attempt(work.surface, "told")
        logger.warning(
            "%s was told to end the work of %s (%d): %s has no access any more",
            work.surface,
            work.reservation_id,
            status,
            work.user_id,
        )
        return True

    def _failed(self, work: Abandoned, problem: str) -> None:
        is_last = work.attempts + 1 >= ATTEMPTS_MAX
        self._telemetry.ending_attempt(work.surface, "gave_up" if is_last else "failed")
        log = logger.error if is_last else logger.warning
        log(
            "%s could not be told to end the work of %s (%s), attempt %d of %d: %s",
            work.surface,
            work.reservation_id,
            work.user_id,
            work.attempts + 1,
            ATTEMPTS_MAX,
            problem,
        )
