"""What any request to OpenAI says about its cost: its model and tier, what its content may weigh, how much it may
write. The meters of the endpoints (`openai_chat`, `openai_responses`) put it together.

Facts about request fields: Python SDK 3.52.0 (`types/chat`, `types/responses`) and API guides, 2026-11.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metering.errors import Reason, Refused
from metering.prices import ModelInfo
from metering.usage import (
    CACHE_WRITE_12H,
    CACHE_WRITE_30M,
    INPUT,
    INPUT_AUDIO,
    INPUT_IMAGE,
    OUTPUT,
    OUTPUT_AUDIO,
    Usage,
    UsageLine,
)
from metering.values import immutable
from proxy.surface import Inbound, Pricing, Slicing
from routes.counting import is_number, model_named, optional_text
from routes.openai_usage import STANDARD_TIERS, UNDECIDED_TIER

PROVIDER = "openai"
DEFAULT_TIER_ENV = "OPENAI_DEFAULT_SERVICE_TIER"
DEFAULT_TIER = "default"
REGION_ENV = "OPENAI_REGION"
IMAGE_TOKENS_MAX = 50_000
"""The most one image can count as: GPT-4o mini's 2,833 and eight tiles of 5,667, its worst case; newer
models stop at 10,000 patches times 2.46 ("Images and vision" guide)."""
IMAGE_TOKENS_USUAL = 1_000
"""What an image counts as in the floor: the better part of a screenshot."""
AUDIO_CHARS_PER_TOKEN = 64
"""Of base64. A token is a tenth of a second, and a tenth of the thinnest sound the vendor takes (MP3 at
8 kbit/s) is 133 characters."""
SEARCHES_WHEN_UNSET = 20
"""Web searches held for a request without `max_tool_calls`. More than held becomes an overage."""
CALLS_MAX = 1_000
"""The largest `max_tool_calls` that is held for; it keeps a hold within 64 bits."""
CHOICES_MAX = 128
"""The vendor's own limit of `n` and `best_of`."""

_KEYS_LOOKED_FOR = frozenset(
    {
        *("image_url", "input_audio", "audio", "file_data", "file_url"),
        *("prompt_cache_breakpoint", "tools"),
    }
)
_NAMES_LOOKED_FOR = tuple(f'"{name}"'.encode() for name in sorted(_KEYS_LOOKED_FOR))
_NEVER_REASONS = re.compile(r"(?:gpt-3\.5|gpt-4|chatgpt-4o|davinci|babbage)(?:[-.o].*)?")
"""Models without hidden reasoning ("Reasoning" guide, 2026-11); of all others it is left out only where the effort is
`none`."""
_NO_EFFORT = "none"
STREAM_BYTES_PER_TOKEN = 400
"""Recorded streams have an event of 250 to 490 bytes for each token."""
_INLINE = "data:"
_LONG_TTL = "12h"


def model_of(request: Inbound, pricing: Pricing) -> tuple[str, ModelInfo]:
    """The model that a body names. Raises Refused(BAD_REQUEST | MODEL_UNAVAILABLE)."""
    return model_named(request.fields, "model", PROVIDER, pricing)


def models_of(request: Inbound, pricing: Pricing) -> tuple[str, ...]:
    """The same, for operations that cost nothing."""
    return (model_of(request, pricing)[0],)


# --- content ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Traits:
    """What the content of a request says about its cost."""

    images: int = 0
    """Inline ones, and those behind a URL, which count as much."""
    inline_chars: int = 0
    """Of the body, characters of images and sound: they are no text."""
    audio_chars: int = 0
    has_audio: bool = False
    is_unbounded: bool = False
    """Some of it is not in the body: a file by its URL, a file that is unpacked, an answer that the vendor kept."""
    is_kept_long: bool = False
    """It asks for a cache entry of twelve hours."""
    tools: list[Any] = field(default_factory=list)
    """Tools that stand in the content."""

    def prompt_tokens(self, request: Inbound, pricing: Pricing, *, tokens_per_image: int) -> int:
        text = max(len(request.body) - self.inline_chars, 0)
        return (
            -(-text // pricing.bytes_per_token)
            + self.images * tokens_per_image
            + -(-self.audio_chars // AUDIO_CHARS_PER_TOKEN)
        )


def traits_of(field: str, request: Inbound) -> Traits:
    """Look through messages or input items, whichever `field` holds them."""
    traits = Traits(is_kept_long=_is_kept_long(request.fields.get("prompt_cache_options")))
    for found in request.below(field).objects(_KEYS_LOOKED_FOR, _NAMES_LOOKED_FOR):
        if _KEYS_LOOKED_FOR.isdisjoint(found):
            continue
        _take_image(traits, found.get("image_url"))
        _take_audio(traits, found.get("input_audio"))
        if found.get("file_data") is not None or found.get("file_url") is not None:
            traits.is_unbounded = True
        if found.get("role") == "assistant" and found.get("audio") is not None:
            traits.is_unbounded = traits.has_audio = True  # It names an answer that the vendor kept.
        if _is_kept_long(found.get("prompt_cache_breakpoint")):
            traits.is_kept_long = True
        if isinstance(found.get("tools"), list):
            traits.tools += found["tools"]
    return traits


def _take_image(traits: Traits, image: Any) -> None:
    url = image.get("url") if isinstance(image, dict) else image
    if isinstance(url, str):
        traits.images += 1
        traits.inline_chars += len(url) if url.startswith(_INLINE) else 0
    elif image is not None:
        traits.is_unbounded = True


def _take_audio(traits: Traits, audio: Any) -> None:
    data = audio.get("data") if isinstance(audio, dict) else None
    if isinstance(data, str):
        traits.has_audio = True
        traits.audio_chars += len(data)
        traits.inline_chars += len(data)


def _is_kept_long(options: Any) -> bool:
    return isinstance(options, dict) and options.get("ttl") == _LONG_TTL


# --- prices -------------------------------------------------------------------------------------------


@immutable
class Rates:
    """At which rates one model may serve a request: what is held, and what is expected."""

    name: str
    pricing: Pricing
    named: Mapping[str, str]
    """Modifiers as the request has them, with the operator's defaults."""
    held: Mapping[str, str]
    """The dearest that they can become: a cheaper tier may end as the standard one."""

    def line(self, counts: Mapping[str, int]) -> UsageLine:
        return UsageLine(self.name, counts, self.held)

    def named_line(self, counts: Mapping[str, int]) -> UsageLine:
        return UsageLine(self.name, counts, self.named)

    def lines(self, counts: Mapping[str, int]) -> tuple[UsageLine, ...]:
        """The line that is held, and an empty one where what is named is something else: it must have a price, too."""
        held = self.line(counts)
        return (held,) if self.named == self.held else (held, self.named_line({}))

    def prompt_unit(self, traits: Traits, prompt_tokens: int) -> str:
        """The dearest way in which a prompt may be read. Newer models write it to a cache unasked; what asks
        for twelve hours is held at that, so that it is refused where that has no price."""
        units = self._unit_prices(prompt_tokens)
        if traits.is_kept_long and CACHE_WRITE_12H not in units:
            return CACHE_WRITE_12H
        candidates = [INPUT, CACHE_WRITE_30M]
        if traits.is_kept_long:
            candidates.append(CACHE_WRITE_12H)
        if traits.has_audio:
            candidates.append(INPUT_AUDIO)
        if traits.images or traits.is_unbounded:
            candidates.append(INPUT_IMAGE)
        return max(candidates, key=lambda unit: units.get(unit, -1))

    def output_unit(self, prompt_tokens: int, *, has_audio: bool) -> str:
        if not has_audio:
            return OUTPUT
        units = self._unit_prices(prompt_tokens)
        return max((OUTPUT, OUTPUT_AUDIO), key=lambda unit: units.get(unit, -1))

    def _unit_prices(self, prompt_tokens: int) -> Mapping[str, int]:
        return (
            self.pricing.table.unit_prices(
                PROVIDER,
                self.name,
                at_ms=self.pricing.now_ms,
                prompt_tokens=prompt_tokens,
                modifiers=self.held,
            )
            or {}
        )


def rates_of(fields: Mapping[str, Any], name: str, pricing: Pricing) -> Rates:
    """What is named is taken as it is (and refused by admission when it has no price); the operator's defaults
    only where the model has them."""
    tier = optional_text(fields, "service_tier")
    region = pricing.options.get(REGION_ENV)
    place = {"region": region} if region else {}
    if place and not _is_priced(name, place, pricing):
        place = {}
    if tier in (None, UNDECIDED_TIER):
        tier = pricing.options.get(DEFAULT_TIER_ENV) or DEFAULT_TIER
        if tier not in STANDARD_TIERS and not _is_priced(name, {"service_tier": tier}, pricing):
            tier = DEFAULT_TIER
    if tier in STANDARD_TIERS:
        return Rates(name, pricing, place, place)
    named = {**place, "service_tier": str(tier)}
    is_cheaper = _is_priced(name, named, pricing) and _cost(name, named, pricing) < _cost(
        name, place, pricing
    )
    return Rates(name, pricing, named, place if is_cheaper else named)


def _is_priced(name: str, modifiers: Mapping[str, str], pricing: Pricing) -> bool:
    usage = Usage((UsageLine(name, {}, modifiers),))
    return not pricing.table.unpriced(PROVIDER, usage, at_ms=pricing.now_ms)


def _cost(name: str, modifiers: Mapping[str, str], pricing: Pricing) -> int:
    usage = Usage((UsageLine(name, {INPUT: 1_000_000, OUTPUT: 1_000_000}, modifiers),))
    return pricing.table.price(PROVIDER, usage, at_ms=pricing.now_ms).cost_nanousd


# --- what may be written before it is seen -------------------------------------------------------------


def slicing_of(name: str, text: re.Pattern[bytes], call: re.Pattern[bytes], effort: Any) -> Slicing | None:
    """How the stream of a model can be held in slices; None where it may reason unseen, without a bound."""
    is_silent = effort == _NO_EFFORT or _NEVER_REASONS.fullmatch(name)
    return Slicing(text, call, STREAM_BYTES_PER_TOKEN) if is_silent else None


# --- fields that must be what they look like ---------------------------------------------------------


def is_streamed(fields: Mapping[str, Any]) -> bool:
    """Whether a stream is asked for. Raises Refused(BAD_REQUEST) for `"true"` or 1: who takes it for a yes would
    answer with a stream that was not asked for its usage."""
    return flag(fields, "stream")


def flag(fields: Mapping[str, Any], name: str) -> bool:
    """A field that is true or not. Raises Refused(BAD_REQUEST) for what is neither."""
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(Reason.BAD_REQUEST, f"{name}: must be a boolean.")
    return bool(value)


def tools_in(fields: Mapping[str, Any]) -> Sequence[Any]:
    """The tools of a request. Raises Refused(BAD_REQUEST) where they are no list: their types would not be seen."""
    value = fields.get("tools")
    if value is not None and not isinstance(value, list):
        raise Refused(Reason.BAD_REQUEST, "tools: must be a list.")
    return value or ()


# --- bounds that a request names ----------------------------------------------------------------------


def output_tokens(asked: Sequence[Any], info: ModelInfo) -> int:
    """The most that one choice may have: the largest bound that is asked for, at most the model's own."""
    bounds = [bound for bound in asked if is_number(bound)]
    return min(max(bounds), info.max_output_tokens) if bounds else info.max_output_tokens


def choices(fields: Mapping[str, Any], name: str) -> int:
    """How many answers are asked for, one where none is named. Raises Refused(BAD_REQUEST)."""
    value = fields.get(name)
    if value is None:
        return 1
    if not is_number(value) or not 1 <= value <= CHOICES_MAX:
        raise Refused(Reason.BAD_REQUEST, f"{name}: must be a number from 1 to {CHOICES_MAX}.")
    return value


def tool_kind(tool: Any) -> str | None:
    """The type of a tool; None for what the vendor will refuse by itself."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    return kind if isinstance(kind, str) else None


def refuse_tool(kind: str) -> Refused:
    return Refused(Reason.BAD_REQUEST, f"tools: the type {kind[:64]!r} is not offered by this gateway.")
