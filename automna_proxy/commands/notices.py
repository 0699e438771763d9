"""`notices` and `outbox`: which budgets are running out, and whether others were told."""

from typing import Annotated

import typer

from automna_proxy.commands.session import CLOCK, Json, with_store
from automna_proxy.tables import Table, to_the_second
from automna_proxy.terminal import say, show, show_json
from metering.clock import month_of
from metering.money import credits_of
from metering.notices import LISTED_MAX as NOTICES_LISTED_MAX
from metering.notices import Notice, notices_of
from metering.outbox import LISTED_MAX, Message, Outbox
from metering.store.store import Store
from metering.users import Directory

app = typer.Typer(no_args_is_help=True, help="Budgets of which 50, 80 or 100 % are used.")
outbox_app = typer.Typer(no_args_is_help=True, help="Webhooks on their way to other systems.")


@app.command("list")
def list_notices(
    user_id: Annotated[
        str | None, typer.Argument(metavar="[USER]", help="Only this user's.", show_default=False)
    ] = None,
    limit: Annotated[
        int, typer.Option("-n", "--limit", min=1, max=NOTICES_LISTED_MAX, help="Shown at most.")
    ] = 100,
    as_json: Json = False,
) -> None:
    """Show the thresholds reached this month, newest first, and whether they were told."""

    async def work(store: Store) -> list[Notice]:
        if user_id is not None:
            await Directory(store, CLOCK).user(user_id)
        return await notices_of(store.readers, month_of(CLOCK.now_ms()), user_id, at_most=limit)

    notices = with_store(work)
    if as_json:
        show_json({"notices": [notice.as_json() for notice in notices]})
        return
    show(
        Table(
            "Thresholds reached this month, newest first",
            ("at", "user", "%", "used", "limit", "plan", "told"),
            [
                (
                    to_the_second(each.at_ms),
                    each.user_id,
                    each.threshold_percent,
                    credits_of(each.used_nanousd),
                    credits_of(each.limit_nanousd),
                    each.plan,
                    each.state,
                )
                for each in notices
            ],
            note="none",
            left_out_first=("plan",),
        )
    )


@outbox_app.command("list")
def list_outbox(
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=LISTED_MAX, help="Shown at most.")] = 50,
    as_json: Json = False,
) -> None:
    """Show the newest messages: those that wait, were delivered within a week, or given up."""

    async def work(store: Store) -> list[Message]:
        return await Outbox(store, CLOCK).newest(at_most=limit)

    messages = with_store(work)
    if as_json:
        show_json({"messages": [message.as_json() for message in messages]})
        return
    show(
        Table(
            "Outbox, newest first",
            ("at", "id", "kind", "to", "state", "attempts", "last error"),
            [
                (
                    to_the_second(each.created_at_ms),
                    each.id,
                    each.kind,
                    each.endpoint,
                    each.state,
                    each.attempts,
                    each.last_error,
                )
                for each in messages
            ],
            note="empty",
            left_out_first=("to", "kind"),
        )
    )


@outbox_app.command()
def retry(
    message_id: Annotated[str, typer.Argument(metavar="ID", help="As `outbox list` shows it.")],
    as_json: Json = False,
) -> None:
    """Send a message again that is not delivered, at once and with all its attempts; given up or not.

    Example: automna-proxy outbox retry msg_019abc...
    """

    async def work(store: Store) -> Message:
        return await Outbox(store, CLOCK).retry(message_id)

    message = with_store(work)
    if as_json:
        show_json(message.as_json())
        return
    say(f"{message.id} is sent again by a server that runs with its settings")
