"""Bring the schema up to date: numbered files, each in one transaction, safe when processes race."""

import sqlite3
from importlib import resources

from metering.clock import Clock
from metering.store.database import Database
from metering.values import immutable


class SchemaTooNewError(RuntimeError):
    """The store was migrated by a later version of this program."""


@immutable
class Migration:
    """One numbered step."""

    version: int
    name: str
    sql: str


def migrations() -> list[Migration]:
    """All steps that ship with the package, in order."""
    files = resources.files("metering.store.migrations").iterdir()
    found = [
        Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text(encoding="utf-8"))
        for file in files
        if file.name.endswith(".sql")
    ]
    return sorted(found, key=lambda migration: migration.version)


def migrate(database: Database, clock: Clock) -> list[str]:
    """Apply what is missing; the names applied. Raises SchemaTooNewError, sqlite3.Error."""
    try:
        database.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise sqlite3.OperationalError(f"{database.path.parent}: {error.strerror}") from error
    connection = database.connect()
    try:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations "
            "(version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at_ms INTEGER NOT NULL)"
        )
        return [step.name for step in _known_and_missing(connection) if _apply(connection, step, clock)]
    finally:
        connection.close()


def is_current(connection: sqlite3.Connection) -> bool:
    """Whether every step has been applied. Raises SchemaTooNewError, sqlite3.Error."""
    steps = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'schema_migrations'").fetchone()
    return steps is not None and not _known_and_missing(connection)


def _known_and_missing(connection: sqlite3.Connection) -> list[Migration]:
    version, steps = version_of(connection), migrations()
    if version > steps[-1].version:
        raise SchemaTooNewError(
            f"the store's schema is version {version}, this program knows {steps[-1].version}: upgrade it"
        )
    return [step for step in steps if step.version > version]


def version_of(connection: sqlite3.Connection) -> int:
    """The last step that was applied, 0 before the first. Raises sqlite3.Error when it is no store of ours."""
    row = connection.execute("SELECT COALESCE(MAX(version), 0) FROM schema_migrations").fetchone()
    return int(row[0])


def _apply(connection: sqlite3.Connection, step: Migration, clock: Clock) -> bool:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if version_of(connection) >= step.version:  # another process was faster
            connection.execute("ROLLBACK")
            return False
        for statement in statements(step.sql):
            connection.execute(statement)
        connection.execute(
            "INSERT INTO schema_migrations (version, name, applied_at_ms) VALUES (?1, ?2, ?3)",
            (step.version, step.name, clock.now_ms()),
        )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors roll back by themselves
            connection.execute("ROLLBACK")
        raise
    return True


def statements(sql: str) -> list[str]:
    """The statements of a file. `executescript` would commit each by itself and break the transaction."""
    found, pending = [], ""
    for line in sql.splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            found.append(pending.strip())
            pending = ""
    if any(line.strip() and not line.lstrip().startswith("--") for line in pending.splitlines()):
        raise ValueError(f"a statement without its semicolon: {pending.strip()[:80]!r}")
    return found
