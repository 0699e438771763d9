"""OpenAI, scripted: chat completions, responses (kept, continued, in the background), the older completions,
embeddings, moderations and the model list, as an agent's SDK expects them.

Every answer's usage is known beforehand and kept in `OpenAISimulator.answers`, so that a test can hold the ledger
to it. What an answer does comes, in this order, from `next(...)`, from the function `script`, from the request's
own `x-simulate` header (for simulators in another process), or from the default.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import orjson

from simulators import vendor
from simulators.behaviour import Ending
from simulators.openai_behaviour import (
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
from simulators.openai_responses import (
    CANCELLED,
    COMPLETED,
    FAILED,
    INCOMPLETE,
    Kept,
    Response,
    compaction_json,
    event,
)
from simulators.openai_shapes import (
    EMBEDDING_DIMENSIONS,
    Chunks,
    Reply,
    ReportedUsage,
    ToolCall,
    chat_events,
    chat_json,
    completion_events,
    completion_json,
    embeddings_json,
    error_object,
    moderation,
    moderations_json,
)
from simulators.script import Framing, Ready, Script, Send, SendLate, Step, WaitFor
from simulators.server import ReceivedRequest
from simulators.text import ECHO_CHARS_MAX, echo, tokens_of
from simulators.vendor import Options, RefusedError, VendorSimulator

__all__ = [
    "ACCOUNT_HEADERS",
    "MODELS",
    "ORGANIZATION",
    "PLAIN",
    "PROJECT",
    "VENDOR_KEY",
    "Answered",
    "Behaviour",
    "Ending",
    "OpenAISimulator",
    "ReportedUsage",
    "ToolCall",
    "answers",
    "breaks_after",
    "drops",
    "errors_after",
    "fails",
    "hangs",
    "moderation",
    "replays",
    "stalls_after",
    "streams",
]

VENDOR_KEY = "sk-proj-simulated-vendor-key"
"""The platform's own key: a request that does not carry it is answered 401."""
ORGANIZATION = "automna-simulated"
PROJECT = "proj_Simulated0000000000000"
"""Stand in every answer's headers; no client of the proxy may ever see them."""
KEPT_MAX = 10_000
"""Responses kept; beyond it the oldest is forgotten."""
COMPLETION_TOKENS_DEFAULT = 16
"""The ceiling of an older completion that names none."""
STREAM_TYPE = "text/event-stream; charset=utf-8"

ACCOUNT_HEADERS = (
    ("openai-organization", ORGANIZATION),
    ("openai-project", PROJECT),
    ("x-ratelimit-limit-requests", "10000"),
    ("x-ratelimit-limit-tokens", "30000000"),
    ("x-ratelimit-remaining-requests", "9999"),
    ("x-ratelimit-remaining-tokens", "29999000"),
    ("x-ratelimit-reset-requests", "6ms"),
    ("x-ratelimit-reset-tokens", "12ms"),
)
"""About the platform's account, not about the request: for the proxy's eyes alone."""
EDGE_HEADERS = (
    ("Date", "Fri, 20 Nov 2026 12:00:00 GMT"),
    ("Server", "cloudflare"),
    ("openai-processing-ms", "1234"),
    ("openai-version", "2020-10-01"),
    ("Set-Cookie", "__cf_bm=simulated; path=/; domain=.api.openai.com; HttpOnly; Secure; SameSite=None"),
    ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
)

ECHOED_FIELDS = (
    "background",
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "reasoning",
    "store",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
    "user",
)
"""The fields of a request that its response repeats."""
TIERS_SERVED = {None: "default", "auto": "default", "fast": "priority"}
"""The tier that is told for the tier asked for; any other is told as it was asked."""


@dataclass(frozen=True, slots=True)
class Model:
    """One line of the model list. `alias` is the undated name that clients may ask for."""

    id: str
    alias: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "object": "model", "created": 1_780_000_000, "owned_by": "system"}


MODELS = (
    Model("gpt-5.6-sol"),
    Model("gpt-5-2025-08-07", "gpt-5"),
    Model("gpt-5-mini-2025-08-07", "gpt-5-mini"),
    Model("gpt-4.1-2025-04-14", "gpt-4.1"),
    Model("gpt-4o-2024-08-06", "gpt-4o"),
    Model("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
    Model("gpt-3.5-turbo-instruct"),
    Model("text-embedding-3-small"),
    Model("omni-moderation-2024-09-26", "omni-moderation-latest"),
)
MODEL_ALIASES = {model.alias: model.id for model in MODELS if model.alias is not None}
MODEL_NAMES = re.compile(r"gpt-|o\d|chatgpt-|ft:|text-embedding-|omni-moderation-|davinci-|babbage-")
"""How names begin that are models here, listed or not."""

PATH_RESPONSES, PATH_MODELS = "/v1/responses", "/v1/models"
KEPT_PATHS = re.compile(rf"{PATH_RESPONSES}/(?P<id>resp_\w+)(?P<act>/cancel)?")


@dataclass(frozen=True, slots=True)
class Answered(vendor.Answered):
    """What one answer to a billable request says. `message_id` is "" for embeddings, which have none.

    Of a response in the background: what it says when it ends.
    """

    usage: ReportedUsage | None
    path: str
    service_tier: str | None


class _Turn(vendor.Turn[Behaviour]):
    """One request with its behaviour: builds the answer."""

    @property
    def request_id(self) -> str:
        return f"req_{self.request.number:032x}"

    @classmethod
    def headers(cls, content_type: str, request_id: str) -> tuple[tuple[str, str], ...]:
        return (*EDGE_HEADERS, ("Content-Type", content_type), ("x-request-id", request_id), *ACCOUNT_HEADERS)

    def error_body(self) -> bytes:
        return orjson.dumps({"error": self._error(self.behaviour.status)})

    def error_event(self) -> bytes:
        error = self._error(503)
        if not self.request.path.startswith(PATH_RESPONSES):
            return b"data: %b\n\n" % orjson.dumps({"error": error})
        told = {"error": error} if self.behaviour.nests_error else {**error, "type": "error"}
        return event("error", {**told, "sequence_number": self.behaviour.errors_after})

    def _error(self, status: int) -> dict[str, Any]:
        behaviour = self.behaviour
        return error_object(
            status,
            behaviour.error_message,
            error_type=behaviour.error_type,
            code=behaviour.error_code,
            param=behaviour.error_param,
        )

    def asked(self, *required: str) -> dict[str, Any]:
        """The request's fields, the model and these among them. Raises RefusedError(400) or, for a model that
        there is not, RefusedError(404)."""
        fields = self.fields(())
        for name in ("model", *required):
            if name not in fields:
                code = "missing_required_parameter"
                raise RefusedError(
                    400, f"Missing required parameter: '{name}'.", error_param=name, error_code=code
                )
        if fields.get("stream_options") is not None and fields.get("stream") is not True:
            complaint = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
            raise RefusedError(400, complaint, error_param="stream_options")
        if not MODEL_NAMES.match(str(fields["model"])):
            raise unknown_model(str(fields["model"]))
        return fields

    def compose(
        self,
        fields: Mapping[str, Any],
        *,
        object_id: str,
        question: str,
        tokens_max: int | None,
        count_events: Callable[[Reply], int] | None = None,
        context_tokens: int = 0,
    ) -> Reply:
        """What the model writes. `count_events`: how many events a reply has, for behaviours that ask for a number
        of them; `context_tokens`: of the prompt, besides those in the request."""
        behaviour = self.behaviour
        model, asked_tier = str(fields["model"]), fields.get("service_tier")
        reply = Reply(
            id=object_id,
            model=behaviour.model or MODEL_ALIASES.get(model, model),
            text="",
            usage=None,
            deltas=1,
            thinking=behaviour.thinking,
            tool_calls=behaviour.tool_calls,
            finish_reason=behaviour.stop_reason or ("tool_calls" if behaviour.tool_calls else "stop"),
            service_tier=behaviour.service_tier or TIERS_SERVED.get(asked_tier, asked_tier),
            choices=fields.get("n") or 1,
        )
        deltas = None
        if behaviour.events is not None and count_events is not None:
            others = count_events(replace(reply, text=" ")) - reply.choices
            deltas = max(1, (behaviour.events - others) // reply.choices)
        text = self.scripted_text(deltas)
        if text is None:
            ceiling = ECHO_CHARS_MAX if tokens_max is None else tokens_max
            text = "" if behaviour.tool_calls else echo(question, tokens_max=ceiling)
        reply = replace(reply, text=text, deltas=deltas)
        usage, is_limited = self._usage(reply, tokens_max, context_tokens)
        if is_limited and behaviour.stop_reason is None:
            reply = replace(reply, finish_reason="length")
        return replace(reply, usage=None if behaviour.hides_usage else usage)

    def _usage(self, reply: Reply, tokens_max: int | None, context_tokens: int) -> tuple[ReportedUsage, bool]:
        """The usage to report, and whether the request's ceiling limited it."""
        behaviour = self.behaviour
        if behaviour.usage is not None:
            return replace(behaviour.usage, **behaviour.usage_changes), False
        thinking_tokens = tokens_of(reply.thinking or "")
        written = reply.text + "".join(call.name + call.arguments for call in reply.tool_calls)
        wanted = tokens_of(written) + thinking_tokens
        ceiling = wanted + 1 if tokens_max is None else tokens_max
        usage = ReportedUsage(
            prompt_tokens=self.input_tokens + context_tokens,
            completion_tokens=min(wanted, ceiling) * reply.choices,
            reasoning_tokens=min(thinking_tokens, ceiling) * reply.choices,
        )
        return replace(usage, **behaviour.usage_changes), wanted >= ceiling

    def report(self, fields: Mapping[str, Any], reply: Reply) -> None:
        """Write down what this answer says."""
        self.reports = Answered(
            number=self.request.number,
            tag=_tag(self.request, fields),
            request_id=self.request_id,
            message_id=reply.id,
            model=reply.model,
            is_streaming=fields.get("stream") is True,
            status=self.behaviour.status,
            usage=reply.usage if self.is_ordinary else self.behaviour.usage,
            path=self.request.path,
            service_tier=reply.service_tier,
        )

    def unfinished(self, kept: Kept, number: int) -> Script:
        """The events of a response that is still at work, from this number on: the rest when it has ended."""
        steps: tuple[Step, ...] = (
            *map(Send, kept.events_from(number)),
            WaitFor(kept.ended),
            SendLate(lambda: kept.events_to_come(number)),
        )
        return self._script(steps, STREAM_TYPE, Framing.CHUNKED, more=())


class OpenAISimulator(VendorSimulator[Behaviour, _Turn]):
    """`https://api.openai.com` on a loopback port; the paths begin with `/v1`."""

    vendor_key = VENDOR_KEY
    behaviour_type = Behaviour
    turn_type = _Turn
    parse_simulate = staticmethod(parse_simulate)

    def __init__(self, **options: Unpack[Options[Behaviour]]) -> None:
        super().__init__(**options)
        self.kept: dict[str, Kept] = {}
        """The responses that were not to be forgotten, by id."""
        self._routes: Mapping[tuple[str, str], Callable[[_Turn], Script | Ready]] = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completion,
            ("POST", PATH_RESPONSES): self._respond,
            ("POST", f"{PATH_RESPONSES}/compact"): self._compact,
            ("POST", f"{PATH_RESPONSES}/input_tokens"): self._count,
            ("POST", "/v1/embeddings"): self._embed,
            ("POST", "/v1/moderations"): self._moderate,
            ("GET", PATH_MODELS): self._list_models,
        }

    # for tests

    @property
    def answers(self) -> list[Answered]:
        """What the answers to billable requests say, in order of arrival."""
        return [self._at_its_end(told) for told in self.answers_of(Answered)]

    def finish(self, response_id: str) -> None:
        """The response in the background ends as it was scripted. KeyError for one that is not kept."""
        self.kept[response_id].end()

    def fail(self, response_id: str, *, message: str = "The model failed.") -> None:
        """The response in the background fails, and reports no usage."""
        self.kept[response_id].end(FAILED, {"code": "server_error", "message": message})

    def cancel(self, response_id: str) -> None:
        """The response in the background is cancelled, and reports no usage."""
        self.kept[response_id].end(CANCELLED)

    def _at_its_end(self, told: Answered) -> Answered:
        """With the usage of how the response ended, where it ended otherwise than scripted."""
        kept = self.kept.get(told.message_id)
        if kept is None or told.usage is None:
            return told
        return replace(told, usage=kept.response.reply.usage)

    # requests

    def route(self, request: ReceivedRequest) -> Callable[[_Turn], Script | Ready]:
        respond = self._routes.get((request.method, request.path))
        if respond is not None:
            return respond
        if request.method == "GET" and request.path.startswith(PATH_MODELS + "/"):
            return self._model
        match = KEPT_PATHS.fullmatch(request.path)
        if match is not None and (request.method, match["act"]) == ("GET", None):
            return self._retrieve
        if match is not None and (request.method, match["act"]) == ("POST", "/cancel"):
            return self._cancel
        raise RefusedError(404, f"Invalid URL ({request.method} {request.path})")

    def authenticate(self, request: ReceivedRequest) -> None:
        scheme, _, key = request.header(b"authorization").partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            raise RefusedError(401, "You didn't provide an API key.", error_type="invalid_request_error")
        if self.api_key is not None and key != self.api_key:
            raise RefusedError(401, "Incorrect API key provided.")

    def _chat(self, turn: _Turn) -> Script | Ready:
        fields = turn.asked("messages")
        ceiling = fields.get("max_completion_tokens")
        chunks = _chunks(turn, fields)
        reply = turn.compose(
            fields,
            object_id=f"chatcmpl-Sim{turn.request.number:025d}",
            question=_last_text(fields["messages"]),
            tokens_max=fields.get("max_tokens") if ceiling is None else ceiling,
            count_events=lambda reply: len(chat_events(reply, chunks)),
        )
        turn.report(fields, reply)
        if fields.get("stream") is True and turn.is_ordinary:
            return turn.stream(chat_events(reply, chunks), STREAM_TYPE)
        return turn.json(chat_json(reply))

    def _completion(self, turn: _Turn) -> Script | Ready:
        fields = turn.asked("prompt")
        chunks = _chunks(turn, fields)
        reply = turn.compose(
            fields,
            object_id=f"cmpl-Sim{turn.request.number:025d}",
            question=_last_text(fields["prompt"]),
            tokens_max=fields.get("max_tokens", COMPLETION_TOKENS_DEFAULT),
            count_events=lambda reply: len(completion_events(reply, chunks)),
        )
        reply = replace(reply, service_tier=None)
        turn.report(fields, reply)
        if fields.get("stream") is True and turn.is_ordinary:
            return turn.stream(completion_events(reply, chunks), STREAM_TYPE)
        return turn.json(completion_json(reply))

    def _respond(self, turn: _Turn) -> Script | Ready:
        fields = turn.asked("input")
        is_background, is_kept = fields.get("background") is True, fields.get("store") is not False
        if is_background and not is_kept:
            raise RefusedError(400, "Background mode requires store to be true.", error_param="store")
        response = self._response(turn, fields)
        turn.report(fields, response.reply)
        if not turn.is_ordinary:
            return turn.json(b"")
        kept = Kept(response, is_background=is_background, polls=turn.behaviour.polls)
        if is_kept:
            self._keep(kept)
        return self._tell(turn, kept, is_streaming=fields.get("stream") is True)

    def _response(self, turn: _Turn, fields: Mapping[str, Any]) -> Response:
        behaviour = turn.behaviour
        response = Response(
            reply=Reply("", "", "", None),
            echo={name: fields[name] for name in ECHOED_FIELDS if fields.get(name) is not None},
            tier_asked=fields.get("service_tier") or "auto",
            keepalives=behaviour.keepalives,
            obfuscates=_obfuscates(fields),
        )
        reply = turn.compose(
            fields,
            object_id=f"resp_Sim{turn.request.number:045d}",
            question=_last_text(fields["input"]),
            tokens_max=fields.get("max_output_tokens"),
            count_events=lambda reply: len(replace(response, reply=reply).events()),
            context_tokens=self._context_tokens(fields.get("previous_response_id")),
        )
        status = behaviour.ends or (INCOMPLETE if reply.finish_reason == "length" else COMPLETED)
        error = {"code": "server_error", "message": behaviour.error_message} if status == FAILED else None
        return replace(response, reply=reply, status=status, error=error)

    def _context_tokens(self, previous_id: str | None) -> int:
        """The tokens of the conversation that is continued: they are in the prompt again."""
        if previous_id is None:
            return 0
        kept = self.kept.get(previous_id)
        if kept is None:
            raise RefusedError(
                400,
                f"Previous response with id '{previous_id}' not found.",
                error_param="previous_response_id",
                error_code="previous_response_not_found",
            )
        usage = kept.response.reply.usage
        return 0 if usage is None else usage.total_tokens

    def _keep(self, kept: Kept) -> None:
        if len(self.kept) >= KEPT_MAX:
            del self.kept[next(iter(self.kept))]
        self.kept[kept.response.reply.id] = kept

    def _tell(self, turn: _Turn, kept: Kept, *, is_streaming: bool, first: int = 0) -> Script | Ready:
        """The response as it is, or its events from the first one asked for."""
        if not is_streaming or not turn.is_ordinary:
            return turn.json(kept.json())
        if kept.is_unfinished:
            return turn.unfinished(kept, first)
        return turn.stream(kept.events_from(first), STREAM_TYPE)

    def _retrieve(self, turn: _Turn) -> Script | Ready:
        kept, query = self._kept_for(turn), turn.request.query
        kept.poll()
        after = query.get("starting_after", "-1")
        if not re.fullmatch(r"-1|\d+", after):
            raise RefusedError(400, f"Invalid 'starting_after': {after}", error_param="starting_after")
        return self._tell(turn, kept, is_streaming=query.get("stream") == "true", first=int(after) + 1)

    def _cancel(self, turn: _Turn) -> Script | Ready:
        kept = self._kept_for(turn)
        if not kept.is_background:
            raise RefusedError(400, "Cannot cancel a synchronous response.")
        if turn.is_ordinary:
            kept.end(CANCELLED)
        return turn.json(kept.json())

    def _kept_for(self, turn: _Turn) -> Kept:
        match = KEPT_PATHS.fullmatch(turn.request.path)
        assert match is not None, "the route was chosen by it"
        kept = self.kept.get(match["id"])
        if kept is None:
            raise RefusedError(404, f"Response with id '{match['id']}' not found.")
        return kept

    def _compact(self, turn: _Turn) -> Script | Ready:
        fields = turn.asked()
        reply = turn.compose(
            fields,
            object_id=f"resp_Sim{turn.request.number:045d}",
            question=_last_text(fields.get("input")),
            tokens_max=None,
            context_tokens=self._context_tokens(fields.get("previous_response_id")),
        )
        turn.report(fields, reply)
        return turn.json(compaction_json(reply))

    def _count(self, turn: _Turn) -> Script | Ready:
        fields = turn.asked()
        tokens = turn.input_tokens + self._context_tokens(fields.get("previous_response_id"))
        return turn.json(orjson.dumps({"object": "response.input_tokens", "input_tokens": tokens}))

    def _embed(self, turn: _Turn) -> Script | Ready:
        fields = turn.asked("input")
        reply = turn.compose(fields, object_id="", question="", tokens_max=0)
        reply = replace(reply, service_tier=None)
        turn.report(fields, reply)
        return turn.json(
            embeddings_json(
                _inputs(fields["input"]),
                model=reply.model,
                usage=reply.usage,
                dimensions=fields.get("dimensions") or EMBEDDING_DIMENSIONS,
                is_base64=fields.get("encoding_format") == "base64",
            )
        )

    def _moderate(self, turn: _Turn) -> Script | Ready:
        fields = {"model": "omni-moderation-latest", **turn.fields(())}
        if "input" not in fields:
            raise RefusedError(400, "Missing required parameter: 'input'.", error_param="input")
        model = MODEL_ALIASES.get(fields["model"], fields["model"])
        inputs = len(_inputs(fields["input"]))
        return turn.json(moderations_json(inputs, model=model, number=turn.request.number))

    def _list_models(self, turn: _Turn) -> Script | Ready:
        data = [model.as_json() for model in MODELS]
        return turn.json(orjson.dumps({"object": "list", "data": data}))

    def _model(self, turn: _Turn) -> Script | Ready:
        name = turn.request.path.removeprefix(PATH_MODELS + "/")
        for model in MODELS:
            if name in (model.id, model.alias):
                return turn.json(orjson.dumps(model.as_json()))
        raise unknown_model(name)


def unknown_model(name: str) -> RefusedError:
    return RefusedError(
        404,
        f"The model `{name}` does not exist or you do not have access to it.",
        error_param="model",
        error_code="model_not_found",
    )


def _chunks(turn: _Turn, fields: Mapping[str, Any]) -> Chunks:
    options = fields.get("stream_options") or {}
    return Chunks(
        includes_usage=options.get("include_usage") is True,
        obfuscates=_obfuscates(fields),
        after_usage=turn.behaviour.after_usage,
    )


def _obfuscates(fields: Mapping[str, Any]) -> bool:
    return (fields.get("stream_options") or {}).get("include_obfuscation") is not False


def _tag(request: ReceivedRequest, fields: Mapping[str, Any]) -> str:
    tag = request.header(b"x-request-tag")
    return tag.decode("latin-1") if tag else str(fields.get("user") or "")


def _last_text(said: Any) -> str:
    """The text of a prompt, or of the last item of a conversation: a string, or its parts that have text."""
    if isinstance(said, str):
        return said
    if not isinstance(said, list) or not said:
        return ""
    last = said[-1]
    if isinstance(last, str):
        return last
    content = last.get("content", "") if isinstance(last, dict) else ""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def _inputs(given: Any) -> Sequence[str]:
    """What is to be embedded or moderated: one text (or its tokens), or several."""
    if not isinstance(given, list) or not given or isinstance(given[0], int):
        return [str(given)]
    return [str(one) for one in given]
