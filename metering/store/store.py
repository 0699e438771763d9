"""The store of one process: its writer and its readers, opened and closed together."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from metering.store.database import Database
from metering.store.readers import Readers
from metering.store.writer import CommitStats, CommitTimes, GroupCommitWriter, TimedWriter
from metering.values import immutable


@immutable
class Store:
    """What the rooms bring their statements to."""

    database: Database
    writer: GroupCommitWriter
    readers: Readers


@asynccontextmanager
async def open_store(
    database: Database,
    *,
    on_commit: Callable[[CommitStats], None] | None = None,
    on_times: Callable[[CommitTimes], None] | None = None,
) -> AsyncIterator[Store]:
    """Open a migrated store; on leaving, flush the writer and close. Raises StoreMovedError when there is none."""
    database = database.pinned()
    if on_times is None:
        writer = GroupCommitWriter(database, on_commit=on_commit)
    else:
        writer = TimedWriter(database, on_commit=on_commit, on_times=on_times)
    store = Store(database, writer, Readers(database))
    try:
        yield store
    finally:
        try:
            await store.writer.aclose()
        finally:
            await store.readers.aclose()
