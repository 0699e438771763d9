"""Phase "admit", the engine's part: what a request may use at most, what that may cost, and how much of it is held."""

from dataclasses import replace

import orjson

from metering.admission import NO_QUOTAS, Admission, Request
from metering.clock import Clock
from metering.errors import Reason, Refused
from metering.ledger import MONEY
from metering.plans import SOFT
from metering.prices import PriceTable
from metering.quotas import quotas_used
from metering.usage import Usage, UsageLine
from proxy.bounds import Bounds
from proxy.exchange import ADMIT, Exchange
from proxy.mounted import Mounted
from proxy.rewriting import body_of
from proxy.slices import Slices
from proxy.surface import NO_DEMAND, Demand, Operation, Pricing, Timed

SECONDS_PER_HOUR = 3_600


class Holds:
    """Prices what is asked for, by the table and the bounds of one worker."""

    def __init__(self, *, bounds: Bounds, prices: PriceTable, admission: Admission, clock: Clock) -> None:
        self._bounds = bounds
        self._prices = prices
        self._admission = admission
        self._clock = clock

    async def time_left_s(self, exchange: Exchange, mounted: Mounted, timed: Timed) -> int:
        """How long what costs by the second may run, as the accounts stand now. Only a bound for the vendor: what is granted is
        granted slice by slice."""
        assert exchange.operation is not None
        assert exchange.caller is not None
        hour = Usage((UsageLine(timed.product, {timed.unit: SECONDS_PER_HOUR}),))
        price, _ = self._prices.cost(mounted.surface.provider, hour, at_ms=self._clock.now_ms())
        left = await self._admission.left(exchange.caller, exchange.operation.quotas)
        seconds = [left[meter] for meter in exchange.operation.quotas]
        if MONEY in left and price:
            seconds.append(left[MONEY] * SECONDS_PER_HOUR // price)
        return min(seconds, default=SECONDS_PER_HOUR * 24)

    def price(self, exchange: Exchange, mounted: Mounted) -> Request:
        """What the request may cost. Fails closed: what cannot be priced is refused."""
        operation, inbound, caller = exchange.operation, exchange.inbound, exchange.caller
        assert operation is not None
        assert inbound is not None
        assert caller is not None
        provider, pricing = mounted.surface.provider, self.pricing(mounted)
        is_done = exchange.repeat is not None and exchange.repeat.is_done
        demand = NO_DEMAND if is_done else operation.meter.read(inbound, pricing)
        if operation.edits_body or demand.fields is not None:
            fields = inbound.fields if demand.fields is None else demand.fields
            said = body_of(
                operation,
                fields,
                user_id=caller.user_id,
                request_id=exchange.request_id,
                options=mounted.options,
                says=exchange.says,
            )
            if said is None and demand.fields is not None:
                said = orjson.dumps(demand.fields)
            demand = replace(demand, body=said, fields=None)
        exchange.demand = demand
        exchange.phase = ADMIT
        if operation.is_about_scheduled:
            exchange.is_scheduled = operation.scheduled is not None and demand.scheduled_ms is not None
            exchange.touches_scheduled = operation.touches is not None and not is_done
        at_first = self._held_at_first(operation, demand, caller.plan.budget)
        hold_nanousd, flags = self._prices.cost(provider, at_first, at_ms=pricing.now_ms)
        if flags:
            raise Refused(
                Reason.MODEL_UNAVAILABLE,
                f"model: {', '.join(demand.models)} ({', '.join(flags)})",
                facts={"model": demand.models[0] if demand.models else ""},
            )
        floor_nanousd, _ = self._prices.cost(provider, demand.floor, at_ms=pricing.now_ms)
        return Request(
            exchange.request_id,
            mounted.surface.name,
            operation.name,
            demand.models,
            hold_nanousd,
            floor_nanousd,
            self._due_in_s(operation, demand) if operation.scheduled or operation.deferred else None,
            operation.meter.is_free,
            quotas_used(at_first, operation.quotas) if operation.quotas else NO_QUOTAS,
            operation.timed.gauge if operation.timed is not None else "",
            demand.costs_less,
            demand.scheduled_ms,
        )

    def _due_in_s(self, operation: Operation, demand: Demand) -> float | None:
        """How long a hold lives of which nothing is heard, where its work may go on after its request."""
        if operation.scheduled is not None and demand.scheduled_ms is not None:
            ahead_s = (demand.scheduled_ms - self._clock.now_ms()) / 1000
            return max(ahead_s, 0.0) + operation.scheduled.due_s
        return operation.deferred.due_s if operation.deferred and demand.is_deferred else None

    def pricing(self, mounted: Mounted) -> Pricing:
        per_token = self._bounds.estimate_bytes_per_token
        return Pricing(self._prices, self._clock.now_ms(), per_token, mounted.options)

    def _held_at_first(self, operation: Operation, demand: Demand, budget: str) -> Usage:
        """All that the request may use; of a stream that can be cut, and on a budget that lets all finish, no more
        visible output than a slice; and a slice of what costs by the second."""
        if operation.timed is not None:
            return demand.ceiling.with_time_at_most(operation.timed.slice_s)
        if budget == SOFT:
            return demand.ceiling.with_output_at_most(self._bounds.output_slice_tokens)
        if demand.slicing is None:
            return demand.ceiling
        at_most = demand.slicing.unseen_tokens + self._bounds.output_slice_tokens
        return demand.ceiling.with_output_at_most(at_most)

    def unseen_tokens(self, exchange: Exchange) -> int | None:
        """Output held beside the slices of a stream; None where it needs no more than its first one."""
        slicing, caller = exchange.demand.slicing, exchange.caller
        if slicing is None or caller is None:
            return None
        unseen_tokens = 0 if caller.plan.budget == SOFT else slicing.unseen_tokens
        most = exchange.demand.ceiling.most_output
        return unseen_tokens if most - unseen_tokens > self._bounds.output_slice_tokens else None

    def slices(self, exchange: Exchange) -> Slices | None:
        """What grants a stream its output, where not all of it is held."""
        demand, caller, admitted = exchange.demand, exchange.caller, exchange.admitted
        unseen_tokens = self.unseen_tokens(exchange)
        if unseen_tokens is None or demand.slicing is None or caller is None or admitted is None:
            return None
        provider = exchange.surface.provider

        def cost_of(tokens: int) -> int:
            usage = demand.ceiling.with_output_at_most(tokens)
            return self._prices.cost(provider, usage, at_ms=self._clock.now_ms())[0]

        async def extend(shown_tokens: int, until_tokens: int) -> Refused | None:
            return await self._admission.extend(
                caller,
                admitted.reservation,
                until_nanousd=cost_of(unseen_tokens + until_tokens),
                used_nanousd=cost_of(shown_tokens),
                costs_less=demand.costs_less,
            )

        return Slices(
            demand.slicing,
            slice_tokens=self._bounds.output_slice_tokens,
            ceiling_tokens=demand.ceiling.most_output - unseen_tokens,
            bytes_per_token=self._bounds.output_bytes_per_token,
            extend=extend,
        )
