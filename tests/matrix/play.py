"""One cell, played stage by stage; and what its client must have seen."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.matrix.caller import Caller
from tests.matrix.house import UNSEEN, House, bounds_of, filled
from tests.matrix.tables import Cell, Expected, Part, Stage, View
from tests.matrix.wire import Gates, spoken
from tests.support.gateway import Gateway

WITHIN_S = 20.0


class Play:
    """One exchange, stage by stage: the vendor goes on when the proxy has what came before, and the client has
    done what it does there."""

    def __init__(self, house: House, gateway: Gateway, cell: Cell, user_id: str, token: str) -> None:
        self.cell = cell
        self.gates = Gates()
        self.said = spoken(cell, self.gates, f"SimMatrix{user_id}")
        self.caller = Caller(is_slow=cell.client.is_slow)
        self._vendor = house.vendors[cell.speech.dialect.vendor]
        self._gateway = gateway
        self._user_id = user_id
        self._token = token

    async def run(self) -> "Play":
        cell, gates = self.cell, self.gates
        if bounds_of(cell) not in UNSEEN and cell.client.leaves_at is not Stage.ASKING:
            self.prescribe()
        await self._ask()
        if cell.client.leaves_at is Stage.ASKING:
            await self._gateway.until(lambda: self._gateway.server.server_state.tasks)
            await self._leave_at(Stage.ASKING)
            return self
        if bounds_of(cell) in UNSEEN:
            if cell.client.leaves_at is Stage.CONNECTING:
                await self._gateway.until(lambda: self._gateway.service.client.open_connections)
                await self._leave_at(Stage.CONNECTING)
            return self
        await gates.before_head.reached()
        (exchange,) = self._gateway.service.engine._open
        await self._leave_at(Stage.BEFORE_HEAD)
        gates.before_head.open()
        if cell.vendor.sends < Part.HEAD or cell.vendor.error is not None:
            return self
        await gates.after_head.reached()
        await self._gateway.until(lambda: exchange.upstream_status is not None)
        gates.after_head.open()
        if not self.said.has_first:
            return self
        await gates.midway.reached()
        await self._until_passed(exchange, self.said.seen_midway_bytes, self.said.plain_first_bytes)
        # A checkpoint, whenever it comes, changes nothing of what a living worker books.
        await self._gateway.service.engine.checkpoint_open_streams()
        await self._leave_at(Stage.MIDWAY)
        gates.midway.open()
        if cell.vendor.lets_reach is Stage.AFTER_LAST:
            await gates.after_last.reached()
            await self._until_passed(exchange, self.said.seen_after_last_bytes, self.said.plain_bytes)
            await self._leave_at(Stage.AFTER_LAST)
            gates.after_last.open()
        return self

    def prescribe(self) -> None:
        """Have the vendor answer as the cell says."""
        self._vendor.next(*[self.said.script] * self.cell.asks)

    @asynccontextmanager
    async def seen_to_the_end(self, must: Expected) -> AsyncIterator[None]:
        """A client that is to see something has seen all that came; it is gone after that."""
        try:
            if must.view is not None:
                await self.caller.finished(WITHIN_S)
            yield
        finally:
            await self.caller.leave(resets=False)

    def assert_seen(self, must: Expected) -> None:
        """What the client has seen: whole answers whole, broken ones broken, errors in the vendor's dialect."""
        caller, said, dialect = self.caller, self.said, self.cell.speech.dialect
        body = bytes(caller.body)
        if must.view is None:
            return
        if must.view is View.NOTHING:
            assert (caller.is_closed, caller.wire_bytes) == (True, 0)
            return
        assert caller.status == must.status
        if must.view is View.REFUSED:
            assert caller.is_whole
            assert dialect.said_in(body) == must.error_type
            wait_s = caller.headers.get(b"retry-after")
            assert must.retry_after_s == (None if wait_s is None else int(wait_s))
            return
        if must.view is View.CLEAN:
            assert caller.is_whole
            assert body == said.seen
            return
        assert (caller.is_closed, caller.is_whole) == (True, False)
        assert body.startswith(said.seen)
        rest = body[len(said.seen) :]
        if said.pings:
            while rest.startswith(said.pings):
                rest = rest[len(said.pings) :]
        if must.error_type is None:
            assert rest == b""
        else:
            assert rest.startswith(dialect.event)
            assert rest.endswith((b"\n\n", b"\r\n\r\n"))
            assert dialect.said_in(rest.removeprefix(dialect.event)) == must.error_type

    async def _ask(self) -> None:
        coding = b"gzip" if self.cell.vendor.is_gzip else b"identity"
        speech = self.cell.speech
        headers = [
            speech.dialect.key + self._token.encode(),
            b"anthropic-version: 2023-06-01",
            b"accept-encoding: " + coding,
        ]
        port = int(self._gateway.url.rpartition(":")[2])
        is_whole = self.cell.client.leaves_at is not Stage.ASKING
        target, body = (filled(text, self._user_id) for text in (speech.target, speech.body()))
        await self.caller.ask(port, target, headers, body, method=speech.method, is_whole=is_whole)

    async def _until_passed(self, exchange, seen_bytes, plain_bytes) -> None:
        """Until the meter has read so much, if it reads at all, and a client that is still there has it."""
        if not self.cell.speech.is_sold_whole:
            await self._gateway.until(lambda: exchange.observer._bytes_fed >= plain_bytes)
        if not exchange.client_left:
            await self._gateway.until(lambda: len(self.caller.body) >= seen_bytes)

    async def _leave_at(self, stage: Stage) -> None:
        client = self.cell.client
        if client.leaves_at is not stage:
            return
        if client.reads_on:
            self.caller.half_close()
        else:
            await self.caller.leave(resets=client.resets)
        if stage is not Stage.ASKING:
            exchanges = self._gateway.service.engine._open
            await self._gateway.until(lambda: all(exchange.client_left for exchange in exchanges))
