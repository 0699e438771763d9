"""Brave through the proxy on real sockets: what is charged, what is counted, what is held, and what stays hidden."""

import asyncio
from contextlib import asynccontextmanager
from itertools import product

import httpx
import openai
import orjson
import pytest

from simulators.brave import (
    ACCOUNT_HEADERS,
    FAMILY_KEYS,
    LOOKALIKE,
    QUOTA_USED,
    VENDOR_KEY,
    BraveSimulator,
    Ending,
    Family,
    ReportedUsage,
    breaks_after,
    drops,
    fails,
    hangs,
    streams,
)
from simulators.script import Gate
from tests.support.gateway import DatedClock, running_gateway
from tests.support.limits import assert_limits, policies_of
from tests.support.raw_http import raw_request

WEB, CONTEXT, CHAT = "/res/v1/web/search", "/res/v1/llm/context", "/res/v1/chat/completions"
SEARCH_NANOUSD, CHEAP_NANOUSD = 5_000_000, 500_000
QUESTION = {"model": "brave", "messages": [{"role": "user", "content": "Is a wren a bird?"}]}
RESEARCH = {**QUESTION, "enable_research": True, "research_maximum_number_of_queries": 10}
USED = ReportedUsage(queries=8, input_tokens=15_000, output_tokens=2_000)
COST_OF_USED = 8 * 4_000_000 + 17_000 * 5_000


@pytest.fixture
async def vendor():
    async with BraveSimulator() as simulator:
        yield simulator


@asynccontextmanager
async def serving(tmp_path, vendor, *, env=None, mount="/api/brave", **plan):
    variables = {"BRAVE_API_KEY": VENDOR_KEY, "BRAVE_UPSTREAM_URL": vendor.url, **(env or {})}
    clock = DatedClock(2026, 11, 20)
    async with running_gateway(tmp_path, env=variables, clock=clock, **plan) as gateway:
        headers = {"x-subscription-token": await gateway.new_token()}
        async with httpx.AsyncClient(
            base_url=gateway.url + mount, headers=headers, trust_env=False, timeout=30
        ) as client:
            yield gateway, client
        await gateway.assert_clean()


async def counted(gateway, meter="searches", period="2026-11"):
    """Of u1's quota: spent and held."""
    readers = gateway.service.store.readers
    row = await readers.row(
        "SELECT spent, held FROM accounts WHERE owner = 'user:u1' AND meter = ?1 AND period = ?2",
        (meter, period),
    )
    return row or (0, 0)


async def booked(gateway):
    """The one entry: outcome, basis, cost and counts."""
    await gateway.quiet()
    entry = await gateway.only_entry()
    counts = [line["counts"] for line in orjson.loads(entry["usage"] or "[]")]
    return entry["outcome"], entry["basis"], entry["cost_nanousd"], counts


async def until_it_breaks(client, asked):
    """What came of an answer that does not end properly."""
    body = b""
    try:
        async with client.stream("POST", CHAT, json=asked) as answer:
            async for chunk in answer.aiter_raw():
                body += chunk
    except httpx.RemoteProtocolError:
        return body
    raise AssertionError("it ended properly")


# --- searches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mount", ["/api/brave", "/api/search"])
async def test_a_search_costs_its_price_and_counts_as_one(tmp_path, vendor, mount):
    async with serving(tmp_path, vendor, mount=mount) as (gateway, client):
        answer = await client.get(WEB, params={"q": "wren", "count": 2})
        assert len(answer.json()["web"]["results"]) == 2
        assert await booked(gateway) == ("completed", "reported", SEARCH_NANOUSD, [{"searches": 1}])
        assert await counted(gateway) == (1, 0)


@pytest.mark.parametrize("query", [b"q=a%20b+c&q=%e4%bd%a0&x=&=y", b"q=%22%2F%2e%2E&count=20&&"])
async def test_the_query_goes_up_byte_for_byte(tmp_path, vendor, query):
    async with serving(tmp_path, vendor) as (gateway, client):
        token = client.headers["x-subscription-token"].encode()
        target = b"/api/brave/res/v1/web/search?" + query
        headers = [(b"x-subscription-token", token), (b"x-loc-lat", b"48.1"), (b"api-version", b"2026-01-01")]
        await raw_request(gateway.url, "GET", target, headers)
        (request,) = vendor.requests
        assert request.target.encode() == b"/res/v1/web/search?" + query
        assert (request.header(b"x-loc-lat"), request.header(b"api-version")) == (b"48.1", b"2026-01-01")
        assert request.header(b"x-subscription-token") == VENDOR_KEY.encode()


async def test_each_product_has_its_own_price_and_key(tmp_path, vendor):
    names = {Family.ANSWERS: "ANSWERS", Family.SUGGEST: "SUGGEST", Family.SPELLCHECK: "SPELLCHECK"}
    env = {f"BRAVE_{name}_API_KEY": FAMILY_KEYS[family] for family, name in names.items()}
    env["BRAVE_API_KEY"] = FAMILY_KEYS[Family.SEARCH]
    async with serving(tmp_path, vendor, env=env) as (gateway, client):
        asked = (
            ("/res/v1/web/search", SEARCH_NANOUSD),
            ("/res/v1/suggest/search", CHEAP_NANOUSD),
            ("/res/v1/spellcheck/search", CHEAP_NANOUSD),
        )
        for path, _ in asked:
            assert (await client.get(path, params={"q": "wren"})).status_code == 200
        vendor.next(streams(usage=USED))
        assert (await client.post(CHAT, json=QUESTION)).status_code == 200
        await gateway.quiet()
        costs = [entry["cost_nanousd"] for entry in await gateway.entries()]
        assert costs == [*(cost for _, cost in asked), COST_OF_USED]
        assert await counted(gateway) == (1 + 8, 0), "suggestions and spelling are no searches"


async def test_the_key_of_another_product_is_our_own_fault(tmp_path, vendor):
    async with serving(tmp_path, vendor, env={"BRAVE_API_KEY": FAMILY_KEYS[Family.SUGGEST]}) as (
        gateway,
        client,
    ):
        answer = await client.get(WEB, params={"q": "wren"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "INTERNAL")
        assert gateway.metric("automna_upstream_account_alarms_total", surface="brave", status="400") == 1
        assert await booked(gateway) == ("upstream_failed", "reported", 0, [])


@pytest.mark.parametrize("status", [422, 404, 500, 503])
async def test_what_fails_is_neither_charged_nor_counted(tmp_path, vendor, status):
    vendor.next(fails(status))
    async with serving(tmp_path, vendor) as (gateway, client):
        assert (await client.get(WEB, params={"q": "wren"})).status_code == status
        assert await booked(gateway) == ("upstream_failed", "reported", 0, [])
        assert await counted(gateway) == (0, 0)


async def test_a_search_whose_answer_was_lost_is_booked_as_an_estimate_and_not_repeated(tmp_path, vendor):
    vendor.next(drops())
    async with serving(tmp_path, vendor) as (gateway, client):
        assert (await client.get(WEB, params={"q": "wren"})).status_code == 502
        assert await booked(gateway) == ("upstream_failed", "estimated", SEARCH_NANOUSD, [{"searches": 1}])
        assert (await counted(gateway), vendor.requests_total) == ((1, 0), 1)


async def test_what_the_operator_says_is_not_billed_is_free(tmp_path, vendor):
    async with serving(tmp_path, vendor, env={"BRAVE_UNBILLED": "local, rich"}) as (gateway, client):
        for path in ("/res/v1/local/pois?ids=l1", "/res/v1/web/rich?callback_key=c1", f"{WEB}?q=wren"):
            await client.get(path)
        await gateway.quiet()
        costs = [entry["cost_nanousd"] for entry in await gateway.entries()]
        assert (costs, await counted(gateway)) == ([0, 0, SEARCH_NANOUSD], (1, 0))


# --- the quota ------------------------------------------------------------------------------------------


async def test_of_a_hundred_racing_searches_exactly_the_quota_passes(tmp_path, vendor):
    gate = Gate()
    vendor.script = lambda _: hangs(gate=gate)
    async with serving(tmp_path, vendor, searches=10) as (gateway, client):
        async with httpx.AsyncClient(
            base_url=client.base_url,
            headers=client.headers,
            limits=httpx.Limits(max_connections=100),
            trust_env=False,
            timeout=60,
        ) as many:
            asking = [
                asyncio.get_running_loop().create_task(many.get(WEB, params={"q": "wren"}))
                for _ in range(100)
            ]
            await gateway.until(lambda: sum(task.done() for task in asking) == 90)
            await gateway.until(lambda: vendor.requests_total == 10)
            gate.open()
            answers = await asyncio.gather(*asking)
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [200] * 10 + [429] * 90
        assert {int(a.headers["retry-after"]) for a in answers if a.status_code == 429} == {2}
        await gateway.quiet()
        assert (await counted(gateway), vendor.requests_total) == ((10, 0), 10)
        spent = await client.get(WEB, params={"q": "wren"})
        error = spent.json()["error"]
        assert (spent.status_code, error["code"]) == (402, "QUOTA_LIMITED")
        assert (
            error["detail"] == "Monthly usage limit reached (10 of 10 searches). Resets on 1 December 2026."
        )
        bearer = {"authorization": f"Bearer {client.headers['x-subscription-token']}"}
        limits = (await client.get(f"{gateway.url}/api/user/limits", headers=bearer)).json()
        shown = limits["meters"]["searches_per_month"]
        assert (shown["limit"], shown["used"], shown["left"]) == (10, 10, 0)
        gateway.clock.advance(11 * 86_400)
        vendor.script = None
        assert (await client.get(WEB, params={"q": "wren"})).status_code == 200


async def test_the_headers_tell_the_users_own_limits_and_none_of_the_accounts(tmp_path, vendor):
    async with serving(tmp_path, vendor, searches=50, requests_per_minute=60) as (_, client):
        answer = await client.get(WEB, params={"q": "wren"})
        told = {name: answer.headers[f"x-ratelimit-{name}"] for name in ("limit", "policy", "remaining")}
        assert told == {"limit": "60, 50", "policy": "60;w=60, 50;w=2678400", "remaining": "59, 49"}
        second_s, month_s = answer.headers["x-ratelimit-reset"].split(", ")
        assert 0 < int(second_s) <= 60
        assert 10 * 86_400 < int(month_s) <= 11 * 86_400
        assert assert_limits(answer.headers)["searches"][0] == 49
        assert policies_of(answer.headers)["searches"]["q"] == 50
        account = {value for name, value in ACCOUNT_HEADERS if name.lower().startswith("x-ratelimit")}
        assert account
        assert not account & set(answer.headers.values())


# --- what is about the account ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 422, 500])
async def test_an_error_passes_without_the_accounts_plan_and_quotas(tmp_path, vendor, status):
    meta = {"plan": "Search Enterprise", "quota_current": QUOTA_USED, "errors": [{"loc": ["query", "count"]}]}
    vendor.next(fails(status, error_meta=meta, message="Unable to validate."))
    async with serving(tmp_path, vendor) as (_, client):
        answer = await client.get(WEB, params={"q": "wren"})
        error = answer.json()["error"]
        assert (answer.status_code, error["status"], error["detail"]) == (
            status,
            status,
            "Unable to validate.",
        )
        assert error["meta"] == {"errors": [{"loc": ["query", "count"]}]}
        assert answer.headers["content-length"] == str(len(answer.content))
        assert "Enterprise" not in answer.text
        assert str(QUOTA_USED) not in answer.text


async def test_an_error_that_says_nothing_of_the_account_passes_byte_for_byte(tmp_path, vendor):
    vendor.next(fails(500, error_meta={"errors": []}))
    async with serving(tmp_path, vendor) as (_, client):
        answer = await client.get(WEB, params={"q": "wren"})
        assert b'"time"' in answer.content
        assert answer.json()["error"]["meta"] == {"errors": []}


@pytest.mark.parametrize(
    ("given", "status"),
    [(fails(429), 429), (fails(422, error_type="SUBSCRIPTION_TOKEN_INVALID"), 503), (fails(402), 503)],
)
async def test_what_is_only_about_the_account_is_said_in_our_words(tmp_path, vendor, given, status):
    vendor.next(given)
    async with serving(tmp_path, vendor) as (_, client):
        answer = await client.get(WEB, params={"q": "wren"})
        assert (answer.status_code, answer.json()["error"]["meta"]) == (status, {})
        assert str(QUOTA_USED) not in answer.text
        assert 1 <= int(answer.headers["retry-after"]) <= 60


# --- Answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "gzip"),
    list(
        product(
            (
                {},
                {"tag_split": 1},
                {"tag_split": 7, "split": 5},
                {"spaces_tag": True, "closing_usage": True},
                {"joins_tag": True, "tag_split": 3},
                {"tags": 2},
                {"lookalike": LOOKALIKE, "tag_split": 4},
            ),
            (False, True),
        )
    ),
)
async def test_an_answer_is_booked_by_the_tag_however_it_is_cut(tmp_path, vendor, how, gzip):
    vendor.next(streams(usage=USED, gzip=gzip, **how))
    async with serving(tmp_path, vendor) as (gateway, client):
        answer = await client.post(CHAT, json=RESEARCH)
        assert answer.content.endswith(b"data: [DONE]\n\n")
        counts = {"searches": 8, "input_tokens": 15_000, "output_tokens": 2_000}
        assert await booked(gateway) == ("completed", "reported", COST_OF_USED, [counts])
        assert await counted(gateway) == (8, 0)


async def test_a_whole_answer_is_one_query_unless_its_head_says_more(tmp_path, vendor):
    vendor.next(streams(usage=USED), streams(usage=USED, usage_headers=True))
    async with serving(tmp_path, vendor) as (gateway, client):
        for _ in range(2):
            answer = await client.post(CHAT, json={**QUESTION, "stream": False})
            assert answer.json()["usage"]["prompt_tokens"] == 15_000
        await gateway.quiet()
        entries = await gateway.entries()
        assert {entry["basis"] for entry in entries} == {"reported"}
        counts = [orjson.loads(entry["usage"])[0]["counts"] for entry in entries]
        assert [(one["searches"], one["output_tokens"]) for one in counts] == [(1, 2_000), (8, 2_000)]


async def test_a_research_holds_its_declared_maximum(tmp_path, vendor):
    gate = Gate()
    vendor.next(hangs(gate=gate, usage=USED))
    async with serving(tmp_path, vendor, searches=12) as (gateway, client):
        asking = asyncio.get_running_loop().create_task(client.post(CHAT, json=RESEARCH))
        await gate.reached()
        assert await counted(gateway) == (0, 10)
        refused = await client.post(CHAT, json={**RESEARCH, "research_maximum_number_of_queries": 3})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "RATE_LIMITED")
        gate.open()
        await asking
        await gateway.quiet()
        assert await counted(gateway) == (8, 0)
        most = await client.post(CHAT, json={**RESEARCH, "research_maximum_number_of_queries": 5})
        assert most.status_code == 402
        assert "it may take up to 5 searches, 4 of 12 are left" in most.json()["error"]["detail"]


@pytest.mark.parametrize("ending", [Ending.FIN, Ending.RESET])
@pytest.mark.parametrize(("asked", "queries"), [(RESEARCH, 10), (QUESTION, 1)])
async def test_what_breaks_off_before_its_tag_is_an_estimate(tmp_path, vendor, asked, queries, ending):
    """Of a research nobody knows how far it had come: the whole hold."""
    vendor.next(breaks_after(0, ending=ending, from_tag=True, usage=USED))
    async with serving(tmp_path, vendor) as (gateway, client):
        body = await until_it_breaks(client, asked)
        last = orjson.loads(body.rpartition(b"data: ")[2])
        assert "broke off its answer" in last["error"]["message"]
        outcome, basis, _, (counts,) = await booked(gateway)
        assert (outcome, basis, counts["searches"]) == ("upstream_failed", "estimated", queries)
        assert await counted(gateway) == (queries, 0)


async def test_an_answer_without_a_tag_is_an_estimate_and_a_quoted_one_is_none(tmp_path, vendor):
    vendor.next(streams(usage=USED, tags=0, lookalike=LOOKALIKE))
    async with serving(tmp_path, vendor) as (gateway, client):
        await client.post(CHAT, json=RESEARCH)
        outcome, basis, _, (counts,) = await booked(gateway)
        assert (outcome, basis, counts["searches"]) == ("completed", "estimated", 10)


async def test_what_is_too_long_is_the_requests_fault_by_its_code_too(tmp_path, vendor):
    async with serving(tmp_path, vendor, env={"BODY_BYTES_MAX": "1000", "HEAD_BYTES_MAX": "2000"}) as (
        _,
        client,
    ):
        body = await client.post(CHAT, json={**QUESTION, "more": "x" * 1000})
        assert (body.status_code, body.json()["error"]["code"]) == (413, "VALIDATION")
        head = await client.get(WEB, params={"q": "x" * 2000})
        assert (head.status_code, head.json()["error"]["code"]) == (431, "VALIDATION")
        assert vendor.requests_total == 0


@pytest.mark.parametrize(
    "more",
    [
        {"research_maximum_number_of_queries": 51},
        {"research_maximum_number_of_queries": "3"},
        {"research_maximum_number_of_tokens_per_query": 0},
        {"enable_research": "yes"},
        {"stream": 1},
    ],
)
async def test_what_cannot_be_held_is_refused(tmp_path, vendor, more):
    async with serving(tmp_path, vendor) as (_, client):
        answer = await client.post(CHAT, json={**RESEARCH, **more})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "VALIDATION")
        (name,) = more
        assert name in answer.json()["error"]["detail"]
        unknown = await client.post(CHAT, json={**QUESTION, "model": "brave-giant"})
        assert unknown.status_code == 404
        assert vendor.requests_total == 0


async def test_openais_own_client_reads_answers(tmp_path, vendor):
    vendor.next(streams(usage=USED, tag_split=6))
    async with serving(tmp_path, vendor) as (gateway, client):
        async with openai.AsyncOpenAI(
            base_url=f"{client.base_url}res/v1", api_key=client.headers["x-subscription-token"], max_retries=0
        ) as sdk:
            stream = await sdk.chat.completions.create(**QUESTION, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            assert text.endswith("</usage>")
            vendor.next(fails(429))
            with pytest.raises(openai.RateLimitError):
                await sdk.chat.completions.create(**QUESTION, stream=False)
        await gateway.quiet()
        first, second = await gateway.entries()
        assert (first["cost_nanousd"], second["cost_nanousd"]) == (COST_OF_USED, 0)
