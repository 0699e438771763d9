"""The declarations of the Anthropic surface."""

import json

import pytest

from metering.errors import Reason, Refused
from proxy.forbidden import check
from routes import SURFACES
from routes.anthropic import FORBIDDEN, SURFACE
from tests.unit.routes.anthropic_bodies import inbound


def test_the_surface_is_listed():
    assert SURFACE in SURFACES


def test_only_these_operations_exist():
    assert [operation.name for operation in SURFACE.operations] == [
        "POST /v1/messages",
        "POST /v1/messages/count_tokens",
        "GET /v1/models",
        "GET /v1/models/{model_id}",
    ]


def test_both_operations_with_a_body_refuse_the_same_fields():
    assert {op.path: op.forbidden for op in SURFACE.operations if op.method == "POST"} == {
        "/v1/messages": FORBIDDEN,
        "/v1/messages/count_tokens": FORBIDDEN,
    }


def block(**fields):
    return {"messages": [{"role": "user", "content": [fields]}]}


FIELDS = [
    # refused  fields
    (True, {"thread": {"type": "continue", "previous_message_id": "msg_1"}}),
    (True, {"diagnostics": {"previous_message_id": "msg_1"}}),
    (False, {"diagnostics": {"previous_message_id": None}}),
    (True, {"container": "container_1"}),
    (True, {"container": {"skills": [{"skill_id": "s"}]}}),
    (True, {"mcp_servers": [{"type": "url", "url": "https://x"}]}),
    (True, {"billing_policy": {"type": "billing_policy", "bill_to": "user_profile"}}),
    (True, {"fallback_credit_token": "tok"}),
    (True, block(type="document", source={"type": "file", "file_id": "file_1"})),
    (True, block(type="image", source={"type": "base64", "file_id": "file_1"})),
    (
        True,
        block(type="tool_result", content=[{"type": "image", "source": {"type": "file", "file_id": "f"}}]),
    ),
    (True, block(type="container_upload", file_id="file_1")),
    (True, block(type="x", content={"content": [{"type": "bash_code_execution_output", "file_id": "f"}]})),
    (True, block(type="x", content={"content": [{"type": "code_execution_output", "file_id": "f"}]})),
    (False, block(type="image", source={"type": "base64", "data": "AA"})),
    (False, block(type="tool_use", name="drive", input={"file_id": "mine", "container": "box"})),
    (False, {"tools": [{"name": "drive", "input_schema": {"properties": {"file_id": {"type": "string"}}}}]}),
]


@pytest.mark.parametrize(("refused", "fields"), FIELDS, ids=[json.dumps(fields)[:70] for _, fields in FIELDS])
def test_what_reaches_another_users_objects_is_refused_and_nothing_else(refused, fields):
    if not refused:
        check(FORBIDDEN, inbound(fields))
        return
    with pytest.raises(Refused) as caught:
        check(FORBIDDEN, inbound(fields))
    assert caught.value.reason is Reason.BAD_REQUEST


@pytest.mark.parametrize("operation", SURFACE.operations, ids=lambda operation: operation.name)
def test_every_example_is_a_request_that_passes(operation):
    example = operation.example
    check(operation.forbidden, inbound(example.body or b"{}"))
    pattern = operation.path.split("/")
    assert all(a == b or a.startswith("{") for a, b in zip(pattern, example.path.split("/"), strict=True))
