"""The process that `test_notice_kills` kills: it spends users' budgets, notices thresholds and delivers webhooks, until
it dies.

Usage: notice_victim.py DATABASE URL NAME [silent]. Prints `settled USER` after each request, `looked` after each look.
`silent`: it settles only, and never looks. KILL_ORDERS may tell it where to die (tests/support/kill_points.py).
"""

import asyncio
import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path

from metering import outbox
from metering.clock import SystemClock, month_of
from metering.ledger import Ledger, Reservation
from metering.money import CREDIT_NANOUSD
from metering.notices import ENDPOINT, Notices
from metering.outbox import Outbox
from metering.plans import Plans, load_plans
from metering.prices import PriceTable
from metering.store.database import Database
from metering.store.store import Store, open_store
from proxy import outbox as delivery
from proxy.outbox import Courier, Endpoint, parse_secrets, webhook_client
from proxy.telemetry import Telemetry
from tests.support.kill_points import install
from tests.support.ledger import intent, money, settlement
from tests.support.receiver import SECRET

USERS = tuple(f"u{number}" for number in range(6))
CREDITS = 1_000
COST = 3 * CREDIT_NANOUSD
"""Which never makes the whole of it: 100 % is not reached."""
LIMIT = CREDITS * CREDIT_NANOUSD
CLAIM_S = 0.3
"""Of this process: what a dead one has claimed is tried again while the test waits."""


def plans() -> Plans:
    return {"pro": replace(load_plans()["pro"], credits_per_month=CREDITS)}


def quickly() -> None:
    outbox.CLAIM_S = outbox.RETRY_FIRST_S = CLAIM_S
    outbox.RETRY_FACTOR = 1.0
    delivery.LOOK_EVERY_S = 0.02


async def main(path: str, url: str, name: str, *words: str) -> None:
    quickly()
    async with open_store(Database(Path(path), busy_timeout_s=10)) as store, asyncio.TaskGroup() as tasks:
        ledger = Ledger(store, SystemClock(), name)
        say("started")
        for user in USERS:
            tasks.create_task(spend(ledger, user, f"{name}_{user}"))
        if "silent" not in words:
            tasks.create_task(look(store, ledger))
            tasks.create_task(deliver(store, url))


async def spend(ledger: Ledger, user: str, name: str) -> None:
    """Up to the last that fits, then on and on in vain."""
    for number in itertools.count():
        hold = money(COST, of=LIMIT, owner=f"user:{user}", period=month_of(SystemClock().now_ms()))
        reservation = await ledger.reserve(intent(hold, named=f"{name}_{number}", user_id=user))
        if isinstance(reservation, Reservation):
            await ledger.settle(reservation, settlement(COST))
            say(f"settled {user}")
        await asyncio.sleep(0.005)


async def look(store: Store, ledger: Ledger) -> None:
    notices = Notices(store, SystemClock(), plans=plans(), charged=ledger.charged)
    while True:
        await notices.look()
        say("looked")
        await asyncio.sleep(0.01)


async def deliver(store: Store, url: str) -> None:
    endpoint = Endpoint(url, parse_secrets(SECRET))
    async with webhook_client([endpoint]) as client:
        courier = Courier(
            Outbox(store, SystemClock()),
            {ENDPOINT: endpoint},
            client=client,
            telemetry=Telemetry(PriceTable.load()),
            clock=SystemClock(),
        )
        await courier.keep_delivering()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if "KILL_ORDERS" in os.environ:
        install(Path(os.environ["KILL_ORDERS"]))
    asyncio.run(main(*sys.argv[1:]))
