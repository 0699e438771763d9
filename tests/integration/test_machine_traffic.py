"""A machine at work while its token is replaced, and when it is taken away: what its agent sees of the proxy."""

import asyncio
from contextlib import asynccontextmanager

import httpx

from automna_proxy.service import keep_counting
from metering.tasks import spawn, stop
from provisioning.instances import Instances
from provisioning.lifecycle import GRACE_MS
from simulators.anthropic import AnthropicSimulator
from simulators.fly import TOKEN
from tests.support.gateway import messages_body
from tests.support.machines import house

AGENTS = 4
"""Parallel turns of the agent in the machine."""
ROTATIONS = 3
BEFORE, AFTER = 20, 20
"""Answers between two rotations, at least."""


class Agent:
    """What runs in the machine: it has the token with which it was booted, until it is booted again."""

    def __init__(self, place):
        self._place = place
        self.statuses: list[int] = []
        self.tokens: set[str] = set()

    @property
    def _running(self):
        machines = self._place.vendors.fly.machines
        return machines[0].running if machines else None

    async def work(self):
        async with httpx.AsyncClient(base_url=self._place.gateway.url, trust_env=False, timeout=30) as client:
            while True:
                running = self._running
                if running is None:
                    await asyncio.sleep(0.001)
                    continue
                await self._turn(client, running.env[TOKEN])

    async def _turn(self, client, token):
        answer = await client.post("/api/llm/v1/messages", json=messages_body(), headers={"x-api-key": token})
        self.statuses.append(answer.status_code)
        self.tokens.add(token)


@asynccontextmanager
async def working_house(folder):
    """A service that makes machines, with a model to ask."""
    async with (
        AnthropicSimulator() as anthropic,
        house(folder, env={"ANTHROPIC_UPSTREAM_URL": anthropic.url}) as place,
    ):
        yield place


async def test_no_request_of_a_machine_fails_while_its_token_is_replaced(tmp_path):
    async with working_house(tmp_path) as place:
        await _ready(place)
        agent = Agent(place)
        at_work = [spawn(agent.work(), name="agent") for _ in range(AGENTS)]
        for _ in range(ROTATIONS):
            await _answers(agent, BEFORE)
            old = place.vendors.gateway_token()
            assert (await place.admin("POST", "/ada/rotate")).status_code == 202
            await _settled(place)
            assert place.vendors.gateway_token() != old
            await _answers(agent, AFTER)
            place.clock.advance(GRACE_MS / 1000)
            assert (await place.get("/api/user/limits", old)).status_code == 401
        for task in at_work:
            await stop(task)
        assert set(agent.statuses) == {200}
        assert len(agent.tokens) == ROTATIONS + 1
        tokens = await place.gateway.directory.tokens("ada")
        living = [one for one in tokens if one.is_live(place.clock.now_ms()) and one.label == "machine"]
        assert len(living) == 1


async def test_a_deprovisioned_machine_is_refused_at_once_and_its_ledger_stays(tmp_path):
    async with working_house(tmp_path) as place:
        await _ready(place)
        token = place.vendors.gateway_token()
        headers = {"x-api-key": token}
        async with httpx.AsyncClient(base_url=place.gateway.url, trust_env=False) as client:
            first = await client.post("/api/llm/v1/messages", json=messages_body(), headers=headers)
            assert first.status_code == 200
            assert (await place.admin("DELETE", "/ada")).status_code == 202
            async with asyncio.timeout(30):
                while (
                    await client.post("/api/llm/v1/messages", json=messages_body(), headers=headers)
                ).status_code != 401:
                    await asyncio.sleep(0.01)
        await _settled(place)
        place.vendors.assert_nothing()
        entries = [one for one in await place.gateway.entries() if one["outcome"] == "completed"]
        assert entries
        assert all(one["cost_nanousd"] > 0 for one in entries)


async def _ready(place):
    await place.gateway.new_token("ada")
    assert (await place.admin("POST", json={"user": "ada"})).status_code == 202
    await _settled(place)
    machine = (await place.admin("GET", "/ada")).json()
    assert machine["status"] == "ready", machine


async def _settled(place):
    async with asyncio.timeout(30):
        while (await place.admin("GET", "/ada")).json()["next_attempt_at"] is not None:
            await asyncio.sleep(0.02)


async def _answers(agent, more):
    until = len(agent.statuses) + more
    async with asyncio.timeout(30):
        while len(agent.statuses) < until:
            await asyncio.sleep(0.005)


async def test_metrics_say_how_many_machines_are_in_each_status(tmp_path):
    async with working_house(tmp_path) as place:
        await _ready(place)
        service = place.gateway.service
        counting = spawn(
            keep_counting(Instances(service.store, place.clock), service.telemetry), name="counting"
        )
        await place.gateway.until(lambda: place.gateway.metric("automna_machines", status="ready") == 1)
        assert place.gateway.metric("automna_machines", status="error") == 0
        await stop(counting)
