"""What AgentMail tells of by itself: the record of events, and webhooks signed as Svix does, well or badly.

An event is recorded when it happens; nothing is delivered until asked, so that a test decides on order, doubles and
delay.
"""

import base64
import enum
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from metering.clock import instant

WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"simulated-webhook-secret-32bytes").decode()
FORGED_SECRET = "whsec_" + base64.b64encode(b"somebody-elses-secret-of-32bytes").decode()
SKEW_MAX_S = 300
"""Receivers refuse a timestamp further off than this, as Svix' own libraries do."""


class Tamper(enum.StrEnum):
    """What is wrong with a delivery."""

    STALE = "stale"
    """Signed well, long ago: as a replay of a recorded delivery is."""
    FUTURE = "future"
    FORGED = "forged"
    """Signed with another secret."""
    TRUNCATED = "truncated"
    """The last bytes of the signed body are missing."""
    ALTERED = "altered"
    """The body says something else than what was signed, at the same length."""
    MOVED = "moved"
    """The signature of another svix-id."""
    UNSIGNED = "unsigned"
    ROTATED = "rotated"
    """Nothing is wrong: a signature of another secret stands before the right one, as while a secret is changed."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in an inbox. `body` is what webhooks and sockets say of it."""

    event_id: str
    event_type: str
    at_ms: int
    inbox_id: str
    pod_id: str
    body: Mapping[str, Any]

    @property
    def svix_id(self) -> str:
        """The same for every attempt to deliver it, so that receivers can tell doubles."""
        return "msg_" + self.event_id.removeprefix("evt_")


class Events:
    """The record of events, in order, and those who listen."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.recorded: list[Event] = []
        self.listeners: list[Callable[[Event], None]] = []
        self._now_ms = now_ms

    def happen(self, event_type: str, *, inbox_id: str, pod_id: str, payload: Mapping[str, Any]) -> Event:
        number = len(self.recorded) + 1
        event_id = f"evt_{hashlib.sha256(f'{number}{inbox_id}'.encode()).hexdigest()[:24]}"
        body = {"type": "event", "event_type": event_type, "event_id": event_id, **payload}
        event = Event(event_id, event_type, self._now_ms(), inbox_id, pod_id, body)
        self.recorded.append(event)
        for listener in list(self.listeners):
            listener(event)
        return event

    def of(self, *event_types: str) -> list[Event]:
        """Those of these types, in order."""
        return [event for event in self.recorded if event.event_type in event_types]


def about(name: str, message: Any, at_ms: int, **more: Any) -> dict[str, Any]:
    """The payload of an event about a message: its ids under the name of the event's kind."""
    ids = {"inbox_id": message.inbox_id, "thread_id": message.thread_id, "message_id": message.message_id}
    return {name: {**ids, "timestamp": instant(at_ms), **more}}


def signature(secret: str, svix_id: str, timestamp_s: int, body: bytes) -> str:
    """`v1,<base64>`: HMAC-SHA256 of `id.timestamp.body` with the key that follows `whsec_`."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, b"%b.%d.%b" % (svix_id.encode(), timestamp_s, body), hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def signed(
    event: Event, *, secret: str, at_s: int, tamper: Tamper | None = None
) -> tuple[dict[str, str], bytes]:
    """Headers and body of one delivery at `at_s` (Unix seconds)."""
    body = orjson.dumps(event.body)
    if tamper in (Tamper.STALE, Tamper.FUTURE):
        at_s += 2 * SKEW_MAX_S * (1 if tamper is Tamper.FUTURE else -1)
    signed_id = "msg_of_another_event" if tamper is Tamper.MOVED else event.svix_id
    mark = signature(FORGED_SECRET if tamper is Tamper.FORGED else secret, signed_id, at_s, body)
    if tamper is Tamper.ROTATED:
        mark = f"{signature(FORGED_SECRET, signed_id, at_s, body)} {mark}"
    headers = {
        "content-type": "application/json",
        "svix-id": event.svix_id,
        "svix-timestamp": str(at_s),
        "svix-signature": mark,
    }
    if tamper is Tamper.UNSIGNED:
        del headers["svix-signature"]
    if tamper is Tamper.TRUNCATED:
        body = body[:-8]
    if tamper is Tamper.ALTERED:
        body = body.replace(event.event_id.encode(), event.event_id[::-1].encode())
    return headers, body
