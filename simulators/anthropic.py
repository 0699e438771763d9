"""Anthropic, scripted: the Messages API, token counts and the model list, as an agent's SDK expects them.

Every answer's usage is known beforehand and kept in `AnthropicSimulator.answers`, so that a test can hold the
ledger to it. What an answer does comes, in this order, from `next(...)`, from the function `script`, from the
request's own `x-simulate` header (for simulators in another process), or from the default.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import orjson

from simulators import vendor
from simulators.anthropic_behaviour import (
    ERROR_AFTER_TYPE,
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
from simulators.anthropic_messages import (
    ERROR_TYPES,
    Content,
    Message,
    ReportedUsage,
    content_wire,
    error_event,
    error_json,
    events_besides_deltas,
    message_end,
    message_events,
    message_json,
    message_start,
)
from simulators.behaviour import Ending
from simulators.script import Ready, Script, chunk
from simulators.server import ReceivedRequest
from simulators.text import echo, tokens_of
from simulators.vendor import Options, RefusedError, VendorSimulator

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
class Answered(vendor.Answered):
    """What one answer to `POST /v1/messages` says."""

    usage: ReportedUsage | None


class _Turn(vendor.Turn[Behaviour]):
    """One request with its behaviour: builds the answer."""

    @property
    def request_id(self) -> str:
        return f"req_011Sim{self.request.number:018d}"

    @classmethod
    def headers(cls, content_type: str, request_id: str) -> tuple[tuple[str, str], ...]:
        return (*EDGE_HEADERS, ("Content-Type", content_type), ("request-id", request_id), *ACCOUNT_HEADERS)

    def error_body(self) -> bytes:
        behaviour = self.behaviour
        error_type = behaviour.error_type or ERROR_TYPES.get(behaviour.status, "api_error")
        return error_json(error_type, behaviour.error_message, self.request_id)

    def error_event(self) -> bytes:
        error_type = self.behaviour.error_type or ERROR_AFTER_TYPE
        return error_event(error_type, self.behaviour.error_message, self.request_id)

    def message(self, fields: Mapping[str, Any]) -> Script | Ready:
        behaviour = self.behaviour
        message = self._compose(fields)
        is_streaming = fields.get("stream") is True
        self.reports = Answered(
            number=self.request.number,
            tag=_tag(self.request, fields),
            request_id=self.request_id,
            message_id=message.id,
            model=message.model,
            is_streaming=is_streaming,
            status=behaviour.status,
            usage=message.usage if self.is_ordinary else behaviour.usage,
        )
        return (
            self._stream(message) if is_streaming and self.is_ordinary else self.json(message_json(message))
        )

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
        text = self.scripted_text(deltas)
        if text is None:
            text = echo(_last_text(fields), tokens_max=fields["max_tokens"])
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

    def _stream(self, message: Message) -> Script | Ready:
        if not self.is_burst:
            return self.stream(message_events(message), STREAM_TYPE)
        delta, stop = message_end(message)
        wire = (chunk(message_start(message)), content_wire(message.content), chunk(delta), chunk(stop))
        return self.burst(b"".join(wire), STREAM_TYPE)


class AnthropicSimulator(VendorSimulator[Behaviour, _Turn]):
    """`https://api.anthropic.com` on a loopback port."""

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
        """What the answers to `POST /v1/messages` say, in order of arrival."""
        return self.answers_of(Answered)

    def route(self, request: ReceivedRequest) -> Callable[[_Turn], Script | Ready]:
        path = request.path
        if path in (PATH_MESSAGES, PATH_COUNT_TOKENS):
            method, respond = "POST", self._message if path == PATH_MESSAGES else self._count
        elif path == PATH_MODELS:
            method, respond = "GET", self._list_models
        elif path.startswith(PATH_MODELS + "/"):
            method, respond = "GET", self._model
        else:
            raise RefusedError(404, f"Not found: {path}")
        if request.method != method:
            raise RefusedError(405, "Method Not Allowed")
        return respond

    def authenticate(self, request: ReceivedRequest) -> None:
        key = request.header(b"x-api-key") or request.header(b"authorization").removeprefix(b"Bearer ")
        if not key:
            raise RefusedError(401, "x-api-key header is required")
        if self.api_key is not None and key != self.api_key:
            raise RefusedError(401, "invalid x-api-key")
        if not request.header(b"anthropic-version"):
            raise RefusedError(400, "anthropic-version: header is required")

    def _message(self, turn: _Turn) -> Script | Ready:
        fields = turn.fields(("model", "max_tokens", "messages"))
        max_tokens = fields["max_tokens"]
        if type(max_tokens) is not int or max_tokens < 0:
            raise RefusedError(400, "max_tokens: Input should be a valid integer")
        model = str(fields["model"])
        if not model.startswith("claude-"):
            raise RefusedError(404, f"model: {model}")
        return turn.message(fields)

    def _count(self, turn: _Turn) -> Script | Ready:
        turn.fields(("model", "messages"))
        return turn.json(orjson.dumps({"input_tokens": turn.input_tokens}))

    def _model(self, turn: _Turn) -> Script | Ready:
        name = turn.request.path.removeprefix(PATH_MODELS + "/")
        for model in self._models:
            if name in (model.id, model.alias):
                return turn.json(orjson.dumps(model.as_json()))
        raise RefusedError(404, f"model: {name}")

    def _list_models(self, turn: _Turn) -> Script | Ready:
        query = turn.request.query
        limit = query.get("limit", str(MODELS_PAGE_DEFAULT))
        if not limit.isdigit() or not 1 <= int(limit) <= MODELS_PAGE_MAX:
            raise RefusedError(400, f"limit: expected 1 to {MODELS_PAGE_MAX}")
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
                raise RefusedError(400, f"unknown model id {cursor} as a cursor")
        if before is not None:
            end = ids.index(before)
            start = max(end - limit, 0)
            return self._models[start:end], start > 0
        start = 0 if after is None else ids.index(after) + 1
        return self._models[start : start + limit], start + limit < len(ids)


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
