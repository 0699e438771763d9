"""Notices of budgets: a user's month has reached 50, 80 or 100 % of its allowance. Once per period and threshold.

Theory of operation. What charges money notes whose it was (metering/charged.py); a task looks at those accounts every
NOTICES_EVERY_S and writes a row for each threshold that is reached and has none, with its message in the same unit.
The primary key decides who was first. What was noted is lost with the process: so all accounts are looked through at
the start, when a worker was buried, and every NOTICES_SWEEP_S.

The allowance is that of the plan in force at the look (of a period that is over, at its end). 100 % is reached, too,
when a request was refused or a stream cut for the budget with little left of it (metering/admission.py).
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from metering.charged import Charged
from metering.clock import Clock, instant, month_of, period_end_ms
from metering.errors import Refused
from metering.money import credits_of
from metering.outbox import Message, adding, new_message
from metering.plans import Plans
from metering.store.readers import Readers
from metering.store.store import Store
from metering.store.writer import Done, Row, Step, Unit
from metering.users import plan_at
from metering.values import immutable

logger = logging.getLogger(__name__)

THRESHOLDS_PERCENT = (50, 80, 100)
NOTICES_EVERY_S = 2.0
NOTICES_SWEEP_S = 300.0
LATE_S = 86_400.0
"""A period that has just ended is swept for so long: what began in it may have settled after its end."""
LOOKED_AT_ONCE = 100
"""Accounts per statement."""
SWEPT_AT_ONCE = 500
"""Users per statement: some 5 ms, of which the event loop sees half."""
LISTED_MAX = 1_000
KIND = "budget.threshold_reached"
ENDPOINT = "notices"
"""Who is told, in the outbox."""
TOLD = "told"
DELIVERED, WAITING, GIVEN_UP, NOT_SENT = "delivered", "waiting", "given up", "not sent"
"""What became of a notice's message; NOT_SENT: nobody was to be told."""
USER_OWNER = "user:"

_ACCOUNT_COLUMNS = """u.id, a.spent, u.plan, u.plan_until_ms, u.next_plan,
    COALESCE((SELECT MAX(n.threshold_percent) FROM notices n WHERE n.user_id = u.id AND n.period = ?1), 0)"""
SELECT_ACCOUNTS = f"""
SELECT {_ACCOUNT_COLUMNS}
FROM users u JOIN accounts a ON a.owner = 'user:' || u.id AND a.meter = 'money' AND a.period = ?1
WHERE u.id IN ({", ".join(f"?{place}" for place in range(2, 2 + LOOKED_AT_ONCE))})"""
# By users, whose accounts the primary key finds: of all periods together there are many more.
SELECT_SWEPT = f"""
SELECT {_ACCOUNT_COLUMNS}
FROM (SELECT id, plan, plan_until_ms, next_plan FROM users WHERE id > ?2 ORDER BY id LIMIT ?3) u
LEFT JOIN accounts a ON a.owner = 'user:' || u.id AND a.meter = 'money' AND a.period = ?1
ORDER BY u.id"""
INSERT_NOTICE = """
INSERT INTO notices (user_id, period, threshold_percent, at_ms, used_nanousd, limit_nanousd, plan, outbox_id)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
ON CONFLICT (user_id, period, threshold_percent) DO NOTHING RETURNING user_id"""
SELECT_NOTICES = """
SELECT n.user_id, n.period, n.threshold_percent, n.at_ms, n.used_nanousd, n.limit_nanousd, n.plan, n.outbox_id,
    o.id, o.delivered_at_ms, o.gave_up_at_ms
FROM notices n LEFT JOIN outbox o ON o.id = n.outbox_id
WHERE n.period = ?1 AND (?2 IS NULL OR n.user_id = ?2)
ORDER BY n.at_ms DESC, n.threshold_percent DESC LIMIT ?3"""


class _Found(NamedTuple):
    """An account as a look found it. `told`: the highest threshold that has its notice; all below it have theirs."""

    user_id: str
    spent_nanousd: int | None
    plan: str
    plan_until_ms: int | None
    next_plan: str | None
    told: int


@immutable
class Notice:
    """A threshold that was reached, and what became of its message."""

    user_id: str
    period: str
    threshold_percent: int
    at_ms: int
    used_nanousd: int
    limit_nanousd: int
    plan: str
    state: str

    def as_json(self) -> dict[str, Any]:
        return {
            "user": self.user_id,
            "period": self.period,
            "threshold_percent": self.threshold_percent,
            "at": instant(self.at_ms),
            "used_credits": credits_of(self.used_nanousd),
            "limit_credits": credits_of(self.limit_nanousd),
            "used_nanousd": self.used_nanousd,
            "limit_nanousd": self.limit_nanousd,
            "plan": self.plan,
            "state": self.state,
        }


def reached(spent_nanousd: int, allowance_nanousd: int, *, is_spent: bool = False) -> tuple[int, ...]:
    """The thresholds of an allowance that are reached, in order; `is_spent`: it was refused for."""
    if allowance_nanousd <= 0:
        return ()
    return tuple(
        percent
        for percent in THRESHOLDS_PERCENT
        if is_spent or spent_nanousd * 100 >= allowance_nanousd * percent
    )


class Notices:
    """What one process does about thresholds. With an `endpoint` of None, rows are written and nobody is told."""

    def __init__(
        self, store: Store, clock: Clock, *, plans: Plans, charged: Charged, endpoint: str | None = ENDPOINT
    ) -> None:
        self._store = store
        self._clock = clock
        self._plans = plans
        self._charged = charged
        self._endpoint = endpoint
        self._swept_at_s = -math.inf

    def sweep_soon(self) -> None:
        """Something may have been forgotten: look through all accounts at the next look."""
        self._swept_at_s = -math.inf

    async def keep_looking(self) -> None:
        """Look for ever; a store in trouble is waited out."""
        while True:
            try:
                await self.look()
            except Refused as error:
                logger.debug("no look for notices: %s", error)  # the store has said what is wrong with it
            except Exception:
                logger.exception("notices cannot be looked for")
            await asyncio.sleep(NOTICES_EVERY_S)

    async def look(self) -> int:
        """Write what notices are due for accounts that were charged, or for all when that is due; how many.

        Raises Refused(STORE_UNAVAILABLE), after which nothing is forgotten.
        """
        noted = self._charged.take()
        if not noted.is_all:
            self.sweep_soon()
        written = 0
        try:
            by_period: dict[str, list[str]] = {}
            for owner, period in noted.accounts:
                if owner.startswith(USER_OWNER):
                    by_period.setdefault(period, []).append(owner.removeprefix(USER_OWNER))
            for period, users in sorted(by_period.items()):
                for first in range(0, len(users), LOOKED_AT_ONCE):
                    for found in await self._accounts(period, users[first : first + LOOKED_AT_ONCE]):
                        spent_of = noted.accounts.get((USER_OWNER + found.user_id, period), 0)
                        written += await self._tell(found, period, refused_of_nanousd=spent_of)
        except BaseException:
            self._charged.give_back(noted)
            raise
        now_s = self._clock.monotonic_s()
        if now_s - self._swept_at_s >= NOTICES_SWEEP_S:
            self._swept_at_s = now_s  # before: a worker that is buried meanwhile asks for another
            try:
                written += await self._sweep()
            except BaseException:
                self.sweep_soon()
                raise
        return written

    async def _accounts(self, period: str, users: Sequence[str]) -> list[_Found]:
        padded = (*users, *[users[-1]] * (LOOKED_AT_ONCE - len(users)))
        return _found(await self._store.readers.rows(SELECT_ACCOUNTS, (period, *padded)))

    async def _sweep(self) -> int:
        now_ms = self._clock.now_ms()
        written = 0
        for period in sorted({month_of(now_ms), month_of(now_ms - round(LATE_S * 1000))}):
            last, is_more = "", True
            while is_more:
                rows = await self._store.readers.rows(SELECT_SWEPT, (period, last, SWEPT_AT_ONCE))
                for found in _found(rows):
                    written += await self._tell(found, period)
                    last = found.user_id
                is_more = len(rows) == SWEPT_AT_ONCE
        return written

    async def _tell(self, found: _Found, period: str, *, refused_of_nanousd: int = 0) -> int:
        """Write each threshold that is reached and has no notice, in order; how many were ours to write."""
        if found.spent_nanousd is None or found.told >= THRESHOLDS_PERCENT[-1]:
            return 0
        now_ms = self._clock.now_ms()
        at_ms = min(now_ms, period_end_ms(period) - 1)
        plan = self._plans.get(plan_at(at_ms, found.plan, found.plan_until_ms, found.next_plan))
        if plan is None:  # its requests are refused, with words
            return 0
        is_spent = refused_of_nanousd >= plan.allowance_nanousd
        due = [
            percent
            for percent in reached(found.spent_nanousd, plan.allowance_nanousd, is_spent=is_spent)
            if percent > found.told
        ]
        written = 0
        for percent in due:
            notice = Notice(
                found.user_id,
                period,
                percent,
                now_ms,
                found.spent_nanousd,
                plan.allowance_nanousd,
                plan.name,
                NOT_SENT if self._endpoint is None else WAITING,
            )
            unit = _unit(notice, None if self._endpoint is None else _message(notice, self._endpoint))
            written += isinstance(await self._store.writer.submit(unit), Done)
        return written


async def notices_of(
    readers: Readers, period: str, user_id: str | None = None, *, at_most: int = LISTED_MAX
) -> list[Notice]:
    """Of a period (and a user), newest first. Raises Refused(STORE_UNAVAILABLE)."""
    assert 0 <= at_most <= LISTED_MAX
    rows = await readers.rows(SELECT_NOTICES, (period, user_id, at_most))
    return [Notice(*row[:7], state=_state(row)) for row in rows]  # type: ignore[arg-type, misc]  # the schema's


# --- inside ------------------------------------------------------------------------------------------


def _found(rows: Sequence[Row]) -> list[_Found]:
    return [_Found(*cast("tuple[str, int | None, str, int | None, str | None, int]", row)) for row in rows]


def _unit(notice: Notice, message: Message | None) -> Unit:
    """The row, and with it the message; or neither, where somebody was faster."""
    params = (
        notice.user_id,
        notice.period,
        notice.threshold_percent,
        notice.at_ms,
        notice.used_nanousd,
        notice.limit_nanousd,
        notice.plan,
        None if message is None else message.id,
    )
    steps = [Step(INSERT_NOTICE, params, refusal=TOLD)]
    if message is not None:
        steps.append(adding(message))
    return Unit(steps)


def _message(notice: Notice, endpoint: str) -> Message:
    document = {
        "type": KIND,
        "timestamp": instant(notice.at_ms),
        "data": {
            "user": notice.user_id,
            "period": notice.period,
            "threshold_percent": notice.threshold_percent,
            "used_credits": credits_of(notice.used_nanousd),
            "limit_credits": credits_of(notice.limit_nanousd),
            "used_nanousd": notice.used_nanousd,
            "limit_nanousd": notice.limit_nanousd,
            "plan": notice.plan,
            "resets_at": instant(period_end_ms(notice.period)),
        },
    }
    return new_message(KIND, endpoint, document, notice.at_ms)


def _state(row: Row) -> str:
    outbox_id, found_id, delivered_at_ms, gave_up_at_ms = row[7:]
    if outbox_id is None:
        return NOT_SENT
    if found_id is None or delivered_at_ms is not None:  # the delivered are deleted after a while
        return DELIVERED
    return WAITING if gave_up_at_ms is None else GIVEN_UP
