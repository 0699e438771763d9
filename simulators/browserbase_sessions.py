"""The endpoints of Browserbase's sessions and contexts."""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from simulators import browserbase_errors as errors
from simulators.browserbase_behaviour import ReportedUsage
from simulators.browserbase_metadata import matching
from simulators.browserbase_project import TIMEOUT_S_MAX, Project
from simulators.browserbase_state import Context, Session, Status
from simulators.browserbase_turn import CREATED, Call, Given, Handler, given
from simulators.websocket import websocket_url

RELEASE = "REQUEST_RELEASE"


class Sessions:
    """`url` is the simulator's own, when it is asked for: capabilities lead there."""

    def __init__(self, project: Project, url: Callable[[], str]) -> None:
        self._project = project
        self._url = url
        self.routes: Mapping[str, Handler] = {
            "POST /sessions": self._create,
            "GET /sessions": self._list,
            "GET /sessions/{session}": lambda call: given(self.with_keys(self._session(call))),
            "POST /sessions/{session}": self._update,
            "GET /sessions/{session}/debug": self._debug,
            "GET /sessions/{session}/logs": lambda call: given(self._session(call).logs),
            "POST /contexts": self._create_context,
            "GET /contexts/{context}": lambda call: given(self._context(call).as_json()),
            "PUT /contexts/{context}": lambda call: given(self._context(call).keys()),
            "DELETE /contexts/{context}": self._delete_context,
        }

    def with_keys(self, session: Session) -> dict[str, Any]:
        """As one session is shown: with what leads into it while it runs."""
        shown = self._project.shown(session)
        if not session.is_live:
            return shown
        url, key = self._url(), session.signing_key
        return {
            **shown,
            "connectUrl": f"{websocket_url(url)}/?signingKey={key}",
            "seleniumRemoteUrl": f"{url}/webdriver",
            "signingKey": key,
        }

    def _session(self, call: Call) -> Session:
        return self._project.session(call.ids["session"])

    def _create(self, call: Call) -> Given:
        session = self._project.create(call.fields(), via="request", number=call.request.number, tag=call.tag)
        call.usage, call.object_id = ReportedUsage(sessions=1), session.id
        return given(self.with_keys(session), CREATED, self._project.rate_headers())

    def _list(self, call: Call) -> Given:
        """The whole project's, the newest first, all at once."""
        query = call.request.query
        sessions = list(reversed(self._project.sessions.values()))
        if "status" in query:
            if query["status"] not in Status.__members__:
                raise errors.invalid(f"querystring/status must be one of {', '.join(Status)}")
            sessions = [session for session in sessions if session.status == query["status"]]
        if "q" in query:
            sessions = matching(sessions, query["q"])
        return given([self._project.shown(session) for session in sessions])

    def _update(self, call: Call) -> Given:
        session, fields = self._session(call), call.fields()
        self._project.check_project(fields)
        if fields.get("status") != RELEASE:
            raise errors.invalid(f"body/status must be equal to constant {RELEASE}")
        self._project.release(session)
        return given(self._project.shown(session))

    def _debug(self, call: Call) -> Given:
        """The live view's addresses: who knows one needs no key."""
        session = self._project.live_session(call.ids["session"])
        lasts_s = call.integer("expiresIn", TIMEOUT_S_MAX, least=1, most=TIMEOUT_S_MAX)
        expires_ms = min(self._project.now_ms() + lasts_s * 1000, session.expires_ms)
        root, ends = f"/debug/{session.id}/devtools", f"debug=true&expires={expires_ms}"
        url = self._url()

        def inspectors(target: str) -> dict[str, str]:
            socket = quote(f"{url.partition('://')[2]}{root}/{target}?{ends}", safe="/:?=")
            page = f"inspector.html?wss={socket}"
            return {
                "debuggerUrl": f"{url}/devtools/{page}",
                "debuggerFullscreenUrl": f"{url}/devtools-fullscreen/{page}",
            }

        pages = [
            {**page, "faviconUrl": "", **inspectors(f"page/{page['id']}")} for page in session.browser.pages()
        ]
        whole = f"browser/{session.id}"
        socket = f"{websocket_url(url)}{root}/{whole}?{ends}"
        return given({**inspectors(whole), "pages": pages, "wsUrl": socket})

    # contexts

    def _context(self, call: Call) -> Context:
        return self._project.context(call.ids["context"])

    def _create_context(self, call: Call) -> Given:
        """Names are trimmed, and unique in the project whatever their case."""
        fields = call.fields()
        self._project.check_project(fields)
        name = fields.get("name")
        if name is not None and not isinstance(name, str):
            raise errors.invalid("body/name must be string")
        name = (name or "").strip() or None
        names = {each.name.lower() for each in self._project.contexts.values() if each.name is not None}
        if name is not None and name.lower() in names:
            raise errors.taken(name)
        context = Context(self._project.new_id(), name, self._project.now_ms())
        self._project.contexts[context.id] = context
        return given(context.keys(), CREATED)

    def _delete_context(self, call: Call) -> Given:
        del self._project.contexts[self._context(call).id]
        return Given()
