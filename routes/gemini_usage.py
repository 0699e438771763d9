"""Gemini's usage: what an answer, streamed or whole, says that it used.

Where the counts stand (google-genai 3.4.0 `types.py`, and answers recorded in 2026): `usageMetadata` is in
every chunk of a stream, and the last one holds: its counts are of the whole request so far, but may fall (a
chunk with a tool's result tells the prompt alone). `promptTokenCount` includes what was read from a cache,
`toolUsePromptTokenCount` is input beside it, `candidatesTokenCount` and `thoughtsTokenCount` are both output.
`modelVersion` names the model that answered; embeddings name none.

When a stream is whole: nothing in it says that it is over. Its last chunks carry a `finishReason` (or the prompt's
`blockReason`), and the HTTP body ends properly; a stream without either was cut. A list ends with its bracket.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metering.json_stream import JsonStream
from metering.sse import SseScanner
from metering.usage import (
    CACHE_AUDIO_READ,
    CACHE_IMAGE_READ,
    CACHE_READ,
    CACHE_VIDEO_READ,
    INPUT,
    INPUT_AUDIO,
    INPUT_IMAGE,
    INPUT_UNITS,
    INPUT_VIDEO,
    MAPS_SEARCHES,
    OUTPUT,
    OUTPUT_AUDIO,
    OUTPUT_IMAGE,
    OUTPUT_UNITS,
    OUTPUT_VIDEO,
    WEB_SEARCHES,
    Usage,
    UsageLine,
)
from proxy.surface import PASS_ALL, AnswerHead, Demand, Observer
from routes.counting import (
    BODY_BYTES_PER_OUTPUT_TOKEN,
    COUNT_MAX,
    NAME_CHARS_MAX,
    NOTE_TOO_LONG,
    NOTE_UNSOUND,
    is_count,
    json_of,
)

BODY_COPY_BYTES_MAX = 64 * 1024
"""The longest whole answer that is kept as it came; of a longer one only the condensed form is kept."""
RECALLED_MAX = 8
"""Chunks of a stream whose counts are remembered, for an estimate should it be cut."""
RECALLED_BYTES_MAX = 16 * 1024
"""The longest chunk remembered so; the last one is kept whatever its length."""
STREAM_BYTES_PER_OUTPUT_TOKEN = 10
"""For streams without any counts; low, so that the estimate is rather too high."""
COUNT_CHARS_MAX = 10
QUERIES_MAX = 1_000
"""Search queries of one answer that are told apart."""

NOTE_REST_IS_OUTPUT = "total_above_its_parts"
NOTE_MODALITY_ASSUMED = "modality_assumed"

_USAGE = b'"usageMetadata"'
_LONG_TEXT = b'"..."'
"""Of a condensed answer: a long query is one all the same, where an empty one is none."""
_MARKERS = (b'"finishReason"', b'"groundingMetadata"', b'"blockReason"', b'"error"')
_NO_REASON = frozenset(
    {"", "FINISH_REASON_UNSPECIFIED", "BLOCK_REASON_UNSPECIFIED", "BLOCKED_REASON_UNSPECIFIED"}
)
_TIER_PREFIX = "service_tier_"
_TIER_HEADER = b"x-gemini-service-tier"
"""Where an answer tells the tier that served it, besides its usage ("Priority inference", 2026-11)."""
_NO_TIER = frozenset({"", "unspecified", "standard"})
_PER_REQUEST = ("gemini-1", "gemini-2", "gemini-flash-1", "gemini-pro-1", "gemini-live-2")
"""Models whose searches are billed by request that did any; later ones by query (Gemini pricing, 2026-11)."""
_PROMPT_MODALITIES = {"AUDIO": INPUT_AUDIO, "IMAGE": INPUT_IMAGE, "VIDEO": INPUT_VIDEO}
_CACHE_MODALITIES = {"AUDIO": CACHE_AUDIO_READ, "IMAGE": CACHE_IMAGE_READ, "VIDEO": CACHE_VIDEO_READ}
_OUTPUT_MODALITIES = {"AUDIO": OUTPUT_AUDIO, "IMAGE": OUTPUT_IMAGE, "VIDEO": OUTPUT_VIDEO}
_COUNTERS = (
    "promptTokenCount",
    "cachedContentTokenCount",
    "toolUsePromptTokenCount",
    "candidatesTokenCount",
    "thoughtsTokenCount",
    "totalTokenCount",
)


def observe(demand: Demand, answer: AnswerHead, *, is_sse_asked: bool) -> Observer:
    """The observer for a successful answer: by its content type, and by the request where it has none."""
    content_type = answer.header(b"content-type").lower()
    tier = tier_of(answer.header(_TIER_HEADER).decode("latin-1"))
    if content_type.startswith(b"text/event-stream") or (is_sse_asked and not content_type):
        return EventsObserver(demand, tier)
    return ListObserver(demand, tier) if demand.is_streaming else BodyObserver(demand, tier)


def bills_queries(model: str) -> bool:
    """Whether this model's searches are billed one by one; else once for a request that did any."""
    return not model.startswith(_PER_REQUEST)


def tier_of(value: str) -> str:
    """A service tier's name without its prefix and case; "" for the standard one."""
    name = value.lower().removeprefix(_TIER_PREFIX)
    return "" if name in _NO_TIER else name


# --- the three kinds of answers -----------------------------------------------------------------------


class EventsObserver:
    """Reads server-sent events. Whole when the body ended properly and something said that the answer is over:
    so the end of the body waits for the settle, and of the events only an error."""

    __slots__ = ("_bytes_fed", "_has_ended", "_report", "_scanner")

    def __init__(self, demand: Demand, tier: str) -> None:
        self._report = Report(demand, tier)
        self._scanner = SseScanner(_MARKERS, latest=_USAGE)
        self._bytes_fed = 0
        self._has_ended = False

    def feed(self, chunk: bytes) -> int:
        self._bytes_fed += len(chunk)
        hold_from = PASS_ALL if self._report.error is None else 0
        for event in self._scanner.feed(chunk):
            self._report.add(event.data)
            if self._report.error is not None and hold_from == PASS_ALL:
                hold_from = event.start
        return hold_from

    def end(self) -> None:
        self._has_ended = True
        for event in self._scanner.end():
            if json_of(event.data) is not None:  # Else the stream was cut within it.
                self._report.add(event.data)

    @property
    def is_complete(self) -> bool:
        return self._has_ended and self._report.is_finished

    @property
    def at_boundary(self) -> bool:
        return self._scanner.at_boundary

    @property
    def error(self) -> str | None:
        return self._report.error

    def usage(self) -> Usage:
        guess = self._bytes_fed // STREAM_BYTES_PER_OUTPUT_TOKEN
        return self._report.usage(
            is_final=self.is_complete, output_guess=guess, has_skipped=self._scanner.events_skipped > 0
        )


class ListObserver:
    """Reads a streamed JSON list, element by element. The bracket that ends it waits for the settle."""

    __slots__ = ("_bytes_fed", "_is_closed", "_report", "_stream")

    def __init__(self, demand: Demand, tier: str) -> None:
        self._report = Report(demand, tier)
        self._stream = JsonStream(long_text=_LONG_TEXT)
        self._bytes_fed = 0
        self._is_closed = False

    def feed(self, chunk: bytes) -> int:
        self._bytes_fed += len(chunk)
        if self._is_closed:
            return 0
        elements, closed_at = self._stream.feed(chunk)
        for element in elements:
            self._report.add(element)
        if closed_at < 0:
            return PASS_ALL
        self._is_closed = True
        return closed_at

    def end(self) -> None:
        """The bracket has told."""

    @property
    def is_complete(self) -> bool:
        return self._is_closed and self._report.is_finished

    @property
    def at_boundary(self) -> bool:
        """Never: an event of ours would be no JSON."""
        return False

    @property
    def error(self) -> str | None:
        return self._report.error

    def usage(self) -> Usage:
        guess = self._bytes_fed // STREAM_BYTES_PER_OUTPUT_TOKEN
        return self._report.usage(
            is_final=self.is_complete, output_guess=guess, has_skipped=self._stream.elements_skipped > 0
        )


class BodyObserver:
    """Reads a whole answer: from a copy where it is short, else condensed as it passes (pictures, embeddings)."""

    __slots__ = ("_bytes_fed", "_copy", "_has_ended", "_is_read", "_report", "_stream")

    def __init__(self, demand: Demand, tier: str) -> None:
        self._report = Report(demand, tier)
        self._copy: list[bytes] = []
        self._stream: JsonStream | None = None
        self._bytes_fed = 0
        self._has_ended = False
        self._is_read = False

    def feed(self, chunk: bytes) -> int:
        self._bytes_fed += len(chunk)
        if self._stream is not None:
            self._condense(self._stream, chunk)
            return PASS_ALL
        self._copy.append(chunk)
        if self._bytes_fed > BODY_COPY_BYTES_MAX:
            self._stream = JsonStream(long_text=_LONG_TEXT)
            copy = b"".join(self._copy)
            self._copy.clear()
            self._condense(self._stream, copy)
        return PASS_ALL

    def end(self) -> None:
        self._has_ended = True
        self._read_copy()
        self._copy.clear()

    @property
    def is_complete(self) -> bool:
        return self._has_ended and self._is_read

    @property
    def at_boundary(self) -> bool:
        return False

    @property
    def error(self) -> str | None:
        return None

    def usage(self) -> Usage:
        if self._copy and self._copy[-1].rstrip().endswith(b"}"):
            self._read_copy()  # Whole, but for the end of its framing: what it reports stands.
        has_skipped = self._stream is not None and self._stream.elements_skipped > 0
        guess = self._bytes_fed // BODY_BYTES_PER_OUTPUT_TOKEN
        return self._report.usage(is_final=self.is_complete, output_guess=guess, has_skipped=has_skipped)

    def _condense(self, stream: JsonStream, chunk: bytes) -> None:
        elements, _ = stream.feed(chunk)
        for element in elements:
            self._is_read = self._report.read(element)

    def _read_copy(self) -> None:
        if self._copy:
            self._is_read = self._report.read(b"".join(self._copy))


# --- what the vendor has reported ---------------------------------------------------------------------


class Report:
    """What the vendor has said in one answer so far. Chunks that only repeat the usage are kept as bytes, and
    read when somebody asks."""

    __slots__ = (
        "_demand",
        "_grounding",
        "_last",
        "_model",
        "_recalled",
        "_tier",
        "error",
        "is_finished",
        "is_sound",
    )

    def __init__(self, demand: Demand, tier: str) -> None:
        self.is_sound = True
        self.is_finished = False
        """The vendor said why it stopped."""
        self.error: str | None = None
        self._demand = demand
        self._tier = tier
        self._model = ""
        self._grounding = _Grounding()
        self._last: bytes | None = None
        """The newest chunk with counts."""
        self._recalled: deque[bytes] = deque(maxlen=RECALLED_MAX)

    def add(self, data: bytes) -> None:
        """Take a chunk of a stream. One that only carries counts is looked at when somebody asks."""
        if _USAGE in data:
            if self._last is not None and len(self._last) <= RECALLED_BYTES_MAX:
                self._recalled.append(self._last)
            self._last = data
        if any(marker in data for marker in _MARKERS):
            self._read(data)

    def read(self, body: bytes) -> bool:
        """Take a whole answer. Whether it can be read."""
        self._last = body
        return self._read(body)

    def usage(self, *, is_final: bool, output_guess: int, has_skipped: bool) -> Usage:
        """The counts as billed. What the vendor has not counted is estimated: the input as the request's floor,
        the output, where none was counted, as `output_guess`."""
        notes: list[str] = []
        chunk = self._chunk(self._last)
        counts = _counts_of(chunk.get("usageMetadata"), notes)
        is_final = is_final and self.error is None
        has_skipped = has_skipped and not (is_final and self._is_told_at_the_end(chunk))
        is_exact = is_final and self.is_sound and not has_skipped and "promptTokenCount" in counts
        if not is_exact:
            for data in self._recalled:
                counts = _greatest(counts, _counts_of(self._chunk(data).get("usageMetadata"), []))
        if has_skipped:
            notes.append(NOTE_TOO_LONG)
        if not self.is_sound:
            notes.append(NOTE_UNSOUND)
        model = _name_of(chunk.get("modelVersion")) or self._model or self._requested_model()
        lines = [UsageLine(model, self._buckets(counts, chunk, notes, model), self._modifiers(chunk))]
        if not is_exact and self.error is None:
            lines = self._estimated(lines, counts, output_guess)
        return Usage(tuple(line for line in lines if line.counts), is_exact=is_exact, notes=_unique(notes))

    def _read(self, data: bytes) -> bool:
        chunk = json_of(data)
        if not isinstance(chunk, dict):
            self.is_sound = False
            return False
        self._model = _name_of(chunk.get("modelVersion")) or self._model
        error = chunk.get("error")
        if isinstance(error, dict):
            self.error = str(error.get("status") or error.get("code") or "error")
        feedback = chunk.get("promptFeedback")
        if isinstance(feedback, dict) and _is_reason(feedback.get("blockReason")):
            self.is_finished = True
        for candidate in _objects(chunk.get("candidates")):
            if _is_reason(candidate.get("finishReason")):
                self.is_finished = True
            self._grounding.add(candidate)
        return True

    def _chunk(self, data: bytes | None) -> Mapping[str, Any]:
        chunk = None if data is None else json_of(data)
        if isinstance(chunk, dict):
            return chunk
        if data is not None:
            self.is_sound = False
        return {}

    def _is_told_at_the_end(self, chunk: Mapping[str, Any]) -> bool:
        """The newest counts came with the reason why the answer stopped: nothing skipped came after them."""
        return any(
            _is_reason(candidate.get("finishReason")) for candidate in _objects(chunk.get("candidates"))
        )

    def _requested_model(self) -> str:
        return self._demand.models[0] if self._demand.models else ""

    def _modifiers(self, chunk: Mapping[str, Any]) -> dict[str, str]:
        usage = chunk.get("usageMetadata")
        told = usage.get("serviceTier") if isinstance(usage, dict) else None
        if isinstance(told, str) and told:
            tier = tier_of(told[:NAME_CHARS_MAX])
        else:
            lines = self._demand.ceiling.lines
            tier = self._tier or (lines[0].modifiers.get("service_tier", "") if lines else "")
        return {"service_tier": tier} if tier else {}

    def _buckets(
        self, counts: Mapping[str, int], chunk: Mapping[str, Any], notes: list[str], model: str
    ) -> dict[str, int]:
        usage = chunk.get("usageMetadata")
        usage = usage if isinstance(usage, dict) else {}
        prompt = counts.get("promptTokenCount", 0)
        cached = min(counts.get("cachedContentTokenCount", 0), prompt)
        tools = counts.get("toolUsePromptTokenCount", 0)
        candidates = counts.get("candidatesTokenCount", 0)
        thoughts = counts.get("thoughtsTokenCount", 0)
        rest = counts.get("totalTokenCount", 0) - (prompt + tools + candidates + thoughts)
        if rest > 0:
            # The total is their sum; counts that are left out are the thoughts of some models.
            thoughts += rest
            notes.append(NOTE_REST_IS_OUTPUT)
        of_prompt = _by_modality(usage.get("promptTokensDetails") or usage.get("promptTokenDetails"))
        of_cache = _by_modality(usage.get("cacheTokensDetails"))
        of_tools = _by_modality(usage.get("toolUsePromptTokensDetails"))
        of_output = _by_modality(usage.get("candidatesTokensDetails"))
        uncached = {
            modality: max(of_prompt.get(modality, 0) - of_cache.get(modality, 0), 0)
            + of_tools.get(modality, 0)
            for modality in _PROMPT_MODALITIES
        }
        if prompt and not of_prompt:
            uncached = self._assumed(uncached, _PROMPT_MODALITIES, INPUT_UNITS, notes)
        if candidates and not of_output:
            of_output = self._assumed(of_output, _OUTPUT_MODALITIES, OUTPUT_UNITS, notes)
        buckets: dict[str, int] = {}
        _split(buckets, prompt - cached + tools, uncached, _PROMPT_MODALITIES, INPUT)
        _split(buckets, cached, of_cache, _CACHE_MODALITIES, CACHE_READ)
        _split(buckets, candidates, of_output, _OUTPUT_MODALITIES, OUTPUT)
        buckets[OUTPUT] = buckets.get(OUTPUT, 0) + thoughts
        buckets |= self._grounding.counts(model)
        return {unit: count for unit, count in buckets.items() if count}

    def _assumed(
        self, known: dict[str, int], modalities: Mapping[str, str], units: Sequence[str], notes: list[str]
    ) -> dict[str, int]:
        """Where the vendor does not split a count: all of it is of the dear kind that was held for."""
        for modality, unit in modalities.items():
            if unit in units and self._demand.ceiling.total(unit):
                notes.append(NOTE_MODALITY_ASSUMED)
                return {**known, modality: COUNT_MAX}
        return known

    def _estimated(
        self, lines: list[UsageLine], counts: Mapping[str, int], output_guess: int
    ) -> list[UsageLine]:
        (line,) = lines
        buckets = dict(line.counts)
        if "promptTokenCount" not in counts:
            for floor in self._demand.floor.lines:
                for unit, count in floor.counts.items():
                    buckets[unit] = buckets.get(unit, 0) + count
        if not any(unit in buckets for unit in OUTPUT_UNITS):  # the first chunks tell the prompt alone
            unit = next((u for u in reversed(OUTPUT_UNITS) if self._demand.ceiling.total(u)), OUTPUT)
            buckets[unit] = min(output_guess, self._demand.ceiling.total(unit))
        return [UsageLine(line.model, {u: c for u, c in buckets.items() if c}, line.modifiers)]


class _Grounding:
    """Searches that an answer says it made. The chunks of a stream repeat them or add to them."""

    __slots__ = ("_has_maps", "_has_results", "_longest", "_queries")

    def __init__(self) -> None:
        self._queries: set[tuple[int, str, str]] = set()
        self._longest: dict[tuple[int, str], int] = {}
        self._has_results = False
        self._has_maps = False

    def add(self, candidate: Mapping[str, Any]) -> None:
        metadata = candidate.get("groundingMetadata")
        if not isinstance(metadata, dict):
            return
        index = candidate.get("index")
        number = index if isinstance(index, int) else 0
        for kind in ("webSearchQueries", "imageSearchQueries"):
            told = metadata.get(kind)
            queries = [query for query in told if query] if isinstance(told, list) else []
            key = (number, kind)
            self._longest[key] = max(self._longest.get(key, 0), min(len(queries), QUERIES_MAX))
            for query in queries[: QUERIES_MAX - len(self._queries)]:
                self._queries.add((number, kind, str(query)[:NAME_CHARS_MAX]))
        for chunk in _objects(metadata.get("groundingChunks")):
            self._has_maps = self._has_maps or "maps" in chunk
            self._has_results = self._has_results or "web" in chunk or "image" in chunk

    def counts(self, model: str) -> dict[str, int]:
        """Queries count as searches of the web; where nothing but maps was found, as searches of these."""
        queries = 0
        for (number, kind), longest in self._longest.items():
            distinct = sum(1 for query in self._queries if query[:2] == (number, kind))
            queries += max(longest, distinct)
        is_maps_alone = self._has_maps and not self._has_results
        maps = max(int(self._has_maps), queries if is_maps_alone else 0)
        searches = 0 if is_maps_alone else max(queries, int(self._has_results))
        if not bills_queries(model):
            maps, searches = min(maps, 1), min(searches, 1)
        return {WEB_SEARCHES: searches, MAPS_SEARCHES: maps}


def _counts_of(usage: Any, notes: list[str]) -> dict[str, int]:
    """The vendor's counters that make sense; zeros are left out on the wire."""
    if not isinstance(usage, dict):
        return {}
    counts = {}
    for name in _COUNTERS:
        value = usage.get(name)
        count = _count(value)
        if count is not None:
            counts[name] = count
        elif value is not None:
            notes.append(NOTE_UNSOUND)
            return {}
    return counts


def _greatest(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in {**one, **other}}


def _by_modality(details: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for detail in _objects(details):
        modality, count = detail.get("modality"), _count(detail.get("tokenCount"))
        if isinstance(modality, str) and count:
            counts[modality] = counts.get(modality, 0) + count
    return counts


def _split(
    buckets: dict[str, int],
    total: int,
    by_modality: Mapping[str, int],
    units: Mapping[str, str],
    general: str,
) -> None:
    """Divide a total by modality. The details need not sum to it, and never take more than there is."""
    for modality, unit in units.items():
        count = min(by_modality.get(modality, 0), total)
        if count:
            buckets[unit] = buckets.get(unit, 0) + count
            total -= count
    if total:
        buckets[general] = buckets.get(general, 0) + total


def _objects(values: Any) -> Iterator[Mapping[str, Any]]:
    for value in values if isinstance(values, list) else ():
        if isinstance(value, dict):
            yield value


def _is_reason(value: Any) -> bool:
    return isinstance(value, str) and value not in _NO_REASON


def _name_of(value: Any) -> str:
    is_name = isinstance(value, str) and len(value) <= NAME_CHARS_MAX
    return str(value).removeprefix("models/") if is_name else ""


def _count(value: Any) -> int | None:
    """A count; as text too, which is how JSON of protocol buffers may write a long integer."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= COUNT_CHARS_MAX:
        value = int(value)
    return value if is_count(value) else None


def _unique(notes: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(notes))
