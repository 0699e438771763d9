"""Hostile input by structure: bodies grown out of valid ones, targets out of segments, headers out of names."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.headers import CREDENTIALS, HOP_BY_HOP
from tests.hostile.conftest import HOSTILE
from tests.hostile.stage import CHAT, GENERATE, MESSAGES, RESPONSES, chat, content, response, small_body

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD = orjson.loads(
    small_body(
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        tools=[
            {"name": "look", "input_schema": {"type": "object"}},
            {"type": "web_search_20250305", "max_uses": 2},
        ],
        thinking={"type": "enabled", "budget_tokens": 1_024},
        metadata={"user_id": "u"},
        fallbacks=[{"model": "claude-haiku-4-5", "max_tokens": 5}],
        context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
    )
)
WORDS = st.sampled_from(
    ["", "type", "model", "text", "url", "file", "ephemeral", "1h", "compact_1", "advisor_1", "tool_definition", "claude-opus-4-5", "\0", "é"]
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS
)
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


def paths_of(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(found for key, value in items for found in paths_of(value, (*path, key)))]


def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[path[0]] = replaced(node[path[0]], path[1:], value)
    return copy


SWAPS = st.lists(st.tuples(st.sampled_from(paths_of(GOOD)[1:]), JSON), min_size=1, max_size=3)


@HOSTILE
@given(
    swaps=SWAPS,
    dropped=st.sets(st.sampled_from(sorted(GOOD)), max_size=2),
    added=st.dictionaries(WORDS, JSON, max_size=2),
)
async def test_a_valid_body_with_anything_anywhere_is_served_as_it_is_or_refused(
    shared, swaps, dropped, added
):
    fields = GOOD
    for path, value in swaps:
        try:
            fields = replaced(fields, path, value)
        except (KeyError, IndexError, TypeError):  # an earlier one has taken this place away
            continue
    body = orjson.dumps({key: value for key, value in {**fields, **added}.items() if key not in dropped})
    await check(shared, shared.post(body=body), {200, 400, 404})


OTHERS = {
    CHAT: chat(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "data:x"}}]}
        ],
        tools=[{"type": "function", "function": {"name": "look", "parameters": {}}}],
        stream=True,
        stream_options={"include_usage": False, "include_obfuscation": False},
        n=1,
        service_tier="default",
    ),
    RESPONSES: response(
        input=[{"type": "message", "role": "user", "id": "msg_1", "content": [{"type": "input_text", "text": "Hi"}]}],
        instructions="Be brief.",
        tools=[{"type": "web_search"}, {"type": "function", "name": "look", "parameters": {}}],
        store=False,
        max_tool_calls=1,
    ),
    GENERATE: content(
        contents=[{"role": "user", "parts": [{"text": "Hi"}, {"inlineData": {"mimeType": "image/png", "data": ""}}]}],
        systemInstruction={"parts": [{"text": "Be brief."}]},
        tools=[{"functionDeclarations": [{"name": "look"}]}, {"googleSearch": {}}],
        generationConfig={"maxOutputTokens": 9, "candidateCount": 1, "responseModalities": ["TEXT"]},
        serviceTier="flex",
    ),
}  # fmt: skip
FIELDS = st.sampled_from(
    ["stream", "stream_options", "tools", "input", "messages", "id", "file_id", "instructions", "previous_response_id", "service_tier", "n",
     "contents", "parts", "fileData", "file_data", "fileUri", "generation_config", "cached_content", "serviceTier", "model", "unknown"]
)  # fmt: skip
ANY = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize("target", OTHERS)
@HOSTILE
@given(data=st.data())
async def test_so_is_one_of_the_other_surfaces(shared, target, data):
    good = orjson.loads(OTHERS[target])
    fields = good
    for path in data.draw(st.lists(st.sampled_from(paths_of(good)[1:]), max_size=2)):
        try:
            fields = replaced(fields, path, data.draw(ANY))
        except (KeyError, IndexError, TypeError):  # an earlier one has taken this place away
            continue
    fields = {**fields, **data.draw(st.dictionaries(FIELDS, ANY, max_size=2))}
    await check(shared, shared.post(body=orjson.dumps(fields), target=target), {200, 400, 404})


@HOSTILE
@given(document=JSON, target=st.sampled_from([MESSAGES, MESSAGES + b"/count_tokens"]))
async def test_any_document_is_refused_unless_it_names_a_model(shared, document, target):
    names_model = isinstance(document, dict) and document.get("model") == "claude-opus-4-5"
    statuses = {200, 400, 404} if names_model else {400, 404}
    await check(shared, shared.post(body=orjson.dumps(document), target=target), statuses)


SEGMENTS = st.sampled_from(
    [b"api", b"llm", b"v1", b"messages", b"models", b"count_tokens", b".", b"..", b"%2e", b"%2E%2e", b"%2f", b"%5c", b"\\", b"", b"%00",
     b"%252f", b";a=b", b"%c0%ae", b"?", b"?a=b", b"@", b":", b"*", b"a%20b", b"%", b"%zz", b"claude-haiku-4-5"]
)  # fmt: skip
TARGETS = st.builds(
    lambda mount, segments, slash: mount + slash.join(segments),
    st.sampled_from(
        [b"/", b"/api/llm/", b"/api/llm/v1/", b"/api/llm/v1/models/", b"http://proxy/api/llm/v1/", b"//", b""]
    ),
    st.lists(SEGMENTS, min_size=1, max_size=6),
    st.sampled_from([b"/", b"", b"//", b"%2f"]),
)


@HOSTILE
@given(method=st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"]), target=TARGETS)
async def test_any_target_is_served_as_it_is_written_or_refused(shared, method, target):
    body = small_body() if method != b"GET" else b""
    await check(shared, shared.post(body=body, method=method, target=target), {200, 400, 401, 404, 405})
    for request in shared.vendor.requests:
        assert (request.method, request.target.partition(b"?")[0]) in DECLARED or request.target.startswith(
            b"/v1/models/"
        )
        assert b".." not in request.path
        assert b"%2f" not in request.path.lower()


DECLARED = {(b"POST", b"/v1/messages"), (b"POST", b"/v1/messages/count_tokens"), (b"GET", b"/v1/models")}
NAMES = st.sampled_from(
    [b"x-api-key", b"Authorization", b"Host", b"Connection", b"Keep-Alive", b"TE", b"Trailer", b"Upgrade", b"Expect", b"Cookie", b"Forwarded",
     b"X-Forwarded-For", b"x-goog-api-key", b"Content-Length", b"Transfer-Encoding", b"Content-Encoding", b"anthropic-beta",
     b"anthropic-version", b"x-http-method-override", b"Accept-Encoding", b"x-automna-a", b"x y", b"x:", b"", b"x\0", b"\xff", b"Content-Type"]
)  # fmt: skip
HEADER_VALUES = st.sampled_from(
    [b"", b"a", b"0", b"5", b"gzip", b"chunked", b"identity", b"close", b"keep-alive, x-b", b"upgrade", b"h2c", b"100-continue", b"Bearer x",
     b"anthropic-version", b"host, content-length", b"output-300k-2026-03-24", b"a\x0bb", b"a\0b", b" ", b"\xff\xfe", b"a,b;q=0"]
)  # fmt: skip
NEVER_UP = (HOP_BY_HOP | CREDENTIALS) - {b"connection", b"x-api-key"}


@HOSTILE
@given(headers=st.lists(st.tuples(NAMES, HEADER_VALUES), max_size=6))
async def test_any_headers_are_passed_as_declared_or_refused(shared, headers):
    fields = [b"%b: %b" % pair for pair in headers]
    await check(shared, shared.post(*fields), {200, 400, 401})
    for request in shared.vendor.requests:
        names = [name for name, _ in request.headers]
        assert not set(names) & NEVER_UP
        assert all(
            names.count(name) == 1 for name in (b"host", b"content-length", b"x-api-key", b"connection")
        )
        assert shared.token.encode() not in b"".join(value for _, value in request.headers)


async def check(stage, wire, statuses):
    stage.forget()
    conversation = await stage.converse(wire, answers=1)
    await stage.assert_held(wire, conversation)
    assert set(conversation.statuses) <= statuses
    assert len(stage.vendor.requests) == conversation.statuses.count(200)
