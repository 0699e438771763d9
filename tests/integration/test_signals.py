"""How the service stops: not ready while it still serves, then what runs finishes, then the ledger is whole."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager

import httpx
import pytest

from simulators.anthropic import ReportedUsage, stalls_after
from simulators.script import Gate
from tests.support.gateway import messages_body
from tests.support.process import group_members, serving

USAGE = ReportedUsage(input_tokens=100, output_tokens=50)
EXACT_NANOUSD = 100 * 3_000 + 50 * 15_000
FIELDS = "kind, outcome, basis, cost_nanousd"


@asynccontextmanager
async def running(tmp_path, vendor, *, workers=1, **settings):
    """The service in a process of its own, and a client with a token."""
    async with serving(tmp_path, upstream=vendor.url, workers=workers, env=settings) as server:
        async with server.directory() as directory:
            await directory.add_user("u1", plan="test")
            token, _ = await directory.create_token("u1")
        async with server.client(token) as client:
            yield server, client


async def read(client, begun=None):
    """A stream, and whether it ended as it should; `begun` is set with its first bytes."""
    received = b""
    try:
        async with client.stream("POST", "/v1/messages", json=messages_body(stream=True)) as answer:
            async for piece in answer.aiter_bytes():
                received += piece
                if begun is not None:
                    begun.set()
    except httpx.HTTPError:
        return received, False
    return received, True


def start(coroutine):
    return asyncio.get_running_loop().create_task(coroutine)


async def status_of(url, path):
    """On a connection of its own; None when there is none to be had."""
    try:
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            return (await client.get(url + path)).status_code
    except httpx.TransportError:
        return None


async def until_status(url, path, status):
    async with asyncio.timeout(60):
        while await status_of(url, path) != status:
            await asyncio.sleep(0.01)


async def assert_left_clean(server):
    """Nothing is held, nobody is registered as alive, every sum is right."""
    assert server.rows("SELECT * FROM workers") == []
    await server.assert_verified()


@pytest.mark.parametrize("stopped_by", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_stopped_service_gives_notice_finishes_what_runs_and_exits_with_0(
    tmp_path, vendor, workers, stopped_by
):
    gate = Gate()
    vendor.next(stalls_after(5, gate=gate, usage=USAGE))
    async with running(tmp_path, vendor, workers=workers, DRAIN_NOTICE_S="4") as (server, client):
        assert await status_of(server.url, "/readyz") == 200
        stream = start(read(client))
        await gate.reached()
        server.signal(stopped_by)
        await until_status(server.url, "/readyz", 503)
        assert await status_of(server.url, "/health") == 200
        answer = await client.get("/v1/models")
        assert answer.status_code == 200  # on a connection of the notice period
        await until_status(server.url, "/health", None)
        assert not stream.done()
        gate.open()
        received, is_whole = await stream
        assert is_whole
        assert received.endswith(b'data: {"type":"message_stop"               }\n\n')
        assert await server.exit_status() == 0
        rows = server.rows(f"SELECT {FIELDS} FROM entries WHERE cost_nanousd > 0")
        assert rows == [("settle", "completed", "reported", EXACT_NANOUSD)]
        await assert_left_clean(server)


async def test_a_stream_that_does_not_finish_within_the_bound_is_cut_and_booked(tmp_path, vendor):
    vendor.next(stalls_after(5, usage=USAGE))
    async with running(tmp_path, vendor, DRAIN_STREAMS_S="0.4") as (server, client):
        begun = asyncio.Event()
        stream = start(read(client, begun))
        await begun.wait()
        server.signal(signal.SIGTERM)
        _, is_whole = await stream
        assert not is_whole
        assert await server.exit_status() == 0
        ((kind, outcome, basis, cost),) = server.rows(f"SELECT {FIELDS} FROM entries")
        assert (kind, outcome, basis) == ("settle", "timed_out", "estimated")
        assert cost > 0
        await assert_left_clean(server)


async def test_what_is_read_on_after_its_client_left_is_booked_before_the_end(tmp_path, vendor):
    gate = Gate()
    vendor.next(stalls_after(5, gate=gate, usage=USAGE))
    async with running(tmp_path, vendor) as (server, client):
        stream = start(read(client))
        await gate.reached()
        stream.cancel()
        await asyncio.wait({stream})
        server.signal(signal.SIGTERM)
        await until_status(server.url, "/health", None)
        gate.open()
        assert await server.exit_status() == 0
        rows = server.rows(f"SELECT {FIELDS} FROM entries")
        assert rows == [("settle", "client_left", "reported", EXACT_NANOUSD)]
        await assert_left_clean(server)


async def test_workers_whose_supervisor_was_killed_stop_by_themselves(tmp_path, vendor):
    async with running(tmp_path, vendor, workers=2) as (server, _):
        assert len(server.workers_alive()) == 2
        server.signal(signal.SIGKILL)
        await server.exit_status()
        await server.until(lambda: not server.rows("SELECT * FROM workers"))
        await until_status(server.url, "/health", None)


async def test_told_to_stop_while_its_workers_are_being_started_it_stops_too(tmp_path, vendor):
    async with running(tmp_path, vendor, workers=2) as (server, _):
        server.signal(signal.SIGTERM)
        assert await server.exit_status() == 0
        for workers_there in (1, 2):
            await server.spawn()
            await server.until(lambda wanted=workers_there: len(group_members(server.pid)) > wanted)
            server.signal(signal.SIGTERM)
            assert await server.exit_status() == 0


async def test_told_to_stop_while_it_replaces_a_dead_worker_it_stops_too(tmp_path, vendor):
    async with running(tmp_path, vendor, workers=2) as (server, _):
        victim = next(iter(server.workers_alive()))
        os.kill(victim, signal.SIGKILL)
        await server.until(lambda: f"worker {victim} died" in server.log())
        server.signal(signal.SIGTERM)
        assert await server.exit_status() == 0
