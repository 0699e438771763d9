"""What we ask a vendor of our own accord, on the way of a request: to look something up, to make a user's home there.
Free at the vendor, so nothing is booked; bounded, and said in our own words when it fails."""

from dataclasses import replace
from typing import Any

import orjson

from metering.errors import Reason, Refused
from metering.values import immutable
from proxy.mounted import Mounted
from proxy.surface import Headers
from proxy.upstream import CancelledUnsent, UpstreamClient, UpstreamError

TIMEOUT_S = 30.0
"""For an answer, whole: a request waits for it."""
ANSWER_BYTES_MAX = 8 * 1024 * 1024
OK, REDIRECT = 200, 300
NO_SUCH = frozenset({400, 404, 414, 422})
"""What a vendor says of an id that it does not know, or takes for none."""
_JSON: Headers = [(b"content-type", b"application/json")]


@immutable
class SideCalls:
    """Asks with the platform's own key."""

    client: UpstreamClient

    async def get(self, mounted: Mounted, path: bytes) -> dict[str, Any] | None:
        """The JSON object there; None where the vendor knows none. Raises Refused."""
        status, answer = await self._ask(mounted, b"GET", path, b"")
        if status in NO_SUCH:
            return None
        return self._object(mounted, status, answer)

    async def read(self, mounted: Mounted, path: bytes) -> Any:
        """Whatever JSON is there. Raises Refused."""
        return self._json(mounted, *await self._ask(mounted, b"GET", path, b""))

    async def tell(self, mounted: Mounted, method: str, path: bytes, body: bytes) -> int:
        """What the vendor's answer has for a status. Raises Refused: none came, or it is about our own account."""
        status, _ = await self._ask(mounted, method.encode(), path, body)
        return status

    async def post(self, mounted: Mounted, path: bytes, body: bytes) -> dict[str, Any]:
        """The JSON object that was made. Raises Refused."""
        return self._object(mounted, *await self._ask(mounted, b"POST", path, body))

    async def _ask(self, mounted: Mounted, method: bytes, path: bytes, body: bytes) -> tuple[int, bytes]:
        timeouts = mounted.timeouts
        patience = replace(
            timeouts,
            first_byte_s=min(TIMEOUT_S, timeouts.first_byte_s),
            answer_s=min(TIMEOUT_S, timeouts.answer_s),
        )
        headers = [*mounted.fixed_headers, (b"accept-encoding", b"identity"), mounted.key_header]
        if body:
            headers += _JSON
        try:
            answer = await self.client.open(mounted.origin, method, path, headers, body, patience)
        except CancelledUnsent:
            raise
        except UpstreamError as error:
            raise _unreachable(mounted) from error
        try:
            pieces, size = [], 0
            while chunk := await answer.read():
                pieces.append(chunk)
                size += len(chunk)
                if size > ANSWER_BYTES_MAX:
                    raise _unreachable(mounted)
        except UpstreamError as error:
            raise _unreachable(mounted) from error
        finally:
            answer.close()
        content = b"".join(pieces)
        if answer.status >= REDIRECT:
            problem = mounted.surface.dialect.account_problem(answer.status, content, answer.headers)
            if problem is not None:
                raise problem
        return answer.status, content

    def _object(self, mounted: Mounted, status: int, content: bytes) -> dict[str, Any]:
        found = self._json(mounted, status, content)
        if not isinstance(found, dict):
            raise _unreachable(mounted)
        return found

    def _json(self, mounted: Mounted, status: int, content: bytes) -> Any:
        try:
            if OK <= status < REDIRECT:
                return orjson.loads(content)
        except orjson.JSONDecodeError:
            pass
        raise _unreachable(mounted)


def _unreachable(mounted: Mounted) -> Refused:
    return Refused(
        Reason.UPSTREAM_UNREACHABLE,
        f"Connection error: {mounted.surface.name} cannot be asked at the moment.",
        retry_after_s=1.0,
    )
