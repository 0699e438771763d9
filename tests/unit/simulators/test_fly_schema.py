"""Requests to the simulated Fly are held to the vendor's own OpenAPI document, and so are its answers here."""

import httpx
import orjson
import pytest

from metering.clock import ManualClock
from simulators.fly import ORG_SLUG, FlySimulator, Habits
from simulators.fly_schema import SCHEMA_PATH, OpenApi
from tests.support.fly import DOCUMENT, config, fly_client, made, made_app, made_machine, made_volume

pytestmark = pytest.mark.skipif(not DOCUMENT.is_file(), reason=f"no OpenAPI document at {DOCUMENT}")


@pytest.fixture
async def fly():
    clock, habits = ManualClock(1_795_000_000_000), Habits(rates=None)
    async with FlySimulator(clock=clock, habits=habits, openapi=DOCUMENT) as simulator:
        yield simulator


async def test_a_whole_life_fits_the_document_and_so_do_its_answers(fly, machines_api):
    app = await made_app(machines_api)
    await machines_api.get("/apps", params={"org_slug": ORG_SLUG})
    await made(machines_api, "/apps?wait=true", name="u-bob", org_slug=ORG_SLUG, network="n")
    await made(machines_api, f"{app}/ip_assignments", type="shared_v4", region="", org_slug=ORG_SLUG)
    await machines_api.get(f"{app}/ip_assignments")
    await made(machines_api, f"{app}/secrets", values={"A": "1", "B": None})
    await made(machines_api, f"{app}/secrets/C", value="3")
    guest = {"cpu_kind": "shared", "cpus": 1, "memory_mb": 2048}
    volume = await made_volume(
        machines_api, app, size_gb=1, encrypted=True, snapshot_retention=5, compute=guest
    )
    await machines_api.put(f"{app}/volumes/{volume['id']}/extend", json={"size_gb": 2})
    machine = await made_machine(
        machines_api,
        app,
        volume=volume["id"],
        metadata={"user": "ada"},
        restart={"policy": "on-failure", "max_retries": 3},
        files=[{"guest_path": "/x", "raw_value": "eA==", "mode": 384}],
        checks={"up": {"type": "http", "port": 18789, "path": "/health", "interval": "15s"}},
        stop_config={"signal": "SIGTERM", "timeout": "30s"},
        init={"swap_size_mb": 512},
        fields={"skip_launch": False, "lease_ttl": 60, "min_secrets_version": 1},
    )
    path = f"{app}/machines/{machine['id']}"
    lease = {"fly-machine-lease-nonce": machine["nonce"]}
    fly.advance(2)
    await machines_api.get(f"{path}/wait", params={"state": "started,failed", "timeout": 60})
    listing = {"metadata.user": "ada", "include_deleted": "true", "summary": "false"}
    await machines_api.get(f"{app}/machines", params=listing)
    await machines_api.post(f"{path}/exec", json={"command": ["true"], "timeout": 5, "stdin": "x"})
    update = {"config": config(volume=volume["id"]), "current_version": machine["instance_id"]}
    update["config"]["services"][0]["autostop"] = True
    await machines_api.post(path, json=update, headers=lease)
    fly.advance(2)
    await machines_api.patch(f"{path}/metadata", json={"metadata": {"gen": "2"}}, headers=lease)
    await machines_api.get(f"{path}/events", params={"limit": 5})
    await machines_api.post(f"{path}/lease", json={"ttl": 30, "description": "why"}, headers=lease)
    await machines_api.post(f"{path}/stop", json={"timeout": "5s"}, headers=lease)
    fly.advance(2)
    await machines_api.post(f"{path}/start", headers=lease)
    await machines_api.post(f"{path}/restart", params={"timeout": "5s"}, headers=lease)
    for kind in ("machines", "volumes"):
        await machines_api.get(f"/orgs/{ORG_SLUG}/{kind}", params={"limit": 10, "updated_after": ""})
    await machines_api.delete(path, params={"force": "true"}, headers=lease)
    gone = await machines_api.delete(app, params={"force": "true"})
    assert gone.status_code == 202
    assert fly.invalid == []


async def test_answers_have_the_documents_shapes(fly, machines_api):
    app = await made_app(machines_api)
    volume = await made_volume(machines_api, app)
    machine = await made_machine(machines_api, app, volume=volume["id"])
    address = await made(machines_api, f"{app}/ip_assignments", type="v6")
    secrets = await made(machines_api, f"{app}/secrets", values={"A": "1"})
    path = f"{app}/machines/{machine['id']}"
    fly.advance(2)

    async def got(path):
        return (await machines_api.get(path)).json()

    document = OpenApi(DOCUMENT)
    for name, value in (
        ("App", await got(app)),
        ("ListAppsResponse", await got(f"/apps?org_slug={ORG_SLUG}")),
        ("IPAssignment", address),
        ("AppSecretsUpdateResp", secrets),
        ("AppSecrets", await got(f"{app}/secrets")),
        ("Volume", await got(f"{app}/volumes/{volume['id']}")),
        ("Machine", await got(path)),
        ("OrgMachinesResponse", await got(f"/orgs/{ORG_SLUG}/machines")),
        ("OrgVolumesResponse", await got(f"/orgs/{ORG_SLUG}/volumes")),
        ("WaitMachineResponse", await got(f"{path}/wait")),
        ("Lease", (await made(machines_api, f"{path}/lease", ttl=5))["data"]),
    ):
        problems = list(document._of_value({"$ref": SCHEMA_PATH + name}, value, name))
        assert [each for each in problems if not each.endswith(": null")] == [], name


@pytest.mark.parametrize(
    ("method", "path", "body", "problem"),
    [
        ("POST", "/apps", {"app_name": 5}, "body.app_name: not of type string"),
        ("POST", "/apps", {"nmae": "x"}, "body.nmae: unknown field"),
        ("POST", "/apps", None, "body: missing"),
        ("POST", "/apps", ["x"], "body: not of type object"),
        ("GET", "/apps", None, "?org_slug: missing"),
        ("GET", "/apps/a?app=b", None, "?app: unknown parameter"),
        ("GET", "/nowhere", None, "GET /nowhere: no such operation"),
        ("PATCH", "/apps", None, "PATCH /apps: no such operation"),
        ("POST", "/apps/a/secrets", {"values": {"A": 5}}, "body.values.A: not of type string"),
        ("POST", "/apps/a/volumes", {"size_gb": 1.5}, "body.size_gb: not of type integer"),
        ("POST", "/apps/a/volumes", {"size_gb": True}, "body.size_gb: not of type integer"),
        ("POST", "/apps/a/volumes", {"encrypted": None}, "body.encrypted: null"),
        ("POST", "/apps/a/machines", {"config": {"image": 5}}, "body.config.image: not of type string"),
        (
            "POST",
            "/apps/a/machines/b",
            {"config": {"env": {"A": 5}}},
            "body.config.env.A: not of type string",
        ),
        ("POST", "/apps/a/machines/b/start", {"x": 1}, "body: this operation has none"),
        ("POST", "/apps/a/machines/b/stop", {"signal": "SIGX"}, "'SIGX' is none of"),
        ("POST", "/apps/a/machines/b/exec", {"command": "ls"}, "body.command: not of type array"),
        ("POST", "/apps/a/machines/b/exec", {"command": ["ls", 5]}, "body.command[1]: not of type string"),
        ("GET", "/apps/a/machines/b/wait?state=created", None, "?state: 'created' is none of"),
        ("GET", "/apps/a/machines/b/wait?timeout=1m", None, "?timeout: not of type integer"),
        ("DELETE", "/apps/a?force=1", None, "?force: not of type boolean"),
        ("DELETE", "/apps/a/machines/b?force=True", None, "?force: not of type boolean"),
    ],
)
async def test_what_does_not_fit_is_refused_and_kept(fly, machines_api, method, path, body, problem):
    content = b"" if body is None else orjson.dumps(body)
    answer = await machines_api.request(method, path, content=content)
    assert answer.status_code == 400
    (invalid,) = fly.invalid
    assert (invalid.method, invalid.target, invalid.body) == (method, f"/v1{path}", content)
    assert problem in invalid.problems[0]
    assert problem in answer.json()["error"]
    assert fly.apps == []


@pytest.mark.parametrize(
    "service",
    [{"auto_stop_machines": True}, {"auto_stop": True}, {"autostop": "sometimes"}, {"autostart": "yes"}],
)
async def test_a_misspelt_setting_is_no_setting(fly, machines_api, service):
    app = await made_app(machines_api)
    asked = {"config": config(services=[service])}
    assert (await machines_api.post(f"{app}/machines", json=asked)).status_code == 400
    assert f"services[0].{next(iter(service))}" in fly.invalid[0].problems[0]


async def test_no_json_does_not_fit(fly, machines_api):
    assert (await machines_api.post("/apps", content=b"{")).status_code == 400
    assert fly.invalid[0].problems == ("body: no JSON",)


async def test_what_a_gateway_is_asked_is_none_of_the_documents(fly):
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"{fly.url}/gateway/u-ada/x?y=z")
    assert fly.invalid == []


def test_a_document_with_words_that_are_not_checked_is_refused(tmp_path):
    schemas = {"A": {"type": "object", "properties": {"b": {"items": {"type": "string", "pattern": "x"}}}}}
    path = tmp_path / "openapi.json"
    path.write_bytes(orjson.dumps({"paths": {}, "components": {"schemas": schemas}}))
    with pytest.raises(ValueError, match="A: words that are not checked: pattern"):
        OpenApi(path)


def test_every_schema_word_of_the_document_is_known_and_what_it_requires_is_asked_for():
    document = OpenApi(DOCUMENT)
    static = {"$ref": f"{SCHEMA_PATH}fly.Static"}
    assert list(document._of_value(static, {"guest_path": "/a"}, "x")) == ["x.url_prefix: missing"]


async def test_a_client_with_no_document_is_not_held_to_it():
    async with FlySimulator(habits=Habits(rates=None)) as fly, fly_client(fly.url) as client:
        answer = await client.post("/apps", json={"name": "u-ada", "org_slug": ORG_SLUG, "other": 1})
    assert (answer.status_code, fly.invalid) == (201, [])
