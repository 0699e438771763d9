"""The real OpenClaw: one gateway process, configured as `docs/openclaw.md` says, asked for turns over its HTTP API.

It runs under the Node that is installed beside it and leaves processes of its own behind; everything it
started is found by the state folder in its environment, and gone at the end.
"""

import asyncio
import copy
import json
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from simulators.anthropic import Behaviour, ReportedUsage, replays
from simulators.anthropic_messages import Content, Message, event, message_end, message_start
from tests.support.node import INSTALLED, node
from tests.support.process import pids

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "openclaw.md"
DOCUMENTED_URL = "https://proxy.example.com"
FURTHER, SEARCH, HOOKS = 1, 2, 3
"""The document's blocks after the first: what else is served, web search, and mail that comes in."""
BRAVE_PLUGIN = INSTALLED / "@openclaw" / "brave-plugin"
PRELOAD = ROOT / "tests" / "openclaw" / "connections.cjs"
READY_WITHIN_S = 240.0
STOPS_WITHIN_S = 20.0
TURN_WITHIN_S = 150.0
STREAM_TYPE = "text/event-stream; charset=utf-8"
POLL_S = 0.05


def documented(url: str, *, block: int = 0) -> dict[str, Any]:
    """The configuration of the document (its JSON blocks, counted), with the proxy at `url`."""
    blocks = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    config: dict[str, Any] = json.loads(blocks[block].replace(DOCUMENTED_URL, url))
    return config


@dataclass(frozen=True)
class Agent:
    """An agent with a gateway token of its own, on one of the document's providers. `api`: another than there."""

    name: str
    token: str
    provider: str = "automna"
    api: str | None = None


@dataclass(frozen=True)
class Turn:
    """What the user saw."""

    status: int
    text: str
    elapsed_s: float


def configured(url: str, agents: list[Agent], folder: Path) -> dict[str, Any]:
    """The document's configuration for several agents at once: each gets a documented provider under a name and with
    a token of its own, because OpenClaw locks keys by provider. The built-in one keeps its name."""
    config = documented(url)
    providers = config["models"]["providers"]
    documents = {**providers, **documented(url, block=FURTHER)["models"]["providers"]}
    entries: dict[str, Any] = {}
    for agent in agents:
        provider = copy.deepcopy(documents[agent.provider])
        provider["apiKey"] = f"${{{token_variable(agent)}}}"
        provider["api"] = agent.api or provider["api"]
        name = agent.provider if is_built_in(provider) else f"{agent.provider}-{agent.name}"
        model = config["agents"]["defaults"]["model"]["primary"].partition("/")[2]
        if not is_built_in(provider):
            model = provider["models"][0]["id"]
        providers[name] = provider
        entries[agent.name] = {"model": f"{name}/{model}", "workspace": str(folder / agent.name)}
    config["agents"] |= {"ownership": "explicit", "entries": entries}
    config["gateway"]["http"] = {"endpoints": {"chatCompletions": {"enabled": True}}}
    config["logging"] = {"file": str(folder / "openclaw.log")}
    return config


def with_memory(config: dict[str, Any], url: str, agent: Agent) -> dict[str, Any]:
    """The configuration with the document's memory search, which uses the agent's token."""
    memory = documented(url, block=FURTHER)["memory"]
    memory["search"]["remote"]["apiKey"] = f"${{{token_variable(agent)}}}"
    return {**config, "memory": memory}


def with_search(url: str) -> dict[str, Any]:
    """The document's configuration with its web search, and where the plugin is installed."""
    config = {**documented(url), **documented(url, block=SEARCH)}
    config["plugins"]["load"] = {"paths": [str(BRAVE_PLUGIN)]}
    return config


def with_hooks(url: str) -> dict[str, Any]:
    """The document's configuration of one agent that is told of mail."""
    return {**documented(url), **documented(url, block=HOOKS)}


def is_built_in(provider: Mapping[str, Any]) -> bool:
    """Of OpenClaw's own, which bring their models."""
    return not provider["models"]


def token_variable(agent: Agent) -> str:
    return f"TOKEN_{agent.name.upper()}"


class OpenClaw:
    """A running OpenClaw. `folder` holds its state, configuration, workspaces and logs.

    `config`: instead of one for `agents`. `env`: what that names, and what else is not as usual."""

    def __init__(
        self,
        folder: Path,
        url: str,
        agents: list[Agent],
        *,
        config: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.connections = folder / "connections"
        self._agents = {agent.name: agent for agent in agents}
        self._process: asyncio.subprocess.Process | None = None
        self._port = free_port()
        self._secret = "a-secret-between-test-and-openclaw"
        self._more_env = dict(env or {})
        written = configured(url, agents, folder) if config is None else config
        (folder / "openclaw.json").write_text(json.dumps(written, indent=2))

    @property
    def env(self) -> dict[str, str]:
        tokens = {token_variable(agent): agent.token for agent in self._agents.values()}
        return {
            "PATH": f"{Path(node()).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "OPENCLAW_STATE_DIR": str(self.state),
            "OPENCLAW_CONFIG_PATH": str(self.folder / "openclaw.json"),
            "OPENCLAW_GATEWAY_TOKEN": self._secret,
            "NODE_OPTIONS": f"--require={PRELOAD}",
            "CONNECTIONS_FILE": str(self.connections),
            **tokens,
            **self._more_env,
        }

    @property
    def hook_url(self) -> str:
        """Where it is told of what happens elsewhere."""
        return f"http://127.0.0.1:{self._port}/hooks/agent"

    @property
    def client_env(self) -> dict[str, str]:
        """For commands that talk with the running gateway."""
        return {**self.env, "OPENCLAW_GATEWAY_PORT": str(self._port)}

    def env_with_memory(self, folder: Path, url: str, agent: str) -> dict[str, str]:
        """For commands with the document's memory search, by this agent's token; `folder` takes the configuration."""
        config = configured(url, list(self._agents.values()), self.folder)
        path = folder / "openclaw.json"
        path.write_text(json.dumps(with_memory(config, url, self._agents[agent])))
        return {**self.env, "OPENCLAW_CONFIG_PATH": str(path)}

    def env_with_search(self, folder: Path, url: str, token: str) -> dict[str, str]:
        """For one turn of an agent of its own that may search, with this token; `folder` takes all that it keeps."""
        path = folder / "openclaw.json"
        path.write_text(json.dumps(with_search(url)))
        return {
            **self.env,
            "HOME": str(folder),
            "OPENCLAW_STATE_DIR": str(folder / "state"),
            "OPENCLAW_CONFIG_PATH": str(path),
            "OPENCLAW_GATEWAY_TOKEN": token,
        }

    def token(self, agent: str) -> str:
        return self._agents[agent].token

    def workspace(self, agent: str) -> Path:
        return self.folder / agent

    def log(self) -> str:
        return (self.folder / "gateway.log").read_text(errors="replace")

    async def start(self) -> None:
        """Start the gateway and wait until it takes turns."""
        with (self.folder / "gateway.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(node(), INSTALLED / "openclaw" / "openclaw.mjs", "gateway", "run"),
                *("--port", str(self._port), "--bind", "loopback", "--auth", "token"),
                env=self.env,
                cwd=self.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        async with asyncio.timeout(READY_WITHIN_S), self._client() as client:
            while not await self._is_ready(client):
                assert self._process.returncode is None, self.log()
                await asyncio.sleep(POLL_S)

    async def _is_ready(self, client: httpx.AsyncClient) -> bool:
        try:
            return (await client.get("/readyz")).status_code == 200
        except httpx.HTTPError:
            return False

    async def turn(self, agent: str, text: str, *, within_s: float = TURN_WITHIN_S) -> Turn:
        """One turn of the agent's one session; what it answers is what its user sees."""
        began_s = asyncio.get_running_loop().time()
        body = {
            "model": f"openclaw/{agent}",
            "user": "the-user",
            "messages": [{"role": "user", "content": text}],
        }
        async with self._client(within_s) as client:
            answer = await client.post("/v1/chat/completions", json=body)
        told = answer.json()
        said = told["choices"][0]["message"]["content"] if "choices" in told else told["error"]["message"]
        return Turn(answer.status_code, said, asyncio.get_running_loop().time() - began_s)

    async def restart_with(self, agent: str, token: str) -> None:
        """As after a token was replaced: the same state, the new token in its environment."""
        await self.stop()
        self._agents[agent] = replace(self._agents[agent], token=token)
        await self.start()

    async def stop(self) -> None:
        """Ask it to end, then kill whatever is left of it."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(STOPS_WITHIN_S):
                    await self._process.wait()
        self.kill()
        if self._process is not None:
            await self._process.wait()

    def kill(self) -> None:
        """`kill -9` to every process that has this state folder in its environment."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        setting = f"OPENCLAW_STATE_DIR={self.state}".encode()
        return [pid for pid in pids() if setting in environment_of(pid)]

    def hosts_contacted(self) -> set[str]:
        """Every host that a process of it connected to or looked up, as written."""
        return set(self.connections.read_text().split())

    def _client(self, within_s: float = 5.0) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self._port}",
            headers={"authorization": f"Bearer {self._secret}"},
            timeout=within_s,
            trust_env=False,
        )


@asynccontextmanager
async def running_openclaw(
    folder: Path, url: str, agents: list[Agent], **more: Any
) -> AsyncIterator[OpenClaw]:
    """An OpenClaw that takes turns; nothing of it is left at the end. `more` as it says."""
    openclaw = OpenClaw(folder, url, agents, **more)
    try:
        await openclaw.start()
        yield openclaw
    finally:
        await openclaw.stop()


async def command(env: Mapping[str, str], *words: str) -> tuple[int, str]:
    """`openclaw WORDS`: its exit status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(node(), INSTALLED / "openclaw" / "openclaw.mjs", *words),
        env=dict(env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    async with asyncio.timeout(TURN_WITHIN_S):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


def environment_of(pid: int) -> list[bytes]:
    """As it was when the process started; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def free_port() -> int:
    """OpenClaw takes no port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def calls_tool(name: str, arguments: Mapping[str, Any], usage: ReportedUsage) -> Behaviour:
    """A streamed answer of the vendor that ends with the call of a tool."""
    message = Message("msg_01Tool", "claude-sonnet-5", Content(""), usage, "tool_use")
    block = {"type": "tool_use", "id": "toolu_01Sim", "name": name, "input": {}}
    delta = {"type": "input_json_delta", "partial_json": json.dumps(arguments)}
    events = (
        message_start(message),
        event("content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}),
        event("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}),
        event("content_block_stop", {"type": "content_block_stop", "index": 0}),
        *message_end(message),
    )
    return replays(b"".join(events), STREAM_TYPE, usage=usage)
