"""Errors of Brave that tell of the platform's plan and quotas, whatever shape they come in: no client sees these."""

import gzip
import zlib

import orjson
import pytest

from tests.hostile.stage import SEARCH

pytestmark = pytest.mark.asyncio(loop_scope="module")
PLAN, USED = "Enterprise 4711", 141_592_653
"""Neither stands in anything of ours by chance."""
META = {"plan": PLAN, "rate_limit": 50, "rate_current": 7, "quota_limit": 0, "quota_current": USED}
ERROR = {"id": "e1", "status": 422, "code": "VALIDATION", "detail": "No.", "meta": META}
TOLD_ERROR = {"type": "ErrorResponse", "error": ERROR, "time": 1}


def error_with(**more):
    return orjson.dumps({**TOLD_ERROR, "error": {**ERROR, **more}})


SHAPES = {
    "as documented": orjson.dumps(TOLD_ERROR),
    "with errors beside it": error_with(meta={**META, "errors": [{"loc": ["query", "q"]}]}),
    "a list": error_with(meta=[META]),
    "a text": error_with(meta=orjson.dumps(META).decode()),
    "in errors of the meta": error_with(meta={"errors": [META]}),
    "beside the meta": error_with(meta={}, account=META),
    "beside the error": orjson.dumps({"error": {"code": "VALIDATION", "detail": "No."}, "meta": META}),
    "instead of the error": orjson.dumps({"error": META}),
    "a list of errors": orjson.dumps({"error": [ERROR]}),
    "an array": orjson.dumps([TOLD_ERROR]),
    "a text in JSON": orjson.dumps(orjson.dumps(TOLD_ERROR).decode()),
    "two documents": orjson.dumps(TOLD_ERROR) * 2,
    "no number": orjson.dumps(TOLD_ERROR).replace(b'"rate_limit":50', b'"rate_limit":NaN'),
    "an error that stands twice": orjson.dumps(TOLD_ERROR)[:-1] + b',"error":{"code":"VALIDATION"}}',
    "a meta that stands twice": error_with().replace(b'"detail"', b'"meta":{},"detail"', 1).replace(b',"meta":{"plan"', b',"meta" : {"plan"'),
    "a meta in escapes": error_with().replace(b'"meta"', b'"m\\u0065ta"'),
    "a byte order mark": b"\xef\xbb\xbf" + orjson.dumps(TOLD_ERROR),
    "deep": error_with(meta={**META, "x": 1}).replace(b'"x":1', b'"x":' + b"[" * 2_000 + b"]" * 2_000),
    "cut": orjson.dumps(TOLD_ERROR)[:-20],
    "long": error_with(meta={**META, "x": "x" * 2_000_000}),
    "in a page": b"<html><pre>" + orjson.dumps(TOLD_ERROR) + b"</pre></html>",
}  # fmt: skip


@pytest.mark.parametrize("coding", ["plain", "gzip", "deflate"])
@pytest.mark.parametrize("status", [404, 422, 500])
@pytest.mark.parametrize("shape", SHAPES)
async def test_no_error_of_any_shape_tells_of_the_account(stage, shape, status, coding):
    body, headers = SHAPES[shape], b""
    if coding != "plain":
        packed = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
        body, headers = packed, b"content-encoding: %b\r\n" % coding.encode()
    stage.vendor.said = (
        b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\nx-ratelimit-limit: 50, 0\r\n" % status
        + b"X-RateLimit-Remaining: 49, 141592653\r\n%bcontent-length: %d\r\n\r\n%b"
        % (headers, len(body), body)
    )
    wire = stage.head(b"accept-encoding: gzip", method=b"GET", target=SEARCH + b"?q=a")
    (answer,) = (await stage.converse(wire, answers=1)).answers
    assert answer.status in {status, 502}
    shown = answer.body
    if answer.headers.get(b"content-encoding") == b"gzip":
        shown = gzip.decompress(shown)
    told = shown + b"".join(name + value for name, value in answer.headers.items())
    assert PLAN.encode() not in told
    assert str(USED).encode() not in told
    assert answer.headers[b"x-ratelimit-limit"] != b"50, 0"
    if answer.status != 502:
        assert orjson.loads(shown)["error"]
    await stage.gateway.quiet()
    entry = (await stage.gateway.entries())[-1]
    assert (entry["outcome"], entry["cost_nanousd"]) == ("upstream_failed", 0)
