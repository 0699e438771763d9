"""How one simulated answer of Anthropic behaves: as data, by helper, or in the words of a request header."""

import enum
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from simulators.anthropic_messages import ReportedUsage, filler
from simulators.script import (
    AtRandom,
    Disconnect,
    Framing,
    Pause,
    Reset,
    Split,
    Stall,
    Step,
    Waitable,
    WaitFor,
)

JSON_TYPE = "application/json"


class Ending(enum.StrEnum):
    """How an answer ends that breaks off."""

    FIN = "fin"
    RESET = "reset"
    CLEAN = "clean"
    """The HTTP body ends properly, without the event that ends the stream: it looks like success."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What one answer does; every field has a helper below. An empty one answers as the real API would.

    The points `breaks_after`, `errors_after` and `stalls_after` count events of a stream, and bytes of an
    unstreamed answer. `usage` is reported as given, whatever `max_tokens` says; `usage_changes` replaces single
    fields of the computed one. `raw`: a body sent as it is, with its status and content headers.
    """

    # what is said
    text: str | None = None
    thinking: str | None = None
    events: int | None = None
    text_bytes: int | None = None
    usage: ReportedUsage | None = None
    usage_at_start: ReportedUsage | None = None
    usage_changes: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    stop_reason: str | None = None
    status: int = 200
    error_type: str | None = None
    error_message: str = "Simulated error"
    headers: tuple[tuple[str, str], ...] = ()
    raw: "Raw | None" = None
    # how it is said
    before: tuple[Step, ...] = ()
    pace_s: float = 0.0
    breaks_after: int | None = None
    ending: Ending = Ending.FIN
    errors_after: int | None = None
    stalls_after: int | None = None
    gate: Waitable | None = None
    gzip: bool | None = None
    """Compress when the client accepts it; None asks the simulator's default."""
    split: Split | None = None
    wire_split: Split | None = None
    closes: bool = False

    @property
    def is_burst(self) -> bool:
        """Nothing to wait for: the whole answer may be written at once."""
        return not (
            self.before
            or self.pace_s
            or self.closes
            or self.split is not None
            or self.wire_split is not None
            or self.breaks_after is not None
            or self.errors_after is not None
            or self.stalls_after is not None
        )


@dataclass(frozen=True, slots=True)
class Raw:
    """A recorded body, still as it was encoded."""

    body: bytes
    content_type: str
    content_encoding: str | None = None
    framing: Framing = Framing.CHUNKED


PLAIN = Behaviour()


def streams(
    *,
    events: int | None = None,
    pace_s: float = 0.0,
    usage: ReportedUsage | None = None,
    text: str | None = None,
    **more: Any,
) -> Behaviour:
    """A good answer of `events` events in all (at least 7), `pace_s` seconds apart. Unstreamed if so asked."""
    return Behaviour(events=events, pace_s=pace_s, usage=usage, text=text, **more)


def answers(body: bytes | Mapping[str, Any], *, status: int = 200, **more: Any) -> Behaviour:
    """The given JSON body and no other."""
    encoded = body if isinstance(body, bytes) else orjson.dumps(body)
    return Behaviour(status=status, raw=Raw(encoded, JSON_TYPE, framing=Framing.LENGTH), **more)


def fails(
    status: int,
    error_type: str | None = None,
    *,
    message: str = "Simulated error",
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Behaviour:
    """An error instead of an answer; the type follows from the status unless given."""
    return Behaviour(
        status=status,
        error_type=error_type,
        error_message=message,
        headers=tuple((headers or {}).items()),
        **more,
    )


def breaks_after(count: int, *, ending: Ending = Ending.FIN, **more: Any) -> Behaviour:
    """The connection ends after `count` events (bytes, if unstreamed)."""
    return Behaviour(breaks_after=count, ending=ending, **more)


def errors_after(
    count: int, error_type: str = "overloaded_error", *, message: str = "Overloaded", **more: Any
) -> Behaviour:
    """After `count` events an `error` event, and the end. An unstreamed answer has no such thing."""
    return Behaviour(errors_after=count, error_type=error_type, error_message=message, **more)


def stalls_after(count: int, *, gate: Waitable | None = None, **more: Any) -> Behaviour:
    """Silence after `count` events (bytes, if unstreamed), until the gate opens or for ever."""
    return Behaviour(stalls_after=count, gate=gate, **more)


def hangs(*, gate: Waitable | None = None, **more: Any) -> Behaviour:
    """No answer at all, not even a head, until the gate opens or for ever."""
    return Behaviour(before=(stall(gate),), **more)


def drops(*, is_reset: bool = False) -> Behaviour:
    """The connection ends where the head should be."""
    return Behaviour(before=(Reset() if is_reset else Disconnect(),))


def replays(
    body: bytes,
    content_type: str,
    *,
    content_encoding: str | None = None,
    status: int = 200,
    usage: ReportedUsage | None = None,
    **more: Any,
) -> Behaviour:
    """A recorded body, byte for byte; `usage` is what it is known to report."""
    return Behaviour(status=status, usage=usage, raw=Raw(body, content_type, content_encoding), **more)


def stall(gate: Waitable | None) -> Step:
    return Stall() if gate is None else WaitFor(gate)


# --- the header language ------------------------------------------------------------------------------

USAGE_WORDS = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cache_read": "cache_read_tokens",
    "cache_write_5m": "cache_write_5m_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "web_searches": "web_searches",
}
USAGE_NAME_WORDS = {"tier": "service_tier", "speed": "speed", "geo": "inference_geo"}


@functools.lru_cache(maxsize=256)
def parse_simulate(value: str) -> Behaviour:
    """The behaviour asked for by an `x-simulate` header: `events=60,pace_ms=20,cut_after=10`.

    Words: events, bytes, thinking, model, stop_reason; input, output, cache_read, cache_write_5m,
    cache_write_1h, web_searches, tier, speed, geo; delay_ms (before the head), pace_ms, hang=1, drop=1|reset,
    stall_after, cut_after with cut=fin|reset|clean, error_before=<status> with retry_after, error_after,
    split, wire_split (bytes, or r<seed>), gzip=0|1, close=1. Raises ValueError for anything else.
    """
    behaviour = PLAIN
    for pair in filter(None, (part.strip() for part in value.split(","))):
        word, _, given = pair.partition("=")
        behaviour = _with_word(behaviour, word, given)
    return behaviour


def _with_word(behaviour: Behaviour, word: str, given: str) -> Behaviour:
    if word in USAGE_WORDS:
        return replace(behaviour, usage_changes={**behaviour.usage_changes, USAGE_WORDS[word]: int(given)})
    if word in USAGE_NAME_WORDS:
        return replace(behaviour, usage_changes={**behaviour.usage_changes, USAGE_NAME_WORDS[word]: given})
    if word not in SIMULATE_WORDS:
        raise ValueError(f"x-simulate: unknown word {word!r}; known: {', '.join(sorted(SIMULATE_WORDS))}")
    return replace(behaviour, **SIMULATE_WORDS[word](given, behaviour))


def _split_of(given: str) -> Split:
    return AtRandom(int(given[1:])) if given.startswith("r") else int(given)


SIMULATE_WORDS: Mapping[str, Callable[[str, Behaviour], dict[str, Any]]] = {
    "events": lambda given, _: {"events": int(given)},
    "bytes": lambda given, _: {"text_bytes": int(given)},
    "thinking": lambda given, _: {"thinking": filler(int(given))},
    "model": lambda given, _: {"model": given},
    "stop_reason": lambda given, _: {"stop_reason": given},
    "delay_ms": lambda given, was: {"before": (*was.before, Pause(float(given) / 1000))},
    "pace_ms": lambda given, _: {"pace_s": float(given) / 1000},
    "hang": lambda _, was: {"before": (*was.before, Stall())},
    "drop": lambda given, was: {"before": (*was.before, Reset() if given == "reset" else Disconnect())},
    "stall_after": lambda given, _: {"stalls_after": int(given)},
    "cut_after": lambda given, _: {"breaks_after": int(given)},
    "cut": lambda given, _: {"ending": Ending(given)},
    "error_before": lambda given, _: {"status": int(given)},
    "retry_after": lambda given, was: {"headers": (*was.headers, ("retry-after", given))},
    "error_after": lambda given, _: {
        "errors_after": int(given),
        "error_type": "overloaded_error",
        "error_message": "Overloaded",
    },
    "split": lambda given, _: {"split": _split_of(given)},
    "wire_split": lambda given, _: {"wire_split": _split_of(given)},
    "gzip": lambda given, _: {"gzip": given == "1"},
    "close": lambda given, _: {"closes": given == "1"},
}
