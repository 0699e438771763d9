"""Phone calls through the proxy on real sockets: dialled once, held slice by slice, billed by the vendor's report, and ended."""

import asyncio
from collections import Counter

import orjson
import pytest

from metering.tasks import spawn, stop
from metering.users import Directory
from simulators.bland import (
    FATES,
    START,
    BlandSimulator,
    Fate,
    drops,
    fails,
    hangs,
    loses_reply,
    replays,
)
from simulators.script import Gate
from tests.support.bland import OTHER, TO
from tests.support.calls import NUMBERS, before, exchange, variables
from tests.support.gateway import DatedClock

SLICE_S = 120


async def until_booked(at, user, number=1, *, step_s=10.0):
    """What stands in the ledger of the user's calls, once there is so much."""
    async with asyncio.timeout(60):
        while len(booked := await user.booked()) < number:
            await at.pass_time(step_s)
            await asyncio.sleep(0.05)
    return booked


async def assert_settled(at, *users):
    """Ledger and vendor agree to the second and the nano-USD; nothing is held, nothing runs."""
    async with asyncio.timeout(60):
        while any([await user.running() for user in users]) or await at.gateway.service.store.readers.row(
            "SELECT 1 FROM deferred_work"
        ):
            await at.pass_time(10)
            await asyncio.sleep(0.05)
    assert not [call for call in at.vendor.dialled if not call.is_over]
    booked = [one for user in users for one in await user.booked()]
    assert sum(one["cost"] for one in booked) == sum(one.price_nanousd for one in at.vendor.billed)
    seconds = [await user.seconds() for user in users]
    assert (sum(spent for spent, _ in seconds), {held for _, held in seconds}) == (
        sum(one.seconds for one in at.vendor.billed),
        {0},
    )


# --- a call's life --------------------------------------------------------------------------------------


async def test_a_call_is_held_for_a_slice_and_billed_by_the_vendors_report(tmp_path):
    async with exchange(tmp_path) as at:
        call = await at.dialled(at.ada, "(310) 555-0111", metadata={"k": "v"}, max_duration=30)
        assert (call.to, call.from_number, call.max_duration_minutes) == (TO, NUMBERS["ada"], 30)
        assert call.metadata["k"] == "v"
        assert (await at.ada.seconds(), await at.ada.running()) == ((0, SLICE_S), 1)
        await at.pass_time(20)  # it rings, which costs nothing
        at.vendor.pick_up(call)
        for _ in range(30):
            await at.pass_time(10)
        spent, held = await at.ada.seconds()
        assert (spent, 300 + SLICE_S / 2 <= held <= 300 + SLICE_S + 2) == (0, True), (
            held
        )  # our clock is rounded up
        shown = (await at.ada.http.get(f"/v1/calls/{call.call_id}")).json()
        assert (shown["metadata"], shown["completed"]) == ({"k": "v"}, False)
        at.vendor.end(call)
        (entry,) = await until_booked(at, at.ada)
        assert (entry["outcome"], entry["basis"], entry["kind"]) == ("completed", "reported", "settle")
        assert (entry["notes"], entry["seconds"]) == ([], at.vendor.billed[0].seconds)
        await assert_settled(at, at.ada)


@pytest.mark.parametrize("is_byot", [False, True], ids=["own telephony", "byot"])
@pytest.mark.parametrize(
    ("how", "seconds"),
    [
        ({"seconds": 61}, 61),
        ({"seconds": 1}, 1),
        ({"seconds": 7, "answered_by": "voicemail"}, 7),
        ({"status": "failed"}, 0),
        ({"status": "busy"}, 0),
        ({"status": "no-answer"}, 0),
        ({"status": "canceled"}, 0),
        ({"status": "failed", "error_queue_status": "pre_queue_error"}, 0),
        ({"status": "unknown", "error_queue_status": "call_error"}, 0),
    ],
    ids=str,
)
async def test_however_a_call_ends_the_ledger_says_what_the_vendor_bills(tmp_path, how, seconds, is_byot):
    async with exchange(tmp_path, is_byot=is_byot) as at:
        call = await at.dialled(at.ada)
        assert call.is_byot is is_byot
        at.vendor.end(call, **how)
        (entry,) = await until_booked(at, at.ada)
        assert (entry["seconds"], entry["basis"], entry["notes"]) == (seconds, "reported", [])
        await assert_settled(at, at.ada)


async def test_calls_that_go_their_way_by_themselves(tmp_path):
    async with exchange(tmp_path, simulated={"fate_of": FATES.get}) as at:
        numbers = [number for number, fate in FATES.items() if fate.talks_s is not None]
        for number in numbers:
            await at.dialled(at.ada, number)
        await until_booked(at, at.ada, len(numbers))
        await assert_settled(at, at.ada)


async def test_a_price_of_the_vendors_that_is_not_the_tables_is_told(tmp_path):
    async with exchange(tmp_path) as at:
        call = await at.dialled(at.ada)
        call.details_say["price"] = 0.5
        at.vendor.end(call, seconds=60)
        (entry,) = await until_booked(at, at.ada)
        assert (entry["cost"], entry["notes"]) == (140_000_000, ["vendor_price_differs"])
        metrics = await at.ada.http.get(f"{at.gateway.url}/metrics")
        assert 'automna_vendor_price_differences_total{surface="bland"} 1.0' in metrics.text


# --- what may be asked for ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"phone_number": "+19005550111"},
        {"phone_number": "+13109760111"},
        {"phone_number": "911"},
        {"phone_number": "+18765550111"},
        {"phone_number": "+442071838750"},
        {"phone_number": None},
        {"max_duration": 0},
        {"max_duration": "5"},
        {"max_duration": 721},
        {"retry": {"wait": 10}},
        {"start_time": "2026-11-21T12:00:00Z"},
        {"transfer_phone_number": OTHER},
        {"transfer_list": {"default": OTHER}},
        {"pathway_id": "p1"},
        {"tools": []},
        {"dynamic_data": [{"url": "https://internal.example"}]},
        {"webhook": "https://elsewhere.example"},
        {"webhook_events": ["call"]},
        {"encrypted_key": "k"},
        {"voicemail": {"action": "leave_message_and_sms"}},
        {"voicemail_action": "leave_message_and_sms"},
        {"voicemail": {"sms": {}}},
        {"metadata": {"automna": "automna-req_1"}},
        {"metadata": "a text"},
        {"a_new_field": 1},
    ],
    ids=str,
)
async def test_what_may_not_be_asked_for_is_refused_and_holds_nothing(tmp_path, fields):
    async with exchange(tmp_path) as at:
        answer = await at.ada.http.post("/v1/calls", json={"phone_number": TO, "task": "x", **fields})
        assert (answer.status_code, set(answer.json())) == (400, {"status", "message", "errors"})
        assert answer.json()["message"].startswith(next(iter(fields)))
        assert (at.vendor.dialled, await at.ada.booked(), await at.ada.seconds()) == ([], [], (0, 0))


async def test_a_call_comes_from_a_number_of_its_users_own(tmp_path):
    async with exchange(tmp_path) as at:
        answer = await at.ada.dials(**{"from": NUMBERS["bob"]})
        assert answer.status_code == 404
        call = await at.dialled(at.ada, **{"from": NUMBERS["ada"]})
        assert [one.from_number for one in at.vendor.dialled] == [NUMBERS["ada"]]
        at.vendor.end(call)
        await assert_settled(at, at.ada)


async def test_the_operators_twilio_account_is_the_operators(tmp_path):
    async with exchange(tmp_path, is_byot=True) as at:
        answer = await at.ada.http.post(
            "/v1/calls",
            json={"phone_number": TO, "task": "x"},
            headers={"encrypted_key": "a callers own", "x-api-key": at.ada.token},
        )
        assert answer.status_code == 200
        (call,) = at.vendor.dialled
        assert call.is_byot
        assert at.ada.token not in str(call.origin.headers)
        at.vendor.end(call)
        await assert_settled(at, at.ada)


@pytest.mark.parametrize("given", ["{}", "Bearer {}", "bearer {}"])
async def test_the_token_stands_bare_or_after_bearer(tmp_path, given):
    async with exchange(tmp_path) as at:
        answer = await at.ada.http.get("/v1/calls", headers={"authorization": given.format(at.ada.token)})
        assert answer.json() == {"total_count": 0, "count": 0, "calls": []}


@pytest.mark.parametrize(
    ("refusal", "status"),
    [(fails(402), 503), (fails(401), 503), (fails(429), 429), (fails(400), 400), (fails(418), 418)],
    ids=["balance", "key", "rate", "request", "teapot"],
)
async def test_a_vendors_refusal_costs_nothing_and_shows_nothing_of_the_account(tmp_path, refusal, status):
    async with exchange(tmp_path) as at:
        at.vendor.next(refusal)
        answer = await at.ada.dials()
        assert answer.status_code == status
        assert not [word for word in at.vendor.account_words() if word in answer.text]
        assert "balance" not in answer.text.lower()
        (entry,) = await at.ada.booked()
        assert (entry["outcome"], entry["cost"]) == ("upstream_failed", 0)
        await assert_settled(at, at.ada)


async def test_a_number_that_was_called_a_moment_ago_is_not_said_to_be_anybodys(tmp_path):
    async with exchange(tmp_path) as at:
        call = await at.dialled(at.bob)
        answer = await at.ada.dials()
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "10")
        assert TO not in answer.text
        at.vendor.end(call)
        await assert_settled(at, at.ada, at.bob)


# --- what the plan and the budget allow ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "fit"),
    [({"call_minutes": 6}, 3), ({"calls": 3}, 3), ({"credits_per_month": 6_000}, 2)],
    ids=["minutes", "at once", "credits"],
)
async def test_of_many_racing_dials_as_many_are_made_as_fit(tmp_path, limits, fit):
    async with exchange(tmp_path, **limits) as at:
        numbers = [f"+1310555{number:04}" for number in range(100)]
        answers = await asyncio.gather(*(at.ada.dials(number) for number in numbers))
        made = Counter(answer.status_code for answer in answers)
        assert (made[200], len(at.vendor.dialled), made[200] + made[402] + made[429]) == (fit, fit, 100), made
        for call in at.vendor.dialled:
            at.vendor.end(call, seconds=30)
        await until_booked(at, at.ada, fit)
        await assert_settled(at, at.ada)


async def test_a_call_is_cut_to_what_the_plan_has_left(tmp_path):
    async with exchange(tmp_path, call_minutes=3) as at:
        call = await at.dialled(at.ada, max_duration=30)
        assert call.max_duration_minutes == 3
        for _ in range(20):  # it rings longer than it may talk, which is not its user's loss
            await at.pass_time(10)
        at.vendor.pick_up(call)
        entry = (await until_booked(at, at.ada))[0]
        assert (entry["seconds"], call.ended_by) in {(180, "ASSISTANT"), (180, "API")} or entry[
            "seconds"
        ] <= 190
        refused = await at.ada.dials(OTHER)
        assert refused.status_code == 402
        await assert_settled(at, at.ada)


@pytest.mark.parametrize(
    "limits", [{"call_minutes": 5}, {"credits_per_month": 7_000}], ids=["minutes", "credits"]
)
async def test_a_call_whose_plan_is_used_up_is_stopped(tmp_path, limits):
    async with exchange(tmp_path, **limits) as at:
        call = await at.dialled(at.ada, max_duration=30)
        assert call.max_duration_minutes == 5
        call.max_duration_minutes = 60  # the vendor does not obey
        await at.pass_time(30)
        at.vendor.pick_up(call)
        async with asyncio.timeout(60):
            while not call.is_over:
                await at.pass_time(10)
        assert call.ended_by == "API"
        booked = await until_booked(at, at.ada)
        assert booked[0]["outcome"] == "budget_ended"
        assert 180 <= booked[0]["seconds"] <= 300 + 15
        await assert_settled(at, at.ada)


@pytest.mark.parametrize(
    "times",
    [
        {"started_at": None, "created_at": "2026-11-20T12:00:00Z"},
        {"started_at": "2026-11-20T23:00:00Z", "created_at": "2026-11-20T12:00:00Z"},
        {"started_at": "9999-12-31T23:59:59Z", "created_at": "0001-01-01T00:00:00Z"},
    ],
    ids=["not told", "by another clock", "nonsense"],
)
async def test_a_call_whose_beginning_nobody_can_tell_is_stopped_all_the_same(tmp_path, times):
    async with exchange(tmp_path, call_minutes=5) as at:
        call = await at.dialled(at.ada, max_duration=30)
        call.max_duration_minutes = 600  # the vendor does not obey
        at.vendor.pick_up(call)
        told = orjson.dumps({"call_id": call.call_id, "completed": False, "queue_status": "started", **times})
        path = f"/v1/calls/{call.call_id}"
        at.vendor.script = lambda request: (
            replays(told, "application/json") if (request.method, request.path) == ("GET", path) else None
        )
        passed_s = 0
        while not call.is_over and passed_s < 3_600:
            await at.pass_time(10)
            passed_s += 10
        assert (call.ended_by, 300 <= passed_s <= 600 + 300 + 15) == ("API", True), passed_s
        at.vendor.script = None
        (booked, *_) = await until_booked(at, at.ada)
        assert booked["outcome"] == "budget_ended"
        await assert_settled(at, at.ada)


# --- answers that were lost -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lost",
    [loses_reply(), loses_reply(is_reset=True), fails(500, works=True)],
    ids=["closed", "reset", "an error"],
)
async def test_a_call_of_which_nobody_was_told_is_found_stopped_and_billed_and_never_dialled_twice(
    tmp_path, lost
):
    async with exchange(tmp_path, simulated={"appears_after_s": 5}) as at:
        theirs = await at.dialled(at.bob)
        await at.pass_time(20)
        at.vendor.next(lost)
        answer = await at.ada.dials(max_duration=30)
        assert answer.status_code in {500, 502}
        assert await at.ada.running() == 1, "held until it is known what became of it"
        call = at.vendor.dialled[-1]
        at.vendor.pick_up(call)
        async with asyncio.timeout(60):
            while not call.is_over:
                await at.pass_time(3)
                await asyncio.sleep(0.01)
        (entry,) = await until_booked(at, at.ada)
        assert entry["basis"] == "reported"
        assert len(at.vendor.dialled) == 2
        assert not theirs.is_over
        at.vendor.end(theirs)
        await assert_settled(at, at.ada, at.bob)


async def test_what_the_vendor_never_dialled_costs_nothing(tmp_path):
    async with exchange(tmp_path) as at:
        at.vendor.next(drops())
        assert (await at.ada.dials()).status_code == 502
        (entry,) = await until_booked(at, at.ada)
        assert (entry["cost"], entry["seconds"], entry["notes"]) == (0, 0, ["not_found_at_vendor"])
        assert at.vendor.dialled == []
        await assert_settled(at, at.ada)


async def test_a_client_that_leaves_while_its_call_is_dialled_leaves_none_behind(tmp_path):
    async with exchange(tmp_path) as at:
        gate = Gate()
        at.vendor.next(hangs(gate=gate))
        asking = spawn(at.ada.http.post("/v1/calls", json={"phone_number": TO, "task": "x"}), name="ask")
        await gate.reached()
        await stop(asking)
        gate.open()
        await at.gateway.until(lambda: at.vendor.dialled and not at.gateway.service.engine.open_exchanges)
        (entry,) = await until_booked(at, at.ada)
        assert entry["basis"] == "reported"
        assert len(at.vendor.dialled) == 1
        await assert_settled(at, at.ada)


async def test_a_call_outlives_the_service(tmp_path):
    clock = DatedClock(2026, 11, 20)
    async with BlandSimulator(clock=clock, tariff=START, fate_of=lambda _: None) as vendor:
        for number in NUMBERS.values():
            vendor.add_number(number, is_byot=False)
        async with before(vendor, tmp_path, clock, env=variables(vendor)) as at:
            call = await at.dialled(at.ada)
            vendor.pick_up(call)
            vendor.next(loses_reply())
            assert (await at.bob.dials(OTHER)).status_code == 502
        clock.advance(60)
        async with before(vendor, tmp_path, clock, env=variables(vendor)) as at:
            unknown = vendor.dialled[-1]
            assert (await at.ada.http.get(f"/v1/calls/{call.call_id}")).status_code == 200
            async with asyncio.timeout(60):
                while not unknown.is_over:
                    await at.pass_time(3)
                    await asyncio.sleep(0.01)
            assert not call.is_over
            vendor.end(call)
            await until_booked(at, at.ada)
            await assert_settled(at, at.ada, at.bob)
            assert len(vendor.dialled) == 2
            await at.gateway.assert_clean()


async def test_the_call_of_a_disabled_user_is_stopped_and_that_of_others_goes_on(tmp_path):
    async with exchange(tmp_path) as at:
        call, theirs = await at.dialled(at.ada), await at.dialled(at.bob, OTHER)
        at.vendor.pick_up(call)
        await Directory(at.gateway.service.store, at.clock).disable("ada")
        await at.gateway.until(lambda: call.is_over)
        assert (call.ended_by, theirs.is_over) == ("API", False)
        at.vendor.end(theirs)
        await until_booked(at, at.ada)
        await assert_settled(at, at.ada, at.bob)


# --- walls ----------------------------------------------------------------------------------------------


async def test_each_user_sees_their_own_calls_only(tmp_path):
    async with exchange(tmp_path) as at:
        mine, theirs = await at.dialled(at.ada), await at.dialled(at.bob, OTHER, record=True)
        listed = (await at.ada.http.get("/v1/calls", params={"ascending": "true"})).json()
        assert [one["call_id"] for one in listed["calls"]] == [mine.call_id]
        assert (listed["total_count"], listed["count"]) == (1, 1)
        active = (await at.ada.http.get("/v1/calls/active")).json()
        assert [one["call_id"] for one in active["data"]] == [mine.call_id]
        assert "org_" not in orjson.dumps(active).decode()
        at.vendor.end(theirs, seconds=5)
        for method, path in (
            ("GET", f"/v1/calls/{theirs.call_id}"),
            ("GET", f"/v1/calls/{theirs.call_id}/correct"),
            ("POST", f"/v1/calls/{theirs.call_id}/stop"),
            ("GET", f"/v1/recordings/{theirs.call_id}"),
            ("GET", f"/v1/event_stream/{theirs.call_id}"),
        ):
            answer = await at.ada.http.request(method, path)
            assert (answer.status_code, answer.json()["message"]) == (404, "Call not found"), path
            own = await at.bob.http.request(method, path)
            assert own.status_code == (400 if method == "POST" else 200), path
        for method, path in (
            ("GET", "/v1/me"),
            ("POST", "/v1/calls/active/stop"),
            ("POST", f"/v1/calls/{mine.call_id}/analyze"),
            ("POST", f"/v1/calls/{mine.call_id}/listen"),
            ("POST", "/v1/sms/send"),
            ("GET", "/v1/inbound"),
            ("POST", "/v1/numbers/purchase"),
        ):
            assert (await at.ada.http.request(method, path, json={})).status_code == 404, path
        assert (await at.ada.http.get("/v1/calls?limit=1")).status_code == 400
        assert not mine.is_over
        stopped = await at.ada.http.post(f"/v1/calls/{mine.call_id}/stop")
        assert stopped.status_code == 200
        await until_booked(at, at.ada)
        await assert_settled(at, at.ada, at.bob)


async def test_what_a_vendor_says_of_a_call_that_talks_on_is_not_its_end(tmp_path):
    fate = Fate(rings_s=30, talks_s=400)
    async with exchange(tmp_path, simulated={"fate_of": lambda _: fate}) as at:
        await at.dialled(at.ada, max_duration=8)
        (entry,) = await until_booked(at, at.ada)
        assert (entry["seconds"], entry["outcome"]) == (400, "completed")
        await assert_settled(at, at.ada)
