"""What a store in trouble says, and how often."""

import logging
import sqlite3

import pytest

from metering.store import trouble as trouble_module
from metering.store.trouble import TroubleLog, explained, is_statements_defect


def operational(code: int | None) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("it failed")
    if code is not None:
        error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "is_defect"),
    [
        (operational(sqlite3.SQLITE_ERROR), True),
        (sqlite3.IntegrityError("constraint"), True),
        (OverflowError("too large"), True),
        (operational(sqlite3.SQLITE_BUSY), False),
        (operational(sqlite3.SQLITE_LOCKED), False),
        (operational(sqlite3.SQLITE_FULL), False),
        (operational(sqlite3.SQLITE_IOERR_FSYNC), False),
        (operational(sqlite3.SQLITE_READONLY_DBMOVED), False),
        (operational(sqlite3.SQLITE_CANTOPEN), False),
        (operational(None), False),
        (sqlite3.DatabaseError("malformed"), False),
        (MemoryError(), False),
        (RuntimeError(), False),
    ],
    ids=str,
)
def test_a_defect_is_what_a_statement_is_wrong_with_by_itself(error: Exception, is_defect: bool) -> None:
    assert is_statements_defect(error) is is_defect


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (sqlite3.SQLITE_CORRUPT_INDEX, "restore from a backup"),
        (sqlite3.SQLITE_NOTADB, "restore from a backup"),
        (sqlite3.SQLITE_FULL, "make room"),
        (sqlite3.SQLITE_IOERR_WRITE, "look at the store's disk"),
        (sqlite3.SQLITE_READONLY, "must be writable"),
        (sqlite3.SQLITE_CANTOPEN, "must exist"),
        (sqlite3.SQLITE_BUSY, "another process"),
    ],
)
def test_an_error_says_what_can_be_done(code: int, advice: str) -> None:
    text = explained(operational(code))
    assert text.startswith("it failed: ")
    assert advice in text


def test_an_error_without_advice_is_itself() -> None:
    assert explained(RuntimeError("odd")) == "odd"
    assert explained(MemoryError()) == "MemoryError"


def test_trouble_is_said_once_at_its_begin_and_once_when_it_is_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(trouble_module.time, "monotonic", lambda: now_s)
    log = TroubleLog(logging.getLogger("test"), "the store")
    log.worked()
    for _ in range(5):  # it comes and goes
        log.failed("full")
        log.worked()
        now_s += 1.0
    now_s += trouble_module.OVER_AFTER_S
    log.worked()
    log.worked()
    log.failed("locked")
    assert caplog.messages == [
        "the store is in trouble: full",
        "the store works again after 7.0 s: full",
        "the store is in trouble: locked",
    ]
