"""The simulated vendors of all surfaces, in the tests' own process: what they saw outlives every server."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from simulators import anthropic, brave, gemini, openai
from simulators.server import Exchange, SimulatorServer, State

LOOKED_AT = 500
"""Newest requests of each vendor among which there may be some without an end."""


@dataclass(frozen=True)
class Vendors:
    """One simulator for each surface."""

    by_surface: Mapping[str, SimulatorServer]

    def env(self) -> dict[str, str]:
        """Their addresses and our keys, as settings of the server."""
        keys = {
            "anthropic": anthropic.VENDOR_KEY,
            "openai": openai.VENDOR_KEY,
            "gemini": gemini.VENDOR_KEY,
            "brave": brave.VENDOR_KEY,
        }
        named = self.by_surface.items()
        urls = {f"{name.upper()}_UPSTREAM_URL": vendor.url for name, vendor in named}
        return {**urls, **{f"{name.upper()}_API_KEY": keys[name] for name in self.by_surface}}

    def exchanges(self) -> Iterator[Exchange]:
        """All that they have seen."""
        for vendor in self.by_surface.values():
            yield from vendor.exchanges

    def under_way(self) -> int:
        """Answers whose head is out and whose end is not."""
        return sum(
            exchange.state is State.RUNNING and exchange.sent_bytes > 0
            for vendor in self.by_surface.values()
            for exchange in vendor.exchanges[-LOOKED_AT:]
        )


@asynccontextmanager
async def all_vendors() -> AsyncIterator[Vendors]:
    async with AsyncExitStack() as stack:
        made: dict[str, SimulatorServer] = {
            "anthropic": anthropic.AnthropicSimulator(),
            "openai": openai.OpenAISimulator(),
            "gemini": gemini.GeminiSimulator(),
            "brave": brave.BraveSimulator(),
        }
        yield Vendors({name: await stack.enter_async_context(vendor) for name, vendor in made.items()})
