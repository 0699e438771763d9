"""`kill -9` at any moment: what was acknowledged is there once, what was held is given back."""

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from metering.heartbeat import Heartbeat
from metering.ledger import MONEY, Reservation, decode_lines
from metering.store.database import Database
from tests.chaos.ledger_victim import HOLD
from tests.support.faulty_disk import THE_LOG, FaultyDisk
from tests.support.kill_points import Orders
from tests.support.ledger import PERIOD, Bench, gauge, intent, money, new_database, open_bench

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
VICTIM = Path(__file__).with_name("ledger_victim.py")
ROUNDS = 10
CREDIT_OF_ONE = 2_500
"""Two holds and a half."""
ALIVE_S = (0.005, 0.25)
"""How long a victim lives after its first reservation, at random."""


class Victim:
    """A process under load, and what it said before it died."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.reserved: set[str] = set()
        self.extended: set[str] = set()
        self.settled: dict[str, int] = {}

    @classmethod
    async def start(cls, database: Database, worker_id: str, seed: int, **env: str) -> "Victim":
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(VICTIM),
            *(str(database.path), worker_id, str(seed)),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            start_new_session=True,  # what kills its group must not kill ours
        )
        victim = cls(process)
        await victim.heard("started")
        return victim

    async def heard(self, word: str) -> None:
        assert self.process.stdout is not None
        while line := await asyncio.wait_for(self.process.stdout.readline(), 30):
            if self.note(line) == word:
                return
        pytest.fail(f"the victim ended before it said {word!r}")

    def note(self, line: bytes) -> str:
        if not line.endswith(b"\n"):
            return ""  # cut by the kill
        match line.decode().split():
            case ["reserved", ident]:
                self.reserved.add(ident)
            case ["extended", ident]:
                self.extended.add(ident)
            case ["settled", ident, cost]:
                self.settled[ident] = int(cost)
        return line.split()[0].decode()

    async def killed(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.dead()

    async def dead(self) -> None:
        """Read what it said until it died of a `kill -9`, from whomever."""
        await asyncio.wait_for(self._rest(), 30)
        assert await self.process.wait() == -signal.SIGKILL

    async def _rest(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.note(line)


async def reap(bench: Bench) -> None:
    """As a restarted service would: beat and look around until the dead are found."""
    heart = Heartbeat(bench.store, bench.worker("wrk_reaper"), bench.clock, interval_s=1.0, dead_after_s=3.0)
    for _ in range(5):
        bench.clock.advance(1)
        await heart.beat()
        await heart.reap()


async def assert_nothing_is_lost(bench: Bench, victims: list[Victim]) -> None:
    rows = await bench.store.readers.rows(
        "SELECT reservation_id, kind, cost_nanousd FROM entries ORDER BY seq"
    )
    resolutions = Counter(str(ident) for ident, kind, _ in rows if kind in {"settle", "void", "expire"})
    settled: Counter[str] = Counter()
    for ident, kind, cost in rows:
        if kind in {"settle", "overage"}:
            settled[str(ident)] += int(str(cost))
    for victim in victims:
        for ident, cost in victim.settled.items():
            assert (resolutions[ident], settled[ident]) == (1, cost), ident
        for ident in victim.reserved:
            assert resolutions[ident] == 1, f"{ident} was granted and is not in the ledger"
    assert await bench.held_reservations() == 0
    await bench.assert_clean()


async def assert_budgets_admit_again(bench: Bench) -> None:
    for owner in ("user:a", "user:b", "user:c"):
        balance = await bench.ledger.balance(owner, MONEY, PERIOD)
        assert balance.held == 0
        all_of_it = money(10**9 - balance.spent, of=10**9, owner=owner)
        granted = await bench.ledger.reserve(intent(all_of_it, gauge(of=1, owner=owner)))
        assert isinstance(granted, Reservation)
        await bench.ledger.void(granted)


@pytest.mark.parametrize("workers", [1, 2])
async def test_killed_at_random_moments_nothing_acknowledged_is_lost_and_nothing_stays_held(
    tmp_path: Path, workers: int
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    database = new_database(tmp_path)
    async with open_bench(tmp_path, database=database) as bench:
        await bench.grant(CREDIT_OF_ONE, user_id="c")
    victims: list[Victim] = []
    for round_number in range(ROUNDS // workers):
        running = await asyncio.gather(
            *(
                Victim.start(database, f"wrk_{round_number}_{number}", dice.randrange(10**6))
                for number in range(workers)
            )
        )
        await asyncio.gather(*(victim.heard("reserved") for victim in running))
        await asyncio.sleep(dice.uniform(*ALIVE_S))
        await asyncio.gather(*(victim.killed() for victim in running))
        victims += running
        async with open_bench(tmp_path, database=database) as bench:
            await reap(bench)
            await assert_nothing_is_lost(bench, victims)
            await assert_budgets_admit_again(bench)
    assert sum(len(victim.settled) for victim in victims) > ROUNDS


@pytest.mark.parametrize("fault", ["kill_at_write", "kill_at_sync", "kill_after_sync"])
async def test_killed_inside_a_commit_that_extends_a_hold_both_or_neither_are_there(
    tmp_path: Path, fault: str
) -> None:
    disk, orders = FaultyDisk(tmp_path), Orders(tmp_path)
    database = new_database(tmp_path)
    victims: list[Victim] = []
    for number in range(2):
        env = {**disk.env, "KILL_ORDERS": str(orders.path)}
        victim = await Victim.start(database, f"wrk_{number}", number, **env)
        victims.append(victim)
        await victim.heard("extended")
        orders.break_commit("extend", nth=number + 1, **{fault: number + 1, "only": THE_LOG})
        await victim.dead()
        assert orders.told()[0]["died"] == "extend"
        disk.mend()
        orders.none()
        async with open_bench(tmp_path, database=database) as bench:
            await assert_extensions_hold_what_they_say(bench, victim)
            await reap(bench)
            await assert_nothing_is_lost(bench, victims)
            await assert_budgets_admit_again(bench)


async def assert_extensions_hold_what_they_say(bench: Bench, victim: Victim) -> None:
    """A hold and its lines are one; what was acknowledged as extended holds twice of what it held at first."""
    rows = await bench.store.readers.rows("SELECT id, hold_nanousd, lines FROM reservations")
    holds = {str(ident): int(str(hold)) for ident, hold, _ in rows}
    for ident, hold, lines in rows:
        assert hold == max(line.amount for line in decode_lines(str(lines)) if line.meter == MONEY), ident
    assert victim.extended
    for ident in victim.extended:
        assert holds[ident] == 2 * HOLD, ident


async def test_a_living_worker_keeps_its_holds_while_a_dead_one_is_reaped(tmp_path: Path) -> None:
    database = new_database(tmp_path)
    victim = await Victim.start(database, "wrk_dead", 1)
    async with open_bench(tmp_path, database=database, busy_timeout_s=10) as bench:
        kept = [await bench.reserve(money(10, of=10**9), ledger=bench.worker("wrk_alive")) for _ in range(5)]
        alive = Heartbeat(bench.store, bench.worker("wrk_alive"), bench.clock)
        await victim.heard("reserved")
        await victim.killed()
        reaper = Heartbeat(bench.store, bench.worker("wrk_reaper"), bench.clock, dead_after_s=3.0)
        for _ in range(5):
            bench.clock.advance(1)
            await alive.beat()
            await reaper.beat()
            await reaper.reap()
        assert await bench.held_reservations() == len(kept)
        for reservation in kept:
            await bench.ledger.void(reservation)
        await assert_nothing_is_lost(bench, [victim])
