"""JSON taken apart as it streams by: the same elements in any chunking, whatever their length."""

import json
from itertools import pairwise

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering import json_stream
from metering.json_stream import ELEMENT_BYTES_MAX, KEPT_BYTES_MAX, JsonStream

LONG = "x" * KEPT_BYTES_MAX
NUMBERS = [0.5] * KEPT_BYTES_MAX
NASTY = ['"', "\\", '\\"', "[", "}", "{]", "é\\", '\\\\"', "", "\n", 'a"b\\' * 100, LONG[2:], LONG]


def taken(body: bytes, cuts=()):
    """(elements decoded, offset of the last bracket, elements skipped)."""
    stream = JsonStream()
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    elements, closed = [], -1
    for a, b in pairwise(edges):
        found, at = stream.feed(body[a:b])
        elements += [orjson.loads(element) for element in found]
        closed = a + at if at >= 0 else closed
    assert stream.is_closed == (closed >= 0)
    return elements, closed, stream.elements_skipped


def condensed(value):
    """What is to be expected of a value written by `json.dumps`."""
    if isinstance(value, str):
        return "" if len(json.dumps(value)) > KEPT_BYTES_MAX else value
    if isinstance(value, dict):
        return {key: condensed(inner) for key, inner in value.items()}
    if value == NUMBERS:
        return [0]
    return [condensed(inner) for inner in value] if isinstance(value, list) else value


scalars = st.one_of(st.sampled_from(NASTY), st.integers(-9, 9), st.booleans(), st.none(), st.just(NUMBERS))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["a", '"', "b\\"]), inner, max_size=3)
    ),
    max_leaves=20,
)
objects = st.dictionaries(st.sampled_from(["one", "two"]), values, max_size=2)
cuts = st.lists(st.integers(0, 100_000), max_size=20)


@settings(deadline=None)
@given(st.lists(objects, max_size=4), st.sampled_from([None, 1, 40]), cuts)
def test_a_list_is_given_out_element_by_element_in_any_chunking(given_list, indent, cuts):
    body = json.dumps(given_list, indent=indent).encode()
    elements, closed, skipped = taken(body, cuts)
    assert elements == [condensed(element) for element in given_list]
    assert (closed, skipped) == (len(body) - 1, 0)


@settings(deadline=None)
@given(objects, st.integers(1, 5))
def test_an_object_is_given_out_whole_in_small_pieces(body, step):
    encoded = json.dumps(body).encode() + b"\n"
    elements, closed, _ = taken(encoded, range(step, len(encoded), step))
    assert elements == [condensed(body)]
    assert closed == len(encoded) - 2


@given(st.lists(objects, min_size=1, max_size=3), st.integers(0, 100_000))
def test_what_is_cut_gives_out_its_whole_elements_and_no_end(given_list, cut):
    body = json.dumps(given_list).encode()
    elements, closed, _ = taken(body[: cut % len(body)])
    assert closed == -1
    assert elements == [condensed(element) for element in given_list[: len(elements)]]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (b"1," * KEPT_BYTES_MAX + b"1", [0]),
        (b'"a",' + b"1," * KEPT_BYTES_MAX + b'"b"', ["a", 0, "b"]),
        (b'"a",' + b"1," * KEPT_BYTES_MAX + b"1", ["a", 0]),
        (b"{}," + b" " * 9_000 + b"2," + b" " * 9_000 + b"{}", [{}, 2, {}]),
        (b'{"a":' + b"7" * 999 + b"}", [{"a": 0}]),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 255, 100_000])
def test_a_long_run_becomes_one_number_and_stays_json(run, expected, step):
    body = b'{"values":[' + run + b"]}"
    assert taken(body, range(step, len(body), step))[0] == [{"values": expected}]


def test_an_element_too_long_even_condensed_is_skipped_and_counted_and_memory_stays_bounded():
    many = b'["' + LONG[:100].encode() + b'"],'
    element = b'{"rows":[' + many * (ELEMENT_BYTES_MAX // 50) + b"[]]}"
    stream = JsonStream()
    stream.feed(b"[")
    most = 0
    for at in range(0, len(element), 1 << 16):
        assert stream.feed(element[at : at + (1 << 16)]) == ([], -1)
        most = max(most, sum(map(len, stream._pieces)))
    assert most <= ELEMENT_BYTES_MAX
    assert stream.feed(b',{"small":1}]') == ([b'{"small":1}'], 12)
    assert stream.elements_skipped == 1


def test_a_long_string_in_many_pieces_costs_no_memory():
    stream = JsonStream()
    stream.feed(b'[{"data":"')
    for _ in range(1_000):
        stream.feed(b"A\\u0041" * 100)
    assert stream._string is not None
    assert len(stream._string) <= KEPT_BYTES_MAX + 1
    assert stream.feed(b'","n":1}]') == ([b'{"data":"","n":1}'], 8)


def test_what_stands_for_a_long_string_can_be_chosen():
    stream = JsonStream(long_text=b'"..."')
    elements, _ = stream.feed(b'["", {"short":"","long":"' + LONG.encode() + b'"}]')
    assert elements == [b'{"short":"","long":"..."}']


def test_the_pattern_of_a_token_tries_nothing_twice():
    """A string whose end does not come must not cost its length squared."""
    assert json_stream._TOKEN.match(b'"' + b"\\n" * 200_000) is None
