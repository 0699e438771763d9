"""Where the store is and how a connection to it is set up."""

import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import metering.store.library  # noqa: F401 - it is told before anything is opened
from metering.values import immutable

SCHEME = "sqlite:///"
LOG_BYTES_KEPT = 16 * 1024 * 1024
"""The write-ahead log is recycled at 4 MiB (1,000 pages) unless a long read holds it; what it grew to meanwhile it
would keep for ever. Cut back to this much the next time it starts over."""
BUSY_PAUSE_S = 0.01
"""Between two attempts to switch a new file to its write-ahead log."""


class DatabaseUrlError(ValueError):
    """DATABASE_URL does not name a store that this version can open."""


class StoreMovedError(sqlite3.OperationalError):
    """What stands at the store's path is not the file that was opened there. What is written to the opened one
    would be gone, and what is read from the other is not ours."""


@immutable
class Database:
    """An SQLite file. `sqlite:///relative.db` or `sqlite:////absolute.db`; never in memory: it must survive."""

    path: Path
    busy_timeout_s: float = 2.0
    """How long a transaction waits for another process that writes before the store counts as unavailable."""
    file_id: tuple[int, int] | None = None
    """Device and inode of the one file that may be opened; None: whatever is there, made where nothing is."""

    @classmethod
    def from_url(cls, url: str, *, busy_timeout_s: float = 2.0) -> "Database":
        path = url.removeprefix(SCHEME)
        if path == url or not path or path == ":memory:":
            raise DatabaseUrlError(
                f"DATABASE_URL is {url!r}; expected sqlite:///relative.db or sqlite:////absolute/path.db"
            )
        return cls(Path(path), busy_timeout_s)

    def pinned(self) -> "Database":
        """The same store, but only the file that is there now. Raises StoreMovedError when there is none."""
        return replace(self, file_id=self._file_id_now())

    def require_same_file(self) -> None:
        """Raises StoreMovedError when the pinned file was deleted or replaced. A microsecond: for every use."""
        if self.file_id is not None and self._file_id_now() != self.file_id:
            raise StoreMovedError(
                f"another file stands at {self.path} than was opened: put the opened one back, or stop every "
                "server before you replace a store"
            )

    def _file_id_now(self) -> tuple[int, int]:
        try:
            found = self.path.stat()
        except OSError as error:
            raise StoreMovedError(f"there is no store at {self.path} ({error.strerror})") from error
        return found.st_dev, found.st_ino

    @property
    def address(self) -> str:
        """A URI for SQLite: a pinned store is never made anew by opening it."""
        return f"{self.path.absolute().as_uri()}?mode={'rwc' if self.file_id is None else 'rw'}"

    def connect(self) -> sqlite3.Connection:
        """A connection for the writer: autocommit, explicit transactions, every commit survives power loss.

        Raises sqlite3.Error.
        """
        connection = sqlite3.connect(
            self.address,
            uri=True,
            timeout=self.busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            self.require_same_file()
            self._use_write_ahead_log(connection)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES_KEPT}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def connect_read_only(self) -> sqlite3.Connection:
        """A connection that cannot write, for long looks at one instant. Raises sqlite3.Error: there is no store."""
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=self.busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )

    def _use_write_ahead_log(self, connection: sqlite3.Connection) -> None:
        """Waits its turn: when several processes open a new file, SQLite lets one of them switch it and
        answers the others *busy* at once, whatever the connection's timeout is."""
        ends_s = time.monotonic() + self.busy_timeout_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > ends_s:
                    raise
                time.sleep(BUSY_PAUSE_S)
            else:
                return
