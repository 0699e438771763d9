"""For whoever holds a gateway token: handing it on. A child is made, listed, rotated and revoked with its parent's
token; it may less, for a shorter time, and never more than its parent (metering/terms.py).

A token sees what comes from it, and nothing else: any other id is 404, also one that is somebody's.
"""

from typing import Any

from starlette.requests import Request
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
from routes.given import bad, body_of, object_of, shown, whole
from routes.usage import private

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
        wish = _wish(object_of(body, _MINT_KEYS), self._clock.now_ms())
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
            raise bad(str(error)) from None
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
        overlap_s = whole("overlap_s", object_of(body, _ROTATE_KEYS).get("overlap_s", 0), 0, OVERLAP_S_MAX)
        token = await self._descendant(caller, token_id)
        try:
            secret, successor = await self._directory.rotate(token.id, overlap_s=overlap_s)
        except DirectoryError as error:
            raise bad(str(error)) from None
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
            return private(await children.mint(caller, await body_of(request)), _CREATED)
        return private(await children.living(caller))

    async def token(request: Request) -> Response:
        caller, token_id = await children.caller(request), request.path_params["id"]
        if request.method == "DELETE":
            return private(await children.revoke(caller, token_id))
        return private(await children.one(caller, token_id))

    async def rotate_token(request: Request) -> Response:
        caller = await children.caller(request)
        body = await body_of(request)
        return private(await children.rotate(caller, request.path_params["id"], body), _CREATED)

    return [
        Route("/api/user/tokens", tokens, methods=["GET", "POST"]),
        Route("/api/user/tokens/{id}", token, methods=["GET", "DELETE"]),
        Route("/api/user/tokens/{id}/rotate", rotate_token, methods=["POST"]),
    ]


# --- what was asked for ------------------------------------------------------------------------------


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
        raise bad(str(error)) from None


def _label(given: Any) -> str | None:
    if given is None or (isinstance(given, str) and len(given) <= LABEL_CHARS_MAX):
        return given
    raise bad(f"label: given {shown(given)}, expected a text of at most {LABEL_CHARS_MAX} characters")


def _expires_at_ms(given: dict[str, Any], now_ms: int) -> int | None:
    in_s, at = given.get("expires_in_s"), given.get("expires_at")
    if in_s is not None and at is not None:
        raise bad("expires_in_s, expires_at: given both, expected one")
    if in_s is not None:
        return now_ms + whole("expires_in_s", in_s, 1, LIFE_S_MAX) * 1000
    if at is None:
        return None
    try:
        at_ms = instant_ms("expires_at", at if isinstance(at, str) else shown(at))
    except PeriodError as error:
        raise bad(str(error)) from None
    if at_ms <= now_ms:
        raise bad(f"expires_at: given {at!r}, expected an instant in the future")
    return at_ms
