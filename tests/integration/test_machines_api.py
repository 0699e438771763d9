"""Users' machines over real sockets: the way into one's own, and what operators wish of all of them."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from provisioning import worker
from provisioning.lifecycle import GRACE_MS
from routes.given import BODY_BYTES_MAX
from routes.machines import AGAIN_AFTER_S, MACHINE_CALLS
from simulators.fly import FAILING_IMAGE, ORG_SLUG, VENDOR_KEY, fails
from tests.support.fly import fly_client
from tests.support.gateway import POLL_S
from tests.support.limits import limits_of, policies_of
from tests.support.machines import ADMIN_TOKEN, House, house

WISHES = ("start", "stop", "suspend", "update", "rotate")
WAIT_S = 20.0
"""For what the service does by itself."""
FAILING = f"registry.fly.io/{FAILING_IMAGE}@sha256:" + "5e1f" * 16


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as house_:
        yield house_


def claims_of(ticket: str, key: str) -> dict[str, Any]:
    """What a ticket says, once its signature is that of the key."""
    said, _, signature = ticket.rpartition(".")
    mac = hmac.digest(bytes.fromhex(key), said.encode(), hashlib.sha256)
    assert hmac.compare_digest(_decoded(signature), mac)
    header, claims = (json.loads(_decoded(part)) for part in said.split("."))
    assert header == {"alg": "HS256", "typ": "JWT"}
    return dict(claims)


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


# --- the way into one's own -------------------------------------------------------------------------------


async def test_the_first_who_asks_for_the_way_in_gets_a_machine_and_a_ticket_that_it_knows(
    here: House,
) -> None:
    token = await here.gateway.new_token("ada")
    first = await here.get("/api/user/gateway", token)
    assert (first.status_code, first.json()) == (202, {"status": "pending"})
    assert (first.headers["retry-after"], first.headers["cache-control"]) == ("2", "no-store")
    answer = await here.into(token)
    assert answer.status_code == 200
    told = answer.json()
    assert set(told) == {"status", "url", "ticket", "expires_at"}
    app = here.vendors.app.name
    assert (told["status"], told["url"]) == ("ready", f"{here.vendors.fly.url}/gateway/{app}")
    claims = claims_of(told["ticket"], here.vendors.env()["AUTOMNA_TICKET_KEY"])
    assert (claims["sub"], claims["aud"]) == ("ada", app)
    assert claims["exp"] - claims["iat"] == 300
    assert token not in told["ticket"]
    here.vendors.assert_one_of_each()
    (wished,) = [
        event
        for event in (await here.admin("GET", "/ada/events")).json()["events"]
        if event["event"] == "wished"
    ]
    assert wished["details"]["actor"] == "user"
    for line in here.gateway.lines:
        assert told["ticket"] not in json.dumps(line)


async def test_each_ticket_is_another_and_of_no_other_machine(here: House) -> None:
    ada, bob = await here.gateway.new_token("ada"), await here.gateway.new_token("bob")
    (of_ada, again, of_bob) = [(await here.into(token)).json() for token in (ada, ada, bob)]
    assert of_ada["ticket"] != again["ticket"]
    assert of_ada["url"] == again["url"] != of_bob["url"]
    keys = [here.vendors.env(machine)["AUTOMNA_TICKET_KEY"] for machine in here.vendors.fly.machines]
    assert len(set(keys)) == 2
    with pytest.raises(AssertionError):
        claims_of(of_bob["ticket"], keys[0])
    here.vendors.assert_one_of_each(users=2)


async def test_twenty_who_ask_at_once_get_one_machine(here: House) -> None:
    token = await here.gateway.new_token("ada")
    answers = await asyncio.gather(*(here.get("/api/user/gateway", token) for _ in range(20)))
    assert {answer.status_code for answer in answers} <= {200, 202}
    assert (await here.into(token)).status_code == 200
    here.vendors.assert_one_of_each()


async def test_a_user_sees_how_far_the_machine_has_come_and_asking_makes_none(here: House) -> None:
    token = await here.gateway.new_token("ada")
    answer = await here.get("/api/user/machine", token)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert answer.json() == {"status": "not_started", "error": None, "url": None, "machine": None}
    here.vendors.assert_nothing()
    await here.into(token)
    told = (await here.get("/api/user/machine", token)).json()
    assert (told["status"], told["machine"], told["over_budget"]) == ("ready", here.vendors.machine.id, False)
    assert "resources" not in told
    assert "token" not in told


@pytest.mark.parametrize(("wish", "status"), [("stop", "stopped"), ("suspend", "suspended")])
async def test_there_is_no_way_into_a_machine_that_an_operator_stopped(
    here: House, wish: str, status: str
) -> None:
    token = await here.gateway.new_token("ada")
    await here.into(token)
    assert (await here.admin("POST", f"/ada/{wish}")).status_code == 202
    for _ in range(2):  # while it is done, and when it is
        answer = await here.get("/api/user/gateway", token)
        assert answer.status_code == 409
        assert answer.json()["error"] == f"The machine is {status}: an operator has to start it."
        await here.until("ada", status)
    assert (answer.json()["status"], answer.json()["desired"]) == (status, status)
    assert "retry-after" not in answer.headers
    await here.admin("POST", "/ada/start")
    assert (await here.into(token)).status_code == 200


async def test_there_is_no_way_into_the_machine_of_a_user_whose_money_is_spent(here: House) -> None:
    token = await here.gateway.new_token("ada")
    await here.into(token)
    assert await here.instances.set_over_budget("ada", is_over=True)
    await here.until("ada", "suspended")
    answer = await here.get("/api/user/gateway", token)
    assert (answer.status_code, answer.json()["over_budget"]) == (409, True)
    assert answer.json()["error"] == "The machine is suspended, because the account's budget is spent."
    assert await here.instances.set_over_budget("ada", is_over=False)
    assert (await here.into(token)).status_code == 200


async def test_what_trying_again_does_not_help_is_told_so_and_not_tried_again(here: House) -> None:
    token = await here.gateway.new_token("ada")
    here.vendors.fly.next_on("POST /v1/apps/.*/volumes", fails(422))
    answer = await here.into(token)
    assert answer.status_code == 503
    told = answer.json()
    assert (told["code"], told["retryable"]) == ("provider_refused", False)
    assert told["error"] == (
        "The machine did not come up (provider_refused). Trying again does not help: an operator has to act."
    )
    assert told["request_id"] == answer.headers["x-automna-request-id"]
    assert "retry-after" not in answer.headers
    here.clock.advance(10 * AGAIN_AFTER_S)
    assert (await here.get("/api/user/gateway", token)).status_code == 503
    await here.until("ada", "error")
    here.vendors.assert_nothing()
    assert (await here.admin("POST", json={"user": "ada"})).status_code == 202
    assert (await here.into(token)).status_code == 200, "an operator may try again"


async def test_what_may_go_better_is_tried_again_when_asked_for_but_not_more_often_than_once_a_minute(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, env={"MACHINE_IMAGE": FAILING}) as here:
        token = await here.gateway.new_token("ada")
        assert (await here.into(token)).status_code == 503
        await here.until("ada", "error")
        answer = await here.get("/api/user/gateway", token)
        told = answer.json()
        assert (answer.status_code, told["code"], told["retryable"]) == (503, "machine_failed", True)
        after_s = int(answer.headers["retry-after"])
        assert AGAIN_AFTER_S - 10 < after_s <= AGAIN_AFTER_S
        assert f"Ask again in {after_s} seconds" in told["error"]
        here.clock.advance(after_s - 10)
        assert (await here.get("/api/user/gateway", token)).status_code == 503
        wished = (await here.admin("GET", "/ada/events?limit=1000")).text.count('"wished"')
        here.clock.advance(11)
        assert (await here.get("/api/user/gateway", token)).status_code == 202
        assert (await here.into(token)).status_code == 503
        assert (await here.admin("GET", "/ada/events?limit=1000")).text.count('"wished"') == wished + 1
        await here.until("ada", "error")


async def test_whose_machine_an_operator_took_away_gets_no_other_by_asking(here: House) -> None:
    token = await here.gateway.new_token("ada")
    await here.into(token)
    own = here.vendors.gateway_token()
    assert (await here.get("/api/user/machine", own)).status_code == 200
    answer = await here.admin("DELETE", "/ada")
    assert (answer.status_code, answer.json()["status"]) == (202, "deprovisioning")
    answer = await here.get("/api/user/gateway", token)
    assert answer.status_code in {404, 409}
    await here.until("ada", "gone")
    here.vendors.assert_nothing()
    for _ in range(2):
        answer = await here.get("/api/user/gateway", token)
        assert (answer.status_code, answer.json()["status"]) == (404, "gone")
        assert "only an operator can provision another" in answer.json()["error"]
    assert (await here.get("/api/user/machine", own)).status_code == 401, "the machine's own token is dead"
    told = (await here.get("/api/user/machine", token)).json()
    assert (told["status"], told["url"]) == ("gone", None)
    here.vendors.assert_nothing()
    answer = await here.admin("POST", json={"user": "ada"})
    assert (answer.status_code, answer.json()["generation"]) == (202, 2)
    assert (await here.into(token)).status_code == 200
    here.vendors.assert_one_of_each()


async def test_while_a_machine_is_being_taken_away_there_is_neither_a_way_in_nor_another(here: House) -> None:
    token = await here.gateway.new_token("ada")
    await here.into(token)
    here.vendors.fly.next_on("DELETE /v1/apps/.*", fails(503))
    await here.admin("DELETE", "/ada")
    answer = await here.get("/api/user/gateway", token)
    assert (answer.status_code, answer.json()["error"]) == (409, "The machine is being taken away.")
    answer = await here.admin("POST", json={"user": "ada"})
    assert answer.status_code == 409
    assert "ask for another when it is gone" in answer.json()["error"]
    await here.until("ada", "gone")


# --- tokens that were handed on ----------------------------------------------------------------------------


async def handed_on(here: House, parent: str, **wish: Any) -> str:
    answer = await here.http.post("/api/user/tokens", json=wish, headers={"x-api-key": parent})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


async def test_who_was_handed_a_token_gets_in_only_where_its_scope_says_so(here: House) -> None:
    parent = await here.gateway.new_token("ada")
    plain = await handed_on(here, parent)
    named = await handed_on(here, parent, operations=["gateway", "machine"])
    answer = await here.get("/api/user/gateway", plain)
    assert answer.status_code == 403
    assert "only if its scope names it" in answer.json()["error"]
    answer = await here.get("/api/user/gateway", named)
    assert answer.status_code == 403, "making a machine is another operation"
    assert "provision" in answer.json()["error"]
    for child in (plain, named):
        assert (await here.get("/api/user/machine", child)).json()["status"] == "not_started"
    here.vendors.assert_nothing()
    assert (await here.into(parent)).status_code == 200
    assert (await here.into(named)).status_code == 200
    assert (await here.get("/api/user/gateway", plain)).status_code == 403
    assert (await here.get("/api/user/machine", plain)).json()["status"] == "ready"


async def test_a_scope_that_names_it_lets_a_child_make_the_machine(here: House) -> None:
    child = await handed_on(here, await here.gateway.new_token("ada"), operations=["gateway", "provision"])
    assert (await here.into(child)).status_code == 200
    assert (await here.get("/api/user/machine", child)).status_code == 403
    here.vendors.assert_one_of_each()


async def test_a_failure_is_not_tried_again_for_a_token_that_may_not_provision(tmp_path: Path) -> None:
    async with house(tmp_path, env={"MACHINE_IMAGE": FAILING}) as here:
        parent = await here.gateway.new_token("ada")
        child = await handed_on(here, parent, operations=["gateway"])
        assert (await here.into(parent)).status_code == 503
        await here.until("ada", "error")
        here.clock.advance(AGAIN_AFTER_S + 1)
        answer = await here.get("/api/user/gateway", child)
        assert (answer.status_code, answer.json()["retryable"]) == (503, True)
        assert "retry-after" not in answer.headers


# --- bounds ------------------------------------------------------------------------------------------------


async def test_calls_about_the_machine_are_bounded_by_the_minute(here: House) -> None:
    token = await here.gateway.new_token("ada")
    for called in range(1, MACHINE_CALLS.per_minute + 1):
        answer = await here.get("/api/user/machine", token)
        assert limits_of(answer.headers)["machine-calls"][0] == MACHINE_CALLS.per_minute - called
    assert policies_of(answer.headers)["machine-calls"] == {"q": MACHINE_CALLS.per_minute, "w": 60}
    answer = await here.get("/api/user/gateway", token)
    assert answer.status_code == 429
    here.vendors.assert_nothing()
    assert (await here.get("/api/user/limits", token)).status_code == 200, "reports count apart"


@pytest.mark.parametrize("path", ["/api/user/machine", "/api/user/gateway"])
async def test_what_is_no_token_no_query_and_no_method_of_theirs_is_refused(here: House, path: str) -> None:
    token = await here.gateway.new_token("ada")
    assert (await here.get(path, "")).status_code == 401
    assert (await here.get(path, ADMIN_TOKEN)).status_code == 401, "an operator is no user"
    assert (await here.get(f"{path}?wait=1", token)).status_code == 400
    answer = await here.http.post(path, headers={"x-api-key": token})
    assert (answer.status_code, "GET" in answer.headers["allow"]) == (405, True)
    here.vendors.assert_nothing()


async def test_without_fly_nothing_is_wished_and_what_is_on_record_is_shown(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        token = await here.gateway.new_token("ada")
        await here.into(token)
    async with house(tmp_path, env={"FLY_API_TOKEN": None}) as here:
        answer = await here.get("/api/user/gateway", token)
        assert answer.status_code == 503
        assert answer.json()["error"] == "Machines need FLY_API_TOKEN, which is not set."
        assert "retry-after" not in answer.headers
        assert (await here.get("/api/user/machine", token)).json()["status"] == "ready"
        assert (await here.admin("GET")).json()["machines"][0]["user"] == "ada"
        for method, path, more in (
            ("POST", "", {"json": {"user": "ada"}}),
            ("DELETE", "/ada", {}),
            *(("POST", f"/ada/{wish}", {}) for wish in WISHES),
        ):
            answer = await here.admin(method, path, **more)
            assert (answer.status_code, "FLY_API_TOKEN" in answer.text) == (503, True), path
        assert (await here.operator("POST", "/admin/reconcile")).status_code == 503
        assert here.vendors.fly.exchanges == []


# --- operators: who they are -------------------------------------------------------------------------------

PLACES = (
    ("GET", "/admin/machines"),
    ("POST", "/admin/machines"),
    ("DELETE", "/admin/machines/ada"),
    ("POST", "/admin/machines/ada/stop"),
    ("POST", "/admin/reconcile"),
    ("GET", "/admin/nothing"),
    ("PUT", "/admin/machines"),
)


@pytest.mark.parametrize(("method", "path"), PLACES)
async def test_without_the_operators_token_nobody_learns_anything(
    here: House, method: str, path: str
) -> None:
    gateway_token = await here.gateway.new_token("ada")
    for headers in (
        {},
        {"authorization": f"Bearer {ADMIN_TOKEN[:-1]}"},
        {"authorization": f"Bearer {ADMIN_TOKEN}x"},
        {"authorization": ADMIN_TOKEN},
        {"authorization": f"Basic {ADMIN_TOKEN}"},
        {"x-api-key": ADMIN_TOKEN},
        {"authorization": f"Bearer {gateway_token}"},
        {"authorization": f"Bearer {VENDOR_KEY}"},
    ):
        query = f"{path}?token={ADMIN_TOKEN}"
        answer = await here.http.request(method, query, headers=headers, json={"user": "ada"})
        assert answer.status_code == 401, headers
        assert answer.json() == {
            "error": "Send ADMIN_TOKEN as Authorization: Bearer.",
            "request_id": answer.headers["x-automna-request-id"],
        }
        assert "allow" not in answer.headers
    here.vendors.assert_nothing()
    assert {line["operation"] for line in here.gateway.lines} == {"admin"}
    assert ADMIN_TOKEN not in json.dumps(here.gateway.lines)


@pytest.mark.parametrize(("method", "path"), PLACES)
async def test_without_an_operators_token_there_are_no_operators(
    tmp_path: Path, method: str, path: str
) -> None:
    async with house(tmp_path, env={"ADMIN_TOKEN": None}) as here:
        for token in ("", ADMIN_TOKEN):
            answer = await here.operator(method, path, token=token)
            assert answer.status_code == 503
            assert "ADMIN_TOKEN, which is not set" in answer.json()["error"]


async def test_to_operators_what_there_is_not_is_404_and_other_methods_405(here: House) -> None:
    for path in ("/admin/nothing", "/admin/machines/", "/admin/machines/ada/explode", "/admin/"):
        assert (await here.operator("GET", path)).status_code == 404, path
    answer = await here.admin("PUT")
    assert (answer.status_code, "POST" in answer.headers["allow"]) == (405, True)


# --- operators: wishes --------------------------------------------------------------------------------------


async def test_an_operator_provisions_and_sees_everything_that_was_made(here: House) -> None:
    await here.gateway.new_token("ada")
    answer = await here.admin("POST", json={"user": "ada"})
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    assert answer.headers["cache-control"] == "no-store"
    told = await here.until("ada", "ready")
    assert {each["kind"] for each in told["resources"]} == {
        *("app", "ip", "volume", "context", "pod", "inbox", "machine")
    }
    assert {each["state"] for each in told["resources"]} == {"live"}
    again = await here.admin("POST", json={"user": "ada"})
    assert (again.status_code, again.json()["machine"]) == (202, told["machine"])
    here.vendors.assert_one_of_each()
    text = (await here.admin("GET", "/ada/events?limit=1000")).text
    assert here.vendors.gateway_token() not in text + json.dumps(told)
    actors = [event["details"]["actor"] for event in json.loads(text)["events"] if event["event"] == "wished"]
    assert actors == ["admin"], "one wish, however often it is made"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b"{}", 400, "user: given None, expected a user's id"),
        (b"", 400, "user: given None, expected a user's id"),
        (b'{"user": 3}', 400, "user: given 3, expected a user's id"),
        (b'{"user": ""}', 400, "user: given '', expected a user's id"),
        (b'{"user": "ada", "plan": "pro"}', 400, "unknown key 'plan', expected any of user"),
        (b'{"user": "bob"}', 404, "there is no user bob"),
        (b" " * (BODY_BYTES_MAX + 1), 413, "longer than"),
    ],
)
async def test_a_wish_for_nobody_is_refused(here: House, body: bytes, status: int, said: str) -> None:
    answer = await here.admin("POST", content=body)
    assert (answer.status_code, said in answer.json()["error"]) == (status, True), answer.text
    assert (await here.admin("GET")).json() == {"machines": [], "next": None}


async def test_operators_stop_start_suspend_update_and_rotate(here: House) -> None:
    token = await here.gateway.new_token("ada")
    await here.into(token)
    before = here.vendors.gateway_token()
    for wish, status in (
        ("stop", "stopped"),
        ("start", "ready"),
        ("suspend", "suspended"),
        ("start", "ready"),
        ("update", "ready"),
        ("rotate", "ready"),
    ):
        answer = await here.admin("POST", f"/ada/{wish}")
        assert (answer.status_code, answer.json()["user"]) == (202, "ada"), wish
        await here.until("ada", status)
    assert here.vendors.gateway_token() != before
    here.clock.advance(GRACE_MS / 1000)
    for gateway_token, expected in ((before, 401), (here.vendors.gateway_token(), 200)):
        assert (await here.get("/api/user/machine", gateway_token)).status_code == expected
    here.vendors.assert_one_of_each()


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", ""), *(("POST", f"/{wish}") for wish in WISHES), ("GET", ""), ("GET", "/events")],
)
async def test_of_a_machine_that_is_not_there_nothing_is_wished(here: House, method: str, path: str) -> None:
    await here.gateway.new_token("ada")
    for user_id in ("ada", "nobody"):
        answer = await here.admin(method, f"/{user_id}{path}")
        assert (answer.status_code, answer.json()["error"]) == (404, f"{user_id} has no machine")


async def test_a_wish_takes_nothing_beside_itself(here: House) -> None:
    await here.into(await here.gateway.new_token("ada"))
    assert (await here.admin("POST", "/ada/stop", json={"force": True})).status_code == 400
    assert (await here.admin("POST", "/ada/stop?force=1")).status_code == 400
    assert (await here.admin("DELETE", "/ada?force=1")).status_code == 400
    assert (await here.admin("GET", "/ada?whole=1")).status_code == 400
    assert (await here.admin("GET", "/ada")).json()["desired"] == "running"


async def test_a_machine_that_was_never_ready_cannot_be_stopped(here: House) -> None:
    await here.gateway.new_token("ada")
    here.vendors.fly.next_on("POST /v1/apps/.*/volumes", fails(422))
    await here.admin("POST", json={"user": "ada"})
    await here.until("ada", "error")
    answer = await here.admin("POST", "/ada/stop")
    assert (answer.status_code, "provision it first" in answer.json()["error"]) == (409, True)


async def test_machines_are_listed_page_by_page_and_by_status(here: House) -> None:
    users = ["a+b@example.com", "ada", "bob", "reconcile"]
    for user_id in users:
        await here.gateway.new_token(user_id)
        await here.admin("POST", json={"user": user_id})
    for user_id in users:
        await here.until(user_id, "ready")
    await here.admin("POST", "/bob/stop")
    await here.until("bob", "stopped")
    listed, after = [], ""
    while True:
        page = (await here.operator("GET", "/admin/machines", params={"limit": 3, "after": after})).json()
        listed += [machine["user"] for machine in page["machines"]]
        if page["next"] is None:
            break
        after = page["next"]
    assert listed == users
    stopped = (await here.admin("GET", "?status=stopped")).json()["machines"]
    assert [machine["user"] for machine in stopped] == ["bob"]
    for query, said in (
        ("status=dead", "status: given 'dead', expected one of pending"),
        ("limit=0", "limit: given '0', expected a whole number from 1 to 500"),
        ("limit=501", "limit: given '501'"),
        ("limit=x", "limit: given 'x'"),
        ("user=ada", "query parameter: given 'user', expected one of status, after, limit"),
    ):
        answer = await here.admin("GET", f"?{query}")
        assert (answer.status_code, said in answer.json()["error"]) == (400, True), answer.text


async def test_events_are_told_the_newest_first(here: House) -> None:
    await here.into(await here.gateway.new_token("ada"))
    events = (await here.admin("GET", "/ada/events?limit=2")).json()["events"]
    assert [event["event"] for event in events] == ["ready", "waiting_for_gateway"]
    assert events[0]["machine"] == here.vendors.machine.id
    assert (await here.admin("GET", "/ada/events?limit=1001")).status_code == 400


# --- operators: reconciling ---------------------------------------------------------------------------------


async def test_reconciling_tells_what_is_not_as_it_should_be_and_mends_it_when_told_to(here: House) -> None:
    await here.into(await here.gateway.new_token("ada"))
    answer = await here.operator("POST", "/admin/reconcile")
    assert (answer.status_code, answer.json()["findings"]) == (200, [])
    assert answer.json()["looked_at"]["machines"] == 1
    here.vendors.machine.config["env"]["ANTHROPIC_BASE_URL"] = "https://elsewhere.example"
    stray = "automna-u-" + "0" * 20
    async with fly_client(here.vendors.fly.url) as fly:
        assert (await fly.post("/apps", json={"name": stray, "org_slug": ORG_SLUG})).is_success
    for body in ({}, {"repair": False}):
        answer = await here.operator("POST", "/admin/reconcile", json=body)
        findings = {each["kind"]: each for each in answer.json()["findings"]}
        assert set(findings) == {"drift", "unknown_app"}
        assert (findings["drift"]["user"], findings["drift"]["done"]) == ("ada", "")
        assert findings["unknown_app"]["app"] == stray
        assert "elsewhere" not in answer.text
    answer = await here.operator("POST", "/admin/reconcile", json={"repair": True})
    (done,) = [each["done"] for each in answer.json()["findings"] if each["kind"] == "drift"]
    assert done == "wished anew"
    await here.until("ada", "ready")
    assert here.vendors.env()["ANTHROPIC_BASE_URL"] != "https://elsewhere.example"


@pytest.mark.parametrize("body", [{"repair": "yes"}, {"repair": 1}, {"fix": True}])
async def test_a_look_that_is_not_understood_is_refused(here: House, body: dict[str, Any]) -> None:
    assert (await here.operator("POST", "/admin/reconcile", json=body)).status_code == 400
    assert here.vendors.fly.exchanges == []


@pytest.mark.parametrize(
    ("status", "code", "is_retryable"),
    [(500, "provider_unavailable", True), (401, "provider_unauthorized", False)],
)
async def test_a_look_that_fly_does_not_answer_says_so(
    here: House, status: int, code: str, is_retryable: bool
) -> None:
    here.vendors.fly.next(fails(status))
    answer = await here.operator("POST", "/admin/reconcile")
    assert answer.status_code == 503
    assert (answer.json()["code"], answer.json()["retryable"]) == (code, is_retryable)
    assert VENDOR_KEY not in answer.text


# --- what the service does by itself --------------------------------------------------------------------------


async def test_a_service_that_may_repair_mends_by_itself_what_has_drifted(tmp_path: Path) -> None:
    env = {"MACHINES_RECONCILE_EVERY_S": "0.2", "MACHINES_REPAIR": "on"}
    async with house(tmp_path, env=env) as here:
        await here.into(await here.gateway.new_token("ada"))
        here.vendors.machine.config["env"]["ANTHROPIC_BASE_URL"] = "https://elsewhere.example"
        async with asyncio.timeout(WAIT_S):
            while here.vendors.machine.config["env"]["ANTHROPIC_BASE_URL"] == "https://elsewhere.example":
                await asyncio.sleep(POLL_S)
        await here.until("ada", "ready")


async def test_the_machine_of_who_has_nothing_to_spend_rests_where_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "BUDGETS_EVERY_S", 0.05)
    env = {"MACHINES_SUSPEND_OVER_BUDGET": "on"}
    async with house(tmp_path, env=env, credits_per_month=0) as here:
        token = await here.gateway.new_token("ada")
        await here.into(token)
        await here.until("ada", "suspended")
        assert (await here.get("/api/user/machine", token)).json()["over_budget"] is True
