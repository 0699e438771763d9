"""How Anthropic speaks of errors, so that its SDKs raise their own classes and obey our retry advice.

Shapes and SDK reactions: Anthropic docs "Errors", Python SDK 2.11.0 (`_exceptions.py`, `_base_client.py`),
2026-11. Two reactions decide much here: the SDKs wait any `retry-after` in full and obey `x-should-retry`
before the status; an agent that reads 401, 403 or words about a credit balance locks its key.
"""

import math
from functools import lru_cache
from typing import Any

import orjson

from metering.clock import utc
from metering.errors import Reason, Refused
from proxy.surface import Headers, LimitView, Rendered

ACCOUNT_RETRY_AFTER_S = 30.0
"""After the vendor refused our account: an operator must act, and agents should not freeze meanwhile."""
BUSY_RETRY_AFTER_S = 5.0
"""After a 429 of our account that names no time."""
BUSY_RETRY_AFTER_MAX_S = 60.0
"""The longest of the vendor's own times that is passed on: its windows are minutes."""
ACCOUNT_PHRASES = ("credit balance", "usage limit", "spend limit", "spending limit")
"""Words of a 400 or 429 about the account: it has run dry, or met a limit that its owner set."""
RESETS_KEPT = 256

_STATUS_AND_TYPE: dict[Reason, tuple[int, str]] = {
    Reason.UNKNOWN_OPERATION: (404, "not_found_error"),
    Reason.UNAUTHENTICATED: (401, "authentication_error"),
    Reason.FORBIDDEN: (403, "permission_error"),
    Reason.BAD_REQUEST: (400, "invalid_request_error"),
    Reason.TOO_LARGE: (413, "request_too_large"),
    Reason.MODEL_UNAVAILABLE: (404, "not_found_error"),
    Reason.BUDGET_EXHAUSTED: (402, "billing_error"),
    Reason.BUDGET_HELD: (429, "rate_limit_error"),
    Reason.RATE_LIMITED: (429, "rate_limit_error"),
    Reason.TOO_MANY_CONCURRENT: (429, "rate_limit_error"),
    Reason.STORE_UNAVAILABLE: (503, "api_error"),
    Reason.DRAINING: (503, "api_error"),
    Reason.NOT_CONFIGURED: (503, "api_error"),
    Reason.UPSTREAM_UNREACHABLE: (502, "api_error"),
    Reason.UPSTREAM_TIMEOUT: (504, "timeout_error"),
    Reason.UPSTREAM_ACCOUNT: (503, "api_error"),
    Reason.UPSTREAM_BUSY: (429, "rate_limit_error"),
    Reason.INTERNAL: (500, "api_error"),
}
_RETRY_CANNOT_HELP = frozenset(
    {
        Reason.UNKNOWN_OPERATION,
        Reason.UNAUTHENTICATED,
        Reason.FORBIDDEN,
        Reason.BAD_REQUEST,
        Reason.TOO_LARGE,
        Reason.MODEL_UNAVAILABLE,
        Reason.BUDGET_EXHAUSTED,
        Reason.NOT_CONFIGURED,
    }
)
_TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class AnthropicDialect:
    """Errors and limits as the Messages API and its SDKs know them."""

    @property
    def stream_comment(self) -> bytes | None:
        return b": waiting\n\n"

    def refusal(self, refused: Refused, request_id: str) -> Rendered:
        status, _ = _STATUS_AND_TYPE[refused.reason]
        headers: Headers = [
            (b"content-type", b"application/json"),
            (b"request-id", request_id.encode()),
        ]
        if refused.reason in _RETRY_CANNOT_HELP:
            headers.append((b"x-should-retry", b"false"))
        elif refused.retry_after_s is not None:
            seconds = max(1, math.ceil(refused.retry_after_s))
            headers.append((b"retry-after", str(seconds).encode()))
        return Rendered(status, headers, _error_of(refused, request_id))

    def stream_error(self, refused: Refused, request_id: str) -> bytes:
        return _event(_error_of(refused, request_id))

    def stream_error_from(self, status: int, body: bytes, request_id: str) -> bytes:
        """The vendor's own words where it sent its own shape; else its status in this shape."""
        answer = _json_of(body)
        error = answer.get("error")
        if isinstance(error, dict) and isinstance(error.get("type"), str):
            return _event(orjson.dumps(answer))
        kind = _TYPE_OF_STATUS.get(status, "api_error")
        return _event(_error(kind, f"The vendor answered with status {status}.", request_id))

    def account_problem(self, status: int, body: bytes, headers: Headers) -> Refused | None:
        """401, 402, 403, 429, and a 400 about money are about our account; all else is the request's own, or
        the vendor's (529 and other 5xx: SDKs and agents know how to wait for those)."""
        if status in (401, 402, 403) or (status in (400, 429) and _is_about_money(body)):
            return Refused(
                Reason.UPSTREAM_ACCOUNT,
                "The model vendor cannot be used through this gateway at the moment; its operator has to act.",
                retry_after_s=ACCOUNT_RETRY_AFTER_S,
                facts={"upstream_status": status},
            )
        if status == 429:  # noqa: PLR2004 - Too Many Requests
            return Refused(
                Reason.UPSTREAM_BUSY,
                "The model vendor is limiting this gateway's rate of requests. Please try again shortly.",
                retry_after_s=_busy_for_s(headers),
                facts={"upstream_status": status},
            )
        return None

    def limit_headers(self, limits: LimitView) -> Headers:
        return [
            (b"anthropic-ratelimit-requests-limit", b"%d" % limits.requests_limit),
            (b"anthropic-ratelimit-requests-remaining", b"%d" % limits.requests_remaining),
            (b"anthropic-ratelimit-requests-reset", _instant(-(-limits.requests_reset_ms // 1000))),
        ]


def _error_of(refused: Refused, request_id: str) -> bytes:
    return _error(_STATUS_AND_TYPE[refused.reason][1], refused.message, request_id)


def _error(kind: str, message: str, request_id: str) -> bytes:
    return orjson.dumps(
        {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
    )


def _event(data: bytes) -> bytes:
    return b"event: error\ndata: " + data + b"\n\n"


def _is_about_money(body: bytes) -> bool:
    error = _json_of(body).get("error")
    if not isinstance(error, dict):
        return False
    details = error.get("details")
    code = details.get("error_code") if isinstance(details, dict) else None
    message = str(error.get("message")).lower()
    return (
        error.get("type") == "billing_error"
        or code == "enforced_spend_limit_reached"
        or any(phrase in message for phrase in ACCOUNT_PHRASES)
    )


def _busy_for_s(headers: Headers) -> float:
    value = next((value for name, value in headers if name == b"retry-after"), b"")
    try:
        seconds = float(value)
    except ValueError:  # Absent, or a date: the docs promise seconds.
        return BUSY_RETRY_AFTER_S
    return min(max(seconds, 1.0), BUSY_RETRY_AFTER_MAX_S) if math.isfinite(seconds) else BUSY_RETRY_AFTER_S


def _json_of(body: bytes) -> dict[str, Any]:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


@lru_cache(maxsize=RESETS_KEPT)
def _instant(at_s: int) -> bytes:
    """RFC 3339 in UTC, whole seconds. Cached: within a minute most requests name the same few instants."""
    return utc(at_s * 1000).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
