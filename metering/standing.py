"""Where an owner stands: every account of theirs in a period that runs now, shown as people read it.

Accounts come by themselves, with the first hold on them; how one is shown is a row of `SHOWN`, and an account of a
meter that has none is shown as a count under its own name. What an account allows is what was allowed at its last
hold: whoever knows better (the plan of now, a cap that nobody has run against yet) says so by `limits`.
"""

from collections.abc import Mapping
from typing import Any, cast

from metering.clock import day_end_ms, day_of, instant, month_end_ms, month_of
from metering.ledger import MONEY, NO_PERIOD, OPEN_REQUESTS, PURSE, REQUESTS, SPEND, Balance
from metering.money import credits_of
from metering.plans import SOFT, Plan
from metering.quotas import CONCURRENCIES
from metering.rate_limits import RateLimits
from metering.rate_state import RateState
from metering.reports import credits_as_json
from metering.store.readers import Readers
from metering.terms import TokenLimits
from metering.values import immutable

CREDITS = "credits"
"""The unit of meters in nano-USD, as they are shown."""


@immutable
class Shown:
    """How a meter is shown: its name, to which the period is added if there may be several, and what it counts."""

    name: str
    unit: str
    is_by_period: bool = True


SHOWN: Mapping[str, Shown] = {
    MONEY: Shown("credits", CREDITS, is_by_period=False),
    SPEND: Shown("credits", CREDITS),
    REQUESTS: Shown("requests", "requests"),
    "searches": Shown("searches", "searches"),
    "emails": Shown("emails", "emails"),
    "browser_seconds": Shown("browser_seconds", "seconds"),
    "call_seconds": Shown("call_seconds", "seconds"),
}

Accounts = Mapping[tuple[str, str], Balance]
"""By meter and period."""

SELECT_STANDING = """
SELECT meter, period, spent, held, allowance FROM accounts WHERE owner = ?1 AND period IN (?2, ?3, ?4)
ORDER BY meter, period"""


async def accounts_of(readers: Readers, owner: str, at_ms: int) -> Accounts:
    """The owner's accounts of the day and the month that hold `at_ms`, and those without a period.

    Raises Refused(STORE_UNAVAILABLE).
    """
    rows = await readers.rows(SELECT_STANDING, (owner, day_of(at_ms), month_of(at_ms), NO_PERIOD))
    return {(str(row[0]), str(row[1])): Balance(*cast("tuple[int, int, int]", row[2:])) for row in rows}


def meters_as_json(
    accounts: Accounts, at_ms: int, limits: Mapping[tuple[str, str], int] | None = None
) -> dict[str, dict[str, Any]]:
    """Each meter of the day and the month: limit, used, held, left, and when all of it returns.

    `limits`, by meter and period, go before what the accounts say; one of them without an account is unused.
    """
    limits = limits or {}
    ends = {
        day_of(at_ms): ("day", instant(day_end_ms(at_ms))),
        month_of(at_ms): ("month", instant(month_end_ms(at_ms))),
    }
    meters: dict[str, dict[str, Any]] = {}
    for meter, period in dict.fromkeys((*limits, *accounts)):
        if period not in ends:  # without one: a gauge, which whoever knows it shows
            continue
        length, resets_at = ends[period]
        balance = accounts.get((meter, period), Balance(0, 0, 0))
        limit = limits.get((meter, period), balance.allowance)
        shown = SHOWN.get(meter, Shown(meter, "count"))
        name = f"{shown.name}_per_{length}" if shown.is_by_period else shown.name
        amounts = (
            credits_as_json(balance, limit) if shown.unit == CREDITS else _counts_as_json(balance, limit)
        )
        meters[name] = {"unit": shown.unit, "period": period, **amounts, "resets_at": resets_at}
    return meters


def rates_as_json(
    rates: RateLimits, owner: str, limits: Plan | TokenLimits, accounts: Accounts
) -> dict[str, dict[str, Any]]:
    """The limits that an owner has, beside caps: requests and tokens per minute, requests in flight, and for a plan what
    may run at once. What is used of a minute flows back; `resets_at` says when all of it has."""
    shown: dict[str, dict[str, Any]] = {}
    if (limit := limits.requests_per_minute) is not None:
        shown["requests_per_minute"] = _rate_as_json(rates.used(owner, limit), rates.look(owner, limit))
    if (limit := limits.tokens_per_minute) is not None:
        shown["tokens_per_minute"] = _rate_as_json(
            rates.tokens.used(owner, limit), rates.tokens.look(owner, limit)
        )
    if (limit := limits.concurrent_requests) is not None:
        shown["concurrent_requests"] = gauge_as_json(accounts, OPEN_REQUESTS, limit)
    if isinstance(limits, Plan):
        for running in CONCURRENCIES.values():
            shown[running.limit] = gauge_as_json(accounts, running.meter, running.of(limits))
    return shown


def _rate_as_json(used: int, rate: RateState) -> dict[str, int | str]:
    left = max(0, rate.limit - used)
    return {
        "limit": rate.limit,
        "used": used,
        "held": 0,
        "left": left,
        "remaining": left,
        "resets_at": instant(rate.reset_ms),
    }


def gauge_as_json(accounts: Accounts, meter: str, limit: int) -> dict[str, int | None]:
    """What is open or runs: only ever held, and returned as each ends."""
    balance = accounts.get((meter, NO_PERIOD), Balance(0, 0, 0))
    return {**_counts_as_json(balance, limit), "resets_at": None}


def overshoot_as_json(
    plan: Plan, accounts: Accounts, *, bytes_per_output_token: int
) -> dict[str, int | str | None]:
    """How far the requests in flight may go beyond what they hold, in credits (docs/architecture.md, "Overshoot bound").

    On a hard budget: as if all that is held were output, as dense as text can be. On a soft one: what runs finishes,
    and nobody knows at what cost.
    """
    held_nanousd = sum(balance.held for (meter, _), balance in accounts.items() if meter in PURSE)
    beyond_nanousd = held_nanousd * (bytes_per_output_token - 1)
    return {
        "budget": plan.budget,
        "credits_at_most": None if plan.budget == SOFT else credits_of(beyond_nanousd),
    }


def _counts_as_json(balance: Balance, limit: int) -> dict[str, int]:
    left = max(0, limit - balance.spent - balance.held)
    return {"limit": limit, "used": balance.spent, "held": balance.held, "left": left}
