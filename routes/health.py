"""For machines: alive, ready for traffic, metrics."""

import asyncio
from collections.abc import Awaitable, Callable

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from metering.errors import Reason, Refused
from proxy.telemetry import Telemetry
from routes.operators import shows

NOT_READY_RETRY_AFTER_S = 2
"""A store in trouble or a worker that stops: either is over, or somebody else's, in seconds."""
_OK = orjson.dumps({"status": "ok"})
_READY = orjson.dumps({"status": "ready"})


def health_routes(
    not_ready: Callable[[], Awaitable[str | None]],
    telemetry: Telemetry,
    *,
    metrics_token: str,
    metrics_port: int,
) -> list[Route]:
    """`/` and `/health`, `/readyz`, `/metrics`."""

    async def health(request: Request) -> Response:  # noqa: ARG001 - Starlette's signature
        """The process lives. It looks at nothing: a restart would not mend a store."""
        return Response(_OK, media_type="application/json")

    async def ready(request: Request) -> Response:  # noqa: ARG001 - Starlette's signature
        reason = await not_ready()
        if reason is None:
            return Response(_READY, media_type="application/json")
        return Response(
            orjson.dumps({"status": "not ready", "reason": reason}),
            503,
            {"retry-after": str(NOT_READY_RETRY_AFTER_S)},
            media_type="application/json",
        )

    async def metrics(request: Request) -> Response:
        if not may_read_metrics(request):
            advice = (
                "Send METRICS_TOKEN as Authorization: Bearer."
                if metrics_token
                else "The metrics are on a port of their own; METRICS_TOKEN opens them here, too."
            )
            raise Refused(Reason.UNAUTHENTICATED, advice)
        # In a thread: with several workers it reads a file of each.
        exposition = await asyncio.to_thread(telemetry.exposition)
        return Response(exposition, media_type=CONTENT_TYPE_LATEST)

    def may_read_metrics(request: Request) -> bool:
        if metrics_port and _port_of(request) == metrics_port:
            return True
        return shows(request, metrics_token) if metrics_token else not metrics_port

    return [
        Route("/", health, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/readyz", ready, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]


def _port_of(request: Request) -> int | None:
    """Of our own end of the connection: not what the client says of it in a header."""
    server: tuple[str, int | None] | None = request.scope["server"]
    return server[1] if server else None
