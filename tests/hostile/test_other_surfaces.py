"""Users who want another user's data, or use that nobody counts, through other surfaces than Anthropic's.

What is refused here would reach objects, answers or costs that the meter and the owners of ids do not see; what is
served shows that an agent's ordinary requests of the same shape are.
"""

import time
from urllib.parse import quote

import orjson
import pytest

from tests.hostile.stage import (
    ANSWERS,
    CALLS,
    CHAT,
    GENERATE,
    MESSAGES,
    OTHERS_NUMBER,
    RESPONSES,
    SESSIONS,
    STREAM,
    answers,
    call,
    chat,
    content,
    response,
    session,
    small_body,
    staged,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
BODY_OF = {
    MESSAGES: small_body(),
    CHAT: chat(),
    RESPONSES: response(store=False),
    GENERATE: content(),
    ANSWERS: answers(),
    SESSIONS: session(),
    CALLS: call(),
}
EVERYWHERE = tuple(BODY_OF)
COUNT = GENERATE.replace(b"generateContent", b"countTokens")
EMBED = b"/api/gemini/v1beta/models/gemini-embedding-2:embedContent"
BATCH = b"/api/gemini/v1beta/models/gemini-embedding-2:batchEmbedContents"
COMPACT, COUNTED = RESPONSES + b"/compact", RESPONSES + b"/input_tokens"
LOOKED_UP_WITHIN_S = 30.0
"""20,000 ids of one request, on a machine that is busy with other things; alone, 0.15 s."""


async def ask(stage, wire):
    conversation = await stage.converse(wire, answers=1)
    await stage.assert_held(wire, conversation)
    (answer,) = conversation.answers
    assert len(stage.vendor.requests) == (answer.status == 200)
    return answer


# --- bodies that are something else to the vendor -------------------------------------------------------


NOT_JSON = (
    b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x", b"application/x-protobuf", b"text/plain", b"",
    b"application/json; charset=utf-7", b"application/json;charset=UTF-16", b'application/json; charset="utf-16le"',
    b"application/json;charset=utf-8;charset=utf-7", b"application/json, application/x-protobuf", b"application/json+protobuf",
)  # fmt: skip


@pytest.mark.parametrize("target", EVERYWHERE)
@pytest.mark.parametrize("kind", NOT_JSON)
async def test_a_body_that_is_said_to_be_no_json_is_refused(stage, kind, target):
    """`{"x":"&fields=candidates&..."}` as a form is parameters to Google, and was a body to OpenAI."""
    answer = await ask(stage, stage.post(b"content-type: " + kind, body=BODY_OF[target], target=target))
    assert answer.status == 400
    assert answer.message.startswith("Content-Type: ")


@pytest.mark.parametrize("target", EVERYWHERE)
async def test_a_second_content_type_is_refused_unless_it_says_the_same(stage, target):
    body, first = BODY_OF[target], b"content-type: application/json"
    for second, status in ((b"application/x-protobuf", 400), (b'Application/JSON; Charset="UTF-8"', 200)):
        stage.forget()
        wire = stage.post(first, b"content-type: " + second, body=body, target=target)
        assert (await ask(stage, wire)).status == status


# --- headers that choose somebody else ------------------------------------------------------------------


DROPPED = {
    b"OpenAI-Organization": (CHAT, RESPONSES),
    b"OpenAI-Project": (CHAT, RESPONSES),
    b"X-HTTP-Method-Override": EVERYWHERE,
    b"X-HTTP-Method": (GENERATE,),
    b"X-Method-Override": (GENERATE,),
    b"X-Goog-User-Project": (GENERATE,),
    b"X-Goog-FieldMask": (GENERATE,),
    b"X-Goog-Request-Params": (GENERATE,),
    b"Idempotency-Key": EVERYWHERE,
    b"X-Idempotency-Key": EVERYWHERE,
    b"Cookie": EVERYWHERE,
    b"X-Forwarded-For": EVERYWHERE,
}


@pytest.mark.parametrize(
    ("name", "target"), [(name, target) for name, targets in DROPPED.items() for target in targets]
)
async def test_a_header_that_reaches_beyond_its_user_does_not_go_up(stage, name, target):
    """An idempotency key is the account's: under another user's, the vendor would repeat their answer."""
    answer = await ask(stage, stage.post(name + b": victim", body=BODY_OF[target], target=target))
    assert answer.status == 200
    (request,) = stage.vendor.requests
    assert not request.values(name.lower())
    assert b"victim" not in b"".join(value for _, value in request.headers)


# --- keys and parameters in the query -------------------------------------------------------------------


KEYS = {
    # the query: (status, what of it goes up)
    b"key=GOOD": (200, b""),
    b"key=GOOD&alt=json": (200, b"alt=json"),
    b"alt=json&key=GOOD": (200, b"alt=json"),
    b"%6bey=GOOD": (200, b""),
    b"%6B%65%79=GOOD": (200, b""),
    b"key=ENCODED": (200, b""),
    b"key=GOOD&key=GOOD": (200, b""),
    b"key=&key=GOOD": (200, b""),
    b"key&key=GOOD": (200, b""),
    b"&key=GOOD&": (200, b"&"),
    b"key=GOOD&%6Bey=OTHER": (401, None),
    b"key=GOOD&key=x": (401, None),
    b"key=OTHERx": (401, None),
    b"key=GOOD;alt=sse": (401, None),
    b"key=GOOD+": (401, None),
    b"key=+GOOD": (401, None),
    b"key=GOOD%20": (401, None),
    b"key=TWICE": (401, None),
    b"Key=GOOD": (401, None),
    b"KEY=GOOD": (401, None),
    b"k%2565y=GOOD": (401, None),
    b"key+=GOOD": (401, None),
    b"key%00=GOOD": (401, None),
    b"key[]=GOOD": (401, None),
    b";key=GOOD": (401, None),
    b"alt=json;key=GOOD": (401, None),
    b"api_key=GOOD": (401, None),
    b"access_token=GOOD": (401, None),
    b"key=": (401, None),
    b"key": (401, None),
    b"": (401, None),
}  # fmt: skip


def filled(stage, text):
    good = stage.token.encode()
    for word, value in (
        (b"GOOD", good),
        (b"OTHER", stage.other.encode()),
        (b"ENCODED", b"".join(b"%%%02x" % byte for byte in good)),
        (b"TWICE", quote(quote(stage.token, safe="").replace("_", "%5F")).encode()),
    ):
        text = text.replace(word, value)
    return text


@pytest.mark.parametrize("query", KEYS)
async def test_a_key_in_the_query_counts_by_its_exact_name_and_never_goes_up(stage, query):
    status, goes_up = KEYS[query]
    target = filled(stage, GENERATE + b"?" + query)
    body = content()
    head = b"POST " + target + b" HTTP/1.1\r\nhost: proxy\r\ncontent-length: %d\r\n\r\n" % len(body)
    answer = await ask(stage, head + body)
    assert answer.status == status
    if goes_up is not None:
        assert stage.vendor.requests[0].target.partition(b"?")[2] == goes_up


@pytest.mark.parametrize(
    ("query", "status"),
    [(b"key=GOOD", 200), (b"key=OTHER", 401), (b"key=x", 401), (b"key=", 200), (b"KEY=GOOD", 400), (b"pageToken=GOOD", 400)],
)  # fmt: skip
async def test_a_key_in_header_and_query_must_be_the_same(stage, query, status):
    target = filled(stage, GENERATE + b"?" + query)
    assert (await ask(stage, stage.post(body=content(), target=target))).status == status


@pytest.mark.parametrize("target", EVERYWHERE)
@pytest.mark.parametrize("form", [b"GOOD", b"ENCODED"])
async def test_a_token_elsewhere_in_the_target_is_refused_in_every_spelling(stage, form, target):
    in_query = await ask(
        stage, stage.post(body=BODY_OF[target], target=filled(stage, target + b"?x=" + form))
    )
    assert in_query.status == 400
    mount = b"/".join(target.split(b"/")[:4])
    in_path = filled(stage, mount + b"/models/" + form)
    nowhere = target in (ANSWERS, SESSIONS, CALLS)  # nothing of theirs has a name behind `models`
    assert (await ask(stage, stage.head(method=b"GET", target=in_path))).status == (404 if nowhere else 400)


PARAMETERS = {
    GENERATE: (
        b"fields=candidates", b"%66ields=candidates", b"$fields=candidates", b"%24fields=x", b"$alt=proto", b"%24alt=json",
        b"alt=sse", b"alt=proto", b"alt=media", b"alt=SSE", b"alt=", b"alt", b"alt=json&alt=json", b"alt=json&%61lt=sse",
        b"alt=json;fields=x", b"alt=json%26fields=x", b"ALT=json", b"prettyPrint=false", b"$.xgafv=1", b"callback=x",
        b"uploadType=media", b"access_token=x", b"oauth_token=x", b"quotaUser=x", b"cachedContent=cachedContents/x",
        b"cached_content=x", b"contents.parts.text=x", b"model=models/x", b"generationConfig.candidateCount=8", b"a", b"=x",
    ),
    STREAM: (b"alt=media", b"alt=SSE", b"alt=sse&alt=sse", b"alt=sse&fields=candidates", b"alt=sse%20", b"alt=+sse", b"alt=sse%00"),
    COUNT: (b"alt=sse", b"fields=totalTokens"),
    CHAT: (b"stream=true", b"model=gpt-5.6-pro", b"a=b", b"api-version=1", b"key=x"),
    RESPONSES: (b"include=x", b"stream=true", b"%69nclude[]=x"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("target", "query"), [(target, query) for target, queries in PARAMETERS.items() for query in queries]
)
async def test_a_parameter_that_is_not_declared_is_refused_in_every_spelling(stage, target, query):
    bodies = {CHAT: chat(), RESPONSES: response()}
    answer = await ask(stage, stage.post(body=bodies.get(target, content()), target=target + b"?" + query))
    assert answer.status == (401 if query.startswith(b"key=") and target not in bodies else 400)


LISTS = {
    CALLS: (b"limit=1000", b"%6cimit=1000", b"page=2", b"from=0", b"user_id=victim", b"batch_id=victim", b"completed[]=x", b"x"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("target", "query"), [(target, one) for target, all_ in LISTS.items() for one in all_]
)
async def test_a_parameter_of_a_list_that_counts_everybodys_is_refused(stage, target, query):
    answer = await ask(stage, stage.head(method=b"GET", target=target + b"?" + query))
    assert answer.status == 400


# --- paths ----------------------------------------------------------------------------------------------


PATHS = (
    b"POST /api/gemini/v1beta2/models/gemini-2.5-flash:generateContent",
    b"POST /api/gemini/V1BETA/models/gemini-2.5-flash:generateContent",
    b"POST /api/gemini/v1|v1beta/models/gemini-2.5-flash:generateContent",
    b"POST /api/gemini/%761beta/models/gemini-2.5-flash:generateContent",
    b"POST /api/gemini/v1beta/models/gemini-2.5-flash%3agenerateContent",
    b"POST /api/gemini/v1beta/models/gemini-2.5-flash:generatecontent",
    b"POST /api/gemini/v1beta/models/gemini-2.5-flash:generateContent/",
    b"POST /api/gemini/v1beta/models/gemini-2.5-flash:generateContent%3f",
    b"POST /api/gemini/v1beta/models/gemini-2.5-flash:generateContent;a=b",
    b"POST /api/gemini/v1beta/models/gemini-2.5-flash:batchGenerateContent",
    b"POST /api/gemini/v1beta/models/gemini-2.5-flash:streamGenerateContent:countTokens",
    b"POST /api/gemini/v1beta/models/gemini-2.5-flash%3AgenerateContent:countTokens",
    b"POST /api/gemini/v1beta/models/gemini-2.5-flash:generateContent%23:countTokens",
    b"POST /api/gemini/v1beta/models/gemini-2.5-flash:generateContent%3F:countTokens",
    b"POST /api/gemini/v1beta/models/..%2ffiles:countTokens",
    b"POST /api/gemini/v1beta/models/%2e%2e/files:countTokens",
    b"POST /api/gemini/v1beta/models/%ef%bd%87emini-2.5-flash:generateContent",
    b"POST /api/gemini/v1beta/models/gemini-2.5-flash%00:generateContent",
    b"POST /api/gemini/v1beta/models/gemini-2.5-flash%20:generateContent",
    b"POST /api/gemini/v1beta/models/%20gemini-2.5-flash:generateContent",
    b"POST /api/gemini/v1beta/models/GEMINI-2.5-FLASH:generateContent",
    b"POST /api/gemini/v1beta/models/models%2Fgemini-2.5-flash:generateContent",
    b"POST /api/gemini/v1beta/models/gemini-2.5-flash%c0%af:generateContent",
    b"POST /api/gemini/v1beta/models/%ff:generateContent",
    b"POST /api/gemini/v1beta/models/" + b"g" * 10_000 + b":generateContent",
    b"POST /api/gemini/v1beta/models/:generateContent",
    b"POST /api/gemini/v1beta/tunedModels/x:generateContent",
    b"POST /api/gemini/v1beta/cachedContents",
    b"POST /api/gemini/upload/v1beta/files",
    b"GET /api/gemini/v1beta/files",
    b"GET /api/gemini/v1beta/models/gemini-2.5-flash:generateContent",
    b"GET /api/gemini/v1beta/models/gemini-2.5-flash%3agenerateContent",
    b"GET /api/gemini/v1beta/models/x%3A%3A",
    b"GET /api/openai/v1/responses",
    b"GET /api/openai/v1/responses/resp_victim",
    b"GET /api/openai/v1/responses/resp_victim/input_items",
    b"GET /api/openai/v1/responses/resp_victim%2finput_items",
    b"GET /api/openai/v1/responses/%72esp_victim",
    b"GET /api/openai/v1/responses/resp_victim%3fa=b",
    b"GET /api/openai/v1/responses/resp_victim%23",
    b"GET /api/openai/v1/responses/resp_victim;a=b",
    b"GET /api/openai/v1/responses/..",
    b"GET /api/openai/v1/responses/%2e%2e%2ffiles",
    b"GET /api/openai/v1/responses/%ef%bc%8e%ef%bc%8e",
    b"GET /api/openai/v1/responses/input_tokens",
    b"POST /api/openai/v1/responses/resp_victim/cancel",
    b"DELETE /api/openai/v1/responses/resp_victim",
    b"GET /api/openai/v1/chat/completions",
    b"GET /api/openai/v1/files",
    b"POST /api/openai/v1/chat%2fcompletions",
    b"POST /api/openai/v2/responses",
    b"POST /api/openai//v1/responses",
    b"GET /api/bland/v1/calls/victim",
    b"GET /api/bland/v1/calls/%76ictim",
    b"GET /api/bland/v1/calls/victim/correct",
    b"GET /api/bland/v1/calls/victim%2fcorrect",
    b"GET /api/bland/v1/calls/active/",
    b"GET /api/bland/v1/calls/ACTIVE",
    b"GET /api/bland/v1/calls/..",
    b"GET /api/bland/v1/calls/%2e%2e%2fme",
    b"GET /api/bland/v1/calls/;a=b",
    b"GET /api/bland/v1/event_stream/victim",
    b"GET /api/bland/v1/recordings/victim",
    b"GET /api/bland/v1/me",
    b"GET /api/bland/v1/numbers",
    b"GET /api/bland/v2/calls",
    b"GET /api/bland/calls",
    b"POST /api/bland/v1/calls/",
    b"POST /api/bland/v1/calls/victim/stop",
    b"POST /api/bland/v1/calls/active/stop",
    b"POST /api/bland/v1/calls/active%2fstop",
    b"POST /api/bland/v1/calls/victim/analyze",
    b"POST /api/bland/v1/calls/victim/transfer",
    b"POST /api/bland/v1/batches",
    b"POST /api/bland/v1/sms/send",
    b"GET /api/browserbase/v1/sessions/victim",
    b"GET /api/browserbase/v1/sessions/%76ictim",
    b"GET /api/browserbase/v1/sessions/victim/debug",
    b"GET /api/browserbase/v1/sessions/victim%2fdebug",
    b"GET /api/browserbase/v1/sessions/victim/recording",
    b"GET /api/browserbase/v1/sessions/victim/downloads",
    b"GET /api/browserbase/v1/sessions/%2e%2e%2fprojects",
    b"GET /api/browserbase/v1/contexts",
    b"GET /api/browserbase/v1/contexts/victim",
    b"GET /api/browserbase/v1/extensions/victim",
    b"GET /api/browserbase/v1/projects",
    b"GET /api/browserbase/v1/projects/victim/usage",
    b"GET /api/browserbase/v2/sessions",
    b"POST /api/browserbase/v1/sessions/victim",
    b"POST /api/browserbase/v1/sessions/victim/uploads",
    b"PUT /api/browserbase/v1/contexts/victim",
    b"DELETE /api/browserbase/v1/contexts/victim",
    b"DELETE /api/browserbase/v1/extensions/victim",
)


@pytest.mark.parametrize("line", PATHS, ids=[line[:80].decode("latin-1") for line in PATHS])
async def test_a_path_that_names_nothing_of_the_callers_is_404_and_reaches_nobody(stage, line):
    method, target = line.split(b" ")
    body = b"" if method == b"GET" else content()
    answer = await ask(stage, stage.post(body=body, method=method, target=target))
    assert answer.status == 404


@pytest.mark.parametrize("size", [513, 10_000, 60_000])
async def test_an_id_that_is_longer_than_ids_are_is_refused_before_it_is_looked_up(stage, size):
    in_path = stage.head(method=b"GET", target=RESPONSES + b"/resp_" + b"x" * size)
    assert (await ask(stage, in_path)).status == 400
    stage.forget()
    for fields in ({"previous_response_id": "x" * size}, {"input": [{"id": "x" * size}]}):
        assert (await ask(stage, stage.post(body=response(**fields), target=RESPONSES))).status == 400


# --- other users' objects, named in bodies --------------------------------------------------------------


VICTIM = "msg_victim"
REFERENCES = {
    "plain": [{"type": "item_reference", "id": VICTIM}],
    "without a type": [{"id": VICTIM}],
    "null for a type": [{"type": None, "id": VICTIM}],
    "with content beside it": [{"type": "item_reference", "id": VICTIM, "content": "x"}],
    "a message without content": [{"type": "message", "role": "user", "id": VICTIM, "content": []}],
    "empty text": [{"type": "message", "role": "user", "id": VICTIM, "content": ""}],
    "reasoning": [{"type": "reasoning", "id": VICTIM, "summary": [{"text": "x"}], "encrypted_content": ""}],
    "an image's call": [{"type": "image_generation_call", "id": VICTIM, "result": None}],
    "no list": {"type": "item_reference", "id": VICTIM},
    "a list of ids": [{"type": "item_reference", "id": [VICTIM, 5]}],
    "a number": [{"type": "item_reference", "id": 5}],
    "an object": [{"type": "item_reference", "id": {"id": VICTIM}}],
    "empty": [{"type": "item_reference", "id": ""}],
}


@pytest.mark.parametrize("target", [RESPONSES, COMPACT, COUNTED])
@pytest.mark.parametrize("name", REFERENCES)
async def test_an_item_that_only_names_another_is_refused_unless_it_is_the_users(stage, name, target):
    answer = await ask(stage, stage.post(body=response(input=REFERENCES[name]), target=target))
    assert answer.status in {400, 404}


def said(**part):
    return [{"role": "user", "content": [part]}]


DEEP = {
    # target, fields: every one would reach what the account holds
    "a file in a part": (RESPONSES, {"input": said(type="input_file", file_id="file-x")}),
    "an image by its file": (RESPONSES, {"input": said(type="input_image", file_id="file-x")}),
    "a part as an object": (RESPONSES, {"input": [{"role": "user", "content": {"file_id": "file-x"}}]}),
    "a part as an item": (RESPONSES, {"input": [{"type": "input_file", "file_id": "file-x"}]}),
    "an output": (RESPONSES, {"input": [{"type": "function_call_output", "output": [{"file_id": "file-x"}]}]}),
    "a screenshot": (RESPONSES, {"input": [{"type": "computer_call_output", "output": {"file_id": "f"}}]}),
    "instructions as items": (RESPONSES, {"instructions": said(type="input_file", file_id="file-x")}),
    "instructions as a reference": (RESPONSES, {"instructions": [{"type": "item_reference", "id": VICTIM}]}),
    "instructions in a count": (COUNTED, {"instructions": [{"type": "item_reference", "id": VICTIM}]}),
    "a container's call": (RESPONSES, {"input": [{"type": "code_interpreter_call", "container_id": "c"}]}),
    "a conversation": (RESPONSES, {"conversation": "conv_x"}),
    "a conversation's object": (RESPONSES, {"conversation": {"id": "conv_x"}}),
    "a prompt": (RESPONSES, {"prompt": {"id": "pmpt_x", "variables": {}}}),
    "a previous response": (RESPONSES, {"previous_response_id": "resp_victim"}),
    "previous responses": (RESPONSES, {"previous_response_id": ["resp_victim"]}),
    "a compared response": (RESPONSES, {"prompt_cache_options": {"comparison_response_id": "resp_victim"}}),
    "a search in files": (RESPONSES, {"tools": [{"type": "file_search", "vector_store_ids": ["vs_x"]}]}),
    "a remote server": (RESPONSES, {"tools": [{"type": "mcp", "server_url": "https://x.example"}]}),
    "a container": (RESPONSES, {"tools": [{"type": "code_interpreter", "container": "cntr_x"}]}),
    "a shell": (RESPONSES, {"tools": [{"type": "shell", "environment": {"type": "container_reference"}}]}),
    "a tool in a namespace": (RESPONSES, {"tools": [{"type": "namespace", "tools": [{"type": "mcp"}]}]}),
    "a tool in the input": (RESPONSES, {"input": [{"type": "additional_tools", "tools": [{"type": "mcp"}]}]}),
    "a tool without a list": (RESPONSES, {"tools": {"type": "file_search"}}),
    "an unknown tool": (RESPONSES, {"tools": [{"type": "teleport"}]}),
    "a file in a chat": (CHAT, {"messages": said(type="file", file={"file_id": "file-x"})}),
    "a file in a list": (CHAT, {"messages": [{"content": [[{"file": [{"file_id": "file-x"}]}]]}]}),
    "a chat's tool": (CHAT, {"tools": [{"type": "file_search"}]}),
    "a chat's tool without a list": (CHAT, {"tools": {"type": "file_search"}}),
    "a voice": (CHAT, {"audio": {"voice": {"id": "voice_x"}, "format": "wav"}}),
    "sound of an answer": (CHAT, {"messages": [{"role": "assistant", "audio": {"id": "audio_victim"}}]}),
    "a cache": (GENERATE, {"cachedContent": "cachedContents/x"}),
    "a cache in snake case": (GENERATE, {"cached_content": "cachedContents/x"}),
    "a continuation": (GENERATE, {"continuation_token": "x"}),
    "a store": (GENERATE, {"tools": [{"file_search": {"fileSearchStoreNames": ["x"]}}]}),
    "a store without a list": (GENERATE, {"tools": {"fileSearch": {}}}),
    "servers": (GENERATE, {"tools": [{"functionDeclarations": []}, {"mcp_servers": [{}]}]}),
    "an unknown tool of Gemini's": (GENERATE, {"tools": [{"teleport": {}}]}),
    "a cache in a count": (COUNT, {"generateContentRequest": {"cachedContent": "x"}}),
    "a cache in a count in snake case": (COUNT, {"generate_content_request": {"cached_content": "x"}}),
    "a store in a count": (COUNT, {"generateContentRequest": {"tools": [{"file_search": {}}]}}),
    "a count of another model": (COUNT, {"generateContentRequest": {"model": "models/gemini-2.5-pro"}}),
    "a count of a tuned model": (COUNT, {"generateContentRequest": {"model": "tunedModels/x"}}),
    "counts in both names": (COUNT, {"generateContentRequest": {}, "generate_content_request": {}}),
    "another model": (GENERATE, {"model": "models/gemini-2.5-pro"}),
    "a call from another's number": (CALLS, {"from": OTHERS_NUMBER}),
    "a call from nobody's number": (CALLS, {"from": "+14155550133"}),
    "a call from an object": (CALLS, {"from": {"number": OTHERS_NUMBER}}),
    "a pathway": (CALLS, {"pathway_id": "victim"}),
    "a persona": (CALLS, {"persona_id": "victim"}),
    "a memory": (CALLS, {"memory_id": "victim"}),
    "tools": (CALLS, {"tools": ["TL-victim"]}),
    "a key to another Twilio account": (CALLS, {"encrypted_key": "victim"}),
    "a webhook": (CALLS, {"webhook": "https://eve.example"}),
    "a request that the vendor makes": (CALLS, {"dynamic_data": [{"url": "https://eve.example"}]}),
    "a transfer": (CALLS, {"transfer_phone_number": "+19005550100"}),
    "a call that is dialled again": (CALLS, {"retry": {"wait": 10}}),
    "our tag": (CALLS, {"metadata": {"automna": "automna-req_victim"}}),
    "a tag that is none": (CALLS, {"metadata": {"automna": {"a": 1}}}),
    "metadata that are none": (CALLS, {"metadata": "x"}),
    "what nobody knows": (CALLS, {"PHONE_NUMBER": "+12025550101"}),
    "a text message": (CALLS, {"voicemail": {"action": "leave_message", "sms": {"to": "+19005550100"}}}),
    "a context": (SESSIONS, {"browserSettings": {"context": {"id": "victim", "persist": True}}}),
    "an extension": (SESSIONS, {"extensionId": "victim"}),
    "an extension in the settings": (SESSIONS, {"browserSettings": {"extensionId": "victim"}}),
    "certificates": (SESSIONS, {"proxySettings": {"caCertificates": ["x"]}}),
    "our tag of a browser": (SESSIONS, {"userMetadata": {"automna": "automna-req_victim"}}),
    "metadata of a browser that are none": (SESSIONS, {"userMetadata": ["x"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
async def test_what_the_account_holds_is_not_reached_from_a_body(stage, name):
    target, fields = DEEP[name]
    if target in (GENERATE, COUNT):
        body = content(**fields) if target == GENERATE else orjson.dumps(fields)
    else:
        body = {CHAT: chat, CALLS: call, SESSIONS: session}.get(target, response)(**fields)
    assert (await ask(stage, stage.post(body=body, target=target))).status in {400, 404}


async def test_a_forbidden_field_is_found_however_it_is_written(stage):
    """Escaped, behind thousands of objects, and on the deepest level that is read."""
    filler = b'{"type":"input_text","text":"x"},' * 3_000
    part = b'{"type":"input_file","\\u0066\\u0069le_\\u0069d":"file-x"}'
    deep = b"[" * 100 + part + b"]" * 100
    for inside in (part, filler + part, deep):
        stage.forget()
        body = b'{"model":"gpt-5.6-sol","input":[{"role":"user","content":[' + inside + b"]}]}"
        answer = await ask(stage, stage.post(body=body, target=RESPONSES))
        assert answer.status == (200 if inside is deep else 400)  # lists in lists are no parts


URIS = (
    "https://generativelanguage.googleapis.com/v1beta/files/x", "HTTPS://GENERATIVELANGUAGE.GOOGLEAPIS.COM/v1beta/files/x",
    "https://generativelanguage.googleapis.com./v1beta/files/x", "https://generativelanguage.googleapis.com:443/v1beta/files/x",
    "https://user@generativelanguage.googleapis.com/v1beta/files/x", "https://example.com@generativelanguage.googleapis.com/x",
    "https://example.com\\@generativelanguage.googleapis.com/x", "https://generativelanguage%2egoogleapis.com/v1beta/files/x",
    "https://generativelanguage\u3002googleapis.com/v1beta/files/x", "https://[2607:f8b0::1]/v1beta/files/x", "https://142.250.1.1/x",
    "https://2398759169/x", "https://0x8efa0101/x", "https://localhost/x", "https://metadata/x", "//generativelanguage.googleapis.com/x",
    "http://example.com/x", "https:/example.com/x", "https:///generativelanguage.googleapis.com/x", "ftp://example.com/x", "file:///etc/passwd",
    " https://example.com/x", "https://example.com/x\n", "https://example.com/a b", "files/x", "v1beta/files/x", "gs://bucket/x",
    "https://storage.googleapis.com/x", "https://drive.google.com/x", "https://lh3.googleusercontent.com/x", "https://a.goo.gle/x",
    "https://x.google/y", "https://generativelanguage.googleapis.com?x", "https://example.com#@x.google", "https://example.com/\u00e9", "", 5, [], {},
)  # fmt: skip


@pytest.mark.parametrize("uri", URIS)
async def test_a_uri_that_may_be_a_file_of_the_account_is_refused_wherever_a_part_may_stand(stage, uri):
    data = {"fileUri": uri, "mimeType": "image/png"}
    part = {"fileData": data}
    result = {"functionResponse": {"name": "f", "response": {}, "parts": [part]}}
    contents = [{"parts": [part]}]
    bodies = [
        (GENERATE, content(contents=contents)),
        (GENERATE, content(contents={"parts": part})),
        (GENERATE, content(contents=[{"parts": [{"text": "x", "file_data": {"file_uri": uri}}]}])),
        (GENERATE, content(contents=[{"parts": [result]}])),
        (GENERATE, content(system_instruction={"parts": [part]})),
        (COUNT, orjson.dumps({"generateContentRequest": {"contents": contents}})),
        (EMBED, orjson.dumps({"content": {"parts": [part]}})),
        (BATCH, orjson.dumps({"requests": [{"model": "models/gemini-embedding-2", "content": {"parts": part}}]})),
        (EMBED, orjson.dumps({"content": {"parts": [part]}, "requests": [{"content": {"parts": [{"text": "x"}]}}]})),
        (BATCH, orjson.dumps({"content": {"parts": [part]}, "requests": [{"content": {"parts": [{"text": "x"}]}}]})),
    ]  # fmt: skip
    for target, body in bodies:
        stage.forget()
        assert (await ask(stage, stage.post(body=body, target=target))).status == 400, target


async def test_a_public_url_is_served(stage):
    part = {"fileData": {"fileUri": "https://www.youtube.com/watch?v=x"}}
    body = content(contents=[{"parts": [part]}])
    assert (await ask(stage, stage.post(body=body, target=GENERATE))).status == 200


# --- use that nobody would count ------------------------------------------------------------------------


BOTH_NAMES = {
    "generation_config": {"maxOutputTokens": 9},
    "system_instruction": {"parts": [{"text": "x"}]},
    "service_tier": "flex",
}


@pytest.mark.parametrize("snake", BOTH_NAMES)
async def test_a_field_of_gemini_in_both_names_is_refused_and_in_either_is_served(stage, snake):
    head, _, tail = snake.partition("_")
    camel, value = head + tail.capitalize(), BOTH_NAMES[snake]
    fields = orjson.loads(content())
    fields.pop(camel, None)
    for more, status in (
        ({snake: value}, 200),
        ({camel: value}, 200),
        ({snake: value, camel: value}, 400),
        ({snake: None, camel: value}, 400),
    ):
        stage.forget()
        answer = await ask(stage, stage.post(body=orjson.dumps({**fields, **more}), target=GENERATE))
        assert answer.status == status


UNCOUNTED = [
    (CHAT, {"stream": "true"}, 400),
    (CHAT, {"stream": 1}, 400),
    (CHAT, {"stream": []}, 400),
    (CHAT, {"stream": None}, 200),
    (RESPONSES, {"stream": "true"}, 400),
    (RESPONSES, {"background": "true"}, 400),
    (RESPONSES, {"stream": 1}, 400),
    (CHAT, {"stream": True, "stream_options": {"include_usage": "false"}}, 400),
    (CHAT, {"stream": True, "stream_options": {"include_usage": 0}}, 400),
    (CHAT, {"stream": True, "stream_options": []}, 400),
    (CHAT, {"stream": True, "stream_options": {"include_usage": False}}, 200),
    (CHAT, {"n": 129}, 400),
    (CHAT, {"n": 10**18}, 400),
    (CHAT, {"n": "2"}, 400),
    (CHAT, {"n": 2.0}, 400),
    (CHAT, {"n": 0}, 400),
    (CHAT, {"n": True}, 400),
    (CHAT, {"service_tier": "batch-of-dreams"}, 404),
    (CHAT, {"service_tier": 1}, 400),
    (CHAT, {"model": "gpt-5.6-sol-unheard-of"}, 404),
    (CHAT, {"model": "ft:gpt-4o:acme::victim"}, 404),
    (CHAT, {"model": "openai/gpt-5.6-sol"}, 404),
    (CHAT, {"model": " gpt-5.6-sol"}, 404),
    (GENERATE, {"generationConfig": {"candidateCount": 9}}, 400),
    (GENERATE, {"generationConfig": {"candidateCount": "9"}}, 400),
    (GENERATE, {"generationConfig": {"candidateCount": -1}}, 400),
    (GENERATE, {"generationConfig": {"candidateCount": 1.5}}, 400),
    (GENERATE, {"generationConfig": {"candidateCount": []}}, 400),
    (GENERATE, {"generationConfig": []}, 400),
    (GENERATE, {"generationConfig": {"maxOutputTokens": 1, "max_output_tokens": 65_536}}, 400),
    (GENERATE, {"serviceTier": "SERVICE_TIER_BATCH"}, 400),
    (GENERATE, {"serviceTier": 5}, 400),
    *((CALLS, {"max_duration": bad}, 400) for bad in ("5", 0, -1, 721, 1e300, True, [], {})),
    *((SESSIONS, {"timeout": bad}, 400) for bad in ("60", 59, 60.5, 21_601, -1, 10**18, True, [], {})),
    (CALLS, {"phone_number": "911"}, 400),
    (CALLS, {"phone_number": "+19005550100"}, 400),
    (CALLS, {"phone_number": "+12425550100"}, 400),
    (CALLS, {"phone_number": "+442071838750"}, 400),
    (CALLS, {"phone_number": "+1202555\uff10100"}, 400),
    (CALLS, {"phone_number": ["+12025550100"]}, 400),
    (CALLS, {"max_duration": None}, 200),
    (SESSIONS, {"timeout": None}, 200),
]


@pytest.mark.parametrize(("target", "fields", "status"), UNCOUNTED)
async def test_what_would_be_counted_in_another_way_than_it_is_done_is_refused(stage, target, fields, status):
    build = {CHAT: chat, RESPONSES: response, GENERATE: content, CALLS: call, SESSIONS: session}[target]
    assert (await ask(stage, stage.post(body=build(**fields), target=target))).status == status


LESS = {(CHAT, 0), (RESPONSES, 0), (GENERATE, "1")}
"""What each vendor takes for a bound, small as it is."""


@pytest.mark.parametrize("asked", [-1, 0, 1.5, 1e300, 10**18, "1", "x", None, True, [], {}])
async def test_a_bound_that_is_none_is_held_for_as_the_models_own(stage, asked):
    for target, build, bounded in (
        (CHAT, chat, lambda bound: {"max_completion_tokens": bound}),
        (RESPONSES, response, lambda bound: {"max_output_tokens": bound, "store": False}),
        (GENERATE, content, lambda bound: {"generationConfig": {"maxOutputTokens": bound}}),
    ):
        held = [await _hold_of(stage, target, build(**bounded(bound))) for bound in (asked, 10**9, 9)]
        assert held[0] > 0.9 * held[1] or (target, asked) in LESS
        assert held[1] > 10 * held[2]


async def _hold_of(stage, target, body):
    stage.forget()
    assert (await ask(stage, stage.post(body=body, target=target))).status == 200
    readers = stage.gateway.service.store.readers
    ((hold_nanousd,),) = await readers.rows(
        "SELECT hold_nanousd FROM reservations ORDER BY id DESC LIMIT 1", ()
    )
    return hold_nanousd


async def test_20_000_ids_of_one_request_are_looked_up_in_bounded_time_and_more_are_refused(tmp_path):
    """Each is nobody's, and stands for itself: none is remembered for the next one."""
    async with staged(tmp_path) as stage:
        for count, status in ((20_000, 200), (20_001, 400)):
            stage.forget()
            items = [{"id": f"msg_{number}", "content": "x"} for number in range(count)]
            body = response(store=False, input=items)
            started_s = time.monotonic()
            answer = await ask(stage, stage.post(body=body, target=RESPONSES))
            assert answer.status == status
            assert time.monotonic() - started_s < LOOKED_UP_WITHIN_S
