"""Gateway tokens of every wrong kind: always 401, never a word of them in the answer, the log or the vendor."""

import logging

import orjson
import pytest

from tests.hostile.stage import MESSAGES, small_body

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = small_body()
MESSAGE_OF = {"none": "No API key was sent", "two": "Two different API keys", "bad": "invalid x-api-key"}
"""GOOD stands for the good token, OTHER for another user's good one, REVOKED for a revoked one."""
WRONG = {
    "no header at all": (b"", "none"),
    "empty": (b"x-api-key:\r\n", "none"),
    "blanks": (b"x-api-key:  \t \r\n", "none"),
    "an empty bearer": (b"authorization: Bearer\r\n", "none"),
    "a bearer of blanks": (b"authorization: Bearer    \r\n", "none"),
    "bare, without a scheme": (b"authorization: GOOD\r\n", "none"),
    "as Basic": (b"authorization: Basic GOOD\r\n", "none"),
    "as a digest's field": (b'authorization: Digest username="GOOD"\r\n', "none"),
    "in another surface's place": (b"x-goog-api-key: GOOD\r\n", "none"),
    "in a third surface's place": (b"x-subscription-token: GOOD\r\n", "none"),
    "in a cookie": (b"cookie: x-api-key=GOOD\r\n", "none"),
    "as proxy authorization": (b"proxy-authorization: Bearer GOOD\r\n", "none"),
    "with an underscore for the dash": (b"x_api_key: GOOD\r\n", "none"),
    "one character short": (b"x-api-key: GOOD-1\r\n", "bad"),
    "one character more": (b"x-api-key: GOODx\r\n", "bad"),
    "in upper case": (b"x-api-key: GOOD-UPPER\r\n", "bad"),
    "in lower case": (b"x-api-key: GOOD-LOWER\r\n", "bad"),
    "reversed": (b"x-api-key: GOOD-REVERSED\r\n", "bad"),
    "in quotes": (b'x-api-key: "GOOD"\r\n', "bad"),
    "in angle brackets": (b"x-api-key: <GOOD>\r\n", "bad"),
    "with the scheme twice": (b"authorization: Bearer Bearer GOOD\r\n", "bad"),
    "with a blank inside": (b"x-api-key: GOOD GOOD\r\n", "bad"),
    "a list of two": (b"x-api-key: GOOD, OTHER\r\n", "bad"),
    "a list of the same": (b"x-api-key: GOOD,GOOD\r\n", "bad"),
    "percent encoded": (b"x-api-key: %61mp_x\r\n", "bad"),
    "its prefix alone": (b"x-api-key: amp_\r\n", "bad"),
    "a placeholder": (b"x-api-key: undefined\r\n", "bad"),
    "null": (b"authorization: Bearer null\r\n", "bad"),
    "the vendor's key": (b"x-api-key: sk-ant-api03-simulated-vendor-key\r\n", "bad"),
    "SQL": (b"x-api-key: ' OR '1'='1' --\r\n", "bad"),
    "more SQL": (b"x-api-key: x'; DROP TABLE gateway_tokens; --\r\n", "bad"),
    "a wildcard": (b"x-api-key: %\r\n", "bad"),
    "a format string": (b"x-api-key: %s%n{0.__class__}${jndi:ldap://x}\r\n", "bad"),
    "markup": (b"x-api-key: <script>alert(1)</script>\r\n", "bad"),
    "JSON": (b'x-api-key: {"$gt":""}\r\n', "bad"),
    "UTF-8": ("x-api-key: amp_ключ\r\n".encode(), "bad"),
    "no UTF-8": (b"x-api-key: \xff\xfe\x80\r\n", "bad"),
    "the most that is hashed": (b"x-api-key: " + b"a" * 512 + b"\r\n", "bad"),
    "more than is hashed": (b"x-api-key: " + b"a" * 513 + b"\r\n", "bad"),
    "60 kB": (b"x-api-key: " + b"a" * 60_000 + b"\r\n", "bad"),
    "a hundred of them": (b"".join(b"x-api-key: t%d\r\n" % number for number in range(100)), "two"),
    "good and bad": (b"x-api-key: GOOD\r\nx-api-key: amp_bad\r\n", "two"),
    "bad and good": (b"x-api-key: amp_bad\r\nx-api-key: GOOD\r\n", "two"),
    "good, and another as bearer": (b"x-api-key: GOOD\r\nauthorization: Bearer OTHER\r\n", "two"),
    "good, and its upper case": (b"x-api-key: GOOD\r\nx-api-key: GOOD-UPPER\r\n", "two"),
    "good, and revoked": (b"x-api-key: GOOD\r\nauthorization: Bearer REVOKED\r\n", "two"),
}


def filled(stage, fields):
    good = stage.token
    for word, text in (
        ("GOOD-1", good[:-1]),
        ("GOOD-UPPER", good.upper()),
        ("GOOD-LOWER", good.lower()),
        ("GOOD-REVERSED", good[::-1]),
        ("GOOD", good),
        ("OTHER", stage.other),
        ("REVOKED", stage.revoked),
    ):
        fields = fields.replace(word.encode(), text.encode())
    return fields


async def ask(stage, fields, target=MESSAGES):
    length = b"content-length: %d\r\n" % len(BODY)
    wire = (
        b"POST " + target + b" HTTP/1.1\r\nhost: proxy\r\n" + filled(stage, fields) + length + b"\r\n" + BODY
    )
    conversation = await stage.converse(wire, answers=1)
    await stage.assert_held(wire, conversation)
    return conversation.answers[0]


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_token_is_401_and_leaves_no_trace(stage, caplog, name):
    caplog.set_level(logging.DEBUG)
    fields, kind = WRONG[name]
    answer = await ask(stage, fields)
    assert answer.status == 401
    assert answer.message.startswith(MESSAGE_OF[kind])
    assert answer.headers[b"x-should-retry"] == b"false"
    assert b'"type":"authentication_error"' in answer.body
    assert stage.vendor.requests == []
    assert all(text not in caplog.text for text in (stage.token, stage.other, stage.revoked, "jndi", "DROP"))
    (line,) = stage.gateway.lines
    assert line["reason"] == "unauthenticated"


async def test_a_head_with_a_token_of_100_kb_is_431(stage):
    answer = await ask(stage, b"x-api-key: " + b"a" * 100_000 + b"\r\n")
    assert answer.status == 431
    assert b'"type":"request_too_large"' in answer.body


async def test_a_revoked_token_is_401(stage):
    answer = await ask(stage, b"x-api-key: REVOKED\r\n")
    assert (answer.status, answer.message) == (401, "This API key is no longer valid: it was revoked.")


RIGHT = {
    "bearer in any case": b"authorization: bEaReR GOOD\r\n",
    "blanks around it": b"x-api-key: \t GOOD \t\r\n",
    "the header in capitals": b"X-API-KEY: GOOD\r\n",
    "the same in both places": b"x-api-key: GOOD\r\nauthorization: Bearer GOOD\r\n",
    "the same twice, once empty": b"x-api-key: GOOD\r\nx-api-key:\r\n",
}


@pytest.mark.parametrize("name", RIGHT)
async def test_a_right_token_oddly_written_is_taken_and_does_not_go_up(stage, name):
    assert (await ask(stage, RIGHT[name])).status == 200
    (request,) = stage.vendor.requests
    assert all(stage.token.encode() not in value for _, value in request.headers)


@pytest.mark.parametrize("query", [b"?key=GOOD", b"?x=1&apiKey=GOOD", b"?api_key=GOOD#"])
async def test_a_token_in_the_url_is_refused_whether_or_not_it_is_in_a_header_too(stage, query):
    target = filled(stage, MESSAGES + query)
    alone = await ask(stage, b"", target)
    both = await ask(stage, b"x-api-key: GOOD\r\n", target)
    assert alone.status == (400 if b"#" in query else 401)
    assert both.status == 400
    assert stage.vendor.requests == []


@pytest.mark.parametrize("place", ["path", "model", "speed", "tools", "key"])
async def test_an_error_does_not_repeat_a_token_from_anywhere(stage, place):
    token = stage.token
    target = f"/api/llm/v1/{token}".encode() if place == "path" else MESSAGES
    fields = {
        "model": {"model": token},
        "speed": {"speed": token},
        "tools": {"tools": [{"type": token}]},
        "key": {},
        "path": {},
    }[place]
    body = orjson.dumps({**orjson.loads(BODY), **fields})
    if place == "key":
        body = b'{"%b":1,"%b":2,' % (token.encode(), token.encode()) + body[1:]
    answer = (await stage.converse(stage.post(body=body, target=target), answers=1)).answers[0]
    assert answer.status in {400, 404}
    assert token.encode() not in answer.body
    assert all(token not in str(line) for line in stage.gateway.lines)


@pytest.mark.parametrize("query", [b"by=GOOD", b"from=GOOD"])
async def test_nor_do_our_own_endpoints(stage, query):
    target = filled(stage, b"/api/user/usage?" + query)
    (answer,) = (await stage.converse(stage.head(method=b"GET", target=target), answers=1)).answers
    assert answer.status == 400
    stage.assert_answer(answer)
