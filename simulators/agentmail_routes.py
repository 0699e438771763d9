"""The paths of AgentMail's API, and what a request to one of them carries.

A message id may hold slashes: the SDK for Python sends them as they are, the one for JavaScript encodes them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from simulators import agentmail_errors as errors
from simulators import paths
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


Route = paths.Route[Handler]


def routes(table: Mapping[str, Handler], *prefixes: str) -> list[Route]:
    """Routes of `METHOD /path/{parameter}`, behind each of the prefixes; the first that matches is meant."""
    return paths.routes(table, *(PREFIX + prefix for prefix in prefixes or ("",)), slashed=_SLASHED)
