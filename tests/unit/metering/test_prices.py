"""The price table: expected costs are worked out by hand from list prices, in USD per million tokens."""

import json
import tempfile
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.prices import (
    DEFAULT_CONTEXT_TOKENS,
    DEFAULT_MAX_OUTPUT_TOKENS,
    GENERAL_UNITS,
    MODEL_NAME_CHARS_MAX,
    RESOLUTIONS_MAX,
    PricedLine,
    PriceFileError,
    PriceTable,
    is_prompt_unit,
    recompute,
)
from metering.usage import (
    CACHE_AUDIO_READ,
    CACHE_IMAGE_READ,
    CACHE_READ,
    CACHE_WRITE_1H,
    CACHE_WRITE_5M,
    CACHE_WRITE_12H,
    CACHE_WRITE_30M,
    CALL_SECONDS,
    INPUT,
    INPUT_AUDIO,
    INPUT_IMAGE,
    INPUT_VIDEO,
    MAPS_SEARCHES,
    NOTHING,
    OUTPUT,
    OUTPUT_AUDIO,
    OUTPUT_IMAGE,
    PROMPT_UNITS,
    STORAGE_SEARCHES,
    WEB_SEARCHES,
    WEB_SEARCHES_PREVIEW,
    Usage,
    UsageLine,
)
from tests.fixtures_llm import each_recorded_price


def ms(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 1000


AT_MS = ms("2026-11-20T12:00:00")
TABLE = PriceTable.load()


def usage(model: str, counts: dict[str, int], **modifiers: str) -> Usage:
    return Usage((UsageLine(model, counts, modifiers),))


def cost(what: Usage, at_ms: int = AT_MS, provider: str = "anthropic") -> int:
    priced = TABLE.price(provider, what, at_ms=at_ms)
    assert priced.flags == ()
    return priced.cost_nanousd


MILLION = 1_000_000
USD = 1_000_000_000  # nano


# --- what things cost ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "counts", "cost_nanousd"),
    [
        ("claude-haiku-4-5-20251001", {INPUT: 46, OUTPUT: 133}, 711_000),
        ("claude-sonnet-4-20250514", {INPUT: 22_397, OUTPUT: 637, WEB_SEARCHES: 2}, 96_746_000),
        ("claude-fable-5", {INPUT: 28, OUTPUT: 106}, 5_580_000),
        (
            "claude-sonnet-4-5-20250929",
            {INPUT: 3, CACHE_READ: 1111, CACHE_WRITE_5M: 418, OUTPUT: 33},
            2_404_800,
        ),
        ("claude-sonnet-4-6", {INPUT: 1000, CACHE_WRITE_1H: 1000}, 9_000_000),
        ("claude-opus-4-8", {INPUT: 1000, CACHE_READ: 1000, OUTPUT: 1000}, 30_500_000),
        ("claude-sonnet-5", {INPUT: 1000, CACHE_WRITE_5M: 1000, OUTPUT: 1000}, 14_500_000),
        # A cache read is not always a tenth of the input price.
        ("claude-opus-5-5", {CACHE_READ: MILLION}, USD // 5),  # 0.05 x 4
        ("claude-fable-5-2", {CACHE_READ: MILLION}, USD // 5),  # 0.025 x 8
    ],
)
def test_list_prices_of_november_2026(model: str, counts: dict[str, int], cost_nanousd: int) -> None:
    assert cost(usage(model, counts)) == cost_nanousd


@pytest.mark.parametrize(
    ("provider", "model", "counts", "tier", "cost_nanousd"),
    [
        ("openai", "gpt-4o-mini-2024-07-18", {INPUT: 53, OUTPUT: 15}, "default", 16_950),
        ("openai", "gpt-5.6-sol", {INPUT: 8, CACHE_READ: 4012, OUTPUT: 4}, "default", 1_716_800),
        ("openai", "gpt-5-2025-08-07", {INPUT: 53, OUTPUT: 469}, "flex", 2_378_125),
        ("openai", "text-embedding-3-small", {INPUT: 4}, "", 80),
        ("gemini", "gemini-3.6-flash", {INPUT: 11, OUTPUT: 293}, "", 1_107_000),
        ("gemini", "gemini-embedding-2", {INPUT: 7}, "", 1_400),
    ],
)
def test_list_prices_of_the_other_vendors(
    provider: str, model: str, counts: dict[str, int], tier: str, cost_nanousd: int
) -> None:
    assert cost(usage(model, counts, service_tier=tier), provider=provider) == cost_nanousd


# --- OpenAI and Gemini --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "counts", "modifiers", "cost_nanousd"),
    [
        # OpenAI: $4 in, $20 out; a twelve-hour write 2.5 x in, a half-hour one 1.25 x in.
        ("openai", "gpt-5.6-sol", {CACHE_WRITE_12H: 1000, CACHE_WRITE_30M: 1000}, {}, 15_000_000),
        ("openai", "gpt-5.6-sol", {CACHE_WRITE_12H: 1000}, {"service_tier": "flex"}, 5_000_000),
        ("openai", "gpt-5.6-sol", {INPUT: 1000, OUTPUT: 1000}, {"region": "eu"}, 26_400_000),
        ("openai", "gpt-5", {INPUT: 1000, OUTPUT: 1000}, {"region": "eu"}, 11_250_000),
        ("openai", "gpt-6-astra", {INPUT: 1000, OUTPUT: 1000}, {"service_tier": "ultrafast"}, 360_000_000),
        ("openai", "gpt-6.1-sol", {INPUT: 1000, OUTPUT: 1000}, {"service_tier": "ultrafast"}, 72_000_000),
        (
            "openai",
            "gpt-6.1-sol",
            {INPUT: 1000, CACHE_READ: 1000, OUTPUT: 1000},
            {"service_tier": "ultrafast", "region": "us"},
            79_860_000,
        ),
        (
            "openai",
            "gpt-5.4",
            {INPUT: 1000, CACHE_READ: 1000, OUTPUT: 1000},
            {"service_tier": "fast"},
            35_500_000,
        ),
        ("openai", "gpt-5.5", {INPUT: 1000, OUTPUT: 1000}, {"service_tier": "priority"}, 87_500_000),
        # The whole request is dearer above 272,000 prompt tokens: twice in, 1.5 times out, in every tier.
        ("openai", "gpt-5.4", {INPUT: 272_000, OUTPUT: 10}, {}, 680_150_000),
        ("openai", "gpt-5.4", {INPUT: 272_001, OUTPUT: 10}, {}, 1_360_230_000),
        ("openai", "gpt-5.4", {INPUT: 272_001, OUTPUT: 10}, {"service_tier": "flex"}, 680_115_000),
        ("openai", "gpt-5.4", {INPUT: 272_001, OUTPUT: 10}, {"service_tier": "priority"}, 2_720_460_000),
        (
            "openai",
            "gpt-6.1-sol",
            {INPUT: 200_000, CACHE_READ: 70_000, CACHE_WRITE_12H: 2_001, OUTPUT: 10},
            {"service_tier": "priority", "region": "jp"},
            (200_000 * 4_000 + 70_000 * 200 + 2_001 * 10_000 + 10 * 15_000) * 22 // 10,
        ),
        # Tools by the call, at the same fee in every tier.
        ("openai", "gpt-5", {WEB_SEARCHES: 3, STORAGE_SEARCHES: 2}, {"service_tier": "flex"}, 35_000_000),
        ("openai", "gpt-4o", {WEB_SEARCHES_PREVIEW: 1}, {}, 25_000_000),
        ("openai", "o3", {WEB_SEARCHES_PREVIEW: 1}, {}, 10_000_000),
        ("openai", "gpt-4o-search-preview", {WEB_SEARCHES: 1}, {}, 25_000_000),
        ("openai", "gpt-4o-mini-search-preview-2025-03-11", {WEB_SEARCHES_PREVIEW: 1}, {}, 25_000_000),
        ("openai", "gpt-5-search-api-2025-10-14", {INPUT: 1000, WEB_SEARCHES: 1}, {}, 11_250_000),
        ("openai", "gpt-3.5-turbo-instruct:20230824-v2", {INPUT: 1000, OUTPUT: 1000}, {}, 3_500_000),
        # Sound is never as cheap as text.
        (
            "openai",
            "gpt-4o-audio-preview",
            {INPUT: 1000, INPUT_AUDIO: 1000, OUTPUT_AUDIO: 1000},
            {},
            122_500_000,
        ),
        # Gemini: flex at half, priority at 1.8 times, also above 200,000 prompt tokens.
        ("gemini", "gemini-2.5-pro", {INPUT: 1000, OUTPUT: 1000}, {"service_tier": "flex"}, 5_625_000),
        ("gemini", "gemini-2.5-pro", {INPUT: 1000, OUTPUT: 1000}, {"service_tier": "priority"}, 20_250_000),
        (
            "gemini",
            "gemini-3.1-pro-preview",
            {INPUT: 100_000, CACHE_READ: 100_001, OUTPUT: 10},
            {"service_tier": "priority"},
            (100_000 * 4_000 + 100_001 * 400 + 10 * 18_000) * 18 // 10,
        ),
        (
            "gemini",
            "gemini-3.1-pro-preview",
            {INPUT: 200_000, OUTPUT: 10},
            {"service_tier": "flex"},
            (200_000 * 2_000 + 10 * 12_000) // 2,
        ),
        (
            "gemini",
            "gemini-2.5-flash",
            {INPUT_AUDIO: 1000, CACHE_AUDIO_READ: 1000},
            {"service_tier": "flex"},
            550_000,
        ),
        (
            "gemini",
            "gemini-3.8-flash",
            {INPUT: 1000, OUTPUT: 1000},
            {"service_tier": "service_tier_flex"},
            2_250_000,
        ),
        # Grounding: by the search on 3.x, by the request on 2.5.
        (
            "gemini",
            "gemini-3.6-flash",
            {WEB_SEARCHES: 1, MAPS_SEARCHES: 1},
            {"service_tier": "priority"},
            28_000_000,
        ),
        ("gemini", "gemini-2.5-flash", {WEB_SEARCHES: 1}, {}, 35_000_000),
        ("gemini", "gemini-2.5-flash", {MAPS_SEARCHES: 1}, {}, 25_000_000),
    ],
)
def test_tiers_regions_and_tools_of_the_other_vendors(
    provider: str, model: str, counts: dict[str, int], modifiers: dict[str, str], cost_nanousd: int
) -> None:
    assert cost(usage(model, counts, **modifiers), provider=provider) == cost_nanousd


@pytest.mark.parametrize(
    ("provider", "value"),
    [
        ("openai", "default"),
        ("openai", "standard"),
        ("openai", "scale"),
        ("gemini", "standard"),
        ("gemini", "unspecified"),
        ("gemini", "service_tier_standard"),
    ],
)
def test_the_standard_tier_has_many_names(provider: str, value: str) -> None:
    model = {"openai": "gpt-5.6-sol", "gemini": "gemini-3.6-flash"}[provider]
    counts = {INPUT: 1000, OUTPUT: 1000}
    assert cost(usage(model, counts, service_tier=value), provider=provider) == cost(
        usage(model, counts), provider=provider
    )


@pytest.mark.parametrize(
    ("provider", "model", "modifiers"),
    [
        ("openai", "gpt-5.6-sol", {"service_tier": "auto"}),  # A wish, no tier.
        ("openai", "gpt-5.6-sol", {"service_tier": "ultrafast"}),  # A preview without a public price.
        ("openai", "gpt-5.6-sol", {"region": "mars"}),
        ("openai", "gpt-5-nano", {"service_tier": "priority"}),
        ("gemini", "gemini-2.5-flash-image", {"service_tier": "priority"}),
        ("gemini", "gemini-3.6-flash", {"service_tier": "ultrafast"}),
    ],
)
def test_a_tier_without_a_price_is_flagged(provider: str, model: str, modifiers: dict[str, str]) -> None:
    ((modifier, value),) = modifiers.items()
    flags = TABLE.unpriced(provider, usage(model, {INPUT: 1}, **modifiers), at_ms=AT_MS)
    assert flags == (f"unpriced_modifier:{modifier}={value}",)


@pytest.mark.parametrize(
    ("provider", "model", "unit", "like"),
    [
        ("openai", "gpt-5.6-sol", INPUT_IMAGE, INPUT),
        ("openai", "gpt-5.6-sol", INPUT_AUDIO, INPUT),
        ("openai", "gpt-5.6-sol", OUTPUT_AUDIO, OUTPUT),
        ("openai", "gpt-5.6-sol", CACHE_AUDIO_READ, CACHE_READ),
        ("openai", "gpt-5.6-sol", CACHE_IMAGE_READ, CACHE_READ),
        ("openai", "gpt-5-pro", CACHE_READ, INPUT),
        ("openai", "gpt-5-pro", CACHE_IMAGE_READ, INPUT),
        ("openai", "gpt-audio", CACHE_AUDIO_READ, INPUT_AUDIO),
        ("gemini", "gemini-3.6-flash", INPUT_VIDEO, INPUT),
        ("gemini", "gemini-3.6-flash", INPUT_AUDIO, INPUT),
        ("gemini", "gemini-2.5-flash", INPUT_IMAGE, INPUT),
        ("gemini", "gemini-2.5-flash", CACHE_IMAGE_READ, CACHE_READ),
        ("gemini", "gemini-2.5-flash", OUTPUT_IMAGE, OUTPUT),
        ("gemini", "gemini-2.0-flash-lite", CACHE_READ, INPUT),
    ],
)
def test_what_a_model_does_not_price_apart_costs_what_its_list_says_for_all(
    provider: str, model: str, unit: str, like: str
) -> None:
    assert cost(usage(model, {unit: 1_003}), provider=provider) == cost(
        usage(model, {like: 1_003}), provider=provider
    )


def test_a_line_that_holds_for_others_is_multiplied_and_has_tiers_as_well() -> None:
    long_prompt = {INPUT_IMAGE: 150_000, CACHE_IMAGE_READ: 50_001, OUTPUT_IMAGE: 10}
    charged = cost(usage("gemini-2.5-pro", long_prompt, service_tier="flex"), provider="gemini")
    assert charged == (150_000 * 2_500 + 50_001 * 250 + 10 * 15_000) // 2


@pytest.mark.parametrize("provider", ["anthropic", "openai", "gemini"])
@pytest.mark.parametrize("unit", [*GENERAL_UNITS, INPUT, OUTPUT])
def test_what_a_line_for_others_charges_is_no_dearer_than_the_dearest_rate(provider: str, unit: str) -> None:
    unknown = TABLE.price(provider, usage("unknown", {unit: 1_000}), at_ms=AT_MS).cost_nanousd
    for info in TABLE.models(provider):
        priced = TABLE.price(provider, usage(info.id, {unit: 1_000}), at_ms=AT_MS)
        assert priced.flags or priced.cost_nanousd <= unknown, info.id


@pytest.mark.parametrize(
    ("provider", "model", "unit", "usd_per_million"),
    [
        ("gemini", "gemini-2.5-flash", INPUT_AUDIO, "1.00"),
        ("gemini", "gemini-2.5-flash", CACHE_AUDIO_READ, "0.10"),
        ("gemini", "gemini-2.5-flash-image", OUTPUT_IMAGE, "30"),
        ("openai", "gpt-audio", INPUT_AUDIO, "32"),
        ("openai", "gpt-audio", OUTPUT_AUDIO, "64"),
    ],
)
def test_what_a_model_prices_apart_costs_its_own_price(
    provider: str, model: str, unit: str, usd_per_million: str
) -> None:
    assert cost(usage(model, {unit: MILLION}), provider=provider) == Decimal(usd_per_million) * USD


@pytest.mark.parametrize(
    ("provider", "model", "unit"),
    [
        ("openai", "gpt-5", CACHE_WRITE_30M),
        ("openai", "gpt-5", CACHE_WRITE_12H),
        ("openai", "text-embedding-3-small", OUTPUT),
        ("openai", "text-embedding-3-small", OUTPUT_AUDIO),
        ("openai", "gpt-5", MAPS_SEARCHES),
        ("gemini", "gemini-3.8-flash-tts", WEB_SEARCHES),
    ],
)
def test_a_counter_that_no_line_holds_for_stays_flagged(provider: str, model: str, unit: str) -> None:
    assert TABLE.unpriced(provider, usage(model, {unit: 1}), at_ms=AT_MS) == (f"unpriced_unit:{unit}",)


@pytest.mark.parametrize(
    ("provider", "model", "max_output_tokens"),
    [
        ("openai", "gpt-5", 128_000),
        ("openai", "gpt-6.1-sol", 128_000),
        ("openai", "gpt-5-pro", 272_000),
        ("openai", "o3", 100_000),
        ("openai", "o4-mini", 100_000),
        ("openai", "gpt-4.1-mini", 32_768),
        ("openai", "gpt-4o-mini-2024-07-18", 16_384),
        ("openai", "gpt-3.5-turbo", 4_096),
        ("openai", "text-embedding-3-large", 0),
        ("gemini", "gemini-2.5-pro", 65_536),
        ("gemini", "gemini-3.8-flash", 65_536),
        ("gemini", "gemini-4-argon", 1_048_576),
        ("gemini", "gemini-embedding-2", 0),
    ],
)
def test_the_most_that_a_model_writes(provider: str, model: str, max_output_tokens: int) -> None:
    info = TABLE.model(provider, model)
    assert info is not None
    assert (info.max_output_tokens, info.has_own_limit) == (max_output_tokens, True)


RECORDED_UNITS = {"i": INPUT, "o": OUTPUT, "r": CACHE_READ, "w5": CACHE_WRITE_5M, "w1": CACHE_WRITE_1H}
"""How the list of recorded prices calls the units; a half-hour write stands where others have five minutes."""


@each_recorded_price
def test_the_prices_of_recorded_bodies_come_out_of_the_table(name: str, prices: dict[str, str]) -> None:
    model, _, tier = name.partition("/")
    providers = [each for each in TABLE.providers if TABLE.model(each, model) is not None]
    assert len(providers) == 1
    for key, usd in prices.items():
        if key == "o" and not Decimal(usd):  # Writes nothing.
            info = TABLE.model(providers[0], model)
            assert info is not None
            assert info.max_output_tokens == 0
            continue
        unit = CACHE_WRITE_30M if key == "w5" and providers == ["openai"] else RECORDED_UNITS[key]
        charged = cost(usage(model, {unit: 10_000}, service_tier=tier), provider=providers[0])
        assert charged == Decimal(usd) * USD / 100, (name, unit)


# --- any vendor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "what"),
    [
        (
            "anthropic",
            usage("claude-sonnet-4-5", {INPUT: 250_000, OUTPUT: 7, CACHE_READ: 0}, inference_geo="us"),
        ),
        ("anthropic", usage("claude-none", {INPUT: 1, "smells": 3})),
        ("openai", usage("gpt-4o", {INPUT: 3, INPUT_AUDIO: 5, OUTPUT: 11})),
        ("agentmail", Usage((UsageLine("messages", {"messages": 3}), UsageLine("none", {"messages": -1})))),
    ],
)
def test_a_cost_alone_is_that_of_the_breakdown(provider: str, what: Usage) -> None:
    priced = TABLE.price(provider, what, at_ms=AT_MS)
    assert TABLE.cost(provider, what, at_ms=AT_MS) == (priced.cost_nanousd, priced.flags)
    assert TABLE.unpriced(provider, what, at_ms=AT_MS) == priced.flags


def test_nothing_costs_nothing() -> None:
    priced = TABLE.price("anthropic", NOTHING, at_ms=AT_MS)
    assert (priced.cost_nanousd, priced.lines, priced.flags) == (0, (), ())


def test_the_sum_is_rounded_half_up_once() -> None:
    table = table_of(units={"input_tokens": 250, "output_tokens": 249})
    assert table.price("v", usage("m", {INPUT: 2}), at_ms=0).cost_nanousd == 1  # 500 pico-USD
    assert table.price("v", usage("m", {OUTPUT: 2}), at_ms=0).cost_nanousd == 0  # 498
    twice = Usage((UsageLine("m", {INPUT: 1}), UsageLine("m", {INPUT: 1})))
    assert table.price("v", twice, at_ms=0).cost_nanousd == 1  # Each line alone would round to 0.


def test_every_line_is_priced_by_its_own_model() -> None:
    both = Usage((UsageLine("claude-opus-5", {OUTPUT: 10}), UsageLine("claude-haiku-4-5", {OUTPUT: 10})))
    assert cost(both) == 10 * 25_000 + 10 * 5_000


def test_a_prompt_over_the_threshold_reprices_the_whole_request() -> None:
    """Haiku 5.5 (Anthropic pricing, 2026-11): $0.1 and $0.5 up to 100,000 prompt tokens, then five times."""
    at_threshold = {INPUT: 60_000, CACHE_READ: 40_000, OUTPUT: 10}
    over = {**at_threshold, CACHE_READ: 40_001}
    assert cost(usage("claude-haiku-5-5", at_threshold)) == 60_000 * 100 + 40_000 * 10 + 10 * 500
    assert cost(usage("claude-haiku-5-5", over)) == 60_000 * 500 + 40_001 * 50 + 10 * 2_500


@pytest.mark.parametrize("unit", PROMPT_UNITS)
def test_every_prompt_bucket_is_known_as_one(unit: str) -> None:
    assert is_prompt_unit(unit)


@pytest.mark.parametrize("unit", [INPUT, CACHE_READ, CACHE_WRITE_5M, CACHE_WRITE_1H])
def test_every_prompt_bucket_counts_towards_the_threshold(unit: str) -> None:
    below = cost(usage("claude-haiku-5-5", {unit: 100_000}))
    above = cost(usage("claude-haiku-5-5", {unit: 100_001}))
    assert above * 100_000 == below * 5 * 100_001


def test_output_does_not_count_towards_the_threshold() -> None:
    assert cost(usage("claude-haiku-5-5", {INPUT: 1, OUTPUT: 200_000})) == 100 + 200_000 * 500


def test_a_price_changes_at_midnight_utc_of_its_date() -> None:
    """Anthropic dropped the long-context surcharge of Opus 4.6 on 2026-03-13."""
    long_prompt = usage("claude-opus-4-6", {INPUT: 200_001})
    assert cost(long_prompt, ms("2026-03-13") - 1) == 200_001 * 10_000
    assert cost(long_prompt, ms("2026-03-13")) == 200_001 * 5_000
    assert cost(long_prompt, 0) == 200_001 * 10_000


# --- modifiers ----------------------------------------------------------------------------------------

ALL_TOKENS = {INPUT: 1000, CACHE_READ: 1000, CACHE_WRITE_5M: 1000, CACHE_WRITE_1H: 1000, OUTPUT: 1000}


@pytest.mark.parametrize(
    ("modifiers", "numerator", "denominator"),
    [
        ({"speed": "fast"}, 2, 1),
        ({"inference_geo": "us"}, 11, 10),
        ({"service_tier": "batch"}, 1, 2),
        ({"speed": "fast", "inference_geo": "us"}, 22, 10),
        ({"service_tier": "batch", "inference_geo": "us"}, 11, 20),
    ],
)
def test_modifiers_multiply_every_token_price(
    modifiers: dict[str, str], numerator: int, denominator: int
) -> None:
    standard = cost(usage("claude-opus-5", ALL_TOKENS))
    assert cost(usage("claude-opus-5", ALL_TOKENS, **modifiers)) * denominator == standard * numerator


def test_modifiers_leave_the_fee_of_a_search_alone() -> None:
    assert cost(usage("claude-opus-5", {WEB_SEARCHES: 1}, speed="fast", inference_geo="us")) == USD // 100


def test_a_modifier_holds_in_every_tier() -> None:
    counts = {INPUT: 100_001}
    assert cost(usage("claude-haiku-5-5", counts, service_tier="batch")) == 100_001 * 250


@pytest.mark.parametrize(
    "modifiers",
    [
        {"speed": "standard"},
        {"inference_geo": "global"},
        {"inference_geo": "not_available"},
        {"service_tier": "standard"},
        {"service_tier": "default"},
        {"service_tier": "priority"},
        {"speed": None, "inference_geo": ""},
    ],
)
def test_standard_values_change_nothing(modifiers: dict[str, Any]) -> None:
    assert cost(usage("claude-haiku-4-5", ALL_TOKENS, **modifiers)) == cost(
        usage("claude-haiku-4-5", ALL_TOKENS)
    )


def test_a_modifier_has_no_price_before_its_date() -> None:
    """The source verified batch prices on 2026-10-14 and does not say what held before."""
    batch = usage("claude-opus-5", {INPUT: 1}, service_tier="batch")
    flags = TABLE.unpriced("anthropic", batch, at_ms=ms("2026-10-14") - 1)
    assert flags == ("unpriced_modifier:service_tier=batch",)
    assert TABLE.unpriced("anthropic", batch, at_ms=ms("2026-10-14")) == ()


def test_a_modifier_that_is_a_price_list_replaces_only_what_it_names() -> None:
    fast: dict[str, Any] = {
        "modifier": "speed",
        "value": "fast",
        "from": None,
        "units": {INPUT: 7_000},
        "tiers": [],
    }
    geo = {"modifier": "inference_geo", "value": "us", "from": None, "times": [11, 10]}
    table = table_of(units={INPUT: 1_000, OUTPUT: 5_000}, modifiers=[fast, geo])
    prices = table.unit_prices("v", "m", at_ms=0, modifiers={"speed": "fast", "inference_geo": "us"})
    assert prices == {INPUT: 7_700, OUTPUT: 5_500}


def test_a_price_list_with_tiers_of_its_own_keeps_those_of_the_model() -> None:
    tiers = [{"above_prompt_tokens": 10, "units": {INPUT: 2_000, OUTPUT: 6_000}}]
    fast_tiers = [{"above_prompt_tokens": 20, "units": {INPUT: 9_000}}]
    fast = {"modifier": "speed", "value": "fast", "from": None, "units": {INPUT: 7_000}, "tiers": fast_tiers}
    table = table_of(units={INPUT: 1_000, OUTPUT: 5_000}, tiers=tiers, modifiers=[fast])

    def fast_at(prompt_tokens: int) -> Any:
        return table.unit_prices("v", "m", at_ms=0, prompt_tokens=prompt_tokens, modifiers={"speed": "fast"})

    assert fast_at(10) == {INPUT: 7_000, OUTPUT: 5_000}
    assert fast_at(11) == {INPUT: 7_000, OUTPUT: 6_000}
    assert fast_at(21) == {INPUT: 9_000, OUTPUT: 6_000}


def test_two_price_lists_at_once_have_no_price() -> None:
    lists: list[dict[str, Any]] = [
        {"modifier": modifier, "value": "on", "from": None, "units": {INPUT: price}, "tiers": []}
        for modifier, price in (("a", 7_000), ("b", 8_000))
    ]
    table = table_of(units={INPUT: 1_000}, modifiers=lists)
    priced = table.price("v", usage("m", {INPUT: 1}, a="on", b="on"), at_ms=0)
    assert priced.flags == ("unpriced_modifier:a=on+b=on",)
    assert priced.cost_nanousd == 8


def test_a_multiplied_price_is_rounded_up_to_a_whole_picousd() -> None:
    third = {"modifier": "speed", "value": "slow", "from": None, "times": [1, 3]}
    table = table_of(units={INPUT: 1_000}, modifiers=[third])
    assert table.unit_prices("v", "m", at_ms=0, modifiers={"speed": "slow"}) == {INPUT: 334}


# --- what has no price --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "claude-opus-4-8-fast",
        "claude-opus-5-9",
        "claude-mythos-5",
        "claude-haiku-4-5@20251001",
        "anthropic/claude-opus-5",
        "Claude-Opus-5",
        "claude-haiku-4-5-20251001\n",
        "claude-fable-5-20260101\n",
        "gpt-5",
        "",
        "claude-opus-5" + "-" * MODEL_NAME_CHARS_MAX,
    ],
)
def test_a_name_that_only_resembles_a_model_is_unknown(name: str) -> None:
    assert TABLE.model("anthropic", name) is None
    assert TABLE.unpriced("anthropic", usage(name, {INPUT: 1}), at_ms=AT_MS) != ()


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("claude-opus-4-8", "claude-opus-4-8"),
        ("claude-opus-4-1-20250805", "claude-opus-4-1"),
        ("claude-opus-4-20250514", "claude-opus-4-0"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4-0"),
        ("claude-sonnet-4-0", "claude-sonnet-4-0"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku-latest"),
        ("claude-3-5-sonnet-20241022", "claude-3-5-sonnet"),
        ("claude-3-opus-20240229", "claude-3-opus-latest"),
        ("claude-fable-5-1-20260901", "claude-fable-5-1"),
        ("claude-2.1", "claude-2"),
    ],
)
def test_ids_dates_and_aliases_of_the_vendor_are_known(name: str, model: str) -> None:
    info = TABLE.model("anthropic", name)
    assert info is not None
    assert info.id == model


def test_an_unknown_model_is_booked_at_the_dearest_rate_and_flagged() -> None:
    """Fable 5.2, fast, in the US: $8 and $40 x 2 x 1.1. Cache reads: $8, like any input of Claude 2."""
    priced = TABLE.price("anthropic", usage("claude-x", {INPUT: 10, CACHE_READ: 10, OUTPUT: 10}), at_ms=AT_MS)
    assert priced.flags == ("unpriced_model:claude-x",)
    assert priced.cost_nanousd == 10 * 17_600 + 10 * 8_000 + 10 * 88_000


@pytest.mark.parametrize("unit", [INPUT, CACHE_READ, CACHE_WRITE_5M, CACHE_WRITE_1H, OUTPUT, WEB_SEARCHES])
def test_nothing_priced_is_dearer_than_the_dearest_rate(unit: str) -> None:
    unknown = TABLE.price("anthropic", usage("claude-x", {unit: 1}), at_ms=AT_MS).lines[0].unit_prices[unit]
    for info in TABLE.models("anthropic"):
        for modifiers in ({}, {"speed": "fast", "inference_geo": "us"}, {"inference_geo": "us"}):
            for at_ms in (0, AT_MS):
                prices = TABLE.unit_prices(
                    "anthropic", info.id, at_ms=at_ms, prompt_tokens=MILLION, modifiers=modifiers
                )
                assert (prices or {}).get(unit, 0) <= unknown


@pytest.mark.parametrize("modifiers", [{"speed": "ludicrous"}, {"inference_geo": "mars"}, {"mood": "good"}])
def test_an_unknown_modifier_is_booked_at_the_dearest_rate_and_flagged(modifiers: dict[str, str]) -> None:
    ((modifier, value),) = modifiers.items()
    priced = TABLE.price("anthropic", usage("claude-haiku-4-5", {OUTPUT: 1}, **modifiers), at_ms=AT_MS)
    assert priced.flags == (f"unpriced_modifier:{modifier}={value}",)
    assert priced.cost_nanousd == 88_000


def test_a_modifier_that_the_model_does_not_have_is_flagged() -> None:
    fast_haiku = usage("claude-haiku-4-5", {OUTPUT: 1}, speed="fast")
    assert TABLE.unpriced("anthropic", fast_haiku, at_ms=AT_MS) == ("unpriced_modifier:speed=fast",)


def test_a_unit_that_the_model_does_not_have_costs_the_vendors_dearest() -> None:
    priced = TABLE.price("anthropic", usage("claude-3-haiku", {WEB_SEARCHES: 1, INPUT: 1}), at_ms=AT_MS)
    assert priced.flags == ("unpriced_unit:web_searches",)
    assert priced.cost_nanousd == USD // 100 + 250


@pytest.mark.parametrize(
    ("unit", "as_dear_as"), [("smell_tokens", "output_tokens"), ("divinations", "web_searches")]
)
def test_a_unit_that_nobody_prices_costs_the_dearest_of_its_kind(unit: str, as_dear_as: str) -> None:
    table = table_of(units={INPUT: 1, OUTPUT: 5_000, WEB_SEARCHES: 10_000_000})
    prices = table.price("v", usage("m", {unit: 1, as_dear_as: 1}), at_ms=0).lines[0].unit_prices
    assert prices[unit] == prices[as_dear_as]


def test_a_vendor_without_prices_is_booked_at_the_dearest_rate_of_all() -> None:
    priced = TABLE.price("acme", usage("claude-opus-5", {OUTPUT: 1}), at_ms=AT_MS)
    assert priced.flags == ("unpriced_model:claude-opus-5",)
    assert priced.cost_nanousd >= 88_000
    assert TABLE.models("acme") == ()
    assert TABLE.model("acme", "claude-opus-5") is None


def test_counts_of_zero_raise_no_flag() -> None:
    assert TABLE.unpriced("anthropic", usage("claude-3-haiku", {WEB_SEARCHES: 0}), at_ms=AT_MS) == ()


def test_each_flag_is_raised_once() -> None:
    line = UsageLine("claude-x", {INPUT: 1})
    assert TABLE.unpriced("anthropic", Usage((line, line)), at_ms=AT_MS) == ("unpriced_model:claude-x",)


def test_names_from_outside_cannot_grow_the_cache_without_bound() -> None:
    table = table_of(units={INPUT: 1_000})
    for number in range(RESOLUTIONS_MAX + 10):
        table.price("v", usage(f"unknown-{number}", {INPUT: 1}), at_ms=0)
    assert len(table._resolutions) <= RESOLUTIONS_MAX
    assert table.price("v", usage("m", {INPUT: 1}), at_ms=0).cost_nanousd == 1


# --- recomputing --------------------------------------------------------------------------------------

MODELS = [info.id for info in TABLE.models("anthropic")]
SHORT = st.dictionaries(
    st.sampled_from([INPUT, CACHE_READ, CACHE_WRITE_5M, CACHE_WRITE_1H, OUTPUT, WEB_SEARCHES, "odd_tokens"]),
    st.integers(0, 10_000),
)
LONG = st.dictionaries(
    st.sampled_from([INPUT, CACHE_READ, CACHE_WRITE_5M, CACHE_WRITE_1H, OUTPUT]), st.integers(0, MILLION)
)
MODIFIERS = st.fixed_dictionaries(
    {},
    optional={
        "speed": st.sampled_from(["fast", "standard", "odd"]),
        "inference_geo": st.sampled_from(["us", "global"]),
        "service_tier": st.sampled_from(["batch", "priority"]),
    },
)
NAMES = st.sampled_from([*MODELS, "claude-unknown"])
LINES = st.builds(UsageLine, model=NAMES, counts=LONG | SHORT, modifiers=MODIFIERS)
INSTANTS = st.integers(ms("2024-01-01"), ms("2028-01-01"))


@given(st.lists(LINES, max_size=4), INSTANTS)
def test_any_charge_can_be_recomputed_from_its_lines(lines: list[UsageLine], at_ms: int) -> None:
    priced = TABLE.price("anthropic", Usage(tuple(lines)), at_ms=at_ms)
    assert priced.cost_nanousd == recompute(priced.lines)
    assert type(priced.cost_nanousd) is int
    for line in priced.lines:
        assert line.counts.keys() == line.unit_prices.keys()
        assert all(type(price) is int for price in line.unit_prices.values())


@given(NAMES, SHORT, SHORT, MODIFIERS, INSTANTS)
def test_costs_add_up_where_no_tier_is_crossed(
    model: str, one: dict[str, int], other: dict[str, int], modifiers: dict[str, str], at_ms: int
) -> None:
    both = {unit: one.get(unit, 0) + other.get(unit, 0) for unit in {**one, **other}}
    apart, together, first, second = (
        TABLE.price(
            "anthropic", Usage(tuple(UsageLine(model, counts, modifiers) for counts in parts)), at_ms=at_ms
        ).cost_nanousd
        for parts in ((one, other), (both,), (one,), (other,))
    )
    assert apart == together
    assert abs(first + second - together) <= 1  # Rounded twice instead of once.


@given(NAMES, LONG, st.sampled_from([INPUT, CACHE_READ, OUTPUT]), MODIFIERS, INSTANTS)
def test_using_more_never_costs_less(
    model: str, counts: dict[str, int], unit: str, modifiers: dict[str, str], at_ms: int
) -> None:
    more = {**counts, unit: counts.get(unit, 0) + 1}
    costs = [
        TABLE.price("anthropic", usage(model, each, **modifiers), at_ms=at_ms).cost_nanousd
        for each in (counts, more)
    ]
    assert costs[0] <= costs[1]


@pytest.mark.parametrize(
    ("product", "seconds", "millis"),
    [
        ("call", 0, 15),
        ("call", 6, 15),
        ("call", 7, 16),  # 16.33
        ("call", 8, 19),  # 18.67
        ("call", 60, 140),
        ("call", 3_600, 8_400),
        ("byot_call", 0, 0),
        ("byot_call", 1, 2),  # 2.33
        ("byot_call", 2, 5),  # 4.67
    ],
)
def test_what_is_told_in_thousandths_and_has_a_minimum_is_booked_so(
    product: str, seconds: int, millis: int
) -> None:
    priced = TABLE.price("bland", usage(product, {CALL_SECONDS: seconds}), at_ms=AT_MS)
    assert (priced.cost_nanousd, priced.flags) == (millis * USD // 1_000, ())
    assert recompute(priced.lines) == priced.cost_nanousd


def test_half_a_step_is_rounded_up_and_each_line_for_itself() -> None:
    line = PricedLine("m", {CALL_SECONDS: 3}, {}, {CALL_SECONDS: 500_000, "rounded_to": 1_000_000})
    assert recompute((line,)) == 2_000
    assert recompute((line, line)) == 4_000


def test_stored_lines_recompute_without_the_table() -> None:
    line = PricedLine("m", {INPUT: 3, OUTPUT: 2}, {}, {INPUT: 1_000_000, OUTPUT: 5_000_000})
    assert recompute((line,)) == 13_000


# --- what people see ----------------------------------------------------------------------------------


def test_a_model_shows_its_periods_tiers_and_modifiers() -> None:
    rates = TABLE.rates("anthropic", "claude-opus-4-6")
    assert rates is not None
    assert [str(period.starts_on) for period in rates.periods] == ["None", "2026-03-13"]
    assert [tier.above_prompt_tokens for tier in rates.periods[0].tiers] == [0, 200_000]
    assert [(rate.modifier, rate.value, rate.times) for rate in rates.modifiers] == [
        ("service_tier", "batch", (1, 2)),
        ("inference_geo", "us", (11, 10)),
    ]
    assert TABLE.rates("anthropic", "claude-x") is None


def test_unit_prices_are_those_a_usage_is_charged_at() -> None:
    prices = TABLE.unit_prices("anthropic", "claude-haiku-5-5", at_ms=AT_MS, prompt_tokens=100_001)
    assert prices is not None
    assert prices[INPUT] == 500_000
    assert TABLE.unit_prices("anthropic", "claude-x", at_ms=AT_MS) is None
    assert TABLE.unit_prices("anthropic", "claude-opus-5", at_ms=AT_MS, modifiers={"speed": "odd"}) is None


@pytest.mark.parametrize(
    ("model", "context_tokens", "max_output_tokens"),
    [
        ("claude-opus-5-5", 1_000_000, 128_000),
        ("claude-sonnet-4-6", 1_000_000, 128_000),
        ("claude-haiku-4-5", 200_000, 64_000),
        ("claude-opus-4-1", 200_000, 32_000),
        ("claude-3-haiku", 200_000, 4_096),
        ("claude-v1", DEFAULT_CONTEXT_TOKENS, 4_096),
    ],
)
def test_models_tell_their_limits(model: str, context_tokens: int, max_output_tokens: int) -> None:
    info = TABLE.model("anthropic", model)
    assert info is not None
    assert (info.context_tokens, info.max_output_tokens) == (context_tokens, max_output_tokens)
    assert info in TABLE.models("anthropic")


def test_unknown_limits_are_large_ones() -> None:
    assert table_of(units={INPUT: 1}).models("v")[0].max_output_tokens == DEFAULT_MAX_OUTPUT_TOKENS
    small = table_of(units={INPUT: 1}, context_tokens=8_000).models("v")[0]
    assert (small.context_tokens, small.max_output_tokens) == (8_000, 8_000)


# --- files --------------------------------------------------------------------------------------------


def document(*, units: Any, tiers: Any = (), modifiers: Any = (), **model: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "version": "test",
        "providers": {
            "v": {
                "version_suffix": r"-\d{8}",
                "standard_values": {"speed": ["standard"]},
                "models": [
                    {
                        "id": "m",
                        "match": [{"family": "m"}, {"all": [{"regex": "^x"}, {"regex": "y$"}]}],
                        "prices": [{"from": None, "units": units, "tiers": list(tiers)}],
                        "modifiers": list(modifiers),
                        **model,
                    }
                ],
            }
        },
    }


def table_of(**parts: Any) -> PriceTable:
    return loaded(json.dumps(document(**parts)))


def loaded(text: str) -> PriceTable:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prices.json"
        path.write_text(text)
        return PriceTable.load(path)


def test_a_file_replaces_the_packaged_table() -> None:
    table = table_of(units={INPUT: 1_000})
    assert table.version == "test"
    assert table.model("anthropic", "claude-opus-5") is None
    assert table.price("v", usage("m-20260101", {INPUT: 5}), at_ms=0).cost_nanousd == 5


def test_all_parts_of_a_rule_must_match() -> None:
    table = table_of(units={INPUT: 1_000})
    assert table.model("v", "x-and-y") is not None
    assert table.model("v", "x") is None


MODEL = "providers.v.models[0]"


@pytest.mark.parametrize(
    ("path", "value", "key", "expected"),
    [
        (("schema",), 2, "schema", "only shape"),
        (("version",), "", "version", "non-empty string"),
        (("extra",), 1, "extra", "no such key"),
        (("providers",), [], "providers", "an object"),
        (("providers", "v", "models"), {}, "providers.v.models", "a list"),
        (("providers", "v", "models"), [], "providers.v.models", "at least one"),
        (("providers", "v", "version_suffix"), "(", "providers.v.version_suffix", "regular expression"),
        (("providers", "v", "models", 0, "max_output_token"), 5, f"{MODEL}.max_output_token", "no such key"),
        (("providers", "v", "models", 0, "context_tokens"), 0, f"{MODEL}.context_tokens", "at least 1"),
        (
            ("providers", "v", "models", 0, "max_output_tokens"),
            -1,
            f"{MODEL}.max_output_tokens",
            "at least 0",
        ),
        (("providers", "v", "models", 0, "match"), [{}], f"{MODEL}.match[0]", "exactly one"),
        (("providers", "v", "models", 0, "match"), [{"like": "m"}], f"{MODEL}.match[0].like", "no such key"),
        (("providers", "v", "models", 0, "prices"), [], f"{MODEL}.prices", "at least one period"),
        (
            ("providers", "v", "models", 0, "prices", 0, "units", INPUT),
            1.5,
            f"{MODEL}.prices[0].units.input_tokens",
            "an integer",
        ),
        (
            ("providers", "v", "models", 0, "prices", 0, "units", INPUT),
            -1,
            f"{MODEL}.prices[0].units.input_tokens",
            "at least 0",
        ),
        (
            ("providers", "v", "models", 0, "prices", 0, "units", INPUT),
            True,
            f"{MODEL}.prices[0].units.input_tokens",
            "an integer",
        ),
        (
            ("providers", "v", "models", 0, "prices", 0, "units"),
            {},
            f"{MODEL}.prices[0].units",
            "at least one unit",
        ),
        (
            ("providers", "v", "models", 0, "prices", 0, "from"),
            "2026-01-01",
            f"{MODEL}.prices[0].from",
            "null in the first",
        ),
        (
            ("providers", "v", "models", 0, "prices", 0, "from"),
            "soon",
            f"{MODEL}.prices[0].from",
            "YYYY-MM-DD",
        ),
        (
            ("providers", "v", "models", 0, "prices", 0, "tiers"),
            [{"above_prompt_tokens": 0, "units": {INPUT: 1}}],
            f"{MODEL}.prices[0].tiers[0].above_prompt_tokens",
            "at least 1",
        ),
        (
            ("providers", "v", "models", 0, "modifiers"),
            [{"modifier": "speed", "value": "fast", "times": [1, 0]}],
            f"{MODEL}.modifiers[0].times[1]",
            "at least 1",
        ),
        (
            ("providers", "v", "models", 0, "modifiers"),
            [{"modifier": "speed", "value": "fast", "times": [2]}],
            f"{MODEL}.modifiers[0].times",
            "[numerator, denominator]",
        ),
    ],
)
def test_a_malformed_table_names_the_key_and_what_was_expected(
    path: tuple[Any, ...], value: Any, key: str, expected: str
) -> None:
    content: Any = document(units={INPUT: 1})
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(PriceFileError) as caught:
        loaded(json.dumps(content))
    assert caught.value.key == key
    assert expected in caught.value.expected
    assert str(caught.value).startswith(f"price table: {key}: given ")


def test_a_missing_key_is_named() -> None:
    content = document(units={INPUT: 1})
    del content["providers"]["v"]["standard_values"]
    with pytest.raises(PriceFileError, match=r"providers\.v\.standard_values: given None.*missing"):
        loaded(json.dumps(content))


def test_periods_must_ascend() -> None:
    content = document(units={INPUT: 1})
    periods = content["providers"]["v"]["models"][0]["prices"]
    periods += [{"from": day, "units": {INPUT: 1}, "tiers": []} for day in ("2026-02-01", "2026-01-01")]
    with pytest.raises(PriceFileError, match=r"prices\[2\]\.from: given '2026-01-01', expected a date after"):
        loaded(json.dumps(content))


@pytest.mark.parametrize("text", ["", "{", '{"schema": 1,}'])
def test_a_file_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(PriceFileError, match="JSON"):
        loaded(text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PriceFileError, match=r"nowhere\.json.*readable"):
        PriceTable.load(tmp_path / "nowhere.json")
