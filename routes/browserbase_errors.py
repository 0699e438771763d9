"""How Browserbase speaks of errors, so that its SDKs raise their own classes and obey our retry advice.

Shapes and SDK reactions: its OpenAPI document and its SDKs (browserbase 1.22.0, @browserbasehq/sdk 2.21.0), 2026-11. Both
repeat 408, 409, 429 and 5xx twice, wait a `retry-after` of at most a minute, and repeat nothing that says
`x-should-retry: false`. They send no key of idempotency: a creation that is repeated makes a second session.
"""

import re
from http import HTTPStatus

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

ABOUT_REQUESTS = frozenset({400, 404, 410, 415, 422})
"""Statuses whose message is about the request itself, but for ids and totals of the account."""
_ID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE)
SAYS_TOO_MUCH = re.compile(
    r"\b(?:project|organi[sz]ation|plan|limit|concurrent|currently|billing)\b", re.IGNORECASE
)
"""What stands in a message that is about more than the request."""


class BrowserbaseDialect:
    """Errors and limits as Browserbase's SDKs know them."""

    @property
    def stream_comment(self) -> bytes | None:
        return None

    def refusal(self, refused: Refused, request_id: str) -> Rendered:  # noqa: ARG002 - it stands in the head
        headers = [(b"content-type", b"application/json"), *_advice(refused)]
        return Rendered(STATUS[refused.reason], headers, _error(STATUS[refused.reason], refused.message))

    def stream_error(self, refused: Refused, request_id: str) -> bytes:  # noqa: ARG002 - nothing is streamed
        return _error(STATUS[refused.reason], refused.message)

    def stream_error_from(self, status: int, body: bytes, request_id: str) -> bytes:  # noqa: ARG002 - as above
        return _error(status, f"The vendor answered with HTTP {status}.")

    def account_problem(self, status: int, body: bytes, headers: Headers) -> Refused | None:  # noqa: ARG002 - the status says it
        """Our key, what our plan at the vendor includes, and how much of the account's sessions and rate is used."""
        if status in ACCOUNT_STATUSES:
            return account_refused(status)
        return account_busy(headers) if status == TOO_MANY_REQUESTS else None

    def shown_error(self, body: bytes) -> bytes | None:
        """The status; and the message where it is about the request, without ids, which may be the account's."""
        error = object_of(body)
        if not error:
            return None
        status, message = error.get("statusCode"), error.get("message")
        if status not in ABOUT_REQUESTS or not isinstance(message, str) or SAYS_TOO_MUCH.search(message):
            message = "The vendor refused the request."
        return _error(status if isinstance(status, int) else 500, _ID.sub("...", message))

    def limit_headers(self, standing: Standing, now_ms: int) -> Headers:
        """As the vendor's own: the reset in seconds from now."""
        requests = standing.requests
        return [
            (b"x-ratelimit-limit", b"%d" % requests.limit),
            (b"x-ratelimit-remaining", b"%d" % requests.remaining),
            (b"x-ratelimit-reset", b"%d" % max(0, -((now_ms - requests.reset_ms) // 1000))),
        ]


def _advice(refused: Refused) -> Headers:
    """What runs already ends when its user ends it: to ask again does not help."""
    if refused.reason is Reason.TOO_MANY_CONCURRENT and refused.retry_after_s is None:
        return [(b"x-should-retry", b"false")]
    return retry_headers(refused)


def _error(status: int, message: str) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Error"
    return orjson.dumps({"statusCode": status, "error": phrase, "message": message})
