"""The simulated Browserbase and the simulated Fly, and clients with the platform's own keys."""

import httpx
import pytest

from metering.clock import ManualClock
from simulators.browserbase import VENDOR_KEY, BrowserbaseSimulator
from simulators.fly import FlySimulator, Habits
from tests.support.fly import fly_client

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


@pytest.fixture
async def fly():
    """Without limits of rate: its clock stands still."""
    async with FlySimulator(clock=ManualClock(START_MS), habits=Habits(rates=None)) as simulator:
        yield simulator


@pytest.fixture
async def machines_api(fly):
    async with fly_client(fly.url) as client:
        yield client
