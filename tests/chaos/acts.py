"""Acts: what is done to a server, round after round. The suite plays a few rounds of each, `make chaos` a thousand."""

import random
import zlib
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.audit import Figures, assert_verified
from tests.chaos.kinds import FEW_SEARCHES_MIX, KINDS, MIX
from tests.chaos.stage import (
    at_an_end,
    at_an_end_after_a_standstill,
    at_an_end_on_a_slow_disk,
    at_await,
    at_random,
    in_commit,
    on_disk,
    staged,
    while_recovering,
)
from tests.support.faulty_disk import MAIN_FILE, THE_LOG
from tests.support.kill_points import POLL, RESUMED, SUSPENDED

FEW_AGENTS = 20
KINDS_OF_POLLS = {POLL: "background"}
COMMITS = ("reserve", "settle", "checkpoint", "heartbeat", "bind", "defer", "claim", "keep", "forget")
FAULTS = ("kill_at_write", "kill_at_sync", "kill_after_sync")
"""In the middle of a write; before the sync; after it, and before anybody has heard of it."""
TORN_WRITES_MAX = 6
"""A commit writes twice for each page, a header and the page. Counted from its first write: beyond the end of a small
commit it is the next one that is torn."""
PASSES_MAX = 3
"""Times that requests come by an await before one dies there, at most."""
SCHEMA_WRITES_MAX, SCHEMA_SYNCS_MAX = 40, 6
WAL_PAGES = "40"
QUEUE = {"UPSTREAM_CONNECTIONS_MAX": "8"}


async def random_moments(
    folder: Path, dice: random.Random, figures: Figures, *, rounds: int, workers: int
) -> None:
    """The whole group, by turns at any moment and when a client has just got its end."""
    async with staged(folder, dice, figures, workers=workers) as stage:
        for number in range(rounds):
            strike, when = ((at_random, "any moment"), (at_an_end, "at an end"))[number % 2]
            await stage.round(f"{workers} worker(s), {when}", strike)


async def few_searches(
    folder: Path, dice: random.Random, figures: Figures, *, rounds: int, workers: int = 1
) -> None:
    """Agents that race for fewer searches than they want: the quota is held by who died, and counted once."""
    async with staged(folder, dice, figures, workers=workers) as stage:
        for _ in range(rounds):
            await stage.round("few searches, at an end", at_an_end, kinds=FEW_SEARCHES_MIX, plan="few")


async def one_of_two(folder: Path, dice: random.Random, figures: Figures, *, rounds: int) -> None:
    """One worker; whoever lives must not be taken for dead, however busy the machine is with tests."""
    async with staged(folder, dice, figures, workers=2, WORKER_DEAD_AFTER_S="6") as stage:
        for _ in range(rounds):
            await stage.round_of_one_worker("one of 2 workers, any moment")


async def standstills(folder: Path, dice: random.Random, figures: Figures, *, rounds: int) -> None:
    """A worker that is declared dead and goes on: what it reports late replaces the estimate, before the end is told."""
    async with staged(folder, dice, figures, workers=2, may_be_refused=True) as stage:
        for _ in range(rounds):
            await stage.round("2 workers, one had stood still, at an end", at_an_end_after_a_standstill)


async def two_on_a_bad_disk(folder: Path, dice: random.Random, figures: Figures, *, rounds: int) -> None:
    """Two workers that write, and the death of both in one's write or sync."""
    async with staged(folder, dice, figures, workers=2) as stage:
        for _ in range(rounds):
            disk = {dice.choice(FAULTS): dice.randrange(1, 30)}
            await stage.round(
                "2 worker(s), in a write or sync", on_disk("two workers", **disk), agents=FEW_AGENTS
            )


async def commits(
    folder: Path, dice: random.Random, figures: Figures, *, cases: Sequence[tuple[str, str]]
) -> None:
    """Inside a commit that has a unit of a kind in it. `cases`: (kind, fault)."""
    async with staged(folder, dice, figures) as stage:
        for kind, fault in cases:
            count = dice.randrange(1, TORN_WRITES_MAX + 1) if fault == "kill_at_write" else 1
            strike = in_commit(kind, **{fault: count, "only": THE_LOG})
            await stage.round("in a commit", strike, agents=FEW_AGENTS)


async def log_checkpoints(
    folder: Path, dice: random.Random, figures: Figures, *, faults: Sequence[str]
) -> None:
    """While the write-ahead log is written back into the database."""
    async with staged(folder, dice, figures, WAL_PAGES=WAL_PAGES) as stage:
        for fault in faults:
            count = dice.randrange(1, TORN_WRITES_MAX + 1) if fault == "kill_at_write" else 1
            strike = on_disk("log checkpoint", **{fault: count, "only": MAIN_FILE})
            await stage.round("in a log checkpoint", strike, agents=FEW_AGENTS)


async def awaits(
    folder: Path,
    dice: random.Random,
    figures: Figures,
    *,
    moments: Sequence[str] = (SUSPENDED, RESUMED),
    part: int = 0,
    parts: int = 1,
    at_most: int | None = None,
) -> None:
    """At every place where a request is suspended, or a question about work in the background, as the code itself
    says. `moments`: at which sides of the await; of one, the other is taken at every second place. `part`: only the
    places that fall to it; `at_most`: so many of these, drawn by the dice."""
    async with staged(folder, dice, figures, **QUEUE) as stage:
        places = await stage.places()
        assert len(places) > len(COMMITS), places
        fallen = [place for place in sorted(places) if zlib.crc32(place.encode()) % parts == part]
        drawn = sorted(dice.sample(fallen, min(at_most or len(fallen), len(fallen))))
        for number, place in enumerate(drawn):
            here = moments if len(moments) > 1 else [(SUSPENDED, RESUMED)[number % 2]]
            there = sorted({KINDS_OF_POLLS.get(name, name) for name in places[place]})
            kinds = (*MIX, *there * (len(MIX) // len(there)))
            often = min(len(places[place]), PASSES_MAX)
            for moment in here:
                await stage.round(
                    f"at an await, {moment}",
                    at_await(place, moment, nth_max=often),
                    agents=FEW_AGENTS,
                    kinds=kinds,
                )


async def recoveries(folder: Path, dice: random.Random, figures: Figures, *, rounds: int) -> None:
    """The server that recovers from a kill is killed twice while it does."""
    async with staged(folder, dice, figures) as stage:
        for _ in range(rounds):
            await stage.round("recovery, twice", at_random, agents=FEW_AGENTS, again=while_recovering)


async def default_waits(folder: Path, dice: random.Random, figures: Figures, *, rounds: int) -> None:
    """With the default bound on an end's wait and a disk that takes longer: then an end may be ahead of its entry."""
    async with staged(folder, dice, figures, is_settle_awaited=False, SETTLE_WAIT_S="0.25") as stage:
        for _ in range(rounds):
            await stage.round("slow disk, default SETTLE_WAIT_S", at_an_end_on_a_slow_disk, agents=FEW_AGENTS)


async def new_stores(folder: Path, dice: random.Random, figures: Figures, *, rounds: int) -> None:
    """While a store is being made."""
    async with staged(folder, dice, figures) as stage:
        for number in range(rounds):
            await stage.server.kill_all()
            for path in folder.glob("ledger.db*"):
                path.unlink()
            fault = dice.choice(FAULTS)
            most = SCHEMA_WRITES_MAX if fault == "kill_at_write" else SCHEMA_SYNCS_MAX
            stage.disk.set(**{fault: dice.randrange(1, most + 1)})
            await stage.server.spawn()
            await stage.dead()
            figures.instants[f"making a store ({fault})"] += 1
            await stage.server.start()
            (agent,) = await stage.new_agents(f"new{number}", 1, MIX)
            await agent.ask(stage.server.url, KINDS["burst"])
            await assert_verified(stage.server)
            figures.rounds["making a store"] += 1
