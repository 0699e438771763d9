"""The shape of OpenAI's answers on the wire: usage, errors, chat completions, older completions, embeddings.

Shapes as in the vendor's own SDK (openai 3, its types) and in answers recorded in 2026.
"""

import base64
import functools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from metering.usage import (
    CACHE_READ,
    CACHE_WRITE_12H,
    CACHE_WRITE_30M,
    INPUT,
    INPUT_AUDIO,
    OUTPUT,
    OUTPUT_AUDIO,
    WEB_SEARCHES,
)
from simulators.text import text_pieces

CREATED_S = 1_795_176_000
"""Every object was created then, 2026-11-20T12:00:00Z."""
FINGERPRINT = "fp_simulated"
OBFUSCATION = "kQ3vX9aPz7LmB2"
"""Cut to different lengths, so that an event's length says nothing about its content."""
EMBEDDING_DIMENSIONS = 16
"""Of a vector, unless the request names its own."""
DONE = b"data: [DONE]\n\n"

ERROR_TYPES = {
    429: "requests",
    500: "server_error",
    502: "server_error",
    503: "server_error",
    504: "server_error",
}
"""The `error.type` of each status; of all others `invalid_request_error`."""
ERROR_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
"""The `error.code` of each status; of all others null."""

MODERATION_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


@dataclass(frozen=True, slots=True)
class ReportedUsage:
    """What an answer says that it used. `prompt_tokens` include the cached, the written and the audio ones;
    `cache_write_tokens` include those kept for 12 hours; `completion_tokens` include reasoning and audio."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_12h_tokens: int = 0
    audio_prompt_tokens: int = 0
    reasoning_tokens: int = 0
    audio_completion_tokens: int = 0
    web_searches: int = 0
    """Told by Responses alone."""

    def counts(self) -> dict[str, int]:
        """The billable counts by the meter's names, without zeros: what a ledger entry must say."""
        cached_or_apart = self.cached_tokens + self.cache_write_tokens + self.audio_prompt_tokens
        counts = {
            INPUT: self.prompt_tokens - cached_or_apart,
            INPUT_AUDIO: self.audio_prompt_tokens,
            CACHE_READ: self.cached_tokens,
            CACHE_WRITE_30M: self.cache_write_tokens - self.cache_write_12h_tokens,
            CACHE_WRITE_12H: self.cache_write_12h_tokens,
            OUTPUT: self.completion_tokens - self.audio_completion_tokens,
            OUTPUT_AUDIO: self.audio_completion_tokens,
            WEB_SEARCHES: self.web_searches,
        }
        return {unit: count for unit, count in counts.items() if count}

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def in_completion(self) -> dict[str, Any]:
        """`usage` of chat completions and of the older ones."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "prompt_tokens_details": {
                "cached_tokens": self.cached_tokens,
                "cache_write_tokens": self.cache_write_tokens,
                "audio_tokens": self.audio_prompt_tokens,
            },
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "audio_tokens": self.audio_completion_tokens,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def in_response(self) -> dict[str, Any]:
        """`usage` of a response."""
        written = {
            "ttl_30m_tokens": self.cache_write_tokens - self.cache_write_12h_tokens,
            "ttl_12h_tokens": self.cache_write_12h_tokens,
        }
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": self.cached_tokens,
                "cache_write_tokens": self.cache_write_tokens,
                "cache_write_tokens_details": written,
            },
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.total_tokens,
        }

    def in_embeddings(self) -> dict[str, Any]:
        """`usage` of embeddings, which write nothing."""
        return {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants called; `arguments` is JSON in a string."""

    name: str
    arguments: str = "{}"


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model wrote and what is told with it. `deltas`: in how many pieces the text is streamed; None lets
    its words decide. `usage` None: the answer tells none."""

    id: str
    model: str
    text: str
    usage: ReportedUsage | None
    deltas: int | None = None
    thinking: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = "stop"
    service_tier: str | None = "default"
    choices: int = 1


@dataclass(frozen=True, slots=True)
class Chunks:
    """What a request and its behaviour decide about the chunks of a stream. `after_usage`: the fields of further
    chunks without choices, after the one with the usage."""

    includes_usage: bool = False
    obfuscates: bool = True
    after_usage: tuple[Mapping[str, Any], ...] = ()


def moderation() -> dict[str, Any]:
    """Nothing was flagged: the field of the chunk that follows the usage of a moderated completion."""
    found = {
        "type": "moderation_results",
        "model": "omni-moderation-latest",
        "results": [moderation_result()],
    }
    return {"moderation": {"input": found, "output": found}}


def moderation_result() -> dict[str, Any]:
    return {
        "flagged": False,
        "categories": dict.fromkeys(MODERATION_CATEGORIES, False),
        "category_scores": dict.fromkeys(MODERATION_CATEGORIES, 0.0001),
        "category_applied_input_types": {name: ["text"] for name in MODERATION_CATEGORIES},
    }


# --- chat completions -----------------------------------------------------------------------------------


def chat_json(reply: Reply) -> bytes:
    """The body of an unstreamed chat completion."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": reply.text if reply.text or not reply.tool_calls else None,
        "refusal": None,
        "annotations": [],
    }
    if reply.tool_calls:
        message["tool_calls"] = [_tool_call(reply, index) for index in range(len(reply.tool_calls))]
    choices = [
        {"index": index, "message": message, "logprobs": None, "finish_reason": reply.finish_reason}
        for index in range(reply.choices)
    ]
    return _completion_json(reply, "chat.completion", choices)


def chat_events(reply: Reply, chunks: Chunks) -> list[bytes]:
    """The events of a streamed chat completion, `[DONE]` included."""
    opening = {"role": "assistant", "content": "", "refusal": None}
    deltas: list[dict[str, Any]] = [opening]
    if reply.text or not reply.tool_calls:
        deltas += [{"content": piece} for piece in text_pieces(reply.text, reply.deltas)]
    for index, call in enumerate(reply.tool_calls):
        named = {**_tool_call(reply, index), "index": index, "function": {"name": call.name, "arguments": ""}}
        deltas.append({"tool_calls": [named]})
        deltas.append({"tool_calls": [{"index": index, "function": {"arguments": call.arguments}}]})
    said: list[tuple[dict[str, Any], str | None]] = [(delta, None) for delta in deltas]
    choices = [
        {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        for delta, finish_reason in [*said, ({}, reply.finish_reason)]
        for index in range(reply.choices)
    ]
    return _stream(reply, "chat.completion.chunk", choices, chunks)


def _tool_call(reply: Reply, index: int) -> dict[str, Any]:
    call = reply.tool_calls[index]
    return {
        "id": f"call_{reply.id}_{index}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


# --- older completions ----------------------------------------------------------------------------------


def completion_json(reply: Reply) -> bytes:
    """The body of an unstreamed answer of `/v1/completions`."""
    choices = [_completion_choice(index, reply.text, reply.finish_reason) for index in range(reply.choices)]
    return _completion_json(reply, "text_completion", choices)


def completion_events(reply: Reply, chunks: Chunks) -> list[bytes]:
    """The events of a streamed one, `[DONE]` included."""
    said = [(piece, None) for piece in text_pieces(reply.text, reply.deltas)] + [("", reply.finish_reason)]
    choices = [
        _completion_choice(index, piece, finish_reason)
        for piece, finish_reason in said
        for index in range(reply.choices)
    ]
    return _stream(reply, "text_completion", choices, chunks)


def _completion_choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish_reason}


# --- what both have -------------------------------------------------------------------------------------


def _completion_json(reply: Reply, kind: str, choices: list[dict[str, Any]]) -> bytes:
    return orjson.dumps({**_head_of(reply, kind), "choices": choices, **_usage_of(reply)})


def _usage_of(reply: Reply) -> dict[str, Any]:
    return {} if reply.usage is None else {"usage": reply.usage.in_completion()}


def _head_of(reply: Reply, kind: str) -> dict[str, Any]:
    tier = {} if reply.service_tier is None else {"service_tier": reply.service_tier}
    return {
        "id": reply.id,
        "object": kind,
        "created": CREATED_S,
        "model": reply.model,
        **tier,
        "system_fingerprint": FINGERPRINT,
    }


def _stream(reply: Reply, kind: str, choices: list[dict[str, Any]], chunks: Chunks) -> list[bytes]:
    """A chunk per choice, then the usage if it was asked for, then what else was told to follow, then `[DONE]`."""
    opening = _head_of(reply, kind)
    nothing_yet = {"usage": None} if chunks.includes_usage else {}
    bodies = [{**opening, "choices": [choice], **nothing_yet} for choice in choices]
    if chunks.includes_usage:
        bodies.append({**opening, "choices": [], **_usage_of(reply)})
    bodies += [{**opening, "choices": [], **nothing_yet, **fields} for fields in chunks.after_usage]
    return [*(_chunk(body, number, chunks) for number, body in enumerate(bodies)), DONE]


def _chunk(body: dict[str, Any], number: int, chunks: Chunks) -> bytes:
    if chunks.obfuscates:
        body["obfuscation"] = obfuscation(number)
    return b"data: %b\n\n" % orjson.dumps(body)


def obfuscation(number: int) -> str:
    """The padding of the event of this number."""
    return OBFUSCATION[: 1 + number * 5 % len(OBFUSCATION)]


# --- errors, embeddings, moderations --------------------------------------------------------------------


def error_object(
    status: int,
    message: str,
    *,
    error_type: str | None = None,
    code: str | None = None,
    param: str | None = None,
) -> dict[str, Any]:
    """The `error` of a body or of an event; type and code follow from the status unless given."""
    return {
        "message": message,
        "type": error_type or ERROR_TYPES.get(status, "invalid_request_error"),
        "param": param,
        "code": code or (ERROR_CODES.get(status) if error_type is None else None),
    }


def embeddings_json(
    inputs: Sequence[str], *, model: str, usage: ReportedUsage | None, dimensions: int, is_base64: bool
) -> bytes:
    """A vector per input, the same for the same text."""
    vectors = [_vector(text, dimensions) for text in inputs]
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if is_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    told = {} if usage is None else {"usage": usage.in_embeddings()}
    return orjson.dumps({"object": "list", "data": data, "model": model, **told})


@functools.lru_cache(maxsize=64)
def _vector(text: str, dimensions: int) -> tuple[float, ...]:
    """Of eighths, which a float of 32 bits holds exactly."""
    seed = sum(text.encode())
    return tuple((seed + 7 * place) % 17 / 8 - 1 for place in range(dimensions))


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def moderations_json(inputs: int, *, model: str, number: int) -> bytes:
    """Nothing was flagged in so many inputs."""
    return orjson.dumps(
        {"id": f"modr-Sim{number:016d}", "model": model, "results": [moderation_result()] * inputs}
    )
