"""What every simulated vendor does the same way: who says what an answer does, and how it is put on the wire.

A vendor adds its endpoints, its checks, and the shapes of its bodies and errors.
"""

import collections
import functools
import re
import ssl
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypedDict, TypeVar, Unpack

import orjson

from simulators.behaviour import JSON_TYPE, BehaviourT, Ending, Raw, ReportedUsage, stall
from simulators.script import (
    LAST_CHUNK,
    Answer,
    Disconnect,
    Framing,
    Pause,
    Ready,
    Reset,
    Script,
    Send,
    Step,
    chunk,
    head,
)
from simulators.server import ReceivedRequest, SimulatorServer
from simulators.text import BYTES_PER_TOKEN, filler, filler_of_bytes

PRESCRIBED_MAX = 10_000
"""Behaviours waiting in `next`."""
PRESCRIBED_ON_MAX = 100
"""Behaviours waiting in `next_on`: each is looked at for every request."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What one answer to a billable request says, whether or not its end was reached.

    `usage` is None for an error before any work. `tag` is the request's `x-request-tag` header, else what the
    request's body says of its user, else empty.
    """

    number: int
    tag: str
    request_id: str
    message_id: str
    model: str
    is_streaming: bool
    status: int
    usage: Any
    """The vendor's `ReportedUsage`, or None."""

    def facts(self) -> Mapping[str, Any]:
        usage: ReportedUsage | None = self.usage
        return {
            "tag": self.tag,
            "request_id": self.request_id,
            "message_id": self.message_id,
            "model": self.model,
            "is_streaming": self.is_streaming,
            "status": self.status,
            "usage": None if usage is None else usage.counts(),
        }


class RefusedError(Exception):
    """An error that the real API would answer on its own. `more`: further fields of the vendor's `Behaviour`."""

    def __init__(self, status: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.more = more


class Turn(ABC, Generic[BehaviourT]):
    """One request with its behaviour: builds the answer. A vendor's own says what stands in heads and errors."""

    def __init__(self, request: ReceivedRequest, behaviour: BehaviourT, *, gzip: bool) -> None:
        self.request = request
        self.behaviour = behaviour
        wants_gzip = gzip if behaviour.gzip is None else behaviour.gzip
        self.is_gzip = wants_gzip and b"gzip" in request.header(b"accept-encoding")
        self.reports: Answered | None = None

    @property
    @abstractmethod
    def request_id(self) -> str:
        """The id of this request in the head of its answer; "" where the vendor has none."""

    @classmethod
    @abstractmethod
    def headers(cls, content_type: str, request_id: str) -> tuple[tuple[str, str], ...]:
        """The header section, without the behaviour's own headers and without the framing."""

    @abstractmethod
    def error_body(self) -> bytes:
        """The behaviour's error as a JSON body."""

    @abstractmethod
    def error_event(self) -> bytes:
        """The behaviour's error as the last event of a stream whose 200 is out."""

    @property
    def input_tokens(self) -> int:
        return -(-len(self.request.body) // BYTES_PER_TOKEN)

    @property
    def is_ordinary(self) -> bool:
        """The vendor's own answer, neither an error nor a body given by the behaviour."""
        return self.behaviour.raw is None and not self.behaviour.is_error

    @property
    def is_burst(self) -> bool:
        """The whole answer may be written at once."""
        return self.behaviour.is_burst and not self.is_gzip

    def fields(self, required: Sequence[str]) -> dict[str, Any]:
        """The request's JSON object. Raises RefusedError(400) when it is none or lacks a required field."""
        try:
            fields = orjson.loads(self.request.body)
        except orjson.JSONDecodeError as error:
            raise RefusedError(400, f"The request body is not valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise RefusedError(400, "The request body should be a valid dictionary")
        for name in required:
            if name not in fields:
                raise RefusedError(400, f"{name}: Field required")
        return fields

    def scripted_text(self, deltas: int | None) -> str | None:
        """The text that the behaviour gives, or asks for by its size or number of pieces; None for an echo."""
        behaviour = self.behaviour
        if behaviour.text_bytes is not None:
            return filler_of_bytes(behaviour.text_bytes)
        if behaviour.text is not None:
            return behaviour.text
        return None if deltas is None else filler(deltas)

    def fail(self) -> Script | Ready:
        """The behaviour's error."""
        return self._body(self.error_body())

    def json(self, body: bytes) -> Script | Ready:
        """An unstreamed answer: `body`, unless the behaviour has something else to say."""
        if self.behaviour.raw is not None:
            return self._raw(self.behaviour.raw)
        if self.behaviour.is_error:
            return self.fail()
        return self._body(body)

    def stream(self, events: Sequence[bytes], content_type: str) -> Script | Ready:
        """A streamed answer, one chunk an event, with what the behaviour does to it."""
        if self.is_burst:
            return self.burst(b"".join(map(chunk, events)), content_type)
        return self._script(tuple(self._stream_steps(events)), content_type, Framing.CHUNKED)

    def burst(self, chunks: bytes, content_type: str) -> Ready:
        """A streamed answer whose events are chunks already, written at once."""
        wire = (self._burst_head(content_type, b"Transfer-Encoding: chunked"), chunks, LAST_CHUNK)
        return Ready(b"".join(wire), self.reports)

    def _stream_steps(self, events: Sequence[bytes]) -> Iterator[Step]:
        behaviour = self.behaviour
        encode = _gzip_encoder() if self.is_gzip else _identity
        for number, event in enumerate(events):
            if number == behaviour.stalls_after:
                yield stall(behaviour.gate)
            if number == behaviour.errors_after:
                yield Send(encode(self.error_event(), is_last=True))
                return
            if number == behaviour.breaks_after:
                yield from _BREAKS[behaviour.ending]
                return
            if number and behaviour.pace_s:
                yield Pause(behaviour.pace_s)
            yield Send(encode(event, is_last=number == len(events) - 1))
        if behaviour.stalls_after == len(events):
            yield stall(behaviour.gate)
        if behaviour.breaks_after == len(events):
            yield from _BREAKS[behaviour.ending]

    def _body(self, body: bytes) -> Script | Ready:
        coding = ""
        if self.is_gzip:
            body, coding = _gzip_encoder()(body, is_last=True), "gzip"
        if self.behaviour.is_burst:
            length = b"Content-Length: %d" % len(body)
            return Ready(self._burst_head(JSON_TYPE, length, coding) + body, self.reports)
        steps = tuple(self._body_steps(body))
        return self._script(steps, JSON_TYPE, Framing.LENGTH, length_bytes=len(body))

    def _body_steps(self, body: bytes) -> Iterator[Step]:
        """A body whole, or with the silence or the break at its byte. A clean break of a length is a FIN."""
        behaviour = self.behaviour
        sent = 0
        if behaviour.stalls_after is not None:
            sent = behaviour.stalls_after
            yield Send(body[:sent])
            yield stall(behaviour.gate)
        if behaviour.breaks_after is not None:
            yield Send(body[sent : behaviour.breaks_after])
            yield Reset() if behaviour.ending is Ending.RESET else Disconnect()
        yield Send(body[sent:])

    def _raw(self, raw: Raw) -> Script | Ready:
        encoding = raw.content_encoding
        if self.behaviour.is_burst and raw.framing is Framing.CHUNKED and raw.body:
            how = self._burst_head(raw.content_type, b"Transfer-Encoding: chunked", encoding or "")
            return Ready(b"".join((how, chunk(raw.body), LAST_CHUNK)), self.reports)
        return self._script(
            tuple(self._body_steps(raw.body)),
            raw.content_type,
            raw.framing,
            length_bytes=len(raw.body),
            more=() if encoding is None else (("Content-Encoding", encoding),),
        )

    def _script(
        self,
        steps: tuple[Step, ...],
        content_type: str,
        framing: Framing,
        *,
        length_bytes: int | None = None,
        more: tuple[tuple[str, str], ...] | None = None,
    ) -> Script:
        behaviour = self.behaviour
        if more is None:
            more = (("Content-Encoding", "gzip"),) if self.is_gzip else ()
        return Script(
            status=behaviour.status,
            headers=(*self.headers(content_type, self.request_id), *behaviour.headers, *more),
            steps=steps,
            framing=framing,
            before=behaviour.before,
            split=behaviour.split,
            wire_split=behaviour.wire_split,
            length_bytes=length_bytes,
            closes=behaviour.closes,
            reports=self.reports,
        )

    def _burst_head(self, content_type: str, framing: bytes, coding: str = "") -> bytes:
        """The same head as a script's; all but the request id is kept from the last time."""
        more = (*self.behaviour.headers, ("Content-Encoding", coding)) if coding else self.behaviour.headers
        kept = _head_but_request_id(type(self), self.behaviour.status, content_type, more)
        return b"%b%b\r\n\r\n" % (kept.replace(_MARK, self.request_id.encode()), framing)


_MARK = b"\x00"


@functools.lru_cache(maxsize=64)
def _head_but_request_id(
    kind: type[Turn[Any]], status: int, content_type: str, more: tuple[tuple[str, str], ...]
) -> bytes:
    return head(status, (*kind.headers(content_type, _MARK.decode()), *more)).removesuffix(b"\r\n")


_BREAKS: Mapping[Ending, tuple[Step, ...]] = {
    Ending.FIN: (Disconnect(),),
    Ending.RESET: (Reset(),),
    Ending.CLEAN: (),
}


def _identity(data: bytes, *, is_last: bool) -> bytes:  # noqa: ARG001 - the signature of an encoder
    return data


def _gzip_encoder() -> Callable[..., bytes]:
    """Compresses piece by piece; each can be decoded as soon as it arrives (a sync flush, as vendors do)."""
    compressor = zlib.compressobj(wbits=31)

    def encode(data: bytes, *, is_last: bool) -> bytes:
        return compressor.compress(data) + compressor.flush(zlib.Z_FINISH if is_last else zlib.Z_SYNC_FLUSH)

    return encode


TurnT = TypeVar("TurnT", bound=Turn[Any])
AnsweredT = TypeVar("AnsweredT", bound=Answered)


class Options(TypedDict, Generic[BehaviourT], total=False):
    """What every simulated vendor may be told when it is made."""

    api_key: str | None
    """The key to ask for: the vendor's `vendor_key`, unless given; None accepts any."""
    default: BehaviourT
    """What an answer does when nothing else says so: an empty one, unless given."""
    gzip: bool
    """Compress for clients that accept it."""
    keeps_record: bool
    record_to: Path | None
    tls: ssl.SSLContext | None
    """These three as `SimulatorServer` takes them."""


class VendorSimulator(SimulatorServer, Generic[BehaviourT, TurnT]):
    """A vendor's API on a loopback port.

    What an answer does comes, in this order, from `next_on(...)`, from `next(...)`, from the function `script`, from the request's own
    `x-simulate` header (for simulators in another process), or from the option `default`.
    """

    vendor_key: ClassVar[str]
    """The platform's own key there."""
    behaviour_type: type[BehaviourT]
    turn_type: type[TurnT]
    parse_simulate: Callable[[str], BehaviourT]

    def __init__(self, **options: Unpack[Options[BehaviourT]]) -> None:
        super().__init__(
            keeps_record=options.get("keeps_record", True),
            record_to=options.get("record_to"),
            tls=options.get("tls"),
        )
        self.script: Callable[[ReceivedRequest], BehaviourT | Script | None] | None = None
        """Chooses the behaviour of a request; None falls through to the header and the default."""
        api_key = options.get("api_key", self.vendor_key)
        self.api_key = None if api_key is None else api_key.encode()
        self._default = options.get("default") or self.behaviour_type()
        self._gzip = options.get("gzip", False)
        self._prescribed: collections.deque[BehaviourT | Script] = collections.deque()
        self._prescribed_on: list[tuple[re.Pattern[str], BehaviourT | Script]] = []

    @abstractmethod
    def route(self, request: ReceivedRequest) -> Callable[[TurnT], Answer]:
        """What answers this method and path. Raises RefusedError."""

    @abstractmethod
    def authenticate(self, request: ReceivedRequest) -> None:
        """Check the key, and what else the vendor asks of every request. Raises RefusedError."""

    def next(self, *behaviours: BehaviourT | Script) -> Self:
        """The behaviours of the next requests, one each, before everything else."""
        if len(self._prescribed) + len(behaviours) > PRESCRIBED_MAX:
            raise ValueError(f"more than {PRESCRIBED_MAX} behaviours are waiting")
        self._prescribed.extend(behaviours)
        return self

    def next_on(self, operation: str, *behaviours: BehaviourT | Script) -> Self:
        """The behaviours of the next requests whose `METHOD path` this expression matches whole; before `next`'s."""
        if len(self._prescribed_on) + len(behaviours) > PRESCRIBED_ON_MAX:
            raise ValueError(f"more than {PRESCRIBED_ON_MAX} behaviours are waiting")
        pattern = re.compile(operation)
        self._prescribed_on.extend((pattern, behaviour) for behaviour in behaviours)
        return self

    def answer(self, request: ReceivedRequest) -> Answer:
        """Check what the real API checks, choose the behaviour, and build the answer."""
        try:
            respond = self.route(request)
            self.authenticate(request)
            behaviour = self._behaviour(request)
            if isinstance(behaviour, Script):
                return behaviour
            return respond(self.turn_type(request, behaviour, gzip=self._gzip))
        except RefusedError as refusal:
            return self._refuse(request, refusal)

    def answers_of(self, kind: type[AnsweredT]) -> list[AnsweredT]:
        """What the recorded answers of this kind say, in order of arrival."""
        return [exchange.reports for exchange in self.exchanges if isinstance(exchange.reports, kind)]

    def _refuse(self, request: ReceivedRequest, refusal: RefusedError) -> Script | Ready:
        behaviour = self.behaviour_type(status=refusal.status, error_message=refusal.message, **refusal.more)
        return self.turn_type(request, behaviour, gzip=False).fail()

    def _behaviour(self, request: ReceivedRequest) -> BehaviourT | Script:
        for number, (pattern, _) in enumerate(self._prescribed_on):
            if pattern.fullmatch(f"{request.method} {request.path}"):
                return self._prescribed_on.pop(number)[1]
        if self._prescribed:
            return self._prescribed.popleft()
        chosen = None if self.script is None else self.script(request)
        if chosen is not None:
            return chosen
        asked = request.header(b"x-simulate")
        if not asked:
            return self._default
        try:
            return type(self).parse_simulate(asked.decode("latin-1"))
        except ValueError as error:
            raise RefusedError(400, str(error)) from error
