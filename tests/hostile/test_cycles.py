"""A refused request leaves no reference cycles: a large body in one of them would stay until somebody looks."""

import gc

import pytest

from tests.hostile.stage import MESSAGES, small_body

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUESTS = 20
NOT_JSON = b'{"model": nothing' + b" " * 1_000
REFUSED = {
    "no JSON": {"body": NOT_JSON},
    "a model without a price": {"body": small_body().replace(b"haiku", b"hokku")},
    "a forbidden field": {"body": small_body(container="c")},
    "two values": {"body": small_body()[:-1] + b',"model":1}'},
    "too large": {"body": b" " * 300_001},
    "a bad token": {"token": "amp_bad"},
    "an unknown path": {"target": MESSAGES + b"/x"},
    "compressed": {"body": NOT_JSON, "coding": True},
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refused_request_leaves_no_cycles_behind(stage, name):
    options = dict(REFUSED[name])
    fields = [b"content-encoding: gzip"] if options.pop("coding", False) else []
    wire = stage.post(*fields, **options)

    async def ask(peer, count):
        for number in range(count):
            peer.send(wire)
            await stage.gateway.until(lambda expected=number + 1: len(peer.answers) == expected)
        await stage.gateway.quiet()
        peer.received = b""

    async with stage.connected() as peer:
        await ask(peer, REQUESTS)  # what is made once and kept
        gc.collect()
        gc.disable()
        try:
            await ask(peer, REQUESTS)
            unreachable = gc.collect()
        finally:
            gc.enable()
    assert unreachable < REQUESTS
