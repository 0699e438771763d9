"""Where a user's agent is told of what happens without it: one address for each, and messages on their way to it.

The token that such a message carries is made from the operator's secret and the user's id, so nothing is kept that
could be stolen.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

from metering.clock import Clock
from metering.outbox import adding, new_message
from metering.store.store import Store
from metering.store.writer import Declined, Step, Unit
from metering.users import NotFoundError

HOOK = "hook:"
"""What the names of agents' hooks begin with, as endpoints in the outbox; the user's id follows."""
HOOK_AFTER = "hook;"
TOKEN_PREFIX = "hook_"
HOOKS_LOOKED_AT = 500
"""Agents with messages that are due, looked at in one turn."""
DELIVERIES_KEPT_MS = 7 * 86_400_000
"""Vendors give a delivery up within a day or two."""
PRUNED_AT_ONCE = 1_000
SEEN, MISSING = "seen", "missing"

SET_HOOK = """
INSERT INTO agent_hooks (user_id, url, set_at_ms) SELECT id, ?2, ?3 FROM users WHERE id = ?1
ON CONFLICT (user_id) DO UPDATE SET url = excluded.url, set_at_ms = excluded.set_at_ms"""
DELETE_HOOK = "DELETE FROM agent_hooks WHERE user_id = ?1"
SELECT_HOOK = "SELECT url FROM agent_hooks WHERE user_id = ?1"
SELECT_DUE_HOOKS = """
SELECT o.endpoint, h.url FROM (
    SELECT DISTINCT endpoint FROM outbox
    WHERE endpoint >= ?1 AND endpoint < ?2 AND due_at_ms <= ?3 AND delivered_at_ms IS NULL AND gave_up_at_ms IS NULL
    LIMIT ?4
) o LEFT JOIN agent_hooks h ON h.user_id = substr(o.endpoint, ?5)"""
NOTE_DELIVERY = """
INSERT INTO webhook_deliveries (vendor, delivery_id, received_at_ms) VALUES (?1, ?2, ?3)
ON CONFLICT (vendor, delivery_id) DO NOTHING"""
PRUNE_DELIVERIES = """
DELETE FROM webhook_deliveries WHERE (vendor, delivery_id) IN
    (SELECT vendor, delivery_id FROM webhook_deliveries WHERE received_at_ms < ?1 LIMIT ?2)"""


def hook_token(secret: str, user_id: str) -> str:
    """What an agent knows our messages by: the same for a user as long as the operator's secret is."""
    digest = hmac.digest(secret.encode(), f"hook:{user_id}".encode(), hashlib.sha256)
    return TOKEN_PREFIX + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def endpoint_of(user_id: str) -> str:
    """The outbox's name for a user's agent."""
    return f"{HOOK}{user_id}"


class Hooks:
    """The addresses, and what vendors have told, bound to one store. Everything raises Refused(STORE_UNAVAILABLE)."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def put(self, user_id: str, url: str) -> None:
        """Where the user's agent is told from now on, also of what waits. Raises NotFoundError: no such user."""
        step = Step(SET_HOOK, (user_id, url, self._clock.now_ms()), refusal=MISSING)
        if isinstance(await self._store.writer.submit(Unit((step,))), Declined):
            raise NotFoundError(f"no user {user_id}")

    async def remove(self, user_id: str) -> bool:
        """Nobody is told any more; whether somebody was."""
        step = Step(DELETE_HOOK, (user_id,), refusal=MISSING)
        return not isinstance(await self._store.writer.submit(Unit((step,))), Declined)

    async def of(self, user_id: str) -> str | None:
        """The address of a user's agent; None without one."""
        row = await self._store.readers.row(SELECT_HOOK, (user_id,))
        return None if row is None else str(row[0])

    async def due(self) -> Sequence[tuple[str, str | None]]:
        """Agents with messages that are due: their names in the outbox, and their addresses; None where it was taken
        away since."""
        params = (HOOK, HOOK_AFTER, self._clock.now_ms(), HOOKS_LOOKED_AT, len(HOOK) + 1)
        rows = await self._store.readers.rows(SELECT_DUE_HOOKS, params)
        return [(str(name), None if url is None else str(url)) for name, url in rows]

    async def take(
        self, vendor: str, delivery_id: str, told: Sequence[tuple[str, str, dict[str, Any]]], *more: Step
    ) -> bool:
        """Note a delivery and write what agents are told of it (user, kind, document), in one unit with `more`; False
        when it was taken before."""
        now_ms = self._clock.now_ms()
        steps = [Step(NOTE_DELIVERY, (vendor, delivery_id, now_ms), refusal=SEEN)]
        for user_id, kind, document in told:
            steps.append(adding(new_message(kind, endpoint_of(user_id), document, now_ms)))
        return not isinstance(await self._store.writer.submit(Unit([*steps, *more])), Declined)

    def prune(self) -> None:
        """Let go of old deliveries, some at a time. Never waits, may be lost."""
        step = Step(PRUNE_DELIVERIES, (self._clock.now_ms() - DELIVERIES_KEPT_MS, PRUNED_AT_ONCE))
        self._store.writer.submit(Unit((step,)))
