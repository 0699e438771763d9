"""How one simulated answer of Fly behaves. The vendor keeps state: see `simulators.stateful`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulators import stateful
from simulators.behaviour import HeaderLanguage
from simulators.stateful import WORKS, StatefulBehaviours

UNKNOWN = "unknown"
"""The word of an error that has none of its own."""


@dataclass(frozen=True, slots=True)
class Behaviour(stateful.Behaviour):
    """What one answer does. `error_type` is the word in an error's `status`; `body`: all of an error's body, where it is
    not the usual one."""

    body: bytes | None = None


PLAIN = Behaviour()

_BEHAVIOURS = StatefulBehaviours(Behaviour)
answers = _BEHAVIOURS.answers
answers_late = _BEHAVIOURS.answers_late
breaks_after = _BEHAVIOURS.breaks_after
stalls_after = _BEHAVIOURS.stalls_after
hangs = _BEHAVIOURS.hangs
drops = _BEHAVIOURS.drops
loses_reply = _BEHAVIOURS.loses_reply


def fails(
    status: int,
    word: str = UNKNOWN,
    *,
    message: str = "simulated error",
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Behaviour:
    """An error instead of the work; `works=True`: after the work all the same. `word` stands in the body's `status`."""
    return _BEHAVIOURS.fails(status, word, message=message, headers=headers, **more)


parse_simulate = HeaderLanguage(PLAIN, usage_words={}, usage_name_words={}, words=WORKS).parse
"""The behaviour asked for by an `x-simulate` header."""
