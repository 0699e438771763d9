"""Requests that must not be done twice: under which key each was asked for, and what became of it.

A key is claimed in the unit that reserves, before the vendor hears of the request. Whoever comes with a key that is taken
is told what it was taken for: the same request that is still under way, one that was done (its repetition costs
nothing), or one that came to nothing (the key is free again). Clients repeat by themselves what broke off, most without
a key; for those one is made from the request, and forgotten when its answer has arrived.
"""

import asyncio
import hashlib
from typing import cast

from metering.clock import MS_PER_DAY, Clock
from metering.ledger import IS_RESOLUTION
from metering.store.store import Store
from metering.store.writer import Result, Step, Unit
from metering.values import immutable

KEPT_MS = MS_PER_DAY
"""As long as vendors know their keys (AgentMail: 24 hours)."""
AHEAD_MS = 30_000
"""A request may be so long on its way to a vendor, and the vendor's clock so far ahead of ours."""
REPEATED = "repeated"
"""The refusal of a unit whose key was claimed by another request meanwhile."""
PRUNED_AT_ONCE, PRUNED_EVERY_S = 500, 60.0
ERROR_STATUS, REQUEST_TIMEOUT, SERVER_ERROR = 300, 408, 500

CLAIM = """
INSERT INTO idempotency_keys (user_id, surface, idempotency_key, fingerprint, upstream_key, reservation_id, created_at_ms)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
ON CONFLICT (user_id, surface, idempotency_key) DO UPDATE
SET fingerprint = excluded.fingerprint, upstream_key = excluded.upstream_key,
    reservation_id = excluded.reservation_id, created_at_ms = excluded.created_at_ms
WHERE idempotency_keys.reservation_id = ?8"""
SELECT_EARLIER = f"""
SELECT k.reservation_id, k.fingerprint, k.upstream_key, k.created_at_ms, r.state, e.upstream_status,
    e.cost_nanousd, d.is_open, d.scheduled_at_ms
FROM idempotency_keys k
LEFT JOIN reservations r ON r.id = k.reservation_id
LEFT JOIN deferred_work d ON d.reservation_id = k.reservation_id
LEFT JOIN entries e ON e.reservation_id = k.reservation_id AND {IS_RESOLUTION}
WHERE k.user_id = ?1 AND k.surface = ?2 AND k.idempotency_key = ?3"""
FORGET = """
DELETE FROM idempotency_keys
WHERE user_id = ?1 AND surface = ?2 AND idempotency_key = ?3 AND upstream_key = ?4"""
PRUNE = """
DELETE FROM idempotency_keys WHERE (user_id, surface, idempotency_key) IN
    (SELECT user_id, surface, idempotency_key FROM idempotency_keys WHERE created_at_ms < ?1 LIMIT ?2)"""


@immutable
class Earlier:
    """The request that a key was used for."""

    reservation_id: str
    fingerprint: str
    upstream_key: str
    is_running: bool
    is_done: bool
    """Or may have been: nobody knows what became of it."""
    is_unsure: bool
    """It failed, and was not charged, in a way that may come after the work: it is repeated under the same key."""
    may_stand: bool
    """It only scheduled its work, its client may not know, and that is not done."""


@immutable
class Key:
    """A key of one user at one surface; `is_made`: from the request, as the client sent none."""

    user_id: str
    surface: str
    value: str
    fingerprint: str
    is_made: bool

    @property
    def place(self) -> tuple[str, str, str]:
        """Where it stands in the store."""
        return self.user_id, self.surface, self.value

    @property
    def upstream_digest(self) -> str:
        """What a vendor may know of the key: nothing but that it is the same again."""
        return hashlib.sha256(self.value.encode()).hexdigest()


@immutable
class Repeat:
    """How a request stands to the same one before. `is_done`: that one was done and booked, or may have been; `claim`: the
    step that takes the key for this one."""

    key: Key
    upstream_key: str
    is_done: bool
    claim: Step | None


def is_unsure(status: int) -> bool:
    """Whether an answer leaves it open what became of its request."""
    return status >= SERVER_ERROR or status == REQUEST_TIMEOUT


def key_of(user_id: str, surface: str, given: str | None, request: bytes) -> Key:
    """The key of a request: the client's, or one made from the request itself."""
    fingerprint = hashlib.sha256(request).hexdigest()
    value = f"made:{fingerprint}" if given is None else f"given:{given}"
    return Key(user_id, surface, value, fingerprint, given is None)


class Repeats:
    """The keys of all users, bound to one store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._forgetting: dict[tuple[str, str, str], asyncio.Future[Result]] = {}
        """Keys that are let go of: a client may come again before that is written."""

    async def earlier(self, key: Key) -> Earlier | None:
        """What a key was used for within KEPT_MS. Raises Refused(STORE_UNAVAILABLE)."""
        forgetting = self._forgetting.get(key.place)
        if forgetting is not None:
            await asyncio.wait({forgetting})
        row = await self._store.readers.row(SELECT_EARLIER, key.place)
        if row is None:
            return None
        reservation_id, fingerprint, upstream_key = map(str, row[:3])
        created_at_ms, state, status, cost_nanousd, is_open, scheduled_at_ms = cast(
            "tuple[int, str | None, int | None, int | None, int | None, int | None]", row[3:]
        )
        is_ahead = scheduled_at_ms is not None and self.is_ahead(scheduled_at_ms)
        is_handed_over = state == "HELD" and is_open == 0 and is_ahead
        is_failed = state in {None, "VOIDED"} or (status is not None and status >= ERROR_STATUS)
        is_old = created_at_ms + KEPT_MS <= self._clock.now_ms()
        return Earlier(
            reservation_id,
            fingerprint,
            upstream_key,
            is_running=state == "HELD" and not is_handed_over,
            is_done=state != "HELD" and not is_failed and not is_old,
            is_unsure=status is not None and is_unsure(status) and not is_old,
            may_stand=is_handed_over or not (cost_nanousd or is_old),
        )

    def is_ahead(self, scheduled_at_ms: int) -> bool:
        """Whether scheduled work cannot have been done yet, nor be done before another request has come to the vendor:
        what is done, its name would have it make anew."""
        return scheduled_at_ms > self._clock.now_ms() + AHEAD_MS

    def claiming(self, key: Key, upstream_key: str, reservation_id: str, instead_of: Earlier | None) -> Step:
        """The step that claims a key for a request, to stand behind its holds; refused as REPEATED when another request
        has claimed it since `instead_of` was read."""
        before = "" if instead_of is None else instead_of.reservation_id
        now_ms = self._clock.now_ms()
        params = (
            *(key.user_id, key.surface, key.value, key.fingerprint, upstream_key),
            *(reservation_id, now_ms, before),
        )
        return Step(CLAIM, params, refusal=REPEATED)

    def forget(self, key: Key, upstream_key: str) -> None:
        """The client has its answer: the same request again is another one. Never waits, may be lost."""
        step = Step(FORGET, (*key.place, upstream_key))
        forgetting = self._forgetting[key.place] = self._store.writer.submit(Unit((step,)))

        def forgotten(_: "asyncio.Future[Result]") -> None:
            if self._forgetting.get(key.place) is forgetting:
                del self._forgetting[key.place]

        forgetting.add_done_callback(forgotten)

    async def keep_pruning(self) -> None:
        while True:
            self.prune()
            await asyncio.sleep(PRUNED_EVERY_S)

    def prune(self) -> None:
        """Let go of keys that are too old to matter, some at a time. Never waits, may be lost."""
        step = Step(PRUNE, (self._clock.now_ms() - KEPT_MS, PRUNED_AT_ONCE))
        self._store.writer.submit(Unit((step,)))
