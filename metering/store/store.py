"""The store of one process: its writer and its readers, opened and closed together."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from metering.store.database import Database
from metering.store.readers import Readers
from metering.store.writer import CommitStats, GroupCommitWriter
from metering.values import immutable


@immutable
class Store:
    """What the rooms bring their statements to."""

    database: Database
    writer: GroupCommitWriter
    readers: Readers


@asynccontextmanager
async def open_store(
    database: Database, *, on_commit: Callable[[CommitStats], None] | None = None
) -> AsyncIterator[Store]:
    """Open a migrated store; on leaving, flush the writer and close. Raises StoreMovedError when there is none."""
    database = database.pinned()
    store = Store(database, GroupCommitWriter(database, on_commit=on_commit), Readers(database))
    try:
        yield store
    finally:
        try:
            await store.writer.aclose()
        finally:
            await store.readers.aclose()
