"""Bodies that nobody here reads: they go up as they came, whatever they are and say they are, or not at all."""

import asyncio

import pytest

from tests.hostile.stage import EXTENSIONS, OWN, SESSIONS, staged

pytestmark = pytest.mark.asyncio(loop_scope="module")
ALL_BYTES = bytes(range(256)) * 40
BODIES = {
    "nothing": b"",
    "all bytes": ALL_BYTES,
    "JSON that is none": b'{"projectId":"another"',
    "JSON with a field of ours": b'{"projectId":"another","projectId":"a third"}',
    "a form": b'--x\r\ncontent-disposition: form-data; name="file"; filename="../a\r\n.zip"\r\n\r\n\0\r\n--x--\r\n',
    "a form without end": b"--x\r\n--x",
    "a request": b"GET /v1/projects HTTP/1.1\r\nhost: x\r\n\r\n",
    "a chunk": b"0\r\n\r\n",
}
KINDS = (
    *(b"multipart/form-data; boundary=x", b"multipart/form-data", b'multipart/form-data; boundary="x\\"', b"application/zip"),
    *(b"application/json", b"application/json; charset=utf-7", b"application/x-www-form-urlencoded", b"text/plain", b"x"),
)  # fmt: skip


def chunked(body, size):
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


TARGETS = (EXTENSIONS, SESSIONS + b"/" + OWN + b"/uploads")


def upload(stage, body, *headers, framing="length", target=EXTENSIONS):
    if framing == "length":
        return stage.post(*headers, body=body, target=target)
    return stage.head(*headers, b"transfer-encoding: chunked", target=target) + chunked(body, 999)


async def asked(stage, *pieces):
    """The one answer, and the bodies that reached the vendor."""
    conversation = await stage.converse(*pieces, answers=1)
    await stage.assert_held(b"".join(pieces), conversation)
    (answer,) = conversation.answers
    return answer, [request.body for request in stage.vendor.requests]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("body", BODIES)
async def test_whatever_is_uploaded_goes_up_byte_for_byte(stage, body, framing, target):
    for kind in KINDS:
        stage.forget()
        wire = upload(stage, BODIES[body], b"content-type: " + kind, framing=framing, target=target)
        answer, reached = await asked(stage, wire)
        assert (answer.status, reached) == (200, [BODIES[body]]), kind
        (request,) = stage.vendor.requests
        assert (b"content-type", kind) in request.headers


@pytest.mark.parametrize("size", [1, 7, 4_096])
async def test_it_may_come_in_any_pieces(stage, size):
    body = ALL_BYTES[:600] if size == 1 else ALL_BYTES
    for framing in ("length", "chunked"):
        stage.forget()
        wire = upload(stage, body, b"content-type: application/zip", framing=framing)
        answer, reached = await asked(stage, *(wire[at : at + size] for at in range(0, len(wire), size)))
        assert (answer.status, reached) == (200, [body])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_one_that_is_too_long_is_413_and_reaches_nobody(stage, framing, target):
    answer, reached = await asked(stage, upload(stage, bytes(300_001), framing=framing, target=target))
    assert (answer.status, reached) == (413, [])


@pytest.mark.parametrize(
    "rest", [b"5\r\nabcdeX", b"0x5\r\nabcde\r\n0\r\n\r\n", b"-1\r\n", b"5;\n\nabcde\r\n0\r\n\r\n", b"\r\n"]
)
async def test_a_framing_that_is_broken_is_400_and_reaches_nobody(stage, rest):
    wire = stage.head(b"transfer-encoding: chunked", target=EXTENSIONS) + rest
    answer, reached = await asked(stage, wire)
    assert (answer.status, reached) == (400, [])


async def test_one_that_breaks_off_reaches_nobody(tmp_path):
    async with staged(tmp_path) as stage:
        wire = upload(stage, ALL_BYTES)
        for end in (len(wire) - 1, len(wire) // 2):
            async with stage.connected() as peer:
                peer.send(wire[:end])
                await stage.settled(peer, 1)
                assert peer.answers == []
        await stage.gateway.until(lambda: stage.gateway.service.engine._reading.waiting_by_owner == {})
        assert stage.vendor.requests == []
        assert await stage.gateway.entries() == []


async def test_who_may_not_is_told_before_the_body_has_come(stage):
    length = b"content-length: 200000"
    for token, status in ((stage.revoked, 401), ("amp_nobodys", 401)):
        async with stage.connected() as peer:
            peer.send(stage.head(length, target=EXTENSIONS, token=token))
            await stage.settled(peer, 1)
            peer.send(bytes(1_000))
            await stage.settled(peer, 1)
            (answer,) = peer.answers
            assert answer.status == status
            stage.assert_answer(answer)
    assert stage.vendor.requests == []


async def test_what_is_uploaded_into_anothers_session_reaches_nobody(stage):
    for token in (stage.token, stage.other):
        own = token == stage.token
        stage.forget()
        conversation = await stage.converse(
            stage.post(body=ALL_BYTES, target=TARGETS[1], token=token), answers=1
        )
        assert (conversation.statuses, len(stage.vendor.requests)) == ([200 if own else 404], own)


async def test_two_users_uploads_at_once_are_not_mixed(tmp_path):
    """The vendor hands out one id to both: the second to be told of it is told nothing."""
    async with staged(tmp_path) as stage:
        mine, theirs = b"a" * 50_000, b"b" * 50_000
        wires = (
            stage.post(body=mine, target=EXTENSIONS),
            stage.post(body=theirs, target=EXTENSIONS, token=stage.other),
        )
        first, second = await asyncio.gather(
            *(stage.converse(wire[:30_000], wire[30_000:], answers=1) for wire in wires)
        )
        assert sorted([*first.statuses, *second.statuses]) == [200, 502]
        assert sorted(request.body for request in stage.vendor.requests) == [mine, theirs]
