"""What the vendor sent is what the client gets, byte for byte, and what the ledger books is what it said."""

import asyncio
import gzip
import json
from decimal import Decimal

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.money import usd
from metering.usage import CACHE_READ, CACHE_WRITE_1H, CACHE_WRITE_5M, INPUT, OUTPUT, WEB_SEARCHES
from simulators.anthropic import AnthropicSimulator, ReportedUsage, replays, streams
from simulators.script import AtRandom
from tests.fixtures_llm import FOLDER, each_recorded
from tests.support.gateway import DatedClock, Gateway, client_of, messages_body, running_gateway

BUCKETS = {
    "input_uncached": INPUT,
    "cache_read": CACHE_READ,
    "cache_write_5m_or_30m": CACHE_WRITE_5M,
    "cache_write_1h": CACHE_WRITE_1H,
    "output": OUTPUT,
    "web_searches": WEB_SEARCHES,
}
SPLITS = [None, 31, 1000, AtRandom(5, 200)]
SHORT_BYTES = 5_000
"""Bodies up to here are also sent byte by byte."""
UNREADABLE = gzip.compress(b"")[:10] + b"\xff" * 20
WEB_SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}


@pytest.fixture
async def gateway(tmp_path, vendor):
    clock = DatedClock(2026, 11, 20)
    async with running_gateway(tmp_path, upstream=vendor.url, clock=clock) as running:
        yield running


@pytest.fixture
async def client(gateway):
    async with client_of(gateway, await gateway.new_token()) as agent:
        yield agent


async def raw(client: httpx.AsyncClient, body, **headers) -> tuple[httpx.Response, bytes]:
    """The answer and its bytes as they went over the wire, still encoded."""
    async with client.stream("POST", "/v1/messages", json=body, headers=headers) as answer:
        return answer, b"".join([piece async for piece in answer.aiter_raw()])


def counts_of(entry) -> list[tuple[str, dict[str, int]]]:
    """The usage of an entry: counts by model, as the vendor named it."""
    return [(line["model"], line["counts"]) for line in json.loads(entry["usage"])]


def request_of(recording):
    """The request that a recording answers; where it is not known, one that its answer fits."""
    asked = recording.request
    return messages_body(
        stream=recording.content_type.startswith("text/event-stream"),
        model=asked.get("model", "claude-fable-5"),
        max_tokens=asked.get("max_tokens", 4096),
        **({"tools": [WEB_SEARCH]} if any(row["web_searches"] for row in recording.expected) else {}),
    )


def expectation(recording):
    return [
        (row["model"], {unit: row[name] for name, unit in BUCKETS.items() if row[name]})
        for row in recording.expected
    ]


@each_recorded("anthropic")
@pytest.mark.parametrize("is_gzip", [False, True], ids=["plain", "gzip"])
async def test_a_recorded_answer_passes_unchanged_and_costs_its_list_price(
    gateway, vendor, client, recording, is_gzip
):
    body = gzip.compress(recording.body) if is_gzip else recording.body
    coding = "gzip" if is_gzip else None
    splits = [*SPLITS, 1] if len(body) <= SHORT_BYTES else SPLITS
    for split in splits:
        vendor.next(replays(body, recording.content_type, content_encoding=coding, split=split))
        answer, received = await raw(client, request_of(recording))
        assert received == body, split
        assert answer.status_code == 200
        assert answer.headers["content-type"] == recording.content_type
        assert answer.headers.get("content-encoding") == coding
    await gateway.assert_clean()
    entries = await gateway.entries()
    assert len(entries) == len(splits) == len(gateway.lines)
    for entry in entries:
        assert counts_of(entry) == expectation(recording)
        assert Decimal(usd(entry["cost_nanousd"])) == Decimal(recording.usd)
        assert (entry["outcome"], entry["basis"], entry["notes"]) == ("completed", "reported", None)


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recorded bodies at {FOLDER}")
@pytest.mark.parametrize("split", [None, 1, 100])
async def test_a_stream_as_the_vendor_compressed_it_passes_unchanged(gateway, vendor, client, split):
    body = (FOLDER / "anthropic_stream_thinking.sse.gz").read_bytes()
    vendor.next(replays(body, "text/event-stream; charset=utf-8", content_encoding="gzip", split=split))
    answer, received = await raw(
        client, messages_body(stream=True, model="claude-haiku-4-5", max_tokens=8192)
    )
    assert received == body
    assert answer.headers["content-encoding"] == "gzip"
    entry = await gateway.only_entry()
    assert counts_of(entry) == [("claude-haiku-4-5-20251001", {INPUT: 46, OUTPUT: 133})]
    assert Decimal(usd(entry["cost_nanousd"])) == Decimal("0.000711")


@pytest.mark.parametrize("wire_split", [None, 100], ids=["whole", "in pieces"])
@pytest.mark.parametrize(
    ("behind", "basis"), [(b"", "reported"), (UNREADABLE, "estimated")], ids=["sound", "cut"]
)
async def test_what_cannot_be_decoded_behind_an_answer_makes_an_estimate_of_what_it_reports(
    gateway, vendor, client, wire_split, behind, basis
):
    """More may have been reported there: what has been read is booked, and not as all there was."""
    told = {"model": "claude-haiku-4-5", "usage": {"input_tokens": 46, "output_tokens": 133}}
    body = gzip.compress(json.dumps(told).encode()) + behind
    vendor.next(replays(body, "application/json", content_encoding="gzip", wire_split=wire_split))
    _, received = await raw(client, messages_body(model="claude-haiku-4-5", max_tokens=200))
    assert received == body
    entry = await gateway.only_entry()
    assert counts_of(entry) == [("claude-haiku-4-5", {INPUT: 46, OUTPUT: 133})]
    assert (entry["outcome"], entry["basis"]) == ("completed", basis)


@pytest.fixture
def both(vendor, gateway, client) -> tuple[AnthropicSimulator, Gateway, httpx.AsyncClient]:
    return vendor, gateway, client


USAGES = st.builds(
    ReportedUsage,
    input_tokens=st.integers(0, 100_000),
    output_tokens=st.integers(1, 4_000),
    cache_read_tokens=st.integers(0, 50_000),
    cache_write_5m_tokens=st.integers(0, 50_000),
    cache_write_1h_tokens=st.just(0),
    web_searches=st.integers(0, 3),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    usage=USAGES,
    events=st.integers(7, 80),
    split=st.none() | st.integers(1, 300) | st.builds(AtRandom, st.integers(0, 10**6), st.integers(1, 400)),
    wire_split=st.none() | st.builds(AtRandom, st.integers(0, 10**6), st.integers(1, 400)),
    is_gzip=st.booleans(),
    is_stream=st.booleans(),
)
async def test_any_answer_in_any_pieces_passes_unchanged_and_is_booked_as_reported(
    both, usage, events, split, wire_split, is_gzip, is_stream
):
    vendor, gateway, client = both
    behaviour = streams(
        events=events, usage=usage, split=split, wire_split=wire_split, gzip=is_gzip, thinking="a robin?"
    )
    headers = {"accept-encoding": "gzip" if is_gzip else "identity"}
    body = messages_body(stream=is_stream, max_tokens=2_000)  # a slice: what may need more is asked for plain
    expected = await straight_from(vendor, behaviour, body, headers)
    vendor.next(behaviour)
    answer, received = await raw(client, body, **headers)
    assert same_but_for_ids(received, expected, is_gzip=is_gzip)
    assert answer.headers.get("content-encoding") == ("gzip" if is_gzip else None)
    *_, entry = (entry for entry in await gateway.entries() if entry["kind"] == "settle")
    assert entry["basis"] == "reported"
    ((_, counts),) = counts_of(entry)
    assert counts == usage.counts()


async def straight_from(vendor, behaviour, body, headers) -> bytes:
    """The same answer without the proxy."""
    vendor.next(behaviour)
    known = {"x-api-key": "sk-ant-api03-simulated-vendor-key", "anthropic-version": "2023-06-01", **headers}
    async with httpx.AsyncClient(base_url=vendor.url, headers=known, trust_env=False) as agent:
        _, received = await raw(agent, body)
    return received


def same_but_for_ids(received: bytes, expected: bytes, *, is_gzip: bool) -> bool:
    """Message ids count up with the requests; compressed, they move every byte after them."""
    if is_gzip:
        received, expected = gzip.decompress(received), gzip.decompress(expected)
    return blank_ids(received) == blank_ids(expected)


def blank_ids(body: bytes) -> bytes:
    head, mark, rest = body.partition(b'"id":"msg_01Sim')
    return head + mark + rest[19:]


async def test_a_hundred_random_streams_at_once_are_kept_apart(tmp_path, vendor):
    bodies = {}
    for number in range(100):
        usage = ReportedUsage(input_tokens=number + 1, output_tokens=number + 2)
        bodies[number] = (streams(events=10 + number % 50, usage=usage, split=AtRandom(number, 500)), usage)

    def chosen(request):
        return bodies[int(request.header(b"x-number"))][0]

    vendor.script = chosen
    async with (
        running_gateway(tmp_path, upstream=vendor.url) as gateway,
        client_of(gateway, await gateway.new_token()) as client,
    ):
        answers = await asyncio.gather(
            *(
                raw(client, messages_body(stream=True, max_tokens=4000), **{"x-number": str(n)})
                for n in bodies
            )
        )
        by_upstream_id = {entry["upstream_request_id"]: entry for entry in await gateway.entries()}
        assert len(by_upstream_id) == len(bodies)
        for number, (answer, received) in enumerate(answers):
            assert answer.status_code == 200
            assert received.endswith(b"\n\n")
            ((_, counts),) = counts_of(by_upstream_id[answer.headers["request-id"]])
            assert counts == bodies[number][1].counts()
        await gateway.assert_clean()
