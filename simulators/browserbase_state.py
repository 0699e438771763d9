"""What Browserbase keeps, and how it shows it: sessions, contexts, extensions, downloaded files.

The shapes are those of the vendor's SDK (browserbase 1.22.0).
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from metering.clock import utc
from simulators.browserbase_behaviour import PROJECT_ID
from simulators.script import Line, Upgraded

LOGS_MAX = 1000
"""Commands that the log of one session keeps."""
BILLED_SECONDS_MIN = 60
"""One minute is billed at least."""


class Status(enum.StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    ERROR = "ERROR"
    TIMED_OUT = "TIMED_OUT"


@dataclass(frozen=True, slots=True)
class Billed:
    """What the vendor charges for a session that has ended. What it rounds to above a minute is not known: seconds."""

    session_id: str
    seconds: int
    proxy_bytes: int


class BrowserPeer(Upgraded, Protocol):
    """One connection to a browser."""

    def end_session(self, reason: str) -> None:
        """The session is over: close the connection."""


@dataclass(eq=False, slots=True)
class Client:
    """One connection to a session's browser, as its life cycle sees it. A viewer does not keep a session alive."""

    heard_ms: int
    now_ms: Callable[[], int]
    leave: Callable[["Client"], None]
    is_viewer: bool = False
    peer: BrowserPeer | None = None

    def heard(self) -> None:
        self.heard_ms = self.now_ms()

    def left(self) -> None:
        self.leave(self)


class Browser(Protocol):
    """What is behind a session's connections."""

    def connect(self, line: Line, client: Client, target: str | None) -> BrowserPeer:
        """A peer for a new connection: to the browser, or to one of its pages."""

    def pages(self) -> list[dict[str, str]]:
        """Its pages: id, title, url."""

    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Download:
    """A file that a session's browser has downloaded. The vendor's field names are a guess, but for the ids."""

    id: str
    session_id: str
    filename: str
    content: bytes
    created_ms: int

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "sessionId": self.session_id,
            "filename": self.filename,
            "mimeType": "application/octet-stream",
            "size": len(self.content),
            "createdAt": shown(self.created_ms),
        }


@dataclass(eq=False, slots=True)
class Session:
    """One browser session. `fields` is the body it was made with; `via` is `request`, or `connect` for those that a
    connection made; `number` is that of the request that made it."""

    id: str
    via: str
    number: int
    tag: str
    fields: dict[str, Any]
    signing_key: str
    browser: Browser
    created_ms: int
    expires_ms: int
    keep_alive: bool
    region: str
    context_id: str | None
    user_metadata: dict[str, Any]
    has_proxy: bool
    status: Status = Status.PENDING
    started_ms: int = 0
    updated_ms: int = 0
    ended_ms: int | None = None
    releasing_ms: int | None = None
    """When it will be over by itself, once it was released or left."""
    connected_ms: int | None = None
    """When the first client connected."""
    clients: list[Client] = field(default_factory=list)
    """Those connected now, viewers too."""
    connects_total: int = 0
    proxy_uses: list[tuple[int, int]] = field(default_factory=list)
    """When how many bytes went through the vendor's proxies."""
    logs: list[dict[str, Any]] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    has_mp4: bool = False

    @property
    def is_live(self) -> bool:
        return self.status in (Status.PENDING, Status.RUNNING)

    @property
    def drivers(self) -> list[Client]:
        """Its clients that are no viewers."""
        return [client for client in self.clients if not client.is_viewer]

    def proxy_bytes(self, by_ms: int | None = None) -> int:
        """All of them, or those used until `by_ms`."""
        return sum(size for at_ms, size in self.proxy_uses if by_ms is None or at_ms <= by_ms)

    def billed(self) -> Billed | None:
        """None while it runs."""
        if self.ended_ms is None:
            return None
        seconds = -(-(self.ended_ms - self.started_ms) // 1000)
        return Billed(self.id, max(seconds, BILLED_SECONDS_MIN), self.proxy_bytes())

    def log(self, entry: dict[str, Any]) -> None:
        if len(self.logs) < LOGS_MAX:
            self.logs.append(entry)

    def as_json(self, *, proxy_bytes: int, tells_end: bool) -> dict[str, Any]:
        """As lists show it. The end is missing while there is none, and where it is not told."""
        end = {} if self.ended_ms is None or not tells_end else {"endedAt": shown(self.ended_ms)}
        return {
            "id": self.id,
            "createdAt": shown(self.created_ms),
            "updatedAt": shown(self.updated_ms),
            "projectId": PROJECT_ID,
            "startedAt": shown(self.started_ms),
            **end,
            "expiresAt": shown(self.expires_ms),
            "status": self.status.value,
            "proxyBytes": proxy_bytes,
            "keepAlive": self.keep_alive,
            "region": self.region,
            "contextId": self.context_id,
            "userMetadata": self.user_metadata,
        }


@dataclass(frozen=True, slots=True)
class Context:
    """A browser's profile that outlives sessions: cookies, logins."""

    id: str
    name: str | None
    created_ms: int

    def as_json(self) -> dict[str, Any]:
        at = shown(self.created_ms)
        name = {} if self.name is None else {"name": self.name}
        return {"id": self.id, "createdAt": at, "updatedAt": at, "projectId": PROJECT_ID, **name}

    def keys(self) -> dict[str, Any]:
        """What creating and updating answer. The URL is a sentinel that does nothing."""
        return {
            "id": self.id,
            "publicKey": f"simulated public key of {self.id}",
            "cipherAlgorithm": "AES-256-CBC",
            "initializationVectorSize": 16,
            "uploadUrl": "https://context-uploads-are-not-supported.browserbase.com",
        }


@dataclass(frozen=True, slots=True)
class Extension:
    id: str
    file_name: str
    content: bytes
    created_ms: int

    def as_json(self) -> dict[str, Any]:
        at = shown(self.created_ms)
        names = {"fileName": self.file_name, "projectId": PROJECT_ID}
        return {"id": self.id, "createdAt": at, "updatedAt": at, **names}


def shown(at_ms: int) -> str:
    """As the vendor writes an instant: `2026-05-03T12:53:37.151+00:00`."""
    return utc(at_ms).isoformat(timespec="milliseconds")
