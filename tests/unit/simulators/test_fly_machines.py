"""The machines of the simulated Fly: made, booted, changed, put to sleep, waited for, leased, destroyed."""

import pytest

from metering.tasks import spawn
from simulators.fly import (
    FAILING_IMAGE,
    STALLING_IMAGE,
    Command,
    FlySimulator,
    Habits,
    Ran,
    Shortage,
    State,
)
from simulators.fly_organization import EVENTS_KEPT_MAX
from tests.support.fly import IMAGE, config, fly_client, made, made_app, made_machine, made_volume, refused

QUICK = Habits(rates=None, boot_s=2, start_s=1, stop_s=1, update_s=2, destroy_s=1)


@pytest.fixture
async def app(fly, machines_api):
    fly.set_habits(QUICK)
    return await made_app(machines_api)


@pytest.fixture
async def running(app, fly, machines_api):
    """The path of a machine that has started."""
    machine = await made_machine(machines_api, app)
    fly.advance(2)
    return f"{app}/machines/{machine['id']}"


async def state(machines_api, path):
    return (await machines_api.get(path)).json()["state"]


async def states(machines_api, fly, path, seconds, *, step_s=0.5):
    """What a machine is now and after each step, without repetitions."""
    seen = [await state(machines_api, path)]
    for _ in range(round(seconds / step_s)):
        fly.advance(step_s)
        now = await state(machines_api, path)
        seen += [now] if now != seen[-1] else []
    return seen


# --- made ---------------------------------------------------------------------------------------------


async def test_a_machine_is_made_boots_and_is_shown_whole(machines_api, fly, app):
    volume = await made_volume(machines_api, app)
    machine = await made_machine(machines_api, app, volume=volume["id"], metadata={"user": "ada"})
    path = f"{app}/machines/{machine['id']}"
    assert (machine["name"], machine["region"], machine["state"], machine["host_status"]) == (
        "gw",
        "sjc",
        "created",
        "ok",
    )
    assert len(machine["instance_id"]) == 26
    assert machine["image_ref"]["digest"] == "sha256:5e1f"
    assert "nonce" not in machine
    attached = (await machines_api.get(f"{app}/volumes/{volume['id']}")).json()
    assert attached["attached_machine_id"] == machine["id"]
    assert await states(machines_api, fly, path, 3) == ["created", "starting", "started"]
    shown = (await machines_api.get(path)).json()
    wished = config(volume=volume["id"], metadata={"user": "ada"})
    wished["services"][0]["autostop"] = False
    assert shown["config"] == wished
    assert [(each["type"], each["status"]) for each in shown["events"]] == [
        ("start", "started"),
        ("update", "starting"),
        ("launch", "created"),
    ]
    assert (await machines_api.get(f"{app}/machines")).json() == [shown]


@pytest.mark.parametrize("given_in_full", [False, True])
async def test_a_name_is_one_machines_and_the_refusal_tells_its_id(machines_api, fly, app, given_in_full):
    machine = await made_machine(machines_api, app)
    asked = {"name": "gw", "config": config()} if given_in_full else {"name": "gw", "config": {"image": "x"}}
    status, word, words = refused(await machines_api.post(f"{app}/machines", json=asked))
    assert (status, word) == (409, "unknown")
    assert words == (
        f"already_exists: unique machine name violation, machine ID {machine['id']} "
        'already exists with name "gw"'
    )
    assert len(fly.machines) == 1
    other = await made_app(machines_api, "u-bob")
    await made_machine(machines_api, other)
    await machines_api.delete(f"{app}/machines/{machine['id']}", params={"force": "true"})
    fly.advance(1)
    again = await made_machine(machines_api, app)
    assert again["id"] != machine["id"]


@pytest.mark.parametrize(
    ("fields", "status"),
    [({}, 400), ({"config": {}}, 400), ({"config": {"image": "x"}, "min_secrets_version": 1}, 412)],
)
async def test_an_image_is_needed_and_secrets_as_new_as_asked_for(machines_api, app, fields, status):
    assert refused(await machines_api.post(f"{app}/machines", json=fields))[0] == status


async def test_a_machine_that_is_not_launched_waits_to_be_started(machines_api, fly, app):
    machine = await made_machine(machines_api, app, fields={"skip_launch": True})
    path = f"{app}/machines/{machine['id']}"
    early = refused(await machines_api.post(f"{path}/start"))
    words = "failed_precondition: unable to start machine from current state: 'created'"
    assert early == (412, "unknown", words)
    assert await states(machines_api, fly, path, 5) == ["created"]
    started = (await machines_api.post(f"{path}/start")).json()
    assert started["previous_state"] == "created"
    assert await states(machines_api, fly, path, 2) == ["starting", "started"]


@pytest.mark.parametrize(
    ("image", "last"), [(FAILING_IMAGE, "failed"), (STALLING_IMAGE, "starting"), ("fine", "started")]
)
async def test_an_image_says_how_its_boot_ends(machines_api, fly, app, image, last):
    machine = await made_machine(machines_api, app, image=f"registry.fly.io/x:{image}")
    fly.advance(3600)
    assert await state(machines_api, f"{app}/machines/{machine['id']}") == last


# --- volumes and room ---------------------------------------------------------------------------------


async def test_a_mount_needs_a_free_volume_of_the_same_app_and_region(machines_api, fly, app):
    other = await made_app(machines_api, "u-bob")
    theirs = (await made_volume(machines_api, other))["id"]
    far = (await made_volume(machines_api, app, region="ord"))["id"]
    mine = (await made_volume(machines_api, app))["id"]
    mount = {"volume": mine, "path": "/data"}

    async def refusal(mounts, name="other"):
        asked = {"name": name, "region": "sjc", "config": {"image": "x", "mounts": mounts}}
        return refused(await machines_api.post(f"{app}/machines", json=asked))[0]

    assert await refusal([{**mount, "volume": theirs}]) == 404
    assert await refusal([{**mount, "volume": "vol_unknown"}]) == 404
    assert await refusal([{**mount, "volume": far}]) == 400
    assert await refusal([{"volume": mine}]) == 400
    assert await refusal([mount, mount]) == 400
    machine = await made_machine(machines_api, app, volume=mine)
    assert await refusal([mount]) == 412
    assert refused(await machines_api.delete(f"{app}/volumes/{mine}"))[0] == 412
    await machines_api.delete(f"{app}/machines/{machine['id']}", params={"force": "true"})
    assert await refusal([mount]) == 412
    assert refused(await machines_api.delete(f"{app}/volumes/{mine}"))[0] == 412
    fly.advance(1)
    assert fly.organization.volumes[mine].is_attached is False
    await made_machine(machines_api, app, volume=mine)
    gone = (await made_volume(machines_api, app))["id"]
    await machines_api.delete(f"{app}/volumes/{gone}")
    assert await refusal([{**mount, "volume": gone}]) == 404


@pytest.mark.parametrize(
    ("shortage", "status", "word", "words"),
    [
        (Shortage.REGION, 422, "insufficient_capacity", "insufficient resources"),
        (Shortage.ABORTED, 409, "unknown", "aborted: no capacity"),
        (Shortage.HOST, 409, "unknown", "could not reserve resource"),
        (Shortage.VOLUME, 412, "volume_placement_capacity", "existing volume"),
    ],
)
async def test_a_region_may_have_no_room(machines_api, fly, app, shortage, status, word, words):
    volume = (await made_volume(machines_api, app))["id"]
    fly.set_habits(Habits(rates=None, shortages={"sjc": shortage}))
    asked = {"name": "gw", "region": "sjc", "config": config(volume=volume)}
    answer = refused(await machines_api.post(f"{app}/machines", json=asked))
    assert (answer[:2], words in answer[2]) == ((status, word), True)
    assert (fly.machines, fly.volumes[0].is_attached) == ([], False)
    bare = await machines_api.post(f"{app}/machines", json={"region": "sjc", "config": config()})
    assert bare.is_success is (shortage is Shortage.VOLUME)
    await made_machine(machines_api, app, region="ord")


async def test_a_host_without_room_is_left_with_another_volume(machines_api, fly, app):
    full, other = [await made_volume(machines_api, app) for _ in range(2)]
    assert full["zone"] != other["zone"]
    fly.set_habits(Habits(rates=None, shortages={full["zone"]: Shortage.VOLUME}))
    asked = {"name": "gw", "region": "sjc", "config": config(volume=full["id"])}
    answer = await machines_api.post(f"{app}/machines", json=asked)
    assert refused(answer)[:2] == (412, "volume_placement_capacity")
    machine = await made_machine(machines_api, app, volume=other["id"])
    assert fly.organization.machines[machine["id"]].host == other["zone"]


async def test_a_full_host_lets_no_machine_run_again(machines_api, fly, app, running):
    machine = fly.machines[0]
    await machines_api.post(f"{running}/stop", json={})
    fly.advance(1)
    fly.set_habits(Habits(rates=None, shortages={machine.host: Shortage.HOST}))
    assert refused(await machines_api.post(f"{running}/start"))[0] == 409
    assert refused(await machines_api.post(running, json={"config": config()}))[0] == 409
    assert await state(machines_api, running) == "stopped"


# --- listed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({}, "ab"),
        ({"region": "ord"}, "b"),
        ({"state": "started"}, "a"),
        ({"state": "started,created"}, "ab"),
        ({"state": "stopped"}, ""),
        ({"metadata.user": "ada"}, "a"),
        ({"metadata.user": "ada", "metadata.gen": "2"}, ""),
        ({"include_deleted": "true"}, "abc"),
        ({"include_deleted": "true", "state": "destroyed"}, "c"),
    ],
)
async def test_a_list_is_narrowed(machines_api, fly, app, params, names):
    await made_machine(machines_api, app, name="a", metadata={"user": "ada", "gen": "1"})
    fly.advance(2)
    await made_machine(machines_api, app, name="c", fields={"skip_launch": True})
    await machines_api.delete(f"{app}/machines/{fly.machines[1].id}")
    fly.advance(1)
    await made_machine(machines_api, app, name="b", region="ord", metadata={"user": "bob"})
    listed = (await machines_api.get(f"{app}/machines", params=params)).json()
    assert sorted(machine["name"] for machine in listed) == list(names)


async def test_a_summary_has_no_configuration(machines_api, app, running):
    (shown,) = (await machines_api.get(f"{app}/machines", params={"summary": "true"})).json()
    assert "config" not in shown


async def test_of_a_lost_host_little_is_known(machines_api, fly, app, running):
    fly.machines[0].host_status = "unreachable"
    shown = (await machines_api.get(running)).json()
    assert (shown["host_status"], "config" in shown) == ("unreachable", False)
    assert set(shown["incomplete_config"]) == {"image", "guest", "metadata"}


@pytest.mark.parametrize("tells_booleans", [True, False])
@pytest.mark.parametrize(
    ("given", "older", "newer"),
    [
        ("off", False, "off"),
        (False, False, "off"),
        ("stop", True, "stop"),
        (True, True, "stop"),
        ("suspend", "suspend", "suspend"),
    ],
)
async def test_autostop_is_said_in_both_ways(machines_api, fly, app, given, older, newer, tells_booleans):
    fly.set_habits(Habits(rates=None, tells_booleans=tells_booleans))
    services = [{"internal_port": 1, "autostop": given, "autostart": True}, {"internal_port": 2}]
    shown = (await made_machine(machines_api, app, services=services))["config"]["services"]
    assert shown[0]["autostop"] == (older if tells_booleans else newer)
    assert shown[0]["autostart"] is True
    assert "autostop" not in shown[1]


# --- changed ------------------------------------------------------------------------------------------


async def test_an_update_replaces_the_configuration_and_boots_again(machines_api, fly, app, running):
    before = (await machines_api.get(running)).json()
    asked = {
        "config": {"image": "new", "env": {"A": "1"}},
        "current_version": before["instance_id"],
    }
    after = (await machines_api.post(running, json=asked)).json()
    assert (after["id"], after["state"]) == (before["id"], "replacing")
    assert after["instance_id"] > before["instance_id"]
    assert after["config"] == {"image": "new", "env": {"A": "1"}, "metadata": {}}
    status, _, words = refused(await machines_api.post(f"{running}/start"))
    assert (status, words) == (412, "failed_precondition: machine getting replaced, refusing to start")
    assert await states(machines_api, fly, running, 3) == ["replacing", "starting", "started"]
    versions = (await machines_api.get(f"{running}/versions")).json()
    assert [each["version"] for each in versions] == [after["instance_id"], before["instance_id"]]
    assert [each["user_config"]["image"] for each in versions] == ["new", IMAGE]


async def test_an_update_of_what_has_changed_meanwhile_is_refused(machines_api, fly, app, running):
    old = (await machines_api.get(running)).json()["instance_id"]
    await machines_api.post(running, json={"config": config()})
    during = refused(await machines_api.post(running, json={"config": config()}))
    fly.advance(2)
    after = refused(await machines_api.post(running, json={"config": config(), "current_version": old}))
    assert (during[0], after[0], "concurrent update" in after[2]) == (409, 409, True)


@pytest.mark.parametrize("fields", [{"name": "other"}, {"region": "ord"}])
async def test_what_cannot_be_changed(machines_api, fly, app, running, fields):
    assert refused(await machines_api.post(running, json={"config": config(), **fields}))[0] == 400
    volume = (await made_volume(machines_api, app))["id"]
    assert refused(await machines_api.post(running, json={"config": config(volume=volume)}))[0] == 400
    for kept in ({"name": "gw"}, {"region": "sjc"}):
        assert (await machines_api.post(running, json={"config": config(), **kept})).status_code == 200
        fly.advance(2)


async def test_an_update_may_leave_it_off(machines_api, fly, app, running):
    asked = {"config": config(), "skip_launch": True}
    await machines_api.post(running, json=asked)
    assert await states(machines_api, fly, running, 3) == ["replacing", "stopped"]
    before = (await machines_api.get(running)).json()["instance_id"]
    after = (await machines_api.post(running, json=asked)).json()
    assert (after["state"], after["instance_id"] != before) == ("stopped", True)
    await machines_api.post(running, json={"config": config()})
    assert await states(machines_api, fly, running, 3) == ["replacing", "starting", "started"]


async def test_one_that_failed_or_hangs_is_mended_by_an_update(machines_api, fly, app):
    for name in (FAILING_IMAGE, STALLING_IMAGE):
        machine = await made_machine(machines_api, app, name=name, image=name)
        path = f"{app}/machines/{machine['id']}"
        fly.advance(10)
        await machines_api.post(path, json={"config": config()})
        assert await states(machines_api, fly, path, 3) == ["replacing", "starting", "started"]


# --- on and off ---------------------------------------------------------------------------------------


async def test_it_stops_sleeps_and_starts(machines_api, fly, running):
    stop = await machines_api.post(f"{running}/stop", json={"signal": "SIGTERM", "timeout": "30s"})
    assert stop.json() == {"ok": True}
    assert refused(await machines_api.post(f"{running}/start"))[0] == 412
    assert await states(machines_api, fly, running, 2) == ["stopping", "stopped"]
    assert (await machines_api.post(f"{running}/stop", json={})).json() == {"ok": True}
    assert (await machines_api.post(f"{running}/start")).json()["previous_state"] == "stopped"
    assert await states(machines_api, fly, running, 2) == ["starting", "started"]
    assert (await machines_api.post(f"{running}/start")).json()["previous_state"] == "started"
    await machines_api.post(f"{running}/suspend")
    assert await states(machines_api, fly, running, 2) == ["suspending", "suspended"]
    for action in ("suspend", "restart"):
        assert refused(await machines_api.post(f"{running}/{action}"))[0] == 412
    await machines_api.post(f"{running}/start")
    fly.advance(1)
    before = (await machines_api.get(running)).json()["instance_id"]
    await machines_api.post(f"{running}/restart", params={"timeout": "5s"})
    assert await states(machines_api, fly, running, 3) == ["restarting", "starting", "started"]
    assert (await machines_api.get(running)).json()["instance_id"] == before


async def test_one_that_is_booting_is_stopped(machines_api, fly, app):
    for name, change in (("a", "/stop"), ("b", "")):
        machine = await made_machine(machines_api, app, name=name)
        path = f"{app}/machines/{machine['id']}"
        asked = {} if change else {"config": config(), "skip_launch": True}
        assert (await machines_api.post(path + change, json=asked)).is_success
        fly.advance(10)
        assert await state(machines_api, path) == "stopped"


async def test_it_is_signalled_and_cordoned(machines_api, fly, running):
    assert (await machines_api.post(f"{running}/signal", json={"signal": "SIGTERM"})).json() == {"ok": True}
    (event,) = (await machines_api.get(f"{running}/events", params={"limit": 1})).json()
    assert (event["type"], event["status"]) == ("signal", "started")
    assert len((await machines_api.get(f"{running}/events")).json()) == 4
    for action, is_cordoned in (("cordon", True), ("uncordon", False)):
        assert (await machines_api.post(f"{running}/{action}")).json() == {"ok": True}
        assert fly.machines[0].is_cordoned is is_cordoned


@pytest.mark.parametrize(
    ("service", "after"),
    [
        ({"autostop": "off"}, State.STARTED),
        ({"autostop": False}, State.STARTED),
        ({}, State.STARTED),
        ({"autostop": "stop"}, State.STOPPED),
        ({"autostop": True}, State.STOPPED),
        ({"autostop": "suspend"}, State.SUSPENDED),
        ({"autostop": "stop", "min_machines_running": 1}, State.STARTED),
    ],
)
async def test_one_that_nobody_asks_for_goes_off_if_it_says_so(machines_api, fly, app, service, after):
    await made_machine(machines_api, app, services=[service])
    fly.advance(2)
    fly.fall_idle(fly.machines[0])
    fly.advance(1)
    assert fly.machines[0].state is after


async def test_only_what_is_off_is_destroyed_without_force(machines_api, fly, app, running):
    status, _, words = refused(await machines_api.delete(running))
    assert (status, "unable to destroy machine" in words) == (412, True)
    assert (await machines_api.delete(running, params={"force": "true"})).json() == {"ok": True}
    assert await states(machines_api, fly, running, 2) == ["destroying", "destroyed"]
    assert (fly.machines, fly.billed.machines) == ([], [])
    for method, path in (("DELETE", running), ("POST", f"{running}/start")):
        assert refused(await machines_api.request(method, path))[0] == 404
    other = await made_app(machines_api, "u-bob")
    for unknown in (f"{app}/machines/unknown", running.replace(app, other)):
        assert refused(await machines_api.get(unknown))[0] == 404
    stopped = await made_machine(machines_api, app, fields={"skip_launch": True})
    assert (await machines_api.delete(f"{app}/machines/{stopped['id']}")).json() == {"ok": True}


async def test_a_machine_crashes(machines_api, fly, running):
    fly.crash(fly.machines[0])
    assert await state(machines_api, running) == "failed"
    await machines_api.post(f"{running}/start")
    assert await states(machines_api, fly, running, 1) == ["starting", "started"]


# --- waited for ---------------------------------------------------------------------------------------


async def waiting(machines_api, fly, path, **params):
    """A request that the simulator has and has not answered."""
    before = fly.requests_total
    asked = spawn(machines_api.get(f"{path}/wait", params=params), name="waiting")
    await fly.until(lambda: fly.requests_total > before)
    return asked


async def test_a_wait_ends_when_the_state_comes(machines_api, fly, app):
    machine = await made_machine(machines_api, app)
    asked = await waiting(machines_api, fly, f"{app}/machines/{machine['id']}", state="started", timeout=60)
    fly.advance(1)
    assert not asked.done()
    fly.advance(1)
    told = (await asked).json()
    assert (told["ok"], told["state"], told["version"]) == (True, "started", machine["instance_id"])
    again = await machines_api.get(f"{app}/machines/{machine['id']}/wait")
    assert again.json() == told


async def test_a_wait_that_is_not_reached_is_408(machines_api, fly, app):
    machine = await made_machine(machines_api, app, image=STALLING_IMAGE)
    asked = await waiting(machines_api, fly, f"{app}/machines/{machine['id']}", timeout=5)
    fly.advance(4.9)
    assert not asked.done()
    fly.advance(0.1)
    words = "machine failed to reach desired state, started, currently starting"
    assert refused(await asked) == (408, "unknown", words)


async def test_time_that_passes_on_the_clock_itself_ends_a_wait_too(machines_api, fly, app):
    machine = await made_machine(machines_api, app)
    asked = await waiting(machines_api, fly, f"{app}/machines/{machine['id']}")
    fly.organization._clock.advance(2)
    assert (await asked).json()["state"] == "started"


async def test_real_time_ends_a_wait():
    async with FlySimulator(habits=Habits(boot_s=0.1)) as fly, fly_client(fly.url) as client:
        app = await made_app(client)
        machine = await made_machine(client, app)
        assert machine["state"] == "created"
        assert (await client.get(f"{app}/machines/{machine['id']}/wait")).json()["state"] == "started"


async def test_settled_is_what_changes_no_more(machines_api, fly, app):
    booting = await made_machine(machines_api, app)
    resting = await made_machine(machines_api, app, name="off", fields={"skip_launch": True})
    asked = await waiting(machines_api, fly, f"{app}/machines/{booting['id']}", state="settled")
    told = await machines_api.get(f"{app}/machines/{resting['id']}/wait", params={"state": "settled"})
    assert told.json()["state"] == "created"
    fly.advance(1)
    assert not asked.done()
    fly.advance(1)
    assert (await asked).json()["state"] == "started"


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"timeout": 61}, 400),
        ({"timeout": 0}, 400),
        ({"timeout": "1m"}, 400),
        ({"state": "created"}, 400),
        ({"state": "started,nonsense"}, 400),
        ({"state": "stopped"}, 400),
        ({"state": "stopped,started", "version": "VERSION"}, 200),
        ({"state": ["stopped", "started"], "instance_id": "VERSION"}, 200),
        ({"state": "settled"}, 200),
        ({"state": "started", "from_event_id": "FIRST"}, 200),
    ],
)
async def test_what_a_wait_may_ask_for(machines_api, running, params, status):
    shown = (await machines_api.get(running)).json()
    words = {"VERSION": shown["instance_id"], "FIRST": shown["events"][-1]["id"]}
    asked = {name: words.get(str(value), value) for name, value in params.items()}
    assert (await machines_api.get(f"{running}/wait", params=asked)).status_code == status


async def test_a_wait_is_for_one_version_and_for_what_comes_after_an_event(machines_api, fly, running):
    shown = (await machines_api.get(running)).json()
    old, started = shown["instance_id"], shown["events"][0]["id"]
    new = (await machines_api.post(running, json={"config": config()})).json()["instance_id"]
    for_new = await waiting(machines_api, fly, running, version=new)
    for_old = await waiting(machines_api, fly, running, version=old, timeout=30)
    fly.advance(2)
    assert (await for_new).json()["version"] == new
    assert (await machines_api.get(f"{running}/wait", params={"from_event_id": started})).is_success
    event = (await machines_api.get(running)).json()["events"][0]["id"]
    later = await waiting(machines_api, fly, running, from_event_id=event)
    fly.advance(10)
    assert not later.done()
    await machines_api.post(f"{running}/restart")
    fly.advance(2)
    assert (await later).json()["state"] == "started"
    fly.advance(30)
    assert (await for_old).status_code == 408


@pytest.mark.parametrize(
    ("action", "reached"), [("stop", "stopped"), ("suspend", "suspended"), ("delete", "destroyed")]
)
async def test_the_ends_of_other_ways_are_waited_for(machines_api, fly, running, action, reached):
    version = (await machines_api.get(running)).json()["instance_id"]
    if action == "delete":
        await machines_api.delete(running, params={"force": "true"})
    else:
        await machines_api.post(f"{running}/{action}")
    asked = await waiting(machines_api, fly, running, state=reached, version=version)
    fly.advance(1)
    assert (await asked).json()["state"] == reached


async def test_who_leaves_waits_no_more(machines_api, fly, app):
    machine = await made_machine(machines_api, app)
    asked = await waiting(machines_api, fly, f"{app}/machines/{machine['id']}")
    asked.cancel()
    await fly.until(lambda: fly.client_gone_total == 1)
    await fly.until(lambda: not fly.organization._waits)


# --- leased -------------------------------------------------------------------------------------------

CHANGES = [
    ("POST", "", {"config": {"image": "x"}}),
    ("POST", "/start", None),
    ("POST", "/stop", {}),
    ("POST", "/suspend", None),
    ("POST", "/restart", None),
    ("POST", "/signal", {"signal": "SIGTERM"}),
    ("POST", "/cordon", None),
    ("POST", "/uncordon", None),
    ("PUT", "/metadata", {"metadata": {}}),
    ("PATCH", "/metadata", {"metadata": {}}),
    ("POST", "/metadata/a", {"value": "b"}),
    ("DELETE", "/metadata/a", None),
    ("POST", "/lease", {"ttl": 60}),
    ("DELETE", "/lease", None),
    ("DELETE", "?force=true", None),
]


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
async def test_a_leased_machine_is_changed_by_its_holder_alone(
    machines_api, fly, running, method, path, body
):
    lease = await made(machines_api, f"{running}/lease", ttl=30, description="reconcile")
    assert lease["status"] == "success"
    machine = fly.machines[0]
    before = (machine.state, machine.instance_id, dict(machine.metadata), machine.is_cordoned)
    for nonce in ({}, {"fly-machine-lease-nonce": "wrong"}):
        answer = await machines_api.request(method, running + path, json=body, headers=nonce)
        assert (answer.status_code, answer.json()["status"]) == (409, "error")
        assert answer.json()["message"] == (
            f"machine ID {machine.id} lease currently held by {lease['data']['owner']}, "
            "expires at 2026-11-18T11:07:12Z"
        )
    assert before == (machine.state, machine.instance_id, dict(machine.metadata), machine.is_cordoned)
    nonce = {"fly-machine-lease-nonce": lease["data"]["nonce"]}
    answer = await machines_api.request(method, running + path, json=body, headers=nonce)
    assert answer.is_success, answer.text


async def test_a_lease_is_shown_prolonged_released_and_ends(machines_api, fly, running):
    assert refused(await machines_api.get(f"{running}/lease"))[0] == 404
    assert refused(await machines_api.delete(f"{running}/lease"))[0] == 404
    answer = await machines_api.post(f"{running}/lease", json={"ttl": 30})
    data = answer.json()["data"]
    assert (answer.status_code, len(data["nonce"])) == (201, 12)
    assert data["expires_at"] == fly.organization.now_ms() // 1000 + 30
    nonce = {"fly-machine-lease-nonce": data["nonce"]}
    fly.advance(20)
    longer = (await machines_api.post(f"{running}/lease", json={"ttl": 60}, headers=nonce)).json()["data"]
    assert (longer["nonce"], longer["expires_at"]) == (data["nonce"], data["expires_at"] + 50)
    assert (await machines_api.get(f"{running}/lease")).json()["data"] == longer
    assert list(fly.leases) == [fly.machines[0].id]
    assert (await machines_api.delete(f"{running}/lease", headers=nonce)).json() == {"ok": True}
    assert fly.leases == {}
    await made(machines_api, f"{running}/lease", ttl=5)
    fly.advance(5)
    assert (await machines_api.post(f"{running}/stop", json={})).is_success


@pytest.mark.parametrize(("refuses", "status"), [(True, 409), (False, 200)])
async def test_the_nonce_of_a_lease_that_is_over(machines_api, fly, running, refuses, status):
    fly.set_habits(Habits(rates=None, refuses_stale_nonce=refuses))
    nonce = (await made(machines_api, f"{running}/lease", ttl=5))["data"]["nonce"]
    fly.advance(5)
    answer = await machines_api.post(f"{running}/stop", json={}, headers={"fly-machine-lease-nonce": nonce})
    assert answer.status_code == status


async def test_a_machine_may_be_born_or_updated_leased(machines_api, fly, app):
    machine = await made_machine(machines_api, app, fields={"lease_ttl": 30})
    path = f"{app}/machines/{machine['id']}"
    fly.advance(2)
    assert (await machines_api.post(f"{path}/stop", json={})).status_code == 409
    nonce = {"fly-machine-lease-nonce": machine["nonce"]}
    again = await machines_api.post(path, json={"config": config(), "lease_ttl": 60}, headers=nonce)
    assert fly.leases[machine["id"]].nonce == again.json()["nonce"]


# --- labelled -----------------------------------------------------------------------------------------


async def test_of_its_events_the_last_are_kept(machines_api, fly, running):
    machine, now_ms = fly.machines[0], fly.organization.now_ms()
    for _ in range(EVENTS_KEPT_MAX):
        fly.organization.happen(machine, "signal", "user", now_ms)
    assert len(machine.events) == EVENTS_KEPT_MAX
    assert (await machines_api.get(f"{running}/wait")).json()["state"] == "started"
    assert len((await machines_api.get(f"{running}/events", params={"limit": 50})).json()) == 50
    assert refused(await machines_api.get(f"{running}/events", params={"limit": 51}))[0] == 400


async def test_metadata_is_replaced_merged_and_taken_away(machines_api, fly, running):
    path = f"{running}/metadata"
    version = (await machines_api.get(running)).json()["instance_id"]
    asked = {"metadata": {"user": "ada", "gen": "1"}, "machine_version": version}
    put = await machines_api.put(path, json=asked)
    assert (put.status_code, put.content) == (204, b"")
    await machines_api.patch(path, json={"metadata": {"gen": "2"}})
    assert (await machines_api.get(path)).json() == {"user": "ada", "gen": "2"}
    assert (await machines_api.post(f"{path}/note", json={"value": "x"})).status_code == 204
    assert (await machines_api.get(f"{path}/note")).json() == {"value": "x"}
    assert (await machines_api.delete(f"{path}/note")).status_code == 204
    assert refused(await machines_api.get(f"{path}/note"))[0] == 404
    assert refused(await machines_api.post(f"{path}/note", json={}))[0] == 400
    for method in ("PUT", "PATCH"):
        stale = {"metadata": {}, "machine_version": "old"}
        assert refused(await machines_api.request(method, path, json=stale))[0] == 412
    shown = (await machines_api.get(running)).json()
    assert (shown["config"]["metadata"], shown["instance_id"]) == ({"user": "ada", "gen": "2"}, version)
    await machines_api.put(path, json={"metadata": {"gen": "3"}})
    assert fly.machines[0].metadata == {"gen": "3"}


# --- what runs in it ----------------------------------------------------------------------------------


async def test_commands_run_in_it_and_fail_with_200(machines_api, fly, running):
    asked = {"command": ["sh", "-c", "cat > /data/x"], "stdin": "secret", "timeout": 5}
    answer = await machines_api.post(f"{running}/exec", json=asked)
    assert answer.json() == {"exit_code": 0, "exit_signal": 0, "stdout": "", "stderr": ""}
    command = Command(("sh", "-c", "cat > /data/x"), "secret", 5)
    assert fly.executed == [(fly.machines[0].id, command)]
    fly.run_commands(lambda machine, command: Ran(1, machine.name, f"no {command.argv[0]}"))
    failed = await machines_api.post(f"{running}/exec", json={"cmd": "kill -USR1 1"})
    assert failed.status_code == 200
    assert failed.json() == {"exit_code": 1, "exit_signal": 0, "stdout": "gw", "stderr": "no kill"}
    assert refused(await machines_api.post(f"{running}/exec", json={}))[0] == 400
    await machines_api.post(f"{running}/stop", json={})
    assert refused(await machines_api.post(f"{running}/exec", json=asked))[0] == 412
    assert len(fly.executed) == 2
