"""The loop that the service runs on, and a vendor to stand before."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from simulators.anthropic import AnthropicSimulator


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def vendor() -> AsyncIterator[AnthropicSimulator]:
    async with AnthropicSimulator() as simulator:
        yield simulator
