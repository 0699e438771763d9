"""Chat chunks, responses and requests of our own making, in OpenAI's shapes."""

import json

from metering.clock import utc
from metering.prices import PriceTable
from metering.usage import CACHE_WRITE_12H, INPUT, OUTPUT, WEB_SEARCHES, Usage, UsageLine
from proxy.surface import AnswerHead, Demand, Inbound, Pricing
from routes.openai_usage import observe_chat, observe_response

NOW_MS = 1_795_000_000_000
assert utc(NOW_MS).year == 2026

MODEL = "gpt-5.6-sol"
PRICES = PriceTable.load()
DONE = b"data: [DONE]\n\n"


def pricing(*, bytes_per_token=2, **options):
    return Pricing(PRICES, NOW_MS, bytes_per_token, options)


def inbound(fields, *, query=b""):
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return Inbound("POST", {}, query, [(b"content-type", b"application/json")], body, json.loads(body))


def demand(*, output=1_000, floor=50, searches=0, is_long=False, is_deferred=False, **modifiers):
    """A demand of MODEL; `is_long`: it asks for a cache entry of twelve hours."""
    most = {CACHE_WRITE_12H if is_long else INPUT: floor, OUTPUT: output, WEB_SEARCHES: searches}
    return Demand(
        models=(MODEL,),
        is_streaming=True,
        ceiling=Usage((UsageLine(MODEL, most, modifiers),), is_exact=False),
        floor=Usage((UsageLine(MODEL, {INPUT: floor}, modifiers),), is_exact=False),
        is_deferred=is_deferred,
    )


# --- chat ---------------------------------------------------------------------------------------------


def chat_usage(prompt, output, *, of_prompt=None, of_output=None):
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    if of_prompt is not None:
        usage["prompt_tokens_details"] = of_prompt
    if of_output is not None:
        usage["completion_tokens_details"] = of_output
    return usage


def chunk(text=None, *, usage=None, **more):
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "model": MODEL,
        "choices": choices,
        "usage": usage,
        **more,
    }


def chat_stream(*chunks, is_done=True, separators=(",", ":")):
    events = [b"data: %s\n\n" % json.dumps(one, separators=separators).encode() for one in chunks]
    return b"".join([*events, DONE] if is_done else events)


def completion(usage, **more):
    return json.dumps({"model": MODEL, "choices": [{"index": 0}], "usage": usage, **more}).encode()


# --- responses ----------------------------------------------------------------------------------------


def usage_of(inputs, output, **of_input):
    return {
        "input_tokens": inputs,
        "input_tokens_details": {"cached_tokens": 0, **of_input},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": inputs + output,
    }


def response(status="completed", *, usage=None, **more):
    return {
        "id": "resp_1",
        "object": "response",
        "status": status,
        "error": None,
        "model": MODEL,
        "output": [],
        "service_tier": "default",
        "usage": usage,
        **more,
    }


def event(kind, **fields):
    return {"type": kind, "sequence_number": 1, **fields}


def terminal(status="completed", **more):
    return event(f"response.{status}", response=response(status, **more))


STARTED = event("response.created", response=response("in_progress", service_tier="auto"))
DELTA = event("response.output_text.delta", item_id="msg_1", delta='a "response.completed" quoted')
KEEPALIVE = event("keepalive")


def response_stream(*events):
    return b"".join(
        b"event: %s\ndata: %s\n\n" % (one["type"].encode(), json.dumps(one).encode()) for one in events
    )


# --- reading ------------------------------------------------------------------------------------------


def observer(observe, content_type, wanted=None):
    return observe(wanted or demand(), AnswerHead(200, [(b"content-type", content_type.encode())]))


def fed(body, *, observe, wanted=None, step=None):
    """An observer that was fed a body, in pieces of `step` bytes."""
    is_json = body.lstrip().startswith(b"{")
    reader = observer(observe, "application/json" if is_json else "text/event-stream", wanted)
    step = step or len(body) or 1
    for at in range(0, len(body), step):
        reader.feed(body[at : at + step])
    reader.end()
    return reader


def read_chat(body, **how):
    return fed(body, observe=observe_chat, **how).usage()


def read_response(body, **how):
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    return fed(body, observe=observe_response, **how).usage()
