"""The shipped price table is what the pinned package and the override file say."""

import json
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import genai_prices.types as genai
import pytest
from genai_prices.data import providers

from automna_proxy import price_sources
from metering.prices import PriceTable
from metering.usage import (
    CACHE_READ,
    CACHE_WRITE_1H,
    CACHE_WRITE_5M,
    CACHE_WRITE_12H,
    INPUT,
    OUTPUT,
    WEB_SEARCHES,
    UsageLine,
)
from metering.usage import Usage as OurUsage
from scripts import build_prices

TABLE = PriceTable.load()
SOURCES = {provider.id: provider for provider in providers}
RULES = tomllib.loads(build_prices.OVERRIDE.read_text())["providers"]


def test_the_shipped_table_is_up_to_date() -> None:
    assert build_prices.main(["--check"]) == 0


def test_check_fails_on_any_difference_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "prices.json"
    assert build_prices.main(["--check", "--table", str(table)]) == 1
    assert not table.exists()
    table.write_text(build_prices.TABLE.read_text().replace("11", "12", 1))
    assert build_prices.main(["--check", "--table", str(table)]) == 1
    assert "out of date" in capsys.readouterr().err
    assert build_prices.main(["--table", str(table)]) == 0
    assert table.read_text() == build_prices.TABLE.read_text()


def test_the_file_is_canonical_and_holds_no_float() -> None:
    def refuse(text: str) -> Any:
        raise AssertionError(f"a float in the table: {text}")

    text = build_prices.TABLE.read_text()
    assert price_sources.render(json.loads(text, parse_float=refuse)) == text
    assert text.endswith("}\n")


def test_a_rule_that_means_no_model_stops_the_build(tmp_path: Path) -> None:
    override = tmp_path / "override.toml"
    override.write_text(build_prices.OVERRIDE.read_text().replace('"claude-haiku-5-5"', '"claude-gone"'))
    with pytest.raises(ValueError, match="'claude-gone' means no model"):
        build_prices.main(["--override", str(override), "--table", str(tmp_path / "prices.json")])


def test_two_rules_for_one_limit_stop_the_build(tmp_path: Path) -> None:
    override = tmp_path / "override.toml"
    override.write_text(build_prices.OVERRIDE.read_text().replace('"claude-v1"', '"claude-opus-4-5"'))
    with pytest.raises(ValueError, match="two rules for max_output_tokens of claude-opus-4-5"):
        build_prices.main(["--override", str(override), "--table", str(tmp_path / "prices.json")])


# --- the same prices as the package's own calculator -------------------------------------------------

DAYS = [date(2025, 6, 1), date(2026, 3, 12), date(2026, 3, 13), date(2026, 11, 20), date(2027, 2, 1)]
CONTEXTS: dict[tuple[str, str], dict[str, str]] = {
    ("speed", "fast"): {"speed": "fast"},
    ("service_tier", "batch"): {"processing": "batch"},
    ("service_tier", "flex"): {"service_tier": "flex"},
    ("service_tier", "priority"): {"service_tier": "priority"},
    ("service_tier", "fast"): {"service_tier": "fast"},
}
CACHE_WRITES = {"openai": "cache_write_30m_tokens", "gemini": "cache_write_tokens"}


def genai_nanousd(
    model: genai.ModelInfo, provider: genai.Provider, day: date, counts: Mapping[str, int], context: Any
) -> int:
    cache_read, write_5m, write_1h = (
        counts.get(unit, 0) for unit in ("cache_read_tokens", "write", CACHE_WRITE_1H)
    )
    usage = genai.Usage(
        input_tokens=counts[INPUT] + cache_read + write_5m + write_1h,
        cache_read_tokens=cache_read,
        cache_write_tokens=write_5m + write_1h,
        cache_write_1h_tokens=write_1h,
        output_tokens=counts.get(OUTPUT, 0),
        web_searches=counts.get(WEB_SEARCHES, 0),
    )
    timestamp = datetime(day.year, day.month, day.day, tzinfo=UTC)
    price = model.calc_price(
        usage, provider, genai_request_timestamp=timestamp, price_context=context
    ).total_price
    return int((price * 10**9).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def is_ours(vendor: str, model_id: str, modifier: tuple[str, str] | None) -> bool:
    """Whether the price of a modifier comes from the override file: the package does not know it."""
    return modifier is not None and any(
        modifier[0] == rule["modifier"]
        and modifier[1] in rule["values"]
        and any(fnmatchcase(model_id, pattern) for pattern in rule["models"])
        for rule in RULES[vendor]["multipliers"]
    )


def is_our_fee(vendor: str, model_id: str, unit: str) -> bool:
    return any(
        rule["unit"] == unit and any(fnmatchcase(model_id, pattern) for pattern in rule["models"])
        for rule in RULES[vendor].get("fees", ())
    )


@pytest.mark.parametrize("vendor", ["anthropic", "openai", "gemini"])
@pytest.mark.parametrize("day", DAYS)
def test_every_model_costs_what_the_package_computes(vendor: str, day: date) -> None:
    """Short and long prompts, every modifier the package knows; only units that the model prices."""
    provider = SOURCES[RULES[vendor]["genai_id"]]
    at_ms = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000
    write_unit = CACHE_WRITES.get(vendor, CACHE_WRITE_5M)
    compared = 0
    for model in provider.models:
        rates = TABLE.rates(vendor, model.id)
        if rates is None or rates.info.id != model.id:
            continue
        for modifiers, context in [(None, None), *CONTEXTS.items()]:
            given = dict([modifiers]) if modifiers else {}
            prices = TABLE.unit_prices(vendor, model.id, at_ms=at_ms, modifiers=given)
            standard = modifiers and modifiers[1] in RULES[vendor]["standard_values"].get(modifiers[0], ())
            if prices is None or INPUT not in prices or standard or is_ours(vendor, model.id, modifiers):
                continue
            for scale in (1, 97):
                ours = {
                    unit: count * scale
                    for unit, count in (
                        (INPUT, 1_003),
                        (CACHE_READ, 2_001),
                        (write_unit, 501),
                        (CACHE_WRITE_1H, 301),
                        (OUTPUT, 777),
                        (WEB_SEARCHES, 3),
                    )
                    # A cached token without a cached rate is charged like any other.
                    if (unit in prices and not is_our_fee(vendor, model.id, unit)) or unit == CACHE_READ
                }
                theirs = {"write" if unit == write_unit else unit: count for unit, count in ours.items()}
                priced = TABLE.price(vendor, OurUsage((UsageLine(model.id, ours, given),)), at_ms=at_ms)
                assert priced.flags == ()
                assert priced.cost_nanousd == genai_nanousd(model, provider, day, theirs, context), model.id
                compared += 1
    assert compared > 50


def test_every_anthropic_model_of_the_package_is_priced() -> None:
    assert [info.id for info in TABLE.models("anthropic")] == [
        model.id for model in SOURCES["anthropic"].models
    ]
    for info in TABLE.models("anthropic"):
        assert TABLE.model("anthropic", info.id) == info


@pytest.mark.parametrize("vendor", ["anthropic", "openai", "gemini"])
def test_every_model_has_its_own_output_limit_or_a_reason_why_not(vendor: str) -> None:
    """What writes tokens has a limit; what has none is served by no operation that does."""
    for rates in TABLE.all_rates(vendor):
        info = rates.info
        assert info.has_own_limit != bool(info.limit_unknown_because), info.id
        assert info.max_output_tokens > 0 or not any(
            OUTPUT in tier.units for period in rates.periods for tier in period.tiers
        ), info.id


def test_every_figure_of_ours_names_its_source(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert build_prices.main(["--table", str(tmp_path / "prices.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = json.loads((tmp_path / "prices.json").read_text())
    of_package = [vendor for vendor in table["providers"].values() if vendor["sources"]]
    assert 0 < len(of_package) < len(table["providers"])
    assert len(lines) == len(of_package) + len(table["overrides"])
    assert all("https://" in line for line in lines)
    rules = sum(
        len(RULES[vendor].get(kind, ())) for vendor in RULES for kind in (*price_sources.RULES, "products")
    )
    assert len(table["overrides"]) == rules
    assert any(line.startswith("openai: cache_write_12h_tokens = input_tokens x5/2: 11") for line in lines)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('source = "openai-ultrafast"', 'source = "hearsay"', "no such source: hearsay"),
        ('source = "anthropic-geo"', 'source = "litellm"', "nothing comes from anthropic-geo"),
        ('models = ["gpt-6.1-sol"]', 'models = ["gpt-6-astra"]', "service_tier=ultrafast of gpt-6-astra"),
        ('models = ["gpt-4.1-nano",', 'models = ["gpt-4.1",', "two prices for storage_searches of gpt-4.1"),
        ('"gemini-pro",\n', "", "no rule for max_output_tokens of gemini-pro"),
        ('"gpt-5.6-*", "gpt-6*"', '"gpt-5.6-*", "gpt-6*", "gpt-4.1-nano"', None),
        ('times = [5, 2]\nmodels = ["gpt-5.6-*', 'times = [1, 7]\nmodels = ["gpt-5.6-*', "no whole number"),
    ],
)
def test_a_rule_that_contradicts_the_table_stops_the_build(
    tmp_path: Path, old: str, new: str, complaint: str | None
) -> None:
    override = tmp_path / "override.toml"
    text = build_prices.OVERRIDE.read_text()
    assert old in text
    override.write_text(text.replace(old, new, 1))
    arguments = ["--override", str(override), "--table", str(tmp_path / "prices.json")]
    if complaint is None:
        assert build_prices.main(arguments) == 0
        return
    with pytest.raises(ValueError, match=complaint):
        build_prices.main(arguments)


def test_a_derived_unit_stands_in_every_price_list_that_has_its_base() -> None:
    model: dict[str, Any] = {
        "id": "m",
        "prices": [
            {
                "from": None,
                "units": {INPUT: 10},
                "tiers": [{"above_prompt_tokens": 5, "units": {INPUT: 20, OUTPUT: 1}}],
            }
        ],
        "modifiers": [
            {"modifier": "a", "value": "b", "units": {INPUT: 4}, "tiers": []},
            {"modifier": "a", "value": "c", "units": {OUTPUT: 4}, "tiers": []},
            {"modifier": "a", "value": "d", "times": [2, 1]},
        ],
    }
    price_sources.add_derived_unit(model, {"unit": CACHE_WRITE_12H, "of": INPUT, "times": [5, 2]})
    assert [units.get(CACHE_WRITE_12H) for units in price_sources.price_lists_of(model)] == [25, 50, 10, None]


# --- what is left out ---------------------------------------------------------------------------------


def model_info(prices: Any, variants: Any = None, match: Any = None) -> genai.ModelInfo:
    return genai.ModelInfo(
        id="m", match=match or genai.ClauseEquals("m"), prices=prices, price_variants=variants
    )


PLAIN = {"standard_values": {}, "cache_write_unit": "cache_write_5m_tokens"}


def test_a_model_without_prices_is_left_out() -> None:
    assert price_sources.convert_model(model_info(genai.ModelPrice()), PLAIN) is None


def test_a_price_that_is_no_whole_number_of_picousd_is_left_out() -> None:
    prices = genai.ModelPrice(input_mtok=Decimal("0.0000001"), output_mtok=Decimal(1))
    model = price_sources.convert_model(model_info(prices), PLAIN)
    assert model is not None
    assert model["prices"][0]["units"] == {"output_tokens": 1_000_000}


def test_a_tier_whose_long_prompts_have_no_price_is_left_out() -> None:
    tiered = genai.TieredPrices(Decimal(1), [genai.Tier(200_000, Decimal(2))])
    flex = genai.PriceVariant({"service_tier": "flex"}, genai.ModelPrice(input_mtok=Decimal("0.5")))
    model = price_sources.convert_model(model_info(genai.ModelPrice(input_mtok=tiered), [flex]), PLAIN)
    assert model is not None
    assert model["modifiers"] == []


def test_a_uniform_price_list_becomes_a_multiplier_and_another_stays_a_list() -> None:
    standard = genai.ModelPrice(
        input_mtok=Decimal(1), output_mtok=Decimal(4), web_searches_kcount=Decimal(10)
    )
    fast = genai.PriceVariant(
        {"speed": "fast"}, genai.ModelPrice(input_mtok=Decimal(2), output_mtok=Decimal(8))
    )
    flex = genai.PriceVariant({"service_tier": "flex"}, genai.ModelPrice(output_mtok=Decimal(3)))
    model = price_sources.convert_model(model_info(standard, [fast, flex]), PLAIN)
    assert model is not None
    assert model["modifiers"] == [
        {
            "modifier": "service_tier",
            "value": "flex",
            "from": None,
            "units": {"output_tokens": 3_000_000},
            "tiers": [],
        },
        {"modifier": "speed", "value": "fast", "from": None, "times": [2, 1]},
    ]


def test_products_are_priced_by_the_piece_to_the_picousd() -> None:
    product = {"product": "p", "source": "s", "usd_per_1000": {"pieces": "5", "input_tokens": "0.005"}}
    vendor, applied = price_sources.products_of([product])
    (period,) = vendor["models"][0]["prices"]
    assert period["units"] == {"pieces": 5_000_000_000, "input_tokens": 5_000_000}
    assert applied == [
        {
            "what": "pieces at USD 5 per 1,000, input_tokens at USD 0.005 per 1,000",
            "models": ["p"],
            "source": "s",
        }
    ]
    with pytest.raises(ValueError, match="p: pieces is no whole number of pico-USD"):
        price_sources.products_of([{**product, "usd_per_1000": {"pieces": "0.0000000001"}}])


def test_prefixes_become_families() -> None:
    clause = genai.ClauseOr(
        [genai.ClauseStartsWith("a-1"), genai.ClauseContains("b@"), genai.ClauseEquals("c")]
    )
    assert price_sources.match_of(clause) == [{"family": "a-1"}, {"family": "b"}, {"equals": "c"}]


def test_a_price_by_the_hour_of_the_day_stops_the_build() -> None:
    night = genai.TimeOfDateConstraint(
        start_time=datetime(2026, 1, 1, 0, tzinfo=UTC).timetz(),
        end_time=datetime(2026, 1, 1, 6, tzinfo=UTC).timetz(),
    )
    prices = [genai.ConditionalPrice(night, prices=genai.ModelPrice(input_mtok=Decimal(1)))]
    with pytest.raises(TypeError, match="not understood"):
        price_sources.convert_model(model_info(prices), PLAIN)


def test_a_price_under_two_conditions_stops_the_build() -> None:
    variant = genai.PriceVariant(
        {"speed": "fast", "processing": "batch"}, genai.ModelPrice(input_mtok=Decimal(1))
    )
    with pytest.raises(ValueError, match="several conditions"):
        price_sources.convert_model(model_info(genai.ModelPrice(input_mtok=Decimal(1)), [variant]), PLAIN)


def test_a_fee_per_request_stops_the_build() -> None:
    with pytest.raises(ValueError, match="counter of requests"):
        price_sources.convert_model(model_info(genai.ModelPrice(requests_kcount=Decimal(5))), PLAIN)
