"""Workers that make machines, without a service around them: each with a store handle and clients of its own, as a process has."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from metering.clock import Clock
from metering.objects import Objects
from metering.store.database import Database
from metering.store.store import Store, open_store
from metering.tasks import spawn
from metering.users import Directory, hash_of
from provisioning.fly import Fly, fly_client
from provisioning.instances import Instance
from provisioning.integrations import Integrations, Vendor
from provisioning.lifecycle import GRACE_MS
from provisioning.machines import Machine, Machines
from provisioning.pacing import Pacer
from provisioning.run import Parts
from provisioning.template import Templates
from provisioning.worker import Provisioner
from simulators import agentmail, browserbase
from simulators.fly import ORG_SLUG, VENDOR_KEY
from simulators.fly_habits import Habits
from simulators.fly_state import Machine as FlyMachine
from tests.support.gateway import DatedClock
from tests.support.ledger import new_database
from tests.support.machines import IMAGE, PUBLIC_URL, QUICK, Vendors, running_vendors

PREFIX = "automna-u-"
HOOKS_SECRET = "secret of the hooks of tests " + "0" * 32
TICK_S = 0.005
ROUNDS_MAX = 200
HAPPENS_WITHIN_S = 60.0
"""On the real clock: a bound on how long a test hangs, not a promise."""


async def no_pause(_seconds: float) -> None:
    """A pause of somebody who has no time: others get their turn."""
    await asyncio.sleep(TICK_S)


@dataclass
class Worker:
    """One process's hand in the machines."""

    provisioner: Provisioner
    parts: Parts
    store: Store


@dataclass
class Yard:
    """A store, the vendors, and the workers that a test starts."""

    vendors: Vendors
    clock: DatedClock
    database: Database
    store: Store
    machines: Machines
    directory: Directory

    @asynccontextmanager
    async def worker(
        self, name: str = "w1", *, clock: Clock | None = None, **more: Any
    ) -> AsyncIterator[Worker]:
        """`more` are fields of its Parts, or arguments of its Provisioner."""
        own = {
            key: more.pop(key) for key in ("at_once", "plans", "reconcile_every_s", "repairs") if key in more
        }
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(open_store(self.database))
            client = await stack.enter_async_context(fly_client(self.vendors.fly.url, VENDOR_KEY))
            http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
            parts = parts_of(self.vendors, store, clock or self.clock, client, http, **more)
            yield Worker(Provisioner(parts, name, **{"at_once": 32, **own}), parts, store)

    async def user(self, user_id: str = "ada", plan: str = "pro") -> str:
        await self.directory.add_user(user_id, plan=plan)
        return user_id

    async def provisioned(self, worker: Worker, user_id: str = "ada", *, plan: str = "pro") -> Machine:
        """A machine that is ready."""
        await self.user(user_id, plan)
        await self.machines.provision(user_id, actor="test")
        await worker.provisioner.work_on(user_id)
        return await self.machine(user_id, status="ready")

    async def until_settled(self, worker: Worker, user_id: str = "ada") -> None:
        """Work until nothing is to be done; pauses between attempts are passed over by the clock."""
        for _ in range(ROUNDS_MAX):
            if await worker.provisioner.work_once(user_id):
                continue
            instance = await self.instance(user_id)
            if instance.due_at_ms is None:
                return
            self.clock.advance(max(0, instance.due_at_ms - self.clock.now_ms()) / 1000)
        raise AssertionError("it does not settle")

    async def while_time_passes(self, working: Coroutine[Any, Any, None], *, step_s: float) -> None:
        """Until that is done: what it waits for comes, or its patience ends."""
        task = spawn(working, name="work")
        while not task.done():
            self.clock.advance(step_s)
            self.vendors.fly.pass_time()
            await asyncio.sleep(TICK_S)
        await task

    async def machine(self, user_id: str = "ada", *, status: str | None = None) -> Machine:
        found = await self.machines.of(user_id)
        assert found is not None
        assert status in (None, found.status), (found.status, found.instance.error_code)
        return found

    async def instance(self, user_id: str = "ada") -> Instance:
        return (await self.machine(user_id)).instance

    async def until(self, condition: Callable[[Instance], bool], user_id: str = "ada") -> None:
        """That is true of the user's instance, by the hand of somebody who works meanwhile; TimeoutError after HAPPENS_WITHIN_S."""
        async with asyncio.timeout(HAPPENS_WITHIN_S):
            while not condition(await self.instance(user_id)):
                await asyncio.sleep(TICK_S)

    async def stages(self, user_id: str = "ada") -> list[str]:
        """What happened, the first first."""
        return [event.kind for event in reversed(await self.machines.events(user_id, at_most=1_000))]

    async def living_tokens(self, user_id: str = "ada") -> list[str]:
        """The ids of the user's gateway tokens that live, and not only for a moment more."""
        then_ms = self.clock.now_ms() + GRACE_MS
        return [token.id for token in await self.directory.tokens(user_id) if token.is_live(then_ms)]

    async def token_in(self, machine: FlyMachine | None = None) -> str:
        """The id of the gateway token with which a machine runs."""
        found = await self.directory.credential(hash_of(self.vendors.gateway_token(machine)))
        assert found is not None
        return found.token_id

    async def assert_has_its_token(self, user_id: str = "ada") -> None:
        """One token of the user lives, and it is the one in their machine."""
        name = (await self.instance(user_id)).app_name
        (machine,) = (one for one in self.vendors.fly.machines if one.app.name == name)
        assert await self.living_tokens(user_id) == [await self.token_in(machine)]


def parts_of(
    vendors: Vendors,
    store: Store,
    clock: Clock,
    client: httpx.AsyncClient,
    http: httpx.AsyncClient,
    **more: Any,
) -> Parts:
    """What runs stand on, before the simulated vendors; `more` are other fields."""
    fields: dict[str, Any] = {
        "store": store,
        "clock": clock,
        "machines": machines_of(vendors, store, clock),
        "directory": Directory(store, clock),
        "objects": Objects(store, clock),
        "fly": Fly(client, Pacer(clock), org_slug=ORG_SLUG),
        "integrations": Integrations(
            browser=Vendor(vendors.browserbase.url, browserbase.VENDOR_KEY),
            mail=Vendor(vendors.agentmail.url, agentmail.VENDOR_KEY),
            project_id=browserbase.PROJECT_ID,
            client=http,
        ),
        "templates": Templates.load(None),
        "probes": http,
        "image": IMAGE,
        "proxy_url": PUBLIC_URL,
        "project_id": browserbase.PROJECT_ID,
        "hooks_secret": HOOKS_SECRET,
        "pause": no_pause,
    }
    return Parts(**{**fields, **more})


def machines_of(vendors: Vendors, store: Store, clock: Clock) -> Machines:
    return Machines(store, clock, app_prefix=PREFIX, gateway_url=f"{vendors.fly.url}/gateway/{{app}}")


@asynccontextmanager
async def yard(folder: Path, *, habits: Habits = QUICK, seed: int = 0) -> AsyncIterator[Yard]:
    """Every request that came to Fly fits its document and its limits, or the test fails at its end."""
    clock, database = DatedClock(2026, 11, 20), new_database(folder)
    async with (
        running_vendors(clock=clock, habits=habits, seed=seed) as vendors,
        open_store(database) as store,
    ):
        yield Yard(
            vendors, clock, database, store, machines_of(vendors, store, clock), Directory(store, clock)
        )
        vendors.assert_valid()
