"""What stands between a vendor's bytes and the client where not every byte may pass as it comes.

Two words of the declarations need one: `AddedEvent`, an event that is there only because we asked for it, and
`HandsOut`, ids that must have an owner before anybody sees them. Everything else passes unchanged; a stream in
whole events, a body at its end. Sans-I/O, on decoded bytes.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import orjson

from metering.errors import Reason, Refused
from metering.json_text import json_of
from metering.objects import ObjectId
from metering.sse import EventCutter, data_of
from proxy.ownership import handed_out
from proxy.surface import AddedEvent, HandsOut

BODY_BYTES_MAX = 32 * 1024 * 1024
"""The longest body that is held back until its ids have an owner."""
EVENT_BYTES_MAX = 16 * 1024 * 1024
"""The longest event that is held back until it is whole: the last one of a stream repeats the whole answer."""


class Gate(Protocol):
    """Takes what came, gives what may pass."""

    def feed(self, chunk: bytes) -> bytes:
        """What may go down now. Raises Refused(UPSTREAM_UNREACHABLE) when it cannot be told."""

    def end(self) -> bytes:
        """What is left of an answer that is over and whole. Raises as `feed`."""

    def take_ids(self) -> list[ObjectId]:
        """The ids in what was let pass since the last call: to be bound before it is sent."""


class EventGate:
    """For streams."""

    __slots__ = ("_added", "_cutter", "_ids", "_keys", "_places", "_seen", "_took_half_crlf", "_vendor")

    def __init__(self, vendor: str, added: AddedEvent | None, places: Sequence[HandsOut]) -> None:
        self._vendor = vendor
        self._added = added
        self._places = places
        self._keys = tuple({f'"{place.path.rpartition(".")[2]}"'.encode() for place in places})
        """One of them stands in every event that hands out an id."""
        self._cutter = EventCutter(event_bytes_max=EVENT_BYTES_MAX)
        self._ids: list[ObjectId] = []
        self._seen: set[ObjectId] = set()
        self._took_half_crlf = False
        """What was taken out ended in a CR at the very end of what had come: an LF that follows is its own."""

    def feed(self, chunk: bytes) -> bytes:
        whole = self._cutter.feed(chunk)
        if self._cutter.is_too_long:
            raise _unreadable(self._vendor)
        return self._let_pass(whole)

    def end(self) -> bytes:
        return self._let_pass(self._cutter.end())

    def take_ids(self) -> list[ObjectId]:
        ids, self._ids = self._ids, []
        return ids

    def _let_pass(self, whole: bytes) -> bytes:
        """`whole` events, of which few are looked at."""
        if self._took_half_crlf and whole:
            self._took_half_crlf = False
            whole = whole.removeprefix(b"\n")
        for key in self._keys:
            if key in whole:  # few events hand out an id
                for begin, end in self._cutter.holding(whole, key):
                    self._find_ids(whole[begin:end])
        if self._added is not None and self._added.marker in whole:
            return self._without_added(whole, self._added)
        return whole

    def _find_ids(self, event: bytes) -> None:
        answer = json_of(data_of(event))
        if answer is None:
            raise _unreadable(self._vendor)
        for one in handed_out(self._vendor, self._places, answer):
            if one not in self._seen:
                self._seen.add(one)
                self._ids.append(one)

    def _without_added(self, whole: bytes, added: AddedEvent) -> bytes:
        for begin, end in self._cutter.holding(whole, added.marker):
            event = whole[begin:end]
            if added.is_it(data_of(event)):
                self._added = None
                self._took_half_crlf = end == len(whole) and event.endswith(b"\r")
                before = begin + len(event) - len(event.lstrip(b"\r\n"))  # a CRLF that was cut in two
                return whole[:before] + whole[end:]
        return whole


class BodyGate:
    """For a body that carries ids, or passes only as `edit` makes it: nothing passes before its end."""

    __slots__ = ("_bytes_held", "_edit", "_held", "_ids", "_places", "_vendor")

    def __init__(
        self, vendor: str, places: Sequence[HandsOut], edit: Callable[[bytes], bytes] | None = None
    ) -> None:
        self._vendor = vendor
        self._places = places
        self._edit = edit
        self._held: list[bytes] = []
        self._bytes_held = 0
        self._ids: list[ObjectId] = []

    def feed(self, chunk: bytes) -> bytes:
        self._bytes_held += len(chunk)
        if self._bytes_held > BODY_BYTES_MAX:
            self._held.clear()
            raise _unreadable(self._vendor)
        self._held.append(chunk)
        return b""

    def end(self) -> bytes:
        body = b"".join(self._held)
        self._held.clear()
        if body:
            answer = json_of(body) if self._edit is None else _strictly(body)
            if answer is None:
                raise _unreadable(self._vendor)
            self._ids = handed_out(self._vendor, self._places, answer)
            if self._edit is not None:
                body = self._edit(body)
        return body

    def take_ids(self) -> list[ObjectId]:
        ids, self._ids = self._ids, []
        return ids


def _unreadable(vendor: str) -> Refused:
    return Refused(
        Reason.UPSTREAM_UNREACHABLE, f"{vendor} answered in a way that this gateway cannot check for ids."
    )


def _strictly(data: bytes) -> Any:
    """As who edits it reads it."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
