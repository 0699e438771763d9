"""Tokens per minute: a bucket for each owner, charged with what an answer has used, after it has used it.

Nobody knows before what a turn of an agent will use, and its most is far above what it mostly is: charged ahead,
plans would refuse everybody. So a bucket admits while it is above zero, and one large turn may take it below; then
the wait is what it takes to be above zero again. How far below is bounded, so that nobody waits longer than a minute.

It fills continuously, a minute's tokens in a minute. Counted in 60,000ths of a token, one of which comes back each
millisecond for every token of the limit: no remainders. What is kept is what has been used, so an owner of whom
nothing is known has a full bucket, and a limit that changes counts at once. It counts within one process, as the
requests per minute do.
"""

from collections import OrderedDict

from metering.clock import Clock
from metering.prices import Priced
from metering.rate_state import RateState

KEYS_MAX = 200_000
"""Owners remembered: more than there are users. Forgetting one forgives it at most two minutes' tokens."""
PARTS = 60_000
"""Of a token, and milliseconds of a minute."""
DEBT_MS_MAX = PARTS - 1
"""How far below zero a bucket goes, in what flows back meanwhile: after a minute the worst is above zero. Agents obey
a long wait to the letter and freeze."""
NONE_AT_ALL_S = 60.0
"""The wait that a limit of 0 is told."""


def counted_tokens(priced: Priced) -> int:
    """What an answer counts against the minute: uncached input and output. What is written to a cache was read without it;
    what is read from one costs vendors little, and is no part of their own limits."""
    uncached, _, written, output = priced.tokens
    return uncached + written + output


class TokensPerMinute:
    """The buckets, by owner."""

    def __init__(self, clock: Clock, *, keys_max: int = KEYS_MAX) -> None:
        self._clock = clock
        self._keys_max = keys_max
        self._buckets: OrderedDict[str, list[int]] = OrderedDict()  # owner -> [parts used, when in ms]

    def look(self, owner: str, tokens_per_minute: int) -> RateState:
        """Where an owner stands. A state that is not allowed says how long until it is."""
        now_ms = self._clock.now_ms()
        used = self._used(owner, tokens_per_minute, now_ms)
        if not used and tokens_per_minute > 0:
            return RateState(True, tokens_per_minute, tokens_per_minute, now_ms, 0.0)
        left = tokens_per_minute * PARTS - used
        if left > 0:
            reset_ms = now_ms + -(-used // tokens_per_minute)
            return RateState(True, tokens_per_minute, left // PARTS, reset_ms, 0.0)
        if tokens_per_minute <= 0:
            return RateState(False, 0, 0, now_ms + PARTS, NONE_AT_ALL_S)
        reset_ms = now_ms + -(-used // tokens_per_minute)
        return RateState(False, tokens_per_minute, 0, reset_ms, (-left // tokens_per_minute + 1) / 1000)

    def charge(self, owner: str, tokens_per_minute: int, tokens: int) -> None:
        """Take what was used out of the bucket, as far as it may go down."""
        if tokens <= 0 or tokens_per_minute <= 0:
            return
        now_ms, most = self._clock.now_ms(), tokens_per_minute * (PARTS + DEBT_MS_MAX)
        used = self._used(owner, tokens_per_minute, now_ms) + tokens * PARTS
        self._buckets[owner] = [used if used < most else most, now_ms]
        if len(self._buckets) > self._keys_max:
            self._buckets.popitem(last=False)

    def used(self, owner: str, tokens_per_minute: int) -> int:
        """Tokens counted against the limit now, rounded up: above it where the bucket is below zero."""
        return -(-self._used(owner, tokens_per_minute, self._clock.now_ms()) // PARTS)

    def _used(self, owner: str, tokens_per_minute: int, now_ms: int) -> int:
        """Parts used and not flowed back by now; the owner becomes the one used last."""
        bucket = self._buckets.get(owner)
        if bucket is None:
            return 0
        used, at_ms = bucket
        most = tokens_per_minute * (PARTS + DEBT_MS_MAX)
        used = used if used < most else most  # the limit may be lower than it was
        if now_ms > at_ms:  # a clock that was set back moves nothing: from then on it flows back as ever
            used -= tokens_per_minute * (now_ms - at_ms)
        if used <= 0:
            del self._buckets[owner]
            return 0
        bucket[0], bucket[1] = used, now_ms
        self._buckets.move_to_end(owner)
        return used
