"""How SDKs react to each answer of ours: states of the proxy, one line of a table for each, and what the SDKs did.

A vendor's own tests say which SDKs and which lines; `docs/clients.md` holds the same tables for people.
"""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from metering.tasks import spawn
from simulators.behaviour import Behaviour
from simulators.script import Gate
from simulators.vendor import VendorSimulator
from tests.support.gateway import DatedClock, Gateway, running_gateway
from tests.support.sdk import Sdk

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients.md"
TEXT = "A robin, I should say, or a wren."
ANY = -1.0
"""A wait of the SDK's own choice: half a second or one, growing, with jitter."""
OWN_WAITS_S = (0.25, 2.25)
OF_THE_MINUTE = -2.0
"""The Retry-After of the minute's rate: until the window has room again."""


@dataclass(frozen=True)
class Vendor:
    """What the states need of one vendor. `call`: of the driver, an answer in one piece. `path`: of a plain request, whose body allows so many tokens; `more`: how
    the SDK of that name is told the same. `spends_all`: an answer that costs more than a plan of 100 credits has.
    `in_flight_tokens`: of the request in flight."""

    simulator: VendorSimulator[Any, Any]
    call: str
    environment: dict[str, str | None]
    path: str
    body: Callable[[int], dict[str, Any]]
    more: Callable[[str, int], dict[str, Any]]
    spends_all: Behaviour
    hangs: Callable[..., Behaviour]
    in_flight_tokens: int
    clock: DatedClock | None = None
    """What the proxy reads; None: the machine's."""


@dataclass
class Scene:
    """A running proxy before a vendor, and the token that the SDK will use."""

    gateway: Gateway
    vendor: Vendor
    sdk: str
    user_id: str
    token: str
    url: str
    more: dict[str, Any] = field(default_factory=dict)
    """Arguments of the SDK's call."""


Arrange = Callable[[Scene], Any]
"""An async context manager that brings the proxy into the state in which it answers so."""


@dataclass(frozen=True)
class Case:
    """One line of the table. `classes`: the exception's, by SDK."""

    name: str
    arrange: Arrange
    status: int | None
    classes: tuple[str, ...]
    words: str
    """A regular expression that the exception's text contains."""
    waits: tuple[float, ...] = ()
    """Before each retry, in seconds. No retries: asked once."""
    do: str | None = None
    """What the driver is asked to do; None: the vendor's usual call."""
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
        scene.vendor.simulator.next(*behaviours * 3)
        yield

    return arrange


def asking(**more) -> Arrange:
    @asynccontextmanager
    async def arrange(scene: Scene) -> AsyncIterator[None]:
        scene.more = more
        yield

    return arrange


def asking_tokens(tokens: int) -> Arrange:
    @asynccontextmanager
    async def arrange(scene: Scene) -> AsyncIterator[None]:
        scene.more = scene.vendor.more(scene.sdk, tokens)
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
    scene.vendor.simulator.next(scene.vendor.spends_all)
    assert await plain_request(scene)
    yield


@asynccontextmanager
async def request_in_flight(scene: Scene) -> AsyncIterator[None]:
    """Holds the only slot, or most of the credits."""
    gate = Gate()
    scene.vendor.simulator.next(scene.vendor.hangs(gate=gate))
    other = spawn(plain_request(scene, scene.vendor.in_flight_tokens), name="the request in flight")
    await gate.reached()
    yield
    gate.open()
    assert await other


@asynccontextmanager
async def minute_used_up(scene: Scene) -> AsyncIterator[None]:
    assert await plain_request(scene)
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


async def plain_request(scene: Scene, tokens: int = 100) -> bool:
    """Whether it succeeded."""
    headers = {"authorization": f"Bearer {scene.token}"}
    async with httpx.AsyncClient(base_url=scene.gateway.url, timeout=30, trust_env=False) as client:
        body = scene.vendor.body(tokens)
        return (await client.post(scene.vendor.path, json=body, headers=headers)).is_success


async def assert_felt(case: Case, sdks: list[Sdk], folder: Path, vendor: Vendor) -> None:
    """Bring the proxy into the case's state for each SDK in turn, and let it ask."""
    env = {**vendor.environment, **case.env}
    clock = vendor.clock or DatedClock(
        2026, 11, 20
    )  # its minute is whole: one that ended meanwhile would let more in
    async with running_gateway(folder, env=env, clock=clock, **case.plan) as gateway:
        for sdk, kind in zip(sdks, case.classes, strict=True):
            token = await gateway.new_token(sdk.name)
            scene = Scene(gateway, vendor, sdk.name, sdk.name, token, gateway.url)
            async with case.arrange(scene):
                served = len(gateway.lines)
                said = await sdk(case.do or vendor.call, scene.url, scene.token, pauses=False, **scene.more)
                await gateway.until(lambda served=served: len(gateway.lines) - served >= case.requests)
                lines = gateway.lines[served:]
            error = said.error(kind)
            assert error["classes"][0] == kind, error["classes"]
            assert re.search(case.words, error["message"]), error["message"]
            assert len(lines) == case.requests
            if case.status is not None:
                assert case.status in (error["status"], error.get("code"))
                assert {line["status"] for line in lines} == {case.status}
            assert len(said.waits) == len(case.waits), said.waits
            for waited, expected in zip(said.waits, case.waits, strict=True):
                assert is_wait(waited, expected), said.waits


def assert_documented(cases: tuple[Case, ...]) -> None:
    """The document has these rows, together and in this order."""
    assert "\n".join(map(row_of, cases)) in DOCUMENT.read_text(encoding="utf-8")


def row_of(case: Case) -> str:
    """The case as a row of the document."""
    words = {ANY: "its own", OF_THE_MINUTE: "until the minute has room"}
    waits = ", ".join(words.get(wait, f"{wait:g} s") for wait in dict.fromkeys(case.waits)) or "-"
    kinds = dict.fromkeys(case.classes)
    tries = len(case.waits) + 1
    requests = case.requests or (f"0 ({tries} tries)" if case.waits else 0)
    cells = (case.name, case.status or "-", requests, waits, " / ".join(kinds))
    return f"| {' | '.join(map(str, cells))} |"


def is_wait(waited_s: float, expected_s: float) -> bool:
    if expected_s == ANY:
        return OWN_WAITS_S[0] <= waited_s <= OWN_WAITS_S[1]
    if expected_s == OF_THE_MINUTE:
        return 1 <= waited_s <= 61
    return waited_s == expected_s
