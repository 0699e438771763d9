"""Recorded answers of OpenAI and Gemini through the running proxy: their bytes unchanged, their usage and cost exact.

(Anthropic's: test_relay_bytes.py.)
"""

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from metering.money import usd
from metering.usage import CACHE_READ, CACHE_WRITE_1H, CACHE_WRITE_30M, INPUT, OUTPUT, WEB_SEARCHES
from routes import SURFACES
from simulators import gemini, openai
from simulators.script import AtRandom
from tests.fixtures_llm import FOLDER, Recorded, recorded
from tests.support.gateway import DatedClock, Gateway, running_gateway

BUCKETS = {
    "input_uncached": INPUT,
    "cache_read": CACHE_READ,
    "cache_write_5m_or_30m": CACHE_WRITE_30M,
    "cache_write_1h": CACHE_WRITE_1H,
    "output": OUTPUT,
    "web_searches": WEB_SEARCHES,
}
SPLITS = [None, 1, 31, 1000, AtRandom(5, 200), AtRandom(6, 20)]
LONG_BYTES = 15_000
"""Longer bodies are not sent byte by byte."""
RECORDINGS = [*recorded("openai"), *recorded("gemini")]
each_recording = pytest.mark.parametrize(
    "recording",
    RECORDINGS or [pytest.param(None, marks=pytest.mark.skip(reason=f"no recorded bodies at {FOLDER}"))],
    ids=[one.file for one in RECORDINGS] or None,
)


@asynccontextmanager
async def staged(folder: Path, name: str) -> AsyncIterator[tuple[Any, Gateway, httpx.AsyncClient]]:
    """The vendor's simulator, the gateway before it, and a client that asks below the surface's mount."""
    kind, key = {
        "openai": (openai.OpenAISimulator, openai.VENDOR_KEY),
        "gemini": (gemini.GeminiSimulator, gemini.VENDOR_KEY),
    }[name]
    async with kind() as vendor:
        env = {f"{name.upper()}_API_KEY": key, f"{name.upper()}_UPSTREAM_URL": vendor.url}
        async with running_gateway(folder, env=env, clock=DatedClock(2026, 11, 20)) as gateway:
            headers = {"authorization": f"Bearer {await gateway.new_token()}"}
            async with httpx.AsyncClient(headers=headers, timeout=30, trust_env=False) as client:
                yield vendor, gateway, client


def body_for(recording: Recorded, *, asks_for_usage: bool) -> dict[str, Any]:
    """A request that a recording answers."""
    asked, path = recording.request, urlsplit(recording.request["uri"]).path
    tier = {"service_tier": asked["service_tier"]} if "service_tier" in asked else {}
    if path.endswith("/chat/completions"):
        usage = {"stream_options": {"include_usage": True}} if asks_for_usage else {}
        stream = {"stream": True, **usage} if asked["stream"] else {}
        messages = [{"role": "user", "content": "Hello"}]
        return {"model": asked["model"], "max_completion_tokens": 500, "messages": messages, **stream}
    if path.endswith("/responses"):
        return {"model": asked["model"], "input": "Hello", "stream": True, **tier}
    if path.endswith("/embeddings"):
        return {"model": asked["model"], "input": "Hello"}
    if path.endswith(":batchEmbedContents"):
        return {
            "requests": [{"model": "models/gemini-embedding-2", "content": {"parts": [{"text": "Hello"}]}}]
        }
    return {"contents": [{"parts": [{"text": "Hello"}]}]}


def expectation(recording: Recorded) -> list[tuple[str, dict[str, int]]]:
    assert recording.expected is not None
    return [
        (row["model"], {unit: row[name] for name, unit in BUCKETS.items() if row[name]})
        for row in recording.expected
    ]


@each_recording
@pytest.mark.parametrize("is_gzip", [False, True], ids=["plain", "gzip"])
async def test_a_recorded_answer_passes_unchanged_and_costs_its_list_price(tmp_path, recording, is_gzip):
    body = gzip.compress(recording.body, mtime=0) if is_gzip else recording.body
    coding = "gzip" if is_gzip else None
    splits = [split for split in SPLITS if split != 1 or len(body) <= LONG_BYTES]
    path = urlsplit(recording.request["uri"]).path
    asks = recording.expected is not None  # else the recording is of one that did not ask
    async with staged(tmp_path, recording.vendor) as (vendor, gateway, client):
        for split in splits:
            vendor.next(
                vendor.behaviour_type(
                    raw=openai.replays(body, recording.content_type, content_encoding=coding).raw, split=split
                )
            )
            url = f"{gateway.url}/api/{recording.vendor}{path}"
            answer = await client.post(url, json=body_for(recording, asks_for_usage=asks))
            assert answer.status_code == 200, answer.text
            assert answer.content == recording.body, split
            assert answer.headers["content-type"] == recording.content_type
        await gateway.assert_clean()
        entries = await gateway.entries()
        assert len(entries) == len(splits)
        for entry in entries:
            if recording.expected is None:
                assert (entry["outcome"], entry["basis"]) == ("completed", "estimated")
                assert entry["cost_nanousd"] > 0
                continue
            lines = [(line["model"], line["counts"]) for line in json.loads(entry["usage"])]
            assert lines == expectation(recording)
            assert Decimal(usd(entry["cost_nanousd"])) == Decimal(recording.usd)
            assert (entry["outcome"], entry["basis"], entry["notes"]) == ("completed", "reported", None)


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recorded bodies at {FOLDER}")
@pytest.mark.parametrize("split", [None, 1, 100])
async def test_an_array_as_the_vendor_compressed_it_passes_unchanged(tmp_path, split):
    wire = (FOLDER / "gemini_stream_json_array.json.gz").read_bytes()
    plain = (FOLDER / "gemini_stream_json_array.json").read_bytes()
    async with staged(tmp_path, "gemini") as (vendor, gateway, client):
        kind = "application/json; charset=UTF-8"
        vendor.next(gemini.replays(wire, kind, content_encoding="gzip", split=split))
        url = f"{gateway.url}/api/gemini/v1beta/models/gemini-flash-latest:streamGenerateContent"
        body = {"contents": [{"parts": [{"text": "Hello"}]}]}
        async with client.stream("POST", url, json=body) as answer:
            received = b"".join([piece async for piece in answer.aiter_raw()])
        assert received == wire
        assert answer.headers["content-encoding"] == "gzip"
        assert gzip.decompress(received) == plain
        entry = await gateway.only_entry()
        assert Decimal(usd(entry["cost_nanousd"])) == Decimal("0.001107")


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recorded bodies at {FOLDER}")
def test_recorded_errors_are_told_apart_by_whom_they_are_about():
    dialects = {surface.name: surface.dialect for surface in SURFACES}
    for text in (FOLDER / "errors.jsonl").read_text(encoding="utf-8").splitlines():
        error = json.loads(text)
        body = json.dumps(error["body"]).encode()
        is_google = isinstance(error["body"]["error"].get("code"), int)
        name = "gemini" if is_google else "anthropic" if "request_id" in error["body"] else "openai"
        problem = dialects[name].account_problem(error["status"], body, [])
        assert (problem is not None) is (error["status"] == 429), text
