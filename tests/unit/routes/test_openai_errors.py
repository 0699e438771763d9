"""OpenAI's dialect: every refusal as its SDKs expect it, and its own errors about our account turned."""

import json

import pytest

from metering.errors import Reason, Refused
from metering.rate_state import RateState
from routes.openai_errors import OpenAIDialect, duration
from tests.support.limits import standing

DIALECT = OpenAIDialect()
INVALID, SERVER, RATE = "invalid_request_error", "server_error", "rate_limit_exceeded"

ROWS = [
    # reason                     status type                  code                 retry
    (Reason.UNKNOWN_OPERATION, 404, INVALID, None, False),
    (Reason.WEBSOCKET_UNAVAILABLE, 426, INVALID, None, False),
    (Reason.WEBSOCKET_REQUIRED, 426, INVALID, None, False),
    (Reason.UNAUTHENTICATED, 401, INVALID, "invalid_api_key", False),
    (Reason.FORBIDDEN, 403, INVALID, None, False),
    (Reason.BAD_REQUEST, 400, INVALID, None, False),
    (Reason.HEAD_TOO_LARGE, 431, INVALID, None, False),
    (Reason.TOO_LARGE, 413, INVALID, None, False),
    (Reason.MODEL_UNAVAILABLE, 404, INVALID, "model_not_found", False),
    (Reason.CONFLICT, 409, INVALID, None, True),
    (Reason.OBJECT_NOT_FOUND, 404, INVALID, None, False),
    (Reason.BUDGET_EXHAUSTED, 429, "usage_limit_reached", "usage_limit_reached", False),
    (Reason.BUDGET_HELD, 429, "requests", RATE, True),
    (Reason.RATE_LIMITED, 429, "requests", RATE, True),
    (Reason.TOKENS_RATE_LIMITED, 429, "tokens", RATE, True),
    (Reason.TOO_MANY_CONCURRENT, 429, "requests", RATE, True),
    (Reason.STORE_UNAVAILABLE, 503, SERVER, None, True),
    (Reason.DRAINING, 503, SERVER, None, True),
    (Reason.NOT_CONFIGURED, 503, SERVER, None, False),
    (Reason.UPSTREAM_UNREACHABLE, 502, SERVER, None, True),
    (Reason.UPSTREAM_TIMEOUT, 504, SERVER, None, True),
    (Reason.UPSTREAM_ACCOUNT, 503, SERVER, None, True),
    (Reason.UPSTREAM_BUSY, 429, "requests", RATE, True),
    (Reason.INTERNAL, 500, SERVER, None, True),
]


def test_every_reason_has_a_row():
    assert [row[0] for row in ROWS] == list(Reason)


@pytest.mark.parametrize(("reason", "status", "kind", "code", "may_retry"), ROWS)
def test_a_refusal_has_the_vendors_shape_and_our_advice(reason, status, kind, code, may_retry):
    rendered = DIALECT.refusal(Refused(reason, "Why.", retry_after_s=1.2), "req_1")
    headers = dict(rendered.headers)
    assert rendered.status == status
    error = {"message": "Why.", "type": kind, "param": None, "code": code}
    assert json.loads(rendered.body) == {"error": error}
    assert (headers[b"content-type"], headers[b"x-request-id"]) == (b"application/json", b"req_1")
    assert headers.get(b"x-should-retry") == (None if may_retry else b"false")
    assert headers.get(b"retry-after") == (b"2" if may_retry else None)


def test_an_object_that_is_not_found_is_named_as_the_vendor_names_it():
    facts = {"kind": "response", "param": "previous_response_id", "code": "previous_response_not_found"}
    rendered = DIALECT.refusal(Refused(Reason.OBJECT_NOT_FOUND, "Not found.", facts=facts), "req_1")
    assert json.loads(rendered.body)["error"] == {
        "message": "Not found.",
        "type": "invalid_request_error",
        "param": "previous_response_id",
        "code": "previous_response_not_found",
    }


def test_an_error_inside_a_stream_is_one_event_with_an_error_object():
    event = DIALECT.stream_error(Refused(Reason.UPSTREAM_TIMEOUT, "Too\nslow."), "req_1")
    data, *rest = event.split(b"\n")
    assert rest == [b"", b""]
    assert json.loads(data.removeprefix(b"data: "))["error"]["message"] == "Too\nslow."


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (503, b'{"error":{"message":"m","type":"t","param":null,"code":"c"}, "x": 1}', ("m", "t", "c")),
        (500, b"<html>", ("The vendor answered with HTTP 500.", "server_error", None)),
        (400, b"[]", ("The vendor answered with HTTP 400.", "invalid_request_error", None)),
        (400, b'{"error":"text"}', ("The vendor answered with HTTP 400.", "invalid_request_error", None)),
    ],
)
def test_a_vendors_error_is_told_inside_a_stream_in_its_own_words(status, body, error):
    event = DIALECT.stream_error_from(status, body, "req_1")
    told = json.loads(event.removeprefix(b"data: "))["error"]
    assert (told["message"], told["type"], told["code"]) == error
    assert event.endswith(b"}\n\n")


def failed(**error):
    return json.dumps({"error": {"message": "m", "param": None, **error}}).encode()


ACCOUNT = [
    # status, body                                                   refusal
    (401, failed(code="invalid_api_key"), Reason.UPSTREAM_ACCOUNT),
    (403, b"", Reason.UPSTREAM_ACCOUNT),
    (402, b"", Reason.UPSTREAM_ACCOUNT),
    (429, failed(type="insufficient_quota", code="insufficient_quota"), Reason.UPSTREAM_ACCOUNT),
    (429, failed(type="billing_not_active", code=None), Reason.UPSTREAM_ACCOUNT),
    (400, failed(type="invalid_request_error", code="billing_hard_limit_reached"), Reason.UPSTREAM_ACCOUNT),
    (400, failed(type="access_terminated"), Reason.UPSTREAM_ACCOUNT),
    (429, failed(type="tokens", code="rate_limit_exceeded"), Reason.UPSTREAM_BUSY),
    (429, b"<html>", Reason.UPSTREAM_BUSY),
    (400, failed(type="invalid_request_error", code="context_length_exceeded"), None),
    (404, failed(type="invalid_request_error", code="model_not_found"), None),
    (400, failed(type=["insufficient_quota"]), None),
    (500, failed(type="server_error"), None),
    (503, b"", None),
]


@pytest.mark.parametrize(("status", "body", "reason"), ACCOUNT)
def test_what_is_about_our_account_does_not_reach_the_agent(status, body, reason):
    refused = DIALECT.account_problem(status, body, [(b"retry-after", b"7")])
    assert (None if refused is None else refused.reason) is reason
    if reason is Reason.UPSTREAM_BUSY:
        assert refused is not None
        assert refused.retry_after_s == 7


def test_limits_are_told_as_the_vendor_tells_its_own():
    now = 1_795_000_000_000
    stands = standing(
        requests=RateState(True, 60, 7, now + 12_500, 0.0),
        tokens=RateState(False, 50_000, 0, now + 90_000, 30.0),
    )
    assert DIALECT.limit_headers(stands, now) == [
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-limit-tokens", b"50000"),
        (b"x-ratelimit-remaining-requests", b"7"),
        (b"x-ratelimit-remaining-tokens", b"0"),
        (b"x-ratelimit-reset-requests", b"12.5s"),
        (b"x-ratelimit-reset-tokens", b"1m30s"),
    ]
    late = dict(DIALECT.limit_headers(stands, now + 100_000))
    assert {late[b"x-ratelimit-reset-requests"], late[b"x-ratelimit-reset-tokens"]} == {b"0ms"}


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0ms"),
        (999, "999ms"),
        (1_000, "1s"),
        (59_999, "59.999s"),
        (60_000, "1m0s"),
        (360_000, "6m0s"),
        (3_630_250, "1h0m30.25s"),
    ],
)
def test_a_duration_is_written_in_its_largest_units(ms, text):
    assert duration(ms) == text
