"""Bytes from a vendor's answer to the client, and a copy to the observer. Nothing is changed on the way, but
what a gate takes out (see gate.py).

The end of an answer (the event that ends a stream, the last chunk of a body) waits for the settle. Behind a gate, a
stream passes in whole events and a body at its end, when its ids have their owner. Every other byte passes when it
comes. When the client has left, the rest is read
for the meter alone.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from typing import NamedTuple, Protocol

from metering.errors import UPSTREAM_REASONS, Reason, Refused
from metering.ledger import Outcome
from metering.objects import ObjectId
from metering.sse import BLANK_LINE
from metering.store.writer import Declined, Result
from proxy.decoding import Decoder
from proxy.downstream import BODILESS
from proxy.exchange import RELAY, Exchange
from proxy.gate import EventGate, Gate
from proxy.silence import SilenceKeeper
from proxy.slices import Slices
from proxy.surface import PASS_ALL, Headers, Observer
from proxy.upstream import Broken, OpenAnswer, TimedOut

logger = logging.getLogger(__name__)

IN_STREAM = "error in the stream"
ENDED_EARLY = "ended before its last event"
NOT_A_STREAM = "answered without a stream"
"""Causes, in the canonical line."""
FINISHING_BYTES_MAX = 256 * 1024
"""Of an event that passes to its end although its stream is to be cut; one that is longer is broken off."""
FINISH_EVENT_S = 1.0
"""For an event to come to its end, and its client to take it, when the stream is cut from outside."""
ERROR_TYPE_CHARS_MAX = 100
"""Of a vendor's word in our log."""


class Desk(Protocol):
    """What a relay has done for it: the same for all answers."""

    def begin(self, exchange: Exchange, status: int, headers: Headers) -> None:
        """Send the answer's head."""

    def settle(self, exchange: Exchange, outcome: Outcome, *, is_intact: bool) -> Awaitable[None]:
        """Book the exchange, once; done when that is durable, or its bound is reached."""

    def bind(self, exchange: Exchange, ids: Sequence[ObjectId]) -> "asyncio.Future[Result]":
        """Give ids their owner; queued at once, done when it is durable."""

    async def withhold(self, exchange: Exchange, refused: Refused) -> None:
        """Tell the client that nothing more comes, and why."""


class _Seen(NamedTuple):
    """What has been found out of a piece before it is read."""

    hold_at: int
    was_at_boundary: bool
    """Before it."""


class Relay:
    """One successful (2xx) answer on its way down."""

    __slots__ = (
        "_answer",
        "_breaks_off_in_event",
        "_decoder",
        "_desk",
        "_exchange",
        "_finishing_bytes",
        "_gate",
        "_has_events",
        "_headers",
        "_is_decoded",
        "_lost",
        "_observer",
        "_plain",
        "_seen",
        "_silence",
        "_slices",
        "_tail",
        "_ungranted",
        "is_shown",
        "refused",
        "withheld",
    )

    withheld: Refused | None
    """Why the rest may not go down: an id in it has no owner."""
    refused: Refused | None
    """Why no more of the answer is paid for: it ends here, and its vendor is not read on."""
    _ungranted: Refused | None
    """The same, while the last event passes to its end."""
    _lost: Refused | None
    """The same, because the caller has lost access meanwhile."""
    _seen: _Seen | None
    """Of the piece that is read next, where it was shown to `_take`."""

    def __init__(
        self,
        desk: Desk,
        exchange: Exchange,
        answer: OpenAnswer,
        observer: Observer,
        *,
        headers: Headers,
        decoder: Decoder | None,
        is_decoded: bool,
        silence: SilenceKeeper | None,
        gate: Gate | None,
        slices: Slices | None,
        is_shown: bool,
    ) -> None:
        """`headers`: of the answer's head, if that has not gone down yet. `is_decoded`: that head names no coding, and the
        client gets decoded bytes. `is_shown` False: the head that went out early promises a stream, and this is none. A
        client would read nothing in it and take that for an answer; it is read for the meter alone, and an error says what
        happened."""
        self._desk = desk
        self._exchange = exchange
        self._answer = answer
        self._observer = observer
        self._headers = headers
        self._decoder = decoder
        self._silence = silence
        self._gate = gate
        self._slices = slices
        self._is_decoded = is_decoded
        self.withheld = self.refused = self._ungranted = self._lost = None
        self._finishing_bytes = 0
        self._breaks_off_in_event = False
        self._tail = b""
        self._plain: list[bytes] = []
        """What a compressed chunk says, for the slices: it passes as it came, and can only be broken off."""
        self._seen = None
        self._has_events = observer.at_boundary
        """A JSON body never is at one: nothing of ours could follow any part of it."""
        self.is_shown = is_shown

    @property
    def is_whole(self) -> bool:
        """The vendor said all it had to say: the end of a stream, or its error; a body to its last byte.

        A stream that the meter cannot read is as whole as its framing says."""
        observer = self._observer
        if self._exchange.demand.is_streaming and (self._decoder is None or self._decoder.is_intact):
            return observer.is_complete or observer.error is not None
        if self._is_decoded:  # what could not be decoded has not reached the client
            return observer.is_complete
        return self._answer.is_complete

    @property
    def may_append(self) -> bool:
        """An event of our own can follow: no event is half passed on, and the client reads plain bytes."""
        if isinstance(self._gate, EventGate):  # which lets nothing pass but whole events
            return True
        if self.refused is not None:
            is_plain = self._decoder is None or self._is_decoded
            return self._has_events and is_plain and not self._breaks_off_in_event
        return self._observer.at_boundary and (self._decoder is None or self._is_decoded)

    async def run(self) -> Outcome:
        """Relay until the vendor is done or has failed; how it ended. The end goes down when that is settled."""
        answer, exchange = self._answer, self._exchange
        self._watch_access(exchange)
        try:
            while True:
                try:
                    chunk = await answer.read()
                except (TimedOut, Broken) as error:
                    return self._ended_by(error)
                if not chunk:
                    break
                # Of what `_take` has seen, the client has not: it may be in the midst of an event.
                if self._lost is not None and self._seen is None and self._is_between_events:
                    return self._end_for_lost_access()
                # Asked at once: after a wait, the end may have come with bytes that are not in this chunk.
                is_last = answer.is_read
                if exchange.first_byte_s is None and self.is_shown:
                    await self._note_first_byte()
                if self._is_decoded:
                    await self._pass_decoded(chunk, is_last=is_last)
                else:
                    await self._pass_piece(chunk, is_last=is_last)
                if self.refused is not None:
                    return self._cut_by(self.refused)
                if is_last:
                    break
        finally:
            answer.taker = None  # a cycle else
        if self._gate is not None:
            await self._pass_rest()
        self._observer.end()
        return self._outcome()

    async def _pass_rest(self) -> None:
        """Of a gate: what it finds at the end decides how the answer ended."""
        if self._exchange.first_byte_s is None and self.is_shown:
            await self._note_first_byte()
        await self._pass_piece(b"", is_last=True)

    async def _note_first_byte(self) -> None:
        """What comes from now on and only passes by is written down as it comes."""
        exchange = self._exchange
        exchange.first_byte_s = time.monotonic()
        if self._silence is not None:
            await self._silence.hush()
        if self._gate is None and self._decoder is None and exchange.status not in BODILESS:
            self._answer.taker = self._take

    def _ended_by(self, error: TimedOut | Broken) -> Outcome:
        """How an answer ended that broke off, or was closed by us."""
        if self._lost is not None and not self.is_whole:
            return self._end_for_lost_access()
        self._exchange.cause = str(error)
        if isinstance(error, TimedOut):
            return Outcome.TIMED_OUT
        return self._outcome() if self.is_whole else Outcome.UPSTREAM_FAILED

    def _cut_by(self, refused: Refused) -> Outcome:
        if refused is self._lost:
            return Outcome.ACCESS_LOST
        return Outcome.TIMED_OUT if refused.reason is Reason.STORE_UNAVAILABLE else Outcome.BUDGET_ENDED

    def _watch_access(self, exchange: Exchange) -> None:
        if exchange.access_lost is not None:
            self.lose(exchange.access_lost)
        exchange.on_access_lost = self.lose

    def lose(self, refused: Refused) -> None:
        """The caller has lost access: no more comes but the rest of the event that the client has begun to read, if that
        comes soon. An answer that nobody reads any more is read on for the meter."""
        if self._exchange.client_left or self._exchange.is_done or self.withheld is not None:
            return
        self._lost = self._ungranted = refused
        if self._is_between_events or not self._has_events:
            self._answer.close()
        asyncio.get_running_loop().call_later(FINISH_EVENT_S, self._stop_waiting)

    def _stop_waiting(self) -> None:
        """For the end of that event, and for a client that does not take what it has."""
        exchange = self._exchange
        if (
            exchange.on_access_lost is None or exchange.is_done
        ):  # it has ended; the connection may serve another
            return
        self._answer.close()
        if exchange.connection.is_write_paused:
            exchange.connection.drop()

    @property
    def _is_between_events(self) -> bool:
        return self._observer.at_boundary or isinstance(self._gate, EventGate)

    def _end_for_lost_access(self) -> Outcome:
        self._breaks_off_in_event = not self._is_between_events
        self.refused = self._lost
        return Outcome.ACCESS_LOST

    def _take(self, chunk: bytes) -> bool:
        """Write down what has come at once, where nothing else is to be done about it: a turn of our task for each event of a
        stream costs a tenth more, and makes events late where there are many streams. What is left is read next, and is not
        observed again."""
        exchange, slices = self._exchange, self._slices
        if exchange.client_left or self._lost is not None or exchange.connection.is_write_paused:
            return False
        was_at_boundary = slices is None or self._observer.at_boundary
        hold_at = self._observer.feed(chunk)
        if hold_at != PASS_ALL or not (slices is None or slices.observe(chunk)):
            self._seen = _Seen(hold_at, was_at_boundary)
            return False
        self._tail = chunk[-1:]
        exchange.connection.write(chunk, is_last=False)
        return True

    async def _pass_decoded(self, chunk: bytes, *, is_last: bool) -> None:
        assert self._decoder is not None
        piece = b""
        for decoded in self._decoder.feed(chunk):  # together they may be a thousand times the chunk
            if piece:
                await self._pass_piece(piece, is_last=False)
            if self.refused is not None:
                return
            piece = decoded
        await self._pass_piece(piece, is_last=is_last)

    async def _pass_piece(self, chunk: bytes, *, is_last: bool) -> None:
        may_be_cut = self._slices is not None or self._lost is not None
        tail, self._tail = self._tail, chunk[-1:]
        seen, self._seen = self._seen, None
        if seen is None:
            was_at_boundary = not may_be_cut or self._observer.at_boundary
            hold_at = self._observe(chunk)
            uncounted = self._plain or [chunk]
        else:
            hold_at, was_at_boundary, uncounted = *seen, []
        if is_last:
            self._observer.end()
            if hold_at == PASS_ALL and self.is_whole:
                hold_at = 0
        elif may_be_cut and hold_at == PASS_ALL and not await self._is_granted(uncounted):
            if was_at_boundary or self._gate is not None:
                self.refused = self._ungranted
            else:
                await self._finish_event(tail, chunk)
            return
        if self._gate is not None:
            await self._pass_gate(self._gate, chunk, hold_at, is_last=is_last)
            return
        if hold_at == PASS_ALL:
            await self.send(chunk)
            return
        if hold_at:
            await self.send(chunk[:hold_at])
            chunk = chunk[hold_at:]
        await self.settle(self._outcome())
        await self.send(chunk, is_last=is_last)

    async def settle(self, outcome: Outcome) -> None:
        if self._exchange.settled is None:  # else the end has waited already; what follows it does not
            is_intact = self._decoder is None or self._decoder.is_intact
            await self._desk.settle(self._exchange, outcome, is_intact=is_intact)
            self._exchange.phase = RELAY

    async def _is_granted(self, pieces: Sequence[bytes]) -> bool:
        """Whether what they show is paid for, and without any, what has been counted; waits for that if need be. What is not
        granted ends the answer."""
        if self._ungranted is None:
            assert self._slices is not None
            are_granted = [self._slices.observe(piece) for piece in pieces]  # all of them: each counts
            if not pieces or not all(are_granted):
                self._ungranted = await self._slices.wait() or self._lost
        return self._ungranted is None

    async def _finish_event(self, tail: bytes, chunk: bytes) -> None:
        """Let the event pass to its end that the client has begun to read, so that an error can follow it.

        `tail`: the last byte before `chunk`, which may be half of what ends it."""
        end = BLANK_LINE.search(tail + chunk)
        stop = len(chunk) if end is None else end.end() - len(tail)
        self._finishing_bytes += stop
        await self.send(chunk[:stop])
        if end is not None or not self._has_events or self._finishing_bytes > FINISHING_BYTES_MAX:
            self._breaks_off_in_event = end is None
            self.refused = self._ungranted

    async def _pass_gate(self, gate: Gate, chunk: bytes, hold_at: int, *, is_last: bool) -> None:
        """As `_pass_piece`, for what the gate lets through; what cannot pass is withheld for good."""
        is_held = hold_at != PASS_ALL
        try:
            before = gate.feed(chunk[:hold_at] if is_held else chunk)
            await self._bound(self._binding(gate))
            await self.send(before)
            if not is_held:
                return
            after = gate.feed(chunk[hold_at:]) + (gate.end() if is_last else b"")
            binding = self._binding(gate)  # in one commit with the settle
        except Refused as refused:
            await self._withhold(refused)
            if is_held:
                await self.settle(self._outcome())
            return
        await self.settle(self._outcome())
        try:
            await self._bound(binding)
        except Refused as refused:
            await self._withhold(refused)
        await self.send(after, is_last=is_last)

    async def finish(self) -> None:
        """The answer is whole and settled: what a gate still holds of one that broke off after its end, and its end."""
        rest = b""
        if self._gate is not None:
            try:
                rest = self._gate.end()
                await self._bound(self._binding(self._gate))
            except Refused as refused:
                await self._withhold(refused)
        await self.send(rest, is_last=True)

    def _binding(self, gate: Gate) -> "asyncio.Future[Result] | None":
        ids = gate.take_ids()
        return self._desk.bind(self._exchange, ids) if ids else None

    async def _bound(self, binding: "asyncio.Future[Result] | None") -> None:
        if binding is not None and isinstance(await asyncio.shield(binding), Declined):
            logger.error("%s handed out an object of another user", self._exchange.surface.name)
            raise Refused(
                Reason.UPSTREAM_UNREACHABLE,
                f"{self._exchange.surface.name} answered with an object that is not this user's.",
            )

    async def _withhold(self, refused: Refused) -> None:
        """Tell the client why nothing more comes, and read on for the meter alone."""
        self.withheld, self._gate = refused, None
        await self._desk.withhold(self._exchange, refused)

    def _observe(self, chunk: bytes) -> int:
        """From where on what is to be sent must wait."""
        decoder = self._decoder
        if decoder is None or self._is_decoded:
            return self._observer.feed(chunk) if chunk else PASS_ALL
        self._plain.clear()
        is_held = False
        for piece in decoder.feed(chunk):
            is_held = self._observer.feed(piece) != PASS_ALL or is_held
            if self._slices is not None:
                self._plain.append(piece)
        return 0 if is_held else PASS_ALL

    def _outcome(self) -> Outcome:
        """How an answer ended that the vendor ended by itself."""
        exchange, withheld = self._exchange, self.withheld
        is_fine = self.is_shown and (withheld is None or withheld.reason not in UPSTREAM_REASONS)
        if self._observer.error is None and not (is_fine and self.is_whole):
            exchange.cause = exchange.cause or (ENDED_EARLY if self.is_shown else NOT_A_STREAM)
            return Outcome.UPSTREAM_FAILED
        return outcome_of_whole(exchange, self._observer)

    async def send(self, chunk: bytes, *, is_last: bool = False) -> None:
        """Pass bytes on, unless the client has left, cannot read them or must not."""
        if self.is_shown and self.withheld is None and (chunk or is_last):
            if not self._exchange.head_is_out:
                self._desk.begin(self._exchange, self._answer.status, self._headers)
            if not send_at_once(self._exchange, chunk, is_last=is_last):
                await send_body(self._exchange, chunk, is_last=is_last)


def outcome_of_whole(exchange: Exchange, observer: Observer) -> Outcome:
    """How an answer ended that has all that its vendor had to say."""
    if observer.error is not None:
        exchange.cause = f"{IN_STREAM}: {observer.error[:ERROR_TYPE_CHARS_MAX]}"
        return Outcome.UPSTREAM_FAILED
    return Outcome.CLIENT_LEFT if exchange.client_left else Outcome.COMPLETED


async def send_body(exchange: Exchange, chunk: bytes, *, is_last: bool) -> None:
    """Write a piece of the answer's body down, waiting while the client is slow; its connection has the bound."""
    while not send_at_once(exchange, chunk, is_last=is_last):
        await exchange.connection.drain()
        if exchange.connection.is_gone:
            return


def send_at_once(exchange: Exchange, chunk: bytes, *, is_last: bool) -> bool:
    """As `send_body`, where nothing has to be waited for; else False, and nothing is written."""
    if exchange.status in BODILESS:
        chunk = b""
    if exchange.client_left or exchange.is_done or not (chunk or is_last):
        return True
    connection = exchange.connection
    if connection.is_write_paused:  # before each piece, so that not even short answers pile up
        return False
    connection.write(chunk, is_last=is_last)
    if is_last:
        exchange.is_done = True
    return True
