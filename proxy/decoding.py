"""The meter's copy of an answer, decoded: identity and gzip. The client gets the bytes as they came."""

import zlib
from collections.abc import Iterator
from typing import Protocol

DECODED_BYTES_MAX = 64 * 1024 * 1024
"""A gzip answer is decoded for the meter up to here; beyond it, its usage is an estimate. The longest stream
(300,000 tokens at a few dozen bytes each) has a third of it."""
GZIP_WBITS = 31
STEP_BYTES = 256 * 1024
"""Decoded at once: a read of 256 KiB may unpack to a thousand times that."""


class Decoder(Protocol):
    """Takes an answer's bytes, gives decoded ones, in pieces of at most STEP_BYTES. Never raises."""

    is_intact: bool
    """False once something could not be decoded: what follows is unknown to the meter."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """To be exhausted before the next call."""


class GzipDecoder:
    """Incremental: every event of a sync-flushed stream comes out as soon as its bytes are in."""

    __slots__ = ("_decoded_bytes", "_decoded_bytes_max", "_zlib", "is_intact")

    def __init__(self, decoded_bytes_max: int = DECODED_BYTES_MAX) -> None:
        self._zlib = zlib.decompressobj(GZIP_WBITS)
        self._decoded_bytes = 0
        self._decoded_bytes_max = decoded_bytes_max
        self.is_intact = True

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        while chunk and self.is_intact:
            try:
                piece = self._zlib.decompress(chunk, STEP_BYTES)
            except zlib.error:
                self.is_intact = False
                break
            self._decoded_bytes += len(piece)
            if self._decoded_bytes > self._decoded_bytes_max:
                self.is_intact = False
            if self._zlib.eof and self._zlib.unused_data:  # a further member
                chunk = self._zlib.unused_data
                self._zlib = zlib.decompressobj(GZIP_WBITS)
            else:
                chunk = self._zlib.unconsumed_tail
            if piece:
                yield piece


class Undecodable:
    """A coding that the meter cannot read: it sees nothing, the client gets everything."""

    __slots__ = ("is_intact",)

    def __init__(self) -> None:
        self.is_intact = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:  # noqa: ARG002 - the protocol's signature
        return iter(())


def decoder_for(content_encoding: bytes, *, decoded_bytes_max: int = DECODED_BYTES_MAX) -> Decoder | None:
    """A decoder, or None where the bytes can be read as they are."""
    coding = content_encoding.strip().lower()
    if coding in {b"", b"identity"}:
        return None
    return GzipDecoder(decoded_bytes_max) if coding in {b"gzip", b"x-gzip"} else Undecodable()
