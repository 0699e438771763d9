"""Mail of the simulated AgentMail: to whom it goes, once, later, and what of it is recorded."""

import base64
from urllib.parse import quote

import httpx
import pytest

from metering.clock import ManualClock, instant
from simulators.agentmail import VENDOR_KEY, AgentMailSimulator

START_MS = 1_795_000_000_000


@pytest.fixture
async def vendor():
    async with AgentMailSimulator(clock=ManualClock(START_MS)) as simulator:
        simulator.add_inbox("me")
        yield simulator


@pytest.fixture
async def client(vendor):
    headers = {"authorization": f"Bearer {VENDOR_KEY}"}
    url = f"{vendor.url}/v0/inboxes/me@agentmail.to"
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
        yield client


def refused(answer):
    return answer.status_code, answer.json()["code"]


def types(vendor):
    return [event.event_type for event in vendor.events.recorded]


# --- sending ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "recipients"),
    [
        ({"to": "a@b.c"}, ("a@b.c",)),
        ({"to": "a@b.c, Dee <D@e.f>"}, ("a@b.c", "d@e.f")),
        ({"to": ['"Doe, Jane" <j@d.e>'], "cc": ["x@y.z, u@v.w"]}, ("j@d.e", "x@y.z", "u@v.w")),
        ({"bcc": ["a@b.c", "a@b.c"]}, ("a@b.c", "a@b.c")),
    ],
)
async def test_every_recipient_is_counted(client, vendor, fields, recipients):
    answer = await client.post("/messages/send", json={"subject": "Hi", "text": "Text", **fields})
    (sent,) = vendor.sent
    assert answer.json() == {"message_id": sent.message_id, "thread_id": sent.thread_id}
    assert sent.recipients == recipients
    assert vendor.events.of("message.sent")[0].body["send"]["recipients"] == list(recipients)
    assert vendor.answers[0].usage.counts() == {"messages": 1, "recipients": len(recipients)}
    assert vendor.answers[0].facts()["message_id"] == sent.message_id


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({}, 422, "unprocessable"),
        ({"to": []}, 422, "unprocessable"),
        ({"to": ""}, 422, "unprocessable"),
        ({"to": "nobody"}, 400, "validation_error"),
        ({"to": "a@b.c d@e.f"}, 400, "validation_error"),
        ({"to": [{"email": "a@b.c"}]}, 400, "validation_error"),
        ({"to": "a@b.c", "subject": "x\r\nBcc: y@z.w"}, 400, "validation_error"),
        ({"to": "a@b.c", "headers": {"X": "a\nb"}}, 400, "validation_error"),
        ({"to": "a@b.c", "text": 5}, 400, "validation_error"),
        ({"to": "a@b.c", "attachments": [{"filename": "x"}]}, 400, "validation_error"),
        ({"to": "a@b.c", "attachments": [{"content": "not base64"}]}, 400, "validation_error"),
        ({"to": "blocked@b.c"}, 403, "message_rejected"),
    ],
)
async def test_what_cannot_be_sent_is_refused_and_leaves_no_trace(client, vendor, fields, status, code):
    assert refused(await client.post("/messages/send", json=fields)) == (status, code)
    assert (vendor.sent, vendor.answers, vendor.events.recorded) == ([], [], [])
    assert (await client.get("/messages")).json()["count"] == 0


async def test_what_was_sent_is_recorded_with_the_request_it_came_of(client, vendor):
    headers = {"x-request-tag": "case-7", "idempotency-key": "key-1", "x-own": "yes"}
    await client.post("/messages/send", json={"to": "a@b.c", "subject": "Hi"}, headers=headers)
    (sent,) = vendor.sent
    assert (sent.inbox_id, sent.pod_id) == ("me@agentmail.to", vendor.organization.default_pod.pod_id)
    assert (sent.tag, sent.idempotency_key, sent.origin.via) == ("case-7", "key-1", "send")
    assert sent.origin.headers["x-own"] == "yes"
    assert vendor.requests[sent.origin.request_number - 1].target.endswith("/messages/send")
    assert (sent.at_ms, sent.content.subject) == (START_MS, "Hi")


async def test_a_sent_message_can_be_read(client, vendor):
    fields = {
        "to": "A B <a@b.c>",
        "reply_to": "other@b.c",
        "subject": "Hi",
        "text": "Text",
        "html": "<p>Text</p>",
        "labels": ["mine"],
        "headers": {"X-Mine": "1"},
        "attachments": [
            {"filename": "a", "content": base64.b64encode(b"abc").decode()},
            {"url": "https://x.y"},
        ],
    }
    sent = (await client.post("/messages/send", json=fields)).json()
    message = (await client.get(f"/messages/{quote(sent['message_id'])}")).json()
    for name in ("subject", "text", "html", "headers"):
        assert message[name] == fields[name]
    assert (message["to"], message["reply_to"]) == (["A B <a@b.c>"], ["other@b.c"])
    assert (message["from"], message["labels"]) == ("me@agentmail.to", ["sent", "mine"])
    assert [attachment["size"] for attachment in message["attachments"]] == [3, 0]
    assert message["timestamp"] == instant(START_MS)


async def test_mail_bounces_arrives_and_reaches_inboxes_of_the_organization(client, vendor):
    other = vendor.add_inbox("other", pod=vendor.add_pod())
    to = ["a@b.c", "bounce@b.c", other.inbox_id]
    sent = (await client.post("/messages/send", json={"to": to, "bcc": "secret@b.c"})).json()
    assert types(vendor) == ["message.sent", "message.delivered", "message.bounced", "message.received"]
    delivered, bounced, received = (event.body for event in vendor.events.recorded[1:])
    assert delivered["delivery"]["recipients"] == ["a@b.c", other.inbox_id, "secret@b.c"]
    assert bounced["bounce"]["recipients"] == [{"address": "bounce@b.c", "status": "5.1.1"}]
    assert received["message"]["inbox_id"] == other.inbox_id
    assert vendor.events.recorded[3].pod_id == other.pod_id
    assert "bcc" not in received["message"]
    own = (await client.get(f"/messages/{quote(sent['message_id'])}")).json()
    assert own["labels"] == ["sent", "bounced"]
    assert len(vendor.sent) == 1


# --- replies and forwards -----------------------------------------------------------------------------


async def answered(client, message, action, **fields):
    return await client.post(f"/messages/{quote(message.message_id, safe='')}/{action}", json=fields)


async def test_replies_take_their_recipients_from_the_message(client, vendor):
    message = vendor.receive(
        "me@agentmail.to",
        "Ann <ann@x.y>",
        "Hello",
        to=["me@agentmail.to", "bob@x.y"],
        cc=["Cee <cee@x.y>", "Ann <ann@x.y>"],
    )
    one = (await answered(client, message, "reply", text="Yes")).json()
    all_of_them = (await answered(client, message, "reply-all", text="Yes")).json()
    by_flag = (await answered(client, message, "reply", reply_all=True)).json()
    named = (await answered(client, message, "reply", to="zoe@x.y")).json()
    everyone = ("ann@x.y", "bob@x.y", "cee@x.y")
    assert [sent.recipients for sent in vendor.sent] == [("ann@x.y",), everyone, everyone, ("zoe@x.y",)]
    assert {answer["thread_id"] for answer in (one, all_of_them, by_flag, named)} == {message.thread_id}
    shown = (await client.get(f"/messages/{quote(one['message_id'])}")).json()
    assert (shown["subject"], shown["in_reply_to"]) == ("Re: Hello", message.message_id)
    assert shown["references"] == [message.message_id]
    both = await answered(client, message, "reply", reply_all=True, to="zoe@x.y")
    assert refused(both) == (400, "validation_error")


async def test_a_reply_goes_where_the_sender_wants_it(client, vendor):
    message = vendor.receive("me@agentmail.to", "ann@x.y", "Re: Hello", reply_to="desk@x.y")
    await answered(client, message, "reply")
    assert vendor.sent[0].recipients == ("desk@x.y",)
    assert vendor.sent[0].content.subject == "Re: Hello"


async def test_a_reply_to_ones_own_message_goes_to_those_it_went_to(client, vendor):
    await client.post("/messages/send", json={"to": ["a@b.c", "d@e.f"], "cc": "g@h.i"})
    own = vendor.organization.inboxes["me@agentmail.to"].messages[vendor.sent[0].message_id]
    await answered(client, own, "reply")
    await answered(client, own, "reply-all")
    assert [sent.recipients for sent in vendor.sent[1:]] == [("a@b.c", "d@e.f"), ("a@b.c", "d@e.f", "g@h.i")]


async def test_a_forward_needs_recipients_and_takes_the_files_along(client, vendor):
    file = {"filename": "a", "content": base64.b64encode(b"abc").decode()}
    message = vendor.receive("me@agentmail.to", "ann@x.y", "Hello", "Original", attachments=[file])
    assert refused(await answered(client, message, "forward")) == (422, "unprocessable")
    sent = (await answered(client, message, "forward", to="bob@x.y", text="See")).json()
    shown = (await client.get(f"/messages/{quote(sent['message_id'])}")).json()
    assert shown["subject"] == "Fwd: Hello"
    assert shown["text"].startswith("See")
    assert shown["text"].endswith("Original")
    assert [attachment["size"] for attachment in shown["attachments"]] == [3]
    assert vendor.sent[0].origin.via == "forward"


@pytest.mark.parametrize("action", ["reply", "reply-all", "forward"])
async def test_what_is_not_there_cannot_be_answered(client, vendor, action):
    answer = await client.post(f"/messages/%3Cnothing%3E/{action}", json={"to": "a@b.c"})
    assert refused(answer) == (404, "not_found")
    assert vendor.sent == []


# --- once ---------------------------------------------------------------------------------------------


async def test_the_same_request_with_the_same_key_is_sent_once(client, vendor):
    body, key = {"to": "a@b.c", "subject": "Hi"}, {"idempotency-key": "K-1._~"}
    first = await client.post("/messages/send", json=body, headers=key)
    again = await client.post("/messages/send", json=body, headers=key)
    assert (again.status_code, again.json()) == (200, first.json())
    other = await client.post("/messages/send", json={**body, "subject": "Ho"}, headers=key)
    assert refused(other) == (409, "conflict")
    assert len(vendor.sent) == 1
    assert [told.usage and told.usage.counts() for told in vendor.answers] == [
        {"messages": 1, "recipients": 1},
        None,
    ]


async def test_a_key_is_one_for_the_whole_organization(client, vendor):
    other = vendor.add_inbox("other", pod=vendor.add_pod()).inbox_id
    body, key = {"to": "a@b.c"}, {"idempotency-key": "shared"}
    await client.post("/messages/send", json=body, headers=key)
    answer = await client.post(f"{vendor.url}/v0/inboxes/{other}/messages/send", json=body, headers=key)
    assert refused(answer) == (409, "conflict")
    assert "me@agentmail.to" in answer.json()["message"]


async def test_a_key_is_forgotten_after_a_day_and_by_a_refused_request(client, vendor):
    key = {"idempotency-key": "k"}
    assert (await client.post("/messages/send", json={}, headers=key)).status_code == 422
    assert (await client.post("/messages/send", json={"to": "a@b.c"}, headers=key)).status_code == 200
    vendor.advance(86_399)
    assert (await client.post("/messages/send", json={"to": "d@e.f"}, headers=key)).status_code == 409
    vendor.advance(1)
    assert (await client.post("/messages/send", json={"to": "d@e.f"}, headers=key)).status_code == 200
    assert [sent.recipients for sent in vendor.sent] == [("a@b.c",), ("d@e.f",)]


@pytest.mark.parametrize("key", ["", "a b", "a/b", "a:b", "x" * 257])
async def test_keys_have_a_charset_and_a_length(client, vendor, key):
    answer = await client.post("/messages/send", json={"to": "a@b.c"}, headers={"idempotency-key": key})
    assert refused(answer) == (400, "validation_error")
    assert vendor.sent == []
    longest = {"idempotency-key": "x" * 256}
    assert (await client.post("/messages/send", json={"to": "a@b.c"}, headers=longest)).status_code == 200


async def test_replies_and_drafts_are_sent_once_too(client, vendor):
    message = vendor.receive("me@agentmail.to", "ann@x.y", "Hello")
    draft = (await client.post("/drafts", json={"to": "a@b.c"})).json()
    paths = [f"/messages/{quote(message.message_id)}/reply", f"/drafts/{draft['draft_id']}/send"]
    for number, path in enumerate(paths):
        key = {"idempotency-key": f"k{number}"}
        answers = [await client.post(path, json={}, headers=key) for _ in range(3)]
        assert len({answer.text for answer in answers}) == 1
        assert answers[0].status_code == 200
    assert [sent.origin.via for sent in vendor.sent] == ["reply", "draft"]


# --- drafts -------------------------------------------------------------------------------------------


async def test_a_draft_is_made_changed_sent_and_gone(client, vendor):
    file = {"filename": "a", "content": base64.b64encode(b"abc").decode()}
    made = (await client.post("/drafts", json={"subject": "Hi", "text": "1", "attachments": [file]})).json()
    path = f"/drafts/{made['draft_id']}"
    file_id = made["attachments"][0]["attachment_id"]
    link = (await client.get(f"{path}/attachments/{file_id}")).json()
    assert link["size"] == 3
    assert refused(await client.post(f"{path}/send")) == (422, "unprocessable")
    vendor.advance(1)
    changes = {
        "to": "a@b.c",
        "text": None,
        "add_labels": ["x"],
        "remove_attachments": [file_id],
        "add_attachments": [file, file],
    }
    changed = (await client.patch(path, json=changes)).json()
    assert (changed["to"], changed["subject"], changed["labels"]) == (["a@b.c"], "Hi", ["draft", "x"])
    assert "text" not in changed
    assert len(changed["attachments"]) == 2
    assert changed["updated_at"] > made["updated_at"]
    assert (await client.get("/drafts")).json()["drafts"][0]["draft_id"] == made["draft_id"]
    sent = (await client.post(f"{path}/send", json={"add_labels": "y"})).json()
    assert vendor.sent[0].draft_id == made["draft_id"]
    assert vendor.sent[0].as_json() == sent
    assert vendor.sent[0].content.labels == ("x", "y")
    for answer in (await client.get(path), await client.post(f"{path}/send"), await client.delete(path)):
        assert refused(answer) == (404, "not_found")


async def test_drafts_answer_and_forward(client, vendor):
    message = vendor.receive("me@agentmail.to", "ann@x.y", "Hello", "Original")
    reply = (await client.post("/drafts", json={"in_reply_to": message.message_id, "text": "Yes"})).json()
    assert (reply["to"], reply["subject"]) == (["ann@x.y"], "Re: Hello")
    forward = (await client.post("/drafts", json={"forward_of": message.message_id, "to": "b@x.y"})).json()
    for draft in (reply, forward):
        sent = (await client.post(f"/drafts/{draft['draft_id']}/send")).json()
        assert sent["thread_id"] == message.thread_id
    assert vendor.sent[1].content.text.endswith("Original")
    both = {"in_reply_to": message.message_id, "forward_of": message.message_id}
    assert refused(await client.post("/drafts", json=both)) == (400, "validation_error")
    assert refused(await client.post("/drafts", json={"in_reply_to": "<x>"})) == (404, "not_found")


def later(seconds):
    return instant(START_MS + seconds * 1000)


async def test_a_scheduled_draft_goes_out_when_its_time_has_come_with_no_request(client, vendor):
    second = (await client.post("/drafts", json={"to": "b@x.y", "send_at": later(120)})).json()
    first = (await client.post("/drafts", json={"to": "a@x.y", "send_at": later(60)})).json()
    assert (first["send_status"], first["send_at"]) == ("scheduled", later(60))
    assert (await client.get('/drafts?labels=["scheduled"]')).json()["count"] == 2
    requests = vendor.requests_total
    assert vendor.advance(59) == []
    assert [sent.draft_id for sent in vendor.advance(61)] == [first["draft_id"], second["draft_id"]]
    assert [sent.recipients for sent in vendor.sent] == [("a@x.y",), ("b@x.y",)]
    assert {sent.origin.via for sent in vendor.sent} == {"schedule"}
    assert {sent.origin.request_number for sent in vendor.sent} == {None}
    assert types(vendor).count("message.sent") == 2
    assert vendor.requests_total == requests
    assert vendor.advance(1_000) == []
    assert (await client.get("/drafts")).json()["count"] == 0


async def test_a_schedule_is_moved_and_taken_back(client, vendor):
    made = [
        (await client.post("/drafts", json={"to": "a@x.y", "send_at": later(60)})).json() for _ in range(2)
    ]
    moved, dropped = (f"/drafts/{draft['draft_id']}" for draft in made)
    assert (await client.patch(moved, json={"send_at": later(600)})).json()["send_at"] == later(600)
    unscheduled = (await client.patch(dropped, json={"send_at": None})).json()
    assert "send_at" not in unscheduled
    assert "send_status" not in unscheduled
    assert vendor.advance(599) == []
    assert len(vendor.advance(1)) == 1
    assert refused(await client.patch(dropped, json={"send_at": "soon"})) == (400, "validation_error")
    assert (await client.delete(dropped)).status_code == 202


async def test_a_scheduled_draft_that_is_refused_has_failed(client, vendor):
    draft = (await client.post("/drafts", json={"subject": "To nobody", "send_at": later(1)})).json()
    assert vendor.advance(1) == []
    assert (await client.get(f"/drafts/{draft['draft_id']}")).json()["send_status"] == "failed"
    assert vendor.advance(60) == []


async def test_what_is_due_by_the_clock_given_is_sent_before_the_next_request_is_answered():
    clock = ManualClock(START_MS)
    headers = {"authorization": f"Bearer {VENDOR_KEY}"}
    async with (
        AgentMailSimulator(clock=clock) as vendor,
        httpx.AsyncClient(
            base_url=f"{vendor.url}/v0/inboxes/{vendor.add_inbox('me').inbox_id}",
            headers=headers,
            trust_env=False,
        ) as client,
    ):
        await client.post("/drafts", json={"to": "a@x.y", "send_at": later(60)})
        clock.advance(60)
        assert (await client.get("/drafts")).json()["count"] == 0
        assert len(vendor.sent) == 1


async def test_deleting_an_inbox_stops_what_was_scheduled_in_it(client, vendor):
    await client.post("/drafts", json={"to": "a@x.y", "send_at": later(60), "client_id": "d"})
    deleted = await client.delete(f"{vendor.url}/v0/inboxes/me@agentmail.to")
    assert deleted.status_code == 202
    assert vendor.advance(60) == []


# --- receiving ----------------------------------------------------------------------------------------


async def test_mail_that_arrives_is_told_of_with_its_thread(client, vendor):
    message = vendor.receive("me@agentmail.to", "Ann <ann@x.y>", "Hello", "Text", headers={"X-A": "1"})
    (event,) = vendor.events.recorded
    shown = (await client.get(f"/messages/{quote(message.message_id)}")).json()
    assert event.body["message"] == shown
    assert event.body["thread"]["message_count"] == 1
    assert (shown["from"], shown["to"]) == ("Ann <ann@x.y>", ["me@agentmail.to"])
    assert (shown["labels"], shown["extracted_text"]) == (["received", "unread"], "Text")
    vendor.receive("me@agentmail.to", "ann@x.y", label="blocked")
    assert types(vendor) == ["message.received", "message.received.blocked"]


async def test_what_becomes_of_a_message_later_is_told(client, vendor):
    await client.post("/messages/send", json={"to": "a@b.c"})
    (sent,) = vendor.sent
    told = [vendor.bounce(sent), vendor.complain(sent), vendor.reject(sent), vendor.open(sent)]
    assert vendor.events.recorded[-4:] == told
    for event, name in zip(told, ("bounce", "complaint", "reject", "open"), strict=True):
        assert event.body[name]["message_id"] == sent.message_id
    assert len({event.event_id for event in vendor.events.recorded}) == 6
