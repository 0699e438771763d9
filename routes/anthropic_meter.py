"""What a request to the Messages API may cause: the hold it needs, and the models it may run on.

A ceiling is the sum of passes: one per model call that the request allows the vendor to make and bill.
Facts about request fields: Anthropic docs and Python SDK 2.11.0 (`message_create_params.py`), 2026-11.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from metering.errors import Reason, Refused
from metering.prices import ModelInfo
from metering.usage import (
    CACHE_WRITE_1H,
    CACHE_WRITE_5M,
    INPUT,
    OUTPUT,
    WEB_SEARCHES,
    Usage,
    UsageLine,
)
from metering.values import immutable
from proxy.json_walk import Walk
from proxy.surface import AnswerHead, Demand, Inbound, Observer, Pricing, Slicing
from routes import anthropic_usage
from routes.counting import is_number, model_named, optional_text
from routes.pdfs import more_pdf_tokens

PROVIDER = "anthropic"
DEFAULT_GEO_ENV = "ANTHROPIC_DEFAULT_INFERENCE_GEO"
DEFAULT_GEO = "global"
PDF_TOKENS_ENV = "ANTHROPIC_PDF_TOKENS"
"""A PDF's text is read, and each page is seen as a picture ("PDF support", Anthropic docs, 2026-11)."""
LONG_OUTPUT_BETA = b"output-300k"
LONG_OUTPUT_TOKENS = 300_000
"""What `anthropic-beta: output-300k-2026-03-24` raises every model's maximum to."""
SEARCHES_WHEN_UNSET = 20
"""Web searches held for a tool without `max_uses`: the vendor pauses its tool loop after ten rounds
("Server tools", pause_turn), and a round rarely searches twice. More than held becomes an overage."""
USES_MAX = 1_000
"""The largest `max_uses` that is let through; it keeps a hold within 64 bits."""
FALLBACKS_MAX = 8
PICTURE_TOKENS_MAX = 8_500
"""The most that one picture can count as: it is scaled to 2,576 pixels on its longer side and cut into patches of 28, so
there are 92 times 92 ("Vision", Anthropic docs, 2026-11; older models stop far below)."""
PICTURE_TOKENS_USUAL = 1_600
"""What a picture counts as in the floor: a screenshot, scaled as most models do."""

_CLIENT_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "browser_toolset_", "memory_")
"""Tools that the agent runs itself: they cost their tokens, which stand in the body."""
_SERVER_TOOLS = ("web_search_", "web_fetch_", "code_execution_", "tool_search_tool_")
"""Tools that the vendor runs inside the request: their results come back as input, of unknown length."""
_WEB_SEARCH = "web_search_"
_ADVISOR = "advisor_"
_TEXT = re.compile(rb'"(?:text|partial_json|name)": ?"((?:[^"\\]+|\\.)*)')
"""Where a stream shows what was written; thoughts are held by their budget."""
_CALL = re.compile(rb'"type": ?"tool_use"')
_STREAM_BYTES_PER_TOKEN = 64
"""Recorded events have some 200 bytes of framing around five tokens."""
_SLICED = Slicing(_TEXT, _CALL, _STREAM_BYTES_PER_TOKEN)
MODELS_KEPT = 256
"""Names of models of which it is remembered how they think; each has a price."""
_NEVER_SILENT = re.compile(r"claude-(?:fable|mythos)(?:[-.].*)?")
_THINKS_ONLY_IF_ASKED = re.compile(r"claude-(?:instant|2|3|(?:opus|sonnet|haiku)-4)(?:[-.].*)?")
"""Models that do not think without a `thinking` of the request. Opus 5 is the first that does (Anthropic docs "What's new
in Claude Opus 5", 2026-11); Fable and Mythos cannot be told not to."""
_INTERLEAVED_BETA = b"interleaved-thinking"
"""With it a budget of thoughts holds for each turn of a tool loop, not for the answer."""
_ROUTING = frozenset({"speed", "inference_geo", "fallbacks"})
"""Fields that change which model runs, or at what price."""
_COMPACTING = frozenset({"compaction", "context_management"})
_KEYS_LOOKED_FOR = frozenset({"cache_control", "type"})
_INLINE = "base64"
_NAMES_LOOKED_FOR = (b'"cache_control"', b'"url"', b'"tool_definition"', b'"base64"')


class MessagesMeter:
    """POST /v1/messages: tokens of one or several models, and web searches."""

    @property
    def is_free(self) -> bool:
        return False

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        """What the request may cause at most, and at least. Raises Refused(BAD_REQUEST | MODEL_UNAVAILABLE)."""
        return _Reading(request, pricing).demand()

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:  # noqa: ARG002 - the protocol's
        return anthropic_usage.observe(demand, answer)


def models_of(request: Inbound, pricing: Pricing) -> tuple[str, ...]:
    """The model that a body names, if it can be served; for operations that cost nothing."""
    name, _ = model_named(request.fields, "model", PROVIDER, pricing)
    return (name,)


@immutable
class _Pass:
    """One call of a model: where a request names it, and how much it may write."""

    name: str
    info: ModelInfo
    max_tokens: Any
    modifiers: Mapping[str, str]


@dataclass(slots=True)
class _Traits:
    """What the content of a request says about its cost."""

    bucket: str = INPUT
    """The dearest way in which the request lets its prompt be read."""
    has_content_by_url: bool = False
    inline_tools: Sequence[Any] = ()
    """Tools that messages define (beta `inline-tools-2026-09-15`)."""
    pictures: int = 0
    picture_chars: int = 0
    """Of the body, characters of inline pictures: they are no text."""
    pdfs: int = 0
    pdf_chars: int = 0
    """The same of inline documents."""


class _Reading:
    """One request, taken apart."""

    __slots__ = ("_fields", "_pricing", "_request")

    def __init__(self, request: Inbound, pricing: Pricing) -> None:
        self._request = request
        self._fields = request.fields
        self._pricing = pricing

    def demand(self) -> Demand:
        attempts = self._attempts()
        traits = _traits_of(self._request)
        tools = _tools_of(self._fields.get("tools"), traits.inline_tools)
        has_compaction = not _COMPACTING.isdisjoint(self._fields) and _compacts(self._fields)
        is_unbounded = traits.has_content_by_url or has_compaction or tools.server
        body_tokens = at_least = -(-len(self._request.body) // self._pricing.bytes_per_token)
        if traits.pictures:
            body_tokens, at_least = self._tokens_with_pictures(traits)
        if traits.pdfs:
            body_tokens += more_pdf_tokens(self._pricing, PDF_TOKENS_ENV, traits.pdfs, traits.pdf_chars)
        bucket = traits.bucket

        first = attempts[0]
        floor_tokens = min(at_least, first.info.context_tokens)
        floor = UsageLine(first.name, {bucket: floor_tokens}, first.modifiers)
        lines = []
        for attempt in attempts:
            prompt_tokens = attempt.info.context_tokens
            if body_tokens < prompt_tokens and not is_unbounded:
                prompt_tokens = body_tokens
            counts = {bucket: prompt_tokens, OUTPUT: self._output_tokens(attempt)}
            line = UsageLine(attempt.name, counts, attempt.modifiers)
            lines.append(line)
            if has_compaction:  # One more call of the same model, over the context so far.
                lines.append(line)
        if tools.searches:
            lines.append(UsageLine(first.name, {WEB_SEARCHES: tools.searches}, first.modifiers))
        if tools.advisors:
            lines += map(self._advisor_line, tools.advisors)
        # In order, each once.
        models = (first.name,) if len(lines) == 1 else tuple(dict.fromkeys([line.model for line in lines]))
        is_streaming = self._fields.get("stream") is True
        has_hidden_passes = has_compaction or tools.server or not is_streaming
        return Demand(
            models,
            is_streaming,
            Usage(tuple(lines), False),
            Usage((floor,), False),
            None if has_hidden_passes else self._slicing(attempts),
            "a lower max_tokens",
        )

    def _tokens_with_pictures(self, traits: _Traits) -> tuple[int, int]:
        """The body at most, where a picture of few bytes may be a large one, and as is to be expected."""
        per_token = self._pricing.bytes_per_token
        text = -(-(len(self._request.body) - traits.picture_chars) // per_token)
        usual = min(-(-traits.picture_chars // per_token), traits.pictures * PICTURE_TOKENS_USUAL)
        return text + traits.pictures * PICTURE_TOKENS_MAX, text + usual

    def _slicing(self, attempts: Sequence[_Pass]) -> Slicing | None:
        """How much of a stream may be written before it is seen: nothing, a budget of thoughts, or nobody knows."""
        thinking = self._fields.get("thinking")
        kind = thinking.get("type") if isinstance(thinking, dict) else thinking
        if kind is None or kind == "disabled":
            is_silent = _thinks_only_if_asked if kind is None else _can_be_silent
            return _SLICED if all(map(is_silent, [attempt.name for attempt in attempts])) else None
        budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
        if kind != "enabled" or self._has_beta(_INTERLEAVED_BETA) or not is_number(budget):
            return None
        unseen_tokens = min(budget, max(self._output_tokens(attempt) for attempt in attempts))
        return replace(_SLICED, unseen_tokens=unseen_tokens)

    def _attempts(self) -> list[_Pass]:
        """The call itself, and the fallbacks that follow where a model declines. All of them count: a hop
        that declines after it has written something is billed beside the one that takes over."""
        name, info = model_named(self._fields, "model", PROVIDER, self._pricing)
        max_tokens = self._fields.get("max_tokens")
        if _ROUTING.isdisjoint(self._fields):  # the usual case
            return [_Pass(name, info, max_tokens, self._modifiers(name, None))]
        speed = optional_text(self._fields, "speed")
        attempts = [_Pass(name, info, max_tokens, self._modifiers(name, speed))]
        for entry in _fallbacks_of(self._fields.get("fallbacks")):
            name, info = model_named(entry, "fallbacks.model", PROVIDER, self._pricing)
            modifiers = self._modifiers(name, optional_text(entry, "speed"))
            if "speed" not in entry and speed is not None:
                # It inherits the request's speed where the model has it.
                modifiers = self._if_priced(name, {**modifiers, "speed": speed}) or modifiers
            own_max = entry.get("max_tokens")
            attempts.append(_Pass(name, info, max_tokens if own_max is None else own_max, modifiers))
        return attempts

    def _modifiers(self, name: str, speed: str | None) -> Mapping[str, str]:
        """What changes the price besides the model. What is named is taken as it is (and refused by admission
        when it has no price); the operator's default region only where the model can be bound to it."""
        modifiers = {} if speed in (None, "standard") else {"speed": speed}
        geo = optional_text(self._fields, "inference_geo") if "inference_geo" in self._fields else None
        if geo is None:
            geo = self._pricing.options.get(DEFAULT_GEO_ENV) or DEFAULT_GEO
            if geo != DEFAULT_GEO and self._if_priced(name, {"inference_geo": geo}) is None:
                geo = DEFAULT_GEO
        return modifiers if geo == DEFAULT_GEO else {**modifiers, "inference_geo": geo}

    def _if_priced(self, name: str, modifiers: dict[str, str]) -> dict[str, str] | None:
        line = UsageLine(name, {INPUT: 1, OUTPUT: 1}, modifiers)
        flags = self._pricing.table.unpriced(PROVIDER, Usage((line,)), at_ms=self._pricing.now_ms)
        return None if flags else modifiers

    def _output_tokens(self, attempt: _Pass) -> int:
        asked, limit = attempt.max_tokens, attempt.info.max_output_tokens
        if is_number(asked) and asked <= limit:
            return asked
        if self._has_beta(LONG_OUTPUT_BETA):
            limit = max(limit, LONG_OUTPUT_TOKENS)
        return min(asked, limit) if is_number(asked) else limit

    def _has_beta(self, named: bytes) -> bool:
        return any(name == b"anthropic-beta" and named in value for name, value in self._request.headers)

    def _advisor_line(self, tool: Mapping[str, Any]) -> UsageLine:
        """An advisor reads the conversation each time it is asked, whatever it has grown to by then."""
        name, info = model_named(tool, "tools.advisor.model", PROVIDER, self._pricing)
        uses = _uses(tool, "advisor", default=None)
        output_tokens = self._output_tokens(_Pass(name, info, tool.get("max_tokens"), {}))
        bucket = _prompt_bucket([tool.get("caching")])
        counts = {bucket: uses * info.context_tokens, OUTPUT: uses * output_tokens}
        return UsageLine(name, counts, self._modifiers(name, None))


@lru_cache(maxsize=MODELS_KEPT)
def _can_be_silent(name: str) -> bool:
    return _NEVER_SILENT.fullmatch(name) is None


@lru_cache(maxsize=MODELS_KEPT)
def _thinks_only_if_asked(name: str) -> bool:
    return _THINKS_ONLY_IF_ASKED.fullmatch(name) is not None


# --- fields -------------------------------------------------------------------------------------------


def _fallbacks_of(value: Any) -> Sequence[Mapping[str, Any]]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise Refused(
            Reason.BAD_REQUEST,
            "fallbacks: name the models in a list; the vendor's own choice cannot be checked against a plan.",
        )
    if len(value) > FALLBACKS_MAX:
        raise Refused(Reason.BAD_REQUEST, f"fallbacks: at most {FALLBACKS_MAX} models.")
    return value


def _compacts(fields: Mapping[str, Any]) -> bool:
    if fields.get("compaction") is not None:
        return True
    management = fields.get("context_management")
    edits = management.get("edits") if isinstance(management, dict) else None
    if not isinstance(edits, list):
        return False
    kinds = [edit.get("type") for edit in edits if isinstance(edit, dict)]
    return any(isinstance(kind, str) and kind.startswith("compact_") for kind in kinds)


@immutable
class _Tools:
    """Tools whose cost the body does not show."""

    server: bool
    searches: int
    advisors: Sequence[Mapping[str, Any]]


_NO_TOOLS = _Tools(server=False, searches=0, advisors=())


def _tools_of(listed: Any, inline: Sequence[Any]) -> _Tools:
    if not listed and not inline:
        return _NO_TOOLS
    server = False
    searches = 0
    advisors = []
    for tool in (*(listed if isinstance(listed, list) else ()), *inline):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(kind, str) or kind.startswith(_CLIENT_TOOLS):
            continue
        server = True
        if kind.startswith(_ADVISOR):
            advisors.append(tool)
        elif not kind.startswith(_SERVER_TOOLS):
            raise Refused(
                Reason.BAD_REQUEST, f"tools: the type {kind[:64]!r} is not offered by this gateway."
            )
        elif kind.startswith(_WEB_SEARCH):
            searches += _uses(tool, "web_search", default=SEARCHES_WHEN_UNSET)
    return _Tools(server, searches, advisors)


def _uses(tool: Mapping[str, Any], name: str, *, default: int | None) -> int:
    uses = tool.get("max_uses")
    if uses is None and default is not None:
        return default
    if not is_number(uses) or uses > USES_MAX:
        raise Refused(Reason.BAD_REQUEST, f"tools.{name}.max_uses: a number up to {USES_MAX} is required.")
    return uses


def _traits_of(request: Inbound) -> _Traits:
    """Look where caching, content by URL and inline tools can stand: at the top, on tools, in the content."""
    fields = request.fields
    traits = _Traits()
    cache_controls = [fields["cache_control"]] if "cache_control" in fields else []
    tools = fields.get("tools")
    if isinstance(tools, list):
        cache_controls += [tool.get("cache_control") for tool in tools if isinstance(tool, dict)]
    for key in ("system", "messages"):
        if type(fields.get(key)) in (list, dict):
            walk = request.below(key)
            if found := walk.objects(_KEYS_LOOKED_FOR, _NAMES_LOOKED_FOR):
                cache_controls += _look_through(walk, found, traits)
                if key == "messages" and _INLINE in walk.texts_at("type"):
                    _take_inline(fields[key], traits)
    if cache_controls:
        traits.bucket = _prompt_bucket(cache_controls)
    return traits


def _look_through(walk: Walk, found: Sequence[Mapping[str, Any]], traits: _Traits) -> Sequence[Any]:
    """Note what else the objects found say; return what asks for cache entries."""
    kinds = walk.texts_at("type")
    if "url" in kinds:
        traits.has_content_by_url = True
    if "tool_definition" in kinds:
        inline = [one.get("definition") for one in found if one.get("type") == "tool_definition"]
        traits.inline_tools = (*traits.inline_tools, *inline)
    if not walk.has_met("cache_control"):
        return ()
    return [one["cache_control"] for one in found if "cache_control" in one]


def _take_inline(messages: Any, traits: _Traits) -> None:
    """Only where the vendor reads them as such; in a tool's arguments, what looks the same is text."""
    blocks = [block for message in _objects(messages) for block in _objects(message.get("content"))]
    while blocks:
        block = blocks.pop()
        kind, source = block.get("type"), block.get("source")
        if kind == "tool_result":
            blocks += _objects(block.get("content"))
        elif kind == "document" and isinstance(source, dict) and source.get("type") == "content":
            blocks += _objects(source.get("content"))
        elif isinstance(source, dict) and source.get("type") == _INLINE:
            media_type, data = source.get("media_type"), source.get("data")
            if not isinstance(media_type, str) or not isinstance(data, str):
                continue
            if kind == "image" and media_type.startswith("image/"):
                traits.pictures += 1
                traits.picture_chars += len(data)
            elif kind == "document":
                traits.pdfs += 1
                traits.pdf_chars += len(data)


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _prompt_bucket(cache_controls: Sequence[Any]) -> str:
    """The dearest way in which the request lets its prompt be read; a cache entry lives five minutes where it does
    not say how long."""
    bucket = INPUT
    for control in cache_controls:
        if isinstance(control, dict) and control.get("ttl") == "1h":
            return CACHE_WRITE_1H
        if control is not None:
            bucket = CACHE_WRITE_5M
    return bucket
