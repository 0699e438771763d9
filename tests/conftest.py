"""What holds for every test: where CI says so, a skip is a failure. And a vendor to stand before."""

import os
from collections.abc import AsyncIterator

import pytest

from simulators.anthropic import AnthropicSimulator
from tests.fixtures_llm import FOLDER


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Under CI every tool is installed by the project itself; only recorded bodies may be absent."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if str(FOLDER) not in reason:
            report.outcome = "failed"
            report.longrepr = f"skipped, which is a failure under CI: {reason}"


@pytest.fixture
async def vendor() -> AsyncIterator[AnthropicSimulator]:
    async with AnthropicSimulator() as simulator:
        yield simulator
