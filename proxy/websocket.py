"""Websockets of events: a client's and a vendor's connection, and between them what each may say to the other.

A vendor's event goes down when everything it names is the user's, by what the store says at that moment: no memory, for
nothing reserves an owner here as it does for a request. Each side is read only as fast as the other takes what it says, pings
are answered and sent on both, and whoever ends it, the other side hears why.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import orjson
from websockets.exceptions import ConnectionClosed
from websockets.frames import EXTERNAL_CLOSE_CODES, CloseCode
from websockets.protocol import OPEN

from metering.admission import OwnersChangedError
from metering.errors import Reason, Refused
from metering.objects import Objects
from metering.tasks import spawn, stop
from proxy import socket_messages as messages
from proxy.errors import account_refused
from proxy.exchange import Exchange
from proxy.handshakes import CLOSE_S, Side, Tally
from proxy.mounted import Mounted
from proxy.preparation import Preparation
from proxy.rewriting import shown
from proxy.surface import EventSocket
from proxy.telemetry import Telemetry

logger = logging.getLogger(__name__)

SUBSCRIPTIONS_MAX = 100
"""Messages of one client that go up: each costs the vendor memory for as long as the connection lives."""
REFUSED_MAX = 100
"""Messages of one client that are refused before its connection is ended: each may cost a look into the store."""
REASON_BYTES_MAX = 120
"""Of a close's words: a control frame holds 125 bytes (RFC 6455 section 5.5)."""
PRIVATE_CODES_FROM = 3000
"""Close codes from here on are the applications' own (RFC 6455 section 7.4.2)."""
ACCOUNT_STATUS = 403
"""Stands in the alarm for an error on a vendor's websocket that is about our account: messages have no status."""


class Ending(NamedTuple):
    """How both sides are closed; None: that side is closed already, or gone. `reason` is for the client."""

    down: int | None
    up: int | None
    reason: str = ""


class Sockets:
    """The open websockets of one worker, and their bounds."""

    def __init__(
        self,
        *,
        objects: Objects,
        preparation: Preparation,
        telemetry: Telemetry,
        per_user: int,
        at_most: int,
    ) -> None:
        self._objects = objects
        self._preparation = preparation
        self._telemetry = telemetry
        self._per_user = per_user
        self._at_most = at_most
        self._places: Counter[str] = Counter()
        self._open: set[SocketRelay] = set()
        self._is_stopping = False

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def place(self, user_id: str) -> Iterator[None]:
        """One of the user's, and of this worker's, from before the handshake to the end. Raises
        Refused(TOO_MANY_CONCURRENT)."""
        if self._places[user_id] >= self._per_user:
            words = f"Too many open websockets: {self._per_user} per user. Close one of them first."
            raise Refused(Reason.TOO_MANY_CONCURRENT, words, 30.0, {"limit": self._per_user})
        if self._places.total() >= self._at_most:
            raise Refused(Reason.TOO_MANY_CONCURRENT, "Too many open websockets at the moment.", 5.0)
        self._places[user_id] += 1
        try:
            yield
        finally:
            self._places[user_id] -= 1
            if not self._places[user_id]:
                del self._places[user_id]

    async def relay(self, exchange: Exchange, mounted: Mounted, down: Side, up: Side) -> None:
        """Relay until either side or something else ends it. Both are closed then, whatever happens."""
        relay = SocketRelay(self._objects, self._preparation, self._telemetry, exchange, mounted, down, up)
        self._open.add(relay)
        self._telemetry.open_sockets.inc()
        try:
            if self._is_stopping:
                relay.end(_RESTARTING)
            await relay.run()
        finally:
            self._open.discard(relay)
            self._telemetry.open_sockets.dec()

    def stop(self) -> None:
        """End all of them, and those that are being opened, for this process stops."""
        self._is_stopping = True
        for relay in self._open:
            relay.end(_RESTARTING)


class SocketRelay:
    """One client, one vendor's connection."""

    def __init__(  # noqa: PLR0917 - what it works with, then what it works on
        self,
        objects: Objects,
        preparation: Preparation,
        telemetry: Telemetry,
        exchange: Exchange,
        mounted: Mounted,
        down: Side,
        up: Side,
    ) -> None:
        assert exchange.operation is not None
        assert exchange.operation.socket is not None
        assert exchange.caller is not None
        self._objects = objects
        self._preparation = preparation
        self._telemetry = telemetry
        self._exchange = exchange
        self._mounted = mounted
        self._down = down
        self._up = up
        self._socket: EventSocket = exchange.operation.socket
        self._vendor = mounted.surface.provider
        self._user_id = exchange.caller.user_id
        self._edit = shown(exchange.operation, self._user_id)
        self._tally = exchange.tally = Tally()
        self._refused = 0
        self._ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

    def end(self, ending: Ending) -> None:
        """From outside; once."""
        if not self._ended.done():
            self._ended.set_result(ending)

    async def run(self) -> None:
        ways = [
            spawn(self._way(self._pass_up()), name="websocket up"),
            spawn(self._way(self._pass_down()), name="websocket down"),
        ]
        self._exchange.on_access_lost = self._lose_access
        if self._exchange.access_lost is not None:
            self._lose_access(self._exchange.access_lost)
        try:
            ending = await self._ended
            for way in ways:
                await stop(way)
            await self._close(ending)
        finally:
            self._exchange.on_access_lost = None
            for way in ways:
                way.cancel()
            self._down.transport.abort()
            self._up.transport.abort()

    # --- the client's words

    async def _pass_up(self) -> Ending:
        """Until the client ends it, or has to be stopped."""
        while True:
            try:
                text = await self._down.recv()
            except ConnectionClosed:
                return self._ending_by_client()
            if not isinstance(text, str):
                return Ending(
                    CloseCode.UNSUPPORTED_DATA, CloseCode.GOING_AWAY, "only texts are understood here"
                )
            try:
                message = await self._checked(text)
            except Refused as refused:
                self._refused += 1
                if self._refused > REFUSED_MAX:
                    words = "too many messages that were refused"
                    return Ending(CloseCode.POLICY_VIOLATION, CloseCode.GOING_AWAY, words)
                try:
                    await self._down.send(self._socket.says_error(refused).decode())
                except ConnectionClosed:
                    return self._ending_by_client()
                continue
            try:
                await self._up.send(message)
            except ConnectionClosed:
                return self._ending_by_vendor()
            self._tally.up += 1

    async def _checked(self, text: str) -> str:
        """A client's message as it goes up. Raises Refused."""
        socket = self._socket
        lists = messages.asked(socket, text)
        if self._tally.up >= SUBSCRIPTIONS_MAX:
            words = f"Too many subscriptions on one connection: at most {SUBSCRIPTIONS_MAX}."
            raise Refused(Reason.TOO_MANY_CONCURRENT, words)
        if not messages.named(socket, self._vendor, lists):
            lists |= await self._home()
        named = messages.named(socket, self._vendor, lists)
        owners = await self._objects.stored_owners(named)
        if any(owners.get(one) != self._user_id for one in named):
            raise Refused(Reason.OBJECT_NOT_FOUND, "Not found.")
        return messages.as_message(socket, lists)

    async def _home(self) -> dict[str, list[str]]:
        """What is asked for where nothing is named: made now, if the user has none yet."""
        socket, surface = self._socket, self._mounted.surface
        kind = next(home.kind for home in surface.homes if home.name == socket.home)
        field = next(place.many for place in socket.ids if place.kind == kind)
        try:
            homes = await self._preparation.homes_named(self._mounted, (socket.home,), self._user_id)
        except OwnersChangedError:
            raise Refused(Reason.STORE_UNAVAILABLE, "Please try again.") from None
        return {field: [homes[socket.home]]}

    # --- the vendor's

    async def _pass_down(self) -> Ending:
        """Until the vendor ends it, or nobody can say whose its words are."""
        while True:
            try:
                text = await self._up.recv()
            except ConnectionClosed:
                return self._ending_by_vendor()
            try:
                shown = await self._shown(text) if isinstance(text, str) else None
            except (
                Refused
            ):  # a client that is sent away asks anew, and misses no more than the vendor forgets
                return Ending(CloseCode.TRY_AGAIN_LATER, CloseCode.GOING_AWAY, "please connect again")
            if shown is None:
                self._tally.dropped += 1
                continue
            try:
                await self._down.send(shown)
            except ConnectionClosed:
                return self._ending_by_client()
            self._tally.down += 1

    async def _shown(self, text: str) -> str | None:
        """A vendor's message as it goes down; None where it must not. Raises Refused(STORE_UNAVAILABLE)."""
        socket = self._socket
        try:
            message = orjson.loads(text)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(message, dict):
            return None
        if message.get("type") == socket.errors:
            return self._shown_error(message)
        told_of = messages.told_of(socket, self._vendor, message)
        if told_of is None or (not told_of and message.get("type") not in socket.answers):
            return None
        owners = await self._objects.stored_owners(told_of)
        if any(owners.get(one) != self._user_id for one in told_of):
            return None
        return self._edit(messages.shown(socket, message, text).encode()).decode()

    def _shown_error(self, message: dict[str, Any]) -> str:
        shown = self._socket.shown_error(message)
        if shown is None:
            self._telemetry.account_alarm(self._mounted.surface.name, ACCOUNT_STATUS)
            shown = self._socket.says_error(account_refused(ACCOUNT_STATUS))
        return shown.decode()

    # --- the end

    async def _way(self, passing: Coroutine[Any, Any, Ending]) -> None:
        """One of both directions: how it ends is how all of it ends."""
        try:
            self.end(await passing)
        except Exception:
            logger.exception("request %s failed in the proxy", self._exchange.request_id)
            self.end(Ending(CloseCode.INTERNAL_ERROR, CloseCode.GOING_AWAY))

    def _lose_access(self, refused: Refused) -> None:
        self._exchange.refused = refused
        self.end(Ending(CloseCode.POLICY_VIOLATION, CloseCode.GOING_AWAY, refused.message))

    def _ending_by_client(self) -> Ending:
        """It closed, left without a word, or was closed by the library for what it said."""
        closed = self._down.protocol.close_rcvd
        return Ending(None, CloseCode.GOING_AWAY if closed is None else _passed_on(closed.code))

    def _ending_by_vendor(self) -> Ending:
        """It closed; or its connection broke, and the client should come again."""
        closed = self._up.protocol.close_rcvd
        if closed is not None:
            return Ending(_passed_on(closed.code), None)
        return Ending(CloseCode.SERVICE_RESTART, None, "the vendor's connection broke off")

    async def _close(self, ending: Ending) -> None:
        """Both at once, each within its bound."""
        reason = ending.reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore")
        await asyncio.gather(_closed(self._down, ending.down, reason), _closed(self._up, ending.up, ""))
        down = self._down.protocol
        closed = down.close_sent if ending.down is not None else down.close_rcvd or down.close_sent
        self._tally.close_code = None if closed is None else closed.code


_RESTARTING = Ending(CloseCode.GOING_AWAY, CloseCode.GOING_AWAY, "this proxy restarts")


def _passed_on(code: int) -> int:
    """A close's code as it may be sent; 1005 (there was none) and its like may not."""
    return code if code in EXTERNAL_CLOSE_CODES or code >= PRIVATE_CODES_FROM else CloseCode.NORMAL_CLOSURE


async def _closed(connection: Side, code: int | None, reason: str) -> None:
    """Close a side, if it is not closed yet; one that takes nothing is not waited for."""
    if code is not None and connection.protocol.state is OPEN:
        with suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await connection.close(code, reason)
