"""Objects at vendors that one of our users had made and nobody owns here: whose they are, and binding them.

Such an object is left behind where a process dies, or an answer is lost, between the vendor's work and the row that says whose
it is. It is bound in one unit of work whose conditions say all that must hold:

1. Its user is who made the request that its tag names, or who owns what it lies in. Where both are known, they agree.
2. That request is not under way: it binds its object itself. Under way is what is held by a worker that has a row; should
   such a worker be taken for dead and live, it binds to the same user, which changes nothing.
3. Nobody owns it, and no operator has released it: whoever gets that is decided by the vendor's next answer, not here.
"""

import enum
from collections.abc import Sequence
from typing import Any, cast

from metering.admission import padded
from metering.clock import Clock
from metering.objects import IDS_AT_ONCE, SELECT_OWNERS, ObjectId
from metering.store.store import Store
from metering.store.writer import Declined, Step, Unit
from metering.values import immutable

SWEPT = "sweep"
"""Instead of the request that handed an object out, where that is not known."""
NOT_DUE = "not_due"

_IS_UNDER_WAY = "r.state = 'HELD' AND r.worker_id IN (SELECT id FROM workers)"
SELECT_MAKER = f"""
SELECT r.user_id, r.surface, r.operation, r.model, r.state, {_IS_UNDER_WAY} FROM reservations r WHERE r.id = ?1"""
SELECT_HOLDER = f"""
SELECT o.user_id, EXISTS (
    SELECT 1 FROM reservations r WHERE {_IS_UNDER_WAY} AND r.user_id = o.user_id AND r.operation IN (?4, ?5, ?6, ?7))
FROM owned_objects o WHERE o.vendor = ?1 AND o.kind = ?2 AND o.upstream_id = ?3"""
SELECT_RELEASED = """
SELECT 1 FROM released_objects WHERE vendor = ?1 AND kind = ?2 AND upstream_id = ?3"""

CHECK_MAKER = f"""
SELECT 1 FROM reservations r WHERE r.id = ?1 AND r.user_id = ?2 AND NOT ({_IS_UNDER_WAY})"""
CHECK_HOLDER = f"""
SELECT 1 FROM owned_objects o WHERE o.vendor = ?1 AND o.kind = ?2 AND o.upstream_id = ?3 AND o.user_id = ?8
AND NOT EXISTS (
    SELECT 1 FROM reservations r WHERE {_IS_UNDER_WAY} AND r.user_id = o.user_id AND r.operation IN (?4, ?5, ?6, ?7))"""
CHECK_NOT_RELEASED = f"SELECT 1 WHERE NOT EXISTS ({SELECT_RELEASED})"
BIND_ORPHAN = """
INSERT INTO owned_objects (vendor, kind, upstream_id, user_id, reservation_id, created_at_ms)
VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (vendor, kind, upstream_id) DO NOTHING"""

SELECT_SWEEP = "SELECT due_at_ms FROM sweeps WHERE vendor = ?1 AND kind = ?2"
INSERT_SWEEP = "INSERT INTO sweeps (vendor, kind, due_at_ms) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING"
CLAIM_SWEEP = """
UPDATE sweeps SET due_at_ms = ?4 WHERE vendor = ?1 AND kind = ?2 AND due_at_ms = ?3"""


class State(enum.StrEnum):
    """What is known of an object without an owner."""

    ATTRIBUTABLE = "attributable"
    """Its user is known, and nothing speaks against binding it."""
    BOUND = "bound"
    UNDER_WAY = "under_way"
    """A request that may have made it has not ended."""
    RELEASED = "released"
    """An operator took it from its owner."""
    UNKNOWN = "unknown"
    """Nobody's that is known here, or two users could be meant."""


@immutable
class Trace:
    """What an object at a vendor tells of where it comes from: the request that its tag names, what it lies in."""

    one: ObjectId
    request_id: str | None = None
    within: ObjectId | None = None


@immutable
class Maker:
    """The request that made an object, as its reservation has it."""

    request_id: str
    user_id: str
    surface: str
    operation: str
    model: str | None
    state: str


@immutable
class Orphan:
    """An object without an owner, and what is known of it."""

    trace: Trace
    state: State
    user_id: str | None = None
    maker: Maker | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.trace.one.upstream_id,
            "state": self.state.value,
            "user": self.user_id,
            "request": None if self.maker is None else self.maker.request_id,
        }


@immutable
class Sweep:
    """What one look through a list has found. `is_whole`: every page was read."""

    vendor: str
    kind: str
    looked_at: int
    orphans: tuple[Orphan, ...]
    is_whole: bool

    def count(self, state: State) -> int:
        return sum(orphan.state is state for orphan in self.orphans)

    def as_json(self) -> dict[str, Any]:
        return {
            "vendor": self.vendor,
            "kind": self.kind,
            "looked_at": self.looked_at,
            "is_whole": self.is_whole,
            "unowned": [orphan.as_json() for orphan in self.orphans],
        }


class Orphans:
    """What is known of them, bound to one store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def among(self, traces: Sequence[Trace]) -> list[Trace]:
        """Those of objects of one vendor and kind that have no owner. Raises Refused(STORE_UNAVAILABLE)."""
        owned: set[str] = set()
        for start in range(0, len(traces), IDS_AT_ONCE):
            one, ids = (
                traces[start].one,
                [each.one.upstream_id for each in traces[start : start + IDS_AT_ONCE]],
            )
            filled = ids + ids[-1:] * (IDS_AT_ONCE - len(ids))
            rows = await self._store.readers.rows(SELECT_OWNERS, (one.vendor, one.kind, *filled))
            owned.update(str(row[0]) for row in rows)
        return [trace for trace in traces if trace.one.upstream_id not in owned]

    async def look_at(self, trace: Trace, makers: Sequence[str]) -> Orphan:
        """Whose it is. `makers`: the operations that make such objects. Raises Refused(STORE_UNAVAILABLE)."""
        if await self._store.readers.row(SELECT_RELEASED, trace.one) is not None:
            return Orphan(trace, State.RELEASED)
        maker, is_making = await self._maker(trace.request_id)
        holder, is_making_there = await self._holder(trace.within, makers)
        users = {user for user in (holder, maker.user_id if maker else None) if user is not None}
        if len(users) != 1:
            return Orphan(trace, State.UNKNOWN)
        is_under_way = is_making if maker is not None else is_making_there
        return Orphan(trace, State.UNDER_WAY if is_under_way else State.ATTRIBUTABLE, users.pop(), maker)

    async def bind(self, orphan: Orphan, makers: Sequence[str], *more: Step) -> bool:
        """Give an attributable one to its user, with `more` steps in the same unit; False when that is no longer what
        it was. Raises Refused(STORE_UNAVAILABLE)."""
        trace, maker, user_id = orphan.trace, orphan.maker, orphan.user_id
        assert user_id is not None
        steps = [Step(CHECK_NOT_RELEASED, trace.one, refusal=State.RELEASED)]
        if maker is not None:
            steps.append(Step(CHECK_MAKER, (maker.request_id, user_id), refusal=State.UNDER_WAY))
        else:
            assert trace.within is not None
            holding = (*trace.within, *padded(makers), user_id)
            steps.append(Step(CHECK_HOLDER, holding, refusal=State.UNDER_WAY))
        made_by = SWEPT if maker is None else maker.request_id
        bound = (*trace.one, user_id, made_by, self._clock.now_ms())
        unit = Unit((*steps, Step(BIND_ORPHAN, bound, refusal=State.BOUND), *more))
        return not isinstance(await self._store.writer.submit(unit), Declined)

    async def claim(self, vendor: str, kind: str, *, every_s: float) -> bool:
        """Whether a sweep is due, and ours: the next is due so long after. Raises Refused(STORE_UNAVAILABLE)."""
        now_ms, every_ms = self._clock.now_ms(), round(every_s * 1000)
        row = await self._store.readers.row(SELECT_SWEEP, (vendor, kind))
        if row is None:
            step = Step(INSERT_SWEEP, (vendor, kind, now_ms + every_ms))
            await self._store.writer.submit(Unit((step,)))
            return False
        due_at_ms = cast("int", row[0])
        if now_ms < due_at_ms <= now_ms + every_ms:  # later than that: the setting was lowered since
            return False
        step = Step(CLAIM_SWEEP, (vendor, kind, due_at_ms, now_ms + every_ms), refusal=NOT_DUE)
        return not isinstance(await self._store.writer.submit(Unit((step,))), Declined)

    # --- inside ----------------------------------------------------------------------------------

    async def _maker(self, request_id: str | None) -> tuple[Maker | None, bool]:
        """The request that a tag names, if it is one of ours, and whether it is under way."""
        row = None if request_id is None else await self._store.readers.row(SELECT_MAKER, (request_id,))
        if request_id is None or row is None:
            return None, False
        user_id, surface, operation, model, state, is_under_way = cast("tuple[Any, ...]", row)
        return Maker(request_id, user_id, surface, operation, model, state), bool(is_under_way)

    async def _holder(self, within: ObjectId | None, makers: Sequence[str]) -> tuple[str | None, bool]:
        """Who owns what it lies in, and whether they are making such objects."""
        if within is None:
            return None, False
        row = await self._store.readers.row(SELECT_HOLDER, (*within, *padded(makers)))
        return (None, False) if row is None else (str(row[0]), bool(row[1]))
