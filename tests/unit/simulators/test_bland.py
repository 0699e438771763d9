"""The simulated Bland, over real sockets: who is let in, what is dialled, what is shown, what errors say."""

import httpx
import pytest

from metering.clock import ManualClock
from simulators.bland import BYOT_KEY, FOREIGN_NUMBER, PLANTED, VENDOR_KEY, BlandSimulator, Plan
from simulators.bland_account import POOL_NUMBER, e164
from simulators.bland_owner import COLLECTIONS
from tests.support.bland import OTHER, TO, as_platform, dialled

START_MS = 1_795_000_000_000
OWN = "+14155550777"


@pytest.fixture
async def vendor():
    async with BlandSimulator(clock=ManualClock(START_MS)) as simulator:
        yield simulator


@pytest.fixture
async def client(vendor):
    async with as_platform(vendor) as client:
        yield client


def refused(answer):
    assert answer.json()["status"] == "error"
    return answer.status_code, answer.json()["message"]


# --- the key ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": VENDOR_KEY}, 200),
        ({"authorization": f"Bearer {VENDOR_KEY}"}, 200),
        ({"authorization": "sk-wrong"}, 401),
        ({"authorization": f"Basic {VENDOR_KEY}"}, 401),
        ({"x-api-key": VENDOR_KEY}, 401),
        ({}, 401),
    ],
)
async def test_the_key_stands_in_authorization_bare_or_as_a_bearer(vendor, headers, status):
    async with httpx.AsyncClient(base_url=vendor.url, headers=headers, trust_env=False) as client:
        answer = await client.get("/v1/me")
    assert answer.status_code == status
    if status == 401:
        assert answer.json() == {
            "data": None,
            "errors": [{"error": "AUTH_FAILURE", "message": "Unauthorized"}],
        }


async def test_a_path_that_is_none_is_not_found(client):
    for method, path in (("GET", "/nothing"), ("DELETE", "/calls"), ("GET", "/calls/%FF")):
        assert (await client.request(method, path)).status_code == 404


# --- dialling -----------------------------------------------------------------------------------------


async def test_a_call_is_dialled_and_found(client, vendor):
    answer = await client.post(
        "/calls",
        json={"phone_number": "(310) 555-0111", "task": "Hi", "metadata": {"a": {"b": 1}}, "max_duration": 5},
        headers={"x-request-tag": "t1"},
    )
    call_id = answer.json()["call_id"]
    assert answer.json() == {
        "status": "success",
        "message": "Call successfully queued.",
        "call_id": call_id,
        "batch_id": None,
    }
    (call,) = vendor.dialled
    assert (call.call_id, call.to, call.origin.tag, call.origin.request_number) == (call_id, TO, "t1", 1)
    shown = (await client.get(f"/calls/{call_id}")).json()
    assert shown["metadata"] == {"a": {"b": 1}}
    assert (shown["from"], shown["max_duration"], shown["completed"], shown["price"]) == (
        POOL_NUMBER,
        5,
        False,
        None,
    )
    (said,) = vendor.answers
    assert (said.message_id, said.tag, said.usage.counts()) == (call_id, "t1", {"calls": 1})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"phone_number": "12"}, "phone_number"),
        ({"phone_number": None}, "phone_number"),
        ({"task": None}, "task"),
        ({"surprise": 1}, "surprise: unknown property"),
        ({"encrypted_key": "x"}, "encrypted_key: unknown property"),
        ({"max_duration": 721}, "max_duration"),
        ({"max_duration": 0}, "max_duration"),
        ({"max_duration": "5"}, "max_duration"),
        ({"max_duration": True}, "max_duration"),
        ({"temperature": 2}, "temperature"),
        ({"webhook": "ftp://x.example"}, "webhook"),
        ({"webhook_events": ["gossip"]}, "webhook_events"),
        ({"voicemail": {"action": "sing"}}, "voicemail.action"),
        ({"voicemail_action": "sing"}, "voicemail.action"),
        ({"retry": {"wait": "soon"}}, "retry.wait"),
        ({"metadata": "x"}, "metadata: wrong type"),
        ({"start_time": "tomorrow"}, "start_time"),
        ({"start_time": "2027-01-01T00:00:00"}, "start_time"),
        ({"from": OWN}, "from"),
    ],
)
async def test_a_request_that_is_not_well_formed_dials_nothing(client, vendor, changes, word):
    fields = {"phone_number": TO, "task": "Hi", **changes}
    answer = await client.post("/calls", json=fields)
    assert refused(answer) == (400, "Invalid parameters")
    (error,) = answer.json()["errors"]
    assert error.startswith(word)
    assert (vendor.dialled, vendor.answers) == ([], [])


@pytest.mark.parametrize("body", [b"{", b"[]", b"3"])
async def test_a_body_that_is_no_object_is_refused(client, vendor, body):
    assert refused(await client.post("/calls", content=body)) == (400, "Invalid parameters")
    assert vendor.dialled == []


async def test_a_number_is_not_dialled_twice_within_ten_seconds_whoever_asks(client, vendor):
    await dialled(client, vendor)
    await dialled(client, vendor, OTHER)
    vendor.advance(9.999)
    status, message = refused(await client.post("/calls", json={"phone_number": TO, "task": "x"}))
    assert (status, TO in message) == (429, True)
    vendor.advance(0.001)
    await dialled(client, vendor)
    assert [call.to for call in vendor.dialled] == [TO, OTHER, TO]


async def test_a_blacklisted_number_and_an_empty_balance_are_refused_in_the_vendors_words(client, vendor):
    blacklisted = await client.post("/calls", json={"phone_number": FOREIGN_NUMBER, "task": "x"})
    assert blacklisted.status_code == 429
    assert "blacklisted" in blacklisted.json()["message"]
    vendor.account.balance_usd = 0
    broke = await client.post("/calls", json={"phone_number": TO, "task": "x"})
    assert refused(broke) == (402, "Insufficient balance.")
    assert PLANTED[0] in str(broke.json()["errors"])
    assert vendor.dialled == []


@pytest.mark.parametrize(
    ("plan", "wait_s"),
    [(Plan(per_hour_max=2), 3_600), (Plan(per_day_max=2), 86_400)],
)
async def test_the_account_has_its_caps_over_time(plan, wait_s):
    async with (
        BlandSimulator(clock=ManualClock(START_MS), plan=plan) as vendor,
        as_platform(vendor) as client,
    ):
        vendor.end(await dialled(client, vendor), seconds=1)
        await dialled(client, vendor, OTHER)
        third = {"phone_number": "+13105550133", "task": "x"}
        refusal = await client.post("/calls", json=third)
        assert refused(refusal) == (429, "Rate limit exceeded")
        assert "2 of 2" in refusal.json()["errors"][0]
        vendor.advance(wait_s - 0.001)
        assert (await client.post("/calls", json=third)).status_code == 429
        vendor.advance(0.001)
        assert (await client.post("/calls", json=third)).status_code == 200


async def test_the_account_has_a_cap_of_calls_at_once():
    plan = Plan(at_once_max=1)
    async with (
        BlandSimulator(clock=ManualClock(START_MS), plan=plan) as vendor,
        as_platform(vendor) as client,
    ):
        first = await dialled(client, vendor)
        assert (await client.post("/calls", json={"phone_number": OTHER, "task": "x"})).status_code == 429
        vendor.end(first, seconds=1)
        await dialled(client, vendor, OTHER)


# --- the operator's own Twilio account ----------------------------------------------------------------


async def test_calls_of_the_twilio_account_come_from_its_numbers_any_of_them_unless_told(vendor):
    numbers = {f"+1415555{last:04}" for last in range(800, 808)}
    for number in numbers:
        vendor.add_number(number)
    vendor.add_number(OWN, is_byot=False)
    async with as_platform(vendor, encrypted_key=BYOT_KEY) as client:
        calls = [await dialled(client, vendor, f"+13105550{last}") for last in range(100, 120)]
        assert len({call.from_number for call in calls} & numbers) > 1
        assert {call.from_number for call in calls} <= numbers
        told = await dialled(client, vendor, OTHER, **{"from": "415-555-0803"})
        assert (told.from_number, told.is_byot) == ("+14155550803", True)
        for stranger in (OWN, "+14155550999"):
            wrong = {"phone_number": TO, "task": "x", "from": stranger}
            assert (await client.post("/calls", json=wrong)).status_code == 400


async def test_a_wrong_encrypted_key_dials_nothing(vendor):
    vendor.add_number(OWN)
    async with as_platform(vendor, encrypted_key="guessed") as client:
        answer = await client.post("/calls", json={"phone_number": TO, "task": "x"})
    assert refused(answer) == (400, "Invalid encrypted_key")
    assert vendor.dialled == []


# --- lists --------------------------------------------------------------------------------------------


async def listed(client, **asked):
    answer = (await client.get("/calls", params=asked)).json()
    assert answer["count"] == len(answer["calls"])
    return answer["total_count"], [call["to"][-3:] for call in answer["calls"]]


async def test_the_list_is_of_the_whole_account_newest_first_by_index(client, vendor):
    for last in range(101, 106):
        await dialled(client, vendor, f"+13105550{last}")
        vendor.advance(1)
    assert await listed(client) == (5, ["105", "104", "103", "102", "101"])
    assert await listed(client, ascending="true", limit=2) == (5, ["101", "102"])
    assert await listed(client, **{"from": 1, "to": 3}) == (5, ["104", "103"])
    assert await listed(client, **{"from": 1, "limit": 2}) == (5, ["104", "103"])
    assert await listed(client, **{"from": 3, "limit": 9}) == (5, ["102", "101"])
    assert await listed(client, **{"from": 9}) == (5, [])
    assert (await client.get("/calls", params={"limit": "x"})).status_code == 400


async def test_the_list_is_filtered(client, vendor):
    vendor.add_number(OWN)
    vendor.end(await dialled(client, vendor), seconds=3)
    vendor.advance(86_400)
    await dialled(client, vendor, OTHER)
    vendor.receive(OWN, TO)
    assert await listed(client, to_number="310 555 0111") == (1, ["111"])
    assert await listed(client, from_number=TO) == (1, ["777"])
    assert await listed(client, completed="true") == (1, ["111"])
    assert await listed(client, inbound="true") == (1, ["777"])
    assert await listed(client, answered_by="human") == (1, ["111"])
    today = "2026-11-19"
    assert await listed(client, start_date=today) == (2, ["777", "122"])
    assert await listed(client, end_date="2026-11-18T23:59:59Z") == (1, ["111"])
    assert await listed(client, created_at="2026-11-18") == (1, ["111"])
    assert await listed(client, batch_id="b") == (0, [])
    async with as_platform(vendor, encrypted_key=BYOT_KEY) as of_twilio:
        assert await listed(of_twilio) == (1, ["777"])


async def test_running_calls_are_listed_with_whose_account_it_is(client, vendor):
    running = await dialled(client, vendor)
    vendor.end(await dialled(client, vendor, OTHER), seconds=1)
    shown = (await client.get("/calls/active")).json()
    assert shown == {
        "data": [
            {
                "call_id": running.call_id,
                "user_id": PLANTED[0],
                "from": POOL_NUMBER,
                "to": TO,
                "status": "new",
            }
        ],
        "errors": None,
    }


# --- what else there is of a call ---------------------------------------------------------------------


async def test_what_was_said_is_told_in_every_form(client, vendor):
    call = await dialled(client, vendor, first_sentence="Good day.")
    vendor.end(call, seconds=30)
    shown = (await client.get(f"/calls/{call.call_id}")).json()
    assert [line["user"] for line in shown["transcripts"]] == ["assistant", "user"]
    assert shown["concatenated_transcript"].startswith("assistant: Good day. \n user: ")
    corrected = (await client.get(f"/calls/{call.call_id}/correct")).json()
    assert [line["speaker_label"] for line in corrected["corrected"]] == ["assistant", "user"]
    events = (await client.get(f"/event_stream/{call.call_id}")).json()
    assert [event["message"] for event in events][0::3] == ["Call queued", "Call ended"]
    questions = [["Who answered the call?", "human or voicemail"], ["Was it good?", "boolean"]]
    analyzed = await client.post(f"/calls/{call.call_id}/analyze", json={"goal": "x", "questions": questions})
    assert (analyzed.json()["answers"], analyzed.json()["credits_used"]) == (["human", None], 0.0045)
    assert (await client.post(f"/calls/{call.call_id}/analyze", json={})).status_code == 400


async def test_a_recording_is_sound_of_that_call_and_only_when_there_is_one(client, vendor):
    recorded, other = await dialled(client, vendor, record=True), await dialled(client, vendor, OTHER)
    missing = await client.get(f"/recordings/{recorded.call_id}")
    error = missing.json()["errors"][0]["error"]
    assert (missing.status_code, error) == (404, "CALL_RECORDING_NOT_FOUND")
    vendor.end(recorded, seconds=3)
    vendor.end(other, seconds=3)
    wav = await client.get(f"/recordings/{recorded.call_id}")
    assert (wav.headers["content-type"], wav.content[:4], len(wav.content)) == ("audio/wav", b"RIFF", 64_000)
    assert recorded.call_id.encode() in wav.content
    mp3 = await client.get(f"/recordings/{recorded.call_id}", headers={"content-type": "audio/mpeg"})
    assert (mp3.headers["content-type"], mp3.content[:3]) == ("audio/mpeg", b"ID3")
    assert (await client.get(f"/recordings/{other.call_id}")).status_code == 404
    url = (await client.get(f"/calls/{recorded.call_id}")).json()["recording_url"]
    assert (await client.get(url)).content == wav.content


async def test_who_may_listen_is_told_a_url_while_the_call_runs(client, vendor):
    call = await dialled(client, vendor)
    heard = (await client.post(f"/calls/{call.call_id}/listen")).json()
    assert heard["data"]["url"].startswith(f"wss://api.bland.ai/ws/listen/{call.call_id}")
    token = (await client.post(f"/calls/{call.call_id}/transcript-stream/token")).json()["data"]
    assert token["token"] in token["url"]
    vendor.end(call, seconds=1)
    answer = await client.post(f"/calls/{call.call_id}/listen")
    assert (answer.status_code, answer.json()["errors"][0]["error"]) == (400, "INVALID_CALL_STATUS")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/calls/{}"),
        ("GET", "/calls/{}/correct"),
        ("POST", "/calls/{}/stop"),
        ("POST", "/calls/{}/analyze"),
        ("POST", "/calls/{}/listen"),
        ("POST", "/calls/{}/transcript-stream/token"),
        ("GET", "/recordings/{}"),
        ("GET", "/event_stream/{}"),
        ("GET", "/postcall/webhooks/{}"),
    ],
)
async def test_a_call_that_is_none_is_not_found(client, method, path):
    unknown = path.format("00000000-0000-4000-8000-000000000000")
    assert (await client.request(method, unknown)).status_code == 404


# --- numbers and texts --------------------------------------------------------------------------------


async def test_numbers_are_imported_configured_shown_and_let_go(vendor):
    async with as_platform(vendor, encrypted_key=BYOT_KEY) as client:
        imported = await client.post("/inbound/insert", json={"numbers": [OWN, "415 555 0778"]})
        assert imported.json()["inserted"] == [OWN, "+14155550778"]
        settings = {"prompt": "Be kind", "webhook": "https://x.example/hook", "max_duration": 3}
        for written in (OWN, "14155550777", "4155550777", "%2B14155550777"):
            assert (await client.post(f"/inbound/{written}", json=settings)).status_code == 200
            assert (await client.get(f"/inbound/{written}")).json()["prompt"] == "Be kind"
        assert (await client.post(f"/inbound/{OWN}", json={"surprise": 1})).status_code == 400
        shown = (await client.get("/inbound")).json()["inbound_numbers"]
        assert [number["phone_number"] for number in shown] == [OWN, "+14155550778"]
        assert (await client.post(f"/inbound/{OWN}/delete")).status_code == 200
        assert (
            await client.post("/inbound/delete", json={"phone_number": "+14155550778"})
        ).status_code == 200
        assert (await client.get(f"/inbound/{OWN}")).status_code == 404
    assert vendor.account.numbers == {}


async def test_only_the_twilio_account_imports_and_lets_go_of_its_numbers(client, vendor):
    vendor.add_number(OWN)
    assert (await client.post("/inbound/insert", json={"numbers": [TO]})).status_code == 400
    assert (await client.post(f"/inbound/{OWN}/delete")).status_code == 400
    assert list(vendor.account.numbers) == [OWN]


@pytest.mark.parametrize("path", ["/v1/numbers/purchase", "/numbers/purchase", "/v1/inbound/purchase"])
async def test_a_number_is_bought(vendor, client, path):
    bought = (await client.post(vendor.url + path, json={"area_code": "725"})).json()["phone_number"]
    assert bought.startswith("+1725")
    assert not vendor.account.numbers[bought].is_byot
    taken = await client.post(vendor.url + path, json={"phone_number": bought})
    assert taken.status_code == 400


async def test_texts_are_sent_once_for_a_key_received_and_kept_in_conversations(client, vendor):
    vendor.add_number(OWN)
    fields = {"user_number": TO, "agent_number": OWN, "agent_message": "Hi"}
    first = await client.post("/sms/send", json=fields, headers={"idempotency-key": "k"})
    again = await client.post("/sms/send", json=fields, headers={"idempotency-key": "k"})
    assert again.json() == first.json()
    assert [said.usage and said.usage.counts() for said in vendor.answers] == [{"texts": 1}, None]
    vendor.receive_text(TO, OWN, "Hello yourself")
    conversation_id = first.json()["data"]["conversation_id"]
    shown = (await client.get(f"/sms/conversations/{conversation_id}")).json()["data"]
    assert [line["sender"] for line in shown["messages"]] == ["AGENT", "USER"]
    assert [text.is_inbound for text in vendor.texts] == [False, True]
    for method in ("GET", "POST"):
        (listed_one,) = (await client.request(method, "/sms/conversations")).json()["data"]
        assert (listed_one["id"], listed_one["message_count"]) == (conversation_id, 2)
    stranger = await client.post("/sms/send", json={**fields, "agent_number": OTHER})
    assert stranger.status_code == 400
    assert (await client.get("/sms/conversations/none")).status_code == 404


# --- what is the owner's ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLLECTIONS)
async def test_what_is_account_wide_shows_the_account(client, vendor, name):
    call = await dialled(client, vendor)
    for method in ("GET", "POST", "PATCH", "DELETE"):
        for path in (f"/{name}", f"/{name}/some/thing"):
            shown = await client.request(method, path)
            assert shown.status_code == 200
            assert call.call_id in shown.text
            assert all(word in shown.text for word in PLANTED if word != FOREIGN_NUMBER)
    assert vendor.dialled == [call]


@pytest.mark.parametrize("name", ["create", "resend"])
async def test_webhooks_are_made_and_repeated_for_the_whole_account(client, name):
    answer = await client.post(f"/postcall/webhooks/{name}", json={"call_ids": []})
    assert PLANTED[0] in answer.text


async def test_the_balance_is_what_is_left_after_what_was_billed(client, vendor):
    before = (await client.get("/me")).json()
    vendor.end(await dialled(client, vendor), seconds=60)
    after = (await client.get("/me")).json()
    spent = before["billing"]["current_balance"] - after["billing"]["current_balance"]
    assert (round(spent, 3), after["total_calls"]) == (0.12, 1)


async def test_all_running_calls_of_the_account_are_stopped_or_handed_on_at_once(client, vendor):
    calls = [await dialled(client, vendor, to) for to in (TO, OTHER)]
    vendor.pick_up(calls[0])
    answer = await client.post("/calls/active/transfer", json={"transfer_number": "+13105550199"})
    assert answer.json()["num_calls"] == 1
    assert calls[0].transferred_to == "+13105550199"
    vendor.advance(10)
    assert (await client.post("/calls/active/stop")).json()["num_calls"] == 2
    assert [call.status for call in calls] == ["completed", "canceled"]


def test_numbers_are_taken_as_they_are_written():
    assert {e164(each) for each in ("+13105550111", "13105550111", "(310) 555-0111")} == {"+13105550111"}
    assert e164("+442071838750") == "+442071838750"
    assert [e164(each) for each in ("", "5550111", "+1", "+0310555011", "x", "0310555011")] == [None] * 6
