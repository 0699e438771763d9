"""Answers of our own, and the head of every answer, in the surface's dialect."""

from metering.admission import Admission, Caller
from metering.clock import Clock
from metering.errors import Refused
from metering.rate_state import Standing
from proxy.auth import conceal_tokens
from proxy.booking import Booking
from proxy.downstream import BODILESS
from proxy.exchange import Exchange
from proxy.limit_headers import limit_headers
from proxy.relay import send_body
from proxy.surface import Headers, Rendered

JSON_TYPE = (b"content-type", b"application/json")


class Replies:
    """To the clients of one worker."""

    def __init__(self, *, booking: Booking, admission: Admission, clock: Clock) -> None:
        self._booking = booking
        self._admission = admission
        self._clock = clock

    async def refuse(self, exchange: Exchange, refused: Refused) -> None:
        """Tell the client why, in the surface's dialect: as a status, or inside a stream that has begun."""
        make_showable(refused)
        exchange.refused = refused
        dialect = exchange.surface.dialect
        await self._booking.durable(exchange)
        if exchange.client_left or exchange.is_done:
            return
        if not exchange.head_is_out:
            answer: Rendered = dialect.refusal(refused, exchange.request_id)
            length = (b"content-length", str(len(answer.body)).encode())
            self.begin(exchange, answer.status, [*answer.headers, length])
            await send_body(exchange, answer.body, is_last=True)
        elif exchange.observer is None and exchange.demand.is_streaming:
            event = dialect.stream_error(refused, exchange.request_id)
            await send_body(exchange, event, is_last=True)
        else:
            exchange.connection.cut()

    def begin(self, exchange: Exchange, status: int, headers: Headers) -> None:
        exchange.head_is_out = True
        exchange.status = status
        if exchange.client_left:
            return
        if status in BODILESS:
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        headers = [*headers, (b"x-automna-request-id", exchange.request_id.encode())]
        if exchange.caller is not None:
            headers += self.limit_headers(exchange, exchange.caller)
        # Clean: they are ours, or a vendor's as our parser has let them pass.
        is_streaming = exchange.demand.is_streaming
        exchange.connection.begin(status, headers, is_flushed_soon=is_streaming, is_clean=True)

    def limit_headers(self, exchange: Exchange, caller: Caller) -> Headers:
        standing: Standing | None = exchange.admitted
        if standing is None:
            left_nanousd = exchange.refused.budget_left_nanousd if exchange.refused is not None else None
            standing = self._admission.standing(caller, left_nanousd)
        now_ms = self._clock.now_ms()
        return exchange.surface.dialect.limit_headers(standing, now_ms) + limit_headers(standing, now_ms)


def make_showable(refused: Refused) -> None:
    conceal_tokens(refused)
    # Its frames and causes hold the exchange and its body: a cycle, which nobody looks for until it is too late.
    refused.__context__ = refused.__cause__ = refused.__traceback__ = None
