"""A vendor that sends as fast as it can, for ever: back-pressure while the client is slow, a bound once it has left,
and never more memory than the bounds add up to."""

import asyncio
import gzip
import itertools
import re
from pathlib import Path

import pytest
import pytest_asyncio

from simulators.anthropic import AnthropicSimulator
from simulators.script import Script, Send
from tests.matrix.caller import Caller
from tests.matrix.speeches import STREAM, WHOLE
from tests.support.process import serving

pytestmark = pytest.mark.asyncio(loop_scope="module")
MIB = 1024 * 1024
STANDS_STILL_S = 0.5
"""A vendor that could write nothing for so long is being held back."""
IN_BUFFERS_BYTES_MAX = 32 * MIB
"""Between vendor and client: four socket buffers, which the kernel lets grow to megabytes, and ours."""
FLOODED_BYTES_MIN = 64 * MIB
"""What a vendor got rid of at least, after the client had left: far above all that may be kept."""
GROWTH_BYTES_MAX = 40 * MIB
"""Of the server's memory, over its peak when it has served an ordinary answer. What a flood may fill: 8 MiB of an
unstreamed answer, 4 MiB of one event, twice 256 KiB of reads; the rest is what the allocator keeps."""
DRAIN_S = 1.0


BLANKS = gzip.compress(b" " * (16 * MIB))
"""A thousandth of what it unpacks to; one after the other they are one gzip body."""
START = STREAM.events("SimMatrix", 40)[0]
DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{}}\n\n'
EVENTS, JSON, GZIP = (
    ("content-type", "text/event-stream"),
    ("content-type", "application/json"),
    ("content-encoding", "gzip"),
)
FLOODS = {
    # name: is streamed, headers, what comes first, what comes over and over
    "events": (True, (EVENTS,), START, DELTA * 700),
    "one-event": (True, (EVENTS,), b"data: ", b"x" * 65_536),
    "whole": (False, (JSON,), b'{"content":"', b"x" * 65_536),
    "gzip-stream": (True, (EVENTS, GZIP), BLANKS, BLANKS * 4),
    "gzip-whole": (False, (JSON, GZIP), BLANKS, BLANKS * 4),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def flooded(tmp_path_factory):
    """A server in a process of its own, whose memory can be told from ours, and its vendor."""
    async with (
        AnthropicSimulator() as vendor,
        serving(
            tmp_path_factory.mktemp("flooded"),
            upstream=vendor.url,
            env={"DRAIN_AFTER_CLIENT_LEFT_S": str(DRAIN_S)},
        ) as server,
    ):
        await server.command("user", "add", "warm", "--plan", "test")
        yield server, vendor
        await server.assert_verified()


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_is_held_back_while_its_client_is_slow_and_bounded_once_it_has_left(flooded, flood):
    server, vendor = flooded
    is_streaming, headers, start, more = FLOODS[flood]
    async with server.directory() as directory:
        await directory.add_user(flood, plan="test")
        token, _ = await directory.create_token(flood)
    ordinary = await _ask(server, token, is_streaming=is_streaming, until_bytes=100)
    await ordinary.leave(resets=False)
    before_bytes = _peak_bytes(server.pid, anew=True)
    steps = itertools.chain([Send(start)], itertools.repeat(Send(more)))
    vendor.next(Script(headers=headers, steps=steps))

    caller = await _ask(server, token, is_streaming=is_streaming, until_bytes=MIB)
    exchange = vendor.exchanges[-1]
    await _until_it_stands_still(exchange)
    assert exchange.sent_bytes - caller.wire_bytes < IN_BUFFERS_BYTES_MAX
    assert _peak_bytes(server.pid) - before_bytes < GROWTH_BYTES_MAX

    sent_bytes, gone_before = exchange.sent_bytes, vendor.client_gone_total
    await caller.leave(resets=False)
    await server.until(lambda: vendor.client_gone_total > gone_before)
    assert exchange.sent_bytes - sent_bytes > FLOODED_BYTES_MIN
    assert _peak_bytes(server.pid) - before_bytes < GROWTH_BYTES_MAX
    await server.until_nothing_is_held()
    ((outcome, basis, cost, hold),) = server.rows(
        "SELECT e.outcome, e.basis, e.cost_nanousd, r.hold_nanousd FROM entries e "
        "JOIN reservations r ON r.id = e.reservation_id WHERE e.user_id = ?1 AND e.outcome <> 'completed'",
        flood,
    )
    assert (outcome, basis) == ("client_left", "estimated")
    assert STREAM.at_start_nanousd * (flood == "events") < cost <= hold


async def _ask(server, token, *, is_streaming: bool, until_bytes: int) -> Caller:
    """Ask, read so much of the answer, and no more."""
    caller = Caller(stops_reading_after_bytes=until_bytes)
    headers = [
        b"x-api-key: " + token.encode(),
        b"anthropic-version: 2023-06-01",
        b"accept-encoding: gzip",
    ]
    speech = STREAM if is_streaming else WHOLE
    await caller.ask(int(server.url.rpartition(":")[2]), speech.target, headers, speech.body())
    await caller.finished(10.0)
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
