"""Requests per minute: the `limits` library's sliding window counter over a bounded storage of our own.

The library's in-memory storage sweeps all its keys on every hit; this one keeps two counters a key in a
bounded, least-recently-used order and touches nothing else. It counts within one process: with several
workers each enforces the limit for the connections it serves.
"""

import math
from collections import OrderedDict

from limits import RateLimitItemPerMinute
from limits.storage import SlidingWindowCounterSupport, Storage
from limits.strategies import SlidingWindowCounterRateLimiter

from metering.clock import Clock
from metering.rate_state import RateState
from metering.tokens_per_minute import TokensPerMinute

KEYS_MAX = 200_000
"""Keys remembered: more than there are users. Evicting one forgives its owner at most one minute's requests."""
LIMITS_MAX = 1_000
"""Different limits remembered: plans have a few, but users choose those of their own tokens."""
WINDOW_S, WINDOW_MS = 60, 60_000
INTO_S_MIN = 0.01
"""So far into a window the one before it weighs less than whole, whatever the clocks' and floats' grain."""


class BoundedStorage(Storage, SlidingWindowCounterSupport):
    """Counters of the current and the previous window, per key."""

    STORAGE_SCHEME = None

    def __init__(self, clock: Clock, *, keys_max: int = KEYS_MAX) -> None:
        super().__init__()
        self._clock = clock
        self._keys_max = keys_max
        self._windows: OrderedDict[str, list[int]] = OrderedDict()  # key -> [window, current, previous]
        self.touched: tuple[list[int], float] = ([0, 0, 0], 0.0)
        """The counters of the key that was asked about last, and the seconds since their window began. To ask by the key
        once more costs as much as the hit itself."""

    @property
    def base_exceptions(self) -> type[Exception]:
        return Exception

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        return self.take(key, limit, expiry, amount)

    def take(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """What the library's name for it does, which it wraps for errors that there are none of here."""
        window, position_s = self.roll(key, expiry)
        weighted = window[2] * (expiry - position_s) / expiry + window[1]
        if math.floor(weighted) + amount > limit:
            return False
        window[1] += amount
        return True

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        window, position_s = self.roll(key, expiry)
        left_s = expiry - position_s
        return window[2], left_s, window[1], left_s

    def clear_sliding_window(self, key: str, expiry: int) -> None:  # noqa: ARG002 - the library's signature
        self._windows.pop(key, None)

    def roll(self, key: str, expiry: int) -> tuple[list[int], float]:
        """The counters of `key`, moved to the current window, and the seconds since it began."""
        index, position_s = divmod(self._clock.now_ms() / 1000, expiry)
        now = int(index)
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= self._keys_max:
                self._windows.popitem(last=False)
            window = self._windows[key] = [now, 0, 0]
        else:
            self._windows.move_to_end(key)
            if window[0] != now:
                window[:] = [now, 0, window[1] if window[0] == now - 1 else 0]
        self.touched = window, position_s
        return window, position_s

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        window, _ = self.roll(key, expiry)
        window[1] += amount
        return window[1]

    def get(self, key: str) -> int:
        window = self._windows.get(key)
        return window[1] if window else 0

    def get_expiry(self, key: str) -> float:
        window = self._windows.get(key)
        return (window[0] + 1) * WINDOW_S if window else self._clock.now_ms() / 1000

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        count = len(self._windows)
        self._windows.clear()
        return count

    def clear(self, key: str) -> None:
        self._windows.pop(key, None)


class _PerMinute(RateLimitItemPerMinute):
    """The library's, with a key of two parts: the library joins five for every request."""

    def key_for(self, *identifiers: bytes | str | float) -> str:
        return _key(identifiers[0], self.amount)


def _key(owner: object, requests_per_minute: int) -> str:
    return f"{owner!s}/{requests_per_minute}"


class RateLimits:
    """Requests per minute, by owner; and `tokens`, the tokens per minute."""

    def __init__(self, clock: Clock, *, keys_max: int = KEYS_MAX) -> None:
        self.tokens = TokensPerMinute(clock, keys_max=keys_max)
        self._clock = clock
        self._storage = BoundedStorage(clock, keys_max=keys_max)
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)
        self._items: dict[int, _PerMinute] = {}

    def hit(self, owner: str, requests_per_minute: int) -> RateState:
        """Count one request of `owner`; refused ones are not counted."""
        if requests_per_minute <= 0:
            return self._state(owner, requests_per_minute, is_counted=True)
        # All that `_state` does of one that is let in, in one go.
        window, position_s = self._storage.roll(_key(owner, requests_per_minute), WINDOW_S)
        before = window[2] * (WINDOW_S - position_s) / WINDOW_S if window[2] else 0
        if int(before + window[1]) >= requests_per_minute:
            return self._state(owner, requests_per_minute, is_counted=True)
        window[1] += 1
        left = requests_per_minute - (int(before) + window[1])
        remaining = left if left > 0 else 0
        return RateState(True, requests_per_minute, remaining, (window[0] + 1) * WINDOW_MS, 0.0)

    def _state(self, owner: str, requests_per_minute: int, *, is_counted: bool) -> RateState:
        if requests_per_minute <= 0:
            return RateState(False, 0, 0, self._clock.now_ms() + WINDOW_S * 1000, float(WINDOW_S))
        if is_counted:  # all that the library's `hit` does, without an item
            is_allowed = self._storage.take(_key(owner, requests_per_minute), requests_per_minute, WINDOW_S)
        else:
            is_allowed = self._limiter.test(self._item(requests_per_minute), owner)
        (window, current, previous), position_s = self._storage.touched
        left_s, reset_ms = WINDOW_S - position_s, (window + 1) * WINDOW_MS
        if not is_allowed:
            wait_s = _wait_s(requests_per_minute, previous, current, left_s)
            return RateState(False, requests_per_minute, 0, reset_ms, wait_s)
        remaining = requests_per_minute - (int(previous * left_s / WINDOW_S) + current)
        return RateState(True, requests_per_minute, max(0, remaining), reset_ms, 0.0)

    def _item(self, requests_per_minute: int) -> _PerMinute:
        item = self._items.get(requests_per_minute)
        if item is None:
            if len(self._items) >= LIMITS_MAX:
                self._items.clear()
            item = self._items[requests_per_minute] = _PerMinute(requests_per_minute)
        return item

    def look(self, owner: str, requests_per_minute: int) -> RateState:
        """As `hit`, counting nothing."""
        return self._state(owner, requests_per_minute, is_counted=False)

    def used(self, owner: str, requests_per_minute: int) -> int:
        """Requests counted against the limit now, rounded down."""
        item = _PerMinute(max(requests_per_minute, 1))
        self._limiter.test(item, owner)
        (_, current, previous), position_s = self._storage.touched
        return math.floor(previous * (WINDOW_S - position_s) / WINDOW_S + current)


def _wait_s(limit: int, previous: int, current: int, left_s: float) -> float:
    """Seconds until one more request passes if nothing else comes: the previous window's weight fades."""
    if current >= limit:
        # A second into the next window, which begins with this one at its full weight. As far into it as we are in this one
        # is enough, too, and no longer than a minute: the SDKs of OpenAI and Browserbase heed no longer wait.
        into_s = WINDOW_S - left_s
        return left_s + (into_s if INTO_S_MIN < into_s < 1.0 else 1.0)
    return min(left_s, left_s - (limit - current) * WINDOW_S / previous + 1.0) if previous else 1.0
