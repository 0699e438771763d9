"""What a request to OpenAI may cause, and what is refused before it is sent."""

import json

import pytest

from metering.errors import Reason, Refused
from metering.usage import (
    CACHE_WRITE_12H,
    CACHE_WRITE_30M,
    INPUT,
    INPUT_AUDIO,
    OUTPUT,
    OUTPUT_AUDIO,
    SEARCH_UNITS,
    WEB_SEARCHES,
    WEB_SEARCHES_PREVIEW,
    Usage,
    UsageLine,
)
from routes.openai_chat import EMBEDDED_TOKENS_MAX, ChatMeter, CompletionsMeter, EmbeddingsMeter
from routes.openai_request import CHOICES_MAX, IMAGE_TOKENS_MAX, IMAGE_TOKENS_USUAL, SEARCHES_WHEN_UNSET
from routes.openai_responses import (
    CompactMeter,
    ReplayMeter,
    ResponsesMeter,
    counted_models_of,
    is_kept,
    is_reference,
)
from tests.unit.routes.openai_bodies import MODEL, NOW_MS, PRICES, inbound, pricing

OLD = "gpt-4o"
AUDIO = "gpt-audio"
INSTRUCT = "gpt-3.5-turbo-instruct"
EMBEDDING = "text-embedding-3-small"
HELLO = [{"role": "user", "content": "hello"}]
BPT = 2


def info(name):
    found = PRICES.model("openai", name)
    assert found is not None
    return found


def chat(*, options=None, **fields):
    request = inbound({"model": OLD, "max_tokens": 100, "messages": HELLO, **fields})
    return ChatMeter().read(request, pricing(**(options or {})))


def respond(*, options=None, meter=None, **fields):
    request = inbound({"model": MODEL, "max_output_tokens": 100, "input": "hello", **fields})
    return (meter or ResponsesMeter()).read(request, pricing(**(options or {})))


def refusal(read, **fields):
    with pytest.raises(Refused) as caught:
        read(**fields)
    return caught.value


def counts(demand):
    """Of the first line of the ceiling, which holds the tokens."""
    return demand.ceiling.lines[0].counts


def cost(usage):
    return PRICES.price("openai", usage, at_ms=NOW_MS).cost_nanousd


def content(*parts):
    return [{"role": "user", "content": list(parts)}]


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


# --- chat ---------------------------------------------------------------------------------------------


def test_a_plain_chat_holds_its_bytes_as_input_and_its_max_tokens_as_output():
    fields = {"model": OLD, "max_tokens": 100, "messages": HELLO}
    request = inbound(fields)
    demand = ChatMeter().read(request, pricing(bytes_per_token=BPT))
    tokens = -(-len(request.body) // BPT)
    assert demand.models == (OLD,)
    assert demand.ceiling.lines == (UsageLine(OLD, {INPUT: tokens, OUTPUT: 100}),)
    assert demand.floor == Usage((UsageLine(OLD, {INPUT: tokens}),), is_exact=False)
    assert not demand.is_streaming
    assert not demand.is_deferred


LIMIT = info(OLD).max_output_tokens
OUTPUTS = [
    ({"max_tokens": 7}, 7),
    ({"max_tokens": None, "max_completion_tokens": 7}, 7),
    ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
    ({"max_tokens": None}, LIMIT),
    ({"max_tokens": 10**9}, LIMIT),
    ({"max_tokens": "9"}, LIMIT),
    ({"max_tokens": True}, LIMIT),
    ({"max_tokens": -1}, LIMIT),
    ({"max_tokens": 7, "n": 3}, 21),
    ({"max_tokens": 7, "n": None}, 7),
]


@pytest.mark.parametrize(("fields", "expected"), OUTPUTS)
def test_output_is_held_as_asked_for_each_choice_and_at_most_what_the_model_can_write(fields, expected):
    assert counts(chat(**fields))[OUTPUT] == expected


@pytest.mark.parametrize("n", [0, -1, CHOICES_MAX + 1, "2", True, 1.5])
def test_a_number_of_choices_that_cannot_be_is_refused(n):
    assert refusal(chat, n=n).reason is Reason.BAD_REQUEST


def test_a_prediction_may_be_billed_as_output_beside_what_is_written():
    predicted = {"type": "content", "content": "x" * 2_000}
    assert counts(chat(max_tokens=7, prediction=predicted))[OUTPUT] >= 7 + 1_000


def test_input_is_held_at_most_as_long_as_the_context():
    long = [{"role": "user", "content": "x" * 900_000}]
    assert counts(chat(messages=long))[INPUT] == info(OLD).context_tokens


@pytest.mark.parametrize(
    "messages",
    [
        content({"type": "file", "file": {"file_data": "data:application/pdf;base64,AA"}}),
        [{"role": "assistant", "audio": {"id": "audio_1"}}],
        content({"type": "image_url", "image_url": {"url": 7}}),
    ],
)
def test_what_is_not_in_the_body_is_held_as_a_full_context(messages):
    demand = chat(messages=messages)
    assert counts(demand)[INPUT] == info(OLD).context_tokens
    assert demand.floor.total(INPUT) < 1_000


def test_an_image_behind_a_url_is_held_as_an_image():
    demand = chat(messages=content(image("https://x/y.png")))
    assert IMAGE_TOKENS_MAX < counts(demand)[INPUT] < IMAGE_TOKENS_MAX + 200
    assert IMAGE_TOKENS_USUAL < demand.floor.total(INPUT) < IMAGE_TOKENS_USUAL + 200
    part = {"type": "input_image", "image_url": "https://x/y.png"}
    held = counts(respond(input=[{"role": "user", "content": [part]}]))[CACHE_WRITE_30M]
    assert IMAGE_TOKENS_MAX < held < IMAGE_TOKENS_MAX + 200


def test_inline_images_are_held_as_images_and_not_as_text():
    part = image("data:image/png;base64," + "A" * 100_000)
    demand = chat(messages=content(part))
    assert IMAGE_TOKENS_MAX < counts(demand)[INPUT] < IMAGE_TOKENS_MAX + 200
    assert IMAGE_TOKENS_USUAL < demand.floor.total(INPUT) < IMAGE_TOKENS_USUAL + 200
    many = chat(messages=content(*[part] * 9))
    assert counts(many)[INPUT] == info(OLD).context_tokens


def test_inline_sound_is_held_by_its_length_at_the_rate_of_sound():
    part = {"type": "input_audio", "input_audio": {"data": "A" * 640_000, "format": "mp3"}}
    demand = chat(model=AUDIO, messages=content(part))
    assert 10_000 < counts(demand)[INPUT_AUDIO] < 10_200
    assert OUTPUT in counts(demand)
    spoken = chat(model=AUDIO, modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"})
    assert counts(spoken)[OUTPUT_AUDIO] == 100
    assert INPUT in counts(spoken)


def test_content_is_looked_at_to_the_end_of_a_long_conversation():
    many = [{"role": "user", "content": [{"type": "text", "text": "x"}]} for _ in range(2_000)]
    body = json.dumps({"model": OLD, "messages": [*many, *content(image(7))]}).encode()
    for escaped in (body, body.replace(b"image_url", b"im\\u0061ge_url")):
        demand = ChatMeter().read(inbound(escaped), pricing())
        assert counts(demand)[INPUT] == info(OLD).context_tokens


def test_tools_of_the_agent_pass_and_others_are_refused():
    chat(tools=[{"type": "function", "function": {"name": "f"}}, {"type": "custom", "custom": {}}, {}, 7])
    refused = refusal(chat, tools=[{"type": "mcp", "server_url": "https://x"}])
    assert refused.reason is Reason.BAD_REQUEST
    assert "'mcp'" in refused.message


def test_a_chat_that_searches_is_held_with_one_search_and_a_full_context():
    for fields, unit in (
        ({"web_search_options": {}}, WEB_SEARCHES),
        ({"model": "gpt-4o-search-preview"}, WEB_SEARCHES_PREVIEW),
        ({"model": "gpt-4o-mini-search-preview"}, WEB_SEARCHES_PREVIEW),
    ):
        held = counts(chat(**fields))
        assert {one: held.get(one) for one in SEARCH_UNITS} == {**dict.fromkeys(SEARCH_UNITS), unit: 1}
        assert held[INPUT] == 128_000


@pytest.mark.parametrize("read", [chat, respond])
def test_a_model_that_is_unknown_or_missing_is_refused(read):
    assert refusal(read, model="gpt-nobody").reason is Reason.MODEL_UNAVAILABLE
    assert refusal(read, model=None).reason is Reason.BAD_REQUEST
    assert refusal(read, model=7).reason is Reason.BAD_REQUEST


# --- caches and tiers ---------------------------------------------------------------------------------

LONG = {"mode": "explicit", "ttl": "12h"}
CACHES = [
    (OLD, {}, INPUT),
    (MODEL, {}, CACHE_WRITE_30M),
    (MODEL, {"prompt_cache_options": {"ttl": "30m"}}, CACHE_WRITE_30M),
    (MODEL, {"prompt_cache_options": LONG}, CACHE_WRITE_12H),
    (MODEL, {"messages": content({"type": "text", "prompt_cache_breakpoint": LONG})}, CACHE_WRITE_12H),
    (OLD, {"prompt_cache_options": LONG}, CACHE_WRITE_12H),
]


@pytest.mark.parametrize(("model", "fields", "unit"), CACHES)
def test_a_prompt_is_held_at_the_dearest_rate_that_its_cache_can_cost(model, fields, unit):
    demand = chat(model=model, **fields)
    assert set(counts(demand)) == {unit, OUTPUT}
    assert set(demand.floor.lines[0].counts) == {INPUT}


def test_a_long_cache_that_a_model_does_not_price_is_refused_by_admission():
    demand = chat(model=OLD, prompt_cache_options=LONG)
    assert PRICES.price("openai", demand.ceiling, at_ms=NOW_MS).flags


FLEX, PRIORITY = {"service_tier": "flex"}, {"service_tier": "priority"}
TIERS = [
    # asked        default      held      named
    (None, None, {}, {}),
    ("auto", None, {}, {}),
    ("default", "priority", {}, {}),
    ("priority", None, PRIORITY, PRIORITY),
    ("fast", None, {"service_tier": "fast"}, {"service_tier": "fast"}),
    ("flex", None, {}, FLEX),
    (None, "priority", PRIORITY, PRIORITY),
    ("auto", "priority", PRIORITY, PRIORITY),
    (None, "nonsense", {}, {}),
]


@pytest.mark.parametrize(("asked", "default", "held", "named"), TIERS)
@pytest.mark.parametrize("read", [chat, respond])
def test_the_dearest_tier_that_a_request_can_get_is_held(read, asked, default, held, named):
    options = {} if default is None else {"OPENAI_DEFAULT_SERVICE_TIER": default}
    demand = read(model=MODEL, service_tier=asked, options=options)
    assert demand.ceiling.lines[0].modifiers == held
    assert demand.floor.lines[0].modifiers == named
    assert [line.modifiers for line in demand.ceiling.lines[1:]] == ([] if held == named else [named])
    assert not PRICES.price("openai", demand.ceiling, at_ms=NOW_MS).flags
    assert cost(demand.ceiling) > cost(demand.floor)


@pytest.mark.parametrize("tier", ["ultrafast", "nonsense", "flex"])
def test_a_tier_that_the_model_does_not_price_is_refused_by_admission(tier):
    demand = chat(model=OLD, service_tier=tier)
    assert PRICES.price("openai", demand.ceiling, at_ms=NOW_MS).flags


def test_a_tier_that_is_no_text_is_refused():
    assert refusal(chat, service_tier=7).reason is Reason.BAD_REQUEST


def test_a_region_is_held_where_it_has_a_price():
    options = {"OPENAI_REGION": "eu"}
    here, there = chat(model=MODEL), chat(model=MODEL, options=options)
    assert there.floor.lines[0].modifiers == {"region": "eu"}
    assert cost(there.ceiling) > cost(here.ceiling)
    flex = chat(model=MODEL, service_tier="flex", options=options)
    assert flex.floor.lines[0].modifiers == {"region": "eu", "service_tier": "flex"}
    assert flex.ceiling.lines[0].modifiers == {"region": "eu"}
    assert chat(model=MODEL, options={"OPENAI_REGION": "moon"}).floor.lines[0].modifiers == {}


# --- completions and embeddings -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "written"),
    [
        ({}, 16),
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": 10**9}, 4_096),
        ({"max_tokens": 5, "n": 2}, 10),
        ({"max_tokens": 5, "n": 2, "best_of": 3}, 15),
        ({"max_tokens": 5, "prompt": ["a", "b", "c"]}, 15),
        ({"max_tokens": 5, "prompt": [1, 2, 3]}, 5),
        ({"max_tokens": 5, "prompt": [[1, 2], [3]], "n": 2}, 20),
        ({"max_tokens": 5, "prompt": None}, 5),
        ({"max_tokens": 5, "prompt": []}, 5),
    ],
)
def test_completions_hold_every_prompts_every_choice(fields, written):
    request = inbound({"model": INSTRUCT, "prompt": "p", **fields})
    demand = CompletionsMeter().read(request, pricing())
    assert demand.ceiling.total(OUTPUT) == written
    assert demand.ceiling.total(INPUT) == demand.floor.total(INPUT) == -(-len(request.body) // BPT)


def test_texts_in_tokens_are_as_long_as_their_lists():
    request = inbound({"model": EMBEDDING, "input": [[1] * 500, [2] * 500]})
    demand = EmbeddingsMeter().read(request, pricing(bytes_per_token=100))
    assert demand.ceiling.total(INPUT) == 1_000


def test_embeddings_hold_input_alone_and_at_most_what_the_vendor_takes():
    request = inbound({"model": EMBEDDING, "input": "hello"})
    demand = EmbeddingsMeter().read(request, pricing())
    assert demand.ceiling == demand.floor
    assert demand.ceiling.lines == (UsageLine(EMBEDDING, {INPUT: -(-len(request.body) // BPT)}),)
    one = inbound({"model": EMBEDDING, "input": "x" * 100_000})
    assert EmbeddingsMeter().read(one, pricing()).ceiling.total(INPUT) == 8_192
    many = inbound({"model": EMBEDDING, "input": ["x" * 10_000] * 100})
    assert EmbeddingsMeter().read(many, pricing()).ceiling.total(INPUT) == EMBEDDED_TOKENS_MAX


# --- responses ----------------------------------------------------------------------------------------


def test_a_plain_response_holds_its_bytes_and_its_max_output_tokens():
    demand = respond()
    assert demand.models == (MODEL,)
    assert counts(demand)[OUTPUT] == 100
    assert counts(demand)[CACHE_WRITE_30M] == demand.floor.total(INPUT) < 100
    assert counts(respond(max_output_tokens=None))[OUTPUT] == info(MODEL).max_output_tokens
    assert respond(stream=True).is_streaming
    assert respond(stream=True).body is None


CONTEXT = info(MODEL).context_tokens


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "resp_1"},
        {"tools": [{"type": "web_search"}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://x/y.pdf"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_data": "AA"}]}]},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]},
    ],
)
def test_a_response_over_what_is_not_in_the_body_holds_a_full_context(fields):
    assert counts(respond(**fields))[CACHE_WRITE_30M] == CONTEXT


def test_inline_images_of_a_response_are_held_as_images():
    part = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 100_000}
    held = counts(respond(input=[{"role": "user", "content": [part]}]))[CACHE_WRITE_30M]
    assert IMAGE_TOKENS_MAX < held < IMAGE_TOKENS_MAX + 200


@pytest.mark.parametrize(
    "fields",
    [
        {"context_management": [{"type": "compaction", "compact_threshold": 1000}]},
        {"input": [{"role": "user", "content": "x"}, {"type": "compaction_trigger"}]},
    ],
)
def test_compacting_inside_a_response_is_one_more_pass_over_the_context(fields):
    demand = respond(**fields)
    assert demand.ceiling.total(CACHE_WRITE_30M) == 2 * CONTEXT
    assert demand.ceiling.total(OUTPUT) == 200


@pytest.mark.parametrize(
    ("fields", "searches"),
    [
        ({}, 0),
        ({"tools": [{"type": "web_search"}]}, SEARCHES_WHEN_UNSET),
        ({"tools": [{"type": "web_search_2025_08_26"}], "max_tool_calls": 3}, 3),
        ({"tools": [{"type": "web_search_preview"}], "max_tool_calls": 10**9}, 1_000),
        ({"tools": [{"type": "web_search_preview_2025_03_11"}], "max_tool_calls": None}, SEARCHES_WHEN_UNSET),
        ({"tools": [{"type": "function", "name": "f"}], "max_tool_calls": 3}, 0),
    ],
)
def test_searches_are_held_as_many_as_calls_are_allowed(fields, searches):
    held = respond(**fields).ceiling
    assert held.total(WEB_SEARCHES) + held.total(WEB_SEARCHES_PREVIEW) == searches


@pytest.mark.parametrize(
    ("kinds", "unit"),
    [
        (["web_search"], WEB_SEARCHES),
        (["web_search_preview"], WEB_SEARCHES_PREVIEW),
        (["web_search_preview_2025_03_11", "web_search"], WEB_SEARCHES_PREVIEW),
    ],
)
def test_searches_by_a_preview_tool_are_held_as_such(kinds, unit):
    held = respond(model="gpt-4o", tools=[{"type": kind} for kind in kinds], max_tool_calls=2).ceiling
    assert {one: held.total(one) for one in SEARCH_UNITS} == {**dict.fromkeys(SEARCH_UNITS, 0), unit: 2}


CLIENT_RUN = [
    {"type": "function", "name": "f", "parameters": {"properties": {"type": {"type": "mcp"}}}},
    {"type": "custom", "name": "c"},
    {"type": "local_shell"},
    {"type": "apply_patch"},
    {"type": "computer"},
    {"type": "computer_use_preview", "display_width": 1, "display_height": 1},
    {"type": "shell", "environment": {"type": "local"}},
    {"type": "tool_search"},
    {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]},
]
HOSTED = [
    {"type": "file_search", "vector_store_ids": ["vs_1"]},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "image_generation"},
    {"type": "mcp", "server_url": "https://x"},
    {"type": "mcp", "connector_id": "connector_gmail"},
    {"type": "shell"},
    {"type": "shell", "environment": None},
    {"type": "shell", "environment": {"type": "container_auto"}},
    {"type": "shell", "environment": {"type": "container_reference", "container_id": "c"}},
    {"type": "programmatic_tool_calling"},
    {"type": "tool_of_tomorrow"},
    {"type": "namespace", "name": "n", "tools": [{"type": "mcp", "server_url": "https://x"}]},
]


@pytest.mark.parametrize("tool", CLIENT_RUN, ids=lambda tool: tool["type"])
def test_tools_that_the_agent_runs_cost_their_tokens_alone(tool):
    demand = respond(tools=[tool])
    assert demand.ceiling.total(WEB_SEARCHES) == 0
    assert counts(demand)[CACHE_WRITE_30M] < 200


@pytest.mark.parametrize("tool", HOSTED, ids=lambda tool: tool["type"])
def test_hosted_tools_are_refused_wherever_they_stand(tool):
    for fields in (
        {"tools": [tool]},
        {"input": [{"type": "additional_tools", "role": "developer", "tools": [tool]}]},
        {"input": [{"type": "tool_search_output", "tools": [tool]}]},
    ):
        refused = refusal(respond, **fields)
        assert refused.reason is Reason.BAD_REQUEST
        assert refused.message.startswith("tools")
        counted = inbound({"model": MODEL, "input": "x", **fields})
        with pytest.raises(Refused):
            counted_models_of(counted, pricing())


def test_work_in_the_background_is_deferred():
    assert respond(background=True).is_deferred
    assert not respond(background=None).is_deferred
    with pytest.raises(Refused, match="background: must be a boolean"):
        respond(background="true")


def test_compacting_holds_one_pass_with_all_that_the_model_can_write():
    demand = respond(meter=CompactMeter(), max_output_tokens=1)
    assert counts(demand)[OUTPUT] == info(MODEL).max_output_tokens
    assert counts(demand)[CACHE_WRITE_30M] < 200
    held = respond(meter=CompactMeter(), previous_response_id="resp_1")
    assert counts(held)[CACHE_WRITE_30M] == CONTEXT


def test_a_token_count_may_leave_out_its_model():
    assert counted_models_of(inbound({"input": "x"}), pricing()) == ()
    assert counted_models_of(inbound({"model": MODEL, "input": "x"}), pricing()) == (MODEL,)
    with pytest.raises(Refused):
        counted_models_of(inbound({"model": "gpt-nobody"}), pricing())


@pytest.mark.parametrize(
    ("query", "is_streaming"),
    [
        (b"", False),
        (b"stream=true", True),
        (b"starting_after=3&stream=True", True),
        (b"stream=false", False),
        (b"include=stream", False),
    ],
)
def test_an_answer_asked_for_again_streams_when_it_is_asked_to(query, is_streaming):
    meter = ReplayMeter()
    assert meter.is_free
    assert meter.read(inbound({}, query=query), pricing()).is_streaming is is_streaming


# --- objects that the vendor keeps --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("store", "expected"),
    [({}, True), ({"store": True}, True), ({"store": None}, True), ({"store": False}, False)],
)
def test_a_response_is_kept_unless_it_says_otherwise(store, expected):
    assert is_kept(inbound({"model": MODEL, **store})) is expected


REFERENCES = [
    (True, {"type": "item_reference", "id": "msg_1"}),
    (True, {"id": "msg_1"}),
    (True, {"type": None, "id": "msg_1"}),
    (True, {"type": "reasoning", "id": "rs_1", "summary": []}),
    (True, {"type": "reasoning", "id": "rs_1", "summary": [{"text": "s"}], "encrypted_content": None}),
    (True, {"type": "compaction", "id": "cmp_1"}),
    (True, {"type": "compaction", "id": "cmp_1", "encrypted_content": ""}),
    (True, {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": None}),
    (True, {"type": "message", "id": "msg_1", "role": "assistant", "content": []}),
    (False, {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}),
    (False, {"type": "compaction", "id": "cmp_1", "encrypted_content": "gAAA"}),
    (False, {"type": "message", "id": "mine", "role": "assistant", "content": [{"type": "output_text"}]}),
    (False, {"type": "function_call", "id": "mine", "call_id": "c", "name": "f", "arguments": "{}"}),
    (False, {"type": "message", "role": "user", "content": "x"}),
    (False, {"id": 7}),
]


@pytest.mark.parametrize(("expected", "item"), REFERENCES)
def test_an_item_is_a_reference_when_it_carries_nothing_itself(expected, item):
    assert is_reference(item) is expected
