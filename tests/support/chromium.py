"""The machine's Chromium, for tests that put a real browser behind a session."""

import os
from pathlib import Path

import pytest

from simulators.browserbase import installed


def chromium() -> Path:
    """Skips, or fails in CI, where it is not installed."""
    found = installed()
    if found is None:
        complaint = "Chromium is missing: install Debian's package chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(complaint)
        pytest.skip(complaint)
    return found
