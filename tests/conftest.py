"""What holds for every test: where CI says so, a skip is a failure; and where their files are. And a vendor to stand before."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from metering.store import readers
from simulators.anthropic import AnthropicSimulator
from tests.fixtures_llm import FOLDER
from tests.support.fly import DOCUMENT

MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 2 * 1024**3
"""What the files of a whole run may take at once, and then some: those of a test that passed are removed."""
ON_DISK = {"chaos", "store_trouble"}
"""Suites about what a disk has when a process dies or the disk fails: a commit there takes as long as it does."""
MAY_BE_ABSENT = (FOLDER, DOCUMENT)
"""Other people's work, read where it lies beside the project."""


settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")  # how long an example takes is the machine's affair
readers.READ_TIMEOUT_S = 60.0  # and how long a read does, where a test does not say otherwise


def pytest_configure() -> None:
    """Files of tests are in memory where there is room: thousands of stores would wait for a disk in vain."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """pytest's own, but for the suites that need a disk."""
    if request.path.parent.name not in ON_DISK:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Under CI every tool is installed by the project itself; only recorded bodies and vendors' documents may be absent."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(str(place) in reason for place in MAY_BE_ABSENT):
            report.outcome = "failed"
            report.longrepr = f"skipped, which is a failure under CI: {reason}"


@pytest.fixture
async def vendor() -> AsyncIterator[AnthropicSimulator]:
    async with AnthropicSimulator() as simulator:
        yield simulator
