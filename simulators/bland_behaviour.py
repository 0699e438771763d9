"""How one simulated answer of Bland behaves, and what its errors give away. Its work: the number is dialled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulators import stateful
from simulators.behaviour import HeaderLanguage

ORGANIZATION_ID = "org_7f3csimulated41aa"
PLAN = "Scale plan (100 concurrent calls, 5,000 a day)"
FOREIGN_NUMBER = "+13125550199"
OPERATOR = "operator@platform.example"
PLANTED = (ORGANIZATION_ID, "Scale plan", FOREIGN_NUMBER, OPERATOR)
"""What concerns the whole account, and stands in errors and account-wide answers: no tenant may get to read it."""

MESSAGES: Mapping[int, str] = {
    400: "Invalid parameters",
    401: "Unauthorized",
    402: "Insufficient balance.",
    403: "Forbidden",
    404: "Not found",
    418: "I'm a teapot",
    429: "Rate limit exceeded",
    500: "Internal server error.",
    503: "Service unavailable",
}
"""What an error says that says nothing else. Those of 402 and 429 are the vendor's; the others are guesses."""
CODES: Mapping[int, str] = {401: "AUTH_FAILURE", 404: "NOT_FOUND", 429: "RATE_LIMIT_EXCEEDED"}
"""The code of an error in an envelope. That of 401 is the vendor's; the others are guesses."""


@dataclass(frozen=True, slots=True)
class ReportedUsage:
    """What a request set going: a call that was dialled, a text that was sent, an analysis of what was said."""

    calls: int = 0
    texts: int = 0
    analyses: int = 0

    def counts(self) -> dict[str, int]:
        counts = {"calls": self.calls, "texts": self.texts, "analyses": self.analyses}
        return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True, slots=True)
class Behaviour(stateful.Behaviour):
    """What one answer does. `errors` are those in an error's body; `in_envelope`: the body is `{data, errors}`, as that
    of every 401 is, and `error_type` its code."""

    usage: ReportedUsage | None = None
    errors: tuple[Any, ...] = ()
    in_envelope: bool = False


PLAIN = Behaviour()

_BEHAVIOURS = stateful.StatefulBehaviours(Behaviour)
answers = _BEHAVIOURS.answers
breaks_after = _BEHAVIOURS.breaks_after
stalls_after = _BEHAVIOURS.stalls_after
replays = _BEHAVIOURS.replays
hangs = _BEHAVIOURS.hangs
drops = _BEHAVIOURS.drops
loses_reply = _BEHAVIOURS.loses_reply
answers_late = _BEHAVIOURS.answers_late


def fails(
    status: int,
    *,
    message: str | None = None,
    errors: tuple[Any, ...] | None = None,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Behaviour:
    """An error instead of the work, with account-wide data in its `errors`; `works=True`: after the work all the same."""
    planted = (f"Account {OPERATOR} of {ORGANIZATION_ID} on the {PLAN}, number {FOREIGN_NUMBER}",)
    return _BEHAVIOURS.fails(
        status,
        message=message or MESSAGES.get(status, "Simulated error"),
        headers=headers,
        errors=planted if errors is None else errors,
        **more,
    )


parse_simulate = HeaderLanguage(PLAIN, usage_words={}, usage_name_words={}, words=stateful.WORKS).parse
"""The behaviour asked for by an `x-simulate` header."""
