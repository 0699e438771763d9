"""Where a caller stands against each limit, as the headers of an answer tell it."""

from dataclasses import dataclass

from metering.rate_state import RateState


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
