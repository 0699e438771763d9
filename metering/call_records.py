"""What a user has called, by the ledger: totals of all time, and the newest calls. What was said, and with whom, is nowhere here."""

from typing import Any, cast

from metering.clock import instant
from metering.deferred import ARRIVED
from metering.store.readers import Readers

VENDOR, CALL = "bland", "call"
RECENT_MAX = 10
NANOUSD_PER_CENT = 10_000_000

SELECT_TOTALS = """
SELECT COUNT(DISTINCT o.upstream_id), COALESCE(SUM(e.cost_nanousd), 0)
FROM owned_objects o LEFT JOIN entries e ON e.reservation_id = o.reservation_id
WHERE o.user_id = ?1 AND o.vendor = ?2 AND o.kind = ?3"""
SELECT_RECENT = """
SELECT o.upstream_id, o.reservation_id, o.created_at_ms, r.state
FROM owned_objects o LEFT JOIN reservations r ON r.id = o.reservation_id
WHERE o.user_id = ?1 AND o.vendor = ?2 AND o.kind = ?3 ORDER BY o.created_at_ms DESC, o.upstream_id LIMIT ?4"""


async def totals_of(readers: Readers, user_id: str) -> tuple[int, int]:
    """How many calls, and what they cost in nano-USD. Raises Refused(STORE_UNAVAILABLE)."""
    row = await readers.row(SELECT_TOTALS, (user_id, VENDOR, CALL))
    assert row is not None, "a sum has a row"
    return cast("tuple[int, int]", row)


async def recent_of(readers: Readers, user_id: str) -> list[dict[str, Any]]:
    """The newest calls, RECENT_MAX at most. Raises Refused(STORE_UNAVAILABLE)."""
    rows = await readers.rows(SELECT_RECENT, (user_id, VENDOR, CALL, RECENT_MAX))
    return [
        {
            "id": str(reservation_id),
            "call_id": str(call_id),
            "direction": "inbound" if str(reservation_id).startswith(ARRIVED) else "outbound",
            "to": None,
            "from": None,
            "status": "initiated" if state == "HELD" else "completed",
            "duration_seconds": None,
            "summary": None,
            "created_at": instant(cast("int", at_ms)),
        }
        for call_id, reservation_id, at_ms, state in rows
    ]
