"""The shape of Gemini's answers on the wire: usage, chunks of a stream, embeddings, errors.

Shapes as in google-genai 3.4.0 (`types.py`) and in answers recorded in 2026.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from metering.usage import (
    CACHE_READ,
    INPUT,
    INPUT_AUDIO,
    INPUT_IMAGE,
    INPUT_VIDEO,
    OUTPUT,
    OUTPUT_AUDIO,
    OUTPUT_IMAGE,
    WEB_SEARCHES,
)
from simulators.text import text_pieces

STATUS_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""`error.status` by HTTP status (google.rpc.Code)."""
DIMENSIONS = 8
"""Numbers of an embedding that the simulator sends; the real ones have hundreds."""
THOUGHT_SIGNATURE = "c2ltdWxhdGVkLXRob3VnaHQ="


@dataclass(frozen=True, slots=True)
class ReportedUsage:
    """What an answer says that it used. `input_tokens` excludes the cache and the counts of audio, image and video;
    `output_tokens` excludes thoughts, audio and images; `tool_tokens` are input beside the prompt.

    `searches`: the queries that the grounding metadata lists; `searches_billed`: how many of them are charged.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    thoughts_tokens: int = 0
    cached_tokens: int = 0
    tool_tokens: int = 0
    input_audio_tokens: int = 0
    input_image_tokens: int = 0
    input_video_tokens: int = 0
    output_audio_tokens: int = 0
    output_image_tokens: int = 0
    searches: int = 0
    searches_billed: int | None = None
    service_tier: str = "standard"

    def counts(self) -> dict[str, int]:
        """The billable counts by the meter's names, without zeros: what a ledger entry must say."""
        counts = {
            INPUT: self.input_tokens + self.tool_tokens,
            INPUT_AUDIO: self.input_audio_tokens,
            INPUT_IMAGE: self.input_image_tokens,
            INPUT_VIDEO: self.input_video_tokens,
            CACHE_READ: self.cached_tokens,
            OUTPUT: self.output_tokens + self.thoughts_tokens,
            OUTPUT_AUDIO: self.output_audio_tokens,
            OUTPUT_IMAGE: self.output_image_tokens,
            WEB_SEARCHES: self.searches if self.searches_billed is None else self.searches_billed,
        }
        return {unit: count for unit, count in counts.items() if count}

    def metadata(self) -> dict[str, Any]:
        """`usageMetadata`; like the vendor's, without zeros."""
        prompt = {
            "TEXT": self.input_tokens + self.cached_tokens,
            "AUDIO": self.input_audio_tokens,
            "IMAGE": self.input_image_tokens,
            "VIDEO": self.input_video_tokens,
        }
        output = {"AUDIO": self.output_audio_tokens, "IMAGE": self.output_image_tokens}
        candidates = self.output_tokens + sum(output.values())
        parts = (sum(prompt.values()), candidates, self.tool_tokens, self.thoughts_tokens)
        metadata: dict[str, Any] = {
            "promptTokenCount": parts[0],
            "candidatesTokenCount": candidates,
            "totalTokenCount": sum(parts),
            "cachedContentTokenCount": self.cached_tokens,
            "promptTokensDetails": details(prompt),
            "cacheTokensDetails": details({"TEXT": self.cached_tokens}),
            "candidatesTokensDetails": details({"TEXT": self.output_tokens, **output})
            if any(output.values())
            else [],
            "toolUsePromptTokenCount": self.tool_tokens,
            "toolUsePromptTokensDetails": details({"TEXT": self.tool_tokens}),
            "thoughtsTokenCount": self.thoughts_tokens,
            "serviceTier": self.service_tier,
        }
        return {name: value for name, value in metadata.items() if value}

    def at_first(self) -> "ReportedUsage":
        """What a stream's first chunks say: the prompt alone."""
        return ReportedUsage(
            input_tokens=self.input_tokens,
            cached_tokens=self.cached_tokens,
            input_audio_tokens=self.input_audio_tokens,
            input_image_tokens=self.input_image_tokens,
            input_video_tokens=self.input_video_tokens,
            service_tier=self.service_tier,
        )


@dataclass(frozen=True, slots=True)
class Content:
    """What the model wrote. `chunks`: in how many pieces the text is streamed; None lets its words decide."""

    text: str
    chunks: int | None = None
    thinking: str | None = None
    function_call: tuple[str, Mapping[str, Any]] | None = None
    """A call of one of the agent's tools: its name and arguments."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, streamed or whole. `block_reason`: the prompt was blocked, and nothing written."""

    id: str
    model: str
    content: Content
    usage: ReportedUsage
    finish_reason: str = "STOP"
    block_reason: str | None = None


def answer_json(answer: Answer) -> dict[str, Any]:
    """A whole answer."""
    if answer.block_reason is not None:
        return _chunk(answer, None, answer.usage)
    parts = [*_thoughts(answer.content), *_parts(answer.content, answer.content.text)]
    return _chunk(answer, _last_candidate(answer, parts), answer.usage)


def answer_chunks(answer: Answer) -> list[dict[str, Any]]:
    """The chunks of a streamed answer: each is an answer of its own, and each repeats the usage."""
    if answer.block_reason is not None:
        return [_chunk(answer, None, answer.usage)]
    content = answer.content
    at_first = answer.usage.at_first()
    chunks = [_chunk(answer, _candidate([part]), at_first) for part in _thoughts(content)]
    pieces = text_pieces(content.text, content.chunks) if content.text or content.chunks else [""]
    chunks += [_chunk(answer, _candidate([{"text": piece}]), at_first) for piece in pieces[:-1]]
    return [*chunks, _chunk(answer, _last_candidate(answer, _parts(content, pieces[-1])), answer.usage)]


def as_events(chunks: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """As `?alt=sse` streams them: lines end in CRLF, nothing ends the stream but its end."""
    return [event(chunk) for chunk in chunks]


def as_list(chunks: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """As they are streamed without `alt`: one JSON list, indented, whose commas come with the next element."""
    pieces = [orjson.dumps(chunk, option=orjson.OPT_INDENT_2) for chunk in chunks]
    return [(b"[" if number == 0 else b",\r\n") + piece + b"\n" for number, piece in enumerate(pieces)] + [
        b"]"
    ]


def event(data: Mapping[str, Any]) -> bytes:
    return b"data: %b\r\n\r\n" % orjson.dumps(data)


def error_json(status: int, message: str, name: str | None, details: Sequence[Any]) -> dict[str, Any]:
    """The body of an error, and the data of an error inside a stream."""
    error: dict[str, Any] = {
        "code": status,
        "message": message,
        "status": name or STATUS_NAMES.get(status, "UNKNOWN"),
    }
    if details:
        error["details"] = list(details)
    return {"error": error}


def embedding(number: int) -> dict[str, Any]:
    return {"values": [round(0.01 * (number + position), 4) for position in range(DIMENSIONS)]}


def embedding_usage(usage: ReportedUsage) -> dict[str, Any]:
    """The usage of embeddings, whose details have a name of their own."""
    metadata = usage.metadata()
    return {
        "promptTokenCount": metadata.get("promptTokenCount", 0),
        "promptTokenDetails": metadata.get("promptTokensDetails", []),
    }


def details(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"modality": modality, "tokenCount": count} for modality, count in counts.items() if count]


def _chunk(answer: Answer, candidate: Mapping[str, Any] | None, usage: ReportedUsage) -> dict[str, Any]:
    said: dict[str, Any] = {"candidates": [candidate]}
    if candidate is None:
        said = {"promptFeedback": {"blockReason": answer.block_reason}}
    return {
        **said,
        "usageMetadata": usage.metadata(),
        "modelVersion": answer.model,
        "responseId": answer.id,
    }


def _candidate(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"content": {"parts": list(parts), "role": "model"}, "index": 0}


def _last_candidate(answer: Answer, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    candidate = {**_candidate(parts), "finishReason": answer.finish_reason}
    if answer.usage.searches:
        candidate["groundingMetadata"] = {
            "webSearchQueries": [f"query {number}" for number in range(answer.usage.searches)],
            "groundingChunks": [{"web": {"uri": "https://example.com/", "title": "example.com"}}],
        }
    return candidate


def _thoughts(content: Content) -> list[dict[str, Any]]:
    return [] if content.thinking is None else [{"text": content.thinking, "thought": True}]


def _parts(content: Content, text: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"text": text}] if text or content.function_call is None else []
    if content.thinking is not None and parts:
        parts[-1]["thoughtSignature"] = THOUGHT_SIGNATURE
    if content.function_call is not None:
        name, arguments = content.function_call
        parts.append({"functionCall": {"name": name, "args": dict(arguments)}})
    return parts
