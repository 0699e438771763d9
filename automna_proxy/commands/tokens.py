"""`token`: gateway tokens. A new one is printed once, alone, on standard output."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from automna_proxy.commands.session import CLOCK, CommandError, Json, Status, UserId, with_store
from automna_proxy.commands.times import duration_s, future_ms
from automna_proxy.tables import Table, to_the_second
from automna_proxy.terminal import note, say, show, show_json
from metering.reports import instant
from metering.store.store import Store
from metering.users import SHOWN_PREFIX_CHARS, TOKEN_PREFIX, Directory, GatewayToken, hash_of

app = typer.Typer(no_args_is_help=True, help="Gateway tokens: what an agent uses as its API key everywhere.")

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
    label: Annotated[str | None, typer.Option(help="A name for people: which machine has it.")] = None,
    expires: Annotated[
        str | None,
        typer.Option(help="After 12h, 30d or 2w; or on 2026-12-31 (00:00 UTC) or at an RFC 3339 time."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Create a gateway token. It is shown this once, alone on standard output.

    Example: OPENCLAW_GATEWAY_TOKEN=$(automna-proxy token create alice --label laptop --expires 90d)
    """
    expires_at_ms = future_ms("--expires", expires, CLOCK.now_ms()) if expires is not None else None

    async def work(store: Store) -> tuple[str, GatewayToken]:
        return await Directory(store, CLOCK).create_token(user_id, label=label, expires_at_ms=expires_at_ms)

    secret, token = with_store(work)
    if as_json:
        show_json({"token": secret, **token_as_json(token)})
    else:
        say(secret)
    note(f"token {token.id} of {token.user_id}, {_until(token)}; it is not shown again")


@app.command("list")
def list_tokens(user_id: UserId, as_json: Json = False) -> None:
    """List a user's gateway tokens: never the tokens themselves."""

    async def work(store: Store) -> list[GatewayToken]:
        return await Directory(store, CLOCK).tokens(user_id)

    tokens = with_store(work)
    if as_json:
        show_json({"tokens": [token_as_json(token) for token in tokens]})
    else:
        show(tokens_table(f"Gateway tokens of {user_id}", tokens))


@app.command()
def revoke(token: TokenRef, as_json: Json = False) -> None:
    """Revoke a gateway token, within a second on every worker. Requests in flight finish."""

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
    """Replace a gateway token: same user, label and expiry. The new one stands alone on standard output.

    Example: automna-proxy token rotate amp_Jq3fXw --overlap 10m
    """
    overlap_s = duration_s("--overlap", overlap)

    async def work(store: Store) -> tuple[str, GatewayToken, GatewayToken]:
        directory = Directory(store, CLOCK)
        old_id = await _id_of(directory, token)
        secret, new = await directory.rotate(old_id, overlap_s=overlap_s)
        return secret, new, await directory.token(old_id)

    secret, new, old = with_store(work)
    if as_json:
        show_json({"token": secret, **token_as_json(new), "replaces": token_as_json(old)})
    else:
        say(secret)
    note(f"token {new.id} of {new.user_id}, {_until(new)}, replaces {old.id}, {_until(old)}")


def tokens_table(title: str, tokens: Sequence[GatewayToken]) -> Table:
    rows = [
        (
            token.prefix,
            state_of(token),
            token.label,
            to_the_second(token.created_at_ms),
            to_the_second(token.expires_at_ms) if token.expires_at_ms else None,
            token.id,
        )
        for token in tokens
    ]
    return Table(
        title,
        ("prefix", "state", "label", "created", "expires", "id"),
        rows,
        note="there are none; create one by `token create USER`",
        left_out_first=("id", "created"),
    )


def state_of(token: GatewayToken) -> str:
    if token.revoked_at_ms is not None:
        return "revoked"
    return "live" if token.is_live(CLOCK.now_ms()) else "expired"


def token_as_json(token: GatewayToken) -> dict[str, Any]:
    return {
        "id": token.id,
        "user": token.user_id,
        "prefix": token.prefix,
        "label": token.label,
        "state": state_of(token),
        "created_at": instant(token.created_at_ms),
        "expires_at": instant(token.expires_at_ms) if token.expires_at_ms else None,
        "revoked_at": instant(token.revoked_at_ms) if token.revoked_at_ms else None,
    }


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
