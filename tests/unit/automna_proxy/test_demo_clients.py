"""How the demo's clients read an answer that is no stream."""

from typing import Any

import orjson
import pytest

from automna_proxy.demo_apis import EMAIL, MESSAGES, Api
from automna_proxy.demo_clients import Request, Seen, StandardLibrary
from simulators.script import Answer, Ready, head
from simulators.server import ReceivedRequest, SimulatorServer, running_in_thread


class Saying(SimulatorServer):
    """Answers everything in the same way."""

    def __init__(self, status: int, fields: dict[str, Any]) -> None:
        super().__init__()
        body = orjson.dumps(fields)
        length = ("content-length", str(len(body)))
        self._answer = Ready(head(status, (("x-automna-request-id", "req_1"), length)) + body)

    def answer(self, request: ReceivedRequest) -> Answer:
        return self._answer


def asked(api: Api, status: int, fields: dict[str, Any]) -> Seen:
    with running_in_thread(Saying(status, fields)) as url:
        return StandardLibrary(url).ask(Request(api, "/", {}), "amp_token", lambda _: True)


@pytest.mark.parametrize(
    ("api", "fields", "told"),
    [
        (MESSAGES, {"error": {"type": "api_error", "message": "Broken."}}, "api_error: Broken."),
        (EMAIL, {"error": "Limit reached", "message": "1 of 1 emails."}, "Limit reached: 1 of 1 emails."),
        (EMAIL, {"error": "to: is required.", "request_id": "req_1"}, "to: is required."),
    ],
)
def test_an_error_is_told_in_the_words_of_its_api(api: Api, fields: dict[str, Any], told: str) -> None:
    assert asked(api, 400, fields) == Seen(400, "req_1", error=told)


def test_a_mail_is_told_by_its_id() -> None:
    seen = asked(EMAIL, 200, {"success": True, "messageId": "<m1@x>", "threadId": "t1", "remaining": 1})
    assert seen == Seen(200, "req_1", "sent as <m1@x>")
