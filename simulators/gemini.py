"""Gemini, scripted: content, streams, embeddings, token counts and the model list, as an agent's SDK expects them.

Every answer's usage is known beforehand and kept in `GeminiSimulator.answers`, so that a test can hold the
ledger to it. What an answer does comes as `simulators.vendor` says.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import orjson

from simulators import vendor
from simulators.behaviour import Ending
from simulators.gemini_answers import (
    Answer,
    Content,
    ReportedUsage,
    answer_chunks,
    answer_json,
    as_events,
    as_list,
    embedding,
    embedding_usage,
    error_json,
)
from simulators.gemini_behaviour import (
    ERROR_AFTER_STATUS,
    PLAIN,
    Behaviour,
    answers,
    breaks_after,
    drops,
    errors_after,
    fails,
    hangs,
    parse_simulate,
    replays,
    stalls_after,
    streams,
)
from simulators.script import Ready, Script
from simulators.server import ReceivedRequest
from simulators.text import echo, tokens_of
from simulators.vendor import Options, RefusedError, VendorSimulator

__all__ = [
    "MODELS",
    "PLAIN",
    "VENDOR_KEY",
    "Answered",
    "Behaviour",
    "Ending",
    "GeminiSimulator",
    "ReportedUsage",
    "answers",
    "breaks_after",
    "drops",
    "errors_after",
    "fails",
    "hangs",
    "replays",
    "stalls_after",
    "streams",
]

VENDOR_KEY = "AIzaSimulated-vendor-key"
"""The platform's own key: a request that does not carry it is answered 400, as the vendor does."""
MODELS_PAGE_DEFAULT, MODELS_PAGE_MAX = 50, 1000
STREAM_TYPE = "text/event-stream"
LIST_TYPE = "application/json; charset=UTF-8"
EDGE_HEADERS = (
    ("Vary", "Origin"),
    ("Vary", "X-Origin"),
    ("Date", "Fri, 20 Nov 2026 12:00:00 GMT"),
    ("Server", "scaffolding on HTTPServer2"),
    ("X-Content-Type-Options", "nosniff"),
    ("Server-Timing", "gfet4t7; dur=1234"),
    ("Alt-Svc", 'h3=":443"; ma=2592000'),
)
_PATH = re.compile(r"/(?P<version>v1|v1beta|v1alpha)/models(?:/(?P<model>[^/:]+)(?::(?P<method>\w+))?)?")


@dataclass(frozen=True, slots=True)
class Model:
    """One line of the model list."""

    id: str
    display_name: str
    input_token_limit: int
    output_token_limit: int
    methods: tuple[str, ...] = ("generateContent", "countTokens")

    def as_json(self) -> dict[str, Any]:
        return {
            "name": f"models/{self.id}",
            "version": "001",
            "displayName": self.display_name,
            "inputTokenLimit": self.input_token_limit,
            "outputTokenLimit": self.output_token_limit,
            "supportedGenerationMethods": list(self.methods),
        }


MODELS = (
    Model("gemini-3.6-flash", "Gemini 3.6 Flash", 1_048_576, 65_536),
    Model("gemini-3.5-flash", "Gemini 3.5 Flash", 1_048_576, 65_536),
    Model("gemini-2.5-pro", "Gemini 2.5 Pro", 1_048_576, 65_536),
    Model("gemini-2.5-flash", "Gemini 2.5 Flash", 1_048_576, 65_536),
    Model("gemini-2.5-flash-image", "Nano Banana", 32_768, 32_768),
    Model("gemini-embedding-2", "Gemini Embedding 2", 8_192, 1, ("embedContent",)),
    Model("gemini-embedding-001", "Gemini Embedding 001", 2_048, 1, ("embedContent",)),
)
MODEL_ALIASES = {"gemini-flash-latest": "gemini-3.6-flash"}


@dataclass(frozen=True, slots=True)
class Answered(vendor.Answered):
    """What one answer to a billable request says."""

    usage: ReportedUsage | None


class _Turn(vendor.Turn[Behaviour]):
    """One request with its behaviour: builds the answer."""

    @property
    def request_id(self) -> str:
        return ""

    @classmethod
    def headers(cls, content_type: str, request_id: str) -> tuple[tuple[str, str], ...]:  # noqa: ARG003 - the vendor has none
        return (*EDGE_HEADERS, ("Content-Type", content_type))

    def error_body(self) -> bytes:
        return orjson.dumps(self._error(self.behaviour.status))

    def error_event(self) -> bytes:
        """A bare object: the vendor tells of an error among its events without making it one."""
        error = orjson.dumps(self._error(ERROR_AFTER_STATUS), option=orjson.OPT_INDENT_2)
        return error + b"\n" if self.is_sse else b",\r\n" + error + b"\n]"

    @property
    def is_sse(self) -> bool:
        return self.request.query.get("alt") == "sse"

    def generate(self, model: str, fields: Mapping[str, Any], *, is_streaming: bool) -> Script | Ready:
        answer = self._compose(model, fields)
        self._report(answer.id, answer.model, answer.usage, is_streaming=is_streaming)
        if not (is_streaming and self.is_ordinary):
            return self.json(orjson.dumps(_shown(answer_json(answer), self.behaviour)))
        chunks = [_shown(chunk, self.behaviour) for chunk in answer_chunks(answer)]
        if self.is_sse:
            return self.stream(as_events(chunks), STREAM_TYPE)
        return self.stream(as_list(chunks), LIST_TYPE)

    def embed(self, model: str, contents: Sequence[Mapping[str, Any]], *, is_batch: bool) -> Script | Ready:
        computed = ReportedUsage(input_tokens=sum(tokens_of(_text_of([content])) for content in contents))
        usage = self._changed(computed)
        self._report(self._id, model, usage, is_streaming=False)
        embeddings = [embedding(number) for number, _ in enumerate(contents)]
        body: dict[str, Any] = {"embeddings": embeddings} if is_batch else {"embedding": embeddings[0]}
        return self.json(
            orjson.dumps(_shown({**body, "usageMetadata": embedding_usage(usage)}, self.behaviour))
        )

    @property
    def _id(self) -> str:
        return f"Sim{self.request.number:018d}"

    def _report(self, answer_id: str, model: str, usage: ReportedUsage, *, is_streaming: bool) -> None:
        self.reports = Answered(
            number=self.request.number,
            tag=self.request.header(b"x-request-tag").decode("latin-1"),
            request_id="",
            message_id=answer_id,
            model=model,
            is_streaming=is_streaming,
            status=self.behaviour.status,
            usage=usage if self.is_ordinary else self.behaviour.usage,
        )

    def _error(self, status: int) -> dict[str, Any]:
        behaviour = self.behaviour
        return error_json(status, behaviour.error_message, behaviour.error_type, behaviour.details)

    def _compose(self, model: str, fields: Mapping[str, Any]) -> Answer:
        behaviour = self.behaviour
        config = fields.get("generationConfig") or fields.get("generation_config") or {}
        tokens_max = int(config.get("maxOutputTokens") or config.get("max_output_tokens") or 65_536)
        chunks = behaviour.events
        text = self.scripted_text(chunks)
        if text is None:
            is_call = behaviour.function_call is not None
            text = "" if is_call else echo(_text_of(fields["contents"]), tokens_max=tokens_max)
        thoughts = tokens_of(behaviour.thinking or "")
        wanted = tokens_of(text)
        computed = ReportedUsage(
            input_tokens=self.input_tokens,
            output_tokens=min(wanted, tokens_max),
            thoughts_tokens=min(thoughts, max(tokens_max - wanted, 0)),
            service_tier=str(fields.get("serviceTier") or "standard"),
        )
        return Answer(
            id=self._id,
            model=behaviour.model or MODEL_ALIASES.get(model, model),
            content=Content(text, chunks, behaviour.thinking, behaviour.function_call),
            usage=self._changed(computed),
            finish_reason=behaviour.stop_reason or ("MAX_TOKENS" if wanted > tokens_max else "STOP"),
            block_reason=behaviour.block_reason,
        )

    def _changed(self, computed: ReportedUsage) -> ReportedUsage:
        usage = self.behaviour.usage or computed
        return replace(usage, **self.behaviour.usage_changes) if self.behaviour.usage_changes else usage


class GeminiSimulator(VendorSimulator[Behaviour, _Turn]):
    """`https://generativelanguage.googleapis.com` on a loopback port."""

    vendor_key = VENDOR_KEY
    behaviour_type = Behaviour
    turn_type = _Turn
    parse_simulate = staticmethod(parse_simulate)

    def __init__(
        self,
        *,
        models: Sequence[Model] = MODELS,
        **options: Unpack[Options[Behaviour]],
    ) -> None:
        super().__init__(**options)
        self._models = tuple(models)

    @property
    def answers(self) -> list[Answered]:
        """What the answers to billable requests say, in order of arrival."""
        return self.answers_of(Answered)

    def route(self, request: ReceivedRequest) -> Callable[[_Turn], Script | Ready]:
        found = _PATH.fullmatch(request.path)
        if found is None:
            raise RefusedError(404, "Requested entity was not found.", error_type="NOT_FOUND")
        model, method = found["model"], found["method"]
        if request.method == "GET" and method is None:
            return self._list_models if model is None else self._show(model)
        posts: dict[str, Callable[[_Turn, str], Script | Ready]] = {
            "generateContent": self._generate,
            "streamGenerateContent": self._stream,
            "embedContent": self._embed,
            "batchEmbedContents": self._embed_batch,
            "countTokens": self._count,
        }
        if request.method != "POST" or method not in posts:
            raise RefusedError(404, f"{request.method} {request.path} was not found.")
        respond = posts[method]
        return lambda turn: respond(turn, self._known(model, found["version"], method).id)

    def authenticate(self, request: ReceivedRequest) -> None:
        key = request.header(b"x-goog-api-key") or request.query.get("key", "").encode()
        key = key or request.header(b"authorization").removeprefix(b"Bearer ")
        if not key:
            raise RefusedError(403, "Method doesn't allow unregistered callers.")
        if self.api_key is not None and key != self.api_key:
            info = {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "API_KEY_INVALID",
                "domain": "googleapis.com",
            }
            raise RefusedError(400, "API key not valid. Please pass a valid API key.", details=(info,))

    def _known(self, name: str, version: str, method: str) -> Model:
        served = MODEL_ALIASES.get(name, name)
        for model in self._models:
            if model.id == served:
                return replace(model, id=name)
        raise RefusedError(
            404, f"models/{name} is not found for API version {version}, or is not supported for {method}."
        )

    def _generate(self, turn: _Turn, model: str) -> Script | Ready:
        return turn.generate(model, turn.fields(("contents",)), is_streaming=False)

    def _stream(self, turn: _Turn, model: str) -> Script | Ready:
        return turn.generate(model, turn.fields(("contents",)), is_streaming=True)

    def _embed(self, turn: _Turn, model: str) -> Script | Ready:
        return turn.embed(model, [turn.fields(("content",))["content"]], is_batch=False)

    def _embed_batch(self, turn: _Turn, model: str) -> Script | Ready:
        requests = turn.fields(("requests",))["requests"]
        return turn.embed(model, [request["content"] for request in requests], is_batch=True)

    def _count(self, turn: _Turn, model: str) -> Script | Ready:  # noqa: ARG002 - as the other methods
        fields = turn.fields(())
        contents = fields.get("contents") or fields.get("generateContentRequest", {}).get("contents", [])
        return turn.json(orjson.dumps({"totalTokens": tokens_of(_text_of(contents))}))

    def _show(self, name: str) -> Callable[[_Turn], Script | Ready]:
        return lambda turn: turn.json(orjson.dumps(self._known(name, "v1beta", "get").as_json()))

    def _list_models(self, turn: _Turn) -> Script | Ready:
        query = turn.request.query
        size = query.get("pageSize", str(MODELS_PAGE_DEFAULT))
        start = query.get("pageToken", "0")
        if not size.isdigit() or not 1 <= int(size) <= MODELS_PAGE_MAX or not start.isdigit():
            raise RefusedError(400, f"pageSize: expected 1 to {MODELS_PAGE_MAX}")
        end = int(start) + int(size)
        page: dict[str, Any] = {"models": [model.as_json() for model in self._models[int(start) : end]]}
        if end < len(self._models):
            page["nextPageToken"] = str(end)
        return turn.json(orjson.dumps(page))


def _shown(body: dict[str, Any], behaviour: Behaviour) -> dict[str, Any]:
    return body if behaviour.has_usage else {name: body[name] for name in body if name != "usageMetadata"}


def _text_of(contents: Any) -> str:
    """The text of the last content."""
    last = contents[-1] if isinstance(contents, list) and contents else contents
    parts = last.get("parts", []) if isinstance(last, dict) else []
    parts = parts if isinstance(parts, list) else [parts]
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
