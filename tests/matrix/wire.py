"""A vendor of the table as a script, and the bytes of it that must reach a client."""

import itertools
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from simulators.script import (
    Disconnect,
    Framing,
    Gate,
    Pause,
    Reset,
    Script,
    Send,
    Stall,
    Step,
    WaitFor,
    chunk,
    head,
)
from tests.matrix import tables
from tests.matrix.speeches import REQUEST_ID, Dialect
from tests.matrix.tables import RETRY_AFTER_S, Act, Cell, Part

WORDS, WORDS_FOR_THE_SLOW = 40, 60_000
"""A few hundred bytes; and a quarter of a megabyte, more than a slow reader's connection holds."""
HALF_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/ev"
PING_EVERY_S = 0.02


@dataclass
class Gates:
    """Where the vendor waits for the test: each opens when the proxy has what came before it."""

    before_head: Gate = field(default_factory=Gate)
    after_head: Gate = field(default_factory=Gate)
    midway: Gate = field(default_factory=Gate)
    after_last: Gate = field(default_factory=Gate)


@dataclass(frozen=True)
class Spoken:
    """What a vendor will say: the script, the body as its client is to see it, and how much of it the meter has
    read and the client has got at each gate."""

    script: Script
    has_first: bool = False
    seen: bytes = b""
    """All that reaches the client of the vendor's own."""
    seen_midway_bytes: int = 0
    seen_after_last_bytes: int = 0
    plain_first_bytes: int = 0
    plain_bytes: int = 0
    pings: bytes = b""
    """What follows the body, over and over."""


def spoken(cell: Cell, gates: Gates, serial: str = "SimMatrix") -> Spoken:
    """The vendor of a cell; `serial` is a part of the ids that it hands out."""
    if cell.vendor.error is not None:
        return _error(cell.vendor.error, cell.speech.dialect, gates)
    vendor = cell.vendor
    if vendor.sends < Part.HEAD:
        said = (Send(HALF_HEAD),) if vendor.sends is Part.HALF_HEAD else ()
        return Spoken(Script(before=(WaitFor(gates.before_head), *said, *_act(vendor.act))))
    first_events, second_events = _body(cell, serial)
    first, second = b"".join(first_events), b"".join(second_events)
    sent_first, sent_second = first, second
    if vendor.is_gzip:
        sent_first, sent_second = _zipped(first, second, is_whole=vendor.sends is Part.BODY)
    before, steps = _steps(cell, gates, sent_first, sent_second)
    is_events = cell.answers_stream and not cell.speech.is_list
    kind = "text/event-stream; charset=utf-8" if is_events else "application/json"
    headers = [("Content-Type", kind), ("request-id", REQUEST_ID)]
    if vendor.is_gzip:
        headers.append(("Content-Encoding", "gzip"))
    if vendor.act is Act.CUT_CHUNK:
        wire = (
            head(cell.speech.status, [*headers, ("Transfer-Encoding", "chunked")]),
            chunk(b"x" * 1_000)[:50],
        )
        before = (*before, Send(wire[0]), *steps[:-1], Send(wire[1]), steps[-1])
        steps = ()
        sent_second += wire[1].partition(b"\r\n")[2]
    is_length = vendor.framing is tables.Framing.LENGTH
    more_bytes = 500 if vendor.act is Act.CLOSE else 0
    script = Script(
        status=cell.speech.status,
        headers=tuple(headers),
        before=before,
        steps=steps,
        framing=Framing.LENGTH if is_length else Framing.CHUNKED,
        length_bytes=len(sent_first + sent_second) + more_bytes if is_length else None,
    )
    seen_first, seen = sent_first, sent_first + sent_second
    if cell.passes_whole_events:
        seen_first = b"".join(_shown(cell, first_events))
        seen = seen_first + b"".join(_shown(cell, second_events))
    elif cell.passes_whole_body:
        seen_first, seen = b"", first + second
    return Spoken(
        script,
        has_first=bool(sent_first),
        seen=seen,
        seen_midway_bytes=len(seen_first),
        seen_after_last_bytes=0 if cell.passes_whole_body else len(seen),
        plain_first_bytes=len(first),
        plain_bytes=len(first) + len(second),
        pings=_ping(cell) if vendor.act is Act.PING else b"",
    )


def _body(cell: Cell, serial: str) -> tuple[list[bytes], list[bytes]]:
    """What the vendor sends of its body: up to its middle, and from there to its act."""
    vendor, speech = cell.vendor, cell.speech
    words = WORDS_FOR_THE_SLOW if cell.client.is_slow else WORDS
    whole = b"{}" if vendor.is_mute else speech.whole(serial, words)
    parts = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    if speech.events is not None and cell.answers_stream:
        parts = speech.events(serial, words)
    half = len(parts) // 2
    match vendor.sends:
        case Part.HEAD:
            sent = parts[:1] if vendor.act is Act.ERROR_EVENT else []
        case Part.HALF_BODY:
            sent = parts[:half]
        case Part.ALL_BUT_STOP:
            sent = parts[:-1]
        case _:
            sent = parts
    first, second = sent[:half], sent[half:]
    if vendor.act is Act.ERROR_EVENT:
        second = [*second, speech.error_event]
    return first, second


def _shown(cell: Cell, events: list[bytes]) -> list[bytes]:
    """Without the one that nobody but us has asked for."""
    hidden = cell.speech.hidden
    return [event for event in events if hidden is None or hidden not in event]


def _zipped(first: bytes, second: bytes, *, is_whole: bool) -> tuple[bytes, bytes]:
    packer = zlib.compressobj(wbits=31)
    sent_first = packer.compress(first) + packer.flush(zlib.Z_SYNC_FLUSH)
    sent_second = packer.compress(second)
    return sent_first, sent_second + packer.flush(zlib.Z_FINISH) if is_whole else sent_second


def _steps(cell: Cell, gates: Gates, first: bytes, second: bytes) -> tuple[tuple[Step, ...], Iterable[Step]]:
    """Ahead of the head, and after it."""
    vendor = cell.vendor
    framed = chunk if vendor.act is Act.CUT_CHUNK else bytes
    steps: list[Step] = [WaitFor(gates.after_head)]
    if first:
        steps += [Send(framed(first)), WaitFor(gates.midway)]
    if second:
        steps.append(Send(framed(second)))
        if vendor.sends is Part.BODY and vendor.framing is tables.Framing.CHUNKED:
            steps.append(WaitFor(gates.after_last))
    if vendor.act is Act.PING:
        pings = itertools.cycle((Send(_ping(cell)), Pause(PING_EVERY_S)))
        return (WaitFor(gates.before_head),), itertools.chain(steps, pings)
    return (WaitFor(gates.before_head),), (*steps, *_act(vendor.act))


def _ping(cell: Cell) -> bytes:
    return cell.speech.ping if cell.answers_stream else b" "


def _act(act: Act) -> tuple[Step, ...]:
    return {
        Act.CLOSE: (Disconnect(),),
        Act.CUT_CHUNK: (Disconnect(),),
        Act.RESET: (Reset(),),
        Act.STALL: (Stall(),),
    }.get(act, ())


def _error(error: tables.Error, dialect: Dialect, gates: Gates) -> Spoken:
    kind, body = "application/json", b""
    if error.body == "html":
        kind, body = "text/html", b"<html><h1>Sorry</h1></html>"
    elif error.body != "empty":
        body = dialect.error_body(error.status)
    headers = (("Content-Type", kind), ("request-id", REQUEST_ID), ("Retry-After", str(RETRY_AFTER_S)))
    is_chunked = error.body == "chunked"
    script = Script(
        status=error.status,
        headers=headers,
        before=(WaitFor(gates.before_head),),
        steps=(Send(body),) if body else (),
        split=9 if is_chunked else None,
        framing=Framing.CHUNKED if is_chunked else Framing.LENGTH,
    )
    return Spoken(script, seen=body)
