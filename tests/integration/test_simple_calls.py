"""Phone calls by the paths and bodies of the service before: dialled, asked about, and refused in its shapes."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest

from metering.objects import ObjectId, Objects
from simulators.bland import fails
from tests.support.bland import OTHER, TO
from tests.support.calls import NUMBERS, exchange

SLICE_S = 120


@asynccontextmanager
async def stage(tmp_path, **more):
    async with exchange(tmp_path, **more) as at, simple(at, at.ada) as ada, simple(at, at.bob) as bob:
        yield at, ada, bob


def simple(at, user):
    return httpx.AsyncClient(
        base_url=at.gateway.url, headers={"authorization": f"Bearer {user.token}"}, trust_env=False
    )


async def dial(http, path="/api/user/call", **more):
    return await http.post(path, json={"to": TO, "task": "Say hello.", **more})


@pytest.mark.parametrize("path", ["/api/user/call", "/api/call", "/api/user/call/"])
async def test_a_call_is_dialled_asked_about_and_booked(tmp_path, path):
    async with stage(tmp_path, call_minutes=60) as (at, ada, bob):
        answer = await dial(ada, path, to="(310) 555-0111", first_sentence="Hi.", voice_id="maya")
        (call,) = at.vendor.dialled
        assert (answer.status_code, answer.json()) == (
            200,
            {
                "success": True,
                "call_id": call.call_id,
                "from": NUMBERS["ada"],
                "to": TO,
                "status": "initiated",
                "remaining_minutes": 60 - SLICE_S // 60,
            },
        )
        sent = {name: call.fields[name] for name in call.fields if name != "metadata"}
        assert sent == {
            "phone_number": TO,
            "from": NUMBERS["ada"],
            "task": "Say hello.",
            "first_sentence": "Hi.",
            "voice": "maya",
            "model": "base",
            "language": "en-US",
            "max_duration": 5,
            "record": True,
            "wait_for_greeting": True,
        }
        status = f"/api/user/call/status?call_id={call.call_id}"
        running = (await ada.get(status)).json()
        assert (running["status"], running["completed"], running["duration_seconds"]) == (
            "initiated",
            False,
            None,
        )
        at.vendor.pick_up(call)
        at.vendor.end(call, seconds=61)
        await at.pass_time(20)
        ended = (await ada.get(status)).json()
        assert list(ended) == [
            *("call_id", "status", "completed", "direction", "to", "from", "duration_seconds", "summary"),
            *("transcript", "recording_url", "task", "created_at", "completed_at"),
        ]
        assert (ended["status"], ended["completed"], ended["direction"]) == ("completed", True, "outbound")
        assert (ended["duration_seconds"], ended["to"], ended["from"]) == (61, TO, NUMBERS["ada"])
        assert "Hi." in ended["transcript"]
        assert await at.ada.seconds() == (61, 0)
        refused = await bob.get(status)
        assert (refused.status_code, refused.json()["error"]) == (404, "Call not found")


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({"status": "failed"}, "failed"),
        ({"status": "busy"}, "no_answer"),
        ({"status": "no-answer"}, "no_answer"),
        ({"seconds": 7, "answered_by": "voicemail"}, "voicemail"),
    ],
    ids=str,
)
async def test_however_a_call_ends_its_status_is_one_that_callers_know(tmp_path, how, status):
    async with stage(tmp_path) as (at, ada, _):
        call_id = (await dial(ada)).json()["call_id"]
        at.vendor.end(at.vendor.call(call_id), **how)
        assert (await ada.get(f"/api/call/status?call_id={call_id}")).json()["status"] == status
        await at.pass_time(20)


@pytest.mark.parametrize(
    ("fields", "voicemail"),
    [
        ({"voicemail_action": "hangup"}, {"action": "hangup"}),
        ({"voicemail_action": "ignore"}, {"action": "ignore"}),
        (
            {"voicemail_action": "leave_message", "voicemail_message": "Call me."},
            {"action": "leave_message", "message": "Call me."},
        ),
        ({"voicemail_message": "Call me."}, {"action": "leave_message", "message": "Call me."}),
    ],
    ids=str,
)
async def test_what_is_to_be_done_with_a_voicemail(tmp_path, fields, voicemail):
    async with stage(tmp_path) as (at, ada, _):
        assert (await dial(ada, **fields)).status_code == 200
        (call,) = at.vendor.dialled
        assert call.fields["voicemail"] == voicemail
        at.vendor.end(call, status="failed")
        await at.pass_time(20)


@pytest.mark.parametrize(
    "fields",
    [
        {"to": None},
        {"task": ""},
        {"task": 7},
        {"to": "911"},
        {"to": "+442071838750"},
        {"to": "+11234567890"},
        {"to": "+19005550111"},
        {"max_duration": 0},
        {"max_duration": "5"},
        {"voicemail_action": "leave_message"},
        {"voicemail_action": "leave_message_and_sms", "voicemail_message": "x"},
        {"voicemail_message": 7},
        {"webhook": "https://eve.example.com"},
        {"from": 7},
    ],
    ids=str,
)
async def test_what_may_not_be_asked_for_is_400_and_dials_nothing(tmp_path, fields):
    async with stage(tmp_path) as (at, ada, _):
        answer = await dial(ada, **fields)
        assert (answer.status_code, isinstance(answer.json()["error"], str)) == (400, True)
        assert at.vendor.dialled == []


async def test_anothers_number_is_none_and_who_has_none_is_told_so(tmp_path):
    async with stage(tmp_path) as (at, ada, bob):
        assert (await dial(ada, **{"from": NUMBERS["bob"]})).status_code == 404
        objects = Objects(at.gateway.service.store, at.clock)
        await objects.release(ObjectId("bland", "number", NUMBERS["bob"]), "bob")
        refused = await dial(bob)
        assert (refused.status_code, "no phone number" in refused.json()["error"]) == (400, True)
        assert at.vendor.dialled == []


async def test_a_plan_without_calls_is_403_with_where_to_upgrade(tmp_path):
    async with stage(tmp_path, call_minutes=0) as (_, ada, _bob):
        refused = await dial(ada)
        assert (refused.status_code, bool(refused.json()["upgrade_url"])) == (403, True)


async def test_used_up_minutes_are_429_with_how_many(tmp_path):
    async with stage(tmp_path, call_minutes=2) as (at, ada, _):
        call_id = (await dial(ada)).json()["call_id"]
        at.vendor.pick_up(at.vendor.call(call_id))
        at.vendor.end(at.vendor.call(call_id), seconds=120)
        await at.pass_time(20)
        refused = await dial(ada, to=OTHER)
        assert refused.status_code == 429
        assert {name: refused.json()[name] for name in ("used_minutes", "limit_minutes")} == {
            "used_minutes": 2,
            "limit_minutes": 2,
        }


@pytest.mark.parametrize(("status", "shown"), [(401, 503), (402, 503), (500, 502), (503, 502)])
async def test_a_failure_of_the_vendors_is_502_and_one_of_our_account_503(tmp_path, status, shown):
    async with stage(tmp_path) as (at, ada, _):
        at.vendor.next(fails(status))
        refused = await dial(ada)
        assert (refused.status_code, isinstance(refused.json()["error"], str)) == (shown, True)
        async with asyncio.timeout(20):  # until it is sure that nothing was dialled
            while await at.ada.seconds() != (0, 0):
                await at.pass_time(10)


async def test_a_status_needs_a_call_and_its_id_is_no_path(tmp_path):
    async with stage(tmp_path) as (at, ada, _):
        assert (await ada.get("/api/user/call/status")).status_code == 400
        for call_id in ("..", "a/b", "active", "%2e%2e", "x" * 600):
            assert (await ada.get(f"/api/user/call/status?call_id={call_id}")).status_code in {400, 404}
        assert not [one for one in at.vendor.requests if one.method == "GET"]


@pytest.mark.parametrize("path", ["/api/user/call/usage", "/api/call/usage"])
async def test_what_was_called_is_told_by_the_ledger_to_whom_it_was_called_for(tmp_path, path):
    async with stage(tmp_path, call_minutes=60) as (at, ada, bob):
        call_id = (await dial(ada)).json()["call_id"]
        at.vendor.pick_up(at.vendor.call(call_id))
        at.vendor.end(at.vendor.call(call_id), seconds=90)
        await at.pass_time(20)
        told = (await ada.get(path)).json()
        assert (told["phone_number"], told["plan"]) == (NUMBERS["ada"], "test")
        assert told["usage"] == {
            "used_minutes": 2,
            "limit_minutes": 60,
            "remaining_minutes": 58,
            "total_calls": 1,
            "total_cost_cents": 21,
        }
        (recent,) = told["recent_calls"]
        assert (recent["call_id"], recent["direction"], recent["status"]) == (
            call_id,
            "outbound",
            "completed",
        )
        others = (await bob.get(path)).json()
        assert (others["usage"]["total_calls"], others["recent_calls"]) == (0, [])
        assert (await ada.get(path, headers={"authorization": ""})).status_code == 401
