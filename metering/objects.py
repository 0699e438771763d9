"""Whose is what a vendor keeps: ids bound to users, once and for good.

All users share one account at a vendor. A vendor's id is bound before its user sees it; who names an id that is
not theirs learns nothing, not even that it exists. An id never changes hands.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from metering.clock import Clock
from metering.store.store import Store
from metering.store.writer import Done, Result, Step, Unit

OWNED_BY_ANOTHER = "owned_by_another"
"""The refusal of a unit that would give an object a second owner."""
TOO_MANY = "too_many_objects"
"""The refusal of a unit that might give a user more objects of a kind than they may have."""
KNOWN_MAX = 20_000
"""Owners remembered in this process; an owner never changes, so what is remembered cannot be wrong."""
IDS_AT_ONCE = 64
"""Ids looked up by one statement."""

BIND_OBJECT = """
INSERT INTO owned_objects (vendor, kind, upstream_id, user_id, reservation_id, created_at_ms)
VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (vendor, kind, upstream_id) DO UPDATE SET user_id = excluded.user_id, gone_at_ms = NULL
WHERE owned_objects.user_id = excluded.user_id"""

SELECT_OWNERS = f"""
SELECT upstream_id, user_id FROM owned_objects WHERE vendor = ?1 AND kind = ?2
AND upstream_id IN ({", ".join(f"?{index}" for index in range(3, 3 + IDS_AT_ONCE))})"""

SELECT_FIRST = """
SELECT upstream_id FROM owned_objects WHERE user_id = ?1 AND vendor = ?2 AND kind = ?3 AND gone_at_ms IS NULL
ORDER BY created_at_ms, upstream_id LIMIT 1"""
IS_ROOM = """
UPDATE reservations SET operation = operation WHERE id = ?1 AND ?2 >
    (SELECT COUNT(*) FROM owned_objects WHERE user_id = ?3 AND vendor = ?4 AND kind = ?5 AND gone_at_ms IS NULL) +
    (SELECT COUNT(*) FROM reservations WHERE state = 'HELD' AND user_id = ?3 AND surface = ?4 AND id <> ?1
     AND operation IN (SELECT value FROM json_each(?6)))"""
MARK_GONE = """
UPDATE owned_objects SET gone_at_ms = ?4
WHERE vendor = ?1 AND kind = ?2 AND upstream_id = ?3 AND gone_at_ms IS NULL"""


class ObjectId(NamedTuple):
    """An object at a vendor."""

    vendor: str
    kind: str
    upstream_id: str


class Objects:
    """The owners of objects, bound to one store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: OrderedDict[ObjectId, str] = OrderedDict()

    def bind(
        self, objects: Sequence[ObjectId], user_id: str, reservation_id: str, *more: Step
    ) -> "asyncio.Future[Result]":
        """Make `user_id` their owner, with `more` steps in the same unit. Queued at once; the future is durable.

        Declined(OWNED_BY_ANOTHER), and nothing is done, when one has another owner. Raises
        Refused(STORE_UNAVAILABLE) from the future.
        """
        now_ms = self._clock.now_ms()
        steps = [
            Step(BIND_OBJECT, (*found, user_id, reservation_id, now_ms), refusal=OWNED_BY_ANOTHER)
            for found in objects
        ]
        binding = self._store.writer.submit(Unit([*steps, *more]))
        binding.add_done_callback(lambda done: self._remember_bound(done, objects, user_id))
        return binding

    def mark_gone(self, one: ObjectId) -> None:
        """Its user has deleted it. It keeps its owner. Never waits, may be lost: then it only counts for longer."""
        self._store.writer.submit(Unit((Step(MARK_GONE, (*one, self._clock.now_ms())),)))

    async def first_of(self, vendor: str, kind: str, user_id: str) -> str | None:
        """The id of a user's oldest object of a kind; None without any. Raises Refused(STORE_UNAVAILABLE)."""
        row = await self._store.readers.row(SELECT_FIRST, (user_id, vendor, kind))
        return None if row is None else str(row[0])

    def one_more(
        self, reservation_id: str, vendor: str, kind: str, user_id: str, *, most: int, makers: Sequence[str]
    ) -> Step:
        """The step that allows a request to make one more object, to stand behind its reservation: refused as TOO_MANY
        when those that the user has and those that requests under way (of these operations) may make are `most`."""
        return Step(
            IS_ROOM,
            (reservation_id, most, user_id, vendor, kind, json.dumps(list(makers))),
            refusal=TOO_MANY,
        )

    async def owners(self, objects: Collection[ObjectId]) -> dict[ObjectId, str]:
        """The owners of those that have one. Raises Refused(STORE_UNAVAILABLE)."""
        found = {one: self._known[one] for one in objects if one in self._known}
        missing: dict[tuple[str, str], list[str]] = {}
        for one in objects:
            if one not in found:
                missing.setdefault((one.vendor, one.kind), []).append(one.upstream_id)
        for (vendor, kind), ids in missing.items():
            for start in range(0, len(ids), IDS_AT_ONCE):
                batch = ids[start : start + IDS_AT_ONCE]
                padded = batch + batch[-1:] * (IDS_AT_ONCE - len(batch))
                for upstream_id, user_id in await self._store.readers.rows(
                    SELECT_OWNERS, (vendor, kind, *padded)
                ):
                    one = ObjectId(vendor, kind, str(upstream_id))
                    found[one] = str(user_id)
                    self._remember(one, str(user_id))
        return found

    def _remember_bound(
        self, binding: "asyncio.Future[Result]", objects: Sequence[ObjectId], user_id: str
    ) -> None:
        if not binding.cancelled() and binding.exception() is None and isinstance(binding.result(), Done):
            for one in objects:
                self._remember(one, user_id)

    def _remember(self, one: ObjectId, user_id: str) -> None:
        self._known[one] = user_id
        self._known.move_to_end(one)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
