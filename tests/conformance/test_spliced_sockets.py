"""What holds for every declared websocket whose bytes pass as they come, and for every way into one, tested from the declarations
alone: a ticket, an id beside a gateway token, nothing but a gateway token."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from metering.errors import Reason
from metering.objects import ObjectId, Objects
from proxy.surface import Operation, SplicedSocket, Surface
from routes import SURFACES
from simulators.script import WAIT_TIMEOUT_S, Answer, Line, Ready, Script, Upgrade, head
from simulators.server import ReceivedRequest
from simulators.websocket import Peer, accept, wants_websocket, websocket_url
from tests.conformance.stand_in import StandIn
from tests.conformance.test_outcomes import ACCOUNT, vendors_words
from tests.conformance.test_sockets import HANDSHAKE, SILENT, WRONG
from tests.conformance.test_surfaces import VENDOR_KEY, Given, Stage, in_place, with_query
from tests.support.background import polled, works
from tests.support.gateway import DatedClock, running_gateway
from tests.support.raw_http import RawAnswer, raw_request

TICKET, NAMED, MADE = "by a ticket", "by its id", "by nothing"
LATER_S = 60
NEVER_S = "600"
ZERO = ("settle", 0)
ACCEPT = ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
"""To the key of HANDSHAKE, which goes up as it is (RFC 6455 section 1.3 has both)."""
HALF = [(("Upgrade", "h2c"), ("Connection", "Upgrade"), ACCEPT), (("Upgrade", "websocket"), ACCEPT)]
"""Answers that agree to our key, and to no websocket."""

Way = tuple[Surface, Operation, str]


def ways_into(spliced: SplicedSocket) -> list[str]:
    if spliced.ticket_piece:
        return [TICKET]
    return [way for way, declared in ((NAMED, spliced.id_param), (MADE, spliced.makes)) if declared]


WAYS = [
    pytest.param((surface, operation, way), id=f"{surface.name} {operation.name} {way}")
    for surface in SURFACES
    for operation in surface.operations
    if operation.spliced is not None
    for way in ways_into(operation.spliced)
]
each_way = pytest.mark.parametrize("way", WAYS)
each_way_by_token = pytest.mark.parametrize("way", [one for one in WAYS if one.values[0][2] != TICKET])
each_way_by_ticket = pytest.mark.parametrize("way", [one for one in WAYS if one.values[0][2] == TICKET])


class Echo(Peer):
    """A vendor's side that says what it hears."""

    def said(self, text: str) -> None:
        self.send_text(text)


class Door(StandIn):
    """A vendor whose work goes on, and has a websocket into it."""

    def __init__(self, surface: Surface, spliced: SplicedSocket) -> None:
        super().__init__(surface)
        self.spliced = spliced
        self.maker = next(
            one
            for one in surface.operations
            if one.deferred is not None and one.deferred.kind == spliced.kind
        )
        self.is_running = True
        self.leads_to = ""
        """Where its websocket is said to be, if not here."""
        self.shakes_hands: Ready | Script | None = None
        """Instead of a websocket."""
        self.agrees_to: tuple[tuple[str, str], ...] = ()
        """Headers of its 101."""
        self.peers: list[Echo] = []

    @property
    def dialled(self) -> list[ReceivedRequest]:
        return [one for one in self.requests if wants_websocket(one)]

    @property
    def made(self) -> list[ReceivedRequest]:
        return [one for one in self.requests if (one.method, one.path) == (self.maker.method, self._path)]

    @property
    def _path(self) -> str:
        return self.upstream_target(self.maker).partition("?")[0]

    @property
    def one(self) -> str:
        """The id of what it has running."""
        found: str = orjson.loads(self.maker.example.answer)[self._id_field]
        return found

    @property
    def _id_field(self) -> str:
        return next(one.path for one in self.maker.hands_out if one.kind == self.spliced.kind)

    def answer(self, request: ReceivedRequest) -> Answer:
        if wants_websocket(request):
            return self._websocket(request)
        example = self.maker.example
        about = {self._path, self.spliced.path.replace("{id}", self.one)}
        if request.path not in about or (request.method == "GET" and request.path == self._path):
            return super().answer(request)
        told = orjson.loads(example.while_running if self.is_running else example.answer)
        told[self.spliced.url_field] = self.leads_to or f"{websocket_url(self.url)}/inside"
        return self._says(orjson.dumps(told), example.answer_content_type)

    def _websocket(self, request: ReceivedRequest) -> Answer:
        if self.shakes_hands is not None:
            return self.shakes_hands

        def opened(line: Line) -> Echo:
            self.peers.append(Echo(line))
            return self.peers[-1]

        agreed = accept(request, opened, None)
        assert isinstance(agreed, Upgrade)
        more = "".join(f"{name}: {value}\r\n" for name, value in self.agrees_to).encode()
        return Upgrade(agreed.wire.removesuffix(b"\r\n") + more + b"\r\n", opened, None)


@dataclass
class Hall(Stage):
    """Behind the door, something of the user's runs, except where the client's coming has it made."""

    operation: Operation
    way: str
    door: Door
    ticket: str = ""
    seen: int = field(default=0)
    """Requests that the vendor had had before the client came."""

    @property
    def socket(self) -> SplicedSocket:
        assert self.operation.spliced is not None
        return self.operation.spliced

    @property
    def since(self) -> list[ReceivedRequest]:
        return self.door.requests[self.seen :]

    def given(self, *, token: str | None = None, has_token: bool = True) -> list[Given]:
        given: list[Given] = []
        if has_token and self.way != TICKET:
            given.append(in_place(self.surface.token_places[0], token or self.token))
        if self.way == NAMED:
            given.append(f"{self.socket.id_param}={self.door.one}")
        return given

    def path(self, given: list[Given], ticket: str | None = None) -> str:
        path = self.operation.path.replace(f"{{{self.socket.ticket_piece}}}", ticket or self.ticket)
        return self.surface.mounts[0] + with_query(path, [one for one in given if isinstance(one, str)])

    def dial(self, *more: Given, given: list[Given] | None = None, **options: object) -> connect:
        given = [*(self.given() if given is None else given), *more]
        headers = [(one[0].decode(), one[1].decode()) for one in given if not isinstance(one, str)]
        url = websocket_url(self.gateway.url) + self.path(given)
        return connect(url, additional_headers=headers, proxy=None, **{"compression": None, **options})  # type: ignore[arg-type]

    async def ask_to_enter(
        self,
        *more: Given,
        given: list[Given] | None = None,
        ticket: str | None = None,
        is_handshake: bool = True,
    ) -> RawAnswer:
        """A handshake that is to be refused."""
        given = [*(self.given() if given is None else given), *more]
        headers = [one for one in given if not isinstance(one, str)]
        names = {name for name, _ in headers}
        headers += [pair for pair in HANDSHAKE if is_handshake and pair[0] not in names]
        target = self.path(given, ticket).encode()
        return await raw_request(self.gateway.url, self.operation.method, target, headers)

    async def booked(self) -> list[dict[str, object]]:
        """Entries of the websocket itself."""
        await self.gateway.until(lambda: not self.gateway.service.engine.open_exchanges)
        rows = await self.gateway.service.store.readers.rows(
            "SELECT kind, cost_nanousd, outcome, reservation_id FROM entries WHERE operation = ?1",
            (self.operation.name,),
        )
        return [dict(zip(("kind", "cost", "outcome", "request"), row, strict=True)) for row in rows]


@asynccontextmanager
async def hall(way: Way, tmp_path, **env: str) -> AsyncIterator[Hall]:
    """Left, all ends, and is booked once."""
    surface, operation, by = way
    assert operation.spliced is not None
    async with Door(surface, operation.spliced) as door:
        keys = {surface.upstream.key_env: VENDOR_KEY, surface.upstream.url_env: door.url}
        env = {option: "0" for option in (operation.spliced.linger_env,) if option} | env
        clock = DatedClock(2026, 11, 20)
        async with running_gateway(tmp_path, env={**keys, **env}, clock=clock) as gateway:
            inside = Hall(surface, gateway, door, await gateway.new_token(), operation, by, door)
            door.mounted = inside.mounted
            if by != MADE:
                made = (await inside.ask(door.maker)).json()
                inside.ticket = made[operation.spliced.url_field].rpartition("/")[2]
            inside.seen = len(door.requests)
            yield inside
            await gateway.until(lambda: not gateway.service.engine.spliced)
            door.is_running = False
            async with asyncio.timeout(WAIT_TIMEOUT_S):
                while await works(gateway):
                    await polled(gateway, clock, LATER_S)
            await gateway.assert_clean()
            assert not any(peer.is_open for peer in door.peers)
            booked = [line["request"] for line in gateway.lines if line.get("cost_usd")]
            assert len(booked) == len(set(booked))


async def echoed(socket: ClientConnection, text: str) -> None:
    await socket.send(text)
    async with asyncio.timeout(WAIT_TIMEOUT_S):
        assert await socket.recv() == text


# --- who is let in --------------------------------------------------------------------------------------


@each_way
async def test_it_opens_passes_both_ways_and_is_one_free_entry(tmp_path, way: Way):
    async with hall(way, tmp_path) as inside:
        async with inside.dial() as socket:
            await echoed(socket, "hello")
        (entry,) = await inside.booked()
        assert (entry["kind"], entry["cost"], entry["outcome"]) == ("settle", 0, "completed")
        await inside.gateway.until(lambda: not inside.gateway.service.engine.spliced)
        lines = [line for line in inside.gateway.lines if line["request"] == entry["request"]]
        assert len(lines) == 1
        assert inside.token not in repr(inside.door.requests) + str(inside.gateway.lines)
        (dialled,) = inside.door.dialled
        assert VENDOR_KEY not in repr(dialled), "its address is all that it takes"
        assert len(inside.door.made) == 1


@each_way_by_token
async def test_the_token_is_taken_in_every_declared_place_and_no_other(tmp_path, way: Way):
    async with hall(way, tmp_path) as inside:
        places = inside.surface.token_places
        for place in places:
            async with inside.dial(
                in_place(place, inside.token), given=inside.given(has_token=False)
            ) as socket:
                await echoed(socket, "hello")
        elsewhere = [(b"x-session", inside.token.encode()), (b"cookie", f"token={inside.token}".encode())]
        answer = await inside.ask_to_enter(*elsewhere, given=inside.given(has_token=False))
        inside.assert_dialect(answer, Reason.UNAUTHENTICATED)
        assert len(inside.door.dialled) == len(places)


@each_way_by_token
async def test_without_a_good_token_nothing_reaches_the_vendor(tmp_path, way: Way):
    async with hall(way, tmp_path) as inside:
        other = await inside.gateway.new_token("u2")
        first, *_ = inside.surface.token_places
        bad = [[], [in_place(first, "amp_nobodys")], [in_place(first, "")]]
        bad += [
            [in_place(one, inside.token), in_place(first, other)] for one in inside.surface.token_places[1:]
        ]
        for given in bad:
            answer = await inside.ask_to_enter(*given, given=inside.given(has_token=False))
            inside.assert_dialect(answer, Reason.UNAUTHENTICATED)
        assert (inside.since, await inside.booked()) == ([], [])


@each_way_by_ticket
async def test_a_ticket_that_is_none_was_changed_or_is_out_of_date_leads_nowhere(tmp_path, way: Way):
    async with hall(way, tmp_path) as inside:
        good = inside.ticket
        changed = [good[:at] + ("A" if good[at] != "A" else "B") + good[at + 1 :] for at in range(len(good))]
        for ticket in (*changed, good + "A", "nobodys", "a.b.c", inside.token, inside.door.one):
            inside.assert_dialect(await inside.ask_to_enter(ticket=ticket), Reason.UNAUTHENTICATED)
        assert (inside.since, await inside.booked()) == ([], [])


@each_way_by_ticket
async def test_a_ticket_leads_nowhere_once_what_it_leads_to_has_changed_hands(tmp_path, way: Way):
    async with hall(way, tmp_path, CHANGES_POLL_S=NEVER_S, CHANGES_STALE_AFTER_S=NEVER_S) as inside:
        async with inside.dial() as socket:
            await echoed(socket, "hello")
        await inside.gateway.until(lambda: not inside.gateway.service.engine.spliced)
        one = ObjectId(inside.surface.provider, inside.socket.kind, inside.door.one)
        objects = Objects(inside.gateway.service.store, inside.gateway.clock)
        await objects.release(one, "u1")
        await objects.bind([one], "u2", "req_later")
        remembered = await inside.ask_to_enter()
        inside.assert_dialect(remembered, Reason.OBJECT_NOT_FOUND)
        await inside.gateway.service.engine._authenticator.look_for_changes()
        inside.assert_dialect(await inside.ask_to_enter(), Reason.UNAUTHENTICATED)
        assert len(inside.door.dialled) == 1


@each_way_by_ticket
async def test_a_ticket_is_worth_what_its_users_token_is(tmp_path, way: Way):
    async with hall(way, tmp_path) as inside:
        directory = inside.gateway.directory
        (token,) = await directory.tokens("u1")
        await inside.gateway.new_token("u1")
        await directory.revoke(token.id)
        await inside.gateway.service.engine._authenticator.look_for_changes()
        inside.assert_dialect(await inside.ask_to_enter(), Reason.UNAUTHENTICATED)
        assert (inside.door.dialled, await inside.booked()) == ([], [])


@pytest.mark.parametrize("way", [one for one in WAYS if one.values[0][2] == NAMED])
async def test_who_names_anothers_or_nobodys_is_told_that_it_does_not_exist(tmp_path, way: Way):
    async with hall(way, tmp_path) as inside:
        other = await inside.gateway.new_token("u2")
        token = in_place(inside.surface.token_places[0], inside.token)
        facts = {"kind": inside.socket.kind}
        for given in (
            inside.given(token=other),
            [token, f"{inside.socket.id_param}=nobodys"],
            [token, f"{inside.socket.id_param}={inside.door.one}%2F.."],
        ):
            inside.assert_dialect(await inside.ask_to_enter(given=given), Reason.OBJECT_NOT_FOUND, facts)
        assert (inside.since, await inside.booked()) == ([], [])


@each_way
async def test_what_is_no_handshake_is_refused_before_the_vendor_hears_of_it(tmp_path, way: Way):
    async with hall(way, tmp_path) as inside:
        answer = await inside.ask_to_enter(is_handshake=False)
        inside.assert_dialect(answer, Reason.WEBSOCKET_REQUIRED)
        assert answer.header(b"upgrade") == b"websocket"
        for version in (b"12", b"8", b"", b"13, 8"):
            answer = await inside.ask_to_enter((b"sec-websocket-version", version))
            inside.assert_dialect(answer, Reason.WEBSOCKET_REQUIRED)
        for key in (b"", b"short", b"dGhlIHNhbXBsZSBub25jZQ", b"\xff" * 24):
            inside.assert_dialect(await inside.ask_to_enter((b"sec-websocket-key", key)), Reason.BAD_REQUEST)
        assert (inside.since, await inside.booked()) == ([], [])


# --- where it leads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [one for one in WAYS if one.values[0][2] != MADE])
async def test_what_has_ended_is_not_led_to(tmp_path, way: Way):
    async with hall(way, tmp_path) as inside:
        inside.door.is_running = False
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            while await works(inside.gateway):
                await polled(inside.gateway, inside.gateway.clock, LATER_S)
        message = inside.assert_dialect(await inside.ask_to_enter(), Reason.OBJECT_NOT_FOUND)
        assert message == inside.socket.words
        assert inside.door.dialled == []
        assert [(one["kind"], one["cost"]) for one in await inside.booked()] == [("void", 0)]


@each_way
@pytest.mark.parametrize(
    "address", ["ws://{other}/inside", "wss://{host}.example/", "{own}\r\nx: y", "inside"]
)
async def test_an_address_that_is_not_the_vendors_is_not_followed(tmp_path, way: Way, address: str):
    async with hall(way, tmp_path) as inside, StandIn(inside.surface) as elsewhere:
        host = next(iter(inside.socket.hosts), "example.com")
        inside.door.leads_to = address.format(
            host=host, own=websocket_url(inside.door.url), other=elsewhere.url.removeprefix("http://")
        )
        answer = await inside.ask_to_enter()
        inside.assert_dialect(answer, Reason.UPSTREAM_UNREACHABLE)
        assert inside.door.leads_to.encode() not in answer.wire
        assert inside.door.dialled == elsewhere.requests == []
        assert [(one["kind"], one["cost"]) for one in await inside.booked()] == [("void", 0)]


@each_way
@pytest.mark.parametrize("status", [200, 301, 304, 401, 402, 403, 404, 422, 429, 500])
async def test_another_answer_than_101_is_told_in_dialect_and_books_nothing(tmp_path, way: Way, status: int):
    async with hall(way, tmp_path) as inside:
        body = vendors_words(inside.surface, status)
        fields = (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Location", "http://x"),
        )
        inside.door.shakes_hands = Ready(head(status, fields) + (b"" if status == 304 else body))
        answer = await inside.ask_to_enter()
        if status < 400:
            inside.assert_dialect(answer, Reason.UPSTREAM_UNREACHABLE)
        elif status in ACCOUNT:
            assert "planted" not in inside.assert_dialect(answer, ACCOUNT[status])
        else:
            assert answer.status == status
            assert answer.body == (inside.surface.dialect.shown_error(body) or body)
        assert status >= 400 or not answer.header(b"location")
        assert [(one["kind"], one["cost"], one["outcome"]) for one in await inside.booked()] == [
            (*ZERO, "upstream_failed")
        ]


@each_way
@pytest.mark.parametrize(
    "script", [*SILENT, *(Ready(head(101, fields)) for fields in (*WRONG, *HALF))], ids=range(8)
)
async def test_a_vendor_that_does_not_shake_hands_is_502_and_booked_once(
    tmp_path, way: Way, script: Ready | Script
):
    async with hall(way, tmp_path) as inside:
        inside.door.shakes_hands = script
        inside.assert_dialect(await inside.ask_to_enter(), Reason.UPSTREAM_UNREACHABLE)
        assert len(inside.door.dialled) == 1, "it is not asked twice"
        assert [(one["kind"], one["cost"], one["outcome"]) for one in await inside.booked()] == [
            (*ZERO, "upstream_failed")
        ]


EXTENSION, PROTOCOL = "Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol"


@each_way
@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        ((), ((EXTENSION, "permessage-deflate"),)),
        ((), ((PROTOCOL, "v1"),)),
        (((PROTOCOL, "v1, v2"),), ((PROTOCOL, "v3"),)),
        (((EXTENSION, "permessage-deflate; client_max_window_bits"),), ((EXTENSION, "permessage-bzip2"),)),
        (((EXTENSION, "permessage-deflate"),), ((PROTOCOL, "permessage-deflate"),)),
        (((EXTENSION, "a"), (EXTENSION, "b")), ((EXTENSION, "a, c"),)),
    ],
    ids=str,
)
async def test_a_vendor_that_agrees_to_what_was_not_offered_is_502(tmp_path, way: Way, offered, agreed):
    async with hall(way, tmp_path) as inside:
        inside.door.agrees_to = agreed
        more = [(name.lower().encode(), value.encode()) for name, value in offered]
        inside.assert_dialect(await inside.ask_to_enter(*more), Reason.UPSTREAM_UNREACHABLE)
        assert [(one["kind"], one["cost"], one["outcome"]) for one in await inside.booked()] == [
            (*ZERO, "upstream_failed")
        ]


@each_way
async def test_what_was_offered_and_agreed_to_is_the_clients_too(tmp_path, way: Way):
    async with hall(way, tmp_path) as inside:
        inside.door.agrees_to = (
            (PROTOCOL, "v2"),
            (EXTENSION, "permessage-deflate; server_no_context_takeover"),
        )
        async with inside.dial(subprotocols=["v1", "v2"], compression="deflate") as socket:
            assert socket.subprotocol == "v2"
            assert [one.name for one in socket.protocol.extensions] == ["permessage-deflate"]
        (dialled,) = inside.door.dialled
        assert dialled.header(b"sec-websocket-protocol") == b"v1, v2"


@each_way
async def test_its_users_are_cut_off_with_their_access(tmp_path, way: Way):
    async with hall(way, tmp_path) as inside:
        async with inside.dial() as socket:
            await echoed(socket, "hello")
            await inside.gateway.directory.disable("u1")
            async with asyncio.timeout(WAIT_TIMEOUT_S):
                with pytest.raises(ConnectionClosed) as closed:
                    await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
