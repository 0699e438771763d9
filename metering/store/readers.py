"""Reading, off the hot path: one aiosqlite connection that cannot write, reopened when it breaks."""

import asyncio
import logging
import sqlite3
from collections.abc import Iterable, Sequence

import aiosqlite

from metering.store.database import Database
from metering.store.writer import Row, Value, store_unavailable

logger = logging.getLogger(__name__)

READ_TIMEOUT_S = 5.0
"""A read that takes longer counts as a store in trouble."""


class Readers:
    """Short reads by one connection; SQLite in WAL mode lets them pass the writer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: aiosqlite.Connection | None = None
        self._opening = asyncio.Lock()

    async def rows(self, sql: str, params: Sequence[Value] = ()) -> list[Row]:
        """All rows. Raises Refused(STORE_UNAVAILABLE) when the store cannot be read."""
        connection = None
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                connection = await self._open()
                found: Iterable[sqlite3.Row] = await connection.execute_fetchall(sql, params)
        except UnicodeError:  # the question is wrong, not the store; it is a ValueError too
            raise
        except (sqlite3.Error, ValueError, TimeoutError) as error:  # ValueError: aiosqlite, connection closed
            await self._discard(connection)
            raise store_unavailable("cannot be read") from error
        return [tuple(row) for row in found]

    async def row(self, sql: str, params: Sequence[Value] = ()) -> Row | None:
        """The first row, if any."""
        found = await self.rows(sql, params)
        return found[0] if found else None

    async def aclose(self) -> None:
        await self._discard(self._connection)

    async def _discard(self, connection: aiosqlite.Connection | None) -> None:
        """Close a connection; a successor that others have opened meanwhile stays."""
        if connection is None:
            return
        if self._connection is connection:
            self._connection = None
        try:
            await connection.interrupt()  # or closing would wait for the read that took too long
            await connection.close()
        except (sqlite3.Error, ValueError) as error:  # ValueError: another reader was faster
            logger.info("closing a reading connection: %s", error)

    async def _open(self) -> aiosqlite.Connection:
        async with self._opening:
            if self._connection is None:
                connection = await aiosqlite.connect(
                    self._database.path, timeout=self._database.busy_timeout_s, isolation_level=None
                )
                self._connection = connection
                await connection.execute("PRAGMA query_only = ON")
            return self._connection
