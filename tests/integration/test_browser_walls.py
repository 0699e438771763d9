"""What is another's does not exist: every operation of Browserbase's surface, with every id that stands in it."""

import re
from contextlib import AsyncExitStack
from dataclasses import dataclass
from urllib.parse import quote, unquote

import orjson
import pytest

from routes.browserbase import SURFACE
from simulators.browserbase import PLANTED, PROJECT_ID, BrowserbaseSimulator, fails
from tests.integration.test_browser_sessions import created, released, until_booked
from tests.support.browserbase import MOUNT, house, user_of, variables
from tests.support.gateway import DatedClock, running_gateway
from tests.support.raw_http import raw_request

PIECE = re.compile(r"\{(\w+)\}")
ACCOUNT = [word for word in PLANTED if word != PROJECT_ID]
"""What no answer may show; the project's id stands in a user's own sessions, too."""
NOBODYS = "00000000-0000-4000-8000-000000000000"
FORM_TYPE = "multipart/form-data; boundary=edge"
ANYTHING = bytes(range(256)) * 300


def form(name, content):
    """A file as SDKs upload it."""
    head = f'--edge\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--edge--\r\n"


@dataclass
class Things:
    """What a user has, by the names that ids have in paths, and words of it that nobody else may read."""

    session: dict
    ids: dict[str, str]
    words: set[str]


async def things_of(at, user):
    """A session with a file that it has downloaded, a context and an extension."""
    name = user.user_id
    session = await created(user, keepAlive=True, timeout=3_600, userMetadata={"of": f"{name}-secret"})
    real = next(one for one in at.vendor.sessions if one.id == session["id"])
    at.vendor.add_download(real, f"{name}-file.bin", ANYTHING)
    listed = await user.http.get(f"/v1/downloads?sessionId={session['id']}")
    context = await user.http.post("/v1/contexts", json={"name": "profile", "projectId": "another"})
    extension = await user.http.post(
        "/v1/extensions", content=form(f"{name}.zip", ANYTHING), headers={"content-type": FORM_TYPE}
    )
    assert [listed.status_code, context.status_code, extension.status_code] == [200, 201, 201]
    ids = {
        "session_id": session["id"],
        "context_id": context.json()["id"],
        "extension_id": extension.json()["id"],
        "download_id": listed.json()["downloads"][0]["id"],
    }
    words = {f"{name}-secret", f"{name}-file.bin", f"{name}.zip", real.signing_key, *ids.values()}
    return Things(session, ids, words)


def at_vendor(at):
    """All that may be changed there."""
    project = at.vendor.project
    sessions = [(one.id, one.status, dict(one.uploads), one.has_mp4) for one in at.vendor.sessions]
    return sessions, dict(project.contexts), dict(project.extensions), dict(project.downloads)


async def leave(at, *users):
    """End and book all that runs for them."""
    for user in users:
        for one in (await user.http.get("/v1/sessions?status=RUNNING")).json():
            await released(user, one)
        await until_booked(at, user)


async def test_downloads_of_another_users_session_are_shown_under_no_spelling_of_its_name(tmp_path):
    """Vendors' servers differ in what they take for a repeated parameter."""
    async with house(tmp_path) as at:
        mine, theirs = await things_of(at, at.ada), await things_of(at, at.bob)
        own, other = mine.ids["session_id"], theirs.ids["session_id"]
        for spelled in ("sessionId[]", "sessionId%5B0%5D", "sessionid", "session_id", "sessionId "):
            answer = await at.ada.http.get(f"/v1/downloads?sessionId={own}&{spelled}={other}")
            assert (answer.status_code, "sessionId" in answer.text) == (400, True), spelled
        await leave(at, at.ada, at.bob)


async def ask(at, user, operation, path, body=None):
    headers = [(b"x-bb-api-key", user.token.encode())]
    content = b""
    if operation.method == "POST":
        headers.append((b"content-type", b"application/json"))
        content = operation.example.body if body is None else orjson.dumps(body)
    return await raw_request(at.gateway.url, operation.method, f"{MOUNT}{path}".encode(), headers, content)


def assert_tells_nothing(answer, others, path=""):
    """Nothing of somebody else's or of the account; but for what was asked for."""
    text = answer.wire.decode("latin-1")
    told = [word for word in (*others.words, *ACCOUNT) if word in text]
    assert [word for word in told if word not in unquote(path)] == []


REQUESTS = [one for one in SURFACE.operations if not one.is_websocket]
NAMING = [one for one in REQUESTS if one.names]
each_naming = pytest.mark.parametrize("operation", NAMING, ids=lambda one: one.name)
SPELLINGS = {
    "as it is": lambda text: text,
    "all encoded": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "upper case": str.upper,
    "in braces": lambda text: f"%7B{text}%7D",
    "without dashes": lambda text: text.replace("-", ""),
    "with a dot segment": lambda text: f"{text}%2F..%2F{text}",
    "behind a dot segment": lambda text: f"..%2Fsessions%2F{text}",
    "with a space": lambda text: f"{text}%20",
    "with a null": lambda text: f"{text}%00",
    "full width": lambda text: quote("".join(chr(ord(each) + 0xFEE0) for each in text)),
}


def requests_with(operation, ids, spell):
    """Paths and bodies of an operation, one for each place where it names one of these."""
    for name in operation.names:
        if name.path_param:
            values = {**ids, name.path_param: spell(ids[name.path_param]), "page_id": "0"}
            yield PIECE.sub(lambda piece, values=values: values[piece[1]], operation.path), None
        elif name.query_param:
            yield f"{operation.path}?{name.query_param}={spell(ids[f'{name.kind}_id'])}", None
        elif spell is SPELLINGS["as it is"]:
            body = ids[f"{name.kind}_id"]
            for key in reversed(name.body_field.split(".")):
                body = {key: body}
            yield operation.path, body


def without(body, path):
    """An answer, but for the path that it repeats."""
    return body.decode().replace(path, "").replace(unquote(path), "")


@each_naming
async def test_an_object_of_another_user_is_neither_shown_nor_changed_nor_told_from_none(tmp_path, operation):
    async with house(tmp_path) as at:
        theirs = await things_of(at, at.bob)
        before, seen = at_vendor(at), len(at.vendor.requests)
        for spelling, spell in SPELLINGS.items():
            nobodys = dict.fromkeys(theirs.ids, NOBODYS)
            asked = zip(
                requests_with(operation, theirs.ids, spell),
                requests_with(operation, nobodys, spell),
                strict=True,
            )
            for (path, body), (other_path, other_body) in asked:
                answer = await ask(at, at.ada, operation, path, body)
                assert answer.status == 404, (spelling, path, answer.body)
                assert_tells_nothing(answer, theirs, path)
                other = await ask(at, at.ada, operation, other_path, other_body)
                assert other.status == 404
                assert without(other.body, other_path) == without(answer.body, path)
        assert at_vendor(at) == before
        assert len(at.vendor.requests) == seen
        await leave(at, at.bob)


async def test_what_is_ones_own_is_reached_by_every_operation(tmp_path):
    """The matrix above would prove nothing of operations that answer nobody."""
    async with house(tmp_path) as at:
        mine = await things_of(at, at.ada)
        theirs = await things_of(at, at.bob)
        last = sorted(
            NAMING, key=lambda one: (one.method == "DELETE", one.name == "POST /v1/sessions/{session_id}")
        )
        for operation in last:
            for path, body in requests_with(operation, mine.ids, SPELLINGS["as it is"]):
                if operation.takes_any_body:
                    continue  # below
                answer = await ask(at, at.ada, operation, path, body)
                assert answer.status in (200, 201, 204), (operation.name, answer.body)
                assert_tells_nothing(answer, theirs)
        for name in ("context_id", "extension_id", "download_id"):  # all are deleted by now
            gone = f"/v1/{name.removesuffix('_id')}s/{mine.ids[name]}"
            assert (await at.ada.http.get(gone)).status_code == 404
        await leave(at, at.ada, at.bob)


async def test_lists_show_what_is_ones_own_also_after_a_restart(tmp_path):
    clock = DatedClock(2026, 11, 20)
    plan = {"browser_minutes": 600, "browsers": 4}
    async with BrowserbaseSimulator(clock=clock) as vendor:
        sessions, tokens = {}, {}
        for _ in range(2):
            async with AsyncExitStack() as stack:
                gateway = await stack.enter_async_context(
                    running_gateway(tmp_path, env=variables(vendor), clock=clock, **plan)
                )
                for name in ("ada", "bob"):
                    user = await stack.enter_async_context(user_of(gateway, name))
                    if name not in sessions:
                        session = await created(user, keepAlive=True, timeout=3_600, userMetadata={"k": "v"})
                        sessions[name], tokens[name] = session["id"], user.token
                    queries = (
                        "",
                        "?status=RUNNING",
                        "?q=user_metadata['k']:'v'",
                        "?q=user_metadata['k']:'x'",
                    )
                    for token in (user.token, tokens[name]):
                        shown = [
                            [
                                one["id"]
                                for one in (
                                    await user.http.get(
                                        f"/v1/sessions{query}", headers={"x-bb-api-key": token}
                                    )
                                ).json()
                            ]
                            for query in queries
                        ]
                        mine = [sessions[name]]
                        assert shown == [mine, mine, mine, []]


async def test_nobody_finds_sessions_by_our_own_tags(tmp_path):
    async with house(tmp_path) as at:
        theirs, mine = await created(at.bob), await created(at.ada)
        for one in at.vendor.sessions:
            tag = one.user_metadata["automna"]
            answer = await at.ada.http.get("/v1/sessions", params={"q": f"user_metadata['automna']:'{tag}'"})
            assert theirs["id"] not in answer.text
            assert "automna" not in answer.text
            assert [each["id"] for each in answer.json()] in ([], [mine["id"]])
        await leave(at, at.ada, at.bob)


async def test_names_of_contexts_are_each_users_own(tmp_path):
    async with house(tmp_path) as at:
        for user in (at.ada, at.bob):
            made = await user.http.post("/v1/contexts", json={"name": "profile"})
            assert made.status_code == 201
            shown = await user.http.get(f"/v1/contexts/{made.json()['id']}")
            assert (shown.json()["name"], shown.json()["projectId"]) == ("profile", PROJECT_ID)
            again = await user.http.post("/v1/contexts", json={"name": "Profile"})
            assert 400 <= again.status_code < 500
            assert not [word for word in ACCOUNT if word in again.text]
            assert sorted(again.json()) == ["error", "message", "statusCode"]
        assert len(at.vendor.project.contexts) == 2
        assert len({one.name for one in at.vendor.project.contexts.values()}) == 2


WHOLE = ("projects", "secrets", "functions", "webhooks", "certificates", "agents", "fetch", "search")


async def test_the_accounts_own_pages_are_not_there_however_they_are_spelt(tmp_path):
    async with house(tmp_path) as at:
        session = await created(at.ada)
        own, seen = f"/v1/sessions/{session['id']}", len(at.vendor.requests)
        paths = [
            f"/v1/{name}{more}" for name in WHOLE for more in ("", f"/{PROJECT_ID}", f"/{PROJECT_ID}/usage")
        ]
        for dots in (
            "..%2Fprojects",
            "%2e%2e%2fprojects",
            "..%2fprojects%2F" + PROJECT_ID,
            "..%5cprojects",
            "..",
        ):
            paths += [
                f"/v1/sessions/{dots}",
                f"/v1/contexts/{dots}",
                f"/v1/downloads/{dots}",
                f"/v1/extensions/{dots}",
            ]
            paths += [f"{own}/replays/..%2F..%2F{dots}", f"{own}/{dots}"]
        paths += [
            "/v1/SESSIONS",
            "/v1//sessions",
            "/v1/sessions/",
            "/v1/./sessions",
            "/v2/sessions",
            "/V1/projects",
        ]
        for path in paths:
            for method in ("GET", "POST", "DELETE"):
                headers = [(b"x-bb-api-key", at.ada.token.encode())]
                answer = await raw_request(at.gateway.url, method, f"{MOUNT}{path}".encode(), headers)
                assert answer.status in (400, 404), (method, path, answer.body)
                assert sorted(answer.json()) == ["error", "message", "statusCode"]
                text = answer.wire.decode("latin-1")
                assert not [word for word in PLANTED if word in text and word not in path], (method, path)
        assert [request.target for request in at.vendor.requests[seen:]] == []
        await leave(at, at.ada)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 410, 415, 422, 429, 500, 503])
async def test_a_vendors_error_shows_nothing_of_the_account(tmp_path, status):
    async with house(tmp_path) as at:
        mine = await things_of(at, at.ada)
        for operation in REQUESTS:
            if operation.timed is not None:
                continue
            for path, body in requests_with(operation, mine.ids, SPELLINGS["as it is"]):
                at.vendor.next(fails(status))
                answer = await ask(at, at.ada, operation, path, body)
                assert answer.status >= 400
                assert sorted(answer.json()) == ["error", "message", "statusCode"]
                text = answer.wire.decode("latin-1")
                assert not [word for word in PLANTED if word in text], operation.name
        await leave(at, at.ada)


# --- what goes up as it is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"projectId":"another"}', ANYTHING], ids=["none", "half", "json", "all"]
)
async def test_files_pass_both_ways_byte_for_byte(tmp_path, content):
    async with house(tmp_path) as at:
        mine = await things_of(at, at.ada)
        session = next(one for one in at.vendor.sessions if one.id == mine.session["id"])
        headers = {"content-type": FORM_TYPE}
        for path in (f"/v1/sessions/{session.id}/uploads", "/v1/extensions"):
            answer = await at.ada.http.post(path, content=form("a.bin", content), headers=headers)
            assert answer.status_code in (200, 201), answer.text
            assert at.vendor.requests[-1].body == form("a.bin", content)
            assert at.vendor.requests[-1].header(b"content-type").decode() == FORM_TYPE
        assert session.uploads == {"a.bin": content}
        file = await at.ada.http.get(f"/v1/downloads/{mine.ids['download_id']}")
        assert (file.content, file.headers["content-type"]) == (ANYTHING, "application/octet-stream")
        archive = await at.ada.http.get(f"/v1/sessions/{session.id}/downloads")
        assert archive.content[:2] == b"PK"
        assert ANYTHING in archive.content
        await leave(at, at.ada)


# --- what is ours to say in a body ----------------------------------------------------------------------


METADATA = {
    # what it says: the status
    '{"automna":"x"}': 400,
    '{"automna":""}': 400,
    '{"automna":{}}': 400,
    '{"automna":null}': 201,
    '{"autom\\u006ea":"x"}': 400,
    '{"Automna":"x"}': 201,
    '{"a":{"automna":"x"}}': 201,
    "[]": 400,
    '"automna"': 400,
    "1": 400,
    "null": 201,
    '{"a":[]}': 400,
    '{"a":"x","automna":"y","automna":null}': 400,
    '{"automna":null,"automna":"automna-req_x"}': 400,
}  # fmt: skip


@pytest.mark.parametrize("metadata", METADATA)
async def test_a_callers_metadata_stands_beside_our_tag_or_is_refused(tmp_path, metadata):
    async with house(tmp_path) as at:
        body = f'{{"keepAlive":true,"userMetadata":{metadata}}}'.encode()
        answer = await at.ada.http.post(
            "/v1/sessions", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == METADATA[metadata], answer.text
        assert not [word for word in PLANTED if word in answer.text and answer.status_code >= 400]
        if answer.status_code == 201:
            (session,) = at.vendor.sessions
            assert session.user_metadata["automna"].startswith("automna-req_")
            assert "automna" not in answer.json()["userMetadata"]
            await leave(at, at.ada)
        else:
            assert at.vendor.sessions == []


async def test_metadata_that_is_too_long_with_our_tag_is_refused_and_costs_nothing(tmp_path):
    async with house(tmp_path) as at:
        statuses = []
        for size in (400, 430, 460, 500, 600):
            answer = await at.ada.http.post("/v1/sessions", json={"userMetadata": {"k": "x" * size}})
            statuses.append(answer.status_code)
            assert not [word for word in ACCOUNT if word in answer.text]
            if answer.status_code == 201:
                await released(at.ada, answer.json())
        assert statuses == sorted(statuses)
        assert statuses[0] == 201
        assert statuses[-1] == 400
        booked = await until_booked(at, at.ada, len(statuses))
        assert sorted(one["cost"] > 0 for one in booked) == sorted(status == 201 for status in statuses)


@pytest.mark.parametrize(
    "timeout",
    ["0", "-1", "59", "21601", "1e3", "60.0", "true", '"900"', "[]", "{}", "9" * 30, "1e400", "NaN"],
)
async def test_a_timeout_that_is_none_is_refused_and_nothing_is_made(tmp_path, timeout):
    async with house(tmp_path) as at:
        answer = await at.ada.http.post(
            "/v1/sessions",
            content=f'{{"timeout":{timeout}}}'.encode(),
            headers={"content-type": "application/json"},
        )
        assert answer.status_code == 400, answer.text
        assert (at.vendor.sessions, await at.ada.booked()) == ([], [])


async def test_a_timeout_that_stands_twice_is_refused(tmp_path):
    """The vendor might be told more than was held for."""
    async with house(tmp_path) as at:
        answer = await at.ada.http.post(
            "/v1/sessions",
            content=b'{"timeout":60,"timeout":21600}',
            headers={"content-type": "application/json"},
        )
        assert (answer.status_code, at.vendor.sessions) == (400, [])
