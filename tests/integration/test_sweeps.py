"""Objects that the vendor made and whose answer never came: found, and bound to whom they were made for alone."""

import asyncio
import json
import random
from collections.abc import AsyncIterator

import httpx
import pytest

from automna_proxy.service import swept_once
from metering.objects import ObjectId, Objects
from metering.orphans import State, Sweep
from proxy.rewriting import tag_of
from simulators.agentmail import AgentMailSimulator, Plan, answers_late, fails, hangs, loses_reply
from simulators.agentmail_state import Pod
from simulators.script import Gate
from tests.support.agentmail import House, User, house, variables
from tests.support.process import serving

INBOXES = "/v0/inboxes"
ROOMY = {"AGENTMAIL_INBOXES_PER_USER": "1000"}
STEPS = 60
LATE_S = 0.02


@pytest.fixture
async def vendor() -> AsyncIterator[AgentMailSimulator]:
    async with AgentMailSimulator(plan=Plan(inboxes_max=None)) as simulator:
        yield simulator


async def swept(at: House, *, is_dry: bool = False) -> Sweep:
    service = at.gateway.service
    (found,) = await swept_once(service.settings, service.store, at.gateway.clock, is_dry=is_dry)
    return found


def told(found: Sweep) -> dict[str, tuple[State, str | None]]:
    return {orphan.trace.one.upstream_id: (orphan.state, orphan.user_id) for orphan in found.orphans}


async def owners(at: House) -> dict[str, tuple[str, str]]:
    rows = await at.gateway.service.store.readers.rows(
        "SELECT upstream_id, user_id, reservation_id FROM owned_objects WHERE kind = 'inbox'"
    )
    return {str(inbox): (str(user), str(request)) for inbox, user, request in rows}


async def lose(at: House, user: User, username: str) -> str:
    """An inbox of the user's at the vendor, whose answers were lost; the request's id. They have a pod."""
    at.vendor.next(loses_reply(), loses_reply())
    answer = await user.http.post(INBOXES, json={"username": username})
    assert answer.status_code == 502
    await at.gateway.quiet()
    return str(answer.headers["x-automna-request-id"])


async def make_pods(at: House) -> None:
    for user in (at.ada, at.bob):
        assert (await user.http.get(INBOXES)).json()["count"] == 0


def pod_of(at: House, username: str) -> Pod:
    return at.vendor.organization.pods[at.vendor.organization.inboxes[f"{username}@agentmail.to"].pod_id]


async def status_of(user: User, inbox: str) -> int:
    return (await user.http.get(f"{INBOXES}/{inbox}")).status_code


async def test_an_inbox_whose_answer_was_lost_becomes_its_user_s_and_nobody_else_s(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        await make_pods(at)
        request = await lose(at, at.ada, "Wren")
        assert await status_of(at.ada, "wren@agentmail.to") == 404
        would = await swept(at, is_dry=True)
        assert told(would) == {"wren@agentmail.to": (State.ATTRIBUTABLE, "ada")}
        assert await owners(at) == {}
        done = await swept(at)
        assert told(done) == {"wren@agentmail.to": (State.BOUND, "ada")}
        assert await owners(at) == {"wren@agentmail.to": ("ada", request)}
        assert [await status_of(user, "wren@agentmail.to") for user in (at.ada, at.bob)] == [200, 404]
        again = await swept(at)
        assert (again.looked_at, again.is_whole, told(again)) == (1, True, {})
        assert (await at.bob.http.post(INBOXES, json={"username": "wren"})).status_code == 403
        assert (await at.ada.http.delete(f"{INBOXES}/Wren@agentmail.to")).status_code == 202


async def test_with_a_client_id_of_its_user_s_own_the_pod_tells(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        await at.bob.http.get(INBOXES)
        vendor.next(loses_reply(), loses_reply())
        await at.bob.http.post(INBOXES, json={"username": "lynx", "client_id": "mine"})
        await at.gateway.quiet()
        assert told(await swept(at)) == {"lynx@agentmail.to": (State.BOUND, "bob")}
        assert await owners(at) == {"lynx@agentmail.to": ("bob", "sweep")}


async def test_what_counts_for_nobody_is_left_alone_and_counted(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        await make_pods(at)
        vendor.add_inbox("operators-own")
        vendor.add_inbox("elsewhere", pod=vendor.add_pod("another"))
        await lose(at, at.ada, "lost")
        # As no vendor should: ada's request, in the pod of bob.
        await at.bob.inbox("bobs")
        both = vendor.add_inbox("both", pod=pod_of(at, "bobs"))
        both.client_id = tag_of(await lose(at, at.ada, "other"))
        found = told(await swept(at))
        assert found.pop("lost@agentmail.to") == (State.BOUND, "ada")
        assert found.pop("other@agentmail.to") == (State.BOUND, "ada")
        unknown = {
            f"{name}@agentmail.to": (State.UNKNOWN, None) for name in ("operators-own", "elsewhere", "both")
        }
        assert found == unknown
        assert told(await swept(at)) == unknown
        for name in unknown:
            assert [await status_of(user, name) for user in (at.ada, at.bob)] == [404, 404]


async def test_a_request_under_way_binds_what_it_makes_itself(tmp_path, vendor):
    gate = Gate()
    async with house(tmp_path, vendor) as at:
        await at.ada.http.get(INBOXES)
        for body in ({"username": "tagged"}, {"username": "named", "client_id": "mine"}):
            vendor.next(hangs(gate=gate))
            making = asyncio.get_running_loop().create_task(at.ada.http.post(INBOXES, json=body))
            await gate.reached()
            inbox = f"{body['username']}@agentmail.to"
            assert told(await swept(at)) == {inbox: (State.UNDER_WAY, "ada")}
            gate.open()
            request = (await making).headers["x-automna-request-id"]
            assert (await owners(at))[inbox] == ("ada", request)
            assert told(await swept(at)) == {}
            gate = Gate()


async def test_who_sweeps_at_once_binds_once(tmp_path, vendor):
    async with house(tmp_path, vendor, env=ROOMY) as at:
        await make_pods(at)
        requests = [await lose(at, at.ada if number % 2 else at.bob, f"i{number}") for number in range(10)]
        found = await asyncio.gather(*(swept(at) for _ in range(8)))
        bound = [inbox for each in found for inbox, (state, _) in told(each).items() if state is State.BOUND]
        assert sorted(bound) == sorted(f"i{number}@agentmail.to" for number in range(10))
        assert await owners(at) == {
            f"i{number}@agentmail.to": ("ada" if number % 2 else "bob", request)
            for number, request in enumerate(requests)
        }


async def test_all_pages_are_looked_through(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        await make_pods(at)
        await lose(at, at.ada, "oldest")
        for number in range(250):
            vendor.add_inbox(f"other{number}")
        found = await swept(at)
        assert (found.looked_at, found.is_whole, found.count(State.UNKNOWN)) == (251, True, 250)
        assert (await owners(at))["oldest@agentmail.to"][0] == "ada"


async def test_what_was_released_stays_so_until_the_vendor_hands_it_out(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("wren")
        await at.gateway.quiet()
        objects = Objects(at.gateway.service.store, at.gateway.clock)
        await objects.release(ObjectId("agentmail", "inbox", inbox), "ada")
        for _ in range(2):
            assert told(await swept(at)) == {inbox: (State.RELEASED, None)}
            assert [await status_of(user, inbox) for user in (at.ada, at.bob)] == [404, 404]
        await at.ada.http.get(INBOXES)  # it lies in her pod still, and she is shown it
        assert [await status_of(user, inbox) for user in (at.ada, at.bob)] == [200, 404]


@pytest.mark.parametrize("seed", range(4))
async def test_sweeps_amid_creations_in_trouble_leave_each_inbox_with_its_user(tmp_path, seed):
    """Two users make inboxes, their answers lost, late or refused; sweeps all the while."""
    dice = random.Random(seed)
    trouble = [loses_reply, lambda: answers_late(LATE_S), lambda: fails(500, works=True), lambda: fails(503)]
    async with (
        AgentMailSimulator(plan=Plan(inboxes_max=None)) as vendor,
        house(tmp_path, vendor, env=ROOMY) as at,
    ):
        await make_pods(at)
        pods = {
            pod.pod_id: user
            for user in ("ada", "bob")
            for pod in vendor.organization.pods.values()
            if pod.pod_id == await _pod(at, user)
        }
        vendor.script = lambda request: dice.choice(trouble)() if request.method == "POST" else None
        is_over = asyncio.Event()

        async def make(user: User) -> None:
            for number in range(STEPS // 2):
                more = {} if dice.random() < 0.5 else {"client_id": f"c{number}"}
                await user.http.post(INBOXES, json={"username": f"{user.user_id}{number}", **more})
                if dice.random() < 0.2:
                    await user.http.get(INBOXES)

        async def sweep() -> None:
            while not is_over.is_set():
                await swept(at)

        sweeping = [asyncio.get_running_loop().create_task(sweep()) for _ in range(2)]
        await asyncio.gather(make(at.ada), make(at.bob))
        is_over.set()
        await asyncio.gather(*sweeping)
        await at.gateway.quiet()
        await swept(at)
        owned = await owners(at)
        assert len(vendor.organization.inboxes) > STEPS // 4
        assert {inbox: user for inbox, (user, _) in owned.items()} == {
            inbox: pods[each.pod_id] for inbox, each in vendor.organization.inboxes.items()
        }
        assert all(inbox.startswith(user) for inbox, (user, _) in owned.items())


async def _pod(at: House, user_id: str) -> str:
    row = await at.gateway.service.store.readers.row(
        "SELECT upstream_id FROM owned_objects WHERE kind = 'pod' AND user_id = ?1", (user_id,)
    )
    assert row is not None
    return str(row[0])


async def test_a_vendor_that_cannot_be_read_is_asked_the_next_time(tmp_path, vendor):
    env = {"SWEEP_EVERY_S": "0.05"}
    vendor.script = lambda request: fails(503) if request.path == INBOXES else None
    async with house(tmp_path, vendor, env=env) as at:
        await lose_under_script(at)
        asked = vendor.requests_total
        await at.gateway.until(lambda: vendor.requests_total > asked + 2)
        assert await owners(at) == {}
        vendor.script = None
        labels = {"surface": "agentmail", "kind": "inbox"}
        await at.gateway.until(lambda: at.gateway.metric("automna_orphans_bound_total", **labels) == 1)
        assert {user for user, _ in (await owners(at)).values()} == {"ada"}
        vendor.add_inbox("operators-own")
        await at.gateway.until(lambda: at.gateway.metric("automna_orphans", **labels) == 1)


async def lose_under_script(at: House) -> None:
    """As `lose`, where the account's list cannot be read."""
    script, at.vendor.script = (
        at.vendor.script,
        lambda request: (
            loses_reply()
            if request.method == "POST" and request.path.endswith("/inboxes")
            else script(request)
        ),
    )
    await at.ada.http.get(INBOXES)
    assert (await at.ada.http.post(INBOXES, json={"username": "lost"})).status_code == 502
    at.vendor.script = script
    await at.gateway.quiet()


async def test_a_server_killed_between_the_vendor_s_work_and_our_row_leaves_nothing_without_an_owner(
    tmp_path, vendor
):
    env = {**variables(vendor), "CHANGES_POLL_S": "0.1"}
    async with serving(tmp_path, upstream=vendor.url, env=env) as server:
        async with server.directory() as directory:
            for user in ("ada", "bob"):
                await directory.add_user(user, plan="test")
            tokens = {user: (await directory.create_token(user))[0] for user in ("ada", "bob")}
        server.port = int(server.url.rpartition(":")[2])

        def client(user: str) -> httpx.AsyncClient:
            headers = {"authorization": f"Bearer {tokens[user]}"}
            return httpx.AsyncClient(base_url=f"{server.url}/api/agentmail", headers=headers, trust_env=False)

        async with client("ada") as ada:
            await ada.get(INBOXES)
            gate = Gate()
            vendor.next(hangs(gate=gate))
            making = asyncio.get_running_loop().create_task(ada.post(INBOXES, json={"username": "wren"}))
            await gate.reached()
            await server.kill_all()
            with pytest.raises(httpx.HTTPError):
                await making
        assert [*vendor.organization.inboxes] == ["wren@agentmail.to"]
        await server.start()
        await server.until_nothing_is_held()
        dry = json.loads(await server.command("objects", "sweep", "--dry-run", "--json"))
        ((orphan,),) = [sweep["unowned"] for sweep in dry["sweeps"]]
        assert (orphan["state"], orphan["user"]) == ("attributable", "ada")
        done = await server.command("objects", "sweep")
        assert f"agentmail\tinbox\twren@agentmail.to\tbound\tada\t{orphan['request']}" in done
        assert "attributable" not in await server.command("objects", "sweep")
        async with client("ada") as ada, client("bob") as bob:
            path = f"{INBOXES}/wren@agentmail.to"
            assert [(await one.get(path)).status_code for one in (ada, bob)] == [200, 404]
        await server.assert_verified()


async def test_servers_sweep_by_themselves_and_restarts_do_not_keep_them_from_it(tmp_path, vendor):
    env = {**variables(vendor), "SWEEP_EVERY_S": "0.5"}
    async with serving(tmp_path, upstream=vendor.url, env=env, workers=2) as server:
        async with server.directory() as directory:
            await directory.add_user("ada", plan="test")
            token, _ = await directory.create_token("ada")
        headers = {"authorization": f"Bearer {token}"}
        vendor.script = lambda request: loses_reply() if request.path.endswith("/inboxes") else None
        async with httpx.AsyncClient(base_url=server.url, headers=headers, trust_env=False) as client:
            await client.post("/api/agentmail/v0/inboxes", json={"username": "wren"})
        await server.kill_all()
        await server.start()
        vendor.script = None
        rows = "SELECT user_id FROM owned_objects WHERE kind = 'inbox'"
        await server.until(lambda: server.rows(rows) == [("ada",)])
        await server.until_nothing_is_held()
        await server.assert_verified()


async def test_without_a_key_nothing_is_asked(tmp_path, vendor):
    async with house(tmp_path, vendor, env={"AGENTMAIL_API_KEY": ""}) as at:
        service = at.gateway.service
        assert await swept_once(service.settings, service.store, at.gateway.clock, is_dry=False) == []
        assert vendor.requests_total == 0
