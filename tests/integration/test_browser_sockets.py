"""Websockets into browser sessions, through the proxy on real sockets."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from simulators.browserbase import Habits, drops, fails
from tests.integration.test_browser_sessions import assert_settled, created, released, until_booked
from tests.support.browserbase import MOUNT, house
from tests.support.cdp import cdp

LINGER = {"BROWSERBASE_LINGER_S": "0"}


def endpoint(at, user, **more):
    """Where a client that knows nothing but its gateway token connects."""
    query = "&".join(f"{name}={value}" for name, value in {"apiKey": user.token, **more}.items())
    return f"{at.gateway.url.replace('http', 'ws')}{MOUNT}/connect?{query}"


async def status_of(url, **headers):
    """With which a handshake is refused."""
    with pytest.raises(InvalidStatus) as refused:
        async with connect(url, proxy=None, additional_headers=headers):
            pass
    return refused.value.response.status_code


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def connected(at, user, **fields):
    session = await created(user, **fields)
    async with cdp(session["connectUrl"]) as client:
        yield session, client


# --- what a session's answer shows ----------------------------------------------------------------------


async def test_a_session_shows_our_address_and_nothing_of_the_vendors(tmp_path):
    async with house(tmp_path) as at:
        session = await created(at.ada)
        host = at.gateway.url.removeprefix("http://")
        assert session["connectUrl"].startswith(f"ws://{host}{MOUNT}/connect/")
        assert session["connectUrl"].endswith(session["signingKey"])
        assert session["seleniumRemoteUrl"] == ""
        secrets = {each.signing_key for each in at.vendor.sessions}
        shown = await at.ada.http.get(f"/v1/sessions/{session['id']}")
        listed = await at.ada.http.get("/v1/sessions")
        debug = await at.ada.http.get(f"/v1/sessions/{session['id']}/debug")
        for answer in (shown, listed, debug):
            assert answer.status_code == 200
            assert not any(secret in answer.text for secret in secrets)
        assert shown.json()["connectUrl"].startswith(f"ws://{host}{MOUNT}/connect/")
        await released(at.ada, session)
        await assert_settled(at, at.ada)


async def test_the_operator_says_where_the_proxy_is_reached(tmp_path):
    async with house(tmp_path, env={"PUBLIC_URL": "https://proxy.example.com"}) as at:
        session = await created(at.ada)
        assert session["connectUrl"].startswith(f"wss://proxy.example.com{MOUNT}/connect/")
        await released(at.ada, session)
        await assert_settled(at, at.ada)


async def test_the_live_view_is_good_for_as_long_as_the_operator_says(tmp_path):
    async with house(tmp_path, env={"BROWSERBASE_VIEW_S": "60"}) as at:
        session = await created(at.ada)
        for query, status in (
            ("", 200),
            ("?expiresIn=9999", 200),
            ("?expiresIn=x", 400),
            ("?expiresIn=%C2%B2", 400),
            ("?expiresIn=30", 200),
        ):
            answer = await at.ada.http.get(f"/v1/sessions/{session['id']}/debug{query}")
            assert answer.status_code == status, answer.text
        asked = [each.query["expiresIn"] for each in at.vendor.requests if each.path.endswith("/debug")]
        assert asked == ["60", "60", "30"]
        await released(at.ada, session)
        await assert_settled(at, at.ada)


# --- what passes ----------------------------------------------------------------------------------------


async def test_a_page_is_driven_and_the_session_ends_with_its_client(tmp_path):
    async with house(tmp_path) as at:
        async with connected(at, at.ada) as (session, client):
            page = await client.attach()
            await client.call("Page.navigate", page, url="https://shop.example/")
            found = await client.call("Runtime.evaluate", page, expression="document.title")
            assert found["result"]["value"] == "Simulated page at https://shop.example/"
        await until(lambda: not at.vendor.sessions[0].is_live)
        await assert_settled(at, at.ada)
        rows = await at.gateway.service.store.readers.rows(
            "SELECT operation, outcome, cost_nanousd FROM entries WHERE operation LIKE 'GET /connect%'", ()
        )
        assert rows == [("GET /connect/{ticket}", "completed", 0)]
        assert session["id"] == at.vendor.sessions[0].id


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_long_messages_pass_both_ways_byte_for_byte(tmp_path, compression):
    async with house(tmp_path) as at:
        session = await created(at.ada)
        async with connect(
            session["connectUrl"], proxy=None, max_size=None, compression=compression
        ) as socket:
            for size in (0, 1, 125, 126, 65_535, 65_536, 10_000_000):
                message = bytes(index % 251 for index in range(min(size, 5_000))) * (size // 5_000 or 1)
                await socket.send(message)
                assert await socket.recv() == message
        await until(lambda: not at.vendor.sessions[0].is_live)
        await assert_settled(at, at.ada)


async def test_pings_and_close_codes_pass_both_ways(tmp_path):
    async with house(tmp_path) as at:
        session = await created(at.ada, keepAlive=True)
        async with cdp(session["connectUrl"]) as client:
            await (await client.socket.ping())
            await client.send("Simulator.close", code=4001, reason="enough")
            await client.socket.wait_closed()
            assert (client.socket.close_code, client.socket.close_reason) == (4001, "enough")
        async with cdp(session["connectUrl"]) as client:
            await client.call("Browser.getVersion")
            await client.socket.close(4002, "I am done")
        await until(lambda: all(not peer.is_open for peer in at.vendor.peers))
        async with cdp(session["connectUrl"]) as client:
            await client.send("Simulator.drop")
            with pytest.raises(ConnectionClosed):
                await client.heard()
            assert client.socket.close_code == 1006
        await released(at.ada, session)
        await assert_settled(at, at.ada)


# --- who is let in --------------------------------------------------------------------------------------


async def test_a_ticket_is_for_its_time_and_its_session_alone(tmp_path):
    async with house(tmp_path, env={"BROWSERBASE_TICKET_S": "60"}) as at:
        session = await created(at.ada, keepAlive=True, timeout=3_600)
        url = session["connectUrl"]
        assert await status_of(url[:-1] + ("a" if url[-1] != "a" else "b")) == 401
        assert await status_of(url.rpartition("/")[0] + "/x") == 401
        await at.pass_time(61)
        assert await status_of(url) == 401
        fresh = (await at.ada.http.get(f"/v1/sessions/{session['id']}")).json()["connectUrl"]
        async with cdp(fresh) as client:
            await client.call("Browser.getVersion")
        await released(at.ada, session)
        await assert_settled(at, at.ada)
        assert await status_of(fresh) == 404


async def test_a_ticket_that_is_good_for_once_is_worth_nothing_afterwards(tmp_path):
    async with house(tmp_path, env={"BROWSERBASE_TICKET_ONCE": "1"}) as at:
        session = await created(at.ada, keepAlive=True)
        http = session["connectUrl"].replace("ws://", "http://")
        assert (await at.ada.http.get(f"{http}/json/version")).status_code == 200  # asking spends nothing
        async with cdp(session["connectUrl"]) as client:
            await client.call("Browser.getVersion")
        assert await status_of(session["connectUrl"]) == 401
        await released(at.ada, session)
        await assert_settled(at, at.ada)


async def test_a_ticket_ends_with_the_gateway_token_that_it_was_minted_for(tmp_path):
    async with house(tmp_path) as at:
        session = await created(at.ada, keepAlive=True)
        async with cdp(session["connectUrl"]) as client:
            await client.call("Browser.getVersion")
            await at.gateway.service.engine._authenticator._directory.disable("ada")
            await client.socket.wait_closed()
            assert client.socket.close_code in (1001, 1008), "by us, or by the vendor that was told to end it"
        assert await status_of(session["connectUrl"]) in (401, 403)
        await until(lambda: not at.vendor.sessions[0].is_live)
        await assert_settled(at, at.ada)


async def test_another_users_session_does_not_exist(tmp_path):
    async with house(tmp_path) as at:
        session = await created(at.ada)
        assert await status_of(endpoint(at, at.bob, sessionId=session["id"])) == 404
        assert await status_of(endpoint(at, at.bob, sessionId="0b8e5a4c-3f62-4d0e-9a37-5f1f6a0c7d11")) == 404
        async with cdp(endpoint(at, at.ada, sessionId=session["id"])) as client:
            await client.call("Browser.getVersion")
        await until(lambda: not at.vendor.sessions[0].is_live)
        assert len(at.vendor.sessions) == 1
        await assert_settled(at, at.ada)


async def test_a_request_that_is_no_websocket_is_told_so(tmp_path):
    async with house(tmp_path) as at:
        session = await created(at.ada)
        answer = await at.ada.http.get(session["connectUrl"].replace("ws://", "http://"))
        assert (answer.status_code, "websocket" in answer.json()["message"]) == (426, True)
        await released(at.ada, session)
        await assert_settled(at, at.ada)


# --- connecting without a session -----------------------------------------------------------------------


async def test_whoever_names_no_session_gets_one_and_it_is_booked(tmp_path):
    async with house(tmp_path, env=LINGER) as at:
        async with cdp(endpoint(at, at.ada)) as client:
            page = await client.attach()
            await client.call("Page.navigate", page, url="https://shop.example/")
            assert await at.ada.running() == 1
        await until(lambda: not at.vendor.sessions[0].is_live)
        await assert_settled(at, at.ada)
        assert len(await at.ada.booked()) == len(at.vendor.sessions) == 1


async def test_short_looks_share_one_session_which_is_ended_after_a_while(tmp_path):
    async with house(tmp_path, env={"BROWSERBASE_LINGER_S": "600"}) as at:
        url = endpoint(at, at.ada).replace("ws://", "http://").replace("/connect?", "/connect/json/version?")
        async with httpx.AsyncClient(trust_env=False) as client:
            asked = (await client.get(url)).json()
        assert asked["webSocketDebuggerUrl"] == endpoint(at, at.ada)
        assert (at.gateway.lines[-1]["operation"], at.gateway.lines[-1]["outcome"]) == (
            "GET /connect",
            "completed",
        )
        assert at.vendor.sessions == []
        for _ in range(3):
            async with cdp(asked["webSocketDebuggerUrl"]) as client:
                await client.call("Browser.getVersion")
                await until(lambda: len([peer for peer in at.vendor.peers if peer.is_open]) == 2)
        async with cdp(endpoint(at, at.ada)) as one, cdp(endpoint(at, at.ada)) as other:
            await one.call("Browser.getVersion")
            await other.call("Browser.getVersion")
            assert len(at.vendor.sessions) == 2
        lingering = at.gateway.service.engine.spliced.lingering
        await until(
            lambda: all(held.timer is not None and not held.clients for held in lingering._held.values())
        )
        for held in list(lingering._held.values()):
            assert held.timer.when() > asyncio.get_running_loop().time()
            held.timer.cancel()
            lingering._expire(held)  # a while later
        await until(lambda: not any(session.is_live for session in at.vendor.sessions))
        await assert_settled(at, at.ada)
        assert len(await at.ada.booked()) == 2


async def test_a_session_that_has_ended_is_not_kept_for_the_next_connection(tmp_path):
    async with house(tmp_path, env={"BROWSERBASE_LINGER_S": "60"}) as at:
        async with cdp(endpoint(at, at.ada)) as client:
            await client.call("Browser.getVersion")
            await until(lambda: len([peer for peer in at.vendor.peers if peer.is_open]) == 2)
            at.vendor.crash(at.vendor.sessions[0])
            await client.socket.wait_closed()
        async with cdp(endpoint(at, at.ada)) as client:
            await client.call("Browser.getVersion")
            assert len(at.vendor.sessions) == 2
            at.vendor.crash(at.vendor.sessions[1])
        await assert_settled(at, at.ada)


async def test_a_session_that_could_not_be_connected_to_is_ended_and_not_tried_again(tmp_path):
    async with house(tmp_path, env={"BROWSERBASE_LINGER_S": "60"}) as at:
        at.vendor.next_on("GET /v1/sessions/[^/]+", fails(500))
        assert await status_of(endpoint(at, at.ada)) == 502
        await until(lambda: not at.vendor.sessions[0].is_live)
        async with cdp(endpoint(at, at.ada)) as client:
            await client.call("Browser.getVersion")
            assert len(at.vendor.sessions) == 2
            at.vendor.crash(at.vendor.sessions[1])
        await assert_settled(at, at.ada)


async def test_what_the_plan_refuses_is_refused_to_whoever_connects(tmp_path):
    async with house(tmp_path, env=LINGER, browsers=1) as at:
        session = await created(at.ada, keepAlive=True)
        with pytest.raises(InvalidStatus) as refused:
            async with connect(endpoint(at, at.ada), proxy=None):
                pass
        assert refused.value.response.status_code == 429
        body = orjson.loads(refused.value.response.body)
        assert body["message"] == "Too many browser sessions at once: 1 may run on the test plan."
        assert [(line["operation"], line["outcome"], line["status"]) for line in at.gateway.lines[-2:]] == [
            ("POST /v1/sessions", "refused", 429),
            ("GET /connect", "refused", 429),
        ]
        at.vendor.next(fails(503))
        assert await status_of(endpoint(at, at.bob)) == 503
        assert len(at.vendor.sessions) == 1
        await released(at.ada, session)
        await assert_settled(at, at.ada)
        assert [entry["cost"] for entry in await at.bob.booked()] == [0]


async def test_a_session_whose_client_never_came_is_ended(tmp_path):
    async with house(tmp_path, env=LINGER) as at:
        at.vendor.set_habits(Habits())
        at.vendor.next(drops())
        assert await status_of(endpoint(at, at.ada)) in (502, 503)
        await assert_settled(at, at.ada)


# --- the end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [{"browser_minutes": 5}, {"credits_per_month": 100}])
async def test_the_socket_is_cut_when_the_budget_ends(tmp_path, plan):
    async with house(tmp_path, **plan) as at:
        async with connected(at, at.ada, keepAlive=True, timeout=3_600) as (_, client):
            at.vendor.sessions[0].expires_ms += 3_600_000  # it does not obey
            async with asyncio.timeout(30):
                while client.socket.close_code is None:
                    await at.pass_time(15)
                    try:
                        await asyncio.wait_for(client.call("Browser.getVersion"), 60)
                    except ConnectionClosed:
                        break
            await client.socket.wait_closed()
            assert client.socket.close_code in (1001, 1008)
        await until(lambda: not at.vendor.sessions[0].is_live)
        await until_booked(at, at.ada)
        entry, *_ = await at.ada.booked()
        assert (entry["outcome"], 180 <= entry["seconds"] <= 330) == ("budget_ended", True)


async def test_a_restarting_proxy_says_so_and_the_session_is_settled_later(tmp_path):
    async with house(tmp_path) as at:
        async with connected(at, at.ada, keepAlive=True) as (session, client):
            at.gateway.service.engine.spliced.stop()
            await client.socket.wait_closed()
            assert client.socket.close_code == 1001
        await released(at.ada, session)
        await assert_settled(at, at.ada)


async def test_what_waits_is_not_ended_under_another_client_of_it(tmp_path):
    async with house(tmp_path, env={"BROWSERBASE_LINGER_S": "0"}) as at:
        async with cdp(endpoint(at, at.ada)) as one:
            (real,) = at.vendor.sessions
            async with cdp(endpoint(at, at.ada, sessionId=real.id)) as other:
                await other.call("Browser.getVersion")
            await one.call("Browser.getVersion")
            assert real.is_live
        await until(lambda: not real.is_live)
        await assert_settled(at, at.ada)


async def test_an_empty_id_makes_no_session(tmp_path):
    async with house(tmp_path) as at:
        assert await status_of(endpoint(at, at.ada, sessionId="")) == 400
        assert at.vendor.sessions == []


async def test_what_ended_while_it_waited_is_not_given_to_the_next(tmp_path):
    async with house(tmp_path, env={"BROWSERBASE_LINGER_S": "60"}) as at:
        async with cdp(endpoint(at, at.ada)) as client:
            await client.call("Browser.getVersion")
        await released(at.ada, {"id": at.vendor.sessions[0].id})
        await until_booked(at, at.ada)
        async with cdp(endpoint(at, at.ada)) as client:
            await client.call("Browser.getVersion")
        assert len(at.vendor.sessions) == 2
        await released(at.ada, {"id": at.vendor.sessions[1].id})
        await until_booked(at, at.ada, 2)


async def test_two_clients_at_once_do_not_get_the_same_waiting_session(tmp_path):
    async with house(tmp_path, env={"BROWSERBASE_LINGER_S": "30"}) as at:
        async with cdp(endpoint(at, at.ada)) as client:
            await client.call("Browser.getVersion")
            await until(lambda: len([peer for peer in at.vendor.peers if peer.is_open]) == 2)
        async with asyncio.TaskGroup() as group:

            async def looks():
                async with cdp(endpoint(at, at.ada)) as client:
                    await client.call("Browser.getVersion")
                    await until(lambda: len(at.vendor.sessions) == 3)

            for _ in range(3):
                group.create_task(looks())
        assert len(at.vendor.sessions) == 3, "one waited, two were made"
        for session in at.vendor.sessions:
            await released(at.ada, {"id": session.id})
        await until_booked(at, at.ada, 3)
