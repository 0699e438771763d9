"""One gateway for a whole table of cases: what one of them leaves behind, the next would meet."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop
from hypothesis import HealthCheck, settings

from tests.hostile.stage import Stage, staged

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "300"))
HOSTILE = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="HOSTILE_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
"""The same examples for everybody; HOSTILE_EXAMPLES asks for so many new ones."""


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """The stage of a module; proved clean at its end."""
    folder: Path = tmp_path_factory.mktemp("hostile")
    async with staged(folder, env={"BODY_BYTES_MAX": "300000"}) as stage:
        yield stage


@pytest.fixture
def stage(shared: Stage) -> Stage:
    """As the module's, with nothing remembered of the case before."""
    shared.forget()
    return shared
