"""How OpenAI speaks of errors, so that its SDKs raise their own classes and obey our retry advice.

Shapes and SDK reactions: API docs "Error codes", Python SDK 3.52.0 (`_client.py`, `_base_client.py`,
`_streaming.py`), 2026-11. The SDKs obey `x-should-retry` before the status, and wait a `retry-after` of up to two
minutes; in a stream, any event with an `error` object raises. There is no class for 402: who has spent all gets 429,
as from the vendor, but not its `insufficient_quota`: OpenClaw 2026.9.6 takes that word, as type or as code, for unpaid
bills of the account and locks the key for ten minutes, whatever the message says.
"""

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
from routes.counting import object_of

ACCOUNT_CODES = frozenset(
    {
        *("insufficient_quota", "billing_not_active", "billing_hard_limit_reached"),
        *("access_terminated", "account_deactivated", "invalid_api_key"),
    }
)
"""Codes and types of errors about the account or its key, whatever the status."""

_INVALID = "invalid_request_error"
_SERVER = "server_error"
_SPENT = "usage_limit_reached"
_BY_REASON = {
    Reason.UNAUTHENTICATED: (_INVALID, "invalid_api_key"),
    Reason.MODEL_UNAVAILABLE: (_INVALID, "model_not_found"),
    Reason.BUDGET_EXHAUSTED: (_SPENT, _SPENT),
    Reason.BUDGET_HELD: ("requests", "rate_limit_exceeded"),
    Reason.RATE_LIMITED: ("requests", "rate_limit_exceeded"),
    Reason.TOKENS_RATE_LIMITED: ("tokens", "rate_limit_exceeded"),
    Reason.TOO_MANY_CONCURRENT: ("requests", "rate_limit_exceeded"),
    Reason.UPSTREAM_BUSY: ("requests", "rate_limit_exceeded"),
}
"""Type and code; of all others the type is their status's, and the code is null."""
_SERVER_STATUS = 500
_MS_PER_S, _S_PER_MINUTE, _S_PER_HOUR = 1_000, 60, 3_600


class OpenAIDialect:
    """Errors and limits as OpenAI's text endpoints and its SDKs know them."""

    @property
    def stream_comment(self) -> bytes | None:
        return b": waiting\n\n"

    def refusal(self, refused: Refused, request_id: str) -> Rendered:
        headers = [
            (b"content-type", b"application/json"),
            (b"x-request-id", request_id.encode()),
            *retry_headers(refused),
        ]
        return Rendered(_status_of(refused), headers, _error_of(refused))

    def stream_error(self, refused: Refused, request_id: str) -> bytes:  # noqa: ARG002 - the vendor's errors carry none
        return _event(_error_of(refused))

    def stream_error_from(self, status: int, body: bytes, request_id: str) -> bytes:  # noqa: ARG002 - as above
        """The vendor's own words where it sent its own shape; else its status in this shape."""
        error = object_of(body).get("error")
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            return _event(orjson.dumps({"error": error}))
        kind = _SERVER if status >= _SERVER_STATUS else _INVALID
        return _event(_error(f"The vendor answered with HTTP {status}.", kind))

    def account_problem(self, status: int, body: bytes, headers: Headers) -> Refused | None:
        """401, 402, 403, 429, and any status with a code about the account, are about our account; all else is
        the request's own, or the vendor's (SDKs and agents know how to wait for a 5xx)."""
        if status in ACCOUNT_STATUSES or _is_about_account(body):
            return account_refused(status)
        return account_busy(headers) if status == TOO_MANY_REQUESTS else None

    def shown_error(self, body: bytes) -> bytes | None:  # noqa: ARG002 - the protocol's
        return None

    def limit_headers(self, standing: Standing, now_ms: int) -> Headers:
        requests, tokens = standing.requests, standing.tokens
        return [
            (b"x-ratelimit-limit-requests", b"%d" % requests.limit),
            (b"x-ratelimit-limit-tokens", b"%d" % tokens.limit),
            (b"x-ratelimit-remaining-requests", b"%d" % requests.remaining),
            (b"x-ratelimit-remaining-tokens", b"%d" % tokens.remaining),
            (b"x-ratelimit-reset-requests", duration(max(requests.reset_ms - now_ms, 0)).encode()),
            (b"x-ratelimit-reset-tokens", duration(max(tokens.reset_ms - now_ms, 0)).encode()),
        ]


def duration(ms: int) -> str:
    """A time as the vendor's headers have it: `12ms`, `1.5s`, `6m0s`, `1h0m30s`."""
    if ms < _MS_PER_S:
        return f"{ms}ms"
    seconds = ms / _MS_PER_S
    if seconds < _S_PER_MINUTE:  # nearly always
        return f"{seconds:g}s"
    minutes, seconds = divmod(seconds, _S_PER_MINUTE)
    hours, minutes = divmod(int(minutes), _S_PER_MINUTE)
    return (f"{hours}h" if hours else "") + f"{minutes}m{round(seconds, 3):g}s"


def _status_of(refused: Refused) -> int:
    """The vendor answers 429 to who has spent all: its SDKs have no class for 402."""
    return TOO_MANY_REQUESTS if refused.reason is Reason.BUDGET_EXHAUSTED else STATUS[refused.reason]


def _error_of(refused: Refused) -> bytes:
    """What the facts say of `param` and `code` goes where the vendor has it."""
    by_status = _SERVER if _status_of(refused) >= _SERVER_STATUS else _INVALID
    kind, code = _BY_REASON.get(refused.reason, (by_status, None))
    return _error(
        refused.message,
        kind,
        param=_text(refused.facts.get("param")),
        code=_text(refused.facts.get("code")) or code,
    )


def _error(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _is_about_account(body: bytes) -> bool:
    error = object_of(body).get("error")
    if not isinstance(error, dict):
        return False
    named = (error.get("code"), error.get("type"))
    return any(isinstance(one, str) and one in ACCOUNT_CODES for one in named)
