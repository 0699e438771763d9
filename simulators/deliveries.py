"""Webhooks on their way from a simulated vendor to who asked for them."""

from collections.abc import Mapping, Sequence

import httpx

DELIVERY_TIMEOUT_S = 15.0


async def post(
    url: str,
    deliveries: Sequence[tuple[Mapping[str, str], bytes]],
    client: httpx.AsyncClient | None = None,
) -> list[httpx.Response]:
    """POST headers and bodies one after the other; what was answered. Raises httpx.TransportError."""
    if client is not None:
        return [await client.post(url, content=body, headers=dict(headers)) for headers, body in deliveries]
    async with httpx.AsyncClient(trust_env=False, timeout=DELIVERY_TIMEOUT_S) as own:
        return await post(url, deliveries, own)
