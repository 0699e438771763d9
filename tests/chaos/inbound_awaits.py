"""The server dies at every await of whatever hears of a phone call that comes in, finds it in the vendor's list, takes it on,
grants it time, ends it, bills it or tells its user's agent, while the number that was called passes on: after each death the
call is booked once, at the vendor's price, and is, and was told to, who had the number when it began.
`python -m tests.chaos.inbound_awaits --rounds 1000 --seed 1`.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metering.objects import ObjectId, Objects
from metering.phone_numbers import KIND, VENDOR, PhoneNumbers
from metering.store.database import Database
from metering.store.store import open_store
from simulators.bland import Call, Fate, fails
from tests.chaos.call_awaits import Round, play_kind
from tests.chaos.calls import Figures
from tests.chaos.rounds import BOOKED_WITHIN_S, User, run

STRANGER = "+12025550177"
LIST = "inbound=true"
TALKS_S, TALKS_LONG_S = 5.0, 200.0
"""Over before the list is looked at; longer than what is held of it at first."""


class Inbound(Round):
    """Calls to each of four users: one whose number passes to another, one whose budget ends, one who is disabled."""

    plans = ("roomy", "roomy", "short", "roomy")

    async def _act(self, users: Sequence[User]) -> None:
        ada, bob, poor, banned = users
        number = self._at.number_of[ada.user_id]
        self._hide_until_told(self._call(ada, talks_s=TALKS_S))
        self._call(ada, talks_s=TALKS_LONG_S)
        last = self._call(ada, talks_s=TALKS_S)
        self._stage.quiet.add(last.call_id)
        while self._at.clock.now_ms() <= last.created_ms:  # its milliseconds are long
            await asyncio.sleep(0)
        await self._pass_on(number, ada, bob)
        self._call(bob, talks_s=TALKS_S, number=number)
        self._call(poor, talks_s=None)
        refused = self._call(banned, talks_s=None)
        await self._taken_on(refused)
        await self._disable(banned)

    def _call(self, user: User, *, talks_s: float | None, number: str | None = None) -> Call:
        to = number or self._at.number_of[user.user_id]
        call = self._at.vendor.receive(to, STRANGER, fate=Fate(rings_s=1, talks_s=talks_s))
        self._owners[call.call_id] = user.user_id
        return call

    def _hide_until_told(self, call: Call) -> None:
        """The list cannot be read before the vendor has told of a call, or has tried to."""
        vendor = self._at.vendor

        def trouble(request: Any) -> Any:
            is_told = any(each.post.call_id == call.call_id for each in vendor.courier.deliveries)
            return fails(500) if LIST in request.target and not is_told else None

        vendor.script = trouble

    async def _pass_on(self, number: str, old: User, new: User) -> None:
        async with open_store(Database(self._at.server.store, busy_timeout_s=10)) as store:
            await Objects(store, self._at.clock).release(ObjectId(VENDOR, KIND, number), old.user_id)
            await PhoneNumbers(store, self._at.clock).assign(new.user_id, number, replaces=True)

    async def _taken_on(self, call: Call) -> None:
        rows, asked = self._at.server.rows, "SELECT 1 FROM reservations WHERE id = ?1"
        await self._at.server.until(lambda: rows(asked, f"in_{call.call_id}"), within_s=BOOKED_WITHIN_S)


async def play(folder: Path, rounds: int, seed: int) -> Figures:
    return (await play_kind(Inbound, folder, rounds, seed))[0]


if __name__ == "__main__":
    run(play, "tests.chaos.inbound_awaits", __doc__)
