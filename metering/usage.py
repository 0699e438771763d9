"""What an answer used, as disjoint buckets per model. Counting only; `prices` says what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

INPUT = "input_tokens"
"""Prompt tokens that were neither read from nor written to a cache."""
CACHE_READ = "cache_read_tokens"
CACHE_WRITE_5M = "cache_write_5m_tokens"
CACHE_WRITE_1H = "cache_write_1h_tokens"
OUTPUT = "output_tokens"
"""Everything the model wrote, thinking included."""
WEB_SEARCHES = "web_searches"

PROMPT_UNITS = (INPUT, CACHE_READ, CACHE_WRITE_5M, CACHE_WRITE_1H)
"""The buckets whose sum is the length of the prompt: what long-context price tiers look at."""


@dataclass(frozen=True, slots=True)
class UsageLine:
    """Counts of one model within one answer; the buckets are disjoint, so nothing bills twice.

    `modifiers` are what changes the price besides the model, as the vendor reported it:
    `{"speed": "fast", "inference_geo": "us", "service_tier": "batch"}`. Standard values are left out.
    """

    model: str
    counts: Mapping[str, int]
    modifiers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """All that one exchange used. `is_exact` is false where any count is our estimate.

    `notes` name what was odd (`"cache_write_ttl_assumed_1h"`): they are kept with the entry.
    """

    lines: tuple[UsageLine, ...] = ()
    is_exact: bool = True
    notes: tuple[str, ...] = ()

    def total(self, unit: str) -> int:
        return sum(line.counts.get(unit, 0) for line in self.lines)


NOTHING = Usage()
"""The usage of an answer that cost nothing (an error before any work, a free operation)."""
