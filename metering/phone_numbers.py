"""Whose a phone number is: assigned by an operator, one to a user, and who had it when.

A number passes on: released from one user it can be assigned to another. It is an object of its user's as any other
(metering/objects.py), released under the same conditions; what it was used for stays with who had it then.
"""

import re
from typing import Any, cast

from metering.clock import Clock, instant
from metering.objects import BIND_OBJECT, OWNED_BY_ANOTHER, ObjectId, ObjectsError, releasing
from metering.store.readers import Readers
from metering.store.store import Store
from metering.store.writer import Declined, Step, Unit
from metering.users import NotFoundError
from metering.values import immutable

VENDOR, KIND = "bland", "number"
ASSIGNED = "operator"
"""Instead of the request that handed an object out."""
LISTED_MAX = 10_000
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_UNKNOWN_USER, _HAS_ONE = "unknown_user", "has_one"

CHECK_USER = "SELECT 1 FROM users WHERE id = ?1"
CHECK_HAS_NONE = """
SELECT 1 WHERE NOT EXISTS (
    SELECT 1 FROM object_terms WHERE vendor = ?1 AND kind = ?2 AND user_id = ?3 AND until_ms IS NULL)"""
BEGIN_TERM = """
INSERT INTO object_terms (vendor, kind, upstream_id, user_id, from_ms) VALUES (?1, ?2, ?3, ?4, ?5)"""
SELECT_NOW = """
SELECT upstream_id FROM object_terms WHERE vendor = ?1 AND kind = ?2 AND user_id = ?3 AND until_ms IS NULL"""
SELECT_TERMS = """
SELECT upstream_id, user_id, from_ms, until_ms FROM object_terms WHERE vendor = ?1 AND kind = ?2
ORDER BY until_ms IS NOT NULL, seq DESC LIMIT ?3"""


@immutable
class Term:
    """Who had a number, from when on, and until when; None: it is theirs."""

    phone_number: str
    user_id: str
    from_ms: int
    until_ms: int | None

    def as_json(self) -> dict[str, Any]:
        return {
            "phone_number": self.phone_number,
            "user": self.user_id,
            "from": instant(self.from_ms),
            "until": None if self.until_ms is None else instant(self.until_ms),
        }


class PhoneNumbers:
    """The numbers, bound to one store. Everything raises Refused(STORE_UNAVAILABLE)."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def assign(self, user_id: str, phone_number: str, *, replaces: bool = False) -> str | None:
        """Give a number to a user; with `replaces`, for the one they have, which is released: that one.

        Raises NotFoundError: no such user; ObjectsError: it is no number, taken, the user has one (or, with `replaces`,
        has requests under way that may be about it).
        """
        if _E164.fullmatch(phone_number) is None:
            raise ObjectsError(f"given {phone_number!r}, expected a phone number in full, as in +14155550100")
        now_ms, number = self._clock.now_ms(), ObjectId(VENDOR, KIND, phone_number)
        old = await self.of(user_id)
        if old == phone_number:
            return None
        freed = (
            ()
            if old is None or not replaces
            else releasing(number._replace(upstream_id=old), user_id, now_ms)
        )
        steps = (
            Step(CHECK_USER, (user_id,), refusal=_UNKNOWN_USER),
            *freed,
            Step(CHECK_HAS_NONE, (VENDOR, KIND, user_id), refusal=_HAS_ONE),
            Step(BIND_OBJECT, (*number, user_id, ASSIGNED, now_ms), refusal=OWNED_BY_ANOTHER),
            Step(BEGIN_TERM, (*number, user_id, now_ms)),
        )
        result = await self._store.writer.submit(Unit(steps))
        if isinstance(result, Declined):
            raise _not_assigned(result.refusal, user_id, phone_number, old)
        return old

    async def of(self, user_id: str) -> str | None:
        """The number that a user has; None without one."""
        return await number_of(self._store.readers, user_id)

    async def terms(self, *, at_most: int = LISTED_MAX) -> list[Term]:
        """Who has, and then who had, which number; the newest first."""
        rows = await self._store.readers.rows(SELECT_TERMS, (VENDOR, KIND, at_most))
        return [Term(*cast("tuple[str, str, int, int | None]", row)) for row in rows]


async def number_of(readers: Readers, user_id: str) -> str | None:
    """The number that a user has; None without one. Raises Refused(STORE_UNAVAILABLE)."""
    row = await readers.row(SELECT_NOW, (VENDOR, KIND, user_id))
    return None if row is None else str(row[0])


def _not_assigned(refusal: str | None, user_id: str, phone_number: str, old: str | None) -> Exception:
    if refusal == _UNKNOWN_USER:
        return NotFoundError(f"no user {user_id}")
    if refusal == OWNED_BY_ANOTHER:
        return ObjectsError(f"{phone_number} is another user's: `phone release {phone_number}` first")
    if refusal == _HAS_ONE and old is not None:
        return ObjectsError(f"{user_id} has {old}: --replace releases that, and assigns {phone_number}")
    return ObjectsError(
        f"{user_id} has requests under way, or its number was changed meanwhile. Nothing is changed: repeat it"
    )
