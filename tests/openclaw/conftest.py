"""One proxy process, one OpenClaw, several agents: shared by the tests of the folder, for each start costs seconds."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import orjson
import pytest_asyncio
import uvloop

from metering.money import credits_of
from metering.terms import Cap, CapMeter, CapPeriod
from simulators import brave, gemini, openai
from simulators.anthropic import AnthropicSimulator
from simulators.brave import BraveSimulator
from simulators.gemini import GeminiSimulator
from simulators.openai import OpenAISimulator, ToolCall
from simulators.server import ReceivedRequest
from simulators.vendor import VendorSimulator
from tests.support.gateway import plan_table
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
PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "custom": ("automna", "test"),
    "builtin": ("anthropic", "test"),
    "spent": ("automna", "small"),
    "large": ("automna", "tiny"),
    "held": ("automna", "narrow"),
    "revoked": ("automna", "test"),
    "replaced": ("automna", "test"),
    "disabled": ("automna", "test"),
    "hurried": ("automna", "slow"),
    "cut": ("automna", "test"),
    "chat": ("automna-openai", "test", "openai-completions"),
    "responses": ("automna-openai", "test"),
    "gemini": ("automna-gemini", "test"),
}
"""Of each agent, who is a user of the same name: the documented provider, the plan, and an API that is not the
documented one."""


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


class Script(deque[Any]):
    """What a vendor shall answer to the next turns."""

    def behaviour(self, request: ReceivedRequest) -> Any:
        """Turns carry tools. What OpenClaw asks beside them (recaps by a small model) is answered plainly."""
        is_turn = b'"tools":' in request.body
        return self.popleft() if is_turn and self else None


@dataclass
class Other:
    """A vendor beside Anthropic. `words`: the module with its behaviours."""

    words: ModuleType
    simulator: VendorSimulator[Any, Any]
    model: str
    asked_for_tool: Any
    """The usage of an answer that calls a tool."""
    said: Any
    """The usage of a text."""
    script: Script = field(default_factory=Script)

    def __post_init__(self) -> None:
        self.simulator.script = self.script.behaviour

    def calls_tool(self, name: str, arguments: Mapping[str, str]) -> Any:
        """A streamed answer that ends with the call of a tool."""
        usage = self.asked_for_tool
        if self.words is gemini:
            return gemini.streams(function_call=(name, arguments), usage=usage)
        return openai.streams(tool_calls=(ToolCall(name, orjson.dumps(arguments).decode()),), usage=usage)


@dataclass
class Stage:
    """The vendors, the proxy, OpenClaw, and what Anthropic shall answer to the next turns."""

    vendor: AnthropicSimulator
    openai: Other
    gemini: Other
    brave: BraveSimulator
    server: Serving
    openclaw: OpenClaw
    script: Script = field(default_factory=Script)

    def vendor_of(self, agent: str) -> Other:
        return self.gemini if agent == "gemini" else self.openai

    async def set_plan(self, user_id: str, plan: str) -> None:
        """Returns when the running server has heard of it."""
        async with self.server.directory() as directory:
            await directory.set_plan(user_id, plan)
        await asyncio.sleep(HEARD_AFTER_S)

    async def cap(self, user_id: str, *, nanousd_left: int) -> int:
        """Let the user spend so much more this month. The cap in credits; the running server has heard of it."""
        ((spent,),) = self.server.rows("SELECT SUM(cost_nanousd) FROM entries WHERE user_id = ?1", user_id)
        limit = credits_of(spent + nanousd_left)
        async with self.server.directory() as directory:
            await directory.set_caps(user_id, [Cap(CapMeter.CREDITS, CapPeriod.MONTH, limit)])
        await asyncio.sleep(HEARD_AFTER_S)
        return limit

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

    def bookings(self, user_id: str, model: str = MODEL) -> list[Booked]:
        """The ledger's rows of a user's turns, oldest first."""
        columns = "kind, basis, outcome, upstream_request_id, usage"
        of_turns = "user_id = ?1 AND model = ?2"
        sql = f"SELECT {columns} FROM entries WHERE {of_turns} ORDER BY seq"
        return [booked(row) for row in self.server.rows(sql, user_id, model)]

    async def assert_booked_as_told(self) -> None:
        """Every request that reached a vendor is in the ledger once, what was answered with its exact counts."""
        await self.server.until_nothing_is_held()
        simulators = (self.vendor, self.openai.simulator, self.gemini.simulator, self.brave)
        answers = [answered for simulator in simulators for answered in simulator.answers]
        columns = "kind, basis, outcome, upstream_request_id, usage"
        resolved = f"SELECT {columns} FROM entries WHERE kind IN ('settle', 'expire')"
        rows = [booked(row) for row in self.server.rows(resolved)]
        assert len(rows) == len(answers) == sum(simulator.requests_total for simulator in simulators)
        by_request = {row.upstream_request_id: row for row in rows if row.upstream_request_id}
        for told in answers:
            row = by_request.pop(told.request_id, None)
            if row is not None and row.basis == "reported" and told.usage is not None:
                assert row.counts == told.usage.counts()
        assert by_request == {}
        without_id = [row for row in rows if row.upstream_request_id is None]
        nameless = (*self.gemini.simulator.answers, *self.brave.answers)
        told_without_id = Counter(frozen(told.usage.counts()) for told in nameless)
        reported = Counter(frozen(row.counts) for row in without_id if row.basis == "reported")
        assert reported <= told_without_id, "Gemini's and Brave's answers have no ids"
        expired = [row.kind for row in without_id if row.kind == "expire"]
        assert expired in ([], ["expire"]), "of a killed proxy"
        await self.server.assert_verified()


def frozen(counts: Mapping[str, int] | None) -> frozenset[tuple[str, int]]:
    return frozenset((counts or {}).items())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("stage")
    plans = folder / "all-plans.toml"
    plans.write_text(
        "".join(
            plan_table(name, credits_per_month=credits_per_month, requests_per_minute=rate, concurrent=10)
            for name, (credits_per_month, rate) in LIMITS.items()
        )
    )
    async with (
        AnthropicSimulator() as vendor,
        OpenAISimulator() as openai_vendor,
        GeminiSimulator() as gemini_vendor,
        BraveSimulator() as brave_vendor,
        serving(
            folder,
            upstream=vendor.url,
            env={
                "PLANS_FILE": str(plans),
                "CHANGES_STALE_AFTER_S": str(HEARD_AFTER_S),
                "OPENAI_API_KEY": openai.VENDOR_KEY,
                "OPENAI_UPSTREAM_URL": openai_vendor.url,
                "GEMINI_API_KEY": gemini.VENDOR_KEY,
                "GEMINI_UPSTREAM_URL": gemini_vendor.url,
                "BRAVE_API_KEY": brave.VENDOR_KEY,
                "BRAVE_UPSTREAM_URL": brave_vendor.url,
            },
        ) as server,
    ):
        server.port = int(server.url.rpartition(":")[2])
        agents = []
        async with server.directory() as directory:
            for name, (provider, plan, *api) in PROVIDERS.items():
                await directory.add_user(name, plan=plan)
                token, _ = await directory.create_token(name)
                agents.append(Agent(name, token, provider, *api))
        state = folder / "openclaw"
        state.mkdir()
        async with running_openclaw(state, server.url, agents) as openclaw:
            others = (openai_of(openai_vendor), gemini_of(gemini_vendor), brave_vendor)
            stage = Stage(vendor, *others, server, openclaw)
            vendor.script = stage.script.behaviour
            yield stage
        assert openclaw.processes() == []
        await stage.assert_booked_as_told()


def openai_of(simulator: OpenAISimulator) -> Other:
    return Other(
        openai,
        simulator,
        "gpt-5.6-sol",
        asked_for_tool=openai.ReportedUsage(
            prompt_tokens=5_101, completion_tokens=90, cached_tokens=5_000, reasoning_tokens=70
        ),
        said=openai.ReportedUsage(prompt_tokens=202, completion_tokens=6_000),
    )


def gemini_of(simulator: GeminiSimulator) -> Other:
    return Other(
        gemini,
        simulator,
        "gemini-3.6-flash",
        asked_for_tool=gemini.ReportedUsage(
            input_tokens=101, cached_tokens=5_000, output_tokens=20, thoughts_tokens=70
        ),
        said=gemini.ReportedUsage(input_tokens=202, output_tokens=6_000),
    )
