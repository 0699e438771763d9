"""Recorded bodies of language model vendors: third-party test data, read where it lies beside the project.

Where the folder is absent (a checkout on its own), tests that need it are skipped.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1].parent / "shared" / "fixtures" / "llm"


@dataclass(frozen=True)
class Recorded:
    """One recorded answer with what it is known to have used (`expected_billable`, buckets disjoint)."""

    file: str
    vendor: str
    content_type: str
    content_encoding: str | None
    request: dict[str, Any]
    expected: list[dict[str, Any]] | None
    usd: str | None

    @property
    def body(self) -> bytes:
        return (FOLDER / self.file).read_bytes()


@cache
def recorded(vendor: str) -> tuple[Recorded, ...]:
    """All recordings of a vendor that are stored as the client saw them (not compressed); () when absent."""
    if not FOLDER.is_dir():
        return ()
    index = json.loads((FOLDER / "INDEX.json").read_text(encoding="utf-8"))
    return tuple(
        Recorded(
            file=entry["file"],
            vendor=entry["vendor"],
            content_type=entry["content_type"],
            content_encoding=entry["content_encoding"],
            request=entry.get("request") or {},
            expected=entry.get("expected_billable"),
            usd=entry.get("expected_usd_at_2026-11-20_list"),
        )
        for entry in index["fixtures"]
        if entry["vendor"] == vendor and entry["content_encoding"] is None
    )


def each_recorded(vendor: str) -> pytest.MarkDecorator:
    """Parametrize a test with `recording`; one skipped case where the folder is absent."""
    found = recorded(vendor)
    if not found:
        absent = pytest.param(None, marks=pytest.mark.skip(reason=f"no recorded bodies at {FOLDER}"))
        return pytest.mark.parametrize("recording", [absent])
    return pytest.mark.parametrize("recording", found, ids=[one.file for one in found])


@cache
def recorded_prices() -> dict[str, dict[str, str]]:
    """List prices of 2026-11-20 that the recordings are priced at: by model (`model/tier`), USD per million
    tokens by kind; {} when absent."""
    if not FOLDER.is_dir():
        return {}
    index = json.loads((FOLDER / "INDEX.json").read_text(encoding="utf-8"))
    prices: dict[str, dict[str, str]] = index["prices_used"]
    return prices


each_recorded_price = pytest.mark.parametrize(
    ("name", "prices"),
    list(recorded_prices().items())
    or [pytest.param("", {}, marks=pytest.mark.skip(reason=f"no recorded prices at {FOLDER}"))],
)
"""Parametrize a test with `name` and `prices`; one skipped case where the folder is absent."""
