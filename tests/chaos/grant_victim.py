"""The process that `test_grant_kills` kills: it delivers the same grants from the first one on, until it dies.

Usage: grant_victim.py DATABASE. Prints `granted SOURCE` for each that it takes for durable. KILL_ORDERS may tell it
where to die (tests/support/kill_points.py).
"""

import asyncio
import itertools
import os
import sys
from pathlib import Path

from metering.clock import SystemClock
from metering.grants import grant
from metering.store.database import Database
from metering.store.store import Store, open_store
from tests.support.kill_points import install

USER = "ada"
AT_ONCE = 8


def amount_of(number: int) -> int:
    """Every fifth takes a little back."""
    return -3 if number % 5 == 4 else 10


async def main(path: str) -> None:
    async with open_store(Database(Path(path), busy_timeout_s=10)) as store:
        say("started")
        for first in itertools.count(0, AT_ONCE):
            await asyncio.gather(*(deliver(store, number) for number in range(first, first + AT_ONCE)))


async def deliver(store: Store, number: int) -> None:
    source = f"src_{number}"
    await grant(store, SystemClock(), USER, amount_of(number), source=source)
    say(f"granted {source}")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if "KILL_ORDERS" in os.environ:
        install(Path(os.environ["KILL_ORDERS"]))
    asyncio.run(main(*sys.argv[1:]))
