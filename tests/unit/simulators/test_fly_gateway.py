"""What the world reaches at an app's address on the simulated Fly: nothing, 502, 401, and then the agent's gateway."""

import httpx
import pytest

from simulators.fly import TOKEN, Habits, State, fails
from tests.support.fly import config, made, made_app, made_machine

HABITS = Habits(rates=None, boot_s=2, start_s=1, stop_s=1, update_s=2, gateway_s=3)
SHARED = {"type": "shared_v4"}


@pytest.fixture
async def app(fly, machines_api):
    fly.set_habits(HABITS)
    app = await made_app(machines_api)
    await made(machines_api, f"{app}/ip_assignments", **SHARED)
    return app


@pytest.fixture
async def world(fly):
    async with httpx.AsyncClient(base_url=f"{fly.url}/gateway", trust_env=False) as client:
        yield client


async def probe(world, token="gw-token", app="u-ada"):
    answer = await world.get(f"/{app}/ws/api/sessions", headers={"authorization": f"Bearer {token}"})
    return answer.status_code


async def test_it_answers_when_its_machine_has_run_for_a_while_and_only_to_its_token(
    machines_api, fly, app, world
):
    assert await probe(world) == 502
    machine = await made_machine(machines_api, app)
    fly.advance(2)
    assert (fly.machines[0].state, await probe(world)) == (State.STARTED, 502)
    fly.advance(2.999)
    assert await probe(world) == 502
    fly.advance(0.001)
    assert [await probe(world, token) for token in ("gw-token", "other", "gw")] == [200, 401, 401]
    assert (await world.get("/u-ada")).status_code == 401
    assert (await world.get("/u-ada/", params={"token": "wrong"})).status_code == 401
    told = (await world.get("/u-ada/", params={"token": "gw-token"})).json()
    assert (told["machine_id"], told["instance_id"]) == (machine["id"], machine["instance_id"])
    assert told["env"] == {TOKEN: "gw-token"}


async def test_an_update_reaches_it_only_with_its_boot(machines_api, fly, app, world):
    machine = await made_machine(machines_api, app)
    fly.advance(5)
    path = f"{app}/machines/{machine['id']}"
    await machines_api.post(path, json={"config": config(token="new")})
    assert [await probe(world, token) for token in ("gw-token", "new")] == [502, 502]
    fly.advance(5)
    assert [await probe(world, token) for token in ("gw-token", "new")] == [401, 200]


async def test_secrets_reach_a_machine_with_its_next_update(machines_api, fly, app, world):
    version = (await made(machines_api, f"{app}/secrets", values={"A": "old", TOKEN: "secret"}))["version"]
    fields = {"min_secrets_version": version}
    machine = await made_machine(machines_api, app, env={"B": "env"}, fields=fields)
    fly.advance(5)
    told = await world.get("/u-ada/", params={"token": "secret"})
    assert told.json()["env"] == {"A": "old", "B": "env", TOKEN: "secret"}
    await made(machines_api, f"{app}/secrets", values={"A": "new"})
    path = f"{app}/machines/{machine['id']}"
    await machines_api.post(f"{path}/restart")
    fly.advance(5)
    told = await world.get("/u-ada/", params={"token": "secret"})
    assert told.json()["env"]["A"] == "old"
    await machines_api.post(path, json={"config": config(token="env-wins")})
    fly.advance(5)
    told = await world.get("/u-ada/", params={"token": "env-wins"})
    assert told.json()["env"] == {"A": "new", TOKEN: "env-wins"}
    await machines_api.post(path, json={"config": config(), "skip_secrets": True})
    fly.advance(5)
    assert (await world.get("/u-ada/", params={"token": "gw-token"})).json()["env"] == {TOKEN: "gw-token"}


async def test_a_machine_without_a_token_lets_nobody_in(machines_api, fly, app, world):
    await made_machine(machines_api, app, env={})
    fly.advance(5)
    assert [await probe(world, "x"), (await world.get("/u-ada")).status_code] == [401, 401]


@pytest.mark.parametrize("addresses", [[], [{"type": "private_v6", "network": "net-bob"}]])
async def test_an_app_that_has_no_address_is_not_found(machines_api, fly, app, world, addresses):
    other = await made_app(machines_api, "u-bob", network="net-bob")
    await made_machine(machines_api, other)
    for address in addresses:
        await made(machines_api, f"{other}/ip_assignments", **address)
    fly.advance(5)
    for name in ("u-bob", "unknown"):
        with pytest.raises(httpx.RemoteProtocolError):
            await probe(world, app=name)
    await made(machines_api, f"{other}/ip_assignments", **SHARED)
    assert await probe(world, app="u-bob") == 200


async def test_only_what_serves_is_asked(machines_api, fly, app, world):
    machine = await made_machine(machines_api, app, services=[])
    fly.advance(5)
    assert await probe(world) == 502
    path = f"{app}/machines/{machine['id']}"
    await machines_api.post(path, json={"config": config()})
    fly.advance(5)
    await machines_api.post(f"{path}/cordon")
    assert await probe(world) == 502
    await machines_api.post(f"{path}/uncordon")
    assert await probe(world) == 200


@pytest.mark.parametrize("way", ["stop", "suspend"])
@pytest.mark.parametrize("wakes", [True, False])
async def test_one_that_sleeps_is_woken_if_it_says_so(machines_api, fly, app, world, way, wakes):
    services = [{"internal_port": 18789, "autostop": way, "autostart": wakes}]
    await made_machine(machines_api, app, services=services)
    fly.advance(5)
    fly.fall_idle(fly.machines[0])
    fly.advance(1)
    assert fly.machines[0].running is None
    assert await probe(world) == 502
    fly.advance(4)
    assert await probe(world) == (200 if wakes else 502)


async def test_it_may_be_told_to_fail(machines_api, fly, app, world):
    await made_machine(machines_api, app)
    fly.advance(5)
    fly.next_on(r"GET /gateway/.*", fails(503))
    assert (await machines_api.get(app)).status_code == 200
    assert [await probe(world), await probe(world)] == [503, 200]
