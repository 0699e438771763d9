"""Phone calls by the paths and bodies of the service before: dialled, asked about, and refused in its shapes."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest

from metering.objects import ObjectId, Objects
from metering.store.writer import Step, Unit
from metering.terms import Cap, CapMeter, CapPeriod
from simulators.bland import START, BlandSimulator, fails
from tests.support.bland import OTHER, TO
from tests.support.calls import NUMBERS, before, exchange, variables
from tests.support.gateway import DatedClock

SLICE_S = 120
ENDS = [
    ({"status": "failed"}, "failed"),
    ({"status": "busy"}, "no_answer"),
    ({"status": "no-answer"}, "no_answer"),
    ({"seconds": 7, "answered_by": "voicemail"}, "voicemail"),
    ({"seconds": 90}, "completed"),
]


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


@pytest.mark.parametrize(("how", "status"), ENDS, ids=str)
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


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({}, "/dashboard/settings/billing"),
        ({"UPGRADE_URL": "https://example.com/plans"}, "https://example.com/plans"),
    ],
    ids=str,
)
@pytest.mark.parametrize("plan", [{"call_minutes": 0}, {"calls": 0}], ids=str)
async def test_a_plan_without_calls_is_403_with_where_to_upgrade(tmp_path, env, url, plan):
    async with stage(tmp_path, env=env, **plan) as (_, ada, _bob):
        refused = await dial(ada)
        assert (refused.status_code, refused.json()["upgrade_url"]) == (403, url)


@pytest.mark.parametrize(
    ("credits_", "minutes", "words"),
    [
        (2_000, 5, "are left (a shorter max_duration costs less). "),
        (2_000, 1, None),
        (1_000, 1, "are left. "),
    ],
    ids=str,
)
async def test_who_asks_for_more_than_is_left_is_told_of_a_shorter_call_where_there_is_one(
    tmp_path, credits_, minutes, words
):
    async with stage(tmp_path) as (at, ada, _):
        cap = Cap(CapMeter.CREDITS, CapPeriod.DAY, credits_)
        ada.headers["authorization"] = f"Bearer {await at.gateway.new_token('ada', caps=[cap])}"
        answer = await dial(ada, max_duration=minutes)
        if words is None:
            at.vendor.end(at.vendor.call(answer.json()["call_id"]), status="failed")
            await at.pass_time(20)
        else:
            assert (answer.status_code, words in answer.json()["error"]) == (402, True)


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
        async with asyncio.timeout(60):  # until it is sure that nothing was dialled
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
        assert recent.pop("id").startswith("req_")
        assert recent.pop("created_at").startswith("2026-11-20T00:00:")
        assert recent == {
            "call_id": call_id,
            "direction": "outbound",
            "to": TO,
            "from": NUMBERS["ada"],
            "status": "completed",
            "duration_seconds": 90,
            "summary": "A call of 90 seconds.",
        }
        others = (await bob.get(path)).json()
        assert (others["usage"]["total_calls"], others["recent_calls"]) == (0, [])
        assert (await ada.get(path, headers={"authorization": ""})).status_code == 401


async def recent_of(http):
    return (await http.get("/api/user/call/usage")).json()["recent_calls"]


async def test_a_call_that_goes_on_is_listed_with_whom_it_is_and_each_with_the_end_it_came_to(tmp_path):
    async with stage(tmp_path, call_minutes=60) as (at, ada, _):
        for how, _status in ENDS:
            at.clock.advance(1)
            call_id = (await dial(ada)).json()["call_id"]
            (running, *_) = await recent_of(ada)
            assert {
                name: running[name] for name in ("call_id", "to", "from", "status", "duration_seconds")
            } == {
                "call_id": call_id,
                "to": TO,
                "from": NUMBERS["ada"],
                "status": "initiated",
                "duration_seconds": None,
            }
            at.vendor.end(at.vendor.call(call_id), **how)
            await at.pass_time(20)
        shown = [(call["status"], call["duration_seconds"]) for call in await recent_of(ada)]
        assert shown == [(status, how.get("seconds", 0)) for how, status in reversed(ENDS)]


async def test_a_call_that_came_in_is_listed_with_who_called_and_one_of_before_with_what_was_booked(tmp_path):
    async with stage(tmp_path, call_minutes=60) as (at, ada, _):
        store = at.gateway.service.store
        for seconds in (0, 33):
            call_id = (await dial(ada)).json()["call_id"]
            at.vendor.end(at.vendor.call(call_id), seconds=seconds)
            await at.pass_time(20)
        await store.writer.submit(Unit((Step("DELETE FROM call_records", ()),)))
        call = at.vendor.receive(NUMBERS["ada"], OTHER)
        at.vendor.pick_up(call)
        await at.gateway.service.own.arrived.__self__.look_through()
        (running, *_) = await recent_of(ada)
        at.vendor.end(call, seconds=61)
        await at.pass_time(20)
        ended, *before = await recent_of(ada)
        assert (running["status"], running["to"], running["from"]) == ("initiated", NUMBERS["ada"], OTHER)
        assert ended | {"status": "initiated", "duration_seconds": None, "summary": None} == running
        assert (ended["direction"], ended["status"], ended["duration_seconds"]) == (
            "inbound",
            "completed",
            61,
        )
        assert [(one["status"], one["duration_seconds"], one["to"]) for one in before] == [
            ("completed", 33, None),
            ("failed", 0, None),
        ]
        columns = (
            "user_id, bland_call_id, direction, to_number, from_number, status, duration_seconds, cost_cents"
        )
        rows = await store.readers.rows(
            f"SELECT {columns}, completed_at FROM call_usage ORDER BY completed_at DESC"
        )
        ended_s, cents = call.ended_ms // 1000, -(-at.vendor.billed[-1].price_nanousd // 10_000_000)
        assert rows[0] == (
            "ada",
            call.call_id,
            "inbound",
            NUMBERS["ada"],
            OTHER,
            "completed",
            61,
            cents,
            ended_s,
        )
        assert [row[5] for row in rows[1:]] == [None, None]


async def test_what_is_kept_of_a_call_outlives_a_restart(tmp_path):
    clock = DatedClock(2026, 11, 20)
    async with BlandSimulator(clock=clock, tariff=START, fate_of=lambda _: None) as vendor:
        for number in NUMBERS.values():
            vendor.add_number(number, is_byot=False)
        async with before(vendor, tmp_path, clock, env=variables(vendor)) as at:
            ended, running = [await at.dialled(at.ada, to) for to in (TO, OTHER)]
            vendor.end(ended, seconds=61)
            await at.pass_time(20)
        async with before(vendor, tmp_path, clock, env=variables(vendor)) as at:
            vendor.end(running, status="busy")
            await at.pass_time(20)
            async with simple(at, at.ada) as ada:
                shown = {(call["to"], call["status"], call["summary"]) for call in await recent_of(ada)}
            assert shown == {(TO, "completed", "A call of 61 seconds."), (OTHER, "no_answer", None)}
            await at.gateway.assert_clean()
