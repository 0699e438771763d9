"""The names of what is counted, and the token columns that count them."""

import pytest

from metering import usage
from metering.prices import PricedLine
from metering.usage import (
    BROWSER_SECONDS,
    CACHE_AUDIO_READ,
    CACHE_READ,
    CACHE_WRITE_5M,
    CACHE_WRITE_12H,
    CACHE_WRITE_30M,
    INPUT,
    INPUT_AUDIO,
    INPUT_IMAGE,
    MESSAGES,
    OUTPUT,
    OUTPUT_AUDIO,
    PROMPT_UNITS,
    PROXY_BYTES,
    STORAGE_SEARCHES,
    WEB_SEARCHES,
    Usage,
    UsageLine,
    token_counts,
)

NAMES = [value for name, value in vars(usage).items() if name.isupper() and isinstance(value, str)]
COLUMN_OF_PREFIX = {"input_": 0, "cache_": 1, "cache_write_": 2, "output_": 3}


@pytest.mark.parametrize("unit", [name for name in NAMES if name.endswith("_tokens")])
def test_every_token_unit_is_counted_in_the_column_its_name_says(unit: str) -> None:
    counts = token_counts([UsageLine("m", {unit: 7})])
    (prefix,) = sorted((p for p in COLUMN_OF_PREFIX if unit.startswith(p)), key=len)[-1:]
    assert counts == tuple(7 if column == COLUMN_OF_PREFIX[prefix] else 0 for column in range(4))
    assert (unit in PROMPT_UNITS) == (not unit.startswith("output_"))


def test_columns_add_up_over_units_and_lines() -> None:
    first = {INPUT: 1, INPUT_AUDIO: 2, INPUT_IMAGE: 4, CACHE_READ: 8, CACHE_AUDIO_READ: 16, OUTPUT: 32}
    second = {CACHE_WRITE_5M: 1, CACHE_WRITE_30M: 2, CACHE_WRITE_12H: 4, OUTPUT: 8, OUTPUT_AUDIO: 16}
    lines = [PricedLine("m", counts, {}, {}) for counts in (first, second)]
    assert token_counts(lines) == (7, 24, 7, 56)


def test_what_is_no_token_is_in_no_column() -> None:
    assert token_counts([UsageLine("m", {WEB_SEARCHES: 1, STORAGE_SEARCHES: 1, "smells": 1})]) == (0, 0, 0, 0)


def test_time_is_cut_with_all_that_goes_on_beside_it() -> None:
    usage = Usage(
        (UsageLine("session", {BROWSER_SECONDS: 300, PROXY_BYTES: 1_000}), UsageLine("email", {MESSAGES: 1})),
        is_exact=False,
    )
    assert usage.seconds == 300
    cut = usage.with_time_at_most(100)
    assert [dict(line.counts) for line in cut.lines] == [
        {BROWSER_SECONDS: 100, PROXY_BYTES: 334},
        {MESSAGES: 1},
    ]
    assert not cut.is_exact
    assert usage.with_time_at_most(300) == usage
    assert dict(usage.with_time_at_most(0).lines[0].counts) == {BROWSER_SECONDS: 0, PROXY_BYTES: 0}
