"""The simulated Brave Search, over real sockets: its searches, keys, checks and errors."""

import httpx
import pytest

from metering.tasks import spawn
from simulators.__main__ import VENDORS
from simulators.brave import (
    ACCOUNT_HEADERS,
    ANSWERS_KEY,
    FAMILY_KEYS,
    PLANS,
    QUOTA_USED,
    SEARCH_KEY,
    VENDOR_KEY,
    Behaviour,
    BraveSimulator,
    Ending,
    Family,
    ReportedUsage,
    answers,
    breaks_after,
    drops,
    fails,
    hangs,
    replays,
    stalls_after,
    streams,
)
from simulators.script import Gate
from simulators.server import State, read_record

ROOT = "/res/v1"
WEB, CONTEXT, CHAT = f"{ROOT}/web/search", f"{ROOT}/llm/context", f"{ROOT}/chat/completions"
QUESTION = {"model": "brave", "messages": [{"role": "user", "content": "hi"}]}
SEARCHES = {
    f"{WEB}?q=wren": 1,
    f"{CONTEXT}?q=wren": 1,
    f"{ROOT}/images/search?q=wren": 1,
    f"{ROOT}/videos/search?q=wren": 1,
    f"{ROOT}/news/search?q=wren": 1,
    f"{ROOT}/local/place_search?q=wren": 1,
    f"{ROOT}/local/pois?ids=a": 1,
    f"{ROOT}/local/descriptions?ids=a": 1,
    f"{ROOT}/web/rich?callback_key=k": 1,
    f"{ROOT}/summarizer/search?key=k": 0,
    f"{ROOT}/summarizer/summary?key=k": 0,
    f"{ROOT}/summarizer/followups?key=k": 0,
}
"""Requests that each is billed."""
OF_FAMILY = {
    Family.SEARCH: ("GET", f"{WEB}?q=wren"),
    Family.SUGGEST: ("GET", f"{ROOT}/suggest/search?q=wren"),
    Family.SPELLCHECK: ("GET", f"{ROOT}/spellcheck/search?q=wren"),
    Family.ANSWERS: ("POST", CHAT),
}
HEADERS = {"x-subscription-token": VENDOR_KEY, "accept-encoding": "identity"}


@pytest.fixture
async def vendor():
    async with BraveSimulator() as simulator:
        yield simulator


@pytest.fixture
async def client(vendor):
    async with httpx.AsyncClient(base_url=vendor.url, headers=HEADERS, trust_env=False) as client:
        yield client


async def ask(client, family, **headers):
    method, path = OF_FAMILY[family]
    return await client.request(method, path, headers=headers, json=QUESTION if method == "POST" else None)


# --- searches


async def test_a_search_has_results_of_the_documented_shape(client, vendor):
    body = (await client.get(WEB, params={"q": "wren"})).json()
    assert body["type"] == "search"
    assert body["query"] == {"original": "wren", "more_results_available": True}
    assert body["web"]["type"] == "search"
    assert len(body["web"]["results"]) == len(body["mixed"]["main"]) == 3
    assert {"title", "url", "description", "age"} <= set(body["web"]["results"][0])
    (told,) = vendor.answers
    assert (told.path, told.family, told.status, told.model) == (WEB, Family.SEARCH, 200, "")
    assert not told.is_streaming


async def test_a_search_may_be_asked_for_in_a_body(client):
    asked = {"q": "wren", "count": 2, "summary": True}
    posted = (await client.post(WEB, json=asked)).json()
    got = (await client.get(WEB, params=asked)).json()
    assert posted == got
    assert len(got["web"]["results"]) == 2


async def test_a_context_grounds_each_of_its_sources(client):
    for answer in (
        await client.get(CONTEXT, params={"q": "wren", "count": 50}),
        await client.post(CONTEXT, json={"q": "wren", "maximum_number_of_tokens": 32_768}),
    ):
        body = answer.json()
        urls = [found["url"] for found in body["grounding"]["generic"]]
        assert len(urls) == 3
        assert body["grounding"]["map"] == []
        assert body["sources"].keys() == set(urls)
        assert body["sources"][urls[0]]["hostname"] == "site1.example"


async def test_the_keys_of_a_search_lead_on(client):
    asked = {"q": "wren", "summary": "1", "enable_rich_callback": "true"}
    body = (await client.get(WEB, params=asked)).json()
    summary = await client.get(f"{ROOT}/summarizer/search", params={"key": body["summarizer"]["key"]})
    rich = await client.get(f"{ROOT}/web/rich", params={"callback_key": body["rich"]["hint"]["callback_key"]})
    assert (summary.json()["status"], rich.json()["type"]) == ("complete", "rich")
    plain = (await client.get(WEB, params={"q": "wren", "summary": "0"})).json()
    assert not {"summarizer", "rich"} & set(plain)


async def test_places_are_found_by_all_their_ids(client):
    found = (await client.get(f"{ROOT}/local/place_search", params={"q": "bar", "count": 2})).json()
    ids = [place["id"] for place in found["results"]]
    assert len(ids) == 2
    for path in ("pois", "descriptions"):
        body = (await client.get(f"{ROOT}/local/{path}", params={"ids": ids})).json()
        assert body["type"] == f"local_{path}"
        assert [place["id"] for place in body["results"]] == ids


async def test_words_are_completed_and_corrected(client):
    completed = (await client.get(f"{ROOT}/suggest/search?q=al&count=2")).json()
    assert completed == {
        "type": "suggest",
        "query": {"original": "al"},
        "results": [{"query": "ale"}, {"query": "alee"}],
    }
    assert (await client.get(f"{ROOT}/spellcheck/search?q=WREN")).json() == {
        "type": "spellcheck",
        "query": {"original": "WREN"},
        "results": [{"query": "wren"}],
    }


@pytest.mark.parametrize(("target", "requests"), SEARCHES.items())
async def test_every_search_says_what_it_is_billed(client, vendor, target, requests):
    assert (await client.get(target, headers={"x-request-tag": "T1"})).status_code == 200
    (told,) = vendor.answers
    assert told.usage == ReportedUsage(Family.SEARCH, requests=requests)
    assert told.usage.counts() == ({"searches": 1} if requests else {})
    assert told.facts()["usage"] == told.usage.counts()
    assert told.tag == "T1"


async def test_every_product_says_whose_use_it_was(client, vendor):
    for family in OF_FAMILY:
        assert (await ask(client, family)).status_code == 200
    assert [told.family for told in vendor.answers] == list(OF_FAMILY)
    assert [told.usage.family for told in vendor.answers] == list(OF_FAMILY)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{ROOT}/images/search"),
        ("POST", f"{ROOT}/suggest/search"),
        ("GET", CHAT),
        ("GET", "/res/v1/web"),
        ("GET", "/web/search"),
        ("DELETE", WEB),
    ],
)
async def test_what_the_vendor_does_not_have_is_not_found(client, vendor, method, path):
    answer = await client.request(method, f"{path}?q=wren")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert vendor.answers == []


# --- checks


@pytest.mark.parametrize(
    ("path", "good", "bad"),
    [
        (WEB, {"q": "x" * 400}, {"q": "x" * 401}),
        (WEB, {"q": "x " * 50}, {"q": "x " * 51}),
        (WEB, {"q": "x", "count": 20}, {"q": "x", "count": 21}),
        (WEB, {"q": "x", "count": 1}, {"q": "x", "count": 0}),
        (WEB, {"q": "x", "offset": 9}, {"q": "x", "offset": 10}),
        (WEB, {"q": "x", "offset": 0}, {"q": "x", "offset": "-1"}),
        (WEB, {"q": "x"}, {"q": "x", "count": "many"}),
        (WEB, {"q": "x"}, {"q": ""}),
        (WEB, {"q": "x"}, {}),
        (CONTEXT, {"q": "x", "count": 50}, {"q": "x", "count": 51}),
        (
            CONTEXT,
            {"q": "x", "maximum_number_of_tokens": 32_768},
            {"q": "x", "maximum_number_of_tokens": 32_769},
        ),
        (f"{ROOT}/local/pois", {"ids": ["a"] * 20}, {"ids": ["a"] * 21}),
        (f"{ROOT}/local/descriptions", {"ids": ["a"]}, {}),
        (f"{ROOT}/web/rich", {"callback_key": "k"}, {}),
        (f"{ROOT}/summarizer/search", {"key": "k"}, {}),
    ],
)
async def test_the_limits_of_a_search_are_checked(client, vendor, path, good, bad):
    assert (await client.get(path, params=good)).status_code == 200
    refused = [await client.get(path, params=bad)]
    if path in (WEB, CONTEXT):
        assert (await client.post(path, json=good)).status_code == 200
        refused.append(await client.post(path, json=bad))
    billed = len(vendor.answers)
    for answer in refused:
        error = answer.json()["error"]
        assert (answer.status_code, error["status"], error["code"]) == (422, 422, "VALIDATION")
        assert set(error["meta"]) == {"errors"}
    assert len(vendor.answers) == billed == len(refused)


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"q": 5}', b'{"q": "x", "count": true}'])
async def test_a_body_that_is_no_search_is_refused(client, body):
    answer = await client.post(WEB, content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "VALIDATION")


# --- keys


@pytest.mark.parametrize("family", OF_FAMILY)
async def test_a_key_is_good_for_its_own_product_only(vendor, family):
    async with httpx.AsyncClient(base_url=vendor.url, trust_env=False) as client:
        for other, key in FAMILY_KEYS.items():
            answer = await ask(client, family, **{"x-subscription-token": key})
            if other is family:
                assert answer.status_code == 200
                continue
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "OPTION_NOT_IN_PLAN")
            assert error["meta"]["plan"] == PLANS[other]
            assert error["meta"]["quota_current"] == QUOTA_USED
        assert len(vendor.answers) == 1


@pytest.mark.parametrize("family", OF_FAMILY)
@pytest.mark.parametrize("headers", [{}, {"x-subscription-token": "no"}, {"authorization": "Bearer no"}])
async def test_a_bad_or_missing_key_is_told_as_the_vendor_tells_it(vendor, family, headers):
    async with httpx.AsyncClient(base_url=vendor.url, trust_env=False) as client:
        answer = await ask(client, family, **headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "SUBSCRIPTION_TOKEN_INVALID")
    assert error["meta"] == {"component": "authentication"}


async def test_only_answers_take_their_key_as_a_bearer(vendor):
    async with httpx.AsyncClient(base_url=vendor.url, trust_env=False) as client:
        asked = {"authorization": f"Bearer {VENDOR_KEY}"}
        assert (await ask(client, Family.ANSWERS, **asked)).status_code == 200
        assert (await ask(client, Family.SEARCH, **asked)).status_code == 422
        wrong = await ask(client, Family.ANSWERS, authorization=f"Bearer {SEARCH_KEY}")
        bare = await ask(client, Family.ANSWERS, authorization=ANSWERS_KEY)
    assert wrong.json()["error"]["code"] == "OPTION_NOT_IN_PLAN"
    assert bare.json()["error"]["code"] == "SUBSCRIPTION_TOKEN_INVALID"


async def test_keys_of_ones_own_and_any_key():
    token = {"x-subscription-token": "mine"}
    async with (
        BraveSimulator(api_key="all", keys={Family.SUGGEST: "mine"}) as own,
        BraveSimulator(api_key=None) as open_to_all,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        for path, status in (("suggest/search", 200), ("spellcheck/search", 400)):
            answer = await client.get(f"{own.url}{ROOT}/{path}?q=x", headers=token)
            assert answer.status_code == status
        assert (await client.get(f"{open_to_all.url}{WEB}?q=x", headers=token)).status_code == 200
        assert (await client.get(f"{open_to_all.url}{WEB}?q=x")).status_code == 422


# --- the account, and errors


async def test_every_answer_tells_of_the_account(client, vendor):
    vendor.next(Behaviour(), fails(429), replays(b"{}", "application/json"))
    found = [await client.get(WEB, params={"q": "x"}) for _ in range(3)]
    found += [await client.get("/nowhere"), await ask(client, Family.ANSWERS)]
    assert [answer.status_code for answer in found] == [200, 429, 200, 404, 200]
    for answer in found:
        assert {name: answer.headers[name] for name, _ in ACCOUNT_HEADERS} == dict(ACCOUNT_HEADERS)
    assert found[0].headers["x-ratelimit-limit"] == "50, 0"
    assert found[0].headers["x-ratelimit-policy"] == "50;w=1, 0;w=2678400"


@pytest.mark.parametrize(
    ("family", "rate"),
    [(Family.SEARCH, 50), (Family.ANSWERS, 2), (Family.SUGGEST, 100), (Family.SPELLCHECK, 100)],
)
async def test_a_rate_limit_tells_of_the_plan_and_its_quota(client, vendor, family, rate):
    vendor.next(fails(429, headers={"retry-after": "1"}, message="Slow down"))
    answer = await ask(client, family)
    body = answer.json()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert (body["type"], type(body["time"])) == ("ErrorResponse", int)
    error = body["error"]
    assert set(error) == {"id", "status", "code", "detail", "meta"}
    assert (error["status"], error["code"], error["detail"]) == (429, "RATE_LIMITED", "Slow down")
    assert error["meta"] == {
        "plan": PLANS[family],
        "rate_limit": rate,
        "rate_current": rate,
        "quota_limit": 0,
        "quota_current": QUOTA_USED,
        "component": "rate_limiter",
    }
    assert vendor.answers[0].usage is None


async def test_an_error_says_the_code_and_the_meta_it_is_given(client, vendor):
    vendor.next(fails(500), fails(403, "RESOURCE_NOT_ALLOWED", error_meta={"a": 1}))
    first, second = [(await client.get(WEB, params={"q": "x"})).json()["error"] for _ in range(2)]
    assert (first["status"], first["meta"]) == (500, {})
    assert (second["code"], second["meta"]) == ("RESOURCE_NOT_ALLOWED", {"a": 1})
    assert first["id"] != second["id"]
    assert [(told.status, told.usage) for told in vendor.answers] == [(500, None), (403, None)]


async def test_a_request_with_a_wrong_key_does_not_use_up_a_script(client, vendor):
    vendor.next(fails(503))
    assert (await ask(client, Family.SEARCH, **{"x-subscription-token": "no"})).status_code == 422
    assert (await ask(client, Family.SEARCH)).status_code == 503


# --- scripts


async def test_what_results_say_and_how_many_there_are_may_be_given(client, vendor):
    vendor.next(streams(text="A wren.", results=5), streams(results=5), Behaviour(text_bytes=10_000))
    given, within, large = [await client.get(WEB, params={"q": "x", "count": 4}) for _ in range(3)]
    assert [found["description"] for found in given.json()["web"]["results"]] == ["A wren."] * 4
    assert len(within.json()["web"]["results"]) == 4
    assert len(large.content) > 30_000


async def test_a_body_of_ones_own_is_billed_as_any_that_succeeds(client, vendor):
    vendor.next(answers({"any": "thing"}), answers({"no": "thing"}, status=500), replays(b"[1]", "text/x"))
    given, failed, recorded = [await client.get(WEB, params={"q": "x"}) for _ in range(3)]
    assert (given.json(), failed.status_code) == ({"any": "thing"}, 500)
    assert (recorded.content, recorded.headers["content-type"]) == (b"[1]", "text/x")
    one = ReportedUsage(Family.SEARCH)
    assert [told.usage for told in vendor.answers] == [one, None, one]


@pytest.mark.parametrize("ending", [Ending.FIN, Ending.RESET])
async def test_an_answer_breaks_off_after_as_many_bytes_as_asked(client, vendor, ending):
    vendor.next(breaks_after(10, ending=ending))
    with pytest.raises(httpx.TransportError):
        await client.get(WEB, params={"q": "x"})
    assert vendor.exchanges[0].state is State.BROKEN_OFF
    assert vendor.answers[0].usage == ReportedUsage(Family.SEARCH), "the vendor has answered"


async def test_a_dropped_request_has_no_answer(client, vendor):
    vendor.next(drops(is_reset=True))
    with pytest.raises(httpx.TransportError):
        await client.get(WEB, params={"q": "x"})
    assert vendor.exchanges[0].sent_bytes == 0


@pytest.mark.parametrize("behaviour", [hangs, lambda gate: stalls_after(7, gate=gate)])
async def test_an_answer_waits_for_its_gate(client, vendor, behaviour):
    gate = Gate()
    vendor.next(behaviour(gate=gate))
    asking = spawn(client.get(WEB, params={"q": "x"}), name="a search")
    await gate.reached()
    assert not asking.done()
    gate.open()
    assert (await asking).json()["type"] == "search"


async def test_a_search_is_compressed_for_those_who_accept_it(client, vendor):
    vendor.next(streams(gzip=True), streams(gzip=True))
    packed = await client.get(WEB, params={"q": "x"}, headers={"accept-encoding": "gzip"})
    plain = await client.get(WEB, params={"q": "x"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.json() == plain.json()


async def test_the_durable_record_says_what_each_answer_used(tmp_path):
    path = tmp_path / "record.jsonl"
    async with (
        BraveSimulator(record_to=path) as simulator,
        httpx.AsyncClient(base_url=simulator.url, headers=HEADERS, trust_env=False) as client,
    ):
        await client.get(WEB, params={"q": "x"}, headers={"x-request-tag": "T9"})
    seen, ended = read_record(path)
    assert (seen["tag"], seen["usage"], seen["status"]) == ("T9", {"searches": 1}, 200)
    assert ended["state"] == "sent"


def test_it_can_be_run_in_a_process_of_its_own():
    assert (VENDORS["brave"], BraveSimulator.vendor_key) == (BraveSimulator, VENDOR_KEY)
