"""`user`: who may call, and on which plan."""

from typing import Annotated, Any

import typer

from automna_proxy.commands.caps import (
    CreditsPerDay,
    CreditsPerMonth,
    RequestsPerDay,
    RequestsPerMonth,
    caps_as_facts,
    caps_of_options,
)
from automna_proxy.commands.credit import credit_in_words
from automna_proxy.commands.session import (
    CLOCK,
    CommandError,
    Json,
    Status,
    UserId,
    current_plans,
    current_settings,
    with_store,
)
from automna_proxy.commands.times import future_ms
from automna_proxy.commands.tokens import token_as_json, tokens_table
from automna_proxy.tables import Table
from automna_proxy.terminal import say, show, show_json
from metering.admission import owner_of
from metering.caps import CapState, states_of
from metering.clock import instant, month_end_ms
from metering.deferred import running_of
from metering.grants import credit_as_json, credit_of
from metering.hooks import Hooks, hook_token
from metering.ledger import Balance
from metering.plans import DEFAULT_PLAN, Plans
from metering.reports import balances_of, credits_as_json
from metering.store.store import Store
from metering.terms import caps_of_user
from metering.users import Directory, GatewayToken, User
from proxy.outbox import EndpointError, parse_url
from routes import SURFACES

app = typer.Typer(no_args_is_help=True, help="Users: who is billed, on which plan.")

PlanName = Annotated[str, typer.Option("--plan", help="The user's plan: see `plan list`.")]


@app.command()
def add(
    user_id: Annotated[str, typer.Argument(metavar="ID", help="A new id: letters, digits, _.@+-")],
    plan: PlanName = DEFAULT_PLAN,
    email: Annotated[str | None, typer.Option(help="For people; not used by the proxy.")] = None,
    as_json: Json = False,
) -> None:
    """Add a user. On a machine without a store yet, this makes it.

    Example: automna-proxy user add alice --plan pro --email alice@example.com
    """
    _known_plan(current_plans(), plan)

    async def work(store: Store) -> User:
        return await Directory(store, CLOCK).add_user(user_id, plan=plan, email=email)

    _report(with_store(work, is_first_use=True), as_json=as_json, done="added")


@app.command("list")
def list_users(as_json: Json = False) -> None:
    """List all users."""

    async def work(store: Store) -> list[User]:
        return await Directory(store, CLOCK).users()

    users = with_store(work)
    if as_json:
        show_json({"users": [user_as_json(user) for user in users]})
        return
    rows = [
        (user.id, user.plan_at(CLOCK.now_ms()), user.status, user.email, instant(user.created_at * 1000))
        for user in users
    ]
    show(
        Table(
            "Users",
            ("id", "plan", "status", "email", "created"),
            rows,
            note="there are none; add one by `user add ID`",
        )
    )


@app.command("show")
def show_user(user_id: UserId, as_json: Json = False) -> None:
    """Show a user with their credits of this month and their gateway tokens."""
    plans = current_plans()

    async def work(
        store: Store,
    ) -> tuple[User, Balance, Balance, Balance, list[CapState], list[GatewayToken]]:
        directory, owner, now_ms = Directory(store, CLOCK), owner_of(user_id), CLOCK.now_ms()
        user, tokens = await directory.user(user_id), await directory.tokens(user_id)
        money, open_requests = await balances_of(store.readers, owner, now_ms)
        prepaid = await credit_of(store.readers, user_id)
        caps = await states_of(store.readers, caps_of_user(owner, user.caps), now_ms)
        return user, money, open_requests, prepaid, caps, tokens

    user, money, open_requests, prepaid, caps, tokens = with_store(work)
    plan = plans.get(user.plan_at(CLOCK.now_ms()))
    # A plan that the plans file no longer has allows nothing.
    credit = credits_as_json(money, plan.allowance_nanousd if plan else 0)
    if as_json:
        show_json(
            {
                **user_as_json(user),
                "credits": credit,
                "prepaid_credit": credit_as_json(prepaid),
                "caps": [cap.as_json() for cap in caps],
                "open_requests": open_requests.held,
                "tokens": [token_as_json(token) for token in tokens],
            }
        )
        return
    facts = (
        ("plan", _plan_in_words(user, plans)),
        ("status", user.status),
        ("email", user.email),
        ("created", instant(user.created_at * 1000)),
        ("credits this month", f"{credit['used']:,} of {credit['limit']:,}, {credit['held']:,} held"),
        ("prepaid credit", credit_in_words(prepaid)),
        ("open requests", str(open_requests.held)),
        *((f"cap: {name}", state) for name, state in caps_as_facts(caps)),
    )
    show(Table(f"User {user.id}", ("fact", "value"), facts))
    show(tokens_table(f"Gateway tokens of {user.id}", tokens))


@app.command()
def set_plan(
    user_id: UserId,
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="See `plan list`.", show_default=False)],
    *,
    at_period_end: Annotated[
        bool, typer.Option("--at-period-end", help="The plan in force stays until the month ends (UTC).")
    ] = False,
    until: Annotated[
        str | None, typer.Option(help="PLAN until then (30d, 2026-12-31, RFC 3339), and --then after it.")
    ] = None,
    then: Annotated[
        str | None, typer.Option("--then", metavar="PLAN", help="The plan after --until.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Move a user to another plan, within a second on every worker. What is spent stays spent.

    A change at a later time needs nobody when it comes. Each call forgets what was arranged before.

    Example: automna-proxy user set-plan alice free --at-period-end
    """
    plans = current_plans()
    _known_plan(plans, plan)
    if (until is None) != (then is None):
        raise CommandError(Status.USAGE, "expected --until TIME and --then PLAN together, given one of them")
    if until is not None and at_period_end:
        raise CommandError(Status.USAGE, "given --at-period-end and --until, expected one of them")
    if then is not None:
        _known_plan(plans, then)
    now_ms = CLOCK.now_ms()
    until_ms = None if until is None else future_ms("--until", until, now_ms)
    month_ends_ms = month_end_ms(now_ms)

    async def work(store: Store) -> User:
        directory = Directory(store, CLOCK)
        if at_period_end:
            return await directory.set_next_plan(user_id, plan, from_ms=month_ends_ms)
        return await directory.set_plan(user_id, plan, until_ms=until_ms, next_plan=then)

    _report(with_store(work), as_json=as_json, done="moved")


@app.command()
def set_cap(
    user_id: UserId,
    *,
    credits_per_day: CreditsPerDay = None,
    credits_per_month: CreditsPerMonth = None,
    requests_per_day: RequestsPerDay = None,
    requests_per_month: RequestsPerMonth = None,
    none: Annotated[bool, typer.Option("--none", help="Take all caps away.")] = False,
    as_json: Json = False,
) -> None:
    """Cap what a user may use beside the plan, within a second on every worker: these caps and no others.

    Example: automna-proxy user set-cap alice --credits-per-day 2000 --requests-per-month 10000
    """
    caps = caps_of_options(credits_per_day, credits_per_month, requests_per_day, requests_per_month)
    if none == bool(caps):
        raise CommandError(Status.USAGE, "expected at least one cap, such as --credits-per-day N, or --none")

    async def work(store: Store) -> User:
        return await Directory(store, CLOCK).set_caps(user_id, caps)

    _report(with_store(work), as_json=as_json, done="capped" if caps else "uncapped")


@app.command()
def set_hook(
    user_id: UserId,
    url: Annotated[
        str | None, typer.Argument(metavar="URL", help="Such as https://machine.example/hooks/agent")
    ] = None,
    *,
    none: Annotated[bool, typer.Option("--none", help="Tell the agent nothing any more.")] = False,
    as_json: Json = False,
) -> None:
    """Where a user's agent is told of mail that came in; shows the token that it will be told under.

    The token is made from HOOKS_SECRET, which `serve` needs too, and stays the same as long as that does.

    Example: automna-proxy user set-hook alice https://alice.example/hooks/agent
    """
    if none == (url is not None):
        raise CommandError(Status.USAGE, "expected a URL, or --none")
    secret = current_settings().hooks_secret
    if not secret:
        raise CommandError(
            Status.USAGE,
            "HOOKS_SECRET is not set: `openssl rand -base64 32` makes one; `serve` needs the same",
        )
    try:
        address = None if url is None else parse_url(url)
    except EndpointError as error:
        raise CommandError(Status.USAGE, f"URL: {error}") from None

    async def work(store: Store) -> None:
        hooks = Hooks(store, CLOCK)
        if address is None:
            await hooks.remove((await Directory(store, CLOCK).user(user_id)).id)
        else:
            await hooks.put(user_id, address)

    with_store(work)
    token = None if address is None else hook_token(secret, user_id)
    if as_json:
        show_json({"user": user_id, "url": address, "token": token})
    elif token is None:
        say(f"{user_id} is told nothing any more")
    else:
        say(f"{user_id} is told at {address}, with the header  Authorization: Bearer {token}")


@app.command()
def disable(user_id: UserId, as_json: Json = False) -> None:
    """Refuse all gateway tokens of a user, within a second on every worker. Streams and websockets are cut off; answers in
    one piece may finish; work that goes on at vendors is ended by the servers, and booked as what the vendor reports.
    """

    async def work(store: Store) -> tuple[User, list[tuple[str, str, int]]]:
        user = await Directory(store, CLOCK).disable(user_id)
        return user, await running_of(store.readers, user_id)

    user, running = with_store(work)
    still = [
        {
            "surface": surface,
            "operation": operation,
            "count": count,
            "is_ended": _can_be_ended(surface, operation),
        }
        for surface, operation, count in running
    ]
    if as_json:
        show_json({**user_as_json(user), "running_at_vendors": still})
        return
    _report(user, as_json=False, done="disabled")
    for one in still:
        what = "is ended" if one["is_ended"] else "cannot be ended, and runs to its end"
        say(f"still running at {one['surface']}: {one['count']} of {one['operation']}, which {what}")


def _can_be_ended(surface: str, operation: str) -> bool:
    return any(
        each.ending is not None
        for known in SURFACES
        if known.name == surface
        for each in known.operations
        if each.name == operation
    )


@app.command()
def enable(user_id: UserId, as_json: Json = False) -> None:
    """Undo `disable`."""

    async def work(store: Store) -> User:
        return await Directory(store, CLOCK).enable(user_id)

    _report(with_store(work), as_json=as_json, done="enabled")


def user_as_json(user: User) -> dict[str, Any]:
    coming = user.coming_plan(CLOCK.now_ms())
    return {
        "id": user.id,
        "email": user.email,
        "plan": user.plan_at(CLOCK.now_ms()),
        "plan_until": None if coming is None else instant(coming[0]),
        "next_plan": None if coming is None else coming[1],
        "status": user.status,
        "created_at": instant(user.created_at * 1000),
        "caps": [cap.as_json() for cap in user.caps],
    }


def _known_plan(plans: Plans, name: str) -> None:
    if name not in plans:
        raise CommandError(
            Status.USAGE, f"plan: given {name!r}, expected one of {', '.join(plans)} (see `plan list`)"
        )


def _plan_in_words(user: User, plans: Plans | None = None) -> str:
    """The plan in force and the one that follows; those that the plans file lacks are marked as such."""

    def named(plan: str) -> str:
        return plan if plans is None or plan in plans else f"{plan} (not in the plans file)"

    now_ms = CLOCK.now_ms()
    words = named(user.plan_at(now_ms))
    if (coming := user.coming_plan(now_ms)) is not None:
        words += f" until {instant(coming[0])}, then {named(coming[1])}"
    return words


def _report(user: User, *, as_json: bool, done: str) -> None:
    if as_json:
        show_json(user_as_json(user))
    else:
        say(f"{done} {user.id} (plan {_plan_in_words(user)}, {user.status})")
