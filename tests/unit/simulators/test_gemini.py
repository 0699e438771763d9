"""The simulated Gemini, over real sockets: what it serves, how it counts, how it fails."""

import httpx
import orjson
import pytest

from simulators.gemini import (
    MODELS,
    VENDOR_KEY,
    Ending,
    GeminiSimulator,
    ReportedUsage,
    answers,
    breaks_after,
    errors_after,
    fails,
    replays,
    streams,
)

BODY = {"contents": [{"parts": [{"text": "Name a bird."}]}]}
MODEL = "/v1beta/models/gemini-2.5-flash"
EMBEDDING = "/v1/models/gemini-embedding-2"


@pytest.fixture
async def vendor():
    async with GeminiSimulator() as simulator:
        yield simulator


@pytest.fixture
async def client(vendor):
    async with httpx.AsyncClient(
        base_url=vendor.url, headers={"x-goog-api-key": VENDOR_KEY}, trust_env=False
    ) as client:
        yield client


def events_of(answer):
    """The data of every event, and what is no event."""
    pieces = answer.content.split(b"\r\n\r\n")
    return [
        orjson.loads(piece.removeprefix(b"data: ")) for piece in pieces if piece.startswith(b"data: ")
    ], pieces[-1]


async def test_a_whole_answer_and_both_streams_say_the_same(client, vendor):
    usage = ReportedUsage(
        input_tokens=10, cached_tokens=4, output_tokens=5, thoughts_tokens=6, tool_tokens=3, searches=2
    )
    vendor.next(*[streams(text="A robin sings.", thinking="Hm.", usage=usage)] * 3)
    whole = (await client.post(f"{MODEL}:generateContent", json=BODY)).json()
    events, rest = events_of(await client.post(f"{MODEL}:streamGenerateContent?alt=sse", json=BODY))
    elements = (await client.post(f"{MODEL}:streamGenerateContent", json=BODY)).json()
    assert rest == b""
    for chunks in (events, elements):
        parts = [part for chunk in chunks for part in chunk["candidates"][0]["content"]["parts"]]
        assert "".join(part["text"] for part in parts if not part.get("thought")) == "A robin sings."
        assert [chunk["candidates"][0].get("finishReason") for chunk in chunks] == [None] * (
            len(chunks) - 1
        ) + ["STOP"]
        assert chunks[0]["usageMetadata"] == usage.at_first().metadata()
        assert chunks[-1]["usageMetadata"] == whole["usageMetadata"] == usage.metadata()
    assert len(whole["candidates"][0]["groundingMetadata"]["webSearchQueries"]) == 2
    assert [told.usage for told in vendor.answers] == [usage] * 3
    assert [told.is_streaming for told in vendor.answers] == [False, True, True]


def test_the_counts_are_those_that_the_counters_of_the_answer_mean():
    usage = ReportedUsage(
        input_tokens=1, cached_tokens=20, input_audio_tokens=300, tool_tokens=4_000, output_tokens=5, thoughts_tokens=60, output_image_tokens=700
    )  # fmt: skip
    metadata = usage.metadata()
    assert metadata["promptTokenCount"] == 321
    assert metadata["candidatesTokenCount"] == 705
    assert metadata["totalTokenCount"] == 321 + 705 + 4_000 + 60
    assert sum(usage.counts().values()) == metadata["totalTokenCount"]
    assert "serviceTier" in metadata


async def test_embeddings_tell_their_tokens_in_names_of_their_own(client, vendor):
    item = {"model": "models/gemini-embedding-2", "content": {"parts": [{"text": "four"}]}}
    one = (await client.post(f"{EMBEDDING}:embedContent", json=item)).json()
    many = (await client.post(f"{EMBEDDING}:batchEmbedContents", json={"requests": [item, item]})).json()
    assert (len(one["embedding"]["values"]), len(many["embeddings"])) == (8, 2)
    assert one["usageMetadata"]["promptTokenDetails"] == [{"modality": "TEXT", "tokenCount": 1}]
    assert [told.usage.counts() for told in vendor.answers] == [{"input_tokens": 1}, {"input_tokens": 2}]
    vendor.next(streams(has_usage=False))
    assert "usageMetadata" not in (await client.post(f"{EMBEDDING}:embedContent", json=item)).json()


async def test_counts_and_models_are_served_page_by_page(client):
    assert (await client.post(f"{MODEL}:countTokens", json=BODY)).json() == {"totalTokens": 3}
    names, token = [], ""
    while len(names) < 99:
        page = (await client.get(f"/v1/models?pageSize=3&pageToken={token or 0}")).json()
        names += [model["name"] for model in page["models"]]
        token = page.get("nextPageToken")
        if token is None:
            break
    assert names == [f"models/{model.id}" for model in MODELS]
    assert (await client.get(MODEL)).json()["outputTokenLimit"] == 65_536


async def test_an_alias_is_answered_by_the_model_behind_it(client):
    answer = await client.post("/v1/models/gemini-flash-latest:generateContent", json=BODY)
    assert answer.json()["modelVersion"] == "gemini-3.6-flash"


@pytest.mark.parametrize(
    ("key", "status", "name"),
    [({}, 403, "PERMISSION_DENIED"), ({"x-goog-api-key": "wrong"}, 400, "INVALID_ARGUMENT")],
)
async def test_the_key_is_checked_as_the_vendor_does(vendor, key, status, name):
    async with httpx.AsyncClient(base_url=vendor.url, headers=key, trust_env=False) as client:
        error = (await client.post(f"{MODEL}:generateContent", json=BODY)).json()["error"]
        assert (error["code"], error["status"]) == (status, name)
        assert (await client.post(f"{MODEL}:generateContent?key={VENDOR_KEY}", json=BODY)).status_code == (
            200 if not key else 400
        )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/models/gemini-9:generateContent", 404),
        ("POST", "/v1/models/gemini-2.5-flash:predict", 404),
        ("POST", "/v1/files", 404),
        ("GET", f"{MODEL}:generateContent", 404),
        ("POST", f"{EMBEDDING}:embedContent", 400),
    ],
)
async def test_what_the_vendor_does_not_have_is_refused(client, method, path, status):
    assert (await client.request(method, path, json={})).status_code == status


async def test_errors_before_and_within_a_stream_have_the_vendors_shapes(client, vendor):
    details = ({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3s"},)
    vendor.next(fails(429, details=details), errors_after(2, events=5), errors_after(2, events=5))
    error = (await client.post(f"{MODEL}:generateContent", json=BODY)).json()["error"]
    assert (error["status"], error["details"]) == ("RESOURCE_EXHAUSTED", list(details))
    events, rest = events_of(await client.post(f"{MODEL}:streamGenerateContent?alt=sse", json=BODY))
    assert len(events) == 2
    assert orjson.loads(rest)["error"]["status"] == "UNAVAILABLE"
    elements = (await client.post(f"{MODEL}:streamGenerateContent", json=BODY)).json()
    assert [next(iter(element)) for element in elements] == ["candidates", "candidates", "error"]


@pytest.mark.parametrize("ending", [Ending.FIN, Ending.RESET])
async def test_a_stream_breaks_off_where_it_is_told_to(client, vendor, ending):
    vendor.next(breaks_after(2, events=5, ending=ending))
    with pytest.raises(httpx.TransportError):
        await client.post(f"{MODEL}:streamGenerateContent?alt=sse", json=BODY)


async def test_a_blocked_prompt_a_given_body_and_a_recorded_one(client, vendor):
    vendor.next(streams(block_reason="SAFETY"), answers({"x": 1}), replays(b"[]", "application/json"))
    blocked = (await client.post(f"{MODEL}:generateContent", json=BODY)).json()
    assert blocked["promptFeedback"] == {"blockReason": "SAFETY"}
    assert "candidates" not in blocked
    assert (await client.post(f"{MODEL}:generateContent", json=BODY)).json() == {"x": 1}
    assert (await client.post(f"{MODEL}:streamGenerateContent", json=BODY)).json() == []


async def test_the_header_speaks_of_counts(client, vendor):
    headers = {
        "x-simulate": "events=3,input=7,output=8,thoughts=9,cached=2,web_searches=1,tier=flex",
        "x-request-tag": "t",
    }
    await client.post(f"{MODEL}:streamGenerateContent?alt=sse", json=BODY, headers=headers)
    (told,) = vendor.answers
    assert told.tag == "t"
    assert told.usage.counts() == {
        "input_tokens": 7,
        "cache_read_tokens": 2,
        "output_tokens": 17,
        "web_searches": 1,
    }
    assert told.facts()["model"] == "gemini-2.5-flash"
