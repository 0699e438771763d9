"""What a user has called: totals of all time by the ledger, and the newest calls, with what is kept of each. What was said in one,
word by word, is nowhere here.
"""

from collections.abc import Iterable
from typing import Any, cast

import orjson

from metering.clock import instant
from metering.ledger import IS_RESOLUTION
from metering.store.readers import Readers
from metering.store.writer import Step
from metering.usage import CALL_SECONDS
from metering.values import immutable

VENDOR, CALL = "bland", "call"
RECENT_MAX = 10
NANOUSD_PER_CENT = 10_000_000
SUMMARY_CHARS_MAX = 4_000
"""A longer one is cut: it says in a few words what a call was about."""
COMPLETED, FAILED = "completed", "failed"

# What is not told again stays as it was told.
KEEP_RECORD = """
INSERT INTO call_records (reservation_id, to_number, from_number, status, duration_seconds, summary, completed_at)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (reservation_id) DO UPDATE
SET to_number = COALESCE(excluded.to_number, to_number), from_number = COALESCE(excluded.from_number, from_number),
    status = COALESCE(excluded.status, status), duration_seconds = COALESCE(excluded.duration_seconds, duration_seconds),
    summary = COALESCE(excluded.summary, summary), completed_at = COALESCE(excluded.completed_at, completed_at)"""
SELECT_TOTALS = """
SELECT COUNT(*), COALESCE(SUM(r.booked_nanousd), 0)
FROM owned_objects o LEFT JOIN reservations r ON r.id = o.reservation_id
WHERE o.user_id = ?1 AND o.vendor = ?2 AND o.kind = ?3"""
SELECT_RECENT = f"""
SELECT c.id, c.bland_call_id, c.direction, c.to_number, c.from_number, c.status, c.duration_seconds, c.summary, c.created_at, e.usage
FROM call_usage c LEFT JOIN entries e ON e.reservation_id = c.id AND {IS_RESOLUTION}
WHERE c.user_id = ?1 ORDER BY c.created_at DESC, c.id DESC LIMIT ?2"""
_FIELDS = ("id", "call_id", "direction", "to", "from", "status", "duration_seconds", "summary", "created_at")


@immutable
class CallRecord:
    """What is kept of a call, as far as it is known: None is not. `status` is that of its end, `completed_at` in Unix seconds."""

    to_number: str | None = None
    from_number: str | None = None
    status: str | None = None
    duration_seconds: int | None = None
    summary: str | None = None
    completed_at: int | None = None

    def keeping(self, reservation_id: str) -> Step:
        """The step that writes it, or what it adds to what is written, for a unit of the caller's."""
        summary = None if self.summary is None else self.summary[:SUMMARY_CHARS_MAX]
        numbers = (self.to_number, self.from_number)
        of_end = (self.status, self.duration_seconds, summary, self.completed_at)
        return Step(KEEP_RECORD, (reservation_id, *numbers, *of_end))


async def totals_of(readers: Readers, user_id: str) -> tuple[int, int]:
    """How many calls, and what they cost in nano-USD. Raises Refused(STORE_UNAVAILABLE)."""
    row = await readers.row(SELECT_TOTALS, (user_id, VENDOR, CALL))
    assert row is not None, "a sum has a row"
    return cast("tuple[int, int]", row)


async def recent_of(readers: Readers, user_id: str) -> list[dict[str, Any]]:
    """The newest calls, RECENT_MAX at most. Raises Refused(STORE_UNAVAILABLE)."""
    return [_shown(row) for row in await readers.rows(SELECT_RECENT, (user_id, RECENT_MAX))]


def _shown(row: Iterable[Any]) -> dict[str, Any]:
    *values, usage = row
    call = dict(zip(_FIELDS, values, strict=True))
    if (
        call["status"] is None
    ):  # from before there were records, or lost: what was booked is all that is known
        call["duration_seconds"] = _booked_s(usage)
        call["status"] = COMPLETED if call["duration_seconds"] else FAILED
    return {**call, "created_at": instant(call["created_at"] * 1000)}


def _booked_s(usage: str | None) -> int:
    return sum(line["counts"].get(CALL_SECONDS, 0) for line in orjson.loads(usage or "[]"))
