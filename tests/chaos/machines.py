"""Users' machines under every death and every failure: whatever breaks, what was wished comes true or ends in a clean error, with
one of each thing or none, and nothing at a vendor that the store does not know. `python -m tests.chaos.machines --rounds 1000
--seed 1`.

The vendors, the store and the clock are one `World`; whoever works in it is a `Worker`, in a process that may die at any instant
(tests/support/mortal.py). Whoever waits there moves the clock.
"""

import argparse
import asyncio
import contextlib
import itertools
import logging
import random
import sqlite3
import ssl
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from metering.clock import ManualClock
from metering.store.database import Database
from metering.store.store import open_store
from metering.users import Directory, hash_of
from provisioning import names
from provisioning.fly import Fly
from provisioning.instances import ERROR, GONE, READY, RUNNING, STOPPED, SUSPENDED
from provisioning.integrations import Integrations, Vendor
from provisioning.lifecycle import GRACE_MS
from provisioning.machines import MachineError, Machines
from provisioning.pacing import Pacer
from provisioning.worker import Provisioner
from simulators import agentmail, browserbase, fly
from simulators.browserbase import PROJECT_ID
from simulators.fly import ORG_SLUG, TOKEN, Habits, Shortage
from simulators.fly_errors import no_room
from simulators.server import ReceivedRequest
from tests.support.ledger import NOW_MS, new_database
from tests.support.machines import IMAGE, Vendors, running_vendors
from tests.support.mortal import Fate, Loop, Process
from tests.support.provisioners import parts_of

USER = "user_2chaos"
OTHER_IMAGE = "registry.fly.io/agent@sha256:" + "0714" * 16
HASTE_S = 0.1
"""Of calls that are met by silence: what is simulated answers within milliseconds."""
STEP_S = 0.25
"""By which the clock moves while Fly is waited for."""
START_S = 5.0
"""A worker takes to start; Fly, whose rates the one before may have used up, is ready for it then."""
RUNS_MAX = 60
"""Of a worker, until what was wished is settled: failures in a row are given up after eight."""

LIVING = """
SELECT id, token_hash FROM gateway_tokens
WHERE user_id = ? AND label = 'machine' AND revoked_at_ms IS NULL AND (expires_at_ms IS NULL OR expires_at_ms > ?)"""
LIVE = "SELECT kind, upstream_id FROM resources WHERE state = 'live'"
OPEN = "SELECT kind FROM resources WHERE state = 'intent'"
LOST_CONTEXTS = "SELECT name FROM resources WHERE kind = 'context' AND state = 'lost'"
OWNED = "SELECT kind, upstream_id FROM owned_objects"


@dataclass
class Worker:
    """Who works, in a process of its own: with a store, clients and a name that nobody had before."""

    process: Process
    machines: Machines
    provisioner: Provisioner

    async def follow(self) -> None:
        await self.provisioner.work_on(USER)


class Hasty(httpx.AsyncClient):
    """Waits for no answer longer than `silence_s`."""

    def __init__(self, silence_s: float, **options: Any) -> None:
        verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, and costs nothing
        super().__init__(verify=verify, trust_env=False, **options)
        self._silence_s = silence_s

    def stream(self, *arguments: Any, timeout: Any = None, **options: Any) -> Any:
        return super().stream(*arguments, timeout=self._silence_s, **options)


@dataclass
class World:
    """The vendors and the store. `trouble`: what a request is answered with, by its number (from 0) and the vendor's module; None, as
    ever. `watch`: what is wrong at this instant, asked for with each request and kept in `wrong`; "": nothing. `silence_s`: how long
    an answer is waited for."""

    clock: ManualClock
    database: Database
    dice: random.Random
    vendors: Vendors
    stack: AsyncExitStack
    image: str = IMAGE
    trouble: Callable[[int, Any, ReceivedRequest], Any] = field(default_factory=lambda: _no_trouble)
    watch: Callable[[], str] = lambda: ""
    wrong: list[str] = field(default_factory=list)
    silence_s: float = 1.0
    requests: int = 0
    commits: int = 0
    workers: list[Worker] = field(default_factory=list)

    @property
    def effects(self) -> int:
        """What has been done so far, here or at a vendor."""
        return self.requests + self.commits

    # --- time

    async def pause(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.vendors.fly.pass_time()
        await asyncio.sleep(0)

    async def keep_moving(self) -> None:
        """While somebody waits at Fly, time passes."""
        while True:
            await asyncio.sleep(0.001)
            if self.vendors.fly.organization._waits:
                await self.pause(STEP_S)

    # --- who works

    async def worker(self, fate: Callable[[int], Fate] = lambda _instant: Fate.LIVES) -> Worker:
        await self.pause(START_S)
        process = Process(fate)
        store = await self.stack.enter_async_context(open_store(self.database, on_commit=self._committed))
        await store.readers.row("SELECT 1")
        process.writers.append(store.writer)
        of_fly = {"authorization": f"Bearer {fly.VENDOR_KEY}"}
        client = self._client(process, base_url=self.vendors.fly.url, headers=of_fly)
        others = self._client(process)
        parts = parts_of(
            self.vendors,
            store,
            self.clock,
            client,
            others,
            fly=Fly(client, Pacer(self.clock, self.pause), org_slug=ORG_SLUG),
            integrations=Integrations(
                browser=Vendor(self.vendors.browserbase.url, browserbase.VENDOR_KEY),
                mail=Vendor(self.vendors.agentmail.url, agentmail.VENDOR_KEY),
                project_id=PROJECT_ID,
                client=others,
                timeout_s=self.silence_s,
            ),
            image=self.image,
            pause=self.pause,
            jitter=random.Random(self.dice.random()),
        )
        self.stack.push_async_callback(process.end)
        name = f"worker {len(self.workers)}"
        self.workers.append(Worker(process, parts.machines, Provisioner(parts, name, at_once=1)))
        return self.workers[-1]

    def _client(self, process: Process, **options: Any) -> httpx.AsyncClient:
        client = Hasty(self.silence_s, **options)

        async def close() -> None:
            if not process.is_dead:
                await client.aclose()

        self.stack.push_async_callback(close)
        return client

    def _committed(self, _stats: object) -> None:
        self.commits += 1

    async def settle(self, *, troubled_runs: int = RUNS_MAX) -> None:
        """A new worker, as long as anything is to be done: from when the claim of the one before has run out. What fails, does so in
        the first of its runs."""
        worker = await self.worker()
        for number in range(RUNS_MAX):
            if number == troubled_runs:
                self.trouble = _no_trouble
                self.vendors.fly.set_habits(Habits())
            one = self.instance()
            if one is None or one["due_at_ms"] is None:
                return
            due_ms = max(one["due_at_ms"], one["claimed_until_ms"] or 0)
            await self.pause(max(0, due_ms - self.clock.ms) / 1000)
            assert await worker.process.run(worker.provisioner.work_once(USER))
        raise AssertionError(f"not settled after {RUNS_MAX} runs: {self.told()}")

    # --- what there is

    def rows(self, sql: str, *params: Any) -> list[sqlite3.Row]:
        with closing(sqlite3.connect(self.database.path)) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(sql, params).fetchall()

    def instance(self) -> sqlite3.Row | None:
        return next(iter(self.rows("SELECT * FROM instances WHERE user_id = ?", USER)), None)

    def wished(self) -> int:
        """How often anything was."""
        one = self.instance()
        return 0 if one is None else int(one["wished"])

    def living_tokens(self, *, later_ms: int = 0) -> dict[str, str]:
        """Ids by their hashes: the machine's gateway tokens that are good for anything, `later_ms` from now."""
        return {row["token_hash"]: row["id"] for row in self.rows(LIVING, USER, self.clock.ms + later_ms)}

    def told(self) -> str:
        """All that is on record, for whoever looks at a failure."""
        of = ("SELECT event_type, details FROM machine_events ORDER BY id", "SELECT * FROM resources")
        return "\n".join(str(tuple(row)) for sql in of for row in self.rows(sql))

    def there(self) -> dict[str, list[str]]:
        """The ids of what exists at the vendors, by its kind; without contexts that are known as lost."""
        simulated, lost = self.vendors.fly, {row["name"] for row in self.rows(LOST_CONTEXTS)}
        return {
            "app": [app.name for app in simulated.apps],
            "ip": sorted(address.ip for app in simulated.apps for address in app.addresses),
            "volume": [volume.id for volume in simulated.volumes],
            "machine": [machine.id for machine in simulated.machines],
            "context": [each.id for each in self.vendors.browserbase.contexts if each.name not in lost],
            "pod": self.vendors.pods,
            "inbox": [address.lower() for address in self.vendors.inboxes],
        }

    # --- what must hold

    def check(self) -> str:
        """Nothing is under way any more, and everything is as the store says. The status."""
        assert self.vendors.fly.invalid == []
        if not any(worker.process.stood_still.is_set() for worker in self.workers):
            # Whoever stands still between its turn and its request comes with the next ones.
            assert self.vendors.fly.limited == []
        assert self.wrong == []
        one, live = self.instance(), {kind: list[str]() for kind in self.there()}
        for row in self.rows(LIVE):
            live[row["kind"]].append(row["upstream_id"])
        live["ip"].sort()
        status = "" if one is None else str(one["status"])
        if one is not None:
            assert (one["due_at_ms"], one["is_undone"], one["done"]) == (None, 0, one["wished"]), self.told()
            assert (one["error_code"] is not None) >= (status == ERROR), self.told()
        if one is None or one["ready_at_ms"] is None:
            assert status in {"", GONE, ERROR}, self.told()
            self._check_nothing()
            assert not any(live.values()), self.told()
        elif one["error_code"] is not None:  # as it was before what was given up, as far as that came
            unknown = {row["kind"] for row in self.rows(OPEN)}
            assert {**live, **{kind: self.there()[kind] for kind in unknown}} == self.there(), self.told()
        else:
            assert live == self.there(), self.told()
            self._check_whole(one)
        return status

    def _check_nothing(self) -> None:
        assert not any(self.there().values()), (self.there(), self.told())
        assert self.living_tokens() == {}, self.told()
        for sql in (OPEN, OWNED, "SELECT * FROM agent_hooks"):
            assert self.rows(sql) == [], (sql, self.told())

    def _check_whole(self, one: sqlite3.Row) -> None:
        """One of each, which belong together, and one token, which the machine has."""
        there = self.there()
        assert {kind: len(ids) for kind, ids in there.items()} == {**dict.fromkeys(there, 1), "ip": 2}
        assert self.rows(OPEN) == [], self.told()
        app, machine, (volume,) = self.vendors.app, self.vendors.machine, self.vendors.fly.volumes
        env = machine.config["env"]
        assert (app.name, app.network) == (one["app_name"], names.network(app.name))
        assert sorted(address.kind for address in app.addresses) == ["shared_v4", "v6"]
        assert (volume.machine_id, machine.metadata["automna_generation"]) == (
            machine.id,
            str(one["generation"]),
        )
        assert [env["BROWSERBASE_CONTEXT_ID"]] == there["context"]
        assert [env["AGENTMAIL_INBOX_ID"]] == there["inbox"]
        owned = {(row["kind"], row["upstream_id"]) for row in self.rows(OWNED)}
        assert owned == {(kind, there[kind][0]) for kind in ("context", "pod", "inbox")}
        living = self.living_tokens(later_ms=GRACE_MS)
        assert living == {hash_of(env[TOKEN]): one["token_id"]}, self.told()
        assert machine.config["image"] == self.image
        aim = SUSPENDED if one["is_over_budget"] and one["desired"] == RUNNING else one["desired"]
        assert one["status"] == {RUNNING: READY}.get(aim, aim), self.told()
        assert machine.is_cordoned == (aim != RUNNING), self.told()
        if aim != RUNNING:
            assert machine.is_off, (machine.state, self.told())
        if machine.running is not None:
            assert (machine.running.env[TOKEN], machine.running.image) == (env[TOKEN], self.image)


@asynccontextmanager
async def created(folder: Path, dice: random.Random) -> AsyncIterator[World]:
    """A world with one user, who has nothing."""
    clock = ManualClock(NOW_MS)
    async with running_vendors(clock=clock, habits=Habits()) as vendors, AsyncExitStack() as stack:
        world = World(clock, new_database(folder), dice, vendors, stack)
        for vendor, simulator in (
            (fly, vendors.fly),
            (browserbase, vendors.browserbase),
            (agentmail, vendors.agentmail),
        ):
            simulator.script = partial(_script, world, vendor)  # type: ignore[attr-defined]
        world.watch = partial(runs_with_a_good_token, world)
        async with open_store(world.database) as store:
            await Directory(store, clock).add_user(USER, plan="starter")
        moving = asyncio.get_running_loop().create_task(world.keep_moving())
        stack.callback(moving.cancel)
        yield world


def runs_with_a_good_token(world: World) -> str:
    """What runs in a machine that nobody has given up is always let in by the proxy."""
    one = world.instance()
    if one is None or GONE in {one["desired"], one["status"]} or one["is_undone"]:
        return ""
    living = world.living_tokens()
    running = [machine.running for machine in world.vendors.fly.machines if machine.running is not None]
    return "" if all(hash_of(each.env[TOKEN]) in living for each in running) else "it runs with a dead token"


def _no_trouble(_number: int, _vendor: Any, _request: ReceivedRequest) -> None:
    """As ever."""


def _script(world: World, vendor: Any, request: ReceivedRequest) -> Any:
    number = world.requests
    world.requests += 1
    if wrong := world.watch():
        world.wrong.append(f"{wrong}, at {request.method} {request.path}")
    return world.trouble(number, vendor, request)


# --- what is wished ------------------------------------------------------------------------------------


def _same(_world: World) -> None:
    """Nothing has to be otherwise first."""


def _other_image(world: World) -> None:
    world.image = OTHER_IMAGE if world.image == IMAGE else IMAGE


@dataclass(frozen=True)
class Act:
    """Something that is wished of a machine: after which other acts, what it comes to, and which acts make it possible again."""

    name: str
    after: tuple[str, ...]
    status: str
    back: tuple[str, ...] = ()
    prepare: Callable[[World], None] = _same

    async def wish(self, machines: Machines) -> None:
        """Raises MachineError."""
        if self.name.endswith("_budget"):
            await machines.instances.set_over_budget(USER, is_over=self.name == "over_budget")
        else:
            await getattr(machines, self.name)(USER, actor="chaos")


ACTS = {
    act.name: act
    for act in (
        Act("provision", (), READY, back=("deprovision",)),
        Act("deprovision", ("provision",), GONE, back=("provision",)),
        Act("update", ("provision",), READY, prepare=_other_image),
        Act("rotate", ("provision",), READY),
        Act("stop", ("provision",), STOPPED, back=("start",)),
        Act("suspend", ("provision",), SUSPENDED, back=("start",)),
        Act("start", ("provision", "stop"), READY, back=("stop",)),
        Act("over_budget", ("provision",), SUSPENDED, back=("within_budget",)),
        Act("within_budget", ("provision", "over_budget"), READY, back=("over_budget",)),
    )
}


def _lives(_instant: int) -> Fate:
    return Fate.LIVES


async def play(world: World, act: Act, fate: Callable[[int], Fate] = _lives) -> Process:
    """An act, to its end: if it dies of it, others go on, and who wished in vain wishes again."""
    act.prepare(world)
    before = world.wished()
    worker = await world.worker(fate)

    async def do() -> None:
        await act.wish(worker.machines)
        await worker.follow()

    if not await worker.process.run(do()):
        if world.wished() == before:
            again = await world.worker()
            await again.process.run(act.wish(again.machines))
        await world.settle()
    return worker.process


async def play_all(world: World, *wanted: str) -> None:
    """One act after the other, with nothing in their way."""
    for name in wanted:
        await play(world, ACTS[name])
        assert world.check() == ACTS[name].status, (name, world.told())


# --- what breaks ---------------------------------------------------------------------------------------


def at(number: int, fate: Fate) -> Callable[[int], Fate]:
    """At that instant."""
    return lambda instant: fate if instant == number else Fate.LIVES


def after(world: World, effects: int, fate: Fate) -> Callable[[int], Fate]:
    """At the first instant after so many more effects."""
    begins = world.effects
    return lambda _instant: fate if world.effects - begins >= effects else Fate.LIVES


async def death(folder: Path, dice: random.Random, act: Act, instant: int) -> bool:
    """At any instant of an act; whether it came to that."""
    async with created(folder, dice) as world:
        await play_all(world, *act.after)
        process = await play(world, act, at(instant, Fate.DIES))
        assert world.check() == act.status, (process.place, world.told())
    return process.is_dead


@dataclass(frozen=True)
class Counts:
    """Of an act that nothing happens to."""

    effects: int
    instants: int
    requests: int


async def deaths(folder: Path, dice: random.Random, act: Act) -> Counts:
    """After each effect of an act, one after the other in one world; and what there was of it when nothing was left to die after."""
    async with created(folder, dice) as world:
        await play_all(world, *act.after)
        for number in itertools.count():
            begins = world.requests
            process = await play(world, act, after(world, number, Fate.DIES))
            assert world.check() == act.status, (number, process.place, world.told())
            if not process.is_dead:
                break
            await play_all(world, *act.back)
    return Counts(number, process.instants, world.requests - begins)


def no_place(vendor: Any, shortage: Shortage) -> Any:
    """As Fly says that it has none; of others a plain failure."""
    if vendor is not fly:
        return vendor.fails(503)
    refusal = no_room(shortage, "sjc")
    return fly.fails(refusal.status, refusal.more.get("error_type", "unknown"), message=refusal.message)


FAILURES: dict[str, Callable[[Any], Any]] = {
    "lost answer": lambda vendor: vendor.loses_reply(),
    "lost answer, reset": lambda vendor: vendor.loses_reply(is_reset=True),
    "lost request": lambda vendor: vendor.drops(),
    "silence after work": lambda vendor: vendor.hangs(),
    "silence": lambda vendor: vendor.hangs(works=False),
    "no JSON": lambda vendor: vendor.answers(b"<html>"),
    "500 after work": lambda vendor: vendor.fails(500, works=True),
    "no room in the region": lambda vendor: no_place(vendor, Shortage.REGION),
    "no room, in older words": lambda vendor: no_place(vendor, Shortage.ABORTED),
    "no room on the host": lambda vendor: no_place(vendor, Shortage.HOST),
    "no room for the volume": lambda vendor: no_place(vendor, Shortage.VOLUME),
    "400": lambda vendor: vendor.fails(400),
    "401": lambda vendor: vendor.fails(401),
    "403": lambda vendor: vendor.fails(403),
    "404": lambda vendor: vendor.fails(404),
    "408": lambda vendor: vendor.fails(408),
    "409": lambda vendor: vendor.fails(409),
    "412": lambda vendor: vendor.fails(412),
    "422": lambda vendor: vendor.fails(422),
    "429": lambda vendor: vendor.fails(429),
    "500": lambda vendor: vendor.fails(500),
    "503": lambda vendor: vendor.fails(503),
}
LOST = tuple(failed for failed in FAILURES if "lost" in failed or "work" in failed)
"""Those after which nobody knows whether it was done."""


def failing(failed: str, vendor: Any, request: ReceivedRequest) -> Any:
    """Nobody can do anything against being told that what is to be deleted is not there."""
    if failed == "404" and request.method == "DELETE" and vendor is not fly:
        return None
    return FAILURES[failed](vendor)


async def failure(folder: Path, dice: random.Random, act: Act, number: int, failed: str) -> str | None:
    """Of the request of this number in an act; the status that it comes to, None where there are not so many. Whatever that is, what is
    wished again then comes true."""
    async with created(folder, dice) as world:
        await play_all(world, *act.after)
        if "silence" in failed:
            world.silence_s = HASTE_S
        meant = world.requests + number

        def trouble(place: int, vendor: Any, request: ReceivedRequest) -> Any:
            return failing(failed, vendor, request) if place == meant else None

        world.trouble = trouble
        await play(world, act)
        status = world.check()
        assert status in {act.status, ERROR}, world.told()
        if status == ERROR:
            await again(world, act)
    return status if world.requests > meant else None


async def again(world: World, act: Act) -> None:
    """What was given up is wished once more, and nothing is in its way."""
    one = world.instance()
    assert one is not None
    if one["ready_at_ms"] is None:
        await play_all(world, "provision")
    # Who has money again is not told so twice.
    await play_all(world, "start" if act.name == "within_budget" else act.name)


async def change_of_mind(
    folder: Path,
    dice: random.Random,
    *,
    instant: int | None = None,
    effects: int = 0,
    dies: bool = False,
    wishes: int = 1,
    failed: str = "",
    is_again: bool = True,
) -> bool:
    """Deprovisioning is wished at any instant of provisioning, or after so many effects of it, so often; who provisions goes on then,
    or dies; and a request of what comes then fails, if `failed`. Nothing is left, and no token is good for anything from the wish on.
    If `is_again`, another machine is wished at last. Whether it came to that."""
    async with created(folder, dice) as world:
        other = await world.worker()
        stands_still = Fate.STANDS_STILL
        worker = await world.worker(
            after(world, effects, stands_still) if instant is None else at(instant, stands_still)
        )

        async def do() -> None:
            with contextlib.suppress(
                MachineError
            ):  # told so, where the other wish came before its own was answered
                await ACTS["provision"].wish(worker.machines)
                await worker.follow()

        async def give_up() -> None:
            for _ in range(wishes):
                await ACTS["deprovision"].wish(other.machines)

        if await worker.process.run(do()) or world.instance() is None:
            return False
        await other.process.run(give_up())
        world.watch = partial(_no_good_token, world)
        assert world.watch() == ""
        meant = world.requests + dice.randrange(8)

        def trouble(place: int, vendor: Any, request: ReceivedRequest) -> Any:
            return failing(failed, vendor, request) if failed and place == meant else None

        world.trouble = trouble
        if dies:
            worker.process.die()
        else:
            await worker.process.go_on()
        await world.settle()
        assert world.check() == GONE, (worker.process.place, world.told())
        assert dies or failed or world.rows(LOST_CONTEXTS) == [], "nothing was in its way"
        if is_again:
            world.watch, world.trouble = partial(runs_with_a_good_token, world), _no_trouble
            await play_all(world, "provision")
    return True


def _no_good_token(world: World) -> str:
    good = world.living_tokens()
    return f"tokens of what goes away: {good}" if good else ""


async def overtaken(folder: Path, dice: random.Random, act: Act, meanwhile: Act, effects: int) -> bool:
    """Something else is wished after so many effects of an act: that comes true, as if nothing else had been. Whether it came to it."""
    async with created(folder, dice) as world:
        await play_all(world, *act.after)
        other = await world.worker()
        worker = await world.worker(after(world, effects, Fate.STANDS_STILL))
        if await worker.process.run(_wish(world, worker, act, follows=True)):
            return False
        await other.process.run(_wish(world, other, meanwhile, follows=False))
        await worker.process.go_on()
        await world.settle()
        await _catch_up(world)
        world.check()
    return True


STALL_S = 120.0
"""Longer than a claim lasts: who stands still so long is taken for dead."""
OLD_S = 3_700.0
"""What is younger may be on its way, and is left alone."""


async def stall(folder: Path, dice: random.Random, instant: int) -> int | None:
    """Who provisions stands still at any instant, until another has done it, and goes on then: what it was about to ask of a vendor is
    asked, and nothing it writes counts. Only of volumes does Fly make another each time; the one too many is found in its lists, and
    mended there. How many there were of those, None where it did not come to that."""
    async with created(folder, dice) as world:
        worker = await world.worker(at(instant, Fate.STANDS_STILL))

        async def do() -> None:
            await ACTS["provision"].wish(worker.machines)
            await worker.follow()

        if await worker.process.run(do()) or world.instance() is None:
            return None
        await world.pause(STALL_S)
        await world.settle()
        assert world.check() == READY, world.told()
        await worker.process.go_on()
        await world.settle()
        too_many = len(world.vendors.fly.volumes) - 1
        if too_many:
            await world.pause(OLD_S)
            other = await world.worker()
            await other.process.run(other.provisioner.reconcile(repairs=True))
        assert world.check() == READY, (worker.process.place, world.told())
    return too_many


# --- everything at once --------------------------------------------------------------------------------

WISHES = (*ACTS, "provision")
AT_ODDS = 0.2
"""So often something else than a machine is wished where there is none."""
PASSING = (
    "lost answer",
    "lost request",
    "no JSON",
    "500 after work",
    "404",
    "408",
    "409",
    "412",
    "429",
    "503",
)
"""Failures after which the same is tried again. The others end most runs at once."""
FAILS, IS_FINAL = 0.12, 0.05
"""So many requests, where any do; and so many of these for good."""
INSTANTS_MAX = 250
"""Where a worker dies or stands still, if it comes to that."""
TROUBLED_RUNS = 12
"""Then what fails ends: nobody would be done else."""


async def long_run(folder: Path, dice: random.Random, rounds: int) -> Counter[str]:
    """Wishes, deaths, failures, full regions and what happens to machines by themselves, in any order; how the rounds ended."""
    ended: Counter[str] = Counter()
    async with created(folder, dice) as world:
        for number in range(rounds):
            told = await _round(world)
            try:
                ended[world.check() or "nothing"] += 1
            except AssertionError as error:
                error.add_note(f"in round {number}: {told}")
                raise
    return ended


async def _round(world: World) -> str:
    dice, simulated = world.dice, world.vendors.fly
    one = world.instance()
    is_there = one is not None and one["ready_at_ms"] is not None
    wanted = dice.choice(WISHES if is_there or dice.random() < AT_ODDS else ("provision",))
    meanwhile = dice.choice((None, None, *WISHES))
    fate = dice.choice((Fate.LIVES, Fate.DIES)) if meanwhile is None else Fate.STANDS_STILL
    if simulated.machines and dice.random() < 0.3:
        dice.choice((simulated.crash, simulated.fall_idle))(simulated.machines[0])
    world.trouble = partial(_random_trouble, dice, dice.choice((0.0, FAILS)))
    world.vendors.fly.set_habits(Habits(shortages=_random_shortages(dice)))
    worker = await world.worker(at(dice.randrange(INSTANTS_MAX), fate))
    is_over = await worker.process.run(_wish(world, worker, ACTS[wanted], follows=True))
    if meanwhile is not None and not is_over:
        other = await world.worker()
        await other.process.run(_wish(world, other, ACTS[meanwhile], follows=False))
        if dice.random() < 0.5:
            worker.process.die()
        else:
            await worker.process.go_on()
    await world.settle(troubled_runs=TROUBLED_RUNS)
    await _catch_up(world)
    return f"{wanted}, {meanwhile}, {fate.name} at {worker.process.place}"


async def _wish(world: World, worker: Worker, act: Act, *, follows: bool) -> None:
    act.prepare(world)
    with contextlib.suppress(MachineError):
        await act.wish(worker.machines)
    if follows:
        await worker.follow()


async def _catch_up(world: World) -> None:
    """Another image that was not wished of the machine, or in vain, is wished of it."""
    one, machines = world.instance(), world.vendors.fly.machines
    is_behind = any(machine.config["image"] != world.image for machine in machines)
    if one is not None and one["status"] in {READY, STOPPED, SUSPENDED} and is_behind:
        worker = await world.worker()
        await worker.process.run(_follow_update(worker))


async def _follow_update(worker: Worker) -> None:
    await ACTS["update"].wish(worker.machines)
    await worker.follow()


def _random_trouble(
    dice: random.Random, fails: float, _place: int, vendor: Any, request: ReceivedRequest
) -> Any:
    if dice.random() >= fails:
        return None
    return failing(dice.choice(PASSING if dice.random() > IS_FINAL else tuple(FAILURES)), vendor, request)


def _random_shortages(dice: random.Random) -> dict[str, Shortage]:
    places = [f"{region}{host}" for region in ("sjc", "lax", "ord") for host in ("", "-1", "-2")]
    return {place: dice.choice(list(Shortage)) for place in dice.sample(places, dice.choice((0, 0, 1, 3)))}


# --- the command ---------------------------------------------------------------------------------------

Played = Callable[[Path, random.Random], Coroutine[Any, Any, object]]
INSTANTS = {
    "provision": 390,
    "deprovision": 160,
    "update": 220,
    "rotate": 220,
    "stop": 120,
    "suspend": 120,
    "start": 160,
    "over_budget": 120,
    "within_budget": 160,
}
"""As many as there are in an act, and a little more: how often a socket is waited for is not the same each time."""
REQUESTS = {
    "provision": 17,
    "deprovision": 5,
    "update": 11,
    "rotate": 11,
    "stop": 5,
    "suspend": 5,
    "start": 7,
    "over_budget": 5,
    "within_budget": 7,
}
EFFECTS_MAX = 50
"""Of an act."""
ROUNDS = 20
"""Of a long run."""


def run(played: Played, seed: str) -> Any:
    """In a world, and a loop, of its own; the store in memory where there is any, since what dies here is no disk's."""
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder, asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(played(Path(folder), random.Random(seed)))


def every_play() -> Iterator[tuple[str, Played]]:
    """Each death, failure, change of mind, other wish and stall once."""
    for name, act in ACTS.items():
        for instant in range(INSTANTS[name]):
            yield f"death {name} {instant}", partial(death, act=act, instant=instant)
        for number, failed in itertools.product(range(REQUESTS[name]), FAILURES):
            yield f"failure {name} {number} {failed}", partial(failure, act=act, number=number, failed=failed)
    for instant, dies, wishes in itertools.product(range(INSTANTS["provision"]), (False, True), (1, 2)):
        mind = partial(change_of_mind, instant=instant, dies=dies, wishes=wishes)
        yield f"change of mind {instant}, dies: {dies}, wishes: {wishes}", mind

    for act, meanwhile, effects in itertools.product(ACTS.values(), ACTS.values(), range(1, EFFECTS_MAX)):
        if effects < INSTANTS[act.name] / 5:
            other = partial(overtaken, act=act, meanwhile=meanwhile, effects=effects)
            yield f"overtaken {act.name} by {meanwhile.name} {effects}", other
    for instant in range(INSTANTS["provision"]):
        yield f"stall {instant}", partial(stall, instant=instant)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.machines", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", default="", help="what a play's name begins with")
    options = parser.parse_args()
    sys.stdout.write(f"seed {options.seed}\n")
    logging.disable(logging.CRITICAL)
    plays = [(name, played) for name, played in every_play() if name.startswith(options.only)]
    random.Random(options.seed).shuffle(plays)
    longer = ((f"long run {number}", partial(long_run, rounds=ROUNDS)) for number in itertools.count())
    counts: Counter[str] = Counter()
    for name, played in itertools.islice(itertools.chain(plays, longer), options.rounds):
        try:
            ended = run(played, f"{options.seed} {name}")
        except BaseException:
            sys.stdout.write(f"failed: {name}, of seed {options.seed}\n")
            raise
        for word, count in (ended if isinstance(ended, Counter) else {str(ended): 1}).items():
            counts[f"{name.split()[0]}: {word}"] += count
    sys.stdout.write("".join(f"{count:7} {name}\n" for name, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
