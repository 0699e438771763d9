"""The simulated AgentMail, over real sockets: who sees what, how lists are cut, what errors say."""

import base64
from urllib.parse import quote

import httpx
import pytest

from metering.clock import ManualClock
from simulators.agentmail import VENDOR_KEY, AgentMailSimulator, Plan, awkward_message_id
from simulators.agentmail_behaviour import FOREIGN_INBOX, ORGANIZATION_ID

START_MS = 1_795_000_000_000


@pytest.fixture
async def vendor():
    async with AgentMailSimulator(clock=ManualClock(START_MS), message_ids=awkward_message_id) as simulator:
        yield simulator


@pytest.fixture
async def client(vendor):
    async with as_client(vendor) as client:
        yield client


def as_client(vendor, key=VENDOR_KEY):
    return httpx.AsyncClient(
        base_url=f"{vendor.url}/v0", headers={"authorization": f"Bearer {key}"}, trust_env=False
    )


def refused(answer):
    """The status and the code of an error."""
    return answer.status_code, answer.json()["code"]


# --- pods and inboxes ---------------------------------------------------------------------------------


async def test_inboxes_are_made_in_the_default_pod_or_in_the_pod_of_the_path(client, vendor):
    pod = (await client.post("/pods", json={"name": "tenant"})).json()
    inside = (await client.post(f"/pods/{pod['pod_id']}/inboxes", json={"username": "inside"})).json()
    beside = (await client.post("/inboxes")).json()
    assert (inside["inbox_id"], inside["email"], inside["pod_id"]) == (
        "inside@agentmail.to",
        "inside@agentmail.to",
        pod["pod_id"],
    )
    assert beside["pod_id"] == vendor.organization.default_pod.pod_id != pod["pod_id"]
    assert beside["inbox_id"].endswith("@agentmail.to")
    everything = (await client.get("/inboxes")).json()
    of_the_pod = (await client.get(f"/pods/{pod['pod_id']}/inboxes")).json()
    assert {inbox["inbox_id"] for inbox in everything["inboxes"]} == {inside["inbox_id"], beside["inbox_id"]}
    assert [inbox["inbox_id"] for inbox in of_the_pod["inboxes"]] == [inside["inbox_id"]]
    assert of_the_pod["count"] == 1


async def test_what_is_outside_the_pod_of_the_path_is_not_found(client, vendor):
    mine, theirs = vendor.add_pod(), vendor.add_pod()
    inbox = vendor.add_inbox("theirs", pod=theirs).inbox_id
    received = vendor.receive(inbox, "someone@example.com", "Hello")
    draft = (await client.post(f"/inboxes/{inbox}/drafts", json={"subject": "x"})).json()
    paths = [f"/inboxes/{inbox}", f"/threads/{received.thread_id}", f"/drafts/{draft['draft_id']}"]
    for path in paths:
        assert (await client.get(path)).status_code == 200
        assert (await client.get(f"/pods/{theirs.pod_id}{path}")).status_code == 200
        assert refused(await client.get(f"/pods/{mine.pod_id}{path}")) == (404, "not_found")
    for plural in ("inboxes", "threads", "drafts"):
        assert (await client.get(f"/{plural}")).json()["count"] == 1
        assert (await client.get(f"/pods/{theirs.pod_id}/{plural}")).json()["count"] == 1
        assert (await client.get(f"/pods/{mine.pod_id}/{plural}")).json()["count"] == 0
        assert refused(await client.get(f"/pods/nobody/{plural}")) == (404, "not_found")


async def test_a_key_of_a_pod_sees_nothing_outside_and_makes_its_inboxes_inside(vendor):
    pod, other = vendor.add_pod(), vendor.add_pod()
    theirs = vendor.add_inbox("theirs", pod=other).inbox_id
    async with as_client(vendor, vendor.key_for(pod_id=pod.pod_id)) as client:
        assert (await client.post("/inboxes", json={"username": "mine"})).json()["pod_id"] == pod.pod_id
        assert (await client.get("/inboxes")).json()["count"] == 1
        assert [one["pod_id"] for one in (await client.get("/pods")).json()["pods"]] == [pod.pod_id]
        for path in (f"/inboxes/{theirs}", f"/inboxes/{theirs}/messages", f"/pods/{other.pod_id}/inboxes"):
            assert refused(await client.get(path)) == (404, "not_found")
        to = {"to": "a@b.c"}
        assert refused(await client.post(f"/inboxes/{theirs}/messages/send", json=to)) == (404, "not_found")
        for path in ("/pods", "/webhooks", "/api-keys"):
            assert refused(await client.post(path, json={"url": "https://x.example"})) == (403, "forbidden")
        assert (await client.get("/auth/me")).json()["scope_type"] == "pod"
    assert vendor.sent == []


async def test_a_key_of_an_inbox_sees_that_inbox(vendor):
    mine, beside = vendor.add_inbox("mine").inbox_id, vendor.add_inbox("beside").inbox_id
    async with as_client(vendor, vendor.key_for(inbox_id=mine)) as client:
        assert (await client.get("/inboxes")).json()["count"] == 1
        assert (await client.get(f"/inboxes/{mine}")).status_code == 200
        assert refused(await client.get(f"/inboxes/{beside}")) == (404, "not_found")
        assert (await client.get("/auth/me")).json()["scope_id"] == mine
        assert refused(await client.post("/inboxes")) == (403, "forbidden")


async def test_keys_are_made_for_a_pod_and_taken_back(client, vendor):
    pod = vendor.add_pod()
    made = (await client.post(f"/pods/{pod.pod_id}/api-keys", json={"name": "tenant"})).json()
    assert made["api_key"].startswith(made["prefix"])
    async with as_client(vendor, made["api_key"]) as tenant:
        assert (await tenant.get("/auth/me")).json()["pod_id"] == pod.pod_id
        assert (await client.delete(f"/pods/{pod.pod_id}/api-keys/{made['api_key_id']}")).status_code == 202
        assert refused(await tenant.get("/auth/me")) == (401, "unknown_api_key")


async def test_a_client_id_gives_the_original_whichever_pod_asks(client, vendor):
    one, other = vendor.add_pod().pod_id, vendor.add_pod().pod_id
    asked = {"client_id": "first-inbox"}
    original = (await client.post(f"/pods/{one}/inboxes", json=asked)).json()
    again = (await client.post(f"/pods/{other}/inboxes", json={**asked, "username": "else"})).json()
    assert again == original
    assert again["pod_id"] == one
    assert (await client.post("/pods", json={"client_id": "p"})).json() == (
        await client.post("/pods", json={"client_id": "p"})
    ).json()
    drafts = f"/inboxes/{original['inbox_id']}/drafts"
    draft = (await client.post(drafts, json={"client_id": "d", "subject": "first"})).json()
    assert (await client.post(drafts, json={"client_id": "d", "subject": "second"})).json() == draft
    assert len(vendor.organization.inboxes) == 1
    await client.delete(f"/inboxes/{original['inbox_id']}")
    anew = (await client.post(f"/pods/{other}/inboxes", json=asked)).json()
    assert anew["pod_id"] == other


async def test_a_client_id_with_an_at_sign_is_refused(client):
    for path in ("/pods", "/inboxes"):
        answer = await client.post(path, json={"client_id": "a@b"})
        assert refused(answer) == (400, "validation_error")
        assert answer.json()["errors"] == [
            {"path": ["client_id"], "message": "client_id may not be empty or contain @"}
        ]


async def test_usernames_are_one_space_for_all(client, vendor):
    vendor.add_inbox("taken", pod=vendor.add_pod())
    answer = await client.post("/inboxes", json={"username": "Taken"})
    assert refused(answer) == (403, "resource_taken")
    assert answer.json()["name"] == "IsTakenError"
    assert refused(await client.post("/inboxes", json={"domain": "example.com"})) == (
        403,
        "domain_not_verified",
    )
    assert refused(await client.post("/inboxes", json={"username": "a b"})) == (400, "validation_error")
    assert refused(await client.post("/inboxes", json={"username": 5})) == (400, "validation_error")


@pytest.mark.parametrize("ignores_case", [True, False])
async def test_whether_the_case_of_an_inbox_id_matters_is_a_setting(ignores_case):
    async with AgentMailSimulator(ignores_case=ignores_case) as vendor, as_client(vendor) as client:
        vendor.add_inbox("Foo")
        status = (await client.get("/inboxes/foo@AGENTMAIL.to")).status_code
        assert status == (200 if ignores_case else 404)


async def test_an_inbox_is_changed_field_by_field(client, vendor):
    inbox = f"/inboxes/{vendor.add_inbox('mine').inbox_id}"
    vendor.advance(5)
    first = (await client.patch(inbox, json={"display_name": "Me", "metadata": {"a": 1, "b": True}})).json()
    assert (first["display_name"], first["metadata"]) == ("Me", {"a": 1, "b": True})
    assert first["updated_at"] > first["created_at"]
    paused = (await client.patch(inbox, json={"status": "paused", "metadata": {"a": None}})).json()
    assert (paused["status"], paused["metadata"], paused["display_name"]) == ("paused", {"b": True}, "Me")
    send = await client.post(f"{inbox}/messages/send", json={"to": "a@b.c"})
    assert refused(send) == (403, "forbidden")
    active = (await client.patch(inbox, json={"status": "active", "metadata": None})).json()
    assert "status" not in active
    assert "metadata" not in active
    for wrong in ({}, {"status": "asleep"}, {"metadata": {}}, {"display_name": 1}):
        assert refused(await client.patch(inbox, json=wrong)) == (400, "validation_error")


async def test_a_pod_is_deleted_only_when_it_is_empty(client, vendor):
    pod = vendor.add_pod()
    inbox = vendor.add_inbox("last", pod=pod).inbox_id
    assert refused(await client.delete(f"/pods/{pod.pod_id}")) == (403, "cannot_delete")
    deleted = await client.delete(f"/pods/{pod.pod_id}/inboxes/{inbox}")
    assert (deleted.status_code, deleted.content) == (202, b"")
    assert (await client.delete(f"/pods/{pod.pod_id}")).status_code == 202
    assert refused(await client.get(f"/pods/{pod.pod_id}")) == (404, "not_found")


async def test_inboxes_are_found_by_the_beginnings_of_words(client, vendor):
    vendor.add_inbox("support")
    named = vendor.add_inbox("x1", pod=vendor.add_pod())
    named.display_name = "Quick Support"

    async def found(path):
        return {inbox["inbox_id"] for inbox in (await client.get(path)).json()["inboxes"]}

    assert await found("/inboxes/search?q=sup") == {"support@agentmail.to", "x1@agentmail.to"}
    assert await found("/inboxes/search?q=quick+sup") == {"x1@agentmail.to"}
    assert await found("/inboxes/search?q=port") == set()
    assert await found(f"/pods/{named.pod_id}/inboxes/search?q=support") == {"x1@agentmail.to"}
    assert refused(await client.get("/inboxes/search")) == (400, "validation_error")


# --- lists --------------------------------------------------------------------------------------------


async def filled(vendor, count=5):
    """An inbox with so many messages, a minute apart."""
    inbox = vendor.add_inbox("full").inbox_id
    for number in range(count):
        vendor.receive(
            inbox, f"Sender {number} <s{number}@example.com>", f"Subject {number}", f"Body {number}"
        )
        vendor.advance(60)
    return f"/inboxes/{inbox}"


async def walk(client, path, plural, **params):
    """The pages of a list, each its items."""
    pages = []
    while True:
        answer = (await client.get(path, params=params)).json()
        assert answer["count"] == len(answer[plural])
        pages.append(answer[plural])
        if "next_page_token" not in answer:
            return pages
        params["page_token"] = answer["next_page_token"]


async def test_lists_are_walked_page_by_page_in_both_directions(client, vendor):
    inbox = await filled(vendor)
    for plural in ("messages", "threads"):
        pages = await walk(client, f"{inbox}/{plural}", plural, limit=2)
        assert [[item["subject"] for item in page] for page in pages] == [
            ["Subject 4", "Subject 3"],
            ["Subject 2", "Subject 1"],
            ["Subject 0"],
        ]
        up = await walk(client, f"{inbox}/{plural}", plural, limit=3, ascending="true")
        assert [item["subject"] for page in up for item in page] == [f"Subject {n}" for n in range(5)]
        assert [len(page) for page in up] == [3, 2]


async def test_a_page_begins_where_the_last_one_ended_whatever_has_come_since(client, vendor):
    inbox = await filled(vendor, 3)
    first = (await client.get(f"{inbox}/messages?limit=2")).json()
    vendor.receive("full@agentmail.to", "late@example.com", "Late")
    rest = (await client.get(f"{inbox}/messages", params={"page_token": first["next_page_token"]})).json()
    assert [item["subject"] for item in rest["messages"]] == ["Subject 0"]


async def test_lists_are_narrowed_by_time(client, vendor):
    inbox = await filled(vendor)
    times = [item["timestamp"] for item in (await client.get(f"{inbox}/messages")).json()["messages"]]
    params = {"before": times[0], "after": times[3]}
    found = (await client.get(f"{inbox}/messages", params=params)).json()
    assert [item["subject"] for item in found["messages"]] == ["Subject 3", "Subject 2"]
    with_offset = {"after": times[1].replace("Z", "+00:00")}
    assert (await client.get(f"{inbox}/threads", params=with_offset)).json()["count"] == 1


async def test_labels_are_asked_for_as_json_or_repeated_and_hidden_ones_by_name(client, vendor):
    inbox = await filled(vendor, 2)
    vendor.receive("full@agentmail.to", "spammer@example.com", "Buy", label="spam")
    listed = (await client.get(f"{inbox}/messages")).json()["messages"]
    assert [item["subject"] for item in listed] == ["Subject 1", "Subject 0"]
    await client.patch(
        f"{inbox}/messages/{quote(listed[0]['message_id'], safe='')}", json={"add_labels": ["todo"]}
    )
    queries = {
        'labels=["unread","todo"]': ["Subject 1"],
        "labels=unread&labels=todo": ["Subject 1"],
        "labels=todo&labels=none": [],
        "labels=unread": ["Subject 1", "Subject 0"],
        "include_spam=true": ["Buy", "Subject 1", "Subject 0"],
        'labels=["spam"]': ["Buy"],
    }
    for query, subjects in queries.items():
        for plural in ("messages", "threads"):
            found = (await client.get(f"{inbox}/{plural}?{query}")).json()
            assert [item["subject"] for item in found[plural]] == subjects, query


async def test_lists_are_narrowed_by_parts_of_fields(client, vendor):
    inbox = await filled(vendor)
    by_sender = (await client.get(inbox + '/messages?from=["S3@example"]')).json()
    assert [item["subject"] for item in by_sender["messages"]] == ["Subject 3"]
    assert (await client.get(f"{inbox}/messages?to=full@&subject=ject+1")).json()["count"] == 1
    assert (await client.get(f"{inbox}/threads?senders=s2@")).json()["count"] == 1


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=x", "page_token=x", "page_token=bnVsbA==", "before=x", "ascending=1", "labels=[x"],
)
async def test_a_list_that_is_asked_for_wrongly_is_refused(client, vendor, query):
    inbox = await filled(vendor, 1)
    assert refused(await client.get(f"{inbox}/messages?{query}")) == (400, "validation_error")


async def test_a_search_tells_where_it_hit(client, vendor):
    inbox = await filled(vendor)
    found = (await client.get(f"{inbox}/messages/search?q=body+3")).json()
    assert [item["subject"] for item in found["messages"]] == [f"Subject {n}" for n in (4, 3, 2, 1, 0)]
    assert found["messages"][1]["highlights"] == {
        "from": ["Sender **3** <s3@example.com>"],
        "subject": ["Subject **3**"],
        "text": ["**Body** **3**"],
    }
    threads = (await client.get("/threads/search?q=S4@example")).json()["threads"]
    assert [thread["subject"] for thread in threads] == ["Subject 4"]


# --- messages and threads -----------------------------------------------------------------------------


async def test_awkward_ids_are_found_raw_or_encoded(client, vendor):
    inbox = vendor.add_inbox("mine").inbox_id
    message = vendor.receive(inbox, "a@b.c", "Hello", "Text")
    assert set("/+=<> @") <= set(message.message_id)
    raw = message.message_id.replace("<", "%3C").replace(">", "%3E").replace(" ", "%20")
    encoded = quote(message.message_id, safe="")
    for written in (raw, encoded):
        path = f"/inboxes/{quote(inbox, safe='')}/messages/{written}"
        assert (await client.get(path)).json()["message_id"] == message.message_id
        assert (await client.get(f"{path}/raw")).json()["message_id"] == message.message_id
        assert (await client.post(f"{path}/reply", json={"text": "Yes"})).status_code == 200
    assert vendor.requests[-4].target != vendor.requests[-1].target
    twice = quote(encoded, safe="")
    assert refused(await client.get(f"/inboxes/{inbox}/messages/{twice}")) == (404, "not_found")
    assert refused(await client.get(f"/inboxes/{inbox}/messages/%FF")) == (404, "not_found")


async def test_labels_of_messages_change_one_by_one_and_many_at_once(client, vendor):
    inbox = await filled(vendor, 3)
    ids = [item["message_id"] for item in (await client.get(f"{inbox}/messages")).json()["messages"]]
    one = await client.patch(
        f"{inbox}/messages/{quote(ids[0])}", json={"add_labels": "read", "remove_labels": ["unread", "read"]}
    )
    assert one.json() == {"message_id": ids[0], "labels": ["received"]}
    many = (
        await client.post(
            f"{inbox}/messages/batch-update", json={"message_ids": [*ids[1:], "<gone>"], "add_labels": "seen"}
        )
    ).json()
    assert (many["limit"], many["count"]) == (3, 2)
    assert [update["labels"] for update in many["updates"]] == [["received", "unread", "seen"]] * 2
    asked = ["<gone>", ids[2], ids[0]]
    got = (await client.post(f"{inbox}/messages/batch-get", json={"message_ids": asked})).json()
    assert [message["message_id"] for message in got["messages"]] == [ids[2], ids[0]]
    assert (got["limit"], got["count"]) == (3, 2)
    assert all("text" not in message for message in got["messages"])
    for action, wrong in (
        ("batch-get", {"message_ids": []}),
        ("batch-get", {"message_ids": ["x"] * 501}),
        ("batch-update", {"message_ids": ["x"] * 51, "add_labels": "a"}),
        ("batch-update", {"message_ids": ids}),
    ):
        assert (await client.post(f"{inbox}/messages/{action}", json=wrong)).status_code == 400


async def test_attachments_and_the_raw_message_are_fetched_by_a_url_until_it_expires(client, vendor):
    inbox = vendor.add_inbox("mine").inbox_id
    file = {"filename": "a.txt", "content_type": "text/plain", "content": base64.b64encode(b"file").decode()}
    message = vendor.receive(inbox, "a@b.c", "Files", "Text", attachments=[file])
    shown = message.as_json()["attachments"][0]
    assert (shown["filename"], shown["size"]) == ("a.txt", 4)
    path = f"/inboxes/{inbox}/messages/{quote(message.message_id)}"
    by_message = (await client.get(f"{path}/attachments/{shown['attachment_id']}")).json()
    by_thread = (
        await client.get(f"/threads/{message.thread_id}/attachments/{shown['attachment_id']}")
    ).json()
    raw = (await client.get(f"{path}/raw")).json()
    async with httpx.AsyncClient(trust_env=False) as anyone:
        for link in (by_message, by_thread):
            got = await anyone.get(link["download_url"])
            assert (got.content, got.headers["content-type"]) == (b"file", "text/plain")
        eml = (await anyone.get(raw["download_url"])).content
        assert len(eml) == raw["size"]
        assert b"Subject: Files\r\n" in eml
        vendor.advance(3_601)
        assert (await anyone.get(raw["download_url"])).status_code == 403
    assert refused(await client.get(f"{path}/attachments/other")) == (404, "not_found")


async def test_a_thread_holds_its_messages_and_goes_with_them(client, vendor):
    inbox = vendor.add_inbox("mine").inbox_id
    first = vendor.receive(inbox, "a@b.c", "Hello", "One")
    for text in ("Two", "Three"):
        vendor.advance(1)
        vendor.receive(inbox, "a@b.c", "Re: Hello", text, in_reply_to=first.message_id)
    path = f"/inboxes/{inbox}/threads/{first.thread_id}"
    thread = (await client.get(path)).json()
    assert [message["text"] for message in thread["messages"]] == ["One", "Two", "Three"]
    assert (thread["message_count"], thread["subject"], thread["count"]) == (3, "Hello", 3)
    assert thread["last_message_id"] == thread["messages"][-1]["message_id"]
    newest = (await client.get(f"{path}?limit=2")).json()
    assert [message["text"] for message in newest["messages"]] == ["Two", "Three"]
    older = (await client.get(path, params={"page_token": newest["next_page_token"]})).json()
    assert [message["text"] for message in older["messages"]] == ["One"]
    labelled = await client.patch(path, json={"add_labels": ["todo"], "remove_labels": ["unread"]})
    assert labelled.json() == {"thread_id": first.thread_id, "labels": ["received", "todo"]}
    assert refused(await client.patch(path, json={"add_labels": ["sent"]})) == (400, "validation_error")
    await client.delete(f"/inboxes/{inbox}/messages/{quote(first.message_id)}")
    assert (await client.get(path)).json()["message_count"] == 2
    await client.delete(path)
    assert refused(await client.get(path)) == (404, "not_found")
    assert (await client.get(f"/inboxes/{inbox}/messages")).json()["count"] == 0


async def test_a_thread_of_a_hundred_messages_takes_no_new_labels(client, vendor):
    inbox = vendor.add_inbox("mine").inbox_id
    first = vendor.receive(inbox, "a@b.c")
    for _ in range(98):
        vendor.receive(inbox, "a@b.c", in_reply_to=first.message_id)
    path = f"/threads/{first.thread_id}"
    assert (await client.patch(path, json={"add_labels": ["x"]})).status_code == 200
    vendor.receive(inbox, "a@b.c", in_reply_to=first.message_id)
    assert refused(await client.patch(path, json={"add_labels": ["y"]})) == (422, "unprocessable")


# --- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_authorization"),
        ({"authorization": f"bearer {VENDOR_KEY}"}, "unauthorized"),
        ({"authorization": VENDOR_KEY}, "unauthorized"),
        ({"authorization": "Bearer am_wrong"}, "unknown_api_key"),
    ],
)
async def test_the_key_is_asked_for_as_the_vendor_does(vendor, headers, code):
    async with httpx.AsyncClient(trust_env=False, headers=headers) as client:
        answer = await client.get(f"{vendor.url}/v0/inboxes?api_key={VENDOR_KEY}")
    assert refused(answer) == (401, code)
    assert answer.json()["docs"] == f"https://docs.agentmail.to/errors#{code}"


async def test_any_key_will_do_where_none_is_set():
    async with AgentMailSimulator(api_key=None) as vendor, as_client(vendor, "whatever") as client:
        assert (await client.get("/inboxes")).status_code == 200


async def test_errors_name_what_is_not_the_callers(client, vendor):
    vendor.add_inbox("neighbour")
    answer = (await client.get("/inboxes/nobody@agentmail.to")).json()
    assert answer["name"] == "NotFoundError"
    for word in (ORGANIZATION_ID, FOREIGN_INBOX, "neighbour@agentmail.to"):
        assert word in answer["fix"]
        assert word in vendor.account_words()


async def test_plans_have_limits_that_errors_tell():
    async with (
        AgentMailSimulator(
            clock=ManualClock(START_MS), plan=Plan(inboxes_max=1, recipients_per_day=3)
        ) as vendor,
        as_client(vendor) as client,
    ):
        inbox = f"/inboxes/{vendor.add_inbox('only').inbox_id}"
        refusal = await client.post("/inboxes")
        assert refused(refusal) == (403, "limit_exceeded")
        assert "1 of 1 inboxes on the Developer plan" in refusal.json()["message"]
        to = {"to": ["a@b.c", "d@e.f"]}
        assert (await client.post(f"{inbox}/messages/send", json=to)).status_code == 200
        too_many = await client.post(f"{inbox}/messages/send", json=to)
        assert refused(too_many) == (429, "rate_limit_exceeded")
        assert too_many.headers["retry-after"] == "1"
        assert f"{ORGANIZATION_ID} has sent 2 of 3" in too_many.json()["message"]
        assert (await client.post(f"{inbox}/messages/send", json={"to": "a@b.c"})).status_code == 200
        vendor.advance(86_400)
        assert (await client.post(f"{inbox}/messages/send", json=to)).status_code == 200
        assert (await client.get("/organizations")).json()["inbox_limit"] == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/nothing"), ("PUT", "/inboxes"), ("POST", "/threads"), ("GET", ""), ("GET", "/inboxes/a/b/c")],
)
async def test_unknown_paths_are_not_found(client, method, path):
    answer = await client.request(method, path)
    assert refused(answer) == (404, "not_found")


async def test_bodies_that_are_no_objects_are_refused(client):
    for body in (b"{", b"[]"):
        assert refused(await client.post("/pods", content=body)) == (400, "validation_error")
    large = b'{"name": "' + b"x" * 6_000_000 + b'"}'
    assert refused(await client.post("/pods", content=large)) == (413, "payload_too_large")
