"""The paths of AgentMail's API, and what a request to one of them carries.

Ids are percent-decoded once, before the path is matched: the SDK for Python sends a message id with its slashes as they
are, the one for JavaScript encodes them, and both mean the same message.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson

from simulators import agentmail_errors as errors
from simulators.agentmail_lists import Query
from simulators.agentmail_mail import Origin, Sent
from simulators.agentmail_organization import View
from simulators.agentmail_state import Inbox
from simulators.server import ReceivedRequest

PREFIX = "/v0"
REQUEST_BYTES_MAX = 6_000_000
"""The vendor takes requests up to "6 MB"."""
POD, INBOX = "/pods/{pod}", "/inboxes/{inbox}"
_SLASHED = {"message"}
"""Ids that may hold a slash."""
_PARAMETER = re.compile(r"{(\w+)}")


@dataclass(slots=True)
class Call:
    """One request on its path. `view` is what its key may see, narrowed to the pod or inbox of the path."""

    request: ReceivedRequest
    ids: Mapping[str, str]
    view: View
    sent: Sent | None = None
    """The message that it sent, or that an earlier request with its Idempotency-Key had sent."""
    is_repeated: bool = False

    @property
    def query(self) -> Query:
        return Query(self.request.target)

    @property
    def inbox(self) -> Inbox:
        """The inbox of the path."""
        return self.view.inbox(self.ids["inbox"])

    def fields(self) -> dict[str, Any]:
        """The body's JSON object; an empty body is an empty one. Raises RefusedError."""
        if len(self.request.body) > REQUEST_BYTES_MAX:
            raise errors.too_large()
        if not self.request.body:
            return {}
        try:
            fields = orjson.loads(self.request.body)
        except orjson.JSONDecodeError as error:
            raise errors.invalid("Invalid JSON") from error
        if not isinstance(fields, dict):
            raise errors.invalid("Expected object")
        return fields

    def origin(self, via: str) -> Origin:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.request.headers}
        return Origin(
            via=via,
            request_number=self.request.number,
            idempotency_key=headers.get("idempotency-key"),
            headers=headers,
            tag=headers.get("x-request-tag", ""),
        )


Handler = Callable[[Call], dict[str, Any] | None]
"""Does the work and returns the answer; None where the answer has no body. Raises RefusedError."""


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    pattern: re.Pattern[str]
    handler: Handler


def routes(table: Mapping[str, Handler], *prefixes: str) -> list[Route]:
    """Routes of `METHOD /path/{parameter}`, behind each of the prefixes; the first that matches is meant."""
    return [
        Route(line.split()[0], _compiled(prefix + line.split()[1]), handler)
        for prefix in prefixes or ("",)
        for line, handler in table.items()
    ]


def found(table: list[Route], request: ReceivedRequest) -> tuple[Handler, dict[str, str]] | None:
    """What answers a request, and the ids of its path."""
    path = decoded(request.path)
    for route in table:
        match = route.pattern.fullmatch(path) if route.method == request.method else None
        if match is not None:
            return route.handler, match.groupdict()
    return None


def decoded(path: str) -> str:
    """The path percent-decoded once; "" for what is no UTF-8, which no route matches."""
    try:
        return unquote_to_bytes(path.encode("latin-1")).decode()
    except UnicodeDecodeError:
        return ""


def _compiled(template: str) -> re.Pattern[str]:
    return re.compile("".join(_pieces(PREFIX + template)))


def _pieces(template: str) -> Iterator[str]:
    for number, piece in enumerate(_PARAMETER.split(template)):
        if number % 2 == 0:
            yield re.escape(piece)
        else:
            yield f"(?P<{piece}>.+)" if piece in _SLASHED else f"(?P<{piece}>[^/]+)"
