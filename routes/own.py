"""Our own endpoints: for those that ask how we are (`health.py`), for whoever holds a gateway token (`usage.py`, `tokens.py`,
`machines.py`), for vendors (`webhooks.py`) and for operators (`operators.py`).

Plain Starlette: nothing here is on the way of a vendor's bytes. Everything that these files do not
declare, and no surface takes, ends here as 404.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metering.admission import Caller
from metering.clock import Clock
from metering.errors import Refused
from metering.hooks import Hooks
from metering.ids import new_id
from metering.objects import ObjectId, Objects
from metering.rate_limits import RateLimits
from metering.rate_state import Standing
from metering.return_addresses import ReturnAddresses
from metering.store.store import Store
from metering.store.writer import Step
from metering.users import Directory
from metering.values import immutable
from provisioning.machines import Machines
from proxy.auth import Authenticator, conceal_tokens
from proxy.errors import PLAIN_JSON
from proxy.limit_headers import limit_headers, with_own_limit
from proxy.surface import Headers
from proxy.telemetry import OWN_EXCHANGE, OwnExchange, Telemetry
from routes.bland_webhooks import CallReceiver, call_webhook_routes
from routes.callers import Callers
from routes.fleet import Fleet, fleet_routes
from routes.health import health_routes
from routes.machines import MachineDesk, Reconcile, machine_routes
from routes.operators import operators_only
from routes.tokens import Children, token_routes
from routes.usage import Reports, usage_routes
from routes.webhooks import Receiver, Sender, mail_received, mail_sent, webhook_routes

MACHINES = frozenset({"health", "ready", "metrics"})
"""Endpoints that are asked every few seconds: counted, without a line."""
_MESSAGES = {
    404: "There is nothing at this path.",
    405: "This path takes other methods: see the Allow header.",
}


@immutable
class OwnContext:
    """What the endpoints stand on. `not_ready` says why this worker should get no traffic, None when it
    should; without `metrics_token` and `metrics_port` (0), `/metrics` is open. `reconcile` as `MachineDesk` has it."""

    authenticator: Authenticator
    store: Store
    rate_limits: RateLimits
    standing: Callable[[Caller], Standing]
    clock: Clock
    telemetry: Telemetry
    not_ready: Callable[[], Awaitable[str | None]]
    bytes_per_output_token: int
    metrics_token: str
    reported: Callable[[ObjectId], Sequence[Step]]
    reported_of: Callable[[str, str], Step]
    arrived: Callable[[ObjectId], Awaitable[None]]
    machines: Machines
    reconcile: Reconcile | None = None
    admin_token: str = ""
    metrics_port: int = 0
    agentmail_webhook_keys: tuple[bytes, ...] = ()
    bland_webhook_keys: tuple[bytes, ...] = ()


def own_app(context: OwnContext) -> Starlette:
    """The application of all own endpoints. It needs no lifespan."""
    callers = Callers(context.authenticator, context.rate_limits)
    reports = Reports(
        callers=callers,
        readers=context.store.readers,
        clock=context.clock,
        bytes_per_output_token=context.bytes_per_output_token,
    )
    children = Children(
        callers=callers, directory=Directory(context.store, context.clock), clock=context.clock
    )
    desk = MachineDesk(context.machines, context.clock, context.reconcile)
    receiver = Receiver(
        Hooks(context.store, context.clock),
        Objects(context.store, context.clock),
        context.clock,
        context.reported,
    )
    call_receiver = CallReceiver(
        receiver,
        context.bland_webhook_keys,
        ReturnAddresses(context.store, context.clock),
        context.reported_of,
        context.arrived,
    )
    senders = (
        Sender(
            "agentmail",
            context.agentmail_webhook_keys,
            "AGENTMAIL_WEBHOOK_SECRET",
            mail_received,
            mail_sent,
        ),
    )

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        own: OwnExchange = request.scope[OWN_EXCHANGE]
        own.reason = error.reason
        conceal_tokens(error)
        rendered = PLAIN_JSON.refusal(error, own.request_id)
        response = Response(rendered.body, rendered.status)
        response.raw_headers += rendered.headers
        return response

    app = Starlette(
        routes=[
            *health_routes(
                context.not_ready,
                context.telemetry,
                metrics_token=context.metrics_token,
                metrics_port=context.metrics_port,
            ),
            *usage_routes(reports),
            *token_routes(children),
            *machine_routes(desk, callers),
            *webhook_routes(receiver, senders),
            *call_webhook_routes(call_receiver),
            operators_only(context.admin_token, fleet_routes(Fleet(desk))),
        ],
        middleware=[Middleware(CanonicalLines, context=context)],
        exception_handlers={Refused: refuse, HTTPException: _no_such_route, Exception: _defect},
    )
    app.router.redirect_slashes = False  # `/health/` is another path, and none of ours
    return app


class CanonicalLines:
    """Gives each request an id, tells callers where they stand, and tells of its end once. Machines that ask how we are
    get no line."""

    def __init__(self, app: ASGIApp, context: OwnContext) -> None:
        self._app = app
        self._telemetry = context.telemetry
        self._clock = context.clock
        self._standing = context.standing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        own = OwnExchange(
            new_id("req", self._clock.now_ms()), scope["method"], scope["raw_path"], time.monotonic()
        )
        scope[OWN_EXCHANGE] = own

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                own.status = message["status"]
                named = (b"x-automna-request-id", own.request_id.encode())
                message = {**message, "headers": [*message["headers"], named, *self._limit_headers(own)]}
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            endpoint = scope.get("endpoint")
            own.operation = endpoint.__name__ if endpoint else None
            self._telemetry.finish_own(own, time.monotonic(), is_told=own.operation not in MACHINES)

    def _limit_headers(self, own: OwnExchange) -> Headers:
        if own.caller is None:
            return []
        now_ms = self._clock.now_ms()
        headers = limit_headers(self._standing(own.caller), now_ms)
        if own.rate is None:  # refused by the token's scope
            return headers
        name, rate = own.rate
        return with_own_limit(headers, name.encode(), rate, now_ms)


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = _MESSAGES.get(error.status_code, error.detail)
    return _plain_error(request, error.status_code, message, headers=error.headers)


async def _defect(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's signature
    """Starlette raises the error again after this is sent, so that the server logs it."""
    return _plain_error(request, 500, "The proxy failed.")


def _plain_error(
    request: Request, status: int, message: str, *, headers: Mapping[str, str] | None = None
) -> Response:
    own: OwnExchange = request.scope[OWN_EXCHANGE]
    body = orjson.dumps({"error": message, "request_id": own.request_id})
    return Response(body, status, headers, media_type="application/json")
