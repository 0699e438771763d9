"""Our own endpoints: for machines (`health.py`) and for whoever holds a gateway token (`usage.py`).

Plain Starlette: nothing here is on the way of a vendor's bytes. Everything that these two files do not
declare, and no surface takes, ends here as 404.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from metering.clock import Clock
from metering.errors import Refused
from metering.ids import new_id
from metering.rate_limits import RateLimits
from metering.store.store import Store
from proxy.auth import Authenticator
from proxy.errors import PLAIN_JSON
from proxy.telemetry import Telemetry
from routes.health import health_routes
from routes.usage import Reports, usage_routes

_MESSAGES = {
    404: "There is nothing at this path.",
    405: "This path takes other methods: see the Allow header.",
}


@dataclass(frozen=True, slots=True)
class OwnContext:
    """What the endpoints stand on. `not_ready` says why this worker should get no traffic, None when it
    should; an empty `metrics_token` leaves `/metrics` open."""

    authenticator: Authenticator
    store: Store
    rate_limits: RateLimits
    clock: Clock
    telemetry: Telemetry
    not_ready: Callable[[], Awaitable[str | None]]
    metrics_token: str


def own_app(context: OwnContext) -> Starlette:
    """The application of all own endpoints. It needs no lifespan."""
    reports = Reports(
        authenticator=context.authenticator,
        database=context.store.database,
        rate_limits=context.rate_limits,
        clock=context.clock,
    )

    async def refuse(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's signature
        assert isinstance(error, Refused)
        request_id = new_id("req", context.clock.now_ms())
        rendered = PLAIN_JSON.refusal(error, request_id)
        response = Response(rendered.body, rendered.status)
        response.raw_headers += [*rendered.headers, (b"x-automna-request-id", request_id.encode())]
        return response

    app = Starlette(
        routes=[
            *health_routes(context.not_ready, context.telemetry, context.metrics_token),
            *usage_routes(reports),
        ],
        exception_handlers={Refused: refuse, HTTPException: _no_such_route, Exception: _defect},
    )
    app.router.redirect_slashes = False  # `/health/` is another path, and none of ours
    return app


async def _no_such_route(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's signature
    assert isinstance(error, HTTPException)
    body = orjson.dumps({"error": _MESSAGES.get(error.status_code, error.detail)})
    return Response(body, error.status_code, error.headers, media_type="application/json")


async def _defect(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's signature
    """Starlette raises the error again after this is sent, so that the server logs it."""
    return Response(orjson.dumps({"error": "The proxy failed."}), 500, media_type="application/json")
