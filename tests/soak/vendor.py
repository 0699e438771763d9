"""The vendors of a soak, in a process of their own: `python -m tests.soak.vendor FOLDER`.

Writes their ports into FOLDER/ports, as JSON by surface. Told to end by SIGTERM, it writes what each saw, into
FOLDER/SURFACE: `kinds` (one unsigned byte a request, its index in `mix.KINDS`) and `costs` (one signed number of 64
bits a request, what its answer costs at list price), both in the order of the numbers in its request ids.
"""

import asyncio
import signal
import sys
from array import array
from contextlib import AsyncExitStack
from pathlib import Path

import orjson
import uvloop

from simulators import brave, gemini
from simulators.anthropic import AnthropicSimulator
from simulators.brave import BraveSimulator
from simulators.gemini import GeminiSimulator
from simulators.openai import OpenAISimulator
from simulators.script import Ready, Script
from simulators.server import Exchange, ReceivedRequest, SimulatorServer
from simulators.vendor import Answered
from tests.soak.mix import BRAVE_NAMES, GEMINI_NAMES, KIND_HEADER, KINDS, UNANSWERED


class Tallying(SimulatorServer):
    """Mixed into a vendor: it remembers nine bytes a request instead of the request."""

    kinds: "array[int]"
    costs: "array[int]"

    def seen(self, request: ReceivedRequest) -> tuple[Exchange, Script | Ready]:
        exchange, answer = super().seen(request)
        missing = request.number - len(self.kinds)
        self.kinds.extend([UNANSWERED] * missing)
        self.costs.extend([0] * missing)
        kind_index = int(request.header(KIND_HEADER.encode()))
        self.kinds[request.number - 1] = kind_index
        reports = answer.reports
        if isinstance(reports, Answered) and reports.usage is not None:
            self.costs[request.number - 1] = KINDS[kind_index].cost_of(reports.usage.counts())
        return exchange, answer

    async def start(self, *, host: str = "127.0.0.1", port: int = 0) -> str:
        self.kinds, self.costs = array("B"), array("q")
        return await super().start(host=host, port=port)


class _Anthropic(Tallying, AnthropicSimulator):
    pass


class _OpenAI(Tallying, OpenAISimulator):
    pass


class _NamedTurn(gemini._Turn):
    """The real vendor names no request; here each has an id, so that its entry can be found."""

    @property
    def request_id(self) -> str:
        return f"{GEMINI_NAMES}{self.request.number}"

    @classmethod
    def headers(cls, content_type: str, request_id: str) -> tuple[tuple[str, str], ...]:
        return (*super().headers(content_type, request_id), ("x-request-id", request_id))


class _Gemini(Tallying, GeminiSimulator):
    turn_type = _NamedTurn


class _NamedBraveTurn(brave._Turn):
    """As Gemini's."""

    @property
    def request_id(self) -> str:
        return f"{BRAVE_NAMES}{self.request.number}"

    @classmethod
    def headers(cls, content_type: str, request_id: str) -> tuple[tuple[str, str], ...]:
        return (*super().headers(content_type, request_id), ("x-request-id", request_id))


class _Brave(Tallying, BraveSimulator):
    turn_type = _NamedBraveTurn


async def serve(folder: Path) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    vendors: dict[str, Tallying] = {
        "anthropic": _Anthropic(keeps_record=False),
        "openai": _OpenAI(keeps_record=False),
        "gemini": _Gemini(keeps_record=False),
        "brave": _Brave(keeps_record=False),
    }
    async with AsyncExitStack() as stack:
        for vendor in vendors.values():
            await stack.enter_async_context(vendor)
        ports = folder / "ports.new"
        ports.write_bytes(orjson.dumps({surface: vendor.port for surface, vendor in vendors.items()}))
        ports.rename(folder / "ports")
        await stopping.wait()
    for surface, vendor in vendors.items():
        (folder / surface).mkdir()
        (folder / surface / "kinds").write_bytes(vendor.kinds.tobytes())
        (folder / surface / "costs").write_bytes(vendor.costs.tobytes())


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
