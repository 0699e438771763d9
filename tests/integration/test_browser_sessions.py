"""Browser sessions through the proxy on real sockets: held slice by slice, billed by the vendor's report, and ended."""

import asyncio

import orjson
import pytest

from automna_proxy.service import swept_once
from metering.orphans import State
from metering.store.writer import Step, Unit
from metering.tasks import spawn, stop
from metering.terms import Cap, CapMeter, CapPeriod
from simulators.browserbase import (
    PROJECT_ID,
    BrowserbaseSimulator,
    Habits,
    drops,
    fails,
    hangs,
    loses_reply,
    replays,
)
from simulators.script import Gate
from tests.support.browserbase import House, cost_nanousd, house, user_of, variables
from tests.support.gateway import DatedClock, running_gateway

SLICE_S = 120


async def created(user, **fields):
    answer = await user.http.post("/v1/sessions", json=fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def released(user, session):
    answer = await user.http.post(f"/v1/sessions/{session['id']}", json={"status": "REQUEST_RELEASE"})
    assert answer.status_code == 200, answer.text


async def until_booked(at, user, number=1, *, step_s=15.0):
    """What stands in the ledger of the user's sessions, once there is so much."""
    async with asyncio.timeout(60):
        while len(booked := await user.booked()) < number:
            await at.pass_time(step_s)
            await asyncio.sleep(0.05)
    return booked


async def assert_settled(at, user):
    """Ledger and vendor agree to the second; nothing is held, nothing runs."""
    async with asyncio.timeout(60):
        while await user.running() or await at.gateway.service.store.readers.row(
            "SELECT 1 FROM deferred_work"
        ):
            await at.pass_time(15)
            await asyncio.sleep(0.05)
    assert not [session for session in at.vendor.sessions if session.is_live]
    booked = await user.booked()
    billed = [one.seconds for one in (session.billed() for session in at.vendor.sessions) if one is not None]
    assert sorted(one["seconds"] for one in booked if one["seconds"]) == sorted(billed)
    assert sum(one["cost"] for one in booked) == sum(map(cost_nanousd, billed))
    assert await user.seconds() == (sum(billed), 0)


# --- a session's life -----------------------------------------------------------------------------------


async def test_a_session_is_held_for_a_slice_and_billed_by_the_vendors_report(tmp_path):
    async with house(tmp_path) as at:
        session = await created(at.ada, timeout=3_600, keepAlive=True, projectId="another")
        assert (await at.ada.seconds(), await at.ada.running()) == ((0, SLICE_S), 1)
        (real,) = at.vendor.sessions
        assert real.as_json(proxy_bytes=0, tells_end=True)["projectId"] == PROJECT_ID
        assert session["userMetadata"] == {}
        for _ in range(20):
            await at.pass_time(15)
        spent, held = await at.ada.seconds()
        assert (spent, 300 + SLICE_S / 2 <= held <= 300 + SLICE_S + 10) == (0, True), held
        await released(at.ada, session)
        (entry,) = await until_booked(at, at.ada)
        assert (entry["outcome"], entry["basis"], entry["kind"]) == ("completed", "reported", "settle")
        assert entry["seconds"] >= 300
        await assert_settled(at, at.ada)


async def test_a_short_session_costs_a_minute(tmp_path):
    async with house(tmp_path) as at:
        session = await created(at.ada)
        await at.pass_time(5)
        await released(at.ada, session)
        (entry,) = await until_booked(at, at.ada)
        assert (entry["seconds"], entry["cost"]) == (60, cost_nanousd(60))
        await assert_settled(at, at.ada)


@pytest.mark.parametrize("fields", [{"timeout": 30}, {"timeout": "60"}, {"userMetadata": {"automna": "x"}}])
async def test_what_may_not_be_asked_for_is_refused_and_holds_nothing(tmp_path, fields):
    async with house(tmp_path) as at:
        answer = await at.ada.http.post("/v1/sessions", json=fields)
        assert (answer.status_code, set(answer.json())) == (400, {"statusCode", "error", "message"})
        assert (at.vendor.sessions, await at.ada.booked()) == ([], [])


async def test_a_vendors_refusal_costs_nothing_and_shows_nothing_of_the_account(tmp_path):
    async with house(tmp_path) as at:
        at.vendor.next(fails(429))
        answer = await at.ada.http.post("/v1/sessions", json={})
        assert answer.status_code == 429
        assert "concurrent" not in answer.text
        (entry,) = await at.ada.booked()
        assert (entry["outcome"], entry["cost"]) == ("upstream_failed", 0)
        await assert_settled(at, at.ada)


# --- what the plan and the budget allow ------------------------------------------------------------------


async def test_of_many_racing_creations_as_many_run_as_the_plan_allows(tmp_path):
    async with house(tmp_path, browsers=3) as at:
        answers = await asyncio.gather(*(at.ada.http.post("/v1/sessions", json={}) for _ in range(100)))
        assert sorted(answer.status_code for answer in answers) == [201] * 3 + [429] * 97
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["message"] == "Too many browser sessions at once: 3 may run on the test plan."
        assert refused.headers["x-should-retry"] == "false"
        assert len(at.vendor.sessions) == 3
        await created(at.bob)
        for answer in answers:
            if answer.status_code == 201:
                await released(at.ada, answer.json())
        await released(at.bob, {"id": at.vendor.sessions[-1].id})
        await until_booked(at, at.ada, 3)
        await until_booked(at, at.bob)


async def test_a_session_beyond_the_months_end_is_held_and_billed_in_the_month_that_it_began_in(tmp_path):
    async with house(tmp_path, browser_minutes=20) as at:
        at.clock.advance(10 * 86_400 + 23 * 3_600 + 55 * 60)  # five minutes to December
        at.vendor.pass_time()
        session = await created(at.ada, timeout=900, keepAlive=True)
        for _ in range(40):
            await at.pass_time(15)
        assert (await at.ada.account("browser_seconds", "2026-12"), await at.ada.running()) == ((0, 0), 1)
        assert (await at.ada.seconds())[1] > 600
        await released(at.ada, session)
        (entry,) = await until_booked(at, at.ada)
        assert await at.ada.seconds() == (entry["seconds"], 0)
        assert await at.ada.account("money", "2026-12") == (0, 0)
        assert await at.ada.account("money") == (entry["cost"], 0)


@pytest.mark.parametrize("what", ["minutes", "credits"])
async def test_a_session_whose_plan_is_used_up_is_ended_within_a_slice(tmp_path, what):
    limits = {"browser_minutes": 5} if what == "minutes" else {"credits_per_month": 100}
    async with house(tmp_path, **limits) as at:
        session = await created(at.ada, timeout=3_600, keepAlive=True)
        (real,) = at.vendor.sessions
        left_s = (real.expires_ms - real.created_ms) // 1000
        assert 290 <= left_s <= 300, "the vendor is told how long is left"
        real.expires_ms += 3_600_000  # and does not obey
        async with asyncio.timeout(60):
            while real.is_live:
                await at.pass_time(15)
                await asyncio.sleep(0)
        entry, *above = await until_booked(at, at.ada)
        assert [one["kind"] for one in above] in ([], ["overage"])
        assert entry["outcome"] == "budget_ended"
        assert 180 <= entry["seconds"] <= 300 + 30
        assert session["id"] == real.id
        answer = await at.ada.http.post("/v1/sessions", json={})
        assert answer.status_code == 402


async def test_a_session_is_ended_by_a_cap_of_the_token_that_its_own_comes_from(tmp_path):
    async with house(tmp_path) as at:
        cap = Cap(CapMeter.CREDITS, CapPeriod.DAY, 100)
        _, parent = await at.gateway.directory.create_token("ada", caps=(cap,))
        child = await at.gateway.new_token("ada", parent_id=parent.id)
        answer = await at.ada.http.post(
            "/v1/sessions", json={"timeout": 3_600, "keepAlive": True}, headers={"x-bb-api-key": child}
        )
        assert answer.status_code == 201
        (real,) = at.vendor.sessions
        async with asyncio.timeout(60):
            while real.is_live:
                await at.pass_time(15)
                await asyncio.sleep(0)
        entry, *above = await until_booked(at, at.ada)
        assert (entry["outcome"], 180 <= entry["seconds"] <= 330) == ("budget_ended", True)
        caps = await at.gateway.service.store.readers.rows(
            "SELECT owner LIKE 'family:%' OR owner LIKE 'token:%', spent, held FROM accounts WHERE meter = 'spend'"
        )
        assert caps == [(1, sum(one["cost"] for one in (entry, *above)), 0)]


# --- answers that were lost -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lost",
    [loses_reply(), loses_reply(is_reset=True), fails(500, works=True)],
    ids=["closed", "reset", "an error"],
)
async def test_a_session_of_which_nobody_was_told_is_found_ended_and_billed(tmp_path, lost):
    async with house(tmp_path) as at:
        at.vendor.next(lost)
        answer = await at.ada.http.post("/v1/sessions", json={"timeout": 3_600, "keepAlive": True})
        assert answer.status_code in {500, 502}
        assert await at.ada.running() == 1, "held until it is known what became of it"
        (real,) = at.vendor.sessions
        async with asyncio.timeout(60):
            while real.is_live:
                await at.pass_time(3)
                await asyncio.sleep(0.01)
        (entry,) = await until_booked(at, at.ada)
        assert entry["basis"] == "reported"
        await assert_settled(at, at.ada)


async def test_a_session_that_is_found_only_after_its_hold_has_expired_is_ended_and_billed(tmp_path):
    async with house(tmp_path) as at:
        at.vendor.next(loses_reply())
        await at.ada.http.post("/v1/sessions", json={"timeout": 3_600, "keepAlive": True})
        at.vendor.script = lambda request: fails(500) if request.method == "GET" else None
        async with asyncio.timeout(60):
            while await at.ada.running():
                await at.pass_time(100)
                await asyncio.sleep(0.05)
        assert [entry["kind"] for entry in await at.ada.booked()] == ["expire"]
        (real,) = at.vendor.sessions
        assert real.is_live
        at.vendor.script = None
        expired, adjusted = await until_booked(at, at.ada, 2)
        assert not real.is_live
        billed = real.billed().seconds
        assert (adjusted["kind"], adjusted["seconds"]) == ("adjust", billed)
        assert expired["cost"] + adjusted["cost"] == cost_nanousd(billed)
        assert await at.ada.seconds() == (billed, 0)
        assert (await at.ada.http.get(f"/v1/sessions/{real.id}")).status_code == 200


async def test_what_the_vendor_never_began_costs_nothing(tmp_path):
    async with house(tmp_path) as at:
        at.vendor.next(drops())
        assert (await at.ada.http.post("/v1/sessions", json={})).status_code == 502
        (entry,) = await until_booked(at, at.ada)
        assert (entry["cost"], entry["seconds"], entry["notes"]) == (0, 0, ["not_found_at_vendor"])
        await assert_settled(at, at.ada)


async def test_a_client_that_leaves_while_its_session_is_made_leaves_none_behind(tmp_path):
    async with house(tmp_path) as at:
        gate = Gate()
        at.vendor.next(hangs(gate=gate))
        asking = spawn(
            at.ada.http.post("/v1/sessions", json={"keepAlive": True, "timeout": 3_600}), name="ask"
        )
        await gate.reached()
        await stop(asking)
        gate.open()
        await at.gateway.until(lambda: at.vendor.sessions and not at.gateway.service.engine.open_exchanges)
        booked = await until_booked(at, at.ada)
        assert len(booked) == 1, booked
        (entry,) = booked
        assert entry["basis"] == "reported"
        await assert_settled(at, at.ada)


async def test_a_session_that_was_asked_about_often_is_not_given_up(tmp_path):
    async with house(tmp_path) as at:
        session = await created(at.ada, keepAlive=True, timeout=3_600)
        often = Step("UPDATE deferred_work SET polls = 100000", ())
        await at.gateway.service.store.writer.submit(Unit((often,)))
        for _ in range(10):
            await at.pass_time(15)
        assert (await at.ada.seconds())[1] > SLICE_S, "slices are granted still"
        await released(at.ada, session)
        await until_booked(at, at.ada)
        await assert_settled(at, at.ada)


async def test_a_vendor_that_does_not_know_a_session_for_once_does_not_end_it(tmp_path):
    async with house(tmp_path) as at:
        session = await created(at.ada, keepAlive=True, timeout=3_600)
        for _ in range(4):
            await at.pass_time(15)
        at.vendor.next_on(f"GET /v1/sessions/{session['id']}", fails(404))
        await at.pass_time(15)
        assert (await at.ada.booked(), await at.ada.running()) == ([], 1)
        await released(at.ada, session)
        (entry,) = await until_booked(at, at.ada)
        assert (entry["basis"], entry["seconds"] >= 75) == ("reported", True)
        await assert_settled(at, at.ada)


async def test_a_session_that_a_vendor_does_not_know_now_and_then_is_not_lost(tmp_path):
    async with house(tmp_path) as at:
        session = await created(at.ada, keepAlive=True, timeout=3_600)
        for _ in range(5):
            at.vendor.next_on(f"GET /v1/sessions/{session['id']}", fails(404))
            await at.pass_time(15)
            await at.pass_time(15)
        assert (await at.ada.booked(), await at.ada.running()) == ([], 1)
        await released(at.ada, session)
        (entry,) = await until_booked(at, at.ada)
        assert (entry["basis"], entry["seconds"] >= 150) == ("reported", True)
        await assert_settled(at, at.ada)


async def test_a_session_that_was_found_late_is_not_lost_by_the_next_word(tmp_path):
    async with house(tmp_path) as at:
        at.vendor.next(loses_reply())
        await at.ada.http.post("/v1/sessions", json={"timeout": 3_600, "keepAlive": True})
        (real,) = at.vendor.sessions
        listed = "GET /v1/sessions"
        at.vendor.next_on(listed, replays(b"[]", content_type="application/json"))
        at.vendor.next_on(listed, replays(b"[]", content_type="application/json"))
        at.vendor.next_on(f"GET /v1/sessions/{real.id}", fails(404))
        async with asyncio.timeout(60):
            while real.is_live:
                await at.pass_time(15)
                await asyncio.sleep(0.01)
        (entry,) = await until_booked(at, at.ada)
        assert entry["basis"] == "reported"
        await assert_settled(at, at.ada)


async def test_a_session_that_is_lost_is_billed_for_the_time_that_it_was_seen_to_run(tmp_path):
    async with house(tmp_path) as at:
        session = await created(at.ada, keepAlive=True, timeout=3_600)
        for _ in range(40):
            await at.pass_time(15)
        for _ in range(3):
            at.vendor.next_on(f"GET /v1/sessions/{session['id']}", fails(404))
        (entry,) = await until_booked(at, at.ada)
        assert (entry["basis"], entry["notes"]) == ("estimated", ["lost_at_vendor"])
        assert 600 <= entry["seconds"] <= 630
        assert entry["cost"] == cost_nanousd(entry["seconds"])
        assert (await at.ada.seconds(), await at.ada.running()) == ((entry["seconds"], 0), 0)


async def test_a_session_of_which_nothing_is_heard_is_billed_as_it_was_seen_until_its_report_comes(tmp_path):
    async with house(tmp_path) as at:
        session = await created(at.ada, keepAlive=True, timeout=3_600)
        for _ in range(40):
            await at.pass_time(15)
        at.vendor.script = lambda request: fails(500) if request.method == "GET" else None
        async with asyncio.timeout(60):
            while not (booked := await at.ada.booked()):
                await at.pass_time(60)
                await asyncio.sleep(0.02)
        (entry,) = booked
        assert (entry["kind"], 600 <= entry["seconds"] <= 630) == ("expire", True)
        assert entry["cost"] == cost_nanousd(entry["seconds"])
        at.vendor.script = None
        await released(at.ada, session)
        _, adjusted = await until_booked(at, at.ada, 2)
        (billed,) = [one.billed().seconds for one in at.vendor.sessions]
        assert (adjusted["seconds"], entry["cost"] + adjusted["cost"]) == (billed, cost_nanousd(billed))
        assert await at.ada.seconds() == (billed, 0)


async def test_a_session_whose_hold_expired_in_its_vendors_silence_is_ended_when_that_is_heard_again(
    tmp_path,
):
    async with house(tmp_path) as at:
        await created(at.ada, keepAlive=True, timeout=21_600)
        at.vendor.script = lambda request: fails(500) if request.method == "GET" else None
        async with asyncio.timeout(60):
            while not await at.ada.booked():
                await at.pass_time(60)
                await asyncio.sleep(0.02)
        (real,) = at.vendor.sessions
        assert (real.is_live, await at.ada.running()) == (True, 0), "it runs, and holds nothing"
        at.vendor.script = None
        expired, adjusted = await until_booked(at, at.ada, 2)
        assert not real.is_live
        assert (expired["kind"], adjusted["kind"]) == ("expire", "adjust")
        await assert_settled(at, at.ada)


@pytest.mark.parametrize("ended", ["9999-12-31T23:59:59Z", "1970-01-01T00:00:00Z"])
async def test_an_end_that_cannot_be_is_not_billed(tmp_path, ended):
    async with house(tmp_path) as at:
        session = await created(at.ada, keepAlive=True, timeout=3_600)
        for _ in range(40):
            await at.pass_time(15)
        told = orjson.dumps({**session, "status": "COMPLETED", "endedAt": ended})
        at.vendor.next_on(f"GET /v1/sessions/{session['id']}", replays(told, "application/json"))
        (entry,) = await until_booked(at, at.ada)
        assert (entry["basis"], entry["notes"]) == ("estimated", ["session_times_unsound"])
        assert 600 <= entry["seconds"] <= 630
        assert await at.ada.seconds() == (entry["seconds"], 0)


async def test_a_session_outlives_a_service_that_stood_still(tmp_path):
    clock = DatedClock(2026, 11, 20)
    async with BrowserbaseSimulator(clock=clock) as vendor:
        serving = {"env": variables(vendor), "clock": clock, "browser_minutes": 600, "browsers": 1}
        async with running_gateway(tmp_path, **serving) as gateway, user_of(gateway, "ada") as ada:
            await created(ada, keepAlive=True, timeout=14_400)
        clock.advance(7_200)
        async with running_gateway(tmp_path, **serving) as gateway, user_of(gateway, "ada") as ada:
            at = House(vendor, gateway, clock, {"ada": ada})
            async with asyncio.timeout(60):
                while (await ada.seconds())[1] < 7_200:
                    await asyncio.sleep(0.02)
            assert (await ada.booked(), await ada.running()) == ([], 1)
            assert (await ada.http.post("/v1/sessions", json={})).status_code == 429, "it runs still"
            await released(ada, {"id": vendor.sessions[0].id})
            (entry,) = await until_booked(at, ada)
            assert (entry["kind"], entry["basis"]) == ("settle", "reported")
            await assert_settled(at, ada)


async def test_a_session_that_was_made_without_a_word_of_its_status_is_held_and_billed(tmp_path):
    async with house(tmp_path) as at:
        session = await created(at.ada)  # whose vendor keeps it under the id that is told again
        at.vendor.next_on(
            "POST /v1/sessions", replays(b'{"id":"%s"}' % session["id"].encode(), "application/json")
        )
        assert (await at.ada.http.post("/v1/sessions", json={"keepAlive": True})).status_code == 200
        assert (await at.ada.booked(), await at.ada.running()) == ([], 2)
        await released(at.ada, session)
        booked = await until_booked(at, at.ada, 2)
        assert [entry["basis"] for entry in booked] == ["reported", "reported"]


async def test_a_session_that_is_found_after_it_was_booked_as_never_begun_is_ended(tmp_path):
    async with house(tmp_path) as at:
        at.vendor.next(loses_reply())
        await at.ada.http.post("/v1/sessions", json={"timeout": 3_600, "keepAlive": True})
        for _ in range(3):
            at.vendor.next_on("GET /v1/sessions", replays(b"[]", "application/json"))
        (entry,) = await until_booked(at, at.ada)
        assert entry["notes"] == ["not_found_at_vendor"]
        (real,) = at.vendor.sessions
        at.vendor.next_on(f"POST /v1/sessions/{real.id}", fails(500))
        service = at.gateway.service
        for state in (State.ATTRIBUTABLE, State.BOUND):
            found = await swept_once(service.settings, service.store, at.clock, is_dry=False)
            assert [orphan.state for sweep in found for orphan in sweep.orphans] == [state]
        at.clock.advance(15)
        at.vendor.pass_time()
        assert not real.is_live
        assert len(await at.ada.booked()) == 1


# --- walls ----------------------------------------------------------------------------------------------


async def test_each_user_sees_their_own_sessions_only(tmp_path):
    async with house(tmp_path) as at:
        mine = await created(at.ada, userMetadata={"k": "v"})
        theirs = await created(at.bob)
        listed = (await at.ada.http.get("/v1/sessions")).json()
        assert [one["id"] for one in listed] == [mine["id"]]
        assert listed[0]["userMetadata"] == {"k": "v"}
        for method, path in (
            ("GET", ""),
            ("POST", ""),
            ("GET", "/debug"),
            ("GET", "/logs"),
            ("GET", "/downloads"),
            ("POST", "/uploads"),
        ):
            answer = await at.ada.http.request(method, f"/v1/sessions/{theirs['id']}{path}", json={})
            assert answer.status_code == 404, (method, path)
        assert (await at.ada.http.get("/v1/projects")).status_code == 404
        assert (await at.ada.http.get("/v1/downloads")).status_code == 400
        await released(at.ada, mine)
        await released(at.bob, theirs)
        await until_booked(at, at.ada)
        await until_booked(at, at.bob)


async def test_a_session_that_ends_slowly_is_billed_to_its_end(tmp_path):
    async with house(tmp_path) as at:
        at.vendor.set_habits(Habits(end_s=40))
        session = await created(at.ada, keepAlive=True)
        await at.pass_time(100)
        await released(at.ada, session)
        (entry,) = await until_booked(at, at.ada, step_s=5.0)
        assert entry["seconds"] >= 140
        await assert_settled(at, at.ada)


async def test_what_went_through_the_vendors_proxies_is_billed_though_it_shows_late(tmp_path):
    async with house(tmp_path) as at:
        at.vendor.set_habits(Habits(proxy_lag_s=20))
        session = await created(at.ada, keepAlive=True, proxies=True, timeout=600)
        await at.pass_time(100)
        at.vendor.move_proxied(at.vendor.sessions[0], 5_000_000)
        await released(at.ada, session)
        (entry,) = await until_booked(at, at.ada, step_s=5.0)
        assert (entry["basis"], entry["cost"]) == ("reported", cost_nanousd(entry["seconds"]) + 60_000_000)
        assert await at.ada.running() == 0
