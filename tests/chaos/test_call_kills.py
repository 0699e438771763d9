"""Nobody is dialled twice, and each call is charged as the vendor bills it and told to its user's agent: under lost answers, kills
and whatever webhooks do."""

import random
from pathlib import Path

import pytest

from tests.chaos import calls
from tests.chaos.call_awaits import Dialled, Round, play_kind
from tests.chaos.inbound_awaits import Inbound

pytestmark = pytest.mark.chaos

ROUNDS, DEATHS = 3, 5
STEPS = {"take", "_ask", "_book", "claim_ending", "_send", "delivered"}
"""What every call goes through, by the functions that wait there."""


async def test_whatever_breaks_each_call_is_dialled_once_and_charged_as_the_vendor_bills_it(
    tmp_path: Path,
) -> None:
    seed = random.randrange(10**6)
    figures = await calls.play(tmp_path, ROUNDS, seed)
    assert figures.rounds == ROUNDS, f"seed {seed}"
    assert sum(figures.calls.values()) > figures.dials["200"], "nothing was lost: nothing was tried"
    assert figures.seconds > 0


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (Dialled, {"handle", "look_for"}),
        (Inbound, {"heard", "look", "owner_at", "_take_on", "_is_granted"}),
    ],
)
async def test_whatever_await_it_dies_at_each_call_is_charged_and_told_once(
    tmp_path: Path, kind: type[Round], steps: set[str]
) -> None:
    seed = random.randrange(10**6)
    figures, places = await play_kind(kind, tmp_path, DEATHS, seed)
    assert figures.rounds == DEATHS + 1, f"seed {seed}"
    assert figures.kills, "none has hit: none was tried"
    waiting = {function.rpartition(" ")[2] for place in places for function in place.split(" > ")}
    assert waiting >= STEPS | steps, "a step at which it cannot die"
