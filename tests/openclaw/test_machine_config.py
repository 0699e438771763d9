"""The real agent runs with what a machine is given, environment and file: every provider and plugin of it comes to the proxy.

Only the proxy's address, the places of the file and of the search plugin, and where OpenClaw listens are those of the test.
"""

import base64
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio

from provisioning.template import MachineTemplate, Templates
from simulators import brave, gemini, openai
from simulators.anthropic import AnthropicSimulator, ReportedUsage, streams
from simulators.brave import BraveSimulator
from simulators.gemini import GeminiSimulator
from simulators.openai import OpenAISimulator
from simulators.vendor import VendorSimulator
from tests.support.machines import IMAGE
from tests.support.openclaw import BRAVE_PLUGIN, OpenClaw, calls_tool, running_openclaw
from tests.support.process import Serving, serving

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.openclaw,
    pytest.mark.heavy,
]

WITHIN_S = 150.0
HOOK_TOKEN = "hook_of-the-test"
CLAUDE, GPT, FLASH = "claude-sonnet-5", "gpt-5.6-sol", "gemini-3.6-flash"
EMBEDDING = "gemini-embedding-001"
REMEMBERED = "The small brown bird in the garden is a wren."


@dataclass
class Stage:
    """The vendors, the proxy, and the agent of the user `ada`, as in her machine. `said`: what Claude's next turns say."""

    vendors: dict[str, VendorSimulator[Any, Any]]
    server: Serving
    openclaw: OpenClaw
    template: MachineTemplate
    written: str
    said: deque[Any] = field(default_factory=deque)

    async def turn(self, model: str, text: str) -> None:
        """A turn of the agent, asked for by its hook."""
        body = {"message": text, "model": model, "deliver": False, "waitForCompletion": True}
        headers = {"authorization": f"Bearer {HOOK_TOKEN}"}
        async with httpx.AsyncClient(trust_env=False, timeout=WITHIN_S) as client:
            answer = await client.post(self.openclaw.hook_url, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["completion"]["status"] == "ok", f"{answer.text}\n{self.openclaw.log()[-3000:]}"

    def asked(self, surface: str, text: str) -> int:
        """How many requests with this text a vendor has seen."""
        return sum(text.encode() in request.body for request in self.vendors[surface].requests)

    async def booked(self, model: str) -> set[tuple[str, str, str]]:
        """By what of this model was booked for the agent's user: only with her gateway token is anything."""
        await self.server.until_nothing_is_held()
        sql = "SELECT surface, basis, outcome FROM entries WHERE user_id = 'ada' AND model = ?1"
        return set(self.server.rows(sql, model))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("machine")
    state = folder / "openclaw"
    memory = state / "state" / "workspace" / "memory" / "garden.md"
    memory.parent.mkdir(parents=True)
    memory.write_text(REMEMBERED)
    said: deque[Any] = deque()
    async with (
        AnthropicSimulator() as claude,
        OpenAISimulator() as gpt,
        GeminiSimulator() as flash,
        BraveSimulator() as searches,
        serving(
            folder,
            upstream=claude.url,
            env={
                "OPENAI_API_KEY": openai.VENDOR_KEY,
                "OPENAI_UPSTREAM_URL": gpt.url,
                "GEMINI_API_KEY": gemini.VENDOR_KEY,
                "GEMINI_UPSTREAM_URL": flash.url,
                "BRAVE_API_KEY": brave.VENDOR_KEY,
                "BRAVE_UPSTREAM_URL": searches.url,
            },
        ) as server,
    ):
        claude.script = lambda request: said.popleft() if b'"tools":' in request.body and said else None
        template = Templates.load().of("pro")
        config = template.config(
            {
                "gateway_token": await server.new_token("ada"),
                "proxy": server.url,
                "ticket_key": "00",
                "hook_token": HOOK_TOKEN,
            },
            image=IMAGE,
            volume_id="vol_1",
            metadata={},
        )
        (file,) = config["files"]
        written = json.loads(base64.b64decode(file["raw_value"]))
        assert config["env"]["OPENCLAW_CONFIG_PATH"] == file["guest_path"]
        written["plugins"]["load"]["paths"] = [str(BRAVE_PLUGIN)]
        env = {**config["env"], "OPENCLAW_CONFIG_PATH": str(state / "openclaw.json")}
        async with running_openclaw(state, server.url, [], config=written, env=env) as openclaw:
            vendors = {"anthropic": claude, "openai": gpt, "gemini": flash, "brave": searches}
            text = (state / "openclaw.json").read_text()
            yield Stage(vendors, server, openclaw, template, text, said)
        await server.until_nothing_is_held()
        await server.assert_verified()


PROVIDERS = [
    ("automna", "anthropic", CLAUDE),
    ("anthropic", "anthropic", CLAUDE),
    ("automna-openai", "openai", GPT),
    ("openai", "openai", GPT),
    ("automna-gemini", "gemini", FLASH),
    ("google", "gemini", FLASH),
]


@pytest.mark.parametrize(("provider", "surface", "model"), PROVIDERS)
async def test_a_turn_of_every_provider_comes_to_the_proxy_with_the_gateway_token(
    stage, provider, surface, model
):
    """Also of those that are built in, which OpenClaw finds by the keys in its environment."""
    text = f"Name a bird, {provider}."
    await stage.turn(f"{provider}/{model}", text)
    assert stage.asked(surface, text) == 1
    assert await stage.booked(model) == {(surface, "reported", "completed")}


async def test_a_search_of_the_web_and_one_of_its_memory_come_to_the_proxy(stage):
    usage = ReportedUsage(input_tokens=10, output_tokens=5)
    searched = {"id": "web_search", "args": {"query": "a small brown bird"}}
    remembered = {"id": "memory_search", "args": {"query": "which bird is in the garden"}}
    stage.said += [
        calls_tool("tool_call", searched, usage),
        calls_tool("tool_call", remembered, usage),
        streams(text="A wren.", usage=usage),
    ]
    await stage.turn(f"automna/{CLAUDE}", "Which bird is small and brown?")
    assert not stage.said
    (search,) = stage.vendors["brave"].requests
    assert search.query["q"] == "a small brown bird"
    last = stage.vendors["anthropic"].requests[-1].body
    assert b"https://site1.example/page" in last, "what was found came to the model"
    assert stage.asked("gemini", "which bird is in the garden") == 1
    assert REMEMBERED.encode() in last
    assert await stage.booked(EMBEDDING) == {("gemini", "reported", "completed")}
    entries = "SELECT outcome FROM entries WHERE user_id = 'ada' AND surface = 'brave'"
    assert stage.server.rows(entries) == [("completed",)]


async def test_the_gateway_answers_where_it_is_probed(stage):
    base = stage.openclaw.hook_url.removesuffix("/hooks/agent")
    async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
        answer = await client.get(stage.template.probe_path)
    assert (answer.status_code, answer.json()["status"]) == (200, "started")


async def test_nobody_but_the_proxy_is_contacted_and_the_file_stays_as_it_was_written(stage):
    """But for OpenClaw's own catalog of plugins, which no setting turns off; here it is not let out."""
    hosts = stage.openclaw.hosts_contacted()
    assert {"127.0.0.1"} <= hosts <= {"127.0.0.1", "::1", "localhost", "clawhub.ai"}
    assert (stage.openclaw.folder / "openclaw.json").read_text() == stage.written
