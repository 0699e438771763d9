"""A scripted HTTP/1.1 server on a real socket: the base of every simulated vendor.

A vendor decides what to answer (`SimulatorServer.answer`); this module writes it at the scripted pace and in
the scripted pieces, and records what came in. An answer with nothing to wait for (`Ready`) costs one write and
no task, so that one core serves far more requests than the proxy under test can send.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import enum
import json
import os
import socket
import ssl
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import parse_qsl

import httptools
import orjson

from metering.tasks import spawn
from simulators.script import (
    LAST_CHUNK,
    WAIT_TIMEOUT_S,
    Answer,
    Cutter,
    Disconnect,
    Framing,
    Later,
    Pause,
    Ready,
    Reports,
    Reset,
    Script,
    Send,
    SendLate,
    Stall,
    Step,
    Upgrade,
    Upgraded,
    WaitFor,
    chunk,
    head,
)

EXCHANGES_RECORDED_MAX = 20_000
"""Beyond it requests are counted, not kept: a long bench must not eat the machine's memory."""
REQUEST_BODY_BYTES_MAX = 256 * 1024 * 1024
"""A larger body is a defect of the test; it is answered 413."""
PIPELINED_REQUESTS_MAX = 16
"""Requests one connection may send ahead of their answers."""
STOP_TIMEOUT_S = 30.0
ACCEPT_BACKLOG = 4096
NO_LINGER = struct.pack("ii", 1, 0)
"""SO_LINGER on, for zero seconds: closing the socket sends RST instead of FIN."""

# --- what is recorded ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One whole request. Header names are lower case; `at_s` is the event loop's monotonic clock."""

    number: int
    """1 for the first request the simulator saw."""
    at_s: float
    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    connection_id: int
    """1 for the first connection; equal for requests that shared one."""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    def header(self, name: bytes) -> bytes:
        """The first value of a header, b"" when absent."""
        for key, value in self.headers:
            if key == name:
                return value
        return b""

    def json(self) -> Any:
        return orjson.loads(self.body)


class State(enum.StrEnum):
    """How far an answer came."""

    RUNNING = "running"
    SENT = "sent"
    """All of it was handed to the kernel."""
    BROKEN_OFF = "broken_off"
    """The script ended the connection."""
    CLIENT_GONE = "client_gone"
    """The other side went away before the end."""
    STOPPED = "stopped"
    """The simulator was stopped before the end."""


@dataclass(slots=True)
class Exchange:
    """One request and how its answer went."""

    request: ReceivedRequest
    reports: Reports | None
    state: State = State.RUNNING
    sent_bytes: int = 0
    """Bytes of the wire written so far."""


class DurableRecord:
    """One JSON line per request seen and one per answer ended, in a file that outlives a killed process."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def seen(self, exchange: Exchange) -> None:
        """Written before the first byte of the answer: it also tells of answers that a kill cut short."""
        request = exchange.request
        facts = dict(exchange.reports.facts()) if exchange.reports is not None else {}
        self._append(
            {
                "event": "seen",
                "number": request.number,
                "method": request.method,
                "target": request.target,
                **facts,
            }
        )

    def ended(self, exchange: Exchange) -> None:
        self._append({"event": "ended", "number": exchange.request.number, "state": exchange.state.value})

    def close(self) -> None:
        os.close(self._file)

    def _append(self, line: Mapping[str, Any]) -> None:
        # One unbuffered append per line: the kernel has it when this returns, whatever happens to us.
        os.write(self._file, orjson.dumps(line) + b"\n")


def read_record(path: Path) -> list[dict[str, Any]]:
    """The lines of a `DurableRecord`, oldest first."""
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the server ---------------------------------------------------------------------------------------


class SimulatorServer(ABC):
    """A vendor on a loopback port. Use as `async with`, or through `running_in_thread`.

    `keeps_record=False` keeps no requests (the counters remain); `record_to` names the file of a
    `DurableRecord`; `tls` serves https.
    """

    def __init__(
        self, *, keeps_record: bool = True, record_to: Path | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.exchanges: list[Exchange] = []
        self.requests_total = 0
        self.connections_total = 0
        self.client_gone_total = 0
        """Answers whose other side went away before their end."""
        self._keeps_record = keeps_record
        self._record_to = record_to
        self._record: DurableRecord | None = None
        self._tls = tls
        self._connections: set[_Connection] = set()
        self._listener: asyncio.Server | None = None
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._url = ""

    @abstractmethod
    def answer(self, request: ReceivedRequest) -> Answer:
        """What to answer; called once per complete request, in order of arrival."""

    @property
    def url(self) -> str:
        """Scheme, host and port; kept after `stop`, so that a dead vendor still has an address."""
        return self._url

    @property
    def port(self) -> int:
        return int(self._url.rpartition(":")[2])

    @property
    def connections_open(self) -> int:
        return len(self._connections)

    @property
    def requests(self) -> list[ReceivedRequest]:
        return [exchange.request for exchange in self.exchanges]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, *, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen, and return the URL. Port 0 takes a free one; the old port brings a stopped simulator back."""
        if self._record_to is not None:
            self._record = DurableRecord(self._record_to)
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), host, port, backlog=ACCEPT_BACKLOG, ssl=self._tls
        )
        bound_port = self._listener.sockets[0].getsockname()[1]
        self._url = f"{'https' if self._tls else 'http'}://{host}:{bound_port}"
        return self._url

    async def stop(self) -> None:
        """Refuse new connections and break the open ones."""
        if self._listener is None:
            return
        self._listener.close()
        self.break_connections()
        await self.until(lambda: not self._connections, timeout_s=STOP_TIMEOUT_S)
        await self._listener.wait_closed()
        self._listener = None
        if self._record is not None:
            self._record.close()
            self._record = None

    def break_connections(self) -> None:
        """Abort every open connection, idle or not; new ones are still accepted."""
        for connection in list(self._connections):
            connection.stop()

    def close_idle_connections(self) -> None:
        """Close (FIN) the connections without a request, as vendors do with those that were idle too long."""
        for connection in list(self._connections):
            connection.close_if_idle()

    async def until(self, condition: Callable[[], bool], *, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Wait until something that happens here (request, end of an answer, connection) makes `condition` true.

        Only in the simulator's own event loop. TimeoutError after `timeout_s`.
        """
        if condition():
            return
        waiter = (condition, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter[1]
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    # Called by connections.

    def opened(self, connection: "_Connection") -> int:
        self._connections.add(connection)
        self.connections_total += 1
        self._happened()
        return self.connections_total

    def closed(self, connection: "_Connection") -> None:
        self._connections.discard(connection)
        self._happened()

    def seen(self, request: ReceivedRequest) -> tuple[Exchange, Answer]:
        answer = self.answer(request)
        exchange = Exchange(request, answer.reports)
        if self._keeps_record and len(self.exchanges) < EXCHANGES_RECORDED_MAX:
            self.exchanges.append(exchange)
        if self._record is not None:
            self._record.seen(exchange)
        self._happened()
        return exchange, answer

    def ended(self, exchange: Exchange) -> None:
        if exchange.state is State.CLIENT_GONE:
            self.client_gone_total += 1
        if self._record is not None:
            self._record.ended(exchange)
        self._happened()

    def _happened(self) -> None:
        if not self._waiters:
            return
        for condition, future in self._waiters:
            if not future.done() and condition():
                future.set_result(None)


@contextlib.contextmanager
def running_in_thread(simulator: SimulatorServer) -> Iterator[str]:
    """Serve from a thread of its own, for callers without an event loop; yields the URL."""
    started: concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = (
        concurrent.futures.Future()
    )

    async def serve() -> None:
        stopping = asyncio.Event()
        try:
            await simulator.start()
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result((asyncio.get_running_loop(), stopping))
        await stopping.wait()
        await simulator.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="simulator", daemon=True)
    thread.start()
    loop, stopping = started.result()
    try:
        yield simulator.url
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()


class _Connection(asyncio.Protocol):
    """One connection: requests are answered one after the other, in order."""

    def __init__(self, server: SimulatorServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._id = 0
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._waiting: collections.deque[tuple[ReceivedRequest, bool]] = collections.deque()
        self._exchange: Exchange | None = None
        self._player: asyncio.Task[None] | None = None
        self._keeps_alive = True
        self._ends_when_written = False
        self._upgraded: Upgraded | None = None
        self._may_write: asyncio.Future[None] | None = None
        """Pending while the transport holds bytes that the kernel did not take."""

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, not a check: uvloop's transports have the methods but not the base class.
        self._transport = cast(asyncio.Transport, transport)
        # No byte may wait in the transport unnoticed: "sent" means that the kernel has it.
        # (TLS transports pause at the limit, plain ones above it: at 0 the former would always be paused.)
        is_tls = transport.get_extra_info("ssl_object") is not None
        self._transport.set_write_buffer_limits(high=1 if is_tls else 0, low=0)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._id = self._server.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._pass_on(data):
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # If it was not accepted, the request was answered as if it had not asked, and the connection ends.
            self._pass_on(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError:
            raise  # a defect of the script: the loop's exception handler tells of it
        except httptools.HttpParserError:
            self._refuse(400)

    def _pass_on(self, data: bytes) -> bool:
        """To who speaks here since an upgrade; False if nobody does."""
        if self._upgraded is None:
            return False
        self._upgraded.received(data)
        return True

    def pause_writing(self) -> None:
        self._may_write = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._may_write is not None and not self._may_write.done():
            self._may_write.set_result(None)
        self._may_write = None
        if self._ends_when_written:
            self._ends_when_written = False
            self._end(State.SENT)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it was lost does not matter here
        self._waiting.clear()
        self._end(State.CLIENT_GONE)
        if self._upgraded is not None:
            self._upgraded.lost()
        if self._player is not None:
            self._player.cancel()
        self.resume_writing()  # nobody waits for what is gone
        self._server.closed(self)

    # httptools' side

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers = []
        self._body = []
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if (b"expect", b"100-continue") in self._headers:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > REQUEST_BODY_BYTES_MAX:
            self._body.clear()
            self._refuse(413)
            return
        self._body.append(data)

    def on_message_complete(self) -> None:
        if self._transport.is_closing():
            return
        self._server.requests_total += 1
        request = ReceivedRequest(
            number=self._server.requests_total,
            at_s=self._loop.time(),
            method=self._parser.get_method().decode("ascii"),
            target=self._target.decode("latin-1"),
            headers=tuple(self._headers),
            body=b"".join(self._body),
            connection_id=self._id,
        )
        keeps_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        if self._exchange is None:
            self._begin(request, keeps_alive=keeps_alive)
        elif len(self._waiting) < PIPELINED_REQUESTS_MAX:
            self._waiting.append((request, keeps_alive))
        else:
            self._transport.abort()

    # answering

    def stop(self) -> None:
        self._end(State.STOPPED)
        self._transport.abort()

    def close_if_idle(self) -> None:
        if self._exchange is None:
            self._transport.close()

    def _refuse(self, status: int) -> None:
        self._transport.write(head(status, [("Content-Length", "0"), ("Connection", "close")]))
        self._transport.close()

    def _begin(self, request: ReceivedRequest, *, keeps_alive: bool) -> None:
        self._keeps_alive = keeps_alive
        exchange, answer = self._server.seen(request)
        self._exchange = exchange
        if isinstance(answer, Script | Later):
            self._player = spawn(self._play(exchange, answer), name=f"simulated answer {request.number}")
            return
        self._transport.write(answer.wire)
        exchange.sent_bytes = len(answer.wire)
        if isinstance(answer, Upgrade):
            self._keeps_alive = False
            self._upgraded = answer.connect(self)
            return
        if self._may_write is None:
            self._end(State.SENT)
        else:
            self._ends_when_written = True

    def _end(self, state: State) -> None:
        """The answer is over, in whatever way came first."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        exchange.state = state
        self._server.ended(exchange)
        if state is not State.SENT:
            return
        if not self._keeps_alive:
            self._transport.close()
        elif self._waiting:
            request, keeps_alive = self._waiting.popleft()
            self._begin(request, keeps_alive=keeps_alive)

    # what an upgraded connection may do

    def send(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.sent_bytes += len(data)
            self._transport.write(data)

    async def sent(self) -> None:
        if self._may_write is not None:
            await asyncio.shield(self._may_write)  # others may be waiting, too

    def pause(self) -> None:
        self._transport.pause_reading()

    def resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def end(self) -> None:
        self._end(State.SENT)

    def abort(self) -> None:
        self._end(State.BROKEN_OFF)
        self._transport.abort()

    async def _play(self, exchange: Exchange, answer: Script | Later) -> None:
        script = answer if isinstance(answer, Script) else await self._known(answer)
        if isinstance(script, Ready):
            exchange.sent_bytes = len(script.wire)
            await self.write(script.wire)
        else:
            self._keeps_alive = self._keeps_alive and not (script.closes or script.framing is Framing.EOF)
            await _Player(self, exchange, script).play()
        self._end(State.SENT)

    async def _known(self, answer: Later) -> Script | Ready:
        await answer.until.wait()
        return answer.answer()

    async def write(self, data: bytes) -> None:
        """Write, and return when the kernel has it and the other side had the chance to read it alone.

        Two turns of the loop: in the first the reader is only being scheduled, if it shares our loop.
        """
        self._transport.write(data)
        await self.sent()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def leave(self, *, resets: bool) -> None:
        """End the connection in the middle of an answer, and run no further step."""
        self._end(State.BROKEN_OFF)
        if resets:
            self._transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER
            )
            self._transport.abort()
        else:
            self._transport.close()
        await asyncio.Event().wait()  # until connection_lost cancels us


class _Player:
    """Plays one script on one connection."""

    def __init__(self, connection: _Connection, exchange: Exchange, script: Script) -> None:
        self._connection = connection
        self._exchange = exchange
        self._script = script
        self._cutter = Cutter(script.split) if script.split is not None else None
        self._wire_cutter = Cutter(script.wire_split) if script.wire_split is not None else None

    async def play(self) -> None:
        script = self._script
        for step in script.before:
            await self._take(step, self._write)
        await self._write(head(script.status, self._headers()))
        for step in script.steps:
            await self._take(step, self._send)
        if script.framing is Framing.CHUNKED:
            await self._write(LAST_CHUNK)

    def _headers(self) -> list[tuple[str, str]]:
        script = self._script
        headers = list(script.headers)
        if script.framing is Framing.CHUNKED:
            headers.append(("Transfer-Encoding", "chunked"))
        elif script.framing is Framing.EOF:
            headers.append(("Connection", "close"))
        else:
            length_bytes = script.length_bytes
            if length_bytes is None:
                length_bytes = sum(len(step.data) for step in script.steps if isinstance(step, Send))
            headers.append(("Content-Length", str(length_bytes)))
        return headers

    async def _take(self, step: Step, send: Callable[[bytes], Any]) -> None:
        match step:
            case Send(data):
                await send(data)
            case SendLate(data_of):
                await send(data_of())
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case WaitFor(gate):
                await gate.wait()
            case Stall():
                await asyncio.Event().wait()
            case Disconnect() | Reset():
                await self._connection.leave(resets=isinstance(step, Reset))

    async def _send(self, data: bytes) -> None:
        """Bytes of the body: cut, framed, written piece by piece."""
        for piece in self._cutter.cut(data) if self._cutter is not None else [data]:
            await self._write(chunk(piece) if self._script.framing is Framing.CHUNKED else piece)

    async def _write(self, data: bytes) -> None:
        for piece in self._wire_cutter.cut(data) if self._wire_cutter is not None else [data]:
            self._exchange.sent_bytes += len(piece)
            await self._connection.write(piece)
