"""Grants happen once: delivered again and again, by two processes at once, each killed at any moment."""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from metering.clock import SystemClock
from metering.store.database import Database
from metering.users import Directory
from tests.chaos.grant_victim import USER, amount_of
from tests.support.faulty_disk import THE_LOG, FaultyDisk
from tests.support.kill_points import Orders
from tests.support.ledger import new_database, open_bench

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
VICTIM = Path(__file__).with_name("grant_victim.py")
ROUNDS = 5
ALIVE_S = (0.0, 0.15)


class Victim:
    """A process that grants, and the sources of which it said that they are granted."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.granted: set[str] = set()

    @classmethod
    async def start(cls, database: Database, **env: str) -> "Victim":
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(VICTIM),
            str(database.path),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            start_new_session=True,  # what kills its group must not kill ours
        )
        return cls(process)

    async def heard(self, word: str) -> None:
        assert self.process.stdout is not None
        while line := await asyncio.wait_for(self.process.stdout.readline(), 30):
            if self.note(line) == word:
                return
        pytest.fail(f"the victim ended before it said {word!r}")

    def note(self, line: bytes) -> str:
        if not line.endswith(b"\n"):
            return ""  # cut by the kill
        words = line.decode().split()
        if words[0] == "granted":
            self.granted.add(words[1])
        return words[0]

    async def dead(self) -> None:
        """Read what it said until it died."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.note(line)
        assert await self.process.wait() == -signal.SIGKILL


async def new_store(tmp_path: Path) -> Database:
    database = new_database(tmp_path)
    async with open_bench(tmp_path, database=database) as bench:
        await Directory(bench.store, SystemClock()).add_user(USER, plan="free")
    return database


async def assert_each_is_granted_once(tmp_path: Path, database: Database, granted: set[str]) -> int:
    """How many are."""
    async with open_bench(tmp_path, database=database) as bench:
        await bench.assert_clean()
        rows = await bench.store.readers.rows("SELECT source, amount_nanousd FROM grants")
        found = {str(source): int(str(amount)) for source, amount in rows}
        assert granted <= set(found), "what was acknowledged is lost"
        assert found == {source: amount_of(int(source[4:])) for source in found}
        assert (await bench.credit(f"user:{USER}"))[2] == sum(found.values())
        assert len(await bench.entries()) == len(found)
        return len(found)


async def test_killed_at_random_moments_every_source_is_granted_once(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    database = await new_store(tmp_path)
    granted: set[str] = set()
    for _ in range(ROUNDS):
        running = await asyncio.gather(*(Victim.start(database) for _ in range(2)))
        await asyncio.gather(*(victim.heard("granted") for victim in running))
        await asyncio.sleep(dice.uniform(*ALIVE_S))
        for victim in running:
            victim.process.send_signal(signal.SIGKILL)
            await asyncio.wait_for(victim.dead(), 30)
            granted |= victim.granted
        assert await assert_each_is_granted_once(tmp_path, database, granted)


@pytest.mark.parametrize("fault", ["kill_at_write", "kill_at_sync", "kill_after_sync"])
async def test_killed_inside_the_commit_of_a_grant_it_is_there_as_a_whole_or_not_at_all(
    tmp_path: Path, fault: str
) -> None:
    disk, orders = FaultyDisk(tmp_path), Orders(tmp_path)
    database = await new_store(tmp_path)
    victim = await Victim.start(database, KILL_ORDERS=str(orders.path), **disk.env)
    await victim.heard("granted")
    orders.break_commit("grant", **{fault: 1, "only": THE_LOG})
    await asyncio.wait_for(victim.dead(), 30)
    assert orders.told()[0]["died"] == "grant"
    disk.mend()
    orders.none()
    before = await assert_each_is_granted_once(tmp_path, database, victim.granted)
    again = await Victim.start(database)
    while len(again.granted) <= before:
        await again.heard("granted")
    again.process.send_signal(signal.SIGKILL)
    await asyncio.wait_for(again.dead(), 30)
    assert await assert_each_is_granted_once(tmp_path, database, victim.granted | again.granted) > before
