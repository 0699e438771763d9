"""How long each phase of a request takes, and where it waited for the ledger: metrics for whoever looks for a slow request.

They are there with PHASE_TIMES alone. The pipeline notes on the exchange which phase begins; here, noting it takes the time as well.
Without the setting an exchange is the plain one and so is the ledger's writer: no request asks whether it is timed.
"""

import time
from typing import ClassVar

from metering.prices import PriceTable
from metering.store.writer import CommitTimes
from proxy.downstream import Connection
from proxy.exchange import MATCH, Exchange
from proxy.request import Request
from proxy.surface import Surface
from proxy.telemetry import COMMIT_BUCKETS_S, LATENCY_BUCKETS_S, Say, Telemetry

SHORT_BUCKETS_S = (0.00001, 0.000025, 0.00005, 0.0001)
"""What takes no longer than a few lines of ours do."""
PHASE_BUCKETS_S = (*SHORT_BUCKETS_S, 0.00025, 0.0005, *LATENCY_BUCKETS_S)
WAIT_BUCKETS_S = (*SHORT_BUCKETS_S, *COMMIT_BUCKETS_S)


class TimedExchange(Exchange):
    """One that adds up the time of its phases. There is no time between them: together they are all of it."""

    __slots__ = ("_now", "_seconds", "_since_s")

    def __init__(
        self,
        surface: Surface,
        request: Request,
        connection: Connection,
        request_id: str,
        started_s: float,
    ) -> None:
        self._now, self._since_s = MATCH, started_s
        self._seconds: dict[str, float] = {}
        super().__init__(surface, request, connection, request_id, started_s)

    @property
    def phase(self) -> str:
        return self._now

    @phase.setter
    def phase(self, phase: str) -> None:
        self._add(time.monotonic())
        self._now = phase

    def seconds_by_phase(self, ended_s: float) -> dict[str, float]:
        """Of the phases that have begun; one that has begun twice has both times. To be asked for once, at the end."""
        self._add(ended_s)
        return self._seconds

    def _add(self, now_s: float) -> None:
        self._seconds[self._now] = self._seconds.get(self._now, 0.0) + now_s - self._since_s
        self._since_s = now_s


class TimedTelemetry(Telemetry):
    """The metrics of one process, and these."""

    exchange: ClassVar[type[Exchange]] = TimedExchange

    def __init__(self, prices: PriceTable, *, log_format: str, say: Say) -> None:
        super().__init__(prices, log_format=log_format, say=say)
        self._phase_seconds = self._spread(
            "automna_phase_seconds",
            "What each phase of a request took, with its waits.",
            ["phase"],
            PHASE_BUCKETS_S,
        )
        self._wait_seconds = self._spread(
            "automna_ledger_wait_seconds",
            "From when a unit of work was queued to the beginning of the group commit that has it.",
            [],
            WAIT_BUCKETS_S,
        )
        self._heard_seconds = self._spread(
            "automna_ledger_heard_seconds",
            "From the end of a group commit until the event loop heard of it.",
            [],
            WAIT_BUCKETS_S,
        )
        self.on_times = self._commit_took

    def finish(self, exchange: Exchange, ended_s: float) -> None:
        assert isinstance(exchange, TimedExchange)
        for phase, seconds in exchange.seconds_by_phase(ended_s).items():
            self._phase_seconds.new[(phase,)].observe(seconds)
        super().finish(exchange, ended_s)

    def _commit_took(self, times: CommitTimes) -> None:
        """Before `committed` of the same commit, which sees to it that other workers hear."""
        for wait_s in times.waits_s:
            self._wait_seconds.new[()].observe(wait_s)
        self._heard_seconds.new[()].observe(times.heard_s)
