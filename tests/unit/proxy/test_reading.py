"""How a request's body is read: in one go, or in turns with others."""

import asyncio
from types import SimpleNamespace

import orjson
import pytest

from metering.errors import Reason, Refused
from proxy.exchange import Exchange
from proxy.reading import BYTES_AT_ONCE, VALUES_MAX, Reading
from proxy.request import Request
from routes.anthropic import SURFACE


def take_body(request):
    body, request.pieces = b"".join(request.pieces), []
    return body


def exchange_of(body):
    headers = [(b"content-type", b"application/json")]
    request = Request("POST", b"/v1/messages", b"", headers, dict(headers), "1.1")
    request.pieces, request.is_whole = [body], True
    exchange = Exchange(SURFACE, request, SimpleNamespace(take_body=take_body), "req_1", 0.0)
    exchange.operation = SURFACE.operations[0]
    exchange.caller = SimpleNamespace(owners=[("usr_1", None)])
    return exchange


def let_all_wait(*_, is_free):
    assert not is_free


async def read(body, *, check_before_body=let_all_wait):
    """What is read of it, and how many turns of the event loop others had meanwhile."""
    turns, loop = [], asyncio.get_running_loop()

    def turn():
        if turns:  # it is counted among its user's
            assert reading.waiting_by_owner == {"usr_1": 1}
        turns.append(loop.call_soon(turn))

    bounds = SimpleNamespace(body_bytes_max=32 * 1024 * 1024)
    reading = Reading(bounds=bounds, admission=SimpleNamespace(check_before_body=check_before_body))
    turn()
    try:
        inbound = await reading.read(exchange_of(body), {}, b"")
    finally:
        turns[-1].cancel()
        assert not reading.waiting_by_owner
    return inbound, len(turns) - 1


def body_of(size, **fields):
    empty = orjson.dumps({**fields, "system": ""})
    return orjson.dumps({**fields, "system": "x" * (size - len(empty))})


@pytest.mark.parametrize(("size", "turns"), [(2_048, 0), (BYTES_AT_ONCE, 0), (BYTES_AT_ONCE + 1, 3)])
async def test_others_get_their_turn_while_a_long_body_is_read(size, turns):
    body = body_of(size, model="claude-haiku-4-5")
    inbound, had = await read(body)
    assert (inbound.body, inbound.fields, had) == (body, orjson.loads(body), turns)


async def test_a_long_body_of_who_has_enough_under_way_is_not_read():
    def too_many(*_, is_free):
        raise Refused(Reason.TOO_MANY_CONCURRENT, f"too many, {is_free=}")

    with pytest.raises(Refused, match="too many, is_free=False"):
        await read(b"x" * (BYTES_AT_ONCE + 1), check_before_body=too_many)


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


async def test_of_all_long_bodies_one_step_is_done_in_a_turn():
    """Steps of several, one after the other, would hold up whoever has a short request for all of them."""
    reading = Reading(bounds=SimpleNamespace(), admission=SimpleNamespace())
    loop, turns, done = asyncio.get_running_loop(), [], []

    def turn():
        turns.append(loop.call_soon(turn))

    async def long_body():
        for _ in range(3):
            done.append(await reading._step(lambda: len(turns)))

    turn()
    await asyncio.gather(*(long_body() for _ in range(4)))
    turns[-1].cancel()
    assert len(set(done)) == len(done) == 12


async def test_a_step_that_refuses_lets_the_next_one_come():
    reading = Reading(bounds=SimpleNamespace(), admission=SimpleNamespace())

    def refuses():
        raise Refused(Reason.BAD_REQUEST, "no")

    with pytest.raises(Refused):
        await reading._step(refuses)
    assert await reading._step(lambda: 7) == 7
