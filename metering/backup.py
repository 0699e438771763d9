"""Backup and restore of the whole store: copied, looked at, and only then given its place.

What a copy is worth shows when it is read: so every page of it is, and its ledger is recomputed, before `backup`
says that there is one, and again before and after `restore` puts it back.
"""

from contextlib import closing
from pathlib import Path

from metering.store.backup import BackupError, check, new_copy, put_back
from metering.store.database import Database
from metering.store.migrate import migrations
from metering.values import immutable
from metering.verify import verify_file

SELECT_COUNTS = """
SELECT (SELECT COUNT(*) FROM users), (SELECT COUNT(*) FROM gateway_tokens), (SELECT COUNT(*) FROM entries),
    (SELECT COUNT(*) FROM reservations WHERE state = 'HELD'), (SELECT COALESCE(MAX(seq), 0) FROM entries),
    (SELECT at_ms FROM entries ORDER BY seq DESC LIMIT 1)"""


@immutable
class Contents:
    """What a store or a copy of one holds."""

    schema_version: int
    size_bytes: int
    users: int
    gateway_tokens: int
    entries: int
    held_reservations: int
    """Of requests that were under way. Their workers are not alive after a restore: they expire."""
    newest_seq: int
    newest_at_ms: int | None
    """Of the newest entry; what came later is not in the copy."""
    is_verified: bool
    """Pages and ledger. False when it was not wanted, or the schema is not this version's."""


def back_up(source: Database, target: Path, *, may_replace: bool, is_verified: bool = True) -> Contents:
    """Copy the store, while a server writes it, to a file that appears when it is whole and sound.

    Raises BackupError (with DamagedError), SchemaTooNewError, OSError, sqlite3.Error; then nothing is left.
    """
    with new_copy(source, target, may_replace=may_replace) as copy:
        return look_at(copy, is_verified=is_verified)


def restore(copy: Path, target: Database, *, may_replace: bool, is_verified: bool = True) -> Contents:
    """Make a copy the store that `target` names. Refuses a damaged copy, and a store that anybody has open.

    Raises BackupError (with DamagedError), SchemaTooNewError, OSError, sqlite3.Error.
    """
    look_at(copy, is_verified=is_verified)
    put_back(copy, target, may_replace=may_replace)
    return look_at(target.path, is_verified=is_verified)


def look_at(path: Path, *, is_verified: bool) -> Contents:
    """Read a file as a store. Raises DamagedError, BackupError, SchemaTooNewError, OSError, sqlite3.Error."""
    version = check(path, is_every_page_read=is_verified)
    is_current = version == migrations()[-1].version
    if is_verified and is_current:
        report = verify_file(Database(path))
        if not report.is_clean:
            raise BackupError(
                f"the ledger in {path} does not add up: {report.problems_total} problems, "
                f"the first: {report.problems[0]}"
            )
    with closing(Database(path).connect_read_only()) as connection:
        users, gateway_tokens, entries, held, newest_seq, newest_at_ms = connection.execute(
            SELECT_COUNTS
        ).fetchone()
    return Contents(
        schema_version=version,
        size_bytes=path.stat().st_size,
        users=users,
        gateway_tokens=gateway_tokens,
        entries=entries,
        held_reservations=held,
        newest_seq=newest_seq,
        newest_at_ms=newest_at_ms,
        is_verified=is_verified and is_current,
    )
