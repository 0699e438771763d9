"""Gateway tokens that are handed on, over real sockets: what a child may, what it is told, and how it ends."""

import asyncio
import json
import time

import httpx
import pytest

from metering.users import CHILDREN_MAX
from routes.given import BODY_BYTES_MAX
from routes.tokens import TOKEN_CALLS
from simulators.anthropic import ReportedUsage, hangs, streams
from simulators.script import Gate
from tests.support.gateway import DatedClock, messages_body, running_gateway
from tests.support.limits import assert_limits, limits_of, policies_of
from tests.support.process import serving as serving_process

HAIKU, SONNET = "claude-haiku-4-5", "claude-sonnet-4-5"
MINTED_KEYS = {
    *(
        "id",
        "user",
        "prefix",
        "label",
        "state",
        "created_at",
        "expires_at",
        "revoked_at",
        "parent",
        "replaced_by",
    ),
    *("scope", "caps", "limits", "token"),
}


NOBODYS = (401, 405)
"""Answers that are given without looking whose token it is, or whose it is not."""
UNHEARD = 503
"""Of a worker that has heard of no change for as long as it may."""


class Holder:
    """Whoever holds a gateway token, and hands it on."""

    def __init__(self, url, token, token_id=None):
        self.url = url
        self.token = token
        self.id = token_id

    async def call(self, method, path="", **more):
        async with httpx.AsyncClient(base_url=self.url, timeout=30, trust_env=False) as client:
            headers = {"x-api-key": self.token}
            answer = await client.request(method, f"/api/user/tokens{path}", headers=headers, **more)
        if answer.status_code not in NOBODYS:
            assert_limits(answer.headers)
        return answer

    async def mint(self, **wish):
        answer = await self.call("POST", json=wish)
        assert answer.status_code == 201, answer.text
        minted = answer.json()
        assert set(minted) == MINTED_KEYS
        return Holder(self.url, minted["token"], minted["id"])

    async def refusal(self, method="POST", path="", **more):
        answer = await self.call(method, path, **more)
        return answer.status_code, answer.json()["error"]

    async def ask(self, model=HAIKU, **more):
        """A message; the status, and the vendor's words where it is no success."""
        async with httpx.AsyncClient(base_url=self.url, timeout=30, trust_env=False) as client:
            headers = {"x-api-key": self.token, "anthropic-version": "2023-06-01"}
            answer = await client.post(
                "/api/llm/v1/messages", json=messages_body(model=model, **more), headers=headers
            )
        return answer.status_code, answer.json()

    async def get(self, path):
        async with httpx.AsyncClient(base_url=self.url, timeout=30, trust_env=False) as client:
            answer = await client.get(path, headers={"x-api-key": self.token})
        assert_limits(answer.headers)
        return answer


@pytest.fixture
async def gateway(tmp_path, vendor):
    clock = DatedClock(2026, 11, 20)
    async with running_gateway(tmp_path, upstream=vendor.url, clock=clock) as running:
        yield running
        await running.assert_clean()


@pytest.fixture
async def parent(gateway):
    return Holder(gateway.url, await gateway.new_token())


# --- minting --------------------------------------------------------------------------------------------


async def test_a_child_is_shown_once_and_serves_as_a_key(gateway, parent):
    answer = await parent.call("POST", json={"label": "browser", "expires_in_s": 600, "models": [HAIKU]})
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    minted = answer.json()
    assert (minted["user"], minted["label"], minted["state"]) == ("u1", "browser", "live")
    assert minted["scope"] == {"models": [HAIKU]}
    assert minted["expires_at"].startswith("2026-11-20T00:10:")
    child = Holder(gateway.url, minted["token"])
    assert (await child.ask())[0] == 200
    shown = (await parent.call("GET", f"/{minted['id']}")).json()
    assert shown == {key: value for key, value in minted.items() if key != "token"}
    assert (await parent.call("GET")).json() == {"tokens": [shown], "is_complete": True}
    (entry,) = await gateway.entries()
    ((token_id,),) = await gateway.service.store.readers.rows("SELECT token_id FROM entries")
    assert (entry["user_id"], token_id) == ("u1", minted["id"]), "its parent's user pays"
    assert (await gateway.spent_and_held())[0] == entry["cost_nanousd"]
    for line in gateway.lines:
        assert minted["token"] not in json.dumps(line)


async def test_a_child_without_wishes_may_all_but_hand_on(gateway, parent):
    child = await parent.mint()
    assert (await child.ask(SONNET))[0] == 200
    assert (await child.get("/api/user/limits")).status_code == 200
    status, error = await child.refusal(json={})
    assert status == 403
    assert "handed on" in error
    child = await parent.mint(operations=["POST *", "tokens"])
    grandchild = await child.mint(operations=["*"])
    assert (await grandchild.ask())[0] == 200
    assert (await grandchild.get("/api/user/usage")).status_code == 403, "its parent's scope has none"
    assert (await grandchild.call("GET")).json()["tokens"] == []


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"lable": "x"}, "unknown key 'lable', expected any of caps, expires_at"),
        ({"label": 3}, "label: given 3, expected a text of at most 100 characters"),
        ({"label": "x" * 101}, "label: given"),
        ({"expires_in_s": 0}, "expires_in_s: given 0, expected a whole number from 1 to"),
        ({"expires_in_s": "60"}, "expires_in_s: given '60'"),
        ({"expires_in_s": 10**12}, "expires_in_s: given"),
        ({"expires_at": "tomorrow"}, "expires_at: given 'tomorrow', expected YYYY-MM-DD"),
        ({"expires_at": 7}, "expires_at: given '7'"),
        ({"expires_at": "2026-11-19"}, "expected an instant in the future"),
        ({"expires_at": "2026-12-24", "expires_in_s": 5}, "given both, expected one"),
        ({"expires_at": "2026-12-25"}, "expected an expiry no later than the parent's, 2026-12-24T00:00:00Z"),
        ({"surfaces": "anthropic"}, "surfaces: given 'anthropic', expected a list"),
        ({"operations": []}, "operations: given []"),
        ({"models": [1]}, "models: given [1]"),
        ({"caps": [{"meter": "credits"}]}, "caps[0]: given"),
        ({"limits": {"requests_per_minute": -1}}, "limits.requests_per_minute: given -1"),
        ([], "The request's body must be a JSON object."),
    ],
)
async def test_a_wish_that_cannot_be_granted_is_400_and_says_why(gateway, wish, expected):
    expires_at_ms = 1_798_070_400_000  # 2026-12-24
    parent = Holder(gateway.url, await gateway.new_token(expires_at_ms=expires_at_ms))
    status, error = await parent.refusal(json=wish)
    assert status == 400
    assert expected in error
    assert (await parent.call("GET")).json()["tokens"] == []


async def test_what_is_no_json_or_too_long_is_refused(parent):
    assert "not valid JSON" in (await parent.refusal(content=b"{"))[1]
    long = json.dumps({"label": "x" * BODY_BYTES_MAX}).encode()
    assert (await parent.refusal(content=long))[0] == 413

    async def pieces():
        for _ in range(20):
            yield b" " * 1024

    assert (await parent.refusal(content=pieces()))[0] == 413


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", ""), ("DELETE", ""), ("POST", "/x"), ("GET", "/x/rotate")]
)
async def test_other_methods_are_405(parent, method, path):
    answer = await parent.call(method, path)
    assert answer.status_code == 405
    assert method not in answer.headers["allow"]


async def test_without_a_good_token_nothing_is_minted(gateway):
    for token in ("amp_wrong", ""):
        assert (await Holder(gateway.url, token).refusal(json={}))[0] == 401


async def test_calls_about_tokens_are_bounded_by_the_minute(parent):
    for called in range(1, TOKEN_CALLS.per_minute + 1):
        answer = await parent.call("GET", "/tok_none")
        assert limits_of(answer.headers)["token-calls"][0] == TOKEN_CALLS.per_minute - called
    assert policies_of(answer.headers)["token-calls"] == {"q": TOKEN_CALLS.per_minute, "w": 60}
    answer = await parent.call("GET")
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 61
    assert limits_of(answer.headers)["token-calls"] == (0, int(answer.headers["retry-after"]))
    assert (await parent.get("/api/user/limits")).status_code == 200, "reports count apart"


async def test_one_child_too_many_is_400(gateway, parent):
    (token,) = await gateway.directory.tokens("u1")
    for _ in range(CHILDREN_MAX):
        await gateway.directory.create_token("u1", parent_id=token.id)
    status, error = await parent.refusal(json={})
    assert (status, "living children: revoke some" in error) == (400, True)


# --- scope ----------------------------------------------------------------------------------------------


async def test_a_model_outside_the_scope_does_not_exist_and_an_operation_outside_is_403(
    gateway, vendor, parent
):
    child = await parent.mint(models=["claude-haiku-*"], operations=["POST /v1/messages"])
    assert (await child.ask())[0] == 200
    seen = vendor.requests_total
    status, body = await child.ask(SONNET)
    assert (status, body["error"]["type"]) == (404, "not_found_error")
    assert body["error"]["message"] == f"model: {SONNET} (not in the scope of this gateway token)"
    answer = await child.get("/api/llm/v1/models")
    assert answer.status_code == 403
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"] == {
        "type": "permission_error",
        "message": "The scope of this gateway token does not include the operation GET /v1/models of the surface "
        "anthropic.",
    }
    assert vendor.requests_total == seen
    assert (await parent.ask(SONNET))[0] == 200
    await gateway.quiet()
    assert [line["reason"] for line in gateway.lines if "reason" in line] == [
        "model_unavailable",
        "forbidden",
    ]


async def test_our_own_endpoints_are_a_surface_of_the_scope(parent):
    child = await parent.mint(surfaces=["anthropic"])
    for path in ("/api/user/usage", "/api/user/limits", "/api/user/tokens"):
        answer = await child.get(path)
        assert answer.status_code == 403
        assert "of the surface user." in answer.json()["error"]
    child = await parent.mint(surfaces=["user"], operations=["limits"])
    assert (await child.get("/api/user/limits")).status_code == 200
    assert (await child.get("/api/user/usage")).status_code == 403
    assert (await child.ask())[0] == 403


# --- caps -----------------------------------------------------------------------------------------------


async def test_a_child_that_has_spent_its_cap_is_told_so_and_its_parent_goes_on(gateway, vendor, parent):
    vendor.script = lambda _: streams(usage=ReportedUsage(input_tokens=30, output_tokens=10))
    child = await parent.mint(caps=[{"meter": "requests", "period": "day", "limit": 2}])
    assert [(await child.ask())[0] for _ in range(2)] == [200, 200]
    await gateway.quiet()
    status, body = await child.ask()
    assert (status, body["error"]["message"]) == (
        402,
        "Daily usage limit reached (2 of 2 requests of this gateway token). Resets on 21 November 2026.",
    )
    assert (await parent.ask())[0] == 200
    limits = (await child.get("/api/user/limits")).json()
    assert limits["caps"] == [
        {
            "of": "this gateway token",
            "meter": "requests",
            "period": "day",
            "limit": 2,
            "used": 2,
            "held": 0,
            "left": 0,
            "resets_at": "2026-11-21T00:00:00Z",
        }
    ]
    gateway.clock.advance(86_400)
    assert (await child.ask())[0] == 200


async def test_limits_of_a_token_and_of_those_it_comes_from_are_shown_as_they_stand(gateway, parent, vendor):
    child = await parent.mint(
        limits={"concurrent_requests": 2, "tokens_per_minute": 60_000}, operations=["*"]
    )
    grandchild = await child.mint(limits={"requests_per_minute": 7})
    assert (await parent.get("/api/user/limits")).json()["token_limits"] == []
    vendor.next(streams(usage=ReportedUsage(input_tokens=70_000, output_tokens=10)))
    assert (await grandchild.ask())[0] == 200
    await gateway.quiet()
    gateway.clock.advance(30)
    gate = Gate()
    vendor.next(hangs(gate=gate))
    asking = asyncio.get_running_loop().create_task(grandchild.ask())
    await gate.reached()
    document = (await grandchild.get("/api/user/limits")).json()
    own, above = document["token_limits"]
    assert own["of"] == "this gateway token"
    assert set(own) == {"of", "requests_per_minute"}
    rate = own["requests_per_minute"]
    assert (rate["limit"], rate["used"], rate["held"], rate["left"]) == (7, 2, 0, 5)
    assert above["of"] == "the gateway token that this one comes from"
    assert set(above) == {"of", "tokens_per_minute", "concurrent_requests"}
    assert above["concurrent_requests"] == {"limit": 2, "used": 0, "held": 1, "left": 1, "resets_at": None}
    rate = above["tokens_per_minute"]
    assert 30_000 <= 70_010 - rate["used"] < 60_000, (
        "30 s of them have flowed back, and the moments of the test"
    )
    assert (rate["limit"], rate["left"]) == (60_000, 60_000 - rate["used"])
    assert rate["resets_at"] > document["at"]
    gate.open()
    await asking


async def test_rotating_a_child_gives_it_no_new_cap(gateway, parent):
    child = await parent.mint(caps=[{"meter": "requests", "period": "month", "limit": 1}])
    assert (await child.ask())[0] == 200
    await gateway.quiet()
    answer = await parent.call("POST", f"/{child.id}/rotate", json={"overlap_s": 60})
    assert (answer.status_code, answer.json()["replaces"]) == (201, child.id)
    successor = Holder(gateway.url, answer.json()["token"], answer.json()["id"])
    for holder in (child, successor):
        assert (await holder.ask())[0] == 402
    again = await parent.refusal("POST", f"/{child.id}/rotate")
    assert again == (400, f"gateway token {child.id} was rotated already: rotate {successor.id}")
    assert (await parent.refusal("POST", f"/{successor.id}/rotate", json={"overlap_s": 86_401}))[0] == 400


# --- revoking, and what is not one's own -----------------------------------------------------------------


async def test_what_does_not_come_from_a_token_does_not_exist_for_it(gateway, parent):
    (own,) = await gateway.directory.tokens("u1")
    child = await parent.mint(operations=["tokens"])
    sibling = await parent.mint(operations=["tokens"])
    stranger = Holder(gateway.url, await gateway.new_token("u2"))
    strange = await stranger.mint()
    for token_id in (own.id, child.id, sibling.id, strange.id, "tok_none", child.token):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate")):
            answer = await child.call(method, f"/{token_id}{path}")
            assert answer.status_code == 404, (method, token_id)
            assert child.token not in answer.text
    assert (await child.call("GET")).json()["tokens"] == []
    assert [token["id"] for token in (await stranger.call("GET")).json()["tokens"]] == [strange.id]
    assert (await sibling.call("GET")).status_code == 200


async def test_revoking_a_child_ends_all_that_come_from_it_and_may_be_said_twice(gateway, parent):
    child = await parent.mint(operations=["*"])
    grandchild = await child.mint()
    assert [(await holder.ask())[0] for holder in (parent, child, grandchild)] == [200] * 3
    answers = [await parent.call("DELETE", f"/{child.id}") for _ in range(2)]
    assert [(answer.status_code, answer.json()["state"]) for answer in answers] == [(200, "revoked")] * 2
    assert answers[0].json() == answers[1].json()
    await gateway.service.own.authenticator.look_for_changes()
    assert [(await holder.ask())[0] for holder in (parent, child, grandchild)] == [200, 401, 401]
    assert (await parent.call("GET", f"/{grandchild.id}")).json()["state"] == "revoked"
    assert (await parent.call("GET")).json()["tokens"] == []


async def test_a_parent_that_was_revoked_a_moment_ago_mints_no_more(gateway, parent, monkeypatch):
    """Though its worker has not heard of it yet."""
    assert (await parent.ask())[0] == 200
    (own,) = await gateway.directory.tokens("u1")

    async def hears_nothing(seq):
        return []

    monkeypatch.setattr(gateway.service.own.authenticator._directory, "changes_since", hears_nothing)
    await gateway.directory.revoke(own.id)
    assert (await parent.get("/api/user/limits")).status_code == 200
    assert (await parent.refusal(json={})) == (401, "This API key is no longer valid: it was revoked.")


async def test_a_child_expires_with_what_it_was_given(gateway, parent):
    child = await parent.mint(expires_in_s=600)
    assert (await child.ask())[0] == 200
    gateway.clock.advance(601)
    status, body = await child.ask()
    assert (status, body["error"]["message"]) == (401, "This API key has expired.")


# --- two workers -----------------------------------------------------------------------------------------


async def asks_for_ever(holder, told):
    """One request after the other, each on a connection of its own; (when it began, its status)."""
    while True:
        began_s = time.monotonic()
        told.append((began_s, (await holder.ask())[0]))


def later_than(instant_s, answers):
    return [status for began_s, status in answers if began_s > instant_s]


def workers_of(server, holders):
    """How many workers have served each of them."""
    counted = "SELECT token_id, COUNT(DISTINCT worker_id) FROM reservations GROUP BY token_id"
    found = dict(server.rows(counted))
    return [found.get(holder.id, 0) for holder in holders]


async def test_revoking_a_parent_ends_its_children_on_both_workers_within_a_second_and_spares_what_runs(
    tmp_path, vendor
):
    async with serving_process(
        tmp_path, upstream=vendor.url, workers=2, env={"CHANGES_STALE_AFTER_S": "1"}
    ) as server:
        first = Holder(server.url, await server.new_token())
        parent = await first.mint(operations=["*"])
        child = await parent.mint(operations=["*"])
        holders = (child, await child.mint())
        told = [[] for _ in holders]
        loop = asyncio.get_running_loop()
        asking = [loop.create_task(asks_for_ever(*pair)) for pair in zip(holders * 2, told * 2, strict=True)]
        await server.until(lambda: workers_of(server, holders) == [2, 2], within_s=60)
        gates = [Gate() for _ in holders]
        vendor.script = lambda request: next(
            (hangs(gate=gate) for place, gate in enumerate(gates) if b"hang%d" % place in request.body), None
        )
        running = [
            loop.create_task(holder.ask(metadata={"user_id": f"hang{place}"}))
            for place, holder in enumerate(holders)
        ]
        for gate in gates:
            await gate.reached()
        assert (await first.call("DELETE", f"/{parent.id}")).status_code == 200
        revoked_s = time.monotonic()
        await server.until(lambda: all(401 in later_than(revoked_s + 1, answers) for answers in told))
        for task in asking:
            task.cancel()
        for gate in gates:
            gate.open()
        assert {(await task)[0] for task in running} == {200}, "what was admitted finishes"
        for answers in told:
            assert {status for _, status in answers} - {UNHEARD} == {200, 401}
            assert set(later_than(revoked_s + 1, answers)) <= {401, UNHEARD}
        assert (await first.ask())[0] == 200
        await asyncio.gather(*asking, return_exceptions=True)
        await server.until_nothing_is_held()
        await server.assert_verified()


async def connections_to_both(server, token):
    """Six clients, each with one connection that stays, and not all at the same worker."""
    clients, workers = [], set()
    while len(clients) < 6 or len(workers) < 2:
        assert len(clients) < 60, "one worker takes every connection"
        clients.append(server.client(token))
        answer = await clients[-1].post("/v1/messages", json=messages_body(model=HAIKU))
        workers.add(server.worker_of(answer))
    return clients


async def test_a_parents_cap_lets_as_many_of_its_childrens_requests_pass_as_it_says_on_two_workers(
    tmp_path, vendor
):
    async with serving_process(tmp_path, upstream=vendor.url, workers=2) as server:
        first = Holder(server.url, await server.new_token())
        cap = {"meter": "requests", "period": "month", "limit": 50}
        parent = await first.mint(operations=["*"], caps=[cap])
        siblings = [await parent.mint() for _ in range(4)]
        clients = await connections_to_both(server, first.token)

        async def ask_all(client):
            """Twenty requests, one after the other, of all the siblings in turn."""
            for number in range(20):
                key = {"x-api-key": siblings[number % 4].token}
                answer = await client.post("/v1/messages", json=messages_body(model=HAIKU), headers=key)
                statuses.append(answer.status_code)

        statuses = []
        await asyncio.gather(*map(ask_all, clients))
        await asyncio.gather(*(client.aclose() for client in clients))
        assert (statuses.count(200), len(statuses)) == (50, 20 * len(clients))
        assert set(statuses) <= {200, 402, 429}
        await server.until_nothing_is_held()
        ((spent,),) = server.rows("SELECT spent FROM accounts WHERE owner = ?1", f"token:{parent.id}")
        assert spent == 50
        assert 2 in workers_of(server, siblings)
        await server.assert_verified()


async def test_a_child_sees_of_its_users_requests_only_its_own_and_those_of_its_children(gateway):
    first = Holder(gateway.url, await gateway.new_token())
    child, sibling = await first.mint(operations=["*"]), await first.mint()
    grandchild = await child.mint(operations=["*"])
    for holder, times in ((first, 1), (sibling, 2), (child, 3), (grandchild, 4)):
        for _ in range(times):
            assert (await holder.ask())[0] == 200
    await gateway.quiet()
    assert (await child.call("DELETE", f"/{grandchild.id}")).status_code == 200
    seen = {}
    for name, holder in (("first", first), ("sibling", sibling), ("child", child)):
        usage = (await holder.get("/api/user/usage?by=token")).json()
        listed = (await holder.get("/api/user/requests")).json()["requests"]
        assert usage["total"]["requests"] == len(listed)
        seen[name] = (len(listed), {request["token"] for request in listed})
    assert seen["sibling"] == (2, {sibling.id})
    assert seen["child"] == (7, {child.id, grandchild.id})
    assert seen["first"][0] == 10
    by_name = (await child.get(f"/api/user/requests?token={sibling.id}")).json()
    assert (by_name["requests"], by_name["running"]) == ([], [])
