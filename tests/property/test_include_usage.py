"""Asking a stream for its usage never makes a body that says anything else than it said."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.errors import Refused
from proxy.forbidden import check
from proxy.surface import Inbound
from routes.openai_include_usage import with_usage_asked_for

OPTIONS, WISH = "stream_options", "include_usage"
BLANKS = st.text(" \t\r\n", max_size=3)
NUMBERS = st.sampled_from(
    ["0", "-0", "1.0", "1e2", "1E+2", "-1.5e-3", "9007199254740993", "18446744073709551616", "0.1e1", "1" * 300, "1e-400", "0.30000000000000004"]
)  # fmt: skip
TEXTS = st.text(max_size=6) | st.sampled_from(
    [OPTIONS, WISH, '"', "\\", '{"stream_options":{', "}", "\\u0022", "é\U0001f600", "\u2028"]
)


def inbound(fields: Any, body: bytes) -> Inbound:
    return Inbound("POST", {}, b"", [], body, fields)


@st.composite
def written(draw: st.DrawFn, text: str) -> str:
    """A string as JSON, with some of its characters escaped."""
    pieces = []
    for sign in text:
        if ord(sign) < 0x20 or sign in '"\\' or draw(st.integers(0, 5)) == 0:
            pieces.append("".join(f"\\u{unit:04{draw(st.sampled_from('xX'))}}" for unit in _units(sign)))
        else:
            pieces.append(sign)
    return '"' + "".join(pieces) + '"'


def _units(sign: str) -> list[int]:
    data = sign.encode("utf-16-be")
    return [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]


@st.composite
def values(draw: st.DrawFn, depth: int = 3) -> str:
    kind = draw(st.integers(0, 5 if depth else 3))
    if kind == 0:
        return draw(st.sampled_from(["null", "true", "false"]))
    if kind == 1:
        return draw(NUMBERS)
    if kind in (2, 3):
        return draw(written(draw(TEXTS)))
    if kind == 4:
        return _joined(draw, "[", [draw(values(depth - 1)) for _ in range(draw(st.integers(0, 3)))], "]")
    return draw(objects(depth - 1))


@st.composite
def objects(draw: st.DrawFn, depth: int = 2, members: tuple[tuple[str, str], ...] = ()) -> str:
    """An object of random members, with the given ones (name, value as written) at random places among them."""
    names = draw(st.lists(TEXTS, max_size=3, unique=True))
    given_names = {name for name, _ in members}
    pairs = [(name, draw(values(depth))) for name in names if name not in given_names]
    for member in members:
        pairs.insert(draw(st.integers(0, len(pairs))), member)
    texts = [draw(BLANKS).join((draw(written(name)), ":", value)) for name, value in pairs]
    return _joined(draw, "{", texts, "}")


def _joined(draw: st.DrawFn, opening: str, pieces: list[str], closing: str) -> str:
    between = [draw(BLANKS) + piece + draw(BLANKS) for piece in pieces]
    return opening + (",".join(between) or draw(BLANKS)) + closing


@st.composite
def bodies(draw: st.DrawFn) -> str:
    options = draw(st.sampled_from(["absent", "null", "object"]))
    if options == "absent":
        members: tuple[tuple[str, str], ...] = ()
    elif options == "null":
        members = ((OPTIONS, "null"),)
    else:
        wish = draw(st.sampled_from([None, "null", "false", "true"]))
        inner = () if wish is None else ((WISH, wish),)
        members = ((OPTIONS, draw(objects(1, inner))),)
    text = draw(objects(2, (*members, ("stream", "true"))))
    if options == "absent" and OPTIONS in json.loads(text):
        text = draw(objects(0, (("stream", "true"),))).replace(OPTIONS, "options")
    return draw(BLANKS) + text + draw(BLANKS)


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(text=bodies())
def test_a_body_with_the_wish_reads_the_same_but_for_the_wish_and_is_the_same_but_for_one_place(text):
    body = text.encode()
    fields = orjson.loads(body)
    if not isinstance(fields.get(OPTIONS), dict | None) or not isinstance(
        (fields.get(OPTIONS) or {}).get(WISH), bool | None
    ):
        with pytest.raises(Refused):
            with_usage_asked_for(fields, body)
        return
    check((), inbound(fields, body))
    spliced = with_usage_asked_for(fields, body)
    if spliced is None:
        assert fields[OPTIONS][WISH] is True
        return
    assert read(spliced) == wished(read(body))
    assert orjson.loads(spliced) == wished(orjson.loads(body))
    assert with_usage_asked_for(orjson.loads(spliced), spliced) is None
    check((), inbound(orjson.loads(spliced), spliced))
    assert is_one_edit(body, spliced)


def read(body: bytes) -> Any:
    """By another parser, numbers as they are written, keys as often as they stand."""
    return json.loads(
        body,
        parse_float=lambda text: ("float", text),
        parse_int=lambda text: ("int", text),
        object_pairs_hook=_unique,
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)


def wished(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, OPTIONS: {**(fields.get(OPTIONS) or {}), WISH: True}}


def is_one_edit(body: bytes, spliced: bytes) -> bool:
    """What the longest common beginning and end leave is the wish, in place of nothing, a null or a false."""
    start = next((at for at, (a, b) in enumerate(zip(body, spliced, strict=False)) if a != b), len(body))
    rest = body[start:]
    end = next(
        (at for at, (a, b) in enumerate(zip(rest[::-1], spliced[start:][::-1], strict=False)) if a != b),
        len(rest),
    )
    taken, put = rest[: len(rest) - end], spliced[start : len(spliced) - end]
    return len(taken) <= len(b"false") and len(put) <= len(b'"stream_options":{"include_usage":true},')


KEYS = ("stream_options", "stream\\u005foptions", "\\u0073tream_options")


@pytest.mark.parametrize("second", KEYS)
@pytest.mark.parametrize("first", KEYS)
@pytest.mark.parametrize(
    "between",
    [
        "",
        '"messages":[],',
        '"a":"\\u0022\\u0022\\u0022\\u0022",',
        '"a":"\\\\\\"",',
        '"a":{"stream_options":1},',
    ],
)
def test_options_that_stand_twice_are_refused_however_they_are_written(first, second, between):
    for one, other in (('{"include_usage":true}', "null"), ("null", '{"include_usage":false}'), ("{}", "{}")):
        body = f'{{"{first}":{one},{between}"{second}":{other}}}'.encode()
        with pytest.raises(Refused, match="stands twice"):
            check((), inbound(orjson.loads(body), body))


@pytest.mark.parametrize("second", ["include_usage", "include\\u005fusage"])
@pytest.mark.parametrize("others", ["", '"a":1,', '"a":"\\u0022\\u0022",'])
def test_a_wish_that_stands_twice_is_refused_however_it_is_written(second, others):
    body = f'{{"stream_options":{{"include_usage":true,{others}"{second}":false}}}}'.encode()
    with pytest.raises(Refused, match="stands twice"):
        check((), inbound(orjson.loads(body), body))
