"""The account at Browserbase: its one project, what is in it, and how a session lives and ends."""

import base64
import hashlib
import hmac
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from metering.clock import Clock
from simulators import browserbase_errors as errors
from simulators.browserbase_behaviour import PROJECT_ID
from simulators.browserbase_metadata import checked_metadata
from simulators.browserbase_state import (
    Billed,
    Browser,
    Client,
    Context,
    Download,
    Extension,
    Session,
    Status,
)

REGIONS = ("us-west-2", "us-east-1", "eu-central-1", "ap-southeast-1")
TIMEOUT_S_MIN, TIMEOUT_S_MAX = 60, 21_600
RETRY_AFTER_CONCURRENCY_S = 5
"""What the vendor says here is not known."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the whole account may; None: as much as it likes. `timeout_s` is the project's default."""

    concurrent_sessions: int | None = None
    creates_per_minute: int | None = None
    timeout_s: int = 900


@dataclass(frozen=True, slots=True)
class Habits:
    """How the vendor takes its time, and what of it is not certain. Seconds of the simulator's clock.

    `start_s`: from creation until RUNNING. `end_s`: from a release, or the last client's leaving, until COMPLETED.
    `proxy_lag_s`: until proxied bytes show in `proxyBytes`. `connect_within_s`: until a session without keepAlive that
    nobody connects to ends; `silence_s`: until a client that says nothing is disconnected. `tells_end=False` leaves
    `endedAt` out. `clamps_timeout`: a timeout out of range is moved into it, instead of being refused with 400.
    """

    start_s: float = 0.0
    end_s: float = 0.0
    proxy_lag_s: float = 0.0
    connect_within_s: float = 300.0
    silence_s: float = 600.0
    tells_end: bool = True
    clamps_timeout: bool = False


class Project:
    """Everything of the account. `new_browser` makes what is behind a session; `happened` is called at every change."""

    def __init__(
        self,
        clock: Clock,
        *,
        plan: Plan,
        habits: Habits,
        seed: int,
        new_browser: Callable[["Project", str], Browser],
        happened: Callable[[], None],
    ) -> None:
        self.plan = plan
        self.habits = habits
        self.sessions: dict[str, Session] = {}
        self.contexts: dict[str, Context] = {}
        self.extensions: dict[str, Extension] = {}
        self.downloads: dict[str, Download] = {}
        self.ahead_ms = 0
        """How far this account's time is ahead of its clock."""
        self.happened = happened
        self._clock = clock
        self._new_browser = new_browser
        self._rng = random.Random(seed)
        self._live: dict[str, Session] = {}
        self._by_key: dict[str, Session] = {}
        self._creates_ms: list[int] = []

    def now_ms(self) -> int:
        return self._clock.now_ms() + self.ahead_ms

    def new_id(self) -> str:
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))

    # what there is

    @property
    def billed(self) -> dict[str, Billed]:
        """What every session that has ended costs, by its id."""
        told = (session.billed() for session in self.sessions.values())
        return {billed.session_id: billed for billed in told if billed is not None}

    def session(self, session_id: str) -> Session:
        if session_id not in self.sessions:
            raise errors.not_found("Session", session_id)
        return self.sessions[session_id]

    def live_session(self, session_id: str) -> Session:
        session = self.session(session_id)
        if not session.is_live:
            raise errors.ended(session.id, session.status)
        return session

    def signed_session(self, signing_key: str) -> Session:
        """The running one that a signing key is good for."""
        if signing_key not in self._by_key:
            raise errors.unauthorized()
        return self.live_session(self._by_key[signing_key].id)

    def context(self, context_id: str) -> Context:
        if context_id not in self.contexts:
            raise errors.not_found("Context", context_id)
        return self.contexts[context_id]

    def extension(self, extension_id: str) -> Extension:
        if extension_id not in self.extensions:
            raise errors.not_found("Extension", extension_id)
        return self.extensions[extension_id]

    def shown(self, session: Session) -> dict[str, Any]:
        """As lists show it: with the proxied bytes that are known by now."""
        by_ms = self.now_ms() - _ms(self.habits.proxy_lag_s)
        return session.as_json(proxy_bytes=session.proxy_bytes(by_ms), tells_end=self.habits.tells_end)

    # a session's life

    def create(self, fields: dict[str, Any], *, via: str, number: int, tag: str) -> Session:
        """Raises RefusedError for what the vendor would not start."""
        self.check_project(fields)
        settings = _part(fields, "browserSettings")
        context_id = _part(settings, "context").get("id")
        if context_id is not None:
            self.context(str(context_id))
        for extension_id in (fields.get("extensionId"), settings.get("extensionId")):
            if extension_id is not None:
                self.extension(str(extension_id))
        region = fields.get("region", REGIONS[0])
        if region not in REGIONS:
            raise errors.invalid(f"body/region must be one of {', '.join(REGIONS)}")
        timeout_s = self._timeout_s(fields)
        metadata = checked_metadata(fields.get("userMetadata"))
        self._check_limits()
        now_ms, session_id = self.now_ms(), self.new_id()
        session = Session(
            id=session_id,
            via=via,
            number=number,
            tag=tag,
            fields=fields,
            signing_key=_signing_key(session_id),
            browser=self._new_browser(self, session_id),
            created_ms=now_ms,
            started_ms=now_ms,
            updated_ms=now_ms,
            expires_ms=now_ms + timeout_s * 1000,
            keep_alive=fields.get("keepAlive") is True,
            region=region,
            context_id=context_id,
            user_metadata=metadata,
            has_proxy=bool(fields.get("proxies")),
        )
        self._creates_ms.append(now_ms)
        self.sessions[session_id] = self._live[session_id] = self._by_key[session.signing_key] = session
        self._pass(session, now_ms)
        self.happened()
        return session

    def check_project(self, fields: Mapping[str, Any]) -> None:
        """A `projectId` that is given must be the account's."""
        given = fields.get("projectId")
        if given not in (None, PROJECT_ID):
            raise errors.foreign_project(str(given))

    def rate_headers(self) -> tuple[tuple[str, str], ...]:
        """How many more sessions the account may create now; none where there is no limit."""
        limit = self.plan.creates_per_minute
        if limit is None:
            return ()
        now_ms = self.now_ms()
        window_ms = errors.RATE_WINDOW_S * 1000
        self._creates_ms = [at_ms for at_ms in self._creates_ms if at_ms > now_ms - window_ms]
        oldest_ms = self._creates_ms[0] if self._creates_ms else now_ms
        return (
            ("x-ratelimit-limit", str(limit)),
            ("x-ratelimit-remaining", str(max(limit - len(self._creates_ms), 0))),
            ("x-ratelimit-reset", str(-(-(oldest_ms + window_ms - now_ms) // 1000))),
        )

    def join(self, session: Session, *, is_viewer: bool) -> Client:
        """A client has connected to a running session."""
        client = Client(
            self.now_ms(), self.now_ms, lambda client: self._leave(session, client), is_viewer=is_viewer
        )
        session.clients.append(client)
        session.connects_total += 1
        if not is_viewer and session.connected_ms is None:
            session.connected_ms = self.now_ms()
        self.happened()
        return client

    def _leave(self, session: Session, client: Client, at_ms: int | None = None) -> None:
        """Without keepAlive a session ends with its last client."""
        if client not in session.clients:
            return
        session.clients.remove(client)
        if not session.keep_alive and not session.drivers and not client.is_viewer:
            self.release(session, at_ms)
        self.happened()

    def release(self, session: Session, at_ms: int | None = None) -> None:
        """It is to end, now or at `at_ms`; a second release changes nothing."""
        if not session.is_live or session.releasing_ms is not None:
            return
        session.updated_ms = self.now_ms() if at_ms is None else at_ms
        session.releasing_ms = session.updated_ms + _ms(self.habits.end_s)
        self.pass_time()

    def crash(self, session: Session) -> None:
        """Its browser fails."""
        self._end(session, self.now_ms(), Status.ERROR)

    def pass_time(self) -> None:
        """Do what is due by now."""
        now_ms = self.now_ms()
        for session in list(self._live.values()):
            self._pass(session, now_ms)

    def _pass(self, session: Session, now_ms: int) -> None:
        habits = self.habits
        running_ms = session.created_ms + _ms(habits.start_s)
        if session.status is Status.PENDING and running_ms <= now_ms:
            session.status = Status.RUNNING
            session.started_ms = session.updated_ms = running_ms
            self.happened()
        for client in list(session.clients):
            silent_ms = client.heard_ms + _ms(habits.silence_s)
            if silent_ms <= now_ms and session.is_live:
                _end(client, "silent for too long")
                self._leave(session, client, silent_ms)
        ends = [(session.expires_ms, Status.TIMED_OUT)]
        if session.releasing_ms is not None:
            ends.append((session.releasing_ms, Status.COMPLETED))
        if session.connected_ms is None and not session.keep_alive:
            ends.append((session.created_ms + _ms(habits.connect_within_s), Status.TIMED_OUT))
        at_ms, status = min(ends)
        if at_ms <= now_ms:
            self._end(session, at_ms, status)

    def _end(self, session: Session, at_ms: int, status: Status) -> None:
        if self._live.pop(session.id, None) is None:
            return
        session.status = status
        session.ended_ms = session.updated_ms = at_ms
        for client in list(session.clients):
            _end(client, f"session {status.lower()}")
        session.browser.stop()
        self.happened()

    def _timeout_s(self, fields: Mapping[str, Any]) -> int:
        timeout_s = fields.get("timeout", self.plan.timeout_s)
        if not isinstance(timeout_s, int) or isinstance(timeout_s, bool):
            raise errors.invalid("body/timeout must be integer")
        within = min(max(timeout_s, TIMEOUT_S_MIN), TIMEOUT_S_MAX)
        if within != timeout_s and not self.habits.clamps_timeout:
            raise errors.invalid(f"body/timeout must be >= {TIMEOUT_S_MIN} and <= {TIMEOUT_S_MAX}")
        return within

    def _check_limits(self) -> None:
        headers = self.rate_headers()
        limit = self.plan.creates_per_minute
        if limit is not None and len(self._creates_ms) >= limit:
            reset_s = dict(headers)["x-ratelimit-reset"]
            raise errors.too_many_creates(limit, (*headers, ("retry-after", reset_s)))
        limit, running = self.plan.concurrent_sessions, len(self._live)
        if limit is not None and running >= limit:
            retry_after = ("retry-after", str(RETRY_AFTER_CONCURRENCY_S))
            raise errors.too_many_sessions(limit, running, (*headers, retry_after))


def _end(client: Client, reason: str) -> None:
    if client.peer is not None:
        client.peer.end_session(reason)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _part(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = fields.get(name, {})
    if not isinstance(part, dict):
        raise errors.invalid(f"body/{name} must be object")
    return part


def _signing_key(session_id: str) -> str:
    """A JWT that is good for one session."""
    parts = [{"alg": "HS256", "typ": "JWT"}, {"sessionId": session_id, "projectId": PROJECT_ID}]
    text = ".".join(_encoded(orjson.dumps(part)) for part in parts)
    return f"{text}.{_encoded(hmac.digest(b'simulated', text.encode(), hashlib.sha256))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
