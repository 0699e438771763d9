"""What a request to dial may say, as Bland checks it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from metering.clock import ms_of
from simulators import bland_errors as errors
from simulators.bland_account import e164

MAX_DURATION_DEFAULT_MINUTES, MAX_DURATION_MAX_MINUTES = 30, 720
EVENTS = ("queue", "call", "latency", "webhook", "tool", "dynamic_data", "citations")
"""What `webhook_events` may name."""
VOICEMAIL_ACTIONS = ("hangup", "leave_message", "leave_message_and_sms", "ignore")

SPOKEN = """
    task first_sentence wait_for_greeting block_interruptions interruption_threshold voice voice_settings model temperature
    language background_track noise_cancellation keywords pronunciation_guide summary_prompt dispositions timezone
    ignore_button_press json_mode_enabled request_data
"""
ACCOUNT_WIDE = """
    pathway_id pathway_version start_node_id persona_id persona_version tools dynamic_data citation_schema_ids guard_rails
    post_call_evals memory_id dialing_strategy analysis_schema analysis_prompt
"""
"""What names resources of the account, or has the vendor fetch something."""
DIALLED = """
    phone_number from local_dialing geospatial_dialing transfer_phone_number transfer_list voicemail voicemail_action
    voicemail_message voicemail_sms sensitive_voicemail_detection answered_by_enabled amd start_time dispatch_hours retry
    max_duration record webhook webhook_events metadata precall_dtmf_sequence available_tags region
"""
KNOWN = frozenset(f"{SPOKEN} {ACCOUNT_WIDE} {DIALLED}".split())
"""Everything else is refused."""
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "task": str,
    "first_sentence": str,
    "from": str,
    "record": bool,
    "metadata": dict,
    "voicemail": dict,
    "retry": dict,
    "webhook_events": list,
    "transfer_list": dict,
    "request_data": dict,
    "wait_for_greeting": bool,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to dial that is well formed. `start_ms`: when, if not at once."""

    fields: Mapping[str, Any]
    to: str
    from_number: str | None
    max_duration_minutes: float
    start_ms: int | None


def asked(fields: Mapping[str, Any]) -> Asked:
    """Raises RefusedError(400) that names everything that is wrong."""
    wrong = list(_wrong(fields))
    if wrong:
        raise errors.invalid(*wrong)
    return Asked(
        fields,
        e164(fields["phone_number"]) or "",
        fields.get("from"),
        fields.get("max_duration") or MAX_DURATION_DEFAULT_MINUTES,
        _instant_ms(fields.get("start_time")),
    )


def _wrong(fields: Mapping[str, Any]) -> Iterator[str]:
    for name in fields:
        if name not in KNOWN:
            yield f"{name}: unknown property"
    for name, kind in _TYPES.items():
        if fields.get(name) is not None and not isinstance(fields[name], kind):
            yield f"{name}: wrong type"
    number = fields.get("phone_number")
    if not isinstance(number, str) or e164(number) is None:
        yield "phone_number: must be a valid phone number in E.164 format"
    if not any(fields.get(name) for name in ("task", "pathway_id", "persona_id")):
        yield "task: required, unless there is a pathway_id or persona_id"
    yield from _wrong_limits(fields)
    yield from _wrong_wishes(fields)


def _wrong_wishes(fields: Mapping[str, Any]) -> Iterator[str]:
    if fields.get("webhook") is not None and not _is_url(fields["webhook"]):
        yield "webhook: must be a URL"
    events = fields.get("webhook_events")
    if isinstance(events, list) and not all(event in EVENTS for event in events):
        yield f"webhook_events: each must be one of {', '.join(EVENTS)}"
    if _voicemail_action(fields) not in (None, *VOICEMAIL_ACTIONS):
        yield f"voicemail.action: must be one of {', '.join(VOICEMAIL_ACTIONS)}"
    if fields.get("start_time") is not None and _instant_ms(fields["start_time"]) is None:
        yield "start_time: must be a time with its offset"


def _wrong_limits(fields: Mapping[str, Any]) -> Iterator[str]:
    """Fractions of a minute are accepted, which is a guess."""
    minutes, temperature = fields.get("max_duration"), fields.get("temperature")
    if minutes is not None and not _is_within(minutes, 0, MAX_DURATION_MAX_MINUTES):
        yield f"max_duration: must be minutes, at most {MAX_DURATION_MAX_MINUTES}"
    elif minutes == 0:
        yield "max_duration: must be more than 0"
    if temperature is not None and not _is_within(temperature, 0, 1):
        yield "temperature: must be between 0 and 1"
    retry = fields.get("retry")
    if isinstance(retry, dict) and not _is_within(retry.get("wait", 0), 0, math.inf):
        yield "retry.wait: must be seconds"


def retry_wait_s(fields: Mapping[str, Any]) -> float | None:
    """How long after a voicemail the number is dialled again; None: it is not."""
    retry = fields.get("retry")
    return None if retry is None else float(retry.get("wait", 0))


def leaves_text(fields: Mapping[str, Any]) -> bool:
    """Whether a voicemail is followed by a text to the same number."""
    return bool(_voicemail_action(fields) == "leave_message_and_sms")


def voicemail_message(fields: Mapping[str, Any]) -> str:
    voicemail = fields.get("voicemail") or {}
    return str(voicemail.get("message") or fields.get("voicemail_message") or "")


def _voicemail_action(fields: Mapping[str, Any]) -> Any:
    """Of the object, or of the flat field that it has replaced."""
    voicemail = fields.get("voicemail")
    action = voicemail.get("action") if isinstance(voicemail, dict) else None
    return action or fields.get("voicemail_action")


def _is_within(value: Any, low: float, high: float) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return bool(math.isfinite(value) and low <= value <= high)


def _is_url(value: Any) -> bool:
    parts = urlsplit(value) if isinstance(value, str) else None
    return parts is not None and parts.scheme in ("http", "https") and bool(parts.netloc)


def _instant_ms(value: Any) -> int | None:
    if not isinstance(value, str):
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return None
    return None if at.tzinfo is None else ms_of(at.astimezone(UTC))
