"""Our own answers, as AgentMail's SDK of JavaScript feels them: which exception, how many requests, after which waits.

The table below stands in `docs/clients.md` for people; a test holds the two together.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from simulators.agentmail import PLAIN, AgentMailSimulator, drops, fails, hangs
from tests.support.agentmail import MOUNT, variables
from tests.support.reactions import (
    ANY,
    OF_THE_MINUTE,
    Arrange,
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
    request_in_flight,
    revoked_token,
    spent_budget,
    unknown_token,
    vendor_answers,
)
from tests.support.sdk import AGENTMAIL, Sdk, running_sdk

INBOX = "me@agentmail.to"
SOMEBODYS = "theirs@agentmail.to"
MAIL_CREDITS = 20
ANY_ERROR = ("AgentMailError",)


@pytest.fixture
async def agentmail() -> AsyncIterator[Vendor]:
    async with AgentMailSimulator() as simulator:
        yield Vendor(
            simulator,
            "send",
            variables(simulator),
            f"{MOUNT}/v0/inboxes/{INBOX}/messages/send",
            body=lambda _: {"to": "ann@x.y", "text": "Hi"},
            more=lambda _, tokens: {},
            spends_all=PLAIN,
            hangs=hangs,
            in_flight_tokens=0,
        )


def with_inbox(arrange: Arrange) -> Arrange:
    """The same state, with an inbox of the user's to send from."""

    @asynccontextmanager
    async def arranged(scene: Scene) -> AsyncIterator[None]:
        headers = {"authorization": f"Bearer {scene.token}"}
        async with httpx.AsyncClient(base_url=scene.gateway.url, headers=headers, trust_env=False) as client:
            answer = await client.post(f"{MOUNT}/v0/inboxes", json={"username": INBOX.partition("@")[0]})
        assert answer.json()["inbox_id"] == INBOX
        async with arrange(scene):
            if "method" not in scene.more:
                scene.more = {"inbox": INBOX, **scene.more}
            yield

    return arranged


CASES = (
    Case("unknown token", unknown_token, 401, ANY_ERROR, "invalid x-api-key"),
    Case("revoked token", revoked_token, 401, ANY_ERROR, "it was revoked"),
    Case(
        "spent budget",
        spent_budget,
        402,
        ANY_ERROR,
        rf"Monthly usage limit reached \({MAIL_CREDITS} of {MAIL_CREDITS} credits\)\. Resets on",
        plan={"credits_per_month": MAIL_CREDITS},
    ),
    Case(
        "more recipients than is left for",
        asking(to=["ann@x.y", "bob@x.y"]),
        402,
        ANY_ERROR,
        "for a request of this size",
        plan={"credits_per_month": MAIL_CREDITS},
    ),
    Case("e-mails of the day", minute_used_up, 402, ANY_ERROR, "emails", plan={"emails": 1}),
    Case("disabled user", disabled_user, 403, ("MessageRejectedError",), "disabled"),
    Case("another user's inbox", asking(inbox=SOMEBODYS), 404, ("NotFoundError",), "Not found"),
    Case("unknown path", asking(method="domains.list"), 404, ANY_ERROR, "/v0/domains", do="call"),
    Case(
        "body too long",
        asking(text="x" * 5_000),
        413,
        ANY_ERROR,
        "longer than 4,000 bytes",
        env={"BODY_BYTES_MAX": "4000"},
    ),
    Case(
        "credits held by others",
        request_in_flight,
        429,
        ANY_ERROR,
        "hold the rest of the credits",
        waits=(2.0, 2.0),
        plan={"credits_per_month": MAIL_CREDITS},
    ),
    Case(
        "requests per minute",
        minute_used_up,
        429,
        ANY_ERROR,
        "2 requests per minute",
        waits=(OF_THE_MINUTE, OF_THE_MINUTE),
        plan={"requests_per_minute": 2},
    ),
    Case(
        "too many at once",
        request_in_flight,
        429,
        ANY_ERROR,
        "Too many requests at once",
        waits=(1.0, 1.0),
        plan={"concurrent": 1},
    ),
    Case("vendor's rate limit", vendor_answers(fails(429)), 429, ANY_ERROR, "rate limit", waits=(1.0, 1.0)),
    Case("vendor fails", vendor_answers(fails(500)), 500, ANY_ERROR, "The vendor", waits=(ANY, ANY)),
    Case(
        "vendor unreachable",
        vendor_answers(drops(), drops()),
        502,
        ANY_ERROR,
        "agentmail cannot be reached",
        waits=(1.0, 1.0),
    ),
    Case(
        "vendor refuses our account",
        vendor_answers(fails(401)),
        503,
        ANY_ERROR,
        "operator has to act",
        waits=(30.0, 30.0),
    ),
    Case(
        "store in trouble",
        locked_store,
        503,
        ANY_ERROR,
        "ledger is temporarily unavailable",
        waits=(2.0, 2.0),
        env={"STORE_BUSY_TIMEOUT_S": "0.2"},
    ),
    Case("restarting", draining, 503, ANY_ERROR, "restarting", waits=(2.0, 2.0)),
    Case(
        "vendor silent",
        vendor_answers(hangs(), hangs()),
        504,
        ANY_ERROR,
        "did not answer in time",
        waits=(ANY, ANY),
        env={"FIRST_BYTE_TIMEOUT_S": "0.5"},
    ),
    Case("connection refused", nobody_listens, None, ANY_ERROR, "fetch failed", is_refused_connection=True),
)


@pytest.fixture(scope="module")
def sdk() -> Iterator[Sdk]:
    with running_sdk("0-js", AGENTMAIL) as running:
        yield running


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_an_answer_of_ours_is_felt_as_the_table_says(sdk, tmp_path, agentmail, case) -> None:
    await assert_felt(replace(case, arrange=with_inbox(case.arrange)), [sdk], tmp_path, agentmail)


def test_the_document_has_the_same_table() -> None:
    assert_documented(CASES)
