"""Users and their gateway tokens: who may call, on which plan. Tokens are kept as SHA-256 only.

Every change that running workers must hear of leaves a row in `changes` in the same unit of work.
"""

import hashlib
import re
import secrets
import sys
from collections.abc import Sequence
from typing import Any, cast

from metering.admission import owner_of
from metering.clock import Clock, instant
from metering.ids import new_id
from metering.store.readers import Readers
from metering.store.store import Store
from metering.store.writer import Declined, Row, Step, Unit, Value
from metering.terms import (
    EVERYTHING,
    NO_LIMITS,
    Cap,
    Link,
    Scope,
    Terms,
    TokenLimits,
    decode_caps,
    decode_scope,
    encode_caps,
    encode_scope,
    terms_of,
)
from metering.values import immutable

TOKEN_PREFIX = "amp_"
TOKEN_BYTES = 32
SHOWN_PREFIX_CHARS = 10
USER_ID_MAX_CHARS = 128
TOKEN_DEPTH_MAX = 4
"""Children of children: a chain has so many tokens below its first."""
CHILDREN_MAX = 100
"""Living children of one token."""
TOKENS_LISTED_MAX = 1_000
"""Descendants of one token in a list, the newest."""
TOKENS_LOOKED_THROUGH_MAX = 10_000
"""Of a user, dead ones included, to find which come from one of them."""
_USER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]*")


class DirectoryError(ValueError):
    """A user or token cannot be made or found; the message is for the operator."""


class NotFoundError(DirectoryError):
    """There is no such user or token."""


class NotLiveError(DirectoryError):
    """A token that was to be a parent is revoked or expired."""


@immutable
class User:
    """Who is billed. `created_at` in Unix seconds. From `plan_until_ms` on, the plan is `next_plan`."""

    id: str
    email: str | None
    name: str | None
    plan: str
    status: str
    created_at: int
    plan_until_ms: int | None = None
    next_plan: str | None = None
    caps: tuple[Cap, ...] = ()

    def plan_at(self, now_ms: int) -> str:
        """The plan in force."""
        return plan_at(now_ms, self.plan, self.plan_until_ms, self.next_plan)

    def coming_plan(self, now_ms: int) -> tuple[int, str] | None:
        """When another plan begins, and which; None when nothing is arranged."""
        if self.plan_until_ms is None or self.next_plan is None or now_ms >= self.plan_until_ms:
            return None
        return self.plan_until_ms, self.next_plan


@immutable
class GatewayToken:
    """A gateway token without its secret.

    `family`: the first of the line of rotated tokens that it belongs to, whose accounts its caps are.
    `successor_id`: what it was replaced by.
    """

    id: str
    user_id: str
    prefix: str
    label: str | None
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None
    parent_id: str | None = None
    family: str = ""
    successor_id: str | None = None
    scope: Scope = EVERYTHING
    caps: tuple[Cap, ...] = ()
    limits: TokenLimits = NO_LIMITS

    @property
    def link(self) -> Link:
        """Its place in a chain."""
        return Link(self.family, self.scope, self.caps, self.limits)

    def state(self, now_ms: int) -> str:
        """`live`, `expired` or `revoked`."""
        if self.revoked_at_ms is not None:
            return "revoked"
        return "live" if self.is_live(now_ms) else "expired"

    def as_json(self, now_ms: int) -> dict[str, Any]:
        return {
            "id": self.id,
            "user": self.user_id,
            "prefix": self.prefix,
            "label": self.label,
            "state": self.state(now_ms),
            "created_at": instant(self.created_at_ms),
            "expires_at": _instant_or_none(self.expires_at_ms),
            "revoked_at": _instant_or_none(self.revoked_at_ms),
            "parent": self.parent_id,
            "replaced_by": self.successor_id,
            "scope": self.scope.as_json(),
            "caps": [cap.as_json() for cap in self.caps],
            "limits": self.limits.as_json(),
        }

    def is_live(self, now_ms: int) -> bool:
        return self.revoked_at_ms is None and (self.expires_at_ms is None or now_ms < self.expires_at_ms)


@immutable
class Credential:
    """What authentication needs to know of a gateway token and its chain (metering/terms.py).

    It expires with the first of the chain to expire, and is revoked with the first to be revoked. `ancestors`: the
    ids of those above it; what changes with them changes this.
    """

    token_id: str
    user_id: str
    plan: str
    status: str
    expires_at_ms: int | None
    revoked_at_ms: int | None
    ancestors: tuple[str, ...] = ()
    terms: Terms | None = None
    plan_until_ms: int | None = None
    next_plan: str | None = None
    granted_nanousd: int = 0
    """All prepaid credit that was ever granted, less what was taken back."""

    def plan_at(self, now_ms: int) -> str:
        """The plan in force."""
        return plan_at(now_ms, self.plan, self.plan_until_ms, self.next_plan)


def plan_at(now_ms: int, plan: str, until_ms: int | None, next_plan: str | None) -> str:
    """Which plan is in force: computed wherever it is asked, so that it changes without anybody writing."""
    return next_plan if next_plan is not None and until_ms is not None and now_ms >= until_ms else plan


USER_COLUMNS = "id, email, name, plan, status, created_at, plan_until_ms, next_plan, caps"
TOKEN_COLUMNS = """id, user_id, token_prefix, label, created_at_ms, expires_at_ms, revoked_at_ms, parent_id, family,
    successor_id, scope, caps, requests_per_minute, tokens_per_minute, concurrent_requests"""

INSERT_USER = """
INSERT INTO users (id, email, name, plan, status, created_at, updated_at)
VALUES (?1, ?2, NULL, ?3, 'active', ?4, ?4) ON CONFLICT (id) DO NOTHING RETURNING id"""
UPDATE_PLAN = """
UPDATE users SET plan = ?2, plan_until_ms = ?4, next_plan = ?5, updated_at = ?3 WHERE id = ?1 RETURNING id"""
# The plan in force stays until then, also where that is itself the successor of one whose time is over.
UPDATE_NEXT_PLAN = """
UPDATE users SET plan = CASE WHEN plan_until_ms <= ?4 THEN next_plan ELSE plan END, plan_until_ms = ?5,
    next_plan = ?2, updated_at = ?3
WHERE id = ?1 RETURNING id"""
UPDATE_STATUS = "UPDATE users SET status = ?2, updated_at = ?3 WHERE id = ?1 RETURNING id"
UPDATE_CAPS = "UPDATE users SET caps = ?2, updated_at = ?3 WHERE id = ?1 RETURNING id"
SELECT_USER = f"SELECT {USER_COLUMNS} FROM users WHERE id = ?1"
SELECT_USERS = f"SELECT {USER_COLUMNS} FROM users ORDER BY id"
INSERT_TOKEN = """
INSERT INTO gateway_tokens (id, user_id, token_hash, token_prefix, label, created_at_ms, expires_at_ms, parent_id,
    family, scope, caps, requests_per_minute, tokens_per_minute, concurrent_requests)
SELECT ?1, id, ?3, ?4, ?5, ?6, COALESCE(?7, (SELECT expires_at_ms FROM gateway_tokens WHERE id = ?8)), ?8,
    ?1, ?9, ?10, ?11, ?12, ?13 FROM users WHERE id = ?2 RETURNING id"""

# Whether a child may be made, asked in the unit that makes it; each answers a row or nothing.
IS_LIVE = "revoked_at_ms IS NULL AND COALESCE(expires_at_ms, 9223372036854775807) > ?2"
"""In the words of the index gateway_tokens_by_parent: the dead are not even looked at."""
CHECK_PARENT = f"SELECT id FROM gateway_tokens WHERE id = ?1 AND {IS_LIVE} AND user_id = ?3"
CHECK_EXPIRY = (
    "SELECT id FROM gateway_tokens WHERE id = ?1 AND (expires_at_ms IS NULL OR expires_at_ms >= ?2)"
)
CHECK_CHILDREN = f"""
SELECT 1 WHERE (SELECT COUNT(*) FROM gateway_tokens WHERE parent_id = ?1 AND {IS_LIVE}) < ?3"""
CHECK_DEPTH = """
WITH RECURSIVE chain (id) AS (
    SELECT id FROM gateway_tokens WHERE id = ?1
    UNION SELECT t.parent_id FROM chain c JOIN gateway_tokens t ON t.id = c.id WHERE t.parent_id IS NOT NULL)
SELECT 1 WHERE (SELECT COUNT(*) FROM chain) <= ?2"""

# A token and those that it replaced, which may live on for a while.
UP_TO = """id IN (WITH RECURSIVE before (id, family) AS (
        SELECT id, family FROM gateway_tokens WHERE id = ?1
        UNION SELECT t.id, t.family FROM before b JOIN gateway_tokens t
            ON t.family = b.family AND t.successor_id = b.id)
    SELECT id FROM before)"""
INSERT_CHANGES_UP_TO = f"""
INSERT INTO changes (kind, subject, at_ms) SELECT 'token', id, ?2 FROM gateway_tokens WHERE {UP_TO}"""
# These, and all that come from them; below what is dead already, nothing lives.
REVOKE_TOKEN = f"""
WITH RECURSIVE line (id) AS (
    SELECT id FROM gateway_tokens WHERE {UP_TO}
    UNION SELECT t.id FROM line l JOIN gateway_tokens t ON t.parent_id = l.id WHERE {IS_LIVE})
UPDATE gateway_tokens SET revoked_at_ms = ?2
WHERE id IN (SELECT id FROM line) AND revoked_at_ms IS NULL RETURNING id"""
INSERT_SUCCESSOR = f"""
INSERT INTO gateway_tokens (id, user_id, token_hash, token_prefix, label, created_at_ms, expires_at_ms, parent_id,
    family, scope, caps, requests_per_minute, tokens_per_minute, concurrent_requests)
SELECT ?3, user_id, ?4, ?5, label, ?2, expires_at_ms, parent_id, family, scope, caps, requests_per_minute,
    tokens_per_minute, concurrent_requests
FROM gateway_tokens WHERE id = ?1 AND {IS_LIVE} AND successor_id IS NULL RETURNING id"""
SHORTEN_TOKEN = """
UPDATE gateway_tokens
SET expires_at_ms = CASE WHEN expires_at_ms < ?2 THEN expires_at_ms ELSE ?2 END, successor_id = ?3
WHERE id = ?1"""
MOVE_CHILDREN = f"UPDATE gateway_tokens SET parent_id = ?3 WHERE parent_id = ?1 AND {IS_LIVE}"
SELECT_TOKENS = f"SELECT {TOKEN_COLUMNS} FROM gateway_tokens WHERE user_id = ?1 ORDER BY id"
SELECT_TOKEN = f"SELECT {TOKEN_COLUMNS} FROM gateway_tokens WHERE id = ?1"
SELECT_TOKEN_BY_PREFIX = f"""
SELECT {TOKEN_COLUMNS} FROM gateway_tokens WHERE token_prefix = ?1"""
SELECT_LIVING_DESCENDANTS = f"""
WITH RECURSIVE line (id) AS (
    SELECT id FROM gateway_tokens WHERE {IS_LIVE}
        AND parent_id IN (SELECT id FROM gateway_tokens WHERE family = ?1)
    UNION SELECT t.id FROM line l JOIN gateway_tokens t ON t.parent_id = l.id WHERE {IS_LIVE})
SELECT {TOKEN_COLUMNS} FROM gateway_tokens WHERE id IN (SELECT id FROM line) ORDER BY id DESC LIMIT ?3"""
SELECT_LINEAGE = """
SELECT id, parent_id, family FROM gateway_tokens WHERE user_id = ?1 ORDER BY id DESC LIMIT ?2"""
SELECT_IS_BELOW = """
WITH RECURSIVE above (id) AS (
    SELECT parent_id FROM gateway_tokens WHERE id = ?1 AND parent_id IS NOT NULL
    UNION SELECT t.parent_id FROM above a JOIN gateway_tokens t ON t.id = a.id WHERE t.parent_id IS NOT NULL)
SELECT t.id FROM above a JOIN gateway_tokens t ON t.id = a.id WHERE t.family = ?2"""
# The token first, then those it comes from.
_SELECT_CREDENTIAL = """
WITH RECURSIVE chain (id, depth) AS (
    SELECT id, 0 FROM gateway_tokens WHERE {column} = ?1
    UNION ALL SELECT t.parent_id, c.depth + 1 FROM chain c JOIN gateway_tokens t ON t.id = c.id
        WHERE t.parent_id IS NOT NULL AND c.depth < ?2)
SELECT t.id, u.id, u.plan, u.status, u.plan_until_ms, u.next_plan, COALESCE(a.allowance, 0), u.caps,
    t.expires_at_ms, t.revoked_at_ms, t.parent_id, t.family, t.scope, t.caps,
    t.requests_per_minute, t.tokens_per_minute, t.concurrent_requests
FROM chain c JOIN gateway_tokens t ON t.id = c.id JOIN users u ON u.id = t.user_id
LEFT JOIN accounts a ON a.owner = 'user:' || u.id AND a.meter = 'credit' AND a.period = ''
ORDER BY c.depth"""
SELECT_CREDENTIAL, SELECT_CREDENTIAL_BY_ID = (
    _SELECT_CREDENTIAL.format(column=column) for column in ("token_hash", "id")
)
INSERT_CHANGE = "INSERT INTO changes (kind, subject, at_ms) VALUES (?1, ?2, ?3)"
SELECT_CHANGES = "SELECT seq, kind, subject FROM changes WHERE seq >= ?1 ORDER BY seq LIMIT ?2"
SELECT_LAST_CHANGE = "SELECT COALESCE(MAX(seq), 0) FROM changes"


def hash_of(gateway_token: str) -> str:
    """How a gateway token stands in the store. It has 256 bits of its own: no salt or stretching needed."""
    return hashlib.sha256(gateway_token.encode("utf-8", "surrogateescape")).hexdigest()


class Directory:
    """Users and tokens of one store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    # --- users -----------------------------------------------------------------------------------

    async def add_user(self, user_id: str, *, plan: str, email: str | None = None) -> User:
        """Raises DirectoryError when the id is malformed or taken."""
        if not _USER_ID.fullmatch(user_id) or len(user_id) > USER_ID_MAX_CHARS:
            raise DirectoryError(
                f"user id {user_id!r}: expected up to {USER_ID_MAX_CHARS} letters, digits and any of _.@+- "
                "beginning with a letter or digit"
            )
        now_s = self._clock.now_ms() // 1000
        unit = Unit((Step(INSERT_USER, (user_id, email, plan, now_s), refusal="exists"),))
        if isinstance(await self._store.writer.submit(unit), Declined):
            raise DirectoryError(f"user {user_id} exists already")
        return await self.user(user_id)

    async def user(self, user_id: str) -> User:
        row = await self._store.readers.row(SELECT_USER, (user_id,))
        if row is None:
            raise NotFoundError(f"there is no user {user_id}")
        return _user(row)

    async def users(self) -> list[User]:
        return [_user(row) for row in await self._store.readers.rows(SELECT_USERS)]

    async def set_plan(
        self, user_id: str, plan: str, *, until_ms: int | None = None, next_plan: str | None = None
    ) -> User:
        """Effective on running workers within a second; what is spent stays spent. From `until_ms` on it is
        `next_plan`. Whatever was arranged before is forgotten."""
        assert (until_ms is None) == (next_plan is None)
        await self._change(UPDATE_PLAN, user_id, plan, until_ms, next_plan)
        return await self.user(user_id)

    async def set_next_plan(self, user_id: str, next_plan: str, *, from_ms: int) -> User:
        """The plan in force stays until `from_ms`: how one moves down without taking back what was bought."""
        await self._change(UPDATE_NEXT_PLAN, user_id, next_plan, self._clock.now_ms(), from_ms)
        return await self.user(user_id)

    async def set_caps(self, user_id: str, caps: Sequence[Cap]) -> User:
        """These, and no others. Effective on running workers within a second; what is spent stays spent."""
        await self._change(UPDATE_CAPS, user_id, encode_caps(caps))
        return await self.user(user_id)

    async def disable(self, user_id: str) -> User:
        """All tokens of the user are refused from now on (403); requests in flight finish, work at vendors is ended."""
        await self._change(UPDATE_STATUS, user_id, "disabled")
        return await self.user(user_id)

    async def enable(self, user_id: str) -> User:
        await self._change(UPDATE_STATUS, user_id, "active")
        return await self.user(user_id)

    async def _change(self, sql: str, user_id: str, *values: str | int | None) -> None:
        """By a statement whose placeholders are the user, a value, the time in seconds, and the other values."""
        now_ms = self._clock.now_ms()
        unit = Unit(
            (
                Step(sql, (user_id, values[0], now_ms // 1000, *values[1:]), refusal="missing"),
                Step(INSERT_CHANGE, ("user", user_id, now_ms)),
            )
        )
        if isinstance(await self._store.writer.submit(unit), Declined):
            raise NotFoundError(f"there is no user {user_id}")

    # --- gateway tokens ----------------------------------------------------------------------------

    async def create_token(
        self,
        user_id: str,
        *,
        label: str | None = None,
        expires_at_ms: int | None = None,
        parent_id: str | None = None,
        scope: Scope = EVERYTHING,
        caps: Sequence[Cap] = (),
        limits: TokenLimits = NO_LIMITS,
    ) -> tuple[str, GatewayToken]:
        """A new gateway token, shown this once, and its record. Raises DirectoryError.

        With a parent, it is that token's child: it dies with it, and expires with it when not before.
        """
        now_ms = self._clock.now_ms()
        secret, token_id, making = minting(
            user_id,
            now_ms,
            label=label,
            expires_at_ms=expires_at_ms,
            parent_id=parent_id,
            scope=scope,
            caps=caps,
            limits=limits,
        )
        checks = () if parent_id is None else _child_checks(parent_id, user_id, now_ms, expires_at_ms)
        unit = Unit((*checks, making))
        result = await self._store.writer.submit(unit)
        if isinstance(result, Declined):
            raise await self._not_made(result.refusal, user_id, parent_id)
        return secret, await self.token(token_id)

    async def _not_made(self, refusal: str, user_id: str, parent_id: str | None) -> DirectoryError:
        if refusal == "missing" or parent_id is None:
            return NotFoundError(f"there is no user {user_id}")
        parent = await self.token(parent_id)
        if refusal == "expiry" and parent.expires_at_ms is not None:
            return DirectoryError(
                f"expected an expiry no later than the parent's, {instant(parent.expires_at_ms)}"
            )
        if refusal == "children":
            return DirectoryError(
                f"gateway token {parent_id} has {CHILDREN_MAX} living children: revoke some"
            )
        if refusal == "depth":
            return DirectoryError(
                f"gateway token {parent_id} is {TOKEN_DEPTH_MAX} levels below the first of its chain: no child can be"
            )
        if parent.user_id != user_id:
            return DirectoryError(f"gateway token {parent_id} is not of user {user_id}")
        return NotLiveError(f"gateway token {parent_id} is revoked or expired")

    async def token(self, token_id: str) -> GatewayToken:
        """By id, or by the prefix that `token list` shows when it is that of one token only."""
        rows = await self._store.readers.rows(SELECT_TOKEN, (token_id,))
        rows = rows or await self._store.readers.rows(SELECT_TOKEN_BY_PREFIX, (token_id,))
        if len(rows) != 1:
            raise NotFoundError(
                f"there is no gateway token {token_id}"
                if not rows
                else f"{token_id} is ambiguous: give the id"
            )
        return _token(rows[0])

    async def tokens(self, user_id: str) -> list[GatewayToken]:
        await self.user(user_id)
        return [_token(row) for row in await self._store.readers.rows(SELECT_TOKENS, (user_id,))]

    async def living_descendants(self, token_id: str) -> list[GatewayToken]:
        """All that come from a token of its family and are neither revoked nor expired: TOKENS_LISTED_MAX of them,
        the newest first."""
        token = await self.token(token_id)
        rows = await self._store.readers.rows(
            SELECT_LIVING_DESCENDANTS, (token.family, self._clock.now_ms(), TOKENS_LISTED_MAX)
        )
        return [_token(row) for row in rows]

    async def descendant(self, token_id: str, of_token_id: str) -> GatewayToken:
        """A token, dead or alive, if it comes from `of_token_id` or another of its family. Raises NotFoundError for
        any other, whether or not there is one."""
        family = (await self.token(of_token_id)).family
        row = await self._store.readers.row(SELECT_TOKEN, (token_id,))
        if row is None or await self._store.readers.row(SELECT_IS_BELOW, (token_id, family)) is None:
            raise NotFoundError(f"there is no gateway token {token_id} that comes from this one")
        return _token(row)

    async def revoke(self, token_id: str) -> GatewayToken:
        """It, those that it replaced, and all that come from any of them are refused by every worker within a second;
        requests in flight finish. Without another token that lives, its user's work at vendors is ended. Revoking twice is
        no error."""
        token = await self.token(token_id)
        now_ms = self._clock.now_ms()
        unit = Unit(
            (
                Step(REVOKE_TOKEN, (token.id, now_ms), refusal="revoked"),
                Step(INSERT_CHANGES_UP_TO, (token.id, now_ms)),
            )
        )
        await self._store.writer.submit(unit)
        return await self.token(token.id)

    async def rotate(self, token_id: str, *, overlap_s: float) -> tuple[str, GatewayToken]:
        """A successor with the same label, expiry, parent, scope, caps and limits, to which the children move; the
        old one lives `overlap_s` longer. One unit of work. Raises DirectoryError."""
        old = await self.token(token_id)
        now_ms = self._clock.now_ms()
        secret, new_token_id, succeeding = replacing(old.id, now_ms, overlap_s=overlap_s)
        steps = [*succeeding]
        if old.parent_id is not None:
            # Both count while they overlap: or rotating would be a way to have any number.
            steps.append(Step(CHECK_CHILDREN, (old.parent_id, now_ms, CHILDREN_MAX + 1), refusal="children"))
        result = await self._store.writer.submit(Unit(steps))
        if not isinstance(result, Declined):
            return secret, await self.token(new_token_id)
        if result.refusal == "children":
            raise DirectoryError(
                f"gateway token {old.parent_id} has {CHILDREN_MAX} living children: revoke some"
            )
        if (successor_id := (await self.token(old.id)).successor_id) is not None:
            raise DirectoryError(f"gateway token {old.id} was rotated already: rotate {successor_id}")
        raise DirectoryError(f"gateway token {old.id} is revoked or expired: create a new one")

    # --- for running workers -----------------------------------------------------------------------

    async def credential(self, token_hash: str) -> Credential | None:
        rows = await self._store.readers.rows(SELECT_CREDENTIAL, (token_hash, TOKEN_DEPTH_MAX))
        return _credential(rows) if rows else None

    async def credential_by_id(self, token_id: str) -> Credential | None:
        """Of a gateway token that we know by its id alone: nobody proves with that who they are."""
        rows = await self._store.readers.rows(SELECT_CREDENTIAL_BY_ID, (token_id, TOKEN_DEPTH_MAX))
        return _credential(rows) if rows else None

    async def last_change(self) -> int:
        row = await self._store.readers.row(SELECT_LAST_CHANGE)
        assert row is not None
        return cast("int", row[0])

    async def changes_since(self, seq: int, *, changes_max: int = 1_000) -> list[tuple[int, str, str]] | None:
        """(seq, kind, subject) of what happened after the change `seq` (0: from the first), oldest first.

        None when the store has no such change, though none is ever deleted: it was restored from a backup.
        """
        rows = await self._store.readers.rows(SELECT_CHANGES, (seq, changes_max + 1))
        if not seq:
            return cast("list[tuple[int, str, str]]", rows[:changes_max])
        if not rows or rows[0][0] != seq:
            return None
        return cast("list[tuple[int, str, str]]", rows[1:])


def minting(
    user_id: str,
    now_ms: int,
    *,
    label: str | None = None,
    expires_at_ms: int | None = None,
    parent_id: str | None = None,
    scope: Scope = EVERYTHING,
    caps: Sequence[Cap] = (),
    limits: TokenLimits = NO_LIMITS,
) -> tuple[str, str, Step]:
    """The secret and the id of a new gateway token, and the step that makes it: refused as `missing` without such a user."""
    secret, token_id = _new_secret(), new_id("tok", now_ms)
    params: tuple[Value, ...] = (
        *(token_id, user_id, hash_of(secret), secret[:SHOWN_PREFIX_CHARS], label, now_ms, expires_at_ms),
        *(parent_id, encode_scope(scope), encode_caps(caps)),
        *(limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_requests),
    )
    return secret, token_id, Step(INSERT_TOKEN, params, refusal="missing")


def replacing(old_id: str, now_ms: int, *, overlap_s: float) -> tuple[str, str, tuple[Step, ...]]:
    """The secret and the id of a token's successor, and the steps that make it: refused as `dead` where the old one is revoked,
    expired or has a successor."""
    secret, token_id = _new_secret(), new_id("tok", now_ms)
    params = (old_id, now_ms, token_id, hash_of(secret), secret[:SHOWN_PREFIX_CHARS])
    return (
        secret,
        token_id,
        (
            Step(INSERT_SUCCESSOR, params, refusal="dead"),
            Step(SHORTEN_TOKEN, (old_id, now_ms + round(overlap_s * 1000), token_id)),
            Step(MOVE_CHILDREN, (old_id, now_ms, token_id)),
            Step(INSERT_CHANGE, ("token", old_id, now_ms)),
        ),
    )


async def line_of(readers: Readers, user_id: str, token_id: str) -> list[str]:
    """The ids of a token, of those before and after it that rotating made, and of all that come from them, dead or
    alive: of the user's TOKENS_LOOKED_THROUGH_MAX newest. Raises Refused(STORE_UNAVAILABLE)."""
    rows = await readers.rows(SELECT_LINEAGE, (user_id, TOKENS_LOOKED_THROUGH_MAX))
    family = next((row[2] for row in rows if row[0] == token_id), None)
    children: dict[object, list[str]] = {}
    for row in rows:
        children.setdefault(row[1], []).append(str(row[0]))
    found: dict[str, None] = {}  # in order, each once
    level = [str(row[0]) for row in rows if row[2] == family] or [token_id]
    while level:
        found.update(dict.fromkeys(level))
        level = [child for one in level for child in children.get(one, ()) if child not in found]
    return list(found)


def _new_secret() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def _child_checks(parent_id: str, user_id: str, now_ms: int, expires_at_ms: int | None) -> tuple[Step, ...]:
    """Refuse a child, by name, in the unit that would make it: its parent may be revoked at the same instant."""
    checks = (
        Step(CHECK_PARENT, (parent_id, now_ms, user_id), refusal="parent"),
        Step(CHECK_DEPTH, (parent_id, TOKEN_DEPTH_MAX), refusal="depth"),
        Step(CHECK_CHILDREN, (parent_id, now_ms, CHILDREN_MAX), refusal="children"),
    )
    if expires_at_ms is None:
        return checks
    return (*checks, Step(CHECK_EXPIRY, (parent_id, expires_at_ms), refusal="expiry"))


def _credential(rows: Sequence[Row]) -> Credential | None:
    """From the rows of SELECT_CREDENTIAL. None for a chain that is longer than any that is made: what its first
    token allows is not known."""
    chain: list[Any] = list(rows)
    token_id, user_id, plan, status, plan_until_ms, next_plan, granted_nanousd, caps = chain[0][:8]
    of_tokens = [row[8:] for row in chain]
    if of_tokens[-1][2] is not None:
        return None
    links = [
        Link(row[3], decode_scope(row[4]), decode_caps(row[5]), TokenLimits(*row[6:])) for row in of_tokens
    ]
    return Credential(
        token_id=token_id,
        user_id=user_id,
        plan=sys.intern(plan),  # hundreds of thousands may be remembered, of a few plans
        status=sys.intern(status),
        expires_at_ms=min((row[0] for row in of_tokens if row[0] is not None), default=None),
        revoked_at_ms=min((row[1] for row in of_tokens if row[1] is not None), default=None),
        ancestors=tuple(row[0] for row in chain[1:]),
        terms=terms_of(links, owner_of(user_id), decode_caps(caps)),
        plan_until_ms=plan_until_ms,
        next_plan=next_plan,
        granted_nanousd=granted_nanousd,
    )


def _user(row: Row) -> User:
    values: list[Any] = list(row)
    values[8] = decode_caps(values[8])
    return User(*values)


def _token(row: Row) -> GatewayToken:
    values: list[Any] = list(row)
    values[10:] = decode_scope(values[10]), decode_caps(values[11]), TokenLimits(*values[12:])
    return GatewayToken(*values)


def _instant_or_none(at_ms: int | None) -> str | None:
    return None if at_ms is None else instant(at_ms)
