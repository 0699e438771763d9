"""Anthropic's usage: what an answer of the Messages API, streamed or whole, says that it used.

Where the counts stand (Anthropic docs "Streaming messages" and Python SDK 2.11.0, 2026-11): `message_start`
has the input side and a placeholder for the output; `message_delta` repeats the counters, cumulative, and
its values replace the earlier ones (a server tool raises even the input); `message_stop` ends the stream.
A whole answer carries the same object as `usage`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from metering.sse import SseEvent
from metering.usage import (
    CACHE_READ,
    CACHE_WRITE_1H,
    CACHE_WRITE_5M,
    INPUT,
    OUTPUT,
    WEB_SEARCHES,
    Usage,
    UsageLine,
)
from proxy.surface import AnswerHead, Demand, Observer
from routes.counting import (
    COUNT_MAX,
    NAME_CHARS_MAX,
    NOTE_UNSOUND,
    BodyObserver,
    StreamObserver,
    added_up,
    count_in,
    is_count,
    is_name,
    is_stream,
    json_of,
    with_at_least,
    with_counts,
    with_floor,
)

STREAM_BYTES_PER_OUTPUT_TOKEN = 10
"""For streams cut before their counts came. Recorded streams have 14 to 26 bytes per token, framing
included; 10 leans towards too many tokens, as the vendor bills what was cut."""
LINES_MAX = 64
"""Iterations kept apart in the usage; of more than that, those of one model are added up."""
OTHER_COUNTERS_MAX = 8
"""Counters of server tools that nobody has priced yet, kept so that pricing can flag them."""
DECLINED_OUTPUT_TOKENS_MAX = 1
"""What a hop shows as output when it was declined before it wrote anything (Amazon Bedrock user guide,
"Fallback credit", 2026-11: an empty refusal with `output_tokens: 1`)."""

NOTE_TTL_ASSUMED = "cache_write_ttl_assumed_1h"
NOTE_REFUSED = "refused_before_output"

_COUNTERS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_STANDARD = {
    "service_tier": (None, "standard"),
    "speed": (None, "standard"),
    "inference_geo": (None, "global", "not_available"),
}
"""What changes the price besides the model, and its values that change nothing; None says nothing."""
_NOTHING_WRITTEN = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}
_SEARCHES = "web_search_requests"
_FREE_TOOLS = frozenset({"web_fetch_requests"})
"""Web fetches cost only their tokens (Anthropic pricing, 2026-11)."""
_MARKERS = (b'"message_', b'"error"')
_FIRST_BLOCK = b'"content_block_start"'
_SEARCH_RESULT = "web_search_tool_result"
_SEARCH_MARKER = b'"web_search_tool_result"'


def observe(demand: Demand, answer: AnswerHead) -> Observer:
    """The observer for a successful answer: by its content type, and by the request where it has none."""
    return MessageStream(demand) if is_stream(demand, answer) else BodyObserver(demand, Report())


# --- the two kinds of answers -------------------------------------------------------------------------


class MessageStream(StreamObserver):
    """Reads a stream until `message_stop`, or the vendor's `error` ("failed requests are not charged":
    Anthropic help centre, article 8114526)."""

    __slots__ = ("_markers", "_message")

    def __init__(self, demand: Demand) -> None:
        self._message = Report()
        self._markers = (*_MARKERS, _SEARCH_MARKER) if demand.ceiling.total(WEB_SEARCHES) else _MARKERS
        """Of all that matters once there is output."""
        super().__init__(
            demand,
            self._message,
            (*self._markers, _FIRST_BLOCK),
            bytes_per_output_token=STREAM_BYTES_PER_OUTPUT_TOKEN,
        )

    def _read(self, event: SseEvent) -> None:
        if event.type == b"content_block_delta":  # Text that quotes a marker.
            return
        data = json_of(event.data)
        if not isinstance(data, dict):
            self._message.is_sound = False
            return
        kind = data.get("type")
        if kind == "message_start":
            self._message.start(data.get("message"))
        elif kind == "message_delta":
            self._message.delta(data)
        elif kind == "message_stop":
            self._is_complete = True
        elif kind == "error":
            self._error = _error_type(data)
        elif kind == "content_block_start" and _is_output(block := data.get("content_block")):
            self._message.has_output = True
            self._message.searches_shown += _is_search(block)
            self._scanner.markers = self._markers


# --- what the vendor has reported ---------------------------------------------------------------------


class Report:
    """What the vendor has said about one message so far. Values of a wrong type are passed over and make it
    unsound; a null says nothing (a delta leaves out what did not change)."""

    # What most answers never say stands here, once: it is not changed, but takes the place of nothing.
    is_sound = True
    has_output = False
    searches_shown = 0
    """By their results, while a stream is under way: the vendor counts them at its end."""
    _model: str | None = None
    _stop_reason: str | None = None
    _iterations: Sequence[Mapping[str, Any]] = ()
    _writes: Mapping[str, int] = {}
    _tools: Mapping[str, int] = {}
    _modifiers: Mapping[str, str] = {}

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def read_body(self, body: Mapping[str, Any]) -> bool:
        """A whole answer, if it is a message with its usage."""
        if not isinstance(body.get("usage"), dict):
            return False
        self.start(body)
        if self._stop_reason == "refusal":  # else nobody asks
            content = body.get("content")
            self.has_output = not isinstance(content, list) or any(map(_is_output, content))
        return True

    def start(self, message: Any) -> None:
        """A `message_start`'s message, or a whole answer."""
        if not isinstance(message, dict):
            self.is_sound = False
            return
        model = message.get("model")
        if is_name(model):
            self._model = model
        else:
            self.is_sound = False
        self._stop_reason = _text(message.get("stop_reason"))
        self._overlay(message.get("usage"))

    def delta(self, event: dict[str, Any]) -> None:
        """A `message_delta`: why the message stopped, and counters that replace the earlier ones."""
        delta = event.get("delta")
        if isinstance(delta, dict):
            self._stop_reason = _text(delta.get("stop_reason")) or self._stop_reason
        self._overlay(event.get("usage"))

    def usage(
        self, demand: Demand, *, is_final: bool, output_guess: int | None, notes: Sequence[str] = ()
    ) -> Usage:
        """The counts as billed. What the vendor has not counted yet is estimated: the input as the request's
        floor, the output as `output_guess` (None: estimate nothing)."""
        if is_final and self._stop_reason == "refusal" and not self.has_output:
            # Release notes of 2026-06-02: not billed, although the counters show tokens.
            return Usage((UsageLine(self._model or "", {}),), notes=(NOTE_REFUSED,))
        found = list(notes)
        lines = self._lines(found, demand)
        is_known = self.is_sound and "input_tokens" in self._counts and "output_tokens" in self._counts
        if not self.is_sound:
            found.append(NOTE_UNSOUND)
        is_exact = is_final and is_known
        if output_guess is not None and not is_exact:
            if not is_known:
                lines = with_floor(lines, demand)
            if not is_known or self._stop_reason is None:
                lines = with_at_least(lines, OUTPUT, min(output_guess, demand.ceiling.total(OUTPUT)))
                if self.searches_shown:
                    searches = min(self.searches_shown, demand.ceiling.total(WEB_SEARCHES))
                    lines = with_at_least(lines, WEB_SEARCHES, searches)
        return Usage(tuple(lines), is_exact, tuple(dict.fromkeys(found)) if found else ())

    def _overlay(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            self.is_sound = False
            return
        counts = self._counts
        for name in _COUNTERS:
            value = usage.get(name)
            if type(value) is int and 0 <= value <= COUNT_MAX:  # as is_count, in every answer
                counts[name] = value
            elif value is not None:
                self.is_sound = False
        writes = usage.get("cache_creation")
        if writes is not None and (self._writes or writes != _NOTHING_WRITTEN):
            self._writes = self._overlaid(self._writes, writes)
        if (tools := usage.get("server_tool_use")) is not None:
            self._tools = self._overlaid(self._tools, tools)
        if (iterations := usage.get("iterations")) is not None:
            self._overlay_iterations(iterations)
        if self._modifiers or not _is_standard(usage):
            self._overlay_modifiers(usage)

    def _overlay_modifiers(self, usage: Mapping[str, Any]) -> None:
        modifiers = dict(self._modifiers)
        for name, standard in _STANDARD.items():
            value = usage.get(name)
            if value is None:
                continue
            if value in standard:
                modifiers.pop(name, None)
            elif is_name(value):
                modifiers[name] = value
            else:
                self.is_sound = False
        self._modifiers = modifiers

    def _overlaid(self, counts: Mapping[str, int], reported: Any) -> Mapping[str, int]:
        """All that is reported there, in the place of what was."""
        if not isinstance(reported, dict):
            self.is_sound = False
            return counts
        overlaid = dict(counts)
        for name, value in reported.items():
            if is_count(value):
                overlaid[name] = value
            elif value is not None:
                self.is_sound = False
        return overlaid

    def _overlay_iterations(self, iterations: Any) -> None:
        if not isinstance(iterations, list) or not all(isinstance(entry, dict) for entry in iterations):
            self.is_sound = False
            return
        self._iterations = iterations
        for entry in iterations:
            writes = entry.get("cache_creation")
            values = [entry.get(name) for name in _COUNTERS]
            values += writes.values() if isinstance(writes, dict) else ()
            if not all(value is None or is_count(value) for value in values):
                self.is_sound = False
            if writes is not None and not isinstance(writes, dict):
                self.is_sound = False
            if entry.get("model") is not None and not is_name(entry["model"]):
                self.is_sound = False

    def _lines(self, notes: list[str], demand: Demand) -> list[UsageLine]:
        """A line per iteration where the vendor tells them apart: the counters above them leave out
        compaction, advisors and hops that another model took over from (SDK 2.11.0, BetaUsage)."""
        if not self._counts and not self._iterations:
            return []
        main = self._model or ""
        if self._iterations:
            lines = [
                UsageLine(
                    entry["model"] if is_name(entry.get("model")) else main,
                    _buckets(_sound_counts(entry), entry.get("cache_creation"), notes, demand),
                    self._modifiers_of(entry),
                )
                for entry in self._billed_iterations()
            ]
        else:
            lines = [UsageLine(main, _buckets(self._counts, self._writes, notes, demand), self._modifiers)]
        if len(lines) > LINES_MAX:
            lines = added_up(lines)
        tools = self._tool_counts() if self._tools else None
        return with_counts(lines, UsageLine(main, tools, self._modifiers)) if tools else lines

    def _billed_iterations(self) -> Sequence[Mapping[str, Any]]:
        """Without the hops of a fallback chain that were declined before they wrote anything: not billed."""
        entries = self._iterations
        was_declined = self._stop_reason == "refusal" or any(
            entry.get("type") == "fallback_message" for entry in entries
        )
        if not was_declined or len(entries) == 1:
            return entries
        return [
            entry
            for entry in entries
            if entry.get("type") != "message" or count_in(entry, "output_tokens") > DECLINED_OUTPUT_TOKENS_MAX
        ]

    def _modifiers_of(self, entry: Mapping[str, Any]) -> Mapping[str, str]:
        """An advisor is asked at standard speed, wherever the request's own model runs."""
        if entry.get("type") != "advisor_message":
            return self._modifiers
        return {name: value for name, value in self._modifiers.items() if name != "speed"}

    def _tool_counts(self) -> dict[str, int]:
        counts = {WEB_SEARCHES: self._tools.get(_SEARCHES, 0)}
        others = [name for name in self._tools if name != _SEARCHES and name not in _FREE_TOOLS]
        for name in others[:OTHER_COUNTERS_MAX]:
            counts[name[:NAME_CHARS_MAX]] = self._tools[name]
        return {unit: count for unit, count in counts.items() if count}


def _is_standard(usage: Mapping[str, Any]) -> bool:
    """Nothing in it changes the price."""
    return (
        usage.get("service_tier") in _STANDARD["service_tier"]
        and usage.get("speed") in _STANDARD["speed"]
        and usage.get("inference_geo") in _STANDARD["inference_geo"]
    )


def _sound_counts(entry: Mapping[str, Any]) -> dict[str, int]:
    return {name: entry[name] for name in _COUNTERS if is_count(entry.get(name))}


def _buckets(counts: Mapping[str, int], writes: Any, notes: list[str], demand: Demand) -> dict[str, int]:
    """The vendor's counters as disjoint buckets; `input_tokens` leaves out the caches already."""
    buckets = {}
    if count := counts.get("input_tokens"):
        buckets[INPUT] = count
    if count := counts.get("cache_read_input_tokens"):
        buckets[CACHE_READ] = count
    if writes or counts.get("cache_creation_input_tokens"):
        written_5m, written_1h = _written(counts, writes, notes, demand)
        if written_5m:
            buckets[CACHE_WRITE_5M] = written_5m
        if written_1h:
            buckets[CACHE_WRITE_1H] = written_1h
    if count := counts.get("output_tokens"):
        buckets[OUTPUT] = count
    return buckets


def _written(counts: Mapping[str, int], writes: Any, notes: list[str], demand: Demand) -> tuple[int, int]:
    """Tokens written to the caches of five minutes and of an hour."""
    written = counts.get("cache_creation_input_tokens")
    if written == 0:
        return 0, 0
    split = writes if isinstance(writes, dict) else {}
    written_5m = count_in(split, "ephemeral_5m_input_tokens")
    written_1h = count_in(split, "ephemeral_1h_input_tokens")
    rest = (written or 0) - written_5m - written_1h
    if rest > 0 and demand.ceiling.total(CACHE_WRITE_1H) > 0:
        # A delta has the total without its lifetimes. The request asks for 1h somewhere: the dearer one.
        written_1h += rest
        notes.append(NOTE_TTL_ASSUMED)
    elif rest > 0:
        written_5m += rest
    elif written is not None:  # The total shrank: what is left is the dearer kind first.
        written_1h = min(written_1h, written)
        written_5m = written - written_1h
    return written_5m, written_1h


def _error_type(event: dict[str, Any]) -> str:
    error = event.get("error")
    kind = error.get("type") if isinstance(error, dict) else None
    return kind if is_name(kind) else "error"


def _is_output(block: Any) -> bool:
    """A `fallback` block only marks where one model took over from another that declined."""
    return not isinstance(block, dict) or block.get("type") != "fallback"


def _is_search(block: Any) -> bool:
    """The result of a search that was made: one that failed has an error there, and is not billed (Anthropic docs,
    "Web search tool", 2026-11)."""
    return (
        isinstance(block, dict)
        and block.get("type") == _SEARCH_RESULT
        and isinstance(block.get("content"), list)
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
