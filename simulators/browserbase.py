"""Browserbase, simulated: sessions that are created, connected to, left, released and billed, and all around them.

It keeps state: what one request makes, the next one finds. Facts about the vendor come from its documentation and its
SDK for Python (browserbase 1.22.0); what neither says is marked as a guess where it is decided. What an answer does
comes as `simulators.vendor` says, and whether the work behind it is done as `simulators.stateful` says.

Behind every session is a scripted browser (`simulators.browserbase_cdp`), or a real Chromium where one is given.
"""

import asyncio
import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

from metering.clock import Clock, SystemClock
from simulators import browserbase_errors as errors
from simulators.browserbase_account import Account
from simulators.browserbase_behaviour import (
    ACCOUNT_MARK,
    PLAIN,
    PLANTED,
    PROJECT_ID,
    Behaviour,
    ReportedUsage,
    answers,
    answers_late,
    breaks_after,
    drops,
    fails,
    hangs,
    loses_reply,
    parse_simulate,
    replays,
    stalls_after,
)
from simulators.browserbase_cdp import PRODUCT, CdpPeer, ScriptedBrowser
from simulators.browserbase_chromium import ChromiumBrowser, installed
from simulators.browserbase_dialling import Dial, dialled
from simulators.browserbase_files import Files
from simulators.browserbase_project import Habits, Plan, Project
from simulators.browserbase_sessions import Sessions
from simulators.browserbase_state import Billed, Browser, BrowserPeer, Context, Download, Session, Status
from simulators.browserbase_turn import Answered, Call, Given, Handler, Turn, given
from simulators.browserbase_web import Web
from simulators.paths import decoded, found, routes
from simulators.script import Answer, Line, Ready, Script
from simulators.server import ReceivedRequest
from simulators.vendor import Options, VendorSimulator
from simulators.websocket import accept, websocket_url

__all__ = [
    "ACCOUNT_MARK",
    "PLAIN",
    "PLANTED",
    "PROJECT_ID",
    "VENDOR_KEY",
    "Answered",
    "Behaviour",
    "Billed",
    "BrowserbaseSimulator",
    "CdpPeer",
    "Habits",
    "Plan",
    "ReportedUsage",
    "Session",
    "Status",
    "answers",
    "answers_late",
    "breaks_after",
    "drops",
    "fails",
    "hangs",
    "installed",
    "loses_reply",
    "replays",
    "stalls_after",
]

VENDOR_KEY = "bb_live_simulated_vendor_key"
"""The platform's own key, of the whole project."""
PREFIX = "/v1"
LINK_PATH = "/cdn/"
TICK_S = 0.25
"""How often sessions whose time has come are ended though nobody asks."""
LINKS_MAX = 10_000
PEERS_HELD = 100_000
"""Connections that are remembered."""


class BrowserbaseSimulator(VendorSimulator[Behaviour, Turn]):
    """`https://api.browserbase.com` and `wss://connect.browserbase.com` on one loopback port.

    Time is `clock`'s, and runs ahead of it by what `advance` adds. `habits` may be exchanged while it runs. `chromium`:
    a browser to start for every session; None: scripted ones. `seed` is that of all ids. Call its methods in its own
    event loop.
    """

    vendor_key = VENDOR_KEY
    behaviour_type = Behaviour
    turn_type = Turn
    parse_simulate = staticmethod(parse_simulate)

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        plan: Plan = Plan(),  # noqa: B008 - it cannot change
        habits: Habits = Habits(),  # noqa: B008 - it cannot change
        chromium: Path | None = None,
        seed: int = 0,
        **options: Unpack[Options[Behaviour]],
    ) -> None:
        super().__init__(**options)
        self.project = Project(
            clock or SystemClock(),
            plan=plan,
            habits=habits,
            seed=seed,
            new_browser=self._new_browser,
            happened=self._happened,
        )
        self.account = Account(self.project)
        self.peers: list[BrowserPeer] = []
        """Every connection to a browser that was accepted, also those that are gone."""
        self._chromium = chromium
        self._links: dict[str, tuple[bytes, str]] = {}
        self._sessions = Sessions(self.project, lambda: self.url)
        parts = (self._sessions, Files(self.project, self._link), Web(self.project), self.account)
        self._routes = [route for part in parts for route in routes(part.routes, PREFIX)]
        self._ticking: asyncio.TimerHandle | None = None

    # what happened

    @property
    def sessions(self) -> list[Session]:
        """Every session, in order: those of requests whose reply was lost, and those that a connection made, too."""
        return list(self.project.sessions.values())

    @property
    def contexts(self) -> list[Context]:
        """Every context that is there, in order: those of requests whose reply was lost, too."""
        return list(self.project.contexts.values())

    @property
    def billed(self) -> dict[str, Billed]:
        """What every session that has ended costs, by its id."""
        return self.project.billed

    @property
    def answers(self) -> list[Answered]:
        """What the answers to billable requests and connections say, in order of arrival."""
        return self.answers_of(Answered)

    # what a test makes happen

    def advance(self, seconds: float) -> None:
        """Let time pass for this account, and end what is due then."""
        self.project.ahead_ms += round(seconds * 1000)
        self.pass_time()

    def pass_time(self) -> None:
        """End what is due by now; every request does so first, too."""
        self.project.pass_time()
        self._happened()

    def set_habits(self, habits: Habits) -> None:
        self.project.habits = habits

    def move_proxied(self, session: Session, size: int) -> None:
        """So many bytes go through the vendor's proxies for a session."""
        session.proxy_uses.append((self.project.now_ms(), size))

    def add_download(self, session: Session, filename: str, content: bytes) -> Download:
        """A session's browser has downloaded a file."""
        download = Download(self.project.new_id(), session.id, filename, content, self.project.now_ms())
        self.project.downloads[download.id] = download
        return download

    def crash(self, session: Session) -> None:
        """A session's browser fails: ERROR."""
        self.project.crash(session)

    # running

    async def start(self, *, host: str = "127.0.0.1", port: int = 0) -> str:
        url = await super().start(host=host, port=port)
        self._tick()
        return url

    async def stop(self) -> None:
        """Browsers are stopped, too; the state of the sessions stays as it is."""
        if self._ticking is not None:
            self._ticking.cancel()
        await super().stop()
        browsers = [session.browser for session in self.project.sessions.values()]
        for browser in browsers:
            browser.stop()
        stopping = {each.stopping for each in browsers if isinstance(each, ChromiumBrowser) and each.stopping}
        if stopping:
            await asyncio.wait(stopping)

    def _tick(self) -> None:
        self.pass_time()
        self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _new_browser(self, project: Project, session_id: str) -> Browser:
        if self._chromium is not None:
            return ChromiumBrowser(self._chromium)

        def move(size: int) -> None:
            session = project.sessions[session_id]
            if session.has_proxy:
                self.move_proxied(session, size)

        def log(command: dict[str, Any]) -> None:
            now_ms = project.now_ms()
            request = {"timestamp": now_ms, "params": command["params"], "rawBody": ""}
            entry = {"method": command["method"], "pageId": 0, "sessionId": session_id, "timestamp": now_ms}
            project.sessions[session_id].log({**entry, "request": request})

        return ScriptedBrowser(session_id, log, move)

    # answering

    def answer(self, request: ReceivedRequest) -> Answer:
        self.pass_time()
        return super().answer(request)

    def route(self, request: ReceivedRequest) -> Callable[[Turn], Answer]:
        path = _path(request)
        if path.startswith(LINK_PATH) and request.method == "GET":
            return self._download
        dial = dialled(request, path)
        if dial is not None:
            return lambda turn: self._dial(turn, dial)
        match = found(self._routes, request.method, path)
        if match is None:
            raise errors.no_route(request.method, request.path)
        handler, ids = match
        return lambda turn: self._handle(turn, handler, ids)

    def authenticate(self, request: ReceivedRequest) -> None:
        """The key in its own header, and nowhere else. Connections are let in by what they name."""
        if _path(request).startswith(PREFIX):
            self._check_key(request.header(b"x-bb-api-key"))

    def _check_key(self, key: bytes) -> None:
        if not key or (self.api_key is not None and key != self.api_key):
            raise errors.unauthorized()

    def _handle(self, turn: Turn, handler: Handler, ids: dict[str, str]) -> Script | Ready:
        if not turn.behaviour.takes_effect:
            return turn.give_nothing()
        call = Call(turn.request, ids)
        answer = handler(call)
        turn.report(call)
        return turn.give(answer, self.project.now_ms())

    # connecting

    def _dial(self, turn: Turn, dial: Dial) -> Answer:
        """A connection to a browser, or where it may be had; a session is made first where none is named.

        With a behaviour that fails, waits or breaks: the work, if any, and no connection but that, and 503 after a
        silence.
        """
        if not turn.behaviour.takes_effect:
            return turn.give_nothing()
        call = Call(turn.request, {})
        if dial.is_question:
            self._check_dial(dial)
            return turn.give(given(self._version(turn.request)), self.project.now_ms())
        session = self._dialled_session(call, dial)
        turn.report(call)
        if not (turn.is_ordinary and turn.behaviour.is_burst):
            return turn.give_nothing()

        def connect(line: Line) -> BrowserPeer:
            client = self.project.join(session, is_viewer=dial.is_viewer)
            peer = client.peer = session.browser.connect(line, client, dial.target)
            if len(self.peers) < PEERS_HELD:
                self.peers.append(peer)
            return peer

        return accept(turn.request, connect, turn.reports)

    def _check_dial(self, dial: Dial) -> None:
        if dial.signing_key:
            self.project.signed_session(dial.signing_key)
        else:
            self._check_key(dial.api_key.encode())

    def _dialled_session(self, call: Call, dial: Dial) -> Session:
        """The running session that a connection is for."""
        if dial.is_viewer:
            if dial.expires_ms is not None and dial.expires_ms <= self.project.now_ms():
                raise errors.unauthorized()
            return self.project.live_session(dial.session_id)
        if dial.signing_key:
            return self.project.signed_session(dial.signing_key)
        self._check_key(dial.api_key.encode())
        if dial.session_id:
            return self.project.live_session(dial.session_id)
        session = self.project.create({}, via="connect", number=call.request.number, tag=call.tag)
        call.usage, call.object_id = ReportedUsage(sessions=1), session.id
        return session

    def _version(self, request: ReceivedRequest) -> dict[str, str]:
        """What Chromium's own endpoint says. The address holds all that the question held, the key too."""
        path = request.path.partition("/json/")[0] or "/"
        query = request.target.partition("?")[2]
        return {
            "Browser": PRODUCT,
            "Protocol-Version": "1.3",
            "webSocketDebuggerUrl": f"{websocket_url(self.url)}{path}?{query}",
        }

    # signed addresses

    def _link(self, content: bytes, content_type: str) -> str:
        path = f"{LINK_PATH}{self.project.new_id()}"
        if len(self._links) < LINKS_MAX:
            self._links[path] = (content, content_type)
        return f"{self.url}{path}?Signature={self.project.new_id()}"

    def _download(self, turn: Turn) -> Script | Ready:
        if turn.request.path not in self._links:
            raise errors.no_route("GET", turn.request.path)
        content, content_type = self._links[turn.request.path]
        return turn.give(Given(content, 200, content_type), self.project.now_ms())


def _path(request: ReceivedRequest) -> str:
    """The path as the most obliging server would understand it: decoded, and without dot segments. A guess, and the
    worst case: what a proxy lets through as an odd id is the account's own page here."""
    path = decoded(request.path)
    return posixpath.normpath(path) if path.startswith("/") else path
