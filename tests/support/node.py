"""The Node of `tests/openclaw/package.json`, and the packages that it runs."""

import os
from pathlib import Path

import pytest

INSTALLED = Path(__file__).parents[1] / "openclaw" / "node_modules"
MARK = INSTALLED / ".installed"


def node() -> Path:
    """The pinned Node. Skips, or fails in CI, where it is not installed."""
    found = next(INSTALLED.glob("node-*/bin/node"), None)
    if found is None or not MARK.exists():
        complaint = "Node and its packages are missing: run make openclaw"
        if os.environ.get("CI") == "true":
            pytest.fail(complaint)
        pytest.skip(complaint)
    return found
