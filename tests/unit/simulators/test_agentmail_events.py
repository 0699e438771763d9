"""Webhooks of the simulated AgentMail: signed as Svix does, in every order, and badly where a test wants it."""

import base64
from collections import Counter

import httpx
import orjson
import pytest
import standardwebhooks

from metering.clock import ManualClock, SystemClock
from simulators.agentmail import VENDOR_KEY, WEBHOOK_SECRET, AgentMailSimulator, Tamper
from simulators.script import Framing, Ready, Script, head
from simulators.server import SimulatorServer

START_MS = 1_795_000_000_000


class Receiver(SimulatorServer):
    """Answers 204, or 500 to the deliveries numbered in `refused`."""

    refused = ()

    def answer(self, request):
        if request.number in self.refused:
            return Script(status=500, framing=Framing.LENGTH)
        return Ready(head(204, ()))


@pytest.fixture
async def vendor():
    async with AgentMailSimulator(clock=SystemClock()) as simulator:
        inbox = simulator.add_inbox("me").inbox_id
        for number in range(3):
            simulator.receive(inbox, "ann@x.y", f"Subject {number}")
        yield simulator


@pytest.fixture
async def receiver():
    async with Receiver() as server:
        yield server


def is_genuine(headers, body, secret=WEBHOOK_SECRET):
    """As a library of the standard judges, whose headers have other names."""
    named = {name.replace("svix-", "webhook-"): value for name, value in headers.items()}
    try:
        return standardwebhooks.Webhook(secret).verify(body, named) == orjson.loads(body)
    except (standardwebhooks.webhooks.WebhookVerificationError, orjson.JSONDecodeError):
        return False


def test_events_are_signed_as_the_standard_says(vendor):
    event = vendor.events.recorded[0]
    headers, body = vendor.signed(event)
    assert is_genuine(headers, body)
    assert orjson.loads(body) == event.body
    assert headers["svix-id"] == event.svix_id != event.event_id
    other = "whsec_" + base64.b64encode(b"another secret").decode()
    assert not is_genuine(headers, body, other)


def test_the_signature_is_that_of_a_known_delivery():
    vendor = AgentMailSimulator(clock=ManualClock(START_MS), webhook_secret="whsec_c2VjcmV0")
    vendor.receive(vendor.add_inbox("me").inbox_id, "ann@x.y")
    headers, _ = vendor.signed(vendor.events.recorded[0])
    assert headers["svix-timestamp"] == str(START_MS // 1000)
    assert headers["svix-signature"].startswith("v1,")
    assert len(base64.b64decode(headers["svix-signature"][3:])) == 32


@pytest.mark.parametrize("tamper", Tamper)
def test_what_was_tampered_with_is_not_genuine(vendor, tamper):
    event = vendor.events.recorded[0]
    headers, body = vendor.signed(event, tamper=tamper)
    assert is_genuine(headers, body) == (tamper is Tamper.ROTATED)
    well, whole = vendor.signed(event)
    differs = {name for name in well if headers.get(name) != well[name]}
    differs |= {"body"} if body != whole else set()
    now_s = int(well["svix-timestamp"])
    assert differs - {"svix-timestamp", "svix-signature"} == (
        {"body"} if tamper in (Tamper.TRUNCATED, Tamper.ALTERED) else set()
    )
    skew_s = int(headers["svix-timestamp"]) - now_s
    if tamper in (Tamper.STALE, Tamper.FUTURE):
        assert abs(skew_s) >= 300
    else:
        assert abs(skew_s) <= 1
    assert ("svix-signature" in headers) == (tamper is not Tamper.UNSIGNED)


async def test_events_are_delivered_in_any_order_and_more_than_once(vendor, receiver):
    first, second, third = vendor.events.recorded
    assert await vendor.deliver(receiver.url, third, first, second, times=2) == [204] * 6
    told = [request.json()["event_id"] for request in receiver.requests]
    assert told == [each.event_id for each in (third, third, first, first, second, second)]
    assert Counter(request.header(b"svix-id").decode() for request in receiver.requests) == {
        event.svix_id: 2 for event in (first, second, third)
    }
    assert {request.header(b"content-type") for request in receiver.requests} == {b"application/json"}
    assert all(
        is_genuine({k.decode(): v.decode() for k, v in request.headers}, request.body)
        for request in receiver.requests
    )


async def test_a_delivery_tells_how_it_was_answered_and_carries_the_tampering(vendor, receiver):
    receiver.refused = (2,)
    event = vendor.events.recorded[0]
    assert await vendor.deliver(receiver.url, event, times=3, tamper=Tamper.TRUNCATED) == [204, 500, 204]
    with pytest.raises(orjson.JSONDecodeError):
        receiver.requests[0].json()


async def test_webhooks_are_kept_with_their_secret_and_only_for_the_owner(vendor):
    headers = {"authorization": f"Bearer {VENDOR_KEY}"}
    async with httpx.AsyncClient(base_url=f"{vendor.url}/v0", headers=headers, trust_env=False) as client:
        asked = {"url": "https://x.example/hook", "event_types": ["message.sent"], "client_id": "hook"}
        made = (await client.post("/webhooks", json=asked)).json()
        assert made["secret"] == vendor.webhook_secret
        assert (await client.post("/webhooks", json=asked)).json() == made
        assert (await client.get("/webhooks")).json()["webhooks"] == [made]
        assert (await client.get(f"/webhooks/{made['webhook_id']}")).json() == made
        assert (await client.post("/webhooks", json={})).status_code == 400
        await client.delete(f"/webhooks/{made['webhook_id']}")
        assert (await client.get(f"/webhooks/{made['webhook_id']}")).status_code == 404
        tenant = {"authorization": f"Bearer {vendor.key_for(pod_id=vendor.add_pod().pod_id)}"}
        assert (await client.get("/webhooks", headers=tenant)).status_code == 403
