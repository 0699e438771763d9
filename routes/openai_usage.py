"""OpenAI's usage: what an answer of any of its text endpoints, streamed or whole, says that it used.

Where the counts stand (API reference and Python SDK 3.52.0, `CompletionUsage` and `ResponseUsage`, 2026-11):
a whole answer has them as `usage`. A chat stream has them in one chunk of its own, not always the last, and only
when asked (`stream_options.include_usage`); it ends with `data: [DONE]`. A Responses stream has them in its
terminal event, inside `response`. The prompt's total includes what was read from and written to a cache; the
output's total includes reasoning and predicted tokens that were rejected. The tier is what the answer says last:
`auto` is no tier, and what an early event says is not final.
"""

from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

import orjson

from metering.sse import SseEvent
from metering.usage import (
    CACHE_AUDIO_READ,
    CACHE_READ,
    CACHE_WRITE_12H,
    CACHE_WRITE_30M,
    INPUT,
    INPUT_AUDIO,
    INPUT_IMAGE,
    OUTPUT,
    OUTPUT_AUDIO,
    OUTPUT_UNITS,
    WEB_SEARCHES,
    WEB_SEARCHES_PREVIEW,
    Usage,
    UsageLine,
)
from proxy.surface import AnswerHead, Demand, Observer
from routes.counting import (
    BODY_BYTES_PER_OUTPUT_TOKEN,
    NAME_CHARS_MAX,
    NOTE_UNSOUND,
    BodyObserver,
    StreamObserver,
    count_in,
    is_count,
    is_name,
    is_stream,
    json_of,
    with_at_least,
    with_floor,
)

CHAT_BYTES_PER_OUTPUT_TOKEN = 50
"""For chat streams that end without usage. Recorded streams have about 200 bytes per visible token (a chunk
each); 50 leans towards too many, as reasoning is billed and not shown."""
RESPONSE_BYTES_PER_OUTPUT_TOKEN = 20
"""The same for Responses streams: a recorded one, mostly reasoning, has 32."""
REASONED_TOKENS_PER_S = 50
"""Of a response that was cancelled and tells no usage: what it reasoned is not shown, but was done. A usual speed."""
DATES_KEPT = 64
"""Answers of one second have the same `date`."""
TAIL_BYTES_MAX = 4_096
"""Of an answer with embeddings: what follows the vectors is some hundred bytes."""
OTHER_TOOLS_MAX = 8
"""Tool families kept that nobody has priced, so that pricing can flag them."""

NOTE_TTL_ASSUMED = "cache_write_ttl_assumed_12h"
NOTE_SEARCHES_SEEN = "web_searches_counted_from_output"

STANDARD_TIERS = ("default", "standard")
UNDECIDED_TIER = "auto"
RUNNING = ("queued", "in_progress")
"""What the status of a response is while its work goes on."""
FAILED = "failed"
_COMPLETED = "completed"

_DONE = b"[DONE]"
_CHAT_MARKERS = (b'"prompt_tokens"', b'"error"', _DONE)
_TERMINAL = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
_EARLY = ("response.created", "response.queued", "response.in_progress")
_EARLY_EVENTS = tuple(kind.encode() for kind in _EARLY)
_RESPONSE_MARKERS = (b'"response"', b'"error"')
"""The events that tell how the response stands carry it whole; within a text no quote stands unescaped."""
_ITEM_DONE = "response.output_item.done"
_SEARCH_MARKER = b'"web_search_call"'
"""The type of an item that is a search; else it stands only where the whole response does."""
_WEB_SEARCH = "web_search"
_WRITES = "cache_write_tokens_details"


def observe_chat(demand: Demand, answer: AnswerHead) -> Observer:
    """The observer for chat completions and what is like them: completions."""
    return ChatStream(demand) if is_stream(demand, answer) else BodyObserver(demand, ChatReport())


def observe_response(demand: Demand, answer: AnswerHead) -> Observer:
    """The observer for a response: newly created, asked for again, or compacted."""
    return ResponseStream(demand) if is_stream(demand, answer) else ResponseBody(demand, answer)


def is_running(observer: Observer) -> bool:
    """Whether a response's work goes on after the answer just read."""
    return isinstance(observer, ResponseStream | ResponseBody) and observer.status in RUNNING


# --- the kinds of answers -----------------------------------------------------------------------------


class ChatStream(StreamObserver):
    """Reads a stream of chunks until `[DONE]`, or the vendor's error."""

    __slots__ = ("_chunks",)

    def __init__(self, demand: Demand) -> None:
        self._chunks = ChatReport()
        super().__init__(
            demand, self._chunks, _CHAT_MARKERS, bytes_per_output_token=CHAT_BYTES_PER_OUTPUT_TOKEN
        )

    def _is_whole(self, data: bytes) -> bool:
        return data.startswith(_DONE) or super()._is_whole(data)

    def _read(self, event: SseEvent) -> None:
        if event.data.startswith(_DONE):
            self._is_complete = True
            return
        data = json_of(event.data)
        if not isinstance(data, dict):
            self._chunks.is_sound = False
        elif data.get("error"):
            self._error = _error_name(data["error"])
        else:
            self._chunks.take(data)


class EmbeddingsBody(BodyObserver):
    """Reads what follows the vectors, which are megabytes of numbers: parsing them would stop everybody else."""

    __slots__ = ("_embeddings", "_tail")

    def __init__(self, demand: Demand) -> None:
        self._embeddings = ChatReport()
        self._tail = b""
        super().__init__(demand, self._embeddings)

    def feed(self, chunk: bytes) -> int:
        self._tail = (self._tail + chunk)[-TAIL_BYTES_MAX:]
        return super().feed(chunk)

    def _condense(self, chunk: bytes) -> None:  # noqa: ARG002 - the base's
        """Not even that: the tail has it."""
        self._copy.clear()

    def _read(self) -> bool:
        """The rest of the object, from the end of its list on; all of it where the counts stand before that."""
        rest = json_of(b"{" + self._tail[self._tail.rfind(b"]") + 1 :].lstrip(b", \t\r\n"))
        if isinstance(rest, dict) and rest.get("usage") is not None:
            return self._embeddings.read_body(rest)
        return super()._read()


class ResponseStream(StreamObserver):
    """Reads a stream of a response until its terminal event, or the vendor's error."""

    __slots__ = ("_response",)

    def __init__(self, demand: Demand) -> None:
        self._response = ResponseReport()
        may_search = demand.ceiling.total(_search_unit(demand)) > 0
        super().__init__(
            demand,
            self._response,
            (*_RESPONSE_MARKERS, _SEARCH_MARKER) if may_search else _RESPONSE_MARKERS,
            bytes_per_output_token=RESPONSE_BYTES_PER_OUTPUT_TOKEN,
        )

    @property
    def status(self) -> str | None:
        """The response's, as last told."""
        return self._response.status

    @property
    def _is_final(self) -> bool:
        """A failed response is final too: what it reports, if anything, is what is billed."""
        return self._is_complete

    def _read(self, event: SseEvent) -> None:
        if event.type in _EARLY_EVENTS:  # They repeat the whole request, and say nothing that is final.
            self._repeated_bytes += len(event.data)
            if not self._demand.is_deferred:
                return
        data = json_of(event.data)
        if not isinstance(data, dict):
            self._response.is_sound = False
            return
        kind = data.get("type")
        if kind in _TERMINAL:
            self._repeated_bytes += len(event.data)  # It repeats the request and all of the answer.
            self._is_complete = True
            self._response.take(data.get("response"))
            self._error = self._response.error
        elif kind in _EARLY:
            self._response.take_status(data.get("response"))
        elif kind == _ITEM_DONE:
            self._response.show(data.get("item"))
        elif kind == "error" or data.get("error"):
            self._error = _error_name(data.get("error") or data)


class ResponseBody(BodyObserver):
    """Reads a whole response."""

    __slots__ = ("_answered_at_s", "_response")

    def __init__(self, demand: Demand, answer: AnswerHead) -> None:
        self._answered_at_s = _seconds_of(answer.header(b"date"))
        self._response = ResponseReport()
        super().__init__(demand, self._response)

    @property
    def status(self) -> str | None:
        """The response's own, None before it has been read."""
        return self._response.status

    @property
    def error(self) -> str | None:
        return self._response.error

    def _output_guess(self) -> int:
        """A response repeats the whole request: of one that could be read, only its own output counts."""
        return (
            self._response.output_guess(self._answered_at_s) if self.is_complete else super()._output_guess()
        )


# --- what the vendor has reported ---------------------------------------------------------------------


class ChatReport:
    """What the vendor has said about one answer so far; the last usage that is not null stands."""

    __slots__ = ("_model", "_tier", "_usage", "is_sound")

    def __init__(self) -> None:
        self.is_sound = True
        self._model: str | None = None
        self._tier: str | None = None
        self._usage: Mapping[str, Any] | None = None

    def read_body(self, body: Mapping[str, Any]) -> bool:
        self.take(body)
        return self._usage is not None

    def take(self, answer: Mapping[str, Any]) -> None:
        """A whole answer, or a chunk of one: of many chunks, those with usage name the model and tier of it."""
        usage = answer.get("usage")
        if usage is None:
            return
        if not isinstance(usage, dict):
            self.is_sound = False
            return
        self._usage = usage
        self._model = self._name(answer, "model") or self._model
        tier = self._name(answer, "service_tier")
        self._tier = self._tier if tier in (None, UNDECIDED_TIER) else tier

    def usage(
        self, demand: Demand, *, is_final: bool, output_guess: int | None, notes: Sequence[str] = ()
    ) -> Usage:
        """As Report.usage. The model and the tier are the request's where the answer names none."""
        found = list(notes)
        asked = demand.floor.lines[0] if demand.floor.lines else UsageLine("", {})
        modifiers = self._modifiers(asked.modifiers)
        lines: list[UsageLine] = []
        is_known = False
        if self._usage is not None:
            counts = _Counts(self._usage)
            buckets = counts.buckets(found, demand)
            searches = self._searches(demand, found)
            if searches:
                buckets[_search_unit(demand)] = searches
            buckets |= self._other_tools()
            lines = [UsageLine(self._model or asked.model, buckets, modifiers)]
            is_known = self.is_sound and counts.are_sound(demand)
            if not is_known:
                found.append(NOTE_UNSOUND)
        is_exact = is_final and is_known
        if output_guess is not None and not is_known:
            lines = with_at_least(with_floor(lines, demand), OUTPUT, min(output_guess, _output_of(demand)))
            if output_guess:  # else nothing has come
                lines = with_at_least(lines, _search_unit(demand), self._searches(demand, found))
        return Usage(tuple(lines), is_exact, tuple(dict.fromkeys(found)) if found else ())

    def _searches(self, demand: Demand, notes: list[str]) -> int:  # noqa: ARG002 - the notes are for responses
        """Chat completions do not count them: a model that searches does so once per request (pricing page,
        2026-11), before it answers, and nothing else can."""
        return min(demand.ceiling.total(_search_unit(demand)), 1)

    def _other_tools(self) -> Mapping[str, int]:
        return {}

    def _modifiers(self, asked: Mapping[str, str]) -> Mapping[str, str]:
        if self._tier is None:
            return asked
        if self._tier not in STANDARD_TIERS:
            return {**asked, "service_tier": self._tier}
        if "service_tier" not in asked:
            return asked
        return {name: value for name, value in asked.items() if name != "service_tier"}

    def _name(self, answer: Mapping[str, Any], field: str) -> str | None:
        value = answer.get(field)
        if value is None:
            return None
        if is_name(value):
            return value
        self.is_sound = False
        return None


class ResponseReport(ChatReport):
    """The same about a response, which also says how it stands and counts its tools."""

    __slots__ = ("_created_at_s", "_output", "_searches_shown", "_tool_usage", "error", "status")

    def __init__(self) -> None:
        super().__init__()
        self._created_at_s: float | None = None
        self.status: str | None = None
        self.error: str | None = None
        """Why it failed; None unless it did."""
        self._tool_usage: Mapping[str, Any] | None = None
        self._output: Any = None
        self._searches_shown = 0
        """By a stream that is under way."""

    def read_body(self, body: Mapping[str, Any]) -> bool:
        self.take(body)
        return self._usage is not None or self.status is not None

    def take(self, answer: Any) -> None:
        """A response as it stands at its end, or when it is asked for."""
        if not isinstance(answer, dict):
            self.is_sound = False
            return
        super().take(answer)
        self.take_status(answer)
        self._output = answer.get("output")
        created_at_s = answer.get("created_at")
        self._created_at_s = created_at_s if isinstance(created_at_s, int | float) else None
        if self.status == FAILED:
            self.error = _error_name(answer.get("error"))
        tools = answer.get("tool_usage")
        if tools is not None and not isinstance(tools, dict):
            self.is_sound = False
        elif tools is not None:
            self._tool_usage = tools

    def output_guess(self, told_at_s: float | None) -> int:
        """How much was written by then: what is shown, or what its time was enough for."""
        shown = len(orjson.dumps(self._output)) // BODY_BYTES_PER_OUTPUT_TOKEN if self._output else 0
        if told_at_s is None or self._created_at_s is None:
            return shown
        return max(shown, int(max(told_at_s - self._created_at_s, 0.0) * REASONED_TOKENS_PER_S))

    def take_status(self, answer: Any) -> None:
        """How a response stands while it goes on."""
        status = answer.get("status") if isinstance(answer, dict) else None
        self.status = status if isinstance(status, str) else self.status

    def show(self, item: Any) -> None:
        """An item of the output that is done, as a stream shows it."""
        if _is_search(item) and item.get("status", _COMPLETED) == _COMPLETED:
            self._searches_shown += 1

    def usage(
        self, demand: Demand, *, is_final: bool, output_guess: int | None, notes: Sequence[str] = ()
    ) -> Usage:
        guess = None if self.error is not None else output_guess
        return super().usage(demand, is_final=is_final, output_guess=guess, notes=notes)

    def _searches(self, demand: Demand, notes: list[str]) -> int:  # noqa: ARG002 - it is told, or seen
        """`tool_usage` counts the billable ones and may be left out; then the searches in the output count, and
        those that a stream showed where it did not come to its usage."""
        told = (self._tool_usage or {}).get(_WEB_SEARCH)
        if isinstance(told, dict) and is_count(told.get("num_requests")):
            return count_in(told, "num_requests")
        seen = sum(map(_is_search, self._output)) if isinstance(self._output, list) else 0
        if self._usage is None:
            seen = max(seen, self._searches_shown)
        if seen:
            notes.append(NOTE_SEARCHES_SEEN)
        return seen

    def _other_tools(self) -> Mapping[str, int]:
        """Families that this gateway does not offer (image generation): if any was used, pricing flags it."""
        counts: dict[str, int] = {}
        for family, told in (self._tool_usage or {}).items():
            used = count_in(told, "total_tokens") if isinstance(told, dict) else 0
            if used and family != _WEB_SEARCH and len(counts) < OTHER_TOOLS_MAX:
                counts[f"{family[:NAME_CHARS_MAX]}_tokens"] = used
        return counts


class _Counts:
    """A usage object, whichever endpoint's names it has."""

    __slots__ = ("_of_output", "_of_prompt", "_output", "_prompt")

    def __init__(self, usage: Mapping[str, Any]) -> None:
        prompt, output = (
            ("input_tokens", "output_tokens")
            if "input_tokens" in usage
            else ("prompt_tokens", "completion_tokens")
        )
        self._prompt, self._output = usage.get(prompt), usage.get(output)
        self._of_prompt, self._of_output = usage.get(f"{prompt}_details"), usage.get(f"{output}_details")

    def are_sound(self, demand: Demand) -> bool:
        """Every counter is a count or null, the totals are there, and no part is more than its whole."""
        if not is_count(self._prompt) or not (
            is_count(self._output) or (not self._output and not _output_of(demand))
        ):
            return False
        for part in (self._of_prompt, self._of_output, _object_in(self._of_prompt, _WRITES)):
            if part is None:
                continue
            if not isinstance(part, dict):
                return False
            for value in part.values():
                if not (value is None or is_count(value) or isinstance(value, dict)):
                    return False
        cached = _part(self._of_prompt, "cached_tokens") + _part(self._of_prompt, "cache_write_tokens")
        return cached <= self._prompt and _part(self._of_output, "audio_tokens") <= (self._output or 0)

    def buckets(self, notes: list[str], demand: Demand) -> dict[str, int]:
        """Disjoint counts."""
        counts = self._prompt_buckets(notes, demand)
        output = self._output if is_count(self._output) else 0
        audio_out = min(_part(self._of_output, "audio_tokens"), output)
        counts[OUTPUT] = output - audio_out
        counts[OUTPUT_AUDIO] = audio_out
        return {unit: count for unit, count in counts.items() if count}

    def _prompt_buckets(self, notes: list[str], demand: Demand) -> dict[str, int]:
        """Where the vendor does not say which kind of token was cached, text was: sound that was not cached is the
        dearer reading."""
        prompt = self._prompt if is_count(self._prompt) else 0
        details = self._of_prompt
        if not isinstance(details, dict) or not any(details.values()):  # text, and no cache
            return {INPUT: prompt}
        cached = min(_part(details, "cached_tokens"), prompt)
        written = min(_part(details, "cache_write_tokens"), prompt - cached)
        uncached = prompt - cached - written
        audio = min(_part(details, "audio_tokens"), uncached)
        audio_cached = min(max(_part(details, "audio_tokens") - audio, 0), cached)
        images = min(_part(details, "image_tokens"), uncached - audio)
        writes = _object_in(details, _WRITES)
        written_12h = min(_part(writes, "ttl_12h_tokens"), written)
        rest = written - written_12h - _part(writes, "ttl_30m_tokens")
        if rest > 0 and demand.ceiling.total(CACHE_WRITE_12H) > 0:
            # A total without lifetimes. The request asks for twelve hours somewhere: the dearer one.
            written_12h += rest
            notes.append(NOTE_TTL_ASSUMED)
        return {
            INPUT: uncached - audio - images,
            INPUT_AUDIO: audio,
            INPUT_IMAGE: images,
            CACHE_READ: cached - audio_cached,
            CACHE_AUDIO_READ: audio_cached,
            CACHE_WRITE_30M: written - written_12h,
            CACHE_WRITE_12H: written_12h,
        }


@lru_cache(maxsize=DATES_KEPT)
def _seconds_of(date: bytes) -> float | None:
    """The instant of a `date` header, in seconds since the epoch; None where there is none."""
    try:
        return parsedate_to_datetime(date.decode("latin-1")).timestamp()
    except ValueError:
        return None


def _object_in(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _part(details: Any, name: str) -> int:
    value = details.get(name) if isinstance(details, dict) else None
    return value if value and is_count(value) else 0


def _search_unit(demand: Demand) -> str:
    """As which kind searches are billed: answers do not tell, the tool that was asked for does."""
    return WEB_SEARCHES_PREVIEW if demand.ceiling.total(WEB_SEARCHES_PREVIEW) else WEB_SEARCHES


def _output_of(demand: Demand) -> int:
    return sum([line.counts.get(unit, 0) for line in demand.ceiling.lines for unit in OUTPUT_UNITS])


def _is_search(item: Any) -> bool:
    """Opening a page and finding in one are not billed (SDK 3.52.0, `ToolUsage`)."""
    if not isinstance(item, dict) or item.get("type") != "web_search_call":
        return False
    action = item.get("action")
    return not isinstance(action, dict) or action.get("type", "search") == "search"


def _error_name(error: Any) -> str:
    """The vendor's word for an error: its code, or its type."""
    if isinstance(error, dict):
        for field in ("code", "type"):
            if is_name(error.get(field)):
                return str(error[field])
    return "error"
