"""What Brave's answers say of their use, the account they tell of, and the shape of chat completions and errors.

Shapes as in the vendor's documentation of 2026; what it leaves open is a choice, named where it stands.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from metering.usage import INPUT, OUTPUT, SEARCHES, SPELLCHECKS, SUGGESTIONS
from simulators.script import Cutter, Split
from simulators.text import text_pieces

CREATED_S = 1_795_176_000
"""Every answer and every error was made then, 2026-11-20T12:00:00Z."""
DONE = b"data: [DONE]\n\n"
QUERY_MICRODOLLARS = 4_000
TOKEN_MICRODOLLARS = 5
"""Of a query and of a token, read or written: the vendor's prices, 2026-11."""


class Family(enum.StrEnum):
    """A product of its own, with its own subscription and key."""

    SEARCH = "search"
    ANSWERS = "answers"
    SUGGEST = "suggest"
    SPELLCHECK = "spellcheck"


UNITS = {Family.SEARCH: SEARCHES, Family.SUGGEST: SUGGESTIONS, Family.SPELLCHECK: SPELLCHECKS}
"""What a request of a product that is sold by the request counts as; an answer's queries are searches."""


PLANS = {
    Family.SEARCH: "Search",
    Family.ANSWERS: "Answers",
    Family.SUGGEST: "Autosuggest",
    Family.SPELLCHECK: "Spellcheck",
}
"""The plan's name in an error's `meta`: the operator's, for no client to see."""
RATES_PER_S = {Family.SEARCH: 50, Family.ANSWERS: 2, Family.SUGGEST: 100, Family.SPELLCHECK: 100}
"""Requests a second that the account may send (price list, 2026-11)."""
QUOTA_USED = 14_159
"""Requests of the account in this month, in an error's `meta`: a number that nothing else here says."""

RATE_LIMITED = "RATE_LIMITED"
OPTION_NOT_IN_PLAN = "OPTION_NOT_IN_PLAN"
SUBSCRIPTION_TOKEN_INVALID = "SUBSCRIPTION_TOKEN_INVALID"
VALIDATION = "VALIDATION"
ERROR_CODES = {400: OPTION_NOT_IN_PLAN, 422: VALIDATION, 429: RATE_LIMITED, 404: "NOT_FOUND"}
"""The `error.code` of each status, unless told otherwise. 404's is a choice: the vendor documents none."""
ERROR_CODE_OTHER = "INTERNAL_ERROR"
"""Of every other status: a choice, for none is documented."""
COMPONENTS = {
    RATE_LIMITED: "rate_limiter",
    OPTION_NOT_IN_PLAN: "authentication",
    SUBSCRIPTION_TOKEN_INVALID: "authentication",
}
"""`meta.component` by code; only the first is documented with all that stands beside it."""


@dataclass(frozen=True, slots=True)
class ReportedUsage:
    """What an answer used. Outside of Answers there are requests alone.

    `request_microdollars`: what the tag says that the request itself cost. The price list knows no such price; the
    documentation's example has 5,000 of it.
    """

    family: Family = Family.ANSWERS
    requests: int = 1
    queries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    request_microdollars: int = 0

    def counts(self) -> dict[str, int]:
        """The billable counts by the meter's names, without zeros: what a ledger entry must say."""
        if self.family is Family.ANSWERS:
            counts = {SEARCHES: self.queries, INPUT: self.input_tokens, OUTPUT: self.output_tokens}
        else:
            counts = {UNITS[self.family]: self.requests}
        return {unit: count for unit, count in counts.items() if count}

    def in_tag(self) -> dict[str, int | float]:
        """The object within `<usage>`; costs in dollars."""
        costs = {
            "X-Request-Requests-Cost": self.request_microdollars,
            "X-Request-Queries-Cost": self.queries * QUERY_MICRODOLLARS,
            "X-Request-Tokens-In-Cost": self.input_tokens * TOKEN_MICRODOLLARS,
            "X-Request-Tokens-Out-Cost": self.output_tokens * TOKEN_MICRODOLLARS,
        }
        costs["X-Request-Total-Cost"] = sum(costs.values())
        return {
            "X-Request-Requests": self.requests,
            "X-Request-Queries": self.queries,
            "X-Request-Tokens-In": self.input_tokens,
            "X-Request-Tokens-Out": self.output_tokens,
            **{name: cost / 1_000_000 for name, cost in costs.items()},
        }

    def tag(self, *, is_spaced: bool = False) -> str:
        """As it stands at the end of a stream's text. `is_spaced`: a blank after each colon and comma."""
        told = orjson.dumps(self.in_tag()).decode()
        if is_spaced:
            told = told.replace(":", ": ").replace(",", ", ")
        return f"<usage>{told}</usage>"

    def in_completion(self) -> dict[str, int]:
        """`usage` of an answer that is not streamed."""
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
        }


LOOKALIKE = ReportedUsage(queries=50, input_tokens=9_999_999, output_tokens=9_999_999).tag()
"""What a question may have the answer quote: no word of the vendor's about what was used."""


# --- chat completions -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tags:
    """How a stream tells its usage: so many times, each cut where `split` says, in characters; None leaves each
    in one chunk. `joins_text`: the first shares its first chunk with the end of the text. `lookalike`: a text
    ahead of the answer's own, cut in the same way."""

    count: int = 1
    split: Split | None = None
    is_spaced: bool = False
    joins_text: bool = False
    lookalike: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What an answer says. `closing_usage`: the last chunk of a stream tells the tokens as OpenAI's does; the
    documentation says nothing of it, a client's recording of 2026-05 has it."""

    id: str
    model: str
    text: str
    usage: ReportedUsage
    tags: Tags
    finish_reason: str = "stop"
    closing_usage: bool = False


def chat_json(reply: Reply) -> bytes:
    """The body of an unstreamed answer."""
    message = {"role": "assistant", "content": (reply.tags.lookalike or "") + reply.text}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    head = _head_of(reply, "chat.completion")
    return orjson.dumps({**head, "choices": [choice], "usage": reply.usage.in_completion()})


def chat_events(reply: Reply, events: int | None) -> tuple[list[bytes], int]:
    """The events of a streamed answer, `[DONE]` included, and the number of the first that holds part of the tag
    (where there is none: of the one after the text). `events`: so many in all, if the text can be cut so."""
    tags = reply.tags
    quoted = _cut(tags.lookalike or "", tags.split)
    told = _cut(reply.usage.tag(is_spaced=tags.is_spaced), tags.split) * tags.count
    is_joined = tags.joins_text and bool(told)
    others = len(quoted) + len(told) - is_joined + len(("closing", "[DONE]"))
    spoken = [*quoted, *text_pieces(reply.text, None if events is None else max(1, events - others))]
    first = len(spoken) - is_joined
    if is_joined:
        told[0] = spoken.pop() + told[0]
    bodies = [_chunk(reply, piece) for piece in (*spoken, *told)]
    bodies.append(_closing_chunk(reply))
    return [*(b"data: %b\n\n" % orjson.dumps(body) for body in bodies), DONE], first


def _cut(text: str, split: Split | None) -> list[str]:
    """In pieces of characters, none of them empty."""
    if split is None:
        return [text] if text else []
    pieces, start = [], 0
    for piece in Cutter(split).cut(bytes(len(text))):  # cutters count bytes: one for each character here
        pieces.append(text[start : start + len(piece)])
        start += len(piece)
    return pieces


def _chunk(reply: Reply, piece: str) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"role": "assistant", "content": piece}, "finish_reason": None}
    return {**_head_of(reply, "chat.completion.chunk"), "choices": [choice], "usage": None}


def _closing_chunk(reply: Reply) -> dict[str, Any]:
    """The end of the only choice, as OpenAI's streams have it."""
    delta = {"role": "assistant", "content": ""}
    choice = {"index": 0, "delta": delta, "finish_reason": reply.finish_reason}
    usage = reply.usage.in_completion() if reply.closing_usage else None
    return {**_head_of(reply, "chat.completion.chunk"), "choices": [choice], "usage": usage}


def _head_of(reply: Reply, kind: str) -> dict[str, Any]:
    return {"id": reply.id, "object": kind, "created": CREATED_S, "model": reply.model}


# --- errors ---------------------------------------------------------------------------------------------


def account_meta(family: Family, code: str) -> dict[str, Any]:
    """The `meta` of an error that tells of the account; of any other code, its component."""
    component = {"component": COMPONENTS[code]} if code in COMPONENTS else {}
    if code not in (RATE_LIMITED, OPTION_NOT_IN_PLAN):
        return component
    rate = RATES_PER_S[family]
    return {
        "plan": PLANS[family],
        "rate_limit": rate,
        "rate_current": rate,
        "quota_limit": 0,
        "quota_current": QUOTA_USED,
        **component,
    }


def error_json(number: int, status: int, code: str, detail: str, meta: Mapping[str, Any]) -> bytes:
    """An error of the request of this number, as a body."""
    error = {
        "id": f"5d832250-9396-4f6e-b84a-{number:012x}",
        "status": status,
        "code": code,
        "detail": detail,
        "meta": meta,
    }
    return orjson.dumps({"type": "ErrorResponse", "error": error, "time": CREATED_S})
