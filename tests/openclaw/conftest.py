"""One proxy process, one OpenClaw, several agents: shared by the tests of the folder, for each start costs seconds."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

import orjson
import pytest_asyncio
import uvloop

from simulators.anthropic import AnthropicSimulator, Behaviour
from simulators.server import ReceivedRequest
from tests.support.gateway import PLANS
from tests.support.openclaw import Agent, OpenClaw, running_openclaw
from tests.support.process import Serving, serving

LIMITS = {
    "test": (10_000_000, 1_000_000),
    "small": (5_000, 1_000_000),
    "narrow": (2_000, 1_000_000),
    "tiny": (100, 1_000_000),
    "slow": (10_000_000, 1),
}
"""Plans: credits a month, requests a minute. A turn of OpenClaw on the documented model holds some 1,650 credits: 66 kB of body, 8,192 tokens to say."""
HEARD_AFTER_S = 1.0
"""The bound within which every worker has heard of a revocation or a new plan."""
MODEL = "claude-sonnet-5"
PROVIDERS = {
    "custom": ("automna", "test"),
    "builtin": ("anthropic", "test"),
    "spent": ("automna", "small"),
    "large": ("automna", "tiny"),
    "held": ("automna", "narrow"),
    "revoked": ("automna", "test"),
    "replaced": ("automna", "test"),
    "disabled": ("automna", "test"),
    "hurried": ("automna", "slow"),
}
"""Of each agent, who is a user of the same name: the documented provider, and the plan."""


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@dataclass(frozen=True)
class Booked:
    """A row of the ledger."""

    kind: str
    basis: str
    outcome: str
    upstream_request_id: str | None
    counts: dict[str, int] | None


def booked(row: tuple) -> Booked:
    *facts, usage = row
    return Booked(*facts, orjson.loads(usage)[0]["counts"] if usage else None)


@dataclass
class Stage:
    """A vendor, the proxy, OpenClaw, and what the vendor shall answer to the next turns."""

    vendor: AnthropicSimulator
    server: Serving
    openclaw: OpenClaw
    script: deque[Behaviour] = field(default_factory=deque)

    def behaviour(self, request: ReceivedRequest) -> Behaviour | None:
        """Turns carry tools. What OpenClaw asks beside them (recaps by a small model) is answered plainly."""
        is_turn = b'"tools":' in request.body
        return self.script.popleft() if is_turn and self.script else None

    async def set_plan(self, user_id: str, plan: str) -> None:
        """Returns when the running server has heard of it."""
        async with self.server.directory() as directory:
            await directory.set_plan(user_id, plan)
        await asyncio.sleep(HEARD_AFTER_S)

    async def revoke(self, user_id: str) -> str:
        """Revoke the user's token; a new one."""
        async with self.server.directory() as directory:
            (token,) = await directory.tokens(user_id)
            await directory.revoke(token.id)
            successor, _ = await directory.create_token(user_id)
        await asyncio.sleep(HEARD_AFTER_S)
        return successor

    def refusals(self, reason: str, user_id: str | None = None) -> list[dict]:
        """The canonical lines of requests that were refused for this reason; without a token, of no user."""
        lines = (orjson.loads(line) for line in self.server.log().splitlines() if line.startswith("{"))
        return [line for line in lines if line.get("reason") == reason and line.get("user") == user_id]

    def bookings(self, user_id: str) -> list[Booked]:
        """The ledger's rows of a user's turns, oldest first."""
        columns = "kind, basis, outcome, upstream_request_id, usage"
        of_turns = "user_id = ?1 AND model = ?2"
        sql = f"SELECT {columns} FROM entries WHERE {of_turns} ORDER BY seq"
        return [booked(row) for row in self.server.rows(sql, user_id, MODEL)]

    async def assert_booked_as_told(self) -> None:
        """Every request that reached the vendor is in the ledger once, what was answered with its exact counts."""
        await self.server.until_nothing_is_held()
        columns = "kind, basis, outcome, upstream_request_id, usage"
        resolved = f"SELECT {columns} FROM entries WHERE kind IN ('settle', 'expire')"
        rows = [booked(row) for row in self.server.rows(resolved)]
        by_request = {row.upstream_request_id: row for row in rows}
        assert len(rows) == len(self.vendor.answers) == self.vendor.requests_total
        for told in self.vendor.answers:
            row = by_request.pop(told.request_id, None)
            if row is not None and row.basis == "reported" and told.usage is not None:
                assert row.counts == told.usage.counts()
        assert [row.kind for row in by_request.values()] in ([], ["expire"]), "of a killed proxy"
        await self.server.assert_verified()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("stage")
    plans = folder / "all-plans.toml"
    plans.write_text("".join(map(plan_table, LIMITS)))
    async with (
        AnthropicSimulator() as vendor,
        serving(folder, upstream=vendor.url, env={"PLANS_FILE": str(plans)}) as server,
    ):
        server.port = int(server.url.rpartition(":")[2])
        agents = []
        async with server.directory() as directory:
            for name, (provider, plan) in PROVIDERS.items():
                await directory.add_user(name, plan=plan)
                token, _ = await directory.create_token(name)
                agents.append(Agent(name, token, provider))
        state = folder / "openclaw"
        state.mkdir()
        async with running_openclaw(state, server.url, agents) as openclaw:
            stage = Stage(vendor, server, openclaw)
            vendor.script = stage.behaviour
            yield stage
        assert openclaw.processes() == []
        await stage.assert_booked_as_told()


def plan_table(name: str) -> str:
    credits_per_month, requests_per_minute = LIMITS[name]
    table = PLANS.format(
        credits_per_month=credits_per_month,
        requests_per_minute=requests_per_minute,
        concurrent=10,
        models='["*"]',
        surfaces='["*"]',
    )
    return table.replace("[plans.test]", f"[plans.{name}]")
