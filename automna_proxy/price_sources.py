"""The price table as its sources give it: the pinned genai-prices package and an override file, converted.

Imported only where the package is installed (it is a development dependency): by `scripts/build_prices.py`,
which writes the table that ships, and by `prices check`, which compares.

Prices become integer pico-USD per unit. What cannot be said exactly and safely is left out, so that it
stays unpriced and is refused, instead of being guessed; a construct never seen before stops the build.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from importlib.metadata import version
from typing import Any

from genai_prices import types as genai
from genai_prices.data import providers
from genai_prices.data_units import unit_data

from metering.prices import SCHEMA, TERMS

GENAI = "genai-prices"
"""The id of the source that every price without a rule of ours comes from."""
PICO_PER_USD = 10**12
BEFORE_ALL = date(1970, 1, 1)

Json = dict[str, Any]

UNITS = {unit["price_key"]: (name, unit["per"]) for name, unit in unit_data.items()}
"""genai-prices' price keys -> (unit, number of units the price is for)."""

MODIFIERS = {"processing": "service_tier", "service_tier": "service_tier", "speed": "speed"}
"""genai-prices' context keys -> our modifiers; vendors report a batch as a service tier."""


def provenance(table: Json) -> list[str]:
    """Where each figure comes from, a line per source and rule."""
    names = {source["id"]: f"{source['name']} ({source['url']})" for source in table["sources"]}
    package = names[GENAI]
    lines = [
        f"{provider}: {len(vendor['models'])} models: every price not named below: {package}"
        for provider, vendor in table["providers"].items()
        if vendor["sources"]
    ]
    return lines + [
        f"{rule['provider']}: {rule['what']}: {len(rule['models'])} models: {names[rule['source']]}"
        for rule in table["overrides"]
    ]


def render(table: Json) -> str:
    return json.dumps(table, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def build(override: Json) -> Json:
    package = version("genai-prices")
    by_id = {provider.id: provider for provider in providers}
    sources = [
        {"id": GENAI, "name": f"genai-prices {package}", "url": "https://github.com/pydantic/genai-prices"},
        *override["sources"],
    ]
    overrides: list[Json] = []
    vendors = {}
    for name, rules in override["providers"].items():
        if "products" in rules:
            vendors[name], applied = products_of(rules["products"])
        else:
            vendors[name] = convert_provider(by_id[rules["genai_id"]], rules)
            applied = apply_rules(vendors[name]["models"], rules)
        overrides += [{"provider": name, **rule} for rule in applied]
    known = {source["id"] for source in sources}
    if unknown := {rule["source"] for rule in overrides} - known:
        raise ValueError(f"prices_override.toml: no such source: {', '.join(sorted(unknown))}")
    if unused := known - {rule["source"] for rule in overrides} - {GENAI}:
        raise ValueError(f"prices_override.toml: nothing comes from {', '.join(sorted(unused))}")
    digest = hashlib.sha256(render(vendors).encode()).hexdigest()[:8]
    return {
        "schema": SCHEMA,
        "as_of": override["as_of"],
        "version": f"{override['as_of']}+genai-prices-{package}+{digest}",
        "sources": sources,
        "overrides": overrides,
        "providers": vendors,
    }


def convert_provider(provider: genai.Provider, rules: Json) -> Json:
    kept = [
        model
        for model in provider.models
        if not any(fnmatchcase(model.id, pattern) for pattern in rules["excluded_models"])
    ]
    return {
        "models": [model for model in (convert_model(model, rules) for model in kept) if model is not None],
        "sources": sorted(provider.pricing_urls or []),
        "standard_values": rules["standard_values"],
        "version_suffix": rules["version_suffix"],
    }


def products_of(products: Iterable[Json]) -> tuple[Json, list[Json]]:
    """A vendor that sells by the piece, and where each price comes from. Its products stand where models would."""
    models, applied = [], []
    for product in products:
        name, prices = product["product"], product["usd_per_1000"]
        units = {unit: whole_picousd(name, unit, Fraction(usd) / 1000) for unit, usd in prices.items()}
        terms = {term: product[f"{term}_usd"] for term in TERMS if f"{term}_usd" in product}
        units |= {term: whole_picousd(name, term, Fraction(usd)) for term, usd in terms.items()}
        models.append(
            {
                "id": name,
                "limit_unknown_because": "sold by the piece",
                "match": [{"equals": name}],
                "modifiers": [],
                "prices": [{"from": None, "tiers": [], "units": units}],
            }
        )
        what = ", ".join(f"{unit} at USD {usd} per 1,000" for unit, usd in prices.items())
        what += "".join(f", {term.replace('_', ' ')} USD {usd}" for term, usd in terms.items())
        applied.append({"what": what, "models": [name], "source": product["source"]})
    return {"models": models, "sources": [], "standard_values": {}, "version_suffix": "(?!)"}, applied


def whole_picousd(name: str, unit: str, usd: Fraction) -> int:
    picousd = usd * PICO_PER_USD
    if picousd.denominator != 1:
        raise ValueError(f"{name}: {unit} is no whole number of pico-USD")
    return picousd.numerator


# --- the override file --------------------------------------------------------------------------------


def apply_rules(models: list[Json], rules: Json) -> list[Json]:
    """Change `models` by every rule of a provider; what each rule changed, and where it comes from."""
    applied = []
    for kind, apply in RULES.items():
        for rule in rules.get(kind, ()):
            meant = selected(models, rule["models"])
            what = [apply(model, rule) for model in meant]
            applied.append(
                {"what": what[0], "models": [model["id"] for model in meant], "source": rule["source"]}
            )
    if nameless := [
        model["id"]
        for model in models
        if "max_output_tokens" not in model and "limit_unknown_because" not in model
    ]:
        raise ValueError(f"no rule for max_output_tokens of {', '.join(nameless)}")
    return applied


def add_names(model: Json, rule: Json) -> str:
    model["match"] += [{"equals": name} for name in rule["equals"]]
    return f"also named {', '.join(rule['equals'])}"


def add_limit(model: Json, rule: Json) -> str:
    if "max_output_tokens" in model or "limit_unknown_because" in model:
        raise ValueError(f"two rules for max_output_tokens of {model['id']}")
    if "because" in rule:
        model["limit_unknown_because"] = rule["because"]
        return f"no max_output_tokens: {rule['because']}"
    model["max_output_tokens"] = rule["tokens"]
    return f"max_output_tokens {rule['tokens']:,}"


def add_multiplier(model: Json, rule: Json) -> str:
    taken = {(entry["modifier"], entry["value"]) for entry in model["modifiers"]}
    for value in rule["values"]:
        if (rule["modifier"], value) in taken:
            raise ValueError(f"two prices for {rule['modifier']}={value} of {model['id']}")
        model["modifiers"].append(multiplier(rule["modifier"], value, rule.get("from"), rule["times"]))
    numerator, denominator = rule["times"]
    return f"{rule['modifier']}={'|'.join(rule['values'])} x{numerator}/{denominator}"


def add_derived_unit(model: Json, rule: Json) -> str:
    """A unit whose price is a multiple of another's, in every price list that names the other."""
    numerator, denominator = rule["times"]
    for units in price_lists_of(model):
        if rule["of"] in units:
            usd = Fraction(units[rule["of"]] * numerator, denominator * PICO_PER_USD)
            add_unit(model, units, rule["unit"], whole_picousd(model["id"], rule["unit"], usd))
    return f"{rule['unit']} = {rule['of']} x{numerator}/{denominator}"


def add_fee(model: Json, rule: Json) -> str:
    """A fee for each of something, given as decimal USD per thousand."""
    picousd = Fraction(rule["usd_per_1000"]) * PICO_PER_USD / 1000
    for period in model["prices"]:
        for units in (period["units"], *(tier["units"] for tier in period["tiers"])):
            add_unit(model, units, rule["unit"], int(picousd))
    return f"{rule['unit']} at USD {rule['usd_per_1000']} per 1,000"


def add_unit(model: Json, units: dict[str, int], unit: str, picousd: int) -> None:
    if unit in units:
        raise ValueError(f"two prices for {unit} of {model['id']}")
    units[unit] = picousd


def price_lists_of(model: Json) -> list[dict[str, int]]:
    """Every mapping of units to prices within a model: periods, modifiers, and the tiers of both."""
    parts = [*model["prices"], *(entry for entry in model["modifiers"] if "units" in entry)]
    return [units for part in parts for units in (part["units"], *(tier["units"] for tier in part["tiers"]))]


RULES: dict[str, Callable[[Json, Json], str]] = {
    "matches": add_names,
    "max_output_tokens": add_limit,
    "derived_units": add_derived_unit,
    "fees": add_fee,
    "multipliers": add_multiplier,
}
"""The kinds of rules in the override file, in the order in which they apply; each says what it changed."""


def selected(models: Iterable[Json], patterns: Iterable[str]) -> list[Json]:
    """The models meant by glob patterns, each of which must mean at least one."""
    models = list(models)
    found: dict[str, Json] = {}
    for pattern in patterns:
        hits = {model["id"]: model for model in models if fnmatchcase(model["id"], pattern)}
        if not hits:
            raise ValueError(f"prices_override.toml: {pattern!r} means no model")
        found |= hits
    return list(found.values())


def convert_model(model: genai.ModelInfo, rules: Json) -> Json | None:
    """One model, or None where genai-prices has no price for it."""
    periods = [
        {"from": None if start == BEFORE_ALL else start.isoformat(), **tiers}
        for start in starts_of(model)
        if (tiers := price_list(prices_on(model, start), rules)) is not None
    ]
    if not periods:
        return None
    if periods[0]["from"] is not None:
        raise ValueError(f"{model.id}: no price before {periods[0]['from']}")
    converted: Json = {
        "id": model.id,
        "match": match_of(model.match),
        "modifiers": modifiers_of(model, rules),
        "prices": periods,
    }
    if model.context_window is not None:
        converted["context_tokens"] = model.context_window
    return converted


# --- prices -------------------------------------------------------------------------------------------


def starts_of(model: genai.ModelInfo) -> list[date]:
    if isinstance(model.prices, genai.ModelPrice):
        return [BEFORE_ALL]
    return sorted({start_of(conditional.constraint) for conditional in model.prices})


def start_of(constraint: object) -> date:
    if constraint is None:
        return BEFORE_ALL
    if isinstance(constraint, genai.StartDateConstraint):
        return constraint.start_date
    raise TypeError(f"price condition not understood: {constraint}")


def prices_on(
    model: genai.ModelInfo, day: date, context: Mapping[str, str] | None = None
) -> genai.ModelPrice:
    return model.get_prices(datetime(day.year, day.month, day.day, tzinfo=UTC), context)


def price_list(prices: genai.ModelPrice, rules: Json, only: Iterable[str] | None = None) -> Json | None:
    """`units` and `tiers` of a price list (of the price keys in `only`); None when it names no price."""
    named = {key: value for key, value in vars(prices).items() if value is not None}
    if only is not None:
        named = {key: named[key] for key in only}
    starts = sorted(
        {
            tier.start
            for value in named.values()
            if isinstance(value, genai.TieredPrices)
            for tier in value.tiers
        }
    )
    base, *above = (units_at(named, start, rules) for start in [0, *starts])
    tiers = [
        {"above_prompt_tokens": start, "units": units} for start, units in zip(starts, above, strict=True)
    ]
    return {"units": base, "tiers": tiers} if base else None


def units_at(named: Mapping[str, Decimal | genai.TieredPrices], start: int, rules: Json) -> dict[str, int]:
    units = {}
    for key, value in named.items():
        unit, per = UNITS[key]
        if unit == "requests":
            raise ValueError("a fee per request needs a counter of requests")
        picousd = Fraction(amount_at(value, start)) * PICO_PER_USD / per
        if picousd.denominator == 1:
            units[rules["cache_write_unit"] if unit == "cache_write_tokens" else unit] = picousd.numerator
    return units


def amount_at(value: Decimal | genai.TieredPrices, start: int) -> Decimal:
    """The price for prompts longer than `start` tokens."""
    if isinstance(value, Decimal):
        return value
    return next((tier.price for tier in reversed(value.tiers) if tier.start <= start), value.base)


# --- modifiers ----------------------------------------------------------------------------------------


def modifiers_of(model: genai.ModelInfo, rules: Json) -> list[Json]:
    contexts = {tuple(variant.when.items()) for variant in model.price_variants or ()}
    converted = []
    for context in sorted(contexts):
        if len(context) != 1:
            raise ValueError(f"{model.id}: a price under several conditions: {context}")
        ((key, value),) = context
        modifier = MODIFIERS[key]
        if value in rules["standard_values"].get(modifier, ()):
            continue
        converted += modifier_periods(model, {key: value}, (modifier, value), rules)
    return converted


def modifier_periods(
    model: genai.ModelInfo, context: dict[str, str], name: tuple[str, str], rules: Json
) -> list[Json]:
    """The dated entries of one modifier, as a multiplier wherever all token prices agree on one."""
    variants = [variant for variant in model.price_variants or () if variant.when == context]
    starts = sorted({start_of(variant.constraint) for variant in variants})
    keys = {start: changed_keys(variants, start) for start in starts}
    if not any(keys.values()):  # Listed, at the standard price.
        return [multiplier(*name, iso(starts[0]), [1, 1])]
    if not all(has_same_tiers(model, start, keys[start], context) for start in starts):
        return []  # The long prompts of this tier have no published price: better none at all.
    ratios = {start: common_ratio(model, start, keys[start], context) for start in starts}
    if len(starts) == 1 and (ratio := ratios[starts[0]]) is not None:
        return [multiplier(*name, iso(starts[0]), [ratio.numerator, ratio.denominator])]
    entries = []
    for start in starts:
        prices = price_list(prices_on(model, start, context), rules, only=sorted(keys[start]))
        if prices is None:
            raise ValueError(f"{model.id}: {context} changes nothing")
        entries.append({"modifier": name[0], "value": name[1], "from": iso(start), **prices})
    return entries


def multiplier(modifier: str, value: str, start: str | None, times: list[int]) -> Json:
    return {"modifier": modifier, "value": value, "from": start, "times": times}


def iso(start: date) -> str | None:
    return None if start == BEFORE_ALL else start.isoformat()


def changed_keys(variants: Iterable[genai.PriceVariant], start: date) -> set[str]:
    return {
        key
        for variant in variants
        if start_of(variant.constraint) <= start
        for key, value in vars(variant.prices).items()
        if value is not None
    }


def days_from(model: genai.ModelInfo, start: date) -> list[date]:
    """`start` and every later day on which the standard price changes."""
    return [start, *(day for day in starts_of(model) if day > start)]


def has_same_tiers(model: genai.ModelInfo, start: date, keys: Iterable[str], context: dict[str, str]) -> bool:
    pairs = [
        (vars(prices_on(model, day)).get(key), vars(prices_on(model, day, context))[key])
        for day in days_from(model, start)
        for key in keys
    ]
    return all(tier_starts(standard) == tier_starts(changed) for standard, changed in pairs)


def tier_starts(price: object) -> list[int]:
    return [tier.start for tier in price.tiers] if isinstance(price, genai.TieredPrices) else []


def common_ratio(
    model: genai.ModelInfo, start: date, keys: set[str], context: dict[str, str]
) -> Fraction | None:
    """By how much a modifier multiplies every token price from `start` on; None if not all alike."""
    ratios: set[Fraction] = set()
    for day in days_from(model, start):
        standard, changed = vars(prices_on(model, day)), vars(prices_on(model, day, context))
        if keys != {key for key in standard if UNITS[key][0].endswith("_tokens")}:
            return None
        for key in keys:
            for above in [0, *tier_starts(standard[key])]:
                before = amount_at(standard[key], above)
                if before == 0:
                    return None
                ratios.add(Fraction(amount_at(changed[key], above)) / Fraction(before))
    return ratios.pop() if len(ratios) == 1 else None


# --- names --------------------------------------------------------------------------------------------


def match_of(clause: Any) -> list[Json]:
    """Rules of which any one means the model. Prefixes and substrings become families: the name itself, or
    the name and a version suffix, so that an unknown variant of a known model stays unknown."""
    if isinstance(clause, genai.ClauseOr):
        return [rule for part in clause.or_ for rule in match_of(part)]
    return [rule_of(clause)]


def rule_of(clause: Any) -> Json:
    match clause:
        case genai.ClauseEquals(equals=name):
            return {"equals": name}
        case genai.ClauseRegex(regex=pattern):
            return {"regex": pattern}
        case (
            genai.ClauseStartsWith(starts_with=name)
            | genai.ClauseEndsWith(ends_with=name)
            | genai.ClauseContains(contains=name)
        ):
            return {"family": name.rstrip("-@")}
        case genai.ClauseAnd(and_=parts):
            return {"all": [rule_of(part) for part in parts]}
    raise TypeError(f"match rule not understood: {clause}")
