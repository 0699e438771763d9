"""How Brave speaks of errors and limits.

Shapes and codes: Brave Search API documentation ("Error responses", "Rate limiting"), 2026-08. A wrong key is a 422
there; ours is a 401, which no client takes for a mistake in its query. The headers of limits have two windows each: a
short one, and the month's quota, in which 0 means that there is none.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from metering.errors import Reason, Refused
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
from routes.counting import json_of, object_of

ACCOUNT_CODES = frozenset(
    {
        *("OPTION_NOT_IN_PLAN", "QUOTA_LIMITED", "RESOURCE_NOT_ALLOWED"),
        *("SUBSCRIPTION_NOT_FOUND", "SUBSCRIPTION_TOKEN_INVALID"),
    }
)
"""Codes about our key, its product or its month, whatever the status."""
KEY_HEADER = "x-subscription-token"
SHOWN_OF_META = ("errors",)
"""What of an error's `meta` is about the request. The rest is the account's plan, rates and quotas."""
ACCOUNT_FACT = re.compile(
    rb'\\*"(?:plan|rate_limit|rate_current|quota_limit|quota_current)\\*"\s*:', re.IGNORECASE
)
"""A key of that rest, wherever it stands: also in a text, whose quotes are escaped."""

_CODES = {
    Reason.UNAUTHENTICATED: "SUBSCRIPTION_TOKEN_INVALID",
    Reason.UNKNOWN_OPERATION: "RESOURCE_NOT_FOUND",
    Reason.OBJECT_NOT_FOUND: "RESOURCE_NOT_FOUND",
    Reason.MODEL_UNAVAILABLE: "RESOURCE_NOT_FOUND",
    Reason.FORBIDDEN: "RESOURCE_NOT_ALLOWED",
    Reason.BAD_REQUEST: "VALIDATION",
    Reason.TOO_LARGE: "VALIDATION",
    Reason.HEAD_TOO_LARGE: "VALIDATION",
    Reason.WEBSOCKET_UNAVAILABLE: "VALIDATION",
    Reason.BUDGET_EXHAUSTED: "QUOTA_LIMITED",
}
_BY_STATUS = {TOO_MANY_REQUESTS: "RATE_LIMITED"}
_SECONDS_PER_DAY, _WINDOW_S = 86_400, 60
_WINDOWS_S = {"day": _SECONDS_PER_DAY, "month": 31 * _SECONDS_PER_DAY}
"""As the vendor has it: its month's window is 31 days long, whatever the month."""


class BraveDialect:
    """Errors and limits as Brave's clients know them."""

    @property
    def stream_comment(self) -> bytes | None:
        return b": waiting\n\n"

    def refusal(self, refused: Refused, request_id: str) -> Rendered:
        headers = [(b"content-type", b"application/json"), *retry_headers(refused)]
        return Rendered(STATUS[refused.reason], headers, orjson.dumps(_error_of(refused, request_id)))

    def stream_error(self, refused: Refused, request_id: str) -> bytes:
        """With a `message` too: OpenAI's SDKs, by which Answers are read, show that."""
        answer = _error_of(refused, request_id)
        return _event({**answer, "error": {**answer["error"], "message": refused.message}})

    def stream_error_from(self, status: int, body: bytes, request_id: str) -> bytes:
        """The vendor's own words where it sent its own shape; else its status in this shape."""
        shown = object_of(self.shown_error(body) or body)
        error = shown.get("error")
        if isinstance(error, dict) and isinstance(error.get("detail"), str):
            return _event({**shown, "error": {**error, "message": error["detail"]}})
        message = f"The vendor answered with HTTP {status}."
        answer = _error(status, _BY_STATUS.get(status, "INTERNAL"), message, request_id)
        return _event({**answer, "error": {**answer["error"], "message": message}})

    def account_problem(self, status: int, body: bytes, headers: Headers) -> Refused | None:
        """401, 402, 403, a code about the key or its plan, and a 429 are about our account; all else is the
        request's own, or the vendor's."""
        error = _error_in(body)
        if status in ACCOUNT_STATUSES or error.get("code") in ACCOUNT_CODES or _misses_key(error):
            return account_refused(status)
        return account_busy(headers) if status == TOO_MANY_REQUESTS else None

    def shown_error(self, body: bytes) -> bytes | None:
        """Without what its `meta` says of the account; of an error that says it elsewhere, or is no JSON and may,
        nothing is shown."""
        answer = json_of(body)
        if not isinstance(answer, dict):
            return _UNSHOWN if ACCOUNT_FACT.search(body) else None
        error = answer.get("error")
        meta = error.get("meta") if isinstance(error, dict) else None
        if isinstance(meta, dict) and not set(meta) <= set(SHOWN_OF_META):
            shown = {name: meta[name] for name in SHOWN_OF_META if name in meta}
            answer = {**answer, "error": {**answer["error"], "meta": shown}}
        elif not ACCOUNT_FACT.search(body):
            return None
        told = orjson.dumps(answer)  # of a key that stood twice, what was read is all that there is now
        return _UNSHOWN if ACCOUNT_FACT.search(told) else told

    def limit_headers(self, standing: Standing, now_ms: int) -> Headers:
        requests = standing.requests
        limit, policy = b"%d" % requests.limit, b"%d;w=%d" % (requests.limit, _WINDOW_S)
        remaining, reset = b"%d" % requests.remaining, b"%d" % _seconds_to(requests.reset_ms, now_ms)
        for quota in standing.quotas:
            limit += b", %d" % quota.limit
            policy += b", %d;w=%d" % (quota.limit, _WINDOWS_S[quota.period])
            remaining += b", %d" % quota.remaining
            reset += b", %d" % _seconds_to(quota.reset_ms, now_ms)
        return [
            (b"x-ratelimit-limit", limit),
            (b"x-ratelimit-policy", policy),
            (b"x-ratelimit-remaining", remaining),
            (b"x-ratelimit-reset", reset),
        ]


def _seconds_to(at_ms: int, now_ms: int) -> int:
    return max(0, -((now_ms - at_ms) // 1000))


def _error_of(refused: Refused, request_id: str) -> dict[str, Any]:
    status = STATUS[refused.reason]
    code = _CODES.get(refused.reason) or _BY_STATUS.get(status, "INTERNAL")
    return _error(status, code, refused.message, request_id)


def _error(status: int, code: str, detail: str, request_id: str) -> dict[str, Any]:
    error = {"id": request_id, "status": status, "code": code, "detail": detail, "meta": {}}
    return {"type": "ErrorResponse", "error": error}


_UNSHOWN = orjson.dumps(
    {
        "type": "ErrorResponse",
        "error": {
            "code": "INTERNAL",
            "detail": "The vendor answered with an error that cannot be shown.",
            "meta": {},
        },
    }
)


def _event(answer: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(answer) + b"\n\n"


def _error_in(body: bytes) -> Mapping[str, Any]:
    error = object_of(body).get("error")
    return error if isinstance(error, dict) else {}


def _misses_key(error: Mapping[str, Any]) -> bool:
    """A validation error about the header of the key: it was missing, or of a wrong shape."""
    meta = error.get("meta")
    errors = meta.get("errors") if isinstance(meta, dict) else None
    return any(
        isinstance(one, dict)
        and isinstance(one.get("loc"), list)
        and any(isinstance(part, str) and part.lower() == KEY_HEADER for part in one["loc"])
        for one in (errors if isinstance(errors, list) else ())
    )
