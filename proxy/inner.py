"""A request that we make of ourselves, in a client's name, on the way to what it has asked for: it goes through every phase, and is
booked as if the client had made it. Its answer stays here."""

from collections.abc import Callable

from metering.errors import Refused
from proxy.downstream import Connection
from proxy.exchange import Exchange
from proxy.request import Request, first_of
from proxy.surface import BEARER, HeaderKey, Headers, Surface

_KEPT = frozenset({b"host", b"user-agent", b"x-forwarded-proto"})
"""Headers of the client's that are its too."""


class InnerConnection:
    """What the engine has in the place of a connection. Its client is the outer one's."""

    may_be_handed_over = False
    is_write_paused = False
    told: tuple[Refused, int] | None = None

    def __init__(self, outer: Connection) -> None:
        self._outer = outer
        self.request_id: str | None = None
        self.status = 0
        self.headers: Headers = []
        self.body = bytearray()
        self.is_whole = False

    @property
    def is_gone(self) -> bool:
        return self._outer.is_gone

    def watch(self, on_gone: Callable[[], None]) -> None:
        self._outer.watch(on_gone)

    def unwatch(self, on_gone: Callable[[], None]) -> None:
        self._outer.unwatch(on_gone)

    def take_body(self, request: Request) -> bytes:  # noqa: ARG002 - as Connection's
        return b""

    def begin(
        self,
        status: int,
        headers: Headers,
        *,
        is_flushed_soon: bool,  # noqa: ARG002 - as Connection's
        is_clean: bool = False,  # noqa: ARG002 - the same
    ) -> None:
        self.status, self.headers = status, headers

    def write(self, piece: bytes, *, is_last: bool) -> None:
        self.body += piece
        self.is_whole = is_last

    def flush(self) -> None:
        """Nothing waits."""

    def cut(self) -> None:
        """It stays without its end."""

    drop = cut

    async def drain(self) -> None:
        """Nobody is slow."""


def inner_request(exchange: Exchange, method: str, path: str) -> Request:
    """Without a body, to `path` below the mount, with the gateway token of the exchange's own."""
    outer = exchange.request
    headers = [pair for pair in outer.headers if pair[0] in _KEPT]
    headers.append(_token_header(exchange.surface, exchange.gateway_token))
    raw_path = (exchange.surface.mounts[0] + path).encode()
    request = Request(method, raw_path, b"", headers, first_of(headers), outer.version)
    request.is_whole = True
    return request


def _token_header(surface: Surface, token: bytes) -> tuple[bytes, bytes]:
    place = next((one for one in surface.token_places if isinstance(one, HeaderKey)), BEARER)
    return place.name.encode(), place.scheme.encode() + token
