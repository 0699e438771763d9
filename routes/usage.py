"""For whoever holds a gateway token: what was used and cost, and what is left.

Reports read by connections of their own, few at a time and so many a minute per user: authentication and
the look-out for revocations share another connection and must not wait behind a long month.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from metering.admission import Caller, owner_of
from metering.caps import states_of
from metering.clock import Clock, month_of, next_month
from metering.errors import Reason, Refused
from metering.grants import prepaid_credit
from metering.rate_limits import RateLimits
from metering.reports import GroupBy, PeriodError, balances_of, credits_as_json, instant, period_of, usage_of
from metering.store.readers import Readers
from metering.store.writer import store_unavailable
from metering.terms import USER_SURFACE
from proxy.auth import Authenticator, TokenPlaces
from proxy.surface import BEARER, HeaderKey, Headers
from proxy.telemetry import OWN_EXCHANGE

REPORTS_AT_ONCE_MAX = 4
"""Connections to the store, and threads, for reports in one worker; further ones wait their turn."""
TURN_TIMEOUT_S = 5.0
"""For a turn: only a store that hangs lets a report wait so long."""
REPORTS_PER_MINUTE = 60
"""Per user, beside the plan's requests per minute: looking at one's limits must not use them up."""
TOKEN_PLACES = TokenPlaces((BEARER, HeaderKey("authorization"), HeaderKey("x-api-key")))


class Reports:
    """Authenticated reading for the endpoints below."""

    def __init__(
        self, *, authenticator: Authenticator, readers: Readers, rate_limits: RateLimits, clock: Clock
    ) -> None:
        self._authenticator = authenticator
        self._shared_readers = readers
        self._rate_limits = rate_limits
        self._clock = clock
        self._turns = asyncio.Semaphore(REPORTS_AT_ONCE_MAX)

    async def usage(self, caller: Caller, query: dict[str, str]) -> dict[str, Any]:
        """The report that the query asks for. Raises Refused."""
        try:
            by = GroupBy(query.get("by", GroupBy.MODEL))
        except ValueError:
            raise Refused(
                Reason.BAD_REQUEST, f"by: given {query['by']!r}, expected {' or '.join(GroupBy)}"
            ) from None
        try:
            period = period_of(query.get("from"), query.get("to"), self._clock.now_ms())
        except PeriodError as error:
            raise Refused(Reason.BAD_REQUEST, f"{error} (in a URL, + is written %2B)") from None
        async with self._readers() as readers:
            report = await usage_of(readers, caller.user_id, period, by)
        return report.as_json()

    async def limits(self, caller: Caller) -> dict[str, Any]:
        """Where the caller stands against each limit that is enforced. Raises Refused."""
        owner, now_ms, plan = owner_of(caller.user_id), self._clock.now_ms(), caller.plan
        async with self._readers() as readers:
            money, open_requests = await balances_of(readers, owner, now_ms)
            prepaid = await prepaid_credit(readers, caller.user_id)
            caps = await states_of(readers, caller.token.caps if caller.token else (), now_ms)
        used = self._rate_limits.used(owner, plan.requests_per_minute)
        used_tokens = self._rate_limits.tokens.used(owner, plan.tokens_per_minute)
        return {
            "user": caller.user_id,
            "plan": plan.name,
            "period": month_of(now_ms),
            "meters": {
                "credits": {
                    **credits_as_json(money, plan.allowance_nanousd),
                    "resets_at": next_month(now_ms).strftime("%Y-%m-%dT%H:%M:%SZ"),
                },
                "prepaid_credit": prepaid,
            },
            "requests_per_minute": {
                "limit": plan.requests_per_minute,
                "used": used,
                "remaining": max(0, plan.requests_per_minute - used),
            },
            "tokens_per_minute": {
                "limit": plan.tokens_per_minute,
                "used": used_tokens,
                "remaining": max(0, plan.tokens_per_minute - used_tokens),
            },
            "concurrent_requests": {
                "limit": plan.concurrent_requests,
                "held": open_requests.held,
                "left": max(0, plan.concurrent_requests - open_requests.held),
            },
            "caps": [cap.as_json() for cap in caps],
            "at": instant(now_ms),
        }

    async def identified(self, request: Request, operation: str) -> Caller:
        """Whose gateway token it is. Raises Refused: no token, or one whose scope does not include the operation."""
        headers: Headers = list(request.scope["headers"])
        found = TOKEN_PLACES.find(headers, b"")
        # The bare form of the header also finds `Bearer X`, which is X and not a second token.
        tokens = {token for token in found if token[:7].lower() != b"bearer "}
        caller = await self._authenticator.authenticate(tokens)
        request.scope[OWN_EXCHANGE].caller = caller
        if caller.token is not None:
            caller.token.require(USER_SURFACE, operation)
        return caller

    async def caller(self, request: Request) -> Caller:
        """The same for a report, which is named as its endpoint. Raises Refused: too many reports a minute, too."""
        caller = await self.identified(request, request.scope["endpoint"].__name__)
        rate = self._rate_limits.hit(f"reports:{caller.user_id}", REPORTS_PER_MINUTE)
        request.scope[OWN_EXCHANGE].reports_rate = rate
        if not rate.is_allowed:
            raise Refused(
                Reason.RATE_LIMITED,
                f"Rate limit reached: {REPORTS_PER_MINUTE} usage reports per minute.",
                retry_after_s=rate.retry_after_s,
                facts={"limit": REPORTS_PER_MINUTE},
            )
        return caller

    @asynccontextmanager
    async def _readers(self) -> AsyncIterator[Readers]:
        try:
            async with asyncio.timeout(TURN_TIMEOUT_S):
                await self._turns.acquire()
        except TimeoutError:
            raise store_unavailable("too many reports wait for it") from None
        readers = self._shared_readers.another()
        try:
            yield readers
        finally:
            try:
                await readers.aclose()
            finally:
                self._turns.release()


def usage_routes(reports: Reports) -> list[Route]:
    """`/api/user/usage` and `/api/user/limits`."""

    async def usage(request: Request) -> Response:
        return private(await reports.usage(await reports.caller(request), dict(request.query_params)))

    async def limits(request: Request) -> Response:
        return private(await reports.limits(await reports.caller(request)))

    return [
        Route("/api/user/usage", usage, methods=["GET"]),
        Route("/api/user/limits", limits, methods=["GET"]),
    ]


def private(document: dict[str, Any], status: int = 200) -> Response:
    """An answer for the token's holder alone."""
    return Response(
        orjson.dumps(document), status, headers={"cache-control": "no-store"}, media_type="application/json"
    )
