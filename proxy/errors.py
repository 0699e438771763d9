"""What a refusal becomes in HTTP: its status, whether to retry, and the plain JSON of our own simple APIs.

A surface whose vendor has shapes of its own declares another dialect in `routes/`.
"""

import math
from collections.abc import Mapping

import orjson

from metering.errors import Reason, Refused
from metering.rate_state import Standing
from proxy.surface import Headers, Rendered

STATUS: Mapping[Reason, int] = {
    Reason.UNKNOWN_OPERATION: 404,
    Reason.WEBSOCKET_UNAVAILABLE: 426,
    Reason.WEBSOCKET_REQUIRED: 426,
    Reason.UNAUTHENTICATED: 401,
    Reason.FORBIDDEN: 403,
    Reason.BAD_REQUEST: 400,
    Reason.HEAD_TOO_LARGE: 431,
    Reason.TOO_LARGE: 413,
    Reason.MODEL_UNAVAILABLE: 404,
    Reason.CONFLICT: 409,
    Reason.OBJECT_NOT_FOUND: 404,
    Reason.BUDGET_EXHAUSTED: 402,
    Reason.BUDGET_HELD: 429,
    Reason.RATE_LIMITED: 429,
    Reason.TOKENS_RATE_LIMITED: 429,
    Reason.TOO_MANY_CONCURRENT: 429,
    Reason.STORE_UNAVAILABLE: 503,
    Reason.DRAINING: 503,
    Reason.NOT_CONFIGURED: 503,
    Reason.UPSTREAM_UNREACHABLE: 502,
    Reason.UPSTREAM_TIMEOUT: 504,
    Reason.UPSTREAM_ACCOUNT: 503,
    Reason.UPSTREAM_BUSY: 429,
    Reason.INTERNAL: 500,
}
"""The status of a refusal where the surface's vendor knows no better one."""

RETRY_CANNOT_HELP = frozenset(
    {
        Reason.UNKNOWN_OPERATION,
        Reason.WEBSOCKET_UNAVAILABLE,
        Reason.WEBSOCKET_REQUIRED,
        Reason.UNAUTHENTICATED,
        Reason.FORBIDDEN,
        Reason.BAD_REQUEST,
        Reason.HEAD_TOO_LARGE,
        Reason.TOO_LARGE,
        Reason.MODEL_UNAVAILABLE,
        Reason.OBJECT_NOT_FOUND,
        Reason.BUDGET_EXHAUSTED,
        Reason.NOT_CONFIGURED,
    }
)
"""Refusals that the same request meets again, however long it waits."""

TOO_MANY_REQUESTS = 429
ACCOUNT_STATUSES = frozenset({401, 402, 403})
"""A vendor's statuses that are about the key we sent, whatever the request was."""
ACCOUNT_RETRY_AFTER_S = 30.0
"""After a vendor refused our account: an operator must act, and agents should not freeze meanwhile."""
BUSY_RETRY_AFTER_S = 5.0
"""After a vendor's 429 about our account that names no time."""
BUSY_RETRY_AFTER_MAX_S = 60.0
"""The longest of a vendor's own times that is passed on: agents obey a long one to the letter."""


def retry_headers(refused: Refused) -> Headers:
    """`x-should-retry: false` where waiting cannot help (the vendors' SDKs obey it before the status), else
    `retry-after` in whole seconds where a time is known; with a 426, the protocol that is served (RFC 9110
    section 15.5.22)."""
    if refused.reason is Reason.WEBSOCKET_UNAVAILABLE:
        return [(b"x-should-retry", b"false"), (b"upgrade", b"HTTP/1.1")]
    if refused.reason is Reason.WEBSOCKET_REQUIRED:  # RFC 6455 section 4.2.2
        return [
            (b"x-should-retry", b"false"),
            (b"upgrade", b"websocket"),
            (b"sec-websocket-version", b"13"),
        ]
    if refused.reason in RETRY_CANNOT_HELP:
        return [(b"x-should-retry", b"false")]
    if refused.retry_after_s is None:
        return []
    return [(b"retry-after", b"%d" % max(1, math.ceil(refused.retry_after_s)))]


def account_refused(status: int) -> Refused:
    """In place of a vendor's answer that would lock the agents' keys, though it is ours that is at fault."""
    return Refused(
        Reason.UPSTREAM_ACCOUNT,
        "The vendor cannot be used through this gateway at the moment; its operator has to act.",
        retry_after_s=ACCOUNT_RETRY_AFTER_S,
        facts={"upstream_status": status},
    )


def account_busy(headers: Headers) -> Refused:
    """In place of a vendor's 429: it limits the rate of our account, whoever of its users asked too much."""
    return Refused(
        Reason.UPSTREAM_BUSY,
        "The vendor's rate limit for this gateway is reached. Please try again shortly.",
        retry_after_s=_busy_for_s(headers),
        facts={"upstream_status": TOO_MANY_REQUESTS},
    )


class PlainJson:
    """`{"error": "text", ...facts, "request_id"}`: how the service we replace spoke outside its LLM routes,
    and its callers read it still."""

    @property
    def stream_comment(self) -> bytes | None:
        return None

    def refusal(self, refused: Refused, request_id: str) -> Rendered:
        headers = [(b"content-type", b"application/json"), *retry_headers(refused)]
        return Rendered(STATUS[refused.reason], headers, _error(refused, request_id))

    def stream_error(self, refused: Refused, request_id: str) -> bytes:
        return _error(refused, request_id) + b"\n"

    def stream_error_from(self, status: int, body: bytes, request_id: str) -> bytes:  # noqa: ARG002 - the protocol's; a vendor's own shape is not ours to repeat
        message = f"The vendor answered with HTTP {status}."
        return orjson.dumps({"error": message, "request_id": request_id}) + b"\n"

    def account_problem(self, status: int, body: bytes, headers: Headers) -> Refused | None:  # noqa: ARG002 - the protocol's; plain vendors say it by status alone
        """401, 402, 403 and 429 are about our account: we sent our key, and nobody else's rate counts there."""
        if status in ACCOUNT_STATUSES:
            return account_refused(status)
        return account_busy(headers) if status == TOO_MANY_REQUESTS else None

    def shown_error(self, body: bytes) -> bytes | None:  # noqa: ARG002 - the protocol's
        return None

    def limit_headers(self, standing: Standing, now_ms: int) -> Headers:  # noqa: ARG002 - the protocol's
        """Names that plain clients know; the instant of the reset in Unix seconds."""
        requests = standing.requests
        return [
            (b"x-ratelimit-limit", b"%d" % requests.limit),
            (b"x-ratelimit-remaining", b"%d" % requests.remaining),
            (b"x-ratelimit-reset", b"%d" % -(-requests.reset_ms // 1000)),
        ]


PLAIN_JSON = PlainJson()


def _error(refused: Refused, request_id: str) -> bytes:
    return orjson.dumps({**refused.facts, "error": refused.message, "request_id": request_id})


def _busy_for_s(headers: Headers) -> float:
    value = next((value for name, value in headers if name == b"retry-after"), b"")
    try:
        seconds = float(value)
    except ValueError:  # absent, or a date
        return BUSY_RETRY_AFTER_S
    return min(max(seconds, 1.0), BUSY_RETRY_AFTER_MAX_S) if math.isfinite(seconds) else BUSY_RETRY_AFTER_S
