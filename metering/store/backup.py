"""Copies of the store: one instant of it as one plain file, and back.

**Backup.** SQLite's backup interface under a read transaction that is opened first: the copy is the store at that
instant, whatever is written meanwhile. Without the transaction each commit of another process starts the copy over,
and a busy store is never copied; `VACUUM INTO` rebuilds every index, at several times the work. Readers do not
stop the writer of a write-ahead log. What it would feel is its disk: the copy is flushed as it grows, instead of in
one long flush at the end that every commit would wait behind.

**Restore.** The store's content is replaced in one SQLite transaction under an exclusive lock, in the same file.
Renaming a file over a store would be quicker, and wrong: whoever opened the old one meanwhile would write into a
file that no longer has a name, and the old write-ahead log would be applied to the new content. So a store that
anybody has open, or serves, is refused, a crash half-way leaves the old content, owner and mode of the file stay.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from metering.store.database import Database
from metering.store.migrate import SchemaTooNewError, migrations, version_of
from metering.store.serving import StoreInUseError, not_served, serving_file

STEP_PAGES = 2_048
"""Copied and flushed at once: 8 MiB at SQLite's page size."""
PROBLEMS_MAX = 10
"""Lines of `integrity_check` that are said."""
PARTIAL = ".partial"
CLAIM_ATTEMPTS_MAX = 2
"""To claim the temporary name: the second one when a killed run left it on a finished copy."""
SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a store."""
LOCK_BYTES = (0x4000_0000, 512)
"""Where SQLite locks a file, and how many bytes: https://www.sqlite.org/src/file/src/os.h (PENDING_BYTE...)."""


class BackupError(Exception):
    """A copy cannot be made or put back; the message is for the operator."""


class DamagedError(BackupError):
    """A file was read, and is not a sound store of this program."""


# --- the copy -------------------------------------------------------------------------------------------


@contextmanager
def new_copy(source: Database, target: Path, *, may_replace: bool) -> Iterator[Path]:
    """A copy of the store as it is now, under a temporary name beside `target`, to be looked at by the caller.

    Left without an error, it gets its name and survives a power failure; otherwise it is gone. Only the owner may
    read it. Raises BackupError, OSError, sqlite3.Error.
    """
    _refuse_own_files(source, target)
    if not may_replace and os.path.lexists(target):
        raise _exists(target)
    partial = target.with_name(target.name + PARTIAL)
    with _claimed(partial) as descriptor:
        try:
            _copy(source, partial, descriptor)
            yield partial
            os.fsync(descriptor)
            _give_name(partial, target, may_replace=may_replace)
        finally:
            _remove(partial, *_beside(partial))
    _flush_folder(target.parent)


def _refuse_own_files(source: Database, target: Path) -> None:
    own = {path.resolve() for path in (source.path, *_beside(source.path), serving_file(source))}
    if target.resolve() in own or target.with_name(target.name + PARTIAL).resolve() in own:
        raise BackupError(f"{target} is the store itself, or a file of it")


@contextmanager
def _claimed(partial: Path) -> Iterator[int]:
    """An empty file of ours. What a killed run left is used again; a run under way is not disturbed."""
    descriptor = _open_alone(partial)
    try:
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _open_alone(partial: Path) -> int:
    """The file under this name, locked: it has this name and no other, so emptying it empties nothing else."""
    for _ in range(CLAIM_ATTEMPTS_MAX):
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            opened, named = os.fstat(descriptor), partial.stat(follow_symlinks=False)
            if (opened.st_dev, opened.st_ino) != (named.st_dev, named.st_ino):
                break
            if opened.st_nlink == 1:
                return os.dup(descriptor)
            # Killed between giving the copy its name and taking this one away. Whoever has the lock may do so.
            partial.unlink()
        except (BlockingIOError, FileNotFoundError):
            break
        finally:
            os.close(descriptor)
    # Not locked, or no longer under this name: another run has it, or gave it its final name since we opened it.
    raise BackupError(f"another backup is writing {partial}")


def _copy(source: Database, partial: Path, descriptor: int) -> None:
    with (
        closing(source.connect_read_only()) as store,
        closing(sqlite3.connect(partial, isolation_level=None)) as copy,
    ):
        # A copy that is not whole is thrown away: it needs no journal, and is flushed here.
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        store.execute("BEGIN")
        store.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()  # the instant of the copy
        store.backup(copy, pages=STEP_PAGES, progress=lambda *_: os.fdatasync(descriptor))
        store.execute("ROLLBACK")
        # The store's file says that it has a write-ahead log; a copy must be readable where nothing can be written.
        copy.execute("PRAGMA journal_mode = DELETE")


def _give_name(partial: Path, target: Path, *, may_replace: bool) -> None:
    if may_replace:
        partial.replace(target)
        return
    try:
        os.link(partial, target)  # unlike a rename, it never replaces
    except FileExistsError:
        raise _exists(target) from None


def _exists(target: Path) -> BackupError:
    return BackupError(f"{target} exists; --force replaces it")


# --- and back -------------------------------------------------------------------------------------------


def put_back(copy: Path, target: Database, *, may_replace: bool) -> None:
    """Make the copy the store's content: all of it or, on any error, nothing.

    Raises BackupError (the store exists, or somebody has it open), OSError, sqlite3.Error.
    """
    path = target.path
    if copy.resolve() in {file.resolve() for file in (path, *_beside(path))}:
        raise BackupError(f"{copy} is the store itself, or a file of it")
    if not may_replace and path.exists() and path.stat().st_size:
        raise BackupError(f"there is a store at {path}; --force replaces it")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            not_served(target),
            closing(Database(copy).connect_read_only()) as source,
            closing(_alone_on(target)) as store,
        ):
            source.backup(store)
    except StoreInUseError:
        raise _in_use(target) from None
    _flush_folder(path.parent)


def _alone_on(target: Database) -> sqlite3.Connection:
    """A connection that keeps all others out until it is closed; what the write-ahead log held is in the file."""
    try:
        return _locked(target)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        raise _in_use(target) from None
    except sqlite3.DatabaseError:
        _empty(target)  # damaged: SQLite cannot even lock it
        return _locked(target)


def _locked(target: Database) -> sqlite3.Connection:
    connection = sqlite3.connect(target.path, timeout=0, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = DELETE")  # busy while anybody else has it open
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = DELETE")  # whoever was here in between
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _empty(target: Database) -> None:
    """Throw away a file that SQLite cannot read, unless somebody has it open."""
    start, length = LOCK_BYTES
    with target.path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except BlockingIOError:
            raise _in_use(target) from None
        _remove(*_beside(target.path))
        file.truncate()


def _in_use(target: Database) -> BackupError:
    return BackupError(f"the store at {target.path} is in use: stop the server first")


# --- looking at a file ----------------------------------------------------------------------------------


def check(path: Path, *, is_every_page_read: bool) -> int:
    """The version of its schema, when the file is a sound store of this program.

    Raises DamagedError, SchemaTooNewError, OSError.
    """
    with path.open("rb"):  # SQLite would not say why it cannot
        pass
    try:
        with closing(Database(path).connect_read_only()) as connection:
            version = version_of(connection)
            problems = _problems(connection) if is_every_page_read else []
    except sqlite3.DatabaseError as error:
        raise DamagedError(f"{path} is not a sound store: {error}") from error
    if problems:
        raise DamagedError(f"{path} is damaged: {'; '.join(problems)}")
    if version > (known := migrations()[-1].version):
        raise SchemaTooNewError(
            f"the schema of {path} is version {version}, this program knows {known}: upgrade it"
        )
    return version


def _problems(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute(f"PRAGMA integrity_check({PROBLEMS_MAX})")
    return [problem for (problem,) in rows if problem != "ok"]


def _beside(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in SIDE_FILES]


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """A new name survives a power failure once its folder is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
