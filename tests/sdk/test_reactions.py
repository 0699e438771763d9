"""Our own answers, as the vendor's SDKs feel them: which exception, how many requests, after which waits, which words.

The table below stands in `docs/clients.md` for people; a test holds the two together.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from metering.tasks import spawn
from simulators.anthropic import (
    AnthropicSimulator,
    ReportedUsage,
    breaks_after,
    drops,
    errors_after,
    fails,
    hangs,
    streams,
)
from simulators.script import Gate
from tests.support.gateway import Gateway, client_of, messages_body, running_gateway
from tests.support.sdk import Sdk, running_sdk

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients.md"
SDKS = ("2-sync", "0-sync", "1-js")
TEXT = "A robin, I should say, or a wren."
ANY = -1.0
"""A wait of the SDK's own choice: half a second growing, with jitter."""
OWN_WAITS_S = (0.25, 2.0)
OF_THE_MINUTE = -2.0
"""The Retry-After of the minute's rate: until the window has room again."""


@dataclass
class Scene:
    """A running proxy before a vendor, and the token that the SDK will use."""

    gateway: Gateway
    vendor: AnthropicSimulator
    user_id: str
    token: str
    url: str
    more: dict[str, Any] = field(default_factory=dict)
    """Arguments of the SDK's call."""


Arrange = Callable[[Scene], Any]
"""An async context manager that brings the proxy into the state in which it answers so."""


@dataclass(frozen=True)
class Case:
    """One line of the table. `classes`: of the Python SDK (current, below 1.0) and of the JavaScript SDK."""

    name: str
    arrange: Arrange
    status: int | None
    classes: tuple[str, str, str]
    words: str
    """A regular expression that the exception's text contains."""
    waits: tuple[float, ...] = ()
    """Before each retry, in seconds. No retries: asked once."""
    do: str = "create"
    env: dict[str, str] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    is_refused_connection: bool = False

    @property
    def requests(self) -> int:
        return 0 if self.is_refused_connection else len(self.waits) + 1


@asynccontextmanager
async def nothing(scene: Scene) -> AsyncIterator[None]:
    yield


def vendor_answers(*behaviours) -> Arrange:
    @asynccontextmanager
    async def arrange(scene: Scene) -> AsyncIterator[None]:
        scene.vendor.next(*behaviours * 3)
        yield

    return arrange


def asking(**more) -> Arrange:
    @asynccontextmanager
    async def arrange(scene: Scene) -> AsyncIterator[None]:
        scene.more = more
        yield

    return arrange


@asynccontextmanager
async def unknown_token(scene: Scene) -> AsyncIterator[None]:
    scene.token = "amp_nobodys"
    yield


@asynccontextmanager
async def revoked_token(scene: Scene) -> AsyncIterator[None]:
    (token,) = await scene.gateway.directory.tokens(scene.user_id)
    await scene.gateway.directory.revoke(token.id)
    await scene.gateway.service.own.authenticator.look_for_changes()
    yield


@asynccontextmanager
async def disabled_user(scene: Scene) -> AsyncIterator[None]:
    await scene.gateway.directory.disable(scene.user_id)
    await scene.gateway.service.own.authenticator.look_for_changes()
    yield


@asynccontextmanager
async def spent_budget(scene: Scene) -> AsyncIterator[None]:
    scene.vendor.next(streams(usage=ReportedUsage(input_tokens=10, output_tokens=10_000)))
    assert await plain_request(scene) == 200
    yield


@asynccontextmanager
async def request_in_flight(scene: Scene) -> AsyncIterator[None]:
    """Holds the only slot, or most of the credits."""
    gate = Gate()
    scene.vendor.next(hangs(gate=gate))
    other = spawn(plain_request(scene, max_tokens=1_000), name="the request in flight")
    await gate.reached()
    yield
    gate.open()
    assert await other == 200


@asynccontextmanager
async def minute_used_up(scene: Scene) -> AsyncIterator[None]:
    assert await plain_request(scene) == 200
    yield


@asynccontextmanager
async def locked_store(scene: Scene) -> AsyncIterator[None]:
    with scene.gateway.locked_store() as lock:
        yield
        lock.rollback()


@asynccontextmanager
async def draining(scene: Scene) -> AsyncIterator[None]:
    scene.gateway.service.engine.is_stopping = True
    yield


@asynccontextmanager
async def nobody_listens(scene: Scene) -> AsyncIterator[None]:
    scene.url = "http://127.0.0.1:1"
    yield


async def plain_request(scene: Scene, **more: Any) -> int:
    async with client_of(scene.gateway, scene.token) as client:
        return (await client.post("/v1/messages", json=messages_body(**more))).status_code


AUTHENTICATION = ("AuthenticationError",) * 3
PAYMENT = ("PaymentRequiredError", "APIStatusError", "PaymentRequiredError")
NOT_FOUND = ("NotFoundError",) * 3
RATE_LIMIT = ("RateLimitError",) * 3
INTERNAL = ("InternalServerError",) * 3
OVERLOADED = ("OverloadedError",) * 3
UNAVAILABLE = ("ServiceUnavailableError", "InternalServerError", "ServiceUnavailableError")
IN_STREAM = ("APIStatusError", "APIStatusError", "APIError")

CASES = (
    Case("unknown token", unknown_token, 401, AUTHENTICATION, "invalid x-api-key"),
    Case("revoked token", revoked_token, 401, AUTHENTICATION, "it was revoked"),
    Case(
        "spent budget",
        spent_budget,
        402,
        PAYMENT,
        r"Monthly usage limit reached \(\d[\d,]* of 100 credits\)\. Resets on",
        plan={"credits_per_month": 100},
    ),
    Case(
        "request too large for what is left",
        asking(max_tokens=15_000),
        402,
        PAYMENT,
        "for a request of this size",
        plan={"credits_per_month": 100},
    ),
    Case("disabled user", disabled_user, 403, ("PermissionDeniedError",) * 3, "disabled"),
    Case("model not in the plan", nothing, 404, NOT_FOUND, "not included", plan={"models": ("no-*",)}),
    Case("unknown path", asking(path="/v1/files"), 404, NOT_FOUND, "/v1/files", do="get"),
    Case(
        "body too long",
        asking(system="x" * 5_000),
        413,
        ("ContentTooLargeError", "RequestTooLargeError", "ContentTooLargeError"),
        "longer than 4,000 bytes",
        env={"BODY_BYTES_MAX": "4000"},
    ),
    Case(
        "credits held by others",
        request_in_flight,
        429,
        RATE_LIMIT,
        "hold the rest of the credits",
        waits=(2.0, 2.0),
        plan={"credits_per_month": 152},
    ),
    Case(
        "requests per minute",
        minute_used_up,
        429,
        RATE_LIMIT,
        "1 requests per minute",
        waits=(OF_THE_MINUTE, OF_THE_MINUTE),
        plan={"requests_per_minute": 1},
    ),
    Case(
        "too many at once",
        request_in_flight,
        429,
        RATE_LIMIT,
        "Too many requests at once",
        waits=(1.0, 1.0),
        plan={"concurrent": 1},
    ),
    Case("vendor's rate limit", vendor_answers(fails(429)), 429, RATE_LIMIT, "rate limit", waits=(5.0, 5.0)),
    Case("vendor fails", vendor_answers(fails(500)), 500, INTERNAL, "Simulated error", waits=(ANY, ANY)),
    Case(
        "vendor unreachable",
        vendor_answers(drops()),
        502,
        INTERNAL,
        "Connection error: anthropic cannot be reached",
        waits=(1.0, 1.0),
    ),
    Case(
        "vendor refuses our account",
        vendor_answers(fails(401)),
        503,
        UNAVAILABLE,
        "operator has to act",
        waits=(30.0, 30.0),
    ),
    Case(
        "store in trouble",
        locked_store,
        503,
        UNAVAILABLE,
        "ledger is temporarily unavailable",
        waits=(2.0, 2.0),
        env={"STORE_BUSY_TIMEOUT_S": "0.2"},
    ),
    Case("restarting", draining, 503, UNAVAILABLE, "restarting", waits=(2.0, 2.0)),
    Case("vendor overloaded", vendor_answers(fails(529)), 529, OVERLOADED, "Simulated", waits=(ANY, ANY)),
    Case(
        "error inside the stream",
        vendor_answers(errors_after(6, text=TEXT)),
        None,
        IN_STREAM,
        "Overloaded",
        do="text_stream",
    ),
    Case(
        "vendor breaks off the stream",
        vendor_answers(breaks_after(6, text=TEXT)),
        None,
        IN_STREAM,
        "Connection error: anthropic broke off its answer",
        do="text_stream",
    ),
    Case(
        "connection refused",
        nobody_listens,
        None,
        ("APIConnectionError",) * 3,
        "Connection error",
        waits=(ANY, ANY),
        is_refused_connection=True,
    ),
)


@pytest.fixture(scope="module")
def sdks() -> Iterator[list[Sdk]]:
    with ExitStack() as stack:
        yield [stack.enter_context(running_sdk(name)) for name in SDKS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_an_answer_of_ours_is_felt_as_the_table_says(
    sdks: list[Sdk], tmp_path: Path, vendor: AnthropicSimulator, case: Case
) -> None:
    async with running_gateway(tmp_path, upstream=vendor.url, env=case.env, **case.plan) as gateway:
        for sdk, kind in zip(sdks, case.classes, strict=True):
            scene = Scene(gateway, vendor, sdk.name, await gateway.new_token(sdk.name), gateway.url)
            async with case.arrange(scene):
                served = len(gateway.lines)
                said = await sdk(case.do, scene.url, scene.token, pauses=False, **scene.more)
                lines = gateway.lines[served:]
            error = said.error(kind)
            assert error["classes"][0] == kind
            assert re.search(case.words, error["message"]), error["message"]
            assert len(lines) == case.requests
            if case.status is not None:
                assert error["status"] == case.status
                assert {line["status"] for line in lines} == {case.status}
            assert len(said.waits) == len(case.waits), said.waits
            for waited, expected in zip(said.waits, case.waits, strict=True):
                assert is_wait(waited, expected), said.waits


def test_the_document_has_the_same_table() -> None:
    assert "\n".join(map(row_of, CASES)) in DOCUMENT.read_text(encoding="utf-8")


def row_of(case: Case) -> str:
    """The case as a row of the document."""
    words = {ANY: "its own", OF_THE_MINUTE: "until the minute has room"}
    waits = ", ".join(words.get(wait, f"{wait:g} s") for wait in dict.fromkeys(case.waits)) or "-"
    kinds = dict.fromkeys(case.classes)
    cells = (case.name, case.status or "-", case.requests or "0 (3 tries)", waits, " / ".join(kinds))
    return f"| {' | '.join(map(str, cells))} |"


def is_wait(waited_s: float, expected_s: float) -> bool:
    if expected_s == ANY:
        return OWN_WAITS_S[0] <= waited_s <= OWN_WAITS_S[1]
    if expected_s == OF_THE_MINUTE:
        return 1 <= waited_s <= 61
    return waited_s == expected_s
