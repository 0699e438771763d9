"""The vendors, a gateway for each set of bounds, and the count of what is open: shared by all cells of a process.

A gateway is warm before its first cell, so that whatever is open after a cell and was not before it has leaked.
"""

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from metering.objects import ObjectId, Objects
from metering.tasks import stop
from simulators.agentmail import VENDOR_KEY as AGENTMAIL_KEY
from simulators.agentmail import AgentMailSimulator
from simulators.anthropic import AnthropicSimulator
from simulators.bland import START, BlandSimulator
from simulators.bland import VENDOR_KEY as BLAND_KEY
from simulators.brave import VENDOR_KEY as BRAVE_KEY
from simulators.brave import BraveSimulator
from simulators.browserbase import PROJECT_ID, BrowserbaseSimulator
from simulators.browserbase import VENDOR_KEY as BROWSERBASE_KEY
from simulators.gemini import VENDOR_KEY as GEMINI_KEY
from simulators.gemini import GeminiSimulator
from simulators.openai import VENDOR_KEY as OPENAI_KEY
from simulators.openai import OpenAISimulator
from simulators.vendor import VendorSimulator
from tests.matrix.speeches import SPEECHES
from tests.matrix.tables import STAYS, Cell, End, Part, Stage
from tests.support.gateway import DatedClock, Gateway, running_gateway

LEFT_WITHIN_S = 60.0
"""How long a cell's tasks, connections and descriptors may take to be gone."""
POLL_S = 0.002
WARM_WITHIN_S = 0.5
SEND_BUFFER_BYTES = 16 * 1024
"""Of the gateways' connections to their clients: a slow reader is felt soon."""

PATIENT = {
    "CONNECT_TIMEOUT_S": "20",
    "FIRST_BYTE_TIMEOUT_S": "20",
    "IDLE_TIMEOUT_S": "20",
    "ANSWER_TIMEOUT_S": "60",
    "DRAIN_AFTER_CLIENT_LEFT_S": "20",
    "SETTLE_WAIT_S": "10",
    "STORE_BUSY_TIMEOUT_S": "10",
    "CHANGES_STALE_AFTER_S": "20",
}
"""Bounds that nothing reaches which behaves."""
SHORT: Mapping[str, Mapping[str, str]] = {
    "patient": {},
    "silent before the head": {"FIRST_BYTE_TIMEOUT_S": "1"},
    "silent after the head": {"IDLE_TIMEOUT_S": "1"},
    "never ends": {"ANSWER_TIMEOUT_S": "2", "DRAIN_AFTER_CLIENT_LEFT_S": "1"},
    "refuses": {},
    "never accepts": {"CONNECT_TIMEOUT_S": "0.2"},
    "soon spoken for": {"STREAM_SILENCE_S": "0.1"},
    "left at connecting": {"DRAIN_AFTER_CLIENT_LEFT_S": "0.1"},
}
"""For each kind of vendor that is ended by a bound, the one that ends it: short, but long enough for what must be
done before, on a busy machine."""
UNSEEN = {"refuses", "never accepts", "left at connecting"}
"""Bounds of gateways whose vendor cannot be reached."""
WARM_USER = "u0"


def bounds_of(cell: Cell) -> str:
    """The name of the bounds that a cell runs under. Silence is waited out where the client stays; for all others it
    is `hurried`."""
    vendor = cell.vendor
    match vendor.end:
        case End.REFUSES:
            return "refuses"
        case End.NEVER_ACCEPTS:
            return "left at connecting" if cell.client.leaves_at is Stage.CONNECTING else "never accepts"
        case End.STALLS if cell.client is STAYS:
            return "silent before the head" if vendor.sends < Part.HEAD else "silent after the head"
        case End.NEVER_ENDS:
            return "never ends"
    return "patient"


def hurry(gateway: Gateway) -> None:
    """Let the time run out that the gateway waits for its vendor: the timer fires in the loop's next turn."""
    for connection in gateway.service.client._connections:
        if connection._answer is not None:
            connection._wait_for(connection._phase, 0.0)


@dataclass(frozen=True)
class Open:
    """What is open. Connections that wait in the pool are counted out: they may come and go."""

    tasks: frozenset[str]
    descriptors: int

    def __le__(self, other: "Open") -> bool:
        """Nothing is open that was not open there."""
        return self.tasks <= other.tasks and self.descriptors <= other.descriptors


def _number_of(user_id: str) -> str:
    """What a user calls from."""
    return f"+1415555{int(user_id[1:]):04}"


def _own(user_id: str) -> dict[str, ObjectId]:
    """What each user has at vendors, by how a speech names it."""
    return {
        "inbox": ObjectId("agentmail", "inbox", f"{user_id}@agentmail.to"),
        "session": ObjectId("browserbase", "session", f"ses-{user_id}"),
        "call": ObjectId("bland", "call", f"call-{user_id}"),
        "number": ObjectId("bland", "number", _number_of(user_id)),
    }


def filled(text: bytes, user_id: str) -> bytes:
    """A target or a body as a user says it. No two call the same number: the vendor would not dial it again so soon."""
    named = {name: one.upstream_id for name, one in _own(user_id).items()}
    named["to"] = f"+1310555{int(user_id[1:]):04}"
    for name, value in named.items():
        text = text.replace(f"{{{name}}}".encode(), value.encode())
    return text


async def new_token(gateway: Gateway, user_id: str) -> str:
    """Of a new user, who has something at each vendor that keeps things."""
    token = await gateway.new_token(user_id)
    objects = Objects(gateway.service.store, gateway.clock)
    await objects.bind(list(_own(user_id).values()), user_id, "home:inbox")
    return token


class House:
    """The vendors and the gateways."""

    def __init__(self, folder: Path) -> None:
        self.clock = DatedClock(2026, 11, 20)
        self._bland = BlandSimulator(clock=self.clock, tariff=START, fate_of=lambda _: None)
        self.vendors: dict[str, VendorSimulator[Any, Any]] = {
            "anthropic": AnthropicSimulator(),
            "openai": OpenAISimulator(),
            "gemini": GeminiSimulator(),
            "brave": BraveSimulator(),
            "agentmail": AgentMailSimulator(),
            "browserbase": BrowserbaseSimulator(clock=self.clock),
            "bland": self._bland,
        }
        self._folder = folder
        self._gateways: dict[str, Gateway] = {}
        self._stack = AsyncExitStack()
        self._users = 0

    async def __aenter__(self) -> Self:
        for vendor in self.vendors.values():
            await self._stack.enter_async_context(vendor)
        return self

    @property
    def requests_total(self) -> int:
        """What all vendors have seen."""
        return sum(vendor.requests_total for vendor in self.vendors.values())

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def gateway(self, bounds: str) -> Gateway:
        """The gateway with these bounds, started and warm."""
        if bounds not in self._gateways:
            self._gateways[bounds] = await self._started(bounds)
        return self._gateways[bounds]

    async def new_user(self, gateway: Gateway) -> tuple[str, str]:
        """A user of the cell's own, and a gateway token of theirs."""
        self._users += 1
        user_id = f"u{self._users}"
        self._bland.add_number(_number_of(user_id), is_byot=False)
        return user_id, await new_token(gateway, user_id)

    def open(self) -> Open:
        """What is open now. Both ends of a pooled connection are ours, for the vendors are in this process."""
        clients = [gateway.service.client for gateway in self._gateways.values()]
        idle = sum(client.idle_connections for client in clients)
        tasks = frozenset(f"{task.get_name()} {id(task)}" for task in asyncio.all_tasks() if not task.done())
        return Open(tasks, sum(1 for _ in Path("/proc/self/fd").iterdir()) - 2 * idle)

    async def until_open_is(self, before: Open) -> None:
        """Wait until all is gone that was not there before. Fails with what is left. (What was there before may
        have ended: a look for revocations, say.)"""
        try:
            async with asyncio.timeout(LEFT_WITHIN_S):
                while not self.open() <= before:
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            now = self.open()
            raise AssertionError(
                f"left behind: {now.tasks - before.tasks}, {now.descriptors - before.descriptors} descriptors"
            ) from None

    async def pass_time(self, gateway: Gateway, seconds: float) -> None:
        """And ask about whatever is due to be asked about then."""
        self.clock.advance(seconds)
        while await gateway.service.engine._deferrals.poll_due():
            pass

    async def _started(self, bounds: str) -> Gateway:
        folder = self._folder / bounds.replace(" ", "-")
        folder.mkdir()
        urls = {name: vendor.url for name, vendor in self.vendors.items()}
        if bounds == "refuses":
            urls = dict.fromkeys(urls, self._closed_port())
        elif bounds in ("never accepts", "left at connecting"):
            urls = dict.fromkeys(urls, await self._full_port())
        others = {
            "OPENAI_API_KEY": OPENAI_KEY,
            "OPENAI_UPSTREAM_URL": urls["openai"],
            "GEMINI_API_KEY": GEMINI_KEY,
            "GEMINI_UPSTREAM_URL": urls["gemini"],
            "BRAVE_API_KEY": BRAVE_KEY,
            "BRAVE_UPSTREAM_URL": urls["brave"],
            "AGENTMAIL_API_KEY": AGENTMAIL_KEY,
            "AGENTMAIL_UPSTREAM_URL": urls["agentmail"],
            "BROWSERBASE_API_KEY": BROWSERBASE_KEY,
            "BROWSERBASE_UPSTREAM_URL": urls["browserbase"],
            "BROWSERBASE_PROJECT_ID": PROJECT_ID,
            "BLAND_API_KEY": BLAND_KEY,
            "BLAND_UPSTREAM_URL": urls["bland"],
            "SWEEP_EVERY_S": "0",
        }
        started: Any = running_gateway(
            folder, upstream=urls["anthropic"], env={**PATIENT, **SHORT[bounds], **others}, clock=self.clock
        )
        gateway: Gateway = await self._stack.enter_async_context(started)
        for task in asyncio.all_tasks():
            if task.get_name() == "deferred work":  # nobody asks about it but the test
                await stop(task)
        for listener in gateway.server.servers[0].sockets:  # inherited by what it accepts
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        token = await new_token(gateway, WARM_USER)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=WARM_WITHIN_S, trust_env=False) as client:
            for speech in SPEECHES:
                name, _, scheme = speech.dialect.key.decode().partition(": ")
                headers = {name: scheme + token, "anthropic-version": "2023-06-01"}
                with contextlib.suppress(httpx.TimeoutException):  # where nobody answers
                    await client.request(
                        speech.method.decode(),
                        filled(speech.target, WARM_USER).decode(),
                        content=filled(speech.body(), WARM_USER),
                        headers=headers,
                    )
        await gateway.assert_clean()
        await gateway.entries()
        return gateway

    def _closed_port(self) -> str:
        """An address where nobody listens: bound, so that nobody else will."""
        bound = self._stack.enter_context(socket.socket())
        bound.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{bound.getsockname()[1]}"

    async def _full_port(self) -> str:
        """An address where connections are neither accepted nor refused: its queue is full."""
        listener = self._stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        first = self._stack.enter_context(socket.socket())
        first.setblocking(False)
        await asyncio.get_running_loop().sock_connect(first, address)
        return f"http://127.0.0.1:{address[1]}"
