"""Migrations: in order, once, whole or not at all, also when processes race."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from metering.call_records import SELECT_RECENT
from metering.clock import ManualClock
from metering.ledger import (
    ADJUST_RESERVATION,
    CHECKPOINT_RESERVATION,
    EXPIRE_RESERVATION,
    EXTEND_RESERVATION,
    HOLD_ACCOUNT,
    HOLD_TOGETHER,
    INSERT_ENTRY,
    INSERT_RESERVATION,
    MOVE_ACCOUNT,
    MOVE_TOGETHER,
    RESOLVE_RESERVATION,
    SELECT_EXPIRED_TOKENS,
)
from metering.repeats import SELECT_EARLIER
from metering.scheduled import SELECT_TOUCHES
from metering.store import migrate as migrate_module
from metering.store.database import Database
from metering.store.migrate import (
    Migration,
    SchemaTooNewError,
    is_current,
    migrate,
    migrations,
    statements,
)
from metering.verify import SELECT_RESOLUTIONS, verify_file
from tests.support.ledger import NOW_MS

CLOCK = ManualClock(NOW_MS)
TOKENS_VERSION, CONSTRAINTS_VERSION = 4, 14
PARAMETERS_MAX = 22
TABLES = {
    *("users", "gateway_tokens", "accounts", "reservations", "entries", "workers", "changes"),
    *("llm_usage", "usage_events", "schema_migrations", "owned_objects", "deferred_work", "grants"),
    *("outbox", "notices", "email_sends", "deferred_touches", "call_records", "call_usage"),
}


def names(connection: sqlite3.Connection) -> set[str]:
    rows = connection.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')")
    return {row[0] for row in rows if not row[0].startswith("sqlite_")}


def test_an_empty_store_gets_every_table_and_the_second_run_does_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "deep" / "down" / "x.db")
    assert migrate(database, CLOCK) == [step.name for step in migrations()]
    assert migrate(database, CLOCK) == []
    with closing(database.connect()) as connection:
        assert names(connection) >= TABLES
        assert is_current(connection)
        applied = connection.execute("SELECT version, applied_at_ms FROM schema_migrations").fetchall()
        assert applied == [(step.version, NOW_MS) for step in migrations()]


def test_the_steps_that_ship_are_numbered_without_gaps() -> None:
    assert [step.version for step in migrations()] == list(range(1, len(migrations()) + 1))


def test_every_step_says_why_it_is_there() -> None:
    assert all(step.sql.startswith("-- ") for step in migrations())


def test_credit_comes_to_a_store_in_use_and_changes_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(tmp_path / "x.db")
    before = migrations()[:2]
    with monkeypatch.context() as patched:
        patched.setattr(migrate_module, "migrations", lambda: before)
        migrate(database, CLOCK)
    with closing(database.connect()) as connection:
        connection.execute("INSERT INTO users (id, plan, created_at, updated_at) VALUES ('ada', 'pro', 1, 1)")
        connection.execute("INSERT INTO accounts VALUES ('user:ada', 'money', '2026-11', 100, 60, 0)")
        connection.execute(
            """INSERT INTO reservations (id, state, worker_id, user_id, token_id, surface, operation, lines,
            hold_nanousd, checkpoint_nanousd, booked_nanousd, created_at_ms)
            VALUES ('req_1', 'SETTLED', 'w', 'ada', 't', 's', 'o', '[["user:ada","money","2026-11",80]]',
            80, 0, 60, 1)"""
        )
        connection.execute(
            """INSERT INTO entries (kind, reservation_id, user_id, at_ms, basis, cost_nanousd, input_tokens,
            cache_read_tokens, cache_write_tokens, output_tokens, lines)
            VALUES ('settle', 'req_1', 'ada', 1, 'reported', 60, 0, 0, 0, 0,
            '[["user:ada","money","2026-11",60]]')"""
        )
    assert migrate(database, CLOCK)[0] == "0003_credit"
    with closing(database.connect()) as connection:
        assert connection.execute("SELECT plan, plan_until_ms, next_plan FROM users").fetchall() == [
            ("pro", None, None)
        ]
        assert connection.execute("SELECT credit_nanousd FROM reservations").fetchall() == [(0,)]
    assert verify_file(database).problems == ()


def test_a_store_that_was_never_migrated_is_not_current(tmp_path: Path) -> None:
    with closing(Database(tmp_path / "x.db").connect()) as connection:
        assert not is_current(connection)


def test_processes_that_race_apply_each_step_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        for number in range(5):
            database = Database(tmp_path / f"{number}.db", busy_timeout_s=10)
            applied = list(threads.map(lambda _, database=database: migrate(database, CLOCK), range(8)))
            assert sorted(name for names in applied for name in names) == [step.name for step in migrations()]


def test_tokens_of_before_are_families_of_their_own_and_may_what_they_could(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(tmp_path / "x.db")
    with monkeypatch.context() as before:
        earlier = [step for step in migrations() if step.version < TOKENS_VERSION]
        before.setattr(migrate_module, "migrations", lambda: earlier)
        migrate(database, CLOCK)
    with closing(database.connect()) as connection:
        connection.execute("INSERT INTO users (id, plan, created_at, updated_at) VALUES ('ada', 'pro', 0, 0)")
        connection.execute(
            "INSERT INTO gateway_tokens (id, user_id, token_hash, token_prefix, created_at_ms) "
            "VALUES ('tok_1', 'ada', 'h', 'amp_x', 0)"
        )
        migrate(database, CLOCK)
        columns = "family, parent_id, successor_id, scope, caps, requests_per_minute"
        assert connection.execute(f"SELECT {columns} FROM gateway_tokens").fetchall() == [
            ("tok_1", None, None, None, None, None)
        ]
        assert connection.execute("SELECT caps FROM users").fetchall() == [(None,)]


def explained(connection: sqlite3.Connection, sql: str, *, how: str = "EXPLAIN") -> str:
    params = dict.fromkeys(map(str, range(1, PARAMETERS_MAX + 1)))
    return str(connection.execute(f"{how} {sql}", params).fetchall())


def test_the_tables_of_a_store_in_use_are_copied_whole_with_constraints_that_refuse_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(tmp_path / "x.db")
    with monkeypatch.context() as before:
        earlier = [step for step in migrations() if step.version < CONSTRAINTS_VERSION]
        before.setattr(migrate_module, "migrations", lambda: earlier)
        migrate(database, CLOCK)
    with closing(database.connect()) as connection, closing(database.connect()) as opened_before:
        for state in ("HELD", "SETTLED", "VOIDED", "EXPIRED"):
            connection.execute(
                "INSERT INTO reservations VALUES (?1, ?1, 'w', 'u', 't', 's', 'o', 'm', '[]', 1, 2, 'c', 3, 4, 5, 6, 7, 8)",
                (state,),
            )
        for number, kind in enumerate(("settle", "void", "expire", "overage", "grant", "adjust"), start=1):
            connection.execute(
                "INSERT INTO entries VALUES (?1, ?2, ?2, 'u', 't', 1, 'anthropic', 'o', 'm', 'completed', 'reported', "
                "2, 3, 4, 5, 6, 'x', 'n', '[]', 'p', 200, 'r', 9)",
                (number * 10, kind),
            )
        tables = [f"SELECT * FROM {name} ORDER BY 1" for name in ("reservations", "entries", "llm_usage")]
        schema = "SELECT name FROM sqlite_schema ORDER BY name"
        contents = [connection.execute(sql).fetchall() for sql in (*tables, schema)]
        assert opened_before.execute(tables[0]).fetchall() == contents[0]
        with monkeypatch.context() as then:
            constrained = [step for step in migrations() if step.version <= CONSTRAINTS_VERSION]
            then.setattr(migrate_module, "migrations", lambda: constrained)
            migrate(database, CLOCK)
        for one in (connection, opened_before):
            assert [one.execute(sql).fetchall() for sql in (*tables, schema)] == contents
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for wrong in (
            "UPDATE reservations SET state = 'LOST'",
            "UPDATE entries SET kind = 'lost'",
            "UPDATE entries SET basis = 'lost'",
            "UPDATE entries SET reservation_id = 'settle' WHERE kind = 'void'",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                opened_before.execute(wrong)


@pytest.mark.parametrize(
    "sql",
    [
        *(HOLD_ACCOUNT, MOVE_ACCOUNT, INSERT_RESERVATION, CHECKPOINT_RESERVATION, EXTEND_RESERVATION),
        *(HOLD_TOGETHER, MOVE_TOGETHER),
        *(RESOLVE_RESERVATION, EXPIRE_RESERVATION, INSERT_ENTRY),
    ],
)
def test_what_every_request_writes_makes_no_temporary_tree(tmp_path: Path, sql: str) -> None:
    database = Database(tmp_path / "x.db")
    migrate(database, CLOCK)
    with closing(database.connect()) as connection:
        assert "OpenEphemeral" in explained(connection, ADJUST_RESERVATION)  # it returns something
        assert "OpenEphemeral" not in explained(connection, sql)


@pytest.mark.parametrize(
    "sql", [SELECT_EARLIER, SELECT_TOUCHES, SELECT_RECENT, SELECT_RESOLUTIONS, SELECT_EXPIRED_TOKENS]
)
def test_resolutions_are_found_by_their_index(tmp_path: Path, sql: str) -> None:
    database = Database(tmp_path / "x.db")
    migrate(database, CLOCK)
    with closing(database.connect()) as connection:
        assert "USING INDEX entries_resolution" in explained(connection, sql, how="EXPLAIN QUERY PLAN")


def test_a_later_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.db")
    migrate(database, CLOCK)
    with closing(database.connect()) as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (999, 'future', 0)")
    with pytest.raises(SchemaTooNewError, match="999"):
        migrate(database, CLOCK)


@pytest.mark.parametrize("broken", ["NOT SQL;", "INSERT INTO nowhere VALUES (1);", "CREATE TABLE half (id)"])
def test_a_step_that_fails_leaves_nothing_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    database = Database(tmp_path / "x.db")
    migrate(database, CLOCK)
    bad = Migration(len(migrations()) + 1, "bad", f"CREATE TABLE made (id INTEGER);\n{broken}\n")
    steps = [*migrations(), bad]
    monkeypatch.setattr(migrate_module, "migrations", lambda: steps)
    with pytest.raises((sqlite3.Error, ValueError)):
        migrate(database, CLOCK)
    with closing(database.connect()) as connection:
        assert "made" not in names(connection)
        assert not is_current(connection)


@pytest.mark.parametrize(
    ("sql", "count"),
    [
        ("", 0),
        ("-- only a note; with a semicolon\n", 0),
        ("SELECT 1;", 1),
        ("SELECT 1; -- a note\nSELECT\n  2;\n-- the end\n", 2),
        ("INSERT INTO t VALUES ('a;\nb');\nSELECT 1;", 2),
    ],
)
def test_a_file_is_split_into_its_statements(sql: str, count: int) -> None:
    assert len(statements(sql)) == count


def test_a_statement_without_its_semicolon_is_not_dropped_silently() -> None:
    with pytest.raises(ValueError, match="without its semicolon"):
        statements("SELECT 1;\nCREATE TABLE t (id)")
