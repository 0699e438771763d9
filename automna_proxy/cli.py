"""The command `automna-proxy`: its tree, and how it ends.

An error that an operator can mend is one line on standard error and an exit status that says its kind;
tracebacks are for defects, and never show values of variables: they might be secrets.
"""

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from automna_proxy.commands import (
    backup,
    catalog,
    credit,
    ledger,
    machines,
    notices,
    objects,
    phones,
    running,
    tokens,
    users,
)
from automna_proxy.commands.session import Status, status_of
from automna_proxy.terminal import PROGRAM, note, say

EPILOG = f"""\
Exit status: {Status.OK.value} done; {Status.NO.value} the answer is no (refused, or the ledger is not clean);
{Status.USAGE.value} wrong usage; {Status.NOT_FOUND.value} no such user, token, object, machine or model;
{Status.STORE.value} the store is missing, not migrated or unavailable; {Status.CONFIGURATION.value} a setting,
the plans or the price table cannot be used."""


class Commands(TyperGroup):
    """All commands: an expected error becomes its line and its status here, once for all of them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UnicodeEncodeError as error:  # bytes on the command line that are no text
            note(f"expected UTF-8 on the command line, given {error.object!r}")
            raise typer.Exit(Status.USAGE) from None
        except Exception as error:
            status = status_of(error)
            if status is None:
                raise
            note(str(error))
            raise typer.Exit(status) from None


app = typer.Typer(
    name=PROGRAM,
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
app.command(rich_help_panel="Run")(running.serve)
app.command(rich_help_panel="Run")(running.demo)
app.command(rich_help_panel="Run")(running.migrate)
app.command(rich_help_panel="Run")(catalog.settings)
app.add_typer(users.app, name="user", rich_help_panel="Operate")
app.add_typer(tokens.app, name="token", rich_help_panel="Operate")
app.add_typer(credit.app, name="credit", rich_help_panel="Operate")
app.add_typer(objects.app, name="objects", rich_help_panel="Operate")
app.add_typer(phones.app, name="phone", rich_help_panel="Operate")
app.add_typer(machines.app, name="machine", rich_help_panel="Operate")
app.add_typer(notices.app, name="notices", rich_help_panel="Operate")
app.add_typer(notices.outbox_app, name="outbox", rich_help_panel="Operate")
app.command(rich_help_panel="Operate")(ledger.usage)
app.add_typer(ledger.app, name="ledger", rich_help_panel="Operate")
app.command(rich_help_panel="Operate")(backup.backup)
app.command(rich_help_panel="Operate")(backup.restore)
app.add_typer(catalog.plan_app, name="plan", rich_help_panel="Operate")
app.add_typer(catalog.prices_app, name="prices", rich_help_panel="Operate")


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        say(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A metering proxy for AI agents: one gateway token, every vendor, one durable ledger.

    Commands work on the store that DATABASE_URL names, beside a running server.
    """


def main() -> None:
    """The entry point."""
    app(prog_name=PROGRAM)
