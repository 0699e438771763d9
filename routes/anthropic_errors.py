"""How Anthropic speaks of errors, so that its SDKs raise their own classes and obey our retry advice.

Shapes and SDK reactions: Anthropic docs "Errors", Python SDK 2.11.0 (`_exceptions.py`, `_base_client.py`),
2026-11. Two reactions decide much here: the SDKs wait any `retry-after` in full and obey `x-should-retry`
before the status; an agent that reads 401, 403 or words about a credit balance locks its key.
"""

from functools import lru_cache

import orjson

from metering.clock import utc
from metering.errors import Refused
from metering.rate_state import Standing
from proxy.errors import (
    ACCOUNT_STATUSES,
    STATUS,
    TOO_MANY_REQUESTS,
    account_busy,
    account_refused,
    retry_headers,
)
from proxy.surface import Headers, Rendered
from routes.counting import object_of

ACCOUNT_PHRASES = ("credit balance", "usage limit", "spend limit", "spending limit")
"""Words of a 400 or 429 about the account: it has run dry, or met a limit that its owner set."""
MAYBE_ABOUT_MONEY = frozenset({400, TOO_MANY_REQUESTS})
RESETS_KEPT = 256

_TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    426: "invalid_request_error",
    429: "rate_limit_error",
    431: "request_too_large",
    504: "timeout_error",
    529: "overloaded_error",
}


class AnthropicDialect:
    """Errors and limits as the Messages API and its SDKs know them."""

    @property
    def stream_comment(self) -> bytes | None:
        return b": waiting\n\n"

    def refusal(self, refused: Refused, request_id: str) -> Rendered:
        headers = [
            (b"content-type", b"application/json"),
            (b"request-id", request_id.encode()),
            *retry_headers(refused),
        ]
        return Rendered(STATUS[refused.reason], headers, _error_of(refused, request_id))

    def stream_error(self, refused: Refused, request_id: str) -> bytes:
        return _event(_error_of(refused, request_id))

    def stream_error_from(self, status: int, body: bytes, request_id: str) -> bytes:
        """The vendor's own words where it sent its own shape; else its status in this shape."""
        answer = object_of(body)
        error = answer.get("error")
        if isinstance(error, dict) and isinstance(error.get("type"), str):
            return _event(orjson.dumps(answer))
        kind = _TYPE_OF_STATUS.get(status, "api_error")
        return _event(_error(kind, f"The vendor answered with HTTP {status}.", request_id))

    def account_problem(self, status: int, body: bytes, headers: Headers) -> Refused | None:
        """401, 402, 403, 429, and a 400 about money are about our account; all else is the request's own, or
        the vendor's (529 and other 5xx: SDKs and agents know how to wait for those)."""
        if status in ACCOUNT_STATUSES or (status in MAYBE_ABOUT_MONEY and _is_about_money(body)):
            return account_refused(status)
        return account_busy(headers) if status == TOO_MANY_REQUESTS else None

    def shown_error(self, body: bytes) -> bytes | None:  # noqa: ARG002 - the protocol's
        return None

    def limit_headers(self, standing: Standing, now_ms: int) -> Headers:  # noqa: ARG002 - it tells instants
        requests, tokens = standing.requests, standing.tokens
        return [
            (b"anthropic-ratelimit-requests-limit", b"%d" % requests.limit),
            (b"anthropic-ratelimit-requests-remaining", b"%d" % requests.remaining),
            (b"anthropic-ratelimit-requests-reset", _instant(-(-requests.reset_ms // 1000))),
            (b"anthropic-ratelimit-tokens-limit", b"%d" % tokens.limit),
            (b"anthropic-ratelimit-tokens-remaining", b"%d" % tokens.remaining),
            (b"anthropic-ratelimit-tokens-reset", _instant(-(-tokens.reset_ms // 1000))),
        ]


def _error_of(refused: Refused, request_id: str) -> bytes:
    kind = _TYPE_OF_STATUS.get(STATUS[refused.reason], "api_error")
    return _error(kind, refused.message, request_id)


def _error(kind: str, message: str, request_id: str) -> bytes:
    return orjson.dumps(
        {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
    )


def _event(data: bytes) -> bytes:
    return b"event: error\ndata: " + data + b"\n\n"


def _is_about_money(body: bytes) -> bool:
    error = object_of(body).get("error")
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


@lru_cache(maxsize=RESETS_KEPT)
def _instant(at_s: int) -> bytes:
    """RFC 3339 in UTC, whole seconds. Cached: within a minute most requests name the same few instants."""
    return utc(at_s * 1000).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
