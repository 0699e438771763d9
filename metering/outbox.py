"""What other systems are to be told: messages whose bytes are fixed when they are written, in the unit of what
they tell of.

A message is delivered at least once, by whichever worker moves its `due_at_ms` first; its receiver knows it by its
id. Attempts are bounded and counted when they begin, so that a process that dies of one does not repeat it for ever.
"""

from collections.abc import Sequence
from typing import Any, cast

import orjson

from metering.clock import Clock, instant
from metering.ids import new_id
from metering.store.store import Store
from metering.store.writer import Declined, Step, Unit
from metering.values import immutable

OUTBOX_ATTEMPTS_MAX = 12
RETRY_FIRST_S, RETRY_FACTOR = 5.0, 2.5
"""After the first attempt, and by how much each pause is longer than the one before: 22 hours in all."""
PAUSE_S_MAX = RETRY_FIRST_S * RETRY_FACTOR ** (OUTBOX_ATTEMPTS_MAX - 2)
"""Before the last attempt. What is due only later is so by a clock that was set back since."""
CLAIM_S = 30.0
"""A claimed message is nobody else's for so long: longer than an attempt may take."""
OUTBOX_KEPT_S = 7 * 86_400.0
"""Delivered messages, for whoever asks."""
GIVEN_UP_KEPT_S = 90 * 86_400.0
"""Messages given up, until somebody has them sent again."""
DELETED_AT_ONCE = 1_000
LISTED_MAX = 1_000
ERROR_CHARS_MAX = 200

TAKEN, MISSING = "taken", "missing"
NO_ANSWER_KNOWN = "no answer is known: the process died or was stopped"

_WAITING = "delivered_at_ms IS NULL AND gave_up_at_ms IS NULL"
_COLUMNS = (
    "id, kind, endpoint, body, created_at_ms, due_at_ms, attempts, delivered_at_ms, gave_up_at_ms, last_error"
)

INSERT_MESSAGE = """
INSERT INTO outbox (id, kind, endpoint, body, created_at_ms, due_at_ms, attempts) VALUES (?1, ?2, ?3, ?4, ?5, ?5, 0)"""
SELECT_DUE = f"""
SELECT {_COLUMNS} FROM outbox WHERE endpoint = ?1 AND due_at_ms <= ?2 AND {_WAITING} ORDER BY due_at_ms LIMIT ?3"""
CLAIM_MESSAGE = f"""
UPDATE outbox SET due_at_ms = ?3, attempts = attempts + 1, last_error = ?4
WHERE id = ?1 AND due_at_ms = ?2 AND {_WAITING}"""
# Whichever attempt it was: the receiver has it.
MARK_DELIVERED = """
UPDATE outbox SET delivered_at_ms = ?2, gave_up_at_ms = NULL, last_error = NULL WHERE id = ?1 AND delivered_at_ms IS NULL"""
# Not where another attempt has begun since.
MARK_FAILED = (
    f"UPDATE outbox SET due_at_ms = ?3, last_error = ?4 WHERE id = ?1 AND attempts = ?2 AND {_WAITING}"
)
MARK_GIVEN_UP = (
    f"UPDATE outbox SET gave_up_at_ms = ?3, last_error = ?4 WHERE id = ?1 AND attempts = ?2 AND {_WAITING}"
)
RETRY_MESSAGE = """
UPDATE outbox SET due_at_ms = ?2, attempts = 0, gave_up_at_ms = NULL WHERE id = ?1 AND delivered_at_ms IS NULL"""
DELETE_OLD = """
DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE delivered_at_ms < ?1 OR gave_up_at_ms < ?2 LIMIT ?3)"""
BRING_FORWARD = f"UPDATE outbox SET due_at_ms = ?1 WHERE due_at_ms > ?2 AND {_WAITING}"
COUNT_WAITING = f"SELECT COUNT(*) FROM outbox WHERE {_WAITING}"
SELECT_NEWEST = f"SELECT {_COLUMNS} FROM outbox ORDER BY id DESC LIMIT ?1"
SELECT_MESSAGE = f"SELECT {_COLUMNS} FROM outbox WHERE id = ?1"


class OutboxError(Exception):
    """A message cannot be sent again; the words are for the operator."""


class NoSuchMessageError(OutboxError):
    """There is none of that id."""


@immutable
class Message:
    """One row. `attempts`: how many had begun when it was read."""

    id: str
    kind: str
    endpoint: str
    body: str
    created_at_ms: int
    due_at_ms: int
    attempts: int = 0
    delivered_at_ms: int | None = None
    gave_up_at_ms: int | None = None
    last_error: str | None = None

    @property
    def state(self) -> str:
        """`delivered`, `given up` or `waiting`."""
        if self.delivered_at_ms is not None:
            return "delivered"
        return "waiting" if self.gave_up_at_ms is None else "given up"

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "endpoint": self.endpoint,
            "state": self.state,
            "attempts": self.attempts,
            "last_error": self.last_error,
            "created_at": instant(self.created_at_ms),
            "due_at": instant(self.due_at_ms) if self.state == "waiting" else None,
            "delivered_at": None if self.delivered_at_ms is None else instant(self.delivered_at_ms),
            "gave_up_at": None if self.gave_up_at_ms is None else instant(self.gave_up_at_ms),
            "body": orjson.loads(self.body),
        }


def retry_after_s(attempts: int) -> float:
    """The pause after so many attempts."""
    return RETRY_FIRST_S * RETRY_FACTOR ** (attempts - 1)


def new_message(kind: str, endpoint: str, document: dict[str, Any], now_ms: int) -> Message:
    """A message to be written; its bytes are these from now on."""
    return Message(new_id("msg", now_ms), kind, endpoint, orjson.dumps(document).decode(), now_ms, now_ms)


def adding(message: Message) -> Step:
    """The step that writes it, for a unit of the caller's."""
    params = (message.id, message.kind, message.endpoint, message.body, message.created_at_ms)
    return Step(INSERT_MESSAGE, params)


class Outbox:
    """The rows, bound to one store. Everything here raises Refused(STORE_UNAVAILABLE)."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def due(self, endpoint: str, *, at_most: int) -> list[Message]:
        """What is to be sent there by now."""
        rows = await self._store.readers.rows(SELECT_DUE, (endpoint, self._clock.now_ms(), at_most))
        return _messages(rows)

    async def claim(self, message: Message) -> bool:
        """Take a message for one attempt; False when another worker has."""
        attempt = message.attempts + 1
        # If nothing more is heard of it: the next attempt, or after the last one its end.
        pause_s = CLAIM_S if attempt >= OUTBOX_ATTEMPTS_MAX else max(CLAIM_S, retry_after_s(attempt))
        due_at_ms = self._in_ms(pause_s)
        params = (message.id, message.due_at_ms, due_at_ms, NO_ANSWER_KNOWN)
        unit = Unit((Step(CLAIM_MESSAGE, params, refusal=TAKEN),))
        return not isinstance(await self._store.writer.submit(unit), Declined)

    async def delivered(self, message: Message) -> None:
        """Kept in the writer's queue whatever becomes of the store: the receiver should hear of it once."""
        step = Step(MARK_DELIVERED, (message.id, self._clock.now_ms()))
        await self._store.writer.submit(Unit((step,), must_keep=True))

    async def failed(self, message: Message, error: str) -> None:
        """The attempt that was claimed failed; the next comes by itself."""
        attempts = message.attempts + 1
        params = (message.id, attempts, self._in_ms(retry_after_s(attempts)), error[:ERROR_CHARS_MAX])
        await self._store.writer.submit(Unit((Step(MARK_FAILED, params),)))

    async def give_up(self, message: Message, error: str, *, attempts: int) -> bool:
        """After so many attempts there is no further one, unless somebody asks for it; False when another worker
        knows better."""
        params = (message.id, attempts, self._clock.now_ms(), error[:ERROR_CHARS_MAX])
        unit = Unit((Step(MARK_GIVEN_UP, params, refusal=TAKEN),))
        return not isinstance(await self._store.writer.submit(unit), Declined)

    async def waiting(self) -> int:
        """How many are neither delivered nor given up."""
        row = await self._store.readers.row(COUNT_WAITING)
        assert row is not None
        return cast("int", row[0])

    async def forget_old(self) -> None:
        """Delete some of what nobody needs any more."""
        now_ms = self._clock.now_ms()
        bounds = (now_ms - round(OUTBOX_KEPT_S * 1000), now_ms - round(GIVEN_UP_KEPT_S * 1000))
        await self._store.writer.submit(Unit((Step(DELETE_OLD, (*bounds, DELETED_AT_ONCE)),)))

    async def bring_forward(self) -> None:
        """Have sent now what waits for an instant that came once already."""
        step = Step(BRING_FORWARD, (self._clock.now_ms(), self._in_ms(PAUSE_S_MAX)))
        await self._store.writer.submit(Unit((step,)))

    async def newest(self, *, at_most: int) -> list[Message]:
        assert 0 <= at_most <= LISTED_MAX
        return _messages(await self._store.readers.rows(SELECT_NEWEST, (at_most,)))

    async def retry(self, message_id: str) -> Message:
        """Send it again from now on, with all its attempts. Raises OutboxError, where it is not there or delivered."""
        step = Step(RETRY_MESSAGE, (message_id, self._clock.now_ms()), refusal=MISSING)
        is_refused = isinstance(await self._store.writer.submit(Unit((step,))), Declined)
        found = _messages(await self._store.readers.rows(SELECT_MESSAGE, (message_id,)))
        if not found:
            raise NoSuchMessageError(f"there is no message {message_id} in the outbox")
        if is_refused:
            raise OutboxError(f"{message_id} is delivered already: it can be sent again only where it is not")
        return found[0]

    def _in_ms(self, seconds: float) -> int:
        return self._clock.now_ms() + round(seconds * 1000)


def _messages(rows: Sequence[tuple[object, ...]]) -> list[Message]:
    return [Message(*row) for row in rows]  # type: ignore[arg-type]  # the columns' types are the schema's
