"""Phase "read": the query and the body, bounded, as they came, and the fields of the body where it has some."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson

from metering.admission import Admission
from metering.errors import Reason, Refused
from proxy import forbidden
from proxy.bounds import Bounds
from proxy.exchange import ClientLeftError, Exchange
from proxy.headers import is_said_to_be_json
from proxy.mounted import Mounted
from proxy.query import at_most
from proxy.query import check as check_query
from proxy.surface import NOTHING_FOUND, Inbound, Operation

VALUES_MAX = 1_000_000
"""Commas and opening brackets of a JSON body. No model reads a text with so many, and a body full of `{}` would
stop the event loop for seconds while it is parsed and looked through."""
_PERCENT = ord("%")
BYTES_AT_ONCE = VALUES_MAX
"""A longer body, which alone may have more values, is read in turns with others: a conversation of five megabytes takes some
fifteen milliseconds, no step of it more than eight. One made of a hundred thousands of small objects takes longer: its parser
does nothing by halves."""


class Reading:
    """Of all requests of one worker."""

    def __init__(self, *, bounds: Bounds, admission: Admission) -> None:
        self._bounds = bounds
        self._admission = admission
        self.waiting_by_owner: Counter[str] = Counter()
        """Bodies and look-ups being waited for, and long bodies being read, by owner (a user, a gateway token with limits); no more than may be in flight."""

    def query_of(self, exchange: Exchange, mounted: Mounted, path: bytes) -> bytes:
        """The query as it goes up, without the gateway token. Raises Refused(BAD_REQUEST)."""
        operation, token = exchange.operation, exchange.gateway_token
        assert operation is not None
        query = exchange.request.query
        if query:
            query = mounted.token_places_of(operation).removed(query)
        if token and (_unquoted(path).find(token) >= 0 or (query and token in _unquoted(query))):
            raise Refused(Reason.BAD_REQUEST, "The gateway token does not belong into the URL.")
        if query and operation.query is not None:
            check_query(operation.query, query)
        if not operation.at_most_in_query:
            return query
        return at_most({name: int(mounted.options[env]) for name, env in operation.at_most_in_query}, query)

    async def read(self, exchange: Exchange, params: Any, query: bytes) -> Inbound:
        """The body, bounded, as it came; and its fields where there is one."""
        request, operation = exchange.request, exchange.operation
        assert operation is not None
        inbound = self._headed(exchange, params, query)
        if request.method == "GET":
            if not request.is_whole:
                await self._body(exchange)  # not passed on; but what is not whole, or breaks, is no request
            return inbound
        if request.is_whole:
            inbound.body = self._taken(exchange)
        else:
            length = request.first.get(b"content-length", b"")
            if length.isdigit() and int(length) > self._bounds.body_bytes_max:
                raise self._too_large()
            inbound.body = await self._body(exchange)
        if len(inbound.body) > BYTES_AT_ONCE and not operation.takes_any_body:
            with self.waiting(exchange):
                await _read_in_turns(inbound, operation)
        else:
            _read_fields(inbound, operation)
        return inbound

    def read_at_once(self, exchange: Exchange, params: Any, query: bytes) -> Inbound | None:
        """As `read`, where nothing has to be waited for; else None, and nothing is done."""
        request, operation = exchange.request, exchange.operation
        assert operation is not None
        if not request.is_whole or request.unread_bytes > BYTES_AT_ONCE:
            return None
        inbound = self._headed(exchange, params, query)
        if request.method != "GET":
            inbound.body = self._taken(exchange)
            _read_fields(inbound, operation)
        return inbound

    def _headed(self, exchange: Exchange, params: Any, query: bytes) -> Inbound:
        """What the head of a request says, whose body is still to be read. Raises Refused where it says that nobody can."""
        request, operation = exchange.request, exchange.operation
        assert operation is not None
        # By place, and nothing made that few need.
        inbound = Inbound(
            request.method, params, query, request.headers, b"", {}, NOTHING_FOUND, None, NOTHING_FOUND
        )
        if request.method == "GET":
            return inbound
        said = request.first
        if said.get(b"content-encoding", b"") not in {b"", b"identity"}:
            raise Refused(Reason.BAD_REQUEST, "Content-Encoding: request bodies must be sent uncompressed.")
        is_json = said.get(b"content-type") == b"application/json" and not request.has_repeats
        if not (is_json or operation.takes_any_body or is_said_to_be_json(request.headers)):
            raise Refused(Reason.BAD_REQUEST, "Content-Type: must be application/json, in UTF-8.")
        return inbound

    async def _body(self, exchange: Exchange) -> bytes:
        with self.waiting(exchange):
            try:
                async with asyncio.timeout(self._bounds.body_timeout_s):
                    return await self._body_pieces(exchange)
            except TimeoutError:
                seconds = self._bounds.body_timeout_s
                raise Refused(
                    Reason.BAD_REQUEST, f"The request's body did not arrive within {seconds:g} seconds."
                ) from None

    @contextmanager
    def waiting(self, exchange: Exchange) -> Iterator[None]:
        """Waiting before admission, for a body, its turn, or what must be looked up: within the caller's limits, as what is
        admitted. Raises Refused."""
        caller, operation = exchange.caller, exchange.operation
        assert caller is not None
        assert operation is not None
        is_free = operation.meter.is_free
        self._admission.check_before_body(
            caller, exchange.surface.name, self.waiting_by_owner, is_free=is_free
        )
        owners = [owner for owner, _ in caller.owners]
        self.waiting_by_owner.update(owners)
        try:
            yield
        finally:
            self.waiting_by_owner.subtract(owners)
            for owner in owners:
                if not self.waiting_by_owner[owner]:
                    del self.waiting_by_owner[owner]

    async def _body_pieces(self, exchange: Exchange) -> bytes:
        request, pieces, size = exchange.request, [], 0
        while True:
            await exchange.connection.arrival(request)
            is_whole = request.is_whole
            piece = self._taken(exchange)
            pieces.append(piece)
            size += len(piece)
            if size > self._bounds.body_bytes_max:
                raise self._too_large()
            if is_whole:
                return b"".join(pieces)

    def _taken(self, exchange: Exchange) -> bytes:
        """What has come of the body. Raises ClientLeftError, Refused(TOO_LARGE)."""
        body = exchange.connection.take_body(exchange.request)
        if exchange.request.is_abandoned:
            raise ClientLeftError
        if len(body) > self._bounds.body_bytes_max:
            raise self._too_large()
        return body

    def _too_large(self) -> Refused:
        limit = self._bounds.body_bytes_max
        return Refused(Reason.TOO_LARGE, f"The request's body is longer than {limit:,} bytes.")


def _unquoted(piece: bytes) -> bytes:
    return unquote_to_bytes(piece) if _PERCENT in piece else piece


def _read_fields(inbound: Inbound, operation: Operation) -> None:
    """Of a body that is JSON."""
    if operation.takes_any_body or (not inbound.body and operation.may_lack_body):
        return
    inbound.fields = _json_object(inbound.body)
    forbidden.check(operation.forbidden, inbound)


async def _read_in_turns(inbound: Inbound, operation: Operation) -> None:
    """The fields of a long body; others get their turn between any two steps, and before what follows."""
    if sum(inbound.body.count(sign) for sign in (b",", b"[", b"{")) > VALUES_MAX:
        raise Refused(Reason.BAD_REQUEST, f"The request's body has more than {VALUES_MAX:,} values.")
    await asyncio.sleep(0)
    inbound.fields = _json_object(inbound.body)
    await asyncio.sleep(0)
    forbidden.check(operation.forbidden, inbound)
    await asyncio.sleep(0)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(Reason.BAD_REQUEST, f"The request's body is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise Refused(Reason.BAD_REQUEST, "The request's body must be a JSON object.")
    return fields
