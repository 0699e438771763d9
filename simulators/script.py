"""Answers as data: the steps of an answer, its framing, and where its bytes are cut."""

import asyncio
import contextlib
import enum
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

WAIT_TIMEOUT_S = 60.0
"""How long a test waits by default: far above anything it waits for, so it fails instead of hanging."""


class Waitable(Protocol):
    """An `asyncio.Event`, or a `Gate`."""

    async def wait(self) -> Any: ...


class _Flag:
    """A thing that happens once; it may be awaited from any event loop and set from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._happened = threading.Event()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def set(self) -> None:
        with self._lock:
            self._happened.set()
            waiters, self._waiters = self._waiters, []
        for loop, event in waiters:
            with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
                loop.call_soon_threadsafe(event.set)

    def is_set(self) -> bool:
        return self._happened.is_set()

    async def wait(self) -> None:
        event = asyncio.Event()
        with self._lock:
            if self._happened.is_set():
                return
            self._waiters.append((asyncio.get_running_loop(), event))
        await event.wait()


class Gate:
    """Where a script waits for the test: `await gate.reached()`, look around, `gate.open()`."""

    def __init__(self) -> None:
        self._open = _Flag()
        self._reached = _Flag()

    def open(self) -> None:
        """Let every script pass that stands here or comes by later; from any thread."""
        self._open.set()

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    async def wait(self) -> None:
        self._reached.set()
        await self._open.wait()

    async def reached(self, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Until a script stands at the gate: all it sent before is written. TimeoutError after `timeout_s`."""
        async with asyncio.timeout(timeout_s):
            await self._reached.wait()


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes of the body (in `Script.before`: bytes of the wire)."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SendLate:
    """Bytes of the body that are known only when it is their turn. Not for bodies whose length the head tells."""

    data: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class WaitFor:
    """Go on when the gate opens or the event is set."""

    gate: Waitable


@dataclass(frozen=True, slots=True)
class Stall:
    """Send nothing more, and keep the connection until the other side gives up."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close (FIN) after what was written so far; a framed body stays unfinished."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Break the connection (RST); what the other side had not read may be lost."""


Step = Send | SendLate | Pause | WaitFor | Stall | Disconnect | Reset


class Framing(enum.StrEnum):
    """How the end of a body is told (RFC 9112 section 6.3)."""

    CHUNKED = "chunked"
    LENGTH = "length"
    EOF = "eof"


@dataclass(frozen=True, slots=True)
class AtRandom:
    """Pieces of 1 to `piece_bytes_max` bytes, the same ones for the same seed."""

    seed: int
    piece_bytes_max: int = 64


Split = int | Sequence[int] | AtRandom
"""Where bytes are cut: every n bytes, at these offsets, or at random by a seed."""


class Reports(Protocol):
    """What a vendor's answer says about itself, kept with the record of the exchange."""

    def facts(self) -> Mapping[str, Any]:
        """As JSON values, for the durable record."""


@dataclass(frozen=True, slots=True)
class Script:
    """An answer as data.

    `before` runs ahead of the head, its `Send` unframed. Each `Send` of `steps` is a write of its own, and with
    chunked framing a chunk of its own. `split` cuts the body into more such pieces; `wire_split` cuts the
    framed bytes, head included, into more writes. `length_bytes` makes content-length say something else than
    the sum of the steps. `closes`: close the connection after the answer without having announced it.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    steps: tuple[Step, ...] = ()
    framing: Framing = Framing.CHUNKED
    before: tuple[Step, ...] = ()
    split: Split | None = None
    wire_split: Split | None = None
    length_bytes: int | None = None
    closes: bool = False
    reports: Reports | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """A whole answer as it goes over the wire, written at once."""

    wire: bytes
    reports: Reports | None = None


class Upgraded(Protocol):
    """The side of a simulator on a connection that speaks HTTP no more."""

    def received(self, data: bytes) -> None:
        """Bytes as they come off the wire; what came with the request's last segment first."""

    def lost(self) -> None:
        """The connection is gone, whoever ended it."""


class Line(Protocol):
    """What an upgraded connection may do. `end` closes it (FIN), and counts as an answer sent whole.

    `sent` returns when the kernel has all that was sent. Between `pause` and `resume` nothing is read.
    """

    def send(self, data: bytes) -> None: ...
    async def sent(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def end(self) -> None: ...
    def abort(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A 101: the head as it goes over the wire, and who speaks on the connection after it."""

    wire: bytes
    connect: Callable[[Line], Upgraded]
    reports: Reports | None = None


@dataclass(frozen=True, slots=True)
class Later:
    """An answer that nobody knows before something has happened: what `answer` says when `until` is over."""

    until: Waitable
    answer: Callable[[], Script | Ready]
    reports: Reports | None = None


Answer = Script | Ready | Upgrade | Later


def chunk(data: bytes) -> bytes:
    """One chunk of the chunked coding (RFC 9112 section 7.1); empty data is no chunk, for that would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


LAST_CHUNK = b"0\r\n\r\n"


def head(status: int, headers: Sequence[tuple[str, str]]) -> bytes:
    """A status line and header section. The names are written as given: vendors mix upper and lower case."""
    lines = [f"HTTP/1.1 {status} {_phrase(status)}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # 529 is Anthropic's own
        return "Unknown"


class Cutter:
    """Cuts a run of byte strings where a `Split` says, counted over the whole run."""

    def __init__(self, split: Split) -> None:
        self._cuts = _cuts(split)
        self._position = 0
        self._next_cut = next(self._cuts, None)

    def cut(self, data: bytes) -> list[bytes]:
        """`data` in pieces, none of them empty; joined they are `data`."""
        pieces, start, base = [], 0, self._position
        self._position += len(data)
        while self._next_cut is not None and self._next_cut <= self._position:
            end = self._next_cut - base
            if end > start:
                pieces.append(data[start:end])
                start = end
            self._next_cut = next(self._cuts, None)
        if start < len(data):
            pieces.append(data[start:])
        return pieces


def _cuts(split: Split) -> Iterator[int]:
    if isinstance(split, AtRandom):
        rng, position = random.Random(split.seed), 0
        while True:
            position += rng.randint(1, split.piece_bytes_max)
            yield position
    elif isinstance(split, int):
        if split < 1:
            raise ValueError(f"a split every {split} bytes: expected 1 or more")
        position = split
        while True:
            yield position
            position += split
    else:
        yield from sorted(split)
