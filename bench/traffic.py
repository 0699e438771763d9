"""What agents send and vendors answer, of the sizes that the measurements name: one `Traffic` for each way of
asking that costs the proxy something else.

Every whole answer has ANSWER_BYTES, or as few more as its shape needs, and every stream BURST_EVENTS events with
the same text: what differs is the vendor's own framing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import orjson

from metering.sse import EventCutter, data_of
from simulators import anthropic_messages as anthropic
from simulators import gemini_answers as gemini
from simulators import openai_shapes as openai
from simulators.openai_responses import Response
from simulators.script import chunk
from simulators.text import filler, filler_of_bytes

BURST_EVENTS = 60
ANSWER_BYTES = 832
INPUT_TOKENS, OUTPUT_TOKENS = 500, 120
TURN_BYTES = 2_000
"""A long request is a conversation of turns of about this length."""
ID_PLACE = "5e" * 16
"""Stands in the answers whose ids must be new each time: the vendor puts 32 digits in its place."""

Fields = dict[str, Any]


def _as_it_is(answer: bytes) -> bytes:
    return answer


@dataclass(frozen=True, slots=True)
class Traffic:
    """One vendor's endpoint as one kind of client uses it."""

    name: str
    title: str
    mount: str
    path: str
    body: Callable[[Sequence[str], str, bool], Fields]
    """From the turns (the user's first), the system prompt ("" for none) and whether a stream is asked for."""
    answer: Callable[[str], bytes]
    """The whole answer with this text."""
    events: Callable[[int], list[bytes]]
    """The streamed answer, its text in so many pieces."""
    gateway_header: str
    """Where the client puts its gateway token, and the proxy the vendor's key."""
    scheme: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    stream_path: str = ""
    """Where streams are asked for elsewhere than whole answers."""
    request_id_header: str = ""
    """The name under which the vendor tells its own id of a request."""
    ids_each: int = 0
    """Ids that each answer hands out, which must have an owner first."""
    passed: Callable[[bytes], bytes] = _as_it_is
    """What the client gets of the vendor's stream."""

    def path_of(self, *, is_streaming: bool) -> str:
        return (self.stream_path or self.path) if is_streaming else self.path


# --- requests ---------------------------------------------------------------------------------------------


def small_request(traffic: Traffic, size: int = 2_048, *, is_streaming: bool = False) -> bytes:
    """One question, `size` bytes in all."""
    empty = len(orjson.dumps(traffic.body([""], "", is_streaming)))
    return orjson.dumps(traffic.body([filler_of_bytes(size - empty)], "", is_streaming))


def long_request(traffic: Traffic, size: int = 100 * 1024) -> bytes:
    """A conversation, `size` bytes in all: a system prompt, then turns of both sides in text blocks."""
    turns: list[str] = []
    system = filler_of_bytes(TURN_BYTES)
    for number in count():
        turns.append("")
        missing = size - len(orjson.dumps(traffic.body(turns, system, False)))
        is_last = number % 2 == 0 and missing < 2 * TURN_BYTES
        turns[-1] = filler_of_bytes(missing if is_last else TURN_BYTES)
        if is_last:
            break
    return orjson.dumps(traffic.body(turns, system, False))


def huge_request(traffic: Traffic, size: int = 5_000_000) -> bytes:
    """As an agent sends that works through documents: half of `size` is a conversation, the other half an image."""
    turns = [filler_of_bytes(TURN_BYTES)] * (size // 2 // TURN_BYTES | 1)
    fields = traffic.body(turns, filler_of_bytes(TURN_BYTES), False)
    image = {"type": "base64", "media_type": "image/png", "data": ""}
    fields["messages"][0]["content"].insert(0, {"type": "image", "source": image})
    image["data"] = "A" * (size - len(orjson.dumps(fields)))
    return orjson.dumps(fields)


def _with_roles(turns: Sequence[str], assistant: str) -> list[tuple[str, str]]:
    return [(assistant if number % 2 else "user", turn) for number, turn in enumerate(turns)]


# --- answers ----------------------------------------------------------------------------------------------


def whole_answer(traffic: Traffic) -> bytes:
    """An unstreamed answer of ANSWER_BYTES, or with the shortest text where its shape alone is longer."""
    return traffic.answer(filler_of_bytes(max(1, ANSWER_BYTES - len(traffic.answer("x")) + 1)))


def burst_events(traffic: Traffic) -> list[bytes]:
    """A streamed answer of BURST_EVENTS events."""
    events = traffic.events(BURST_EVENTS - len(traffic.events(1)) + 1)
    assert len(events) == BURST_EVENTS
    return events


def chunked(events: list[bytes]) -> bytes:
    """Events as chunks of their own, and the last chunk: a whole streamed body on the wire."""
    return b"".join(map(chunk, events)) + b"0\r\n\r\n"


_TEXT = filler(BURST_EVENTS * 2)


# --- Anthropic --------------------------------------------------------------------------------------------

_CLAUDE = "claude-sonnet-4-5"
_CLAUDE_USAGE = anthropic.ReportedUsage(input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS)


def _messages_body(
    turns: Sequence[str], system: str, is_streaming: bool, *, max_tokens: int = 1_024
) -> Fields:
    fields: Fields = {"model": _CLAUDE, "max_tokens": max_tokens}
    messages: list[Fields] = [
        {"role": role, "content": [_text_block(turn)] if system else turn}
        for role, turn in _with_roles(turns, "assistant")
    ]
    if system:
        fields["system"] = [_text_block(system)]
    return {**fields, "messages": messages, "stream": is_streaming}


def _text_block(text: str) -> Fields:
    return {"type": "text", "text": text}


def _message(content: anthropic.Content) -> anthropic.Message:
    return anthropic.Message("msg_bench", _CLAUDE, content, _CLAUDE_USAGE)


def _messages(name: str, title: str, body: Callable[[Sequence[str], str, bool], Fields]) -> Traffic:
    return Traffic(
        name,
        title,
        "/api/llm",
        "/v1/messages",
        body=body,
        answer=lambda text: anthropic.message_json(_message(anthropic.Content(text))),
        events=lambda pieces: anthropic.message_events(_message(anthropic.Content(_TEXT, deltas=pieces))),
        gateway_header="x-api-key",
        headers={"anthropic-version": "2023-06-01"},
        request_id_header="request-id",
    )


ANTHROPIC = _messages("anthropic", "Anthropic messages", _messages_body)
ANTHROPIC_SLICED = _messages(
    "anthropic-sliced",
    "Anthropic messages that may be long: held in slices",
    partial(_messages_body, max_tokens=64_000),
)


# --- OpenAI -----------------------------------------------------------------------------------------------

_GPT = "gpt-5.6-sol"
_GPT_USAGE = openai.ReportedUsage(prompt_tokens=INPUT_TOKENS, completion_tokens=OUTPUT_TOKENS)


def _chat_body(turns: Sequence[str], system: str, is_streaming: bool) -> Fields:
    """As most clients send it: the stream tells its usage only if asked."""
    messages: list[Fields] = [{"role": "system", "content": [_text_block(system)]}] if system else []
    messages += [
        {"role": role, "content": [_text_block(turn)] if system else turn}
        for role, turn in _with_roles(turns, "assistant")
    ]
    return {"model": _GPT, "max_completion_tokens": 1024, "messages": messages, "stream": is_streaming}


def _chat_body_asking(turns: Sequence[str], system: str, is_streaming: bool) -> Fields:
    asked = {"stream_options": {"include_usage": True}} if is_streaming else {}
    return {**_chat_body(turns, system, is_streaming), **asked}


def _chat_reply(text: str, pieces: int | None = None) -> openai.Reply:
    return openai.Reply("chatcmpl-bench", _GPT, text, _GPT_USAGE, pieces)


def _chat_events(pieces: int) -> list[bytes]:
    """With usage, whether asked or not: the proxy always asks."""
    chunks = openai.Chunks(includes_usage=True, obfuscates=False)
    return openai.chat_events(_chat_reply(_TEXT, pieces), chunks)


def _without_usage_chunk(stream: bytes) -> bytes:
    def has_usage_alone(event: bytes) -> bool:
        return b'"choices":[],' in data_of(event)

    return b"".join(event for event in EventCutter.events(stream) if not has_usage_alone(event))


def _chat(name: str, title: str, **differences: Any) -> Traffic:
    fields: Fields = {"body": _chat_body_asking, **differences}
    return Traffic(
        name,
        title,
        "/api/openai",
        "/v1/chat/completions",
        answer=lambda text: openai.chat_json(_chat_reply(text)),
        events=_chat_events,
        gateway_header="authorization",
        scheme="Bearer ",
        request_id_header="x-request-id",
        **fields,
    )


OPENAI = _chat("openai", "OpenAI chat")
OPENAI_UNASKED = _chat(
    "openai-unasked", "OpenAI chat, usage not asked for", body=_chat_body, passed=_without_usage_chunk
)


def _response_body(turns: Sequence[str], system: str, is_streaming: bool) -> Fields:
    kinds = {"user": "input_text", "assistant": "output_text"}
    listed = [
        {"role": role, "content": [{"type": kinds[role], "text": turn}] if system else turn}
        for role, turn in _with_roles(turns, "assistant")
    ]
    instructions = {"instructions": system} if system else {}
    return {"model": _GPT, "max_output_tokens": 1024, **instructions, "input": listed, "stream": is_streaming}


def _response(text: str, pieces: int | None = None) -> Response:
    reply = openai.Reply(f"resp_{ID_PLACE}", _GPT, text, _GPT_USAGE, pieces)
    return Response(reply, obfuscates=False)


def _responses(name: str, title: str, **differences: Any) -> Traffic:
    return Traffic(
        name,
        title,
        "/api/openai",
        "/v1/responses",
        answer=lambda text: _response(text).json(),
        events=lambda pieces: _response(_TEXT, pieces).events(),
        gateway_header="authorization",
        scheme="Bearer ",
        request_id_header="x-request-id",
        **differences,
    )


RESPONSES = _responses(
    "responses",
    "OpenAI responses, not stored",
    body=lambda turns, system, is_streaming: {**_response_body(turns, system, is_streaming), "store": False},
)
RESPONSES_STORED = _responses(
    "responses-stored", "OpenAI responses, stored: two ids bound", body=_response_body, ids_each=2
)


# --- Gemini -----------------------------------------------------------------------------------------------

_GEMINI = "gemini-2.5-flash"
_GEMINI_USAGE = gemini.ReportedUsage(input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS)


def _contents_body(turns: Sequence[str], system: str, is_streaming: bool) -> Fields:  # noqa: ARG001 - a stream is asked for by its path
    contents = [{"role": role, "parts": [{"text": turn}]} for role, turn in _with_roles(turns, "model")]
    instruction = {"systemInstruction": {"parts": [{"text": system}]}} if system else {}
    return {**instruction, "contents": contents, "generationConfig": {"maxOutputTokens": 1024}}


def _gemini_answer(text: str, pieces: int | None = None) -> gemini.Answer:
    return gemini.Answer("bench", _GEMINI, gemini.Content(text, chunks=pieces), _GEMINI_USAGE)


GEMINI = Traffic(
    "gemini",
    "Gemini",
    "/api/gemini",
    f"/v1beta/models/{_GEMINI}:generateContent",
    body=_contents_body,
    answer=lambda text: orjson.dumps(gemini.answer_json(_gemini_answer(text))),
    events=lambda pieces: gemini.as_events(gemini.answer_chunks(_gemini_answer(_TEXT, pieces))),
    gateway_header="x-goog-api-key",
    stream_path=f"/v1beta/models/{_GEMINI}:streamGenerateContent?alt=sse",
)

TRAFFICS = (ANTHROPIC, ANTHROPIC_SLICED, OPENAI, OPENAI_UNASKED, RESPONSES, RESPONSES_STORED, GEMINI)
