"""What every command stands on: the settings, the store for the time of one command, exit statuses."""

import asyncio
import enum
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Annotated, TypeVar

import typer

from automna_proxy.settings import SettingError, Settings
from automna_proxy.terminal import PROGRAM, OutputError, note
from metering.clock import SystemClock
from metering.errors import Refused
from metering.grants import GrantError
from metering.objects import NoSuchObjectError, ObjectsError
from metering.outbox import NoSuchMessageError, OutboxError
from metering.plans import Plans, PlansFileError, load_plans
from metering.prices import PriceFileError
from metering.reports import QuestionError
from metering.store.backup import BackupError
from metering.store.database import Database, DatabaseUrlError
from metering.store.migrate import SchemaTooNewError, is_current, migrate
from metering.store.serving import StoreInUseError
from metering.store.store import Store, open_store
from metering.store.trouble import explained
from metering.terms import TermsError
from metering.users import DirectoryError, NotFoundError

T = TypeVar("T")

CLOCK = SystemClock()

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
UserId = Annotated[str, typer.Argument(metavar="USER", help="The user's id.", show_default=False)]


class Status(enum.IntEnum):
    """How a command ends."""

    OK = 0
    NO = 1
    USAGE = 2
    NOT_FOUND = 3
    STORE = 4
    CONFIGURATION = 5


class CommandError(Exception):
    """A command cannot do what was asked: one line for the operator, and the exit status."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


_STATUS_OF_ERROR: tuple[tuple[type[Exception], Status], ...] = (
    (NotFoundError, Status.NOT_FOUND),
    (DirectoryError, Status.NO),
    (GrantError, Status.NO),
    (NoSuchMessageError, Status.NOT_FOUND),
    (OutboxError, Status.NO),
    (NoSuchObjectError, Status.NOT_FOUND),
    (ObjectsError, Status.NO),
    (BackupError, Status.NO),
    (OutputError, Status.NO),
    (StoreInUseError, Status.STORE),
    (QuestionError, Status.USAGE),
    (TermsError, Status.USAGE),
    (SettingError, Status.CONFIGURATION),
    (PlansFileError, Status.CONFIGURATION),
    (PriceFileError, Status.CONFIGURATION),
    (DatabaseUrlError, Status.CONFIGURATION),
    (SchemaTooNewError, Status.STORE),
    (sqlite3.Error, Status.STORE),
    (Refused, Status.STORE),
)


def status_of(error: Exception) -> Status | None:
    """The exit status of an error that an operator can mend; None for a defect of ours."""
    if isinstance(error, CommandError):
        return error.status
    return next((status for kind, status in _STATUS_OF_ERROR if isinstance(error, kind)), None)


def current_settings() -> Settings:
    """From the environment. Raises SettingError."""
    return Settings.from_env(os.environ)


def current_plans() -> Plans:
    """Raises SettingError, PlansFileError."""
    return load_plans(current_settings().plans_path)


def current_database() -> Database:
    """Raises SettingError, DatabaseUrlError."""
    settings = current_settings()
    return Database.from_url(settings.database_url, busy_timeout_s=settings.store_busy_timeout_s)


def with_store(work: Callable[[Store], Awaitable[T]], *, is_first_use: bool = False) -> T:
    """Run `work` on the store and close it. With `is_first_use`, a store that does not exist yet is made.

    A server may run on the same store meanwhile. Raises CommandError and what `work` raises.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # what is wrong is said once, in one line
    database = current_database()
    if is_first_use and _is_missing(database):
        make_store(database)
        note(f"made a new store at {database.path}")
    _require_schema(database)
    return asyncio.run(_on_store(database, work))


def make_store(database: Database) -> list[str]:
    """Bring the store's schema up to date; the names of the steps. Raises CommandError, SchemaTooNewError."""
    try:
        return migrate(database, CLOCK)
    except (OSError, sqlite3.Error) as error:
        raise unusable(database, error) from error


def require_store(database: Database) -> None:
    """Raises CommandError when there is none, whatever its schema would be."""
    if _is_missing(database):
        raise CommandError(
            Status.STORE,
            f"there is no store at {database.path}: set DATABASE_URL to yours, or make one by `{PROGRAM} migrate`",
        )


async def _on_store(database: Database, work: Callable[[Store], Awaitable[T]]) -> T:
    async with open_store(database) as store:
        try:
            return await work(store)
        except Refused as error:
            detail = error.__cause__ or store.writer.trouble or error.message
            raise unusable(database, detail) from error
        except sqlite3.Error as error:
            raise unusable(database, error) from error


def _is_missing(database: Database) -> bool:
    try:
        return not database.path.exists() or not database.path.stat().st_size
    except OSError as error:
        raise unusable(database, error) from error


def _require_schema(database: Database) -> None:
    """The commands do not migrate a store that is in use: `migrate` and `serve` do."""
    require_store(database)
    try:
        with closing(sqlite3.connect(database.path, timeout=database.busy_timeout_s)) as connection:
            is_usable = is_current(connection)
    except sqlite3.Error as error:
        raise unusable(database, error) from error
    if not is_usable:
        raise CommandError(
            Status.STORE,
            f"the schema of the store at {database.path} is not this version's: run `{PROGRAM} migrate`",
        )


def unusable(database: Database, detail: object) -> CommandError:
    """What is said of a store in trouble: once, with what can be done about it."""
    text = explained(detail) if isinstance(detail, BaseException) else detail
    return CommandError(Status.STORE, f"the store at {database.path} cannot be used: {text}")
