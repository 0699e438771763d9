"""How one simulated answer behaves: as data, by helper, or in the words of a request header. The same for every
vendor; a vendor adds fields of its own to `Behaviour` and words of its own to the header."""

import enum
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import orjson

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
from simulators.text import filler

JSON_TYPE = "application/json"


class ReportedUsage(Protocol):
    """What an answer says that it used; each vendor has a dataclass of its own."""

    def counts(self) -> dict[str, int]:
        """The billable counts by the meter's names, without zeros: what a ledger entry must say."""


class Ending(enum.StrEnum):
    """How an answer ends that breaks off."""

    FIN = "fin"
    RESET = "reset"
    CLEAN = "clean"
    """The HTTP body ends properly, without the event that ends the stream: it looks like success."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A recorded body, still as it was encoded."""

    body: bytes
    content_type: str
    content_encoding: str | None = None
    framing: Framing = Framing.CHUNKED


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What one answer does; every field has a helper below. An empty one answers as the real API would.

    The points `breaks_after`, `errors_after` and `stalls_after` count events of a stream, and bytes of an
    unstreamed answer. `usage` is reported as given, whatever the request's ceiling says; `usage_changes` replaces
    single fields of the computed one. `stop_reason` is in the vendor's words. `raw`: a body sent as it is, with
    its status and content headers.
    """

    # what is said
    text: str | None = None
    thinking: str | None = None
    events: int | None = None
    text_bytes: int | None = None
    usage: Any = None
    """The vendor's `ReportedUsage`, or None: then it is computed."""
    usage_changes: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    stop_reason: str | None = None
    status: int = 200
    error_type: str | None = None
    error_message: str = "Simulated error"
    headers: tuple[tuple[str, str], ...] = ()
    raw: Raw | None = None
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

    @property
    def is_error(self) -> bool:
        return self.status >= 400  # noqa: PLR2004 - where HTTP's errors begin


BehaviourT = TypeVar("BehaviourT", bound=Behaviour)


class Behaviours(Generic[BehaviourT]):
    """The behaviours of one vendor by helper; `more` are fields of its `Behaviour`."""

    def __init__(self, kind: type[BehaviourT]) -> None:
        self._kind = kind

    def streams(
        self,
        *,
        events: int | None = None,
        pace_s: float = 0.0,
        usage: ReportedUsage | None = None,
        text: str | None = None,
        **more: Any,
    ) -> BehaviourT:
        """A good answer of `events` events in all, `pace_s` seconds apart. Unstreamed if so asked."""
        return self._kind(events=events, pace_s=pace_s, usage=usage, text=text, **more)

    def answers(self, body: bytes | Mapping[str, Any], *, status: int = 200, **more: Any) -> BehaviourT:
        """The given JSON body and no other."""
        encoded = body if isinstance(body, bytes) else orjson.dumps(body)
        return self._kind(status=status, raw=Raw(encoded, JSON_TYPE, framing=Framing.LENGTH), **more)

    def fails(
        self,
        status: int,
        error_type: str | None = None,
        *,
        message: str = "Simulated error",
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> BehaviourT:
        """An error instead of an answer; the type follows from the status unless given."""
        return self._kind(
            status=status,
            error_type=error_type,
            error_message=message,
            headers=tuple((headers or {}).items()),
            **more,
        )

    def breaks_after(self, count: int, *, ending: Ending = Ending.FIN, **more: Any) -> BehaviourT:
        """The connection ends after `count` events (bytes, if unstreamed)."""
        return self._kind(breaks_after=count, ending=ending, **more)

    def errors_after(
        self, count: int, error_type: str | None = None, *, message: str = "Overloaded", **more: Any
    ) -> BehaviourT:
        """After `count` events the vendor's error event, and the end. An unstreamed answer has no such thing."""
        return self._kind(errors_after=count, error_type=error_type, error_message=message, **more)

    def stalls_after(self, count: int, *, gate: Waitable | None = None, **more: Any) -> BehaviourT:
        """Silence after `count` events (bytes, if unstreamed), until the gate opens or for ever."""
        return self._kind(stalls_after=count, gate=gate, **more)

    def hangs(self, *, gate: Waitable | None = None, **more: Any) -> BehaviourT:
        """No answer at all, not even a head, until the gate opens or for ever."""
        return self._kind(before=(stall(gate),), **more)

    def drops(self, *, is_reset: bool = False) -> BehaviourT:
        """The connection ends where the head should be."""
        return self._kind(before=(Reset() if is_reset else Disconnect(),))

    def replays(
        self,
        body: bytes,
        content_type: str,
        *,
        content_encoding: str | None = None,
        status: int = 200,
        usage: ReportedUsage | None = None,
        **more: Any,
    ) -> BehaviourT:
        """A recorded body, byte for byte; `usage` is what it is known to report."""
        return self._kind(status=status, usage=usage, raw=Raw(body, content_type, content_encoding), **more)


def stall(gate: Waitable | None) -> Step:
    return Stall() if gate is None else WaitFor(gate)


# --- the header language ------------------------------------------------------------------------------

Word = Callable[[str, Any], Mapping[str, Any]]
"""The fields that a word changes, by what it is given and the behaviour so far."""


class HeaderLanguage(Generic[BehaviourT]):
    """The words of the `x-simulate` header for one vendor: those common to all, and its own.

    `usage_words` set a count of the usage, `usage_name_words` a text of it: word to field.
    """

    def __init__(
        self,
        plain: BehaviourT,
        *,
        usage_words: Mapping[str, str],
        usage_name_words: Mapping[str, str],
        words: Mapping[str, Word] | None = None,
    ) -> None:
        self._plain = plain
        self._usage_words = usage_words
        self._usage_name_words = usage_name_words
        self._words = {**COMMON_WORDS, **(words or {})}
        self.parse = functools.lru_cache(maxsize=256)(self._parse)
        """The behaviour that a header asks for. Raises ValueError for what is no word, or does not fit it."""

    def _parse(self, value: str) -> BehaviourT:
        behaviour = self._plain
        for pair in filter(None, (part.strip() for part in value.split(","))):
            word, _, given = pair.partition("=")
            behaviour = self._with_word(behaviour, word, given)
        return behaviour

    def _with_word(self, behaviour: BehaviourT, word: str, given: str) -> BehaviourT:
        changes = behaviour.usage_changes
        if word in self._usage_words:
            return replace(behaviour, usage_changes={**changes, self._usage_words[word]: int(given)})
        if word in self._usage_name_words:
            return replace(behaviour, usage_changes={**changes, self._usage_name_words[word]: given})
        if word not in self._words:
            raise ValueError(f"x-simulate: unknown word {word!r}; known: {', '.join(sorted(self._words))}")
        return replace(behaviour, **self._words[word](given, behaviour))


def split_of(given: str) -> Split:
    """What a header says of a split: bytes, or r<seed>."""
    return AtRandom(int(given[1:])) if given.startswith("r") else int(given)


COMMON_WORDS: Mapping[str, Word] = {
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
    "error_after": lambda given, _: {"errors_after": int(given), "error_message": "Overloaded"},
    "split": lambda given, _: {"split": split_of(given)},
    "wire_split": lambda given, _: {"wire_split": split_of(given)},
    "gzip": lambda given, _: {"gzip": given == "1"},
    "close": lambda given, _: {"closes": given == "1"},
}
"""delay_ms: before the head. drop=1|reset, cut=fin|reset|clean, error_before=<status>; split and wire_split: bytes,
or r<seed>."""
