"""Anthropic's usage: what an answer of the Messages API, streamed or whole, says that it used.

Where the counts stand (Anthropic docs "Streaming messages" and Python SDK 2.11.0, 2026-11): `message_start`
has the input side and a placeholder for the output; `message_delta` repeats the counters, cumulative, and
its values replace the earlier ones (a server tool raises even the input); `message_stop` ends the stream.
A whole answer carries the same object as `usage`.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import orjson

from metering.sse import SseEvent, SseScanner
from metering.usage import (
    CACHE_READ,
    CACHE_WRITE_1H,
    CACHE_WRITE_5M,
    INPUT,
    OUTPUT,
    PROMPT_UNITS,
    WEB_SEARCHES,
    Usage,
    UsageLine,
)
from proxy.surface import PASS_ALL, AnswerHead, Demand, Observer

BODY_COPY_BYTES_MAX = 8 * 1024 * 1024
"""The longest whole answer that is kept to read its usage; 128,000 tokens of text are about half a megabyte."""
STREAM_BYTES_PER_OUTPUT_TOKEN = 10
"""For streams cut before their counts came. Recorded streams have 14 to 26 bytes per token, framing
included; 10 leans towards too many tokens, as the vendor bills what was cut."""
BODY_BYTES_PER_OUTPUT_TOKEN = 3
"""The same for whole answers, which have hardly any framing."""
COUNT_MAX = 1_000_000_000
"""A count above this is nonsense; it also keeps every product with a price within 64 bits."""
LINES_MAX = 64
"""Iterations kept apart in the usage; of more than that, those of one model are added up."""
OTHER_COUNTERS_MAX = 8
"""Counters of server tools that nobody has priced yet, kept so that pricing can flag them."""
NAME_CHARS_MAX = 128
DECLINED_OUTPUT_TOKENS_MAX = 1
"""What a hop shows as output when it was declined before it wrote anything (Amazon Bedrock user guide,
"Fallback credit", 2026-11: an empty refusal with `output_tokens: 1`)."""

NOTE_TTL_ASSUMED = "cache_write_ttl_assumed_1h"
NOTE_REFUSED = "refused_before_output"
NOTE_UNSOUND = "usage_malformed"
NOTE_TOO_LONG = "usage_not_looked_at"

_COUNTERS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_STANDARD = {
    "service_tier": ("standard",),
    "speed": ("standard",),
    "inference_geo": ("global", "not_available"),
}
"""What changes the price besides the model, and its values that change nothing."""
_SEARCHES = "web_search_requests"
_FREE_TOOLS = frozenset({"web_fetch_requests"})
"""Web fetches cost only their tokens (Anthropic pricing, 2026-11)."""
_MARKERS = (b'"message_', b'"error"')
_FIRST_BLOCK = b'"content_block_start"'


def observe(demand: Demand, answer: AnswerHead) -> Observer:
    """The observer for a successful answer: by its content type, and by the request where it has none."""
    content_type = answer.header(b"content-type").lower()
    is_stream = content_type.startswith(b"text/event-stream") if content_type else demand.is_streaming
    return StreamObserver(demand) if is_stream else BodyObserver(demand)


# --- the two kinds of answers -------------------------------------------------------------------------


class StreamObserver:
    """Reads a stream. The event that ends it (`message_stop`, or the vendor's `error`) waits for the settle."""

    __slots__ = ("_bytes_fed", "_demand", "_error", "_is_complete", "_report", "_scanner")

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        self._report = Report()
        self._scanner = SseScanner((*_MARKERS, _FIRST_BLOCK))
        self._bytes_fed = 0
        self._is_complete = False
        self._error: str | None = None

    def feed(self, chunk: bytes) -> int:
        self._bytes_fed += len(chunk)
        hold_from = 0 if self._has_ended else PASS_ALL
        for event in self._scanner.feed(chunk):
            self._read(event)
            if self._has_ended and hold_from == PASS_ALL:
                hold_from = event.start
        return hold_from

    def end(self) -> None:
        for event in self._scanner.end():
            if _json_of(event.data) is not None:  # Else the stream was cut within it.
                self._read(event)

    @property
    def is_complete(self) -> bool:
        return self._is_complete

    @property
    def at_boundary(self) -> bool:
        return self._scanner.at_boundary

    @property
    def error(self) -> str | None:
        return self._error

    def usage(self) -> Usage:
        notes = (NOTE_TOO_LONG,) if self._scanner.events_skipped else ()
        guess: int | None = self._bytes_fed // STREAM_BYTES_PER_OUTPUT_TOKEN
        if self._error is not None:
            # "Failed requests are not charged" (Anthropic help centre, article 8114526): no guess on top.
            guess = None
        is_final = self._is_complete and self._error is None and not notes
        return self._report.usage(self._demand, is_final=is_final, output_guess=guess, notes=notes)

    @property
    def _has_ended(self) -> bool:
        return self._is_complete or self._error is not None

    def _read(self, event: SseEvent) -> None:
        if event.type == b"content_block_delta":  # Text that quotes a marker.
            return
        data = _json_of(event.data)
        if not isinstance(data, dict):
            self._report.is_sound = False
            return
        kind = data.get("type")
        if kind == "message_start":
            self._report.start(data.get("message"))
        elif kind == "message_delta":
            self._report.delta(data)
        elif kind == "message_stop":
            self._is_complete = True
        elif kind == "error":
            self._error = _error_type(data)
        elif kind == "content_block_start" and _is_output(data.get("content_block")):
            self._report.has_output = True
            self._scanner.markers = _MARKERS


class BodyObserver:
    """Reads a whole answer from a bounded copy, when it has ended."""

    __slots__ = ("_bytes_fed", "_copy", "_demand", "_is_complete", "_report")

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        self._report = Report()
        self._copy: list[bytes] = []
        self._bytes_fed = 0
        self._is_complete = False

    def feed(self, chunk: bytes) -> int:
        self._bytes_fed += len(chunk)
        if self._bytes_fed <= BODY_COPY_BYTES_MAX:
            self._copy.append(chunk)
        else:
            self._copy.clear()
        return PASS_ALL

    def end(self) -> None:
        self._is_complete = self._read()
        self._copy.clear()

    @property
    def is_complete(self) -> bool:
        return self._is_complete

    @property
    def at_boundary(self) -> bool:
        return False

    @property
    def error(self) -> str | None:
        return None

    def usage(self) -> Usage:
        notes = (NOTE_TOO_LONG,) if self._bytes_fed > BODY_COPY_BYTES_MAX else ()
        if self._copy and self._copy[-1].endswith(b"}"):
            self._read()  # Whole, but for the end of its framing: what it reports stands.
        guess = self._bytes_fed // BODY_BYTES_PER_OUTPUT_TOKEN
        return self._report.usage(self._demand, is_final=self._is_complete, output_guess=guess, notes=notes)

    def _read(self) -> bool:
        """Read the copy; whether it is a whole message with its usage."""
        message = _json_of(b"".join(self._copy))
        if not isinstance(message, dict) or not isinstance(message.get("usage"), dict):
            return False
        self._report.start(message)
        content = message.get("content")
        self._report.has_output = not isinstance(content, list) or any(map(_is_output, content))
        return True


# --- what the vendor has reported ---------------------------------------------------------------------


class Report:
    """What the vendor has said about one message so far. Values of a wrong type are passed over and make it
    unsound; a null says nothing (a delta leaves out what did not change)."""

    __slots__ = (
        "_counts",
        "_iterations",
        "_model",
        "_modifiers",
        "_stop_reason",
        "_tools",
        "_writes",
        "has_output",
        "is_sound",
    )

    def __init__(self) -> None:
        self.is_sound = True
        self.has_output = False
        self._model: str | None = None
        self._stop_reason: str | None = None
        self._counts: dict[str, int] = {}
        self._writes: dict[str, int] = {}
        self._tools: dict[str, int] = {}
        self._modifiers: dict[str, str] = {}
        self._iterations: list[dict[str, Any]] = []

    def start(self, message: Any) -> None:
        """A `message_start`'s message, or a whole answer."""
        if not isinstance(message, dict):
            self.is_sound = False
            return
        model = message.get("model")
        if _is_name(model):
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
        lines = self._lines(found, is_long=demand.ceiling.total(CACHE_WRITE_1H) > 0)
        is_known = self.is_sound and {"input_tokens", "output_tokens"} <= self._counts.keys()
        if not self.is_sound:
            found.append(NOTE_UNSOUND)
        is_exact = is_final and is_known
        if output_guess is not None and not is_exact:
            if not is_known:
                lines = _with_floor(lines, demand)
            if not is_known or self._stop_reason is None:
                lines = _with_output(lines, min(output_guess, demand.ceiling.total(OUTPUT)))
        return Usage(tuple(lines), is_exact=is_exact, notes=tuple(dict.fromkeys(found)))

    def _overlay(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            self.is_sound = False
            return
        self._overlay_counts(self._counts, {name: usage.get(name) for name in _COUNTERS})
        if (writes := usage.get("cache_creation")) is not None:
            self._overlay_counts(self._writes, writes)
        if (tools := usage.get("server_tool_use")) is not None:
            self._overlay_counts(self._tools, tools)
        if (iterations := usage.get("iterations")) is not None:
            self._overlay_iterations(iterations)
        for name, standard in _STANDARD.items():
            value = usage.get(name)
            if _is_name(value):
                self._modifiers[name] = value
                if value in standard:
                    del self._modifiers[name]
            elif value is not None:
                self.is_sound = False

    def _overlay_counts(self, counts: dict[str, int], reported: Any) -> None:
        if not isinstance(reported, dict):
            self.is_sound = False
            return
        for name, value in reported.items():
            if _is_count(value):
                counts[name] = value
            elif value is not None:
                self.is_sound = False

    def _overlay_iterations(self, iterations: Any) -> None:
        if not isinstance(iterations, list) or not all(isinstance(entry, dict) for entry in iterations):
            self.is_sound = False
            return
        self._iterations = iterations
        for entry in iterations:
            writes = entry.get("cache_creation")
            values = [entry.get(name) for name in _COUNTERS]
            values += writes.values() if isinstance(writes, dict) else ()
            if not all(value is None or _is_count(value) for value in values):
                self.is_sound = False
            if writes is not None and not isinstance(writes, dict):
                self.is_sound = False
            if entry.get("model") is not None and not _is_name(entry["model"]):
                self.is_sound = False

    def _lines(self, notes: list[str], *, is_long: bool) -> list[UsageLine]:
        """A line per iteration where the vendor tells them apart: the counters above them leave out
        compaction, advisors and hops that another model took over from (SDK 2.11.0, BetaUsage)."""
        if not self._counts and not self._iterations:
            return []
        main = self._model or ""
        if self._iterations:
            lines = [
                UsageLine(
                    entry["model"] if _is_name(entry.get("model")) else main,
                    _buckets(entry, entry.get("cache_creation"), notes, is_long=is_long),
                    self._modifiers_of(entry),
                )
                for entry in self._billed_iterations()
            ]
        else:
            lines = [
                UsageLine(main, _buckets(self._counts, self._writes, notes, is_long=is_long), self._modifiers)
            ]
        if len(lines) > LINES_MAX:
            lines = _added_up(lines)
        return _with_counts(lines, UsageLine(main, self._tool_counts(), self._modifiers))

    def _billed_iterations(self) -> list[dict[str, Any]]:
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
            if entry.get("type") != "message" or _count(entry, "output_tokens") > DECLINED_OUTPUT_TOKENS_MAX
        ]

    def _modifiers_of(self, entry: dict[str, Any]) -> dict[str, str]:
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


def _buckets(counts: dict[str, Any], writes: Any, notes: list[str], *, is_long: bool) -> dict[str, int]:
    """The vendor's counters as disjoint buckets; `input_tokens` leaves out the caches already."""
    split = writes if isinstance(writes, dict) else {}
    written_5m = _count(split, "ephemeral_5m_input_tokens")
    written_1h = _count(split, "ephemeral_1h_input_tokens")
    written = counts.get("cache_creation_input_tokens")
    rest = _count(counts, "cache_creation_input_tokens") - written_5m - written_1h
    if rest > 0 and is_long:
        # A delta has the total without its lifetimes. The request asks for 1h somewhere: the dearer one.
        written_1h += rest
        notes.append(NOTE_TTL_ASSUMED)
    elif rest > 0:
        written_5m += rest
    elif _is_count(written):  # The total shrank: what is left is the dearer kind first.
        written_1h = min(written_1h, written)
        written_5m = written - written_1h
    buckets = {
        INPUT: _count(counts, "input_tokens"),
        CACHE_READ: _count(counts, "cache_read_input_tokens"),
        CACHE_WRITE_5M: written_5m,
        CACHE_WRITE_1H: written_1h,
        OUTPUT: _count(counts, "output_tokens"),
    }
    return {unit: count for unit, count in buckets.items() if count}


def _with_floor(lines: list[UsageLine], demand: Demand) -> list[UsageLine]:
    """What the vendor has had from the request, while it has not counted the input itself."""
    if any(line.counts.get(unit) for line in lines for unit in PROMPT_UNITS):
        return lines
    return _added_up([*demand.floor.lines, *lines])


def _with_output(lines: list[UsageLine], at_least: int) -> list[UsageLine]:
    """Raise the output to an estimate; never below what was reported."""
    missing = at_least - sum(line.counts.get(OUTPUT, 0) for line in lines)
    if missing <= 0 or not lines:
        return lines
    last = lines[-1]
    return _with_counts(lines, UsageLine(last.model, {OUTPUT: missing}, last.modifiers))


def _with_counts(lines: list[UsageLine], more: UsageLine) -> list[UsageLine]:
    """Add counts to the last line of the same model, or as a line of their own."""
    if not more.counts:
        return lines
    for index in reversed(range(len(lines))):
        line = lines[index]
        if (line.model, line.modifiers) == (more.model, more.modifiers):
            return [*lines[:index], *_added_up([line, more]), *lines[index + 1 :]]
    return [*lines, more]


def _added_up(lines: Sequence[UsageLine]) -> list[UsageLine]:
    """One line per model and modifiers."""
    sums: dict[tuple[Any, ...], UsageLine] = {}
    for line in lines:
        key = (line.model, *sorted(line.modifiers.items()))
        before = sums[key].counts if key in sums else {}
        counts = dict(before)
        for unit, count in line.counts.items():
            counts[unit] = counts.get(unit, 0) + count
        sums[key] = UsageLine(line.model, counts, line.modifiers)
    return list(sums.values())


def _json_of(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _error_type(event: dict[str, Any]) -> str:
    error = event.get("error")
    kind = error.get("type") if isinstance(error, dict) else None
    return kind if _is_name(kind) else "error"


def _is_output(block: Any) -> bool:
    """A `fallback` block only marks where one model took over from another that declined."""
    return not isinstance(block, dict) or block.get("type") != "fallback"


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= COUNT_MAX


def _count(counts: dict[str, Any], name: str) -> int:
    value = counts.get(name)
    return value if _is_count(value) else 0


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= NAME_CHARS_MAX


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
