"""Where an owner stands against a limit per minute, and a caller against all limits, as the headers of an answer tell
it."""

from dataclasses import dataclass
from typing import NamedTuple

from metering.values import immutable


@immutable
class RateState:
    """After a request was counted, or refused. `remaining` is never negative; `reset_ms`: until when it has to
    last, in UTC milliseconds: the end of the requests' window, or when all tokens have flowed back;
    `retry_after_s`: the wait until one is allowed, 0 where it is."""

    is_allowed: bool
    limit: int
    remaining: int
    reset_ms: int
    retry_after_s: float


class QuotaState(NamedTuple):
    """Where a plan's quota stands, right after a request was admitted against it. `reset_ms` in UTC milliseconds;
    `period`: `day` or `month`."""

    meter: str
    limit: int
    remaining: int
    reset_ms: int
    period: str


@dataclass(slots=True)  # one for each request: frozen, it would cost three times as much to make
class Standing:
    """Right after a request was counted or refused. Of a plan and a gateway token with limits of its own, what is
    tighter. Money in nano-USD, instants in UTC milliseconds."""

    requests: RateState
    tokens: RateState
    concurrent_requests: int
    budget_limit_nanousd: int
    budget_remaining_nanousd: int | None
    """None where nobody looked: a free operation holds no money, and most refusals come before it."""
    budget_began_ms: int
    budget_reset_ms: int
    quotas: tuple[QuotaState, ...]
    """Of the plan's counts, those that the request draws on; empty where nobody looked, as above."""
