"""Messages and streams of our own making, in Anthropic's shapes."""

import json

from metering.clock import utc
from metering.prices import ModelInfo
from metering.usage import CACHE_WRITE_1H, CACHE_WRITE_5M, INPUT, OUTPUT, WEB_SEARCHES, Usage, UsageLine
from proxy.surface import AnswerHead, Demand, Inbound, Pricing
from routes.anthropic_usage import observe

NOW_MS = 1_795_000_000_000
assert utc(NOW_MS).year == 2026

MODEL = "claude-sonnet-5"


def stream(*events):
    """Events (dicts with a `type`) as the vendor frames them."""
    return b"".join(
        b"event: %s\ndata: %s   \n\n" % (event["type"].encode(), json.dumps(event).encode())
        for event in events
    )


def started(usage, *, model=MODEL):
    return {
        "type": "message_start",
        "message": {"model": model, "content": [], "stop_reason": None, "usage": usage},
    }


def block(kind="text", **more):
    return {"type": "content_block_start", "index": 0, "content_block": {"type": kind, **more}}


def text(words):
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": words}}


def delta(usage, stop_reason="end_turn"):
    return {"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": usage}


STOP = {"type": "message_stop"}
PING = {"type": "ping"}


def failed(kind="overloaded_error"):
    return {"type": "error", "error": {"type": kind, "message": "Overloaded"}}


def message(usage, *, stop_reason="end_turn", content=({"type": "text", "text": "hi"},), model=MODEL):
    """A whole answer."""
    body = {
        "type": "message",
        "model": model,
        "content": list(content),
        "stop_reason": stop_reason,
        "usage": usage,
    }
    return json.dumps(body).encode()


def demand(*, ttl=None, output=1_000, floor=50, searches=0):
    """A demand of MODEL; `ttl` is the cache lifetime that the request asks for."""
    bucket = {None: INPUT, "5m": CACHE_WRITE_5M, "1h": CACHE_WRITE_1H}[ttl]
    most = {bucket: floor, OUTPUT: output, WEB_SEARCHES: searches}
    return Demand(
        models=(MODEL,),
        is_streaming=True,
        ceiling=Usage((UsageLine(MODEL, most),), is_exact=False),
        floor=Usage((UsageLine(MODEL, {bucket: floor}),), is_exact=False),
    )


def observer(content_type="text/event-stream; charset=utf-8", wanted=None):
    return observe(wanted or demand(), AnswerHead(200, [(b"content-type", content_type.encode())]))


def read(body, *, wanted=None, content_type=None, step=None):
    """The usage of a body, fed in pieces of `step` bytes."""
    is_json = body.lstrip().startswith(b"{")
    reader = observer(content_type or ("application/json" if is_json else "text/event-stream"), wanted)
    step = step or len(body) or 1
    for at in range(0, len(body), step):
        reader.feed(body[at : at + step])
    reader.end()
    return reader.usage()


KNOWN = {
    MODEL: ModelInfo(MODEL, 1_000_000, 128_000),
    "claude-haiku-4-5": ModelInfo("claude-haiku-4-5", 200_000, 64_000),
    "claude-opus-4-8": ModelInfo("claude-opus-4-8", 1_000_000, 128_000),
}


class FakePrices:
    """A price table that knows a few models, and no modifier but `speed=fast` of MODEL and `inference_geo=us`
    of those not named haiku."""

    def model(self, provider, name):
        assert provider == "anthropic"
        return KNOWN.get(name)

    def unpriced(self, provider, usage, *, at_ms):
        assert (provider, at_ms) == ("anthropic", NOW_MS)
        priced = {
            ("speed", "fast", MODEL),
            *(("inference_geo", "us", name) for name in (MODEL, "claude-opus-4-8")),
        }
        asked = [(key, value, line.model) for line in usage.lines for key, value in line.modifiers.items()]
        return tuple(key for key, value, name in asked if (key, value, name) not in priced)


def inbound(fields, headers=()):
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return Inbound(
        "POST", {}, b"", [(b"content-type", b"application/json"), *headers], body, json.loads(body)
    )


def pricing(*, bytes_per_token=2, **options):
    return Pricing(FakePrices(), NOW_MS, bytes_per_token, options)
