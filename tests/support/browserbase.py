"""The proxy before the simulated Browserbase, and users who speak to it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx
import orjson

from simulators.browserbase import PROJECT_ID, VENDOR_KEY, BrowserbaseSimulator
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
class User:
    """One user, on connections of their own."""

    user_id: str
    token: str
    gateway: Gateway
    http: httpx.AsyncClient
    operation: ClassVar[str] = "POST /v1/sessions"
    unit: ClassVar[str] = "browser_seconds"
    gauge: ClassVar[str] = "open_browsers"

    async def account(self, meter: str, period: str = "2026-11") -> tuple[int, int]:
        """Spent and held."""
        row = await self.gateway.service.store.readers.row(
            "SELECT spent, held FROM accounts WHERE owner = ?1 AND meter = ?2 AND period = ?3",
            (f"user:{self.user_id}", meter, period),
        )
        return row or (0, 0)  # type: ignore[return-value]  # two integers

    async def seconds(self) -> tuple[int, int]:
        """Of what runs: spent and held."""
        return await self.account(self.unit)

    async def running(self) -> int:
        """How much is held as running."""
        return (await self.account(self.gauge, ""))[1]

    async def booked(self) -> list[dict[str, Any]]:
        """What stands in the ledger of what ran: outcome, cost, seconds, notes."""
        rows = await self.gateway.service.store.readers.rows(
            "SELECT kind, outcome, basis, cost_nanousd, usage, notes FROM entries WHERE user_id = ?1 "
            "AND operation = ?2 ORDER BY seq",
            (self.user_id, self.operation),
        )
        return [
            {
                "kind": kind,
                "outcome": outcome,
                "basis": basis,
                "cost": cost,
                "seconds": sum(line["counts"].get(self.unit, 0) for line in orjson.loads(usage or "[]")),
                "notes": orjson.loads(notes or "[]"),
            }
            for kind, outcome, basis, cost, usage, notes in rows
        ]


@dataclass
class House:
    """A gateway with its vendor, which read the same clock."""

    vendor: BrowserbaseSimulator
    gateway: Gateway
    clock: DatedClock
    users: dict[str, User]

    @property
    def ada(self) -> User:
        return self.users["ada"]

    @property
    def bob(self) -> User:
        return self.users["bob"]

    async def pass_time(self, seconds: float) -> None:
        """Time passes, and whatever is due to be asked about is."""
        self.clock.advance(seconds)
        self.vendor.pass_time()
        while await self.gateway.service.engine._deferrals.poll_due():
            pass


@asynccontextmanager
async def user_of(gateway: Gateway, user_id: str) -> AsyncIterator[User]:
    token = await gateway.new_token(user_id)
    async with httpx.AsyncClient(
        base_url=gateway.url + MOUNT,
        headers={"x-bb-api-key": token},
        limits=httpx.Limits(max_connections=200),
        trust_env=False,
        timeout=30,
    ) as http:
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
