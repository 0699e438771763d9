"""The real `google-genai` and `@google/genai` with nothing changed but base URL and key: sync, async, JavaScript."""

from collections.abc import Iterator

import orjson
import pytest

from metering.tasks import spawn
from simulators.gemini import (
    MODELS,
    VENDOR_KEY,
    Ending,
    GeminiSimulator,
    ReportedUsage,
    breaks_after,
    errors_after,
    fails,
    hangs,
    streams,
)
from simulators.script import Gate
from tests.support.gateway import DatedClock, running_gateway
from tests.support.sdk import GEMINI, Sdk, running_sdk


@pytest.fixture(scope="module", params=["3-sync", "3-async", "2-js"])
def sdk(request: pytest.FixtureRequest) -> Iterator[Sdk]:
    with running_sdk(request.param, GEMINI) as running:
        yield running


@pytest.fixture
async def vendor():
    async with GeminiSimulator() as simulator:
        yield simulator


def env_of(vendor) -> dict[str, str]:
    return {"GEMINI_API_KEY": VENDOR_KEY, "GEMINI_UPSTREAM_URL": vendor.url}


@pytest.fixture
async def gateway(tmp_path, vendor):
    async with running_gateway(tmp_path, env=env_of(vendor)) as running:
        yield running
        await running.assert_clean()


@pytest.fixture
async def token(gateway):
    return await gateway.new_token()


def is_js(sdk: Sdk) -> bool:
    return sdk.name.endswith("js")


def error_of(said, sdk: Sdk, kind: str, code: int):
    """The exception: a class for each side in Python, one with a status in JavaScript."""
    error = said.error("ApiError" if is_js(sdk) else kind)
    assert error["code"] == code
    return error


async def assert_booked_as_told(gateway, vendor: GeminiSimulator) -> None:
    """Every answer of the vendor stands in the ledger once, with its counts and its model."""
    entries = await gateway.entries()
    assert len(entries) == len(vendor.answers) > 0
    for entry, told in zip(entries, vendor.answers, strict=True):
        assert (entry["kind"], entry["basis"], entry["outcome"]) == ("settle", "reported", "completed")
        (line,) = orjson.loads(entry["usage"])
        assert (line["model"], line["counts"]) == (told.model, told.usage.counts())


def seen_by_vendor(vendor, sdk, token, path):
    """The only request that the vendor got: the platform's key, no token, and the SDK's own version of the API."""
    (request,) = vendor.requests
    version = "v1beta" if is_js(sdk) else "v1"
    assert request.target == f"/{version}/models/{path}"
    assert request.header(b"x-goog-api-key") == VENDOR_KEY.encode()
    assert request.header(b"x-goog-api-client") == b""
    assert token not in repr(request)
    return request


# --- what works -----------------------------------------------------------------------------------------


async def test_generate_returns_the_answer(sdk, gateway, token, vendor):
    answer = (await sdk("generate", gateway.url, token)).result()
    assert answer["candidates"][0]["content"]["parts"][0]["text"] == "You said: Name a bird."
    seen_by_vendor(vendor, sdk, token, "gemini-2.5-flash:generateContent")
    await assert_booked_as_told(gateway, vendor)


async def test_a_stream_yields_the_text_piece_by_piece(sdk, gateway, token, vendor):
    vendor.next(streams(events=20, pace_s=0.001))
    said = await sdk("stream", gateway.url, token)
    said.result()
    assert len(said.seen) > 5
    assert "".join(said.seen).startswith("The quick brown fox")
    seen_by_vendor(vendor, sdk, token, "gemini-2.5-flash:streamGenerateContent?alt=sse")
    await assert_booked_as_told(gateway, vendor)


async def test_thoughts_cache_tools_and_searches_are_booked_as_told(sdk, gateway, token, vendor):
    usage = ReportedUsage(
        input_tokens=100, cached_tokens=50, tool_tokens=30, output_tokens=20, thoughts_tokens=70, searches=3, searches_billed=1
    )  # fmt: skip
    vendor.next(streams(usage=usage, thinking="Hm."), streams(usage=usage, thinking="Hm.", events=9))
    tools = [{"googleSearch" if is_js(sdk) else "google_search": {}}]
    whole = (await sdk("generate", gateway.url, token, tools=tools)).result()
    (await sdk("stream", gateway.url, token, tools=tools)).result()
    key = "usageMetadata" if is_js(sdk) else "usage_metadata"
    assert 70 in whole[key].values()
    await assert_booked_as_told(gateway, vendor)


async def test_a_compressed_answer_is_read_and_metered(sdk, gateway, token, vendor):
    vendor.next(streams(events=20, gzip=True), streams(text="A robin.", gzip=True))
    streamed = await sdk("stream", gateway.url, token)
    whole = (await sdk("generate", gateway.url, token)).result()
    assert "".join(streamed.seen).startswith("The quick brown fox")
    assert whole["candidates"][0]["content"]["parts"][0]["text"] == "A robin."
    await assert_booked_as_told(gateway, vendor)


async def test_structured_output_and_calls_of_tools_work(sdk, gateway, token, vendor):
    vendor.next(streams(text='{"name":"robin"}'), streams(function_call=("weather", {"place": "Rome"})))
    assert (await sdk("structured", gateway.url, token)).result() == {"name": "robin"}
    assert (await sdk("call", gateway.url, token)).result() == [["weather", {"place": "Rome"}]]
    await assert_booked_as_told(gateway, vendor)


async def test_embeddings_go_in_a_batch_and_are_booked(sdk, gateway, token, vendor):
    vectors = (await sdk("embed", gateway.url, token, texts=["one", "two"])).result()
    assert vectors
    seen_by_vendor(vendor, sdk, token, "gemini-embedding-2:batchEmbedContents")
    await assert_booked_as_told(gateway, vendor)


async def test_embeddings_without_usage_are_booked_as_an_estimate(sdk, gateway, token, vendor):
    vendor.next(streams(has_usage=False))
    (await sdk("embed", gateway.url, token, texts=["one"], model="gemini-embedding-001")).result()
    (entry,) = await gateway.entries()
    assert (entry["basis"], entry["outcome"], entry["model"]) == (
        "estimated",
        "completed",
        "gemini-embedding-001",
    )
    assert entry["cost_nanousd"] > 0


async def test_counts_and_models_are_free_and_leave_a_zero_entry(sdk, gateway, token, vendor):
    names = [f"models/{model.id}" for model in MODELS]
    assert (await sdk("count", gateway.url, token)).result() > 0
    assert (await sdk("list", gateway.url, token, page_size=3)).result() == names, "all pages"
    assert (await sdk("get", gateway.url, token, name="gemini-2.5-flash")).result() in names
    entries = await gateway.entries()
    assert {(entry["kind"], entry["cost_nanousd"]) for entry in entries} == {("settle", 0)}
    assert len(entries) == vendor.requests_total == 2 + -(-len(names) // 3)


# --- what is refused ------------------------------------------------------------------------------------


async def test_a_wrong_key_and_an_unknown_model_raise_the_vendors_own_classes(sdk, gateway, token, vendor):
    unknown = error_of(await sdk("generate", gateway.url, "amp_nobodys"), sdk, "ClientError", 401)
    missing = error_of(await sdk("generate", gateway.url, token, model="gemini-9"), sdk, "ClientError", 404)
    assert "models/gemini-9 is not found" in missing["message"]
    if not is_js(sdk):
        assert "401 UNAUTHENTICATED" in unknown["message"]
        assert "404 NOT_FOUND" in missing["message"]
    assert vendor.requests_total == 0


async def test_a_spent_budget_is_told_in_its_words_and_not_tried_again(sdk, tmp_path, vendor):
    async with running_gateway(tmp_path, env=env_of(vendor), credits_per_month=1) as gateway:
        said = await sdk("stream", gateway.url, await gateway.new_token())
        error = error_of(said, sdk, "ClientError", 429)
        assert "usage limit" in error["message"]
        if not is_js(sdk):
            assert "429 RESOURCE_EXHAUSTED" in error["message"]
            assert error["headers"]["x-should-retry"] == "false"
            assert "retry-after" not in error["headers"]
        assert vendor.requests_total == 0


async def test_a_rate_limit_names_its_time(sdk, tmp_path, vendor):
    clock = DatedClock(2026, 11, 20)
    async with running_gateway(tmp_path, env=env_of(vendor), clock=clock, requests_per_minute=1) as gateway:
        token = await gateway.new_token()
        (await sdk("generate", gateway.url, token)).result()
        error = error_of(await sdk("generate", gateway.url, token), sdk, "ClientError", 429)
        if not is_js(sdk):
            assert int(error["headers"]["retry-after"]) > 0
        assert vendor.requests_total == 1


async def test_a_cached_content_of_the_account_is_refused(sdk, gateway, token, vendor):
    name = "cachedContent" if is_js(sdk) else "cached_content"
    said = await sdk("generate", gateway.url, token, **{name: "cachedContents/abc"})
    assert "cachedContent" in error_of(said, sdk, "ClientError", 400)["message"]
    assert vendor.requests_total == 0


# --- what the vendor fails in ---------------------------------------------------------------------------


@pytest.mark.parametrize("do", ["generate", "stream"])
async def test_the_vendors_own_errors_pass_as_they_are(sdk, gateway, token, vendor, do):
    vendor.next(
        fails(400, message="Invalid value at 'contents'."), fails(503, message="The model is overloaded.")
    )
    bad = error_of(await sdk(do, gateway.url, token), sdk, "ClientError", 400)
    busy = error_of(await sdk(do, gateway.url, token), sdk, "ServerError", 503)
    assert "Invalid value" in bad["message"]
    assert "overloaded" in busy["message"]
    assert {entry["cost_nanousd"] for entry in await gateway.entries()} == {0}


async def test_errors_about_our_account_do_not_look_like_the_agents_own(sdk, tmp_path, vendor):
    env = {**env_of(vendor), "GEMINI_API_KEY": "a-key-that-the-vendor-does-not-know"}
    async with running_gateway(tmp_path, env=env) as gateway:
        error = error_of(
            await sdk("generate", gateway.url, await gateway.new_token()), sdk, "ServerError", 503
        )
        assert "key" not in error["message"].lower()
        assert vendor.requests_total == 1


async def test_an_error_inside_a_stream_raises_after_the_pieces_before_it(sdk, gateway, token, vendor):
    vendor.next(errors_after(3, events=9, message="The model is overloaded."))
    said = await sdk("stream", gateway.url, token)
    if is_js(sdk):  # which reads the error's words only where they come in a packet of their own
        assert said.error("Error")
    else:
        assert "The model is overloaded." in error_of(said, sdk, "ServerError", 503)["message"]
    assert "".join(said.seen).startswith("The quick brown")
    (entry,) = await gateway.entries()
    assert entry["outcome"] == "upstream_failed"


@pytest.mark.parametrize("ending", list(Ending))
async def test_a_stream_that_is_cut_is_never_a_success(sdk, gateway, token, vendor, ending):
    vendor.next(breaks_after(3, events=9, ending=ending))
    said = await sdk("stream", gateway.url, token)
    assert said.raised is not None
    if not is_js(sdk):
        error = said.error("ServerError")
        assert error["code"] == 502
        assert "Connection error: gemini broke off" in error["message"]
    assert "".join(said.seen).startswith("The quick brown")
    (entry,) = await gateway.entries()
    assert (entry["outcome"], entry["basis"]) == ("upstream_failed", "estimated")
    assert entry["cost_nanousd"] > 0


async def test_a_compressed_stream_that_is_cut_is_never_a_success(sdk, gateway, token, vendor):
    vendor.next(breaks_after(3, events=9, gzip=True))
    assert (await sdk("stream", gateway.url, token)).raised is not None
    (entry,) = await gateway.entries()
    assert entry["outcome"] == "upstream_failed"


async def test_a_silent_vendor_is_waited_for_without_a_word(sdk, tmp_path, vendor):
    """A comment or an early head would make the SDK raise."""
    gate = Gate()
    vendor.next(hangs(gate=gate, events=5))
    async with running_gateway(tmp_path, env={**env_of(vendor), "STREAM_SILENCE_S": "0.05"}) as gateway:
        asking = spawn(sdk("stream", gateway.url, await gateway.new_token()), name="the request that waits")
        await gate.reached()
        gate.open()
        said = await asking
        said.result()
        assert "".join(said.seen).startswith("The quick brown")
