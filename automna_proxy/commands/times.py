"""Times as operators write them."""

import re

from automna_proxy.commands.session import CommandError, Status
from metering.reports import EXPECTED_INSTANT, PeriodError, instant_ms

_DURATION = re.compile(r"(\d{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
DURATION_MAX_S = 3_660 * 86_400
"""Ten years: what is longer is a typing error."""


def duration_s(name: str, text: str) -> int:
    """`90s`, `10m`, `12h`, `30d` or `2w` in seconds."""
    seconds = _duration_s(text)
    if seconds is None:
        raise CommandError(
            Status.USAGE, f"{name}: given {text!r}, expected a number and a unit: 90s, 10m, 12h, 30d or 2w"
        )
    return seconds


def future_ms(name: str, text: str, now_ms: int) -> int:
    """A duration from now, a date (its first instant, UTC) or an RFC 3339 instant, in milliseconds."""
    seconds = _duration_s(text)
    try:
        at_ms = instant_ms(name, text) if seconds is None else now_ms + seconds * 1000
    except PeriodError:
        raise CommandError(
            Status.USAGE, f"{name}: given {text!r}, expected 12h, 30d, 2w, {EXPECTED_INSTANT}"
        ) from None
    if at_ms <= now_ms:
        raise CommandError(Status.USAGE, f"{name}: {text} is not in the future: expected a later time")
    return at_ms


def _duration_s(text: str) -> int | None:
    found = _DURATION.fullmatch(text)
    if found is None:
        return None
    seconds = int(found[1]) * _SECONDS[found[2]]
    return seconds if seconds <= DURATION_MAX_S else None
