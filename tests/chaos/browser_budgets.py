"""Budgets that end while an agent drives a page: the browser is ended at the vendor within a slice, though the vendor does not
keep to the time that it was told, and loses what it is told; the socket is cut, and what is booked is what the vendor
bills. `python -m tests.chaos.browser_budgets --rounds 50 --seed 1`.
"""

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from metering.tasks import spawn
from routes.browserbase import SLICE_S
from simulators.browserbase import Habits, Session, drops, fails, loses_reply
from tests.chaos.browsers import Figures, Stage, staged
from tests.chaos.rounds import PAUSE_S, User, run

HASTE = 20.0
"""Seconds in one: a slice in six, a budget in 18; a server that starts again has a slice for that."""
BUDGET_S = 360
PLANS: Mapping[str, Mapping[str, Any]] = {
    "minutes": {"browsers": 2, "browser_minutes": BUDGET_S // 60},
    "credits": {"browsers": 2, "credits_per_month": 120},
    "prepaid": {"browsers": 2, "credits_per_month": 60},
    "soft": {"browsers": 2, "browser_minutes": BUDGET_S // 60, "budget": "soft"},
}
"""Each with BUDGET_S of a browser, half of the prepaid one's by credit; of minutes, no budget is soft."""
DISOBEYED_S = 36_000
LOST = 0.3
"""Of the orders to end a session."""
KILLED, KILLED_AFTER_S = 0.5, (1.0, 8.0)
"""In so many of the rounds, once."""
CUT_WITHIN_S = 15.0
"""Of the machine's own time, after a session's end."""
ENDED_WITHIN_S = 120.0


class Round:
    """Two agents of each user, whose browsers share its budget."""

    def __init__(self, stage: Stage, number: int) -> None:
        self._stage = stage
        self._number = number
        self._before = len(stage.vendor.sessions)

    async def play(self) -> None:
        stage, kills = self._stage, self._stage.figures.kills
        stage.vendor.set_habits(Habits(end_s=stage.dice.choice((0, 5))))
        stage.vendor.script = self._trouble
        async with stage.users(self._number, list(PLANS)) as users:
            disobeying = spawn(self._disobey(), name="disobeying")
            try:
                async with asyncio.TaskGroup() as tasks:
                    for user in users:
                        tasks.create_task(self._by_request(user, f"{user.user_id}a"))
                        tasks.create_task(stage.drive(stage.endpoint(user), f"{user.user_id}b", until=_never))
                    tasks.create_task(self._kill())
                await self._all_ended()
            finally:
                disobeying.cancel()
            stage.vendor.script = None
            await stage.all_booked()
            await stage.check(users, self._sessions())
            for user in users:
                self._check_ended(user, was_killed=stage.figures.kills > kills)

    def _sessions(self) -> list[Session]:
        return self._stage.vendor.sessions[self._before :]

    def _trouble(self, request: Any) -> Any:
        is_ending = request.method == "POST" and request.path.startswith("/v1/sessions/")
        if not is_ending or self._stage.dice.random() >= LOST:
            return None
        return self._stage.dice.choice((drops(), loses_reply(), fails(500)))

    async def _disobey(self) -> None:
        """The vendor would let every session go on for hours."""
        seen: set[str] = set()
        while True:
            for session in self._sessions():
                if session.id not in seen:
                    seen.add(session.id)
                    session.expires_ms += DISOBEYED_S * 1_000
            await asyncio.sleep(PAUSE_S / 2)

    async def _kill(self) -> None:
        stage = self._stage
        if stage.dice.random() < KILLED:
            await asyncio.sleep(stage.dice.uniform(*KILLED_AFTER_S))
            await stage.kill_now()

    async def _by_request(self, user: User, name: str) -> None:
        """Until the session is over: whoever is cut off comes back, which helps only where it goes on."""
        stage = self._stage
        session = await stage.created(user, keepAlive=True, timeout=3_600)
        if session is None:
            return
        real = stage.vendor.project.sessions[session["id"]]
        while session["status"] == "RUNNING":
            began_ms = stage.clock.now_ms()
            await stage.drive(session["connectUrl"], name, until=_never)
            if real.ended_ms is not None and began_ms < real.ended_ms:
                late_s = (stage.clock.now_ms() - real.ended_ms) / 1_000 / HASTE
                assert late_s < CUT_WITHIN_S, f"open for {late_s:.1f} s after its session's end"
            await asyncio.sleep(PAUSE_S)
            answer = await stage.ask(user, "GET", f"/v1/sessions/{real.id}")
            if answer is not None and answer.status_code == httpx.codes.OK:
                session = answer.json()

    async def _all_ended(self) -> None:
        """Those of which nobody was told, because the server was killed, too."""
        async with asyncio.timeout(ENDED_WITHIN_S):
            while any(session.is_live for session in self._sessions()):
                await asyncio.sleep(PAUSE_S)

    def _check_ended(self, user: User, *, was_killed: bool) -> None:
        """Within a slice of what the budget has, and not much before."""
        stage = self._stage
        own = [session for session in self._sessions() if stage.owner_of(session)[1] == user.user_id]
        seconds = sum(billed.seconds for session in own if (billed := session.billed()) is not None)
        assert seconds <= BUDGET_S + SLICE_S, f"{user.plan}: {seconds} s of {BUDGET_S}"
        if was_killed:
            return
        assert len(own) == 2, own
        assert seconds >= BUDGET_S - 2 * SLICE_S, f"{user.plan}: {seconds} s of {BUDGET_S}"
        outcomes = stage.outcomes(user)
        assert outcomes == ["budget_ended"] * 2, outcomes


def _never() -> bool:
    return False


async def play(folder: Path, rounds: int, seed: int) -> Figures:
    """Rounds on one server."""
    async with staged(folder, random.Random(seed), haste=HASTE, plans=PLANS) as stage:
        await stage.play(rounds, lambda number: Round(stage, number).play())
    return stage.figures


if __name__ == "__main__":
    run(play, "tests.chaos.browser_budgets", __doc__)
