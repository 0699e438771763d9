"""The standard headers of every answer to a caller whom we know: `RateLimit-Policy`, what is allowed, and `RateLimit`,
what is left of it (draft-ietf-httpapi-ratelimit-headers-11, of 2026-05; lists of RFC 9651).

Units that the draft's registry does not have (`tokens`, `credits`) are named all the same: without a unit they would be
taken for requests. `t` is the time that what is left has to last; of a limit that refuses, the time until it does not, which
is what Retry-After says.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

from metering.money import credits_left, credits_of
from metering.rate_state import QuotaState, RateState, Standing
from proxy.surface import Headers

S_PER_DAY = 86_400
POLICIES_KEPT = 1_000
"""Policies remembered as they are written: one per plan and month, and one per set of a token's own limits."""


def limit_headers(standing: Standing, now_ms: int) -> Headers:
    """The two, and where the month's credits were looked at, what we said of them before there was a standard."""
    requests, tokens = standing.requests, standing.tokens
    window_s = (standing.budget_reset_ms - standing.budget_began_ms) // 1000
    policy, credits_limit = _allowed(
        requests.limit, tokens.limit, standing.concurrent_requests, standing.budget_limit_nanousd, window_s
    )
    limits = (
        requests.remaining,
        _time_left_s(requests, now_ms),
        tokens.remaining,
        _time_left_s(tokens, now_ms),
    )
    if standing.budget_remaining_nanousd is None:
        return [policy, (b"ratelimit", b'"requests";r=%d;t=%d, "tokens";r=%d;t=%d' % limits)]
    left, left_ms = credits_left(standing.budget_remaining_nanousd), standing.budget_reset_ms - now_ms
    month = (left, (left_ms + 999) // 1000 if left_ms > 0 else 1)
    told = b'"requests";r=%d;t=%d, "tokens";r=%d;t=%d, "credits";r=%d;t=%d' % (limits + month)
    if standing.quotas:
        more_allowed, more_told = _of_quotas(standing.quotas, window_s, now_ms)
        policy, told = (policy[0], policy[1] + more_allowed), told + more_told
    return [policy, (b"ratelimit", told), credits_limit, (b"x-automna-credits-remaining", b"%d" % left)]


def _of_quotas(quotas: Sequence[QuotaState], month_s: int, now_ms: int) -> tuple[bytes, bytes]:
    """What is allowed of them, and what is left."""
    allowed = told = b""
    for quota in quotas:
        name, left_s = quota.meter.encode(), max(1, -((now_ms - quota.reset_ms) // 1000))
        length_s = S_PER_DAY if quota.period == "day" else month_s
        allowed += b', "%b";q=%d;qu="%b";w=%d' % (name, quota.limit, name, length_s)
        told += b', "%b";r=%d;t=%d' % (name, quota.remaining, left_s)
    return allowed, told


def with_own_limit(headers: Headers, name: bytes, rate: RateState, now_ms: int) -> Headers:
    """The same with a limit that only some endpoints have: so many requests a minute."""
    items = {
        b"ratelimit-policy": b', "%b";q=%d;w=60' % (name, rate.limit),
        b"ratelimit": b', "%b";r=%d;t=%d' % (name, rate.remaining, _time_left_s(rate, now_ms)),
    }
    return [(header, value + items.get(header, b"")) for header, value in headers]


@lru_cache(maxsize=POLICIES_KEPT)
def _allowed(
    requests: int, tokens: int, concurrent: int, budget_nanousd: int, window_s: int
) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    """The headers that are the same until a plan or a month is another: the policy, and the month's credits."""
    credits_ = credits_of(budget_nanousd)
    policy = (
        b'"requests";q=%d;w=60, "tokens";q=%d;qu="tokens";w=60, '
        b'"concurrency";q=%d;qu="concurrent-requests", "credits";q=%d;qu="credits";w=%d'
    ) % (requests, tokens, concurrent, credits_, window_s)
    return (b"ratelimit-policy", policy), (b"x-automna-credits-limit", b"%d" % credits_)


def _time_left_s(rate: RateState, now_ms: int) -> int:
    """Rounded up, and never 0: what is left divided by it is a pace to some clients."""
    if rate.retry_after_s:
        return max(1, math.ceil(rate.retry_after_s))
    left_ms = rate.reset_ms - now_ms
    return (left_ms + 999) // 1000 if left_ms > 0 else 1
