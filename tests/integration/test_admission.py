"""Who may, how fast, how much: refused before the vendor hears of it, in the words that clients obey."""

import asyncio
import math
import sqlite3
from contextlib import asynccontextmanager, closing, suppress
from datetime import datetime

import httpx
import orjson
import pytest

from metering.grants import credit_of, grant
from metering.terms import TokenLimits
from simulators.anthropic import ReportedUsage, breaks_after, fails, hangs, streams
from simulators.script import Gate
from tests.support.gateway import DatedClock, client_of, messages_body, running_gateway
from tests.support.limits import assert_limits, policies_of
from tests.support.process import serving as serving_process

BODY = messages_body(max_tokens=100)
BODY_BYTES = len(httpx.Request("POST", "http://x", json=BODY).content)
SOON_S = 60.0
"""On a machine that is busy with tests; how soon it is promised is tested with a clock of its own, and with two workers."""
PROMISED = {"CHANGES_STALE_AFTER_S": "1"}
"""As it is set by default: who has not heard of changes for so long refuses with UNHEARD."""
UNHEARD = 503
LATE_MIN = 3
HOLD_NANOUSD = -(-BODY_BYTES // 2) * 3_000 + 100 * 15_000
"""What BODY may cost: half its bytes as input tokens, and max_tokens, at 3 and 15 USD per million."""
USAGE = ReportedUsage(input_tokens=30, output_tokens=10)
COST_NANOUSD = 30 * 3_000 + 10 * 15_000
USAGE_AS_HELD = ReportedUsage(input_tokens=30, output_tokens=100)
CREDIT_NANOUSD = 100_000
CREDITS_FOR_TEN = -(-10 * HOLD_NANOUSD // CREDIT_NANOUSD)
assert 10 * HOLD_NANOUSD <= CREDITS_FOR_TEN * CREDIT_NANOUSD < 11 * HOLD_NANOUSD


def send(client, **headers):
    return client.post("/v1/messages", json=BODY, headers=headers)


def start(*coroutines):
    return [asyncio.get_running_loop().create_task(coroutine) for coroutine in coroutines]


@asynccontextmanager
async def serving(tmp_path, vendor, *, env=None, clock=None, **plan):
    async with (
        running_gateway(tmp_path, upstream=vendor.url, env=env, clock=clock, **plan) as gateway,
        client_of(gateway, await gateway.new_token()) as client,
    ):
        client.timeout = httpx.Timeout(30)
        yield gateway, client


def error_of(answer):
    return answer.status_code, answer.json()["error"]["type"]


# --- budget ---------------------------------------------------------------------------------------------


async def overdrafts(database, allowance_nanousd):
    """Watch the account from outside until cancelled; every instant at which it stood above its allowance."""
    found = []
    with closing(sqlite3.connect(database.path)) as connection:
        while True:
            for spent, held in connection.execute("SELECT spent, held FROM accounts WHERE meter = 'money'"):
                if spent + held > allowance_nanousd:
                    found.append((spent, held))
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                return found


@pytest.mark.parametrize("is_new", [True, False], ids=["a new user", "a user of old"])
async def test_two_hundred_requests_at_once_never_exceed_a_budget_that_covers_ten(tmp_path, vendor, is_new):
    gate = Gate()
    async with serving(tmp_path, vendor, credits_per_month=CREDITS_FOR_TEN) as (gateway, client):
        if not is_new:
            vendor.next(streams(usage=ReportedUsage(input_tokens=1)))
            assert (await send(client)).status_code == 200
            await gateway.quiet()
        vendor.script = lambda _: hangs(gate=gate, usage=USAGE)
        seen_before = vendor.requests_total
        allowance = CREDITS_FOR_TEN * CREDIT_NANOUSD
        (watch,) = start(overdrafts(gateway.database, allowance))
        async with limitless(gateway, client) as many:
            tasks = start(*(send(many) for _ in range(200)))
            await gateway.until(lambda: sum(task.done() for task in tasks) == 190)
            assert vendor.requests_total - seen_before == 10
            assert (await gateway.spent_and_held())[1] == 10 * HOLD_NANOUSD
            gate.open()
            answers = await asyncio.gather(*tasks)
        served = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(served) == 10
        assert {error_of(answer) for answer in refused} == {(429, "rate_limit_error")}
        assert all(1 <= int(answer.headers["retry-after"]) <= 5 for answer in refused)
        await gateway.quiet()
        spent, held = await gateway.spent_and_held()
        assert (spent, held) == (10 * COST_NANOUSD + (0 if is_new else 3_000), 0)
        # What was held and not used is there again.
        vendor.script = lambda _: streams(usage=ReportedUsage(input_tokens=1))
        assert (await send(client)).status_code == 200
        watch.cancel()
        assert await watch == []
        await gateway.assert_clean()


@asynccontextmanager
async def limitless(gateway, client):
    """The same agent with as many connections as it likes."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=client.base_url, headers=client.headers, timeout=30, limits=limits, trust_env=False
    ) as many:
        yield many


async def test_a_spent_budget_is_402_with_words_for_the_user_and_no_advice_to_retry(tmp_path, vendor):
    clock = DatedClock(2026, 11, 20)
    vendor.script = lambda _: streams(usage=USAGE_AS_HELD)
    async with serving(tmp_path, vendor, clock=clock, credits_per_month=CREDITS_FOR_TEN) as (gateway, client):
        for _ in range(11):
            answer = await send(client)
            if answer.status_code != 200:
                break
        assert error_of(answer) == (402, "billing_error")
        message = answer.json()["error"]["message"]
        assert message.startswith("Monthly usage limit reached for a request of this size: it may cost up to")
        assert message.endswith("Resets on 1 December 2026.")
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
        assert answer.json()["request_id"] == answer.headers["request-id"]
        spent, held = await gateway.spent_and_held()
        assert spent <= CREDITS_FOR_TEN * CREDIT_NANOUSD
        assert held == 0
        await gateway.assert_clean()


async def test_nothing_left_is_said_as_openclaw_shows_it(tmp_path, vendor):
    clock = DatedClock(2026, 11, 20)
    dear = ReportedUsage(input_tokens=100_000)
    vendor.script = lambda _: streams(usage=dear)
    async with serving(tmp_path, vendor, clock=clock, credits_per_month=1_000) as (gateway, client):
        assert (await send(client)).status_code == 200  # an overage: what was used is booked
        answer = await send(client)
        assert error_of(answer) == (402, "billing_error")
        expected = "Monthly usage limit reached (3,000 of 1,000 credits). Resets on 1 December 2026."
        assert answer.json()["error"]["message"] == expected
        await gateway.assert_clean()


@pytest.mark.parametrize(("held", "status"), [("0", 200), ("200000", 402)])
async def test_a_pdf_holds_what_the_operator_says(tmp_path, vendor, held, status):
    """2,000 characters, which may be a hundred pages: 600,000 micro-USD of input, where the plan has 100,000."""
    source = {"type": "base64", "media_type": "application/pdf", "data": "A" * 2_000}
    body = {**BODY, "messages": [{"role": "user", "content": [{"type": "document", "source": source}]}]}
    env = {"ANTHROPIC_PDF_TOKENS": held}
    async with serving(tmp_path, vendor, env=env, credits_per_month=1_000) as (gateway, client):
        assert (await client.post("/v1/messages", json=body)).status_code == status
        await gateway.assert_clean()


async def test_prepaid_credit_is_spent_after_the_allowance_and_soon_after_its_grant(tmp_path, vendor):
    clock = DatedClock(2026, 11, 20)
    vendor.script = lambda _: streams(usage=USAGE_AS_HELD)
    cost = 30 * 3_000 + 100 * 15_000
    plan_nanousd = CREDITS_FOR_TEN * CREDIT_NANOUSD
    async with serving(tmp_path, vendor, clock=clock, credits_per_month=CREDITS_FOR_TEN) as (gateway, client):
        while (answer := await send(client)).status_code == 200:
            spent = (await gateway.spent_and_held())[0]
        assert "prepaid" not in answer.json()["error"]["message"]
        await grant(gateway.service.store, gateway.clock, "u1", 2 * HOLD_NANOUSD, source="inv_1")
        async with asyncio.timeout(SOON_S):
            while (answer := await send(client)).status_code != 200:
                pass
        await gateway.quiet()
        paid = plan_nanousd - spent
        credit = await credit_of(gateway.service.store.readers, "u1")
        assert await gateway.spent_and_held() == (plan_nanousd, 0)
        assert (credit.spent, credit.held) == (cost - paid, 0)
        left = 2 * HOLD_NANOUSD - credit.spent
        held_left = int(answer.headers["x-automna-credits-remaining"])
        assert held_left == (paid + 2 * HOLD_NANOUSD - HOLD_NANOUSD) // CREDIT_NANOUSD
        limits = (await client.get(f"{gateway.url}/api/user/limits")).json()["meters"]["prepaid_credit"]
        assert limits["left_nanousd"] == left
        while (answer := await send(client)).status_code == 200:
            pass
        assert error_of(answer) == (402, "billing_error")
        assert "prepaid" in answer.json()["error"]["message"]
        assert answer.json()["error"]["message"].endswith("Resets on 1 December 2026.")
        await gateway.assert_clean()


async def test_a_plan_that_ends_is_over_at_its_instant(tmp_path, vendor):
    clock = DatedClock(2026, 11, 20)
    vendor.script = lambda _: streams(usage=USAGE_AS_HELD)
    async with serving(tmp_path, vendor, clock=clock, credits_per_month=CREDITS_FOR_TEN) as (gateway, client):
        until_ms = clock.now_ms() + 3_600_000
        await gateway.directory.set_plan("u1", "test", until_ms=until_ms, next_plan="gone")
        assert (await send(client)).status_code == 200
        clock.advance(3_590)
        assert (await send(client)).status_code == 200
        clock.advance(11)
        assert (await send(client)).status_code == 503, "the plan that follows is not in this plans file"
        await gateway.assert_clean()


async def test_a_new_month_has_a_new_budget(tmp_path, vendor):
    clock = DatedClock(2026, 11, 30)
    vendor.script = lambda _: streams(usage=ReportedUsage(input_tokens=100_000))
    async with serving(tmp_path, vendor, clock=clock, credits_per_month=1_000) as (_, client):
        assert [(await send(client)).status_code for _ in range(2)] == [200, 402]
        clock.advance(24 * 3600)
        assert (await send(client)).status_code == 200


async def test_one_users_budget_is_not_anothers(tmp_path, vendor):
    vendor.script = lambda _: streams(usage=ReportedUsage(input_tokens=100_000))
    async with serving(tmp_path, vendor, credits_per_month=1_000) as (gateway, client):
        assert [(await send(client)).status_code for _ in range(2)] == [200, 402]
        async with client_of(gateway, await gateway.new_token("u2")) as other:
            assert (await send(other)).status_code == 200


# --- plan and pace ----------------------------------------------------------------------------------------


async def test_so_many_requests_may_be_in_flight(tmp_path, vendor):
    gate = Gate()
    vendor.script = lambda _: hangs(gate=gate)
    async with serving(tmp_path, vendor, concurrent=3) as (gateway, client):
        tasks = start(*(send(client) for _ in range(3)))
        await vendor.until(lambda: vendor.requests_total == 3)
        refused = await send(client)
        assert error_of(refused) == (429, "rate_limit_error")
        assert refused.headers["retry-after"] == "1"
        gate.open()
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}
        await gateway.quiet()
        assert (await send(client)).status_code == 200
        await gateway.assert_clean()


async def test_so_many_requests_may_be_made_a_minute(tmp_path, vendor):
    clock = DatedClock(2026, 11, 20)
    async with serving(tmp_path, vendor, clock=clock, requests_per_minute=2) as (gateway, client):
        first, second, third = [await send(client) for _ in range(3)]
        assert (first.status_code, second.status_code) == (200, 200)
        assert first.headers["anthropic-ratelimit-requests-limit"] == "2"
        assert first.headers["anthropic-ratelimit-requests-remaining"] == "1"
        assert error_of(third) == (429, "rate_limit_error")
        wait_s = int(third.headers["retry-after"])
        assert 1 <= wait_s <= 61
        assert "x-should-retry" not in third.headers
        clock.advance(wait_s)
        assert (await send(client)).status_code == 200
        assert vendor.requests_total == 3
        await gateway.assert_clean()


def limits_and_wait(answer):
    """What the standard and the vendor's headers of an answer agree on, and the Retry-After."""
    limits, policies = assert_limits(answer.headers), policies_of(answer.headers)
    for name in ("requests", "tokens"):
        assert answer.headers[f"anthropic-ratelimit-{name}-limit"] == str(policies[name]["q"])
        assert answer.headers[f"anthropic-ratelimit-{name}-remaining"] == str(limits[name][0])
        instant = answer.headers[f"anthropic-ratelimit-{name}-reset"]
        assert datetime.strptime(instant, "%Y-%m-%dT%H:%M:%S%z")
    return limits, int(answer.headers.get("retry-after", 0))


async def test_a_turn_larger_than_the_minutes_tokens_is_answered_and_the_next_waits(tmp_path, vendor):
    clock = DatedClock(2026, 11, 20)
    large = ReportedUsage(input_tokens=60_000, output_tokens=15_000, cache_read_tokens=500_000)
    vendor.script = lambda _: streams(usage=large)
    async with serving(tmp_path, vendor, clock=clock, tokens_per_minute=50_000) as (gateway, client):
        began_s = clock.monotonic_s()
        first = await send(client)
        limits, _ = limits_and_wait(first)
        assert (first.status_code, limits["tokens"][0]) == (200, 50_000)
        for _ in range(3):
            refused = await send(client)
            assert error_of(refused) == (429, "rate_limit_error")
            limits, wait_s = limits_and_wait(refused)
            assert wait_s + (clock.monotonic_s() - began_s) >= 28
            assert wait_s <= 31
            assert limits["tokens"][0] == 0
            assert 0 <= wait_s - limits["tokens"][1] <= 1
        message = "Rate limit reached: 50,000 tokens per minute on the test plan."
        assert refused.json()["error"]["message"] == message
        assert gateway.lines[-1]["reason"] == "tokens_rate_limited"
        free = await client.post("/v1/messages/count_tokens", json=BODY)  # counts none, and is not refused
        assert (free.status_code, limits_and_wait(free)[0]["tokens"][0]) == (200, 0)
        clock.advance(wait_s)
        vendor.script = lambda _: streams(usage=ReportedUsage(input_tokens=1))
        again = await send(client)
        assert again.status_code == 200
        assert limits_and_wait(again)[0]["requests"][0] == 1_000_000 - 3, "refusals counted as requests"
        assert vendor.requests_total == 3
        await gateway.assert_clean()


async def test_however_large_a_turn_the_wait_is_a_minute(tmp_path, vendor):
    clock = DatedClock(2026, 11, 20)
    vendor.script = lambda _: streams(usage=ReportedUsage(input_tokens=900_000))
    async with serving(tmp_path, vendor, clock=clock, tokens_per_minute=50_000) as (_, client):
        began_s = clock.monotonic_s()
        assert (await send(client)).status_code == 200
        refused = await send(client)
        assert refused.status_code == 429
        wait_s = limits_and_wait(refused)[1]
        assert wait_s <= 60 <= wait_s + math.ceil(clock.monotonic_s() - began_s)
        clock.advance(60)
        assert (await send(client)).status_code == 200


async def test_a_turn_whose_client_left_counts_when_it_is_booked(tmp_path, vendor):
    gate = Gate()
    clock = DatedClock(2026, 11, 20)
    vendor.script = lambda _: hangs(gate=gate, usage=ReportedUsage(input_tokens=75_000))
    async with serving(tmp_path, vendor, clock=clock, tokens_per_minute=50_000) as (gateway, client):
        (task,) = start(send(client))
        await gate.reached()
        task.cancel()
        await gateway.until(lambda: gateway.metric("automna_drains") == 1)
        assert gateway.service.own.rate_limits.tokens.used("user:u1", 50_000) == 0
        gate.open()
        await gateway.quiet()
        assert (await send(client)).status_code == 429


async def test_what_broke_off_counts_with_its_estimate_and_an_error_does_not(tmp_path, vendor):
    clock = DatedClock(2026, 11, 20)
    vendor.next(fails(529), breaks_after(3))
    async with serving(tmp_path, vendor, clock=clock, tokens_per_minute=50_000) as (gateway, client):
        tokens = gateway.service.own.rate_limits.tokens
        assert (await send(client)).status_code == 529
        await gateway.quiet()
        assert tokens.used("user:u1", 50_000) == 0
        with suppress(httpx.HTTPError):
            await client.post("/v1/messages", json={**BODY, "stream": True})
        entry = (await gateway.entries())[-1]
        assert entry["basis"] == "estimated"
        counted = entry["input_tokens"] + entry["cache_write_tokens"] + entry["output_tokens"]
        assert counted > 0
        assert tokens.used("user:u1", 50_000) == pytest.approx(
            counted, abs=850 * 5
        )  # 5 s may have flowed back


async def test_every_refusal_of_a_known_caller_says_where_it_stands(tmp_path, vendor):
    clock = DatedClock(2026, 11, 20)
    vendor.script = lambda _: streams(usage=ReportedUsage(input_tokens=100_000))
    async with serving(tmp_path, vendor, clock=clock, credits_per_month=1_000) as (_, client):
        for body, status in ((b"{", 400), (orjson.dumps({**BODY, "model": "claude-unheard-of-9"}), 404)):
            answer = await client.post(
                "/v1/messages", content=body, headers={"content-type": "application/json"}
            )
            assert answer.status_code == status
            assert set(limits_and_wait(answer)[0]) == {"requests", "tokens"}
        assert (await send(client)).status_code == 200
        refused = await send(client)
        assert refused.status_code == 402
        limits, wait_s = limits_and_wait(refused)
        assert (wait_s, limits["credits"][0]) == (0, 0)
        assert 10 * 86_400 < limits["credits"][1] <= 11 * 86_400
        assert refused.headers["x-automna-credits-remaining"] == "0"
        for path in ("/api/user/limits", "/api/user/usage"):
            answer = await client.get(client.base_url.copy_with(path=path))
            assert answer.status_code == 200
            assert_limits(answer.headers)
        client.headers["x-api-key"] = "amp_nobodys"
        stranger = await send(client)
        assert stranger.status_code == 401
        assert not [name for name in stranger.headers if "ratelimit" in name]


async def test_a_key_with_limits_of_its_own_is_held_to_them(tmp_path, vendor):
    gate = Gate()
    own = TokenLimits(requests_per_minute=3, tokens_per_minute=30_000, concurrent_requests=1)
    clock = DatedClock(2026, 11, 20)
    async with serving(tmp_path, vendor, clock=clock) as (gateway, other_key):
        async with client_of(gateway, await gateway.new_token(limits=own)) as client:
            vendor.next(hangs(gate=gate, usage=ReportedUsage(input_tokens=40_000)))
            (task,) = start(send(client))
            await gate.reached()
            refused = await send(client)
            assert refused.json()["error"]["message"].endswith("1 may be in flight for this API key.")
            policies = policies_of(refused.headers)
            shown = [policies[name]["q"] for name in ("requests", "tokens", "concurrency")]
            assert shown == [3, 30_000, 1]
            assert gateway.lines[-1]["limit_of"] == "key"
            gate.open()
            assert (await task).status_code == 200
            await gateway.quiet()
            refused = await send(client)
            assert refused.json()["error"]["message"].endswith("30,000 tokens per minute for this API key.")
            clock.advance(int(refused.headers["retry-after"]))
            assert (await send(client)).status_code == 200
        assert (await send(other_key)).status_code == 200  # the user's other keys are not held to them
        await gateway.assert_clean()


@pytest.mark.parametrize("operation", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_model_outside_the_plan_does_not_exist(tmp_path, vendor, operation):
    async with serving(tmp_path, vendor, models=("claude-haiku-*",)) as (_, client):
        answer = await client.post(operation, json=BODY)
        assert error_of(answer) == (404, "not_found_error")
        assert answer.headers["x-should-retry"] == "false"
        assert (await client.post(operation, json={**BODY, "model": "claude-haiku-4-5"})).status_code == 200
        assert vendor.requests_total == 1


async def test_a_model_without_a_price_does_not_exist(tmp_path, vendor):
    async with serving(tmp_path, vendor) as (_, client):
        answer = await client.post("/v1/messages", json={**BODY, "model": "claude-unheard-of-9"})
        assert error_of(answer) == (404, "not_found_error")
        assert vendor.requests_total == 0


async def test_a_surface_outside_the_plan_does_not_exist(tmp_path, vendor):
    async with serving(tmp_path, vendor, surfaces=("brave",)) as (_, client):
        assert error_of(await send(client)) == (404, "not_found_error")
        assert vendor.requests_total == 0


# --- tokens ---------------------------------------------------------------------------------------------


async def test_a_revoked_token_is_refused_soon(tmp_path, vendor):
    async with serving(tmp_path, vendor) as (gateway, client):
        assert (await send(client)).status_code == 200
        (token,) = await gateway.directory.tokens("u1")
        await gateway.directory.revoke(token.id)
        await refused_soon(client, 401)
        assert error_of(await send(client)) == (401, "authentication_error")


async def test_a_disabled_user_is_refused_soon_and_served_again_when_enabled(tmp_path, vendor):
    async with serving(tmp_path, vendor) as (gateway, client):
        assert (await send(client)).status_code == 200
        await gateway.directory.disable("u1")
        await refused_soon(client, 403)
        assert error_of(await send(client)) == (403, "permission_error")
        await gateway.directory.enable("u1")
        async with asyncio.timeout(SOON_S):
            while (await send(client)).status_code != 200:
                pass


async def refused_soon(client, status):
    async with asyncio.timeout(SOON_S):
        while (answer := await send(client)).status_code == 200:
            pass
    assert answer.status_code == status


async def test_an_expired_token_is_refused_although_it_is_remembered(tmp_path, vendor):
    clock = DatedClock(2026, 11, 20)
    async with serving(tmp_path, vendor, clock=clock) as (gateway, _):
        token = await gateway.new_token("u1", expires_at_ms=clock.now_ms() + 60_000)
        async with client_of(gateway, token) as client:
            assert (await send(client)).status_code == 200
            clock.advance(61)
            assert error_of(await send(client)) == (401, "authentication_error")


async def test_two_workers_hear_of_a_revocation_within_a_second(tmp_path, vendor):
    async with (
        serving_process(tmp_path, upstream=vendor.url, workers=2, env=PROMISED) as server,
        server.directory() as directory,
    ):
        await directory.add_user("u1", plan="test")
        secret, token = await directory.create_token("u1")
        await until_both_workers_know(server, secret)
        await directory.revoke(token.id)
        await assert_heard_within_a_second(lambda: once(server.url, secret), before=200, after=401)


async def test_two_workers_hear_of_a_grant_within_a_second(tmp_path, vendor):
    vendor.script = lambda _: streams(usage=USAGE)
    plan = {"credits_per_month": 0}
    async with (
        serving_process(tmp_path, upstream=vendor.url, workers=2, env=PROMISED, **plan) as server,
        server.directory() as directory,
    ):
        await directory.add_user("u1", plan="test")
        secret, _ = await directory.create_token("u1")
        await until_both_workers_know(server, secret)
        assert await message(server.url, secret) == 402
        await server.command("credit", "grant", "u1", "--usd", "1", "--source", "inv_1")
        await assert_heard_within_a_second(lambda: message(server.url, secret), before=402, after=200)
        await server.assert_verified()


async def assert_heard_within_a_second(ask, *, before, after):
    """By whichever worker is asked later than that: none answers as before; one that has heard nothing may say so."""
    loop, late = asyncio.get_running_loop(), []
    changed_at_s = loop.time()
    async with asyncio.timeout(SOON_S):
        while late.count(after) < LATE_MIN:
            asked_at_s = loop.time()
            status = await ask()
            assert status in (before, after, UNHEARD)
            if asked_at_s > changed_at_s + 1.0:
                late.append(status)
    assert set(late) <= {after, UNHEARD}


async def message(url, token):
    """One paid request on a connection of its own."""
    headers = {"x-api-key": token, "anthropic-version": "2023-06-01"}
    async with httpx.AsyncClient(trust_env=False, verify=False, headers=headers, timeout=SOON_S) as client:
        return (await client.post(f"{url}/api/llm/v1/messages", json=BODY)).status_code


async def once(url, token):
    """One request on a connection of its own: whichever worker takes it."""
    headers = {"x-api-key": token, "anthropic-version": "2023-06-01"}
    async with httpx.AsyncClient(trust_env=False, verify=False, headers=headers, timeout=SOON_S) as client:
        return (await client.get(f"{url}/api/llm/v1/models")).status_code


async def until_both_workers_know(server, token):
    async with asyncio.timeout(60):
        while server.rows("SELECT COUNT(DISTINCT worker_id) FROM reservations") != [(2,)]:
            assert set(await asyncio.gather(*(once(server.url, token) for _ in range(8)))) == {200}


# --- the store is down --------------------------------------------------------------------------------------


async def test_a_locked_store_is_503_for_known_and_unknown_tokens_alike_and_mends_itself(tmp_path, vendor):
    async with serving(tmp_path, vendor, env={"STORE_BUSY_TIMEOUT_S": "0.05"}) as (gateway, client):
        assert (await send(client)).status_code == 200
        fresh = await gateway.new_token("u2")
        with gateway.locked_store() as other:
            for token in (client.headers["x-api-key"], fresh):
                answer = await send(client, **{"x-api-key": token})
                assert error_of(answer) == (503, "api_error")
                assert 1 <= int(answer.headers["retry-after"]) <= 5
                assert "x-should-retry" not in answer.headers
            ready = await client.get(f"{gateway.url}/readyz")
            assert ready.status_code == 503
            assert vendor.requests_total == 1
            other.rollback()
        async with asyncio.timeout(60):
            while (await send(client)).status_code != 200:
                pass
        assert (await client.get(f"{gateway.url}/readyz")).status_code == 200
        await gateway.assert_clean()
