"""How often the simulated Fly may be asked: by action, on each machine or app; and how many apps may be deleted."""

import collections
from collections.abc import Mapping

from simulators.fly_habits import Rates

GET_MACHINE = "GET /apps/{app}/machines/{machine}"
DELETE_APP = "DELETE /apps/{app}"
MINUTE_MS = 60_000
KEYS_MAX = 100_000
"""Beyond it those that have long been free are forgotten."""


class Limits:
    """Buckets that fill by the second. What is refused takes nothing out of them."""

    def __init__(self) -> None:
        self._full_ms: dict[tuple[str, str], float] = {}
        """When a bucket is full again, by action and id."""
        self._deletions_ms: collections.deque[int] = collections.deque()

    def allows(self, rates: Rates, action: str, ids: Mapping[str, str], now_ms: int) -> bool:
        """Whether an action (`METHOD /path/{parameter}`) may be done once more now; if so, it is counted."""
        if action == DELETE_APP and not self._allows_deletion(rates.app_deletes_per_minute, now_ms):
            return False
        per_second, burst = rates.per_second, rates.burst
        if action == GET_MACHINE:
            per_second, burst = rates.machine_gets_per_second, rates.machine_gets_burst
        key = action, ids.get("machine") or ids.get("app") or ids.get("org") or ""
        if not key[1]:
            return True  # neither of an app nor of a machine
        interval_ms = 1000 / per_second
        full_ms = max(self._full_ms.get(key, 0.0), now_ms)
        if full_ms - now_ms > (burst - 1) * interval_ms:
            return False
        self._forget(now_ms)
        self._full_ms[key] = full_ms + interval_ms
        return True

    def _allows_deletion(self, per_minute: int, now_ms: int) -> bool:
        while self._deletions_ms and self._deletions_ms[0] <= now_ms - MINUTE_MS:
            self._deletions_ms.popleft()
        if len(self._deletions_ms) >= per_minute:
            return False
        self._deletions_ms.append(now_ms)
        return True

    def _forget(self, now_ms: int) -> None:
        if len(self._full_ms) >= KEYS_MAX:
            self._full_ms = {key: full_ms for key, full_ms in self._full_ms.items() if full_ms > now_ms}
