"""Users and their gateway tokens: who may call, on which plan. Tokens are kept as SHA-256 only.

Every change that running workers must hear of leaves a row in `changes` in the same unit of work.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import cast

from metering.clock import Clock
from metering.ids import new_id
from metering.store.store import Store
from metering.store.writer import Declined, Row, Step, Unit

TOKEN_PREFIX = "amp_"
TOKEN_BYTES = 32
SHOWN_PREFIX_CHARS = 10
USER_ID_MAX_CHARS = 128
_USER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]*")


class DirectoryError(ValueError):
    """A user or token cannot be made or found; the message is for the operator."""


class NotFoundError(DirectoryError):
    """There is no such user or token."""


@dataclass(frozen=True, slots=True)
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

    def plan_at(self, now_ms: int) -> str:
        """The plan in force."""
        return plan_at(now_ms, self.plan, self.plan_until_ms, self.next_plan)

    def coming_plan(self, now_ms: int) -> tuple[int, str] | None:
        """When another plan begins, and which; None when nothing is arranged."""
        if self.plan_until_ms is None or self.next_plan is None or now_ms >= self.plan_until_ms:
            return None
        return self.plan_until_ms, self.next_plan


@dataclass(frozen=True, slots=True)
class GatewayToken:
    """A gateway token without its secret."""

    id: str
    user_id: str
    prefix: str
    label: str | None
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None

    def is_live(self, now_ms: int) -> bool:
        return self.revoked_at_ms is None and (self.expires_at_ms is None or now_ms < self.expires_at_ms)


@dataclass(frozen=True, slots=True)
class Credential:
    """What authentication needs to know of a gateway token."""

    token_id: str
    user_id: str
    plan: str
    status: str
    expires_at_ms: int | None
    revoked_at_ms: int | None
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


USER_COLUMNS = "id, email, name, plan, status, created_at, plan_until_ms, next_plan"
TOKEN_COLUMNS = "id, user_id, token_prefix, label, created_at_ms, expires_at_ms, revoked_at_ms"

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
SELECT_USER = f"SELECT {USER_COLUMNS} FROM users WHERE id = ?1"
SELECT_USERS = f"SELECT {USER_COLUMNS} FROM users ORDER BY id"
INSERT_TOKEN = """
INSERT INTO gateway_tokens (id, user_id, token_hash, token_prefix, label, created_at_ms, expires_at_ms)
SELECT ?1, id, ?3, ?4, ?5, ?6, ?7 FROM users WHERE id = ?2 RETURNING id"""
REVOKE_TOKEN = """
UPDATE gateway_tokens SET revoked_at_ms = ?2 WHERE id = ?1 AND revoked_at_ms IS NULL RETURNING user_id"""
SHORTEN_TOKEN = """
UPDATE gateway_tokens
SET expires_at_ms = CASE WHEN expires_at_ms < ?2 THEN expires_at_ms ELSE ?2 END
WHERE id = ?1 AND revoked_at_ms IS NULL RETURNING id"""
SELECT_TOKENS = f"SELECT {TOKEN_COLUMNS} FROM gateway_tokens WHERE user_id = ?1 ORDER BY id"
SELECT_TOKEN = f"SELECT {TOKEN_COLUMNS} FROM gateway_tokens WHERE id = ?1"
SELECT_TOKEN_BY_PREFIX = f"""
SELECT {TOKEN_COLUMNS} FROM gateway_tokens WHERE token_prefix = ?1"""
SELECT_CREDENTIAL = """
SELECT t.id, u.id, u.plan, u.status, t.expires_at_ms, t.revoked_at_ms, u.plan_until_ms, u.next_plan,
    COALESCE(c.allowance, 0)
FROM gateway_tokens t JOIN users u ON u.id = t.user_id
LEFT JOIN accounts c ON c.owner = 'user:' || u.id AND c.meter = 'credit' AND c.period = ''
WHERE t.token_hash = ?1"""
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
        return User(*row)  # type: ignore[arg-type]  # the columns' types are the schema's

    async def users(self) -> list[User]:
        return [User(*row) for row in await self._store.readers.rows(SELECT_USERS)]  # type: ignore[arg-type]  # as above

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

    async def disable(self, user_id: str) -> User:
        """All tokens of the user are refused from now on (403); requests in flight finish."""
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
        self, user_id: str, *, label: str | None = None, expires_at_ms: int | None = None
    ) -> tuple[str, GatewayToken]:
        """A new gateway token, shown this once, and its record."""
        secret = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        step, token_id = self._insertion(user_id, secret, label, expires_at_ms)
        if isinstance(await self._store.writer.submit(Unit((step,))), Declined):
            raise NotFoundError(f"there is no user {user_id}")
        return secret, await self.token(token_id)

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

    async def revoke(self, token_id: str) -> GatewayToken:
        """Refused by every worker within a second; requests in flight finish. Revoking twice is no error."""
        token = await self.token(token_id)
        now_ms = self._clock.now_ms()
        unit = Unit(
            (
                Step(REVOKE_TOKEN, (token.id, now_ms), refusal="revoked"),
                Step(INSERT_CHANGE, ("token", token.id, now_ms)),
            )
        )
        await self._store.writer.submit(unit)
        return await self.token(token.id)

    async def rotate(self, token_id: str, *, overlap_s: float) -> tuple[str, GatewayToken]:
        """A successor with the same label; the old one lives `overlap_s` longer, in the same unit of work."""
        old = await self.token(token_id)
        now_ms = self._clock.now_ms()
        if not old.is_live(now_ms):
            raise DirectoryError(f"gateway token {old.id} is revoked or expired: create a new one")
        secret = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        step, new_token_id = self._insertion(old.user_id, secret, old.label, old.expires_at_ms)
        ends_ms = now_ms + round(overlap_s * 1000)
        unit = Unit(
            (
                step,
                Step(SHORTEN_TOKEN, (old.id, ends_ms), refusal="revoked"),
                Step(INSERT_CHANGE, ("token", old.id, now_ms)),
            )
        )
        if isinstance(await self._store.writer.submit(unit), Declined):
            raise DirectoryError(f"gateway token {old.id} has just been revoked: create a new one")
        return secret, await self.token(new_token_id)

    def _insertion(
        self, user_id: str, secret: str, label: str | None, expires_at_ms: int | None
    ) -> tuple[Step, str]:
        now_ms = self._clock.now_ms()
        token_id = new_id("tok", now_ms)
        params = (
            token_id,
            user_id,
            hash_of(secret),
            secret[:SHOWN_PREFIX_CHARS],
            label,
            now_ms,
            expires_at_ms,
        )
        return Step(INSERT_TOKEN, params, refusal="missing"), token_id

    # --- for running workers -----------------------------------------------------------------------

    async def credential(self, token_hash: str) -> Credential | None:
        row = await self._store.readers.row(SELECT_CREDENTIAL, (token_hash,))
        return Credential(*row) if row else None  # type: ignore[arg-type]  # the columns' types are the schema's

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


def _token(row: Row) -> GatewayToken:
    return GatewayToken(*row)  # type: ignore[arg-type]  # the columns' types are the schema's
