"""The WebSocket of the simulated AgentMail: who may subscribe, to what, and how it fails."""

import asyncio
import json

import pytest
import websockets
from websockets.asyncio.client import connect

from simulators.agentmail import VENDOR_KEY, AgentMailSimulator, drops, fails, hangs
from simulators.agentmail_behaviour import FOREIGN_INBOX
from simulators.script import WAIT_TIMEOUT_S, Gate

BEARER = {"authorization": f"Bearer {VENDOR_KEY}"}


@pytest.fixture
async def vendor():
    async with AgentMailSimulator() as simulator:
        yield simulator


def dial(vendor, path="/v0", headers=BEARER):
    return connect(vendor.url.replace("http", "ws") + path, additional_headers=headers, proxy=None)


async def heard(socket):
    """The next message."""
    return json.loads(await asyncio.wait_for(socket.recv(), WAIT_TIMEOUT_S))


async def asked(socket, **message):
    """The answer to a message."""
    await socket.send(json.dumps(message))
    return await heard(socket)


async def subjects(socket, count):
    return [(await heard(socket))["message"]["subject"] for _ in range(count)]


def receive_in_three_places(vendor):
    """An event each in two inboxes of one pod and in one of another; their inboxes."""
    pod, other = vendor.add_pod(), vendor.add_pod()
    inboxes = [vendor.add_inbox(name, pod=where) for name, where in (("a", pod), ("b", pod), ("c", other))]

    def receive():
        for inbox in inboxes:
            vendor.receive(inbox.inbox_id, "ann@x.y", inbox.inbox_id[0])

    return inboxes, receive


async def test_without_ids_everything_of_the_organization_is_told(vendor):
    _, receive = receive_in_three_places(vendor)
    async with dial(vendor) as socket:
        receive()
        assert await asked(socket, type="subscribe") == {"type": "subscribed"}
        receive()
        assert await subjects(socket, 3) == ["a", "b", "c"]
    assert [event.inbox_id[0] for event in vendor.sockets[0].told] == ["a", "b", "c"]


async def test_ids_narrow_it_to_inboxes_and_pods(vendor):
    inboxes, receive = receive_in_three_places(vendor)
    async with dial(vendor) as one, dial(vendor) as other:
        ids = {"inbox_ids": [inboxes[1].inbox_id]}
        assert await asked(one, type="subscribe", **ids, pod_ids=None) == {"type": "subscribed", **ids}
        await asked(other, type="subscribe", inbox_ids=["a@agentmail.to"], pod_ids=[inboxes[2].pod_id])
        receive()
        receive()
        assert await subjects(one, 2) == ["b", "b"]
        assert await subjects(other, 4) == ["a", "c", "a", "c"]


async def test_a_second_subscription_adds_to_the_first(vendor):
    inboxes, receive = receive_in_three_places(vendor)
    async with dial(vendor) as socket:
        for inbox in inboxes[:2]:
            await asked(socket, type="subscribe", inbox_ids=[inbox.inbox_id])
        receive()
        receive()
        assert await subjects(socket, 4) == ["a", "b", "a", "b"]


async def test_event_types_narrow_it_too(vendor):
    inboxes, receive = receive_in_three_places(vendor)
    async with dial(vendor) as socket:
        await asked(socket, type="subscribe", event_types=["message.received.spam"])
        receive()
        vendor.receive(inboxes[0].inbox_id, "ann@x.y", "Buy", label="spam")
        assert await subjects(socket, 1) == ["Buy"]


async def test_a_key_of_a_pod_hears_of_that_pod_alone(vendor):
    inboxes, receive = receive_in_three_places(vendor)
    key = {"authorization": f"Bearer {vendor.key_for(pod_id=inboxes[2].pod_id)}"}
    async with dial(vendor, headers=key) as socket:
        await asked(socket, type="subscribe")
        error = await asked(socket, type="subscribe", inbox_ids=[inboxes[0].inbox_id])
        assert (error["type"], error["name"]) == ("error", "NotFoundError")
        receive()
        receive()
        assert await subjects(socket, 2) == ["c", "c"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{", "ValidationError"),
        ("[]", "ValidationError"),
        ('{"type": "hello"}', "ValidationError"),
        ('{"type": "subscribe", "inbox_ids": [1]}', "ValidationError"),
        ('{"type": "subscribe", "inbox_ids": ["nobody@agentmail.to"]}', "NotFoundError"),
        ('{"type": "subscribe", "pod_ids": ["nobody"]}', "NotFoundError"),
    ],
)
async def test_what_is_no_subscription_is_answered_with_an_error(vendor, text, name):
    async with dial(vendor) as socket:
        await socket.send(text)
        error = await heard(socket)
        assert (error["type"], error["name"]) == ("error", name)
        assert (FOREIGN_INBOX in error["message"]) == (name == "NotFoundError")
        assert vendor.sockets[0].subscriptions == []
        assert vendor.sockets[0].heard == [text]
        assert (await asked(socket, type="subscribe"))["type"] == "subscribed"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v0", {}, 401),
        ("/v0", {"authorization": f"bearer {VENDOR_KEY}"}, 401),
        ("/v0?api_key=am_wrong", {}, 401),
        ("/v0?api_key=am_wrong", BEARER, 101),
        (f"/v0?api_key={VENDOR_KEY}", {}, 101),
        (f"/v0?api_key={VENDOR_KEY}", {"authorization": "Bearer am_wrong"}, 401),
        ("/v1", BEARER, 404),
    ],
)
async def test_the_key_may_be_in_the_query_too(vendor, path, headers, status):
    if status == 101:
        async with dial(vendor, path, headers) as socket:
            assert (await asked(socket, type="subscribe"))["type"] == "subscribed"
    else:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await dial(vendor, path, headers)
        assert refused.value.response.status_code == status
    assert len(vendor.sockets) == (status == 101)


async def test_a_handshake_fails_hangs_and_drops(vendor):
    gate = Gate()
    gate.open()
    vendor.next(fails(503), hangs(gate=gate), drops())
    for _ in range(2):
        with pytest.raises(websockets.InvalidStatus) as refused:
            await dial(vendor)
        assert refused.value.response.status_code == 503
    with pytest.raises(websockets.InvalidMessage):
        await dial(vendor)
    assert vendor.sockets == []
    async with dial(vendor) as socket:
        assert (await asked(socket, type="subscribe"))["type"] == "subscribed"


async def test_a_socket_that_is_gone_is_told_nothing(vendor):
    inbox = vendor.add_inbox("me").inbox_id
    async with dial(vendor) as socket:
        await asked(socket, type="subscribe")
        vendor.sockets[0].break_off()
        with pytest.raises(websockets.ConnectionClosedError):
            await heard(socket)
    await vendor.until(lambda: vendor.connections_open == 0)
    vendor.receive(inbox, "ann@x.y")
    assert vendor.sockets[0].told == []
    assert vendor.events.listeners == []


async def test_stopping_the_simulator_ends_its_sockets(vendor):
    async with dial(vendor) as socket:
        await vendor.stop()
        with pytest.raises(websockets.ConnectionClosedError):
            await heard(socket)
    assert not vendor.sockets[0].is_open
