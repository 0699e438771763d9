"""The client's side of a connection as ASGI has it (HTTP, specification 2.3): for our own endpoints, which Starlette serves."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol
from urllib.parse import unquote

from uvicorn.protocols.utils import get_local_addr, get_remote_addr

from proxy.request import SCHEME, Request
from proxy.surface import Headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]


class Answering(Protocol):
    """What a connection does for a request (see proxy/downstream.py)."""

    @property
    def transport(self) -> asyncio.Transport: ...

    async def arrival(self, request: Request) -> None: ...
    async def ending(self, request: Request) -> None: ...
    async def drain(self) -> None: ...
    def take_body(self, request: Request) -> bytes: ...
    def begin(self, status: int, headers: Headers, *, is_flushed_soon: bool) -> None: ...
    def write(self, piece: bytes, *, is_last: bool) -> None: ...


class AsgiCall:
    """One request, and its answer in an application's messages."""

    def __init__(
        self,
        connection: Answering,
        request: Request,
        *,
        state: Mapping[str, Any],
        extensions: Mapping[str, Any],
    ) -> None:
        self._connection = connection
        self._request = request
        self._has_all = False
        """The application was told the end of the body."""
        self._scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.version,
            "server": get_local_addr(connection.transport),
            "client": get_remote_addr(connection.transport),
            "scheme": SCHEME,
            "method": request.method,
            "root_path": "",
            "path": unquote(request.raw_path.decode("ascii")),
            "raw_path": request.raw_path,
            "query_string": request.query,
            "headers": request.headers,
            "state": dict(state),
            "extensions": extensions,
        }

    async def run(self, app: Application) -> None:
        await app(self._scope, self.receive, self.send)

    async def receive(self) -> Message:
        request, connection = self._request, self._connection
        await (connection.ending(request) if self._has_all else connection.arrival(request))
        if not request.is_open:
            return {"type": "http.disconnect"}
        self._has_all = request.is_whole
        body = connection.take_body(request)
        return {"type": "http.request", "body": body, "more_body": not self._has_all}

    async def send(self, message: Message) -> None:
        await self._connection.drain()
        if self._request.is_abandoned:
            return
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            self._connection.begin(message["status"], headers, is_flushed_soon=True)
        else:
            is_last = not message.get("more_body", False)
            self._connection.write(message.get("body", b""), is_last=is_last)
