"""How one simulated answer of AgentMail behaves. The vendor keeps state: see `simulators.stateful`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulators import stateful
from simulators.behaviour import HeaderLanguage
from simulators.stateful import WORKS, StatefulBehaviours

DOCS_URL = "https://docs.agentmail.to/errors"
ORGANIZATION_ID = "org_2hZ0simulated9f31"
PLAN = "Developer plan (10 inboxes, 10,000 emails a month)"
FOREIGN_INBOX = "ops-alerts@agentmail.to"
PLANTED = (ORGANIZATION_ID, "Developer plan", FOREIGN_INBOX)
"""What concerns the whole account, and stands in errors: no tenant may get to read it."""

CODES: Mapping[int, str] = {
    400: "validation_error",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    413: "payload_too_large",
    422: "unprocessable",
    429: "rate_limit_exceeded",
    500: "internal_error",
    503: "service_unavailable",
}
"""The code of an error that names none, by its status: the vendor's error reference, but for 413, which is a guess."""

NAMES: Mapping[str, str] = {
    "validation_error": "ValidationError",
    "missing_authorization": "UnauthorizedError",
    "unauthorized": "UnauthorizedError",
    "unknown_api_key": "UnauthorizedError",
    "forbidden": "ForbiddenError",
    "cannot_delete": "CannotDeleteError",
    "domain_not_verified": "DomainNotVerifiedError",
    "limit_exceeded": "LimitExceededError",
    "message_rejected": "MessageRejectedError",
    "resource_taken": "IsTakenError",
    "not_found": "NotFoundError",
    "conflict": "ConflictError",
    "payload_too_large": "PayloadTooLargeError",
    "unprocessable": "UnprocessableError",
    "rate_limit_exceeded": "RateLimitError",
    "internal_error": "InternalServerError",
    "service_unavailable": "ServiceUnavailableError",
}
"""The `name` of an error. NotFoundError, ValidationError, IsTakenError, ConflictError and UnprocessableError are those
of the vendor's SDK; clients are told to go by the code, and the other names are guesses."""


@dataclass(frozen=True, slots=True)
class ReportedUsage:
    """What a request sent: the vendor's daily limit counts each recipient as one email."""

    messages: int = 0
    recipients: int = 0

    def counts(self) -> dict[str, int]:
        counts = {"messages": self.messages, "recipients": self.recipients}
        return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True, slots=True)
class Behaviour(stateful.Behaviour):
    """What one answer does. `error_type` is the vendor's `code`; `fix` and `errors` are fields of its error body."""

    usage: ReportedUsage | None = None
    fix: str | None = None
    errors: tuple[Mapping[str, Any], ...] = ()


PLAIN = Behaviour()

_BEHAVIOURS = StatefulBehaviours(Behaviour)
answers = _BEHAVIOURS.answers
answers_late = _BEHAVIOURS.answers_late
breaks_after = _BEHAVIOURS.breaks_after
stalls_after = _BEHAVIOURS.stalls_after
replays = _BEHAVIOURS.replays
hangs = _BEHAVIOURS.hangs
drops = _BEHAVIOURS.drops
loses_reply = _BEHAVIOURS.loses_reply


def fails(
    status: int,
    code: str | None = None,
    *,
    message: str | None = None,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Behaviour:
    """An error instead of the work, with account-wide data in its words; `works=True`: after the work all the same.

    A 429 says `Retry-After: 1`, as the vendor's usually do, unless headers are given.
    """
    if headers is None:
        headers = {"Retry-After": "1"} if status == 429 else {}  # noqa: PLR2004 - the status itself
    return _BEHAVIOURS.fails(
        status,
        code,
        message=message or f"Simulated error of organization {ORGANIZATION_ID} on the {PLAN}",
        headers=headers,
        **{"fix": f"See inbox {FOREIGN_INBOX}, or change the {PLAN}.", **more},
    )


parse_simulate = HeaderLanguage(
    PLAIN,
    usage_words={},
    usage_name_words={},
    words=WORKS,
).parse
"""The behaviour asked for by an `x-simulate` header."""
