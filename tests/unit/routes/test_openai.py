"""The declarations of the OpenAI surface."""

import json

import pytest

from metering.errors import Reason, Refused
from metering.objects import ObjectId
from proxy.forbidden import check
from proxy.json_walk import values_at
from proxy.ownership import handed_out
from routes import SURFACES
from routes.openai import FORBIDDEN_IN_CHAT, FORBIDDEN_IN_RESPONSES, SURFACE
from tests.unit.routes.openai_bodies import MODEL, inbound

OPERATIONS = {operation.name: operation for operation in SURFACE.operations}
CHAT = OPERATIONS["POST /v1/chat/completions"]
RESPONSES = OPERATIONS["POST /v1/responses"]
WITH_ITEMS = ("POST /v1/responses", "POST /v1/responses/compact", "POST /v1/responses/input_tokens")


def test_the_surface_is_listed():
    assert SURFACE in SURFACES


def test_only_these_operations_exist():
    assert {name: operation.meter.is_free for name, operation in OPERATIONS.items()} == {
        "POST /v1/chat/completions": False,
        "POST /v1/responses": False,
        "POST /v1/responses/compact": False,
        "POST /v1/responses/input_tokens": True,
        "GET /v1/responses/{response_id}": True,
        "POST /v1/responses/{response_id}/cancel": True,
        "POST /v1/completions": False,
        "POST /v1/embeddings": False,
        "POST /v1/moderations": True,
        "GET /v1/models": True,
        "GET /v1/models/{model_id}": True,
    }


def test_no_operation_takes_a_query_that_is_not_listed():
    assert [name for name, operation in OPERATIONS.items() if operation.query is None] == []
    assert [name for name, operation in OPERATIONS.items() if operation.query] == [
        "GET /v1/responses/{response_id}"
    ]


def test_every_operation_with_items_refuses_and_names_the_same():
    for name in WITH_ITEMS:
        assert OPERATIONS[name].forbidden == FORBIDDEN_IN_RESPONSES
        assert OPERATIONS[name].names == RESPONSES.names


def part(**fields):
    return {"messages": [{"role": "user", "content": [fields]}]}


def item(**fields):
    return {"input": [fields]}


IN_CHAT = [
    # refused  fields
    (True, part(type="file", file={"file_id": "file_1"})),
    (False, part(type="file", file={"file_data": "AA", "filename": "f"})),
    (True, {"audio": {"voice": {"id": "voice_1"}}}),
    (False, {"audio": {"voice": "alloy"}}),
    (False, {"tools": [{"type": "function", "function": {"parameters": {"properties": {"file_id": {}}}}}]}),
]
IN_RESPONSES = [
    (True, {"conversation": "conv_1"}),
    (True, {"conversation": {"id": "conv_1"}}),
    (False, {"conversation": None}),
    (True, {"prompt": {"id": "pmpt_1"}}),
    (True, {"access_programs": {"cyber": "standard"}}),
    (True, item(role="user", content=[{"type": "input_file", "file_id": "file_1"}])),
    (True, item(role="user", content=[{"type": "input_image", "file_id": "file_1"}])),
    (False, item(role="user", content=[{"type": "input_image", "file_id": None, "image_url": "data:"}])),
    (True, item(type="computer_call_output", output={"type": "computer_screenshot", "file_id": "file_1"})),
    (True, item(type="function_call_output", output=[{"type": "input_file", "file_id": "file_1"}])),
    (True, item(type="custom_tool_call_output", output=[{"type": "input_image", "file_id": "file_1"}])),
    (True, item(type="shell_call", environment={"type": "container_reference", "container_id": "c"})),
    (True, item(type="code_interpreter_call", container_id="cntr_1")),
    (False, item(type="tool_search_call", arguments={"file_id": "mine"})),
    (False, item(type="function_call", arguments='{"file_id":"mine"}')),
    (
        False,
        item(type="tool_search_output", tools=[{"type": "function", "parameters": {"file_id": {}}}]),
    ),
]


@pytest.mark.parametrize(
    ("forbidden", "is_refused", "fields"),
    [
        *((FORBIDDEN_IN_CHAT, *row) for row in IN_CHAT),
        *((FORBIDDEN_IN_RESPONSES, *row) for row in IN_RESPONSES),
    ],
)
def test_fields_that_reach_what_is_shared_are_refused(forbidden, is_refused, fields):
    if not is_refused:
        check(forbidden, inbound(fields))
        return
    with pytest.raises(Refused) as caught:
        check(forbidden, inbound(fields))
    assert caught.value.reason is Reason.BAD_REQUEST


# --- objects that the vendor keeps --------------------------------------------------------------------


def ids(operation, answer):
    return {(one.kind, one.upstream_id) for one in handed_out("openai", operation.hands_out, answer)}


def test_a_response_and_its_items_belong_to_who_asked():
    answer = {
        "id": "resp_1",
        "output": [{"id": "rs_1", "type": "reasoning"}, {"id": "msg_1", "content": [{"id": "not_an_item"}]}],
        "conversation": {"id": "conv_1"},
    }
    expected = {("response", "resp_1"), ("item", "rs_1"), ("item", "msg_1")}
    assert ids(RESPONSES, answer) == expected
    assert ids(RESPONSES, {"type": "response.completed", "response": answer}) == expected
    added = {"type": "response.output_item.added", "item": {"id": "msg_2", "type": "message"}}
    assert ids(RESPONSES, added) == {("item", "msg_2")}
    delta = {"type": "response.output_text.delta", "item_id": "msg_1", "delta": "x"}
    assert ids(RESPONSES, delta) == set()


def test_a_response_that_is_not_kept_hands_out_nothing():
    for place in RESPONSES.hands_out:
        assert place.when is not None
        assert place.when(inbound({"model": MODEL}))
        assert not place.when(inbound({"model": MODEL, "store": False}))
        assert place.when(inbound({"model": MODEL, "store": False, "background": True}))


def test_spoken_answers_belong_to_who_asked():
    for answer in (
        {"id": "chatcmpl-1", "choices": [{"message": {"audio": {"id": "audio_1"}}}]},
        {"id": "chatcmpl-1", "choices": [{"delta": {"audio": {"id": "audio_1"}}}]},
    ):
        assert ids(CHAT, answer) == {("audio", "audio_1")}
    for place in CHAT.hands_out:
        assert place.when is not None
        assert place.when(inbound({"modalities": ["text", "audio"]}))
        assert not place.when(inbound({"messages": []}))
    (name,) = CHAT.names
    fields = {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}, {"role": "user"}]}
    assert list(values_at(fields, tuple(name.body_field.split(".")))) == ["audio_1"]


def test_whatever_a_request_can_name_some_operation_hands_out():
    handed = {place.kind for operation in SURFACE.operations for place in operation.hands_out}
    assert {name.kind for operation in SURFACE.operations for name in operation.names} == handed


def test_a_response_in_the_background_is_asked_about_where_it_can_be_read():
    assert RESPONSES.deferred is not None
    path = RESPONSES.deferred.path.replace("{id}", "resp_1")
    assert path == OPERATIONS["GET /v1/responses/{response_id}"].path.replace("{response_id}", "resp_1")
    assert RESPONSES.deferred.kind in {place.kind for place in RESPONSES.hands_out}


def test_the_examples_ids_have_the_kinds_that_other_operations_name():
    answer = json.loads(RESPONSES.example.answer)
    found = handed_out("openai", RESPONSES.hands_out, answer)
    assert ObjectId("openai", "response", "resp_example1") in found
