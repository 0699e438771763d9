"""Answers and requests of our own making, in Gemini's shapes."""

import json

from metering.clock import utc
from metering.prices import PriceTable
from metering.usage import INPUT, OUTPUT, Usage, UsageLine
from proxy.surface import AnswerHead, Demand, Inbound, Pricing
from routes.gemini_usage import observe

NOW_MS = 1_795_000_000_000
assert utc(NOW_MS).year == 2026

MODEL = "gemini-2.5-flash"
SSE = "text/event-stream"
JSON = "application/json; charset=UTF-8"
TABLE = PriceTable.load()


def chunk(text="", *, finish=None, usage=None, model=MODEL, grounding=None, **more):
    """One answer, or one chunk of a stream."""
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    if grounding is not None:
        candidate["groundingMetadata"] = grounding
    body = {"candidates": [candidate]}
    if usage is not None:
        body["usageMetadata"] = usage
    if model is not None:
        body["modelVersion"] = model
    return {**body, "responseId": "r1", **more}


def tokens(prompt=None, candidates=None, thoughts=None, **more):
    given = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": candidates,
        "thoughtsTokenCount": thoughts,
        **more,
    }
    return {name: value for name, value in given.items() if value is not None}


def by_modality(**counts):
    return [{"modality": modality.upper(), "tokenCount": count} for modality, count in counts.items()]


def events(*chunks):
    """As `?alt=sse` frames them."""
    return b"".join(b"data: " + json.dumps(one).encode() + b"\r\n\r\n" for one in chunks)


def listed(*chunks):
    """As a stream without `alt` writes them."""
    return json.dumps(list(chunks), indent=2).encode()


def failed(status="UNAVAILABLE", code=503):
    return {"error": {"code": code, "message": "The model is overloaded.", "status": status}}


def demand(*, model="gemini-flash-latest", ceiling=None, is_streaming=True, tier=None):
    modifiers = {"service_tier": tier} if tier else {}
    counts = {INPUT: 1_000, OUTPUT: 100} if ceiling is None else ceiling
    return Demand(
        models=(model,),
        is_streaming=is_streaming,
        ceiling=Usage((UsageLine(model, counts, modifiers),), is_exact=False),
        floor=Usage((UsageLine(model, {INPUT: 500}, modifiers),), is_exact=False),
    )


def observer(content_type=SSE, *, wanted=None, headers=()):
    given = [(b"content-type", content_type.encode())] if content_type else []
    head = AnswerHead(200, [*given, *headers])
    wanted = wanted or demand()
    return observe(wanted, head, is_sse_asked=wanted.is_streaming)


def fed(body, content_type=SSE, *, step=None, ends=True, **options):
    """An observer that has seen the body in pieces, and its proper end."""
    reader = observer(content_type, **options)
    step = step or max(len(body), 1)
    for at in range(0, len(body), step):
        reader.feed(body[at : at + step])
    if ends:
        reader.end()
    return reader


def read(body, content_type=SSE, **options):
    return fed(body, content_type, **options).usage()


def inbound(fields, *, model=MODEL, query=b"", version="v1beta", method="POST"):
    body = json.dumps(fields).encode()
    params = {"model": model, "version": version}
    return Inbound(method, params, query, [], body, fields)


def pricing(bytes_per_token=2, **options):
    return Pricing(TABLE, NOW_MS, bytes_per_token, options)
