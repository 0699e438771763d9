"""What holds for every declared websocket of events, tested from the declarations alone; of the others: test_spliced_sockets.py."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from metering.errors import Reason, Refused
from proxy.surface import EventSocket, Operation, Surface, TokenPlace
from routes import SURFACES
from simulators.script import WAIT_TIMEOUT_S, Answer, Disconnect, Line, Ready, Reset, Script, head
from simulators.server import ReceivedRequest
from simulators.websocket import Peer, accept
from tests.conformance.stand_in import HOME, StandIn
from tests.conformance.test_outcomes import ACCOUNT, vendors_words
from tests.conformance.test_surfaces import (
    OTHER_CREDENTIALS,
    VENDOR_KEY,
    Case,
    Given,
    Stage,
    in_place,
    staged,
    with_query,
)
from tests.support.raw_http import RawAnswer, raw_request

HANDSHAKE = (
    (b"connection", b"Upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
)
each_socket = pytest.mark.parametrize(
    "case",
    [
        pytest.param((surface, operation), id=f"{surface.name} {operation.name}")
        for surface in SURFACES
        for operation in surface.operations
        if operation.socket is not None
    ],
)


class Repeater(Peer):
    """A vendor's side that keeps what it hears."""

    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self.heard: list[str] = []

    def said(self, text: str) -> None:
        self.heard.append(text)


class Vendor:
    """Lets a stand-in open websockets."""

    def __init__(self, stand_in: StandIn) -> None:
        self.peers: list[Repeater] = []
        self._answer = stand_in.answer
        stand_in.answer = self.answer  # type: ignore[method-assign]  # no other stand-in speaks this protocol

    def answer(self, request: ReceivedRequest) -> Answer:
        if not request.header(b"upgrade"):
            return self._answer(request)

        def opened(line: Line) -> Peer:
            self.peers.append(Repeater(line))
            return self.peers[-1]

        return accept(request, opened, None)


def socket_of(operation: Operation) -> EventSocket:
    assert operation.socket is not None
    return operation.socket


def places_of(surface: Surface, operation: Operation) -> list[TokenPlace]:
    return [*surface.token_places, *socket_of(operation).more_token_places]


def dial(stage: Stage, operation: Operation, *given: Given, has_token: bool = True) -> connect:
    if has_token:
        given = (in_place(stage.surface.token_places[0], stage.token), *given)
    path = with_query(operation.example.path, [one for one in given if isinstance(one, str)])
    url = f"{stage.gateway.url.replace('http', 'ws')}{stage.surface.mounts[0]}{path}"
    headers = [
        (name.decode(), value.decode()) for name, value in (x for x in given if not isinstance(x, str))
    ]
    return connect(url, additional_headers=headers, proxy=None)


async def ask(
    stage: Stage, operation: Operation, *given: Given, has_token: bool = True, **without: bool
) -> RawAnswer:
    """A handshake that is to be refused."""
    if has_token:
        given = (in_place(stage.surface.token_places[0], stage.token), *given)
    path = with_query(operation.example.path, [one for one in given if isinstance(one, str)])
    headers = [one for one in given if not isinstance(one, str)]
    names = {name for name, _ in headers}
    shake: Sequence[tuple[bytes, bytes]] = [] if without.get("handshake") is False else HANDSHAKE
    headers += [pair for pair in shake if pair[0] not in names]
    target = f"{stage.surface.mounts[0]}{path}".encode()
    return await raw_request(stage.gateway.url, operation.method, target, headers)


async def heard(socket: ClientConnection) -> str:
    async with asyncio.timeout(WAIT_TIMEOUT_S):
        return str(await socket.recv())


@each_socket
async def test_it_opens_with_the_token_in_every_declared_place_and_is_booked_once_each(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        vendor = Vendor(stage.vendor)
        elsewhere = [(b"x-session", stage.token.encode())]
        elsewhere += [
            (name.encode(), stage.token.encode())
            for name in OTHER_CREDENTIALS
            if name not in {place.name for place in surface.token_places}
        ]
        for place in places_of(surface, operation):
            async with dial(stage, operation, in_place(place, stage.token), *elsewhere, has_token=False):
                pass
        assert len(vendor.peers) == len(places_of(surface, operation))
        for request in stage.vendor.requests:
            assert stage.token not in repr(request)
            credential = surface.upstream.credential
            assert request.header(credential.name.encode()) == f"{credential.scheme}{VENDOR_KEY}".encode()
        entries = await stage.gateway.entries()
        assert [(one["kind"], one["outcome"], one["cost_nanousd"]) for one in entries] == [
            ("settle", "completed", 0)
        ] * len(vendor.peers)
        await stage.gateway.until(lambda: not stage.gateway.service.engine.sockets)
        told = sorted(line["request"] for line in stage.gateway.lines)
        assert told == sorted(entry["reservation_id"] for entry in entries)
        assert stage.token not in str(stage.gateway.lines)


@each_socket
async def test_without_a_good_token_nothing_is_opened(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        other = await stage.gateway.new_token("u2")
        for given in (
            [],
            *([in_place(place, "amp_nobodys")] for place in places_of(surface, operation)),
            *(
                [in_place(first, stage.token), in_place(second, other)]
                for first in places_of(surface, operation)
                for second in places_of(surface, operation)
            ),
        ):
            stage.assert_dialect(await ask(stage, operation, *given, has_token=False), Reason.UNAUTHENTICATED)
        assert stage.vendor.requests == []


@each_socket
async def test_what_is_no_handshake_is_refused_before_the_vendor_hears_of_it(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        answer = await ask(stage, operation, handshake=False)
        stage.assert_dialect(answer, Reason.WEBSOCKET_REQUIRED)
        assert answer.header(b"upgrade") == b"websocket"
        for version in (b"12", b"8", b"", b"13, 8"):
            answer = await ask(stage, operation, (b"sec-websocket-version", version))
            stage.assert_dialect(answer, Reason.WEBSOCKET_REQUIRED)
            assert answer.header(b"sec-websocket-version") == b"13"
        for key in (b"", b"short", b"dGhlIHNhbXBsZSBub25jZQ", b"\xff" * 24):
            stage.assert_dialect(await ask(stage, operation, (b"sec-websocket-key", key)), Reason.BAD_REQUEST)
        assert stage.vendor.requests == []
        assert await stage.gateway.entries() == []


@each_socket
async def test_it_is_nowhere_else(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        for path in ("", "/", "/undeclared", f"{operation.example.path}/", f"{operation.example.path}/more"):
            moved = replace(operation, example=replace(operation.example, path=path))
            stage.assert_dialect(await ask(stage, moved), Reason.WEBSOCKET_UNAVAILABLE)
        answer = await ask(stage, operation, "undeclared=1")
        stage.assert_dialect(answer, Reason.BAD_REQUEST)
        answer = await ask(stage, operation, f"undeclared={stage.token}")
        assert stage.token not in stage.assert_dialect(answer, Reason.BAD_REQUEST)
        assert stage.vendor.requests == []


@each_socket
async def test_without_its_key_it_says_which_variable_is_unset(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path, **{surface.upstream.key_env: None}) as stage:
        message = stage.assert_dialect(await ask(stage, operation), Reason.NOT_CONFIGURED)
        assert surface.upstream.key_env in message


@each_socket
@pytest.mark.parametrize("status", [200, 301, 304, 401, 402, 403, 404, 422, 429, 500])
async def test_another_answer_than_101_is_told_in_dialect_and_books_nothing(
    tmp_path, case: Case, status: int
):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        body = vendors_words(surface, status)
        fields = (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Location", "http://x"),
        )
        stage.vendor.answers_with = Ready(head(status, fields) + (b"" if status == 304 else body))
        answer = await ask(stage, operation)
        if status < 400:
            stage.assert_dialect(answer, Reason.UPSTREAM_UNREACHABLE)
        elif status in ACCOUNT:
            assert "planted" not in stage.assert_dialect(answer, ACCOUNT[status])
        else:
            assert answer.status == status
            assert answer.body == (surface.dialect.shown_error(body) or body)
        assert VENDOR_KEY.encode() not in answer.wire
        assert status >= 400 or not answer.header(b"location")
        entry = await stage.gateway.only_entry()
        assert (entry["kind"], entry["outcome"], entry["cost_nanousd"]) == ("settle", "upstream_failed", 0)


SILENT = [Script(before=(Disconnect(),)), Script(before=(Reset(),)), Ready(b"nothing\r\n\r\n")]
WRONG = [
    (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", "bm90IHlvdXJz")),
    (("Upgrade", "websocket"), ("Connection", "Upgrade")),
    (("Upgrade", "h2c"), ("Connection", "Upgrade")),
]


@each_socket
@pytest.mark.parametrize(
    "script",
    [
        *SILENT,
        *(Ready(head(101, fields)) for fields in WRONG),
    ],
    ids=["closed", "reset", "garbage", "another key's", "no accept", "another protocol"],
)
async def test_a_vendor_that_does_not_shake_hands_is_502_and_booked_once(
    tmp_path, case: Case, script: Ready | Script
):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        stage.vendor.answers_with = script
        stage.assert_dialect(await ask(stage, operation), Reason.UPSTREAM_UNREACHABLE)
        assert len(stage.vendor.requests) == 1, "it is not asked twice"
        entry = await stage.gateway.only_entry()
        assert (entry["kind"], entry["outcome"]) == ("settle", "upstream_failed")


@each_socket
async def test_a_vendor_that_cannot_be_reached_costs_nothing(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        await stage.vendor.stop()
        stage.assert_dialect(await ask(stage, operation), Reason.UPSTREAM_UNREACHABLE)
        entry = await stage.gateway.only_entry()
        assert (entry["kind"], entry["outcome"]) == ("void", "not_sent")


@each_socket
async def test_what_names_nothing_is_asked_for_the_users_home_and_others_ids_go_nowhere(tmp_path, case: Case):
    surface, operation = case
    socket = socket_of(operation)
    async with staged(surface, tmp_path) as stage:
        vendor = Vendor(stage.vendor)
        await stage.own_named(operation)
        async with dial(stage, operation) as client:
            kind = next(home.kind for home in surface.homes if home.name == socket.home)
            field = next(place.many for place in socket.ids if place.kind == kind)
            await client.send(orjson.dumps({"type": socket.asks}).decode())
            await stage.gateway.until(lambda: vendor.peers[0].heard)
            for place in socket.ids:
                await client.send(orjson.dumps({"type": socket.asks, place.many: ["somebodys"]}).decode())
                expected = socket.says_error(Refused(Reason.OBJECT_NOT_FOUND, "Not found."))
                assert await heard(client) == expected.decode()
            assert [orjson.loads(text) for text in vendor.peers[0].heard] == [
                {"type": socket.asks, field: [HOME]}
            ]


@each_socket
async def test_only_what_is_about_the_user_goes_down(tmp_path, case: Case):
    surface, operation = case
    socket = socket_of(operation)
    async with staged(surface, tmp_path) as stage:
        vendor = Vendor(stage.vendor)
        await stage.own_named(operation)
        place = next(one for one in socket.ids if one.kind in {home.kind for home in surface.homes})
        own = {place.one: HOME}
        async with dial(stage, operation) as client:
            shown = [{"type": "event", "about": own}, {"type": "event", "list": [own]}]
            hidden = [
                {"type": "event", "about": {place.one: "somebodys"}},
                {"type": "event", "about": own, "and": {place.many: [HOME, "somebodys"]}},
                {"type": "event"},
                {"about": "nobody"},
                *({"type": "event", name: own} for name in socket.contents),
            ]
            for message in (*hidden, *shown):
                vendor.peers[0].send_text(orjson.dumps(message).decode())
            assert [orjson.loads(await heard(client)) for _ in shown] == shown


@each_socket
async def test_its_users_are_cut_off_with_their_access(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        Vendor(stage.vendor)
        async with dial(stage, operation) as client:
            await stage.gateway.directory.disable("u1")
            with pytest.raises(ConnectionClosed) as closed:
                await heard(client)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
