"""The process that `test_ledger_kills` kills: requests of several tasks on one ledger, until it dies.

Usage: ledger_victim.py DATABASE WORKER_ID SEED. Prints a line per event that it takes for durable:
`reserved ID`, `extended ID`, `settled ID COST`. KILL_ORDERS may tell it where to die (tests/support/kill_points.py).
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from metering.clock import SystemClock
from metering.heartbeat import Heartbeat
from metering.ledger import Ledger, Reservation, Resolved
from metering.store.database import Database
from metering.store.store import open_store
from tests.support.kill_points import install
from tests.support.ledger import gauge, intent, money, prepaid, priced, settlement

TASKS = 12
HOLD = 1_000
ALLOWANCE = 40_000
"""Of each of the three users: a few holds short of what twelve tasks would like."""
PREPAID = "user:c"
"""Who has credit, if the test has granted any: some of their holds are on it, some on both."""


async def main(path: str, worker_id: str, seed: str) -> None:
    async with open_store(Database(Path(path), busy_timeout_s=10)) as store:
        ledger = Ledger(store, SystemClock(), worker_id)
        await Heartbeat(store, ledger, SystemClock()).beat()
        say("started")
        await asyncio.gather(
            *(requests(ledger, f"{worker_id}_{task}", f"{seed}:{task}") for task in range(TASKS))
        )


async def requests(ledger: Ledger, name: str, seed: str) -> None:
    dice = random.Random(seed)
    number = 0
    while True:
        number += 1
        owner = f"user:{dice.choice('abc')}"
        holds = [money(HOLD, of=ALLOWANCE, owner=owner), gauge(owner=owner)]
        if owner == PREPAID:
            holds.append(prepaid(owner=owner))
        asked = intent(*holds, named=f"{name}_{number}", floor=3)
        reservation = await ledger.reserve(asked)
        if not isinstance(reservation, Reservation):
            await asyncio.sleep(0.001)
            continue
        say(f"reserved {reservation.id}")
        await request(ledger, reservation, dice, owner)


async def request(ledger: Ledger, reservation: Reservation, dice: random.Random, owner: str) -> None:
    if dice.random() < 0.3:
        ledger.checkpoint(reservation, priced(dice.randrange(20)))
    if dice.random() < 0.3:
        extending = ledger.extend(reservation, [money(HOLD, of=ALLOWANCE, owner=owner)])
        if dice.random() < 0.5:
            if await extending is None:
                say(f"extended {reservation.id}")
        else:  # the settle comes while the extension is under way
            task = asyncio.get_running_loop().create_task(extending)
            await asyncio.sleep(0)
            await settle(ledger, reservation, dice)
            await task
            return
    if dice.random() < 0.1:
        await ledger.void(reservation)
        return
    await settle(ledger, reservation, dice)


async def settle(ledger: Ledger, reservation: Reservation, dice: random.Random) -> None:
    cost = dice.choice([0, 1, dice.randrange(30), HOLD + 5 if dice.random() < 0.02 else 7])
    if await ledger.settle(reservation, settlement(cost)) is Resolved.DONE:
        say(f"settled {reservation.id} {cost}")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if "KILL_ORDERS" in os.environ:
        install(Path(os.environ["KILL_ORDERS"]))
    asyncio.run(main(*sys.argv[1:]))
