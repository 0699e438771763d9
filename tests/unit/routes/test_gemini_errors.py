"""Gemini's dialect: every refusal as its SDKs expect it, and its own errors about our account turned."""

import json

import pytest

from metering.errors import Reason, Refused
from metering.rate_state import RateState
from proxy.errors import STATUS
from routes.gemini_errors import GeminiDialect, error_in
from tests.support.limits import standing

DIALECT = GeminiDialect()
STATUS_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    426: "FAILED_PRECONDITION",
    429: "RESOURCE_EXHAUSTED",
    431: "INVALID_ARGUMENT",
    500: "INTERNAL",
    502: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def error_of(body: bytes):
    return json.loads(body)["error"]


@pytest.mark.parametrize("reason", Reason)
def test_a_refusal_has_the_vendors_shape_and_the_status_of_its_reason(reason):
    rendered = DIALECT.refusal(Refused(reason, "Why."), "req_1")
    status = 429 if reason is Reason.BUDGET_EXHAUSTED else STATUS[reason]
    assert rendered.status == status
    assert error_of(rendered.body) == {
        "code": status,
        "message": "Why.",
        "status": STATUS_NAMES[status],
        "details": [],
    }
    assert dict(rendered.headers)[b"content-type"] == b"application/json; charset=UTF-8"


def test_a_rate_limit_names_its_time_in_the_head_and_in_the_details():
    rendered = DIALECT.refusal(Refused(Reason.RATE_LIMITED, "Slowly.", retry_after_s=1.25), "req_1")
    assert dict(rendered.headers)[b"retry-after"] == b"2"
    assert error_of(rendered.body)["details"] == [
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2s"}
    ]


def test_a_spent_budget_asks_for_no_retry_and_names_no_time():
    refused = Refused(Reason.BUDGET_EXHAUSTED, "Monthly usage limit reached.", retry_after_s=9.0)
    rendered = DIALECT.refusal(refused, "req_1")
    headers = dict(rendered.headers)
    assert (rendered.status, headers[b"x-should-retry"]) == (429, b"false")
    assert b"retry-after" not in headers
    assert error_of(rendered.body)["details"] == []


def test_an_error_inside_a_stream_is_one_event_with_the_same_body():
    refused = Refused(Reason.UPSTREAM_TIMEOUT, "Timeout: gemini broke off.")
    event = DIALECT.stream_error(refused, "req_1")
    assert event == b"data: " + DIALECT.refusal(refused, "req_1").body + b"\r\n\r\n"


def test_nothing_is_ever_written_into_a_silent_stream():
    assert DIALECT.stream_comment is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":{"code":404,"message":"No.","status":"NOT_FOUND"}}', {"code": 404, "message": "No.", "status": "NOT_FOUND"}),
        (b'[{"error":{"code":404,"message":"No."}}]', {"code": 404, "message": "No."}),
        (b"<html>", {"code": 404, "message": "The vendor answered with HTTP 404.", "status": "NOT_FOUND", "details": []}),
        (b"[]", {"code": 404, "message": "The vendor answered with HTTP 404.", "status": "NOT_FOUND", "details": []}),
    ],
)  # fmt: skip
def test_the_vendors_own_error_keeps_its_words_inside_a_stream(body, expected):
    event = DIALECT.stream_error_from(404, body, "req_1")
    assert event.startswith(b"data: ")
    assert event.endswith(b"\r\n\r\n")
    assert error_of(event[6:]) == expected


def error(code, message="No.", **more):
    return json.dumps({"error": {"code": code, "message": message, **more}}).encode()


def info(reason):
    return {"details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}]}


ACCOUNT = [
    # what the vendor says                                          status  is it about our account
    (error(400, "API key not valid. Please pass a valid API key.", **info("API_KEY_INVALID")), 400, True),
    (error(400, "It is bad.", **info("API_KEY_INVALID")), 400, True),
    (b"[" + error(400, "It is bad.", **info("API_KEY_INVALID")) + b"]", 400, True),
    (error(400, "API key expired. Please renew the API key."), 400, True),
    (error(400, "User location is not supported for the API use.", status="FAILED_PRECONDITION"), 400, True),
    (error(400, "Please enable billing on your project."), 400, True),
    (error(400, "Invalid value at 'contents[0].role'.", status="INVALID_ARGUMENT"), 400, False),
    (error(400, "x", details=["odd", {"reason": 7}]), 400, False),
    (error(401), 401, True),
    (error(402), 402, True),
    (error(403, "Permission denied."), 403, True),
    (error(404, "models/gemini-9 is not found for API version v1beta."), 404, False),
    (error(500, "An internal error has occurred."), 500, False),
    (error(503, "The model is overloaded."), 503, False),
    (b"<html>teapot</html>", 400, False),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "is_account"), ACCOUNT)
def test_errors_about_our_account_are_not_passed_on_and_errors_of_the_request_are(body, status, is_account):
    refused = DIALECT.account_problem(status, body, [])
    assert (refused is not None) is is_account
    if refused is not None:
        assert refused.reason is Reason.UPSTREAM_ACCOUNT
        assert "key" not in refused.message.lower()


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [("34.4s", 34.4), ("0.2s", 1.0), ("3600s", 60.0), ("soon", 5.0), (7, 5.0), (None, 5.0)],
)
def test_the_vendors_429_is_about_our_rate_and_its_delay_is_passed_on_within_bounds(delay, seconds):
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}]
    refused = DIALECT.account_problem(429, error(429, details=details), [])
    assert refused is not None
    assert (refused.reason, refused.retry_after_s) == (Reason.UPSTREAM_BUSY, seconds)


def test_the_vendor_has_no_names_of_its_own_for_limits():
    assert DIALECT.limit_headers(standing(requests=RateState(True, 60, 59, 1_500, 0.0)), 1_000) == []


def test_what_is_no_error_has_none_in_it():
    assert [error_in(body) for body in (b"", b"{}", b"[]", b"[1]", b"7", b'{"error":"x"}')] == [{}] * 6
