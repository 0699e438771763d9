"""Our own answers, as Browserbase's SDKs feel them: which exception, how many requests, after which waits.

The table below stands in `docs/clients.md` for people; a test holds the two together.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from simulators.browserbase import PLAIN, BrowserbaseSimulator, drops, fails, hangs
from tests.support.browserbase import MOUNT, variables
from tests.support.gateway import DatedClock
from tests.support.reactions import (
    ANY,
    OF_THE_MINUTE,
    Case,
    Scene,
    Vendor,
    asking,
    assert_documented,
    assert_felt,
    disabled_user,
    draining,
    locked_store,
    minute_used_up,
    nobody_listens,
    plain_request,
    revoked_token,
    unknown_token,
    vendor_answers,
)
from tests.support.sdk import BROWSERBASE, Sdk, running_sdk

SDKS = ("1-sync", "2-js")
SOMEBODYS = "0b8e5a4c-3f62-4d0e-9a37-5f1f6a0c7d11"
MINUTE_CREDITS = 20
"""The shortest session; a slice is two of them."""


@pytest.fixture
async def browserbase() -> AsyncIterator[Vendor]:
    clock = DatedClock(2026, 11, 20)
    async with BrowserbaseSimulator(clock=clock) as simulator:
        yield Vendor(
            simulator,
            "create",
            variables(simulator),
            f"{MOUNT}/v1/sessions",
            body=lambda _: {"keepAlive": True},
            more=lambda _, tokens: {},
            spends_all=PLAIN,
            hangs=hangs,
            in_flight_tokens=0,
            clock=clock,
        )


@asynccontextmanager
async def session_running(scene: Scene) -> AsyncIterator[None]:
    assert await plain_request(scene)
    yield


@asynccontextmanager
async def session_booked(scene: Scene) -> AsyncIterator[None]:
    """One of a minute, which has ended."""
    assert await plain_request(scene)
    simulator = scene.vendor.simulator
    simulator.project.release(simulator.sessions[-1])
    clock, deferrals = scene.vendor.clock, scene.gateway.service.engine._deferrals
    async with asyncio.timeout(60):
        while await scene.gateway.service.store.readers.row("SELECT 1 FROM deferred_work"):
            clock.advance(15)
            await deferrals.poll_due()
    yield


def each(python: str, javascript: str | None = None) -> tuple[str, ...]:
    return (python, javascript or python)


CASES = (
    Case(
        "timeout out of range",
        asking(api_timeout=30, keep_alive=True),
        400,
        each("BadRequestError"),
        "from 60 to 21,600",
    ),
    Case("unknown token", unknown_token, 401, each("AuthenticationError"), "invalid x-api-key"),
    Case("revoked token", revoked_token, 401, each("AuthenticationError"), "it was revoked"),
    Case(
        "spent budget",
        session_booked,
        402,
        each("APIStatusError", "APIError"),
        r"Monthly usage limit reached \(20 of 20 credits\)\. Resets on",
        plan={"credits_per_month": MINUTE_CREDITS},
    ),
    Case(
        "browser minutes used up",
        session_booked,
        402,
        each("APIStatusError", "APIError"),
        r"\(1 of 1 browser minutes\)",
        plan={"browser_minutes": 1},
    ),
    Case("disabled user", disabled_user, 403, each("PermissionDeniedError"), "disabled"),
    Case(
        "another user's session",
        asking(of=SOMEBODYS),
        404,
        each("NotFoundError"),
        "Not found",
        do="retrieve",
    ),
    Case("unknown path", asking(), 404, each("NotFoundError"), "/v1/projects", do="projects"),
    Case(
        "body too long",
        asking(user_metadata={"k": "x" * 5_000}),
        413,
        each("APIStatusError", "APIError"),
        "longer than 4,000 bytes",
        env={"BODY_BYTES_MAX": "4000"},
    ),
    Case(
        "too many browsers at once",
        session_running,
        429,
        each("RateLimitError"),
        "Too many browser sessions at once: 1 may run",
        plan={"browsers": 1},
    ),
    Case(
        "credits held by others",
        session_running,
        429,
        each("RateLimitError"),
        "hold the rest of the credits",
        waits=(2.0, 2.0),
        plan={"credits_per_month": 50},
    ),
    Case(
        "requests per minute",
        minute_used_up,
        429,
        each("RateLimitError"),
        "1 requests? per minute",
        waits=(OF_THE_MINUTE, OF_THE_MINUTE),
        plan={"requests_per_minute": 1},
    ),
    Case(
        "vendor's rate limit",
        vendor_answers(fails(429)),
        429,
        each("RateLimitError"),
        "rate limit|busy",
        waits=(1.0, 1.0),
    ),
    Case(
        "vendor fails",
        vendor_answers(fails(500)),
        500,
        each("InternalServerError"),
        "The vendor",
        waits=(ANY, ANY),
    ),
    Case(
        "vendor unreachable",
        vendor_answers(drops()),
        502,
        each("InternalServerError"),
        "browserbase cannot be reached",
        waits=(1.0, 1.0),
    ),
    Case(
        "vendor refuses our account",
        vendor_answers(fails(401)),
        503,
        each("InternalServerError"),
        "operator has to act",
        waits=(30.0, 30.0),
    ),
    Case(
        "store in trouble",
        locked_store,
        503,
        each("InternalServerError"),
        "ledger is temporarily unavailable",
        waits=(2.0, 2.0),
        env={"STORE_BUSY_TIMEOUT_S": "0.2"},
    ),
    Case("restarting", draining, 503, each("InternalServerError"), "restarting", waits=(2.0, 2.0)),
    Case(
        "vendor silent",
        vendor_answers(hangs()),
        504,
        each("InternalServerError"),
        "did not answer in time",
        waits=(ANY, ANY),
        env={"FIRST_BYTE_TIMEOUT_S": "0.5"},
    ),
    Case(
        "connection refused",
        nobody_listens,
        None,
        each("APIConnectionError"),
        "Connection error",
        waits=(ANY, ANY),
        is_refused_connection=True,
    ),
)


@pytest.fixture(scope="module")
def sdks() -> Iterator[list[Sdk]]:
    with ExitStack() as stack:
        yield [stack.enter_context(running_sdk(name, BROWSERBASE)) for name in SDKS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_an_answer_of_ours_is_felt_as_the_table_says(sdks, tmp_path, browserbase, case) -> None:
    await assert_felt(case, sdks, tmp_path, browserbase)


def test_the_document_has_the_same_table() -> None:
    assert_documented(CASES)
