"""The vendor's own SDK takes the simulator for the vendor."""

import asyncio
import base64
import importlib
import warnings

import httpx
import pytest

from simulators.agentmail import VENDOR_KEY, AgentMailSimulator, awkward_message_id, fails, loses_reply
from simulators.script import WAIT_TIMEOUT_S

with warnings.catch_warnings():
    # The SDK reads names of the WebSocket library that are to go.
    warnings.simplefilter("ignore", DeprecationWarning)
    import agentmail
    from agentmail.core.api_error import ApiError
    from agentmail.environment import AgentMailEnvironment
    from agentmail.errors import NotFoundError, ValidationError
    from agentmail.events import MessageReceivedEvent, MessageSentEvent
    from agentmail.inboxes import CreateInboxRequest
    from agentmail.websockets.types import Error, Subscribe, Subscribed

    importlib.import_module(
        "agentmail.websockets.client"
    )  # it is loaded late otherwise, where warnings are errors

ONCE = {"max_retries": 0}


async def soon(awaited):
    """What is awaited, or a failure: an event that does not come must not hang the test."""
    return await asyncio.wait_for(awaited, WAIT_TIMEOUT_S)


@pytest.fixture
async def simulator():
    async with AgentMailSimulator(message_ids=awkward_message_id) as running:
        yield running


@pytest.fixture
def environment(simulator):
    return AgentMailEnvironment(http=simulator.url, websockets=simulator.url.replace("http", "ws"))


@pytest.fixture
async def http():
    """Given to the SDK, for it does not close its own."""
    async with httpx.AsyncClient(trust_env=False, follow_redirects=True) as client:
        yield client


@pytest.fixture
def sdk(environment, http):
    return agentmail.AsyncAgentMail(api_key=VENDOR_KEY, environment=environment, httpx_client=http)


async def test_a_tenant_lives_in_a_pod(sdk):
    pod = await sdk.pods.create(name="tenant", client_id="t-1")
    inbox = await sdk.pods.inboxes.create(pod.pod_id, username="Foo+1", display_name="Foo")
    assert (inbox.inbox_id, inbox.pod_id) == ("Foo+1@agentmail.to", pod.pod_id)
    assert [one.inbox_id for one in (await sdk.pods.inboxes.list(pod.pod_id)).inboxes] == [inbox.inbox_id]
    assert (await sdk.pods.inboxes.search(pod.pod_id, q="foo")).count == 1
    assert (await sdk.pods.inboxes.update(pod.pod_id, inbox.inbox_id, metadata={"a": 1})).metadata == {"a": 1}
    key = await sdk.pods.api_keys.create(pod.pod_id, request={"name": "tenant"})
    assert key.pod_id == pod.pod_id
    await sdk.pods.inboxes.delete(pod.pod_id, inbox.inbox_id)
    await sdk.pods.delete(pod.pod_id)
    with pytest.raises(NotFoundError):
        await sdk.pods.get(pod.pod_id)


async def test_mail_is_sent_read_answered_and_forwarded(sdk, simulator):
    inbox = (await sdk.inboxes.create(request=CreateInboxRequest(username="me"))).inbox_id
    messages = sdk.inboxes.messages
    file = {"filename": "a.txt", "content": base64.b64encode(b"abc").decode()}
    sent = await messages.send(inbox, to=["a@b.c"], subject="Hi", text="Text", attachments=[file])
    read = await messages.get(inbox, sent.message_id)
    assert (read.from_, read.to, read.text) == (inbox, ["a@b.c"], "Text")
    assert (await messages.get_raw(inbox, sent.message_id)).size == read.size
    attachment = await messages.get_attachment(inbox, sent.message_id, read.attachments[0].attachment_id)
    assert attachment.size == 3
    received = simulator.receive(inbox, "Ann <ann@x.y>", "Question", cc=["bob@x.y"])
    await messages.reply(inbox, received.message_id, text="Answer")
    await messages.reply_all(inbox, received.message_id, text="Answer")
    await messages.forward(inbox, received.message_id, to="cee@x.y")
    assert [one.recipients for one in simulator.sent[1:]] == [
        ("ann@x.y",),
        ("ann@x.y", "bob@x.y"),
        ("cee@x.y",),
    ]
    listed = await messages.list(inbox, labels=["received", "unread"])
    assert [one.message_id for one in listed.messages] == [received.message_id]
    hits = (await messages.search(inbox, q="question")).messages
    assert hits[-1].highlights.subject == ["**Question**"]
    updated = await messages.update(inbox, received.message_id, add_labels=["read"], remove_labels="unread")
    assert updated.labels == ["received", "read"]
    assert (await messages.batch_get(inbox, message_ids=[sent.message_id, "<x>"])).count == 1
    thread = await sdk.inboxes.threads.get(inbox, received.thread_id)
    assert thread.messages[0].message_id == received.message_id
    assert thread.message_count == 4
    assert (await sdk.threads.list()).count == 2
    await messages.delete(inbox, sent.message_id)
    with pytest.raises(NotFoundError):
        await messages.get(inbox, sent.message_id)


async def test_pages_are_walked(sdk, simulator):
    inbox = simulator.add_inbox("me").inbox_id
    made = [simulator.receive(inbox, "ann@x.y", str(number)).message_id for number in range(5)]
    found, token = [], None
    while not found or token is not None:
        page = await sdk.inboxes.messages.list(inbox, limit=2, page_token=token, ascending=True)
        found += [one.message_id for one in page.messages]
        token = page.next_page_token
    assert found == made


async def test_drafts_are_scheduled_and_sent(sdk, simulator):
    inbox = simulator.add_inbox("me").inbox_id
    at = await sdk.inboxes.drafts.create(inbox, to=["a@b.c"], send_at="2100-01-01T00:00:00Z")
    assert at.send_status == "scheduled"
    plain = await sdk.inboxes.drafts.create(inbox, subject="x", client_id="d")
    assert (await sdk.inboxes.drafts.update(inbox, plain.draft_id, to=["a@b.c"])).to == ["a@b.c"]
    sent = await sdk.inboxes.drafts.send(inbox, plain.draft_id, idempotency_key="k")
    assert sent.message_id == simulator.sent[0].message_id
    assert [one.draft_id for one in (await sdk.drafts.list()).drafts] == [at.draft_id]
    simulator.advance(80 * 365 * 86_400)
    assert (await sdk.inboxes.drafts.list(inbox)).count == 0
    assert len(simulator.sent) == 2


async def test_errors_are_those_of_the_sdk(sdk, simulator, environment, http):
    inbox = simulator.add_inbox("me").inbox_id
    with pytest.raises(ApiError) as taken:
        await sdk.inboxes.create(request=CreateInboxRequest(username="me"))
    assert taken.value.body["code"] == "resource_taken"
    with pytest.raises(ValidationError) as invalid:
        await sdk.pods.create(client_id="a@b")
    assert invalid.value.body.errors[0]["path"] == ["client_id"]
    with pytest.raises(ApiError) as nobody:
        await sdk.inboxes.messages.send(inbox, subject="x")
    assert nobody.value.status_code == 422
    await sdk.inboxes.messages.send(inbox, to="a@b.c", idempotency_key="k")
    with pytest.raises(ApiError) as conflict:
        await sdk.inboxes.messages.send(inbox, to="d@e.f", idempotency_key="k", request_options=ONCE)
    assert conflict.value.status_code == 409
    wrong = agentmail.AsyncAgentMail(api_key="am_wrong", environment=environment, httpx_client=http)
    with pytest.raises(ApiError) as unknown:
        await wrong.inboxes.list()
    assert unknown.value.status_code == 401


async def test_the_sdk_retries_an_error_and_sends_twice_where_the_work_was_done(sdk, simulator):
    inbox = simulator.add_inbox("me").inbox_id
    simulator.next(fails(503, headers={"retry-after": "0"}))
    await sdk.inboxes.messages.send(inbox, to="a@b.c")
    assert (simulator.requests_total, len(simulator.sent)) == (2, 1)
    simulator.next(fails(503, works=True, headers={"retry-after": "0"}))
    await sdk.inboxes.messages.send(inbox, to="a@b.c")
    assert (simulator.requests_total, len(simulator.sent)) == (4, 3)


async def test_a_lost_reply_with_a_key_is_found_again(sdk, simulator):
    """The SDK itself does not try again when the connection breaks."""
    inbox = simulator.add_inbox("me").inbox_id
    simulator.next(loses_reply())
    with pytest.raises(httpx.RemoteProtocolError):
        await sdk.inboxes.messages.send(inbox, to="a@b.c", idempotency_key="k")
    answer = await sdk.inboxes.messages.send(inbox, to="a@b.c", idempotency_key="k")
    assert answer.message_id == simulator.sent[0].message_id
    assert (simulator.requests_total, len(simulator.sent)) == (2, 1)


async def test_the_socket_tells_of_what_was_subscribed_to(sdk, simulator):
    mine, other = simulator.add_inbox("mine").inbox_id, simulator.add_inbox("other").inbox_id
    async with sdk.websockets.connect() as socket:
        await socket.send_subscribe(
            Subscribe(inbox_ids=[mine], event_types=["message.received", "message.sent"])
        )
        subscribed = await soon(socket.recv())
        assert isinstance(subscribed, Subscribed)
        assert subscribed.inbox_ids == [mine]
        simulator.receive(other, "ann@x.y", "Not for us")
        message = simulator.receive(mine, "ann@x.y", "For us")
        event = await soon(socket.recv())
        assert isinstance(event, MessageReceivedEvent)
        assert event.message.message_id == message.message_id
        await sdk.inboxes.messages.send(mine, to="a@b.c")
        sent = await soon(socket.recv())
        assert isinstance(sent, MessageSentEvent)
        assert sent.send.recipients == ["a@b.c"]
        await socket.send_subscribe(Subscribe(pod_ids=["nobody"]))
        assert isinstance(await soon(socket.recv()), Error)
    await simulator.until(lambda: simulator.connections_open <= 1)
    assert not simulator.sockets[0].is_open


async def test_the_sdk_without_a_loop_hears_the_same(environment, simulator):
    """Its key is in the query as well, as the SDK for JavaScript sends it."""

    def listen():
        sdk = agentmail.AgentMail(api_key=VENDOR_KEY, environment=environment)
        with sdk.websockets.connect(api_key=VENDOR_KEY) as socket:
            socket.send_subscribe(Subscribe())
            yield socket.recv()
            yield socket.recv()

    heard = listen()
    assert isinstance(await soon(asyncio.to_thread(next, heard)), Subscribed)
    inbox = simulator.add_inbox("me").inbox_id
    simulator.receive(inbox, "ann@x.y", "Hello")
    event = await soon(asyncio.to_thread(next, heard))
    assert (event.event_type, event.message.inbox_id) == ("message.received", inbox)
    await asyncio.to_thread(heard.close)
    await simulator.until(lambda: simulator.connections_open == 0)


async def test_the_socket_wants_a_key(environment, http):
    wrong = agentmail.AsyncAgentMail(api_key="am_wrong", environment=environment, httpx_client=http)
    with pytest.raises(ApiError) as refused:
        async with wrong.websockets.connect():
            pass
    assert refused.value.status_code == 401
