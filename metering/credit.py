"""Prepaid credit beside the month's allowance: which of the two accounts holds, and which pays. Pure arithmetic.

A request of a user with credit has two accounts that pay together: the **month** (what the plan allows) and the
**credit** (what was granted; it has no period). Two rules:

    hold     on credit first    credit = min(hold, what is left there); the month must have the rest
    charge   the month first    month = min(cost, what it held there + what is left there);
                                credit = min(the rest, what it held there + what is left there);
                                what neither has is *uncovered*: booked on the month, over its allowance

*Left* is allowance - spent - held, or 0 if that is negative. So a request is granted if and only if both together
have its hold left, and credit pays only for what the month has not got: used up, or held by other requests.

Why the holds go the other way round: what is held on the month cannot be charged by others, so a hold there would
push their costs onto credit. What is held on credit stands in nobody's way until credit is all held.

**Neither account is ever overdrawn by what it was held for.** Let `over` = max(0, spent + held - allowance) of an
account; a hold is granted only where it leaves `over` as it is. A charge takes back its own `h` and spends `m`:
1. `m <= h`: spent + held does not grow.
2. `m > h`: then something is left, and m <= h + left: spent + held ends at the allowance at most.
Either way `over` does not grow. What is uncovered is what remains: it is positive only when both parts are all of
`h + left` >= `h`, so it is at most cost - hold: a part of the request's own overage (on a soft budget, of what the two of
them did not hold). Hence, in any order of verbs,

    credit:  spent + held <= granted                             (always; `ledger verify` holds it to this)
    month:   spent + held <= allowance + sum of overages         (of the largest allowance it was held under)

A void charges 0; an expiry charges its checkpoint, which is never above the hold; an extension is one more hold. A
correction (late report, new price) has no hold: one upwards is charged by the same rule with `h` = 0, one
downwards is given back to credit first, up to what this very request was charged there: what was paid last.

A plan change moves nothing that is spent. The month's row carries the allowance of its last hold, and a charge is
split by that. What a request holds on the month stays its own, also when the plan has become smaller since.
"""

from typing import NamedTuple, cast

from metering.store.writer import Row

CREDIT = "credit"
"""The meter of prepaid credit, in nano-USD: one account of a user, whose allowance is the sum of all grants."""

# Its own statement and no SELECT: a store with several writers takes the row's lock by it.
LOCK_ACCOUNT = """
UPDATE accounts SET held = held WHERE owner = ?1 AND meter = ?2 AND period = ?3 RETURNING spent, held, allowance"""

# A hold of nothing is granted whatever was spent, and leaves word of the plan's allowance: credit holds all of it.
HOLD_BESIDE_CREDIT = """
INSERT INTO accounts (owner, meter, period, allowance, spent, held)
SELECT ?1, ?2, ?3, ?4, 0, ?5 WHERE ?5 <= ?4
ON CONFLICT (owner, meter, period) DO UPDATE
SET held = accounts.held + excluded.held, allowance = excluded.allowance
WHERE excluded.held = 0 OR accounts.spent + accounts.held + excluded.held <= excluded.allowance"""

ADD_CREDIT_CHARGED = "UPDATE reservations SET credit_nanousd = credit_nanousd + ?2 WHERE id = ?1"


class Split(NamedTuple):
    """One amount in its two parts."""

    money: int
    credit: int


NOTHING = Split(0, 0)


class Charge(NamedTuple):
    """What each account pays of one cost, and what neither has left."""

    money: int
    credit: int
    uncovered: int = 0

    @property
    def spent(self) -> Split:
        """What is booked: the uncovered is the month's."""
        return Split(self.money + self.uncovered, self.credit)

    def within(self, hold: int) -> Split:
        """The part of the settle's own entry: up to the hold, from the month first. What neither has left can be part of it:
        on a soft budget, a cap holds what these two did not."""
        money = min(self.money, hold)
        credit = min(self.credit, hold - money)
        return Split(hold - credit, credit)

    def above(self, hold: int) -> Split:
        """The part of the overage's entry."""
        within = self.within(hold)
        return Split(self.money + self.uncovered - within.money, self.credit - within.credit)


def held_on(hold: int, credit: Row | None) -> Split:
    """Where a hold goes: as much as can be on credit. `credit`: (spent, held, allowance), None for no account."""
    on_credit = min(hold, _left(credit))
    return Split(hold - on_credit, on_credit)


def charged_to(cost: int, held: Split, *, money: Row | None, credit: Row | None) -> Charge:
    """Who pays a cost of which `held` is held. The rows are the accounts before anything is given back."""
    on_money = min(cost, held.money + _left(money))
    on_credit = min(cost - on_money, held.credit + _left(credit))
    return Charge(on_money, on_credit, cost - on_money - on_credit)


def corrected_on(difference: int, credit_charged: int, *, money: Row | None, credit: Row | None) -> Charge:
    """Who pays, or gets back, the difference to what was booked. `credit_charged`: on credit, for this request."""
    if difference >= 0:
        return charged_to(difference, NOTHING, money=money, credit=credit)
    to_credit = min(-difference, credit_charged)
    return Charge(difference + to_credit, -to_credit)


def _left(account: Row | None) -> int:
    if account is None:
        return 0
    spent, held, allowance = cast("tuple[int, int, int]", account)
    return max(0, allowance - spent - held)
