"""How Google speaks of errors, so that its SDKs raise their own classes with `.code`, `.status` and `.message`.

Shapes: Google's error model (`google.rpc.Status` as JSON, AIP-193) and google-genai 3.4.0 (`errors.py`),
2026-11. The SDKs do not retry by default. A line that is no event (a comment) makes google-genai raise in the
middle of a stream, so nothing is ever written into a silent one. Inside a stream Google writes its error as a bare
object among the events; ours is an event, as agents (OpenClaw 2026.9.6) read a bare one only where the stream ends
cleanly after it, which one that broke off never does.
"""

from collections.abc import Iterator, Mapping
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

ACCOUNT_REASONS = frozenset(
    {
        "API_KEY_EXPIRED",
        "API_KEY_INVALID",
        "API_KEY_SERVICE_BLOCKED",
        "BILLING_DISABLED",
        "CONSUMER_INVALID",
        "CONSUMER_SUSPENDED",
        "SERVICE_DISABLED",
        "USER_PROJECT_DENIED",
    }
)
"""`google.rpc.ErrorInfo.reason` of errors about our key or its project, whatever their status: an invalid key
is a 400 here (google/api/error_reason.proto)."""
ACCOUNT_PHRASES = ("api key", "billing", "location is not supported")
"""Words of a 400 FAILED_PRECONDITION or INVALID_ARGUMENT about the account ("Troubleshooting", 2026-11)."""
MAYBE_ABOUT_ACCOUNT = 400
RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"

_STATUS_OF = {Reason.BUDGET_EXHAUSTED: 429}
"""Where Gemini has no status of that number: 402 is unknown there."""
_NAME_OF = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    426: "FAILED_PRECONDITION",
    429: "RESOURCE_EXHAUSTED",
    431: "INVALID_ARGUMENT",
    500: "INTERNAL",
    502: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""google.rpc.Code by HTTP status."""


class GeminiDialect:
    """Errors and limits as Gemini's SDKs know them."""

    @property
    def stream_comment(self) -> bytes | None:
        return None

    def refusal(self, refused: Refused, request_id: str) -> Rendered:  # noqa: ARG002 - the protocol's; it stands in the head of every answer
        headers = [(b"content-type", b"application/json; charset=UTF-8"), *retry_headers(refused)]
        return Rendered(_status_of(refused), headers, _error_of(refused))

    def stream_error(self, refused: Refused, request_id: str) -> bytes:  # noqa: ARG002 - the protocol's
        return _event(_error_of(refused))

    def stream_error_from(self, status: int, body: bytes, request_id: str) -> bytes:  # noqa: ARG002 - the protocol's
        """The vendor's own words where it sent its own shape; else its status in this shape."""
        error = error_in(body)
        if error:
            return _event(orjson.dumps({"error": error}))
        return _event(_error(status, f"The vendor answered with HTTP {status}."))

    def account_problem(self, status: int, body: bytes, headers: Headers) -> Refused | None:
        """401, 402, 403 and 429 are about our account, and so is a 400 about the key, billing or where we run; all
        else is the request's own, or the vendor's."""
        error = error_in(body)
        if status == TOO_MANY_REQUESTS:
            delay = _retry_delay(error)
            return account_busy([(b"retry-after", delay)] if delay else headers)
        if status in ACCOUNT_STATUSES or _is_about_account(status, error):
            return account_refused(status)
        return None

    def shown_error(self, body: bytes) -> bytes | None:  # noqa: ARG002 - the protocol's
        return None

    def limit_headers(self, standing: Standing, now_ms: int) -> Headers:  # noqa: ARG002 - the protocol's
        """Gemini has none of its own."""
        return []


def error_in(body: bytes) -> Mapping[str, Any]:
    """The `error` of a vendor's answer: an object, or a list of one where a list was streamed. Else empty."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if isinstance(answer, list):
        answer = answer[0] if answer else None
    error = answer.get("error") if isinstance(answer, dict) else None
    return error if isinstance(error, dict) else {}


def _status_of(refused: Refused) -> int:
    return _STATUS_OF.get(refused.reason, STATUS[refused.reason])


def _error_of(refused: Refused) -> bytes:
    """With the time to wait, where the head names one, in the details too: it is there that clients look."""
    delays = [value.decode() for name, value in retry_headers(refused) if name == b"retry-after"]
    details = [{"@type": RETRY_INFO, "retryDelay": f"{delay}s"} for delay in delays]
    return _error(_status_of(refused), refused.message, details)


def _error(status: int, message: str, details: list[dict[str, str]] | None = None) -> bytes:
    name = _NAME_OF.get(status, "UNKNOWN")
    error = {"code": status, "message": message, "status": name, "details": details or []}
    return orjson.dumps({"error": error})


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\r\n\r\n"


def _is_about_account(status: int, error: Mapping[str, Any]) -> bool:
    if any(detail.get("reason") in ACCOUNT_REASONS for detail in _details(error)):
        return True
    message = str(error.get("message")).lower()
    return status == MAYBE_ABOUT_ACCOUNT and any(phrase in message for phrase in ACCOUNT_PHRASES)


def _retry_delay(error: Mapping[str, Any]) -> bytes:
    """Seconds that the vendor asks to wait, b"" when it says none: `"retryDelay": "34.4s"`."""
    for detail in _details(error):
        delay = detail.get("retryDelay")
        if detail.get("@type") == RETRY_INFO and isinstance(delay, str):
            return delay.removesuffix("s").encode()
    return b""


def _details(error: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict):
            yield detail
