"""What a request to OpenAI's Responses API may cause, and which objects kept by the vendor it names."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from metering.errors import Reason, Refused
from metering.usage import INPUT, OUTPUT, WEB_SEARCHES, WEB_SEARCHES_PREVIEW, Usage
from proxy.query import parameters
from proxy.surface import AnswerHead, Demand, Inbound, Observer, Pricing, Slicing
from routes.counting import is_number, optional_text
from routes.openai_request import (
    CALLS_MAX,
    IMAGE_TOKENS_MAX,
    IMAGE_TOKENS_USUAL,
    SEARCHES_WHEN_UNSET,
    flag,
    is_streamed,
    model_of,
    output_tokens,
    rates_of,
    refuse_tool,
    slicing_of,
    tool_kind,
    tools_in,
    traits_of,
)
from routes.openai_usage import observe_response

_CLIENT_TOOLS = frozenset(
    {
        *("function", "custom", "namespace", "tool_search"),
        *("local_shell", "apply_patch", "computer", "computer_use_preview"),
    }
)
"""Tools that the agent runs itself, and ways to list those: they cost their tokens."""
_WEB_SEARCH, _WEB_SEARCH_PREVIEW = "web_search", "web_search_preview"
_SHELL = "shell"
_TEXT = re.compile(rb'"delta": ?"((?:[^"\\]+|\\.)*)')
"""Where a stream shows what was written; its last events say it again."""
_CALL = re.compile(rb'"type": ?"response\.output_item\.added"')
_WHY_NOT_SHELL = (
    "tools.shell: only with the environment {'type': 'local'}; containers are shared by all users."
)
_SAYS_NOTHING = frozenset({"id", "type", "status", "role", "summary"})
"""Keys of an item that carry none of its content."""
_TRUE = (b"true", b"1")


class ResponsesMeter:
    """POST /v1/responses: tokens of one model, and web searches."""

    @property
    def is_free(self) -> bool:
        return False

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        """What the request may cause at most, and at least. Raises Refused(BAD_REQUEST | MODEL_UNAVAILABLE)."""
        fields = request.fields
        written = (fields.get("max_output_tokens"),)
        demand = _demand(request, pricing, written=written, is_compacted=_compacts(fields))
        return replace(demand, costs_less="a lower max_output_tokens")

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:  # noqa: ARG002 - the protocol's
        return observe_response(demand, answer)


class CompactMeter:
    """POST /v1/responses/compact: one pass over the conversation, that writes a shorter one."""

    @property
    def is_free(self) -> bool:
        return False

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        """As ResponsesMeter.read."""
        return _demand(request, pricing, written=(), is_compacted=False)

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:  # noqa: ARG002 - the protocol's
        return observe_response(demand, answer)


class ReplayMeter:
    """GET /v1/responses/{id}: an answer that was paid for when it was made, plain or as its stream again."""

    @property
    def is_free(self) -> bool:
        return True

    def read(self, request: Inbound, pricing: Pricing) -> Demand:  # noqa: ARG002 - the protocol's
        is_streaming = any(
            name == "stream" and value.lower() in _TRUE for name, value in parameters(request.query)
        )
        return Demand(is_streaming=is_streaming)

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:  # noqa: ARG002 - the protocol's
        return observe_response(demand, answer)


def counted_models_of(request: Inbound, pricing: Pricing) -> tuple[str, ...]:
    """For token counts: the same tools are refused, as listing a remote tool's functions would call its server;
    a model may be left out."""
    _searches(request, traits_of("input", request).tools)
    return () if request.fields.get("model") is None else (model_of(request, pricing)[0],)


def _demand(request: Inbound, pricing: Pricing, *, written: Sequence[Any], is_compacted: bool) -> Demand:
    fields = request.fields
    name, info = model_of(request, pricing)
    rates = rates_of(fields, name, pricing)
    traits = traits_of("input", request)
    searches = _searches(request, traits.tools)
    is_unbounded = (
        traits.is_unbounded
        or any(searches.values())
        or is_compacted
        or fields.get("previous_response_id") is not None
        or (request.below("input").may_hold("id") and any(map(is_reference, _items(fields))))
    )
    context = info.context_tokens
    prompt_max = traits.prompt_tokens(request, pricing, tokens_per_image=IMAGE_TOKENS_MAX)
    prompt = context if is_unbounded else min(prompt_max, context)
    one_pass = rates.line({rates.prompt_unit(traits, prompt): prompt, OUTPUT: output_tokens(written, info)})
    # Compacting is one more call of the same model, over the context so far.
    lines = [one_pass] * (2 if is_compacted else 1)
    if searches or rates.named != rates.held:  # what is named must have a price, too
        lines.append(rates.named_line(searches))
    read_at_least = traits.prompt_tokens(request, pricing, tokens_per_image=IMAGE_TOKENS_USUAL)
    floor = rates.named_line({INPUT: min(read_at_least, context)})
    return Demand(
        models=(name,),
        is_streaming=is_streamed(fields),
        ceiling=Usage(tuple(lines), is_exact=False),
        floor=Usage((floor,), is_exact=False),
        is_deferred=flag(fields, "background"),
        slicing=_slicing(fields, name) if not is_compacted and not any(searches.values()) else None,
    )


def _slicing(fields: Mapping[str, Any], name: str) -> Slicing | None:
    """Only streams can be cut, and work in the background goes on without its own."""
    reasoning = fields.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else None
    is_cut = is_streamed(fields) and not flag(fields, "background")
    return slicing_of(name, _TEXT, _CALL, effort) if is_cut else None


def _compacts(fields: Mapping[str, Any]) -> bool:
    """On its own when the conversation grows, or because the last item says so."""
    return bool(fields.get("context_management")) or any(
        item.get("type") == "compaction_trigger" for item in _items(fields)
    )


# --- tools --------------------------------------------------------------------------------------------


def _searches(request: Inbound, in_content: Sequence[Any]) -> Mapping[str, int]:
    """How many web searches to hold for, and of which kind: where a preview tool is among them, all are held and
    billed as its own, which never cost less. Refuses tools that are not offered, and instructions that are no
    text: as items they could name what the items of the input may not."""
    optional_text(request.fields, "instructions")
    kinds: set[str] = set()
    for tool in _tools(tools_in(request.fields), in_content):
        kind = tool_kind(tool)
        if kind is None or kind in _CLIENT_TOOLS:
            continue
        if kind.startswith(_WEB_SEARCH):
            kinds.add(WEB_SEARCHES_PREVIEW if kind.startswith(_WEB_SEARCH_PREVIEW) else WEB_SEARCHES)
        elif kind != _SHELL:
            raise refuse_tool(kind)
        elif not _is_local(tool.get("environment")):
            raise Refused(Reason.BAD_REQUEST, _WHY_NOT_SHELL)
    if not kinds:
        return {}
    calls = request.fields.get("max_tool_calls")
    count = min(calls, CALLS_MAX) if is_number(calls) else SEARCHES_WHEN_UNSET
    return {WEB_SEARCHES_PREVIEW if WEB_SEARCHES_PREVIEW in kinds else WEB_SEARCHES: count}


def _tools(listed: Sequence[Any], in_content: Sequence[Any]) -> Iterator[Any]:
    """Every tool, with those that a namespace groups."""
    waiting = [*listed, *in_content]
    while waiting:
        tool = waiting.pop()
        yield tool
        grouped = tool.get("tools") if isinstance(tool, dict) else None
        waiting += grouped if isinstance(grouped, list) else ()


def _is_local(environment: Any) -> bool:
    return isinstance(environment, dict) and environment.get("type") == "local"


# --- objects that the vendor keeps --------------------------------------------------------------------


def is_kept(request: Inbound) -> bool:
    """Whether the vendor keeps the response, and its items, for who asks for them by id: in the background it does
    so for a while whatever it was told, because nobody could ask for it otherwise."""
    return request.fields.get("store") is not False or request.fields.get("background") is True


def is_reference(item: Mapping[str, Any]) -> bool:
    """Whether an item of the input stands for one that the vendor keeps: it names it and carries nothing
    itself. Reasoning carries itself only encrypted."""
    if not isinstance(item.get("id"), str):
        return False
    kind = item.get("type")
    if kind == "item_reference":
        return True
    if kind == "reasoning":
        return not item.get("encrypted_content")
    return not any(value for key, value in item.items() if key not in _SAYS_NOTHING)


def _items(fields: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    listed = fields.get("input")
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else ()
