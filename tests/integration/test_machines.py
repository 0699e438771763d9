"""Agents' machines from wish to ready and back to nothing, by real workers on one store, before simulated vendors."""

import asyncio
from dataclasses import replace

import pytest

from metering.store.writer import Step, Unit
from metering.tasks import spawn
from metering.users import NotFoundError
from provisioning import names
from provisioning.errors import Code
from provisioning.instances import DEPROVISIONING, ERROR, GONE, READY, STOPPED, SUSPENDED
from provisioning.machines import MachineError, NoMachineError
from simulators.fly import FAILING_IMAGE, STALLING_IMAGE, VENDOR_KEY, Rates, Shortage
from simulators.fly_state import State
from tests.support.ledger import PERIOD
from tests.support.machines import IMAGE, QUICK
from tests.support.provisioners import PREFIX, yard

STAGES = [
    "wished",
    "creating_app",
    "app_made",
    "allocating_ips",
    "ip_made",
    "ip_made",
    "creating_integrations",
    "volume_made",
    "context_made",
    "pod_made",
    "inbox_made",
    "creating_machine",
    "machine_made",
    "starting",
    "waiting_for_gateway",
    "ready",
]
USERS = 50
SAME_AT_ONCE = 20


async def test_a_wish_becomes_a_machine_with_one_of_everything_in_a_network_of_its_own(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        machine = await found.provisioned(worker)
        found.vendors.assert_one_of_each()
        await found.assert_has_its_token()
        assert await found.stages() == STAGES
        app, there = found.vendors.app, found.vendors.machine
        assert (
            app.name == PREFIX + names.user_hash("ada")[: names.APP_HASH_CHARS] == machine.instance.app_name
        )
        assert app.network == f"net-{app.name}"
        assert there.metadata == {
            "automna_user": names.user_hash("ada"),
            "automna_generation": "1",
            "automna_store": await found.machines.store_id(),
        }
        assert "ada" not in repr(found.vendors.fly.organization.apps)
        assert there.config["image"] == IMAGE
        env = found.vendors.env()
        assert env["BROWSERBASE_CONTEXT_ID"] == found.vendors.contexts[0]
        assert env["AGENTMAIL_INBOX_ID"] == found.vendors.inboxes[0]
        rows = await found.store.readers.rows(
            "SELECT vendor, kind, upstream_id, user_id FROM owned_objects ORDER BY vendor, kind"
        )
        assert rows == [
            ("agentmail", "inbox", found.vendors.inboxes[0], "ada"),
            ("agentmail", "pod", found.vendors.pods[0], "ada"),
            ("browserbase", "context", found.vendors.contexts[0], "ada"),
        ]


async def test_the_record_kinds_of_the_replaced_service_tell_of_it(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        machine = await found.provisioned(worker)
        (row,) = await found.store.readers.rows(
            "SELECT id, user_id, app_name, region, volume_id, status, ip_address, gateway_token, browserbase_context_id, "
            "agentmail_inbox_id, plan FROM machines"
        )
        (address, _) = found.vendors.app.addresses
        assert row == (
            *(
                machine.machine_id,
                "ada",
                found.vendors.app.name,
                "sjc",
                found.vendors.fly.volumes[0].id,
                "ready",
            ),
            *(address.ip, None, found.vendors.contexts[0], found.vendors.inboxes[0], "pro"),
        )
        assert await found.store.readers.rows("SELECT user_id, status, error FROM provision_status") == [
            ("ada", "ready", None)
        ]


async def test_no_gateway_token_stands_in_the_store(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        secret = found.vendors.gateway_token()
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in everything
    assert b"ada" in everything


async def test_the_same_user_requested_twenty_times_at_once_gets_one_machine(tmp_path):
    async with yard(tmp_path) as found, found.worker("w1") as one, found.worker("w2") as two:
        await found.user()
        await asyncio.gather(
            *(
                worker.parts.machines.provision("ada", actor="test")
                for worker in (one, two)
                for _ in range(SAME_AT_ONCE // 2)
            ),
        )
        await asyncio.gather(
            *(worker.provisioner.work_on("ada") for worker in (one, two) for _ in range(SAME_AT_ONCE // 2))
        )
        await found.machine(status=READY)
        found.vendors.assert_one_of_each()
        await found.assert_has_its_token()


async def test_fifty_users_by_two_workers_within_the_rate_limits(tmp_path):
    async with yard(tmp_path, habits=replace(QUICK, rates=Rates())) as found:
        for number in range(USERS):
            await found.machines.provision(await found.user(f"u{number}"), actor="test")
        async with found.worker("w1") as one, found.worker("w2") as two:
            working = [spawn(each.provisioner.keep_working(), name="work") for each in (one, two)]
            async with asyncio.timeout(60):
                while len(await found.machines.all(status=READY)) < USERS:
                    await asyncio.sleep(0.05)
            workers = {event.kind for event in await found.machines.events("u0", at_most=100)}
            assert "ready" in workers
            for task in working:
                task.cancel()
            await asyncio.wait(working)
        found.vendors.assert_one_of_each(USERS)
        for number in range(USERS):
            await found.assert_has_its_token(f"u{number}")
        assert len({app.network for app in found.vendors.fly.apps}) == USERS


# --- where there is no room, or what does not start --------------------------------------------------


async def test_a_full_region_makes_way_for_the_next_one(tmp_path):
    async with (
        yard(tmp_path, habits=replace(QUICK, shortages={"sjc": Shortage.REGION})) as found,
        found.worker() as worker,
    ):
        machine = await found.provisioned(worker)
        assert machine.instance.region != "sjc"
        assert found.vendors.machine.region == machine.instance.region
        found.vendors.assert_one_of_each()
        await found.assert_has_its_token()


@pytest.mark.parametrize("shortage", [Shortage.HOST, Shortage.VOLUME])
async def test_a_full_host_makes_way_for_another_volume_in_the_region(tmp_path, shortage):
    async with yard(tmp_path) as found, found.worker() as worker:
        first = found.vendors.fly.organization.next_host("sjc")
        other = found.vendors.fly.organization.next_host("sjc")
        found.vendors.fly.set_habits(replace(QUICK, shortages={first: shortage}))
        await found.provisioned(worker)
        assert (found.vendors.machine.region, found.vendors.machine.host) == ("sjc", other)
        found.vendors.assert_one_of_each()


async def test_no_room_anywhere_ends_in_an_error_that_leaves_nothing_and_may_be_tried_again(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        regions = worker.parts.templates.of("pro").regions
        found.vendors.fly.set_habits(replace(QUICK, shortages=dict.fromkeys(regions, Shortage.REGION)))
        await found.user()
        await found.machines.provision("ada", actor="test")
        await found.until_settled(worker)
        machine = await found.machine(status=ERROR)
        assert (machine.instance.error_code, machine.instance.is_retryable) == (Code.NO_CAPACITY.value, 1)
        found.vendors.assert_nothing()
        assert await found.living_tokens() == []
        found.vendors.fly.set_habits(QUICK)
        await found.machines.provision("ada", actor="test")
        await found.until_settled(worker)
        await found.machine(status=READY)
        found.vendors.assert_one_of_each()
        await found.assert_has_its_token()


@pytest.mark.parametrize(
    ("image", "code"), [(FAILING_IMAGE, Code.MACHINE_FAILED), (STALLING_IMAGE, Code.START_TIMEOUT)]
)
async def test_what_does_not_start_ends_in_an_error_that_leaves_nothing(tmp_path, image, code):
    async with yard(tmp_path) as found, found.worker(image=f"{image}@sha256:{'0' * 64}") as worker:
        await found.user()
        await found.machines.provision("ada", actor="test")
        await found.while_time_passes(found.until_settled(worker), step_s=10)
        machine = await found.machine(status=ERROR)
        assert (machine.instance.error_code, machine.instance.is_retryable) == (code.value, 1)
        found.vendors.assert_nothing()
        assert await found.living_tokens() == []


async def test_a_gateway_that_never_answers_ends_in_an_error_that_leaves_nothing(tmp_path):
    async with yard(tmp_path, habits=replace(QUICK, gateway_s=1e6)) as found, found.worker() as worker:
        await found.user()
        await found.machines.provision("ada", actor="test")
        await found.while_time_passes(found.until_settled(worker), step_s=5)
        machine = await found.machine(status=ERROR)
        assert machine.instance.error_code == Code.GATEWAY_TIMEOUT.value
        found.vendors.assert_nothing()


async def test_a_refused_key_ends_in_an_error_and_whoever_waits_is_let_go(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        found.vendors.fly.api_key = b"another"
        await found.user()
        await found.machines.provision("ada", actor="test")
        working = spawn(worker.provisioner.work_on("ada"), name="work")
        while not working.done():
            found.clock.advance(60)
            await asyncio.sleep(0.01)
        await working
        machine = await found.machine(status=ERROR)
        assert machine.instance.error_code == Code.PROVIDER_UNAUTHORIZED.value
        assert not machine.instance.is_settled
        found.vendors.fly.api_key = VENDOR_KEY.encode()
        await found.until_settled(worker)
        found.vendors.assert_nothing()


# --- what exists already -----------------------------------------------------------------------------


async def test_another_organizations_app_of_the_name_makes_way_for_the_next_name(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        first, second, *_ = names.app_names(PREFIX, "ada")
        found.vendors.fly.organization.foreign_apps.add(first)
        machine = await found.provisioned(worker)
        assert machine.instance.app_name == second
        found.vendors.assert_one_of_each()
        await found.machines.deprovision("ada", actor="test")
        await found.until_settled(worker)
        found.vendors.assert_nothing()


async def test_an_app_of_the_users_name_in_another_network_is_nobodys_to_take(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        name = next(names.app_names(PREFIX, "ada"))
        found.vendors.fly.organization.create_app(name, "net-of-somebody")
        await found.user()
        await found.machines.provision("ada", actor="test")
        await found.until_settled(worker)
        machine = await found.machine(status=ERROR)
        assert (machine.instance.error_code, machine.instance.is_retryable) == (Code.NOT_OURS.value, 0)
        assert [app.network for app in found.vendors.fly.apps] == ["net-of-somebody"]


# --- what is wished of one that is ready ---------------------------------------------------------------


async def test_a_stopped_machine_stays_stopped_whoever_asks_until_it_is_started(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        await found.machines.stop("ada", actor="test")
        await worker.provisioner.work_on("ada")
        await found.machine(status=STOPPED)
        there = found.vendors.machine
        url = found.machines.url_of(there.app.name)
        answer = await worker.parts.probes.get(
            url, headers={"authorization": f"Bearer {there.config['env']['OPENCLAW_GATEWAY_TOKEN']}"}
        )
        assert (answer.status_code, there.state, there.is_cordoned) == (502, State.STOPPED, True)
        await found.machines.start("ada", actor="test")
        await worker.provisioner.work_on("ada")
        await found.machine(status=READY)
        assert (there.state, there.is_cordoned) == (State.STARTED, False)


async def test_a_machine_that_sleeps_by_itself_is_left_asleep_by_an_update_and_a_rotation(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker, plan="starter")
        there = found.vendors.machine
        found.vendors.fly.fall_idle(there)
        found.clock.advance(1)
        found.vendors.fly.pass_time()
        assert there.is_off
        before = there.config["env"]["OPENCLAW_GATEWAY_TOKEN"]
        await found.machines.rotate("ada", actor="test")
        await worker.provisioner.work_on("ada")
        await found.machine(status=READY)
        assert there.is_off
        assert there.config["env"]["OPENCLAW_GATEWAY_TOKEN"] != before
        (living,) = await found.living_tokens()
        assert living == (await found.instance()).token_id


async def test_another_plan_changes_what_the_template_says_and_nothing_else(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker, plan="pro")
        there = found.vendors.machine
        assert there.services[0]["autostop"] == "off"
        there.config["env"]["SET_BY_HAND"] = "kept"
        await found.directory.set_plan("ada", "starter")
        await found.machines.update("ada", actor="test")
        await worker.provisioner.work_on("ada")
        await found.machine(status=READY)
        assert there.services[0]["autostop"] in {"stop", "suspend"}
        assert there.config["env"]["SET_BY_HAND"] == "kept"
        assert found.vendors.fly.leases == {}
        await found.assert_has_its_token()


async def test_an_update_without_a_difference_does_not_boot_it_again(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        before = found.vendors.machine.instance_id
        await found.machines.update("ada", actor="test")
        await worker.provisioner.work_on("ada")
        assert found.vendors.machine.instance_id == before


async def test_a_machine_that_went_is_made_again_on_its_volume(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        (volume,) = found.vendors.fly.volumes
        found.vendors.fly.organization.become(found.vendors.machine, State.DESTROYED)
        volume.machine_id = ""
        await found.machines.update("ada", actor="test")
        await found.until_settled(worker)
        await found.machine(status=READY)
        assert [each.id for each in found.vendors.fly.volumes] == [volume.id]
        found.vendors.assert_one_of_each()
        await found.assert_has_its_token()


async def test_an_app_that_somebody_deleted_is_made_again_with_all_that_was_in_it(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        found.vendors.fly.organization.delete_app(found.vendors.app)
        found.clock.advance(1)
        found.vendors.fly.pass_time()
        assert found.vendors.fly.apps == []
        await found.machines.update("ada", actor="test")
        await found.until_settled(worker)
        await found.machine(status=READY)
        found.vendors.assert_one_of_each()
        await found.assert_has_its_token()


async def test_a_volume_that_somebody_deleted_is_made_again(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        (volume,) = found.vendors.fly.volumes
        found.vendors.fly.organization.become(found.vendors.machine, State.DESTROYED)
        volume.machine_id, volume.deleted_ms = "", 1
        await found.machines.update("ada", actor="test")
        await found.until_settled(worker)
        await found.machine(status=READY)
        found.vendors.assert_one_of_each()


async def test_what_was_ready_once_is_never_taken_away_by_a_failure(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        found.vendors.fly.crash(found.vendors.machine)
        found.vendors.fly.set_habits(replace(QUICK, shortages={found.vendors.machine.host: Shortage.HOST}))
        await found.machines.update("ada", actor="test")
        await found.until_settled(worker)
        machine = await found.machine(status=ERROR)
        assert machine.instance.error_code == Code.NO_CAPACITY.value
        assert (
            len(found.vendors.fly.volumes) == len(found.vendors.fly.apps) == len(found.vendors.inboxes) == 1
        )
        found.vendors.fly.set_habits(QUICK)
        await found.machines.provision("ada", actor="test")
        await found.until_settled(worker)
        await found.machine(status=READY)
        found.vendors.assert_one_of_each()


async def test_wishes_of_who_has_no_machine_are_refused(tmp_path):
    async with yard(tmp_path) as found:
        await found.user()
        for wish in (found.machines.start, found.machines.rotate, found.machines.deprovision):
            with pytest.raises(NoMachineError):
                await wish("ada", actor="test")
        with pytest.raises(NotFoundError):
            await found.machines.provision("nobody", actor="test")
        await found.machines.provision("ada", actor="test")
        with pytest.raises(MachineError, match="never ready"):
            await found.machines.stop("ada", actor="test")


# --- gone --------------------------------------------------------------------------------------------


async def test_deprovisioning_leaves_nothing_but_the_ledger_and_refuses_the_token_at_once(tmp_path):
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        await found.machines.deprovision("ada", actor="test")
        assert await found.living_tokens() == []
        await found.machine(status=DEPROVISIONING)
        with pytest.raises(MachineError, match="taken away"):
            await found.machines.provision("ada", actor="test")
        await worker.provisioner.work_on("ada")
        await found.machine(status=GONE)
        found.vendors.assert_nothing()
        for table in ("owned_objects", "agent_hooks"):
            assert await found.store.readers.rows(f"SELECT * FROM {table}") == []
        again = await found.machines.deprovision("ada", actor="test")
        assert again.status == GONE
        assert (await found.machines.provision("ada", actor="user", takes_up_gone=False)).status == GONE
        await found.machines.provision("ada", actor="test")
        await worker.provisioner.work_on("ada")
        assert (await found.machine(status=READY)).instance.generation == 2
        found.vendors.assert_one_of_each()
        await found.assert_has_its_token()


async def test_an_app_that_takes_its_time_to_go_is_waited_for(tmp_path):
    async with yard(tmp_path, habits=replace(QUICK, app_delete_s=0.2)) as found, found.worker() as worker:
        await found.provisioned(worker)
        await found.machines.deprovision("ada", actor="test")
        await worker.provisioner.work_once("ada")
        await found.machine(status=DEPROVISIONING)
        await found.until_settled(worker)
        await found.machine(status=GONE)
        found.vendors.assert_nothing()


async def test_a_mailbox_that_the_user_had_before_outlives_a_machine_that_did_not_come(tmp_path):
    async with yard(tmp_path, habits=replace(QUICK, gateway_s=1e6)) as found, found.worker() as worker:
        await found.user()
        tag = next(iter((await _own_mailbox(found, worker)).values()))
        await found.machines.provision("ada", actor="test")
        await found.while_time_passes(found.until_settled(worker), step_s=5)
        await found.machine(status=ERROR)
        assert found.vendors.inboxes == [tag]


# --- budgets -----------------------------------------------------------------------------------------


async def test_a_machine_rests_while_its_user_has_nothing_left_and_comes_back(tmp_path):
    from metering.plans import load_plans  # noqa: PLC0415
    from provisioning.budget import over_budget  # noqa: PLC0415

    plans = load_plans()
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker, plan="free")
        spend = "INSERT INTO accounts (owner, meter, period, allowance, spent, held) VALUES ('user:ada', 'money', ?1, ?2, ?2, 0)"
        allowance = plans["free"].allowance_nanousd
        await found.store.writer.submit(Unit((Step(spend, (PERIOD, allowance)),)))
        assert await over_budget(found.machines.instances, plans) == [("ada", True)]
        await found.machines.instances.set_over_budget("ada", is_over=True)
        await worker.provisioner.work_on("ada")
        await found.machine(status=SUSPENDED)
        assert found.vendors.machine.is_cordoned
        assert await over_budget(found.machines.instances, plans) == []
        await found.directory.set_plan("ada", "pro")
        assert await over_budget(found.machines.instances, plans) == [("ada", False)]
        await found.machines.instances.set_over_budget("ada", is_over=False)
        await worker.provisioner.work_on("ada")
        await found.machine(status=READY)


# --- two workers -------------------------------------------------------------------------------------


async def test_who_lost_its_claim_writes_nothing_any_more(tmp_path):
    from provisioning.errors import SupersededError  # noqa: PLC0415

    async with yard(tmp_path) as found:
        await found.user()
        await found.machines.provision("ada", actor="test")
        instances = found.machines.instances
        lost = await instances.claim("slow", for_s=60)
        assert lost is not None
        assert await instances.claim("other", for_s=60) is None
        found.clock.advance(61)
        taken = await instances.claim("other", for_s=60)
        assert taken is not None
        for write in (
            lost.write(status="ready"),
            lost.write_whatever_is_wished(status="ready"),
            lost.renew(),
        ):
            with pytest.raises(SupersededError):
                await write
        assert (await found.instance()).status == "pending"
        await taken.write(status="creating_app")


async def test_a_clock_that_was_set_back_keeps_no_machine_from_being_worked_on(tmp_path):
    """Not the one that was let go of, or is to be tried again, by an instant that has not come yet; nor the looks at all."""
    async with yard(tmp_path) as found, found.worker() as worker:
        await found.provisioned(worker)
        instances = found.machines.instances
        assert await instances.take_turn("reconcile", every_s=60)
        found.clock.advance(-86_400)
        assert await instances.take_turn("reconcile", every_s=60)
        assert not await instances.take_turn("reconcile", every_s=60)
        found.clock.advance(-0.005)  # another worker read it just before, and wrote just after
        assert not await instances.take_turn("reconcile", every_s=60)
        await found.machines.deprovision("ada", actor="test")
        claim = await instances.claim("dies", for_s=60)
        assert claim is not None
        assert await instances.claim("other", for_s=60) is None
        await claim.write(due_at_ms=found.clock.now_ms() + 1_000)
        found.clock.advance(-86_400)
        assert await worker.provisioner.work_once("ada")
        await found.until_settled(worker)
        await found.machine(status=GONE)


async def _own_mailbox(found, worker):
    """As the simple e-mail API makes one."""
    from metering.objects import user_tag  # noqa: PLC0415
    from provisioning.integrations import inbox_object, pod_object  # noqa: PLC0415

    tag = user_tag("ada")
    pod_id = await worker.parts.integrations.make_pod(tag)
    inbox_id = await worker.parts.integrations.make_inbox(pod_id, tag)
    await worker.parts.objects.bind([pod_object(pod_id)], "ada", "home:pod")
    await worker.parts.objects.bind([inbox_object(inbox_id)], "ada", "home:inbox")
    return {"inbox": inbox_id}
