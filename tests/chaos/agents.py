"""Agents that send every kind of request until the server dies, and note what they have seen to its end."""

import asyncio
import random
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools
import orjson

from tests.support.gateway import messages_body
from tests.support.kill_points import TAG
from tests.support.process import Serving

ANSWERS_WITHIN_S = 60.0
"""Far above any answer: an agent that waits longer for a living server has found a defect."""
INPUT_NANOUSD, OUTPUT_NANOUSD = 3_000, 15_000
"""A token of claude-sonnet-4-5 (its list price: 3 and 15 USD a million)."""
BODY_BYTES_PER_TOKEN = 2
STORE_UNAVAILABLE = 503
TOKENS_AT_LEAST = 20
"""`max_tokens` of an agent's first request; each next one asks for one more, so that its hold tells which it is."""
TOO_MANY_TOKENS = 63_000
"""`max_tokens` that no budget of a round can cover."""
PIECE_BYTES, SLOW_PIECE_BYTES = 65_536, 4_096
SHOWN_BYTES = 500
"""Of a body, in a failure."""
UPLOAD_PAUSE_S = 0.1
SLOW_PIECES, SLOW_PAUSE_S = 20, 0.01
"""A slow reader takes its first pieces with pauses; the rest as it comes."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request: what is sent, how the vendor is told to answer (`x-simulate`), what comes of it."""

    name: str
    simulate: str = ""
    method: str = "POST"
    path: str = "/v1/messages"
    is_streaming: bool = False
    is_free: bool = False
    wants_gzip: bool = False
    max_tokens: int | None = None
    status: int = 200
    """What the client is told."""
    is_exact: bool = True
    """Settled, it is booked as reported; otherwise it can only be estimated."""
    cuts_off: bool = False
    """The client sees an answer that breaks off."""
    leaves: bool = False
    reads_slowly: bool = False
    uploads_slowly: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind("stream", "events=15,pace_ms=15,delay_ms=10", is_streaming=True),
        Kind("burst", "events=30", is_streaming=True),
        Kind("whole", "delay_ms=30"),
        Kind("gzip", "events=12,pace_ms=10,gzip=1", is_streaming=True, wants_gzip=True),
        Kind("gzip-whole", "delay_ms=20,gzip=1", wants_gzip=True),
        Kind("count", path="/v1/messages/count_tokens", is_free=True),
        Kind("models", method="GET", path="/v1/models", is_free=True),
        Kind("refused", max_tokens=TOO_MANY_TOKENS, status=402),
        Kind("leaves", "events=15,pace_ms=20", is_streaming=True, leaves=True),
        Kind("slow", "events=60,bytes=6000000", is_streaming=True, reads_slowly=True),
        Kind("upload", "delay_ms=10", uploads_slowly=True),
        Kind("silent", "events=8,delay_ms=500", is_streaming=True),
        Kind("error", "error_before=500", status=500),
        Kind("long-error", "error_before=500,split=1", status=500),
        Kind("late-error", "error_before=500,delay_ms=500", is_streaming=True),  # told inside the stream
        Kind("late-drop", "delay_ms=500,drop=1", is_streaming=True, is_exact=False),
        Kind("event-error", "events=15,pace_ms=10,error_after=6", is_streaming=True, is_exact=False),
        Kind("cut", "events=15,pace_ms=10,cut_after=8", is_streaming=True, is_exact=False, cuts_off=True),
        Kind("cut-whole", "delay_ms=10,cut_after=200", is_exact=False, cuts_off=True),
        Kind("dropped", "drop=1", is_exact=False, status=502),
    )
}
MIX = (
    *("stream",) * 6,
    *("whole", "gzip", "leaves") * 2,
    *("burst", "gzip-whole", "count", "models", "refused", "slow", "upload", "silent"),
    *("error", "long-error", "late-error", "late-drop", "event-error", "cut", "cut-whole", "dropped"),
)
"""What agents choose from."""


@dataclass(slots=True)
class Asked:
    """One request as its agent knows it."""

    tag: str
    kind: Kind
    hold_nanousd: int
    """What it must hold: it tells the agent's requests apart in the store."""
    request_id: str = ""
    """Ours, when the head of the answer arrived."""
    has_end: bool = False
    """The agent has the last byte of the answer."""
    is_refused: bool = False
    """The store was in trouble (503): nothing was sent."""


@dataclass
class Agent:
    """One machine with a gateway token of its own: it sends one request after the other."""

    token: str
    tag: str
    dice: random.Random
    kinds: Sequence[str] = MIX
    on_end: Callable[[], None] = lambda: None
    """Called the moment it has the end of an answer."""
    may_be_refused: bool = False
    """The store may be in trouble, and answers say so: expected of a worker whose clock has jumped."""
    asked: list[Asked] = field(default_factory=list)
    broken_off: int = 0
    """Connections that the server's death cut or refused."""

    async def work(self, server: Serving, is_dead: Callable[[], bool]) -> None:
        """Until the server is dead."""
        while not is_dead():
            kind = KINDS[self.dice.choice(self.kinds)]
            try:
                await self.ask(server.url, kind)
            except (OSError, EOFError) as error:
                self.broken_off += 1
                if isinstance(error, ConnectionRefusedError):
                    return

    async def ask(self, url: str, kind: Kind) -> Asked:
        """Send one request. OSError or EOFError when the connection ended before the answer did."""
        max_tokens = kind.max_tokens or TOKENS_AT_LEAST + len(self.asked)
        asked = Asked(f"{self.tag}:{len(self.asked):04}:{kind.name}", kind, hold_of(kind, max_tokens))
        self.asked.append(asked)
        async with asyncio.timeout(ANSWERS_WITHIN_S):
            await self._exchange(url, kind, body_of(kind, max_tokens), asked)
        return asked

    async def _exchange(self, url: str, kind: Kind, body: bytes, asked: Asked) -> None:
        reader, writer = await connect(url, is_slow=kind.reads_slowly)
        try:
            head = request_head(kind, self.token, asked.tag, len(body))
            if kind.uploads_slowly:
                writer.write(head + body[:20])
                await writer.drain()
                await asyncio.sleep(UPLOAD_PAUSE_S)
                if writer.transport.is_closing():
                    raise EOFError
                writer.write(body[20:])
            else:
                writer.write(head + body)
            await self._read(reader, kind, asked)
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, kind: Kind, asked: Asked) -> None:
        answer = _Answer()
        for pieces in range(10**6):
            data = await reader.read(
                SLOW_PIECE_BYTES if kind.reads_slowly and pieces < SLOW_PIECES else PIECE_BYTES
            )
            if not data:
                break
            answer.feed(data)
            asked.request_id = answer.request_id
            if kind.leaves and answer.has_body:
                return
            if answer.is_whole:
                if answer.status == STORE_UNAVAILABLE and self.may_be_refused:
                    asked.is_refused = True
                    return
                assert answer.status == kind.status, (asked, answer.status, bytes(answer.body))
                assert not kind.cuts_off, (asked, "ended cleanly though the vendor broke off")
                asked.has_end = True
                self.on_end()
                return
            if kind.reads_slowly and pieces < SLOW_PIECES:
                await asyncio.sleep(SLOW_PAUSE_S)
        if kind.cuts_off and answer.has_head:
            return
        raise EOFError


def body_of(kind: Kind, max_tokens: int) -> bytes:
    if kind.method == "GET":
        return b""
    return orjson.dumps(messages_body(stream=kind.is_streaming, max_tokens=max_tokens))


def hold_of(kind: Kind, max_tokens: int) -> int:
    """Input at a token for two bytes of body, and all the output that is allowed, in nano-USD."""
    if kind.is_free:
        return 0
    return (
        -(-len(body_of(kind, max_tokens)) // BODY_BYTES_PER_TOKEN) * INPUT_NANOUSD
        + max_tokens * OUTPUT_NANOUSD
    )


def request_head(kind: Kind, token: str, tag: str, body_bytes: int) -> bytes:
    headers = {
        "host": "proxy",
        "x-api-key": token,
        "anthropic-version": "2023-06-01",
        TAG.decode(): tag,
        "x-simulate": kind.simulate,
        "accept-encoding": "gzip" if kind.wants_gzip else "identity",
        "content-length": str(body_bytes),
        "content-type": "application/json",
    }
    lines = [
        f"{kind.method} /api/llm{kind.path} HTTP/1.1",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def connect(url: str, *, is_slow: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection; a slow reader's has hardly any buffer, so that the server notices."""
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    if is_slow:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_PIECE_BYTES)
    try:
        await loop.sock_connect(sock, (address.hostname, address.port))
    except BaseException:
        sock.close()
        raise
    return await asyncio.open_connection(sock=sock, limit=SLOW_PIECE_BYTES if is_slow else PIECE_BYTES)


class _Answer:
    """httptools' callbacks, and what they have found."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.request_id = ""
        self.body = bytearray()
        self.has_head = False
        self.is_whole = False

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    @property
    def has_body(self) -> bool:
        return bool(self.body)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-automna-request-id":
            self.request_id = value.decode()

    def on_headers_complete(self) -> None:
        self.has_head = True

    def on_body(self, data: bytes) -> None:
        self.body += data[: SHOWN_BYTES - len(self.body)]

    def on_message_complete(self) -> None:
        self.is_whole = True


def by_tag(agents: Sequence[Agent]) -> Mapping[str, Asked]:
    return {asked.tag: asked for agent in agents for asked in agent.asked}
