"""How the simulated Bland fails: before the number is dialled, after it, and in the middle of the word of it."""

import httpx
import pytest

from metering.clock import ManualClock
from metering.tasks import spawn
from simulators.bland import (
    PLANTED,
    VENDOR_KEY,
    Behaviour,
    BlandSimulator,
    answers,
    answers_late,
    breaks_after,
    drops,
    fails,
    hangs,
    loses_reply,
    replays,
    stalls_after,
)
from simulators.script import Gate, Script
from simulators.server import State, read_record, running_in_thread
from tests.support.bland import OTHER, TO, as_platform, dialled

BODY = {"phone_number": TO, "task": "Hi"}


@pytest.fixture
async def vendor():
    async with BlandSimulator(clock=ManualClock(1_795_000_000_000)) as simulator:
        yield simulator


@pytest.fixture
async def client(vendor):
    async with as_platform(vendor) as client:
        yield client


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_lost_reply_is_one_to_a_number_that_was_dialled(client, vendor, is_reset):
    vendor.next(loses_reply(is_reset=is_reset))
    with pytest.raises(httpx.TransportError):
        await client.post("/calls", json={**BODY, "metadata": {"attempt": "a1"}})
    (call,) = vendor.dialled
    assert vendor.exchanges[0].state is State.BROKEN_OFF
    assert vendor.answers[0].message_id == call.call_id
    found = (await client.get("/calls", params={"to_number": TO})).json()["calls"]
    assert [each["call_id"] for each in found] == [call.call_id]
    assert (await client.post("/calls", json=BODY)).status_code == 429
    vendor.end(call, seconds=60)
    assert (await client.get(f"/calls/{call.call_id}")).json()["metadata"] == {"attempt": "a1"}


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_dropped_request_dials_nothing(client, vendor, is_reset):
    vendor.next(drops(is_reset=is_reset))
    with pytest.raises(httpx.TransportError):
        await client.post("/calls", json=BODY)
    assert (vendor.dialled, vendor.answers, vendor.posts) == ([], [], [])
    await dialled(client, vendor)


@pytest.mark.parametrize(("works", "calls"), [(None, 0), (True, 1)])
async def test_an_error_comes_instead_of_the_call_or_after_it(client, vendor, works, calls):
    vendor.next(fails(500, works=works))
    answer = await client.post("/calls", json=BODY)
    assert (answer.status_code, answer.json()["message"]) == (500, "Internal server error.")
    assert len(vendor.dialled) == len(vendor.answers) == calls


@pytest.mark.parametrize("status", [400, 402, 403, 404, 418, 429, 500, 503])
async def test_a_scripted_error_has_the_vendors_shape_and_names_the_account(client, vendor, status):
    vendor.next(fails(status))
    answer = await client.get("/me")
    error = answer.json()
    assert (answer.status_code, error["status"], set(error)) == (
        status,
        "error",
        {"status", "message", "errors"},
    )
    assert all(word in error["errors"][0] for word in PLANTED)


async def test_an_error_may_be_given_in_detail_and_in_the_other_shape(client, vendor):
    vendor.next(
        fails(401),
        fails(404, message="Gone", in_envelope=True),
        fails(500, error_type="BROKEN", in_envelope=True),
        fails(429, message="Slow down", errors=(), headers={"retry-after": "9"}),
    )
    said = [(await client.get("/me")) for _ in range(4)]
    assert [answer.json() for answer in said] == [
        {"data": None, "errors": [{"error": "AUTH_FAILURE", "message": "Unauthorized"}]},
        {"data": None, "errors": [{"error": "NOT_FOUND", "message": "Gone"}]},
        {"data": None, "errors": [{"error": "BROKEN", "message": "Internal server error."}]},
        {"status": "error", "message": "Slow down", "errors": []},
    ]
    assert said[3].headers["retry-after"] == "9"


async def test_a_hang_at_a_gate_dials_first(client, vendor):
    gate = Gate()
    vendor.next(hangs(gate=gate))
    asked = spawn(client.post("/calls", json=BODY), name="asked")
    await gate.reached()
    assert len(vendor.dialled) == 1
    assert not asked.done()
    gate.open()
    assert (await asked).json()["call_id"] == vendor.dialled[0].call_id


async def test_a_hang_without_work_ends_in_503(client, vendor):
    gate = Gate()
    vendor.next(hangs(gate=gate, works=False))
    asked = spawn(client.post("/calls", json=BODY), name="asked")
    await gate.reached()
    gate.open()
    assert (await asked).status_code == 503
    assert vendor.dialled == []


async def test_a_client_that_gives_up_has_dialled_all_the_same(client, vendor):
    vendor.next(hangs())
    asked = spawn(client.post("/calls", json=BODY), name="asked")
    await vendor.until(lambda: len(vendor.dialled) == 1)
    asked.cancel()
    await vendor.until(lambda: vendor.exchanges[0].state is State.CLIENT_GONE)


async def test_an_answer_breaks_off_or_stalls_after_bytes(client, vendor):
    vendor.next(breaks_after(5))
    with pytest.raises(httpx.RemoteProtocolError):
        await client.post("/calls", json=BODY)
    gate = Gate()
    vendor.next(stalls_after(5, gate=gate))
    asked = spawn(client.post("/calls", json={**BODY, "phone_number": OTHER}), name="asked")
    await gate.reached()
    assert not asked.done()
    gate.open()
    assert (await asked).status_code == 200
    assert [call.to for call in vendor.dialled] == [TO, OTHER]


async def test_a_recording_breaks_off_stalls_or_fails_too(client, vendor):
    call = await dialled(client, vendor, record=True)
    vendor.end(call, seconds=5)
    path = f"/recordings/{call.call_id}"
    vendor.next(breaks_after(50_000), fails(500), Behaviour(split=1_000))
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get(path)
    assert (await client.get(path)).status_code == 500
    assert len((await client.get(path)).content) == 64_000


async def test_a_late_answer_is_the_ordinary_one(client, vendor):
    vendor.next(answers_late(0.001))
    assert (await client.post("/calls", json=BODY)).json()["call_id"] == vendor.dialled[0].call_id


async def test_a_given_body_takes_the_place_of_the_work(client, vendor):
    vendor.next(answers({"calls": []}), replays(b"{", "application/json"), Script(status=418))
    assert (await client.post("/calls", json=BODY)).json() == {"calls": []}
    assert (await client.post("/calls", json=BODY)).text == "{"
    assert (await client.post("/calls", json=BODY)).status_code == 418
    assert vendor.dialled == []


async def test_a_new_call_may_be_found_only_after_a_while(client, vendor):
    vendor.appears_after_s = 5
    call = await dialled(client, vendor)
    vendor.advance(4.999)
    for method, path in (("GET", ""), ("POST", "/stop")):
        assert (await client.request(method, f"/calls/{call.call_id}{path}")).status_code == 404
    assert (await client.get("/calls")).json()["total_count"] == 0
    vendor.advance(0.001)
    assert (await client.get(f"/calls/{call.call_id}")).status_code == 200
    assert (await client.get("/calls")).json()["total_count"] == 1


async def test_a_function_chooses_by_request(client, vendor):
    vendor.script = lambda request: fails(503) if request.method == "GET" else None
    call = await dialled(client, vendor)
    assert (await client.get(f"/calls/{call.call_id}")).status_code == 503


@pytest.mark.parametrize(
    ("words", "status", "calls"),
    [("error_before=503", 503, 0), ("error_before=503,works=1", 503, 1), ("delay_ms=1", 200, 1)],
)
async def test_the_request_itself_may_ask_for_a_behaviour(client, vendor, words, status, calls):
    answer = await client.post("/calls", json=BODY, headers={"x-simulate": words})
    assert (answer.status_code, len(vendor.dialled)) == (status, calls)


async def test_a_wrong_word_dials_nothing(client, vendor):
    assert (await client.post("/calls", json=BODY, headers={"x-simulate": "explode=1"})).status_code == 400
    assert vendor.dialled == []


def test_the_record_outlives_the_process(tmp_path):
    path = tmp_path / "record.jsonl"
    vendor = BlandSimulator(record_to=path, keeps_record=False)
    with running_in_thread(vendor) as url:
        headers = {"authorization": VENDOR_KEY, "x-request-tag": "t1"}
        answer = httpx.post(f"{url}/v1/calls", json=BODY, headers=headers, trust_env=False)
    seen = read_record(path)[0]
    assert (seen["tag"], seen["usage"]) == ("t1", {"calls": 1})
    assert seen["message_id"] == answer.json()["call_id"] == vendor.dialled[0].call_id
