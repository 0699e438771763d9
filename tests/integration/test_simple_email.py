"""The e-mail API of the service that we replace, over real sockets: the same bodies, one inbox made on first use."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import orjson
import pytest

from simulators.agentmail import (
    VENDOR_KEY,
    AgentMailSimulator,
    awkward_message_id,
    fails,
    hangs,
    loses_reply,
)
from simulators.agentmail_behaviour import PLANTED
from simulators.script import Gate
from tests.support.gateway import DatedClock, running_gateway

MAIL = {"to": "ann@example.com", "subject": "Hello", "text": "Hello, Ann."}
RECIPIENT_NANOUSD = 2_000_000


@pytest.fixture
async def vendor():
    async with AgentMailSimulator(message_ids=awkward_message_id) as simulator:
        yield simulator


@asynccontextmanager
async def serving(tmp_path, vendor, *, mount="/api/user/email", **plan):
    env = {"AGENTMAIL_API_KEY": VENDOR_KEY, "AGENTMAIL_UPSTREAM_URL": vendor.url}
    clock = DatedClock(2026, 11, 20)
    async with running_gateway(tmp_path, env=env, clock=clock, **plan) as gateway:
        async with user_of(gateway, mount=mount) as client:
            yield gateway, client
        await gateway.assert_clean()


@asynccontextmanager
async def user_of(gateway, user="u1", *, mount="/api/user/email"):
    headers = {"authorization": f"Bearer {await gateway.new_token(user)}"}
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(
        base_url=gateway.url + mount, headers=headers, limits=limits, trust_env=False, timeout=60
    ) as client:
        yield client


async def emails(gateway, user="u1", day="2026-11-20"):
    """Of a user's quota: spent and held."""
    sql = "SELECT spent, held FROM accounts WHERE owner = ?1 AND meter = 'emails' AND period = ?2"
    return await gateway.service.store.readers.row(sql, (f"user:{user}", day)) or (0, 0)


@pytest.mark.parametrize("mount", ["/api/user/email", "/api/email"])
async def test_a_mail_is_sent_from_an_inbox_made_for_it_and_answered_as_ever(tmp_path, vendor, mount):
    async with serving(tmp_path, vendor, mount=mount, emails=10) as (gateway, client):
        answer = await client.post("/send", json={**MAIL, "cc": ["bob@example.com", "C <carl@example.com>"]})
        (sent,) = vendor.sent
        assert answer.status_code == 200
        assert answer.json() == {
            "success": True,
            "messageId": sent.message_id,
            "threadId": sent.thread_id,
            "remaining": 7,
        }
        await gateway.quiet()
        entry = await gateway.only_entry()
        assert (entry["cost_nanousd"], entry["outcome"]) == (3 * RECIPIENT_NANOUSD, "completed")
        assert orjson.loads(entry["usage"])[0]["counts"] == {"recipients": 3, "messages": 1}
        assert await emails(gateway) == (3, 0)


async def test_the_inbox_is_listed_and_read_as_the_vendor_has_it(tmp_path, vendor):
    async with serving(tmp_path, vendor) as (_, client):
        assert (await client.get("/inbox")).json()["messages"] == []
        (inbox,) = vendor.organization.inboxes.values()
        vendor.receive(inbox.inbox_id, "ann@example.com", "News", "Some news.")
        (listed,) = (await client.get("/inbox", params={"limit": 5})).json()["messages"]
        message_id = listed["message_id"]
        assert "/" in message_id
        for written in (httpx.URL(f"http://x/{message_id}").raw_path.decode()[1:], quoted(message_id)):
            answer = await client.get(f"/inbox/{written}")
            assert answer.json()["text"] == "Some news."
        assert (await client.get("/inbox", params={"pod_id": "x"})).status_code == 400
        assert (await client.get("/inbox/%3Cnone@x%3E")).status_code == 404


def quoted(text):
    return "".join(f"%{byte:02X}" for byte in text.encode())


async def test_however_many_ask_first_there_is_one_pod_and_one_inbox(tmp_path, vendor):
    async with serving(tmp_path, vendor) as (gateway, client):
        await asyncio.gather(*(client.get("/inbox") for _ in range(20)))
        async with user_of(gateway, "u2") as other:
            await other.get("/inbox")
        inboxes = vendor.organization.inboxes.values()
        assert len({inbox.pod_id for inbox in inboxes}) == len(inboxes) == 2


async def test_the_days_limit_is_429_as_ever_and_returns_at_midnight(tmp_path, vendor):
    async with serving(tmp_path, vendor, emails=10) as (gateway, client):
        gate = Gate()
        vendor.script = lambda request: hangs(gate=gate) if request.path.endswith("/send") else None
        await client.get("/inbox")
        asking = [
            asyncio.get_running_loop().create_task(client.post("/send", json={**MAIL, "text": str(number)}))
            for number in range(100)
        ]
        await gateway.until(lambda: sum(task.done() for task in asking) == 90)
        gate.open()
        answers = await asyncio.gather(*asking)
        assert sorted(answer.status_code for answer in answers) == [200] * 10 + [429] * 90
        await gateway.quiet()
        assert (len(vendor.sent), await emails(gateway)) == (10, (10, 0))
        refused = await client.post("/send", json=MAIL)
        body = refused.json()
        assert (refused.status_code, body["error"]) == (429, "Daily email limit reached")
        assert (body["limit"], body["sent"], body["resetsAt"]) == (10, 10, "2026-11-21T00:00:00Z")
        assert "retry-after" not in refused.headers
        gateway.clock.advance(86_400)
        vendor.script = None
        assert (await client.post("/send", json=MAIL)).status_code == 200


@pytest.mark.parametrize("given", [{"to": None}, {"subject": ""}, {"to": [1]}, {"to": " "}])
async def test_what_lacks_a_recipient_or_a_subject_is_400(tmp_path, vendor, given):
    async with serving(tmp_path, vendor) as (_, client):
        answer = await client.post("/send", json={**MAIL, **given})
        assert answer.status_code == 400
        assert next(iter(given)) in answer.json()["error"]
        assert vendor.sent == []


async def test_a_vendors_error_costs_nothing_and_shows_nothing_of_the_account(tmp_path, vendor):
    async with serving(tmp_path, vendor) as (gateway, client):
        await client.get("/inbox")
        vendor.next(fails(422, message=f"bad: {PLANTED}"), fails(403, "limit_exceeded"))
        for status in (422, 503):
            answer = await client.post("/send", json=MAIL)
            assert answer.status_code == status
            assert set(answer.json()) <= {"error", "request_id"}
            assert not [word for word in vendor.account_words() if word in answer.text]
        await gateway.quiet()
        assert (await emails(gateway), vendor.sent) == ((0, 0), [])


async def test_a_mail_whose_answer_was_lost_is_sent_once_and_its_id_is_told(tmp_path, vendor):
    async with serving(tmp_path, vendor) as (gateway, client):
        await client.get("/inbox")
        vendor.next(loses_reply())
        answer = await client.post("/send", json=MAIL)
        (sent,) = vendor.sent
        assert (answer.status_code, answer.json()["messageId"]) == (200, sent.message_id)
        await gateway.quiet()
        assert await emails(gateway) == (1, 0)


async def test_a_mail_of_which_nobody_knows_is_repeated_by_its_sender_and_sent_once(tmp_path, vendor):
    async with serving(tmp_path, vendor) as (gateway, client):
        await client.get("/inbox")
        vendor.next(loses_reply(), loses_reply())
        assert (await client.post("/send", json=MAIL)).status_code == 502
        again = await client.post("/send", json=MAIL)
        (sent,) = vendor.sent
        assert (again.status_code, again.json()["messageId"]) == (200, sent.message_id)
        await gateway.quiet()
        assert await emails(gateway) == (1, 0), "its repetition costs nothing"
        await gateway.until(lambda: not gateway.service.store.writer.queued_units)
        assert (await client.post("/send", json=MAIL)).status_code == 200
        assert len(vendor.sent) == 2, "the same mail once more, on purpose"
        await gateway.quiet()
        assert await emails(gateway) == (2, 0)


async def test_the_senders_own_key_sends_once_however_often_it_comes(tmp_path, vendor):
    key = {"idempotency-key": "order-1"}
    async with serving(tmp_path, vendor) as (gateway, client):
        answers = [await client.post("/send", json=MAIL, headers=key) for _ in range(3)]
        assert {answer.json()["messageId"] for answer in answers} == {vendor.sent[0].message_id}
        other = await client.post("/send", json={**MAIL, "text": "Else."}, headers=key)
        assert other.status_code == 409
        assert (
            await client.post("/send", json=MAIL, headers={"idempotency-key": b"\xe4"})
        ).status_code == 400
        await gateway.quiet()
        assert (len(vendor.sent), await emails(gateway)) == (1, (1, 0))
        async with user_of(gateway, "u2") as stranger:
            assert (await stranger.post("/send", json=MAIL, headers=key)).status_code == 200
        assert len(vendor.sent) == 2, "another user's key is another key"
