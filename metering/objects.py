"""Whose is what a vendor keeps: ids bound to users, until an operator releases them.

All users share one account at a vendor. A vendor's id is bound before its user sees it; who names an id that is
not theirs learns nothing, not even that it exists.

Theory of release. A worker acts on an owner that it remembers only under a reservation, in whose unit `unchanged`
says that no object of that user was released since the worker last heard of changes. A release commits only while
its owner has no request under way, and says so in `changes` in the same unit. Units come one after the other, so
whichever is first stops the other: no clock and no worker's word is needed, and the id is free at once.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, cast

from metering.admission import OWNERS_CHANGED, owner_of, padded
from metering.clock import Clock, instant
from metering.ledger import NO_PERIOD, OPEN_REQUESTS
from metering.store.readers import Readers
from metering.store.store import Store
from metering.store.writer import Declined, Done, Result, Row, Step, Unit, Value
from metering.users import INSERT_CHANGE
from metering.values import immutable

OWNED_BY_ANOTHER = "owned_by_another"
"""The refusal of a unit that would give an object a second owner."""
TOO_MANY = "too_many_objects"
"""The refusal of a unit that might give a user more objects of a kind than they may have."""
OBJECT_CHANGE = "object"
"""The kind of a row in `changes` whose subject is the user who has lost an object."""
KNOWN_MAX = 20_000
"""Owners remembered in this process: what it has heard of changes bounds how old that may be (`unchanged`)."""
LISTED_MAX = 1_000
OWN_IDS_MAX = 10_000
"""Of a kind, the newest: what a user sees of a list that all users share."""
IDS_AT_ONCE = 64
"""Ids looked up by one statement."""
TAG_CHARS = 26

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
SELECT_IDS = """
SELECT upstream_id FROM owned_objects WHERE user_id = ?1 AND vendor = ?2 AND kind = ?3
ORDER BY created_at_ms DESC LIMIT ?4"""
IS_ROOM = """
UPDATE reservations SET operation = operation WHERE id = ?1 AND ?2 >
    (SELECT COUNT(*) FROM owned_objects WHERE user_id = ?3 AND vendor = ?4 AND kind = ?5 AND gone_at_ms IS NULL) +
    (SELECT COUNT(*) FROM reservations WHERE state = 'HELD' AND user_id = ?3 AND surface = ?4 AND id <> ?1
     AND operation IN (?6, ?7, ?8, ?9))"""
MARK_GONE = """
UPDATE owned_objects SET gone_at_ms = ?5
WHERE vendor = ?1 AND kind = ?2 AND upstream_id = ?3 AND user_id = ?4 AND gone_at_ms IS NULL"""

CHECK_UNCHANGED = """
SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM changes WHERE seq > ?1 AND kind = ?2 AND subject = ?3)"""
# The row that every reservation of the user touches first: two that meet here come one after the other in any store.
CHECK_IDLE = """
INSERT INTO accounts (owner, meter, period, allowance, spent, held) VALUES (?1, ?2, ?3, 0, 0, 0)
ON CONFLICT (owner, meter, period) DO UPDATE SET held = accounts.held WHERE accounts.held = 0"""
# Remembered, or the next sweep (metering/orphans.py) would give it back.
INSERT_RELEASED = """
INSERT INTO released_objects (vendor, kind, upstream_id, user_id, released_at_ms) VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT (vendor, kind, upstream_id) DO UPDATE
SET user_id = excluded.user_id, released_at_ms = excluded.released_at_ms"""
DELETE_OBJECT = """
DELETE FROM owned_objects WHERE vendor = ?1 AND kind = ?2 AND upstream_id = ?3 AND user_id = ?4"""

# A request that begins what goes on by itself is not held on the account of requests in flight.
CHECK_BEGINS_NOTHING = """
SELECT 1 WHERE NOT EXISTS (
    SELECT 1 FROM deferred_work d JOIN reservations r ON r.id = d.reservation_id
    WHERE d.is_open = 1 AND r.user_id = ?1 AND r.state = 'HELD')"""
# Of objects that pass from one user to another, who had them when (metering/phone_numbers.py).
END_TERM = """
UPDATE object_terms SET until_ms = ?4 WHERE vendor = ?1 AND kind = ?2 AND upstream_id = ?3 AND until_ms IS NULL"""

SELECT_AT = """
SELECT user_id FROM object_terms WHERE vendor = ?1 AND kind = ?2 AND upstream_id = ?3
AND from_ms <= ?4 AND (until_ms IS NULL OR until_ms > ?4)"""

_COLUMNS = "vendor, kind, upstream_id, user_id, reservation_id, created_at_ms, gone_at_ms"
SELECT_OBJECT = f"SELECT {_COLUMNS} FROM owned_objects WHERE vendor = ?1 AND kind = ?2 AND upstream_id = ?3"

_IN_USE, _MISSING = "in_use", "missing"


class ObjectId(NamedTuple):
    """An object at a vendor."""

    vendor: str
    kind: str
    upstream_id: str

    def __str__(self) -> str:
        return f"{self.vendor} {self.kind} {self.upstream_id}"


class ObjectsError(Exception):
    """An object cannot be released now; the message is for the operator."""


class NoSuchObjectError(ObjectsError):
    """Nobody owns an object of that id."""


@immutable
class OwnedObject:
    """One row: who owns what, since when, and the request that handed it out (`home:NAME`: made for that home)."""

    id: ObjectId
    user_id: str
    reservation_id: str
    created_at_ms: int
    gone_at_ms: int | None

    def as_json(self) -> dict[str, Any]:
        return {
            "vendor": self.id.vendor,
            "kind": self.id.kind,
            "id": self.id.upstream_id,
            "user": self.user_id,
            "since": instant(self.created_at_ms),
            "request": self.reservation_id,
            "gone_at": None if self.gone_at_ms is None else instant(self.gone_at_ms),
        }


class Objects:
    """The owners of objects, bound to one store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: OrderedDict[ObjectId, str] = OrderedDict()
        self.heard_seq = 0
        """The newest change that was heard of: what is remembered is no older."""

    def bind(
        self, objects: Sequence[ObjectId], user_id: str, reservation_id: str, *more: Step
    ) -> "asyncio.Future[Result]":
        """Make `user_id` their owner, with `more` steps in the same unit. Queued at once; the future is durable.

        Declined(OWNED_BY_ANOTHER), and nothing is done, when one has another owner. Raises
        Refused(STORE_UNAVAILABLE) from the future.
        """
        now_ms, heard_seq = self._clock.now_ms(), self.heard_seq
        steps = [
            Step(BIND_OBJECT, (*found, user_id, reservation_id, now_ms), refusal=OWNED_BY_ANOTHER)
            for found in objects
        ]
        binding = self._store.writer.submit(Unit([*steps, *more]))
        binding.add_done_callback(lambda done: self._remember_bound(done, objects, user_id, heard_seq))
        return binding

    def mark_gone(self, one: ObjectId, user_id: str) -> None:
        """Its user has deleted it. It keeps its owner. Never waits, may be lost: then it only counts for longer."""
        self._store.writer.submit(Unit((Step(MARK_GONE, (*one, user_id, self._clock.now_ms())),)))

    def heard(self, seq: int, changed: Collection[tuple[str, str]] | None) -> None:
        """Changes (kind, subject) up to `seq` were heard of; None: nothing that is remembered may count any more."""
        self.heard_seq = seq
        if changed is None:
            self._known.clear()
        elif losers := {subject for kind, subject in changed if kind == OBJECT_CHANGE}:
            kept = ((one, owner) for one, owner in self._known.items() if owner not in losers)
            self._known = OrderedDict(kept)

    def unchanged(self, user_id: str, heard_seq: int) -> Step:
        """For the unit that reserves: whatever is the user's by what was heard until `heard_seq` is so still."""
        return Step(CHECK_UNCHANGED, (heard_seq, OBJECT_CHANGE, user_id), refusal=OWNERS_CHANGED)

    async def release(self, one: ObjectId, user_id: str) -> None:
        """Take an object from its owner: nobody's at once on every worker, and whose the vendor hands it to next.

        Raises NoSuchObjectError: it is not this user's (any more); ObjectsError: the user has requests under way, which
        may be about it; Refused(STORE_UNAVAILABLE).
        """
        unit = Unit(releasing(one, user_id, self._clock.now_ms()))
        result = await self._store.writer.submit(unit)
        if not isinstance(result, Declined):
            return
        if result.refusal == _MISSING or (await owned(self._store.readers, one)).user_id != user_id:
            raise NoSuchObjectError(f"{one} is not {user_id}'s any more: nothing is changed")
        raise ObjectsError(
            f"{one} may be in use: {user_id} has requests under way. Nothing is changed: repeat it when they have ended "
            f"(`user disable {user_id}` lets no new ones begin)"
        )

    async def first_of(self, vendor: str, kind: str, user_id: str) -> str | None:
        """The id of a user's oldest object of a kind; None without any. Raises Refused(STORE_UNAVAILABLE)."""
        row = await self._store.readers.row(SELECT_FIRST, (user_id, vendor, kind))
        return None if row is None else str(row[0])

    async def owner_at(self, one: ObjectId, at_ms: int) -> str | None:
        """Who had at an instant what passes from one user to another; None: nobody. Raises Refused(STORE_UNAVAILABLE)."""
        row = await self._store.readers.row(SELECT_AT, (*one, at_ms))
        return None if row is None else str(row[0])

    async def ids_of(self, vendor: str, kind: str, user_id: str) -> frozenset[str]:
        """The ids of a user's objects of a kind, OWN_IDS_MAX at most. Raises Refused(STORE_UNAVAILABLE)."""
        rows = await self._store.readers.rows(SELECT_IDS, (user_id, vendor, kind, OWN_IDS_MAX))
        return frozenset(str(row[0]) for row in rows)

    def one_more(
        self, reservation_id: str, vendor: str, kind: str, user_id: str, *, most: int, makers: Sequence[str]
    ) -> Step:
        """The step that allows a request to make one more object, to stand behind its reservation: refused as TOO_MANY
        when those that the user has and those that requests under way (of these operations) may make are `most`."""
        return Step(
            IS_ROOM,
            (reservation_id, most, user_id, vendor, kind, *padded(makers)),
            refusal=TOO_MANY,
        )

    async def owners(
        self, objects: Collection[ObjectId], *, asking: str | None = None
    ) -> dict[ObjectId, str]:
        """The owners of those that have one. Raises Refused(STORE_UNAVAILABLE).

        With a user who is `asking`, what is remembered as another's is looked up: it may be theirs since.
        """
        known, heard_seq = self._known, self.heard_seq
        found = {one: known[one] for one in objects if one in known}
        if asking is not None:
            found = {one: owner for one, owner in found.items() if owner == asking}
        stored = await self.stored_owners([one for one in objects if one not in found])
        for one, owner in stored.items():
            self._remember(one, owner, heard_seq)
        return found | stored

    async def stored_owners(self, objects: Collection[ObjectId]) -> dict[ObjectId, str]:
        """The same, by the store alone: for what acts on an owner without a reservation. Raises
        Refused(STORE_UNAVAILABLE)."""
        found: dict[ObjectId, str] = {}
        by_kind: dict[tuple[str, str], list[str]] = {}
        for one in objects:
            by_kind.setdefault((one.vendor, one.kind), []).append(one.upstream_id)
        for (vendor, kind), ids in by_kind.items():
            for start in range(0, len(ids), IDS_AT_ONCE):
                batch = ids[start : start + IDS_AT_ONCE]
                padded = batch + batch[-1:] * (IDS_AT_ONCE - len(batch))
                for upstream_id, user_id in await self._store.readers.rows(
                    SELECT_OWNERS, (vendor, kind, *padded)
                ):
                    found[ObjectId(vendor, kind, str(upstream_id))] = str(user_id)
        return found

    def _remember_bound(
        self, binding: "asyncio.Future[Result]", objects: Sequence[ObjectId], user_id: str, heard_seq: int
    ) -> None:
        if not binding.cancelled() and binding.exception() is None and isinstance(binding.result(), Done):
            for one in objects:
                self._remember(one, user_id, heard_seq)

    def _remember(self, one: ObjectId, user_id: str, heard_seq: int) -> None:
        """Not where a change was heard of since it was asked: it may be newer than the answer."""
        if heard_seq != self.heard_seq:
            return
        self._known[one] = user_id
        self._known.move_to_end(one)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)


def user_tag(user_id: str) -> str:
    """A user's name at a vendor: the same everywhere and always, and of nobody else. Letters and digits."""
    return "u" + hashlib.sha256(f"automna:{user_id}".encode()).hexdigest()[:TAG_CHARS]


def releasing(one: ObjectId, user_id: str, now_ms: int) -> tuple[Step, ...]:
    """The steps that take an object from its owner, refused while a request of theirs is under way."""
    return (
        Step(CHECK_IDLE, (owner_of(user_id), OPEN_REQUESTS, NO_PERIOD), refusal=_IN_USE),
        Step(CHECK_BEGINS_NOTHING, (user_id,), refusal=_IN_USE),
        Step(DELETE_OBJECT, (*one, user_id), refusal=_MISSING),
        Step(END_TERM, (*one, now_ms)),
        Step(INSERT_RELEASED, (*one, user_id, now_ms)),
        Step(INSERT_CHANGE, (OBJECT_CHANGE, user_id, now_ms)),
    )


async def owned(readers: Readers, one: ObjectId) -> OwnedObject:
    """An object as its row says. Raises NoSuchObjectError, Refused(STORE_UNAVAILABLE)."""
    row = await readers.row(SELECT_OBJECT, one)
    if row is None:
        raise NoSuchObjectError(f"nobody owns {one}: it was never handed out here, or it is released")
    return _owned(row)


async def owned_objects(
    readers: Readers,
    *,
    user_id: str | None = None,
    vendor: str | None = None,
    kind: str | None = None,
    is_gone: bool = False,
    at_most: int = LISTED_MAX,
) -> list[OwnedObject]:
    """Who owns what, the newest first; with `is_gone` only what its user has deleted. Raises Refused(STORE_UNAVAILABLE)."""
    wanted = {"user_id": user_id, "vendor": vendor, "kind": kind}
    params: list[Value] = [value for value in wanted.values() if value is not None]
    names = [name for name, value in wanted.items() if value is not None]
    conditions = [f"{name} = ?{number}" for number, name in enumerate(names, start=1)]
    if is_gone:
        conditions.append("gone_at_ms IS NOT NULL")
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    rows = await readers.rows(
        f"SELECT {_COLUMNS} FROM owned_objects {where} "
        f"ORDER BY created_at_ms DESC, vendor, kind, upstream_id LIMIT ?{len(params) + 1}",
        (*params, at_most),
    )
    return [_owned(row) for row in rows]


def _owned(row: Row) -> OwnedObject:
    vendor, kind, upstream_id, user_id, reservation_id = map(str, row[:5])
    created_at_ms, gone_at_ms = cast("tuple[int, int | None]", row[5:])
    return OwnedObject(
        ObjectId(vendor, kind, upstream_id), user_id, reservation_id, created_at_ms, gone_at_ms
    )
