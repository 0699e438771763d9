"""One request to the simulated Browserbase: what it asks, and how its answer is put together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import orjson

from simulators import browserbase_errors as errors
from simulators import stateful, vendor
from simulators.behaviour import JSON_TYPE, Raw
from simulators.browserbase_behaviour import Behaviour, ReportedUsage
from simulators.script import Framing, Ready, Script, head
from simulators.server import ReceivedRequest

CREATED, EMPTY = 201, 204
PATH_FETCH = "/v1/fetch"


@dataclass(frozen=True, slots=True)
class Given:
    """What an endpoint answers."""

    body: bytes = b""
    status: int = EMPTY
    content_type: str = JSON_TYPE
    headers: tuple[tuple[str, str], ...] = ()


def given(value: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Given:
    """A value as JSON."""
    return Given(orjson.dumps(value), status, headers=headers)


@dataclass(slots=True)
class Call:
    """One request on its path. What it caused, endpoints write into `usage` and `object_id`."""

    request: ReceivedRequest
    ids: Mapping[str, str]
    usage: ReportedUsage | None = None
    object_id: str = ""

    @property
    def tag(self) -> str:
        return self.request.header(b"x-request-tag").decode("latin-1")

    def fields(self) -> dict[str, Any]:
        """The body's JSON object; an empty body is an empty one. Raises RefusedError."""
        if not self.request.body:
            return {}
        try:
            fields = orjson.loads(self.request.body)
        except orjson.JSONDecodeError as error:
            raise errors.invalid(
                "Body is not valid JSON but content-type is set to 'application/json'"
            ) from error
        if not isinstance(fields, dict):
            raise errors.invalid("body must be object")
        return fields

    def integer(self, name: str, default: int, *, least: int, most: int) -> int:
        """A parameter of the query. Raises RefusedError."""
        text = self.request.query.get(name, str(default))
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise errors.invalid(f"querystring/{name} must be >= {least} and <= {most}")
        return int(text)


Handler = Callable[[Call], Given]
"""Does the work and returns the answer. Raises RefusedError."""


@dataclass(frozen=True, slots=True)
class Answered(vendor.Answered):
    """What one answer to a billable request says. `message_id` is the id of the session, fetch or search."""

    usage: ReportedUsage | None


class Turn(stateful.Turn[Behaviour]):
    """One request with its behaviour: builds the answer."""

    @property
    def request_id(self) -> str:
        return f"req-{self.request.number:08x}"

    @classmethod
    def headers(cls, content_type: str, request_id: str) -> tuple[tuple[str, str], ...]:
        """What heads the vendor sends is not known; these are usual ones, and a date where an endpoint answers."""
        return ("Content-Type", content_type), ("x-request-id", request_id)

    def error_body(self) -> bytes:
        behaviour = self.behaviour
        body: dict[str, Any] = {
            "statusCode": behaviour.status,
            "error": behaviour.error_type or HTTPStatus(behaviour.status).phrase,
            "message": behaviour.error_message,
        }
        if self.request.path == PATH_FETCH:
            body["id"] = self.request_id
        return orjson.dumps(body)

    def error_event(self) -> bytes:
        """The vendor streams nothing."""
        return self.error_body()

    def give(self, answer: Given, now_ms: int) -> Script | Ready:
        """The endpoint's answer, unless the behaviour has something else to say. `now_ms` is the account's time."""
        if not self.is_ordinary:
            return self.json(answer.body)
        date = ("Date", formatdate(now_ms // 1000, usegmt=True))
        headers = (date, *answer.headers, *self.behaviour.headers)
        self.behaviour = replace(self.behaviour, status=answer.status, headers=headers)
        if answer.status == EMPTY and self.behaviour.is_burst:
            # RFC 9110 section 8.6: no content-length here.
            return Ready(head(EMPTY, (*self.headers(JSON_TYPE, self.request_id), *headers)), self.reports)
        if answer.content_type != JSON_TYPE:
            raw = Raw(answer.body, answer.content_type, framing=Framing.LENGTH)
            self.behaviour = replace(self.behaviour, raw=raw)
        return self.json(answer.body)

    def report(self, call: Call) -> None:
        if call.usage is not None:
            self.reports = Answered(
                number=self.request.number,
                tag=call.tag,
                request_id=self.request_id,
                message_id=call.object_id,
                model="",
                is_streaming=False,
                status=self.behaviour.status,
                usage=call.usage,
            )
