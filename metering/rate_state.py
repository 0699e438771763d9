"""Where an owner stands against a limit per minute, of requests or of tokens."""

from typing import NamedTuple


class RateState(NamedTuple):
    """After a request was counted, or refused. `remaining` is never negative; `reset_ms`: when all of the limit is there
    again, in UTC milliseconds; `retry_after_s`: the wait until one is allowed, 0 where it is."""

    is_allowed: bool
    limit: int
    remaining: int
    reset_ms: int
    retry_after_s: float
