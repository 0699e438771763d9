"""SQLite's library, as a process of ours uses it: each case in a process of its own."""

import subprocess
import sys

import pytest

TOLD = (
    "import metering.store.database, sqlite3; from metering.store.library import COUNTS_NO_MEMORY as told; "
)
USED = "import ctypes, _sqlite3; used = ctypes.CDLL(_sqlite3.__file__).sqlite3_memory_used; "
OPEN = "import sqlite3; one = sqlite3.connect(':memory:'); "
SHOWS = (
    "another = sqlite3.connect(':memory:'); print(told, used() > 0, another.execute('SELECT 1').fetchone())"
)


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        (USED + TOLD + SHOWS, "True False (1,)"),
        (USED + OPEN + TOLD + SHOWS, "False True (1,)"),  # with something open it is not told anything
        (
            USED
            + TOLD
            + OPEN
            + "from metering.store.library import _stop_counting; _stop_counting(); "
            + SHOWS,
            "True False (1,)",
        ),
    ],
    ids=["first", "behind another", "twice"],
)
def test_no_memory_is_counted_where_nothing_was_open_before(script: str, shown: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == shown
