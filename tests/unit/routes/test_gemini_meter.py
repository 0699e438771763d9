"""What a request to Gemini may cause, and what is refused before it is sent."""

import pytest

from metering.errors import Reason, Refused
from metering.usage import (
    INPUT,
    INPUT_AUDIO,
    INPUT_IMAGE,
    INPUT_VIDEO,
    MAPS_SEARCHES,
    OUTPUT,
    OUTPUT_AUDIO,
    OUTPUT_IMAGE,
    WEB_SEARCHES,
    Usage,
    UsageLine,
)
from proxy import forbidden
from proxy.meters import Free
from routes.gemini import FORBIDDEN, FORBIDDEN_IN_COUNTS, SURFACE, either_name
from routes.gemini_meter import (
    MEDIA_TOKENS_MIN,
    PICTURE_TOKENS_MAX,
    PICTURE_TOKENS_USUAL,
    SEARCHES_HELD,
    EmbedMeter,
    GenerateMeter,
    counted_model,
)
from tests.unit.routes.gemini_bodies import MODEL, NOW_MS, TABLE, inbound, pricing

WHOLE, STREAM = GenerateMeter(is_streaming=False), GenerateMeter(is_streaming=True)
LIMIT, CONTEXT = 65_536, 1_048_576
HELLO = [{"role": "user", "parts": [{"text": "hello"}]}]
CONFIG = {"maxOutputTokens": 100}
YOUTUBE = "https://www.youtube.com/watch?v=9hE5-98ZeCg"


def read(fields=None, *, meter=WHOLE, model=MODEL, query=b"", options=None, **more):
    given = {"contents": HELLO, "generationConfig": CONFIG, **(fields or {}), **more}
    return meter.read(inbound(given, model=model, query=query), pricing(**(options or {})))


def held(*args, **options):
    (line,) = read(*args, **options).ceiling.lines
    return dict(line.counts)


def refusal(call, *args, **options):
    with pytest.raises(Refused) as caught:
        call(*args, **options)
    return caught.value


def parts(*given):
    return [{"role": "user", "parts": list(given)}]


def inline(mime_type, data="AAAA"):
    return {"inlineData": {"mimeType": mime_type, "data": data}}


# --- what is held -----------------------------------------------------------------------------------------


def test_a_plain_request_holds_its_bytes_as_input_and_its_maximum_as_output():
    request = inbound({"contents": HELLO, "generationConfig": CONFIG})
    demand = WHOLE.read(request, pricing(bytes_per_token=2))
    tokens = -(-len(request.body) // 2)
    assert demand.models == (MODEL,)
    assert demand.ceiling == Usage((UsageLine(MODEL, {INPUT: tokens, OUTPUT: 100}),), is_exact=False)
    assert demand.floor == Usage((UsageLine(MODEL, {INPUT: tokens}),), is_exact=False)
    assert not demand.is_streaming
    assert read(meter=STREAM).is_streaming


OUTPUTS = [
    # generationConfig                                        output held
    ({"maxOutputTokens": 100}, 100),
    ({"max_output_tokens": 100}, 100),
    ({"maxOutputTokens": "100"}, 100),
    ({"maxOutputTokens": 100.0}, 100),
    ({"maxOutputTokens": 0}, LIMIT),
    ({"maxOutputTokens": -5}, LIMIT),
    ({"maxOutputTokens": None}, LIMIT),
    ({"maxOutputTokens": True}, LIMIT),
    ({"maxOutputTokens": "a lot"}, LIMIT),
    ({"maxOutputTokens": 1e300}, LIMIT),
    ({"maxOutputTokens": "Infinity"}, LIMIT),
    ({"maxOutputTokens": 10**9}, LIMIT),
    ({}, LIMIT),
    (None, LIMIT),
    ({"maxOutputTokens": 100, "candidateCount": 3}, 300),
    ({"maxOutputTokens": 100, "candidate_count": "3"}, 300),
    ({"maxOutputTokens": 100, "candidateCount": 0}, 100),
    ({"maxOutputTokens": 100, "candidateCount": None}, 100),
    ({"candidateCount": 8}, 8 * LIMIT),
    ({"maxOutputTokens": 100, "thinkingConfig": {"thinkingBudget": 24_576}}, 100),
]


@pytest.mark.parametrize(("config", "expected"), OUTPUTS)
@pytest.mark.parametrize("name", ["generationConfig", "generation_config"])
def test_output_is_held_as_asked_and_at_most_what_the_model_can_write(config, expected, name):
    fields = {"contents": HELLO, name: config}
    (line,) = WHOLE.read(inbound(fields), pricing()).ceiling.lines
    assert line.counts[OUTPUT] == expected


@pytest.mark.parametrize("given", [9, -1, 1.5, "many", True, [1], {}])
def test_a_count_of_candidates_that_makes_no_sense_is_refused(given):
    refused = refusal(read, generationConfig={"candidateCount": given})
    assert refused.reason is Reason.BAD_REQUEST
    assert "candidateCount" in refused.message


def test_input_is_held_at_most_as_long_as_the_context():
    assert held(contents=parts({"text": "x" * 3_000_000}))[INPUT] == CONTEXT


TIERS = [
    ("flex", {"service_tier": "flex"}), ("FLEX", {"service_tier": "flex"}), ("SERVICE_TIER_PRIORITY", {"service_tier": "priority"}),
    ("priority", {"service_tier": "priority"}), ("standard", {}), ("SERVICE_TIER_UNSPECIFIED", {}), ("", {}), (None, {}),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), TIERS)
@pytest.mark.parametrize("name", ["serviceTier", "service_tier"])
def test_the_tier_asked_for_is_held(given, expected, name):
    demand = read(**{name: given})
    assert [line.modifiers for line in (*demand.ceiling.lines, *demand.floor.lines)] == [expected] * 2
    assert not TABLE.price("gemini", demand.ceiling, at_ms=NOW_MS).flags


@pytest.mark.parametrize("given", ["turbo", 2, True, ["flex"], {}, "batch"])
def test_a_tier_that_is_none_is_refused(given):
    assert "serviceTier" in refusal(read, serviceTier=given).message


# --- tools ------------------------------------------------------------------------------------------------

TOOLS = [
    # tools                                                     full context  web            maps
    ([{"functionDeclarations": [{"name": "f"}]}], False, 0, 0),
    ([{"function_declarations": [{"name": "f"}]}], False, 0, 0),
    ([{"computerUse": {"environment": "ENVIRONMENT_BROWSER"}}], False, 0, 0),
    ([{"googleSearch": {}}], True, SEARCHES_HELD, 0),
    ([{"google_search": {}}], True, SEARCHES_HELD, 0),
    ({"googleSearch": {}}, True, SEARCHES_HELD, 0),
    ([{"googleSearchRetrieval": {}}], True, SEARCHES_HELD, 0),
    ([{"googleMaps": {}}], True, 0, SEARCHES_HELD),
    ([{"codeExecution": {}}], True, 0, 0),
    ([{"url_context": {}}], True, 0, 0),
    (
        [{"functionDeclarations": []}, {"google_search": {}, "googleMaps": {}}],
        True,
        SEARCHES_HELD,
        SEARCHES_HELD,
    ),
    ([{"googleSearch": None}], False, 0, 0),
    ([], False, 0, 0),
    (None, False, 0, 0),
]


@pytest.mark.parametrize(("tools", "is_full", "web", "maps"), TOOLS)
def test_what_the_vendors_own_tools_may_read_and_search_is_held(tools, is_full, web, maps):
    model = "gemini-3.5-flash"
    counts = held(tools=tools, model=model)
    context = TABLE.model("gemini", model).context_tokens
    assert (counts[INPUT] == context) is is_full
    assert (counts.get(WEB_SEARCHES, 0), counts.get(MAPS_SEARCHES, 0)) == (web, maps)


def test_searches_that_are_billed_by_request_are_held_once():
    counts = held(tools=[{"googleSearch": {}}, {"googleMaps": {}}])
    assert (counts[WEB_SEARCHES], counts[MAPS_SEARCHES]) == (1, 1)


@pytest.mark.parametrize(
    "tools",
    [
        [{"retrieval": {}}], [{"exaAiSearch": {}}], [{"parallel_ai_search": {}}], [{"newThing": {}}],
        [{"enterpriseWebSearch": {}}], [{"googleSearch": {}, "vertexRagStore": {}}], ["googleSearch"], "x", [[{}]],
    ],
)  # fmt: skip
def test_tools_that_nobody_has_looked_at_are_refused(tools):
    assert refusal(read, tools=tools).reason is Reason.BAD_REQUEST


# --- media ------------------------------------------------------------------------------------------------


def test_pictures_and_sound_count_for_more_than_their_bytes_and_at_their_own_rate_where_that_is_dearer():
    plain = held(contents=parts({"text": "hi"}))
    sound = held(contents=parts({"text": "hi"}, inline("audio/wav")))
    assert sound[INPUT_AUDIO] > plain[INPUT] + MEDIA_TOKENS_MIN
    assert INPUT not in sound
    image = held(contents=parts(inline("image/png"), inline("image/jpeg")))
    assert image[INPUT] > 2 * MEDIA_TOKENS_MIN, "this model reads pictures as text"
    assert INPUT_IMAGE not in image
    live = held(contents=parts(inline("image/png")), model="gemini-3.8-live")
    assert live[INPUT_IMAGE] > MEDIA_TOKENS_MIN


def test_a_large_picture_is_held_as_a_picture_and_not_as_text():
    large = [
        inline("image/png", "A" * 3_000_000),
        {"inline_data": {"mime_type": "IMAGE/jpeg", "data": "A" * 3_000_000}},
    ]
    demand = read(contents=parts(*large))
    most = 2 * (PICTURE_TOKENS_MAX + MEDIA_TOKENS_MIN)
    assert most < demand.ceiling.total(INPUT) < most + 300
    assert 2 * PICTURE_TOKENS_USUAL < demand.floor.total(INPUT) < 2 * PICTURE_TOKENS_USUAL + 300
    assert held(contents=parts(inline("application/pdf", "A" * 3_000_000)))[INPUT] == CONTEXT
    answered = {"functionResponse": {"name": "f", "parts": [large[0]]}}
    assert held(contents=parts(answered))[INPUT] < most


@pytest.mark.parametrize("mime_type", ["application/pdf", " Application/PDF; x=y"])
def test_a_pdf_is_held_by_its_bytes_unless_the_operator_wants_more_held_for_each(mime_type):
    pdf, other = inline(mime_type, "A" * 4_000), inline("application/json", "A" * 4_000)
    contents = parts(pdf, other, {"functionResponse": {"name": "f", "parts": [pdf]}})
    plain = read(contents=contents)
    for tokens, more in (("0", 0), ("2000", 0), ("30000", 2 * 28_000), ("9000000", None)):
        demand = read(contents=contents, options={"GEMINI_PDF_TOKENS": tokens})
        assert demand.ceiling.total(INPUT) == (CONTEXT if more is None else plain.ceiling.total(INPUT) + more)
        assert demand.floor == plain.floor, "what is to be expected stays"


@pytest.mark.parametrize("mime_type", ["video/mp4", None, 7])
def test_a_film_may_be_as_long_as_the_context(mime_type):
    assert (
        held(contents=parts(inline(mime_type))).get(INPUT_AUDIO if mime_type else INPUT, CONTEXT) == CONTEXT
    )


@pytest.mark.parametrize(
    "content",
    [
        [{"parts": [inline("video/mp4")]}],
        {"parts": inline("video/mp4")},
        [{"parts": [{"inline_data": {"mime_type": "video/mp4", "data": ""}}]}],
        [{"parts": [{"functionResponse": {"name": "f", "parts": [inline("video/mp4")]}}]}],
    ],
)
def test_media_are_found_wherever_the_vendor_finds_them(content):
    assert max(held(contents=content).values()) == CONTEXT
    assert (
        max(held(systemInstruction=content[0] if isinstance(content, list) else content).values()) == CONTEXT
    )


OUTPUT_MODALITIES = [
    # model                      responseModalities      held as
    (MODEL, None, OUTPUT),
    (MODEL, ["TEXT"], OUTPUT),
    ("gemini-2.5-flash-image", None, OUTPUT_IMAGE),
    ("gemini-2.5-flash-image", [], OUTPUT_IMAGE),
    ("gemini-2.5-flash-image", ["TEXT"], OUTPUT),
    ("gemini-2.5-flash-image", ["TEXT", "IMAGE"], OUTPUT_IMAGE),
    ("gemini-2.5-flash-image", ["image"], OUTPUT_IMAGE),
    ("gemini-2.5-flash-image", "IMAGE", OUTPUT_IMAGE),
    ("gemini-2.5-flash-image", [2], OUTPUT_IMAGE),
    ("gemini-3.8-live", ["AUDIO"], OUTPUT_AUDIO),
]


@pytest.mark.parametrize(("model", "modalities", "unit"), OUTPUT_MODALITIES)
def test_output_is_held_as_the_dearest_kind_it_may_be_of(model, modalities, unit):
    counts = held(generationConfig={"maxOutputTokens": 9, "responseModalities": modalities}, model=model)
    assert counts[unit] == 9
    assert sum(name.startswith("output_") for name in counts) == 1


# --- content by its URI -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        YOUTUBE,
        "https://youtu.be/abc",
        "https://example.com/a.pdf",
        "https://cdn.example.co.uk/x/y.png?size=9&z=%20",
    ],
)
def test_content_by_a_public_url_is_let_through_and_counts_as_a_full_context(uri):
    assert CONTEXT in held(contents=parts({"fileData": {"fileUri": uri}})).values()
    assert (
        CONTEXT in held(contents=parts({"file_data": {"file_uri": uri, "mime_type": "image/png"}})).values()
    )


URIS = [
    "https://generativelanguage.googleapis.com/v1beta/files/abc-123",
    "https://GENERATIVELANGUAGE.googleapis.com/v1beta/files/abc-123",
    "https://generativelanguage.googleapis.com./v1beta/files/abc",
    "https://generativelanguage.googleapis.com:443/v1beta/files/abc",
    "https://example.com@generativelanguage.googleapis.com/v1beta/files/abc",
    "https://example.com\\@generativelanguage.googleapis.com/v1beta/files/abc",
    "https://example.com#@generativelanguage.googleapis.com/",
    "https://storage.googleapis.com/bucket/x",
    "https://googleapis.com/x",
    "https://drive.google.com/file/d/x",
    "https://lh3.googleusercontent.com/x",
    "http://example.com/x",
    "files/abc-123",
    "abc-123",
    "gs://bucket/object",
    "//generativelanguage.googleapis.com/v1beta/files/abc",
    "https:/generativelanguage.googleapis.com/x",
    " https://example.com/x",
    "https://example.com/x\n",
    "https://127.0.0.1/x",
    "https://localhost/x",
    "https://example.com/" + "x" * 3_000,
    "",
    7,
    ["https://example.com/"],
]


@pytest.mark.parametrize("uri", URIS)
def test_every_uri_that_may_reach_a_file_of_the_account_is_refused(uri):
    for part in (
        {"fileData": {"fileUri": uri}},
        {"file_data": {"file_uri": uri}},
        {"fileData": {"file_uri": uri, "mimeType": "image/png"}, "text": "x"},
        {"functionResponse": {"parts": [{"fileData": {"fileUri": uri}}]}},
    ):
        for fields in (
            {"contents": parts(part)},
            {"contents": {"parts": part}},
            {"system_instruction": {"parts": [part]}},
        ):
            refused = refusal(read, fields)
            assert refused.reason is Reason.BAD_REQUEST
            assert "fileUri" in refused.message


# --- two names of one field -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"generationConfig": CONFIG, "generation_config": {}},
        {"generationConfig": {"maxOutputTokens": 1, "max_output_tokens": 9}},
        {"generationConfig": {"candidateCount": 1, "candidate_count": 1}},
        {"generationConfig": {"responseModalities": ["TEXT"], "response_modalities": ["IMAGE"]}},
        {"serviceTier": "flex", "service_tier": "priority"},
        {"systemInstruction": {}, "system_instruction": {}},
        {"contents": parts({"inlineData": {}, "inline_data": {}})},
        {"contents": parts({"fileData": {}, "file_data": {}})},
        {"contents": parts({"fileData": {"fileUri": YOUTUBE, "file_uri": "files/abc"}})},
    ],
)
def test_a_field_under_both_its_names_is_refused(fields):
    assert "stands twice" in refusal(read, fields).message


def test_every_forbidden_field_is_declared_under_all_its_names():
    paths = {field.path for field in either_name("generateContentRequest.tools.fileSearch", "why")}
    assert paths == {
        "generateContentRequest.tools.fileSearch",
        "generate_content_request.tools.fileSearch",
        "generateContentRequest.tools.file_search",
        "generate_content_request.tools.file_search",
    }
    declared = {field.path for field in FORBIDDEN}
    assert {"cachedContent", "cached_content", "continuationToken", "continuation_token"} < declared
    assert declared < {field.path for field in FORBIDDEN_IN_COUNTS}


@pytest.mark.parametrize(
    "tools", [[{"mcp_servers": []}], {"fileSearch": {}}, [{"googleSearch": {}}, {"file_search": 1}]]
)
def test_forbidden_tools_are_found_in_a_list_and_without_one(tools):
    with pytest.raises(Refused):
        forbidden.check(FORBIDDEN, inbound({"tools": tools}))


@pytest.mark.parametrize(
    "fields", [{"generationConfig": []}, {"contents": "hi"}, {"contents": [HELLO]}, {"contents": parts("hi")}]
)
def test_what_is_no_object_where_one_must_be_is_refused(fields):
    assert refusal(read, fields).reason is Reason.BAD_REQUEST


# --- models and queries -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["gemini-9", "claude-opus-4-8", "models", "x" * 500, "gemini-2.5-flash:x", "tunedModels"]
)
def test_a_model_without_a_price_is_unavailable(name):
    for meter in (WHOLE, EmbedMeter(), Free(counted_model)):
        refused = refusal(meter.read, inbound({"contents": HELLO}, model=name, version="v1"), pricing())
        assert refused.reason is Reason.MODEL_UNAVAILABLE
        assert refused.message.startswith(f"models/{name[:128]} is not found for API version v1")


def test_a_body_may_name_the_paths_model_and_no_other():
    assert read().models == (MODEL,)
    body = {"contents": HELLO, "model": f"models/{MODEL}"}
    assert WHOLE.read(inbound(body), pricing()).models == (MODEL,)
    for other in ("models/gemini-2.5-pro", "gemini-2.5-pro", 7, "", f"tunedModels/{MODEL}"):
        refused = refusal(WHOLE.read, inbound({**body, "model": other}), pricing())
        assert refused.reason is Reason.BAD_REQUEST


ALT = [
    # query                          whole  stream
    (b"", True, True),
    (b"alt=json", True, True),
    (b"alt=sse", False, True),
    (b"alt=proto", False, False),
    (b"alt=media", False, False),
    (b"alt=SSE", False, False),
    (b"alt=", False, False),
    (b"alt", False, False),
    (b"alt=sse&alt=sse", False, False),
    (b"alt=sse&%61lt=proto", False, False),
    (b"alt=s%73e", False, True),
    (b"alt=json%3Benum-encoding%3Dint", False, False),
]


@pytest.mark.parametrize(("query", "for_whole", "for_stream"), ALT)
def test_only_forms_of_an_answer_that_show_its_usage_may_be_asked_for(query, for_whole, for_stream):
    meters = [(WHOLE, for_whole), (STREAM, for_stream), (EmbedMeter(), for_whole)]
    meters += [(op.meter, for_whole) for op in SURFACE.operations if op.meter.is_free]
    for meter, is_allowed in meters:
        body = {"contents": HELLO} if meter in (WHOLE, STREAM) else {}
        request = inbound(body, query=query)
        if is_allowed:
            meter.read(request, pricing())
        else:
            assert "alt" in refusal(meter.read, request, pricing()).message


@pytest.mark.parametrize("operation", SURFACE.operations, ids=lambda operation: operation.name)
def test_of_the_query_only_what_sdks_send_may_pass(operation):
    is_list = operation.path.endswith("/models")
    assert set(operation.query) == ({"alt", "pageSize", "pageToken"} if is_list else {"alt"})


# --- embeddings and counts --------------------------------------------------------------------------------


def embed(fields, model="gemini-embedding-2"):
    return EmbedMeter().read(inbound(fields, model=model), pricing())


def test_what_is_embedded_is_held_as_input_and_nothing_as_output():
    request = {"content": {"parts": [{"text": "hello"}]}}
    demand = embed(request)
    tokens = -(-len(inbound(request).body) // 2)
    assert demand.ceiling.lines == (UsageLine("gemini-embedding-2", {INPUT: tokens}),)
    assert demand.floor.lines == (UsageLine("gemini-embedding-2", {INPUT: tokens}),)


def test_a_batch_holds_at_most_a_context_for_each_of_its_items():
    context = TABLE.model("gemini", "gemini-embedding-2").context_tokens
    item = {"model": "models/gemini-embedding-2", "content": {"parts": [{"text": "x" * 30_000}]}}
    assert embed({"requests": [item] * 3}).ceiling.lines[0].counts == {INPUT: 3 * context}
    assert embed({"requests": item}).ceiling.lines[0].counts == {INPUT: context}


def test_an_embedded_picture_and_film_are_held_at_their_own_rate():
    def item(part):
        return {"content": {"parts": [part]}}

    assert INPUT_IMAGE in embed({"requests": [item(inline("image/png"))]}).ceiling.lines[0].counts
    context = TABLE.model("gemini", "gemini-embedding-2").context_tokens
    assert embed(item(inline("video/mp4"))).ceiling.lines[0].counts == {INPUT_VIDEO: context}


@pytest.mark.parametrize(
    "fields",
    [
        {"requests": [{"model": "models/gemini-embedding-001", "content": {}}]},
        {"requests": [{"content": {}}, {"model": "models/gemini-embedding-001"}]},
        {"model": "models/gemini-embedding-001", "content": {}},
        {"requests": ["x"]},
        {"requests": [{"content": {"parts": [{"fileData": {"fileUri": "files/abc"}}]}}]},
        {"content": {"parts": [{"file_data": {"file_uri": "files/abc"}}]}},
    ],
)
def test_an_item_for_another_model_or_with_the_accounts_file_is_refused(fields):
    assert refusal(embed, fields).reason is Reason.BAD_REQUEST


@pytest.mark.parametrize("name", ["generateContentRequest", "generate_content_request"])
def test_what_may_not_be_sent_may_not_be_counted_either(name):
    def count(fields):
        return counted_model(inbound(fields), pricing())

    assert count({name: {"model": f"models/{MODEL}", "contents": HELLO}}) == (MODEL,)
    for fields in (
        {"contents": parts({"fileData": {"fileUri": "files/abc"}})},
        {name: {"contents": parts({"fileData": {"fileUri": "files/abc"}})}},
        {name: {"model": "models/gemini-2.5-pro", "contents": HELLO}},
        {name: {"tools": [{"newThing": {}}]}},
    ):
        assert refusal(count, fields).reason is Reason.BAD_REQUEST


def test_a_method_of_a_model_does_not_exist_by_get():
    (operation,) = [
        op for op in SURFACE.operations if op.name.startswith("GET") and op.path.endswith("{model}")
    ]
    assert operation.meter.read(inbound({}, method="GET"), pricing()).models == ()
    refused = refusal(
        operation.meter.read, inbound({}, model=f"{MODEL}:generateContent", method="GET"), pricing()
    )
    assert refused.reason is Reason.UNKNOWN_OPERATION
