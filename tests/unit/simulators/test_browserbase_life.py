"""How a session of the simulated Browserbase lives, ends and is billed, by a clock that stands still until told."""

import pytest

from simulators.browserbase import Billed, Habits, Status
from tests.support.cdp import cdp

RELEASE = {"status": "REQUEST_RELEASE"}


@pytest.fixture
async def make(platform, browserbase):
    """Makes a session; the simulator's side of it."""

    async def make(**fields):
        answer = await platform.post("/sessions", json=fields)
        return browserbase.project.session(answer.json()["id"])

    return make


def address(browserbase, session):
    return f"{browserbase.url.replace('http', 'ws')}/?signingKey={session.signing_key}"


def seconds(session):
    """From its creation to its end."""
    return (session.ended_ms - session.created_ms) / 1000


async def shown(platform, session):
    return (await platform.get(f"/sessions/{session.id}")).json()


async def test_a_session_that_nobody_connects_to_ends_after_five_minutes(browserbase, make):
    session = await make(timeout=3600)
    browserbase.advance(299)
    assert session.status is Status.RUNNING
    browserbase.advance(10)
    assert (session.status, seconds(session)) == (Status.TIMED_OUT, 300)


async def test_one_that_is_kept_alive_runs_to_its_timeout(browserbase, make):
    session, other = await make(timeout=3600, keepAlive=True), await make(keepAlive=True)
    async with cdp(address(browserbase, session)):
        pass
    await browserbase.until(lambda: not session.clients)
    browserbase.advance(3599)
    assert session.status is Status.RUNNING
    browserbase.advance(100)
    assert (session.status, seconds(session)) == (Status.TIMED_OUT, 3600)
    assert (other.status, seconds(other)) == (Status.TIMED_OUT, 900)
    assert browserbase.billed[session.id] == Billed(session.id, 3600, 0)


async def test_a_session_ends_with_its_last_client(browserbase, make):
    session = await make()
    async with cdp(address(browserbase, session)):
        async with cdp(address(browserbase, session)):
            browserbase.advance(70)
        await browserbase.until(lambda: len(session.clients) == 1)
        browserbase.advance(5)
        assert (session.status, browserbase.billed) == (Status.RUNNING, {})
    await browserbase.until(lambda: not session.is_live)
    assert (session.status, seconds(session), session.connects_total) == (Status.COMPLETED, 75, 2)


async def test_a_client_that_is_connected_does_not_outlive_the_session(browserbase, make):
    session = await make(timeout=60)
    async with cdp(address(browserbase, session)) as client:
        browserbase.advance(61)
        await client.socket.wait_closed()
        assert (client.socket.close_code, client.socket.close_reason) == (1001, "session timed_out")
    assert (session.status, seconds(session)) == (Status.TIMED_OUT, 60)


@pytest.mark.parametrize(("keep_alive", "status"), [(False, Status.COMPLETED), (True, Status.RUNNING)])
async def test_silence_disconnects(browserbase, make, keep_alive, status):
    session = await make(timeout=3600, keepAlive=keep_alive)
    async with cdp(address(browserbase, session)) as client:
        browserbase.advance(599)
        await client.call("Browser.getVersion")
        browserbase.advance(599)
        assert client.socket.close_code is None
        browserbase.advance(30)
        await client.socket.wait_closed()
        assert client.socket.close_reason == "silent for too long"
    assert session.status is status
    assert session.clients == []
    if not keep_alive:
        assert seconds(session) == 599 + 600


async def test_a_start_and_an_end_may_take_their_time(platform, browserbase, make):
    browserbase.set_habits(Habits(start_s=4, end_s=7))
    session = await make(keepAlive=True)
    assert (await shown(platform, session))["status"] == "PENDING"
    browserbase.advance(5)
    assert (await shown(platform, session))["status"] == "RUNNING"
    browserbase.advance(100)
    answer = await platform.post(f"/sessions/{session.id}", json=RELEASE)
    assert answer.json()["status"] == "RUNNING"
    browserbase.advance(6)
    assert (await shown(platform, session))["status"] == "RUNNING"
    await platform.post(f"/sessions/{session.id}", json=RELEASE)
    browserbase.advance(1)
    ended = await shown(platform, session)
    assert (ended["status"], seconds(session)) == ("COMPLETED", 112)
    assert ended["startedAt"] == "2026-11-18T11:06:44.000+00:00"
    assert browserbase.billed[session.id].seconds == 108


async def test_the_timeout_cuts_a_slow_end_short(browserbase, make, platform):
    browserbase.set_habits(Habits(end_s=100))
    session = await make(timeout=60, keepAlive=True)
    browserbase.advance(10)
    await platform.post(f"/sessions/{session.id}", json=RELEASE)
    browserbase.advance(200)
    assert (session.status, seconds(session)) == (Status.TIMED_OUT, 60)


async def test_a_browser_may_crash(browserbase, make):
    session = await make(keepAlive=True)
    async with cdp(address(browserbase, session)) as client:
        browserbase.advance(65)
        browserbase.crash(session)
        await client.socket.wait_closed()
    browserbase.crash(session)
    assert (session.status, seconds(session)) == (Status.ERROR, 65)


async def test_the_end_may_be_left_out_and_proxied_bytes_come_late(platform, browserbase, make):
    browserbase.set_habits(Habits(tells_end=False, proxy_lag_s=30))
    session = await make(keepAlive=True, proxies=True)
    browserbase.advance(100)
    browserbase.move_proxied(session, 7_000_000)
    await platform.post(f"/sessions/{session.id}", json=RELEASE)
    early = await shown(platform, session)
    assert (early["status"], early["proxyBytes"], "endedAt" in early) == ("COMPLETED", 0, False)
    assert early["updatedAt"] == "2026-11-18T11:08:20.000+00:00"
    browserbase.advance(29)
    assert (await shown(platform, session))["proxyBytes"] == 0
    browserbase.advance(1)
    assert (await shown(platform, session))["proxyBytes"] == 7_000_000
    assert browserbase.billed == {session.id: Billed(session.id, 100, 7_000_000)}


@pytest.mark.parametrize(
    ("lasted_s", "billed_s"), [(0, 60), (59.9, 60), (60, 60), (60.001, 61), (3000, 3000)]
)
async def test_a_minute_is_billed_at_least(platform, browserbase, make, lasted_s, billed_s):
    session = await make(timeout=3600, keepAlive=True)
    browserbase.advance(lasted_s)
    assert browserbase.billed == {}
    await platform.post(f"/sessions/{session.id}", json=RELEASE)
    assert browserbase.billed[session.id].seconds == billed_s


async def test_a_viewer_keeps_no_session_alive(platform, browserbase, make):
    session = await make()
    view = (await platform.get(f"/sessions/{session.id}/debug")).json()["wsUrl"]
    async with cdp(view) as viewer:
        async with cdp(address(browserbase, session)):
            assert [client.is_viewer for client in session.clients] == [True, False]
        await viewer.socket.wait_closed()
    assert session.status is Status.COMPLETED


async def test_sessions_end_though_nobody_asks(browserbase, make):
    session = await make(keepAlive=True)
    browserbase.project.ahead_ms += 900_000
    await browserbase.until(lambda: not session.is_live)
    assert session.status is Status.TIMED_OUT
