"""What houses before vendors that bill by the second have in common: users, who read one clock with the vendor, and what the ledger
says of them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import httpx
import orjson

from tests.support.gateway import DatedClock, Gateway

VendorT = TypeVar("VendorT")


@dataclass
class User:
    """One user, on connections of their own, and what they have running at the vendor."""

    user_id: str
    token: str
    gateway: Gateway
    http: httpx.AsyncClient
    operation: ClassVar[str]
    unit: ClassVar[str]
    gauge: ClassVar[str]

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


UserT = TypeVar("UserT", bound=User)


@dataclass
class House(Generic[VendorT, UserT]):
    """A gateway with its vendor, which read the same clock."""

    vendor: VendorT
    gateway: Gateway
    clock: DatedClock
    users: Mapping[str, UserT]

    @property
    def ada(self) -> UserT:
        return self.users["ada"]

    @property
    def bob(self) -> UserT:
        return self.users["bob"]

    async def pass_time(self, seconds: float) -> None:
        """Time passes, and whatever is due to be asked about is."""
        self.clock.advance(seconds)
        self._happen()
        while await self.gateway.service.engine._deferrals.poll_due():
            pass

    def _happen(self) -> None:
        """At the vendor, what is due."""
        raise NotImplementedError


@asynccontextmanager
async def client_of(
    gateway: Gateway, mount: str, headers: Mapping[str, str]
) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=gateway.url + mount,
        headers=headers,
        limits=httpx.Limits(max_connections=200),
        trust_env=False,
        timeout=30,
    ) as http:
        yield http
