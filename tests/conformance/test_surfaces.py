"""What holds for every surface and every operation, tested from the declarations alone: a new vendor is tested
before its own first test."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from metering.errors import Reason, Refused
from metering.objects import ObjectId, Objects
from metering.rate_state import Standing
from proxy.json_walk import value_at
from proxy.mounted import Mounted
from proxy.ownership import ids_of
from proxy.surface import ForbiddenField, HeaderKey, Inbound, Operation, QueryKey, Surface, TokenPlace
from routes import SURFACES
from tests.conformance.stand_in import HOME, StandIn
from tests.support.background import polled, works
from tests.support.gateway import POLL_S, DatedClock, Gateway, running_gateway
from tests.support.limits import assert_limits
from tests.support.raw_http import RawAnswer, raw_request

VENDOR_KEY = "vendor-key-that-nobody-may-see"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE")
OTHER_CREDENTIALS = (
    "authorization", "proxy-authorization", "x-api-key", "x-goog-api-key", "x-bb-api-key", "x-subscription-token",
    "cookie",
)  # fmt: skip
"""Where some vendor's client would put a key: none of it may reach another vendor."""
HOP_BY_HOP = ("keep-alive", "te", "trailer", "proxy-connection")
TRACES = (
    "via", "forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "cf-connecting-ip", "fly-client-ip",
    "true-client-ip", "x-automna-anything",
)  # fmt: skip
PLANTED = b"planted"
ANY_TEXT = "any text will do"

Case = tuple[Surface, Operation]
Given = tuple[bytes, bytes] | str
"""A header, or a parameter of the query."""
OPERATIONS = [
    pytest.param((surface, operation), id=f"{surface.name} {operation.name}")
    for surface in SURFACES
    for operation in surface.operations
    if not operation.is_websocket
]
"""Those that are answered; of websockets: test_sockets.py, test_spliced_sockets.py."""
FORBIDDEN = [
    pytest.param((surface, operation, field), id=f"{operation.name} {field.path} {field.value or ''}".strip())
    for surface in SURFACES
    for operation in surface.operations
    for field in operation.forbidden
]
each_operation = pytest.mark.parametrize("case", OPERATIONS)
each_surface = pytest.mark.parametrize("surface", SURFACES, ids=[surface.name for surface in SURFACES])


@dataclass
class Stage:
    """A surface served before its stand-in."""

    surface: Surface
    gateway: Gateway
    vendor: StandIn
    token: str

    async def ask(
        self,
        operation: Operation,
        *given: Given,
        body: bytes | None = None,
        mount: str | None = None,
        path: str | None = None,
        token: str | None = None,
        has_token: bool = True,
    ) -> RawAnswer:
        """Send the operation's example, with the gateway token in its first place; what it names is the user's."""
        example = operation.example
        self.vendor.about = operation
        await self.own_named(operation)
        if has_token:
            given = (in_place(self.surface.token_places[0], token or self.token), *given)
        path = with_query(path or example.path, [one for one in given if isinstance(one, str)])
        target = f"{mount or self.surface.mounts[0]}{path}".encode()
        headers = [one for one in given if not isinstance(one, str)]
        body = example.body if body is None else body
        content = [(b"content-type", b"application/json")] if body else []
        return await raw_request(self.gateway.url, operation.method, target, [*content, *headers], body)

    @property
    def mounted(self) -> Mounted:
        return next(item for item in self.gateway.service.mounted if item.surface is self.surface)

    def is_declared(self, method: str, path: str) -> bool:
        try:
            self.mounted.match(method, path.encode())
        except Refused:
            return False
        return True

    def named_by_example(self, operation: Operation) -> set[tuple[str, str]]:
        """Kinds and ids of the objects that the example names."""
        example = operation.example
        path, _, query = example.path.partition("?")
        fields = orjson.loads(example.body) if example.body and not operation.takes_any_body else {}
        _, params = self.mounted.match(operation.method, path.encode())
        inbound = Inbound(operation.method, params, query.encode(), [], example.body, fields)
        named = {(name.kind, one) for name in operation.names for one in ids_of(name, inbound)}
        return named | {(one.kind, fields.get(one.field, HOME)) for one in operation.fills}

    def listed_by_example(self, operation: Operation) -> set[tuple[str, str]]:
        """Those of the list that it shows what is the user's own of."""
        keeps = operation.keeps
        if keeps is None:
            return set()
        answer = orjson.loads(operation.example.answer)
        listed = value_at(answer, keeps.items.split(".")) if keeps.items else answer
        return {(keeps.kind, one[keeps.id_field]) for one in listed}

    async def own_named(self, operation: Operation) -> None:
        objects = Objects(self.gateway.service.store, self.gateway.clock)
        for home in self.surface.homes:
            await objects.bind([ObjectId(self.surface.provider, home.kind, HOME)], "u1", "req_before")
        for kind, upstream_id in self.named_by_example(operation) | self.listed_by_example(operation):
            await objects.bind([ObjectId(self.surface.provider, kind, upstream_id)], "u1", "req_before")

    async def send(self, method: str, target: str) -> RawAnswer:
        """Anything below the mount, with the gateway token and no body."""
        headers = [in_header(self.surface, self.token)]
        return await raw_request(
            self.gateway.url, method, (self.surface.mounts[0] + target).encode(), headers
        )

    def assert_dialect(
        self, answer: RawAnswer, reason: Reason, facts: Mapping[str, int | str] | None = None
    ) -> str:
        """A refusal in the surface's own shape; its message."""
        request_id = answer.header(b"x-automna-request-id").decode()
        wait = answer.header(b"retry-after")  # which some vendors repeat in the body
        refused = Refused(reason, ANY_TEXT, float(wait) if wait else None, facts or {})
        expected = self.surface.dialect.refusal(refused, request_id)
        assert request_id.startswith("req_")
        assert answer.status == expected.status
        assert answer.header(b"content-type") == dict(expected.headers)[b"content-type"]
        assert answer.header(b"x-should-retry") == dict(expected.headers).get(b"x-should-retry", b"")
        messages: list[str] = []
        assert_shape(orjson.loads(expected.body), answer.json(), messages)
        (message,) = messages
        assert self.gateway.lines[-1]["reason"] == reason.value
        return message


def assert_shape(expected: Any, actual: Any, messages: list[str]) -> None:
    """The same JSON, but for the message."""
    if isinstance(expected, dict):
        assert isinstance(actual, dict)
        assert list(actual) == list(expected)
        for key, value in expected.items():
            assert_shape(value, actual[key], messages)
    elif isinstance(expected, list) and expected:
        assert isinstance(actual, list)
        for one, other in zip(expected, actual, strict=True):
            assert_shape(one, other, messages)
    elif expected == ANY_TEXT:
        assert isinstance(actual, str)
        assert actual
        messages.append(actual)
    else:
        assert actual == expected


def in_place(place: TokenPlace, token: str) -> Given:
    if isinstance(place, QueryKey):
        return f"{place.name}={token}"
    return place.name.encode(), f"{place.scheme}{token}".encode()


def in_header(surface: Surface, token: str) -> tuple[bytes, bytes]:
    """The gateway token in its first place, which is a header on every surface."""
    given = in_place(surface.token_places[0], token)
    assert not isinstance(given, str)
    return given


def in_any_case(place: TokenPlace) -> list[TokenPlace]:
    """The same place, its scheme written in every way that clients write it."""
    if isinstance(place, QueryKey):
        return [place]
    schemes = {place.scheme, place.scheme.upper(), place.scheme.lower()}
    return [HeaderKey(place.name, scheme) for scheme in sorted(schemes)]


def assert_example(operation: Operation, answer: RawAnswer) -> None:
    """The example's answer, byte for byte; or what its operation makes of it."""
    assert answer.status == 200
    if operation.renders is None and operation.replies is None:
        assert answer.body == operation.example.answer
        return
    standing = Standing(None, None, 0, 0, None, 0, 0, ())  # type: ignore[arg-type] # nobody has looked
    told = operation.example.answer
    if operation.replies is not None:
        filled = {one.field: HOME for one in operation.fills}
        shown = orjson.loads(
            operation.replies(told, standing, {**orjson.loads(operation.example.body), **filled})
        )
    else:
        assert operation.renders is not None
        shown = orjson.loads(operation.renders(told, standing))
    left = dict.fromkeys(("remaining", "remaining_minutes"))
    assert {**answer.json(), **left} == {**shown, **left}


def without_edits(operation: Operation, body: bytes) -> object:
    """The body but for the fields that are made the user's own, or are ours; the bytes themselves where there are none."""
    edited = {*operation.namespaced, *(name for name, _ in operation.forces)}
    edited |= {one.field for one in operation.fills}
    if operation.tag is not None:
        edited.add(operation.tag.field.partition(".")[0])
    if operation.told_at is not None:
        edited.add(operation.told_at[0])
    if not edited or not body:
        return body
    return {name: value for name, value in orjson.loads(body).items() if name not in edited}


def without_bounds(operation: Operation, target: str) -> str:
    """The target but for the parameters whose value the operator bounds, which are there although nobody gave them."""
    path, _, query = target.partition("?")
    bounded = [f"{name}=" for name, _ in operation.at_most_in_query]
    kept = [one for one in query.split("&") if one and not one.startswith(tuple(bounded))]
    return with_query(path, kept)


def with_query(path: str, parameters: list[str]) -> str:
    joint = "&" if "?" in path else "?"
    return path + joint + "&".join(parameters) if parameters else path


@asynccontextmanager
async def staged(surface: Surface, tmp_path, **env: str | None) -> AsyncIterator[Stage]:
    async with StandIn(surface) as vendor:
        variables = {
            surface.upstream.key_env: VENDOR_KEY,
            surface.upstream.url_env: vendor.url,
            **env,
        }
        clock = DatedClock(2026, 11, 20)
        async with running_gateway(tmp_path, env=variables, clock=clock) as gateway:
            stage = Stage(surface, gateway, vendor, await gateway.new_token())
            vendor.mounted = stage.mounted
            async with time_passing(gateway, clock):
                yield stage
                await gateway.assert_clean()


@asynccontextmanager
async def time_passing(gateway: Gateway, clock: DatedClock) -> AsyncIterator[None]:
    """While work is left to be asked about, it is due."""

    async def passing() -> None:
        while True:
            if await works(gateway) and not gateway.service.engine.open_exchanges:
                await polled(gateway, clock)
            await asyncio.sleep(POLL_S)

    task = asyncio.get_running_loop().create_task(passing())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


# --- the gateway token ----------------------------------------------------------------------------------


@each_operation
async def test_the_token_is_accepted_in_every_declared_place_and_below_every_mount(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        asked = 0
        for mount in surface.mounts:
            for declared in surface.token_places:
                for place in in_any_case(declared):
                    given = in_place(place, stage.token)
                    answer = await stage.ask(operation, given, mount=mount, has_token=False)
                    assert_example(operation, answer)
                    asked += 1
        everywhere = [in_place(place, stage.token) for place in surface.token_places]
        assert (await stage.ask(operation, *everywhere, has_token=False)).status == 200
        assert len(stage.vendor.asked) == asked + 1


@each_operation
async def test_without_a_good_token_nothing_reaches_the_vendor(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        revoked = await stage.gateway.directory.create_token("u1")
        await stage.gateway.directory.revoke(revoked[1].id)
        none: list[Given] = []
        for given in (
            none,
            *([in_place(place, "amp_nobodys")] for place in surface.token_places),
            *([in_place(place, revoked[0])] for place in surface.token_places),
            *([in_place(place, "")] for place in surface.token_places),
            [(b"x-gateway-token", stage.token.encode())],
        ):
            answer = await stage.ask(operation, *given, has_token=False)
            stage.assert_dialect(answer, Reason.UNAUTHENTICATED)
        assert len(stage.vendor.requests) == 0
        assert await stage.gateway.entries() == []


@each_operation
async def test_two_different_tokens_are_refused_though_both_are_good(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        other = await stage.gateway.new_token("u2")
        pairs = [(first, second) for first in surface.token_places for second in surface.token_places]
        for first, second in pairs:
            given = [in_place(first, stage.token), in_place(second, other)]
            answer = await stage.ask(operation, *given, has_token=False)
            assert "different" in stage.assert_dialect(answer, Reason.UNAUTHENTICATED)
        assert len(stage.vendor.requests) == 0


# --- what is declared, and what is not ------------------------------------------------------------------


@each_operation
async def test_the_example_passes_unchanged_and_is_booked_exactly_once(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        answer = await stage.ask(operation)
        assert_example(operation, answer)
        (request,) = stage.vendor.asked
        assert request.method == operation.method
        assert without_bounds(operation, request.target) == stage.vendor.upstream_target(operation)
        if operation.replies is None:  # else it is asked in words that are not the vendor's
            assert without_edits(operation, request.body) == without_edits(operation, operation.example.body)
        entry = await stage.gateway.only_entry()
        assert (entry["kind"], entry["outcome"], entry["basis"]) == ("settle", "completed", "reported")
        assert entry["operation"] == operation.name
        engine = stage.gateway.service.engine
        expected = engine._booking._prices.price(
            surface.provider, operation.example.usage, at_ms=stage.gateway.clock.now_ms()
        )
        assert expected.flags == ()
        assert entry["cost_nanousd"] == expected.cost_nanousd
        assert (expected.cost_nanousd == 0) is operation.meter.is_free, "an example that proves nothing"
        counts = [line["counts"] for line in orjson.loads(entry["usage"] or "[]")]
        assert counts == [dict(line.counts) for line in operation.example.usage.lines]


@each_operation
async def test_other_methods_on_a_declared_path_do_not_exist(tmp_path, case: Case):
    surface, operation = case
    path = operation.example.path.partition("?")[0]
    async with staged(surface, tmp_path) as stage:
        for method in sorted(set(METHODS) - {"HEAD"}):
            if not stage.is_declared(method, path):
                stage.assert_dialect(await stage.send(method, path), Reason.UNKNOWN_OPERATION)
        assert len(stage.vendor.requests) == 0


UNDECLARED = ("", "/", "/undeclared", "/v1", "/v1/", "/v1/organizations/me", "/admin", "/health", "/metrics")
ALTERATIONS = {
    "one more segment": lambda path: f"{path}/more/still",
    "a slash at its end": lambda path: f"{path}/",
    "two slashes": lambda path: path.replace("/", "//", 1),
    "an empty segment": lambda path: "//".join(path.rsplit("/", 1)),
    "a dot segment": lambda path: f"/.{path}",
    "dot segments that cancel": lambda path: f"/undeclared/..{path}",
    "dot segments that leave the mount": lambda path: f"/../../api/llm{path}",
    "dots at its end": lambda path: f"{path}/..",
    "encoded dots": lambda path: f"/%2e%2e{path}",
    "half encoded dots": lambda path: f"/undeclared/.%2E{path}",
    "an encoded slash": lambda path: "%2f".join(path.rsplit("/", 1)),
    "a backslash": lambda path: "\\".join(path.rsplit("/", 1)),
    "an encoded backslash": lambda path: "%5C".join(path.rsplit("/", 1)),
    "an encoded letter": lambda path: path[:-1] + f"%{ord(path[-1]):02x}/",
    "a null byte": lambda path: f"{path}%00",
    "another case": lambda path: path.swapcase(),
    "a parameter": lambda path: f"{path};v=1/x",
}


@each_operation
async def test_what_only_looks_like_a_declared_path_does_not_exist(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        for alter in ALTERATIONS.values():
            path = alter(operation.example.path.partition("?")[0])
            if not path.startswith("/"):  # not below the mount
                assert (await stage.send(operation.method, path)).status == 404
                continue
            if path == operation.example.path:
                continue
            if stage.is_declared(operation.method, path):  # an id that may have slashes has swallowed it
                assert any(":*}" in one.path for one in surface.operations)
                continue
            stage.assert_dialect(await stage.send(operation.method, path), Reason.UNKNOWN_OPERATION)
        assert len(stage.vendor.requests) == 0
        assert await stage.gateway.entries() == []


@each_surface
def test_operations_that_exclude_each_other_both_say_so(surface: Surface):
    excluding = {one.name: one.not_during for one in surface.operations}
    for name, others in excluding.items():
        assert all(name in excluding[other] for other in others)


@each_surface
async def test_undeclared_paths_do_not_exist(tmp_path, surface: Surface):
    async with staged(surface, tmp_path) as stage:
        for path in UNDECLARED:
            for method in ("GET", "POST"):
                if stage.is_declared(method, path):
                    assert path in {"", "/"}
                    continue
                stage.assert_dialect(await stage.send(method, path), Reason.UNKNOWN_OPERATION)
        assert len(stage.vendor.requests) == 0


@each_surface
async def test_a_path_that_begins_like_a_mount_is_not_below_it(tmp_path, surface: Surface):
    async with staged(surface, tmp_path) as stage:
        operation = next(one for one in surface.operations if not one.is_websocket)
        for mount in surface.mounts:
            answer = await stage.ask(operation, mount=f"{mount}x")
            assert answer.status == 404
        assert len(stage.vendor.requests) == 0


def body_with(operation: Operation, path: str, value: object) -> bytes:
    """The example's body with a value at a forbidden field's path; `**` goes three levels deep."""
    first, *rest = path.split(".")
    planted: object = value
    for key in reversed(rest):
        planted = [{"some": [{"thing": planted}]}] if key == "**" else {key: planted}
    if first == "**":
        first, planted = "some", [{"thing": planted}]
    return orjson.dumps({**orjson.loads(operation.example.body), first: planted})


@pytest.mark.parametrize("case", FORBIDDEN)
async def test_a_forbidden_field_is_refused_by_name_and_nothing_reaches_the_vendor(
    tmp_path, case: tuple[Surface, Operation, ForbiddenField]
):
    surface, operation, field = case
    name = field.path.rpartition(".")[2]
    async with staged(surface, tmp_path) as stage:
        for value in [field.value] if field.value is not None else ["x", 1, True, {}, [], {"id": "x"}]:
            answer = await stage.ask(operation, body=body_with(operation, field.path, value))
            message = stage.assert_dialect(answer, Reason.BAD_REQUEST)
            assert name in message
            assert field.why in message
        assert len(stage.vendor.requests) == 0
        assert await stage.gateway.entries() == []


# --- headers --------------------------------------------------------------------------------------------


def planted_names(declared: tuple[str, ...]) -> list[str]:
    """The declared names; a prefix stands for a name that begins with it."""
    return [name.replace("*", "anything") for name in declared]


@each_operation
async def test_hop_by_hop_credential_and_account_headers_do_not_go_up(tmp_path, case: Case):
    surface, operation = case
    places = {place.name for place in surface.token_places}
    names = [*HOP_BY_HOP, *TRACES, *planted_names(surface.dropped_request_headers)]
    names += [name for name in OTHER_CREDENTIALS if name not in places]
    headers = [(name.encode(), PLANTED) for name in names]
    headers += [(b"x-named-by-connection", PLANTED), (b"connection", b"close, X-Named-By-Connection")]
    async with staged(surface, tmp_path) as stage:
        answer = await stage.ask(operation, *headers, (b"x-neutral", b"kept"), (b"user-agent", b"agent/1"))
        assert answer.status == 200
        (request,) = stage.vendor.asked
        assert [name for name, value in request.headers if PLANTED in value] == []
        assert request.header(b"x-neutral") == b"kept"
        assert request.header(b"user-agent") == b"agent/1"
        assert request.header(b"host").decode() == stage.vendor.url.removeprefix("http://")


@each_operation
@pytest.mark.parametrize("is_error", [False, True], ids=["answer", "error"])
async def test_hop_by_hop_cookie_credential_and_account_headers_do_not_come_down(
    tmp_path, case: Case, is_error: bool
):
    surface, operation = case
    credential = surface.upstream.credential.name
    names = [*HOP_BY_HOP, *planted_names(surface.dropped_answer_headers), *OTHER_CREDENTIALS, credential]
    names += ["set-cookie", "date", "alt-svc", "proxy-authenticate", "x-automna-anything"]
    names += ["ratelimit", "ratelimit-policy", "ratelimit-remaining"]
    async with staged(surface, tmp_path) as stage:
        stage.vendor.more_headers = [
            *((name, PLANTED.decode()) for name in names),
            ("Connection", "keep-alive, X-Named-By-Connection"),
            ("X-Named-By-Connection", PLANTED.decode()),
            ("x-neutral", "kept"),
        ]
        if is_error:
            stage.vendor.fails_with = (422, b'{"error":"of the request"}')
        answer = await stage.ask(operation)
        assert answer.status == (422 if is_error else 200)
        assert [name for name, value in answer.headers if PLANTED in value] == []
        assert answer.header(b"x-neutral") == b"kept"


def headers_of(answer: RawAnswer) -> dict[str, str]:
    names = [name for name, _ in answer.headers]
    assert len(set(names)) == len(names), "a header twice"
    return {name.decode(): value.decode() for name, value in answer.headers}


@each_operation
async def test_every_answer_says_where_the_caller_stands(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        limits = assert_limits(headers_of(await stage.ask(operation)))
        assert ("credits" in limits) is not operation.meter.is_free
        for status in (422, 401, 429, 500):  # the vendor's own, and what stands in for it
            stage.vendor.fails_with = (status, b'{"error":"of the vendor"}')
            answer = await stage.ask(operation)
            assert answer.status >= 400
            assert set(assert_limits(headers_of(answer))) == set(limits)
        left = assert_limits(headers_of(await stage.ask(operation)))["requests"][0]
        refused = await stage.ask(operation, f"undeclared={stage.token}")
        assert refused.status == 400
        assert assert_limits(headers_of(refused))["requests"][0] >= left, "a look counted"
        stranger = headers_of(await stage.ask(operation, has_token=False))
        assert not [name for name in stranger if "ratelimit" in name]


@each_operation
async def test_what_describes_the_vendors_bytes_comes_down_with_those_alone(tmp_path, case: Case):
    """An ETag has the length of the body, as a rule: beside a list of one's own it would tell how much others have."""
    surface, operation = case
    sent = {
        "etag": 'W/"2f8c-x"',
        "last-modified": "Fri, 20 Nov 2026 12:00:00 GMT",
        "content-digest": "md5=:eA==:",
    }
    async with staged(surface, tmp_path) as stage:
        stage.vendor.more_headers = list(sent.items())
        passed = headers_of(await stage.ask(operation)).keys() & sent.keys()
        assert passed == (set() if operation.edits_answer else sent.keys())


# --- secrets --------------------------------------------------------------------------------------------


@each_operation
async def test_the_vendor_gets_the_platforms_key_and_never_the_gateway_token(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        token = stage.token.encode()
        places = {place.name for place in surface.token_places}
        elsewhere = [(name.encode(), b"Bearer " + token) for name in OTHER_CREDENTIALS if name not in places]
        for place in surface.token_places:
            given = [in_place(place, stage.token), *elsewhere]
            assert (await stage.ask(operation, *given, has_token=False)).status == 200
        everywhere = [in_place(place, stage.token) for place in surface.token_places]
        undeclared = [(b"x-session", b"token=" + token), (b"user-agent", token)]
        assert (
            await stage.ask(operation, *everywhere, *elsewhere, *undeclared, has_token=False)
        ).status == 200
        credential = surface.upstream.credential
        for request in stage.vendor.requests:
            assert [value for name, value in request.headers if name == credential.name.encode()] == [
                f"{credential.scheme}{VENDOR_KEY}".encode()
            ]
            assert token not in repr(request).encode()


@each_operation
async def test_a_gateway_token_in_the_url_is_refused_before_it_goes_anywhere(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        target = with_query(operation.example.path, [f"undeclared={stage.token}"])
        answer = await stage.send(operation.method, target)
        assert stage.token not in stage.assert_dialect(answer, Reason.BAD_REQUEST)
        assert len(stage.vendor.requests) == 0


ESCAPED_KEY = "".join(f"\\u{ord(sign):04x}" for sign in VENDOR_KEY)
"""As JSON may write it as well."""
LEAKS = {
    "a plain answer": {},
    "an error of the request": {"fails_with": (422, b'{"error":"of the request"}')},
    "an error of the account": {"fails_with": (401, b'{"error":"invalid key: %b"}' % VENDOR_KEY.encode())},
    "an error that repeats the key": {"fails_with": (400, b'{"error":"key: %b"}' % VENDOR_KEY.encode())},
    "an error that repeats the key escaped": {
        "fails_with": (400, b'{"statusCode":400,"message":"key: %b"}' % ESCAPED_KEY.encode())
    },
    "a failure that repeats the key": {"fails_with": (500, b"<p>key: %b</p>" % VENDOR_KEY.encode())},
    "headers that repeat the key": {
        "more_headers": [
            ("x-echo", f"key={VENDOR_KEY}"),
            ("x-api-key", VENDOR_KEY),
            ("request-id", VENDOR_KEY),
        ],
    },
}


@each_operation
@pytest.mark.parametrize("leak", LEAKS)
async def test_no_secret_is_in_answers_logs_metrics_or_the_ledger(tmp_path, case: Case, leak: str, caplog):
    caplog.set_level(logging.DEBUG)
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        for name, value in LEAKS[leak].items():
            setattr(stage.vendor, name, value)
        wires = [
            (await stage.ask(operation)).wire,
            (await stage.ask(operation, body=b"{" if operation.example.body else b"")).wire,
            (await stage.send("GET", "/undeclared")).wire,
            (await raw_request(stage.gateway.url, "GET", b"/metrics")).wire,
        ]
        assert len(stage.vendor.requests) >= 1
        await stage.vendor.stop()
        wires.append((await stage.ask(operation)).wire)
        await stage.gateway.quiet()
        written = b"".join(path.read_bytes() for path in tmp_path.glob("ledger.db*"))
        for secret in (VENDOR_KEY, stage.token):
            for wire in wires:
                assert secret.encode() not in wire
                assert ESCAPED_KEY.encode() not in wire
            assert secret not in caplog.text
            assert secret not in str(stage.gateway.lines)
            assert secret.encode() not in written
        assert b"u1" in written, "the ledger was read"


@each_operation
async def test_without_its_key_a_surface_says_which_variable_is_unset(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path, **{surface.upstream.key_env: None}) as stage:
        message = stage.assert_dialect(await stage.ask(operation), Reason.NOT_CONFIGURED)
        assert surface.upstream.key_env in message
        assert len(stage.vendor.requests) == 0
        assert await stage.gateway.entries() == []
