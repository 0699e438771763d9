"""Agents' machines for tests: the three vendors that they are made of, simulated, and the service that makes them before these."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from automna_proxy.settings import Settings
from metering.clock import Clock
from provisioning.instances import Instances
from simulators.agentmail import AgentMailSimulator
from simulators.browserbase import BrowserbaseSimulator
from simulators.fly import ORG_SLUG, TOKEN, VENDOR_KEY, FlySimulator
from simulators.fly_habits import Habits
from simulators.fly_state import App, Machine
from tests.support import agentmail, browserbase
from tests.support.fly import DOCUMENT
from tests.support.gateway import POLL_S, SETTLED_WITHIN_S, DatedClock, Gateway, running_gateway

IMAGE = "registry.fly.io/agent@sha256:" + "5e1f" * 16
ADMIN_TOKEN = "operators-token-of-tests-" + "0" * 16
PUBLIC_URL = "http://proxy.example"
QUICK = Habits(
    boot_s=0.05, start_s=0.02, stop_s=0.02, update_s=0.05, destroy_s=0.02, gateway_s=0.02, rates=None
)
"""A Fly that takes no time, and may be asked as often as one likes."""


@dataclass
class Vendors:
    """What machines are made of, and what there is of it at each vendor."""

    fly: FlySimulator
    browserbase: BrowserbaseSimulator
    agentmail: AgentMailSimulator

    def variables(self, **more: str) -> dict[str, str]:
        """The settings with which a service makes machines here."""
        return {
            "ADMIN_TOKEN": ADMIN_TOKEN,
            "PUBLIC_URL": PUBLIC_URL,
            "FLY_API_TOKEN": f"FlyV1 {VENDOR_KEY}",
            "FLY_ORG": ORG_SLUG,
            "FLY_API_URL": self.fly.url,
            "FLY_GATEWAY_URL": f"{self.fly.url}/gateway/{{app}}",
            "MACHINE_IMAGE": IMAGE,
            "MACHINES_RECONCILE_EVERY_S": "0",
            **browserbase.variables(self.browserbase),
            **agentmail.variables(self.agentmail),
            **more,
        }

    def settings(self, database: Path, **more: str) -> Settings:
        """As a service would have them on the store at `database`."""
        return Settings.from_env({"DATABASE_URL": f"sqlite:///{database}", **self.variables(**more)})

    # what there is

    @property
    def contexts(self) -> list[str]:
        """The ids of the browser contexts."""
        return list(self.browserbase.project.contexts)

    @property
    def pods(self) -> list[str]:
        """The ids of the pods, but for the one that every account has."""
        organization = self.agentmail.organization
        return [pod_id for pod_id, pod in organization.pods.items() if pod is not organization.default_pod]

    @property
    def inboxes(self) -> list[str]:
        return [inbox.inbox_id for inbox in self.agentmail.organization.inboxes.values()]

    @property
    def counts(self) -> dict[str, int]:
        """Of everything that a user's machine is made of."""
        return {
            "app": len(self.fly.apps),
            "ip": sum(len(app.addresses) for app in self.fly.apps),
            "volume": len(self.fly.volumes),
            "machine": len(self.fly.machines),
            "context": len(self.contexts),
            "pod": len(self.pods),
            "inbox": len(self.inboxes),
        }

    def assert_one_of_each(self, users: int = 1) -> None:
        """One app with its two addresses, one volume, one machine, one context, one pod and one inbox a user."""
        assert self.counts == {
            **dict.fromkeys(("app", "volume", "machine", "context", "pod", "inbox"), users),
            "ip": 2 * users,
        }

    def assert_nothing(self) -> None:
        assert self.counts == dict.fromkeys(self.counts, 0)

    def assert_valid(self) -> None:
        """Every request that came fits Fly's own document (where that lies beside the project), and none came too often."""
        assert self.fly.invalid == []
        assert self.fly.limited == []

    @property
    def app(self) -> App:
        """The only one."""
        (app,) = self.fly.apps
        return app

    @property
    def machine(self) -> Machine:
        """The only one."""
        (machine,) = self.fly.machines
        return machine

    def env(self, machine: Machine | None = None) -> Mapping[str, str]:
        """The environment of what runs in a machine, or in the only one."""
        running = (machine or self.machine).running
        assert running is not None, "it does not run"
        return running.env

    def gateway_token(self, machine: Machine | None = None) -> str:
        return self.env(machine)[TOKEN]


@asynccontextmanager
async def running_vendors(
    *, clock: Clock | None = None, habits: Habits = QUICK, seed: int = 0
) -> AsyncIterator[Vendors]:
    """All three on loopback ports, on one clock. Fly checks its requests against its document, where that is."""
    openapi = DOCUMENT if DOCUMENT.exists() else None
    async with AsyncExitStack() as stack:
        yield Vendors(
            await stack.enter_async_context(
                FlySimulator(clock=clock, habits=habits, openapi=openapi, seed=seed)
            ),
            await stack.enter_async_context(BrowserbaseSimulator(clock=clock, seed=seed)),
            await stack.enter_async_context(AgentMailSimulator(clock=clock, seed=seed)),
        )


@dataclass
class House:
    """A service that makes machines, and its vendors."""

    gateway: Gateway
    vendors: Vendors
    clock: DatedClock
    http: httpx.AsyncClient

    async def get(self, path: str, token: str, **more: Any) -> httpx.Response:
        """With a gateway token."""
        return await self._ask("GET", path, token, **more)

    async def into(self, token: str) -> httpx.Response:
        """The way into the machine of whoever has this gateway token: asked for again when there is nothing to be waited for."""
        async with asyncio.timeout(SETTLED_WITHIN_S):
            while (answer := await self.get("/api/user/gateway", token)).status_code == 202:
                while not all(one.is_settled for one in await self.instances.all()):
                    await asyncio.sleep(POLL_S)
        return answer

    @property
    def instances(self) -> Instances:
        """The rows of the service."""
        return self.gateway.service.own.machines.instances

    async def until(self, user_id: str, status: str) -> dict[str, Any]:
        """A user's machine, as operators see it, once it is settled in this status."""
        async with asyncio.timeout(SETTLED_WITHIN_S):
            while True:
                told = (await self.admin("GET", f"/{user_id}")).json()
                if told.get("status") == status and told["next_attempt_at"] is None:
                    return dict(told)
                await asyncio.sleep(POLL_S)

    async def admin(
        self, method: str, path: str = "", *, token: str = ADMIN_TOKEN, **more: Any
    ) -> httpx.Response:
        """Of the operators' endpoints, below `/admin/machines`."""
        return await self.operator(method, f"/admin/machines{path}", token=token, **more)

    async def operator(
        self, method: str, path: str, *, token: str = ADMIN_TOKEN, **more: Any
    ) -> httpx.Response:
        """Of any endpoint, with the operators' token."""
        return await self._ask(method, path, token, **more)

    async def _ask(self, method: str, path: str, token: str, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return await self.http.request(method, path, headers=headers, **more)


@asynccontextmanager
async def house(
    folder: Path,
    *,
    habits: Habits = QUICK,
    env: Mapping[str, str | None] | None = None,
    **plan: Any,
) -> AsyncIterator[House]:
    """A service that makes machines at simulated vendors; `plan` and `env` as of `running_gateway`."""
    clock = DatedClock(2026, 11, 20)
    async with running_vendors(clock=clock, habits=habits) as vendors:
        settings = {**vendors.variables(), **(env or {})}
        async with running_gateway(folder, env=settings, clock=clock, **plan) as gateway:
            async with httpx.AsyncClient(base_url=gateway.url, timeout=30, trust_env=False) as http:
                yield House(gateway, vendors, clock, http)
            await gateway.assert_clean()
        vendors.assert_valid()
