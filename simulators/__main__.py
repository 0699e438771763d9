"""A simulated vendor in a process of its own: `python -m simulators openai --port 9001`."""

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import uvloop

from simulators import agentmail, anthropic, bland, brave, browserbase, fly, gemini, openai, twilio
from simulators.server import SimulatorServer
from simulators.vendor import VendorSimulator

VENDORS: dict[str, type[VendorSimulator[Any, Any]]] = {
    "agentmail": agentmail.AgentMailSimulator,
    "anthropic": anthropic.AnthropicSimulator,
    "bland": bland.BlandSimulator,
    "brave": brave.BraveSimulator,
    "browserbase": browserbase.BrowserbaseSimulator,
    "fly": fly.FlySimulator,
    "gemini": gemini.GeminiSimulator,
    "openai": openai.OpenAISimulator,
    "twilio": twilio.TwilioSimulator,
}


async def serve(simulator: SimulatorServer, *, host: str = "127.0.0.1", port: int = 0) -> None:
    """Listen, print the URL, and serve until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    url = await simulator.start(host=host, port=port)
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()
    await stopping.wait()
    await simulator.stop()


def main() -> None:
    options = _options()
    kind = VENDORS[options.vendor]
    key = kind.vendor_key if options.api_key is None else options.api_key
    more = {} if options.chromium is None else {"chromium": options.chromium}
    simulator = kind(
        **more,
        api_key=key or None,
        default=kind.behaviour_type(events=options.burst_events, pace_s=options.pace_ms / 1000),
        gzip=options.gzip,
        keeps_record=not options.no_record,
        record_to=options.record_to,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(simulator, host=options.host, port=options.port))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulators", description=__doc__)
    parser.add_argument("vendor", choices=sorted(VENDORS))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; the URL is printed")
    parser.add_argument(
        "--api-key", help="the key to ask for (default: the simulator's own); empty accepts any"
    )
    parser.add_argument("--burst-events", type=int, help="events of a stream (default: as the text needs)")
    parser.add_argument("--pace-ms", type=float, default=0.0, help="between two events of a stream")
    parser.add_argument("--gzip", action="store_true", help="compress for clients that accept it")
    parser.add_argument("--no-record", action="store_true", help="keep no requests in memory")
    parser.add_argument("--record-to", type=Path, help="append a JSON line per request seen and answer ended")
    parser.add_argument(
        "--chromium", type=Path, help="a real browser behind the sessions (browserbase alone)"
    )
    options = parser.parse_args()
    if options.chromium is not None and options.vendor != "browserbase":
        parser.error("--chromium is for browserbase")
    return options


if __name__ == "__main__":
    main()
