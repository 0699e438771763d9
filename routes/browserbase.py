"""Browserbase: browser sessions, and what is kept for them (contexts, extensions, downloads).

All users share one project at the vendor. A session, a context, an extension and a download belong to the user who made
them; lists show only what is theirs. A session is bounded by what the plan and the budget have left, held slice by slice while it
runs, and billed by the vendor's own report. Undeclared, so it does not exist: projects and their totals, secrets,
functions, webhooks, certificates, and what runs models or fetches pages at prices that are not known (agents, fetch,
search). Paths and bodies: the vendor's OpenAPI document and browserbase 1.22.0 (Python).
"""

from dataclasses import replace

import orjson

from metering.ledger import OPEN_BROWSERS
from metering.usage import BROWSER_SECONDS, NOTHING, Usage, UsageLine
from proxy.meters import Free
from proxy.surface import (
    BEARER,
    Deferred,
    Ending,
    Example,
    ForbiddenField,
    HandsOut,
    HeaderKey,
    Keeps,
    Links,
    Names,
    Operation,
    Option,
    QueryKey,
    Question,
    SplicedSocket,
    Surface,
    Swept,
    Tag,
    Timed,
    Upstream,
)
from routes.browserbase_errors import BrowserbaseDialect
from routes.browserbase_meter import (
    BYTES_PER_S_ENV,
    PRODUCT,
    TIMEOUT_ENV,
    TIMEOUT_MAX_ENV,
    SessionMeter,
    is_running,
)

PROJECT_ENV = "BROWSERBASE_PROJECT_ID"
TICKET_ENV, TICKET_ONCE_ENV = "BROWSERBASE_TICKET_S", "BROWSERBASE_TICKET_ONCE"
LINGER_ENV, VIEW_ENV = "BROWSERBASE_LINGER_S", "BROWSERBASE_VIEW_S"
SESSION, CONTEXT, EXTENSION, DOWNLOAD = "session", "context", "extension", "download"
"""Kinds of objects that the vendor keeps."""
POLL_S, SLICE_S, DUE_S = 15.0, 120, 900.0
"""Between two looks at a session that runs; what is held of its time ahead; how long a hold lives without a word of it."""

_NOT_FOUND = "Not found."
_PROJECT = (("projectId", PROJECT_ENV),)
_IN_PATH = Names(SESSION, _NOT_FOUND, path_param="session_id")
_CONTEXT = Names(CONTEXT, _NOT_FOUND, path_param="context_id")
_EXTENSION = Names(EXTENSION, _NOT_FOUND, path_param="extension_id")
_DOWNLOAD = Names(DOWNLOAD, _NOT_FOUND, path_param="download_id")
_TAG = Tag("userMetadata.automna")
"""Callers' own metadata stands beside it."""

_LINKS = Links(
    SESSION,
    "id",
    "/connect/{ticket}",
    TICKET_ENV,
    sockets=("connectUrl",),
    keys=("signingKey",),
    others=("seleniumRemoteUrl",),
)
"""A session's own websocket, its key, and its WebDriver, which is not relayed."""


def _version(url: str) -> bytes:
    """As Chromium answers `/json/version`, as far as clients read it (Playwright, Puppeteer, OpenClaw)."""
    return orjson.dumps({"Browser": "Chrome", "Protocol-Version": "1.3", "webSocketDebuggerUrl": url})


_INTO_SESSION = SplicedSocket(
    SESSION,
    "/v1/sessions/{id}",
    "connectUrl",
    ("browserbase.com",),
    "The session has ended, or does not exist.",
    question=Question("/json/version", _version),
)

_ID = "0b8e5a4c-3f62-4d0e-9a37-5f1f6a0c7d11"
_SESSION_JSON = (
    b'{"id":"0b8e5a4c-3f62-4d0e-9a37-5f1f6a0c7d11","createdAt":"2026-11-20T12:00:00.000Z",'
    b'"updatedAt":"2026-11-20T12:01:30.000Z","startedAt":"2026-11-20T12:00:00.000Z",'
    b'"expiresAt":"2026-11-20T12:15:00.000Z","endedAt":"2026-11-20T12:01:30.000Z","status":"COMPLETED",'
    b'"proxyBytes":0,"keepAlive":false,"region":"us-west-2","contextId":null,"userMetadata":{}}'
)
_RUNNING_JSON = (
    b'{"id":"0b8e5a4c-3f62-4d0e-9a37-5f1f6a0c7d11","createdAt":"2026-11-20T12:00:00.000Z",'
    b'"startedAt":"2026-11-20T12:00:00.000Z","status":"RUNNING","userMetadata":{}}'
)
_CONTEXT_JSON = (
    b'{"id":"0b8e5a4c-3f62-4d0e-9a37-5f1f6a0c7d11","uploadUrl":"https://files.example/c1","publicKey":"k"}'
)
_EXTENSION_JSON = b'{"id":"0b8e5a4c-3f62-4d0e-9a37-5f1f6a0c7d11","fileName":"a.zip"}'
_DOWNLOADS_JSON = (
    b'{"downloads":[{"id":"0b8e5a4c-3f62-4d0e-9a37-5f1f6a0c7d11","sessionId":"0b8e5a4c-3f62-4d0e-9a37-5f1f6a0c7d11",'
    b'"filename":"a.pdf"}],"total":1,"limit":10,"offset":0}'
)
_RELEASE = b'{"status":"REQUEST_RELEASE"}'
_ONE_SESSION = Usage((UsageLine(PRODUCT, {BROWSER_SECONDS: 90}),))

_ONE = "/v1/sessions/{session_id}"
_LISTED = Swept(SESSION, "/v1/sessions?status=RUNNING", "id", tag="userMetadata.automna")


def _connecting(path: str, spliced: SplicedSocket, names: tuple[Names, ...] = ()) -> Operation:
    """The websocket into a browser."""
    return Operation(
        "GET", path, meter=Free(), names=names, spliced=spliced, example=Example(path, answer=b"")
    )


def _free(
    method: str,
    path: str,
    answer: bytes,
    body: bytes = b"",
    *,
    names: tuple[Names, ...] = (_IN_PATH,),
    content_type: str = "application/json",
    query: str = "",
    hands_out: tuple[HandsOut, ...] = (),
    hides: tuple[str, ...] = (),
    namespaced: tuple[str, ...] = (),
    forces: tuple[tuple[str, str], ...] = (),
    takes_any_body: bool = False,
    keeps: Keeps | None = None,
    ends: tuple[str, str] | None = None,
    forbidden: tuple[ForbiddenField, ...] = (),
    links: Links | None = None,
    at_most_in_query: tuple[tuple[str, str], ...] = (),
) -> Operation:
    filled = path
    for piece in ("session_id", "context_id", "extension_id", "download_id", "page_id"):
        filled = filled.replace(f"{{{piece}}}", _ID)
    return Operation(
        method,
        path,
        meter=Free(),
        names=names,
        hands_out=hands_out,
        hides=hides,
        namespaced=namespaced,
        forces=forces,
        takes_any_body=takes_any_body,
        keeps=keeps,
        ends=ends,
        forbidden=forbidden,
        links=links,
        at_most_in_query=at_most_in_query,
        may_lack_body=not body,
        example=Example(
            filled + query, body=body, answer=answer, answer_content_type=content_type, usage=NOTHING
        ),
    )


SURFACE = Surface(
    name="browserbase",
    provider="browserbase",
    mounts=("/api/browserbase", "/api/browser"),
    upstream=Upstream(
        "https://api.browserbase.com",
        url_env="BROWSERBASE_UPSTREAM_URL",
        key_env="BROWSERBASE_API_KEY",
        credential=HeaderKey("x-bb-api-key"),
    ),
    token_places=(HeaderKey("x-bb-api-key"), BEARER, QueryKey("apiKey")),
    operations=(
        Operation(
            "POST",
            "/v1/sessions",
            meter=SessionMeter(),
            names=(
                Names(CONTEXT, _NOT_FOUND, body_field="browserSettings.context.id"),
                Names(EXTENSION, _NOT_FOUND, body_field="extensionId"),
                Names(EXTENSION, _NOT_FOUND, body_field="browserSettings.extensionId"),
            ),
            forbidden=(
                ForbiddenField("proxySettings.caCertificates", "certificates belong to the whole account."),
            ),
            forces=_PROJECT,
            tag=_TAG,
            hands_out=(HandsOut(SESSION, "id"),),
            quotas=("browser_seconds",),
            timed=Timed(PRODUCT, BROWSER_SECONDS, OPEN_BROWSERS, SLICE_S),
            deferred=Deferred(
                SESSION,
                "/v1/sessions/{id}",
                is_running,
                ending=Ending("POST", "/v1/sessions/{id}", _RELEASE),
                poll_s=POLL_S,
                due_s=DUE_S,
                given_up_after_s=43_200.0,
                by_tag=replace(_LISTED, path="/v1/sessions?q=user_metadata%5B%27automna%27%5D%3A%27{tag}%27"),
            ),
            may_lack_body=True,
            links=_LINKS,
            example=Example(
                "/v1/sessions",
                body=b'{"timeout":300}',
                answer=_SESSION_JSON,
                usage=_ONE_SESSION,
                while_running=_RUNNING_JSON,
            ),
        ),
        _free(
            "GET",
            "/v1/sessions",
            b"[" + _SESSION_JSON + b"]",
            names=(),
            hides=("automna",),
            keeps=Keeps(SESSION, "id"),
            links=_LINKS,
        ),
        _free("GET", _ONE, _SESSION_JSON, hides=("automna",), links=_LINKS),
        _free("POST", _ONE, _SESSION_JSON, _RELEASE, hides=("automna",), forces=_PROJECT, links=_LINKS),
        _free(
            "GET",
            f"{_ONE}/debug",
            b'{"debuggerUrl":"https://debug.example/1","pages":[]}',
            links=_LINKS,
            at_most_in_query=(("expiresIn", VIEW_ENV),),
        ),
        _free("GET", f"{_ONE}/logs", b"[]"),
        _free("GET", f"{_ONE}/recording", b"[]"),
        _free("GET", f"{_ONE}/replays", b'{"pages":[]}'),
        _free(
            "GET",
            f"{_ONE}/replays/{{page_id}}",
            b"#EXTM3U\n",
            content_type="application/vnd.apple.mpegurl",
        ),
        _free("GET", f"{_ONE}/recording/downloads", b"[]"),
        _free("POST", f"{_ONE}/recording/downloads", b'{"id":"job1"}'),
        _free("GET", f"{_ONE}/downloads", b"PK\x05\x06" + b"\0" * 18, content_type="application/zip"),
        _free("POST", f"{_ONE}/uploads", b'{"message":"ok"}', b"{}", takes_any_body=True),
        _free(
            "GET",
            "/v1/downloads",
            _DOWNLOADS_JSON,
            names=(Names(SESSION, _NOT_FOUND, query_param="sessionId", is_required=True),),
            query=f"?sessionId={_ID}",
            hands_out=(HandsOut(DOWNLOAD, "downloads.id"),),
        ),
        _free(
            "GET",
            "/v1/downloads/{download_id}",
            b"%PDF-",
            names=(_DOWNLOAD,),
            content_type="application/octet-stream",
        ),
        _free(
            "DELETE",
            "/v1/downloads/{download_id}",
            b"",
            names=(_DOWNLOAD,),
            ends=(DOWNLOAD, "download_id"),
        ),
        _free(
            "POST",
            "/v1/contexts",
            _CONTEXT_JSON,
            b"{}",
            names=(),
            hands_out=(HandsOut(CONTEXT, "id"),),
            namespaced=("name",),
            forces=_PROJECT,
        ),
        _free("GET", "/v1/contexts/{context_id}", _CONTEXT_JSON, names=(_CONTEXT,), namespaced=("name",)),
        _free("PUT", "/v1/contexts/{context_id}", _CONTEXT_JSON, names=(_CONTEXT,), namespaced=("name",)),
        _free("DELETE", "/v1/contexts/{context_id}", b"", names=(_CONTEXT,), ends=(CONTEXT, "context_id")),
        _free(
            "POST",
            "/v1/extensions",
            _EXTENSION_JSON,
            b"{}",
            names=(),
            hands_out=(HandsOut(EXTENSION, "id"),),
            takes_any_body=True,
        ),
        _free("GET", "/v1/extensions/{extension_id}", _EXTENSION_JSON, names=(_EXTENSION,)),
        _free(
            "DELETE",
            "/v1/extensions/{extension_id}",
            b"",
            names=(_EXTENSION,),
            ends=(EXTENSION, "extension_id"),
        ),
        _connecting(
            "/connect/{ticket}", replace(_INTO_SESSION, ticket_piece="ticket", once_env=TICKET_ONCE_ENV)
        ),
        _connecting(
            "/connect",
            replace(_INTO_SESSION, id_param="sessionId", makes="POST /v1/sessions", linger_env=LINGER_ENV),
            (Names(SESSION, _NOT_FOUND, query_param="sessionId"),),
        ),
    ),
    swept=(_LISTED,),
    dialect=BrowserbaseDialect(),
    dropped_answer_headers=("x-ratelimit-*",),
    options=(
        Option(PROJECT_ENV, "", "The project that all sessions are made in, whatever a request says."),
        Option(TIMEOUT_ENV, "900", "How long a session may run that does not say.", unit="s"),
        Option(TIMEOUT_MAX_ENV, "21600", "How long a session may run at most, whatever it says.", unit="s"),
        Option(
            BYTES_PER_S_ENV,
            "100000",
            "What a session is held for that uses the vendor's proxies, for every second of its time.",
            unit="bytes",
        ),
        Option(TICKET_ENV, "900", "How long a session's `connectUrl` is good for connecting.", unit="s"),
        Option(
            TICKET_ONCE_ENV,
            "0",
            "With 1, it is good for one connection.",
            unit="0 or 1",
            pattern="[01]",
            expected="0 or 1",
        ),
        Option(
            LINGER_ENV,
            "30",
            "How long a session that `/connect?apiKey=` made waits for its user's next connection; then it is ended.",
            unit="s",
        ),
        Option(
            VIEW_ENV, "3600", "How long the addresses of a session's live view are good at most.", unit="s"
        ),
    ),
)
