"""Anthropic's dialect: every refusal as its SDKs expect it, and its own errors about our account turned."""

import json

import anthropic
import httpx
import pytest

from metering.errors import Reason, Refused
from metering.rate_state import RateState
from routes.anthropic_errors import AnthropicDialect
from tests.support.limits import standing

DIALECT = AnthropicDialect()

ROWS = [
    # reason                     status type                     retry  SDK class
    (Reason.UNKNOWN_OPERATION, 404, "not_found_error", False, "NotFoundError"),
    (Reason.WEBSOCKET_UNAVAILABLE, 426, "invalid_request_error", False, "APIStatusError"),
    (Reason.WEBSOCKET_REQUIRED, 426, "invalid_request_error", False, "APIStatusError"),
    (Reason.UNAUTHENTICATED, 401, "authentication_error", False, "AuthenticationError"),
    (Reason.FORBIDDEN, 403, "permission_error", False, "PermissionDeniedError"),
    (Reason.BAD_REQUEST, 400, "invalid_request_error", False, "BadRequestError"),
    (Reason.HEAD_TOO_LARGE, 431, "request_too_large", False, "RequestHeaderFieldsTooLargeError"),
    (Reason.TOO_LARGE, 413, "request_too_large", False, "ContentTooLargeError"),
    (Reason.MODEL_UNAVAILABLE, 404, "not_found_error", False, "NotFoundError"),
    (Reason.CONFLICT, 409, "api_error", True, "ConflictError"),
    (Reason.OBJECT_NOT_FOUND, 404, "not_found_error", False, "NotFoundError"),
    (Reason.BUDGET_EXHAUSTED, 402, "billing_error", False, "PaymentRequiredError"),
    (Reason.BUDGET_HELD, 429, "rate_limit_error", True, "RateLimitError"),
    (Reason.RATE_LIMITED, 429, "rate_limit_error", True, "RateLimitError"),
    (Reason.TOKENS_RATE_LIMITED, 429, "rate_limit_error", True, "RateLimitError"),
    (Reason.TOO_MANY_CONCURRENT, 429, "rate_limit_error", True, "RateLimitError"),
    (Reason.STORE_UNAVAILABLE, 503, "api_error", True, "ServiceUnavailableError"),
    (Reason.DRAINING, 503, "api_error", True, "ServiceUnavailableError"),
    (Reason.NOT_CONFIGURED, 503, "api_error", False, "ServiceUnavailableError"),
    (Reason.UPSTREAM_UNREACHABLE, 502, "api_error", True, "InternalServerError"),
    (Reason.UPSTREAM_TIMEOUT, 504, "timeout_error", True, "GatewayTimeoutError"),
    (Reason.UPSTREAM_ACCOUNT, 503, "api_error", True, "ServiceUnavailableError"),
    (Reason.UPSTREAM_BUSY, 429, "rate_limit_error", True, "RateLimitError"),
    (Reason.INTERNAL, 500, "api_error", True, "InternalServerError"),
]


def test_every_reason_has_its_row():
    assert [row[0] for row in ROWS] == list(Reason)


@pytest.mark.parametrize(("reason", "status", "kind", "may_retry", "_class"), ROWS)
def test_a_refusal_has_the_vendors_shape_and_our_advice(reason, status, kind, may_retry, _class):
    rendered = DIALECT.refusal(Refused(reason, "Why.", retry_after_s=1.2), "req_1")
    headers = dict(rendered.headers)
    assert rendered.status == status
    assert json.loads(rendered.body) == {
        "type": "error",
        "error": {"type": kind, "message": "Why."},
        "request_id": "req_1",
    }
    assert (headers[b"content-type"], headers[b"request-id"]) == (b"application/json", b"req_1")
    assert headers.get(b"x-should-retry") == (None if may_retry else b"false")
    assert headers.get(b"retry-after") == (b"2" if may_retry else None)


@pytest.mark.parametrize(("reason", "status", "kind", "_may_retry", "class_name"), ROWS)
async def test_the_vendors_sdk_raises_its_own_class(reason, status, kind, _may_retry, class_name):
    rendered = DIALECT.refusal(Refused(reason, "Why."), "req_1")
    response = anthropic_response(rendered)
    client = anthropic.AsyncAnthropic(api_key="k")
    error = client._make_status_error_from_response(response)
    assert type(error).__name__ == class_name
    assert error.request_id == "req_1"
    await client.close()


def anthropic_response(rendered):
    http = getattr(anthropic._base_client, "httpx", httpx)
    headers = [(name.decode(), value.decode()) for name, value in rendered.headers]
    return http.Response(
        rendered.status, headers=headers, content=rendered.body, request=http.Request("POST", "http://x")
    )


@pytest.mark.parametrize(
    ("given", "expected"), [(None, None), (0.0, b"1"), (0.2, b"1"), (1.0, b"1"), (7.01, b"8")]
)
def test_retry_after_is_whole_seconds_rounded_up_and_only_when_given(given, expected):
    rendered = DIALECT.refusal(Refused(Reason.RATE_LIMITED, "Slow down.", retry_after_s=given), "r")
    assert dict(rendered.headers).get(b"retry-after") == expected


def test_an_error_inside_a_stream_is_one_event():
    event = DIALECT.stream_error(Refused(Reason.UPSTREAM_TIMEOUT, "Too\nslow."), "req_1")
    head, data, *rest = event.split(b"\n")
    assert (head, rest) == (b"event: error", [b"", b""])
    assert json.loads(data.removeprefix(b"data: "))["error"] == {
        "type": "timeout_error",
        "message": "Too\nslow.",
    }


def test_a_vendors_error_is_told_inside_a_stream_in_its_own_words():
    body = json.dumps(
        {"type": "error", "error": {"type": "overloaded_error", "message": "Busy"}}, indent=2
    ).encode()
    event = DIALECT.stream_error_from(529, body, "req_1")
    assert (
        event
        == b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Busy"}}\n\n'
    )


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (502, b"<html>", "api_error"),
        (529, b"", "overloaded_error"),
        (413, b'{"error":"x"}', "request_too_large"),
    ],
)
def test_an_answer_of_another_shape_is_told_by_its_status(status, body, kind):
    event = DIALECT.stream_error_from(status, body, "req_1")
    told = json.loads(event.split(b"data: ")[1])
    assert (told["error"]["type"], told["request_id"]) == (kind, "req_1")
    assert f"HTTP {status}" in told["error"]["message"], "an agent knows by these words that it may try again"


def error(kind, words="no", **details):
    return json.dumps(
        {"type": "error", "error": {"type": kind, "message": words, "details": details}}
    ).encode()


ACCOUNT = [
    # status  body                                                        retry-after  becomes                  in
    (401, error("authentication_error"), None, Reason.UPSTREAM_ACCOUNT, 30),
    (403, error("permission_error"), None, Reason.UPSTREAM_ACCOUNT, 30),
    (402, b"", None, Reason.UPSTREAM_ACCOUNT, 30),
    (400, error("billing_error"), None, Reason.UPSTREAM_ACCOUNT, 30),
    (
        400,
        error("invalid_request_error", "Your credit balance is too low"),
        None,
        Reason.UPSTREAM_ACCOUNT,
        30,
    ),
    (400, error("invalid_request_error", "specified API usage limits"), None, Reason.UPSTREAM_ACCOUNT, 30),
    (
        429,
        error("rate_limit_error", error_code="enforced_spend_limit_reached"),
        b"9",
        Reason.UPSTREAM_ACCOUNT,
        30,
    ),
    (429, error("rate_limit_error"), None, Reason.UPSTREAM_BUSY, 5),
    (429, error("rate_limit_error"), b"12", Reason.UPSTREAM_BUSY, 12),
    (429, error("rate_limit_error"), b"0.2", Reason.UPSTREAM_BUSY, 1),
    (429, error("rate_limit_error"), b"3600", Reason.UPSTREAM_BUSY, 60),
    (429, error("rate_limit_error"), b"nan", Reason.UPSTREAM_BUSY, 5),
    (429, error("rate_limit_error"), b"Fri, 20 Nov 2026 12:00:00 GMT", Reason.UPSTREAM_BUSY, 5),
    (429, b"[]", None, Reason.UPSTREAM_BUSY, 5),
    (400, error("invalid_request_error", "max_tokens: required"), None, None, None),
    (400, b"not json", None, None, None),
    (404, error("not_found_error"), None, None, None),
    (413, error("request_too_large"), None, None, None),
    (500, error("api_error"), None, None, None),
    (503, error("api_error", "credit balance"), None, None, None),
    (529, error("overloaded_error"), b"7", None, None),
]


@pytest.mark.parametrize(("status", "body", "retry_after", "reason", "after_s"), ACCOUNT)
def test_only_errors_about_our_own_account_are_turned(status, body, retry_after, reason, after_s):
    headers = [] if retry_after is None else [(b"retry-after", retry_after)]
    refused = DIALECT.account_problem(status, body, headers)
    assert (None if refused is None else refused.reason) == reason
    assert (None if refused is None else refused.retry_after_s) == after_s


def test_the_words_for_an_account_problem_do_not_lock_an_agents_key():
    refused = DIALECT.account_problem(402, error("billing_error", "Your credit balance is too low"), [])
    locking = ("credit", "billing", "upgrade", "top up", "quota", "limit", "balance")
    assert not any(word in refused.message.lower() for word in locking)


def test_limits_stand_under_the_vendors_names():
    now = 1_795_000_000_001
    stands = standing(
        requests=RateState(True, 60, 0, now, 0.0), tokens=RateState(True, 50_000, 49_999, now + 1_000, 0.0)
    )
    assert DIALECT.limit_headers(stands, 1) == [
        (b"anthropic-ratelimit-requests-limit", b"60"),
        (b"anthropic-ratelimit-requests-remaining", b"0"),
        (b"anthropic-ratelimit-requests-reset", b"2026-11-18T11:06:41Z"),
        (b"anthropic-ratelimit-tokens-limit", b"50000"),
        (b"anthropic-ratelimit-tokens-remaining", b"49999"),
        (b"anthropic-ratelimit-tokens-reset", b"2026-11-18T11:06:42Z"),
    ]


def test_a_silent_stream_is_kept_alive_with_a_comment():
    assert DIALECT.stream_comment == b": waiting\n\n"
