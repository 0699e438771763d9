"""No browser runs that nobody knows, and each is charged once, to the second: under lost answers and kills."""

import random
from pathlib import Path

import pytest

from tests.chaos.browsers import play

pytestmark = pytest.mark.chaos

ROUNDS = 3


async def test_whatever_breaks_each_browser_is_known_and_charged_as_the_vendor_bills_it(
    tmp_path: Path,
) -> None:
    seed = random.randrange(10**6)
    figures = await play(tmp_path, ROUNDS, seed)
    assert figures.rounds == ROUNDS, f"seed {seed}"
    assert figures.creations["201"] < figures.sessions, "nothing was lost: nothing was tried"
    assert figures.seconds > 60 * figures.sessions, "none ran for longer than the least that is billed"
