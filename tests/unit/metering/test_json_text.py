"""JSON as vendors write it: all that the standard allows, in strings that may be stored and written again."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering import json_text
from metering.json_text import json_of

PIECES = [
    b"\\ud83d",
    b"\\uDE00",
    b"\\\\",
    b"\\\\ud83d",
    b'\\"',
    b"\\n",
    b"\\u00e9",
    b"\\ufffd",
    b"a",
    "é".encode(),
    b"\\uD83D\\ude00",
]


@given(st.lists(st.sampled_from(PIECES)))
def test_half_pairs_are_read_as_replacements_and_everything_else_as_it_is(pieces):
    data = b'{"text":"' + b"".join(pieces) + b'","n":1}'
    expected = json.loads(data)["text"].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    found = json_of(data)
    assert found["n"] == 1
    assert found["text"] == expected
    assert json_of(orjson.dumps(found)) == found


def test_a_long_answer_with_half_a_pair_is_not_read_escape_by_escape(monkeypatch):
    """Its event loop would stand still for a second."""
    calls, whole = [], json_text._whole
    monkeypatch.setattr(json_text, "_whole", lambda found: calls.append(found) or whole(found))
    found = json_of(b'"%b\\ud83d%b"' % (b"one\\n" * 10_000, b"\\t" * 10_000))
    assert found == "one\n" * 10_000 + "\ufffd" + "\t" * 10_000
    assert len(calls) == 3


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"a":"\\ud83d"', b'"\\ud83"', b'"\\u"', b"\\ud83d", b'{"a":"\xff\\ud83d"}', b"NaN"]
)
def test_what_is_no_json_is_none(data):
    assert json_of(data) is None
