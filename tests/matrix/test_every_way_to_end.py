"""Every way an exchange can end: what a client does by what the vendor does, each pair with all that must hold.

After each: one entry for what reached the vendor, with the right outcome, basis and cost; the same outcome in the
canonical line; a proper end for a client that stayed; and nothing left open, held or counted.
"""

from dataclasses import dataclass

import pytest

from tests.matrix.caller import Caller
from tests.matrix.house import House, bounds_of, hurry, target_of
from tests.matrix.tables import (
    CELLS,
    Cell,
    Cost,
    End,
    Expected,
    Part,
    Stage,
    View,
    expected,
)
from tests.matrix.wire import Gates, spoken
from tests.support.gateway import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
WITHIN_S = 20.0


@pytest.mark.parametrize("cell", CELLS, ids=[cell.name for cell in CELLS])
async def test_every_way_to_end(house, cell):
    gateway = await house.gateway(bounds_of(cell))
    user_id, token = await house.new_user(gateway)
    await gateway.quiet()
    before, seen_before = house.open(), house.requests_total
    played = await Play(house, gateway, cell, user_id, token).run()
    if cell.vendor.end is End.STALLS and bounds_of(cell) == "patient":
        for ask in range(1, cell.asks + 1):
            asked = seen_before + ask
            await gateway.until(lambda asked=asked: house.requests_total >= asked)
            hurry(gateway)
    must = expected(cell)
    try:
        if must.view is not None:
            await played.caller.finished(WITHIN_S)
            assert_seen(played, must)
    finally:
        await played.caller.leave(resets=False)
    await gateway.assert_clean()
    await house.until_open_is(before)
    assert not gateway.service.engine._drains
    is_seen = bounds_of(cell) not in UNSEEN and must.outcome is not None
    assert house.requests_total - seen_before == (cell.asks if is_seen else 0)
    await assert_booked(gateway, cell, user_id, must)


UNSEEN = {"refuses", "never accepts", "left at connecting"}
"""Bounds of gateways whose vendor cannot be reached."""


# --- how a cell is played -----------------------------------------------------------------------------


class Play:
    """One exchange, stage by stage: the vendor goes on when the proxy has what came before, and the client has
    done what it does there."""

    def __init__(self, house: House, gateway: Gateway, cell: Cell, user_id: str, token: str) -> None:
        self.cell = cell
        self.gates = Gates()
        self.said = spoken(cell, self.gates, f"SimMatrix{user_id}")
        self.caller = Caller(is_slow=cell.client.is_slow)
        self._house = house
        self._gateway = gateway
        self._user_id = user_id
        self._token = token

    async def run(self) -> "Play":
        cell, gates = self.cell, self.gates
        if bounds_of(cell) not in UNSEEN and cell.client.leaves_at is not Stage.ASKING:
            self._house.vendors[cell.speech.dialect.vendor].next(*[self.said.script] * cell.asks)
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
        target = target_of(speech, self._user_id)
        await self.caller.ask(port, target, headers, speech.body(), method=speech.method, is_whole=is_whole)

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


# --- what must hold -----------------------------------------------------------------------------------


def assert_seen(played: Play, must: Expected) -> None:
    """What the client has seen: whole answers whole, broken ones broken, errors in the vendor's dialect."""
    caller, said, dialect = played.caller, played.said, played.cell.speech.dialect
    body = bytes(caller.body)
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


@dataclass(frozen=True)
class Entry:
    kind: str
    outcome: str
    basis: str
    cost_nanousd: int
    input_tokens: int
    output_tokens: int
    reservation_id: str


async def assert_booked(gateway: Gateway, cell: Cell, user_id: str, must: Expected) -> None:
    """One entry and one line that say the same; none where the vendor could never have heard of it."""
    readers = gateway.service.store.readers
    entries = [
        Entry(*row)
        for row in await readers.rows(
            "SELECT kind, outcome, basis, cost_nanousd, input_tokens, output_tokens, reservation_id "
            "FROM entries WHERE user_id = ?1",
            (user_id,),
        )
    ]
    held = await readers.rows(
        "SELECT id, hold_nanousd, checkpoint_nanousd, state FROM reservations WHERE user_id = ?1", (user_id,)
    )
    (line,) = [line for line in gateway.lines if line.get("user") == user_id]
    if must.outcome is None:
        assert (entries, held, line["outcome"], line["status"]) == ([], [], "client_left", 499)
        return
    (entry,) = entries
    ((reservation_id, hold_nanousd, floor_nanousd, _),) = held
    assert (entry.reservation_id, line["request"]) == (reservation_id, reservation_id)
    assert (entry.kind, entry.outcome) == (must.kind, must.outcome)
    assert line["outcome"] == entry.outcome
    assert entry.basis == ("reported" if must.is_reported else "estimated")
    assert line.get("client_left", False) == (must.view in (None, View.NOTHING))
    exact_nanousd, at_start_nanousd = cell.speech.exact_nanousd, cell.speech.at_start_nanousd
    low, high = {
        Cost.NOTHING: (0, 0),
        Cost.EXACT: (exact_nanousd, exact_nanousd),
        Cost.AT_START: (at_start_nanousd, at_start_nanousd),
        Cost.FLOOR: (floor_nanousd, floor_nanousd),
        Cost.FROM_START: (at_start_nanousd, hold_nanousd),
        Cost.FROM_FLOOR: (floor_nanousd, hold_nanousd),
    }[must.cost]
    assert low <= entry.cost_nanousd <= high
    assert high <= hold_nanousd
    if must.cost is Cost.EXACT:
        assert (entry.input_tokens, entry.output_tokens) == cell.speech.counts
