"""How one simulated answer of Browserbase behaves. The vendor keeps state: see `simulators.stateful`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulators import stateful
from simulators.behaviour import HeaderLanguage
from simulators.stateful import WORKS, StatefulBehaviours

PROJECT_ID = "b0b5e51d-acc0-4000-8000-0000000b0b5e"
OWNER_ID = "user_2simulatedOwnerOfTheAccount"
PLAN = "Startup plan"
FOREIGN_SESSION = "f0e1900d-5e55-4000-8000-00000000f0e1"
ACCOUNT_MARK = "simulated-account-wide"
"""Stands in every answer that concerns the whole account."""
PLANTED = (PROJECT_ID, OWNER_ID, PLAN, FOREIGN_SESSION, ACCOUNT_MARK)
"""What concerns the whole account, and stands in errors and in answers that are nobody's: no tenant may read it. (The
project's id stands in sessions and contexts, too.)"""


@dataclass(frozen=True, slots=True)
class ReportedUsage:
    """What a request caused, by the vendor's units. What a session used is known only at its end: see `Billed`."""

    sessions: int = 0
    fetches: int = 0
    searches: int = 0
    agent_runs: int = 0

    def counts(self) -> dict[str, int]:
        counts = {name: getattr(self, name) for name in self.__slots__}
        return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True, slots=True)
class Behaviour(stateful.Behaviour):
    """What one answer does."""

    usage: ReportedUsage | None = None


PLAIN = Behaviour()

_BEHAVIOURS = StatefulBehaviours(Behaviour)
answers = _BEHAVIOURS.answers
answers_late = _BEHAVIOURS.answers_late
breaks_after = _BEHAVIOURS.breaks_after
stalls_after = _BEHAVIOURS.stalls_after
replays = _BEHAVIOURS.replays
hangs = _BEHAVIOURS.hangs
drops = _BEHAVIOURS.drops
loses_reply = _BEHAVIOURS.loses_reply


def fails(
    status: int, *, message: str | None = None, headers: Mapping[str, str] | None = None, **more: Any
) -> Behaviour:
    """An error instead of the work, with account-wide data in its words; `works=True`: after the work all the same.

    A 429 says `retry-after: 1` unless headers are given.
    """
    if headers is None:
        headers = {"retry-after": "1"} if status == 429 else {}  # noqa: PLR2004 - the status itself
    words = f"Simulated error of project {PROJECT_ID} ({PLAN}) beside session {FOREIGN_SESSION}"
    return _BEHAVIOURS.fails(status, message=message or words, headers=headers, **more)


parse_simulate = HeaderLanguage(PLAIN, usage_words={}, usage_name_words={}, words=WORKS).parse
"""The behaviour asked for by an `x-simulate` header."""
