"""Quotas: how many of something a plan includes, by day or month, beside its money.

A quota is an account, held when a request is admitted, by what it may cause, and spent by what its answer counted. What
counts is a unit of usage: whatever operation uses it, and whoever bills it, draws on the same quota.
"""

from collections.abc import Mapping

from metering.caps import HELD_RETRY_AFTER_S, TITLES
from metering.clock import date_of, instant, period_end_ms
from metering.errors import Reason, Refused
from metering.ledger import NO_PERIOD, OPEN_BROWSERS, OPEN_CALLS, Balance, Hold
from metering.plans import Plan
from metering.rate_state import QuotaState
from metering.terms import CapPeriod
from metering.usage import BROWSER_SECONDS, CALL_SECONDS, RECIPIENTS, SEARCHES, Usage
from metering.values import immutable


@immutable
class Quota:
    """What a plan's `limit` allows of a unit of usage in a period. `meter` is the account's name, and people's, who count
    in `title` where `unit` is too small for them: so many units make one."""

    meter: str
    unit: str
    period: CapPeriod
    limit: str
    title: str = ""
    units_per_title: int = 1

    def of(self, plan: Plan) -> int:
        """How many units the plan includes in a period."""
        allowance: int = getattr(plan, self.limit)
        return allowance * self.units_per_title


QUOTAS: Mapping[str, Quota] = {
    quota.meter: quota
    for quota in (
        Quota("searches", SEARCHES, CapPeriod.MONTH, "searches_per_month"),
        Quota("emails", RECIPIENTS, CapPeriod.DAY, "emails_per_day"),
        Quota(
            "browser_seconds",
            BROWSER_SECONDS,
            CapPeriod.MONTH,
            "browser_minutes_per_month",
            title="browser minutes",
            units_per_title=60,
        ),
        Quota(
            "call_seconds",
            CALL_SECONDS,
            CapPeriod.MONTH,
            "call_minutes_per_month",
            title="call minutes",
            units_per_title=60,
        ),
    )
}
"""By meter."""


@immutable
class Concurrency:
    """How many of something that goes on by itself a plan's `limit` allows at once. `meter` is the gauge."""

    meter: str
    limit: str
    title: str

    def of(self, plan: Plan) -> int:
        allowance: int = getattr(plan, self.limit)
        return allowance


CONCURRENCIES: Mapping[str, Concurrency] = {
    one.meter: one
    for one in (
        Concurrency(OPEN_BROWSERS, "concurrent_browsers", "browser sessions"),
        Concurrency(OPEN_CALLS, "concurrent_calls", "phone calls"),
    )
}
"""By meter. What runs under one of them is no request in flight any more, however long it runs."""


def concurrency_hold(owner: str, plan: Plan, meter: str) -> Hold:
    """One more of what runs at once."""
    return Hold(owner, meter, NO_PERIOD, 1, CONCURRENCIES[meter].of(plan))


def concurrency_refusal(hold: Hold, plan: str, *, upgrade_url: str = "") -> Refused:
    """Why one more is refused. Waiting helps only when one has ended, which nobody knows. `upgrade_url` as `quota_refusal`."""
    title, limit = CONCURRENCIES[hold.meter].title, hold.allowance
    if limit <= 0:
        return _not_included(title, plan, hold.meter, upgrade_url)
    return Refused(
        Reason.TOO_MANY_CONCURRENT,
        f"Too many {title} at once: {limit} may run on the {plan} plan.",
        facts={"limit": limit, "quota": hold.meter},
    )


def quotas_used(usage: Usage, meters: tuple[str, ...]) -> dict[str, int]:
    """What a usage counts against quotas."""
    return {meter: usage.total(QUOTAS[meter].unit) for meter in meters}


def quota_holds(owner: str, plan: Plan, names: Mapping[str, str], amounts: Mapping[str, int]) -> list[Hold]:
    """What a request may use of its quotas, by meter. `names`: of the day and the month of now."""
    return [
        Hold(owner, meter, names[QUOTAS[meter].period], amount, QUOTAS[meter].of(plan))
        for meter, amount in amounts.items()
    ]


def quota_limits(plan: Plan, names: Mapping[str, str]) -> dict[tuple[str, str], int]:
    """What a plan allows of every quota, by meter and period. `names`: of the day and the month of now."""
    return {(quota.meter, names[quota.period]): quota.of(plan) for quota in QUOTAS.values()}


def quota_state(hold: Hold, balance: Balance) -> QuotaState:
    """Where a quota stands after a hold on it was granted."""
    left = max(0, balance.allowance - balance.spent - balance.held)
    return QuotaState(hold.meter, hold.allowance, left, period_end_ms(hold.period), QUOTAS[hold.meter].period)


def quota_refusal(hold: Hold, balance: Balance, plan: str, *, upgrade_url: str = "") -> Refused:
    """Why a hold on a quota was refused. Not included, used up, only held, or too many at once. `upgrade_url`: where users get
    another plan; empty: nowhere."""
    quota = QUOTAS[hold.meter]
    title, what, per = TITLES[quota.period], quota.title or quota.meter, quota.units_per_title
    resets_ms = period_end_ms(hold.period)
    resets, used, limit = date_of(resets_ms), -(-balance.spent // per), hold.allowance // per
    facts: dict[str, int | str] = {
        f"used_{quota.meter}": balance.spent,
        f"limit_{quota.meter}": hold.allowance,
        "resets": resets,
        "resets_at": instant(resets_ms),
        "quota": quota.meter,
    }
    if hold.allowance <= 0:
        return _not_included(what, plan, quota.meter, upgrade_url)
    if balance.spent + hold.amount <= hold.allowance:
        return Refused(
            Reason.BUDGET_HELD,
            f"Requests in flight hold the rest of the {what}; retry when they have finished.",
            retry_after_s=HELD_RETRY_AFTER_S,
            facts=facts,
        )
    if balance.spent < hold.allowance:
        left = (hold.allowance - balance.spent) // per
        return Refused(
            Reason.BUDGET_EXHAUSTED,
            f"{title} usage limit reached for a request of this size: it may take up to {-(-hold.amount // per):,} {what}, "
            f"{left:,} of {limit:,} are left. Resets on {resets}.",
            facts=facts,
        )
    return Refused(
        Reason.BUDGET_EXHAUSTED,
        f"{title} usage limit reached ({used:,} of {limit:,} {what}). Resets on {resets}.",
        facts=facts,
    )


def _not_included(what: str, plan: str, meter: str, upgrade_url: str) -> Refused:
    facts = {"quota": meter, **({"upgrade_url": upgrade_url} if upgrade_url else {})}
    return Refused(Reason.BUDGET_EXHAUSTED, f"The {plan} plan includes no {what}.", facts=facts)
