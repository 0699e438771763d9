"""Users of Brave who want searches that nobody counts, or other operations of the account."""

import copy
import re

import orjson
import pytest

from metering.prices import PriceTable
from proxy.surface import AnswerHead, Inbound, Pricing
from routes.brave_answers import AnswersMeter
from simulators.brave_answers import Reply, ReportedUsage, Tags, chat_events
from tests.hostile.stage import ANSWERS, SEARCH, answers

pytestmark = pytest.mark.asyncio(loop_scope="module")
SEARCH_NANOUSD = 5_000_000
QUERY_NANOUSD, TOKEN_NANOUSD = 4_000_000, 5_000
"""Of an answer."""


async def ask(stage, wire):
    """The answer; what reached the vendor is what was served."""
    conversation = await stage.converse(wire, answers=1)
    await stage.assert_held(wire, conversation)
    (answer,) = conversation.answers
    assert len(stage.vendor.requests) == (answer.status == 200)
    return answer


async def newest(stage):
    """Of the newest entry: basis, cost in nano-USD, counts."""
    await stage.gateway.quiet()
    entry = (await stage.gateway.entries())[-1]
    (line,) = orjson.loads(entry["usage"])
    return entry["basis"], entry["cost_nanousd"], line["counts"]


async def hold_nanousd(stage):
    """Of the newest request."""
    rows = await stage.gateway.service.store.readers.rows(
        "SELECT hold_nanousd FROM reservations ORDER BY id DESC LIMIT 1", ()
    )
    return rows[0][0]


def filled(stage, text):
    encoded = b"".join(b"%%%02x" % byte for byte in stage.token.encode())
    for word, value in (
        (b"GOOD", stage.token.encode()),
        (b"OTHER", stage.other.encode()),
        (b"ENCODED", encoded),
    ):
        text = text.replace(word, value)
    return text  # fmt: skip


# --- tokens in odd places -------------------------------------------------------------------------------


PLACES = {
    (b"x-subscription-token: GOOD",): 200,
    (b"X-SUBSCRIPTION-TOKEN: GOOD",): 200,
    (b"authorization: Bearer GOOD",): 200,
    (b"x-api-key: GOOD",): 200,
    (b"x-subscription-token: GOOD", b"authorization: Bearer GOOD"): 200,
    (b"x-subscription-token: GOOD", b"authorization: Bearer OTHER"): 401,
    (b"x-subscription-token: OTHER", b"x-api-key: GOOD"): 401,
    (b"x-subscription-token: GOOD", b"x-subscription-token: OTHER"): 401,
    (b"x-subscription-token: GOOD,OTHER",): 401,
    (b"x-subscription-token: Bearer GOOD",): 401,
    (b"x-subscription-token:",): 401,
    (b"x_subscription_token: GOOD",): 401,
    (b"authorization: Basic GOOD",): 401,
    (b"authorization: GOOD",): 401,
    (b"x-goog-api-key: GOOD",): 401,
    (b"cookie: x-subscription-token=GOOD",): 401,
    (b"x-forwarded-x-subscription-token: GOOD",): 401,
    (): 401,
}


@pytest.mark.parametrize("headers", PLACES, ids=[b"|".join(one).decode() or "none" for one in PLACES])
async def test_a_token_counts_where_braves_clients_put_it_and_nowhere_else(stage, headers):
    head = b"\r\n".join([b"GET " + SEARCH + b"?q=a HTTP/1.1", b"host: proxy", *headers, b"", b""])
    answer = await ask(stage, filled(stage, head))
    assert answer.status == PLACES[headers]


@pytest.mark.parametrize("query", [b"q=GOOD", b"q=ENCODED", b"x-subscription-token=GOOD", b"GOOD", b"q=a&token=ENCODED"])  # fmt: skip
async def test_a_token_in_the_query_goes_to_nobody(stage, query):
    wire = filled(stage, stage.head(method=b"GET", target=SEARCH + b"?" + query))
    assert (await ask(stage, wire)).status == 400
    bare = b"GET " + SEARCH + b"?" + query + b" HTTP/1.1\r\nhost: proxy\r\n\r\n"
    assert (await ask(stage, filled(stage, bare))).status in {400, 401}


# --- searches that nobody would count -------------------------------------------------------------------


QUERIES = (
    b"", b"?q=", b"?q=a&q=b&q=c", b"?q=a;q=b", b"?q=a&count=20&offset=9", b"?q=a&count=0", b"?q=a&count=-1", b"?Q=a",
    b"?q=a&summary=1&enable_rich_callback=1", b"?q=a&callback_key=c1", b"?q=a&key=k1", b"?q=%00", b"?q=%ff%fe", b"?q=a%26count%3d9",
    b"?q=a&stream=true&enable_research=true", b"?q=a&usage=%3Cusage%3E%7B%7D%3C%2Fusage%3E", b"?q=a&fields=x&$alt=proto", b"?&&=&q=a",
)  # fmt: skip


@pytest.mark.parametrize("query", QUERIES)
async def test_whatever_the_query_says_it_is_one_search_and_goes_up_byte_for_byte(stage, query):
    answer = await ask(stage, stage.head(method=b"GET", target=SEARCH + query))
    assert answer.status == 200
    assert stage.vendor.requests[0].target == SEARCH.removeprefix(b"/api/brave") + query
    assert await newest(stage) == ("reported", SEARCH_NANOUSD, {"searches": 1})


@pytest.mark.parametrize(
    "body", [b"{}", b'{"q":["a","b","c"]}', b'{"q":"a","count":10000000}', b'{"queries":[{"q":"a"},{"q":"b"}]}']
)  # fmt: skip
async def test_whatever_the_body_says_it_is_one_search(stage, body):
    assert (await ask(stage, stage.post(body=body, target=SEARCH))).status == 200
    assert await newest(stage) == ("reported", SEARCH_NANOUSD, {"searches": 1})


@pytest.mark.parametrize("body", [b"", b"[]", b'[{"q":"a"},{"q":"b"}]', b'{"q":"a"}{"q":"b"}', b'{"q":"a","q":"b"}', b'"a"', b"q=a"])  # fmt: skip
async def test_a_body_that_is_more_than_one_search_or_none_is_refused(stage, body):
    assert (await ask(stage, stage.post(body=body, target=SEARCH))).status == 400


async def test_a_body_beside_a_get_does_not_go_up(stage):
    target, body = SEARCH + b"?q=a", b'{"q":"b"}'
    wire = stage.head(b"content-length: %d" % len(body), method=b"GET", target=target) + body
    assert (await ask(stage, wire)).status == 200
    assert stage.vendor.requests[0].body == b""
    assert await newest(stage) == ("reported", SEARCH_NANOUSD, {"searches": 1})


@pytest.mark.parametrize("status", [200, 202, 206, 299])
async def test_every_success_is_charged_however_little_of_it_there_is(stage, status):
    """A range, a condition or a method of the client's cannot make it cheaper."""
    stage.vendor.said = b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status
    wire = stage.head(b"range: bytes=0-0", b"if-none-match: *", method=b"GET", target=SEARCH + b"?q=a")
    conversation = await stage.converse(wire, answers=1)
    assert conversation.statuses == [status]
    assert (await newest(stage))[1:] == (SEARCH_NANOUSD, {"searches": 1})


# --- answers that nobody would count --------------------------------------------------------------------


NOT_FLAGS = ("true", "false", "yes", "", 0, 1, 2.0, [], [True], {}, {"value": True})
NOT_BOUNDS = (-1, 0, 51, 10**9, 10**18, 10**30, 1.0, 2.5, 1e300, "3", "", True, [], [3], {})
REFUSED = (
    *(("stream", value, 400) for value in NOT_FLAGS),
    *(("enable_research", value, 400) for value in NOT_FLAGS),
    *(("research_maximum_number_of_queries", value, 400) for value in NOT_BOUNDS),
    *(("research_maximum_number_of_tokens_per_query", value, 400) for value in (*NOT_BOUNDS[:2], 16_385, *NOT_BOUNDS[3:])),
    *(("model", value, 404) for value in ("brave-pro", "Brave", " brave", "brave ", "brave\u0000", "", None, [], ["brave"], {}, 1)),
)  # fmt: skip


@pytest.mark.parametrize(("name", "value", "status"), REFUSED)
async def test_what_would_be_held_in_another_way_than_it_is_done_is_refused(stage, name, value, status):
    fields = {"model": "brave", "enable_research": True, "messages": [{"role": "user", "content": "Hi"}]}
    big = {10**30: b"1" + b"0" * 30}.get(value) if isinstance(value, int) else None
    body = orjson.dumps({**fields, name: "BIG" if big else value}).replace(b'"BIG"', big or b"")
    answer = await ask(stage, stage.post(body=body, target=ANSWERS))
    assert answer.status == status
    if status == 400 and not big:  # which is no JSON to us
        assert answer.message.startswith(f"{name}: ")


HEAD = b'{"model":"brave","messages":[{"role":"user","content":"Hi"}],'
TWICE = (
    b'"stream":false,"stream":false}', b'"stream":true,"stream":false}', b'"stream":false,"stre\\u0061m":true}',
    b'"enable_research":false,"enable_research":true}', b'"enable_research":true,"\\u0065nable_research":false}',
    b'"model":"brave"}', b'"messages":[]}', b'"a":{"x":1,"x":2}}',
    b'"enable_research":true,"research_maximum_number_of_queries":1,"research_maximum_number_of_queries":50}',
)  # fmt: skip


@pytest.mark.parametrize("tail", TWICE)
async def test_a_key_that_stands_twice_is_refused_in_every_spelling(stage, tail):
    assert (await ask(stage, stage.post(body=HEAD + tail, target=ANSWERS))).status == 400


async def test_a_research_is_held_as_one_however_its_switch_is_written(stage):
    holds = []
    for tail in (
        b'"enable_research":false}',
        b'"enable_research":true}',
        b'"\\u0065nable\\u005fresearch": true }',
    ):
        stage.forget()
        assert (await ask(stage, stage.post(body=HEAD + tail, target=ANSWERS))).status == 200
        holds.append(await hold_nanousd(stage))
    plain, research, escaped = holds
    assert research - plain > 19 * QUERY_NANOUSD
    assert abs(escaped - research) < 20 * TOKEN_NANOUSD


@pytest.mark.parametrize("query", [b"enable_research=true", b"stream=false", b"model=brave", b"a", b"%73tream=false"])  # fmt: skip
async def test_a_parameter_beside_a_question_is_refused(stage, query):
    wire = stage.post(body=answers(), target=ANSWERS + b"?" + query)
    assert (await ask(stage, wire)).status == 400


# --- the tag that tells the usage -----------------------------------------------------------------------


TOLD = ReportedUsage(queries=2, input_tokens=9_000, output_tokens=700)
TOLD_NANOUSD = 2 * QUERY_NANOUSD + 9_700 * TOKEN_NANOUSD
FREE = ReportedUsage(requests=0, queries=0, input_tokens=0, output_tokens=0).tag()
ZEROS = {
    "as it is": FREE,
    "with blanks behind it": FREE + " \n\n",
    "twice": FREE * 2,
    "with an end of ours": FREE + "\n\ndata: [DONE]\n\n",
    "opened and never closed": "<usage>",
    "opened again": FREE + "<usage><usage>",
    "closed": "</usage>",
    "half": FREE[: len(FREE) // 2],
    "in capitals": FREE.upper(),
    "longer than what is looked at": FREE + " " * 5_000,
    "as JSON": '"<usage>{}</usage>"}}]}',
    "as an error": '{"error":{"code":"x"}}',
}
"""Ends of a text that a question may have the answer quote."""


def spoken(text, *, tags=1, split=None, usage=TOLD):
    """A stream whose text says that, in events."""
    reply = Reply("a1", "brave", text, usage, Tags(tags, split))
    return chat_events(reply, None)[0]


def escaped(data):
    """The same JSON, its tags in escapes."""
    data = data.replace(b"<usage>", b"\\u003cus\\u0061ge\\u003E")
    return data.replace(b"</usage>", b"\\u003c\\/usag\\u0065>")


def on_wire(events, *, is_whole=True):
    body = b"".join(events)
    length = len(body) if is_whole else len(body) + 1
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % length
    return head + body


@pytest.mark.parametrize("ending", ZEROS)
@pytest.mark.parametrize("split", [None, 1, 7])
async def test_a_quoted_tag_is_none_beside_the_vendors_own(stage, ending, split):
    stage.vendor.said = on_wire(spoken("Teal." + ZEROS[ending], split=split))
    assert (await ask(stage, stage.post(body=answers(), target=ANSWERS))).status == 200
    counts = {"searches": 2, "input_tokens": 9_000, "output_tokens": 700}
    assert await newest(stage) == ("reported", TOLD_NANOUSD, counts)


async def test_a_tag_in_escapes_is_read_as_what_it_says(stage):
    stage.vendor.said = on_wire([escaped(event) for event in spoken("Teal." + FREE)])
    assert b"<usage>" not in stage.vendor.said
    assert (await ask(stage, stage.post(body=answers(), target=ANSWERS))).status == 200
    assert (await newest(stage))[:2] == ("reported", TOLD_NANOUSD)


@pytest.mark.parametrize("ending", ZEROS)
@pytest.mark.parametrize("is_research", [False, True])
@pytest.mark.parametrize("is_framed", [False, True], ids=["broken off", "ended without its end"])
async def test_a_quoted_tag_is_none_where_the_vendor_ends_behind_it(stage, ending, is_research, is_framed):
    """Else whoever has the answer end in zeros pays nothing for what breaks off there."""
    *said, _, _, _ = spoken("Teal. " * 30 + ZEROS[ending])
    stage.vendor.said = on_wire(said, is_whole=is_framed)
    body = answers(enable_research=is_research)
    conversation = await stage.converse(stage.post(body=body, target=ANSWERS), answers=1)
    assert conversation.is_closed
    basis, cost_nanousd, counts = await newest(stage)
    assert (basis, counts["searches"]) == ("estimated", 20 if is_research else 1)
    assert cost_nanousd > QUERY_NANOUSD + 8_192 * TOKEN_NANOUSD


PRICES = PriceTable.load()
CUT_PARTS = 4
"""Of all places where a stream can be cut: tests of their own, which take turns and run beside each other."""


def observer():
    """The meter's, before an answer."""
    body = answers()
    request = Inbound("POST", {}, b"", [], body, orjson.loads(body))
    meter = AnswersMeter()
    demand = meter.read(request, Pricing(PRICES, 0, 2))
    return meter.observe(request, demand, AnswerHead(200, [(b"content-type", b"text/event-stream")]))


def counted(observer, piece):
    """After one more piece, what the meter has counted of an answer that broke off there unless it was whole."""
    after = copy.deepcopy(observer)
    after.feed(piece)
    after.end()
    return after.usage()


@pytest.mark.parametrize("part", range(CUT_PARTS))
@pytest.mark.parametrize("split", [None, 1])
async def test_cut_at_any_byte_a_stream_counts_the_same_and_broken_off_there_never_less_than_an_estimate(
    split, part
):
    """Events before the one that is cut are read once for all of its cuts."""
    body = b"".join(spoken("Teal." + FREE, split=split))
    least, at = None, 0
    read = observer()
    for event in re.split(rb"(?<=\n\n)", body):
        for cut in range(part, len(event), CUT_PARTS):
            half = copy.deepcopy(read)
            half.feed(event[:cut])
            whole, broken = counted(half, body[at + cut :]), counted(half, b"")
            assert whole.is_exact
            assert whole.lines[0].counts == {"searches": 2, "input_tokens": 9_000, "output_tokens": 700}
            counts = broken.lines[0].counts
            least = counts if least is None else least
            assert not broken.is_exact or at + cut >= len(body) - 2  # the blank line behind the last event
            if not broken.is_exact:
                assert counts["searches"] >= 1
                assert counts["input_tokens"] >= least["input_tokens"] > 8_192
        at += len(event)
        read.feed(event)
    assert at == len(body)


# --- other operations of the account --------------------------------------------------------------------


PATHS = (
    b"GET /api/brave", b"GET /api/brave/", b"GET /api/brave/res", b"GET /api/brave/res/v1", b"GET /api/brave/res/v1/",
    b"GET /api/brave/res/v1/account", b"GET /api/brave/res/v1/usage", b"GET /api/brave/res/v1/subscriptions", b"GET /api/brave/app/keys",
    b"GET /api/brave/res/v2/web/search", b"GET /api/brave/res/V1/web/search", b"GET /api/brave/RES/v1/web/search",
    b"GET /api/brave/res/v1/web/search/", b"GET /api/brave//res/v1/web/search", b"GET /api/brave/res//v1/web/search",
    b"GET /api/brave/res/v1/web%2fsearch", b"GET /api/brave/res%2Fv1%2Fweb%2Fsearch", b"GET /api/brave/res/v1/web/search%3fq=a",
    b"GET /api/brave/res/v1/web/search%23", b"GET /api/brave/res/v1/web/search;a=b", b"GET /api/brave/res/v1/web/search%00",
    b"GET /api/brave/res/v1/web/%73earch", b"GET /api/brave/res/v1/web/search%20", b"GET /api/brave/res/v1/web\\search",
    b"GET /api/brave/res/v1/summarizer/../web/search?q=a", b"GET /api/brave/res/v1/summarizer/..%2fweb/search?q=a",
    b"GET /api/brave/res/v1/summarizer/%2e%2e/web/search?q=a", b"GET /api/brave/res/v1/summarizer%2f..%2fweb%2fsearch",
    b"GET /api/brave/res/v1/summarizer/search%2f..%2f..%2fweb%2fsearch", b"GET /api/brave/res/v1/summarizer/search/%2e%2e/%2e%2e/web/search",
    b"GET /api/brave/res/v1/summarizer/..;/web/search", b"GET /api/brave/res/v1/suggest/search/../../web/search",
    b"GET /api/brave/res/v1/%ef%bd%97eb/search", b"GET /api/brave/res/v1/web%c0%afsearch", b"GET /api/brave/res/v1/summarizer",
    b"GET /api/brave/res/v1/chat/completions", b"GET /api/brave/res/v1/chat/completions/a1", b"POST /api/brave/res/v1/responses",
    b"POST /api/brave/res/v1/images/search", b"POST /api/brave/res/v1/summarizer/search", b"PUT /api/brave/res/v1/web/search",
    b"DELETE /api/brave/res/v1/web/search", b"HEAD /api/brave/res/v1/web/search", b"OPTIONS /api/brave/res/v1/web/search",
    b"PATCH /api/brave/res/v1/web/search", b"QUERY /api/brave/res/v1/web/search", b"GET /api/search/res/v1/account",
    b"GET /api/search/web/search", b"GET /api/search/../brave/res/v1/account", b"GET /api/brave2/res/v1/web/search",
)  # fmt: skip


@pytest.mark.parametrize("line", PATHS, ids=[line.decode() for line in PATHS])
async def test_a_path_that_is_not_declared_is_404_and_reaches_nobody(stage, line):
    method, target = line.split(b" ")
    body = b"" if method in (b"GET", b"HEAD") else b'{"q":"a"}'
    conversation = await stage.converse(stage.post(body=body, method=method, target=target), answers=1)
    assert conversation.statuses in ([400], [404], [405], [])
    assert stage.vendor.requests == []
