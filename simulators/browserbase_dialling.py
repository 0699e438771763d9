"""How Browserbase is asked for a connection to a browser: what stands in the address.

- `/?signingKey=`: the session's own address. `/connect` means the same as `/`, everywhere.
- `/connect?apiKey=KEY&sessionId=`: any session of the account; without an id one is made.
- `.../json/version` with the same query: Chromium's own question for the address.
- `/debug/{session}/devtools/page/{target}?expires=`: the live view, which needs no key.
"""

import re
from dataclasses import dataclass

from simulators.server import ReceivedRequest
from simulators.websocket import wants_websocket

_CONNECT = re.compile(r"/(?:connect)?")
_VERSION = re.compile(r"(?:/connect)?/json/version/?")
_VIEW = re.compile(r"/debug/(?P<session>[^/]+)/devtools/(?P<kind>page|browser)/(?P<target>[^/]+)")


@dataclass(frozen=True, slots=True)
class Dial:
    """What a connection names. `target`: the page that it is for; None: the browser."""

    session_id: str = ""
    api_key: str = ""
    signing_key: str = ""
    target: str | None = None
    expires_ms: int | None = None
    is_viewer: bool = False
    is_question: bool = False
    """It asks where to connect to, and does not connect."""


def dialled(request: ReceivedRequest, path: str) -> Dial | None:
    """None for a request that has nothing to do with connections."""
    query = request.query
    is_question = request.method == "GET" and _VERSION.fullmatch(path) is not None
    if not is_question and not wants_websocket(request):
        return None
    view = _VIEW.fullmatch(path)
    if view is not None:
        expires = query.get("expires", "")
        return Dial(
            session_id=view["session"],
            target=view["target"] if view["kind"] == "page" else None,
            expires_ms=int(expires) if expires.isascii() and expires.isdigit() else None,
            is_viewer=True,
        )
    if not is_question and _CONNECT.fullmatch(path) is None:
        return None
    return Dial(
        session_id=query.get("sessionId", ""),
        api_key=query.get("apiKey", ""),
        signing_key=query.get("signingKey", ""),
        is_question=is_question,
    )
