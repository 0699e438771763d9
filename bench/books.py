"""The ledger of a run: users and gateway tokens made beforehand, and afterwards the proof that all was counted."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from metering.clock import SystemClock
from metering.store.database import Database
from metering.store.migrate import migrate
from metering.store.store import open_store
from metering.users import Directory, hash_of

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


_OF_A_USER = {
    "users": {"id": ":id"},
    "gateway_tokens": {"id": ":token", "user_id": ":id", "token_hash": ":hash", "family": ":token"},
}
"""Tables with a row a user -> what differs in it."""
_EARLIER = "{} - 1000 * (1 + ?1 - number)"
_COPY = "substr({0}, 1, 4) || printf('%010d', number) || substr({0}, 15)"
_OF_AN_EXCHANGE = {
    "reservations": {
        "id": _COPY.format("id"),
        "created_at_ms": _EARLIER.format("created_at_ms"),
        "resolved_at_ms": _EARLIER.format("resolved_at_ms"),
    },
    "entries": {"reservation_id": _COPY.format("reservation_id"), "at_ms": _EARLIER.format("at_ms")},
}
"""Tables with a row an exchange -> what differs in its copies: they are sorted by time, as the originals are."""


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?1)", (table,))]


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
    def open(cls, folder: Path, *, users: int, listed: int | None = None) -> "Books":
        """Make the store and `users` users with a token each; of these `listed` are listed (all), again and again."""
        folder.mkdir(parents=True)
        (folder / "plans.toml").write_text(PLAN, encoding="utf-8")
        books = cls(folder, folder / "tokens")
        tokens = asyncio.run(books._add_users(users))
        listing = islice(cycle(tokens), users if listed is None else listed)
        books.tokens.write_text("".join(f"{token}\n" for token in listing), encoding="ascii")
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
        async with open_store(self.database) as store:
            directory = Directory(store, SystemClock())
            first = await directory.add_user("user0", plan="bench")
            token, _ = await directory.create_token(first.id)
        return [token, *self._add_more(users)]

    def _add_more(self, users: int) -> list[str]:
        """All but the first user, each with a token: copies of its rows, because a commit for each would take minutes."""
        secrets = [f"amp_bench{number:036}" for number in range(1, users)]
        with self._changing() as connection:
            for table, changed in _OF_A_USER.items():
                columns = _columns(connection, table)
                chosen = ", ".join(changed.get(name, name) for name in columns)
                connection.executemany(
                    f"INSERT INTO {table} ({', '.join(columns)}) SELECT {chosen} FROM (SELECT * FROM {table} ORDER BY rowid LIMIT 1)",
                    [
                        {"id": f"user{number}", "token": f"tok_{number:032}", "hash": hash_of(secret)}
                        for number, secret in enumerate(secrets, start=1)
                    ],
                )
        return secrets

    def add_history(self, entries: int) -> None:
        """Copy what was booked until there are so many entries more, older than what was there, and let the accounts say so.

        The store must not be served meanwhile, and hold nothing."""
        with self._changing() as connection:
            (booked,) = connection.execute("SELECT COUNT(*) FROM entries").fetchone()
            copies = max(1, round(entries / booked))
            for table, changed in _OF_AN_EXCHANGE.items():
                columns = _columns(connection, table)
                chosen = ", ".join(changed.get(name, name) for name in columns if name != "seq")
                named = ", ".join(name for name in columns if name != "seq")
                connection.execute(f"CREATE TEMP TABLE booked AS SELECT * FROM {table}")
                connection.execute(
                    "WITH RECURSIVE copies(number) AS (VALUES (1) UNION ALL SELECT number + 1 FROM copies WHERE number < ?1) "
                    f"INSERT INTO {table} ({named}) SELECT {chosen} FROM copies, booked",
                    (copies,),
                )
                connection.execute("DROP TABLE temp.booked")
            connection.execute("UPDATE accounts SET spent = spent * (1 + ?1)", (copies,))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, at once and without waiting for the disk."""
        with contextlib.closing(sqlite3.connect(self.database.path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

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

    def of_users_who_have_not_asked(self) -> "Books":
        """The same store, with the tokens of these alone. Raises UncountedError where all have."""
        asked = self._rows(
            "SELECT DISTINCT token_hash FROM reservations r JOIN gateway_tokens t ON t.id = r.token_id"
        )
        known = {token_hash for (token_hash,) in asked}
        tokens = dict.fromkeys(self.tokens.read_text(encoding="ascii").split())
        missing = [token for token in tokens if hash_of(token) not in known]
        if not missing:
            raise UncountedError("all users have asked")
        listing = self.folder / "tokens-missing"
        listing.write_text("".join(f"{token}\n" for token in missing), encoding="ascii")
        return replace(self, tokens=listing)

    def bound(self) -> int:
        """How many of the vendors' ids have an owner."""
        return self._count("SELECT COUNT(*) FROM owned_objects")

    def users(self) -> int:
        return self._count("SELECT COUNT(*) FROM users")

    def users_who_asked(self) -> int:
        return self._count("SELECT COUNT(DISTINCT user_id) FROM reservations")

    def _count(self, query: str) -> int:
        ((count,),) = self._rows(query)
        return int(count)

    def _rows(self, query: str) -> list[Any]:
        with contextlib.closing(
            sqlite3.connect(f"file:{self.database.path}?mode=ro", uri=True)
        ) as connection:
            return connection.execute(query).fetchall()

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
