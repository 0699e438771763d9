"""Every way a request can end that begins what costs by the second and goes on without it: each pair of a client and a vendor,
where the vendor has begun it, and where it has not.

The vendor answers the request as badly as it may, and all later questions as it does. After each: asked for once; one entry,
which is what the vendor bills, or nothing; ended where nobody knows of it; and nothing left open, held, counted or running.
"""

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest

from metering.ledger import Outcome
from simulators.script import Ready, Script
from simulators.server import ReceivedRequest
from simulators.text import filler
from tests.matrix.begun import CELLS, Begun, BegunCell, Fate, begun
from tests.matrix.house import POLL_S, UNSEEN, House, bounds_of, hurry
from tests.matrix.play import WITHIN_S, Play
from tests.matrix.tables import End, View
from tests.matrix.wire import spoken
from tests.matrix.works import Bill
from tests.support.gateway import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
RUNS_S = 50.0
"""How long what its user knows of goes on: longer than until it is asked about."""
LOOK_S, LOOKS_MAX = 20.0, 12
"""Between two moments at which whatever is due is asked about; and how many of them there are until all is over."""
UNDER_WAY = """
SELECT 1 FROM deferred_work d JOIN reservations r ON r.id = d.reservation_id WHERE d.is_open = 1 AND r.state = 'HELD'"""


@pytest.mark.parametrize("cell", CELLS, ids=[cell.name for cell in CELLS])
async def test_every_way_to_begin(house, cell):
    gateway = await house.gateway(bounds_of(cell))
    user_id, token = await house.new_user(gateway)
    await gateway.quiet()
    before, must = house.open(), begun(cell)
    played = Beginning(house, gateway, cell, user_id, token)
    await played.run()
    if cell.vendor.end is End.STALLS and bounds_of(cell) == "patient":
        hurry(gateway)
    async with played.seen_to_the_end(must.seen):
        if must.fate is Fate.TOLD:
            played.assert_told()
        else:
            played.assert_seen(must.seen)
    bill = await played.until_over(must)
    await gateway.assert_clean()
    await house.until_open_is(before)
    assert not gateway.service.engine._drains
    is_heard = bounds_of(cell) not in UNSEEN and must.entry is not None
    assert (played.asks, played.looks, played.ends) == (int(is_heard), must.looks, must.ends)
    assert (len(played.made), bill is not None) == (cell.is_made, cell.is_made)
    await assert_booked(gateway, played, must, bill)


# --- how a cell is played -----------------------------------------------------------------------------


class Beginning(Play):
    """What the vendor begins is there as soon as it has the request: what follows is only its word."""

    def __init__(self, house: House, gateway: Gateway, cell: BegunCell, user_id: str, token: str) -> None:
        super().__init__(house, gateway, cell, user_id, token)
        self.work, self.is_made, self.user_id = cell.work, cell.is_made, user_id
        self._house = house
        self._asked: list[str] = []
        self._made_before = len(self.work.all_of(self._vendor))

    @property
    def made(self) -> list[Any]:
        """All that the vendor has begun since."""
        return self.work.all_of(self._vendor)[self._made_before :]

    @property
    def asks(self) -> int:
        return self._asked.count(self.work.operation)

    @property
    def looks(self) -> int:
        return self._asked.count(self.work.listing)

    @property
    def ends(self) -> int:
        return sum(self._asked.count(self.work.ending_of(one)) for one in self.made)

    def prescribe(self) -> None:
        """Later cells' scripts take the place of this one."""
        self._vendor.script = self._answer

    def _answer(self, request: ReceivedRequest) -> Script | None:
        """Bad words for the request that begins it; None, that is the vendor's own, for all others."""
        self._asked.append(f"{request.method} {request.path}")
        if self._asked[-1] != self.work.operation:
            return None
        if self.is_made:
            told = self._begin(request)
            speech = replace(
                self.cell.speech, whole=lambda _, words: orjson.dumps({**told, "x": filler(words)})
            )
            self.said = spoken(replace(self.cell, speech=speech), self.gates)
        return self.said.script

    def _begin(self, request: ReceivedRequest) -> dict[str, Any]:
        """Have the vendor do as it is asked; what it would say of that."""
        vendor = self._vendor
        answer = vendor.route(request)(vendor.turn_type(request, vendor.behaviour_type(), gzip=False))
        assert isinstance(answer, Ready)
        told: dict[str, Any] = orjson.loads(answer.wire.partition(b"\r\n\r\n")[2])
        return told

    def assert_told(self) -> None:
        """Its client knows what was begun, and nothing of ours."""
        (one,) = self.made
        assert self.caller.is_whole
        assert self.caller.status == self.cell.speech.status
        assert orjson.loads(self.caller.body)[self.work.id_field] == self.work.id_of(one)
        assert b"automna-req" not in self.caller.body

    async def until_over(self, must: Begun) -> Bill | None:
        """Time passes until nothing is asked about any more; what the vendor then bills."""
        await self._gateway.until(lambda: not self._gateway.service.engine.open_exchanges)
        readers = self._gateway.service.store.readers
        async with asyncio.timeout(WITHIN_S):  # no time passes before it is written that its request is over
            while await readers.row(UNDER_WAY) is not None:
                await asyncio.sleep(POLL_S)
        for one in self.made:
            self.work.begin_to_cost(self._vendor, one)
            if must.fate is Fate.TOLD:
                await self._house.pass_time(self._gateway, RUNS_S)
                assert self.work.bill_of(one) is None, "nobody has ended it"
                self.work.end(self._vendor, one)
        for _ in range(LOOKS_MAX):
            if await readers.row("SELECT 1 FROM deferred_work") is None:
                return self.work.bill_of(self.made[0]) if self.made else None
            await self._house.pass_time(self._gateway, LOOK_S)
        raise AssertionError("it is asked about still")


# --- what must hold -----------------------------------------------------------------------------------


async def assert_booked(gateway: Gateway, played: Beginning, must: Begun, bill: Bill | None) -> None:
    """One entry, which says what the vendor bills; a line for the request, and one for what it has begun; and that is its
    user's own."""
    readers, user_id = gateway.service.store.readers, played.user_id
    entries = await readers.rows(
        "SELECT kind, outcome, basis, cost_nanousd, usage, notes, reservation_id FROM entries WHERE user_id = ?1",
        (user_id,),
    )
    (line,) = [line for line in gateway.lines if line.get("user") == user_id]
    assert line["outcome"] == must.line
    assert line.get("client_left", False) == (
        must.entry is not None and must.seen.view in (None, View.NOTHING)
    )
    if must.entry is None:
        assert (entries, line["status"]) == ([], 499)
        return
    ((kind, outcome, basis, cost, usage, notes, request_id),) = entries
    assert (kind, outcome, basis, tuple(orjson.loads(notes or "[]"))) == (
        must.kind,
        must.entry,
        "reported",
        must.notes,
    )
    seconds = sum(line["counts"].get(played.work.unit, 0) for line in orjson.loads(usage or "[]"))
    assert (seconds, cost) == ((0, 0) if bill is None else (bill.seconds, bill.cost_nanousd))
    counted = await readers.rows(
        "SELECT meter, spent FROM accounts WHERE owner = ?1 AND meter IN (?2, 'money')",
        (f"user:{user_id}", played.work.unit),
    )
    assert dict(counted) == {played.work.unit: seconds, "money": cost}
    assert line["request"] == request_id
    later = [each["outcome"] for each in gateway.lines if each["request"] == request_id and each is not line]
    assert later == ([] if must.line is not Outcome.DEFERRED else [must.entry])
    owned = await readers.rows(
        "SELECT upstream_id FROM owned_objects WHERE reservation_id = ?1", (request_id,)
    )
    assert owned == [(played.work.id_of(one),) for one in played.made]
