"""Many slow streams at once: `python -m bench.paced ORIGIN PATH TOKENS BODY CONNECTIONS SECONDS`.

Each connection asks for one stream after the other; after so many seconds none is begun any more, and all must
finish. Every event carries the time of its writing (bench.vendor), on the clock that is read here too.
Prints one line of JSON.
"""

import asyncio
import gc
import json
import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import cast

import uvloop

from bench.open_loop import percentile, raw_requests
from bench.traffic import BURST_EVENTS
from bench.vendor import PACE_S

FINISHES_WITHIN_S = 30.0
"""After the last stream was begun."""
_STAMP = re.compile(rb": at (\d{16})\n")
END = b"\r\n0\r\n\r\n"


class Tally:
    """What all connections have seen, in seconds."""

    def __init__(self) -> None:
        self.first_byte_s: list[float] = []
        self.lateness_s: list[float] = []
        self.finished = 0
        self.wrong: list[str] = []


class Client(asyncio.Protocol):
    """One connection, one stream after the other until `ends_s` (monotonic)."""

    def __init__(self, tally: Tally, request: bytes, ends_s: float) -> None:
        self._tally = tally
        self._request = request
        self._ends_s = ends_s
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def begin(self) -> None:
        self._seen, self._searched_to, self._events = b"", 0, 0
        self._transport.write(self._request)
        self._began_s = time.monotonic()

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        self._seen += data
        for found in _STAMP.finditer(self._seen, self._searched_to):
            if not self._events:
                self._tally.first_byte_s.append(now_s - self._began_s)
            self._events += 1
            self._tally.lateness_s.append(now_s - int(found[1]) / 1e6)
            self._searched_to = found.end()
        if self._seen.endswith(END):
            self._finish(now_s)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._tally.wrong.append(f"connection lost after {self._events} events: {error}")
            self.done.set_result(None)

    def _finish(self, now_s: float) -> None:
        if self._events == BURST_EVENTS and self._seen.startswith(b"HTTP/1.1 200"):
            self._tally.finished += 1
        else:
            self._tally.wrong.append(f"{self._events} events: {self._seen[:200]!r}")
        if now_s < self._ends_s:
            self.begin()
        else:
            self.done.set_result(None)
            self._transport.close()


async def run(origin: str, requests: list[bytes], connections: int, seconds: float) -> Tally:
    """`connections` clients, begun evenly over the length of one stream."""
    host, _, port = origin.removeprefix("http://").partition(":")
    loop, tally = asyncio.get_running_loop(), Tally()
    ends_s = time.monotonic() + seconds
    clients = []
    for index in range(connections):
        request = requests[index % len(requests)]
        _, client = await loop.create_connection(partial(Client, tally, request, ends_s), host, int(port))
        clients.append(client)
    for index, client in enumerate(clients):
        loop.call_later(index * BURST_EVENTS * PACE_S / connections, client.begin)
    async with asyncio.timeout(seconds + FINISHES_WITHIN_S):
        await asyncio.gather(*(client.done for client in clients))
    return tally


def main() -> None:
    origin, path, tokens_file, body_file, connections, seconds = sys.argv[1:]
    tokens = Path(tokens_file).read_text(encoding="ascii").split()
    requests = raw_requests(path, tokens, Path(body_file).read_bytes())
    gc.disable()
    began_s = time.monotonic()
    tally = uvloop.run(run(origin, requests, int(connections), float(seconds)))
    if tally.wrong:
        sys.exit(f"{len(tally.wrong)} streams did not end as they should: {tally.wrong[0]}")
    print(
        json.dumps(
            {
                "answers": tally.finished,
                "duration_s": time.monotonic() - began_s,
                "first_byte_p50_ms": percentile(tally.first_byte_s, 50) * 1000,
                "first_byte_p99_ms": percentile(tally.first_byte_s, 99) * 1000,
                "lateness_p50_ms": percentile(tally.lateness_s, 50) * 1000,
                "lateness_p99_ms": percentile(tally.lateness_s, 99) * 1000,
            }
        )
    )


if __name__ == "__main__":
    main()
