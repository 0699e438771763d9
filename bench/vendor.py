"""The vendor of streams, lean: a process that answers with bytes made beforehand.

    python -m bench.vendor PORT_FILE [--paced]

It looks at nothing but a request's path and where it ends; a simulator that thinks would be the bottleneck. Bursts
are one write: 60 events, each a chunk of its own. Paced streams (Anthropic's) write an event every 20 ms, each
stamped with the time of its writing (CLOCK_MONOTONIC, one clock for all processes). Ids are new in every answer
where users own them.
"""

import asyncio
import contextlib
import re
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import cast

import uvloop

from bench.traffic import ANTHROPIC, ID_PLACE, TRAFFICS, Traffic, burst_events, chunked
from simulators.script import chunk

PACE_S = 0.02
"""50 events a second."""
STAMP = b"0" * 16
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n%b"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
UNKNOWN = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
_PATH = re.compile(rb"POST (\S+) ")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_ID_PLACE = ID_PLACE.encode()
_numbers = count()


def stamped(event: bytes) -> bytes:
    """An event with a place for the time of its writing, in microseconds."""
    return b": at " + STAMP + b"\n" + event


def with_stamp(event_chunk: bytes) -> bytes:
    return event_chunk.replace(STAMP, b"%016d" % (time.monotonic_ns() // 1000), 1)


def head_of(traffic: Traffic) -> bytes:
    name = traffic.request_id_header
    return HEAD % (f"{name}: req_bench\r\n".encode() if name else b"")


def with_new_ids(answer: bytes) -> bytes:
    return answer.replace(_ID_PLACE, b"%032x" % next(_numbers)) if _ID_PLACE in answer else answer


class Answers:
    """Every answer, made once."""

    def __init__(self) -> None:
        self.bursts = {
            traffic.path_of(is_streaming=True).encode(): head_of(traffic) + chunked(burst_events(traffic))
            for traffic in TRAFFICS
        }
        self.paced_head = head_of(ANTHROPIC)
        self.paced = [chunk(stamped(event)) for event in burst_events(ANTHROPIC)]


class Vendor(asyncio.Protocol):
    """One connection: requests one after the other."""

    def __init__(self, answers: Answers, *, is_paced: bool) -> None:
        self._answers = answers
        self._is_paced = is_paced
        self._seen = bytearray()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._seen += data
        head_end = self._seen.find(b"\r\n\r\n")
        if head_end < 0:
            return
        found = _LENGTH.search(self._seen, 0, head_end)
        end = head_end + 4 + (int(found[1]) if found else 0)
        if len(self._seen) < end:
            return
        path = _PATH.match(self._seen)
        burst = self._answers.bursts.get(path[1] if path else b"", UNKNOWN)
        del self._seen[:end]
        if self._is_paced:
            self._transport.write(self._answers.paced_head + with_stamp(self._answers.paced[0]))
            self._due_s = asyncio.get_running_loop().time()
            self._later(1)
        else:
            self._transport.write(with_new_ids(burst))

    def _later(self, index: int) -> None:
        self._due_s += PACE_S
        self._timer = asyncio.get_running_loop().call_at(self._due_s, self._next, index)

    def _next(self, index: int) -> None:
        piece = with_stamp(self._answers.paced[index])
        if index + 1 == len(self._answers.paced):
            self._transport.write(piece + b"0\r\n\r\n")
        else:
            self._transport.write(piece)
            self._later(index + 1)


async def serve(say_port: Callable[[int], object], *, is_paced: bool) -> None:
    """Listen, say on which port, serve until SIGTERM."""
    loop, stopping, answers = asyncio.get_running_loop(), asyncio.Event(), Answers()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    server = await loop.create_server(
        lambda: Vendor(answers, is_paced=is_paced), "127.0.0.1", 0, backlog=2048
    )
    say_port(server.sockets[0].getsockname()[1])
    with contextlib.closing(server):
        await stopping.wait()


if __name__ == "__main__":
    port_file = Path(sys.argv[1])
    uvloop.run(serve(lambda port: port_file.write_text(str(port)), is_paced="--paced" in sys.argv))
