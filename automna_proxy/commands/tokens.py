"""`token`: gateway tokens. A new one is printed once, alone, on standard output."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
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
from automna_proxy.commands.session import CLOCK, CommandError, Json, Status, UserId, with_store
from automna_proxy.commands.times import duration_s, future_ms
from automna_proxy.tables import Table, to_the_second
from automna_proxy.terminal import note, say, show, show_json
from metering.caps import CapState, states_of
from metering.store.store import Store
from metering.terms import LIMIT_KEYS, caps_of_token, parse_limits, parse_scope
from metering.users import (
    SHOWN_PREFIX_CHARS,
    TOKEN_PREFIX,
    TOKENS_LISTED_MAX,
    Directory,
    GatewayToken,
    hash_of,
)

app = typer.Typer(no_args_is_help=True, help="Gateway tokens: what an agent uses as its API key everywhere.")

Patterns = Annotated[
    list[str] | None,
    typer.Option(help="Only what matches this pattern; may be given several times.", show_default=False),
]
Limit = Annotated[int | None, typer.Option(help="Of this token, beside the plan's.", show_default=False)]
TokenRef = Annotated[
    str,
    typer.Argument(
        metavar="TOKEN",
        help="The token's id or prefix as `token list` shows them, or the token itself.",
        show_default=False,
    ),
]


@app.command()
def create(
    user_id: UserId,
    *,
    label: Annotated[str | None, typer.Option(help="A name for people: which machine has it.")] = None,
    expires: Annotated[
        str | None,
        typer.Option(help="After 12h, 30d or 2w; or on 2026-12-31 (00:00 UTC) or at an RFC 3339 time."),
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN", help="Make it a child of this token: it dies with it and never exceeds it."
        ),
    ] = None,
    surface: Patterns = None,
    operation: Patterns = None,
    model: Patterns = None,
    credits_per_day: CreditsPerDay = None,
    credits_per_month: CreditsPerMonth = None,
    requests_per_day: RequestsPerDay = None,
    requests_per_month: RequestsPerMonth = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    concurrent_requests: Limit = None,
    as_json: Json = False,
) -> None:
    """Create a gateway token. It is shown this once, alone on standard output.

    Without --surface, --operation and --model it may what its user's plan allows.

    Example: OPENCLAW_GATEWAY_TOKEN=$(automna-proxy token create alice --label laptop --expires 90d)

    Example: automna-proxy token create alice --parent amp_Jq3fXw --surface anthropic --model "claude-haiku-*"
    --credits-per-day 500
    """
    scope = parse_scope({"surfaces": surface, "operations": operation, "models": model})
    caps = caps_of_options(credits_per_day, credits_per_month, requests_per_day, requests_per_month)
    rates = (requests_per_minute, tokens_per_minute, concurrent_requests)
    limits = parse_limits(dict(zip(LIMIT_KEYS, rates, strict=True)))
    expires_at_ms = future_ms("--expires", expires, CLOCK.now_ms()) if expires is not None else None

    async def work(store: Store) -> tuple[str, GatewayToken]:
        directory = Directory(store, CLOCK)
        parent_id = None if parent is None else await _id_of(directory, parent)
        return await directory.create_token(
            user_id,
            label=label,
            expires_at_ms=expires_at_ms,
            parent_id=parent_id,
            scope=scope,
            caps=caps,
            limits=limits,
        )

    secret, token = with_store(work)
    note(f"token {token.id} of {token.user_id}, {_until(token)}; it is not shown again")
    if as_json:
        show_json({"token": secret, **token_as_json(token)})
    else:
        say(secret)


@app.command("list")
def list_tokens(user_id: UserId, as_json: Json = False) -> None:
    """List a user's gateway tokens, children below their parents: never the tokens themselves."""

    async def work(store: Store) -> list[GatewayToken]:
        return await Directory(store, CLOCK).tokens(user_id)

    tokens = with_store(work)
    if as_json:
        show_json({"tokens": [token_as_json(token) for token in tokens]})
    else:
        show(tokens_table(f"Gateway tokens of {user_id}", tokens))


@app.command("show")
def show_token(token: TokenRef, as_json: Json = False) -> None:
    """Show a gateway token: its scope, its limits, what its caps have left, and its living children."""

    async def work(store: Store) -> tuple[GatewayToken, list[CapState], int]:
        directory = Directory(store, CLOCK)
        found = await directory.token(await _id_of(directory, token))
        states = await states_of(store.readers, caps_of_token(found.link), CLOCK.now_ms())
        return found, states, len(await directory.living_descendants(found.id))

    found, caps, descendants = with_store(work)
    if as_json:
        states = [cap.as_json() for cap in caps]
        complete = {"living_descendants_is_complete": descendants < TOKENS_LISTED_MAX}
        show_json({**token_as_json(found), "caps": states, "living_descendants": descendants, **complete})
        return
    scope, limits = found.scope.as_json(), found.limits.as_json()
    facts = (
        ("user", found.user_id),
        ("prefix", found.prefix),
        ("label", found.label),
        ("state", state_of(found)),
        ("created", to_the_second(found.created_at_ms)),
        ("expires", to_the_second(found.expires_at_ms) if found.expires_at_ms else None),
        ("parent", found.parent_id),
        ("replaced by", found.successor_id),
        ("living descendants", f"{descendants:,}{' or more' if descendants == TOKENS_LISTED_MAX else ''}"),
        *((name, ", ".join(patterns)) for name, patterns in scope.items()),
        *((f"cap: {name}", state) for name, state in caps_as_facts(caps)),
        *((name.replace("_", " "), f"{limit:,}") for name, limit in limits.items() if limit is not None),
    )
    show(Table(f"Gateway token {found.id}", ("fact", "value"), facts))


@app.command()
def revoke(token: TokenRef, as_json: Json = False) -> None:
    """Revoke a gateway token and all that come from it, within a second on every worker. Streams and websockets are cut off;
    answers in one piece may finish.
    """

    async def work(store: Store) -> GatewayToken:
        directory = Directory(store, CLOCK)
        return await directory.revoke(await _id_of(directory, token))

    revoked = with_store(work)
    if as_json:
        show_json(token_as_json(revoked))
    else:
        say(f"revoked {revoked.id} of {revoked.user_id}")


@app.command()
def rotate(
    token: TokenRef,
    overlap: Annotated[
        str, typer.Option(help="How long the old one still works beside the new one: 90s, 10m, 12h.")
    ] = "0s",
    as_json: Json = False,
) -> None:
    """Replace a gateway token: same user, label, expiry, scope, caps and children. The new one stands alone on
    standard output.

    What its caps have spent stays spent. A token that leaked is better revoked: its children may be somebody else's.

    Example: automna-proxy token rotate amp_Jq3fXw --overlap 10m
    """
    overlap_s = duration_s("--overlap", overlap)

    async def work(store: Store) -> tuple[str, GatewayToken, GatewayToken]:
        directory = Directory(store, CLOCK)
        old_id = await _id_of(directory, token)
        secret, new = await directory.rotate(old_id, overlap_s=overlap_s)
        return secret, new, await directory.token(old_id)

    secret, new, old = with_store(work)
    note(f"token {new.id} of {new.user_id}, {_until(new)}, replaces {old.id}, {_until(old)}")
    if as_json:
        show_json({"token": secret, **token_as_json(new), "replaces": token_as_json(old)})
    else:
        say(secret)


def tokens_table(title: str, tokens: Sequence[GatewayToken]) -> Table:
    prefixes = {token.id: token.prefix for token in tokens}
    rows = [
        (
            token.prefix,
            state_of(token),
            token.label,
            to_the_second(token.created_at_ms),
            to_the_second(token.expires_at_ms) if token.expires_at_ms else None,
            prefixes.get(token.parent_id or ""),
            _terms_of(token),
            token.id,
        )
        for token in _as_tree(tokens)
    ]
    return Table(
        title,
        ("prefix", "state", "label", "created", "expires", "parent", "may", "id"),
        rows,
        note="there are none; create one by `token create USER`",
        left_out_first=("id", "created", "may", "parent"),
    )


def _as_tree(tokens: Sequence[GatewayToken]) -> Iterator[GatewayToken]:
    """Each followed by its children. Those whose parent is not there come first of all."""
    known = {token.id for token in tokens}
    children: dict[str | None, list[GatewayToken]] = defaultdict(list)
    for token in tokens:
        children[token.parent_id if token.parent_id in known else None].append(token)

    def below(parent_id: str | None) -> Iterator[GatewayToken]:
        for token in children[parent_id]:
            yield token
            yield from below(token.id)

    return below(None)


def _terms_of(token: GatewayToken) -> str | None:
    """Scope and caps in a few words."""
    lists = [f"{name} {' '.join(patterns)}" for name, patterns in token.scope.as_json().items()]
    caps = [f"{cap.limit:,} {cap.meter.value} a {cap.period.value}" for cap in token.caps]
    return "; ".join((*lists, *caps)) or None


def state_of(token: GatewayToken) -> str:
    return token.state(CLOCK.now_ms())


def token_as_json(token: GatewayToken) -> dict[str, Any]:
    return token.as_json(CLOCK.now_ms())


async def _id_of(directory: Directory, given: str) -> str:
    """Somebody who revokes a leaked token has the token at hand: never say it again in an error."""
    if not given.startswith(TOKEN_PREFIX) or len(given) <= SHOWN_PREFIX_CHARS:
        return (await directory.token(given)).id
    credential = await directory.credential(hash_of(given))
    if credential is None:
        raise CommandError(
            Status.NOT_FOUND,
            f"there is no gateway token {given[:SHOWN_PREFIX_CHARS]}… (see `token list USER`)",
        )
    return credential.token_id


def _until(token: GatewayToken) -> str:
    return f"works until {to_the_second(token.expires_at_ms)}" if token.expires_at_ms else "does not expire"
