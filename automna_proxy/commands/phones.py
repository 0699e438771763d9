"""`phone`: which user has which phone number."""

from typing import Annotated

import typer

from automna_proxy.commands.session import CLOCK, Json, UserId, with_store
from automna_proxy.tables import Table, to_the_second
from automna_proxy.terminal import say, show, show_json
from metering.objects import ObjectId, Objects, OwnedObject, owned
from metering.phone_numbers import KIND, VENDOR, PhoneNumbers, Term
from metering.store.store import Store

app = typer.Typer(
    no_args_is_help=True,
    help="Phone numbers: whose calls go out from one, and who is billed for those that come in.",
)

PhoneNumber = Annotated[
    str, typer.Argument(metavar="NUMBER", help="In full, as in +14155550100.", show_default=False)
]


@app.command()
def assign(
    user_id: UserId,
    phone_number: PhoneNumber,
    replaces: Annotated[
        bool, typer.Option("--replace", help="Release the number that the user has.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Give a number of the account at Bland to a user: their calls go out from it, and they are billed for calls to it.

    The number must be at Bland already (bought there, or imported from Twilio); nothing is changed there. So that calls to
    it are billed and told without delay, set its webhook there to PUBLIC_URL/api/webhooks/bland/status.

    Example: automna-proxy phone assign alice +14155550100
    """

    async def work(store: Store) -> str | None:
        return await PhoneNumbers(store, CLOCK).assign(user_id, phone_number, replaces=replaces)

    replaced = with_store(work)
    if as_json:
        show_json({"user": user_id, "phone_number": phone_number, "replaced": replaced})
        return
    say(f"{phone_number} is {user_id}'s" + (f"; {replaced} is nobody's any more" if replaced else ""))


@app.command("list")
def list_numbers(
    is_all: Annotated[bool, typer.Option("--all", help="Also who had a number before.")] = False,
    as_json: Json = False,
) -> None:
    """List who has which number.

    Example: automna-proxy phone list --all
    """

    async def work(store: Store) -> list[Term]:
        return await PhoneNumbers(store, CLOCK).terms()

    found = [term for term in with_store(work) if is_all or term.until_ms is None]
    if as_json:
        show_json({"phone_numbers": [term.as_json() for term in found]})
        return
    rows = [
        (
            term.phone_number,
            term.user_id,
            to_the_second(term.from_ms),
            None if term.until_ms is None else to_the_second(term.until_ms),
        )
        for term in found
    ]
    show(Table("Phone numbers", ("number", "user", "from", "until"), rows, note="none"))


@app.command()
def release(phone_number: PhoneNumber, as_json: Json = False) -> None:
    """Take a number from its user, at once on every worker; it can be assigned to another.

    What was called stays with who had the number then, also calls that go on. Refused while its user has requests under way.

    Example: automna-proxy phone release +14155550100
    """
    number = ObjectId(VENDOR, KIND, phone_number)

    async def work(store: Store) -> OwnedObject:
        found = await owned(store.readers, number)
        await Objects(store, CLOCK).release(number, found.user_id)
        return found

    found = with_store(work)
    if as_json:
        show_json({"user": found.user_id, "phone_number": phone_number})
    else:
        say(
            f"released {phone_number}, which was {found.user_id}'s since {to_the_second(found.created_at_ms)}"
        )
