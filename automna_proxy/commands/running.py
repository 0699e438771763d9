"""`serve`, `demo` and `migrate`: what makes or keeps something running."""

import sqlite3
from typing import Annotated

import typer

from automna_proxy.commands.session import (
    CommandError,
    Json,
    Status,
    current_database,
    current_settings,
    make_store,
    unusable,
)
from automna_proxy.terminal import say, show_json

PORT_MAX = 65_535
WORKERS_MAX = 256


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=PORT_MAX, help="0: any free one, named in the log.")] = 8080,
    workers: Annotated[int, typer.Option(min=1, max=WORKERS_MAX, help="Processes, one core each.")] = 1,
) -> None:
    """Serve until stopped. Migrates the store first.

    Settings come from the environment: `automna-proxy settings` lists them. SIGTERM or Ctrl-C: not ready
    for DRAIN_NOTICE_S while still serving, then running streams finish, the ledger is flushed, exit 0.

    Example: ANTHROPIC_API_KEY=... automna-proxy serve --host 0.0.0.0 --workers 4
    """
    from automna_proxy import server  # noqa: PLC0415 - other commands start faster without

    settings, database = current_settings(), current_database()
    try:
        status = server.serve(settings, host=host, port=port, workers=workers)
    except (sqlite3.Error, OSError) as error:
        raise unusable(database, error) from error
    except server.ListenError as error:
        raise CommandError(Status.CONFIGURATION, str(error)) from error
    raise typer.Exit(status)


def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the demonstration.")] = False,
) -> None:
    """See it work: the proxy on a temporary store and free ports, with simulated vendors and a real client.

    No key is needed, and none of the environment's is used.
    """
    from automna_proxy.demo import run  # noqa: PLC0415 - the simulators are loaded for nobody else

    raise typer.Exit(run(once=once))


def migrate(as_json: Json = False) -> None:
    """Bring the store's schema up to date, making the store if there is none. `serve` does it by itself."""
    database = current_database()
    applied = make_store(database)
    if as_json:
        show_json({"store": str(database.path), "applied": applied})
    else:
        say(f"{database.path}: {'applied ' + ', '.join(applied) if applied else 'up to date'}")
