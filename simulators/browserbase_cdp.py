"""A scripted browser, and the commands of the Chrome DevTools Protocol that it answers.

They are what raw clients of the protocol need; libraries that take a browser apart (Playwright) need a real one.

Beside the real domains there is one for tests, `Simulator`: a client behind a proxy asks the far end to misbehave.

- `echo` answers its parameters.
- `flood {messages, bytes, pieceBytes?, binary?}` sends so many messages of so many bytes, as fast as they are taken, in
  fragments if asked, and answers when all are out.
- `ping {payload?}`, `close {code?, reason?}`, `drop`; `deafen`: nothing more is read, until the test says `listen`.
- `moveProxied {bytes}` moves bytes through the vendor's proxies.

A binary message comes back as it is.
"""

import base64
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from metering.tasks import spawn
from simulators.browserbase_pages import BLANK, Page, Pages
from simulators.browserbase_state import Client
from simulators.png import png
from simulators.script import Line
from simulators.websocket import CloseCode, Peer

COMMAND_BYTES_MAX = 256 * 1024 * 1024
FLOOD_MESSAGES_MAX = 1_000_000
FLOOD_BYTES_MAX = 256 * 1024 * 1024
"""Of one message."""
PRODUCT = "HeadlessChrome/142.0.0.0"
VIEWPORT = (1280, 720)
SCREENSHOT_PIXELS_MAX = 40_000_000
NOT_FOUND, INVALID_PARAMS, SERVER_ERROR = -32601, -32602, -32000
"""Error codes of JSON-RPC, as Chromium uses them."""
_IDLE_DOMAINS = (
    "Emulation.",
    "Network.",
    "Log.",
    "Fetch.",
    "Security.",
    "Performance.",
    "Input.",
    "Browser.set",
)
"""Whose commands are answered with nothing."""
_IDLE_COMMANDS = (".enable", ".disable")


class CommandError(Exception):
    """A command that cannot be done."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class CdpPeer(Peer):
    """One client, of the browser or of one page. Within the browser a client attaches to pages, by session ids."""

    takes_binary = True
    message_bytes_max = COMMAND_BYTES_MAX

    def __init__(self, line: Line, client: Client, browser: Pages, page: Page | None) -> None:
        super().__init__(line)
        self.client = client
        self.commands: list[dict[str, Any]] = []
        """Every command of the client, in order."""
        self.flooded_total = 0
        """Messages of floods that the kernel has taken."""
        self._browser = browser
        self._page = page
        self._attached: dict[str, Page] = {}
        self._is_flooding = False
        self._table: Mapping[str, Callable[[dict[str, Any], str | None], Any]] = {
            "Browser.getVersion": self._version,
            "Browser.close": lambda *_: self.close(CloseCode.NORMAL),
            "Target.setDiscoverTargets": self._discover,
            "Target.setAutoAttach": self._auto_attach,
            "Target.getTargets": lambda *_: {"targetInfos": [*map(self._info, browser.open_pages.values())]},
            "Target.getTargetInfo": self._target_info,
            "Target.getBrowserContexts": lambda *_: {"browserContextIds": []},
            "Target.createTarget": self._create,
            "Target.attachToTarget": lambda params, _: {"sessionId": self._attach(self._target(params))},
            "Target.detachFromTarget": self._detach,
            "Target.closeTarget": self._close_target,
            "Page.getFrameTree": lambda _, session: {"frameTree": {"frame": self._current(session).frame}},
            "Page.getLayoutMetrics": lambda *_: {
                "cssLayoutViewport": _box(*VIEWPORT),
                "cssContentSize": _box(*VIEWPORT),
            },
            "Page.navigate": self._navigate,
            "Page.captureScreenshot": self._screenshot,
            "Runtime.evaluate": self._evaluate,
            "Simulator.echo": lambda params, _: params,
            "Simulator.ping": lambda params, _: self.ping(str(params.get("payload", "")).encode()),
            "Simulator.close": lambda params, _: self.close(
                params.get("code", CloseCode.NORMAL), str(params.get("reason", ""))
            ),
            "Simulator.drop": lambda *_: self.break_off(),
            "Simulator.deafen": lambda *_: self.deafen(),
            "Simulator.moveProxied": lambda params, _: browser.move(int(params["bytes"])),
        }

    # what a test makes happen

    def deafen(self) -> None:
        """Read nothing more, until told to `listen`."""
        self._line.pause()

    def listen(self) -> None:
        self._line.resume()

    async def flood(
        self, messages: int, size: int, *, piece_bytes: int | None = None, is_binary: bool = False
    ) -> None:
        """Send so many messages of `size` bytes, as fast as the client takes them."""
        for number in range(messages):
            if not self.is_open:
                return
            if is_binary:
                self.send_bytes(bytes(size), piece_bytes=piece_bytes)
            else:
                self.send_text(_filled(number, size), piece_bytes=piece_bytes)
            await self._line.sent()
            self.flooded_total += 1

    def end_session(self, reason: str) -> None:
        """With a close frame; which code the vendor sends is not known."""
        self.close(CloseCode.GOING_AWAY, reason)

    # the connection

    def received(self, data: bytes) -> None:
        self.client.heard()
        super().received(data)

    def gone(self) -> None:
        self.client.left()

    def said_bytes(self, data: bytes) -> None:
        self.send_bytes(data)

    def said(self, text: str) -> None:
        try:
            command = orjson.loads(text)
        except orjson.JSONDecodeError:
            return  # as Chromium does with what is no command
        if not isinstance(command, dict) or not isinstance(command.get("id"), int):
            return
        self.commands.append(command)
        try:
            result = self._do(command)
        except CommandError as error:
            self._say(command, error={"code": error.code, "message": error.message})
        except (KeyError, TypeError, ValueError) as error:
            self._say(command, error={"code": INVALID_PARAMS, "message": f"Invalid parameters: {error}"})
        else:
            if result is not _LATER:
                self._say(command, result=result or {})

    def _do(self, command: dict[str, Any]) -> Any:
        method, params = str(command.get("method")), command.get("params") or {}
        session_id = command.get("sessionId")
        self._browser.log({"method": method, "params": params})
        if method == "Simulator.flood":
            return self._start_flood(command, params)
        known = self._table.get(method)
        if known is not None:
            return known(params, session_id)
        if method.startswith(_IDLE_DOMAINS) or method.endswith(_IDLE_COMMANDS):
            return {}
        raise CommandError(NOT_FOUND, f"'{method}' wasn't found")

    def _say(self, command: Mapping[str, Any], **answer: Any) -> None:
        session_id = command.get("sessionId")
        where = {} if session_id is None else {"sessionId": session_id}
        self.send_text(orjson.dumps({"id": command["id"], **answer, **where}).decode())

    def _tell(self, method: str, params: Mapping[str, Any], session_id: str | None = None) -> None:
        where = {} if session_id is None else {"sessionId": session_id}
        self.send_text(orjson.dumps({"method": method, "params": params, **where}).decode())

    # pages

    def _info(self, page: Page) -> dict[str, Any]:
        return page.info(is_attached=page in self._attached.values())

    def _target(self, params: Mapping[str, Any]) -> Page:
        page = self._browser.open_pages.get(str(params.get("targetId")))
        if page is None:
            raise CommandError(INVALID_PARAMS, "No target with given id found")
        return page

    def _current(self, session_id: str | None) -> Page:
        """The page that a command is for."""
        page = self._page if session_id is None else self._attached.get(session_id)
        if page is None:
            raise CommandError(SERVER_ERROR, "Not attached to a page")
        return page

    def _attach(self, page: Page) -> str:
        session_id = f"{page.id}-{len(self._attached)}"
        self._attached[session_id] = page
        told = {"sessionId": session_id, "targetInfo": self._info(page), "waitingForDebugger": False}
        self._tell("Target.attachedToTarget", told)
        return session_id

    def _detach(self, params: dict[str, Any], _: str | None) -> None:
        self._attached.pop(str(params.get("sessionId")), None)

    def _version(self, *_: Any) -> dict[str, Any]:
        return {
            "protocolVersion": "1.3",
            "product": PRODUCT,
            "revision": "@simulated",
            "userAgent": "Mozilla/5.0 (simulated)",
            "jsVersion": "14.2",
        }

    def _discover(self, *_: Any) -> dict[str, Any]:
        for page in self._browser.open_pages.values():
            self._tell("Target.targetCreated", {"targetInfo": self._info(page)})
        return {}

    def _auto_attach(self, params: dict[str, Any], session_id: str | None) -> dict[str, Any]:
        if params.get("autoAttach") and session_id is None:
            for page in self._browser.open_pages.values():
                if page not in self._attached.values():
                    self._attach(page)
        return {}

    def _target_info(self, params: dict[str, Any], session_id: str | None) -> dict[str, Any]:
        """Of a page, or without one of the browser itself."""
        if "targetId" not in params and session_id is None and self._page is None:
            browser = {"targetId": self._browser.id, "type": "browser", "title": "", "url": ""}
            return {"targetInfo": {**browser, "attached": True, "canAccessOpener": False}}
        page = self._target(params) if "targetId" in params else self._current(session_id)
        return {"targetInfo": self._info(page)}

    def _create(self, params: dict[str, Any], _: str | None) -> dict[str, Any]:
        page = self._browser.open(str(params.get("url") or BLANK))
        self._tell("Target.targetCreated", {"targetInfo": self._info(page)})
        return {"targetId": page.id}

    def _close_target(self, params: dict[str, Any], _: str | None) -> dict[str, Any]:
        page = self._target(params)
        del self._browser.open_pages[page.id]
        self._attached = {key: each for key, each in self._attached.items() if each is not page}
        self._tell("Target.targetDestroyed", {"targetId": page.id})
        return {"success": True}

    def _navigate(self, params: dict[str, Any], session_id: str | None) -> dict[str, Any]:
        page = self._current(session_id)
        self._browser.navigate(page, str(params.get("url")))
        self._tell("Page.frameNavigated", {"frame": page.frame, "type": "Navigation"}, session_id)
        for name in ("init", "DOMContentLoaded", "load"):
            stage = {"frameId": page.id, "loaderId": page.frame["loaderId"], "name": name, "timestamp": 0}
            self._tell("Page.lifecycleEvent", stage, session_id)
        self._tell("Page.loadEventFired", {"timestamp": 0}, session_id)
        return {"frameId": page.id, "loaderId": page.frame["loaderId"]}

    def _screenshot(self, params: dict[str, Any], session_id: str | None) -> dict[str, Any]:
        """A PNG of the viewport, or as large as the clip says."""
        self._current(session_id)
        clip = params.get("clip") or {}
        width, height = int(clip.get("width", VIEWPORT[0])), int(clip.get("height", VIEWPORT[1]))
        if width < 1 or height < 1 or width * height > SCREENSHOT_PIXELS_MAX:
            raise CommandError(SERVER_ERROR, "Unable to capture screenshot")
        return {"data": base64.b64encode(png(width, height)).decode()}

    def _evaluate(self, params: dict[str, Any], session_id: str | None) -> dict[str, Any]:
        """The page's title and location, values of JSON, and of all else the expression itself as a text."""
        page, expression = self._current(session_id), str(params.get("expression", ""))
        known = {"document.title": page.title, "location.href": page.url}
        try:
            value = known[expression] if expression in known else orjson.loads(expression)
        except orjson.JSONDecodeError:
            value = expression
        return {"result": {"type": _TYPES.get(type(value), "object"), "value": value}}

    # misbehaving

    def _start_flood(self, command: dict[str, Any], params: Mapping[str, Any]) -> object:
        messages, size = int(params.get("messages", 1)), int(params.get("bytes", 0))
        if messages > FLOOD_MESSAGES_MAX or size > FLOOD_BYTES_MAX or self._is_flooding:
            raise CommandError(INVALID_PARAMS, "Too much, or one flood is running")

        async def run() -> None:
            piece_bytes, is_binary = params.get("pieceBytes"), params.get("binary") is True
            await self.flood(messages, size, piece_bytes=piece_bytes, is_binary=is_binary)
            self._is_flooding = False
            self._say(command, result={"sent": messages})

        self._is_flooding = True
        spawn(run(), name="simulated flood")
        return _LATER


class ScriptedBrowser(Pages):
    """The browser of one session."""

    def connect(self, line: Line, client: Client, target: str | None) -> CdpPeer:
        return CdpPeer(line, client, self, None if target is None else self.open_pages.get(target))

    def stop(self) -> None:
        """Nothing runs."""


_LATER = object()
"""The answer of a command that tells it itself."""
_TYPES = {str: "string", int: "number", float: "number", bool: "boolean"}


def _box(width: int, height: int) -> dict[str, int]:
    return {"x": 0, "y": 0, "clientWidth": width, "clientHeight": height, "width": width, "height": height}


def _filled(number: int, size: int) -> str:
    """An event of exactly `size` bytes, unless it needs more."""
    event = {"method": "Simulator.flooded", "params": {"number": number, "data": ""}}
    missing = size - len(orjson.dumps(event))
    event = {"method": "Simulator.flooded", "params": {"number": number, "data": "x" * max(missing, 0)}}
    return orjson.dumps(event).decode()
