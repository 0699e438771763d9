"""No mail is sent twice, none is lost, and the ledger says what the vendor sent: under lost answers and kills."""

import random
from pathlib import Path

import pytest

from tests.chaos.mail import play

pytestmark = pytest.mark.chaos

ROUNDS = 3


async def test_whatever_breaks_each_mail_is_sent_once_and_charged_once(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    figures = await play(tmp_path, ROUNDS, seed)
    assert figures.rounds == ROUNDS, f"seed {seed}"
    assert figures.attempts["200"] == figures.mails
    assert figures.asked > figures.mails, "nothing was lost: nothing was tried"
