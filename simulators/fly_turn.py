"""One request to the simulated Fly: what it asks, and how its answer is put together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

import orjson

from simulators import fly_errors as errors
from simulators import stateful
from simulators.behaviour import JSON_TYPE
from simulators.fly_behaviour import UNKNOWN, Behaviour
from simulators.fly_organization import Wait
from simulators.script import Ready, Script, head
from simulators.server import ReceivedRequest

CREATED, ACCEPTED, EMPTY = 201, 202, 204
NONCE = b"fly-machine-lease-nonce"


@dataclass(frozen=True, slots=True)
class Given:
    """What an endpoint answers."""

    body: bytes = b""
    status: int = 200


def given(value: Any, status: int = 200) -> Given:
    """A value as JSON."""
    return Given(orjson.dumps(value), status)


OK = given({"ok": True})


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its path."""

    request: ReceivedRequest
    ids: Mapping[str, str]

    @property
    def nonce(self) -> str:
        return self.request.header(NONCE).decode("latin-1")

    def fields(self) -> dict[str, Any]:
        """The body's JSON object; an empty body is an empty one. Raises RefusedError."""
        try:
            fields = orjson.loads(self.request.body or b"{}")
        except orjson.JSONDecodeError as error:
            raise errors.invalid("the body is not valid JSON") from error
        if not isinstance(fields, dict):
            raise errors.invalid("the body is not an object")
        return fields

    def asked(self, name: str, default: str = "") -> str:
        """A parameter of the query."""
        return self.request.query.get(name, default)

    def is_asked(self, name: str) -> bool:
        """Whether a parameter of the query says true."""
        return self.asked(name) == "true"

    def asked_list(self, name: str) -> list[str]:
        """A parameter that may come several times, or hold several values between commas."""
        pairs = parse_qsl(self.request.target.partition("?")[2])
        return [part for key, value in pairs if key == name for part in value.split(",") if part]

    def integer(self, name: str, default: int, *, least: int, most: int) -> int:
        """A parameter of the query. Raises RefusedError."""
        text = self.asked(name, str(default))
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise errors.invalid(f"{name} must be within [{least}, {most}]")
        return int(text)


Handler = Callable[[Call], Given | Wait]
"""Does the work and returns the answer, or what it waits for. Raises RefusedError."""


class Turn(stateful.Turn[Behaviour]):
    """One request with its behaviour: builds the answer."""

    @property
    def request_id(self) -> str:
        return f"01SIMULATED{self.request.number:015d}-sjc"

    @classmethod
    def headers(cls, content_type: str, request_id: str) -> tuple[tuple[str, str], ...]:
        return ("Content-Type", content_type), ("fly-request-id", request_id)

    def error_body(self) -> bytes:
        behaviour = self.behaviour
        if behaviour.body is not None:
            return behaviour.body
        status = behaviour.error_type or UNKNOWN
        return orjson.dumps({"error": behaviour.error_message, "status": status})

    def error_event(self) -> bytes:
        """The vendor streams nothing."""
        return self.error_body()

    def give(self, answer: Given) -> Script | Ready:
        """The endpoint's answer, unless the behaviour has something else to say."""
        if not self.is_ordinary:
            return self.json(answer.body)
        self.behaviour = replace(self.behaviour, status=answer.status)
        if answer.status == EMPTY and self.behaviour.is_burst:
            # RFC 9110 section 8.6: no content-length here.
            return Ready(head(EMPTY, self.headers(JSON_TYPE, self.request_id)))
        return self.json(answer.body)
