"""Price tables for tests, made of a few numbers."""

import json
from pathlib import Path
from typing import Any

from metering.prices import PriceTable
from metering.usage import INPUT, OUTPUT
from tests.support.ledger import MODEL

VENDOR = "v"
"""Of the tables made here."""


def table_file(
    folder: Path,
    version: str,
    *,
    input_picousd: int = 1_000,
    output_picousd: int = 1_000,
    later: tuple[str, int] | None = None,
    model: str = MODEL,
    vendor: str = VENDOR,
) -> Path:
    """A table of one model; `later`: a day from which both of its prices are another."""
    prices: list[dict[str, Any]] = [
        {"from": None, "units": {INPUT: input_picousd, OUTPUT: output_picousd}, "tiers": []}
    ]
    if later is not None:
        prices.append({"from": later[0], "units": {INPUT: later[1], OUTPUT: later[1]}, "tiers": []})
    content = {
        "schema": 1,
        "version": version,
        "providers": {
            vendor: {
                "models": [{"id": model, "match": [{"equals": model}], "modifiers": [], "prices": prices}],
                "standard_values": {},
                "version_suffix": "-x",
            }
        },
    }
    path = folder / f"{version}.json"
    path.write_text(json.dumps(content))
    return path


def price_table(folder: Path, version: str, **prices: Any) -> PriceTable:
    return PriceTable.load(table_file(folder, version, **prices))
