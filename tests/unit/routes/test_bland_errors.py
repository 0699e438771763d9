"""What is shown of Bland's errors, and which are the operator's."""

from typing import Any

import orjson
import pytest

from metering.errors import Reason, Refused
from routes.bland_answers import without_account
from routes.bland_errors import BlandDialect

DIALECT = BlandDialect()


def error(message: str, *errors: Any) -> bytes:
    return orjson.dumps({"status": "error", "message": message, "errors": list(errors)})


def test_a_refusal_is_in_the_vendors_shapes() -> None:
    plain = DIALECT.refusal(Refused(Reason.BAD_REQUEST, "no"), "req_1")
    assert (plain.status, orjson.loads(plain.body)) == (
        400,
        {"status": "error", "message": "no", "errors": []},
    )
    unknown = DIALECT.refusal(Refused(Reason.UNAUTHENTICATED, "who?"), "req_1")
    assert orjson.loads(unknown.body) == {
        "data": None,
        "errors": [{"error": "AUTH_FAILURE", "message": "who?"}],
    }


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, b"", Reason.UPSTREAM_ACCOUNT),
        (402, error("Insufficient balance."), Reason.UPSTREAM_ACCOUNT),
        (403, b"", Reason.UPSTREAM_ACCOUNT),
        (429, error("Rate limit exceeded"), Reason.UPSTREAM_BUSY),
        (429, error("Number +13105550111 was called within the last 10 seconds"), Reason.UPSTREAM_BUSY),
        (429, error("Number +13105550111 is blacklisted"), None),
        (400, error("Invalid parameters"), None),
        (404, error("Call not found"), None),
    ],
)
def test_what_is_about_the_account_is_the_operators(status: int, body: bytes, reason: Reason | None) -> None:
    problem = DIALECT.account_problem(status, body, [])
    assert (None if problem is None else problem.reason) == reason


def test_what_is_about_the_request_is_shown_without_what_is_the_accounts() -> None:
    told = error(
        "Invalid parameters",
        "phone_number: must be a valid phone number",
        "Account ops@platform.example of org_7f3c",
        "+13125550199 is blocked",
        {"no": "text"},
    )
    assert orjson.loads(DIALECT.shown_error(told) or b"") == {
        "status": "error",
        "message": "Invalid parameters",
        "errors": ["phone_number: must be a valid phone number", "... is blocked"],
    }
    balance = orjson.loads(DIALECT.shown_error(error("Your plan has no credits")) or b"")
    assert balance["message"] == "The vendor refused the request."
    assert DIALECT.shown_error(b"<html>") is None


def test_an_envelope_stays_one() -> None:
    body = orjson.dumps({"data": None, "errors": [{"error": "NOPE", "message": "of org_1", "more": 1}]})
    assert orjson.loads(DIALECT.shown_error(body) or b"") == {
        "data": None,
        "errors": [{"error": "NOPE", "message": "The vendor refused the request."}],
    }


def test_answers_do_not_say_whose_account_it_is() -> None:
    plain = b'{ "call_id": "c1", "summary": "user_id is \\"user_id\\"" }'
    assert orjson.loads(without_account(plain, None)) == orjson.loads(plain)  # type: ignore[arg-type]
    body = orjson.dumps({"data": [{"call_id": "c1", "user_id": "org_1"}], "webhook": "https://us.example"})
    assert without_account(body, None) == b'{"data":[{"call_id":"c1"}]}'  # type: ignore[arg-type]
