"""Why a request is refused, as facts without a vendor's wording; a surface's dialect finds the words."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Reason(enum.StrEnum):
    """Every way to be refused; the values are the `reason` label of the refusals metric."""

    UNKNOWN_OPERATION = "unknown_operation"
    """404: only declared operations exist."""
    WEBSOCKET_UNAVAILABLE = "websocket_unavailable"
    """426: the request asks for a websocket where there is none."""
    WEBSOCKET_REQUIRED = "websocket_required"
    """426: there is nothing but a websocket here, of version 13."""
    UNAUTHENTICATED = "unauthenticated"
    """401: no gateway token, or one that is unknown, revoked, expired, or two that differ."""
    FORBIDDEN = "forbidden"
    """403: the token is good, but its scope (or a disabled user) does not allow this."""
    BAD_REQUEST = "bad_request"
    """400: malformed, or a field that reaches objects shared between users."""
    HEAD_TOO_LARGE = "head_too_large"
    """431: longer than HEAD_BYTES_MAX, or more than HEADERS_MAX headers."""
    TOO_LARGE = "too_large"
    """413: the body is longer than BODY_BYTES_MAX."""
    MODEL_UNAVAILABLE = "model_unavailable"
    """404: the model is not in the plan, or has no price."""
    CONFLICT = "conflict"
    """409: the idempotency key was used for another request, or for the same one that is still under way."""
    OBJECT_NOT_FOUND = "object_not_found"
    """404: the request names an object that is not this user's: for them it does not exist."""
    BUDGET_EXHAUSTED = "budget_exhausted"
    """402 (OpenAI, Gemini: 429): the period's allowance cannot cover this request. Waiting does not help."""
    BUDGET_HELD = "budget_held"
    """429: the allowance would cover it, but requests in flight hold it. Waiting a little helps."""
    RATE_LIMITED = "rate_limited"
    """429: too many requests in this minute."""
    TOKENS_RATE_LIMITED = "tokens_rate_limited"
    """429: too many tokens in this minute."""
    TOO_MANY_CONCURRENT = "too_many_concurrent"
    """429: too many requests in flight."""
    STORE_UNAVAILABLE = "store_unavailable"
    """503: the store cannot be written, or revocations cannot be heard of."""
    DRAINING = "draining"
    """503: this process is about to stop."""
    NOT_CONFIGURED = "not_configured"
    """503: the operator has not set something this needs; the message names the variable."""
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    """502: no connection, or it broke before an answer came."""
    UPSTREAM_TIMEOUT = "upstream_timeout"
    """504: connected, but no answer within the bound."""
    UPSTREAM_ACCOUNT = "upstream_account"
    """503: the vendor refused our own account; passing that on would lock the agent's key."""
    UPSTREAM_BUSY = "upstream_busy"
    """429: the vendor limits the rate of our own account."""
    INTERNAL = "internal"
    """500: a defect of ours."""


class Source(enum.StrEnum):
    """Whose doing an error is."""

    DOWNSTREAM = "downstream"
    UPSTREAM = "upstream"
    INTERNAL = "internal"


UPSTREAM_REASONS = frozenset(
    {Reason.UPSTREAM_UNREACHABLE, Reason.UPSTREAM_TIMEOUT, Reason.UPSTREAM_ACCOUNT, Reason.UPSTREAM_BUSY}
)
INTERNAL_REASONS = frozenset(
    {Reason.STORE_UNAVAILABLE, Reason.DRAINING, Reason.NOT_CONFIGURED, Reason.INTERNAL}
)


@dataclass(slots=True, eq=False)
class Refused(Exception):  # noqa: N818 - it names the end of a phase, as the other refusals do
    """A request is not served. `message` is for the person at the other end, complete and without secrets.

    `retry_after_s`: set only when waiting that long can help, and short: agents obey a long one to the
    letter and freeze. `facts` go to the canonical line and, where a dialect has room for them, into the body.
    """

    reason: Reason
    message: str
    retry_after_s: float | None = None
    facts: Mapping[str, int | str] = field(default_factory=dict)
    budget_left_nanousd: int | None = None
    """Of the period's money, where it was looked at: the answer's headers say so."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    @property
    def source(self) -> Source:
        if self.reason in UPSTREAM_REASONS:
            return Source.UPSTREAM
        return Source.INTERNAL if self.reason in INTERNAL_REASONS else Source.DOWNSTREAM
