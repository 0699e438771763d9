"""Clients that take their time, by the hundred: each wait has a bound, and nobody else waits with them."""

import asyncio
import socket
from contextlib import AsyncExitStack, closing

import pytest

from tests.hostile.stage import CALLS, EXTENSIONS, MESSAGES, SESSIONS, staged

SLOW_CLIENTS = 100
IDLE_CLIENTS = 500
ROUNDS_MAX = 200
DRIP_S = 0.02
NO_HEAD = {
    "nothing": b"",
    "half a request line": b"POST /api/ll",
    "half a head": b"POST /api/llm/v1/messages HTTP/1.1\r\nhost: proxy\r\nx-a: ",
    "empty lines": b"\r\n\r\n",
}


async def drip(stage, first, piece, *, token=None):
    """SLOW_CLIENTS that send `first` and then `piece` again and again, until all of them are closed; meanwhile
    somebody else is served. What each was answered."""
    async with AsyncExitStack() as stack:
        peers = []
        for _ in range(SLOW_CLIENTS):
            peer = await stack.enter_async_context(stage.connected())
            peer.send(first)  # at once: whoever says nothing is closed, too
            peers.append(peer)
        for round_ in range(ROUNDS_MAX):
            if all(peer.is_closed for peer in peers):
                break
            for peer in peers:
                if not peer.is_closed and piece:
                    peer.send(piece)
            await asyncio.sleep(DRIP_S)
            if round_ % 10 == 0:
                conversation = await stage.converse(stage.post(token=stage.other), answers=1)
                assert conversation.statuses == [200]
        assert all(peer.is_closed for peer in peers), "not within their bound"
        return [[answer.status for answer in peer.answers] for peer in peers]


@pytest.mark.parametrize("name", NO_HEAD)
async def test_heads_in_drips_end_within_keep_alive_s(tmp_path, name):
    async with staged(tmp_path, env={"KEEP_ALIVE_S": "1"}) as stage:
        piece = {"nothing": b"", "empty lines": b"\r\n"}.get(name, b"a")
        assert await drip(stage, NO_HEAD[name], piece) == [[]] * SLOW_CLIENTS
        assert not stage.gateway.server.server_state.tasks


@pytest.mark.parametrize("target", [MESSAGES, SESSIONS, EXTENSIONS, CALLS])
@pytest.mark.parametrize("framing", [b"content-length: 100000", b"transfer-encoding: chunked"])
async def test_bodies_in_drips_are_400_within_body_timeout_s(tmp_path, framing, target):
    async with staged(tmp_path, env={"BODY_TIMEOUT_S": "0.5", "KEEP_ALIVE_S": "1"}) as stage:
        piece = b"1\r\n \r\n" if b"chunked" in framing else b" "
        first = stage.head(framing, target=target)
        assert await drip(stage, first, piece) == [[400]] * SLOW_CLIENTS
        assert stage.gateway.service.engine._reading.waiting_by_owner == {}
        assert {request.path for request in stage.vendor.requests} == {MESSAGES.removeprefix(b"/api/llm")}


async def test_trailers_in_drips_are_400_within_body_timeout_s(tmp_path):
    async with staged(tmp_path, env={"BODY_TIMEOUT_S": "0.5", "KEEP_ALIVE_S": "1"}) as stage:
        first = stage.head(b"transfer-encoding: chunked") + b"0\r\n"
        assert await drip(stage, first, b"x-a: b\r\n") == [[400]] * SLOW_CLIENTS


async def test_an_endless_chunk_extension_is_400_within_body_timeout_s(tmp_path):
    async with staged(tmp_path, env={"BODY_TIMEOUT_S": "0.5", "KEEP_ALIVE_S": "1"}) as stage:
        assert (
            await drip(stage, stage.head(b"transfer-encoding: chunked") + b"5;", b"a" * 100)
            == [[400]] * SLOW_CLIENTS
        )


async def test_idle_connections_cost_nobody_else_anything(tmp_path):
    async with staged(tmp_path) as stage, AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(stage.connected()) for _ in range(IDLE_CLIENTS)]
        for _ in range(20):
            assert (await stage.converse(stage.post(), answers=1)).statuses == [200]
        assert len(stage.gateway.server.server_state.connections) >= IDLE_CLIENTS
        assert all(peer.received == b"" for peer in idle)


async def test_connections_beyond_their_bound_are_closed_at_once_and_harm_no_other(tmp_path):
    async with staged(tmp_path, env={"CLIENT_CONNECTIONS_MAX": "10"}) as stage, AsyncExitStack() as stack:
        first = [await stack.enter_async_context(stage.connected()) for _ in range(10)]
        further = [await stack.enter_async_context(stage.connected()) for _ in range(10)]
        await stage.gateway.until(lambda: all(peer.is_closed for peer in further))
        assert not any(peer.is_closed for peer in first)
        for peer in first:
            peer.send(stage.post())
            await stage.settled(peer, 1)
            assert [answer.status for answer in peer.answers] == [200]
        first[0].transport.abort()
        await stage.gateway.until(lambda: len(stage.gateway.server.server_state.connections) == 9)
        assert (await stage.converse(stage.post(), answers=1)).statuses == [200]


async def test_clients_that_connect_and_reset_leave_nothing(tmp_path):
    async with staged(tmp_path) as stage:
        port = int(stage.gateway.url.rpartition(":")[2])
        pieces = [b"", b"POST", stage.head(b"content-length: 90"), stage.post(), stage.post()[:-1]]
        for number in range(300):
            with closing(socket.create_connection(("127.0.0.1", port))) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                client.sendall(pieces[number % len(pieces)])
            if number % 20 == 0:
                await asyncio.sleep(0)
        await stage.gateway.until(lambda: not stage.gateway.server.server_state.connections)
        assert len(stage.vendor.requests) <= 60
