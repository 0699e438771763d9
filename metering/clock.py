"""Time as an argument: the wall clock for rows and periods, the monotonic clock for waits."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Two clocks: `now_ms` is UTC since the epoch, `monotonic_s` never goes back."""

    def now_ms(self) -> int: ...
    def monotonic_s(self) -> float: ...


class SystemClock:
    """The machine's clocks."""

    __slots__ = ()

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


@dataclass(slots=True)
class ManualClock:
    """A clock that moves when told to; for tests."""

    ms: int
    seconds: float = 0.0

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)
        self.seconds += seconds


def utc(at_ms: int) -> datetime:
    """The instant `at_ms` as an aware datetime in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC)


def month_of(at_ms: int) -> str:
    """The monthly period that holds `at_ms`, as `YYYY-MM` (UTC)."""
    return utc(at_ms).strftime("%Y-%m")


def day_of(at_ms: int) -> str:
    """The daily period that holds `at_ms`, as `YYYY-MM-DD` (UTC)."""
    return utc(at_ms).strftime("%Y-%m-%d")


def next_day(at_ms: int) -> datetime:
    """The instant (UTC) at which the daily period that holds `at_ms` ends."""
    return utc(at_ms).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def next_month(at_ms: int) -> datetime:
    """The instant (UTC) at which the monthly period that holds `at_ms` ends."""
    now = utc(at_ms)
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)  # noqa: PLR2004 - December
    return datetime(year, month, 1, tzinfo=UTC)
