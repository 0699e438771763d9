"""Our own endpoints, over ASGI: health, readiness, metrics, and what a token's holder may ask."""

import asyncio
import csv
import io
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

import routes.usage
from metering.admission import Admission, Caller
from metering.clock import ManualClock
from metering.errors import Reason, Refused
from metering.grants import grant
from metering.ledger import (
    MONEY,
    NO_PERIOD,
    OPEN_REQUESTS,
    REQUESTS,
    SPEND,
    Hold,
    Intent,
    Ledger,
    Outcome,
    Reservation,
    Settlement,
)
from metering.plans import load_plans
from metering.prices import Priced, PricedLine, PriceTable
from metering.rate_limits import RateLimits
from metering.rate_state import RateState
from metering.reports import usage_of
from metering.store.database import Database
from metering.store.migrate import migrate
from metering.store.readers import Readers
from metering.store.store import open_store
from metering.store.writer import Step
from metering.users import Directory
from provisioning.machines import Machines
from proxy.auth import Authenticator
from proxy.errors import BUSY_RETRY_AFTER_MAX_S, PLAIN_JSON, RETRY_CANNOT_HELP, STATUS
from proxy.telemetry import Telemetry
from routes.callers import Callers
from routes.own import OwnContext, own_app
from routes.usage import REPORTS, REPORTS_AT_ONCE_MAX, REPORTS_OF_A_USER_MAX, Reports
from tests.support.limits import assert_limits, policies_of, standing

NOON = 1_795_176_000_000
"""2026-11-20T12:00:00Z."""


@dataclass
class Own:
    """The endpoints of one worker and what stands behind them."""

    context: OwnContext
    clock: ManualClock
    directory: Directory
    ledger: Ledger
    gateway_token: str
    reasons: list[str]
    """What keeps the worker from being ready."""

    async def get(self, path: str, *, method: str = "GET", port: int = 80, **headers: str) -> httpx.Response:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        transport = httpx.ASGITransport(own_app(self.context), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://own:{port}") as client:
            return await client.request(method, path, headers=headers)

    async def ask(self, path: str) -> httpx.Response:
        return await self.get(path, authorization=f"Bearer {self.gateway_token}")

    async def reserve(self, amount: int) -> Reservation:
        holds = [
            Hold("user:alice", MONEY, "2026-11", amount, 10**9),
            Hold("user:alice", OPEN_REQUESTS, NO_PERIOD, 1, 5),
        ]
        intent = Intent(f"req_{amount}", "alice", "tok", "anthropic", "POST /v1/messages", "claude-x", holds)
        reservation = await self.ledger.reserve(intent)
        assert isinstance(reservation, Reservation)
        return reservation

    async def book(self, cost_nanousd: int) -> None:
        line = PricedLine("claude-x", {"input_tokens": 5}, {}, {"input_tokens": 1})
        settlement = Settlement(Outcome.COMPLETED, Priced(cost_nanousd, (line,), ()), is_reported=True)
        await self.ledger.settle(await self.reserve(cost_nanousd + 1), settlement)


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Own]:
    clock = ManualClock(NOON)
    database = Database(tmp_path / "store.db")
    migrate(database, clock)
    async with open_store(database) as store:
        directory = Directory(store, clock)
        await directory.add_user("alice", plan="free")
        gateway_token, _ = await directory.create_token("alice")
        authenticator = Authenticator(
            directory, load_plans(), clock, cache_max=10, poll_s=60.0, stale_after_s=60.0
        )
        await authenticator.start()
        reasons: list[str] = []

        async def not_ready() -> str | None:
            return reasons[0] if reasons else None

        context = OwnContext(
            authenticator=authenticator,
            store=store,
            rate_limits=(rate_limits := RateLimits(clock)),
            standing=Admission(Ledger(store, clock, "wrk_1"), rate_limits, clock).standing,
            clock=clock,
            telemetry=Telemetry(PriceTable.load()),
            not_ready=not_ready,
            bytes_per_output_token=3,
            metrics_token="",
            reported=lambda _: (),
            reported_of=lambda *_: Step("SELECT 1"),
            arrived=lambda _: not_ready(),
            machines=Machines(store, clock, app_prefix="u-", gateway_url="https://{app}.example"),
        )
        yield Own(context, clock, directory, Ledger(store, clock, "wrk_1"), gateway_token, reasons)


# --- machines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/health"])
async def test_health_is_ok(own: Own, path: str) -> None:
    answer = await own.get(path)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_health_answers_head_without_a_body(own: Own) -> None:
    answer = await own.get("/health", method="HEAD")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_a_ready_worker_says_so(own: Own) -> None:
    answer = await own.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


async def test_a_worker_that_is_not_ready_says_why_and_is_still_healthy(own: Own) -> None:
    own.reasons.append("draining")
    answer = await own.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"status": "not ready", "reason": "draining"}
    assert int(answer.headers["retry-after"]) > 0
    assert (await own.get("/health")).status_code == 200


async def test_metrics_are_open_without_a_metrics_token(own: Own) -> None:
    own.context.telemetry.account_alarm("anthropic", 401)
    answer = await own.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'automna_upstream_account_alarms_total{status="401",surface="anthropic"} 1.0' in answer.text


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "secret"}, 401),
        ({"x_api_key": "secret"}, 401),
        ({"authorization": "Bearer secret"}, 200),
        ({"authorization": "bearer secret"}, 200),
    ],
)
async def test_metrics_want_the_metrics_token_where_there_is_one(
    own: Own, given: dict[str, str], status: int
) -> None:
    own.context = replace(own.context, metrics_token="secret")
    answer = await own.get("/metrics", **given)
    assert answer.status_code == status
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("token", "given", "port", "status"),
    [
        ("", {}, 9091, 200),
        ("", {}, 80, 401),
        ("", {"authorization": "Bearer "}, 80, 401),
        ("", {"host": "proxy:9091"}, 80, 401),
        ("secret", {}, 9091, 200),
        ("secret", {}, 80, 401),
        ("secret", {"authorization": "Bearer secret"}, 80, 200),
    ],
)
async def test_metrics_are_open_on_their_own_port_and_there_only(
    own: Own, token: str, given: dict[str, str], port: int, status: int
) -> None:
    own.context = replace(own.context, metrics_token=token, metrics_port=9091)
    assert (await own.get("/metrics", port=port, **given)).status_code == status


async def test_metrics_name_no_user(own: Own) -> None:
    await own.book(100)
    await own.ask("/api/user/usage")
    assert "alice" not in (await own.get("/metrics")).text


@pytest.mark.parametrize("path", ["/nothing", "/health/", "/api/user", "/api/user/usage/x", "/metrics/"])
async def test_an_unknown_path_is_404(own: Own, path: str) -> None:
    answer = await own.get(path)
    assert answer.status_code == 404
    assert set(answer.json()) == {"error", "request_id"}
    assert answer.json()["request_id"] == answer.headers["x-automna-request-id"]


@pytest.mark.parametrize("path", ["/health", "/metrics", "/api/user/usage"])
async def test_another_method_is_405_and_names_those_there_are(own: Own, path: str) -> None:
    answer = await own.get(path, method="POST")
    assert answer.status_code == 405
    assert {method.strip() for method in answer.headers["allow"].split(",")} == {"GET", "HEAD"}
    assert set(answer.json()) == {"error", "request_id"}
    assert answer.json()["request_id"] == answer.headers["x-automna-request-id"]


async def test_a_defect_of_ours_is_a_plain_500(own: Own) -> None:
    async def broken() -> str | None:
        raise RuntimeError("a secret")

    own.context = replace(own.context, not_ready=broken)
    answer = await own.get("/readyz")
    assert (answer.status_code, answer.json()["error"]) == (500, "The proxy failed.")


# --- a token's holder -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("authorization", "Bearer {}"),
        ("authorization", "bearer {}"),
        ("authorization", "{}"),
        ("x_api_key", "{}"),
    ],
)
async def test_the_gateway_token_is_taken_from_each_of_its_places(own: Own, header: str, value: str) -> None:
    answer = await own.get("/api/user/limits", **{header: value.format(own.gateway_token)})
    assert (answer.status_code, answer.json()["user"]) == (200, "alice")
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/api/user/usage", "/api/user/limits", "/api/user/requests"])
@pytest.mark.parametrize("headers", [{}, {"x_api_key": "amp_wrong"}, {"authorization": "Basic YQ=="}])
async def test_without_a_good_token_it_is_401_in_plain_json(
    own: Own, path: str, headers: dict[str, str]
) -> None:
    answer = await own.get(path, **headers)
    assert answer.status_code == 401
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["request_id"] == answer.headers["x-automna-request-id"]
    assert answer.json()["error"]


@pytest.mark.parametrize("other", ["amp_other", "Bearer amp_other"])
async def test_two_different_tokens_are_refused(own: Own, other: str) -> None:
    answer = await own.get("/api/user/limits", authorization=f"Bearer {own.gateway_token}", x_api_key=other)
    assert answer.status_code == 401


async def test_a_disabled_user_is_403(own: Own) -> None:
    await own.directory.disable("alice")
    assert (await own.ask("/api/user/usage")).status_code == 403


async def test_usage_is_the_ledgers(own: Own) -> None:
    await own.book(711_001)
    document = (await own.ask("/api/user/usage")).json()
    assert document["user"] == "alice"
    assert (document["from"], document["to"]) == ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z")
    assert document["total"]["cost_nanousd"] == 711_001
    assert document["total"]["input_tokens"] == 5
    assert [group["model"] for group in document["groups"]] == ["claude-x"]


async def test_usage_takes_a_period_and_a_grouping(own: Own) -> None:
    await own.book(5)
    document = (await own.ask("/api/user/usage?from=2026-11-20&to=2026-11-21T00:00:00%2B00:00&by=day")).json()
    assert [(group["day"], group["cost_nanousd"]) for group in document["groups"]] == [("2026-11-20", 5)]
    document = (await own.ask("/api/user/usage?to=2026-11-20&by=surface")).json()
    assert document["groups"] == []


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("by=hour", "by: given 'hour', expected up to 3 of day, month, surface, operation, model, token"),
        ("by=day,day", "by: given 'day,day', expected up to 3 of"),
        ("form=2026-11-01", "query parameter: given 'form', expected one of from, to, by, format"),
        ("by=day&by=model", "query parameter: given by twice, expected it once"),
        ("format=xml", "format: given 'xml', expected json or csv"),
        ("from=soon", "from: given 'soon', expected YYYY-MM-DD"),
        ("to=2026-02-30", "to: given '2026-02-30', expected YYYY-MM-DD"),
        ("from=2026-11-20&to=2026-11-20", "is not before"),
    ],
)
async def test_a_bad_question_is_400_and_says_what_is_expected(own: Own, query: str, expected: str) -> None:
    answer = await own.ask(f"/api/user/usage?{query}")
    assert answer.status_code == 400
    assert expected in answer.json()["error"]


async def test_limits_show_where_the_user_stands(own: Own) -> None:
    await own.book(150_000)
    await own.reserve(70_000)
    own.context.rate_limits.hit("user:alice", 5)
    own.context.rate_limits.tokens.charge("user:alice", 50_000, 200)
    document = (await own.ask("/api/user/limits")).json()
    assert document["plan"] == "free"
    assert document["meters"]["credits"] == {
        "unit": "credits",
        "period": "2026-11",
        "limit": 10_000,
        "used": 2,
        "held": 1,
        "left": 9_997,
        "limit_nanousd": 1_000_000_000,
        "used_nanousd": 150_000,
        "held_nanousd": 70_000,
        "left_nanousd": 999_780_000,
        "resets_at": "2026-12-01T00:00:00Z",
    }
    assert document["requests_per_minute"] == {
        "limit": 5,
        "used": 1,
        "held": 0,
        "left": 4,
        "remaining": 4,
        "resets_at": "2026-11-20T12:01:00Z",
    }
    assert document["concurrent_requests"] == {"limit": 2, "used": 0, "held": 1, "left": 1, "resets_at": None}
    assert document["meters"]["prepaid_credit"]["granted"] == 0
    assert document["overshoot"] == {"budget": "hard", "credits_at_most": 2}


async def test_limits_show_every_account_of_the_day_and_the_month(own: Own) -> None:
    holds = [
        Hold("user:alice", SPEND, "2026-11-20", 200_000, 500_000),
        Hold("user:alice", SPEND, "2026-11-19", 200_000, 500_000),
        Hold("user:alice", REQUESTS, "2026-11", 1, 30),
        Hold("user:bob", REQUESTS, "2026-11-20", 1, 30),
    ]
    intent = Intent("req_1", "alice", "tok", "anthropic", "POST /v1/messages", None, holds)
    assert isinstance(await own.ledger.reserve(intent), Reservation)
    meters = (await own.ask("/api/user/limits")).json()["meters"]
    assert list(meters) == [
        *("credits", "searches_per_month", "emails_per_day", "browser_seconds_per_month"),
        *("call_seconds_per_month", "requests_per_month", "credits_per_day", "prepaid_credit"),
    ]
    assert meters["searches_per_month"] == {
        "unit": "searches",
        "period": "2026-11",
        "limit": 100,
        "used": 0,
        "held": 0,
        "left": 100,
        "resets_at": "2026-12-01T00:00:00Z",
    }
    assert meters["requests_per_month"] == {
        "unit": "requests",
        "period": "2026-11",
        "limit": 30,
        "used": 0,
        "held": 1,
        "left": 29,
        "resets_at": "2026-12-01T00:00:00Z",
    }
    assert (meters["credits_per_day"]["left"], meters["credits_per_day"]["resets_at"]) == (
        3,
        "2026-11-21T00:00:00Z",
    )


async def test_limits_and_requests_take_no_parameter_that_they_do_not_know(own: Own) -> None:
    answer = await own.ask("/api/user/limits?by=day")
    assert (answer.status_code, answer.json()["error"]) == (400, "query parameter: given 'by', expected none")
    answer = await own.ask("/api/user/requests?from=2026-11-01")
    assert answer.status_code == 400
    assert (
        "given 'from', expected one of limit, before, surface, model, outcome, token"
        in answer.json()["error"]
    )


@pytest.mark.parametrize(
    ("query", "accept", "is_csv"),
    [
        ("?format=csv", "application/json", True),
        ("?format=json", "text/csv", False),
        ("", "text/csv", True),
        ("", "text/plain, Text/CSV;q=0.9, */*", True),
        ("", "text/csv, application/json", False),
        ("", "*/*", False),
        ("", "text/csv-schema", False),
    ],
)
async def test_usage_is_csv_where_that_is_asked_for(own: Own, query: str, accept: str, is_csv: bool) -> None:
    await own.book(711_001)
    answer = await own.get(
        f"/api/user/usage{query}", authorization=f"Bearer {own.gateway_token}", accept=accept
    )
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    if not is_csv:
        assert answer.json()["total"]["cost_nanousd"] == 711_001
        return
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert answer.headers["content-disposition"] == 'attachment; filename="usage_2026-11-01_2026-12-01.csv"'
    (line,) = csv.DictReader(io.StringIO(answer.text, newline=""), strict=True)
    assert (line["model"], line["cost_nanousd"], line["cost_usd"]) == ("claude-x", "711001", "0.000711001")


async def test_usage_by_several_things_adds_up(own: Own) -> None:
    for cost in (5, 7):
        await own.book(cost)
        own.clock.advance(86_400)
    for query in ("by=day,model", "by=month,token,operation", "by=surface,day"):
        document = (await own.ask(f"/api/user/usage?{query}")).json()
        assert document["by"] == query.removeprefix("by=")
        assert sum(group["cost_nanousd"] for group in document["groups"]) == 12
        assert document["total"]["cost_nanousd"] == 12


async def test_requests_are_read_page_by_page(own: Own) -> None:
    for cost in (5, 7, 9):
        await own.book(cost)
        own.clock.advance(1)
    await own.reserve(150_000)
    answer = await own.ask("/api/user/requests?limit=2")
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    assert [request["cost_nanousd"] for request in document["requests"]] == [9, 7]
    assert [(request["outcome"], request["held_credits"]) for request in document["running"]] == [
        ("running", 2)
    ]
    document = (await own.ask(f"/api/user/requests?limit=2&before={document['next']}")).json()
    assert [request["cost_nanousd"] for request in document["requests"]] == [5]
    assert (document["running"], document["next"]) == (None, None)


async def test_requests_can_be_narrowed(own: Own) -> None:
    await own.book(5)
    for query, count in (
        ("surface=anthropic&model=claude-x&outcome=completed&token=tok", 1),
        ("surface=openai", 0),
        ("model=claude-y", 0),
        ("outcome=timed_out", 0),
        ("token=tok_2", 0),
        ("outcome=running", 0),
    ):
        assert len((await own.ask(f"/api/user/requests?{query}")).json()["requests"]) == count, query


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("limit=201", "limit: given '201', expected a whole number from 1 to 200"),
        ("before=yesterday", "before: given 'yesterday', expected the `next` of a page before"),
        ("outcome=fine", "outcome: given 'fine', expected one of completed, "),
    ],
)
async def test_a_bad_question_about_requests_is_400(own: Own, query: str, expected: str) -> None:
    answer = await own.ask(f"/api/user/requests?{query}")
    assert answer.status_code == 400
    assert expected in answer.json()["error"]


async def test_a_report_of_too_many_rows_is_400(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    await own.book(5)
    monkeypatch.setattr(routes.usage, "usage_of", partial(usage_of, groups_max=0))
    answer = await own.ask("/api/user/usage?by=day")
    assert answer.status_code == 400
    assert "has more than 0 rows: expected a shorter period" in answer.json()["error"]


async def test_limits_show_prepaid_credit(own: Own) -> None:
    await grant(own.context.store, own.context.clock, "alice", 2_000_050_000, source="inv_1")
    await grant(own.context.store, own.context.clock, "alice", -1_000_000_000, source="refund_1")
    assert (await own.ask("/api/user/limits")).json()["meters"]["prepaid_credit"] == {
        "granted": 10_000,
        "spent": 0,
        "held": 0,
        "left": 10_000,
        "granted_nanousd": 1_000_050_000,
        "spent_nanousd": 0,
        "held_nanousd": 0,
        "left_nanousd": 1_000_050_000,
    }


async def test_a_turn_larger_than_the_minute_leaves_nothing_and_no_less(own: Own) -> None:
    own.context.rate_limits.tokens.charge("user:alice", 50_000, 80_000)
    document = (await own.ask("/api/user/limits")).json()
    assert document["tokens_per_minute"] == {
        "limit": 50_000,
        "used": 80_000,
        "held": 0,
        "left": 0,
        "remaining": 0,
        "resets_at": "2026-11-20T12:01:36Z",
    }


async def test_the_headers_say_where_the_caller_stands_and_how_often_one_may_look(own: Own) -> None:
    own.context.rate_limits.hit("user:alice", 5)
    own.context.rate_limits.tokens.charge("user:alice", 50_000, 25_000)
    for path, status in (("/api/user/limits", 200), ("/api/user/usage", 200), ("/api/user/usage?by=x", 400)):
        answer = await own.ask(path)
        assert answer.status_code == status
        limits = assert_limits(answer.headers)
        assert limits["requests"][0] == 4
        assert limits["tokens"] == (25_000, 30)
        assert policies_of(answer.headers)["reports"] == {"q": REPORTS.per_minute, "w": 60}
    assert limits["reports"][0] == REPORTS.per_minute - 3


@pytest.mark.parametrize("path", ["/api/user/limits", "/health", "/nothing"])
async def test_who_is_not_known_is_told_no_limits(own: Own, path: str) -> None:
    answer = await own.get(path)
    assert not {"ratelimit", "ratelimit-policy"} & set(answer.headers)


async def test_looking_does_not_use_up_the_plans_requests(own: Own) -> None:
    for _ in range(7):
        document = (await own.ask("/api/user/limits")).json()
    assert document["requests_per_minute"]["used"] == 0


async def test_looking_too_often_is_429_with_a_short_wait(own: Own) -> None:
    for _ in range(REPORTS.per_minute):
        assert (await own.ask("/api/user/limits")).status_code == 200
    answer = await own.ask("/api/user/limits")
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 61
    assert assert_limits(answer.headers)["reports"] == (0, int(answer.headers["retry-after"]))


async def test_a_store_that_cannot_be_read_is_503(own: Own, tmp_path: Path) -> None:
    await own.ask("/api/user/limits")  # the token is remembered from here on
    await own.context.store.writer.aclose()
    await own.context.store.readers.aclose()
    (tmp_path / "store.db").write_bytes(b"not a database at all, but long enough to be read as one" * 50)
    answer = await own.ask("/api/user/usage")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("users", "open_max"), [(1, REPORTS_OF_A_USER_MAX), (6, REPORTS_AT_ONCE_MAX)], ids=["one user", "many"]
)
async def test_a_report_keeps_its_turn_until_its_connection_is_closed(
    own: Own, monkeypatch: pytest.MonkeyPatch, users: int, open_max: int
) -> None:
    open_now, open_most = 0, 0
    another, aclose = Readers.another, Readers.aclose

    def opened(readers: Readers, **how: Any) -> Readers:
        nonlocal open_now, open_most
        open_now += 1
        open_most = max(open_most, open_now)
        return another(readers, **how)

    async def closes_slowly(readers: Readers) -> None:
        nonlocal open_now
        await aclose(readers)
        if readers is own.context.store.readers:
            return
        for _ in range(50):
            await asyncio.sleep(0)
        open_now -= 1

    monkeypatch.setattr(Readers, "another", opened)
    monkeypatch.setattr(Readers, "aclose", closes_slowly)
    reports = reports_of(own)
    callers = [Caller(f"user{number}", "tok", load_plans()["free"]) for number in range(users)]
    await asyncio.gather(*(reports.usage(callers[number % users], {}) for number in range(12)))
    assert (open_now, open_most) == (0, open_max)
    assert reports._users == {}


async def test_who_waits_for_a_turn_for_too_long_is_refused_and_forgotten(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long reports of one user keep others of that user waiting, and nobody else."""
    monkeypatch.setattr(routes.usage, "TURN_TIMEOUT_S", 0.05)
    reports = reports_of(own)
    alice, bob = (Caller(user, "tok", load_plans()["free"]) for user in ("alice", "bob"))
    async with AsyncExitStack() as long_reports:
        for _ in range(REPORTS_OF_A_USER_MAX):
            await long_reports.enter_async_context(reports._readers(alice))
        with pytest.raises(Refused, match="too many reports wait for it"):
            await reports.limits(alice)
        assert (await reports.limits(bob))["user"] == "bob"
    assert (await reports.limits(alice))["user"] == "alice"
    assert reports._users == {}


def reports_of(own: Own) -> Reports:
    context = own.context
    return Reports(
        callers=Callers(context.authenticator, context.rate_limits),
        readers=context.store.readers,
        clock=own.clock,
        bytes_per_output_token=3,
    )


# --- the plain dialect --------------------------------------------------------------------------------------


def test_every_reason_has_a_status() -> None:
    assert set(STATUS) == set(Reason)


@pytest.mark.parametrize("reason", list(Reason))
def test_a_refusal_tells_whether_to_retry(reason: Reason) -> None:
    rendered = PLAIN_JSON.refusal(Refused(reason, "words", 0.2, {"limit": 3, "error": "x"}), "req_1")
    headers = dict(rendered.headers)
    assert rendered.status == STATUS[reason]
    assert rendered.body == b'{"limit":3,"error":"words","request_id":"req_1"}'
    if reason in RETRY_CANNOT_HELP:
        assert headers[b"x-should-retry"] == b"false"
        assert b"retry-after" not in headers
    else:
        assert headers[b"retry-after"] == b"1"


def test_a_refusal_without_a_time_promises_none() -> None:
    assert dict(PLAIN_JSON.refusal(Refused(Reason.INTERNAL, "words"), "req_1").headers) == {
        b"content-type": b"application/json"
    }


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (401, [], (Reason.UPSTREAM_ACCOUNT, 30.0)),
        (402, [], (Reason.UPSTREAM_ACCOUNT, 30.0)),
        (403, [], (Reason.UPSTREAM_ACCOUNT, 30.0)),
        (429, [], (Reason.UPSTREAM_BUSY, 5.0)),
        (429, [(b"retry-after", b"7")], (Reason.UPSTREAM_BUSY, 7.0)),
        (429, [(b"retry-after", b"86400")], (Reason.UPSTREAM_BUSY, BUSY_RETRY_AFTER_MAX_S)),
        (429, [(b"retry-after", b"nan")], (Reason.UPSTREAM_BUSY, 5.0)),
        (429, [(b"retry-after", b"Fri, 20 Nov 2026 12:00:00 GMT")], (Reason.UPSTREAM_BUSY, 5.0)),
        (400, [], None),
        (404, [], None),
        (500, [], None),
    ],
)
def test_a_vendors_answer_about_our_account_is_not_passed_on(
    status: int, headers: list[tuple[bytes, bytes]], expected: Any
) -> None:
    refused = PLAIN_JSON.account_problem(status, b"{}", headers)
    assert (refused and (refused.reason, refused.retry_after_s)) == expected


def test_the_plain_dialect_has_words_for_streams_and_limits() -> None:
    assert PLAIN_JSON.stream_comment is None
    assert (
        PLAIN_JSON.stream_error(Refused(Reason.INTERNAL, "words"), "r")
        == b'{"error":"words","request_id":"r"}\n'
    )
    assert b"HTTP 529" in PLAIN_JSON.stream_error_from(529, b"{}", "r")
    stands = standing(requests=RateState(True, 5, 4, NOON + 1, 0.0))
    assert dict(PLAIN_JSON.limit_headers(stands, NOON)) == {
        b"x-ratelimit-limit": b"5",
        b"x-ratelimit-remaining": b"4",
        b"x-ratelimit-reset": b"1795176001",
    }
