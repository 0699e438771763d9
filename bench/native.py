"""The programs in C (bench/native): a vendor and a client of streams that are never the slowest part of a measurement.

Built when they are first needed, by the machine's own compiler, into a folder of the user's cache.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.traffic import ANTHROPIC, TRAFFICS, Traffic, burst_events, chunked, whole_answer
from simulators.script import chunk

SOURCES = Path(__file__).parent / "native"
FLAGS = ("-O2", "-std=gnu17", "-Wall", "-Wextra", "-Werror")
COMPILES_WITHIN_S = 60.0
FIXED, BURSTS, PACED = "fixed", "bursts", "paced"
"""Kinds of answers: whole ones; streams of events that all come at once, each a chunk of its own; the same, an event every
PACE_S."""
PACE_S = 0.02
"""50 events a second: PACE_US of vendor.c."""
STAMP = b"0" * 16
"""Where vendor.c writes when it writes an event, in microseconds."""


class NativeError(RuntimeError):
    """A program in C could not be built."""


def built(name: str) -> Path:
    """The program made of `name`.c. Raises NativeError."""
    source = SOURCES / f"{name}.c"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NativeError("there is no C compiler (cc), which builds the benchmark's vendor and client")
    key = hashlib.sha256(source.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "automna-proxy-bench"
    program = folder / f"{name}-{key}"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            made = Path(fresh) / name
            done = subprocess.run(
                [compiler, *FLAGS, "-o", str(made), str(source)],
                capture_output=True,
                text=True,
                check=False,
                timeout=COMPILES_WITHIN_S,
            )
            if done.returncode:
                raise NativeError(f"{source} cannot be compiled: {done.stderr[-2_000:]}")
            made.replace(program)  # whole, whoever else builds it now
    return program


# --- what the vendor answers ------------------------------------------------------------------------------


def answers(kind: str) -> bytes:
    """The answers file of vendor.c: of each path its pieces."""
    if kind == PACED:
        pieces = [chunk(stamped(event)) for event in burst_events(ANTHROPIC)]
        pieces[0] = _stream_head(ANTHROPIC) + pieces[0]
        pieces[-1] += b"0\r\n\r\n"
        return _route(ANTHROPIC.path_of(is_streaming=True), pieces)
    if kind == BURSTS:
        return b"".join(
            _route(
                traffic.path_of(is_streaming=True), [_stream_head(traffic) + chunked(burst_events(traffic))]
            )
            for traffic in _one_a_path(is_streaming=True)
        )
    return b"".join(
        _route(traffic.path, [_whole(traffic, whole_answer(traffic))])
        for traffic in _one_a_path(is_streaming=False)
    )


def stamped(event: bytes) -> bytes:
    """An event with a place for the time of its writing."""
    return b": at " + STAMP + b"\n" + event


def requests_file(requests: Iterable[bytes]) -> bytes:
    """The requests file of paced.c."""
    return b"".join(b"%d\n%b" % (len(request), request) for request in requests)


def _one_a_path(*, is_streaming: bool) -> Sequence[Traffic]:
    return list({traffic.path_of(is_streaming=is_streaming): traffic for traffic in TRAFFICS}.values())


def _route(path: str, pieces: Sequence[bytes]) -> bytes:
    head = f"{path} {len(pieces)}\n".encode()
    return head + b"".join(b"%d\n%b" % (len(piece), piece) for piece in pieces) + b"\n"


def _whole(traffic: Traffic, body: bytes) -> bytes:
    head = b"content-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
    return b"HTTP/1.1 200 OK\r\n" + head % (_request_id(traffic), len(body)) + body


def _stream_head(traffic: Traffic) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n%b"
        b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n" % _request_id(traffic)
    )


def _request_id(traffic: Traffic) -> bytes:
    name = traffic.request_id_header
    return f"{name}: req_bench\r\n".encode() if name else b""
