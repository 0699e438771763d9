"""One request to the simulated Bland: what it carries, and how its answer is put together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import Any

import orjson

from simulators import bland_errors as errors
from simulators import paths, stateful, vendor
from simulators.behaviour import Raw
from simulators.bland_behaviour import CODES, Behaviour, ReportedUsage
from simulators.bland_call import Origin
from simulators.script import Framing, Ready, Script
from simulators.server import ReceivedRequest

PREFIX = "/v1"
UNAUTHORIZED = 401


@dataclass(frozen=True, slots=True)
class Audio:
    """An answer that is no JSON."""

    content: bytes
    content_type: str


@dataclass(slots=True)
class Request:
    """One request on its path. `made` is the id of the call or conversation that cost something by it, if any did."""

    received: ReceivedRequest
    ids: Mapping[str, str]
    made: str = ""
    usage: ReportedUsage | None = None

    def fields(self) -> dict[str, Any]:
        """The body's JSON object; an empty body is an empty one. Raises RefusedError(400)."""
        try:
            fields = orjson.loads(self.received.body or b"{}")
        except orjson.JSONDecodeError as error:
            raise errors.invalid("The body is not valid JSON") from error
        if not isinstance(fields, dict):
            raise errors.invalid("The body must be an object")
        return fields

    def origin(self) -> Origin:
        received = self.received
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in received.headers}
        return Origin(received.number, headers.get("x-request-tag", ""), headers)


Answer = Mapping[str, Any] | list[Any] | Audio
Handler = Callable[[Request], Answer]
"""Does the work and returns the answer. Raises RefusedError."""
Route = paths.Route[Handler]


@dataclass(frozen=True, slots=True)
class Answered(vendor.Answered):
    """What one answer to a request that dials, texts or analyzes says. `message_id` is the id of the call or the
    conversation; a repeated text, whose idempotency-key was known, has no usage."""

    usage: ReportedUsage | None


class Turn(stateful.Turn[Behaviour]):
    """One request with its behaviour: builds the answer."""

    @property
    def request_id(self) -> str:
        return ""

    @classmethod
    def headers(cls, content_type: str, request_id: str) -> tuple[tuple[str, str], ...]:  # noqa: ARG003 - no id is known of
        return (("Date", formatdate(0, usegmt=True)), ("Content-Type", content_type))

    def error_body(self) -> bytes:
        behaviour = self.behaviour
        status, message = behaviour.status, behaviour.error_message
        if status == UNAUTHORIZED or behaviour.in_envelope:
            code = behaviour.error_type or CODES.get(status, "INTERNAL_SERVER_ERROR")
            return orjson.dumps({"data": None, "errors": [{"error": code, "message": message}]})
        return orjson.dumps({"status": "error", "message": message, "errors": list(behaviour.errors)})

    def error_event(self) -> bytes:
        """The vendor streams nothing."""
        return self.error_body()

    def give(self, answer: Answer) -> Script | Ready:
        """The endpoint's answer, unless the behaviour has something else to say."""
        if not isinstance(answer, Audio):
            return self.json(orjson.dumps(answer))
        if self.is_ordinary:
            raw = Raw(answer.content, answer.content_type, framing=Framing.LENGTH)
            self.behaviour = replace(self.behaviour, raw=raw)
        return self.json(b"")

    def report(self, request: Request) -> None:
        if request.made:
            self.reports = Answered(
                number=self.request.number,
                tag=request.origin().tag,
                request_id=self.request_id,
                message_id=request.made,
                model="",
                is_streaming=False,
                status=self.behaviour.status,
                usage=request.usage,
            )
