"""The simulated Fly, over real sockets: apps, addresses, secrets, volumes, and the lists of the organization."""

import httpx
import pytest

from metering.clock import instant
from simulators.fly import ORG_SLUG, VENDOR_KEY, Habits, Shortage
from tests.support.fly import fly_client, made, made_app, made_machine, made_volume, refused

DAY_S = 86_400


# --- who asks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {VENDOR_KEY}", 200),
        (f"FlyV1 {VENDOR_KEY}", 200),
        (f"Bearer FlyV1 {VENDOR_KEY}", 401),
        ("Bearer wrong", 401),
        (VENDOR_KEY, 401),
        ("Bearer", 401),
        ("", 401),
    ],
)
async def test_the_organizations_token_is_asked_for(fly, authorization, status):
    async with httpx.AsyncClient(trust_env=False) as client:
        headers = {"authorization": authorization}
        answer = await client.get(f"{fly.url}/v1/apps", params={"org_slug": ORG_SLUG}, headers=headers)
    assert answer.status_code == status
    assert answer.headers["fly-request-id"].endswith("-sjc")
    if status == 401:
        assert refused(answer) == (401, "unknown", "unauthorized")


async def test_an_unknown_path_is_not_found_and_a_broken_body_is_refused(machines_api):
    assert refused(await machines_api.get("/nowhere"))[0] == 404
    assert refused(await machines_api.patch("/apps"))[0] == 404
    for body in (b"{", b"[]"):
        status, _, words = refused(await machines_api.post("/apps", content=body))
        assert (status, words.partition(":")[0]) == (400, "invalid_argument")


# --- apps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["app_name", "name"])
async def test_an_app_is_made_shown_listed_and_deleted(machines_api, fly, field):
    answer = await machines_api.post(
        "/apps", json={field: "u-ada", "org_slug": ORG_SLUG, "network": "net-ada"}
    )
    assert answer.status_code == 201
    shown = (await machines_api.get("/apps/u-ada")).json()
    assert {name: shown[name] for name in ("id", "name", "network", "status", "machine_count")} == {
        "id": answer.json()["id"],
        "name": "u-ada",
        "network": "net-ada",
        "status": "pending",
        "machine_count": 0,
    }
    assert shown["organization"]["slug"] == ORG_SLUG
    listed = (await machines_api.get("/apps", params={"org_slug": ORG_SLUG})).json()
    assert (listed["total_apps"], [app["name"] for app in listed["apps"]]) == (1, ["u-ada"])
    gone = await machines_api.delete("/apps/u-ada")
    assert (gone.status_code, gone.content) == (202, b"")
    assert refused(await machines_api.get("/apps/u-ada"))[0] == 404
    assert refused(await machines_api.delete("/apps/u-ada"))[0] == 404
    assert fly.apps == []


async def test_names_are_the_worlds(machines_api, fly):
    fly.organization.foreign_apps.add("u-bob")
    await made_app(machines_api, "u-ada")
    mine = await machines_api.post("/apps", json={"app_name": "u-ada", "org_slug": ORG_SLUG})
    theirs = await machines_api.post("/apps", json={"app_name": "u-bob", "org_slug": ORG_SLUG})
    assert refused(mine) == (422, "unknown", "Validation failed: Name has already been taken")
    assert refused(theirs)[:2] == (422, "name_taken")
    assert refused(await machines_api.get("/apps/u-bob"))[0] == 403
    assert refused(await machines_api.get("/apps/u-bob/machines"))[0] == 403
    assert refused(await machines_api.delete("/apps/u-bob"))[0] == 403
    assert [app.name for app in fly.apps] == ["u-ada"]


@pytest.mark.parametrize(
    ("name", "org", "status"),
    [
        ("U-ada", ORG_SLUG, 422),
        ("u_ada", ORG_SLUG, 422),
        ("", ORG_SLUG, 422),
        ("u" * 63, ORG_SLUG, 422),
        ("u" * 62, ORG_SLUG, 201),
        ("u-ada", "elsewhere", 404),
        ("u-ada", "", 404),
    ],
)
async def test_a_name_has_its_letters_and_an_app_its_organization(machines_api, name, org, status):
    assert (await machines_api.post("/apps", json={"name": name, "org_slug": org})).status_code == status


async def test_a_deleted_app_takes_everything_with_it(machines_api, fly):
    app = await made_app(machines_api)
    volume = await made_volume(machines_api, app)
    await made_machine(machines_api, app, volume=volume["id"])
    await made(machines_api, f"{app}/ip_assignments", type="v4")
    await made(machines_api, f"{app}/secrets", values={"A": "1"})
    shown = (await machines_api.get(app)).json()
    assert (shown["status"], shown["machine_count"], shown["volume_count"]) == ("deployed", 1, 1)
    assert [len(each) for each in (fly.billed.machines, fly.billed.volumes, fly.billed.addresses)] == [1] * 3
    assert refused(await machines_api.delete(app))[0] == 412
    assert (await machines_api.delete(app, params={"force": "true"})).status_code == 202
    assert (fly.apps, fly.machines, fly.volumes, fly.ips, fly.secrets) == ([], [], [], {}, {})
    assert (fly.billed.machines, fly.billed.volumes, fly.billed.addresses) == ([], [], [])
    # One of the same name finds nothing of it.
    await made_app(machines_api)
    for kind in ("machines", "volumes"):
        assert (await machines_api.get(f"{app}/{kind}", params={"include_deleted": "true"})).json() == []
    assert (await machines_api.get(f"{app}/ip_assignments")).json() == {"ips": []}


async def test_a_deletion_may_take_its_time(machines_api, fly):
    fly.set_habits(Habits(rates=None, app_delete_s=10))
    app = await made_app(machines_api)
    await made_machine(machines_api, app)
    assert (await machines_api.delete(app, params={"force": "true"})).status_code == 202
    assert (await machines_api.delete(app, params={"force": "true"})).status_code == 202
    assert ((await machines_api.get(app)).status_code, len(fly.machines)) == (200, 1)
    fly.advance(10)
    assert ((await machines_api.get(app)).status_code, fly.machines) == (404, [])


# --- addresses ----------------------------------------------------------------------------------------


async def test_addresses_are_assigned_listed_and_released(machines_api, fly):
    app = await made_app(machines_api)
    shared = await made(machines_api, f"{app}/ip_assignments", type="shared_v4")
    six = await made(machines_api, f"{app}/ip_assignments", type="v6")
    own = await made(machines_api, f"{app}/ip_assignments", type="private_v6", network="net-ada")
    listed = (await machines_api.get(f"{app}/ip_assignments")).json()["ips"]
    assert listed == [shared, six, own]
    assert [each["shared"] for each in listed] == [True, False, False]
    assert [":" in each["ip"] for each in listed] == [False, True, True]
    assert [address.kind for address in fly.ips["u-ada"]] == ["shared_v4", "v6", "private_v6"]
    gone = await machines_api.delete(f"{app}/ip_assignments/{six['ip']}")
    assert (gone.status_code, gone.content, "content-length" in gone.headers) == (204, b"", False)
    assert refused(await machines_api.delete(f"{app}/ip_assignments/{six['ip']}"))[0] == 404
    assert [address.kind for address in fly.ips["u-ada"]] == ["shared_v4", "private_v6"]


@pytest.mark.parametrize("fields", [{"type": "v5"}, {}, {"type": "private_v6"}])
async def test_an_address_has_a_type_and_a_private_one_the_apps_network(machines_api, fields):
    app = await made_app(machines_api)
    assert refused(await machines_api.post(f"{app}/ip_assignments", json=fields))[0] == 422


@pytest.mark.parametrize(("repeated_ip", "addresses"), [(409, 1), (422, 1), (200, 2)])
async def test_a_repeated_address_is_refused_or_another(machines_api, fly, repeated_ip, addresses):
    fly.set_habits(Habits(rates=None, repeated_ip=repeated_ip))
    app = await made_app(machines_api)
    await made(machines_api, f"{app}/ip_assignments", type="v6")
    again = await machines_api.post(f"{app}/ip_assignments", json={"type": "v6"})
    assert (again.status_code, len(fly.ips["u-ada"])) == (repeated_ip, addresses)
    if repeated_ip != 200:
        assert "already allocated" in refused(again)[2]


# --- secrets ------------------------------------------------------------------------------------------


async def test_secrets_are_set_together_or_alone_and_never_shown(machines_api, fly):
    app = await made_app(machines_api)
    assert (await made(machines_api, f"{app}/secrets", values={"A": "one", "B": "two"}))["version"] == 1
    assert (await made(machines_api, f"{app}/secrets/C", value="three"))["version"] == 2
    assert (await made(machines_api, f"{app}/secrets", values={"A": None, "B": "new"}))["version"] == 3
    listed = (await machines_api.get(f"{app}/secrets", params={"min_version": 3})).json()["secrets"]
    assert [secret["name"] for secret in listed] == ["B", "C"]
    assert "new" not in str(listed)
    assert (await machines_api.get(f"{app}/secrets/C")).json()["name"] == "C"
    assert (await machines_api.delete(f"{app}/secrets/C")).json()["version"] == 4
    assert fly.secrets == {"u-ada": {"B": "new"}}
    for path, method in (("A", "get"), ("C", "delete")):
        assert refused(await machines_api.request(method, f"{app}/secrets/{path}"))[0] == 404
    for path in ("secrets", "secrets/B"):
        assert refused(await machines_api.get(f"{app}/{path}", params={"min_version": 5}))[0] == 412
        assert refused(await machines_api.get(f"{app}/{path}", params={"min_version": "x"}))[0] == 400
    assert refused(await machines_api.post(f"{app}/secrets/D", json={}))[0] == 400


# --- volumes ------------------------------------------------------------------------------------------


async def test_a_name_of_a_volume_is_not_unique(machines_api, fly):
    app = await made_app(machines_api)
    one = await made_volume(machines_api, app, size_gb=1, snapshot_retention=7, encrypted=True)
    two = await made_volume(machines_api, app)
    assert one["id"] != two["id"]
    assert one["name"] == two["name"]
    assert (one["state"], one["size_gb"], one["snapshot_retention"], one["attached_machine_id"]) == (
        "created",
        1,
        7,
        None,
    )
    assert (await machines_api.get(f"{app}/volumes")).json() == [one, two]
    assert (await machines_api.get(f"{app}/volumes/{two['id']}")).json() == two
    other = await made_app(machines_api, "u-bob")
    assert refused(await machines_api.get(f"{other}/volumes/{two['id']}"))[0] == 404


async def test_a_deleted_volume_is_listed_for_a_day(machines_api, fly):
    app = await made_app(machines_api)
    path = f"{app}/volumes/{(await made_volume(machines_api, app))['id']}"
    assert (await machines_api.delete(path)).json()["state"] == "pending_destroy"
    assert fly.volumes == fly.billed.volumes == []
    fly.advance(DAY_S - 1)
    (listed,) = (await machines_api.get(f"{app}/volumes")).json()
    assert listed["state"] == "pending_destroy"
    assert (await machines_api.delete(path)).status_code == 200
    fly.advance(1)
    assert (await machines_api.get(f"{app}/volumes")).json() == []
    assert refused(await machines_api.get(path))[0] == 404


async def test_a_volume_grows_changes_and_is_copied(machines_api, fly):
    app = await made_app(machines_api)
    volume = await made_volume(machines_api, app, size_gb=1)
    path = f"{app}/volumes/{volume['id']}"
    grown = (await machines_api.put(f"{path}/extend", json={"size_gb": 5})).json()
    assert (grown["volume"]["size_gb"], grown["needs_restart"]) == (5, False)
    for size_gb in (5, 4, 501):
        assert refused(await machines_api.put(f"{path}/extend", json={"size_gb": size_gb}))[0] == 400
    await made_machine(machines_api, app, volume=volume["id"])
    fly.advance(2)
    assert (await machines_api.put(f"{path}/extend", json={"size_gb": 6})).json()["needs_restart"] is True
    changed = (await machines_api.put(path, json={"auto_backup_enabled": False})).json()
    assert (changed["auto_backup_enabled"], changed["snapshot_retention"]) == (False, 5)
    snapshot = await made(machines_api, f"{path}/snapshots")
    assert (await machines_api.get(f"{path}/snapshots")).json() == [snapshot]
    fork = await made_volume(machines_api, app, source_volume_id=volume["id"])
    assert fork["size_gb"] == 6
    answer = await machines_api.post(f"{app}/volumes", json={"name": "x", "source_volume_id": "vol_unknown"})
    assert refused(answer)[0] == 404


@pytest.mark.parametrize(
    "fields", [{"name": "a-b"}, {"name": ""}, {"size_gb": 501}, {"snapshot_retention": 61}]
)
async def test_a_volume_has_a_name_and_a_size(machines_api, fields):
    app = await made_app(machines_api)
    asked = {"name": "data_1", "region": "sjc", **fields}
    assert refused(await machines_api.post(f"{app}/volumes", json=asked))[0] == 400


async def test_a_region_may_have_no_room_for_volumes(machines_api, fly):
    fly.set_habits(Habits(rates=None, shortages={"sjc": Shortage.VOLUME}))
    app = await made_app(machines_api)
    answer = await machines_api.post(f"{app}/volumes", json={"name": "data_1", "region": "sjc"})
    assert refused(answer)[:2] == (412, "volume_placement_capacity")
    await made_volume(machines_api, app, region="ord")
    assert [volume.region for volume in fly.volumes] == ["ord"]


# --- the organization ---------------------------------------------------------------------------------


async def paged(machines_api, kind, **params):
    """The ids on each page, to the last."""
    pages, cursor = [], ""
    while True:
        asked = {**params, **({"cursor": cursor} if cursor else {})}
        page = (await machines_api.get(f"/orgs/{ORG_SLUG}/{kind}", params=asked)).json()
        pages.append([each["id"] for each in page[kind]])
        cursor = page["next_cursor"]
        if not cursor:
            return pages


async def test_the_organizations_machines_come_in_pages_by_their_last_change(machines_api, fly):
    ids = []
    for name in "abc":
        app = await made_app(machines_api, f"u-{name}")
        ids.append((await made_machine(machines_api, app, metadata={"user": name}))["id"])
        fly.advance(10)
    assert await paged(machines_api, "machines") == [ids]
    assert await paged(machines_api, "machines", limit=2) == [ids[:2], ids[2:]]
    await machines_api.put(f"/apps/u-a/machines/{ids[0]}/metadata", json={"metadata": {"user": "z"}})
    assert await paged(machines_api, "machines", limit=1) == [[ids[1]], [ids[2]], [ids[0]]]
    since = instant(fly.organization.now_ms() - 1000)
    found = await machines_api.get(f"/orgs/{ORG_SLUG}/machines", params={"updated_after": since})
    (shown,) = found.json()["machines"]
    assert (shown["id"], shown["app_name"], shown["config"]["metadata"]) == (ids[0], "u-a", {"user": "z"})
    assert "env" not in shown["config"]
    summary = await machines_api.get(f"/orgs/{ORG_SLUG}/machines", params={"summary": "true"})
    assert not any("config" in each for each in summary.json()["machines"])
    assert await paged(machines_api, "machines", state="stopped,suspended") == [[]]
    assert await paged(machines_api, "machines", region="ord") == [[]]


async def test_what_was_destroyed_is_listed_when_asked_for(machines_api, fly):
    app = await made_app(machines_api)
    machine = await made_machine(machines_api, app)
    await machines_api.delete(app, params={"force": "true"})
    assert await paged(machines_api, "machines") == [[]]
    assert await paged(machines_api, "machines", include_deleted="true") == [[machine["id"]]]


async def test_the_organizations_volumes_are_listed_with_their_app(machines_api, fly):
    app = await made_app(machines_api)
    ids = sorted([(await made_volume(machines_api, app, region=region))["id"] for region in ("sjc", "ord")])
    assert sorted((await paged(machines_api, "volumes"))[0]) == ids
    found = await machines_api.get(f"/orgs/{ORG_SLUG}/volumes", params={"region": "ord"})
    (shown,) = found.json()["volumes"]
    assert (shown["app_name"], shown["region"]) == ("u-ada", "ord")


async def test_the_organizations_lists_may_lag(machines_api, fly):
    fly.set_habits(Habits(rates=None, org_list_lag_s=30))
    app = await made_app(machines_api)
    machine = await made_machine(machines_api, app)
    assert await paged(machines_api, "machines") == [[]]
    assert [each["id"] for each in (await machines_api.get(f"{app}/machines")).json()] == [machine["id"]]
    fly.advance(30)
    assert await paged(machines_api, "machines") == [[machine["id"]]]


@pytest.mark.parametrize(
    ("path", "params", "status"),
    [
        ("/orgs/elsewhere/machines", {}, 404),
        (f"/orgs/{ORG_SLUG}/machines", {"limit": 1001}, 400),
        (f"/orgs/{ORG_SLUG}/machines", {"cursor": "?"}, 400),
        (f"/orgs/{ORG_SLUG}/volumes", {"updated_after": "yesterday"}, 400),
        ("/apps", {"org_slug": "elsewhere"}, 404),
    ],
)
async def test_an_odd_page_is_refused(machines_api, path, params, status):
    assert refused(await machines_api.get(path, params=params))[0] == status


async def test_any_token_will_do_where_none_is_asked_for(fly):
    fly.api_key = None
    async with fly_client(fly.url, "any") as client:
        assert (await client.get("/apps", params={"org_slug": ORG_SLUG})).status_code == 200
