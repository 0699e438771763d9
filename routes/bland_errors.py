"""How Bland speaks of errors.

Shapes: its documentation ("Error codes"), 2026-11: `{status, message, errors}`, and an envelope `{data, errors}` for every 401
and at newer endpoints. It has no SDK that is kept up, so nothing repeats a request by itself.
"""

import re
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
from routes.counting import object_of

UNAUTHORIZED = 401
REFUSED = "The vendor refused the request."
SAME_NUMBER_S = 10.0
"""A number is not dialled twice within so long, whoever of the account's users asks."""
_SAME_NUMBER = re.compile(rb"within the last 10 seconds", re.IGNORECASE)
_BLACKLISTED = re.compile(rb"blacklisted", re.IGNORECASE)
SAYS_TOO_MUCH = re.compile(
    r"\b(?:account|organi[sz]ation|org_\w+|plan|limit|balance|credits?|billing|encrypted_key|user_id|subaccounts?)\b|@",
    re.IGNORECASE,
)
"""What stands in a message that is about more than the request."""
_NAMED = re.compile(
    r"\+?[0-9]{7,15}\b|\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE
)
"""Numbers and ids, which may be another user's."""
MESSAGES_MAX = 20


class BlandDialect:
    """Errors as Bland's callers know them."""

    @property
    def stream_comment(self) -> bytes | None:
        return None

    def refusal(self, refused: Refused, request_id: str) -> Rendered:  # noqa: ARG002 - it stands in the head
        status = STATUS[refused.reason]
        headers = [(b"content-type", b"application/json"), *retry_headers(refused)]
        if status == UNAUTHORIZED:
            return Rendered(status, headers, _envelope("AUTH_FAILURE", refused.message))
        return Rendered(status, headers, _error(refused.message, []))

    def stream_error(self, refused: Refused, request_id: str) -> bytes:  # noqa: ARG002 - nothing is streamed
        return _error(refused.message, [])

    def stream_error_from(self, status: int, body: bytes, request_id: str) -> bytes:  # noqa: ARG002 - as above
        return _error(f"The vendor answered with HTTP {status}.", [])

    def account_problem(self, status: int, body: bytes, headers: Headers) -> Refused | None:
        """Our key, our balance, what our plan includes, and how much of the account's calls is used. A number that is dialled too
        soon again may have been by anybody; one that is blacklisted is the request's own matter."""
        if status in ACCOUNT_STATUSES:
            return account_refused(status)
        if status != TOO_MANY_REQUESTS or _BLACKLISTED.search(body):
            return None
        if _SAME_NUMBER.search(body):
            return Refused(
                Reason.UPSTREAM_BUSY,
                "The number was called a moment ago. Please try again shortly.",
                retry_after_s=SAME_NUMBER_S,
                facts={"upstream_status": status},
            )
        return account_busy(headers)

    def shown_error(self, body: bytes) -> bytes | None:
        """What of its messages is about the request, without numbers and ids."""
        error = object_of(body)
        if not error:
            return None
        told = error.get("errors")
        told = told[:MESSAGES_MAX] if isinstance(told, list) else []
        if "data" in error:
            first = told[0] if told and isinstance(told[0], dict) else {}
            code = first.get("error")
            return _envelope(
                code if isinstance(code, str) else "ERROR", _shown(first.get("message")) or REFUSED
            )
        return _error(_shown(error.get("message")) or REFUSED, [one for one in map(_shown, told) if one])

    def limit_headers(self, standing: Standing, now_ms: int) -> Headers:  # noqa: ARG002 - the vendor has none
        return []


def _shown(message: Any) -> str | None:
    if not isinstance(message, str) or SAYS_TOO_MUCH.search(message):
        return None
    return _NAMED.sub("...", message)


def _error(message: str, errors: list[str]) -> bytes:
    return orjson.dumps({"status": "error", "message": message, "errors": errors})


def _envelope(code: str, message: str) -> bytes:
    return orjson.dumps({"data": None, "errors": [{"error": code, "message": message}]})
