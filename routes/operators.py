"""Who may operate: whoever shows the operators' token, on every path below `/admin`, before anything else is looked at."""

import hmac
from collections.abc import Sequence

from starlette.requests import Request
from starlette.routing import BaseRoute, Mount, Router
from starlette.types import Receive, Scope, Send

from metering.errors import Reason, Refused
from proxy.auth import TokenPlaces, unauthenticated
from proxy.surface import BEARER

ADMIN = "/admin"
ACTOR = "admin"
"""As what is done here is written down."""
_PLACES = TokenPlaces((BEARER,))


def operators_only(admin_token: str, routes: Sequence[BaseRoute]) -> Mount:
    """`/admin` with these below it: without its token nobody learns which paths there are."""
    router = Router(routes, redirect_slashes=False)

    async def admin(scope: Scope, receive: Receive, send: Send) -> None:
        if not admin_token:
            raise Refused(
                Reason.NOT_CONFIGURED, "The operators' endpoints need ADMIN_TOKEN, which is not set."
            )
        if not shows(Request(scope), admin_token):
            raise unauthenticated("Send ADMIN_TOKEN as Authorization: Bearer.")
        await router(scope, receive, send)

    return Mount(ADMIN, app=admin)


def shows(request: Request, token: str) -> bool:
    """Whether a request shows this bearer token, and no other."""
    given = _PLACES.find(list(request.scope["headers"]), b"")
    expected = token.encode("utf-8", "surrogateescape")
    return len(given) == 1 and hmac.compare_digest(given.pop(), expected)
