"""What readers of usage have in common, whichever vendor reports it: how the two kinds of answers are fed, what
a count is, how lines are added up and estimated."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard

from metering import json_text
from metering.errors import Reason, Refused
from metering.json_stream import JsonStream
from metering.prices import ModelInfo
from metering.sse import SseEvent, SseScanner
from metering.usage import PROMPT_UNITS, Usage, UsageLine
from proxy.surface import PASS_ALL, AnswerHead, Demand, Pricing

BODY_COPY_BYTES_MAX = 8 * 1024 * 1024
"""The longest whole answer that is kept as it came to read its usage; 128,000 tokens of text are about half a
megabyte. Of a longer one (two minutes of speech, as numbers in text) only the condensed form is kept."""
BODY_BYTES_PER_OUTPUT_TOKEN = 3
"""For whole answers that were cut before their counts came: they have hardly any framing."""
COUNT_MAX = 1_000_000_000
"""A count above this is nonsense; it also keeps every product with a price within 64 bits."""
NAME_CHARS_MAX = 128
"""Longer names of models and modifiers are nobody's."""

NOTE_UNSOUND = "usage_malformed"
NOTE_TOO_LONG = "usage_not_looked_at"


class Report(Protocol):
    """What a vendor has said about one answer so far."""

    is_sound: bool
    """Nothing in it was of a wrong type."""

    def read_body(self, body: Mapping[str, Any]) -> bool:
        """Take a whole answer; False when it is none (it has no usage)."""

    def usage(
        self, demand: Demand, *, is_final: bool, output_guess: int | None, notes: Sequence[str] = ()
    ) -> Usage:
        """The counts as billed. What the vendor has not counted yet is estimated: the input as the request's
        floor, the output as `output_guess` (None: estimate nothing)."""


# --- the two kinds of answers -------------------------------------------------------------------------


def is_stream(demand: Demand, answer: AnswerHead) -> bool:
    """Whether an answer comes as events: by its content type, and by the request where it has none."""
    content_type = answer.header(b"content-type").lower()
    return content_type.startswith(b"text/event-stream") if content_type else demand.is_streaming


class StreamObserver(ABC):
    """Reads a stream of events. The event that ends it, or tells the vendor's error, waits for the settle."""

    __slots__ = (
        "_bytes_fed",
        "_bytes_per_output_token",
        "_demand",
        "_error",
        "_is_complete",
        "_repeated_bytes",
        "_report",
        "_scanner",
    )

    def __init__(
        self, demand: Demand, report: Report, markers: Sequence[bytes], *, bytes_per_output_token: int
    ) -> None:
        self._demand = demand
        self._report = report
        self._scanner = SseScanner(markers)
        self._bytes_per_output_token = bytes_per_output_token
        self._bytes_fed = 0
        self._repeated_bytes = 0
        """Of events that only repeat the request or the answer: nothing was written for them."""
        self._is_complete = False
        self._error: str | None = None

    @abstractmethod
    def _read(self, event: SseEvent) -> None:
        """Take an event that holds a marker."""

    def _is_whole(self, data: bytes) -> bool:
        """Whether the data of an event whose end is missing is all of it."""
        return json_of(data) is not None

    def feed(self, chunk: bytes) -> int:
        self._bytes_fed += len(chunk)
        hold_from = 0 if self._is_complete or self._error is not None else PASS_ALL
        for event in self._scanner.feed(chunk):
            self._read(event)
            if hold_from == PASS_ALL and (self._is_complete or self._error is not None):
                hold_from = event.start
        return hold_from

    def end(self) -> None:
        for event in self._scanner.end():
            if self._is_whole(event.data):  # Else the stream was cut within it.
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
        # A stream that ends in an error is not charged by its vendor: no guess on top of what it reported.
        new_bytes = self._bytes_fed - self._repeated_bytes
        guess = None if self._error is not None else new_bytes // self._bytes_per_output_token
        is_final = self._is_final and not notes
        return self._report.usage(self._demand, is_final=is_final, output_guess=guess, notes=notes)

    @property
    def _is_final(self) -> bool:
        """What has been reported is the vendor's last word."""
        return self._is_complete and self._error is None


CONDENSED_TO_AT_LEAST = 8
"""A long answer is worth condensing when that leaves an eighth of it or less."""
CONDENSED_BYTES_MIN = 64 * 1024
"""Whatever its length, so much may be left."""


class BodyObserver:
    """Reads a whole answer from a bounded copy, when it has ended."""

    # What most answers never change stands here, once.
    _stream: JsonStream | None = None
    _condensed_bytes = 0
    _is_given_up = False
    """Too long to be kept, too dense to be condensed: its usage is an estimate."""
    _bytes_fed = 0
    _is_over = False
    """It has been read, at its last piece."""
    is_complete = False
    at_boundary = False

    def __init__(self, demand: Demand, report: Report) -> None:
        self._demand = demand
        self._report = report
        self._copy: list[bytes] = []

    def feed(self, chunk: bytes) -> int:
        self._bytes_fed += len(chunk)
        if self._bytes_fed <= BODY_COPY_BYTES_MAX:
            self._copy.append(chunk)
        else:
            self._condense(chunk)
        return PASS_ALL

    def _condense(self, chunk: bytes) -> None:
        """Take more of an answer that is too long to be kept as it came.

        What is long by its strings and vectors passes by at once; what is made of many small things would keep
        everybody else waiting for seconds, and is given up.
        """
        if self._is_given_up:
            return
        pieces = [chunk]
        if self._stream is None:
            self._stream = JsonStream()
            pieces = [*self._copy, chunk]
            self._copy.clear()
        for piece in pieces:
            whole, _ = self._stream.feed(piece)
            self._copy += whole[-1:] if not self._copy else ()
            self._condensed_bytes += len(piece)
            if self._stream.kept_bytes > max(
                CONDENSED_BYTES_MIN, self._condensed_bytes // CONDENSED_TO_AT_LEAST
            ):
                self._is_given_up = True
                self._copy.clear()
                return

    def end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self.is_complete = self._read()
            self._copy.clear()

    @property
    def error(self) -> str | None:
        return None

    def usage(self) -> Usage:
        is_unread = self._bytes_fed > BODY_COPY_BYTES_MAX and not self.is_complete
        notes = (NOTE_TOO_LONG,) if is_unread else ()
        if self._copy and self._copy[-1].endswith(b"}"):
            self._read()  # Whole, but for the end of its framing: what it reports stands.
        return self._report.usage(
            self._demand, is_final=self.is_complete, output_guess=self._output_guess(), notes=notes
        )

    def _output_guess(self) -> int:
        """How many tokens were written, for answers that do not tell."""
        return self._bytes_fed // BODY_BYTES_PER_OUTPUT_TOKEN

    def _read(self) -> bool:
        copy = self._copy
        body = json_of(copy[0] if len(copy) == 1 else b"".join(copy))
        return isinstance(body, dict) and self._report.read_body(body)


# --- lines --------------------------------------------------------------------------------------------


def with_floor(lines: list[UsageLine], demand: Demand) -> list[UsageLine]:
    """What the vendor has had from the request, while it has not counted the input itself."""
    if any(line.counts.get(unit) for line in lines for unit in PROMPT_UNITS):
        return lines
    return added_up([*demand.floor.lines, *lines])


def with_at_least(lines: list[UsageLine], unit: str, at_least: int) -> list[UsageLine]:
    """Raise one count to an estimate; never below what was reported."""
    missing = at_least - sum(line.counts.get(unit, 0) for line in lines)
    if missing <= 0 or not lines:
        return lines
    last = lines[-1]
    return with_counts(lines, UsageLine(last.model, {unit: missing}, last.modifiers))


def with_counts(lines: list[UsageLine], more: UsageLine) -> list[UsageLine]:
    """Add counts to the last line of the same model, or as a line of their own."""
    if not more.counts:
        return lines
    for index in reversed(range(len(lines))):
        line = lines[index]
        if (line.model, line.modifiers) == (more.model, more.modifiers):
            return [*lines[:index], *added_up([line, more]), *lines[index + 1 :]]
    return [*lines, more]


def added_up(lines: Sequence[UsageLine]) -> list[UsageLine]:
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


# --- values -------------------------------------------------------------------------------------------


json_of = json_text.json_of
"""Decoded JSON; None for what is none."""


def object_of(data: bytes) -> dict[str, Any]:
    """A decoded JSON object; an empty one for what is none."""
    found = json_of(data)
    return found if isinstance(found, dict) else {}


def is_number(value: Any) -> TypeGuard[int]:
    """A whole number from 0, however large: as a request may name one."""
    return type(value) is int and value >= 0  # a bool is no number


def is_count(value: Any) -> TypeGuard[int]:
    """A number that an answer may count with; asked of every counter of every answer."""
    return type(value) is int and 0 <= value <= COUNT_MAX  # a bool is no number


def count_in(counts: Mapping[str, Any], name: str) -> int:
    """The count of that name, 0 for what is none."""
    value = counts.get(name)
    return value if type(value) is int and 0 <= value <= COUNT_MAX else 0  # as is_count


def is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= NAME_CHARS_MAX


# --- requests -----------------------------------------------------------------------------------------


def model_named(
    fields: Mapping[str, Any], field: str, provider: str, pricing: Pricing
) -> tuple[str, ModelInfo]:
    """The model that `fields` name as `model`, and what is known of it; `field` is what an error calls it.
    Raises Refused(BAD_REQUEST | MODEL_UNAVAILABLE)."""
    name = fields.get("model")
    if not isinstance(name, str) or not name:
        raise Refused(Reason.BAD_REQUEST, f"{field}: a model name is required.")
    info = pricing.table.model(provider, name) if len(name) <= NAME_CHARS_MAX else None
    if info is None:
        shown = name[:NAME_CHARS_MAX]
        raise Refused(Reason.MODEL_UNAVAILABLE, f"model: {shown}", facts={"model": shown})
    return name, info


def optional_text(fields: Mapping[str, Any], name: str) -> str | None:
    """A string, or None where it is absent, null or empty. Raises Refused(BAD_REQUEST)."""
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value or None
    raise Refused(Reason.BAD_REQUEST, f"{name}: must be a string.")
