"""Reading beside the writer, and the store as a whole."""

import asyncio
import os
import shutil
import sqlite3
import threading
from contextlib import aclosing, closing
from pathlib import Path

import pytest

from metering.errors import Reason, Refused
from metering.store import readers as readers_module
from metering.store.database import Database, DatabaseUrlError, StoreMovedError
from metering.store.readers import Readers
from metering.store.store import open_store
from tests.support.ledger import money, new_database, open_bench

ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT MAX(i) FROM n"


async def test_a_reader_sees_what_is_committed_and_nothing_else(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        await bench.reserve(money(10))
        with closing(sqlite3.connect(bench.store.database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("UPDATE accounts SET held = 99")
            assert await bench.account() == (0, 10)
            other.execute("COMMIT")
        assert await bench.account() == (0, 99)


async def test_a_reader_cannot_write(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        with pytest.raises(Refused):
            await bench.store.readers.rows("DELETE FROM accounts")


async def test_a_broken_read_is_refused_and_the_next_one_works(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        for _ in range(3):
            with pytest.raises(Refused) as refusal:
                await bench.store.readers.rows("SELECT * FROM nowhere")
            assert refusal.value.reason is Reason.STORE_UNAVAILABLE
            assert await bench.store.readers.row("SELECT 1") == (1,)
        assert await bench.store.readers.row("SELECT 1 WHERE 1 = 2") is None


async def test_a_question_that_is_no_text_is_not_the_stores_fault(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        with pytest.raises(UnicodeEncodeError):
            await bench.account(owner="user:\ud800")
        assert await bench.account() == (0, 0)


async def test_a_read_that_takes_too_long_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers_module, "READ_TIMEOUT_S", 0.1)
    async with open_bench(tmp_path) as bench:
        with pytest.raises(Refused):
            await asyncio.wait_for(bench.store.readers.rows(ENDLESS), 60)
        monkeypatch.undo()
        assert await bench.store.readers.row("SELECT 1") == (1,)


async def test_readers_for_long_reads_have_a_bound_of_their_own(tmp_path: Path) -> None:
    async with (
        open_bench(tmp_path) as bench,
        aclosing(bench.store.readers.another(read_timeout_s=0.1)) as others,
    ):
        with pytest.raises(Refused):
            await asyncio.wait_for(others.rows(ENDLESS), 60)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bench.store.readers.rows(ENDLESS), 0.5)


async def test_reads_that_share_a_connection_with_a_broken_one_leave_no_thread_behind(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        for _ in range(5):
            results = await asyncio.gather(
                *(bench.store.readers.rows(sql) for sql in ("SELECT 1", "SELECT * FROM nowhere") * 5),
                return_exceptions=True,
            )
            assert all(isinstance(result, list | Refused) for result in results)
            assert sum(isinstance(result, Refused) for result in results) >= 5
        assert await bench.store.readers.row("SELECT 1") == (1,)


async def test_many_readers_at_once_open_one_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = 0
    connection = readers_module.aiosqlite.Connection

    def counted(*args, **options):
        nonlocal opened
        opened += 1
        return connection(*args, **options)

    monkeypatch.setattr(readers_module.aiosqlite, "Connection", counted)
    async with open_store(new_database(tmp_path)) as store:
        await asyncio.gather(*(store.readers.row("SELECT 1") for _ in range(20)))
    assert opened == 1


async def test_a_store_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    readers = Readers(Database(tmp_path / "missing" / "x.db"))
    with pytest.raises(Refused):
        await readers.row("SELECT 1")
    await readers.aclose()


async def test_a_file_that_was_moved_away_is_refused_until_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench(tmp_path) as bench:
        readers, another = bench.store.readers, bench.store.readers.another()
        assert await readers.row("SELECT 1") == (1,)
        path = bench.store.database.path
        away = path.rename(tmp_path / "away.db")
        for each in (readers, another, readers, another):
            with pytest.raises(Refused):
                await each.row("SELECT 1")
        assert not path.exists()
        assert caplog.text.count("reading the store is in trouble: there is no store at") == 1
        away.rename(path)
        assert await readers.row("SELECT 1") == (1,)
        assert await another.row("SELECT 1") == (1,)
        await another.aclose()


async def test_a_disk_that_hangs_when_the_file_is_looked_at_does_not_hold_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, look = set(), Path.stat

    def noted(path: Path, **options: bool) -> os.stat_result:
        looked.add(threading.current_thread())
        return look(path, **options)

    async with open_bench(tmp_path) as bench:
        monkeypatch.setattr(Path, "stat", noted)
        for _ in range(2):
            assert await bench.store.readers.row("SELECT 1") == (1,)
    assert looked
    assert threading.main_thread() not in looked


async def test_a_file_that_is_replaced_while_it_is_opened_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    async with open_bench(tmp_path) as bench:
        path = bench.store.database.path
        aside = path.with_name("other.db")
        shutil.copy(path, aside)

        def replaced_first(database: str, **options: object) -> sqlite3.Connection:
            if database != ":memory:":
                path.rename(path.with_name("away.db"))
                aside.rename(path)
            connection = connect(database, **options)
            if database != ":memory:":
                path.rename(aside)
            return connection

        monkeypatch.setattr(readers_module.sqlite3, "connect", replaced_first)
        with pytest.raises(Refused):
            await bench.store.readers.row("SELECT 1")
        monkeypatch.undo()
        path.with_name("away.db").rename(path)
        assert await bench.store.readers.row("SELECT 1") == (1,)


async def test_closed_readers_read_no_more(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        readers = bench.store.readers.another()
        assert await readers.row("SELECT 1") == (1,)
        await readers.aclose()
        threads = set(threading.enumerate())
        found = await asyncio.gather(readers.row("SELECT 1"), return_exceptions=True)
        has_opened = not set(threading.enumerate()) <= threads
        await readers.aclose()  # a thread that stayed would keep the interpreter from ending
        assert [type(each) for each in found] == [Refused]
        assert not has_opened


async def test_a_connection_that_opens_after_its_readers_were_closed_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers_module, "READ_TIMEOUT_S", 0.05)
    monkeypatch.setattr(readers_module, "CLOSING_S", 0.05)
    connect, goes_on, opened = sqlite3.connect, threading.Event(), []

    def hangs(*args: object, **options: object) -> sqlite3.Connection:
        goes_on.wait(10)
        opened.append(connect(*args, **options, check_same_thread=False))
        return opened[-1]

    async with open_bench(tmp_path) as bench:
        readers = bench.store.readers.another()
        before = set(threading.enumerate())
        monkeypatch.setattr(readers_module.sqlite3, "connect", hangs)
        with pytest.raises(Refused):
            await readers.row("SELECT 1")
        await readers.aclose()
        (thread,) = set(threading.enumerate()) - before
        goes_on.set()
        await asyncio.to_thread(thread.join, 5)
        has_ended = not thread.is_alive()
        await readers.aclose()  # a thread that stayed would keep the interpreter from ending
        assert has_ended
        (connection,) = opened
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


async def test_while_a_connection_hangs_no_other_is_opened_and_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers_module, "CLOSING_S", 0.05)
    goes_on, begin_closing = asyncio.get_running_loop().create_future(), readers_module._begin_closing

    async def hangs(connection):
        await begin_closing(connection)
        return goes_on

    monkeypatch.setattr(readers_module, "_begin_closing", hangs)
    async with open_bench(tmp_path) as bench:
        assert await bench.store.readers.row("SELECT 1") == (1,)
        threads = set(threading.enumerate())
        for _ in range(20):
            with pytest.raises(Refused):
                await asyncio.wait_for(bench.store.readers.rows("SELECT * FROM nowhere"), 60)
        assert set(threading.enumerate()) <= threads
        goes_on.set_result(None)
        monkeypatch.setattr(readers_module, "_begin_closing", begin_closing)
        assert await bench.store.readers.row("SELECT 1") == (1,)


async def test_a_store_that_is_not_there_is_not_made_by_opening_it(tmp_path: Path) -> None:
    with pytest.raises(StoreMovedError, match="there is no store at"):
        async with open_store(Database(tmp_path / "x.db")):
            pass
    assert list(tmp_path.iterdir()) == []


async def test_a_cancelled_read_does_not_break_the_others(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        for turns in range(8):
            task = asyncio.get_running_loop().create_task(bench.account())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            assert await bench.account() == (0, 0)


async def test_reading_does_not_keep_the_log_from_being_recycled(tmp_path: Path) -> None:
    """Every read ends its transaction: the write-ahead log starts anew instead of growing for ever."""
    async with open_bench(tmp_path) as bench:
        log = Path(f"{bench.store.database.path}-wal")
        for _ in range(6):
            for reservation in [await bench.reserve(money(0)) for _ in range(150)]:
                bench.ledger.void(reservation)
            await bench.account()
        with closing(sqlite3.connect(bench.store.database.path)) as other:
            busy, _, _ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert busy == 0
        assert log.stat().st_size == 0


@pytest.mark.parametrize(
    "url", ["", "ledger.db", "sqlite://", "sqlite:///", "sqlite:///:memory:", "postgres://x/y"]
)
def test_a_url_that_names_no_file_is_refused_by_name(url: str) -> None:
    with pytest.raises(DatabaseUrlError, match=r"expected sqlite:///relative\.db"):
        Database.from_url(url)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///a.db", "a.db"),
        ("sqlite:////var/lib/a.db", "/var/lib/a.db"),
        ("sqlite:///d/a b.db", "d/a b.db"),
    ],
)
def test_a_url_names_a_file(url: str, path: str) -> None:
    assert Database.from_url(url).path == Path(path)


def test_every_commit_survives_power_loss(tmp_path: Path) -> None:
    with closing(Database(tmp_path / "x.db").connect()) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)


def test_what_is_no_database_is_not_left_open(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        Database(tmp_path / "x.db").connect()
