"""The rows of instances and of what was made for them: every statement of this room.

Theory of claims. Who works on an instance holds a claim on its row: a worker's name, an end, and a fence that rises with every
claim. Everything it writes carries the fence (`guarding`), in the unit of the write itself; a claim that has passed to another
lets nothing more be written. A claim is renewed while work goes on. What one who lost its claim has begun at a vendor may still
happen there: the next one looks before it makes anything.
"""

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import orjson

from metering.clock import Clock, instant
from metering.ids import new_id
from metering.store.store import Store
from metering.store.writer import Declined, Row, Step, Unit, Value
from metering.users import NotFoundError
from metering.values import immutable
from provisioning.errors import SupersededError

PENDING, CREATING_APP, ALLOCATING_IPS = "pending", "creating_app", "allocating_ips"
CREATING_INTEGRATIONS, CREATING_MACHINE = "creating_integrations", "creating_machine"
STARTING, WAITING_FOR_GATEWAY, READY, ERROR = "starting", "waiting_for_gateway", "ready", "error"
"""The stages of the replaced service, which its dashboard knows."""
STOPPED, SUSPENDED, DEPROVISIONING, GONE = "stopped", "suspended", "deprovisioning", "gone"
NOT_STARTED = "not_started"
"""Nothing was ever wished: there is no row."""
STATUSES = (
    *(PENDING, CREATING_APP, ALLOCATING_IPS, CREATING_INTEGRATIONS, CREATING_MACHINE, STARTING),
    *(WAITING_FOR_GATEWAY, READY, ERROR, STOPPED, SUSPENDED, DEPROVISIONING, GONE),
)
"""All that a row may say, in the order of a machine's life."""
ENDS = frozenset({READY, ERROR, STOPPED, SUSPENDED, GONE})
"""What an instance stays in until something else is wished."""

RUNNING = "running"
"""As `desired`, which may be STOPPED, SUSPENDED and GONE, too."""

APP, IP, VOLUME, CONTEXT, POD, INBOX, MACHINE_KIND = (
    "app",
    "ip",
    "volume",
    "context",
    "pod",
    "inbox",
    "machine",
)
OF_APP = (APP, IP, VOLUME, MACHINE_KIND)
"""Kinds that are gone with their app."""

LISTED_MAX = 10_000
EVENTS_MAX = 1_000
TURN_SHARE = 0.9
"""Of its interval, after which a turn may be taken again: workers wake a little early or late."""
_FENCED, _CHANGED, _UNKNOWN, _HAS_ONE = "fenced", "changed", "unknown_user", "has_one"

COLUMNS = """user_id, generation, app_name, desired, is_over_budget, wished, done, rotates, is_undone, status, region, placements,
    rebuilds, token_id, answered_version, ready_at_ms, attempts, given_up, due_at_ms, patience_ms, error_code, is_retryable, worker_id, claimed_until_ms,
    fence, created_at_ms, started_at_ms, updated_at_ms"""
SELECT_INSTANCE = f"SELECT {COLUMNS} FROM instances WHERE user_id = ?1"
SELECT_BY_APP = f"SELECT {COLUMNS} FROM instances WHERE app_name = ?1"
COUNT_BY_STATUS = "SELECT status, COUNT(*) FROM instances GROUP BY status"
SELECT_INSTANCES = f"""
SELECT {COLUMNS} FROM instances WHERE (?1 = '' OR status = ?1) AND user_id > ?2 ORDER BY user_id LIMIT ?3"""

INSERT_INSTANCE = """
INSERT INTO instances (user_id, generation, app_name, desired, wished, done, status, due_at_ms, created_at_ms, started_at_ms,
    updated_at_ms)
SELECT id, 1, ?2, 'running', 1, 0, 'pending', ?3, ?3, ?3, ?3 FROM users WHERE id = ?1
ON CONFLICT (user_id) DO NOTHING"""
# Whoever wishes anew what is gone gets a machine of the next generation; whose wish was given up, another run.
RENEW_INSTANCE = """
UPDATE instances SET desired = 'running', wished = wished + 1, status = 'pending', attempts = 0, error_code = NULL,
    is_retryable = 0, placements = 0, rebuilds = 0, patience_ms = NULL, rotates = 0, due_at_ms = ?2, started_at_ms = ?2,
    updated_at_ms = ?2, generation = generation + CASE WHEN status = 'gone' THEN 1 ELSE 0 END,
    ready_at_ms = CASE WHEN status = 'gone' THEN NULL ELSE ready_at_ms END,
    token_id = CASE WHEN status = 'gone' THEN NULL ELSE token_id END,
    answered_version = CASE WHEN status = 'gone' THEN NULL ELSE answered_version END,
    given_up = CASE WHEN status = 'gone' THEN 0 ELSE given_up END, is_over_budget = 0,
    created_at_ms = CASE WHEN status = 'gone' THEN ?2 ELSE created_at_ms END
WHERE user_id = ?1 AND (status = 'error' OR status = 'gone' AND ?3 = 1)"""
# `is_undone` stays: what is being taken away is taken away first.
WISH = """
UPDATE instances SET desired = ?2, status = CASE WHEN ?3 = '' THEN status ELSE ?3 END, wished = wished + 1,
    rotates = CASE WHEN ?4 = 1 THEN 1 ELSE rotates END, attempts = 0, error_code = NULL, is_retryable = 0, placements = 0,
    rebuilds = 0, patience_ms = NULL, due_at_ms = ?5, started_at_ms = ?5, updated_at_ms = ?5
WHERE user_id = ?1 AND wished = ?6"""
# One that could not be suspended is wished to be once more. One that may run again is begun again: it may be cordoned by now.
SET_OVER_BUDGET = """
UPDATE instances SET is_over_budget = ?2, status = CASE WHEN ?2 = 0 AND desired = 'running' THEN 'starting' ELSE status END,
    wished = wished + 1, attempts = 0, patience_ms = NULL, due_at_ms = ?3, updated_at_ms = ?3
WHERE user_id = ?1 AND desired <> 'gone' AND ready_at_ms IS NOT NULL AND (is_over_budget <> ?2
    OR ?2 = 1 AND desired = 'running' AND status <> 'suspended' AND due_at_ms IS NULL)"""

# The machine's token, those before and after it that rotating made, and all that come from any of them. Found in the unit itself: one
# may be minted until then. Said first, of those that live.
_FAMILY = """
SELECT f.family FROM instances i JOIN gateway_tokens f ON f.id = i.token_id WHERE i.user_id = ?1"""
SAY_REVOKED = f"""
INSERT INTO changes (kind, subject, at_ms)
SELECT 'token', id, ?2 FROM gateway_tokens WHERE family = ({_FAMILY}) AND revoked_at_ms IS NULL"""
REVOKE_FAMILY = f"""
WITH RECURSIVE line (id) AS (
    SELECT id FROM gateway_tokens WHERE family = ({_FAMILY})
    UNION SELECT t.id FROM line l JOIN gateway_tokens t ON t.parent_id = l.id WHERE t.revoked_at_ms IS NULL)
UPDATE gateway_tokens SET revoked_at_ms = ?2 WHERE id IN (SELECT id FROM line) AND revoked_at_ms IS NULL"""

AHEAD_MS_MAX = 3_600_000
"""No pause and no claim is longer: what is due only later, or is claimed for longer, is so by a clock that was set back since. And no
two workers read a clock that far apart: a turn was taken later than so by none that is right."""
IS_ANY_DUE = f"""
SELECT 1 FROM instances WHERE (due_at_ms <= ?1 OR due_at_ms > ?1 + {AHEAD_MS_MAX})
    AND (claimed_until_ms IS NULL OR claimed_until_ms <= ?1 OR claimed_until_ms > ?1 + {AHEAD_MS_MAX})
    AND (?2 = '' OR user_id = ?2) LIMIT 1"""
# What one worker of all does now and then.
TAKE_TURN = f"""
INSERT INTO machine_turns (name, taken_at_ms) VALUES (?1, ?2)
ON CONFLICT (name) DO UPDATE SET taken_at_ms = excluded.taken_at_ms
WHERE machine_turns.taken_at_ms <= ?3 OR machine_turns.taken_at_ms > ?2 + {AHEAD_MS_MAX}"""
_OF_DUE = f"""
SELECT user_id FROM instances WHERE (due_at_ms <= ?2 OR due_at_ms > ?2 + {AHEAD_MS_MAX})
    AND (claimed_until_ms IS NULL OR claimed_until_ms <= ?2 OR claimed_until_ms > ?2 + {AHEAD_MS_MAX})
    AND (?4 = '' OR user_id = ?4) ORDER BY due_at_ms LIMIT 1"""
CLAIM = f"""
UPDATE instances SET worker_id = ?1, claimed_until_ms = ?3, fence = fence + 1 WHERE user_id = ({_OF_DUE})
RETURNING {COLUMNS}"""
RENEW_CLAIM = "UPDATE instances SET claimed_until_ms = ?3 WHERE user_id = ?1 AND fence = ?2"
GUARD = "UPDATE instances SET fence = fence WHERE user_id = ?1 AND fence = ?2"
GUARD_WISH = "UPDATE instances SET fence = fence WHERE user_id = ?1 AND fence = ?2 AND wished = ?3"
RELEASE = "UPDATE instances SET worker_id = NULL, claimed_until_ms = ?3 WHERE user_id = ?1 AND fence = ?2"

INSERT_RESOURCE = """
INSERT INTO resources (id, user_id, generation, kind, name, upstream_id, state, created_at_ms, updated_at_ms)
VALUES (?1, ?2, ?3, ?4, ?5, NULL, 'intent', ?6, ?6) ON CONFLICT DO NOTHING"""
MAKE_LIVE = """
UPDATE resources SET upstream_id = ?5, state = 'live', updated_at_ms = ?6
WHERE user_id = ?1 AND generation = ?2 AND kind = ?3 AND name = ?4 AND state IN ('intent', 'live')"""
END_RESOURCE = """
UPDATE resources SET state = ?5, updated_at_ms = ?6
WHERE user_id = ?1 AND generation = ?2 AND kind = ?3 AND name = ?4 AND state IN ('intent', 'live')"""
RESOURCE_COLUMNS = "user_id, generation, kind, name, upstream_id, state, created_at_ms, updated_at_ms"
SELECT_RESOURCES = f"""
SELECT {RESOURCE_COLUMNS} FROM resources WHERE user_id = ?1 AND generation = ?2 AND state <> 'gone' ORDER BY id"""
SELECT_IS_KNOWN = "SELECT 1 FROM resources WHERE kind = ?1 AND upstream_id = ?2 AND state = 'live'"

INSERT_EVENT = """
INSERT INTO machine_events (machine_id, event_type, details, created_at, user_id)
SELECT COALESCE((SELECT upstream_id FROM resources r WHERE r.user_id = i.user_id AND r.generation = i.generation
    AND r.kind = 'machine' AND r.state = 'live'), i.app_name), ?2, ?3, ?4, i.user_id FROM instances i WHERE i.user_id = ?1"""
SELECT_EVENTS = """
SELECT id, machine_id, event_type, details, created_at FROM machine_events WHERE user_id = ?1 ORDER BY id DESC LIMIT ?2"""


class DeclinedError(Exception):
    """A step that was to be written under a claim was refused, by this name; nothing was written."""


@immutable
class Instance:
    """A row: what is wished for a user's machine, and how far it has come."""

    user_id: str
    generation: int
    app_name: str
    desired: str
    is_over_budget: int
    wished: int
    done: int
    rotates: int
    is_undone: int
    status: str
    region: str | None
    placements: int
    rebuilds: int
    token_id: str | None
    answered_version: str | None
    ready_at_ms: int | None
    attempts: int
    given_up: int
    due_at_ms: int | None
    patience_ms: int | None
    error_code: str | None
    is_retryable: int
    worker_id: str | None
    claimed_until_ms: int | None
    fence: int
    created_at_ms: int
    started_at_ms: int
    updated_at_ms: int

    @property
    def is_settled(self) -> bool:
        """Nothing is to be done until something else is wished."""
        return self.due_at_ms is None

    @property
    def aim(self) -> str:
        """What it shall come to: RUNNING, STOPPED, SUSPENDED or GONE."""
        return SUSPENDED if self.is_over_budget and self.desired == RUNNING else self.desired


@immutable
class Resource:
    """Something that was made for an instance elsewhere, or may have been. `state`: `intent` while nobody knows whether it was,
    `lost` where nobody ever will."""

    user_id: str
    generation: int
    kind: str
    name: str
    upstream_id: str | None
    state: str
    created_at_ms: int
    updated_at_ms: int

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name, "id": self.upstream_id, "state": self.state}


@immutable
class Event:
    """One line of an instance's history. `number` rises with time."""

    number: int
    machine_id: str
    kind: str
    details: dict[str, Any]
    created_at: int

    def as_json(self) -> dict[str, Any]:
        at = instant(self.created_at * 1000)
        return {"machine": self.machine_id, "event": self.kind, "at": at, "details": self.details}


class Instances:
    """The rows, bound to one store. Everything raises Refused(STORE_UNAVAILABLE)."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self.clock = clock

    # --- read ------------------------------------------------------------------------------------

    async def of(self, user_id: str) -> Instance | None:
        row = await self._store.readers.row(SELECT_INSTANCE, (user_id,))
        return None if row is None else _instance(row)

    async def of_app(self, app_name: str) -> Instance | None:
        row = await self._store.readers.row(SELECT_BY_APP, (app_name,))
        return None if row is None else _instance(row)

    async def all(self, *, status: str = "", after: str = "", at_most: int = LISTED_MAX) -> list[Instance]:
        """By user id, those after `after`."""
        return [
            _instance(row)
            for row in await self._store.readers.rows(SELECT_INSTANCES, (status, after, at_most))
        ]

    async def count_by_status(self) -> dict[str, int]:
        """How many are in each status: 0 where there are none."""
        rows = cast("list[tuple[str, int]]", await self._store.readers.rows(COUNT_BY_STATUS))
        return dict.fromkeys(STATUSES, 0) | dict(rows)

    async def resources(self, instance: Instance) -> list[Resource]:
        """What there is of its generation, or may be."""
        params = (instance.user_id, instance.generation)
        return [_resource(row) for row in await self._store.readers.rows(SELECT_RESOURCES, params)]

    async def is_known(self, kind: str, upstream_id: str) -> bool:
        """Whether a thing is on record as somebody's."""
        return await self._store.readers.row(SELECT_IS_KNOWN, (kind, upstream_id)) is not None

    async def events(self, user_id: str, *, at_most: int = EVENTS_MAX) -> list[Event]:
        """The newest first."""
        rows = cast("list[Any]", await self._store.readers.rows(SELECT_EVENTS, (user_id, at_most)))
        return [Event(row[0], row[1], row[2], orjson.loads(row[3]), row[4]) for row in rows]

    async def every(self) -> AsyncIterator[Instance]:
        """All of them, by user id, however many."""
        after = ""
        while page := await self.all(after=after):
            for one in page:
                yield one
            after = page[-1].user_id

    async def rows(self, sql: str, params: Sequence[Value]) -> list[Row]:
        """What another file of this room asks."""
        return await self._store.readers.rows(sql, params)

    # --- wished ----------------------------------------------------------------------------------

    async def begin(self, user_id: str, app_name: str, *, actor: str, takes_up_gone: bool = True) -> bool:
        """A machine for a user who has none, or whose last one was given up or (unless `takes_up_gone` is false) is gone;
        whether that is new. Raises NotFoundError."""
        now_ms = self.clock.now_ms()
        for sql, params in (
            (INSERT_INSTANCE, (user_id, app_name, now_ms)),
            (RENEW_INSTANCE, (user_id, now_ms, int(takes_up_gone))),
        ):
            steps = (
                Step(sql, params, refusal=_HAS_ONE),
                self.noting(user_id, "wished", actor=actor, aim=RUNNING),
            )
            if not isinstance(await self._store.writer.submit(Unit(steps)), Declined):
                return True
        if await self.of(user_id) is None:
            raise NotFoundError(f"there is no user {user_id}")
        return False

    async def wish(
        self,
        instance: Instance,
        desired: str,
        *more: Step,
        status: str = "",
        rotates: bool = False,
        actor: str,
    ) -> bool:
        """Something else of an instance as it was read, with `more` in the same unit; False when another wish came between."""
        now_ms = self.clock.now_ms()
        params = (instance.user_id, desired, status, int(rotates), now_ms, instance.wished)
        told = self.noting(instance.user_id, "wished", actor=actor, aim=desired, rotates=rotates)
        unit = Unit((Step(WISH, params, refusal=_CHANGED), *more, told))
        return not isinstance(await self._store.writer.submit(unit), Declined)

    async def set_over_budget(self, user_id: str, *, is_over: bool) -> bool:
        """Whether that is new."""
        params = (user_id, int(is_over), self.clock.now_ms())
        told = self.noting(user_id, "over_budget" if is_over else "within_budget")
        unit = Unit((Step(SET_OVER_BUDGET, params, refusal=_CHANGED), told))
        return not isinstance(await self._store.writer.submit(unit), Declined)

    def noting(self, user_id: str, event: str, **details: Any) -> Step:
        """The step that writes down what happened to a user's machine."""
        now_s = self.clock.now_ms() // 1000
        return Step(INSERT_EVENT, (user_id, event, orjson.dumps(details).decode(), now_s))

    def revoking(self, user_id: str) -> tuple[Step, ...]:
        """The steps that end the gateway token of a user's machine, with its whole line and what comes from it."""
        params = (user_id, self.clock.now_ms())
        return Step(SAY_REVOKED, params), Step(REVOKE_FAMILY, params)

    # --- worked on -------------------------------------------------------------------------------

    async def is_any_due(self, user_id: str = "") -> bool:
        """Something to claim: asked before a claim, which would be a write."""
        row = await self._store.readers.row(IS_ANY_DUE, (self.clock.now_ms(), user_id))
        return row is not None

    async def take_turn(self, name: str, *, every_s: float) -> bool:
        """Whether it is this worker's turn to do what is to be done once in so many seconds, whoever does it."""
        now_ms = self.clock.now_ms()
        params = (name, now_ms, now_ms - round(every_s * 1000 * TURN_SHARE))
        unit = Unit((Step(TAKE_TURN, params, refusal=_CHANGED),))
        return not isinstance(await self._store.writer.submit(unit), Declined)

    def unclaimed(self, instance: Instance) -> "Claim":
        """For who only looks: whatever it would write is refused."""
        return Claim(self._store, self, dataclasses.replace(instance, fence=-1), 0.0)

    async def claim(self, worker_id: str, *, for_s: float, user_id: str = "") -> "Claim | None":
        """The instance that is due for longest and nobody works on, or `user_id`'s; None without one."""
        now_ms = self.clock.now_ms()
        params = (worker_id, now_ms, now_ms + round(for_s * 1000), user_id)
        result = await self._store.writer.submit(Unit((Step(CLAIM, params, refusal=_CHANGED),)))
        if isinstance(result, Declined):
            return None
        (row,) = result.rows
        assert row is not None, "a claim returns its row"
        return Claim(self._store, self, _instance(row), for_s)


class Claim:
    """The right to work on one instance, and all that is written under it. `instance` is as it was last written or read; `wished`, the
    wish that is worked for, as it was claimed or reread.

    Every method raises SupersededError when the claim has passed to another or, where a wish counts, when another thing is
    wished by now; nothing is written then.
    """

    def __init__(self, store: Store, instances: Instances, instance: Instance, for_s: float) -> None:
        self._store = store
        self._instances = instances
        self._for_s = for_s
        self.instance = instance
        self.wished = instance.wished

    def guarding(self, *, wish_counts: bool = True) -> Step:
        """The first step of whatever unit is to hold only under this claim (and this wish)."""
        one = self.instance
        if wish_counts:
            return Step(GUARD_WISH, (one.user_id, one.fence, self.wished), refusal=_FENCED)
        return Step(GUARD, (one.user_id, one.fence), refusal=_FENCED)

    async def write(
        self, *steps: Step, event: str = "", details: dict[str, Any] | None = None, **fields: Value
    ) -> None:
        """Columns of the row, with `steps` and an event in the same unit."""
        await self._commit(self.guarding(), steps, event, details, fields)

    async def write_whatever_is_wished(
        self, *steps: Step, event: str = "", details: dict[str, Any] | None = None, **fields: Value
    ) -> None:
        """As `write`, for what is true of the things that exist, and not of the wish."""
        await self._commit(self.guarding(wish_counts=False), steps, event, details, fields)

    async def _commit(
        self,
        guard: Step,
        steps: Sequence[Step],
        event: str,
        details: dict[str, Any] | None,
        fields: dict[str, Value],
    ) -> None:
        one, now_ms = self.instance, self._instances.clock.now_ms()
        names = ", ".join(f"{name} = ?{number}" for number, name in enumerate(fields, start=3))
        sql = f"UPDATE instances SET {names + ', ' if names else ''}updated_at_ms = ?2 WHERE user_id = ?1 RETURNING {COLUMNS}"
        told = (self._instances.noting(one.user_id, event, **(details or {})),) if event else ()
        own = Step(sql, (one.user_id, now_ms, *fields.values()), refusal=_FENCED)
        result = await self._store.writer.submit(Unit((guard, *steps, own, *told)))
        if isinstance(result, Declined):
            raise SupersededError if result.refusal == _FENCED else DeclinedError(result.refusal)
        row = result.rows[1 + len(steps)]
        assert row is not None, "the row that was written"
        self.instance = _instance(row)

    async def renew(self) -> None:
        """For as long again, from now."""
        one, until_ms = self.instance, self._instances.clock.now_ms() + round(self._for_s * 1000)
        unit = Unit((Step(RENEW_CLAIM, (one.user_id, one.fence, until_ms), refusal=_FENCED),))
        if isinstance(await self._store.writer.submit(unit), Declined):
            raise SupersededError

    async def release(self, *, after_s: float = 0.0) -> None:
        """Let go: others may have it in so many seconds, if anything is due. A claim that has passed on is left alone."""
        one, until_ms = self.instance, self._instances.clock.now_ms() + round(after_s * 1000)
        await self._store.writer.submit(Unit((Step(RELEASE, (one.user_id, one.fence, until_ms)),)))

    async def reread(self) -> None:
        """The row as it is now."""
        found = await self._instances.of(self.instance.user_id)
        if found is None or found.fence != self.instance.fence:
            raise SupersededError
        self.instance = found
        self.wished = found.wished

    # --- things ----------------------------------------------------------------------------------

    async def resources(self) -> list[Resource]:
        return await self._instances.resources(self.instance)

    def intending(self, kind: str, name: str) -> Step:
        """The step that says, before it is made, that something is going to be: one that is open already stays as it is."""
        one, now_ms = self.instance, self._instances.clock.now_ms()
        return Step(INSERT_RESOURCE, (new_id("res", now_ms), one.user_id, one.generation, kind, name, now_ms))

    def making(self, kind: str, name: str, upstream_id: str) -> Step:
        """The step that says that it is there, and what it is called."""
        one, now_ms = self.instance, self._instances.clock.now_ms()
        return Step(MAKE_LIVE, (one.user_id, one.generation, kind, name, upstream_id, now_ms))

    def ending(self, resource: Resource, *, is_lost: bool = False) -> Step:
        """The step that says that it is not there any more; `is_lost`: that nobody can tell."""
        now_ms = self._instances.clock.now_ms()
        key = (resource.user_id, resource.generation, resource.kind, resource.name)
        return Step(END_RESOURCE, (*key, "lost" if is_lost else "gone", now_ms))


def _instance(row: Row) -> Instance:
    return Instance(*cast("tuple[Any, ...]", row))


def _resource(row: Row) -> Resource:
    return Resource(*cast("tuple[Any, ...]", row))
