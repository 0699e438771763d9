"""Brave Search, scripted: searches, contexts, places, suggestions and Answers, as an agent's client expects them.

Every answer's use is known beforehand and kept in `BraveSimulator.answers`, so that a test can hold the ledger
to it. What an answer does comes as `simulators.vendor` says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import orjson

from simulators import vendor
from simulators.behaviour import Ending
from simulators.brave_answers import (
    ERROR_CODE_OTHER,
    ERROR_CODES,
    LOOKALIKE,
    OPTION_NOT_IN_PLAN,
    PLANS,
    QUOTA_USED,
    SUBSCRIPTION_TOKEN_INVALID,
    Family,
    Reply,
    ReportedUsage,
    Tags,
    account_meta,
    chat_events,
    chat_json,
    error_json,
)
from simulators.brave_behaviour import (
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
from simulators.brave_requests import (
    ENDPOINTS,
    MODEL,
    PATH_CHAT,
    Endpoint,
    family_of,
    invalid,
    question_of,
    research_of,
    search_of,
)
from simulators.brave_results import Asked
from simulators.script import Ready, Script
from simulators.server import ReceivedRequest
from simulators.text import ECHO_CHARS_MAX, echo, tokens_of
from simulators.vendor import Options, RefusedError, VendorSimulator

__all__ = [
    "ACCOUNT_HEADERS",
    "ANSWERS_KEY",
    "FAMILY_KEYS",
    "LOOKALIKE",
    "PLAIN",
    "PLANS",
    "QUOTA_USED",
    "SEARCH_KEY",
    "SPELLCHECK_KEY",
    "SUGGEST_KEY",
    "VENDOR_KEY",
    "Answered",
    "Behaviour",
    "BraveSimulator",
    "Ending",
    "Family",
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

VENDOR_KEY = "BSASimulated-vendor-key"
"""The platform's own key, good for every product here: a request that carries none is answered 422."""
SEARCH_KEY = "BSASimulated-search-key"
ANSWERS_KEY = "BSASimulated-answers-key"
SUGGEST_KEY = "BSASimulated-suggest-key"
SPELLCHECK_KEY = "BSASimulated-spellcheck-key"
FAMILY_KEYS = {
    Family.SEARCH: SEARCH_KEY,
    Family.ANSWERS: ANSWERS_KEY,
    Family.SUGGEST: SUGGEST_KEY,
    Family.SPELLCHECK: SPELLCHECK_KEY,
}
"""The key of one product each, as the vendor gives them out: with another product it is answered 400."""

ACCOUNT_HEADERS = (
    ("X-RateLimit-Limit", "50, 0"),
    ("X-RateLimit-Policy", "50;w=1, 0;w=2678400"),
    ("X-RateLimit-Remaining", "49, 0"),
    ("X-RateLimit-Reset", "1, 2558678"),
)
"""Of the second and of the month, where 0 is no limit. About the platform's account, not about the request: for the
proxy's eyes alone. They stand in every answer, of whatever product."""
STREAM_TYPE = "text/event-stream"

RESULTS_DEFAULT = 3
"""Results of an unscripted search: the simulator's choice, as the next two."""
RESEARCH_QUERIES = 8
TOKENS_READ = 1_000
"""Input tokens of each query of an unscripted answer, besides those of the question."""


@dataclass(frozen=True, slots=True)
class Answered(vendor.Answered):
    """What one answer to a billable request used, told or not. `message_id` and `model` are "" but for Answers."""

    usage: ReportedUsage | None
    path: str
    family: Family


class _Turn(vendor.Turn[Behaviour]):
    """One request with its behaviour: builds the answer."""

    @property
    def request_id(self) -> str:
        return ""

    @classmethod
    def headers(cls, content_type: str, request_id: str) -> tuple[tuple[str, str], ...]:  # noqa: ARG003 - the vendor has none
        return (
            ("Date", "Fri, 20 Nov 2026 12:00:00 GMT"),
            ("Content-Type", content_type),
            *ACCOUNT_HEADERS,
        )

    def error_body(self) -> bytes:
        return self._error(self.behaviour.status)

    def error_event(self) -> bytes:
        """The body of an error as an event: a choice, for the vendor documents none."""
        return b"data: %b\n\n" % self._error(503)

    def _error(self, status: int) -> bytes:
        behaviour = self.behaviour
        code = behaviour.error_type or ERROR_CODES.get(status, ERROR_CODE_OTHER)
        meta = behaviour.error_meta
        if meta is None:
            meta = account_meta(family_of(self.request.path), code)
        return error_json(self.request.number, status, code, behaviour.error_message, meta)

    def fields(self, required: Sequence[str]) -> dict[str, Any]:
        """The request's JSON object. Raises RefusedError(422), as the vendor answers all that is not valid."""
        try:
            return super().fields(required)
        except RefusedError as refusal:
            raise invalid("body", refusal.message) from refusal

    def search(self, endpoint: Endpoint) -> Script | Ready:
        asked = self._asked(endpoint)
        # Only what succeeds is billed, whatever its body says.
        usage = None if self.behaviour.is_error else ReportedUsage(endpoint.family, endpoint.requests)
        self._report(usage if usage is None else self._changed(usage), endpoint.family)
        return self.json(orjson.dumps(endpoint.body(asked)))

    def chat(self) -> Script | Ready:
        fields = self.fields(("messages", "model"))
        question = question_of(fields)
        queries, input_tokens = self._read(fields)
        text = self.scripted_text(self.behaviour.events)
        if text is None:
            text = echo(question, tokens_max=ECHO_CHARS_MAX)
        computed = ReportedUsage(queries=queries, input_tokens=input_tokens, output_tokens=tokens_of(text))
        behaviour = self.behaviour
        tags = Tags(
            behaviour.tags,
            behaviour.tag_split,
            is_spaced=behaviour.spaces_tag,
            joins_text=behaviour.joins_tag,
            lookalike=behaviour.lookalike,
        )
        reply = Reply(
            id=f"chatcmpl-Sim{self.request.number:016d}",
            model=behaviour.model or MODEL,
            text=text,
            usage=self._changed(computed),
            tags=tags,
            finish_reason=behaviour.stop_reason or "stop",
            closing_usage=behaviour.closing_usage,
        )
        is_streaming = fields.get("stream") is not False
        usage = reply.usage if self.is_ordinary else behaviour.usage
        self._report(usage, Family.ANSWERS, fields, reply, is_streaming=is_streaming)
        if is_streaming and self.is_ordinary:
            events, first = chat_events(reply, behaviour.events)
            if behaviour.from_tag:
                self.behaviour = _counted_from(behaviour, first)
            return self.stream(events, STREAM_TYPE)
        if behaviour.usage_headers and self.is_ordinary:
            told = tuple((name, str(value)) for name, value in reply.usage.in_tag().items())
            self.behaviour = replace(behaviour, headers=(*behaviour.headers, *told))
        return self.json(chat_json(reply))

    def _asked(self, endpoint: Endpoint) -> Asked:
        """What a search asks for. Raises RefusedError(422) where the vendor would."""
        request = self.request
        fields: Mapping[str, Any] = self.fields(()) if request.method == "POST" else request.query
        query, count, ids = search_of(request, fields, endpoint)
        wanted = RESULTS_DEFAULT if self.behaviour.results is None else self.behaviour.results
        text = self.scripted_text(None)
        return Asked(
            query=query,
            count=min(count, wanted),
            text=echo(query, tokens_max=ECHO_CHARS_MAX) if text is None else text,
            ids=ids,
            fields=fields,
        )

    def _read(self, fields: Mapping[str, Any]) -> tuple[int, int]:
        """How many queries an unscripted answer runs, and the input tokens that it reads in all."""
        queries_max, tokens_max = research_of(fields)
        queries = min(RESEARCH_QUERIES, queries_max) if fields.get("enable_research") is True else 1
        return queries, self.input_tokens + queries * min(TOKENS_READ, tokens_max)

    def _changed(self, computed: ReportedUsage) -> ReportedUsage:
        return replace(self.behaviour.usage or computed, **self.behaviour.usage_changes)

    def _report(
        self,
        usage: ReportedUsage | None,
        family: Family,
        fields: Mapping[str, Any] | None = None,
        reply: Reply | None = None,
        *,
        is_streaming: bool = False,
    ) -> None:
        """Write down what this answer used."""
        tag = self.request.header(b"x-request-tag").decode("latin-1")
        self.reports = Answered(
            number=self.request.number,
            tag=tag or str((fields or {}).get("user") or ""),
            request_id="",
            message_id="" if reply is None else reply.id,
            model="" if reply is None else reply.model,
            is_streaming=is_streaming,
            status=self.behaviour.status,
            usage=usage,
            path=self.request.path,
            family=family,
        )


class BraveSimulator(VendorSimulator[Behaviour, _Turn]):
    """`https://api.search.brave.com` on a loopback port; the paths begin with `/res/v1`.

    `api_key` is good for every product (None: any key is), `keys` for one each.
    """

    vendor_key = VENDOR_KEY
    behaviour_type = Behaviour
    turn_type = _Turn
    parse_simulate = staticmethod(parse_simulate)

    def __init__(
        self,
        *,
        keys: Mapping[Family, str] = FAMILY_KEYS,
        **options: Unpack[Options[Behaviour]],
    ) -> None:
        super().__init__(**options)
        self._families = {key.encode(): family for family, key in keys.items()}

    @property
    def answers(self) -> list[Answered]:
        """What the answers to billable requests used, in order of arrival."""
        return self.answers_of(Answered)

    def route(self, request: ReceivedRequest) -> Callable[[_Turn], Script | Ready]:
        if (request.method, request.path) == ("POST", PATH_CHAT):
            return _Turn.chat
        endpoint = ENDPOINTS.get(request.path)
        if endpoint is None or request.method not in endpoint.methods:
            raise RefusedError(404, f"{request.method} {request.path} was not found.")
        return lambda turn: turn.search(endpoint)

    def authenticate(self, request: ReceivedRequest) -> None:
        key = request.header(b"x-subscription-token")
        if not key and request.path == PATH_CHAT:
            scheme, _, given = request.header(b"authorization").partition(b" ")
            key = given if scheme.lower() == b"bearer" else b""
        family = self._families.get(key)
        if key and (self.api_key is None or key == self.api_key or family is family_of(request.path)):
            return
        if family is None:
            raise RefusedError(
                422, "The provided subscription token is not valid.", error_type=SUBSCRIPTION_TOKEN_INVALID
            )
        raise RefusedError(
            400,
            "The option is not part of the plan.",
            error_type=OPTION_NOT_IN_PLAN,
            error_meta=account_meta(family, OPTION_NOT_IN_PLAN),
        )


def _counted_from(behaviour: Behaviour, first: int) -> Behaviour:
    """The same, its points counted from the beginning of the stream instead of from this event."""
    points = ("breaks_after", "errors_after", "stalls_after")
    given = {name: getattr(behaviour, name) for name in points}
    return replace(behaviour, **{name: first + at for name, at in given.items() if at is not None})
