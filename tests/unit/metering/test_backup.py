"""Backup and restore: one instant of the store, whole or not there, and back without a trace of what was."""

import errno
import fcntl
import os
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from metering import backup as backup_module
from metering.backup import back_up, look_at, restore
from metering.clock import ManualClock
from metering.store import backup as store_backup
from metering.store.backup import BackupError, DamagedError
from metering.store.database import Database
from metering.store.migrate import SchemaTooNewError, migrate
from metering.store.serving import StoreInUseError, not_served, serving
from metering.verify import verify_file
from tests.support.ledger import NOW_MS, Bench, gauge, money, new_database, open_bench, settlement

MOVES_MONEY = "UPDATE accounts SET spent = spent + 1"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A store in use: three requests settled, one under way."""
    (tmp_path / "store").mkdir()
    async with open_bench(tmp_path / "store") as bench:
        for _ in range(3):
            await settle(bench)
        await bench.reserve(money(100), gauge())
        yield bench


async def settle(bench: Bench) -> None:
    await bench.ledger.settle(await bench.reserve(money(100), gauge()), settlement(60))


def execute(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(sql)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def entries(path: Path) -> int:
    with closing(Database(path).connect_read_only()) as connection:
        ((count,),) = connection.execute("SELECT COUNT(*) FROM entries")
        return int(count)


# --- backup ---------------------------------------------------------------------------------------------


async def test_a_copy_holds_what_the_store_held_and_says_so(bench: Bench, tmp_path: Path) -> None:
    contents = back_up(bench.store.database, tmp_path / "copy", may_replace=False)
    assert (contents.entries, contents.held_reservations, contents.is_verified) == (3, 1, True)
    assert (contents.newest_seq, contents.newest_at_ms) == (3, NOW_MS)
    assert contents.size_bytes == (tmp_path / "copy").stat().st_size
    assert contents == look_at(tmp_path / "copy", is_verified=True)
    await settle(bench)
    assert entries(tmp_path / "copy") == 3


async def test_a_copy_is_one_file_for_its_owner_that_reads_where_nothing_can_be_written(
    bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "away").mkdir()
    copy = tmp_path / "away" / "copy"
    back_up(bench.store.database, copy, may_replace=False)
    assert names(tmp_path / "away") == ["copy"]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert copy.read_bytes()[18:20] == b"\1\1"  # a rollback journal: no files beside it


async def test_what_is_committed_during_the_copy_is_not_in_it_and_does_not_start_it_over(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_backup, "STEP_PAGES", 1)
    flush, steps = os.fdatasync, []

    def writes_between_steps(descriptor: int) -> None:
        flush(descriptor)
        steps.append(descriptor)
        execute(bench.store.database.path, "INSERT INTO changes (kind, subject, at_ms) VALUES ('x', 'y', 0)")
        assert len(steps) < 100

    monkeypatch.setattr(os, "fdatasync", writes_between_steps)
    back_up(bench.store.database, tmp_path / "copy", may_replace=False)
    assert len(steps) > 10
    with closing(Database(tmp_path / "copy").connect_read_only()) as connection:
        assert connection.execute("SELECT COUNT(*) FROM changes").fetchone() == (0,)


async def test_a_file_that_exists_is_replaced_only_when_told_so(bench: Bench, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_text("precious")
    with pytest.raises(BackupError, match="exists"):
        back_up(bench.store.database, copy, may_replace=False)
    assert copy.read_text() == "precious"
    assert back_up(bench.store.database, copy, may_replace=True).entries == 3
    assert names(tmp_path) == ["copy", "store"]


async def test_a_file_that_appears_during_the_copy_is_not_replaced(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, verify = tmp_path / "copy", backup_module.verify_file

    def meanwhile(database: Database) -> object:
        copy.write_text("precious")
        return verify(database)

    monkeypatch.setattr(backup_module, "verify_file", meanwhile)
    with pytest.raises(BackupError, match="exists"):
        back_up(bench.store.database, copy, may_replace=False)
    assert copy.read_text() == "precious"
    assert names(tmp_path) == ["copy", "store"]


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal", "-serving"])
async def test_a_copy_never_goes_over_the_store_or_its_files(
    bench: Bench, tmp_path: Path, suffix: str
) -> None:
    path = bench.store.database.path
    link = tmp_path / "link"
    link.symlink_to(path.parent)
    for target in (path.with_name(path.name + suffix), link / (path.name + suffix)):
        with pytest.raises(BackupError, match="the store itself"):
            back_up(bench.store.database, target, may_replace=True)
    await bench.assert_clean()


async def test_a_second_copy_to_the_same_file_is_refused_while_the_first_is_made(
    bench: Bench, tmp_path: Path
) -> None:
    with (tmp_path / "copy.partial").open("wb") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(BackupError, match="another backup"):
            back_up(bench.store.database, tmp_path / "copy", may_replace=False)
    assert back_up(bench.store.database, tmp_path / "copy", may_replace=False).entries == 3
    assert names(tmp_path) == ["copy", "store"]


@pytest.mark.parametrize("may_replace", [True, False])
async def test_a_copy_that_was_finished_while_a_second_one_began_is_not_emptied(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, may_replace: bool
) -> None:
    """The second run has opened the temporary file; then the first gives it its name."""
    lock, finished = fcntl.flock, []

    def finishes_first(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        finished.append(back_up(bench.store.database, tmp_path / "copy", may_replace=may_replace))
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", finishes_first)
    with pytest.raises(BackupError, match="another backup"):
        back_up(bench.store.database, tmp_path / "copy", may_replace=True)
    assert finished == [look_at(tmp_path / "copy", is_verified=True)]
    assert names(tmp_path) == ["copy", "store"]


async def test_a_finished_copy_that_a_killed_run_left_with_two_names_is_not_emptied(
    bench: Bench, tmp_path: Path
) -> None:
    back_up(bench.store.database, tmp_path / "copy", may_replace=False)
    (tmp_path / "copy.partial").hardlink_to(tmp_path / "copy")
    made = (tmp_path / "copy").read_bytes()

    def stops(*_: object, **__: object) -> None:
        raise OSError("full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_backup, "_copy", stops)
        with pytest.raises(OSError, match="full"):
            back_up(bench.store.database, tmp_path / "copy", may_replace=True)
    assert (tmp_path / "copy").read_bytes() == made
    assert back_up(bench.store.database, tmp_path / "copy", may_replace=True).entries == 3


async def test_a_partial_file_that_is_a_link_is_not_followed(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "copy.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        back_up(bench.store.database, tmp_path / "copy", may_replace=False)
    assert (tmp_path / "precious").read_text() == "precious"


async def test_a_store_whose_ledger_does_not_add_up_is_copied_only_unverified(
    bench: Bench, tmp_path: Path
) -> None:
    execute(bench.store.database.path, MOVES_MONEY)
    with pytest.raises(BackupError, match="does not add up"):
        back_up(bench.store.database, tmp_path / "copy", may_replace=False)
    assert names(tmp_path) == ["store"]
    contents = back_up(bench.store.database, tmp_path / "copy", may_replace=False, is_verified=False)
    assert (contents.entries, contents.is_verified) == (3, False)


# --- restore --------------------------------------------------------------------------------------------


@pytest.fixture
async def copy(bench: Bench, tmp_path: Path) -> Path:
    back_up(bench.store.database, tmp_path / "copy", may_replace=False)
    return tmp_path / "copy"


@pytest.fixture
def other(tmp_path: Path) -> Database:
    """An empty store, with nobody at it."""
    (tmp_path / "other").mkdir()
    return new_database(tmp_path / "other")


async def test_a_copy_becomes_the_store_where_there_was_none(copy: Path, tmp_path: Path) -> None:
    target = Database(tmp_path / "deep" / "down" / "ledger.db")
    contents = restore(copy, target, may_replace=False)
    assert (contents.entries, contents.is_verified) == (3, True)
    async with open_bench(tmp_path, database=target) as restored:
        assert await restored.state((await restored.reserve(money(100))).id) == "HELD"
        await restored.ledger.expire_worker("wrk_a")  # as its dead worker's holds expire
        assert await restored.held_reservations() == 0
        await restored.assert_clean()


async def test_a_store_is_replaced_only_when_told_so_and_keeps_its_file(copy: Path, other: Database) -> None:
    other.path.chmod(0o640)
    before = other.path.stat()
    with pytest.raises(BackupError, match="there is a store"):
        restore(copy, other, may_replace=False)
    assert entries(other.path) == 0
    restore(copy, other, may_replace=True)
    after = other.path.stat()
    assert entries(other.path) == 3
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


async def test_a_write_ahead_log_that_was_left_behind_is_not_applied_to_the_copy(
    copy: Path, other: Database
) -> None:
    with closing(other.connect()) as connection, closing(other.connect()) as reader:
        connection.execute(
            "INSERT INTO users (id, plan, created_at, updated_at) VALUES ('late', 'pro', 0, 0)"
        )
        log = other.path.with_name("ledger.db-wal")
        store, left = other.path.read_bytes(), log.read_bytes()
        assert reader
    other.path.write_bytes(store)  # as a killed server leaves them
    log.write_bytes(left)
    restore(copy, other, may_replace=True)
    assert names(other.path.parent) == ["ledger.db", "ledger.db-serving"]
    with closing(other.connect_read_only()) as connection:
        assert connection.execute("SELECT * FROM users WHERE id = 'late'").fetchall() == []


async def test_a_log_without_its_store_is_not_applied_to_the_copy(
    bench: Bench, copy: Path, other: Database
) -> None:
    for suffix in ("-wal", "-journal"):
        log = Path(f"{other.path}{suffix}")
        log.write_bytes(bench.store.database.path.with_name("ledger.db-wal").read_bytes())
    other.path.unlink()
    assert restore(copy, other, may_replace=False).entries == 3
    assert names(other.path.parent) == ["ledger.db", "ledger.db-serving"]


async def test_a_store_that_somebody_has_open_is_refused(bench: Bench, copy: Path, other: Database) -> None:
    await settle(bench)
    with pytest.raises(BackupError, match="in use"):
        restore(copy, bench.store.database, may_replace=True)
    await settle(bench)
    await bench.assert_clean()
    with closing(other.connect()) as connection:
        connection.execute("SELECT * FROM users").fetchall()
        with pytest.raises(BackupError, match="in use"):
            restore(copy, other, may_replace=True)


async def test_a_damaged_store_that_is_served_is_refused_though_nobody_has_it_open(
    copy: Path, other: Database
) -> None:
    other.path.write_bytes(b"x" * 9_000)
    with serving(other), serving(other):
        with pytest.raises(BackupError, match="in use"):
            restore(copy, other, may_replace=True)
        assert other.path.read_bytes() == b"x" * 9_000
    assert restore(copy, other, may_replace=True).entries == 3


async def test_nobody_begins_to_serve_a_store_that_is_being_restored(other: Database) -> None:
    with not_served(other), pytest.raises(StoreInUseError), serving(other):
        pass


async def test_a_folder_that_takes_no_lock_is_said_and_does_not_keep_a_server_from_serving(
    other: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", _no_locks)
        with serving(other):
            pass
    assert "would not be refused" in caplog.text


def _no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize("content", [b"x" * 9_000, b"SQLite format 3\0" + b"\xff" * 5_000, b"short"])
async def test_a_store_that_cannot_be_read_is_replaced(copy: Path, other: Database, content: bytes) -> None:
    other.path.write_bytes(content)
    other.path.with_name("ledger.db-wal").write_bytes(content)
    restore(copy, other, may_replace=True)
    assert verify_file(other).is_clean
    assert names(other.path.parent) == ["ledger.db", "ledger.db-serving"]


async def test_a_store_that_cannot_be_read_but_is_locked_is_refused(copy: Path, other: Database) -> None:
    """The lock that SQLite's connections share, held by another process."""
    other.path.write_bytes(b"x" * 9_000)
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        descriptor = os.open(other.path, os.O_RDWR)
        fcntl.lockf(descriptor, fcntl.LOCK_SH, 510, store_backup.LOCK_BYTES[0] + 2)
        os.write(ready[1], b"!")
        os.close(done[1])
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(BackupError, match="in use"):
        restore(copy, other, may_replace=True)
    os.close(done[1])
    os.waitpid(child, 0)
    assert other.path.read_bytes() == b"x" * 9_000
    for descriptor in (*ready, done[0]):
        os.close(descriptor)


def cut(copy: Path) -> None:
    os.truncate(copy, copy.stat().st_size // 2)


def scribble(copy: Path) -> None:
    size = copy.stat().st_size
    with copy.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xa5" * (size // 4))


def replace_by_text(copy: Path) -> None:
    copy.write_text("not a store\n" * 1_000)


def empty(copy: Path) -> None:
    os.truncate(copy, 0)


def forget_a_payment(copy: Path) -> None:
    execute(copy, MOVES_MONEY)


def come_from_elsewhere(copy: Path) -> None:
    copy.unlink()
    execute(copy, "CREATE TABLE t (id)")


@pytest.mark.parametrize(
    "damage", [cut, scribble, replace_by_text, empty, forget_a_payment, come_from_elsewhere]
)
async def test_a_damaged_copy_is_refused_and_the_store_left_alone(
    copy: Path, other: Database, damage: object
) -> None:
    assert callable(damage)
    damage(copy)
    before = other.path.read_bytes()
    with pytest.raises(BackupError):
        restore(copy, other, may_replace=True)
    assert other.path.read_bytes() == before


async def test_a_copy_of_a_later_version_is_refused(copy: Path, other: Database) -> None:
    execute(copy, "INSERT INTO schema_migrations VALUES (999, 'future', 0)")
    with pytest.raises(SchemaTooNewError, match="999"):
        restore(copy, other, may_replace=True)
    assert entries(other.path) == 0


async def test_a_copy_of_an_earlier_version_is_restored_and_its_ledger_left_for_the_migrated_store(
    copy: Path, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = store_backup.migrations()
    later = type(steps[0])(len(steps) + 1, "later", "-- nothing\n")
    monkeypatch.setattr(backup_module, "migrations", lambda: [*steps, later])
    contents = restore(copy, other, may_replace=True)
    assert (contents.schema_version, contents.entries, contents.is_verified) == (len(steps), 3, False)
    assert migrate(other, ManualClock(NOW_MS)) == []


async def test_the_store_is_no_copy_of_itself(other: Database) -> None:
    with pytest.raises(BackupError, match="the store itself"):
        restore(other.path, other, may_replace=True)


async def test_nobody_gets_in_while_the_copy_is_put_back(
    copy: Path, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, found = store_backup._locked, []

    def tries(database: Database) -> sqlite3.Connection:
        connection = locked(database)

        def come_in() -> None:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                Database(other.path, busy_timeout_s=0).connect()
            found.append(True)

        thread = threading.Thread(target=come_in)
        thread.start()
        thread.join()
        return connection

    monkeypatch.setattr(store_backup, "_locked", tries)
    restore(copy, other, may_replace=True)
    assert found == [True]


async def test_a_missing_copy_is_named(other: Database, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        restore(tmp_path / "absent", other, may_replace=True)
    assert names(tmp_path) == ["other"]


def test_an_empty_store_is_copied_and_put_back(other: Database, tmp_path: Path) -> None:
    contents = back_up(other, tmp_path / "copy", may_replace=False)
    assert (contents.entries, contents.newest_seq, contents.newest_at_ms) == (0, 0, None)
    assert restore(tmp_path / "copy", other, may_replace=True) == contents


def test_a_file_that_is_no_store_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 5_000)
    with pytest.raises(DamagedError, match="not a sound store"):
        look_at(tmp_path / "x", is_verified=False)
