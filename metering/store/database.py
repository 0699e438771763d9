"""Where the store is and how a connection to it is set up."""

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

SCHEME = "sqlite:///"
BUSY_PAUSE_S = 0.01
"""Between two attempts to switch a new file to its write-ahead log."""


class DatabaseUrlError(ValueError):
    """DATABASE_URL does not name a store that this version can open."""


@dataclass(frozen=True, slots=True)
class Database:
    """An SQLite file. `sqlite:///relative.db` or `sqlite:////absolute.db`; never in memory: it must survive."""

    path: Path
    busy_timeout_s: float = 2.0
    """How long a transaction waits for another process that writes before the store counts as unavailable."""

    @classmethod
    def from_url(cls, url: str, *, busy_timeout_s: float = 2.0) -> "Database":
        path = url.removeprefix(SCHEME)
        if path == url or not path or path == ":memory:":
            raise DatabaseUrlError(
                f"DATABASE_URL is {url!r}; expected sqlite:///relative.db or sqlite:////absolute/path.db"
            )
        return cls(Path(path), busy_timeout_s)

    def connect(self) -> sqlite3.Connection:
        """A connection for the writer: autocommit, explicit transactions, every commit survives power loss."""
        connection = sqlite3.connect(
            self.path,
            timeout=self.busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            self._use_write_ahead_log(connection)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

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
