"""A stream's slices: counted under any cutting, asked for ahead, waited for at the wall, never beyond the ceiling."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.errors import Reason, Refused
from metering.sse import EVENT_BYTES_MAX
from metering.store.writer import store_unavailable
from proxy.slices import ATTEMPTS_MAX, CALL_TOKENS, Slices
from proxy.surface import Slicing

SLICING = Slicing(
    re.compile(rb'"text":"((?:[^"\\]+|\\.)*)'), re.compile(rb'"call"'), stream_bytes_per_token=1_000
)
SPENT = Refused(Reason.BUDGET_EXHAUSTED, "Monthly usage limit reached.")


def event(text: str, more: str = "") -> bytes:
    return f'data: {{"type":"delta","text":"{text}"{more}}}\n\n'.encode()


class Grants:
    """Says yes to slices until `until_tokens`; `troubles` come before the first answer."""

    def __init__(self, until_tokens: int = 10**9, troubles: int = 0) -> None:
        self.until_tokens = until_tokens
        self.troubles = troubles
        self.asked: list[tuple[int, int]] = []

    async def __call__(self, from_tokens: int, until_tokens: int) -> Refused | None:
        self.asked.append((from_tokens, until_tokens))
        if self.troubles:
            self.troubles -= 1
            raise store_unavailable("is locked")
        return None if until_tokens <= self.until_tokens else SPENT


def slices(grants: Grants, *, ceiling: int = 10_000) -> Slices:
    """Slices of 100 tokens of 2 bytes."""
    return Slices(SLICING, slice_tokens=100, ceiling_tokens=ceiling, bytes_per_token=2, extend=grants)


async def shown(one: Slices, pieces: list[bytes]) -> Refused | None:
    for piece in pieces:
        if not one.observe(piece) and (refused := await one.wait()) is not None:
            return refused
    return None


async def test_within_three_quarters_of_the_first_slice_nothing_is_asked_for() -> None:
    grants = Grants()
    assert slices(grants).observe(event("x" * 150))
    assert grants.asked == []


async def test_the_next_slice_is_asked_for_ahead_and_does_not_stop_what_is_granted() -> None:
    grants = Grants()
    one = slices(grants)
    assert one.observe(event("x" * 152))
    assert grants.asked == []  # its task has not had a turn: nothing waited
    assert await one.wait() is None
    assert grants.asked == [(76, 200)]
    assert one.observe(event("x" * 100))
    assert await one.wait() is None
    assert grants.asked == [(76, 200)]


async def test_what_shows_more_than_is_granted_waits_and_one_grant_covers_it() -> None:
    grants = Grants()
    one = slices(grants)
    assert not one.observe(event("x" * 2_000))
    assert await one.wait() is None
    assert grants.asked == [(1_000, 1_100)]


async def test_a_text_counts_as_soon_as_its_line_ends() -> None:
    one = slices(Grants())
    whole = event("x" * 2_000)
    assert one.observe(whole[:-2])
    assert not one.observe(b"\n")
    assert await one.wait() is None


async def test_what_was_refused_ahead_is_asked_for_once_more_at_the_wall() -> None:
    grants = Grants(until_tokens=150)
    one = slices(grants)
    assert one.observe(event("x" * 180))
    assert await one.wait() is None  # within the grant still
    assert one.observe(event("x" * 10))
    assert grants.asked == [(90, 200)]
    grants.until_tokens = 10_000  # others have given back what they held
    assert not one.observe(event("x" * 40))
    assert await one.wait() is None
    assert grants.asked == [(90, 200), (115, 140)], "no more than is needed, and a little"


async def test_the_refusal_at_the_wall_stands() -> None:
    grants = Grants(until_tokens=150)
    one = slices(grants)
    one.observe(event("x" * 180))
    await one.wait()
    assert not one.observe(event("x" * 80))
    assert await one.wait() is SPENT


async def test_no_slice_goes_beyond_the_ceiling_and_then_nothing_is_counted_against_it() -> None:
    grants = Grants()
    one = slices(grants, ceiling=130)
    assert not one.observe(event("x" * 2_000))
    assert await one.wait() is None
    assert grants.asked == [(1_000, 130)]
    assert one.observe(event("x" * 9_000))


@pytest.mark.parametrize("troubles", range(ATTEMPTS_MAX))
async def test_a_store_in_trouble_is_asked_again(troubles: int) -> None:
    grants = Grants(troubles=troubles)
    one = slices(grants)
    assert not one.observe(event("x" * 300))
    assert await one.wait() is None
    assert len(grants.asked) == troubles + 1


async def test_a_store_that_stays_in_trouble_ends_the_stream() -> None:
    one = slices(Grants(troubles=10 * ATTEMPTS_MAX))
    one.observe(event("x" * 300))
    refused = await one.wait()
    assert refused is not None
    assert refused.reason is Reason.STORE_UNAVAILABLE
    assert "cut short" in refused.message


async def test_calls_of_tools_count_though_they_show_nothing() -> None:
    one = slices(Grants(until_tokens=100 + CALL_TOKENS))
    call = b'data: {"call"}\n\n'
    assert await shown(one, [call, call]) is None
    assert await shown(one, [call, call]) is SPENT


async def test_a_stream_in_which_nothing_is_found_counts_by_its_length() -> None:
    one = slices(Grants(until_tokens=100))
    assert await shown(one, [b"data: {}\n\n" * 1_000] * 8) is None
    assert await shown(one, [b"data: {}\n\n" * 1_000] * 8) is SPENT


TEXTS = st.lists(st.text(alphabet='ab\\n"é{}:', max_size=40).map(lambda text: text.replace("\\", "\\\\").replace('"', '\\"')), max_size=40)  # fmt: skip


@given(texts=TEXTS, data=st.data())
async def test_any_cutting_counts_the_same_at_the_end_of_a_line(
    texts: list[str], data: st.DataObject
) -> None:
    stream = b"".join(event(text, ',"logprobs":null') for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=30)))
    pieces = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    one, whole = slices(Grants()), slices(Grants())
    await shown(one, pieces)
    whole.observe(stream)
    assert one._shown_bytes == whole._shown_bytes == sum(len(text.encode()) for text in texts)


async def test_a_line_without_an_end_counts_as_far_as_it_has_come() -> None:
    one = slices(Grants(until_tokens=50), ceiling=10**9)
    pieces = [b'data: {"text":"', *[b"x" * (EVENT_BYTES_MAX // 4)] * 4]
    assert await shown(one, pieces) is SPENT
