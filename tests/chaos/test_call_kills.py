"""Nobody is dialled twice, and each call is charged as the vendor bills it: under lost answers, kills and whatever webhooks do."""

import random
from pathlib import Path

import pytest

from tests.chaos import calls

pytestmark = pytest.mark.chaos

ROUNDS = 3


async def test_whatever_breaks_each_call_is_dialled_once_and_charged_as_the_vendor_bills_it(
    tmp_path: Path,
) -> None:
    seed = random.randrange(10**6)
    figures = await calls.play(tmp_path, ROUNDS, seed)
    assert figures.rounds == ROUNDS, f"seed {seed}"
    assert sum(figures.calls.values()) > figures.dials["200"], "nothing was lost: nothing was tried"
    assert figures.seconds > 0
