"""Gemini through the proxy on real sockets: both forms of a stream, keys in the query, and what the query may not ask."""

from urllib.parse import urlsplit

import httpx
import orjson
import pytest

from metering.tasks import spawn
from simulators.gemini import (
    VENDOR_KEY,
    Ending,
    GeminiSimulator,
    ReportedUsage,
    breaks_after,
    errors_after,
    stalls_after,
    streams,
)
from simulators.script import Gate
from tests.support.gateway import running_gateway
from tests.support.raw_http import raw_request

MODEL = "gemini-2.5-flash"
BODY = {"contents": [{"parts": [{"text": "Name a bird."}]}], "generationConfig": {"maxOutputTokens": 100}}
USED = ReportedUsage(input_tokens=40, cached_tokens=10, output_tokens=7, thoughts_tokens=9)
LIST, SSE = f"{MODEL}:streamGenerateContent", f"{MODEL}:streamGenerateContent?alt=sse"


@pytest.fixture
async def vendor():
    async with GeminiSimulator() as simulator:
        yield simulator


@pytest.fixture
async def gateway(tmp_path, vendor):
    env = {"GEMINI_API_KEY": VENDOR_KEY, "GEMINI_UPSTREAM_URL": vendor.url}
    async with running_gateway(tmp_path, env=env) as running:
        yield running
        await running.assert_clean()


@pytest.fixture
async def client(gateway):
    headers = {"x-goog-api-key": await gateway.new_token()}
    base_url = f"{gateway.url}/api/gemini/v1beta/models"
    async with httpx.AsyncClient(base_url=base_url, headers=headers, trust_env=False, timeout=30) as client:
        yield client


async def ask(client, path, **more):
    return await client.post(f"{client.base_url}{path}", json=BODY, **more)


async def booked(gateway):
    entry = await gateway.only_entry()
    return entry["outcome"], entry["basis"], [line["counts"] for line in orjson.loads(entry["usage"])]


@pytest.mark.parametrize("split", [None, 7])
@pytest.mark.parametrize("gzip", [False, True])
async def test_a_list_is_streamed_byte_for_byte_and_booked_as_told(gateway, client, vendor, split, gzip):
    vendor.next(streams(events=20, thinking="Hm.", usage=USED, split=split, gzip=gzip))
    answer = await ask(client, LIST)
    chunks = answer.json()
    assert (answer.status_code, len(chunks)) == (200, 21)
    assert chunks[-1]["usageMetadata"] == USED.metadata()
    assert await booked(gateway) == ("completed", "reported", [USED.counts()])


async def test_the_elements_of_a_list_pass_as_they_come_and_its_bracket_waits_for_the_books(
    gateway, client, vendor
):
    gate = Gate()
    vendor.next(stalls_after(9, gate=gate, events=9, usage=USED))
    request = client.build_request("POST", f"{client.base_url}{LIST}", json=BODY)
    answer = await client.send(request, stream=True)
    pieces = answer.aiter_raw()
    received = b""
    while received.count(b'"finishReason"') == 0:
        received += await anext(pieces)
    assert not received.endswith(b"]")
    assert await gateway.service.store.readers.rows("SELECT 1 FROM entries WHERE kind = 'settle'") == []
    gate.open()
    async for piece in pieces:
        received += piece
        if piece.endswith(b"]"):
            rows = await gateway.service.store.readers.rows("SELECT 1 FROM entries WHERE kind = 'settle'")
            assert len(rows) == 1
    await answer.aclose()
    assert len(orjson.loads(received)) == 9
    assert await booked(gateway) == ("completed", "reported", [USED.counts()])


@pytest.mark.parametrize("path", [LIST, SSE])
@pytest.mark.parametrize("ending", list(Ending))
@pytest.mark.parametrize("after", [0, 1, 4])
async def test_what_is_cut_is_never_a_clean_end(gateway, client, vendor, path, ending, after):
    vendor.next(breaks_after(after, events=9, usage=USED, ending=ending))
    with pytest.raises(httpx.RemoteProtocolError):
        await ask(client, path)
    entry = await gateway.only_entry()
    assert (entry["outcome"], entry["basis"]) == ("upstream_failed", "estimated")
    assert entry["cost_nanousd"] > 0


@pytest.mark.parametrize("path", [LIST, SSE])
async def test_an_error_within_a_stream_passes_and_only_what_was_counted_is_booked(
    gateway, client, vendor, path
):
    vendor.next(errors_after(4, events=9, usage=USED))
    answer = await ask(client, path)
    assert b'"UNAVAILABLE"' in answer.content
    assert await booked(gateway) == ("upstream_failed", "estimated", [USED.at_first().counts()])


async def test_a_client_that_leaves_is_billed_what_the_vendor_tells_at_the_end(gateway, client, vendor):
    gate = Gate()
    vendor.next(stalls_after(3, gate=gate, events=9, usage=USED))
    asking = spawn(ask(client, LIST), name="the client that leaves")
    await gate.reached()
    asking.cancel()
    await gateway.until(lambda: gateway.metric("automna_drains") == 1)
    gate.open()
    assert await booked(gateway) == ("client_left", "reported", [USED.counts()])


async def test_a_token_in_the_query_is_taken_out_and_the_rest_goes_up_as_it_came(gateway, vendor):
    token = await gateway.new_token()
    for query, left in (
        (f"key={token}", ""),
        (f"alt=sse&key={token}", "?alt=sse"),
        (f"key={token}&alt=s%73e", "?alt=s%73e"),
        (f"key={token}&alt=sse&key={token}", "?alt=sse"),
        (f"%6bey={token}", ""),
    ):
        target = f"/api/gemini/v1/models/{MODEL}:streamGenerateContent?{query}".encode()
        answer = await raw_request(gateway.url, "POST", target, [], orjson.dumps(BODY))
        assert answer.status == 200
        request = vendor.requests[-1]
        assert request.target == f"/v1/models/{MODEL}:streamGenerateContent{left}"
        assert request.header(b"x-goog-api-key") == VENDOR_KEY.encode()
    assert token not in str(gateway.lines)


HIDING = [
    "fields=candidates", "%24fields=candidates", "alt=proto", "alt=media", "$alt=proto", "%24alt=json%3Benum-encoding%3Dint",
    "callback=f", "prettyPrint=false", "$.xgafv=2", "access_token=x", "quotaUser=u", "upload_protocol=raw", "$httpMethod=GET",
    "$userProject=p", "alt=sse&alt=proto", "al%74=proto", "alt=sse;fields=x",
]  # fmt: skip


@pytest.mark.parametrize("query", HIDING)
async def test_parameters_that_could_hide_the_usage_or_choose_an_account_are_refused(
    gateway, client, vendor, query
):
    target = f"{urlsplit(str(client.base_url)).path}{MODEL}:streamGenerateContent?{query}".encode()
    headers = [(b"x-goog-api-key", client.headers["x-goog-api-key"].encode())]
    answer = await raw_request(gateway.url, "POST", target, headers, orjson.dumps(BODY))
    assert answer.status == 400
    assert answer.json()["error"]["status"] == "INVALID_ARGUMENT"
    assert vendor.requests_total == 0


@pytest.mark.parametrize(
    "path",
    [
        "/v1beta/cachedContents", "/v1beta/files", "/upload/v1beta/files", "/v1beta/tunedModels", "/v1beta/interactions",
        "/v1beta/openai/chat/completions", f"/v1beta/models/{MODEL}:batchGenerateContent", "/v1beta/batches",
        f"/v1beta/models/{MODEL}:predict", f"/v2/models/{MODEL}:generateContent", f"/models/{MODEL}:generateContent",
        f"/v1beta/tunedModels/{MODEL}:generateContent", f"/v1beta/models/{MODEL}:asyncBatchEmbedContent",
        "/v1beta/fileSearchStores", "/v1beta/auth_tokens", f"/v1beta/models/{MODEL}:generateContent:x",
        "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent",
    ],
)  # fmt: skip
async def test_everything_else_of_the_vendor_does_not_exist(gateway, client, vendor, path):
    answer = await client.post(f"{gateway.url}/api/gemini{path}", json=BODY)
    assert (answer.status_code, answer.json()["error"]["status"]) == (404, "NOT_FOUND")
    assert vendor.requests_total == 0


async def test_headers_that_could_choose_fields_or_an_account_stay_behind(gateway, client, vendor):
    headers = {
        "x-goog-fieldmask": "candidates",
        "x-goog-user-project": "p",
        "X-HTTP-Method-Override": "GET",
        "x-server-timeout": "9",
    }
    assert (await ask(client, f"{MODEL}:generateContent", headers=headers)).status_code == 200
    (request,) = vendor.requests
    names = {name for name, _ in request.headers}
    assert not names & {b"x-goog-fieldmask", b"x-goog-user-project", b"x-http-method-override"}
    assert request.header(b"x-server-timeout") == b"9"
