"""Reading, off the hot path: one aiosqlite connection that cannot write, reopened when it breaks.

A disk that hangs keeps one thread and one connection; until that one is closed no other is opened, and who
reads is refused at once.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import aiosqlite

from metering.store.database import Database, StoreMovedError
from metering.store.trouble import TroubleLog, explained
from metering.store.writer import Row, Value, store_unavailable
from metering.tasks import spawn

logger = logging.getLogger(__name__)

READ_TIMEOUT_S = 5.0
"""A read that takes longer counts as a store in trouble."""
ROWS_AT_ONCE = 64
"""Of a cursor that is iterated, which none here is: aiosqlite wants to know."""
CLOSING_S = 1.0
"""A connection that takes longer to close is waited for in the background."""


class Readers:
    """Short reads by one connection; SQLite in WAL mode lets them pass the writer."""

    def __init__(
        self, database: Database, log: TroubleLog | None = None, *, read_timeout_s: float | None = None
    ) -> None:
        """`log`: shared with other readers of the same store; `read_timeout_s`: for reads that may take longer."""
        self._database = database
        self._read_timeout_s = READ_TIMEOUT_S if read_timeout_s is None else read_timeout_s
        self._log = log or TroubleLog(logger, "reading the store")
        self._connection: aiosqlite.Connection | None = None
        self._opening: asyncio.Task[aiosqlite.Connection | sqlite3.Error] | None = None
        self._closing: asyncio.Future[object] | None = None
        self._is_closed = False

    def another(self, *, read_timeout_s: float | None = None) -> "Readers":
        """Readers of the same store on a connection of their own."""
        return Readers(self._database, self._log, read_timeout_s=read_timeout_s)

    async def rows(self, sql: str, params: Sequence[Value] = ()) -> list[Row]:
        """All rows. Raises Refused(STORE_UNAVAILABLE) when the store cannot be read, or these readers are closed."""
        if self._is_closed:
            raise store_unavailable("shutting down")
        connection = None
        try:
            async with asyncio.timeout(self._read_timeout_s):
                connection = await self._open()
                found: Iterable[sqlite3.Row] = await connection.execute_fetchall(sql, params)
        except UnicodeError:  # the question is wrong, not the store; it is a ValueError too
            raise
        except (sqlite3.Error, ValueError, TimeoutError) as error:  # ValueError: aiosqlite, connection closed
            self._log.failed(
                f"no answer in {self._read_timeout_s:g} s"
                if isinstance(error, TimeoutError)
                else explained(error)
            )
            if not isinstance(
                error, StoreMovedError
            ):  # the opened file lives as long as somebody has it open
                await self._discard(connection)
            raise store_unavailable("cannot be read") from error
        self._log.worked()
        return [tuple(row) for row in found]

    async def row(self, sql: str, params: Sequence[Value] = ()) -> Row | None:
        """The first row, if any."""
        found = await self.rows(sql, params)
        return found[0] if found else None

    async def aclose(self) -> None:
        """Close, for good: what is being opened now is closed once it is open."""
        self._is_closed = True
        if self._opening is not None:
            await asyncio.wait({self._opening}, timeout=CLOSING_S)
        await self._discard(self._connection)
        if self._closing is not None:  # begun by a reader that was cancelled since
            await asyncio.wait({self._closing}, timeout=CLOSING_S)

    async def _discard(self, connection: aiosqlite.Connection | None) -> None:
        """Close the connection in use. What others have closed or replaced meanwhile is left to them: aiosqlite
        waits for ever when it is closed twice."""
        if connection is None or self._connection is not connection:
            return
        self._connection = None
        self._closing = await _begin_closing(connection)
        if self._closing is not None:
            await asyncio.wait({self._closing}, timeout=CLOSING_S)

    async def _open(self) -> aiosqlite.Connection:
        """The connection; opened by a task of its own, because one that is half open cannot be cancelled."""
        if self._connection is not None:
            return self._connection
        if self._closing is not None and not self._closing.done():
            raise sqlite3.OperationalError("the last connection hangs: look at the store's disk")
        if self._opening is None:
            self._opening = spawn(self._connect(), name="open the reading connection")
        opened = await asyncio.shield(self._opening)
        if isinstance(opened, sqlite3.Error):
            raise opened
        return opened

    async def _connect(self) -> aiosqlite.Connection | sqlite3.Error:
        failures: list[sqlite3.Error] = []

        def connector() -> sqlite3.Connection:
            try:
                return self._connected()
            except sqlite3.Error as error:
                # A connection that fails to open ends its thread when it likes, perhaps after the event loop; one
                # that opens something is closed as any other.
                failures.append(error)
                return sqlite3.connect(":memory:")

        try:
            connection = await aiosqlite.Connection(connector, ROWS_AT_ONCE)
            try:
                if failures:
                    raise failures[0]
                await connection.execute("PRAGMA query_only = ON")
            except sqlite3.Error:
                await connection.close()
                raise
        except sqlite3.Error as error:  # returned: each who waits raises it, none is a failed task
            return error
        finally:
            self._opening = None
        if self._is_closed:  # meanwhile: who closes has stopped waiting for us
            self._closing = await _begin_closing(connection)
            return sqlite3.OperationalError("closed while it was opened")
        self._connection = connection
        return connection

    def _connected(self) -> sqlite3.Connection:
        """In the reading thread. Raises sqlite3.Error."""
        connection = sqlite3.connect(
            self._database.address,
            uri=True,
            timeout=self._database.busy_timeout_s,
            isolation_level=None,
            factory=_SameFileConnection,
        )
        connection.database = self._database
        try:
            self._database.require_same_file()  # opened is what was there a moment ago
        except sqlite3.Error:
            connection.close()
            raise
        return connection


class _SameFileConnection(sqlite3.Connection):
    """Looks before each statement whether the store's file is still the one that was opened: in the reading thread,
    because on a disk that hangs that look hangs too."""

    database: Database

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        self.database.require_same_file()
        return super().execute(sql, parameters)


async def _begin_closing(connection: aiosqlite.Connection) -> "asyncio.Future[object] | None":
    """Have the connection's thread close it and end. `close()` would be a task, and a thread that hangs would keep
    the event loop from ending, which waits for its tasks."""
    with suppress(sqlite3.Error, ValueError):  # ValueError: aiosqlite, it was never open
        await connection.interrupt()  # or closing would wait for the read that took too long
    return connection.stop()
