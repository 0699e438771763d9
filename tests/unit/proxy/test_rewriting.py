"""What a body says at a vendor beside what its caller says, and an answer without it."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.errors import Reason, Refused
from metering.objects import user_tag
from proxy.meters import Free
from proxy.rewriting import body_of, request_of, shown, tag_of
from proxy.surface import Example, Keeps, Operation, Tag

PLAIN = Operation("POST", "/x", meter=Free(), example=Example("/x"))
NAMED = replace(PLAIN, namespaced=("name",), tag=Tag("name", is_optional=True))
NESTED = replace(PLAIN, tag=Tag("about.more.automna"))
PREFIX = f"{user_tag('ada')}-"
REQUEST = "req_1"
TAG = "automna-req_1"


def said(operation: Operation, fields: dict[str, Any]) -> Any:
    body = body_of(operation, fields, user_id="ada", request_id=REQUEST)
    return None if body is None else orjson.loads(body)


def test_what_a_request_says_beside_its_client_goes_up_in_the_clients_place():
    body = body_of(
        PLAIN,
        {"from": None, "task": "a"},
        user_id="ada",
        request_id=REQUEST,
        says={"from": "+14155550100", "webhook": "https://proxy.example/1"},
    )
    assert orjson.loads(body or b"") == {
        "from": "+14155550100",
        "task": "a",
        "webhook": "https://proxy.example/1",
    }


@pytest.mark.parametrize(
    ("operation", "fields", "expected"),
    [
        (PLAIN, {"name": "a"}, None),
        (NAMED, {"name": "a", "b": 1}, {"name": f"{PREFIX}a", "b": 1}),
        (NAMED, {"b": 1}, {"name": TAG, "b": 1}),
        (NAMED, {"name": None}, {"name": TAG}),
        (NAMED, {}, {"name": TAG}),
        (NAMED, {"name": TAG}, {"name": PREFIX + TAG}),
        (NESTED, {}, {"about": {"more": {"automna": TAG}}}),
        (NESTED, {"about": None}, {"about": {"more": {"automna": TAG}}}),
        (
            NESTED,
            {"about": {"more": {"k": "v"}, "l": 1}},
            {"about": {"more": {"k": "v", "automna": TAG}, "l": 1}},
        ),
        (NESTED, {"about": {"more": {"automna": None}}}, {"about": {"more": {"automna": TAG}}}),
    ],
)
def test_what_goes_up(operation: Operation, fields: dict[str, Any], expected: Any) -> None:
    before = orjson.dumps(fields)
    assert said(operation, fields) == expected
    assert orjson.dumps(fields) == before, "what was read stays as it is"


@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        (NAMED, {"name": 1}),
        (NAMED, {"name": ["a"]}),
        (NESTED, {"about": "text"}),
        (NESTED, {"about": {"more": ["automna"]}}),
        (NESTED, {"about": {"more": {"automna": "mine"}}}),
        (NESTED, {"about": {"more": {"automna": ""}}}),
    ],
)
def test_what_is_not_the_callers_to_say_is_refused(operation: Operation, fields: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        said(operation, fields)
    assert refused.value.reason is Reason.BAD_REQUEST


def test_a_tag_tells_its_request() -> None:
    assert request_of(tag_of(REQUEST)) == REQUEST
    for other in (f"{PREFIX}{TAG}", REQUEST, "", None, 1, {}):
        assert request_of(other) is None


@pytest.mark.parametrize(
    ("operation", "answer", "expected"),
    [
        (NAMED, b'{"a": 1.0,"name":"automna-req_1","b":2}', b'{"a": 1.0,"b":2}'),
        (NAMED, b'{"name" : "automna-req_1", "b":2}', b'{"b":2}'),
        (NAMED, b'{"a":1 , "name":"automna-req_1"}', b'{"a":1}'),
        (NAMED, b'[{"name":"automna-req_1"},{"name":"automna-req_2"}]', b"[{},{}]"),
        (NAMED, b'{"name":"automna-tic","other":"automna-req_1"}', b'{"other":"automna-req_1"}'),
        (NAMED, b'{"text":"\\"name\\":\\"automna-req_1\\""}', b'{"text":"\\"name\\":\\"automna-req_1\\""}'),
        (NESTED, b'{"about":{"more":{"k":"v","automna":"automna-req_1"}}}', b'{"about":{"more":{"k":"v"}}}'),
        (replace(PLAIN, hides=("automna",)), b'[{"u":{"automna":"automna-req_1"}}]', b'[{"u":{}}]'),
    ],
)
def test_what_comes_down(operation: Operation, answer: bytes, expected: bytes) -> None:
    assert shown(operation, "ada")(answer) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just("automna-req_1"),
    lambda below: (
        st.lists(below, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "a", "b"]) | st.text(), below, max_size=4)
    ),
    max_leaves=20,
)


def without_tags(node: Any) -> Any:
    if isinstance(node, list):
        return [without_tags(one) for one in node]
    if isinstance(node, dict):
        return {
            key: without_tags(value)
            for key, value in node.items()
            if not (key == "name" and request_of(value) is not None)
        }
    return node


@given(JSON, st.booleans())
def test_tags_are_taken_out_of_any_answer_and_nothing_else_is(answer: Any, is_indented: bool) -> None:
    option = orjson.OPT_INDENT_2 if is_indented else 0
    try:
        body = orjson.dumps(answer, option=option)
    except (TypeError, ValueError):  # numbers and texts that no vendor writes
        return
    shows = shown(replace(PLAIN, hides=("name",)), "ada")
    assert orjson.loads(shows(body)) == without_tags(answer)


# --- what the operator decides, and lists that all share ------------------------------------------------

FORCED = replace(PLAIN, forces=(("projectId", "PROJECT"), ("region", "REGION")))


@pytest.mark.parametrize("fields", [{}, {"projectId": "theirs", "region": "x"}, {"projectId": None}])
def test_what_the_operator_decides_stands_whatever_was_said(fields: dict[str, Any]) -> None:
    options = {"PROJECT": "ours", "REGION": ""}
    body = body_of(FORCED, {**fields, "a": 1}, user_id="ada", request_id=REQUEST, options=options)
    assert body is not None
    assert orjson.loads(body) == {"projectId": "ours", "a": 1}


LIST = replace(PLAIN, keeps=Keeps("session", "id"))
WITHIN = replace(PLAIN, keeps=Keeps("call", "call_id", "data.calls", counts=("count", "total")))


@pytest.mark.parametrize(
    ("operation", "answer", "expected"),
    [
        (LIST, [{"id": "a"}, {"id": "b"}, {"id": "c", "x": 1}], [{"id": "a"}, {"id": "c", "x": 1}]),
        (LIST, [{"id": "b"}, "a", None, {"ID": "a"}, {"id": ["a"]}, ["a"]], []),
        (LIST, {"sessions": [{"id": "b"}]}, []),
        (LIST, None, []),
        (
            WITHIN,
            {"data": {"calls": [{"call_id": "a"}, {"call_id": "b"}], "at": 1}, "count": 2, "other": 2},
            {"data": {"calls": [{"call_id": "a"}], "at": 1}, "count": 1, "other": 2},
        ),
        (WITHIN, {"data": {"calls": {"call_id": "b"}}, "total": 9}, {"data": {"calls": []}, "total": 0}),
        (WITHIN, {"data": "secret", "total": 9}, {}),
        (WITHIN, [{"call_id": "b"}], {}),
    ],
)
def test_of_a_list_that_all_share_only_what_is_ones_own_comes_down(
    operation: Operation, answer: Any, expected: Any
) -> None:
    kept = shown(operation, "ada", frozenset({"a", "c"}))(orjson.dumps(answer))
    assert orjson.loads(kept) == expected
