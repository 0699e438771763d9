"""Our own answers, as OpenAI's SDKs feel them: which exception, how many requests, after which waits, which words.

The table below stands in `docs/clients.md` for people; a test holds the two together.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from simulators.openai import (
    VENDOR_KEY,
    OpenAISimulator,
    ReportedUsage,
    breaks_after,
    drops,
    errors_after,
    fails,
    hangs,
    streams,
)
from tests.support.openai import chat_body
from tests.support.reactions import (
    ANY,
    OF_THE_MINUTE,
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
from tests.support.sdk import OPENAI, Sdk, running_sdk

SDKS = ("3-sync", "2-sync", "7-js")
IN_FLIGHT_TOKENS = 10_100
"""Some 60 credits of the drivers' model."""


@pytest.fixture
async def openai() -> AsyncIterator[Vendor]:
    async with OpenAISimulator() as simulator:
        yield Vendor(
            simulator,
            "chat",
            {"OPENAI_API_KEY": VENDOR_KEY, "OPENAI_UPSTREAM_URL": simulator.url},
            "/api/openai/v1/chat/completions",
            body=lambda tokens: chat_body(model="gpt-4o-mini", max_completion_tokens=tokens),
            more=lambda _, tokens: {"max_tokens": tokens},
            spends_all=streams(usage=ReportedUsage(prompt_tokens=10, completion_tokens=100_000)),
            hangs=hangs,
            in_flight_tokens=IN_FLIGHT_TOKENS,
        )


BAD_STATUS = ("APIStatusError", "APIStatusError", "APIError")
NOT_FOUND = ("NotFoundError",) * 3
RATE_LIMIT = ("RateLimitError",) * 3
INTERNAL = ("InternalServerError",) * 3
IN_STREAM = ("APIError",) * 3
LONG = [{"role": "user", "content": "x" * 5_000}]

CASES = (
    Case("unknown token", unknown_token, 401, ("AuthenticationError",) * 3, "invalid x-api-key"),
    Case("revoked token", revoked_token, 401, ("AuthenticationError",) * 3, "it was revoked"),
    Case("disabled user", disabled_user, 403, ("PermissionDeniedError",) * 3, "disabled"),
    Case("model not in the plan", nothing, 404, NOT_FOUND, "not included", plan={"models": ("no-*",)}),
    Case("unknown path", asking(path="/files"), 404, NOT_FOUND, "/files", do="get"),
    Case(
        "body too long",
        asking(messages=LONG),
        413,
        BAD_STATUS,
        "longer than 4,000 bytes",
        env={"BODY_BYTES_MAX": "4000"},
    ),
    Case(
        "spent budget",
        spent_budget,
        429,
        RATE_LIMIT,
        r"Monthly usage limit reached \(\d[\d,]* of 100 credits\)\. Resets on",
        plan={"credits_per_month": 100},
    ),
    Case(
        "request too large for what is left",
        asking_tokens(15_000),
        429,
        RATE_LIMIT,
        "for a request of this size",
        plan={"credits_per_month": 50},
    ),
    Case(
        "credits held by others",
        request_in_flight,
        429,
        RATE_LIMIT,
        "hold the rest of the credits",
        waits=(2.0, 2.0),
        plan={"credits_per_month": 61},
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
        "tokens per minute",
        minute_used_up,
        429,
        RATE_LIMIT,
        "1 tokens per minute",
        waits=(OF_THE_MINUTE, OF_THE_MINUTE),
        plan={"tokens_per_minute": 1},
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
        "Connection error: openai cannot be reached",
        waits=(1.0, 1.0),
    ),
    Case(
        "vendor refuses our account",
        vendor_answers(fails(401)),
        503,
        INTERNAL,
        "operator has to act",
        waits=(30.0, 30.0),
    ),
    Case(
        "store in trouble",
        locked_store,
        503,
        INTERNAL,
        "ledger is temporarily unavailable",
        waits=(2.0, 2.0),
        env={"STORE_BUSY_TIMEOUT_S": "0.2"},
    ),
    Case("restarting", draining, 503, INTERNAL, "restarting", waits=(2.0, 2.0)),
    Case(
        "vendor silent",
        vendor_answers(hangs()),
        504,
        INTERNAL,
        "did not answer in time",
        waits=(ANY, ANY),
        env={"FIRST_BYTE_TIMEOUT_S": "0.5"},
    ),
    Case(
        "error inside the stream",
        vendor_answers(errors_after(6, text=TEXT)),
        None,
        IN_STREAM,
        "Overloaded",
        do="chat_chunks",
    ),
    Case(
        "vendor breaks off the stream",
        vendor_answers(breaks_after(6, text=TEXT)),
        None,
        IN_STREAM,
        "Connection error: openai broke off its answer",
        do="chat_chunks",
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
        yield [stack.enter_context(running_sdk(name, OPENAI)) for name in SDKS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_an_answer_of_ours_is_felt_as_the_table_says(
    sdks: list[Sdk], tmp_path: Path, openai: Vendor, case: Case
) -> None:
    await assert_felt(case, sdks, tmp_path, openai)


def test_the_document_has_the_same_table() -> None:
    assert_documented(CASES)
