"""How the simulated Fly fails, how often it may be asked, and that it stands many at once."""

import asyncio
from dataclasses import replace

import httpx
import pytest

from metering.clock import ManualClock
from metering.tasks import spawn
from simulators.fly import (
    ORG_SLUG,
    FlySimulator,
    Habits,
    Rates,
    answers,
    answers_late,
    breaks_after,
    drops,
    fails,
    hangs,
    loses_reply,
    stalls_after,
)
from simulators.script import Gate
from simulators.server import read_record, running_in_thread
from tests.support.fly import config, fly_client, made, made_app, made_machine, made_volume, refused

ASKED = {"app_name": "u-ada", "org_slug": ORG_SLUG}


# --- faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "made_apps"), [(loses_reply(), 1), (loses_reply(is_reset=True), 1), (drops(), 0)]
)
async def test_a_lost_reply_comes_after_the_work_and_a_drop_before(machines_api, fly, behaviour, made_apps):
    fly.next(behaviour)
    with pytest.raises(httpx.TransportError):
        await machines_api.post("/apps", json=ASKED)
    assert len(fly.apps) == made_apps
    again = await machines_api.post("/apps", json=ASKED)
    assert again.status_code == (422 if made_apps else 201)


@pytest.mark.parametrize(("works", "made_apps"), [(None, 0), (True, 1)])
@pytest.mark.parametrize("status", [401, 403, 408, 409, 429, 500, 502, 503])
async def test_an_error_comes_instead_of_the_work_or_after_it(machines_api, fly, status, works, made_apps):
    fly.next(fails(status, "some_word", message="words", headers={"retry-after": "2"}, works=works))
    answer = await machines_api.post("/apps", json=ASKED)
    assert refused(answer) == (status, "some_word", "words")
    assert (answer.headers["retry-after"], len(fly.apps)) == ("2", made_apps)


async def test_a_script_looks_at_the_request_and_chooses(machines_api, fly):
    fly.script = lambda request: fails(500) if request.method == "POST" and b"u-bob" in request.body else None
    assert (await machines_api.post("/apps", json=ASKED)).status_code == 201
    assert (await machines_api.post("/apps", json={**ASKED, "app_name": "u-bob"})).status_code == 500
    assert [app.name for app in fly.apps] == ["u-ada"]
    assert [request.method for request in fly.requests] == ["POST", "POST"]


async def test_faults_are_prescribed_by_what_is_asked_and_by_header(machines_api, fly):
    fly.next_on(r"POST /v1/apps/[^/]+/machines", fails(422, "insufficient_capacity"))
    app = await made_app(machines_api)
    answer = await machines_api.post(f"{app}/machines", json={"config": config()})
    assert refused(answer)[:2] == (422, "insufficient_capacity")
    simulated = {"x-simulate": "error_before=503,works=1"}
    assert (await machines_api.delete(app, headers=simulated)).status_code == 503
    assert fly.apps == []


async def test_answers_may_be_late_cut_stalled_or_of_ones_own(machines_api, fly):
    gate, stalled = Gate(), Gate()
    fly.next(hangs(gate=gate))
    asked = spawn(machines_api.post("/apps", json=ASKED), name="asked")
    await gate.reached()
    assert (len(fly.apps), asked.done()) == (1, False)
    gate.open()
    assert (await asked).status_code == 201
    fly.next(breaks_after(3))
    with pytest.raises(httpx.RemoteProtocolError):
        await machines_api.get("/apps/u-ada")
    fly.next(stalls_after(3, gate=stalled), answers_late(0.001), answers(b"<html>", status=200))
    asked = spawn(machines_api.get("/apps/u-ada"), name="asked")
    await stalled.reached()
    stalled.open()
    assert (await asked).json()["name"] == "u-ada"
    assert (await machines_api.get("/apps/u-ada")).json()["name"] == "u-ada"
    assert (await machines_api.get("/apps/u-ada")).content == b"<html>"


@pytest.mark.parametrize(
    ("behaviour", "status"), [(fails(500), 500), (answers_late(0.001), 200), (fails(502, works=True), 502)]
)
async def test_a_wait_may_fail_too(machines_api, fly, behaviour, status):
    app = await made_app(machines_api)
    machine = await made_machine(machines_api, app)
    fly.advance(2)
    fly.next(behaviour)
    assert (await machines_api.get(f"{app}/machines/{machine['id']}/wait")).status_code == status


async def test_a_wait_loses_its_reply(machines_api, fly):
    app = await made_app(machines_api)
    machine = await made_machine(machines_api, app)
    before = fly.requests_total
    fly.next(loses_reply())
    asked = spawn(machines_api.get(f"{app}/machines/{machine['id']}/wait"), name="asked")
    await fly.until(lambda: fly.requests_total > before)
    assert not asked.done()
    fly.advance(2)
    with pytest.raises(httpx.RemoteProtocolError):
        await asked


async def test_a_release_may_be_late_too(machines_api, fly):
    app = await made_app(machines_api)
    address = (await made(machines_api, f"{app}/ip_assignments", type="v6"))["ip"]
    fly.next(answers_late(0.001))
    gone = await machines_api.delete(f"{app}/ip_assignments/{address}")
    assert (gone.status_code, gone.content) == (204, b"")


async def test_what_it_saw_outlives_it(tmp_path):
    record = tmp_path / "record.jsonl"
    fly = FlySimulator(record_to=record)
    with running_in_thread(fly) as url, httpx.Client(trust_env=False) as client:
        assert client.get(f"{url}/v1/apps").status_code == 401
    assert [line.get("target") for line in read_record(record)] == ["/v1/apps", None]


# --- rates --------------------------------------------------------------------------------------------


@pytest.fixture
async def strict(fly):
    """The same with the vendor's own limits."""
    fly.set_habits(Habits(update_s=0, boot_s=0, limited_body=b'{"error":"slow down"}'))
    return fly


async def test_an_action_is_limited_on_each_machine_and_app(machines_api, strict):
    app = await made_app(machines_api)
    first, second = [(await made_machine(machines_api, app, name=name))["id"] for name in "ab"]

    async def cordon(machine):
        return (await machines_api.post(f"{app}/machines/{machine}/cordon")).status_code

    assert [await cordon(first) for _ in range(5)] == [200, 200, 200, 429, 429]
    assert await cordon(second) == 200
    assert (await machines_api.post(f"{app}/machines/{first}/uncordon")).status_code == 200
    strict.advance(1)
    assert [await cordon(first) for _ in range(2)] == [200, 429]
    strict.advance(2)
    assert [await cordon(first) for _ in range(3)] == [200, 200, 429]
    assert [request.path.rpartition("/")[2] for request in strict.limited] == ["cordon"] * 4


async def test_a_machine_may_be_looked_at_more_often(machines_api, strict):
    app = await made_app(machines_api)
    path = f"{app}/machines/{(await made_machine(machines_api, app))['id']}"
    assert [(await machines_api.get(path)).status_code for _ in range(12)] == [200] * 10 + [429] * 2
    strict.advance(1)
    assert [(await machines_api.get(path)).status_code for _ in range(6)] == [200] * 5 + [429]


@pytest.mark.parametrize(("retry_after_s", "header"), [(None, None), (1.5, "1.5"), (2, "2")])
async def test_what_a_limited_request_is_told(machines_api, strict, retry_after_s, header):
    habits = strict.organization.habits
    strict.set_habits(replace(habits, limited_retry_after_s=retry_after_s))
    app = await made_app(machines_api)
    for name in "abc":
        await made_volume(machines_api, app, name)
    strict.next_on(r"POST .*/volumes", fails(500))
    answer = await machines_api.post(f"{app}/volumes", json={"name": "d"})
    assert (answer.status_code, answer.content) == (429, b'{"error":"slow down"}')
    assert answer.headers.get("retry-after") == header
    # It had no effect, and was not what the fault was for.
    assert len(strict.volumes) == 3
    strict.advance(1)
    assert (await machines_api.post(f"{app}/volumes", json={"name": "d"})).status_code == 500


async def test_so_many_apps_are_deleted_in_a_minute(machines_api, strict):
    strict.set_habits(Habits(rates=Rates(app_deletes_per_minute=2)))
    for name in "abc":
        await made_app(machines_api, name)
    assert [(await machines_api.delete(f"/apps/{name}")).status_code for name in "abc"] == [202, 202, 429]
    strict.advance(59.999)
    assert (await machines_api.delete("/apps/c")).status_code == 429
    strict.advance(0.001)
    assert (await machines_api.delete("/apps/c")).status_code == 202


async def test_limits_are_off_where_there_are_none(machines_api, fly):
    app = await made_app(machines_api)
    assert {(await machines_api.get(f"{app}/volumes")).status_code for _ in range(20)} == {200}
    assert fly.limited == []


# --- many at once -------------------------------------------------------------------------------------


async def test_of_many_at_once_one_gets_the_name_and_one_the_volume():
    async with FlySimulator(clock=ManualClock(0), habits=Habits(rates=None)) as fly:
        limits = httpx.Limits(max_connections=50)
        async with fly_client(fly.url, limits=limits) as client:
            apps = await asyncio.gather(*(client.post("/apps", json=ASKED) for _ in range(50)))
            assert sorted(answer.status_code for answer in apps) == [201] + [422] * 49
            volume = (await made_volume(client, "/apps/u-ada"))["id"]
            same = {"name": "gw", "config": config()}
            named = await asyncio.gather(*(client.post("/apps/u-ada/machines", json=same) for _ in range(50)))
            assert sorted(answer.status_code for answer in named) == [200] + [409] * 49
            mounting = {"config": config(volume=volume)}
            mounted = await asyncio.gather(
                *(client.post("/apps/u-ada/machines", json=mounting) for _ in range(50))
            )
            assert sorted(answer.status_code for answer in mounted) == [200] + [412] * 49
            path = f"/apps/u-ada/machines/{fly.machines[0].id}/lease"
            leased = await asyncio.gather(*(client.post(path, json={"ttl": 9}) for _ in range(50)))
            assert sorted(answer.status_code for answer in leased) == [201] + [409] * 49
    assert len(fly.machines) == 2
