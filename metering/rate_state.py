"""Where an owner stands against a limit per minute, of requests or of tokens."""

from typing import NamedTuple


class RateState(NamedTuple):
    """After a request was counted, or refused. `remaining` is never negative; `reset_ms`: until when it has to
    last, in UTC milliseconds: the end of the requests' window, or when all tokens have flowed back; `retry_after_s`: the wait until one is allowed, 0 where it is."""

    is_allowed: bool
    limit: int
    remaining: int
    reset_ms: int
    retry_after_s: float
