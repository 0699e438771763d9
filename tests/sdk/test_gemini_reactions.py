"""Our own answers, as Google's SDKs feel them: which exception, how many requests, which words. They try nothing again.

The table below stands in `docs/clients.md` for people; a test holds the two together.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from simulators.gemini import (
    VENDOR_KEY,
    GeminiSimulator,
    ReportedUsage,
    breaks_after,
    drops,
    errors_after,
    fails,
    hangs,
    streams,
)
from tests.support.reactions import (
    TEXT,
    Case,
    Vendor,
    asking,
    asking_tokens,
    assert_documented,
    assert_felt,
    disabled_user,
    draining,
    locked_store,
    minute_used_up,
    nobody_listens,
    nothing,
    request_in_flight,
    revoked_token,
    spent_budget,
    unknown_token,
    vendor_answers,
)
from tests.support.sdk import GEMINI, Sdk, running_sdk

SDKS = ("3-sync", "2-js")
IN_FLIGHT_TOKENS = 10_000
"""Some 250 credits of the drivers' model."""


def body(tokens: int) -> dict[str, Any]:
    contents = [{"role": "user", "parts": [{"text": "Two colours, please."}]}]
    return {"contents": contents, "generationConfig": {"maxOutputTokens": tokens}}


def more(sdk: str, tokens: int) -> dict[str, Any]:
    return {"maxOutputTokens" if sdk.endswith("js") else "max_output_tokens": tokens}


@pytest.fixture
async def gemini() -> AsyncIterator[Vendor]:
    async with GeminiSimulator() as simulator:
        yield Vendor(
            simulator,
            "generate",
            {"GEMINI_API_KEY": VENDOR_KEY, "GEMINI_UPSTREAM_URL": simulator.url},
            "/api/gemini/v1beta/models/gemini-2.5-flash:generateContent",
            body=body,
            more=more,
            spends_all=streams(usage=ReportedUsage(input_tokens=10, output_tokens=100_000)),
            hangs=hangs,
            in_flight_tokens=IN_FLIGHT_TOKENS,
        )


CLIENT = ("ClientError", "ApiError")
SERVER = ("ServerError", "ApiError")

CASES = (
    Case("unknown token", unknown_token, 401, CLIENT, "invalid x-api-key"),
    Case("revoked token", revoked_token, 401, CLIENT, "it was revoked"),
    Case("disabled user", disabled_user, 403, CLIENT, "disabled"),
    Case("model not in the plan", nothing, 404, CLIENT, "not included", plan={"models": ("no-*",)}),
    Case(
        "body too long",
        asking(contents="x" * 5_000),
        413,
        CLIENT,
        "longer than 4,000 bytes",
        env={"BODY_BYTES_MAX": "4000"},
    ),
    Case(
        "spent budget",
        spent_budget,
        429,
        CLIENT,
        r"Monthly usage limit reached \(\d[\d,]* of 100 credits\)\. Resets on",
        plan={"credits_per_month": 100},
    ),
    Case(
        "request too large for what is left",
        asking_tokens(15_000),
        429,
        CLIENT,
        "for a request of this size",
        plan={"credits_per_month": 100},
    ),
    Case(
        "credits held by others",
        request_in_flight,
        429,
        CLIENT,
        "hold the rest of the credits",
        plan={"credits_per_month": 251},
    ),
    Case(
        "requests per minute",
        minute_used_up,
        429,
        CLIENT,
        "1 requests per minute",
        plan={"requests_per_minute": 1},
    ),
    Case(
        "tokens per minute",
        minute_used_up,
        429,
        CLIENT,
        "1 tokens per minute",
        plan={"tokens_per_minute": 1},
    ),
    Case(
        "too many at once",
        request_in_flight,
        429,
        CLIENT,
        "Too many requests at once",
        plan={"concurrent": 1},
    ),
    Case("vendor's rate limit", vendor_answers(fails(429)), 429, CLIENT, "rate limit"),
    Case("vendor fails", vendor_answers(fails(500)), 500, SERVER, "Simulated error"),
    Case(
        "vendor unreachable",
        vendor_answers(drops()),
        502,
        SERVER,
        "Connection error: gemini cannot be reached",
    ),
    Case("vendor refuses our account", vendor_answers(fails(401)), 503, SERVER, "operator has to act"),
    Case(
        "store in trouble",
        locked_store,
        503,
        SERVER,
        "ledger is temporarily unavailable",
        env={"STORE_BUSY_TIMEOUT_S": "0.2"},
    ),
    Case("restarting", draining, 503, SERVER, "restarting"),
    Case("vendor overloaded", vendor_answers(fails(503)), 503, SERVER, "Simulated error"),
    Case(
        "vendor silent",
        vendor_answers(hangs()),
        504,
        SERVER,
        "did not answer in time",
        env={"FIRST_BYTE_TIMEOUT_S": "0.5"},
    ),
    Case(
        "error as a stream's first word",
        vendor_answers(errors_after(0, text=TEXT)),
        None,
        SERVER,
        "Overloaded",
        do="stream",
    ),
    Case(
        "vendor breaks off the stream",
        vendor_answers(breaks_after(3, text=TEXT)),
        None,
        ("ServerError", "TypeError"),
        "Connection error: gemini broke off its answer|terminated",
        do="stream",
    ),
    Case(
        "connection refused",
        nobody_listens,
        None,
        ("ConnectError", "TypeError"),
        "refused|fetch failed",
        is_refused_connection=True,
    ),
)


@pytest.fixture(scope="module")
def sdks() -> Iterator[list[Sdk]]:
    with ExitStack() as stack:
        yield [stack.enter_context(running_sdk(name, GEMINI)) for name in SDKS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_an_answer_of_ours_is_felt_as_the_table_says(
    sdks: list[Sdk], tmp_path: Path, gemini: Vendor, case: Case
) -> None:
    await assert_felt(case, sdks, tmp_path, gemini)


def test_the_document_has_the_same_table() -> None:
    assert_documented(CASES)
