"""How a request's body is read: in one go, or in turns with others."""

import asyncio
from types import SimpleNamespace

import orjson
import pytest

from metering.errors import Reason, Refused
from proxy.exchange import Exchange
from proxy.reading import BYTES_AT_ONCE, VALUES_MAX, Reading
from routes.anthropic import SURFACE


def exchange_of(body):
    async def receive():
        return {"type": "http.request", "body": body}

    exchange = Exchange(
        surface=SURFACE,
        scope={"method": "POST", "headers": [(b"content-type", b"application/json")]},
        receive=receive,
        connection=SimpleNamespace(has_whole_request=True),
        request_id="req_1",
        started_s=0.0,
    )
    exchange.operation = SURFACE.operations[0]
    return exchange


async def read(body):
    """What is read of it, and how many turns of the event loop others had meanwhile."""
    turns, loop = [], asyncio.get_running_loop()

    def turn():
        turns.append(loop.call_soon(turn))

    reading = Reading(bounds=SimpleNamespace(body_bytes_max=32 * 1024 * 1024), admission=None)
    turn()
    try:
        inbound = await reading.read(exchange_of(body), {}, b"")
    finally:
        turns[-1].cancel()
    return inbound, len(turns) - 1


def body_of(size, **fields):
    empty = orjson.dumps({**fields, "system": ""})
    return orjson.dumps({**fields, "system": "x" * (size - len(empty))})


@pytest.mark.parametrize(("size", "turns"), [(2_048, 0), (BYTES_AT_ONCE, 0), (BYTES_AT_ONCE + 1, 3)])
async def test_others_get_their_turn_while_a_long_body_is_read(size, turns):
    body = body_of(size, model="claude-haiku-4-5")
    inbound, had = await read(body)
    assert (inbound.body, inbound.fields, had) == (body, orjson.loads(body), turns)


@pytest.mark.parametrize("size", [2_048, BYTES_AT_ONCE + 1])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"container": "c_1"}, "containers are shared"),
        ({"messages": [{"content": [{"source": {"file_id": "f_1"}}]}]}, "files are shared"),
    ],
)
async def test_what_is_forbidden_is_so_at_any_length(size, fields, said):
    with pytest.raises(Refused, match=said):
        await read(body_of(size, **fields))


@pytest.mark.parametrize("size", [2_048, BYTES_AT_ONCE + 1])
async def test_what_stands_twice_is_refused_at_any_length(size):
    with pytest.raises(Refused, match="stands twice"):
        await read(body_of(size, model="a").replace(b'"model"', b'"system":"","model"'))


async def test_a_body_of_too_many_values_is_not_parsed():
    many = b'{"x":[' + b"0," * VALUES_MAX + b"0]}"
    with pytest.raises(Refused, match="more than 1,000,000 values") as caught:
        await read(many)
    assert caught.value.reason is Reason.BAD_REQUEST
