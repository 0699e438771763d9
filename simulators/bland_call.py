"""A call at Bland, and what the vendor tells of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metering.clock import instant
from simulators.bland_prices import SECONDS_PER_MINUTE, Billed

NEW_MS, QUEUED_MS = 500, 1_500
"""How old a call is when it is no longer new, and when it is dialled at last; guesses."""
HEARD = "This is a simulated answer."


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a call by itself: it rings, is picked up, and is over `talks_s` later (None: at its
    `max_duration`). `seconds` is how long it then says that it was, if not so long as it was."""

    status: str = "completed"
    answered_by: str | None = "human"
    rings_s: float = 0.2
    talks_s: float | None = 0.5
    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """The request that a call came of; of inbound calls and repeated dials, none."""

    request_number: int | None = None
    tag: str = ""
    """The request's `x-request-tag`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""


@dataclass(slots=True)
class Call:
    """One call. `fields` are those of the request, or the settings of the number that was called."""

    number: int
    call_id: str
    to: str
    from_number: str
    created_ms: int
    fields: Mapping[str, Any]
    max_duration_minutes: float
    origin: Origin = field(default_factory=Origin)
    is_inbound: bool = False
    is_byot: bool = False
    is_proxy_agent: bool = False
    fate: Fate | None = None
    dials_ms: int = 0
    """When it is dialled: at once, but for a `start_time` or a repeated dial."""
    is_dialled: bool = False
    started_ms: int | None = None
    ended_ms: int | None = None
    status: str | None = None
    """Once it is over: completed, failed, busy, no-answer, canceled or unknown. That there is none before is a guess."""
    answered_by: str | None = None
    ended_by: str | None = None
    error_message: str | None = None
    error_queue_status: str | None = None
    """pre_queue_error, queue_error, call_error or complete_error, instead of complete."""
    length_minutes: float = 0.0
    transferred_ms: int | None = None
    transferred_to: str | None = None
    proxy_agent_calls: list["Call"] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    billed: Billed | None = None
    """Once it is over."""
    details_say: dict[str, Any] = field(default_factory=dict)
    """What GET says instead of the truth."""
    webhook_says: dict[str, Any] = field(default_factory=dict)
    """What the completion webhook says instead of the truth."""

    @property
    def is_over(self) -> bool:
        return self.ended_ms is not None

    @property
    def is_connected(self) -> bool:
        return self.started_ms is not None

    @property
    def webhook(self) -> str | None:
        url: str | None = self.fields.get("webhook")
        return url

    @property
    def metadata(self) -> Mapping[str, Any]:
        metadata: Mapping[str, Any] = self.fields.get("metadata") or {}
        return metadata

    @property
    def cut_off_ms(self) -> int | None:
        """When `max_duration` ends it, once it is connected."""
        if self.started_ms is None:
            return None
        return self.started_ms + round(self.max_duration_minutes * SECONDS_PER_MINUTE * 1000)

    def seconds_at(self, at_ms: int) -> int:
        """Connected until then, to the second."""
        return 0 if self.started_ms is None else _seconds(at_ms - self.started_ms)

    def transfer_s_at(self, at_ms: int) -> int:
        return 0 if self.transferred_ms is None else _seconds(at_ms - self.transferred_ms)

    def queue_status(self, now_ms: int) -> str:
        if self.is_over:
            return self.error_queue_status or "complete"
        if self.is_connected:
            return "started"
        if now_ms - self.created_ms < NEW_MS:
            return "new"
        return "queued" if now_ms - self.dials_ms < QUEUED_MS else "allocated"

    def transcripts(self) -> list[dict[str, Any]]:
        """What was said: by the agent what it was told to say or to do, by whoever answered always the same."""
        if self.started_ms is None:
            return []
        fields = self.fields
        said = fields.get("first_sentence") or fields.get("task") or fields.get("prompt") or "Hello."
        lines = [("assistant", said), ("user", HEARD)]
        at = instant(self.started_ms)
        return [
            {"id": self.number * 10 + each, "created_at": at, "text": text, "user": who, "c_id": self.call_id}
            for each, (who, text) in enumerate(lines)
        ]


def _seconds(span_ms: int) -> int:
    return max(0, (span_ms + 500) // 1000)


def item(call: Call, now_ms: int) -> dict[str, Any]:
    """A call in a list."""
    return {
        "call_id": call.call_id,
        "created_at": instant(call.created_ms),
        "call_length": call.length_minutes if call.is_over else None,
        "to": call.to,
        "from": call.from_number,
        "completed": call.is_over,
        "inbound": call.is_inbound,
        "queue_status": call.queue_status(now_ms),
        "status": call.status,
        "error_message": call.error_message,
        "answered_by": call.answered_by,
        "batch_id": None,
    }


def truth(call: Call, now_ms: int, recordings_url: str) -> dict[str, Any]:
    """All that there is to know of a call: what GET and the completion webhook say, unless they are made to lie."""
    transcripts = call.transcripts()
    billed = call.billed
    ends_ms = call.ended_ms or call.cut_off_ms
    return {
        **item(call, now_ms),
        "c_id": call.call_id,
        "corrected_duration": None if billed is None else str(billed.seconds),
        "started_at": None if call.started_ms is None else instant(call.started_ms),
        "end_at": None if ends_ms is None else instant(ends_ms),
        "call_ended_by": call.ended_by,
        "price": None if billed is None else float(billed.price_usd),
        "max_duration": call.max_duration_minutes,
        "endpoint_url": "api.bland.ai",
        "request_data": call.fields.get("request_data") or {},
        "variables": {"to": call.to, "from": call.from_number, "call_id": call.call_id},
        "record": bool(call.fields.get("record")),
        "recording_url": recordings_url + call.call_id if has_recording(call) else None,
        "metadata": dict(call.metadata),
        "summary": f"A call of {billed.seconds} seconds." if billed and call.is_connected else None,
        "concatenated_transcript": " \n ".join(f"{each['user']}: {each['text']}" for each in transcripts),
        "transcripts": transcripts,
        **_transfer(call),
    }


def has_recording(call: Call) -> bool:
    return bool(call.fields.get("record")) and call.is_over and call.is_connected


def _transfer(call: Call) -> dict[str, Any]:
    """Durations are minutes."""
    before: float | None = None
    after: float | None = None
    if call.transferred_ms is not None and call.billed is not None:
        after = _minutes(call.billed.transfer_s)
        before = _minutes(call.billed.seconds - call.billed.transfer_s)
    warm = [{"call_id": each.call_id} for each in call.proxy_agent_calls]
    return {
        "transferred_to": call.transferred_to,
        "transferred_at": None if call.transferred_ms is None else instant(call.transferred_ms),
        "pre_transfer_duration": before,
        "post_transfer_duration": after,
        "warm_transfer_call": {"proxy_agent_calls": warm, "state": "MERGED"} if warm else None,
        "is_proxy_agent_call": call.is_proxy_agent,
    }


def _minutes(seconds: int) -> float:
    return round(seconds / SECONDS_PER_MINUTE, 7)
