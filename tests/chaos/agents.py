"""Agents that send every kind of request until the server dies, and note what they have seen to its end."""

import asyncio
import random
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools

from tests.chaos.kinds import (
    FOREIGN,
    FOREIGN_ITEM,
    KINDS,
    MIX,
    OWN,
    OWN_ENDED,
    OWN_ITEM,
    Kind,
    body_of,
    hold_of,
    request_head,
)
from tests.support.process import Serving

ANSWERS_WITHIN_S = 60.0
"""Far above any answer: an agent that waits longer for a living server has found a defect."""
STORE_UNAVAILABLE = 503
USED_UP, HELD_BY_OTHERS = 402, 429
"""What who wants a search is told when there is none."""
SIZE_AT_LEAST = 20
"""The size of an agent's first request; each next one is larger, so that its hold tells which it is."""
KEPT_ID = re.compile(rb'"((?:[a-z]+_)?resp_Sim\d{45})')
"""The id of a response or of an item of it, as the simulated vendor makes them."""
KEPT_ID_BYTES_MAX = 80
PIECE_BYTES, SLOW_PIECE_BYTES = 65_536, 4_096
SHOWN_BYTES = 500
"""Of a body, in a failure."""
UPLOAD_PAUSE_S = 0.1
SLOW_PIECES, SLOW_PAUSE_S = 20, 0.01
"""A slow reader takes its first pieces with pauses; the rest as it comes."""


@dataclass(slots=True)
class Asked:
    """One request as its agent knows it."""

    tag: str
    kind: Kind
    hold_nanousd: int
    """What it must hold: it tells the agent's requests apart in the store."""
    sent_ms: int = 0
    """Since the epoch, before it was sent: tells those apart that hold the same."""
    named: str = ""
    """The object that it names: answers and refusals may repeat it."""
    request_id: str = ""
    """Ours, when the head of the answer arrived."""
    has_end: bool = False
    """The agent has the last byte of the answer."""
    is_refused: bool = False
    """The store was in trouble (503), or no search was left: nothing was sent."""
    ids: set[str] = field(default_factory=set)
    """Of objects that the vendor keeps: each that came with whatever came of the answer."""


@dataclass
class Known:
    """Ids that clients have seen: those of the agents' user, and some of another user."""

    responses: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    """Of the responses, those that are not at work in the background."""
    items: list[str] = field(default_factory=list)
    foreign: "Known | None" = None

    def add(self, ident: str, kind: Kind) -> None:
        if not ident.startswith("resp_"):
            self.items.append(ident)
            return
        self.responses.append(ident)
        if not (kind.is_deferred or kind.names == OWN):
            self.ended.append(ident)

    def choose(self, names: str, dice: random.Random) -> str:
        """An object that a request of this kind may name; "" when there is none yet."""
        if self.foreign is not None and names in {FOREIGN, FOREIGN_ITEM}:
            return self.foreign.choose({FOREIGN: OWN, FOREIGN_ITEM: OWN_ITEM}[names], dice)
        of_kind = {OWN: self.responses, OWN_ENDED: self.ended, OWN_ITEM: self.items}
        if names not in of_kind:
            return f"resp_Nobody{dice.randrange(10**9)}"
        return dice.choice(of_kind[names]) if of_kind[names] else ""


@dataclass
class Agent:
    """One machine with a gateway token of its own: it sends one request after the other."""

    token: str
    tag: str
    dice: random.Random
    kinds: Sequence[str] = MIX
    on_end: Callable[[], None] = lambda: None
    """Called the moment it has the end of an answer."""
    known: Known = field(default_factory=Known)
    """What the agents of one user know together."""
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
        """Send one request; one for a response where there is nothing yet that it could name. OSError or EOFError
        when the connection ended before the answer did."""
        named = self.known.choose(kind.names, self.dice) if kind.names else ""
        if kind.names and not named:
            kind = KINDS["response"]
        size, hold_nanousd = self._told_apart(kind, named)
        tag = f"{self.tag}:{len(self.asked):04}:{kind.name}"
        asked = Asked(tag, kind, hold_nanousd, time.time_ns() // 1_000_000, named)
        self.asked.append(asked)
        body = body_of(kind, size, named)
        head = request_head(kind, self.token, tag, len(body), named)
        async with asyncio.timeout(ANSWERS_WITHIN_S):
            await self._exchange(url, kind, head, body, asked)
        return asked

    def _told_apart(self, kind: Kind, named: str) -> tuple[int, int]:
        """A size whose hold none of the agent's requests has on this surface, and that hold."""
        size = kind.max_tokens or SIZE_AT_LEAST + len(self.asked)
        hold_nanousd = hold_of(kind, size, named)
        taken = {one.hold_nanousd for one in self.asked if one.kind.surface == kind.surface}
        while hold_nanousd in taken and not (kind.is_free or kind.is_refused or kind.piece):
            size += 1
            hold_nanousd = hold_of(kind, size, named)
        return size, hold_nanousd

    async def _exchange(self, url: str, kind: Kind, head: bytes, body: bytes, asked: Asked) -> None:
        reader, writer = await connect(url, is_slow=kind.reads_slowly)
        try:
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
            for ident in answer.take_ids() - asked.ids - {asked.named}:
                asked.ids.add(ident)
                self.known.add(ident, kind)
            if kind.leaves and answer.has_body:
                return
            if answer.is_whole:
                is_refused = answer.status == STORE_UNAVAILABLE and self.may_be_refused
                if is_refused or (kind.is_scarce and answer.status in {USED_UP, HELD_BY_OTHERS}):
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
        self._ids: set[str] = set()
        self._tail = b""
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
        text = self._tail + data
        self._ids |= {found.decode() for found in KEPT_ID.findall(text)}
        self._tail = text[-KEPT_ID_BYTES_MAX:]

    def take_ids(self) -> set[str]:
        """Those that have come since the last call, perhaps some of before."""
        ids, self._ids = self._ids, set()
        return ids

    def on_message_complete(self) -> None:
        self.is_whole = True


def by_tag(agents: Sequence[Agent]) -> Mapping[str, Asked]:
    return {asked.tag: asked for agent in agents for asked in agent.asked}
