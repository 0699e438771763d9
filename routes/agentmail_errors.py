"""How AgentMail speaks of errors, so that its SDKs raise their own classes and obey our retry advice.

Shapes and SDK reactions: AgentMail's documentation ("Errors") and its SDKs (Python 2.0.18, JavaScript 0.5.27), 2026-11.
Both repeat 408, 429 and 5xx twice, Python's 409 too, and wait a `retry-after`; neither knows `x-should-retry`. 402 and 403
are asked once.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from metering.errors import Refused
from metering.rate_state import Standing
from proxy.errors import STATUS, TOO_MANY_REQUESTS, account_busy, account_refused, retry_headers
from proxy.surface import Headers, Rendered
from routes.counting import object_of

ACCOUNT_CODES = frozenset(
    {"missing_authorization", "unknown_api_key", "forbidden", "limit_exceeded", "payment_required"}
)
"""Codes about our key or what our plan at the vendor includes."""
FORBIDDEN_TO_USERS = frozenset({"message_rejected", "resource_taken", "domain_not_verified", "cannot_delete"})
"""Codes of a 403 about the request. All other 403 are about our key."""
UNAUTHORIZED, PAYMENT_REQUIRED, FORBIDDEN = 401, 402, 403
SHOWN_AS_SAID = frozenset({"bad_request", "validation_error", "unprocessable"})
"""Codes whose message is about the request itself."""
SAYS_TOO_MUCH = re.compile(r"org_|organi[sz]ation|\bplan\b|\bpod\b|@|\bu[0-9a-f]{26}-", re.IGNORECASE)
"""What stands in a message that is about more: the account, addresses, a user's names within it."""

_NAMES = {
    400: ("ValidationError", "bad_request"),
    401: ("UnauthorizedError", "unknown_api_key"),
    402: ("PaymentRequiredError", "usage_limit_reached"),
    403: ("ForbiddenError", "forbidden"),
    404: ("NotFoundError", "not_found"),
    409: ("ConflictError", "conflict"),
    413: ("ValidationError", "bad_request"),
    422: ("UnprocessableError", "unprocessable"),
    426: ("ValidationError", "bad_request"),
    429: ("RateLimitError", "rate_limit_exceeded"),
}
_ACCOUNTS_OWN = re.compile(
    r"\b(?:org|pod|key|am|dom|whk)_\w+|[^\s<>\"',;]+@[^\s<>\"',;]+|\b(?:free|developer|startup|enterprise)\s+plan\b",
    re.IGNORECASE,
)
_OTHER = ("InternalServerError", "internal_error")
_WORDS = {
    "not_found": "Not found.",
    "conflict": "The request conflicts with an earlier one.",
    "resource_taken": "This name is taken.",
    "message_rejected": "The message was rejected: its content, or a recipient that is blocked.",
    "domain_not_verified": "This domain cannot be used.",
}
"""Of errors whose own message may name what else the account holds."""


_OUR_ACCOUNT = frozenset(
    {"UnauthorizedError", "ForbiddenError", "PaymentRequiredError", "LimitExceededError"}
)
"""Names of errors on its websocket, where there is no code, that are about our key or plan: a subscription names nothing
that a user could be forbidden."""
_WORDS_BY_NAME = {"NotFoundError": _WORDS["not_found"]}
_SHOWN_BY_NAME = frozenset({"ValidationError", "UnprocessableError"})


def socket_error(refused: Refused) -> bytes:
    """A refusal as a message on its websocket."""
    name, _ = _NAMES.get(STATUS[refused.reason], _OTHER)
    return orjson.dumps({"type": "error", "name": name, "message": refused.message})


def shown_socket_error(message: Mapping[str, Any]) -> bytes | None:
    """Its own: as `shown_error`, by the name alone."""
    name, words = str(message.get("name")), str(message.get("message"))
    if name in _OUR_ACCOUNT:
        return None
    if name not in _SHOWN_BY_NAME or SAYS_TOO_MUCH.search(words):
        words = _WORDS_BY_NAME.get(name, "The vendor refused the request.")
    return orjson.dumps({"type": "error", "name": _redacted(name), "message": _redacted(words)})


class AgentMailDialect:
    """Errors and limits as AgentMail's SDKs know them."""

    @property
    def stream_comment(self) -> bytes | None:
        return None

    def refusal(self, refused: Refused, request_id: str) -> Rendered:  # noqa: ARG002 - it stands in the head
        headers = [(b"content-type", b"application/json"), *retry_headers(refused)]
        return Rendered(STATUS[refused.reason], headers, _error(STATUS[refused.reason], refused.message))

    def stream_error(self, refused: Refused, request_id: str) -> bytes:  # noqa: ARG002 - nothing is streamed
        return _error(STATUS[refused.reason], refused.message)

    def stream_error_from(self, status: int, body: bytes, request_id: str) -> bytes:  # noqa: ARG002 - as above
        return _error(status, f"The vendor answered with HTTP {status}.")

    def account_problem(self, status: int, body: bytes, headers: Headers) -> Refused | None:
        """A key that is refused, a plan that includes no more, and the account's rate."""
        code = object_of(body).get("code")
        is_ours = code in ACCOUNT_CODES or (status == FORBIDDEN and code not in FORBIDDEN_TO_USERS)
        if is_ours or status in {UNAUTHORIZED, PAYMENT_REQUIRED}:
            return account_refused(status)
        return account_busy(headers) if status == TOO_MANY_REQUESTS else None

    def shown_error(self, body: bytes) -> bytes | None:
        """Name and code stay. Their `fix` may name what else the account holds, and so may their message, but where it
        is about the request's own content."""
        error = object_of(body)
        if not error:
            return None
        error.pop("fix", None)
        code = error.get("code")
        shown: dict[str, Any] = {name: error[name] for name in ("name", "code", "docs") if name in error}
        if code in SHOWN_AS_SAID and not SAYS_TOO_MUCH.search(str(error)):
            shown |= {name: _redacted(error[name]) for name in ("message", "errors") if name in error}
        else:
            shown["message"] = _WORDS.get(str(code), "The vendor refused the request.")
        return orjson.dumps(shown)

    def limit_headers(self, standing: Standing, now_ms: int) -> Headers:  # noqa: ARG002 - the SDKs read the instant
        """`X-RateLimit-Reset` only where the minute has no request left: its SDKs wait for it after any error that names no
        time, so a failure of the vendor would be tried again after a minute and not after a second."""
        requests = standing.requests
        headers = [
            (b"x-ratelimit-limit", b"%d" % requests.limit),
            (b"x-ratelimit-remaining", b"%d" % requests.remaining),
        ]
        if requests.remaining == 0:
            headers.append((b"x-ratelimit-reset", b"%d" % -(-requests.reset_ms // 1000)))
        return headers


def _redacted(value: Any) -> Any:
    """Without ids of the account, its plan, and addresses, which may be anybody's."""
    if isinstance(value, str):
        return _ACCOUNTS_OWN.sub("...", value)
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    if isinstance(value, dict):
        return {name: _redacted(item) for name, item in value.items()}
    return value


def _error(status: int, message: str) -> bytes:
    name, code = _NAMES.get(status, _OTHER)
    return orjson.dumps({"name": name, "code": code, "message": message})
