"""`kill -9` of a server under load, at random and at chosen instants: every request that the vendor saw is in the ledger,
once; nothing stays held; budgets admit again. What is claimed and measured: docs/reliability.md."""

import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.chaos import acts
from tests.chaos.audit import Figures

pytestmark = [pytest.mark.chaos, pytest.mark.heavy]

ENOUGH = 20
"""Of what a round is about, on a machine that has other things to do."""
PARTS = 2
PLACES = 8
"""Awaits of each part that one run plays; which ones, is another matter in each run."""
CASES = [case for number, case in enumerate(product(acts.COMMITS, acts.FAULTS)) if number % 7 in {0, 2, 4}]
"""Every kind of commit and every fault; `make chaos` plays every pair."""


@pytest.fixture
def dice() -> random.Random:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def figures() -> Iterator[Figures]:
    """Shown with a failure."""
    gathered = Figures()
    yield gathered
    print(gathered.rounds, gathered.entries, gathered.instants)


@pytest.mark.parametrize("workers", [1, 2])
async def test_killed_at_random_moments_it_loses_nothing_and_admits_again(
    tmp_path: Path, dice: random.Random, figures: Figures, workers: int
) -> None:
    await acts.random_moments(tmp_path, dice, figures, rounds=3, workers=workers)
    assert figures.exact > ENOUGH
    assert figures.cut_by_kill > ENOUGH, "the kills hit nothing: the test proves nothing"
    assert figures.ends_seen_by_clients > ENOUGH


async def test_when_one_of_two_workers_is_killed_the_other_keeps_its_streams_and_buries_it(
    tmp_path: Path, dice: random.Random, figures: Figures
) -> None:
    await acts.one_of_two(tmp_path, dice, figures, rounds=2)
    assert figures.cut_by_kill > 5
    assert figures.exact > ENOUGH


@pytest.mark.parametrize("part", range(PARTS))
async def test_killed_at_awaits_of_requests_and_polls_it_loses_nothing(
    tmp_path: Path, dice: random.Random, figures: Figures, part: int
) -> None:
    await acts.awaits(tmp_path, dice, figures, moments=("by turns",), part=part, parts=PARTS, at_most=PLACES)
    assert figures.instants.total() == figures.rounds.total() > 0


@pytest.mark.parametrize("cases", [CASES[::2], CASES[1::2]], ids=["even", "odd"])
async def test_killed_inside_a_commit_of_each_kind_it_loses_nothing(
    tmp_path: Path, dice: random.Random, figures: Figures, cases: list[tuple[str, str]]
) -> None:
    await acts.commits(tmp_path, dice, figures, cases=cases)
    assert figures.instants.total() == len(cases)


async def test_killed_inside_a_checkpoint_of_the_write_ahead_log_it_loses_nothing(
    tmp_path: Path, dice: random.Random, figures: Figures
) -> None:
    await acts.log_checkpoints(tmp_path, dice, figures, faults=acts.FAULTS)


async def test_two_workers_killed_inside_one_s_write_lose_nothing(
    tmp_path: Path, dice: random.Random, figures: Figures
) -> None:
    await acts.two_on_a_bad_disk(tmp_path, dice, figures, rounds=1)


async def test_killed_twice_while_it_recovers_from_a_kill_it_loses_nothing(
    tmp_path: Path, dice: random.Random, figures: Figures
) -> None:
    await acts.recoveries(tmp_path, dice, figures, rounds=2)
    assert figures.instants.total() == 4


async def test_killed_after_a_standstill_it_has_the_late_report_of_each_end_that_a_client_saw(
    tmp_path: Path, dice: random.Random, figures: Figures
) -> None:
    await acts.standstills(tmp_path, dice, figures, rounds=1)
    assert figures.entries["expire estimated"]


async def test_with_the_default_bound_an_end_may_precede_its_entry_which_then_is_an_estimate(
    tmp_path: Path, dice: random.Random, figures: Figures
) -> None:
    await acts.default_waits(tmp_path, dice, figures, rounds=2)
    assert figures.estimated


async def test_killed_while_agents_race_for_few_searches_it_counts_each_once_and_gives_out_no_more(
    tmp_path: Path, dice: random.Random, figures: Figures
) -> None:
    await acts.few_searches(tmp_path, dice, figures, rounds=2)
    assert figures.searches_refused > ENOUGH
    assert figures.searches > 2


async def test_killed_while_it_makes_its_store_it_makes_it_the_next_time(
    tmp_path: Path, dice: random.Random, figures: Figures
) -> None:
    await acts.new_stores(tmp_path, dice, figures, rounds=2)
