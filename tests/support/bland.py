"""A client of the simulated Bland, as the platform itself is one."""

from typing import Any

import httpx

from simulators.bland import VENDOR_KEY, BlandSimulator, Call

TO, OTHER = "+13105550111", "+13105550122"
"""Numbers whose calls go as the test says."""


def as_platform(vendor: BlandSimulator, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"{vendor.url}/v1", headers={"authorization": VENDOR_KEY, **headers}, trust_env=False
    )


async def dialled(client: httpx.AsyncClient, vendor: BlandSimulator, to: str = TO, **more: Any) -> Call:
    """A call that was asked for and accepted."""
    answer = await client.post("/calls", json={"phone_number": to, "task": "Say hello.", **more})
    assert answer.status_code == 200, answer.text
    return vendor.call(answer.json()["call_id"])
