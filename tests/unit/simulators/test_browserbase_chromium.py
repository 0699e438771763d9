"""A browser process behind the simulated Browserbase's sessions: a stand-in everywhere, Chromium where there is one."""

import asyncio
import base64
import shlex
import sys
from pathlib import Path

import pytest
import websockets

from metering.tasks import spawn
from simulators.browserbase import VENDOR_KEY, BrowserbaseSimulator, Status, installed
from simulators.script import WAIT_TIMEOUT_S
from tests.support.cdp import cdp

FAKE = Path(__file__).parents[2] / "support" / "fake_chromium.py"


async def none_runs(pids):
    """A killed process whose parent is gone, too, is there until init has heard of it."""
    async with asyncio.timeout(WAIT_TIMEOUT_S):
        while any(map(runs, pids())):
            await asyncio.sleep(0.01)


@pytest.fixture
async def pids(tmp_path):
    """The ids of the processes that the browsers started, as a function."""
    return lambda: [int(pid) for pid in (tmp_path / "pids").read_text().split()]


@pytest.fixture
async def vendor(tmp_path, monkeypatch):
    """With a stand-in for Chromium."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    words = shlex.join([sys.executable, str(FAKE), str(tmp_path / "pids")])
    async with BrowserbaseSimulator(chromium=script(tmp_path, f'exec {words} "$@"')) as simulator:
        yield simulator


def script(folder, line):
    path = folder / "chromium"
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def address(vendor, path="/connect"):
    return f"{vendor.url.replace('http', 'ws')}{path}?apiKey={VENDOR_KEY}"


def runs(pid):
    """Whether a process is alive; one that only waits for its parent to look is not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # also between finding and reading it
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


async def test_messages_pass_both_ways_as_they_are(vendor, pids):
    async with cdp(address(vendor)) as client:
        await client.socket.send("path")
        assert await client.socket.recv() == "/devtools/browser/b-1"
        for message in ("é" * 5_000_000, bytes(range(256)) * 50_000, ""):
            await client.socket.send(message)
            assert await client.socket.recv() == message
        await client.socket.send(["in ", "three ", "pieces"])
        assert await client.socket.recv() == "in three pieces"
        await (await client.socket.ping())
    (session,) = vendor.sessions
    await vendor.until(lambda: not session.is_live)
    await asyncio.wait_for(session.browser.stopping, WAIT_TIMEOUT_S)
    assert session.status is Status.COMPLETED
    assert len(pids()) == 2
    await none_runs(pids)


async def test_the_browser_and_its_profile_live_as_long_as_the_session(vendor, pids, tmp_path):
    vendor.project.create({"keepAlive": True}, via="test", number=0, tag="")
    (session,) = vendor.sessions
    url = f"{address(vendor)}&sessionId={session.id}"
    for _ in range(2):
        async with cdp(url) as client:
            await client.socket.send("path")
            await client.socket.recv()
    assert len(pids()) == 2
    assert all(map(runs, pids()))
    assert len(list(tmp_path.glob("simulated-browser-*"))) == 1
    async with cdp(url) as client:
        vendor.project.release(session)
        with pytest.raises(websockets.ConnectionClosedError):
            await client.socket.recv()
    await asyncio.wait_for(session.browser.stopping, WAIT_TIMEOUT_S)
    await none_runs(pids)
    assert list(tmp_path.glob("simulated-browser-*")) == []


async def test_stopping_the_simulator_stops_its_browsers(vendor, pids):
    async with cdp(address(vendor)) as client:
        await client.socket.send("path")
        await client.socket.recv()
        await vendor.stop()
    await none_runs(pids)


async def test_a_client_that_leaves_at_once_leaves_no_browser(vendor, tmp_path):
    async with cdp(address(vendor)) as client:
        client.socket.transport.abort()
    (session,) = vendor.sessions
    await vendor.until(lambda: not session.is_live)
    await asyncio.wait_for(session.browser.stopping, WAIT_TIMEOUT_S)
    assert list(tmp_path.glob("simulated-browser-*")) == []


async def test_a_page_has_an_address_of_its_own(vendor):
    async with cdp(address(vendor)):
        view = f"{vendor.url.replace('http', 'ws')}/debug/{vendor.sessions[0].id}/devtools/page"
        async with cdp(f"{view}/p-1") as viewer:
            await viewer.socket.send("path")
            assert await viewer.socket.recv() == "/devtools/page/p-1"
        async with cdp(f"{view}/missing") as viewer:
            with pytest.raises(websockets.ConnectionClosedError):
                await viewer.socket.recv()


async def test_a_silent_client_is_disconnected_and_the_browser_goes_on(vendor, pids):
    session = vendor.project.create({"keepAlive": True, "timeout": 3600}, via="test", number=0, tag="")
    async with cdp(f"{address(vendor)}&sessionId={session.id}") as client:
        await client.socket.send("path")
        await client.socket.recv()
        vendor.advance(600)
        with pytest.raises(websockets.ConnectionClosedError):
            await client.socket.recv()
    assert session.is_live
    assert all(map(runs, pids()))


async def test_a_browser_that_dies_ends_its_connections(vendor):
    async with cdp(address(vendor)) as client:
        await client.socket.send("leave")
        with pytest.raises(websockets.ConnectionClosedError):
            await client.socket.recv()
    await vendor.until(lambda: not vendor.sessions[0].is_live)


async def test_a_browser_that_does_not_start_ends_its_connections(tmp_path):
    async with (
        BrowserbaseSimulator(chromium=script(tmp_path, "exit 1")) as vendor,
        cdp(address(vendor)) as client,
    ):
        with pytest.raises(websockets.ConnectionClosedError):
            await client.socket.recv()


async def test_neither_side_is_read_faster_than_the_other_takes(vendor):
    message = bytes(1_000_000)
    async with cdp(address(vendor), max_queue=1) as client, cdp(address(vendor)) as other:
        sending = spawn(_send(client.socket, message, 200), name="sending")
        splice = vendor.peers[0]
        await vendor.until(lambda: splice._easing is not None)
        for _ in range(50):  # long enough for all to be read that is read at all
            await other.socket.send(message)
            await other.socket.recv()
            sides = (splice._writer.transport, splice._line._transport)
            assert max(side.get_write_buffer_size() for side in sides) < 4_000_000
        assert not sending.done()
        for _ in range(200):
            assert len(await client.socket.recv()) == len(message)
        await sending


async def _send(socket, message, times):
    for _ in range(times):
        await socket.send(message)


if (chromium := installed()) is not None:

    async def test_chromium_itself_navigates_and_takes_a_picture():
        async with BrowserbaseSimulator(chromium=chromium) as vendor, cdp(address(vendor)) as client:
            page = await client.attach()
            await client.call("Page.enable", page)
            await client.call("Page.navigate", page, url="data:text/html,<title>Hello</title>")
            while not any(each["method"] == "Page.loadEventFired" for each in client.events):
                client.events.append(await client.heard())
            title = await client.call("Runtime.evaluate", page, expression="document.title")
            assert title["result"]["value"] == "Hello"
            picture = (await client.call("Page.captureScreenshot", page))["data"]
            assert base64.b64decode(picture).startswith(b"\x89PNG")
