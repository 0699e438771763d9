"""Websockets into browsers that lead to nobody else's, and what becomes of those that do not begin."""

import asyncio
from contextlib import asynccontextmanager

import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from proxy import splice_handshake
from simulators.browserbase import PLANTED, VENDOR_KEY, drops, fails, hangs
from simulators.script import Gate, Ready
from tests.integration.test_browser_sessions import assert_settled, created, released, until_booked
from tests.integration.test_browser_sockets import endpoint, status_of, until
from tests.support.browserbase import MOUNT, house
from tests.support.cdp import cdp

DIAL = "GET /(connect)?"
"""A websocket at the vendor."""
STAYS = {"BROWSERBASE_LINGER_S": "0"}


async def refusal(url, **headers):
    """Status and body of a handshake that is refused."""
    with pytest.raises(InvalidStatus) as refused:
        async with connect(url, proxy=None, additional_headers=headers):
            pass
    response = refused.value.response
    body = orjson.loads(response.body)
    assert sorted(body) == ["error", "message", "statusCode"]
    assert body["statusCode"] == response.status_code
    assert not [word for word in (*PLANTED, VENDOR_KEY) if word in response.body.decode()]
    return response.status_code, body["message"]


async def booked_sockets(at):
    """Kind, outcome and cost of what the ledger has of websockets."""
    await at.gateway.until(lambda: not at.gateway.service.engine.open_exchanges)
    rows = await at.gateway.service.store.readers.rows(
        "SELECT kind, outcome, cost_nanousd FROM entries WHERE operation LIKE 'GET /connect%' ORDER BY seq",
        (),
    )
    return [tuple(row) for row in rows]


@asynccontextmanager
async def kept(at, user):
    """A session that stays although nobody is connected; all is booked at the end."""
    session = await created(user, keepAlive=True, timeout=3_600)
    yield session
    await released(user, session)
    await until_booked(at, user)


def ends_soon(at):
    """What lingers, and will be ended unless somebody comes."""
    held = at.gateway.service.engine.spliced.lingering._held
    return [one.upstream_id for one in held if held[one].timer is not None]


# --- other users ----------------------------------------------------------------------------------------


async def test_who_names_anothers_session_ends_it_for_nobody(tmp_path):
    async with house(tmp_path, env=STAYS) as at:
        async with cdp(endpoint(at, at.ada)) as client:
            (session,) = at.vendor.sessions
            for _ in range(3):
                status, _ = await refusal(endpoint(at, at.bob, sessionId=session.id))
                assert status == 404
            assert (ends_soon(at), session.is_live) == ([], True)
            await client.call("Browser.getVersion")
        await assert_settled(at, at.ada)
        assert await at.bob.booked() == []


async def test_a_session_stays_until_the_last_of_its_clients_has_left(tmp_path):
    async with house(tmp_path, env=STAYS) as at:
        async with cdp(endpoint(at, at.ada)) as first:
            (session,) = at.vendor.sessions
            async with cdp(endpoint(at, at.ada, sessionId=session.id)) as second:
                await second.call("Browser.getVersion")
            await until(lambda: len(at.gateway.service.engine.spliced) == 1)
            assert (ends_soon(at), session.is_live) == ([], True)
            await first.call("Browser.getVersion")
        await until(lambda: not session.is_live)
        await assert_settled(at, at.ada)


async def test_a_ticket_that_was_changed_anywhere_leads_nowhere(tmp_path):
    async with house(tmp_path) as at, kept(at, at.ada) as mine, kept(at, at.bob) as theirs:
        base, _, ticket = mine["connectUrl"].rpartition("/")
        _, _, other = theirs["connectUrl"].rpartition("/")
        changed = [
            ticket[:index] + ("A" if ticket[index] != "A" else "B") + ticket[index + 1 :]
            for index in range(len(ticket))
        ]
        own, foreign = ticket.split("."), other.split(".")
        changed += [".".join((own[0], foreign[1], own[2])), ".".join((own[0], own[1], foreign[2]))]
        changed += [ticket + "A", ticket[:-1], f"{ticket}.{ticket}", "..", "%2E%2E", "x" * 2_000, "%00", "é"]
        seen = len(at.vendor.requests)
        for text in changed:
            status = await status_of(f"{base}/{text}")
            assert status in (400, 401, 404, 426), text
            assert text in ("..", "%2E%2E", "%00") or status == 401, text
        assert len(at.vendor.requests) == seen
        assert await booked_sockets(at) == []


async def test_whose_ticket_it_is_pays_whatever_token_comes_with_it(tmp_path):
    async with house(tmp_path) as at, kept(at, at.ada) as session:
        headers = {"x-bb-api-key": at.bob.token}
        async with cdp(session["connectUrl"], additional_headers=headers) as client:
            await client.call("Browser.getVersion")
        rows = await at.gateway.service.store.readers.rows(
            "SELECT DISTINCT user_id FROM entries WHERE operation LIKE 'GET /connect%'", ()
        )
        assert rows == [("ada",)]
        assert all(at.bob.token not in request.target for request in at.vendor.requests)


@pytest.mark.parametrize("lost", ["revoked", "disabled"])
async def test_a_ticket_is_worth_nothing_once_its_users_access_is_lost(tmp_path, lost):
    async with house(tmp_path) as at:
        session = await created(at.ada, keepAlive=True)
        directory = at.gateway.service.engine._authenticator._directory
        if lost == "disabled":
            await directory.disable("ada")
        else:
            (token,) = await directory.tokens("ada")
            await directory.revoke(token.id)
        await until(lambda: not at.vendor.sessions[0].is_live)
        dials = [one for one in at.vendor.requests if "signingKey" in one.target]
        status, _ = await refusal(session["connectUrl"])
        assert status in (401, 403)
        assert [one for one in at.vendor.requests if "signingKey" in one.target] == dials == []
        await assert_settled(at, at.ada)


# --- a vendor that leads elsewhere ----------------------------------------------------------------------


@asynccontextmanager
async def elsewhere():
    """Somebody else's server; how often it was dialled."""
    dialled = []
    server = await asyncio.start_server(lambda _, writer: (dialled.append(1), writer.close()), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], dialled


ADDRESSES = (
    "ws://127.0.0.1:{port}/?signingKey=x",
    "ws://{own}@127.0.0.1:{port}/",
    "ws://127.0.0.1:{port}#{own}",
    "ws://127.0.0.1:{port}\\@{own}/",
    "http://connect.browserbase.com/",
    "ws://connect.browserbase.com/",
    "wss://browserbase.com.example/",
    "wss://evilbrowserbase.com/",
    "wss://{own}/",
    "wss://connect.browserbase.com:x/",
    "wss:///",
    "file:///etc/passwd",
    "ws://{own}/ HTTP/1.1\r\nx: y",
    "ws://{own}/é",
    "",
    "x",
)


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_vendor_that_leads_elsewhere_is_not_followed(tmp_path, address):
    async with elsewhere() as (port, dialled), house(tmp_path) as at, kept(at, at.ada) as session:
        own = at.vendor.url.removeprefix("http://")
        shown = at.vendor._sessions.with_keys

        def misled(one):
            return {**shown(one), "connectUrl": address.format(port=port, own=own)}

        seen = len(at.vendor.requests)
        at.vendor._sessions.with_keys = misled
        status, message = await refusal(session["connectUrl"])
        at.vendor._sessions.with_keys = shown
        assert status in (404, 502), message
        assert "127.0.0.1" not in message
        assert [one.path for one in at.vendor.requests[seen:]] == [f"/v1/sessions/{session['id']}"]
        assert dialled == []


@pytest.mark.parametrize("place", ["user-agent", "sec-websocket-protocol", "sec-websocket-extensions"])
async def test_a_gateway_token_goes_up_with_no_header_of_a_handshake(tmp_path, place):
    """Browsers may set no header but that of the subprotocols, so clients put their tokens there."""
    async with house(tmp_path, env=STAYS) as at:
        head = [(place, f"bearer, {at.ada.token}"), ("user-agent", "agent/1")][: 1 + (place != "user-agent")]
        async with connect(
            endpoint(at, at.ada),
            proxy=None,
            compression=None,
            user_agent_header=None,
            additional_headers=head,
        ):
            dial = next(one for one in at.vendor.requests if "signingKey" in one.target)
        assert at.ada.token not in f"{dial.target} {dial.headers}"
        assert ("agent/1" in str(dial.headers)) is (place != "user-agent")
        await assert_settled(at, at.ada)


@pytest.mark.parametrize("place", ["connectUrl", "signingKey", "seleniumRemoteUrl", "note", "deep"])
async def test_the_platforms_key_does_not_come_down_wherever_a_session_has_it(tmp_path, place):
    async with house(tmp_path) as at:
        shown = at.vendor._sessions.with_keys

        def telling(one):
            holder = shown(one)
            key = f"wss://connect.browserbase.com?apiKey={VENDOR_KEY}"
            return {**holder, "more": [{"x": {"y": key}}]} if place == "deep" else {**holder, place: key}

        at.vendor._sessions.with_keys = telling
        made = await at.ada.http.post("/v1/sessions", json={"keepAlive": True})
        (real,) = at.vendor.sessions
        got = await at.ada.http.get(f"/v1/sessions/{real.id}")
        for answer in (made, got):
            assert VENDOR_KEY not in answer.text
            assert VENDOR_KEY not in str(answer.headers)
        at.vendor._sessions.with_keys = shown
        assert (made.status_code, got.status_code) in ((201, 200), (503, 404))
        if made.status_code == 201:
            await released(at.ada, made.json())
        await assert_settled(at, at.ada)  # what could not be shown is ended all the same


# --- a vendor that opens no websocket -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "status"),
    [
        (fails(400), 400),
        (fails(401), 503),
        (fails(403), 503),
        (fails(404), 404),
        (fails(410), 410),
        (fails(429), 429),
        (fails(500), 500),
        (fails(503), 503),
        (drops(), 502),
        (drops(is_reset=True), 502),
    ],
    ids=["400", "401", "403", "404", "410", "429", "500", "503", "closed", "reset"],
)
async def test_a_refused_handshake_is_told_in_dialect_and_costs_nothing(tmp_path, says, status):
    async with house(tmp_path) as at, kept(at, at.ada) as session:
        at.vendor.next_on(DIAL, says)
        assert (await refusal(session["connectUrl"]))[0] == status
        assert await booked_sockets(at) == [("settle", "upstream_failed", 0)]
        async with cdp(session["connectUrl"]) as client:
            await client.call("Browser.getVersion")


ANSWERS = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    "another key": b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: eA==\r\n\r\n",
    "no key": b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 x\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    "a page": b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npage",
    "a redirect": b"HTTP/1.1 302 Found\r\nlocation: ws://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n",
    "a head without end": b"HTTP/1.1 101 x\r\nx: " + b"y" * 200_000,
    "an error without end": b"HTTP/1.1 404 x\r\ncontent-length: 900000\r\n\r\n" + b"z" * 900_000,
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_what_is_no_websocket_is_told_in_dialect_and_costs_nothing(tmp_path, answer):
    async with house(tmp_path) as at, kept(at, at.ada) as session:
        at.vendor._dial = lambda turn, dial: Ready(ANSWERS[answer])
        assert (await refusal(session["connectUrl"]))[0] == 502
        assert await booked_sockets(at) == [("settle", "upstream_failed", 0)]


async def test_a_vendor_that_says_nothing_to_a_handshake_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(splice_handshake, "HANDSHAKE_S", 0.1)
    async with house(tmp_path) as at, kept(at, at.ada) as session:
        at.vendor.next_on(DIAL, hangs(works=False))
        assert (await refusal(session["connectUrl"]))[0] == 504
        assert await booked_sockets(at) == [("settle", "timed_out", 0)]


@pytest.mark.parametrize("status", [404, 500])
async def test_a_vendor_that_does_not_say_where_the_browser_is_costs_nothing(tmp_path, status):
    async with house(tmp_path) as at, kept(at, at.ada) as session:
        at.vendor.next_on("GET /v1/sessions/.*", fails(status))
        assert (await refusal(session["connectUrl"]))[0] in (404, 502, 503)
        assert [cost for _, _, cost in await booked_sockets(at)] in ([], [0])


# --- clients that leave ---------------------------------------------------------------------------------


async def leave_during(url, condition):
    """Begin a handshake, and go once this is so."""

    async def knock():
        async with connect(url, proxy=None):
            pass

    knocking = asyncio.get_running_loop().create_task(knock())
    await until(condition)
    knocking.cancel()
    await asyncio.wait([knocking])


async def test_a_client_that_leaves_while_its_session_is_made_leaves_none_behind(tmp_path):
    async with house(tmp_path, env=STAYS) as at:
        gate = Gate()
        at.vendor.next(hangs(gate=gate))
        await leave_during(endpoint(at, at.ada), lambda: at.vendor.requests)
        gate.open()
        await at.gateway.until(lambda: at.vendor.sessions and not at.gateway.service.engine.open_exchanges)
        await assert_settled(at, at.ada)
        assert len(await at.ada.booked()) == 1
        assert await booked_sockets(at) == []


@pytest.mark.parametrize("linger", ["0", "1"])
async def test_a_client_that_leaves_during_the_handshake_leaves_no_session_behind(tmp_path, linger):
    async with house(tmp_path, env={"BROWSERBASE_LINGER_S": linger}) as at:
        gate = Gate()
        at.vendor.next_on(DIAL, hangs(gate=gate, works=False))
        await leave_during(
            endpoint(at, at.ada), lambda: any("signingKey" in one.target for one in at.vendor.requests)
        )
        gate.open()
        await at.gateway.until(lambda: not at.gateway.service.engine.open_exchanges)
        await until(lambda: not at.vendor.sessions[0].is_live)
        await assert_settled(at, at.ada)
        assert [cost for _, _, cost in await booked_sockets(at)] == [0]
        assert len(at.gateway.service.engine.spliced.lingering) == 0


# --- handshakes that are none ---------------------------------------------------------------------------


def handshake(**changed):
    headers = {
        "host": "proxy",
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    headers.update({name.replace("_", "-"): value for name, value in changed.items()})
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value is not None)


HOSTILE = {
    "no key": handshake(sec_websocket_key=None),
    "a short key": handshake(sec_websocket_key="eA=="),
    "another version": handshake(sec_websocket_version="8"),
    "no version": handshake(sec_websocket_version=None),
    "a length": handshake(content_length="5"),
    "chunks": handshake(transfer_encoding="chunked"),
    "two keys": handshake() + "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "two protocols": handshake(upgrade="h2c, websocket"),
    "no connection": handshake(connection="close"),
    "a folded key": handshake(sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==\r\n x"),
}


@pytest.mark.parametrize("head", HOSTILE)
async def test_a_hostile_handshake_reaches_nothing(tmp_path, head):
    async with house(tmp_path, env=STAYS) as at, kept(at, at.ada) as session:
        ticket = session["connectUrl"].rpartition("/")[2]
        seen = len(at.vendor.requests)
        port = int(at.gateway.url.rpartition(":")[2])
        for target in (f"{MOUNT}/connect/{ticket}", f"{MOUNT}/connect?apiKey={at.ada.token}"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            smuggled = f"GET {MOUNT}/v1/sessions HTTP/1.1\r\nhost: x\r\nx-bb-api-key: {at.ada.token}\r\n\r\n"
            writer.write(f"GET {target} HTTP/1.1\r\n{HOSTILE[head]}\r\n{smuggled}".encode())
            answer = await asyncio.wait_for(reader.read(65_536), 10)
            writer.close()
            assert answer.split(b" ", 2)[1] in (b"400", b"426"), answer
            assert b" 101 " not in answer
        dialled = [one for one in at.vendor.requests[seen:] if one.path != "/v1/sessions"]
        assert dialled == []
        assert len(at.vendor.sessions) == 1


@pytest.mark.parametrize(
    "query",
    [
        "sessionId=OWN&sessionId=THEIRS",
        "sessionId=THEIRS&sessionId=OWN",
        "%73essionId=THEIRS",
        "sessionId=THEIRS%00",
        "sessionId=OWN&sessionId[]=THEIRS",
        "sessionId=OWN&session%49d%5B0%5D=THEIRS",
        "sessionId=OWN&session_id=THEIRS",
        "sessionID=THEIRS",
    ],
)
async def test_a_session_that_is_named_twice_or_otherwise_leads_to_no_other_users(tmp_path, query):
    async with house(tmp_path, env=STAYS) as at, kept(at, at.ada) as mine, kept(at, at.bob) as theirs:
        query = query.replace("OWN", mine["id"]).replace("THEIRS", theirs["id"])
        url = f"{at.gateway.url.replace('http', 'ws')}{MOUNT}/connect?apiKey={at.ada.token}&{query}"
        status, _ = await refusal(url)
        assert status in (400, 404)
        assert at.vendor.peers == []
        assert len(at.vendor.sessions) == 2
