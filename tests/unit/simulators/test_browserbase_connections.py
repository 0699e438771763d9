"""Connections to the simulated Browserbase's browsers: who is let in where, what the scripted one answers, and how it
misbehaves."""

import base64
import struct
import zlib
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import websockets
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from metering.tasks import spawn
from simulators.browserbase import VENDOR_KEY, BrowserbaseSimulator, Habits, Plan, Status
from simulators.browserbase_pages import PAGE_PROXY_BYTES
from tests.support.cdp import CdpError, cdp


@pytest.fixture
async def session(platform, browserbase):
    answer = await platform.post("/sessions", json={"keepAlive": True, "proxies": True, "timeout": 3600})
    return answer.json()


def root(browserbase):
    return browserbase.url.replace("http", "ws")


async def status_of(url):
    """That of a handshake that is refused."""
    with pytest.raises(InvalidStatus) as refused:
        await connect(url, proxy=None)
    return refused.value.response.status_code


# --- dialling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/connect"])
async def test_a_session_is_dialled_by_its_own_key(browserbase, session, path):
    async with cdp(f"{root(browserbase)}{path}?signingKey={session['signingKey']}") as client:
        assert (await client.call("Browser.getVersion"))["protocolVersion"] == "1.3"
    assert len(browserbase.sessions) == 1
    assert browserbase.answers[-1].usage.sessions == 1


@pytest.mark.parametrize("path", ["/", "/connect"])
async def test_the_accounts_key_opens_any_session_or_makes_one(browserbase, session, path):
    address = f"{root(browserbase)}{path}?apiKey={VENDOR_KEY}"
    async with cdp(f"{address}&sessionId={session['id']}"):
        assert [len(each.clients) for each in browserbase.sessions] == [1]
    async with cdp(address):
        minted = browserbase.sessions[1]
        assert (minted.via, minted.keep_alive, len(minted.clients)) == ("connect", False, 1)
        assert browserbase.answers[-1].message_id == minted.id
    await browserbase.until(lambda: not minted.is_live)
    assert browserbase.billed[minted.id].seconds == 60


async def test_who_names_nothing_good_is_not_let_in(platform, browserbase, session):
    other = (await platform.post("/sessions", json={})).json()
    await platform.post(f"/sessions/{other['id']}", json={"status": "REQUEST_RELEASE"})
    wanted = {
        "/": 401,
        "/?apiKey=wrong": 401,
        f"/?apiKey=wrong&sessionId={session['id']}": 401,
        f"/?sessionId={session['id']}": 401,
        "/?signingKey=wrong": 401,
        f"/?signingKey={other['signingKey']}": 410,
        f"/?apiKey={VENDOR_KEY}&sessionId={other['id']}": 410,
        f"/?apiKey={VENDOR_KEY}&sessionId=none": 404,
        f"/elsewhere?apiKey={VENDOR_KEY}": 404,
        "/debug/none/devtools/page/x": 404,
        f"/debug/{other['id']}/devtools/page/x": 410,
    }
    assert {path: await status_of(f"{root(browserbase)}{path}") for path in wanted} == wanted
    assert (len(browserbase.sessions), browserbase.peers) == (2, [])


async def test_a_connection_counts_against_the_accounts_limits():
    async with BrowserbaseSimulator(plan=Plan(concurrent_sessions=1)) as vendor:
        address = f"{root(vendor)}/connect?apiKey={VENDOR_KEY}"
        async with cdp(address):
            assert await status_of(address) == 429
        assert len(vendor.sessions) == 1


@pytest.mark.parametrize("path", ["/json/version", "/json/version/", "/connect/json/version/"])
async def test_where_to_connect_may_be_asked_and_makes_nothing(browserbase, session, path):
    async with httpx.AsyncClient(base_url=browserbase.url, trust_env=False) as client:
        asked = await client.get(path, params={"apiKey": VENDOR_KEY})
        assert (await client.get(path, params={"apiKey": "wrong"})).status_code == 401
        of_one = await client.get(path, params={"signingKey": session["signingKey"]})
    assert len(browserbase.sessions) == 1
    url = asked.json()["webSocketDebuggerUrl"]
    assert url == f"{root(browserbase)}{'/connect' if 'connect' in path else '/'}?apiKey={VENDOR_KEY}"
    async with cdp(url), cdp(of_one.json()["webSocketDebuggerUrl"]):
        assert [len(each.clients) for each in browserbase.sessions] == [1, 1]


async def test_the_live_view_needs_no_key_and_expires(platform, browserbase, session):
    async with cdp(session["connectUrl"]) as client:
        await client.call("Page.navigate", await client.attach(), url="https://x.y/")
    answer = await platform.get(f"/sessions/{session['id']}/debug", params={"expiresIn": 60})
    (page,) = answer.json()["pages"]
    assert (page["url"], page["title"]) == ("https://x.y/", "Simulated page at https://x.y/")
    for name in ("debuggerUrl", "debuggerFullscreenUrl"):
        (socket,) = parse_qs(urlsplit(page[name]).query)["wss"]
        assert socket.startswith(
            f"127.0.0.1:{browserbase.port}/debug/{session['id']}/devtools/page/{page['id']}?"
        )
        async with cdp(f"ws://{socket}") as viewer:
            result = (await viewer.call("Runtime.evaluate", expression="location.href"))["result"]
            assert result == {"type": "string", "value": "https://x.y/"}
    browserbase.advance(60)
    assert await status_of(f"ws://{socket}") == 401
    for expires in ("0", "21601", "x"):
        answer = await platform.get(f"/sessions/{session['id']}/debug", params={"expiresIn": expires})
        assert answer.status_code == 400


async def test_a_session_that_is_not_up_yet_can_be_dialled(browserbase):
    browserbase.set_habits(Habits(start_s=5))
    async with cdp(f"{root(browserbase)}/?apiKey={VENDOR_KEY}"):
        assert browserbase.sessions[0].status is Status.PENDING


# --- the scripted browser -----------------------------------------------------------------------------


async def test_a_page_is_navigated_and_photographed(platform, browserbase, session):
    async with cdp(session["connectUrl"]) as client:
        page = await client.attach()
        await client.call("Page.enable", page)
        await client.call("Page.navigate", page, url="https://x.y/")
        assert [each["method"] for each in client.events][-1] == "Page.loadEventFired"
        assert {each.get("sessionId") for each in client.events[1:]} == {page}
        title = await client.call("Runtime.evaluate", page, expression="document.title")
        assert title["result"]["value"] == "Simulated page at https://x.y/"
        assert (await client.call("Runtime.evaluate", page, expression="[1]"))["result"]["value"] == [1]
        assert (await client.call("Runtime.evaluate", page, expression="f()"))["result"]["value"] == "f()"
        picture = base64.b64decode((await client.call("Page.captureScreenshot", page))["data"])
        assert pixels(picture) == (1280, 720)
        clip = {"x": 0, "y": 0, "width": 30, "height": 20, "scale": 1}
        small = base64.b64decode((await client.call("Page.captureScreenshot", page, clip=clip))["data"])
        assert pixels(small) == (30, 20)
        with pytest.raises(CdpError, match="capture"):
            await client.call("Page.captureScreenshot", page, clip={**clip, "width": 100_000_000})
    logs = (await platform.get(f"/sessions/{session['id']}/logs")).json()
    assert [log["method"] for log in logs][2:4] == ["Page.enable", "Page.navigate"]
    assert logs[3]["request"]["params"] == {"url": "https://x.y/"}
    assert (await platform.get(f"/sessions/{session['id']}")).json()["proxyBytes"] == PAGE_PROXY_BYTES


def pixels(picture):
    """Width and height of a PNG, every chunk of which is whole."""
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    at, data, size = 8, b"", None
    while at < len(picture):
        length, kind = struct.unpack("!I4s", picture[at : at + 8])
        content = picture[at + 8 : at + 8 + length]
        assert (
            zlib.crc32(kind + content) == struct.unpack("!I", picture[at + 8 + length : at + 12 + length])[0]
        )
        if kind == b"IHDR":
            size = struct.unpack("!II", content[:8])
        data += content if kind == b"IDAT" else b""
        at += 12 + length
    assert len(zlib.decompress(data)) == size[1] * (1 + 3 * size[0])
    return size


async def test_targets_are_made_found_attached_to_and_closed(browserbase, session):
    async with cdp(session["connectUrl"]) as client:
        await client.call("Target.setDiscoverTargets", discover=True)
        first = client.events[0]["params"]["targetInfo"]
        made = (await client.call("Target.createTarget", url="https://x.y/"))["targetId"]
        assert client.events[-1]["params"]["targetInfo"]["targetId"] == made != first["targetId"]
        await client.call("Target.setAutoAttach", autoAttach=True, flatten=True)
        attached = [each["params"] for each in client.events if each["method"] == "Target.attachedToTarget"]
        assert [each["targetInfo"]["targetId"] for each in attached] == [first["targetId"], made]
        await client.call("Target.setAutoAttach", attached[0]["sessionId"], autoAttach=True, flatten=True)
        assert (await client.call("Target.getTargetInfo"))["targetInfo"]["type"] == "browser"
        of_page = await client.call("Target.getTargetInfo", attached[1]["sessionId"])
        assert (of_page["targetInfo"]["targetId"], of_page["targetInfo"]["attached"]) == (made, True)
        await client.call("Target.closeTarget", targetId=made)
        with pytest.raises(CdpError, match="No target"):
            await client.call("Target.attachToTarget", targetId=made)
        await client.call("Target.detachFromTarget", sessionId=attached[0]["sessionId"])
        for gone in attached:
            with pytest.raises(CdpError, match="Not attached"):
                await client.call("Page.navigate", gone["sessionId"], url="https://x.y/")
    other = browserbase.sessions[0].browser
    assert len(other.pages()) == 1


async def test_what_is_no_command_is_refused_or_passed_over(browserbase, session):
    async with cdp(session["connectUrl"]) as client:
        with pytest.raises(CdpError, match="wasn't found"):
            await client.call("Page.fly")
        with pytest.raises(CdpError, match="Invalid parameters"):
            await client.call("Simulator.moveProxied")
        for text in ("{", "[]", '{"method":"Page.enable"}'):
            await client.socket.send(text)
        assert await client.call("Network.setCacheDisabled", cacheDisabled=True) == {}
    assert len(browserbase.peers[0].commands) == 3


# --- misbehaving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"pieceBytes": 70_001}, {"binary": True}])
async def test_a_flood_is_as_large_as_asked_for(browserbase, session, more):
    async with cdp(session["connectUrl"]) as client:
        number = await client.send("Simulator.flood", messages=3, bytes=5_000_000, **more)
        messages = [await client.socket.recv() for _ in range(3)]
        assert [len(message) for message in messages] == [5_000_000] * 3
        assert {type(message) for message in messages} == {bytes if "binary" in more else str}
        assert await client.heard() == {"id": number, "result": {"sent": 3}}
        with pytest.raises(CdpError, match="Too much"):
            await client.call("Simulator.flood", messages=1, bytes=1 << 40)


async def test_a_flood_waits_for_who_does_not_read(browserbase, session):
    async with cdp(session["connectUrl"], max_queue=1) as client:
        await client.send("Simulator.flood", messages=100, bytes=4_000_000)
        (peer,) = browserbase.peers
        await browserbase.until(lambda: peer.commands)
        for _ in range(100):
            await client.socket.ping()
        assert peer.flooded_total < 50
        client.socket.transport.abort()
    await browserbase.until(lambda: not browserbase.sessions[0].clients)
    assert peer.flooded_total < 50


async def test_commands_of_any_size_and_bytes_come_back(browserbase, session):
    async with cdp(session["connectUrl"]) as client:
        text = "é" * 10_000_000
        assert await client.call("Simulator.echo", text=text) == {"text": text}
        data = bytes(range(256)) * 100_000
        await client.socket.send(data)
        assert await client.socket.recv() == data


async def test_a_browser_closes_drops_and_pings(browserbase, session):
    async with cdp(session["connectUrl"]) as client:
        await client.call("Simulator.ping", payload="here")
        await client.call("Simulator.echo")
        assert browserbase.peers[0].pongs_total == 1
        await client.send("Simulator.close", code=4001, reason="enough")
        await client.socket.wait_closed()
        assert (client.socket.close_code, client.socket.close_reason) == (4001, "enough")
    async with cdp(session["connectUrl"]) as client:
        await client.send("Simulator.drop")
        with pytest.raises(websockets.ConnectionClosedError):
            await client.heard()
        assert client.socket.close_code == 1006
    async with cdp(session["connectUrl"]) as client:
        await client.send("Browser.close")
        await client.socket.wait_closed()
        assert client.socket.close_code == 1000


async def test_a_browser_is_deaf_until_it_listens(browserbase, session):
    async with cdp(session["connectUrl"]) as client, cdp(session["connectUrl"]) as other:
        await client.call("Simulator.deafen")
        asked = spawn(client.call("Simulator.echo", n=1), name="asked")
        await other.call("Simulator.echo")
        assert not asked.done()
        browserbase.peers[0].listen()
        assert await asked == {"n": 1}


async def test_bytes_are_moved_through_proxies_when_asked_for(browserbase, session):
    async with cdp(session["connectUrl"]) as client:
        await client.call("Simulator.moveProxied", bytes=5)
    assert browserbase.sessions[0].proxy_bytes() == 5


async def test_stopping_the_simulator_ends_its_connections(browserbase, session):
    async with cdp(session["connectUrl"]) as client:
        await browserbase.stop()
        await client.socket.wait_closed()
    assert browserbase.sessions[0].is_live
