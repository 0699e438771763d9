"""The demo's browser: a session at the simulated Browserbase, driven over the proxy's websocket with a few commands of the Chrome
DevTools Protocol, and what the ledger says while it runs and afterwards."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from automna_proxy.demo_json import object_from

MOUNT = "/api/browserbase"
TIMEOUT_S = 30.0
CREATED, PNG = 201, b"\x89PNG"


class BrowsingError(Exception):
    """The browser could not be driven; the message is for the person who watches."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A page that a browser is sent to, and the title that it must have there."""

    user: str
    url: str
    title: str


@dataclass(frozen=True, slots=True)
class Visited:
    """What was seen of it. `address` is the proxy's, as far as anybody may read it."""

    session_id: str
    address: str
    title: str
    screenshot_bytes: int


class Browsing:
    """One session, from its creation to its client's leaving. Raises BrowsingError."""

    def __init__(self, url: str, gateway_token: str) -> None:
        self._url = url
        self._headers = {"x-bb-api-key": gateway_token}
        self._commands = 0

    def create(self) -> Mapping[str, Any]:
        """A session, as the proxy shows it."""
        return object_from(
            self._url,
            ("POST", f"{MOUNT}/v1/sessions", b"{}"),
            self._headers,
            status=CREATED,
            failed=lambda why: BrowsingError(f"no browser session: {why}"),
        )

    def connected(self, session: Mapping[str, Any]) -> ClientConnection:
        """The websocket into its browser."""
        try:
            return connect(session["connectUrl"], proxy=None, max_size=None, open_timeout=TIMEOUT_S)
        except (OSError, WebSocketException) as error:
            raise BrowsingError(f"no websocket into the browser: {error}") from error

    def visit(self, socket: ClientConnection, session: Mapping[str, Any], url: str) -> Visited:
        """Go there, and look."""
        targets = self._call(socket, "Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        page = self._call(socket, "Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call(socket, "Page.navigate", page, url=url)
        title = self._call(socket, "Runtime.evaluate", page, expression="document.title")["result"]["value"]
        picture = base64.b64decode(self._call(socket, "Page.captureScreenshot", page)["data"])
        if not picture.startswith(PNG):
            raise BrowsingError("the screenshot is no picture")
        address = session["connectUrl"].rpartition("/")[0] + "/..."
        return Visited(session["id"], address, title, len(picture))

    def _call(
        self, socket: ClientConnection, method: str, session_id: str = "", **params: Any
    ) -> dict[str, Any]:
        self._commands += 1
        where = {"sessionId": session_id} if session_id else {}
        try:
            socket.send(json.dumps({"id": self._commands, "method": method, "params": params, **where}))
            while (answer := json.loads(socket.recv(TIMEOUT_S))).get("id") != self._commands:
                pass  # events
        except (OSError, TimeoutError, WebSocketException) as error:
            raise BrowsingError(f"{method}: {error}") from error
        if "result" not in answer:
            raise BrowsingError(f"{method}: {answer.get('error')}")
        result: dict[str, Any] = answer["result"]
        return result
