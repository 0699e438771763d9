"""The real `agentmail` of JavaScript with nothing changed but base URL and key. (That of Python is in `tests/integration`.)"""

import base64
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from metering.tasks import spawn
from simulators.agentmail import VENDOR_KEY, AgentMailSimulator, fails, loses_reply
from tests.support.agentmail import House, User, house
from tests.support.sdk import AGENTMAIL, Said, Sdk, running_sdk

MESSAGE_IDS = (
    "<CAF/+=a b@mail.x>",
    "<a/reply@x>/reply-all",
    "<ünïcode @x>",
    "<CAF%2F@x>",
    "%3Cencoded@x%3E",
    "send",
    "<trailing/@x>/",
    "<question?and#hash@x>",
)


@pytest.fixture(scope="module")
def sdk() -> Iterator[Sdk]:
    with running_sdk("0-js", AGENTMAIL) as running:
        yield running


@pytest.fixture
async def vendor() -> AsyncIterator[AgentMailSimulator]:
    async with AgentMailSimulator() as simulator:
        yield simulator


@dataclass
class Client:
    """The SDK in a user's hands."""

    sdk: Sdk
    user: User

    async def __call__(self, method: str, *args: Any) -> Any:
        return (await self.said(method, *args)).result()

    async def said(self, method: str, *args: Any) -> Said:
        """Called without pauses."""
        url, token = self.user.gateway.url, self.user.token
        return await self.sdk("call", url, token, pauses=False, method=method, args=list(args))

    async def listen(self, messages: int, **how: Any) -> Said:
        """What its websocket hears until there are so many."""
        url, token = self.user.gateway.url, self.user.token
        return await self.sdk("listen", url, token, pauses=True, messages=messages, **how)


@pytest.fixture
async def at(tmp_path, vendor) -> AsyncIterator[House]:
    async with house(tmp_path, vendor) as running:
        yield running


@pytest.fixture
def ada(sdk, at) -> Client:
    return Client(sdk, at.ada)


async def test_inboxes_are_made_found_changed_and_deleted(at, vendor, ada):
    made = await ada("inboxes.create", {"username": "Wren+1", "displayName": "W", "clientId": "c 1"})
    inbox = made["inboxId"]
    assert (inbox, made["clientId"]) == ("Wren+1@agentmail.to", "c 1")
    assert (await ada("inboxes.create", {"clientId": "c 1"}))["inboxId"] == inbox
    assert (await ada("inboxes.get", "wREN+1@AGENTMAIL.to"))["displayName"] == "W"
    assert (await ada("inboxes.update", inbox, {"displayName": "V"}))["displayName"] == "V"
    assert [one["inboxId"] for one in (await ada("inboxes.list"))["inboxes"]] == [inbox]
    assert (await ada("pods.inboxes.list", made["podId"]))["count"] == 1
    await ada("inboxes.delete", inbox)
    assert (await ada("inboxes.list"))["inboxes"] == []
    assert {one.header(b"authorization") for one in vendor.requests} == {b"Bearer " + VENDOR_KEY.encode()}
    await at.ada.assert_booked(0)


async def test_mail_is_sent_read_answered_and_forwarded(at, vendor, ada):
    inbox = await at.ada.inbox("me")
    file = {"filename": "a.txt", "content": base64.b64encode(b"abc").decode()}
    mail = {"to": ["a@b.c"], "cc": "d@e.f", "subject": "Hi", "text": "Text", "attachments": [file]}
    sent = await ada("inboxes.messages.send", inbox, mail)
    read = await ada("inboxes.messages.get", inbox, sent["messageId"])
    assert (read["from"], read["to"], read["text"]) == (inbox, ["a@b.c"], "Text")
    (attachment,) = read["attachments"]
    found = await ada("inboxes.messages.getAttachment", inbox, sent["messageId"], attachment["attachmentId"])
    assert found["size"] == 3
    received = vendor.receive(inbox, "Ann <ann@x.y>", "Question", cc=["bob@x.y"])
    listed = await ada("inboxes.messages.list", inbox, {"labels": ["received"]})
    assert [one["messageId"] for one in listed["messages"]] == [received.message_id]
    await ada("inboxes.messages.reply", inbox, received.message_id, {"text": "Answer"})
    await ada("inboxes.messages.replyAll", inbox, received.message_id, {"text": "Answer"})
    await ada("inboxes.messages.forward", inbox, received.message_id, {"to": ["cee@x.y"]})
    assert [one.recipients for one in vendor.sent[1:]] == [("ann@x.y",), ("ann@x.y", "bob@x.y"), ("cee@x.y",)]
    assert (await ada("threads.get", received.thread_id))["messageCount"] == 4
    await at.ada.assert_booked(6)


@pytest.mark.parametrize("message_id", MESSAGE_IDS)
async def test_a_message_is_reached_whatever_its_id_has(at, vendor, ada, message_id):
    inbox = await at.ada.inbox("Me+x")
    vendor.receive(inbox, "Ann <ann@x.y>", "decoy", message_id="<decoy@x>")
    vendor.receive(inbox, "Ann <ann@x.y>", "Awkward", message_id=message_id)
    assert (await ada("inboxes.messages.get", inbox, message_id))["subject"] == "Awkward"
    assert (await ada("inboxes.messages.getRaw", inbox, message_id))["messageId"] == message_id
    await ada("inboxes.messages.update", inbox, message_id, {"addLabels": ["read"]})
    await ada("inboxes.messages.reply", inbox, message_id, {"text": "Answer"})
    messages = vendor.organization.inboxes[inbox.lower()].messages
    assert "read" in messages[message_id].labels
    assert "read" not in messages["<decoy@x>"].labels
    assert [one.content.subject for one in vendor.sent] == ["Re: Awkward"]
    await at.ada.assert_booked(1)


async def test_drafts_are_made_changed_and_sent_once(at, vendor, ada):
    inbox = await at.ada.inbox("me")
    draft = await ada("inboxes.drafts.create", inbox, {"to": ["a@b.c"], "subject": "Hi", "clientId": "first"})
    draft_id = draft["draftId"]
    changed = await ada("inboxes.drafts.update", inbox, draft_id, {"cc": ["d@e.f"]})
    assert (changed["cc"], changed["clientId"]) == (["d@e.f"], "first")
    assert [one["draftId"] for one in (await ada("drafts.list"))["drafts"]] == [draft_id]
    once = (inbox, draft_id, {}, {"idempotencyKey": "k"})
    sent = await ada("inboxes.drafts.send", *once)
    assert await ada("inboxes.drafts.send", *once) == sent
    assert len(vendor.sent) == 1
    assert (await ada("inboxes.drafts.list", inbox))["drafts"] == []
    await at.ada.assert_booked(2)


async def test_pages_of_messages_and_threads_are_walked(at, vendor, ada):
    inbox, other = await at.ada.inbox("me"), await at.bob.inbox("other")
    made = [vendor.receive(inbox, "ann@x.y", str(number)) for number in range(5)]
    for number in range(5):
        vendor.receive(other, "ann@x.y", str(number))
    for method, way, name, key, ids in (
        ("inboxes.messages.list", (inbox,), "messages", "messageId", [one.message_id for one in made]),
        ("threads.list", (), "threads", "threadId", [one.thread_id for one in made]),
    ):
        found, page, pages = [], None, 0
        while page is None or page.get("nextPageToken"):
            token = {} if page is None else {"pageToken": page["nextPageToken"]}
            page = await ada(method, *way, {"limit": 2, "ascending": True, **token})
            assert page["count"] == len(page[name])
            found += [one[key] for one in page[name]]
            pages += 1
        assert (found, pages) == (ids, 3)


async def test_what_is_another_users_is_not_found(at, vendor, ada):
    theirs = await at.bob.inbox("theirs")
    message = vendor.receive(theirs, "ann@x.y", "Secret")
    for method, *args in (
        ("inboxes.get", theirs),
        ("inboxes.messages.list", theirs),
        ("inboxes.messages.get", theirs, message.message_id),
        ("inboxes.messages.send", theirs, {"to": "ann@x.y", "text": "Hi"}),
        ("threads.get", message.thread_id),
    ):
        said = await ada.said(method, *args)
        error = said.error("NotFoundError")
        assert (error["status"], error["body"]["code"]) == (404, "not_found")
        assert said.waits == []
    assert vendor.sent == []


async def test_a_mail_that_has_to_be_tried_again_is_sent_and_charged_once(at, vendor, ada):
    inbox = await at.ada.inbox("me")
    vendor.next(fails(500), loses_reply())
    said = await ada.said("inboxes.messages.send", inbox, {"to": "ann@x.y", "text": "Hi"})
    assert said.result()["messageId"] == vendor.sent[0].message_id
    assert len(said.waits) == 1, "the lost answer is asked for again by us"
    assert len(vendor.sent) == 1
    await at.ada.assert_booked(1)


@pytest.mark.parametrize("is_in_query", [False, True])
async def test_mail_is_heard_of_as_it_comes_by_its_owner_only(at, vendor, ada, is_in_query):
    """Its websocket dials the base URL with `/v0`; the key stands in the header, and in the query where it is asked to."""
    mine = await ada("inboxes.create", {"username": "wren"})
    await at.bob.inbox("lark")
    how = {"apiKey": at.ada.token} if is_in_query else {}
    asks = {"eventTypes": ["message.received"]}
    listening = spawn(ada.listen(3, how=how, asks=asks), name="listening")
    await at.gateway.until(lambda: vendor.sockets and vendor.sockets[-1].subscriptions)
    for subject, inbox in (("one", "wren"), ("hers", "lark"), ("two", "wren")):
        vendor.receive(f"{inbox}@agentmail.to", "ann@x.y", subject)
    said = await listening
    assert said.raised is None
    subscribed, *events = said.seen
    assert subscribed["type"] == "subscribed"
    assert [event["message"]["subject"] for event in events] == ["one", "two"]
    assert {event["message"]["inboxId"] for event in events} == {mine["inboxId"]}
    await at.gateway.until(lambda: not at.gateway.service.engine.sockets)
