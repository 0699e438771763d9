"""The simulated Browserbase, and a client with the platform's own key."""

import httpx
import pytest

from metering.clock import ManualClock
from simulators.browserbase import VENDOR_KEY, BrowserbaseSimulator

START_MS = 1_795_000_000_000


@pytest.fixture
async def browserbase():
    async with BrowserbaseSimulator(clock=ManualClock(START_MS)) as simulator:
        yield simulator


@pytest.fixture
async def platform(browserbase):
    headers = {"x-bb-api-key": VENDOR_KEY}
    async with httpx.AsyncClient(
        base_url=f"{browserbase.url}/v1", headers=headers, trust_env=False
    ) as client:
        yield client
