"""`credit`: prepaid credit beside the month's allowance."""

from typing import Annotated

import typer

from automna_proxy.commands.session import CLOCK, CommandError, Json, Status, UserId, with_store
from automna_proxy.tables import Table, to_the_second
from automna_proxy.terminal import say, show, show_json
from metering.grants import (
    GRANTS_MAX,
    Grant,
    Granted,
    credit_as_json,
    credit_of,
    credits_of_users,
    grant,
    grants_of,
)
from metering.ledger import Balance
from metering.money import CREDIT_NANOUSD, nanousd_of_usd, usd
from metering.store.store import Store
from metering.users import Directory

app = typer.Typer(
    no_args_is_help=True, help="Prepaid credit: spent after the month's allowance, never twice granted."
)

Credits = Annotated[int | None, typer.Option("--credits", min=1, help="Credits of 100 micro-USD.")]
Usd = Annotated[str | None, typer.Option("--usd", help="USD, up to nine decimals: 4.99.")]
Source = Annotated[
    str,
    typer.Option(
        help="What it is for: an invoice, a payment's event. The same source is done once, however often it is said.",
        show_default=False,
    ),
]
Note = Annotated[str | None, typer.Option(help="For people.")]


@app.command("grant")
def grant_credit(
    user_id: UserId,
    *,
    source: Source,
    credits_: Credits = None,
    usd_: Usd = None,
    note: Note = None,
    as_json: Json = False,
) -> None:
    """Grant prepaid credit, usable within a second on every worker. Repeating it is safe.

    Example: automna-proxy credit grant alice --usd 20 --source stripe:evt_1
    """
    _book(user_id, _amount(credits_, usd_), source, note, as_json=as_json)


@app.command()
def revoke(
    user_id: UserId,
    *,
    source: Source,
    credits_: Credits = None,
    usd_: Usd = None,
    note: Note = None,
    as_json: Json = False,
) -> None:
    """Take credit back, as when a purchase is refunded: what is spent or held by requests is not there to take.

    It has a source of its own, and repeating it is safe.

    Example: automna-proxy credit revoke alice --usd 20 --source stripe:re_1
    """
    _book(user_id, -_amount(credits_, usd_), source, note, as_json=as_json)


@app.command("list")
def list_credit(
    user_id: Annotated[
        str | None, typer.Argument(metavar="[USER]", help="Only this user's.", show_default=False)
    ] = None,
    limit: Annotated[
        int, typer.Option("-n", "--limit", min=1, max=GRANTS_MAX, help="Grants shown at most.")
    ] = 50,
    as_json: Json = False,
) -> None:
    """Show how much was granted, spent and is left, and the newest grants."""

    async def work(store: Store) -> tuple[dict[str, Balance], list[Grant]]:
        if user_id is None:
            balances = await credits_of_users(store.readers)
        else:
            user = await Directory(store, CLOCK).user(user_id)
            balances = {user.id: await credit_of(store.readers, user.id)}
        return balances, await grants_of(store.readers, user_id, grants_max=limit)

    balances, grants = with_store(work)
    if as_json:
        show_json(
            {
                "balances": [{"user": user, **credit_as_json(credit)} for user, credit in balances.items()],
                "grants": [each.as_json() for each in grants],
            }
        )
        return
    show(_balances_table(balances))
    show(
        Table(
            "Grants, newest first",
            ("at", "user", "USD", "source", "note"),
            [
                (to_the_second(each.at_ms), each.user_id, usd(each.amount_nanousd), each.source, each.note)
                for each in grants
            ],
            note="there are none; make one by `credit grant USER`",
            left_out_first=("note",),
        )
    )


def credit_in_words(credit: Balance) -> str:
    """One line for a user's facts."""
    if not credit.allowance and not credit.spent:
        return "none"
    shown = credit_as_json(credit)
    return f"{shown['left']:,} left of {shown['granted']:,}, {shown['spent']:,} spent, {shown['held']:,} held"


def _balances_table(balances: dict[str, Balance]) -> Table:
    rows = []
    for user, credit in balances.items():
        shown = credit_as_json(credit)
        left_usd = usd(shown["left_nanousd"])
        rows.append((user, shown["granted"], shown["spent"], shown["held"], shown["left"], left_usd))
    return Table(
        "Prepaid credit",
        ("user", "granted", "spent", "held", "left", "left USD"),
        rows,
        note="nobody has any",
    )


def _amount(credits_: int | None, usd_: str | None) -> int:
    """In nano-USD."""
    if (credits_ is None) == (usd_ is None):
        given = "both" if credits_ is not None else "neither"
        raise CommandError(Status.USAGE, f"amount: given {given}, expected either --credits N or --usd X")
    if credits_ is not None:
        return credits_ * CREDIT_NANOUSD
    nanousd = nanousd_of_usd(usd_ or "")
    if not nanousd:
        raise CommandError(
            Status.USAGE, f"--usd: given {usd_!r}, expected more than 0, with up to nine decimals: 20 or 4.99"
        )
    return nanousd


def _book(user_id: str, amount_nanousd: int, source: str, note: str | None, *, as_json: bool) -> None:
    async def work(store: Store) -> tuple[Granted, Balance]:
        granted = await grant(store, CLOCK, user_id, amount_nanousd, source=source, note=note)
        return granted, await credit_of(store.readers, user_id)

    granted, credit = with_store(work)
    done = "granted" if amount_nanousd > 0 else "revoked"
    if as_json:
        show_json(
            {**granted.grant.as_json(), "is_new": granted.is_new, "prepaid_credit": credit_as_json(credit)}
        )
        return
    words = f"{done} USD {usd(abs(amount_nanousd))} " + ("to" if amount_nanousd > 0 else "from")
    if not granted.is_new:
        words = f"{done} already at {to_the_second(granted.grant.at_ms)}, nothing is changed: {words}"
    say(f"{words} {user_id} (source {source}); prepaid credit: {credit_in_words(credit)}")
