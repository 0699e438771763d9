"""JSON as it streams by, sans-I/O: bytes in, out come the elements of a list, or the one object, when whole.

For bodies of any length in bounded memory: an element is given out condensed. Long strings (a picture in
base64, the text of an answer) become empty ones, or what the reader wishes in their place, and long runs of numbers (an
embedding) become one number; names, short strings, counts and the shape stay as they were. Nothing is done per byte:
strings are passed over by one regular expression, what lies between them by another.
"""

import re

KEPT_BYTES_MAX = 256
"""The longest string, and the longest run without brackets or strings, that is kept as it stands."""
ELEMENT_BYTES_MAX = 1024 * 1024
"""The longest element, condensed, that is kept while it arrives; a longer one is skipped."""

_TOKEN = re.compile(rb'[^][{}"]*+("[^"\\]*+(?:\\.[^"\\]*+)*+"|[][{}])', re.DOTALL)
"""A run and what ends it: a whole string, or a bracket. Possessive: nothing is tried twice."""
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
"""As much of a string as is certain: up to its closing quote, or to a backslash at the very end."""
_QUOTE, _BACKSLASH = b'"', b"\\"
_OPENING = frozenset(b"{[")
_BRACE, _BRACKET, _QUOTE_MARK = ord("{"), ord("["), ord('"')
_NOT_YET = -1


class JsonStream:
    """Takes one JSON text apart: a list of objects, given out one by one, or an object, given out whole."""

    __slots__ = (
        "_base",
        "_depth",
        "_element_bytes",
        "_held",
        "_is_skipping",
        "_long_text",
        "_pieces",
        "_run",
        "_string",
        "elements_skipped",
        "is_closed",
    )

    def __init__(self, *, long_text: bytes = b'""') -> None:
        self._long_text = long_text
        """What stands for a long string."""
        self.is_closed = False
        """The bracket that ends the text has come."""
        self.elements_skipped = 0
        """Elements that were too long to be kept."""
        self._depth = 0
        self._base = _NOT_YET
        """The depth at which elements begin: 1 in a list, 0 where the text is one object."""
        self._pieces: list[bytes] = []
        self._element_bytes = 0
        self._is_skipping = False
        self._string: bytearray | None = None
        """The string in progress, to KEPT_BYTES_MAX and a byte more."""
        self._held = b""
        """A backslash at the end of a chunk: what it escapes has not come."""
        self._run = _Run()

    def feed(self, chunk: bytes) -> tuple[list[bytes], int]:
        """Take the next bytes; return the elements that they complete, condensed, and the offset in `chunk` of
        the bracket that ends the text, or -1."""
        elements: list[bytes] = []
        closed_at = _NOT_YET
        data, shift = (self._held + chunk, len(self._held)) if self._held else (chunk, 0)
        self._held = b""
        position = 0
        if self._string is not None:
            position = self._rest_of_string(data)
            if self._string is not None:
                return elements, closed_at
        last = position
        while token := _TOKEN.match(data, last):
            start, end = token.span(1)
            if start > last:
                self._run.add(data[last:start])
            last = end
            first = data[start]
            if first in _OPENING:
                self._open(first)
            elif first == _QUOTE_MARK:
                self._keep_string(data, start, end)
            elif self._close(data[start:end], elements):
                closed_at = start - shift
        self._tail(data, last)
        return elements, closed_at

    @property
    def kept_bytes(self) -> int:
        """Of the element that is coming in, condensed."""
        return self._element_bytes

    @property
    def _is_within(self) -> bool:
        """Inside an element."""
        return self._base != _NOT_YET and self._depth > self._base

    def _open(self, bracket: int) -> None:
        if self._base == _NOT_YET:
            self._base = 1 if bracket == _BRACKET else 0
        is_within = self._is_within or (self._depth == self._base and bracket == _BRACE)
        self._depth += 1
        if is_within:
            self._add(bytes((bracket,)))
        else:
            self._run.clear()

    def _close(self, bracket: bytes, elements: list[bytes]) -> bool:
        """Whether this bracket ends the text."""
        if self._is_within and self._depth > 0:
            self._add(bracket)
        else:
            self._run.clear()
        self._depth -= 1
        if self._depth == self._base:
            self._give(elements)
        if self._depth == 0 and not self.is_closed:
            self.is_closed = True
            return True
        return False

    def _give(self, elements: list[bytes]) -> None:
        if self._is_skipping:
            self.elements_skipped += 1
        elif self._pieces:
            elements.append(b"".join(self._pieces))
        self._pieces.clear()
        self._element_bytes = 0
        self._is_skipping = False

    def _keep_string(self, data: bytes, start: int, end: int) -> None:
        if self._is_within:
            self._add(data[start:end] if end - start <= KEPT_BYTES_MAX else self._long_text)
        else:
            self._run.clear()

    def _add(self, piece: bytes) -> None:
        """What stood before, and then this."""
        if self._pieces:  # before the first brace there are only blanks and commas
            piece = self._run.taken() + piece
        else:
            self._run.clear()
        self._element_bytes += len(piece)
        if self._is_skipping or self._element_bytes > ELEMENT_BYTES_MAX:
            self._is_skipping = True
            self._pieces = [b""]
        else:
            self._pieces.append(piece)

    def _tail(self, data: bytes, last: int) -> None:
        """What no whole token ends: a run, and perhaps the beginning of a string."""
        quote = data.find(_QUOTE, last)
        if quote < 0:
            self._run.add(data[last:])
            return
        self._run.add(data[last:quote])
        self._string = bytearray()
        self._grow_string(data[quote:])

    def _rest_of_string(self, data: bytes) -> int:
        """Go on with the string in progress; returns where it ended."""
        string = self._string
        assert string is not None
        found = _IN_STRING.match(data)
        end = 0 if found is None else found.end()
        if end < len(data) and data[end : end + 1] == _QUOTE:
            self._grow_string(data[: end + 1])
            whole, self._string = bytes(string), None
            self._keep_string(whole, 0, len(whole))
            return end + 1
        self._grow_string(data)
        return len(data)

    def _grow_string(self, data: bytes) -> None:
        string = self._string
        assert string is not None
        if (len(data) - len(data.rstrip(_BACKSLASH))) % 2:
            self._held, data = _BACKSLASH, data[:-1]
        string += data[: KEPT_BYTES_MAX + 1 - len(string)]


class _Run:
    """What stands between two tokens: blanks, colons, commas, numbers, words. A long one is told in short."""

    __slots__ = ("_first", "_is_long", "_kept", "_last")

    def __init__(self) -> None:
        self._kept = b""
        self._first = self._last = b""
        self._is_long = False

    def add(self, data: bytes) -> None:
        if not data:
            return
        if not self._is_long and len(self._kept) + len(data) <= KEPT_BYTES_MAX:
            self._kept += data
            return
        squeezed = b"".join((self._kept + data).split())
        if not self._is_long and len(squeezed) <= KEPT_BYTES_MAX:  # an indentation
            self._kept = squeezed
            return
        if squeezed:
            self._first = self._first or squeezed[:1]
            self._last = squeezed[-1:]
        self._kept = b""
        self._is_long = True

    def taken(self) -> bytes:
        """The run, or a shorter one of the same shape: its separators, and one number between them."""
        run = self._kept
        if self._is_long:
            run = (
                (self._first if self._first in b",:" else b"")
                + b"0"
                + (self._last if self._last == b"," else b"")
            )
        self.clear()
        return run

    def clear(self) -> None:
        self._kept = self._first = self._last = b""
        self._is_long = False
