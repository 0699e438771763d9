"""The life of one request, phase by phase:

    match -> authenticate -> read -> admit -> forward -> relay and observe -> settle

Each phase may refuse (docs/architecture.md has the table); whatever happens, a reservation that was granted
is resolved once, on every exit, and the exchange ends in one canonical line.

Who leaves when. The client: the vendor's answer is read to its end by the same task, bounded in number and
time, because vendors bill it and only its end carries exact usage. The vendor: what was seen is booked as an
estimate, and the client never sees a clean end. Ourselves: the hold expires at its last checkpoint.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from metering.admission import Admission, Caller, Claim, OwnersChangedError, not_during, repeat_running
from metering.clock import Clock
from metering.errors import Reason, Refused
from metering.ids import new_id
from metering.ledger import Ledger, Outcome
from metering.objects import Objects
from metering.prices import PriceTable
from proxy.access import Access
from proxy.answering import Answering, has_gate
from proxy.auth import Authenticator
from proxy.booking import Booking
from proxy.bounds import Bounds
from proxy.deferral import Deferrals
from proxy.downstream import Connection
from proxy.drains import Drains
from proxy.exchange import AUTHENTICATE, FORWARD, READ, ClientLeftError, Exchange
from proxy.handshakes import Handshake
from proxy.headers import accepts_gzip, asks_for_websocket, has_header
from proxy.holds import Holds
from proxy.mounted import Mounted
from proxy.opening import Opening
from proxy.ownership import check_choice, check_owner, fill
from proxy.preparation import KEY_HEADER, Preparation
from proxy.query import value_of, without
from proxy.reading import Reading
from proxy.relay import send_body
from proxy.replies import JSON_TYPE, Replies
from proxy.request import Request
from proxy.rewriting import body_of, tag_of
from proxy.silence import SilenceKeeper
from proxy.spliced_sockets import SplicedSockets
from proxy.surface import Headers, SplicedSocket
from proxy.telemetry import Telemetry
from proxy.upstream import CancelledUnsent, OpenAnswer, Origin, Timeouts, UpstreamClient, UpstreamError
from proxy.websocket import Sockets

logger = logging.getLogger(__name__)

LOST_ANSWERS_MAX = 1
"""How often an answer that was lost is asked for again, where the vendor does nothing twice."""
CHECKPOINTS_PER_TURN = 50
"""Streams checkpointed before other work gets its turn on the event loop."""
IDLE_TURNS_MAX, IDLE_TURN_S = 200, 0.01
"""How long the end of the process waits for cancelled exchanges: they only have to queue their settle."""
OK = 200
CLIENT_CLOSED_REQUEST = 499
"""nginx's word, in logs and metrics only: the client left before it was told anything."""
EARLY_HEAD: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]
UpRequest = tuple[Origin, bytes, bytes, Headers, bytes, Timeouts]
"""What `UpstreamClient.open` takes, in its order."""


class Engine:
    """The phases, with everything they need. One per process."""

    def __init__(
        self,
        *,
        bounds: Bounds,
        authenticator: Authenticator,
        admission: Admission,
        ledger: Ledger,
        prices: PriceTable,
        client: UpstreamClient,
        telemetry: Telemetry,
        clock: Clock,
        objects: Objects,
        deferrals: Deferrals,
        preparation: Preparation,
        access: Access,
        spliced: SplicedSockets,
    ) -> None:
        self._bounds = bounds
        self._authenticator = authenticator
        self._admission = admission
        self._client = client
        self._telemetry = telemetry
        self._clock = clock
        self._objects = objects
        self._deferrals = deferrals
        self._preparation = preparation
        self._access = access
        self.spliced = spliced
        self.sockets = Sockets(
            objects=objects,
            preparation=preparation,
            telemetry=telemetry,
            per_user=bounds.sockets_per_user,
            at_most=bounds.sockets_max,
        )
        self._open: set[Exchange] = set()
        self._drains = Drains(bounds=bounds, telemetry=telemetry)
        self._reading = Reading(bounds=bounds, admission=admission)
        self._holds = Holds(bounds=bounds, prices=prices, admission=admission, clock=clock)
        self._booking = Booking(
            bounds=bounds,
            prices=prices,
            ledger=ledger,
            admission=admission,
            deferrals=deferrals,
            clock=clock,
        )
        self._replies = Replies(booking=self._booking, admission=admission, clock=clock)
        self._answering = Answering(
            bounds=bounds,
            booking=self._booking,
            replies=self._replies,
            holds=self._holds,
            drains=self._drains,
            objects=objects,
            deferrals=deferrals,
            tickets=spliced.tickets,
            telemetry=telemetry,
        )
        self._opening = Opening(
            bounds=bounds,
            booking=self._booking,
            replies=self._replies,
            answering=self._answering,
            client=client,
            access=access,
            sockets=self.sockets,
            spliced=spliced,
            handle=self.handle,
        )
        self.is_stopping = False
        """New requests are refused; those under way finish."""

    def stop_admitting(self) -> None:
        """The process is about to end. A websocket has no end of its own to wait for."""
        self.is_stopping = True
        self.sockets.stop()
        self.spliced.stop()

    # --- one exchange --------------------------------------------------------------------------------

    async def handle(self, mounted: Mounted, path: bytes, connection: Connection, request: Request) -> None:
        """Serve one request below a surface's mount; `path` is what follows the mount, raw."""
        request_id = new_id("req", self._clock.now_ms())
        exchange = self._telemetry.exchange(
            mounted.surface, request, connection, request_id, time.monotonic()
        )
        connection.request_id = exchange.request_id
        try:
            await self._serve(exchange, mounted, path)
        except Refused as refused:
            await self._replies.refuse(exchange, refused)
        except ClientLeftError:
            if connection.told is not None:
                exchange.refused, exchange.status = connection.told
            else:
                exchange.outcome = exchange.outcome or Outcome.CLIENT_LEFT
        except asyncio.CancelledError:
            # By our own timer, or by the server at its end, which would log a traceback for what it did itself.
            if not exchange.is_done:  # else the next request of the connection may be under way
                connection.cut()
            exchange.outcome = exchange.outcome or Outcome.TIMED_OUT
        except Exception:
            logger.exception("request %s failed in the proxy", exchange.request_id)
            await self._replies.refuse(
                exchange, Refused(Reason.INTERNAL, "The proxy failed. This is our defect.")
            )
        finally:
            exchange.status = exchange.status or CLIENT_CLOSED_REQUEST
            if exchange.is_deferred:
                self._booking.leave_deferred(exchange)
            if exchange.repeat is not None and exchange.is_done and exchange.refused is None:
                self._preparation.forget(exchange.repeat, exchange.upstream_status)
            if exchange.touches_scheduled and exchange.admitted is not None:
                self._deferrals.scheduling.look_soon(exchange.request_id)
            self._telemetry.finish(exchange, time.monotonic())

    async def _serve(self, exchange: Exchange, mounted: Mounted, path: bytes) -> None:
        if self.is_stopping:
            raise Refused(Reason.DRAINING, "The proxy is restarting; retry shortly.", retry_after_s=2.0)
        request, connection = exchange.request, exchange.connection
        if connection.is_write_paused:  # sent ahead: nothing is done for who does not read what it has
            await connection.drain()
        path, question = mounted.asked(request.method, path)
        is_upgrade = b"upgrade" in request.first and asks_for_websocket(request.headers)
        if is_upgrade and not mounted.is_socket(request.method, path):
            # At once, and by this status: agents (Codex 0.153) try any other several times before they use HTTP.
            message = f"There is no websocket at {exchange.surface.name} here: use HTTP."
            raise Refused(Reason.WEBSOCKET_UNAVAILABLE, message)
        operation, params = mounted.match(request.method, path)
        exchange.operation = operation
        exchange.phase = AUTHENTICATE
        if operation.spliced is not None and operation.spliced.ticket_piece:
            caller = await self._let_in_by_ticket(exchange, mounted, operation.spliced, params)
        else:
            tokens = mounted.token_places_of(operation).find_in(request)
            caller = self._authenticator.known(tokens) or await self._authenticator.authenticate(tokens)
            (exchange.gateway_token,) = tokens
            exchange.access_key = exchange.gateway_token
        exchange.caller = caller
        if caller.token is not None:
            caller.token.require(mounted.surface.name, operation.name)
        exchange.phase = READ
        if question is not None:
            await self._opening.answer_question(exchange, mounted, path, question)
        elif operation.is_websocket:
            await self._serve_websocket(exchange, mounted, path, params)
        else:
            await self._serve_caller(exchange, mounted, path, params)

    async def _serve_websocket(
        self, exchange: Exchange, mounted: Mounted, path: bytes, params: Mapping[str, str]
    ) -> None:
        operation, caller, request = exchange.operation, exchange.caller, exchange.request
        assert operation is not None
        assert caller is not None
        exchange.handshake = Handshake.of(request.headers, request.version)
        if not exchange.connection.may_be_handed_over:  # our parser and the library do not read it alike
            raise Refused(Reason.BAD_REQUEST, "This is no handshake of a websocket.")
        with self.sockets.place(caller.user_id):
            if operation.spliced is not None:
                await self._opening.serve_spliced(
                    exchange, mounted, params, lambda: self._serve_caller(exchange, mounted, path, params)
                )
                return
            await self._serve_caller(exchange, mounted, path, params)
            await self._opening.relay_socket(exchange, mounted)

    async def _let_in_by_ticket(
        self, exchange: Exchange, mounted: Mounted, spliced: SplicedSocket, params: Mapping[str, str]
    ) -> Caller:
        """Whoever has a ticket that stands for a gateway token. Raises Refused."""
        ticket, caller = await self.spliced.let_in(mounted, spliced, params[spliced.ticket_piece])
        exchange.access_key, exchange.leads_to = ticket.token_id, ticket.one.upstream_id
        return caller

    async def _serve_caller(
        self, exchange: Exchange, mounted: Mounted, path: bytes, params: Mapping[str, str]
    ) -> None:
        """Of somebody who may ask this: what is left of the phases."""
        operation, caller = exchange.operation, exchange.caller
        assert operation is not None
        assert caller is not None
        query = self._reading.query_of(exchange, mounted, path)
        credential = mounted.credential(operation)
        reading = self._reading
        exchange.inbound = reading.read_at_once(exchange, params, query) or await reading.read(
            exchange, params, query
        )
        owned = await self._check_owned(exchange, mounted) if operation.is_about_objects else ()
        claims = await self._prepare(exchange, mounted, path) if operation.is_prepared else ()
        request = self._holds.price(exchange, mounted)
        if operation.long_fields and not owned:  # what names nothing is not checked again
            exchange.inbound.let_go(operation.long_fields)
        steps = self._deferrals.scheduling.steps(exchange) if operation.is_about_scheduled else ()
        if operation.timed is not None:
            steps = (self._deferrals.opening(exchange),)
        if exchange.is_scheduled and exchange.repeat is None:
            exchange.repeat = await self._preparation.name_of(exchange, path)
            if exchange.repeat is not None and exchange.repeat.claim is not None:
                claims = (*claims, Claim(exchange.repeat.claim, repeat_running()))
        try:
            exchange.admitted = await self._admission.admit(caller, request, *claims, *owned, steps=steps)
        except OwnersChangedError:  # once more, by what the store says now
            await self._authenticator.look_for_changes()
            owned = await self._check_owned(exchange, mounted)
            exchange.admitted = await self._admission.admit(caller, request, *claims, *owned, steps=steps)
        exchange.admitted_s = time.monotonic()
        exchange.phase = FORWARD
        self._enter(exchange)
        try:
            if exchange.connection.is_gone:
                self._booking.void(exchange)
                raise ClientLeftError
            if operation.spliced is not None:
                await self._opening.open_spliced(exchange, mounted)
            elif exchange.handshake is not None:
                await self._opening.open_socket(exchange, mounted, path, credential)
            else:
                await self._forward(exchange, mounted, path, credential)
        finally:
            self._leave(exchange)

    async def _check_owned(self, exchange: Exchange, mounted: Mounted) -> Sequence[Claim]:
        """Refuse what names another user's objects. The claim that makes the reservation of what names any of the
        user's own, or needs their home, stand on nothing that was released meanwhile."""
        operation, caller, inbound = exchange.operation, exchange.caller, exchange.inbound
        assert operation is not None
        assert caller is not None
        assert inbound is not None
        if operation.chooses is not None:
            vendor = mounted.surface.provider
            await check_choice(self._objects, vendor, caller.user_id, operation.chooses, inbound)
        if not (operation.names or operation.homes or operation.fills):
            return ()
        heard_seq, user_id, vendor = self._objects.heard_seq, caller.user_id, mounted.surface.provider
        is_naming = await check_owner(self._objects, vendor, user_id, operation.names, inbound)
        if operation.fills:
            exchange.says |= await fill(self._objects, vendor, user_id, operation.fills, inbound)
            inbound.fields = {**inbound.fields, **exchange.says}
            is_naming = True
        if not is_naming and not operation.homes:
            return ()
        return (Claim(self._objects.unchanged(user_id, heard_seq), OwnersChangedError()),)

    async def _prepare(self, exchange: Exchange, mounted: Mounted, path: bytes) -> Sequence[Claim]:
        """What some operations must know before they are priced; what they claim with the reservation."""
        operation = exchange.operation
        assert operation is not None
        assert exchange.caller is not None
        claims = [one for one in (self._preparation.one_more(exchange, mounted),) if one is not None]
        if operation.is_idempotent:
            exchange.repeat = await self._preparation.repeat_of(exchange, path)
            if exchange.repeat.claim is None:  # nothing is priced, and what it was about may be gone
                return claims
            claims.append(Claim(exchange.repeat.claim, repeat_running()))
        if operation.not_during:
            user_id = exchange.caller.user_id
            claims.append(
                not_during(exchange.request_id, user_id, mounted.surface.name, operation.not_during)
            )
        if operation.looks_up is not None:
            with self._reading.waiting(exchange):
                await self._preparation.look_up(exchange, mounted, path)
        if operation.told_at is not None:
            await self._preparation.tell_where(exchange, operation.told_at, self._bounds.public_url)
        if operation.links is not None:
            await self.spliced.tickets.prepare()
        if operation.keeps is not None:
            await self._preparation.find_own_ids(exchange, mounted)
        if operation.timed is not None:
            assert exchange.inbound is not None
            exchange.inbound.time_left_s = await self._holds.time_left_s(exchange, mounted, operation.timed)
        return claims

    # --- admit ---------------------------------------------------------------------------------------

    def _enter(self, exchange: Exchange) -> None:
        self._open.add(exchange)
        if exchange.demand.is_streaming or exchange.handshake is not None:
            self._access.enter(exchange)
        self._telemetry.open_exchanges.inc()
        task = asyncio.current_task()
        assert task is not None
        exchange.on_client_gone = lambda: self._client_left(exchange, task)
        exchange.connection.watch(exchange.on_client_gone)

    def _leave(self, exchange: Exchange) -> None:
        """The last word: no exit without a resolution."""
        assert exchange.on_client_gone is not None
        exchange.connection.unwatch(exchange.on_client_gone)
        # They hold the exchange: a cycle for each request otherwise.
        exchange.on_client_gone = exchange.on_access_lost = None
        if exchange.demand.is_streaming or exchange.handshake is not None:
            self._access.leave(exchange)
        self._open.discard(exchange)
        self._telemetry.open_exchanges.dec()
        if exchange.drain_timer is not None:
            self._drains.leave(exchange)
        if exchange.settled is None and not exchange.is_forwarded:
            self._booking.void(exchange)
        elif exchange.settled is None:
            outcome = Outcome.CLIENT_LEFT if exchange.client_left else Outcome.TIMED_OUT
            if exchange.is_done and not exchange.client_left:  # told that the rest is withheld
                outcome = Outcome.UPSTREAM_FAILED
            try:
                self._booking.settle(
                    exchange, outcome, self._booking.known_usage(exchange), notes=("interrupted",)
                )
            except Exception:  # a defect of a reader must not leave a hold behind
                logger.exception("request %s: its usage cannot be read", exchange.request_id)
                self._booking.settle(
                    exchange,
                    outcome,
                    exchange.demand.floor,
                    notes=("usage_unreadable",),
                    at_least_nanousd=exchange.checkpoint_nanousd,
                )

    def _client_left(self, exchange: Exchange, task: "asyncio.Task[Any]") -> None:
        """Read on for the meter, for so long; or not at all when too many are being read on already."""
        if exchange.is_done:
            return
        exchange.client_left = True
        if exchange.handshake is not None:  # nothing comes that anybody could need
            task.cancel()
        else:
            self._drains.bound(exchange, task)

    # --- forward -------------------------------------------------------------------------------------

    async def _forward(
        self, exchange: Exchange, mounted: Mounted, path: bytes, credential: tuple[bytes, bytes]
    ) -> None:
        operation = exchange.operation
        assert operation is not None
        silence = self._silence_keeper(exchange) if exchange.demand.is_streaming else None
        try:
            if operation.upstream_path:
                path = await self._path_up(exchange, mounted, path)
            if operation.not_during:
                await self._look_again(exchange, mounted, path)
            try:
                if exchange.repeat is None and not operation.is_repeatable:
                    # Named by nobody here: its body is nobody's any more when it is written.
                    answer = await self._client.open(*self._request_up(exchange, mounted, path, credential))
                else:
                    answer = await self._ask(exchange, self._request_up(exchange, mounted, path, credential))
            except UpstreamError as error:
                raise self._answering.no_answer(exchange, error) from error
            except CancelledUnsent:
                self._booking.void(exchange)
                raise
            try:
                await self._answering.answer(exchange, mounted, answer, silence)
            finally:
                answer.close()
        finally:
            if silence is not None:
                await silence.hush()

    async def _path_up(self, exchange: Exchange, mounted: Mounted, path: bytes) -> bytes:
        """Where the vendor has another path than we."""
        operation, inbound = exchange.operation, exchange.inbound
        assert operation is not None
        assert inbound is not None
        pieces = dict(await self._preparation.homes_of(exchange, mounted))
        if operation.in_path:
            pieces |= {name: value_of(name, inbound.query) or "" for name in operation.in_path}
            inbound.query = without(operation.in_path, inbound.query)
        return mounted.upstream_path(operation, path, pieces)

    def _request_up(
        self, exchange: Exchange, mounted: Mounted, path: bytes, credential: tuple[bytes, bytes]
    ) -> UpRequest:
        """What goes up. From here on the vendor may see it."""
        operation, inbound = exchange.operation, exchange.inbound
        assert operation is not None
        assert inbound is not None
        request = exchange.request
        headers = mounted.request_filter.passed(request.headers, secret=exchange.gateway_token)
        headers += [pair for pair in mounted.fixed_headers if not has_header(headers, pair[0])]
        is_plain_needed = has_gate(exchange) or self._holds.unseen_tokens(exchange) is not None
        is_gzip_fine = not is_plain_needed and accepts_gzip(request)
        headers += ((b"accept-encoding", b"gzip" if is_gzip_fine else b"identity"), credential)
        if operation.is_idempotent and exchange.repeat is not None:
            headers.append((KEY_HEADER, exchange.repeat.upstream_key.encode()))
        if exchange.is_scheduled:
            self._mark(exchange)
        target = path + b"?" + inbound.query if inbound.query else path
        exchange.is_forwarded = True
        body = inbound.forget_body()  # streams are many and long: the body is not kept beside them
        if exchange.demand.body is not None:
            if not body and not has_header(headers, b"content-type"):
                headers.append(JSON_TYPE)
            body = exchange.demand.body
            exchange.demand = replace(exchange.demand, body=None)
        return mounted.origin, operation.method.encode(), target, headers, body, mounted.timeouts

    def _mark(self, exchange: Exchange) -> None:
        """Put the tag into the body by which the work will be found that this request schedules."""
        operation, inbound, caller = exchange.operation, exchange.inbound, exchange.caller
        assert operation is not None
        assert operation.scheduled is not None
        assert inbound is not None
        assert caller is not None
        fields = {**inbound.fields, **operation.scheduled.marked(inbound, exchange.request_id)}
        name_field = operation.scheduled.name_field
        if exchange.repeat is not None and fields.get(name_field) is None:
            fields[name_field] = tag_of(exchange.repeat.upstream_key)
        body = body_of(operation, fields, user_id=caller.user_id, request_id=exchange.request_id)
        exchange.demand = replace(exchange.demand, body=body or orjson.dumps(fields))

    async def _look_again(self, exchange: Exchange, mounted: Mounted, path: bytes) -> None:
        """Whether what was priced is still what it was: from the reservation on, nothing changes it. Raises Refused."""
        operation, inbound, repeat = exchange.operation, exchange.inbound, exchange.repeat
        assert operation is not None
        assert inbound is not None
        if operation.looks_up is None or (repeat is not None and repeat.is_done):
            return
        await self._preparation.look_up(exchange, mounted, path)
        if operation.meter.read(inbound, self._holds.pricing(mounted)).ceiling != exchange.demand.ceiling:
            raise Refused(Reason.CONFLICT, "It was changed meanwhile.", retry_after_s=1.0)

    async def _ask(self, exchange: Exchange, request: UpRequest) -> OpenAnswer:
        """The vendor's answer. One that was lost is asked for again where the vendor does nothing twice."""
        lost: list[UpstreamError] = []
        while True:
            try:
                return await self._client.open(*request)
            except UpstreamError as error:
                if lost and not error.is_sent:  # this time; but it was before
                    raise lost[0] from error
                if not error.is_sent or not self._preparation.may_ask_again(exchange):
                    raise
                exchange.is_lost = True
                lost.append(error)
                if len(lost) > LOST_ANSWERS_MAX:
                    raise
            except CancelledUnsent:
                if lost:
                    raise asyncio.CancelledError from None
                raise

    def _silence_keeper(self, exchange: Exchange) -> SilenceKeeper | None:
        """Of a stream, where its dialect has a comment."""
        comment = exchange.surface.dialect.stream_comment
        if comment is None:
            return None

        async def speak() -> None:
            if (
                exchange.connection.is_write_paused
            ):  # it has more to read than it takes; and no wait may be cut
                return
            if not exchange.head_is_out:
                self._replies.begin(exchange, OK, EARLY_HEAD)
            await send_body(exchange, comment, is_last=False)

        keeper = SilenceKeeper(self._bounds.stream_silence_s, speak)
        keeper.start()
        return keeper

    # --- background --------------------------------------------------------------------------------------

    async def checkpoint_open_streams(self) -> None:
        """Note durably what open streams have used, so that our death loses little."""
        for index, exchange in enumerate(list(self._open)):
            try:
                self._booking.checkpoint(exchange)
            except Exception:  # one bad exchange must not end the checkpoints of all others
                logger.exception("request %s could not be checkpointed", exchange.request_id)
            if index % CHECKPOINTS_PER_TURN == CHECKPOINTS_PER_TURN - 1:
                await asyncio.sleep(0)

    async def keep_checkpointing(self) -> None:
        while True:
            await asyncio.sleep(self._bounds.checkpoint_s)
            await self.checkpoint_open_streams()

    async def wait_until_idle(self) -> None:
        """Let exchanges that were cancelled book themselves, before the ledger is closed under them."""
        for _ in range(IDLE_TURNS_MAX):
            if not self._open:
                return
            await asyncio.sleep(IDLE_TURN_S)
        logger.error("%d exchanges are still open at the end: their holds will expire", len(self._open))

    @property
    def open_exchanges(self) -> int:
        return len(self._open)
