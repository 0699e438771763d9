"""For whoever holds a gateway token: handing it on. A child is made, listed, rotated and revoked with its parent's
token; it may less, for a shorter time, and never more than its parent (metering/terms.py).

A token sees what comes from it, and nothing else: any other id is 404, also one that is somebody's.
"""

import asyncio
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from metering.admission import Caller
from metering.clock import Clock
from metering.errors import Reason, Refused
from metering.reports import PeriodError, instant_ms
from metering.terms import (
    SCOPE_KEYS,
    TOKENS_OPERATION,
    Cap,
    Scope,
    TermsError,
    TokenLimits,
    parse_caps,
    parse_limits,
    parse_scope,
)
from metering.users import (
    TOKENS_LISTED_MAX,
    Directory,
    DirectoryError,
    GatewayToken,
    NotFoundError,
    NotLiveError,
)
from metering.values import immutable
from proxy.auth import unauthenticated
from routes.callers import Callers, OwnRate
from routes.usage import private

BODY_BYTES_MAX = 16 * 1024
"""Of a request about a token: twenty patterns of each kind fit."""
BODY_TIMEOUT_S = 10.0
"""For such a body to arrive."""
TOKEN_CALLS = OwnRate("token-calls", "calls about gateway tokens", 60)
"""Per token: each new token is a row that stays; and none of them shall
keep another from revoking it."""
LABEL_CHARS_MAX = 100
LIFE_S_MAX = 3_660 * 86_400
"""Ten years: what is longer is a typing error."""
OVERLAP_S_MAX = 86_400
"""Of a rotation: an agent that takes longer than a day to pick up a new token has lost it."""

_CREATED = 201
_MINT_KEYS = frozenset({"label", "expires_in_s", "expires_at", "caps", "limits", *SCOPE_KEYS})
_ROTATE_KEYS = frozenset({"overlap_s"})


@immutable
class Wish:
    """What a child is to be."""

    label: str | None
    expires_at_ms: int | None
    scope: Scope
    caps: tuple[Cap, ...]
    limits: TokenLimits


class Children:
    """The gateway tokens that come from a caller's own."""

    def __init__(
        self,
        *,
        callers: Callers,
        directory: Directory,
        clock: Clock,
    ) -> None:
        self._callers = callers
        self._directory = directory
        self._clock = clock

    async def caller(self, request: Request) -> Caller:
        """Who may hand on. Raises Refused: no token, not in its scope, too many calls a minute."""
        caller = await self._callers.identified(request, TOKENS_OPERATION)
        self._callers.count(request, TOKEN_CALLS, caller.token_id)
        return caller

    async def mint(self, caller: Caller, body: bytes) -> dict[str, Any]:
        """A child, with its secret, which is shown this once. Raises Refused."""
        wish = _wish(_object(body, _MINT_KEYS), self._clock.now_ms())
        try:
            secret, token = await self._directory.create_token(
                caller.user_id,
                label=wish.label,
                expires_at_ms=wish.expires_at_ms,
                parent_id=caller.token_id,
                scope=wish.scope,
                caps=wish.caps,
                limits=wish.limits,
            )
        except NotLiveError:  # revoked since it was authenticated
            raise unauthenticated("This API key is no longer valid: it was revoked.") from None
        except DirectoryError as error:
            raise _bad(str(error)) from None
        return {"token": secret, **self._as_json(token)}

    async def living(self, caller: Caller) -> dict[str, Any]:
        tokens = await self._directory.living_descendants(caller.token_id)
        return {
            "tokens": [self._as_json(token) for token in tokens],
            "is_complete": len(tokens) < TOKENS_LISTED_MAX,
        }

    async def one(self, caller: Caller, token_id: str) -> dict[str, Any]:
        return self._as_json(await self._descendant(caller, token_id))

    async def revoke(self, caller: Caller, token_id: str) -> dict[str, Any]:
        token = await self._descendant(caller, token_id)
        return self._as_json(await self._directory.revoke(token.id))

    async def rotate(self, caller: Caller, token_id: str, body: bytes) -> dict[str, Any]:
        """Its successor, with its secret. Raises Refused."""
        overlap_s = _whole("overlap_s", _object(body, _ROTATE_KEYS).get("overlap_s", 0), 0, OVERLAP_S_MAX)
        token = await self._descendant(caller, token_id)
        try:
            secret, successor = await self._directory.rotate(token.id, overlap_s=overlap_s)
        except DirectoryError as error:
            raise _bad(str(error)) from None
        return {"token": secret, **self._as_json(successor), "replaces": token.id}

    async def _descendant(self, caller: Caller, token_id: str) -> GatewayToken:
        try:
            return await self._directory.descendant(token_id, caller.token_id)
        except NotFoundError as error:
            raise Refused(Reason.OBJECT_NOT_FOUND, str(error)) from None

    def _as_json(self, token: GatewayToken) -> dict[str, Any]:
        return token.as_json(self._clock.now_ms())


def token_routes(children: Children) -> list[Route]:
    """`/api/user/tokens` and what is below it. The endpoints' names are the operations in lines and metrics."""

    async def tokens(request: Request) -> Response:
        caller = await children.caller(request)
        if request.method == "POST":
            return private(await children.mint(caller, await _body(request)), _CREATED)
        return private(await children.living(caller))

    async def token(request: Request) -> Response:
        caller, token_id = await children.caller(request), request.path_params["id"]
        if request.method == "DELETE":
            return private(await children.revoke(caller, token_id))
        return private(await children.one(caller, token_id))

    async def rotate_token(request: Request) -> Response:
        caller = await children.caller(request)
        body = await _body(request)
        return private(await children.rotate(caller, request.path_params["id"], body), _CREATED)

    return [
        Route("/api/user/tokens", tokens, methods=["GET", "POST"]),
        Route("/api/user/tokens/{id}", token, methods=["GET", "DELETE"]),
        Route("/api/user/tokens/{id}/rotate", rotate_token, methods=["POST"]),
    ]


# --- what was asked for ------------------------------------------------------------------------------


async def _body(request: Request) -> bytes:
    """Bounded in length and time."""
    body = b""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_BYTES_MAX:
                    raise Refused(
                        Reason.TOO_LARGE, f"The request's body is longer than {BODY_BYTES_MAX:,} bytes."
                    )
    except TimeoutError:
        raise _bad(f"The request's body did not arrive within {BODY_TIMEOUT_S:g} seconds.") from None
    except ClientDisconnect:
        raise _bad("The request's body broke off.") from None
    return body


def _object(body: bytes, keys: frozenset[str]) -> dict[str, Any]:
    """The JSON object of a body, {} of none. Raises Refused."""
    try:
        given = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise _bad(f"The request's body is not valid JSON: {error}") from None
    if not isinstance(given, dict):
        raise _bad("The request's body must be a JSON object.")
    if unknown := set(given) - keys:
        raise _bad(
            f"unknown key {min(unknown)[:LABEL_CHARS_MAX]!r}, expected any of {', '.join(sorted(keys))}"
        )
    return given


def _wish(given: dict[str, Any], now_ms: int) -> Wish:
    try:
        scope = parse_scope(given)
        return Wish(
            _label(given.get("label")),
            _expires_at_ms(given, now_ms),
            scope,
            parse_caps(given.get("caps")),
            parse_limits(given.get("limits")),
        )
    except TermsError as error:
        raise _bad(str(error)) from None


def _label(given: Any) -> str | None:
    if given is None or (isinstance(given, str) and len(given) <= LABEL_CHARS_MAX):
        return given
    raise _bad(f"label: given {_shown(given)}, expected a text of at most {LABEL_CHARS_MAX} characters")


def _expires_at_ms(given: dict[str, Any], now_ms: int) -> int | None:
    in_s, at = given.get("expires_in_s"), given.get("expires_at")
    if in_s is not None and at is not None:
        raise _bad("expires_in_s, expires_at: given both, expected one")
    if in_s is not None:
        return now_ms + _whole("expires_in_s", in_s, 1, LIFE_S_MAX) * 1000
    if at is None:
        return None
    try:
        at_ms = instant_ms("expires_at", at if isinstance(at, str) else _shown(at))
    except PeriodError as error:
        raise _bad(str(error)) from None
    if at_ms <= now_ms:
        raise _bad(f"expires_at: given {at!r}, expected an instant in the future")
    return at_ms


def _whole(name: str, given: Any, at_least: int, at_most: int) -> int:
    if type(given) is not int or not at_least <= given <= at_most:
        raise _bad(f"{name}: given {_shown(given)}, expected a whole number from {at_least} to {at_most}")
    return given


def _shown(given: Any) -> str:
    return repr(given)[:LABEL_CHARS_MAX]


def _bad(message: str) -> Refused:
    return Refused(Reason.BAD_REQUEST, message)
