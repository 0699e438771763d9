"""`make chaos ROUNDS=1000 SEED=7`: kill the server so often, in every way in turn; stop at the first failure.

A line per 50 rounds. A failure names the seed of its act and keeps its folder (store, its copy after the kill, log). The
same SEED makes the same choices; what the scheduler makes of them is its own. What was counted is written to FIGURES.
"""

import argparse
import asyncio
import random
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from itertools import product
from pathlib import Path

from tests.chaos import acts
from tests.chaos.audit import Figures

LINE_EVERY_ROUNDS = 50

Act = Callable[[Path, random.Random, Figures], Awaitable[None]]


async def _random_one(folder: Path, dice: random.Random, figures: Figures) -> None:
    await acts.random_moments(folder, dice, figures, rounds=12, workers=1)


async def _random_two(folder: Path, dice: random.Random, figures: Figures) -> None:
    await acts.random_moments(folder, dice, figures, rounds=12, workers=2)


async def _one_of_two(folder: Path, dice: random.Random, figures: Figures) -> None:
    await acts.one_of_two(folder, dice, figures, rounds=10)


async def _two_on_a_bad_disk(folder: Path, dice: random.Random, figures: Figures) -> None:
    await acts.two_on_a_bad_disk(folder, dice, figures, rounds=5)


async def _commits(folder: Path, dice: random.Random, figures: Figures) -> None:
    await acts.commits(folder, dice, figures, cases=[*product(acts.COMMITS, acts.FAULTS)])


async def _log_checkpoints(folder: Path, dice: random.Random, figures: Figures) -> None:
    await acts.log_checkpoints(folder, dice, figures, faults=acts.FAULTS * 2)


async def _recoveries(folder: Path, dice: random.Random, figures: Figures) -> None:
    await acts.recoveries(folder, dice, figures, rounds=8)


async def _standstills(folder: Path, dice: random.Random, figures: Figures) -> None:
    await acts.standstills(folder, dice, figures, rounds=6)


async def _default_waits(folder: Path, dice: random.Random, figures: Figures) -> None:
    await acts.default_waits(folder, dice, figures, rounds=4)


async def _few_searches(folder: Path, dice: random.Random, figures: Figures) -> None:
    await acts.few_searches(folder, dice, figures, rounds=6, workers=dice.choice([1, 2]))


async def _new_stores(folder: Path, dice: random.Random, figures: Figures) -> None:
    await acts.new_stores(folder, dice, figures, rounds=8)


ACTS: tuple[Act, ...] = (
    _random_one,
    acts.awaits,
    _random_two,
    _commits,
    _one_of_two,
    _recoveries,
    _log_checkpoints,
    _two_on_a_bad_disk,
    _standstills,
    _default_waits,
    _few_searches,
    _new_stores,
)


def main() -> int:
    arguments = argparse.ArgumentParser(prog="make chaos")
    arguments.add_argument("--rounds", type=int, required=True)
    arguments.add_argument("--seed", type=int)
    arguments.add_argument("--figures", type=Path, help="where to write what was counted, as JSON")
    given = arguments.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    figures, home = Figures(), Path(tempfile.mkdtemp(prefix="chaos-"))
    began_s, shown = time.monotonic(), 0
    for number in range(given.rounds):
        act = ACTS[(seed + number) % len(ACTS)]
        if figures.rounds.total() >= given.rounds:
            break
        folder = home / f"act{number}"
        try:
            asyncio.run(act(folder, random.Random(f"{seed}:{number}"), figures))
        except Exception:  # noqa: BLE001 - whatever it was, the run stops here and says where
            traceback.print_exc()
            print(f"failed in act {number} ({_name(act)}) of seed {seed}; kept: {folder}", flush=True)
            return 1
        finally:
            if given.figures is not None:
                given.figures.write_bytes(figures.as_json())
        shutil.rmtree(folder)
        if figures.rounds.total() // LINE_EVERY_ROUNDS > shown:
            shown = figures.rounds.total() // LINE_EVERY_ROUNDS
            print(f"{time.monotonic() - began_s:6.0f} s  {_line(figures)}", flush=True)
    home.rmdir()
    print(_summary(figures))
    return 0


def _name(act: Act) -> str:
    return getattr(act, "__name__", repr(act)).strip("_")


def _line(figures: Figures) -> str:
    return (
        f"{figures.rounds.total()} rounds, {figures.sent.total()} requests, {figures.seen_by_vendor} seen by the vendor, "
        f"{figures.exact} exact, {figures.estimated} estimated"
    )


def _summary(figures: Figures) -> str:
    pairs = figures.estimates_nanousd
    off = sorted(booked - true for booked, true in pairs)
    lines = [
        _line(figures),
        f"rounds: {dict(figures.rounds)}",
        f"requests: {dict(figures.sent)}",
        f"ends seen by clients: {figures.ends_seen_by_clients}; of these ahead of their entry: {figures.ends_ahead}",
        f"entries: {dict(figures.entries)}",
        f"held at the death: {figures.cut_by_kill}, never sent: {figures.never_sent}",
        f"ids of kept objects: {figures.ids_seen} received, {figures.ids_unseen} bound and never received",
        f"strangers refused: {figures.strangers_refused}",
        f"searches counted: {figures.searches}, refused for want of one: {figures.searches_refused}",
        f"in the background: {figures.deferred_exact} exact, {figures.deferred_lost} cut before their id was bound",
        _spread("start to admitting, s", figures.started_s),
        _spread("start to nothing held by the dead, s", figures.freed_s),
    ]
    if off:
        lines.append(
            f"cut by a kill: booked {sum(one for one, _ in pairs)}, true {sum(one for _, one in pairs)} nano-USD"
        )
        lines.append(_spread("booked minus true, nano-USD", off))
        lines.append(_spread("the same without its sign", sorted(map(abs, off))))
        lines.append(_spread("booked / true", sorted(booked / true for booked, true in pairs if true)))
    lines += [f"{count:5}  {instant}" for instant, count in sorted(figures.instants.items())]
    return "\n".join(lines)


def _spread(name: str, numbers: list[float] | list[int]) -> str:
    if len(numbers) < 2:
        return f"{name}: {numbers}"
    cuts = statistics.quantiles(numbers, n=20)
    return f"{name}: p5 {cuts[0]:.3g}, p50 {cuts[9]:.3g}, p95 {cuts[18]:.3g}, max {max(numbers):.3g}"


if __name__ == "__main__":
    sys.exit(main())
