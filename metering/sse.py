"""Server-sent events, sans-I/O: bytes in, out come only the events that may carry what a reader wants.

A stream is many events, of which two or three matter to a meter. So nothing here is done per event: a
chunk is searched for markers (bytes that stand in every event of interest), and only around a hit are the
event's limits looked up and its lines split. Everything else is passed over at the speed of `bytes.find`.

Framing is that of the HTML standard, section 9.2 (Server-sent events): lines end in LF, CRLF or CR, mixed
as one likes; an empty line ends an event. Three things are more lenient: an event that the end of the stream
cut before its empty line is given out by `end`, a byte order mark is skipped wherever it stands, and a bare JSON
object, which is no event at all, counts as one with that data: so Google tells of an error within a stream.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from metering.values import immutable

EVENT_BYTES_MAX = 4 * 1024 * 1024
"""The longest event that is kept while it arrives in pieces. Vendors' largest (a final event that repeats
the whole answer, a block of search results) are hundreds of kilobytes."""

BLANK_LINE = re.compile(rb"(?>\r\n|\r|\n){2}")
"""Two line ends in a row. Atomic: or else it would take the two bytes of one CRLF for two line ends."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LF = 0x0A
_CR = 0x0D
_NO_EVENTS: Sequence["SseEvent"] = ()


@immutable
class SseEvent:
    """One event. `type` is its `event:` field (empty when it has none), `data` its data lines joined with LF.

    `start` is the offset in the chunk just fed at which its first byte stood; 0 when that came earlier.
    """

    type: bytes
    data: bytes
    start: int


class SseScanner:
    """Finds the events that contain one of `markers`, whatever the chunks the stream is cut into.

    A marker must not contain a line end. Markers may stand in other events too: the caller looks again.
    `latest`, where given, marks what every event carries and only the newest one says: of the events that hold it
    and no marker, each call of `feed` gives out the last at most.
    """

    __slots__ = (
        "_event_bytes_max",
        "_follows_cr",
        "_is_skipping",
        "_latest",
        "_pending",
        "events_skipped",
        "markers",
    )

    def __init__(
        self, markers: Sequence[bytes], *, latest: bytes = b"", event_bytes_max: int = EVENT_BYTES_MAX
    ) -> None:
        self.markers = tuple(markers)
        """May be replaced between two calls of `feed`."""
        self._latest = latest
        self.events_skipped = 0
        """Events that were too long to be looked at, although they may have held a marker."""
        self._event_bytes_max = event_bytes_max
        self._pending = bytearray()
        """The event whose end has not come yet; while skipping only its last byte."""
        self._is_skipping = False
        self._follows_cr = False
        """An event ended in CR at the very end of a chunk: an LF that follows belongs to that line end."""

    @property
    def at_boundary(self) -> bool:
        """No event is half fed: between two events, or before the first."""
        return not self._pending or (not self._is_skipping and not self._pending.strip(b"\r\n"))

    def feed(self, chunk: bytes) -> Sequence[SseEvent]:
        """Take the next bytes; return the marked events that they complete, in order."""
        if chunk.endswith(b"\n\n") and not (self._pending or self._follows_cr):
            # The usual case: whole events, as vendors flush them. Of most none matters; else it is one mostly.
            if not self._is_marked(chunk):
                return _NO_EVENTS
            if chunk.find(b"\n\n") == len(chunk) - 2 and _CR not in chunk:
                only: list[SseEvent] = []
                self._parse(chunk, 0, only)
                return only
        if not chunk:
            return _NO_EVENTS
        position = 1 if self._follows_cr and chunk[0] == _LF else 0
        self._follows_cr = False
        found: list[SseEvent] = []
        if self._pending:
            end = self._end_of_pending(chunk, position)
            if end < 0:
                self._keep(chunk[position:])
                return _NO_EVENTS
            self._complete_pending(chunk[position:end], found)
            position = end
        if _CR not in chunk:
            position = self._scan_even_lines(chunk, position, found, b"\n\n")
        elif _all_crlf(chunk, position):
            position = self._scan_even_lines(chunk, position, found, b"\r\n\r\n")
        else:
            position = self._scan_any_lines(chunk, position, found)
            self._follows_cr = position == len(chunk) and chunk[-1] == _CR
        if position < len(chunk):
            self._keep(chunk[position:])
        return found

    def end(self) -> Sequence[SseEvent]:
        """The stream is over: return the last event if only its empty line is missing and it is marked."""
        found: list[SseEvent] = []
        if self._pending:
            self._complete_pending(b"", found)
        return found

    def _scan_even_lines(self, chunk: bytes, start: int, found: list[SseEvent], blank: bytes) -> int:
        """Look through the whole events from `start`, all of which end in `blank`; return where the
        unfinished one begins."""
        last = chunk.rfind(blank, start)
        if last < 0:
            return start
        stop = last + len(blank)
        ends: dict[int, int] = {}
        """Of the marked events, by where they begin: one that holds two markers is found twice."""
        for marker in self.markers:
            hit = chunk.find(marker, start, stop)
            while hit >= 0:
                begin, end = _limits(chunk, hit, start, blank)
                ends[begin] = end
                hit = chunk.find(marker, end, stop)
        if self._latest and (hit := chunk.rfind(self._latest, start, stop)) >= 0:
            begin, end = _limits(chunk, hit, start, blank)
            ends[begin] = end
        for begin in sorted(ends):
            self._parse(chunk[begin : ends[begin]], begin, found)
        return stop

    def _scan_any_lines(self, chunk: bytes, start: int, found: list[SseEvent]) -> int:
        """The same where lines end in anything; slower, as each event's end is looked up."""
        ends = [start, *(match.end() for match in BLANK_LINE.finditer(chunk, start))]
        latest = chunk.rfind(self._latest, start, ends[-1]) if self._latest else -1
        for begin, end in pairwise(ends):
            if begin <= latest < end or any(chunk.find(marker, begin, end) >= 0 for marker in self.markers):
                self._parse(chunk[begin:end], begin, found)
        return ends[-1]

    def _end_of_pending(self, chunk: bytes, start: int) -> int:
        """Where in `chunk` the event in progress ends, -1 if it goes on. Only new bytes are searched, and the
        one before them, which may have ended a line: an event in many pieces costs no more."""
        before = bytes(self._pending[-1:])
        window = before + chunk[start:]
        if _CR in window:
            match = BLANK_LINE.search(window)
            end = -1 if match is None else match.end()
        else:
            end = window.find(b"\n\n")
            end = end if end < 0 else end + 2
        return end if end < 0 else start + end - len(before)

    def _keep(self, piece: bytes) -> None:
        self._pending += piece
        if self._is_skipping or len(self._pending) > self._event_bytes_max:
            self._is_skipping = True
            del self._pending[:-1]

    def _complete_pending(self, rest: bytes, found: list[SseEvent]) -> None:
        event = bytes(self._pending) + rest
        was_skipping, self._is_skipping = self._is_skipping, False
        self._pending.clear()
        if was_skipping:
            self.events_skipped += 1
        elif self._is_marked(event):
            self._parse(event, 0, found)

    def _is_marked(self, piece: bytes) -> bool:
        """Whether a marker, or what marks the latest, stands anywhere in it."""
        for marker in self.markers:  # asked of every chunk: a generator in `any` takes three times as long
            if piece.find(marker) >= 0:  # `in` tries first whether they are a number, and makes an error
                return True
        return bool(self._latest) and self._latest in piece

    def _parse(self, event: bytes, start: int, found: list[SseEvent]) -> None:
        """Add one event by its fields; not when it has no data, as the standard has it, and is no bare object."""
        if len(event) > self._event_bytes_max:
            self.events_skipped += 1
            return
        kind, at = b"", 0
        if event.startswith(b"event: "):
            at = event.find(b"\n") + 1
            kind = event[7 : at - 1]
        if event.startswith(b"data: ", at) and event.find(b"\n", at) == len(event) - 2 and _CR not in event:
            # As all vendors write it: its type or none, one line of data, and the empty line.
            found.append(SseEvent(kind, event[at + 6 : -2], start))
            return
        kind = b""
        data = []
        for line in event.removeprefix(_BYTE_ORDER_MARK).splitlines():
            if line.startswith(b"data: "):  # as all vendors write it
                data.append(line[6:])
                continue
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
            elif name == b"event":
                kind = value.removeprefix(b" ")
        if data:
            found.append(SseEvent(kind, b"\n".join(data), start))
        elif event.lstrip().startswith(b"{"):
            found.append(SseEvent(b"", event.strip(), start))


def _limits(chunk: bytes, hit: int, start: int, blank: bytes) -> tuple[int, int]:
    """Where the event around `hit` begins, not before `start`, and where it ends."""
    before = chunk.rfind(blank, start, hit)
    begin = start if before < 0 else before + len(blank)
    return begin, chunk.find(blank, hit) + len(blank)


class EventCutter:
    """Cuts a stream after its events: bytes in, out comes what is whole. No byte is changed, added or lost.

    An event longer than `event_bytes_max` sets `is_too_long`, and nothing more comes out.
    """

    __slots__ = ("_event_bytes_max", "_pending", "is_too_long")

    def __init__(self, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._pending = bytearray()
        self.is_too_long = False

    def feed(self, chunk: bytes) -> bytes:
        """The whole events that `chunk` completes, with their framing."""
        if not self._pending and chunk.endswith(b"\n\n"):  # the usual case: vendors flush after each event
            return chunk
        before = bytes(self._pending[-3:])
        window = before + chunk
        end = _last_blank_line(window)
        if end <= len(before):  # in what was here already there was none
            self._pending += chunk
            self.is_too_long = self.is_too_long or len(self._pending) > self._event_bytes_max
            return b""
        cut = end - len(before)
        whole = bytes(self._pending) + chunk[:cut]
        self._pending = bytearray(chunk[cut:])
        return whole

    def end(self) -> bytes:
        """The stream is over: what is left, an event that only lacks its empty line."""
        rest = bytes(self._pending)
        self._pending.clear()
        return rest

    @staticmethod
    def events(whole: bytes) -> list[bytes]:
        """The events in what `feed` or `end` gave, each with its framing."""
        if _CR not in whole:
            return _split_after(whole, b"\n\n")
        if _all_crlf(whole, 0):
            return _split_after(whole, b"\r\n\r\n")
        ends = [0, *(match.end() for match in BLANK_LINE.finditer(whole))]
        if ends[-1] < len(whole):
            ends.append(len(whole))
        return [whole[begin:end] for begin, end in pairwise(ends)]

    @staticmethod
    def holding(whole: bytes, marker: bytes) -> Iterator[tuple[int, int]]:
        """Where those of them begin and end that hold `marker`; the others are passed over at `find`'s speed.

        Where more than two line ends stand in a row, the third may be left to the event before."""
        if _CR in whole:
            begin = 0
            for event in EventCutter.events(whole):
                if marker in event:
                    yield begin, begin + len(event)
                begin += len(event)
            return
        end = 0
        while (hit := whole.find(marker, end)) >= 0:
            before = whole.rfind(b"\n\n", end, hit)
            begin = end if before < 0 else before + 2
            after = whole.find(b"\n\n", hit)
            end = len(whole) if after < 0 else after + 2
            yield begin, end


def _split_after(whole: bytes, blank: bytes) -> list[bytes]:
    """What stands before each `blank`, with it, and what is left."""
    *events, rest = whole.split(blank)
    return [event + blank for event in events] + ([rest] if rest else [])


def data_of(event: bytes) -> bytes:
    """The data of one event, as `EventCutter.events` gives it: its data lines joined with LF."""
    lines = event.removeprefix(_BYTE_ORDER_MARK).splitlines()
    fields = [line.partition(b":") for line in lines]
    return b"\n".join(value.removeprefix(b" ") for name, _, value in fields if name == b"data")


def _last_blank_line(window: bytes) -> int:
    """Where the last empty line in `window` ends, 0 when there is none."""
    if _CR not in window:
        at = window.rfind(b"\n\n")
        return 0 if at < 0 else at + 2
    end = 0
    for match in BLANK_LINE.finditer(window):
        end = match.end()
    return end


def _all_crlf(chunk: bytes, start: int) -> bool:
    pairs = chunk.count(b"\r\n", start)
    return pairs == chunk.count(b"\r", start) == chunk.count(b"\n", start)
