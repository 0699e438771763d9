"""A request leaves no reference cycles behind: looking for them cost a fifth of the CPU before it made none, and what
stands in one stays until somebody looks, with the request's body."""

import asyncio
import gc
import json

import pytest

from proxy.downstream import Connection
from proxy.exchange import Exchange
from proxy.surface import Inbound
from simulators.anthropic import breaks_after, drops, fails, hangs, stalls_after
from tests.support.gateway import messages_body, running_gateway
from tests.support.raw_http import exchange_bytes

REQUESTS = 20
END = {False: b'"inference_geo":"not_available"}}', True: b"\r\n0\r\n\r\n"}


@pytest.mark.parametrize("is_streaming", [False, True])
async def test_a_request_leaves_no_cycles_behind(tmp_path, vendor, is_streaming):
    body = json.dumps(messages_body(stream=is_streaming)).encode()
    async with running_gateway(tmp_path, upstream=vendor.url) as gateway:
        head = (
            f"POST /api/llm/v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {await gateway.new_token()}\r\n"
            f"anthropic-version: 2023-06-01\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))

        async def ask() -> None:
            writer.write(head + body)
            answer = b""
            while not answer.endswith(END[is_streaming]):
                answer += await reader.read(65_536)

        for _ in range(REQUESTS):  # what is made once and kept
            await ask()
        await gateway.quiet()
        gc.collect()
        gc.disable()
        try:
            for _ in range(REQUESTS):
                await ask()
            await gateway.quiet()
            unreachable = gc.collect()
        finally:
            gc.enable()
            writer.close()
            await writer.wait_closed()
        assert unreachable < REQUESTS


FAILURES = {
    "closed before the head": drops(),
    "reset before the head": drops(is_reset=True),
    "silent before the head": hangs(),
    "broken off": breaks_after(6),
    "silent midway": stalls_after(6),
    "an error": fails(529),
    "about our account": fails(401),
}
QUICK_TIMEOUTS = {"FIRST_BYTE_TIMEOUT_S": "0.05", "IDLE_TIMEOUT_S": "0.05"}


@pytest.mark.parametrize("is_streaming", [False, True])
@pytest.mark.parametrize("failure", FAILURES)
async def test_a_failed_request_is_gone_when_it_is_over(tmp_path, vendor, failure, is_streaming):
    body = json.dumps(messages_body(stream=is_streaming)).encode()
    vendor.script = lambda _: FAILURES[failure]
    async with running_gateway(tmp_path, upstream=vendor.url, env=QUICK_TIMEOUTS) as gateway:
        fields = [(b"x-api-key", (await gateway.new_token()).encode()), (b"anthropic-version", b"2023-06-01")]
        await gone_after(gateway, lambda: exchange_bytes(gateway.url, b"/api/llm/v1/messages", fields, body))


async def test_a_client_that_left_its_body_unread_is_gone(tmp_path):
    """Strangers, too, send bodies: nothing of them may stay."""
    fields = [(b"x-api-key", b"amp_nobody")]
    async with running_gateway(tmp_path) as gateway:
        await gone_after(
            gateway,
            lambda: exchange_bytes(
                gateway.url, b"/api/llm/v1/messages", fields, b"x" * 200_000, length=9_000_000
            ),
        )


async def gone_after(gateway, ask):
    """Nothing of the requests is left, although nobody looks for cycles."""
    await ask()  # what is made once and kept
    await gateway.quiet()
    gc.collect()
    before = alive()
    gc.disable()
    try:
        for _ in range(5):
            await ask()
        await gateway.quiet()
        await gateway.until(lambda: not gateway.server.server_state.connections)
        assert alive() == before
    finally:
        gc.enable()


def alive():
    kinds = (Connection, Exchange, Inbound)
    return [sum(isinstance(thing, kind) for thing in gc.get_objects()) for kind in kinds]
