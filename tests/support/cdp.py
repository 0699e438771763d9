"""A raw client of the Chrome DevTools Protocol, as agents without a library write it."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection, connect

from simulators.script import WAIT_TIMEOUT_S

CLIENT_TIMEOUT_S = 3 * WAIT_TIMEOUT_S
"""A test that waits for what does not come must fail, not hang."""


class CdpError(Exception):
    """The browser refused a command."""


class Cdp:
    """One connection. Events that come while an answer is awaited are kept in `events`, in order."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []
        self._numbers = itertools.count(1)

    async def send(self, method: str, session_id: str | None = None, **params: Any) -> int:
        """A command; its number."""
        number = next(self._numbers)
        where = {} if session_id is None else {"sessionId": session_id}
        await self.socket.send(
            orjson.dumps({"id": number, "method": method, "params": params, **where}).decode()
        )
        return number

    async def call(self, method: str, session_id: str | None = None, **params: Any) -> dict[str, Any]:
        """The answer to a command. Raises CdpError."""
        number = await self.send(method, session_id, **params)
        while (message := await self.heard()).get("id") != number:
            self.events.append(message)
        if "error" in message:
            raise CdpError(message["error"]["message"])
        return message["result"]

    async def heard(self) -> dict[str, Any]:
        """The next message. TimeoutError if there is none."""
        return orjson.loads(await asyncio.wait_for(self.socket.recv(), WAIT_TIMEOUT_S))

    async def attach(self) -> str:
        """The id of a session with the browser's first page."""
        targets = (await self.call("Target.getTargets"))["targetInfos"]
        page = next(each for each in targets if each["type"] == "page")
        attached = await self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        return str(attached["sessionId"])


@asynccontextmanager
async def cdp(url: str, **more: Any) -> AsyncIterator[Cdp]:
    """A client of the browser at `url`, which takes messages of any size. TimeoutError if it is used for too long."""
    async with asyncio.timeout(CLIENT_TIMEOUT_S), connect(url, proxy=None, max_size=None, **more) as socket:
        yield Cdp(socket)
