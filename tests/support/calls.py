"""The proxy before the simulated Bland, and users who have calls dialled by it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from metering.phone_numbers import PhoneNumbers
from simulators.bland import BYOT_KEY, START, VENDOR_KEY, BlandSimulator, Call
from tests.support import timed
from tests.support.bland import TO
from tests.support.gateway import DatedClock, Gateway, running_gateway

MOUNT = "/api/bland"
NUMBERS = {"ada": "+14155550111", "bob": "+14155550122"}


@dataclass
class Caller(timed.User):
    """One who has a number."""

    operation = "POST /v1/calls"
    unit = "call_seconds"
    gauge = "open_calls"

    async def dials(self, to: str = TO, **more: Any) -> httpx.Response:
        return await self.http.post("/v1/calls", json={"phone_number": to, "task": "Say hello.", **more})


class Exchange(timed.House[BlandSimulator, Caller]):
    """Before one account."""

    async def dialled(self, user: Caller, to: str = TO, **more: Any) -> Call:
        """A call that was asked for and accepted."""
        answer = await user.dials(to, **more)
        assert answer.status_code == 200, answer.text
        return self.vendor.call(answer.json()["call_id"])

    def _happen(self) -> None:
        self.vendor.advance(0)


@asynccontextmanager
async def caller(gateway: Gateway, user_id: str) -> AsyncIterator[Caller]:
    token = await gateway.new_token(user_id)
    await PhoneNumbers(gateway.service.store, gateway.clock).assign(user_id, NUMBERS[user_id])
    async with timed.client_of(gateway, MOUNT, {"authorization": token}) as http:
        yield Caller(user_id, token, gateway, http)


def variables(vendor: BlandSimulator) -> dict[str, str]:
    return {"BLAND_API_KEY": VENDOR_KEY, "BLAND_UPSTREAM_URL": vendor.url}


@asynccontextmanager
async def exchange(
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    is_byot: bool = False,
    simulated: Mapping[str, Any] | None = None,
    **plan: Any,
) -> AsyncIterator[Exchange]:
    """Ada and Bob before one account; what they leave behind is clean."""
    clock = DatedClock(2026, 11, 20)
    async with BlandSimulator(
        **{"clock": clock, "tariff": START, "fate_of": lambda _: None, **(simulated or {})}
    ) as vendor:
        for number in NUMBERS.values():
            vendor.add_number(number, is_byot=is_byot)
        settings = {**variables(vendor), **({"BLAND_BYOT_KEY": BYOT_KEY} if is_byot else {}), **(env or {})}
        async with before(vendor, folder, clock, env=settings, **plan) as at:
            yield at
            await at.gateway.assert_clean()


@asynccontextmanager
async def before(
    vendor: BlandSimulator, folder: Path, clock: DatedClock, *, env: Mapping[str, str], **plan: Any
) -> AsyncIterator[Exchange]:
    """Ada and Bob before an account that is there already."""
    async with (
        running_gateway(folder, env=env, clock=clock, **plan) as gateway,
        caller(gateway, "ada") as ada,
        caller(gateway, "bob") as bob,
    ):
        yield Exchange(vendor, gateway, clock, {"ada": ada, "bob": bob})
