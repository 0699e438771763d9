"""Writes metering/prices.json from the pinned genai-prices package and scripts/prices_override.toml.

python scripts/build_prices.py            write the table, and say where each figure comes from
python scripts/build_prices.py --check    exit 1 if the table on disk is not what would be written
"""

import argparse
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from automna_proxy.price_sources import build, provenance, render

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "metering" / "prices.json"
OVERRIDE = ROOT / "scripts" / "prices_override.toml"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 on a difference")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--override", type=Path, default=OVERRIDE)
    options = parser.parse_args(arguments)
    built = build(tomllib.loads(options.override.read_text(encoding="utf-8")))
    table = render(built)
    if not options.check:
        options.table.write_text(table, encoding="utf-8")
        print("\n".join(provenance(built)))
        return 0
    on_disk = options.table.read_text(encoding="utf-8") if options.table.exists() else ""
    if on_disk != table:
        print(f"{options.table} is out of date: run python scripts/build_prices.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
