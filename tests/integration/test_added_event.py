"""A streamed chat whose client did not ask for usage: we ask, and take out the one chunk that is there for us."""

import gzip
import json
from typing import Any

import httpx
import orjson
import pytest

from simulators.openai import OpenAISimulator, breaks_after, replays, stalls_after
from simulators.script import AtRandom, Disconnect, Gate, Script, Send
from tests.support.openai import chat_body, openai_client_of, serving_openai

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5.6-sol"}
STREAM = "text/event-stream; charset=utf-8"


def event(**more: Any) -> bytes:
    return b"data: " + json.dumps({**HEAD, **more}).encode() + b"\n\n"


def delta(text: str) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}], usage=None)


FINISH = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=None)
USAGE = event(
    choices=[],
    usage={"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    service_tier="default",
)
MODERATION = event(choices=[], usage=None, moderation={"results": []})
DONE = b"data: [DONE]\n\n"
QUOTING = delta('he wrote "usage":{"prompt_tokens":1},"choices":[] and data: [DONE]')
TEXTS = [delta(""), delta("Red"), QUOTING, delta(" and blue. \u2028 \U0001f534"), FINISH]
BODIES = {
    "usage last": [*TEXTS, USAGE, DONE],
    "usage not last": [*TEXTS, USAGE, MODERATION, DONE],
    "usage before the text": [TEXTS[0], USAGE, *TEXTS[1:], DONE],
    "no usage after all": [*TEXTS, DONE],
    "CRLF": [piece.replace(b"\n", b"\r\n") for piece in [*TEXTS, USAGE, MODERATION, DONE]],
    "comments between": [b": ping\n\n", *TEXTS, b": ping\n\n", USAGE, b": ping\n\n", DONE],
}
NOT_ASKED: list[dict[str, Any]] = [
    {},
    {"stream_options": None},
    {"stream_options": {}},
    {"stream_options": {"include_usage": False}},
    {"stream_options": {"include_usage": None, "include_obfuscation": False}},
    {"stream_options": {"include_obfuscation": False}},
]


def is_usage(piece: bytes) -> bool:
    return piece.replace(b"\r\n", b"\n") == USAGE


@pytest.mark.parametrize("has_gzip", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", BODIES)
async def test_exactly_that_chunk_is_taken_out_whatever_the_chunks_on_the_wire(tmp_path, name, has_gzip):
    events = BODIES[name]
    body = b"".join(events)
    wire = gzip.compress(body, mtime=0) if has_gzip else body
    coding = "gzip" if has_gzip else None
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        async with openai_client_of(gateway, await gateway.new_token()) as client:
            for split in (None, 1, 7, *(AtRandom(seed, piece_bytes_max=200) for seed in range(6))):
                for is_asked in (False, True):
                    vendor.next(replays(wire, STREAM, content_encoding=coding, split=split))
                    more = {"stream_options": {"include_usage": True}} if is_asked else {}
                    answer = await client.post("/chat/completions", json=chat_body(stream=True, **more))
                    kept = [piece for piece in events if is_asked or not is_usage(piece)]
                    assert answer.content == b"".join(kept)
        entries = await gateway.entries()
        await gateway.assert_clean()
    expected = ("reported", 11, 7) if any(map(is_usage, events)) else None
    for entry in entries:
        told = (entry["basis"], entry["input_tokens"], entry["output_tokens"])
        assert told == expected or (expected is None and entry["basis"] == "estimated")


@pytest.mark.parametrize("more", NOT_ASKED, ids=map(str, NOT_ASKED))
@pytest.mark.parametrize("indent", [None, 2])
async def test_the_vendor_is_asked_for_usage_and_nothing_else_of_the_body_is_changed(tmp_path, more, indent):
    sent = {
        "stream": True,
        **chat_body(**more),
        "temperature": 1.0,
        "seed": 9007199254740993,
        "user": "é\u2028",
    }
    body = json.dumps(sent, indent=indent).encode()
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        async with openai_client_of(gateway, await gateway.new_token()) as client:
            headers = {"content-type": "application/json"}
            answer = await client.post("/chat/completions", content=body, headers=headers)
        assert answer.status_code == 200
        (request,) = vendor.requests
        assert int(request.header(b"content-length")) == len(request.body)
        received = orjson.loads(request.body)
        assert received.pop("stream_options") == {**(more.get("stream_options") or {}), "include_usage": True}
        assert received == {key: value for key, value in sent.items() if key != "stream_options"}
        for key, value in sent.items():
            if key != "stream_options" and not isinstance(value, list):
                assert json.dumps(value).encode() in request.body, "written as it came"
        (told,) = vendor.answers
        entry = await gateway.only_entry()
        assert (entry["basis"], entry["output_tokens"]) == ("reported", told.usage.completion_tokens)
        assert b'"choices":[]' not in answer.content


@pytest.mark.parametrize("more", [{}, {"stream": False}, {"stream": None}])
async def test_an_unstreamed_request_goes_up_as_it_came(tmp_path, more):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        async with openai_client_of(gateway, await gateway.new_token()) as client:
            body = json.dumps(chat_body(**more)).encode()
            headers = {"content-type": "application/json"}
            assert (await client.post("/chat/completions", content=body, headers=headers)).status_code == 200
        assert vendor.requests[0].body == body
        await gateway.only_entry()


async def received_until_cut(client: httpx.AsyncClient, body: dict[str, Any]) -> bytes:
    received = b""
    try:
        async with client.stream("POST", "/chat/completions", json=body) as answer:
            async for piece in answer.aiter_raw():
                received += piece
    except httpx.RemoteProtocolError:
        return received
    raise AssertionError("a clean end")


async def test_a_stream_that_breaks_off_is_told_as_an_error_and_its_half_event_is_not_shown(tmp_path):
    half = b"".join(TEXTS[:3]) + FINISH[:20]
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        vendor.next(Script(headers=(("content-type", STREAM),), steps=(Send(half), Disconnect())))
        async with openai_client_of(gateway, await gateway.new_token()) as client:
            received = await received_until_cut(client, chat_body(stream=True))
        assert received.startswith(b"".join(TEXTS[:3]) + b'data: {"error":')
        entry = await gateway.only_entry()
        assert (entry["outcome"], entry["basis"]) == ("upstream_failed", "estimated")


async def test_events_pass_one_by_one_although_one_will_be_taken_out(tmp_path):
    gate = Gate()
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        vendor.next(stalls_after(3, gate=gate))
        async with (
            openai_client_of(gateway, await gateway.new_token()) as client,
            client.stream("POST", "/chat/completions", json=chat_body(stream=True)) as answer,
        ):
            lines = answer.aiter_lines()
            before = [await anext(lines) for _ in range(6)]
            assert sum(line.startswith("data: ") for line in before) == 3
            gate.open()
            assert [line async for line in lines][-2:] == ["data: [DONE]", ""]
        await gateway.only_entry()


async def test_a_broken_stream_of_the_simulator_is_never_a_success(tmp_path):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        vendor.next(breaks_after(3))
        async with openai_client_of(gateway, await gateway.new_token()) as client:
            received = await received_until_cut(client, chat_body(stream=True))
        assert b"[DONE]" not in received
        assert b'"error"' in received
        await gateway.only_entry()
