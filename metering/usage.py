"""What an answer used, as disjoint buckets per model. Counting only; `prices` says what it costs."""

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Protocol

from metering.values import immutable

INPUT = "input_tokens"
"""Prompt tokens that were neither read from nor written to a cache; text, and what the vendor does not tell
apart from text."""
INPUT_AUDIO = "input_audio_tokens"
"""Uncached prompt tokens of sound, where the vendor reports them apart; so the next two. What a model does
not price apart costs what its text costs: `metering.prices` says how."""
INPUT_IMAGE = "input_image_tokens"
INPUT_VIDEO = "input_video_tokens"
CACHE_READ = "cache_read_tokens"
"""Prompt tokens read from a cache; text, and what the vendor does not tell apart from text."""
CACHE_AUDIO_READ = "cache_audio_read_tokens"
"""Of sound, read from a cache; so the next two."""
CACHE_IMAGE_READ = "cache_image_read_tokens"
CACHE_VIDEO_READ = "cache_video_read_tokens"
CACHE_WRITE_5M = "cache_write_5m_tokens"
"""Prompt tokens written to a cache that keeps them for five minutes (Anthropic)."""
CACHE_WRITE_1H = "cache_write_1h_tokens"
"""For an hour (Anthropic)."""
CACHE_WRITE_30M = "cache_write_30m_tokens"
"""For thirty minutes (OpenAI, from GPT-5.6 on)."""
CACHE_WRITE_12H = "cache_write_12h_tokens"
"""For twelve hours (OpenAI, from GPT-5.6 on)."""
OUTPUT = "output_tokens"
"""Everything the model wrote, thinking included; text, and what the vendor does not tell apart from text."""
OUTPUT_AUDIO = "output_audio_tokens"
"""Of sound, where the vendor reports it apart; so the next two."""
OUTPUT_IMAGE = "output_image_tokens"
OUTPUT_VIDEO = "output_video_tokens"
WEB_SEARCHES = "web_searches"
"""Searches of the web that the vendor ran; for Gemini 2.5 and older, requests that did any."""
WEB_SEARCHES_PREVIEW = "web_searches_preview"
"""Searches by OpenAI's preview tools (`web_search_preview`), which cost more on models that do not reason."""
MAPS_SEARCHES = "maps_searches"
"""Searches of Google Maps; for Gemini 2.5, requests that did any."""
STORAGE_SEARCHES = "storage_searches"
"""Searches of files kept at the vendor (OpenAI's file search)."""
SEARCHES = "searches"
"""Searches that we asked a search engine for; those that a model runs while it answers are `web_searches`."""
SUGGESTIONS = "suggestions"
"""Requests for completions of a query."""
SPELLCHECKS = "spellchecks"
"""Requests for corrections of a query."""
RECIPIENTS = "recipients"
"""E-mails as vendors count them against their limits: one for each address of a message."""
MESSAGES = "messages"
"""E-mails, however many they go to."""
BROWSER_SECONDS = "browser_seconds"
"""Seconds that a browser ran at a vendor, as that vendor bills them."""
PROXY_BYTES = "proxy_bytes"
"""Bytes that a browser moved through its vendor's proxies."""
CALL_SECONDS = "call_seconds"
"""Seconds that a phone call was connected, as its vendor bills them."""

INPUT_UNITS = (INPUT, INPUT_AUDIO, INPUT_IMAGE, INPUT_VIDEO)
CACHE_READ_UNITS = (CACHE_READ, CACHE_AUDIO_READ, CACHE_IMAGE_READ, CACHE_VIDEO_READ)
CACHE_WRITE_UNITS = (CACHE_WRITE_5M, CACHE_WRITE_1H, CACHE_WRITE_30M, CACHE_WRITE_12H)
OUTPUT_UNITS = (OUTPUT, OUTPUT_AUDIO, OUTPUT_IMAGE, OUTPUT_VIDEO)
SEARCH_UNITS = (WEB_SEARCHES, WEB_SEARCHES_PREVIEW, MAPS_SEARCHES, STORAGE_SEARCHES)
TIME_UNITS = (BROWSER_SECONDS, CALL_SECONDS)
"""What goes on by itself until somebody ends it, in seconds."""
TOKEN_COLUMNS = {
    unit: column
    for column, units in enumerate((INPUT_UNITS, CACHE_READ_UNITS, CACHE_WRITE_UNITS, OUTPUT_UNITS))
    for unit in units
}
"""Which of an entry's four token columns counts a unit."""
TokenCounts = tuple[int, int, int, int]
"""Uncached input, cache read, cache write and output tokens."""
PROMPT_UNITS = (*INPUT_UNITS, *CACHE_READ_UNITS, *CACHE_WRITE_UNITS)
"""The buckets whose sum is the length of the prompt: what long-context price tiers look at."""


@immutable
class UsageLine:
    """Counts of one model within one answer; the buckets are disjoint, so nothing bills twice.

    `modifiers` are what changes the price besides the model, as the vendor reported it:
    `{"speed": "fast", "inference_geo": "us", "service_tier": "batch"}`. Standard values are left out.
    """

    model: str
    counts: Mapping[str, int]
    modifiers: Mapping[str, str] = field(default_factory=dict)


@immutable
class Usage:
    """All that one exchange used. `is_exact` is false where any count is our estimate.

    `notes` name what was odd (`"cache_write_ttl_assumed_1h"`): they are kept with the entry. `told_nanousd`: what the vendor
    says that it costs, where it says so; not what is booked.
    """

    lines: tuple[UsageLine, ...] = ()
    is_exact: bool = True
    notes: tuple[str, ...] = ()
    told_nanousd: int | None = None

    def with_output_at_most(self, tokens: int) -> "Usage":
        """The same, with no more than so many tokens of each kind of output in each line."""
        if self.most_output <= tokens:
            return self
        lines = [
            UsageLine(
                line.model,
                {
                    unit: min(count, tokens) if unit in OUTPUT_UNITS else count
                    for unit, count in line.counts.items()
                },
                line.modifiers,
            )
            for line in self.lines
        ]
        return Usage(tuple(lines), self.is_exact, self.notes)

    def with_time_at_most(self, seconds: int) -> "Usage":
        """The same, cut to so many seconds in each line: what else is counted there goes on as long, and is less in
        proportion."""
        lines = []
        for line in self.lines:
            all_s = max((line.counts.get(unit, 0) for unit in TIME_UNITS), default=0)
            if all_s <= seconds:
                lines.append(line)
                continue
            counts = {unit: -(-count * seconds // all_s) for unit, count in line.counts.items()}
            lines.append(UsageLine(line.model, counts, line.modifiers))
        return Usage(tuple(lines), self.is_exact, self.notes)

    def time_alone(self, seconds: int) -> "Usage":
        """Its time, cut to so many seconds in each line, and nothing else."""
        lines = [
            UsageLine(
                line.model,
                {unit: min(line.counts[unit], seconds) for unit in TIME_UNITS if unit in line.counts},
                line.modifiers,
            )
            for line in self.lines
        ]
        return Usage(tuple(lines), self.is_exact, self.notes)

    @property
    def most_output(self) -> int:
        """Of one kind, in one line."""
        most = 0
        for line in self.lines:
            for unit, count in line.counts.items():
                if count > most and unit in OUTPUT_UNITS:
                    most = count
        return most

    @property
    def seconds(self) -> int:
        """Of all lines together."""
        return sum(self.total(unit) for unit in TIME_UNITS)

    def total(self, unit: str) -> int:
        return sum([line.counts.get(unit, 0) for line in self.lines])


class Counted(Protocol):
    """A line of counts by unit, priced or not."""

    @property
    def counts(self) -> Mapping[str, int]: ...


def token_counts(lines: Iterable[Counted]) -> TokenCounts:
    """The tokens of all lines together, of every kind and lifetime."""
    totals = [0, 0, 0, 0]
    for line in lines:
        for unit, count in line.counts.items():
            if (column := TOKEN_COLUMNS.get(unit)) is not None:
                totals[column] += count
    return totals[0], totals[1], totals[2], totals[3]


NOTHING = Usage()
"""The usage of an answer that cost nothing (an error before any work, a free operation)."""
