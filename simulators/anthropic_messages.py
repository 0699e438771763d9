"""The shape of Anthropic's answers on the wire: usage, messages, event streams, errors.

Shapes as in the API reference and in answers recorded in 2026 (Anthropic docs, "Streaming messages", 2026-11).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from metering.usage import CACHE_READ, CACHE_WRITE_1H, CACHE_WRITE_5M, INPUT, OUTPUT, WEB_SEARCHES
from simulators.script import chunk
from simulators.text import text_pieces

PLACEHOLDER_OUTPUT_TOKENS = 3
"""`message_start` reports a few output tokens, before there are any."""

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""The `error.type` of each status (Anthropic docs, "Errors", 2026-11)."""


@dataclass(frozen=True, slots=True)
class ReportedUsage:
    """What an answer says that it used. `input_tokens` excludes the cache, `output_tokens` includes thinking."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    thinking_tokens: int = 0
    web_searches: int = 0
    web_fetches: int = 0
    service_tier: str = "standard"
    speed: str | None = None
    inference_geo: str = "not_available"
    iterations: tuple[Mapping[str, Any], ...] = ()
    """As in the beta field of the same name; the simulator does not check it against the totals."""

    def counts(self) -> dict[str, int]:
        """The billable counts by the meter's names, without zeros: what a ledger entry must say."""
        counts = {
            INPUT: self.input_tokens,
            CACHE_READ: self.cache_read_tokens,
            CACHE_WRITE_5M: self.cache_write_5m_tokens,
            CACHE_WRITE_1H: self.cache_write_1h_tokens,
            OUTPUT: self.output_tokens,
            WEB_SEARCHES: self.web_searches,
        }
        return {unit: count for unit, count in counts.items() if count}

    def in_message(self, *, output_tokens: int | None = None) -> dict[str, Any]:
        """`message.usage`, unstreamed or in `message_start` (there with the placeholder as `output_tokens`)."""
        usage: dict[str, Any] = {
            "input_tokens": self.input_tokens,
            "cache_creation_input_tokens": self.cache_write_5m_tokens + self.cache_write_1h_tokens,
            "cache_read_input_tokens": self.cache_read_tokens,
            "cache_creation": {
                "ephemeral_5m_input_tokens": self.cache_write_5m_tokens,
                "ephemeral_1h_input_tokens": self.cache_write_1h_tokens,
            },
            "output_tokens": self.output_tokens if output_tokens is None else output_tokens,
            "service_tier": self.service_tier,
            "inference_geo": self.inference_geo,
        }
        if self.speed is not None:
            usage["speed"] = self.speed
        if output_tokens is None:
            usage.update(self._details())
        return usage

    def in_delta(self) -> dict[str, Any]:
        """`usage` of `message_delta`: cumulative, and without the lifetimes of what was written to the cache."""
        return {
            "input_tokens": self.input_tokens,
            "cache_creation_input_tokens": self.cache_write_5m_tokens + self.cache_write_1h_tokens,
            "cache_read_input_tokens": self.cache_read_tokens,
            "output_tokens": self.output_tokens,
            **self._details(),
        }

    def _details(self) -> dict[str, Any]:
        details: dict[str, Any] = {}
        if self.thinking_tokens:
            details["output_tokens_details"] = {"thinking_tokens": self.thinking_tokens}
        if self.web_searches or self.web_fetches:
            details["server_tool_use"] = {
                "web_search_requests": self.web_searches,
                "web_fetch_requests": self.web_fetches,
            }
        if self.iterations:
            details["iterations"] = [dict(iteration) for iteration in self.iterations]
        return details


@dataclass(frozen=True, slots=True)
class Content:
    """What the model wrote. `deltas`: in how many pieces the text is streamed; None lets its words decide."""

    text: str
    deltas: int | None = None
    thinking: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """An answer of the Messages API, streamed or not. `usage_at_start`: what `message_start` says, if it says
    something else (server tools make the prompt grow while the answer is being written)."""

    id: str
    model: str
    content: Content
    usage: ReportedUsage
    stop_reason: str = "end_turn"
    usage_at_start: ReportedUsage | None = field(default=None, kw_only=True)


def message_json(message: Message) -> bytes:
    """The body of an unstreamed answer."""
    blocks: list[dict[str, Any]] = []
    if message.content.thinking is not None:
        blocks.append({"type": "thinking", "thinking": message.content.thinking, "signature": SIGNATURE})
    if message.content.text:
        blocks.append({"type": "text", "text": message.content.text})
    return orjson.dumps(
        {
            "model": message.model,
            "id": message.id,
            "type": "message",
            "role": "assistant",
            "content": blocks,
            "stop_reason": message.stop_reason,
            "stop_sequence": None,
            "stop_details": None,
            "usage": message.usage.in_message(),
        }
    )


def message_events(message: Message) -> list[bytes]:
    """The events of a streamed answer, each with its `event:` line and its empty line."""
    return [message_start(message), *content_events(message.content), *message_end(message)]


def message_start(message: Message) -> bytes:
    """The first event: who answers, and the input side of the usage."""
    usage = message.usage if message.usage_at_start is None else message.usage_at_start
    return event(
        "message_start",
        {
            "type": "message_start",
            "message": {
                "model": message.model,
                "id": message.id,
                "type": "message",
                "role": "assistant",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "stop_details": None,
                "usage": usage.in_message(output_tokens=min(PLACEHOLDER_OUTPUT_TOKENS, usage.output_tokens)),
            },
        },
        blanks=3,
    )


def message_end(message: Message) -> tuple[bytes, bytes]:
    """The last two events: why it stopped, the final usage, and the terminator."""
    return (
        event(
            "message_delta",
            {
                "type": "message_delta",
                "delta": {"stop_reason": message.stop_reason, "stop_sequence": None, "stop_details": None},
                "usage": message.usage.in_delta(),
            },
            blanks=12,
        ),
        event("message_stop", {"type": "message_stop"}, blanks=15),
    )


@functools.lru_cache(maxsize=64)
def content_events(content: Content) -> tuple[bytes, ...]:
    """Everything between `message_start` and `message_delta`; a ping follows the first block's start."""
    blocks: list[bytes] = []
    index = 0
    if content.thinking is not None:
        blocks += _block(
            index,
            {"type": "thinking", "thinking": "", "signature": ""},
            [
                {"type": "thinking_delta", "thinking": content.thinking},
                {"type": "signature_delta", "signature": SIGNATURE},
            ],
        )
        index += 1
    if content.text or content.deltas:
        deltas = [
            {"type": "text_delta", "text": piece} for piece in text_pieces(content.text, content.deltas)
        ]
        blocks += _block(index, {"type": "text", "text": ""}, deltas)
    blocks.insert(min(1, len(blocks)), PING)
    return tuple(blocks)


@functools.lru_cache(maxsize=64)
def content_wire(content: Content) -> bytes:
    """`content_events` as chunks, one an event: for answers that are written at once."""
    return b"".join(map(chunk, content_events(content)))


def events_besides_deltas(*, has_thinking: bool) -> int:
    """How many events of a stream are not pieces of its text."""
    start_ping_delta_stop, block = 4, 2
    thinking = 4 if has_thinking else 0  # its start, thinking_delta, signature_delta, stop
    return start_ping_delta_stop + block + thinking


def event(name: str, data: Mapping[str, Any], *, blanks: int = 0) -> bytes:
    """One server-sent event. Anthropic pads the JSON with blanks before its last brace, so that an event's
    length says nothing about its content."""
    return b"event: %b\ndata: %b%b}\n\n" % (name.encode(), orjson.dumps(data)[:-1], b" " * blanks)


PING = b'event: ping\ndata: {"type": "ping"}\n\n'
SIGNATURE = "c2ltdWxhdGVkLXNpZ25hdHVyZQ=="


def error_json(error_type: str, message: str, request_id: str) -> bytes:
    """The body of an error, and the data of an `error` event."""
    return orjson.dumps(
        {"type": "error", "error": {"type": error_type, "message": message}, "request_id": request_id}
    )


def error_event(error_type: str, message: str, request_id: str) -> bytes:
    """How a stream whose 200 is out tells of a failure."""
    return b"event: error\ndata: %b\n\n" % error_json(error_type, message, request_id)


def _block(index: int, start: Mapping[str, Any], deltas: list[dict[str, str]]) -> list[bytes]:
    return [
        event(
            "content_block_start",
            {"type": "content_block_start", "index": index, "content_block": start},
            blanks=6,
        ),
        *(
            event(
                "content_block_delta",
                {"type": "content_block_delta", "index": index, "delta": delta},
                blanks=number * 7 % 13,
            )
            for number, delta in enumerate(deltas)
        ),
        event("content_block_stop", {"type": "content_block_stop", "index": index}),
    ]
