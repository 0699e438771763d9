"""What a store in trouble says of itself: which errors are its own, what an operator can do, and how often it is
logged."""

import logging
import sqlite3
import threading
import time

CORRUPT_ADVICE = (
    "the store's file is damaged; stop every server on it, keep the damaged files, and restore from a backup"
)
_ADVICE = {
    sqlite3.SQLITE_CORRUPT: CORRUPT_ADVICE,
    sqlite3.SQLITE_NOTADB: CORRUPT_ADVICE,
    sqlite3.SQLITE_FULL: "make room on the store's disk",
    sqlite3.SQLITE_IOERR: "look at the store's disk",
    sqlite3.SQLITE_READONLY: "the store's file or disk must be writable",
    sqlite3.SQLITE_CANTOPEN: "the store's file must exist, and it and its folder be writable",
    sqlite3.SQLITE_BUSY: "another process holds the store's lock",
}
"""By primary result code, for whoever must act."""
PRIMARY = 0xFF
"""The part of an extended result code that says its kind (sqlite.org/rescode.html)."""
OVER_AFTER_S = 2.0
"""Trouble that comes back within this time is the same: it is not logged a second time."""

_DEFECTS = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sqlite3.DataError,  # a value longer than SQLite takes
    sqlite3.NotSupportedError,
    ArithmeticError,  # an integer beyond 64 bits
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)


def is_statements_defect(error: Exception) -> bool:
    """Whether a statement failed by its own fault, while the store may be well. Everything else is trouble.

    SQLITE_ERROR is what SQLite answers to a statement that it cannot compile or run (no such table or column,
    bad syntax); full, locked, broken, read-only and damaged stores all have codes of their own.
    """
    if isinstance(error, sqlite3.OperationalError):
        return result_code(error) == sqlite3.SQLITE_ERROR
    return isinstance(error, _DEFECTS)


def result_code(error: BaseException) -> int | None:
    """SQLite's primary result code; None for errors that did not come from the library."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & PRIMARY


def explained(error: BaseException) -> str:
    """The error for people, with what can be done about it where that is known."""
    text = str(error) or type(error).__name__
    advice = _ADVICE.get(result_code(error) or 0)
    return f"{text}: {advice}" if advice else text


class TroubleLog:
    """One line when trouble begins and one when it is over, however many requests it hits. For any thread."""

    def __init__(self, logger: logging.Logger, what: str) -> None:
        """`what` begins both lines."""
        self._logger = logger
        self._what = what
        self._lock = threading.Lock()
        self._text: str | None = None
        self._began_s = self._failed_s = 0.0

    def failed(self, text: str) -> None:
        """Something failed: said unless it has been said of this trouble already."""
        with self._lock:
            self._failed_s = time.monotonic()
            if self._text is not None:
                return
            self._text, self._began_s = text, self._failed_s
        self._logger.error("%s is in trouble: %s", self._what, text)

    def worked(self) -> None:
        """Something worked: said when nothing has failed for OVER_AFTER_S."""
        if self._text is None:
            return
        with self._lock:
            now_s = time.monotonic()
            if self._text is None or now_s - self._failed_s < OVER_AFTER_S:
                return
            text, self._text = self._text, None
        self._logger.warning("%s works again after %.1f s: %s", self._what, now_s - self._began_s, text)
