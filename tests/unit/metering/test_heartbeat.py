"""Who is alive: observed by counts that move, on a clock that is turned by hand."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from metering.errors import Refused
from metering.heartbeat import Heartbeat
from metering.ledger import Ledger
from metering.store.writer import store_unavailable
from tests.support.ledger import NOW_MS, Bench, money, open_bench


@dataclass
class Watch:
    """A bench, the heartbeat of `wrk_a`, and what it told."""

    bench: Bench
    told: list[tuple[str, int]] = field(default_factory=list)
    heart: Heartbeat = field(init=False)

    def __post_init__(self) -> None:
        self.heart = self.of("wrk_a")

    def of(self, worker_id: str) -> Heartbeat:
        return Heartbeat(
            self.bench.store,
            self.bench.worker(worker_id),
            self.bench.clock,
            interval_s=1.0,
            dead_after_s=10.0,
            on_expired=lambda *told: self.told.append(told),
        )

    async def turn(self, times: int = 1, *beating: Heartbeat, every_s: float = 1.0) -> int:
        """So many intervals: all the given hearts and ours beat, ours looks around."""
        expired = 0
        for _ in range(times):
            self.bench.clock.advance(every_s)
            for heart in (*beating, self.heart):
                await heart.beat()
            expired += await self.heart.reap()
        return expired

    async def workers(self) -> list[str]:
        rows = await self.bench.store.readers.rows("SELECT id FROM workers ORDER BY id")
        return [str(row[0]) for row in rows]


@pytest.fixture
async def watch(tmp_path: Path) -> AsyncIterator[Watch]:
    async with open_bench(tmp_path, busy_timeout_s=0.05) as bench:
        yield Watch(bench)
        await bench.assert_clean()


async def held_by(watch: Watch, worker_id: str, count: int = 1, **options: object) -> Ledger:
    ledger = watch.bench.worker(worker_id)
    for _ in range(count):
        await watch.bench.reserve(money(10), ledger=ledger, floor=2, **options)
    return ledger


async def test_a_beat_leaves_a_row_that_counts(watch: Watch) -> None:
    for _ in range(3):
        await watch.heart.beat()
    row = await watch.bench.store.readers.row("SELECT id, beat, started_at_ms FROM workers")
    assert row == ("wrk_a", 3, NOW_MS)


async def test_a_worker_whose_count_stands_still_long_enough_is_dead(watch: Watch) -> None:
    await held_by(watch, "wrk_b", 3)
    await watch.of("wrk_b").beat()
    assert await watch.turn(10) == 0
    assert await watch.bench.held_reservations() == 3
    assert await watch.turn(1) == 3
    assert await watch.bench.held_reservations() == 0
    assert await watch.workers() == ["wrk_a"]
    assert watch.told == [("wrk_b", 3)]
    assert await watch.turn(30) == 0


async def test_a_worker_that_beats_lives_however_late(watch: Watch) -> None:
    await held_by(watch, "wrk_b")
    other = watch.of("wrk_b")
    for _ in range(5):
        await other.beat()
        assert await watch.turn(10) == 0
    assert await watch.bench.held_reservations() == 1


async def test_what_is_held_under_an_id_without_a_row_is_dead_after_as_long(watch: Watch) -> None:
    await held_by(watch, "wrk_gone", 2)
    assert await watch.turn(10) == 0
    assert await watch.turn(1) == 2
    assert watch.told == [("wrk_gone", 2)]


async def test_a_worker_that_reserves_before_its_first_beat_is_not_taken_for_dead(watch: Watch) -> None:
    await held_by(watch, "wrk_new")
    await watch.turn(9)
    await watch.of("wrk_new").beat()
    assert await watch.turn(10) == 0
    assert await watch.turn(1) == 1


async def test_a_worker_never_takes_itself_for_dead(watch: Watch) -> None:
    await held_by(watch, "wrk_a")
    for _ in range(15):
        watch.bench.clock.advance(1)
        assert await watch.heart.reap() == 0


async def test_work_that_ends_later_outlives_its_worker_until_it_is_due(watch: Watch) -> None:
    await held_by(watch, "wrk_b", due_at_ms=NOW_MS + 60_000)
    await watch.of("wrk_b").beat()
    assert await watch.turn(30) == 0
    assert await watch.workers() == ["wrk_a"]
    assert await watch.turn(30) == 0
    assert await watch.turn(1) == 1
    assert watch.told == [("wrk_b", 0), ("overdue", 1)]


async def test_starting_a_worker_touches_nobody_else(watch: Watch) -> None:
    await held_by(watch, "wrk_b")
    await watch.of("wrk_b").beat()
    await watch.heart.beat()
    assert await watch.heart.reap() == 0
    assert await watch.workers() == ["wrk_a", "wrk_b"]
    assert await watch.bench.held_reservations() == 1


async def test_our_own_stuck_moment_restarts_the_count_of_all(watch: Watch) -> None:
    await held_by(watch, "wrk_b")
    await watch.of("wrk_b").beat()
    await watch.turn(9)
    await watch.turn(1, every_s=2.1)
    assert await watch.turn(9) == 0
    assert await watch.turn(1) == 1


async def test_a_late_look_within_twice_the_interval_counts(watch: Watch) -> None:
    await held_by(watch, "wrk_b")
    await watch.of("wrk_b").beat()
    assert await watch.turn(10, every_s=1.9) == 0
    assert await watch.turn(1, every_s=1.9) == 1


async def test_when_the_store_takes_nobodys_beats_nobody_is_dead(watch: Watch) -> None:
    """Readers pass a locked store: rows are seen, but no count can move."""
    await held_by(watch, "wrk_b")
    other = watch.of("wrk_b")
    await watch.turn(1, other)
    with closing(sqlite3.connect(watch.bench.store.database.path, isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        for _ in range(30):
            watch.bench.clock.advance(1)
            await watch.heart.reap()
        with pytest.raises(Refused):
            await watch.heart.beat()
        lock.execute("ROLLBACK")
    assert await watch.turn(9) == 0
    assert await watch.turn(20, other) == 0
    assert await watch.bench.held_reservations() == 1


async def test_the_wall_clock_has_no_say(watch: Watch) -> None:
    await held_by(watch, "wrk_b")
    other = watch.of("wrk_b")
    for leap_ms in (10**10, -(10**10)) * 10:
        watch.bench.clock.ms += leap_ms
        assert await watch.turn(1, other) == 0


async def test_a_worker_that_was_declared_dead_comes_back_with_its_next_beat(watch: Watch) -> None:
    other = watch.of("wrk_b")
    await other.beat()
    await watch.turn(11)
    assert await watch.workers() == ["wrk_a"]
    await other.beat()
    assert await watch.workers() == ["wrk_a", "wrk_b"]
    await held_by(watch, "wrk_b")
    assert await watch.turn(20, other) == 0


async def test_a_worker_that_beats_while_it_is_buried_keeps_its_row(watch: Watch) -> None:
    other = watch.of("wrk_b")
    await other.beat()
    await watch.turn(10)
    bury = watch.heart._bury

    async def bury_late(worker_id: str, beat: int | None) -> int:
        await other.beat()
        return await bury(worker_id, beat)

    watch.heart._bury = bury_late  # type: ignore[method-assign]
    await watch.turn(1)
    assert await watch.workers() == ["wrk_a", "wrk_b"]


async def test_two_reapers_expire_everything_once(watch: Watch) -> None:
    await held_by(watch, "wrk_dead", 20)
    second = watch.of("wrk_c")
    for _ in range(12):
        watch.bench.clock.advance(1)
        await asyncio.gather(watch.heart.beat(), second.beat())
        await asyncio.gather(watch.heart.reap(), second.reap())
    assert sum(count for _, count in watch.told) == 20
    assert await watch.bench.held_reservations() == 0
    assert [kind for kind, _ in await watch.bench.entries()] == ["expire"] * 20


async def test_more_than_one_batch_of_the_dead_is_expired_at_once(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    await held_by(watch, "wrk_dead", 25)
    expire = watch.heart._ledger.expire_worker
    monkeypatch.setattr(
        watch.heart._ledger, "expire_worker", lambda worker_id: expire(worker_id, reservations_max=10)
    )
    assert await watch.turn(11) == 25


async def test_a_look_is_two_reads_when_all_are_well(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    await watch.turn(1)
    reads: list[str] = []
    rows = watch.bench.store.readers.rows

    async def counted(sql, params=()):
        reads.append(sql)
        return await rows(sql, params)

    commits = len(watch.bench.commits)
    monkeypatch.setattr(
        type(watch.bench.store.readers), "rows", lambda _, sql, params=(): counted(sql, params)
    )
    await watch.heart.reap()
    assert len(reads) == 2
    assert len(watch.bench.commits) == commits


async def test_leaving_removes_the_row_of_a_worker_that_holds_nothing(watch: Watch) -> None:
    await watch.heart.beat()
    await watch.of("wrk_b").beat()
    assert await watch.heart.leave()
    assert await watch.workers() == ["wrk_b"]


async def test_leaving_with_something_held_leaves_the_row_for_others_to_reap(watch: Watch) -> None:
    await watch.heart.beat()
    reservation = await watch.bench.reserve(money(10))
    assert not await watch.heart.leave()
    assert await watch.workers() == ["wrk_a"]
    await watch.bench.ledger.void(reservation)
    await watch.bench.reserve(money(10), due_at_ms=NOW_MS + 1)
    assert await watch.heart.leave()


async def test_running_beats_through_trouble_until_cancelled(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    heart = Heartbeat(watch.bench.store, watch.bench.ledger, watch.bench.clock, interval_s=0.001)
    looks = asyncio.Event()
    is_troubled = True
    reap = heart.reap

    async def reap_sometimes() -> int:
        nonlocal is_troubled
        if is_troubled:
            is_troubled = False
            raise store_unavailable("for a test")
        looks.set()
        return await reap()

    monkeypatch.setattr(heart, "reap", reap_sometimes)
    running = asyncio.get_running_loop().create_task(heart.run())
    await asyncio.wait_for(looks.wait(), 60)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await watch.workers() == ["wrk_a"]
