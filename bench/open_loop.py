"""Requests at a fixed rate, whatever the answers do: `python -m bench.open_loop ORIGIN PATH TOKENS BODY RATE SECONDS`.

Blocking sockets in a few threads, because a thread's sleep is exact to some 60 us where an event loop's timer is
to a millisecond. A request that had to wait for the one before it is measured from when it was due, so that a
slow server cannot hide its slowness by being asked less. Prints one line of JSON.
"""

import gc
import json
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

THREADS = 8
ANSWER_WITHIN_S = 30.0
FIRST_REQUESTS = 10
"""Of each thread, not counted: connections are opened, caches filled."""
NO_HEADERS: Mapping[str, str] = {}


class AnswerError(RuntimeError):
    """An answer that is not a 200."""


@dataclass(slots=True)
class Worker:
    """One connection and its share of the schedule."""

    address: tuple[str, int]
    requests: list[bytes]
    interval_s: float
    begins_s: float
    ends_s: float
    latencies_s: list[float] = field(default_factory=list)
    late: int = 0
    answers: int = 0
    error: str = ""

    def run(self) -> None:
        try:
            self._run()
        except (OSError, AnswerError) as error:
            self.error = f"{type(error).__name__}: {error}"

    def _run(self) -> None:
        with socket.create_connection(self.address, timeout=ANSWER_WITHIN_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            due_s, number = self.begins_s, 0
            while due_s < self.ends_s:
                wait_s = due_s - time.monotonic()
                if wait_s > 0:
                    time.sleep(wait_s)
                    began_s = time.monotonic()
                else:
                    began_s = due_s
                    self.late += 1
                connection.sendall(self.requests[number % len(self.requests)])
                read_answer(connection)
                number += 1
                self.answers += 1
                if number > FIRST_REQUESTS:
                    self.latencies_s.append(time.monotonic() - began_s)
                due_s += self.interval_s


def read_answer(connection: socket.socket) -> None:
    """One answer with a Content-Length or in chunks, to its end. Raises AnswerError."""
    seen = b""
    while (head_end := seen.find(b"\r\n\r\n")) < 0:
        seen += _more(connection)
    head = seen[:head_end].lower()
    if not head.startswith(b"http/1.1 200"):
        raise AnswerError(seen[:300].decode("latin-1"))
    if b"chunked" in head:
        while not seen.endswith(b"0\r\n\r\n"):
            seen += _more(connection)
        return
    length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    while len(seen) < head_end + 4 + length:
        seen += _more(connection)


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65_536)
    if not data:
        raise AnswerError("the connection was closed before the answer's end")
    return data


def raw_requests(
    path: str, tokens: list[str], body: bytes, headers: Mapping[str, str] = NO_HEADERS
) -> list[bytes]:
    """A request on the wire for each gateway token."""
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return [
        (
            f"POST {path} HTTP/1.1\r\nhost: bench\r\nx-api-key: {token}\r\ncontent-type: application/json\r\n"
            f"anthropic-version: 2023-06-01\r\ncontent-length: {len(body)}\r\n{more}\r\n"
        ).encode()
        + body
        for token in tokens
    ]


def percentile(values: list[float], percent: float) -> float:
    """The nearest-rank percentile. Raises ValueError for no values."""
    if not values:
        raise ValueError("percentile: no values")
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))]


def main() -> None:
    origin, path, tokens_file, body_file, rate, seconds = sys.argv[1:]
    host, _, port = origin.removeprefix("http://").partition(":")
    tokens = Path(tokens_file).read_text(encoding="ascii").split()
    requests = raw_requests(path, tokens, Path(body_file).read_bytes())
    interval_s, start_s = THREADS / float(rate), time.monotonic() + 0.2
    workers = [
        Worker(
            (host, int(port)),
            requests[index::THREADS] or requests,
            interval_s,
            start_s + index * interval_s / THREADS,
            start_s + float(seconds),
        )
        for index in range(THREADS)
    ]
    gc.disable()
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors := [worker.error for worker in workers if worker.error]:
        sys.exit(f"{len(errors)} of {THREADS} connections failed: {errors[0]}")
    latencies = [latency for worker in workers for latency in worker.latencies_s]
    print(
        json.dumps(
            {
                "answers": sum(worker.answers for worker in workers),
                "late": sum(worker.late for worker in workers),
                "duration_s": float(seconds),
                "p50_ms": percentile(latencies, 50) * 1000,
                "p99_ms": percentile(latencies, 99) * 1000,
            }
        )
    )


if __name__ == "__main__":
    main()
