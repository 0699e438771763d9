"""How a websocket begins: dialled at the vendor, booked, and only then accepted of the client. Then it holds no place among
requests; what passes on it is relayed by websocket.py (events) and splice.py (bytes)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from metering.errors import Reason, Refused
from metering.ledger import Outcome
from metering.usage import NOTHING
from proxy.access import Access
from proxy.answering import Answering
from proxy.booking import Booking
from proxy.bounds import Bounds
from proxy.downstream import Successor
from proxy.exchange import RELAY, ClientLeftError, Exchange
from proxy.handshakes import AnsweredError, dial, handshake_headers
from proxy.inner import InnerConnection, inner_request
from proxy.links import base_of, websocket_url
from proxy.mounted import Mounted
from proxy.query import value_of
from proxy.relay import send_body
from proxy.replies import JSON_TYPE, Replies
from proxy.request import SCHEME, Request
from proxy.splice import Splice
from proxy.splice_handshake import agreed_head, dial_spliced
from proxy.spliced_sockets import SplicedSockets
from proxy.surface import AnswerHead, Headers, Question, SplicedSocket
from proxy.upstream import CancelledUnsent, UpstreamClient, UpstreamError
from proxy.websocket import Sockets

T = TypeVar("T")
S = TypeVar("S", bound=Successor)
SWITCHING_PROTOCOLS = 101
OK, REDIRECT, CLIENT_ERROR = 200, 300, 400
Handle = Callable[[Mounted, bytes, Any, Request], Awaitable[None]]
"""As Engine.handle; an InnerConnection stands for a connection."""


class Opening:
    """Of the websockets of one worker."""

    def __init__(
        self,
        *,
        bounds: Bounds,
        booking: Booking,
        replies: Replies,
        answering: Answering,
        client: UpstreamClient,
        access: Access,
        sockets: Sockets,
        spliced: SplicedSockets,
        handle: Handle,
    ) -> None:
        self._bounds = bounds
        self._booking = booking
        self._replies = replies
        self._answering = answering
        self._client = client
        self._access = access
        self._sockets = sockets
        self._spliced = spliced
        self._handle = handle

    async def open_socket(
        self, exchange: Exchange, mounted: Mounted, path: bytes, credential: tuple[bytes, bytes]
    ) -> None:
        """Open the vendor's websocket and book that; then accept the client's. What passes on it is no request."""
        operation, inbound, tls = exchange.operation, exchange.inbound, None
        assert operation is not None
        assert inbound is not None
        headers = mounted.request_filter.passed(inbound.headers, secret=exchange.gateway_token)
        headers = [*handshake_headers(headers), *mounted.fixed_headers, credential]
        origin, bounds = mounted.socket_origin(operation), self._bounds
        if origin.scheme == "https":
            tls = self._client.tls()
        target = (path + b"?" + inbound.query if inbound.query else path).decode("ascii")
        stall_s = bounds.client_stall_timeout_s
        dialling = dial(origin, target, headers, tls, bounds.connect_timeout_s, stall_s)
        up = await self._dialled(exchange, mounted, dialling)
        if up is None:
            return
        assert exchange.handshake is not None
        handshake = exchange.handshake
        try:
            down = await self._accept(exchange, lambda more: handshake.accept(more, ping_timeout_s=stall_s))
        except BaseException:
            up.transport.abort()
            raise
        down.start_keepalive()
        exchange.sides = down, up

    async def _dialled(self, exchange: Exchange, mounted: Mounted, dialling: Awaitable[T]) -> T | None:
        """What the vendor's side of a websocket is; None where it would not open one, which the client has been told. Raises
        Refused."""
        exchange.is_forwarded = True
        try:
            return await dialling
        except UpstreamError as error:
            raise self._answering.no_answer(exchange, error) from error
        except CancelledUnsent:
            self._booking.void(exchange)
            raise
        except AnsweredError as answer:
            await self._answer_handshake(exchange, mounted, answer)
            return None

    async def _answer_handshake(self, exchange: Exchange, mounted: Mounted, answer: AnsweredError) -> None:
        """The vendor would not open a websocket."""
        exchange.upstream_status = answer.status
        if answer.status < CLIENT_ERROR:
            self._booking.settle(exchange, Outcome.UPSTREAM_FAILED, NOTHING)
            name = mounted.surface.name
            raise Refused(Reason.UPSTREAM_UNREACHABLE, f"{name} answered without a websocket.")
        await self._answering.answer_error(
            exchange, mounted, answer, AnswerHead(answer.status, answer.headers), None
        )

    async def _accept(self, exchange: Exchange, accept: Callable[[Headers], tuple[bytes, S]]) -> S:
        """Book that the vendor's websocket is open; then answer the client. What passes on it is no request."""
        assert exchange.caller is not None
        exchange.upstream_status = SWITCHING_PROTOCOLS
        self._booking.settle(
            exchange, Outcome.CLIENT_LEFT if exchange.client_left else Outcome.COMPLETED, NOTHING
        )
        await self._booking.durable(exchange)
        exchange.phase = RELAY
        if exchange.connection.is_gone:
            raise ClientLeftError
        headers = [(b"x-automna-request-id", exchange.request_id.encode())]
        head, down = accept(headers + self._replies.limit_headers(exchange, exchange.caller))
        exchange.head_is_out, exchange.status = True, SWITCHING_PROTOCOLS
        exchange.connection.hand_over(head, down)
        return down

    async def relay_socket(self, exchange: Exchange, mounted: Mounted) -> None:
        """Until it ends, which may be in days: it holds no place among requests, and nothing of its handshake."""
        if exchange.sides is None:
            return
        exchange.inbound = exchange.handshake = None
        self._access.enter(exchange)
        try:
            await self._sockets.relay(exchange, mounted, *exchange.sides)
        finally:
            self._access.leave(exchange)
            exchange.sides = None

    async def answer_question(
        self, exchange: Exchange, mounted: Mounted, path: bytes, question: Question
    ) -> None:
        """Where the websocket is. The vendor is not asked, and nothing is made for it."""
        query = exchange.request.query
        base = base_of(self._bounds.public_url, exchange.request.headers, SCHEME)
        url = websocket_url(base, mounted, path.decode("ascii"))
        if query:
            url += f"?{query.decode('ascii')}"
        body = question.says(url)
        exchange.outcome = Outcome.COMPLETED
        self._replies.begin(exchange, OK, [JSON_TYPE, (b"content-length", b"%d" % len(body))])
        await send_body(exchange, body, is_last=True)

    async def serve_spliced(
        self,
        exchange: Exchange,
        mounted: Mounted,
        params: Mapping[str, str],
        serve: Callable[[], Awaitable[None]],
    ) -> None:
        """A websocket into what the caller names; or into what waits for its next client, or is made now. `serve`: what is left
        of the phases."""
        operation, caller = exchange.operation, exchange.caller
        assert operation is not None
        assert operation.spliced is not None
        assert caller is not None
        spliced, lingering = operation.spliced, self._spliced.lingering
        named = value_of(spliced.id_param, exchange.request.query) if spliced.id_param else None
        if spliced.ticket_piece:
            await self._spliced.spend(mounted, spliced, params[spliced.ticket_piece])
        elif named is not None:
            exchange.leads_to = named
        elif (waiting := await self._spliced.take(mounted, caller)) is not None:
            exchange.leads_to = waiting.upstream_id
        elif not await self._make_for(exchange, mounted, spliced):
            return
        one = self._spliced.leads_to(exchange)
        if one is None:
            raise Refused(Reason.BAD_REQUEST, f"{spliced.id_param}: an id is expected.")
        # What waited, or was made, has this client already; whoever names one may have named another user's.
        is_client = not spliced.ticket_piece and named is None
        try:
            await serve()
            if not is_client and exchange.splice is not None:
                lingering.entered(one)
                is_client = True
            await self._relay_spliced(exchange)
        finally:
            if is_client:
                lingering.left(one)

    async def _make_for(self, exchange: Exchange, mounted: Mounted, spliced: SplicedSocket) -> bool:
        """Make what the client has named nothing of, by a request of its own; where that is refused, so is this, in its words."""
        method, path = spliced.makes.split(" ", 1)
        inner = InnerConnection(exchange.connection)
        await self._handle(mounted, path.encode(), inner, inner_request(exchange, method, path))
        if inner.is_whole and OK <= inner.status < REDIRECT:
            if self._spliced.made(mounted, exchange, bytes(inner.body)):
                return True
            raise Refused(
                Reason.UPSTREAM_UNREACHABLE, f"{mounted.surface.name} did not say what it has made."
            )
        if exchange.connection.is_gone or not inner.is_whole:
            raise ClientLeftError
        exchange.head_is_out, exchange.status = True, inner.status
        exchange.connection.begin(inner.status, inner.headers, is_flushed_soon=False)
        await send_body(exchange, bytes(inner.body), is_last=True)
        return False

    async def open_spliced(self, exchange: Exchange, mounted: Mounted) -> None:
        """Open the vendor's websocket with the client's handshake, and book that; from then on only bytes pass."""
        inbound, bounds = exchange.inbound, self._bounds
        assert inbound is not None
        origin, target = await self._spliced.where(mounted, exchange)
        tls = self._client.tls() if origin.scheme == "https" else None
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        splice = Splice(lambda: ended.set_result(None), stall_s=bounds.client_stall_timeout_s)
        token, headers = exchange.gateway_token, inbound.headers
        if token:  # of whoever has none, a ticket stands in the path
            headers = [pair for pair in headers if token not in pair[1]]
        dialling = dial_spliced(origin, target, headers, tls, bounds.connect_timeout_s, splice)
        agreed = await self._dialled(exchange, mounted, dialling)
        if agreed is None:
            return
        try:
            await self._accept(exchange, lambda more: (agreed_head(agreed, more), splice.client))
        except BaseException:
            splice.abort()
            raise
        exchange.splice, exchange.splice_ended = splice, ended
        one = self._spliced.leads_to(exchange)
        assert one is not None
        self._spliced.lingering.keep(one, origin, target)

    async def _relay_spliced(self, exchange: Exchange) -> None:
        """As _relay_socket."""
        splice, ended = exchange.splice, exchange.splice_ended
        if splice is None or ended is None:
            return
        exchange.inbound = exchange.handshake = None
        self._access.enter(exchange)
        try:
            await self._spliced.relay(exchange, splice, ended)
        finally:
            self._access.leave(exchange)
            exchange.splice = exchange.splice_ended = None
