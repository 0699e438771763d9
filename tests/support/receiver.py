"""Who receives webhooks: a real HTTP server on loopback that answers as it is told and keeps what came."""

import asyncio
import base64
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from standardwebhooks import Webhook

SECRET = "whsec_" + base64.b64encode(b"receiver's secret, 32 bytes long").decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"the secret of before, also long.").decode()
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def answers(status: int, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", "content-length: 0", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@dataclass(frozen=True, slots=True)
class Received:
    """One attempt as it arrived."""

    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str = SECRET) -> "Received":
        """By the standard's own library. Raises WebhookVerificationError."""
        Webhook(secret).verify(self.body, self.headers)
        return self


Behaviour = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Receiver:
    """What it answers with (`next`, then OK) and what came so far."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    _next: deque[Behaviour] = field(default_factory=deque)
    always: Behaviour = OK
    open_now: int = 0
    open_most: int = 0

    def next(self, *behaviours: Behaviour) -> None:
        self._next.extend(behaviours)

    def bodies_by_id(self) -> dict[str, set[bytes]]:
        found: dict[str, set[bytes]] = {}
        for each in self.received:
            found.setdefault(each.id, set()).add(each.body)
        return found

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {
                    name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])
                }
                body = await reader.readexactly(int(headers["content-length"]))
                self.received.append(Received(head[0].split(" ")[1], headers, body))
                await self._answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        behaviour = self._next.popleft() if self._next else self.always
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        try:
            if isinstance(behaviour, bytes):
                writer.write(behaviour)
                await writer.drain()
            else:
                await behaviour(writer)
        finally:
            self.open_now -= 1


@asynccontextmanager
async def receiving(port: int = 0, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", port, ssl=tls)
    scheme = "http" if tls is None else "https"
    receiver.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/hooks?of=automna"
    try:
        yield receiver
    finally:
        server.close()
        server.close_clients() if hasattr(server, "close_clients") else None
