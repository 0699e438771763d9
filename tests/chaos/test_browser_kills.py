"""No browser runs that nobody knows, each is charged once, to the second, and none outlives its budget: under lost answers
and kills."""

import random
from pathlib import Path

import pytest

from tests.chaos import browser_awaits, browser_budgets, browsers

pytestmark = pytest.mark.chaos

ROUNDS, BUDGETS, DEATHS = 3, 2, 5


async def test_whatever_breaks_each_browser_is_known_and_charged_as_the_vendor_bills_it(
    tmp_path: Path,
) -> None:
    seed = random.randrange(10**6)
    figures = await browsers.play(tmp_path, ROUNDS, seed)
    assert figures.rounds == ROUNDS, f"seed {seed}"
    assert figures.creations["201"] < figures.sessions, "nothing was lost: nothing was tried"
    assert figures.seconds > 60 * figures.sessions, "none ran for longer than the least that is billed"


async def test_a_browser_whose_budget_ends_is_ended_within_a_slice_whatever_breaks(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    figures = await browser_budgets.play(tmp_path, BUDGETS, seed)
    told = figures.creations["201"]
    assert told, "no agent was told of its session: none could come back to it"
    assert figures.ended["budget_ended"] >= told, (
        f"seed {seed}: what is kept alive goes on through a kill, to its budget's end"
    )


async def test_whatever_await_it_dies_at_each_browser_is_known_and_charged(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    figures = await browser_awaits.play(tmp_path, DEATHS, seed)
    assert figures.rounds == DEATHS + 1, f"seed {seed}"
    assert figures.kills, "none has hit: none was tried"
