"""The simulated Answers of Brave, over real sockets: what they use, and how a stream tells it."""

import json

import httpx
import openai
import pytest

from metering.tasks import spawn
from simulators.brave import (
    LOOKALIKE,
    VENDOR_KEY,
    Behaviour,
    BraveSimulator,
    Ending,
    ReportedUsage,
    answers,
    breaks_after,
    errors_after,
    fails,
    stalls_after,
    streams,
)
from simulators.brave_behaviour import parse_simulate
from simulators.script import AtRandom, Gate
from simulators.server import State

CHAT = "/res/v1/chat/completions"
HEADERS = {"authorization": f"Bearer {VENDOR_KEY}", "accept-encoding": "identity"}
TEXT = "A robin, I should say, or a wren."
USAGE = ReportedUsage(queries=8, input_tokens=15_000, output_tokens=2_000, request_microdollars=5_000)
TOLD = {
    "X-Request-Requests": 1,
    "X-Request-Queries": 8,
    "X-Request-Tokens-In": 15_000,
    "X-Request-Tokens-Out": 2_000,
    "X-Request-Requests-Cost": 0.005,
    "X-Request-Queries-Cost": 0.032,
    "X-Request-Tokens-In-Cost": 0.075,
    "X-Request-Tokens-Out-Cost": 0.01,
    "X-Request-Total-Cost": 0.122,
}
"""The documentation's example."""
TAG = f"<usage>{json.dumps(TOLD, separators=(',', ':'))}</usage>"


@pytest.fixture
async def vendor():
    async with BraveSimulator() as simulator:
        yield simulator


@pytest.fixture
async def client(vendor):
    async with httpx.AsyncClient(base_url=vendor.url, headers=HEADERS, trust_env=False) as client:
        yield client


def asking(content="hi there", **more):
    return {"model": "brave", "messages": [{"role": "user", "content": content}], **more}


async def post(client, *, headers=None, **more):
    return await client.post(CHAT, json=asking(**more), headers=headers)


async def stream(client, **more):
    """The events of a streamed answer: the data of each, and `[DONE]`."""
    answer = await post(client, **more)
    assert answer.headers["content-type"] == "text/event-stream"
    return events_of(answer.content)


def events_of(body):
    *blocks, rest = body.decode().split("\n\n")
    assert rest == ""
    assert all(block.startswith("data: ") for block in blocks)
    return [data if data == "[DONE]" else json.loads(data) for data in (block[6:] for block in blocks)]


def pieces_of(events):
    """The text of each chunk that has any."""
    chunks = [event for event in events if event != "[DONE]" and "choices" in event]
    return [piece for chunk in chunks if (piece := chunk["choices"][0]["delta"]["content"])]


async def broken(client, **more):
    """What arrives of a stream that breaks off."""
    body = b""
    try:
        async with client.stream("POST", CHAT, json=asking(**more)) as answer:
            async for piece in answer.aiter_raw():
                body += piece
    except httpx.TransportError:
        return body
    raise AssertionError(f"it ended: {body!r}")


# --- whole answers and streams


async def test_a_stream_is_what_one_gets_without_asking(client, vendor):
    events = await stream(client)
    assert events[-1] == "[DONE]"
    assert {event["object"] for event in events[:-1]} == {"chat.completion.chunk"}
    assert {event["model"] for event in events[:-1]} == {"brave"}
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    (told,) = vendor.answers
    assert told.is_streaming
    assert {event["id"] for event in events[:-1]} == {told.message_id}
    assert "".join(pieces_of(events)) == "You said: hi there" + told.usage.tag()
    assert (await post(client, stream=True)).headers["content-type"] == "text/event-stream"


async def test_a_whole_answer_ran_one_query_and_tells_its_tokens(client, vendor):
    body = (await post(client, stream=False)).json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "You said: hi there"}
    (told,) = vendor.answers
    assert not told.is_streaming
    assert told.usage.queries == 1
    assert body["usage"] == {
        "prompt_tokens": told.usage.input_tokens,
        "completion_tokens": 5,
        "total_tokens": told.usage.input_tokens + 5,
    }


def test_the_tag_of_the_documentations_example():
    assert USAGE.tag() == TAG
    assert json.loads(USAGE.tag(is_spaced=True)[7:-8]) == TOLD
    assert '"X-Request-Queries": 8, ' in USAGE.tag(is_spaced=True)
    assert USAGE.counts() == {"searches": 8, "input_tokens": 15_000, "output_tokens": 2_000}


def test_a_price_that_the_list_does_not_know_is_not_told_unasked():
    told = ReportedUsage(queries=1, input_tokens=8_290, output_tokens=316).in_tag()
    assert (told["X-Request-Requests-Cost"], told["X-Request-Total-Cost"]) == (0, 0.04703)


async def test_the_usage_given_is_the_usage_told(client, vendor):
    vendor.next(streams(text=TEXT, usage=USAGE), streams(usage=USAGE))
    assert "".join(pieces_of(await stream(client))) == TEXT + TAG
    whole = (await post(client, stream=False)).json()
    assert whole["usage"] == {"prompt_tokens": 15_000, "completion_tokens": 2_000, "total_tokens": 17_000}
    assert [told.usage for told in vendor.answers] == [USAGE, USAGE]
    assert vendor.answers[0].facts()["usage"] == USAGE.counts()


async def test_a_research_runs_more_queries_up_to_its_maximum(client, vendor):
    for more in (
        {},
        {"research_maximum_number_of_queries": 3},
        {"research_maximum_number_of_tokens_per_query": 100},
    ):
        await stream(client, enable_research=True, **more)
    await stream(client, research_maximum_number_of_queries=3)
    usual, bounded, short, none = [told.usage for told in vendor.answers]
    assert [usage.queries for usage in (usual, bounded, short, none)] == [8, 3, 8, 1]
    assert usual.input_tokens > bounded.input_tokens > short.input_tokens
    assert usual.counts()["searches"] == 8


@pytest.mark.parametrize("stream_asked", [True, False])
async def test_a_whole_answer_may_tell_its_usage_in_headers(client, vendor, stream_asked):
    vendor.next(streams(usage=USAGE, usage_headers=True), streams(usage=USAGE))
    told, plain = [await post(client, stream=stream_asked) for _ in range(2)]
    expected = {} if stream_asked else {name.lower(): str(value) for name, value in TOLD.items()}
    assert {name: told.headers[name] for name in told.headers if name.startswith("x-request-")} == expected
    assert not [name for name in plain.headers if name.startswith("x-request-")]


async def test_an_answer_carries_the_tag_of_its_request(client, vendor):
    await post(client, user="u")
    await post(client, user="u", headers={"x-request-tag": "T1"})
    assert [told.tag for told in vendor.answers] == ["u", "T1"]


async def test_openais_own_client_reads_both(vendor):
    vendor.next(*[streams(text=TEXT, usage=USAGE)] * 2)
    async with openai.AsyncOpenAI(base_url=f"{vendor.url}/res/v1", api_key=VENDOR_KEY) as sdk:
        whole = await sdk.chat.completions.create(**asking(stream=False))
        chunks = [chunk async for chunk in await sdk.chat.completions.create(**asking(stream=True))]
    assert (whole.choices[0].message.content, whole.usage.total_tokens) == (TEXT, 17_000)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == TEXT + TAG


# --- checks


@pytest.mark.parametrize(
    "change",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
        {"messages": [{"role": "system", "content": "a"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": "hi"},
        {"model": "gpt-5"},
        {"stream": "yes"},
        {"enable_research": 1},
        {"enable_research": True, "stream": False},
        {"research_maximum_number_of_queries": 51},
        {"research_maximum_number_of_queries": 0},
        {"research_maximum_number_of_tokens_per_query": 16_385},
    ],
)
async def test_what_the_vendor_would_not_answer_is_refused(client, vendor, change):
    answer = await client.post(CHAT, json={**asking(), **change})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "VALIDATION")
    assert vendor.answers == []


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"model": "brave"}', b'{"messages": []}'])
async def test_a_body_that_asks_nothing_is_refused(client, body):
    answer = await client.post(CHAT, content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "VALIDATION")


async def test_the_largest_research_is_answered(client):
    largest = {
        "research_maximum_number_of_queries": 50,
        "research_maximum_number_of_tokens_per_query": 16_384,
    }
    assert (await post(client, enable_research=True, **largest)).status_code == 200


# --- how the tag is told


@pytest.mark.parametrize(
    ("split", "told"),
    [
        (None, [TAG]),
        (1, list(TAG)),
        ((3,), ["<us", TAG[3:]]),
        (
            (TAG.index("15000") + 2, len(TAG) - 1),
            [TAG[: TAG.index("15000") + 2], TAG[TAG.index("15000") + 2 : -1], ">"],
        ),
    ],
)
async def test_the_tag_is_cut_where_it_is_told_to(client, vendor, split, told):
    vendor.next(streams(text="A wren.", usage=USAGE, tag_split=split))
    assert pieces_of(await stream(client)) == ["A ", "wren.", *told]


async def test_a_tag_is_cut_at_random_the_same_for_the_same_seed(client, vendor):
    vendor.next(*[streams(text="A", usage=USAGE, tag_split=AtRandom(seed, 9)) for seed in (5, 5, 6)])
    first, again, other = [pieces_of(await stream(client)) for _ in range(3)]
    assert first == again != other
    assert {"".join(pieces) for pieces in (first, other)} == {"A" + TAG}
    assert max(map(len, first)) <= 9


@pytest.mark.parametrize("split", [None, 2])
@pytest.mark.parametrize("tags", [0, 1, 2])
async def test_the_tag_is_told_as_often_as_asked_and_used_all_the_same(client, vendor, tags, split):
    vendor.next(streams(text=TEXT, usage=USAGE, tags=tags, tag_split=split))
    assert "".join(pieces_of(await stream(client))) == TEXT + TAG * tags
    assert vendor.answers[0].usage == USAGE


async def test_the_tag_may_share_a_chunk_with_the_text(client, vendor):
    vendor.next(
        streams(text="A wren.", usage=USAGE, joins_tag=True),
        streams(text="A wren.", usage=USAGE, joins_tag=True, tag_split=(3,)),
        streams(text="A wren.", usage=USAGE, joins_tag=True, tags=0),
    )
    found = [pieces_of(await stream(client)) for _ in range(3)]
    assert found == [["A ", "wren." + TAG], ["A ", "wren.<us", TAG[3:]], ["A ", "wren."]]


async def test_a_blank_may_follow_each_colon_and_comma(client, vendor):
    vendor.next(streams(text="A", usage=USAGE, spaces_tag=True))
    assert pieces_of(await stream(client))[-1] == f"<usage>{json.dumps(TOLD)}</usage>"


@pytest.mark.parametrize("split", [1, 40])
@pytest.mark.parametrize("lookalike", [LOOKALIKE, "<usage>", "→</usage>"])
async def test_a_lookalike_stands_before_the_tag_and_is_cut_like_it(client, vendor, lookalike, split):
    said = {"text": "A wren.", "usage": USAGE, "lookalike": lookalike}
    vendor.next(streams(**said), streams(**said, tag_split=split), streams(**said))
    assert pieces_of(await stream(client)) == [lookalike, "A ", "wren.", TAG]
    assert pieces_of(await stream(client)) == [
        *(lookalike[at : at + split] for at in range(0, len(lookalike), split)),
        *("A ", "wren."),
        *(TAG[at : at + split] for at in range(0, len(TAG), split)),
    ]
    whole = (await post(client, stream=False)).json()
    assert whole["choices"][0]["message"]["content"] == lookalike + "A wren."
    assert [told.usage for told in vendor.answers] == [USAGE] * 3


async def test_a_question_that_quotes_a_tag_is_quoted_by_the_answer(client, vendor):
    quoted = '<usage>{"X-Request-Queries":0}</usage>'
    text = "".join(pieces_of(await stream(client, content=quoted)))
    assert text == f"You said: {quoted}{vendor.answers[0].usage.tag()}"


async def test_the_last_chunk_may_tell_the_tokens_as_well(client, vendor):
    vendor.next(streams(usage=USAGE, closing_usage=True))
    *chunks, closing, _ = await stream(client)
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert closing["usage"] == USAGE.in_completion()


@pytest.mark.parametrize(
    "more", [{}, {"tag_split": 50}, {"tags": 0}, {"joins_tag": True}, {"lookalike": "<usage>", "tags": 2}]
)
async def test_a_stream_has_as_many_events_as_asked_for(client, vendor, more):
    vendor.next(streams(events=40, usage=USAGE, **more))
    assert len(await stream(client)) == 40


# --- how a stream ends


@pytest.mark.parametrize("ending", [Ending.FIN, Ending.RESET])
@pytest.mark.parametrize(("after", "told"), [(0, ""), (2, TAG[:20])])
async def test_a_stream_breaks_off_before_and_within_its_tag(client, vendor, ending, after, told):
    vendor.next(breaks_after(after, ending=ending, from_tag=True, text=TEXT, usage=USAGE, tag_split=10))
    body = await broken(client)
    assert b"[DONE]" not in body
    if ending is Ending.FIN:  # a reset may take with it what was not read yet
        assert "".join(pieces_of(events_of(body))) == TEXT + told
    assert vendor.answers[0].usage == USAGE
    assert vendor.exchanges[0].state is State.BROKEN_OFF


async def test_a_stream_that_ends_properly_without_its_tag(client, vendor):
    vendor.next(breaks_after(0, ending=Ending.CLEAN, from_tag=True, text=TEXT))
    assert "".join(pieces_of(await stream(client))) == TEXT


async def test_points_count_from_the_first_event_unless_told_otherwise(client, vendor):
    vendor.next(breaks_after(2, ending=Ending.CLEAN, text="one two three four"))
    assert pieces_of(await stream(client)) == ["one ", "two "]


async def test_a_stream_breaks_off_where_tag_and_text_share_a_chunk(client, vendor):
    vendor.next(
        breaks_after(0, ending=Ending.CLEAN, from_tag=True, joins_tag=True, text="one two"),
        breaks_after(0, ending=Ending.CLEAN, from_tag=True, tags=0, text="one two"),
    )
    assert [pieces_of(await stream(client)) for _ in range(2)] == [["one "], ["one ", "two"]]


async def test_a_stream_stalls_before_its_tag_until_its_gate_opens(client, vendor):
    gate = Gate()
    vendor.next(stalls_after(0, gate=gate, from_tag=True, text=TEXT, usage=USAGE))
    reading = spawn(stream(client), name="a stream")
    await gate.reached()
    assert not reading.done()
    assert vendor.exchanges[0].state is State.RUNNING
    gate.open()
    assert "".join(pieces_of(await reading)) == TEXT + TAG


async def test_an_error_within_a_stream_ends_it(client, vendor):
    vendor.next(errors_after(0, from_tag=True, text="A wren.", usage=USAGE))
    events = await stream(client)
    assert pieces_of(events) == ["A ", "wren."]
    assert (events[-1]["type"], events[-1]["error"]["detail"]) == ("ErrorResponse", "Overloaded")


async def test_an_error_and_a_given_body_report_no_usage(client, vendor):
    vendor.next(fails(429), answers({"any": "thing"}))
    failed, given = await post(client), await post(client)
    assert failed.json()["error"]["meta"]["plan"] == "Answers"
    assert given.json() == {"any": "thing"}
    assert [(told.status, told.usage) for told in vendor.answers] == [(429, None), (200, None)]


async def test_a_stream_is_compressed_for_those_who_accept_it(client, vendor):
    vendor.next(*[streams(gzip=True, text=TEXT, usage=USAGE, tag_split=1)] * 2)
    packed = await post(client, headers={"accept-encoding": "gzip"})
    plain = await post(client)
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    for answer in (packed, plain):
        assert "".join(pieces_of(events_of(answer.content))) == TEXT + TAG


async def test_a_scripted_answer_is_the_burst_answer_in_other_pieces():
    bodies = []
    for behaviour in (Behaviour(), Behaviour(split=7), Behaviour(wire_split=AtRandom(3))):
        async with (
            BraveSimulator(default=behaviour) as simulator,
            httpx.AsyncClient(base_url=simulator.url, headers=HEADERS, trust_env=False) as client,
        ):
            answer = await post(client)
            bodies.append((answer.content, sorted(answer.headers.items())))
    assert bodies[1:] == [bodies[0]] * 2


# --- the header language


async def test_a_request_may_say_in_a_header_what_its_answer_does(client, vendor):
    words = "queries=7,input=100,output=20,requests=2,request_microdollars=9,tags=2,tag_split=3"
    events = await stream(client, headers={"x-simulate": words})
    usage = ReportedUsage(requests=2, queries=7, input_tokens=100, output_tokens=20, request_microdollars=9)
    assert vendor.answers[0].usage == usage
    assert "".join(pieces_of(events)) == "You said: hi there" + usage.tag() * 2


def test_words_do_what_their_helpers_do():
    assert parse_simulate("tags=0,lookalike=1,results=2") == streams(tags=0, lookalike=LOOKALIKE, results=2)
    assert parse_simulate("tag_split=r4,cut_after=3,from_tag=1") == breaks_after(
        3, tag_split=AtRandom(4), from_tag=True
    )
    assert parse_simulate("spaces_tag=1,joins_tag=1,closing_usage=1,usage_headers=1") == streams(
        spaces_tag=True, joins_tag=True, closing_usage=True, usage_headers=True
    )


@pytest.mark.parametrize("value", ["nothing=1", "thoughts=3", "tags=x"])
async def test_a_word_that_is_none_here_is_refused(client, value):
    answer = await post(client, headers={"x-simulate": value})
    assert answer.status_code == 400
