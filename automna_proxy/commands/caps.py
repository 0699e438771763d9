"""Caps as options of commands, and as people read them."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from metering.caps import CapState
from metering.terms import Cap, CapMeter, CapPeriod, parse_caps

CreditsPerDay = Annotated[int | None, typer.Option(help="At most so many credits a day (UTC).")]
CreditsPerMonth = Annotated[int | None, typer.Option(help="At most so many credits a month (UTC).")]
RequestsPerDay = Annotated[int | None, typer.Option(help="At most so many requests a day (UTC).")]
RequestsPerMonth = Annotated[int | None, typer.Option(help="At most so many requests a month (UTC).")]


def caps_of_options(
    credits_per_day: int | None,
    credits_per_month: int | None,
    requests_per_day: int | None,
    requests_per_month: int | None,
) -> tuple[Cap, ...]:
    """The caps that were given. Raises TermsError."""
    given: list[dict[str, Any]] = [
        {"meter": meter, "period": period, "limit": limit}
        for meter, period, limit in (
            (CapMeter.CREDITS, CapPeriod.DAY, credits_per_day),
            (CapMeter.CREDITS, CapPeriod.MONTH, credits_per_month),
            (CapMeter.REQUESTS, CapPeriod.DAY, requests_per_day),
            (CapMeter.REQUESTS, CapPeriod.MONTH, requests_per_month),
        )
        if limit is not None
    ]
    return parse_caps(given)


def caps_as_facts(states: Sequence[CapState]) -> list[tuple[str, str]]:
    """A line of a table for each cap."""
    shown = [state.as_json() for state in states]
    return [
        (
            f"{cap['meter']} per {cap['period']}",
            f"{cap['used']:,} of {cap['limit']:,}, {cap['held']:,} held, returns {cap['resets_at']}",
        )
        for cap in shown
    ]
