"""Splits, framing and gates: the pieces of a script."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.script import AtRandom, Cutter, Gate, chunk, head


@pytest.mark.parametrize(
    ("split", "data", "pieces"),
    [
        (3, b"abcdefgh", [b"abc", b"def", b"gh"]),
        (100, b"abc", [b"abc"]),
        ([1, 4], b"abcdef", [b"a", b"bcd", b"ef"]),
        ([4, 1], b"abcdef", [b"a", b"bcd", b"ef"]),
        ([0, 6], b"abcdef", [b"abcdef"]),
        ([], b"abc", [b"abc"]),
    ],
)
def test_a_split_says_where_bytes_are_cut(split, data, pieces):
    assert Cutter(split).cut(data) == pieces


def test_cuts_are_counted_over_the_whole_run():
    cutter = Cutter(4)
    assert [cutter.cut(data) for data in (b"abc", b"de", b"fghij")] == [
        [b"abc"],
        [b"d", b"e"],
        [b"fgh", b"ij"],
    ]


@given(
    st.lists(st.binary(max_size=60), max_size=8),
    st.one_of(
        st.integers(1, 20),
        st.lists(st.integers(0, 300), max_size=12),
        st.builds(AtRandom, st.integers(0, 9), st.integers(1, 30)),
    ),
)
def test_no_split_loses_or_invents_a_byte(run, split):
    cutter = Cutter(split)
    pieces = [piece for data in run for piece in cutter.cut(data)]
    assert b"".join(pieces) == b"".join(run)
    assert all(pieces)


def test_a_random_split_is_the_same_for_the_same_seed():
    data = random.Random(1).randbytes(5000)
    assert Cutter(AtRandom(7)).cut(data) == Cutter(AtRandom(7)).cut(data) != Cutter(AtRandom(8)).cut(data)


def test_a_split_of_zero_bytes_is_refused():
    with pytest.raises(ValueError, match="expected 1 or more"):
        Cutter(0)


def test_a_chunk_carries_its_length_in_hex_and_no_data_is_no_chunk():
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert chunk(b"") == b""


def test_a_status_of_the_vendors_own_has_a_head():
    assert head(529, [("a", "b")]).startswith(b"HTTP/1.1 529 Unknown\r\na: b\r\n")


async def test_a_gate_tells_who_reached_it_and_opens_from_another_thread():
    gate = Gate()
    waiting = asyncio.gather(gate.wait())
    await gate.reached()
    assert not waiting.done()
    await asyncio.to_thread(gate.open)
    await waiting
    await gate.wait()  # open for those who come later


async def test_waiting_for_a_gate_that_nobody_reaches_fails():
    with pytest.raises(TimeoutError):
        await Gate().reached(timeout_s=0.01)
