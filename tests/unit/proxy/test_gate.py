"""Gates: what passes when, and that nothing passes changed but the one event that is taken out."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.errors import Refused
from metering.objects import ObjectId
from proxy import gate as module
from proxy.gate import BodyGate, EventGate
from proxy.surface import AddedEvent, HandsOut

PLACES = (HandsOut("response", "response.id"), HandsOut("item", "item.id"), HandsOut("item", "output.id"))
ADDED = AddedEvent(marker=b'"usage"', is_it=lambda data: b'"choices":[]' in data)
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3}}\n\n'
CREATED = b'event: response.created\ndata: {"response":{"id":"resp_1","usage":null}}\n\n'
ITEM = b'data: {"item":{"id":"msg_1"}}\n\n'
TEXTS = (
    b'data: {"choices":[{"delta":{"content":"a"}}],"usage":null}\n\n',
    b'data: {"delta":"he said \\"id\\": \\"resp_9\\""}\r\n\r\n',
    b": a comment\n\n",
    b"data: [DONE]\n\n",
)
SPLIT = st.lists(st.integers(0, 400), max_size=30)


def response(upstream_id: str) -> ObjectId:
    return ObjectId("openai", "response", upstream_id)


def item(upstream_id: str) -> ObjectId:
    return ObjectId("openai", "item", upstream_id)


def pieces(text: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[begin:end] for begin, end in pairwise(at)]


@settings(max_examples=400)
@given(
    st.lists(st.sampled_from([*TEXTS, ITEM, CREATED]), max_size=12),
    st.integers(0, 12),
    st.sampled_from([USAGE, USAGE.replace(b"\n", b"\r\n")]),
    SPLIT,
)
def test_the_added_event_is_taken_out_and_nothing_else_however_it_is_cut(events, at, usage, cuts):
    with_usage = [*events[:at], usage, *events[at:]]
    gate = EventGate("openai", ADDED, PLACES)
    passed = b"".join(gate.feed(piece) for piece in pieces(b"".join(with_usage), cuts)) + gate.end()
    assert passed == b"".join(events)


@given(st.lists(st.sampled_from([*TEXTS, ITEM, CREATED]), max_size=12), SPLIT)
def test_no_byte_of_an_event_with_an_id_passes_before_its_id_is_known(events, cuts):
    gate = EventGate("openai", None, PLACES)
    known: set[ObjectId] = set()
    passed = b""
    for piece in [*pieces(b"".join(events), cuts), None]:
        passed += gate.end() if piece is None else gate.feed(piece)
        known.update(gate.take_ids())
        if b"resp_1" in passed:
            assert response("resp_1") in known
        if b"msg_1" in passed:
            assert item("msg_1") in known
    assert passed == b"".join(events)
    assert known == {
        one for one, event in ((response("resp_1"), CREATED), (item("msg_1"), ITEM)) if event in events
    }


def test_a_whole_event_passes_at_once():
    gate = EventGate("openai", ADDED, PLACES)
    for event in (*TEXTS, CREATED):
        assert gate.feed(event) == event


def test_only_the_first_added_event_is_taken_out_a_second_is_the_vendors():
    gate = EventGate("openai", ADDED, ())
    assert gate.feed(USAGE + USAGE) == USAGE


def test_an_id_is_told_once():
    gate = EventGate("openai", None, PLACES)
    gate.feed(CREATED + CREATED)
    assert gate.take_ids() == [response("resp_1")]
    gate.feed(CREATED)
    assert gate.take_ids() == []


def test_an_event_that_may_carry_an_id_but_cannot_be_read_does_not_pass():
    gate = EventGate("openai", None, PLACES)
    with pytest.raises(Refused):
        gate.feed(b'data: {"response":{"id":"resp_1"\n\n')


def test_an_event_beyond_the_bound_does_not_pass(monkeypatch):
    monkeypatch.setattr(module, "EVENT_BYTES_MAX", 100)
    gate = EventGate("openai", None, PLACES)
    assert gate.feed(b"data: " + b"x" * 50) == b""
    with pytest.raises(Refused):
        gate.feed(b"x" * 50)


def test_a_body_passes_at_its_end_and_tells_its_ids():
    body = json.dumps({"id": "resp_1", "output": [{"id": "msg_1"}, {"id": "msg_2"}, {"no": 1}]}).encode()
    gate = BodyGate("openai", (HandsOut("response", "id"), HandsOut("item", "output.id")))
    assert [gate.feed(piece) for piece in pieces(body, [10, 20])] == [b"", b"", b""]
    assert gate.take_ids() == []
    assert gate.end() == body
    assert gate.take_ids() == [response("resp_1"), item("msg_1"), item("msg_2")]
    assert gate.end() == b""


@pytest.mark.parametrize("body", [b"{", b'{"id":"resp_1"', b"<html>", b"\xff"])
def test_a_body_that_cannot_be_read_does_not_pass(body):
    gate = BodyGate("openai", PLACES)
    assert gate.feed(body) == b""
    with pytest.raises(Refused):
        gate.end()


def test_a_body_beyond_the_bound_does_not_pass(monkeypatch):
    monkeypatch.setattr(module, "BODY_BYTES_MAX", 10)
    gate = BodyGate("openai", PLACES)
    assert gate.feed(b"x" * 10) == b""
    with pytest.raises(Refused):
        gate.feed(b"x")


@pytest.mark.parametrize("value", [None, 7, "", "x" * 513, ["a"], {"id": "a"}])
def test_what_is_no_id_has_no_owner(value):
    gate = BodyGate("openai", (HandsOut("response", "id"),))
    gate.feed(json.dumps({"id": value}).encode())
    gate.end()
    assert gate.take_ids() == []
