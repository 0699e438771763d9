"""A real headless Chromium behind a session: started with the first connection, killed with the session.

The bytes of its websocket pass as they are, both ways, and neither side is read faster than the other takes them.
"""

import asyncio
import base64
import contextlib
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

from metering.tasks import spawn
from simulators.browserbase_state import Client
from simulators.script import Line

STARTS_WITHIN_S = 30.0
READ_BYTES = 256 * 1024
WAITING_BYTES_MAX = 1024 * 1024
"""Of a client's bytes that the browser has not taken: above it the client is not read."""
HANDSHAKE_BYTES_MAX = 16 * 1024
_LISTENING = re.compile(rb"DevTools listening on ws://([\d.]+):(\d+)(/\S+)")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it refuses to run as root with it; only pages of tests are opened
    "--remote-debugging-port=0",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def installed() -> Path | None:
    """The machine's Chromium, if it has one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    return None if found is None else Path(found)


class ChromiumBrowser:
    """The browser of one session. It does not tell what pages it has open."""

    def __init__(self, binary: Path) -> None:
        self._binary = binary
        self._profile: str | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._starting: asyncio.Task[tuple[str, int, str]] | None = None
        self._is_stopped = False
        self.stopping: asyncio.Task[None] | None = None

    def connect(self, line: Line, client: Client, target: str | None) -> "Splice":
        return Splice(line, client, self, None if target is None else f"/devtools/page/{target}")

    def pages(self) -> list[dict[str, str]]:
        return []

    def stop(self) -> None:
        """Kill it; `stopping` is done when it and its profile are gone."""
        if not self._is_stopped:
            self._is_stopped = True
            self.stopping = spawn(self._stop(), name="stopping Chromium")

    async def address(self) -> tuple[str, int, str]:
        """Host, port and path of the running browser; it is started the first time. TimeoutError if it does not."""
        if self._starting is None:
            self._starting = spawn(self._start(), name="starting Chromium")
        return await asyncio.shield(self._starting)

    async def _start(self) -> tuple[str, int, str]:
        self._profile = tempfile.mkdtemp(prefix="simulated-browser-")
        self._process = await asyncio.create_subprocess_exec(
            str(self._binary),
            *_FLAGS,
            f"--user-data-dir={self._profile}",
            "about:blank",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stderr is not None
        async with asyncio.timeout(STARTS_WITHIN_S):
            async for line in self._process.stderr:
                found = _LISTENING.search(line)
                if found is not None:
                    spawn(_drain(self._process.stderr), name="what Chromium says")
                    return found[1].decode(), int(found[2]), found[3].decode()
        raise ConnectionError("Chromium ended before it listened")

    async def _stop(self) -> None:
        if self._starting is not None:
            await asyncio.wait({self._starting})
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        if self._profile is not None:
            await asyncio.to_thread(shutil.rmtree, self._profile, ignore_errors=True)


class Splice:
    """One client's connection, spliced to the browser's."""

    def __init__(self, line: Line, client: Client, browser: ChromiumBrowser, path: str | None) -> None:
        self._line = line
        self._client = client
        self._browser = browser
        self._path = path
        self._early = bytearray()
        """What the client said before the browser was there: no more than came with the handshake."""
        self._writer: asyncio.StreamWriter | None = None
        self._easing: asyncio.Task[None] | None = None
        line.pause()
        self._task = spawn(self._run(), name="Chromium to client")

    def end_session(self, reason: str) -> None:  # noqa: ARG002 - a close frame would have to wait for a frame's end
        """Without a close frame: the client sees the connection end."""
        self._line.end()

    def received(self, data: bytes) -> None:
        self._client.heard()
        writer = self._writer
        if writer is None:
            self._early += data
            return
        writer.write(data)
        if writer.transport.get_write_buffer_size() > WAITING_BYTES_MAX and self._easing is None:
            self._line.pause()
            self._easing = spawn(self._ease(writer), name="client to Chromium")

    def lost(self) -> None:
        self._task.cancel()
        if self._easing is not None:
            self._easing.cancel()
        if self._writer is not None:
            self._writer.close()
        self._client.left()

    async def _ease(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        self._easing = None
        self._line.resume()

    async def _run(self) -> None:
        try:
            reader = await self._dial()
            while data := await reader.read(READ_BYTES):
                self._line.send(data)
                await self._line.sent()
            self._line.end()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            self._line.abort()

    async def _dial(self) -> asyncio.StreamReader:
        """Raises OSError where there is no browser, or it refuses."""
        host, port, path = await self._browser.address()
        reader, writer = await asyncio.open_connection(host, port, limit=HANDSHAKE_BYTES_MAX)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            f"GET {self._path or path} HTTP/1.1",
            f"Host: {host}:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
        )
        writer.write("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        if b" 101 " not in answer.partition(b"\r\n")[0]:
            writer.close()
            raise ConnectionError("Chromium refuses the websocket")
        self._writer = writer
        writer.write(bytes(self._early))
        self._early.clear()
        self._line.resume()
        return reader


async def _drain(stream: asyncio.StreamReader) -> None:
    """Read what nobody needs, so that the writer never waits."""
    while await stream.read(READ_BYTES):
        pass
