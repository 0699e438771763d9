"""How the simulated Browserbase fails: before the work, after it, and for a while."""

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage, InvalidStatus

from metering.tasks import spawn
from simulators.browserbase import (
    PLANTED,
    VENDOR_KEY,
    Behaviour,
    BrowserbaseSimulator,
    answers,
    answers_late,
    breaks_after,
    drops,
    fails,
    hangs,
    loses_reply,
    stalls_after,
)
from simulators.script import Gate
from simulators.server import State, read_record, running_in_thread
from simulators.vendor import PRESCRIBED_ON_MAX


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_lost_reply_is_one_to_a_session_that_runs(platform, browserbase, is_reset):
    browserbase.next(loses_reply(is_reset=is_reset))
    with pytest.raises(httpx.TransportError):
        await platform.post("/sessions", json={"userMetadata": {"tag": "a"}})
    (session,) = browserbase.sessions
    assert session.is_live
    assert browserbase.answers[0].message_id == session.id
    assert browserbase.exchanges[0].state is State.BROKEN_OFF
    found = await platform.get("/sessions", params={"q": "user_metadata['tag']:'a'"})
    assert [each["id"] for each in found.json()] == [session.id]


async def test_a_dropped_request_makes_nothing(platform, browserbase):
    browserbase.next(drops())
    with pytest.raises(httpx.TransportError):
        await platform.post("/sessions")
    assert (browserbase.sessions, browserbase.answers) == ([], [])


@pytest.mark.parametrize(("works", "made"), [(None, 0), (True, 1)])
async def test_an_error_comes_instead_of_the_work_or_after_it(platform, browserbase, works, made):
    browserbase.next(fails(500, works=works))
    answer = await platform.post("/sessions")
    assert (answer.status_code, answer.json()["error"]) == (500, "Internal Server Error")
    assert len(browserbase.sessions) == len(browserbase.answers) == made


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 409, 410, 429, 500, 502, 503, 504])
async def test_a_scripted_error_has_the_vendors_shape_and_names_the_account(platform, browserbase, status):
    browserbase.next(fails(status), fails(status))
    answer = await platform.get("/sessions")
    error = answer.json()
    assert (answer.status_code, error["statusCode"], set(error)) == (
        status,
        status,
        {"statusCode", "error", "message"},
    )
    assert sum(word in error["message"] for word in PLANTED) == 3
    assert answer.headers.get("retry-after") == ("1" if status == 429 else None)
    assert "id" in (await platform.post("/fetch", json={"url": "http://x.y"})).json()


async def test_polls_fail_for_a_while_and_nothing_else_does(platform, browserbase):
    session = (await platform.post("/sessions")).json()["id"]
    browserbase.next_on(r"GET /v1/sessions/[^/]+", fails(404), fails(500)).next(
        fails(418, error_type="Teapot")
    )
    polls = [(await platform.get(f"/sessions/{session}")).status_code for _ in range(2)]
    other = [(await platform.get("/sessions")).status_code for _ in range(2)]
    assert (polls, other) == ([404, 500], [418, 200])
    assert (await platform.get(f"/sessions/{session}")).status_code == 200
    with pytest.raises(ValueError, match="are waiting"):
        browserbase.next_on("GET /", *[fails(500)] * (PRESCRIBED_ON_MAX + 1))


async def test_a_slow_create_has_made_its_session(platform, browserbase):
    gate = Gate()
    browserbase.next(hangs(gate=gate))
    asked = spawn(platform.post("/sessions"), name="asked")
    await gate.reached()
    assert len(browserbase.sessions) == 1
    assert not asked.done()
    gate.open()
    assert (await asked).json()["id"] == browserbase.sessions[0].id
    browserbase.next(answers_late(0.001))
    assert (await platform.post("/sessions")).status_code == 201


async def test_an_answer_breaks_off_or_stalls(platform, browserbase):
    browserbase.next(breaks_after(5))
    with pytest.raises(httpx.RemoteProtocolError):
        await platform.post("/sessions")
    gate = Gate()
    browserbase.next(stalls_after(5, gate=gate))
    asked = spawn(platform.post("/sessions"), name="asked")
    await gate.reached()
    gate.open()
    assert (await asked).status_code == 201
    assert len(browserbase.sessions) == 2


async def test_a_binary_answer_may_be_cut_too(platform, browserbase):
    session = (await platform.post("/sessions")).json()["id"]
    browserbase.next(breaks_after(5))
    with pytest.raises(httpx.RemoteProtocolError):
        await platform.get(f"/sessions/{session}/downloads")
    browserbase.next(Behaviour(split=1))
    assert (await platform.get(f"/sessions/{session}/downloads")).content.startswith(b"PK")


async def test_a_deletion_may_be_late_too(platform, browserbase):
    context = (await platform.post("/contexts")).json()["id"]
    browserbase.next(answers_late(0.001))
    assert (await platform.delete(f"/contexts/{context}")).status_code == 204


async def test_a_given_body_takes_the_place_of_the_work(platform, browserbase):
    browserbase.next(answers({"id": "odd"}, status=201))
    assert (await platform.post("/sessions")).json() == {"id": "odd"}
    assert browserbase.sessions == []


def dial(browserbase):
    return connect(f"{browserbase.url.replace('http', 'ws')}/connect?apiKey={VENDOR_KEY}", proxy=None)


@pytest.mark.parametrize(("behaviour", "made"), [(loses_reply(), 1), (drops(), 0)])
async def test_a_connection_loses_its_reply_or_is_dropped(browserbase, behaviour, made):
    browserbase.next(behaviour)
    with pytest.raises(InvalidMessage):
        await dial(browserbase)
    assert [session.via for session in browserbase.sessions] == ["connect"] * made
    assert (len(browserbase.answers), browserbase.peers) == (made, [])
    browserbase.advance(300)
    assert len(browserbase.billed) == made


@pytest.mark.parametrize(("behaviour", "made"), [(fails(500), 0), (fails(503, works=True), 1)])
async def test_a_connection_is_refused_before_or_after_its_session_is_made(browserbase, behaviour, made):
    browserbase.next(behaviour)
    with pytest.raises(InvalidStatus) as refused:
        await dial(browserbase)
    assert refused.value.response.status_code == behaviour.status
    assert len(browserbase.sessions) == made


async def test_a_connection_hangs_and_ends_in_503(browserbase):
    gate = Gate()
    browserbase.next(hangs(gate=gate))
    dialling = spawn(_status(dial(browserbase)), name="dialling")
    await gate.reached()
    assert len(browserbase.sessions) == 1
    gate.open()
    assert await dialling == 503


async def _status(dialling):
    with pytest.raises(InvalidStatus) as refused:
        await dialling
    return refused.value.response.status_code


def test_the_record_outlives_the_process(tmp_path):
    path = tmp_path / "record.jsonl"
    vendor = BrowserbaseSimulator(record_to=path, keeps_record=False)
    with running_in_thread(vendor) as url:
        headers = {"x-bb-api-key": VENDOR_KEY, "x-request-tag": "t1"}
        assert httpx.post(f"{url}/v1/sessions", headers=headers, trust_env=False).status_code == 201
        asked = {**headers, "x-simulate": "error_before=503,works=1"}
        assert httpx.post(f"{url}/v1/sessions", headers=asked, trust_env=False).status_code == 503
    seen = [line for line in read_record(path) if line["event"] == "seen"]
    assert [(line["tag"], line["usage"]) for line in seen] == [("t1", {"sessions": 1})] * 2
    assert [line["message_id"] for line in seen] == [session.id for session in vendor.sessions]
    assert vendor.sessions[0].tag == "t1"
