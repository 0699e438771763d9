"""The simulated Browserbase, over real sockets: what REST makes, finds, refuses and gives away."""

import io
import zipfile

import httpx
import pytest

from simulators.browserbase import (
    ACCOUNT_MARK,
    PLANTED,
    PROJECT_ID,
    VENDOR_KEY,
    BrowserbaseSimulator,
    Habits,
    Plan,
)
from simulators.browserbase_behaviour import OWNER_ID
from tests.support.raw_http import raw_request

KEY = (b"x-bb-api-key", VENDOR_KEY.encode())


async def made(platform, **fields):
    answer = await platform.post("/sessions", json=fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


def refused(answer):
    error = answer.json()
    assert error["statusCode"] == answer.status_code
    return answer.status_code, error["error"]


# --- sessions -----------------------------------------------------------------------------------------


async def test_a_session_is_made_shown_and_listed(platform, browserbase):
    session = await made(platform, projectId=PROJECT_ID, timeout=120, region="eu-central-1")
    assert {name: session[name] for name in ("status", "projectId", "region", "keepAlive", "proxyBytes")} == {
        "status": "RUNNING",
        "projectId": PROJECT_ID,
        "region": "eu-central-1",
        "keepAlive": False,
        "proxyBytes": 0,
    }
    assert session["createdAt"] == "2026-11-18T11:06:40.000+00:00"
    assert session["expiresAt"] == "2026-11-18T11:08:40.000+00:00"
    assert session["connectUrl"] == f"{browserbase.url}/?signingKey={session['signingKey']}".replace(
        "http", "ws"
    )
    assert session["signingKey"].count(".") == 2
    assert (await platform.get(f"/sessions/{session['id']}")).json() == session
    other = await made(platform)
    listed = (await platform.get("/sessions")).json()
    assert [each["id"] for each in listed] == [other["id"], session["id"]]
    assert not {"connectUrl", "seleniumRemoteUrl", "signingKey"} & listed[0].keys()
    assert [session.via for session in browserbase.sessions] == ["request", "request"]
    assert [answer.usage.counts() for answer in browserbase.answers] == [{"sessions": 1}] * 2
    assert [answer.message_id for answer in browserbase.answers] == [session["id"], other["id"]]


async def test_a_release_ends_it_and_takes_its_keys_away(platform, browserbase):
    session = await made(platform, keepAlive=True)
    path = f"/sessions/{session['id']}"
    assert refused(await platform.post(path, json={"status": "COMPLETED"})) == (400, "Bad Request")
    assert refused(await platform.post(path, json={"status": "REQUEST_RELEASE", "projectId": "x"}))[0] == 403
    browserbase.advance(5)
    released = (await platform.post(path, json={"status": "REQUEST_RELEASE"})).json()
    assert (released["status"], released["endedAt"]) == ("COMPLETED", "2026-11-18T11:06:45.000+00:00")
    shown = (await platform.get(path)).json()
    assert shown == released
    assert "connectUrl" not in shown
    browserbase.advance(5)
    again = await platform.post(path, json={"status": "REQUEST_RELEASE"})
    assert again.json() == released
    assert refused(await platform.get(f"{path}/debug"))[0] == 410


async def test_lists_are_filtered_by_status_and_metadata(platform):
    one = await made(platform, userMetadata={"tenant": "a", "order": {"n": "1"}, "number": 1})
    two = await made(platform, userMetadata={"tenant": "ab"})
    await platform.post(f"/sessions/{two['id']}", json={"status": "REQUEST_RELEASE"})

    async def ids(**query):
        return [each["id"] for each in (await platform.get("/sessions", params=query)).json()]

    assert await ids(status="RUNNING") == [one["id"]]
    assert await ids(status="COMPLETED") == [two["id"]]
    assert await ids(q="user_metadata['tenant']:'a'") == [one["id"]]
    assert await ids(q="user_metadata['tenant']:'A'") == []
    assert await ids(q="user_metadata['order']['n']:'1'") == [one["id"]]
    assert await ids(q="user_metadata['number']:'1'") == []
    assert await ids(q="user_metadata['tenant']:'ab'", status="RUNNING") == []
    assert refused(await platform.get("/sessions", params={"q": "tenant:a"}))[0] == 400
    assert refused(await platform.get("/sessions", params={"status": "DONE"}))[0] == 400


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"projectId": "another"}, 403),
        ({"timeout": 59}, 400),
        ({"timeout": 21_601}, 400),
        ({"timeout": "60"}, 400),
        ({"timeout": True}, 400),
        ({"region": "moon"}, 400),
        ({"browserSettings": []}, 400),
        ({"browserSettings": {"context": {"id": "nobodys"}}}, 404),
        ({"browserSettings": {"extensionId": "nobodys"}}, 404),
        ({"extensionId": "nobodys"}, 404),
        ({"userMetadata": []}, 400),
        ({"userMetadata": {"a": {"b": ["c"]}}}, 400),
        ({"userMetadata": {"a": "x" * 504}}, 400),
    ],
)
async def test_what_the_vendor_would_not_start_is_not_started(platform, browserbase, fields, status):
    assert refused(await platform.post("/sessions", json=fields))[0] == status
    assert (browserbase.sessions, browserbase.answers) == ([], [])


async def test_the_bounds_themselves_are_allowed(platform):
    for fields in ({"timeout": 60}, {"timeout": 21_600}, {"userMetadata": {"a": "x" * 503}}):
        await made(platform, **fields)


async def test_a_timeout_may_be_moved_into_its_bounds_instead(platform, browserbase):
    browserbase.set_habits(Habits(clamps_timeout=True))
    session = await made(platform, timeout=1)
    assert session["expiresAt"] == "2026-11-18T11:07:40.000+00:00"


async def test_a_body_that_is_no_object_is_refused(platform):
    for body in (b"{", b"[]"):
        assert refused(await platform.post("/sessions", content=body))[0] == 400


async def test_the_account_has_limits_and_says_so():
    plan = Plan(concurrent_sessions=2, creates_per_minute=3)
    headers = {"x-bb-api-key": VENDOR_KEY}
    async with (
        BrowserbaseSimulator(plan=plan) as vendor,
        httpx.AsyncClient(base_url=f"{vendor.url}/v1", headers=headers, trust_env=False) as client,
    ):
        first, second = await made(client), await client.post("/sessions")
        assert second.headers["x-ratelimit-limit"] == "3"
        assert second.headers["x-ratelimit-remaining"] == "1"
        crowded = await client.post("/sessions")
        assert refused(crowded) == (429, "Too Many Requests")
        assert "limit (limit 2, currently 2)" in crowded.json()["message"]
        assert crowded.headers["retry-after"] == "5"
        assert sum(word in crowded.text for word in PLANTED) == 3
        await client.post(f"/sessions/{first['id']}", json={"status": "REQUEST_RELEASE"})
        await made(client)
        hasty = await client.post("/sessions")
        assert refused(hasty) == (429, "Too Many Requests")
        assert "creation limit (3 in 60 seconds)" in hasty.json()["message"]
        assert hasty.headers["x-ratelimit-remaining"] == "0"
        assert 0 < int(hasty.headers["retry-after"]) == int(hasty.headers["x-ratelimit-reset"]) <= 60
        assert len(vendor.sessions) == 3
        vendor.advance(60)
        await client.post(f"/sessions/{second.json()['id']}", json={"status": "REQUEST_RELEASE"})
        await made(client)


# --- the key, and what is not found -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"x-bb-api-key": "wrong"}, 401),
        ({"authorization": f"Bearer {VENDOR_KEY}"}, 401),
        ({"x-api-key": VENDOR_KEY}, 401),
        ({"x-bb-api-key": VENDOR_KEY}, 200),
    ],
)
async def test_the_key_is_taken_from_its_own_header_alone(browserbase, headers, status):
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{browserbase.url}/v1/sessions", headers=headers)
        assert answer.status_code == status
        answer = await client.get(f"{browserbase.url}/v1/sessions?apiKey={VENDOR_KEY}")
        assert refused(answer) == (401, "Unauthorized")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/sessions/none"),
        ("POST", "/sessions/none"),
        ("GET", "/sessions/none/debug"),
        ("GET", "/sessions/none/logs"),
        ("GET", "/sessions/none/recording"),
        ("GET", "/sessions/none/replays"),
        ("GET", "/sessions/none/replays/0"),
        ("GET", "/sessions/none/recording/downloads"),
        ("POST", "/sessions/none/recording/downloads"),
        ("GET", "/sessions/none/downloads"),
        ("POST", "/sessions/none/uploads"),
        ("GET", "/downloads?sessionId=none"),
        ("GET", "/downloads/none"),
        ("DELETE", "/downloads/none"),
        ("GET", "/contexts/none"),
        ("PUT", "/contexts/none"),
        ("DELETE", "/contexts/none"),
        ("GET", "/extensions/none"),
        ("DELETE", "/extensions/none"),
        ("GET", "/projects/none"),
        ("GET", "/projects/none/usage"),
        ("GET", "/contexts"),
        ("DELETE", "/sessions/none"),
        ("GET", "/nothing"),
    ],
)
async def test_what_is_not_there_is_not_found(platform, method, path):
    assert refused(await platform.request(method, path)) == (404, "Not Found")


@pytest.mark.parametrize(
    "target", [b"/v1/sessions/..%2Fprojects", b"/v1/sessions/../projects", b"/v1//projects/"]
)
async def test_a_path_means_what_it_leads_to(browserbase, target):
    answer = await raw_request(browserbase.url, "GET", target, (KEY,))
    assert (answer.status, answer.json()[0]["name"]) == (200, ACCOUNT_MARK)


# --- what is the whole account's ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/projects"),
        ("GET", f"/projects/{PROJECT_ID}"),
        ("GET", f"/projects/{PROJECT_ID}/usage"),
        *((method, f"/{name}{path}")
            for name in ("secrets", "functions", "webhooks", "certificates", "agents")
            for path in ("", "/x", "/x/y", "/x/y/z") for method in ("GET", "POST", "PUT", "PATCH")),
    ],
)  # fmt: skip
async def test_what_is_the_whole_accounts_says_so(platform, method, path):
    answer = await platform.request(method, path)
    assert answer.is_success
    assert ACCOUNT_MARK in answer.text


async def test_what_is_done_to_the_account_is_written_down(platform, browserbase):
    await platform.delete("/webhooks/x")
    await platform.post("/agents/runs")
    assert browserbase.account.changes == ["DELETE /v1/webhooks/x", "POST /v1/agents/runs"]
    assert [answer.usage.counts() for answer in browserbase.answers] == [{"agent_runs": 1}]


async def test_the_projects_usage_is_that_of_all(platform, browserbase):
    for _ in range(2):
        session = await made(platform)
        browserbase.move_proxied(browserbase.sessions[-1], 1000)
        browserbase.advance(61)
        await platform.post(f"/sessions/{session['id']}", json={"status": "REQUEST_RELEASE"})
    usage = (await platform.get(f"/projects/{PROJECT_ID}/usage")).json()
    assert (usage["browserMinutes"], usage["proxyBytes"]) == (4, 2000)
    assert (await platform.get("/projects")).json()[0]["ownerId"] == OWNER_ID


# --- contexts and extensions --------------------------------------------------------------------------


async def test_a_context_lives_until_it_is_deleted(platform):
    answer = await platform.post("/contexts", json={"projectId": PROJECT_ID, "name": " Mine "})
    context = answer.json()
    assert (answer.status_code, context["cipherAlgorithm"]) == (201, "AES-256-CBC")
    path = f"/contexts/{context['id']}"
    shown = (await platform.get(path)).json()
    assert (shown["id"], shown["name"], shown["projectId"]) == (context["id"], "Mine", PROJECT_ID)
    assert (await platform.put(path)).json() == context
    session = await made(platform, browserSettings={"context": {"id": context["id"], "persist": True}})
    assert session["contextId"] == context["id"]
    assert refused(await platform.post("/contexts", json={"name": "mINE"})) == (409, "Conflict")
    assert refused(await platform.post("/contexts", json={"name": 1}))[0] == 400
    assert refused(await platform.post("/contexts", json={"projectId": "x"}))[0] == 403
    deleted = await platform.delete(path)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert "content-length" not in deleted.headers
    assert refused(await platform.get(path))[0] == 404
    assert (await platform.post("/contexts", json={"name": "mine"})).status_code == 201
    assert (
        "name"
        not in (await platform.get(f"/contexts/{(await platform.post('/contexts')).json()['id']}")).json()
    )


async def test_an_extension_is_uploaded_and_used(platform, browserbase):
    content = bytes(range(256)) * 100 + b"\r\n--"
    answer = await platform.post("/extensions", files={"file": ("ad.zip", content)})
    extension = answer.json()
    assert (answer.status_code, extension["fileName"]) == (201, "ad.zip")
    assert browserbase.project.extensions[extension["id"]].content == content
    assert (await platform.get(f"/extensions/{extension['id']}")).json() == extension
    await made(platform, extensionId=extension["id"], browserSettings={"extensionId": extension["id"]})
    assert (await platform.delete(f"/extensions/{extension['id']}")).status_code == 204
    assert refused(await platform.get(f"/extensions/{extension['id']}"))[0] == 404
    assert refused(await platform.post("/extensions", files={"other": ("a", b"b")}))[0] == 400
    assert refused(await platform.post("/extensions", content=b"x"))[0] == 400


# --- files and recordings -----------------------------------------------------------------------------


async def test_files_go_up_and_come_down(platform, browserbase):
    path = f"/sessions/{(await made(platform))['id']}"
    (session,) = browserbase.sessions
    content = bytes(range(256)) * 10
    assert "message" in (await platform.post(f"{path}/uploads", files={"file": ("in.bin", content)})).json()
    assert session.uploads == {"in.bin": content}
    first, _ = (browserbase.add_download(session, f"{n}.bin", content + bytes([n])) for n in (1, 2))
    archive = await platform.get(f"{path}/downloads", headers={"accept": "application/zip"})
    assert archive.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(archive.content)) as files:
        assert {name: files.read(name) for name in files.namelist()} == {
            "1.bin": content + b"\1",
            "2.bin": content + b"\2",
        }
    assert (await platform.get(f"{path}/downloads")).content == archive.content
    query = {"sessionId": session.id, "limit": 1, "offset": 0}
    page = (await platform.get("/downloads", params=query)).json()
    assert (page["total"], page["limit"], page["offset"]) == (2, 1, 0)
    assert [(each["id"], each["sessionId"]) for each in page["downloads"]] == [(first.id, session.id)]
    assert refused(await platform.get("/downloads"))[0] == 400
    assert refused(await platform.get("/downloads", params={**query, "limit": 0}))[0] == 400
    one = f"/downloads/{first.id}"
    assert (await platform.get(one)).content == content + b"\1"
    assert (await platform.get(one, headers={"accept": "application/json"})).json() == page["downloads"][0]
    assert (await platform.delete(one)).status_code == 204
    assert refused(await platform.get(one))[0] == 404
    browserbase.advance(1000)
    assert refused(await platform.post(f"{path}/uploads", files={"file": ("a", b"b")}))[0] == 410


async def test_recordings_are_events_playlists_and_films(platform, browserbase):
    session = await made(platform)
    path = f"/sessions/{session['id']}"
    events = (await platform.get(f"{path}/recording")).json()
    assert [(event["sessionId"], event["type"]) for event in events] == [
        (session["id"], 4),
        (session["id"], 2),
    ]
    browserbase.advance(7)
    (page,) = (await platform.get(f"{path}/replays")).json()["pages"]
    assert (page["pageId"], page["endTimeMs"]) == ("0", 7000)
    playlist = await platform.get(f"{path}/replays/0")
    assert playlist.headers["content-type"] == "application/vnd.apple.mpegurl"
    assert playlist.text.startswith("#EXTM3U")
    assert refused(await platform.get(f"{path}/replays/1"))[0] == 404
    (film,) = (await platform.get(f"{path}/recording/downloads")).json()["downloads"]
    assert film == {"pageId": "0", "status": "NOT_REQUESTED"}
    (film,) = (await platform.post(f"{path}/recording/downloads")).json()["downloads"]
    (again,) = (await platform.get(f"{path}/recording/downloads")).json()["downloads"]
    assert film["status"] == again["status"] == "COMPLETED"
    assert film["downloadUrl"] != again["downloadUrl"]
    async with httpx.AsyncClient(trust_env=False) as anyone:
        assert (await anyone.get(film["downloadUrl"])).content == f"MP4 of {session['id']}".encode()
        assert (await anyone.get(f"{browserbase.url}/cdn/none")).status_code == 404


# --- without a browser --------------------------------------------------------------------------------


async def test_a_page_is_fetched(platform, browserbase):
    page = (await platform.post("/fetch", json={"url": "https://x.y"})).json()
    assert (page["statusCode"], page["content"]) == (200, "<html><title>https://x.y</title></html>")
    context = (await platform.post("/contexts")).json()["id"]
    asked = {"url": "https://x.y", "format": "json", "schema": {}, "contextId": context}
    assert (await platform.post("/fetch", json=asked)).json()["content"] == {"title": "https://x.y"}
    assert [answer.usage.counts() for answer in browserbase.answers] == [{"fetches": 1}] * 2
    for more, status in (
        ({"url": "x"}, 400),
        ({"format": "pdf"}, 400),
        ({"schema": None}, 400),
        ({"contextId": "x"}, 404),
    ):
        answer = await platform.post("/fetch", json={**asked, **more})
        assert refused(answer)[0] == status
        assert answer.json()["id"].startswith("req-")
    assert len(browserbase.answers) == 2


async def test_a_search_finds_as_much_as_is_asked_for(platform, browserbase):
    found = (await platform.post("/search", json={"query": "q"})).json()
    assert (found["query"], len(found["results"])) == ("q", 10)
    for more in (
        {"numResults": 25},
        {"provider": "exa", "mode": "deep"},
        {"provider": "parallel", "mode": "advanced"},
    ):
        answer = await platform.post("/search", json={"query": "q", **more})
        assert len(answer.json()["results"]) == more.get("numResults", 10)
    assert [answer.usage.counts() for answer in browserbase.answers] == [{"searches": 1}] * 4
    for more in (
        {"query": ""}, {"numResults": 0}, {"numResults": 26}, {"numResults": "1"}, {"provider": "x"}, {"mode": "fast"},
        {"provider": "exa", "mode": "advanced"},
    ):  # fmt: skip
        assert refused(await platform.post("/search", json={"query": "q", **more}))[0] == 400
    assert len(browserbase.answers) == 4
