"""Who may: plan, rate, and the reservation of what a request may cost. Refuses with facts, never with words
of a vendor. The order is: what the plan includes, how fast, how much; the last is durable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from metering.caps import HELD_RETRY_AFTER_S, cap_holds, cap_of, cap_refusal, saving
from metering.clock import (
    Clock,
    Periods,
    date_of,
    day_of,
    month_end_ms,
    month_of,
    month_start_ms,
    period_end_ms,
)
from metering.credit import CREDIT
from metering.errors import Reason, Refused
from metering.ledger import (
    CHARGED,
    GAUGES,
    MONEY,
    NO_PERIOD,
    OPEN_REQUESTS,
    Hold,
    Intent,
    Ledger,
    Reservation,
    declined_hold,
    hold_of,
)
from metering.money import credits_left, credits_of
from metering.plans import SOFT, Plan
from metering.prices import Priced
from metering.quotas import (
    CONCURRENCIES,
    QUOTAS,
    concurrency_hold,
    concurrency_refusal,
    quota_holds,
    quota_refusal,
    quota_state,
)
from metering.rate_limits import RateLimits
from metering.rate_state import QuotaState, RateState, Standing
from metering.store.writer import Declined, Step
from metering.terms import OwnedCap, OwnedLimits, Terms, TokenLimits
from metering.tokens_per_minute import counted_tokens
from metering.values import immutable

NOT_ALONE = "not_alone"
"""The refusal of a unit whose request must wait for another one of its user's."""
ARE_NONE_HELD = """
UPDATE reservations SET operation = operation WHERE id = ?1 AND NOT EXISTS
    (SELECT 1 FROM reservations r WHERE r.state = 'HELD' AND r.user_id = ?2 AND r.surface = ?3 AND r.id <> ?1
     AND r.operation IN (?4, ?5, ?6, ?7)
     AND NOT EXISTS (SELECT 1 FROM deferred_work d WHERE d.reservation_id = r.id AND d.is_open = 0))"""
CONCURRENCY_RETRY_AFTER_S = 1.0
REPEAT_RETRY_AFTER_S = 1.0
CHANGED_RETRY_AFTER_S = 1.0
OWNERS_CHANGED = "owners_changed"
"""The refusal of a reservation that stands on an owner who may be none any more (metering/objects.py)."""
OPERATIONS_MAX = 4
"""Operations of one surface that a request may have to wait for, or that make the same kind of object."""
NO_QUOTAS: Mapping[str, int] = {}
LITTLE_LEFT_PERCENT = 5
"""A month with so much left counts as spent once a request is refused for it: the rest may never find a request that
is small enough. One that is refused for its size with more left says nothing of the month."""


class OwnersChangedError(Refused):
    """What a request names may have lost its owner while it was read: it must be looked at again."""

    def __init__(self) -> None:
        super().__init__(
            Reason.STORE_UNAVAILABLE,
            "What this request names is being changed. Nothing was sent or charged; retry shortly.",
            retry_after_s=CHANGED_RETRY_AFTER_S,
        )


@immutable
class Caller:
    """An authenticated agent: whom to bill, by which token, on which plan; and what that token may beside it."""

    user_id: str
    token_id: str
    plan: Plan
    token: Terms | None = None
    """None when its token, those it comes from, and its user have neither scope nor caps nor limits."""
    has_credit: bool = False
    """Prepaid credit was granted; what is left of it the ledger knows."""

    owner: str = field(init=False, compare=False)
    """Of the user's accounts."""
    limits: tuple[OwnedLimits, ...] = field(init=False, compare=False)
    """Limits of the gateway token and of those it comes from; empty for most. A request must
    pass the plan's and all of these."""
    owners: tuple[tuple[str, Plan | TokenLimits], ...] = field(init=False, compare=False)
    """All whose rates a request counts against, with their limits; the user is the first."""

    def __post_init__(self) -> None:
        """Found once: a caller is remembered with its gateway token."""
        owner, limits = owner_of(self.user_id), () if self.token is None else self.token.limits
        of_tokens = [(token, its) for _, token, its in limits]
        for name, value in (
            ("owner", owner),
            ("limits", limits),
            ("owners", ((owner, self.plan), *of_tokens)),
        ):
            object.__setattr__(self, name, value)


@immutable
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
    is_free: bool = False
    """It uses no tokens that count: a bucket below zero does not stop it."""
    quotas: Mapping[str, int] = field(default_factory=dict)
    """What it may use of the plan's counts, by meter."""
    runs: str = ""
    """The gauge that it is held on instead of that of requests in flight: it starts what goes on by itself."""
    costs_less: str = ""
    """What would cost less, for the words of a refusal; empty: nothing."""
    scheduled_ms: int | None = None
    """When its work will be done, if not now: the period whose quotas that counts against."""


@dataclass(slots=True)
class Admitted(Standing):
    """A durable reservation, and where the caller stands."""

    reservation: Reservation


class Claim(NamedTuple):
    """A step that goes with a reservation, and what a request is told for which it is refused."""

    step: Step
    refused: Refused


def require_surface(caller: Caller, surface: str) -> None:
    """Raises Refused(UNKNOWN_OPERATION) where the plan does not include it."""
    if not caller.plan.allows_surface(surface):
        raise Refused(Reason.UNKNOWN_OPERATION, f"{surface} is not included in the {caller.plan.name} plan.")


class Admission:
    """Plan, rate and budget of one process."""

    def __init__(
        self, ledger: Ledger, rate_limits: RateLimits, clock: Clock, *, upgrade_url: str = ""
    ) -> None:
        """`upgrade_url`: where users get another plan, for refusals of what theirs does not include; empty: nowhere."""
        self._upgrade_url = upgrade_url
        self._ledger = ledger
        self._rate_limits = rate_limits
        self._clock = clock
        self._periods = Periods(clock)
        self._month = ("", 0, 0)  # period, its beginning and its end in ms: computed once a month

    def check_plan(self, caller: Caller, surface: str, models: tuple[str, ...]) -> None:
        """What the plan includes. A model or surface outside it does not exist for this user (404)."""
        if caller.plan.includes_all:
            return
        require_surface(caller, surface)
        for model in models:
            if not caller.plan.allows_model(model):
                raise Refused(
                    Reason.MODEL_UNAVAILABLE,
                    f"model: {model} (not included in the {caller.plan.name} plan)",
                    facts={"model": model},
                )

    def check_rate(self, caller: Caller, *, is_free: bool = False) -> tuple[RateState, RateState]:
        """Count this request against the minute. The minute's requests and tokens then; what is refused by any of its
        owners counts on none."""
        if caller.limits:
            self._check_rates(caller, is_free=is_free)
            for owner, limits in caller.owners:
                if limits.requests_per_minute is not None:
                    self._rate_limits.hit(owner, limits.requests_per_minute)
            return self._tightest(caller)
        owner, plan = caller.owner, caller.plan
        tokens = self._rate_limits.tokens.look(owner, plan.tokens_per_minute)
        if not (tokens.is_allowed or is_free):
            raise _tokens_limited(tokens, _of_plan(caller))
        requests = self._rate_limits.hit(owner, plan.requests_per_minute)
        if not requests.is_allowed:
            raise _rate_limited(requests, _of_plan(caller))
        return requests, tokens

    def check_before_body(
        self, caller: Caller, surface: str, bodies: Mapping[str, int], *, is_free: bool = False
    ) -> None:
        """Whether a body may be waited for, so many being waited for already of each owner: what would be refused
        behind it is refused before it, and counts nothing."""
        self.check_plan(caller, surface, ())
        self._check_rates(caller, is_free=is_free)
        for owner, limits in caller.owners:
            limit = limits.concurrent_requests
            if limit is not None and bodies.get(owner, 0) >= limit:
                raise _too_many_concurrent(limit, _whose(caller, limits))

    def _check_rates(self, caller: Caller, *, is_free: bool) -> None:
        """Raise what refuses for longest, of all owners; count nothing."""
        refusals = []
        for owner, limits in caller.owners:
            if limits.tokens_per_minute is not None and not is_free:
                tokens = self._rate_limits.tokens.look(owner, limits.tokens_per_minute)
                if not tokens.is_allowed:
                    refusals.append(_tokens_limited(tokens, _whose(caller, limits)))
            if limits.requests_per_minute is not None:
                requests = self._rate_limits.look(owner, limits.requests_per_minute)
                if not requests.is_allowed:
                    refusals.append(_rate_limited(requests, _whose(caller, limits)))
        if refusals:
            raise max(refusals, key=lambda refused: refused.retry_after_s or 0.0)

    def _tightest(self, caller: Caller) -> tuple[RateState, RateState]:
        """Of all owners: what refuses for longest, or has least left, of requests and of tokens."""
        rates, owners = self._rate_limits, caller.owners
        requests = [
            rates.look(owner, limits.requests_per_minute)
            for owner, limits in owners
            if limits.requests_per_minute is not None
        ]
        tokens = [
            rates.tokens.look(owner, limits.tokens_per_minute)
            for owner, limits in owners
            if limits.tokens_per_minute is not None
        ]
        return min(requests, key=_room), min(tokens, key=_room)

    def standing(self, caller: Caller, budget_left_nanousd: int | None = None) -> Standing:
        """Where a caller stands whose request was not admitted, or needs no admission. Counts nothing."""
        requests, tokens = self._tightest(caller)
        _, began_ms, ends_ms = self._current_month()
        limit = max(
            caller.plan.allowance_nanousd, budget_left_nanousd or 0
        )  # with prepaid credit, more is left
        concurrent = _concurrent(caller)
        return Standing(requests, tokens, concurrent, limit, budget_left_nanousd, began_ms, ends_ms, ())

    async def left(self, caller: Caller, quotas: Sequence[str]) -> dict[str, int]:
        """What is neither spent nor held of the month's money, prepaid credit with it, and of these quotas, by meter. A
        soft budget bounds no money. Raises Refused(STORE_UNAVAILABLE)."""
        owner, plan, names = caller.owner, caller.plan, self._periods.names()
        left = {}
        if plan.budget != SOFT:
            money = await self._ledger.balance(owner, MONEY, self._current_month()[0])
            left[MONEY] = max(0, plan.allowance_nanousd - money.spent - money.held)
            if caller.has_credit:
                credit = await self._ledger.balance(owner, CREDIT, NO_PERIOD)
                left[MONEY] += credit.allowance - credit.spent - credit.held
        for meter in quotas:
            quota = QUOTAS[meter]
            balance = await self._ledger.balance(owner, meter, names[quota.period])
            left[meter] = max(0, quota.of(plan) - balance.spent - balance.held)
        return left

    def charge(self, caller: Caller, priced: Priced) -> None:
        """Count what an answer has used against the minute's tokens."""
        tokens = counted_tokens(priced)
        if not tokens:
            return
        if not caller.limits:
            self._rate_limits.tokens.charge(caller.owner, caller.plan.tokens_per_minute, tokens)
            return
        for owner, limit in token_rates_of(caller):
            self._rate_limits.tokens.charge(owner, limit, tokens)

    async def admit(
        self, caller: Caller, request: Request, *claims: Claim, steps: Sequence[Step] = ()
    ) -> Admitted:
        """Hold what the request may cost, with its claims and `steps`, which refuse nothing, in the same unit of work.
        Raises Refused."""
        self.check_plan(caller, request.surface, request.models)
        if caller.token is not None:
            caller.token.require(request.surface, request.operation)
            caller.token.require_models(request.models)
        requests, tokens = self.check_rate(caller, is_free=request.is_free)
        period, began_ms, ends_ms = self._current_month()
        holds = self._holds(caller, request, period)
        due_at_ms = None
        if request.due_in_s is not None:
            due_at_ms = self._clock.now_ms() + round(request.due_in_s * 1000)
        model = request.models[0] if request.models else None
        intent = Intent(
            request.id,
            caller.user_id,
            caller.token_id,
            request.surface,
            request.operation,
            model,
            holds,
            request.floor_nanousd,
            due_at_ms,
            request.quotas,
        )
        if claims:
            steps = (*[claim.step for claim in claims], *steps)
        reservation = await self._ledger.reserve(intent, *steps)
        if isinstance(reservation, Declined):
            for claim in claims:
                if reservation.refusal == claim.step.refusal:
                    raise claim.refused
            declined = declined_hold(holds, reservation)
            assert declined is not None, f"a reservation refused for something else: {reservation}"
            raise await self._refusal(declined, caller, request.hold_nanousd, costs_less=request.costs_less)
        plan, balances, remaining = caller.plan, reservation.balances, None
        allowance = plan.allowance_nanousd
        concurrent = _concurrent(caller) if caller.limits else plan.concurrent_requests
        if MONEY in balances:
            spent, held, _ = balances[MONEY]
            remaining = allowance - spent - held
            credit = balances.get(CREDIT)
            if credit is not None:
                allowance += credit.allowance - credit.spent
                remaining = max(0, remaining) + credit.allowance - credit.spent - credit.held
        quotas: tuple[QuotaState, ...] = ()
        if request.quotas:
            quotas = tuple(
                quota_state(hold, balances[hold.meter]) for hold in holds if hold.meter in request.quotas
            )
        return Admitted(
            requests, tokens, concurrent, allowance, remaining, began_ms, ends_ms, quotas, reservation
        )

    async def take_on(self, caller: Caller, caps: Sequence[OwnedCap], request: Request, *steps: Step) -> bool:
        """Hold what `request` may cost that is under way already at the vendor, with `steps` in the same unit, and without a place
        among what the user may run at once: as far as it was asked for, or nothing where not so much is left. It costs what it
        costs either way. `caps` are the user's. False when it was taken on before, or one of `steps` refused.

        Raises Refused(STORE_UNAVAILABLE).
        """
        period, _, _ = self._current_month()
        holds = [hold for hold in self._holds(caller, request, period) if hold.meter not in GAUGES]
        holds += cap_holds(caps, self._periods.names(), request.hold_nanousd)
        intent = Intent(
            id=request.id,
            user_id=caller.user_id,
            token_id=caller.token_id,
            surface=request.surface,
            operation=request.operation,
            model=None,
            holds=holds,
            floor_nanousd=request.floor_nanousd,
            due_at_ms=self._clock.now_ms() + round((request.due_in_s or 0.0) * 1000),
            is_under_way=True,
        )
        reservation = await self._ledger.reserve(intent, *steps)
        if isinstance(reservation, Declined) and declined_hold(holds, reservation) is not None:
            nothing = [hold._replace(amount=0) for hold in holds]
            reservation = await self._ledger.reserve(replace(intent, holds=nothing), *steps)
        return not isinstance(reservation, Declined)

    def _holds(self, caller: Caller, request: Request, period: str) -> list[Hold]:
        """On every account that has a say."""
        owner, plan = caller.owner, caller.plan
        if request.runs:
            holds = [concurrency_hold(owner, plan, request.runs)]
        else:
            holds = [hold_of((owner, OPEN_REQUESTS, NO_PERIOD, 1, plan.concurrent_requests))]
        if request.hold_nanousd:
            holds.append(hold_of((owner, MONEY, period, request.hold_nanousd, plan.allowance_nanousd)))
            if caller.has_credit:
                holds.append(Hold(owner, CREDIT, NO_PERIOD, 0, 0))
        if caller.token is not None:
            holds += cap_holds(caller.token.caps, self._periods.names(), request.hold_nanousd)
            if not request.runs:
                holds += [
                    Hold(token, OPEN_REQUESTS, NO_PERIOD, 1, limits.concurrent_requests)
                    for _, token, limits in caller.token.limits
                    if limits.concurrent_requests is not None
                ]
        if request.quotas:
            holds += quota_holds(owner, plan, self._periods_of(request), request.quotas)
        return holds

    def _periods_of(self, request: Request) -> Mapping[str, str]:
        """The day and the month in which its work is done."""
        scheduled_ms = request.scheduled_ms
        if scheduled_ms is None or scheduled_ms <= self._clock.now_ms():
            return self._periods.names()
        return {"day": day_of(scheduled_ms), "month": month_of(scheduled_ms)}

    async def extend(
        self,
        caller: Caller,
        reservation: Reservation,
        *,
        until_nanousd: int,
        used_nanousd: int,
        costs_less: str = "",
    ) -> Refused | None:
        """Hold so much in all for a request that goes on; the refusal when an account has not enough left.

        A soft budget lets what runs finish, with what it holds, but no cap does. `used_nanousd`: what is known to
        be used, and `costs_less`, as Request has it, are for the words. May be repeated. Raises Refused(STORE_UNAVAILABLE).
        """
        await self._ledger.extension_of(reservation)
        more_nanousd = until_nanousd - reservation.hold_nanousd
        if more_nanousd <= 0:
            return None
        holds = reservation.intent.holds
        more = [hold._replace(amount=more_nanousd) for hold in holds if hold.meter in CHARGED]
        hold = await self._declined(reservation, more)
        if hold is not None and hold.meter == MONEY and caller.plan.budget == SOFT:
            hold = await self._declined(reservation, [one for one in more if one.meter != MONEY])
        if hold is None:
            return None
        refused = await self._refusal(
            hold,
            caller,
            more_nanousd,
            costs_less=costs_less,
            own_nanousd=reservation.hold_nanousd,
            used_nanousd=used_nanousd,
        )
        if hold.meter == MONEY and refused.reason is Reason.BUDGET_EXHAUSTED:
            reservation.refused_of_nanousd = hold.allowance
        return refused

    async def extend_running(
        self, reservation: Reservation, *, more_nanousd: int, more: Mapping[str, int], budget: str
    ) -> Hold | None:
        """Hold more for what goes on by itself, as it was found in the store: nano-USD, and counts by meter. The hold
        that was refused, by the allowances that stand in the accounts; None when all is granted, or the reservation is
        not what it was found as.

        A soft `budget` lets it run on, with what it holds of money; its counts are never soft. Raises
        Refused(STORE_UNAVAILABLE).
        """
        wanted = [
            Hold(*line[:3], more_nanousd if line.meter in CHARGED else more.get(line.meter, 0), 0)
            for line in reservation.lines
            if line.meter in CHARGED or line.meter in more
        ]
        hold = await self._declined(reservation, wanted)
        if hold is not None and hold.meter == MONEY and budget == SOFT:
            hold = await self._declined(reservation, [one for one in wanted if one.meter != MONEY])
        return hold

    async def _declined(self, reservation: Reservation, more: Sequence[Hold]) -> Hold | None:
        """The hold that is refused; None when all are granted, or there is nothing to hold them for any more: taken
        for dead, a worker's request goes on to its exact report."""
        if not more:
            return None
        declined = await self._ledger.extend(reservation, more)
        if declined is None:
            return None
        credit = [Hold(*line[:3], 0, 0) for line in reservation.lines if line.meter == CREDIT]
        is_beside = any(hold.meter == MONEY for hold in more)
        return declined_hold([*more, *(credit if is_beside else ())], declined)

    async def _refusal(
        self,
        hold: Hold,
        caller: Caller,
        asked_nanousd: int,
        *,
        costs_less: str,
        own_nanousd: int = 0,
        used_nanousd: int = 0,
    ) -> Refused:
        """`costs_less`: as Request has it; `own_nanousd`: what the request holds already; `used_nanousd`: what of it is known to be used."""
        if hold.meter == OPEN_REQUESTS:
            is_plans = hold.owner == caller.owner
            return _too_many_concurrent(hold.allowance, _of_plan(caller) if is_plans else _OF_KEY)
        if hold.meter in CONCURRENCIES:
            return concurrency_refusal(hold, caller.plan.name, upgrade_url=self._upgrade_url)
        if hold.meter == MONEY:
            return await self._budget_refusal(
                caller,
                asked_nanousd,
                hold.period,
                costs_less=costs_less,
                own_nanousd=own_nanousd,
                used_nanousd=used_nanousd,
            )
        balance = await self._ledger.balance(hold.owner, hold.meter, hold.period)
        if hold.meter in QUOTAS:
            return quota_refusal(hold, balance, caller.plan.name, upgrade_url=self._upgrade_url)
        assert caller.token is not None
        cap = cap_of(hold, caller.token.caps)
        return cap_refusal(
            cap,
            hold,
            balance,
            costs_less=costs_less,
            own_nanousd=own_nanousd,
            used_nanousd=used_nanousd,
        )

    async def _budget_refusal(
        self,
        caller: Caller,
        asked_nanousd: int,
        period: str,
        *,
        costs_less: str,
        own_nanousd: int = 0,
        used_nanousd: int = 0,
    ) -> Refused:
        """Spent, or only held, or too large: three different things to tell a person. All else as `_refusal`."""
        allowance, owner = caller.plan.allowance_nanousd, caller.owner
        money = await self._ledger.balance(owner, MONEY, period)
        credit = await self._ledger.balance(owner, CREDIT, NO_PERIOD) if caller.has_credit else None
        month_left = max(0, allowance - money.spent)
        prepaid_left = credit.allowance - credit.spent if credit else 0
        left_nanousd = max(0, allowance - money.spent - money.held)
        left_nanousd += credit.allowance - credit.spent - credit.held if credit else 0
        used, limit = credits_of(money.spent + min(used_nanousd, month_left)), credits_of(allowance)
        resets = date_of(period_end_ms(period))
        facts: dict[str, int | str] = {"used_credits": used, "limit_credits": limit, "resets": resets}
        if own_nanousd + asked_nanousd <= month_left + prepaid_left:
            return Refused(
                Reason.BUDGET_HELD,
                "Requests in flight hold the rest of the credits; retry when they have finished.",
                retry_after_s=HELD_RETRY_AFTER_S,
                facts=facts,
                budget_left_nanousd=left_nanousd,
            )
        not_used_nanousd = month_left + prepaid_left - used_nanousd
        if not own_nanousd and month_left * 100 <= allowance * LITTLE_LEFT_PERCENT:
            self._ledger.charged.note(owner, period, spent_nanousd=allowance)
        if (not_used_nanousd < asked_nanousd and own_nanousd) or not credits_left(not_used_nanousd):
            prepaid = ", prepaid credit used up" if credit else ""
            message = (
                f"Monthly usage limit reached ({used:,} of {limit:,} credits{prepaid}). Resets on {resets}."
            )
        else:
            prepaid = f" and {credits_left(prepaid_left):,} prepaid" if credit else ""
            message = (
                f"Monthly usage limit reached for a request of this size: it may cost up to "
                f"{credits_of(own_nanousd + asked_nanousd):,} credits, {credits_left(month_left):,} of {limit:,} "
                f"are left{prepaid}{saving(costs_less)}. Resets on {resets}."
            )
        return Refused(
            Reason.BUDGET_EXHAUSTED,
            message,
            facts=facts,
            budget_left_nanousd=left_nanousd,
        )

    def _current_month(self) -> tuple[str, int, int]:
        """The monthly period, its beginning and its end in ms. Computed when the month changes, not for every
        request."""
        now_ms = self._clock.now_ms()
        month = self._month
        if not month[1] <= now_ms < month[2]:
            month = (month_of(now_ms), month_start_ms(now_ms), month_end_ms(now_ms))
            self._month = month
        return month


def token_rates_of(caller: Caller) -> list[tuple[str, int]]:
    """Whose tokens per minute an answer counts against, with the limit of each."""
    return [
        (owner, limits.tokens_per_minute)
        for owner, limits in caller.owners
        if limits.tokens_per_minute is not None
    ]


def _concurrent(caller: Caller) -> int:
    if not caller.limits:
        return caller.plan.concurrent_requests
    own = [
        limits.concurrent_requests for _, _, limits in caller.limits if limits.concurrent_requests is not None
    ]
    return min([caller.plan.concurrent_requests, *own])


def _room(rate: RateState) -> tuple[float, int, int]:
    """The less, the tighter."""
    return -rate.retry_after_s, rate.remaining, -rate.reset_ms


class _Whose(NamedTuple):
    """Whose limit it is, in words and for the log."""

    words: str
    facts: Mapping[str, str]


_OF_KEY = _Whose("for this API key", {"limit_of": "key"})


def _of_plan(caller: Caller) -> _Whose:
    return _Whose(f"on the {caller.plan.name} plan", {})


def _whose(caller: Caller, limits: Plan | TokenLimits) -> _Whose:
    return _of_plan(caller) if limits is caller.plan else _OF_KEY


def _rate_limited(rate: RateState, whose: _Whose) -> Refused:
    return Refused(
        Reason.RATE_LIMITED,
        f"Rate limit reached: {rate.limit} requests per minute {whose.words}.",
        retry_after_s=rate.retry_after_s,
        facts={"limit": rate.limit, **whose.facts},
    )


def _tokens_limited(rate: RateState, whose: _Whose) -> Refused:
    return Refused(
        Reason.TOKENS_RATE_LIMITED,
        f"Rate limit reached: {rate.limit:,} tokens per minute {whose.words}.",
        retry_after_s=rate.retry_after_s,
        facts={"limit": rate.limit, **whose.facts},
    )


def _too_many_concurrent(limit: int, whose: _Whose) -> Refused:
    return Refused(
        Reason.TOO_MANY_CONCURRENT,
        f"Too many requests at once: {limit} may be in flight {whose.words}.",
        retry_after_s=CONCURRENCY_RETRY_AFTER_S,
        facts={"limit": limit, **whose.facts},
    )


def padded(operations: Sequence[str]) -> tuple[str, ...]:
    """As many names as a statement has places for."""
    assert 0 < len(operations) <= OPERATIONS_MAX, operations
    return (*operations, *[operations[-1]] * (OPERATIONS_MAX - len(operations)))


def not_during(request_id: str, user_id: str, surface: str, operations: Sequence[str]) -> Claim:
    """What keeps a request from running beside any of these operations of its user."""
    step = Step(ARE_NONE_HELD, (request_id, user_id, surface, *padded(operations)), refusal=NOT_ALONE)
    words = "Another request that changes the same is under way."
    return Claim(step, Refused(Reason.CONFLICT, words, retry_after_s=REPEAT_RETRY_AFTER_S))


def repeat_running() -> Refused:
    """The same request is under way, in the hands of somebody else."""
    return Refused(
        Reason.CONFLICT,
        "The same request is still under way under this idempotency key.",
        retry_after_s=REPEAT_RETRY_AFTER_S,
    )


def owner_of(user_id: str) -> str:
    """The owner of a user's accounts."""
    return f"user:{user_id}"
