"""Anthropic, scripted: the Messages API, token counts and the model list, as an agent's SDK expects them.

Every answer's usage is known beforehand and kept in `AnthropicSimulator.answers`, so that a test can hold the
ledger to it. What an answer does comes, in this order, from `next(...)`, from the function `script`, from the
request's own `x-simulate` header (for simulators in another process), or from the default.
"""

import collections
import functools
import ssl
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import orjson

from simulators.anthropic_behaviour import (
    JSON_TYPE,
    PLAIN,
    Behaviour,
    Ending,
    Raw,
    answers,
    breaks_after,
    drops,
    errors_after,
    fails,
    hangs,
    parse_simulate,
    replays,
    stall,
    stalls_after,
    streams,
)
from simulators.anthropic_messages import (
    BYTES_PER_TOKEN,
    ERROR_TYPES,
    WORD_BYTES_MIN,
    Content,
    Message,
    ReportedUsage,
    content_wire,
    error_event,
    error_json,
    events_besides_deltas,
    filler,
    message_end,
    message_events,
    message_json,
    message_start,
    tokens_of,
)
from simulators.script import (
    LAST_CHUNK,
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

__all__ = [
    "ACCOUNT_HEADERS",
    "MODELS",
    "ORGANIZATION_ID",
    "PLAIN",
    "VENDOR_KEY",
    "Answered",
    "AnthropicSimulator",
    "Behaviour",
    "Ending",
    "ReportedUsage",
    "answers",
    "breaks_after",
    "drops",
    "errors_after",
    "fails",
    "hangs",
    "message_events",
    "message_json",
    "replays",
    "stalls_after",
    "streams",
]

VENDOR_KEY = "sk-ant-api03-simulated-vendor-key"
"""The platform's own key: a request that does not carry it is answered 401."""
ORGANIZATION_ID = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
"""Stands in every answer's headers; no client of the proxy may ever see it."""
ECHO_CHARS_MAX = 400
"""An unscripted answer repeats so much of the question at most."""
PRESCRIBED_MAX = 10_000
"""Behaviours waiting in `next`."""
MODELS_PAGE_DEFAULT, MODELS_PAGE_MAX = 20, 1000
PATH_MESSAGES, PATH_COUNT_TOKENS, PATH_MODELS = "/v1/messages", "/v1/messages/count_tokens", "/v1/models"

ACCOUNT_HEADERS = (
    ("anthropic-organization-id", ORGANIZATION_ID),
    ("anthropic-ratelimit-requests-limit", "4000"),
    ("anthropic-ratelimit-requests-remaining", "3999"),
    ("anthropic-ratelimit-requests-reset", "2026-11-20T12:00:00Z"),
    ("anthropic-ratelimit-tokens-limit", "4800000"),
    ("anthropic-ratelimit-tokens-remaining", "4799000"),
    ("anthropic-ratelimit-tokens-reset", "2026-11-20T12:00:00Z"),
    ("anthropic-ratelimit-input-tokens-limit", "4000000"),
    ("anthropic-ratelimit-input-tokens-remaining", "3999000"),
    ("anthropic-ratelimit-input-tokens-reset", "2026-11-20T12:00:00Z"),
    ("anthropic-ratelimit-output-tokens-limit", "800000"),
    ("anthropic-ratelimit-output-tokens-remaining", "799000"),
    ("anthropic-ratelimit-output-tokens-reset", "2026-11-20T12:00:00Z"),
)
"""About the platform's account, not about the request: for the proxy's eyes alone."""
EDGE_HEADERS = (
    ("Date", "Fri, 20 Nov 2026 12:00:00 GMT"),
    ("Server", "cloudflare"),
    ("server-timing", "x-originResponse;dur=1234"),
    ("Set-Cookie", "_cfuvid=simulated; HttpOnly; SameSite=None; Secure; Path=/; Domain=api.anthropic.com"),
    ("vary", "Accept-Encoding"),
)
STREAM_TYPE = "text/event-stream; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Model:
    """One line of the model list. `alias` is the undated name that clients may ask for."""

    id: str
    display_name: str
    created_at: str
    max_input_tokens: int
    max_tokens: int
    alias: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "type": "model",
            "id": self.id,
            "display_name": self.display_name,
            "created_at": self.created_at,
            "max_input_tokens": self.max_input_tokens,
            "max_tokens": self.max_tokens,
            "lifecycle": "active",
        }


MODELS = (
    Model("claude-sonnet-5", "Claude Sonnet 5", "2026-06-18T00:00:00Z", 1_000_000, 128_000),
    Model("claude-fable-5", "Claude Fable 5", "2026-05-14T00:00:00Z", 1_000_000, 128_000),
    Model("claude-opus-4-8", "Claude Opus 4.8", "2026-04-02T00:00:00Z", 1_000_000, 128_000),
    Model("claude-sonnet-4-6", "Claude Sonnet 4.6", "2026-02-17T00:00:00Z", 1_000_000, 128_000),
    Model(
        "claude-opus-4-5-20251101",
        "Claude Opus 4.5",
        "2025-11-24T00:00:00Z",
        200_000,
        64_000,
        "claude-opus-4-5",
    ),
    Model(
        "claude-haiku-4-5-20251001",
        "Claude Haiku 4.5",
        "2025-10-15T00:00:00Z",
        200_000,
        64_000,
        "claude-haiku-4-5",
    ),
    Model(
        "claude-sonnet-4-5-20250929",
        "Claude Sonnet 4.5",
        "2025-09-29T00:00:00Z",
        200_000,
        64_000,
        "claude-sonnet-4-5",
    ),
)
"""Newest first, as the vendor lists them; dates of those after 2025 are made up."""
MODEL_ALIASES = {model.alias: model.id for model in MODELS if model.alias is not None}


@dataclass(frozen=True, slots=True)
class Answered:
    """What one answer to a billable request says, whether or not its end was reached.

    `usage` is None for an error before any work. `tag` is the request's `x-request-tag` header, else its
    `metadata.user_id`, else empty.
    """

    number: int
    tag: str
    request_id: str
    message_id: str
    model: str
    is_streaming: bool
    status: int
    usage: ReportedUsage | None

    def facts(self) -> Mapping[str, Any]:
        return {
            "tag": self.tag,
            "request_id": self.request_id,
            "message_id": self.message_id,
            "model": self.model,
            "is_streaming": self.is_streaming,
            "status": self.status,
            "usage": None if self.usage is None else self.usage.counts(),
        }


class _RefusedError(Exception):
    """An error that the real API would answer on its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class AnthropicSimulator(SimulatorServer):
    """`https://api.anthropic.com` on a loopback port.

    `api_key=None` accepts any key. `default` is the behaviour of answers that nobody scripted; `gzip`
    compresses for clients that accept it.
    """

    def __init__(
        self,
        *,
        api_key: str | None = VENDOR_KEY,
        default: Behaviour = PLAIN,
        gzip: bool = False,
        models: Sequence[Model] = MODELS,
        keeps_record: bool = True,
        record_to: Path | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(keeps_record=keeps_record, record_to=record_to, tls=tls)
        self.script: Callable[[ReceivedRequest], Behaviour | Script | None] | None = None
        """Chooses the behaviour of a request; None falls through to the header and the default."""
        self._api_key = None if api_key is None else api_key.encode()
        self._default = default
        self._gzip = gzip
        self._models = tuple(models)
        self._prescribed: collections.deque[Behaviour | Script] = collections.deque()

    @property
    def answers(self) -> list[Answered]:
        """What the answers to `POST /v1/messages` say, in order of arrival."""
        return [exchange.reports for exchange in self.exchanges if isinstance(exchange.reports, Answered)]

    def next(self, *behaviours: Behaviour | Script) -> Self:
        """The behaviours of the next requests, one each, before everything else."""
        if len(self._prescribed) + len(behaviours) > PRESCRIBED_MAX:
            raise ValueError(f"more than {PRESCRIBED_MAX} behaviours are waiting")
        self._prescribed.extend(behaviours)
        return self

    def answer(self, request: ReceivedRequest) -> Script | Ready:
        """Check what the real API checks, choose the behaviour, and build the answer."""
        try:
            respond = self._route(request)
            self._authenticate(request)
            behaviour = self._behaviour(request)
            if isinstance(behaviour, Script):
                return behaviour
            return respond(_Turn(request, behaviour, gzip=self._gzip))
        except _RefusedError as refusal:
            return _Turn(request, fails(refusal.status, message=refusal.message), gzip=False).fail()

    def _route(self, request: ReceivedRequest) -> Callable[["_Turn"], Script | Ready]:
        path = request.path
        if path in (PATH_MESSAGES, PATH_COUNT_TOKENS):
            method, respond = "POST", self._message if path == PATH_MESSAGES else self._count
        elif path == PATH_MODELS:
            method, respond = "GET", self._list_models
        elif path.startswith(PATH_MODELS + "/"):
            method, respond = "GET", self._model
        else:
            raise _RefusedError(404, f"Not found: {path}")
        if request.method != method:
            raise _RefusedError(405, "Method Not Allowed")
        return respond

    def _authenticate(self, request: ReceivedRequest) -> None:
        key = request.header(b"x-api-key") or request.header(b"authorization").removeprefix(b"Bearer ")
        if not key:
            raise _RefusedError(401, "x-api-key header is required")
        if self._api_key is not None and key != self._api_key:
            raise _RefusedError(401, "invalid x-api-key")
        if not request.header(b"anthropic-version"):
            raise _RefusedError(400, "anthropic-version: header is required")

    def _behaviour(self, request: ReceivedRequest) -> Behaviour | Script:
        if self._prescribed:
            return self._prescribed.popleft()
        chosen = None if self.script is None else self.script(request)
        if chosen is not None:
            return chosen
        asked = request.header(b"x-simulate")
        if not asked:
            return self._default
        try:
            return parse_simulate(asked.decode("latin-1"))
        except ValueError as error:
            raise _RefusedError(400, str(error)) from error

    def _message(self, turn: "_Turn") -> Script | Ready:
        fields = turn.fields(("model", "max_tokens", "messages"))
        max_tokens = fields["max_tokens"]
        if type(max_tokens) is not int or max_tokens < 0:
            raise _RefusedError(400, "max_tokens: Input should be a valid integer")
        model = str(fields["model"])
        if not model.startswith("claude-"):
            raise _RefusedError(404, f"model: {model}")
        return turn.message(fields)

    def _count(self, turn: "_Turn") -> Script | Ready:
        turn.fields(("model", "messages"))
        return turn.json(orjson.dumps({"input_tokens": turn.input_tokens}))

    def _model(self, turn: "_Turn") -> Script | Ready:
        name = turn.request.path.removeprefix(PATH_MODELS + "/")
        for model in self._models:
            if name in (model.id, model.alias):
                return turn.json(orjson.dumps(model.as_json()))
        raise _RefusedError(404, f"model: {name}")

    def _list_models(self, turn: "_Turn") -> Script | Ready:
        query = turn.request.query
        limit = query.get("limit", str(MODELS_PAGE_DEFAULT))
        if not limit.isdigit() or not 1 <= int(limit) <= MODELS_PAGE_MAX:
            raise _RefusedError(400, f"limit: expected 1 to {MODELS_PAGE_MAX}")
        page, has_more = self._page(int(limit), query.get("after_id"), query.get("before_id"))
        return turn.json(
            orjson.dumps(
                {
                    "data": [model.as_json() for model in page],
                    "has_more": has_more,
                    "first_id": page[0].id if page else None,
                    "last_id": page[-1].id if page else None,
                }
            )
        )

    def _page(self, limit: int, after: str | None, before: str | None) -> tuple[Sequence[Model], bool]:
        """The page, and whether more models follow in the direction of paging."""
        ids = [model.id for model in self._models]
        for cursor in (after, before):
            if cursor is not None and cursor not in ids:
                raise _RefusedError(400, f"unknown model id {cursor} as a cursor")
        if before is not None:
            end = ids.index(before)
            start = max(end - limit, 0)
            return self._models[start:end], start > 0
        start = 0 if after is None else ids.index(after) + 1
        return self._models[start : start + limit], start + limit < len(ids)


class _Turn:
    """One request with its behaviour: builds the answer."""

    def __init__(self, request: ReceivedRequest, behaviour: Behaviour, *, gzip: bool) -> None:
        self.request = request
        self.behaviour = behaviour
        self.request_id = f"req_011Sim{request.number:018d}"
        wants_gzip = gzip if behaviour.gzip is None else behaviour.gzip
        self._is_gzip = wants_gzip and b"gzip" in request.header(b"accept-encoding")
        self._reports: Answered | None = None

    @property
    def input_tokens(self) -> int:
        return -(-len(self.request.body) // BYTES_PER_TOKEN)

    def fields(self, required: Sequence[str]) -> dict[str, Any]:
        """The request's JSON object. Raises _RefusedError(400) when it is none or lacks a required field."""
        try:
            fields = orjson.loads(self.request.body)
        except orjson.JSONDecodeError as error:
            raise _RefusedError(400, f"The request body is not valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise _RefusedError(400, "The request body should be a valid dictionary")
        for name in required:
            if name not in fields:
                raise _RefusedError(400, f"{name}: Field required")
        return fields

    def message(self, fields: Mapping[str, Any]) -> Script | Ready:
        behaviour = self.behaviour
        message = self._compose(fields)
        is_streaming = fields.get("stream") is True
        is_error = behaviour.status >= 400  # noqa: PLR2004 - where HTTP's errors begin
        usage = behaviour.usage if is_error or behaviour.raw is not None else message.usage
        self._reports = Answered(
            number=self.request.number,
            tag=_tag(self.request, fields),
            request_id=self.request_id,
            message_id=message.id,
            model=message.model,
            is_streaming=is_streaming,
            status=behaviour.status,
            usage=usage,
        )
        return (
            self._stream(message)
            if is_streaming and _is_ordinary(behaviour)
            else self.json(message_json(message))
        )

    def fail(self) -> Script | Ready:
        """The behaviour's error."""
        behaviour = self.behaviour
        error_type = behaviour.error_type or ERROR_TYPES.get(behaviour.status, "api_error")
        return self._body(error_json(error_type, behaviour.error_message, self.request_id))

    def json(self, body: bytes) -> Script | Ready:
        """An unstreamed answer: `body`, unless the behaviour has something else to say."""
        if self.behaviour.raw is not None:
            return self._raw(self.behaviour.raw)
        if self.behaviour.status >= 400:  # noqa: PLR2004 - where HTTP's errors begin
            return self.fail()
        return self._body(body)

    def _compose(self, fields: Mapping[str, Any]) -> Message:
        content = self._content(fields)
        usage, is_limited = self._usage(fields, content)
        model = str(fields["model"])
        return Message(
            id=f"msg_01Sim{self.request.number:019d}",
            model=self.behaviour.model or MODEL_ALIASES.get(model, model),
            content=content,
            usage=usage,
            stop_reason=self.behaviour.stop_reason or ("max_tokens" if is_limited else "end_turn"),
            usage_at_start=self.behaviour.usage_at_start,
        )

    def _content(self, fields: Mapping[str, Any]) -> Content:
        behaviour = self.behaviour
        deltas = None
        if behaviour.events is not None:
            deltas = max(
                1, behaviour.events - events_besides_deltas(has_thinking=behaviour.thinking is not None)
            )
        if behaviour.text_bytes is not None:
            text = filler(behaviour.text_bytes // WORD_BYTES_MIN + 1)[: behaviour.text_bytes]
        elif behaviour.text is not None:
            text = behaviour.text
        elif deltas is not None:
            text = filler(deltas)
        else:
            echo = f"You said: {_last_text(fields)}"
            text = echo[: min(BYTES_PER_TOKEN * fields["max_tokens"], ECHO_CHARS_MAX)]
        return Content(text, deltas, behaviour.thinking)

    def _usage(self, fields: Mapping[str, Any], content: Content) -> tuple[ReportedUsage, bool]:
        """The usage to report, and whether `max_tokens` limited it."""
        if self.behaviour.usage is not None:
            return replace(self.behaviour.usage, **self.behaviour.usage_changes), False
        thinking_tokens = tokens_of(content.thinking or "")
        wanted, ceiling = tokens_of(content.text) + thinking_tokens, fields["max_tokens"]
        usage = ReportedUsage(
            input_tokens=self.input_tokens,
            output_tokens=min(wanted, ceiling),
            thinking_tokens=min(thinking_tokens, ceiling),
            speed=fields.get("speed"),
            inference_geo=fields.get("inference_geo") or "not_available",
        )
        changes = self.behaviour.usage_changes
        return (replace(usage, **changes) if changes else usage), wanted >= ceiling

    def _headers(self, content_type: str) -> tuple[tuple[str, str], ...]:
        return (
            *EDGE_HEADERS,
            ("Content-Type", content_type),
            ("request-id", self.request_id),
            *ACCOUNT_HEADERS,
            *self.behaviour.headers,
        )

    def _stream(self, message: Message) -> Script | Ready:
        if self.behaviour.is_burst and not self._is_gzip:
            delta, stop = message_end(message)
            wire = (
                self._burst_head(STREAM_TYPE, b"Transfer-Encoding: chunked"),
                chunk(message_start(message)),
                content_wire(message.content),
                chunk(delta),
                chunk(stop),
                LAST_CHUNK,
            )
            return Ready(b"".join(wire), self._reports)
        steps = tuple(self._stream_steps(message_events(message)))
        return self._script(steps, STREAM_TYPE, Framing.CHUNKED)

    def _stream_steps(self, events: list[bytes]) -> Iterator[Step]:
        behaviour = self.behaviour
        encode = _gzip_encoder() if self._is_gzip else _identity
        for number, event in enumerate(events):
            if number == behaviour.stalls_after:
                yield stall(behaviour.gate)
            if number == behaviour.errors_after:
                error_type = behaviour.error_type or "overloaded_error"
                yield Send(
                    encode(error_event(error_type, behaviour.error_message, self.request_id), is_last=True)
                )
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
        if self.behaviour.is_burst and not self._is_gzip:
            length = b"Content-Length: %d" % len(body)
            return Ready(self._burst_head(JSON_TYPE, length) + body, self._reports)
        if self._is_gzip:
            body = _gzip_encoder()(body, is_last=True)
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

    def _raw(self, raw: Raw) -> Script:
        content_encoding = (
            () if raw.content_encoding is None else (("Content-Encoding", raw.content_encoding),)
        )
        return Script(
            status=self.behaviour.status,
            headers=(*self._headers(raw.content_type), *content_encoding),
            steps=tuple(self._body_steps(raw.body)),
            framing=raw.framing,
            before=self.behaviour.before,
            split=self.behaviour.split,
            wire_split=self.behaviour.wire_split,
            length_bytes=len(raw.body),
            closes=self.behaviour.closes,
            reports=self._reports,
        )

    def _script(
        self, steps: tuple[Step, ...], content_type: str, framing: Framing, *, length_bytes: int | None = None
    ) -> Script:
        headers = self._headers(content_type)
        return Script(
            status=self.behaviour.status,
            headers=(*headers, ("Content-Encoding", "gzip")) if self._is_gzip else headers,
            steps=steps,
            framing=framing,
            before=self.behaviour.before,
            split=self.behaviour.split,
            wire_split=self.behaviour.wire_split,
            length_bytes=length_bytes,
            closes=self.behaviour.closes,
            reports=self._reports,
        )

    def _burst_head(self, content_type: str, framing: bytes) -> bytes:
        """The same head as a script's; all but the request id is kept from the last time."""
        opening, closing = _head_around_request_id(
            self.behaviour.status, content_type, self.behaviour.headers
        )
        return b"%b%b%b%b\r\n\r\n" % (opening, self.request_id.encode(), closing, framing)


_MARK = "\x00"


@functools.lru_cache(maxsize=64)
def _head_around_request_id(
    status: int, content_type: str, more: tuple[tuple[str, str], ...]
) -> tuple[bytes, bytes]:
    headers = (*EDGE_HEADERS, ("Content-Type", content_type), ("request-id", _MARK), *ACCOUNT_HEADERS, *more)
    opening, _, closing = head(status, headers).partition(_MARK.encode())
    return opening, closing.removesuffix(b"\r\n")


_BREAKS: Mapping[Ending, tuple[Step, ...]] = {
    Ending.FIN: (Disconnect(),),
    Ending.RESET: (Reset(),),
    Ending.CLEAN: (),
}


def _is_ordinary(behaviour: Behaviour) -> bool:
    return behaviour.raw is None and behaviour.status < 400  # noqa: PLR2004 - where HTTP's errors begin


def _identity(data: bytes, *, is_last: bool) -> bytes:  # noqa: ARG001 - the signature of an encoder
    return data


def _gzip_encoder() -> Callable[..., bytes]:
    """Compresses piece by piece; each can be decoded as soon as it arrives (a sync flush, as the vendor does)."""
    compressor = zlib.compressobj(wbits=31)

    def encode(data: bytes, *, is_last: bool) -> bytes:
        return compressor.compress(data) + compressor.flush(zlib.Z_FINISH if is_last else zlib.Z_SYNC_FLUSH)

    return encode


def _tag(request: ReceivedRequest, fields: Mapping[str, Any]) -> str:
    tag = request.header(b"x-request-tag")
    if tag:
        return tag.decode("latin-1")
    metadata = fields.get("metadata")
    return str(metadata.get("user_id") or "") if isinstance(metadata, dict) else ""


def _last_text(fields: Mapping[str, Any]) -> str:
    """The text of the last message: a string, or its text blocks."""
    messages = fields["messages"]
    last = messages[-1] if isinstance(messages, list) and messages else {}
    content = last.get("content", "") if isinstance(last, dict) else ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(str(block.get("text", "")) for block in content if isinstance(block, dict))
