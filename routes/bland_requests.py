"""What a request to dial may say: which fields, and which numbers.

What the vendor knows and a caller may not say reaches what belongs to the whole account, dials again or elsewhere without
us, or has the vendor fetch something. What neither of us knows is refused, as the vendor does. Fields: Bland's
documentation ("Send Call"), 2026-11.
"""

import re
from collections.abc import Mapping
from typing import Any

from metering.errors import Reason, Refused

DESTINATIONS_ENV, NOT_DESTINATIONS_ENV = "BLAND_DESTINATIONS", "BLAND_NOT_DESTINATIONS"
ABROAD = (
    "+1242,+1246,+1264,+1268,+1284,+1345,+1441,+1473,+1649,+1658,+1664,+1721,+1758,+1767,+1784,+1809,+1829,+1849,"
    "+1868,+1869,+1876"
)
"""Islands in the numbering plan of North America that are billed as abroad: their numbers look like those of the States."""
PREFIXES = r"\+[0-9]{1,15}(\s*,\s*\+[0-9]{1,15})*"
PREFIXES_EXPECTED = "+ and digits, more of them separated by commas, as in +1242,+1246"
"""Read in another way than it was meant, such a list would have numbers dialled that it is to keep out."""

MAY_SAY = frozenset(
    [
        "phone_number",
        "from",
        "task",
        "first_sentence",
        "wait_for_greeting",
        "block_interruptions",
        "interruption_threshold",
        "voice",
        "voice_settings",
        "model",
        "temperature",
        "language",
        "background_track",
        "noise_cancellation",
        "keywords",
        "pronunciation_guide",
        "summary_prompt",
        "dispositions",
        "timezone",
        "ignore_button_press",
        "json_mode_enabled",
        "request_data",
        "max_duration",
        "record",
        "metadata",
        "precall_dtmf_sequence",
        "voicemail",
        "voicemail_action",
        "voicemail_message",
        "answered_by_enabled",
        "sensitive_voicemail_detection",
        "webhook",
    ]
)
"""`webhook` is refused where it is forced."""
_ACCOUNT = "reaches what belongs to the whole account."
_OURS = "is the gateway's own."
_AGAIN = "would dial without a request of its own."
_ELSEWHERE = "would dial another number than the one that is asked for."
_TEXTS = "would send a text, which is not available through this gateway."
MAY_NOT_SAY: Mapping[str, str] = {
    **dict.fromkeys(("webhook_events", "encrypted_key"), _OURS),
    **dict.fromkeys(("retry", "start_time", "dispatch_hours"), _AGAIN),
    **dict.fromkeys(("transfer_phone_number", "transfer_list"), _ELSEWHERE),
    **dict.fromkeys(("voicemail_sms",), _TEXTS),
    **dict.fromkeys(
        [
            "pathway_id",
            "pathway_version",
            "start_node_id",
            "persona_id",
            "persona_version",
            "tools",
            "dynamic_data",
            "citation_schema_ids",
            "guard_rails",
            "post_call_evals",
            "memory_id",
            "dialing_strategy",
            "analysis_schema",
            "analysis_prompt",
            "local_dialing",
            "geospatial_dialing",
        ],
        _ACCOUNT,
    ),
}
"""And why."""
VOICEMAIL_FIELDS = frozenset({"action", "message", "sensitive"})
VOICEMAIL_ACTIONS = frozenset({"hangup", "leave_message", "ignore"})

_PUNCTUATION = str.maketrans("", "", " ().-")
_E164 = re.compile(r"\+[1-9][0-9]{7,14}")
_US_DIGITS = re.compile(r"1?([2-9][0-9]{9})")
_NORTH_AMERICAN = re.compile(r"\+1([2-9][0-9]{2})([2-9][0-9]{2})[0-9]{4}")
_SERVICE = re.compile(r"[2-9]11")
"""An area or an exchange that is none: 911, 411."""
PREMIUM_AREA, PREMIUM_EXCHANGE = "900", "976"


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raises Refused(BAD_REQUEST): a field that may not be said; what would cost something else than a call."""
    for name, value in fields.items():
        if name not in MAY_SAY and value is not None:
            raise _wrong(name, MAY_NOT_SAY.get(name, "unknown property."))
    voicemail = fields.get("voicemail")
    if voicemail is not None:
        if not isinstance(voicemail, dict):
            raise _wrong("voicemail", "must be an object.")
        for name in voicemail:
            if name not in VOICEMAIL_FIELDS:
                raise _wrong(f"voicemail.{name}", "unknown property.")
        _check_action("voicemail.action", voicemail.get("action"))
    _check_action("voicemail_action", fields.get("voicemail_action"))


def number_to_dial(fields: Mapping[str, Any], options: Mapping[str, str]) -> str:
    """The number in E.164. Raises Refused(BAD_REQUEST): none, or one that may not be dialled."""
    given = fields.get("phone_number")
    number = e164(given) if isinstance(given, str) else None
    if number is None:
        raise _wrong(
            "phone_number", "must be a phone number: +, country and number, or ten digits of a US one."
        )
    if not _may_be_dialled(number, options):
        raise _wrong("phone_number", "calls to this number are not available through this gateway.")
    return number


def e164(given: str) -> str | None:
    """`+`, country and number; digits alone are a US number. None of what is no number."""
    bare = given.translate(_PUNCTUATION)
    if bare.startswith("+"):
        return bare if _E164.fullmatch(bare) else None
    found = _US_DIGITS.fullmatch(bare)
    return f"+1{found[1]}" if found else None


def _may_be_dialled(number: str, options: Mapping[str, str]) -> bool:
    """By the operator's prefixes; never what is dear by itself, or meant for emergencies."""
    if not number.startswith(_prefixes(options[DESTINATIONS_ENV])):
        return False
    if number.startswith(_prefixes(options[NOT_DESTINATIONS_ENV])):
        return False
    if not number.startswith("+1"):
        return True
    found = _NORTH_AMERICAN.fullmatch(number)
    if found is None:
        return False
    area, exchange = found.groups()
    is_service = _SERVICE.fullmatch(area) or _SERVICE.fullmatch(exchange)
    return not is_service and area != PREMIUM_AREA and exchange != PREMIUM_EXCHANGE


def _prefixes(text: str) -> tuple[str, ...]:
    """Those that a setting lists; what does not begin with + is none."""
    return tuple(one for one in (each.strip() for each in text.split(",")) if one.startswith("+"))


def _check_action(name: str, action: Any) -> None:
    if action is None:
        return
    if action == "leave_message_and_sms":
        raise _wrong(name, _TEXTS)
    if not isinstance(action, str) or action not in VOICEMAIL_ACTIONS:
        raise _wrong(name, f"must be one of {', '.join(sorted(VOICEMAIL_ACTIONS))}.")


def _wrong(name: str, why: str) -> Refused:
    return Refused(Reason.BAD_REQUEST, f"{name}: {why}")
