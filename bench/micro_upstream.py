"""The upstream client alone: requests/s and CPU per request at 64 connections, beside httpx.

    python bench/micro_upstream.py [requests]

The server runs in a process of its own; the client's CPU is this process's. 2 KB requests, 300 byte answers.
"""

import asyncio
import multiprocessing
import sys
import time
from collections.abc import Awaitable, Callable
from typing import cast

import httpx
import uvloop

from proxy.upstream import Origin, Timeouts, UpstreamClient

CONCURRENCY = 64
BODY = b"x" * 2048
ANSWER_BODY = b"y" * 300
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 300\r\n\r\n" + ANSWER_BODY
HEADERS = [(b"authorization", b"Bearer key"), (b"content-type", b"application/json"), (b"accept", b"*/*")]
TIMEOUTS = Timeouts(connect_s=5, first_byte_s=60, idle_s=60, pool_idle_s=30)


class Server(asyncio.Protocol):
    """Answers as soon as a head and as many bytes as every request here has are in."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.seen = bytearray()

    def data_received(self, data: bytes) -> None:
        self.seen += data
        head_end = self.seen.find(b"\r\n\r\n")
        if head_end >= 0 and len(self.seen) >= head_end + 4 + len(BODY):
            del self.seen[: head_end + 4 + len(BODY)]
            self.transport.write(ANSWER)


def serve(port: "multiprocessing.Queue[int]") -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


async def measure(name: str, requests: int, once: Callable[[], Awaitable[None]]) -> None:
    left = iter(range(requests))

    async def worker() -> None:
        for _ in left:
            await once()

    await asyncio.gather(*(once() for _ in range(CONCURRENCY)))
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    print(f"{name:10} {requests / wall_s:8,.0f} requests/s  {cpu_s / requests * 1e6:7.1f} us CPU per request")


async def main(port: int, requests: int) -> None:
    client = UpstreamClient()
    origin = Origin("http", "127.0.0.1", port)

    async def lean() -> None:
        answer = await client.open(origin, b"POST", b"/v1/messages", HEADERS, BODY, TIMEOUTS)
        try:
            length = 0
            while data := await answer.read():
                length += len(data)
                if answer.is_complete:
                    break
            assert length == len(ANSWER_BODY)
        finally:
            answer.close()

    await measure("upstream", requests, lean)
    await client.aclose()

    async with httpx.AsyncClient() as httpx_client:

        async def heavy() -> None:
            url = f"http://127.0.0.1:{port}/v1/messages"
            async with httpx_client.stream("POST", url, headers=HEADERS, content=BODY) as answer:
                assert len(b"".join([data async for data in answer.aiter_raw()])) == len(ANSWER_BODY)

        await measure("httpx", max(requests // 10, 1), heavy)


if __name__ == "__main__":
    ports: "multiprocessing.Queue[int]" = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(ports,), daemon=True)
    server.start()
    try:
        uvloop.run(main(ports.get(timeout=10), int(sys.argv[1]) if len(sys.argv) > 1 else 50_000))
    finally:
        server.terminate()
