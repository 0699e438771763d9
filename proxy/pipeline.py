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
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import orjson

from metering.admission import (
    NO_QUOTAS,
    Admission,
    Caller,
    Claim,
    OwnersChangedError,
    Request,
    not_during,
    repeat_running,
)
from metering.clock import Clock
from metering.errors import Reason, Refused
from metering.ids import new_id
from metering.ledger import MONEY, NO_COST, Ledger, Outcome, Resolved, Settlement, bounded
from metering.objects import ObjectId, Objects
from metering.plans import SOFT
from metering.prices import PriceTable
from metering.quotas import quotas_used
from metering.rate_state import Standing
from metering.repeats import REQUEST_TIMEOUT, SERVER_ERROR, is_unsure
from metering.store.writer import Done, Result
from metering.usage import NOTHING, Usage, UsageLine
from proxy import forbidden
from proxy.access import Access
from proxy.auth import Authenticator, conceal_tokens
from proxy.bounds import Bounds
from proxy.decoding import decoder_for
from proxy.deferral import Deferrals
from proxy.downstream import BODILESS, CONNECTION, Connection, Successor
from proxy.exchange import Exchange, Receive, Scope
from proxy.gate import BodyGate, EventGate, Gate
from proxy.handshakes import AnsweredError, Handshake, dial, handshake_headers
from proxy.headers import accepts_gzip, asks_for_websocket, is_said_to_be_json
from proxy.inner import InnerConnection, inner_scope, nothing_more
from proxy.limit_headers import limit_headers
from proxy.links import base_of, relinker, websocket_url
from proxy.mounted import Mounted
from proxy.ownership import check_choice, check_owner, fill
from proxy.preparation import KEY_HEADER, Preparation
from proxy.query import at_most, value_of, without
from proxy.query import check as check_query
from proxy.relay import Relay, send_body
from proxy.rewriting import body_of, shown, tag_of
from proxy.silence import SilenceKeeper
from proxy.slices import Slices
from proxy.splice import Splice
from proxy.splice_handshake import agreed_head, dial_spliced
from proxy.spliced_sockets import SplicedSockets
from proxy.surface import (
    NO_DEMAND,
    AnswerHead,
    Demand,
    Headers,
    Inbound,
    Links,
    Operation,
    Pricing,
    Question,
    Rendered,
    SplicedSocket,
    Timed,
)
from proxy.telemetry import Telemetry
from proxy.upstream import Answer, Broken, CancelledUnsent, TimedOut, UpstreamClient, UpstreamError
from proxy.websocket import Sockets

logger = logging.getLogger(__name__)
T = TypeVar("T")
S = TypeVar("S", bound=Successor)

ERROR_BODY_BYTES_MAX = 1024 * 1024
"""A vendor's error answer is read whole up to here, to see whether it is about our own account."""
VALUES_MAX = 1_000_000
"""Commas and opening brackets of a JSON body. No model reads a text with so many, and a body full of `{}` would
stop the event loop for seconds while it is parsed and looked through."""
LOST_ANSWERS_MAX = 1
"""How often an answer that was lost is asked for again, where the vendor does nothing twice."""
CHECKPOINTS_PER_TURN = 50
"""Streams checkpointed before other work gets its turn on the event loop."""
IDLE_TURNS_MAX, IDLE_TURN_S = 200, 0.01
"""How long the end of the process waits for cancelled exchanges: they only have to queue their settle."""
SECONDS_PER_HOUR = 3_600
SWITCHING_PROTOCOLS = 101
CLIENT_CLOSED_REQUEST = 499
"""nginx's word, in logs and metrics only: the client left before it was told anything."""
OK, REDIRECT, NOT_MODIFIED, CLIENT_ERROR, NOT_FOUND = 200, 300, 304, 400, 404
JUDGED = frozenset({400, 422})
"""Errors about a request's content: what is answered so was not done at an earlier try either."""
_LENGTH = frozenset({b"content-length"})
_LENGTH_AND_CODING = _LENGTH | {b"content-encoding"}
JSON_TYPE = (b"content-type", b"application/json")
EARLY_HEAD: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]


class ClientLeftError(Exception):
    """The client closed its connection before its request was forwarded: there is nobody to serve."""


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
        self._ledger = ledger
        self._prices = prices
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
        self._drains = 0
        self._bodies: Counter[str] = Counter()
        """Bodies and look-ups being waited for, by owner (a user, a gateway token with limits); no more than may be in flight."""
        self.is_stopping = False
        """New requests are refused; those under way finish."""

    def stop_admitting(self) -> None:
        """The process is about to end. A websocket has no end of its own to wait for."""
        self.is_stopping = True
        self.sockets.stop()
        self.spliced.stop()

    # --- one exchange --------------------------------------------------------------------------------

    async def handle(self, mounted: Mounted, path: bytes, scope: Scope, receive: Receive) -> None:
        """Serve one request below a surface's mount; `path` is what follows the mount, raw."""
        connection: Connection = scope["extensions"][CONNECTION]
        exchange = Exchange(
            surface=mounted.surface,
            scope=scope,
            receive=receive,
            connection=connection,
            request_id=new_id("req", self._clock.now_ms()),
            started_s=time.monotonic(),
        )
        connection.request_id = exchange.request_id
        try:
            await self._serve(exchange, mounted, path)
        except Refused as refused:
            await self._refuse(exchange, refused)
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
            await self._refuse(exchange, Refused(Reason.INTERNAL, "The proxy failed. This is our defect."))
        finally:
            exchange.status = exchange.status or CLIENT_CLOSED_REQUEST
            if exchange.is_deferred:
                self._leave_deferred(exchange)
            if exchange.repeat is not None and exchange.is_done and exchange.refused is None:
                self._preparation.forget(exchange.repeat, exchange.upstream_status)
            if exchange.touches_scheduled and exchange.admitted is not None:
                self._deferrals.scheduling.look_soon(exchange.request_id)
            self._telemetry.finish(exchange, time.monotonic())

    def _leave_deferred(self, exchange: Exchange) -> None:
        """The request is over, its work may go on."""
        _leave_to_poll(exchange)
        self._charge(exchange)
        if exchange.client_left and exchange.operation is not None and exchange.operation.timed is not None:
            self._deferrals.leave_open(exchange)  # nobody was told of it

    async def _serve(self, exchange: Exchange, mounted: Mounted, path: bytes) -> None:
        if self.is_stopping:
            raise Refused(Reason.DRAINING, "The proxy is restarting; retry shortly.", retry_after_s=2.0)
        await exchange.connection.drain()  # sent ahead: nothing is done for who does not read what it has
        scope = exchange.scope
        path, question = mounted.asked(scope["method"], path)
        if asks_for_websocket(scope["headers"]) and not mounted.is_socket(scope["method"], path):
            # At once, and by this status: agents (Codex 0.153) try any other several times before they use HTTP.
            message = f"There is no websocket at {exchange.surface.name} here: use HTTP."
            raise Refused(Reason.WEBSOCKET_UNAVAILABLE, message)
        exchange.operation, params = mounted.match(scope["method"], path)
        exchange.caller = await self._let_in(exchange, mounted, params)
        if (terms := exchange.caller.token) is not None:
            terms.require(mounted.surface.name, exchange.operation.name)
        if question is not None:
            await self._answer_question(exchange, mounted, path, question)
            return
        if not exchange.operation.is_websocket:
            await self._serve_caller(exchange, mounted, path, params)
            return
        exchange.handshake = Handshake.of(scope["headers"], scope["http_version"])
        if not exchange.connection.may_be_handed_over:  # our parser and the library do not read it alike
            raise Refused(Reason.BAD_REQUEST, "This is no handshake of a websocket.")
        with self.sockets.place(exchange.caller.user_id):
            if exchange.operation.spliced is not None:
                await self._serve_spliced(exchange, mounted, path, params)
                return
            await self._serve_caller(exchange, mounted, path, params)
            await self._relay_socket(exchange, mounted)

    async def _let_in(self, exchange: Exchange, mounted: Mounted, params: Mapping[str, str]) -> Caller:
        """Who is calling, by their gateway token or by a ticket. Raises Refused."""
        operation, scope = exchange.operation, exchange.scope
        assert operation is not None
        if operation.spliced is not None and operation.spliced.ticket_piece:
            ticket, caller = await self.spliced.let_in(
                mounted, operation.spliced, params[operation.spliced.ticket_piece]
            )
            exchange.access_key, exchange.leads_to = ticket.token_id, ticket.one.upstream_id
            return caller
        tokens = mounted.token_places_of(operation).find(scope["headers"], scope["query_string"])
        caller = await self._authenticator.authenticate(tokens)
        (exchange.gateway_token,) = tokens
        exchange.access_key = exchange.gateway_token
        return caller

    async def _serve_caller(
        self, exchange: Exchange, mounted: Mounted, path: bytes, params: Mapping[str, str]
    ) -> None:
        """Of somebody who may ask this: what is left of the phases."""
        assert exchange.operation is not None
        assert exchange.caller is not None
        query = self._query_of(exchange, mounted, path)
        credential = mounted.credential(exchange.operation)
        exchange.inbound = await self._read(exchange, params, query)
        owned = await self._check_owned(exchange, mounted)
        claims = await self._prepare(exchange, mounted, path) if exchange.operation.is_prepared else ()
        request = self._price(exchange, mounted)
        steps = self._deferrals.scheduling.steps(exchange) if exchange.operation.is_about_scheduled else ()
        if exchange.operation.timed is not None:
            steps = (self._deferrals.opening(exchange),)
        if exchange.is_scheduled and exchange.repeat is None:
            exchange.repeat = await self._preparation.name_of(exchange, path)
            if exchange.repeat is not None and exchange.repeat.claim is not None:
                claims = (*claims, Claim(exchange.repeat.claim, repeat_running()))
        try:
            exchange.admitted = await self._admission.admit(
                exchange.caller, request, *claims, *owned, steps=steps
            )
        except OwnersChangedError:  # once more, by what the store says now
            await self._authenticator.look_for_changes()
            owned = await self._check_owned(exchange, mounted)
            exchange.admitted = await self._admission.admit(
                exchange.caller, request, *claims, *owned, steps=steps
            )
        exchange.admitted_s = time.monotonic()
        self._enter(exchange)
        try:
            if exchange.connection.is_gone:
                self._void(exchange)
                raise ClientLeftError
            if exchange.operation.spliced is not None:
                await self._open_spliced(exchange, mounted)
            elif exchange.handshake is not None:
                await self._open_socket(exchange, mounted, path, credential)
            else:
                await self._forward(exchange, mounted, path, credential)
        finally:
            self._leave(exchange)

    def _query_of(self, exchange: Exchange, mounted: Mounted, path: bytes) -> bytes:
        """The query as it goes up, without the gateway token. Raises Refused(BAD_REQUEST)."""
        operation, token = exchange.operation, exchange.gateway_token
        assert operation is not None
        query = mounted.token_places_of(operation).removed(exchange.scope["query_string"])
        if token and any(token in unquote_to_bytes(part) for part in (path, query)):
            raise Refused(Reason.BAD_REQUEST, "The gateway token does not belong into the URL.")
        if query and operation.query is not None:
            check_query(operation.query, query)
        if not operation.at_most_in_query:
            return query
        return at_most({name: int(mounted.options[env]) for name, env in operation.at_most_in_query}, query)

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
            with self._waiting(exchange):
                await self._preparation.look_up(exchange, mounted, path)
        if operation.told_at is not None:
            await self._preparation.tell_where(exchange, operation.told_at, self._bounds.public_url)
        if operation.links is not None:
            await self.spliced.tickets.prepare()
        if operation.keeps is not None:
            await self._preparation.find_own_ids(exchange, mounted)
        if operation.timed is not None:
            assert exchange.inbound is not None
            exchange.inbound.time_left_s = await self._time_left_s(exchange, mounted, operation.timed)
        return claims

    async def _time_left_s(self, exchange: Exchange, mounted: Mounted, timed: Timed) -> int:
        """How long what costs by the second may run, as the accounts stand now. Only a bound for the vendor: what is granted is
        granted slice by slice."""
        assert exchange.operation is not None
        assert exchange.caller is not None
        hour = Usage((UsageLine(timed.product, {timed.unit: SECONDS_PER_HOUR}),))
        price = self._prices.price(mounted.surface.provider, hour, at_ms=self._clock.now_ms()).cost_nanousd
        left = await self._admission.left(exchange.caller, exchange.operation.quotas)
        seconds = [left[meter] for meter in exchange.operation.quotas]
        if MONEY in left and price:
            seconds.append(left[MONEY] * SECONDS_PER_HOUR // price)
        return min(seconds, default=SECONDS_PER_HOUR * 24)

    # --- read ----------------------------------------------------------------------------------------

    async def _read(self, exchange: Exchange, params: Any, query: bytes) -> Inbound:
        """The body, bounded, as it came; and its fields where there is one."""
        scope, operation = exchange.scope, exchange.operation
        assert operation is not None
        inbound = Inbound(scope["method"], params, query, scope["headers"], b"", {})
        if inbound.method == "GET":
            if not exchange.connection.has_whole_request:
                await self._body(exchange)  # not passed on; but what is not whole, or breaks, is no request
            return inbound
        if inbound.header(b"content-encoding") not in {b"", b"identity"}:
            raise Refused(Reason.BAD_REQUEST, "Content-Encoding: request bodies must be sent uncompressed.")
        if not operation.takes_any_body and not is_said_to_be_json(inbound.headers):
            raise Refused(Reason.BAD_REQUEST, "Content-Type: must be application/json, in UTF-8.")
        length = inbound.header(b"content-length")
        if length.isdigit() and int(length) > self._bounds.body_bytes_max:
            raise self._too_large()
        inbound.body = await self._body(exchange)
        if operation.takes_any_body or (not inbound.body and operation.may_lack_body):
            return inbound
        inbound.fields = _json_object(inbound.body)
        forbidden.check(operation.forbidden, inbound)
        return inbound

    async def _body(self, exchange: Exchange) -> bytes:
        if exchange.connection.has_whole_request:  # the usual case needs no timer
            return await self._body_pieces(exchange.receive)
        with self._waiting(exchange):
            try:
                async with asyncio.timeout(self._bounds.body_timeout_s):
                    return await self._body_pieces(exchange.receive)
            except TimeoutError:
                seconds = self._bounds.body_timeout_s
                raise Refused(
                    Reason.BAD_REQUEST, f"The request's body did not arrive within {seconds:g} seconds."
                ) from None

    @contextmanager
    def _waiting(self, exchange: Exchange) -> Iterator[None]:
        """Waiting before admission, for a body or for what must be looked up: within the caller's limits, as what is
        admitted. Raises Refused."""
        caller, operation = exchange.caller, exchange.operation
        assert caller is not None
        assert operation is not None
        is_free = operation.meter.is_free
        self._admission.check_before_body(caller, exchange.surface.name, self._bodies, is_free=is_free)
        owners = [owner for owner, _ in caller.owners]
        self._bodies.update(owners)
        try:
            yield
        finally:
            self._bodies.subtract(owners)
            for owner in owners:
                if not self._bodies[owner]:
                    del self._bodies[owner]

    async def _body_pieces(self, receive: Receive) -> bytes:
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            pieces, size = [body], len(body)
            while message.get("more_body"):
                message = await receive()
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                if size > self._bounds.body_bytes_max:
                    raise self._too_large()
            body = b"".join(pieces)
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        if len(body) > self._bounds.body_bytes_max:
            raise self._too_large()
        return body

    def _too_large(self) -> Refused:
        limit = self._bounds.body_bytes_max
        return Refused(Reason.TOO_LARGE, f"The request's body is longer than {limit:,} bytes.")

    # --- admit ---------------------------------------------------------------------------------------

    def _price(self, exchange: Exchange, mounted: Mounted) -> Request:
        """What the request may cost. Fails closed: what cannot be priced is refused."""
        operation, inbound, caller = exchange.operation, exchange.inbound, exchange.caller
        assert operation is not None
        assert inbound is not None
        assert caller is not None
        provider, now_ms = mounted.surface.provider, self._clock.now_ms()
        is_done = exchange.repeat is not None and exchange.repeat.is_done
        demand = NO_DEMAND if is_done else operation.meter.read(inbound, self._pricing(mounted))
        if operation.edits_body or demand.fields is not None:
            fields = inbound.fields if demand.fields is None else demand.fields
            said = body_of(
                operation,
                fields,
                user_id=caller.user_id,
                request_id=exchange.request_id,
                options=mounted.options,
                says=exchange.says,
            )
            if said is None and demand.fields is not None:
                said = orjson.dumps(demand.fields)
            demand = replace(demand, body=said, fields=None)
        exchange.demand = demand
        exchange.is_scheduled = operation.scheduled is not None and demand.scheduled_ms is not None
        exchange.touches_scheduled = operation.touches is not None and not is_done
        at_first = self._held_at_first(exchange, demand, caller.plan.budget)
        held = self._prices.price(provider, at_first, at_ms=now_ms)
        if held.flags:
            raise Refused(
                Reason.MODEL_UNAVAILABLE,
                f"model: {', '.join(demand.models)} ({', '.join(held.flags)})",
                facts={"model": demand.models[0] if demand.models else ""},
            )
        floor = self._prices.price(provider, demand.floor, at_ms=now_ms)
        return Request(
            id=exchange.request_id,
            surface=mounted.surface.name,
            operation=operation.name,
            models=demand.models,
            hold_nanousd=held.cost_nanousd,
            floor_nanousd=floor.cost_nanousd,
            due_in_s=self._due_in_s(operation, demand),
            is_free=operation.meter.is_free,
            quotas=quotas_used(at_first, operation.quotas) if operation.quotas else NO_QUOTAS,
            runs=operation.timed.gauge if operation.timed is not None else "",
            costs_less=demand.costs_less,
            scheduled_ms=demand.scheduled_ms,
        )

    def _due_in_s(self, operation: Operation, demand: Demand) -> float | None:
        """How long a hold lives of which nothing is heard, where its work may go on after its request."""
        if operation.scheduled is not None and demand.scheduled_ms is not None:
            ahead_s = (demand.scheduled_ms - self._clock.now_ms()) / 1000
            return max(ahead_s, 0.0) + operation.scheduled.due_s
        return operation.deferred.due_s if operation.deferred and demand.is_deferred else None

    def _pricing(self, mounted: Mounted) -> Pricing:
        per_token = self._bounds.estimate_bytes_per_token
        return Pricing(self._prices, self._clock.now_ms(), per_token, mounted.options)

    def _held_at_first(self, exchange: Exchange, demand: Demand, budget: str) -> Usage:
        """All that the request may use; of a stream that can be cut, and on a budget that lets all finish, no more
        visible output than a slice; and a slice of what costs by the second."""
        assert exchange.operation is not None
        if exchange.operation.timed is not None:
            return demand.ceiling.with_time_at_most(exchange.operation.timed.slice_s)
        if budget == SOFT:
            return demand.ceiling.with_output_at_most(self._bounds.output_slice_tokens)
        if demand.slicing is None:
            return demand.ceiling
        at_most = demand.slicing.unseen_tokens + self._bounds.output_slice_tokens
        return demand.ceiling.with_output_at_most(at_most)

    def _unseen_tokens(self, exchange: Exchange) -> int | None:
        """Output held beside the slices of a stream; None where it needs no more than its first one."""
        slicing, caller = exchange.demand.slicing, exchange.caller
        if slicing is None or caller is None:
            return None
        unseen_tokens = 0 if caller.plan.budget == SOFT else slicing.unseen_tokens
        most = exchange.demand.ceiling.most_output
        return unseen_tokens if most - unseen_tokens > self._bounds.output_slice_tokens else None

    def _slices(self, exchange: Exchange) -> Slices | None:
        """What grants a stream its output, where not all of it is held."""
        demand, caller, admitted = exchange.demand, exchange.caller, exchange.admitted
        unseen_tokens = self._unseen_tokens(exchange)
        if unseen_tokens is None or demand.slicing is None or caller is None or admitted is None:
            return None
        provider = exchange.surface.provider

        def cost_of(tokens: int) -> int:
            usage = demand.ceiling.with_output_at_most(tokens)
            return self._prices.price(provider, usage, at_ms=self._clock.now_ms()).cost_nanousd

        async def extend(shown_tokens: int, until_tokens: int) -> Refused | None:
            return await self._admission.extend(
                caller,
                admitted.reservation,
                until_nanousd=cost_of(unseen_tokens + until_tokens),
                used_nanousd=cost_of(shown_tokens),
                costs_less=demand.costs_less,
            )

        return Slices(
            demand.slicing,
            slice_tokens=self._bounds.output_slice_tokens,
            ceiling_tokens=demand.ceiling.most_output - unseen_tokens,
            bytes_per_token=self._bounds.output_bytes_per_token,
            extend=extend,
        )

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
        self._access.leave(exchange)
        self._open.discard(exchange)
        self._telemetry.open_exchanges.dec()
        if exchange.drain_timer is not None:
            exchange.drain_timer.cancel()
            self._drains -= 1
            self._telemetry.drains.dec()
        if exchange.settled is None and not exchange.is_forwarded:
            self._void(exchange)
        elif exchange.settled is None:
            outcome = Outcome.CLIENT_LEFT if exchange.client_left else Outcome.TIMED_OUT
            if exchange.is_done and not exchange.client_left:  # told that the rest is withheld
                outcome = Outcome.UPSTREAM_FAILED
            try:
                self._settle(exchange, outcome, self._known_usage(exchange), notes=("interrupted",))
            except Exception:  # a defect of a reader must not leave a hold behind
                logger.exception("request %s: its usage cannot be read", exchange.request_id)
                self._settle(
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
            self._bound_drain(exchange, task)

    def _bound_drain(self, exchange: Exchange, task: "asyncio.Task[Any]") -> None:
        """From now on nobody but the meter reads."""
        loop = asyncio.get_running_loop()
        is_full = self._drains >= self._bounds.drains_max
        wait_s = 0.0 if is_full else self._bounds.drain_after_client_left_s
        exchange.drain_timer = loop.call_later(wait_s, task.cancel)
        self._drains += 1
        self._telemetry.drains.inc()

    # --- forward -------------------------------------------------------------------------------------

    async def _forward(
        self, exchange: Exchange, mounted: Mounted, path: bytes, credential: tuple[bytes, bytes]
    ) -> None:
        silence = self._silence_keeper(exchange)
        try:
            answer = await self._open_answer(exchange, mounted, path, credential)
            try:
                await self._answer(exchange, mounted, answer, silence)
            finally:
                answer.close()
        finally:
            if silence is not None:
                await silence.hush()

    async def _open_answer(
        self, exchange: Exchange, mounted: Mounted, path: bytes, credential: tuple[bytes, bytes]
    ) -> Answer:
        inbound = exchange.inbound
        assert inbound is not None
        headers = mounted.request_filter.passed(inbound.headers, secret=exchange.gateway_token)
        names = {name for name, _ in headers}
        headers += [pair for pair in mounted.fixed_headers if pair[0] not in names]
        is_plain_needed = _has_gate(exchange) or self._unseen_tokens(exchange) is not None
        is_gzip_fine = not is_plain_needed and accepts_gzip(inbound.headers)
        headers.append((b"accept-encoding", b"gzip" if is_gzip_fine else b"identity"))
        headers.append(credential)
        if (
            exchange.repeat is not None
            and exchange.operation is not None
            and exchange.operation.is_idempotent
        ):
            headers.append((KEY_HEADER, exchange.repeat.upstream_key.encode()))
        if exchange.operation is not None and exchange.operation.upstream_path:
            pieces = dict(await self._preparation.homes_of(exchange, mounted))
            if exchange.operation.in_path:
                pieces |= {name: value_of(name, inbound.query) or "" for name in exchange.operation.in_path}
                inbound.query = without(exchange.operation.in_path, inbound.query)
            path = mounted.upstream_path(exchange.operation, path, pieces)
        await self._look_again(exchange, mounted, path)
        if exchange.is_scheduled:
            self._mark(exchange)
        target = path + b"?" + inbound.query if inbound.query else path
        exchange.is_forwarded = True
        body = inbound.forget_body()  # streams are many and long: the body is not kept beside them
        if exchange.demand.body is not None:
            if not body and b"content-type" not in names:
                headers.append(JSON_TYPE)
            body = exchange.demand.body
            exchange.demand = replace(exchange.demand, body=None)
        try:
            return await self._ask(exchange, mounted, target, headers, body)
        except UpstreamError as error:
            raise self._no_answer(exchange, error) from error
        except CancelledUnsent:
            self._void(exchange)
            raise

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
        if not operation.not_during or operation.looks_up is None or (repeat is not None and repeat.is_done):
            return
        await self._preparation.look_up(exchange, mounted, path)
        if operation.meter.read(inbound, self._pricing(mounted)).ceiling != exchange.demand.ceiling:
            raise Refused(Reason.CONFLICT, "It was changed meanwhile.", retry_after_s=1.0)

    async def _ask(
        self, exchange: Exchange, mounted: Mounted, target: bytes, headers: Headers, body: bytes
    ) -> Answer:
        """The vendor's answer. One that was lost is asked for again where the vendor does nothing twice."""
        operation = exchange.operation
        assert operation is not None
        method = operation.method.encode()
        lost: list[UpstreamError] = []
        while True:
            try:
                return await self._client.open(
                    mounted.origin, method, target, headers, body, mounted.timeouts
                )
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

    def _no_answer(self, exchange: Exchange, error: UpstreamError) -> Refused:
        """Nothing was sent: void. Sent, but unanswered: nobody knows what the vendor did, so the input is
        booked as an estimate, and the request is not repeated."""
        is_timeout = isinstance(error, TimedOut)
        if not error.is_sent:
            self._void(exchange)
        else:
            outcome = Outcome.TIMED_OUT if is_timeout else Outcome.UPSTREAM_FAILED
            self._settle(exchange, outcome, self._known_usage(exchange))
        vendor = exchange.surface.name
        exchange.cause = str(error)
        if is_timeout:
            return Refused(Reason.UPSTREAM_TIMEOUT, f"Timeout: {vendor} did not answer in time.")
        message = f"Connection error: {vendor} cannot be reached."
        return Refused(Reason.UPSTREAM_UNREACHABLE, message, retry_after_s=1.0)

    def _silence_keeper(self, exchange: Exchange) -> SilenceKeeper | None:
        comment = exchange.surface.dialect.stream_comment
        if not exchange.demand.is_streaming or comment is None:
            return None

        async def speak() -> None:
            if (
                exchange.connection.is_write_paused
            ):  # it has more to read than it takes; and no wait may be cut
                return
            if not exchange.head_is_out:
                self._begin(exchange, OK, EARLY_HEAD)
            await send_body(exchange, comment, is_last=False)

        keeper = SilenceKeeper(self._bounds.stream_silence_s, speak)
        keeper.start()
        return keeper

    # --- websockets ------------------------------------------------------------------------------------

    async def _open_socket(
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
            raise self._no_answer(exchange, error) from error
        except CancelledUnsent:
            self._void(exchange)
            raise
        except AnsweredError as answer:
            await self._answer_handshake(exchange, mounted, answer)
            return None

    async def _answer_handshake(self, exchange: Exchange, mounted: Mounted, answer: AnsweredError) -> None:
        """The vendor would not open a websocket."""
        exchange.upstream_status = answer.status
        if answer.status < CLIENT_ERROR:
            self._settle(exchange, Outcome.UPSTREAM_FAILED, NOTHING)
            name = mounted.surface.name
            raise Refused(Reason.UPSTREAM_UNREACHABLE, f"{name} answered without a websocket.")
        await self._answer_error(exchange, mounted, answer, AnswerHead(answer.status, answer.headers), None)

    async def _accept(self, exchange: Exchange, accept: Callable[[Headers], tuple[bytes, S]]) -> S:
        """Book that the vendor's websocket is open; then answer the client. What passes on it is no request."""
        assert exchange.caller is not None
        exchange.upstream_status = SWITCHING_PROTOCOLS
        self._settle(exchange, Outcome.CLIENT_LEFT if exchange.client_left else Outcome.COMPLETED, NOTHING)
        await self._durable(exchange)
        if exchange.connection.is_gone:
            raise ClientLeftError
        headers = [(b"x-automna-request-id", exchange.request_id.encode())]
        head, down = accept(headers + self._limit_headers(exchange, exchange.caller))
        exchange.head_is_out, exchange.status = True, SWITCHING_PROTOCOLS
        exchange.connection.hand_over(head, down)
        return down

    async def _relay_socket(self, exchange: Exchange, mounted: Mounted) -> None:
        """Until it ends, which may be in days: it holds no place among requests, and nothing of its handshake."""
        if exchange.sides is None:
            return
        exchange.inbound = exchange.handshake = None
        self._access.enter(exchange)
        try:
            await self.sockets.relay(exchange, mounted, *exchange.sides)
        finally:
            self._access.leave(exchange)
            exchange.sides = None

    # --- spliced websockets ----------------------------------------------------------------------------

    async def _answer_question(
        self, exchange: Exchange, mounted: Mounted, path: bytes, question: Question
    ) -> None:
        """Where the websocket is. The vendor is not asked, and nothing is made for it."""
        scope = exchange.scope
        base = base_of(self._bounds.public_url, scope["headers"], scope["scheme"])
        url = websocket_url(base, mounted, path.decode("ascii"))
        if scope["query_string"]:
            url += f"?{scope['query_string'].decode('ascii')}"
        body = question.says(url)
        exchange.outcome = Outcome.COMPLETED
        self._begin(exchange, OK, [JSON_TYPE, (b"content-length", b"%d" % len(body))])
        await send_body(exchange, body, is_last=True)

    async def _serve_spliced(
        self, exchange: Exchange, mounted: Mounted, path: bytes, params: Mapping[str, str]
    ) -> None:
        """A websocket into what the caller names; or into what waits for its next client, or is made now."""
        operation, caller = exchange.operation, exchange.caller
        assert operation is not None
        assert operation.spliced is not None
        assert caller is not None
        spliced, lingering = operation.spliced, self.spliced.lingering
        named = value_of(spliced.id_param, exchange.scope["query_string"]) if spliced.id_param else None
        if spliced.ticket_piece:
            await self.spliced.spend(mounted, spliced, params[spliced.ticket_piece])
        elif named is not None:
            exchange.leads_to = named
        elif (waiting := await self.spliced.take(mounted, caller)) is not None:
            exchange.leads_to = waiting.upstream_id
        elif not await self._make_for(exchange, mounted, spliced):
            return
        one = self.spliced.leads_to(exchange)
        if one is None:
            raise Refused(Reason.BAD_REQUEST, f"{spliced.id_param}: an id is expected.")
        # What waited, or was made, has this client already; whoever names one may have named another user's.
        is_client = not spliced.ticket_piece and named is None
        try:
            await self._serve_caller(exchange, mounted, path, params)
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
        await self.handle(mounted, path.encode(), inner_scope(exchange, method, path, inner), nothing_more)
        if inner.is_whole and OK <= inner.status < REDIRECT:
            if self.spliced.made(mounted, exchange, bytes(inner.body)):
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

    async def _open_spliced(self, exchange: Exchange, mounted: Mounted) -> None:
        """Open the vendor's websocket with the client's handshake, and book that; from then on only bytes pass."""
        inbound, bounds = exchange.inbound, self._bounds
        assert inbound is not None
        origin, target = await self.spliced.where(mounted, exchange)
        tls = self._client.tls() if origin.scheme == "https" else None
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        splice = Splice(lambda: ended.set_result(None), stall_s=bounds.client_stall_timeout_s)
        dialling = dial_spliced(origin, target, inbound.headers, tls, bounds.connect_timeout_s, splice)
        agreed = await self._dialled(exchange, mounted, dialling)
        if agreed is None:
            return
        try:
            await self._accept(exchange, lambda more: (agreed_head(agreed, more), splice.client))
        except BaseException:
            splice.abort()
            raise
        exchange.splice, exchange.splice_ended = splice, ended
        one = self.spliced.leads_to(exchange)
        assert one is not None
        self.spliced.lingering.keep(one, origin, target)

    async def _relay_spliced(self, exchange: Exchange) -> None:
        """As _relay_socket."""
        splice, ended = exchange.splice, exchange.splice_ended
        if splice is None or ended is None:
            return
        exchange.inbound = exchange.handshake = None
        self._access.enter(exchange)
        try:
            await self.spliced.relay(exchange, splice, ended)
        finally:
            self._access.leave(exchange)
            exchange.splice = exchange.splice_ended = None

    # --- relay and observe -----------------------------------------------------------------------------

    async def _answer(
        self, exchange: Exchange, mounted: Mounted, answer: Answer, silence: SilenceKeeper | None
    ) -> None:
        head = AnswerHead(answer.status, answer.headers)
        is_known = not exchange.is_lost or answer.status < REDIRECT or answer.status in JUDGED
        exchange.upstream_status = answer.status if is_known else None
        request_id = head.header(b"request-id") or head.header(b"x-request-id")
        exchange.upstream_request_id = request_id.decode("latin-1")[:200] or None
        if OK <= answer.status < REDIRECT or answer.status == NOT_FOUND:
            self._note_end(exchange)
        if OK <= answer.status < REDIRECT:
            await self._answer_success(exchange, mounted, answer, head, silence)
        else:
            await self._answer_error(exchange, mounted, answer, head, silence)

    async def _answer_success(
        self,
        exchange: Exchange,
        mounted: Mounted,
        answer: Answer,
        head: AnswerHead,
        silence: SilenceKeeper | None,
    ) -> None:
        operation, inbound = exchange.operation, exchange.inbound
        assert operation is not None
        assert inbound is not None
        if silence is not None:
            await silence.hush()
        is_head_early = exchange.head_is_out
        decoder = decoder_for(head.header(b"content-encoding"))
        exchange.observer = operation.meter.observe(inbound, exchange.demand, head)
        gate, slices = self._gate(exchange, mounted, inbound, head), self._slices(exchange)
        inbound.fields = {}  # as its body
        is_decoded = gate is not None and decoder is not None
        headers = _as_framed(mounted.answer_headers(answer.headers), exchange, is_decoded=is_decoded)

        def begin() -> None:
            if not exchange.head_is_out:
                self._begin(exchange, answer.status, headers)

        if not isinstance(gate, BodyGate):  # which lets nothing pass before all of it can
            begin()
        is_plain = is_head_early or gate is not None or decoder is None
        if silence is not None and is_plain and exchange.observer.at_boundary:  # which a JSON body never is
            silence.start()
        else:
            silence = None
        relay = Relay(
            exchange,
            answer,
            exchange.observer,
            decoder,
            silence=silence,
            begin=begin,
            bind=lambda ids: self._bind(exchange, ids),
            refuse=lambda refused: self._withhold(exchange, refused),
            gate=gate,
            slices=slices,
            is_head_early=is_head_early,
            is_shown=not is_head_early or _is_event_stream(head),
        )

        async def settle(outcome: Outcome) -> None:
            if exchange.settled is not None:  # the end has waited already; what follows it does not
                return
            intact = decoder is None or decoder.is_intact
            self._settle(exchange, outcome, self._known_usage(exchange, is_intact=intact))
            await self._durable(exchange)

        if exchange.demand.is_streaming:
            self._telemetry.open_streams.inc()
        try:
            outcome = await relay.run(settle)
        finally:
            if exchange.demand.is_streaming:
                self._telemetry.open_streams.dec()
        await settle(outcome)
        await self._end(exchange, relay, outcome)

    def _note_end(self, exchange: Exchange) -> None:
        """What the request has deleted at the vendor is no more; what it did not find there was deleted before."""
        operation, inbound, caller = exchange.operation, exchange.inbound, exchange.caller
        if operation is not None and operation.ends is not None and inbound is not None:
            assert caller is not None
            kind, piece = operation.ends
            upstream_id = inbound.path_params[piece].lower()
            self._objects.mark_gone(ObjectId(exchange.surface.provider, kind, upstream_id), caller.user_id)

    def _gate(self, exchange: Exchange, mounted: Mounted, inbound: Inbound, head: AnswerHead) -> Gate | None:
        """What the answer must pass, where its operation has an added event or hands out ids."""
        operation, vendor = exchange.operation, exchange.surface.provider
        if operation is None or not _has_gate(exchange):
            return None
        places = [place for place in operation.hands_out if place.when is None or place.when(inbound)]
        is_stream = exchange.demand.is_streaming and _is_event_stream(head)
        if is_stream and (places or exchange.demand.added_event is not None):
            return EventGate(vendor, exchange.demand.added_event, places)
        edit = self._edit(exchange, mounted)
        return BodyGate(vendor, places, edit) if places or edit is not None else None

    def _edit(self, exchange: Exchange, mounted: Mounted) -> Callable[[bytes], bytes] | None:
        """What makes a body of what the vendor said, where its operation declares that."""
        operation, caller, standing = exchange.operation, exchange.caller, exchange.admitted
        assert operation is not None
        assert caller is not None
        assert standing is not None
        if not operation.edits_answer:
            return None
        edit, renders = shown(operation, caller.user_id, exchange.own_ids), operation.renders
        if operation.links is not None:
            return self._relinked(exchange, mounted, operation.links, caller, edit)
        if operation.replies is not None and exchange.inbound is not None:
            replies, asked = operation.replies, exchange.inbound.fields
            return lambda body: replies(edit(body), standing, asked)
        return edit if renders is None else lambda body: renders(edit(body), standing)

    def _relinked(
        self,
        exchange: Exchange,
        mounted: Mounted,
        links: Links,
        caller: Caller,
        edit: Callable[[bytes], bytes],
    ) -> Callable[[bytes], bytes]:
        """With our addresses; and nothing that repeats a key of the platform's."""
        base = base_of(self._bounds.public_url, exchange.scope["headers"], exchange.scope["scheme"])
        relink = relinker(links, mounted, self.spliced.tickets, caller, base)

        def relinked(body: bytes) -> bytes:
            ours = relink(edit(body))
            if mounted.repeats_key(ours):
                self._telemetry.account_alarm(mounted.surface.name, OK)
                raise Refused(
                    Reason.UPSTREAM_ACCOUNT, f"{mounted.surface.name} answered with what cannot be shown."
                )
            return ours

        return relinked

    async def _withhold(self, exchange: Exchange, refused: Refused) -> None:
        """Tell the client that nothing more comes of an answer that a gate has stopped, and read on as if it had
        left."""
        if exchange.head_is_out and exchange.demand.is_streaming:
            _make_showable(refused)
            exchange.refused = refused
            event = exchange.surface.dialect.stream_error(refused, exchange.request_id)
            await send_body(exchange, event, is_last=True)
        else:
            await self._refuse(exchange, refused)
        task = asyncio.current_task()
        assert task is not None
        if exchange.drain_timer is None:
            self._bound_drain(exchange, task)

    def _bind(self, exchange: Exchange, ids: Sequence[ObjectId]) -> "asyncio.Future[Result]":
        """Give what an answer hands out to its user, and note where its work may go on."""
        assert exchange.caller is not None
        steps = self._deferrals.steps(exchange, ids)
        binding = self._objects.bind(ids, exchange.caller.user_id, exchange.request_id, *steps)
        if steps:
            binding.add_done_callback(lambda done: self._look_at_deferral(exchange, done))
        return binding

    def _look_at_deferral(self, exchange: Exchange, binding: "asyncio.Future[Result]") -> None:
        """Nobody will ask about work whose row could not be written: it is settled now, as what is known of it."""
        if binding.cancelled() or (binding.exception() is None and isinstance(binding.result(), Done)):
            return
        exchange.is_deferred = False
        if exchange.outcome is Outcome.DEFERRED:
            exchange.settled = None
            self._settle(
                exchange, Outcome.UPSTREAM_FAILED, self._known_usage(exchange), notes=("not_polled",)
            )

    async def _end(self, exchange: Exchange, relay: Relay, outcome: Outcome) -> None:
        """End the client's answer as the vendor ended its own; what broke off never ends cleanly."""
        if relay.withheld is not None:  # the client has been told
            return
        if relay.refused is not None:
            await self._end_early(exchange, relay, relay.refused)
            return
        if not relay.is_shown:
            refused = Refused(
                Reason.UPSTREAM_UNREACHABLE, f"{exchange.surface.name} answered without a stream."
            )
            event = exchange.surface.dialect.stream_error(refused, exchange.request_id)
            await send_body(exchange, event, is_last=True)
            return
        if relay.is_whole:
            await relay.finish()
            return
        if not exchange.head_is_out:
            raise _broken_off(exchange.surface.name, is_timeout=outcome is Outcome.TIMED_OUT)
        if exchange.demand.is_streaming and relay.may_append:
            refused = _broken_off(exchange.surface.name, is_timeout=outcome is Outcome.TIMED_OUT)
            event = exchange.surface.dialect.stream_error(refused, exchange.request_id)
            await send_body(exchange, event, is_last=False)
        if not exchange.client_left:
            exchange.connection.cut()

    async def _end_early(self, exchange: Exchange, relay: Relay, refused: Refused) -> None:
        """Tell the client that its stream ends here, and why; where no event can follow, break it off."""
        if not exchange.head_is_out:
            raise refused
        _make_showable(refused)
        exchange.refused = refused
        if relay.may_append:
            event = exchange.surface.dialect.stream_error(refused, exchange.request_id)
            await send_body(exchange, event, is_last=True)
        elif not exchange.client_left:
            exchange.connection.cut()

    async def _answer_error(
        self,
        exchange: Exchange,
        mounted: Mounted,
        answer: Answer,
        head: AnswerHead,
        silence: SilenceKeeper | None,
    ) -> None:
        """A vendor's error: passed on untouched, unless it is about our own account. Not charged, but where an earlier
        try may have been done."""
        body, is_complete = await self._error_body(answer)
        plain = _decoded(body, head.header(b"content-encoding"))
        self._settle(exchange, Outcome.UPSTREAM_FAILED, self._known_usage(exchange))
        self._refuse_instead(mounted, answer, plain or b"")
        if plain is None:  # who knows what it says, and about whom
            name = mounted.surface.name
            raise Refused(Reason.UPSTREAM_UNREACHABLE, f"{name} answered with an error that cannot be read.")
        await self._durable(exchange)
        if silence is not None:
            await silence.hush()
        if exchange.head_is_out:
            event = mounted.surface.dialect.stream_error_from(answer.status, plain, exchange.request_id)
            await send_body(exchange, event, is_last=True)
            return
        headers = mounted.answer_headers(answer.headers)
        shown = mounted.surface.dialect.shown_error(plain)
        if shown is not None:
            headers = [pair for pair in headers if pair[0] not in _LENGTH_AND_CODING]
            headers.append((b"content-length", b"%d" % len(shown)))
            body, is_complete = shown, True
        self._begin(exchange, answer.status, headers)
        await send_body(exchange, body, is_last=is_complete)
        if not is_complete and not exchange.client_left:
            exchange.connection.cut()

    def _refuse_instead(self, mounted: Mounted, answer: Answer, plain: bytes) -> None:
        """Raise the refusal that takes the place of an error which must not go down."""
        name, status = mounted.surface.name, answer.status
        if status < CLIENT_ERROR and status != NOT_MODIFIED:
            # A client that follows would carry its gateway token to wherever the vendor points.
            raise Refused(Reason.UPSTREAM_UNREACHABLE, f"{name} redirected the request elsewhere.")
        refused = mounted.surface.dialect.account_problem(status, plain, answer.headers)
        if refused is None and mounted.repeats_key(plain):
            refused = Refused(Reason.UPSTREAM_ACCOUNT, f"{name} answered with an error that cannot be shown.")
        if refused is not None:
            if refused.reason is not Reason.UPSTREAM_UNREACHABLE:
                self._telemetry.account_alarm(name, status)
            raise refused

    async def _error_body(self, answer: Answer) -> tuple[bytes, bool]:
        """The body of an error, and whether that is all of it."""
        pieces, size = [], 0
        try:
            while chunk := await answer.read():
                pieces.append(chunk)
                size += len(chunk)
                if size > ERROR_BODY_BYTES_MAX:
                    return b"".join(pieces), False
        except (Broken, TimedOut):
            return b"".join(pieces), False
        return b"".join(pieces), True

    # --- settle ----------------------------------------------------------------------------------------

    def _known_usage(self, exchange: Exchange, *, is_intact: bool = True) -> Usage:
        """What is known now: what the observer saw, or what the request alone must have used."""
        operation = exchange.operation
        assert operation is not None
        is_error = exchange.upstream_status is not None and exchange.upstream_status >= REDIRECT
        if operation.meter.is_free or is_error:
            return NOTHING
        if exchange.observer is None:
            return replace(exchange.demand.floor, is_exact=False)
        usage = exchange.observer.usage()
        return usage if is_intact else replace(usage, is_exact=False)

    def _settle(
        self,
        exchange: Exchange,
        outcome: Outcome,
        usage: Usage,
        *,
        notes: tuple[str, ...] = (),
        at_least_nanousd: int = 0,
    ) -> None:
        """Book it, once: a second call finds it done. Queued at once, whatever happens to this task next.

        An estimate stands on all that was seen until now, so no checkpoint bounds it from below: that one may have
        guessed at an output which the vendor has counted since, or does not charge."""
        if exchange.settled is not None:
            return
        operation = exchange.operation
        assert exchange.admitted is not None
        assert operation is not None
        reservation = exchange.admitted.reservation
        if _goes_on(exchange):
            exchange.outcome, exchange.settled = Outcome.DEFERRED, _deferred()
            return
        if operation.timed is not None and _may_run_unknown(exchange):
            exchange.outcome, exchange.settled = Outcome.DEFERRED, self._deferrals.leave_open(exchange)
            return
        if exchange.is_scheduled:
            scheduled_id = _scheduled_id(exchange)
            if scheduled_id is not None:
                exchange.outcome = Outcome.DEFERRED
                exchange.settled = self._deferrals.scheduling.hand_over(exchange, reservation, scheduled_id)
                return
            usage = NOTHING
        priced = self._prices.price(exchange.surface.provider, usage, at_ms=self._clock.now_ms())
        if not usage.is_exact:
            priced = bounded(priced, at_least_nanousd, reservation.hold_nanousd)
        exchange.outcome, exchange.priced = outcome, priced
        exchange.is_estimated, exchange.notes = not usage.is_exact, (*usage.notes, *notes)
        settlement = Settlement(
            outcome,
            priced,
            is_reported=usage.is_exact,
            notes=exchange.notes,
            amounts=quotas_used(usage, operation.quotas) if operation.quotas else NO_QUOTAS,
            price_version=self._prices.version,
            upstream_status=exchange.upstream_status,
            upstream_request_id=exchange.upstream_request_id,
        )
        exchange.settled = self._ledger.settle(reservation, settlement)
        if not exchange.is_deferred:  # else a poll may have been faster, and counts it
            self._charge(exchange)

    def _charge(self, exchange: Exchange) -> None:
        """Count what was booked against the minute's tokens, once."""
        if exchange.priced is not None and exchange.caller is not None and not exchange.is_charged:
            exchange.is_charged = True
            self._admission.charge(exchange.caller, exchange.priced)

    def _void(self, exchange: Exchange) -> None:
        assert exchange.admitted is not None
        exchange.outcome, exchange.priced = Outcome.NOT_SENT, NO_COST
        exchange.settled = self._ledger.void(exchange.admitted.reservation)

    async def _durable(self, exchange: Exchange) -> None:
        """Wait until the settle is committed; a store in trouble delays the end of an answer only so long."""
        settled = exchange.settled
        if settled is None or settled.done():
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def release(_: "asyncio.Future[Resolved] | None" = None) -> None:
            if not waiter.done():
                waiter.set_result(None)

        timer = loop.call_later(self._bounds.settle_wait_s, release)
        settled.add_done_callback(release)
        try:
            await waiter
        finally:
            timer.cancel()
            settled.remove_done_callback(release)

    # --- answers of our own ------------------------------------------------------------------------------

    async def _refuse(self, exchange: Exchange, refused: Refused) -> None:
        """Tell the client why, in the surface's dialect: as a status, or inside a stream that has begun."""
        _make_showable(refused)
        exchange.refused = refused
        dialect = exchange.surface.dialect
        await self._durable(exchange)
        if exchange.client_left or exchange.is_done:
            return
        if not exchange.head_is_out:
            answer: Rendered = dialect.refusal(refused, exchange.request_id)
            length = (b"content-length", str(len(answer.body)).encode())
            self._begin(exchange, answer.status, [*answer.headers, length])
            await send_body(exchange, answer.body, is_last=True)
        elif exchange.observer is None and exchange.demand.is_streaming:
            event = dialect.stream_error(refused, exchange.request_id)
            await send_body(exchange, event, is_last=True)
        else:
            exchange.connection.cut()

    def _begin(self, exchange: Exchange, status: int, headers: Headers) -> None:
        exchange.head_is_out = True
        exchange.status = status
        if exchange.client_left:
            return
        if status in BODILESS:
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        headers = [*headers, (b"x-automna-request-id", exchange.request_id.encode())]
        if exchange.caller is not None:
            headers += self._limit_headers(exchange, exchange.caller)
        exchange.connection.begin(status, headers, is_flushed_soon=exchange.demand.is_streaming)

    def _limit_headers(self, exchange: Exchange, caller: Caller) -> Headers:
        standing: Standing | None = exchange.admitted
        if standing is None:
            left_nanousd = exchange.refused.budget_left_nanousd if exchange.refused is not None else None
            standing = self._admission.standing(caller, left_nanousd)
        now_ms = self._clock.now_ms()
        headers = exchange.surface.dialect.limit_headers(standing, now_ms)
        headers += limit_headers(standing, now_ms)
        return headers

    # --- background --------------------------------------------------------------------------------------

    async def checkpoint_open_streams(self) -> None:
        """Note durably what open streams have used, so that our death loses little."""
        for index, exchange in enumerate(list(self._open)):
            try:
                self._checkpoint(exchange)
            except Exception:  # one bad exchange must not end the checkpoints of all others
                logger.exception("request %s could not be checkpointed", exchange.request_id)
            if index % CHECKPOINTS_PER_TURN == CHECKPOINTS_PER_TURN - 1:
                await asyncio.sleep(0)

    def _checkpoint(self, exchange: Exchange) -> None:
        if exchange.observer is None or exchange.settled is not None or exchange.admitted is None:
            return
        reservation = exchange.admitted.reservation
        usage = self._known_usage(exchange)
        priced = self._prices.price(exchange.surface.provider, usage, at_ms=self._clock.now_ms())
        priced = bounded(priced, exchange.checkpoint_nanousd, reservation.hold_nanousd)
        if priced.cost_nanousd > exchange.checkpoint_nanousd:
            exchange.checkpoint_nanousd = priced.cost_nanousd
            self._ledger.checkpoint(reservation, priced)

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


def _broken_off(vendor: str, *, is_timeout: bool) -> Refused:
    """A vendor's answer that ended too early. Inside a stream there is no status: agents (OpenClaw 2026.9.6) look
    for words such as "connection error" and "timeout" to know that another try may help."""
    if is_timeout:
        return Refused(Reason.UPSTREAM_TIMEOUT, f"Timeout: {vendor} broke off its answer.")
    return Refused(Reason.UPSTREAM_UNREACHABLE, f"Connection error: {vendor} broke off its answer.")


def _make_showable(refused: Refused) -> None:
    conceal_tokens(refused)
    # Its frames and causes hold the exchange and its body: a cycle, which nobody looks for until it is too late.
    refused.__context__ = refused.__cause__ = refused.__traceback__ = None


def _as_framed(headers: Headers, exchange: Exchange, *, is_decoded: bool) -> Headers:
    """A stream is framed anew, for an event of our own may have to follow, and so is a body that we change. What a gate
    has read goes down decoded."""
    if is_decoded:
        return [pair for pair in headers if pair[0] not in _LENGTH_AND_CODING]
    operation = exchange.operation
    is_framed_anew = exchange.demand.is_streaming or (operation is not None and operation.edits_answer)
    return [pair for pair in headers if pair[0] not in _LENGTH] if is_framed_anew else headers


def _has_gate(exchange: Exchange) -> bool:
    """Whether the answer may have to pass one, which reads plain bytes."""
    operation = exchange.operation
    return operation is not None and (
        bool(operation.hands_out) or operation.edits_answer or exchange.demand.added_event is not None
    )


def _goes_on(exchange: Exchange) -> bool:
    """Whether the work goes on after its request: then a poll settles it, as it is written where to ask."""
    operation = exchange.operation
    return (
        exchange.is_deferred
        and exchange.observer is not None
        and operation is not None
        and operation.deferred is not None
        and operation.deferred.is_running(exchange.observer)
    )


def _leave_to_poll(exchange: Exchange) -> None:
    """A poll was faster than the end of the stream: it has booked the work, and says so in a line of its own."""
    settled = exchange.settled
    if settled is None or not settled.done() or settled.cancelled() or settled.exception() is not None:
        return
    if settled.result() is Resolved.ALREADY_RESOLVED:
        exchange.outcome, exchange.priced, exchange.is_estimated = Outcome.DEFERRED, None, False


def _deferred() -> "asyncio.Future[Resolved]":
    """Nothing to wait for: what is written of the work was written before its id went down."""
    done: asyncio.Future[Resolved] = asyncio.get_running_loop().create_future()
    done.set_result(Resolved.DONE)
    return done


def _may_run_unknown(exchange: Exchange) -> bool:
    """Whether the vendor may have begun what goes on by itself, and no answer has told its id."""
    status = exchange.upstream_status
    is_refused = status is not None and REDIRECT <= status < SERVER_ERROR and status != REQUEST_TIMEOUT
    return exchange.is_forwarded and not exchange.is_deferred and not is_refused


def _scheduled_id(exchange: Exchange) -> str | None:
    """The id of what a request has scheduled; empty where nobody can say whether it has; None where it has not."""
    operation, observer, status = exchange.operation, exchange.observer, exchange.upstream_status
    assert operation is not None
    assert operation.scheduled is not None
    if status is None or is_unsure(status):
        return ""
    if status >= REDIRECT:
        return None
    if observer is None or not observer.is_complete:
        return ""
    return operation.scheduled.id_of(observer, exchange.request_id)


def _is_event_stream(head: AnswerHead) -> bool:
    """Or may be one: without a content type, it is what was asked for."""
    content_type = head.header(b"content-type").lower()
    return not content_type or content_type.startswith(b"text/event-stream")


def _json_object(body: bytes) -> dict[str, Any]:
    if len(body) > VALUES_MAX and sum(body.count(sign) for sign in (b",", b"[", b"{")) > VALUES_MAX:
        raise Refused(Reason.BAD_REQUEST, f"The request's body has more than {VALUES_MAX:,} values.")
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(Reason.BAD_REQUEST, f"The request's body is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise Refused(Reason.BAD_REQUEST, "The request's body must be a JSON object.")
    return fields


def _decoded(body: bytes, coding: bytes) -> bytes | None:
    """An error's body as we read it, the client gets it as it came; None when it cannot be read."""
    decoder = decoder_for(coding, decoded_bytes_max=ERROR_BODY_BYTES_MAX)
    if decoder is None:
        return body
    plain = b"".join(decoder.feed(body))
    return plain if decoder.is_intact else None
