"""The spliced websockets of one worker: who is let in by a ticket, where they lead, and when they are cut.

One lives only as long as what it leads to goes on for its user by what the store says: it is looked at every LOOK_S, for all of
them at once, so that what any worker ends is cut off here. Whose access is lost is cut off as everywhere (see access.py).
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import quote

import orjson
from websockets.frames import CloseCode

from metering.admission import Caller
from metering.deferred import DeferredWorks
from metering.errors import Reason, Refused
from metering.objects import ObjectId, Objects
from metering.store.store import Store
from metering.store.writer import Unit
from metering.tickets import Ticket, Tickets
from proxy.auth import Authenticator, unauthenticated
from proxy.exchange import Exchange
from proxy.lingering import Held, Lingering
from proxy.mounted import Mounted
from proxy.running import FOR_BUDGET, FOR_SILENCE
from proxy.side_calls import SideCalls
from proxy.splice import Splice
from proxy.surface import SplicedSocket
from proxy.telemetry import Telemetry
from proxy.upstream import Origin

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks into the store."""
_BECAUSE: Mapping[str, str] = {
    FOR_BUDGET: "the time that plan and budget allow is used up",
    FOR_SILENCE: "its vendor was silent about it for too long",
}
_OVER = "it has ended"
_RESTARTING = "this proxy restarts"


class Spliced:
    """One open websocket."""

    def __init__(self, splice: Splice, surface: str, one: ObjectId, user_id: str) -> None:
        self.splice = splice
        self.surface = surface
        self.one = one
        self.user_id = user_id


class SplicedSockets:
    """All of one worker's."""

    def __init__(
        self,
        *,
        store: Store,
        objects: Objects,
        works: DeferredWorks,
        tickets: Tickets,
        calls: SideCalls,
        authenticator: Authenticator,
        telemetry: Telemetry,
        lingering: Lingering,
    ) -> None:
        self._store = store
        self._objects = objects
        self._works = works
        self.tickets = tickets
        self._calls = calls
        self._authenticator = authenticator
        self._telemetry = telemetry
        self.lingering = lingering
        self._open: set[Spliced] = set()
        self._is_stopping = False

    def __len__(self) -> int:
        return len(self._open)

    # --- who, and where to -----------------------------------------------------------------------------

    async def let_in(self, mounted: Mounted, spliced: SplicedSocket, text: str) -> tuple[Ticket, Caller]:
        """Whoever has a ticket, with what the gateway token may that it was minted for. Raises Refused."""
        ticket = await self.tickets.redeem(text, mounted.surface.provider, spliced.kind)
        caller = await self._authenticator.let_in(ticket.token_id)
        if caller.user_id != ticket.user_id:
            raise unauthenticated("This address is good for nothing here.")
        return ticket, caller

    async def spend(self, mounted: Mounted, spliced: SplicedSocket, text: str) -> None:
        """Use up a ticket, where it is for one connection. Raises Refused."""
        if spliced.once_env and mounted.options[spliced.once_env] == "1":
            await self.tickets.redeem(text, mounted.surface.provider, spliced.kind, is_once=True)

    async def where(self, mounted: Mounted, exchange: Exchange) -> tuple[Origin, str]:
        """Where the vendor's websocket of the exchange's object is. Raises Refused: it goes on no more, or has none."""
        operation = exchange.operation
        assert operation is not None
        assert operation.spliced is not None
        spliced, one = operation.spliced, self.leads_to(exchange)
        over = Refused(Reason.OBJECT_NOT_FOUND, spliced.words)
        if one is None or not await self._goes_on(mounted.surface.name, one):
            raise over
        assert exchange.caller is not None
        # From its reservation on, nothing of its user's is released; by what was remembered before, it may have been.
        if (await self._objects.stored_owners({one})).get(one) != exchange.caller.user_id:
            raise over
        path = spliced.path.replace("{id}", quote(one.upstream_id, safe=""))
        found = await self._calls.get(mounted, path.encode())
        url = (found or {}).get(spliced.url_field)
        if not isinstance(url, str):
            raise over
        place = mounted.leads_within(operation, url)
        if place is None:
            logger.error("%s has a websocket for %s that is not its own", mounted.surface.name, one)
            raise Refused(
                Reason.UPSTREAM_UNREACHABLE,
                f"{mounted.surface.name} answered with an address that is not its own.",
            )
        return place

    def leads_to(self, exchange: Exchange) -> ObjectId | None:
        operation = exchange.operation
        if operation is None or operation.spliced is None or not exchange.leads_to:
            return None
        return ObjectId(exchange.surface.provider, operation.spliced.kind, exchange.leads_to)

    def made(self, mounted: Mounted, exchange: Exchange, body: bytes) -> bool:
        """Note what was made for a client that named nothing; whether the answer says so."""
        operation, caller = exchange.operation, exchange.caller
        assert operation is not None
        assert operation.spliced is not None
        assert caller is not None
        maker = mounted.operation(operation.spliced.makes)
        field = next(place.path for place in maker.hands_out if place.kind == operation.spliced.kind)
        with suppress(orjson.JSONDecodeError):
            found = orjson.loads(body)
            exchange.leads_to = found.get(field, "") if isinstance(found, dict) else ""
        one = self.leads_to(exchange)
        if one is None:
            return False
        linger_s = float(mounted.options[operation.spliced.linger_env])
        key = (mounted.surface.name, caller.token_id)
        self.lingering.made(Held(key, one, mounted, maker, linger_s))
        return True

    async def take(self, mounted: Mounted, caller: Caller) -> ObjectId | None:
        """What was made for a client of the caller's before, and still goes on, for another one: entered before anybody is
        asked, or two would get the same. Raises Refused(STORE_UNAVAILABLE)."""
        surface = mounted.surface.name
        while (one := self.lingering.take((surface, caller.token_id))) is not None:
            try:
                goes_on = await self._goes_on(surface, one)
            except BaseException:
                self.lingering.left(one)
                raise
            if goes_on:
                return one
            self.lingering.forget(one)
        return None

    async def _goes_on(self, surface: str, one: ObjectId) -> bool:
        return await self._works.standing(surface, {one.upstream_id}) == {one.upstream_id: ""}

    # --- while it is open ------------------------------------------------------------------------------

    async def relay(self, exchange: Exchange, splice: Splice, ended: "asyncio.Future[None]") -> None:
        """Until it ends. Both connections are gone then, whatever happens."""
        one = self.leads_to(exchange)
        assert one is not None
        assert exchange.caller is not None
        spliced = Spliced(splice, exchange.surface.name, one, exchange.caller.user_id)
        self._open.add(spliced)
        self._telemetry.open_sockets.inc()
        exchange.on_access_lost = lambda refused: self._lose_access(exchange, splice, refused)
        try:
            if exchange.access_lost is not None:
                self._lose_access(exchange, splice, exchange.access_lost)
            if self._is_stopping:
                splice.end(CloseCode.GOING_AWAY, _RESTARTING)
            await ended
        finally:
            exchange.on_access_lost = None
            splice.abort()
            self._open.discard(spliced)
            self._telemetry.open_sockets.dec()
            exchange.bytes_passed = splice.client.bytes_total, splice.vendor.bytes_total
            with suppress(Refused):  # a poll finds out later
                self._store.writer.submit(
                    Unit((self._works.poll_now(spliced.surface, one.upstream_id, is_about=False),))
                )

    def _lose_access(self, exchange: Exchange, splice: Splice, refused: Refused) -> None:
        exchange.refused = refused
        splice.end(CloseCode.POLICY_VIOLATION, refused.message)

    def stop(self) -> None:
        """End all of them, for this process stops."""
        self._is_stopping = True
        for spliced in self._open:
            spliced.splice.end(CloseCode.GOING_AWAY, _RESTARTING)
        self.lingering.stop()

    async def look(self) -> None:
        """Cut what leads to nothing of its user's any more. Raises Refused(STORE_UNAVAILABLE)."""
        open_now = list(self._open)
        standing: dict[tuple[str, str], str] = {}
        for surface in {spliced.surface for spliced in open_now}:
            ids = {spliced.one.upstream_id for spliced in open_now if spliced.surface == surface}
            found = await self._works.standing(surface, ids)
            standing |= {(surface, upstream_id): why for upstream_id, why in found.items()}
        owners = await self._objects.stored_owners({spliced.one for spliced in open_now})
        for spliced in open_now:
            because = standing.get((spliced.surface, spliced.one.upstream_id))
            if because is None or owners.get(spliced.one) != spliced.user_id:
                spliced.splice.end(CloseCode.POLICY_VIOLATION, _OVER)
            elif because:
                spliced.splice.end(CloseCode.POLICY_VIOLATION, _BECAUSE.get(because, _OVER))

    async def keep_looking(self) -> None:
        """Look forever. While the store cannot say, nobody is cut: what it leads to is ended by its own time."""
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._open:
                continue
            try:
                await self.look()
            except Refused as refused:
                logger.debug(
                    "no look at spliced websockets: %s", refused
                )  # the store says what is wrong with it
            except Exception:  # one that cannot be looked at must not leave all others uncut
                logger.exception("spliced websockets cannot be looked at")
