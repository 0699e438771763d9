"""What serves what: the engine the surfaces, straight from their connections (every microsecond counts there), and Starlette
our own endpoints, as an ASGI application."""

import logging
from contextlib import AsyncExitStack
from functools import partial

from starlette.applications import Starlette

from automna_proxy.service import Service, running_service
from automna_proxy.settings import Settings
from metering.clock import Clock, SystemClock
from metering.errors import Refused
from metering.ids import new_id
from proxy.asgi import Message, Receive, Scope, Send
from proxy.downstream import Handle
from proxy.errors import PLAIN_JSON
from proxy.mounted import Mounted, by_mount
from proxy.surface import Rendered
from routes.own import own_app
from routes.usage import CALL_PATHS

logger = logging.getLogger(__name__)

OWN_BELOW_MOUNTS = frozenset(path.encode() for path in CALL_PATHS)
"""Endpoints of our own whose paths begin with a surface's mount."""


class App:
    """One worker's application. Its service lives from the lifespan's start-up to its shutdown."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._stack = AsyncExitStack()
        self._own: Starlette | None = None
        self._mounts: list[tuple[bytes, Mounted]] = []
        self.service: Service | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is no surface's: our own endpoints, and the lifespan."""
        if scope["type"] == "http":
            assert self._own is not None
            await self._own(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    def handle_of(self, raw_path: bytes) -> Handle | None:
        """What serves a path below a surface's mount."""
        assert self.service is not None
        for mount, mounted in () if raw_path in OWN_BELOW_MOUNTS else self._mounts:
            if raw_path.startswith(mount) and raw_path[len(mount) : len(mount) + 1] in {b"/", b""}:
                return partial(self.service.engine.handle, mounted, raw_path[len(mount) :])
        return None

    def refusal(self, target: bytes, refused: Refused, request_id: str | None) -> Rendered:
        """What a connection answers to bytes that never became a request, in the dialect of the surface that
        `target` begins with: plain JSON where it names none, or was not read so far. A new id if it has none."""
        dialect = next(
            (mounted.surface.dialect for mount, mounted in self._mounts if target.startswith(mount + b"/")),
            PLAIN_JSON,
        )
        request_id = request_id or new_id("req", self._clock.now_ms())
        rendered = dialect.refusal(refused, request_id)
        headers = [*rendered.headers, (b"x-automna-request-id", request_id.encode())]
        return Rendered(rendered.status, headers, rendered.body)

    async def _live(self, receive: Receive, send: Send) -> None:
        message: Message = await receive()
        assert message["type"] == "lifespan.startup"
        try:
            self.service = await self._stack.enter_async_context(
                running_service(self._settings, clock=self._clock)
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the server must be told, and say it
            await send({"type": "lifespan.startup.failed", "message": f"cannot start: {error}"})
            return
        self._own = own_app(self.service.own)
        self._mounts = by_mount(self.service.mounted)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stack.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    def count_malformed(self) -> None:
        """A connection was ended because of what came on it."""
        if self.service is not None:
            self.service.telemetry.malformed()

    def start_draining(self) -> None:
        """Not ready from now on, still serving."""
        if self.service is not None:
            self.service.is_draining = True

    def stop_admitting(self) -> None:
        """Refuse new requests; those under way finish, but for websockets, which would not."""
        if self.service is not None:
            self.service.engine.stop_admitting()
