"""`backup` and `restore`: the whole store as one file, and back."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from automna_proxy.commands.session import CommandError, Json, Status, current_database, require_store
from automna_proxy.terminal import note, say, show_json
from metering import backup as backups
from metering.clock import instant

NoVerify = Annotated[
    bool,
    typer.Option("--no-verify", help="Do not read every page and recompute the ledger of the copy."),
]


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to make.", show_default=False)],
    is_forced: Annotated[bool, typer.Option("--force", help="Replace FILE when it exists.")] = False,
    is_unverified: NoVerify = False,
    as_json: Json = False,
) -> None:
    """Copy the store to one file, as it is at this instant, beside a running server.

    FILE appears when the copy is whole, verified and on the disk; otherwise there is none. It holds what the store
    holds (hashes of tokens, usage, e-mail addresses), readable by its owner only. A disk that is lost takes FILE
    with it: carry it elsewhere.

    Example: automna-proxy backup /backups/ledger-2026-11-20.db
    """
    database = current_database()
    require_store(database)
    with _said(f"cannot copy {database.path} to {file}"):
        contents = backups.back_up(database, file, may_replace=is_forced, is_verified=not is_unverified)
    _show(file, contents, "backed up to", as_json=as_json)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `backup` made.", show_default=False)],
    is_forced: Annotated[
        bool, typer.Option("--force", help="Replace the store that is there. It is gone then.")
    ] = False,
    is_unverified: NoVerify = False,
    as_json: Json = False,
) -> None:
    """Make a backup the store that DATABASE_URL names. Stop the server first: a store in use is refused.

    All of it or, on any error, nothing. What happened after the backup is not in the books, and is undone: tokens
    revoked since then are good again, tokens made since then are unknown.

    Example: automna-proxy restore /backups/ledger-2026-11-20.db --force
    """
    database = current_database()
    with _said(f"cannot restore {database.path} from {file}"):
        contents = backups.restore(file, database, may_replace=is_forced, is_verified=not is_unverified)
    _show(database.path, contents, "restored", as_json=as_json)
    if contents.held_reservations:
        note(
            f"{contents.held_reservations:,} requests were under way: the next server books them at their "
            "estimates once it finds their workers dead"
        )


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Trouble with a file or the disk becomes one line that names both files."""
    try:
        yield
    except OSError as error:
        raise CommandError(Status.NO, f"{what}: {error.strerror or error}") from error
    except sqlite3.Error as error:
        raise CommandError(Status.STORE, f"{what}: {error}") from error


def _show(path: Path, contents: backups.Contents, done: str, *, as_json: bool) -> None:
    newest_at = None if contents.newest_at_ms is None else instant(contents.newest_at_ms)
    if as_json:
        show_json({"file": str(path), **_as_json(contents), "newest_entry_at": newest_at})
        return
    newest = f"the newest is {contents.newest_seq} of {newest_at}" if newest_at else "none yet"
    say(
        f"{done} {path}: {contents.size_bytes:,} bytes, schema {contents.schema_version}, "
        f"{contents.users:,} users, {contents.gateway_tokens:,} tokens, {contents.entries:,} entries ({newest}), "
        f"{contents.held_reservations:,} reservations held; {'verified' if contents.is_verified else 'NOT verified'}"
    )


def _as_json(contents: backups.Contents) -> dict[str, Any]:
    return {name: value for name, value in asdict(contents).items() if name != "newest_at_ms"}
