"""How one simulated answer of OpenAI behaves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulators import behaviour
from simulators.behaviour import Behaviours, HeaderLanguage
from simulators.openai_shapes import ReportedUsage, ToolCall, moderation


@dataclass(frozen=True, slots=True)
class Behaviour(behaviour.Behaviour):
    """What one answer does, with what only OpenAI's answers do.

    `stop_reason` is the `finish_reason` of a chat completion. `ends`: the status in which a response ends.
    `polls`: a background response ends after so many retrievals that see it unfinished (0: at once); None waits for
    `finish`, `fail` or `cancel` of the simulator.
    """

    usage: ReportedUsage | None = None
    hides_usage: bool = False
    """The answer tells no usage at all."""
    service_tier: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    error_code: str | None = None
    error_param: str | None = None
    after_usage: tuple[Mapping[str, Any], ...] = ()
    """Fields of further chunks without choices, after the chunk with the usage."""
    ends: str | None = None
    keepalives: int = 0
    """Events of that name in the stream of a response, after its second event."""
    nests_error: bool = False
    """The error inside the stream of a response stands in an `error` object, as in that of a chat completion."""
    polls: int | None = None


PLAIN = Behaviour()

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
        "input": "prompt_tokens",
        "output": "completion_tokens",
        "cache_read": "cached_tokens",
        "cache_write": "cache_write_tokens",
        "cache_write_12h": "cache_write_12h_tokens",
        "reasoning": "reasoning_tokens",
        "audio_input": "audio_prompt_tokens",
        "audio_output": "audio_completion_tokens",
        "web_searches": "web_searches",
    },
    usage_name_words={},
    words={
        "tier": lambda given, _: {"service_tier": given},
        "tool": lambda given, was: {"tool_calls": (*was.tool_calls, ToolCall(given))},
        "moderated": lambda given, _: {"after_usage": (moderation(),) if given == "1" else ()},
        "hide_usage": lambda given, _: {"hides_usage": given == "1"},
        "ends": lambda given, _: {"ends": given},
        "keepalives": lambda given, _: {"keepalives": int(given)},
        "polls": lambda given, _: {"polls": int(given)},
    },
).parse
"""The behaviour asked for by an `x-simulate` header: `events=60,pace_ms=20,cut_after=10`."""
