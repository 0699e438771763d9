"""Killed at any await of a request that makes something, nothing at the vendor is left without its owner, or gets another."""

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from automna_proxy.service import swept_once
from automna_proxy.settings import Settings
from metering.clock import SystemClock
from metering.orphans import State
from metering.store.database import Database
from metering.store.store import open_store
from simulators.agentmail import AgentMailSimulator
from tests.support.agentmail import variables
from tests.support.kill_points import RESUMED, SUSPENDED, Orders
from tests.support.process import Serving, serving

pytestmark = pytest.mark.chaos

USERS = ("ada", "bob")
INBOXES = "/api/agentmail/v0/inboxes"
FOUND_MIN = 2
"""Deaths between the vendor's work and our row, of all that are played."""


@pytest.fixture
async def vendor() -> AsyncIterator[AgentMailSimulator]:
    async with AgentMailSimulator() as simulator:
        yield simulator


class Stage:
    """A server that dies as it is told, and two users."""

    def __init__(self, server: Serving, orders: Orders) -> None:
        self.server = server
        self.orders = orders
        self.tokens: dict[str, str] = {}
        self.made = 0

    async def open(self) -> None:
        async with self.server.directory() as directory:
            for user in USERS:
                await directory.add_user(user, plan="test")
                self.tokens[user], _ = await directory.create_token(user)
        for user in USERS:
            async with self.client(user) as client:
                await client.get(INBOXES)

    def client(self, user: str) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.tokens[user]}"}
        return httpx.AsyncClient(base_url=self.server.url, headers=headers, trust_env=False, timeout=30)

    async def make(self, user: str) -> None:
        self.made += 1
        async with self.client(user) as client:
            with suppress(httpx.HTTPError):
                await client.post(INBOXES, json={"username": f"{user}{self.made}"})

    async def places(self) -> list[str]:
        """Where a request that makes an inbox is suspended."""
        self.orders.note_suspensions()
        await self.make("ada")
        self.orders.none()
        return list(dict.fromkeys(str(each["place"]) for each in self.orders.told()))

    async def die_at(self, place: str, moment: str, user: str) -> bool:
        """Whether the server did; it is up again."""
        self.orders.die_at(place, moment)
        await self.make(user)
        has_died = bool(self.orders.told())
        self.orders.none()
        if has_died:
            await self.server.exit_status()
            await self.server.start()
        await self.server.until_nothing_is_held()
        return has_died

    async def sweep(self) -> int:
        """How many were bound."""
        settings = Settings.from_env(self.server.env)
        async with open_store(Database(self.server.store, busy_timeout_s=10)) as store:
            (found,) = await swept_once(settings, store, SystemClock(), is_dry=False)
        assert {orphan.state for orphan in found.orphans} <= {State.BOUND}
        return len(found.orphans)


async def test_whatever_it_dies_at_a_sweep_finds_whose_it_is(
    tmp_path: Path, vendor: AgentMailSimulator
) -> None:
    orders = Orders(tmp_path)
    env = {
        **variables(vendor),
        "KILL_ORDERS": str(orders.path),
        "AGENTMAIL_INBOXES_PER_USER": "1000",
        "SWEEP_EVERY_S": "0",
    }
    async with serving(tmp_path, upstream=vendor.url, module="tests.support.doomed", env=env) as server:
        stage = Stage(server, orders)
        await stage.open()
        server.port = int(server.url.rpartition(":")[2])
        places = await stage.places()
        assert len(places) > FOUND_MIN, places
        deaths = bound = 0
        for number, place in enumerate(places):
            for moment in (SUSPENDED, RESUMED):
                deaths += await stage.die_at(place, moment, USERS[number % 2])
                bound += await stage.sweep()
        assert deaths > len(places), "few have hit: few were tried"
        assert bound >= FOUND_MIN, "nothing was left behind: nothing was tried"
        owners = dict(server.rows("SELECT upstream_id, user_id FROM owned_objects WHERE kind = 'inbox'"))
        assert owners == {inbox: inbox[:3] for inbox in vendor.organization.inboxes}
        await server.assert_verified()
