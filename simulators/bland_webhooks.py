"""What Bland tells by itself: completions, events of a running call, and what comes later; signed, well or badly.

What is told is recorded when it happens. A test delivers it, or a `Courier` does: then and as often as its schedule says.
"""

import enum
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from metering.tasks import spawn, stop
from simulators.bland_call import Call

WEBHOOK_SECRET = "bland-simulated-webhook-secret"
FORGED_SECRET = "somebody-elses-secret"
COMPLETION, IN_CALL = "completion", "event"
RETRY_DELAYS_S = (1.0, 5.0, 30.0)
"""After what was not answered with a 2xx. That there are retries is the vendor's word; when, is a guess."""
_OK = range(200, 300)


class Tamper(enum.StrEnum):
    """What is wrong with a delivery."""

    FORGED = "forged"
    """Signed with another secret."""
    ALTERED = "altered"
    """The body tells of another call than what was signed, at the same length."""
    TRUNCATED = "truncated"
    UNSIGNED = "unsigned"
    SPACED = "spaced"
    """The signature is that of the same JSON without its blanks: genuine only for who parses it and writes it anew."""


@dataclass(frozen=True, slots=True)
class Post:
    """One thing that the vendor tells of a call. `kind`: a completion, an event of the running call, or the `event_type`
    of what came later. `url` is None where nobody asked."""

    kind: str
    call_id: str
    url: str | None
    body: Mapping[str, Any]
    at_ms: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt of the courier. `status` is None where there was no answer."""

    post: Post
    attempt: int
    status: int | None
    at_ms: int


def about_event(call: Call, message: str, category: str, level: str, at_ms: int) -> Post:
    """An event of a running call. It has no `status`, which tells it from a completion."""
    body = {"message": message, "call_id": call.call_id, "category": category, "log_level": level}
    return Post(IN_CALL, call.call_id, call.webhook, body, at_ms)


def signed(post: Post, secret: str, *, tamper: Tamper | None = None) -> tuple[dict[str, str], bytes]:
    """Headers and body of a delivery: the signature is HMAC-SHA256 of the raw bytes, in lower-case hexadecimal."""
    body = orjson.dumps(post.body)
    mark = signature(FORGED_SECRET if tamper is Tamper.FORGED else secret, body)
    headers = {"content-type": "application/json", "x-webhook-signature": mark}
    if tamper is Tamper.UNSIGNED:
        del headers["x-webhook-signature"]
    if tamper is Tamper.ALTERED:
        body = body.replace(post.call_id.encode(), post.call_id[::-1].encode())
    if tamper is Tamper.TRUNCATED:
        body = body[:-8]
    if tamper is Tamper.SPACED:
        body = orjson.dumps(post.body, option=orjson.OPT_INDENT_2)
    return headers, body


def signature(secret: str, body: bytes) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class _Due:
    at_ms: int
    post: Post
    attempt: int


class Courier:
    """Delivers on the account's time. `schedule` says so many seconds after it happened a post is sent, each a copy of its
    own: none loses it, two double it, different ones for different posts reorder them. A copy is sent again after each of
    `retry_delays_s` until it is answered with a 2xx."""

    def __init__(
        self,
        now_ms: Callable[[], int],
        send: Callable[[Post], Awaitable[httpx.Response]],
        *,
        schedule: Callable[[Post], Sequence[float]],
        retry_delays_s: Sequence[float],
        happened: Callable[[], None],
    ) -> None:
        self.deliveries: list[Delivery] = []
        self._now_ms = now_ms
        self._send = send
        self.schedule = schedule
        self.retry_delays_s = retry_delays_s
        self._happened = happened
        self._due: list[_Due] = []
        self._on_its_way: set[Any] = set()

    @property
    def is_idle(self) -> bool:
        """Nothing is due later, and nothing on its way."""
        return not self._due and not self._on_its_way

    def take(self, post: Post) -> None:
        """Deliver it, if it has a URL."""
        if post.url is not None:
            self._due += [_Due(post.at_ms + round(s * 1000), post, 1) for s in self.schedule(post)]

    def due_ms(self) -> int | None:
        return min((due.at_ms for due in self._due), default=None)

    def tick(self) -> None:
        """Send what is due. Only inside an event loop."""
        now_ms = self._now_ms()
        for due in sorted((each for each in self._due if each.at_ms <= now_ms), key=lambda each: each.at_ms):
            self._due.remove(due)
            task = spawn(self._deliver(due), name=f"webhook of call {due.post.call_id}")
            self._on_its_way.add(task)
            task.add_done_callback(self._arrived)

    async def stop(self) -> None:
        """Give up what is on its way, and what is due."""
        self._due.clear()
        for task in list(self._on_its_way):
            await stop(task)

    def _arrived(self, task: object) -> None:
        self._on_its_way.discard(task)
        self._happened()

    async def _deliver(self, due: _Due) -> None:
        try:
            status: int | None = (await self._send(due.post)).status_code
        except httpx.TransportError:
            status = None
        now_ms = self._now_ms()
        self.deliveries.append(Delivery(due.post, due.attempt, status, now_ms))
        if status not in _OK and due.attempt <= len(self.retry_delays_s):
            delay_ms = round(self.retry_delays_s[due.attempt - 1] * 1000)
            self._due.append(_Due(now_ms + delay_ms, due.post, due.attempt + 1))
