"""Whose machine is to rest because its user has nothing left to spend."""

from typing import cast

from metering.clock import month_of
from metering.money import CREDIT_NANOUSD
from metering.plans import Plans
from metering.users import plan_at
from provisioning.instances import LISTED_MAX, Instances

# The month's allowance is that of the plan, not of the account, which knows a new plan from the next request on: one that rests
# makes none. Prepaid credit counts as money that is left.
SELECT_SPENDING = """
SELECT i.user_id, i.is_over_budget, i.desired = 'running' AND i.status <> 'suspended' AND i.due_at_ms IS NULL, u.plan, u.plan_until_ms, u.next_plan, COALESCE(m.spent, 0),
    COALESCE(c.allowance - c.spent - c.held, 0)
FROM instances i JOIN users u ON u.id = i.user_id
LEFT JOIN accounts m ON m.owner = 'user:' || i.user_id AND m.meter = 'money' AND m.period = ?1
LEFT JOIN accounts c ON c.owner = 'user:' || i.user_id AND c.meter = 'credit' AND c.period = ''
WHERE i.ready_at_ms IS NOT NULL AND i.desired <> 'gone' AND i.user_id > ?2 ORDER BY i.user_id LIMIT ?3"""


async def over_budget(instances: Instances, plans: Plans | None) -> list[tuple[str, bool]]:
    """Users whose machine is to be suspended for that (also once more, where it could not be), or to come back, and which. Without
    `plans` nobody is over. LISTED_MAX are looked at at once.

    Less than one credit left counts as nothing. Raises Refused(STORE_UNAVAILABLE).
    """
    now_ms = instances.clock.now_ms()
    found: list[tuple[str, bool]] = []
    after = ""
    while True:
        rows = cast(
            "list[tuple[str, int, int, str, int | None, str | None, int, int]]",
            await instances.rows(SELECT_SPENDING, (month_of(now_ms), after, LISTED_MAX)),
        )
        for user_id, was_over, runs, plan, until_ms, next_plan, spent, credit in rows:
            is_over = False
            if plans is not None:
                bought = plans.get(plan_at(now_ms, plan, until_ms, next_plan))
                left = 0 if bought is None else bought.allowance_nanousd - spent
                is_over = max(left, 0) + max(credit, 0) < CREDIT_NANOUSD
            if is_over != bool(was_over) or (is_over and runs):
                found.append((user_id, is_over))
        if len(rows) < LISTED_MAX:
            return found
        after = rows[-1][0]
