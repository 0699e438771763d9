"""Bodies that reach what others own are refused, however they are written."""

import json

import orjson
import pytest

from metering.errors import Reason, Refused
from proxy.forbidden import check
from proxy.json_walk import WALKED_FREELY
from proxy.surface import ForbiddenField, Inbound

RULES = (
    ForbiddenField("thread", "held by the vendor."),
    ForbiddenField("prompt.id", "shared."),
    ForbiddenField("tools.server", "shared."),
    ForbiddenField("**.file_id", "shared files."),
    ForbiddenField("messages.**.source.type", "shared files.", value="file"),
)


def inbound(body):
    return Inbound("POST", {}, b"", [], body, orjson.loads(body))


def is_refused(body, rules=RULES):
    body = body if isinstance(body, bytes) else orjson.dumps(body)
    try:
        check(rules, inbound(body))
    except Refused as refused:
        return refused.reason is Reason.BAD_REQUEST
    return False


BODIES = [
    # refused  body
    (False, {}),
    (False, {"model": "m", "messages": [{"role": "user", "content": "thread file_id"}]}),
    (True, {"thread": {"type": "create"}}),
    (True, {"thread": ""}),
    (False, {"thread": None}),
    (False, {"metadata": {"thread": 1}}),
    (True, {"prompt": {"id": "p"}}),
    (False, {"prompt": {"id": None}}),
    (False, {"prompt": "id"}),
    (False, {"prompt": {"name": {"id": "p"}}}),
    (True, {"tools": [{"name": "a"}, {"server": "s"}]}),
    (False, {"tools": ["server", 3, None]}),
    (True, {"file_id": "f"}),
    (True, {"a": [[{"b": {"file_id": "f"}}]]}),
    (False, {"a": [[{"b": {"file_id": None}}]]}),
    (True, {"messages": [{"content": [{"source": {"type": "file"}}]}]}),
    (True, {"messages": [{"content": [{"content": [{"source": {"type": "file"}}]}]}]}),
    (True, {"messages": [{"source": [{"type": "url"}, {"type": "file"}]}]}),
    (False, {"messages": [{"content": [{"source": {"type": "base64"}}]}]}),
    (False, {"tools": [{"source": {"type": "file"}}]}),
    (False, {"messages": "file"}),
]


@pytest.mark.parametrize(("refused", "body"), BODIES, ids=[json.dumps(body)[:60] for _, body in BODIES])
def test_a_body_is_refused_when_it_holds_a_forbidden_value(refused, body):
    assert is_refused(body) is refused


@pytest.mark.parametrize(("refused", "body"), BODIES, ids=[json.dumps(body)[:60] for _, body in BODIES])
def test_blanks_and_long_surroundings_change_nothing(refused, body):
    filler = [{"n": index} for index in range(2 * WALKED_FREELY)]
    messages = body.get("messages")
    padded = {**body, "zz": filler}
    if isinstance(messages, list):
        padded["messages"] = [*messages, *filler]
    assert is_refused(json.dumps(padded, indent=1).encode()) is refused


def test_the_refusal_names_the_field_and_why():
    body = b'{"messages":[{"source":{"type":"file"}}]}'
    with pytest.raises(Refused, match=r"source\.type 'file': shared files\."):
        check(RULES, inbound(body))


def test_an_escaped_name_is_found_in_a_long_body():
    filler = ",".join('{"n":1}' for _ in range(2 * WALKED_FREELY))
    body = f'{{"deep":{{"\\u0066ile_id":"f"}},"zz":[{filler}]}}'.encode()
    assert is_refused(body)


AMBIGUOUS = [
    # refused  body
    (True, b'{"thread":{"type":"create"},"thread":null}'),
    (True, b'{"model":"a","model":"b"}'),
    (True, b'{"model":"a", "max_tokens": 1, "model":"a"}'),
    (True, b'{"model":"a","\\u006dodel":"b"}'),
    (True, b'{"model":"a","model":"b","note":"\\u0022\\u0022\\u0022\\u0022"}'),
    (True, b'{"messages":[{"source":{"type":"file","type":"base64"}}]}'),
    (True, b'{"n":1e9,"n":1,"m":1e9}'),
    (False, b'{"a": {"model": 1}, "b": {"model": 2}}'),
    (False, b'{ "note" : "\\u0022quoted\\u0022", "path": "a\\/b" }'),
    (False, b'{"n":1e9,"m":1.0,"o":"\\u00e9"}'),
    (False, b'{"text":"\\"model\\":\\"model\\""}'),
    (False, b" {}\n"),
]


@pytest.mark.parametrize(("refused", "body"), AMBIGUOUS)
def test_a_key_that_stands_twice_in_one_object_is_refused_at_any_depth(refused, body):
    assert is_refused(body, ()) is refused


def test_the_repeated_key_is_named():
    with pytest.raises(Refused, match="max_tokens"):
        check((), inbound(b'{"max_tokens":1,"max_tokens":2}'))


def test_a_body_nested_deeper_than_can_be_checked_is_refused():
    body = b'{"a":' * 400 + b"1" + b"}" * 400
    assert is_refused(body, ())


def test_a_request_without_a_body_has_nothing_to_refuse():
    check(RULES, Inbound("GET", {}, b"", [], b"", {}))
