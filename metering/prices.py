"""The price table: what a unit costs at a date, what a usage costs, and how to compute that again.

Unit prices are integers in pico-USD per unit (1 USD per million tokens = 1,000,000 pico-USD per token).
A cost is summed in pico-USD and rounded half up once, to nano-USD. `scripts/build_prices.py` writes the
table that ships with the package; a PRICES_FILE of the same shape replaces it.

Nothing is guessed. A model is found by its exact id, or by its id plus a version suffix of that vendor
(`-20251001`, `-latest`); what else looks similar is unknown. What has no price is booked at the dearest
known rate of its vendor and flagged, and admission refuses what would be flagged.

Vendors print one price for what they do not price apart: sound or images at the text's rate where a model's
list has no line for them, cached tokens at the rate of new ones where it has no cached rate. GENERAL_UNITS
says which line is meant; what it charges is exact.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from metering.money import nanousd_of_picousd
from metering.usage import (
    CACHE_AUDIO_READ,
    CACHE_IMAGE_READ,
    CACHE_READ,
    CACHE_VIDEO_READ,
    INPUT,
    INPUT_AUDIO,
    INPUT_IMAGE,
    INPUT_VIDEO,
    OUTPUT,
    OUTPUT_AUDIO,
    OUTPUT_IMAGE,
    OUTPUT_VIDEO,
    TokenCounts,
    Usage,
    UsageLine,
    token_counts,
)
from metering.values import immutable

SCHEMA = 1
"""The shape of the file; a table of another shape is refused."""
DEFAULT_CONTEXT_TOKENS = 1_048_576
DEFAULT_MAX_OUTPUT_TOKENS = 128_000
"""For models whose limits the table does not name: among the largest of their day, so that a hold taken
with them is rather too high."""
RESOLUTIONS_MAX = 4_096
"""Bound of the cache of (provider, model, modifiers); model names come from requests."""
MODEL_NAME_CHARS_MAX = 128
"""Longer names are unknown without being looked at; no vendor's id comes near."""

UNITS_MAX = 256
"""Unit names remembered; vendors use a few dozen, but answers may name any."""
GIVEN_CHARS_MAX = 400
"""How much of a wrong value an error shows: a path in full, not a table."""

GENERAL_UNITS: Mapping[str, tuple[str, ...]] = {
    INPUT_AUDIO: (INPUT,),
    INPUT_IMAGE: (INPUT,),
    INPUT_VIDEO: (INPUT,),
    CACHE_READ: (INPUT,),
    CACHE_AUDIO_READ: (INPUT_AUDIO, CACHE_READ, INPUT),
    CACHE_IMAGE_READ: (INPUT_IMAGE, CACHE_READ, INPUT),
    CACHE_VIDEO_READ: (INPUT_VIDEO, CACHE_READ, INPUT),
    OUTPUT_AUDIO: (OUTPUT,),
    OUTPUT_IMAGE: (OUTPUT,),
    OUTPUT_VIDEO: (OUTPUT,),
}
"""Where a model's price list has no line for a unit: the lines that hold for it, the first that is there.

Special kinds are charged like text of their side. Cached tokens without a cached rate are charged as new ones
(OpenAI's and Google's lists show no cached price for such models, and bill the prompt whole), those of a kind
that is priced apart at that kind's rate, because the text's discount was not given for it. A cache write has
no such line: it costs more than input, and how much more only the vendor can say."""

ROUNDED_TO, AT_LEAST = "rounded_to", "at_least"
TERMS = (ROUNDED_TO, AT_LEAST)
"""Beside the units of a product, in pico-USD: what a line costs is rounded to a multiple of the first, half up, and is then no
less than the second, however little was used."""

_TOKENS = "_tokens"
_ALWAYS_MS = -(1 << 62)
_NO_PROMPT_SO_LONG = 1 << 62


# --- what callers see ---------------------------------------------------------------------------------


@immutable
class ModelInfo:
    """A priced model. `id` is its name in the table; limits in tokens, defaults where unknown.

    `max_output_tokens` is 0 for a model that writes nothing (embeddings). `limit_unknown_because` is the reason
    why the table names no maximum output, where that is meant: no operation that writes tokens serves it.
    """

    id: str
    context_tokens: int
    max_output_tokens: int
    limit_unknown_because: str | None = None
    has_own_limit: bool = True
    """Whether the table names the maximum output, rather than the default standing in for it."""


@immutable
class PricedLine:
    """One model's counts and the pico-USD per unit each was charged at; both have the same keys, but for TERMS, which
    count nothing."""

    model: str
    counts: Mapping[str, int]
    modifiers: Mapping[str, str]
    unit_prices: Mapping[str, int]


@immutable
class Priced:
    """What a usage costs. `flags` name what had no price (`"unpriced_model:claude-x"`) and was booked at
    the dearest known rate; empty when everything was priced."""

    cost_nanousd: int
    lines: tuple[PricedLine, ...]
    flags: tuple[str, ...]
    tokens: TokenCounts = field(init=False, compare=False)
    """Of all lines together: the entry, the log and the minute's tokens ask for them."""

    def __post_init__(self) -> None:
        self.tokens = token_counts(self.lines)  # type: ignore[misc]  # while it is made


@immutable
class Tier:
    """Unit prices of requests whose prompt is longer than `above_prompt_tokens`. They hold for every token
    of such a request, not for those above (a cliff)."""

    above_prompt_tokens: int
    units: Mapping[str, int]


@immutable
class Period:
    """Prices from the start of `starts_on` (UTC) until the next period; None: since ever. The first tier
    holds for every prompt, the others ascend."""

    starts_on: date | None
    tiers: tuple[Tier, ...]


@immutable
class ModifierRate:
    """What `modifier=value` does to a model's prices from `starts_on`; before that it has no price.

    Either `times` (numerator, denominator) multiplies every token price, or `tiers` replaces the prices
    of the units it names.
    """

    modifier: str
    value: str
    starts_on: date | None
    times: tuple[int, int] | None
    tiers: tuple[Tier, ...]


@immutable
class ModelRates:
    """All that the table knows of a model, for people."""

    info: ModelInfo
    periods: tuple[Period, ...]
    modifiers: tuple[ModifierRate, ...]


@dataclass(slots=True, eq=False)
class PriceFileError(Exception):
    """A price table cannot be used: which key, what stands there, what should."""

    key: str
    given: object
    expected: str

    def __str__(self) -> str:
        return (
            f"price table: {self.key}: given {repr(self.given)[:GIVEN_CHARS_MAX]}, expected {self.expected}"
        )


def recompute(lines: Iterable[PricedLine]) -> int:
    """The cost in nano-USD of lines as they were stored with an entry."""
    return nanousd_of_picousd(
        sum(
            _on_terms(
                sum(count * line.unit_prices[unit] for unit, count in line.counts.items()), line.unit_prices
            )
            for line in lines
        )
    )


# --- the table ----------------------------------------------------------------------------------------


class PriceTable:
    """Prices of all vendors, immutable after loading; `price` is made for the hot path."""

    __slots__ = ("_dearest", "_found", "_resolutions", "_vendors", "as_of", "version")

    def __init__(self, version: str, vendors: Mapping[str, "_Vendor"], as_of: date | None = None) -> None:
        self.version = version
        """Names date, source and content of the table; kept with every entry."""
        self.as_of = as_of
        """The day on which the table was last checked against its sources; None when it does not say."""
        self._vendors = vendors
        self._dearest = _dearest_of(vendor.dearest for vendor in vendors.values())
        self._resolutions: dict[tuple[Any, ...], tuple[_Resolved, ...]] = {}
        self._found: dict[tuple[str, str], ModelRates | None] = {}

    @classmethod
    def load(cls, path: Path | None = None) -> "PriceTable":
        """Read the table at `path`, or the packaged one, which is read once. Raises PriceFileError."""
        return _packaged_table() if path is None else cls.of(table_content(path))

    @classmethod
    def of(cls, content: Any) -> "PriceTable":
        """The table that a file's JSON describes. Raises PriceFileError."""
        root = _Node(content, "")
        root.only("schema", "version", "as_of", "overrides", "sources", "providers")
        if root["schema"].integer() != SCHEMA:
            raise root["schema"].wrong(f"{SCHEMA}, the only shape this release reads")
        vendors = {name: _vendor_of(node) for name, node in root["providers"].items()}
        as_of = root.get("as_of")
        return cls(root["version"].text(), vendors, None if as_of is None else as_of.day())

    @property
    def providers(self) -> tuple[str, ...]:
        """The vendors that have prices."""
        return tuple(self._vendors)

    def standard_values(self, provider: str) -> Mapping[str, frozenset[str]]:
        """By modifier, the values that change no price at a vendor."""
        vendor = self._vendors.get(provider)
        return {} if vendor is None else vendor.standard_values

    def model(self, provider: str, name: str) -> ModelInfo | None:
        """The priced model that a vendor would serve under `name`; None when unknown."""
        rates = self._found.get((provider, name)) or self.rates(provider, name)
        return None if rates is None else rates.info

    def models(self, provider: str) -> tuple[ModelInfo, ...]:
        """All priced models of a vendor; none for a vendor without prices."""
        vendor = self._vendors.get(provider)
        return () if vendor is None else tuple(model.rates.info for model in vendor.models)

    def all_rates(self, provider: str) -> tuple[ModelRates, ...]:
        """Everything the table knows of every model of a vendor, none for a vendor without prices."""
        vendor = self._vendors.get(provider)
        return () if vendor is None else tuple(model.rates for model in vendor.models)

    def rates(self, provider: str, name: str) -> ModelRates | None:
        """Every period, tier and modifier of a model; None when unknown."""
        key = (provider, name)
        if key in self._found:
            return self._found[key]
        vendor = self._vendors.get(provider)
        rates = None if vendor is None else vendor.find(name)
        if len(name) <= MODEL_NAME_CHARS_MAX:
            if len(self._found) >= RESOLUTIONS_MAX:
                self._found.clear()
            self._found[key] = rates
        return rates

    def unit_prices(
        self,
        provider: str,
        name: str,
        *,
        at_ms: int,
        prompt_tokens: int = 0,
        modifiers: Mapping[str, str] | None = None,
    ) -> Mapping[str, int] | None:
        """Pico-USD per unit of the price list that holds at an instant, for a prompt so long; None where a
        usage would be flagged. What the list has no line for may still be priced: see GENERAL_UNITS."""
        resolved = self._resolve(provider, name, modifiers or {}, at_ms)
        return None if resolved.flags else _tier_for(resolved.tiers, prompt_tokens).units

    def price(self, provider: str, usage: Usage, *, at_ms: int) -> Priced:
        """The cost of a usage at an instant, each line by its own model. Never raises: what has no price is
        booked at the dearest known rate and flagged."""
        picousd = 0
        lines: list[PricedLine] = []
        flags: list[str] = []
        for line in usage.lines:
            line_picousd, counts, unit_prices = self._charge(provider, line, at_ms, flags)
            picousd += line_picousd
            modifiers = line.modifiers
            lines.append(PricedLine(line.model, counts, dict(modifiers) if modifiers else {}, unit_prices))
        return Priced(nanousd_of_picousd(picousd), tuple(lines), tuple(dict.fromkeys(flags)) if flags else ())

    def cost(self, provider: str, usage: Usage, *, at_ms: int) -> tuple[int, tuple[str, ...]]:
        """What `price` says of cost (nano-USD) and flags, without the breakdown: for a hold, of which no entry tells."""
        picousd = 0
        flags: list[str] = []
        for line in usage.lines:
            resolved = self._resolve(provider, line.model, line.modifiers, at_ms)
            units, plain_picousd, counted = resolved.plain_units, 0, 0
            for unit, count in line.counts.items():
                if count <= 0 or unit not in units:
                    break
                plain_picousd += count * units[unit]
                counted += count
            else:
                if counted <= resolved.plain_until:
                    picousd += plain_picousd
                    continue
            picousd += self._charge(provider, line, at_ms, flags)[0]
        return nanousd_of_picousd(picousd), tuple(dict.fromkeys(flags)) if flags else ()

    def unpriced(self, provider: str, usage: Usage, *, at_ms: int) -> tuple[str, ...]:
        """The flags that pricing this usage would raise; admission refuses when there are any."""
        return self.cost(provider, usage, at_ms=at_ms)[1]

    def _charge(
        self, provider: str, line: UsageLine, at_ms: int, flags: list[str]
    ) -> tuple[int, dict[str, int], dict[str, int]]:
        """What a line costs in pico-USD, what of it counts, and at which unit prices. `flags` gets what has no price."""
        resolved = self._resolve(provider, line.model, line.modifiers, at_ms)
        counts, units = line.counts, resolved.plain_units
        picousd, tokens, unit_prices = 0, 0, {}
        for unit, count in counts.items():
            if count <= 0 or unit not in units:
                break
            unit_prices[unit] = unit_price = units[unit]
            picousd += count * unit_price
            tokens += count
        else:
            if tokens <= resolved.plain_until:
                return picousd, dict(counts), unit_prices
        return self._charge_by_all_rules(provider, resolved, counts, flags)

    def _charge_by_all_rules(
        self, provider: str, resolved: "_Resolved", counts: Mapping[str, int], flags: list[str]
    ) -> tuple[int, dict[str, int], dict[str, int]]:
        if resolved.flags:
            flags += resolved.flags
        units = _units_for(resolved.tiers, counts)
        picousd, counted, unit_prices = 0, {}, {}
        for unit, count in counts.items():
            if count > 0:
                unit_price = units.get(unit)
                if unit_price is None:
                    unit_price = self._rate_beside(provider, units, unit, flags)
                counted[unit], unit_prices[unit] = count, unit_price
                picousd += count * unit_price
        if resolved.has_terms:
            unit_prices |= {term: units[term] for term in TERMS if term in units}
            picousd = _on_terms(picousd, unit_prices)
        return picousd, counted, unit_prices

    def _rate_beside(self, provider: str, units: Mapping[str, int], unit: str, flags: list[str]) -> int:
        """What a unit costs that its price list has no line for; what nothing has a price for is added to `flags`."""
        unit_price = _general_rate(units, unit)
        if unit_price is None:
            flags.append(f"unpriced_unit:{unit}")
            unit_price = self._dearest_rate(provider, unit)
        return unit_price

    def _resolve(self, provider: str, name: str, modifiers: Mapping[str, str], at_ms: int) -> "_Resolved":
        """The prices that hold at an instant: the first that have begun, the last of which began long ago."""
        key: tuple[Any, ...] = (provider, name, *sorted(modifiers.items())) if modifiers else (provider, name)
        found = self._resolutions.get(key) or self._resolve_anew(key, provider, name, modifiers)
        newest = found[0]
        return newest if newest.from_ms <= at_ms else next(one for one in found if one.from_ms <= at_ms)

    def _resolve_anew(
        self, key: tuple[Any, ...], provider: str, name: str, modifiers: Mapping[str, str]
    ) -> tuple["_Resolved", ...]:
        """What is remembered under `key` from now on: by when they begin, the newest first."""
        if len(self._resolutions) >= RESOLUTIONS_MAX:
            self._resolutions.clear()
        found = self._resolutions[key] = self._all_resolved(provider, name, modifiers)
        return found

    def _all_resolved(
        self, provider: str, name: str, modifiers: Mapping[str, str]
    ) -> tuple["_Resolved", ...]:
        vendor = self._vendors.get(provider)
        rates = self.rates(provider, name)
        if vendor is None or rates is None:
            flag = f"unpriced_model:{name[:MODEL_NAME_CHARS_MAX]}"
            return (_Resolved(_ALWAYS_MS, (flag,), self._dearest_tiers(provider)),)
        wanted = vendor.without_standard_values(modifiers)
        starts = {period.starts_on for period in rates.periods}
        starts |= {rate.starts_on for rate in rates.modifiers if (rate.modifier, rate.value) in wanted}
        return tuple(
            self._resolved_on(provider, rates, wanted, starts_on)
            for starts_on in sorted(starts, key=_ms_of_start, reverse=True)
        )

    def _resolved_on(
        self, provider: str, rates: ModelRates, wanted: Sequence[tuple[str, str]], starts_on: date | None
    ) -> "_Resolved":
        from_ms = _ms_of_start(starts_on)
        tiers = next(p.tiers for p in reversed(rates.periods) if _ms_of_start(p.starts_on) <= from_ms)
        applied = [_modifier_on(rates, modifier, value, from_ms) for modifier, value in wanted]
        flags = tuple(
            f"unpriced_modifier:{modifier}={value}"
            for (modifier, value), rate in zip(wanted, applied, strict=True)
            if rate is None
        )
        known = [rate for rate in applied if rate is not None]
        replacing = [rate for rate in known if rate.times is None]
        if len(replacing) > 1:  # Two price lists for one request: no vendor says which holds.
            flags += ("unpriced_modifier:" + "+".join(f"{r.modifier}={r.value}" for r in replacing),)
        if flags:
            return _Resolved(from_ms, flags, self._dearest_tiers(provider))
        for rate in replacing:
            tiers = _replaced(tiers, rate.tiers)
        for rate in known:
            if rate.times is not None:
                tiers = _multiplied(tiers, rate.times)
        return _Resolved(from_ms, (), tiers)

    def _dearest_tiers(self, provider: str) -> tuple[Tier, ...]:
        return (Tier(0, self._dearest_rates(provider)),)

    def _dearest_rates(self, provider: str) -> Mapping[str, int]:
        vendor = self._vendors.get(provider)
        return self._dearest if vendor is None else vendor.dearest

    def _dearest_rate(self, provider: str, unit: str) -> int:
        """The dearest rate of a unit; of a unit nobody prices, that of its kind (tokens, or anything else)."""
        for rates in (self._dearest_rates(provider), self._dearest):
            if unit in rates:
                return rates[unit]
        is_tokens = unit.endswith(_TOKENS)
        kin = [rate for name, rate in self._dearest.items() if name.endswith(_TOKENS) == is_tokens]
        return max(kin or self._dearest.values(), default=0)


@immutable
class _Resolved:
    """Final prices of one model under given modifiers, from an instant on."""

    from_ms: int
    flags: tuple[str, ...]
    tiers: tuple[Tier, ...]
    has_terms: bool = field(init=False)
    """Any of its tiers has TERMS."""
    plain_units: Mapping[str, int] = field(init=False)
    """Of the first tier."""
    plain_until: int = field(init=False)
    """What counts no more than this in all costs these times its counts, and nothing else need be looked at."""

    def __post_init__(self) -> None:
        has_terms = any(term in tier.units for tier in self.tiers for term in TERMS)
        is_plain = not (self.flags or has_terms)
        until = self.tiers[1].above_prompt_tokens if len(self.tiers) > 1 else _NO_PROMPT_SO_LONG
        for name, value in (
            ("has_terms", has_terms),
            ("plain_units", self.tiers[0].units),
            ("plain_until", until if is_plain else -1),
        ):
            object.__setattr__(self, name, value)


@immutable
class _Model:
    rates: ModelRates
    names: tuple[tuple[re.Pattern[str], ...], ...]
    """The model is meant when all patterns of any of these are found in a name."""

    def is_named(self, name: str) -> bool:
        return any(all(pattern.search(name) for pattern in patterns) for patterns in self.names)


@immutable
class _Vendor:
    models: tuple[_Model, ...]
    standard_values: Mapping[str, frozenset[str]]
    dearest: Mapping[str, int] = field(default_factory=dict)

    def find(self, name: str) -> ModelRates | None:
        if len(name) > MODEL_NAME_CHARS_MAX or not name.isprintable():
            return None
        return next((model.rates for model in self.models if model.is_named(name)), None)

    def without_standard_values(self, modifiers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """What changes the price. Empty values count as absent: vendors send null for a field not in use."""
        return tuple(
            (modifier, value)
            for modifier, value in sorted(modifiers.items())
            if value and value not in self.standard_values.get(modifier, ())
        )


def _on_terms(picousd: int, unit_prices: Mapping[str, int]) -> int:
    """What a line costs whose counts come to so much."""
    step = unit_prices.get(ROUNDED_TO)
    if step:
        picousd = (2 * picousd + step) // (2 * step) * step
    return max(picousd, unit_prices.get(AT_LEAST, 0))


def _tier_for(tiers: Sequence[Tier], prompt_tokens: int) -> Tier:
    chosen = tiers[0]
    for tier in tiers[1:]:
        if prompt_tokens > tier.above_prompt_tokens:
            chosen = tier
    return chosen


def _general_rate(units: Mapping[str, int], unit: str) -> int | None:
    """What a unit costs that a price list has no line for; None when no other line holds for it."""
    return next((units[general] for general in GENERAL_UNITS.get(unit, ()) if general in units), None)


def _with_general_rates(units: Mapping[str, int]) -> dict[str, int]:
    """A price list with a line for everything it charges for."""
    general = {unit: rate for unit in GENERAL_UNITS if (rate := _general_rate(units, unit)) is not None}
    return {**general, **units}


def _units_for(tiers: Sequence[Tier], counts: Mapping[str, int]) -> Mapping[str, int]:
    """The price list for a prompt as long as its counts: everything read, from a cache or not, and everything written
    to one."""
    if len(tiers) == 1:
        return tiers[0].units
    prompt_tokens = sum([count for unit, count in counts.items() if count > 0 and is_prompt_unit(unit)])
    return _tier_for(tiers, prompt_tokens).units


@lru_cache(maxsize=UNITS_MAX)
def is_prompt_unit(unit: str) -> bool:
    """Whether a unit counts towards the length that price tiers look at."""
    return unit.startswith(("input_", "cache_")) and unit.endswith(_TOKENS)


def _modifier_on(rates: ModelRates, modifier: str, value: str, from_ms: int) -> ModifierRate | None:
    for rate in reversed(rates.modifiers):
        if (rate.modifier, rate.value) == (modifier, value) and _ms_of_start(rate.starts_on) <= from_ms:
            return rate
    return None


def _replaced(tiers: tuple[Tier, ...], by: tuple[Tier, ...]) -> tuple[Tier, ...]:
    """The prices of `tiers` where `by` names none; a tier of either is a tier of both."""
    starts = sorted({tier.above_prompt_tokens for tier in (*tiers, *by)})
    return tuple(
        Tier(above, {**_tier_for(tiers, above + 1).units, **_tier_for(by, above + 1).units})
        for above in starts
    )


def _multiplied(tiers: tuple[Tier, ...], times: tuple[int, int]) -> tuple[Tier, ...]:
    """Token prices times a ratio, rounded up to whole pico-USD; fees per request stay as they are."""
    numerator, denominator = times
    return tuple(
        Tier(
            tier.above_prompt_tokens,
            {
                unit: -(-price * numerator // denominator) if unit.endswith(_TOKENS) else price
                for unit, price in tier.units.items()
            },
        )
        for tier in tiers
    )


def _dearest_of(rates: Iterable[Mapping[str, int]]) -> dict[str, int]:
    dearest: dict[str, int] = {}
    for units in rates:
        for unit, price in units.items():
            dearest[unit] = max(price, dearest.get(unit, 0))
    return dearest


def _dearest_of_model(rates: ModelRates) -> dict[str, int]:
    """Per unit the most this model can cost: any date, tier and price list, under all surcharges at once."""
    standard = [period.tiers for period in rates.periods]
    special = [
        _replaced(tiers, rate.tiers) for tiers in standard for rate in rates.modifiers if rate.times is None
    ]
    dearest = _dearest_of(_with_general_rates(tier.units) for tiers in standard + special for tier in tiers)
    surcharges: dict[str, tuple[int, int]] = {}
    for rate in rates.modifiers:
        numerator, denominator = surcharges.get(rate.modifier, (1, 1))
        if rate.times is not None and rate.times[0] * denominator > numerator * rate.times[1]:
            surcharges[rate.modifier] = rate.times
    tiers: tuple[Tier, ...] = (Tier(0, dearest),)
    for times in surcharges.values():
        tiers = _multiplied(tiers, times)
    return dict(tiers[0].units)


def _ms_of_start(starts_on: date | None) -> int:
    """Midnight UTC at which a day begins, in milliseconds since the epoch."""
    if starts_on is None:
        return _ALWAYS_MS
    return int(datetime(starts_on.year, starts_on.month, starts_on.day, tzinfo=UTC).timestamp()) * 1000


# --- reading the file ---------------------------------------------------------------------------------


@immutable
class _Node:
    """A value in the file and where it stands, so that every complaint names its place."""

    value: Any
    key: str

    def wrong(self, expected: str) -> PriceFileError:
        return PriceFileError(self.key or "the file", self.value, expected)

    def __getitem__(self, name: str) -> "_Node":
        """A value that must be there."""
        fields = self.fields()
        place = f"{self.key}.{name}".lstrip(".")
        if name not in fields:
            raise PriceFileError(place, None, "a value (the key is missing)")
        return _Node(fields[name], place)

    def get(self, name: str) -> "_Node | None":
        """A value that may be absent or null."""
        return self[name] if self.fields().get(name) is not None else None

    def fields(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return self.value

    def only(self, *names: str) -> None:
        """Refuse keys that nobody reads: a misspelt one would silently count as absent."""
        for name in self.fields():
            if name not in names:
                raise self[name].wrong(f"no such key, only {', '.join(names)}")

    def items(self) -> Iterator[tuple[str, "_Node"]]:
        return ((name, self[name]) for name in self.fields())

    def elements(self) -> list["_Node"]:
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [_Node(value, f"{self.key}[{index}]") for index, value in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value:
            raise self.wrong("a non-empty string")
        return self.value

    def integer(self, at_least: int = 0) -> int:
        if type(self.value) is not int or self.value < at_least:  # A bool is no number here.
            raise self.wrong(f"an integer, at least {at_least}")
        return self.value

    def day(self) -> date:
        try:
            return date.fromisoformat(self.text())
        except ValueError:
            raise self.wrong("a date as YYYY-MM-DD") from None

    def pattern(self, template: str = "{}") -> re.Pattern[str]:
        try:
            return re.compile(template.format(self.text()))
        except re.error as error:
            raise self.wrong(f"a regular expression ({error})") from None


@cache
def _packaged_table() -> PriceTable:
    return PriceTable.of(table_content(None))


def table_content(path: Path | None) -> Any:
    """The table at `path`, or the packaged one, as JSON that nobody has looked at. Raises PriceFileError."""
    source = resources.files("metering").joinpath("prices.json") if path is None else path
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise PriceFileError("the file", str(source), f"a readable file ({error.strerror})") from error
    except ValueError as error:
        raise PriceFileError("the file", str(source), f"JSON in UTF-8 ({error})") from error


def _vendor_of(node: _Node) -> _Vendor:
    node.only("models", "sources", "standard_values", "version_suffix")
    suffix = node["version_suffix"].pattern("(?:{})?").pattern
    models = tuple(_model_of(model, suffix) for model in node["models"].elements())
    if not models:
        raise node["models"].wrong("at least one model")
    standard_values = {
        modifier: frozenset(value.text() for value in values.elements())
        for modifier, values in node["standard_values"].items()
    }
    dearest = _dearest_of(_dearest_of_model(model.rates) for model in models)
    return _Vendor(models, standard_values, dearest)


def _model_of(node: _Node, suffix: str) -> _Model:
    node.only(
        "id", "context_tokens", "match", "max_output_tokens", "modifiers", "prices", "limit_unknown_because"
    )
    context, output = node.get("context_tokens"), node.get("max_output_tokens")
    context_tokens = DEFAULT_CONTEXT_TOKENS if context is None else context.integer(1)
    info = ModelInfo(
        id=node["id"].text(),
        context_tokens=context_tokens,
        max_output_tokens=(
            min(DEFAULT_MAX_OUTPUT_TOKENS, context_tokens) if output is None else output.integer()
        ),
        limit_unknown_because=None
        if (reason := node.get("limit_unknown_because")) is None
        else reason.text(),
        has_own_limit=output is not None,
    )
    rates = ModelRates(
        info, _periods_of(node["prices"]), tuple(map(_modifier_of, node["modifiers"].elements()))
    )
    return _Model(rates, tuple(_patterns_of(clause, suffix) for clause in node["match"].elements()))


def _patterns_of(clause: _Node, suffix: str) -> tuple[re.Pattern[str], ...]:
    clause.only("all", "equals", "family", "regex")
    if len(clause.fields()) != 1:
        raise clause.wrong("exactly one of all, equals, family, regex")
    ((kind, node),) = clause.items()
    if kind == "all":
        return tuple(pattern for part in node.elements() for pattern in _patterns_of(part, suffix))
    if kind == "regex":
        return (node.pattern(),)
    return (re.compile(rf"\A{re.escape(node.text())}{suffix if kind == 'family' else ''}\Z"),)


def _periods_of(node: _Node) -> tuple[Period, ...]:
    periods: list[Period] = []
    for element in node.elements():
        element.only("from", "tiers", "units")
        starts_on = element.get("from")
        period = Period(None if starts_on is None else starts_on.day(), _tiers_of(element))
        if (period.starts_on is None) != (not periods):
            raise element["from"].wrong("null in the first period, a date in the others")
        if periods and _ms_of_start(period.starts_on) <= _ms_of_start(periods[-1].starts_on):
            raise element["from"].wrong("a date after that of the period before")
        periods.append(period)
    if not periods:
        raise node.wrong("at least one period")
    return tuple(periods)


def _tiers_of(node: _Node) -> tuple[Tier, ...]:
    tiers = [Tier(0, _units_of(node["units"]))]
    for element in node["tiers"].elements():
        element.only("above_prompt_tokens", "units")
        above = element["above_prompt_tokens"].integer(tiers[-1].above_prompt_tokens + 1)
        tiers.append(Tier(above, _units_of(element["units"])))
    return tuple(tiers)


def _units_of(node: _Node) -> dict[str, int]:
    units = {unit: price.integer() for unit, price in node.items()}
    if not units:
        raise node.wrong("at least one unit with its price in pico-USD")
    return units


def _modifier_of(node: _Node) -> ModifierRate:
    node.only("from", "modifier", "tiers", "times", "units", "value")
    starts_on, times = node.get("from"), node.get("times")
    return ModifierRate(
        modifier=node["modifier"].text(),
        value=node["value"].text(),
        starts_on=None if starts_on is None else starts_on.day(),
        times=None if times is None else _ratio_of(times),
        tiers=_tiers_of(node) if times is None else (),
    )


def _ratio_of(node: _Node) -> tuple[int, int]:
    match node.elements():
        case [numerator, denominator]:
            return numerator.integer(), denominator.integer(1)
    raise node.wrong("[numerator, denominator]")
