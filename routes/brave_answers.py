"""What a request to Brave's Answers may cause, and what its answer used.

Answers are sold by the query and by tokens. A stream tells both in a tag at the end of its text, cut wherever its chunks
are; a whole answer has the usual counts of tokens, for one query. Facts: Brave Search API documentation ("Answers"),
2026-08; what a query reads was measured by others (2026-08: about 10,000 tokens for a plain answer, 13,000 for each
query of a research).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from metering.errors import Reason, Refused
from metering.sse import SseEvent
from metering.usage import INPUT, OUTPUT, SEARCHES, Usage, UsageLine
from proxy.surface import AnswerHead, Demand, Inbound, Observer, Pricing
from routes.counting import (
    NOTE_UNSOUND,
    BodyObserver,
    StreamObserver,
    count_in,
    is_count,
    is_number,
    is_stream,
    json_of,
    object_of,
)

MODEL = "brave"
PRODUCT = "answers"
"""Its name in the price table."""
QUERIES_DEFAULT, QUERIES_MAX = 20, 50
"""Of a research; anything else makes one."""
QUERY_TOKENS_DEFAULT, QUERY_TOKENS_MAX = 8_192, 16_384
"""What a query of a research reads."""
PASSES = 2
"""How often a research reads that at most: by the measure above one and a half times."""
ANSWER_TOKENS_MAX = 8_192
"""Held for what is written: the vendor states no maximum. More is booked all the same."""
BYTES_PER_OUTPUT_TOKEN = 50
"""Of a stream without its tag: a chunk has some 150 bytes of framing around a word or two."""
TAG, TAG_END = "<usage>", "</usage>"
TAIL_CHARS_MAX = 4_096
"""How much of a text's end is kept to find the tag in: it has some 200 characters."""

_DONE = b"[DONE]"
_MARKERS = (b'"content"', b'"error"', _DONE)
_QUERIES, _READ, _WRITTEN = "X-Request-Queries", "X-Request-Tokens-In", "X-Request-Tokens-Out"
_QUERIES_FIELD = "research_maximum_number_of_queries"
_QUERY_TOKENS_FIELD = "research_maximum_number_of_tokens_per_query"


class AnswersMeter:
    """POST /res/v1/chat/completions."""

    @property
    def is_free(self) -> bool:
        return False

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        """What the request may cause at most, and at least. Raises Refused(BAD_REQUEST | MODEL_UNAVAILABLE)."""
        fields = request.fields
        model = fields.get("model")
        if model != MODEL:
            shown = model[:128] if isinstance(model, str) else model
            raise Refused(Reason.MODEL_UNAVAILABLE, f"model: {shown}", facts={"model": str(shown)})
        prompt = -(-len(request.body) // pricing.bytes_per_token)
        queries, reads = 1, QUERY_TOKENS_MAX
        if is_research(fields):
            queries = _bounded(fields, _QUERIES_FIELD, QUERIES_DEFAULT, QUERIES_MAX)
            reads = PASSES * _bounded(fields, _QUERY_TOKENS_FIELD, QUERY_TOKENS_DEFAULT, QUERY_TOKENS_MAX)
        most = {SEARCHES: queries, INPUT: prompt + queries * reads, OUTPUT: ANSWER_TOKENS_MAX}
        return Demand(
            models=(MODEL,),
            is_streaming=_flag(fields, "stream", default=True),
            ceiling=Usage((UsageLine(PRODUCT, most),), is_exact=False),
            floor=Usage((UsageLine(PRODUCT, {SEARCHES: 1, INPUT: prompt}),), is_exact=False),
        )

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:
        queries = answer.header(_QUERIES.lower().encode())  # undocumented, but seen on whole answers
        report = AnswersReport(
            is_research=is_research(request.fields), queries=int(queries) if queries.isdigit() else 1
        )
        return AnswersStream(demand, report) if is_stream(demand, answer) else BodyObserver(demand, report)


def is_research(fields: Mapping[str, Any]) -> bool:
    """Raises Refused(BAD_REQUEST)."""
    return _flag(fields, "enable_research", default=False)


class AnswersReport:
    """What the vendor has said about one answer so far."""

    __slots__ = ("_counts", "_is_research", "_queries", "is_sound")

    def __init__(self, *, is_research: bool, queries: int) -> None:
        self.is_sound = True
        self._queries = queries
        """Of an answer that does not tell."""
        self._is_research = is_research
        self._counts: dict[str, int] = {}

    def read_body(self, body: Mapping[str, Any]) -> bool:
        usage = body.get("usage")
        if not isinstance(usage, dict):
            return False
        self._take(
            {
                SEARCHES: self._queries,
                INPUT: usage.get("prompt_tokens"),
                OUTPUT: usage.get("completion_tokens"),
            }
        )
        return True

    def read_tag(self, text: str) -> bool:
        """Take the tag at a text's end; False when there is none. What only looks like one, because the question
        was about it, has text behind it."""
        _, opened, tag = text.rstrip().rpartition(TAG)
        if not opened or not tag.endswith(TAG_END):
            return False
        usage = json_of(tag.removesuffix(TAG_END).encode())
        if not isinstance(usage, dict):
            return False
        self._take({SEARCHES: usage.get(_QUERIES), INPUT: usage.get(_READ), OUTPUT: usage.get(_WRITTEN)})
        return True

    def usage(
        self, demand: Demand, *, is_final: bool, output_guess: int | None, notes: Sequence[str] = ()
    ) -> Usage:
        """Of a research that did not come to its tag nobody knows how far it got: all that it held is booked, or
        whoever leaves in time would search for nothing."""
        if self._counts:
            notes = notes if self.is_sound else (*notes, NOTE_UNSOUND)
            line = UsageLine(PRODUCT, self._counts)
            return Usage((line,), is_exact=is_final and self.is_sound, notes=tuple(notes))
        if output_guess is None:  # it ended in an error, which the vendor does not bill
            return Usage((), is_exact=False, notes=tuple(notes))
        if self._is_research:
            return Usage(demand.ceiling.lines, is_exact=False, notes=tuple(notes))
        floor = demand.floor.lines[0].counts
        counts = {**floor, INPUT: floor[INPUT] + QUERY_TOKENS_DEFAULT, OUTPUT: output_guess}
        return Usage((UsageLine(PRODUCT, counts),), is_exact=False, notes=tuple(notes))

    def _take(self, counts: Mapping[str, Any]) -> None:
        self.is_sound = all(is_count(count) for count in counts.values())
        self._counts = {unit: count_in(counts, unit) for unit in counts}


class AnswersStream(StreamObserver):
    """A streamed answer, whose text ends in the tag. Of one that did not come to its end the tag is not taken: what
    stands there may be the question's own words."""

    __slots__ = ("_answers", "_has_tag", "_tail")

    def __init__(self, demand: Demand, report: AnswersReport) -> None:
        super().__init__(demand, report, _MARKERS, bytes_per_output_token=BYTES_PER_OUTPUT_TOKEN)
        self._answers = report
        self._tail = ""
        self._has_tag = False

    def _read(self, event: SseEvent) -> None:
        if event.data.strip() == _DONE:
            self._has_tag = self._answers.read_tag(self._tail)
            self._is_complete = True
            return
        chunk = object_of(event.data)
        error = chunk.get("error")
        if isinstance(error, dict):
            kind = error.get("code") or error.get("type")
            self._error = kind if isinstance(kind, str) else "error"
            return
        self._tail = (self._tail + _text_of(chunk))[-TAIL_CHARS_MAX:]

    def _is_whole(self, data: bytes) -> bool:
        return data.strip() == _DONE or super()._is_whole(data)

    @property
    def _is_final(self) -> bool:
        return self._has_tag and super()._is_final


def _text_of(chunk: Mapping[str, Any]) -> str:
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    delta = choice.get("delta") if isinstance(choice, dict) else None
    text = delta.get("content") if isinstance(delta, dict) else None
    return text if isinstance(text, str) else ""


def _flag(fields: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return default if value is None else value
    raise Refused(Reason.BAD_REQUEST, f"{name}: must be true or false.")


def _bounded(fields: Mapping[str, Any], name: str, default: int, at_most: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if not is_number(value) or not 1 <= value <= at_most:
        raise Refused(Reason.BAD_REQUEST, f"{name}: must be a whole number from 1 to {at_most:,}.")
    return value
