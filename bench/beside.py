"""Somebody who is served beside a load: a small question every few milliseconds, and how long its answer takes.

Whatever a server's event loop does at a stretch, this one waits for.
"""

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator

from bench.open_loop import percentile

EVERY_S, ANSWER_WITHIN_S = 0.003, 30.0
PATH = "/health"


class Asker(threading.Thread):
    """Asks until it is told to stop."""

    def __init__(self, origin: str) -> None:
        super().__init__(name="beside", daemon=True)
        self._connection = http.client.HTTPConnection(origin.removeprefix("http://"), timeout=ANSWER_WITHIN_S)
        self._ends = threading.Event()
        self._waits_s: list[float] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with contextlib.closing(self._connection):
                while not self._ends.wait(EVERY_S):
                    began_s = time.monotonic()
                    self._connection.request("GET", PATH)
                    self._connection.getresponse().read()  # whatever it says: nginx knows no such path
                    self._waits_s.append(time.monotonic() - began_s)
        except (OSError, http.client.HTTPException) as error:
            self.error = error

    def stop(self) -> None:
        self._ends.set()
        self.join(ANSWER_WITHIN_S)

    def figures(self) -> dict[str, float]:
        """Raises what it met with, and ValueError where nobody was asked."""
        if self.error is not None:
            raise self.error
        return {
            "beside_p99_ms": percentile(self._waits_s, 99) * 1000,
            "beside_max_ms": percentile(self._waits_s, 100) * 1000,
        }


@contextlib.contextmanager
def asking(origin: str) -> Iterator[Asker]:
    """Asks as long as the block runs."""
    asker = Asker(origin)
    asker.start()
    try:
        yield asker
    finally:
        asker.stop()
