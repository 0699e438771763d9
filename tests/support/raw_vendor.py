"""A vendor scripted byte by byte, for clients of HTTP/1.1."""

import asyncio
import contextlib
import ssl

from proxy.upstream import Origin


async def turns(count=5):
    """Let the loop go round a few times."""
    for _ in range(count):
        await asyncio.sleep(0)


class Vendor:
    """A server whose every connection runs `script(self, reader, writer)` and is closed after it."""

    def __init__(self, script):
        self.script = script
        self.requests = []
        self.connections = 0
        self.open_connections = 0
        self.changed = asyncio.Condition()
        self.go = asyncio.Event()

    async def request(self, reader):
        """The next request as (head, body)."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.startswith(b"content-length: "):
                length = int(line[16:])
        body = await reader.readexactly(length)
        self.requests.append((head, body))
        return head, body

    def accept(self, reader, writer):
        self.tasks.add(asyncio.get_running_loop().create_task(self.serve(reader, writer)))

    async def serve(self, reader, writer):
        self.connections += 1
        self.open_connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.script(self, reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
            self.open_connections -= 1
            async with self.changed:
                self.changed.notify_all()

    async def until_open_connections_are(self, count):
        async with self.changed:
            await self.changed.wait_for(lambda: self.open_connections == count)

    async def __aenter__(self):
        self.tasks = set()
        self.server = await asyncio.start_server(self.accept, "127.0.0.1", 0, ssl=self.tls)
        self.port = self.server.sockets[0].getsockname()[1]
        self.origin = Origin("https" if self.tls else "http", "127.0.0.1", self.port)
        return self

    tls = None

    async def __aexit__(self, *_):
        await turns()  # a connection that is just being accepted becomes a task, to be ended below
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def answering(*answers):
    """A script: one of `answers` per request on a connection, then hold the connection open."""

    async def script(vendor, reader, writer):
        for answer in answers:
            await vendor.request(reader)
            writer.write(answer)
            await writer.drain()
        await reader.read()

    return script


def answering_and_closing(answer):
    async def script(vendor, reader, writer):
        await vendor.request(reader)
        writer.write(answer)
        await writer.drain()

    return script
