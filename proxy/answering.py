"""Phases "relay" and "observe": a vendor's answer on its way down, whole or broken, or an error; and what takes its place
where it may not pass."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from metering.admission import Caller
from metering.errors import Reason, Refused
from metering.ledger import Outcome
from metering.objects import ObjectId, Objects
from metering.store.writer import Done, Result
from metering.tickets import Tickets
from proxy.booking import Booking
from proxy.bounds import Bounds
from proxy.decoding import Decoder, decoder_for
from proxy.deferral import Deferrals
from proxy.drains import Drains
from proxy.exchange import RELAY, Exchange
from proxy.gate import BodyGate, EventGate, Gate
from proxy.holds import Holds
from proxy.links import base_of, relinker
from proxy.mounted import Mounted
from proxy.relay import Relay, outcome_of_whole, send_at_once, send_body
from proxy.replies import Replies, make_showable
from proxy.request import SCHEME
from proxy.rewriting import shown
from proxy.silence import SilenceKeeper
from proxy.surface import AnswerHead, Headers, Inbound, Links, Observer
from proxy.telemetry import Telemetry
from proxy.upstream import Answer, Broken, OpenAnswer, TimedOut, UpstreamError

ERROR_BODY_BYTES_MAX = 1024 * 1024
"""A vendor's error answer is read whole up to here, to see whether it is about our own account."""
OK, REDIRECT, NOT_MODIFIED, CLIENT_ERROR, NOT_FOUND = 200, 300, 304, 400, 404
JUDGED = frozenset({400, 422})
"""Errors about a request's content: what is answered so was not done at an earlier try either."""
_LENGTH = frozenset({b"content-length"})
_LENGTH_AND_CODING = _LENGTH | {b"content-encoding"}
_OF_BYTES = frozenset(
    {b"etag", b"last-modified", b"content-md5", b"digest", b"content-digest", b"repr-digest"}
)
"""What a vendor says of the bytes that it sent. Of others it is wrong; and of a list that all users share it tells how long that
is (an ETag, as a rule), and when anybody has changed it."""


class Answering:
    """What is done with the answers of vendors to one worker."""

    def __init__(
        self,
        *,
        bounds: Bounds,
        booking: Booking,
        replies: Replies,
        holds: Holds,
        drains: Drains,
        objects: Objects,
        deferrals: Deferrals,
        tickets: Tickets,
        telemetry: Telemetry,
    ) -> None:
        self._bounds = bounds
        self._booking = booking
        self._replies = replies
        self._holds = holds
        self._drains = drains
        self._objects = objects
        self._deferrals = deferrals
        self._tickets = tickets
        self._telemetry = telemetry

    def no_answer(self, exchange: Exchange, error: UpstreamError) -> Refused:
        """Nothing was sent: void. Sent, but unanswered: nobody knows what the vendor did, so the input is
        booked as an estimate, and the request is not repeated."""
        is_timeout = isinstance(error, TimedOut)
        if not error.is_sent:
            self._booking.void(exchange)
        else:
            outcome = Outcome.TIMED_OUT if is_timeout else Outcome.UPSTREAM_FAILED
            self._booking.settle(exchange, outcome, self._booking.known_usage(exchange))
        vendor = exchange.surface.name
        exchange.cause = str(error)
        if is_timeout:
            return Refused(Reason.UPSTREAM_TIMEOUT, f"Timeout: {vendor} did not answer in time.")
        message = f"Connection error: {vendor} cannot be reached."
        return Refused(Reason.UPSTREAM_UNREACHABLE, message, retry_after_s=1.0)

    def answer(
        self, exchange: Exchange, mounted: Mounted, answer: OpenAnswer, silence: SilenceKeeper | None
    ) -> Awaitable[None]:
        """Note what its head says; the rest is to be awaited."""
        exchange.phase = RELAY
        status = answer.status
        head = AnswerHead(status, answer.headers)
        is_success = OK <= status < REDIRECT
        is_known = is_success or not exchange.is_lost or status in JUDGED
        exchange.upstream_status = status if is_known else None
        request_id = head.header(b"request-id") or head.header(b"x-request-id")
        if request_id and not mounted.repeats_key(request_id):
            exchange.upstream_request_id = request_id.decode("latin-1")[:200]
        operation = exchange.operation
        if operation is not None and operation.ends is not None and (is_success or status == NOT_FOUND):
            self._note_end(exchange, operation.ends)
        if not is_success:
            return self.answer_error(exchange, mounted, answer, head, silence)
        if silence is None:
            return self._answer_success(exchange, mounted, answer, head, silence)
        return self._answer_after_hush(exchange, mounted, answer, head, silence)

    async def _answer_after_hush(
        self,
        exchange: Exchange,
        mounted: Mounted,
        answer: OpenAnswer,
        head: AnswerHead,
        silence: SilenceKeeper,
    ) -> None:
        await silence.hush()
        await self._answer_success(exchange, mounted, answer, head, silence)

    def _answer_success(
        self,
        exchange: Exchange,
        mounted: Mounted,
        answer: OpenAnswer,
        head: AnswerHead,
        silence: SilenceKeeper | None,
    ) -> Awaitable[None]:
        """Begin; how it goes on is to be awaited."""
        operation, inbound = exchange.operation, exchange.inbound
        assert operation is not None
        assert inbound is not None
        demand, is_head_early = exchange.demand, exchange.head_is_out
        decoder = decoder_for(head.header(b"content-encoding"))
        observer = exchange.observer = operation.meter.observe(inbound, demand, head)
        gate = self._gate(exchange, mounted, inbound, head) if has_gate(exchange) else None
        slices = self._holds.slices(exchange) if demand.slicing is not None else None
        inbound.fields = {}  # as its body
        is_decoded = decoder is not None and (is_head_early or gate is not None)
        headers = _as_framed(mounted.answer_headers(answer.headers), exchange, is_decoded=is_decoded)
        is_held_back = isinstance(gate, BodyGate)  # nothing passes before all of it can
        if not is_head_early and not is_held_back:
            self._replies.begin(exchange, answer.status, headers)
        if answer.is_complete and not demand.is_streaming and gate is None and not observer.at_boundary:
            return self._pass_whole(exchange, answer, observer, decoder)
        is_plain = decoder is None or is_decoded
        may_fall_silent = (
            is_plain and not answer.is_complete and observer.at_boundary
        )  # a JSON body never is at one
        if silence is not None and may_fall_silent:
            silence.start()
        else:
            silence = None
        relay = Relay(
            self,
            exchange,
            answer,
            observer,
            headers=headers,
            decoder=decoder,
            is_decoded=is_decoded,
            silence=silence,
            gate=gate,
            slices=slices,
            is_shown=not is_head_early or _is_event_stream(head),
        )
        return self._relay(exchange, relay)

    async def _relay(self, exchange: Exchange, relay: Relay) -> None:
        is_streaming = exchange.demand.is_streaming
        if is_streaming:
            self._telemetry.open_streams.inc()
        try:
            outcome = await relay.run()
        finally:
            if is_streaming:
                self._telemetry.open_streams.dec()
        await relay.settle(outcome)
        await self._end(exchange, relay, outcome)

    async def _pass_whole(
        self, exchange: Exchange, answer: OpenAnswer, observer: Observer, decoder: Decoder | None
    ) -> None:
        """What a relay does, for a body that is all here: the usual answer without a stream."""
        body = answer.take()
        if body:
            exchange.first_byte_s = time.monotonic()
            for piece in (body,) if decoder is None else decoder.feed(body):
                observer.feed(piece)
        observer.end()
        outcome = outcome_of_whole(exchange, observer)
        await self.settle(exchange, outcome, is_intact=decoder is None or decoder.is_intact)
        exchange.phase = RELAY
        if not send_at_once(exchange, body, is_last=True):
            await send_body(exchange, body, is_last=True)

    # --- for the relay

    def begin(self, exchange: Exchange, status: int, headers: Headers) -> None:
        self._replies.begin(exchange, status, headers)

    def settle(self, exchange: Exchange, outcome: Outcome, *, is_intact: bool) -> Awaitable[None]:
        usage = self._booking.known_usage(exchange, is_intact=is_intact)
        self._booking.settle(exchange, outcome, usage)
        return self._booking.durable(exchange)

    async def withhold(self, exchange: Exchange, refused: Refused) -> None:
        """Tell the client that nothing more comes of an answer that a gate has stopped, and read on as if it had
        left."""
        if exchange.head_is_out and exchange.demand.is_streaming:
            make_showable(refused)
            exchange.refused = refused
            event = exchange.surface.dialect.stream_error(refused, exchange.request_id)
            await send_body(exchange, event, is_last=True)
        else:
            await self._replies.refuse(exchange, refused)
        task = asyncio.current_task()
        assert task is not None
        if exchange.drain_timer is None:
            self._drains.bound(exchange, task)

    def bind(self, exchange: Exchange, ids: Sequence[ObjectId]) -> "asyncio.Future[Result]":
        """Give what an answer hands out to its user, and note where its work may go on."""
        assert exchange.caller is not None
        steps = self._deferrals.steps(exchange, ids)
        binding = self._objects.bind(ids, exchange.caller.user_id, exchange.request_id, *steps)
        if steps:
            binding.add_done_callback(lambda done: self._look_at_deferral(exchange, done))
        return binding

    def _note_end(self, exchange: Exchange, ends: tuple[str, str]) -> None:
        """What the request has deleted at the vendor is no more; what it did not find there was deleted before."""
        inbound, caller = exchange.inbound, exchange.caller
        if inbound is not None:
            assert caller is not None
            kind, piece = ends
            upstream_id = inbound.path_params[piece].lower()
            self._objects.mark_gone(ObjectId(exchange.surface.provider, kind, upstream_id), caller.user_id)

    def _gate(self, exchange: Exchange, mounted: Mounted, inbound: Inbound, head: AnswerHead) -> Gate | None:
        """What the answer must pass, where its operation has an added event or hands out ids."""
        operation, vendor = exchange.operation, exchange.surface.provider
        assert operation is not None
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
        base = base_of(self._bounds.public_url, exchange.request.headers, SCHEME)
        relink = relinker(links, mounted, self._tickets, caller, base)

        def relinked(body: bytes) -> bytes:
            ours = relink(edit(body))
            if mounted.repeats_key(ours):
                self._telemetry.account_alarm(mounted.surface.name, OK)
                raise Refused(
                    Reason.UPSTREAM_ACCOUNT, f"{mounted.surface.name} answered with what cannot be shown."
                )
            return ours

        return relinked

    def _look_at_deferral(self, exchange: Exchange, binding: "asyncio.Future[Result]") -> None:
        """Nobody will ask about work whose row could not be written: it is settled now, as what is known of it."""
        if binding.cancelled() or (binding.exception() is None and isinstance(binding.result(), Done)):
            return
        exchange.is_deferred = False
        if exchange.outcome is Outcome.DEFERRED:
            exchange.settled = None
            self._booking.settle(
                exchange, Outcome.UPSTREAM_FAILED, self._booking.known_usage(exchange), notes=("not_polled",)
            )

    async def _end(self, exchange: Exchange, relay: Relay, outcome: Outcome) -> None:
        """End the client's answer as the vendor ended its own; what broke off never ends cleanly."""
        if exchange.is_done or relay.withheld is not None:  # the client has been told
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
        make_showable(refused)
        exchange.refused = refused
        if relay.may_append:
            event = exchange.surface.dialect.stream_error(refused, exchange.request_id)
            await send_body(exchange, event, is_last=True)
        elif not exchange.client_left:
            exchange.connection.cut()

    async def answer_error(
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
        self._booking.settle(exchange, Outcome.UPSTREAM_FAILED, self._booking.known_usage(exchange))
        self._refuse_instead(mounted, answer, plain or b"")
        if plain is None:  # who knows what it says, and about whom
            name = mounted.surface.name
            raise Refused(Reason.UPSTREAM_UNREACHABLE, f"{name} answered with an error that cannot be read.")
        await self._booking.durable(exchange)
        exchange.phase = RELAY
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
        self._replies.begin(exchange, answer.status, headers)
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


def _broken_off(vendor: str, *, is_timeout: bool) -> Refused:
    """A vendor's answer that ended too early. Inside a stream there is no status: agents (OpenClaw 2026.9.6) look
    for words such as "connection error" and "timeout" to know that another try may help."""
    if is_timeout:
        return Refused(Reason.UPSTREAM_TIMEOUT, f"Timeout: {vendor} broke off its answer.")
    return Refused(Reason.UPSTREAM_UNREACHABLE, f"Connection error: {vendor} broke off its answer.")


def _as_framed(headers: Headers, exchange: Exchange, *, is_decoded: bool) -> Headers:
    """A stream is framed anew, for an event of our own may have to follow, and so is a body that we change. What a gate
    has read goes down decoded."""
    operation = exchange.operation
    is_edited = operation is not None and operation.edits_answer
    if is_edited:
        headers = [pair for pair in headers if pair[0] not in _OF_BYTES]
    if is_decoded:
        return [pair for pair in headers if pair[0] not in _LENGTH_AND_CODING]
    is_framed_anew = exchange.demand.is_streaming or is_edited
    return [pair for pair in headers if pair[0] not in _LENGTH] if is_framed_anew else headers


def has_gate(exchange: Exchange) -> bool:
    """Whether the answer may have to pass one, which reads plain bytes."""
    operation = exchange.operation
    return operation is not None and (
        bool(operation.hands_out) or operation.edits_answer or exchange.demand.added_event is not None
    )


def _is_event_stream(head: AnswerHead) -> bool:
    """Or may be one: without a content type, it is what was asked for."""
    content_type = head.header(b"content-type").lower()
    return not content_type or content_type.startswith(b"text/event-stream")


def _decoded(body: bytes, coding: bytes) -> bytes | None:
    """An error's body as we read it, the client gets it as it came; None when it cannot be read."""
    decoder = decoder_for(coding, decoded_bytes_max=ERROR_BODY_BYTES_MAX)
    if decoder is None:
        return body
    plain = b"".join(decoder.feed(body))
    return plain if decoder.is_intact else None
