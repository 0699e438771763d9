"""Notices happen once per user, period and threshold, and each message arrives: whoever is killed, and when."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from metering.clock import SystemClock, month_of
from metering.ledger import MONEY
from metering.notices import reached
from metering.store.database import Database
from metering.users import Directory
from tests.chaos.notice_victim import LIMIT, USERS
from tests.support.faulty_disk import THE_LOG, FaultyDisk
from tests.support.kill_points import Orders
from tests.support.ledger import new_database, open_bench
from tests.support.receiver import OK, Receiver, receiving

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
VICTIM = Path(__file__).with_name("notice_victim.py")
ROUNDS = 5
ALIVE_S = (0.05, 0.5)
SETTLED_EACH = 200
"""Of 333: past the first threshold, before the last."""
TOLD_WITHIN_S = 30.0
LAST_S = 0.3
"""After all that must come has come: for what must not."""


class Victim:
    """A process that spends, notices and delivers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._words: asyncio.Queue[str] = asyncio.Queue()
        self._reading = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def start(cls, database: Database, url: str, name: str, *words: str, **env: str) -> "Victim":
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(str(VICTIM), str(database.path), url, name, *words),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            start_new_session=True,  # what kills its group must not kill ours
        )
        return cls(process)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self._words.put_nowait(line.decode().split()[0])

    async def heard(self, word: str) -> None:
        async with asyncio.timeout(30):
            while await self._words.get() != word:
                pass

    def kill(self) -> None:
        # Not send_signal: of one that is dead already, that takes the status away from whoever waits for it.
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)

    async def dead(self) -> None:
        async with asyncio.timeout(30):
            assert await self.process.wait() == -signal.SIGKILL
            await self._reading

    async def killed(self) -> None:
        self.kill()
        await self.dead()


async def new_store(folder: Path) -> Database:
    database = new_database(folder)
    async with open_bench(folder, database=database) as bench:
        for user in USERS:
            await Directory(bench.store, SystemClock()).add_user(user, plan="pro")
    return database


async def until_all_is_told(folder: Path, database: Database, receiver: Receiver) -> None:
    """Let one live until everything is delivered that is due; then each is there once, and arrived."""
    survivor = await Victim.start(database, receiver.url, "wrk_survivor")
    try:
        await until(lambda: is_all_told(folder, database))
    finally:
        await survivor.killed()
    await asyncio.sleep(LAST_S)
    await assert_each_once(folder, database, receiver)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TOLD_WITHIN_S):
        while not await condition():
            await asyncio.sleep(0.05)


async def is_all_told(folder: Path, database: Database) -> bool:
    """Everybody has spent all that they can (what the dead hold is never spent here): two notices, and nothing waits."""
    async with open_bench(folder, database=database, busy_timeout_s=10) as bench:
        rows = await bench.store.readers.rows("SELECT COUNT(*), COUNT(delivered_at_ms) FROM outbox")
        return rows == [(2 * len(USERS), 2 * len(USERS))]


async def assert_each_once(folder: Path, database: Database, receiver: Receiver) -> None:
    period = month_of(SystemClock().now_ms())
    async with open_bench(folder, database=database, busy_timeout_s=10) as bench:
        expected = set()
        for user in USERS:
            spent = (await bench.ledger.balance(f"user:{user}", MONEY, period)).spent
            expected |= {(user, period, percent) for percent in reached(spent, LIMIT)}
        rows = await bench.store.readers.rows(
            "SELECT user_id, period, threshold_percent, outbox_id FROM notices"
        )
        assert {row[:3] for row in rows} == expected
        messages = dict(await bench.store.readers.rows("SELECT id, body FROM outbox"))  # type: ignore[arg-type]  # pairs
    assert sorted(str(row[3]) for row in rows) == sorted(messages), (
        "a row without its message, or the reverse"
    )
    assert receiver.bodies_by_id() == {ident: {str(body).encode()} for ident, body in messages.items()}
    for received in receiver.received:
        received.verified()


async def test_killed_at_random_moments_two_workers_tell_each_threshold_once(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    database = await new_store(tmp_path)
    async with receiving() as receiver:

        async def slow(writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(dice.uniform(0, 0.1))
            writer.write(OK)

        receiver.always = slow
        for number in range(ROUNDS):
            names = [f"wrk_{number}_{each}" for each in range(2)]
            running = await asyncio.gather(*(Victim.start(database, receiver.url, name) for name in names))
            await asyncio.gather(*(victim.heard("looked") for victim in running))
            await asyncio.sleep(dice.uniform(*ALIVE_S))
            await asyncio.gather(*(victim.killed() for victim in running))
        await until_all_is_told(tmp_path, database, receiver)


async def test_killed_between_the_settle_and_the_notice_another_notices(tmp_path: Path) -> None:
    database = await new_store(tmp_path)
    async with receiving() as receiver:
        victim = await Victim.start(database, receiver.url, "wrk_dead", "silent")
        for _ in range(SETTLED_EACH * len(USERS)):
            await victim.heard("settled")
        await victim.killed()
        assert not await is_all_told(tmp_path, database)
        assert receiver.received == []
        await until_all_is_told(tmp_path, database, receiver)


@pytest.mark.parametrize("commit", ["notice", "claim_message", "delivered"])
@pytest.mark.parametrize("fault", ["kill_at_write", "kill_at_sync", "kill_after_sync"])
async def test_killed_inside_a_commit_of_a_notice_or_of_its_delivery_it_is_told_once(
    tmp_path: Path, commit: str, fault: str
) -> None:
    disk, orders = FaultyDisk(tmp_path), Orders(tmp_path)
    database = await new_store(tmp_path)
    orders.break_commit(commit, nth=2, **{fault: 1, "only": THE_LOG})
    async with receiving() as receiver:
        victim = await Victim.start(
            database, receiver.url, "wrk_dead", KILL_ORDERS=str(orders.path), **disk.env
        )
        await victim.dead()
        assert orders.told()[0]["died"] == commit
        disk.mend()
        orders.none()
        await until_all_is_told(tmp_path, database, receiver)


async def test_killed_between_the_claim_and_the_answer_the_same_message_comes_again(tmp_path: Path) -> None:
    database = await new_store(tmp_path)
    victims: list[Victim] = []
    async with receiving() as receiver:

        async def kill_it(writer: asyncio.StreamWriter) -> None:
            victims[0].kill()

        receiver.next(*[kill_it] * 4)
        victims.append(await Victim.start(database, receiver.url, "wrk_dead"))
        await victims[0].dead()
        (first, *_) = receiver.received
        await until_all_is_told(tmp_path, database, receiver)
        again = [received for received in receiver.received if received.id == first.id]
        assert len(again) >= 2
        assert {received.body for received in again} == {first.body}
