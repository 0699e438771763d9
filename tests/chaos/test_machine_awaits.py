"""A machine is whole or gone, and a vendor has nothing that the store does not know: wherever a worker dies, whatever fails, and
whenever its user thinks otherwise. All of it: `python -m tests.chaos.machines --rounds 10000`."""

import asyncio
import itertools
import random
from collections import Counter
from functools import partial

import pytest

from tests.chaos import machines
from tests.chaos.machines import ACTS, FAILURES, INSTANTS, LOST, REQUESTS, Counts, run
from tests.support.mortal import Fate, Loop, Process

pytestmark = pytest.mark.chaos

DEATHS, FAILED, MINDS, OVERTAKEN, STALLS, LONG_RUNS = 20, 40, 15, 25, 6, 4
"""Drawn for one run."""


def drawn(kind: str, count: int, seed: int):
    """So many of all plays of a kind."""
    plays = [(name, played) for name, played in machines.every_play() if name.startswith(kind)]
    return random.Random(seed).sample(plays, count)


def ended(plays, seed: int) -> Counter[str]:
    """How plays end; a failure names its own."""
    found: Counter[str] = Counter()
    for name, played in plays:
        try:
            found[str(run(played, f"{seed} {name}"))] += 1
        except BaseException as error:
            error.add_note(f"{name}, of seed {seed}")
            raise
    return found


@pytest.mark.parametrize("name", ACTS)
def test_whatever_effect_a_worker_dies_after_the_next_one_brings_it_to_its_end(name: str) -> None:
    counts: Counts = run(partial(machines.deaths, act=ACTS[name]), name)
    assert counts.effects > counts.requests, "what is done is on record, too"
    assert counts.requests == REQUESTS[name]
    assert 0.6 * INSTANTS[name] < counts.instants <= INSTANTS[name], "every instant is played by the command"


def test_whatever_instant_a_worker_dies_at_the_next_one_brings_it_to_its_end() -> None:
    seed = random.randrange(10**6)
    found = ended(drawn("death", DEATHS, seed), seed)
    assert found["True"] > DEATHS / 2, "nine of ten die"


@pytest.mark.parametrize("failed", LOST)
def test_an_answer_that_is_lost_is_found_out_by_looking(failed: str) -> None:
    plays = [
        (f"{failed} {number}", partial(machines.failure, act=ACTS["provision"], number=number, failed=failed))
        for number in range(REQUESTS["provision"])
    ]
    assert ended(plays, 0) == {"ready": REQUESTS["provision"]}


def test_whatever_request_fails_and_however_it_comes_true_or_ends_in_a_clean_error() -> None:
    seed = random.randrange(10**6)
    found = ended(drawn("failure", FAILED, seed), seed)
    assert set(found) <= {"ready", "gone", "stopped", "suspended", "error", "None"}
    assert found["None"] < FAILED / 4, "most of them failed"


def test_who_is_refused_is_told_of_a_clean_error_and_gets_the_machine_when_asking_again() -> None:
    plays = [
        (f"401 {number}", partial(machines.failure, act=ACTS["provision"], number=number, failed="401"))
        for number in range(0, REQUESTS["provision"], 3)
    ]
    assert set(ended(plays, 0)) == {"ready", "error"}


def test_an_app_is_not_given_up_because_our_key_is_refused() -> None:
    plays = [
        (f"403 {number}", partial(machines.failure, act=ACTS["deprovision"], number=number, failed="403"))
        for number in range(REQUESTS["deprovision"])
    ]
    assert ended(plays, 0) == {"gone": REQUESTS["deprovision"]}


@pytest.mark.parametrize("dies", [False, True])
def test_what_is_wished_away_while_it_is_made_is_gone_whole_and_its_token_at_once(dies: bool) -> None:
    """After each effect of provisioning: who provisions goes on, or dies; it is wished once, or twice; something else fails, too."""
    dice = random.Random(0)
    for number in itertools.count(1):
        more = {
            "wishes": 1 + number % 2,
            "failed": "" if number % 2 else dice.choice(list(FAILURES)),
            "is_again": number % 3 == 0,
        }
        mind = partial(machines.change_of_mind, effects=number, dies=dies, **more)
        if not ended([(f"after {number} effects, {more}", mind)], 0)["True"]:
            break
    assert number > REQUESTS["provision"] * 2


def test_what_is_wished_away_at_any_instant_is_gone_whole() -> None:
    seed = random.randrange(10**6)
    assert ended(drawn("change of mind", MINDS, seed), seed)["True"] > MINDS / 2, "nine of ten come in time"


@pytest.mark.parametrize(
    ("name", "meanwhile"), [("start", "over_budget"), ("over_budget", "within_budget"), ("stop", "start")]
)
def test_what_is_wished_while_something_else_comes_true_comes_true(name: str, meanwhile: str) -> None:
    """After each effect of what was wished first."""
    for number in itertools.count(1):
        other = partial(machines.overtaken, act=ACTS[name], meanwhile=ACTS[meanwhile], effects=number)
        if not ended([(f"after {number} effects of {name}", other)], 0)["True"]:
            break
    assert number > REQUESTS[name]


def test_whatever_else_is_wished_whenever_comes_true() -> None:
    seed = random.randrange(10**6)
    assert ended(drawn("overtaken", OVERTAKEN, seed), seed)["True"] > OVERTAKEN / 8, (
        "one of two comes in time"
    )


def test_who_stands_still_for_longer_than_a_claim_lasts_changes_nothing_any_more() -> None:
    seed = random.randrange(10**6)
    found = ended(drawn("stall", STALLS, seed), seed)
    assert set(found) <= {"0", "1", "None"}


@pytest.mark.parametrize("number", range(LONG_RUNS))
def test_wishes_deaths_and_failures_in_any_order_leave_a_machine_whole_or_gone(number: int) -> None:
    seed = f"{random.randrange(10**6)} {number}"
    try:
        found: Counter[str] = run(partial(machines.long_run, rounds=machines.ROUNDS), seed)
    except BaseException as error:
        error.add_note(f"seed {seed!r}")
        raise
    assert found.total() == machines.ROUNDS


# --- the means -----------------------------------------------------------------------------------------


def test_nothing_of_a_dead_process_runs_and_its_children_are_dead_too() -> None:
    ran = []

    async def child() -> None:
        try:
            await asyncio.sleep(0.01)
            ran.append("child")
        finally:
            ran.append("finally")

    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            await asyncio.sleep(0)
        ran.append("parent")

    async def play() -> bool:
        process = Process(lambda instant: Fate.DIES if instant == 3 else Fate.LIVES)
        has_lived = await process.run(parent())
        await asyncio.sleep(0.03)
        await process.end()
        return has_lived

    with asyncio.Runner(loop_factory=Loop) as runner:
        assert runner.run(play()) is False
    assert ran == []


def test_a_process_that_stands_still_goes_on_where_it_stood() -> None:
    ran = []

    async def work() -> None:
        for number in range(3):
            await asyncio.sleep(0)
            ran.append(number)

    async def play() -> None:
        process = Process(lambda instant: Fate.STANDS_STILL if instant == 2 else Fate.LIVES)
        assert await process.run(work()) is False
        await asyncio.sleep(0.01)
        assert ran == [0]
        await process.go_on()
        assert ran == [0, 1, 2]

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(play())


async def test_what_does_not_die_comes_to_its_end_and_raises_what_it_raises() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError

    async def works() -> None:
        await asyncio.sleep(0)

    assert await Process().run(works())
    with pytest.raises(ValueError):  # noqa: PT011 - its own
        await Process().run(fails())
