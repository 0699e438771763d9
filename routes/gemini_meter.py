"""What a request to Gemini may cause: the hold it needs, the model it runs on, and what is refused before it goes.

Bodies are JSON of protocol buffers, which may name every field in two ways (`generationConfig` and
`generation_config`), write numbers as text, and give one object where a list is meant: each is read here in all
the ways that the vendor reads it, and a field that stands in both names is refused. Facts about fields:
google-genai 3.4.0 (`types.py`, `models.py`) and Google's docs, 2026-11.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from metering.errors import Reason, Refused
from metering.prices import ModelInfo
from metering.usage import (
    INPUT,
    INPUT_AUDIO,
    INPUT_IMAGE,
    INPUT_VIDEO,
    MAPS_SEARCHES,
    OUTPUT,
    OUTPUT_AUDIO,
    OUTPUT_IMAGE,
    OUTPUT_UNITS,
    OUTPUT_VIDEO,
    WEB_SEARCHES,
    Usage,
    UsageLine,
)
from metering.values import immutable
from proxy.query import parameters
from proxy.surface import AnswerHead, Demand, Inbound, Observer, Pricing, Slicing
from routes import gemini_usage
from routes.pdfs import more_pdf_tokens

PROVIDER = "gemini"
SEARCHES_HELD = 20
"""Searches held for a tool that may search: the vendor names no maximum, and rarely makes more in an answer.
More than held becomes an overage."""
CANDIDATES_MAX = 8
"""The vendor's own maximum; it also keeps a hold within 64 bits."""
MEDIA_TOKENS_MIN = 2_240
"""A picture, sound or document counts at least so much, however few bytes it has: a picture at the highest
`mediaResolution` (Gemini docs "Media resolution", 2026-11)."""
PICTURE_TOKENS_MAX = 10_000
"""The most that the bytes of one inline picture are held as: 38 of the 258-token tiles that the vendor cuts it into
(Gemini docs "Image understanding", 2026-11), above any screenshot's."""
PICTURE_TOKENS_USUAL = 1_120
"""What a picture counts as in the floor: the default of newer models."""
PDF_TOKENS_ENV = "GEMINI_PDF_TOKENS"
"""A PDF of up to 1,000 pages is seen page by page ("Document understanding", Gemini docs, 2026-11)."""
_PDF = re.compile(r"\s*application/pdf\b", re.IGNORECASE)
MODEL_NAME_CHARS_MAX = 128
URI_CHARS_MAX = 2_048

_CLIENT_TOOLS = frozenset({"functionDeclarations", "computerUse"})
"""Tools that the agent runs itself: they cost their tokens, which stand in the body."""
_SERVER_TOOLS = frozenset(
    {"googleSearch", "googleSearchRetrieval", "googleMaps", "codeExecution", "urlContext"}
)
"""Tools that the vendor runs inside the request: what they find is read as input, of unknown length."""
_SEARCH_TOOLS = frozenset({"googleSearch", "googleSearchRetrieval"})
_TIERS = frozenset({"", "flex", "priority"})
_TEXT = re.compile(rb'"text": ?"((?:[^"\\]+|\\.)*)')
"""Where a stream shows what was written, where no tools are offered: arguments of calls are objects, of any depth."""
_CALL = re.compile(rb'"functionCall"')
_STREAM_BYTES_PER_TOKEN = 100
"""Events have some 300 bytes of framing, around ten tokens and more."""
_THINKS_AS_TOLD = re.compile(r"gemini-2\.5-flash(?:-.*)?")
"""Models that keep to a budget of thoughts, 0 included; others round it or need some ("Thinking", 2026-11)."""
_NEVER_THINKS = re.compile(r"(?:gemini-(?:1\.|2\.0)|gemma).*")
"""Models from before thinking ("Thinking", Gemini docs, 2026-11)."""
_PUBLIC_URL = re.compile(
    r"https://(?P<host>(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9])(?:/[!-\[\]-~]*)?"
)
"""An https URL that every parser reads alike: a plain host name, no port, no user, no backslash."""
_VENDORS_HOSTS = ("google.com", "googleapis.com", "googleusercontent.com", "goog", "google", "gle")
"""Hosts below which the account's own files are reached."""
_UNITS_OF_MIME = {
    "audio": (INPUT_AUDIO,),
    "image": (INPUT_IMAGE,),
    "video": (INPUT_VIDEO, INPUT_AUDIO),
}
_UNIT_OF_MODALITY = {"TEXT": OUTPUT, "IMAGE": OUTPUT_IMAGE, "AUDIO": OUTPUT_AUDIO, "VIDEO": OUTPUT_VIDEO}


class GenerateMeter:
    """generateContent and streamGenerateContent: tokens of one model, searches of the web and of maps."""

    def __init__(self, *, is_streaming: bool) -> None:
        self._is_streaming = is_streaming

    @property
    def is_free(self) -> bool:
        return False

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        """What the request may cause at most, and at least. Raises Refused(BAD_REQUEST | MODEL_UNAVAILABLE)."""
        check_alt(request, ("json", "sse") if self._is_streaming else ("json",))
        return _Reading(request, pricing).demand(is_streaming=self._is_streaming)

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:
        return gemini_usage.observe(demand, answer, is_sse_asked=_alt(request) == [b"sse"])


class EmbedMeter:
    """embedContent and batchEmbedContents: what is embedded is input, and nothing is written."""

    @property
    def is_free(self) -> bool:
        return False

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        """As `GenerateMeter.read`."""
        check_alt(request)
        name, info = model_of(request, pricing)
        items = list(_items(request.fields, "requests")) or [request.fields]
        if items[0] is not request.fields and _one(request.fields, "content") is not None:
            raise Refused(Reason.BAD_REQUEST, "requests, content: only one of them may be given.")
        media = _Media()
        for item in items:
            _check_model(item, name)
            media.add(_items(item, "content"))
        return _embedding(request, pricing, name, info.context_tokens * len(items), media)

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:  # noqa: ARG002 - the protocol's
        return gemini_usage.observe(demand, answer, is_sse_asked=False)


# --- free operations ----------------------------------------------------------------------------------


def counted_model(request: Inbound, pricing: Pricing) -> tuple[str, ...]:
    """The model whose tokens are counted; what may not be sent to it may not be counted either."""
    check_alt(request)
    name, _ = model_of(request, pricing)
    for fields in (request.fields, *_items(request.fields, "generateContentRequest")):
        _check_model(fields, name)
        _Media().add(_contents_of(fields))
        _Tools.of(fields)
    return (name,)


def shown_model(request: Inbound, pricing: Pricing) -> tuple[str, ...]:  # noqa: ARG001 - as Free asks
    """One model of the list. A name with a colon would be a method of that model: there is none by GET."""
    check_alt(request)
    name = request.path_params["model"]
    if ":" in name:
        shown = name[:MODEL_NAME_CHARS_MAX]
        raise Refused(Reason.UNKNOWN_OPERATION, f"GET models/{shown} is not available through this proxy.")
    return ()


def no_model(request: Inbound, pricing: Pricing) -> tuple[str, ...]:  # noqa: ARG001 - as Free asks
    """For the list of all models."""
    check_alt(request)
    return ()


# --- the request around its content -------------------------------------------------------------------


def check_alt(request: Inbound, allowed: Sequence[str] = ("json",)) -> None:
    """`alt` chooses the form of the answer, and forms besides these hide its usage. Raises Refused(BAD_REQUEST)."""
    given = _alt(request)
    if len(given) > 1 or any(value.decode("latin-1") not in allowed for value in given):
        raise Refused(Reason.BAD_REQUEST, f"The query parameter 'alt' must be {' or '.join(allowed)}, once.")


def model_of(request: Inbound, pricing: Pricing) -> tuple[str, ModelInfo]:
    """The model in the path. Raises Refused(MODEL_UNAVAILABLE), in the vendor's words."""
    name = request.path_params["model"]
    info = pricing.table.model(PROVIDER, name) if len(name) <= MODEL_NAME_CHARS_MAX else None
    if info is None:
        shown = name[:MODEL_NAME_CHARS_MAX]
        version = request.path_params["version"]
        raise Refused(
            Reason.MODEL_UNAVAILABLE,
            f"models/{shown} is not found for API version {version}, or is not supported by this proxy.",
            facts={"model": shown},
        )
    return name, info


def _alt(request: Inbound) -> list[bytes]:
    return [value for name, value in parameters(request.query) if name == "alt"] if request.query else []


def _check_model(fields: Mapping[str, Any], name: str) -> None:
    """A body may name its model once more; then it is the path's."""
    given = _one(fields, "model")
    if given is not None and (not isinstance(given, str) or given.removeprefix("models/") != name):
        raise Refused(Reason.BAD_REQUEST, f"model: must be models/{name}, as in the path.")


# --- one request --------------------------------------------------------------------------------------


class _Reading:
    """One request to generate, taken apart."""

    def __init__(self, request: Inbound, pricing: Pricing) -> None:
        self._request = request
        self._pricing = pricing
        self._fields = request.fields
        self._name, self._info = model_of(request, pricing)
        self._config = _object(self._fields, "generationConfig")

    def demand(self, *, is_streaming: bool) -> Demand:
        _check_model(self._fields, self._name)
        tools = _Tools.of(self._fields)
        media = _Media()
        media.add(_contents_of(self._fields))
        tier = self._tier()
        prices = _Prices(self._pricing, self._name, tier)
        body_tokens = media.held_tokens(self._request, self._pricing)
        at_least = media.tokens_of(self._request, self._pricing, PICTURE_TOKENS_USUAL)
        context = self._info.context_tokens
        unit = prices.dearest((INPUT, *sorted(media.units)))
        is_unbounded = tools.has_server or media.is_unbounded
        prompt_tokens = context if is_unbounded else min(body_tokens, context)
        counts = {unit: prompt_tokens}
        output_tokens = self._output_tokens()
        if output_tokens:
            counts[prices.dearest(self._output_units())] = output_tokens
        if tools.may_search:
            counts[WEB_SEARCHES] = SEARCHES_HELD if gemini_usage.bills_queries(self._name) else 1
        if tools.may_use_maps:
            counts[MAPS_SEARCHES] = SEARCHES_HELD if gemini_usage.bills_queries(self._name) else 1
        floor = UsageLine(self._name, {INPUT: min(at_least, context)}, tier)
        return Demand(
            models=(self._name,),
            is_streaming=is_streaming,
            ceiling=Usage((UsageLine(self._name, counts, tier),), is_exact=False),
            floor=Usage((floor,), is_exact=False),
            slicing=self._slicing(counts) if is_streaming else None,
            costs_less="a lower maxOutputTokens",
        )

    def _slicing(self, counts: Mapping[str, int]) -> Slicing | None:
        """How much may be thought before anything is seen: nothing, a budget for each candidate, or nobody knows."""
        if not counts.get(OUTPUT) or _one(self._fields, "tools") is not None:
            return None
        thinking = _one(self._config, "thinkingConfig")
        budget = _number(_one(thinking, "thinkingBudget")) if isinstance(thinking, dict) else None
        if budget is None or budget < 0:
            return _sliced() if _NEVER_THINKS.fullmatch(self._name) else None
        if not _THINKS_AS_TOLD.fullmatch(self._name):
            return None
        return _sliced(min(budget * self._candidates(), counts[OUTPUT]))

    def _tier(self) -> Mapping[str, str]:
        given = _one(self._fields, "serviceTier")
        if given is None:
            return {}
        tier = gemini_usage.tier_of(given) if isinstance(given, str) else None
        if tier not in _TIERS:
            raise Refused(Reason.BAD_REQUEST, "serviceTier: must be standard, flex or priority.")
        return {"service_tier": tier} if tier else {}

    def _output_tokens(self) -> int:
        """Thinking is a part of `maxOutputTokens` ("Thinking", Gemini docs, 2026-11: a budget of thoughts above it
        ends an answer before its first word)."""
        limit = self._info.max_output_tokens
        asked = _number(_one(self._config, "maxOutputTokens"))
        each = min(asked, limit) if asked is not None and asked > 0 else limit
        return each * self._candidates()

    def _candidates(self) -> int:
        given = _one(self._config, "candidateCount")
        candidates = 1 if given is None else _number(given)
        if candidates is None or not 0 <= candidates <= CANDIDATES_MAX:
            raise Refused(Reason.BAD_REQUEST, f"candidateCount: a number up to {CANDIDATES_MAX} is required.")
        return max(candidates, 1)

    def _output_units(self) -> Sequence[str]:
        """What the answer may consist of: by the request, or anything where it leaves that to the model."""
        given = _one(self._config, "responseModalities")
        if given is None or given == []:
            return OUTPUT_UNITS
        names = given if isinstance(given, list) else [given]
        units = [_UNIT_OF_MODALITY.get(name.upper()) if isinstance(name, str) else None for name in names]
        return OUTPUT_UNITS if None in units else [OUTPUT, *(unit for unit in units if unit)]


def _sliced(unseen_tokens: int = 0) -> Slicing:
    return Slicing(_TEXT, _CALL, _STREAM_BYTES_PER_TOKEN, unseen_tokens)


def _embedding(request: Inbound, pricing: Pricing, name: str, context: int, media: "_Media") -> Demand:
    body_tokens = media.held_tokens(request, pricing)
    at_least = media.tokens_of(request, pricing, PICTURE_TOKENS_USUAL)
    unit = _Prices(pricing, name, {}).dearest((INPUT, *sorted(media.units)))
    tokens = context if media.is_unbounded else min(body_tokens, context)
    floor = UsageLine(name, {INPUT: min(at_least, context)})
    return Demand(
        models=(name,),
        ceiling=Usage((UsageLine(name, {unit: tokens}),), is_exact=False),
        floor=Usage((floor,), is_exact=False),
    )


@immutable
class _Prices:
    """A model's price list on the day of the request."""

    pricing: Pricing
    name: str
    modifiers: Mapping[str, str]

    def dearest(self, units: Sequence[str]) -> str:
        """Of these units the one that costs most; the first of those that cost the same."""
        if len(units) == 1:
            return units[0]
        prices = self.pricing.table.unit_prices(
            PROVIDER, self.name, at_ms=self.pricing.now_ms, modifiers=self.modifiers
        )
        return max(units, key=lambda unit: (prices or {}).get(unit, 0))


# --- tools --------------------------------------------------------------------------------------------


@immutable
class _Tools:
    """What the tools of a request may cost that its body does not show."""

    has_server: bool
    may_search: bool
    may_use_maps: bool

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "_Tools":
        """Raises Refused(BAD_REQUEST) for tools that are not offered."""
        names = set()
        for tool in _items(fields, "tools"):
            for key, value in tool.items():
                if value is not None:
                    names.add(_camel(key))
        for name in sorted(names - _CLIENT_TOOLS - _SERVER_TOOLS):
            raise Refused(Reason.BAD_REQUEST, f"tools: {name[:64]!r} is not offered by this gateway.")
        return cls(
            has_server=bool(names & _SERVER_TOOLS),
            may_search=bool(names & _SEARCH_TOOLS),
            may_use_maps="googleMaps" in names,
        )


# --- content ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Media:
    """What the parts of a request say about its cost besides their bytes."""

    units: set[str] = field(default_factory=set)
    more_tokens: int = 0
    is_unbounded: bool = False
    """It reads a film, or something by its URL: nothing in the body shows how long that is."""
    pictures: int = 0
    picture_chars: int = 0
    """Of the body, characters of inline pictures: however many they are, a picture is only so much."""

    pdfs: int = 0
    pdf_chars: int = 0

    def held_tokens(self, request: Inbound, pricing: Pricing) -> int:
        """What all of the request may count as, when the operator has a PDF hold more than its bytes do."""
        tokens = self.tokens_of(request, pricing, PICTURE_TOKENS_MAX) + self.more_tokens
        return tokens + more_pdf_tokens(pricing, PDF_TOKENS_ENV, self.pdfs, self.pdf_chars)

    def tokens_of(self, request: Inbound, pricing: Pricing, picture_tokens: int) -> int:
        """The body's length in tokens, when each picture has at most so many."""
        text = -(-max(len(request.body) - self.picture_chars, 0) // pricing.bytes_per_token)
        return text + min(-(-self.picture_chars // pricing.bytes_per_token), self.pictures * picture_tokens)

    def add(self, contents: Iterator[Mapping[str, Any]]) -> None:
        """Raises Refused(BAD_REQUEST) for what would reach a file of the account."""
        for content in contents:
            for part in _items(content, "parts"):
                if len(part) == 1 and "text" in part:  # most of them
                    continue
                self._add(part)
                for response in _items(part, "functionResponse"):
                    for inner in _items(response, "parts"):
                        self._add(inner)

    def _add(self, part: Mapping[str, Any]) -> None:
        for data in _items(part, "inlineData"):
            kind = self._add_kind(data)
            self.more_tokens += MEDIA_TOKENS_MIN
            self.is_unbounded = self.is_unbounded or kind == "video"
            sent = _one(data, "data")
            if not isinstance(sent, str):
                continue
            if kind == "image":
                self.pictures += 1
                self.picture_chars += len(sent)
            elif kind == "application" and _PDF.match(_one(data, "mimeType")):
                self.pdfs += 1
                self.pdf_chars += len(sent)
        for data in _items(part, "fileData"):
            _check_uri(_one(data, "fileUri"))
            self._add_kind(data)
            if _one(data, "mimeType") is None:  # a film on YouTube, as a rule
                self.units.update(_UNITS_OF_MIME["video"])
            self.is_unbounded = True

    def _add_kind(self, data: Mapping[str, Any]) -> str:
        mime_type = _one(data, "mimeType")
        kind = mime_type.partition("/")[0].strip().lower() if isinstance(mime_type, str) else "video"
        self.units.update(_UNITS_OF_MIME.get(kind, ()))
        return kind


def _check_uri(uri: Any) -> None:
    """A public URL is nobody's file; every other URI may be one that the account holds."""
    if uri is None:
        return
    found = _PUBLIC_URL.fullmatch(uri) if isinstance(uri, str) and len(uri) <= URI_CHARS_MAX else None
    if found is None or any(("." + found["host"]).endswith("." + host) for host in _VENDORS_HOSTS):
        raise Refused(
            Reason.BAD_REQUEST,
            "fileData.fileUri: the vendor's files are shared by all users of this gateway; send the content "
            "inline, or by a public https URL.",
        )


def _contents_of(fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from _items(fields, "contents")
    yield from _items(fields, "systemInstruction")


# --- JSON of protocol buffers -------------------------------------------------------------------------


def _one(fields: Mapping[str, Any], name: str) -> Any:
    """A field by either of its names; None when absent or null. Raises Refused(BAD_REQUEST) when it is both."""
    snake = _snake(name)
    if snake == name or snake not in fields:
        return fields.get(name)
    if name in fields:
        raise Refused(Reason.BAD_REQUEST, f"{name}: stands twice, as {snake} too.")
    return fields[snake]


def _object(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = _one(fields, name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refused(Reason.BAD_REQUEST, f"{name}: must be an object.")
    return value


def _items(fields: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    """The objects of a list, or the one that stands where a list is meant; what is neither is refused, for who
    knows how the vendor reads it."""
    value = _one(fields, name)
    for item in value if isinstance(value, list) else (value,):
        if isinstance(item, dict):
            yield item
        elif item is not None:
            raise Refused(Reason.BAD_REQUEST, f"{name}: must be an object, or a list of objects.")


def _number(value: Any) -> int | None:
    """A whole number, written as JSON of protocol buffers may write it: 8, 8.0, "8"."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if math.isfinite(number) and number == int(number) else None


@lru_cache(maxsize=1_024)
def _snake(name: str) -> str:
    return re.sub("[A-Z]", lambda found: "_" + found[0].lower(), name)


def _camel(name: str) -> str:
    return re.sub("_([a-z])", lambda found: found[1].upper(), name)
