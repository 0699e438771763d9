"""The agents of a soak: connections that come and go, each with some requests of mixed kinds."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import cast

import httptools

from metering.tasks import spawn
from tests.soak.mix import KINDS, Kind

REQUESTS_PER_CONNECTION_MAX = 40
ANSWER_WITHIN_S = 60.0
WRONG_MAX = 20
"""What is wrong is told in full so often; then it is only counted."""
BAD_GATEWAY = 502


@dataclass(slots=True)
class Tally:
    """What all agents have seen."""

    asked: Counter[str] = field(default_factory=Counter)
    """Requests sent, by kind."""
    wrong: list[str] = field(default_factory=list)
    wrong_total: int = 0
    connections: int = 0
    raced: int = 0
    """Requests that went up a connection which the vendor was closing at that moment: told 502, booked by estimate,
    because nobody can know whether the vendor works on them."""

    @property
    def total(self) -> int:
        return self.asked.total()

    def complain(self, text: str) -> None:
        self.wrong_total += 1
        if len(self.wrong) < WRONG_MAX:
            self.wrong.append(text)


class Connection(asyncio.Protocol):
    """One client's connection: one request after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[None] | None = None
        self._leaves_after_bytes: int | None = None
        self.is_open = False

    async def ask(self, request: bytes, *, stream_end: bytes, leaves_after_bytes: int | None) -> None:
        """Send it and wait for the end: of the answer, of the connection, or of our patience with either."""
        self.status, self.received, self.is_whole = 0, 0, False
        self.ends_as_a_stream = False
        self._tail, self._stream_end = b"", stream_end
        self._leaves_after_bytes = leaves_after_bytes
        self._done = self._loop.create_future()
        self._transport.write(request)
        if leaves_after_bytes == 0:
            self._loop.call_soon(self._leave)
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await self._done
        finally:
            self._done = None

    def close(self, *, is_abrupt: bool) -> None:
        if is_abrupt:
            self._transport.abort()
        else:
            self._transport.close()

    def _leave(self) -> None:
        self._transport.abort()
        self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self.is_open = False
        self._finish()

    # httptools' side

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self.received += len(data)
        text = self._tail + data
        self.ends_as_a_stream = self.ends_as_a_stream or self._stream_end in text
        self._tail = text[-len(self._stream_end) :]
        if self._leaves_after_bytes is not None and self.received >= self._leaves_after_bytes:
            self._leave()

    def on_message_complete(self) -> None:
        self.is_whole = True
        self.is_open = self.is_open and self._parser.should_keep_alive()
        self._finish()


class Agents:
    """So many of them at once, until so many requests are sent."""

    def __init__(
        self, address: tuple[str, int], tokens: dict[str, list[str]], *, requests: int, seed: int
    ) -> None:
        self._address = address
        self._requests_max = requests
        self._seed = seed
        self._wire = {(kind, token): kind.request(token) for kind in KINDS for token in tokens[kind.who]}
        self._tokens = tokens
        self.tally = Tally()

    async def run(self, count: int) -> None:
        tasks = [
            spawn(self._live(random.Random(f"{self._seed}:{number}")), name=f"agent {number}")
            for number in range(count)
        ]
        await asyncio.gather(*tasks)

    async def _live(self, dice: random.Random) -> None:
        while self.tally.total < self._requests_max:
            await self._connect_and_work(dice)

    async def _connect_and_work(self, dice: random.Random) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, *self._address)
        self.tally.connections += 1
        for _ in range(dice.randrange(1, REQUESTS_PER_CONNECTION_MAX)):
            if not connection.is_open or self.tally.total >= self._requests_max:
                break
            (kind,) = dice.choices(KINDS, _WEIGHTS)
            await self._ask(connection, kind, dice)
        connection.close(is_abrupt=dice.random() < 0.3)

    async def _ask(self, connection: Connection, kind: Kind, dice: random.Random) -> None:
        request = self._wire[kind, dice.choice(self._tokens[kind.who])]
        self.tally.asked[kind.name] += 1
        try:
            await connection.ask(
                request, stream_end=kind.stream_end, leaves_after_bytes=kind.leaves_after_bytes
            )
        except TimeoutError:
            self.tally.complain(f"{kind.name}: no end within {ANSWER_WITHIN_S:g} s")
            return
        if connection.status == BAD_GATEWAY != kind.status:
            self.tally.raced += 1
            return
        problem = problem_of(kind, connection)
        if problem:
            self.tally.complain(f"{kind.name}: {problem}")


def problem_of(kind: Kind, connection: Connection) -> str:
    """What a client of this kind should not have seen."""
    if kind.leaves_after_bytes is not None:  # on a busy machine the answer may be there before it has left
        return "" if connection.status in {0, 200} else f"status {connection.status}"
    if connection.status != kind.status:
        return f"status {connection.status}"
    if connection.is_whole == kind.is_cut:
        return "a clean end" if kind.is_cut else f"broke off after {connection.received} bytes"
    if kind.is_streaming and not kind.is_gzip and connection.ends_as_a_stream == kind.is_cut:
        return "the last event is not what it should be"
    return ""


_WEIGHTS = [kind.weight for kind in KINDS]
