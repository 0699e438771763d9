"""What agents send and vendors answer, of the sizes that the measurements name."""

from itertools import count
from typing import Any

import orjson

from simulators.anthropic_messages import (
    Content,
    Message,
    ReportedUsage,
    events_besides_deltas,
    message_events,
    message_json,
)
from simulators.script import chunk
from simulators.text import filler

PATH = "/v1/messages"
MOUNT = "/api/llm"
MODEL = "claude-sonnet-4-5"
BURST_EVENTS = 60
USAGE = ReportedUsage(input_tokens=500, output_tokens=120)
TURN_BYTES = 2_000
"""A long request is a conversation of turns of about this length."""


def small_request(size: int = 2_048, *, stream: bool = False) -> bytes:
    """One question, `size` bytes in all."""
    body: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 1024,
        "messages": [{"role": "user", "content": ""}],
        "stream": stream,
    }
    body["messages"][0]["content"] = _text(size - len(orjson.dumps(body)))
    return orjson.dumps(body)


def long_request(size: int = 100 * 1024) -> bytes:
    """A conversation, `size` bytes in all: a system prompt, then turns of both sides in text blocks."""
    body: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 1024,
        "system": [{"type": "text", "text": _text(TURN_BYTES)}],
        "messages": [],
    }
    for number in count():
        role = "assistant" if number % 2 else "user"
        body["messages"].append({"role": role, "content": [{"type": "text", "text": ""}]})
        missing = size - len(orjson.dumps(body))
        is_last = role == "user" and missing < 2 * TURN_BYTES
        body["messages"][-1]["content"][0]["text"] = _text(missing if is_last else TURN_BYTES)
        if is_last:
            break
    return orjson.dumps(body)


def _text(size: int) -> str:
    return filler(size)[:size]


def answer_json() -> bytes:
    """An unstreamed answer of some 800 bytes."""
    return message_json(Message("msg_bench", MODEL, Content(filler(80)), USAGE))


def burst_events() -> list[bytes]:
    """A streamed answer of BURST_EVENTS events."""
    content = Content(filler(120), deltas=BURST_EVENTS - events_besides_deltas(has_thinking=False))
    events = message_events(Message("msg_bench", MODEL, content, USAGE))
    assert len(events) == BURST_EVENTS
    return events


def chunked(events: list[bytes]) -> bytes:
    """Events as chunks of their own, and the last chunk: a whole streamed body on the wire."""
    return b"".join(map(chunk, events)) + b"0\r\n\r\n"
