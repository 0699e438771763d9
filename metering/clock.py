"""Time as an argument: the wall clock for rows and periods, the monotonic clock for waits."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol

MS_PER_DAY = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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


def ms_of(at: datetime) -> int:
    """Milliseconds from the epoch to an aware datetime; what is below one is dropped."""
    return (at - _EPOCH) // timedelta(milliseconds=1)


def instant(at_ms: int) -> str:
    """RFC 3339 in UTC: whole seconds, with milliseconds where there are any."""
    timespec = "milliseconds" if at_ms % 1000 else "seconds"
    return utc(at_ms).replace(tzinfo=None).isoformat(timespec=timespec) + "Z"


def date_of(at_ms: int) -> str:
    """The day that holds `at_ms` (UTC), for people: `1 December 2026`."""
    return utc(at_ms).strftime("%-d %B %Y")


def month_of(at_ms: int) -> str:
    """The monthly period that holds `at_ms`, as `YYYY-MM` (UTC)."""
    return utc(at_ms).strftime("%Y-%m")


def day_of(at_ms: int) -> str:
    """The daily period that holds `at_ms`, as `YYYY-MM-DD` (UTC)."""
    return utc(at_ms).strftime("%Y-%m-%d")


def month_start_ms(at_ms: int) -> int:
    """The first instant of the monthly period that holds `at_ms`."""
    return ms_of(utc(at_ms).replace(day=1, hour=0, minute=0, second=0, microsecond=0))


def month_end_ms(at_ms: int) -> int:
    """The instant at which the monthly period that holds `at_ms` ends, and the next begins."""
    now = utc(at_ms)
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)  # noqa: PLR2004 - December
    return ms_of(datetime(year, month, 1, tzinfo=UTC))


def day_end_ms(at_ms: int) -> int:
    """The instant at which the daily period that holds `at_ms` ends, and the next begins."""
    return at_ms - at_ms % MS_PER_DAY + MS_PER_DAY


class Periods:
    """The names of the day and the month of now. Found once a day, not for every request."""

    __slots__ = ("_clock", "_day_number", "_names")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._day_number = -1
        self._names: dict[str, str] = {}

    def names(self) -> Mapping[str, str]:
        """By `day` and `month`."""
        day_number = self._clock.now_ms() // MS_PER_DAY
        if day_number != self._day_number:
            at_ms = day_number * MS_PER_DAY
            self._names = {"day": day_of(at_ms), "month": month_of(at_ms)}
            self._day_number = day_number
        return self._names


@lru_cache(maxsize=64)
def period_end_ms(period: str) -> int:
    """The instant at which a period ends: a day (`YYYY-MM-DD`) or a month (`YYYY-MM`)."""
    began_ms = ms_of(datetime.fromisoformat(period if is_day(period) else f"{period}-01").replace(tzinfo=UTC))
    return day_end_ms(began_ms) if is_day(period) else month_end_ms(began_ms)


def is_day(period: str) -> bool:
    """Whether a period is a day, and not a month."""
    return len(period) > len("2026-11")
