"""How one simulated answer of Anthropic behaves."""

from dataclasses import dataclass

from simulators import behaviour
from simulators.anthropic_messages import ReportedUsage
from simulators.behaviour import Behaviours, HeaderLanguage


@dataclass(frozen=True, slots=True)
class Behaviour(behaviour.Behaviour):
    """What one answer does. `usage_at_start`: what `message_start` says, if it says something else."""

    usage: ReportedUsage | None = None
    usage_at_start: ReportedUsage | None = None


PLAIN = Behaviour()
ERROR_AFTER_TYPE = "overloaded_error"
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
        "cache_read": "cache_read_tokens",
        "cache_write_5m": "cache_write_5m_tokens",
        "cache_write_1h": "cache_write_1h_tokens",
        "web_searches": "web_searches",
    },
    usage_name_words={"tier": "service_tier", "speed": "speed", "geo": "inference_geo"},
).parse
"""The behaviour asked for by an `x-simulate` header: `events=60,pace_ms=20,cut_after=10`."""
