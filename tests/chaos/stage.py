"""A server to be killed, the simulated vendor it stands before, its disk, and rounds: load, death, recovery, audit."""

import asyncio
import os
import random
import signal
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path

from metering.tasks import spawn
from tests.chaos.agents import Agent, Known
from tests.chaos.audit import Audit, Figures, Snapshot, assert_verified, living, snapshot
from tests.chaos.kinds import KINDS, MIX, OPUS_RATES, Kind, costly, hold_of
from tests.chaos.vendors import Vendors, all_vendors
from tests.support.faulty_disk import FaultyDisk
from tests.support.gateway import plan_table
from tests.support.kill_points import Orders
from tests.support.process import HAPPENS_WITHIN_S, POLL_S, Serving, group_members, is_alive, serving

AGENTS = 50
AGENTS_OF_TWO_WORKERS = 35
"""Of whom some ask again while what they had asked of the dead worker is held still: all of it must fit into the budget."""
RARE_WITHIN_S = 10.0
STOPS_MAX = 20
LOCK_WITHIN_S = 1.0
CREDITS = 23_500
"""A month's, of each round's user: above what a round can spend, below what one request may hold at most."""
NANOUSD_PER_CREDIT = 100_000
FEW_SEARCHES = 12
"""A month's, of the plan `few`: far less than the agents of a round want."""
REAL_SYNC_US = 50_000
"""A busy disk that really syncs."""
SLOW_SYNC_US = 600_000
"""A commit takes longer than an answer's end waits for it by default (SETTLE_WAIT_S, 250 ms)."""
DIES_WITHIN_S = 30.0
"""How long a server under load may take to come to the instant at which it is told to die."""
AGAIN = 2
"""How often in a row a recovering server is killed."""
SCOUTED, SCOUTED_AT_ONCE = 2, 5
"""Requests of each kind, one after the other, that show where requests are suspended; and of so many kinds together."""
UNDER_WAY = 3
"""Answers that the vendor has begun before a random moment is waited for."""
DUE_S = 900.0
"""How long a hold for work in the background lives of which nothing is heard, at most."""
LEAP_EVERY_S = 0.2
OBJECTS_TRIED = 3
"""By their owner and by a stranger, after a round."""
STARTERS = ("response", "background")
ENVIRONMENT = {
    "POLL_S": "0.3",  # where the server is the doomed one; the others' polls are brought about by a leap
    "CHECKPOINT_S": "0.05",
    "STREAM_SILENCE_S": "0.2",
    "CHANGES_STALE_AFTER_S": "30",  # a busy machine is not what is tested here
    "UPSTREAM_CONNECTIONS_MAX": "30",  # so that some requests have to wait for one
}

UNHEARD = """
SELECT id, due_at_ms - created_at_ms FROM reservations
WHERE state = 'HELD' AND due_at_ms > 1 AND id NOT IN (SELECT reservation_id FROM deferred_work)"""
"""Holds of work in the background of which nobody knows where to ask."""

Strike = Callable[["Stage", Sequence[Agent]], Awaitable[None]]
"""Brings the server's death about; returns when it is dead, or surely dying."""


@dataclass
class Stage:
    """What the rounds of one test or run share."""

    server: Serving
    vendors: Vendors
    disk: FaultyDisk
    orders: Orders
    dice: random.Random
    figures: Figures
    prober: Agent
    """Of another user than any round's: a stranger to its objects."""
    is_settle_awaited: bool
    may_be_refused: bool
    number: int = 0
    is_over: bool = False
    """The agents shall stop though the server lives."""

    # --- a round -----------------------------------------------------------------------------------------

    async def round(
        self,
        name: str,
        strike: Strike,
        *,
        agents: int = AGENTS,
        kinds: Sequence[str] = MIX,
        again: "Strike | None" = None,
        plan: str = "test",
    ) -> None:
        """Load, death by `strike`, recovery, and all claims. `again`: what is done to the recovering server."""
        user_id = f"round{self.number}"
        self.number += 1
        working = await self.new_agents(user_id, agents, kinds, plan=plan)
        tasks = [spawn(agent.work(self.server, lambda: False), name=agent.tag) for agent in working]
        await strike(self, working)
        await self.dead()
        await asyncio.gather(*tasks)
        assert all(agent.broken_off for agent in working)
        kept = [snapshot(self.server, user_id)]
        if again is not None:
            for _ in range(AGAIN):
                await again(self, working)
                await self.dead()
                kept.append(snapshot(self.server, user_id))
        await self.recover()
        await self.audit(name, user_id, working, kept, has_few_searches=plan == "few")

    async def round_of_one_worker(self, name: str) -> None:
        """Kill one of two workers: the other keeps its streams, buries it, and the supervisor replaces it."""
        user_id = f"round{self.number}"
        self.number += 1
        self.is_over = False
        working = await self.new_agents(user_id, AGENTS_OF_TWO_WORKERS, MIX)
        tasks = [spawn(agent.work(self.server, lambda: self.is_over), name=agent.tag) for agent in working]
        await self.some_time()
        workers = self.server.workers_alive()
        victim_pid, victim = self.dice.choice(sorted(workers.items()))
        os.kill(victim_pid, signal.SIGKILL)
        await self.server.until(lambda: not is_alive(victim_pid))
        now = living(self.server, user_id)
        kept = Snapshot(
            {ident: row for ident, row in now.reserved.items() if row.worker_id == victim}, now.entries
        )
        await self.server.until(lambda: len(self.server.workers_alive()) == 2)
        assert victim not in self.server.workers_alive().values()
        self.is_over = True
        await asyncio.gather(*tasks)
        assert any(agent.broken_off for agent in working)
        await self.until_nothing_is_held()
        (survivor,) = set(workers.values()) - {victim}
        expired = "SELECT id FROM reservations WHERE state = 'EXPIRED' AND worker_id = ?1"
        assert self.server.rows(expired, survivor) == [], "the living keep what they hold"
        await self.audit(name, user_id, working, [kept])

    async def expired_alive(self, victim_pid: int, victim: str) -> None:
        """Stop a worker until another has expired all it holds (not what is at work in the background, which any worker
        may settle), and let it go on: what it settles now comes late."""
        for _ in range(STOPS_MAX):
            os.kill(victim_pid, signal.SIGSTOP)
            if await asyncio.to_thread(self.can_be_written):
                break
            os.kill(
                victim_pid, signal.SIGCONT
            )  # stopped in its commit it holds the lock that all others wait for
        try:
            held = "SELECT id FROM reservations WHERE state = 'HELD' AND worker_id = ?1 AND due_at_ms IS NULL"
            await self.server.until(lambda: not self.server.rows(held, victim))
        finally:
            os.kill(victim_pid, signal.SIGCONT)

    def can_be_written(self) -> bool:
        """Whether the store's lock can be had."""
        with closing(
            sqlite3.connect(self.server.store, timeout=LOCK_WITHIN_S, isolation_level=None)
        ) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            connection.execute("ROLLBACK")
        return True

    async def audit(
        self,
        name: str,
        user_id: str,
        working: Sequence[Agent],
        kept: Sequence[Snapshot],
        *,
        has_few_searches: bool = False,
    ) -> None:
        Audit(self.server, self.vendors, user_id, working).check(
            kept, self.figures, is_settle_awaited=self.is_settle_awaited
        )
        await assert_verified(self.server)
        await self.assert_objects_are_found_by_their_owner_alone(working)
        if has_few_searches:
            await self.assert_searches_admit_again(user_id, working[0].token)
        await self.assert_budget_admits_again(user_id, working[0].token)
        self.figures.rounds[name] += 1

    async def new_agents(
        self, user_id: str, count: int, kinds: Sequence[str], *, plan: str = "test"
    ) -> list[Agent]:
        tags = [f"{user_id}-{number:02}" for number in range(count)]
        known = Known(foreign=self.prober.known)
        async with self.server.directory() as directory:
            await directory.add_user(user_id, plan=plan)
            made = await asyncio.gather(*(directory.create_token(user_id, label=tag) for tag in tags))
        return [
            Agent(
                token,
                tag,
                random.Random(self.dice.random()),
                kinds,
                known=known,
                may_be_refused=self.may_be_refused,
            )
            for tag, (token, _) in zip(tags, made, strict=True)
        ]

    async def assert_objects_are_found_by_their_owner_alone(self, working: Sequence[Agent]) -> None:
        """Some of what the round's clients have seen is read by its user, and by nobody else."""
        known = working[0].known
        owner = Agent(working[0].token, f"{working[0].tag}-owner", self.dice, known=known)
        stranger = Agent(
            self.prober.token, f"{working[0].tag}-stranger", self.dice, known=Known(foreign=known)
        )
        url = self.server.url
        for _ in range(OBJECTS_TRIED if known.items else 0):
            await owner.ask(url, KINDS["again"])
            for name in ("foreign", "foreign-continued", "foreign-referring"):
                await stranger.ask(url, KINDS[name])
                self.figures.strangers_refused += 1
        assert all(asked.has_end for agent in (owner, stranger) for asked in agent.asked)

    async def assert_budget_admits_again(self, user_id: str, token: str) -> None:
        """A request that needs all that is left of the budget is admitted, and one token more is not."""
        ((spent,),) = self.server.rows(
            "SELECT COALESCE(SUM(spent), 0) FROM accounts WHERE owner = ?1 AND meter = 'money'",
            f"user:{user_id}",
        )
        left = CREDITS * NANOUSD_PER_CREDIT - int(spent)
        agent = Agent(token, f"{user_id}-all", self.dice)
        output_nanousd = OPUS_RATES.output_nanousd
        all_of_it = Kind("all", body=costly, rates=OPUS_RATES)
        most = (left - hold_of(all_of_it, 10_000)) // output_nanousd + 10_000  # five digits, as it will have
        more = replace(all_of_it, name="one-more", max_tokens=most + 1, status=402, is_refused=True)
        await agent.ask(self.server.url, more)
        asked = await agent.ask(self.server.url, replace(all_of_it, max_tokens=most))
        assert left - output_nanousd < asked.hold_nanousd <= left, "not as large as it was meant to be"

    async def assert_searches_admit_again(self, user_id: str, token: str) -> None:
        """All searches that are left are served, and not one more."""
        ((spent,),) = self.server.rows(
            "SELECT COALESCE(SUM(spent), 0) FROM accounts WHERE owner = ?1 AND meter = 'searches'",
            f"user:{user_id}",
        )
        agent = Agent(token, f"{user_id}-searches", self.dice)
        for _ in range(FEW_SEARCHES - int(spent)):
            await agent.ask(self.server.url, KINDS["search"])
        assert all(asked.has_end for asked in agent.asked)
        await agent.ask(self.server.url, replace(KINDS["search"], status=402, is_refused=True))

    # --- death and return --------------------------------------------------------------------------------

    async def dead(self) -> None:
        """Wait for a death that was brought about; the disk is well again and the orders are taken back."""
        await self.server.exit_status(DIES_WITHIN_S)
        await self.server.until(lambda: not group_members(self.server.pid))
        self.disk.mend()
        self.orders.none()

    async def recover(self) -> None:
        """Start again; wait until it admits, and until nothing of the dead is held."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await self.server.start()
        await self.prober.ask(self.server.url, KINDS["burst"])
        self.figures.started_s.append(loop.time() - began_s)
        await self.until_nothing_is_held()
        self.figures.freed_s.append(loop.time() - began_s)

    # --- moments -----------------------------------------------------------------------------------------

    async def some_time(self) -> None:
        """A random moment under load."""
        await self.under_load()
        if self.server.workers > 1:
            await asyncio.to_thread(self.leap)
        await asyncio.sleep(self.dice.uniform(0.02, 1.5))

    async def under_load(self) -> None:
        """Until some answers have begun."""
        await self.server.until(lambda: self.vendors.under_way() >= UNDER_WAY, within_s=DIES_WITHIN_S)

    # --- work in the background --------------------------------------------------------------------------

    def leap(self, *, is_quiet: bool = False) -> None:
        """As if the time had passed that polls wait for; `is_quiet`, that nobody asks for anything any more: also the
        time after which a hold expires of which nobody can hear anything, because its work was never bound."""
        with closing(sqlite3.connect(self.server.store, timeout=HAPPENS_WITHIN_S)) as connection, connection:
            connection.execute("UPDATE deferred_work SET poll_at_ms = 0 WHERE poll_at_ms > 0")
            if is_quiet:
                for ident, waits_ms in connection.execute(UNHEARD).fetchall():
                    assert waits_ms <= DUE_S * 1000, (ident, "is held for longer than it may be")
                    connection.execute("UPDATE reservations SET due_at_ms = 1 WHERE id = ?1", (ident,))

    async def until_nothing_is_held(self) -> None:
        """By anyone; what was at work in the background is asked about, and forgotten."""
        held = (
            "SELECT id FROM reservations WHERE state = 'HELD' UNION SELECT reservation_id FROM deferred_work"
        )
        waits = "SELECT id FROM reservations WHERE state = 'HELD' AND due_at_ms > 1 UNION SELECT reservation_id FROM deferred_work"
        loop = asyncio.get_running_loop()
        end_s = loop.time() + HAPPENS_WITHIN_S
        leapt_s = 0.0
        while found := self.server.rows(held):
            assert loop.time() < end_s, ("still held", found, self.server.log())
            if loop.time() - leapt_s > LEAP_EVERY_S and self.server.rows(waits):
                await asyncio.to_thread(self.leap, is_quiet=True)
                leapt_s = loop.time()
            await asyncio.sleep(POLL_S)

    async def places(self) -> dict[str, list[str]]:
        """Where requests are suspended, and questions about work in the background: by place the kinds, one for each
        time. From requests of each kind, first all kinds at once, which makes them wait for each other, then few
        together, which lets them wait for the vendor and the client."""
        self.orders.note_suspensions()
        agents = await self.new_agents("scout", len(KINDS), MIX)
        pairs = [*zip(agents, KINDS.values(), strict=True)]
        await asyncio.gather(*(agent.ask(self.server.url, kind) for agent, kind in pairs))
        for first in [*range(0, len(pairs), SCOUTED_AT_ONCE)] * SCOUTED:
            few = pairs[first : first + SCOUTED_AT_ONCE]
            await asyncio.gather(*(agent.ask(self.server.url, kind) for agent, kind in few))
        await self.until_nothing_is_held()
        self.orders.none()
        found: dict[str, list[str]] = {}
        for line in self.orders.told():
            found.setdefault(line["place"], []).append(line["tag"].rpartition(":")[2])
        return found

    def told(self) -> None:
        """Count the instant that the victim says it died at."""
        for line in self.orders.told():
            if "died" in line:
                self.figures.instants[f"{line['died']} ({line.get('moment') or _words(line['disk'])})"] += 1


def _words(disk: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in disk.items())


# --- strikes ----------------------------------------------------------------------------------------------


async def at_random(stage: Stage, _: Sequence[Agent]) -> None:
    await stage.some_time()
    stage.server.kill_group()


async def at_an_end(stage: Stage, agents: Sequence[Agent], *, ends_max: int = 40) -> None:
    """The moment a client has the end of its answer. On a quick disk its entry is in by the time the signal comes,
    whether the end waited for it or not; so the disk is as slow as a real one."""
    stage.disk.set(sync_delay_us=REAL_SYNC_US)
    left = stage.dice.randrange(1, ends_max)
    killed = asyncio.Event()

    def one_more() -> None:
        nonlocal left
        left -= 1
        if not left:
            stage.server.kill_group()
            killed.set()

    for agent in agents:
        agent.on_end = one_more
    await asyncio.wait_for(killed.wait(), DIES_WITHIN_S)


def at_await(place: str, moment: str, *, nth_max: int) -> Strike:
    """At one of the first times that a request stands at `place`. Where the scout saw only one (it depends on how full
    the socket's buffers happen to be), nobody may stand again in time: then at any moment, and it is counted so."""

    async def strike(stage: Stage, _: Sequence[Agent]) -> None:
        stage.orders.die_at(place, moment, nth=stage.dice.randrange(1, nth_max + 1))
        try:
            await stage.server.exit_status(DIES_WITHIN_S if nth_max > 1 else RARE_WITHIN_S)
        except TimeoutError:
            if nth_max > 1:
                raise
            stage.figures.instants[f"not reached again: {place} ({moment})"] += 1
            stage.server.kill_group()
        await stage.dead()
        stage.told()

    return strike


def in_commit(kind: str, **disk: int) -> Strike:
    """Inside one of the first commits with a unit of that kind."""

    async def strike(stage: Stage, _: Sequence[Agent]) -> None:
        await stage.under_load()
        stage.orders.break_commit(kind, nth=stage.dice.randrange(1, 10), **disk)
        await stage.dead()
        stage.told()

    return strike


def on_disk(name: str, **disk: int) -> Strike:
    """When the disk, whatever it is doing, comes to that."""

    async def strike(stage: Stage, _: Sequence[Agent]) -> None:
        await stage.under_load()
        stage.disk.set(**disk)
        await stage.dead()
        stage.figures.instants[f"{name} ({_words(disk)})"] += 1

    return strike


async def at_an_end_after_a_standstill(stage: Stage, agents: Sequence[Agent]) -> None:
    """One of two workers stands still until the other has expired what it held; it goes on; then as `at_an_end`."""
    await stage.some_time()
    victim_pid, victim = stage.dice.choice(sorted(stage.server.workers_alive().items()))
    await stage.expired_alive(victim_pid, victim)
    await at_an_end(stage, agents, ends_max=10)


async def at_an_end_on_a_slow_disk(stage: Stage, agents: Sequence[Agent]) -> None:
    """The moment a client has an end that did not wait for its commit to the last."""
    await stage.under_load()
    stage.disk.set(sync_delay_us=SLOW_SYNC_US)
    killed = asyncio.Event()
    ends = 0

    def one_more() -> None:
        nonlocal ends
        ends += 1
        if ends > len(agents):  # those whose settle was queued on a quick disk are past
            stage.server.kill_group()
            killed.set()

    for agent in agents:
        agent.on_end = one_more
    await asyncio.wait_for(killed.wait(), DIES_WITHIN_S)


async def while_recovering(stage: Stage, _: Sequence[Agent]) -> None:
    """Start the server on a disk that kills it soon: in the log's recovery, a migration's look, its first beat, an
    expiry, or shortly after."""
    field, most = stage.dice.choice(
        [("kill_at_write", 30), ("kill_at_sync", 12), ("kill_after_sync", 12), ("kill_at_read", 60)]
    )
    stage.disk.set(**{field: stage.dice.randrange(1, most + 1)})
    offset = await stage.server.spawn()
    await stage.server.exit_status(DIES_WITHIN_S)
    where = "before it serves" if "serving on" not in stage.server.log(offset) else "while it takes over"
    if not stage.server.rows("SELECT id FROM reservations WHERE state = 'HELD' LIMIT 1"):
        where = "when nothing of the dead is held any more"
    stage.figures.instants[f"recovery: {where} ({field})"] += 1


# --- the stage --------------------------------------------------------------------------------------------


@asynccontextmanager
async def staged(
    folder: Path,
    dice: random.Random,
    figures: Figures,
    *,
    workers: int = 1,
    is_settle_awaited: bool = True,
    may_be_refused: bool = False,
    **env: str,
) -> AsyncIterator[Stage]:
    """A running server, one of whose workers can be told where to die; `env` are further settings."""
    folder.mkdir(exist_ok=True)
    disk, orders = FaultyDisk(folder), Orders(folder)
    plans = folder / "all-plans.toml"
    plans.write_text(
        plan_table("test", credits_per_month=CREDITS)
        + plan_table("few", credits_per_month=CREDITS, searches=FEW_SEARCHES)
    )
    variables = {
        **ENVIRONMENT,
        "PLANS_FILE": str(plans),
        **disk.env,
        "KILL_ORDERS": str(orders.path),
        "TMPDIR": str(folder),  # a killed supervisor cannot remove its own
        **env,
    }
    module = "tests.support.doomed" if workers == 1 else "automna_proxy"
    async with (
        all_vendors() as vendors,
        serving(
            folder,
            upstream="",
            workers=workers,
            module=module,
            env={**variables, **vendors.env()},
        ) as server,
    ):
        async with server.directory() as directory:
            await directory.add_user("prober", plan="test")
            token, _ = await directory.create_token("prober")
        prober = Agent(token, "prober", dice)
        for name in STARTERS:
            await prober.ask(server.url, KINDS[name])
        stage = Stage(server, vendors, disk, orders, dice, figures, prober, is_settle_awaited, may_be_refused)
        await stage.until_nothing_is_held()
        yield stage
