"""What a request to OpenAI's chat completions, and to the older completions and embeddings, may cause."""

import re
from collections.abc import Sequence
from typing import Any

import orjson

from metering.usage import INPUT, OUTPUT, WEB_SEARCHES, WEB_SEARCHES_PREVIEW, Usage, UsageLine
from proxy.surface import AnswerHead, Demand, Inbound, Observer, Pricing
from routes.counting import is_number
from routes.openai_include_usage import ADDED_CHUNK, with_usage_asked_for
from routes.openai_request import (
    IMAGE_TOKENS_MAX,
    IMAGE_TOKENS_USUAL,
    Traits,
    choices,
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
from routes.openai_usage import EmbeddingsBody, observe_chat

COMPLETION_TOKENS_WHEN_UNSET = 16
"""The vendor's own default of `max_tokens` for completions (not chat)."""
EMBEDDED_TOKENS_MAX = 300_000
"""Of all inputs of one request together (API reference, "Create embeddings")."""
EMBEDDED_TOKENS_EACH_MAX = 8_192
PREVIEW_MODELS = "-search-preview"
SEARCH_MODELS = "-search-api"
"""A model with either in its name searches the web for every request."""

_CLIENT_TOOLS = ("function", "custom")
_TEXT = re.compile(rb'"(?:content|arguments|name|input|refusal|text)": ?"((?:[^"\\]+|\\.)*)')
"""Where a stream shows what was written, in chat and in completions."""
_CALL = re.compile(rb'"type": ?"(?:function|custom)"')


class ChatMeter:
    """POST /v1/chat/completions."""

    @property
    def is_free(self) -> bool:
        return False

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        """What the request may cause at most, and at least. Raises Refused(BAD_REQUEST | MODEL_UNAVAILABLE)."""
        fields = request.fields
        name, info = model_of(request, pricing)
        rates = rates_of(fields, name, pricing)
        traits = traits_of("messages", request)
        for kind in map(tool_kind, tools_in(fields)):
            if kind is not None and kind not in _CLIENT_TOOLS:
                raise refuse_tool(kind)

        context = info.context_tokens
        is_preview = PREVIEW_MODELS in name
        is_searched = is_preview or SEARCH_MODELS in name or fields.get("web_search_options") is not None
        prompt_max = traits.prompt_tokens(request, pricing, tokens_per_image=IMAGE_TOKENS_MAX)
        prompt = context if traits.is_unbounded or is_searched else min(prompt_max, context)
        is_spoken = speaks(request)
        written = output_tokens((fields.get("max_completion_tokens"), fields.get("max_tokens")), info)
        written += _predicted_tokens(fields.get("prediction"), pricing)
        counts = {
            rates.prompt_unit(traits, prompt): prompt,
            rates.output_unit(prompt, has_audio=is_spoken): written * choices(fields, "n"),
        }
        if is_searched:
            counts[WEB_SEARCHES_PREVIEW if is_preview else WEB_SEARCHES] = 1
        read_at_least = traits.prompt_tokens(request, pricing, tokens_per_image=IMAGE_TOKENS_USUAL)
        return _demand(
            request,
            ceiling=rates.lines(counts),
            floor=rates.named_line({INPUT: min(read_at_least, context)}),
            is_sliced=not is_spoken and not is_searched and fields.get("prediction") is None,
            costs_less="a lower max_completion_tokens",
        )

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:  # noqa: ARG002 - the protocol's
        return observe_chat(demand, answer)


class CompletionsMeter:
    """POST /v1/completions: one or several prompts, each answered `n` times, the best of `best_of`."""

    @property
    def is_free(self) -> bool:
        return False

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        """As ChatMeter.read."""
        fields = request.fields
        name, info = model_of(request, pricing)
        rates = rates_of(fields, name, pricing)
        prompts = _texts(fields.get("prompt"))
        asked = fields.get("max_tokens")
        written = output_tokens((COMPLETION_TOKENS_WHEN_UNSET if asked is None else asked,), info)
        written *= prompts * max(choices(fields, "n"), choices(fields, "best_of"))
        prompt = min(_tokens(request, "prompt", pricing), prompts * info.context_tokens)
        counts = {rates.prompt_unit(Traits(), prompt): prompt, OUTPUT: written}
        return _demand(
            request,
            ceiling=rates.lines(counts),
            floor=rates.named_line({INPUT: prompt}),
            is_sliced=choices(fields, "best_of") == 1,
            costs_less="a lower max_tokens",
        )

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:  # noqa: ARG002 - the protocol's
        return observe_chat(demand, answer)


class EmbeddingsMeter:
    """POST /v1/embeddings: input alone."""

    @property
    def is_free(self) -> bool:
        return False

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        """As ChatMeter.read."""
        name, _ = model_of(request, pricing)
        tokens_max = min(_texts(request.fields.get("input")) * EMBEDDED_TOKENS_EACH_MAX, EMBEDDED_TOKENS_MAX)
        tokens = min(_tokens(request, "input", pricing), tokens_max)
        line = rates_of({}, name, pricing).named_line({INPUT: tokens})
        usage = Usage((line,), is_exact=False)
        return Demand(models=(name,), ceiling=usage, floor=usage)

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:  # noqa: ARG002 - the protocol's
        return EmbeddingsBody(demand)


def _demand(
    request: Inbound, *, ceiling: Sequence[UsageLine], floor: UsageLine, is_sliced: bool, costs_less: str
) -> Demand:
    """A stream is asked for its usage where the client did not: without it nothing exact is ever told."""
    is_streaming = is_streamed(request.fields)
    body = with_usage_asked_for(request.fields, request.body) if is_streaming else None
    return Demand(
        models=(floor.model,),
        is_streaming=is_streaming,
        ceiling=Usage(tuple(ceiling), is_exact=False),
        floor=Usage((floor,), is_exact=False),
        slicing=slicing_of(floor.model, _TEXT, _CALL, request.fields.get("reasoning_effort"))
        if is_sliced and is_streaming
        else None,
        body=body,
        added_event=None if body is None else ADDED_CHUNK,
        costs_less=costs_less,
    )


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def speaks(request: Inbound) -> bool:
    """Whether sound is asked for: it costs its own rate, and the vendor keeps it for a while, to be named again."""
    modalities = request.fields.get("modalities")
    return request.fields.get("audio") is not None or "audio" in _listed(modalities)


def _predicted_tokens(prediction: Any, pricing: Pricing) -> int:
    """Predicted tokens that the model rejects are billed as output beside those it writes."""
    if prediction is None:
        return 0
    return -(-len(orjson.dumps(prediction)) // pricing.bytes_per_token)


def _texts(value: Any) -> int:
    """How many texts an input holds: a string and a list of tokens are one."""
    if not isinstance(value, list) or not value or is_number(value[0]):
        return 1
    return len(value)


def _tokens(request: Inbound, field: str, pricing: Pricing) -> int:
    """By the length of the body; a text in tokens is as long as its list."""
    value = request.fields.get(field)
    listed = sum(len(one) if isinstance(one, list) else 1 for one in _listed(value))
    return max(-(-len(request.body) // pricing.bytes_per_token), listed)
