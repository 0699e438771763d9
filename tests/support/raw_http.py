"""A request as bytes on a connection of its own: nothing is normalised, added or forgiven on the way."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools
import orjson

ANSWER_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """What came back. Header names in lower case, in order."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    wire: bytes
    """All of it as it came."""

    def header(self, name: bytes) -> bytes:
        """The first value of a header, b"" when absent."""
        return next((value for key, value in self.headers if key == name), b"")

    def json(self) -> Any:
        return orjson.loads(self.body)


async def raw_request(
    url: str, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
) -> RawAnswer:
    """Send one request and read to the connection's end. Host and, with a body, its length are added; the
    connection is asked to close unless `headers` have a `connection` of their own."""
    address = urlsplit(url)
    lines = [b"%s %s HTTP/1.1" % (method.encode(), target), b"host: %s" % address.netloc.encode()]
    lines += [b"%s: %s" % pair for pair in headers]
    if body:
        lines.append(b"content-length: %d" % len(body))
    if not any(name.lower() == b"connection" for name, _ in headers):
        lines.append(b"connection: close")
    async with asyncio.timeout(ANSWER_WITHIN_S):
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            return await _read(reader)
        finally:
            writer.close()


async def exchange_bytes(
    url: str,
    target: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
    *,
    length: int | None = None,
    method: str = "POST",
) -> bytes:
    """A request on a connection of its own; all that comes until the other side closes or resets it, whole or not.
    `length`: announced instead of the body's."""
    address = urlsplit(url)
    lines = [
        b"%s %s HTTP/1.1" % (method.encode(), target),
        b"host: x",
        b"connection: close",
        b"content-type: application/json",
    ]
    lines += [b"%s: %s" % pair for pair in headers]
    lines.append(b"content-length: %d" % (len(body) if length is None else length))
    async with asyncio.timeout(ANSWER_WITHIN_S):
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        received = b""
        try:
            with suppress(ConnectionError):
                writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
                while data := await reader.read(65_536):
                    received += data
        finally:
            writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return received


class _Collector:
    """httptools' callbacks."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []
        self.is_whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        self.is_whole = True


async def _read(reader: asyncio.StreamReader) -> RawAnswer:
    collector = _Collector()
    parser = httptools.HttpResponseParser(collector)
    wire = b""
    while not collector.is_whole:
        data = await reader.read(65_536)
        if not data:
            break
        wire += data
        parser.feed_data(data)
    assert collector.is_whole, f"the answer broke off: {wire!r}"
    return RawAnswer(parser.get_status_code(), tuple(collector.headers), b"".join(collector.body), wire)
