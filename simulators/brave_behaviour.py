"""How one simulated answer of Brave behaves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulators import behaviour
from simulators.behaviour import Behaviours, HeaderLanguage, split_of
from simulators.brave_answers import LOOKALIKE, ReportedUsage
from simulators.script import Split


@dataclass(frozen=True, slots=True)
class Behaviour(behaviour.Behaviour):
    """What one answer does. `error_type` is an error's code (`RATE_LIMITED`); `text` is what a result describes,
    or what the model writes.

    The usage of a streamed answer stands in a tag at the end of its text: `tags` times, each cut into chunks where
    `tag_split` says, in characters (None: one chunk). `from_tag`: `breaks_after`, `errors_after` and `stalls_after`
    count from the first event that holds part of the tag, which is 0.
    """

    usage: ReportedUsage | None = None
    error_meta: Mapping[str, Any] | None = None
    """None follows from the code."""
    results: int | None = None
    """Results of a search, within the request's `count`."""
    tags: int = 1
    tag_split: Split | None = None
    spaces_tag: bool = False
    """A blank after each colon and comma, as a client recorded it in 2026-05; the documentation has none."""
    joins_tag: bool = False
    """The end of the text and the beginning of the tag share a chunk."""
    lookalike: str | None = None
    """Stands in the text ahead of the answer's own, cut like the tag."""
    from_tag: bool = False
    closing_usage: bool = False
    """The last chunk tells the tokens as well."""
    usage_headers: bool = False
    """An unstreamed answer tells in headers what the tag would say, as clients have seen; undocumented."""


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
        "requests": "requests",
        "queries": "queries",
        "input": "input_tokens",
        "output": "output_tokens",
        "request_microdollars": "request_microdollars",
    },
    usage_name_words={},
    words={
        "results": lambda given, _: {"results": int(given)},
        "tags": lambda given, _: {"tags": int(given)},
        "tag_split": lambda given, _: {"tag_split": split_of(given)},
        "spaces_tag": lambda given, _: {"spaces_tag": given == "1"},
        "joins_tag": lambda given, _: {"joins_tag": given == "1"},
        "lookalike": lambda given, _: {"lookalike": LOOKALIKE if given == "1" else None},
        "from_tag": lambda given, _: {"from_tag": given == "1"},
        "closing_usage": lambda given, _: {"closing_usage": given == "1"},
        "usage_headers": lambda given, _: {"usage_headers": given == "1"},
    },
).parse
"""The behaviour asked for by an `x-simulate` header: `tag_split=1,cut_after=10,from_tag=1`."""
