"""The group-committing writer, on real files."""

import asyncio
import contextlib
import shutil
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from metering.errors import Reason, Refused
from metering.store import writer as writer_module
from metering.store.database import Database
from metering.store.writer import (
    BATCH_UNITS_MAX,
    CommitStats,
    CommitTimes,
    Declined,
    Done,
    GroupCommitWriter,
    Result,
    Step,
    TimedWriter,
    Unit,
)

INSERT = "INSERT INTO notes (id, text) VALUES (?1, ?2)"
INSERT_RETURNING = INSERT + " RETURNING id"
TAKE_ONE = "UPDATE stock SET left = left - 1 WHERE left > 0 RETURNING left"


def note(number: int, text: str = "x", *, must_keep: bool = False) -> Unit:
    return Unit((Step(INSERT, (number, text)),), must_keep=must_keep)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(tmp_path / "writer.db", busy_timeout_s=0.05)
    with closing(database.connect()) as connection:
        connection.execute("CREATE TABLE notes (id INTEGER NOT NULL UNIQUE, text TEXT NOT NULL)")
        connection.execute("CREATE TABLE stock (left INTEGER NOT NULL)")
        connection.execute("INSERT INTO stock VALUES (3)")
    return database


@asynccontextmanager
async def writing(database: Database, **options: Any) -> AsyncIterator[GroupCommitWriter]:
    writer = GroupCommitWriter(database, **options)
    try:
        yield writer
    finally:
        await writer.aclose()


@contextlib.contextmanager
def locked(database: Database) -> Iterator[sqlite3.Connection]:
    """Another process holds the write lock."""
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other
        if other.in_transaction:
            other.execute("ROLLBACK")


def notes(database: Database) -> list[int]:
    with closing(sqlite3.connect(database.path)) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM notes ORDER BY rowid")]


def stock(database: Database) -> int:
    with closing(sqlite3.connect(database.path)) as connection:
        return int(connection.execute("SELECT left FROM stock").fetchone()[0])


@contextlib.contextmanager
def together(writer: GroupCommitWriter) -> Iterator[None]:
    """What is submitted inside is one batch: the thread cannot wake up before the end."""
    with writer._wake:
        assert writer._is_sleeping or not writer._queue
        yield


async def until_troubled(writer: GroupCommitWriter) -> None:
    """Until an attempt has failed: a unit that may be refused is refused then."""
    with pytest.raises(Refused):
        await writer.submit(note(-1))


async def test_units_that_gather_during_a_commit_are_committed_together(database: Database) -> None:
    commits: list[CommitStats] = []
    async with writing(database, on_commit=commits.append) as writer:
        await asyncio.gather(*(writer.submit(note(number)) for number in range(100)))
    assert sum(commit.units for commit in commits) == 100
    assert len(commits) < 20
    assert notes(database) == list(range(100))


async def test_a_result_is_delivered_only_after_its_commit(database: Database) -> None:
    async with writing(database) as writer:
        await writer.submit(note(1))
        assert notes(database) == [1]


async def test_no_batch_is_larger_than_the_bound(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "BATCH_UNITS_MAX", 7)
    commits: list[CommitStats] = []
    async with writing(database, on_commit=commits.append) as writer:
        await asyncio.gather(*(writer.submit(note(number)) for number in range(50)))
    assert max(commit.units for commit in commits) <= 7


async def test_rows_are_given_back_step_by_step(database: Database) -> None:
    async with writing(database) as writer:
        steps = (
            Step(TAKE_ONE, (), refusal="sold_out"),
            Step(INSERT, (1, "x")),
            Step(INSERT_RETURNING, (2, "y")),
        )
        assert await writer.submit(Unit(steps)) == Done([(2,), None, (2,)])


async def test_parameters_may_be_computed_from_the_rows_of_earlier_steps(database: Database) -> None:
    unit = Unit(
        (
            Step(TAKE_ONE, (), refusal="sold_out"),
            Step(INSERT_RETURNING, lambda rows: (rows[0][0] + 40, "x")),  # type: ignore[index,operator]
        )
    )
    async with writing(database) as writer:
        assert await writer.submit(unit) == Done([(2,), (42,)])
    assert notes(database) == [42]


async def test_a_computation_that_fails_fails_its_unit_alone(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    bad = Unit((Step(INSERT, (7, "x")), Step(INSERT, lambda rows: (rows[5], "x"))), must_keep=True)  # type: ignore[arg-type,return-value]
    async with writing(database) as writer:
        results = await asyncio.gather(
            writer.submit(note(1)), writer.submit(bad), writer.submit(note(2)), return_exceptions=True
        )
    assert isinstance(results[1], IndexError)
    assert notes(database) == [1, 2]
    assert "refused a unit" in caplog.text


async def test_a_refusal_undoes_the_steps_before_it_and_nothing_else(database: Database) -> None:
    refused = Unit(
        (Step(INSERT, (7, "x")), Step("SELECT 1 WHERE 1 = 2", (), refusal="never"), Step(INSERT, (8, "x")))
    )
    async with writing(database) as writer:
        results = await asyncio.gather(writer.submit(note(1)), writer.submit(refused), writer.submit(note(2)))
    assert results[1] == Declined("never")
    assert notes(database) == [1, 2]


async def test_the_quick_way_is_taken_until_it_changes_too_little_and_then_the_steps_tell_why(
    database: Database,
) -> None:
    both = "UPDATE stock SET left = left - 2 WHERE left > 1"
    unit = Unit((Step(TAKE_ONE, (), "sold out"), Step(TAKE_ONE, (), "sold out")), quick=((both, (), 1),))
    async with writing(database) as writer:
        with together(writer):
            first, second = writer.submit(unit), writer.submit(unit)
        assert await first == Done([(2,), (1,)])  # their batch was undone, and told apart by the steps
        assert await second == Declined("sold out")
        assert stock(database) == 1
    with closing(database.connect()) as connection:
        connection.execute("UPDATE stock SET left = 5")
    async with writing(database) as writer:
        assert await writer.submit(unit) == Done([None])
        assert stock(database) == 3


async def test_conditions_admit_exactly_what_is_there(database: Database) -> None:
    async with writing(database) as writer:
        takes = [writer.submit(Unit((Step(TAKE_ONE, (), refusal="sold_out"),))) for _ in range(20)]
        results = await asyncio.gather(*takes)
    assert [isinstance(result, Done) for result in results] == [True] * 3 + [False] * 17
    assert stock(database) == 0


@pytest.mark.parametrize(
    ("defective", "error"),
    [
        (note(1), sqlite3.IntegrityError),
        (Unit((Step(INSERT, (2**63, "too large")),)), OverflowError),
        (Unit((Step(INSERT, (5, "\ud800")),)), UnicodeEncodeError),
        (Unit((Step(INSERT, (5,)),)), sqlite3.ProgrammingError),
        (Unit((Step(INSERT, (5, object())),)), sqlite3.Error),  # type: ignore[arg-type]
        (Unit((Step("INSERT INTO nowhere VALUES (1)", ()),)), sqlite3.OperationalError),
        (Unit((Step("UPDATE notes SET nothing = 1", ()),)), sqlite3.OperationalError),
        (Unit((Step("INSERT INTO", ()),)), sqlite3.OperationalError),
    ],
    ids=["constraint", "int", "surrogate", "too few values", "type", "table", "column", "syntax"],
)
@pytest.mark.parametrize("must_keep", [False, True])
async def test_a_defective_unit_fails_alone(
    database: Database, defective: Unit, error: type[Exception], must_keep: bool
) -> None:
    async with writing(database) as writer:
        await writer.submit(note(1))
        before, bad, after = (
            writer.submit(note(10)),
            writer.submit(defective._replace(must_keep=must_keep)),
            writer.submit(note(11)),
        )
        assert isinstance(await before, Done)
        assert isinstance(await after, Done)
        with pytest.raises(error):
            await bad
        assert writer.trouble is None
    assert notes(database) == [1, 10, 11]


async def test_text_with_nul_is_kept_whole(database: Database) -> None:
    async with writing(database) as writer:
        await writer.submit(note(1, "a\0b"))
    with closing(sqlite3.connect(database.path)) as connection:
        assert connection.execute("SELECT text FROM notes").fetchone() == ("a\0b",)


async def test_while_locked_what_may_be_refused_is_and_what_must_be_kept_is_committed_later(
    database: Database,
) -> None:
    async with writing(database) as writer:
        with locked(database):
            kept = writer.submit(note(1, must_keep=True))
            with pytest.raises(Refused) as refusal:
                await writer.submit(note(2))
            assert refusal.value.reason is Reason.STORE_UNAVAILABLE
            assert refusal.value.retry_after_s
            assert writer.trouble
            assert not kept.done()
        assert isinstance(await kept, Done)
        assert writer.trouble is None
        assert isinstance(await writer.submit(note(3)), Done)
    assert notes(database) == [1, 3]


async def test_kept_units_are_committed_in_their_order(database: Database) -> None:
    async with writing(database) as writer:
        with locked(database):
            kept = [writer.submit(note(number, must_keep=True)) for number in (3, 1)]
            await until_troubled(writer)
            kept += [writer.submit(note(number, must_keep=True)) for number in (2, 0)]
            await until_troubled(writer)
        await asyncio.gather(*kept)
    assert notes(database) == [3, 1, 2, 0]


async def test_a_full_batch_of_kept_units_does_not_leave_refusable_ones_waiting(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "BATCH_UNITS_MAX", 4)
    async with writing(database) as writer:
        with locked(database):
            kept = [writer.submit(note(number, must_keep=True)) for number in range(8)]
            await asyncio.wait_for(until_troubled(writer), 60)
        await asyncio.gather(*kept)


async def test_trouble_half_way_through_a_batch_takes_back_nothing_that_is_committed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect makes the batch run unit by unit; then the store is locked between two of them."""
    commit_together = GroupCommitWriter._commit_together
    lock = sqlite3.connect(database.path, isolation_level=None, check_same_thread=False)
    committed_alone: list[int] = []

    def locks_after_first_unit(self: GroupCommitWriter, connection: Any, batch: Any) -> Any:
        results = commit_together(self, connection, batch)
        committed_alone.append(len(batch))
        if committed_alone == [1]:
            lock.execute("BEGIN IMMEDIATE")
        return results

    monkeypatch.setattr(GroupCommitWriter, "_commit_together", locks_after_first_unit)
    async with writing(database) as writer:
        with together(writer):
            first = writer.submit(note(1))
            bad = writer.submit(Unit((Step(INSERT, (2**63, "x")),)))
            refused = writer.submit(note(2))
            kept = writer.submit(note(3, must_keep=True))
        assert isinstance(await first, Done)
        for future in (bad, refused):
            with pytest.raises(Refused):
                await future
        assert not kept.done()
        lock.execute("ROLLBACK")
        lock.close()
        assert isinstance(await kept, Done)
    assert notes(database) == [1, 3]


@pytest.mark.parametrize("pragma", ["query_only = ON", "max_page_count = 1"])
async def test_a_store_that_is_read_only_or_full_mends_itself(
    database: Database, monkeypatch: pytest.MonkeyPatch, pragma: str
) -> None:
    is_broken = True
    connect = Database.connect

    def connect_broken(self: Database) -> sqlite3.Connection:
        connection = connect(self)
        if is_broken:
            connection.execute(f"PRAGMA {pragma}")
        return connection

    monkeypatch.setattr(Database, "connect", connect_broken)
    long = "x" * 100_000
    async with writing(database) as writer:
        kept = writer.submit(note(1, long, must_keep=True))
        with pytest.raises(Refused):
            await writer.submit(note(2, long))
        is_broken = False
        assert isinstance(await kept, Done)
    assert notes(database) == [1]


async def test_a_store_that_cannot_be_opened_refuses_and_mends_itself(tmp_path: Path) -> None:
    directory = tmp_path / "missing"
    database = Database(directory / "later.db")
    async with writing(database) as writer:
        create = Unit((Step("CREATE TABLE notes (id, text)", ()),), must_keep=True)
        created = writer.submit(create)
        with pytest.raises(Refused):
            await writer.submit(note(1))
        directory.mkdir()
        await created
        assert isinstance(await writer.submit(note(1)), Done)


async def test_a_store_that_was_emptied_is_in_trouble_and_the_unit_is_not_blamed(database: Database) -> None:
    async with writing(database) as writer:
        with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
            other.execute("ALTER TABLE notes RENAME TO away")
            other.execute("DROP TABLE stock")
            other.execute("CREATE TABLE other AS SELECT * FROM away")
            other.execute("DROP TABLE away")
            other.execute("DROP TABLE other")
            kept = writer.submit(note(1, must_keep=True))
            await until_troubled(writer)
            assert "empty" in str(writer.trouble)
            other.execute("CREATE TABLE notes (id INTEGER NOT NULL UNIQUE, text TEXT NOT NULL)")
        assert isinstance(await asyncio.wait_for(kept, 60), Done)


@contextlib.contextmanager
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Commits hang until the event is set."""
    commit_together, goes_on = GroupCommitWriter._commit_together, threading.Event()

    def hangs(self: GroupCommitWriter, connection: Any, batch: Any) -> Any:
        goes_on.wait(120)
        return commit_together(self, connection, batch)

    monkeypatch.setattr(GroupCommitWriter, "_commit_together", hangs)
    monkeypatch.setattr(writer_module, "STALL_GRACE_S", 0.5)
    monkeypatch.setattr(writer_module, "WATCH_EVERY_S", 0.02)
    try:
        yield goes_on
    finally:
        goes_on.set()


async def test_a_store_that_hangs_refuses_who_may_be_refused_and_commits_the_rest_when_it_goes_on(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unclaimed: list[object] = []
    with hanging(monkeypatch) as goes_on:
        async with writing(database) as writer:
            in_batch = writer.submit(note(1), on_unclaimed=unclaimed.append)
            while not writer._batch:
                await asyncio.sleep(0)
            queued, kept = writer.submit(note(2)), writer.submit(note(3, must_keep=True))
            for refusable in (in_batch, queued):
                with pytest.raises(Refused) as refusal:
                    await asyncio.wait_for(refusable, 60)
                assert refusal.value.reason is Reason.STORE_UNAVAILABLE
            assert writer.submit(note(4)).exception() is not None, "refused at once"
            assert writer.trouble == "it does not answer"
            assert not kept.done()
            goes_on.set()
            assert isinstance(await asyncio.wait_for(kept, 60), Done)
            assert writer.trouble is None
            assert isinstance(await writer.submit(note(5)), Done)
    assert notes(database) == [1, 3, 5]
    assert unclaimed == [Done([None])], "who was refused is told what was committed for him"
    assert caplog.text.count("the store is in trouble") == 1


async def test_a_loop_that_was_stuck_itself_takes_no_commit_for_hanging(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hanging(monkeypatch) as goes_on:
        async with writing(database) as writer:
            waiting = writer.submit(note(1))
            while not writer._batch:
                await asyncio.sleep(0)
            time.sleep(1.2)  # the loop's, longer than the bound
            await asyncio.sleep(0)
            goes_on.set()
            assert isinstance(await asyncio.wait_for(waiting, 60), Done)


async def test_closing_a_store_that_hangs_ends_within_a_bound_and_says_what_stays(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer_module, "CLOSING_S", 0.2)
    with hanging(monkeypatch):
        writer = GroupCommitWriter(database)
        kept = [writer.submit(note(number, must_keep=True)) for number in range(3)]
        await asyncio.wait_for(writer.aclose(), 60)
        for future in (*kept, writer.submit(note(4, must_keep=True))):
            with pytest.raises(Refused):
                await asyncio.wait_for(future, 60)
        assert "stopping with 3 units unwritten" in caplog.text
    writer._thread.join(5)
    assert not writer._thread.is_alive()


def submitted_in_a_long_turn(writer: GroupCommitWriter, numbers: range) -> "list[asyncio.Future[Result]]":
    """The thread has the processor between any two of them."""
    waiting = []
    for number in numbers:
        waiting.append(writer.submit(note(number)))
        time.sleep(0.01)
    return waiting


async def test_what_one_turn_of_the_loop_queues_is_one_group(database: Database) -> None:
    commits: list[CommitStats] = []
    async with writing(database, on_commit=commits.append) as writer:
        await writer.submit(note(0))
        while not writer._is_sleeping:
            await asyncio.sleep(0)
        await asyncio.gather(*submitted_in_a_long_turn(writer, range(1, 6)))
    assert [commit.units for commit in commits] == [1, 5]


async def test_who_comes_while_another_worker_writes_joins_the_group_that_waits(database: Database) -> None:
    patient = Database(database.path, busy_timeout_s=30)
    commits: list[CommitStats] = []
    async with writing(patient, on_commit=commits.append) as writer:
        with locked(patient):
            first = writer.submit(note(0))
            while not writer._batch:
                await asyncio.sleep(0)
            rest = [writer.submit(note(number)) for number in range(1, BATCH_UNITS_MAX + 10)]
            while len(writer._queue) < len(rest):
                await asyncio.sleep(0)
        await asyncio.gather(first, *rest)
    assert [commit.units for commit in commits] == [BATCH_UNITS_MAX, 10]
    assert notes(database) == list(range(BATCH_UNITS_MAX + 10))


@asynccontextmanager
async def timing(database: Database) -> AsyncIterator[tuple[TimedWriter, list[CommitTimes]]]:
    times: list[CommitTimes] = []
    writer = TimedWriter(database, on_times=times.append)
    try:
        yield writer, times
    finally:
        await writer.aclose()


async def test_a_timed_writer_tells_what_each_unit_waited_for_its_commit(database: Database) -> None:
    async with timing(database) as (writer, times):
        with together(writer):
            first = writer.submit(note(1))
            time.sleep(0.05)
            rest = writer.submit(note(2))
            time.sleep(0.05)
        await asyncio.gather(first, rest)
    ((first_s, second_s), _) = times[0]
    assert first_s - 0.05 >= second_s >= 0.05


async def test_who_joins_a_commit_has_not_waited_for_it_to_begin(database: Database) -> None:
    async with timing(Database(database.path, busy_timeout_s=30)) as (writer, times):
        with locked(database):
            first = writer.submit(note(1))
            while not writer._batch:
                await asyncio.sleep(0)
            joined = writer.submit(note(2))
        await asyncio.gather(first, joined)
    assert [wait_s > 0 for wait_s in times[0].waits_s] == [True, False]


async def test_a_timed_writer_tells_how_long_the_loop_took_to_hear_of_a_commit(database: Database) -> None:
    async with timing(database) as (writer, times):
        waiting = writer.submit(note(1))
        await asyncio.sleep(0)  # the thread is called at the end of the turn
        while notes(database) != [1]:
            time.sleep(0.001)
        time.sleep(0.1)
        await waiting
    assert times[0].heard_s > 0.05


async def test_a_commit_that_failed_has_no_times_and_what_it_kept_has_waited_since_it_was_queued(
    database: Database,
) -> None:
    async with timing(database) as (writer, times):
        with locked(database):
            kept = writer.submit(note(1, must_keep=True))
            await until_troubled(writer)
        await kept
    ((wait_s,), _) = times[0]
    assert (len(times), wait_s >= database.busy_timeout_s) == (1, True)


async def test_what_is_kept_is_told_of_without_a_future_and_a_defect_there_concerns_nobody_else(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[object] = []

    def fail(_: object) -> None:
        raise RuntimeError("a defect")

    async with writing(database) as writer:
        writer.keep((Step(INSERT, (1, "x")),), fail)
        writer.keep((Step(INSERT, (2, "x")),), told.append)
        assert not told, "it is not in yet"
        await writer.submit(note(3))
    assert notes(database) == [1, 2, 3]
    assert told == [Done([None])]
    assert "could not be handled" in caplog.text
    writer.keep((Step(INSERT, (4, "x")),), told.append)
    assert len(told) == 1, "whoever keeps it is not told while they do"
    await asyncio.sleep(0)
    assert isinstance(told[-1], Refused)
    assert notes(database) == [1, 2, 3]


async def test_closing_waits_for_a_follower_within_a_bound_and_says_what_it_left(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer_module, "CLOSING_S", 0.1)
    writer = GroupCommitWriter(Database(database.path, busy_timeout_s=0.1))
    writer.stay_open_for(asyncio.get_running_loop().create_future())
    await asyncio.wait_for(writer.aclose(), 60)
    assert "stopping with 1 late reports unwritten" in caplog.text
    assert "units unwritten" not in caplog.text
    await asyncio.to_thread(writer._thread.join, 5)
    assert not writer._thread.is_alive()


async def test_a_file_that_was_deleted_is_trouble_and_no_empty_one_takes_its_place(
    database: Database,
) -> None:
    away = database.path.with_name("away.db")
    async with writing(database.pinned()) as writer:
        await writer.submit(note(1))
        database.path.rename(away)
        kept = writer.submit(note(2, must_keep=True))
        await until_troubled(writer)
        assert "there is no store at" in str(writer.trouble)
        assert not database.path.exists()
        away.rename(database.path)
        assert isinstance(await asyncio.wait_for(kept, 60), Done)
    assert notes(database) == [1, 2]


async def test_nothing_is_written_to_a_file_that_was_put_in_the_place_of_ours(database: Database) -> None:
    async with writing(database.pinned()) as writer:
        await writer.submit(note(1))
        away = database.path.rename(database.path.with_name("away.db"))
        shutil.copy(away, database.path)
        kept = writer.submit(note(2, must_keep=True))
        await until_troubled(writer)
        assert "another file stands at" in str(writer.trouble)
        away.rename(database.path)
        assert isinstance(await asyncio.wait_for(kept, 60), Done)


async def test_the_thread_outlives_what_nobody_foresaw(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = Database.connect
    failures = iter([MemoryError("unforeseen"), RuntimeError("unforeseen")])

    def sometimes(self: Database) -> sqlite3.Connection:
        if (failure := next(failures, None)) is not None:
            raise failure
        return connect(self)

    monkeypatch.setattr(Database, "connect", sometimes)
    async with writing(database) as writer:
        kept = writer.submit(note(1, must_keep=True))
        assert isinstance(await asyncio.wait_for(kept, 60), Done)


async def test_a_full_queue_refuses_except_what_must_be_kept(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "QUEUE_UNITS_MAX", 5)
    async with writing(database) as writer:
        with locked(database):
            waiting = [writer.submit(note(number, must_keep=True)) for number in range(300)]
            with pytest.raises(Refused):
                await writer.submit(note(1_000))
        await asyncio.gather(*waiting)
    assert len(notes(database)) == 300


async def test_closing_flushes_what_is_queued_and_refuses_what_comes_later(database: Database) -> None:
    writer = GroupCommitWriter(database)
    early = [writer.submit(note(number)) for number in range(1_000)]
    closing_ = asyncio.gather(writer.aclose())
    await asyncio.sleep(0)
    with pytest.raises(Refused):
        await writer.submit(note(5_000))
    await closing_
    assert all(isinstance(future.result(), Done) for future in early)
    assert len(notes(database)) == 1_000


async def test_after_closing_nothing_waits_for_ever(database: Database) -> None:
    writer = GroupCommitWriter(database)
    await writer.aclose()
    for must_keep in (False, True):
        with pytest.raises(Refused):
            await asyncio.wait_for(writer.submit(note(1, must_keep=must_keep)), 60)
    await writer.aclose()


async def test_closing_a_store_in_trouble_gives_up_within_a_bound(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "CLOSING_S", 0.2)
    with locked(database):
        writer = GroupCommitWriter(database)
        kept = writer.submit(note(1, must_keep=True))
        await asyncio.wait_for(writer.aclose(), 60)
        with pytest.raises(Refused):
            await kept
    assert notes(database) == []


async def test_closing_waits_for_a_store_that_recovers(database: Database) -> None:
    with locked(database):
        writer = GroupCommitWriter(database)
        kept = writer.submit(note(1, must_keep=True))
        await until_troubled(writer)
        closing_ = asyncio.gather(writer.aclose())
        await asyncio.sleep(0)
    await closing_
    assert isinstance(kept.result(), Done)


async def test_closing_may_be_cancelled_and_called_again(database: Database) -> None:
    writer = GroupCommitWriter(database)
    with locked(database):
        kept = writer.submit(note(1, must_keep=True))
        closing_ = asyncio.get_running_loop().create_task(writer.aclose())
        await asyncio.sleep(0)
        closing_.cancel()
        await asyncio.wait({closing_})
        assert closing_.cancelled()
    await writer.aclose()
    assert isinstance(kept.result(), Done)


async def test_a_unit_whose_waiter_is_cancelled_is_committed_and_its_result_handed_on(
    database: Database,
) -> None:
    unclaimed: asyncio.Queue[object] = asyncio.Queue()
    async with writing(database) as writer:
        with locked(database):
            waiting = writer.submit(note(1, must_keep=True), on_unclaimed=unclaimed.put_nowait)
            waiting.cancel()
        assert await unclaimed.get() == Done([None])
    assert notes(database) == [1]


async def test_what_fails_to_handle_an_unclaimed_result_stops_nobody(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("a defect")

    async with writing(database) as writer:
        abandoned = writer.submit(note(1), on_unclaimed=fails)
        other = writer.submit(note(2))
        abandoned.cancel()
        assert isinstance(await asyncio.wait_for(other, 60), Done)
    assert "a defect" in caplog.text


async def test_what_an_unclaimed_result_submits_while_closing_is_committed(database: Database) -> None:
    writer = GroupCommitWriter(database)

    def undo(_: object) -> None:
        writer.submit(note(2, must_keep=True))

    writer.submit(note(1), on_unclaimed=undo).cancel()
    await writer.aclose()
    assert notes(database) == [1, 2]


async def test_a_failure_that_nobody_looks_at_is_not_reported_as_forgotten(database: Database) -> None:
    forgotten: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: forgotten.append(context))
    writer = GroupCommitWriter(database)
    writer.submit(Unit((Step("not sql", ()),)))
    await writer.aclose()
    writer.submit(note(1))
    await asyncio.sleep(0)
    assert forgotten == []


def test_a_loop_that_closes_first_harms_nobody(database: Database) -> None:
    async def forget_to_close() -> threading.Thread:
        writer = GroupCommitWriter(database)
        writer.submit(note(1))
        return writer._thread

    thread = asyncio.run(forget_to_close())
    assert thread.daemon


async def test_two_writers_share_a_store_without_losing_a_unit(database: Database) -> None:
    patient = Database(database.path, busy_timeout_s=10)
    async with writing(patient) as one, writing(patient) as other:
        units = [(one, other)[number % 2].submit(note(number)) for number in range(400)]
        results = await asyncio.gather(*units)
    assert all(isinstance(result, Done) for result in results)
    assert sorted(notes(database)) == list(range(400))


async def test_closing_ends_as_soon_as_the_last_results_are_delivered(database: Database) -> None:
    def let_the_thread_wait(
        _: CommitStats,
    ) -> None:  # the loop stands still, and has not said yet that it delivers
        time.sleep(0.05)

    writer = GroupCommitWriter(database, on_commit=let_the_thread_wait)
    waiting = writer.submit(note(1))
    async with asyncio.timeout(writer_module.CLOSING_S / 2):
        await writer.aclose()
    assert isinstance(await waiting, Done)
