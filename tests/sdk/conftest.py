"""The loop that the service runs on, and the SDKs."""

import asyncio
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop

from tests.support.sdk import Sdk, running_sdk


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="module", params=["2-sync", "2-async", "0-sync", "0-async"])
def sdk(request: pytest.FixtureRequest) -> Iterator[Sdk]:
    with running_sdk(request.param) as running:
        yield running
