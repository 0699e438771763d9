"""The ledger of a run: users and gateway tokens made beforehand, and afterwards the proof that all was counted."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from metering.clock import SystemClock
from metering.store.database import Database
from metering.store.migrate import migrate
from metering.store.store import open_store
from metering.users import Directory

PLAN = """
[plans.bench]
credits_per_month = 1_000_000_000_000
requests_per_minute = 1_000_000_000
tokens_per_minute = 1_000_000_000_000
concurrent_requests = 100_000
searches_per_month = 0
browser_minutes_per_month = 0
concurrent_browsers = 0
emails_per_day = 0
call_minutes_per_month = 0
"""
"""Limits are looked up and counted for every request, and refuse none."""
QUIET_WITHIN_S, POLL_S = 30.0, 0.05
VERIFIED_WITHIN_S = 120.0
HERE = Path(__file__).resolve().parent.parent


class UncountedError(RuntimeError):
    """The ledger does not say what the load generator saw: the run is worth nothing."""


@dataclass(frozen=True, slots=True)
class Books:
    """A store with users, not served yet."""

    folder: Path
    tokens: Path
    """A file, a gateway token a line, each of its own user."""
    tree: Path = HERE
    """The checkout whose schema the store has: another version's is another."""

    @classmethod
    def open(cls, folder: Path, *, users: int) -> "Books":
        """Make the store and `users` users with a token each."""
        folder.mkdir(parents=True)
        (folder / "plans.toml").write_text(PLAN, encoding="utf-8")
        books = cls(folder, folder / "tokens")
        tokens = asyncio.run(books._add_users(users))
        books.tokens.write_text("".join(f"{token}\n" for token in tokens), encoding="ascii")
        return books

    @property
    def database(self) -> Database:
        return Database(self.folder / "ledger.db")

    @property
    def environ(self) -> dict[str, str]:
        """The proxy's settings: the defaults, but for where things are and for how long a stop takes."""
        return {
            "DATABASE_URL": f"sqlite:///{self.database.path}",
            "PLANS_FILE": str(self.folder / "plans.toml"),
            "DRAIN_NOTICE_S": "0",
        }

    async def _add_users(self, users: int) -> list[str]:
        migrate(self.database, SystemClock())
        tokens = []
        async with open_store(self.database) as store:
            directory = Directory(store, SystemClock())
            for number in range(users):
                user = await directory.add_user(f"user{number}", plan="bench")
                tokens.append((await directory.create_token(user.id))[0])
        return tokens

    def settled(self) -> int:
        """How many settle entries there are, once nothing is held any more. Raises UncountedError."""
        until_s = time.monotonic() + QUIET_WITHIN_S
        with contextlib.closing(
            sqlite3.connect(f"file:{self.database.path}?mode=ro", uri=True)
        ) as connection:
            while True:
                held, settled = connection.execute(
                    "SELECT (SELECT COUNT(*) FROM reservations WHERE state = 'HELD'), "
                    "(SELECT COUNT(*) FROM entries WHERE kind = 'settle')"
                ).fetchone()
                if not held:
                    return int(settled)
                if time.monotonic() > until_s:
                    raise UncountedError(
                        f"{held} reservations are still held {QUIET_WITHIN_S:g} s after the run"
                    )
                time.sleep(POLL_S)

    def bound(self) -> int:
        """How many of the vendors' ids have an owner."""
        with contextlib.closing(
            sqlite3.connect(f"file:{self.database.path}?mode=ro", uri=True)
        ) as connection:
            (count,) = connection.execute("SELECT COUNT(*) FROM owned_objects").fetchone()
            return int(count)

    def check_clean(self) -> None:
        """Have the store's own version recompute every account from its rows. Raises UncountedError."""
        verified = subprocess.run(
            [sys.executable, "-m", "automna_proxy", "ledger", "verify"],
            cwd=self.tree,
            env={**os.environ, **self.environ},
            capture_output=True,
            text=True,
            timeout=VERIFIED_WITHIN_S,
            check=False,
        )
        if verified.returncode:
            said = (verified.stdout + verified.stderr).strip()
            raise UncountedError(f"the ledger does not add up: {said[-1_000:]}")

    def kinds(self) -> dict[tuple[str, str, str], int]:
        """Entries by (kind, outcome, basis)."""
        with contextlib.closing(
            sqlite3.connect(f"file:{self.database.path}?mode=ro", uri=True)
        ) as connection:
            rows = connection.execute("SELECT kind, outcome, basis, COUNT(*) FROM entries GROUP BY 1, 2, 3")
            return {(kind, outcome, basis): count for kind, outcome, basis, count in rows}


def check_count(*, entries: int, answers: int, in_flight_max: int) -> None:
    """As many entries as answers, and at most those in flight at the end more. Raises UncountedError."""
    if not answers <= entries <= answers + in_flight_max:
        raise UncountedError(
            f"{answers} requests were answered and {entries} booked; expected {answers} to {answers + in_flight_max}"
        )


def check_bound(*, bound: int, entries: int, ids_each: int) -> None:
    """Every id that an answer handed out has an owner. Raises UncountedError."""
    if bound != entries * ids_each:
        raise UncountedError(f"{bound} ids are bound, expected {ids_each} for each of {entries} entries")
