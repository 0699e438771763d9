"""A vendor that sends as fast as it can, for ever: back-pressure while the client is slow, a bound once it has left,
and never more memory than the bounds add up to."""

import asyncio
import gzip
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from simulators.anthropic import AnthropicSimulator
from simulators.brave import VENDOR_KEY as BRAVE_KEY
from simulators.brave import BraveSimulator
from simulators.gemini import VENDOR_KEY as GEMINI_KEY
from simulators.gemini import GeminiSimulator
from simulators.openai import VENDOR_KEY as OPENAI_KEY
from simulators.openai import OpenAISimulator
from simulators.script import Script, Send
from tests.matrix.caller import Caller
from tests.matrix.speeches import (
    ANSWERS,
    CHAT_UNASKED,
    GEMINI,
    GEMINI_EVENTS,
    GEMINI_LIST,
    RESPONSE,
    RESPONSE_STREAM,
    SEARCH,
    STREAM,
    WHOLE,
    Speech,
)
from tests.support.process import serving

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.heavy]
MIB = 1024 * 1024
STANDS_STILL_S = 0.5
"""A vendor that could write nothing for so long is being held back."""
IN_BUFFERS_BYTES_MAX = 80 * MIB
"""Between vendor and client: two connections, each with what a kernel lets its buffers grow to (32 and 4 MiB), and ours."""
FLOODED_BYTES_MIN = 64 * MIB
"""What a vendor got rid of at least, after the client had left: far above all that may be kept."""
GROWTH_BYTES_MAX = 40 * MIB
"""Of the server's memory, over its peak when it has served an ordinary answer. What a flood may fill: 8 MiB of an
unstreamed answer, 4 MiB of one event, twice 256 KiB of reads; the rest is what the allocator keeps."""
GATED_GROWTH_BYTES_MAX = 80 * MIB
"""The same where a gate holds back what it cannot look through yet: an event of 16 MiB, a body of 32 MiB."""
DRAIN_S = 4.0


BLANKS = gzip.compress(b" " * (16 * MIB))
"""A thousandth of what it unpacks to; one after the other they are one gzip body."""
START = STREAM.events("SimMatrix", 40)[0]
DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{}}\n\n'
EVENTS, JSON, GZIP = (
    ("content-type", "text/event-stream"),
    ("content-type", "application/json"),
    ("content-encoding", "gzip"),
)
MEMBERS = b'"a":1,' * 10_000
NEW_IDS = b"".join(
    b'event: response.output_item.done\ndata: {"item":{"id":""},"n":%d}\n\n' % number for number in range(700)
)
SAID = b'data: {"choices":[{"delta":{"content":"<usage>{\\"X-Request-Queries\\":0}"}}]}\n\n'
FLOODS = {
    # name: speech, headers, what comes first, what comes over and over
    "events": (STREAM, (EVENTS,), START, DELTA * 700),
    "one-event": (STREAM, (EVENTS,), b"data: ", b"x" * 65_536),
    "whole": (WHOLE, (JSON,), b'{"content":"', b"x" * 65_536),
    "gzip-stream": (STREAM, (EVENTS, GZIP), BLANKS, BLANKS * 4),
    "gzip-whole": (WHOLE, (JSON, GZIP), BLANKS, BLANKS * 4),
    "gated-events": (CHAT_UNASKED, (EVENTS,), b"", b'data: {"choices":[]}\n\n' * 2_000),
    "gated-events-looked-at": (RESPONSE_STREAM, (EVENTS,), b"", NEW_IDS),
    "gemini-events": (GEMINI_EVENTS, (EVENTS,), b"", b'data: {"usageMetadata":{"promptTokenCount":1}}\r\n\r\n' * 1_000),
    "one-element": (GEMINI_LIST, (JSON,), b'[{"a":[{', MEMBERS),
    "one-text": (GEMINI_LIST, (JSON,), b'[{"text":"', b"x" * 65_536),
    "gemini-whole": (GEMINI, (JSON,), b"{", MEMBERS),
    "search": (SEARCH, (JSON,), b'{"web":"', b"x" * 65_536),
    "answers-events": (ANSWERS, (EVENTS,), b"", SAID * 1_000),
}  # fmt: skip
LOOKED_AT = {"gated-events-looked-at", "gemini-events", "one-element", "gemini-whole", "answers-events"}
"""Floods of which every few bytes must be looked at: the meter is slower than the vendor."""
STOPPED = {
    # the same, of what a gate stops
    "gated-event": (RESPONSE_STREAM, (EVENTS,), b"data: ", b"x" * 65_536),
    "gated-lines": (CHAT_UNASKED, (EVENTS,), b"", b"data: x\n" * 8_000),
    "gated-whole": (RESPONSE, (JSON,), b'{"output":[', b'{"id":""},' * 6_000),
    "gated-gzip-stream": (RESPONSE_STREAM, (EVENTS, GZIP), BLANKS, BLANKS * 4),
    "gated-gzip-whole": (RESPONSE, (JSON, GZIP), BLANKS, BLANKS * 4),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def flooded(tmp_path_factory):
    """A server in a process of its own, whose memory can be told from ours, and its vendor."""
    async with (
        AnthropicSimulator() as anthropic,
        OpenAISimulator() as openai,
        GeminiSimulator() as gemini,
        BraveSimulator() as brave,
        serving(
            tmp_path_factory.mktemp("flooded"),
            upstream=anthropic.url,
            env={
                "DRAIN_AFTER_CLIENT_LEFT_S": str(DRAIN_S),
                "OPENAI_API_KEY": OPENAI_KEY,
                "OPENAI_UPSTREAM_URL": openai.url,
                "GEMINI_API_KEY": GEMINI_KEY,
                "GEMINI_UPSTREAM_URL": gemini.url,
                "BRAVE_API_KEY": BRAVE_KEY,
                "BRAVE_UPSTREAM_URL": brave.url,
            },
        ) as server,
    ):
        await server.command("user", "add", "warm", "--plan", "test")
        yield server, {"anthropic": anthropic, "openai": openai, "gemini": gemini, "brave": brave}
        await server.assert_verified()


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_is_held_back_while_its_client_is_slow_and_bounded_once_it_has_left(flooded, flood):
    server, vendors = flooded
    speech, headers, start, more = FLOODS[flood]
    vendor = vendors[speech.dialect.vendor]
    token = await _new_token(server, flood)
    before_bytes = await _peak_after_an_ordinary_answer(server, token, speech)
    vendor.next(Script(headers=headers, steps=_endless(start, more)))

    caller = await _ask(server, token, speech, until_bytes=MIB)
    exchange = vendor.exchanges[-1]
    await _until_it_stands_still(exchange)
    assert exchange.sent_bytes - caller.wire_bytes < IN_BUFFERS_BYTES_MAX
    assert _peak_bytes(server.pid) - before_bytes < GROWTH_BYTES_MAX

    sent_bytes, gone_before = exchange.sent_bytes, vendor.client_gone_total
    await caller.leave(resets=False)
    await server.until(lambda: vendor.client_gone_total > gone_before)
    assert exchange.sent_bytes - sent_bytes > (MIB if flood in LOOKED_AT else FLOODED_BYTES_MIN)
    assert _peak_bytes(server.pid) - before_bytes < GROWTH_BYTES_MAX
    assert await _booked(server, flood) == ("client_left", "estimated")


@pytest.mark.parametrize("flood", STOPPED)
async def test_a_flood_that_a_gate_cannot_look_through_is_stopped_at_its_bound_and_told(flooded, flood):
    """The client is told and stays; the vendor is read for as long as if it had left."""
    server, vendors = flooded
    speech, headers, start, more = STOPPED[flood]
    vendor = vendors[speech.dialect.vendor]
    token = await _new_token(server, flood)
    before_bytes = await _peak_after_an_ordinary_answer(server, token, speech)
    vendor.next(Script(headers=headers, steps=_endless(start, more)))
    gone_before = vendor.client_gone_total

    caller = await _ask(server, token, speech)
    assert caller.is_whole
    assert b"cannot check for ids" in caller.body
    assert caller.status == (200 if speech.is_streaming else 502)
    await server.until(lambda: vendor.client_gone_total > gone_before)
    assert _peak_bytes(server.pid) - before_bytes < GATED_GROWTH_BYTES_MAX
    assert await _booked(server, flood) == ("upstream_failed", "estimated")
    await caller.leave(resets=False)


async def _new_token(server, user_id: str) -> str:
    async with server.directory() as directory:
        await directory.add_user(user_id, plan="test")
        token, _ = await directory.create_token(user_id)
    return token


async def _peak_after_an_ordinary_answer(server, token: str, speech: Speech) -> int:
    ordinary = await _ask(server, token, speech)
    await ordinary.leave(resets=False)
    return _peak_bytes(server.pid, anew=True)


def _endless(start: bytes, more: bytes) -> Iterator[Send]:
    return itertools.chain([Send(start)] if start else [], itertools.repeat(Send(more)))


async def _booked(server, user_id: str) -> tuple[str, str]:
    """The flood's outcome and basis; its cost is within its hold."""
    await server.until_nothing_is_held()
    ((outcome, basis, cost, hold),) = server.rows(
        "SELECT e.outcome, e.basis, e.cost_nanousd, r.hold_nanousd FROM entries e "
        "JOIN reservations r ON r.id = e.reservation_id WHERE e.user_id = ?1 AND e.outcome <> 'completed'",
        user_id,
    )
    assert STREAM.at_start_nanousd * (user_id == "events") < cost <= hold
    return outcome, basis


async def _ask(server, token, speech: Speech, *, until_bytes: int | None = None) -> Caller:
    """Ask, read so much of the answer, and no more."""
    caller = Caller(stops_reading_after_bytes=until_bytes)
    headers = [
        speech.dialect.key + token.encode(),
        b"anthropic-version: 2023-06-01",
        b"accept-encoding: gzip",
    ]
    port = int(server.url.rpartition(":")[2])
    await caller.ask(port, speech.target, headers, speech.body(), method=speech.method)
    await caller.finished(60.0)
    return caller


async def _until_it_stands_still(exchange) -> None:
    while True:
        sent_bytes = exchange.sent_bytes
        await asyncio.sleep(STANDS_STILL_S)
        if exchange.sent_bytes == sent_bytes:
            return


def _peak_bytes(pid: int, *, anew: bool = False) -> int:
    """The most memory that a process has had, ever or from now on (proc(5): VmHWM, clear_refs)."""
    if anew:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(line) * 1024
