"""How the simulated AgentMail fails: before the work, after it, and in the middle of the word of it."""

import httpx
import pytest

from metering.tasks import spawn
from simulators.agentmail import (
    VENDOR_KEY,
    AgentMailSimulator,
    Behaviour,
    answers,
    answers_late,
    breaks_after,
    drops,
    fails,
    hangs,
    loses_reply,
    stalls_after,
)
from simulators.agentmail_behaviour import PLANTED
from simulators.script import Gate, Script
from simulators.server import State, read_record, running_in_thread

SEND = "/v0/inboxes/me@agentmail.to/messages/send"
BODY = {"to": ["a@b.c", "d@e.f"], "subject": "Hi"}


@pytest.fixture
async def vendor():
    async with AgentMailSimulator() as simulator:
        simulator.add_inbox("me")
        yield simulator


@pytest.fixture
async def client(vendor):
    headers = {"authorization": f"Bearer {VENDOR_KEY}"}
    async with httpx.AsyncClient(base_url=vendor.url, headers=headers, trust_env=False) as client:
        yield client


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_lost_reply_is_one_to_a_message_that_went_out(client, vendor, is_reset):
    vendor.next(loses_reply(is_reset=is_reset))
    with pytest.raises(httpx.TransportError):
        await client.post(SEND, json=BODY, headers={"idempotency-key": "k"})
    assert len(vendor.sent) == 1
    assert vendor.exchanges[0].state is State.BROKEN_OFF
    assert vendor.answers[0].usage.recipients == 2
    again = await client.post(SEND, json=BODY, headers={"idempotency-key": "k"})
    assert again.json() == vendor.sent[0].as_json()
    assert len(vendor.sent) == 1


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_dropped_request_does_nothing(client, vendor, is_reset):
    vendor.next(drops(is_reset=is_reset))
    with pytest.raises(httpx.TransportError):
        await client.post(SEND, json=BODY)
    assert (vendor.sent, vendor.answers, vendor.events.recorded) == ([], [], [])


@pytest.mark.parametrize(("works", "sent"), [(None, 0), (True, 1)])
async def test_an_error_comes_instead_of_the_work_or_after_it(client, vendor, works, sent):
    vendor.next(fails(500, works=works))
    answer = await client.post(SEND, json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert len(vendor.sent) == len(vendor.answers) == sent


@pytest.mark.parametrize(
    ("status", "code", "name"),
    [
        (400, "validation_error", "ValidationError"),
        (401, "unauthorized", "UnauthorizedError"),
        (403, "forbidden", "ForbiddenError"),
        (404, "not_found", "NotFoundError"),
        (409, "conflict", "ConflictError"),
        (422, "unprocessable", "UnprocessableError"),
        (429, "rate_limit_exceeded", "RateLimitError"),
        (503, "service_unavailable", "ServiceUnavailableError"),
    ],
)
async def test_a_scripted_error_has_the_vendors_shape_and_names_the_account(
    client, vendor, status, code, name
):
    vendor.next(fails(status))
    answer = await client.get("/v0/inboxes")
    error = answer.json()
    assert (answer.status_code, error["code"], error["name"]) == (status, code, name)
    assert error["docs"].endswith(f"#{code}")
    assert ("errors" in error) == (status == 400)
    assert answer.headers.get("retry-after") == ("1" if status == 429 else None)
    assert all(word in error["message"] + error["fix"] for word in PLANTED)


async def test_an_error_may_be_given_in_detail(client, vendor):
    vendor.next(fails(403, "message_rejected", message="No", headers={"retry-after": "9"}, fix=None))
    answer = await client.get("/v0/inboxes")
    assert answer.json() == {
        "name": "MessageRejectedError",
        "code": "message_rejected",
        "message": "No",
        "docs": "https://docs.agentmail.to/errors#message_rejected",
    }
    assert answer.headers["retry-after"] == "9"


async def test_a_hang_at_a_gate_does_the_work_first(client, vendor):
    gate = Gate()
    vendor.next(hangs(gate=gate))
    asked = spawn(client.post(SEND, json=BODY), name="asked")
    await gate.reached()
    assert len(vendor.sent) == 1
    assert not asked.done()
    gate.open()
    assert (await asked).json() == vendor.sent[0].as_json()


async def test_a_hang_without_work_ends_in_503(client, vendor):
    gate = Gate()
    vendor.next(hangs(gate=gate, works=False))
    asked = spawn(client.post(SEND, json=BODY), name="asked")
    await gate.reached()
    gate.open()
    assert (await asked).status_code == 503
    assert vendor.sent == []


async def test_a_client_that_gives_up_has_sent_all_the_same(client, vendor):
    vendor.next(hangs())
    asked = spawn(client.post(SEND, json=BODY), name="asked")
    await vendor.until(lambda: len(vendor.sent) == 1)
    asked.cancel()
    await vendor.until(lambda: vendor.exchanges[0].state is State.CLIENT_GONE)
    assert vendor.client_gone_total == 1


async def test_an_answer_breaks_off_or_stalls_after_bytes(client, vendor):
    vendor.next(breaks_after(5))
    with pytest.raises(httpx.RemoteProtocolError):
        await client.post(SEND, json=BODY)
    gate = Gate()
    vendor.next(stalls_after(5, gate=gate))
    asked = spawn(client.post(SEND, json=BODY), name="asked")
    await gate.reached()
    assert not asked.done()
    gate.open()
    assert (await asked).status_code == 200
    assert len(vendor.sent) == 2


async def test_a_late_answer_is_the_ordinary_one(client, vendor):
    vendor.next(answers_late(0.001))
    assert (await client.post(SEND, json=BODY)).json() == vendor.sent[0].as_json()


async def test_a_given_body_takes_the_place_of_the_work(client, vendor):
    vendor.next(answers({"inboxes": []}), Script(status=418))
    assert (await client.post(SEND, json=BODY)).json() == {"inboxes": []}
    assert (await client.post(SEND, json=BODY)).status_code == 418
    assert vendor.sent == []


async def test_a_function_chooses_by_request(client, vendor):
    vendor.script = lambda request: fails(503) if request.method == "POST" else None
    assert (await client.post(SEND, json=BODY)).status_code == 503
    assert (await client.get("/v0/inboxes")).json()["count"] == 1


@pytest.mark.parametrize(
    ("words", "status", "sent"),
    [("error_before=503", 503, 0), ("error_before=503,works=1", 503, 1), ("delay_ms=1", 200, 1)],
)
async def test_the_request_itself_may_ask_for_a_behaviour(client, vendor, words, status, sent):
    answer = await client.post(SEND, json=BODY, headers={"x-simulate": words})
    assert (answer.status_code, len(vendor.sent)) == (status, sent)


async def test_a_word_that_is_none_is_refused(client, vendor):
    answer = await client.post(SEND, json=BODY, headers={"x-simulate": "explode=1"})
    assert (answer.status_code, answer.json()["errors"]) == (400, [])
    assert vendor.sent == []


async def test_every_request_may_behave_so_and_answers_may_be_compressed():
    headers = {"authorization": f"Bearer {VENDOR_KEY}"}
    async with (
        AgentMailSimulator(default=Behaviour(split=3), gzip=True) as vendor,
        httpx.AsyncClient(base_url=vendor.url, headers=headers, trust_env=False) as client,
    ):
        answer = await client.get("/v0/pods")
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.json()["count"] == 1


def test_the_record_outlives_the_process(tmp_path):
    path = tmp_path / "record.jsonl"
    vendor = AgentMailSimulator(record_to=path, keeps_record=False)
    vendor.add_inbox("me")
    with running_in_thread(vendor) as url:
        headers = {"authorization": f"Bearer {VENDOR_KEY}", "x-request-tag": "t1"}
        assert httpx.post(url + SEND, json=BODY, headers=headers, trust_env=False).status_code == 200
    seen = read_record(path)[0]
    assert (seen["tag"], seen["usage"]) == ("t1", {"messages": 1, "recipients": 2})
    assert seen["message_id"] == vendor.sent[0].message_id
    assert (vendor.requests_total, vendor.requests) == (1, [])
