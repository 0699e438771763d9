"""`objects`: whose is what a vendor keeps, and taking it from them."""

import sys
from typing import Annotated

import typer

from automna_proxy.commands.session import CLOCK, CommandError, Json, Status, current_settings, with_store
from automna_proxy.tables import Table, to_the_second
from automna_proxy.terminal import say, show, show_json
from metering.errors import Reason, Refused
from metering.objects import LISTED_MAX, ObjectId, Objects, OwnedObject, owned, owned_objects
from metering.orphans import Orphan, Sweep
from metering.store.store import Store
from metering.users import Directory
from proxy.ownership import object_id
from routes import SURFACES

app = typer.Typer(
    no_args_is_help=True, help="What vendors keep for users in the shared account: whose it is."
)

Vendor = Annotated[
    str, typer.Argument(metavar="VENDOR", help="As `objects list` shows it: agentmail.", show_default=False)
]
Kind = Annotated[
    str, typer.Argument(metavar="KIND", help="As `objects list` shows it: inbox.", show_default=False)
]
UpstreamId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="The vendor's id; an address is found in any case.", show_default=False
    ),
]


@app.command("list")
def list_objects(
    user_id: Annotated[
        str | None, typer.Argument(metavar="[USER]", help="Only this user's.", show_default=False)
    ] = None,
    *,
    vendor: Annotated[str | None, typer.Option(help="Only this vendor's: openai, agentmail.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only of this kind: response, item, inbox, pod.")] = None,
    is_gone: Annotated[bool, typer.Option("--gone", help="Only what its user has deleted.")] = False,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=LISTED_MAX, help="Shown at most.")] = 50,
    as_json: Json = False,
) -> None:
    """List who owns what, newest first: by user, vendor and kind.

    Example: automna-proxy objects list alice --vendor agentmail --kind inbox
    """

    async def work(store: Store) -> list[OwnedObject]:
        if user_id is not None:
            await Directory(store, CLOCK).user(user_id)
        return await owned_objects(
            store.readers, user_id=user_id, vendor=vendor, kind=kind, is_gone=is_gone, at_most=limit
        )

    found = with_store(work)
    if as_json:
        show_json({"objects": [each.as_json() for each in found]})
        return
    show(
        Table(
            "Objects at vendors, newest first",
            ("since", "user", "vendor", "kind", "id", "gone", "request"),
            [
                (
                    to_the_second(each.created_at_ms),
                    each.user_id,
                    each.id.vendor,
                    each.id.kind,
                    each.id.upstream_id,
                    _gone(each),
                    each.reservation_id,
                )
                for each in found
            ],
            note="none",
            left_out_first=("request", "since", "gone"),
        )
    )


@app.command("show")
def show_object(vendor: Vendor, kind: Kind, upstream_id: UpstreamId, as_json: Json = False) -> None:
    """Show who owns an object, since when, and the request that handed it out (`ledger show` tells more of it).

    Example: automna-proxy objects show agentmail inbox wren@agentmail.to
    """
    found = _owned(object_id(SURFACES, vendor, kind, upstream_id))
    if as_json:
        show_json(found.as_json())
        return
    facts = (
        ("user", found.user_id),
        ("since", to_the_second(found.created_at_ms)),
        ("request", found.reservation_id),
        ("gone", _gone(found)),
    )
    show(Table(f"Object {found.id}", ("fact", "value"), facts))


@app.command()
def release(
    vendor: Vendor,
    kind: Kind,
    upstream_id: UpstreamId,
    is_sure: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Take an object from its owner, at once on every worker: when it is somebody else's, or no longer at the vendor.

    It is nobody's then, and belongs to whom the vendor hands it out to next, even the same user: take it away there
    first. An address that was deleted may come to be another user's. Refused while its owner has requests under way.

    Example: automna-proxy objects release openai response resp_1 --yes
    """
    found = _owned(object_id(SURFACES, vendor, kind, upstream_id))
    if not is_sure:
        _ask(found)

    async def work(store: Store) -> None:
        await Objects(store, CLOCK).release(found.id, found.user_id)

    with_store(work)
    if as_json:
        show_json(found.as_json())
    else:
        say(f"released {found.id}, which was {found.user_id}'s since {to_the_second(found.created_at_ms)}")


@app.command()
def sweep(
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would be bound.")] = False,
    as_json: Json = False,
) -> None:
    """Look through the accounts at vendors for objects without an owner, and bind those of which it is known whose they are.

    Servers do it by themselves every SWEEP_EVERY_S. It needs the vendors' keys, as `serve` does; a vendor without one is left out.

    Example: automna-proxy objects sweep --dry-run
    """
    from automna_proxy.service import swept_once  # noqa: PLC0415 - other commands start faster without

    settings = current_settings()

    async def work(store: Store) -> list[Sweep]:
        try:
            return await swept_once(settings, store, CLOCK, is_dry=is_dry)
        except Refused as refused:
            if refused.reason is Reason.STORE_UNAVAILABLE:
                raise
            raise CommandError(Status.NO, refused.message) from refused
        except ValueError as error:
            raise CommandError(Status.CONFIGURATION, str(error)) from error

    found = with_store(work)
    if as_json:
        show_json({"sweeps": [each.as_json() for each in found]})
        return
    for each in found:
        lines = [_orphan_cells(each, orphan) for orphan in each.orphans]
        rest = "" if each.is_whole else ", and there are more"
        title = f"{each.vendor}: {each.looked_at:,} of kind {each.kind} looked at{rest}; without an owner"
        show(Table(title, ("vendor", "kind", "id", "state", "user", "request"), lines, note="none"))


def _orphan_cells(sweep: Sweep, orphan: Orphan) -> tuple[str | None, ...]:
    shown = orphan.as_json()
    return (sweep.vendor, sweep.kind, shown["id"], shown["state"], shown["user"], shown["request"])


def _owned(one: ObjectId) -> OwnedObject:
    async def work(store: Store) -> OwnedObject:
        return await owned(store.readers, one)

    return with_store(work)


def _ask(found: OwnedObject) -> None:
    """Raises CommandError when nobody says yes."""
    if not sys.stdin.isatty():
        raise CommandError(Status.USAGE, f"{found.id} is {found.user_id}'s: expected --yes to release it")
    if not typer.confirm(f"{found.id} is {found.user_id}'s. Release it?", err=True):
        raise CommandError(Status.NO, "nothing is changed")


def _gone(one: OwnedObject) -> str | None:
    return None if one.gone_at_ms is None else to_the_second(one.gone_at_ms)
