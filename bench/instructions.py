"""Instructions a request, counted under valgrind: `python -m bench.instructions [requests|bursts|long] [--against FOLDER]`.

CPU time on a machine that is not ours alone spreads by a tenth; instructions do by a hundredth, so that a change of two in a hundred
shows. What they do not show: the kernel's share, caches, and threads that wait. valgrind runs one thread at a time, fifty times as
slowly: bounds of waiting are set so that nothing is given up.

Counted is the difference between two runs of different length, which leaves out what starting and stopping takes.
"""

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import targets
from bench.books import Books
from bench.measure import SHAPES, USERS, Measurement, measurement_of
from bench.open_loop import raw_requests
from bench.targets import ROOT, Target
from bench.traffic import ANTHROPIC

CONNECTIONS = 32
FEW, MANY = 320, 1_280
"""Requests of the two runs, in whole rounds of all connections."""
STARTS_WITHIN_S, ENDS_WITHIN_S, TRY_S = 180.0, 120.0, 0.2
SHAPES_COUNTED = ("requests", "bursts", "long")
PATIENT = {"CHANGES_STALE_AFTER_S": "300", "STORE_BUSY_TIMEOUT_S": "60", "WORKER_DEAD_AFTER_S": "600"}
"""Settings for a proxy that is fifty times as slow."""
_TOTAL = re.compile(r"^summary: (\d+)", re.MULTILINE)
_LENGTH = re.compile(rb"content-length: (\d+)")


class CountError(RuntimeError):
    """Nothing could be counted."""


def instructions_each(measurement: Measurement, tree: Path) -> float:
    """User-space instructions a request. Raises CountError, TargetError, NativeError."""
    few, many = (_counted(measurement, tree, requests) for requests in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def _counted(measurement: Measurement, tree: Path, requests: int) -> int:
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise CountError("valgrind is not installed")
    with tempfile.TemporaryDirectory(prefix="automna-instructions-", dir="/var/tmp") as name:
        folder = Path(name)
        books = _books(tree, folder / "books")
        with targets.vendor(folder / "vendor", measurement.shape.vendor, core=_any_core()) as vendor:
            port, counts = targets.free_port(), folder / "counts"
            counting = ["--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={counts}"]
            settings = {"ANTHROPIC_UPSTREAM_URL": vendor.origin, "ANTHROPIC_API_KEY": targets.VENDOR_KEY}
            with (folder / "log").open("wb") as log:
                process = subprocess.Popen(
                    [valgrind, *counting, sys.executable, "-m", "bench.serve", str(port)],
                    cwd=tree,
                    env={**os.environ, **books.environ, **PATIENT, **settings},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            try:
                _wait_for(port)
                path = Target("proxy", "", has_mounts=True, pid=0).path_to(
                    ANTHROPIC, is_streaming=measurement.shape.is_streaming
                )
                tokens = books.tokens.read_text(encoding="ascii").split()
                asyncio.run(_ask(port, raw_requests(path, tokens, measurement.body()), requests))
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(ENDS_WITHIN_S)
            found = _TOTAL.search(counts.read_text(encoding="ascii"))
            if process.returncode or found is None:
                raise CountError((folder / "log").read_text(encoding="utf-8", errors="replace")[-2_000:])
            return int(found[1])


def _books(tree: Path, folder: Path) -> Books:
    """Made by the code of that checkout: its schema may be another."""
    if tree == ROOT:
        return Books.open(folder, users=USERS)
    script = f"from pathlib import Path; from bench.books import Books; Books.open(Path({str(folder)!r}), users={USERS})"
    subprocess.run([sys.executable, "-c", script], cwd=tree, check=True)
    return Books(folder, folder / "tokens", tree)


def _any_core() -> int:
    return max(os.sched_getaffinity(0))


def _wait_for(port: int) -> None:
    until_s = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < until_s:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(TRY_S)
    raise CountError("the proxy did not start under valgrind")


async def _ask(port: int, requests: list[bytes], number: int) -> None:
    """So many, spread over the connections. Raises CountError."""

    async def one(index: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(number // CONNECTIONS):
            writer.write(requests[index % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise CountError(head.decode("latin-1"))
            length = _LENGTH.search(head)
            if length is not None:
                await reader.readexactly(int(length[1]))
                continue
            while size := int(await reader.readline(), 16):
                await reader.readexactly(size + 2)
            await reader.readline()
        writer.close()

    await asyncio.gather(*(one(index) for index in range(CONNECTIONS)))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    parser.add_argument("shape", nargs="?", choices=SHAPES_COUNTED, default=SHAPES_COUNTED[0])
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, counted first")
    chosen = parser.parse_args(arguments)
    shape = next(one for one in SHAPES if one.name == chosen.shape)
    measurement = measurement_of(shape, ANTHROPIC)
    assert measurement is not None
    before = None
    if chosen.against is not None:
        before = instructions_each(measurement, chosen.against.resolve())
        print(f"{chosen.against}: {before:,.0f} instructions each")
    here = instructions_each(measurement, ROOT)
    print(f"{chosen.shape}: {here:,.0f} instructions each" + (f", {here / before:.3f}" if before else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
