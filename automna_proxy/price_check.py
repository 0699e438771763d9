"""`prices check`: what is missing in a price table, out of date, or different from where it came from.

Nothing here changes a table. Findings are wrong, or worth knowing; the first kind makes the command fail.
"""

import importlib.util
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from metering.clock import utc
from metering.prices import ModelRates, Period, PriceFileError, PriceTable
from metering.usage import CACHE_READ, INPUT, OUTPUT

SOURCE_PACKAGE = "genai_prices"
OVERRIDE = Path(__file__).resolve().parent.parent / "scripts" / "prices_override.toml"
"""Beside the package in a checkout; not in the wheel, as the package that it adds to is not either."""
LITELLM_BYTES_MAX = 64 << 20
"""Twenty times what the file was in November 2026."""
PICO_PER_USD = 10**12
STALE_DAYS = 30


@dataclass(frozen=True, slots=True)
class Offer:
    """A tier that a vendor sells for the models meant by `models` (globs on ids)."""

    provider: str
    modifier: str
    values: tuple[str, ...]
    models: tuple[str, ...]


OFFERS = (
    Offer(
        "anthropic",
        "inference_geo",
        ("us",),
        (
            "claude-opus-4-[678]",
            "claude-sonnet-4-6",
            "claude-opus-5*",
            "claude-sonnet-5*",
            "claude-haiku-5-5",
            "claude-fable-5*",
        ),
    ),
    Offer(
        "anthropic",
        "speed",
        ("fast",),
        ("claude-opus-4-8", "claude-opus-5", "claude-opus-5-5", "claude-fable-5-2"),
    ),
    Offer("anthropic", "service_tier", ("batch",), ("claude-opus-5*", "claude-sonnet-5*", "claude-fable-5*")),
    Offer(
        "openai", "region", ("ae", "au", "eu", "in", "jp", "us"), ("gpt-5*", "gpt-6*", "gpt-4*", "o[134]*")
    ),
    Offer(
        "openai",
        "service_tier",
        ("flex",),
        (
            "gpt-5",
            "gpt-5-mini",
            "gpt-5-nano",
            "gpt-5.[1245]",
            "gpt-5.6-[lst]*",
            "gpt-6-[als]*",
            "gpt-6.1-*",
            "o3",
        ),
    ),
    Offer(
        "openai",
        "service_tier",
        ("fast", "priority"),
        (
            "gpt-5",
            "gpt-5-mini",
            "gpt-5.[1245]",
            "gpt-5.6-[lst]*",
            "gpt-6-[als]*",
            "gpt-6.1-*",
            "gpt-4.1*",
            "o3",
        ),
    ),
    Offer("openai", "service_tier", ("ultrafast",), ("gpt-6-astra", "gpt-6.1-sol")),
    Offer(
        "gemini",
        "service_tier",
        ("flex", "priority"),
        (
            "gemini-2.5-flash",
            "gemini-2.5-flash-lite",
            "gemini-2.5-pro",
            "gemini-3-flash-preview",
            "gemini-3.1-flash-lite",
            "gemini-3.1-pro-preview",
            "gemini-3.[5678]-flash",
            "gemini-3.5-flash-lite",
            "gemini-4-*",
        ),
    ),
)
"""What the vendors' pages list in November 2026. A new model of a listed family that lacks a tier was
transcribed without it: its requests in that tier would be refused."""

MODIFIERS = frozenset({"inference_geo", "region", "service_tier", "speed"})
"""What usage readers report. A price for anything else could never be charged."""

LITELLM_PREFIXES = {"anthropic": "", "openai": "", "gemini": "gemini/"}
LITELLM_RATES = {
    "input_cost_per_token": INPUT,
    "output_cost_per_token": OUTPUT,
    "cache_read_input_token_cost": CACHE_READ,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know of a table. `model` is empty where it concerns all of a vendor, or all vendors."""

    check: str
    provider: str
    model: str
    detail: str
    is_wrong: bool = True


def check_table(table: PriceTable, *, now_ms: int, stale_days: int = STALE_DAYS) -> list[Finding]:
    """All that can be said of a table on its own."""
    today = utc(now_ms).date()
    return [*_limits(table), *_tiers(table), *_dates(table, today, stale_days)]


def check_sources(content: Mapping[str, Any], override: Path) -> list[Finding]:
    """A table (as JSON) against what its sources give today: models that differ, and parts outside of them.

    Raises PriceFileError when the override file cannot be used.
    """
    if importlib.util.find_spec(SOURCE_PACKAGE) is None:
        return [_note("genai-prices is not installed (a development dependency): the table was not rebuilt")]
    if not override.is_file():
        return [_note(f"there is no override file at {override}: the table was not rebuilt")]
    from automna_proxy.price_sources import build  # noqa: PLC0415 - the wheel does not bring what this needs

    try:
        built = build(tomllib.loads(override.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PriceFileError(str(override), str(error), "an override file that the sources allow") from error
    return list(_differences(content, built))


def check_litellm(table: PriceTable, path: Path, *, now_ms: int) -> list[Finding]:
    """The standard rates of today against a price file in LiteLLM's format, where both name one.

    Raises PriceFileError when the file cannot be used.
    """
    theirs = _litellm(path)
    findings: list[Finding] = []
    compared = 0
    for provider, prefix in LITELLM_PREFIXES.items():
        for rates in table.all_rates(provider):
            entry = theirs.get(prefix + rates.info.id)
            if not isinstance(entry, dict):
                continue
            compared += 1
            findings += _rate_differences(provider, rates, entry, now_ms)
    return [*findings, _note(f"{path.name}: {compared} models compared", check="litellm")]


# --- the table on its own -----------------------------------------------------------------------------


def _limits(table: PriceTable) -> Iterator[Finding]:
    for provider in table.providers:
        for info in table.models(provider):
            if info.limit_unknown_because:
                yield Finding("max_output", provider, info.id, info.limit_unknown_because, is_wrong=False)
            elif not info.has_own_limit:
                yield Finding(
                    "max_output", provider, info.id, f"none named: {info.max_output_tokens:,} is assumed"
                )


def _tiers(table: PriceTable) -> Iterator[Finding]:
    for provider in table.providers:
        standard = table.standard_values(provider)
        for rates in table.all_rates(provider):
            priced = {(rate.modifier, rate.value) for rate in rates.modifiers}
            for modifier, value in sorted(priced):
                if modifier not in MODIFIERS:
                    yield Finding(
                        "tier", provider, rates.info.id, f"{modifier} is reported by no usage reader"
                    )
                elif value in standard.get(modifier, ()):
                    yield Finding(
                        "tier", provider, rates.info.id, f"{modifier}={value} is priced, and standard"
                    )
            for modifier, value in sorted(_offered(provider, rates.info.id) - priced):
                if value not in standard.get(modifier, ()):
                    yield Finding(
                        "tier", provider, rates.info.id, f"{modifier}={value} is offered, but has no price"
                    )
    for offer in OFFERS:
        ids = [info.id for info in table.models(offer.provider)]
        if ids and not any(fnmatchcase(name, pattern) for name in ids for pattern in offer.models):
            values = "|".join(offer.values)
            yield Finding(
                "tier", offer.provider, "", f"{offer.modifier}={values} is offered, but used by no rule"
            )


def _offered(provider: str, model: str) -> set[tuple[str, str]]:
    return {
        (offer.modifier, value)
        for offer in OFFERS
        if offer.provider == provider and any(fnmatchcase(model, pattern) for pattern in offer.models)
        for value in offer.values
    }


def _dates(table: PriceTable, today: date, stale_days: int) -> Iterator[Finding]:
    if table.as_of is None:
        yield Finding("date", "", "", "as_of: the table does not say when it was last checked")
    elif (age := (today - table.as_of).days) > stale_days:
        yield Finding("date", "", "", f"as_of is {table.as_of}, {age} days ago: more than {stale_days}")
    elif age < 0:
        yield Finding("date", "", "", f"as_of is {table.as_of}, in the future")
    for provider in table.providers:
        for rates in table.all_rates(provider):
            parts: Sequence[Any] = (*rates.periods, *rates.modifiers)
            for starts_on in sorted({part.starts_on for part in parts if part.starts_on} - {None}):
                if starts_on > today:
                    yield Finding(
                        "date", provider, rates.info.id, f"a price starts on {starts_on}", is_wrong=False
                    )


# --- the table against others -------------------------------------------------------------------------


def _differences(content: Mapping[str, Any], built: Mapping[str, Any]) -> Iterator[Finding]:
    for provider in sorted({*content["providers"], *built["providers"]}):
        ours, theirs = (table["providers"].get(provider, {"models": []}) for table in (content, built))
        mine, sourced = ({model["id"]: model for model in vendor["models"]} for vendor in (ours, theirs))
        for name in sorted({*mine, *sourced}):
            if name not in sourced:
                yield Finding("source", provider, name, "not in the sources")
            elif name not in mine:
                yield Finding("source", provider, name, "in the sources, not in the table")
            elif parts := _changed(mine[name], sourced[name]):
                yield Finding("source", provider, name, f"differs from the sources: {', '.join(parts)}")
        if parts := [part for part in _changed(ours, theirs) if part != "models"]:
            yield Finding("source", provider, "", f"differs from the sources: {', '.join(parts)}")
    if parts := [part for part in _changed(content, built) if part != "providers"]:
        yield Finding("source", "", "", f"differs from the sources: {', '.join(parts)}")


def _changed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))


def _rate_differences(
    provider: str, rates: ModelRates, entry: Mapping[str, Any], now_ms: int
) -> Iterator[Finding]:
    units = _period_at(rates, utc(now_ms).date()).tiers[0].units
    for field, unit in LITELLM_RATES.items():
        if not isinstance(entry.get(field), Decimal | int) or isinstance(entry[field], bool):
            continue
        theirs = Decimal(entry[field]) * PICO_PER_USD
        if unit in units and theirs != units[unit]:
            ours_usd, theirs_usd = _usd_per_million(units[unit]), _usd_per_million(theirs)
            detail = f"{unit}: USD {ours_usd} per million here, {theirs_usd} there"
            yield Finding("litellm", provider, rates.info.id, detail)
        elif unit not in units and theirs:
            detail = f"{unit}: no price here, {field} there"
            yield Finding("litellm", provider, rates.info.id, detail, is_wrong=False)


def _usd_per_million(picousd: Decimal | int) -> str:
    return f"{(Decimal(picousd) * 1_000_000 / PICO_PER_USD).normalize():f}"


def _period_at(rates: ModelRates, today: date) -> Period:
    """The last period that has begun; the first began long ago."""
    return next(
        period for period in reversed(rates.periods) if period.starts_on is None or period.starts_on <= today
    )


def _litellm(path: Path) -> dict[str, Any]:
    expected = "a readable JSON object in LiteLLM's format"
    try:
        if path.stat().st_size > LITELLM_BYTES_MAX:
            raise PriceFileError(str(path), path.stat().st_size, f"at most {LITELLM_BYTES_MAX} bytes")
        content = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as error:
        raise PriceFileError(str(path), error.strerror, expected) from error
    except ValueError as error:
        raise PriceFileError(str(path), str(error), expected) from error
    if not isinstance(content, dict):
        raise PriceFileError(str(path), type(content).__name__, expected)
    return content


def _note(detail: str, *, check: str = "source") -> Finding:
    return Finding(check, "", "", detail, is_wrong=False)
