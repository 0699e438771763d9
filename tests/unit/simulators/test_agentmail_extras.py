"""What else the simulated AgentMail serves: allow and block lists, label events, metrics."""

from urllib.parse import quote

import httpx
import pytest

from simulators.agentmail import VENDOR_KEY, AgentMailSimulator
from simulators.agentmail_behaviour import ORGANIZATION_ID


@pytest.fixture
async def vendor():
    async with AgentMailSimulator() as simulator:
        yield simulator


@pytest.fixture
async def client(vendor):
    headers = {"authorization": f"Bearer {VENDOR_KEY}"}
    async with httpx.AsyncClient(base_url=f"{vendor.url}/v0", headers=headers, trust_env=False) as client:
        yield client


async def test_lists_are_kept_for_the_organization_each_pod_and_each_inbox(client, vendor):
    pod = vendor.add_pod()
    inbox = vendor.add_inbox("me", pod=pod).inbox_id
    for place in ("", f"/pods/{pod.pod_id}", f"/inboxes/{inbox}"):
        path = f"{place}/lists/send/block"
        for entry in ("z@b.c", "example.com", "a@b.c"):
            made = (await client.post(path, json={"entry": entry, "reason": "spam"})).json()
            assert made["entry_type"] == ("email" if "@" in entry else "domain")
        assert (made["organization_id"], made["direction"], made["list_type"]) == (
            ORGANIZATION_ID,
            "send",
            "block",
        )
        assert made.get("pod_id") == (pod.pod_id if place else None)
        assert made.get("inbox_id") == (inbox if "inbox" in place else None)
        page = (await client.get(f"{path}?limit=2")).json()
        assert [each["entry"] for each in page["entries"]] == ["a@b.c", "example.com"]
        rest = (await client.get(path, params={"page_token": page["next_page_token"]})).json()
        assert [each["entry"] for each in rest["entries"]] == ["z@b.c"]
        assert (await client.get(f"{path}/a@b.c")).json() == made
        assert (await client.get(f"{place}/lists/receive/block")).json()["count"] == 0
        assert (await client.delete(f"{path}/a@b.c")).status_code == 202
        assert (await client.get(f"{path}/a@b.c")).status_code == 404
    assert (await client.get("/lists/sideways/block")).status_code == 404
    assert (await client.post("/lists/send/block", json={})).status_code == 400


async def test_a_key_of_a_pod_has_no_part_in_the_lists_of_the_organization(client, vendor):
    pod = vendor.add_pod()
    tenant = {"authorization": f"Bearer {vendor.key_for(pod_id=pod.pod_id)}"}
    assert (await client.get("/lists/send/allow", headers=tenant)).status_code == 403
    assert (await client.get(f"/pods/{pod.pod_id}/lists/send/allow", headers=tenant)).status_code == 200


async def test_changes_of_labels_are_told_newest_first(client, vendor):
    inbox = vendor.add_inbox("me").inbox_id
    message = vendor.receive(inbox, "ann@x.y")
    vendor.receive(vendor.add_inbox("other").inbox_id, "ann@x.y")
    change = {"add_labels": ["read", "received"], "remove_labels": "unread"}
    await client.patch(f"/inboxes/{inbox}/messages/{quote(message.message_id)}", json=change)
    told = (await client.get(f"/inboxes/{inbox}/events")).json()["events"]
    assert [(each["event_type"], each["label"]) for each in told] == [
        ("label.added", "read"),
        ("label.removed", "unread"),
    ]
    assert {(each["organization_id"], each["message_id"]) for each in told} == {
        (ORGANIZATION_ID, message.message_id)
    }
    assert (await client.get("/inboxes/other@agentmail.to/events")).json()["count"] == 0


async def test_metrics_count_what_the_path_may_see(client, vendor):
    pod = vendor.add_pod()
    mine, beside = vendor.add_inbox("mine", pod=pod).inbox_id, vendor.add_inbox("beside").inbox_id
    for inbox, times in ((mine, 1), (beside, 2)):
        for _ in range(times):
            await client.post(f"/inboxes/{inbox}/messages/send", json={"to": "a@b.c, bounce@b.c"})
    for place, count in (("", 3), (f"/pods/{pod.pod_id}", 1), (f"/inboxes/{beside}", 2)):
        events = (await client.get(f"{place}/metrics/events")).json()
        assert events["message.sent"][0]["count"] == events["message.bounced"][0]["count"] == count
        usage = (await client.get(f"{place}/metrics/usage")).json()
        assert usage["message_count"][0]["value"] == count
        assert usage["inbox_count"][0]["value"] == (1 if place else 2)
        rates = (await client.get(f"{place}/metrics/rates")).json()
        assert (rates["bounce"][0]["rate"], rates["bounce"][0]["sent"]) == (1.0, count)
    narrowed = (await client.get('/metrics/events?event_types=["message.sent"]')).json()
    assert list(narrowed) == ["message.sent"]
    empty = (await client.get(f"/inboxes/{vendor.add_inbox('new').inbox_id}/metrics/rates")).json()
    assert empty["complaint"][0]["rate"] is None
