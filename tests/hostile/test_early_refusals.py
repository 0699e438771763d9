"""Who is refused anyway is refused before the body is read, and hears why in an answer that can be read."""

import asyncio

import pytest

from proxy import downstream
from tests.hostile.stage import Peer, small_body, staged
from tests.support.gateway import DatedClock

BODY = small_body()
LONG = b"content-length: 200000"
BEFORE = b"x" * 1_000


async def half_sent(stage, *headers, **more):
    """The answer to a head, and some of a body that never ends; sent in two, as clients do."""
    async with stage.connected() as peer:
        peer.send(stage.head(LONG, *headers, **more))
        await stage.settled(peer, 1)
        peer.send(BEFORE)
        await stage.settled(peer, 1)
        (answer,) = peer.answers
        return answer


async def test_a_spent_minute_is_told_before_the_body_and_counts_nothing(tmp_path):
    async with staged(tmp_path, clock=DatedClock(2026, 11, 20), requests_per_minute=2) as stage:
        for _ in range(2):
            await stage.converse(stage.post(), answers=1)
        for _ in range(5):
            answer = await half_sent(stage)
            assert (answer.status, b"rate_limit_error" in answer.body) == (429, True)
            assert int(answer.headers[b"retry-after"]) >= 1
        assert len(stage.vendor.requests) == 2
        assert stage.gateway.service.engine._reading.waiting_by_owner == {}


async def test_a_body_that_is_waited_for_counts_only_once_it_is_whole(tmp_path):
    async with staged(tmp_path, clock=DatedClock(2026, 11, 20), requests_per_minute=2) as stage:
        whole = stage.post()
        conversation = await stage.converse(whole[:-9], whole[-9:], answers=1)
        assert conversation.answers[0].headers[b"anthropic-ratelimit-requests-remaining"] == b"1"


async def test_no_more_bodies_of_a_user_are_waited_for_than_may_be_in_flight(tmp_path):
    async with staged(tmp_path, concurrent=3) as stage:
        engine = stage.gateway.service.engine
        whole = stage.post()
        async with stage.connected() as a, stage.connected() as b, stage.connected() as c:
            for peer in (a, b, c):
                peer.send(whole[:-5])
            await stage.gateway.until(lambda: engine._reading.waiting_by_owner["user:u1"] == 3)
            answer = await half_sent(stage)
            assert answer.status == 429
            assert b"at once" in answer.body
            other = await stage.gateway.new_token("u2")
            assert (await stage.converse(stage.post(token=other), answers=1)).statuses == [200]
            a.send(whole[-5:])
            await stage.settled(a, 1)
            assert [one.status for one in a.answers] == [200]
            conversation = await stage.converse(whole[:-5], whole[-5:], answers=1)
            assert conversation.statuses == [200]
        await stage.gateway.until(lambda: engine._reading.waiting_by_owner == {})


async def test_a_revoked_token_is_told_before_the_body(tmp_path):
    async with staged(tmp_path) as stage:
        assert (await half_sent(stage, token=stage.revoked)).status == 401
        assert stage.gateway.service.engine._reading.waiting_by_owner == {}


async def test_who_is_refused_is_not_told_to_continue(tmp_path):
    async with staged(tmp_path) as stage, stage.connected() as peer:
        peer.send(stage.head(LONG, b"expect: 100-continue", token="amp_unknown"))
        await stage.settled(peer, 1)
        assert peer.received.startswith(b"HTTP/1.1 401 ")


class Sender(Peer):
    """A client that goes on sending when the other side has ended."""

    def eof_received(self):
        return True


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (
            b"POST /api/llm/v1/messages HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 2000000\r\n\r\n",
            401,
        ),
        (b"POST /api/llm/v1/messages HTTP/1.1\r\nhost: a\r\nhost: b\r\ncontent-length: 2000000\r\n\r\n", 400),
        (b"POST /api/llm/v1/messages HTTP/1.1\r\nhost: a\r\nx-a: " + b"a" * 66_000, 431),
    ],
    ids=["401 and close", "400", "431"],
)
async def test_a_client_that_sends_on_can_still_read_why_it_was_refused(tmp_path, wire, status):
    """A connection closed over unread bytes would be reset: the client's next write fails, the answer is lost."""
    async with staged(tmp_path) as stage:
        host, _, port = stage.gateway.url.removeprefix("http://").partition(":")
        _, peer = await asyncio.get_running_loop().create_connection(Sender, host, int(port))
        peer.send(wire)
        await stage.gateway.until(lambda: stage.gateway.server.server_state.connections)
        for _ in range(20):
            peer.send(b"x" * 100_000)
            await asyncio.sleep(0.005)
            assert not peer.is_closed
        await stage.gateway.until(lambda: peer.answers)
        assert [answer.status for answer in peer.answers] == [status]
        peer.transport.abort()


async def test_lingering_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(downstream, "LINGER_S", 0.2)
    async with staged(tmp_path) as stage, stage.connected() as peer:
        peer.send(b"POST /api/llm/v1/messages HTTP/1.1\r\n\r\n")
        await stage.gateway.until(lambda: peer.answers)
        await stage.gateway.until(lambda: not stage.gateway.server.server_state.connections, within_s=5)
