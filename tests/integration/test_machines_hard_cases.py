"""Agents' machines where something goes otherwise than one would think: lists that are long or late, wishes at the wrong moment,
other people's things, answers that never end."""

import asyncio
from dataclasses import replace

from metering.objects import ObjectId
from metering.store.store import open_store
from metering.store.writer import Step, Unit
from metering.tasks import spawn, stop
from metering.users import Directory
from provisioning import fly as fly_module
from provisioning import instances as rows
from provisioning import names
from provisioning.errors import Code, FatalError
from provisioning.fly import FlyError, Trouble, fly_client
from provisioning.instances import ERROR, GONE, READY, STOPPED, SUSPENDED
from provisioning.integrations import inbox_object
from provisioning.lifecycle import GRACE_MS, _mint_another
from provisioning.machines import Machines
from provisioning.pacing import Pacer
from provisioning.run import Run
from simulators.fly_behaviour import fails
from simulators.fly_state import State
from simulators.script import Gate
from tests.support.ledger import PERIOD, new_database
from tests.support.machines import QUICK
from tests.support.provisioners import PREFIX, machines_of, yard

HOURS_S = 7_200
LONG_MS = HOURS_S // 2 * 1_000
MINUTE_S = 60.0
ROUNDS = 60
SLOW_TICK_S = 0.1
"""Of the real clock for one second of the test's: work that must be done within so many of those has the time it takes."""
NEVER = replace(QUICK, gateway_s=1e6)
"""A Fly in which machines start, and nothing in them answers."""

MANY_GONE_USERS = """
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
INSERT INTO users (id, plan, status, created_at, updated_at) SELECT printf('a%05d', i), 'pro', 'active', 0, 0 FROM n"""
MANY_GONE_INSTANCES = """
INSERT INTO instances (user_id, generation, app_name, desired, wished, done, status, created_at_ms, started_at_ms, updated_at_ms)
SELECT id, 1, 'gone-' || id, 'gone', 1, 1, 'gone', 0, 0, 0 FROM users WHERE id LIKE 'a0%' OR id LIKE 'a1%'"""


# --- what repairs destroy -----------------------------------------------------------------------------


async def test_repairs_leave_the_app_of_a_user_beyond_the_first_ten_thousand(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker, "zoe")
        await found.store.writer.submit(Unit((Step(MANY_GONE_USERS, ()), Step(MANY_GONE_INSTANCES, ()))))
        found.clock.advance(HOURS_S)
        looked = await worker.provisioner.reconcile(repairs=True)
        assert looked.findings == ()
        assert len(found.vendors.fly.apps) == 1


async def test_repairs_leave_the_volume_of_a_user_whose_things_are_beyond_the_first_ten_thousand(
    tmp_path, monkeypatch
):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker, "ada")
        await found.provisioned(worker, "bob")
        monkeypatch.setattr(rows, "LISTED_MAX", 8)  # 1,250 users have 10,000 things
        app_name = (await found.instance("bob")).app_name
        (machine,) = (one for one in found.vendors.fly.machines if one.app.name == app_name)
        found.vendors.fly.organization.become(machine, State.DESTROYED)
        await worker.provisioner.reconcile(repairs=True)
        assert len(found.vendors.fly.volumes) == 2


async def test_repairs_leave_the_apps_of_another_deployment_in_the_organization(tmp_path):
    """Or those made since the backup that the store was restored from."""
    (tmp_path / "other").mkdir()
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        found.clock.advance(HOURS_S)
        async with open_store(new_database(tmp_path / "other")) as store:
            other = machines_of(found.vendors, store, found.clock)
            parts = replace(
                worker.parts, store=store, machines=other, directory=Directory(store, found.clock)
            )
            await type(worker.provisioner)(parts, "other", at_once=1).reconcile(repairs=True)
        found.vendors.assert_one_of_each()


async def test_repairs_leave_a_volume_that_was_made_by_hand_a_moment_ago(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        machine = await found.provisioned(worker)
        await worker.parts.fly.create_volume(
            machine.instance.app_name,
            "restored",
            region="sjc",
            size_gb=1,
            guest=worker.parts.templates.of("pro").guest,
        )
        await worker.provisioner.reconcile(repairs=True)
        assert sorted(volume.name for volume in found.vendors.fly.volumes) == ["data_1", "restored"]


async def test_one_machine_that_cannot_be_configured_does_not_end_the_look_at_all_others(
    tmp_path, monkeypatch
):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker, "ada")
        await found.provisioned(worker, "bob")
        config = Run.config

        async def lacking(run, secret):
            if run.instance.user_id == "ada":
                raise FatalError(Code.NOT_CONFIGURED, "as the template of ada's plan")
            return await config(run, secret)

        monkeypatch.setattr(Run, "config", lacking)
        await worker.provisioner.reconcile(repairs=False)


# --- another's, or left alive, or left running --------------------------------------------------------


async def test_taking_away_leaves_a_mailbox_that_is_another_users_by_now(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        await found.user("bob")
        inbox = inbox_object(found.vendors.inboxes[0])
        await worker.parts.objects.release(inbox, "ada")
        await worker.parts.objects.bind([inbox], "bob", "rsv_of_bob")
        await found.machines.deprovision("ada", actor="test")
        await found.until_settled(worker)
        assert found.vendors.inboxes == [inbox.upstream_id]


async def test_a_token_that_is_minted_while_the_wish_to_go_is_taken_is_refused_from_then_on(
    tmp_path, monkeypatch
):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        await found.machines.rotate("ada", actor="test")
        claim = await found.machines.instances.claim("w1", for_s=60)
        assert claim is not None
        run = Run(worker.parts, claim)
        await run.load()
        existing, secrets = found.machines._existing, []

        async def overtaken(user_id):
            machine = await existing(user_id)
            if not secrets:
                secrets.append(await _mint_another(run))
            return machine

        monkeypatch.setattr(found.machines, "_existing", overtaken)
        await found.machines.deprovision("ada", actor="test")
        assert await found.living_tokens() == []


async def test_a_refusal_of_our_key_is_not_taken_for_an_app_that_is_gone(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        await found.machines.deprovision("ada", actor="test")
        found.vendors.fly.next_on("GET /v1/apps/[^/]+", fails(403, message="forbidden"))
        await found.until_settled(worker)
        await found.machine(status=GONE)
        found.vendors.assert_nothing()


async def test_a_volume_that_came_late_is_not_left_beside_the_one_that_is_used(tmp_path, monkeypatch):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.user()
        await found.machines.provision("ada", actor="test")
        create, calls = worker.parts.fly.create_volume, []

        async def late(*args, **more):
            calls.append((args, more))
            if len(calls) == 1:
                raise FlyError(Trouble.AGAIN, "no answer within 30 s", status=None)
            made = await create(*args, **more)
            await create(*calls[0][0], **calls[0][1])  # the first one's, now that nobody looks any more
            return made

        monkeypatch.setattr(worker.parts.fly, "create_volume", late)
        await found.until_settled(worker)
        await found.machine(status=READY)
        found.vendors.assert_one_of_each()


async def test_the_successor_that_an_operator_gave_a_machines_token_dies_with_the_machine(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        machine = await found.provisioned(worker)
        await found.directory.rotate(machine.instance.token_id, overlap_s=60)
        await found.machines.deprovision("ada", actor="test")
        await found.until_settled(worker)
        assert await found.living_tokens() == []


# --- ready when it is not -----------------------------------------------------------------------------


async def test_a_rotation_with_one_failure_of_fly_does_not_end_the_old_token_before_the_machine_answers(
    tmp_path,
):
    async with yard(tmp_path) as found, found.worker() as worker:
        machine = await found.provisioned(worker)
        old = machine.instance.token_id
        found.vendors.fly.set_habits(NEVER)
        found.vendors.fly.next_on("GET /v1/apps/.*/wait", fails(503))
        await found.machines.rotate("ada", actor="test")
        await worker.provisioner.work_once("ada")
        found.clock.advance(60)
        working = spawn(worker.provisioner.work_once("ada"), name="work")
        await asyncio.wait({working}, timeout=2)
        await stop(working)
        answer = await worker.parts.probes.get(
            found.machines.url_of(machine.instance.app_name),
            headers={
                "authorization": f"Bearer {found.vendors.machine.config['env']['OPENCLAW_GATEWAY_TOKEN']}"
            },
        )
        assert answer.status_code == 502, "nothing answers in it"
        assert old in await found.living_tokens()


async def test_a_machine_that_was_made_again_is_not_ready_before_it_answers(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        found.vendors.fly.set_habits(NEVER)
        found.vendors.fly.organization.become(found.vendors.machine, State.DESTROYED)
        await found.machines.update("ada", actor="test")
        working = spawn(found.until_settled(worker), name="work")
        await asyncio.wait({working}, timeout=3)
        is_over = working.done()
        await stop(working)
        assert not is_over, (await found.instance()).status


async def test_a_machine_that_failed_is_found(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        found.vendors.fly.crash(found.vendors.machine)
        assert (await worker.provisioner.reconcile(repairs=False)).findings != ()


async def test_a_machine_whose_volume_row_was_forgotten_keeps_the_users_volume(tmp_path, monkeypatch):
    """A list of volumes that lags, beside any 404, is enough to forget it."""
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        (volume,) = found.vendors.fly.volumes
        listed, lags = worker.parts.fly.volumes, [True, True]

        async def lagging(app_name):
            return [] if lags and lags.pop() else await listed(app_name)

        monkeypatch.setattr(worker.parts.fly, "volumes", lagging)
        found.vendors.fly.next_on("POST /v1/apps/.*/lease", fails(404))
        await found.machines.rotate("ada", actor="test")
        await found.until_settled(worker)
        machine = await found.machine(status=READY)
        assert [one.upstream_id for one in machine.resources if one.kind == "volume"] == [volume.id]
        found.vendors.assert_one_of_each()


async def test_a_machine_that_runs_though_it_shall_be_stopped_is_found(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        machine = await found.provisioned(worker)
        await found.machines.stop("ada", actor="test")
        await worker.provisioner.work_on("ada")
        there = await worker.parts.fly.machine(machine.instance.app_name, machine.machine_id)
        await worker.parts.fly.uncordon(there)  # by hand
        await worker.parts.fly.start(there)
        assert (await worker.provisioner.reconcile(repairs=False)).findings != ()


async def test_a_running_machine_is_not_in_error_because_an_update_of_it_was_refused(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        found.vendors.fly.next_on("POST /v1/apps/[^/]+/machines/[^/]+", fails(422))
        await found.machines.rotate("ada", actor="test")
        await worker.provisioner.work_on("ada")
        assert found.vendors.machine.state is State.STARTED
        await found.machine(status=READY)


# --- without an end, or at the wrong time -------------------------------------------------------------


async def test_a_wish_to_go_is_heard_while_a_gateway_is_waited_for(tmp_path):
    async with yard(tmp_path, habits=NEVER) as found, found.worker() as worker:
        await found.user()
        await found.machines.provision("ada", actor="test")
        working = spawn(worker.provisioner.work_on("ada"), name="work")
        while (await found.instance()).status != "waiting_for_gateway":
            await asyncio.sleep(0.01)
        await found.machines.deprovision("ada", actor="test")
        before_ms = found.clock.now_ms()
        while not working.done() and found.clock.now_ms() - before_ms < 200_000:
            found.clock.advance(1)
            await asyncio.sleep(SLOW_TICK_S)
        is_over = working.done()
        await stop(working)
        assert is_over, "after 200 s the machine is there still"


async def test_a_gateway_that_never_answers_is_given_up_in_its_time_though_the_clock_was_set_back(tmp_path):
    async with yard(tmp_path, habits=NEVER) as found, found.worker() as worker:
        await found.user()
        await found.machines.provision("ada", actor="test")
        working = spawn(worker.provisioner.work_on("ada"), name="work")
        while (await found.instance()).patience_ms is None:
            await asyncio.sleep(0.01)
        while (await found.instance()).status != "waiting_for_gateway":
            await asyncio.sleep(0.01)
        found.clock.advance(-HOURS_S)
        before_ms = found.clock.now_ms()
        while (await found.instance()).status != ERROR and found.clock.now_ms() - before_ms < LONG_MS:
            found.clock.advance(5)
            await asyncio.sleep(0.01)
        await stop(working)
        assert (await found.instance()).status == ERROR


async def test_a_new_wish_does_not_pay_for_the_failures_of_the_one_before(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        await found.machines.rotate("ada", actor="test")
        for _ in range(5):
            found.vendors.fly.next_on("POST /v1/apps/.*/lease", fails(503))
            await worker.provisioner.work_once("ada")
            found.clock.advance(61)
        instance = await found.instance()
        assert instance.attempts == 5
        gate = Gate()
        found.vendors.fly.next_on("POST /v1/apps/.*/lease", replace(_hangs(gate), status=503))
        working = spawn(worker.provisioner.work_once("ada"), name="work")
        await gate.reached()
        await found.machines.deprovision("ada", actor="test")
        gate.open()
        await working
        instance = await found.instance()
        assert instance.attempts == 0
        assert instance.due_at_ms <= found.clock.now_ms()


async def test_an_app_that_does_not_go_is_asked_for_less_and_less_often_and_counted(tmp_path):
    async with yard(tmp_path, habits=replace(QUICK, app_delete_s=1e6)) as found, found.worker() as worker:
        await found.provisioned(worker)
        await found.machines.deprovision("ada", actor="test")
        pauses_s = []
        while len(pauses_s) < ROUNDS and (not pauses_s or pauses_s[-1] < MINUTE_S):
            await worker.provisioner.work_once("ada")
            instance = await found.instance()
            pauses_s.append((instance.due_at_ms - found.clock.now_ms()) / 1000)
            found.clock.advance(max(pauses_s[-1], MINUTE_S))
        assert pauses_s[-1] >= MINUTE_S, (pauses_s, instance.attempts)
        assert instance.attempts > 3


async def test_a_machine_whose_browser_vendor_is_configured_no_more_can_be_taken_away(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        bare = replace(worker.parts)
        bare.integrations.has_browser = False
        bare.integrations._browser = None
        await found.machines.deprovision("ada", actor="test")
        await found.until_settled(worker)


async def test_an_answer_that_comes_byte_by_byte_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(fly_module, "TIMEOUT_S", 0.3)

    async def drip(_reader, writer):
        try:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n")
            for _ in range(50):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.1)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    from metering.clock import SystemClock  # noqa: PLC0415

    async with server, fly_client(f"http://127.0.0.1:{port}", "t") as client:
        fly = fly_module.Fly(client, Pacer(SystemClock()), org_slug="o")
        asking = spawn(fly._call("GET", "/apps/x", "app", "x", timeout_s=0.3), name="ask")
        await asyncio.wait({asking}, timeout=3)
        is_over = asking.done()
        await stop(asking)
        await asyncio.sleep(0.3)
    assert is_over, "ten times as long as it may take"


# --- at rest ------------------------------------------------------------------------------------------


async def test_a_failure_of_fly_does_not_make_a_suspended_machine_a_stopped_one(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        found.vendors.fly.next_on("POST /v1/apps/.*/suspend", fails(503))
        await found.machines.suspend("ada", actor="test")
        await found.until_settled(worker)
        assert found.vendors.machine.state is State.SUSPENDED


async def test_a_machine_is_started_after_suspending_over_budget_was_turned_off(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        await found.machines.instances.set_over_budget("ada", is_over=True)
        await worker.provisioner.work_on("ada")
        await found.machine(status=SUSPENDED)
        async with found.worker("w2", plans=None) as other:
            working = spawn(other.provisioner.keep_working(), name="work")
            await found.until(lambda row: not row.is_over_budget)
            await found.machines.start("ada", actor="test")
            await found.until(lambda row: row.is_settled)
            await stop(working)
        await found.machine(status=READY)


async def test_a_machine_over_budget_that_could_not_be_suspended_is_tried_again(tmp_path):
    from metering.plans import load_plans  # noqa: PLC0415
    from provisioning.budget import over_budget  # noqa: PLC0415

    plans = load_plans()
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        spend = "INSERT INTO accounts (owner, meter, period, allowance, spent, held) VALUES ('user:ada', 'money', ?1, ?2, ?2, 0)"
        await found.store.writer.submit(Unit((Step(spend, (PERIOD, plans["pro"].allowance_nanousd)),)))
        assert await over_budget(found.machines.instances, plans) == [("ada", True)]
        await found.machines.instances.set_over_budget("ada", is_over=True)
        found.vendors.fly.next_on("POST /v1/apps/.*/cordon", *(fails(503) for _ in range(8)))
        await found.until_settled(worker)
        await found.machine(status=ERROR)
        assert found.vendors.machine.state is State.STARTED
        instance = await found.instance()
        again = await over_budget(found.machines.instances, plans)
        assert instance.due_at_ms is not None or again, "it runs for nothing, and nobody looks again"


async def test_stopping_is_asked_for_again_after_it_took_too_long_once(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        asked = []
        stop_machine = worker.parts.fly.stop

        async def unheard(machine):
            asked.append(found.clock.now_ms())
            if len(asked) > 1 and found.clock.now_ms() - asked[0] > 301_000:
                await stop_machine(machine)
            found.clock.advance(100)

        async def no_wait(*_args, **_more):
            return False

        worker.parts.fly.stop = unheard
        worker.parts.fly.wait = no_wait
        await found.machines.stop("ada", actor="test")
        await found.until_settled(worker)
        await found.machine(status=STOPPED)


# --- what exists already ------------------------------------------------------------------------------


async def test_an_app_that_does_not_say_its_network_is_not_taken_for_the_users(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        found.vendors.fly.organization.create_app(next(names.app_names(PREFIX, "ada")), "")
        await found.user()
        await found.machines.provision("ada", actor="test")
        await found.until_settled(worker)
        assert found.vendors.fly.machines == []


async def test_a_machine_is_adopted_with_the_volume_that_it_has(tmp_path):
    """The second of the original's defects: what is on record must be what the machine mounts."""
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        await found.machines.deprovision("ada", actor="test")
        found.vendors.fly.next_on("GET /v1/apps/[^/]+", fails(403, message="forbidden"))
        await found.until_settled(worker)
        await found.machine(status=GONE)
        await found.machines.provision("ada", actor="test")
        await found.until_settled(worker)
        machine = await found.machine(status=READY)
        (on_record,) = (one.upstream_id for one in machine.resources if one.kind == "volume")
        assert [mount["volume"] for mount in found.vendors.machine.config["mounts"]] == [on_record]
        found.vendors.assert_one_of_each()


async def test_a_key_that_may_not_make_apps_is_not_called_a_name_that_is_taken(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        found.vendors.fly.next_on("POST /v1/apps", *(fails(403, message="not authorized") for _ in range(5)))
        await found.user()
        await found.machines.provision("ada", actor="test")
        await found.until_settled(worker)
        assert (await found.instance()).error_code == Code.PROVIDER_UNAUTHORIZED.value


async def test_a_mailbox_that_the_user_had_before_outlives_the_machine(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.user()
        from metering.objects import user_tag  # noqa: PLC0415

        pod_id = await worker.parts.integrations.make_pod(user_tag("ada"))
        inbox_id = await worker.parts.integrations.make_inbox(pod_id, user_tag("ada"))
        await worker.parts.objects.bind([ObjectId("agentmail", "pod", pod_id)], "ada", "home:pod")
        await worker.parts.objects.bind([inbox_object(inbox_id)], "ada", "home:inbox")
        await found.machines.provision("ada", actor="test")
        await worker.provisioner.work_on("ada")
        await found.machines.deprovision("ada", actor="test")
        await found.until_settled(worker)
        assert found.vendors.inboxes == [inbox_id]


async def _left_behind(found, worker):
    """The app of a machine that is gone, made by a call that came late. Its name."""
    machine = await found.provisioned(worker)
    name = machine.instance.app_name
    await found.machines.deprovision("ada", actor="test")
    await found.until_settled(worker)
    found.vendors.assert_nothing()
    found.vendors.fly.organization.create_app(name, names.network(name))
    found.clock.advance(HOURS_S)
    return name


async def test_repairs_take_away_what_came_late_of_a_machine_that_is_gone(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        name = await _left_behind(found, worker)
        looked = await worker.provisioner.reconcile(repairs=False)
        assert [(one.kind, one.app, one.user_id, one.done) for one in looked.findings] == [
            ("unknown_app", name, "ada", "")
        ]
        assert len(found.vendors.fly.apps) == 1
        await worker.provisioner.reconcile(repairs=True)
        await found.until_settled(worker)
        await found.machine(status=GONE)
        found.vendors.assert_nothing()


async def test_a_look_takes_nothing_away_that_was_made_anew_since_it_read_the_rows(tmp_path, monkeypatch):
    async with yard(tmp_path) as found, found.worker() as worker:
        await _left_behind(found, worker)
        told = Machines.store_id

        async def meanwhile(machines):
            monkeypatch.setattr(Machines, "store_id", told)
            await found.machines.provision("ada", actor="test")
            await found.until_settled(worker)
            await found.machine(status=READY)
            return await told(machines)

        monkeypatch.setattr(Machines, "store_id", meanwhile)
        looked = await worker.provisioner.reconcile(repairs=True)
        assert [one.done for one in looked.findings] == [""]
        await found.until_settled(worker)
        await found.machine(status=READY)
        found.vendors.assert_one_of_each()


async def test_a_browser_context_of_a_machine_that_is_gone_is_not_reported_for_ever(tmp_path):
    from simulators import browserbase  # noqa: PLC0415

    async with yard(tmp_path) as found, found.worker() as worker:
        found.vendors.browserbase.next_on("POST /v1/contexts", browserbase.loses_reply())
        await found.user()
        await found.machines.provision("ada", actor="test")
        await found.until_settled(worker)
        await found.machines.deprovision("ada", actor="test")
        await found.until_settled(worker)
        await found.machine(status=GONE)
        assert len(found.vendors.contexts) == 1, "the lost one, which nobody can name"
        looked = await worker.provisioner.reconcile(repairs=True)
        assert [one.kind for one in looked.findings if not one.done] == []


async def test_machines_that_do_not_answer_do_not_keep_others_from_being_taken_away(tmp_path):
    async with yard(tmp_path) as found, found.worker(at_once=2) as worker:
        await found.provisioned(worker, "eve")
        found.vendors.fly.set_habits(NEVER)
        for user_id in ("ada", "bob"):
            await found.machines.provision(await found.user(user_id), actor="test")
        working = spawn(worker.provisioner.keep_working(), name="work")
        for user_id in ("ada", "bob"):
            while (await found.instance(user_id)).status != "waiting_for_gateway":
                await asyncio.sleep(0.01)
        await found.machines.deprovision("eve", actor="test")
        for _ in range(100):  # 100 s
            if (status := (await found.instance("eve")).status) == GONE:
                break
            found.clock.advance(1)
            await asyncio.sleep(SLOW_TICK_S)
        await stop(working)
        assert status == GONE


async def test_an_old_token_lives_until_the_version_that_has_the_new_one_runs(tmp_path, monkeypatch):
    """At Fly the state is that of the old version for a moment after an update, and OpenClaw's /startupz asks for no token."""
    from provisioning import lifecycle  # noqa: PLC0415

    async with yard(tmp_path) as found, found.worker() as worker:
        machine = await found.provisioned(worker)
        organization, there = found.vendors.fly.organization, found.vendors.machine

        def boot_a_moment_later(one, *, skips_launch):
            assert not skips_launch
            organization.become(one, (0.5, State.REPLACING), *organization.booting(one, 0.1, after_s=0.1))

        async def startupz(_run):
            return there.running is not None

        monkeypatch.setattr(found.vendors.fly._machines, "_boot_again", boot_a_moment_later)
        monkeypatch.setattr(lifecycle, "_answers", startupz)
        old_instance = there.running.instance_id
        await found.machines.rotate("ada", actor="test")
        await worker.provisioner.work_on("ada")
        assert there.running.instance_id == old_instance, "still"
        old = await found.directory.token(machine.instance.token_id)
        assert old.is_live(found.clock.now_ms() + GRACE_MS - 1_000)
        assert not old.is_live(found.clock.now_ms() + GRACE_MS)


def _hangs(gate):
    from simulators.fly_behaviour import hangs  # noqa: PLC0415

    return hangs(gate=gate, works=False)
