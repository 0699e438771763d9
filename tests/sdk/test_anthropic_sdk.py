"""The real `anthropic` SDK with nothing changed but base URL and key: current and below 1.0, sync and async."""

import orjson
import pytest

from metering.tasks import spawn
from simulators.anthropic import (
    MODELS,
    VENDOR_KEY,
    AnthropicSimulator,
    Ending,
    ReportedUsage,
    breaks_after,
    errors_after,
    fails,
    hangs,
    message_events,
    replays,
    streams,
)
from simulators.anthropic_messages import Content, Message
from simulators.script import Gate
from tests.support.gateway import client_of, messages_body, running_gateway

BETA = b"made-up-2026-01-01"
STREAM_TYPE = "text/event-stream; charset=utf-8"


@pytest.fixture
async def gateway(tmp_path, vendor):
    async with running_gateway(tmp_path, upstream=vendor.url) as running:
        yield running
        await running.assert_clean()


@pytest.fixture
async def token(gateway):
    return await gateway.new_token()


async def assert_booked_as_told(gateway, vendor: AnthropicSimulator) -> None:
    """Every answer of the vendor stands in the ledger once, with its counts."""
    entries = await gateway.entries()
    assert len(entries) == len(vendor.answers) > 0
    for entry, told in zip(entries, vendor.answers, strict=True):
        assert (entry["kind"], entry["basis"], entry["outcome"]) == ("settle", "reported", "completed")
        assert entry["upstream_request_id"] == told.request_id
        assert orjson.loads(entry["usage"])[0]["counts"] == told.usage.counts()


def seen_by_vendor(vendor, sdk, token):
    """The only request that the vendor got, which carries the platform's key and no token."""
    (request,) = vendor.requests
    assert request.header(b"x-api-key") == VENDOR_KEY.encode()
    assert request.header(b"authorization") == b""
    assert token not in repr(request)
    assert request.header(b"user-agent").startswith((b"Anthropic/Python", b"AsyncAnthropic/Python"))
    expected_version = b"2026-10-21" if sdk.is_current else b"2023-06-01"
    assert request.header(b"anthropic-version") == expected_version
    return request


# --- what works -----------------------------------------------------------------------------------------


async def test_create_returns_the_message(sdk, gateway, token, vendor):
    message = (await sdk("create", gateway.url, token)).result()
    assert message["content"][0]["text"] == "You said: Name a bird."
    (told,) = vendor.answers
    assert message["id"] == told.message_id
    assert message["usage"]["output_tokens"] == told.usage.output_tokens
    seen_by_vendor(vendor, sdk, token)
    await assert_booked_as_told(gateway, vendor)


async def test_a_bearer_token_works_as_the_api_key_does(sdk, gateway, token, vendor):
    message = (await sdk("create", gateway.url, token, credential="auth_token")).result()
    assert message["role"] == "assistant"
    seen_by_vendor(vendor, sdk, token)


async def test_stream_yields_the_text_piece_by_piece_and_the_final_message(sdk, gateway, token, vendor):
    vendor.next(streams(events=20, pace_s=0.001))
    said = await sdk("text_stream", gateway.url, token)
    final = said.result()
    assert len(said.seen) > 5
    assert "".join(said.seen) == final["content"][0]["text"]
    assert final["usage"]["output_tokens"] == vendor.answers[0].usage.output_tokens
    await assert_booked_as_told(gateway, vendor)


async def test_raw_events_come_in_their_order_to_the_last(sdk, gateway, token, vendor):
    said = await sdk("raw_events", gateway.url, token)
    said.result()
    kinds = [kind for kind in said.seen if kind != "ping"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    await assert_booked_as_told(gateway, vendor)


async def test_a_compressed_answer_is_read_and_metered(sdk, gateway, token, vendor):
    vendor.next(streams(events=20, gzip=True), streams(text="A robin.", gzip=True))
    streamed = await sdk("text_stream", gateway.url, token)
    whole = await sdk("create", gateway.url, token)
    assert "".join(streamed.seen) == streamed.result()["content"][0]["text"]
    assert whole.result()["content"][0]["text"] == "A robin."
    await assert_booked_as_told(gateway, vendor)


async def test_the_beta_resource_works_and_its_header_goes_up(sdk, gateway, token, vendor):
    message = (await sdk("beta_create", gateway.url, token)).result()
    assert message["content"][0]["text"] == "You said: Name a bird."
    request = seen_by_vendor(vendor, sdk, token)
    assert request.header(b"anthropic-beta") == BETA
    assert request.target == ("/v1/messages" if sdk.is_current else "/v1/messages?beta=true")
    await assert_booked_as_told(gateway, vendor)


async def test_the_beta_stream_works(sdk, gateway, token, vendor):
    said = await sdk("beta_stream", gateway.url, token)
    assert "".join(said.seen) == said.result()["content"][0]["text"] != ""
    await assert_booked_as_told(gateway, vendor)


async def test_the_query_of_older_beta_clients_goes_up(sdk, gateway, token, vendor):
    message = (await sdk("post", gateway.url, token, path="/v1/messages?beta=true")).result()
    assert message["type"] == "message"
    assert seen_by_vendor(vendor, sdk, token).target == "/v1/messages?beta=true"


async def test_count_tokens_and_models_are_free_and_leave_a_zero_entry(sdk, gateway, token, vendor):
    ids = [model.id for model in MODELS]
    assert (await sdk("count_tokens", gateway.url, token)).result() > 0
    assert (await sdk("models", gateway.url, token, limit=3)).result() == ids, "all pages"
    assert (await sdk("model", gateway.url, token, name="claude-haiku-4-5")).result() in ids
    entries = await gateway.entries()
    assert {(entry["kind"], entry["cost_nanousd"]) for entry in entries} == {("settle", 0)}
    assert len(entries) == vendor.requests_total == 2 + -(-len(ids) // 3)


# --- errors that no retry can mend ----------------------------------------------------------------------


async def test_an_unknown_token_raises_authentication_error_at_once(sdk, gateway, vendor):
    error = (await sdk("create", gateway.url, "amp_nobodys")).error("AuthenticationError")
    assert (error["status"], error["body"]["error"]["type"]) == (401, "authentication_error")
    assert error["request_id"] == gateway.lines[0]["request"]
    assert len(gateway.lines) == 1, "not retried"
    assert vendor.requests_total == 0


@pytest.mark.parametrize(
    ("do", "arguments"),
    [
        ("create", {"model": "claude-imaginary-9"}),
        ("text_stream", {"model": "claude-imaginary-9"}),
        ("count_tokens", {"model": "claude-imaginary-9"}),
        ("get", {"path": "/v1/files"}),
        ("post", {"path": "/v1/messages/batches", "body": {"requests": []}}),
        ("post", {"path": "/v1/complete"}),
    ],
)
async def test_what_does_not_exist_raises_not_found_at_once(sdk, gateway, token, vendor, do, arguments):
    error = (await sdk(do, gateway.url, token, **arguments)).error("NotFoundError")
    assert (error["status"], error["body"]["error"]["type"]) == (404, "not_found_error")
    assert arguments.get("model", arguments.get("path")) in error["message"]
    assert len(gateway.lines) == 1, "not retried"
    assert vendor.requests_total == 0


async def test_a_model_that_the_vendor_does_not_know_raises_not_found(sdk, gateway, token, vendor):
    error = (await sdk("model", gateway.url, token, name="claude-imaginary-9")).error("NotFoundError")
    assert error["body"]["request_id"] == error["request_id"], "the vendor's own"
    assert vendor.requests_total == 1


async def test_a_forbidden_field_raises_bad_request_and_names_it(sdk, gateway, token, vendor):
    said = await sdk("create", gateway.url, token, extra_body={"container": "c1"})
    assert "container" in said.error("BadRequestError")["body"]["error"]["message"]
    assert len(gateway.lines) == 1, "not retried"
    assert vendor.requests_total == 0


async def test_a_spent_budget_raises_the_payment_error_at_once(sdk, tmp_path, vendor):
    async with running_gateway(tmp_path, upstream=vendor.url, credits_per_month=100) as gateway:
        token = await gateway.new_token()
        vendor.next(streams(usage=ReportedUsage(input_tokens=10, output_tokens=10_000)))
        (await sdk("create", gateway.url, token)).result()
        said = await sdk("create", gateway.url, token, client={"max_retries": 5})
        error = said.error("PaymentRequiredError" if sdk.is_current else "APIStatusError")
        assert (error["status"], error["body"]["error"]["type"]) == (402, "billing_error")
        assert "Monthly usage limit reached" in error["body"]["error"]["message"]
        assert "retry-after" not in error["headers"]
        refusals = {"surface": "anthropic", "reason": "budget_exhausted"}
        assert gateway.metric("automna_refusals_total", **refusals) == 1, "not retried"
        assert vendor.requests_total == 1
        await gateway.assert_clean()


async def test_a_disabled_user_raises_permission_denied_at_once(sdk, gateway, token, vendor):
    await gateway.directory.disable("u1")
    await gateway.service.own.authenticator.look_for_changes()
    error = (await sdk("create", gateway.url, token)).error("PermissionDeniedError")
    assert (error["status"], error["body"]["error"]["type"]) == (403, "permission_error")
    assert len(gateway.lines) == 1, "not retried"
    assert vendor.requests_total == 0


# --- errors that pass -----------------------------------------------------------------------------------


async def test_beyond_the_rate_it_raises_rate_limit_error_with_a_time(sdk, tmp_path, vendor):
    async with running_gateway(tmp_path, upstream=vendor.url, requests_per_minute=0) as gateway:
        token = await gateway.new_token()
        error = (await sdk("create", gateway.url, token, client={"max_retries": 0})).error("RateLimitError")
        assert (error["status"], error["body"]["error"]["type"]) == (429, "rate_limit_error")
        assert 1 <= int(error["headers"]["retry-after"]) <= 61
        assert vendor.requests_total == 0


async def status_of_a_plain_request(gateway, token):
    async with client_of(gateway, token) as client:
        return (await client.post("/v1/messages", json=messages_body())).status_code


async def test_a_retry_waits_as_long_as_our_retry_after_says_and_succeeds(sdk, tmp_path, vendor):
    async with running_gateway(tmp_path, upstream=vendor.url, concurrent=1) as gateway:
        token = await gateway.new_token()
        gate = Gate()
        vendor.next(hangs(gate=gate))
        other = spawn(status_of_a_plain_request(gateway, token), name="the request that holds the slot")
        await gate.reached()
        call = spawn(sdk("create", gateway.url, token), name="the call of the SDK")
        refusals = {"surface": "anthropic", "reason": "too_many_concurrent"}
        await gateway.until(lambda: gateway.metric("automna_refusals_total", **refusals) == 1)
        gate.open()
        assert await other == 200
        said = await call
        assert said.result()["role"] == "assistant"
        assert said.elapsed_s >= 1.0, "its own pause would be half a second"
        assert gateway.metric("automna_refusals_total", **refusals) == 1
        assert vendor.requests_total == 2
        await gateway.assert_clean()


async def test_a_retry_waits_as_long_as_the_vendors_retry_after_says_and_succeeds(
    sdk, gateway, token, vendor
):
    vendor.next(fails(429, headers={"retry-after": "1"}))
    said = await sdk("create", gateway.url, token)
    assert said.result()["role"] == "assistant"
    assert said.elapsed_s >= 1.0
    assert [line["status"] for line in gateway.lines] == [429, 200]
    assert [entry["cost_nanousd"] > 0 for entry in await gateway.entries()] == [False, True]


async def test_a_vendor_that_is_overloaded_is_asked_again(sdk, gateway, token, vendor):
    vendor.next(fails(529))
    assert (await sdk("create", gateway.url, token)).result()["role"] == "assistant"
    assert [line["status"] for line in gateway.lines] == [529, 200]


@pytest.mark.parametrize("do", ["text_stream", "raw_events"])
async def test_an_error_inside_the_stream_raises_with_its_type(sdk, gateway, token, vendor, do):
    vendor.next(errors_after(6, text="A robin, I should say, or a wren."))
    said = await sdk(do, gateway.url, token)
    error = said.error("APIStatusError")["body"]["error"]
    assert (error["type"], error["message"]) == ("overloaded_error", "Overloaded")
    assert said.seen, "what came before the error was passed on"
    assert vendor.requests_total == 1, "a stream that has begun is not asked for again"


@pytest.mark.parametrize("do", ["text_stream", "raw_events"])
async def test_a_stream_cut_for_its_budget_raises_with_the_words_of_the_budget(sdk, tmp_path, vendor, do):
    env = {"OUTPUT_SLICE_TOKENS": "100"}
    async with running_gateway(tmp_path, upstream=vendor.url, env=env, credits_per_month=12) as gateway:
        vendor.next(streams(text="A robin. " * 400, events=200, stalls_after=150))
        said = await sdk(do, gateway.url, await gateway.new_token(), max_tokens=8_000)
        error = said.error("APIStatusError")["body"]["error"]
        assert error["type"] == "billing_error"
        assert "Monthly usage limit reached" in error["message"]
        assert said.seen, "what was paid for was passed on"
        assert vendor.requests_total == 1
        assert (await gateway.only_entry())["outcome"] == "budget_ended"


# --- answers that break off -----------------------------------------------------------------------------


def half_an_event():
    """A stream that breaks off inside its fourth event."""
    content = Content("A robin, or a wren.")
    events = message_events(Message("msg_1", "claude-haiku-4-5-20251001", content, ReportedUsage(5, 9)))
    cut_at = sum(map(len, events[:3])) + len(events[3]) // 2
    return replays(b"".join(events), STREAM_TYPE, breaks_after=cut_at)


TEXT = "A robin, I should say, or a wren."
CUTS = {
    "closed": lambda: breaks_after(6, text=TEXT),
    "reset": lambda: breaks_after(6, ending=Ending.RESET, text=TEXT),
    "as if it were whole": lambda: breaks_after(6, ending=Ending.CLEAN, text=TEXT),
    "compressed": lambda: breaks_after(6, gzip=True, text=TEXT),
    "inside an event": half_an_event,
}
BROKEN = {"APIStatusError", "APIConnectionError", "RemoteProtocolError"}
"""An error of ours inside the stream, or the transfer's own: SDKs do not translate what breaks in a body."""


@pytest.mark.parametrize("do", ["text_stream", "raw_events", "beta_stream"])
@pytest.mark.parametrize("cut", CUTS)
async def test_half_an_answer_is_never_returned_as_a_whole_one(sdk, gateway, token, vendor, cut, do):
    vendor.next(CUTS[cut]())
    said = await sdk(do, gateway.url, token)
    assert said.raised is not None, f"returned {said.returned} after {said.seen}"
    assert BROKEN & set(said.raised["classes"]), said.raised
    if cut in {"closed", "as if it were whole"}:
        assert "broke off its answer" in said.error("APIStatusError")["message"]
    (entry,) = await gateway.entries()
    assert (entry["outcome"], entry["basis"]) == ("upstream_failed", "estimated")
    assert vendor.requests_total == 1


async def test_a_whole_answer_that_breaks_off_is_never_returned(sdk, gateway, token, vendor):
    vendor.next(breaks_after(200), breaks_after(200))
    said = await sdk("create", gateway.url, token, client={"max_retries": 1})
    assert said.raised is not None, f"returned {said.returned}"
    assert BROKEN & set(said.raised["classes"]), said.raised
    outcomes = [entry["outcome"] for entry in await gateway.entries()]
    assert outcomes == ["upstream_failed"] * vendor.requests_total
