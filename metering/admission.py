"""Who may: plan, rate, and the reservation of what a request may cost. Refuses with facts, never with words
of a vendor. The order is: what the plan includes, how fast, how much; the last is durable."""

from dataclasses import dataclass

from metering.caps import HELD_RETRY_AFTER_S, CapHolds, cap_of, cap_refusal
from metering.clock import Clock, month_of, next_month, utc
from metering.credit import CREDIT
from metering.errors import Reason, Refused
from metering.ledger import (
    CHARGED,
    MONEY,
    NO_PERIOD,
    OPEN_REQUESTS,
    Hold,
    Intent,
    Ledger,
    Reservation,
    declined_hold,
)
from metering.money import credits_left, credits_of
from metering.plans import SOFT, Plan
from metering.rate_limits import RateLimits, RateState
from metering.store.writer import Declined, store_unavailable
from metering.terms import Terms

CONCURRENCY_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated agent: whom to bill, by which token, on which plan; and what that token may beside it."""

    user_id: str
    token_id: str
    plan: Plan
    token: Terms | None = None
    """None when its token, those it comes from, and its user have neither scope nor caps nor limits."""
    has_credit: bool = False
    """Prepaid credit was granted; what is left of it the ledger knows."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: the operation, the models it may run on, and what is to be held for it in nano-USD: its price at
    most, or as far as it may get before more is asked for. `floor_nanousd` is its price at least."""

    id: str
    surface: str
    operation: str
    models: tuple[str, ...]
    hold_nanousd: int
    floor_nanousd: int
    due_in_s: float | None = None
    """The work may go on after its request; its hold lives for so long without a word of it."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A durable reservation, and where the user stands."""

    reservation: Reservation
    rate: RateState
    budget_limit_nanousd: int
    """The month's allowance, and beside it the prepaid credit that is not spent yet."""
    budget_remaining_nanousd: int | None
    """Of both, neither spent nor held. None when the request holds no money (a free operation): nothing was
    looked up."""
    budget_reset_ms: int


class Admission:
    """Plan, rate and budget of one process."""

    def __init__(self, ledger: Ledger, rate_limits: RateLimits, clock: Clock) -> None:
        self._ledger = ledger
        self._rate_limits = rate_limits
        self._clock = clock
        self._caps = CapHolds(clock)
        self._month = ("", 0, 0)  # period, its end in ms, end of validity: computed once a month

    def check_plan(self, caller: Caller, surface: str, models: tuple[str, ...]) -> None:
        """What the plan includes. A model or surface outside it does not exist for this user (404)."""
        if not caller.plan.allows_surface(surface):
            raise Refused(
                Reason.UNKNOWN_OPERATION, f"{surface} is not included in the {caller.plan.name} plan."
            )
        for model in models:
            if not caller.plan.allows_model(model):
                raise Refused(
                    Reason.MODEL_UNAVAILABLE,
                    f"model: {model} (not included in the {caller.plan.name} plan)",
                    facts={"model": model},
                )

    def check_rate(self, caller: Caller) -> RateState:
        """Count this request against the minute."""
        rate = self._rate_limits.hit(owner_of(caller.user_id), caller.plan.requests_per_minute)
        if not rate.is_allowed:
            raise _rate_limited(caller, rate)
        return rate

    def check_before_body(self, caller: Caller, surface: str, bodies: int) -> None:
        """Whether a body may be waited for, `bodies` of the caller's being waited for already: what would be
        refused behind it is refused before it, and counts nothing."""
        self.check_plan(caller, surface, ())
        rate = self._rate_limits.look(owner_of(caller.user_id), caller.plan.requests_per_minute)
        if not rate.is_allowed:
            raise _rate_limited(caller, rate)
        if bodies >= caller.plan.concurrent_requests:
            raise _too_many_concurrent(caller)

    async def admit(self, caller: Caller, request: Request) -> Admitted:
        """Hold what the request may cost. Raises Refused."""
        self.check_plan(caller, request.surface, request.models)
        if caller.token is not None:
            caller.token.require(request.surface, request.operation)
            caller.token.require_models(request.models)
        rate = self.check_rate(caller)
        owner, allowance = owner_of(caller.user_id), caller.plan.allowance_nanousd
        period, period_end_ms = self._current_month()
        holds = [Hold(owner, OPEN_REQUESTS, NO_PERIOD, 1, caller.plan.concurrent_requests)]
        if request.hold_nanousd:
            holds.append(Hold(owner, MONEY, period, request.hold_nanousd, allowance))
            if caller.has_credit:
                holds.append(Hold(owner, CREDIT, NO_PERIOD, 0, 0))
        if caller.token is not None:
            holds += self._caps.holds(caller.token.caps, request.hold_nanousd)
        intent = Intent(
            id=request.id,
            user_id=caller.user_id,
            token_id=caller.token_id,
            surface=request.surface,
            operation=request.operation,
            model=request.models[0] if request.models else None,
            holds=holds,
            floor_nanousd=request.floor_nanousd,
            due_at_ms=(
                None if request.due_in_s is None else self._clock.now_ms() + round(request.due_in_s * 1000)
            ),
        )
        reservation = await self._ledger.reserve(intent)
        if isinstance(reservation, Declined):
            declined = declined_hold(holds, reservation)
            assert declined is not None, f"a reservation refused for something else: {reservation}"
            raise await self._refusal(declined, caller, request.hold_nanousd)
        money, credit = reservation.balances.get(MONEY), reservation.balances.get(CREDIT)
        remaining = allowance - money.spent - money.held if money else None
        if remaining is not None and credit is not None:
            allowance += credit.allowance - credit.spent
            remaining = max(0, remaining) + credit.allowance - credit.spent - credit.held
        return Admitted(reservation, rate, allowance, remaining, period_end_ms)

    async def extend(self, caller: Caller, reservation: Reservation, more_nanousd: int) -> Refused | None:
        """Hold more for a request that goes on; the refusal when an account has not enough left.

        A soft budget lets what runs finish, but no cap. Raises Refused(STORE_UNAVAILABLE).
        """
        holds = reservation.intent.holds
        more = [hold._replace(amount=more_nanousd) for hold in holds if hold.meter in CHARGED]
        is_forced = caller.plan.budget == SOFT
        declined = await self._ledger.extend(reservation, more, is_forced=is_forced)
        if declined is None:
            return None
        hold = declined_hold([*more, *(hold for hold in holds if hold.meter == CREDIT)], declined)
        if hold is None:
            raise store_unavailable("it took this request's worker for dead")
        return await self._refusal(hold, caller, more_nanousd, own_nanousd=reservation.hold_nanousd)

    async def _refusal(
        self, hold: Hold, caller: Caller, asked_nanousd: int, *, own_nanousd: int = 0
    ) -> Refused:
        if hold.meter == OPEN_REQUESTS:
            return _too_many_concurrent(caller)
        if hold.meter == MONEY:
            return await self._budget_refusal(caller, asked_nanousd, hold.period, own_nanousd=own_nanousd)
        assert caller.token is not None
        balance = await self._ledger.balance(hold.owner, hold.meter, hold.period)
        cap = cap_of(hold, caller.token.caps)
        return cap_refusal(cap, hold, balance, self._clock.now_ms(), own_nanousd=own_nanousd)

    async def _budget_refusal(
        self, caller: Caller, asked_nanousd: int, period: str, *, own_nanousd: int = 0
    ) -> Refused:
        """Spent, or only held, or too large: three different things to tell a person.

        `own_nanousd`: what the request holds already, of which it has used most."""
        allowance, owner = caller.plan.allowance_nanousd, owner_of(caller.user_id)
        money = await self._ledger.balance(owner, MONEY, period)
        credit = await self._ledger.balance(owner, CREDIT, NO_PERIOD) if caller.has_credit else None
        month_left = max(0, allowance - money.spent)
        prepaid_left = credit.allowance - credit.spent if credit else 0
        used, limit = credits_of(money.spent + min(own_nanousd, month_left)), credits_of(allowance)
        resets = next_month(self._clock.now_ms()).strftime("%-d %B %Y")
        facts: dict[str, int | str] = {"used_credits": used, "limit_credits": limit, "resets": resets}
        if own_nanousd + asked_nanousd <= month_left + prepaid_left:
            return Refused(
                Reason.BUDGET_HELD,
                "Requests in flight hold the rest of the credits; retry when they have finished.",
                retry_after_s=HELD_RETRY_AFTER_S,
                facts=facts,
            )
        if own_nanousd or not credits_left(month_left + prepaid_left):
            prepaid = ", prepaid credit used up" if credit else ""
            message = (
                f"Monthly usage limit reached ({used:,} of {limit:,} credits{prepaid}). Resets on {resets}."
            )
        else:
            prepaid = f" and {credits_left(prepaid_left):,} prepaid" if credit else ""
            message = (
                f"Monthly usage limit reached for a request of this size: it may cost up to "
                f"{credits_of(asked_nanousd):,} credits, {credits_left(month_left):,} of {limit:,} "
                f"are left{prepaid} (a lower max_tokens costs less). Resets on {resets}."
            )
        return Refused(Reason.BUDGET_EXHAUSTED, message, facts=facts)

    def _current_month(self) -> tuple[str, int]:
        """The monthly period and its end in ms. Computed when the month changes, not for every request."""
        now_ms = self._clock.now_ms()
        period, starts_ms, ends_ms = self._month
        if not starts_ms <= now_ms < ends_ms:
            period, ends_ms = month_of(now_ms), round(next_month(now_ms).timestamp() * 1000)
            month = utc(now_ms).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            self._month = (period, round(month.timestamp() * 1000), ends_ms)
        return period, ends_ms


def _rate_limited(caller: Caller, rate: RateState) -> Refused:
    return Refused(
        Reason.RATE_LIMITED,
        f"Rate limit reached: {rate.limit} requests per minute on the {caller.plan.name} plan.",
        retry_after_s=rate.retry_after_s,
        facts={"limit": rate.limit},
    )


def _too_many_concurrent(caller: Caller) -> Refused:
    limit = caller.plan.concurrent_requests
    return Refused(
        Reason.TOO_MANY_CONCURRENT,
        f"Too many requests at once: {limit} may be in flight on the {caller.plan.name} plan.",
        retry_after_s=CONCURRENCY_RETRY_AFTER_S,
        facts={"limit": limit},
    )


def owner_of(user_id: str) -> str:
    """The owner of a user's accounts."""
    return f"user:{user_id}"
