"""What is kept of a call, by what Bland tells of it; in the words that callers of the simple call API know."""

from collections.abc import Mapping
from typing import Any

from metering.call_records import COMPLETED, FAILED, CallRecord
from metering.store.writer import Step
from routes.bland_meter import is_over, length_of
from routes.told_object import instant_of

_STATUSES = {"busy": "no_answer", "no-answer": "no_answer", COMPLETED: COMPLETED}
"""For the vendor's words; all others are `failed`."""


def record_of(reservation_id: str, call: Mapping[str, Any]) -> Step:
    """As Deferred.records; of a call that goes on, only between whom."""
    return _record(call).keeping(reservation_id)


def _record(call: Mapping[str, Any]) -> CallRecord:
    numbers = (_text(call.get("to")), _text(call.get("from")))
    if not is_over(call):
        return CallRecord(*numbers)
    ended = instant_of(call.get("end_at"))
    return CallRecord(
        *numbers,
        status=status_of(call),
        duration_seconds=length_of(call)[0],
        summary=_text(call.get("summary")),
        completed_at=None if ended is None else int(ended.timestamp()),
    )


def status_of(call: Mapping[str, Any]) -> str:
    """What callers call the end of a call."""
    if call.get("answered_by") == "voicemail":
        return "voicemail"
    return _STATUSES.get(str(call.get("status")).lower(), FAILED)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
