"""The vendor of a soak, in a process of its own: `python -m tests.soak.vendor FOLDER`.

Writes its port into FOLDER/port. Told to end by SIGTERM, it writes what it saw: FOLDER/kinds (one unsigned byte a
request, its index in `mix.KINDS`) and FOLDER/costs (one signed number of 64 bits a request, what its answer costs at
list price), both in the order of the numbers in its request ids.
"""

import asyncio
import signal
import sys
from array import array
from pathlib import Path

import uvloop

from simulators.anthropic import Answered, AnthropicSimulator
from simulators.script import Ready, Script
from simulators.server import Exchange, ReceivedRequest
from tests.soak.mix import KIND_HEADER, UNANSWERED

INPUT_NANOUSD, OUTPUT_NANOUSD = 3_000, 15_000
"""A token of claude-sonnet-4-5, list price: 3 and 15 USD a million."""


class TallyingVendor(AnthropicSimulator):
    """Remembers nine bytes a request instead of the request."""

    def __init__(self) -> None:
        super().__init__(keeps_record=False)
        self.kinds = array("B")
        self.costs = array("q")

    def seen(self, request: ReceivedRequest) -> tuple[Exchange, Script | Ready]:
        exchange, answer = super().seen(request)
        missing = request.number - len(self.kinds)
        self.kinds.extend([UNANSWERED] * missing)
        self.costs.extend([0] * missing)
        self.kinds[request.number - 1] = int(request.header(KIND_HEADER.encode()))
        self.costs[request.number - 1] = _cost_nanousd(answer)
        return exchange, answer


def _cost_nanousd(answer: Script | Ready) -> int:
    reports = answer.reports
    if not isinstance(reports, Answered) or reports.usage is None:
        return 0
    return reports.usage.input_tokens * INPUT_NANOUSD + reports.usage.output_tokens * OUTPUT_NANOUSD


async def serve(folder: Path) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with TallyingVendor() as vendor:
        (folder / "port").write_text(str(vendor.port))
        await stopping.wait()
    (folder / "kinds").write_bytes(vendor.kinds.tobytes())
    (folder / "costs").write_bytes(vendor.costs.tobytes())


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
