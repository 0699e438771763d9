"""Every way an exchange can end: what a client does by what the vendor does, each pair with all that must hold.

After each: one entry for what reached the vendor, with the right outcome, basis and cost; the same outcome in the
canonical line; a proper end for a client that stayed; and nothing left open, held or counted.
"""

from dataclasses import dataclass

import pytest

from tests.matrix.house import UNSEEN, bounds_of, hurry
from tests.matrix.play import Play
from tests.matrix.tables import CELLS, Cell, Cost, End, Expected, View, expected
from tests.support.gateway import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
    async with played.seen_to_the_end(must):
        played.assert_seen(must)
    await gateway.assert_clean()
    await house.until_open_is(before)
    assert not gateway.service.engine._drains
    is_seen = bounds_of(cell) not in UNSEEN and must.outcome is not None
    assert house.requests_total - seen_before == (cell.asks if is_seen else 0)
    await assert_booked(gateway, cell, user_id, must)


# --- what must hold -----------------------------------------------------------------------------------


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
