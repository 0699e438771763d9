"""How far a request to Browserbase's surface reaches, whatever stands in it beside what is declared: its user's own, and no
further. Not made from the declarations: what they leave out is missed here."""

import orjson
import pytest
from websockets.asyncio.client import connect

from simulators.browserbase import ACCOUNT_MARK, PROJECT_ID, fails
from simulators.websocket import wants_websocket
from tests.integration.test_browser_sessions import assert_settled, created, released
from tests.integration.test_browser_sockets import status_of
from tests.integration.test_browser_walls import (
    PIECE,
    REQUESTS,
    Things,
    ask,
    assert_tells_nothing,
    leave,
    things_of,
)
from tests.support.browserbase import house
from tests.support.cdp import cdp

OTHER_PROJECT = "1b0e5a4c-3f62-4d0e-9a37-5f1f6a0c7d11"
TIED = {
    "context": lambda things: {"browserSettings": {"context": {"id": things.ids["context_id"], "persist": True}}},
    "extension": lambda things: {"extensionId": things.ids["extension_id"]},
    "extension of the browser": lambda things: {
        "browserSettings": {"extensionId": things.ids["extension_id"]}
    },
}  # fmt: skip
"""What a new session may be tied to."""


def filled(operation, things):
    """An operation's path with these ids, in its query too."""
    path = PIECE.sub(lambda piece: {**things.ids, "page_id": "0"}[piece[1]], operation.path)
    needed = [name for name in operation.names if name.query_param]
    return path + "".join(f"?{name.query_param}={things.ids[f'{name.kind}_id']}" for name in needed)


@pytest.mark.parametrize(
    "operation", [one for one in REQUESTS if one.method != "DELETE"], ids=lambda one: one.name
)
async def test_no_parameter_and_no_field_reaches_anothers(tmp_path, operation):
    async with house(tmp_path, browsers=100) as at:
        mine, theirs = await things_of(at, at.ada), await things_of(at, at.bob)
        stolen = {
            "sessionId": theirs.ids["session_id"],
            "session_id": theirs.ids["session_id"],
            "contextId": theirs.ids["context_id"],
            "downloadId": theirs.ids["download_id"],
            "id": theirs.ids["session_id"],
            "projectId": OTHER_PROJECT,
            "q": "user_metadata%5B%27of%27%5D:%27bob-secret%27",
        }
        for name, value in stolen.items():
            path = filled(operation, mine)
            joint = "&" if "?" in path else "?"
            answer = await ask(at, at.ada, operation, f"{path}{joint}{name}={value}")
            assert_tells_nothing(answer, theirs, path=f"{name}={value}")
            if operation.method == "POST" and not operation.takes_any_body:
                fields = {**orjson.loads(operation.example.body or b"{}"), name: value}
                answer = await ask(at, at.ada, operation, path, fields)
                assert_tells_nothing(answer, theirs, path=value)
        assert [one.releasing_ms for one in at.vendor.sessions if one.id == theirs.ids["session_id"]] == [
            None
        ]
        await leave(at, at.ada, at.bob)


@pytest.mark.parametrize("tie", TIED)
async def test_a_new_session_is_tied_to_nothing_of_anothers(tmp_path, tie):
    async with house(tmp_path) as at:
        mine, theirs = await things_of(at, at.ada), await things_of(at, at.bob)
        for things, status in ((theirs, 404), (mine, 201)):
            answer = await at.ada.http.post("/v1/sessions", json=TIED[tie](things))
            assert answer.status_code == status, answer.text
        assert len(at.vendor.sessions) == 3
        await leave(at, at.ada, at.bob)


@pytest.mark.parametrize("given", [OTHER_PROJECT, None, 7, [OTHER_PROJECT], {"id": OTHER_PROJECT}])
async def test_whatever_project_is_named_it_is_the_platforms(tmp_path, given):
    async with house(tmp_path) as at:
        session = await created(at.ada)
        for path, fields in (
            ("/v1/sessions", {}),
            ("/v1/contexts", {}),
            (f"/v1/sessions/{session['id']}", {"status": "REQUEST_RELEASE"}),
        ):
            answer = await at.ada.http.post(path, json={**fields, "projectId": given})
            assert answer.is_success, answer.text
            said = at.vendor.requests[-1].body
            assert (orjson.loads(said)["projectId"], OTHER_PROJECT.encode() in said) == (PROJECT_ID, False)
        await leave(at, at.ada)


@pytest.mark.parametrize("kind", ["context", "extension", "download"])
async def test_what_was_deleted_becomes_nobody_elses(tmp_path, kind):
    async with house(tmp_path) as at:
        theirs = await things_of(at, at.bob)
        path = f"/v1/{kind}s/{theirs.ids[f'{kind}_id']}"
        assert (await at.bob.http.delete(path)).is_success
        asked = len(at.vendor.requests)
        for method in ("GET", "DELETE"):
            assert (await at.ada.http.request(method, path)).status_code == 404
        assert len(at.vendor.requests) == asked, "the vendor was asked about another's"
        assert (await at.bob.http.get(path)).status_code == 404
        await leave(at, at.bob)


@pytest.mark.parametrize("status", [400, 404, 409, 410, 422, 500])
async def test_an_error_that_names_others_does_not_name_them_to_a_user(tmp_path, status):
    async with house(tmp_path) as at:
        mine, theirs = await things_of(at, at.ada), await things_of(at, at.bob)
        named = theirs.ids["context_id"].upper()
        words = f"session {theirs.ids['session_id']} has context {named}"
        seen = Things({}, {}, theirs.words | {named})
        for operation in REQUESTS:
            for message in (words, f"{ACCOUNT_MARK}: {words} of the organisation"):
                at.vendor.next(fails(status, message=message))
                answer = await ask(at, at.ada, operation, filled(operation, mine))
                assert answer.status >= 400
                assert_tells_nothing(answer, seen)
        await leave(at, at.ada, at.bob)


# --- websockets -----------------------------------------------------------------------------------------


async def test_a_revoked_gateway_token_cuts_no_websocket_of_its_users_others(tmp_path):
    async with house(tmp_path) as at:
        text, token = await at.gateway.directory.create_token("ada")
        fields = {"json": {"keepAlive": True}, "headers": {"x-bb-api-key": text}}
        session = (await at.ada.http.post("/v1/sessions", **fields)).json()
        other = (await at.ada.http.get(f"/v1/sessions/{session['id']}")).json()["connectUrl"]
        async with cdp(session["connectUrl"]) as client, cdp(other) as kept:
            await client.call("Browser.getVersion")
            await at.gateway.directory.revoke(token.id)
            await client.socket.wait_closed()
            assert client.socket.close_code == 1008
            assert await status_of(session["connectUrl"]) == 401
            await kept.call("Browser.getVersion")
        await released(at.ada, session)
        await assert_settled(at, at.ada)


async def test_nothing_of_a_clients_handshake_but_what_a_websocket_needs_goes_up(tmp_path):
    async with house(tmp_path) as at:
        session = await created(at.ada, keepAlive=True)
        headers = {
            "x-bb-api-key": at.ada.token,
            "authorization": f"Bearer {at.ada.token}",
            "cookie": "a=b",
            "x-forwarded-for": "192.0.2.7",
            "origin": "https://agent.example",
        }
        async with connect(session["connectUrl"], proxy=None, additional_headers=headers) as socket:
            await (await socket.ping())
        (request,) = [one for one in at.vendor.requests if wants_websocket(one)]
        assert {name for name, _ in request.headers} <= {
            *(b"host", b"upgrade", b"connection", b"user-agent", b"sec-websocket-key"),
            *(b"sec-websocket-version", b"sec-websocket-extensions", b"sec-websocket-protocol"),
        }
        assert not [word for word in (at.ada.token, session["signingKey"]) if word in repr(request)]
        await released(at.ada, session)
        await assert_settled(at, at.ada)
