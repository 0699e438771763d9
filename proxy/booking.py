"""Phase "settle": what an exchange has used is booked, once; and noted while it is open, for the case that we die."""

import asyncio
from collections import deque
from dataclasses import replace

from metering.admission import NO_QUOTAS, Admission
from metering.clock import Clock
from metering.ledger import NO_COST, Ledger, Outcome, Resolved, Settlement, bounded
from metering.prices import PriceTable
from metering.quotas import quotas_used
from metering.repeats import REQUEST_TIMEOUT, SERVER_ERROR, is_unsure
from metering.usage import NOTHING, Usage
from proxy.bounds import Bounds
from proxy.deferral import Deferrals
from proxy.exchange import SETTLE, Exchange

REDIRECT, CLIENT_ERROR = 300, 400


class Booking:
    """The engine's hand in the ledger."""

    def __init__(
        self,
        *,
        bounds: Bounds,
        prices: PriceTable,
        ledger: Ledger,
        admission: Admission,
        deferrals: Deferrals,
        clock: Clock,
    ) -> None:
        self._bounds = bounds
        self._prices = prices
        self._ledger = ledger
        self._admission = admission
        self._deferrals = deferrals
        self._clock = clock
        self._waits: deque[tuple[float, asyncio.Future[Resolved]]] = deque()
        """Who waits for a settle, and until when. All wait equally long, so the first comes first, and one timer serves
        all."""
        self._timer: asyncio.TimerHandle | None = None

    def known_usage(self, exchange: Exchange, *, is_intact: bool = True) -> Usage:
        """What is known now: what the observer saw, or what the request alone must have used."""
        operation = exchange.operation
        assert operation is not None
        is_error = exchange.upstream_status is not None and exchange.upstream_status >= REDIRECT
        if operation.meter.is_free or is_error:
            return NOTHING
        if exchange.observer is None:
            return replace(exchange.demand.floor, is_exact=False)
        usage = exchange.observer.usage()
        return usage if is_intact else replace(usage, is_exact=False)

    def settle(
        self,
        exchange: Exchange,
        outcome: Outcome,
        usage: Usage,
        *,
        notes: tuple[str, ...] = (),
        at_least_nanousd: int = 0,
    ) -> None:
        """Book it, once: a second call finds it done. Queued at once, whatever happens to this task next.

        An estimate stands on all that was seen until now, so no checkpoint bounds it from below: that one may have
        guessed at an output which the vendor has counted since, or does not charge."""
        if exchange.settled is not None:
            return
        exchange.phase = SETTLE
        operation = exchange.operation
        assert exchange.admitted is not None
        assert operation is not None
        reservation = exchange.admitted.reservation
        if exchange.is_deferred and _goes_on(exchange):
            exchange.outcome, exchange.settled = Outcome.DEFERRED, _deferred()
            return
        if operation.timed is not None and _may_run_unknown(exchange):
            exchange.outcome, exchange.settled = Outcome.DEFERRED, self._deferrals.leave_open(exchange)
            return
        if exchange.is_scheduled:
            scheduled_id = _scheduled_id(exchange)
            if scheduled_id is not None:
                exchange.outcome = Outcome.DEFERRED
                exchange.settled = self._deferrals.scheduling.hand_over(exchange, reservation, scheduled_id)
                return
            usage = NOTHING
        priced = self._prices.price(exchange.surface.provider, usage, at_ms=self._clock.now_ms())
        if not usage.is_exact:
            priced = bounded(priced, at_least_nanousd, reservation.hold_nanousd)
        exchange.outcome, exchange.priced = outcome, priced
        exchange.is_estimated, exchange.notes = not usage.is_exact, usage.notes + notes
        settlement = Settlement(
            outcome,
            priced,
            usage.is_exact,
            exchange.notes,
            quotas_used(usage, operation.quotas) if operation.quotas else NO_QUOTAS,
            self._prices.version,
            exchange.upstream_status,
            exchange.upstream_request_id,
        )
        exchange.settled = self._ledger.settle(reservation, settlement)
        if not exchange.is_deferred:  # else a poll may have been faster, and counts it
            self.charge(exchange)

    def charge(self, exchange: Exchange) -> None:
        """Count what was booked against the minute's tokens, once."""
        if exchange.priced is not None and exchange.caller is not None and not exchange.is_charged:
            exchange.is_charged = True
            self._admission.charge(exchange.caller, exchange.priced)

    def void(self, exchange: Exchange) -> None:
        assert exchange.admitted is not None
        exchange.phase = SETTLE
        exchange.outcome, exchange.priced = Outcome.NOT_SENT, NO_COST
        exchange.settled = self._ledger.void(exchange.admitted.reservation)

    async def durable(self, exchange: Exchange) -> None:
        """Until the settle is committed; a store in trouble delays the end of an answer only so long.

        It is the settle's own future that is waited for, for which nobody else waits: who waits too long finds it done, and what
        ends it then changes nothing. One between them would cost each request a turn of the loop."""
        settled = exchange.settled
        if settled is None or settled.done():
            return
        loop, waits = settled.get_loop(), self._waits
        while waits and waits[0][1].done():
            waits.popleft()
        waits.append((loop.time() + self._bounds.settle_wait_s, settled))
        if self._timer is None:
            self._timer = loop.call_at(waits[0][0], self._release_late, loop)
        try:  # noqa: SIM105 - `suppress` costs four calls
            await settled
        except Exception:  # noqa: BLE001, S110 - logged where it comes from
            pass

    def _release_late(self, loop: asyncio.AbstractEventLoop) -> None:
        """Those whose settle takes too long."""
        waits, now_s = self._waits, loop.time()
        while waits and (waits[0][0] <= now_s or waits[0][1].done()):
            _, settled = waits.popleft()
            if not settled.done():
                settled.set_result(Resolved.NOT_YET)
        self._timer = loop.call_at(waits[0][0], self._release_late, loop) if waits else None

    def checkpoint(self, exchange: Exchange) -> None:
        if exchange.observer is None or exchange.settled is not None or exchange.admitted is None:
            return
        reservation = exchange.admitted.reservation
        usage = self.known_usage(exchange)
        priced = self._prices.price(exchange.surface.provider, usage, at_ms=self._clock.now_ms())
        priced = bounded(priced, exchange.checkpoint_nanousd, reservation.hold_nanousd)
        if priced.cost_nanousd > exchange.checkpoint_nanousd:
            exchange.checkpoint_nanousd = priced.cost_nanousd
            self._ledger.checkpoint(reservation, priced)

    def leave_deferred(self, exchange: Exchange) -> None:
        """The request is over, its work may go on."""
        _leave_to_poll(exchange)
        self.charge(exchange)
        if exchange.client_left and exchange.operation is not None and exchange.operation.timed is not None:
            self._deferrals.leave_open(exchange)  # nobody was told of it


def _goes_on(exchange: Exchange) -> bool:
    """Of what is deferred, whether the work goes on after its request: then a poll settles it, as it is written where to ask."""
    operation = exchange.operation
    return (
        exchange.observer is not None
        and operation is not None
        and operation.deferred is not None
        and operation.deferred.is_running(exchange.observer)
    )


def _leave_to_poll(exchange: Exchange) -> None:
    """A poll was faster than the end of the stream: it has booked the work, and says so in a line of its own."""
    settled = exchange.settled
    if settled is None or not settled.done() or settled.cancelled() or settled.exception() is not None:
        return
    if settled.result() is Resolved.ALREADY_RESOLVED:
        exchange.outcome, exchange.priced, exchange.is_estimated = Outcome.DEFERRED, None, False


def _deferred() -> "asyncio.Future[Resolved]":
    """Nothing to wait for: what is written of the work was written before its id went down."""
    done: asyncio.Future[Resolved] = asyncio.get_running_loop().create_future()
    done.set_result(Resolved.DONE)
    return done


def _may_run_unknown(exchange: Exchange) -> bool:
    """Whether the vendor may have begun what goes on by itself, and no answer has told its id: a redirect may lead to it."""
    status = exchange.upstream_status
    is_refused = status is not None and CLIENT_ERROR <= status < SERVER_ERROR and status != REQUEST_TIMEOUT
    return exchange.is_forwarded and not exchange.is_deferred and not is_refused


def _scheduled_id(exchange: Exchange) -> str | None:
    """The id of what a request has scheduled; empty where nobody can say whether it has; None where it has not."""
    operation, observer, status = exchange.operation, exchange.observer, exchange.upstream_status
    assert operation is not None
    assert operation.scheduled is not None
    if status is None or is_unsure(status):
        return ""
    if status >= REDIRECT:
        return None
    if observer is None or not observer.is_complete:
        return ""
    return operation.scheduled.id_of(observer, exchange.request_id)
