"""Caps as accounts: which holds they are for a request, what is said when one refuses, and where they stand."""

from collections.abc import Mapping, Sequence
from typing import Any

from metering.clock import (
    date_of,
    day_of,
    instant,
    is_day,
    month_of,
    period_end_ms,
)
from metering.errors import Reason, Refused
from metering.ledger import SPEND, Balance, Hold, balance_of
from metering.money import credits_left, credits_of
from metering.store.readers import Readers
from metering.terms import CapPeriod, OwnedCap
from metering.values import immutable

HELD_RETRY_AFTER_S = 2.0
"""When requests in flight hold the rest of an allowance: about as long as a request takes."""
TITLES = {CapPeriod.DAY: "Daily", CapPeriod.MONTH: "Monthly"}


def cap_holds(caps: Sequence[OwnedCap], names: Mapping[str, str], ceiling_nanousd: int) -> list[Hold]:
    """One request, and what it may cost, on every cap. What holds no money is not held on caps of money. `names`: of
    the day and the month of now."""
    return [
        Hold(
            cap.owner,
            cap.meter,
            names[cap.period],
            ceiling_nanousd if cap.meter == SPEND else 1,
            cap.allowance,
        )
        for cap in caps
        if cap.meter != SPEND or ceiling_nanousd
    ]


def cap_of(hold: Hold, caps: Sequence[OwnedCap]) -> OwnedCap:
    """The cap that a hold is for."""
    period = CapPeriod.DAY if is_day(hold.period) else CapPeriod.MONTH
    return next(cap for cap in caps if (cap.owner, cap.meter, cap.period) == (hold.owner, hold.meter, period))


def cap_refusal(
    cap: OwnedCap,
    hold: Hold,
    balance: Balance,
    *,
    costs_less: str = "",
    own_nanousd: int = 0,
    used_nanousd: int = 0,
) -> Refused:
    """Why a hold on a cap was refused. Spent, only held, or too large: as for the plan's own allowance.

    `costs_less`: what would, in words; empty: nothing. `own_nanousd`: what the request holds already; `used_nanousd`: what of it is known to be used. The dates are those
    of the hold's own period: a stream that was admitted before midnight is refused after it on yesterday's cap."""
    title = TITLES[cap.period]
    is_money = cap.meter == SPEND
    own, own_used = (own_nanousd, used_nanousd) if is_money else (0, 0)
    used = credits_of(balance.spent + own_used) if is_money else balance.spent
    limit, unit = cap.cap.limit, cap.cap.meter.value
    resets = date_of(period_end_ms(hold.period))
    facts: dict[str, int | str] = {
        f"used_{unit}": used,
        f"limit_{unit}": limit,
        "resets": resets,
        "cap": f"{unit} per {cap.period.value} of {cap.whose}",
    }
    if balance.spent + own + hold.amount <= cap.allowance:
        return Refused(
            Reason.BUDGET_HELD,
            f"Requests in flight hold the rest of the {unit} that {cap.whose} may use per {cap.period.value}; "
            "retry when they have finished.",
            retry_after_s=HELD_RETRY_AFTER_S,
            facts=facts,
        )
    not_used = cap.allowance - balance.spent - own_used
    left = credits_left(not_used) if is_money else 0
    if not left or (own and not_used < hold.amount):
        message = (
            f"{title} usage limit reached ({used:,} of {limit:,} {unit} of {cap.whose}). Resets on {resets}."
        )
    else:
        message = (
            f"{title} usage limit reached for a request of this size: it may cost up to "
            f"{credits_of(own + hold.amount):,} credits, {left:,} of {limit:,} of {cap.whose} are left"
            f"{saving(costs_less)}. Resets on {resets}."
        )
    return Refused(Reason.BUDGET_EXHAUSTED, message, facts=facts)


def saving(costs_less: str) -> str:
    """What helps whose request is too large for what is left, where anything does."""
    return f" ({costs_less} costs less)" if costs_less else ""


# --- where caps stand --------------------------------------------------------------------------------


@immutable
class CapState:
    """A cap and its account in the current period."""

    cap: OwnedCap
    balance: Balance
    resets_at: str

    def as_json(self) -> dict[str, Any]:
        """In the cap's own unit: credits used and held rounded up, left rounded down."""
        cap, balance = self.cap, self.balance
        left = cap.allowance - balance.spent - balance.held
        is_money = cap.meter == SPEND
        return {
            "of": cap.whose.value,
            **cap.cap.as_json(),
            "used": credits_of(balance.spent) if is_money else balance.spent,
            "held": credits_of(balance.held) if is_money else balance.held,
            "left": credits_left(left) if is_money else max(left, 0),
            "resets_at": self.resets_at,
        }


async def states_of(readers: Readers, caps: Sequence[OwnedCap], now_ms: int) -> list[CapState]:
    """Each cap as it stands now. Raises Refused(STORE_UNAVAILABLE)."""
    states = []
    for cap in caps:
        name = day_of(now_ms) if cap.period is CapPeriod.DAY else month_of(now_ms)
        balance = await balance_of(readers, cap.owner, cap.meter, name)
        states.append(CapState(cap, balance, instant(period_end_ms(name))))
    return states
