"""One request to the simulated AgentMail with its behaviour: how its answer is put together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import Any

import orjson

from simulators import stateful, vendor
from simulators.agentmail_behaviour import CODES, DOCS_URL, NAMES, Behaviour, ReportedUsage
from simulators.agentmail_routes import Call
from simulators.script import Ready, Script

DELETED_STATUS = 202
"""With an empty body. That a deletion is a 2xx without content is the SDK's; which one is a guess."""


@dataclass(frozen=True, slots=True)
class Answered(vendor.Answered):
    """What one answer to a request that sends says. `message_id` is that of the message; a repeated request, whose
    Idempotency-Key was known, has no usage."""

    usage: ReportedUsage | None


class Turn(stateful.Turn[Behaviour]):
    """One request with its behaviour: builds the answer."""

    @property
    def request_id(self) -> str:
        return f"req_{self.request.number:012d}"

    @classmethod
    def headers(cls, content_type: str, request_id: str) -> tuple[tuple[str, str], ...]:
        """What heads the vendor sends is not known; these are usual ones."""
        return (
            ("Date", formatdate(0, usegmt=True)),
            ("Content-Type", content_type),
            ("X-Request-Id", request_id),
        )

    def error_body(self) -> bytes:
        behaviour = self.behaviour
        code = behaviour.error_type or CODES.get(behaviour.status, "internal_error")
        body: dict[str, Any] = {
            "name": NAMES.get(code, "Error"),
            "code": code,
            "message": behaviour.error_message,
            "docs": f"{DOCS_URL}#{code}",
        }
        if behaviour.fix is not None:
            body["fix"] = behaviour.fix
        if behaviour.status == 400:  # noqa: PLR2004 - the one status whose body lists errors
            body["errors"] = list(behaviour.errors)
        return orjson.dumps(body)

    def error_event(self) -> bytes:
        """The vendor streams nothing."""
        return self.error_body()

    def give(self, answer: Mapping[str, Any] | None) -> Script | Ready:
        """The endpoint's answer, unless the behaviour has something else to say."""
        if answer is None and self.is_ordinary:
            self.behaviour = replace(self.behaviour, status=DELETED_STATUS)
        return self.json(b"" if answer is None else orjson.dumps(answer))

    def report(self, call: Call) -> None:
        if call.sent is not None:
            self.reports = Answered(
                number=self.request.number,
                tag=call.origin("").tag,
                request_id=self.request_id,
                message_id=call.sent.message_id,
                model="",
                is_streaming=False,
                status=self.behaviour.status,
                usage=None if call.is_repeated else call.sent.usage,
            )
