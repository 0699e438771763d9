"""The proxy before the simulated Browserbase, and users who speak to it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulators.browserbase import PROJECT_ID, VENDOR_KEY, BrowserbaseSimulator
from tests.support import timed
from tests.support.gateway import DatedClock, Gateway, running_gateway

MOUNT = "/api/browserbase"
PICOUSD_PER_S = 33_333_334
"""A browser's second."""


def variables(vendor: BrowserbaseSimulator) -> dict[str, str]:
    return {
        "BROWSERBASE_API_KEY": VENDOR_KEY,
        "BROWSERBASE_UPSTREAM_URL": vendor.url,
        "BROWSERBASE_PROJECT_ID": PROJECT_ID,
    }


def cost_nanousd(seconds: int) -> int:
    return (seconds * PICOUSD_PER_S + 500) // 1_000


@dataclass
class User(timed.User):
    """One who has browsers."""

    operation = "POST /v1/sessions"
    unit = "browser_seconds"
    gauge = "open_browsers"


class House(timed.House[BrowserbaseSimulator, User]):
    """Before one project."""

    def _happen(self) -> None:
        self.vendor.pass_time()


@asynccontextmanager
async def user_of(gateway: Gateway, user_id: str) -> AsyncIterator[User]:
    token = await gateway.new_token(user_id)
    async with timed.client_of(gateway, MOUNT, {"x-bb-api-key": token}) as http:
        yield User(user_id, token, gateway, http)


@asynccontextmanager
async def house(
    folder: Path, *, env: Mapping[str, str] | None = None, chromium: Path | None = None, **plan: Any
) -> AsyncIterator[House]:
    """Ada and Bob before one project; what they leave behind is clean. `chromium`: what is behind each session."""
    clock = DatedClock(2026, 11, 20)
    plan = {"browser_minutes": 600, "browsers": 4, **plan}
    async with BrowserbaseSimulator(clock=clock, chromium=chromium) as vendor:
        settings = {**variables(vendor), **(env or {})}
        async with running_gateway(folder, env=settings, clock=clock, **plan) as gateway:
            async with user_of(gateway, "ada") as ada, user_of(gateway, "bob") as bob:
                yield House(vendor, gateway, clock, {"ada": ada, "bob": bob})
            await gateway.assert_clean()
