"""How one simulated answer of Gemini behaves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulators import behaviour
from simulators.behaviour import Behaviours, HeaderLanguage
from simulators.gemini_answers import ReportedUsage


@dataclass(frozen=True, slots=True)
class Behaviour(behaviour.Behaviour):
    """What one answer does. `error_type` is a status' name (`UNAVAILABLE`), `details` those of an error;
    `has_usage` False leaves the usage out, as older embeddings do."""

    usage: ReportedUsage | None = None
    function_call: tuple[str, Mapping[str, Any]] | None = None
    block_reason: str | None = None
    details: tuple[Mapping[str, Any], ...] = ()
    has_usage: bool = True


PLAIN = Behaviour()
ERROR_AFTER_STATUS = 503
"""The error inside a stream, unless told otherwise."""

_BEHAVIOURS = Behaviours(Behaviour)
streams = _BEHAVIOURS.streams
answers = _BEHAVIOURS.answers
fails = _BEHAVIOURS.fails
breaks_after = _BEHAVIOURS.breaks_after
errors_after = _BEHAVIOURS.errors_after
stalls_after = _BEHAVIOURS.stalls_after
hangs = _BEHAVIOURS.hangs
drops = _BEHAVIOURS.drops
replays = _BEHAVIOURS.replays

parse_simulate = HeaderLanguage(
    PLAIN,
    usage_words={
        "input": "input_tokens",
        "output": "output_tokens",
        "thoughts": "thoughts_tokens",
        "cached": "cached_tokens",
        "tool": "tool_tokens",
        "web_searches": "searches",
    },
    usage_name_words={"tier": "service_tier"},
    words={"block": lambda given, _: {"block_reason": given}},
).parse
"""The behaviour asked for by an `x-simulate` header: `events=60,pace_ms=20,cut_after=10`."""
