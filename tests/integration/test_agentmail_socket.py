"""AgentMail's websocket through the proxy: who may open one, what is asked and heard on it, and what is left of it."""

import asyncio
import json
import logging
import signal
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
from agentmail.core.api_error import ApiError
from agentmail.websockets.types import Subscribe
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.protocol import OPEN

from metering.objects import ObjectId, Objects, user_tag
from metering.terms import Scope
from proxy.access import LOOK_S
from proxy.downstream import AHEAD_BYTES_MAX
from proxy.handshakes import UNSENT_BYTES_MAX
from simulators.agentmail import VENDOR_KEY, AgentMailSimulator, drops, fails, hangs
from simulators.script import WAIT_TIMEOUT_S, Gate
from simulators.websocket import CloseCode, Opcode
from tests.support.agentmail import MOUNT, house, variables
from tests.support.gateway import plan_table, plans_file, running_gateway
from tests.support.process import serving as serving_process
from tests.support.raw_http import raw_request

CUT_WITHIN_S = 30.0
"""About one on a machine with nothing else to do; how soon somebody looks is `tests/unit/proxy/test_access.py`."""


@pytest.fixture
async def vendor():
    async with AgentMailSimulator() as simulator:
        yield simulator


def dial(user, query="", **headers):
    url = f"{user.gateway.url.replace('http', 'ws')}{MOUNT}/v0{query}"
    given = headers or ({} if query else {"authorization": f"Bearer {user.token}"})
    return connect(url, additional_headers=given, proxy=None)


async def heard(socket):
    """The next message."""
    return json.loads(await asyncio.wait_for(socket.recv(), WAIT_TIMEOUT_S))


async def asked(socket, **message):
    """The answer to a message."""
    await socket.send(json.dumps(message))
    return await heard(socket)


@asynccontextmanager
async def subscribed(user, **message):
    """A socket that has asked to hear."""
    async with dial(user) as socket:
        answer = await asked(socket, type="subscribe", **message)
        assert answer["type"] == "subscribed", answer
        yield socket


async def refused(user, query="", **headers):
    """What answers a handshake that is none."""
    with pytest.raises(InvalidStatus) as error:
        async with dial(user, query, **headers):
            pass
    return error.value.response


def line_of(at):
    """The last websocket's canonical line."""
    return next(line for line in reversed(at.gateway.lines) if line["operation"] == "GET /v0")


async def handshakes(at):
    """The ledger's rows of websockets: kind, outcome, cost."""
    rows = [entry for entry in await at.gateway.entries() if entry["operation"] == "GET /v0"]
    return [(row["kind"], row["outcome"], row["cost_nanousd"]) for row in rows]


# --- with the SDK ---------------------------------------------------------------------------------------


async def test_the_sdk_hears_of_its_users_mail_and_of_nobody_elses(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        wren, finch = await at.ada.inbox("wren"), await at.bob.inbox("finch")
        async with at.ada.sdk.websockets.connect() as ada, at.bob.sdk.websockets.connect() as bob:
            await ada.send_subscribe(Subscribe())
            await bob.send_subscribe(Subscribe(event_types=["message.received"]))
            assert (await ada.recv()).type == "subscribed"
            assert (await bob.recv()).event_types == ["message.received"]
            for number in range(3):
                vendor.receive(wren, "ann@x.y", f"for ada {number}")
                vendor.receive(finch, "ann@x.y", f"for bob {number}")
            for number in range(3):
                assert (await ada.recv()).message.subject == f"for ada {number}"
                assert (await bob.recv()).message.subject == f"for bob {number}"
            assert at.gateway.metric("automna_open_sockets") == 2
            assert await handshakes(at) == [("settle", "completed", 0)] * 2, "while they are open"
        await at.gateway.until(lambda: not at.gateway.service.engine.sockets)
        line = line_of(at)
        assert (line["status"], line["outcome"], line["close_code"]) == (101, "completed", 1000)
        assert (line["messages_up"], line["messages_down"], line["messages_dropped"]) == (1, 4, 0)


async def test_the_sdk_raises_its_own_error_for_a_token_that_is_none(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        token = await at.gateway.directory.tokens("ada")
        await at.gateway.directory.revoke(token[0].id)
        with pytest.raises(ApiError) as error:
            async with at.ada.sdk.websockets.connect():
                pass
        assert error.value.status_code == 401
        assert vendor.requests == []


# --- who may --------------------------------------------------------------------------------------------


async def test_the_token_may_stand_where_browsers_put_it_and_goes_no_further(tmp_path, vendor, caplog):
    caplog.set_level(logging.DEBUG)
    async with house(tmp_path, vendor) as at:
        token = at.ada.token
        both = {"authorization": f"Bearer {token}"}
        for query, headers in (("", both), ("", {"x-api-key": token}), (f"?api_key={token}", {})):
            async with dial(at.ada, query, **headers) as socket:
                assert (await asked(socket, type="subscribe"))["type"] == "subscribed"
        async with dial(at.ada, f"?api_key={token}", **both, **{"x-session": token, "x-neutral": "kept"}):
            pass
        upgrades = [request for request in vendor.requests if request.path == "/v0"]
        assert len(upgrades) == 4
        for request in upgrades:
            assert request.header(b"authorization") == b"Bearer " + VENDOR_KEY.encode()
            assert token not in repr(request)
        assert upgrades[-1].header(b"x-neutral") == b"kept"
        assert token not in str(at.gateway.lines)
    ours = [record for record in caplog.records if not record.name.startswith(("websockets", "asyncio"))]
    assert all(secret not in record.getMessage() for record in ours for secret in (token, VENDOR_KEY))


async def test_what_would_be_refused_as_a_request_is_refused_before_the_handshake(tmp_path, vendor):
    async with house(tmp_path, vendor, requests_per_minute=3) as at:
        other = await at.gateway.new_token("ada")
        narrow = await at.gateway.new_token("ada", scope=Scope(operations=("GET /v0/inboxes",)))
        cases = [
            (401, "", {"authorization": "Bearer amp_nobodys"}),
            (401, f"?api_key={other}", {"authorization": f"Bearer {at.ada.token}"}),
            (403, "", {"authorization": f"Bearer {narrow}"}),
            (400, "?api_key=&wide=1", {"authorization": f"Bearer {at.ada.token}"}),
            (426, "", {"authorization": f"Bearer {at.ada.token}", "sec-websocket-version": "12"}),
        ]
        for status, query, headers in cases:
            answer = await refused(at.ada, query, **headers)
            assert answer.status_code == status
            assert json.loads(answer.body).keys() == {"name", "code", "message"}
            assert answer.headers["x-automna-request-id"].startswith("req_")
        assert answer.headers["sec-websocket-version"] == "13"
        async with dial(at.ada), dial(at.ada), dial(at.ada):
            answer = await refused(at.ada)
            assert (answer.status_code, json.loads(answer.body)["name"]) == (429, "RateLimitError")
        assert len(vendor.requests) == 3


async def test_a_surface_outside_the_plan_has_no_websocket(tmp_path, vendor):
    async with house(tmp_path, vendor, surfaces=("anthropic",)) as at:
        assert (await refused(at.ada)).status_code == 404
        assert vendor.requests == []


async def test_without_an_upgrade_there_is_nothing_but_a_hint(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        headers = [(b"authorization", b"Bearer " + at.ada.token.encode())]
        answer = await raw_request(at.gateway.url, "GET", f"{MOUNT}/v0".encode(), headers)
        assert (answer.status, answer.header(b"upgrade")) == (426, b"websocket")
        assert line_of(at)["reason"] == "websocket_required"
        assert vendor.requests == []


async def test_a_user_has_so_many_and_a_worker_too(tmp_path, vendor):
    env = {"SOCKETS_PER_USER": "2", "SOCKETS_MAX": "3"}
    async with house(tmp_path, vendor, env=env) as at:
        async with AsyncExitStack() as stack:
            for user in (at.ada, at.ada, at.bob):
                await stack.enter_async_context(dial(user))
            hers, his = await refused(at.ada), await refused(at.bob)
            assert (hers.status_code, his.status_code) == (429, 429)
            assert "2 per user" in json.loads(hers.body)["message"]
            assert hers.headers["retry-after"]
            assert len(vendor.requests) == 3
        await at.gateway.until(lambda: not at.gateway.service.engine.sockets)
        async with dial(at.ada), dial(at.ada):
            pass


# --- what a client may ask ------------------------------------------------------------------------------


async def test_without_ids_the_users_own_pod_is_asked_for_and_made_if_need_be(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        for message in ({}, {"inbox_ids": []}, {"pod_ids": []}, {"inbox_ids": None, "pod_ids": []}):
            async with subscribed(at.ada, **message):
                (pod,) = (each for each in vendor.organization.pods.values() if each.name == user_tag("ada"))
                (text,) = vendor.sockets[-1].heard
                assert json.loads(text) == {"type": "subscribe", "pod_ids": [pod.pod_id]}


async def test_own_ids_go_up_as_they_are_and_others_not_at_all(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        wren, finch = await at.ada.inbox("wren"), await at.bob.inbox("finch")
        pods = {
            name: vendor.organization.inboxes[inbox].pod_id for name, inbox in (("ada", wren), ("bob", finch))
        }
        async with dial(at.ada) as socket:
            own = {"inbox_ids": [wren.upper()], "pod_ids": [pods["ada"]], "event_types": ["message.sent"]}
            assert (await asked(socket, type="subscribe", **own))["type"] == "subscribed"
            for stolen in (
                {"inbox_ids": [finch]},
                {"inbox_ids": [finch.upper()]},
                {"inbox_ids": [wren, finch]},
                {"pod_ids": [pods["bob"]]},
                {"inbox_ids": [wren], "pod_ids": [pods["bob"]]},
                {"inbox_ids": ["nobody@agentmail.to"]},
                {"pod_ids": [vendor.organization.default_pod.pod_id]},
            ):
                answer = await asked(socket, type="subscribe", **stolen)
                assert answer == {"type": "error", "name": "NotFoundError", "message": "Not found."}
            assert [json.loads(text) for text in vendor.sockets[-1].heard] == [{"type": "subscribe", **own}]


MISTAKES = [
    "",
    "nothing",
    "[]",
    '"subscribe"',
    "[" * 2_000,
    "{}",
    '{"type":"unsubscribe"}',
    '{"type":["subscribe"]}',
    '{"type":"subscribe","organization_ids":["x"]}',
    '{"type":"subscribe","inbox_ids":"wren@agentmail.to"}',
    '{"type":"subscribe","inbox_ids":[null]}',
    '{"type":"subscribe","inbox_ids":[""]}',
    '{"type":"subscribe","pod_ids":{"0":"x"}}',
    '{"type":"subscribe","event_types":[1]}',
    json.dumps({"type": "subscribe", "inbox_ids": ["x"] * 101}),
    json.dumps({"type": "subscribe", "inbox_ids": ["x" * 513]}),
]


async def test_what_is_no_subscription_is_answered_and_the_connection_stays(tmp_path, vendor):
    async with house(tmp_path, vendor) as at, dial(at.ada) as socket:
        for text in MISTAKES:
            await socket.send(text)
            answer = await heard(socket)
            assert (answer["type"], answer["name"]) == ("error", "ValidationError"), text
        assert (await asked(socket, type="subscribe"))["type"] == "subscribed"
        assert len(vendor.sockets[-1].heard) == 1


async def test_of_a_key_that_stands_twice_the_vendor_sees_what_was_checked(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        wren, finch = await at.ada.inbox("wren"), await at.bob.inbox("finch")
        async with dial(at.ada) as socket:
            await socket.send(f'{{"type":"subscribe","inbox_ids":["{finch}"],"inbox_ids":["{wren}"]}}')
            assert (await heard(socket))["type"] == "subscribed"
            assert vendor.sockets[-1].heard == [f'{{"type":"subscribe","inbox_ids":["{wren}"]}}']


async def test_there_is_an_end_to_subscriptions_and_to_mistakes(tmp_path, vendor):
    async with house(tmp_path, vendor) as at, dial(at.ada) as socket:
        for _ in range(100):
            assert (await asked(socket, type="subscribe"))["type"] == "subscribed"
        answer = await asked(socket, type="subscribe")
        assert (answer["type"], answer["name"]) == ("error", "RateLimitError")
        for _ in range(99):
            assert (await asked(socket, type="nothing"))["type"] == "error"
        with pytest.raises(ConnectionClosed) as closed:
            await asked(socket, type="nothing")
        assert closed.value.rcvd.code == 1008
        assert len(vendor.sockets[-1].heard) == 100


# --- what of the vendor's words goes down ---------------------------------------------------------------


def told_about(inbox):
    """An event of every type, as it names the inbox it is about."""
    ids = {"inbox_id": inbox, "thread_id": "t1", "message_id": "<m1@x>"}
    message = {**ids, "subject": "Hi", "headers": {"inbox_id": "a stranger's word"}}
    calendar = {"inbox_id": inbox, "calendar_event": {"title": "Tea", "metadata": {"inbox_ids": [1]}}}
    security = {"inbox_id": inbox, "message_id": "<m1@x>"}
    payloads = {
        "message.received": {"message": message, "thread": ids},
        "message.received.spam": {"message": message, "thread": ids},
        "message.received.blocked": {"message": message, "thread": ids},
        "message.received.unauthenticated": {"message": message, "thread": ids},
        "message.security.completed": {"message": security},
        "message.security.review": {"message": security},
        "message.security.override": {"message": security},
        "message.sent": {"send": ids},
        "message.delivered": {"delivery": ids},
        "message.bounced": {"bounce": {**ids, "recipients": [{"address": "a@b.c", "status": "5.1.1"}]}},
        "message.complained": {"complaint": ids},
        "message.rejected": {"reject": ids},
        "message.opened": {"open": ids},
        "calendar.event.created": calendar,
        "calendar.event.updated": calendar,
        "calendar.event.deleted": calendar,
        "calendar.event.responded": calendar,
        "calendar.event.starting": calendar,
        "calendar.event.ending": calendar,
        "of.tomorrow": {"things": [{"inbox_ids": [inbox]}]},
    }
    return [
        {"type": "event", "event_type": name, "event_id": f"evt_{name}", **body}
        for name, body in payloads.items()
    ]


def without_inbox():
    """Events of the account, and what is no event."""
    domain = {"domain_id": "d1", "domain": "x.y", "client_id": f"{user_tag('bob')}-d"}
    yield {"type": "event", "event_type": "domain.verified", "event_id": "e", "domain": domain}
    yield {"type": "event", "event_type": "of.tomorrow", "event_id": "e", "what": {"thread_id": "t1"}}
    yield {
        "type": "event",
        "event_type": "message.sent",
        "event_id": "e",
        "send": {"headers": {"inbox_id": "w"}},
    }
    yield {"type": "event"}
    yield {"type": "unheard_of", "secret": "x"}
    yield {"secret": "x"}
    yield ["type", "subscribed"]
    yield "subscribed"


FENCE = '{"type":"subscribed","fence":true}'


async def told(at, socket, *texts):
    """What comes down of these words of the vendor's."""
    for text in (*texts, FENCE):
        at.vendor.sockets[-1].send_text(text if isinstance(text, str) else json.dumps(text))
    found = []
    while (text := await asyncio.wait_for(socket.recv(), WAIT_TIMEOUT_S)) != FENCE:
        found.append(text)
    return found


async def test_an_event_goes_down_where_its_inbox_is_the_users(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        wren, finch = await at.ada.inbox("wren"), await at.bob.inbox("finch")
        async with subscribed(at.ada) as socket:
            for spelt in (wren, wren.upper()):
                texts = [json.dumps(event, indent=1) for event in told_about(spelt)]
                assert await told(at, socket, *texts) == texts, "byte for byte"
            for others in (finch, finch.upper(), "nobody@agentmail.to", "", 1, {"x": wren}, "x" * 600):
                assert await told(at, socket, *told_about(others)) == []
            assert await told(at, socket, *without_inbox()) == []
        await at.gateway.until(lambda: not at.gateway.service.engine.sockets)
        assert line_of(at)["messages_dropped"] == 7 * 20 + 8


async def test_an_event_of_several_goes_down_where_all_are_the_users(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        wren, finch = await at.ada.inbox("wren"), await at.bob.inbox("finch")
        pods = [vendor.organization.inboxes[inbox].pod_id for inbox in (wren, finch)]
        both = {
            "type": "event",
            "event_type": "e",
            "message": {"inbox_id": wren},
            "thread": {"inbox_id": wren},
        }
        async with subscribed(at.ada) as socket:
            mixed = [
                {**both, "thread": {"inbox_id": finch}},
                {**both, "inbox_ids": [wren, finch]},
                {**both, "pod_id": pods[1]},
                {"type": "subscribed", "inbox_ids": [finch]},
            ]
            whole = [both, {**both, "pod_id": pods[0]}, {"type": "subscribed", "inbox_ids": [wren]}]
            assert [json.loads(text) for text in await told(at, socket, *mixed, *whole)] == whole


@pytest.mark.parametrize(
    "text",
    [
        b"\x00\xff".hex(),
        "nothing",
        "[" * 2_000,
        "{}",
        '{"type":"subscribed"',
        '{"inbox_id":"wren@agentmail.to"',
    ],
)
async def test_what_cannot_be_read_does_not_go_down(tmp_path, vendor, text):
    async with house(tmp_path, vendor) as at:
        await at.ada.inbox("wren")
        async with subscribed(at.ada) as socket:
            assert await told(at, socket, text) == []


async def test_an_event_passes_byte_for_byte_but_for_the_account_and_the_users_namespace(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        wren = await at.ada.inbox("wren")
        odd = (
            f'{{ "type" : "event","a":1.0e2 ,"message":{{"inbox_id":"{wren}","text":"\\u00e9 \u2603 \\/"}}}}'
        )
        named = f'{{"type":"event", "inbox_id":"{wren}","client_id":"{user_tag("ada")}-first"}}'
        account = f'{{"type":"event","message":{{"organization_id":"org_1","inbox_id":"{wren}"}}}}'
        async with subscribed(at.ada) as socket:
            shown = await told(at, socket, odd, named, account)
        assert shown == [
            odd,
            f'{{"type":"event", "inbox_id":"{wren}","client_id":"first"}}',
            f'{{"type":"event","message":{{"organization_id":"organization","inbox_id":"{wren}"}}}}',
        ]


async def test_errors_of_the_vendor_lose_what_they_say_of_the_account(tmp_path, vendor):
    async with house(tmp_path, vendor) as at, subscribed(at.ada) as socket:
        error = {
            "type": "error",
            "name": "NotFoundError",
            "message": "finch@agentmail.to is in pod_1",
            "fix": "x",
        }
        ours = {"type": "error", "name": "UnauthorizedError", "message": "am_us_key is not known"}
        validation = {"type": "error", "name": "ValidationError", "message": "event_types: unknown"}
        plan = {"type": "error", "name": "ValidationError", "message": "your plan has 3 pods"}
        shown = [json.loads(text) for text in await told(at, socket, error, validation, plan, ours)]
        assert shown[:3] == [
            {"type": "error", "name": "NotFoundError", "message": "Not found."},
            validation,
            {"type": "error", "name": "ValidationError", "message": "The vendor refused the request."},
        ]
        assert shown[3]["name"] == "InternalServerError"
        assert "key" not in shown[3]["message"]
        alarms = {"surface": "agentmail", "status": "403"}
        assert at.gateway.metric("automna_upstream_account_alarms_total", **alarms) == 1


async def test_an_inbox_is_heard_of_from_the_moment_it_is_made_to_the_moment_it_is_released(tmp_path, vendor):
    deaf = {"CHANGES_POLL_S": "600", "CHANGES_STALE_AFTER_S": "600"}
    async with house(tmp_path, vendor, env=deaf) as at, subscribed(at.ada) as socket:
        wren = await at.ada.inbox("wren")
        vendor.receive(wren, "ann@x.y", "first")
        assert (await heard(socket))["message"]["subject"] == "first"
        one = ObjectId("agentmail", "inbox", wren)
        await at.gateway.quiet()
        await Objects(at.gateway.service.store, at.gateway.clock).release(one, "ada")
        assert await told(at, socket, *told_about(wren)) == [], "at once, with nothing heard of it"
        await at.gateway.service.engine._objects.bind([one], "bob", "req_x")
        async with subscribed(at.bob) as his:
            assert len(await told(at, his, *told_about(wren))) == len(told_about(wren))


async def test_a_store_that_cannot_say_whose_it_is_ends_the_connection(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        wren = await at.ada.inbox("wren")
        async with subscribed(at.ada) as socket:
            path = at.gateway.database.path
            path.rename(path.with_suffix(".away"))
            try:
                vendor.receive(wren, "ann@x.y", "lost")
                with pytest.raises(ConnectionClosed) as closed:
                    await heard(socket)
            finally:
                path.with_suffix(".away").rename(path)
        assert closed.value.rcvd.code == 1013


# --- a vendor that will not -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "shown"), [(401, 503), (402, 503), (403, 503), (429, 429), (404, 404), (500, 500), (503, 503)]
)
async def test_the_vendors_refusal_is_told_as_any_of_its_errors(tmp_path, vendor, status, shown):
    async with house(tmp_path, vendor) as at:
        vendor.next(fails(status))
        answer = await refused(at.ada)
        assert answer.status_code == shown
        assert VENDOR_KEY.encode() not in answer.body
        assert json.loads(answer.body).keys() >= {"name", "code", "message"}
        assert await handshakes(at) == [("settle", "upstream_failed", 0)]
        assert line_of(at)["upstream_status"] == status


async def test_a_vendor_that_hangs_up_is_502_and_booked(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        vendor.next(drops())
        answer = await refused(at.ada)
        assert (answer.status_code, answer.headers["retry-after"]) == (502, "1")
        assert await handshakes(at) == [("settle", "upstream_failed", 0)]


async def test_a_vendor_that_cannot_be_reached_is_502_and_costs_nothing(tmp_path, vendor):
    async with house(tmp_path, vendor, env={"AGENTMAIL_WS_UPSTREAM_URL": "ws://127.0.0.1:1"}) as at:
        assert (await refused(at.ada)).status_code == 502
        assert await handshakes(at) == [("void", "not_sent", 0)]


async def test_a_client_that_leaves_during_the_handshake_leaves_nothing_behind(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        gate = Gate()
        vendor.next(hangs(gate=gate))
        opening = asyncio.get_running_loop().create_task(dial(at.ada).__aenter__())
        await gate.reached()
        opening.cancel()
        assert await handshakes(at) == [("settle", "client_left", 0)]
        gate.open()


# --- access that is lost --------------------------------------------------------------------------------


async def disabled(at):
    await at.gateway.directory.disable("ada")


async def revoked(at):
    (token,) = await at.gateway.directory.tokens("ada")
    await at.gateway.directory.revoke(token.id)


async def moved_to_a_plan_without_it(at):
    await at.gateway.directory.set_plan("ada", "without")


@pytest.mark.parametrize("lose", [disabled, revoked, moved_to_a_plan_without_it])
async def test_who_loses_access_is_cut_off_by_itself(tmp_path, vendor, lose):
    plans = plans_file(tmp_path)
    plans.write_text(plans.read_text() + plan_table("without", surfaces=("anthropic",)))
    extra = tmp_path / "both.toml"
    plans.rename(extra)
    async with house(tmp_path, vendor, env={"PLANS_FILE": str(extra)}) as at:
        async with subscribed(at.ada) as hers, subscribed(at.bob) as his:
            await lose(at)
            async with asyncio.timeout(CUT_WITHIN_S):
                with pytest.raises(ConnectionClosed) as closed:
                    await hers.recv()
            assert closed.value.rcvd.code == 1008
            assert closed.value.rcvd.reason
            assert at.ada.token not in closed.value.rcvd.reason
            assert await told(at, his) == []
        await at.gateway.until(lambda: len(vendor.sockets) == 2 and not vendor.sockets[0].is_open)
        (line,) = [one for one in at.gateway.lines if one.get("close_code") == 1008]
        assert line["user"] == "ada"
        assert line["reason"] in {"unauthenticated", "forbidden", "unknown_operation"}


async def test_a_token_that_expires_or_whose_parent_is_revoked_is_cut_off(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        directory, now_ms = at.gateway.directory, at.gateway.clock.now_ms()
        parent = await directory.tokens("ada")
        short, _ = await directory.create_token("ada", expires_at_ms=now_ms + 3_600_000)
        child, _ = await directory.create_token("ada", parent_id=parent[0].id)
        async with (
            dial(at.ada, authorization=f"Bearer {short}") as ends,
            dial(at.ada, authorization=f"Bearer {child}") as follows,
            dial(at.bob) as stays,
        ):
            at.gateway.clock.advance(3_601)
            await directory.revoke(parent[0].id)
            for socket in (ends, follows):
                async with asyncio.timeout(CUT_WITHIN_S):
                    with pytest.raises(ConnectionClosed) as closed:
                        await socket.recv()
                assert closed.value.rcvd.code == 1008
            assert (await asked(stays, type="subscribe"))["type"] == "subscribed"


async def test_a_store_in_trouble_takes_access_from_nobody(tmp_path, vendor, monkeypatch):
    async with house(tmp_path, vendor) as at:
        expires_at_ms = at.gateway.clock.now_ms() + 3_600_000  # so that it is looked at
        token, _ = await at.gateway.directory.create_token("ada", expires_at_ms=expires_at_ms)
        async with dial(at.ada, authorization=f"Bearer {token}") as socket:
            monkeypatch.setattr(at.gateway.service.engine._authenticator, "_stale_after_s", 0.1)
            path = at.gateway.database.path
            path.rename(path.with_suffix(".away"))
            try:
                await asyncio.sleep(3 * LOOK_S)
            finally:
                path.with_suffix(".away").rename(path)
            await at.gateway.until(lambda: at.gateway.service.store.writer.trouble is None)
            monkeypatch.undo()
            assert (await asked(socket, type="subscribe"))["type"] == "subscribed"


# --- the end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "passed"), [(1000, 1000), (1001, 1001), (1011, 1011), (4321, 4321)])
async def test_close_codes_pass_both_ways(tmp_path, vendor, said, passed):
    async with house(tmp_path, vendor) as at:
        async with subscribed(at.ada) as socket:
            await socket.close(said, "bye")
            await at.gateway.until(lambda: vendor.sockets[-1].close_code is not None)
            assert vendor.sockets[-1].close_code == passed
        async with subscribed(at.ada) as socket:
            vendor.sockets[-1].close(said, "of pod_1")
            with pytest.raises(ConnectionClosed) as closed:
                await heard(socket)
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (passed, "")
        await at.gateway.until(lambda: not at.gateway.service.engine.sockets)
        assert line_of(at)["close_code"] == passed


async def test_a_vendor_that_breaks_off_lets_the_client_come_again(tmp_path, vendor):
    async with house(tmp_path, vendor) as at, subscribed(at.ada) as socket:
        vendor.sockets[-1].break_off()
        with pytest.raises(ConnectionClosed) as closed:
            await heard(socket)
        assert closed.value.rcvd.code == 1012


async def test_a_client_that_vanishes_ends_the_vendors_connection(tmp_path, vendor):
    async with house(tmp_path, vendor) as at, subscribed(at.ada) as socket:
        socket.transport.abort()
        await at.gateway.until(lambda: vendor.sockets[-1].close_code == 1001)


async def test_the_end_of_the_process_is_told_and_not_held_up(tmp_path, vendor):
    async with AsyncExitStack() as stack, house(tmp_path, vendor) as at:
        socket = await stack.enter_async_context(subscribed(at.ada))
        at.gateway.service.engine.stop_admitting()
        async with asyncio.timeout(CUT_WITHIN_S):
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
        assert closed.value.rcvd.code == 1001
        assert (await refused(at.ada)).status_code == 503


async def test_a_server_stops_at_once_though_nobody_hangs_up(tmp_path, vendor):
    """By uvicorn's own way to stop; a client that never answers the close does not hold it up."""
    async with AsyncExitStack() as stack:
        async with running_gateway(tmp_path, env={**variables(vendor), "DRAIN_STREAMS_S": "60"}) as gateway:
            token = await gateway.new_token()
            mute = await stack.enter_async_context(wire(gateway, token))
            await mute.open()
            url = gateway.url.replace("http", "ws") + f"{MOUNT}/v0?api_key={token}"
            polite = await stack.enter_async_context(connect(url, proxy=None))
            began_s = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began_s < 30.0
        with pytest.raises(ConnectionClosed) as closed:
            await polite.recv()
        assert closed.value.rcvd.code == 1001
        assert (await mute.frame())[0] == Opcode.CLOSE


# --- on the wire ----------------------------------------------------------------------------------------


class Wire:
    """A client that writes its frames itself, masked with zeros."""

    def __init__(self, reader, writer, token):
        self.reader, self.writer, self.token = reader, writer, token

    def upgrade(self, first=f"GET {MOUNT}/v0 HTTP/1.1", **other):
        """A handshake; `other` fields by name: a text, several lines of it, or None for no such line."""
        fields = {
            "host": "proxy",
            "authorization": f"Bearer {self.token}",
            "connection": "keep-alive, Upgrade",
            "upgrade": "websocket",
            "sec_websocket_version": "13",
            "sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ==",
            **other,
        }
        lines = [
            f"{name.replace('_', '-')}: {value}"
            for name, values in fields.items()
            for value in ([] if values is None else [values] if isinstance(values, str) else values)
        ]
        return "\r\n".join([first, *lines, "", ""]).encode()

    async def open(self, behind=b"", pieces=None):
        """Send the handshake, in pieces if told to, and read its answer; its head."""
        data = self.upgrade() + behind
        for at in range(0, len(data), pieces or len(data)):
            self.writer.write(data[at : at + (pieces or len(data))])
            await self.writer.drain()
            await asyncio.sleep(0)
        return await self.head()

    async def head(self):
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def frame(self):
        """The next frame: opcode and payload."""
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            first, size = await self.reader.readexactly(2)
            if size == 126:
                size = int.from_bytes(await self.reader.readexactly(2), "big")
            return first & 0xF, await self.reader.readexactly(size)

    async def closed_with(self):
        """The code of the close that comes next."""
        opcode, payload = await self.frame()
        assert opcode == Opcode.CLOSE
        return int.from_bytes(payload[:2], "big")


def masked(opcode, payload=b"", *, is_final=True):
    head = bytes([(0x80 if is_final else 0) | opcode])
    if len(payload) > 0xFFFF:
        return head + b"\xff" + len(payload).to_bytes(8, "big") + bytes(4) + payload
    if len(payload) > 125:
        return head + b"\xfe" + len(payload).to_bytes(2, "big") + bytes(4) + payload
    return head + bytes([0x80 | len(payload)]) + bytes(4) + payload


@asynccontextmanager
async def wire(gateway, token):
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Wire(reader, writer, token)
    finally:
        writer.close()


SUBSCRIBE = b'{"type":"subscribe"}'


HANDSHAKES = [
    ({}, 101),
    ({"connection": ["keep-alive", "upgrade"]}, 101),
    ({"connection": "UPGRADE", "upgrade": "WebSocket"}, 101),
    ({"content_length": "0"}, 101),
    ({"sec_websocket_extensions": "permessage-deflate", "sec_websocket_protocol": "x"}, 101),
    ({"connection": "keep-alive"}, 426),
    ({"connection": None}, 426),
    ({"upgrade": "h2c, websocket"}, 426),
    ({"upgrade": ["websocket", "h2c"]}, 426),
    ({"upgrade": None}, 426),
    ({"sec_websocket_version": None}, 426),
    ({"sec_websocket_version": ["13", "13"]}, 426),
    ({"sec_websocket_key": None}, 400),
    ({"sec_websocket_key": ["dGhlIHNhbXBsZSBub25jZQ=="] * 2}, 400),
    ({"content_length": "5"}, 400),
    ({"transfer_encoding": "chunked"}, 400),
    ({"first": f"GET {MOUNT}/v0 HTTP/1.0"}, 400),
    ({"first": f"POST {MOUNT}/v0 HTTP/1.1"}, 426),
    ({"first": f"GET {MOUNT}/v0/inboxes HTTP/1.1"}, 426),
    ({"first": f"GET {MOUNT}/v0?api_key=amp_other HTTP/1.1"}, 401),
]


@pytest.mark.parametrize(("other", "status"), HANDSHAKES, ids=str)
async def test_a_handshake_is_one_or_is_refused_before_the_vendor_hears_of_it(
    tmp_path, vendor, other, status
):
    async with house(tmp_path, vendor) as at, wire(at.gateway, at.ada.token) as client:
        client.writer.write(client.upgrade(**other) + b"x" * (status == 400))
        assert (await client.head()).startswith(b"HTTP/1.1 %d " % status)
        assert len(vendor.requests) == (status == 101)


async def test_a_handshake_may_follow_requests_on_its_connection(tmp_path, vendor):
    async with house(tmp_path, vendor) as at, wire(at.gateway, at.ada.token) as client:
        plain = client.upgrade(f"GET {MOUNT}/v0/inboxes HTTP/1.1", connection=None, upgrade=None)
        client.writer.write(plain * 2 + client.upgrade() + masked(Opcode.TEXT, SUBSCRIBE))
        for _ in range(2):
            head = await client.head()
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"transfer-encoding: chunked" in head
            async with asyncio.timeout(WAIT_TIMEOUT_S):
                await client.reader.readuntil(b"\r\n0\r\n\r\n")
        assert (await client.head()).startswith(b"HTTP/1.1 101 ")
        opcode, payload = await client.frame()
        assert (opcode, json.loads(payload)["type"]) == (Opcode.TEXT, "subscribed")


@pytest.mark.parametrize("pieces", [None, 1, 7])
async def test_what_a_client_says_right_behind_its_head_is_heard(tmp_path, vendor, pieces):
    async with house(tmp_path, vendor) as at, wire(at.gateway, at.ada.token) as client:
        head = await client.open(masked(Opcode.TEXT, SUBSCRIBE) + masked(Opcode.PING, b"x"), pieces)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        assert b"x-automna-request-id: req_" in head
        assert b"sec-websocket-extensions" not in head.lower()
        assert {await client.frame(), await client.frame()} >= {(Opcode.PONG, b"x")}
        assert len(vendor.sockets[-1].heard) == 1


async def test_what_is_said_before_a_refusal_is_thrown_away(tmp_path, vendor):
    async with house(tmp_path, vendor) as at, wire(at.gateway, "amp_nobodys") as client:
        head = await client.open(masked(Opcode.TEXT, SUBSCRIBE) + b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 401 ")
        length = int(dict(line.split(b": ") for line in head.split(b"\r\n")[1:-2])[b"content-length"])
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            assert len(await client.reader.read()) == length, "and nothing more"


async def test_a_refusal_is_read_by_who_has_said_too_much_already(tmp_path, vendor):
    """Closed over bytes that nobody read, the connection would be reset, and the reset overtake the answer."""
    async with house(tmp_path, vendor) as at, wire(at.gateway, "amp_nobodys") as client:
        client.writer.write(client.upgrade() + bytes(8 * 1024 * 1024))
        assert (await client.head()).startswith(b"HTTP/1.1 401 ")
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            assert (await client.reader.read()).endswith(b"}"), "no reset"


async def test_before_the_101_no_more_than_a_little_is_read(tmp_path, vendor):
    async with house(tmp_path, vendor) as at, wire(at.gateway, at.ada.token) as client:
        gate = Gate()
        vendor.next(hangs(gate=gate, works=False))
        client.writer.write(client.upgrade() + bytes(8 * 1024 * 1024))
        await gate.reached()
        (connection,) = (one for one in at.gateway.server.server_state.connections if one._ahead)
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert 0 < len(connection._ahead) <= AHEAD_BYTES_MAX
        gate.open()
        assert (await client.head()).startswith(b"HTTP/1.1 503 ")


async def test_fragments_make_one_message_and_pings_are_answered_between_them(tmp_path, vendor):
    async with house(tmp_path, vendor) as at, wire(at.gateway, at.ada.token) as client:
        await client.open()
        client.writer.write(masked(Opcode.TEXT, SUBSCRIBE[:5], is_final=False) + masked(Opcode.PING, b"y"))
        assert await client.frame() == (Opcode.PONG, b"y")
        client.writer.write(masked(Opcode.CONTINUATION, SUBSCRIBE[5:]))
        opcode, payload = await client.frame()
        assert (opcode, json.loads(payload)["type"]) == (Opcode.TEXT, "subscribed")
        wren = await at.ada.inbox("wren")
        event = {"type": "event", "send": {"inbox_id": wren}}
        vendor.sockets[-1].send_text(json.dumps(event), piece_bytes=9)
        opcode, payload = await client.frame()
        assert (opcode, json.loads(payload)) == (Opcode.TEXT, event)
        vendor.sockets[-1].ping(b"z")
        await at.gateway.until(lambda: vendor.sockets[-1].pongs_total == 1)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (masked(Opcode.BINARY, SUBSCRIBE), CloseCode.NOT_TEXT),
        (masked(Opcode.TEXT, b"\xff\xfe"), CloseCode.NOT_UTF8),
        (masked(Opcode.TEXT, b"x" * (64 * 1024 + 1)), CloseCode.TOO_BIG),
        (masked(Opcode.TEXT, b"x" * 60_000, is_final=False) + masked(0, b"x" * 60_000), CloseCode.TOO_BIG),
        (b"\x81\x02{}", CloseCode.PROTOCOL_ERROR),
        (masked(3, b""), CloseCode.PROTOCOL_ERROR),
        (masked(Opcode.CONTINUATION, b"x"), CloseCode.PROTOCOL_ERROR),
        (masked(Opcode.PING, b"x" * 126), CloseCode.PROTOCOL_ERROR),
        (b"\xc1\x80" + bytes(4), CloseCode.PROTOCOL_ERROR),
        (masked(Opcode.CLOSE, b"\x03"), CloseCode.PROTOCOL_ERROR),
        (masked(Opcode.CLOSE, (1006).to_bytes(2, "big")), CloseCode.PROTOCOL_ERROR),
    ],
    ids=[
        "binary", "no UTF-8", "too big", "too big in pieces", "unmasked", "reserved opcode", "nothing to continue",
        "long ping", "compressed", "half a code", "a code that is none",
    ],
)  # fmt: skip
async def test_who_breaks_the_protocol_is_told_how_and_the_vendor_is_left(tmp_path, vendor, frames, code):
    async with house(tmp_path, vendor) as at, wire(at.gateway, at.ada.token) as client:
        await client.open(frames)
        assert await client.closed_with() == code
        client.writer.close()
        await at.gateway.until(lambda: vendor.sockets[-1].close_code == 1001)
        assert vendor.sockets[-1].heard == []


async def test_a_vendor_that_breaks_the_protocol_is_left_and_the_client_may_come_again(tmp_path, vendor):
    async with house(tmp_path, vendor) as at, subscribed(at.ada) as socket:
        vendor.sockets[-1].send_text("x" * (4 * 1024 * 1024 + 1))
        with pytest.raises(ConnectionClosed) as closed:
            await heard(socket)
        assert closed.value.rcvd.code == 1012


async def test_a_slow_client_slows_its_vendor_and_hears_everything_in_order(tmp_path, vendor):
    async with house(tmp_path, vendor) as at, wire(at.gateway, at.ada.token) as client:
        wren = await at.ada.inbox("wren")
        await client.open(masked(Opcode.TEXT, SUBSCRIBE))
        await client.frame()
        client.writer.transport.pause_reading()
        events, text = 600, "x" * 60_000
        for number in range(events):
            vendor.sockets[-1].send_text(
                json.dumps({"type": "event", "inbox_id": wren, "n": number, "text": text})
            )
        (relay,) = at.gateway.service.engine.sockets._open
        before = -1
        while relay._tally.down != before:  # until nothing more goes down
            before = relay._tally.down
            with suppress(TimeoutError):
                await at.gateway.until(lambda: relay._tally.down != before, within_s=0.5)  # noqa: B023 - at once
        assert 0 < relay._tally.down < events - 50, "somebody holds what nobody reads"
        assert len(relay._up.recv_messages.frames) < 20, "and it is not us"
        client.writer.transport.resume_reading()
        for number in range(events):
            assert json.loads((await client.frame())[1])["n"] == number


async def test_who_pings_without_end_and_reads_nothing_is_cut_before_it_fills_memory(tmp_path, vendor):
    async with house(tmp_path, vendor) as at, wire(at.gateway, at.ada.token) as client:
        await client.open()
        client.writer.transport.pause_reading()
        (relay,) = at.gateway.service.engine.sockets._open
        pings, unsent = masked(Opcode.PING, b"x" * 125) * 8_000, []

        async def flood():
            for _ in range(100):
                client.writer.write(pings)
                await client.writer.drain()
                if relay._down.protocol.state is OPEN:
                    unsent.append(relay._down.transport.get_write_buffer_size())

        with pytest.raises(ConnectionError):
            await flood()
        assert 0 < max(unsent) <= UNSENT_BYTES_MAX


async def test_on_every_worker_access_ends_with_a_word_in_the_store_and_all_with_the_server(tmp_path, vendor):
    env = {**variables(vendor), "SOCKETS_PER_USER": "20", "DRAIN_NOTICE_S": "0", "DRAIN_STREAMS_S": "60"}
    async with (
        serving_process(tmp_path, upstream=vendor.url, workers=2, env=env) as server,
        AsyncExitStack() as stack,
    ):
        tokens = [await server.new_token(user) for user in ("ada", "bob")]
        url = server.url.replace("http", "ws") + f"{MOUNT}/v0?api_key="
        hers, his = [
            [await stack.enter_async_context(connect(url + token, proxy=None)) for _ in range(8)]
            for token in tokens
        ]
        workers = set(server.workers_alive().values())
        assert len(workers) == 2
        async with server.directory() as directory:
            await directory.disable("ada")
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            for socket in hers:
                with pytest.raises(ConnectionClosed) as closed:
                    await socket.recv()
                assert closed.value.rcvd.code == 1008
        assert (await asked(his[0], type="subscribe"))["type"] == "subscribed"
        server.signal(signal.SIGTERM)
        async with asyncio.timeout(2 * WAIT_TIMEOUT_S):
            for socket in his:
                with pytest.raises(ConnectionClosed) as closed:
                    await socket.recv()
                assert closed.value.rcvd.code == 1001
            assert await server.exit_status() == 0
