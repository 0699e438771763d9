"""Who serves a store says so for its whole life: by a shared lock on a file beside it.

SQLite's own locks do not: a server beside a damaged store has no connection between two attempts, and a restore
would pass it. The lock is on a file of its own, because closing any descriptor of the store's file would drop the
locks that SQLite holds on it in this process. The file is empty and stays: a lock on a deleted one excludes nobody.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metering.store.database import Database

logger = logging.getLogger(__name__)

SERVING = "-serving"


class StoreInUseError(Exception):
    """The store is being restored, or served."""


def serving_file(database: Database) -> Path:
    """The file that is locked, beside the store itself where its path is a link."""
    path = database.path.resolve()
    return path.with_name(path.name + SERVING)


@contextmanager
def serving(database: Database) -> Iterator[None]:
    """No restore meanwhile. Any number of processes may serve; a disk that takes no lock is said and borne, as other
    trouble of a store is. Raises StoreInUseError: a restore is under way."""
    descriptor = None
    try:
        descriptor = _locked(database, fcntl.LOCK_SH)
    except OSError as error:
        logger.warning("a restore beside this server would not be refused: %s: %s", SERVING, error.strerror)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def not_served(database: Database) -> Iterator[None]:
    """Nobody serves the store meanwhile, or begins to. Raises StoreInUseError, OSError."""
    descriptor = _locked(database, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked(database: Database, how: int) -> int:
    # Readable by all and opened for reading only: the operator who restores may be another user than the server.
    descriptor = os.open(serving_file(database), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise StoreInUseError(f"the store at {database.path} is being served or restored") from None
        raise
    return descriptor
