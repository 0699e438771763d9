"""A request leaves no reference cycles behind: looking for them cost a fifth of the CPU before it made none."""

import asyncio
import gc
import json

import pytest

from tests.support.gateway import messages_body, running_gateway

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
